//! The configuration of a node's containerd: its own state, the registry as mirror, the cluster's CNI plugins.

use crate::{
    Doing, Result,
    plan::{Node, REGISTRY},
};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// The image of a pod's sandbox, under the name that Kubernetes gives it.
pub const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10";
/// Where Debian's `containernetworking-plugins` lie.
const DEBIAN_CNI: &str = "/usr/lib/cni";
/// Registries whose images the sandbox's own registry holds.
const MIRRORED: [&str; 2] = ["docker.io", "registry.k8s.io"];

/// The node's CNI plugins: Debian's, and the address management that `regent` itself is when called by that name.
pub fn cni_bin_dir(node: &Node) -> PathBuf {
    node.directory.join("cni-bin")
}

/// Writes all that the node's containerd reads.
pub fn configure(node: &Node, regent: &Path) -> Result<()> {
    let plugins = cni_bin_dir(node);
    fs::create_dir_all(&plugins).doing(|| format!("making {}", plugins.display()))?;
    let mut links = vec![("regent-ipam", regent.to_path_buf())];
    links.extend(["ptp", "loopback"].map(|name| (name, Path::new(DEBIAN_CNI).join(name))));
    for (name, target) in links {
        let link = plugins.join(name);
        let _ = fs::remove_file(&link);
        symlink(&target, &link).doing(|| format!("linking {}", link.display()))?;
    }
    let hosts = node.directory.join("certs.d");
    for registry in MIRRORED {
        let directory = hosts.join(registry);
        fs::create_dir_all(&directory).doing(|| format!("making {}", directory.display()))?;
        let upstream = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let text = format!("server = \"https://{upstream}\"\n\n[host.\"http://{REGISTRY}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        let file = directory.join("hosts.toml");
        fs::write(&file, text).doing(|| format!("writing {}", file.display()))?;
    }
    let private = hosts.join(crate::plan::PRIVATE_REGISTRY);
    fs::create_dir_all(&private).doing(|| format!("making {}", private.display()))?;
    let text = format!("server = \"http://{0}\"\n\n[host.\"http://{0}\"]\n  capabilities = [\"pull\", \"resolve\"]\n", crate::plan::PRIVATE_REGISTRY);
    fs::write(private.join("hosts.toml"), text).doing(|| format!("writing into {}", private.display()))?;
    let file = node.directory.join("containerd.toml");
    fs::write(&file, configuration(&plugins, &hosts)).doing(|| format!("writing {}", file.display()))
}

fn configuration(plugins: &Path, hosts: &Path) -> String {
    let (plugins, hosts) = (plugins.display(), hosts.display());
    // `restrict_oom_score_adj`: without CAP_SYS_RESOURCE the score cannot be lowered, and every pod sandbox would fail.
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{hosts}"
"#
    )
}
