//! Secret.

use crate::{
    field::{Errors, Path},
    kind::{Hooks, Kind},
    kinds::{
        base64, checks,
        core::configmaps::{check_immutable, check_size, decoded_bytes},
        values::{entries, fill, is_empty, made, map, put, take, text, within},
    },
    object::ObjectExt,
    structure, table,
};
use serde_json::{Value, json};

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "Secret", "secrets").selectable(&["type"]).hooks(Secrets)
}

const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";

struct Secrets;

impl Hooks for Secrets {
    fn default(&self, secret: &mut Value) {
        fill(secret, "type", "Opaque");
        within(secret, "data", |data| {
            for value in data.as_object_mut().into_iter().flat_map(|data| data.values_mut()).filter(|value| value.is_null()) {
                *value = "".into();
            }
        });
        // What is written as text is kept like all other data.
        if let Some(Value::Object(texts)) = take(secret, "stringData")
            && !texts.is_empty()
        {
            let data = made(secret, "data");
            for (key, value) in texts {
                put(data, &key, base64::encode(value.as_str().unwrap_or_default().as_bytes()));
            }
        }
    }
    fn validate(&self, secret: &Value, old: Option<&Value>, errors: &mut Errors) {
        if let Some(old) = old {
            checks::immutable(secret.get("type"), old.get("type"), &Path::new("type"), errors);
            check_immutable(secret, old, &["data"], errors);
        }
        let mut bytes = 0;
        for (key, value) in entries(secret, "data") {
            errors.invalid_all(&Path::new("data").key(key), key.as_str(), checks::config_key(key));
            bytes += value.as_str().map_or(0, decoded_bytes);
        }
        check_size(bytes, Path::new("data"), errors);
        by_type(secret, errors);
    }
    fn warnings(&self, secret: &Value, _old: Option<&Value>) -> Vec<String> {
        if text(secret, "type") != "kubernetes.io/tls" {
            return vec![];
        }
        let block = |key: &str| {
            let bytes = map(secret, "data").and_then(|data| data.get(key)).and_then(Value::as_str).and_then(base64::decode).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains("-----BEGIN ")
        };
        let what = [("tls.crt", "certificate"), ("tls.key", "key")].into_iter().find(|(key, _)| !block(key));
        what.map(|(_, what)| format!("tls: failed to find any PEM data in {what} input")).into_iter().collect()
    }
    fn cells(&self, secret: &Value, now_unix_s: i64) -> Vec<Value> {
        vec![table::name(secret), json!(text(secret, "type")), json!(entries(secret, "data").count()), table::age(secret, now_unix_s)]
    }
}

/// What a Secret of a known type must hold.
fn by_type(secret: &Value, errors: &mut Errors) {
    let data = map(secret, "data");
    let has = |key: &str| data.is_some_and(|data| data.contains_key(key));
    let path = |key: &str| Path::new("data").key(key);
    match text(secret, "type") {
        "kubernetes.io/service-account-token" if secret.annotation(ACCOUNT_NAME).unwrap_or_default().is_empty() => {
            errors.required(Path::new("metadata").child("annotations").key(ACCOUNT_NAME), "");
        }
        "kubernetes.io/dockercfg" => docker(secret, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => docker(secret, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            errors.required(path("username"), "");
            errors.required(path("password"), "");
        }
        "kubernetes.io/ssh-auth" if data.and_then(|d| d.get("ssh-privatekey")).is_none_or(is_empty) => errors.required(path("ssh-privatekey"), ""),
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"].into_iter().filter(|key| !has(key)) {
                errors.required(path(key), "");
            }
        }
        _ => {}
    }
}

fn docker(secret: &Value, key: &str, errors: &mut Errors) {
    let path = Path::new("data").key(key);
    match map(secret, "data").and_then(|data| data.get(key)).and_then(Value::as_str) {
        None => errors.required(path, ""),
        Some(value) => {
            let bytes = base64::decode(value).unwrap_or_default();
            if let Err(problem) = structure::parse(&bytes, structure::Encoding::Json) {
                errors.invalid(path, "<secret contents redacted>", &problem);
            }
        }
    }
}
