//! Certificates in files that may be renewed at any time: every new connection uses what the files hold now.
//!
//! A [`CertificateFiles`] is asked by rustls at each handshake. It looks at the files' stamps at most once a second and reads
//! them when they have changed. Certificate and key are two files: while they do not belong together (a renewal is under way),
//! or cannot be read, the pair before stays. So nothing that is written can take a running server its certificate.

use crate::authority::Issued;
use crate::{Error, files, malformed, tls};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A certificate and its key, as two files hold them now.
#[derive(Debug)]
pub struct CertificateFiles {
    certificate: PathBuf,
    key: PathBuf,
    /// Appended to the certificate's chain: a server sends the authority, too, for machines that join by its fingerprint.
    authority_pem: String,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    pair: Arc<CertifiedKey>,
    stamps: [Stamp; 2],
    looked_at: Instant,
}

type Stamp = Option<(SystemTime, u64, u64)>;

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

impl CertificateFiles {
    /// Reads the files for the first time.
    pub fn open(certificate: &Path, key: &Path, authority_pem: &str) -> Result<CertificateFiles, Error> {
        let stamps = [stamp(certificate), stamp(key)];
        let pair = Arc::new(load(certificate, key, authority_pem)?);
        Ok(CertificateFiles {
            certificate: certificate.into(),
            key: key.into(),
            authority_pem: authority_pem.into(),
            current: Mutex::new(Current { pair, stamps, looked_at: Instant::now() }),
        })
    }

    /// The pair as it is now.
    pub fn current(&self) -> Arc<CertifiedKey> {
        // A poisoned lock guards a whole pair all the same: it is replaced in one step.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked_at.elapsed() >= LOOK_EVERY {
            current.looked_at = Instant::now();
            let stamps = [stamp(&self.certificate), stamp(&self.key)];
            // What could not be loaded is tried again at the next look: its other half may be on the way.
            if stamps != current.stamps
                && let Ok(pair) = load(&self.certificate, &self.key, &self.authority_pem)
            {
                (current.pair, current.stamps) = (Arc::new(pair), stamps);
            }
        }
        current.pair.clone()
    }
}

fn load(certificate: &Path, key: &Path, authority_pem: &str) -> Result<CertifiedKey, Error> {
    let missing = |path: &Path| Error::Damaged { path: path.into(), what: "certificate or key", detail: "the file is missing".into() };
    let issued = Issued {
        certificate_pem: files::read(certificate)?.ok_or_else(|| missing(certificate))?,
        key_pem: files::read(key)?.ok_or_else(|| missing(key))?,
        authority_pem: authority_pem.into(),
    };
    certified(&issued)
}

/// A pair for rustls, checked to belong together.
pub fn certified(issued: &Issued) -> Result<CertifiedKey, Error> {
    let chain = CertificateDer::pem_slice_iter(issued.chain_pem().as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| malformed("certificate", error))?;
    Ok(CertifiedKey::from_der(chain, issued.key()?, &tls::provider())?)
}

impl ResolvesServerCert for CertificateFiles {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for CertificateFiles {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Access, replace};
    use crate::{Authority, Identity};

    /// As if a second had passed.
    fn look(files: &CertificateFiles) -> Arc<CertifiedKey> {
        files.current.lock().unwrap().looked_at = Instant::now().checked_sub(LOOK_EVERY).unwrap();
        files.current()
    }

    #[test]
    fn a_renewed_pair_is_used_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::generate("kubernetes").unwrap();
        let (certificate, key) = (directory.path().join("a.crt"), directory.path().join("a.key"));
        let put = |issued: &Issued| {
            replace(&key, &issued.key_pem, Access::Private).unwrap();
            replace(&certificate, &issued.certificate_pem, Access::Public).unwrap();
        };
        let first = authority.issue(&Identity::admin()).unwrap();
        put(&first);
        let files = CertificateFiles::open(&certificate, &key, authority.certificate_pem()).unwrap();
        let holds = |pair: &CertifiedKey, issued: &Issued| pair.cert[0] == issued.certificate().unwrap();
        assert!(holds(&look(&files), &first));

        let second = authority.issue(&Identity::admin()).unwrap();
        replace(&key, &second.key_pem, Access::Private).unwrap();
        assert!(holds(&look(&files), &first), "the key alone does not fit");
        replace(&certificate, &second.certificate_pem, Access::Public).unwrap();
        assert!(holds(&look(&files), &second));

        replace(&certificate, "damage", Access::Public).unwrap();
        assert!(holds(&look(&files), &second));
        put(&first);
        assert!(holds(&look(&files), &first));
    }
}
