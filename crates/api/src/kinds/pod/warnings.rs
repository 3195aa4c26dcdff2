//! Warnings about what a pod spec may say but surely does not mean, or should not say any more.

use crate::{
    field::Path,
    kinds::{
        checks,
        values::{entries, has, int, list, member, strings, text},
    },
    limits::WARNINGS_MAX,
    names,
    quantity::Quantity,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Labels of nodes that have newer names.
const OLD_LABELS: &[(&str, &str, &str)] = &[
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", "topology.kubernetes.io/zone"),
    ("beta.kubernetes.io/instance-type", "v1.17", "node.kubernetes.io/instance-type"),
];
/// Volume sources that are gone or going.
pub const OLD_VOLUMES: &[(&str, &str)] = &[
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

const OLD_ANNOTATIONS: &[(&str, &str)] = &[
    ("scheduler.alpha.kubernetes.io/critical-pod", "non-functional in v1.16+; use the \"priorityClassName\" field instead"),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
];
const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";
/// What annotations of single containers begin with.
const CONTAINER: &str = "container.";
const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";

/// What is said of a label of nodes that has a newer name.
pub fn old_label(key: &str) -> Option<String> {
    OLD_LABELS.iter().find(|(old, ..)| *old == key).map(|(_, since, new)| format!("deprecated since {since}; use {new:?} instead"))
}
/// The newer name of such a label.
pub fn new_label(key: &str) -> Option<&'static str> {
    OLD_LABELS.iter().find(|(old, ..)| *old == key).map(|(_, _, new)| *new)
}
/// A term of a node selector.
pub fn node_selector_term(term: &Value, values: bool, path: &Path, warnings: &mut Vec<String>) {
    for (i, requirement) in list(term, "matchExpressions").iter().enumerate() {
        let (key, path) = (text(requirement, "key"), path.child("matchExpressions").index(i));
        if let Some(old) = old_label(key) {
            warnings.push(format!("{}: {key} is {old}", path.child("key")));
        }
        for (j, value) in strings(requirement, "values").enumerate().filter(|_| values) {
            for problem in names::label_value(value) {
                warnings.push(format!("{}: {value:?} is invalid, {problem}", path.child("values").index(j)));
            }
        }
    }
}
/// A quantity of bytes that is not whole.
pub fn fraction(quantities: &Value, name: &str, path: &Path) -> Option<String> {
    let quantity = Quantity::from_value(quantities.get(name)?).ok()?;
    (quantity.milli() % 1000 != 0)
        .then(|| format!("{}: fractional byte value {:?} is invalid, must be an integer", path.key(name), quantity.to_string()))
}
/// The spec of a claim.
pub fn claim_spec(spec: &Value, path: &Path) -> Vec<String> {
    let resources = spec.get("resources").unwrap_or(&Value::Null);
    let parts = ["requests", "limits"].into_iter();
    parts.filter_map(|part| fraction(resources.get(part)?, "storage", &path.child("resources").child(part))).collect()
}

/// Warnings about a pod, or the template of one, at `at`.
pub fn pod(pod: &Value, at: &Path, template: bool) -> Vec<String> {
    let nothing = Value::Null;
    let (metadata, spec) = (pod.get("metadata").unwrap_or(&nothing), pod.get("spec").unwrap_or(&nothing));
    let path = at.child("spec");
    let mut warnings = vec![];
    scheduling(spec, &path, &mut warnings);
    let annotated = |key: &str| entries(metadata, "annotations").any(|(name, _)| name == key);
    let annotated_containers = entries(metadata, "annotations").any(|(name, _)| name.starts_with(CONTAINER));
    let annotation = at.child("metadata").child("annotations");
    for (key, why) in OLD_ANNOTATIONS.iter().filter(|(key, _)| annotated(key)) {
        warnings.push(format!("{}: {why}", annotation.key(key)));
    }
    for (i, volume) in list(spec, "volumes").iter().enumerate() {
        let path = path.child("volumes").index(i);
        let is_old = |source: &String| OLD_VOLUMES.iter().any(|(old, _)| old == source);
        let old = volume.as_object().is_some_and(|volume| volume.keys().any(is_old));
        for (source, why) in OLD_VOLUMES.iter().filter(|(source, _)| old && has(volume, source)) {
            // One source is named in another way than it is written.
            let shown = if *source == "storageos" { "storageOS" } else { source };
            warnings.push(format!("{}: {why}", path.child(shown)));
        }
        if let Some(claim) = below(volume, &["ephemeral", "volumeClaimTemplate", "spec"]) {
            warnings.extend(claim_spec(claim, &path.child("ephemeral").child("volumeClaimTemplate").child("spec")));
        }
    }
    overlapping_paths(list(spec, "volumes"), &mut warnings);
    for (i, alias, _) in checks::distinct(list(spec, "hostAliases"), |alias| text(alias, "ip")).filter(|(.., again)| *again) {
        warnings.push(format!("{}: duplicate ip {:?}", path.child("hostAliases").index(i).child("ip"), text(alias, "ip")));
    }
    let secrets = list(spec, "imagePullSecrets");
    for (i, secret, _) in checks::distinct(secrets, |secret| text(secret, "name")).filter(|(.., again)| *again) {
        warnings.push(format!("{}: duplicate name {:?}", path.child("imagePullSecrets").index(i).child("name"), text(secret, "name")));
    }
    for (i, secret) in secrets.iter().enumerate().filter(|(_, secret)| text(secret, "name").is_empty()) {
        warnings.push(format!("{}: invalid empty name {:?}", path.child("imagePullSecrets").index(i).child("name"), text(secret, "name")));
    }
    if let Some(overhead) = member(spec, "overhead") {
        warnings.extend(["memory", "ephemeral-storage"].into_iter().filter_map(|name| fraction(overhead, name, &path.child("overhead"))));
    }
    if annotated(SECCOMP) && below(spec, &["securityContext", "seccompProfile"]).is_none_or(Value::is_null) {
        warnings.push(format!("{}: non-functional in v1.27+; use the \"seccompProfile\" field instead", annotation.key(SECCOMP)));
    }
    for (one, path) in containers(spec, &path) {
        if annotated_containers {
            let profile = |key: &str| one.get("securityContext").is_some_and(|context| has(context, key));
            let key = format!("{SECCOMP_CONTAINER}{}", text(one, "name"));
            if !profile("seccompProfile") && annotated(&key) {
                warnings.push(format!("{}: non-functional in v1.27+; use the \"seccompProfile\" field instead", annotation.key(&key)));
            }
            let key = format!("{APP_ARMOR_CONTAINER}{}", text(one, "name"));
            let covered =
                profile("appArmorProfile") || below(spec, &["securityContext", "appArmorProfile"]).is_some_and(|profile| !profile.is_null());
            // What only an annotation said has become a field of a pod by now.
            if (!template && profile("appArmorProfile") || template && !covered) && annotated(&key) {
                warnings.push(format!("{}: deprecated since v1.30; use the \"appArmorProfile\" field instead", annotation.key(&key)));
            }
        }
        container(one, &path, &mut warnings);
    }
    ports(spec, &path, &mut warnings);
    if int(spec, "terminationGracePeriodSeconds").is_some_and(|s| s < 0) {
        warnings.push(format!("{}: must be >= 0; negative values are invalid and will be treated as 1", path.child("terminationGracePeriodSeconds")));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = spec.get("affinity").and_then(|affinity| member(affinity, kind)) else { continue };
        let at = path.child("affinity").child(kind);
        for (key, inner) in
            [("requiredDuringSchedulingIgnoredDuringExecution", None), ("preferredDuringSchedulingIgnoredDuringExecution", Some("podAffinityTerm"))]
        {
            for (i, term) in list(affinity, key).iter().enumerate() {
                let at = at.child(key).index(i);
                let (term, at) = inner.map_or((term, at.clone()), |inner| (term.get(inner).unwrap_or(&nothing), at.child(inner)));
                if !has(term, "labelSelector") {
                    warnings.push(format!("{}: {NO_SELECTOR}", at.child("labelSelector")));
                }
            }
        }
    }
    warnings
}

/// Files of a volume that are in each other's place.
fn overlapping_paths(volumes: &[Value], warnings: &mut Vec<String>) {
    let nothing = Value::Null;
    let of_items = |source: &Value| list(source, "items").iter().map(|item| text(item, "path").to_string()).collect::<Vec<_>>();
    for volume in volumes {
        let name = text(volume, "name");
        for (key, kind, from) in [("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName"), ("downwardAPI", "DownwardAPI", "")] {
            let Some(source) = member(volume, key) else { continue };
            let from = if from.is_empty() { String::new() } else { format!(" {:?}", text(source, from)) };
            collisions(&of_items(source), &format!("volume {name:?} ({kind}{from}): overlapping paths"), warnings);
        }
        let (mut before, mut seen, mut met) = (BTreeSet::new(), Seen::default(), false);
        for source in list(volume.get("projected").unwrap_or(&nothing), "sources") {
            let Some((key, source)) = source.as_object().and_then(|source| source.iter().find(|(_, value)| !value.is_null())) else {
                warnings.push(format!("volume {name:?} (Projected) has no sources provided"));
                continue;
            };
            let path = || vec![text(source, "path").to_string()];
            let (what, paths) = match key.as_str() {
                "configMap" => (format!("ConfigMap {:?}", text(source, "name")), of_items(source)),
                "secret" => (format!("Secret {:?}", text(source, "name")), of_items(source)),
                "downwardAPI" => ("DownwardAPI".to_string(), of_items(source)),
                "serviceAccountToken" => ("ServiceAccountToken".to_string(), path()),
                "clusterTrustBundle" => {
                    let bundle = if has(source, "name") { text(source, "name") } else { text(source, "signerName") };
                    (format!("ClusterTrustBundle {bundle:?}"), path())
                }
                _ => continue,
            };
            let what = format!("volume {name:?} (Projected {what}): overlapping paths");
            collisions(&paths, &what, warnings);
            let once: BTreeSet<String> = paths.into_iter().collect();
            for path in &once {
                met |= seen.again(path).is_some();
            }
            // With each source all that came before is told anew: not where there is nothing to tell, and not for ever.
            if met && !once.is_empty() && warnings.len() < WARNINGS_MAX {
                let mut all: Vec<String> = once.iter().chain(&before).cloned().collect();
                all.sort();
                collisions(&all, &what, warnings);
            }
            before.extend(once);
        }
    }
}

/// Paths that are, or begin with, one that came before.
fn collisions(paths: &[String], what: &str, warnings: &mut Vec<String>) {
    let mut seen = Seen::default();
    for path in paths {
        if warnings.len() >= WARNINGS_MAX {
            return;
        }
        if let Some(other) = seen.again(path) {
            warnings.push(format!("{what}: {:?} with {other:?}", path.trim_end_matches('/')));
        }
    }
}

/// Paths that came before, with their places.
#[derive(Default)]
struct Seen(BTreeMap<Vec<u8>, usize>);

impl Seen {
    /// The first path of which this one is the beginning, or which is the beginning of this one. This one came before from now on.
    fn again(&mut self, path: &str) -> Option<String> {
        let path = path.trim_end_matches('/').as_bytes();
        if path.is_empty() {
            return None;
        }
        let longer = self.0.range(path.to_vec()..).take_while(|(other, _)| other.starts_with(path));
        let mut first = longer.min_by_key(|(_, place)| **place);
        // In the order of texts, what a text begins with stands before it: between the two is only what begins alike.
        let mut end = path.len();
        while let Some(other) = self.0.range(..=path[..end].to_vec()).next_back().filter(|_| end > 0) {
            let common = other.0.iter().zip(path).take_while(|(a, b)| a == b).count();
            if common == other.0.len() {
                first = first.into_iter().chain([other]).min_by_key(|(_, place)| **place);
                end = common - 1;
            } else {
                end = common;
            }
        }
        let first = first.map(|(other, _)| String::from_utf8_lossy(other).into_owned());
        let place = self.0.len();
        self.0.entry(path.to_vec()).or_insert(place);
        first
    }
}

fn below<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

/// Where the pod may run, said with labels that have newer names.
fn scheduling(spec: &Value, path: &Path, warnings: &mut Vec<String>) {
    for (key, _) in entries(spec, "nodeSelector") {
        warnings.extend(old_label(key).map(|old| format!("{}: {old}", path.child("nodeSelector").key(key))));
    }
    if let Some(affinity) = below(spec, &["affinity", "nodeAffinity"]) {
        let at = path.child("affinity").child("nodeAffinity");
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        let terms = affinity.get(required).map(|required| list(required, "nodeSelectorTerms")).unwrap_or_default();
        for (i, term) in terms.iter().enumerate() {
            node_selector_term(term, true, &at.child(required).child("nodeSelectorTerms").index(i), warnings);
        }
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        for (i, term) in list(affinity, preferred).iter().enumerate() {
            let preference = term.get("preference").unwrap_or(&Value::Null);
            node_selector_term(preference, true, &at.child(preferred).index(i).child("preference"), warnings);
        }
    }
    for (i, constraint) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let at = path.child("topologySpreadConstraints").index(i);
        let key = text(constraint, "topologyKey");
        warnings.extend(old_label(key).map(|old| format!("{}: {key} is {old}", at.child("topologyKey"))));
        if !has(constraint, "labelSelector") {
            warnings.push(format!("{}: {NO_SELECTOR}", at.child("labelSelector")));
        }
    }
}

