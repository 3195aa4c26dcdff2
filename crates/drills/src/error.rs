//! What goes wrong in a drill, beside what it is there to show.

/// A step that did not do what it must. The sentence is what the verdict shows.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the sandbox: {0}")]
    Sandbox(#[from] sandbox::Error),
    #[error("no way to the API: {0}")]
    Client(#[from] client::transport::Error),
    #[error("`{command}` failed: {output}")]
    Command { command: String, output: String },
    #[error("{doing}: {source}")]
    Io { doing: String, source: std::io::Error },
    #[error("waited {limit_s} s for {what}; last seen: {last}")]
    TooLong { what: String, limit_s: u64, last: String },
    #[error("{0}")]
    Refused(String),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An I/O error with what was being done.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Io { doing, source }
    }
}
