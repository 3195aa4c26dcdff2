//! Discovery: what is served, made from the catalogue. The old documents (`/api`, `/apis`, one per group and version) and
//! the aggregated ones (`APIGroupDiscoveryList`), which newer clients ask for by `Accept`.

use crate::{
    Body, Server,
    aggregation::{self, Remote, group_priority},
    body::full,
    encode::{Output, respond},
    keys,
};
use api::{Catalogue, Kind, Status, custom::version_priority, kind::Subresource, object::ObjectExt, request::Query};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::{cmp::Reverse, sync::Arc};

/// The priority of a version that a definition makes, among those of other servers.
const OF_DEFINITIONS: i64 = 100;

/// A served group: its name, its versions with the preferred one first, its kinds, and who else serves some of its versions.
struct Group<'a> {
    name: &'a str,
    versions: Vec<&'a str>,
    kinds: Vec<&'a Arc<Kind>>,
    remotes: Vec<&'a Arc<Remote>>,
}

/// All groups in the order in which Kubernetes lists them: clients that look for a kind without a group take the first.
fn groups<'a>(catalogue: &'a Catalogue, remotes: &'a [Arc<Remote>]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    fn named<'g, 'a>(groups: &'g mut Vec<Group<'a>>, name: &'a str) -> &'g mut Group<'a> {
        let i = groups.iter().position(|group| group.name == name).unwrap_or_else(|| {
            groups.push(Group { name, versions: vec![], kinds: vec![], remotes: vec![] });
            groups.len() - 1
        });
        &mut groups[i]
    }
    for kind in catalogue.iter() {
        let group = named(&mut groups, &kind.group);
        group.kinds.push(kind);
        for version in &kind.versions {
            if !group.versions.contains(&version.as_str()) {
                group.versions.push(version);
            }
        }
    }
    for remote in remotes {
        let group = named(&mut groups, &remote.group);
        group.remotes.push(remote);
        if !group.versions.contains(&remote.version.as_str()) {
            group.versions.push(&remote.version);
        }
    }
    for group in groups.iter_mut().filter(|group| is_custom(group)) {
        let remotes = std::mem::take(&mut group.remotes);
        let of_remote =
            |version: &str| remotes.iter().find(|remote| remote.version == version).map_or(OF_DEFINITIONS, |remote| remote.version_priority);
        group.versions.sort_by_cached_key(|version| (Reverse(of_remote(version)), version_priority(version)));
        group.remotes = remotes;
    }
    groups.sort_by_cached_key(|group| {
        let own = (!group.kinds.is_empty()).then(|| group_priority(group.name));
        (Reverse(group.remotes.iter().map(|remote| remote.group_priority).chain(own).max()), group.name.to_string())
    });
    groups
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_string() } else { format!("{group}/{version}") }
}

/// Answers a path of discovery; `None` for a path that is not.
pub fn answer(server: &Server, path: &str, query: &Query, headers: &HeaderMap) -> Result<Option<Response<Body>>, Status> {
    let (catalogue, remotes) = (server.catalogue.load(), server.aggregation.remotes());
    let groups = groups(&catalogue, &remotes);
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    if matches!(parts.as_slice(), ["api"] | ["apis"])
        && let Some(version) = aggregated_version(headers)
    {
        let document = aggregated(server, &groups, parts[0] == "api", version);
        return Ok(Some(aggregated_response(&document, version, headers)));
    }
    let document = match parts.as_slice() {
        [""] => json!({"paths": paths(&groups)}),
        ["api"] => {
            let address = format!("{}:{}", server.config.advertise_address, server.config.secure_port);
            json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]})
        }
        ["apis"] => {
            let list: Vec<Value> = groups.iter().filter(|group| !group.name.is_empty()).map(api_group).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
        }
        ["apis", name] => match groups.iter().find(|group| group.name == *name) {
            Some(group) => {
                let mut document = api_group(group);
                document["kind"] = json!("APIGroup");
                document["apiVersion"] = json!("v1");
                document
            }
            None => match registered(server, name) {
                Some(document) => document,
                None => return Ok(None),
            },
        },
        ["api", version] => resource_list(&groups, "", version)?,
        ["apis", name, version] if groups.iter().any(|group| group.name == *name && is_custom(group) && !group.versions.contains(version)) => {
            return Ok(None);
        }
        ["apis", name, version] if groups.iter().any(|group| group.name == *name) => resource_list(&groups, name, version)?,
        _ => return Ok(None),
    };
    // Where there is nothing but JSON and YAML, a wrong Accept gets other words.
    let as_something = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).is_some_and(|accept| accept.contains("as="));
    let output = Output::negotiate(headers, query, false, false).map_err(|status| if as_something { status } else { not_acceptable() })?;
    Ok(Some(output.value(StatusCode::OK, &document)))
}

