//! What pods and the node use, as `/stats/summary` and `/metrics/resource` tell it.
//!
//! CPU rates are made from two readings; the last ones are kept here.

use crate::{agent::Context, machine, spec::names};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
};

/// The least time between two readings that make a rate.
const WINDOW_NS: i64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    at_ns: i64,
    cpu_ns: u64,
    nano_cores: u64,
}

impl Reading {
    /// Takes a newer reading in and keeps the rate between the two.
    fn next(self, at_ns: i64, cpu_ns: u64) -> Reading {
        let elapsed = at_ns - self.at_ns;
        if elapsed < WINDOW_NS {
            return self;
        }
        let used = cpu_ns.saturating_sub(self.cpu_ns);
        let nano_cores = if self.at_ns == 0 { 0 } else { (u128::from(used) * 1_000_000_000 / elapsed.unsigned_abs() as u128) as u64 };
        Reading { at_ns, cpu_ns, nano_cores }
    }
}

/// The readings of the past.
#[derive(Default)]
pub struct Stats {
    readings: Mutex<HashMap<String, Reading>>,
}

/// One container's use.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub container: String,
    pub at_ns: i64,
    pub cpu_ns: u64,
    pub nano_cores: u64,
    pub memory_bytes: u64,
    pub written_bytes: u64,
}

/// The node's use.
#[derive(Clone, Debug, Default)]
pub struct NodeUsage {
    pub cpu_ns: u64,
    pub nano_cores: u64,
    pub memory_bytes: u64,
    pub available_bytes: u64,
}

fn value(field: &Option<cri::v1::UInt64Value>) -> u64 {
    field.as_ref().map(|field| field.value).unwrap_or(0)
}

/// Time that all processors have worked, in nanoseconds, from `/proc/stat`.
fn busy_ns(text: &str) -> u64 {
    let Some(line) = text.lines().find(|line| line.starts_with("cpu ")) else { return 0 };
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let idle = ticks.get(3).copied().unwrap_or(0) + ticks.get(4).copied().unwrap_or(0);
    // A tick is a hundredth of a second; guest time is counted in user time already.
    (ticks.iter().take(8).sum::<u64>() - idle) * 10_000_000
}

fn iso(at_ns: i64) -> String {
    Timestamp::from_nanosecond(at_ns.into()).map(|at| Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()).unwrap_or_default()
}

impl Stats {
    /// What the containers that run use.
    pub async fn containers(&self, cx: &Context) -> Result<Vec<Usage>, cri::Error> {
        let mut out = Vec::new();
        let all = cx.cri.list_container_stats().await?;
        let mut readings = self.readings.lock();
        readings.retain(|id, _| id.is_empty() || all.iter().any(|stats| stats.attributes.as_ref().is_some_and(|attributes| attributes.id == *id)));
        for stats in all {
            let Some(attributes) = stats.attributes else { continue };
            let label = |name: &str| attributes.labels.get(name).cloned().unwrap_or_default();
            // Of a container that has ended the runtime knows no time of a reading.
            let Some(cpu) = stats.cpu.as_ref().filter(|cpu| cpu.timestamp > 0) else { continue };
            let (at_ns, cpu_ns) = (cpu.timestamp, value(&cpu.usage_core_nano_seconds));
            let given = cpu.usage_nano_cores.as_ref().map(|rate| rate.value);
            let reading = readings.get(&attributes.id).copied().unwrap_or_default().next(at_ns, cpu_ns);
            readings.insert(attributes.id.clone(), reading);
            out.push(Usage {
                namespace: label(names::POD_NAMESPACE),
                pod: label(names::POD_NAME),
                uid: label(names::POD_UID),
                container: label(names::CONTAINER_NAME),
                at_ns,
                cpu_ns,
                nano_cores: given.filter(|rate| *rate > 0).unwrap_or(reading.nano_cores),
                memory_bytes: stats.memory.as_ref().map(|memory| value(&memory.working_set_bytes)).unwrap_or(0),
                written_bytes: stats.writable_layer.as_ref().map(|layer| value(&layer.used_bytes)).unwrap_or(0),
            });
        }
        Ok(out)
    }

