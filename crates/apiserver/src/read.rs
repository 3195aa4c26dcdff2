//! get and list: from the watch cache, bytes out.

use crate::{
    cache::{Entry, ResourceCache, Selection, Snapshot},
    connect::{Answer, Call},
    conversion,
    encode::ListMetadata,
};
use api::{
    Kind, Status, field,
    request::{GetOptions, ListOptions, VersionMatch},
    structure,
};
use base64::{DecodeError, Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::StatusCode;
use serde_json::{Value, json};
use std::{sync::Arc, time::Instant};
use store::Revision;

pub async fn get(call: Call) -> Answer {
    let options = GetOptions::parse(&call.query)?;
    call.output.check_list(false, &call.kind.kind)?;
    match options.resource_version.as_str() {
        "" => call.server.cache.fresh().await?,
        text => call.server.cache.reach(Revision(number(text).map_err(Status::unknown)?)).await?,
    }
    let found = call.server.cache.of(&call.kind).get(call.namespace(), &call.info.name);
    let entry = found.ok_or_else(|| Status::not_found(call.resource(), &call.info.name))?;
    let entry = conversion::entry(&call.server, &call.view(), entry).await?;
    Ok(call.output.entry(StatusCode::OK, &call.view(), &entry))
}

pub async fn list(call: Call) -> Answer {
    call.output.check_list(true, &call.kind.list_kind)?;
    let options = ListOptions::parse(&call.query)?;
    let (entries, metadata) = select(&call, &options).await?;
    let entries = conversion::entries(&call.server, &call.view(), entries).await?;
    Ok(call.output.list(&call.view(), entries, &metadata))
}

/// The objects that a list (or deletecollection) is about, and the list's metadata.
pub async fn select(call: &Call, options: &ListOptions) -> Result<(Vec<Arc<Entry>>, ListMetadata), Status> {
    check_versions(options)?;
    let selection = selection(call, options)?;
    let (entries, metadata) = stored(call, options, &selection).await?;
    if !selection.fields_later {
        return Ok((entries, metadata));
    }
    // A page may get shorter by this, as Kubernetes' pages may.
    let selection = Selection { fields_later: false, ..selection };
    let mut shown = conversion::entries(&call.server, &call.view(), entries).await?;
    shown.retain(|entry| selection.matches(entry));
    Ok((shown, metadata))
}

/// The same, by what can be seen of objects as they are stored.
async fn stored(call: &Call, options: &ListOptions, selection: &Selection) -> Result<(Vec<Arc<Entry>>, ListMetadata), Status> {
    let cache = call.server.cache.of(&call.kind);
    if let Some(found) = labelled(call, options, &cache, selection).await? {
        return Ok(found);
    }
    let (snapshot, start) = version(call, options, &cache).await?;
    let limit = if options.limit == 0 { usize::MAX } else { usize::try_from(options.limit).unwrap_or(usize::MAX) };
    let mut rest = snapshot.entries_from(selection.namespace.as_deref(), start.as_deref());
    let mut entries = Vec::new();
    while entries.len() < limit {
        let Some(entry) = rest.next() else { break };
        if selection.matches(entry) {
            entries.push(entry.clone());
        }
    }
    let mut metadata = ListMetadata { resource_version: snapshot.revision.to_string(), ..ListMetadata::default() };
    if let (true, Some(last)) = (entries.len() == limit, entries.last()) {
        let left = rest.count();
        // A name selects one object at most: there is no next page.
        if left > 0 && selection.name.is_none() && selection.fields.exact("metadata.name").is_none() {
            metadata.continue_token = Continue { revision: Some(snapshot.revision), after: last.place.to_string() }.encode();
            metadata.remaining = (selection.labels.is_everything() && selection.fields.is_everything()).then_some(left);
            cache.keep(&snapshot, Instant::now());
        }
    }
    Ok((entries, metadata))
}

/// All of the newest objects that a label leads to. `None` for a list of another sort.
async fn labelled(
    call: &Call,
    options: &ListOptions,
    cache: &ResourceCache,
    selection: &Selection,
) -> Result<Option<(Vec<Arc<Entry>>, ListMetadata)>, Status> {
    let newest = options.limit == 0 && options.continue_token.is_empty() && options.version_match != VersionMatch::Exact;
    if !newest || selection.labels.is_everything() {
        return Ok(None);
    }
    match options.resource_version.as_str() {
        "" => call.server.cache.fresh().await?,
        "0" => {}
        text => call.server.cache.reach(wanted(text)?).await?,
    }
    let reached = call.server.cache.reached();
    let Some((entries, revision)) = cache.labelled(selection) else { return Ok(None) };
    Ok(Some((entries, ListMetadata { resource_version: revision.max(reached).to_string(), ..ListMetadata::default() })))
}

/// The version that the options of a list name; 400 if it is none.
fn wanted(text: &str) -> Result<Revision, Status> {
    number(text).map(Revision).map_err(|error| Status::bad_request(format!("invalid resource version: {error}")))
}

/// The version that a list reads, and the place where it begins.
async fn version(call: &Call, options: &ListOptions, cache: &ResourceCache) -> Result<(Snapshot, Option<String>), Status> {
    let newest = || call.server.cache.snapshot_of(&call.kind);
    if !options.continue_token.is_empty() {
        if !matches!(options.resource_version.as_str(), "" | "0") {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let token = Continue::decode(&options.continue_token)?;
        let after = Some(format!("{}\0", token.after));
        let Some(revision) = token.revision else {
            call.server.cache.fresh().await?;
            return Ok((newest(), after));
        };
        let kept = cache.kept(revision, Instant::now()).or_else(|| cache.past(revision).filter(|_| revision <= call.server.cache.reached()));
        let fresh = Continue { revision: None, after: token.after };
        return Ok((kept.ok_or_else(|| Status::continue_expired(&fresh.encode()))?, after));
    }
    match (options.version_match, options.resource_version.as_str()) {
        (_, "") => call.server.cache.fresh().await?,
        (_, "0") => {}
        (VersionMatch::Exact, text) => {
            let revision = wanted(text)?;
            call.server.cache.reach(revision).await?;
            let past = cache.past(revision).ok_or_else(|| Status::expired("The resourceVersion for the provided list is too old."))?;
            return Ok((past, None));
        }
        (_, text) => call.server.cache.reach(wanted(text)?).await?,
    }
    Ok((newest(), None))
}

/// What the options of a list or watch select; 400 for a field that cannot be selected by.
pub fn selection(call: &Call, options: &ListOptions) -> Result<Selection, Status> {
    check_fields(&call.kind, options)?;
    let namespace = Some(call.namespace()).filter(|namespace| !namespace.is_empty()).map(String::from);
    let name = Some(call.info.name.as_str()).filter(|name| !name.is_empty()).map(String::from);
    let fields = options.field_selector.clone();
    let fields_later =
        conversion::is_by_webhook(&call.kind) && fields.fields().any(|field| call.kind.selectable_fields.iter().any(|own| own == field));
    Ok(Selection { namespace, name, labels: options.label_selector.clone(), fields, kind: Some(call.kind.clone()), fields_later })
}

fn check_fields(kind: &Kind, options: &ListOptions) -> Result<(), Status> {
    // Kinds with fields of their own name all they know, and cluster-wide ones among them know no namespace.
    let namespace = kind.namespaced_scope() || (kind.selectable_fields.is_empty() && kind.custom.is_none());
    let known = |field: &str| {
        field == "metadata.name" || (namespace && field == "metadata.namespace") || kind.selectable_fields.iter().any(|known| known == field)
    };
    match options.field_selector.terms.iter().find(|(field, _, _)| !known(field)) {
        None => Ok(()),
        Some((field, _, _)) if kind.selectable_fields.is_empty() && kind.custom.is_none() => {
            Err(Status::bad_request(format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")))
        }
        // One kind names itself.
        Some((field, _, _)) if kind.resource == "resourceslices" => {
            Err(Status::bad_request(format!("field label not supported for {}, Kind={}: {field}", kind.api_version(), kind.kind)))
        }
        Some((field, _, _)) => Err(Status::bad_request(format!("field label not supported: {field}"))),
    }
}

/// A resourceVersion as a number; the error is text in Go's words.
pub fn number(text: &str) -> Result<u64, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| {
        let why = if digits { "value out of range" } else { "invalid syntax" };
        format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: {why}")
    })
}

/// 422 for options that contradict each other.
pub fn invalid_options(errors: &field::Errors) -> Result<(), Status> {
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "ListOptions", "", errors)) }
}

