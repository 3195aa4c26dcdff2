//! The options of a request: typed, checked, and refused in Kubernetes' words.

use crate::{
    Value, field, limits,
    object::ObjectExt,
    request::percent_decode,
    selector::{FieldSelector, LabelSelector},
    status::{Result, Status},
    structure::{self, Encoding},
};

/// A decoded query string. Keys keep their order; the first value of a key wins.
#[derive(Clone, Debug, Default)]
pub struct Query(pub Vec<(String, String)>);

impl Query {
    pub fn parse(query: &str) -> Query {
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key, true), percent_decode(value, true))
        };
        Query(query.split('&').filter(|p| !p.is_empty()).map(pair).collect())
    }
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
    pub fn text(&self, key: &str) -> String {
        self.get(key).unwrap_or_default().to_string()
    }
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }
    /// `None` if absent. `false` and `0` are false, anything else is true, also the empty text.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).map(|value| !(value.eq_ignore_ascii_case("false") || value == "0"))
    }
    /// A whole number, or BadRequest.
    pub fn number(&self, key: &str) -> Result<Option<i64>> {
        let parse = |text: &str| match text.parse::<i64>() {
            Ok(number) => Ok(number),
            Err(error) => {
                let why = match error.kind() {
                    std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => "value out of range",
                    _ => "invalid syntax",
                };
                Err(Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: {why}")))
            }
        };
        self.get(key).map(parse).transpose()
    }
}

/// Which version a read wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VersionMatch {
    #[default]
    Unset,
    Exact,
    NotOlderThan,
}

/// What to do about unknown and duplicate fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// What becomes of the dependents of a deleted object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

fn refuse(kind: &str, errors: field::Errors) -> Result<()> {
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", kind, "", &errors)) }
}

/// Options of a get.
#[derive(Clone, Debug, Default)]
pub struct GetOptions {
    pub resource_version: String,
}

impl GetOptions {
    pub fn parse(query: &Query) -> Result<GetOptions> {
        Ok(GetOptions { resource_version: query.text("resourceVersion") })
    }
    /// The version as a number: `None` where none is given.
    pub fn version(&self) -> Result<Option<u64>> {
        version(&self.resource_version).map_err(|why| Status::bad_request(format!("invalid resource version: {why}")))
    }
}

fn version(text: &str) -> Result<Option<u64>, String> {
    match text {
        "" => Ok(None),
        _ => text
            .parse()
            .map(Some)
            .map_err(|_| format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax")),
    }
}

/// Options of list, watch and deletecollection.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub label_selector: LabelSelector,
    pub field_selector: FieldSelector,
    /// As given; see [`ListOptions::version`].
    pub resource_version: String,
    pub version_match: VersionMatch,
    /// Items per page; 0 for all.
    pub limit: u64,
    pub continue_token: String,
    pub timeout_s: Option<u64>,
    pub watch: bool,
    pub allow_bookmarks: bool,
    pub send_initial_events: Option<bool>,
}

/// A watch is a list that goes on.
pub type WatchOptions = ListOptions;

impl ListOptions {
    /// Whether it is a watch is read from the query.
    pub fn parse(query: &Query) -> Result<ListOptions> {
        ListOptions::parse_for(query, query.flag("watch").unwrap_or(false))
    }

    /// The same where the path may already have said that it is a watch.
    pub fn parse_for(query: &Query, watch: bool) -> Result<ListOptions> {
        let positive = |key| query.number(key).map(|number| number.and_then(|n| u64::try_from(n).ok()));
        let options = ListOptions {
            limit: positive("limit")?.unwrap_or(0),
            timeout_s: positive("timeoutSeconds")?.filter(|&s| s > 0),
            label_selector: LabelSelector::parse(query.get("labelSelector").unwrap_or_default())?,
            field_selector: FieldSelector::parse(query.get("fieldSelector").unwrap_or_default())?,
            resource_version: query.text("resourceVersion"),
            version_match: match query.get("resourceVersionMatch") {
                Some("Exact") => VersionMatch::Exact,
                Some("NotOlderThan") => VersionMatch::NotOlderThan,
                _ => VersionMatch::Unset,
            },
            continue_token: query.text("continue"),
            watch,
            allow_bookmarks: query.flag("allowWatchBookmarks").unwrap_or(false),
            send_initial_events: query.flag("sendInitialEvents"),
        };
        refuse("ListOptions", options.problems(query.get("resourceVersionMatch").unwrap_or_default()))?;
        Ok(options)
    }

