//! The cluster's certificate authority: an ECDSA P-256 key that signs every component's certificate.
//!
//! The key file is the truth. A certificate that is missing beside its key (a crash between the two writes) is made anew
//! for the same key; a key is never replaced. So everything that was ever signed stays trusted.

use crate::files::{self, Access};
use crate::identity::{AUTHORITY_VALIDITY, Identity, Subject, Usage, needs_renewal, served_names};
use crate::{Error, hex, malformed, now_unix_s};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::Duration;

/// A clock that is behind must accept a new certificate, or a node whose clock jumps back in a young cluster can make no new
/// connection; this much, but no more than a tenth of its life.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(2 * 3600);
/// How many organizations one certificate can name: what the encoder can express.
pub const ORGANIZATIONS_MAX: usize = 2;

/// A certificate authority with its key.
pub struct Authority {
    certificate_pem: String,
    certificate: CertificateDer<'static>,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, and the authority that signed it.
#[derive(Clone)]
pub struct Issued {
    /// The certificate alone.
    pub certificate_pem: String,
    pub key_pem: String,
    /// The authority's certificate.
    pub authority_pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

impl Authority {
    /// The cluster's authority in `directory` (`ca.crt`, `ca.key`); made if it is not there.
    pub fn load_or_create(directory: &Path) -> Result<Authority, Error> {
        Authority::load_or_create_named(directory, "ca", "kubernetes")
    }

    /// The same for another authority: `front-proxy-ca`, `etcd-ca`.
    pub fn load_or_create_named(directory: &Path, file_stem: &str, common_name: &str) -> Result<Authority, Error> {
        files::create_directory(directory)?;
        let key_path = directory.join(format!("{file_stem}.key"));
        let certificate_path = directory.join(format!("{file_stem}.crt"));
        let key_pem = match files::read(&key_path)? {
            Some(key_pem) => key_pem,
            None => {
                files::create(&key_path, &KeyPair::generate()?.serialize_pem(), Access::Private)?;
                // Another process may have been first: its key counts.
                files::read(&key_path)?.ok_or_else(|| malformed("authority key", "it vanished"))?
            }
        };
        let damaged = |path: &Path, what| {
            let path = path.to_path_buf();
            move |error: Error| Error::Damaged { path, what, detail: error.to_string() }
        };
        if files::read(&certificate_path)?.is_none() {
            let authority = Authority::self_signed(&key_pem, common_name).map_err(damaged(&key_path, "private key"))?;
            files::create(&certificate_path, &authority.certificate_pem, Access::Public)?;
        }
        let certificate_pem = files::read(&certificate_path)?.ok_or_else(|| malformed("authority certificate", "it vanished"))?;
        Authority::from_pem(&certificate_pem, &key_pem).map_err(damaged(&certificate_path, "certificate authority"))
    }

    /// A new authority, in memory only.
    pub fn generate(common_name: &str) -> Result<Authority, Error> {
        Authority::self_signed(&KeyPair::generate()?.serialize_pem(), common_name)
    }

    fn self_signed(key_pem: &str, common_name: &str) -> Result<Authority, Error> {
        let key = KeyPair::from_pem(key_pem)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(common_name, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, AUTHORITY_VALIDITY);
        let certificate = params.self_signed(&key)?;
        Authority::from_pem(&certificate.pem(), key_pem)
    }

