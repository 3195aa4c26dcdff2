//! What users put between a request and the store: policies with parameters, and webhooks, asked over real TLS.

use super::*;
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/test/configmaps";

fn checked(name: &str, data: Value) -> String {
    json!({"metadata": {"name": name, "labels": {"checked": "yes"}}, "data": data}).to_string()
}

fn rule() -> Value {
    json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}])
}

async fn make(server: &Arc<Server>, path: &str, object: Value) {
    let (code, made) = raw_json(server, "POST", path, &[], object.to_string()).await;
    assert_eq!(code, 201, "{made}");
}

fn warnings(headers: &http::HeaderMap) -> Vec<&str> {
    headers.get_all("warning").iter().filter_map(|warning| warning.to_str().ok()).collect()
}

#[tokio::test]
async fn a_policy_measures_by_its_parameters_and_denies_or_warns() {
    let (server, _client) = server().await;
    make(&server, MAPS, json!({"metadata": {"name": "limit"}, "data": {"keys": "1"}})).await;
    let policy = json!({"metadata": {"name": "few-keys"}, "spec": {
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": {"resourceRules": rule(), "objectSelector": {"matchLabels": {"checked": "yes"}}},
        "variables": [{"name": "count", "expression": "size(object.data)"}],
        "validations": [{
            "expression": "variables.count <= int(params.data.keys)",
            "messageExpression": "'%d keys are too many'.format([variables.count])"}]}});
    make(&server, &format!("{ADMISSION}/validatingadmissionpolicies"), policy).await;
    let two = checked("two", json!({"a": "1", "b": "2"}));
    assert_eq!(raw(&server, "POST", &format!("{MAPS}?dryRun=All"), &[], two.clone()).await.0, 201, "a policy that is not bound does nothing");

    let binding = |name: &str, action: &str| {
        let parameters = json!({"name": "limit", "namespace": "test", "parameterNotFoundAction": "Deny"});
        json!({"metadata": {"name": name}, "spec": {"policyName": "few-keys", "paramRef": parameters, "validationActions": [action]}})
    };
    let bindings = format!("{ADMISSION}/validatingadmissionpolicybindings");
    make(&server, &bindings, binding("warns", "Warn")).await;
    let (code, headers, _) = raw(&server, "POST", &format!("{MAPS}?dryRun=All"), &[], two.clone()).await;
    let said = warnings(&headers).join("\n");
    assert!(code == 201 && said.contains("ValidatingAdmissionPolicy 'few-keys' with binding 'warns'"), "{code} {said}");
    assert!(said.contains("2 keys are too many"), "{said}");

    make(&server, &bindings, binding("denies", "Deny")).await;
    let (code, refused) = raw_json(&server, "POST", MAPS, &[], two.clone()).await;
    assert_eq!((code, &refused["reason"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("Invalid")), "{refused}");
    let message = refused["message"].as_str().unwrap();
    assert!(message.ends_with("ValidatingAdmissionPolicy 'few-keys' with binding 'denies' denied request: 2 keys are too many"), "{message}");
    assert_eq!(raw(&server, "POST", MAPS, &[], checked("one", json!({"a": "1"}))).await.0, 201);

    // Other parameters, another judgement.
    let merge = [("content-type", "application/merge-patch+json")];
    assert_eq!(raw(&server, "PATCH", &format!("{MAPS}/limit"), &merge, json!({"data": {"keys": "2"}}).to_string()).await.0, 200);
    let (code, headers, _) = raw(&server, "POST", MAPS, &[], two).await;
    assert!(code == 201 && warnings(&headers).is_empty(), "{code} {headers:?}");
    assert_eq!(raw(&server, "DELETE", &format!("{MAPS}/limit"), &[], "").await.0, 200);
    assert_ne!(raw(&server, "POST", MAPS, &[], checked("more", json!({"a": "1"}))).await.0, 201, "parameters that are not there deny");
}

#[tokio::test]
async fn who_set_what_is_the_same_whether_or_not_a_policy_sees_it() {
    let (server, _client) = server().await;
    let books = |object: &Value| {
        let entry = &object["metadata"]["managedFields"][0];
        ["manager", "operation", "apiVersion", "fieldsType", "fieldsV1"].map(|key| entry[key].clone())
    };
    let (code, unseen) = raw_json(&server, "POST", MAPS, &[], checked("unseen", json!({"a": "1"}))).await;
    assert_eq!((code, &books(&unseen)[4]["f:data"]), (StatusCode::CREATED, &json!({".": {}, "f:a": {}})), "{unseen}");
    let policy = json!({"metadata": {"name": "kept"}, "spec": {"matchConstraints": {"resourceRules": rule()},
        "validations": [{"expression": "size(object.metadata.managedFields) == 1 && object.metadata.managedFields[0].operation == 'Update'"}]}});
    make(&server, &format!("{ADMISSION}/validatingadmissionpolicies"), policy).await;
    let binding = json!({"metadata": {"name": "kept"}, "spec": {"policyName": "kept", "validationActions": ["Deny"]}});
    make(&server, &format!("{ADMISSION}/validatingadmissionpolicybindings"), binding).await;
    let (code, seen) = raw_json(&server, "POST", MAPS, &[], checked("seen", json!({"a": "1"}))).await;
    assert_eq!((code, books(&seen)), (StatusCode::CREATED, books(&unseen)), "{seen}");
    let (code, tried) = raw_json(&server, "POST", &format!("{MAPS}?dryRun=All"), &[], checked("tried", json!({"a": "1"}))).await;
    assert_eq!((code, books(&tried)), (StatusCode::CREATED, books(&unseen)), "{tried}");
}

#[tokio::test]
async fn a_mutating_policy_applies_its_configuration() {
    let (server, _client) = server().await;
    let policy = json!({"metadata": {"name": "marks"}, "spec": {
        "matchConstraints": {"resourceRules": rule(), "objectSelector": {"matchLabels": {"checked": "yes"}}}, "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {
            "expression": "Object{metadata: Object.metadata{annotations: Object.metadata.annotations{marked: object.metadata.name}}}"}}]}});
    make(&server, &format!("{ADMISSION}/mutatingadmissionpolicies"), policy).await;
    let binding = json!({"metadata": {"name": "marks"}, "spec": {"policyName": "marks"}});
    make(&server, &format!("{ADMISSION}/mutatingadmissionpolicybindings"), binding).await;
    let (code, made) = raw_json(&server, "POST", MAPS, &[], checked("a", json!({}))).await;
    assert_eq!((code, &made["metadata"]["annotations"]), (StatusCode::CREATED, &json!({"marked": "a"})), "{made}");
}

