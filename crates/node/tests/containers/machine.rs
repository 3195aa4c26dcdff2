//! A private containerd with its own directories, bridge and images, taken away again when dropped.

use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The bridge of the test's pods.
const BRIDGE: &str = "regentnode0";
/// How long the last pods may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(60);
pub const IMAGE: &str = "docker.io/library/busybox:test";
const PAUSE: &str = "registry.k8s.io/pause:test";

pub struct Machine {
    pub directory: PathBuf,
    containerd: Child,
}

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Writes an image of busybox alone, as an OCI archive.
fn image(directory: &Path, name: &str, entry: &[&str]) -> PathBuf {
    let root = directory.join("root");
    let _ = fs::remove_dir_all(&root);
    for part in ["bin", "tmp", "etc", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    for applet in [
        "sh", "cat", "sleep", "httpd", "wget", "id", "echo", "ls", "env", "hostname", "test", "touch", "rm", "true", "false", "kill", "mkdir",
        "printf",
    ] {
        let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(applet));
    }
    let oci = directory.join("oci");
    let _ = fs::remove_dir_all(&oci);
    let blobs = oci.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8]| {
        let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&hash), bytes).unwrap();
        (format!("sha256:{hash}"), bytes.len())
    };
    let layer_file = directory.join("layer.tar");
    assert!(run("tar", &["-C", root.to_str().unwrap(), "-cf", layer_file.to_str().unwrap(), "."]));
    let (layer, layer_size) = blob(&fs::read(&layer_file).unwrap());
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "config": { "Entrypoint": entry, "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    });
    let (config, config_size) = blob(config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size }],
    });
    let (manifest, manifest_size) = blob(manifest.to_string().as_bytes());
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": manifest_size,
            "annotations": { "io.containerd.image.name": name },
        }],
    });
    fs::write(oci.join("index.json"), index.to_string()).unwrap();
    fs::write(oci.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let archive = directory.join("image.tar");
    assert!(run("tar", &["-C", oci.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]));
    archive
}

impl Machine {
    /// Starts containerd and gives it the images.
    pub fn start() -> Machine {
        let directory = PathBuf::from(format!("/tmp/regent-node-test-{}", std::process::id()));
        let cni = directory.join("cni");
        fs::create_dir_all(&cni).unwrap();
        let network = json!({
            "cniVersion": "0.4.0", "name": "regent-node-test",
            "plugins": [{
                "type": "bridge", "bridge": BRIDGE, "isGateway": true,
                "ipam": { "type": "host-local", "dataDir": directory.join("ipam"), "ranges": [[{ "subnet": "10.89.77.0/24" }]] },
            }],
        });
        fs::write(cni.join("10-test.conflist"), network.to_string()).unwrap();
        let at = |name: &str| directory.join(name).display().to_string();
        let configuration = format!(
            r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
"#,
            root = at("root.d"),
            state = at("state"),
            socket = at("containerd.sock"),
            cni = cni.display()
        );
        let file = directory.join("containerd.toml");
        fs::write(&file, configuration).unwrap();
        let log = fs::File::create(directory.join("containerd.log")).unwrap();
        let containerd = Command::new("containerd")
            .arg("--config")
            .arg(&file)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("containerd is installed");
        let machine = Machine { directory, containerd };
        let begun = Instant::now();
        while !machine.ctr(&["version"]) {
            assert!(begun.elapsed() < Duration::from_secs(30), "containerd does not answer");
            std::thread::yield_now();
        }
        let busybox = image(&machine.directory, IMAGE, &["/bin/sh"]);
        assert!(machine.ctr(&["-n", "k8s.io", "images", "import", busybox.to_str().unwrap()]));
        let pause = image(&machine.directory, PAUSE, &["/bin/busybox", "sleep", "2147483647"]);
        assert!(machine.ctr(&["-n", "k8s.io", "images", "import", pause.to_str().unwrap()]));
        machine
    }

    /// The cgroup of the test's pods.
    pub fn cgroup(&self) -> String {
        format!("/regent-node-test-{}", std::process::id())
    }

    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.directory.join("containerd.sock").display())
    }

    fn ctr(&self, arguments: &[&str]) -> bool {
        let socket = self.directory.join("containerd.sock").display().to_string();
        let mut all = vec!["--address", socket.as_str()];
        all.extend(arguments);
        run("ctr", &all)
    }

    /// Ends whatever pods are left, so that nothing outlives the test even when it fails. No agent may run any more.
    fn end_pods(&self) {
        let endpoint = self.endpoint();
        let end = std::thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            runtime.block_on(async {
                let cri = cri::Client::new(&endpoint);
                let begun = Instant::now();
                // What a stopped agent had asked for may still come.
                let mut quiet = 0;
                while quiet < 10 && begun.elapsed() < END_TIMEOUT {
                    let left = cri.list_pod_sandboxes(Default::default()).await.unwrap_or_default();
                    quiet = if left.is_empty() { quiet + 1 } else { 0 };
                    for sandbox in left {
                        let _ = cri.stop_pod_sandbox(&sandbox.id).await;
                        let _ = cri.remove_pod_sandbox(&sandbox.id).await;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            });
        });
        let _ = end.join();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end_pods();
        let _ = self.containerd.kill();
        let _ = self.containerd.wait();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut ours: Vec<&str> =
            mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|path| Path::new(path).starts_with(&self.directory)).collect();
        ours.sort_by_key(|path| std::cmp::Reverse(path.len()));
        for mount in ours {
            run("umount", &["-l", mount]);
        }
        run("ip", &["link", "del", BRIDGE]);
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let root = hierarchy.path().join(self.cgroup().trim_start_matches('/'));
            if root.exists() {
                run("find", &[root.to_str().unwrap_or_default(), "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]);
            }
        }
        if std::env::var_os("REGENT_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}
