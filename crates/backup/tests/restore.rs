//! A restore that dies at any step can be run again; a server never starts on half of one; what was before is kept.

use backup::{
    Error,
    files::Fate,
    restore::{Request, STEPS, Step, check_finished, restore},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use store::{
    Outcome, Store, Write,
    snapshot::{Blob, Origin, save},
    sqlite::Sqlite,
};

/// Set in the child that dies: the data directory and the number of the step before which it does.
const VICTIM: &str = "REGENT_RESTORE_VICTIM";

async fn put(store: &Sqlite, key: &str, value: &str) {
    let write = match store.get(key).await.unwrap() {
        None => Write::Create { key: key.into(), value: value.to_string().into() },
        Some(kv) => Write::Update { key: key.into(), value: value.to_string().into(), expected: kv.modified },
    };
    assert!(matches!(store.commit(write).await.unwrap(), Outcome::Committed(_)));
}

async fn content(store: &Sqlite) -> BTreeMap<String, String> {
    let items = store.list("/registry/", None, 0, None).await.unwrap().items;
    items.into_iter().map(|kv| (kv.key, String::from_utf8(kv.value.to_vec()).unwrap())).collect()
}

struct Scene {
    directory: tempfile::TempDir,
    saved: BTreeMap<String, String>,
    before: BTreeMap<String, String>,
    newest: store::Revision,
}

impl Scene {
    /// A server that went on after its snapshot, and lost a key since.
    async fn new() -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let server = directory.path().join("server");
        fs::create_dir_all(server.join("pki")).unwrap();
        fs::write(server.join("pki/ca.crt"), "authority").unwrap();
        let store = Sqlite::open(&server.join("store")).unwrap();
        for i in 0..700 {
            put(&store, &format!("/registry/core/configmaps/default/c-{i:04}"), "saved").await;
        }
        let blob = |name: &str, content: &str| Blob { name: name.into(), mode: 0o600, content: content.into() };
        let origin = Origin {
            cluster: "ours".into(),
            store: "sqlite".into(),
            regent: "0".into(),
            created_at_s: backup::now_s(),
            files: vec![blob("ca.crt", "authority"), blob("sa.key", "lost")],
        };
        save(&store, &origin, &directory.path().join("good.snapshot"), None).await.unwrap();
        let saved = content(&store).await;
        for i in 0..50 {
            put(&store, &format!("/registry/core/configmaps/default/c-{i:04}"), "changed since").await;
        }
        put(&store, "/registry/core/pods/default/new", "made since").await;
        let (before, newest) = (content(&store).await, store.revision().await.unwrap());
        Scene { directory, saved, before, newest }
    }

    fn server(&self) -> PathBuf {
        self.directory.path().join("server")
    }

    fn kept_aside(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.server()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("store.before-restore")).collect()
    }
}

fn request<'a>(file: &'a Path, server: &'a Path, pki: &'a Path) -> Request<'a> {
    Request { file, secret: None, server, pki, cluster: Some("ours".into()), force: false, replace_keys: false, newest: None }
}

