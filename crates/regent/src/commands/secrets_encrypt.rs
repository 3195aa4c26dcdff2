//! `regent secrets-encrypt`: which keys the stored objects are encrypted with, and changing them.

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Args)]
pub struct SecretsEncrypt {
    /// The administrator's kubeconfig.
    #[arg(long, global = true, env = "KUBECONFIG", default_value = "/var/lib/regent/admin.kubeconfig")]
    kubeconfig: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show how many objects are stored under which key.
    Status {
        /// The answer as it came.
        #[arg(long)]
        json: bool,
    },
    /// Make a new key, and encrypt with it from now on; the keys before stay for reading.
    Rotate,
    /// Encrypt everything with the newest key that is not.
    Reencrypt,
}

pub fn run(arguments: SecretsEncrypt) -> Result<()> {
    crate::runtime::run(|_| async move {
        let client = client::transport::from_kubeconfig(&arguments.kubeconfig).await?;
        match arguments.action {
            Action::Status { json } => {
                let status = ask(&client, None).await?;
                if json {
                    println!("{status:#}");
                } else {
                    print!("{}", shown(&status));
                }
            }
            Action::Rotate => {
                let done = ask(&client, Some("rotate")).await?;
                println!(
                    "New objects are encrypted with {}; `regent secrets-encrypt reencrypt` does the same to all others.",
                    done["key"].as_str().unwrap_or("a new key")
                );
            }
            Action::Reencrypt => {
                let done = ask(&client, Some("reencrypt")).await?;
                println!("{} objects were encrypted anew; {} were already.", done["rewritten"], done["current"]);
                if done["left"].as_u64().unwrap_or_default() > 0 {
                    println!("{} were changed by others all the time; run this again.", done["left"]);
                }
            }
        }
        Ok(())
    })
}

async fn ask(client: &kube::Client, action: Option<&str>) -> Result<Value> {
    let request = http::Request::builder().uri(apiserver::encryption::PATH).header("content-type", "application/json");
    let request = match action {
        None => request.method("GET").body(vec![]),
        Some(action) => request.method("POST").body(json!({"action": action}).to_string().into_bytes()),
    };
    let text = client.request_text(request.context("the request")?).await.context("asking the API server for its encryption keys")?;
    serde_json::from_str(&text).context("the API server's answer is no JSON")
}

/// A table: resource, key, objects.
fn shown(status: &Value) -> String {
    let mut out = format!("Keys: {}\n{:<24} {:<48} OBJECTS\n", status["source"].as_str().unwrap_or("?"), "RESOURCE", "KEY");
    for resource in status["resources"].as_array().into_iter().flatten() {
        let (name, writes) = (resource["resource"].as_str().unwrap_or("?"), resource["writes"].as_str().unwrap_or("?"));
        let mut keys: Vec<&str> = resource["reads"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let stored = resource["stored"].as_object();
        let others = stored.into_iter().flatten().map(|(key, _)| key.as_str()).filter(|key| !keys.contains(key)).collect::<Vec<_>>();
        keys.extend(others);
        for key in keys {
            let count = stored.and_then(|stored| stored.get(key)).and_then(Value::as_u64).unwrap_or_default();
            let mark = if key == writes { " (new objects)" } else { "" };
            out += &format!("{name:<24} {:<48} {count}\n", format!("{key}{mark}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_every_key() {
        let status = json!({"source": "here", "resources": [{"resource": "secrets", "writes": "aesgcm:b", "reads": ["aesgcm:b", "aesgcm:a", "identity"], "stored": {"aesgcm:a": 3, "aesgcm:lost": 1}}]});
        let text = shown(&status);
        for line in [&format!("{:<48} 0", "aesgcm:b (new objects)"), &format!("{:<48} 3", "aesgcm:a"), &format!("{:<48} 1", "aesgcm:lost")] {
            assert!(text.contains(line), "{text}");
        }
    }
}
