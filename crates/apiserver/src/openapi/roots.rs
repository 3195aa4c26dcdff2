//! What OpenAPI says of the paths that answer with documents about the others: the versions of the API, its groups, their versions.

use super::{Form, operations, prefix};
use api::{Catalogue, schema};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const DOCUMENT: &[&str] = &["application/json", "application/yaml", api::protobuf::MEDIA_TYPE];
const JSON: &[&str] = &["application/json"];

/// One such path.
pub struct Root {
    /// The type of its answer; nothing is text.
    type_: Option<String>,
    /// What code generators call it.
    id: String,
    tag: String,
    media_types: &'static [&'static str],
}

/// All of them by path, without the slashes around it. Groups that definitions make have none.
pub fn all(catalogue: &Catalogue) -> BTreeMap<String, Root> {
    let root = |type_: &str, id: &str, tag: &str, media_types| {
        let type_ = Some(type_).filter(|type_| !type_.is_empty()).map(String::from);
        Root { type_, id: id.into(), tag: tag.into(), media_types }
    };
    let mut roots: BTreeMap<String, Root> = [
        (".well-known/openid-configuration", root("", "getServiceAccountIssuerOpenIDConfiguration", "WellKnown", JSON)),
        ("api", root(&format!("{META}.APIVersions"), "getCoreAPIVersions", "core", DOCUMENT)),
        ("apis", root(&format!("{META}.APIGroupList"), "getAPIVersions", "apis", DOCUMENT)),
        ("openid/v1/jwks", root("", "getServiceAccountIssuerOpenIDKeyset", "openid", &["application/jwk-set+json"])),
        ("version", root("io.k8s.apimachinery.pkg.version.Info", "getCodeVersion", "version", JSON)),
    ]
    .map(|(path, root)| (path.to_string(), root))
    .into();
    for kind in catalogue.iter().filter(|kind| kind.custom.is_none()) {
        let word = operations::group_word(kind);
        if !kind.group.is_empty() {
            let group = root(&format!("{META}.APIGroup"), &format!("get{word}APIGroup"), &operations::group_tag(kind), DOCUMENT);
            roots.insert(format!("apis/{}", kind.group), group);
        }
        for version in &kind.versions {
            let id = format!("get{word}{}APIResources", operations::capital(version));
            roots.insert(prefix(kind, version), root(&format!("{META}.APIResourceList"), &id, &operations::tag(kind, version), DOCUMENT));
        }
    }
    roots
}

impl Root {
    /// The type of its answer, if that is known.
    pub fn answer(&self) -> Option<&'static str> {
        schema::definitions().map(|(name, _)| name).find(|known| self.type_.as_deref() == Some(known))
    }

    /// Writes down what can be asked there.
    pub fn add(&self, path: &str, paths: &mut Map<String, Value>, form: Form) {
        let answer = self.answer().map_or(json!({"type": "string"}), |name| form.reference(name));
        let success = match form {
            Form::V2 => json!({"description": "OK", "schema": answer}),
            Form::V3 => json!({"description": "OK", "content": operations::content(self.media_types, &answer)}),
        };
        let responses = json!({"200": success, "401": {"description": "Unauthorized"}});
        let mut get = json!({"operationId": self.id, "tags": [self.tag], "responses": responses});
        if form == Form::V2 {
            get["produces"] = json!(self.media_types);
            get["consumes"] = json!(self.media_types);
        }
        paths.insert(format!("/{path}/"), json!({"get": get}));
    }
}
