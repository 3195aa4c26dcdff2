"""Drives a cluster with Python's `kubernetes` client: `client.py KUBECONFIG NAMESPACE`. Ends with 0 when everything held."""

import sys
import threading

from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.stream import stream

kubeconfig, namespace = sys.argv[1:]
config.load_kube_config(kubeconfig)
core, apps = client.CoreV1Api(), client.AppsV1Api()


def check(holds, what):
    if not holds:
        sys.exit(f"not so: {what}")


# Create, read, list by label, watch while it is changed and deleted.
seen, watching = [], threading.Event()


def look():
    watcher = watch.Watch()
    for event in watcher.stream(core.list_namespaced_config_map, namespace, label_selector="app=python", timeout_seconds=60):
        seen.append(event["type"])
        watching.set()
        if event["type"] == "DELETED":
            watcher.stop()


body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="python", labels={"app": "python"}), data={"a": "1"})
made = core.create_namespaced_config_map(namespace, body)
check(made.metadata.uid and made.metadata.resource_version, "an object has a uid and a version")
thread = threading.Thread(target=look, daemon=True)
thread.start()
check(watching.wait(30), "a watch begins with what is there")
patched = core.patch_namespaced_config_map("python", namespace, {"data": {"b": "2"}})
check(patched.data == {"a": "1", "b": "2"}, f"a patch merges: {patched.data}")
patched = core.patch_namespaced_config_map("python", namespace, [{"op": "remove", "path": "/data/a"}])
check(patched.data == {"b": "2"}, f"a JSON patch removes: {patched.data}")
stale = made
stale.data = {"c": "3"}
try:
    core.replace_namespaced_config_map("python", namespace, stale)
    check(False, "an update of an old version must be refused")
except ApiException as error:
    check(error.status == 409, f"409 was expected: {error.status}")
listed = core.list_namespaced_config_map(namespace, label_selector="app in (python)")
check([item.metadata.name for item in listed.items] == ["python"], "a list by label has it")
core.delete_namespaced_config_map("python", namespace)
thread.join(60)
check(seen == ["ADDED", "MODIFIED", "MODIFIED", "DELETED"], f"the watch saw it all: {seen}")

# Pages.
for number in range(5):
    core.create_namespaced_config_map(namespace, client.V1ConfigMap(metadata=client.V1ObjectMeta(name=f"page-{number}", labels={"app": "page"})))
names, page = [], None
while page is None or page.metadata._continue:
    page = core.list_namespaced_config_map(namespace, label_selector="app=page", limit=2, _continue=page and page.metadata._continue)
    check(len(page.items) <= 2, "a page is no longer than asked for")
    names += [item.metadata.name for item in page.items]
check(names == [f"page-{number}" for number in range(5)], f"pages make the whole: {names}")

# Server-side apply, through the client that learns kinds by discovery.
deployments = DynamicClient(client.ApiClient()).resources.get(api_version="apps/v1", kind="Deployment")
applied = deployments.server_side_apply(
    name="python",
    namespace=namespace,
    field_manager="python",
    body={
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "python"},
        "spec": {
            "selector": {"matchLabels": {"app": "python"}},
            "template": {
                "metadata": {"labels": {"app": "python"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "main", "image": "busybox:1.35", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"]}],
                },
            },
        },
    },
)
check([entry.operation for entry in applied.metadata.managedFields] == ["Apply"], "an applied object says who manages it")
check(apps.read_namespaced_deployment_scale("python", namespace).spec.replicas == 1, "a Deployment has a scale")

# A command in its pod, over a WebSocket.
for event in watch.Watch().stream(core.list_namespaced_pod, namespace, label_selector="app=python", timeout_seconds=60):
    pod = event["object"]
    if pod.status.phase == "Running" and all(status.ready for status in pod.status.container_statuses or []):
        break
else:
    sys.exit("the pod does not run")
said = stream(core.connect_get_namespaced_pod_exec, pod.metadata.name, namespace, command=["sh", "-c", "echo said; cat /proc/1/cmdline"], stdout=True, stderr=True)
check("said" in said and "sleep" in said, f"exec answers: {said!r}")
check(core.read_namespaced_pod_log(pod.metadata.name, namespace) == "", "a silent container has an empty log")
print("ok")
