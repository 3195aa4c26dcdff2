//! The files that go along with a snapshot: the cluster's keys, which no store holds.

use crate::{Result, at};
use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};
use store::snapshot::{Blob, write_private};

/// What became of one of a snapshot's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is there, as in the snapshot.
    Same,
    /// It was missing and has been written.
    Written,
    /// Another one is there, and stays.
    Differs,
}

/// Reads those of `names` that are in `directory`.
pub fn collect(directory: &Path, names: &[&str]) -> Result<Vec<Blob>> {
    let mut blobs = Vec::new();
    for name in names {
        let path = directory.join(name);
        match fs::read(&path) {
            Ok(content) => {
                let mode = fs::metadata(&path).map_err(at(format!("reading {}", path.display())))?.permissions().mode() & 0o777;
                blobs.push(Blob { name: (*name).to_string(), mode, content });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(at(format!("reading {}", path.display()))(error)),
        }
    }
    Ok(blobs)
}

/// Compares the files with those that are there, and writes the missing ones if `write`.
pub fn place(directory: &Path, blobs: &[Blob], write: bool) -> Result<Vec<(String, Fate)>> {
    let mut fates = Vec::new();
    for blob in blobs {
        let path = directory.join(&blob.name);
        let fate = match fs::read(&path) {
            Ok(content) if content == blob.content => Fate::Same,
            Ok(_) => Fate::Differs,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if write {
                    let parent = path.parent().unwrap_or(directory);
                    fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(at(format!("making {}", parent.display())))?;
                    write_private(&path, &blob.content, blob.mode)?;
                }
                Fate::Written
            }
            Err(error) => return Err(at(format!("reading {}", path.display()))(error)),
        };
        fates.push((blob.name.clone(), fate));
    }
    Ok(fates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_written_and_what_is_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), "mine").unwrap();
        fs::write(directory.path().join("b"), "same").unwrap();
        let blob = |name: &str, content: &str| Blob { name: name.into(), mode: 0o600, content: content.into() };
        let blobs = [blob("a", "theirs"), blob("b", "same"), blob("sub/c", "new")];
        let fates = [("a".to_string(), Fate::Differs), ("b".to_string(), Fate::Same), ("sub/c".to_string(), Fate::Written)];
        assert_eq!(place(directory.path(), &blobs, false).unwrap(), fates);
        assert!(!directory.path().join("sub").exists());
        assert_eq!(place(directory.path(), &blobs, true).unwrap(), fates);
        assert_eq!(collect(directory.path(), &["a", "none", "sub/c"]).unwrap().len(), 2);
        assert_eq!(fs::metadata(directory.path().join("sub/c")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(directory.path().join("a")).unwrap(), "mine");
    }
}
