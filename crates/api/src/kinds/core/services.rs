//! Service. Addresses and node ports are given by the API server's allocation; here is what may be asked for.

use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind, NameRule},
    kinds::{
        checks,
        values::{each, fill, fill_absent, has, int, list, made, map, member, put, shown, strings, take, text, within},
        workload,
    },
    names,
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};
use std::collections::HashSet;

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "Service", "services")
        .short(&["svc"])
        .categories(&["all"])
        .names(NameRule::Label)
        .selectable(&["spec.clusterIP", "spec.type"])
        .create_on_update()
        .connect("proxy", ("", "", "ServiceProxyOptions"), &["create", "delete", "get", "patch", "update"])
        .status()
        .hooks(Services)
}

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const AFFINITY_TIMEOUT_DEFAULT_S: i64 = 10_800;
const AFFINITY_TIMEOUT_MAX_S: i64 = 86_400;
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";

struct Services;

fn is_load_balancer(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer"
}
fn needs_node_port(spec: &Value) -> bool {
    text(spec, "type") == "NodePort" || is_load_balancer(spec) && spec.get("allocateLoadBalancerNodePorts").and_then(Value::as_bool).unwrap_or(true)
}
fn is_headless(spec: &Value) -> bool {
    matches!(list(spec, "clusterIPs"), [only] if only == "None")
}
fn is_external_name(spec: &Value) -> bool {
    text(spec, "type") == "ExternalName"
}
/// Whether traffic from outside the cluster may come in.
fn is_external(spec: &Value) -> bool {
    matches!(text(spec, "type"), "NodePort" | "LoadBalancer") || text(spec, "type") == "ClusterIP" && !list(spec, "externalIPs").is_empty()
}
fn needs_health_check(spec: &Value) -> bool {
    is_load_balancer(spec) && text(spec, "externalTrafficPolicy") == "Local"
}

