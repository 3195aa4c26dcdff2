//! Static pods of a page (`--manifest-url`): a URL that gives a Pod or a list of Pods, in YAML or JSON, looked at every so often.
//!
//! What must stay true: a page that cannot be had, or that gives anything but pods, ends nothing; one that gives other pods ends
//! those that it gave before.

use super::{MANIFEST_BYTES_MAX, manifest};
use crate::{agent::Context, http::Request};
use api::{
    object::ObjectExt,
    structure::{self, Encoding},
};
use k8s_openapi::api::core::v1::Pod;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// How long the page may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pods of a page; with more it is refused.
const PODS_MAX: usize = 500;

/// Where the page is, and how often it is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub url: http::Uri,
    /// Sent with each request.
    pub headers: Vec<(String, String)>,
    pub every: Duration,
}

impl Address {
    /// From text; the error says what is wrong with it.
    pub fn parse(url: &str, headers: Vec<(String, String)>, every: Duration) -> Result<Address, String> {
        let url: http::Uri = url.parse().map_err(|error| format!("{url:?} is no URL: {error}"))?;
        match (url.scheme_str(), url.host()) {
            (Some("http" | "https"), Some(_)) => Ok(Address { url, headers, every }),
            _ => Err(format!("{url} must begin with http:// or https:// and name a host")),
        }
    }

    fn request(&self) -> Request {
        let tls = self.url.scheme_str() == Some("https");
        Request {
            host: self.url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: self.url.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            tls,
            path: self.url.path_and_query().map(ToString::to_string).unwrap_or_default(),
            headers: self.headers.clone(),
        }
    }
}

/// The pods of a page by UID.
pub fn read(url: &str, content: &[u8], node: &str) -> Result<BTreeMap<String, Arc<Pod>>, String> {
    let is_json = content.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let whole = structure::parse(content, if is_json { Encoding::Json } else { Encoding::Yaml })?;
    let contents = match whole.kind() {
        "PodList" | "List" => {
            let mut items = whole.list_at("items").to_vec();
            for item in &mut items {
                item.set_default("apiVersion", serde_json::json!("v1"));
                item.set_default("kind", serde_json::json!("Pod"));
            }
            items.iter().map(|item| item.to_string().into_bytes()).collect()
        }
        _ => vec![content.to_vec()],
    };
    if contents.len() > PODS_MAX {
        return Err(format!("there are more than {PODS_MAX} pods in it"));
    }
    let pods = contents.iter().map(|content| manifest::pod_of(manifest::PAGE, url, content, node).map(Arc::new));
    let pods: Vec<Arc<Pod>> = pods.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    Ok(pods.into_iter().map(|pod| (pod.metadata.uid.clone().unwrap_or_default(), pod)).collect())
}

/// Keeps what the page gives, until shutdown.
pub async fn follow(cx: Arc<Context>, address: Address, shutdown: CancellationToken) {
    let url = address.url.to_string();
    let limit_bytes = usize::try_from(MANIFEST_BYTES_MAX).unwrap_or(usize::MAX);
    let mut last = None;
    let mut told = false;
    loop {
        let asked = async {
            let request = address.request();
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, crate::http::fetch(&request, limit_bytes));
            match answer.await.map_err(|_| "no answer in time".to_owned())?? {
                (200, content) if content.is_empty() => Err("the page is empty".to_owned()),
                (200, content) => Ok(content),
                (code, _) => Err(format!("the answer is {code}")),
            }
        };
        let asked = tokio::select! {
            asked = asked => asked,
            () = shutdown.cancelled() => return,
        };
        let found = match asked {
            Ok(content) if last.as_ref() == Some(&content) => Ok(()),
            Ok(content) => read(&url, &content, &cx.config.node_name).map(|pods| {
                *cx.static_pods.page.lock() = Some(pods);
                last = Some(content);
            }),
            Err(error) => Err(error),
        };
        if let Err(error) = &found
            && !told
        {
            tracing::error!(url, error, "the page gives no static pods; what it gave before goes on");
        }
        told = found.is_err();
        tokio::select! {
            () = tokio::time::sleep(address.every) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = r#"{"metadata":{"name":"NAME"},"spec":{"containers":[{"name":"a","image":"nginx"}]}}"#;

    fn names(content: &str) -> Result<Vec<String>, String> {
        let mut names: Vec<String> =
            read("http://h/p", content.as_bytes(), "n").map(|pods| pods.values().filter_map(|pod| pod.metadata.name.clone()).collect())?;
        names.sort();
        Ok(names)
    }

    #[test]
    fn a_page_gives_one_pod_or_many() {
        let one = POD.replace("NAME", "a").replacen('{', r#"{"apiVersion":"v1","kind":"Pod","#, 1);
        assert_eq!(names(&one).unwrap(), ["a-n"]);
        let list = format!(r#"{{"apiVersion":"v1","kind":"PodList","items":[{},{}]}}"#, POD.replace("NAME", "a"), POD.replace("NAME", "b"));
        assert_eq!(names(&list).unwrap(), ["a-n", "b-n"]);
        assert_eq!(names("apiVersion: v1\nkind: PodList\nitems: []\n").unwrap(), Vec::<String>::new());
        for bad in ["", "kind: Secret\napiVersion: v1\n", r#"{"kind":"PodList","apiVersion":"v1","items":[{"metadata":{"name":"x"}}]}"#] {
            assert!(names(bad).is_err(), "{bad}");
        }
        let pod = read("http://h/p", one.as_bytes(), "n").unwrap().into_values().next().unwrap();
        assert!(manifest::is_static(&pod));
    }

    #[test]
    fn addresses_are_of_http() {
        let parsed = |url: &str| Address::parse(url, vec![], Duration::from_secs(20));
        let request = parsed("https://example.com/pods?x=1").unwrap().request();
        assert_eq!((request.host.as_str(), request.port, request.tls, request.path.as_str()), ("example.com", 443, true, "/pods?x=1"));
        assert_eq!(parsed("http://[::1]:8080").unwrap().request().host, "::1");
        for bad in ["file:///etc/x", "example.com", "http://", "ftp://h/x"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
