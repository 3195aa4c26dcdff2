//! What a request asks for, read from its method, path and query: verb, resource, name, options.

use crate::{Value, status::{Result, Status}, selector::{FieldSelector, LabelSelector}};

/// The URL space is regular, so it is parsed and not registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether it is about objects; otherwise only `verb` (the method in lower case) and `path` say something.
    pub is_resource: bool,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`.
    pub verb: String,
    /// `api` or `apis`.
    pub api_prefix: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    pub path: String,
    /// The path's segments from the resource on: resource, name, subresource and the rest.
    pub parts: Vec<String>,
}

impl RequestInfo {
    /// `query` is without `?`.
    pub fn parse(method: &str, path: &str, _query: &str) -> RequestInfo {
        RequestInfo { verb: method.to_ascii_lowercase(), path: path.into(), ..Default::default() }
    }
    /// Group and resource, as [`Status`] constructors take them.
    pub fn group_resource(&self) -> (&str, &str) {
        (&self.group, &self.resource)
    }
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }
    /// The path behind the subresource, for `proxy`.
    pub fn rest(&self) -> String {
        self.parts.get(3..).unwrap_or_default().join("/")
    }
}

/// A decoded query string. Keys keep their order; the first value of a key wins.
#[derive(Clone, Debug, Default)]
pub struct Query(pub Vec<(String, String)>);

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

#[derive(Clone, Debug, Default)]
pub struct GetOptions {
    pub resource_version: String,
}

/// Options of list, watch and deletecollection.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub label_selector: LabelSelector,
    pub field_selector: FieldSelector,
    /// As given; see [`ListOptions::version`].
    pub resource_version: String,
    pub version_match: VersionMatch,
    pub limit: u64,
    pub continue_token: String,
    pub timeout_s: Option<u64>,
    pub watch: bool,
    pub allow_bookmarks: bool,
    pub send_initial_events: Option<bool>,
}
/// A watch is a list that goes on.
pub type WatchOptions = ListOptions;

#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
}
pub type UpdateOptions = CreateOptions;

#[derive(Clone, Debug, Default)]
pub struct PatchOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    pub force: Option<bool>,
}

#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_period_s: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub orphan_dependents: Option<bool>,
    pub dry_run: bool,
    pub ignore_store_read_error: bool,
}

impl Query {
    pub fn parse(_query: &str) -> Query {
        Query::default()
    }
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }
    /// Absent is false; present and empty is true, as Go's conversion has it.
    pub fn flag(&self, _key: &str) -> Result<Option<bool>> {
        Ok(None)
    }
}
impl GetOptions {
    pub fn parse(_query: &Query) -> Result<GetOptions> {
        Ok(Default::default())
    }
}
impl ListOptions {
    pub fn parse(_query: &Query) -> Result<ListOptions> {
        Ok(Default::default())
    }
    /// The version as a number: `None` where none is given.
    pub fn version(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}
impl CreateOptions {
    /// `user_agent` gives the field manager where the query names none.
    pub fn parse(_query: &Query, _user_agent: &str) -> Result<CreateOptions> {
        Ok(Default::default())
    }
}
impl PatchOptions {
    /// `apply` is whether the patch is a server-side apply.
    pub fn parse(_query: &Query, _user_agent: &str, _apply: bool) -> Result<PatchOptions> {
        Ok(Default::default())
    }
}
impl DeleteOptions {
    /// From the body (JSON or YAML; may be empty) and, for what the body leaves out, from the query.
    pub fn parse(_query: &Query, _body: &[u8], _content_type: &str) -> Result<DeleteOptions> {
        Ok(Default::default())
    }
    pub fn from_value(_body: &Value) -> Result<DeleteOptions> {
        Err(Status::bad_request(""))
    }
}