/// Not a check: the process that dies.
#[tokio::test(flavor = "multi_thread")]
async fn victim() {
    let Ok(told) = std::env::var(VICTIM) else { return };
    let (number, directory) = told.split_once(':').unwrap();
    let last = STEPS[number.parse::<usize>().unwrap()];
    let directory = Path::new(directory);
    let (file, server) = (directory.join("good.snapshot"), directory.join("server"));
    let die = |step: Step| {
        if step == last {
            // As from `kill -9`: nothing is tidied up.
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
    };
    restore(&request(&file, &server, &server.join("pki")), die).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_die_before_every_step_and_be_run_again() {
    for (number, step) in STEPS.iter().enumerate() {
        for deaths in 1..=2 {
            let scene = Scene::new().await;
            let server = scene.server();
            for _ in 0..deaths {
                let mut child = Command::new(std::env::current_exe().unwrap());
                child.args(["--exact", "victim", "--nocapture"]).env(VICTIM, format!("{number}:{}", scene.directory.path().display()));
                let ended = child.output().unwrap();
                // Run a second time it finds the step done, and may come through.
                assert!(deaths == 2 || !ended.status.success(), "{step:?}: the victim lived: {}", String::from_utf8_lossy(&ended.stderr));
            }
            if check_finished(&server).is_ok() && deaths == 1 {
                assert!(matches!(step, Step::Verify | Step::Begin), "{step:?}: a server would start on half of a restore");
                assert_eq!(content(&Sqlite::open(&server.join("store")).unwrap()).await, scene.before, "{step:?}");
            }
            let file = scene.directory.path().join("good.snapshot");
            let report = restore(&request(&file, &server, &server.join("pki")), |_| {}).await.unwrap();
            check_finished(&server).unwrap();
            let store = Sqlite::open(&server.join("store")).unwrap();
            assert_eq!(content(&store).await, scene.saved, "{step:?}");
            assert!(store.revision().await.unwrap() > scene.newest, "{step:?}");
            assert!(store.watch("/registry/", scene.newest).await.is_err(), "{step:?}: the past is forgotten");
            assert_eq!(fs::read_to_string(server.join("pki/sa.key")).unwrap(), "lost", "{step:?}: {:?}", report.files);
            assert!(!server.join("store.restoring").exists() && !server.join("restore.json").exists(), "{step:?}: leftovers");
            let mut old = Vec::new();
            for aside in scene.kept_aside() {
                old.push(content(&Sqlite::open(&aside).unwrap()).await);
            }
            assert!(old.contains(&scene.before), "{step:?}, {deaths} deaths: the old store is gone");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_touched_for_a_bad_a_foreign_or_a_running_one() {
    let scene = Scene::new().await;
    let (file, server) = (scene.directory.path().join("good.snapshot"), scene.server());
    let pki = server.join("pki");
    let foreign = Request { cluster: Some("another".into()), ..request(&file, &server, &pki) };
    let refused = restore(&foreign, |_| {}).await.unwrap_err();
    assert!(matches!(refused, Error::Foreign { .. }) && refused.to_string().contains("--force"), "{refused}");
    let store = Sqlite::open(&server.join("store")).unwrap();
    let refused = restore(&request(&file, &server, &pki), |_| {}).await.unwrap_err();
    assert!(matches!(refused, Error::Running(_)) && refused.to_string().contains("stop"), "{refused}");
    drop(store);
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let bad = scene.directory.path().join("bad.snapshot");
    fs::write(&bad, bytes).unwrap();
    let refused = restore(&request(&bad, &server, &pki), |_| {}).await.unwrap_err();
    assert!(refused.to_string().contains("damaged"), "{refused}");
    assert!(scene.kept_aside().is_empty() && !server.join("restore.json").exists() && !server.join("store.restoring").exists());
    assert_eq!(content(&Sqlite::open(&server.join("store")).unwrap()).await, scene.before);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_taken_when_asked() {
    let scene = Scene::new().await;
    let (file, server) = (scene.directory.path().join("good.snapshot"), scene.server());
    let pki = server.join("pki");
    fs::write(pki.join("ca.crt"), "of a new machine").unwrap();
    let told = restore(&Request { force: true, cluster: Some("new".into()), ..request(&file, &server, &pki) }, |_| {}).await.unwrap();
    assert!(told.files.contains(&("ca.crt".into(), Fate::Differs)) && told.files.contains(&("sa.key".into(), Fate::Written)));
    assert_eq!(fs::read_to_string(pki.join("ca.crt")).unwrap(), "of a new machine");
    let told = restore(&Request { replace_keys: true, cluster: Some("new".into()), ..request(&file, &server, &pki) }, |_| {}).await.unwrap();
    assert_eq!(fs::read_to_string(pki.join("ca.crt")).unwrap(), "authority");
    let aside = told.keys_aside.expect("the old keys are kept");
    assert_eq!(fs::read_to_string(aside.join("ca.crt")).unwrap(), "of a new machine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_machine_is_brought_back_from_the_file_alone() {
    let scene = Scene::new().await;
    let server = scene.directory.path().join("new/server");
    let pki = server.join("pki");
    let file = scene.directory.path().join("good.snapshot");
    let report = restore(&Request { cluster: None, ..request(&file, &server, &pki) }, |_| {}).await.unwrap();
    assert!(report.aside.is_none());
    assert_eq!(content(&Sqlite::open(&server.join("store")).unwrap()).await, scene.saved);
    assert_eq!(fs::read_to_string(pki.join("ca.crt")).unwrap(), "authority");
}
