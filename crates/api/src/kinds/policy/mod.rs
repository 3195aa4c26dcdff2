//! The kinds of group `policy`.

pub mod poddisruptionbudgets;
