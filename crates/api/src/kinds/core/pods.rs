//! Pod.

use crate::kind::Kind;

pub fn kind() -> Kind {
    Kind::namespaced("", "v1", "Pod", "pods")
        .short(&["po"])
        .categories(&["all"])
        .generation()
        .selectable(&["spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork", "status.phase", "status.podIP", "status.podIPs", "status.nominatedNodeName"])
        .graceful()
        .connect("attach", ("", "", "PodAttachOptions"), &["create", "get"])
        .connect("binding", ("", "", "Binding"), &["create"])
        .connect("ephemeralcontainers", ("", "", "Pod"), &["get", "patch", "update"])
        .connect("eviction", ("policy", "v1", "Eviction"), &["create"])
        .connect("exec", ("", "", "PodExecOptions"), &["create", "get"])
        .connect("log", ("", "", "Pod"), &["get"])
        .connect("portforward", ("", "", "PodPortForwardOptions"), &["create", "get"])
        .connect("proxy", ("", "", "PodProxyOptions"), &["create", "delete", "get", "patch", "update"])
        .connect("resize", ("", "", "Pod"), &["get", "patch", "update"])
        .status()
}
