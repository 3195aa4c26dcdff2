//! The traffic processes of a drill: one inside each node, started through the sandbox, read line by line.
//!
//! A source ends with its node's power, or when its standard input is closed. One that is started again after its node was
//! off counts its boots, so that the analysis can tell a node that returns from routing that fails.

use crate::{Error, Result, limits, request::Request, timeline::Recorder, traffic::Target};
use sandbox::cluster::Sandbox;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};
use tokio::{
    fs::File,
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, BufWriter},
    process::{Child, ChildStdout, Command},
    sync::Mutex,
    task::JoinHandle,
    time::timeout,
};

/// How traffic is sent.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Targets of each node.
    pub targets: BTreeMap<String, Vec<Target>>,
    pub rate: u32,
    pub dns: String,
    /// The node that calls the API too, and the kubeconfig for it.
    pub api: Option<(String, PathBuf)>,
}

struct Source {
    child: Child,
    reader: JoinHandle<()>,
}

/// The sources of one drill.
pub struct Sources {
    sandbox: Arc<Sandbox>,
    plan: Plan,
    recorder: Recorder,
    log: Arc<Mutex<BufWriter<File>>>,
    running: BTreeMap<String, Source>,
    boots: BTreeMap<String, u32>,
}

impl Sources {
    /// No source runs yet. Every request will be a line of `log`.
    pub async fn new(sandbox: Arc<Sandbox>, plan: Plan, recorder: Recorder, log: &Path) -> Result<Sources> {
        let file = File::create(log).await.map_err(Error::io(format!("making {}", log.display())))?;
        let log = Arc::new(Mutex::new(BufWriter::new(file)));
        Ok(Sources { sandbox, plan, recorder, log, running: BTreeMap::new(), boots: BTreeMap::new() })
    }

    /// Starts the source of every node that is on and has none.
    pub fn start(&mut self) -> Result<()> {
        let names: Vec<String> = self.plan.targets.keys().cloned().collect();
        for name in names {
            if self.running.get_mut(&name).is_some_and(|source| source.child.try_wait().is_ok_and(|ended| ended.is_none())) {
                continue;
            }
            let boot = self.boots.get(&name).map_or(0, |boot| boot + 1);
            if let Ok(command) = self.sandbox.command(&name, &self.arguments(&name, boot)?) {
                let mut command = Command::from(command);
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
                let mut child = command.spawn().map_err(Error::io(format!("starting traffic on {name} (package util-linux)")))?;
                let lines = child.stdout.take().ok_or_else(|| Error::Refused(format!("traffic on {name} has no output")))?;
                let reader = tokio::spawn(read(lines, self.recorder.clone(), self.log.clone()));
                self.running.insert(name.clone(), Source { child, reader });
                self.boots.insert(name, boot);
            }
        }
        Ok(())
    }

    fn arguments(&self, name: &str, boot: u32) -> Result<Vec<String>> {
        let regent = std::env::current_exe().map_err(Error::io("finding this program"))?;
        let mut arguments = vec![regent.display().to_string(), "drill".into(), "traffic".into()];
        arguments.extend([format!("--source={name}"), format!("--boot={boot}"), format!("--rate={}", self.plan.rate)]);
        arguments.push(format!("--dns={}", self.plan.dns));
        arguments.extend(self.plan.targets[name].iter().map(|target| format!("--target={target}")));
        if let Some((node, kubeconfig)) = &self.plan.api
            && node == name
        {
            arguments.push(format!("--api={}", kubeconfig.display()));
        }
        Ok(arguments)
    }

    /// Ends every source and waits for its last lines.
    pub async fn stop(&mut self) -> Result<()> {
        for (_, mut source) in std::mem::take(&mut self.running) {
            drop(source.child.stdin.take());
            // It waits for what is under way; an API call may take two attempts.
            if timeout(limits::API_CALL_TIMEOUT * 3, source.child.wait()).await.is_err() {
                let _ = source.child.kill().await;
            }
            let _ = timeout(limits::REQUEST_TIMEOUT, source.reader).await;
        }
        self.log.lock().await.flush().await.map_err(Error::io("writing the log of requests"))
    }
}

async fn read(lines: ChildStdout, recorder: Recorder, log: Arc<Mutex<BufWriter<File>>>) {
    let mut lines = BufReader::new(lines).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Ok(request) = serde_json::from_str::<Request>(&line) {
            recorder.request(request);
        }
        let mut log = log.lock().await;
        let _ = log.write_all(line.as_bytes()).await;
        let _ = log.write_all(b"\n").await;
    }
}
