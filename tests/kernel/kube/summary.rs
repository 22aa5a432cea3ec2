//! What an agent tells the cluster of its node.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use egress_agent::k8s::summary::{self, Summary};
use egress_tests::lab::{
    api::{Backend, Fault, Kind, Rule, Server, Verb, When, real},
    at,
    wire::Outcome,
};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use crate::scene::{
    BAD, GOOD, Scene, allow, apply_rbac, cidr, config_map, good, run_kubectl, uid, until, wait,
};

/// The namespace of the agents.
pub(crate) const AGENTS: &str = "egress-agent";
pub(crate) const EVERY: [&str; 4] = ["--summary-namespace", AGENTS, "--summary-every", "1"];

pub(crate) fn node_object(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } })
}

fn map(node: &str) -> Value {
    let name = summary::name(node).expect("it is short");
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "namespace": AGENTS, "name": name } })
}

/// Returns a node's summary as it stands in the cluster, if there is one.
pub(crate) fn published(server: &Server, node: &str) -> Option<Summary> {
    let object: ConfigMap = serde_json::from_value(server.get(&map(node)).ok()?).expect("a ConfigMap");
    let (of, summary) = Summary::read(object).expect("it is a summary");
    assert_eq!(of, node);
    Some(summary)
}

/// Gives agents the shipped right to write summaries, with what keeps each to its own.
pub(crate) fn apply_component(server: &Server) {
    good(run_kubectl(server, &["apply", "--filename", "-"], &good(shipped())));
}

/// Returns the manifest of that right.
pub(crate) fn shipped() -> Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/components/controller/summaries.yaml");
    fs::read_to_string(file).context("it is shipped")
}

/// It names the policies of its pods with their revisions, follows them, and writes nothing that is not new. Without it all is enforced.
pub(crate) fn told(server: &Server, name: &str) {
    let mut scene = Scene::new(server, name);
    good(server.namespace(AGENTS, &[]));
    if server.backend() == Backend::Real {
        apply_component(server);
        scene.kubeconfig = good(server.kubeconfig_on(AGENTS, AGENTS, &scene.node));
    }
    let node = scene.put(&node_object(&scene.node));
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    let other = format!("{name}-other");
    good(server.namespace(&other, &[]));
    scene.put(&config_map(&other, "elsewhere", &allow(&[]).to_string()));
    let one = allow(&[cidr("good", "192.0.2.0/24")]);
    scene.policy("policy", &one);
    let agent = scene.run(&EVERY);
    wait(&pod, GOOD, Outcome::Ok);
    let policy = format!("{}/policy", scene.namespace);
    let holds = |text: &Value, pods: u32, behind: u32| {
        let revision = summary::revision(&text.to_string());
        published(server, &scene.node).is_some_and(|summary| {
            let held = summary.policies.get(&policy);
            held.is_some_and(|held| (&held.revision, held.pods, held.behind) == (&revision, pods, behind))
        })
    };
    until("the node tells its policy", || holds(&one, 1, 0));
    let first = published(server, &scene.node).expect("it was there a moment ago");
    assert!(first.ready && first.reasons.is_empty(), "{first:?}");
    assert_eq!(first.policies.len(), 1, "no others: {first:?}");
    assert_eq!(first.version, env!("CARGO_PKG_VERSION"));
    let object = good(server.get(&map(&scene.node)));
    assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], uid(&node), "it goes with the node");

    // Nothing new, nothing written.
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(version(&good(server.get(&map(&scene.node)))), version(&object));

    let two = allow(&[cidr("bad", "198.51.100.0/24")]);
    scene.policy("policy", &two);
    until("the node tells the new one", || holds(&two, 1, 0));
    scene.policy("policy", &json!({ "defaultAction": 5 }));
    until("it says that the one before holds", || {
        published(server, &scene.node).is_some_and(|summary| {
            summary.reasons.iter().any(|reason| reason.contains("not in force as they are written"))
        })
    });
    assert!(holds(&two, 1, 0));
    assert!(!first.audit, "{first:?}");

    if let Some(double) = server.as_double() {
        for fault in [Fault::Silence, Fault::Refuse { code: 500, retry_after: None }, Fault::Cut] {
            let rule =
                double.faults().add(Rule::new(fault, When::Always).kind(Kind::ConfigMap).verb(Verb::Patch));
            let before = agent.sum("egress_node_state_writes_total", &[("result", "failed")]);
            let text = allow(&[
                cidr("good", "192.0.2.0/24"),
                cidr("more", &format!("10.0.0.{}/32", double.faults().strikes(rule))),
            ]);
            scene.policy("policy", &text);
            wait(&pod, GOOD, Outcome::Ok);
            assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
            until("a write fails", || double.faults().strikes(rule) > 0);
            scene.policy("policy", &two);
            wait(&pod, BAD, Outcome::Ok);
            assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::NotPermitted);
            assert_eq!(
                agent.get("/readyz").expect("the agent answers").0,
                200,
                "enforcement does not need it"
            );
            until("it is counted", || {
                agent.sum("egress_node_state_writes_total", &[("result", "failed")]) > before
            });
            double.faults().remove(rule);
            until("the newest is written", || holds(&two, 1, 0));
        }
    }
    scene.terminate(agent);
    let agent = scene.run(&[&EVERY[..], &["--audit"]].concat());
    until("the node tells that it only audits", || {
        published(server, &scene.node).is_some_and(|summary| summary.audit)
    });
    scene.terminate(agent);
    scene.delete(&node_object(&scene.node));
    good(server.remove_namespace(&other));
    scene.clean();
}

