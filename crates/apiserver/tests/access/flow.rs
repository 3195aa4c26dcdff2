//! Priority and fairness: a flood of one tenant on a slow disk, and what everybody else sees of it.

use super::*;
use apiserver::{Body, Identity as Caller, User};
use store::{Depth, KeyValue, Outcome, Page, Revision, Store, Watch, Write};
use tokio::sync::Semaphore;

/// A store in which writes of some keys wait until they are let through.
struct Gate {
    inner: Memory,
    open: Arc<Semaphore>,
}

#[async_trait::async_trait]
impl Store for Gate {
    async fn get(&self, key: &str) -> store::Result<Option<KeyValue>> {
        self.inner.get(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> store::Result<Page> {
        self.inner.list(prefix, after, limit, at).await
    }
    async fn commit(&self, write: Write) -> store::Result<Outcome> {
        if write.key().contains("/flood-") {
            self.open.acquire().await.expect("the gate stays").forget();
        }
        self.inner.commit(write).await
    }
    async fn watch(&self, prefix: &str, from: Revision) -> store::Result<Watch> {
        self.inner.watch(prefix, from).await
    }
    async fn revision(&self) -> store::Result<Revision> {
        self.inner.revision().await
    }
    async fn compact(&self, at: Revision) -> store::Result<()> {
        self.inner.compact(at).await
    }
    async fn check(&self, depth: Depth) -> store::Result<()> {
        self.inner.check(depth).await
    }
}

async fn ask(server: &Arc<Server>, user: User, method: &str, path: &str, object: Value) -> Response<Body> {
    let body = if object.is_null() { String::new() } else { object.to_string() };
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json").body(Body::new(Full::from(body)));
    server.handle(request.expect("a request"), Caller::Local(Arc::new(user))).await
}

fn known(name: &str, groups: &[&str]) -> User {
    User::new(name, &[groups, &["system:authenticated"]].concat())
}

async fn json_of(response: Response<Body>) -> Value {
    serde_json::from_slice(&response.into_body().collect().await.expect("a body").to_bytes()).expect("JSON")
}

/// Waits for something that comes soon.
async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} did not come"));
}

