//! A part of a volume at a place of its own, opened so that no symbolic link leads out of the volume.
//!
//! The pod can change the volume while we look at it. So the path is opened once, by the kernel, confined to the volume
//! (`openat2`), and what is bound is the opened file itself and not its name.

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};
use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Component, Path},
};

const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

fn open(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), INSIDE)
}

/// Opens `sub_path` inside `volume`, making directories that are missing.
fn open_or_make(volume: &Path, sub_path: &str) -> io::Result<OwnedFd> {
    let relative = Path::new(sub_path);
    if relative.components().any(|component| !matches!(component, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "subPath must stay inside its volume"));
    }
    let root = rustix::fs::open(volume, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    match open(&root, relative) {
        Ok(found) => return Ok(found),
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let mut here = open(&root, Path::new("."))?;
    for component in relative.components() {
        let Component::Normal(name) = component else { continue };
        let name = Path::new(name);
        match rustix::fs::mkdirat(&here, name, Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        here = open(&here, name)?;
    }
    Ok(here)
}

/// Binds `sub_path` of `volume` to `target`, which is made. Done twice it is bound once.
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> io::Result<()> {
    let source = open_or_make(volume, sub_path)?;
    let is_directory = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode) == rustix::fs::FileType::Directory;
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    // A restarted container gets what is there now, as a swapped file is another file.
    while target.exists() && rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH).is_ok() {}
    if is_directory {
        fs::create_dir_all(target)?;
    } else if !target.exists() {
        fs::write(target, b"")?;
    }
    rustix::mount::mount_bind(format!("/proc/self/fd/{}", source.as_raw_fd()), target)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_path_stays_inside_and_is_made() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        assert!(open_or_make(dir.path(), "out/passwd").is_err());
        assert!(open_or_make(dir.path(), "../x").is_err());
        assert!(open_or_make(dir.path(), "a/b").is_ok());
        assert!(dir.path().join("a/b").is_dir());
    }
}
