//! Objects as YAML text, as Kubernetes' clients know it: keys in order, lists not indented under their key, texts plain where
//! they can be, lines broken after eighty columns where a text has a space.
//!
//! What must stay true: who reads the text back gets the same value; what looks like another type is quoted.

use serde_json::Value;
use std::cmp::Ordering;

/// After this column a text goes on in the next line, where it has a space.
const COLUMNS_MAX: usize = 80;

/// The YAML text of a value.
pub fn text(value: &Value) -> String {
    let mut writer = Writer::default();
    writer.node(value, 0, true);
    writer.newline();
    writer.out
}

#[derive(Default)]
struct Writer {
    out: String,
    column: usize,
}

impl Writer {
    fn put(&mut self, text: &str) {
        self.out.push_str(text);
        self.column += text.chars().count();
    }
    fn newline(&mut self) {
        if !self.out.ends_with('\n') {
            self.out.push('\n');
        }
        self.column = 0;
    }
    fn indent(&mut self, columns: usize) {
        self.out.extend(std::iter::repeat_n(' ', columns));
        self.column = columns;
    }

    /// Writes a value where the cursor stands, which is in a line that is begun (`begun`) or at the beginning of one.
    fn node(&mut self, value: &Value, columns: usize, begun: bool) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                let mut members: Vec<_> = map.iter().collect();
                members.sort_by(|(a, _), (b, _)| natural(a, b));
                for (i, (key, value)) in members.into_iter().enumerate() {
                    if i > 0 || !begun {
                        self.newline();
                        self.indent(columns);
                    }
                    self.scalar(key, columns, true);
                    self.put(":");
                    match value {
                        Value::Object(map) if !map.is_empty() => self.node(value, columns + 2, false),
                        // A list stands below its key, not right of it.
                        Value::Array(list) if !list.is_empty() => self.node(value, columns, false),
                        _ => {
                            self.put(" ");
                            self.node(value, columns, true);
                        }
                    }
                }
            }
            Value::Array(list) if !list.is_empty() => {
                for (i, item) in list.iter().enumerate() {
                    if i > 0 || !begun {
                        self.newline();
                        self.indent(columns);
                    }
                    self.put("- ");
                    self.node(item, if matches!(item, Value::Object(_) | Value::Array(_)) { columns + 2 } else { columns }, true);
                }
            }
            Value::Object(_) => self.put("{}"),
            Value::Array(_) => self.put("[]"),
            Value::String(text) => self.scalar(text, columns, false),
            other => self.put(&other.to_string()),
        }
    }

    /// Writes a text, with what follows of it in further lines two columns right of `columns`.
    fn scalar(&mut self, text: &str, columns: usize, is_key: bool) {
        let shape = Shape::of(text);
        if text.contains('\n') && !is_key && shape.block {
            return self.block(text, columns + 2);
        }
        let style = match () {
            () if text.contains('\n') || !shape.quotable => Style::Double,
            () if looks_otherwise(text) => Style::Double,
            () if shape.plain => Style::Plain,
            () => Style::Single,
        };
        match style {
            Style::Plain => self.folded(text, columns, is_key, |c| c.to_string()),
            Style::Single => {
                self.put("'");
                self.folded(text, columns, is_key, |c| if c == '\'' { "''".into() } else { c.to_string() });
                self.put("'");
            }
            Style::Double => {
                self.put("\"");
                self.double(text, columns, is_key);
                self.put("\"");
            }
        }
    }

    /// Text whose single spaces may be line breaks.
    fn folded(&mut self, text: &str, columns: usize, is_key: bool, shown: impl Fn(char) -> String) {
        let mut characters = text.chars().peekable();
        let mut after_space = true;
        while let Some(c) = characters.next() {
            let may_break = c == ' ' && !is_key && !after_space && characters.peek().is_some_and(|next| *next != ' ');
            if may_break && self.column > COLUMNS_MAX {
                self.newline();
                self.indent(columns + 2);
            } else {
                self.put(&shown(c));
            }
            after_space = c == ' ';
        }
    }

    fn double(&mut self, text: &str, columns: usize, is_key: bool) {
        let last = text.chars().count().saturating_sub(1);
        let mut after_space = false;
        for (i, c) in text.chars().enumerate() {
            let space = c == ' ';
            if space && !is_key && !after_space && self.column > COLUMNS_MAX && i > 0 && i < last {
                self.newline();
                self.indent(columns + 2);
                if text.chars().nth(i + 1) == Some(' ') {
                    self.put("\\");
                }
            } else {
                let escaped = match c {
                    '"' => "\\\"".into(),
                    '\\' => "\\\\".into(),
                    '\0' => "\\0".into(),
                    '\u{7}' => "\\a".into(),
                    '\u{8}' => "\\b".into(),
                    '\t' => "\\t".into(),
                    '\n' => "\\n".into(),
                    '\u{b}' => "\\v".into(),
                    '\u{c}' => "\\f".into(),
                    '\r' => "\\r".into(),
                    '\u{1b}' => "\\e".into(),
                    '\u{85}' => "\\N".into(),
                    '\u{a0}' => "\\_".into(),
                    '\u{2028}' => "\\L".into(),
                    '\u{2029}' => "\\P".into(),
                    c if printable(c) => c.to_string(),
                    c if (c as u32) < 0x100 => format!("\\x{:02X}", c as u32),
                    c if (c as u32) < 0x10000 => format!("\\u{:04X}", c as u32),
                    c => format!("\\U{:08X}", c as u32),
                };
                self.put(&escaped);
            }
            after_space = space;
        }
    }

    /// Several lines as they are.
    fn block(&mut self, text: &str, columns: usize) {
        self.put("|");
        if text.starts_with([' ', '\n']) {
            self.put("2");
        }
        let body = text.strip_suffix('\n');
        match body {
            None => self.put("-"),
            Some(body) if body.is_empty() || body.ends_with('\n') => self.put("+"),
            Some(_) => {}
        }
        for line in body.unwrap_or(text).split('\n') {
            self.out.push('\n');
            if !line.is_empty() {
                self.indent(columns);
                self.put(line);
            }
        }
        if body.is_some_and(|body| body.is_empty() || body.ends_with('\n')) {
            // The last of the breaks that are kept.
            self.out.push('\n');
        }
        self.column = 0;
    }
}

