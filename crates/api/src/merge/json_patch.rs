//! RFC 6902, as lenient and as strict as the library that Kubernetes uses: negative list indices count from the end, an
//! `add` without a value adds null; everything else that does not fit refuses the whole patch.

use super::unexpected;
use crate::{
    Value, limits,
    status::{Result, Status},
    structure::{self, Encoding},
};

/// Why an operation cannot be done. Clients are not told more than that it is their request.
struct Refused;

/// RFC 6902; `patch` is the body as sent.
pub fn json_patch(target: &Value, patch: &[u8]) -> Result<Value> {
    let undecodable = |why: String| Status::bad_request(format!("error decoding patch: {why}"));
    let patch = structure::parse(patch, Encoding::Json).map_err(undecodable)?;
    let operations = match &patch {
        Value::Array(operations) => operations.as_slice(),
        Value::Null => &[],
        other => return Err(undecodable(unexpected(other, "value of type []handlers.jsonPatchOp"))),
    };
    for operation in operations {
        check_types(operation).map_err(undecodable)?;
    }
    if operations.len() > limits::JSON_PATCH_OPERATIONS_MAX {
        return Err(Status::request_entity_too_large(format!(
            "The allowed maximum operations in a JSON patch is {}, got {}",
            limits::JSON_PATCH_OPERATIONS_MAX,
            operations.len()
        )));
    }
    let mut object = target.clone();
    let mut copied_bytes = 0;
    for operation in operations {
        apply(&mut object, operation, &mut copied_bytes)
            .map_err(|Refused| Status::unprocessable("the server rejected our request due to an error in our request"))?;
    }
    Ok(object)
}

/// An operation is an object, and its texts are texts.
fn check_types(operation: &Value) -> Result<(), String> {
    if !operation.is_object() && !operation.is_null() {
        return Err(unexpected(operation, "value of type handlers.jsonPatchOp"));
    }
    match ["from", "op", "path"]
        .iter()
        .find_map(|key| operation.get(key).filter(|value| !value.is_string() && !value.is_null()).map(|value| (key, value)))
    {
        Some((key, value)) => Err(unexpected(value, &format!("struct field jsonPatchOp.{key} of type string"))),
        None => Ok(()),
    }
}

/// Names the members of operations that mean nothing: `unknown field "[0].foo"`.
pub fn json_patch_unknown_fields(patch: &Value) -> Vec<String> {
    let operations = patch.as_array().into_iter().flatten().enumerate();
    let members = operations.flat_map(|(i, operation)| operation.as_object().into_iter().flatten().map(move |(key, _)| (i, key)));
    let unknown = members.filter(|(_, key)| !matches!(key.as_str(), "op" | "path" | "from" | "value"));
    unknown.map(|(i, key)| format!("unknown field \"[{i}].{key}\"")).collect()
}

/// What is wrong with the first operation that cannot be done, where what it speaks of is not there: policies tell that.
pub fn json_patch_problem(target: &Value, operations: &[Value]) -> Option<String> {
    let mut object = target.clone();
    for operation in operations {
        if apply(&mut object, operation, &mut 0).is_ok() {
            continue;
        }
        let (name, text) = (operation.get("op")?.as_str()?, operation.get("path")?.as_str()?);
        let path = pointer(text).ok()?;
        let has_parent = path.split_last().is_some_and(|(_, parent)| find(&mut object, parent).is_some_and(|value| !value.is_null()));
        return match (name, has_parent) {
            ("add" | "remove", false) => Some(format!("{name} operation does not apply: doc is missing path: {text:?}: missing value")),
            ("replace", false) => Some(format!("replace operation does not apply: doc is missing path: {text}: missing value")),
            ("replace", true) => Some(format!("replace operation does not apply: doc is missing key: {text}: missing value")),
            ("test", false) => Some(format!("test operation does not apply: is missing path: {text}: missing value")),
            ("test", true) => Some(format!("testing value {text} failed: test failed")),
            _ => None,
        };
    }
    None
}

