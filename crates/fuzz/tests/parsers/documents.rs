//! Bodies: objects as JSON, YAML and protobuf, every form of patch, the books of server-side apply, and the files that configure a server.

use crate::run;
use api::{
    Catalogue, Kind, Value,
    apply::{self, Set, Writer},
    field::Errors,
    merge, metadata, protobuf,
    request::FieldValidation,
    structure::{self, Encoding},
};
use fuzz::Choices;
use serde_json::json;
use std::sync::{Arc, LazyLock};

static KINDS: LazyLock<Vec<Arc<Kind>>> = LazyLock::new(|| Catalogue::built_in().iter().cloned().collect());

const POD: &[u8] = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"x":"y"},"ownerReferences":[{"uid":"1"}]},"spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":80}],"resources":{"limits":{"cpu":"1","memory":"1Gi"}},"env":[{"name":"A","value":"b"}]}],"volumes":[{"name":"v","emptyDir":{}}],"tolerations":[{"operator":"Exists"}]}}"#;
const DEPLOYMENT: &[u8] = br#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d","annotations":{"a":"b"},"creationTimestamp":null},"spec":{"replicas":3,"selector":{"matchLabels":{"a":"b"}},"strategy":{"rollingUpdate":{"maxSurge":"25%","maxUnavailable":1}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#;
const DEFINITION: &[u8] = br#"{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"widgets.example.com"},"spec":{"group":"example.com","names":{"plural":"widgets","singular":"widget","kind":"Widget","listKind":"WidgetList"},"scope":"Namespaced","versions":[{"name":"v1","served":true,"storage":true,"additionalPrinterColumns":[{"name":"a","type":"string","jsonPath":".spec.a"}],"selectableFields":[{"jsonPath":".spec.a"}],"subresources":{"status":{},"scale":{"specReplicasPath":".spec.n","statusReplicasPath":".status.n"}},"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":"object","properties":{"a":{"type":"string","pattern":"^a+$","default":"aa"},"n":{"type":"integer","minimum":1},"l":{"type":"array","maxItems":5,"items":{"type":"string"},"x-kubernetes-list-type":"set"}},"x-kubernetes-validations":[{"rule":"self.n > 1","message":"m"}]}}}}}]}}"#;
const YAML: &[u8] = b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n  labels: &l {x: 'y', n: \"1\"}\n  annotations: *l\ndata:\n  k: |\n    text\n    more\n  j: >-\n    a\n  e: 0x1f\n---\nkind: none\n";
const LIST: &[u8] =
    br#"{"kind":"ConfigMap","data":{"a":"\u00e4\ud83e\udd80\"\\\n","a":"twice"},"binaryData":{"b":"//8="},"immutable":false,"x":[1,-2.5e3,null]}"#;

fn body(kind: &Kind, version: &str, bytes: &[u8], encoding: Encoding) {
    for validation in [FieldValidation::Ignore, FieldValidation::Strict] {
        let Ok((object, _)) = structure::decode_object(bytes, encoding, kind, version, validation) else { continue };
        let text = object.to_string();
        let (again, _) = structure::decode_object(text.as_bytes(), Encoding::Json, kind, version, FieldValidation::Ignore)
            .unwrap_or_else(|why| panic!("what was taken is refused when it is written: {why}: {text}"));
        assert_eq!(again, object, "what was taken is another when it is read again");
        // And through what a kind does with what it is given.
        let mut object = object;
        kind.hooks.to_stored(version, &mut object);
        kind.hooks.default(&mut object);
        kind.hooks.prepare_create(&mut object);
        let mut errors = Errors::default();
        metadata::validate_create(&object, kind, &mut errors);
        kind.hooks.validate(&object, None, &mut errors);
        let _ = (kind.hooks.warnings(&object, None), api::table::cells(kind, &object, 1_700_000_000));
    }
}

/// Any kind, and mostly one of those that the documents say they are.
fn kind_for(choices: &mut Choices) -> &'static Kind {
    let named = ["CustomResourceDefinition", "Deployment", "ConfigMap", "Pod"].get(choices.below(6));
    let found = named.and_then(|name| KINDS.iter().find(|kind| kind.kind == *name));
    found.unwrap_or_else(|| &KINDS[choices.below(KINDS.len())])
}

