//! PolicyParameters: a policy reads its parameters with the server's own rights, so whoever writes one, or binds it, must be
//! allowed to read these. Kubernetes has this check in the storage of these kinds, like that of roles.

use super::{AdmissionContext, Operation, Plugin};
use crate::{
    User,
    authorization::{Attributes, MASTERS_GROUP, allowed},
};
use api::{
    Status, Value,
    field::{Errors, Path},
    object::ObjectExt,
};

const GROUP: &str = "admissionregistration.k8s.io";

pub(super) struct PolicyParameters;

#[async_trait::async_trait]
impl Plugin for PolicyParameters {
    fn name(&self) -> &'static str {
        "PolicyParameters"
    }

    async fn validate(&self, cx: &AdmissionContext<'_>, object: &Value) -> Result<(), Status> {
        let writes = matches!(cx.operation, Operation::Create | Operation::Update) && cx.subresource.is_empty();
        if cx.kind.group != GROUP || !writes || cx.user.in_group(MASTERS_GROUP) {
            return Ok(());
        }
        let (field, refusal) = match cx.kind.resource.as_str() {
            "validatingadmissionpolicies" | "mutatingadmissionpolicies" => ("paramKind", of_policy(cx, object)),
            "validatingadmissionpolicybindings" => ("paramRef", of_binding(cx, object, "validatingadmissionpolicies")?),
            "mutatingadmissionpolicybindings" => ("paramRef", of_binding(cx, object, "mutatingadmissionpolicies")?),
            _ => return Ok(()),
        };
        let Some(why) = refusal else { return Ok(()) };
        let mut errors = Errors::default();
        errors.forbidden(Path::new("spec").child(field), &why);
        Err(Status::invalid(&cx.kind.group, &cx.kind.kind, object.name(), &errors))
    }
}

/// Where parameters are; stars for what cannot be told.
struct Place {
    group: String,
    version: String,
    resource: String,
}

impl Place {
    fn anywhere() -> Place {
        let star = || "*".to_string();
        Place { group: star(), version: star(), resource: star() }
    }
    /// Of a kind; its resource is a star if nobody knows it.
    fn of(cx: &AdmissionContext<'_>, kind: &Value) -> Place {
        let (group, version) = kind.api_version().rsplit_once('/').unwrap_or(("", kind.api_version()));
        let catalogue = cx.server.catalogue.load();
        let record = catalogue.kind(group, kind.kind()).filter(|record| record.versions.iter().any(|known| known == version));
        let resource = record.map_or("*", |record| record.resource.as_str());
        Place { group: group.into(), version: version.into(), resource: resource.into() }
    }
    fn may(&self, cx: &AdmissionContext<'_>, verb: &str, namespace: &str, name: &str) -> bool {
        let Place { group, version, resource } = self;
        allowed(cx.server, cx.user, &Attributes { verb, group, version, resource, namespace, name, ..Attributes::default() })
    }
}

/// Why a user may not write a policy.
fn of_policy(cx: &AdmissionContext<'_>, policy: &Value) -> Option<String> {
    let kind = policy.at("spec.paramKind").filter(|kind| !kind.is_null())?;
    let as_before = cx.old.and_then(|old| old.at("spec.paramKind")) == Some(kind);
    if as_before || Place::of(cx, kind).may(cx, "get", "*", "*") {
        return None;
    }
    let what = format!("all objects of the referenced paramKind (kind={}, apiVersion={})", kind.kind(), kind.api_version());
    Some(format!("user {} must have \"get\" permission on {what}", shown(cx.user)))
}

/// Why a user may not write a binding. It is looked at again in every update.
fn of_binding(cx: &AdmissionContext<'_>, binding: &Value, policies: &str) -> Result<Option<String>, Status> {
    let Some(reference) = binding.at("spec.paramRef").filter(|reference| !reference.is_null()) else { return Ok(None) };
    let name_of_policy = binding.str_at("spec.policyName").unwrap_or_default();
    let policy = cx.find(GROUP, policies, "", name_of_policy)?;
    let kind = policy.as_ref().and_then(|policy| policy.at("spec.paramKind")).filter(|kind| !kind.is_null());
    let place = kind.map_or_else(Place::anywhere, |kind| Place::of(cx, kind));
    let of = |key: &str| reference.str_at(key).unwrap_or_default();
    let verb = if of("name").is_empty() { "list" } else { "get" };
    if place.may(cx, verb, of("namespace"), of("name")) {
        return Ok(None);
    }
    let user = shown(cx.user);
    let lacks = |what: &str| {
        format!(
            "unable to {what} to determine minimum required permissions and user {user} does not have {verb:?} permission for all groups, versions and resources"
        )
    };
    Ok(Some(match kind {
        _ if policy.is_none() => lacks(&format!("get policy {name_of_policy}")),
        Some(kind) if place.resource == "*" => lacks(&format!("resolve paramKind &{{{} {}}}", kind.api_version(), kind.kind())),
        _ => format!("user {user} does not have {verb:?} permission on the object referenced by paramRef"),
    }))
}

/// A user as Go prints its structure.
fn shown(user: &User) -> String {
    let extra: Vec<String> = user.extra.iter().map(|(key, values)| format!("{key}:[{}]", values.join(" "))).collect();
    format!("&{{{} {} [{}] map[{}]}}", user.name, user.uid, user.groups.join(" "), extra.join(" "))
}
