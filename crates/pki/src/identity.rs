//! What a certificate says of its holder: Kubernetes' names for every component, and reading them back.
//!
//! Kubernetes takes the common name as the user and every organization as a group, so the names here are the ones that its
//! default RBAC roles are bound to.

use crate::{Error, malformed};
use rustls::pki_types::CertificateDer;
use std::net::IpAddr;
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long a certificate of a component lives.
pub const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(365 * 86_400);
/// How long the authority itself lives.
pub const AUTHORITY_VALIDITY: Duration = Duration::from_secs(10 * 365 * 86_400);
/// The OID under which Kubernetes looks for a user's UID in a client certificate.
const USER_UID_OID: &str = "1.3.6.1.4.1.57683.2";

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
}

/// What goes into a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub common_name: String,
    pub organizations: Vec<String>,
    /// Host names and IP addresses for which it may serve.
    pub names: Vec<String>,
    pub usages: Vec<Usage>,
    pub validity: Duration,
}

impl Identity {
    /// A client with these user and group names.
    pub fn client(user: &str, groups: &[&str]) -> Identity {
        Identity {
            common_name: user.into(),
            organizations: groups.iter().map(|group| group.to_string()).collect(),
            names: vec![],
            usages: vec![Usage::Client],
            validity: CERTIFICATE_VALIDITY,
        }
    }

    /// A server reachable under these host names and addresses.
    pub fn server(common_name: &str, names: Vec<String>) -> Identity {
        Identity { common_name: common_name.into(), organizations: vec![], names, usages: vec![Usage::Server], validity: CERTIFICATE_VALIDITY }
    }

    /// The API server's serving certificate: the `kubernetes` Service's names and address, localhost, and `extra`
    /// (host names or addresses of the machine, `--tls-san`).
    pub fn apiserver(service_address: IpAddr, cluster_domain: &str, extra: &[String]) -> Identity {
        let mut names = vec![
            "kubernetes".to_string(),
            "kubernetes.default".into(),
            "kubernetes.default.svc".into(),
            format!("kubernetes.default.svc.{cluster_domain}"),
            "localhost".into(),
            "127.0.0.1".into(),
            "::1".into(),
            service_address.to_string(),
        ];
        for name in extra {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        Identity::server("kube-apiserver", names)
    }

    /// With what the API server goes to nodes.
    pub fn apiserver_kubelet_client() -> Identity {
        Identity::client("kube-apiserver-kubelet-client", &["system:masters"])
    }

    /// With what the API server goes to extension API servers; signed by the front-proxy authority.
    pub fn front_proxy_client() -> Identity {
        Identity::client("front-proxy-client", &[])
    }

    /// A member of etcd, towards clients and towards the other members; signed by etcd's own authority. A member is a client
    /// of itself (its gateway) and of its peers, so both usages are needed.
    pub fn etcd_member(name: &str, addresses: &[IpAddr]) -> Identity {
        let names = Identity::node_serving(name, addresses).names;
        Identity { usages: vec![Usage::Server, Usage::Client], ..Identity::server(name, names) }
    }

    /// With what the API server goes to etcd; signed by etcd's own authority.
    pub fn apiserver_etcd_client() -> Identity {
        Identity::client("kube-apiserver-etcd-client", &[])
    }

    /// Whoever set up the cluster.
    pub fn admin() -> Identity {
        Identity::client("kubernetes-admin", &["system:masters"])
    }

    pub fn scheduler() -> Identity {
        Identity::client("system:kube-scheduler", &[])
    }

    pub fn controller_manager() -> Identity {
        Identity::client("system:kube-controller-manager", &[])
    }

    pub fn proxy() -> Identity {
        Identity::client("system:kube-proxy", &[])
    }

    pub fn dns() -> Identity {
        Identity::client("system:dns", &[])
    }

    /// A node's agent as a client of the API server.
    pub fn node(name: &str) -> Identity {
        Identity::client(&format!("system:node:{name}"), &["system:nodes"])
    }

    /// A node's own HTTPS API.
    pub fn node_serving(name: &str, addresses: &[IpAddr]) -> Identity {
        let mut names = vec![name.to_string(), "localhost".into(), "127.0.0.1".into()];
        for address in addresses.iter().map(IpAddr::to_string) {
            if !names.contains(&address) {
                names.push(address);
            }
        }
        Identity { organizations: vec!["system:nodes".into()], ..Identity::server(&format!("system:node:{name}"), names) }
    }
}

/// Who a certificate says its holder is.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Subject {
    pub common_name: String,
    pub organizations: Vec<String>,
    /// The user's UID, if the certificate carries one.
    pub uid: String,
}

impl Subject {
    /// Reads the subject of a certificate, trusted or not.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Subject, Error> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| malformed("certificate", error))?;
        Subject::from_name(parsed.subject())
    }

    pub(crate) fn from_name(name: &x509_parser::x509::X509Name<'_>) -> Result<Subject, Error> {
        let mut subject = Subject::default();
        for attribute in name.iter_attributes() {
            let text = || attribute.as_str().map(str::to_string).map_err(|error| malformed("certificate subject", error));
            match attribute.attr_type().to_id_string().as_str() {
                "2.5.4.3" => subject.common_name = text()?,
                "2.5.4.10" => subject.organizations.push(text()?),
                USER_UID_OID => subject.uid = text()?,
                _ => {}
            }
        }
        Ok(subject)
    }
}

/// The names (DNS and IP) for which a certificate may serve.
pub fn served_names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, Error> {
    use x509_parser::extensions::GeneralName;
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| malformed("certificate", error))?;
    let Some(extension) = parsed.subject_alternative_name().map_err(|error| malformed("certificate", error))? else {
        return Ok(vec![]);
    };
    Ok(extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_string()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        })
        .collect())
}

pub(crate) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Whether bytes are certificates, one after the other.
pub fn are_certificates(der: &[u8]) -> bool {
    let mut rest = der;
    while let Ok((behind, _)) = X509Certificate::from_der(rest) {
        if behind.is_empty() {
            return true;
        }
        rest = behind;
    }
    false
}

/// From when to when a certificate is valid, as Unix seconds.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(i64, i64), Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| malformed("certificate", error))?;
    Ok((parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp()))
}

/// What a certificate may be used for.
pub fn usages(certificate: &CertificateDer<'_>) -> Result<Vec<Usage>, Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| malformed("certificate", error))?;
    let extended = parsed.extended_key_usage().map_err(|error| malformed("certificate", error))?;
    let Some(extended) = extended.map(|extension| extension.value) else { return Ok(vec![]) };
    let all = [(extended.client_auth, Usage::Client), (extended.server_auth, Usage::Server)];
    Ok(all.into_iter().filter(|(set, _)| *set).map(|(_, usage)| usage).collect())
}

/// Whether a certificate should be replaced now: two thirds of its life are over.
pub fn needs_renewal(certificate: &CertificateDer<'_>, now_unix_s: i64) -> Result<bool, Error> {
    let (from, to) = validity(certificate)?;
    Ok(now_unix_s >= from + (to - from) * 2 / 3)
}
