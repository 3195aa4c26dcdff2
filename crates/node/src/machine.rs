//! What the machine is: processors, memory, disk, kernel, names. Read once, except where said.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::{collections::BTreeMap, fs, path::Path};

/// The facts.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub cpus: i64,
    pub memory_bytes: i64,
    pub disk_bytes: i64,
    pub pods_max: u32,
    /// Memory that pods cannot have: what eviction defends.
    pub memory_reserved_bytes: i64,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel_version: String,
    pub os_image: String,
    pub architecture: String,
}

fn line(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn quantity(text: impl Into<String>) -> Quantity {
    Quantity(text.into())
}

/// A field of `/proc/meminfo`, in bytes.
pub fn memory_field(text: &str, name: &str) -> Option<i64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().trim_end_matches("kB").trim().parse::<i64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// The pretty name of the operating system.
fn os_image(text: &str) -> String {
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    value.map(|value| value.trim_matches('"').to_owned()).unwrap_or_else(|| "Linux".into())
}

/// Size and free space of the file system that holds a path: bytes, free bytes, inodes, free inodes.
pub fn disk(path: &Path) -> Option<(u64, u64, u64, u64)> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize, stat.f_files, stat.f_ffree))
}

impl Machine {
    /// Reads the facts. The reserve is what eviction keeps free, which pods cannot be promised.
    pub fn read(data_dir: &Path, pods_max: u32, memory_reserve: crate::eviction::Threshold) -> Machine {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let memory_bytes = memory_field(&line("/proc/meminfo"), "MemTotal").unwrap_or(0);
        Machine {
            cpus: std::thread::available_parallelism().map(|count| count.get() as i64).unwrap_or(1),
            memory_bytes,
            disk_bytes: disk(data_dir).map(|(total, ..)| i64::try_from(total).unwrap_or(i64::MAX)).unwrap_or(0),
            pods_max,
            memory_reserved_bytes: i64::try_from(memory_reserve.of(memory_bytes.unsigned_abs())).unwrap_or(0),
            machine_id: line("/etc/machine-id"),
            system_uuid: line("/sys/class/dmi/id/product_uuid"),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            kernel_version: line("/proc/sys/kernel/osrelease"),
            os_image: os_image(&line("/etc/os-release")),
            architecture: architecture.into(),
        }
    }

    /// All that the node has.
    pub fn capacity(&self) -> BTreeMap<String, Quantity> {
        [
            ("cpu", quantity(self.cpus.to_string())),
            ("memory", quantity(format!("{}Ki", self.memory_bytes / 1024))),
            ("ephemeral-storage", quantity(format!("{}Ki", self.disk_bytes / 1024))),
            ("hugepages-1Gi", quantity("0")),
            ("hugepages-2Mi", quantity("0")),
            ("pods", quantity(self.pods_max.to_string())),
        ]
        .map(|(name, amount)| (name.to_owned(), amount))
        .into()
    }

    /// What pods may ask for.
    pub fn allocatable(&self) -> BTreeMap<String, Quantity> {
        let mut out = self.capacity();
        out.insert("memory".into(), quantity(format!("{}Ki", (self.memory_bytes - self.memory_reserved_bytes).max(0) / 1024)));
        out.insert("ephemeral-storage".into(), quantity((self.disk_bytes / 10 * 9).to_string()));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read() {
        assert_eq!(memory_field("MemTotal:       100 kB\nMemAvailable:    7 kB\n", "MemAvailable"), Some(7168));
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"), "Debian GNU/Linux 12 (bookworm)");
    }
}