/// Who may change a deployment comes before what its kind prepares; who judges it sees the generation that it will have.
#[tokio::test]
async fn what_a_kind_prepares_lies_between_those_who_change_and_those_who_judge() {
    let (server, _client) = server().await;
    let deployments = "/apis/apps/v1/namespaces/test/deployments";
    let rule = json!([{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["deployments"]}]);
    let changes = json!({"metadata": {"name": "changes"}, "spec": {
        "matchConstraints": {"resourceRules": rule}, "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression":
            "[JSONPatch{op: 'replace', path: '/spec/replicas', value: object.spec.replicas + 1}, JSONPatch{op: 'add', path: '/status', value: {'replicas': 7}}]"}}]}});
    make(&server, &format!("{ADMISSION}/mutatingadmissionpolicies"), changes).await;
    make(
        &server,
        &format!("{ADMISSION}/mutatingadmissionpolicybindings"),
        json!({"metadata": {"name": "changes"}, "spec": {"policyName": "changes"}}),
    )
    .await;
    let judges = json!({"metadata": {"name": "judges"}, "spec": {"matchConstraints": {"resourceRules": rule}, "validations": [
        {"expression": "object.metadata.generation == (request.operation == 'CREATE' ? 1 : oldObject.metadata.generation + 1)"},
        {"expression": "!has(object.status.replicas) && object.spec.template.spec.containers[0].resources == {}"}]}});
    make(&server, &format!("{ADMISSION}/validatingadmissionpolicies"), judges).await;
    let judged = json!({"metadata": {"name": "judges"}, "spec": {"policyName": "judges", "validationActions": ["Deny"]}});
    make(&server, &format!("{ADMISSION}/validatingadmissionpolicybindings"), judged).await;
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "nginx"}]}});
    let deployment = json!({"metadata": {"name": "web"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template}});
    let state = |object: &Value| [&object["spec"]["replicas"], &object["metadata"]["generation"], &object["status"]["replicas"]].map(Clone::clone);
    let (code, made) = raw_json(&server, "POST", deployments, &[], deployment.to_string()).await;
    assert_eq!((code, state(&made)), (StatusCode::CREATED, [json!(2), json!(1), Value::Null]), "{made}");
    let merge = [("content-type", "application/merge-patch+json")];
    let (code, changed) = raw_json(&server, "PATCH", &format!("{deployments}/web"), &merge, json!({"spec": {"replicas": 5}}).to_string()).await;
    assert_eq!((code, state(&changed)), (StatusCode::OK, [json!(6), json!(2), Value::Null]), "{changed}");
}

