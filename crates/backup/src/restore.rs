//! A stopped server's SQLite store, replaced by what a snapshot holds.
//!
//! The new store is built whole in a directory beside (`store.restoring`) and then exchanged with the old one in one step of
//! the kernel's; the old one is kept as `store.before-restore-TIME`. A journal (`restore.json`) stands from before the first
//! change until after the last: while it is there, no server starts, and the same command run again goes on. Every step
//! looks at what is there before it does anything, so it does not matter where the one before died.
//!
//! ```text
//! verify the file, compare clusters, lock out servers      nothing has changed yet
//! journal "building"   build store.restoring, sync          the old store is as it was
//! journal "built"      write missing keys
//!                      exchange store <-> store.restoring   from here on it is the new store
//!                      store.restoring -> store.before-restore-TIME
//! remove the journal                                        servers start again
//! ```
//!
//! What must stay true: a directory is removed only if the journal says that this restore made it.

use crate::{Error, Result, at, files, files::Fate, now_s, stamp};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
};
use store::{
    Revision,
    snapshot::{self, Restored, Secret, Status, write_private},
    sqlite::{Lock, Sqlite},
};

const JOURNAL: &str = "restore.json";
/// In a store that a restore made: which one.
const ORIGIN: &str = "restored.json";
const STORE: &str = "store";
const BUILDING: &str = "store.restoring";
const KEYS: &str = "pki";

/// What is asked.
pub struct Request<'a> {
    pub file: &'a Path,
    pub secret: Option<&'a Secret>,
    /// The server's directory: `<data-dir>/server`.
    pub server: &'a Path,
    /// Where its keys are.
    pub pki: &'a Path,
    /// The fingerprint of its authority, if it has one.
    pub cluster: Option<String>,
    /// Take the objects of another cluster.
    pub force: bool,
    /// Take the keys of the snapshot instead of the server's.
    pub replace_keys: bool,
    /// A revision that the cluster is known to have had in another store.
    pub newest: Option<Revision>,
}

/// Where a restore is: told before each step, so that a person sees it and a test can end there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Verify,
    Begin,
    Build,
    Built,
    Keys,
    Exchange,
    KeepAside,
    Finish,
}

/// All steps, in their order.
pub const STEPS: [Step; 8] = [Step::Verify, Step::Begin, Step::Build, Step::Built, Step::Keys, Step::Exchange, Step::KeepAside, Step::Finish];

/// What a restore did.
#[derive(Debug)]
pub struct Report {
    pub status: Status,
    /// What was written; `None` if an interrupted restore only had to be finished.
    pub restored: Option<Restored>,
    /// Where the old store is now.
    pub aside: Option<PathBuf>,
    /// Where the old keys are now, if they were replaced.
    pub keys_aside: Option<PathBuf>,
    pub files: Vec<(String, Fate)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Journal {
    /// This restore, and no other.
    id: String,
    /// The snapshot's hash, and its file for a person to read.
    hash: String,
    file: PathBuf,
    started_at_s: u64,
    built: bool,
}

#[derive(Serialize, Deserialize)]
struct OriginFile {
    id: String,
}

/// Says that a restore was begun in this server's directory and not finished. A server MUST NOT start then.
pub fn check_finished(server: &Path) -> Result<()> {
    match read_json::<Journal>(&server.join(JOURNAL))? {
        Some(journal) => Err(Error::Interrupted(journal.file.display().to_string())),
        None => Ok(()),
    }
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| Error::Refused(format!("{} cannot be read: {e}", path.display()))),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(at(format!("reading {}", path.display()))(error)),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|e| Error::Refused(e.to_string()))?;
    Ok(write_private(path, &text, 0o600)?)
}

fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(at(format!("syncing {}", path.display())))
}

/// Refuses a snapshot of another cluster.
pub fn check_cluster(status: &Status, ours: Option<&str>, force: bool) -> Result<()> {
    match ours {
        Some(ours) if !force && ours != status.header.cluster => Err(Error::Foreign { theirs: short(&status.header.cluster), ours: short(ours) }),
        _ => Ok(()),
    }
}

fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(16).collect()
}

struct Places<'a> {
    server: &'a Path,
    store: PathBuf,
    building: PathBuf,
    journal: PathBuf,
}

impl Places<'_> {
    /// Whether this directory was made by that restore.
    fn is_of(directory: &Path, id: &str) -> Result<bool> {
        Ok(read_json::<OriginFile>(&directory.join(ORIGIN))?.is_some_and(|origin| origin.id == id))
    }

    fn has_database(directory: &Path) -> bool {
        directory.join("state.db").exists()
    }

    /// Puts a directory of old data where nobody overwrites it; an empty one just goes.
    fn keep_aside(&self, directory: &Path, at_s: u64) -> Result<Option<PathBuf>> {
        if !Places::has_database(directory) {
            fs::remove_dir_all(directory).map_err(at(format!("removing {}", directory.display())))?;
            return Ok(None);
        }
        for attempt in 0.. {
            let suffix = if attempt == 0 { String::new() } else { format!("-{attempt}") };
            let aside = self.server.join(format!("{STORE}.before-restore-{}{suffix}", stamp(at_s)));
            if !aside.exists() {
                fs::rename(directory, &aside).map_err(at(format!("keeping {} as {}", directory.display(), aside.display())))?;
                sync_directory(self.server)?;
                return Ok(Some(aside));
            }
        }
        Ok(None)
    }
}

