//! An agent that lacks one of the rights it ships with: it says which, and what it enforces stays enforced.

use std::{thread, time::Duration};

use egress_tests::lab::{
    Qos,
    api::{Server, real},
    at, rights,
    wire::Outcome,
};
use serde_json::{Value, json};

use crate::{
    scene::{
        BAD, GOOD, Scene, allow, apply_rbac, cidr, good, pod_object, run_kubectl, shipped_rbac, uid, until,
        wait,
    },
    summary::{self, AGENTS, EVERY},
};

/// Returns the roles of a manifest as the API has them.
fn roles(server: &Server, manifest: &str) -> Vec<Value> {
    let create = ["create", "--dry-run=client", "--validate=false", "--output", "json", "--filename", "-"];
    good(rights::roles(&good(run_kubectl(server, &create, manifest))))
}

#[test]
fn a_right_that_is_missing_is_named_and_enforcement_stays() {
    let binaries = match real::binaries() {
        Ok(binaries) => binaries,
        Err(error) => return crate::skip(&format!("{error:#}")),
    };
    let server = Server::real(&binaries, &real::Settings::default()).expect("the real server starts");
    if let Err(why) = apply_rbac(&server) {
        return crate::skip(&format!("{why:#}"));
    }
    let [role] = &roles(&server, &good(shipped_rbac()))[..] else { panic!("one role is shipped") };
    let mut scene = Scene::new(&server, "rights");
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    // It speaks of something of every kind.
    let peers = json!({ "name": "peers", "pods": { "podSelector": {} } });
    let world = json!({ "name": "world", "entity": "world", "ports": [1] });
    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24"), peers, world]));
    // An Event is brought up to date when it is of the same kind, and of another NetworkPolicy.
    let other = format!("{}-other", scene.namespace);
    good(server.namespace(&other, &[]));
    let object = scene.put(&pod_object(&other, "net", &scene.node, &json!({}), "10.244.0.6"));
    let net = good(scene.lab.pod(&uid(&object), Qos::Burstable, &["10.244.0.6"]));
    let network_policy = |name: &str| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": other, "name": name },
            "spec": { "podSelector": {}, "policyTypes": ["Egress"], "egress": [{ "to": [{ "ipBlock": { "cidr": "192.0.2.0/24" } }] }] },
        })
    };
    scene.put(&network_policy("first"));
    let more = ["--enforce-network-policy"];
    let agent = scene.run(&more);
    wait(&pod, BAD, Outcome::NotPermitted);
    wait(&net, BAD, Outcome::NotPermitted);
    scene.terminate(agent);
    for right in rights::of(role) {
        good(server.put(&rights::without(role, &right)));
        let mut agent = scene.spawn(&more);
        let named = right.missing();
        let mut turn = 0;
        until(&format!("the agent says that it {named}"), || {
            // What is denied is what Events are made of.
            assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted, "without {right:?}");
            if right.verb == "patch" {
                turn += 1;
                let (next, last) = if turn % 2 == 0 { ("first", "second") } else { ("second", "first") };
                scene.put(&network_policy(next));
                scene.delete(&network_policy(last));
                for _ in 0..20 {
                    assert_eq!(net.connect(at(BAD)).outcome, Outcome::NotPermitted, "without {right:?}");
                    thread::sleep(Duration::from_millis(20));
                }
            }
            agent.log().replace('\\', "").contains(&named)
        });
        assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok, "without {right:?}");
        assert_eq!(agent.get("/healthz").expect("the agent answers").0, 200, "without {right:?}");
        let (code, reasons) = agent.get("/readyz").expect("the agent answers");
        // Without its list nothing of a kind is known; without its watch it is known as it was.
        if right.verb == "list" {
            assert_eq!(code, 503, "without {right:?}: {reasons}");
        }
        println!("without {} on {}: {code} {reasons}", right.verb, right.resource);
        good(server.put(role));
        agent.ready();
        assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted, "with {right:?} again");
        scene.terminate(agent);
    }

    // What it tells the cluster of its node.
    let [role] = &roles(&server, &good(summary::shipped()))[..] else { panic!("one role is shipped") };
    summary::apply_component(&server);
    scene.put(&summary::node_object(&scene.node));
    scene.kubeconfig = good(server.kubeconfig_on(AGENTS, AGENTS, &scene.node));
    for right in rights::of(role) {
        good(server.put(&rights::without(role, &right)));
        let agent = scene.run(&EVERY);
        let named = right.missing();
        until(&format!("the agent says that it {named}"), || agent.log().replace('\\', "").contains(&named));
        assert_eq!(agent.get("/readyz").expect("the agent answers").0, 200, "enforcement does not need it");
        assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted, "without {right:?}");
        scene.terminate(agent);
    }
    good(server.put(role));
    let agent = scene.run(&EVERY);
    until("its summary is written", || summary::published(&server, &scene.node).is_some());
    scene.terminate(agent);
    scene.delete(&summary::node_object(&scene.node));
    good(server.remove_namespace(&other));
    scene.clean();
}
