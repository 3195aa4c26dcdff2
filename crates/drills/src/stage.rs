//! What a drill's steps are written with: break, mend, ask, wait, check.
//!
//! Whatever is broken here is noted, so that the engine can mend it if the steps end early. Waiting is on what is watched
//! (the view) or on a look that is repeated, always bounded, and an error says what was seen last.

use crate::{
    Error, Result,
    expectation::Check,
    limits,
    sources::Sources,
    timeline::{Mark, Pod, Recorder, View, What},
    workload::{APP, NAMESPACE},
};
use parking_lot::Mutex;
use sandbox::{cluster::Sandbox, plan::Role};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{task::block_in_place, time::Instant};

/// How long a sabotaged drill waits for what will not come, in seconds.
const SABOTAGED_PATIENCE_S: u64 = 20;

/// What is broken and must be mended before the next drill.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Broken {
    Stopped { node: String, component: Option<String> },
    Paused { node: String, component: String },
    Cut { node: String, peers: Vec<String> },
    CutOneWay { from: String, to: String },
    Blocked { node: String },
    Cordoned { node: String },
    Spawned { node: String, group: String },
}

/// Says what is going on.
pub type Say = Arc<dyn Fn(&str) + Send + Sync>;

/// One drill under way.
pub struct Stage {
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) recorder: Recorder,
    pub(crate) sources: tokio::sync::Mutex<Sources>,
    pub(crate) directory: PathBuf,
    pub(crate) replicas: usize,
    pub(crate) sabotaged: bool,
    /// The cluster just before the steps.
    pub(crate) before: View,
    pub(crate) say: Say,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    checks: Vec<Check>,
    further: Vec<(String, String)>,
    broken: Vec<Broken>,
    recovered: bool,
}

impl Stage {
    pub(crate) fn new(
        sandbox: Arc<Sandbox>,
        recorder: Recorder,
        sources: Sources,
        directory: PathBuf,
        replicas: usize,
        sabotaged: bool,
        say: Say,
    ) -> Stage {
        let before = recorder.view();
        let sources = tokio::sync::Mutex::new(sources);
        Stage { sandbox, recorder, sources, directory, replicas, sabotaged, before, say, notes: Mutex::default() }
    }

    // ---- what there is

    /// The names of the servers.
    pub fn servers(&self) -> Vec<String> {
        self.names(Role::Server)
    }

    /// The names of the workers.
    pub fn workers(&self) -> Vec<String> {
        self.names(Role::Worker)
    }

    fn names(&self, role: Role) -> Vec<String> {
        self.sandbox.nodes.iter().filter(|node| node.role == role).map(|node| node.name.clone()).collect()
    }

    /// A node's address.
    pub fn address(&self, node: &str) -> Result<String> {
        Ok(self.sandbox.node(node)?.address.clone())
    }

    /// A node's disk on this machine.
    pub fn disk(&self, node: &str) -> Result<PathBuf> {
        Ok(self.sandbox.node(node)?.directory.clone())
    }

    /// A directory for the drill's files. They stay beside the log of requests.
    pub fn scratch(&self) -> &Path {
        &self.directory
    }

    /// Pods of the workload when nothing is broken.
    pub fn replicas(&self) -> usize {
        self.replicas
    }

    /// The cluster just before the steps.
    pub fn before(&self) -> &View {
        &self.before
    }

    /// The cluster as it was last seen.
    pub fn view(&self) -> View {
        self.recorder.view()
    }

    /// Whether what the drill checks is to be broken on purpose.
    pub fn sabotaged(&self) -> bool {
        self.sabotaged
    }

    /// A pod of the workload on this node, before the steps.
    pub fn pod_on(&self, node: &str) -> Result<Pod> {
        let found = self.before.ready(APP).find(|pod| pod.node == node).cloned();
        found.ok_or_else(|| Error::Refused(format!("the workload has no pod on {node}: {}", self.before.describe())))
    }

    // ---- saying and marking

    /// Something is broken now. Say it before it is done.
    pub fn fault(&self, text: impl Into<String>) {
        self.mark(Mark::Fault, text.into());
    }

    /// It is mended now.
    pub fn heal(&self, text: impl Into<String>) {
        self.mark(Mark::Heal, text.into());
    }

    /// A step that neither breaks nor mends.
    pub fn step(&self, text: impl Into<String>) {
        self.mark(Mark::Step, text.into());
    }

    /// What was lost runs elsewhere.
    pub fn replaced(&self, text: impl Into<String>) {
        self.mark(Mark::Replaced, text.into());
    }

