//! The servers as they were last known, in a small file: a node that boots finds the cluster again although the server with
//! which it once joined is no more.
//!
//! A file that cannot be read or understood is as none (it is said), for the flags name servers as well.

use super::Server;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Bytes of the file that are read at most; a longer one is not ours.
const FILE_BYTES_MAX: u64 = 64 * 1024;

#[derive(Serialize, Deserialize)]
struct Kept {
    servers: Vec<String>,
}

/// The servers that are kept; none if there are none.
pub fn read(path: &Path) -> Vec<Server> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the servers as last known cannot be read");
            return Vec::new();
        }
    };
    let text = if size > FILE_BYTES_MAX { None } else { std::fs::read(path).ok() };
    let Some(kept) = text.and_then(|text| serde_json::from_slice::<Kept>(&text).ok()) else {
        tracing::warn!(path = %path.display(), "the servers as last known cannot be understood; the flags name servers as well");
        return Vec::new();
    };
    kept.servers.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Keeps the servers.
pub fn write(path: &Path, servers: &[Server]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let kept = Kept { servers: servers.iter().map(Server::to_string).collect() };
    crate::addresses::write_durably(path, &serde_json::to_vec(&kept)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_damage_is_as_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/api-servers.json");
        assert!(read(&path).is_empty());
        let servers: Vec<Server> = ["10.0.0.1", "10.0.0.2:7443"].iter().map(|text| text.parse().unwrap()).collect();
        write(&path, &servers).unwrap();
        assert_eq!(read(&path), servers);
        std::fs::write(&path, b"{\"servers\": [").unwrap();
        assert!(read(&path).is_empty());
    }
}