fn check_versions(options: &ListOptions) -> Result<(), Status> {
    let mut errors = field::Errors::default();
    let path = field::Path::new("resourceVersionMatch");
    if options.send_initial_events.is_some() {
        errors.forbidden(field::Path::new("sendInitialEvents"), "sendInitialEvents is forbidden for list");
    }
    if options.version_match != VersionMatch::Unset {
        if options.resource_version.is_empty() {
            errors.forbidden(path.clone(), "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if !options.continue_token.is_empty() {
            errors.forbidden(path.clone(), "resourceVersionMatch is forbidden when continue is provided");
        }
        if options.version_match == VersionMatch::Exact && options.resource_version == "0" {
            errors.forbidden(path, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
    }
    invalid_options(&errors)
}

/// Where the next page begins. `revision` is `None` for a token that goes on in whatever is newest.
#[derive(Debug, PartialEq, Eq)]
struct Continue {
    revision: Option<Revision>,
    after: String,
}

impl Continue {
    fn encode(&self) -> String {
        let revision = self.revision.map_or(json!(-1), |revision| json!(revision.0));
        URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": self.after}).to_string())
    }
    fn decode(text: &str) -> Result<Continue, Status> {
        let bad = |why: &str| Status::bad_request(format!("continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|error| {
            let at = match error {
                DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
                _ => text.len(),
            };
            bad(&format!("illegal base64 data at input byte {at}"))
        })?;
        let value = structure::parse(&bytes, structure::Encoding::Json).map_err(|why| bad(&why))?;
        let version = value.get("v").and_then(Value::as_str).unwrap_or_default();
        if version != "meta.k8s.io/v1" {
            return Err(bad(&format!("server does not recognize this encoded version {version}")));
        }
        let revision = match value.get("rv").and_then(Value::as_i64).unwrap_or_default() {
            0 => return Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)")),
            revision => u64::try_from(revision).ok().map(Revision),
        };
        let after = value.get("start").and_then(Value::as_str).unwrap_or_default();
        if after.is_empty() {
            return Err(bad("encoded start key empty (version meta.k8s.io/v1)"));
        }
        // No step of it may lead out of the list.
        if after.trim_start_matches('/').split('/').any(|step| matches!(step, "" | "." | "..")) {
            return Err(bad(after));
        }
        Ok(Continue { revision, after: after.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens_are_read_as_they_were_made() {
        for revision in [Some(Revision(7)), None] {
            let token = Continue { revision, after: "ns/x".into() };
            assert_eq!(Continue::decode(&token.encode()).unwrap(), token);
        }
        assert_eq!(Continue::decode("what?").unwrap_err().code, 400);
        for (token, why) in [
            ("{}", "server does not recognize this encoded version "),
            (r#"{"v":"meta.k8s.io/v1","start":"a"}"#, "incorrect encoded start resourceVersion (version meta.k8s.io/v1)"),
            (r#"{"v":"meta.k8s.io/v1","rv":1}"#, "encoded start key empty (version meta.k8s.io/v1)"),
            (r#"{"v":"meta.k8s.io/v1","rv":1,"start":"../a"}"#, "../a"),
        ] {
            assert_eq!(Continue::decode(&URL_SAFE_NO_PAD.encode(token)).unwrap_err().message, format!("continue key is not valid: {why}"));
        }
    }

    #[test]
    fn versions_are_numbers() {
        assert_eq!(number("12"), Ok(12));
        assert!(number("-1").unwrap_err().ends_with("parsing \"-1\": invalid syntax"));
        assert!(number("+1").is_err());
        assert!(number("99999999999999999999").unwrap_err().ends_with("value out of range"));
    }
}
