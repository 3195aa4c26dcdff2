//! Text in, text out: the files in `testdata/services` hold manifests and the transactions that follow from them.
//!
//! A file is sections that begin with `=== `: `given` (manifests that are applied), `delete KIND NAMESPACE/NAME`, and after
//! each its `transaction` and, where there are any, stale `flows`. `REGENT_REWRITE=1 cargo test -p network` writes the expected sections anew.

use std::fmt::Write;
use std::sync::Arc;

use client::{Change, Key};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::collections::BTreeMap;

use super::*;

fn facts() -> Facts {
    Facts {
        node: NodeFacts { name: "here".into(), zone: Some("z1".into()), view: None },
        cluster_cidr: Some("10.244.0.0/16".parse().unwrap()),
        service_cidr: Some("10.96.0.0/16".parse().unwrap()),
        left_alone: vec!["10.96.0.10".parse().unwrap()],
    }
}

#[derive(Default)]
struct World {
    services: BTreeMap<Key, Arc<Service>>,
    slices: BTreeMap<Key, Arc<EndpointSlice>>,
}

impl World {
    fn apply(&mut self, plan: &mut Plan, manifest: &str) {
        let value: serde_json::Value = serde_saphyr::from_str(manifest).expect("a manifest");
        match value["kind"].as_str() {
            Some("Service") => {
                let new: Arc<Service> = Arc::new(serde_json::from_value(value).expect("a Service"));
                let old = self.services.insert(Key::of(new.as_ref()), new.clone());
                plan.service(&Change::Applied { old, new });
            }
            Some("EndpointSlice") => {
                let new: Arc<EndpointSlice> = Arc::new(serde_json::from_value(value).expect("an EndpointSlice"));
                let old = self.slices.insert(Key::of(new.as_ref()), new.clone());
                plan.slice(&Change::Applied { old, new });
            }
            kind => panic!("kind {kind:?}"),
        }
    }

    fn delete(&mut self, plan: &mut Plan, what: &str) {
        let (kind, name) = what.split_once(' ').expect("KIND NAMESPACE/NAME");
        let (namespace, name) = name.split_once('/').expect("NAMESPACE/NAME");
        let key = Key::new(namespace, name);
        match kind {
            "Service" => plan.service(&Change::Deleted(self.services.remove(&key).expect("a known Service"))),
            "EndpointSlice" => plan.slice(&Change::Deleted(self.slices.remove(&key).expect("a known slice"))),
            kind => panic!("kind {kind:?}"),
        }
    }
}

fn run(text: &str) -> String {
    let mut out = String::new();
    let mut plan = Plan::new(facts());
    let mut world = World::default();
    for section in text.split("=== ").filter(|s| !s.trim().is_empty()) {
        let (title, body) = section.split_once('\n').unwrap_or((section, ""));
        match title.split_once(' ').unwrap_or((title, "")) {
            ("given", _) => {
                for manifest in body.split("---\n").filter(|m| !m.trim().is_empty()) {
                    world.apply(&mut plan, manifest);
                }
            }
            ("delete", what) => world.delete(&mut plan, what),
            ("transaction" | "flows", _) => continue,
            _ => {
                let _ = write!(out, "=== {section}");
                continue;
            }
        }
        let _ = writeln!(out, "=== {}", section.trim_end());
        let flushes = plan.renew();
        let _ = write!(out, "=== transaction\n{}", plan.table().changes().unwrap_or_default());
        plan.table_mut().committed();
        if !flushes.is_empty() {
            out.push_str("=== flows\n");
            for flush in flushes {
                let _ = writeln!(out, "{}", flush.arguments().join(" "));
            }
        }
    }
    out
}

#[test]
fn scenarios() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/services");
    let rewrite = std::env::var_os("REGENT_REWRITE").is_some();
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let expected = std::fs::read_to_string(&path).unwrap();
        let got = run(&expected);
        if rewrite {
            std::fs::write(&path, &got).unwrap();
        } else {
            assert_eq!(got, expected, "{}", path.display());
        }
        seen += 1;
    }
    assert!(seen > 0);
}

#[test]
fn base_text() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/base.nft");
    let got = rules::base(&facts());
    if std::env::var_os("REGENT_REWRITE").is_some() {
        std::fs::write(path, &got).unwrap();
    }
    assert_eq!(got, std::fs::read_to_string(path).unwrap());
}

#[test]
fn waits_grow_to_a_limit() {
    assert_eq!([0, 1, 2, 5, 6, 99].map(retry_ms), [100, 200, 400, 3200, 5000, 5000]);
}
