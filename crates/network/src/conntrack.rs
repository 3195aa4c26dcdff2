//! Flows that outlive their endpoint: which ones ([`stale`], pure), and the shell that makes the kernel forget them.
//!
//! Connection tracking keeps sending a known flow where its first packet went. For UDP, which never says that it ends, a
//! client that goes on sending would never reach a new endpoint; so its flows to an endpoint that is not used any more are
//! forgotten, and so are those that began before there was any endpoint. A TCP connection to an endpoint that is only not
//! ready is let finish; one to an endpoint that has vanished is forgotten, so that its client is told with the next packet
//! instead of after minutes. Where there were no rules, as after a boot, attempts that came to nothing are forgotten.
//!
//! The flushing is done by Debian's `conntrack`, one run per flow filter, in order, beside the rules' synchronisation:
//! where the tool is missing, flows expire by themselves.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::process::Stdio;

use ipnet::Ipv4Net;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::limits;
use crate::services::endpoints::Backend;
use crate::services::rules::PortFlows;

/// A transport protocol that Services know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// From Kubernetes' spelling.
    pub fn parse(text: &str) -> Option<Protocol> {
        match text {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    /// As nft and conntrack spell it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// Where clients reach a Service port: an address, or (without one) a port on all of the node's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Front {
    /// The ClusterIP, external or load balancer address; `None` for a NodePort.
    pub address: Option<Ipv4Addr>,
    /// The port there.
    pub port: u16,
}

/// Flows to forget.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flush {
    /// Those to a Service port.
    Port {
        /// Their protocol.
        protocol: Protocol,
        /// What the client addressed.
        front: Front,
        /// Where they were sent; `None`: wherever.
        backend: Option<Ipv4Addr>,
    },
    /// TCP connections in this state to any of these addresses.
    Range {
        /// What the client addressed.
        addresses: Ipv4Net,
        /// As `conntrack` spells it.
        state: &'static str,
    },
}

/// Attempts to reach these addresses that came to nothing. Where they began before there were rules, the kernel would go on
/// passing whatever has the same ports untranslated: a client whose port is used again within two minutes is refused.
pub fn unanswered(addresses: Ipv4Net) -> [Flush; 2] {
    ["SYN_SENT", "CLOSE"].map(|state| Flush::Range { addresses, state })
}

impl Flush {
    /// The arguments of `conntrack` that forget these flows.
    pub fn arguments(&self) -> Vec<String> {
        let (protocol, mut matched) = match self {
            Flush::Port { protocol, front, backend } => {
                let address = front.address.map(|address| ["--orig-dst".to_owned(), address.to_string()]);
                let backend = backend.map(|backend| ["--dst-nat".to_owned(), backend.to_string()]);
                let port = ["--orig-port-dst".to_owned(), front.port.to_string()];
                (*protocol, address.into_iter().flatten().chain(port).chain(backend.into_iter().flatten()).collect::<Vec<_>>())
            }
            Flush::Range { addresses, state } => {
                (Protocol::Tcp, vec!["--orig-dst".to_owned(), addresses.to_string(), "--state".to_owned(), (*state).to_owned()])
            }
        };
        let mut arguments = vec!["-D".to_owned(), "-p".to_owned(), protocol.to_string()];
        arguments.append(&mut matched);
        arguments
    }
}

/// The flows that a change of one Service makes stale.
pub fn stale(old: &[PortFlows], new: &[PortFlows]) -> Vec<Flush> {
    let mut flushes = BTreeSet::new();
    for before in old {
        // Ports are matched by where clients reach them: the first front is the ClusterIP.
        let after = new.iter().find(|p| p.protocol == before.protocol && p.fronts.first() == before.fronts.first());
        let nothing = BTreeSet::new();
        let (used, known) = after.map_or((&nothing, &before.known), |p| (&p.used, &p.known));
        let gone: Vec<&Backend> = match before.protocol {
            Protocol::Udp => before.used.difference(used).collect(),
            Protocol::Tcp | Protocol::Sctp => before.known.difference(known).collect(),
        };
        for backend in gone {
            for front in &before.fronts {
                flushes.insert(Flush::Port { protocol: before.protocol, front: *front, backend: Some(backend.address) });
            }
        }
    }
    for after in new.iter().filter(|p| p.protocol == Protocol::Udp && !p.used.is_empty()) {
        let before = old.iter().find(|p| p.protocol == after.protocol && p.fronts.first() == after.fronts.first());
        for front in &after.fronts {
            let opened = before.is_none_or(|p| p.used.is_empty() || !p.fronts.contains(front));
            if opened {
                flushes.insert(Flush::Port { protocol: after.protocol, front: *front, backend: None });
            }
        }
    }
    flushes.into_iter().collect()
}

