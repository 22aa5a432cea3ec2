//! New nodes lose their start-up taint when their agent is ready, and the controller may do nothing else to a node.

use std::{path::Path, process::Command};

use egress_tests::lab::api::Server;
use serde_json::{Value, json};

use crate::ranges::{Scene, kubectl, until};

pub(crate) const TAINT: &str = "egress-agent.dev/not-ready";
/// The namespace of the agents here: that of the shipped ones may be in use.
pub(crate) const AGENTS: &str = "startup-agents";

pub(crate) fn node(name: &str, taints: &[&str]) -> Value {
    let taints: Vec<Value> =
        taints.iter().map(|key| json!({ "key": key, "value": "x", "effect": "NoSchedule" })).collect();
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name }, "spec": { "taints": taints } })
}

pub(crate) fn agent(node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": AGENTS, "name": format!("agent-{node}"),
            "labels": { "app.kubernetes.io/name": "egress-agent", "app.kubernetes.io/component": "agent" },
        },
        "spec": {
            "nodeName": node, "serviceAccountName": "default", "automountServiceAccountToken": false,
            "containers": [{ "name": "agent", "image": "example.com/agent" }],
        },
    })
}

pub(crate) fn is_ready(ready: &str) -> Value {
    ready_since(ready, "2099-01-01T00:00:00Z")
}

fn ready_since(ready: &str, since: &str) -> Value {
    let condition = json!({ "type": "Ready", "status": ready, "lastTransitionTime": since });
    json!({ "phase": "Running", "conditions": [condition] })
}

/// Has the API server take pods into the agents' namespace: it gives them an account only where there is one, and nobody makes it here.
pub(crate) fn account(server: &Server) {
    server.namespace(AGENTS, &[]).expect("a namespace can be made");
    if server.as_real().is_some() {
        server.token(AGENTS, "default").expect("there is an account");
    }
}

/// Applies the component's rights and guard; a real server asks for both.
fn allow(server: &Server) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/components/controller-startup-taint");
    for file in ["rbac.yaml", "guard.yaml"] {
        let said = Command::new(kubectl())
            .arg("--kubeconfig")
            .arg(server.kubeconfig())
            .args(["apply", "--filename"])
            .arg(folder.join(file))
            .env("NO_PROXY", "*")
            .output()
            .expect("kubectl starts");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }
}

pub(crate) async fn taints(server: &Server) {
    let scene = Scene::shipped(server);
    scene.provide(100, &[("192.0.2.0/24", "us-east-1")]);
    let keys = |name: &str| -> Vec<String> {
        let node = server.get(&node(name, &[])).expect("the node is there");
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        taints.iter().map(|taint| taint["key"].as_str().expect("a key").to_owned()).collect()
    };
    // The API server adds one of its own to every node that is not ready.
    let left = |name: &str| {
        keys(name).iter().filter(|key| !key.starts_with("node.kubernetes.io/")).cloned().collect::<Vec<_>>()
    };
    account(server);
    for name in ["first", "late", "never"] {
        server.create(&node(name, &["example.com/theirs", TAINT])).expect("a node can be made");
        server.create(&agent(name)).expect("a pod can be made");
    }
    server.set_status(&agent("first"), &is_ready("True")).expect("it is ready");
    server.set_status(&agent("never"), &is_ready("False")).expect("it is not");

    // Without the flag nothing is touched; with it, not without the right, which is named.
    let taint = ["--startup-taint", TAINT, "--agent-namespace", AGENTS];
    let one = scene.start("one", &taint);
    if server.as_real().is_some() {
        until("it says what it lacks", || one.says("cannot get resource \"nodes\""));
        assert_eq!(left("first").len(), 2);
        allow(server);
    }
    until("the node whose agent is ready takes pods", || left("first") == ["example.com/theirs"]);
    assert_eq!(left("late"), ["example.com/theirs", TAINT]);
    server.set_status(&agent("late"), &is_ready("True")).expect("it is ready");
    until("so does the next one", || left("late") == ["example.com/theirs"]);
    assert_eq!(left("never"), ["example.com/theirs", TAINT], "its agent never was ready");

    // A node that comes back under its name is looked at when its agent is ready again.
    server.delete(&agent("late")).expect("it is deleted");
    server.delete(&node("late", &[])).expect("it is deleted");
    until("the pod is gone", || server.get(&agent("late")).is_err());
    server.create(&node("late", &[TAINT])).expect("a node can be made");
    server.create(&agent("late")).expect("a pod can be made");
    let before = ready_since("True", "2020-01-01T00:00:00Z");
    server.set_status(&agent("late"), &before).expect("it is ready");
    until("a pod of the node before says nothing", || one.says("ready before the node was made"));
    assert_eq!(left("late"), [TAINT]);
    server.set_status(&agent("late"), &is_ready("True")).expect("it is ready");
    until("it takes pods again", || left("late").is_empty());

    if server.as_real().is_some() {
        guard(server, &scene);
    }
    one.end(&scene.keeper);
    for name in ["first", "late", "never"] {
        server.delete(&agent(name)).expect("it is deleted");
        server.delete(&node(name, &[])).expect("it is deleted");
    }
}

/// The controller's account is kept from anything else.
fn guard(server: &Server, scene: &Scene<'_>) {
    let patch = |what: &Value, more: &[&str]| -> (bool, String) {
        let said = Command::new(kubectl())
            .arg("--kubeconfig")
            .arg(&scene.kubeconfig)
            .args(["patch", "node", "never", "--type", "merge", "--patch", &what.to_string()])
            .args(more)
            .env("NO_PROXY", "*")
            .output()
            .expect("kubectl starts");
        (said.status.success(), String::from_utf8_lossy(&said.stderr).into_owned())
    };
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    until("the API server knows of the guard", || !patch(&label, &["--dry-run=server"]).0);
    let never = server.get(&node("never", &[])).expect("the node is there");
    let taints = never["spec"]["taints"].as_array().expect("it has taints").clone();
    let without =
        |key: &str| -> Vec<Value> { taints.iter().filter(|taint| taint["key"] != key).cloned().collect() };
    let more = json!({ "key": "example.com/more", "effect": "NoExecute" });
    let added: Vec<Value> = taints.iter().cloned().chain([more]).collect();
    for what in [
        label.clone(),
        json!({ "metadata": { "annotations": { "a": "b" } } }),
        json!({ "spec": { "unschedulable": true } }),
        json!({ "spec": { "providerID": "a" } }),
        json!({ "spec": { "taints": without("example.com/theirs") } }),
        json!({ "spec": { "taints": added } }),
        json!({ "spec": { "taints": without(TAINT), "unschedulable": true } }),
    ] {
        let (well, said) = patch(&what, &[]);
        assert!(!well && said.contains("the controller may"), "{what}: {said}");
    }
    let (well, said) = patch(&json!({ "spec": { "taints": without(TAINT) } }), &[]);
    assert!(well, "{said}");
    // Others are not kept from anything.
    server.merge(&node("never", &[]), &label).expect("an administrator may");
}
