//! The pod's sandbox: names, labels, DNS, host ports, hosts file.

use super::{PodId, names, resources, security};
use cri::v1::{DnsConfig, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol};
use k8s_openapi::api::core::v1::Pod;
use std::{collections::HashMap, net::IpAddr, path::Path};

/// The longest host name that Linux takes.
const HOST_NAME_BYTES_MAX: usize = 63;

/// The node's DNS settings, as far as pods see them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// The cluster's name server.
    pub cluster_servers: Vec<String>,
    /// Such as `cluster.local`.
    pub cluster_domain: String,
    /// What the node itself uses.
    pub node: Resolver,
}

/// The contents of a resolver configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl Resolver {
    /// Reads `/etc/resolv.conf`'s form; the last `search` line counts.
    pub fn parse(text: &str) -> Resolver {
        let mut out = Resolver::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => out.servers.extend(words.next().map(str::to_owned)),
                Some("search") => out.searches = words.map(|word| word.trim_end_matches('.').to_owned()).filter(|word| !word.is_empty()).collect(),
                Some("options") => out.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        out
    }
}

/// The pod's host name and, if it has a subdomain, its domain.
pub fn host_name_and_domain(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = super::spec_of(pod);
    let name = pod.metadata.name.clone().unwrap_or_default();
    if let Some(full) = spec.hostname_override.as_deref().filter(|name| !name.is_empty()) {
        return (full.to_owned(), String::new());
    }
    let mut host_name = spec.hostname.clone().filter(|name| !name.is_empty()).unwrap_or(name);
    host_name.truncate(HOST_NAME_BYTES_MAX);
    let host_name = host_name.trim_end_matches(['-', '.']).to_owned();
    let domain = match spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty()) {
        Some(subdomain) => format!("{subdomain}.{}.svc.{cluster_domain}", pod.metadata.namespace.as_deref().unwrap_or_default()),
        None => String::new(),
    };
    (host_name, domain)
}

/// What the pod's resolver configuration holds, by its policy and its own additions.
pub fn resolver(pod: &Pod, dns: &Dns) -> Resolver {
    let spec = super::spec_of(pod);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let host_network = spec.host_network.unwrap_or(false);
    let mut out = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => Resolver::default(),
        "Default" => dns.node.clone(),
        "ClusterFirst" if host_network => dns.node.clone(),
        _ if dns.cluster_servers.is_empty() => dns.node.clone(),
        _ => {
            let domain = &dns.cluster_domain;
            let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            searches.extend(dns.node.searches.iter().cloned());
            Resolver { servers: dns.cluster_servers.clone(), searches, options: vec!["ndots:5".into()] }
        }
    };
    if let Some(own) = &spec.dns_config {
        out.servers.extend(own.nameservers.iter().flatten().cloned());
        out.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            out.options.retain(|known| known.split(':').next() != Some(name));
            out.options.push(match &option.value {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.clone(),
            });
        }
    }
    let once = |list: &mut Vec<String>| {
        let mut seen = std::collections::HashSet::new();
        list.retain(|item| seen.insert(item.clone()));
    };
    once(&mut out.servers);
    once(&mut out.searches);
    out
}

/// The hosts file that the pod's containers see.
pub fn hosts_file(pod: &Pod, pod_ips: &[String], host_name: &str, domain: &str, node_hosts: Option<&str>) -> String {
    let mut out = match node_hosts {
        Some(node) => format!("# Kubernetes-managed hosts file (host network).\n{node}"),
        None => {
            let mut text = String::from(
                "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
            );
            for ip in pod_ips {
                if domain.is_empty() {
                    text.push_str(&format!("{ip}\t{host_name}\n"));
                } else {
                    text.push_str(&format!("{ip}\t{host_name}.{domain}\t{host_name}\n"));
                }
            }
            text
        }
    };
    let aliases = super::spec_of(pod).host_aliases.clone().unwrap_or_default();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            out.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.unwrap_or_default().join("\t")));
        }
    }
    out
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if super::host_network(pod) {
        return Vec::new();
    }
    let mut out = Vec::new();
    for (_, container) in super::containers(pod) {
        for port in container.ports.iter().flatten() {
            let Some(host_port) = port.host_port.filter(|port| *port > 0) else { continue };
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            };
            let host_ip = port.host_ip.clone().filter(|ip| ip.parse::<IpAddr>().is_ok()).unwrap_or_default();
            out.push(PortMapping { protocol: protocol.into(), container_port: port.container_port, host_port, host_ip });
        }
    }
    out
}

