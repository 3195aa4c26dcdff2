//! Inputs that are nearly documents, and what every fuzz target in `tests/parsers/` is run with.
//!
//! Bytes from nowhere seldom get past a parser's first branch, so each target names a few inputs that are right, and what it is given is one
//! of them, changed: cut, with other bytes, words that mean something, pieces of itself or of another, or the same piece a thousand times
//! (so deep). All of it follows from a seed.
//!
//! `REGENT_FUZZ_MS` is how long each target runs (a second by default), `REGENT_SEED` repeats the one input of a failure. An input that takes
//! the whole process down (a stack that overflows) leaves its seed in a file of the target's name in the directory of temporary files.
//!
//! What must stay true: the same seed gives the same input; a target answers each input within [`ANSWER_S`].

use std::{
    fs::File,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

/// Bytes of one input.
pub const INPUT_BYTES_MAX: usize = 64 * 1024;
/// How long one input may take, on a machine that does much else.
pub const ANSWER_S: u64 = 10;
/// How often an input must be slow to be called so.
const ATTEMPTS: usize = 3;
/// How long a target runs without `REGENT_FUZZ_MS`.
const RUN_MS: u64 = 1_000;
/// Changes of one input.
const CHANGES_MAX: u64 = 6;
/// What some parser takes for more than text.
const WORDS: [&[u8]; 44] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"{}",
    b"[]",
    b"\"",
    b"\\",
    b":",
    b",",
    b"null",
    b"true",
    b"0",
    b"-0",
    b"-1",
    b"1e999",
    b"0.1",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"99999999999999999999999999999999999999999",
    b"\\u0000",
    b"\\ud800",
    b"\xff\xfe",
    b"\xc3",
    b"\x00",
    "\u{feff}".as_bytes(),
    "\u{1F980}".as_bytes(),
    b"\n",
    b"\r\n",
    b"\t",
    b" ",
    b"%",
    b"%ff",
    b"%2F",
    b"&a ",
    b"*a",
    b"!!binary ",
    b"--- ",
    b"<<: ",
    b"$patch",
    b"k8s\0",
    b"..",
    b"(",
];

/// Choices that follow from a seed (splitmix64).
pub struct Choices(u64);

impl Choices {
    pub fn new(seed: u64) -> Choices {
        Choices(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 if there is none.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % (end as u64).max(1)) as usize
    }

    pub fn flip(&mut self) -> bool {
        self.below(2) == 0
    }

    /// One of the inputs, changed; now and then bytes from nowhere.
    pub fn near(&mut self, right: &[&[u8]]) -> Vec<u8> {
        let mut bytes = match self.below(20) {
            0 => (0..self.below(300)).map(|_| self.next() as u8).collect(),
            _ => right.get(self.below(right.len())).map_or_else(Vec::new, |right| right.to_vec()),
        };
        for _ in 0..self.next() % (CHANGES_MAX + 1) {
            self.change(&mut bytes, right);
            bytes.truncate(INPUT_BYTES_MAX);
        }
        bytes
    }

    /// The same as text.
    pub fn near_text(&mut self, right: &[&[u8]]) -> String {
        String::from_utf8_lossy(&self.near(right)).into_owned()
    }

    fn change(&mut self, bytes: &mut Vec<u8>, right: &[&[u8]]) {
        let at = self.below(bytes.len() + 1);
        let word = WORDS[self.below(WORDS.len())];
        let byte = self.next() as u8;
        let span = at..(at + 1 + self.below(24)).min(bytes.len()).max(at);
        match self.below(10) {
            0 => bytes.truncate(at),
            1 => bytes.iter_mut().skip(at).take(1).for_each(|old| *old = byte),
            2 => bytes.insert(at, byte),
            3 | 4 => drop(bytes.splice(at..at, word.iter().copied())),
            5 => drop(bytes.splice(span, word.iter().copied())),
            6 => drop(bytes.drain(span)),
            7 => {
                let piece = bytes[span].to_vec();
                let to = self.below(bytes.len() + 1);
                drop(bytes.splice(to..to, piece));
            }
            8 => {
                let piece = if bytes[span.clone()].is_empty() { word.to_vec() } else { bytes[span].to_vec() };
                // Mostly a few times, sometimes to the end of what fits.
                let most = if self.below(8) == 0 { INPUT_BYTES_MAX } else { 300 };
                let times = (1 + self.below(most)).min(INPUT_BYTES_MAX / piece.len());
                drop(bytes.splice(at..at, piece.repeat(times)));
            }
            _ => {
                let other = right.get(self.below(right.len())).copied().unwrap_or_default();
                let from = self.below(other.len() + 1);
                drop(bytes.splice(at..at, other[from..].iter().copied()));
            }
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text}")))
}

/// Where the seed of the input stands that a target is busy with, should the process not live to tell.
struct Notebook {
    path: PathBuf,
    file: File,
}

impl Notebook {
    fn new() -> Notebook {
        let target = std::thread::current().name().unwrap_or("target").replace("::", "-");
        let path = std::env::temp_dir().join(format!("regent-fuzz-{target}-{}", std::process::id()));
        let file = File::create(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        Notebook { path, file }
    }

    fn note(&self, seed: u64) {
        let line = format!("REGENT_SEED={seed:020}\n");
        self.file.write_all_at(line.as_bytes(), 0).unwrap_or_else(|why| panic!("{}: {why}", self.path.display()));
    }
}

impl Drop for Notebook {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Runs a target with inputs that it makes of its choices, until the time is over. A failure names the seed of its input.
pub fn run(target: impl Fn(&mut Choices)) {
    let timed = |seed: u64| {
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| target(&mut Choices::new(seed))));
        if let Err(panic) = outcome {
            eprintln!("REGENT_SEED={seed} repeats it");
            resume_unwind(panic);
        }
        started.elapsed()
    };
    let once = |seed: u64| {
        // What is slow because the machine is busy is not slow each time.
        let slow = Duration::from_secs(ANSWER_S);
        let always = timed(seed) > slow && (1..ATTEMPTS).all(|_| timed(seed) > slow);
        assert!(!always, "one input takes more than {ANSWER_S} s; REGENT_SEED={seed} repeats it");
    };
    if let Some(seed) = number("REGENT_SEED") {
        return once(seed);
    }
    let end = Instant::now() + Duration::from_millis(number("REGENT_FUZZ_MS").unwrap_or(RUN_MS));
    let first = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    let mut seeds = Choices::new(first);
    let notebook = Notebook::new();
    while Instant::now() < end {
        let seed = seeds.next();
        notebook.note(seed);
        once(seed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_input() {
        let right: &[&[u8]] = &[b"{\"a\": [1, 2]}", b"x"];
        for seed in 0..500 {
            let input = Choices::new(seed).near(right);
            assert_eq!(input, Choices::new(seed).near(right));
            assert!(input.len() <= INPUT_BYTES_MAX);
        }
    }

    #[test]
    #[should_panic(expected = "found")]
    fn what_a_target_refuses_is_found() {
        run(|choices| assert!(!choices.near(&[b"{\"a\": [1, 2]}"]).contains(&0xff), "found"));
    }
}