    fn mark(&self, mark: Mark, text: String) {
        (self.say)(&text);
        self.recorder.mark(mark, text);
    }

    /// Something that must hold, and what was seen.
    pub fn check(&self, what: impl Into<String>, held: bool, seen: impl Into<String>) {
        self.notes.lock().checks.push(Check { what: what.into(), held, seen: seen.into() });
    }

    /// A figure that only this drill has.
    pub fn figure(&self, name: impl Into<String>, value: impl Into<String>) {
        self.notes.lock().further.push((name.into(), value.into()));
    }

    pub(crate) fn take_notes(&self) -> (Vec<Check>, Vec<(String, String)>) {
        let mut notes = self.notes.lock();
        (std::mem::take(&mut notes.checks), std::mem::take(&mut notes.further))
    }

    // ---- breaking and mending

    /// Stops a component as an administrator does.
    pub fn stop(&self, node: &str, component: &str) -> Result<()> {
        self.end(node, component, false)
    }

    /// Ends a component by SIGKILL.
    pub fn kill(&self, node: &str, component: &str) -> Result<()> {
        self.end(node, component, true)
    }

    fn end(&self, node: &str, component: &str, kill: bool) -> Result<()> {
        self.broke(Broken::Stopped { node: node.into(), component: Some(component.into()) });
        Ok(block_in_place(|| self.sandbox.stop(node, Some(component), kill))?)
    }

    /// Starts a component that was stopped.
    pub fn start(&self, node: &str, component: &str) -> Result<()> {
        block_in_place(|| self.sandbox.start(node, Some(component)))?;
        self.mended(&Broken::Stopped { node: node.into(), component: Some(component.into()) });
        Ok(())
    }

    /// Cuts a node's power.
    pub fn power_off(&self, node: &str) -> Result<()> {
        self.broke(Broken::Stopped { node: node.into(), component: None });
        Ok(block_in_place(|| self.sandbox.stop(node, None, false))?)
    }

    /// Powers a node on; its traffic begins again at once.
    pub async fn power_on(&self, node: &str) -> Result<()> {
        block_in_place(|| self.sandbox.start(node, None))?;
        self.mended(&Broken::Stopped { node: node.into(), component: None });
        self.sources.lock().await.start()
    }

    /// Halts a component where it stands (SIGSTOP).
    pub fn pause(&self, node: &str, component: &str) -> Result<()> {
        self.broke(Broken::Paused { node: node.into(), component: component.into() });
        Ok(block_in_place(|| self.sandbox.set_paused(node, component, true))?)
    }

    /// Lets it go on.
    pub fn resume(&self, node: &str, component: &str) -> Result<()> {
        block_in_place(|| self.sandbox.set_paused(node, component, false))?;
        self.mended(&Broken::Paused { node: node.into(), component: component.into() });
        Ok(())
    }

    /// Cuts the cables between a node and others (all others and the machine, if none are named).
    pub fn cut(&self, node: &str, peers: &[String]) -> Result<()> {
        self.broke(Broken::Cut { node: node.into(), peers: peers.to_vec() });
        Ok(block_in_place(|| self.sandbox.set_cut(node, peers, true))?)
    }

    /// Mends them.
    pub fn mend(&self, node: &str, peers: &[String]) -> Result<()> {
        block_in_place(|| self.sandbox.set_cut(node, peers, false))?;
        self.mended(&Broken::Cut { node: node.into(), peers: peers.to_vec() });
        Ok(())
    }

    /// Sabotage: drops the node's own requests to the workload.
    pub fn block_traffic(&self, node: &str) -> Result<()> {
        self.broke(Broken::Blocked { node: node.into() });
        let (port, node_port) = (crate::workload::PORT, crate::workload::NODE_PORT);
        let rules = format!(
            "nft add table ip {BLOCK} && nft 'add chain ip {BLOCK} out {{ type filter hook output priority -350; }}' && \
             nft add rule ip {BLOCK} out tcp dport '{{ {port}, {node_port} }}' drop"
        );
        self.on_node(node, &rules).map(|_| ())
    }

    /// Loses the frames from one node to another; those back arrive.
    pub fn cut_one_way(&self, from: &str, to: &str) -> Result<()> {
        self.broke(Broken::CutOneWay { from: from.into(), to: to.into() });
        self.one_way(from, to, "add element")
    }

    /// Lets them through again.
    pub fn mend_one_way(&self, from: &str, to: &str) -> Result<()> {
        self.one_way(from, to, "delete element")?;
        self.mended(&Broken::CutOneWay { from: from.into(), to: to.into() });
        Ok(())
    }

