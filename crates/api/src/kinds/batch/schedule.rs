//! Cron schedules: five fields, or a descriptor such as `@daily`, as CronJobs have them.
//!
//! [`Schedule::parse`] gives what is wrong in the words of the parser that Kubernetes uses; [`Schedule::matches`] and
//! [`Schedule::next_after`] say when a job is due, on civil time, so that a time zone is the caller's matter.

use jiff::{ToSpan, civil::DateTime};

/// A set of minutes, hours and days.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    Fields {
        minutes: u64,
        hours: u64,
        days: u64,
        months: u64,
        weekdays: u64,
        any_day: bool,
        any_weekday: bool,
    },
    /// `@every 1h30m`, in seconds.
    Every(i64),
}

struct Bounds {
    min: u64,
    max: u64,
    names: &'static [&'static str],
}
const MINUTES: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOURS: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAYS: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTHS: Bounds = Bounds { min: 1, max: 12, names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"] };
const WEEKDAYS: Bounds = Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };
/// How far ahead a due time is looked for; a schedule for 30 February has none.
const YEARS_AHEAD_MAX: i16 = 5;

fn number(text: &str, bounds: Option<&Bounds>) -> Result<u64, String> {
    if let Some(bounds) = bounds
        && let Some(i) = bounds.names.iter().position(|name| name.eq_ignore_ascii_case(text))
    {
        return Ok(bounds.min + i as u64);
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"));
    }
    match text.parse::<i64>() {
        Err(_) => Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: value out of range")),
        Ok(n) => u64::try_from(n).map_err(|_| format!("negative number ({n}) not allowed: {text}")),
    }
}

/// One part between commas, as a set of bits; and whether it was a star.
fn range(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let (whole, step_text) = match text.split('/').collect::<Vec<_>>()[..] {
        [whole] => (whole, None),
        [whole, step] => (whole, Some(step)),
        _ => return Err(format!("too many slashes: {text}")),
    };
    let mut star = false;
    let (start, mut end, single) = match whole.split('-').collect::<Vec<_>>()[..] {
        ["*" | "?"] => {
            star = true;
            (bounds.min, bounds.max, false)
        }
        [one] => {
            let one = number(one, Some(bounds))?;
            (one, one, true)
        }
        [low, high] => (number(low, Some(bounds))?, number(high, Some(bounds))?, false),
        _ => return Err(format!("too many hyphens: {text}")),
    };
    let mut step = 1;
    if let Some(step_text) = step_text {
        step = number(step_text, None)?;
        if single {
            end = bounds.max;
        }
        star &= step <= 1;
    }
    if start < bounds.min {
        return Err(format!("beginning of range ({start}) below minimum ({}): {text}", bounds.min));
    }
    if end > bounds.max {
        return Err(format!("end of range ({end}) above maximum ({}): {text}", bounds.max));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    let Some(step) = usize::try_from(step).ok().filter(|step| *step > 0) else {
        return Err(format!("step of range should be a positive number: {text}"));
    };
    Ok(((start..=end).step_by(step).fold(0, |bits, n| bits | 1 << n), star))
}

fn field(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let mut all = (0, false);
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (bits, star) = range(part, bounds)?;
        all = (all.0 | bits, all.1 | star);
    }
    Ok(all)
}

/// Seconds of a duration such as `1h30m`.
fn duration_s(text: &str) -> Option<i64> {
    let (mut total, mut digits) = (0f64, String::new());
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while let Some(c) = rest.chars().next() {
        if c.is_ascii_digit() || c == '.' {
            digits.push(c);
            rest = &rest[1..];
            continue;
        }
        let (unit, seconds) = [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)]
            .into_iter()
            .find(|(unit, _)| rest.starts_with(unit))?;
        total += digits.parse::<f64>().ok()? * seconds;
        digits.clear();
        rest = &rest[unit.len()..];
    }
    if digits.is_empty() && total.is_finite() { Some((total as i64).max(1)) } else { None }
}