enum Style {
    Plain,
    Single,
    Double,
}

/// In which ways a text can be written.
struct Shape {
    plain: bool,
    /// In single quotes.
    quotable: bool,
    block: bool,
}

impl Shape {
    fn of(text: &str) -> Shape {
        let characters: Vec<char> = text.chars().collect();
        let blank = |i: usize| characters.get(i).is_none_or(|c| matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}'));
        let (Some(first), Some(last)) = (characters.first(), characters.last()) else { return Shape { plain: false, quotable: true, block: false } };
        let mut indicators = text.starts_with("---") || text.starts_with("...");
        for (i, c) in characters.iter().enumerate() {
            indicators |= match c {
                '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`' if i == 0 => true,
                '?' | '-' if i == 0 => blank(1),
                ':' => blank(i + 1),
                '#' => blank(i - 1),
                _ => false,
            };
        }
        let special = characters.iter().any(|c| !printable(*c) && *c != '\n');
        let broken = |c: &char| *c == '\n';
        let after_space_break = characters.windows(2).any(|pair| pair[0] == ' ' && broken(&pair[1]));
        let edge_space = *first == ' ' || *last == ' ';
        let edge_break = broken(first) || broken(last);
        Shape {
            plain: !indicators && !special && !edge_space && !edge_break && !after_space_break,
            quotable: !special && !after_space_break,
            block: !special && *last != ' ',
        }
    }
}

