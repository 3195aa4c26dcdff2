//! Devices are given to claims: by node, selectors, constraints and taints, each once; and what is missing is said.

use super::*;
use crate::scenario::{node, pod};
use crate::snapshot::NodeInfo;

const DRIVER: &str = "gpu.example.com";

/// A slice of one pool: on one node, or everywhere.
fn slice(node: &str, devices: Value) -> Value {
    let mut spec = json!({"driver": DRIVER, "pool": {"name": format!("pool-{node}"), "generation": 1, "resourceSliceCount": 1}, "devices": devices});
    match node {
        "" => spec["allNodes"] = json!(true),
        name => spec["nodeName"] = json!(name),
    }
    json!({"spec": spec})
}

fn model(name: &str, model: &str) -> Value {
    json!({"name": name, "attributes": {"model": {"string": model}}})
}

fn claim(requests: Value, constraints: Value) -> Value {
    json!({"metadata": {"name": "c"}, "spec": {"devices": {"requests": requests, "constraints": constraints}}})
}

fn exactly(name: &str, count: u32, expression: &str) -> Value {
    let selectors = if expression.is_empty() { json!([]) } else { json!([{"cel": {"expression": expression}}]) };
    json!({"name": name, "exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": count, "selectors": selectors}})
}

fn devices(slices: &[Value], claim: Value) -> Devices {
    let mut devices = Devices::default();
    devices.set_class("gpu", Some(&json!({"spec": {"selectors": [{"cel": {"expression": format!("device.driver == '{DRIVER}'")}}]}})));
    for (number, slice) in slices.iter().enumerate() {
        devices.set_slice(&number.to_string(), Some(slice));
    }
    devices.set_claim(Key::new("default", "c"), Some(claim));
    devices.prepare();
    devices
}

const POD: &str = r#"patch={"spec": {"resourceClaims": [{"name": "d", "resourceClaimName": "c"}]}}"#;

/// The devices that the pod's claim gets on a node, or why not.
fn on(devices: &Devices, name: &str) -> Result<String, String> {
    let plan = devices.needs(&pod("p", POD))?.on(&NodeInfo::of(node(name, "")))?;
    let results = plan[0].allocation.as_ref().map(|allocation| allocation["devices"]["results"].clone()).unwrap_or_default();
    let shown = |result: &Value| format!("{}={}", result["request"].as_str().unwrap_or_default(), result["device"].as_str().unwrap_or_default());
    Ok(results.as_array().into_iter().flatten().map(shown).collect::<Vec<_>>().join(" "))
}