    fn one_way(&self, from: &str, to: &str, verb: &str) -> Result<()> {
        let (from, to) = (self.sandbox.node(from)?.link(), self.sandbox.node(to)?.link());
        self.shell(&format!("nft '{verb} bridge regent-sandbox cut {{ \"{from}\" . \"{to}\" }}'")).map(|_| ())
    }

    /// Starts a shell command inside a node that goes on beside the drill; `{regent}` in it is this program. Its process group, for
    /// [`Stage::end_on`]; what it says is in the node's log of this name.
    pub fn spawn_on(&self, node: &str, command: &str, name: &str) -> Result<String> {
        let regent = std::env::current_exe().map_err(Error::io("finding this program"))?.display().to_string();
        let (command, log) = (command.replace("{regent}", &regent), self.sandbox.node(node)?.log(name).display().to_string());
        let group = self.on_node(node, &format!("setsid sh -c '{command}' >{log} 2>&1 </dev/null & echo $!"))?.trim().to_owned();
        self.broke(Broken::Spawned { node: node.into(), group: group.clone() });
        Ok(group)
    }

    /// Ends it, and waits until it is gone. Once is enough.
    pub fn end_on(&self, node: &str, group: &str) -> Result<()> {
        let gone = format!("! kill -0 -{group} 2>/dev/null");
        let wait = format!("for i in $(seq 100); do if {gone}; then exit 0; fi; sleep 0.2; done; kill -KILL -{group} 2>/dev/null; true");
        self.on_node(node, &format!("kill -TERM -{group} 2>/dev/null; {wait}"))?;
        self.mended(&Broken::Spawned { node: node.into(), group: group.into() });
        Ok(())
    }

    /// `kubectl drain` with these flags. It cordons the node even where it refuses.
    pub fn drain(&self, node: &str, flags: &str) -> Result<String> {
        self.broke(Broken::Cordoned { node: node.into() });
        self.kubectl(&format!("drain {node} {flags}"))
    }

    /// Lets pods be scheduled there again.
    pub fn uncordon(&self, node: &str) -> Result<()> {
        self.kubectl(&format!("uncordon {node}"))?;
        self.mended(&Broken::Cordoned { node: node.into() });
        Ok(())
    }

    fn broke(&self, broken: Broken) {
        self.notes.lock().broken.push(broken);
    }

    fn mended(&self, broken: &Broken) {
        self.notes.lock().broken.retain(|other| other != broken);
    }

    /// Mends what the steps left broken, the last first. The first error is told after all was tried.
    pub(crate) async fn mend_all(&self) -> Result<()> {
        let mut first = Ok(());
        loop {
            let Some(broken) = self.notes.lock().broken.pop() else { return first };
            let done = match broken {
                Broken::Stopped { node, component: Some(component) } => self.start(&node, &component),
                Broken::Stopped { node, component: None } => self.power_on(&node).await,
                Broken::Paused { node, component } => self.resume(&node, &component),
                Broken::Cut { node, peers } => self.mend(&node, &peers),
                Broken::CutOneWay { from, to } => self.mend_one_way(&from, &to),
                Broken::Blocked { node } => self.on_node(&node, &format!("nft delete table ip {BLOCK} || true")).map(|_| ()),
                Broken::Spawned { node, group } => self.end_on(&node, &group),
                Broken::Cordoned { node } => {
                    self.eventually("kubectl uncordon", 30, || async { self.uncordon(&node).map_err(|error| error.to_string()) }).await
                }
            };
            first = first.and(done);
        }
    }

    // ---- asking

    /// `kubectl` with arguments separated by blanks, as administrator. Its output, or why it failed.
    pub fn kubectl(&self, arguments: &str) -> Result<String> {
        self.kubectl_with(&arguments.split_whitespace().collect::<Vec<_>>(), "")
    }