impl Hooks for Services {
    fn default(&self, service: &mut Value) {
        let spec = made(service, "spec");
        fill(spec, "sessionAffinity", "None");
        match text(spec, "sessionAffinity") {
            "None" => {
                take(spec, "sessionAffinityConfig");
            }
            "ClientIP" if spec.pointer("/sessionAffinityConfig/clientIP/timeoutSeconds").is_none_or(Value::is_null) => {
                put(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": AFFINITY_TIMEOUT_DEFAULT_S}}));
            }
            _ => {}
        }
        fill(spec, "type", "ClusterIP");
        each(spec, "ports", |port| {
            fill(port, "protocol", "TCP");
            if matches!(port.get("targetPort"), None | Some(Value::Null)) || port["targetPort"] == 0 || port["targetPort"] == "" {
                let number = port.get("port").cloned().unwrap_or(json!(0));
                put(port, "targetPort", number);
            }
        });
        if is_external(spec) {
            fill(spec, "externalTrafficPolicy", "Cluster");
        }
        if !is_external_name(spec) {
            fill_absent(spec, "internalTrafficPolicy", "Cluster");
        }
        if is_load_balancer(spec) {
            fill(spec, "allocateLoadBalancerNodePorts", true);
        }
        if !is_load_balancer(workload::spec(service)) {
            return;
        }
        within(service, "status", |status| {
            within(status, "loadBalancer", |balancer| {
                each(balancer, "ingress", |ingress| {
                    if !text(ingress, "ip").is_empty() {
                        fill_absent(ingress, "ipMode", "VIP");
                    }
                })
            })
        });
    }
    fn prepare_create(&self, service: &mut Value) {
        put(service, "status", json!({"loadBalancer": {}}));
        within(service, "spec", normalize_create);
    }
    fn prepare_update(&self, service: &mut Value, old: &Value) {
        let old = workload::spec(old);
        within(service, "spec", |spec| {
            normalize_update(spec, old);
            keep_allocated(spec, old);
            drop_left_over(spec, old);
        });
        if is_load_balancer(old) && !is_load_balancer(workload::spec(service)) {
            within(service, "status", |status| put(status, "loadBalancer", json!({})));
        }
    }
    fn warnings(&self, service: &Value, _old: Option<&Value>) -> Vec<String> {
        warnings(service)
    }
    fn status_warnings(&self, service: &Value) -> Vec<String> {
        let path = Path::new("status").child("loadBalancer").child("ingress");
        let addresses = service.list_at("status.loadBalancer.ingress").iter().enumerate();
        addresses.filter_map(|(i, address)| checks::ip_warning(text(address, "ip"), &path.index(i))).collect()
    }
    fn validate(&self, service: &Value, old: Option<&Value>, errors: &mut Errors) {
        let (spec, path) = (workload::spec(service), Path::new("spec"));
        if let Some(old) = old.map(workload::spec) {
            immutable_addresses(spec, old, &path, errors);
            immutable_families(spec, old, &path, errors);
            load_balancer_class(spec, Some(old), &path, errors);
            let port = |spec: &Value| int(spec, "healthCheckNodePort").unwrap_or(0);
            if needs_health_check(old) && needs_health_check(spec) && port(old) != port(spec) {
                errors.forbidden(path.child("healthCheckNodePort"), checks::IMMUTABLE);
            }
        }
        if let (Some(mode), Some(hints)) = (service.annotation(TOPOLOGY_MODE), service.annotation(TOPOLOGY_HINTS))
            && mode != hints
        {
            let at = Path::new("metadata").child("annotations").key(TOPOLOGY_MODE);
            errors.invalid(at, mode, &format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified"));
        }
        if list(spec, "ports").is_empty() && !is_headless(spec) && !is_external_name(spec) {
            errors.required(path.child("ports"), "");
        }
        match text(spec, "type") {
            kind @ ("LoadBalancer" | "NodePort") if is_headless(spec) => {
                errors.invalid(path.child("clusterIPs").index(0), "None", &format!("may not be set to 'None' for {kind} services"));
            }
            "ExternalName" => {
                for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                    if spec.get(key).is_some_and(|v| !crate::kinds::values::is_empty(v)) {
                        errors.forbidden(path.child(key), "may not be set for ExternalName services");
                    }
                }
                external_name(spec, &path, errors);
            }
            _ => {}
        }
        ports(spec, &path, errors);
        checks::labels(map(spec, "selector"), &path.child("selector"), errors);
        session_affinity(spec, &path, errors);
        validate_addresses(service, old, errors);
        let before = |key: &str| old.map(|old| strings(workload::spec(old), key).map(str::trim).collect::<HashSet<_>>()).unwrap_or_default();
        let known = before("externalIPs");
        for (i, ip) in strings(spec, "externalIPs").enumerate() {
            let path = path.child("externalIPs").index(i);
            let problems = if known.contains(ip) { vec![] } else { checks::ip(ip) };
            if problems.is_empty() {
                errors.invalid_all(&path, ip, checks::not_special_ip(ip));
            }
            errors.invalid_all(&path, ip, problems);
        }
        match text(spec, "type") {
            "" => errors.required(path.child("type"), ""),
            _ => checks::one_of(spec, "type", TYPES, &path, errors),
        }
        double_ports(spec, &path, errors);
        source_ranges(service, old, &before("loadBalancerSourceRanges"), errors);
        if has(spec, "allocateLoadBalancerNodePorts") && !is_load_balancer(spec) {
            errors.forbidden(path.child("allocateLoadBalancerNodePorts"), "may only be used when `type` is 'LoadBalancer'");
        }
        load_balancer_class(spec, None, &path, errors);
        traffic(spec, &path, errors);
    }
    fn validate_status(&self, service: &Value, _old: &Value, errors: &mut Errors) {
        let path = Path::new("status").child("loadBalancer").child("ingress");
        let ingresses = list(workload::status(service).get("loadBalancer").unwrap_or(&Value::Null), "ingress");
        if !ingresses.is_empty() && !is_load_balancer(workload::spec(service)) {
            errors.forbidden(path.clone(), "may only be used when `spec.type` is 'LoadBalancer'");
            return;
        }
        checks::load_balancer_addresses(ingresses, true, &path, errors);
    }
    fn cells(&self, service: &Value, now_unix_s: i64) -> Vec<Value> {
        let spec = workload::spec(service);
        let ports: Vec<String> = (list(spec, "ports").iter())
            .map(|port| match int(port, "nodePort").unwrap_or(0) {
                0 => format!("{}/{}", int(port, "port").unwrap_or(0), text(port, "protocol")),
                node => format!("{}:{node}/{}", int(port, "port").unwrap_or(0), text(port, "protocol")),
            })
            .collect();
        let or_none = |text: &str| if text.is_empty() { json!("<none>") } else { json!(text) };
        vec![
            table::name(service),
            json!(text(spec, "type")),
            or_none(text(spec, "clusterIP")),
            json!(external_ip(service)),
            or_none(&ports.join(",")),
            table::age(service, now_unix_s),
            json!(table::labels_text(spec.get("selector"))),
        ]
    }
}

/// The cell `External-IP`.
fn external_ip(service: &Value) -> String {
    let spec = workload::spec(service);
    let mut all: Vec<&str> = vec![];
    match text(spec, "type") {
        "ExternalName" => return text(spec, "externalName").to_string(),
        "LoadBalancer" => {
            all.extend(workload::load_balancer_addresses(workload::status(service)));
            all.extend(strings(spec, "externalIPs"));
            if all.is_empty() {
                return "<pending>".into();
            }
        }
        "ClusterIP" | "NodePort" => all.extend(strings(spec, "externalIPs")),
        _ => return "<unknown>".into(),
    }
    if all.is_empty() { "<none>".into() } else { all.join(",") }
}

/// `clusterIP` is the first of `clusterIPs`.
fn normalize_create(spec: &mut Value) {
    let ip = text(spec, "clusterIP").to_string();
    if !ip.is_empty() && list(spec, "clusterIPs").is_empty() {
        put(spec, "clusterIPs", json!([ip]));
    }
}
/// A client that knows only one of the two fields changes both.
fn normalize_update(spec: &mut Value, old: &Value) {
    if text(old, "clusterIP").is_empty() {
        return normalize_create(spec);
    }
    let (ip, old_ip) = (text(spec, "clusterIP").to_string(), text(old, "clusterIP"));
    let same_list = list(spec, "clusterIPs") == list(old, "clusterIPs");
    if !same_list {
        return;
    }
    if ip != old_ip {
        if ip.is_empty() {
            take(spec, "clusterIPs");
        } else if !old_ip.is_empty() || list(spec, "clusterIPs").is_empty() {
            put(spec, "clusterIPs", json!([ip]));
        }
    }
}
/// What was allocated stays when a client leaves it out.
fn keep_allocated(spec: &mut Value, old: &Value) {
    if !is_external_name(spec) && !is_external_name(old) {
        if text(spec, "clusterIP").is_empty()
            && let Some(ip) = old.get("clusterIP")
        {
            put(spec, "clusterIP", ip.clone());
        }
        if list(spec, "clusterIPs").is_empty()
            && text(spec, "clusterIP") == text(old, "clusterIP")
            && let Some(ips) = old.get("clusterIPs")
        {
            put(spec, "clusterIPs", ips.clone());
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if !has(spec, key)
                && let Some(value) = old.get(key)
            {
                put(spec, key, value.clone());
            }
        }
    }
    if needs_node_port(spec) && needs_node_port(old) {
        let mut taken: HashSet<(String, i64)> =
            list(spec, "ports").iter().filter_map(|p| Some((text(p, "protocol").to_string(), int(p, "nodePort").filter(|n| *n != 0)?))).collect();
        let key = |p: &Value| (text(p, "protocol").to_string(), int(p, "port").unwrap_or(0));
        let before = checks::by_key(list(old, "ports"), key);
        each(spec, "ports", |port| {
            if int(port, "nodePort").unwrap_or(0) == 0
                && let Some(number) = before.get(&key(port)).and_then(|p| int(p, "nodePort")).filter(|n| *n != 0)
                && taken.insert((text(port, "protocol").to_string(), number))
            {
                put(port, "nodePort", number);
            }
        });
    }
    if needs_health_check(spec)
        && needs_health_check(old)
        && int(spec, "healthCheckNodePort").unwrap_or(0) == 0
        && let Some(port) = old.get("healthCheckNodePort")
    {
        put(spec, "healthCheckNodePort", port.clone());
    }
}
/// What belonged to the old type goes with it, unless the client changed it too.
fn drop_left_over(spec: &mut Value, old: &Value) {
    let same = |spec: &Value, key: &str| spec.get(key) == old.get(key);
    if is_external_name(spec) && !is_external_name(old) {
        if same(spec, "clusterIP") && same(spec, "clusterIPs") {
            take(spec, "clusterIP");
            take(spec, "clusterIPs");
        }
        for key in ["ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if same(spec, key) {
                take(spec, key);
            }
        }
    }
    let had_ports = matches!(text(old, "type"), "NodePort" | "LoadBalancer");
    if had_ports && !matches!(text(spec, "type"), "NodePort" | "LoadBalancer") {
        let ports_of = |spec: &Value| list(spec, "ports").iter().map(|p| int(p, "nodePort").unwrap_or(0)).collect::<Vec<_>>();
        if ports_of(spec) == ports_of(old) {
            each(spec, "ports", |port| {
                take(port, "nodePort");
            });
        }
    }
    if needs_health_check(old) && !needs_health_check(spec) && same(spec, "healthCheckNodePort") {
        take(spec, "healthCheckNodePort");
    }
    if is_load_balancer(old) && !is_load_balancer(spec) {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(spec, key) {
                take(spec, key);
            }
        }
    }
    if is_external(old) && !is_external(spec) && same(spec, "externalTrafficPolicy") {
        take(spec, "externalTrafficPolicy");
    }
}

