//! What can come of a CRI call that did not do what was asked, sorted by what the caller should do about it.

use tonic::{Code, Status};

/// A failed CRI call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The sandbox, container or image does not exist. For a removal that is success.
    #[error("{0}")]
    NotFound(String),
    /// There already is one of that name; what exists must be looked up or removed first.
    #[error("{0}")]
    AlreadyExists(String),
    /// The runtime cannot be reached, or is starting. Try again later; nothing was done.
    #[error("container runtime is not reachable: {0}")]
    Unavailable(String),
    /// The deadline passed. What was asked for may or may not have happened.
    #[error("{call} timed out: {message}")]
    Timeout { call: &'static str, message: String },
    /// The runtime understood and failed. The message is the runtime's, meant for people.
    #[error("rpc error: code = {code} desc = {message}")]
    Failed { code: &'static str, message: String },
}

impl Error {
    pub(crate) fn from_status(call: &'static str, status: Status) -> Error {
        let message = status.message().to_owned();
        match status.code() {
            Code::NotFound => Error::NotFound(message),
            Code::AlreadyExists => Error::AlreadyExists(message),
            Code::Unavailable => Error::Unavailable(message),
            Code::DeadlineExceeded | Code::Cancelled => Error::Timeout { call, message },
            // containerd answers some look-ups of what is gone with a plain "Unknown".
            Code::Unknown if message.ends_with(": not found") => Error::NotFound(message),
            Code::Unknown if message.contains("transport error") || message.contains("connection refused") => Error::Unavailable(message),
            code => Error::Failed { code: code_name(code), message },
        }
    }

    /// Whether the thing asked about does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound(_))
    }

    /// Whether the same call may simply be made again later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Unavailable(_) | Error::Timeout { .. })
    }

    /// The runtime's own words, without a prefix.
    pub fn message(&self) -> &str {
        match self {
            Error::NotFound(message) | Error::AlreadyExists(message) | Error::Unavailable(message) => message,
            Error::Timeout { message, .. } | Error::Failed { message, .. } => message,
        }
    }
}

/// gRPC's names of its codes, as they show in events.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_found_is_told_from_not_reachable() {
        let gone = Error::from_status("ContainerStatus", Status::not_found("container \"x\": not found"));
        assert!(gone.is_not_found());
        let gone = Error::from_status("PodSandboxStatus", Status::unknown("an error occurred when try to find sandbox: not found"));
        assert!(gone.is_not_found());
        let down = Error::from_status("Status", Status::unavailable("connection refused"));
        assert!(!down.is_not_found() && down.is_transient());
    }

    #[test]
    fn failures_read_as_kubernetes_shows_them() {
        let error = Error::from_status("PullImage", Status::unknown("failed to pull and unpack image"));
        assert_eq!(error.to_string(), "rpc error: code = Unknown desc = failed to pull and unpack image");
    }
}