/// A node that is not the one in the summary's name may not write it, nor make anything else of it.
#[test]
fn a_node_writes_its_own_summary_and_no_other() {
    let binaries = match real::binaries() {
        Ok(binaries) => binaries,
        Err(error) => return crate::skip(&format!("{error:#}")),
    };
    let server = Server::real(&binaries, &real::Settings::default()).expect("the real server starts");
    if let Err(why) = apply_rbac(&server) {
        return crate::skip(&format!("{why:#}"));
    }
    apply_component(&server);
    for node in ["node-a", "node-b"] {
        good(server.put(&node_object(node)));
    }
    let bound = good(server.kubeconfig_on(AGENTS, AGENTS, "node-a"));
    let unbound = good(server.kubeconfig_for(AGENTS, AGENTS));
    let apply = |kubeconfig: &Path, object: &Value| {
        let client = server.worker().client(kubeconfig).expect("a client can be made");
        let path = format!(
            "/api/v1/namespaces/{}/configmaps/{}?fieldManager=egress-agent&force=true",
            object["metadata"]["namespace"].as_str().expect("it has one"),
            object["metadata"]["name"].as_str().expect("it has one")
        );
        let answer = server.worker().request(&client, "PATCH", &path, "application/apply-patch+yaml", object);
        answer.map(drop).map_err(|error| error.to_string())
    };
    let of = |node: &str, change: &dyn Fn(&mut Value)| {
        let mut object = map(node);
        object["metadata"]["labels"] = json!({ "egress-agent.dev/summary": "node" });
        object["data"] = json!({ "summary.json": "{}" });
        change(&mut object);
        object
    };
    let refused = |kubeconfig: &Path, object: &Value, why: &str| {
        let said = apply(kubeconfig, object).expect_err(why);
        assert!(said.contains("egress-node-summaries") && said.contains(why), "{said}");
    };
    // An agent's right has to come first, then what narrows it.
    until("the server has taken the guard up", || {
        apply(&bound, &of("node-b", &|_| {})).is_err_and(|said| said.contains("egress-node-summaries"))
    });
    good(apply(&bound, &of("node-a", &|_| {})).map_err(anyhow::Error::msg));
    refused(&bound, &of("node-b", &|_| {}), "writes the ConfigMap egress-node.node-a and no other");
    refused(&unbound, &of("node-a", &|_| {}), "names no node");
    // One that is there already is no easier.
    good(server.put(&of("node-b", &|_| {})));
    refused(&bound, &of("node-b", &|object| object["data"]["summary.json"] = "{ }".into()), "and no other");
    refused(
        &bound,
        &of("node-a", &|object| object["metadata"]["labels"]["egress-controller"] = "managed".into()),
        "and no others",
    );
    refused(
        &bound,
        &of("node-a", &|object| object["metadata"]["finalizers"] = json!(["a.b/c"])),
        "nothing keeps it",
    );
    refused(&bound, &of("node-a", &|object| object["data"]["more"] = "x".into()), "under summary.json");
    refused(
        &bound,
        &of("node-a", &|object| object["data"]["summary.json"] = "x".repeat(70_000).into()),
        "at most 65536",
    );
    let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": "node-b", "uid": "1" }]);
    refused(
        &bound,
        &of("node-a", &|object| object["metadata"]["ownerReferences"] = owner.clone()),
        "owned by its Node",
    );
    // The right is for one namespace, and to write only.
    let elsewhere = of("node-a", &|object| object["metadata"]["namespace"] = "default".into());
    assert!(apply(&bound, &elsewhere).expect_err("it is elsewhere").contains("forbidden"));
    let client = server.worker().client(&bound).expect("a client can be made");
    let path = format!("/api/v1/namespaces/{AGENTS}/configmaps/egress-node.node-a");
    let deleted = server.worker().request(&client, "DELETE", &path, "application/json", &json!({}));
    assert!(deleted.expect_err("it may not").to_string().contains("forbidden"));
}
