//! What a kind may say about itself: one record of facts and a set of hooks.
//!
//! The request pipeline is the same for every kind; whatever is special about one is said here, as data where
//! possible and as a [`Hooks`] method where not. A plain kind needs no hook at all. The same record is built at run
//! time for a CustomResourceDefinition, which is why its strings are owned.

use crate::{custom::Custom, field, object::ObjectExt, schema, table::Column};
use serde_json::Value;
use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

/// Whether objects of a kind live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// A part of an object with its own path and its own rights, such as `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// `/status`: writes change only `status`; writes of the object keep the old `status`.
    Status,
    /// `/scale`: an `autoscaling/v1` Scale read from and written to these JSON paths of the object.
    Scale { replicas: Cow<'static, str>, status_replicas: Cow<'static, str>, selector: Cow<'static, str> },
    /// Anything that the API server answers by its own code: `log`, `exec`, `binding`, `eviction`, `token`, ...
    /// `kind` is what discovery says of it, `verbs` what may be done with it.
    Connect { name: &'static str, group_version_kind: (&'static str, &'static str, &'static str), verbs: &'static [&'static str] },
}

impl Subresource {
    /// The last segment of its path.
    pub fn name(&self) -> &'static str {
        match self {
            Subresource::Status => "status",
            Subresource::Scale { .. } => "scale",
            Subresource::Connect { name, .. } => name,
        }
    }
}

/// All that the server knows of a kind. Built by its file in `kinds/`, registered by one line in the catalogue.
#[derive(Clone)]
pub struct Kind {
    /// API group, empty for the core group.
    pub group: String,
    /// Served versions, preferred first.
    pub versions: Vec<String>,
    /// The version in which objects are stored.
    pub stored_version: String,
    pub kind: String,
    pub list_kind: String,
    /// Plural, lower-case: the segment in the URL.
    pub resource: String,
    pub singular: String,
    pub scope: Scope,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    /// Verbs as discovery lists them. `create` alone makes a virtual kind (a review) that is never stored.
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
    /// Columns of its Table; cells come from [`Hooks::cells`].
    pub columns: Vec<Column>,
    /// Cells at the end of each row of which no column speaks. Kubernetes has a kind like that, and clients know it so.
    pub unnamed_cells: usize,
    /// Field selectors beyond `metadata.name` and `metadata.namespace`, as JSON paths with dots.
    pub selectable_fields: Vec<String>,
    /// Whether `metadata.generation` counts changes of what is not metadata or status.
    pub has_generation: bool,
    /// How names of this kind are checked.
    pub name_rule: NameRule,
    /// Seconds that `DELETE` leaves by default before an object goes; 0 means at once.
    pub graceful: bool,
    /// Whether update without `resourceVersion` is allowed (Kubernetes: most kinds), and whether PUT may create.
    pub allow_unconditional_update: bool,
    pub allow_create_on_update: bool,
    /// How metadata is checked a second time on update.
    pub metadata_again: MetadataAgain,
    /// Group and resource of the kind whose stored objects this one shows in another form (`events.k8s.io` Events are
    /// core Events). Storage key, cache and watch are that kind's; [`Hooks::to_stored`] and [`Hooks::from_stored`] convert.
    pub stored_as: Option<(String, String)>,
    /// Whether a write to `/status` leaves all of metadata as it was, too.
    pub status_alone: bool,
    /// Whether writes of the object change its status as well, though that is a subresource. Kubernetes has a kind like that.
    pub status_open: bool,
    /// What a CustomResourceDefinition says of it; `None` for a built-in kind.
    pub custom: Option<Arc<Custom>>,
    /// Definitions in the form of OpenAPI v2, by name: of a kind that is no part of Kubernetes' own API, and so not among its facts. The
    /// first is the kind's own, the second that of its list.
    pub definitions: &'static [(&'static str, &'static str)],
    /// The kind as each version shows it, where versions differ in columns, subresources and rules; empty for built-in kinds.
    pub views: BTreeMap<String, Arc<Kind>>,
    pub hooks: Arc<dyn Hooks>,
}