/// Takes flows to forget and forgets them in the background, in order.
#[derive(Clone, Debug)]
pub struct Flusher {
    queue: mpsc::Sender<Flush>,
}

impl Flusher {
    /// A flusher, and what it is told to forget.
    pub fn queue() -> (Flusher, mpsc::Receiver<Flush>) {
        let (queue, incoming) = mpsc::channel::<Flush>(limits::CONNTRACK_QUEUE_MAX);
        (Flusher { queue }, incoming)
    }

    /// Starts the background task; it ends with `shutdown`.
    pub fn start(shutdown: CancellationToken) -> Flusher {
        let (flusher, mut incoming) = Flusher::queue();
        tokio::spawn(async move {
            let mut missing_told = false;
            loop {
                let flush = tokio::select! {
                    _ = shutdown.cancelled() => return,
                    flush = incoming.recv() => match flush { Some(flush) => flush, None => return },
                };
                match run(&flush).await {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        if !missing_told {
                            tracing::warn!("the tool `conntrack` is not installed: stale flows expire by themselves");
                            missing_told = true;
                        }
                    }
                    Err(error) => tracing::warn!(?flush, %error, "stale flows could not be forgotten"),
                }
            }
        });
        flusher
    }

    /// Forgets these flows soon. When too many wait, they are left to expire.
    pub fn flush(&self, flushes: Vec<Flush>) {
        for flush in flushes {
            if self.queue.try_send(flush).is_err() {
                tracing::warn!("too many stale flows wait to be forgotten: the rest expire by themselves");
                return;
            }
        }
    }
}

async fn run(flush: &Flush) -> std::io::Result<()> {
    let mut command = tokio::process::Command::new("conntrack");
    command.args(flush.arguments()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let output =
        tokio::time::timeout(limits::CONNTRACK_TIMEOUT, command.output()).await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    let said = String::from_utf8_lossy(&output.stderr);
    // It exits with 1 when there was no such flow, which is as well.
    if output.status.success() || said.contains("0 flow entries") { Ok(()) } else { Err(std::io::Error::other(said.trim().to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flows(protocol: Protocol, used: &[&str], known: &[&str]) -> PortFlows {
        let set = |list: &[&str]| list.iter().map(|a| Backend { address: a.parse().unwrap(), port: 53 }).collect();
        PortFlows {
            protocol,
            fronts: vec![Front { address: Some("10.96.0.7".parse().unwrap()), port: 53 }, Front { address: None, port: 30053 }],
            used: set(used),
            known: set(known),
        }
    }

    fn text(flushes: &[Flush]) -> Vec<String> {
        flushes.iter().map(|f| f.arguments().join(" ")).collect()
    }

    #[test]
    fn udp_flows_to_an_endpoint_that_is_not_used_any_more_are_forgotten() {
        let old = [flows(Protocol::Udp, &["10.244.1.2", "10.244.1.3"], &["10.244.1.2", "10.244.1.3"])];
        let new = [flows(Protocol::Udp, &["10.244.1.2"], &["10.244.1.2", "10.244.1.3"])];
        assert_eq!(
            text(&stale(&old, &new)),
            ["-D -p udp --orig-port-dst 30053 --dst-nat 10.244.1.3", "-D -p udp --orig-dst 10.96.0.7 --orig-port-dst 53 --dst-nat 10.244.1.3",]
        );
    }

    #[test]
    fn udp_flows_that_began_before_the_first_endpoint_are_forgotten() {
        let old = [flows(Protocol::Udp, &[], &[])];
        let new = [flows(Protocol::Udp, &["10.244.1.2"], &["10.244.1.2"])];
        assert_eq!(text(&stale(&old, &new)), ["-D -p udp --orig-port-dst 30053", "-D -p udp --orig-dst 10.96.0.7 --orig-port-dst 53"]);
    }

    #[test]
    fn attempts_from_before_the_rules_are_forgotten() {
        assert_eq!(
            text(&unanswered("10.96.0.0/16".parse().unwrap())),
            ["-D -p tcp --orig-dst 10.96.0.0/16 --state SYN_SENT", "-D -p tcp --orig-dst 10.96.0.0/16 --state CLOSE"]
        );
    }

    #[test]
    fn tcp_connections_end_only_with_their_endpoint() {
        let old = [flows(Protocol::Tcp, &["10.244.1.2"], &["10.244.1.2"])];
        let unready = [flows(Protocol::Tcp, &[], &["10.244.1.2"])];
        assert_eq!(stale(&old, &unready), []);
        assert_eq!(stale(&old, &[]), []);
        let vanished = [flows(Protocol::Tcp, &[], &[])];
        assert_eq!(stale(&old, &vanished).len(), 2);
    }
}