fn apply(object: &mut Value, operation: &Value, copied_bytes: &mut usize) -> Result<(), Refused> {
    let text = |key: &str| operation.get(key).and_then(Value::as_str);
    let path = pointer(text("path").ok_or(Refused)?)?;
    let from = || pointer(text("from").ok_or(Refused)?);
    let value = || operation.get("value").cloned().unwrap_or(Value::Null);
    match text("op").ok_or(Refused)? {
        "add" => add(object, &path, value()),
        "remove" => remove(object, &path).map(drop),
        "replace" => {
            *find(object, &path).ok_or(Refused)? = value();
            Ok(())
        }
        "move" => {
            let from = from()?;
            if path.len() > from.len() && path.starts_with(&from) {
                return Err(Refused);
            }
            let moved = remove(object, &from)?;
            add(object, &path, moved)
        }
        "copy" => {
            let from = from()?;
            let copy = find(object, &from).filter(|_| !from.is_empty()).ok_or(Refused)?.clone();
            *copied_bytes += copy.to_string().len();
            if *copied_bytes > limits::JSON_PATCH_COPY_BYTES_MAX {
                return Err(Refused);
            }
            add(object, &path, copy)
        }
        "test" => {
            let absent = Value::Null;
            let found = match path.split_last() {
                None => object,
                // A member that is not there is null, an item that is not there is an error.
                Some((key, parent)) => match find(object, parent).ok_or(Refused)? {
                    Value::Object(map) => map.get(key).unwrap_or(&absent),
                    list => find(list, std::slice::from_ref(key)).ok_or(Refused)?,
                },
            };
            same(found, &value()).then_some(()).ok_or(Refused)
        }
        _ => Err(Refused),
    }
}

/// Equal as JSON: `1` and `1.0` are the same number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b))),
        _ => a == b,
    }
}

/// The keys of a JSON pointer. What stands before the first slash does not count.
fn pointer(text: &str) -> Result<Vec<String>, Refused> {
    if text.is_empty() {
        return Ok(vec![]);
    }
    let (_, rest) = text.split_once('/').ok_or(Refused)?;
    Ok(rest.split('/').map(|key| key.replace("~1", "/").replace("~0", "~")).collect())
}

/// An index into a list of `length`; negative ones count from the end.
fn index(key: &str, length: usize) -> Option<usize> {
    let number: i64 = key.parse().ok()?;
    let length = i64::try_from(length).ok()?;
    let index = if number < 0 { number.checked_add(length)? } else { number };
    usize::try_from(index).ok()
}

fn find<'a>(object: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(object, |value, key| match value {
        Value::Object(map) => map.get_mut(key),
        Value::Array(list) => {
            let at = index(key, list.len())?;
            list.get_mut(at)
        }
        _ => None,
    })
}

fn add(object: &mut Value, path: &[String], value: Value) -> Result<(), Refused> {
    let (key, parent) = path.split_last().ok_or(Refused)?;
    match find(object, parent).ok_or(Refused)? {
        Value::Object(map) => {
            map.insert(key.clone(), value);
            Ok(())
        }
        Value::Array(list) => {
            // A new item may stand behind the last: negative indices count from there.
            let at = if key == "-" { Some(list.len()) } else { index(key, list.len() + 1) };
            list.insert(at.filter(|at| *at <= list.len()).ok_or(Refused)?, value);
            Ok(())
        }
        _ => Err(Refused),
    }
}

