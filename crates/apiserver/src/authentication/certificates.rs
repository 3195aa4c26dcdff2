//! Client certificates: the common name is the user, every organization a group.

use super::remembered::{Remembered, fingerprint};
use crate::User;
use pki::tls::ClientVerifier;
use rustls::pki_types::CertificateDer;

/// Trusts what the cluster's authorities signed for clients.
pub struct Certificates {
    verifier: ClientVerifier,
    verified: Remembered<Verified>,
}

struct Verified {
    user: User,
    not_before_unix_s: i64,
    not_after_unix_s: i64,
}

impl Certificates {
    pub fn new(authorities_pem: &str) -> Result<Certificates, pki::Error> {
        Ok(Certificates { verifier: ClientVerifier::new(authorities_pem)?, verified: Remembered::default() })
    }

    /// Whose certificate it is, if it is one of the cluster's.
    pub fn authenticate(&self, chain: &[CertificateDer<'_>], now_unix_s: i64) -> Result<User, pki::Error> {
        let Some(first) = chain.first() else { return Err(pki::Error::Untrusted("no certificate".into())) };
        let key = fingerprint(first);
        if let Some(known) = self.verified.get(&key)
            && (known.not_before_unix_s..=known.not_after_unix_s).contains(&now_unix_s)
        {
            return Ok(known.user.clone());
        }
        let subject = self.verifier.verify(chain, now_unix_s)?;
        if subject.common_name.is_empty() {
            return Err(pki::Error::Untrusted("the certificate names no user".into()));
        }
        let (not_before_unix_s, not_after_unix_s) = pki::identity::validity(first)?;
        let credential = format!("X509SHA256={}", pki::hex(&key));
        let user = User {
            name: subject.common_name,
            uid: subject.uid,
            groups: subject.organizations,
            extra: [("authentication.kubernetes.io/credential-id".to_string(), vec![credential])].into(),
        };
        Ok(self.verified.put(key, Verified { user, not_before_unix_s, not_after_unix_s }).user.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pki::{Authority, Identity};

    #[test]
    fn a_certificate_of_the_cluster_is_its_user_until_it_expires() {
        let authority = Authority::generate("kubernetes").unwrap();
        let certificates = Certificates::new(authority.certificate_pem()).unwrap();
        let chain = [authority.issue(&Identity::admin()).unwrap().certificate().unwrap()];
        let now = pki::now_unix_s();
        for _ in 0..2 {
            let user = certificates.authenticate(&chain, now).unwrap();
            assert_eq!((user.name.as_str(), user.groups.as_slice()), ("kubernetes-admin", ["system:masters".to_string()].as_slice()));
        }
        assert!(certificates.authenticate(&chain, now + 400 * 86_400).is_err(), "also a remembered one expires");
        let foreign = Authority::generate("kubernetes").unwrap().issue(&Identity::admin()).unwrap();
        assert!(certificates.authenticate(&[foreign.certificate().unwrap()], now).is_err());
    }
}
