//! systemd units for a server or an agent: flags in, texts out. Pure; [`crate::commands::install`] puts them in their places.
//!
//! One unit runs everything in one process. With `--per-component` a server has one unit per component, each with the flags
//! that Kubernetes has for it, so that every part is started, stopped, limited and read in the journal by itself.
//!
//! What must stay true: stopping or restarting a unit never stops a container (`KillMode=process`; containers are
//! containerd's children); a component that ends is started again, for ever; a secret never stands in a unit, which
//! everybody may read, but in the environment file beside it.

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What the units are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Server,
    Agent,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Server => "server",
            Role::Agent => "agent",
        }
    }
}

/// One unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// With its end: `regent-server.service`.
    pub name: String,
    pub text: String,
}

impl Unit {
    /// The target that has it start at boot.
    pub fn wanted_by(&self) -> &'static str {
        wanted_by(&self.name)
    }
}

fn wanted_by(unit: &str) -> &'static str {
    if is_socket(unit) { "sockets.target" } else { "multi-user.target" }
}

/// Whether a unit is a socket. Such a one is left open by an upgrade.
pub fn is_socket(unit: &str) -> bool {
    unit.ends_with(".socket")
}

/// What the units need to know.
#[derive(Clone, Debug)]
pub struct Settings {
    pub role: Role,
    /// The installed program.
    pub binary: PathBuf,
    /// Holds the secrets, as `NAME=value` lines.
    pub environment_file: PathBuf,
    pub data_dir: PathBuf,
    /// The flags of `regent server` or `regent agent`, as they were given, without secrets.
    pub flags: Vec<String>,
}

/// A component, as `--per-component` makes it a unit.
struct Component {
    unit: &'static str,
    command: &'static str,
    description: &'static str,
    after: &'static [&'static str],
    /// It keeps containers, or rules that containers need.
    on_node: bool,
    /// It answers look-ups, on sockets that outlive it.
    resolves: bool,
    own_flags: fn(&Settings) -> Vec<String>,
}

/// In the order in which they start; an upgrade restarts them in it.
const COMPONENTS: &[Component] = &[
    Component {
        unit: "kube-apiserver",
        command: "apiserver",
        description: "Kubernetes API server (Regent)",
        after: &["network-online.target"],
        on_node: false,
        resolves: false,
        own_flags: |settings| {
            let pki = |name: &str| pki(settings).join(name).display().to_string();
            vec![
                format!("--data-dir={}", settings.data_dir.join("server").display()),
                format!("--tls-cert-file={}", pki("apiserver.crt")),
                format!("--tls-private-key-file={}", pki("apiserver.key")),
                format!("--client-ca-file={}", pki("ca.crt")),
                format!("--service-account-signing-key-file={}", pki("sa.key")),
                format!("--kubelet-client-certificate={}", pki("apiserver-kubelet-client.crt")),
                format!("--kubelet-client-key={}", pki("apiserver-kubelet-client.key")),
                format!("--kubelet-certificate-authority={}", pki("ca.crt")),
                format!("--pki-dir={}", self::pki(settings).display()),
                format!("--cert-dir={}", self::pki(settings).display()),
            ]
        },
    },
    Component {
        unit: "kube-controller-manager",
        command: "controller-manager",
        description: "Kubernetes controller manager (Regent)",
        after: &["kube-apiserver.service"],
        on_node: false,
        resolves: false,
        own_flags: |settings| {
            let pki = |name: &str| pki(settings).join(name).display().to_string();
            vec![
                format!("--kubeconfig={}", pki("controller-manager.kubeconfig")),
                format!("--cluster-signing-cert-file={}", pki("ca.crt")),
                format!("--cluster-signing-key-file={}", pki("ca.key")),
                format!("--root-ca-file={}", pki("ca.crt")),
            ]
        },
    },
    Component {
        unit: "kube-scheduler",
        command: "scheduler",
        description: "Kubernetes scheduler (Regent)",
        after: &["kube-apiserver.service"],
        on_node: false,
        resolves: false,
        own_flags: |settings| vec![kubeconfig(settings, "scheduler")],
    },
    Component {
        unit: "kubelet",
        command: "kubelet",
        description: "Kubernetes node agent (Regent)",
        after: &["network-online.target", "containerd.service"],
        on_node: true,
        resolves: false,
        own_flags: |settings| {
            let pki = |name: &str| pki(settings).join(name).display().to_string();
            vec![
                kubeconfig(settings, "kubelet"),
                format!("--root-dir={}", settings.data_dir.join("node").display()),
                format!("--tls-cert-file={}", pki("kubelet.crt")),
                format!("--tls-private-key-file={}", pki("kubelet.key")),
                format!("--client-ca-file={}", pki("ca.crt")),
            ]
        },
    },
    Component {
        unit: "kube-proxy",
        command: "proxy",
        description: "Kubernetes Service routing (Regent)",
        after: &["network-online.target"],
        on_node: true,
        resolves: false,
        own_flags: |settings| vec![kubeconfig(settings, "proxy"), format!("--root-dir={}", settings.data_dir.join("node").display())],
    },
    Component {
        unit: "kube-dns",
        command: "dns",
        description: "Kubernetes cluster DNS of this node (Regent)",
        after: &["network-online.target"],
        on_node: true,
        resolves: true,
        own_flags: |settings| vec![kubeconfig(settings, "dns"), format!("--root-dir={}", settings.data_dir.join("node").display())],
    },
];

