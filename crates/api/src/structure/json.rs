//! A JSON reader that its caller drives, value by value, so that a document is checked against a schema while it is read.
//!
//! It complains in the words of Go's decoder, which is what users of Kubernetes know, and it bounds nesting.

use crate::limits::NESTING_DEPTH_MAX;
use serde_json::{Map, Number, Value};
use std::borrow::Cow;

/// A place in a JSON text.
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

/// What kind of value comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Null,
    Bool,
    Number,
    String,
    Array,
    Object,
}

impl Next {
    /// The word of Go's type errors.
    pub fn word(self) -> &'static str {
        match self {
            Next::Null => "null",
            Next::Bool => "bool",
            Next::Number => "number",
            Next::String => "string",
            Next::Array => "array",
            Next::Object => "object",
        }
    }
}

const END: &str = "unexpected end of JSON input";

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0, depth: 0 }
    }

    fn skip_space(&mut self) -> Option<u8> {
        while let Some(&byte) = self.bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    fn unexpected(&self, context: &str) -> String {
        match self.bytes.get(self.at) {
            None => END.to_string(),
            Some(b'\'') => format!("invalid character '\\'' {context}"),
            Some(b'"') => format!("invalid character '\"' {context}"),
            Some(byte) => {
                let shown = match *byte {
                    b'\n' => "\\n".to_string(),
                    b'\t' => "\\t".to_string(),
                    b'\r' => "\\r".to_string(),
                    b'\\' => "\\\\".to_string(),
                    byte if byte < 0x20 || byte == 0x7f => format!("\\x{byte:02x}"),
                    byte if (0x80..0xa0).contains(&byte) => format!("\\u{byte:04x}"),
                    byte => char::from(byte).to_string(),
                };
                format!("invalid character '{shown}' {context}")
            }
        }
    }

    /// Looks at the next value without reading it.
    pub fn peek(&mut self) -> Result<Next, String> {
        Ok(match self.skip_space() {
            Some(b'{') => Next::Object,
            Some(b'[') => Next::Array,
            Some(b'"') => Next::String,
            Some(b't' | b'f') => Next::Bool,
            Some(b'n') => Next::Null,
            Some(b'-' | b'0'..=b'9') => Next::Number,
            _ => return Err(self.unexpected("looking for beginning of value")),
        })
    }

    /// MUST follow the last value: nothing but space may remain.
    pub fn end(&mut self) -> Result<(), String> {
        match self.skip_space() {
            None => Ok(()),
            Some(_) => Err(self.unexpected("after top-level value")),
        }
    }

    fn literal(&mut self, word: &str) -> Result<(), String> {
        for (i, expected) in word.bytes().enumerate() {
            if self.bytes.get(self.at) != Some(&expected) {
                debug_assert!(i > 0);
                return Err(self.unexpected(&format!("in literal {word} (expecting '{}')", char::from(expected))));
            }
            self.at += 1;
        }
        Ok(())
    }

    pub fn null(&mut self) -> Result<(), String> {
        self.skip_space();
        self.literal("null")
    }

    pub fn bool(&mut self) -> Result<bool, String> {
        let value = self.skip_space() == Some(b't');
        self.literal(if value { "true" } else { "false" })?;
        Ok(value)
    }

    /// The text of a number.
    pub fn number(&mut self) -> Result<&'a str, String> {
        self.skip_space();
        let start = self.at;
        let digit = |reader: &Self| reader.bytes.get(reader.at).is_some_and(u8::is_ascii_digit);
        let digits = |reader: &mut Self, context: &str| -> Result<(), String> {
            if !digit(reader) {
                return Err(reader.unexpected(context));
            }
            while digit(reader) {
                reader.at += 1;
            }
            Ok(())
        };
        if self.bytes.get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        if self.bytes.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else {
            digits(self, "in numeric literal")?;
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            digits(self, "after decimal point in numeric literal")?;
        }
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.bytes.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            digits(self, "in exponent of numeric literal")?;
        }
        // Only ASCII was read.
        std::str::from_utf8(&self.bytes[start..self.at]).map_err(|_| END.to_string())
    }

    /// A string; invalid UTF-8 and lone surrogates become the replacement character.
    pub fn string(&mut self) -> Result<Cow<'a, str>, String> {
        self.skip_space();
        self.at += 1;
        let start = self.at;
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    let raw = &self.bytes[start..self.at];
                    self.at += 1;
                    return Ok(String::from_utf8_lossy(raw));
                }
                Some(b'\\') => break,
                Some(0..0x20) | None => return Err(self.unexpected("in string literal")),
                Some(_) => self.at += 1,
            }
        }
        let mut text = self.bytes[start..self.at].to_vec();
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Cow::Owned(String::from_utf8_lossy(&text).into_owned()));
                }
                Some(b'\\') => {
                    self.at += 1;
                    let c = self.escape()?;
                    text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                Some(0..0x20) | None => return Err(self.unexpected("in string literal")),
                Some(&byte) => {
                    text.push(byte);
                    self.at += 1;
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        let c = match self.bytes.get(self.at) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                let first = self.hex()?;
                if (0xd800..0xdc00).contains(&first) && self.bytes.get(self.at..self.at + 2) == Some(b"\\u") {
                    let back = self.at;
                    self.at += 2;
                    let second = self.hex()?;
                    if (0xdc00..0xe000).contains(&second) {
                        let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                        return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                    }
                    self.at = back;
                }
                return Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            _ => return Err(self.unexpected("in string escape code")),
        };
        self.at += 1;
        Ok(c)
    }

    fn hex(&mut self) -> Result<u32, String> {
        let mut code = 0;
        for _ in 0..4 {
            match self.bytes.get(self.at).and_then(|&b| char::from(b).to_digit(16)) {
                Some(digit) => code = code * 16 + digit,
                None => return Err(self.unexpected("in \\u hexadecimal character escape")),
            }
            self.at += 1;
        }
        Ok(code)
    }

    fn deeper(&mut self) -> Result<(), String> {
        self.depth += 1;
        if self.depth > NESTING_DEPTH_MAX { Err("exceeded max depth".into()) } else { Ok(()) }
    }

    /// Calls `each` before every item, which MUST read it. Gives up at the first error.
    pub fn array(&mut self, mut each: impl FnMut(&mut Self, usize) -> Result<(), String>) -> Result<(), String> {
        self.deeper()?;
        self.skip_space();
        self.at += 1;
        if self.skip_space() == Some(b']') {
            self.at += 1;
        } else {
            for i in 0.. {
                each(self, i)?;
                match self.skip_space() {
                    Some(b',') => self.at += 1,
                    Some(b']') => {
                        self.at += 1;
                        break;
                    }
                    _ => return Err(self.unexpected("after array element")),
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Calls `each` with every key before its value, which it MUST read.
    pub fn object(&mut self, mut each: impl FnMut(&mut Self, Cow<'a, str>) -> Result<(), String>) -> Result<(), String> {
        self.deeper()?;
        self.skip_space();
        self.at += 1;
        if self.skip_space() == Some(b'}') {
            self.at += 1;
        } else {
            loop {
                if self.skip_space() != Some(b'"') {
                    return Err(self.unexpected("looking for beginning of object key string"));
                }
                let key = self.string()?;
                if self.skip_space() != Some(b':') {
                    return Err(self.unexpected("after object key"));
                }
                self.at += 1;
                each(self, key)?;
                match self.skip_space() {
                    Some(b',') => self.at += 1,
                    Some(b'}') => {
                        self.at += 1;
                        break;
                    }
                    _ => return Err(self.unexpected("after object key:value pair")),
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads a value and forgets it.
    pub fn skip(&mut self) -> Result<(), String> {
        match self.peek()? {
            Next::Null => self.null(),
            Next::Bool => self.bool().map(drop),
            Next::Number => self.number().map(drop),
            Next::String => self.string().map(drop),
            Next::Array => self.array(|reader, _| reader.skip()),
            Next::Object => self.object(|reader, _| reader.skip()),
        }
    }

    /// Reads a value as it is. Of double keys the last wins.
    pub fn value(&mut self) -> Result<Value, String> {
        Ok(match self.peek()? {
            Next::Null => {
                self.null()?;
                Value::Null
            }
            Next::Bool => Value::Bool(self.bool()?),
            Next::Number => number_value(self.number()?)?,
            Next::String => Value::String(self.string()?.into_owned()),
            Next::Array => {
                let mut list = vec![];
                self.array(|reader, _| {
                    list.push(reader.value()?);
                    Ok(())
                })?;
                Value::Array(list)
            }
            Next::Object => {
                let mut map = Map::new();
                self.object(|reader, key| {
                    map.insert(key.into_owned(), reader.value()?);
                    Ok(())
                })?;
                Value::Object(map)
            }
        })
    }
}

/// A number's text as JSON keeps it: whole if it is written so and fits, else the nearest fraction that there is.
pub fn number_value(text: &str) -> Result<Value, String> {
    if let Ok(whole) = text.parse::<i64>() {
        return Ok(whole.into());
    }
    if let Ok(whole) = text.parse::<u64>() {
        return Ok(whole.into());
    }
    let number = text.parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number);
    number.ok_or_else(|| format!("json: cannot unmarshal number {text} into Go value of type float64"))
}
