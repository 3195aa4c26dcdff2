//! Scalars with a form of their own inside a JSON string: times and base64. Errors are in Go's words.

/// How many digits of a second an API type keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Seconds,
    /// Exactly six digits, as MicroTime has.
    Micros,
}

impl Precision {
    fn layout(self) -> &'static str {
        match self {
            Precision::Seconds => "2006-01-02T15:04:05Z07:00",
            Precision::Micros => "2006-01-02T15:04:05.000000Z07:00",
        }
    }
}

/// What remains of a time, and the part of the layout that it does not fit.
type Mismatch<'a> = (&'a str, &'static str);

/// RFC 3339 in any zone to the same moment in UTC, cut to the precision.
pub fn canonical_time(text: &str, precision: Precision) -> Result<String, String> {
    let (unix_s, micros) = time(text, precision)?;
    let shown = format_time(unix_s).ok_or_else(|| format!("parsing time {text:?}: year outside of range [0,9999]"))?;
    Ok(match precision {
        Precision::Seconds => format!("{shown}Z"),
        Precision::Micros => format!("{shown}.{micros:06}Z"),
    })
}

/// `2006-01-02T15:04:05` in UTC; `None` outside the years 0 to 9999.
fn format_time(unix_s: i64) -> Option<String> {
    let (days, second) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
    // Years begin in March here, so that the leap day is the last of its year; eras have 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (0..=9999).contains(&year).then(|| format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60))
}

fn days_of_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970 of a date.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// RFC 3339 to seconds since 1970 and microseconds.
pub fn time(text: &str, precision: Precision) -> Result<(i64, u32), String> {
    let misfit = |(rest, element): Mismatch<'_>| format!("parsing time {text:?} as {:?}: cannot parse {rest:?} as {element:?}", precision.layout());
    let out_of_range = |what: &str| format!("parsing time {text:?}: {what} out of range");
    let mut cursor = Cursor { rest: text };
    let parts = cursor.date_and_time().map_err(misfit)?;
    let [year, month, day, hour, minute, second] = parts;
    let micros = cursor.fraction(precision).map_err(misfit)?;
    let offset_s = cursor.zone().map_err(misfit)?;
    if !cursor.rest.is_empty() {
        return Err(format!("parsing time {text:?}: extra text: {:?}", cursor.rest));
    }
    if !(1..=12).contains(&month) {
        return Err(out_of_range("month"));
    }
    if hour > 23 {
        return Err(out_of_range("hour"));
    }
    if minute > 59 {
        return Err(out_of_range("minute"));
    }
    if second > 59 {
        return Err(out_of_range("second"));
    }
    if !(1..=days_of_month(year, month)).contains(&day) {
        return Err(out_of_range("day"));
    }
    Ok((days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset_s, micros))
}

struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn number(&mut self, digits: usize, element: &'static str) -> Result<i64, Mismatch<'a>> {
        let head = self.rest.get(..digits).filter(|head| head.bytes().all(|b| b.is_ascii_digit()));
        let value = head.and_then(|head| head.parse().ok()).ok_or((self.rest, element))?;
        self.rest = &self.rest[digits..];
        Ok(value)
    }
    fn expect(&mut self, separator: &'static str) -> Result<(), Mismatch<'a>> {
        self.rest = self.rest.strip_prefix(separator).ok_or((self.rest, separator))?;
        Ok(())
    }
    fn date_and_time(&mut self) -> Result<[i64; 6], Mismatch<'a>> {
        let year = self.number(4, "2006")?;
        self.expect("-")?;
        let month = self.number(2, "01")?;
        self.expect("-")?;
        let day = self.number(2, "02")?;
        self.expect("T")?;
        let hour = self.number(2, "15")?;
        self.expect(":")?;
        let minute = self.number(2, "04")?;
        self.expect(":")?;
        Ok([year, month, day, hour, minute, self.number(2, "05")?])
    }
    fn fraction(&mut self, precision: Precision) -> Result<u32, Mismatch<'a>> {
        let digits = self.rest.strip_prefix('.').map_or(0, |rest| rest.bytes().take_while(u8::is_ascii_digit).count());
        match precision {
            Precision::Micros if digits < 6 => Err((self.rest, ".000000")),
            _ if digits == 0 => Ok(0),
            _ => {
                let shown = &self.rest[1..=digits];
                let taken = if precision == Precision::Micros { 6 } else { digits };
                self.rest = &self.rest[1 + taken..];
                Ok(format!("{shown:0<6}")[..6].parse().unwrap_or(0))
            }
        }
    }
    /// Seconds east of UTC.
    fn zone(&mut self) -> Result<i64, Mismatch<'a>> {
        let before = self.rest;
        let misfit = move |_| (before, "Z07:00");
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let sign = match self.rest.as_bytes().first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return Err((before, "Z07:00")),
        };
        self.rest = &self.rest[1..];
        let hours = self.number(2, "").map_err(misfit)?;
        self.expect(":").map_err(misfit)?;
        let minutes = self.number(2, "").map_err(misfit)?;
        if hours > 24 || minutes > 60 {
            return Err((before, "Z07:00"));
        }
        Ok(sign * (hours * 3600 + minutes * 60))
    }
}

