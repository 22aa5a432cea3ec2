//! `kubectl egress` as people run it: the real kubectl, the real API server, and in the agents' pods the real agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use egress_tests::lab::{
    agent::{self, Agent},
    api::{Server, real},
    at,
    kubelet::Kubelet,
    terminal::Terminal,
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

/// A `kubectl egress observe --follow`, and the files it writes to.
struct Following {
    child: Child,
    folder: tempfile::TempDir,
}

impl Following {
    fn start(cluster: &Cluster) -> Self {
        let folder = tempfile::Builder::new().prefix("egress-plugin-").tempdir().expect("a folder");
        let file = |name: &str| File::create(folder.path().join(name)).expect("the folder can be written");
        let mut command = cluster.command(
            &cluster.server.kubeconfig(),
            &["observe", "--follow", "--look-every", "1", "-o", "json"],
        );
        let child = command.stdout(file("out")).stderr(file("errors")).spawn().expect("the plugin starts");
        Self { child, folder }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).expect("it was made")
    }

    /// The ports of the events.
    fn ports(&self) -> Vec<u64> {
        let out = self.read("out");
        let whole = out.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let port = |line: &str| serde_json::from_str::<Value>(line).expect("it is JSON")["port"].as_u64();
        whole.lines().map(|line| port(line).expect("it has a port")).collect()
    }

    #[track_caller]
    fn wait(&self, wanted: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !wanted(self) {
            assert!(Instant::now() < deadline, "{:?} {}", self.ports(), self.read("errors"));
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_said(&self, what: &str) {
        self.wait(|this| this.read("errors").contains(what));
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // One that has ended and been waited for is left alone by both.
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

#[test]
fn observe_follows_an_agent_to_its_successor() {
    let Some(cluster) = Cluster::start() else { return };
    let (node, agent) = scene();
    cluster.agent("agent-1", "node-a", &agent.runtime);
    let following = Following::start(&cluster);
    // Until it is there, nothing is told.
    let deadline = Instant::now() + LIMIT;
    while following.ports().is_empty() {
        assert!(Instant::now() < deadline, "nothing is told: {}", following.read("errors"));
        denied(&node, "198.51.100.7:443");
        thread::sleep(Duration::from_millis(200));
    }
    // The connection breaks, and the agent stays: what it tells meanwhile is not lost, and nothing is told twice.
    let before = following.ports();
    cluster.kubelet.cut();
    denied(&node, "198.51.100.7:444");
    following.wait_said("node-a: no more is heard of this node, whose agent was agent-1");
    following.wait(|this| this.ports().contains(&444));
    // Another agent in another pod, and a node that joins, whose agent is the same here.
    agent.kill(&node.lab.keeper).unwrap_or_else(|error| panic!("{error:#}"));
    good(cluster.server.delete(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": "egress-agent", "name": "agent-1" },
    })));
    let agent = node.run(&[]);
    denied(&node, "198.51.100.7:445");
    cluster.agent("agent-2", "node-a", &agent.runtime);
    following.wait(|this| this.ports().contains(&445));
    following.wait_said("of the agent agent-2");
    let out = following.read("out");
    let different: BTreeSet<&str> = out.lines().collect();
    assert_eq!(different.len(), out.lines().count(), "nothing is told twice: {out}");
    let ports = following.ports();
    let of = |port: u64| ports.iter().filter(|told| **told == port).count();
    assert_eq!((of(444), of(445)), (1, 1), "{ports:?}");
    assert!(of(443) >= before.len(), "{ports:?}");
    cluster.node("node-b");
    cluster.agent("agent-3", "node-b", &agent.runtime);
    following.wait_said("node-b: heard from now on, of the agent agent-3");
    following.wait(|this| {
        let out = this.read("out");
        out.lines().any(|line| line.contains("\"node\":\"node-b\"") && line.contains(":445,"))
    });
}

#[test]
fn top_puts_the_nodes_together_and_names_one_that_is_not_heard() {
    let Some(cluster) = Cluster::start() else { return };
    let (node, agent) = scene();
    // Two nodes with the same agent: everything is there twice.
    cluster.node("node-b");
    cluster.agent("agent-1", "node-a", &agent.runtime);
    cluster.agent("agent-2", "node-b", &agent.runtime);
    denied(&node, "198.51.100.7:443");
    let once = ["top", "--once", "--interval", "0.2"];
    let (code, out, error) = cluster.run(&[&once[..], &["-o", "json"]].concat());
    assert_eq!((code, error.as_str()), (Some(0), ""), "{out}");
    let value: Value = serde_json::from_str(&out).expect("one look is one object");
    assert_eq!((&value["nodes"], &value["silent"]), (&json!(["node-a", "node-b"]), &json!([])), "{value:#}");
    assert_eq!(value["pods"][0]["denied"]["packets"], 2, "{value:#}");
    assert_eq!(value["pods"][0]["mostly"], json!(["default_deny", 1]), "{value:#}");
    let (_, table, _) = cluster.run(&once);
    let row: Vec<&str> = table.lines().nth(1).expect("there is the workload").split_whitespace().collect();
    assert_eq!(row[..4], ["shop", "Pod/web", "-", "2"], "{table}");
    let (code, _, error) = cluster.run(&["top"]);
    assert!(code == Some(2) && error.contains("--once"), "{error}");

    let terminal = Terminal::new(120, 12);
    let before = terminal.modes();
    let mut command = cluster.command(&cluster.server.kubeconfig(), &["top", "--interval", "0.2"]);
    command.stdin(terminal.side()).stdout(terminal.side()).stderr(terminal.side());
    let mut child = command.spawn().expect("the plugin starts");
    let row_has = |count: &'static str| {
        move |lines: &[String]| {
            let row = lines.iter().find(|line| line.starts_with("shop"));
            row.is_some_and(|row| row.contains("Pod/web") && row.split_whitespace().nth(3) == Some(count))
        }
    };
    terminal.wait(LIMIT, "what both count", row_has("2"));
    assert!(terminal.screen()[0].starts_with("2 nodes: "), "{:#?}", terminal.screen());
    denied(&node, "198.51.100.7:444");
    terminal.wait(LIMIT, "what is denied is counted", row_has("4"));
    // The pod of one of them runs nothing any more.
    cluster.pods.lock().expect("no thread panics with the lock held").remove("agent-2");
    cluster.kubelet.cut();
    terminal.wait(LIMIT, "a node is missing", |lines| lines[0].starts_with("1 node, node-b not heard: "));
    terminal.wait(LIMIT, "what the other counts", row_has("2"));
    terminal.press(b"d");
    terminal.wait(LIMIT, "destinations", |lines| lines.iter().any(|line| line.starts_with("shop/policy")));
    terminal.resize(30, 5);
    terminal.wait(LIMIT, "a smaller window", |lines| {
        lines.len() == 5 && lines.iter().all(|line| line.chars().count() <= 30)
    });
    terminal.press(b"q");
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(2), "a node is not heard: {}", terminal.text());
    assert_eq!(terminal.modes(), before);
    terminal.wait(LIMIT, "what was told meanwhile", |lines| lines.concat().contains("node-b: "));
}
