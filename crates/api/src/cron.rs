//! Cron schedules: `minute hour day-of-month month day-of-week`, in a time zone.
//!
//! Fields are lists of `*`, numbers, names (months and weekdays), ranges and steps; `@hourly` and its kin, and
//! `@every DURATION`. Where both days are restricted, either of them is enough, as cron has always had it. Times that a
//! zone skips in spring are skipped; those it repeats in autumn are kept twice.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Unit};

/// How far ahead a next time is looked for: `0 0 29 2 1` may take long, `0 0 30 2 *` for ever.
const HORIZON_DAYS: i64 = 5 * 366;

/// Why a schedule cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("expected exactly 5 fields, found {0}")]
    Fields(usize),
    #[error("cannot read {0:?}")]
    Part(String),
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
    #[error("unknown time zone {0}")]
    TimeZone(String),
}

/// When to run.
#[derive(Clone, Debug)]
pub struct Schedule {
    when: When,
    zone: TimeZone,
}

#[derive(Clone, Debug, PartialEq)]
enum When {
    Every(SignedDuration),
    Fields(Fields),
}

/// Bit sets of what each field allows.
#[derive(Clone, Debug, PartialEq)]
struct Fields {
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
    /// Whether the days are restricted at all.
    day_given: bool,
    weekday_given: bool,
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Schedule {
    /// Reads a schedule. Without a zone it is in UTC, like the cluster's components.
    pub fn parse(text: &str, zone: Option<&str>) -> Result<Schedule, Error> {
        let zone = match zone {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name).map_err(|_| Error::TimeZone(name.to_owned()))?,
        };
        let text = text.trim();
        let plain = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ => text,
        };
        if let Some(period) = plain.strip_prefix("@every ") {
            let period: SignedDuration = period.trim().parse().map_err(|_| Error::Part(text.to_owned()))?;
            if period < SignedDuration::from_secs(1) {
                return Err(Error::Part(text.to_owned()));
            }
            return Ok(Schedule { when: When::Every(period), zone });
        }
        if plain.starts_with('@') {
            return Err(Error::Descriptor(text.to_owned()));
        }
        let fields: Vec<&str> = plain.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else { return Err(Error::Fields(fields.len())) };
        // Sunday is 0 and, for those who begin with Monday, 7.
        let (weekdays, weekday_given) = field(weekday, 0, 7, &WEEKDAYS, 0)?;
        let (day, day_given) = field(day, 1, 31, &[], 0)?;
        Ok(Schedule {
            when: When::Fields(Fields {
                minute: field(minute, 0, 59, &[], 0)?.0,
                hour: field(hour, 0, 23, &[], 0)?.0,
                day,
                month: field(month, 1, 12, &MONTHS, 1)?.0,
                weekday: (weekdays | (weekdays >> 7)) & 0x7f,
                day_given,
                weekday_given,
            }),
            zone,
        })
    }

    /// The zone that it is in.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The first time after this one; `None` if there is none within years.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let fields = match &self.when {
            When::Every(period) => return Timestamp::from_second(after.as_second()).ok()?.checked_add(*period).ok(),
            When::Fields(fields) => fields,
        };
        let minute = SignedDuration::from_mins(1);
        let mut at = Timestamp::from_second(after.as_second().div_euclid(60) * 60).ok()?.checked_add(minute).ok()?;
        let horizon = after.checked_add(SignedDuration::from_hours(24 * HORIZON_DAYS)).ok()?;
        while at <= horizon {
            let local = at.to_zoned(self.zone.clone());
            let date = local.date();
            if !fields.allows(date.month(), date.day(), date.weekday().to_sunday_zero_offset()) {
                at = date.checked_add(1.day()).ok()?.to_zoned(self.zone.clone()).ok()?.timestamp();
            } else if fields.hour & (1 << local.hour()) == 0 {
                at = at.checked_add(SignedDuration::from_mins(i64::from(60 - local.minute()))).ok()?;
            } else if fields.minute & (1 << local.minute()) == 0 {
                at = at.checked_add(minute).ok()?;
            } else {
                return Some(at);
            }
        }
        None
    }

    /// The newest time after `after` and not after `now`, if there is one.
    pub fn newest(&self, after: Timestamp, now: Timestamp) -> Option<Timestamp> {
        // From windows that grow, so that it costs little however long nobody has looked.
        for hours in [1, 24, 24 * 32, 24 * 366, 24 * HORIZON_DAYS] {
            let start = now.checked_sub(SignedDuration::from_hours(hours)).ok()?.max(after);
            let mut found = self.next(start).filter(|time| *time <= now);
            while let Some(time) = found {
                match self.next(time).filter(|next| *next <= now) {
                    Some(next) => found = Some(next),
                    None => return Some(time),
                }
            }
            if start == after {
                return None;
            }
        }
        None
    }

    /// How many times there are after `after` and not after `now`, counting up to `most`.
    pub fn missed(&self, after: Timestamp, now: Timestamp, most: usize) -> usize {
        let mut count = 0;
        let mut at = after;
        while count < most
            && let Some(next) = self.next(at).filter(|next| *next <= now)
        {
            count += 1;
            at = next;
        }
        count
    }
}

impl Fields {
    fn allows(&self, month: i8, day: i8, weekday: i8) -> bool {
        let day = self.day & (1 << day) != 0;
        let weekday = self.weekday & (1 << weekday) != 0;
        let day_matches = if self.day_given && self.weekday_given { day || weekday } else { day && weekday };
        self.month & (1 << month) != 0 && day_matches
    }
}

