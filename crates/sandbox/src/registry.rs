//! The sandbox's own image registry: Debian's `docker-registry` on the bridge, twice over one store.
//!
//! The open one is the mirror of every node's containerd for Docker Hub and `registry.k8s.io`; the other asks for a user
//! and a password, so that `imagePullSecrets` have something to open. Images come from a directory of OCI archives with
//! an `images.json` beside them (made by `make images`).

use crate::{
    Doing, Error, Result,
    plan::{Node, PRIVATE_REGISTRY, REGISTRY},
    run,
};
use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The user of the private registry. Its password is made anew for every sandbox.
pub const PRIVATE_USER: &str = "regent";
/// How long the registry may take to listen, in seconds.
const PATIENCE_S: u64 = 20;

/// One archive and the names, without registry, under which the registry serves it.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
pub struct Image {
    pub archive: String,
    pub names: Vec<String>,
}

/// The file in which the private registry's password is kept.
pub fn password_file(node: &Node) -> PathBuf {
    node.directory.join("password")
}

/// Writes the configuration of both registries.
pub fn configure(node: &Node) -> Result<()> {
    let blobs = node.directory.join("blobs");
    fs::create_dir_all(&blobs).doing(|| format!("making {}", blobs.display()))?;
    let password = password_file(node);
    if !password.exists() {
        pki::files::replace(&password, &pki::hex(&rand::random::<[u8; 12]>()), pki::files::Access::Private)?;
    }
    let htpasswd = node.directory.join("htpasswd");
    if !htpasswd.exists() {
        let text = fs::read_to_string(&password).doing(|| "reading the registry's password".to_string())?;
        let line = run("htpasswd", &["-nbB", PRIVATE_USER, text.trim()])?;
        pki::files::replace(&htpasswd, &format!("{}\n", line.trim()), pki::files::Access::Private)?;
    }
    let base = |address: &str| {
        format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp:\n  addr: {address}\n  secret: {}\n",
            blobs.display(),
            pki::hex(&rand::random::<[u8; 16]>())
        )
    };
    let auth = format!("auth:\n  htpasswd: {{realm: regent, path: {}}}\n", htpasswd.display());
    for (name, text) in [("registry", base(REGISTRY)), ("private-registry", base(PRIVATE_REGISTRY) + &auth)] {
        let file = node.directory.join(format!("{name}.yml"));
        pki::files::replace(&file, &text, pki::files::Access::Private)?;
    }
    Ok(())
}

/// Waits until the registry listens.
pub fn wait() -> Result<()> {
    let address: SocketAddr = REGISTRY.parse().map_err(|_| Error::Refused("the registry's address".into()))?;
    let deadline = Instant::now() + Duration::from_secs(PATIENCE_S);
    while let Err(error) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
        if Instant::now() > deadline {
            return Err(Error::Refused(format!("the image registry does not listen on {REGISTRY}: {error}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Puts the images of a directory into the registry. What is there already is left as it is.
pub fn fill(node: &Node, images: &Path, mut progress: impl FnMut(&str)) -> Result<()> {
    let index = images.join("images.json");
    let text = fs::read(&index).doing(|| format!("reading {} (make it with `make images`)", index.display()))?;
    let list: Vec<Image> = serde_json::from_slice(&text).map_err(|e| Error::Refused(format!("{}: {e}", index.display())))?;
    for image in list {
        let archive = images.join(&image.archive);
        let stamp = fs::metadata(&archive).and_then(|m| m.modified()).doing(|| format!("reading {}", archive.display()))?;
        for name in &image.names {
            let marker = node.directory.join("pushed").join(name.replace(['/', ':'], "_"));
            let known = format!("{stamp:?}");
            if fs::read_to_string(&marker).is_ok_and(|text| text == known) {
                continue;
            }
            progress(name);
            let source = format!("oci-archive:{}", archive.display());
            let target = format!("docker://{REGISTRY}/{name}");
            run("skopeo", &["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", &source, &target])?;
            fs::create_dir_all(node.directory.join("pushed"))
                .and_then(|()| fs::write(&marker, known))
                .doing(|| "noting a pushed image".to_string())?;
        }
    }
    Ok(())
}
