//! `regent node`: this node's own pods, asked of its own agent. No server is needed.

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use futures::{AsyncBufReadExt, TryStreamExt};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::{
    Api, ResourceExt,
    api::{AttachParams, ListParams, LogParams},
};
use node::local::{SOCKET, Status};
use std::{io::Write, path::PathBuf};

/// The most of an answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[derive(Args)]
pub struct Node {
    #[command(subcommand)]
    command: Command,
    /// Where the node keeps its state.
    #[arg(long, global = true, default_value = crate::checkpoint::ROOT_DIR)]
    root_dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// How this node stands: pods, servers, checkpoint.
    Status {
        #[arg(short, long, value_parser = ["text", "json"], default_value = "text")]
        output: String,
    },
    /// This node's pods, as it sees them itself.
    Pods {
        #[arg(short, long, value_parser = ["text", "json"], default_value = "text")]
        output: String,
    },
    /// What a container has written.
    Logs {
        #[command(flatten)]
        which: Which,
        #[arg(short, long)]
        follow: bool,
        /// The log of the container's run before this one.
        #[arg(short, long)]
        previous: bool,
        /// Only the last lines.
        #[arg(long)]
        tail: Option<i64>,
    },
    /// Run a command in a container. It gets no standard input: the runtime's protocol cannot tell it where that ends.
    Exec {
        #[command(flatten)]
        which: Which,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Restart a pod's containers, or one of them.
    Restart {
        #[command(flatten)]
        which: Which,
    },
}

/// A container of a pod.
#[derive(Args)]
struct Which {
    /// The pod, as NAME or NAMESPACE/NAME.
    pod: String,
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// [default: the pod's first; for restart all]
    #[arg(short, long)]
    container: Option<String>,
}

impl Which {
    fn place(&self) -> (&str, &str) {
        self.pod.split_once('/').unwrap_or((&self.namespace, &self.pod))
    }
}

pub fn run(arguments: Node) -> Result<()> {
    let socket = arguments.root_dir.join(SOCKET);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let client = || client::socket::client(&socket);
    let asked = async {
        match arguments.command {
            Command::Status { output } => status(&client(), output == "json").await,
            Command::Pods { output } => pods(&client(), output == "json").await,
            Command::Logs { which, follow, previous, tail } => logs(client(), &which, follow, previous, tail).await,
            Command::Exec { which, command } => exec(client(), &which, command).await,
            Command::Restart { which } => restart(&client(), &which).await,
        }
    };
    let result = runtime.block_on(asked);
    drop(runtime);
    match result {
        // What the agent itself said needs no explanation.
        Err(error) if error.downcast_ref::<kube::Error>().is_some_and(client::ErrorExt::is_answer) => {
            bail!("{}", error.downcast_ref::<kube::Error>().map(client::ErrorExt::short).unwrap_or_default())
        }
        other => other.with_context(|| format!("asking this node's agent at {} (does it run, and is this root?)", socket.display())),
    }
}

async fn status(client: &kube::Client, as_json: bool) -> Result<()> {
    let request = http::Request::get("/regent/v1/status").body(Vec::new())?;
    let text = client.request_text(request).await?;
    if as_json {
        println!("{text}");
        return Ok(());
    }
    let status: Status = serde_json::from_str(&text)?;
    let server = match (status.has_server, status.is_stale) {
        (true, _) => "answers",
        (false, true) => "none has answered since the agent started; this is what the checkpoint held",
        (false, false) => "none answers now",
    };
    println!("node        {} ({})", status.node, status.address);
    println!("agent       since {}", status.started_at);
    println!("server      {server}");
    println!("pods        {} ({} ready)", status.pods, status.pods_ready);
    println!("to report   {} statuses", status.statuses_waiting);
    match &status.checkpoint {
        None => println!("checkpoint  none: with no server this node does not come back after a restart"),
        Some(kept) => {
            let left_out = if kept.left_out > 0 { format!(", {} rows had no place", kept.left_out) } else { String::new() };
            let written = if kept.is_written { "" } else { ", not all is on disk yet" };
            println!("checkpoint  {} rows, {} KiB in {}{left_out}{written}", kept.rows, kept.bytes / 1024, kept.path.display());
        }
    }
    let damage = status.checkpoint.iter().flat_map(|kept| kept.damage.iter());
    status.problems.iter().chain(damage).for_each(|problem| println!("problem     {problem}"));
    Ok(())
}

async fn pods(client: &kube::Client, as_json: bool) -> Result<()> {
    let api: Api<Pod> = Api::all(client.clone());
    let list = api.list(&ListParams::default()).await?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&list)?);
        return Ok(());
    }
    let rows: Vec<[String; 6]> = list.iter().map(row).collect();
    let head = ["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "IP"].map(str::to_owned);
    let width = |column: usize| std::iter::once(&head).chain(&rows).map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for row in std::iter::once(&head).chain(&rows) {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", line.join("   ").trim_end());
    }
    Ok(())
}

