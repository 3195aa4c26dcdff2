//! Which API servers live: each keeps a Lease in kube-system, and from these follow the endpoints of the Service `kubernetes`.
//!
//! A server puts itself among the endpoints, and takes out whose Lease it has not seen renewed for [`LEASE`]; it never puts
//! another one in. So servers that see a death a moment apart do not write against each other. Times are this server's own,
//! by a clock that never jumps: what another server's clock says counts for nothing.
//!
//! What must stay true: while the store cannot be written, nobody's silence counts; the endpoints are never emptied; who
//! stops says so and is gone from the endpoints before it stops listening.

use crate::{Server, bootstrap};
use api::{Status, Value, object::ObjectExt};
use serde_json::json;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// How often a server renews its Lease.
pub const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How long a server may be silent before it counts as dead.
pub const LEASE: Duration = Duration::from_secs(12);
/// How often the others' Leases are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A dead server's Lease is removed after this long.
const FORGET_AFTER: Duration = Duration::from_secs(600);
const GROUP: &str = "coordination.k8s.io";
const NAMESPACE: &str = "kube-system";
/// As Kubernetes marks the Leases of its API servers.
const LABEL: (&str, &str) = ("apiserver.kubernetes.io/identity", "kube-apiserver");
const ADDRESS: &str = "regent.dev/address";

/// Another server's Lease, as this one knows it.
struct Seen {
    /// Who renewed it and when, in the other's words; only whether that changes counts.
    mark: String,
    address: Option<IpAddr>,
    changed: Instant,
}

/// What this server knows of the others.
#[derive(Default)]
struct Observer {
    seen: HashMap<String, Seen>,
}

impl Observer {
    /// Takes in all Leases as they are now.
    fn look(&mut self, leases: &[Value], now: Instant) {
        self.seen.retain(|name, _| leases.iter().any(|lease| lease.name() == name));
        for lease in leases {
            let text = |path: &str| lease.str_at(path).unwrap_or_default();
            let mark = format!("{} {}", text("spec.holderIdentity"), text("spec.renewTime"));
            let address = lease.annotation(ADDRESS).and_then(|address| address.parse().ok());
            match self.seen.get_mut(lease.name()) {
                Some(seen) if seen.mark == mark => {}
                Some(seen) => *seen = Seen { mark, address, changed: now },
                None => drop(self.seen.insert(lease.name().into(), Seen { mark, address, changed: now })),
            }
        }
    }

    /// Nobody could renew until now, so nobody's silence counts.
    fn forgive(&mut self, now: Instant) {
        self.seen.values_mut().for_each(|seen| seen.changed = now);
    }

    fn lives(&self, address: IpAddr, now: Instant) -> bool {
        self.seen.values().any(|seen| seen.address == Some(address) && now < seen.changed + LEASE)
    }

    /// Leases of servers that are long dead.
    fn forgotten(&self, now: Instant) -> Vec<String> {
        self.seen.iter().filter(|(_, seen)| now >= seen.changed + FORGET_AFTER).map(|(name, _)| name.clone()).collect()
    }
}

/// The addresses that shall stand, given those that do. `own`: whether this server itself shall be there.
fn wanted(listed: &[IpAddr], own: IpAddr, present: bool, lives: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = listed.iter().copied().filter(|address| *address != own && lives(*address)).collect();
    if present {
        all.push(own);
    }
    all.sort();
    all.dedup();
    if all.is_empty() { listed.to_vec() } else { all }
}

/// The addresses in an Endpoints or an EndpointSlice.
fn listed(object: &Value) -> Vec<IpAddr> {
    let parse = |text: Option<&str>| text.and_then(|text| text.parse().ok());
    let of_subsets =
        object.list_at("subsets").iter().flat_map(|subset| subset.list_at("addresses")).filter_map(|address| parse(address.str_at("ip")));
    let of_slice =
        object.list_at("endpoints").iter().flat_map(|endpoint| endpoint.list_at("addresses")).filter_map(|address| parse(address.as_str()));
    of_subsets.chain(of_slice).collect()
}

/// Whether this server can be reached from outside; on loopback it would lead every pod to itself.
fn reachable(server: &Server) -> bool {
    let address = server.config.advertise_address;
    !address.is_loopback() && !address.is_unspecified()
}

fn lease_name(server: &Server) -> String {
    let place = SocketAddr::new(server.config.advertise_address, server.config.secure_port).to_string();
    let plain: String = place.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("apiserver-{}", plain.trim_matches('-'))
}

/// Shows this server's presence and watches the others' until the shutdown or [`retire`].
pub(crate) async fn run(server: Arc<Server>) {
    let mut observer = Observer::default();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let identity = format!("{}_{}", lease_name(&server), uuid::Uuid::new_v4());
    let (mut renewed, mut failing): (Option<Instant>, bool) = (None, false);
    loop {
        tokio::select! {
            () = server.config.shutdown.cancelled() => return,
            () = server.health.retiring() => return,
            _ = ticks.tick() => {}
        }
        if renewed.is_none_or(|at| at.elapsed() >= RENEW_EVERY) || failing {
            let outcome = renew(&server, &identity).await;
            if let Err(status) = &outcome {
                tracing::debug!(error = %status, "this server's Lease could not be renewed; will try again");
            }
            if failing && outcome.is_ok() {
                observer.forgive(Instant::now());
            }
            failing = outcome.is_err();
            renewed = Some(Instant::now());
        }
        let now = Instant::now();
        observer.look(&leases(&server), now);
        if failing {
            continue;
        }
        if let Err(status) = publish(&server, true, |address| observer.lives(address, now)).await {
            tracing::debug!(error = %status, "the endpoints of the Service kubernetes could not be checked; will try again");
        }
        for name in observer.forgotten(now) {
            // Whoever comes back makes it anew.
            let _ = server.delete_internal(GROUP, "leases", NAMESPACE, &name).await;
        }
    }
}

