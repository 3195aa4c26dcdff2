//! The one list of special handlers: what is answered by code of its own rather than by the common verbs.
//!
//! Two sorts live here: kinds that are questions and never stored (reviews; subresource empty), and subresources such
//! as `binding`, `eviction`, `token`, `log` and `exec`. The pipeline has authenticated and authorized the request, and
//! has found the kind, before a handler runs.

use crate::{Body, Server, User};
use api::{Kind, Status, request::RequestInfo};
use futures::future::BoxFuture;
use http::{Request, Response};
use std::{future::Future, sync::Arc};

/// One request to a special handler. The body is unread and upgrades are still in the request's extensions.
pub struct Call {
    pub server: Arc<Server>,
    pub user: User,
    pub info: RequestInfo,
    pub kind: Arc<Kind>,
    pub request: Request<Body>,
}

/// What a handler answers with.
pub type Answer = Result<Response<Body>, Status>;
type Handler = fn(Call) -> BoxFuture<'static, Answer>;

/// Makes an async fn fit for the list.
macro_rules! handler {
    ($f:path) => {
        |call: Call| -> BoxFuture<'static, Answer> { boxed($f(call)) }
    };
}

fn boxed(answer: impl Future<Output = Answer> + Send + 'static) -> BoxFuture<'static, Answer> {
    Box::pin(answer)
}

/// The handler of (group, resource, subresource), if that is special.
pub fn handler(group: &str, resource: &str, subresource: &str) -> Option<Handler> {
    Some(match (group, resource, subresource) {
        ("", "pods", "binding") | ("", "bindings", "") => handler!(crate::subresource::binding),
        ("", "pods", "eviction") => handler!(crate::eviction::evict),
        ("", "namespaces", "finalize") => handler!(crate::namespaces::finalize),
        _ => return None,
    })
}