    fn problems(&self, version_match: &str) -> field::Errors {
        let mut errors = field::Errors::default();
        let field = || field::Path::new("resourceVersionMatch");
        let not_newer = self.version_match != VersionMatch::NotOlderThan;
        if self.watch {
            if self.send_initial_events.is_some() && not_newer {
                errors.forbidden(field(), "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
            }
            if !version_match.is_empty() {
                if self.send_initial_events.is_none() {
                    errors.forbidden(field(), "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
                }
                if not_newer {
                    errors.not_supported(field(), version_match, &["NotOlderThan"]);
                }
                if !self.continue_token.is_empty() {
                    errors.forbidden(field(), "resourceVersionMatch is forbidden when continue is provided");
                }
            }
            return errors;
        }
        if !version_match.is_empty() {
            if self.resource_version.is_empty() {
                errors.forbidden(field(), "resourceVersionMatch is forbidden unless resourceVersion is provided");
            }
            if !self.continue_token.is_empty() {
                errors.forbidden(field(), "resourceVersionMatch is forbidden when continue is provided");
            }
            if self.version_match == VersionMatch::Unset {
                errors.not_supported(field(), version_match, &["Exact", "NotOlderThan", ""]);
            }
            if self.version_match == VersionMatch::Exact && self.resource_version == "0" {
                errors.forbidden(field(), "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
            }
        }
        if self.send_initial_events.is_some() {
            errors.forbidden(field::Path::new("sendInitialEvents"), "sendInitialEvents is forbidden for list");
        }
        errors
    }

    /// The version as a number: `None` where none is given.
    pub fn version(&self) -> Result<Option<u64>> {
        version(&self.resource_version)
            .map_err(|why| if self.watch { Status::unknown(why) } else { Status::bad_request(format!("invalid resource version: {why}")) })
    }
}

/// What all writes have in common.
struct Write<'a> {
    dry_run: Vec<&'a str>,
    manager: &'a str,
    validation: &'a str,
}

impl<'a> Write<'a> {
    fn of(query: &'a Query) -> Write<'a> {
        Write {
            dry_run: query.all("dryRun").collect(),
            manager: query.get("fieldManager").unwrap_or_default(),
            validation: query.get("fieldValidation").unwrap_or_default(),
        }
    }
    fn problems(&self, errors: &mut field::Errors) {
        let field = || field::Path::new("fieldManager");
        if self.manager.len() > limits::FIELD_MANAGER_CHARS_MAX {
            errors.too_long(field(), self.manager, limits::FIELD_MANAGER_CHARS_MAX);
        }
        if let Some(problem) = unprintable(self.manager) {
            errors.invalid(field(), self.manager, &problem);
        }
        dry_run_problems(&self.dry_run, errors);
        if !matches!(self.validation, "" | "Ignore" | "Warn" | "Strict") {
            errors.not_supported(field::Path::new("fieldValidation"), self.validation, &["", "Ignore", "Strict", "Warn"]);
        }
    }
    fn field_validation(&self) -> FieldValidation {
        match self.validation {
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            _ => FieldValidation::Warn,
        }
    }
}

fn dry_run_problems(dry_run: &[&str], errors: &mut field::Errors) {
    if dry_run.iter().any(|value| *value != "All") {
        errors.not_supported(field::Path::new("dryRun"), dry_run.to_vec(), &["All"]);
    }
}

/// What is wrong with the first character of a field manager that cannot be printed.
pub fn unprintable(manager: &str) -> Option<String> {
    let (i, c) = manager.char_indices().find(|(_, c)| !is_printable(*c))?;
    Some(format!("invalid character U+{:04X} (at position {i})", c as u32))
}

fn is_printable(c: char) -> bool {
    c == ' ' || !(c.is_control() || c.is_whitespace())
}

/// The field manager of a write that names none: what the client calls itself, up to the first slash.
pub fn manager_of_user_agent(user_agent: &str) -> String {
    let mut manager = String::new();
    for c in user_agent.split('/').next().unwrap_or_default().chars().filter(|c| is_printable(*c)) {
        if manager.len() + c.len_utf8() > limits::FIELD_MANAGER_CHARS_MAX {
            break;
        }
        manager.push(c);
    }
    manager
}

fn manager(query: &str, user_agent: &str) -> String {
    if query.is_empty() { manager_of_user_agent(user_agent) } else { query.to_string() }
}

/// Options of a create.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
}

/// Options of an update.
#[derive(Clone, Debug, Default)]
pub struct UpdateOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
}

/// Options of a patch.
#[derive(Clone, Debug, Default)]
pub struct PatchOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    /// Whether server-side apply takes fields from other managers.
    pub force: Option<bool>,
}

