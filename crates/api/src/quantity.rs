//! Quantities (`100m`, `1.5Gi`, `1e3`): exact numbers with Kubernetes' suffixes and one canonical form.
//!
//! A quantity is a count of nano units, the finest that Kubernetes knows. What is finer is rounded away from zero on
//! parsing, so that a request for a little never becomes a request for nothing. Nothing is ever rounded down.

use std::{cmp::Ordering, fmt, str::FromStr};

/// Which family of suffixes a quantity was written with; kept when it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    BinarySi,
    DecimalSi,
    DecimalExponent,
}

/// An exact decimal number. Equality and order are those of the number, whatever the format.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

/// In Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Form,
    #[error("unable to parse numeric part of quantity")]
    Number,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const NANO: i128 = 1_000_000_000;
/// The most that is kept of a number that is too large to count.
const MAX_NANO: i128 = i64::MAX as i128 * NANO;
const DECIMAL: [(&str, u32); 10] = [("n", 0), ("u", 3), ("m", 6), ("", 9), ("k", 12), ("M", 15), ("G", 18), ("T", 21), ("P", 24), ("E", 27)];
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// What a suffix multiplies with.
enum Scale {
    /// Power of ten over nano.
    Ten(i64),
    /// Power of two over one.
    Two(u32),
}

fn scale(suffix: &str) -> Option<(Scale, Format)> {
    if let Some((_, power)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Some((Scale::Ten(i64::from(*power)), Format::DecimalSi));
    }
    if let Some(i) = BINARY.iter().position(|s| *s == suffix) {
        return Some((Scale::Two(10 * i as u32), Format::BinarySi));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<i64>().ok()?;
    Some((Scale::Ten(exponent.checked_add(9)?), Format::DecimalExponent))
}

impl Quantity {
    pub const ZERO: Quantity = Quantity { nano: 0, format: Format::DecimalSi };

    pub fn parse(text: &str) -> Result<Quantity, Error> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, rest) = unsigned.split_at(digits(unsigned));
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_at(digits(rest)),
            None => ("", rest),
        };
        if text.is_empty() || !is_suffix(suffix) {
            return Err(Error::Form);
        }
        let (scale, format) = scale(suffix).ok_or(Error::Suffix)?;
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let magnitude = match scale {
            Scale::Ten(power) => decimal(whole, fraction, power),
            Scale::Two(power) => {
                decimal(whole, fraction, 9).checked_shl(power).filter(|n| n >> power == decimal(whole, fraction, 9)).unwrap_or(MAX_NANO)
            }
        };
        // A fraction of a binary unit may have digits below nano that matter once multiplied.
        let magnitude = match scale {
            Scale::Two(power) if power > 0 && fraction.len() > 9 => binary_fraction(whole, fraction, power),
            _ => magnitude,
        };
        Ok(Quantity { nano: if text.starts_with('-') { -magnitude } else { magnitude }, format })
    }

    /// From JSON: a string, or a number as its text.
    pub fn from_value(value: &serde_json::Value) -> Result<Quantity, Error> {
        match value {
            serde_json::Value::String(text) => Quantity::parse(text),
            serde_json::Value::Number(number) => Quantity::parse(&number.to_string()),
            _ => Err(Error::Form),
        }
    }
    pub fn from_units(value: i64, format: Format) -> Quantity {
        Quantity { nano: i128::from(value) * NANO, format }
    }
    pub fn from_milli(value: i64, format: Format) -> Quantity {
        Quantity { nano: i128::from(value) * (NANO / 1000), format }
    }
    pub fn format(&self) -> Format {
        self.format
    }
    /// Whole units, rounded up (away from zero), cut at the ends of i64.
    pub fn value(&self) -> i64 {
        clamp(divide_away(self.nano, NANO))
    }
    /// Thousandths, rounded up (away from zero), cut at the ends of i64.
    pub fn milli(&self) -> i64 {
        clamp(divide_away(self.nano, NANO / 1000))
    }
    /// Rounded away from zero to thousandths, as resource lists are.
    pub fn round_to_milli(&self) -> Quantity {
        Quantity { nano: divide_away(self.nano, NANO / 1000) * (NANO / 1000), ..*self }
    }
    /// Whether it is a whole number of units.
    pub fn is_whole(&self) -> bool {
        self.nano % NANO == 0
    }
    pub fn as_f64(&self) -> f64 {
        self.nano as f64 / NANO as f64
    }
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }
    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nano.signum() as i32
    }
    /// The sum, in the format of the first that is not zero. Cut at the ends.
    pub fn add(&self, other: &Quantity) -> Quantity {
        Quantity { nano: self.nano.saturating_add(other.nano), format: if self.is_zero() { other.format } else { self.format } }
    }
    pub fn sub(&self, other: &Quantity) -> Quantity {
        self.add(&other.neg())
    }
    pub fn neg(&self) -> Quantity {
        Quantity { nano: self.nano.saturating_neg(), ..*self }
    }
}

/// `[eEinumkKMGTP]*[-+]?[0-9]*`
fn is_suffix(suffix: &str) -> bool {
    let rest = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    rest.strip_prefix(['+', '-']).unwrap_or(rest).bytes().all(|b| b.is_ascii_digit())
}

