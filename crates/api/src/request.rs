//! What a request asks for, read from its method and path: verb, resource, namespace, name, subresource.
//!
//! The URL space is regular, so it is parsed and not registered: kinds and routes cannot drift apart. Whether the resource
//! exists is decided later, by the catalogue. Options of the query are in [`options`].

mod options;

pub use options::*;

/// A request as authentication, authorization and the pipeline see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether it is about objects; otherwise only `verb` (the method in lower case) and `path` say something.
    pub is_resource: bool,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`.
    pub verb: String,
    /// `api` or `apis`.
    pub api_prefix: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    /// Also set for a list or watch that selects one object by `metadata.name`, so that such a one can be authorized by name.
    pub name: String,
    /// The path as it came, without the query.
    pub path: String,
    /// The path's decoded segments from the resource on: resource, name, subresource and the rest.
    pub parts: Vec<String>,
    /// What `fieldSelector` says of a list, watch or deletecollection; `None` if it says nothing or cannot be read.
    pub fields: Option<crate::selector::FieldSelector>,
}

/// Subresources of a namespace, which are not resources inside it.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    /// `query` is without `?`.
    pub fn parse(method: &str, path: &str, query: &str) -> RequestInfo {
        let plain = || RequestInfo { verb: method.to_ascii_lowercase(), path: path.to_string(), ..RequestInfo::default() };
        let decoded = percent_decode(path, false);
        let mut parts = decoded.trim_matches('/').split('/');
        let mut info = plain();
        match parts.next() {
            Some("api") => info.api_prefix = "api".into(),
            Some("apis") => {
                info.api_prefix = "apis".into();
                match parts.next() {
                    Some(group) => info.group = group.into(),
                    None => return plain(),
                }
            }
            _ => return plain(),
        }
        let (Some(version), Some(mut first)) = (parts.next(), parts.next()) else { return plain() };
        if decoded.trim_matches('/').is_empty() || version.is_empty() {
            return plain();
        }
        info.is_resource = true;
        info.version = version.into();
        info.verb = match method {
            "POST" => "create",
            "GET" | "HEAD" => "get",
            "PUT" => "update",
            "PATCH" => "patch",
            "DELETE" => "delete",
            _ => "",
        }
        .into();
        // The old forms /api/v1/watch/... and /api/v1/proxy/...
        if matches!(first, "watch" | "proxy") {
            let Some(next) = parts.next() else { return plain() };
            info.verb = first.into();
            first = next;
        }
        info.parts = std::iter::once(first).chain(parts).map(String::from).collect();
        if first == "namespaces" && info.parts.len() > 1 {
            info.namespace = info.parts[1].clone();
            if info.parts.len() > 2 && !NAMESPACE_SUBRESOURCES.contains(&info.parts[2].as_str()) {
                info.parts.drain(..2);
            }
        }
        let part = |i: usize| info.parts.get(i).cloned().unwrap_or_default();
        let (resource, name) = (part(0), part(1));
        let subresource = if info.verb == "proxy" { String::new() } else { part(2) };
        (info.resource, info.name, info.subresource) = (resource, name, subresource);
        if info.name.is_empty() {
            match info.verb.as_str() {
                "delete" => {
                    info.verb = "deletecollection".into();
                    info.select_fields(&Query::parse(query));
                }
                "get" => info.list_or_watch(query),
                _ => {}
            }
        }
        info
    }

    fn list_or_watch(&mut self, query: &str) {
        if query.is_empty() {
            self.verb = "list".into();
            return;
        }
        let query = Query::parse(query);
        self.verb = if query.flag("watch") == Some(true) { "watch" } else { "list" }.into();
        self.select_fields(&query);
        if let Some(name) = self.fields.as_ref().and_then(|selector| selector.exact("metadata.name"))
            && crate::names::path_segment(name).is_empty()
        {
            self.name = name.into();
        }
    }

    fn select_fields(&mut self, query: &Query) {
        self.fields = query.get("fieldSelector").and_then(|text| crate::selector::FieldSelector::parse(text).ok());
    }

    /// Group and resource, as [`crate::Status`] constructors take them.
    pub fn group_resource(&self) -> (&str, &str) {
        (&self.group, &self.resource)
    }
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }
    /// The path behind the subresource, for `proxy`.
    pub fn rest(&self) -> String {
        self.parts.get(3..).unwrap_or_default().join("/")
    }
    /// Whether the answer goes on for as long as the client likes: a watch, a followed log, a tunnel.
    pub fn is_long_running(&self) -> bool {
        self.verb == "watch" || self.verb == "proxy" || matches!(self.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy")
    }
}

/// `%2F` to `/`; in a query also `+` to a space. What is not valid UTF-8 or not an escape stays as well as it can.
pub fn percent_decode(text: &str, query: bool) -> String {
    if !text.bytes().any(|b| b == b'%' || (query && b == b'+')) {
        return text.to_string();
    }
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let hex = |b: Option<&u8>| b.and_then(|&b| (b as char).to_digit(16));
    let mut i = 0;
    while i < bytes.len() {
        match (bytes[i], hex(bytes.get(i + 1)), hex(bytes.get(i + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                i += 2;
            }
            (b'+', ..) if query => decoded.push(b' '),
            (byte, ..) => decoded.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, path: &str, query: &str, expected: &str) {
        let info = RequestInfo::parse(method, path, query);
        let found = if info.is_resource {
            format!("{} {}/{} ns={} {} {} {}", info.verb, info.group, info.version, info.namespace, info.resource, info.name, info.subresource)
        } else {
            format!("{} {}", info.verb, info.path)
        };
        assert_eq!(found.trim_end(), expected, "{method} {path}?{query}");
    }

    #[test]
    fn requests() {
        check("GET", "/api/v1/namespaces/d/pods/p", "", "get /v1 ns=d pods p");
        check("GET", "/api/v1/namespaces/d/pods", "", "list /v1 ns=d pods");
        check("GET", "/api/v1/namespaces/d/pods/", "watch=1", "watch /v1 ns=d pods");
        check("GET", "/api/v1/namespaces/d/pods", "watch=false", "list /v1 ns=d pods");
        check("GET", "/api/v1/namespaces/d/pods", "watch", "watch /v1 ns=d pods");
        check("GET", "/api/v1/pods", "fieldSelector=metadata.name%3Dx", "list /v1 ns= pods x");
        check("GET", "/api/v1/watch/namespaces/d/pods/p", "", "watch /v1 ns=d pods p");
        check("POST", "/apis/apps/v1/namespaces/d/deployments", "", "create apps/v1 ns=d deployments");
        check("PUT", "/apis/apps/v1/namespaces/d/deployments/x/status", "", "update apps/v1 ns=d deployments x status");
        check("PATCH", "/apis/apps/v1/namespaces/d/deployments/x/scale", "", "patch apps/v1 ns=d deployments x scale");
        check("DELETE", "/api/v1/nodes", "", "deletecollection /v1 ns= nodes");
        check("DELETE", "/api/v1/nodes/n", "", "delete /v1 ns= nodes n");
        check("GET", "/api/v1/namespaces", "", "list /v1 ns= namespaces");
        check("GET", "/api/v1/namespaces/d", "", "get /v1 ns=d namespaces d");
        check("PUT", "/api/v1/namespaces/d/finalize", "", "update /v1 ns=d namespaces d finalize");
        check("GET", "/api/v1/namespaces/d/configmaps/a%20b", "", "get /v1 ns=d configmaps a b");
        check("GET", "/healthz", "", "get /healthz");
        check("GET", "/", "", "get /");
        check("GET", "/api", "", "get /api");
        check("GET", "/api/v1", "", "get /api/v1");
        check("GET", "/apis/apps/v1", "", "get /apis/apps/v1");
        check("POST", "/metrics", "", "post /metrics");
        let proxy = RequestInfo::parse("GET", "/api/v1/namespaces/d/services/web:http/proxy/a/b", "");
        assert_eq!((proxy.subresource.as_str(), proxy.rest().as_str(), proxy.is_long_running()), ("proxy", "a/b", true));
    }

    proptest::proptest! {
        #[test]
        fn no_path_panics(method in "[A-Z]{0,7}", path in "(/|%|api|apis|v1|namespaces|watch|proxy|[a-z%2]){0,12}", query in "\\PC{0,20}") {
            RequestInfo::parse(&method, &path, &query);
        }
    }
}
