//! The kinds beside a real API server: objects that were sent to Kubernetes v1.36, and what it made of them.
//!
//! Each line of `facts/answers.jsonl` is one create: the body, and the stored object or the causes of its refusal.
//! Only hooks are tested: what admission and allocation add is taken out of the answers before they are compared.

use api::{Catalogue, Kind, Value, field::Errors, object::ObjectExt, request::FieldValidation, structure};
use serde_json::json;

const ANSWERS: &str = include_str!("../facts/answers.jsonl");

/// Runs an object through the hooks as the pipeline does. Gives what would be stored, or what is wrong.
fn create(kind: &Kind, version: &str, mut object: Value) -> (Value, Errors) {
    kind.hooks.to_stored(version, &mut object);
    if kind.resource == "pods" {
        // Admission has done this before anything is judged.
        object.set_default("spec.serviceAccountName", "default");
    }
    kind.hooks.default(&mut object);
    kind.hooks.prepare_create(&mut object);
    let mut errors = Errors::default();
    api::metadata::validate_create(&object, kind, &mut errors);
    kind.hooks.validate(&object, None, &mut errors);
    if version != kind.version() || kind.stored_as.is_some() {
        kind.hooks.from_stored(version, &mut object);
    }
    (object, errors)
}

/// Takes out what is not the hooks' work.
fn without_admission(kind: &Kind, mut object: Value, body: &Value) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for key in ["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "name", "namespace", "selfLink"] {
            metadata.remove(key);
        }
    }
    match kind.resource.as_str() {
        "pods" => {
            let given = |path: &str| body.at(path).cloned();
            for key in ["spec.priority", "spec.preemptionPolicy", "spec.serviceAccountName", "spec.serviceAccount", "spec.tolerations"] {
                if given(key).is_none() || key.ends_with("tolerations") {
                    object.remove(key);
                }
            }
            let token = |v: &Value| v.str_at("name").is_some_and(|n| n.starts_with("kube-api-access-"));
            if let Some(volumes) = object.at_mut("spec.volumes").and_then(Value::as_array_mut) {
                volumes.retain(|v| !token(v));
            }
            if object.list_at("spec.volumes").is_empty() {
                object.remove("spec.volumes");
            }
            for list in ["spec.containers", "spec.initContainers"] {
                for container in object.at_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                    if let Some(mounts) = container.get_mut("volumeMounts").and_then(Value::as_array_mut) {
                        mounts.retain(|v| !token(v));
                    }
                    if container.list_at("volumeMounts").is_empty() {
                        container.remove("volumeMounts");
                    }
                }
            }
        }
        "nodes" => {
            if let Some(taints) = object.at_mut("spec.taints").and_then(Value::as_array_mut) {
                taints.retain(|t| t.str_at("key") != Some("node.kubernetes.io/not-ready"));
            }
            if object.list_at("spec.taints").is_empty() {
                object.remove("spec.taints");
            }
        }
        "persistentvolumes" | "persistentvolumeclaims" | "volumeattributesclasses" => {
            object.remove("metadata.finalizers");
        }
        "certificatesigningrequests" => {
            for key in ["spec.username", "spec.uid", "spec.groups", "spec.extra"] {
                object.remove(key);
            }
        }
        "services" => {
            for key in ["spec.clusterIP", "spec.clusterIPs", "spec.ipFamilies", "spec.ipFamilyPolicy", "spec.healthCheckNodePort"] {
                object.remove(key);
            }
            for port in object.at_mut("spec.ports").and_then(Value::as_array_mut).into_iter().flatten() {
                port.remove("nodePort");
            }
        }
        _ => {}
    }
    object
}

/// The first difference, `got` and `want` at a path; words in angle brackets stand for anything.
fn difference(got: &Value, want: &Value, path: &str) -> Option<String> {
    match (got, want) {
        (_, Value::String(word)) if word.starts_with('<') && word.ends_with('>') => None,
        (Value::Object(got), Value::Object(want)) => {
            let mut keys: Vec<&String> = got.keys().chain(want.keys()).collect();
            keys.sort();
            keys.dedup();
            keys.into_iter()
                .find_map(|key| difference(got.get(key).unwrap_or(&Value::Null), want.get(key).unwrap_or(&Value::Null), &format!("{path}.{key}")))
        }
        (Value::Array(got), Value::Array(want)) if got.len() == want.len() => {
            (0..got.len()).find_map(|i| difference(&got[i], &want[i], &format!("{path}[{i}]")))
        }
        _ if got == want => None,
        _ => Some(format!("{path}: got {got}, want {want}")),
    }
}