impl CreateOptions {
    /// `user_agent` gives the field manager where the query names none.
    pub fn parse(query: &Query, user_agent: &str) -> Result<CreateOptions> {
        let write = Write::of(query);
        let mut errors = field::Errors::default();
        write.problems(&mut errors);
        refuse("CreateOptions", errors)?;
        Ok(CreateOptions {
            dry_run: !write.dry_run.is_empty(),
            field_manager: manager(write.manager, user_agent),
            field_validation: write.field_validation(),
        })
    }
}

impl UpdateOptions {
    /// `user_agent` gives the field manager where the query names none.
    pub fn parse(query: &Query, user_agent: &str) -> Result<UpdateOptions> {
        let write = Write::of(query);
        let mut errors = field::Errors::default();
        write.problems(&mut errors);
        refuse("UpdateOptions", errors)?;
        Ok(UpdateOptions {
            dry_run: !write.dry_run.is_empty(),
            field_manager: manager(write.manager, user_agent),
            field_validation: write.field_validation(),
        })
    }
}

impl PatchOptions {
    /// `apply` is whether the patch is a server-side apply.
    pub fn parse(query: &Query, user_agent: &str, apply: bool) -> Result<PatchOptions> {
        let write = Write::of(query);
        let force = query.flag("force");
        let mut errors = field::Errors::default();
        if apply && write.manager.is_empty() {
            errors.required(field::Path::new("fieldManager"), "is required for apply patch");
        }
        if !apply && force.is_some() {
            errors.forbidden(field::Path::new("force"), "may not be specified for non-apply patch");
        }
        write.problems(&mut errors);
        refuse("PatchOptions", errors)?;
        Ok(PatchOptions {
            dry_run: !write.dry_run.is_empty(),
            field_manager: manager(write.manager, user_agent),
            field_validation: write.field_validation(),
            force,
        })
    }
}

/// Options of a delete.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeleteOptions {
    pub grace_period_s: Option<i64>,
    /// Precondition: the object's uid.
    pub uid: Option<String>,
    /// Precondition: the object's version.
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub orphan_dependents: Option<bool>,
    pub dry_run: bool,
    pub ignore_store_read_error: bool,
}

impl DeleteOptions {
    /// From the body (JSON or YAML) if there is one, else from the query.
    pub fn parse(query: &Query, body: &[u8], content_type: &str) -> Result<DeleteOptions> {
        if !body.is_empty() {
            let encoding = Encoding::of(content_type).ok_or_else(|| Status::unsupported_media_type(structure::READABLE_MEDIA_TYPES))?;
            let value = structure::parse_object(body, encoding)
                .map_err(|why| Status::bad_request(format!("couldn't get version/kind; json parse error: {why}")))?;
            return DeleteOptions::from_value(&value);
        }
        let dry_run: Vec<&str> = query.all("dryRun").collect();
        DeleteOptions {
            grace_period_s: query.number("gracePeriodSeconds")?,
            orphan_dependents: query.flag("orphanDependents"),
            ignore_store_read_error: query.flag("ignoreStoreReadErrorWithClusterBreakingPotential").unwrap_or(false),
            ..DeleteOptions::default()
        }
        .checked(query.get("propagationPolicy"), &dry_run)
    }

    /// From a DeleteOptions object.
    pub fn from_value(body: &Value) -> Result<DeleteOptions> {
        let kind = body.kind();
        if !matches!(kind, "" | "DeleteOptions") {
            let version = body.api_version();
            return Err(Status::bad_request(format!(
                "no kind {kind:?} is registered for version {version:?} in scheme \"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27\""
            )));
        }
        let decoded = match crate::schema::definition("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions") {
            Some(schema) => {
                structure::check(body.clone(), &schema)
                    .map_err(|why| Status::bad_request(format!("DeleteOptions in version \"v1\" cannot be handled as a DeleteOptions: {why}")))?
                    .value
            }
            None => body.clone(),
        };
        let dry_run: Vec<&str> = decoded.list_at("dryRun").iter().filter_map(Value::as_str).collect();
        let text = |path| decoded.str_at(path).map(String::from);
        DeleteOptions {
            grace_period_s: decoded.i64_at("gracePeriodSeconds"),
            uid: text("preconditions.uid"),
            resource_version: text("preconditions.resourceVersion"),
            orphan_dependents: decoded.bool_at("orphanDependents"),
            ignore_store_read_error: decoded.bool_at("ignoreStoreReadErrorWithClusterBreakingPotential").unwrap_or(false),
            ..DeleteOptions::default()
        }
        .checked(decoded.str_at("propagationPolicy"), &dry_run)
    }