#[test]
fn json() {
    run(|choices| {
        let kind = kind_for(choices);
        let bytes = &choices.near(&[POD, DEPLOYMENT, DEFINITION, LIST]);
        body(kind, &kind.versions[0], bytes, Encoding::Json);
        let _ = structure::duplicates(bytes);
        if let Ok(value) = structure::parse(bytes, Encoding::Json) {
            let again = structure::parse(value.to_string().as_bytes(), Encoding::Json);
            assert_eq!(again.as_ref(), Ok(&value), "what was taken is another when it is read again");
        }
    });
}

#[test]
fn yaml() {
    run(|choices| {
        let kind = kind_for(choices);
        let bytes = &choices.near(&[YAML, POD, b"a: [b, {c: d}]\n? e\n: !!str f\n"]);
        body(kind, &kind.versions[0], bytes, Encoding::Yaml);
        let _ = structure::yaml_duplicates(bytes);
    });
}

#[test]
fn protobuf_bodies() {
    static BODIES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let encode = |text: &[u8]| protobuf::encode(&serde_json::from_slice(text).expect("JSON")).expect("a kind with a message");
        [POD, DEPLOYMENT, DEFINITION].map(encode).to_vec()
    });
    static RIGHT: LazyLock<Vec<&'static [u8]>> = LazyLock::new(|| BODIES.iter().map(Vec::as_slice).collect());
    run(|choices| {
        let bytes = &choices.near(&RIGHT);
        let Ok(object) = protobuf::decode(bytes) else { return };
        let Some(written) = protobuf::encode(&object) else { return };
        let again = protobuf::decode(&written).unwrap_or_else(|why| panic!("what was written is refused: {why}: {object}"));
        assert_eq!(protobuf::encode(&again), Some(written), "the same bytes again");
    });
}

fn standing() -> Value {
    serde_json::from_slice(DEPLOYMENT).expect("JSON")
}

#[test]
fn json_patches() {
    let right: &[&[u8]] = &[
        br#"[{"op":"replace","path":"/metadata/labels","value":{"a":"b"}},{"op":"move","from":"/spec","path":"/x~1y~0"}]"#,
        br#"[{"op":"copy","from":"/spec","path":"/spec/template"},{"op":"add","path":"/spec/template/spec/containers/-","value":1}]"#,
        br#"[{"op":"test","path":"/metadata/name","value":"d"},{"op":"remove","path":"/spec/template/spec/containers/0"}]"#,
    ];
    run(|choices| drop(merge::json_patch(&standing(), &choices.near(right))));
}

#[test]
fn merge_patches() {
    let right: &[&[u8]] = &[
        br#"{"metadata":{"labels":{"a":null,"$patch":"replace"}},"spec":{"template":{"spec":{"containers":[{"name":"c","image":"j"},{"$patch":"delete","name":"x"}]}}}}"#,
        br#"{"spec":{"template":{"spec":{"$setElementOrder/containers":[{"name":"c"}],"$deleteFromPrimitiveList/x":[1],"$retainKeys":["containers"]}}}}"#,
        br#"{"spec":{"strategy":{"$retainKeys":["type"],"type":"Recreate"}},"metadata":{"finalizers":["a/b"],"$patch":"merge"}}"#,
    ];
    let kind = Catalogue::built_in().kind("apps", "Deployment").cloned().expect("Deployments");
    let schema = kind.schema("v1").expect("their schema");
    run(|choices| {
        let patch = &choices.near(right);
        let Ok(patch) = structure::parse(patch, Encoding::Json) else { return };
        let mut merged = standing();
        merge::merge_patch(&mut merged, &patch);
        let once = merged.clone();
        merge::merge_patch(&mut merged, &patch);
        assert_eq!(merged, once, "a merge patch applied twice is applied once");
        let _ = merge::strategic_merge(&standing(), &patch, &schema);
    });
}

