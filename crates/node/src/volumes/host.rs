//! Directories and mounts of the node itself: emptyDir, hostPath, tmpfs, and removing a pod's tree safely.

use crate::spec::resources::value;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource};
use rustix::mount::{MountFlags, UnmountFlags};
use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

fn wrong(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// Whether something is mounted exactly there.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let Some(parent) = path.parent() else { return Ok(true) };
    Ok(fs::symlink_metadata(path)?.dev() != fs::symlink_metadata(parent)?.dev())
}

/// Mounts a tmpfs, of at most `size` bytes if given.
pub fn mount_tmpfs(path: &Path, size: Option<i64>) -> io::Result<()> {
    let options = size.map_or_else(|| "mode=0777".to_owned(), |size| format!("mode=0777,size={size}"));
    let options = CString::new(options).map_err(io::Error::other)?;
    rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, options.as_c_str())?;
    Ok(())
}

/// An empty directory that everyone in the pod may write, in memory if asked for.
pub fn empty_dir(place: &Path, source: &EmptyDirVolumeSource, group: Option<i64>) -> io::Result<()> {
    let fresh = !place.exists();
    fs::create_dir_all(place)?;
    let in_memory = source.medium.as_deref() == Some("Memory");
    if in_memory && !is_mount_point(place)? {
        mount_tmpfs(place, source.size_limit.as_ref().map(value).filter(|size| *size > 0))?;
    }
    if fresh {
        fs::set_permissions(place, fs::Permissions::from_mode(0o777))?;
        if let Some(group) = group {
            super::own_by_group(place, group, true)?;
        }
    }
    Ok(())
}

/// Checks (and where asked, makes) a path of the node.
pub fn host_path(source: &HostPathVolumeSource) -> io::Result<()> {
    let path = Path::new(&source.path);
    let sort = source.type_.as_deref().unwrap_or_default();
    match sort {
        "" => return Ok(()),
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path)?;
            return fs::set_permissions(path, fs::Permissions::from_mode(0o755));
        }
        "FileOrCreate" if !path.exists() => {
            fs::write(path, b"")?;
            return fs::set_permissions(path, fs::Permissions::from_mode(0o644));
        }
        _ => {}
    }
    let kind = fs::metadata(path).map(|meta| meta.file_type());
    let (fits, what) = match (sort, &kind) {
        ("Directory" | "DirectoryOrCreate", kind) => (kind.as_ref().is_ok_and(|kind| kind.is_dir()), "a directory"),
        ("File" | "FileOrCreate", kind) => (kind.as_ref().is_ok_and(|kind| kind.is_file()), "a file"),
        ("Socket", kind) => (kind.as_ref().is_ok_and(|kind| kind.is_socket()), "a socket file"),
        ("CharDevice", kind) => (kind.as_ref().is_ok_and(|kind| kind.is_char_device()), "a character device"),
        ("BlockDevice", kind) => (kind.as_ref().is_ok_and(|kind| kind.is_block_device()), "a block device"),
        _ => (false, "of a known type"),
    };
    if fits { Ok(()) } else { Err(wrong(format!("hostPath type check failed: {} is not {what}", source.path))) }
}

/// Mount points at or below a directory, deepest first.
fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(parse_mounts(&table, directory))
}

fn parse_mounts(table: &str, directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")))
        .filter(|path| path.starts_with(directory))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    found
}

/// Unmounts everything below a directory and removes it. Nothing is removed while anything is still mounted there.
pub fn remove_tree(directory: &Path) -> io::Result<()> {
    let Ok(directory) = directory.canonicalize() else { return Ok(()) };
    for mount in mounts_below(&directory)? {
        rustix::mount::unmount(&mount, UnmountFlags::DETACH)?;
    }
    if let Some(left) = mounts_below(&directory)?.first() {
        return Err(io::Error::other(format!("{} is still mounted", left.display())));
    }
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_deepest_first() {
        let table = "1 0 0:1 / / rw - a b c\n2 1 0:2 / /p/u/v rw - a b c\n3 2 0:3 / /p/u/v/with\\040space rw - a b c\n4 1 0:4 / /p/ux rw - a b c\n";
        assert_eq!(parse_mounts(table, Path::new("/p/u")), [PathBuf::from("/p/u/v/with space"), PathBuf::from("/p/u/v")]);
    }

    #[test]
    fn host_paths_are_what_they_say() {
        let dir = tempfile::tempdir().unwrap();
        let source =
            |name: &str, sort: &str| HostPathVolumeSource { path: dir.path().join(name).to_string_lossy().into_owned(), type_: Some(sort.into()) };
        assert!(host_path(&source("d", "Directory")).is_err());
        assert!(host_path(&source("d", "DirectoryOrCreate")).is_ok());
        assert!(host_path(&source("d", "Directory")).is_ok());
        let error = host_path(&source("d", "File")).unwrap_err().to_string();
        assert!(error.ends_with("is not a file"), "{error}");
    }
}