/// The directory of the keys of a server that is installed per component.
pub fn pki(settings: &Settings) -> PathBuf {
    settings.data_dir.join("server/pki")
}

fn kubeconfig(settings: &Settings, name: &str) -> String {
    format!("--kubeconfig={}", pki(settings).join(format!("{name}.kubeconfig")).display())
}

/// Everything in one process.
pub fn single(settings: &Settings) -> Vec<Unit> {
    let role = settings.role.name();
    let mut flags = vec![format!("--data-dir={}", settings.data_dir.display())];
    flags.extend(settings.flags.iter().cloned());
    let service = Service {
        description: format!("Regent {role}"),
        after: &["network-online.target", "containerd.service"],
        command: role,
        flags,
        on_node: true,
        sockets: (!settings.flags.iter().any(|flag| flag.starts_with("--disable=") && flag.contains("agent")))
            .then(|| format!("regent-{role}.socket")),
    };
    units(format!("regent-{role}.service"), &service, settings)
}

/// The unit of a service, after that of its sockets.
fn units(name: String, service: &Service<'_>, settings: &Settings) -> Vec<Unit> {
    let socket = service.sockets.iter().map(|socket| Unit { name: socket.clone(), text: socket_text(&name, settings) });
    let mut all: Vec<Unit> = socket.collect();
    all.push(Unit { text: service.text(settings), name });
    all
}

/// systemd holds the sockets of the cluster DNS: a question that comes while its process restarts waits, and is answered.
fn socket_text(service: &str, settings: &Settings) -> String {
    let address = settings.flags.iter().find_map(|flag| flag.strip_prefix("--cluster-dns=")).unwrap_or("10.96.0.10");
    format!(
        "# Made by `regent install`; `regent uninstall` removes it.\n\
         [Unit]\n\
         Description=Look-ups of this node's pods, kept while what answers them restarts (Regent)\n\
         \n\
         [Socket]\n\
         ListenDatagram={address}:53\n\
         ListenStream={address}:53\n\
         FreeBind=true\n\
         Service={service}\n\
         \n\
         [Install]\n\
         WantedBy={}\n",
        wanted_by(".socket")
    )
}

