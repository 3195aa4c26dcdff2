//! The certificates of a directory: what each says, when it ends, and renewing it before it does.
//!
//! A directory (with its folder `etcd`) holds `NAME.crt` with `NAME.key`, kubeconfigs (`NAME.kubeconfig`) with a client certificate inside, and
//! authorities (a self-signed certificate). What an authority whose key is in the directory has signed can be renewed here:
//! same subject, same names, same usages, a new key. Nothing else is ever touched, an authority least of all.
//!
//! Renewal is by files alone, each whole or not at all. Whoever uses them sees the change ([`crate::reload`], and the
//! client's transport for kubeconfigs); so a running server and `regent certs rotate` need not know of each other.

use crate::authority::{Authority, Issued};
use crate::files::{self, Access};
use crate::identity::{Identity, Subject, served_names, usages, validity};
use crate::{Error, malformed};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Files in a directory that are looked at, at most.
const FILES_MAX: usize = 1000;
/// The folder of etcd's certificates, as kubeadm has it.
const ETCD: &str = "etcd";
/// Of a certificate's life, in percent, between which it is renewed, as Kubernetes does it.
const RENEW_FROM_PERCENT: u64 = 70;
const RENEW_TO_PERCENT: u64 = 90;

/// A certificate in a directory.
#[derive(Clone, Debug)]
pub struct Held {
    /// The file's name without its end: `apiserver`, `admin.kubeconfig`.
    pub name: String,
    pub path: PathBuf,
    pub kind: Kind,
    pub subject: Subject,
    /// Host names and addresses for which it may serve.
    pub names: Vec<String>,
    pub not_before_unix_s: i64,
    pub not_after_unix_s: i64,
    /// The common name of who signed it.
    pub issuer: String,
    /// The authority of this directory that signed it, and whose key is here: its name.
    pub renewed_by: Option<String>,
    certificate: CertificateDer<'static>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `NAME.crt`, with `NAME.key`.
    Files,
    /// Inside a kubeconfig.
    Kubeconfig,
    /// It signs others, and is not renewed.
    Authority,
}

/// How long a certificate is still good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Good,
    /// It should have been renewed by now.
    Near,
    Expired,
}

impl Held {
    /// How it stands.
    pub fn standing(&self, now_unix_s: i64) -> Standing {
        let life = self.not_after_unix_s - self.not_before_unix_s;
        let near = self.not_before_unix_s + life * i64::try_from(RENEW_TO_PERCENT).unwrap_or(90) / 100;
        match now_unix_s {
            now if now >= self.not_after_unix_s => Standing::Expired,
            now if now > near => Standing::Near,
            _ => Standing::Good,
        }
    }

    /// Seconds that are left.
    pub fn remaining_s(&self, now_unix_s: i64) -> i64 {
        self.not_after_unix_s - now_unix_s
    }

    /// When to renew it, as Unix seconds: in the last third of its life, but not at the moment when all others are renewed.
    pub fn renew_at_unix_s(&self) -> i64 {
        renew_at_unix_s(&self.certificate).unwrap_or(self.not_after_unix_s)
    }
}

/// When to renew a certificate: between 70 and 90 percent of its life, the moment drawn from the certificate itself, so that
/// it is the same at every look and another one for every certificate.
pub fn renew_at_unix_s(certificate: &CertificateDer<'_>) -> Result<i64, Error> {
    let (from, to) = validity(certificate)?;
    let digits = crate::authority::fingerprint(certificate);
    let drawn = digits.get(..8).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0);
    // In tenths of a percent.
    let share = RENEW_FROM_PERCENT * 10 + drawn % ((RENEW_TO_PERCENT - RENEW_FROM_PERCENT) * 10);
    Ok(from + (to - from) * i64::try_from(share).unwrap_or(800) / 1000)
}

