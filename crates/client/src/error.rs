//! Telling the API's answers apart: what a caller does next depends on the reason, never on the message.

/// Questions about an error of the API client.
pub trait ErrorExt {
    /// The object (or its namespace, or the resource) does not exist.
    fn is_not_found(&self) -> bool;
    /// The object has changed since it was read: read again, decide again.
    fn is_conflict(&self) -> bool;
    /// An object of that name exists.
    fn is_already_exists(&self) -> bool;
    /// The object was refused by validation: retrying the same is useless.
    fn is_invalid(&self) -> bool;
    /// The namespace is being deleted: nothing can be created in it any more.
    fn is_namespace_terminating(&self) -> bool;
    /// The requested version is gone: list again.
    fn is_expired(&self) -> bool;
    /// The server did answer (with an error), as opposed to not being reached.
    fn is_answer(&self) -> bool;
    /// The server did answer, but with trouble of its own (its store, its load): another time the answer is another.
    fn is_trouble(&self) -> bool;
    /// The server's message, or the error's own text.
    fn short(&self) -> String;
}

fn status(error: &kube::Error) -> Option<&kube::core::Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

fn reason_is(error: &kube::Error, reason: &str) -> bool {
    status(error).is_some_and(|s| s.reason == reason)
}

impl ErrorExt for kube::Error {
    fn is_not_found(&self) -> bool {
        status(self).is_some_and(|s| s.reason == "NotFound" || s.code == 404)
    }

    fn is_conflict(&self) -> bool {
        reason_is(self, "Conflict")
    }

    fn is_already_exists(&self) -> bool {
        reason_is(self, "AlreadyExists")
    }

    fn is_invalid(&self) -> bool {
        reason_is(self, "Invalid")
    }

    fn is_namespace_terminating(&self) -> bool {
        status(self).and_then(|s| s.details.as_ref()).is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating"))
    }

    fn is_expired(&self) -> bool {
        status(self).is_some_and(|s| s.code == 410 || s.reason == "Expired" || s.reason == "Gone")
    }

    fn is_answer(&self) -> bool {
        status(self).is_some()
    }

    fn is_trouble(&self) -> bool {
        status(self).is_some_and(|s| s.code >= 500 || s.code == 429)
    }

    fn short(&self) -> String {
        match status(self) {
            Some(status) => status.message.clone(),
            None => self.to_string(),
        }
    }
}
