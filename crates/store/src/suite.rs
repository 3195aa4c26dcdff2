//! What every back end must do: one suite of checks, run on each.