fn printable(c: char) -> bool {
    matches!(c, ' '..='~' | '\u{a1}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..='\u{10ffff}')
        && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// Whether a plain text would be read as something else than a text.
fn looks_otherwise(text: &str) -> bool {
    const WORDS: &[&str] = &[
        "", "~", "<<", "null", "Null", "NULL", "y", "Y", "yes", "Yes", "YES", "n", "N", "no", "No", "NO", "true", "True", "TRUE", "false", "False",
        "FALSE", "on", "On", "ON", "off", "Off", "OFF", ".nan", ".NaN", ".NAN", ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf",
        "-.INF",
    ];
    if WORDS.contains(&text) {
        return true;
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return false;
    }
    let plain = unsigned.replace('_', "");
    let of_base = |prefixes: [&str; 2], digit: fn(char) -> bool| {
        prefixes.iter().find_map(|prefix| plain.strip_prefix(prefix)).is_some_and(|rest| !rest.is_empty() && rest.chars().all(digit))
    };
    of_base(["0x", "0X"], |c| c.is_ascii_hexdigit())
        || of_base(["0b", "0B"], |c| matches!(c, '0' | '1'))
        || of_base(["0o", "0O"], |c| matches!(c, '0'..='7'))
        || is_decimal(&plain)
        || is_sexagesimal(unsigned)
        || is_time(text)
}
fn is_decimal(text: &str) -> bool {
    let (mantissa, exponent) = text.split_once(['e', 'E']).map_or((text, None), |(mantissa, exponent)| (mantissa, Some(exponent)));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    digits(whole)
        && digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|exponent| {
            let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            !exponent.is_empty() && digits(exponent)
        })
}
/// `1:30`: numbers of base sixty, which older readers know.
fn is_sexagesimal(text: &str) -> bool {
    let (text, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = text.split(':');
    let first = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    first.starts_with(|c: char| c.is_ascii_digit())
        && digits(first)
        && digits(fraction)
        && !rest.is_empty()
        && rest.iter().all(|part| part.len() <= 2 && part.parse::<u8>().is_ok_and(|n| n < 60))
}
/// `2006-1-2`, and with a time of day behind it.
fn is_time(text: &str) -> bool {
    let (date, time) = text.find(['T', 't', ' ']).map_or((text, ""), |at| text.split_at(at));
    let parts: Vec<&str> = date.split('-').collect();
    let number = |text: &str, most: usize| !text.is_empty() && text.len() <= most && text.bytes().all(|b| b.is_ascii_digit());
    let is_date = matches!(parts.as_slice(), [year, month, day] if year.len() == 4 && number(year, 4) && number(month, 2) && number(day, 2));
    if !is_date || time.is_empty() {
        return is_date;
    }
    let clock = time[1..].trim_end_matches(['Z', 'z']);
    let clock = clock.find(['+', '-']).map_or(clock, |at| &clock[..at]);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let parts: Vec<&str> = clock.split(':').collect();
    fraction.bytes().all(|b| b.is_ascii_digit()) && parts.len() == 3 && parts.iter().all(|part| number(part, 2))
}

/// The order of keys: by characters, letters behind others, numbers by what they say.
fn natural(a: &str, b: &str) -> Ordering {
    let (left, right): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    for i in 0..left.len().min(right.len()) {
        if left[i] == right[i] {
            continue;
        }
        match (left[i].is_alphabetic(), right[i].is_alphabetic()) {
            (true, false) => return Ordering::Greater,
            (false, true) => return Ordering::Less,
            (true, true) => return left[i].cmp(&right[i]),
            (false, false) => {}
        }
        let run = |text: &[char]| text[i..].iter().take_while(|c| c.is_ascii_digit()).collect::<String>();
        let (x, y) = (run(&left), run(&right));
        let value = |digits: &str| digits.trim_start_matches('0').to_string();
        let (x_value, y_value) = (value(&x), value(&y));
        let by_value = x_value.len().cmp(&y_value.len()).then_with(|| x_value.cmp(&y_value));
        return by_value.then(x.len().cmp(&y.len())).then_with(|| left[i].cmp(&right[i]));
    }
    left.len().cmp(&right.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn objects_are_written_as_clients_know_them() {
        let object = json!({
            "kind": "ConfigMap",
            "apiVersion": "v1",
            "data": {"a10": "1", "a2": "yes", "text": "one\ntwo\n", "url": "http://x:1/", "end": "a:", "empty": "", "star": "*", "date": "2026-01-02T03:04:05Z"},
            "list": [{"f:spec": {".": {}, "k:{\"name\":\"c\"}": []}}, ["x"], null, 1.5],
        });
        let wanted = r#"apiVersion: v1
data:
  a2: "yes"
  a10: "1"
  date: "2026-01-02T03:04:05Z"
  empty: ""
  end: 'a:'
  star: '*'
  text: |
    one
    two
  url: http://x:1/
kind: ConfigMap
list:
- f:spec:
    .: {}
    k:{"name":"c"}: []
- - x
- null
- 1.5
"#;
        assert_eq!(text(&object), wanted);
    }

    #[test]
    fn long_texts_go_on_in_the_next_line_and_odd_ones_are_escaped() {
        let words = ["word"; 20].join(" ");
        let written = text(&json!({"a": words}));
        assert_eq!(written.lines().count(), 2);
        assert!(written.lines().nth(1).is_some_and(|line| line.starts_with("  word")), "{written}");
        assert_eq!(text(&json!({"a": "x\ty\u{1}"})), "a: \"x\\ty\\x01\"\n");
        assert_eq!(text(&json!({"a": "x\n\n"})), "a: |+\n  x\n\n");
        assert_eq!(text(&json!({"a": "x\ny"})), "a: |-\n  x\n  y\n");
        assert_eq!(text(&json!([])), "[]\n");
    }

    #[test]
    fn what_is_written_is_read_back() {
        for value in
            ["1e3", "0x1f", "1:30", "-", "- a", "a # b", " lead", "trail ", "it's", "'q'", "no", "1_000", "a: b", "\nx", "x \ny", "é ü", "{}"]
        {
            let object = json!({"k": value, "l": [value], value: "v"});
            let read = api::structure::parse_object(text(&object).as_bytes(), api::structure::Encoding::Yaml);
            assert_eq!(read.as_ref(), Ok(&object), "{}", text(&object));
        }
    }
}
