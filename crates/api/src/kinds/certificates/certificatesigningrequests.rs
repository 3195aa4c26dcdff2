//! CertificateSigningRequest of certificates.k8s.io.

use crate::kind::{Kind, NameRule};

pub fn kind() -> Kind {
    Kind::cluster("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests")
        .short(&["csr"])
        .names(NameRule::PathSegment)
        .selectable(&["spec.signerName"])
        .connect("approval", ("", "", "CertificateSigningRequest"), &["get", "patch", "update"])
        .status()
}
