//! Types of objects as OpenAPI v3 tells of them, for who checks expressions against the kinds that they are about.
//!
//! What must stay true: a schema that says nothing of a value makes it `dyn`, never unknown: a check that knows too little must not
//! complain; a type that contains itself is no type here.

use super::{
    Type,
    types::{Fields, escape},
};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// The types of one document, each made once.
pub struct Types<'a> {
    schemas: Option<&'a Map<String, Value>>,
    made: HashMap<&'a str, Option<Type>>,
}

impl<'a> Types<'a> {
    /// Of a document of one group and version.
    pub fn of(document: &'a Value) -> Types<'a> {
        Types { schemas: document.pointer("/components/schemas").and_then(Value::as_object), made: HashMap::new() }
    }

    /// The type of objects of a kind; `None` if the document has none, or one that contains itself.
    pub fn of_kind(&mut self, group: &str, version: &str, kind: &str) -> Option<Type> {
        let is_it = |known: &Value| known["group"] == group && known["version"] == version && known["kind"] == kind;
        let mut named = self.schemas?.iter();
        let (name, _) = named.find(|(_, schema)| schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten().any(is_it))?;
        self.named(name)
    }

    fn named(&mut self, name: &'a str) -> Option<Type> {
        if let Some(made) = self.made.get(name) {
            return made.clone();
        }
        // Who comes here again before it is made is inside itself.
        self.made.insert(name, None);
        let type_ = self.type_of(self.schemas?.get(name)?, name);
        self.made.insert(name, type_.clone());
        type_
    }

    fn type_of(&mut self, schema: &'a Value, name: &str) -> Option<Type> {
        let reference = schema.get("$ref").or_else(|| match schema.get("allOf").and_then(Value::as_array).map(Vec::as_slice) {
            Some([only]) => only.get("$ref"),
            _ => None,
        });
        if let Some(reference) = reference.and_then(Value::as_str) {
            return self.named(reference.rsplit('/').next()?);
        }
        let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("format") == "int-or-string" || schema.get("x-kubernetes-int-or-string").and_then(Value::as_bool) == Some(true) {
            return Some(Type::Dyn);
        }
        Some(match text("type") {
            "object" => match (schema.get("properties").and_then(Value::as_object), schema.get("additionalProperties")) {
                (_, Some(values)) if values.is_object() => Type::Map(Box::new(Type::String), Box::new(self.type_of(values, name)?)),
                (Some(properties), _) => {
                    let mut fields = BTreeMap::new();
                    for (field, below) in properties {
                        let Some(escaped) = escape(field) else { continue };
                        fields.insert(escaped, self.type_of(below, &format!("{name}.{field}"))?);
                    }
                    Type::Object(Arc::new(Fields { name: name.to_string(), fields }))
                }
                (None, _) => Type::Dyn,
            },
            "array" => Type::List(Box::new(schema.get("items").map_or(Some(Type::Dyn), |items| self.type_of(items, name))?)),
            "string" => match text("format") {
                "byte" => Type::Bytes,
                "duration" => Type::Duration,
                "date" | "date-time" => Type::Timestamp,
                _ => Type::String,
            },
            "integer" => Type::Int,
            "number" => Type::Double,
            "boolean" => Type::Bool,
            _ => Type::Dyn,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cel::policy::Scope;
    use serde_json::json;

    #[test]
    fn expressions_are_checked_against_what_documents_say() {
        let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
        let document = json!({"components": {"schemas": {
            "Meta": {"type": "object", "properties": {"name": {"type": "string"}, "labels": {"type": "object", "additionalProperties": {"type": "string"}}}},
            "Port": {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]},
            "Amount": {"oneOf": [{"type": "string"}, {"type": "number"}]},
            "Thing": {"type": "object", "x-kubernetes-group-version-kind": [{"group": "g", "version": "v1", "kind": "Thing"}], "properties": {
                "metadata": {"allOf": [reference("Meta")], "default": {}}, "port": reference("Port"), "amount": reference("Amount"),
                "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "items": {"type": "array", "items": reference("Meta")}, "count": {"type": "integer"}}},
            "Loop": {"type": "object", "x-kubernetes-group-version-kind": [{"group": "g", "version": "v1", "kind": "Loop"}],
                "properties": {"inner": reference("Loop")}}}}});
        let mut types = Types::of(&document);
        assert!(types.of_kind("g", "v1", "Loop").is_none());
        assert!(types.of_kind("g", "v2", "Thing").is_none());
        let thing = types.of_kind("g", "v1", "Thing").unwrap();
        let scope = Scope { object: Some(thing), ..Scope::default() };
        for source in [
            "object.metadata.labels['a'] == 'b' && object.port == 'x' && object.amount > 1",
            "object.items.all(x, x.name != '')",
            "object.open.any == 1",
        ] {
            scope.compile(source).unwrap();
        }
        assert!(scope.compile("object.counts > 1").unwrap_err().contains("undefined field 'counts'"));
        let why = scope.compile("oldObject.metadata.name > 1").unwrap_err();
        assert!(why.contains("found no matching overload for '_>_' applied to '(string, int)'"), "{why}");
    }
}
