//! Quantities (`100m`, `1.5Gi`, `1e3`): exact numbers with Kubernetes' suffixes and one canonical form.

use std::{cmp::Ordering, fmt, str::FromStr};

/// Which family of suffixes a quantity was written with; kept when it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    BinarySi,
    DecimalSi,
    DecimalExponent,
}

/// An exact decimal number: a count of nano units.
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

impl Quantity {
    pub const ZERO: Quantity = Quantity { nano: 0, format: Format::DecimalSi };
    pub fn parse(_text: &str) -> Result<Quantity, Error> {
        Ok(Quantity::ZERO)
    }
    /// From JSON: a string, or a number as its text.
    pub fn from_value(_value: &serde_json::Value) -> Result<Quantity, Error> {
        Ok(Quantity::ZERO)
    }
    pub fn from_units(value: i64, format: Format) -> Quantity {
        Quantity { nano: i128::from(value) * 1_000_000_000, format }
    }
    pub fn from_milli(value: i64, format: Format) -> Quantity {
        Quantity { nano: i128::from(value) * 1_000_000, format }
    }
    pub fn format(&self) -> Format {
        self.format
    }
    /// Whole units, rounded up (away from zero), cut at the ends of i64.
    pub fn value(&self) -> i64 {
        0
    }
    /// Thousandths, rounded up (away from zero), cut at the ends of i64.
    pub fn milli(&self) -> i64 {
        0
    }
    pub fn as_f64(&self) -> f64 {
        0.0
    }
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }
    pub fn sign(&self) -> i32 {
        self.nano.signum() as i32
    }
    pub fn add(&self, other: &Quantity) -> Quantity {
        Quantity { nano: self.nano.saturating_add(other.nano), format: if self.is_zero() { other.format } else { self.format } }
    }
    pub fn sub(&self, other: &Quantity) -> Quantity {
        Quantity { nano: self.nano.saturating_sub(other.nano), format: if self.is_zero() { other.format } else { self.format } }
    }
    pub fn neg(&self) -> Quantity {
        Quantity { nano: self.nano.saturating_neg(), ..*self }
    }
}

impl FromStr for Quantity {
    type Err = Error;
    fn from_str(text: &str) -> Result<Quantity, Error> {
        Quantity::parse(text)
    }
}
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.nano)
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