/// How `metadata.name` is checked. See <https://kubernetes.io/docs/concepts/overview/working-with-objects/names/>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, at most 253 characters (most kinds).
    Subdomain,
    /// RFC 1123 label, at most 63 characters (Namespace, ...).
    Label,
    /// RFC 1035 label (Service).
    Label1035,
    /// A path segment: anything but `.`, `..`, `/`, `%` (RBAC).
    PathSegment,
}

/// Kubernetes checks metadata of an update in common and, for most kinds, once more: clients see the causes twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataAgain {
    /// The same once more (most kinds).
    AsUpdate,
    /// Once more, as if the object were new.
    AsCreate,
    Never,
}

/// What a kind does beside the common way. Every method has a default that does nothing.
///
/// Order on create: schema check, `default`, mutating admission, `prepare_create`, `validate(o, None)`, validating admission.
/// Order on update: schema check, `default`, mutating admission, `prepare_update(new, old)`, `validate(new, Some(old))`, validating
/// admission.
/// `apiVersion` and `kind` are set, and metadata has been checked by the pipeline, before any hook runs. Before
/// `prepare_create`, `metadata.name` (also from `generateName`), `uid` and `creationTimestamp` are set: a Job selects by them.
/// After the last change the pipeline calls [`crate::structure::complete`], which shows or hides zero values.
/// A hook must accept any JSON of the right schema type: absent fields, empty lists, absurd numbers. It must not panic.
pub trait Hooks: Send + Sync {
    /// Fills defaults that the schema does not state (`restartPolicy: Always`). Must be idempotent.
    fn default(&self, _object: &mut Value) {}
    /// Called on create after defaulting: clears what a client may not set (`status`), sets first values.
    fn prepare_create(&self, _object: &mut Value) {}
    /// Called on update after defaulting; `status` has already been copied from `old` if the kind has that subresource.
    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}
    /// Called instead of `prepare_update` on a write to `/status`; everything but `status` has been copied from `old`.
    fn prepare_status(&self, _object: &mut Value, _old: &Value) {}
    /// Cross-field rules, immutability. Schema types, unknown fields and metadata are already checked.
    fn validate(&self, _object: &Value, _old: Option<&Value>, _errors: &mut field::Errors) {}
    /// Rules for a write to `/status`.
    fn validate_status(&self, _object: &Value, _old: &Value, _errors: &mut field::Errors) {}
    /// Called for a write to a subresource that is a view of the object itself (`ephemeralcontainers`, `resize`,
    /// `approval`, `finalize`): `object` is as sent and defaulted; what the view may not change is taken from `old`.
    fn prepare_view(&self, _view: &str, _object: &mut Value, _old: &Value) {}
    /// Called after either of these with the time: some statuses tell since when they are so, and that is the server's to say.
    fn stamp(&self, _object: &mut Value, _old: &Value, _now: &str) {}
    /// Rules for a write to such a subresource.
    fn validate_view(&self, _view: &str, _object: &Value, _old: &Value, _errors: &mut field::Errors) {}
    /// The value of one of [`Kind::selectable_fields`] for field selectors, absent being empty.
    /// The default reads the field's path in the stored object.
    fn selectable_value(&self, object: &Value, field: &str) -> String {
        match object.at(field) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        }
    }
    /// Turns an object as read in `version` into the stored form, `apiVersion` included. Called before every other hook:
    /// all other hooks see the stored form.
    fn to_stored(&self, _version: &str, _object: &mut Value) {}
    /// Turns a stored object into the form of `version`, `apiVersion` included. Called only where the two forms differ:
    /// `version` is not the first one or the kind has [`Kind::stored_as`].
    #[allow(clippy::wrong_self_convention)]
    fn from_stored(&self, _version: &str, _object: &mut Value) {}
    /// Called when somebody deletes the object for the first time, before anything is decided.
    fn prepare_delete(&self, _object: &mut Value, _now: &str) {}
    /// Called for every stored object that is read back, with its JSON as it is stored: custom resources take on what their
    /// definition has come to say since. Answers whether it has changed anything.
    fn revive(&self, _object: &mut Value) -> bool {
        false
    }
    /// Whether [`Hooks::revive`] does anything: what it does costs a parsed object per change.
    fn revives(&self) -> bool {
        false
    }
    /// Warnings for the client (deprecated fields and the like), sent as `Warning` headers. `old` is what an update changes.
    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }
    /// The same of a write to `/status`.
    fn status_warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }
    /// Conditions of the object's row, for clients that show rows in other ways: a pod that has ended.
    fn row_conditions(&self, _object: &Value) -> Vec<Value> {
        Vec::new()
    }
    /// Where the object's row stands among those of a list, the lowest first; rows of one place stay in the order of names.
    fn row_place(&self, _object: &Value) -> i64 {
        0
    }
    /// Cells of the object's row, one per column of [`Kind::columns`]. `now_unix_s` is for ages.
    /// The default serves kinds whose columns are `Name` and `Created At`.
    fn cells(&self, object: &Value, now_unix_s: i64) -> Vec<Value> {
        crate::table::name_and_age(object, now_unix_s)
    }
}

