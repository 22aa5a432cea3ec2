//! `kubectl egress` as people run it: the real kubectl, the real API server, and in the agents' pods the real agent.

use std::{
    collections::BTreeMap,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Instant,
};

use egress_tests::lab::{
    agent::{self, Agent},
    api::{Server, real},
    at,
    kubelet::Kubelet,
    wire::Outcome,
};
use serde_json::{Value, json};

use crate::{
    cluster::{kubectl, skip},
    scene::{LIMIT, Node, good},
};

const POLICY: &str =
    r#"{"defaultAction": "deny", "allowedDestinations": [{"name": "good", "cidr": "192.0.2.0/24"}]}"#;

/// A cluster of one node with a real agent, whose pods a kubelet runs commands in.
struct Cluster {
    /// The folder of the agent's sockets by pod.
    pods: Arc<Mutex<BTreeMap<String, PathBuf>>>,
    kubelet: Kubelet,
    server: Server,
    kubectl: PathBuf,
    plugin: PathBuf,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// Starts one; nothing, and why, where there are no programs for it.
    fn start() -> Option<Self> {
        let (Some(kubectl), Ok(binaries)) = (kubectl(), real::binaries()) else {
            skip("there is no kubectl or no kube-apiserver");
            return None;
        };
        let flags = vec!["--kubelet-preferred-address-types=InternalIP".to_owned()];
        let settings = real::Settings { flags, ..real::Settings::default() };
        let server = good(Server::real(&binaries, &settings));
        let pods: Arc<Mutex<BTreeMap<String, PathBuf>>> = Arc::default();
        let (known, binary) = (Arc::clone(&pods), good(agent::binary()));
        let kubelet = good(Kubelet::start(Arc::new(move |pod, command| {
            let known = known.lock().expect("no thread panics with the lock held");
            let ("egress-agent", arguments) =
                command.split_first().map(|(first, rest)| (first.as_str(), rest))?
            else {
                return None;
            };
            let mut command = Command::new(&binary);
            command.args(arguments).env("EGRESS_RUNTIME_DIR", known.get(pod)?);
            Some(command)
        })));
        let folder = tempfile::Builder::new().prefix("egress-plugin-").tempdir().expect("a folder");
        let plugin = folder.path().join("kubectl-egress");
        symlink(good(agent::binary()), &plugin).expect("the folder can be written");
        let cluster = Self { pods, kubelet, server, kubectl, plugin, _folder: folder };
        good(cluster.server.namespace("egress-agent", &[]));
        good(cluster.server.namespace("shop", &[]));
        cluster.node("node-a");
        Some(cluster)
    }

    fn node(&self, name: &str) {
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
        good(self.server.create(&node));
        good(self.server.set_status(&node, &self.kubelet.node_status()));
    }

    /// Has a pod run on a node.
    fn pod(&self, namespace: &str, name: &str, node: &str) {
        let component = if namespace == "egress-agent" { "agent" } else { "other" };
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name, "labels": {
                "app.kubernetes.io/name": "egress-agent", "app.kubernetes.io/component": component,
            } },
            "spec": { "nodeName": node, "containers": [{ "name": "agent", "image": "example.com/none" }] },
        });
        good(self.server.create(&pod));
        good(self.server.set_status(&pod, &json!({ "phase": "Running" })));
    }

    /// Has a pod run the agent whose sockets are in this folder.
    fn agent(&self, name: &str, node: &str, runtime: &Path) {
        self.pod("egress-agent", name, node);
        self.pods
            .lock()
            .expect("no thread panics with the lock held")
            .insert(name.to_owned(), runtime.to_owned());
    }

    fn command(&self, kubeconfig: &Path, arguments: &[&str]) -> Command {
        let (subcommand, rest) = arguments.split_first().expect("there is a subcommand");
        let mut command = Command::new(&self.plugin);
        for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(proxy);
        }
        command.arg(subcommand).arg("--kubectl").arg(&self.kubectl);
        command.arg("--kubeconfig").arg(kubeconfig).args(rest).stdin(Stdio::null());
        command
    }

    /// Runs `kubectl egress` and returns its exit code, standard output and standard error.
    fn run_as(&self, kubeconfig: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = self.command(kubeconfig, arguments).output().expect("the plugin starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        self.run_as(&self.server.kubeconfig(), arguments)
    }

    /// Lets an account do something in the agents' namespace, and returns its kubeconfig.
    fn account(&self, name: &str, rules: &Value) -> PathBuf {
        let about = |kind: &str, more: Value| {
            let mut object = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
                "metadata": { "namespace": "egress-agent", "name": name },
            });
            object.as_object_mut().expect("it is one").extend(more.as_object().expect("it is one").clone());
            good(self.server.create(&object));
        };
        about("Role", json!({ "rules": rules }));
        about(
            "RoleBinding",
            json!({
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
                "subjects": [{ "kind": "ServiceAccount", "namespace": "egress-agent", "name": name }],
            }),
        );
        good(self.server.kubeconfig_for("egress-agent", name))
    }
}

