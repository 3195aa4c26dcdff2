//! Whether the write-ahead log that a crash left behind lost acknowledged changes.
//!
//! SQLite reads the log up to the first frame whose checksum is wrong and takes the rest for the torn end of a crash. That is
//! right for the last transaction, whose fsync may not have come. But each transaction is on disk before the next begins
//! (`synchronous=FULL`), so a wrong frame with a later transaction behind it is damage, and what is behind it was
//! acknowledged. Frames chain their checksums, and each carries its own: the chain can be taken up again behind the damage.
//!
//! The file: a header of 32 bytes (magic, version, page size, sequence, two salts, two sums), then frames of a header of 24
//! bytes (page number, size after commit or 0, the two salts, two sums) and one page. Numbers are big-endian.

use crate::{Error, Result};
use std::{
    fs::File,
    io::{BufReader, ErrorKind, Read},
    path::Path,
};

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
const MAGIC: u32 = 0x377f_0682;
const PAGE_BYTES_MAX: usize = 65_536;

type Sums = (u32, u32);

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// SQLite's checksum over pairs of words, in the byte order that the magic says.
fn add(mut sums: Sums, bytes: &[u8], big_endian: bool) -> Sums {
    let read = |bytes: &[u8]| {
        let bytes: [u8; 4] = bytes.try_into().unwrap_or_default();
        if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    for pair in bytes.chunks_exact(8) {
        sums.0 = sums.0.wrapping_add(read(&pair[..4])).wrapping_add(sums.1);
        sums.1 = sums.1.wrapping_add(read(&pair[4..])).wrapping_add(sums.0);
    }
    sums
}

/// Reads the log of a database, if it has one.
pub(super) fn check(path: &Path) -> Result<()> {
    let unreadable = |error: std::io::Error| Error::Damaged(format!("{} cannot be read ({error})", path.display()));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(error)),
    };
    match lost_transactions(BufReader::with_capacity(256 * 1024, file)).map_err(unreadable)? {
        0 => Ok(()),
        _ => Err(Error::Damaged(format!("{} is broken in its middle, and acknowledged changes stand behind the break", path.display()))),
    }
}

fn fill(source: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<bool> {
    match source.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// How many transactions stand behind one that is broken and was followed by others.
fn lost_transactions(mut source: impl Read) -> std::io::Result<usize> {
    let mut header = [0; HEADER_BYTES];
    if !fill(&mut source, &mut header)? {
        return Ok(0);
    }
    let big_endian = word(&header, 0) == MAGIC | 1;
    let page_bytes = word(&header, 8) as usize;
    let mut sums = add((0, 0), &header[..24], big_endian);
    let header_whole = word(&header, 0) & !1 == MAGIC && sums == (word(&header, 24), word(&header, 28));
    if !(512..=PAGE_BYTES_MAX).contains(&page_bytes) {
        // Not even the frames can be found; the newest acknowledged revision (`check::Newest`) tells whether something is lost.
        return Ok(0);
    }
    let salts = &header[16..24];
    let mut frame = vec![0; FRAME_HEADER_BYTES + page_bytes];
    // Whether everything so far is whole, whether the broken transaction has ended, and what is whole behind it.
    let (mut whole, mut ended, mut lost) = (header_whole, false, 0);
    while fill(&mut source, &mut frame)? {
        let chained = add(add(sums, &frame[..8], big_endian), &frame[FRAME_HEADER_BYTES..], big_endian);
        let own = (word(&frame, 16), word(&frame, 20));
        let (fits, commits) = (chained == own && &frame[8..16] == salts, word(&frame, 4) != 0);
        if !whole && fits && ended && commits {
            lost += 1;
        }
        if !fits {
            whole = false;
        }
        ended |= !whole && commits;
        sums = own;
    }
    Ok(lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    /// A write-ahead log of some transactions, as a killed process leaves it.
    fn log(transactions: usize) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let connection = Connection::open(directory.path().join("db")).unwrap();
        connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t (a, b)").unwrap();
        for i in 1..transactions {
            connection.execute("INSERT INTO t VALUES (?1, ?2)", (i, "x".repeat(6000))).unwrap();
        }
        std::fs::read(directory.path().join("db-wal")).unwrap()
    }

    #[test]
    fn only_damage_behind_which_something_was_acknowledged_counts() {
        let whole = log(6);
        assert_eq!(lost_transactions(&whole[..]).unwrap(), 0);
        for cut in [0, 10, 40, whole.len() / 2, whole.len() - 1] {
            assert_eq!(lost_transactions(&whole[..cut]).unwrap(), 0, "a torn end is what a crash leaves");
        }
        let mut broken = whole.clone();
        let middle = HEADER_BYTES + FRAME_HEADER_BYTES + 4096 + FRAME_HEADER_BYTES + 100;
        broken[middle] ^= 1;
        assert!(lost_transactions(&broken[..]).unwrap() > 0);
        let mut torn = whole.clone();
        let last = torn.len() - 10;
        torn[last] ^= 1;
        assert_eq!(lost_transactions(&torn[..]).unwrap(), 0, "the last transaction may be torn");
        let mut head = whole;
        head[20] ^= 1;
        assert_eq!(lost_transactions(&head[..]).unwrap(), 0, "with other salts nothing belongs to it");
    }
}
