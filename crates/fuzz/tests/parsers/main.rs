//! A fuzz target for every parser that what comes over the network meets, and for the files that others write for us.
//!
//! Each is a test. `cargo test -p fuzz` gives every target a second, `make fuzz for=600 only=labels` one of them ten minutes.
//!
//! A parser must answer: no panic, no overflow of the stack, no long wait, no memory without bound. What it takes must mean the same when
//! it is written and read again, where it can be written.
//!
//! exec, attach and port-forward are not here: their frames (SPDY, WebSocket) pass through byte for byte and are read by the container
//! runtime. What a whole server makes of nearly documents is in `apiserver/tests/hostile.rs`.

mod credentials;
mod documents;
mod expressions;
mod messages;
mod selectors;

use fuzz::Choices;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::Once;

/// What the process may have of memory, all targets at once. Beyond it an allocation fails, and the test with it.
const MEMORY_BYTES: u64 = 8 << 30;

fn run(target: impl Fn(&mut Choices)) {
    static LIMIT: Once = Once::new();
    LIMIT.call_once(|| {
        let limit = Rlimit { current: Some(MEMORY_BYTES), ..getrlimit(Resource::As) };
        setrlimit(Resource::As, limit).expect("memory can be bounded");
    });
    fuzz::run(target);
}
