//! The way of a request: who asks, what for, may they, and then the verb.
//!
//! Every request takes it, whatever transport it came by. What happens on the way is decided in the rooms; their order
//! is decided here and nowhere else. Whatever goes wrong becomes a Status.

use crate::{
    Body, Identity, SERVER_BUNDLE_PATH, Server, User,
    admission::connections,
    aggregation, audit, authentication,
    authorization::{self, Decision},
    body::{self, full},
    connect::{self, Answer, Call, Warnings},
    copies, delete, discovery,
    encode::{Output, respond},
    encryption, flow, health,
    onward::Onward,
    openapi, patch, read, scale, subresource, watch, write,
};
use api::{
    Kind, Status,
    kind::Subresource,
    limits,
    request::{Query, RequestInfo},
};
use futures::FutureExt;
use http::{HeaderValue, Request, Response, StatusCode, header};
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

impl Server {
    /// Answers one request.
    pub async fn handle(self: &Arc<Self>, request: Request<Body>, identity: Identity) -> Response<Body> {
        let started = std::time::Instant::now();
        let info = RequestInfo::parse(request.method().as_str(), request.uri().path(), request.uri().query().unwrap_or_default());
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let record = self.audit.as_ref().map(|audit| audit.begin(&request, &identity, &info));
        let dry_run = query.get("dryRun") == Some("All");
        let warnings = Warnings::of(record.clone());
        // Errors are shown in the wanted format where that is possible, else as JSON.
        let plain = Output::negotiate(request.headers(), &query, false, false).unwrap_or_else(|_| Output::json());
        // A body that stops in the middle would keep its connection, and who reads it, for ever. Those of long requests may take their time.
        let bounded = !connect::is_long(&info) && !http_body::Body::is_end_stream(request.body());
        let by = tokio::time::Instant::now() + Duration::from_secs(limits::REQUEST_BODY_TIMEOUT_S);
        let request = if bounded { request.map(|body| body::until(body, by)) } else { request };
        // In a box, for it is large and is moved more than once.
        let way = Box::pin(self.clone().walk(request, identity, info.clone(), query, warnings.clone(), record.clone()));
        // A panic here is a bug; it costs one request, not the server.
        let way = AssertUnwindSafe(way).catch_unwind();
        let limit = Duration::from_secs(limits::REQUEST_TIMEOUT_S);
        let out_of_time = |_| Ok(Walked::from(Err(Status::timeout("request did not complete within the allotted timeout", 0))));
        let walked = if connect::is_long(&info) {
            way.await
        } else if matches!(info.verb.as_str(), "get" | "list") {
            tokio::time::timeout(limit, way).await.unwrap_or_else(out_of_time)
        } else {
            // A write goes on to its end even if the client leaves, so that nothing it has taken is left half given back.
            tokio::time::timeout(limit, Onward::new(Box::pin(way))).await.unwrap_or_else(out_of_time)
        };
        let panicked = walked.is_err();
        let Walked { answer, marks } = walked.unwrap_or_else(|_| {
            tracing::error!(verb = info.verb, path = info.path, "the request's handler panicked");
            Err(Status::internal("this request failed in an unexpected way")).into()
        });
        let (mut response, failure) = match answer {
            Ok(response) => (response, None),
            Err(status) => (plain.status(&status), Some(status)),
        };
        if let Some(record) = record {
            if panicked {
                record.panicked().await;
            } else {
                response = record.answered(response, failure.as_ref()).await;
            }
        }
        if let Some(marks) = marks {
            marks.put(&mut response);
        }
        if info.is_resource && matches!(info.verb.as_str(), "get" | "list") && self.cache.lost().is_some() {
            warnings.add("the store does not answer: this is what this server knew last");
        }
        for text in warnings.take() {
            let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
            if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
                response.headers_mut().append(header::WARNING, value);
            }
        }
        let known = || self.catalogue.load().resource(&info.group, &info.resource).is_some();
        self.metrics.request(&info, dry_run, response.status(), started.elapsed(), known);
        tracing::debug!(verb = info.verb, path = info.path, code = response.status().as_u16(), "answered");
        response
    }

    async fn walk(
        self: Arc<Self>,
        request: Request<Body>,
        identity: Identity,
        info: RequestInfo,
        query: Query,
        warnings: Warnings,
        record: Option<Arc<audit::Record>>,
    ) -> Walked {
        if let Some(advice) = authentication::ignored_header(request.headers()) {
            warnings.add(advice);
        }
        let (request, user) = match self.who(request, identity, &info, record.as_ref()).await {
            Ok(known) => known,
            Err(status) => return Err(status).into(),
        };
        match flow::admit(&self, &user, &info, &query).await {
            Err((status, marks)) => Walked { answer: Err(status), marks },
            Ok(ticket) => Walked { marks: ticket.marks(), answer: self.go(request, user, info, query, warnings, ticket).await },
        }
    }

    /// Finds out who asks.
    async fn who(
        self: &Arc<Self>,
        request: Request<Body>,
        identity: Identity,
        info: &RequestInfo,
        record: Option<&Arc<audit::Record>>,
    ) -> Result<(Request<Body>, User), Status> {
        let (parts, mut body) = request.into_parts();
        let user = match identity {
            Identity::Local(user) => User::clone(&user),
            Identity::Peer(certificates) => authentication::authenticate(self, &parts, certificates.as_deref().map(Vec::as_slice)).await?,
        };
        let Some(record) = record else {
            let user = authentication::impersonate(self, &parts, info, user).await?;
            return Ok((Request::from_parts(parts, body), user));
        };
        record.known(&user).await;
        body = record.tee(body);
        let user = authentication::impersonate(self, &parts, info, user).await?;
        record.impersonated(&user);
        Ok((Request::from_parts(parts, body), user))
    }

    /// Answers the request of someone known. The ticket is held until there is an answer.
    async fn go(
        self: Arc<Self>,
        request: Request<Body>,
        user: User,
        info: RequestInfo,
        query: Query,
        warnings: Warnings,
        _ticket: flow::Ticket,
    ) -> Answer {
        match authorization::authorize(&self, &user, &info) {
            Decision::Allow(reason) => {
                warnings.annotate(DECISION, "allow");
                warnings.annotate(REASON, &reason);
            }
            Decision::Deny(reason) | Decision::NoOpinion(reason) => {
                warnings.annotate(DECISION, "forbid");
                warnings.annotate(REASON, &reason);
                return Err(authorization::forbidden(&user, &info, &reason));
            }
        }
        if info.path.starts_with("//") {
            return Ok(page_not_found());
        }
        if info.is_resource {
            self.cache.not_past().await?;
        }
        if let Some(remote) = aggregation::target(&self, &info.path) {
            return aggregation::forward(&self, &remote, &user, request).await;
        }
        if let Some((remote, _)) = info.path.strip_prefix("/openapi/v3/").and_then(|name| self.aggregation.open_api(name)) {
            return aggregation::forward(&self, &remote, &user, request).await;
        }
        if copies::serves(&info.path) {
            return copies::answer(&self, &user, &info, &query).await;
        }
        if info.is_resource { resource(&self, user, info, query, warnings, request).await } else { other(&self, &info, &query, request).await }
    }
}

