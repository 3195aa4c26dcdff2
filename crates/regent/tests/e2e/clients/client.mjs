// Drives a cluster with Node's @kubernetes/client-node: `client.mjs KUBECONFIG NAMESPACE`. Ends with 0 when everything held.

import { AppsV1Api, CoreV1Api, Exec, KubeConfig, KubernetesObjectApi, PatchStrategy, Watch, setHeaderOptions } from "@kubernetes/client-node";
import { PassThrough } from "node:stream";

const [kubeconfig, namespace] = process.argv.slice(2);
const config = new KubeConfig();
config.loadFromFile(kubeconfig);
const core = config.makeApiClient(CoreV1Api);
const apps = config.makeApiClient(AppsV1Api);

function check(holds, what) {
  if (!holds) {
    console.error(`not so: ${what}`);
    process.exit(1);
  }
}

// Follows a kind until `look` says that it is enough.
function follow(path, query, look) {
  return new Promise((resolve, reject) => {
    const patience = setTimeout(() => reject(new Error(`nothing more came on ${path}`)), 60000);
    let request;
    const done = (value) => {
      clearTimeout(patience);
      request?.then((r) => r.abort());
      resolve(value);
    };
    request = new Watch(config).watch(path, query, (type, object) => look(type, object, done), (error) => error && error.name !== "AbortError" && reject(error));
  });
}

// Create, list, watch, patch, delete.
const made = await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: "node", labels: { app: "node" } }, data: { a: "1" } } });
check(made.metadata.uid && made.metadata.resourceVersion, "an object has a uid and a version");
const seen = [];
const watched = follow(`/api/v1/namespaces/${namespace}/configmaps`, { labelSelector: "app=node" }, (type, _object, done) => {
  seen.push(type);
  if (type === "DELETED") done();
  if (seen.length === 1) change();
});
async function change() {
  const patched = await core.patchNamespacedConfigMap({ name: "node", namespace, body: { data: { b: "2" } } }, setHeaderOptions("Content-Type", PatchStrategy.StrategicMergePatch));
  check(patched.data.a === "1" && patched.data.b === "2", `a patch merges: ${JSON.stringify(patched.data)}`);
  const listed = await core.listNamespacedConfigMap({ namespace, labelSelector: "app=node" });
  check(listed.items.length === 1, "a list by label has it");
  await core.deleteNamespacedConfigMap({ name: "node", namespace });
}
await watched;
check(seen.join() === "ADDED,MODIFIED,DELETED", `the watch saw it all: ${seen}`);

// Errors are Kubernetes' own.
const missing = await core.readNamespacedConfigMap({ name: "none", namespace }).catch((error) => error);
check(missing.code === 404 && JSON.parse(missing.body).reason === "NotFound", `404 was expected: ${missing.code}`);

// Server-side apply, through the client that takes any kind.
const manifest = {
  apiVersion: "apps/v1",
  kind: "Deployment",
  metadata: { name: "node", namespace },
  spec: {
    selector: { matchLabels: { app: "node" } },
    template: {
      metadata: { labels: { app: "node" } },
      spec: { containers: [{ name: "main", image: "busybox:1.35", imagePullPolicy: "IfNotPresent", command: ["sleep", "3600"] }], terminationGracePeriodSeconds: 1 },
    },
  },
};
const objects = KubernetesObjectApi.makeApiClient(config);
const applied = await objects.patch(manifest, undefined, undefined, "node-client", true, PatchStrategy.ServerSideApply);
check(applied.metadata.managedFields.some((entry) => entry.manager === "node-client" && entry.operation === "Apply"), "an applied object says who manages it");
check((await apps.readNamespacedDeploymentScale({ name: "node", namespace })).spec.replicas === 1, "a Deployment has a scale");

// A command in its pod.
const pod = await follow(`/api/v1/namespaces/${namespace}/pods`, { labelSelector: "app=node" }, (_type, object, done) => {
  if (object.status?.containerStatuses?.every((status) => status.ready)) done(object.metadata.name);
});
const out = new PassThrough();
let said = "";
out.on("data", (piece) => (said += piece));
const status = await new Promise((resolve, reject) => {
  new Exec(config).exec(namespace, pod, "main", ["sh", "-c", "echo said; exit 3"], out, process.stderr, null, false, resolve).catch(reject);
});
check(said.includes("said"), `exec answers: ${said}`);
check(status.status === "Failure" && status.details.causes[0].message === "3", `exec tells the exit code: ${JSON.stringify(status)}`);
console.log("ok");
process.exit(0);