/// A webhook server on loopback. Ends when it is dropped.
struct Hooks {
    address: std::net::SocketAddr,
    authority: String,
    /// The paths on which it was asked, in order.
    asked: Arc<Mutex<Vec<String>>>,
    /// What it was asked last.
    last: Arc<Mutex<Value>>,
    stop: CancellationToken,
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// `/mutate` puts a label on, `/sidecar` adds a container, `/count` counts up, `/two` makes two replicas, `/all` changes
/// metadata, spec and status, `/once` sets a key if it is not there, `/look` looks on;
/// `/validate` refuses what has the key `bad`.
fn judged(path: &str, review: &Value) -> Value {
    let request = &review["request"];
    let mut response = json!({"uid": request["uid"], "allowed": true});
    let data = &request["object"]["data"];
    let patch = match path {
        "/mutate" => json!([{"op": "add", "path": "/metadata/labels/mutated", "value": request["operation"]}]),
        "/sidecar" => json!([{"op": "add", "path": "/spec/containers/-", "value": {"name": "sidecar", "image": "s"}}]),
        "/count" => {
            let before: u32 = data["count"].as_str().and_then(|count| count.parse().ok()).unwrap_or(0);
            json!([{"op": "add", "path": "/data/count", "value": (before + 1).to_string()}])
        }
        "/all" => json!([
            {"op": "add", "path": "/metadata/labels/seen", "value": "yes"},
            {"op": "add", "path": "/spec/terminationGracePeriodSeconds", "value": 7},
            {"op": "add", "path": "/status/message", "value": "from outside"}]),
        "/two" => json!([{"op": "replace", "path": "/spec/replicas", "value": 2}]),
        "/once" if data.get("once").is_none() => json!([{"op": "add", "path": "/data/once", "value": "yes"}]),
        _ => Value::Null,
    };
    if !patch.is_null() {
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(STANDARD.encode(patch.to_string()));
    } else if path == "/validate" {
        response["warnings"] = json!(["looked at closely"]);
        if request["object"]["data"].get("bad").is_some() || request["object"]["metadata"]["labels"].get("mutated").is_none() {
            response["allowed"] = json!(false);
            response["status"] = json!({"message": "nothing bad here", "code": 418, "reason": "Teapot"});
        }
    }
    json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response})
}

async fn hooks() -> Hooks {
    let authority = pki::Authority::generate("hooks").expect("an authority");
    let issued = authority.issue(&pki::Identity::server("hooks", vec!["127.0.0.1".into()])).expect("a certificate");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(pki::tls::server(&issued).expect("a configuration")));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (address, stop, asked) = (listener.local_addr().expect("an address"), CancellationToken::new(), Arc::new(Mutex::new(vec![])));
    let last = Arc::new(Mutex::new(Value::Null));
    let hooks = Hooks { address, authority: authority.certificate_pem().into(), asked: asked.clone(), last: last.clone(), stop: stop.clone() };
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((tcp, _)) = accepted else { continue };
            let (acceptor, asked, last) = (acceptor.clone(), asked.clone(), last.clone());
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (asked, last) = (asked.clone(), last.clone());
                    async move {
                        let path = request.uri().path().to_string();
                        let bytes = request.into_body().collect().await?.to_bytes();
                        let review: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                        let answer = judged(&path, &review);
                        asked.lock().push(path);
                        *last.lock() = review["request"].clone();
                        Ok::<_, hyper::Error>(http::Response::new(http_body_util::Full::new(bytes::Bytes::from(answer.to_string()))))
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
            });
        }
    });
    hooks
}

