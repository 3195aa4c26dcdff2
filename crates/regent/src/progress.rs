//! How long work shows that it goes on: one live line on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::{io::IsTerminal, time::Duration};

/// The progress of one piece of work with named steps.
pub struct Progress(Option<ProgressBar>);

impl Progress {
    pub fn start(what: &str) -> Progress {
        if !std::io::stderr().is_terminal() {
            eprintln!("{what} ...");
            return Progress(None);
        }
        let bar = ProgressBar::new_spinner().with_prefix(what.to_string());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Progress(Some(bar))
    }

    pub fn step(&self, name: &str) {
        match &self.0 {
            Some(bar) => bar.set_message(name.to_string()),
            None => eprintln!("  {name}"),
        }
    }

    pub fn finish(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}