/// All certificates of these directories, in order of their names. What is no certificate is passed over; a certificate that
/// cannot be read is an error, for somebody relies on it.
pub fn inventory(directories: &[&Path]) -> Result<Vec<Held>, Error> {
    let authorities = authorities(directories)?;
    let mut held = Vec::new();
    for path in listed(directories)? {
        let Some(file_name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let (kind, name, pem) = if let Some(stem) = file_name.strip_suffix(".crt") {
            let Some(pem) = files::read(&path)? else { continue };
            (Kind::Files, within(&path, stem), pem)
        } else if file_name.ends_with(".kubeconfig") {
            let Some(pem) = certificate_in(&path)? else { continue };
            (Kind::Kubeconfig, file_name.to_owned(), pem)
        } else {
            continue;
        };
        let damaged = |error: Error| Error::Damaged { path: path.clone(), what: "certificate", detail: error.to_string() };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(malformed("certificate", error)))?;
        let kind = if is_authority(&certificate) { Kind::Authority } else { kind };
        let (not_before_unix_s, not_after_unix_s) = validity(&certificate).map_err(damaged)?;
        let signer = authorities.iter().find(|(_, authority)| authority.signed(&certificate).unwrap_or(false));
        held.push(Held {
            name,
            kind,
            subject: Subject::of(&certificate).map_err(damaged)?,
            names: served_names(&certificate).map_err(damaged)?,
            not_before_unix_s,
            not_after_unix_s,
            issuer: issuer(&certificate)?,
            renewed_by: signer.filter(|_| kind != Kind::Authority).map(|(name, _)| name.clone()),
            certificate,
            path,
        });
    }
    held.sort_by(|a, b| (a.kind == Kind::Authority, &a.name).cmp(&(b.kind == Kind::Authority, &b.name)));
    Ok(held)
}

/// Gives a certificate of [`inventory`] a successor: the same subject, names and usages, a new key. `life` is how long it is
/// good; by default as long as the one before.
pub fn renew(held: &Held, directories: &[&Path], life: Option<Duration>) -> Result<(), Error> {
    let cannot = |detail: &str| Error::Damaged { path: held.path.clone(), what: "certificate that can be renewed here", detail: detail.into() };
    if held.kind == Kind::Authority {
        return Err(cannot("it is an authority; to replace it, every certificate of the cluster must be replaced"));
    }
    let authorities = authorities(directories)?;
    let signer = authorities.iter().find(|(name, _)| Some(name) == held.renewed_by.as_ref());
    let (_, authority) = signer.ok_or_else(|| cannot("the key of the authority that signed it is not here"))?;
    let before = u64::try_from(held.not_after_unix_s - held.not_before_unix_s).unwrap_or_default();
    let identity = Identity {
        common_name: held.subject.common_name.clone(),
        organizations: held.subject.organizations.clone(),
        names: held.names.clone(),
        usages: usages(&held.certificate)?,
        validity: life.unwrap_or(Duration::from_secs(before)),
    };
    let issued = authority.issue(&identity)?;
    match held.kind {
        Kind::Kubeconfig => replace_in(&held.path, &issued),
        _ => {
            // The key first: who reads in between sees two that do not belong together, and waits (see `reload`).
            files::replace(&held.path.with_extension("key"), &issued.key_pem, Access::Private)?;
            files::replace(&held.path, &issued.certificate_pem, Access::Public)
        }
    }
}

/// Renews what is due (or has expired), and says what that was. `life` as in [`renew`].
pub fn renew_due(directories: &[&Path], life: Option<Duration>, now_unix_s: i64) -> Result<Vec<String>, Error> {
    let mut renewed = Vec::new();
    for held in inventory(directories)?.iter().filter(|held| held.renewed_by.is_some() && now_unix_s >= held.renew_at_unix_s()) {
        renew(held, directories, life)?;
        renewed.push(held.name.clone());
    }
    Ok(renewed)
}

/// When the next certificate is due, as Unix seconds; none if nothing here can be renewed.
pub fn next_due_unix_s(directories: &[&Path]) -> Result<Option<i64>, Error> {
    Ok(inventory(directories)?.iter().filter(|held| held.renewed_by.is_some()).map(Held::renew_at_unix_s).min())
}