fn configuration(hooks: &Hooks, path: &str, failure_policy: &str) -> Value {
    let client = json!({"url": format!("https://{}{path}", hooks.address), "caBundle": STANDARD.encode(&hooks.authority)});
    json!({"metadata": {"name": path.trim_start_matches('/')}, "webhooks": [{
        "name": "hook.example.dev", "clientConfig": client, "rules": rule(), "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "failurePolicy": failure_policy, "objectSelector": {"matchLabels": {"checked": "yes"}},
        "matchConditions": [{"name": "not-skipped", "expression": "!has(object.data) || !('skip' in object.data)"}]}]})
}

#[tokio::test]
async fn webhooks_change_and_refuse() {
    let (server, _client) = server().await;
    let hooks = hooks().await;
    make(&server, &format!("{ADMISSION}/validatingwebhookconfigurations"), configuration(&hooks, "/validate", "Fail")).await;
    make(&server, &format!("{ADMISSION}/mutatingwebhookconfigurations"), configuration(&hooks, "/mutate", "Fail")).await;

    let (code, headers, bytes) = raw(&server, "POST", MAPS, &[], checked("good", json!({"k": "v"}))).await;
    let made: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!((code, &made["metadata"]["labels"]["mutated"]), (StatusCode::CREATED, &json!("CREATE")), "{made}");
    assert!(warnings(&headers).iter().any(|warning| warning.contains("looked at closely")), "{headers:?}");
    assert_eq!(*hooks.asked.lock(), ["/mutate", "/validate"], "what changes comes before what judges");

    let (code, refused) = raw_json(&server, "POST", MAPS, &[], checked("evil", json!({"bad": "1"}))).await;
    assert_eq!((code.as_u16(), &refused["reason"]), (418, &json!("Teapot")), "{refused}");
    assert_eq!(refused["message"], "admission webhook \"hook.example.dev\" denied the request: nothing bad here");
    assert_eq!(raw(&server, "GET", &format!("{MAPS}/evil"), &[], "").await.0, 404);

    let before = hooks.asked.lock().len();
    assert_eq!(raw(&server, "POST", MAPS, &[], checked("skipped", json!({"skip": "1", "bad": "1"}))).await.0, 201);
    assert_eq!(raw(&server, "POST", MAPS, &[], json!({"metadata": {"name": "other"}}).to_string()).await.0, 201);
    assert_eq!(hooks.asked.lock().len(), before, "nobody is asked about what does not concern them");
}

#[tokio::test]
async fn a_webhook_that_is_not_there_stops_what_its_failure_policy_stops() {
    let (server, _client) = server().await;
    let mut nowhere = hooks().await;
    // Bound and let go at once: nobody listens there.
    nowhere.address = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let path = format!("{ADMISSION}/validatingwebhookconfigurations");
    make(&server, &path, configuration(&nowhere, "/validate", "Fail")).await;
    let (code, refused) = raw_json(&server, "POST", MAPS, &[], checked("a", json!({}))).await;
    assert_eq!((code, &refused["reason"]), (StatusCode::INTERNAL_SERVER_ERROR, &json!("InternalError")), "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("failed calling webhook \"hook.example.dev\""), "{refused}");
    assert_eq!(raw(&server, "DELETE", &format!("{path}/validate"), &[], "").await.0, 200);
    make(&server, &path, configuration(&nowhere, "/validate", "Ignore")).await;
    assert_eq!(raw(&server, "POST", MAPS, &[], checked("a", json!({}))).await.0, 201);
}

/// A configuration whose webhooks are asked about one resource without further conditions.
fn plain(hooks: &Hooks, name: &str, resource: &str, operations: &[&str], webhooks: &[(&str, &str)]) -> Value {
    let rules = json!([{"apiGroups": ["*"], "apiVersions": ["v1"], "operations": operations, "resources": [resource]}]);
    let webhook = |(path, reinvocation): &(&str, &str)| {
        let client = json!({"url": format!("https://{}{path}", hooks.address), "caBundle": STANDARD.encode(&hooks.authority)});
        let mut webhook = json!({"name": format!("{}.example.dev", path.trim_start_matches('/')), "clientConfig": client, "rules": rules,
            "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail"});
        if !reinvocation.is_empty() {
            webhook["reinvocationPolicy"] = json!(reinvocation);
        }
        webhook
    };
    json!({"metadata": {"name": name}, "webhooks": webhooks.iter().map(webhook).collect::<Vec<_>>()})
}