/// The document of a group that APIServices call local, though nothing of it is served.
fn registered(server: &Server, name: &str) -> Option<Value> {
    let mut versions: Vec<(i64, String)> = aggregation::all(server)
        .iter()
        .filter(|service| service.str_at("spec.group") == Some(name) && service.at("spec.service").is_none_or(Value::is_null))
        .map(|service| (service.i64_at("spec.versionPriority").unwrap_or(0), service.str_at("spec.version").unwrap_or_default().to_string()))
        .collect();
    versions.sort_by_cached_key(|(priority, version)| (Reverse(*priority), version_priority(version)));
    let versions: Vec<&str> = versions.iter().map(|(_, version)| version.as_str()).collect();
    if versions.is_empty() {
        return None;
    }
    let mut document = api_group(&Group { name, versions, kinds: vec![], remotes: vec![] });
    document["kind"] = json!("APIGroup");
    document["apiVersion"] = json!("v1");
    Some(document)
}

fn is_custom(group: &Group<'_>) -> bool {
    group.kinds.iter().all(|kind| kind.custom.is_some())
}

fn not_acceptable() -> Status {
    let mut status =
        Status::not_acceptable_because(format!("406: Not Acceptable\n\nAvailable representations: {}", crate::encode::MEDIA_TYPES.join(", ")));
    status.details = Some(Default::default());
    status
}

fn paths(groups: &[Group<'_>]) -> Vec<String> {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/apis",
        "/apis/",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(String::from)
    .into();
    for group in groups {
        if group.name.is_empty() {
            paths.extend(group.versions.iter().map(|version| format!("/api/{version}")));
        } else {
            paths.push(format!("/apis/{}", group.name));
            paths.extend(group.versions.iter().map(|version| format!("/apis/{}/{version}", group.name)));
        }
    }
    paths.sort();
    paths
}

fn api_group(group: &Group<'_>) -> Value {
    let of = |version: &&str| json!({"groupVersion": group_version(group.name, version), "version": version});
    json!({"name": group.name, "versions": group.versions.iter().map(of).collect::<Vec<_>>(), "preferredVersion": group.versions.first().map(of)})
}

fn resource_list(groups: &[Group<'_>], name: &str, version: &str) -> Result<Value, Status> {
    let group = groups.iter().find(|group| group.name == name && group.versions.contains(&version)).ok_or_else(Status::path_not_found)?;
    let mut resources = Vec::new();
    for kind in group.kinds.iter().filter(|kind| kind.versions.iter().any(|served| served == version)) {
        let kind = kind.view(version).unwrap_or(kind);
        let mut resource = json!({
            "name": kind.resource, "singularName": kind.singular, "namespaced": kind.namespaced_scope(), "kind": kind.kind, "verbs": kind.verbs,
        });
        add_names(&mut resource, kind);
        if kind.is_stored() {
            resource["storageVersionHash"] = json!(storage_version_hash(kind));
        }
        resources.push(resource);
        let mut subresources: Vec<&Subresource> = kind.subresources.iter().collect();
        // Those of definitions stand in an order of their own: status, scale.
        if kind.custom.is_none() {
            subresources.sort_by_key(|subresource| subresource.name());
        }
        for subresource in subresources {
            let ((group, version, shown), verbs) = describe(kind, subresource);
            let mut resource = json!({
                "name": format!("{}/{}", kind.resource, subresource.name()), "singularName": "", "namespaced": kind.namespaced_scope(), "kind": shown, "verbs": verbs,
            });
            if !version.is_empty() {
                resource["group"] = json!(group);
                resource["version"] = json!(version);
            }
            resources.push(resource);
        }
    }
    let mut list = json!({"kind": "APIResourceList", "groupVersion": group_version(name, version), "resources": resources});
    // The core group's list is older than the convention.
    if !name.is_empty() {
        list["apiVersion"] = json!("v1");
    }
    Ok(list)
}

fn add_names(resource: &mut Value, kind: &Kind) {
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
}

/// Group, version and kind (the first two empty if they are the resource's own) and verbs of a subresource.
fn describe<'a>(kind: &'a Kind, subresource: &'a Subresource) -> ((&'a str, &'a str, &'a str), &'a [&'a str]) {
    const CHANGEABLE: &[&str] = &["get", "patch", "update"];
    match subresource {
        Subresource::Status => (("", "", &kind.kind), CHANGEABLE),
        Subresource::Scale { .. } => (("autoscaling", "v1", "Scale"), CHANGEABLE),
        Subresource::Connect { group_version_kind, verbs, .. } => (*group_version_kind, verbs),
    }
}

