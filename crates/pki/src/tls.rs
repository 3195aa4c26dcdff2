//! rustls configurations for servers and clients of the cluster.
//!
//! Servers ask for a client certificate and take any, for which the client proves that it holds the key: whether it is
//! trusted is the authenticator's decision ([`ClientVerifier`]), so that a stranger gets a 401 in words and not a broken
//! connection. A client trusts the cluster's authority alone; a joining machine trusts a fingerprint ([`pinned_client`]).

use crate::authority::{Issued, fingerprint};
use crate::identity::Subject;
use crate::{Error, malformed};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;

/// The one crypto provider of the whole program.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Makes [`provider`] the process's default, for libraries that look there. May be called more than once.
pub fn install_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// All certificates of a PEM text as trust anchors.
pub fn roots(authorities_pem: &str) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authorities_pem.as_bytes()) {
        store.add(certificate.map_err(|error| malformed("certificate", error))?)?;
    }
    if store.is_empty() {
        return Err(malformed("certificate bundle", "it holds no certificate"));
    }
    Ok(store)
}

/// A server that asks for client certificates, and leaves their trust to [`ClientVerifier`]. Speaks HTTP/2 and HTTP/1.1.
pub fn server(issued: &Issued) -> Result<ServerConfig, Error> {
    server_of(Arc::new(rustls::sign::SingleCertAndKey::from(crate::reload::certified(issued)?)))
}

/// The same, with a certificate that may be renewed while it serves (see [`crate::reload`]).
pub fn server_of(certificates: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, Error> {
    let verifier = Arc::new(AnyClient { algorithms: provider().signature_verification_algorithms });
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A client that trusts these authorities, with or without a certificate of its own.
pub fn client(authorities_pem: &str, issued: Option<&Issued>) -> Result<ClientConfig, Error> {
    let builder =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?.with_root_certificates(roots(authorities_pem)?);
    Ok(match issued {
        Some(issued) => builder.with_client_auth_cert(vec![issued.certificate()?], issued.key()?)?,
        None => builder.with_no_client_auth(),
    })
}

/// A client with a certificate that may be renewed at any time (see [`crate::reload`]).
pub fn client_of(authorities_pem: &str, certificates: Arc<dyn ResolvesClientCert>) -> Result<ClientConfig, Error> {
    let builder =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?.with_root_certificates(roots(authorities_pem)?);
    Ok(builder.with_client_cert_resolver(certificates))
}

/// A client without a certificate that trusts these authorities (DER).
pub fn client_of_roots(authorities: &[Vec<u8>]) -> Result<ClientConfig, Error> {
    let mut store = RootCertStore::empty();
    for authority in authorities {
        store.add(CertificateDer::from(authority.clone()))?;
    }
    Ok(ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?.with_root_certificates(store).with_no_client_auth())
}

/// A client that takes whatever certificate the server shows (`insecureSkipTLSVerify`), with or without one of its own.
pub fn trusting_client(certificates: Option<Arc<dyn ResolvesClientCert>>) -> Result<ClientConfig, Error> {
    let verifier = Arc::new(AnyServer { algorithms: provider().signature_verification_algorithms });
    let builder =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?.dangerous().with_custom_certificate_verifier(verifier);
    Ok(match certificates {
        Some(certificates) => builder.with_client_cert_resolver(certificates),
        None => builder.with_no_client_auth(),
    })
}

/// A client that trusts the one authority with this SHA-256 fingerprint, whose certificate the server sends in its chain.
pub fn pinned_client(authority_fingerprint: &str) -> Result<ClientConfig, Error> {
    let verifier = Arc::new(Pinned { fingerprint: authority_fingerprint.to_lowercase(), algorithms: provider().signature_verification_algorithms });
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// Decides whether a client's certificate is one of the cluster's, and whose.
pub struct ClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientVerifier {
    /// Trusts what these authorities signed for clients.
    pub fn new(authorities_pem: &str) -> Result<ClientVerifier, Error> {
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authorities_pem)?), provider())
            .build()
            .map_err(|error| malformed("certificate bundle", error))?;
        Ok(ClientVerifier { inner })
    }

    /// Who the holder of the first certificate is; the others may lead from it to the authority.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now_unix_s: i64) -> Result<Subject, Error> {
        let (first, others) = chain.split_first().ok_or_else(|| Error::Untrusted("no certificate".into()))?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now_unix_s.max(0).unsigned_abs()));
        self.inner.verify_client_cert(first, others, now).map_err(|error| Error::Untrusted(error.to_string()))?;
        Subject::of(first)
    }
}