#[tokio::test]
async fn a_container_that_a_webhook_adds_gets_what_the_server_gives_to_containers() {
    let (server, client) = server().await;
    with_service_account(&client).await;
    let hooks = hooks().await;
    let configuration = plain(&hooks, "sidecars", "pods", &["CREATE"], &[("/sidecar", "")]);
    make(&server, &format!("{ADMISSION}/mutatingwebhookconfigurations"), configuration).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let (code, made) = raw_json(&server, "POST", "/api/v1/namespaces/test/pods", &[], pod.to_string()).await;
    assert_eq!(code, 201, "{made}");
    let containers = made["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 2, "the webhook is asked once: {made}");
    assert_eq!(containers[0]["volumeMounts"], containers[1]["volumeMounts"], "both have the account's token");
    assert_eq!(containers[1]["volumeMounts"][0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!(made["spec"]["volumes"].as_array().unwrap().len(), 1, "{made}");
}

#[tokio::test]
async fn webhooks_that_ask_for_it_see_what_later_ones_have_made() {
    let (server, _client) = server().await;
    let hooks = hooks().await;
    let all = [("/count", "IfNeeded"), ("/once", "Never"), ("/look", "IfNeeded")];
    make(&server, &format!("{ADMISSION}/mutatingwebhookconfigurations"), plain(&hooks, "a", "configmaps", &["CREATE"], &all)).await;
    let (code, made) = raw_json(&server, "POST", MAPS, &[], json!({"metadata": {"name": "m"}, "data": {"k": "v"}}).to_string()).await;
    assert_eq!((code, &made["data"]), (StatusCode::CREATED, &json!({"k": "v", "count": "2", "once": "yes"})), "{made}");
    assert_eq!(*hooks.asked.lock(), ["/count", "/once", "/look", "/count", "/look"], "the last one sees the second count");
}

#[tokio::test]
async fn connections_pass_admission() {
    let (server, _client) = server().await;
    let hooks = hooks().await;
    let configuration = plain(&hooks, "closed", "pods/attach", &["CONNECT"], &[("/validate", "")]);
    make(&server, &format!("{ADMISSION}/validatingwebhookconfigurations"), configuration).await;
    let pods = "/api/v1/namespaces/test/pods";
    let (code, refused) = raw_json(&server, "POST", &format!("{pods}/p/attach?container=c&stdout=true"), &[], "").await;
    assert_eq!((code.as_u16(), &refused["reason"]), (418, &json!("Teapot")), "{refused}");
    let request = hooks.last.lock().clone();
    assert_eq!(request["object"], json!({"kind": "PodAttachOptions", "apiVersion": "v1", "container": "c", "stdout": true}));
    assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "PodAttachOptions"}));
    let what = ["operation", "subResource", "name", "namespace"].map(|key| request[key].as_str().unwrap_or_default().to_string());
    assert_eq!(what, ["CONNECT", "attach", "p", "test"]);
    let (code, refused) = raw_json(&server, "POST", &format!("{pods}/p/exec?command=ls&stdout=true"), &[], "").await;
    assert_eq!(code, 404, "nobody refuses other connections: {refused}");
}

#[tokio::test]
async fn reviews_say_with_which_options_a_request_came() {
    let (server, _client) = server().await;
    let hooks = hooks().await;
    let configuration = plain(&hooks, "all", "configmaps", &["*"], &[("/look", "")]);
    make(&server, &format!("{ADMISSION}/validatingwebhookconfigurations"), configuration).await;
    let asked = || hooks.last.lock().clone();
    let map = json!({"metadata": {"generateName": "m-"}}).to_string();
    let (code, made) = raw_json(&server, "POST", &format!("{MAPS}?fieldManager=me&fieldValidation=Strict"), &[], map).await;
    assert_eq!(code, 201, "{made}");
    let request = asked();
    let expected = json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "me", "fieldValidation": "Strict"});
    assert_eq!(request["options"], expected);
    assert!(request.get("name").is_none(), "the client has named nothing: {request}");
    assert_eq!(request["object"]["metadata"]["name"], made["metadata"]["name"]);
    let path = format!("{MAPS}/{}", made["metadata"]["name"].as_str().unwrap());
    let options =
        json!({"propagationPolicy": "Orphan", "gracePeriodSeconds": 0, "preconditions": {"uid": made["metadata"]["uid"]}, "dryRun": ["All"]});
    assert_eq!(raw(&server, "DELETE", &path, &[], options.to_string()).await.0, 200);
    let mut expected = options;
    expected["kind"] = json!("DeleteOptions");
    expected["apiVersion"] = json!("meta.k8s.io/v1");
    assert_eq!(asked()["options"], expected);
}