/// A cause with the members of a JSON value in it in order of their names.
fn ordered(cause: &str) -> String {
    let Some((start, rest)) = cause.split_once(" value: ").filter(|(_, rest)| rest.starts_with(['{', '['])) else { return cause.to_string() };
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    match values.next() {
        Some(Ok(value)) => format!("{start} value: {value}{}", &rest[values.byte_offset()..]),
        _ => cause.to_string(),
    }
}

/// The causes of a refusal in one form: of ours, and of an answer.
fn causes(errors: &Errors) -> Vec<String> {
    let mut all: Vec<String> = errors.0.iter().map(|e| ordered(&format!("{} | {}", e.field, first_line(&e.body())))).collect();
    all.sort();
    all.dedup();
    all
}
fn wanted_causes(case: &Value) -> Vec<String> {
    let text = |cause: &Value, i: usize| cause[i].as_str().unwrap_or_default().to_string();
    let mut all: Vec<String> =
        case["causes"].as_array().into_iter().flatten().map(|c| ordered(&format!("{} | {}", text(c, 1), first_line(&text(c, 2))))).collect();
    all.sort();
    all.dedup();
    all
}
/// Later lines show Go's internal structs.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_string()
}
fn same_causes(errors: &Errors, case: &Value) -> Result<(), String> {
    let (got, want) = (causes(errors), wanted_causes(case));
    let (extra, missing): (Vec<_>, Vec<_>) = (got.iter().filter(|g| !want.contains(g)).collect(), want.iter().filter(|w| !got.contains(w)).collect());
    if extra.is_empty() && missing.is_empty() { Ok(()) } else { Err(format!("extra {extra:#?} missing {missing:#?}")) }
}

/// What a case does otherwise than Kubernetes; nothing if it does the same.
fn check(catalogue: &Catalogue, case: &Value) -> Result<(), String> {
    let text = |key: &str| case[key].as_str().unwrap_or_default();
    let kind = catalogue.resource(text("group"), text("resource")).ok_or("no such kind")?;
    let mut object = case["body"].clone();
    object.set("apiVersion", if kind.group.is_empty() { text("version").to_string() } else { format!("{}/{}", kind.group, text("version")) });
    object.set("kind", kind.kind.as_str());
    if kind.namespaced_scope() {
        object.set("metadata.namespace", text("namespace"));
    }
    object.set("metadata.uid", case["answer"].str_at("metadata.uid").unwrap_or("uid-1"));
    object.set("metadata.creationTimestamp", "2026-01-02T03:04:05Z");
    if object.name().is_empty()
        && let Some(prefix) = object.str_at("metadata.generateName").map(String::from)
    {
        object.set("metadata.name", format!("{prefix}abcde"));
    }
    let (object, _) =
        structure::check_object(object, kind, text("version"), FieldValidation::Ignore).map_err(|status| format!("not decoded: {status}"))?;
    let (mut stored, errors) = create(kind, text("version"), object);
    if let Some(schema) = kind.schema(text("version")) {
        structure::complete(&mut stored, &schema);
    }
    if case["status"] == 422 {
        return same_causes(&errors, case);
    }
    if !errors.is_empty() {
        return Err(format!("refused: {errors}"));
    }
    let got = without_admission(kind, stored, &case["body"]);
    let want = without_admission(kind, case["answer"].clone(), &case["body"]);
    difference(&got, &want, "").map_or(Ok(()), Err)
}

const UPDATES: &str = include_str!("../facts/updates.jsonl");