#[tokio::test]
async fn a_flood_of_one_tenant_starves_neither_nodes_nor_elections_nor_its_neighbours() {
    let open = Arc::new(Semaphore::new(0));
    let gate = open.clone();
    let cluster = cluster_with(|config, _| {
        config.store = Arc::new(Gate { inner: Memory::default(), open: gate });
        config.authorization.always_allow = true;
        (config.flow.requests_max, config.flow.mutating_requests_max) = (20, 10);
    })
    .await;
    let server = &cluster.server;
    const MAPS: &str = "/api/v1/namespaces/default/configmaps";
    const FLOOD: usize = 600;
    let mut flood = tokio::task::JoinSet::new();
    for i in 0..FLOOD {
        let server = server.clone();
        flood.spawn(async move { ask(&server, known("jane", &[]), "POST", MAPS, json!({"metadata": {"name": format!("flood-{i}")}})).await });
    }
    // What finds no queue is sent away at once.
    let mut refused = 0;
    let mut first = None;
    until("the first refusal", async || {
        while let Some(answer) = flood.try_join_next() {
            let answer = answer.expect("no panic");
            assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
            refused += 1;
            first.get_or_insert(answer);
        }
        refused >= 100
    })
    .await;
    let refusal = first.expect("a refusal");
    assert_eq!(refusal.headers()["retry-after"], "1");
    assert!(refusal.headers().contains_key("x-kubernetes-pf-flowschema-uid"));
    let status = json_of(refusal).await;
    assert_eq!((status["reason"].as_str(), status["details"]["retryAfterSeconds"].as_u64()), (Some("TooManyRequests"), Some(1)));

    let quickly = async |user: User, method: &str, path: &str, object: Value| {
        let answer = tokio::time::timeout(Duration::from_secs(10), ask(server, user, method, path, object)).await;
        let answer = answer.unwrap_or_else(|_| panic!("{method} {path} waits behind the flood"));
        assert!(answer.status().is_success(), "{method} {path}: {}", answer.status());
        answer
    };
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": "x"}});
    let leases = |namespace: &str| format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
    let node = known("system:node:a", &["system:nodes"]);
    quickly(node, "POST", &leases("kube-node-lease"), lease("a")).await;
    quickly(known("system:kube-scheduler", &[]), "POST", &leases("kube-system"), lease("kube-scheduler")).await;
    quickly(known("admin", &["system:masters"]), "GET", "/api/v1/namespaces", Value::Null).await;
    let answer = quickly(known("system:serviceaccount:team:x", &["system:serviceaccounts"]), "GET", MAPS, Value::Null).await;
    let uid =
        |group: &str, name: &str| server.lookup("flowcontrol.apiserver.k8s.io", group, "", name).expect("a kind").expect("an object").uid.to_string();
    assert_eq!(answer.headers()["x-kubernetes-pf-flowschema-uid"], uid("flowschemas", "service-accounts").as_str());
    assert_eq!(answer.headers()["x-kubernetes-pf-prioritylevel-uid"], uid("prioritylevelconfigurations", "workload-low").as_str());
    let metrics = ask(server, known("admin", &["system:masters"]), "GET", "/metrics", Value::Null).await;
    let metrics = String::from_utf8(metrics.into_body().collect().await.expect("a body").to_bytes().to_vec()).expect("text");
    for line in [
        "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"global-default\",priority_level=\"global-default\",reason=\"queue-full\"}",
        "apiserver_flowcontrol_current_inqueue_requests{priority_level=\"global-default\"}",
        "apiserver_current_inflight_requests{request_kind=\"mutating\"}",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }

    // Somebody else of the same level is served long before the flood is.
    let neighbour = {
        let server = server.clone();
        tokio::spawn(async move { ask(&server, known("joe", &[]), "GET", "/api/v1/namespaces/default/secrets", Value::Null).await })
    };
    let mut let_through = 0;
    until("the neighbour's answer", async || {
        if !neighbour.is_finished() {
            open.add_permits(1);
            let_through += 1;
        }
        neighbour.is_finished()
    })
    .await;
    assert!(neighbour.await.expect("no panic").status().is_success());
    assert!(let_through < 100, "{let_through} of the flood were served before");
    open.add_permits(FLOOD);
    let mut served = 0;
    while let Some(answer) = flood.join_next().await {
        match answer.expect("no panic").status() {
            StatusCode::CREATED => served += 1,
            StatusCode::TOO_MANY_REQUESTS => refused += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!(served + refused, FLOOD);
    assert!(served >= 200, "what waited is served in the end: {served}");
}

#[tokio::test]
async fn schemas_say_whether_their_level_is_there_and_lead_as_they_say() {
    let cluster = cluster_with(|config, _| config.authorization.always_allow = true).await;
    let server = &cluster.server;
    let admin = || known("admin", &["system:masters"]);
    const GROUP: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";
    let schema = json!({"metadata": {"name": "jane"}, "spec": {"priorityLevelConfiguration": {"name": "slow"}, "matchingPrecedence": 50, "rules": [{
        "subjects": [{"kind": "User", "user": {"name": "jane"}}],
        "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}]}]}});
    assert_eq!(ask(server, admin(), "POST", &format!("{GROUP}/flowschemas"), schema).await.status(), StatusCode::CREATED);
    let dangling = async |expected: &str| {
        let found = json_of(ask(server, admin(), "GET", &format!("{GROUP}/flowschemas/jane"), Value::Null).await).await;
        found["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(|one| one["type"] == "Dangling" && one["status"] == expected))
    };
    until("the condition that the level is missing", async || dangling("True").await).await;
    let level = json!({"metadata": {"name": "slow"}, "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}});
    let made = json_of(ask(server, admin(), "POST", &format!("{GROUP}/prioritylevelconfigurations"), level).await).await;
    until("the condition that the level is there", async || dangling("False").await).await;
    until("the way to the new level", async || {
        let answer = ask(server, known("jane", &[]), "GET", "/api/v1/namespaces/default/configmaps", Value::Null).await;
        answer.headers()["x-kubernetes-pf-prioritylevel-uid"] == made["metadata"]["uid"].as_str().expect("a uid")
    })
    .await;
}

#[tokio::test]
async fn without_fairness_there_are_two_plain_limits() {
    let open = Arc::new(Semaphore::new(0));
    let gate = open.clone();
    let cluster = cluster_with(|config, _| {
        config.store = Arc::new(Gate { inner: Memory::default(), open: gate });
        config.authorization.always_allow = true;
        config.flow = apiserver::flow::Config { enabled: false, requests_max: 5, mutating_requests_max: 2 };
    })
    .await;
    let mut flood = tokio::task::JoinSet::new();
    for i in 0..5 {
        let server = cluster.server.clone();
        let map = json!({"metadata": {"name": format!("flood-{i}")}});
        flood.spawn(async move { ask(&server, known("jane", &[]), "POST", "/api/v1/namespaces/default/configmaps", map).await.status() });
    }
    for _ in 0..3 {
        assert_eq!(flood.join_next().await.expect("an answer").expect("no panic"), StatusCode::TOO_MANY_REQUESTS);
    }
    let read = ask(&cluster.server, known("joe", &[]), "GET", "/api/v1/namespaces/default/configmaps", Value::Null).await;
    assert_eq!(read.status(), StatusCode::OK, "readers have a limit of their own");
    open.add_permits(2);
    while let Some(answer) = flood.join_next().await {
        assert_eq!(answer.expect("no panic"), StatusCode::CREATED);
    }
}
