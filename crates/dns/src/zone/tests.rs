//! Text in, text out: `testdata/zone.txt` holds manifests, then questions (`? NAME TYPE`) each with its answer.
//!
//! `REGENT_REWRITE=1 cargo test -p dns` writes the answers anew.

use std::fmt::Write;

use super::*;

/// A zone of these manifests, separated by `---` lines.
pub(crate) fn zone(manifests: &str) -> Zone {
    let mut zone = Zone::new("cluster.local").unwrap();
    for manifest in manifests.split("---\n").filter(|m| !m.trim().is_empty()) {
        let value: serde_json::Value = serde_saphyr::from_str(manifest).expect("a manifest");
        match value["kind"].as_str() {
            Some("Service") => zone.service(&Change::Applied { old: None, new: Arc::new(serde_json::from_value(value).unwrap()) }),
            Some("EndpointSlice") => zone.slice(&Change::Applied { old: None, new: Arc::new(serde_json::from_value(value).unwrap()) }),
            kind => panic!("kind {kind:?}"),
        }
    }
    zone
}

fn text(answer: &Answer) -> String {
    let mut out = String::new();
    match answer {
        Answer::Elsewhere => out.push_str("elsewhere\n"),
        Answer::Alias(record, target) => {
            let _ = writeln!(out, "{record}\ngo on with {target}");
        }
        Answer::Here(records) => {
            let _ = writeln!(out, "{:?}", records.code);
            for record in &records.answers {
                let _ = writeln!(out, "{record}");
            }
            for record in &records.authorities {
                let _ = writeln!(out, "authority {} {}", record.name, record.record_type());
            }
            for record in &records.additionals {
                let _ = writeln!(out, "additional {record}");
            }
        }
    }
    out
}

#[test]
fn questions_and_answers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/zone.txt");
    let expected = std::fs::read_to_string(path).unwrap();
    let (manifests, questions) = expected.split_once("=== questions\n").unwrap();
    let zone = zone(manifests);
    let mut got = format!("{manifests}=== questions\n");
    for line in questions.lines() {
        if line.starts_with('#') {
            let _ = writeln!(got, "{line}");
        }
        let Some(question) = line.strip_prefix("? ") else { continue };
        let (name, kind) = question.split_once(' ').unwrap();
        let answer = zone.answer(&Name::from_ascii(name).unwrap(), kind.parse().unwrap());
        let _ = write!(got, "? {question}\n{}", text(&answer));
    }
    if std::env::var_os("REGENT_REWRITE").is_some() {
        std::fs::write(path, &got).unwrap();
    } else {
        assert_eq!(got, expected);
    }
}

#[test]
fn what_goes_leaves_nothing_behind() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/zone.txt");
    let manifests = std::fs::read_to_string(path).unwrap();
    let mut zone = zone(manifests.split("=== questions\n").next().unwrap());
    for service in zone.services.values().cloned().collect::<Vec<_>>() {
        zone.service(&Change::Deleted(service));
    }
    for slice in zone.slices.values().flat_map(BTreeMap::values).cloned().collect::<Vec<_>>() {
        zone.slice(&Change::Deleted(slice));
    }
    assert!(zone.services.is_empty() && zone.slices.is_empty() && zone.namespaces.is_empty());
    assert!(zone.service_by_ip.is_empty() && zone.services_by_endpoint.is_empty());
}

#[test]
fn a_headless_name_leaves_out_who_is_lost_or_not_ready_but_never_everybody() {
    use membership::{Endpoint, Health, view::Member};
    let mut zone = zone(
        "kind: Service\nmetadata: {name: db, namespace: d}\nspec: {clusterIP: None, ports: [{port: 5432}]}\n---\n\
         kind: EndpointSlice\nmetadata: {name: db-1, namespace: d, labels: {kubernetes.io/service-name: db}}\naddressType: IPv4\n\
         ports: [{port: 5432}]\nendpoints:\n\
         - {addresses: [10.244.1.2], nodeName: a, hostname: db-0, targetRef: {kind: Pod, uid: pod-a}}\n\
         - {addresses: [10.244.2.2], nodeName: b, hostname: db-1, targetRef: {kind: Pod, uid: pod-b}}\n",
    );
    let view = |dead: &[&str], unready: &[&str]| {
        let mut view = View { me: "here".into(), majority: true, ..View::default() };
        for name in ["here", "a", "b"] {
            let reachable = !dead.contains(&name);
            let health = if reachable { Health::Alive } else { Health::Dead };
            let address = "172.30.0.21:7946".parse().unwrap();
            view.nodes.insert(name.into(), Member { health, reachable, cut: false, address, api_reachable: false, since_unix_ms: 0 });
        }
        for (name, address) in [("a", [10, 244, 1, 2]), ("b", [10, 244, 2, 2])] {
            let ready = !unready.contains(&name);
            let endpoint = Endpoint { address: address.into(), ready, serving: ready, version: 1 };
            view.endpoints.insert(name.into(), Arc::new(BTreeMap::from([(format!("pod-{name}"), endpoint)])));
        }
        Some(Arc::new(view))
    };
    let mut check = |dead: &[&str], unready: &[&str], expected: &[&str]| {
        zone.view(view(dead, unready));
        let answer = text(&zone.answer(&Name::from_ascii("db.d.svc.cluster.local.").unwrap(), RecordType::A));
        let found: Vec<&str> = answer.lines().filter_map(|line| line.rsplit_once(" A ").map(|(_, address)| address)).collect();
        assert_eq!(found, expected, "dead {dead:?}, not ready {unready:?}: {answer}");
    };
    check(&[], &[], &["10.244.1.2", "10.244.2.2"]);
    check(&["b"], &[], &["10.244.1.2"]);
    check(&["a", "b"], &[], &["10.244.1.2", "10.244.2.2"]);
    check(&[], &["a"], &["10.244.2.2"]);
}