#[test]
fn a_claim_gets_devices_of_the_node() {
    let slices = [slice("n1", json!([model("a", "small"), model("b", "big")])), slice("n2", json!([model("x", "small")]))];
    let big = format!("device.attributes['{DRIVER}'].model == 'big'");
    let found = devices(&slices, claim(json!([exactly("r", 1, &big)]), json!([])));
    assert_eq!(on(&found, "n1"), Ok("r=b".into()));
    assert_eq!(on(&found, "n2"), Err("cannot allocate all claims".into()));
    let found = devices(&slices, claim(json!([exactly("r", 1, ""), exactly("s", 1, "")]), json!([])));
    assert_eq!(on(&found, "n1"), Ok("r=a s=b".into()));
    assert_eq!(on(&found, "n2"), Err("cannot allocate all claims".into()));
    let all = json!([{"name": "r", "exactly": {"deviceClassName": "gpu", "allocationMode": "All"}}]);
    assert_eq!(on(&devices(&slices, claim(all, json!([]))), "n1"), Ok("r=a r=b".into()));
    let first = json!([{"name": "r", "firstAvailable": [
        {"name": "best", "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2},
        {"name": "good", "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1}]}]);
    let found = devices(&slices, claim(first, json!([])));
    assert_eq!((on(&found, "n1"), on(&found, "n2")), (Ok("r/best=a r/best=b".into()), Ok("r/good=x".into())));
}

#[test]
fn constraints_hold_across_requests() {
    let slices = [slice("n1", json!([model("a", "small"), model("b", "big"), model("c", "big")]))];
    let alike = json!([{"matchAttribute": format!("{DRIVER}/model")}]);
    let found = devices(&slices, claim(json!([exactly("r", 2, "")]), alike));
    assert_eq!(on(&found, "n1"), Ok("r=b r=c".into()), "the first choice was no good");
    let different = json!([{"distinctAttribute": format!("{DRIVER}/model")}]);
    assert_eq!(on(&devices(&slices, claim(json!([exactly("r", 2, "")]), different)), "n1"), Ok("r=a r=b".into()));
}

#[test]
fn a_device_is_given_once() {
    let slices = [slice("n1", json!([model("a", "small")]))];
    let mut found = devices(&slices, claim(json!([exactly("r", 1, "")]), json!([])));
    let plan = found.plan(&pod("p", POD), &NodeInfo::of(node("n1", "")));
    let allocation = plan[0].allocation.clone().unwrap();
    assert_eq!(allocation["nodeSelector"]["nodeSelectorTerms"][0]["matchFields"][0]["values"], json!(["n1"]));
    found.choose("uid-p", &plan);
    found.set_claim(Key::new("default", "d"), Some(claim(json!([exactly("r", 1, "")]), json!([]))));
    let other = || pod("o", &POD.replace("\"c\"", "\"d\""));
    let on_n1 = |found: &Devices| found.needs(&other()).unwrap().on(&NodeInfo::of(node("n1", ""))).map(|plan| plan.len());
    assert_eq!(on_n1(&found), Err("cannot allocate all claims".into()), "chosen for another pod");
    assert!(found.needs(&pod("q", POD)).is_err(), "the claim is being given its devices");
    // Now it is written: the pod is tied to the node, and others still get nothing.
    let mut written = claim(json!([exactly("r", 1, "")]), json!([]));
    written["status"] = json!({"allocation": allocation, "reservedFor": [{"resource": "pods", "name": "p", "uid": "uid-p"}]});
    found.set_claim(Key::new("default", "c"), Some(written));
    found.release("uid-p");
    assert_eq!(on_n1(&found), Err("cannot allocate all claims".into()));
    assert_eq!(on(&found, "n2"), Err("resourceclaim not available on the node".into()));
    let needs = found.needs(&pod("q", POD)).unwrap();
    let plan = needs.on(&NodeInfo::of(node("n1", ""))).unwrap();
    assert!(plan.len() == 1 && plan[0].allocation.is_none(), "another pod is only entered: {plan:?}");
}

#[test]
fn what_is_missing_is_said() {
    let why = |found: &Devices, spec: &str| found.needs(&pod("p", spec)).err().unwrap_or_default();
    let mut found = devices(&[], claim(json!([exactly("r", 1, "")]), json!([])));
    assert_eq!(on(&found, "n1"), Err("cannot allocate all claims".into()));
    assert_eq!(why(&found, &POD.replace("\"c\"", "\"other\"")), "resourceclaim \"other\" not found");
    let template = r#"patch={"spec": {"resourceClaims": [{"name": "d", "resourceClaimTemplateName": "t"}]}}"#;
    assert_eq!(why(&found, template), "pod \"default/p\": ResourceClaim not created yet");
    found.set_class("gpu", None);
    assert_eq!(why(&found, POD), "request r: device class gpu does not exist");
    assert_eq!(on(&devices(&[slice("", json!([model("a", "x")]))], claim(json!([exactly("r", 1, "")]), json!([]))), "n9"), Ok("r=a".into()));
}

#[test]
fn tainted_and_unfinished_offers_are_left_alone() {
    let mut tainted = model("a", "small");
    tainted["taints"] = json!([{"key": "broken", "value": "yes", "effect": "NoSchedule"}]);
    let found = devices(&[slice("n1", json!([tainted.clone()]))], claim(json!([exactly("r", 1, "")]), json!([])));
    assert!(on(&found, "n1").is_err());
    let mut request = exactly("r", 1, "");
    request["exactly"]["tolerations"] = json!([{"key": "broken", "operator": "Exists"}]);
    assert_eq!(on(&devices(&[slice("n1", json!([tainted]))], claim(json!([request]), json!([]))), "n1"), Ok("r=a".into()));
    let mut part = slice("n1", json!([model("a", "small")]));
    part["spec"]["pool"]["resourceSliceCount"] = json!(2);
    assert!(on(&devices(&[part], claim(json!([exactly("r", 1, "")]), json!([]))), "n1").is_err(), "the pool is not whole");
}
