//! Writing a whole set of files so that a reader sees the old set or the new one, never a mixture.
//!
//! The files are in a directory of their own; `..data` is a symbolic link to it, swapped by one rename; the names that
//! users see are links through `..data`. What must stay true: nothing outside the volume is ever written to, so paths
//! are checked here although the API server has checked them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Component, Path},
};

/// One file of the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    pub owner: Option<i64>,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, File>;

fn is_safe(path: &str) -> bool {
    let mut components = Path::new(path).components().peekable();
    components.peek().is_some() && !path.starts_with("..") && Path::new(path).components().all(|component| matches!(component, Component::Normal(_)))
}

/// Makes the volume hold exactly `payload`. Returns whether anything was changed.
pub fn write(root: &Path, payload: &Payload, group: Option<i64>) -> io::Result<bool> {
    if let Some(bad) = payload.keys().find(|path| !is_safe(path)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path in volume: {bad}")));
    }
    let current = fs::read_link(root.join("..data")).ok();
    if let Some(current) = &current
        && holds(&root.join(current), payload)
    {
        return Ok(false);
    }
    let stamp = jiff::Timestamp::now().as_nanosecond();
    let fresh = format!("..{stamp}");
    let directory = root.join(&fresh);
    fs::create_dir_all(&directory)?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let target = directory.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.data)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
        if let Some(owner) = file.owner {
            chown(&target, u32::try_from(owner).ok(), None)?;
        }
    }
    if let Some(group) = group {
        super::own_by_group(&directory, group, false)?;
    }
    let link = root.join("..data_tmp");
    remove_if_there(&link)?;
    symlink(&fresh, &link)?;
    fs::rename(&link, root.join("..data"))?;

    let tops: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for top in &tops {
        let visible = root.join(top);
        if fs::symlink_metadata(&visible).is_err() {
            symlink(Path::new("..data").join(top), &visible)?;
        }
    }
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "..data" || name == fresh || tops.contains(name.as_str()) {
            continue;
        }
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    Ok(true)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn holds(directory: &Path, payload: &Payload) -> bool {
    let mut found = BTreeSet::new();
    list(directory, directory, &mut found);
    found.len() == payload.len()
        && payload.iter().all(|(path, file)| found.contains(path) && fs::read(directory.join(path)).is_ok_and(|data| data == file.data))
}

fn list(root: &Path, directory: &Path, out: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(root, &path, out);
        } else if let Ok(relative) = path.strip_prefix(root) {
            out.insert(relative.to_string_lossy().into_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files.iter().map(|(path, data)| ((*path).to_owned(), File { data: data.as_bytes().to_vec(), mode: 0o644, owner: None })).collect()
    }

    #[test]
    fn sets_are_swapped_whole_and_only_when_different() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert!(write(root, &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert!(!write(root, &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!(fs::read_to_string(root.join("d/b")).unwrap(), "2");
        assert!(write(root, &payload(&[("a", "3")]), None).unwrap());
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "3");
        assert!(fs::symlink_metadata(root.join("d")).is_err());
        assert_eq!(fs::read_dir(root).unwrap().count(), 3);
    }

    #[test]
    fn nothing_is_written_outside() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["../x", "/etc/x", "a/../../x", "..data", ""] {
            assert!(write(dir.path(), &payload(&[(bad, "")]), None).is_err(), "{bad}");
        }
    }
}