    /// An authority from its two PEM texts. Fails if they do not belong together.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Authority, Error> {
        let key = KeyPair::from_pem(key_pem)?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|error| malformed("certificate", error))?;
        if !holds_key(&certificate, &key)? {
            return Err(malformed("certificate authority", "the certificate is not of this key"));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Authority { certificate_pem: certificate_pem.into(), certificate, key_pem: key_pem.into(), issuer })
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authority's private key: whoever holds it is everyone.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// SHA-256 of the authority's certificate in hexadecimal: what a join token pins.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificate)
    }

    /// Signs a new key's certificate.
    pub fn issue(&self, identity: &Identity) -> Result<Issued, Error> {
        let key = KeyPair::generate()?;
        let organizations: Vec<&str> = identity.organizations.iter().map(String::as_str).collect();
        let mut params = CertificateParams::new(identity.names.clone())?;
        params.distinguished_name = distinguished_name(&identity.common_name, &organizations)?;
        prepare(&mut params, &identity.usages, identity.validity);
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem(), authority_pem: self.certificate_pem.clone() })
    }

    /// The certificate and key kept in `directory` as `<file_stem>.crt` and `.key`, if they are still good: signed by this
    /// authority, the same subject and names, and not due for renewal. Otherwise new ones, kept there.
    pub fn issue_kept(&self, directory: &Path, file_stem: &str, identity: &Identity) -> Result<Issued, Error> {
        let key_path = directory.join(format!("{file_stem}.key"));
        let certificate_path = directory.join(format!("{file_stem}.crt"));
        if let (Some(certificate_pem), Some(key_pem)) = (files::read(&certificate_path)?, files::read(&key_path)?) {
            let kept = Issued { certificate_pem, key_pem, authority_pem: self.certificate_pem.clone() };
            if self.still_good(&kept, identity).unwrap_or(false) {
                return Ok(kept);
            }
        }
        files::create_directory(directory)?;
        let issued = self.issue(identity)?;
        files::replace(&key_path, &issued.key_pem, Access::Private)?;
        files::replace(&certificate_path, &issued.certificate_pem, Access::Public)?;
        Ok(issued)
    }

    fn still_good(&self, kept: &Issued, identity: &Identity) -> Result<bool, Error> {
        let certificate = kept.certificate()?;
        let subject = Subject::of(&certificate)?;
        let names = served_names(&certificate)?;
        Ok(holds_key(&certificate, &KeyPair::from_pem(&kept.key_pem)?)?
            && !needs_renewal(&certificate, now_unix_s())?
            && subject.common_name == identity.common_name
            && subject.organizations == identity.organizations
            && identity.names.iter().all(|name| names.contains(name))
            && self.signed(&certificate)?)
    }

    /// Whether this authority signed a certificate.
    pub fn signed(&self, certificate: &CertificateDer<'_>) -> Result<bool, Error> {
        let parse = |der| x509_parser::parse_x509_certificate(der).map_err(|error| malformed("certificate", error));
        let (_, own) = parse(&self.certificate)?;
        let (_, other) = parse(certificate)?;
        Ok(other.verify_signature(Some(own.public_key())).is_ok())
    }

    /// Signs a certificate signing request: its subject and names, but our usages and validity. Returns the certificate's PEM.
    pub fn sign_request(&self, request_pem: &str, usages: &[Usage], validity: Duration) -> Result<String, Error> {
        let subject = crate::request::Request::parse(request_pem)?.subject;
        let mut request = CertificateSigningRequestParams::from_pem(request_pem)?;
        let organizations: Vec<&str> = subject.organizations.iter().map(String::as_str).collect();
        request.params.distinguished_name = distinguished_name(&subject.common_name, &organizations)?;
        prepare(&mut request.params, usages, validity);
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

impl Issued {
    /// The certificate followed by the authority's: what a server sends, so that a joining machine can check the authority's
    /// fingerprint.
    pub fn chain_pem(&self) -> String {
        format!("{}{}", self.certificate_pem, self.authority_pem)
    }

    pub fn certificate(&self) -> Result<CertificateDer<'static>, Error> {
        CertificateDer::from_pem_slice(self.certificate_pem.as_bytes()).map_err(|error| malformed("certificate", error))
    }

    pub fn key(&self) -> Result<PrivateKeyDer<'static>, Error> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|error| malformed("private key", error))
    }
}

/// SHA-256 of a certificate in hexadecimal.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex(&Sha256::digest(certificate))
}

fn holds_key(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<bool, Error> {
    use rcgen::PublicKeyData;
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| malformed("certificate", error))?;
    Ok(parsed.public_key().raw == key.subject_public_key_info())
}

fn prepare(params: &mut CertificateParams, usages: &[Usage], validity: Duration) {
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = usages
        .iter()
        .map(|usage| match usage {
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        })
        .collect();
    set_validity(params, validity);
}

fn set_validity(params: &mut CertificateParams, validity: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(now_unix_s().max(0).unsigned_abs());
    params.not_before = epoch + now.saturating_sub(CLOCK_SKEW_MAX.min(validity / 10));
    params.not_after = epoch + now + validity;
}

