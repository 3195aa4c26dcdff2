//! The container images, built from Debian packages and our own pause, without any registry.
//!
//! Each image is an OCI archive with one layer under `target/images`; `images.json` says under which names the sandbox's
//! registry serves it. The names are Docker Hub's, so that the same manifests work on a machine with internet.

use crate::shell::{sh, sh_in};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

const OUT: &str = "target/images";
/// Raise when the recipe changes, so that images are built anew.
const RECIPE: &str = "4";

struct Image {
    name: &'static str,
    names: &'static [&'static str],
    fill: fn(&Path) -> Result<()>,
    config: fn() -> Value,
}

const IMAGES: &[Image] = &[
    Image { name: "pause", names: &["pause:3.10"], fill: pause, config: || json!({"Entrypoint": ["/pause"], "User": "65535:65535"}) },
    Image {
        name: "busybox",
        names: &["library/busybox:latest", "library/busybox:1.35"],
        fill: busybox,
        config: || json!({"Cmd": ["sh"], "Env": [PATH]}),
    },
    Image {
        name: "nginx",
        names: &["library/nginx:latest", "library/nginx:1.22", "private/nginx:1.22"],
        fill: nginx,
        config: || nginx_config("mainline"),
    },
    // The same program under other labels and another digest: something to roll out to.
    Image { name: "nginx-stable", names: &["library/nginx:stable", "library/nginx:1.22.1"], fill: nginx, config: || nginx_config("stable") },
];

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn nginx_config(branch: &str) -> Value {
    json!({
        "Cmd": ["nginx", "-g", "daemon off;"],
        "Env": [PATH, "NGINX_VERSION=1.22.1"],
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGQUIT",
        "Labels": {"org.opencontainers.image.version": format!("1.22.1-{branch}")}
    })
}

pub fn build() -> Result<()> {
    fs::create_dir_all(OUT)?;
    let index = Path::new(OUT).join("images.json");
    let stamp = Path::new(OUT).join("recipe");
    if index.exists() && fs::read_to_string(&stamp).is_ok_and(|text| text == RECIPE) {
        return Ok(());
    }
    let mut list = Vec::new();
    for image in IMAGES {
        eprintln!("==> image {}", image.name);
        let root = Path::new(OUT).join("root");
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root)?;
        (image.fill)(&root).with_context(|| format!("building the image {}", image.name))?;
        archive(image.name, &root, (image.config)())?;
        fs::remove_dir_all(&root)?;
        list.push(json!({"archive": format!("{}.tar", image.name), "names": image.names}));
    }
    fs::write(index, serde_json::to_vec_pretty(&list)?)?;
    fs::write(stamp, RECIPE)?;
    Ok(())
}

fn pause(root: &Path) -> Result<()> {
    let out = root.join("pause").display().to_string();
    let flags = ["--edition", "2024", "-O", "-C", "panic=abort", "-C", "relocation-model=static", "-C", "strip=symbols"];
    let mut arguments = flags.to_vec();
    arguments.extend(["-C", "link-args=-nostartfiles -nostdlib -static", "-o", &out, "images/pause/pause.rs"]);
    sh("rustc", &arguments).map(|_| ())
}

fn busybox(root: &Path) -> Result<()> {
    furnish(root)?;
    // Not the static one: names are resolved by the C library, which the static one would have to load anyway.
    debian(root, &["busybox", "libc6"])?;
    slim(root);
    let programs = sh(&root.join("bin/busybox").display().to_string(), &["--list"])?;
    for program in programs.lines().filter(|p| *p != "busybox") {
        symlink("busybox", root.join("bin").join(program))?;
    }
    Ok(())
}

