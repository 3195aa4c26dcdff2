//! The pages of the program itself: what only its start needed is given back.
//!
//! A start runs through much code once (tables of kinds and roles, certificates, relocations), and whatever runs brings its
//! neighbours with it: the kernel maps 64 KiB at a time. Three quarters of what an idle process holds are such pages. They are
//! unmapped when the start is over; what runs on is mapped again at its next step, from the file's pages in memory.
//!
//! What must stay true: only pages that nobody can have written are given back: those that the kernel maps as code, and the
//! read-only ones at the beginning of the file. What relocations have changed is read-only too, and is not among them.

use std::ops::Range;

/// Gives back the program's own pages. What cannot be done leaves everything as it was.
pub fn give_back() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for range in unwritten(&maps, give_back as fn() as usize) {
        let length = range.end - range.start;
        // SAFETY: these pages are private, of a file, and were never written (`unwritten`): who touches them gets the same bytes from
        // the file again. The kernel refuses to write to the file of a running program, and one put in its place is another file.
        let given = unsafe { rustix::mm::madvise(range.start as *mut _, length, rustix::mm::Advice::LinuxDontNeed) };
        tracing::debug!(length, ?given, "pages of the program were given back");
    }
}

/// Of the mappings of the file in which `code` lies, as the kernel lists them, those that are as the file has them.
fn unwritten(maps: &str, code: usize) -> Vec<Range<usize>> {
    struct Mapping<'a> {
        range: Range<usize>,
        rights: &'a str,
        offset: usize,
        file: (&'a str, &'a str),
    }
    let parse = |line| -> Option<Mapping<'_>> {
        let mut words = str::split_ascii_whitespace(line);
        let (start, end) = words.next()?.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        let range = number(start)?..number(end)?;
        Some(Mapping { range, rights: words.next()?, offset: number(words.next()?)?, file: (words.next()?, words.next()?) })
    };
    let mappings: Vec<Mapping<'_>> = maps.lines().filter_map(parse).collect();
    let Some(own) = mappings.iter().find(|mapping| mapping.range.contains(&code)).map(|mapping| mapping.file) else { return vec![] };
    // Memory without a file has the inode 0.
    let of_file = mappings.into_iter().filter(|mapping| mapping.file == own && own.1 != "0");
    of_file.filter(|mapping| mapping.rights == "r-xp" || (mapping.rights == "r--p" && mapping.offset == 0)).map(|mapping| mapping.range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
20000000000-20040000000 rw-p 00000000 00:00 0
55dee6d76000-55dee7956000 r--p 00000000 fe:00 1234                       /usr/bin/regent
55dee7956000-55dee9db2000 r-xp 00bdf000 fe:00 1234                       /usr/bin/regent (deleted)
55dee9db2000-55dee9edb000 r--p 0303a000 fe:00 1234                       /usr/bin/regent
55dee9edb000-55dee9ee8000 rw-p 03162000 fe:00 1234                       /usr/bin/regent
7fad1aa7c000-7fad1aaa2000 r--p 00000000 fe:00 99                         /usr/lib/x86_64-linux-gnu/libc.so.6
7ffd2bd5e000-7ffd2bd60000 r-xp 00000000 00:00 0                          [vdso]
";

    #[test]
    fn what_was_written_or_is_not_ours_is_kept() {
        assert_eq!(unwritten(MAPS, 0x55de_e800_0000), [0x55de_e6d7_6000..0x55de_e795_6000, 0x55de_e795_6000..0x55de_e9db_2000]);
        for elsewhere in [0x7ffd_2bd5_e100, 0x1000, 0x200_0000_0100] {
            assert!(unwritten(MAPS, elsewhere).is_empty());
        }
    }

    #[test]
    fn a_program_runs_on_without_its_pages() {
        give_back();
        let text = format!("{:?}", (1..100).map(|i| i * i).collect::<Vec<u32>>());
        assert!(text.ends_with("9801]"));
        give_back();
    }
}
