//! `regent certs`: how long the certificates of this machine are good, and new ones at once; and how a running server renews
//! its own before they end.
//!
//! Everything goes through files ([`pki::rotation`]): a running server sees that they have changed, and uses them for every new
//! connection. So `rotate` neither needs the server to run nor to restart.

use super::election::duration;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use pki::rotation::{self, Held, Kind, Standing};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// A server looks at its certificates at least this often: somebody else may put others there, and clocks jump;
const LOOK_LONGEST: Duration = Duration::from_secs(5);
/// and at most this often.
const LOOK_SHORTEST: Duration = Duration::from_secs(1);

/// How long certificates live that a server makes for itself.
#[derive(Args, Clone)]
pub struct Lifetime {
    /// How long a certificate is good that this server makes for its own components; it is renewed before that is over.
    #[arg(long, default_value = "8760h", value_parser = duration)]
    pub certificate_validity_period: Duration,
}

impl Lifetime {
    /// The identity with this lifetime.
    pub fn of(&self, identity: pki::Identity) -> pki::Identity {
        pki::Identity { validity: self.certificate_validity_period, ..identity }
    }
}

#[derive(Args)]
pub struct Certs {
    /// The data directory of the server or agent.
    #[arg(long, global = true, default_value = "/var/lib/regent")]
    data_dir: PathBuf,
    /// Other directories of certificates instead.
    #[arg(long, global = true, value_delimiter = ',')]
    cert_dir: Vec<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the certificates. Exit code 1 if one has expired, or should have been renewed by now.
    Check {
        /// table or json
        #[arg(long, short, default_value = "table", value_parser = ["table", "json"])]
        output: String,
    },
    /// Make new certificates with new keys: all that this machine can sign, or those that are named. Never an authority.
    Rotate {
        /// As `regent certs check` lists them.
        names: Vec<String>,
        /// How long the new ones are good [default: as long as the ones before].
        #[arg(long, value_parser = duration)]
        certificate_validity_period: Option<Duration>,
    },
}

pub fn run(arguments: Certs) -> Result<()> {
    let directories = if arguments.cert_dir.is_empty() { of_data_dir(&arguments.data_dir) } else { arguments.cert_dir };
    let directories: Vec<&Path> = directories.iter().map(PathBuf::as_path).collect();
    let held = rotation::inventory(&directories)?;
    if held.is_empty() {
        let places: Vec<String> = directories.iter().map(|directory| directory.display().to_string()).collect();
        bail!("no certificates in {}; say --data-dir or --cert-dir", places.join(", "));
    }
    match arguments.action {
        Action::Check { output } => check(&held, &output),
        Action::Rotate { names, certificate_validity_period } => rotate(&held, &directories, &names, certificate_validity_period),
    }
}

/// Where a server, or an agent, keeps its certificates.
fn of_data_dir(data_dir: &Path) -> Vec<PathBuf> {
    vec![data_dir.join("server/pki"), data_dir.to_path_buf(), data_dir.join("agent")]
}

fn check(held: &[Held], output: &str) -> Result<()> {
    let now = pki::now_unix_s();
    let rows: Vec<[String; 6]> = held.iter().map(|held| row(held, now)).collect();
    if output == "json" {
        let items: Vec<serde_json::Value> = held.iter().zip(&rows).map(|(held, row)| to_json(held, row, now)).collect();
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "certificates": items }))?);
    } else {
        print!("{}", table(&rows));
    }
    let named = |wanted: Standing| held.iter().filter(move |held| held.standing(now) == wanted).map(|held| held.name.as_str()).collect::<Vec<_>>();
    let (expired, near) = (named(Standing::Expired), named(Standing::Near));
    if !expired.is_empty() {
        bail!(
            "expired: {}; `regent certs rotate` makes new ones where the authority's key is, a node that runs asks for its own",
            expired.join(", ")
        );
    }
    if !near.is_empty() {
        bail!("near their end: {}; `regent certs rotate` makes new ones, and a server or node that runs should have", near.join(", "));
    }
    Ok(())
}

fn row(held: &Held, now: i64) -> [String; 6] {
    let subject = match held.subject.organizations.as_slice() {
        [] => held.subject.common_name.clone(),
        groups => format!("{} ({})", held.subject.common_name, groups.join(", ")),
    };
    let expires = jiff::Timestamp::from_second(held.not_after_unix_s).map_or_else(|_| "?".into(), |at| at.to_string());
    let renewed = match (held.kind, &held.renewed_by) {
        (Kind::Authority, _) => "never".into(),
        (_, Some(authority)) => format!("here, by {authority}"),
        (_, None) => "by the cluster".into(),
    };
    [held.name.clone(), subject, expires, remaining(held.remaining_s(now)), held.issuer.clone(), renewed]
}