/// Takes this server out of the endpoints: it is about to stop.
pub(crate) async fn retire(server: &Arc<Server>) {
    if !reachable(server) {
        return;
    }
    let name = lease_name(server);
    let left = async {
        // The others' Leases are what they are; only this server's own word is taken back.
        publish(server, false, |_| true).await?;
        match server.delete_internal(GROUP, "leases", NAMESPACE, &name).await {
            Err(status) if status.is_not_found() => Ok(()),
            other => other,
        }
    };
    if let Err(status) = left.await {
        tracing::warn!(error = %status, "this server could not be taken out of the Service kubernetes; the others will do it");
    }
}

fn leases(server: &Server) -> Vec<Value> {
    let all = server.entries(GROUP, "leases", Some(NAMESPACE)).unwrap_or_default();
    all.iter().filter(|entry| entry.label(LABEL.0) == Some(LABEL.1)).map(|entry| entry.value()).collect()
}

async fn renew(server: &Arc<Server>, identity: &str) -> Result<(), Status> {
    if !reachable(server) {
        return Ok(());
    }
    let name = lease_name(server);
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let address = server.config.advertise_address.to_string();
    let change = |lease: &mut Value| {
        lease.set_annotation(ADDRESS, &address);
        lease.set("spec.holderIdentity", identity);
        lease.set("spec.leaseDurationSeconds", LEASE.as_secs());
        lease.set("spec.renewTime", now.as_str());
        Ok(true)
    };
    match server.update_internal(GROUP, "leases", NAMESPACE, &name, "", change).await {
        Err(status) if status.is_not_found() => {
            let mut lease = json!({"metadata": {"name": name, "namespace": NAMESPACE, "labels": {LABEL.0: LABEL.1}}, "spec": {}});
            change(&mut lease)?;
            server.create_internal(GROUP, "leases", NAMESPACE, lease).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// Brings both forms of the endpoints to what they shall be.
async fn publish(server: &Arc<Server>, present: bool, lives: impl Fn(IpAddr) -> bool + Send + Sync) -> Result<(), Status> {
    if !reachable(server) {
        return Ok(());
    }
    let own = server.config.advertise_address;
    for (group, resource, fields) in [("", "endpoints", &["subsets"][..]), ("discovery.k8s.io", "endpointslices", &["endpoints", "ports"][..])] {
        let shall = |stored: Option<&Value>| {
            let addresses = wanted(&stored.map(listed).unwrap_or_default(), own, present, &lives);
            match resource {
                "endpoints" => bootstrap::kubernetes_endpoints(&addresses, server.config.secure_port),
                _ => bootstrap::kubernetes_endpoint_slice(&addresses, server.config.secure_port),
            }
        };
        let standing = server.lookup(group, resource, "default", "kubernetes")?.map(|entry| entry.value());
        if standing.is_none() && !present {
            continue;
        }
        bootstrap::ensure_same(server, group, resource, shall(standing.as_ref()), fields, |stored| shall(Some(stored))).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn lease(last: u8, renewed: &str) -> Value {
        let spec = json!({"holderIdentity": "x", "renewTime": renewed});
        json!({"metadata": {"name": format!("apiserver-{last}"), "annotations": {ADDRESS: ip(last).to_string()}}, "spec": spec})
    }

    #[test]
    fn silence_counts_from_the_last_change_that_was_seen() {
        let (start, s) = (Instant::now(), Duration::from_secs);
        let mut observer = Observer::default();
        observer.look(&[lease(1, "a"), lease(2, "a")], start);
        assert!(observer.lives(ip(1), start + s(11)) && !observer.lives(ip(3), start));
        observer.look(&[lease(1, "b"), lease(2, "a")], start + s(5));
        assert!(observer.lives(ip(1), start + s(16)) && !observer.lives(ip(2), start + s(12)));
        observer.forgive(start + s(100));
        assert!(observer.lives(ip(2), start + s(111)), "the store was away");
        observer.look(&[lease(1, "b")], start + s(101));
        assert!(!observer.lives(ip(2), start + s(101)), "it has said that it goes");
        assert_eq!(observer.forgotten(start + s(700)), ["apiserver-1"]);
    }

    #[test]
    fn a_server_adds_itself_and_removes_the_dead() {
        let check = |listed: &[u8], present: bool, living: &[u8], expected: &[u8]| {
            let ips = |list: &[u8]| list.iter().map(|last| ip(*last)).collect::<Vec<_>>();
            assert_eq!(wanted(&ips(listed), ip(2), present, |address| ips(living).contains(&address)), ips(expected));
        };
        check(&[], true, &[], &[2]);
        check(&[1], true, &[1, 3], &[1, 2]);
        check(&[1, 2, 3], true, &[3], &[2, 3]);
        check(&[1, 2, 3], false, &[1, 3], &[1, 3]);
        check(&[2], false, &[], &[2]);
    }

    #[test]
    fn both_forms_are_read_as_they_are_written() {
        let addresses = [ip(1), ip(2)];
        assert_eq!(listed(&bootstrap::kubernetes_endpoints(&addresses, 6443)), addresses);
        assert_eq!(listed(&bootstrap::kubernetes_endpoint_slice(&addresses, 6443)), addresses);
    }
}
