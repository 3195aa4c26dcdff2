//! The one list of special handlers: what is answered by code of its own rather than by the common verbs.
//!
//! Two sorts live here: kinds that are questions and never stored (reviews; subresource empty), and subresources such
//! as `binding`, `eviction`, `token`, `log` and `exec`. The pipeline has authenticated and authorized the request, and
//! has found the kind, before a handler runs.

use crate::{
    Body, Server, User, audit,
    body::{self, ReadError},
    encode::{Output, View},
};
use api::{
    Kind, Status, Value, apply,
    kinds::metrics,
    limits,
    object::ObjectExt,
    protobuf,
    request::{CreateOptions, FieldValidation, Query, RequestInfo},
    structure::{self, Encoding},
};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderName, Request, Response, StatusCode, header};
use parking_lot::Mutex;
use std::{future::Future, sync::Arc};

/// One authorized request about a resource. The body is unread and upgrades are still in the request's extensions.
pub struct Call {
    pub server: Arc<Server>,
    pub user: User,
    pub info: RequestInfo,
    pub kind: Arc<Kind>,
    pub query: Query,
    /// How the client wants its answer.
    pub output: Output,
    /// What the client is told beside the answer.
    pub warnings: Warnings,
    pub request: Request<Body>,
}

/// Warnings for the client, sent as headers with whatever the answer is; and annotations for the audit log, if there is one.
#[derive(Clone, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>, Option<Arc<audit::Record>>);

impl Warnings {
    pub fn of(record: Option<Arc<audit::Record>>) -> Warnings {
        Warnings(Arc::default(), record)
    }
    /// Whether there is an audit log: else annotations need not be made.
    pub fn are_audited(&self) -> bool {
        self.1.is_some()
    }
    /// Tells the audit log something about this request.
    pub fn annotate(&self, key: &str, value: &str) {
        if let Some(record) = &self.1 {
            record.annotate(key, value);
        }
    }
    /// Adds what has not been said yet.
    pub fn add(&self, text: impl Into<String>) {
        let (text, mut all) = (text.into(), self.0.lock());
        if !all.contains(&text) {
            all.push(text);
        }
    }
    pub fn extend(&self, texts: impl IntoIterator<Item = String>) {
        texts.into_iter().for_each(|text| self.add(text));
    }
    /// All of them, cut to what headers may hold.
    pub fn take(&self) -> Vec<String> {
        let mut all = std::mem::take(&mut *self.0.lock());
        let fits = |all: &[String]| all.iter().map(String::len).sum::<usize>() <= limits::WARNING_HEADERS_BYTES_MAX;
        if !fits(&all) {
            for text in &mut all {
                *text = text.chars().take(limits::WARNING_TRUNCATED_CHARS_MAX).collect();
            }
        }
        while !fits(&all) {
            all.pop();
        }
        all
    }
}