/// The authorities whose keys are here.
fn authorities(directories: &[&Path]) -> Result<Vec<(String, Authority)>, Error> {
    let mut found = Vec::new();
    for path in listed(directories)?.into_iter().filter(|path| path.extension().is_some_and(|end| end == "crt")) {
        let (Some(certificate_pem), Some(key_pem)) = (files::read(&path)?, files::read(&path.with_extension("key"))?) else { continue };
        let Ok(certificate) = CertificateDer::from_pem_slice(certificate_pem.as_bytes()) else { continue };
        if is_authority(&certificate) {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            found.push((within(&path, &name), Authority::from_pem(&certificate_pem, &key_pem)?));
        }
    }
    Ok(found)
}

/// The name of a file: with its folder, if that is etcd's.
fn within(path: &Path, stem: &str) -> String {
    let folder = path.parent().and_then(Path::file_name).is_some_and(|folder| folder == ETCD);
    if folder { format!("{ETCD}/{stem}") } else { stem.to_owned() }
}

/// The files of the directories, and of their folder `etcd`.
fn listed(directories: &[&Path]) -> Result<Vec<PathBuf>, Error> {
    let mut paths = Vec::new();
    let all = directories.iter().flat_map(|directory| [directory.to_path_buf(), directory.join(ETCD)]);
    for directory in all {
        let at = |source| Error::File { path: directory.clone(), source };
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(at(error)),
        };
        for entry in entries.take(FILES_MAX) {
            paths.push(entry.map_err(at)?.path());
        }
    }
    // What is being written begins with a dot.
    paths.retain(|path| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.')) && path.is_file());
    paths.sort();
    Ok(paths)
}

fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, parsed)| parsed.is_ca())
}

fn issuer(certificate: &CertificateDer<'_>) -> Result<String, Error> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| malformed("certificate", error))?;
    Ok(Subject::from_name(parsed.issuer())?.common_name)
}

/// The client certificate (PEM) inside a kubeconfig, if it holds one.
pub fn certificate_in(path: &Path) -> Result<Option<String>, Error> {
    let Some(config) = parse(path)? else { return Ok(None) };
    let Some(data) = config.pointer("/users/0/user/client-certificate-data").and_then(Value::as_str) else { return Ok(None) };
    let damaged = |detail: String| Error::Damaged { path: path.into(), what: "kubeconfig", detail };
    let bytes = STANDARD.decode(data).map_err(|error| damaged(error.to_string()))?;
    String::from_utf8(bytes).map(Some).map_err(|error| damaged(error.to_string()))
}

fn parse(path: &Path) -> Result<Option<Value>, Error> {
    let Some(text) = files::read(path)? else { return Ok(None) };
    let damaged = |detail: String| Error::Damaged { path: path.into(), what: "kubeconfig", detail };
    serde_saphyr::from_str(&text).map(Some).map_err(|error| damaged(error.to_string()))
}