/// The hooks of a kind that is not special.
pub struct Plain;
impl Hooks for Plain {}

impl Kind {
    /// A namespaced kind with the full set of verbs, `Name`/`Age` columns as golden facts say, and no hooks.
    pub fn namespaced(group: &str, version: &str, kind: &str, resource: &str) -> Kind {
        Kind::new(group, version, kind, resource, Scope::Namespaced)
    }
    /// The same at cluster scope.
    pub fn cluster(group: &str, version: &str, kind: &str, resource: &str) -> Kind {
        Kind::new(group, version, kind, resource, Scope::Cluster)
    }
    fn new(group: &str, version: &str, kind: &str, resource: &str, scope: Scope) -> Kind {
        Kind {
            group: group.into(),
            versions: vec![version.into()],
            stored_version: version.into(),
            kind: kind.into(),
            list_kind: format!("{kind}List"),
            resource: resource.into(),
            singular: kind.to_lowercase(),
            scope,
            short_names: vec![],
            categories: vec![],
            verbs: ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"].map(String::from).into(),
            subresources: vec![],
            columns: crate::table::golden_columns(group, version, resource),
            unnamed_cells: 0,
            selectable_fields: vec![],
            has_generation: false,
            name_rule: NameRule::Subdomain,
            graceful: false,
            allow_unconditional_update: true,
            allow_create_on_update: false,
            metadata_again: MetadataAgain::AsUpdate,
            stored_as: None,
            status_alone: false,
            status_open: false,
            custom: None,
            definitions: &[],
            views: BTreeMap::new(),
            hooks: Arc::new(Plain),
        }
    }
    pub fn short(mut self, names: &[&str]) -> Kind {
        self.short_names = names.iter().map(|s| s.to_string()).collect();
        self
    }
    pub fn categories(mut self, names: &[&str]) -> Kind {
        self.categories = names.iter().map(|s| s.to_string()).collect();
        self
    }
    pub fn verbs(mut self, verbs: &[&str]) -> Kind {
        self.verbs = verbs.iter().map(|s| s.to_string()).collect();
        self
    }
    pub fn status(mut self) -> Kind {
        self.subresources.push(Subresource::Status);
        self
    }
    /// The same where a write to the status leaves metadata as it was.
    pub fn status_alone(self) -> Kind {
        Kind { status_alone: true, ..self.status() }
    }
    /// Writes of the object change the status as well.
    pub fn status_open(self) -> Kind {
        Kind { status_open: true, ..self }
    }
    pub fn scale(mut self, replicas: &'static str, status_replicas: &'static str, selector: &'static str) -> Kind {
        let [replicas, status_replicas, selector] = [replicas, status_replicas, selector].map(Cow::Borrowed);
        self.subresources.push(Subresource::Scale { replicas, status_replicas, selector });
        self
    }
    pub fn connect(
        mut self,
        name: &'static str,
        group_version_kind: (&'static str, &'static str, &'static str),
        verbs: &'static [&'static str],
    ) -> Kind {
        self.subresources.push(Subresource::Connect { name, group_version_kind, verbs });
        self
    }
    pub fn selectable(mut self, fields: &[&str]) -> Kind {
        self.selectable_fields = fields.iter().map(|s| s.to_string()).collect();
        self
    }
    pub fn generation(mut self) -> Kind {
        self.has_generation = true;
        self
    }
    pub fn unnamed_cells(mut self, count: usize) -> Kind {
        self.unnamed_cells = count;
        self
    }
    pub fn names(mut self, rule: NameRule) -> Kind {
        self.name_rule = rule;
        self
    }
    /// Sets the singular where it is not the kind in lower case.
    pub fn singular(mut self, singular: &str) -> Kind {
        self.singular = singular.into();
        self
    }
    /// Sets all served versions, the stored one first.
    pub fn served(mut self, versions: &[&str]) -> Kind {
        self.versions = versions.iter().map(|s| s.to_string()).collect();
        self.stored_version = versions.first().map(|version| version.to_string()).unwrap_or_default();
        self
    }
    /// `DELETE` leaves time to end.
    pub fn graceful(mut self) -> Kind {
        self.graceful = true;
        self
    }
    /// Updates must name the `resourceVersion` that they change.
    pub fn conditional_update(mut self) -> Kind {
        self.allow_unconditional_update = false;
        self
    }
    /// PUT of what does not exist creates it.
    pub fn create_on_update(mut self) -> Kind {
        self.allow_create_on_update = true;
        self
    }
    /// The second check of metadata on update is another than the first.
    pub fn metadata_again(mut self, again: MetadataAgain) -> Kind {
        self.metadata_again = again;
        self
    }
    /// Objects are those of another kind, shown in another form.
    pub fn stored_as(mut self, group: &str, resource: &str) -> Kind {
        self.stored_as = Some((group.into(), resource.into()));
        self
    }
    pub fn hooks(mut self, hooks: impl Hooks + 'static) -> Kind {
        self.hooks = Arc::new(hooks);
        self
    }
    /// Group and plural, as [`crate::Status`] constructors take them.
    pub fn resource_pair(&self) -> (&str, &str) {
        (&self.group, &self.resource)
    }
    /// The kind as a version shows it; `None` where all versions are alike.
    pub fn view(&self, version: &str) -> Option<&Arc<Kind>> {
        self.views.get(version)
    }
    /// The version in which objects are stored.
    pub fn version(&self) -> &str {
        &self.stored_version
    }
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version().into() } else { format!("{}/{}", self.group, self.version()) }
    }
    /// `pods` or `deployments.apps`: how errors name the resource.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.resource.clone() } else { format!("{}.{}", self.resource, self.group) }
    }
    pub fn namespaced_scope(&self) -> bool {
        self.scope == Scope::Namespaced
    }
    pub fn has_status(&self) -> bool {
        self.subresources.contains(&Subresource::Status)
    }
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name() == name)
    }
    /// A kind that can only be created is a question (a review): answered, never stored.
    pub fn is_virtual(&self) -> bool {
        !self.verbs.iter().any(|v| v == "get")
    }
    /// Whether there are objects of this kind in the store: what nobody can create is made when somebody asks.
    pub fn is_stored(&self) -> bool {
        !self.is_virtual() && self.verbs.iter().any(|v| v == "create")
    }
    /// The schema of one version, if the kind has one.
    pub fn schema(&self, version: &str) -> Option<Arc<schema::Schema>> {
        if let Some(custom) = &self.custom {
            return custom.versions.get(version).map(|version| version.schema.clone());
        }
        schema::of(&self.group, version, &self.kind)
    }
}