    /// The same with exact arguments and text on its standard input.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new("kubectl");
        command.args(arguments).env("KUBECONFIG", self.sandbox.kubeconfig());
        block_in_place(|| finish(command, input))
    }

    /// This program itself, as administrator.
    pub fn regent(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(std::env::current_exe().map_err(Error::io("finding this program"))?);
        command.args(arguments).env("KUBECONFIG", self.sandbox.kubeconfig());
        block_in_place(|| finish(command, ""))
    }

    /// This program, inside a node.
    pub fn regent_on(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let regent = std::env::current_exe().map_err(Error::io("finding this program"))?.display().to_string();
        let arguments: Vec<String> = std::iter::once(regent).chain(arguments.iter().map(|a| (*a).to_owned())).collect();
        let command = self.sandbox.command(node, &arguments)?;
        block_in_place(|| finish(command, ""))
    }

    /// A shell command on the machine itself.
    pub fn shell(&self, command: &str) -> Result<String> {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]);
        block_in_place(|| finish(shell, ""))
    }

    /// A shell command inside a node.
    pub fn on_node(&self, node: &str, command: &str) -> Result<String> {
        let command = self.sandbox.command(node, &["sh".into(), "-c".into(), command.into()])?;
        block_in_place(|| finish(command, ""))
    }

    /// How often each component was started since its node's boot: node, component, number.
    pub fn starts(&self) -> Vec<(String, String, u32)> {
        let status = block_in_place(|| self.sandbox.status());
        let of = |node: sandbox::cluster::NodeStatus| {
            let name = node.name;
            node.components.into_iter().map(move |component| (name.clone(), component.name, component.starts)).collect::<Vec<_>>()
        };
        status.into_iter().flat_map(of).collect()
    }

    /// The end of a component's log.
    pub fn log_tail(&self, node: &str, component: &str, lines: usize) -> Result<String> {
        let file = self.sandbox.node(node)?.log(component);
        let text = std::fs::read_to_string(&file).map_err(Error::io(format!("reading {}", file.display())))?;
        let all: Vec<&str> = text.lines().collect();
        Ok(all[all.len().saturating_sub(lines)..].join("\n"))
    }

    // ---- waiting

    fn limit(&self, limit_s: u64) -> u64 {
        if self.sabotaged { limit_s.min(SABOTAGED_PATIENCE_S) } else { limit_s }
    }

    /// Waits until the cluster looks right; what `look` says otherwise is in the error. How long it took.
    pub async fn wait(&self, what: &str, limit_s: u64, look: impl Fn(&View) -> std::result::Result<(), String>) -> Result<Duration> {
        let (began, limit_s) = (Instant::now(), self.limit(limit_s));
        let deadline = began + Duration::from_secs(limit_s);
        let mut changes = self.recorder.changes();
        loop {
            let last = match look(&self.recorder.view()) {
                Ok(()) => return Ok(began.elapsed()),
                Err(last) => last,
            };
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                return Err(Error::TooLong { what: what.to_owned(), limit_s, last });
            }
        }
    }

    /// Waits until a look that cannot be watched succeeds.
    pub async fn eventually<F>(&self, what: &str, limit_s: u64, mut look: impl FnMut() -> F) -> Result<()>
    where
        F: Future<Output = std::result::Result<(), String>>,
    {
        let limit_s = self.limit(limit_s);
        let deadline = Instant::now() + Duration::from_secs(limit_s);
        loop {
            match look().await {
                Ok(()) => return Ok(()),
                Err(last) if Instant::now() > deadline => return Err(Error::TooLong { what: what.to_owned(), limit_s, last }),
                Err(_) => tokio::time::sleep(limits::LOOK_EVERY).await,
            }
        }
    }

    /// Lets the fault stand for so long: a drill also shows what does not happen.
    pub async fn hold(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    /// Waits until so many pods of the workload are ready, and every other one is gone.
    pub async fn ready_pods(&self, count: usize, limit_s: u64) -> Result<Duration> {
        self.wait(&format!("{count} ready pods"), limit_s, |view| exactly(view, count)).await
    }

    /// Waits until the API server behind the administrator's kubeconfig is ready.
    pub async fn api_ready(&self, limit_s: u64) -> Result<()> {
        self.eventually("the API server to be ready", limit_s, || async {
            self.kubectl("get --raw /readyz --request-timeout=2s").map(|_| ()).map_err(|error| error.to_string())
        })
        .await
    }

    /// Waits until all is as before, and marks the moment.
    pub async fn recovered(&self) -> Result<()> {
        let limit_s = limits::AS_BEFORE_MAX.as_secs();
        self.wait("all to be as before", limit_s, |view| as_before(&self.before, view, self.replicas)).await?;
        self.notes.lock().recovered = true;
        self.mark(Mark::Recovered, "all is as before".into());
        Ok(())
    }

    pub(crate) fn has_recovered(&self) -> bool {
        self.notes.lock().recovered
    }

    /// Checks that the very pods of before run, and none of their containers was restarted.
    pub fn check_same_pods(&self) {
        let of = |view: &View| view.living(APP).map(|pod| (pod.uid.clone(), pod.restarts)).collect::<std::collections::BTreeMap<_, _>>();
        let (before, now) = (of(&self.before), of(&self.view()));
        self.check("the same pods run, none was restarted", before == now, if before == now { "so".into() } else { self.view().describe() });
    }

    /// Checks that since the first fault no node, pod or endpoint was seen otherwise than before, not for a moment.
    pub fn check_nothing_changed(&self) {
        let changes = self.recorder.with_log(|log| {
            let is_fault = |what: &What| matches!(what, What::Mark { mark: Mark::Fault, .. });
            let since = log.events.iter().skip_while(|event| !is_fault(&event.what));
            let told = since.filter(|event| matches!(event.what, What::Pod(_) | What::PodGone { .. } | What::Node(_) | What::Endpoints(_)));
            told.map(|event| format!("{:?}", event.what)).collect::<Vec<_>>()
        });
        let seen = if changes.is_empty() { "so".into() } else { format!("{} changes, first {}", changes.len(), changes[0]) };
        self.check("no node, pod or endpoint changed, not for a moment", changes.is_empty(), seen);
    }

    /// Scales the workload.
    pub fn scale(&self, replicas: usize) -> Result<()> {
        self.kubectl(&format!("scale -n {NAMESPACE} deployment/{APP} --replicas={replicas}")).map(|_| ())
    }
}