fn containers<'a>(spec: &'a Value, path: &Path) -> Vec<(&'a Value, Path)> {
    let all = ["initContainers", "containers", "ephemeralContainers"].into_iter();
    all.flat_map(|key| list(spec, key).iter().enumerate().map(move |(i, one)| (one, path.child(key).index(i)))).collect()
}

fn container(container: &Value, path: &Path, warnings: &mut Vec<String>) {
    let resources = container.get("resources").unwrap_or(&Value::Null);
    for name in ["memory", "ephemeral-storage"] {
        for part in ["limits", "requests"] {
            let quantities = resources.get(part).unwrap_or(&Value::Null);
            warnings.extend(fraction(quantities, name, &path.child("resources").child(part)));
        }
    }
    for (i, variable, _) in checks::distinct(list(container, "env"), |variable| text(variable, "name")).filter(|(.., again)| *again) {
        let name = text(variable, "name");
        let (reference, value) = (format!("$({name})"), text(variable, "value"));
        // A value that is made of the one before takes it on.
        if has(variable, "valueFrom") || value == reference || !value.contains(&reference) {
            warnings.push(format!("{}: hides previous definition of {name:?}, which may be dropped when using apply", path.child("env").index(i)));
        }
    }
}

/// Ports of all containers that are said twice, or get in each other's way.
fn ports(spec: &Value, path: &Path, warnings: &mut Vec<String>) {
    let mut before: Vec<(&Value, Path)> = vec![];
    let mut names: HashMap<&str, usize> = HashMap::new();
    // Places in `before` of the ports of containers, all of a number and protocol, those of a port of the host, those of an address.
    let mut places: HashMap<(i64, &str, Option<(i64, Option<&str>)>), Vec<usize>> = HashMap::new();
    for (one, path) in containers(spec, path) {
        for (i, port) in list(one, "ports").iter().enumerate() {
            let at = path.child("ports").index(i);
            let number = |port: &Value, key: &str| int(port, key).unwrap_or(0);
            let (ip, host) = (text(port, "hostIP"), number(port, "hostPort"));
            if !ip.is_empty() && host == 0 {
                let [name, protocol] = ["name", "protocol"].map(|key| text(port, key));
                let shown = format!("{{Name:{name} HostPort:0 ContainerPort:{} Protocol:{protocol} HostIP:{ip}}}", number(port, "containerPort"));
                warnings.push(format!("{at}: hostIP set without hostPort: {shown}"));
            }
            let of = |what| (number(port, "containerPort"), text(port, "protocol"), what);
            let in_the_way = match (host, ip) {
                (0, _) => vec![of(None)],
                (_, "") => vec![of(Some((0, None))), of(Some((host, None)))],
                _ => vec![of(Some((0, None))), of(Some((host, Some("")))), of(Some((host, Some(ip))))],
            };
            let mut others: Vec<usize> = in_the_way.iter().filter_map(|key| places.get(key)).flatten().copied().collect();
            others.sort_unstable();
            for (other, place) in others.into_iter().map(|i| &before[i]) {
                let (other_ip, other_host) = (text(other, "hostIP"), number(other, "hostPort"));
                let problem = match () {
                    () if ip == other_ip && host == other_host => "duplicate",
                    () if host == 0 || other_host == 0 => "overlapping",
                    () => "dangerously ambiguous",
                };
                warnings.push(format!("{at}: {problem} port definition with {place}"));
            }
            let name = text(port, "name");
            match names.get(name) {
                Some(first) => {
                    let first = &before[*first].1;
                    warnings.push(format!(
                        "{at}: duplicate port name {name:?} with {first}, services and probes that select ports by name will use {first}"
                    ));
                }
                None if !name.is_empty() => drop(names.insert(name, before.len())),
                None => {}
            }
            if warnings.len() >= WARNINGS_MAX {
                return;
            }
            for what in [None, Some((host, None)), Some((host, Some(ip)))] {
                places.entry(of(what)).or_default().push(before.len());
            }
            before.push((port, at));
        }
    }
}