/// Puts another certificate and key into a kubeconfig, which stays as it is otherwise.
pub fn replace_in(path: &Path, issued: &Issued) -> Result<(), Error> {
    let damaged = |detail: &str| Error::Damaged { path: path.into(), what: "kubeconfig", detail: detail.into() };
    let mut config = parse(path)?.ok_or_else(|| damaged("the file is missing"))?;
    let user = config.pointer_mut("/users/0/user").and_then(Value::as_object_mut).ok_or_else(|| damaged("it has no user"))?;
    user.insert("client-certificate-data".into(), STANDARD.encode(&issued.certificate_pem).into());
    user.insert("client-key-data".into(), STANDARD.encode(&issued.key_pem).into());
    files::replace(path, &crate::kubeconfig::to_yaml(&config), Access::Private)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kubeconfig;

    fn cluster(life: Duration) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(directory.path()).unwrap();
        let lives = |identity: Identity| Identity { validity: life, ..identity };
        authority.issue_kept(directory.path(), "apiserver", &lives(Identity::apiserver([10, 96, 0, 1].into(), "cluster.local", &[]))).unwrap();
        let admin = authority.issue(&lives(Identity::admin())).unwrap();
        Kubeconfig::of("https://127.0.0.1:6443", &admin, "admin").write(&directory.path().join("admin.kubeconfig")).unwrap();
        let foreign = Authority::generate("another").unwrap().issue(&lives(Identity::node("n1"))).unwrap();
        files::replace(&directory.path().join("kubelet.crt"), &foreign.certificate_pem, Access::Public).unwrap();
        files::replace(&directory.path().join("sa.pub"), "not a certificate", Access::Public).unwrap();
        directory
    }

    #[test]
    fn everything_is_listed_with_who_can_renew_it() {
        let directory = cluster(Duration::from_secs(86_400));
        let held = inventory(&[directory.path()]).unwrap();
        let rows: Vec<_> = held.iter().map(|h| (h.name.as_str(), h.kind, h.renewed_by.as_deref(), h.issuer.as_str())).collect();
        assert_eq!(
            rows,
            [
                ("admin.kubeconfig", Kind::Kubeconfig, Some("ca"), "kubernetes"),
                ("apiserver", Kind::Files, Some("ca"), "kubernetes"),
                ("kubelet", Kind::Files, None, "another"),
                ("ca", Kind::Authority, None, "kubernetes"),
            ]
        );
        assert!(held.iter().all(|h| h.standing(crate::now_unix_s()) == Standing::Good));
        assert!(inventory(&[Path::new("/nowhere")]).unwrap().is_empty());
    }

    #[test]
    fn a_successor_says_the_same_and_lives_longer() {
        let directory = cluster(Duration::from_secs(86_400));
        let all = [directory.path()];
        let find = |name: &str| inventory(&all).unwrap().into_iter().find(|held| held.name == name).unwrap();
        for name in ["apiserver", "admin.kubeconfig"] {
            let before = find(name);
            renew(&before, &all, Some(Duration::from_secs(2 * 86_400))).unwrap();
            let after = find(name);
            assert_ne!(before.certificate, after.certificate);
            assert_eq!((&before.subject, &before.names), (&after.subject, &after.names));
            assert_eq!(usages(&before.certificate).unwrap(), usages(&after.certificate).unwrap());
            assert!(after.not_after_unix_s > before.not_after_unix_s + 80_000);
        }
        let pair = crate::reload::CertificateFiles::open(&directory.path().join("apiserver.crt"), &directory.path().join("apiserver.key"), "");
        assert!(pair.is_ok(), "certificate and key belong together");
        for name in ["kubelet", "ca"] {
            assert!(renew(&find(name), &all, None).is_err(), "{name}");
        }
    }

    #[test]
    fn what_is_due_is_renewed_and_nothing_else() {
        let directory = cluster(Duration::from_secs(100));
        let all = [directory.path()];
        let now = crate::now_unix_s();
        assert!(renew_due(&all, None, now + 50).unwrap().is_empty());
        let standings =
            |at| inventory(&all).unwrap().iter().filter(|held| held.name == "apiserver").map(|held| held.standing(at)).collect::<Vec<_>>();
        assert_eq!(standings(now + 50), [Standing::Good]);
        assert_eq!(standings(now + 95), [Standing::Near]);
        assert_eq!(standings(now + 101), [Standing::Expired]);
        assert_eq!(renew_due(&all, Some(Duration::from_secs(86_400)), now + 95).unwrap(), ["admin.kubeconfig", "apiserver"]);
        assert!(renew_due(&all, None, now + 95).unwrap().is_empty());
        assert!(next_due_unix_s(&all).unwrap().unwrap() > now + 40_000);
    }

    #[test]
    fn renewal_falls_into_the_last_third_and_not_all_at_once() {
        let authority = Authority::generate("kubernetes").unwrap();
        let moments: std::collections::BTreeSet<i64> = (0..20)
            .map(|_| {
                let certificate = authority.issue(&Identity::admin()).unwrap().certificate().unwrap();
                let (from, to) = validity(&certificate).unwrap();
                let at = renew_at_unix_s(&certificate).unwrap();
                assert!((70..=90).contains(&((at - from) * 100 / (to - from))), "{at}");
                at
            })
            .collect();
        assert!(moments.len() > 5);
    }
}