#[tokio::test]
async fn what_is_posted_to_a_pod_is_admitted_as_what_it_is() {
    let (server, client) = server().await;
    with_service_account(&client).await;
    let hooks = hooks().await;
    for (name, resource) in [("evictions", "pods/eviction"), ("bindings", "pods/binding"), ("tokens", "serviceaccounts/token")] {
        let configuration = plain(&hooks, name, resource, &["*"], &[("/look", "")]);
        make(&server, &format!("{ADMISSION}/validatingwebhookconfigurations"), configuration).await;
    }
    let pods: Api<Pod> = Api::namespaced(client, "test");
    pods.create(&PostParams::default(), &pod("p", None)).await.unwrap();
    let seen = || {
        let request = hooks.last.lock().clone();
        [&request["operation"], &request["kind"]["group"], &request["kind"]["kind"], &request["object"]["kind"]]
            .map(|value| value.as_str().unwrap().to_string())
    };
    let path = "/api/v1/namespaces/test/pods/p";
    let bind = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(raw(&server, "POST", &format!("{path}/binding"), &[], bind.to_string()).await.0, 201);
    assert_eq!(seen(), ["CREATE", "", "Binding", "Binding"]);
    let token = json!({"spec": {"audiences": []}});
    assert_eq!(raw(&server, "POST", "/api/v1/namespaces/test/serviceaccounts/default/token", &[], token.to_string()).await.0, 201);
    assert_eq!(seen(), ["CREATE", "authentication.k8s.io", "TokenRequest", "TokenRequest"]);
    let evict = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    assert_eq!(raw(&server, "POST", &format!("{path}/eviction"), &[], evict.to_string()).await.0, 201);
    assert_eq!(seen(), ["CREATE", "policy", "Eviction", "Eviction"]);
    assert_eq!(hooks.asked.lock().len(), 3, "once each");
}

#[tokio::test]
async fn who_may_change_a_new_object_sees_nothing_that_the_server_says_of_it() {
    let (server, _client) = server().await;
    let hooks = hooks().await;
    let configuration = plain(&hooks, "look", "configmaps", &["CREATE"], &[("/look", "")]);
    make(&server, &format!("{ADMISSION}/mutatingwebhookconfigurations"), configuration).await;
    let map = json!({"metadata": {"generateName": "m-", "uid": "mine", "labels": {"a": "b"}}}).to_string();
    let (code, made) = raw_json(&server, "POST", MAPS, &[], map).await;
    assert_eq!(code, 201, "{made}");
    assert!(made["metadata"]["name"].as_str().unwrap().starts_with("m-") && made["metadata"]["uid"] != "mine", "{made}");
    let mut seen = hooks.last.lock()["object"]["metadata"].clone();
    seen.as_object_mut().unwrap().remove("managedFields");
    assert_eq!(seen, json!({"generateName": "m-", "namespace": "test", "labels": {"a": "b"}}));
}