/// Brings a stopped server's SQLite store to what the snapshot holds. `step` hears of each step before it is done.
pub async fn restore(request: &Request<'_>, mut step: impl FnMut(Step)) -> Result<Report> {
    step(Step::Verify);
    let status = verify(request.file, request.secret).await?;
    check_cluster(&status, request.cluster.as_deref(), request.force || request.replace_keys)?;
    let places = Places {
        server: request.server,
        store: request.server.join(STORE),
        building: request.server.join(BUILDING),
        journal: request.server.join(JOURNAL),
    };
    pki::files::create_directory(&places.store).map_err(|error| Error::Refused(error.to_string()))?;
    let lock = lock_out(&places.store)?;

    step(Step::Begin);
    let mut journal = begin(&places, request, &status)?;

    let exchanged = journal.built && Places::is_of(&places.store, &journal.id)?;
    let mut restored = None;
    if !journal.built {
        step(Step::Build);
        restored = Some(build(&places, &journal, request, &status).await?);
        step(Step::Built);
        journal.built = true;
        write_json(&places.journal, &journal)?;
    }

    step(Step::Keys);
    let blobs = snapshot::files(request.file, request.secret)?;
    let keys_aside = if request.replace_keys { replace_keys(request, &blobs, journal.started_at_s)? } else { None };
    let fates = files::place(request.pki, &blobs, true)?;

    if !exchanged {
        step(Step::Exchange);
        exchange(&places.store, &places.building)?;
        sync_directory(places.server)?;
    }
    step(Step::KeepAside);
    let aside = if places.building.exists() { places.keep_aside(&places.building, journal.started_at_s)? } else { None };
    drop(lock);
    step(Step::Finish);
    fs::remove_file(&places.journal).map_err(at("removing the restore's journal"))?;
    sync_directory(places.server)?;
    Ok(Report { status, restored, aside, keys_aside, files: fates })
}

/// Reads a snapshot to its end, on a thread that may block.
pub async fn verify(file: &Path, secret: Option<&Secret>) -> Result<Status> {
    let (file, secret) = (file.to_path_buf(), secret.cloned());
    let verified = tokio::task::spawn_blocking(move || snapshot::verify(&file, secret.as_ref())).await;
    Ok(verified.map_err(|error| Error::Refused(error.to_string()))??)
}

fn lock_out(store: &Path) -> Result<Lock> {
    Lock::take(store).map_err(|error| match error {
        store::Error::Unavailable(_) => Error::Running(store.to_path_buf()),
        other => other.into(),
    })
}

/// The journal of this restore: a new one, or that of the same restore that died.
fn begin(places: &Places<'_>, request: &Request<'_>, status: &Status) -> Result<Journal> {
    let standing = read_json::<Journal>(&places.journal)?;
    if let Some(journal) = &standing
        && journal.hash == status.hash
        && journal.built
        && (Places::is_of(&places.store, &journal.id)? || Places::is_of(&places.building, &journal.id)?)
    {
        return Ok(journal.clone());
    }
    if places.building.exists() {
        match &standing {
            // Begun and not finished: of no use.
            Some(journal) if Places::is_of(&places.building, &journal.id)? => {
                fs::remove_dir_all(&places.building).map_err(at(format!("removing {}", places.building.display())))?;
            }
            // Old data that another restore had exchanged and not yet put aside.
            _ => drop(places.keep_aside(&places.building, now_s())?),
        }
    }
    let file = std::path::absolute(request.file).map_err(at("finding the snapshot"))?;
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| Error::Refused("the machine gives no random numbers".into()))?;
    let journal = Journal { id: pki::hex(&random), hash: status.hash.clone(), file, started_at_s: now_s(), built: false };
    write_json(&places.journal, &journal)?;
    Ok(journal)
}

async fn build(places: &Places<'_>, journal: &Journal, request: &Request<'_>, status: &Status) -> Result<Restored> {
    pki::files::create_directory(&places.building).map_err(|error| Error::Refused(error.to_string()))?;
    write_json(&places.building.join(ORIGIN), &OriginFile { id: journal.id.clone() })?;
    let newest = Sqlite::newest_known(&places.store).max(request.newest);
    let store = Sqlite::create(&places.building, snapshot::beyond(status, newest, now_s()))?;
    let restored = snapshot::restore_into(&store, request.file, request.secret).await?;
    // Waits until all of it is on disk.
    tokio::task::spawn_blocking(move || drop(store)).await.map_err(|error| Error::Refused(error.to_string()))?;
    sync_directory(&places.building)?;
    Ok(restored)
}

/// Puts the server's keys aside, so that those of the snapshot take their place and certificates are made anew.
fn replace_keys(request: &Request<'_>, blobs: &[snapshot::Blob], started_at_s: u64) -> Result<Option<PathBuf>> {
    let differs = files::place(request.pki, blobs, false)?.iter().any(|(_, fate)| *fate == Fate::Differs);
    if !differs {
        return Ok(None);
    }
    let aside = request.server.join(format!("{KEYS}.before-restore-{}", stamp(started_at_s)));
    fs::rename(request.pki, &aside).map_err(at(format!("keeping {} as {}", request.pki.display(), aside.display())))?;
    Ok(Some(aside))
}

/// Exchanges two directories in one step; where the file system cannot, in two, with the journal as guard.
fn exchange(store: &Path, building: &Path) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, store, CWD, building, RenameFlags::EXCHANGE) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {}
        // The two-step way died between its steps.
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(at("putting the new store in its place")(error.into())),
    }
    let old = store.with_file_name("store.replaced");
    let doing = "putting the new store in its place";
    if !old.exists() {
        fs::rename(store, &old).map_err(at(doing))?;
    }
    if !store.exists() {
        fs::rename(building, store).map_err(at(doing))?;
    }
    fs::rename(&old, building).map_err(at(doing))
}