fn nginx(root: &Path) -> Result<()> {
    busybox(root)?;
    debian(root, &["nginx", "nginx-common", "libpcre2-8-0", "libssl3", "zlib1g", "libcrypt1"])?;
    slim(root);
    let site = "server {\n    listen 80;\n    listen [::]:80;\n    server_name localhost;\n    location / {\n        root /usr/share/nginx/html;\n        index index.html;\n    }\n}\n";
    fs::write(root.join("etc/nginx/conf.d/default.conf"), site)?;
    for directory in ["var/log/nginx", "var/lib/nginx", "etc/nginx/modules-enabled", "etc/nginx/sites-enabled"] {
        fs::create_dir_all(root.join(directory))?;
    }
    for (log, stream) in [("access.log", "/dev/stdout"), ("error.log", "/dev/stderr")] {
        let link = root.join("var/log/nginx").join(log);
        let _ = fs::remove_file(&link);
        symlink(stream, link)?;
    }
    Ok(())
}

/// Takes out what no container needs.
fn slim(root: &Path) {
    for heavy in ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/lib/x86_64-linux-gnu/gconv", "lib/x86_64-linux-gnu/gconv"] {
        let _ = fs::remove_dir_all(root.join(heavy));
    }
}

/// What every system expects to find.
fn furnish(root: &Path) -> Result<()> {
    for directory in ["bin", "dev", "etc", "proc", "sys", "root", "run", "usr/bin", "usr/sbin", "var/run", "home"] {
        fs::create_dir_all(root.join(directory))?;
    }
    for open in ["tmp", "var/tmp"] {
        fs::create_dir_all(root.join(open))?;
        fs::set_permissions(root.join(open), fs::Permissions::from_mode(0o1777))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nadm:x:4:\nwww-data:x:33:\nnogroup:x:65534:\n")?;
    Ok(())
}

/// Unpacks Debian packages into a root, fetching them once.
fn debian(root: &Path, packages: &[&str]) -> Result<()> {
    let cache = PathBuf::from(OUT).join("debian");
    fs::create_dir_all(&cache)?;
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o755))?;
    for package in packages {
        let archive = match cached(&cache, package)? {
            Some(archive) => archive,
            None => {
                sh_in(&cache, "apt-get", &["-o", "APT::Sandbox::User=root", "download", "--quiet", package])
                    .with_context(|| format!("fetching the Debian package {package} (try `apt-get update`)"))?;
                cached(&cache, package)?.with_context(|| format!("apt-get download left no {package}_*.deb"))?
            }
        };
        sh("dpkg-deb", &["-x", &archive.display().to_string(), &root.display().to_string()])?;
    }
    Ok(())
}

fn cached(cache: &Path, package: &str) -> Result<Option<PathBuf>> {
    let prefix = format!("{package}_");
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// Packs a root directory as an OCI archive of one layer. The same root gives the same bytes.
fn archive(name: &str, root: &Path, config: Value) -> Result<()> {
    let layout = Path::new(OUT).join(format!("{name}.oci"));
    let _ = fs::remove_dir_all(&layout);
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let layer = layout.join("layer.tar");
    let root = root.display().to_string();
    let fixed = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf"];
    let mut arguments = fixed.to_vec();
    let layer_path = layer.display().to_string();
    arguments.extend([layer_path.as_str(), "-C", &root, "."]);
    sh("tar", &arguments)?;
    let (layer_digest, layer_size) = keep(&blobs, fs::read(&layer)?)?;
    fs::remove_file(&layer)?;
    let image = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        "history": [{"created_by": "make images"}]
    });
    let (config_digest, config_size) = keep(&blobs, serde_json::to_vec(&image)?)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer_size}]
    });
    let (digest, size) = keep(&blobs, serde_json::to_vec(&manifest)?)?;
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size}]
    });
    fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let target = Path::new(OUT).join(format!("{name}.tar")).display().to_string();
    sh("tar", &["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "-cf", &target, "-C", &layout.display().to_string(), "."])?;
    fs::remove_dir_all(layout)?;
    Ok(())
}

fn keep(blobs: &Path, bytes: Vec<u8>) -> Result<(String, usize)> {
    let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(blobs.join(&hex), &bytes)?;
    Ok((format!("sha256:{hex}"), bytes.len()))
}
