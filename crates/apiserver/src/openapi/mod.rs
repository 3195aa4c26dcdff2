//! OpenAPI: v2 as one document, v3 as one document per group and version with an index of hashes.
//!
//! Made from the catalogue (paths) and the schema facts (types), once per catalogue, when first asked for. What clients
//! read out of it: the types (`explain`, merge keys), and which parameters a write takes (`fieldValidation`, `dryRun`).

mod custom;
pub(crate) mod merged;
mod operations;
mod protobuf;
mod roots;

use crate::{Body, Server, body::full, encode::respond};
use api::{Catalogue, Kind, Status, kind::Subresource, schema};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Which OpenAPI something is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    V2,
    V3,
}

impl Form {
    /// How a type is referred to.
    fn reference(self, name: &str) -> Value {
        match self {
            Form::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Form::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

/// A finished document.
#[derive(Clone)]
struct Document {
    bytes: Bytes,
    hash: String,
}

impl Document {
    fn new(value: &Value) -> Document {
        Document::of(value.to_string().into())
    }
    fn of(bytes: Bytes) -> Document {
        let hash = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02X}")).collect();
        Document { bytes, hash }
    }
}

/// The names of the document of all groups, as JSON and as protobuf.
const ALL_GROUPS: [&str; 2] = ["v2", "v2 protobuf"];

/// Finished documents, made when first asked for: those of the built-in groups once, all others once per catalogue.
#[derive(Default)]
pub struct Documents {
    built_in: Mutex<BTreeMap<String, Document>>,
    made: Mutex<Option<(Arc<Catalogue>, BTreeMap<String, Document>)>>,
}

impl Documents {
    fn get(&self, catalogue: &Arc<Catalogue>, name: &str, make: impl FnOnce() -> Option<Value>) -> Option<Document> {
        self.get_made(catalogue, name, || make().map(|value| Document::new(&value)))
    }
    fn get_made(&self, catalogue: &Arc<Catalogue>, name: &str, make: impl FnOnce() -> Option<Document>) -> Option<Document> {
        let mut made = self.made.lock();
        let (_, documents) = match &mut *made {
            Some(current) if Arc::ptr_eq(&current.0, catalogue) => current,
            stale => stale.insert((catalogue.clone(), BTreeMap::new())),
        };
        if let Some(found) = documents.get(name) {
            return Some(found.clone());
        }
        let document = make()?;
        documents.insert(name.to_string(), document.clone());
        Some(document)
    }
    /// Forgets the document of all groups, for a server behind this one says something new.
    pub fn forget_all_groups(&self) {
        if let Some((_, documents)) = &mut *self.made.lock() {
            documents.retain(|name, _| !ALL_GROUPS.contains(&name.as_str()));
        }
    }
    /// The document of one group and version.
    fn of_group(&self, catalogue: &Arc<Catalogue>, name: &str) -> Option<Document> {
        let defined =
            catalogue.iter().filter(|kind| kind.custom.is_some()).any(|kind| kind.versions.iter().any(|version| prefix(kind, version) == name));
        if defined {
            return self.get(catalogue, name, || v3(catalogue, name));
        }
        let mut built_in = self.built_in.lock();
        if let Some(found) = built_in.get(name) {
            return Some(found.clone());
        }
        let document = Document::new(&v3(catalogue, name)?);
        built_in.insert(name.to_string(), document.clone());
        Some(document)
    }
}

/// Answers a path of OpenAPI; `None` for a path that is not.
pub fn answer(server: &Server, path: &str, request: &Request<Body>) -> Result<Option<Response<Body>>, Status> {
    let catalogue = server.catalogue.load_full();
    let documents = &server.openapi;
    match path {
        "/openapi/v2" => {
            let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
            if accept.split(',').any(|clause| protobuf::MEDIA_TYPES.contains(&clause.trim())) {
                let make = || Some(Document::of(protobuf::encode(&all_groups(server, &catalogue)).into()));
                return Ok(documents
                    .get_made(&catalogue, ALL_GROUPS[1], make)
                    .map(|document| served(&document, protobuf::MEDIA_TYPE, request.headers())));
            }
            Ok(documents.get(&catalogue, ALL_GROUPS[0], || Some(all_groups(server, &catalogue))).map(|document| serve(&document, request.headers())))
        }
        "/openapi/v3" => {
            let mut index = Map::new();
            for name in group_versions(&catalogue) {
                let Some(document) = documents.of_group(&catalogue, &name) else { continue };
                index.insert(name.clone(), json!({"serverRelativeURL": place(&name, &document)}));
            }
            for known in server.aggregation.remotes().iter().filter_map(|remote| server.aggregation.known(remote)) {
                index.extend(known.open_api.iter().map(|(name, place)| (name.clone(), json!({"serverRelativeURL": place}))));
            }
            Ok(Some(serve(&Document::new(&json!({"paths": index})), request.headers())))
        }
        _ => {
            let Some(name) = path.strip_prefix("/openapi/v3/") else { return Ok(None) };
            if !accepts_json(request.headers()) {
                return Ok(Some(respond(StatusCode::NOT_ACCEPTABLE, "text/plain; charset=utf-8", full(""))));
            }
            let Some(document) = documents.of_group(&catalogue, name) else {
                return Ok(Some(respond(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", full(""))));
            };
            // The index names documents by hash: such a one never changes. Who asks by an old hash is sent on.
            let asked = request.uri().query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("hash="));
            if let Some(asked) = asked.filter(|asked| !asked.is_empty()) {
                let mut response = if asked == document.hash {
                    serve(&document, request.headers())
                } else {
                    let mut response = respond(StatusCode::MOVED_PERMANENTLY, "text/plain; charset=utf-8", full(""));
                    if let Ok(place) = HeaderValue::from_str(&place(name, &document)) {
                        response.headers_mut().insert(header::LOCATION, place);
                    }
                    response
                };
                if asked == document.hash {
                    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
                }
                return Ok(Some(response));
            }
            Ok(Some(serve(&document, request.headers())))
        }
    }
}

fn accepts_json(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.is_empty()
        || accept.split(',').any(|clause| matches!(clause.split(';').next().unwrap_or_default().trim(), "application/json" | "application/*" | "*/*"))
}

fn serve(document: &Document, headers: &HeaderMap) -> Response<Body> {
    if accepts_json(headers) {
        served(document, "application/json", headers)
    } else {
        respond(StatusCode::NOT_ACCEPTABLE, "text/plain; charset=utf-8", full(""))
    }
}

/// Where a document is, under the name that its content gives it.
fn place(name: &str, document: &Document) -> String {
    format!("/openapi/v3/{name}?hash={}", document.hash)
}

fn served(document: &Document, content_type: &'static str, headers: &HeaderMap) -> Response<Body> {
    let tag = format!("\"{}\"", document.hash);
    let matches = |known: &str| known.split(',').map(str::trim).any(|known| known == "*" || known.trim_start_matches("W/") == tag);
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).is_some_and(matches);
    let mut response = if known {
        respond(StatusCode::NOT_MODIFIED, content_type, full(""))
    } else {
        respond(StatusCode::OK, content_type, full(document.bytes.clone()))
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// `api/v1`, `apis/apps/v1`, ...: the names of the documents of v3.
fn group_versions(catalogue: &Catalogue) -> BTreeSet<String> {
    let versions = catalogue.iter().flat_map(|kind| kind.versions.iter().map(|version| prefix(kind, version)));
    versions.chain(roots::all(catalogue).into_keys()).collect()
}

/// The document of a path that belongs to no version of a group.
fn root(catalogue: &Catalogue, name: &str) -> Option<Value> {
    let root = roots::all(catalogue).remove(name)?;
    let mut paths = Map::new();
    root.add(name, &mut paths, Form::V3);
    let schemas = closure(root.answer().into_iter().collect());
    Some(json!({"openapi": "3.0.0", "info": info(), "paths": paths, "components": {"schemas": schemas}}))
}

fn prefix(kind: &Kind, version: &str) -> String {
    if kind.group.is_empty() { format!("api/{version}") } else { format!("apis/{}/{version}", kind.group) }
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": crate::health::GIT_VERSION})
}

/// The document of one group and version.
fn v3(catalogue: &Catalogue, name: &str) -> Option<Value> {
    let mut paths = Map::new();
    let mut wanted = BTreeSet::new();
    let mut defined = Map::new();
    let mut is_custom = false;
    for kind in catalogue.iter() {
        for version in kind.versions.iter().filter(|version| prefix(kind, version) == name) {
            let kind = kind.view(version).unwrap_or(kind);
            add_paths(&mut paths, kind, version, Form::V3);
            if kind.custom.is_some() {
                is_custom = true;
                defined.extend(custom::definitions(kind, version, Form::V3));
                wanted.extend(custom::REFERRED_TO);
                continue;
            }
            for (name, text) in kind.definitions {
                wanted.extend(schema::definitions().map(|(known, _)| known).filter(|known| text.contains(&format!("/{known}\""))));
                defined.insert(name.to_string(), schema::relinked(text));
            }
            let kinds = [kind.kind.as_str(), kind.list_kind.as_str()];
            wanted.extend(kinds.iter().filter_map(|shown| schema::definition_name(&kind.group, version, shown)));
        }
    }
    if paths.is_empty() {
        return root(catalogue, name);
    }
    if let Some(root) = roots::all(catalogue).get(name) {
        root.add(name, &mut paths, Form::V3);
    }
    wanted.extend([
        "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
        "io.k8s.apimachinery.pkg.apis.meta.v1.Patch",
        "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
    ]);
    // Subresources are of types of other groups.
    let paths = Value::Object(paths);
    let text = paths.to_string();
    let referred: BTreeSet<&str> = text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    wanted.extend(schema::definitions().map(|(name, _)| name).filter(|name| referred.contains(name)));
    let mut schemas = closure(wanted);
    if !defined.is_empty() {
        custom::without_unknown_groups(&mut schemas);
    }
    schemas.extend(defined);
    let info = if is_custom { json!({"title": "Kubernetes CRD Swagger", "version": "v0.1.0"}) } else { info() };
    Some(json!({"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}))
}

/// The definitions named, and all that they refer to, in the form of v3.
fn closure(mut wanted: BTreeSet<&'static str>) -> Map<String, Value> {
    let all: BTreeMap<&str, &str> = schema::definitions().collect();
    let mut schemas = Map::new();
    while let Some(name) = wanted.pop_first() {
        let Some((name, text)) = all.get_key_value(name) else { continue };
        const OLD: &str = "#/definitions/";
        for reference in text.split(OLD).skip(1) {
            let end = reference.find('"').unwrap_or(reference.len());
            if !schemas.contains_key(&reference[..end])
                && let Some((known, _)) = all.get_key_value(&reference[..end])
            {
                wanted.insert(known);
            }
        }
        // The facts are ours and always parse.
        let mut schema = serde_json::from_str(&text.replace(OLD, "#/components/schemas/")).unwrap_or_else(|_| json!({}));
        schema::describe(name, &mut schema, true);
        operations::defaults(&mut schema);
        schemas.insert(name.to_string(), schema);
    }
    schemas
}

/// The document of all groups, those that other servers serve among them.
fn all_groups(server: &Server, catalogue: &Catalogue) -> Value {
    let mut document = v2(catalogue);
    for remote in server.aggregation.remotes() {
        if let Some(part) = server.aggregation.known(&remote).and_then(|known| known.open_api_v2.clone()) {
            merged::merge(&mut document, &part);
        }
    }
    document
}

fn v2(catalogue: &Catalogue) -> Value {
    let mut paths = Map::new();
    roots::all(catalogue).iter().for_each(|(path, root)| root.add(path, &mut paths, Form::V2));
    let definition = |(name, text): (&str, &str)| {
        let mut definition = serde_json::from_str(text).unwrap_or_else(|_| json!({}));
        schema::describe(name, &mut definition, false);
        (name.to_string(), definition)
    };
    let mut definitions: Map<String, Value> = schema::definitions().map(definition).collect();
    for kind in catalogue.iter() {
        for version in &kind.versions {
            let kind = kind.view(version).unwrap_or(kind);
            add_paths(&mut paths, kind, version, Form::V2);
            if kind.custom.is_some() {
                definitions.extend(custom::definitions(kind, version, Form::V2));
            }
            definitions
                .extend(kind.definitions.iter().map(|(name, text)| (name.to_string(), serde_json::from_str(text).unwrap_or_else(|_| json!({})))));
        }
    }
    json!({"swagger": "2.0", "info": info(), "paths": paths, "definitions": definitions})
}

fn add_paths(paths: &mut Map<String, Value>, kind: &Kind, version: &str, form: Form) {
    let root = format!("/{}", prefix(kind, version));
    let namespaced = kind.namespaced_scope();
    let place = |root: &str| {
        if namespaced { format!("{root}/namespaces/{{namespace}}/{}", kind.resource) } else { format!("{root}/{}", kind.resource) }
    };
    let collection = place(&root);
    let own = (kind.group.as_str(), version, kind.kind.as_str());
    let can = |verb: &str| kind.verbs.iter().any(|known| known == verb);
    let mut add = |path: String, in_namespace: bool, operations: &[(&str, &str, &str)], shown: (&str, &str, &str)| {
        let mut item = Map::new();
        // `{name}` may be followed by a part of the object.
        let part = path.rsplit_once("{name}/").map_or("", |(_, part)| part);
        let everywhere = !in_namespace && namespaced;
        for (method, action, verb) in operations {
            if verb.is_empty() || can(verb) {
                let mut made = operation(kind, version, action, part, shown, form);
                made["operationId"] = json!(operations::id(kind, version, method, action, part, everywhere));
                made["description"] = json!(operations::description(kind, action, part));
                made["tags"] = json!([operations::tag(kind, version)]);
                item.insert(method.to_string(), made);
            }
        }
        if item.is_empty() {
            return;
        }
        let places = [("name", path.contains("{name}")), ("namespace", in_namespace), ("path", path.ends_with(operations::REST))];
        let mut parameters: Vec<Value> = places.iter().filter(|(_, there)| *there).map(|(name, _)| parameter(name, "path", "string", form)).collect();
        parameters.extend(options(kind, part, shown.2).into_iter().map(|(name, type_)| parameter(name, "query", type_, form)));
        if operations.iter().all(|(_, action, _)| *action != "connect") {
            parameters.push(parameter("pretty", "query", "string", form));
        }
        // Where there is one operation its parameters are the path's; a body is its own.
        if item.len() == 1
            && let Some(only) = item.values_mut().next().and_then(Value::as_object_mut)
            && let Some(Value::Array(all)) = only.remove("parameters")
        {
            let (body, others): (Vec<Value>, Vec<Value>) = all.into_iter().partition(|parameter| parameter["in"] == "body");
            if !body.is_empty() {
                only.insert("parameters".into(), body.into());
            }
            parameters.extend(others);
        }
        parameters.sort_by_key(|parameter| [&parameter["name"], &parameter["in"]].map(|text| text.as_str().map(String::from)));
        item.insert("parameters".into(), parameters.into());
        paths.insert(path, Value::Object(item));
    };
    let named = format!("{collection}/{{name}}");
    let all = format!("{root}/{}", kind.resource);
    if namespaced && can("list") {
        add(all, false, &[("get", "list", "list")], own);
    }
    if kind.custom.is_none() && can("watch") {
        let watched = format!("{root}/watch");
        if namespaced {
            add(format!("{watched}/{}", kind.resource), false, &[("get", "watchlist", "")], own);
        }
        add(place(&watched), namespaced, &[("get", "watchlist", "")], own);
        add(format!("{}/{{name}}", place(&watched)), namespaced, &[("get", "watch", "get")], own);
    }
    let of_all = [("get", "list", "list"), ("post", "post", "create"), ("delete", "deletecollection", "deletecollection")];
    add(collection.clone(), namespaced, &of_all, own);
    let of_one = [("get", "get", "get"), ("put", "put", "update"), ("patch", "patch", "patch"), ("delete", "delete", "delete")];
    add(named.clone(), namespaced, &of_one, own);
    for subresource in &kind.subresources {
        let path = format!("{named}/{}", subresource.name());
        let changeable = [("get", "get", ""), ("put", "put", ""), ("patch", "patch", "")];
        match subresource {
            Subresource::Status => add(path, namespaced, &changeable, own),
            Subresource::Scale { .. } => add(path, namespaced, &changeable, ("autoscaling", "v1", "Scale")),
            Subresource::Connect { group_version_kind: (group, shown_version, shown), verbs, .. } => {
                // What joins the client to something else has the same action whatever the method; the others are reads and writes.
                let joins = matches!(subresource.name(), "attach" | "exec" | "portforward" | "proxy");
                let action = |own: &'static str| if joins { "connect" } else { own };
                let of = |verb: &str| match verb {
                    "create" => ("post", action("post"), ""),
                    "update" => ("put", action("put"), ""),
                    "patch" => ("patch", action("patch"), ""),
                    "delete" => ("delete", action("delete"), ""),
                    _ => ("get", action("get"), ""),
                };
                let mut operations: Vec<_> = verbs.iter().map(|verb| of(verb)).collect();
                let shown = if shown_version.is_empty() { (kind.group.as_str(), version, *shown) } else { (*group, *shown_version, *shown) };
                if subresource.name() == "proxy" {
                    operations.extend([("head", "connect", ""), ("options", "connect", "")]);
                    add(format!("{path}{}", operations::REST), namespaced, &operations, shown);
                }
                add(path, namespaced, &operations, shown);
            }
        }
    }
}

/// What the query of a request for a part of an object may say, in the words of the part's options.
fn options(kind: &Kind, part: &str, shown: &str) -> Vec<(&'static str, &'static str)> {
    match part {
        "" => Vec::new(),
        _ if shown.ends_with("Options") => api::protobuf::parameters(shown),
        _ => api::protobuf::parameters(&format!("{}{}Options", kind.kind, operations::capital(part))),
    }
}

fn parameter(name: &str, place: &str, type_: &str, form: Form) -> Value {
    let mut parameter = json!({"name": name, "in": place});
    if form == Form::V3 {
        parameter["schema"] = json!({"type": type_, "uniqueItems": true});
    } else {
        parameter["type"] = json!(type_);
        parameter["uniqueItems"] = json!(true);
    }
    if place == "path" {
        parameter["required"] = json!(true);
    }
    parameter
}

fn operation(kind: &Kind, version: &str, action: &str, part: &str, (group, shown_version, shown): (&str, &str, &str), form: Form) -> Value {
    const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
    let mut parameters: Vec<Value> = Vec::new();
    let query = |names: &[(&str, &str)]| names.iter().map(|(name, type_)| parameter(name, "query", type_, form)).collect::<Vec<_>>();
    match action {
        "list" | "deletecollection" | "watch" | "watchlist" => parameters.extend(query(&[
            ("continue", "string"),
            ("fieldSelector", "string"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("resourceVersion", "string"),
            ("resourceVersionMatch", "string"),
            ("sendInitialEvents", "boolean"),
            ("shardSelector", "string"),
            ("timeoutSeconds", "integer"),
        ])),
        "post" | "put" => parameters.extend(query(&[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")])),
        "patch" => parameters.extend(query(&[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")])),
        // What is built in has no choice of versions to read.
        "get" if kind.custom.is_some() => parameters.extend(query(&[("resourceVersion", "string")])),
        _ => {}
    }
    if matches!(action, "list" | "watch" | "watchlist") || (action == "deletecollection" && kind.custom.is_some()) {
        parameters.extend(query(&[("allowWatchBookmarks", "boolean"), ("watch", "boolean")]));
    }
    if action == "delete" || (action == "deletecollection" && kind.custom.is_none()) {
        parameters.extend(query(&[
            ("dryRun", "string"),
            ("gracePeriodSeconds", "integer"),
            ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
            ("orphanDependents", "boolean"),
            ("propagationPolicy", "string"),
        ]));
    }
    let name_of = |group: &str, version: &str, shown: &str| match kind.custom {
        Some(_) if group == kind.group => Some(custom::definition_name(group, version, shown)),
        None if !kind.definitions.is_empty() && shown == kind.kind => kind.definitions.first().map(|(name, _)| name.to_string()),
        None if !kind.definitions.is_empty() && shown == kind.list_kind => kind.definitions.get(1).map(|(name, _)| name.to_string()),
        _ => schema::definition_name(group, version, shown).map(String::from),
    };
    let answer = match action {
        "list" => name_of(&kind.group, version, &kind.list_kind),
        "delete" | "deletecollection" => Some(format!("{META}.Status")),
        "watch" | "watchlist" => Some(format!("{META}.WatchEvent")),
        _ => name_of(group, shown_version, shown),
    };
    let is_text = action == "connect" || part == operations::LOG;
    let answer = if is_text { Some(json!({"type": "string"})) } else { answer.map(|name| form.reference(&name)) };
    let response = |description: &str| {
        let mut response = json!({"description": description});
        if let Some(answer) = &answer {
            match form {
                Form::V2 => response["schema"] = answer.clone(),
                Form::V3 => response["content"] = operations::content(operations::answers(kind.custom.is_some(), action, part), answer),
            }
        }
        response
    };
    let mut responses: Map<String, Value> =
        operations::codes(kind.custom.is_some(), action).iter().map(|(code, text)| (code.to_string(), response(text))).collect();
    responses.insert("401".into(), json!({"description": "Unauthorized"}));
    let mut operation = json!({
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": group, "version": shown_version, "kind": shown},
        "responses": responses,
    });
    let body = match action {
        "post" | "put" => name_of(group, shown_version, shown),
        "patch" => Some(format!("{META}.Patch")),
        "delete" => Some(format!("{META}.DeleteOptions")),
        "deletecollection" if kind.custom.is_none() => Some(format!("{META}.DeleteOptions")),
        _ => None,
    };
    if let Some(name) = body {
        let required = matches!(action, "post" | "put" | "patch");
        if form == Form::V3 {
            operation["requestBody"] =
                json!({"content": operations::content(operations::bodies(kind.custom.is_some(), action), &form.reference(&name))});
            if required {
                operation["requestBody"]["required"] = json!(true);
            }
        } else {
            let mut body = json!({"name": "body", "in": "body"});
            body["schema"] = form.reference(&name);
            if required {
                body["required"] = json!(true);
            }
            parameters.push(body);
        }
    }
    if !parameters.is_empty() {
        parameters.sort_by_key(|parameter| parameter["name"].as_str().map(String::from));
        operation["parameters"] = parameters.into();
    }
    if form == Form::V2 {
        operation["produces"] = json!(operations::answers(kind.custom.is_some(), action, part));
        operation["consumes"] = json!(operations::bodies(kind.custom.is_some(), action));
    }
    operation
}
