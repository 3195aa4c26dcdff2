//! What went wrong with one call to one member, in the only terms that matter: may it have had an effect, and does it
//! help to ask another member.

use crate::Error;
use tonic::{Code, Status};

/// Why one attempt failed.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It surely had no effect, and another member (or the same one, soon) may answer.
    NoEffect(String),
    /// It may have been carried out, or may yet be.
    Uncertain(String),
    /// The past that was asked for is gone.
    Compacted,
    /// The revision that was asked for has not come yet.
    Future,
    /// The answer was longer than this client takes in one piece.
    AnswerTooLong,
    /// etcd will not do it, whichever member is asked; it had no effect.
    Refused(String),
    /// Every member would say the same; it had no effect.
    Final(Error),
}

/// The command that gives room, named in every sentence that says there is none.
pub const FULL: &str = "etcd's database has reached its quota; let `regent etcd defragment` give back what is free, or start etcd \
                        with a larger --quota-backend-bytes, then run `regent etcd disarm`";
/// What a member says to a change of the membership while not all voters have been connected for 5 s.
pub const UNHEALTHY: &str = "unhealthy cluster";
/// What a member says of itself when its data differ from the others'.
pub const CORRUPT: &str = "etcd has raised the CORRUPT alarm, for a member's data differ from the others'; remove that member, empty its \
                           data directory and let it join anew; if the others are not whole either";

impl From<etcd_client::Error> for Fault {
    fn from(error: etcd_client::Error) -> Fault {
        match error {
            etcd_client::Error::GRpcStatus(status) => of_status(&status),
            etcd_client::Error::InvalidArgs(text) => Fault::Final(Error::Unavailable(format!("etcd cannot be asked: {text}"))),
            other => Fault::Uncertain(other.to_string()),
        }
    }
}

fn of_status(status: &Status) -> Fault {
    let said = status.message();
    let says = |part: &str| said.contains(part);
    if says("no leader") || says("too many requests") || says("not capable") || says("not supported for learner") {
        return Fault::NoEffect(said.trim_start_matches("etcdserver: ").to_string());
    }
    if says("database space exceeded") {
        return Fault::Final(Error::Unwritable(FULL.into()));
    }
    if says("corrupt cluster") {
        return Fault::Final(Error::Damaged(CORRUPT.into()));
    }
    if says("has been compacted") {
        return Fault::Compacted;
    }
    if says("is a future revision") {
        return Fault::Future;
    }
    if says("request is too large") || (status.code() == Code::ResourceExhausted && says("larger than max")) {
        return Fault::Final(Error::TooLarge(said.trim_start_matches("etcdserver: ").to_string()));
    }
    if says("decoded message length too large") {
        return Fault::AnswerTooLong;
    }
    if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated) {
        return Fault::Final(Error::Unavailable(format!("etcd refuses this server ({said}); check --etcd-certfile and etcd's own users")));
    }
    if matches!(status.code(), Code::FailedPrecondition | Code::NotFound | Code::InvalidArgument) || says(UNHEALTHY) {
        return Fault::Refused(said.trim_start_matches("etcdserver: ").to_string());
    }
    match not_connected(status) {
        Some(why) => Fault::NoEffect(why),
        None => Fault::Uncertain(chain(status)),
    }
}

/// Why no connection came about, if that is what failed: then nothing was sent.
fn not_connected(status: &Status) -> Option<String> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(status);
    while let Some(error) = source {
        if let Some(connect) = error.downcast_ref::<tonic::ConnectError>() {
            return Some(deepest(connect));
        }
        source = error.source();
    }
    None
}

fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// What failed and, if it says more, what was under it.
fn chain(status: &Status) -> String {
    let (first, last) = (status.message(), deepest(status));
    let under = std::error::Error::source(status).is_some() && !last.is_empty() && last != first;
    match (first.trim_start_matches("etcdserver: "), under) {
        ("", false) => format!("{:?}", status.code()),
        ("", true) => last,
        (first, false) => first.to_string(),
        (first, true) => format!("{first}: {last}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: Code, message: &str) -> Fault {
        Fault::from(etcd_client::Error::GRpcStatus(Status::new(code, message)))
    }

    #[test]
    fn only_what_was_surely_not_done_is_called_so() {
        assert!(matches!(fault(Code::Unavailable, "etcdserver: no leader"), Fault::NoEffect(_)));
        assert!(matches!(fault(Code::ResourceExhausted, "etcdserver: too many requests"), Fault::NoEffect(_)));
        for said in ["etcdserver: request timed out", "etcdserver: leader changed", "etcdserver: server stopped", "transport error", ""] {
            assert!(matches!(fault(Code::Unavailable, said), Fault::Uncertain(_)), "{said}");
        }
        assert!(matches!(fault(Code::Cancelled, "Timeout expired"), Fault::Uncertain(_)));
    }

    #[test]
    fn alarms_and_limits_have_their_own_errors() {
        assert!(matches!(fault(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"), Fault::Final(Error::Unwritable(_))));
        assert!(matches!(fault(Code::DataLoss, "etcdserver: corrupt cluster"), Fault::Final(Error::Damaged(_))));
        assert!(matches!(fault(Code::InvalidArgument, "etcdserver: request is too large"), Fault::Final(Error::TooLarge(_))));
        assert!(matches!(fault(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"), Fault::Compacted));
        assert!(matches!(fault(Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision"), Fault::Future));
        assert!(matches!(fault(Code::FailedPrecondition, "etcdserver: Peer URLs already exists"), Fault::Refused(_)));
        assert!(matches!(fault(Code::OutOfRange, "Error, decoded message length too large: found 9 bytes"), Fault::AnswerTooLong));
    }
}