#[tokio::test]
async fn a_change_by_scale_is_admitted_as_a_scale() {
    let (server, client) = server().await;
    let hooks = hooks().await;
    let deployments: Api<Deployment> = Api::namespaced(client, "test");
    deployments.create(&PostParams::default(), &deployment("d")).await.unwrap();
    make(&server, &format!("{ADMISSION}/mutatingwebhookconfigurations"), plain(&hooks, "two", "deployments/scale", &["*"], &[("/two", "")])).await;
    let path = "/apis/apps/v1/namespaces/test/deployments/d";
    let merge = [("content-type", "application/merge-patch+json")];
    let (code, scale) = raw_json(&server, "PATCH", &format!("{path}/scale"), &merge, json!({"spec": {"replicas": 5}}).to_string()).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (StatusCode::OK, &json!(2)), "{scale}");
    let request = hooks.last.lock().clone();
    assert_eq!(request["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    assert_eq!((&request["resource"]["resource"], &request["subResource"]), (&json!("deployments"), &json!("scale")));
    assert_eq!((&request["object"]["kind"], &request["object"]["spec"]["replicas"]), (&json!("Scale"), &json!(5)), "{request}");
    assert_eq!((&request["oldObject"]["kind"], &request["oldObject"]["spec"]["replicas"]), (&json!("Scale"), &json!(1)), "{request}");
    let (_, made) = raw_json(&server, "GET", path, &[], "").await;
    assert_eq!((&made["spec"]["replicas"], &made["kind"]), (&json!(2), &json!("Deployment")));

    let policy = json!({"metadata": {"name": "even"}, "spec": {
        "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["deployments/scale"]}]},
        "validations": [{"expression": "object.kind != 'Scale' || object.spec.replicas != 2", "message": "not two"}]}});
    make(&server, &format!("{ADMISSION}/validatingadmissionpolicies"), policy).await;
    let binding = json!({"metadata": {"name": "even"}, "spec": {"policyName": "even", "validationActions": ["Deny"]}});
    make(&server, &format!("{ADMISSION}/validatingadmissionpolicybindings"), binding).await;
    let (code, refused) = raw_json(&server, "PATCH", &format!("{path}/scale"), &merge, json!({"spec": {"replicas": 4}}).to_string()).await;
    assert!(code == 422 && refused["message"].as_str().unwrap().contains("not two"), "{refused}");
}

#[tokio::test]
async fn a_binding_of_the_collection_is_admitted_once_as_a_binding() {
    let (server, client) = server().await;
    with_service_account(&client).await;
    let hooks = hooks().await;
    for (name, resource) in [("bindings", "bindings"), ("pods", "pods")] {
        let configuration = plain(&hooks, name, resource, &["CREATE", "UPDATE"], &[("/look", "")]);
        make(&server, &format!("{ADMISSION}/validatingwebhookconfigurations"), configuration).await;
    }
    let pods: Api<Pod> = Api::namespaced(client, "test");
    pods.create(&PostParams::default(), &pod("p", None)).await.unwrap();
    let bind = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(raw(&server, "POST", "/api/v1/namespaces/test/bindings", &[], bind.to_string()).await.0, 201);
    let request = hooks.last.lock().clone();
    let shown = ["operation", "name", "namespace"].map(|key| request[key].as_str().unwrap().to_string());
    assert_eq!(shown, ["CREATE", "p", "test"]);
    assert_eq!((&request["resource"]["resource"], &request["object"]["target"]["name"]), (&json!("bindings"), &json!("n")), "{request}");
    assert_eq!(hooks.asked.lock().len(), 2, "of the pod's creation and of the Binding");
}

#[tokio::test]
async fn a_webhook_changes_no_more_than_the_request_may() {
    let (server, client) = server().await;
    with_service_account(&client).await;
    let hooks = hooks().await;
    let pods: Api<Pod> = Api::namespaced(client, "test");
    pods.create(&PostParams::default(), &pod("p", None)).await.unwrap();
    for (name, resource) in [("pods", "pods"), ("statuses", "pods/status")] {
        make(&server, &format!("{ADMISSION}/mutatingwebhookconfigurations"), plain(&hooks, name, resource, &["UPDATE"], &[("/all", "")])).await;
    }
    let path = "/api/v1/namespaces/test/pods/p";
    let merge = [("content-type", "application/merge-patch+json")];
    let (code, made) = raw_json(&server, "PATCH", &format!("{path}/status"), &merge, json!({"status": {"reason": "r"}}).to_string()).await;
    assert_eq!((code, &made["status"]["message"]), (StatusCode::OK, &json!("from outside")), "{made}");
    assert_eq!((&made["spec"]["terminationGracePeriodSeconds"], &made["metadata"]["labels"]["seen"]), (&json!(30), &json!("yes")), "{made}");
    let clear = json!({"status": {"message": null}}).to_string();
    assert_eq!(raw(&server, "DELETE", &format!("{ADMISSION}/mutatingwebhookconfigurations/statuses"), &[], "").await.0, 200);
    assert_eq!(raw(&server, "PATCH", &format!("{path}/status"), &merge, clear).await.0, 200);
    let change = json!({"metadata": {"annotations": {"a": "b"}}, "spec": {"terminationGracePeriodSeconds": 30}}).to_string();
    let (code, refused) = raw_json(&server, "PATCH", path, &merge, change).await;
    // What it did to the spec is judged as the client's own change would be.
    assert_eq!(code, 422, "{refused}");
    let (_, read) = raw_json(&server, "GET", path, &[], "").await;
    assert!(read["status"].get("message").is_none(), "{read}");
}