/// Kinds that Kubernetes stores in an older version than the one that it serves.
const HASHED_AS: [(&str, &str, &str); 3] = [
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy", "v1beta1"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding", "v1beta1"),
    ("apiextensions.k8s.io", "CustomResourceDefinition", "v1beta1"),
];

/// How clients tell that the stored version of a kind has changed.
fn storage_version_hash(kind: &Kind) -> String {
    let (group, _) = keys::stored(kind);
    let older = HASHED_AS.iter().find(|(group, name, _)| *group == kind.group && *name == kind.kind);
    let version = older.map_or(kind.version(), |(_, _, version)| version);
    let digest = Sha256::digest(format!("{group}/{version}/{}", kind.kind));
    STANDARD.encode(&digest[..8])
}

/// The version of aggregated discovery that the client prefers to what else it accepts.
fn aggregated_version(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers.get(header::ACCEPT)?.to_str().ok()?;
    for clause in accept.split(',') {
        let mut parts = clause.split(';').map(str::trim);
        if parts.next() != Some("application/json") {
            continue;
        }
        let parameters: Map<String, Value> = parts.filter_map(|part| part.split_once('=')).map(|(k, v)| (k.to_string(), json!(v))).collect();
        if parameters.get("g").is_some_and(|group| group == "apidiscovery.k8s.io")
            && parameters.get("as").is_some_and(|kind| kind == "APIGroupDiscoveryList")
        {
            match parameters.get("v").and_then(Value::as_str) {
                Some("v2") => return Some("v2"),
                Some("v2beta1") => return Some("v2beta1"),
                _ => continue,
            }
        }
        if !parameters.contains_key("as") {
            return None;
        }
    }
    None
}

fn aggregated(server: &Server, groups: &[Group<'_>], core: bool, version: &str) -> Value {
    let items: Vec<Value> = groups
        .iter()
        .filter(|group| group.name.is_empty() == core)
        .map(|group| {
            let versions: Vec<Value> = group.versions.iter().map(|version| aggregated_group_version(server, group, version)).collect();
            let metadata = if core { json!({}) } else { json!({"name": group.name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {}, "items": items})
}

fn aggregated_group_version(server: &Server, group: &Group<'_>, version: &str) -> Value {
    if let Some(remote) = group.remotes.iter().find(|remote| remote.version == version) {
        let known = server.aggregation.known(remote);
        let freshness = if remote.available && known.is_some() { "Current" } else { "Stale" };
        return json!({"version": version, "resources": known.map(|known| known.resources.clone()).unwrap_or_default(), "freshness": freshness});
    }
    let resources = group.kinds.iter().filter(|kind| kind.versions.iter().any(|served| served == version)).map(|kind| {
        let kind = kind.view(version).unwrap_or(kind);
        let response_kind = |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
        let mut resource = json!({
            "resource": kind.resource, "responseKind": response_kind(("", "", &kind.kind)), "scope": if kind.namespaced_scope() { "Namespaced" } else { "Cluster" },
            "singularResource": kind.singular, "verbs": kind.verbs,
        });
        add_names(&mut resource, kind);
        let mut subresources: Vec<&Subresource> = kind.subresources.iter().collect();
        // Those of definitions stand in an order of their own: status, scale.
        if kind.custom.is_none() {
            subresources.sort_by_key(|subresource| subresource.name());
        }
        if !subresources.is_empty() {
            let shown = subresources.iter().map(|subresource| {
                let (shown, verbs) = describe(kind, subresource);
                json!({"subresource": subresource.name(), "responseKind": response_kind(shown), "verbs": verbs})
            });
            resource["subresources"] = shown.collect();
        }
        resource
    });
    json!({"version": version, "resources": resources.collect::<Vec<_>>(), "freshness": "Current"})
}

fn aggregated_response(document: &Value, version: &str, headers: &HeaderMap) -> Response<Body> {
    let text = document.to_string();
    let tag = format!("\"{}\"", Sha256::digest(&text).iter().map(|byte| format!("{byte:02X}")).collect::<String>());
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == tag.as_bytes());
    let content_type = match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    let mut response =
        if known { respond(StatusCode::NOT_MODIFIED, content_type, full("")) } else { respond(StatusCode::OK, content_type, full(text)) };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_storage_version_hash_is_that_of_kubernetes() {
        assert_eq!(storage_version_hash(&Kind::namespaced("", "v1", "ConfigMap", "configmaps")), "qFsyl6wFWjQ=");
    }
}