/// A name that ends up in hostnames should be a DNS label. `place` says where it ends up.
pub fn host_name(name: &str, place: &str) -> Option<String> {
    let problems = names::dns1123_label(name);
    (!problems.is_empty() && !name.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in {place}, which can result in surprising behavior; a DNS label is recommended: [{}]",
            problems.join(" ")
        )
    })
}

/// Warnings about a workload with a template at `spec.template`: when it is made, and when its spec changes.
pub fn workload(object: &Value, old: Option<&Value>, named: bool) -> Vec<String> {
    use crate::object::ObjectExt;
    if old.is_some_and(|old| old.get("spec") == object.get("spec")) {
        return vec![];
    }
    let named = named && old.is_none();
    let mut warnings: Vec<String> = named.then(|| host_name(object.name(), "Pod names and hostnames")).flatten().into_iter().collect();
    if let Some(template) = object.at("spec.template") {
        warnings.extend(pod(template, &Path::new("spec.template"), true));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(spec: Value, wanted: &[&str]) {
        assert_eq!(pod(&json!({"spec": spec}), &Path::root(), false), wanted);
    }

    #[test]
    fn ports_of_all_containers_are_compared() {
        let port = |name: &str, host: i64, ip: &str| json!({"name": name, "containerPort": 80, "protocol": "TCP", "hostPort": host, "hostIP": ip});
        let spec = |a: Value, b: Value| json!({"containers": [{"name": "a", "ports": [a]}, {"name": "b", "ports": [b]}]});
        let (first, second) = ("spec.containers[0].ports[0]", "spec.containers[1].ports[0]");
        check(spec(port("", 0, ""), port("", 0, "")), &[&format!("{second}: duplicate port definition with {first}")]);
        check(spec(port("", 1, ""), port("", 0, "")), &[&format!("{second}: overlapping port definition with {first}")]);
        check(spec(port("", 1, ""), port("", 1, "10.0.0.1")), &[&format!("{second}: dangerously ambiguous port definition with {first}")]);
        check(spec(port("", 1, "10.0.0.2"), port("", 1, "10.0.0.1")), &[]);
    }

    #[test]
    fn a_variable_may_be_made_of_itself() {
        let spec = |value: &str| json!({"containers": [{"name": "a", "env": [{"name": "A", "value": "1"}, {"name": "A", "value": value}]}]});
        check(spec("$(A)2"), &[]);
        let hides = "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply";
        check(spec("2"), &[hides]);
        check(spec("$(A)"), &[hides]);
    }

    #[test]
    fn selectors_that_select_nothing_and_old_labels_are_told() {
        let spec = json!({
            "nodeSelector": {"beta.kubernetes.io/os": "linux"},
            "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": {"topologyKey": "t"}}]}},
        });
        check(
            spec,
            &[
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector: a null labelSelector results in matching no pod",
            ],
        );
    }

    #[test]
    fn files_in_each_others_place_are_told() {
        let items = |paths: &[&str]| paths.iter().map(|path| json!({"key": "k", "path": path})).collect::<Vec<_>>();
        check(
            json!({"volumes": [
                {"name": "a", "configMap": {"name": "m", "items": items(&["x", "x/y", "z"])}},
                {"name": "b", "projected": {"sources": [{}, {"secret": {"name": "s", "items": items(&["t"])}}, {"serviceAccountToken": {"path": "t"}}]}},
                {"name": "c", "downwardAPI": {"items": items(&["l", "m"])}},
            ]}),
            &[
                "volume \"a\" (ConfigMap \"m\"): overlapping paths: \"x/y\" with \"x\"",
                "volume \"b\" (Projected) has no sources provided",
                "volume \"b\" (Projected ServiceAccountToken): overlapping paths: \"t\" with \"t\"",
            ],
        );
    }
}
