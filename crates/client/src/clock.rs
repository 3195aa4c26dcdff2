//! The clock as a parameter: whatever is decided by wall-clock time gets it from here, so that tests can set it.
//!
//! Durations (back-off, renewal, silence) are measured with tokio's clock, which tests pause; this one is for the
//! timestamps that end up in objects.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

/// Tells the time of day.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Clock(Arc::new(Timestamp::now))
    }

    /// A clock that a test drives.
    pub fn from_fn(read: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Clock(Arc::new(read))
    }

    /// The current time.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }

    /// The current time in whole seconds, as `metav1.Time` keeps it.
    pub fn time(&self) -> Time {
        Time(whole_seconds(self.now()))
    }

    /// The current time in microseconds, as `metav1.MicroTime` keeps it.
    pub fn micro_time(&self) -> MicroTime {
        let now = self.now();
        MicroTime(Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now))
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// Cuts a time to whole seconds: what a `metav1.Time` can carry, so that comparing it with a read-back one holds.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
