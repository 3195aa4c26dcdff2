//! Access to devices that are in use: only claims in namespaces that say so may ask for it.
//!
//! Part of validation in Kubernetes' words; here because only the server knows the namespace.

use super::AdmissionContext;
use api::{
    Kind, Status, Value,
    field::{Errors, Path},
    kinds::resource::resourceclaims,
    object::ObjectExt,
};

const LABEL: &str = "resource.kubernetes.io/admin-access";

/// Adds what is wrong with a claim, or the template of one, that asks for access as an administrator. What a claim asked for
/// before is not looked at again.
pub(crate) fn validate(cx: &AdmissionContext<'_>, kind: &Kind, object: &Value, old: Option<&Value>, errors: &mut Errors) -> Result<(), Status> {
    let nested = match (kind.group.as_str(), kind.resource.as_str()) {
        ("resource.k8s.io", "resourceclaims") => "spec",
        ("resource.k8s.io", "resourceclaimtemplates") => "spec.spec",
        _ => return Ok(()),
    };
    let asked = |object: &Value| object.at(nested).map(resourceclaims::admin_requests).unwrap_or_default();
    let requests = asked(object);
    if requests.is_empty() || old.is_some_and(|old| asked(old) == requests) {
        return Ok(());
    }
    let namespace = cx.find("", "namespaces", "", cx.namespace)?;
    if namespace.is_some_and(|namespace| namespace.label(LABEL) == Some("true")) {
        return Ok(());
    }
    let path = Path::new("spec").child("devices").child("requests");
    for i in requests {
        let detail = format!("admin access to devices requires the `{LABEL}: true` label on the containing namespace");
        errors.forbidden(path.index(i).child("adminAccess"), &detail);
    }
    Ok(())
}
