//! `'%s is %d'.format([...])`: how patterns are read, and what arguments become. Numbers are written as in English.

use super::{Error, Val, text};
use crate::{cel::limits, field::quoted};

/// How an argument is to be written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clause {
    Text,
    Decimal,
    Fixed(usize),
    Scientific(usize),
    Binary,
    Hex { upper: bool },
    Octal,
}

impl Clause {
    /// What is said of an argument that cannot be written so.
    pub fn refusal(self, type_name: &str) -> String {
        let only = match self {
            Clause::Text => "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps",
            Clause::Decimal => "decimal clause can only be used on integers",
            Clause::Fixed(_) => "fixed-point clause can only be used on doubles",
            Clause::Scientific(_) => "scientific clause can only be used on doubles",
            Clause::Binary => "only integers and bools can be formatted as binary",
            Clause::Hex { .. } => "only integers, byte buffers, and strings can be formatted as hex",
            Clause::Octal => "octal clause can only be used on integers",
        };
        format!("{only}, was given {type_name}")
    }
}

/// Digits that are asked for where none are given.
const PRECISION: usize = 6;
/// Digits that are written at most.
const PRECISION_MAX: usize = 1000;

/// What is wrong with a pattern or an argument, and which argument when it is that.
#[derive(Debug, PartialEq)]
pub struct Fault<P> {
    pub place: Option<P>,
    pub message: String,
}

/// Reads a pattern for `count` arguments; `write` makes the text of an argument. Returned with the text is how many arguments it takes.
pub fn fill<P>(pattern: &str, count: usize, mut write: impl FnMut(usize, Clause) -> Result<String, Fault<P>>) -> Result<(String, usize), Fault<P>> {
    let fault = |message: String| Fault { place: None, message };
    let (mut out, mut rest, mut taken) = (String::new(), pattern, 0);
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        if after.is_empty() {
            return Err(fault("unexpected end of string".into()));
        }
        if taken >= count {
            return Err(fault(format!("index {taken} out of range")));
        }
        let clause = clause(after).map_err(|why| fault(format!("could not parse formatting clause: {why}")))?;
        let text = write(taken, clause.0).map_err(|wrong| Fault { message: format!("error during formatting: {}", wrong.message), ..wrong })?;
        if out.len() + text.len() > limits::VALUE_BYTES_MAX {
            return Err(fault("the text becomes too long".into()));
        }
        out.push_str(&text);
        rest = clause.1;
        taken += 1;
    }
    out.push_str(rest);
    Ok((out, taken))
}

/// The clause that a text begins with, and what follows it.
fn clause(text: &str) -> Result<(Clause, &str), String> {
    let (mut precision, mut rest) = (PRECISION, text);
    if let Some(after) = text.strip_prefix('.') {
        let end = after.find(|c: char| !c.is_ascii_digit());
        let end = end.ok_or("error while parsing precision: could not find end of precision specifier")?;
        let digits = &after[..end];
        precision = digits.parse::<i64>().map(|digits| digits as usize).map_err(|_| {
            let why = if digits.is_empty() { "invalid syntax" } else { "value out of range" };
            format!("error while parsing precision: error while converting precision to integer: strconv.Atoi: parsing {digits:?}: {why}")
        })?;
        rest = &after[end..];
    }
    let precision = precision.min(PRECISION_MAX);
    let clause = match rest.as_bytes()[0] {
        b's' => Clause::Text,
        b'd' => Clause::Decimal,
        b'f' => Clause::Fixed(precision),
        b'e' => Clause::Scientific(precision),
        b'b' => Clause::Binary,
        b'x' => Clause::Hex { upper: false },
        b'X' => Clause::Hex { upper: true },
        b'o' => Clause::Octal,
        other => return Err(format!("unrecognized formatting clause \"{}\"", other as char)),
    };
    Ok((clause, &rest[1..]))
}