/// `whole.fraction` times ten to `power`, rounded up, cut at [`MAX_NANO`] if it does not fit.
fn decimal(whole: &str, fraction: &str, power: i64) -> i128 {
    let mut number: i128 = 0;
    let mut remainder = false;
    let places = i64::try_from(whole.len()).unwrap_or(i64::MAX).saturating_add(power);
    for (i, digit) in (0i64..).zip(whole.bytes().chain(fraction.bytes())) {
        if i < places {
            match number.checked_mul(10).and_then(|n| n.checked_add(i128::from(digit - b'0'))) {
                Some(n) => number = n,
                None => return MAX_NANO,
            }
        } else if digit != b'0' {
            remainder = true;
            break;
        }
    }
    let written = i64::try_from(whole.len() + fraction.len()).unwrap_or(i64::MAX);
    if number != 0 {
        for _ in written..places {
            match number.checked_mul(10) {
                Some(n) => number = n,
                None => return MAX_NANO,
            }
        }
    }
    number + i128::from(remainder)
}

/// The same for a binary unit and many digits after the point: twenty-seven of them count.
fn binary_fraction(whole: &str, fraction: &str, power: u32) -> i128 {
    let whole = decimal(whole, "", 9).checked_mul(1 << power);
    let kept = &fraction[..fraction.len().min(18)];
    let part = decimal("", kept, 18).checked_mul(1 << power).map(|n| divide_away(n, NANO));
    match (whole, part) {
        (Some(whole), Some(part)) => whole.saturating_add(part).saturating_add(i128::from(fraction.len() > 18)),
        _ => MAX_NANO,
    }
}

fn divide_away(number: i128, by: i128) -> i128 {
    number / by + if number % by == 0 { 0 } else { number.signum() }
}

fn clamp(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}

impl FromStr for Quantity {
    type Err = Error;
    fn from_str(text: &str) -> Result<Quantity, Error> {
        Quantity::parse(text)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that allows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi && self.is_whole() && (self.nano / NANO).unsigned_abs() >= 1024 {
            let (mut number, mut unit) = (self.nano / NANO, 0);
            while number % 1024 == 0 && unit < BINARY.len() - 1 {
                number /= 1024;
                unit += 1;
            }
            return write!(f, "{number}{}", BINARY[unit]);
        }
        let (mut number, mut unit) = (self.nano, 0);
        while number % 1000 == 0 && unit < DECIMAL.len() - 1 {
            number /= 1000;
            unit += 1;
        }
        match (self.format, i64::from(DECIMAL[unit].1) - 9) {
            (Format::DecimalExponent, 0) => write!(f, "{number}"),
            (Format::DecimalExponent, exponent) => write!(f, "{number}e{exponent}"),
            _ => write!(f, "{number}{}", DECIMAL[unit].0),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nano == other.nano
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("0", "0"),
            ("1024Mi", "1Gi"),
            ("1000m", "1"),
            ("0.1", "100m"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("1000000", "1M"),
            ("1.5", "1500m"),
            ("1.1Gi", "1181116006400m"),
            ("1000M", "1G"),
            ("1.5e9", "1500e6"),
            ("1e3", "1e3"),
            ("1048576", "1048576"),
            ("1Ki", "1Ki"),
            ("512", "512"),
            ("0.5Ki", "512"),
            ("-1.5", "-1500m"),
            ("-2048", "-2048"),
            ("1e-9", "1e-9"),
            ("1e-12", "1e-9"),
            ("0.0000000001", "1n"),
            ("12E", "12E"),
            (".5", "500m"),
            ("5.", "5"),
            ("1E3", "1e3"),
            ("100000000000000000000000000000000000000000", "9223372036854775807"),
            ("1e400", "9223372036854775807"),
            ("000", "0"),
            ("1e-400", "1e-9"),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), canonical, "{text}");
        }
        assert_eq!(Quantity::parse("100u").unwrap().round_to_milli().to_string(), "1m");
    }

    #[test]
    fn errors_are_told_apart() {
        for text in ["", "abc", "1 Gi", "1gi", "0x10", "1Gib"] {
            assert_eq!(Quantity::parse(text).unwrap_err(), Error::Form, "{text}");
        }
        for text in ["1K", "--1", "1e", "1mm"] {
            assert_eq!(Quantity::parse(text).unwrap_err(), Error::Suffix, "{text}");
        }
    }

    #[test]
    fn values_round_up() {
        let q = |text| Quantity::parse(text).unwrap();
        assert_eq!((q("1001m").value(), q("1001m").milli(), q("1u").milli()), (2, 1001, 1));
        assert_eq!(q("-1.5").value(), -2);
        assert!(q("1Gi") > q("1G") && q("1024") == q("1Ki"));
        assert_eq!(q("1").sub(&q("900m")).to_string(), "100m");
        assert_eq!(q("0").add(&q("1Gi")).to_string(), "1Gi");
    }

    proptest! {
        #[test]
        fn any_text_is_an_answer_and_not_a_panic(text in "\\PC{0,24}") {
            let _ = Quantity::parse(&text);
        }
        #[test]
        fn the_canonical_form_is_the_same_number_and_stays(text in "-?[0-9]{1,12}(\\.[0-9]{1,12})?(n|u|m|k|M|G|Ki|Mi|Gi|e-?[0-9])?") {
            let quantity = Quantity::parse(&text).unwrap();
            let again = Quantity::parse(&quantity.to_string()).unwrap();
            prop_assert_eq!(quantity, again);
            prop_assert_eq!(quantity.to_string(), again.to_string());
        }
        #[test]
        fn sums_are_exact(a in any::<i64>(), b in any::<i64>()) {
            let (x, y) = (Quantity::from_milli(a, Format::DecimalSi), Quantity::from_milli(b, Format::DecimalSi));
            prop_assert_eq!(x.add(&y).sub(&y), x);
        }
    }
}