/// One unit per component. `takes` says whether a component knows a flag; a flag that none knows is an error.
pub fn per_component(settings: &Settings, takes: impl Fn(&str, &str) -> bool) -> Result<Vec<Unit>, String> {
    let name_of = |flag: &String| flag.trim_start_matches("--").split('=').next().unwrap_or_default().to_owned();
    for flag in &settings.flags {
        if !COMPONENTS.iter().any(|component| takes(component.command, &name_of(flag))) {
            return Err(format!("--{} belongs to no single component; leave it out, or install without --per-component", name_of(flag)));
        }
    }
    let units = COMPONENTS.iter().flat_map(|component| {
        let mut flags = (component.own_flags)(settings);
        let own: Vec<String> = flags.iter().map(name_of).collect();
        flags.extend(settings.flags.iter().filter(|flag| takes(component.command, &name_of(flag)) && !own.contains(&name_of(flag))).cloned());
        let service = Service {
            description: component.description.into(),
            after: component.after,
            command: component.command,
            flags,
            on_node: component.on_node,
            sockets: component.resolves.then(|| format!("{}.socket", component.unit)),
        };
        units(format!("{}.service", component.unit), &service, settings)
    });
    Ok(units.collect())
}

struct Service<'a> {
    description: String,
    after: &'a [&'a str],
    command: &'a str,
    flags: Vec<String>,
    on_node: bool,
    /// The unit of the sockets that it is given.
    sockets: Option<String>,
}

impl Service<'_> {
    fn text(&self, settings: &Settings) -> String {
        let mut exec = format!("{} {}", quoted(&settings.binary.display().to_string()), self.command);
        for flag in &self.flags {
            let _ = write!(exec, " \\\n  {}", quoted(flag));
        }
        let node = if self.on_node {
            // Containers outlive the component; its pods' cgroups are its own to make; it should be the last to be killed.
            "KillMode=process\nDelegate=yes\nOOMScoreAdjust=-999\n"
        } else {
            ""
        };
        let sockets = self.sockets.iter().fold(String::new(), |text, socket| text + "Sockets=" + socket + "\n");
        format!(
            "# Made by `regent install`; `regent uninstall` removes it.\n\
             [Unit]\n\
             Description={}\n\
             Documentation=https://kubernetes.io/docs/\n\
             After={after}\n\
             Wants={after}\n\
             StartLimitIntervalSec=0\n\
             \n\
             [Service]\n\
             Type=exec\n\
             EnvironmentFile=-{}\n\
             ExecStart={exec}\n\
             Restart=always\n\
             RestartSec=1\n\
             TimeoutStopSec=30\n\
             LimitNOFILE=1048576\n\
             LimitNPROC=infinity\n\
             LimitCORE=infinity\n\
             TasksMax=infinity\n\
             {node}{sockets}\n\
             [Install]\n\
             WantedBy={}\n",
            self.description,
            settings.environment_file.display(),
            wanted_by(".service"),
            after = self.after.join(" "),
        )
    }
}

/// A word as systemd reads it back: quoted where it must be, `%` and `$` without their meaning.
fn quoted(word: &str) -> String {
    let escaped = word.replace('%', "%%").replace('$', "$$");
    if escaped.chars().any(|c| c.is_whitespace() || matches!(c, '"' | '\'' | '\\' | ';')) {
        format!("\"{}\"", escaped.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        escaped
    }
}

/// Takes the values of secret flags out: what is left, and the lines of the environment file.
pub fn without_secrets(flags: &[String]) -> (Vec<String>, String) {
    let (mut rest, mut environment) = (Vec::new(), String::new());
    let mut flags = flags.iter();
    while let Some(flag) = flags.next() {
        let value = match flag.strip_prefix("--token") {
            Some("") => flags.next().cloned(),
            Some(value) => value.strip_prefix('=').map(str::to_owned),
            None => None,
        };
        match value {
            Some(value) => environment = format!("REGENT_TOKEN={value}\n"),
            None => rest.push(flag.clone()),
        }
    }
    (rest, environment)
}

/// Flags as `--name=value`, whether they were given in one word or in two. `is_switch` knows those without a value.
pub fn joined(flags: &[String], is_switch: impl Fn(&str) -> bool) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut flags = flags.iter().peekable();
    while let Some(flag) = flags.next() {
        let alone = flag.contains('=') || is_switch(flag.trim_start_matches("--"));
        match flags.peek() {
            Some(value) if flag.starts_with("--") && !alone => {
                words.push(format!("{flag}={value}"));
                flags.next();
            }
            _ => words.push(flag.clone()),
        }
    }
    words
}