impl Schedule {
    /// Reads a schedule; the error is what is wrong with it.
    pub fn parse(text: &str) -> Result<Schedule, String> {
        if text.is_empty() {
            return Err("empty spec string".into());
        }
        let standard = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ if text.starts_with("@every ") => {
                let period = &text["@every ".len()..];
                return duration_s(period)
                    .map(Schedule::Every)
                    .ok_or_else(|| format!("failed to parse duration {text}: time: invalid duration {period:?}"));
            }
            _ if text.starts_with('@') => return Err(format!("unrecognized descriptor: {text}")),
            _ => text,
        };
        let fields: Vec<&str> = standard.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        };
        let (minutes, _) = field(minutes, &MINUTES)?;
        let (hours, _) = field(hours, &HOURS)?;
        let (days, any_day) = field(days, &DAYS)?;
        let (months, _) = field(months, &MONTHS)?;
        let (weekdays, any_weekday) = field(weekdays, &WEEKDAYS)?;
        Ok(Schedule::Fields { minutes, hours, days, months, weekdays, any_day, any_weekday })
    }

    /// Whether a minute is one of the schedule's. Never for a period, which has no fixed minutes.
    pub fn matches(&self, at: DateTime) -> bool {
        let Schedule::Fields { minutes, hours, .. } = self else { return false };
        minutes >> at.minute() & 1 == 1 && hours >> at.hour() & 1 == 1 && self.matches_day(at)
    }
    fn matches_day(&self, at: DateTime) -> bool {
        let Schedule::Fields { days, months, weekdays, any_day, any_weekday, .. } = self else { return false };
        let day = days >> at.day() & 1 == 1;
        let weekday = weekdays >> at.date().weekday().to_sunday_zero_offset() & 1 == 1;
        // Where both are restricted, either is enough.
        let right_day = if *any_day || *any_weekday { day && weekday } else { day || weekday };
        months >> at.month() & 1 == 1 && right_day
    }
    /// The first due time after `at`; `None` if there is none in the next years.
    pub fn next_after(&self, at: DateTime) -> Option<DateTime> {
        if let Schedule::Every(seconds) = self {
            return at.with().subsec_nanosecond(0).build().ok()?.checked_add(seconds.seconds()).ok();
        }
        let mut next = at.with().second(0).subsec_nanosecond(0).build().ok()?.checked_add(1.minute()).ok()?;
        let last_year = at.year().saturating_add(YEARS_AHEAD_MAX);
        while next.year() <= last_year {
            if !self.matches_day(next) {
                next = next.date().tomorrow().ok()?.at(0, 0, 0, 0);
            } else if self.matches(next) {
                return Some(next);
            } else {
                next = next.checked_add(1.minute()).ok()?;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said() {
        let check = |text: &str, want: &str| assert_eq!(Schedule::parse(text).expect_err(text), want);
        check("often", "expected exactly 5 fields, found 1: [often]");
        check("60 24 * * *", "end of range (60) above maximum (59): 60");
        check("1,2,3-5/2 */3 L * *", "failed to parse int from L: strconv.Atoi: parsing \"L\": invalid syntax");
        check("* * 0 * *", "beginning of range (0) below minimum (1): 0");
        check("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1");
        check("*/0 * * * *", "step of range should be a positive number: */0");
        check("@sometimes", "unrecognized descriptor: @sometimes");
    }

    #[test]
    fn the_next_time_is_found() {
        let check = |text: &str, at: &str, want: &str| {
            let next = Schedule::parse(text).expect(text).next_after(at.parse().expect(at));
            assert_eq!(next, want.parse().ok(), "{text} after {at}");
        };
        check("*/5 * * * *", "2024-01-01T00:03:10", "2024-01-01T00:05:00");
        check("0 3 * * MON-FRI", "2024-01-06T00:00:00", "2024-01-08T03:00:00");
        check("@daily", "2024-02-28T12:00:00", "2024-02-29T00:00:00");
        check("0 0 13 * 5", "2024-09-01T00:00:00", "2024-09-06T00:00:00");
        check("0 0 29 2 *", "2024-03-01T00:00:00", "2028-02-29T00:00:00");
        check("0 0 30 2 *", "2024-03-01T00:00:00", "none");
        check("@every 1h30m", "2024-01-01T00:00:00", "2024-01-01T01:30:00");
    }
}