fn distinguished_name(common_name: &str, organizations: &[&str]) -> Result<DistinguishedName, Error> {
    // The encoder keeps one value per attribute type; the organization's OID spelled out counts as a second type.
    let types = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
    if organizations.len() > ORGANIZATIONS_MAX {
        return Err(malformed("subject", format!("more than {ORGANIZATIONS_MAX} organizations")));
    }
    let mut name = DistinguishedName::new();
    for (organization, kind) in organizations.iter().zip(types) {
        name.push(kind, *organization);
    }
    name.push(DnType::CommonName, common_name);
    Ok(name)
}

/// Names for a signing request: addresses as addresses, everything else as host names.
pub(crate) fn alternative_names(names: &[String]) -> Result<Vec<SanType>, Error> {
    Ok(CertificateParams::new(names.to_vec())?.subject_alt_names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::ClientVerifier;

    #[test]
    fn the_authority_is_made_once_and_survives_a_lost_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let first = Authority::load_or_create(directory.path()).unwrap();
        let again = Authority::load_or_create(directory.path()).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        let issued = first.issue(&Identity::admin()).unwrap();
        std::fs::remove_file(directory.path().join("ca.crt")).unwrap();
        let renewed = Authority::load_or_create(directory.path()).unwrap();
        assert!(renewed.signed(&issued.certificate().unwrap()).unwrap(), "the key is the same");
        assert!(!Authority::generate("kubernetes").unwrap().signed(&issued.certificate().unwrap()).unwrap());
    }

    #[test]
    fn kept_certificates_are_reused_until_what_they_say_changes() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::generate("kubernetes").unwrap();
        let identity = Identity::apiserver("10.96.0.1".parse().unwrap(), "cluster.local", &["node-1".into()]);
        let first = authority.issue_kept(directory.path(), "apiserver", &identity).unwrap();
        let again = authority.issue_kept(directory.path(), "apiserver", &identity).unwrap();
        assert_eq!(first.certificate_pem, again.certificate_pem);
        let wider = Identity::apiserver("10.96.0.1".parse().unwrap(), "cluster.local", &["node-1".into(), "192.0.2.7".into()]);
        let renewed = authority.issue_kept(directory.path(), "apiserver", &wider).unwrap();
        assert_ne!(first.certificate_pem, renewed.certificate_pem);
        let names = served_names(&renewed.certificate().unwrap()).unwrap();
        for name in ["kubernetes.default.svc.cluster.local", "10.96.0.1", "192.0.2.7", "node-1", "::1"] {
            assert!(names.contains(&name.to_string()), "{name} in {names:?}");
        }
        let other = Authority::generate("kubernetes").unwrap();
        let foreign = other.issue_kept(directory.path(), "apiserver", &wider).unwrap();
        assert_ne!(renewed.certificate_pem, foreign.certificate_pem, "another authority does not reuse it");
    }

    #[test]
    fn a_node_certificate_names_the_node_and_its_group() {
        let authority = Authority::generate("kubernetes").unwrap();
        let issued = authority.issue(&Identity::node("worker-1")).unwrap();
        let verifier = ClientVerifier::new(authority.certificate_pem()).unwrap();
        let subject = verifier.verify(&[issued.certificate().unwrap()], now_unix_s()).unwrap();
        assert_eq!(subject.common_name, "system:node:worker-1");
        assert_eq!(subject.organizations, ["system:nodes"]);
        let foreign = Authority::generate("kubernetes").unwrap().issue(&Identity::admin()).unwrap();
        assert!(verifier.verify(&[foreign.certificate().unwrap()], now_unix_s()).is_err());
        let server = authority.issue(&Identity::server("x", vec!["x".into()])).unwrap();
        assert!(verifier.verify(&[server.certificate().unwrap()], now_unix_s()).is_err(), "a serving certificate is no client");
        let later = now_unix_s() + 366 * 86_400;
        assert!(verifier.verify(&[issued.certificate().unwrap()], later).is_err(), "an expired certificate is no client");
        assert!(needs_renewal(&issued.certificate().unwrap(), now_unix_s() + 250 * 86_400).unwrap());
        assert!(!needs_renewal(&issued.certificate().unwrap(), now_unix_s() + 200 * 86_400).unwrap());
    }
}
