//! What the server writes of its own accord: the same way as a client's write ([`Writer`]), by its own user.

use crate::{
    Server, User,
    admission::Options,
    connect::Warnings,
    write::{Books, Changed, Part, Writer},
};
use api::{Kind, Status, Value, object::ObjectExt, request::RequestInfo};
use std::sync::Arc;

/// A request that the server makes of itself.
struct Own {
    info: RequestInfo,
    user: User,
    warnings: Warnings,
}

/// Who says of itself that it has written an object of a group.
fn manager(group: &str) -> &'static str {
    if group == "flowcontrol.apiserver.k8s.io" { "api-priority-and-fairness-config-producer-v1" } else { "kube-apiserver" }
}

impl Own {
    fn new(verb: &str, kind: &Kind, namespace: &str, name: &str, subresource: &str) -> Own {
        let info = RequestInfo {
            is_resource: true,
            verb: verb.into(),
            api_prefix: if kind.group.is_empty() { "api" } else { "apis" }.into(),
            group: kind.group.clone(),
            version: kind.version().into(),
            namespace: namespace.into(),
            resource: kind.resource.clone(),
            subresource: subresource.into(),
            name: name.into(),
            ..RequestInfo::default()
        };
        Own { info, user: User::system(), warnings: Warnings::default() }
    }

    fn writer<'a>(&'a self, server: &'a Arc<Server>, kind: &'a Kind, name: &'a str) -> Writer<'a> {
        let Own { info, user, warnings } = self;
        let namespace = info.namespace.as_str();
        Writer {
            server,
            user,
            info,
            kind,
            namespace,
            name,
            dry_run: false,
            manager: manager(&kind.group),
            books: Books::Closed,
            options: Options::None,
            warnings,
        }
    }
}

impl Server {
    /// Creates an object as the server itself: defaulted, admitted and validated like a client's. Answers with what is stored.
    pub async fn create_internal(self: &Arc<Self>, group: &str, resource: &str, namespace: &str, mut object: Value) -> Result<Value, Status> {
        let kind = self.kind(group, resource)?;
        object.set("apiVersion", kind.api_version());
        object.set("kind", kind.kind.as_str());
        let own = Own::new("create", &kind, namespace, object.name(), "");
        let writer = Writer { books: Books::Changes, ..own.writer(self, &kind, "") };
        Ok(writer.create(object).await?.value())
    }

    /// Reads, changes and writes one object as the server itself, again and again until no other writer comes between.
    /// `change` answers false if there is nothing to do. `subresource` is empty or `status`.
    pub async fn update_internal(
        self: &Arc<Self>,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
        subresource: &str,
        change: impl FnMut(&mut Value) -> Result<bool, Status> + Send,
    ) -> Result<Value, Status> {
        let part = if subresource == "status" { Part::Status } else { Part::Object };
        self.change_internal(group, resource, namespace, name, part, change).await
    }

    /// The same, of whichever part.
    pub(crate) async fn change_internal(
        self: &Arc<Self>,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
        part: Part,
        mut change: impl FnMut(&mut Value) -> Result<bool, Status> + Send,
    ) -> Result<Value, Status> {
        let kind = self.kind(group, resource)?;
        let own = Own::new("update", &kind, namespace, name, if part == Part::Object { "" } else { "status" });
        // A status has several writers, so it is said who this one is.
        let books = if part == Part::Status { Books::Changes } else { Books::Closed };
        let writer = Writer { books, ..own.writer(self, &kind, name) };
        let written = writer.modify(part, |old| {
            let mut object = old.clone();
            Ok(Changed::newest(if change(&mut object)? { object } else { old.clone() }))
        });
        Ok(written.await?.value())
    }

    /// Deletes one object as the server itself. A missing object is a 404 Status.
    pub async fn delete_internal(self: &Arc<Self>, group: &str, resource: &str, namespace: &str, name: &str) -> Result<(), Status> {
        let kind = self.kind(group, resource)?;
        let own = Own::new("delete", &kind, namespace, name, "");
        let writer = own.writer(self, &kind, name);
        crate::delete::delete_object(&writer, &Default::default()).await.map(drop)
    }
}