#[test]
fn applied_configurations() {
    let kind = Catalogue::built_in().kind("apps", "Deployment").cloned().expect("Deployments");
    run(|choices| {
        let (force, bytes) = (choices.flip(), &choices.near(&[DEPLOYMENT, YAML]));
        let Ok(config) = structure::parse_object(bytes, Encoding::Yaml) else { return };
        let Ok((config, _)) = structure::check_object(config, &kind, "v1", FieldValidation::Ignore) else { return };
        let writer = Writer { kind: &kind, version: "v1", manager: "fuzz", subresource: "", now: "2024-01-01T00:00:00Z" };
        let Ok(applied) = apply::apply(None, &config, &writer, force) else { return };
        let again = apply::apply(Some(&applied), &config, &writer, force).unwrap_or_else(|why| panic!("applied once, but not twice: {why}"));
        assert_eq!(again, applied, "what is applied twice is applied once");
    });
}

#[test]
fn managed_fields() {
    let right: &[&[u8]] = &[
        br#"{"f:metadata":{"f:labels":{".":{},"f:a":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{}},"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{}}}}"#,
        br#"{"f:finalizers":{"v:\"a/b\"":{},"i:0":{}},"f:x":{"v:1":{},"v:true":{},"v:null":{}}}"#,
    ];
    run(|choices| {
        let bytes = &choices.near(right);
        let Ok(value) = structure::parse(bytes, Encoding::Json) else { return };
        let Some(set) = Set::from_value(value) else { return };
        let nothing = set.difference(&set);
        assert!(nothing.is_empty(), "a set without itself is empty");
        let _ = (set.paths(), set.union(&set), set.intersection(&set));
        let written = set.into_value();
        assert_eq!(Set::from_value(written.clone()).map(Set::into_value), Some(written), "the same books again");
    });
}

#[test]
fn definitions() {
    static CUSTOM: &[u8] =
        br#"{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"a"},"spec":{"a":"aaa","n":3,"l":["x","y"]},"status":{"n":1}}"#;
    run(|choices| {
        let (definition, object) = (&choices.near(&[DEFINITION]), &choices.near(&[CUSTOM]));
        let Ok(definition) = structure::parse_object(definition, Encoding::Json) else { return };
        let Some(kind) = api::custom::kind(&definition) else { return };
        if let Some(version) = kind.versions.first() {
            body(&kind, version, object, Encoding::Json);
        }
    });
}

#[test]
fn configuration_files() {
    let right: &[&[u8]] = &[
        b"apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- level: Metadata\n  users: [a]\n  resources: [{group: '', resources: [pods/log], resourceNames: [x]}]\n",
        b"apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {url: 'https://a', audiences: [b]}\n  claimMappings: {username: {claim: sub, prefix: ''}}\nanonymous: {enabled: true, conditions: [{path: /livez}]}\n",
        b"apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers: [{aesgcm: {keys: [{name: a, secret: AAAAAAAAAAAAAAAAAAAAAA==}]}}, {identity: {}}]\n",
        b"token,user,uid,\"group1,group2\"\n# none\nother,me,1\n",
    ];
    run(|choices| {
        let text = &choices.near_text(right);
        let _ = apiserver::audit::Policy::parse(text).map(drop);
        let _ = apiserver::authentication::oidc::parse(text).map(drop);
        let _ = apiserver::encryption::parse(text).map(drop);
        let _ = apiserver::authentication::StaticToken::parse_file(text).map(drop);
    });
}

#[test]
fn nothing_is_as_deep_as_it_likes() {
    let deep = |open: &str, middle: &str, close: &str| format!("{}{middle}{}", open.repeat(30_000), close.repeat(30_000));
    let pod = KINDS.iter().find(|kind| kind.kind == "Pod").expect("Pods");
    for text in [deep("[", "", "]"), deep("{\"a\":", "1", "}"), deep("[{\"a\":", "1", "}]"), deep("- ", "a", ""), deep("{a: ", "1", "}")] {
        for encoding in [Encoding::Json, Encoding::Yaml] {
            body(pod, "v1", text.as_bytes(), encoding);
            assert!(structure::parse(text.as_bytes(), encoding).is_err());
        }
        let _ = merge::json_patch(&json!({}), text.as_bytes());
    }
}