/// Runs a write to an object that exists, as the pipeline does.
fn update(kind: &Kind, case: &Value) -> Result<(Value, Errors), String> {
    let text = |key: &str| case[key].as_str().unwrap_or_default();
    let version = text("version");
    let mut old = case["old"].clone();
    let mut new = old.clone();
    match text("type") {
        "merge" => api::merge::merge_patch(&mut new, &case["body"]),
        "strategic" => {
            new = api::merge::strategic_merge(&new, &case["body"], &*kind.schema(version).ok_or("no schema")?).map_err(|s| s.to_string())?
        }
        _ => {
            new = case["body"].clone();
            for key in [
                "apiVersion",
                "kind",
                "metadata.namespace",
                "metadata.uid",
                "metadata.creationTimestamp",
                "metadata.generation",
                "metadata.resourceVersion",
                "metadata.deletionTimestamp",
                "metadata.deletionGracePeriodSeconds",
            ] {
                if let Some(value) = old.at(key) {
                    new.set(key, value.clone());
                }
            }
        }
    }
    let (mut new, _) = structure::check_object(new, kind, version, FieldValidation::Ignore).map_err(|status| format!("not decoded: {status}"))?;
    kind.hooks.to_stored(version, &mut new);
    kind.hooks.to_stored(version, &mut old);
    kind.hooks.default(&mut new);
    let mut errors = Errors::default();
    match text("subresource") {
        "" => {
            if kind.has_status() {
                match old.get("status") {
                    Some(status) => new.set("status", status.clone()),
                    None => {
                        new.remove("status");
                    }
                }
            }
            kind.hooks.prepare_update(&mut new, &old);
            api::metadata::validate_update(&new, &old, kind, &mut errors);
            kind.hooks.validate(&new, Some(&old), &mut errors);
        }
        "status" => {
            let status = new.remove("status");
            new = old.clone();
            match status {
                Some(status) => new.set("status", status),
                None => {
                    new.remove("status");
                }
            }
            kind.hooks.prepare_status(&mut new, &old);
            kind.hooks.validate_status(&new, &old, &mut errors);
        }
        view => {
            kind.hooks.prepare_view(view, &mut new, &old);
            kind.hooks.validate_view(view, &new, &old, &mut errors);
        }
    }
    kind.hooks.from_stored(version, &mut new);
    if let Some(schema) = kind.schema(version) {
        structure::complete(&mut new, &schema);
    }
    Ok((new, errors))
}

fn check_update(catalogue: &Catalogue, case: &Value) -> Result<(), String> {
    let text = |key: &str| case[key].as_str().unwrap_or_default();
    let kind = catalogue.resource(text("group"), text("resource")).ok_or("no such kind")?;
    let (new, errors) = update(kind, case)?;
    if case["status"] == 422 {
        return same_causes(&errors, case);
    }
    if !errors.is_empty() {
        return Err(format!("refused: {errors}"));
    }
    let strip = |mut object: Value| {
        for key in ["resourceVersion", "generation", "managedFields"] {
            object.remove(&format!("metadata.{key}"));
        }
        object
    };
    difference(&strip(new), &strip(case["answer"].clone()), "").map_or(Ok(()), Err)
}

#[test]
fn updates_are_answered_as_kubernetes_does() {
    let catalogue = Catalogue::built_in();
    let filter = std::env::var("ANSWERS").unwrap_or_default();
    let text = std::env::var("UPDATES_FILE").ok().map(|p| std::fs::read_to_string(p).expect("readable"));
    let (mut wrong, mut count) = (vec![], 0);
    for line in text.as_deref().unwrap_or(UPDATES).lines().filter(|line| !line.is_empty()) {
        let case: Value = serde_json::from_str(line).expect("the facts are JSON");
        let id = case["id"].as_str().unwrap_or_default();
        if !id.contains(&filter) && case["resource"] != filter.as_str() {
            continue;
        }
        count += 1;
        if let Err(problem) = check_update(&catalogue, &case) {
            wrong.push(format!("{id} ({}): {problem}", case["resource"].as_str().unwrap_or_default()));
        }
    }
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
}

const CELLS: &str = include_str!("../facts/cells.jsonl");

/// What a row says otherwise than Kubernetes.
fn check_cells(catalogue: &Catalogue, case: &Value) -> Result<(), String> {
    let text = |key: &str| case[key].as_str().unwrap_or_default();
    let kind = catalogue.resource(text("group"), text("resource")).ok_or("no such kind")?;
    let mut object = case["object"].clone();
    kind.hooks.to_stored(text("version"), &mut object);
    let got = api::table::cells(kind, &object, 1_767_323_045);
    let want = case["cells"].as_array().cloned().unwrap_or_default();
    let is_age = |cell: &Value| {
        cell.as_str().is_some_and(|c| {
            c == "<unknown>"
                || c == "<invalid>"
                || c == "<time>"
                || c.ends_with(['s', 'm', 'h', 'd', 'y']) && c.starts_with(|c: char| c.is_ascii_digit())
        })
    };
    let same = got.len() == want.len() && got.iter().zip(&want).all(|(g, w)| g == w || is_age(w) && (is_age(g) || g.is_null()));
    if same { Ok(()) } else { Err(format!("got {}, want {}", Value::from(got), Value::from(want))) }
}

