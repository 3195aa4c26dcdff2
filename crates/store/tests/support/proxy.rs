//! A wire that can be muted: what the client sends arrives, what comes back does not. So a write is done and its answer lost.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A running proxy; it ends with its value.
pub struct Proxy {
    pub address: SocketAddr,
    muted: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on the address of `to`, at a port of its own, so that the server's certificate fits.
    pub async fn start(to: SocketAddr) -> Proxy {
        let listener = TcpListener::bind((to.ip(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let muted = Arc::new(AtomicBool::new(false));
        let silent = muted.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(join(client, to, silent.clone()));
            }
        });
        Proxy { address, muted, task }
    }

    /// From now on nothing comes back, or does again. What was swallowed breaks its connection when it would go on.
    pub fn mute(&self, muted: bool) {
        self.muted.store(muted, SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn join(client: TcpStream, to: SocketAddr, muted: Arc<AtomicBool>) {
    let Ok(server) = TcpStream::connect(to).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    let mut buffer = vec![0; 1 << 16];
    let mut swallowed = false;
    while let Ok(count) = from_server.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        if muted.load(SeqCst) {
            swallowed = true;
        } else if swallowed || to_client.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    there.abort();
}
