//! IPAddress of networking.k8s.io: an address that a Service holds. Its name is the address.

use crate::{
    field::{Errors, Path},
    internal,
    kind::{Hooks, Kind, NameRule},
    kinds::{
        checks,
        values::{member, text},
        workload,
    },
    names,
    object::ObjectExt,
    table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::cluster("networking.k8s.io", "v1", "IPAddress", "ipaddresses")
        .short(&["ip"])
        .names(NameRule::PathSegment)
        .unnamed_cells(1)
        .hooks(IpAddresses)
}

struct IpAddresses;

impl Hooks for IpAddresses {
    fn validate(&self, address: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec").child("parentRef");
        if old.is_none() && !address.name().is_empty() {
            errors.invalid_all(&Path::new("metadata").child("name"), address.name(), checks::canonical_ip(address.name()));
        }
        let Some(parent) = member(workload::spec(address), "parentRef") else {
            return errors.required(path, "");
        };
        checks::checked(parent, "group", &path, names::dns1123_subdomain, errors);
        checks::required_checked(parent, "resource", &path, checks::path_segment, errors);
        checks::required_checked(parent, "name", &path, checks::path_segment, errors);
        checks::checked(parent, "namespace", &path, checks::path_segment, errors);
        if let Some(old) = old
            && workload::spec(old).get("parentRef") != Some(parent)
        {
            errors.invalid_structure(path, &internal::show("networking.v1.ParentReference", parent), checks::IMMUTABLE);
        }
    }
    fn cells(&self, address: &Value, now_unix_s: i64) -> Vec<Value> {
        let parent = workload::spec(address).get("parentRef").filter(|p| p.is_object()).map_or("<none>".to_string(), |p| {
            let group = text(p, "group");
            let resource = if group.is_empty() { text(p, "resource").to_string() } else { format!("{}.{group}", text(p, "resource")) };
            [resource.as_str(), text(p, "namespace"), text(p, "name")].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
        });
        // A third cell that no column speaks of, as clients know it.
        vec![table::name(address), json!(parent), table::age(address, now_unix_s)]
    }
}
