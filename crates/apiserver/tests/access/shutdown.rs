//! The end of a server: not ready first, still answering, streams ended politely.

use super::*;

#[tokio::test]
async fn a_server_that_goes_says_so_first_and_ends_its_streams() {
    let cluster = cluster().await;
    let admin = cluster.certificate(&Identity::admin());
    let watch = Request::get("/api/v1/namespaces?watch=true").header("host", "localhost").body(Full::default()).expect("a request");
    let mut stream = cluster.send(Some(&admin), watch).await.into_body();
    let first = stream.frame().await.expect("an event").expect("no failure").into_data().expect("data");
    assert!(first.starts_with(b"{\"type\":\"ADDED\""), "{first:?}");

    cluster.server.retire().await;
    let (code, text) = cluster.call(None, "GET", "/readyz?verbose", &[], None).await;
    assert_eq!(code, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text.to_string().contains("[-]shutdown failed"), "{text}");
    let (code, _) = cluster.call(None, "GET", "/livez", &[], None).await;
    assert_eq!(code, StatusCode::OK, "it lives on to answer what is still coming");
    let map = json!({"metadata": {"name": "last"}});
    let (code, _) = cluster.call(Some(&admin), "POST", "/api/v1/namespaces/default/configmaps", &[], Some(map)).await;
    assert_eq!(code, StatusCode::CREATED);

    cluster.shutdown.cancel();
    let rest = tokio::time::timeout(Duration::from_secs(10), stream.collect()).await.expect("the watch ends in time");
    rest.expect("the watch ends cleanly, not by a broken connection");
    let closed = tokio::time::timeout(Duration::from_secs(10), async {
        while TcpStream::connect(cluster.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    closed.await.expect("nobody is let in any more");
}
