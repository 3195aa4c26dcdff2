//! What a drill serves: nginx on several nodes, behind a NodePort and a ClusterIP with a name, and an object for API calls.

/// The namespace of all that a drill makes.
pub const NAMESPACE: &str = "drill";
/// The Deployment, its Service, and the label `app` of its pods.
pub const APP: &str = "web";
/// The ConfigMaps that API calls read and write in turn, so that a call that waits does not stand in the way of the next ones.
pub const API_OBJECTS: usize = 16;
/// As in the seeds' example.
pub const NODE_PORT: u16 = 31000;
/// How long a pod that is to end goes on serving, in seconds: until every node's routing has left it.
const PRE_STOP_S: u32 = 5;

/// The Service's name in the cluster DNS.
pub fn dns_name() -> String {
    format!("{APP}.{NAMESPACE}.svc.cluster.local")
}

/// The name of one of them.
pub fn api_object(number: usize) -> String {
    format!("api-calls-{}", number % API_OBJECTS)
}

/// All objects of the workload, with so many pods. Each answer names its pod.
pub fn manifest(replicas: usize) -> String {
    let header = crate::traffic::POD_HEADER;
    let api_object = |number| format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {}, namespace: {NAMESPACE}}}\n", api_object(number));
    let api_objects: String = (0..API_OBJECTS).map(api_object).collect();
    format!(
        r#"---
apiVersion: v1
kind: Namespace
metadata: {{name: {NAMESPACE}}}
{api_objects}---
apiVersion: v1
kind: ConfigMap
metadata: {{name: site, namespace: {NAMESPACE}}}
data:
  default.conf: |
    server {{
        listen 80;
        access_log off;
        add_header {header} $hostname;
        location / {{ root /usr/share/nginx/html; index index.html; }}
    }}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {APP}, namespace: {NAMESPACE}, labels: {{app: {APP}}}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {APP}}}}}
  template:
    metadata: {{labels: {{app: {APP}}}}}
    spec:
      terminationGracePeriodSeconds: 15
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector: {{matchLabels: {{app: {APP}}}}}
      containers:
      - name: nginx
        image: nginx:1.22
        imagePullPolicy: IfNotPresent
        ports: [{{containerPort: 80, name: http}}]
        lifecycle: {{preStop: {{exec: {{command: [sleep, "{PRE_STOP_S}"]}}}}}}
        readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
        volumeMounts: [{{name: site, mountPath: /etc/nginx/conf.d}}]
      volumes: [{{name: site, configMap: {{name: site}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: {APP}, namespace: {NAMESPACE}}}
spec:
  type: NodePort
  selector: {{app: {APP}}}
  ports: [{{port: {PORT}, targetPort: http, nodePort: {NODE_PORT}}}]
"#
    )
}

/// The Service's own port.
pub const PORT: u16 = 8000;

/// A Deployment of so many pods that serve nothing; on this node, if one is named.
pub fn sleepers(name: &str, pods: usize, node: Option<&str>) -> String {
    let selector = node.map_or(String::new(), |node| format!("nodeSelector: {{kubernetes.io/hostname: {node}}}"));
    format!(
        r#"---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  replicas: {pods}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      {selector}
      containers: [{{name: main, image: "busybox:1.35", imagePullPolicy: IfNotPresent, command: [sleep, "3600"]}}]
"#
    )
}