/// What every verifier here does about signatures: that the other side holds its key is always checked.
macro_rules! signatures_are_checked {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls12_signature(message, certificate, signature, &self.algorithms)
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(message, certificate, signature, &self.algorithms)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

/// Takes every client certificate whose key the client holds.
#[derive(Debug)]
struct AnyClient {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(&self, _: &CertificateDer<'_>, _: &[CertificateDer<'_>], _: UnixTime) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }
    signatures_are_checked!();
}

/// Takes every server certificate whose key the server holds.
#[derive(Debug)]
struct AnyServer {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    signatures_are_checked!();
}

/// Trusts the authority in the server's chain whose fingerprint is the pinned one, and then checks as usual.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| fingerprint(certificate) == self.fingerprint)
            .ok_or(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }
    signatures_are_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Identity};
    use rustls::{ClientConnection, ServerConnection};

    /// Runs a handshake in memory; returns the certificates that the server saw.
    fn handshake(server: ServerConfig, client: ClientConfig) -> Result<Option<Vec<CertificateDer<'static>>>, rustls::Error> {
        let mut client = ClientConnection::new(Arc::new(client), "localhost".try_into().unwrap()).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut wire = wire.as_slice();
            while !wire.is_empty() {
                server.read_tls(&mut wire).unwrap();
                server.process_new_packets()?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut wire = wire.as_slice();
            while !wire.is_empty() {
                client.read_tls(&mut wire).unwrap();
                client.process_new_packets()?;
            }
        }
        Ok(server.peer_certificates().map(|chain| chain.iter().map(|c| c.clone().into_owned()).collect()))
    }

    #[test]
    fn trust_is_decided_after_the_handshake() {
        let authority = Authority::generate("kubernetes").unwrap();
        let serving = authority.issue(&Identity::apiserver("10.96.0.1".parse().unwrap(), "cluster.local", &[])).unwrap();
        let admin = authority.issue(&Identity::admin()).unwrap();
        let stranger = Authority::generate("kubernetes").unwrap().issue(&Identity::admin()).unwrap();
        let ca = authority.certificate_pem();
        let verifier = ClientVerifier::new(ca).unwrap();
        let now = crate::now_unix_s();

        let seen = handshake(server(&serving).unwrap(), client(ca, Some(&admin)).unwrap()).unwrap().unwrap();
        assert_eq!(verifier.verify(&seen, now).unwrap().organizations, ["system:masters"]);
        let seen = handshake(server(&serving).unwrap(), client(ca, Some(&stranger)).unwrap()).unwrap().unwrap();
        assert!(verifier.verify(&seen, now).is_err());
        assert_eq!(handshake(server(&serving).unwrap(), client(ca, None).unwrap()).unwrap(), None);
    }

    #[test]
    fn a_pinned_client_trusts_the_fingerprint_and_nothing_else() {
        let authority = Authority::generate("kubernetes").unwrap();
        let serving = authority.issue(&Identity::apiserver("10.96.0.1".parse().unwrap(), "cluster.local", &[])).unwrap();
        assert!(handshake(server(&serving).unwrap(), pinned_client(&authority.fingerprint()).unwrap()).is_ok());
        let impostor = Authority::generate("kubernetes").unwrap();
        let forged = impostor.issue(&Identity::apiserver("10.96.0.1".parse().unwrap(), "cluster.local", &[])).unwrap();
        assert!(handshake(server(&forged).unwrap(), pinned_client(&authority.fingerprint()).unwrap()).is_err());
        // The true authority's certificate beside a foreign one does not help.
        let mixed = Issued { authority_pem: authority.certificate_pem().into(), ..forged };
        assert!(handshake(server(&mixed).unwrap(), pinned_client(&authority.fingerprint()).unwrap()).is_err());
    }
}
