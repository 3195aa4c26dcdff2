//! The shell around nftables: one transaction in, applied as a whole or not at all.
//!
//! `nft -f -` is the interface: one netlink transaction per run. Nothing is decided here.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::limits;

/// Why the kernel does not have a transaction.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `nft` could not be run; install Debian's package `nftables`.
    #[error("cannot run nft")]
    Run(#[source] std::io::Error),
    /// It did not end in time and was killed.
    #[error("nft did not end in time")]
    Timeout,
    /// The transaction was refused as a whole; the kernel has what it had.
    #[error("nft refused the transaction: {0}")]
    Refused(String),
}

/// What takes the transactions: [`Nft`], the kernel of this node, unless there is none under it.
pub trait Tables: Send + Sync {
    /// Applies the transaction, as a whole or not at all.
    fn apply(&self, transaction: &str) -> impl Future<Output = Result<(), Error>> + Send;
    /// Whether the table with its base chains is there.
    fn has_chain(&self, table: &str, chain: &str) -> impl Future<Output = Result<bool, Error>> + Send;
}

impl Tables for Nft {
    async fn apply(&self, transaction: &str) -> Result<(), Error> {
        Nft::apply(self, transaction).await
    }

    async fn has_chain(&self, table: &str, chain: &str) -> Result<bool, Error> {
        Nft::has_chain(self, table, chain).await
    }
}

/// How `nft` is run: directly, or through other commands (tests run it in a network namespace).
#[derive(Clone, Debug, Default)]
pub struct Nft {
    prefix: Vec<String>,
}

impl Nft {
    /// Runs `nft` through these words, such as `ip netns exec NAME`.
    pub fn through(prefix: impl IntoIterator<Item = impl Into<String>>) -> Nft {
        Nft { prefix: prefix.into_iter().map(Into::into).collect() }
    }

    /// Applies the transaction.
    pub async fn apply(&self, transaction: &str) -> Result<(), Error> {
        self.run(&["-f", "-"], transaction).await
    }

    /// Whether the table with its base chains is in the kernel.
    pub async fn has_chain(&self, table: &str, chain: &str) -> Result<bool, Error> {
        match self.run(&["list", "chain", "ip", table, chain], "").await {
            Ok(()) => Ok(true),
            Err(Error::Refused(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Result<(), Error> {
        let mut words = self.prefix.iter().map(String::as_str).chain(["nft"]).chain(arguments.iter().copied());
        let mut command = Command::new(words.next().unwrap_or("nft"));
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let work = async {
            let mut child = command.spawn().map_err(Error::Run)?;
            if let Some(mut stdin) = child.stdin.take() {
                // A refusal may close the pipe early; what it says is read below.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            child.wait_with_output().await.map_err(Error::Run)
        };
        let output = tokio::time::timeout(limits::NFT_TIMEOUT, work).await.map_err(|_| Error::Timeout)??;
        if output.status.success() {
            Ok(())
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(Error::Refused(said.chars().take(2000).collect::<String>().trim().to_owned()))
        }
    }
}
