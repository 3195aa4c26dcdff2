//! Sets of completion indexes, as the Job's status writes them: `0-2,5,7-8`.

use std::collections::BTreeSet;

/// Reads a set, leaving out what is not below `completions` (the Job may have shrunk) and what is not a number.
pub(super) fn parse(text: &str, completions: i32) -> BTreeSet<i32> {
    let mut set = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            set.extend(first.max(0)..=last.min(completions.saturating_sub(1)));
        }
    }
    set
}

/// Writes a set; two neighbours are written as a list, three and more as a range.
pub(super) fn format(set: &BTreeSet<i32>) -> String {
    let mut text = String::new();
    let mut iter = set.iter().copied().peekable();
    while let Some(first) = iter.next() {
        let mut last = first;
        while let Some(next) = iter.next_if_eq(&(last + 1)) {
            last = next;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&first.to_string());
        if last > first {
            text.push(if last == first + 1 { ',' } else { '-' });
            text.push_str(&last.to_string());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, completions: i32, expected: &str) {
        assert_eq!(format(&parse(text, completions)), expected);
    }

    #[test]
    fn sets_are_read_and_written() {
        check("", 10, "");
        check("0", 10, "0");
        check("0-2,5,7,8", 10, "0-2,5,7,8");
        check("0,1,2,3", 10, "0-3");
        check("0-9", 4, "0-3");
        check("3,x,1", 10, "1,3");
    }
}
