//! Snapshots by the clock.

use api::cron::Schedule;
use jiff::Timestamp;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The longest sleep at a stretch: a machine that was suspended, or whose clock was set, shall not sleep on for days.
const SLEEP_MAX: Duration = Duration::from_secs(30);

/// Runs `take` at every time of the schedule, until the shutdown. Times that pass while one is taken are left out; a failure
/// is said and the next time is waited for.
pub async fn run<F: Future<Output = Result<String, String>>>(
    schedule: Schedule,
    clock: impl Fn() -> Timestamp,
    mut take: impl FnMut() -> F,
    shutdown: CancellationToken,
) {
    loop {
        let Some(next) = schedule.next(clock()) else {
            tracing::error!("the snapshot schedule names no time within years; no snapshots are taken");
            return;
        };
        while let Ok(left) = Duration::try_from(next.duration_since(clock()))
            && !left.is_zero()
        {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(left.min(SLEEP_MAX)) => {}
            }
        }
        if shutdown.is_cancelled() {
            return;
        }
        match take().await {
            Ok(what) => tracing::info!("{what}"),
            Err(why) => tracing::error!("the scheduled snapshot could not be taken: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[tokio::test(start_paused = true)]
    async fn it_takes_at_each_time_and_goes_on_after_a_failure() {
        let (start, begin) = (Timestamp::from_second(1_800_000_000).unwrap(), tokio::time::Instant::now());
        let clock = move || start + begin.elapsed();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let shutdown = CancellationToken::new();
        let take = {
            let (taken, shutdown) = (taken.clone(), shutdown.clone());
            move || {
                let mut taken = taken.lock().unwrap();
                taken.push(clock().as_second() - 1_800_000_000);
                if taken.len() == 3 {
                    shutdown.cancel();
                }
                let outcome = if taken.len() == 1 { Err("disk full".to_string()) } else { Ok("taken".to_string()) };
                async move { outcome }
            }
        };
        run(Schedule::parse("*/5 * * * *", None).unwrap(), clock, take, shutdown).await;
        assert_eq!(*taken.lock().unwrap(), [300, 600, 900]);
    }
}
