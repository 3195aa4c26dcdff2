//! The epoch of a start: higher than that of every start before it, also when the clock was set back. Kept in a small file.

use std::{io, path::Path};

/// The epoch for this start; the file keeps it. `unix_ms` is the time of day.
///
/// A file that cannot be read or written is only a pity (the clock alone is right nearly always), so it is reported, not fatal.
pub fn next(file: &Path, unix_ms: u64) -> (u64, io::Result<()>) {
    let before = match std::fs::read_to_string(file) {
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(_) => 0,
    };
    let epoch = unix_ms.max(u64::saturating_add(before, 1));
    let written = (|| {
        let new = file.with_extension("new");
        std::fs::write(&new, epoch.to_string())?;
        std::fs::File::open(&new)?.sync_all()?;
        std::fs::rename(&new, file)
    })();
    (epoch, written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_although_the_clock_goes_back() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("epoch");
        let first = next(&file, 1_000);
        assert_eq!((first.0, first.1.is_ok()), (1_000, true));
        assert_eq!(next(&file, 10).0, 1_001);
        assert_eq!(next(&file, 5_000).0, 5_000);
        std::fs::write(&file, "torn\0").unwrap();
        assert_eq!(next(&file, 7).0, 7);
    }
}