fn scene() -> (Node, Agent) {
    let node = Node::new(&["10.244.0.5"], &["192.0.2.10", "198.51.100.7"], POLICY);
    let agent = node.run(&[]);
    (node, agent)
}

#[track_caller]
fn denied(node: &Node, to: &str) {
    assert_eq!(node.pod.connect(at(to)).outcome, Outcome::NotPermitted, "{to}");
}

#[test]
fn what_kubectl_refuses_is_said_as_it_says_it() {
    let Some(cluster) = Cluster::start() else { return };
    let (code, out, error) = cluster.run(&["observe"]);
    assert_eq!((code, out.as_str()), (Some(2), ""), "{error}");
    assert!(
        error.contains("no agent runs in namespace egress-agent") && error.contains("--agent-selector"),
        "{error}"
    );
    let (code, _, error) = cluster.run(&["observe", "--context", "nowhere"]);
    assert!(code == Some(2) && error.contains("context \"nowhere\" does not exist"), "{error}");
    let (code, _, error) = cluster.run(&["recommend", "-n", "shop", "--agent-namespace", "nowhere"]);
    assert!(code == Some(2) && error.contains("no agent runs in namespace nowhere"), "{error}");
    let nobody = cluster.account("nobody", &json!([]));
    let (code, _, error) = cluster.run_as(&nobody, &["observe"]);
    assert!(code == Some(2) && error.contains("cannot list resource \"pods\""), "{error}");
    cluster.pod("egress-agent", "agent-1", "node-a");
    let lister = cluster
        .account("lister", &json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"] }]));
    let (code, _, error) = cluster.run_as(&lister, &["observe"]);
    assert!(code == Some(2) && error.contains("node-a: ") && error.contains("pods/exec"), "{error}");
    let (code, _, error) = cluster.run_as(&lister, &["observe", "-n", "shop"]);
    assert!(code == Some(2) && error.contains("--node") && error.contains("forbidden"), "{error}");
    // A container that is not there, as kubelet says it.
    let (code, _, error) = cluster.run(&["observe"]);
    assert!(
        code == Some(2) && error.contains("node-a: ") && error.contains("container not found"),
        "{error}"
    );
    good(cluster.server.stop());
    let (code, _, error) = cluster.run(&["observe"]);
    assert!(code == Some(2) && error.contains("get pods"), "{error}");
}

#[test]
fn observe_and_recommend_reach_the_agent_through_the_api_server() {
    let Some(cluster) = Cluster::start() else { return };
    let (node, agent) = scene();
    cluster.agent("agent-1", "node-a", &agent.runtime);
    cluster.pod("shop", "web", "node-a");
    denied(&node, "198.51.100.7:443");
    let user = cluster.account(
        "user",
        &json!([
            { "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"] },
            { "apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"] },
        ]),
    );
    let deadline = Instant::now() + LIMIT;
    let event = loop {
        let (code, out, error) = cluster.run_as(&user, &["observe", "-o", "json"]);
        assert_eq!((code, error.as_str()), (Some(0), ""), "what the documentation asks for is enough: {out}");
        if let Some(line) = out.lines().next() {
            break serde_json::from_str::<Value>(line).expect("it is JSON");
        }
        assert!(Instant::now() < deadline, "no event is told");
    };
    for (field, value) in [("node", "node-a"), ("pod", "web"), ("to", "198.51.100.7"), ("verdict", "deny")] {
        assert_eq!(event[field], value, "{event}");
    }
    let (code, table, error) = cluster.run(&["observe", "-n", "shop", "--port", "443"]);
    assert_eq!((code, table.lines().count()), (Some(0), 2), "{table}{error}");
    let (code, table, _) = cluster.run(&["observe", "--port", "80"]);
    assert_eq!((code, table.lines().count()), (Some(0), 1), "{table}");
    let arguments = ["recommend", "-n", "shop", "--", "--include-denied", "-o", "json"];
    let (code, out, error) = cluster.run(&arguments);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("198.51.100.7"), "{out}");
    let (code, out, _) = cluster.run(&["recommend", "-n", "shop", "--export"]);
    assert!(code == Some(0) && out.lines().any(|line| line.contains("\"workload\"")), "{out}");
}