/// What is left, as a person says it.
fn remaining(seconds: i64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600, seconds / 60);
    match seconds {
        ..=0 => "expired".into(),
        1..120 => format!("{seconds}s"),
        120..7_200 => format!("{minutes}m"),
        7_200..172_800 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

fn to_json(held: &Held, row: &[String; 6], now: i64) -> serde_json::Value {
    serde_json::json!({
        "name": held.name,
        "path": held.path,
        "subject": { "commonName": held.subject.common_name, "organizations": held.subject.organizations },
        "names": held.names,
        "issuer": held.issuer,
        "authority": held.kind == Kind::Authority,
        "notAfter": row[2],
        "remainingSeconds": held.remaining_s(now),
        "renewedBy": held.renewed_by,
        "status": match held.standing(now) { Standing::Good => "Good", Standing::Near => "Near", Standing::Expired => "Expired" },
    })
}

fn table(rows: &[[String; 6]]) -> String {
    let header = ["NAME", "SUBJECT", "EXPIRES", "REMAINING", "ISSUER", "RENEWED"].map(str::to_owned);
    let all: Vec<&[String; 6]> = std::iter::once(&header).chain(rows).collect();
    let width = |column: usize| all.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for row in all {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn rotate(held: &[Held], directories: &[&Path], names: &[String], life: Option<Duration>) -> Result<()> {
    if let Some(unknown) = names.iter().find(|name| !held.iter().any(|held| held.name == **name)) {
        let known: Vec<&str> = held.iter().map(|held| held.name.as_str()).collect();
        bail!("{unknown}: there is no such certificate here; there are {}", known.join(", "));
    }
    let wanted: Vec<&Held> = if names.is_empty() {
        held.iter().filter(|held| held.renewed_by.is_some()).collect()
    } else {
        held.iter().filter(|held| names.contains(&held.name)).collect()
    };
    if wanted.is_empty() {
        bail!("the keys of the authorities are not on this machine; an agent that runs renews its certificates itself, through the cluster");
    }
    for held in wanted {
        rotation::renew(held, directories, life).with_context(|| format!("renewing {}", held.name))?;
        println!("{}: renewed", held.name);
    }
    println!("What runs uses the new ones for every new connection from now on; nothing needs to be restarted.");
    Ok(())
}

/// Renews what is in these directories before it ends, until the shutdown.
pub async fn keep_renewed(directories: Vec<PathBuf>, life: Duration, shutdown: CancellationToken) {
    loop {
        let places = directories.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let places: Vec<&Path> = places.iter().map(PathBuf::as_path).collect();
            let renewed = rotation::renew_due(&places, Some(life), pki::now_unix_s())?;
            Ok::<_, pki::Error>((renewed, rotation::next_due_unix_s(&places)?))
        });
        let mut pause = LOOK_LONGEST;
        match looked.await {
            Ok(Ok((renewed, next))) => {
                if !renewed.is_empty() {
                    tracing::info!(certificates = renewed.join(", "), "renewed before their end");
                }
                let left = next.map_or(LOOK_LONGEST, |at| Duration::from_secs(u64::try_from(at - pki::now_unix_s()).unwrap_or(0)));
                pause = left.clamp(LOOK_SHORTEST, LOOK_LONGEST);
            }
            Ok(Err(error)) => {
                let error = anyhow::Error::from(error);
                tracing::warn!("certificates could not be renewed; it is tried again, see `regent certs check`: {error:#}");
            }
            Err(error) => tracing::warn!(%error, "the renewal of certificates broke off; it is tried again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pki::{Authority, Identity, Kubeconfig};

    fn server() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let pki = directory.path().join("server/pki");
        let authority = Authority::load_or_create(&pki).unwrap();
        authority.issue_kept(&pki, "apiserver", &Identity::apiserver([10, 96, 0, 1].into(), "cluster.local", &[])).unwrap();
        let admin = authority.issue(&Identity::admin()).unwrap();
        Kubeconfig::of("https://127.0.0.1:6443", &admin, "admin").write(&directory.path().join("admin.kubeconfig")).unwrap();
        directory
    }

    fn held(directory: &Path) -> Vec<Held> {
        let places = of_data_dir(directory);
        rotation::inventory(&places.iter().map(PathBuf::as_path).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_table_says_what_ends_when() {
        let directory = server();
        let rows: Vec<[String; 6]> = held(directory.path()).iter().map(|held| row(held, pki::now_unix_s() + 60)).collect();
        let text = table(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].starts_with("NAME") && lines[1].contains("kubernetes-admin (system:masters)") && lines[1].contains("364d"), "{text}");
        assert!(lines[3].starts_with("ca ") && lines[3].ends_with("never"), "{text}");
    }

    #[test]
    fn one_or_all_are_rotated_and_an_authority_never() {
        let directory = server();
        let places = of_data_dir(directory.path());
        let places: Vec<&Path> = places.iter().map(PathBuf::as_path).collect();
        let serial = |name: &str| {
            let path = held(directory.path()).into_iter().find(|held| held.name == name).unwrap().path;
            std::fs::read_to_string(path).unwrap()
        };
        let before = (serial("apiserver"), serial("admin.kubeconfig"), serial("ca"));
        rotate(&held(directory.path()), &places, &["apiserver".into()], None).unwrap();
        assert_ne!(serial("apiserver"), before.0);
        assert_eq!(serial("admin.kubeconfig"), before.1);
        rotate(&held(directory.path()), &places, &[], None).unwrap();
        assert_ne!(serial("admin.kubeconfig"), before.1);
        assert_eq!(serial("ca"), before.2);
        assert!(rotate(&held(directory.path()), &places, &["ca".into()], None).is_err());
        assert!(rotate(&held(directory.path()), &places, &["nothing".into()], None).unwrap_err().to_string().contains("apiserver"));
    }

    #[test]
    fn an_expired_certificate_is_an_error() {
        let directory = server();
        let places = of_data_dir(directory.path());
        let places: Vec<&Path> = places.iter().map(PathBuf::as_path).collect();
        check(&held(directory.path()), "table").unwrap();
        rotate(&held(directory.path()), &places, &["apiserver".into()], Some(Duration::ZERO)).unwrap();
        let error = check(&held(directory.path()), "json").unwrap_err().to_string();
        assert!(error.starts_with("expired: apiserver;"), "{error}");
    }
}