/// Reads one field into a bit set; the flag says whether it restricts anything.
fn field(text: &str, min: u32, max: u32, names: &[&str], first_name: u32) -> Result<(u64, bool), Error> {
    let mut set = 0;
    let mut given = true;
    for part in text.split(',') {
        let bad = || Error::Part(text.to_owned());
        let value = |word: &str| -> Option<u32> {
            let named = names.iter().position(|name| name.eq_ignore_ascii_case(word)).and_then(|at| u32::try_from(at).ok());
            named.map(|at| at + first_name).or_else(|| word.parse().ok())
        };
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step.parse::<u32>().ok().filter(|step| *step > 0).ok_or_else(bad)?)),
            None => (part, None),
        };
        let (from, to) = if range == "*" || range == "?" {
            given = false;
            // A weekday star means each day once, not Sunday twice.
            (min, if max == 7 { 6 } else { max })
        } else {
            let (from, to) = match range.split_once('-') {
                Some((from, to)) => (value(from), value(to)),
                // `5/10` means from 5 on.
                None if step.is_some() => (value(range), Some(max)),
                None => (value(range), value(range)),
            };
            (from.ok_or_else(bad)?, to.ok_or_else(bad)?)
        };
        if from < min || to > max || from > to {
            return Err(bad());
        }
        for number in (from..=to).step_by(usize::try_from(step.unwrap_or(1)).unwrap_or(1)) {
            set |= 1u64 << number;
        }
    }
    Ok((set, given))
}

/// A time as the scheduled-timestamp annotation has it: RFC 3339 with the zone's offset.
pub fn stamp(time: Timestamp, zone: &TimeZone) -> String {
    let local = time.to_zoned(zone.clone());
    let local = local.round(Unit::Second).unwrap_or(local);
    if local.offset().seconds() == 0 {
        return local.timestamp().to_string();
    }
    local.timestamp().display_with_offset(local.offset()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The next times after the first.
    fn check(schedule: &str, zone: Option<&str>, after: &str, expected: &[&str]) {
        let schedule = Schedule::parse(schedule, zone).unwrap();
        let mut at = time(after);
        for expected in expected {
            at = schedule.next(at).unwrap();
            assert_eq!(at.to_string(), *expected);
        }
    }

    #[test]
    fn next_times() {
        check("*/15 * * * *", None, "2026-01-01T00:07:30Z", &["2026-01-01T00:15:00Z", "2026-01-01T00:30:00Z"]);
        check("0 9-17/4 * * mon-fri", None, "2026-01-02T14:00:00Z", &["2026-01-02T17:00:00Z", "2026-01-05T09:00:00Z"]);
        check("0 0 29 2 *", None, "2026-01-01T00:00:00Z", &["2028-02-29T00:00:00Z"]);
        check("0 0 13 * 5", None, "2026-01-01T00:00:00Z", &["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z", "2026-01-13T00:00:00Z"]);
        check("0 0 * * 7", None, "2026-01-01T00:00:00Z", &["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"]);
        check("30 4 1,15 * ?", None, "2026-01-01T05:00:00Z", &["2026-01-15T04:30:00Z"]);
        check("@hourly", None, "2026-01-01T00:00:00Z", &["2026-01-01T01:00:00Z"]);
        check("@every 1h30m", None, "2026-01-01T00:00:10Z", &["2026-01-01T01:30:10Z"]);
        check("59 23 31 DEC *", None, "2026-01-01T00:00:00Z", &["2026-12-31T23:59:00Z"]);
    }

    #[test]
    fn zones_skip_and_repeat() {
        let zone = Some("Europe/Berlin");
        check("30 6 * * *", zone, "2026-01-01T00:00:00Z", &["2026-01-01T05:30:00Z"]);
        // On 2026-03-29 there is no half past two; on 2026-10-25 there are two.
        check("30 2 * * *", zone, "2026-03-28T12:00:00Z", &["2026-03-30T00:30:00Z"]);
        check("30 2 * * *", zone, "2026-10-24T12:00:00Z", &["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"]);
    }

    #[test]
    fn what_cannot_be_read() {
        let check = |text: &str| assert!(Schedule::parse(text, None).is_err(), "{text}");
        ["", "* * * *", "60 * * * *", "* * 0 * *", "5-3 * * * *", "*/0 * * * *", "x * * * *", "@often", "@every soon"].into_iter().for_each(check);
        assert_eq!(Schedule::parse("* * * * *", Some("Mars/Base")).unwrap_err(), Error::TimeZone("Mars/Base".into()));
        assert_eq!(Schedule::parse("0 0 30 2 *", None).unwrap().next(time("2026-01-01T00:00:00Z")), None);
    }

    #[test]
    fn the_newest_time_is_found_after_a_long_silence() {
        let minutely = Schedule::parse("* * * * *", None).unwrap();
        let now = time("2026-06-01T12:00:30Z");
        assert_eq!(minutely.newest(time("2020-01-01T00:00:00Z"), now), Some(time("2026-06-01T12:00:00Z")));
        assert_eq!(minutely.newest(time("2026-06-01T12:00:00Z"), now), None);
        assert_eq!(minutely.missed(time("2020-01-01T00:00:00Z"), now, 100), 100);
        let yearly = Schedule::parse("@yearly", None).unwrap();
        assert_eq!(yearly.newest(time("2020-01-01T00:00:00Z"), now), Some(time("2026-01-01T00:00:00Z")));
    }

    #[test]
    fn stamps() {
        let at = time("2026-01-01T05:30:00Z");
        assert_eq!(stamp(at, &TimeZone::UTC), "2026-01-01T05:30:00Z");
        assert_eq!(stamp(at, &TimeZone::get("Europe/Berlin").unwrap()), "2026-01-01T06:30:00+01:00");
    }
}
