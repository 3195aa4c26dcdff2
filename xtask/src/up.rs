//! `make up`: a sandbox that serves nginx, shown to be so.

use crate::shell::{self, show};
use anyhow::{Context, Result};
use std::path::Path;

/// The addresses of the sandbox's nodes, in order.
const NODES: [(&str, &str); 4] = [("server-1", "172.30.0.11"), ("worker-1", "172.30.0.21"), ("worker-2", "172.30.0.22"), ("worker-3", "172.30.0.23")];
const NODE_PORT: u16 = 31000;

pub fn run(regent: &Path) -> Result<()> {
    let binary = regent.display().to_string();
    show(&binary, &["sandbox", "up"], &[])?;
    let kubeconfig = shell::sh(&binary, &["sandbox", "kubeconfig"])?.trim().to_string();
    let environment = [("KUBECONFIG", kubeconfig.as_str())];
    let kubectl = |arguments: &[&str]| {
        eprintln!("$ kubectl {}", arguments.join(" "));
        show("kubectl", arguments, &environment)
    };
    shell::nodes_ready(&kubeconfig)?;
    kubectl(&["apply", "-f", "examples/nginx-deploy.yaml", "-f", "examples/nginx-svc.yaml"])?;
    kubectl(&["rollout", "status", "deployment/nginx-deploy", "--timeout=60s"])?;
    kubectl(&["get", "all", "-o", "wide"])?;
    for (name, address) in NODES {
        let url = format!("http://{address}:{NODE_PORT}/");
        let page = shell::sh("curl", &["--silent", "--show-error", "--fail", "--max-time", "5", "--retry", "5", "--retry-connrefused", &url])
            .with_context(|| format!("asking {name}"))?;
        let title = page.lines().find(|line| line.contains("<title>")).unwrap_or("(no title)").trim();
        println!("$ curl {url}   # {name}\n{title}");
    }
    println!(
        "\nThe cluster serves nginx on port {NODE_PORT} of every node. What to type next:\n\
         \x20 export KUBECONFIG={kubeconfig}\n\
         \x20 kubectl get pods -o wide -w\n\
         \x20 {0} sandbox stop worker-2       # cut a node's power, and watch; `start worker-2` brings it back\n\
         \x20 {0} sandbox stop server-1       # cut the master's power: nginx goes on answering\n\
         \x20 make down                       # take all of it away",
        regent.display()
    );
    Ok(())
}
