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