/// Checks standard base64 with padding; line breaks do not count and are left out of the result.
pub fn canonical_base64(text: &str) -> Result<String, String> {
    let corrupt = |at: usize| format!("illegal base64 data at input byte {at}");
    let mut clean = String::with_capacity(text.len());
    let mut padding = 0;
    for (at, c) in text.char_indices() {
        match c {
            '\r' | '\n' => continue,
            '=' if padding < 2 && clean.len() % 4 >= 2 => padding += 1,
            c if padding == 0 && (c.is_ascii_alphanumeric() || c == '+' || c == '/') => {}
            _ => return Err(corrupt(at)),
        }
        clean.push(c);
    }
    match clean.len() % 4 {
        0 => Ok(clean),
        over => Err(corrupt(if padding > 0 { text.len() } else { text.len() - over })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let seconds = |text| canonical_time(text, Precision::Seconds);
        assert_eq!(seconds("2024-02-29T12:00:00Z").unwrap(), "2024-02-29T12:00:00Z");
        assert_eq!(seconds("2024-02-29T12:00:00.123+02:00").unwrap(), "2024-02-29T10:00:00Z");
        for text in [
            "9999-12-31T23:59:59Z",
            "0000-01-01T00:00:00Z",
            "1970-01-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2000-02-29T00:00:00Z",
            "2100-03-01T00:00:00Z",
        ] {
            assert_eq!(seconds(text).as_deref(), Ok(text));
        }
        assert_eq!(time("2024-03-01T00:00:00Z", Precision::Seconds), Ok((1_709_251_200, 0)));
        assert!(seconds("9999-12-31T23:59:59-01:00").is_err());
        assert_eq!(
            seconds("yesterday").unwrap_err(),
            "parsing time \"yesterday\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"yesterday\" as \"2006\""
        );
        assert_eq!(seconds("2024-13-01T00:00:00Z").unwrap_err(), "parsing time \"2024-13-01T00:00:00Z\": month out of range");
        assert_eq!(seconds("2023-02-29T00:00:00Z").unwrap_err(), "parsing time \"2023-02-29T00:00:00Z\": day out of range");
        let micros = |text| canonical_time(text, Precision::Micros);
        assert_eq!(micros("2024-01-01T00:00:00.000001Z").unwrap(), "2024-01-01T00:00:00.000001Z");
        assert!(micros("2024-01-01T00:00:00Z").unwrap_err().ends_with("cannot parse \"Z\" as \".000000\""));
    }

    #[test]
    fn base64() {
        assert_eq!(canonical_base64("aGk=").unwrap(), "aGk=");
        assert_eq!(canonical_base64("aG\nk=").unwrap(), "aGk=");
        assert_eq!(canonical_base64("").unwrap(), "");
        assert_eq!(canonical_base64("***").unwrap_err(), "illegal base64 data at input byte 0");
        assert_eq!(canonical_base64("aGk=aGk=").unwrap_err(), "illegal base64 data at input byte 4");
        assert!(canonical_base64("aGk").is_err() && canonical_base64("a===").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[0-9TZ:.+-]{0,32}|\\PC{0,24}") {
            let _ = canonical_time(&text, Precision::Seconds);
            let _ = canonical_time(&text, Precision::Micros);
            let _ = canonical_base64(&text);
        }
    }
}
