//! What every component's process does: logging, signals, a runtime, TLS' crypto provider.

use anyhow::{Context, Result};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// When a component has surely started.
const STARTED: Duration = Duration::from_secs(10);

/// Runs a component until it ends, or until SIGTERM or SIGINT and then the end that it finds by itself.
pub fn run<F>(component: impl FnOnce(CancellationToken) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    run_logging("info", component)
}

/// The same with another level of log unless `REGENT_LOG` says one.
pub fn run_logging<F>(level: &str, component: impl FnOnce(CancellationToken) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let filter = EnvFilter::try_from_env("REGENT_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    pki::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        let token = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
            tracing::info!("asked to stop");
            token.cancel();
            // A second signal does not wait for anything.
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
            std::process::exit(1);
        });
        tokio::spawn(async {
            tokio::time::sleep(STARTED).await;
            crate::pages::give_back();
        });
        component(shutdown).await
    })
}

/// The machine's name, as nodes and election candidates are called.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_lowercase()
}