/// A pod as one line of text.
fn row(pod: &Pod) -> [String; 6] {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.clone().unwrap_or_default();
    let all = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
    let restarts: i32 = containers.iter().map(|container| container.restart_count).sum();
    let waiting = |container: &ContainerStatus| container.state.as_ref()?.waiting.as_ref()?.reason.clone();
    let word = if pod.metadata.deletion_timestamp.is_some() {
        "Terminating".to_owned()
    } else {
        containers.iter().find_map(waiting).or(status.reason).or(status.phase).unwrap_or_else(|| "Pending".into())
    };
    let ready = containers.iter().filter(|container| container.ready).count();
    [pod.namespace().unwrap_or_default(), pod.name_any(), format!("{ready}/{all}"), word, restarts.to_string(), status.pod_ip.unwrap_or_default()]
}

async fn logs(client: kube::Client, which: &Which, follow: bool, previous: bool, tail: Option<i64>) -> Result<()> {
    let (namespace, name) = which.place();
    let api: Api<Pod> = Api::namespaced(client, namespace);
    let params = LogParams { container: which.container.clone(), follow, previous, tail_lines: tail, ..LogParams::default() };
    let mut lines = api.log_stream(name, &params).await?.lines();
    while let Some(line) = lines.try_next().await? {
        println!("{line}");
    }
    Ok(())
}

async fn exec(client: kube::Client, which: &Which, command: Vec<String>) -> Result<()> {
    let (namespace, name) = which.place();
    let api: Api<Pod> = Api::namespaced(client, namespace);
    let params = AttachParams { container: which.container.clone(), stdin: false, ..AttachParams::default() };
    let mut process = api.exec(name, command, &params).await?;
    let (out, errors, end) = (process.stdout(), process.stderr(), process.take_status());
    tokio::try_join!(pass(out, tokio::io::stdout()), pass(errors, tokio::io::stderr()))?;
    let status = match end {
        Some(end) => end.await,
        None => None,
    };
    let Some(status) = status.filter(|status| status.status.as_deref() == Some("Failure")) else { return Ok(()) };
    let causes = status.details.as_ref().and_then(|details| details.causes.as_deref()).unwrap_or_default();
    let code = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode")).and_then(|cause| cause.message.as_ref()?.parse().ok());
    match code {
        Some(code) => {
            std::io::stdout().flush()?;
            std::process::exit(code)
        }
        None => bail!("{}", status.message.unwrap_or_default()),
    }
}

/// Copies a stream of the container's to one of ours.
async fn pass(from: Option<impl tokio::io::AsyncRead + Unpin>, mut to: impl tokio::io::AsyncWrite + Unpin) -> std::io::Result<()> {
    if let Some(mut from) = from {
        tokio::io::copy(&mut from, &mut to).await?;
        tokio::io::AsyncWriteExt::flush(&mut to).await?;
    }
    Ok(())
}

async fn restart(client: &kube::Client, which: &Which) -> Result<()> {
    let (namespace, name) = which.place();
    let query = which.container.as_ref().map(|container| format!("?container={container}")).unwrap_or_default();
    let request = http::Request::post(format!("/regent/v1/restart/{namespace}/{name}{query}")).body(kube::client::Body::empty())?;
    let answer = client.send(request).await?;
    let code = answer.status();
    let body = http_body_util::Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    let value: serde_json::Value = serde_json::from_slice(&body)?;
    if !code.is_success() {
        bail!("{}", value["message"].as_str().unwrap_or("the agent refused"));
    }
    let names: Vec<&str> = value["restarted"].as_array().into_iter().flatten().filter_map(|name| name.as_str()).collect();
    println!("restarted {}", names.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_one_line() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "containers": [{ "name": "a" }, { "name": "b" }] },
            "status": { "phase": "Running", "podIP": "10.244.1.5", "containerStatuses": [
                { "name": "a", "ready": true, "restartCount": 2, "image": "", "imageID": "", "state": { "running": {} } },
                { "name": "b", "ready": false, "restartCount": 1, "image": "", "imageID": "", "state": { "waiting": { "reason": "CrashLoopBackOff" } } },
            ] },
        }))
        .unwrap();
        assert_eq!(row(&pod), ["shop", "web", "1/2", "CrashLoopBackOff", "3", "10.244.1.5"]);
        let which = Which { pod: "shop/web".into(), namespace: "default".into(), container: None };
        assert_eq!(which.place(), ("shop", "web"));
    }
}