impl Call {
    pub fn header(&self, name: HeaderName) -> &str {
        self.request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
    /// The namespace that the request is about; empty at cluster scope and for all namespaces.
    pub fn namespace(&self) -> &str {
        if self.kind.namespaced_scope() { &self.info.namespace } else { "" }
    }
    /// Group and resource, as [`Status`] constructors take them.
    pub fn resource(&self) -> (&str, &str) {
        self.kind.resource_pair()
    }
    /// The form in which objects are shown.
    pub fn view(&self) -> View {
        View { kind: self.kind.clone(), version: self.info.version.clone() }
    }
    /// Reads the body, once.
    pub async fn body(&mut self) -> Result<Bytes, Status> {
        let unread = std::mem::replace(self.request.body_mut(), body::empty());
        body::read(unread, limits::REQUEST_BODY_BYTES_MAX).await.map_err(|error| match error {
            ReadError::TooLarge(limit_bytes) => Status::request_entity_too_large(format!("limit is {limit_bytes}")),
            ReadError::TooSlow => Status::timeout("the request's body did not come in time", 0),
            broken => Status::bad_request(broken.to_string()),
        })
    }
    /// Reads the body, once, into something that [`structure`] reads. 415 if its encoding is unknown.
    pub async fn input(&mut self) -> Result<(Encoding, Bytes), Status> {
        let bytes = self.body().await?;
        self.readable(bytes)
    }
    /// A body in an encoding that [`structure`] reads.
    pub fn readable(&self, bytes: Bytes) -> Result<(Encoding, Bytes), Status> {
        if self.header(header::CONTENT_TYPE).split(';').next().is_some_and(|media| media.trim() == protobuf::MEDIA_TYPE) {
            let object = protobuf::decode(&bytes).map_err(|error| match &self.kind.custom {
                // Kinds of definitions have no messages: a client is told to come with JSON.
                Some(_) => Status::unsupported_media_type(&["application/json", "application/yaml"]),
                None => Status::bad_request(error.to_string()),
            })?;
            return Ok((Encoding::Json, object.to_string().into()));
        }
        Ok((self.encoding()?, bytes))
    }
    fn encoding(&self) -> Result<Encoding, Status> {
        Encoding::of(self.header(header::CONTENT_TYPE)).ok_or_else(|| Status::unsupported_media_type(crate::encode::MEDIA_TYPES))
    }
    /// Options of a create or update, from the query.
    pub fn write_options(&self) -> Result<CreateOptions, Status> {
        CreateOptions::parse(&self.query, self.header(header::USER_AGENT)).map_err(|mut status| {
            if let ("update", Some(details)) = (self.info.verb.as_str(), &mut status.details) {
                status.message = status.message.replacen("CreateOptions", "UpdateOptions", 1);
                details.kind = details.kind.replacen("CreateOptions", "UpdateOptions", 1);
            }
            status
        })
    }
    /// Reads the body as an object of a built-in kind: what a review, Binding or Eviction is posted as.
    pub async fn object(&mut self, group: &str, version: &str, kind: &str) -> Result<Value, Status> {
        self.object_of(group, version, kind, &[]).await
    }
    /// The same where clients may still say it in `older` API versions of the same form.
    pub async fn object_of(&mut self, group: &str, version: &str, kind: &str, older: &[&str]) -> Result<Value, Status> {
        let (mut encoding, mut bytes) = self.input().await?;
        if !older.is_empty()
            && let Ok(mut said) = structure::parse_object(&bytes, encoding)
            && older.contains(&said.api_version())
        {
            said.set("apiVersion", format!("{group}/{version}"));
            (encoding, bytes) = (Encoding::Json, said.to_string().into());
        }
        let record = self.record(group, version, kind);
        let validation = CreateOptions::parse(&self.query, "").map(|options| options.field_validation).unwrap_or(FieldValidation::Warn);
        let (object, warnings) = structure::decode_object(&bytes, encoding, &record, version, validation)?;
        self.warnings.extend(warnings);
        Ok(object)
    }
    fn record(&self, group: &str, version: &str, kind: &str) -> Kind {
        match self.server.catalogue.load().kind(group, kind) {
            Some(record) => record.as_ref().clone(),
            None => Kind::namespaced(group, version, kind, ""),
        }
    }
    /// Writes down who set what of an object that is answered and not stored, as is done for those that are.
    pub fn book(&self, group: &str, version: &str, kind: &str, object: &mut Value) -> Result<(), Status> {
        let manager = self.write_options()?.field_manager;
        let record = self.record(group, version, kind);
        let subresource = self.info.subresource.as_str();
        let writer = apply::Writer { kind: &record, version, manager: &manager, subresource, now: &crate::write::now() };
        apply::update(None, object, &writer);
        Ok(())
    }
    /// Reads the body as a question of a built-in kind, which is answered with the question in it.
    pub async fn review(&mut self, group: &str, version: &str, kind: &str) -> Result<Value, Status> {
        let mut review = self.object(group, version, kind).await?;
        self.book(group, version, kind, &mut review)?;
        Ok(review)
    }
    /// Answers with an object that is not stored.
    pub fn answer(&self, code: StatusCode, object: &Value) -> Response<Body> {
        self.output.value(code, object)
    }
    /// Answers with a Status that says that all went well.
    pub fn done(&self, code: StatusCode) -> Response<Body> {
        self.output.status(&Status::done(code.as_u16()))
    }
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
        ("", "pods", "ephemeralcontainers" | "resize") => handler!(crate::subresource::part),
        ("certificates.k8s.io", "certificatesigningrequests", "approval") => handler!(crate::subresource::part),
        ("", "serviceaccounts", "token") => handler!(crate::tokens::request),
        ("authentication.k8s.io", "tokenreviews", "") => handler!(crate::tokens::review),
        ("authentication.k8s.io", "selfsubjectreviews", "") => handler!(crate::reviews::self_subject_review),
        ("authorization.k8s.io", "subjectaccessreviews", "") => handler!(crate::reviews::subject_access_review),
        ("authorization.k8s.io", "localsubjectaccessreviews", "") => handler!(crate::reviews::local_subject_access_review),
        ("authorization.k8s.io", "selfsubjectaccessreviews", "") => handler!(crate::reviews::self_subject_access_review),
        ("authorization.k8s.io", "selfsubjectrulesreviews", "") => handler!(crate::reviews::self_subject_rules_review),
        ("", "pods", "log") => handler!(crate::tunnel::log),
        ("", "pods", "exec") => handler!(crate::tunnel::exec),
        ("", "pods", "attach") => handler!(crate::tunnel::attach),
        ("", "pods", "portforward") => handler!(crate::tunnel::port_forward),
        ("", "pods", "proxy") => handler!(crate::tunnel::pod_proxy),
        ("", "services", "proxy") => handler!(crate::tunnel::service_proxy),
        ("", "nodes", "proxy") => handler!(crate::tunnel::node_proxy),
        ("", "componentstatuses", "") => handler!(crate::health::component_statuses),
        (metrics::GROUP, "nodes" | "pods", "") => handler!(crate::resource_metrics::answer),
        _ => return None,
    })
}

/// Whether requests to it may last: they have no deadline and are not cut at shutdown's first moment.
pub fn is_long(info: &RequestInfo) -> bool {
    info.verb == "watch" || matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy" | "log")
}