    /// What the node uses.
    pub fn node(&self) -> NodeUsage {
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let field = |name| machine::memory_field(&memory, name).unwrap_or(0).unsigned_abs();
        let cpu_ns = busy_ns(&std::fs::read_to_string("/proc/stat").unwrap_or_default());
        let now = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0);
        let mut readings = self.readings.lock();
        let reading = readings.get("").copied().unwrap_or_default().next(now, cpu_ns);
        readings.insert(String::new(), reading);
        let available = field("MemAvailable");
        NodeUsage { cpu_ns, nano_cores: reading.nano_cores, memory_bytes: field("MemTotal").saturating_sub(available), available_bytes: available }
    }

    /// The body of `/stats/summary`.
    pub async fn summary(&self, cx: &Context) -> Result<Value, cri::Error> {
        let containers = self.containers(cx).await?;
        let node = self.node();
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string();
        let mut pods: BTreeMap<String, Vec<&Usage>> = BTreeMap::new();
        for usage in &containers {
            pods.entry(usage.uid.clone()).or_default().push(usage);
        }
        let pods: Vec<Value> = pods
            .values()
            .map(|usages| {
                let first = usages[0];
                let start = cx.pod_by_uid(&first.uid).and_then(|pod| pod.status.as_ref()?.start_time.clone());
                let sum = |field: fn(&Usage) -> u64| usages.iter().map(|usage| field(usage)).sum::<u64>();
                json!({
                    "podRef": { "name": first.pod, "namespace": first.namespace, "uid": first.uid },
                    "startTime": start,
                    "cpu": { "time": now, "usageNanoCores": sum(|u| u.nano_cores), "usageCoreNanoSeconds": sum(|u| u.cpu_ns) },
                    "memory": { "time": now, "workingSetBytes": sum(|u| u.memory_bytes) },
                    "ephemeral-storage": { "time": now, "usedBytes": sum(|u| u.written_bytes) },
                    "containers": usages.iter().map(|usage| json!({
                        "name": usage.container,
                        "startTime": start,
                        "cpu": { "time": iso(usage.at_ns), "usageNanoCores": usage.nano_cores, "usageCoreNanoSeconds": usage.cpu_ns },
                        "memory": { "time": iso(usage.at_ns), "workingSetBytes": usage.memory_bytes },
                        "rootfs": { "time": iso(usage.at_ns), "usedBytes": usage.written_bytes },
                    })).collect::<Vec<_>>(),
                })
            })
            .collect();
        let (total, free, inodes, inodes_free) = machine::disk(&cx.config.data_dir).unwrap_or_default();
        let disk = json!({ "time": now, "availableBytes": free, "capacityBytes": total, "usedBytes": total.saturating_sub(free), "inodes": inodes, "inodesFree": inodes_free });
        Ok(json!({
            "node": {
                "nodeName": cx.config.node_name,
                "startTime": cx.started_at.to_string(),
                "cpu": { "time": now, "usageNanoCores": node.nano_cores, "usageCoreNanoSeconds": node.cpu_ns },
                "memory": { "time": now, "availableBytes": node.available_bytes, "usageBytes": node.memory_bytes, "workingSetBytes": node.memory_bytes },
                "fs": disk,
                "runtime": { "imageFs": disk, "containerFs": disk },
            },
            "pods": pods,
        }))
    }

    /// The body of `/metrics/resource`.
    pub async fn metrics(&self, cx: &Context) -> Result<String, cri::Error> {
        let containers = self.containers(cx).await?;
        let node = self.node();
        let mut out = String::new();
        let seconds = |ns: u64| ns as f64 / 1e9;
        let mut put = |text: String| out.write_str(&text).is_ok();
        put("# HELP container_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the container in core-seconds\n# TYPE container_cpu_usage_seconds_total counter\n".into());
        let names = |usage: &Usage| format!("container=\"{}\",namespace=\"{}\",pod=\"{}\"", usage.container, usage.namespace, usage.pod);
        for usage in &containers {
            put(format!("container_cpu_usage_seconds_total{{{}}} {} {}\n", names(usage), seconds(usage.cpu_ns), usage.at_ns / 1_000_000));
        }
        put("# HELP container_memory_working_set_bytes [STABLE] Current working set of the container in bytes\n# TYPE container_memory_working_set_bytes gauge\n".into());
        for usage in &containers {
            put(format!("container_memory_working_set_bytes{{{}}} {} {}\n", names(usage), usage.memory_bytes, usage.at_ns / 1_000_000));
        }
        put(format!(
            "# HELP node_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the node in core-seconds\n# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total {}\n",
            seconds(node.cpu_ns)
        ));
        put(format!(
            "# HELP node_memory_working_set_bytes [STABLE] Current working set of the node in bytes\n# TYPE node_memory_working_set_bytes gauge\nnode_memory_working_set_bytes {}\n",
            node.memory_bytes
        ));
        put("# HELP resource_scrape_error [STABLE] 1 if there was an error while getting container metrics, 0 otherwise\n# TYPE resource_scrape_error gauge\nresource_scrape_error 0\n".into());
        Ok(out)
    }
}

impl Stats {
    /// The body of `/metrics/cadvisor`: what the runtime tells of containers, under cAdvisor's names.
    pub async fn cadvisor(&self, cx: &Context) -> Result<String, cri::Error> {
        type Figure = fn(&Usage) -> f64;
        const FIGURES: [(&str, &str, &str, Figure); 4] = [
            ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", |usage| usage.cpu_ns as f64 / 1e9),
            ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |usage| usage.memory_bytes as f64),
            ("container_memory_usage_bytes", "gauge", "Current memory usage in bytes.", |usage| usage.memory_bytes as f64),
            ("container_fs_usage_bytes", "gauge", "Number of bytes that are consumed by the container.", |usage| usage.written_bytes as f64),
        ];
        let containers = self.containers(cx).await?;
        let mut out = format!(
            "# HELP machine_cpu_cores Number of logical CPU cores.\n# TYPE machine_cpu_cores gauge\nmachine_cpu_cores {}\n# HELP machine_memory_bytes Amount of memory installed on the machine.\n# TYPE machine_memory_bytes gauge\nmachine_memory_bytes {}\n",
            cx.machine.cpus, cx.machine.memory_bytes
        );
        for (name, kind, help, figure) in FIGURES {
            // Writing to a String cannot fail.
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            for usage in &containers {
                let labels = format!("container=\"{}\",namespace=\"{}\",pod=\"{}\"", usage.container, usage.namespace, usage.pod);
                let _ = writeln!(out, "{name}{{{labels}}} {} {}", figure(usage), usage.at_ns / 1_000_000);
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_from_two_readings() {
        let first = Reading::default().next(1_000_000_000_000, 5_000_000_000);
        assert_eq!(first.nano_cores, 0);
        let second = first.next(1_010_000_000_000, 7_000_000_000);
        assert_eq!(second.nano_cores, 200_000_000);
        assert_eq!(second.next(1_010_000_000_001, 9_000_000_000).nano_cores, 200_000_000);
        assert_eq!(busy_ns("cpu  10 0 5 100 5 0 0 0 0 0\n"), 150_000_000);
    }
}