/// The labels by which the agent finds its pods again.
pub fn labels(id: &PodId) -> HashMap<String, String> {
    HashMap::from([
        (names::POD_NAME.to_owned(), id.name.clone()),
        (names::POD_NAMESPACE.to_owned(), id.namespace.clone()),
        (names::POD_UID.to_owned(), id.uid.clone()),
    ])
}

/// The sandbox's configuration.
pub fn config(pod: &Pod, attempt: u32, cgroup_root: &str, log_root: &Path, dns: &Dns) -> PodSandboxConfig {
    let id = PodId::of(pod);
    let spec = super::spec_of(pod);
    let (host_name, domain) = host_name_and_domain(pod, &dns.cluster_domain);
    let hostname = if spec.host_network.unwrap_or(false) && spec.hostname_override.is_none() {
        String::new()
    } else if spec.set_hostname_as_fqdn.unwrap_or(false) && !domain.is_empty() {
        format!("{host_name}.{domain}")
    } else {
        host_name
    };
    let resolver = resolver(pod, dns);
    let mut all_labels: HashMap<String, String> = pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    all_labels.extend(labels(&id));
    let sysctls = spec.security_context.as_ref().and_then(|context| context.sysctls.clone()).unwrap_or_default();
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name: id.name.clone(), uid: id.uid.clone(), namespace: id.namespace.clone(), attempt }),
        hostname,
        log_directory: log_root.join(super::log_directory_name(&id)).to_string_lossy().into_owned(),
        dns_config: Some(DnsConfig { servers: resolver.servers, searches: resolver.searches, options: resolver.options }),
        port_mappings: port_mappings(pod),
        labels: all_labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: resources::cgroup_path(cgroup_root, pod),
            security_context: Some(security::sandbox_context(pod)),
            sysctls: sysctls.into_iter().map(|sysctl| (sysctl.name, sysctl.value)).collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::testing::pod;
    use serde_json::json;

    fn dns() -> Dns {
        Dns {
            cluster_servers: vec!["10.96.0.10".into()],
            cluster_domain: "cluster.local".into(),
            node: Resolver { servers: vec!["192.0.2.1".into()], searches: vec!["corp".into()], options: vec![] },
        }
    }

    #[test]
    fn resolver_follows_the_policy() {
        let first = resolver(&pod(json!({ "containers": [] })), &dns());
        assert_eq!(first.servers, ["10.96.0.10"]);
        assert_eq!(first.searches, ["default.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp"]);
        assert_eq!(first.options, ["ndots:5"]);
        let host = json!({ "containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirst" });
        assert_eq!(resolver(&pod(host), &dns()).servers, ["192.0.2.1"]);
        let own = json!({ "containers": [], "dnsPolicy": "None", "dnsConfig": { "nameservers": ["1.1.1.1"], "options": [{ "name": "ndots", "value": "2" }] } });
        assert_eq!(resolver(&pod(own), &dns()).options, ["ndots:2"]);
    }

    #[test]
    fn names_and_hosts() {
        let pod = pod(
            json!({ "containers": [], "hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true, "hostAliases": [{ "ip": "1.2.3.4", "hostnames": ["a", "b"] }] }),
        );
        let (host, domain) = host_name_and_domain(&pod, "cluster.local");
        assert_eq!((host.as_str(), domain.as_str()), ("h", "s.default.svc.cluster.local"));
        let text = hosts_file(&pod, &["10.244.1.2".into()], &host, &domain, None);
        assert!(text.contains("10.244.1.2\th.s.default.svc.cluster.local\th\n"), "{text}");
        assert!(text.ends_with("1.2.3.4\ta\tb\n"), "{text}");
        assert_eq!(config(&pod, 0, "/", Path::new("/var/log/pods"), &dns()).hostname, "h.s.default.svc.cluster.local");
    }

    #[test]
    fn resolv_conf_is_read() {
        let read = Resolver::parse("# c\nnameserver 1.1.1.1\nsearch a b.\noptions ndots:1\n");
        assert_eq!((read.servers.len(), read.searches.join(" ")), (1, "a b".to_owned()));
    }
}