/// What the audit log is told of a decision, and of why it was so.
const DECISION: &str = "authorization.k8s.io/decision";
const REASON: &str = "authorization.k8s.io/reason";

/// An answer, and what flow control has to say beside it.
struct Walked {
    answer: Answer,
    marks: Option<flow::Marks>,
}

impl From<Answer> for Walked {
    fn from(answer: Answer) -> Walked {
        Walked { answer, marks: None }
    }
}

/// What a path gets that nobody serves.
fn page_not_found() -> Response<Body> {
    respond(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", full("404 page not found\n"))
}

/// Paths that are not about objects.
async fn other(server: &Arc<Server>, info: &RequestInfo, query: &Query, request: Request<Body>) -> Answer {
    if info.path == encryption::PATH {
        return encryption::answer(server, info, request).await;
    }
    let read_only = matches!(info.verb.as_str(), "get" | "head");
    let answer = match info.path.trim_end_matches('/') {
        path if health::serves(path) => health::answer(server, path, query),
        "/version" => Ok(Some(health::version())),
        SERVER_BUNDLE_PATH => server_bundle(server).map(Some),
        "/metrics" => Ok(Some(server.metrics.answer(server))),
        path if path == "/openapi" || path.starts_with("/openapi/") => openapi::answer(server, path, &request),
        path => discovery::answer(server, path, query, request.headers()),
    };
    match answer {
        Ok(Some(_)) if !read_only && !health::serves(&info.path) => Err(Status::method_not_allowed()),
        Ok(Some(response)) => Ok(response),
        Ok(None) => Ok(authentication::serve(server, info, &request).unwrap_or_else(page_not_found)),
        Err(status) => Err(status),
    }
}

/// The cluster's keys, for whom RBAC lets have them: holders of a server's join token.
fn server_bundle(server: &Server) -> Answer {
    let collect = server.config.server_bundle.as_ref().ok_or_else(Status::path_not_found)?;
    let bundle = collect().map_err(Status::service_unavailable)?;
    Ok(respond(StatusCode::OK, "application/json", full(bundle.to_string())))
}

/// Resources whose every use is answered with a warning.
const DEPRECATED: &[(&str, &str, &str)] = &[
    ("", "componentstatuses", "v1 ComponentStatus is deprecated in v1.19+"),
    ("", "endpoints", "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
];

/// Paths that are about objects.
async fn resource(server: &Arc<Server>, user: User, info: RequestInfo, query: Query, warnings: Warnings, request: Request<Body>) -> Answer {
    let catalogue = server.catalogue.load_full();
    if !info.group.is_empty() && !catalogue.iter().any(|kind| kind.group == info.group) {
        return Ok(page_not_found());
    }
    let served = catalogue.resource(&info.group, &info.resource).filter(|kind| kind.versions.contains(&info.version));
    let Some(kind) = served.cloned() else {
        // Groups of definitions know no other answer.
        let custom = !info.group.is_empty() && catalogue.iter().filter(|kind| kind.group == info.group).all(|kind| kind.custom.is_some());
        return if custom { Ok(page_not_found()) } else { Err(Status::path_not_found()) };
    };
    let kind = kind.view(&info.version).cloned().unwrap_or(kind);
    match check_path(&kind, &info) {
        Err(status) if kind.custom.is_some() && status.is_not_found() => return Ok(page_not_found()),
        Err(status) if kind.custom.is_some() && status.code == 405 && kind.namespaced_scope() && info.namespace.is_empty() => {
            return Ok(page_not_found());
        }
        Err(status) if kind.custom.is_some() && status.code == 405 => return Err(Status::method_not_supported(kind.resource_pair(), &info.verb)),
        checked => checked?,
    }
    if let Some(custom) = &kind.custom {
        if custom.terminating && info.verb == "create" {
            let mut status = Status::method_not_supported(kind.resource_pair(), &info.verb);
            status.message = format!("{} not allowed while custom resource definition is terminating", info.verb);
            return Err(status);
        }
        if let Some(advice) = custom.version(&info.version).and_then(|version| version.deprecation.as_deref()) {
            warnings.add(if advice.is_empty() { format!("{}/{} {} is deprecated", kind.group, info.version, kind.kind) } else { advice.to_string() });
        }
    }
    if let Some((.., advice)) = DEPRECATED.iter().find(|(group, resource, _)| *group == kind.group && *resource == kind.resource) {
        warnings.add(*advice);
    }
    // What is answered and not stored has no rows.
    let shapes = (info.subresource.is_empty() && !kind.is_virtual())
        || matches!(kind.subresource(&info.subresource), Some(Subresource::Status | Subresource::Scale { .. }));
    let output = Output::negotiate(request.headers(), &query, shapes, kind.custom.is_some())?;
    let call = Call { server: server.clone(), user, info, kind, query, output, warnings, request };
    if let Some(handler) = connect::handler(&call.kind.group, &call.kind.resource, &call.info.subresource) {
        connections::admit(&call).await?;
        return handler(call).await;
    }
    let subresource = call.kind.subresource(&call.info.subresource).cloned();
    // Each in a box of its own: a GET would else carry the room that a write needs.
    match (subresource, call.info.verb.as_str()) {
        (None, "get") => Box::pin(read::get(call)).await,
        (None, "list") => Box::pin(read::list(call)).await,
        (None, "watch") => Box::pin(watch::watch(call)).await,
        (None, "create") => Box::pin(write::create(call)).await,
        (None, "update") => Box::pin(write::update(call)).await,
        (None, "patch") => Box::pin(patch::patch(call)).await,
        (None, "delete") => Box::pin(delete::delete(call)).await,
        (None, "deletecollection") => Box::pin(delete::delete_collection(call)).await,
        (Some(Subresource::Status), "get") => Box::pin(read::get(call)).await,
        (Some(Subresource::Status), "update") => Box::pin(write::update(call)).await,
        (Some(Subresource::Status), "patch") => Box::pin(patch::patch(call)).await,
        (Some(Subresource::Scale { replicas, status_replicas, selector }), _) => {
            Box::pin(scale::answer(call, scale::Paths { replicas, status_replicas, selector })).await
        }
        (Some(Subresource::Connect { .. }), _) => Box::pin(subresource::part(call)).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// Whether the path and method exist at all: 404 and 405.
fn check_path(kind: &Kind, info: &RequestInfo) -> Result<(), Status> {
    // By the path: a list that selects by metadata.name has a name too, for the authorizers.
    let named = info.parts.len() > 1;
    let own_namespace = kind.group.is_empty() && kind.resource == "namespaces";
    if !kind.namespaced_scope() && !info.namespace.is_empty() && !own_namespace {
        return Err(Status::path_not_found());
    }
    let subresource = match info.subresource.as_str() {
        "" => None,
        name => Some(kind.subresource(name).ok_or_else(Status::path_not_found)?),
    };
    if info.parts.len() > 3 && !matches!(subresource, Some(Subresource::Connect { name: "proxy", .. })) {
        return Err(Status::path_not_found());
    }
    let verb = info.verb.as_str();
    match subresource {
        None => {
            let fits = match verb {
                "get" | "update" | "patch" | "delete" => named,
                "create" | "deletecollection" => !named,
                "list" | "watch" => true,
                _ => false,
            };
            if kind.is_virtual() && named {
                return Err(Status::path_not_found());
            }
            // Across all namespaces one can only look.
            let everywhere = kind.namespaced_scope() && info.namespace.is_empty();
            if everywhere && named {
                return Err(Status::path_not_found());
            }
            if !fits || !kind.verbs.iter().any(|known| known == verb) || (everywhere && !matches!(verb, "list" | "watch") && !kind.is_virtual()) {
                return Err(Status::method_not_allowed());
            }
        }
        Some(Subresource::Status | Subresource::Scale { .. }) if !matches!(verb, "get" | "update" | "patch") => {
            return Err(Status::method_not_allowed());
        }
        Some(Subresource::Connect { verbs, .. }) if !verbs.contains(&verb) && !verbs.contains(&"*") => return Err(Status::method_not_allowed()),
        Some(_) => {}
    }
    Ok(())
}