/// The text that a pattern and arguments make.
pub(super) fn formatted(pattern: &str, args: &[Val<'_>]) -> Result<String, Error> {
    let write = |i: usize, clause: Clause| written(clause, &args[i]).map_err(|message| Fault { place: None, message });
    fill::<()>(pattern, args.len(), write).map(|(text, _)| text).map_err(|fault| Error::failed(fault.message))
}

fn written(clause: Clause, value: &Val<'_>) -> Result<String, String> {
    let refused = || clause.refusal(&value.type_name());
    let number = || match value {
        Val::Double(number) => Ok(*number),
        Val::String(text) => match text.as_ref() {
            "NaN" => Ok(f64::NAN),
            "Infinity" => Ok(f64::INFINITY),
            "-Infinity" => Ok(f64::NEG_INFINITY),
            _ => Err(refused()),
        },
        _ => Err(refused()),
    };
    let signed = |number: i64, digits: fn(u64) -> String| format!("{}{}", if number < 0 { "-" } else { "" }, digits(number.unsigned_abs()));
    let digits: fn(u64) -> String = match clause {
        Clause::Binary => |number| format!("{number:b}"),
        Clause::Octal => |number| format!("{number:o}"),
        Clause::Hex { upper: true } => |number| format!("{number:X}"),
        Clause::Hex { upper: false } => |number| format!("{number:x}"),
        _ => |number| number.to_string(),
    };
    Ok(match (clause, value) {
        (Clause::Text, value) => shown(value)?,
        (Clause::Fixed(precision), _) => fixed(number()?, precision),
        (Clause::Scientific(precision), _) => scientific(number()?, precision),
        (_, Val::Int(number)) => signed(*number, digits),
        (_, Val::Uint(number)) => digits(*number),
        (Clause::Binary, Val::Bool(flag)) => u8::from(*flag).to_string(),
        (Clause::Hex { upper }, Val::String(_) | Val::Bytes(_)) => {
            let bytes = match value {
                Val::String(text) => text.as_bytes(),
                Val::Bytes(bytes) => bytes,
                _ => &[],
            };
            bytes.iter().map(|byte| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") }).collect()
        }
        _ => return Err(refused()),
    })
}

fn unlimited(number: f64) -> Option<String> {
    let sign = if number < 0.0 { "-" } else { "" };
    if number.is_nan() { Some("NaN".into()) } else { number.is_infinite().then(|| format!("{sign}∞")) }
}

/// Thousands are set apart.
fn fixed(number: f64, precision: usize) -> String {
    if let Some(text) = unlimited(number) {
        return text;
    }
    let text = format!("{:.precision$}", number.abs());
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(whole, fraction)| (whole, Some(fraction)));
    let mut out = String::from(if number.is_sign_negative() { "-" } else { "" });
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + &fraction.map(|fraction| format!(".{fraction}")).unwrap_or_default()
}

fn scientific(number: f64, precision: usize) -> String {
    if let Some(text) = unlimited(number) {
        return text;
    }
    let text = format!("{number:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(("", exponent), |exponent| ("⁻", exponent));
    let raised = format!("{exponent:0>2}").bytes().filter_map(|digit| "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth((digit - b'0') as usize)).collect::<String>();
    format!("{mantissa}\u{202f}×\u{202f}10{sign}{raised}")
}

/// `%s`.
fn shown(value: &Val<'_>) -> Result<String, String> {
    match value {
        Val::List(_) | Val::JsonList(..) => {
            let items = value.items().unwrap_or_default();
            Ok(format!("[{}]", items.iter().map(literal).collect::<Result<Vec<_>, _>>()?.join(", ")))
        }
        Val::Map(_) | Val::JsonMap(..) => {
            let mut entries = vec![];
            for (key, value) in value.entries().unwrap_or_default() {
                if !matches!(key, Val::String(_) | Val::Bool(_) | Val::Int(_) | Val::Uint(_)) {
                    return Err(format!("no formatting function for map key of type {}", key.type_name()));
                }
                entries.push((literal(&key)?, literal(&value)?));
            }
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            Ok(format!("{{{}}}", entries.iter().map(|(key, value)| format!("{key}:{value}")).collect::<Vec<_>>().join(", ")))
        }
        Val::Null => Ok("null".into()),
        Val::Type(name) => Ok(name.to_string()),
        Val::Opaque(_) | Val::Optional(_) | Val::Failed(_) => Err(Clause::Text.refusal(&value.type_name())),
        other => text(other).ok_or_else(|| "could not convert argument to string".into()),
    }
}

/// A value within another, as one would write it in an expression.
fn literal(value: &Val<'_>) -> Result<String, String> {
    Ok(match value {
        Val::String(text) => quoted(text),
        Val::Bytes(_) => format!("b{}", quoted(&shown(value)?)),
        Val::Timestamp(_) => format!("timestamp({})", quoted(&shown(value)?)),
        Val::Duration(_) => format!("duration({})", quoted(&shown(value)?)),
        Val::Double(number) if number.is_nan() => quoted("NaN"),
        Val::Double(number) if number.is_infinite() => quoted(if *number > 0.0 { "+Inf" } else { "-Inf" }),
        Val::Double(number) => format!("{number:.PRECISION$}"),
        Val::Opaque(_) | Val::Optional(_) | Val::Failed(_) => return Err(format!("no formatting function for {}", value.type_name())),
        other => shown(other)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cel::{Program, Type, eval::Variables};

    fn computed(source: &str) -> Result<String, String> {
        let program = Program::compile(source, &[("none", Type::Dyn)])?;
        let mut budget = 1_000_000;
        match program.run(&Variables::default(), &mut budget) {
            Ok(Val::String(text)) => Ok(text.to_string()),
            Ok(other) => Err(other.type_name().into()),
            Err(error) => Err(format!("{error:?}")),
        }
    }

    #[test]
    fn arguments_become_text() {
        for (source, text) in [
            ("'%s%% of %d'.format([dyn('1'), dyn(2)])", "1% of 2"),
            ("'%d'.format([uint(64)])", "64"),
            ("'%f'.format([2.71828])", "2.718280"),
            ("'%.3f'.format([-1234567.5])", "-1,234,567.500"),
            ("'%.0f'.format([999.0])", "999"),
            ("'%f %f'.format(['Infinity', '-Infinity'])", "∞ -∞"),
            ("'%f'.format(['NaN'])", "NaN"),
            ("'%e'.format([2.71828])", "2.718280\u{202f}×\u{202f}10⁰⁰"),
            ("'%.6e'.format([1052.032911275])", "1.052033\u{202f}×\u{202f}10⁰³"),
            ("'%b %b'.format([5, -5])", "101 -101"),
            ("'%b'.format([true])", "1"),
            ("'%x %X %o'.format([26, -26, 8])", "1a -1A 10"),
            ("'%x'.format(['Hello'])", "48656c6c6f"),
            ("'%X'.format([b'xyz'])", "78797A"),
            ("'%s'.format([null])", "null"),
            ("'%s'.format([b'xyz'])", "xyz"),
            ("'%s'.format([type('a')])", "string"),
            ("'%s'.format([timestamp('2023-02-03T23:31:20+00:00')])", "2023-02-03T23:31:20Z"),
            ("'%s'.format([duration('1h45m47s')])", "6347s"),
            (
                "'%s'.format([[dyn('abc'), 3.14, null, [9, 8], timestamp('2023-02-03T23:31:20Z')]])",
                "[\"abc\", 3.140000, null, [9, 8], timestamp(\"2023-02-03T23:31:20Z\")]",
            ),
            (
                "'%s'.format([{'key1': dyn(b'xyz'), 'key5': null, 'key2': duration('2h'), 'key4': true, 'key3': 2.71828}])",
                "{\"key1\":b\"xyz\", \"key2\":duration(\"7200s\"), \"key3\":2.718280, \"key4\":true, \"key5\":null}",
            ),
        ] {
            assert_eq!(computed(source).as_deref(), Ok(text), "{source}");
        }
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        for (source, why) in [
            ("'%d'.format(dyn(['a']))", "error during formatting: decimal clause can only be used on integers, was given string"),
            ("'%f'.format(dyn([1]))", "error during formatting: fixed-point clause can only be used on doubles, was given int"),
            ("'%s'.format(dyn([quantity('1')]))", "was given kubernetes.Quantity"),
            ("'%s'.format(dyn([[quantity('1')]]))", "error during formatting: no formatting function for kubernetes.Quantity"),
            ("'%d %d'.format(dyn([1]))", "index 1 out of range"),
            ("'%a'.format(dyn([1]))", "could not parse formatting clause: unrecognized formatting clause"),
            ("'%.f'.format(dyn([1]))", "error while converting precision to integer: strconv.Atoi: parsing"),
            ("'%'.format(dyn([1]))", "unexpected end of string"),
            ("'%.3'.format(dyn([1]))", "could not parse formatting clause: error while parsing precision: could not find end of precision specifier"),
        ] {
            let complaint = computed(source).unwrap_err();
            assert!(complaint.contains(why), "{source}: {complaint}");
        }
    }
}
