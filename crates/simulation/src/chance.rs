//! Where this process' randomness comes from: the machine, or a seed.
//!
//! The standard library's hash maps, tokio's `select!`, `rand` and others ask the C library's `getrandom`. The test binary
//! defines that function and calls [`fill`], so that with a seed all of them draw the same numbers in every run. (What calls
//! the kernel itself, such as aws-lc, still differs; nothing that is decided follows from that.)

use rand::{RngCore, SeedableRng, rngs::StdRng};
use std::sync::{Mutex, PoisonError};

static SEEDED: Mutex<Option<StdRng>> = Mutex::new(None);

/// From now on every random number of this process follows from the seed. To be called before anything draws one.
pub fn seed(seed: u64) {
    *SEEDED.lock().unwrap_or_else(PoisonError::into_inner) = Some(StdRng::seed_from_u64(seed));
}

/// Fills the bytes: from the seed, if there is one.
pub fn fill(bytes: &mut [u8]) {
    if let Some(seeded) = SEEDED.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        seeded.fill_bytes(bytes);
        return;
    }
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(filled) => rest = &mut rest[filled..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("the machine gives no random numbers: {error}"),
        }
    }
}
