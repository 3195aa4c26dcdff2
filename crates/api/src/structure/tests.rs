//! Bodies and what becomes of them, with the answers that a real server gave.

use super::*;
use crate::schema;
use serde_json::json;

fn kind(group: &str, version: &str, kind: &str) -> Kind {
    Kind::namespaced(group, version, kind, &format!("{}s", kind.to_lowercase()))
}

fn create(group: &str, name: &str, body: &str, validation: FieldValidation) -> Result<Value, String> {
    let kind = kind(group, "v1", name);
    let encoding = if body.starts_with("yaml\n") { Encoding::Yaml } else { Encoding::Json };
    let body = body.strip_prefix("yaml\n").unwrap_or(body);
    decode_object(body.as_bytes(), encoding, &kind, "v1", validation).map(|(value, _)| value).map_err(|status| status.message)
}

fn config_map(body: &str) -> String {
    create("", "ConfigMap", body, FieldValidation::Strict).map_or_else(|e| e, |v| v.to_string())
}

#[test]
fn bodies_that_are_no_objects() {
    let unrecognized = "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: ";
    for (body, error) in [
        ("", "unexpected end of JSON input (<empty>)"),
        ("hello", "invalid character 'h' looking for beginning of value (68656c6c6f)"),
        (
            "42",
            "json: cannot unmarshal number into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" } (3432)",
        ),
        ("{\"metadata\":{\"name\":\"a\"", "unexpected end of JSON input ({\"metadata\":{\"name\":\"a\")"),
        ("{\"metadata\":{\"name\":\"a\"}} xyz", "invalid character 'x' after top-level value ({\"metadata\":{\"name\":\"a\"}} xyz)"),
        (
            "{'apiVersion':'v1','kind':'ConfigMap'}",
            "invalid character '\\'' looking for beginning of object key string ({'apiVersion':'v1','kind':'Con ...)",
        ),
        (
            "\u{feff}{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"d\"}}",
            "invalid character 'ï' looking for beginning of value (efbbbf7b2261706956657273696f6e223a227631222c226b696e64223a22 ...)",
        ),
    ] {
        assert_eq!(config_map(body), format!("{unrecognized}{error}"), "{body}");
    }
    assert_eq!(config_map("null"), r#"{"apiVersion":"v1","kind":"ConfigMap"}"#);
    assert_eq!(
        config_map("{\"apiVersion\": \"a/b/c\", \"kind\": \"ConfigMap\"}"),
        "the object provided is unrecognized (must be of type ConfigMap): unexpected GroupVersion string: a/b/c ({\"apiVersion\": \"a/b/c\", \"kind\" ...)"
    );
    let deep = format!("{{\"data\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(config_map(&deep).contains("exceeded max depth"));
}

#[test]
fn other_kinds() {
    for (body, error) in [
        (
            r#"{"apiVersion":"v1","kind":"Secret"}"#,
            r#"Secret in version "v1" cannot be handled as a ConfigMap: converting (v1.Secret) to (core.ConfigMap): unknown conversion"#,
        ),
        (
            r#"{"apiVersion":"apps/v1","kind":"Deployment"}"#,
            r#"Deployment in version "v1" cannot be handled as a ConfigMap: converting (v1.Deployment) to (core.ConfigMap): unknown conversion"#,
        ),
        (
            r#"{"apiVersion":"v2","kind":"ConfigMap"}"#,
            r#"ConfigMap in version "v2" cannot be handled as a ConfigMap: no kind "ConfigMap" is registered for version "v2" in scheme "pkg/api/legacyscheme/scheme.go:30""#,
        ),
        (
            r#"{"apiVersion":"v1","kind":"Foo"}"#,
            r#"Foo in version "v1" cannot be handled as a ConfigMap: no kind "Foo" is registered for version "v1" in scheme "pkg/api/legacyscheme/scheme.go:30""#,
        ),
        (
            r#"{"apiVersion":"v1","kind":"List","items":[]}"#,
            r#"List in version "v1" cannot be handled as a ConfigMap: converting (v1.List) to (core.ConfigMap): unknown conversion"#,
        ),
    ] {
        assert_eq!(config_map(body), error);
    }
    assert_eq!(config_map(r#"{"kind":"ConfigMap"}"#), r#"{"apiVersion":"v1","kind":"ConfigMap"}"#);
}

#[test]
fn wrong_types() {
    for (group, kind, body, error) in [
        (
            "apps",
            "Deployment",
            r#"{"spec":{"replicas":"x"}}"#,
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "apps",
            "Deployment",
            r#"{"spec":{"replicas":2.0}}"#,
            "json: cannot unmarshal number 2.0 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "apps",
            "Deployment",
            r#"{"spec":{"replicas":99999999999}}"#,
            "json: cannot unmarshal number 99999999999 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "apps",
            "Deployment",
            r#"{"spec":{"strategy":{"rollingUpdate":{"maxSurge":1.5}}}}"#,
            "json: cannot unmarshal number 1.5 into Go struct field RollingUpdateDeployment.spec.strategy.rollingUpdate.maxSurge of type int32",
        ),
        ("", "ConfigMap", r#"{"data":{"k":1}}"#, "json: cannot unmarshal number into Go struct field ConfigMap.data of type string"),
        ("", "ConfigMap", r#"{"data":"x"}"#, "json: cannot unmarshal string into Go struct field ConfigMap.data of type map[string]string"),
        (
            "",
            "ConfigMap",
            r#"{"metadata":{"labels":{"x":true}}}"#,
            "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        ("", "Pod", r#"{"spec":[]}"#, "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec"),
        (
            "",
            "Pod",
            r#"{"spec":{"containers":{}}}"#,
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            "",
            "Pod",
            r#"{"spec":{"containers":[{"env":[{"value":1}]}]}}"#,
            "json: cannot unmarshal number into Go struct field EnvVar.spec.containers.env.value of type string",
        ),
        (
            "",
            "Pod",
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"abc"}}}]}}"#,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            "",
            "Service",
            r#"{"spec":{"ports":[{"targetPort":true}]}}"#,
            "json: cannot unmarshal bool into Go struct field ServicePort.spec.ports.targetPort of type int32",
        ),
        ("", "Secret", r#"{"data":{"k":"***"}}"#, "illegal base64 data at input byte 0"),
        ("", "Secret", r#"{"data":{"k":1}}"#, "json: cannot unmarshal number into Go struct field Secret.data of type []uint8"),
    ] {
        let expected = format!("{kind} in version \"v1\" cannot be handled as a {kind}: {error}");
        assert_eq!(create(group, kind, body, FieldValidation::Warn).unwrap_err(), expected, "{body}");
    }
}

#[test]
fn unknown_and_double_fields() {
    let body = r#"{"spec":{"template":{"spec":{"containers":[{"name":"c"},{"name":"d","comand":["x"],"env":[{"valeu":"1"}]}],"foo":true}},"bar":1,"replicas":1,"replicas":2}}"#;
    assert_eq!(
        create("apps", "Deployment", body, FieldValidation::Strict).unwrap_err(),
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \"spec.template.spec.containers[1].comand\", unknown field \"spec.template.spec.containers[1].env[0].valeu\", unknown field \"spec.template.spec.foo\", unknown field \"spec.bar\", duplicate field \"spec.replicas\""
    );
    let deployment = kind("apps", "v1", "Deployment");
    let (object, warnings) = decode_object(body.as_bytes(), Encoding::Json, &deployment, "v1", FieldValidation::Warn).unwrap();
    assert_eq!((warnings.len(), object.i64_at("spec.replicas"), object.at("spec.bar")), (5, Some(2), None));
    assert_eq!(
        config_map(r#"{"data":{"k":"1","k":"2"}}"#),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \"data.k\""
    );
    assert_eq!(
        config_map("yaml\nmetadata: {name: c2}\ndata:\n  k: one\n  k: two\n"),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: yaml: unmarshal errors:\n  line 4: key \"k\" already set in map"
    );
    let thing = kind("example.com", "v1", "Thing");
    let (object, _) =
        decode_object(br#"{"spec":{"x":[1,null]},"metadata":{"name":"a","labels":null}}"#, Encoding::Json, &thing, "v1", FieldValidation::Strict)
            .unwrap();
    assert_eq!(object, json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": {"x": [1, null]}}));
    assert_eq!(duplicates(br#"[{"op":"add","op":"add"}]"#), ["duplicate field \"[0].op\""]);
}

#[test]
fn objects_are_as_go_would_show_them() {
    let body = r#"{"metadata":{"name":"p","annotations":{},"creationTimestamp":null},"spec":{"hostNetwork":false,"automountServiceAccountToken":false,"nodeName":"",
        "containers":[{"name":"c","stdin":false,"env":[{"name":"A","value":""}],"resources":{"requests":{"cpu":"1000m","memory":1048576}},"ports":[]}],
        "volumes":[{"name":"v","emptyDir":{}}]}}"#;
    assert_eq!(
        create("", "Pod", body, FieldValidation::Strict).unwrap(),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": {},
            "spec": {"automountServiceAccountToken": false, "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "c", "env": [{"name": "A"}], "resources": {"requests": {"cpu": "1", "memory": "1048576"}}}]}})
    );
    assert_eq!(config_map(r#"{"data":{"k":null}}"#), r#"{"apiVersion":"v1","data":{"k":""},"kind":"ConfigMap"}"#);
    let null_container = create("", "Pod", r#"{"spec":{"containers":[null]}}"#, FieldValidation::Strict).unwrap();
    assert_eq!(null_container["spec"]["containers"], json!([{"resources": {}}]));
    let mut role = json!({"rules": [], "metadata": {"labels": null}});
    complete(&mut role, &schema::of("rbac.authorization.k8s.io", "v1", "Role").unwrap());
    assert_eq!(role, json!({"rules": null, "metadata": {}}));
}

#[test]
fn patched_objects_are_refused_as_a_whole() {
    let error = check_object(json!({"spec": {"replicas": "x"}}), &kind("apps", "v1", "Deployment"), "v1", FieldValidation::Warn).unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (
            422,
            " \"\" is invalid: patch: Invalid value: \"{\\\"spec\\\":{\\\"replicas\\\":\\\"x\\\"}}\": json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        )
    );
}

proptest::proptest! {
    #[test]
    fn no_body_panics(body in "[{}\\[\\]:,\"a-c0-9.eE\\\\un -]{0,60}") {
        let _ = create("", "Pod", &body, FieldValidation::Strict);
        let _ = create("", "Pod", &format!("yaml\n{body}"), FieldValidation::Strict);
        let _ = duplicates(body.as_bytes());
    }
    #[test]
    fn what_the_decoder_accepts_it_reads_as_serde_does(body in "\\{\"data\":\\{(\"[a-z]{1,3}\":\"(\\\\\\\\|\\\\n|\\\\u00e9|\\\\ud83d\\\\ude00|[a-z ]){0,6}\",){0,3}\"z\":\"\"\\}\\}") {
        let ours = parse(body.as_bytes(), Encoding::Json).unwrap();
        let theirs: Value = serde_json::from_str(&body).unwrap();
        proptest::prop_assert_eq!(ours, theirs);
    }
}