/// The nft table with which a sabotage blocks traffic.
const BLOCK: &str = "drill-sabotage";

/// Whether exactly so many pods are ready and no other is there.
pub fn exactly(view: &View, count: usize) -> std::result::Result<(), String> {
    let (ready, all) = (view.ready(APP).count(), view.pods.values().filter(|pod| pod.app == APP).count());
    if ready == count && all == count { Ok(()) } else { Err(view.describe()) }
}

/// Whether the cluster is as it was: nodes, pods by number, and endpoints that are those pods.
pub(crate) fn as_before(before: &View, now: &View, replicas: usize) -> std::result::Result<(), String> {
    for (name, node) in &before.nodes {
        match now.nodes.get(name) {
            Some(seen) if (seen.ready.as_str(), seen.cordoned, &seen.taints) == (node.ready.as_str(), node.cordoned, &node.taints) => {}
            seen => return Err(format!("{name}: {seen:?}")),
        }
    }
    exactly(now, replicas)?;
    let mut pods: Vec<&str> = now.ready(APP).map(|pod| pod.address.as_str()).collect();
    let mut endpoints = now.ready_endpoints(APP);
    pods.sort_unstable();
    endpoints.sort_unstable();
    if pods == endpoints { Ok(()) } else { Err(format!("the pods are {pods:?}, the endpoints {endpoints:?}")) }
}

/// Runs a command to its end.
pub(crate) fn finish(mut command: Command, input: &str) -> Result<String> {
    let words: Vec<String> = command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let text = format!("{} {}", command.get_program().to_string_lossy(), words.join(" "));
    let failed = |output: String| Error::Command { command: text.clone(), output };
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(format!("{error}; is it installed?")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that ends early closes its input; its exit code says the rest.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return Ok(stdout.into_owned());
    }
    Err(failed(format!("{} {}{}", output.status, stdout, String::from_utf8_lossy(&output.stderr)).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::{Endpoints, Node};

    fn view(ready: bool, endpoints: &[&str]) -> View {
        let mut view = View::default();
        view.apply(&What::Node(Node { name: "n".into(), ready: if ready { "True" } else { "Unknown" }.into(), ..Node::default() }));
        view.apply(&What::Pod(Pod {
            uid: "u".into(),
            app: APP.into(),
            phase: "Running".into(),
            ready: true,
            address: "10.244.1.2".into(),
            ..Pod::default()
        }));
        let ready = endpoints.iter().map(|e| (*e).to_owned()).collect();
        view.apply(&What::Endpoints(Endpoints { slice: "s".into(), service: APP.into(), ready, not_ready: vec![] }));
        view
    }

    #[test]
    fn as_before_means_nodes_pods_and_endpoints() {
        let before = view(true, &["10.244.1.2"]);
        assert_eq!(as_before(&before, &before, 1), Ok(()));
        assert!(as_before(&before, &view(false, &["10.244.1.2"]), 1).unwrap_err().starts_with("n:"));
        assert!(as_before(&before, &view(true, &[]), 1).unwrap_err().contains("endpoints"));
        assert!(as_before(&before, &before, 2).is_err());
    }
}
