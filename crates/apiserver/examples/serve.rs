//! An API server alone, for trying clients on: `cargo run -p apiserver --example serve -- PORT KUBECONFIG [DATA_DIRECTORY]`.
//!
//! Serves on loopback with a CA of its own, writes an administrator's kubeconfig, keeps its objects in memory (or in
//! SQLite if a directory is given), and ends on Ctrl-C.

use apiserver::{Config, Server};
use std::{net::IpAddr, path::PathBuf, sync::Arc};
use store::{Store, memory::Memory, sqlite::Sqlite};

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: serve PORT KUBECONFIG [DATA_DIRECTORY]";
    let port: u16 = arguments.next().ok_or(usage)?.parse()?;
    let kubeconfig: PathBuf = arguments.next().ok_or(usage)?.into();
    let store: Arc<dyn Store> = match arguments.next() {
        Some(directory) => Arc::new(Sqlite::open(directory.as_ref())?),
        None => Arc::new(Memory::default()),
    };
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_writer(std::io::stderr).init();
    pki::tls::install_provider();
    let authority = pki::Authority::generate("kubernetes-ca")?;
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let serving = authority.issue(&pki::Identity::server("kube-apiserver", vec!["127.0.0.1".into(), "localhost".into()]))?;
    let admin = authority.issue(&pki::Identity::admin())?;
    pki::Kubeconfig::of(&format!("https://127.0.0.1:{port}"), &admin, "kubernetes-admin").write(&kubeconfig)?;
    let mut config = Config::new(store);
    config.advertise_address = loopback;
    config.secure_port = port;
    config.authentication.client_authorities_pem = Some(authority.certificate_pem().to_string());
    let shutdown = config.shutdown.clone();
    let started = std::time::Instant::now();
    let server = Server::new(config).await?;
    let listener = tokio::net::TcpListener::bind((loopback, port)).await?;
    eprintln!("serving on 127.0.0.1:{port} after {:?}", started.elapsed());
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    server.serve(listener, pki::tls::server(&serving)?, shutdown).await?;
    Ok(())
}
