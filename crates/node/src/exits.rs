//! Containers that end are noticed at once: each one's first process is held by a pidfd, which becomes readable when it ends.
//!
//! The runtime is listed every second anyway (CRI of this age has no events); this only makes the ordinary crash known within
//! milliseconds, so that its endpoint leaves before many requests have met it. What must stay true: it is never needed. A
//! container whose process cannot be held (the runtime does not say its PID) is found by the next listing.

use crate::agent::Context;
use cri::v1::ContainerState;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use std::{
    collections::{BTreeMap, HashSet},
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    time::Duration,
};

/// The runtime learns of an end a moment after the kernel: how often, and how many times at most, it is asked.
const ASK_EVERY: Duration = Duration::from_millis(10);
const ASK_TIMES_MAX: u32 = 100;

/// Processes that are held, and the thread that waits for the end of any.
struct Holder {
    held: Sender<(String, OwnedFd)>,
    /// Written to when there is something new for the thread.
    wake: Arc<OwnedFd>,
}

impl Holder {
    /// Calls `ended` with the name of each process that ends.
    fn start(ended: impl Fn(String) + Send + 'static) -> std::io::Result<Holder> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (held, receiver) = channel();
        let waker = wake.clone();
        std::thread::Builder::new().name("container-exits".into()).spawn(move || wait(&receiver, &waker, ended))?;
        Ok(Holder { held, wake })
    }

    fn hold(&self, name: String, pid: i32) {
        let Some(process) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return };
        if self.held.send((name, process)).is_ok() {
            let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // The thread finds the channel closed only once it looks.
        self.held = channel().0;
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

fn wait(receiver: &Receiver<(String, OwnedFd)>, wake: &OwnedFd, ended: impl Fn(String)) {
    let mut held: BTreeMap<String, OwnedFd> = BTreeMap::new();
    loop {
        loop {
            match receiver.try_recv() {
                Ok((name, process)) => drop(held.insert(name, process)),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        let mut waited: Vec<PollFd<'_>> = std::iter::once(wake).chain(held.values()).map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        if poll(&mut waited, None).is_err() {
            continue;
        }
        let over: Vec<bool> = waited.iter().map(|fd| !fd.revents().is_empty()).collect();
        let _ = rustix::io::read(wake, &mut [0_u8; 8]);
        let gone: Vec<String> = held.keys().zip(&over[1..]).filter(|(_, over)| **over).map(|(name, _)| name.clone()).collect();
        for name in gone {
            held.remove(&name);
            ended(name);
        }
    }
}

/// Those that are watched, by container.
pub struct Exits {
    holder: Option<Arc<Holder>>,
    watched: HashSet<String>,
}

impl Exits {
    pub fn new(cx: &Arc<Context>) -> Exits {
        let (cx, runtime) = (cx.clone(), tokio::runtime::Handle::current());
        let holder = Holder::start(move |id| drop(runtime.spawn(known(cx.clone(), id))));
        let holder = holder.inspect_err(|error| tracing::warn!(%error, "ends of containers are found by listing alone"));
        Exits { holder: holder.ok().map(Arc::new), watched: HashSet::new() }
    }

    /// Watches the running containers of a listing.
    pub fn follow(&mut self, cx: &Arc<Context>, running: HashSet<String>) {
        let Some(holder) = &self.holder else { return };
        self.watched.retain(|id| running.contains(id));
        for id in running {
            if self.watched.insert(id.clone()) {
                let (cx, holder) = (cx.clone(), holder.clone());
                tokio::spawn(async move {
                    if let Ok(Some(pid)) = cx.cri.container_pid(&id).await {
                        holder.hold(id, pid);
                    }
                });
            }
        }
    }
}

/// A container's process has ended: once the runtime knows it too, its pod's worker looks.
async fn known(cx: Arc<Context>, id: String) {
    let mut uid = None;
    for _ in 0..ASK_TIMES_MAX {
        let Ok(status) = cx.cri.container_status(&id).await else { break };
        uid = status.labels.get(crate::spec::names::POD_UID).cloned();
        if status.state() != ContainerState::ContainerRunning {
            break;
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    if let Some(uid) = uid {
        cx.wake(&uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_held_process_is_told_once_and_the_thread_ends_with_its_holder() {
        let (sender, ends) = channel();
        let holder = Holder::start(move |name| sender.send(name).unwrap()).unwrap();
        let mut children: Vec<_> = (0..2).map(|_| std::process::Command::new("sleep").arg("3600").spawn().unwrap()).collect();
        for (i, child) in children.iter().enumerate() {
            holder.hold(format!("child-{i}"), i32::try_from(child.id()).unwrap());
        }
        assert!(ends.recv_timeout(Duration::from_millis(20)).is_err());
        for i in [1, 0] {
            children[i].kill().unwrap();
            assert_eq!(ends.recv_timeout(Duration::from_secs(5)).unwrap(), format!("child-{i}"));
            children[i].wait().unwrap();
        }
        drop(holder);
        assert_eq!(ends.recv_timeout(Duration::from_secs(5)), Err(std::sync::mpsc::RecvTimeoutError::Disconnected));
    }
}
