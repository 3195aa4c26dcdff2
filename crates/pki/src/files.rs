//! Keys and certificates on disk: whole or not at all, private ones 0600 from the first byte.
//!
//! Every file is written beside its place, synced, and then moved there in one step; so neither a crash nor a reader in
//! between sees half of one. [`create`] never replaces what is there, which makes "load or create" safe between processes.

use crate::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Mode 0600.
    Private,
    /// Mode 0644.
    Public,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Access::Private => 0o600,
            Access::Public => 0o644,
        }
    }
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::File { path: path.to_path_buf(), source }
}

/// Makes a directory (and its parents) that only its owner may enter, unless it is there.
pub fn create_directory(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))
}

/// Reads a file; `None` if there is none.
pub fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

/// Puts a file in its place, replacing what is there.
pub fn replace(path: &Path, content: &str, access: Access) -> Result<(), Error> {
    let temporary = write_beside(path, content, access)?;
    let moved = fs::rename(&temporary, path).map_err(at(path));
    if moved.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    moved?;
    sync_directory(path)
}

/// Puts a file in its place unless one is there. Returns whether this call made it.
pub fn create(path: &Path, content: &str, access: Access) -> Result<bool, Error> {
    let temporary = write_beside(path, content, access)?;
    // A hard link, unlike a rename, fails if the name is taken.
    let linked = fs::hard_link(&temporary, path);
    let _ = fs::remove_file(&temporary);
    match linked {
        Ok(()) => sync_directory(path).map(|()| true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(at(path)(error)),
    }
}

fn write_beside(path: &Path, content: &str, access: Access) -> Result<PathBuf, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{:016x}", rand::random::<u64>()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(access.mode())
        .open(&temporary)
        .and_then(|mut file| file.write_all(content.as_bytes()).and_then(|()| file.sync_all()));
    match written {
        Ok(()) => Ok(temporary),
        Err(error) => {
            let _ = fs::remove_file(&temporary);
            Err(at(path)(error))
        }
    }
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(at(directory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn create_keeps_what_is_there_and_replace_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        assert!(create(&path, "one", Access::Private).unwrap());
        assert!(!create(&path, "two", Access::Private).unwrap());
        assert_eq!(read(&path).unwrap().as_deref(), Some("one"));
        replace(&path, "three", Access::Private).unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("three"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "temporary files are gone");
        assert_eq!(read(&directory.path().join("none")).unwrap(), None);
    }
}
