//! Certificate signing requests: making one for a node, and reading what one asks for.

use crate::authority::alternative_names;
use crate::identity::{Identity, Subject, address};
use crate::{Error, malformed};
use aws_lc_rs::signature::{ECDSA_P521_SHA512_ASN1, UnparsedPublicKey};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// What a certificate signing request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub subject: Subject,
    pub dns_names: Vec<String>,
    pub addresses: Vec<std::net::IpAddr>,
    /// Whether it asks for e-mail addresses or URIs, which no certificate of a component carries.
    pub other_names: bool,
}

impl Request {
    /// Reads a request and checks that it is signed by the key that it is for.
    pub fn parse(request_pem: &str) -> Result<Request, Error> {
        let der =
            CertificateSigningRequestDer::from_pem_slice(request_pem.as_bytes()).map_err(|error| malformed("certificate signing request", error))?;
        let (_, parsed) = X509CertificationRequest::from_der(&der).map_err(|error| malformed("certificate signing request", error))?;
        verify(&parsed).map_err(|error| malformed("certificate signing request", error))?;
        let mut request = Request { subject: Subject::from_name(&parsed.certification_request_info.subject)?, ..Request::default() };
        for extension in parsed.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(name) => request.dns_names.push(name.to_string()),
                    GeneralName::IPAddress(bytes) => match address(bytes) {
                        Some(address) => request.addresses.push(address),
                        None => return Err(malformed("certificate signing request", "an IP address of odd length")),
                    },
                    _ => request.other_names = true,
                }
            }
        }
        Ok(request)
    }
}

/// What is wrong with the bytes of a request: whether it is one, and signed by the key that it is for. In the words of Go, where clients of
/// Kubernetes know some.
pub fn problem(der: &[u8]) -> Option<&'static str> {
    const RSA: &str = "1.2.840.113549.1.1.1";
    const ECDSA: &str = "1.2.840.10045.2.1";
    const ED25519: &str = "1.3.101.112";
    let request = match X509CertificationRequest::from_der(der) {
        Ok((rest, _)) if !rest.is_empty() => return Some("asn1: syntax error: trailing data"),
        Ok((_, request)) => request,
        Err(_) => return Some("asn1: structure error: not a certificate request"),
    };
    match verify(&request) {
        Ok(()) => None,
        Err(X509Error::SignatureUnsupportedAlgorithm) => Some("x509: cannot verify signature: algorithm unimplemented"),
        Err(_) => Some(match request.certification_request_info.subject_pki.algorithm.algorithm.to_id_string().as_str() {
            RSA => "crypto/rsa: verification error",
            ECDSA => "x509: ECDSA verification failure",
            ED25519 => "x509: Ed25519 verification failure",
            _ => "x509: cannot verify signature: algorithm unimplemented",
        }),
    }
}

/// Whether a request is signed by the key that it is for. Beside what the parser knows: keys on the curve P-521, as Go makes them.
fn verify(request: &X509CertificationRequest<'_>) -> Result<(), X509Error> {
    const P521: &str = "1.3.132.0.35";
    const ECDSA_SHA512: &str = "1.2.840.10045.4.3.4";
    let key = &request.certification_request_info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let is_p521 = curve.is_some_and(|curve| curve.to_id_string() == P521);
    if !is_p521 || request.signature_algorithm.algorithm.to_id_string() != ECDSA_SHA512 {
        return request.verify_signature();
    }
    let key = UnparsedPublicKey::new(&ECDSA_P521_SHA512_ASN1, &key.subject_public_key.data);
    key.verify(request.certification_request_info.raw, &request.signature_value.data).map_err(|_| X509Error::SignatureVerificationError)
}

/// Makes a new key and a request for a certificate of this identity. Returns (request PEM, key PEM).
pub fn create(identity: &Identity) -> Result<(String, String), Error> {
    let key = KeyPair::generate()?;
    let request_pem = create_for(&key.serialize_pem(), identity)?;
    Ok((request_pem, key.serialize_pem()))
}

/// A request for a key that is there already.
pub fn create_for(key_pem: &str, identity: &Identity) -> Result<String, Error> {
    let key = KeyPair::from_pem(key_pem)?;
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    for organization in identity.organizations.iter().take(1) {
        name.push(DnType::OrganizationName, organization.as_str());
    }
    name.push(DnType::CommonName, identity.common_name.as_str());
    params.distinguished_name = name;
    params.subject_alt_names = alternative_names(&identity.names)?;
    Ok(params.serialize_request(&key)?.pem()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Usage, served_names};
    use crate::{Authority, now_unix_s};
    use rustls::pki_types::CertificateDer;
    use std::time::Duration;

    #[test]
    fn a_request_is_signed_with_our_usages_and_its_names() {
        let authority = Authority::generate("kubernetes").unwrap();
        let identity = Identity::node_serving("worker-1", &["192.0.2.1".parse().unwrap()]);
        let (request_pem, _) = create(&identity).unwrap();
        let request = Request::parse(&request_pem).unwrap();
        assert_eq!(request.subject.common_name, "system:node:worker-1");
        assert_eq!(request.subject.organizations, ["system:nodes"]);
        assert_eq!(request.dns_names, ["worker-1", "localhost"]);
        let pem = authority.sign_request(&request_pem, &[Usage::Server], Duration::from_secs(3600)).unwrap();
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert!(authority.signed(&certificate).unwrap());
        assert_eq!(served_names(&certificate).unwrap(), identity.names);
        let (_, until) = crate::identity::validity(&certificate).unwrap();
        assert!((until - now_unix_s() - 3600).abs() < 10);
    }

    #[test]
    fn a_request_that_is_not_signed_by_its_key_is_refused() {
        let (request_pem, _) = create(&Identity::node("a")).unwrap();
        let mut der = CertificateSigningRequestDer::from_pem_slice(request_pem.as_bytes()).unwrap().to_vec();
        let last = der.len() - 1;
        der[last] ^= 1;
        use base64::Engine;
        let pem = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            base64::engine::general_purpose::STANDARD.encode(&der)
        );
        assert!(Request::parse(&pem).is_err());
        assert!(Request::parse("no PEM").is_err());
        assert_eq!(problem(&der), Some("x509: ECDSA verification failure"));
        der[last] ^= 1;
        assert_eq!(problem(&der), None);
        assert_eq!(problem(&[&der[..], &[0]].concat()), Some("asn1: syntax error: trailing data"));
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        let mut long = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        assert_eq!(problem(&long), None);
        let end = long.len() - 1;
        long[end] ^= 1;
        assert_eq!(problem(&long), Some("x509: ECDSA verification failure"));
        for none in [&der[..last], b"none", b""] {
            assert_eq!(problem(none), Some("asn1: structure error: not a certificate request"));
        }
    }
}