    fn checked(mut self, policy: Option<&str>, dry_run: &[&str]) -> Result<DeleteOptions> {
        let field = || field::Path::new("propagationPolicy");
        let mut errors = field::Errors::default();
        self.propagation = match policy {
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            _ => None,
        };
        if let Some(policy) = policy {
            if self.orphan_dependents.is_some() {
                errors.invalid(field(), policy, "orphanDependents and deletionPropagation cannot be both set");
            }
            if self.propagation.is_none() {
                errors.not_supported(field(), policy, &["Foreground", "Background", "Orphan", "nil"]);
            }
        }
        dry_run_problems(dry_run, &mut errors);
        refuse("DeleteOptions", errors)?;
        self.dry_run = !dry_run.is_empty();
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(query: &str) -> String {
        ListOptions::parse(&Query::parse(query))
            .and_then(|o| o.version().map(|_| "ok".to_string()))
            .unwrap_or_else(|e| format!("{} {}", e.code, e.message))
    }
    fn delete(query: &str, body: &str) -> String {
        DeleteOptions::parse(&Query::parse(query), body.as_bytes(), "")
            .map(|o| format!("{:?} {:?}", o.grace_period_s, o.propagation))
            .unwrap_or_else(|e| format!("{} {}", e.code, e.message))
    }

    #[test]
    fn lists_and_watches() {
        assert_eq!(list("limit=5&labelSelector=a%3Db&resourceVersion=0"), "ok");
        assert_eq!(
            list("resourceVersion=0&resourceVersionMatch=Exact"),
            "422 ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""
        );
        assert_eq!(
            list("resourceVersion=1&resourceVersionMatch=Foo"),
            "422 ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Unsupported value: \"Foo\": supported values: \"Exact\", \"NotOlderThan\", \"\""
        );
        assert_eq!(
            list("resourceVersion=abc"),
            "400 invalid resource version: resourceVersion: Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax"
        );
        assert_eq!(
            list("watch=1&resourceVersion=-1"),
            "500 resourceVersion: Invalid value: \"-1\": strconv.ParseUint: parsing \"-1\": invalid syntax"
        );
        assert_eq!(list("timeoutSeconds=abc"), "400 strconv.ParseInt: parsing \"abc\": invalid syntax");
        assert_eq!(
            list("watch=true&sendInitialEvents=true&resourceVersionMatch=Foo"),
            "422 ListOptions.meta.k8s.io \"\" is invalid: [resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan, resourceVersionMatch: Unsupported value: \"Foo\": supported values: \"NotOlderThan\"]"
        );
    }

    #[test]
    fn deletes() {
        assert_eq!(delete("gracePeriodSeconds=5&propagationPolicy=Foreground", ""), "Some(5) Some(Foreground)");
        assert_eq!(delete("gracePeriodSeconds=5", "{\"gracePeriodSeconds\":0,\"propagationPolicy\":\"Background\"}"), "Some(0) Some(Background)");
        assert_eq!(
            delete("propagationPolicy=Foo", ""),
            "422 DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"Foo\": supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
        );
        assert_eq!(delete("gracePeriodSeconds=x", ""), "400 strconv.ParseInt: parsing \"x\": invalid syntax");
        assert_eq!(delete("", "hello"), "400 couldn't get version/kind; json parse error: invalid character 'h' looking for beginning of value");
        assert_eq!(
            delete("", "{\"kind\":\"Pod\",\"apiVersion\":\"v1\"}"),
            "400 no kind \"Pod\" is registered for version \"v1\" in scheme \"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27\""
        );
        assert_eq!(
            delete("", "{\"dryRun\":[\"x\"]}"),
            "422 DeleteOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"x\"]: supported values: \"All\""
        );
        assert_eq!(delete("", "{\"kind\":\"DeleteOptions\",\"apiVersion\":\"apps/v9\",\"foo\":1}"), "None None");
    }

    #[test]
    fn writes() {
        let create = |query: &str| {
            CreateOptions::parse(&Query::parse(query), "my-tool/v1.2 (linux) foo").map(|o| o.field_manager).unwrap_or_else(|e| e.message)
        };
        assert_eq!(create(""), "my-tool");
        assert_eq!(
            create("fieldManager=a%09b"),
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldManager: Invalid value: \"a\\tb\": invalid character U+0009 (at position 1)"
        );
        assert_eq!(
            create("dryRun=All&dryRun=None"),
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"All\",\"None\"]: supported values: \"All\""
        );
        let patch = |query: &str, apply| PatchOptions::parse(&Query::parse(query), "x", apply).map(|_| String::new()).unwrap_or_else(|e| e.message);
        assert_eq!(patch("", true), "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch");
        assert_eq!(
            patch("force=true", false),
            "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch"
        );
    }
}