fn remove(object: &mut Value, path: &[String]) -> Result<Value, Refused> {
    let (key, parent) = path.split_last().ok_or(Refused)?;
    match find(object, parent).ok_or(Refused)? {
        Value::Object(map) => map.remove(key).ok_or(Refused),
        Value::Array(list) => {
            let at = index(key, list.len()).filter(|at| *at < list.len()).ok_or(Refused)?;
            Ok(list.remove(at))
        }
        _ => Err(Refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(patch: &str, expected: &str) {
        let target = json!({"data": {"k": "1", "a/b": "s"}, "list": ["a", "b"]});
        let found = json_patch(&target, patch.as_bytes()).map(|v| v.to_string()).unwrap_or_else(|s| format!("{} {}", s.code, s.message));
        assert_eq!(found, expected, "{patch}");
    }

    #[test]
    fn policies_tell_what_a_patch_does_not_find() {
        let check = |patch: Value, expected: Option<&str>| {
            let found = json_patch_problem(&json!({"metadata": {"name": "a"}}), patch.as_array().unwrap());
            assert_eq!(found.as_deref(), expected, "{patch}");
        };
        check(json!([{"op": "add", "path": "/metadata/labels", "value": {}}]), None);
        let missing = "add operation does not apply: doc is missing path: \"/data/k\": missing value";
        check(json!([{"op": "add", "path": "/data/k", "value": "v"}]), Some(missing));
        let missing = "replace operation does not apply: doc is missing key: /metadata/uid: missing value";
        check(json!([{"op": "replace", "path": "/metadata/uid", "value": "v"}]), Some(missing));
    }

    #[test]
    fn json_patches() {
        let refused = "422 the server rejected our request due to an error in our request";
        check(r#"[{"op":"add","path":"/data/l","value":"2"}]"#, r#"{"data":{"a/b":"s","k":"1","l":"2"},"list":["a","b"]}"#);
        check(r#"[{"op":"add","path":"/data/k"}]"#, r#"{"data":{"a/b":"s","k":null},"list":["a","b"]}"#);
        check(r#"[{"op":"remove","path":"/data/a~1b"}]"#, r#"{"data":{"k":"1"},"list":["a","b"]}"#);
        check(
            r#"[{"op":"add","path":"/list/0","value":"z"},{"op":"add","path":"/list/-","value":"y"}]"#,
            r#"{"data":{"a/b":"s","k":"1"},"list":["z","a","b","y"]}"#,
        );
        check(r#"[{"op":"test","path":"/data/z","value":null},{"op":"remove","path":"x/list"}]"#, r#"{"data":{"a/b":"s","k":"1"}}"#);
        check(r#"[{"op":"remove","path":"/list/-1"}]"#, r#"{"data":{"a/b":"s","k":"1"},"list":["a"]}"#);
        check(
            r#"[{"op":"move","from":"/data/k","path":"/data/m"},{"op":"copy","from":"/list","path":"/data/c"}]"#,
            r#"{"data":{"a/b":"s","c":["a","b"],"m":"1"},"list":["a","b"]}"#,
        );
        check(
            r#"[{"op":"test","path":"/data/k","value":"1"},{"op":"replace","path":"/list","value":[]}]"#,
            r#"{"data":{"a/b":"s","k":"1"},"list":[]}"#,
        );
        for bad in [
            r#"[{"op":"frob","path":"/data/k"}]"#,
            r#"[{"path":"/data/k"}]"#,
            r#"[{"op":"remove"}]"#,
            r#"[{"op":"remove","path":"data/k"}]"#,
            r#"[{"op":"add","path":"/list/9","value":1}]"#,
            r#"[{"op":"add","path":"/list/x","value":1}]"#,
            r#"[{"op":"replace","path":"/data/z","value":1}]"#,
            r#"[{"op":"test","path":"/data/k","value":"2"}]"#,
            r#"[{"op":"add","path":"/no/where","value":1}]"#,
            "[null]",
            r#"[{"op":"move","from":"/data","path":"/data/k/x"}]"#,
            r#"[{"op":"add","path":"","value":{}}]"#,
            r#"[{"op":"copy","from":"","path":"/data"}]"#,
            r#"[{"op":"test","path":"/no/where","value":null}]"#,
            r#"[{"op":"test","path":"/list/7","value":null}]"#,
        ] {
            check(bad, refused);
        }
        check("{}", "400 error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp");
        check("[1]", "400 error decoding patch: json: cannot unmarshal number into Go value of type handlers.jsonPatchOp");
        let wrong = "400 error decoding patch: json: cannot unmarshal number into Go struct field jsonPatchOp.path of type string";
        check(r#"[{"op":"add","path":1}]"#, wrong);
        assert_eq!(json_patch_unknown_fields(&json!([{"op": "add"}, {"Op": 1}])), ["unknown field \"[1].Op\""]);
        check("hello", "400 error decoding patch: invalid character 'h' looking for beginning of value");
        check("", "400 error decoding patch: unexpected end of JSON input");
    }

    #[test]
    fn copies_cannot_explode() {
        let operations: Vec<_> = (0..64).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/a/{i}")})).collect();
        let code =
            json_patch(&json!({"a": {"x": "y".repeat(1000)}}), Value::from(operations).to_string().as_bytes()).map_err(|status| status.code).err();
        assert_eq!(code, Some(422));
    }
}