fn warnings(service: &Value) -> Vec<String> {
    let (spec, path) = (workload::spec(service), Path::new("spec"));
    let (kind, external) = (text(spec, "type"), list(spec, "externalIPs"));
    let headless = kind == "ClusterIP" && text(spec, "clusterIP") == "None";
    let mut warnings = vec![];
    if service.annotation(TOPOLOGY_HINTS).is_some() {
        warnings.push(format!("annotation {TOPOLOGY_HINTS} is deprecated, please use {TOPOLOGY_MODE} instead"));
    }
    let addresses = |key: &str| -> Vec<String> {
        let all = strings(spec, key).enumerate();
        all.filter_map(|(i, ip)| checks::ip_warning(ip, &path.child(key).index(i))).collect()
    };
    if !headless {
        warnings.extend(addresses("clusterIPs"));
    }
    if headless {
        let affinity = text(spec, "sessionAffinity") != "None";
        let ignored = [
            (!text(spec, "loadBalancerIP").is_empty(), "spec.loadBalancerIP"),
            (!external.is_empty(), "spec.externalIPs"),
            (affinity, "spec.SessionAffinity"),
        ];
        warnings.extend(ignored.iter().filter(|(said, _)| *said).map(|(_, field)| format!("{field} is ignored for headless services")));
    }
    warnings.extend(addresses("externalIPs"));
    if !external.is_empty() && !headless && !is_external_name(spec) {
        warnings.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".into());
    }
    warnings.extend(checks::ip_warning(text(spec, "loadBalancerIP"), &path.child("loadBalancerIP")));
    for (i, range) in strings(spec, "loadBalancerSourceRanges").enumerate() {
        warnings.extend(checks::cidr_warning(range, &path.child("loadBalancerSourceRanges").index(i)));
    }
    if is_external_name(spec) && !external.is_empty() {
        warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".into());
    }
    if !is_external_name(spec) && !text(spec, "externalName").is_empty() {
        warnings.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    if text(spec, "trafficDistribution") == "PreferClose" {
        warnings.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".into());
    }
    warnings
}

fn ports(spec: &Value, path: &Path, errors: &mut Errors) {
    let ports = list(spec, "ports");
    for (i, port, again) in checks::distinct(ports, |port| text(port, "name")) {
        let path = path.child("ports").index(i);
        let name = text(port, "name");
        if name.is_empty() {
            if ports.len() > 1 {
                errors.required(path.child("name"), "");
            }
        } else {
            errors.invalid_all(&path.child("name"), name, names::dns1123_label(name));
            if again {
                errors.duplicate(path.child("name"), name);
            }
        }
        checks::port_number(int(port, "port").unwrap_or(0), &path.child("port"), errors);
        checks::protocol(port, &path, errors);
        checks::port_or_name(port, "targetPort", &path, errors);
        if let Some(Value::String(protocol)) = member(port, "appProtocol") {
            errors.invalid_all(&path.child("appProtocol"), protocol.as_str(), names::qualified_name(protocol));
        }
    }
}

/// Ports that are said twice, and ports of nodes that are not for this type.
fn double_ports(spec: &Value, path: &Path, errors: &mut Errors) {
    let (ports, at) = (list(spec, "ports"), path.child("ports"));
    let node_port = |port: &Value| int(port, "nodePort").unwrap_or(0);
    if text(spec, "type") == "ClusterIP" {
        for (i, _) in ports.iter().enumerate().filter(|(_, port)| node_port(port) != 0) {
            errors.forbidden(at.index(i).child("nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
    }
    for (i, port, again) in checks::distinct(ports, |port| (text(port, "protocol"), node_port(port))) {
        if again && node_port(port) != 0 {
            errors.duplicate(at.index(i).child("nodePort"), node_port(port));
        }
    }
    for (i, port, again) in checks::distinct(ports, |port| (text(port, "protocol"), int(port, "port"))) {
        if again {
            let shown = internal::fields([
                ("Name", json!("")),
                ("Protocol", json!(text(port, "protocol"))),
                ("AppProtocol", Value::Null),
                ("Port", json!(int(port, "port").unwrap_or(0))),
                ("TargetPort", json!(0)),
                ("NodePort", json!(0)),
            ]);
            errors.duplicate_structure(at.index(i), &shown);
        }
    }
}

fn external_name(spec: &Value, path: &Path, errors: &mut Errors) {
    let name = text(spec, "externalName");
    let bare = name.strip_suffix('.').unwrap_or(name);
    if bare.is_empty() {
        errors.required(path.child("externalName"), "");
    } else {
        errors.invalid_all(&path.child("externalName"), bare, names::dns1123_subdomain(bare));
    }
}

fn session_affinity(spec: &Value, path: &Path, errors: &mut Errors) {
    match text(spec, "sessionAffinity") {
        "" => errors.required(path.child("sessionAffinity"), ""),
        _ => checks::one_of(spec, "sessionAffinity", &["ClientIP", "None"], path, errors),
    }
    let path = path.child("sessionAffinityConfig");
    if text(spec, "sessionAffinity") == "ClientIP" {
        let timeout = spec.pointer("/sessionAffinityConfig/clientIP/timeoutSeconds").and_then(Value::as_i64).unwrap_or(0);
        if timeout <= 0 || timeout > AFFINITY_TIMEOUT_MAX_S {
            errors.invalid(
                path.child("clientIP").child("timeoutSeconds"),
                timeout,
                &format!("must be greater than 0 and less than {AFFINITY_TIMEOUT_MAX_S}"),
            );
        }
    } else if text(spec, "sessionAffinity") == "None" && has(spec, "sessionAffinityConfig") {
        errors.forbidden(path, "must not be set when session affinity is None");
    }
}

/// Checks what a Service says of its addresses and their families.
pub fn validate_addresses(service: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = workload::spec(service);
    if !is_external_name(spec) {
        let before = old.map(|old| strings(workload::spec(old), "clusterIPs").collect::<Vec<_>>()).unwrap_or_default();
        addresses(spec, &before, &Path::new("spec"), errors);
    }
}

/// `before` are the addresses that the Service has had.
fn addresses(spec: &Value, before: &[&str], path: &Path, errors: &mut Errors) {
    let (ip, ips) = (text(spec, "clusterIP"), list(spec, "clusterIPs"));
    let families: Vec<&str> = strings(spec, "ipFamilies").collect();
    let at = path.child("clusterIPs");
    if ip.is_empty() && !ips.is_empty() {
        errors.invalid(at.clone(), Value::from(ips.to_vec()), "must be empty when `clusterIP` is not specified");
    } else if !ip.is_empty() && ips.is_empty() {
        errors.required(at.clone(), "");
    } else if !ip.is_empty() && ips[0] != ip {
        errors.invalid(at.clone(), Value::from(ips.to_vec()), "first value must match `clusterIP`");
    }
    for (i, family, again) in checks::distinct(&families, |family| *family) {
        let path = path.child("ipFamilies").index(i);
        if !matches!(*family, "IPv4" | "IPv6") {
            errors.not_supported(path.clone(), *family, &["IPv4", "IPv6"]);
        }
        if again {
            errors.duplicate(path, *family);
        }
    }
    let policy = text(spec, "ipFamilyPolicy");
    if !policy.is_empty() {
        checks::one_of(spec, "ipFamilyPolicy", &["PreferDualStack", "RequireDualStack", "SingleStack"], path, errors);
    }
    let mut wrong = false;
    for (i, value) in ips.iter().enumerate() {
        let value = value.as_str().unwrap_or_default();
        if i == 0 && value == "None" {
            if ips.len() > 1 {
                wrong = true;
                errors.invalid(at.clone(), Value::from(ips.to_vec()), "'None' must be the first and only value");
            }
            continue;
        }
        let problems = if before.contains(&value) { vec![] } else { checks::ip(value) };
        wrong |= !problems.is_empty();
        errors.invalid_all(&at.index(i), value, problems);
    }
    if ips.len() > 2 {
        errors.invalid(at.clone(), Value::from(ips.to_vec()), "may only hold up to 2 values");
    }
    if wrong {
        return;
    }
    let is_v6 = |value: &Value| value.as_str().is_some_and(|ip| ip.contains(':'));
    if ips.len() > 1 && ![true, false].iter().all(|v6| ips.iter().any(|ip| is_v6(ip) == *v6)) {
        errors.invalid(at.clone(), Value::from(ips.to_vec()), "may specify no more than one IP for each IP family");
    }
    if !is_headless(spec) {
        for (i, (ip, family)) in ips.iter().zip(&families).enumerate() {
            if matches!(*family, "IPv4" | "IPv6") && (*family == "IPv6") != is_v6(ip) {
                errors.invalid(at.index(i), ip.clone(), &format!("expected an {family} value as indicated by `ipFamilies[{i}]`"));
            }
        }
    }
}

const MAY_NOT_CHANGE: &str = "may not change once set";

/// Addresses stay, but that a second one may come, and go if the Service says that it has one.
fn immutable_addresses(spec: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    if is_external_name(spec) || is_external_name(old) || (is_headless(spec) && is_headless(old)) {
        return;
    }
    let (new, before) = (list(spec, "clusterIPs"), list(old, "clusterIPs"));
    // Where the two fields contradict each other, that is said alone.
    if new.first().is_some_and(|first| first != text(spec, "clusterIP")) {
        return;
    }
    let (at, shown) = (path.child("clusterIPs"), || Value::from(new.to_vec()));
    if new.len() == before.len() {
        for (i, _) in before.iter().zip(new).enumerate().filter(|(_, (old, new))| old != new) {
            errors.invalid(at.index(i), shown(), MAY_NOT_CHANGE);
        }
        return;
    }
    if new.is_empty() {
        errors.invalid(at.index(0), spec.get("clusterIPs").cloned().unwrap_or_default(), "primary clusterIP can not be unset");
    } else if before.first().is_some_and(|first| new.first() != Some(first)) {
        errors.invalid(at.index(0), shown(), MAY_NOT_CHANGE);
    }
    if before.len() > new.len() && new.len() == 1 && text(spec, "ipFamilyPolicy") != "SingleStack" {
        let policy = member(spec, "ipFamilyPolicy").cloned().unwrap_or_default();
        errors.invalid(path.child("ipFamilyPolicy"), policy, "must be set to 'SingleStack' when releasing the secondary clusterIP");
    }
}

/// The same for families.
fn immutable_families(spec: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    if is_external_name(spec) || is_external_name(old) || is_headless(spec) || is_headless(old) {
        return;
    }
    let (new, before) = (list(spec, "ipFamilies"), list(old, "ipFamilies"));
    let at = path.child("ipFamilies").index(0);
    if new.len() == before.len() {
        for _ in before.iter().zip(new).filter(|(old, new)| old != new) {
            errors.invalid(at.clone(), Value::from(new.to_vec()), MAY_NOT_CHANGE);
        }
        return;
    }
    if before.len() > new.len() && list(spec, "clusterIPs").is_empty() {
        errors.invalid(at.clone(), spec.get("ipFamilies").cloned().unwrap_or_default(), "primary ipFamily can not be unset");
    }
    if !new.is_empty() && before.first().is_some_and(|first| new.first() != Some(first)) {
        errors.invalid(at, spec.get("clusterIPs").cloned().unwrap_or_default(), MAY_NOT_CHANGE);
    }
    if before.len() > new.len() && new.len() == 1 && text(spec, "ipFamilyPolicy") != "SingleStack" {
        let policy = member(spec, "ipFamilyPolicy").cloned().unwrap_or_default();
        errors.invalid(path.child("ipFamilyPolicy"), policy, "must be set to 'SingleStack' when releasing the secondary ipFamily");
    }
}

/// `before` are the ranges that the Service has had.
fn source_ranges(service: &Value, old: Option<&Value>, before: &HashSet<&str>, errors: &mut Errors) {
    const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
    let (spec, path) = (workload::spec(service), Path::new("spec").child("LoadBalancerSourceRanges"));
    let ranges = list(spec, "loadBalancerSourceRanges");
    if !ranges.is_empty() {
        if !is_load_balancer(spec) {
            errors.forbidden(path.clone(), "may only be used when `type` is 'LoadBalancer'");
        }
        let ranges = strings(spec, "loadBalancerSourceRanges").map(str::trim).enumerate();
        for (i, range) in ranges.filter(|(_, range)| !before.contains(range)) {
            errors.invalid_all(&path.index(i), range, checks::cidr(range));
        }
    } else if let Some(value) = service.annotation(ANNOTATION) {
        let path = Path::new("metadata").child("annotations").key(ANNOTATION);
        if !is_load_balancer(spec) {
            errors.forbidden(path.clone(), "may only be used when `type` is 'LoadBalancer'");
        }
        let same = old.is_some_and(|old| old.annotation(ANNOTATION) == Some(value));
        for range in value.trim().split(',').map(str::trim).filter(|_| !same && !value.trim().is_empty()) {
            errors.invalid_all(&path, range, checks::cidr(range));
        }
    }
}

fn traffic(spec: &Value, path: &Path, errors: &mut Errors) {
    const POLICIES: &[&str] = &["Cluster", "Local"];
    let policy = text(spec, "externalTrafficPolicy");
    if !policy.is_empty() {
        if is_external(spec) {
            checks::one_of(spec, "externalTrafficPolicy", POLICIES, path, errors);
        } else {
            errors.invalid(path.child("externalTrafficPolicy"), policy, "may only be set for externally-accessible services");
        }
    } else if is_external(spec) {
        errors.required(path.child("externalTrafficPolicy"), "");
    }
    if let Some(port) = int(spec, "healthCheckNodePort").filter(|port| *port != 0) {
        if !needs_health_check(spec) {
            errors.invalid(
                path.child("healthCheckNodePort"),
                port,
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            );
        } else {
            checks::port_number(port, &path.child("healthCheckNodePort"), errors);
        }
    }
    if has(spec, "internalTrafficPolicy") {
        checks::one_of(spec, "internalTrafficPolicy", POLICIES, path, errors);
    } else if !is_external_name(spec) {
        errors.required(path.child("internalTrafficPolicy"), "");
    }
    checks::one_of(spec, "trafficDistribution", &["PreferClose", "PreferSameZone", "PreferSameNode"], path, errors);
}

fn load_balancer_class(spec: &Value, old: Option<&Value>, path: &Path, errors: &mut Errors) {
    let path = path.child("loadBalancerClass");
    if let Some(old) = old.filter(|old| is_load_balancer(old) && is_load_balancer(spec))
        && member(spec, "loadBalancerClass") != member(old, "loadBalancerClass")
    {
        errors.invalid(path.clone(), shown(spec, "loadBalancerClass"), MAY_NOT_CHANGE);
    }
    let Some(class) = member(spec, "loadBalancerClass").and_then(Value::as_str) else { return };
    if is_load_balancer(spec) {
        errors.invalid_all(&path, class, names::qualified_name(class));
    } else {
        errors.forbidden(path, "may only be used when `type` is 'LoadBalancer'");
    }
}
