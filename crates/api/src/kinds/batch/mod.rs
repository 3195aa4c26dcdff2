//! The kinds of group `batch`.

pub mod cronjobs;
pub mod jobs;
pub mod schedule;