/// Where units are installed, below the root.
pub fn directory(root: &Path) -> PathBuf {
    root.join("etc/systemd/system")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(role: Role, flags: &[&str]) -> Settings {
        Settings {
            role,
            binary: "/usr/local/bin/regent".into(),
            environment_file: "/etc/regent/regent.env".into(),
            data_dir: "/var/lib/regent".into(),
            flags: flags.iter().map(|flag| flag.to_string()).collect(),
        }
    }

    #[test]
    fn an_agent_is_one_unit_that_leaves_containers_alone() {
        let units = single(&settings(Role::Agent, &["--server=https://10.0.0.1:6443", "--node-labels=a b=c%d"]));
        assert_eq!(units.iter().map(|unit| unit.name.as_str()).collect::<Vec<_>>(), ["regent-agent.socket", "regent-agent.service"]);
        assert!(units[0].text.contains("ListenDatagram=10.96.0.10:53\nListenStream=10.96.0.10:53\nFreeBind=true\nService=regent-agent.service\n"));
        let text = &units[1].text;
        for line in [
            "KillMode=process",
            "Delegate=yes",
            "Restart=always",
            "Sockets=regent-agent.socket",
            "LimitNOFILE=1048576",
            "After=network-online.target containerd.service",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(
            text.contains("ExecStart=/usr/local/bin/regent agent \\\n  --data-dir=/var/lib/regent \\\n  --server=https://10.0.0.1:6443"),
            "{text}"
        );
        assert!(text.contains("\"--node-labels=a b=c%%d\""), "{text}");
    }

    #[test]
    fn per_component_every_flag_goes_to_those_who_know_it() {
        let takes = |component: &str, flag: &str| match flag {
            "etcd-servers" => component == "apiserver",
            "cluster-cidr" => ["controller-manager", "kubelet", "proxy"].contains(&component),
            _ => false,
        };
        let units = per_component(&settings(Role::Server, &["--etcd-servers=https://10.0.0.1:2379", "--cluster-cidr=10.244.0.0/16"]), takes).unwrap();
        let with = |flag: &str| units.iter().filter(|unit| unit.text.contains(flag)).map(|unit| unit.name.as_str()).collect::<Vec<_>>();
        assert_eq!(with("--etcd-servers="), ["kube-apiserver.service"]);
        assert_eq!(with("--cluster-cidr="), ["kube-controller-manager.service", "kubelet.service", "kube-proxy.service"]);
        assert_eq!(with("Sockets=kube-dns.socket"), ["kube-dns.service"]);
        assert_eq!(with("KillMode=process"), ["kubelet.service", "kube-proxy.service", "kube-dns.service"]);
        let error = per_component(&settings(Role::Server, &["--cluster-init"]), takes).unwrap_err();
        assert!(error.contains("--cluster-init"), "{error}");
    }

    #[test]
    fn secrets_do_not_stand_in_units() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for text in ["--server https://a --token abc --reserved", "--server https://a --token=abc --reserved"] {
            let (rest, environment) = without_secrets(&words(text));
            assert_eq!(environment, "REGENT_TOKEN=abc\n");
            assert_eq!(joined(&rest, |name| name == "reserved"), ["--server=https://a", "--reserved"]);
        }
        assert_eq!(without_secrets(&words("--token-auth-file /f")).0.len(), 2);
    }
}
