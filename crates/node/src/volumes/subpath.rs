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

/// Opens `sub_path` inside `volume`, making directories that are missing. The last of them is open to whom the volume is.
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
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&root)?.st_mode & 0o7777);
    let (mut here, mut is_new) = (open(&root, Path::new("."))?, false);
    for component in relative.components() {
        let Component::Normal(name) = component else { continue };
        let name = Path::new(name);
        is_new = match rustix::fs::mkdirat(&here, name, mode) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        here = open(&here, name)?;
    }
    if is_new {
        // What is opened as a place alone cannot be changed by its descriptor; this is still that place.
        rustix::fs::chmod(format!("/proc/self/fd/{}", here.as_raw_fd()), mode)?;
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
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_sub_path_stays_inside_and_is_made() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        assert!(open_or_make(dir.path(), "out/passwd").is_err());
        assert!(open_or_make(dir.path(), "../x").is_err());
        let mode = |path: &str| dir.path().join(path).metadata().unwrap().permissions().mode() & 0o7777;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o2777)).unwrap();
        assert!(open_or_make(dir.path(), "a/b").is_ok());
        assert!(dir.path().join("a/b").is_dir() && mode("a/b") == 0o2777);
        fs::set_permissions(dir.path().join("a/b"), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(open_or_make(dir.path(), "a/b").is_ok() && mode("a/b") == 0o700, "what is there stays as it is");
    }
}
