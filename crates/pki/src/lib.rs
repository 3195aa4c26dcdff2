//! Who is who in a cluster: its certificate authority, certificates, tokens and kubeconfigs.
//!
//! [`authority`] holds the cluster's own CA and signs with it; [`identity`] says what each component's certificate says;
//! [`request`] makes and signs certificate signing requests; [`jwt`] signs and checks service account tokens,
//! [`oidc`] checks those of other issuers;
//! [`join`] is the token with which a machine joins; [`kubeconfig`] writes clients' configuration; [`tls`] turns all of it
//! into rustls configurations; [`rotation`] renews what a directory holds and [`reload`] is how a running server sees it;
//! [`secret`] is a symmetric key in a file; [`files`] is the one place where keys touch the disk.
//!
//! What must stay true: a private key is never on disk with more than mode 0600, not for an instant; a file is there whole or
//! not at all; what is there is never replaced by a new authority; every signature is made by aws-lc-rs.
//!
//! What this crate does not know: the API server, its objects' storage, sockets.

pub mod authority;
pub mod files;
pub mod identity;
pub mod join;
pub mod jwt;
pub mod kubeconfig;
pub mod oidc;
pub mod reload;
pub mod request;
pub mod rotation;
pub mod secret;
pub mod tls;

pub use authority::{Authority, Issued};
pub use identity::{Identity, Subject, Usage};
pub use join::JoinToken;
pub use jwt::{Claims, ServiceAccountKeys};
pub use kubeconfig::Kubeconfig;

use std::path::PathBuf;

/// What can go wrong with keys, certificates and tokens.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read or write {path}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path} does not hold a usable {what}: {detail}")]
    Damaged { path: PathBuf, what: &'static str, detail: String },
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    #[error("not a usable {what}: {detail}")]
    Malformed { what: &'static str, detail: String },
    #[error("the certificate is not trusted: {0}")]
    Untrusted(String),
    #[error("cannot sign or read a token")]
    Token(#[from] jsonwebtoken::errors::Error),
    #[error("TLS cannot use these certificates")]
    Tls(#[from] rustls::Error),
}

pub(crate) fn malformed(what: &'static str, detail: impl ToString) -> Error {
    Error::Malformed { what, detail: detail.to_string() }
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    // Of a whole program, too: this one is fast in every build.
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Seconds since 1970, now.
pub fn now_unix_s() -> i64 {
    jiff::Timestamp::now().as_second()
}
