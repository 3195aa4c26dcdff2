//! Which keys the store's Secrets are encrypted with: the cluster's own, or those of the user's configuration.

use crate::commands::apiserver::ApiserverFlags;
use anyhow::{Context, Result, bail};
use apiserver::encryption::{FileSource, default_resources};
use std::{path::Path, sync::Arc, time::Duration};
use store::{
    Store,
    encryption::{Encrypted, ring, ring::RingSource},
};
use tokio_util::sync::CancellationToken;

/// The file that opens the cluster's keys, among the cluster's other keys.
pub const FILE: &str = "encryption.key";
/// How often the user's configuration is read anew.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The store that seals, if anything is to be sealed: with the user's configuration, or with the cluster's own keys where there is a
/// directory of keys.
pub async fn wrap(store: &Arc<dyn Store>, flags: &ApiserverFlags, pki_dir: Option<&Path>, stop: &CancellationToken) -> Result<Option<Encrypted>> {
    if let Some(path) = &flags.encryption_provider_config {
        let encrypted = Encrypted::open(store.clone(), FileSource::new(path)).await?;
        tokio::spawn(follow(encrypted.clone(), stop.clone()));
        return Ok(Some(encrypted));
    }
    let Some(directory) = pki_dir else { return Ok(None) };
    let path = directory.join(FILE);
    let secret = match pki::secret::load(&path)? {
        Some(secret) => secret,
        None if ring::exists(&**store).await? => {
            bail!("the cluster's Secrets are encrypted, and {} is missing; copy it from another server, or take it from a snapshot", path.display())
        }
        None => pki::secret::load_or_create(&path).context("making the key for the cluster's Secrets")?,
    };
    let source = RingSource::new(store.clone(), &secret, path, default_resources())?;
    Ok(Some(Encrypted::open(store.clone(), source).await?))
}

/// Takes in changes of the user's configuration.
async fn follow(encrypted: Encrypted, stop: CancellationToken) {
    loop {
        tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(LOOK_EVERY) => {} }
        if let Err(error) = encrypted.reload().await {
            tracing::warn!(%error, "the encryption configuration cannot be used; the one before is");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::os::unix::fs::PermissionsExt;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        flags: ApiserverFlags,
    }

    #[tokio::test]
    async fn the_key_is_made_once_saved_with_snapshots_and_never_made_anew_for_want_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let (store, stop): (Arc<dyn Store>, _) = (Arc::new(store::memory::Memory::default()), CancellationToken::new());
        let flags = CommandLine::parse_from(["test"]).flags;
        assert!(wrap(&store, &flags, None, &stop).await.unwrap().is_none(), "without a place for its key nothing is encrypted");
        for _ in 0..2 {
            assert!(wrap(&store, &flags, Some(directory.path()), &stop).await.unwrap().is_some());
        }
        let path = directory.path().join(FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(crate::bundle::FILES.contains(&FILE), "what joins and what is saved has it");
        let saved = backup::files::collect(directory.path(), &crate::bundle::FILES).unwrap();
        assert!(saved.iter().any(|blob| blob.name == FILE));
        std::fs::remove_file(&path).unwrap();
        let error = wrap(&store, &flags, Some(directory.path()), &stop).await.err().unwrap().to_string();
        assert!(error.contains("encryption.key is missing") && !path.exists(), "{error}");
        backup::files::place(directory.path(), &saved, true).unwrap();
        assert!(wrap(&store, &flags, Some(directory.path()), &stop).await.is_ok(), "a restore brings it back");
    }
}