#[test]
fn rows_say_what_kubernetes_says() {
    let catalogue = Catalogue::built_in();
    let text = std::env::var("CELLS_FILE").ok().map(|p| std::fs::read_to_string(p).expect("readable"));
    let mut wrong = vec![];
    for line in text.as_deref().unwrap_or(CELLS).lines().filter(|line| !line.is_empty()) {
        let case: Value = serde_json::from_str(line).expect("the facts are JSON");
        if let Err(problem) = check_cells(&catalogue, &case) {
            wrong.push(format!("{} ({}): {problem}", case["id"].as_str().unwrap_or_default(), case["resource"].as_str().unwrap_or_default()));
        }
    }
    assert!(wrong.is_empty(), "{} rows differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn hooks_answer_as_kubernetes_does() {
    let catalogue = Catalogue::built_in();
    let filter = std::env::var("ANSWERS").unwrap_or_default();
    let path = std::env::var("ANSWERS_FILE").ok();
    let text = path.map(|p| std::fs::read_to_string(p).expect("readable"));
    let mut wrong = vec![];
    let mut count = 0;
    for line in text.as_deref().unwrap_or(ANSWERS).lines().filter(|line| !line.is_empty()) {
        let case: Value = serde_json::from_str(line).expect("the facts are JSON");
        let id = case["id"].as_str().unwrap_or_default();
        if !id.contains(&filter) && case["resource"] != filter.as_str() {
            continue;
        }
        count += 1;
        if let Err(problem) = check(&catalogue, &case) {
            wrong.push(format!("{id} ({}): {problem}", case["resource"].as_str().unwrap_or_default()));
        }
    }
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn ports_and_addresses_of_services_have_rows() {
    let check = |spec: Value, status: Value, want: [&str; 4]| {
        let kind = Catalogue::built_in().resource("", "services").cloned().expect("known");
        let cells = api::table::cells(&kind, &json!({"metadata": {"name": "s"}, "spec": spec, "status": status}), 0);
        assert_eq!(cells[1..5].iter().map(|c| c.as_str().unwrap_or_default()).collect::<Vec<_>>(), want);
    };
    let port = |node: i64| json!([{"port": 8000, "protocol": "TCP", "nodePort": node}]);
    check(
        json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": port(31000)}),
        json!({}),
        ["NodePort", "10.96.0.9", "<none>", "8000:31000/TCP"],
    );
    check(
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.9", "ports": port(31000)}),
        json!({}),
        ["LoadBalancer", "10.96.0.9", "<pending>", "8000:31000/TCP"],
    );
    check(
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.9", "externalIPs": ["192.0.2.1"]}),
        json!({"loadBalancer": {"ingress": [{"hostname": "lb"}]}}),
        ["LoadBalancer", "10.96.0.9", "lb,192.0.2.1", "<none>"],
    );
}

#[test]
fn what_a_new_cluster_holds_is_valid() {
    let catalogue = Catalogue::built_in();
    let objects: Value = serde_json::from_str(include_str!("../facts/bootstrap-objects.json")).expect("the facts are JSON");
    let mut count = 0;
    for (path, list) in objects.as_object().expect("a map") {
        let parts: Vec<&str> = path.split('/').collect();
        let (group, version, resource) = match parts[..] {
            ["api", version, resource] => ("", version, resource),
            ["apis", group, version, resource] => (group, version, resource),
            _ => panic!("odd path {path}"),
        };
        let kind = catalogue.resource(group, resource).unwrap_or_else(|| panic!("{path} is unknown"));
        for object in list.as_array().expect("a list") {
            // Addresses and ports of the `kubernetes` Service come from allocation; here they are words.
            if object.to_string().contains('<') || matches!(resource, "services" | "endpoints" | "endpointslices") {
                continue;
            }
            let (_, errors) = create(kind, version, object.clone());
            let wrong: Vec<String> =
                errors.0.iter().filter(|e| !e.field.to_string().starts_with("metadata.namespace")).map(ToString::to_string).collect();
            assert!(wrong.is_empty(), "{path} {}: {wrong:?}", object.name());
            count += 1;
        }
    }
    assert!(count > 100, "only {count} objects");
}

/// What is wrong with an object as it is created.
fn refusal(group: &str, resource: &str, object: Value) -> String {
    let catalogue = Catalogue::built_in();
    let kind = catalogue.resource(group, resource).unwrap();
    let mut object = object;
    object.set("metadata.name", "a");
    if kind.namespaced_scope() {
        object.set("metadata.namespace", "d");
    }
    create(kind, kind.version(), object).1.to_string()
}

#[test]
fn rare_volumes_are_looked_at() {
    let check = |volume: Value, expected: &str| {
        let mut volume = volume;
        volume["name"] = json!("v");
        let pod = json!({"spec": {"containers": [{"name": "c", "image": "i"}], "volumes": [volume]}});
        assert_eq!(refusal("", "pods", pod), expected);
    };
    check(json!({"azureDisk": {"diskName": "d", "diskURI": "https://b/x"}}), "[]");
    check(json!({"iscsi": {"targetPortal": "1.2.3.4", "iqn": "iqn.2001-04.com.example:a", "lun": 0}}), "[]");
    check(
        json!({"iscsi": {"targetPortal": "1.2.3.4", "iqn": "eui.1234é678901234", "lun": 0}}),
        "spec.volumes[0].iscsi.iqn: Invalid value: \"eui.1234é678901234\": must be valid format",
    );
    check(
        json!({"flexVolume": {"driver": "d", "options": {"a.K8s.io/x": "y", "kubernetes.io.example.com/x": "y"}}}),
        "spec.volumes[0].flexVolume.options[a.K8s.io/x]: Invalid value: \"a.K8s.io/x\": kubernetes.io and k8s.io namespaces are reserved",
    );
    check(
        json!({"quobyte": {"registry": "a:1,b", "volume": "v"}}),
        "spec.volumes[0].quobyte.registry: Invalid value: \"a:1,b\": must be a host:port pair or multiple pairs separated by commas",
    );
    check(
        json!({"projected": {"sources": [{"clusterTrustBundle": {"path": "p"}}]}}),
        "spec.volumes[0].projected.sources[0].clusterTrustBundlePEM: Required value: either name or signerName must be specified",
    );
}

#[test]
fn fields_that_rules_join_are_looked_at_together() {
    let pod = |container: Value| {
        let mut container = container;
        container["name"] = json!("c");
        container["image"] = json!("i");
        json!({"spec": {"containers": [container], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "p"}}]}})
    };
    let found = refusal("", "pods", pod(json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x['y']"}}}]})));
    assert!(found.ends_with("error converting fieldPath: field label does not support subscript: spec.x['y']"), "{found}");
    let mut windows = pod(json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}));
    windows["spec"]["initContainers"] = json!([{"name": "d", "image": "i"}]);
    let found = refusal("", "pods", windows);
    assert!(found.contains("all containers must be HostProcess") && found.contains("spec.hostNetwork: Invalid value: false"), "{found}");

    let range = json!({"spec": {"limits": [{"type": "Container", "max": {"bogus": "1", "cpu": "2"}, "min": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "3"}}]}});
    let found = refusal("", "limitranges", range);
    assert!(found.contains("spec.limits[0].max[bogus]: Invalid value: \"bogus\": must be a standard resource for containers"), "{found}");
    assert!(found.contains("ratio 3 is greater than max/min = 2.000000"), "{found}");

    let zones: Vec<Value> = (0..9).map(|i| json!({"name": format!("z{i}")})).collect();
    let slice = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"], "hints": {"forZones": zones}}]});
    assert_eq!(refusal("discovery.k8s.io", "endpointslices", slice), "endpoints[0].hints.forZones: Too many: 9: must have at most 8 items");

    let scaler = json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}, "maxReplicas": 2, "behavior": {"scaleUp": {"policies": []}}}});
    let found = refusal("autoscaling", "horizontalpodautoscalers", scaler);
    assert_eq!(found, "spec.behavior.scaleUp.policies: Required value: must specify at least one Policy");
}
