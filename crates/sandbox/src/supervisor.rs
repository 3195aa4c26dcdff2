//! The init of a node: PID 1 of its namespaces. Starts its components, reaps every orphan, starts again what died,
//! and takes orders on a socket.
//!
//! One thread waits for children; each connection to the socket is one order, one line of JSON each way. The state is
//! behind one lock, held while a component is spawned, so that its end cannot be seen before its PID is known.

use crate::{
    Doing, Error, Result, launch,
    plan::{Component, Node},
};
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    process::{Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a component may take to end when asked, in seconds; then it is killed.
const STOP_GRACE_S: u64 = 10;
/// Pause before a component that died is started again, in milliseconds.
const RESTART_PAUSE_MS: u64 = 500;
/// How long an order may take, in seconds.
const ORDER_TIMEOUT_S: u64 = 30;

/// Connections that may wait for a component that is away.
const BACKLOG: i32 = 128;
/// The first descriptor that a component is given: sd_listen_fds(3).
const FIRST_GIVEN: i32 = 3;

/// What a node's init can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "order")]
pub enum Order {
    /// Start every component (once the link is plugged in).
    Boot,
    Start {
        component: String,
    },
    /// Ends a component and keeps it down. `kill`: by SIGKILL, at once.
    Stop {
        component: String,
        kill: bool,
    },
    /// Halts a component and what it has started, where they stand.
    Pause {
        component: String,
    },
    /// Lets a halted component go on.
    Resume {
        component: String,
    },
    Status,
}

/// A component as the init sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    pub name: String,
    /// Its PID inside the node; `None` if it does not run.
    pub pid: Option<i32>,
    pub wanted: bool,
    /// Times that it was started since the node's boot.
    pub starts: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Done(Vec<State>),
    Failed(String),
}

/// Gives an order to a node's init and returns the states of its components.
pub fn order(node: &Node, order: &Order) -> Result<Vec<State>> {
    let path = node.control_socket();
    let refused = || Error::Refused(format!("{} is off; start it with `regent sandbox start {}`", node.name, node.name));
    let mut stream = UnixStream::connect(&path).map_err(|_| refused())?;
    stream.set_read_timeout(Some(Duration::from_secs(ORDER_TIMEOUT_S))).doing(|| format!("asking {}", node.name))?;
    let text = serde_json::to_string(order).map_err(|e| Error::Refused(e.to_string()))?;
    writeln!(stream, "{text}").doing(|| format!("asking {}", node.name))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).doing(|| format!("asking {}", node.name))?;
    match serde_json::from_str(&line) {
        Ok(Answer::Done(states)) => Ok(states),
        Ok(Answer::Failed(why)) => Err(Error::Refused(why)),
        Err(_) => Err(refused()),
    }
}

struct Process {
    component: Component,
    state: State,
    restart_at: Option<Instant>,
    /// Those that it is given, once it was started.
    sockets: Vec<OwnedFd>,
}

struct Init {
    node: Node,
    processes: Mutex<BTreeMap<String, Process>>,
    /// Signalled when a component was started or has ended.
    changed: Condvar,
}

/// The body of `regent sandbox-init FILE`. Never returns while the node is on.
pub fn run(configuration: &std::path::Path) -> Result<()> {
    let node = launch::read(configuration)?;
    launch::furnish(&node)?;
    let processes = node.components.iter().map(|component| {
        let state = State { name: component.name.clone(), pid: None, wanted: false, starts: 0 };
        (component.name.clone(), Process { component: component.clone(), state, restart_at: None, sockets: Vec::new() })
    });
    let init = Arc::new(Init { processes: Mutex::new(processes.collect()), changed: Condvar::new(), node });
    let listener = UnixListener::bind(init.node.control_socket()).doing(|| "listening for orders".to_string())?;
    let orders = init.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let init = orders.clone();
            std::thread::spawn(move || init.serve(stream));
        }
    });
    let restarts = init.clone();
    std::thread::spawn(move || restarts.keep_running());
    init.reap()
}

/// A datagram socket and a listening one at an address that need not be there yet, as systemd opens them (`FreeBind=`).
fn listen(address: SocketAddr) -> std::io::Result<Vec<OwnedFd>> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
    let open = |kind| -> std::io::Result<OwnedFd> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_ip_freebind(&socket, true)?;
        bind(&socket, &address)?;
        Ok(socket)
    };
    let (datagrams, streams) = (open(SocketType::DGRAM)?, open(SocketType::STREAM)?);
    listen(&streams, BACKLOG)?;
    Ok(vec![datagrams, streams])
}

