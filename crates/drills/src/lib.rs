//! The drill engine: failures as runnable scenarios.
