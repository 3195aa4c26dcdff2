//! PEM, as certificates and requests for them come: which blocks a text has, read as Go reads them. What is no block is passed over.

use super::base64;

/// One block.
#[derive(Debug, PartialEq)]
pub struct Block<'a> {
    pub label: &'a str,
    /// Whether it says anything before its data.
    pub has_headers: bool,
    pub bytes: Vec<u8>,
}

const BEGIN: &str = "-----BEGIN ";
const END: &str = "\n-----END ";
const DASHES: &str = "-----";

/// The line that a text begins with, without the blanks at its end, and what follows it.
fn line(text: &str) -> (&str, &str) {
    let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
    (line.trim_end_matches([' ', '\t', '\r']), rest)
}

/// The blocks of a text, in their order.
pub fn blocks(text: &str) -> Blocks<'_> {
    Blocks { text, at: 0, end: None }
}

pub struct Blocks<'a> {
    text: &'a str,
    at: usize,
    /// Where the next block ends at or behind which nothing was looked for yet: many may begin before one ends.
    end: Option<usize>,
}

impl<'a> Blocks<'a> {
    /// Where the next line stands that begins a block, behind its first word.
    fn begin(&self) -> Option<usize> {
        let rest = &self.text[self.at..];
        let starts = |found: &usize| self.at + found == 0 || self.text.as_bytes()[self.at + found - 1] == b'\n';
        rest.match_indices(BEGIN).map(|(found, _)| found).find(starts).map(|found| self.at + found + BEGIN.len())
    }
    /// Where the next line stands that ends a block, from `start` on.
    fn end(&mut self, start: usize) -> Option<usize> {
        if self.end.is_none_or(|end| end < start) {
            // Where none is found, the next one stands behind all.
            self.end = Some(self.text[start..].find(END).map_or(self.text.len(), |found| start + found));
        }
        self.end.filter(|end| *end < self.text.len())
    }
    /// The block of a label whose first line ends at `start`, and where it ends itself.
    fn block(&mut self, label: &'a str, start: usize) -> Option<(Block<'a>, usize)> {
        let (text, mut body) = (self.text, start);
        loop {
            let (header, rest) = line(&text[body..]);
            if !header.contains(':') {
                break;
            }
            body = text.len() - rest.len();
        }
        // Without headers and data the last line follows the first.
        let is_empty = body == start && text[body..].starts_with(&END[1..]);
        let (end, trailer) = match is_empty {
            true => (body, body + END.len() - 1),
            false => self.end(body).map(|end| (end, end + END.len()))?,
        };
        let after = text[trailer..].strip_prefix(label)?.strip_prefix(DASHES)?;
        let (blanks, rest) = line(after);
        let data = &text[body..end];
        if !blanks.is_empty() || data.bytes().any(|b| !b.is_ascii_alphanumeric() && !b"+/= \t\r\n".contains(&b)) {
            return None;
        }
        let data: String = data.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let bytes = base64::decode(&data).filter(|_| data.len().is_multiple_of(4))?;
        Some((Block { label, has_headers: body > start, bytes }, text.len() - rest.len()))
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Block<'a>;
    fn next(&mut self) -> Option<Block<'a>> {
        while let Some(begin) = self.begin() {
            let text = self.text;
            let (first, rest) = line(&text[begin..]);
            self.at = text.len() - rest.len();
            let Some(label) = first.strip_suffix(DASHES) else { continue };
            if let Some((block, end)) = self.block(label, self.at) {
                self.at = end;
                return Some(block);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, bool, String)> {
        blocks(text).map(|block| (block.label.into(), block.has_headers, String::from_utf8_lossy(&block.bytes).into())).collect()
    }
    fn one(label: &str, headers: bool, bytes: &str) -> (String, bool, String) {
        (label.into(), headers, bytes.into())
    }

    #[test]
    fn blocks_are_read_as_go_reads_them() {
        let plain = "-----BEGIN A-----\nZm9v\nYmFy\n-----END A-----\n";
        assert_eq!(read(plain), [one("A", false, "foobar")]);
        assert_eq!(read(&format!("before\n{plain}between\n{plain}")), [one("A", false, "foobar"), one("A", false, "foobar")]);
        assert_eq!(read("-----BEGIN A-----\na: b\n\nZm9v\n-----END A-----"), [one("A", true, "foo")]);
        assert_eq!(read("-----BEGIN A-----\n-----END A-----\n"), [one("A", false, "")]);
        assert_eq!(read("-----BEGIN A----- \r\nZm 9v\r\n-----END A----- \r\n"), [one("A", false, "foo")]);
        for none in [
            "",
            "x-----BEGIN A-----\nZm9v\n-----END A-----",
            "-----BEGIN A-----\nZm9v\n-----END B-----",
            "-----BEGIN A-----\nZm9\n-----END A-----",
            "-----BEGIN A-----\nZm9v\n-----END A-----x",
            "-----BEGIN A\nZm9v\n-----END A-----",
            "-----BEGIN A-----\nZm9v",
        ] {
            assert_eq!(read(none), [], "{none:?}");
        }
        assert_eq!(read(&format!("-----BEGIN B-----\n{plain}")), [one("A", false, "foobar")], "one that does not end is passed over");
    }

    #[test]
    fn many_beginnings_are_no_work() {
        assert_eq!(read(&"-----BEGIN A-----\n".repeat(100_000)), []);
        let ended = format!("{}Zm9v\n-----END A-----", "-----BEGIN A-----\n".repeat(100_000));
        assert_eq!(read(&ended), [one("A", false, "foo")]);
    }
}