impl Init {
    fn processes(&self) -> MutexGuard<'_, BTreeMap<String, Process>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for children for ever: components, and orphans that containers' shims leave.
    fn reap(&self) -> Result<()> {
        loop {
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) => {
                    let mut processes = self.processes();
                    let pid = pid.as_raw_nonzero().get();
                    if let Some(process) = processes.values_mut().find(|p| p.state.pid == Some(pid)) {
                        println!("{} (PID {pid}) ended: {status:?}", process.state.name);
                        process.state.pid = None;
                        if process.state.wanted {
                            process.restart_at = Some(Instant::now() + Duration::from_millis(RESTART_PAUSE_MS));
                        }
                        self.changed.notify_all();
                    }
                }
                // No child yet: wait for one.
                Ok(None) | Err(_) => {
                    let guard = self.processes();
                    if guard.values().all(|p| p.state.pid.is_none()) {
                        let _ = self.changed.wait_timeout(guard, Duration::from_millis(200));
                    }
                }
            }
        }
    }

    /// Starts again what died unasked, after a pause.
    fn keep_running(&self) {
        let mut processes = self.processes();
        loop {
            let now = Instant::now();
            let due: Vec<String> = processes
                .iter()
                .filter(|(_, p)| p.state.wanted && p.state.pid.is_none() && p.restart_at.is_some_and(|at| at <= now))
                .map(|(n, _)| n.clone())
                .collect();
            for name in due {
                if let Some(process) = processes.get_mut(&name) {
                    self.spawn(process);
                }
            }
            processes = self.changed.wait_timeout(processes, Duration::from_millis(100)).map_or_else(|e| e.into_inner().0, |(guard, _)| guard);
        }
    }

    fn spawn(&self, process: &mut Process) {
        process.state.wanted = true;
        process.restart_at = None;
        if process.state.pid.is_some() {
            return;
        }
        let component = &process.component;
        let sockets = &mut process.sockets;
        let mut attempt = || -> std::io::Result<i32> {
            let log = fs::File::options().create(true).append(true).open(self.node.log(&component.name))?;
            let [program, arguments @ ..] = &component.command[..] else { return Err(std::io::Error::other("no command")) };
            let mut command = Command::new(program);
            command.args(arguments).envs(component.environment.iter().cloned()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            if let Some(address) = component.sockets {
                if sockets.is_empty() {
                    *sockets = listen(address)?;
                }
                let given = sockets.iter().zip(FIRST_GIVEN..).map(|(socket, child_fd)| Ok(FdMapping { parent_fd: socket.try_clone()?, child_fd }));
                let given = given.collect::<std::io::Result<Vec<_>>>()?;
                command.env("LISTEN_FDS", given.len().to_string()).fd_mappings(given).map_err(std::io::Error::other)?;
            }
            let child = command.spawn()?;
            i32::try_from(child.id()).map_err(std::io::Error::other)
        };
        process.state.starts += 1;
        match attempt() {
            Ok(pid) => process.state.pid = Some(pid),
            Err(error) => {
                println!("{} cannot start: {error}", component.name);
                process.restart_at = Some(Instant::now() + Duration::from_secs(5));
            }
        }
        self.changed.notify_all();
    }

    fn serve(&self, mut stream: UnixStream) {
        let mut line = String::new();
        let Ok(clone) = stream.try_clone() else { return };
        if BufReader::new(clone).read_line(&mut line).is_err() {
            return;
        }
        let answer = match serde_json::from_str::<Order>(&line).map_err(|e| e.to_string()).and_then(|order| self.obey(order)) {
            Ok(()) => Answer::Done(self.processes().values().map(|p| p.state.clone()).collect()),
            Err(why) => Answer::Failed(why),
        };
        let _ = writeln!(stream, "{}", serde_json::to_string(&answer).unwrap_or_default());
    }

    fn obey(&self, order: Order) -> std::result::Result<(), String> {
        let mut processes = self.processes();
        let names = processes.keys().cloned().collect::<Vec<_>>().join(", ");
        let unknown = |component: &str| format!("{} has no component {component}; it has {names}", self.node.name);
        match order {
            Order::Status => {}
            Order::Boot => processes.values_mut().for_each(|process| self.spawn(process)),
            Order::Start { component } => {
                let process = processes.get_mut(&component).ok_or_else(|| unknown(&component))?;
                self.spawn(process);
            }
            Order::Pause { component } | Order::Resume { component } if !processes.contains_key(&component) => return Err(unknown(&component)),
            Order::Pause { component } => signal_family(&processes, &component, Signal::STOP)?,
            Order::Resume { component } => signal_family(&processes, &component, Signal::CONT)?,
            Order::Stop { component, kill } => {
                // One that is halted could not hear that it shall end.
                let _ = signal_family(&processes, &component, Signal::CONT);
                let process = processes.get_mut(&component).ok_or_else(|| unknown(&component))?;
                process.state.wanted = false;
                process.restart_at = None;
                let mut signal = if kill { Signal::KILL } else { Signal::TERM };
                let mut deadline = Instant::now() + Duration::from_secs(STOP_GRACE_S);
                if let Some(pid) = process.state.pid.and_then(Pid::from_raw) {
                    let _ = kill_process(pid, signal);
                }
                while let Some(pid) = processes.get(&component).and_then(|p| p.state.pid).and_then(Pid::from_raw) {
                    if Instant::now() > deadline {
                        if signal == Signal::KILL {
                            return Err(format!("{component} (PID {}) does not die", pid.as_raw_nonzero()));
                        }
                        signal = Signal::KILL;
                        deadline = Instant::now() + Duration::from_secs(STOP_GRACE_S);
                        let _ = kill_process(pid, signal);
                    }
                    processes = self.changed.wait_timeout(processes, Duration::from_millis(50)).map_or_else(|e| e.into_inner().0, |(guard, _)| guard);
                }
            }
        }
        Ok(())
    }
}

/// Sends a signal to a component's process and its descendants. Those whose parent has ended belong to nobody here.
fn signal_family(processes: &BTreeMap<String, Process>, component: &str, signal: Signal) -> std::result::Result<(), String> {
    let first = processes.get(component).and_then(|p| p.state.pid).ok_or_else(|| format!("{component} does not run"))?;
    let parents: Vec<(i32, i32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    for pid in family(first, &parents) {
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = kill_process(pid, signal);
        }
    }
    Ok(())
}

/// A process and its descendants, given every process with its parent.
fn family(first: i32, parents: &[(i32, i32)]) -> Vec<i32> {
    let mut found = vec![first];
    let mut i = 0;
    while let Some(parent) = found.get(i).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        i += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_a_process_and_its_descendants() {
        assert_eq!(family(7, &[(7, 1), (8, 7), (9, 8), (10, 1), (11, 7)]), [7, 8, 11, 9]);
    }
}
