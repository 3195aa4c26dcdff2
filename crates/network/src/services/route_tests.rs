//! The proxy's loop over a kernel that refuses: what the membership says is never lost for that.

use super::*;
use crate::nft;
use client::transport::in_process;
use http::{Request, Response};
use kube::client::Body;
use membership::{Health as State, view::Member};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::convert::Infallible;

/// A kernel that notes what it takes, and refuses so often.
#[derive(Clone, Default)]
struct Kernel(Arc<Mutex<(u32, Vec<String>)>>);

impl Tables for Kernel {
    async fn apply(&self, transaction: &str) -> Result<(), nft::Error> {
        let (refuse, taken) = &mut *self.0.lock();
        if *refuse > 0 {
            *refuse -= 1;
            return Err(nft::Error::Refused("not now".into()));
        }
        taken.push(transaction.to_owned());
        Ok(())
    }

    async fn has_chain(&self, _: &str, _: &str) -> Result<bool, nft::Error> {
        Ok(true)
    }
}

impl Kernel {
    fn refuse(&self, times: u32) {
        self.0.lock().0 = times;
    }

    /// Waits until it has taken so many transactions, and gives the last one.
    async fn took(&self, count: usize) -> String {
        let look = async {
            loop {
                if let Some(last) = self.0.lock().1.get(count - 1) {
                    return last.clone();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(600), look).await.unwrap_or_else(|_| panic!("it has taken {} of {count}", self.0.lock().1.len()))
    }
}

/// An API that has one Service with an endpoint on each of two nodes, of which nothing ever changes.
fn api() -> Informers {
    let answer = |request: Request<Body>| async move {
        let list = |kind: &str, items: Value| json!({"kind": format!("{kind}List"), "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
        let endpoint = |last: u8, node: &str| json!({"addresses": [format!("10.244.0.{last}")], "nodeName": node});
        let body = match request.uri().path() {
            _ if request.uri().query().is_some_and(|query| query.contains("watch=true")) => std::future::pending().await,
            "/api/v1/services" => list(
                "Service",
                json!([{"metadata": {"name": "web", "namespace": "default"}, "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
                    "type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP"}]}}]),
            ),
            "/apis/discovery.k8s.io/v1/endpointslices" => list(
                "EndpointSlice",
                json!([{"metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
                    "addressType": "IPv4", "endpoints": [endpoint(1, "a"), endpoint(2, "b")], "ports": [{"port": 80, "protocol": "TCP"}]}]),
            ),
            _ => list("Node", json!([])),
        };
        Ok::<_, Infallible>(Response::new(http_body_util::Full::new(bytes::Bytes::from(body.to_string()))))
    };
    Informers::new(in_process(tower::service_fn(answer)))
}

fn view(dead: &[&str]) -> Option<Arc<View>> {
    let mut view = View { me: "a".into(), majority: true, ..View::default() };
    for name in ["a", "b"] {
        let is_dead = dead.contains(&name);
        let health = if is_dead { State::Dead } else { State::Alive };
        let address = "172.30.0.21:7946".parse().unwrap();
        view.nodes.insert(name.into(), Member { health, reachable: !is_dead, cut: false, address, api_reachable: true, since_unix_ms: 0 });
    }
    Some(Arc::new(view))
}

#[tokio::test(start_paused = true)]
async fn a_death_that_is_told_while_the_kernel_refuses_is_obeyed() {
    for refusals in [1, limits::FAILURES_BEFORE_DISTRUST + 1] {
        let (kernel, stop) = (Kernel::default(), CancellationToken::new());
        let (views, follows) = watch::channel(view(&[]));
        let (node_name, health) = ("a".to_owned(), super::Health::default());
        let (service_cidr, left_alone) = (None, Vec::new());
        let config = Config {
            node_name,
            node_ip: None,
            informers: api(),
            cluster_cidr: None,
            service_cidr,
            left_alone,
            health_address: None,
            view: Some(follows),
        };
        let (flusher, _flushes) = Flusher::queue();
        let proxy = tokio::spawn(route(config, kernel.clone(), flusher, health, stop.clone()));
        let both = kernel.took(1).await;
        assert!(both.contains("10.244.0.1") && both.contains("10.244.0.2"), "{both}");
        kernel.refuse(refusals);
        // The first is refused; the second comes meanwhile.
        views.send_replace(view(&["a"]));
        while kernel.0.lock().0 == refusals {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        views.send_replace(view(&["b"]));
        // With no trust left, the API's word comes first.
        let taken = kernel.took(if refusals == 1 { 2 } else { 3 }).await;
        assert!(taken.contains("10.244.0.1") && !taken.contains("10.244.0.2"), "after {refusals} refusals: {taken}");
        stop.cancel();
        proxy.await.unwrap().unwrap();
    }
}
