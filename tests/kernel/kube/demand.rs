//! An agent follows what its policies need, and no more.

use std::{collections::BTreeSet, time::Duration};

use egress_tests::lab::{
    api::{Fault, Kind, Rule, Server, Verb, When},
    at,
    wire::Outcome,
};
use serde_json::json;

use crate::scene::{BAD, GOOD, Scene, allow, cidr, until, wait};

/// What is watched: kind, namespace, and what pods are asked for.
fn watched(scene: &Scene<'_>) -> BTreeSet<String> {
    let open = scene.double().open_watches();
    let lines = open.iter().map(|asked| {
        let namespace = asked.namespace.as_deref().unwrap_or("*");
        let pods = match asked.kind {
            Kind::Pod if asked.fields == format!("spec.nodeName={}", scene.node) => " of this node",
            Kind::Pod => " of other nodes",
            _ => "",
        };
        format!("{:?}{pods} in {namespace}", asked.kind)
    });
    lines.collect()
}

#[track_caller]
fn watches(scene: &Scene<'_>, more: &[String]) {
    let base = ["ConfigMap in *", "Namespace in *", "Pod of this node in *"];
    let wanted: BTreeSet<String> = base.iter().map(ToString::to_string).chain(more.iter().cloned()).collect();
    until(&format!("watched is {:?}, not {wanted:?}", watched(scene)), || watched(scene) == wanted);
}

#[test]
fn only_what_policies_need_is_watched() {
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "t");
    let own = scene.namespace.clone();
    let all = |kinds: &[&str], namespace: &str| -> Vec<String> {
        kinds.iter().map(|kind| format!("{kind} in {namespace}")).collect()
    };
    let services = ["Service", "EndpointSlice"];
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    server.namespace("elsewhere", &[]).expect("a namespace can be made");
    // A policy of a namespace without pods here needs nothing.
    let world = json!({ "name": "all", "entity": "world" });
    scene.put(&crate::scene::config_map(
        "elsewhere",
        "wide",
        &allow(std::slice::from_ref(&world)).to_string(),
    ));
    let agent = scene.run(&[]);
    watches(&scene, &[]);

    let mut policy = allow(&[cidr("good", "192.0.2.0/24")]);
    policy["clusterDns"] = false.into();
    scene.policy("policy", &policy);
    wait(&pod, BAD, Outcome::NotPermitted);
    watches(&scene, &[]);

    policy["clusterDns"] = true.into();
    scene.policy("policy", &policy);
    watches(&scene, &all(&services, "kube-system"));

    let pods = json!({ "name": "peers", "pods": { "podSelector": {} } });
    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24"), pods]));
    let mut needed = all(&services, "kube-system");
    needed.extend(all(&["Pod of other nodes", "Service", "EndpointSlice"], &own));
    watches(&scene, &needed);
    let counts = scene.double().counts();
    let of_all = counts.keys().filter(|asked| {
        asked.namespace.is_none() && matches!(asked.kind, Kind::Service | Kind::EndpointSlice | Kind::Node)
    });
    assert_eq!(of_all.count(), 0, "nothing was ever asked about all namespaces: {counts:?}");
    let remote =
        counts.keys().filter(|asked| asked.kind == Kind::Pod && !asked.fields.starts_with("spec.nodeName="));
    assert!(remote.clone().all(|asked| asked.namespace.as_deref() == Some(&own)), "{counts:?}");

    scene.policy("policy", &allow(&[world]));
    watches(&scene, &all(&["Pod of other nodes", "Service", "EndpointSlice", "Node"], "*"));
    wait(&pod, BAD, Outcome::Ok);

    // Watches linger when nobody needs them any more; none is begun.
    scene.double().reset_counts();
    scene.delete_policy("policy");
    policy["clusterDns"] = false.into();
    scene.policy("narrow", &policy);
    wait(&pod, BAD, Outcome::NotPermitted);
    std::thread::sleep(Duration::from_secs(1));
    let begun = scene.double().counts();
    let begun = begun
        .iter()
        .filter(|(asked, count)| count.requests > 0 && matches!(asked.verb, Verb::List | Verb::Watch));
    assert_eq!(begun.count(), 0, "{:?}", scene.double().counts());
    drop(agent);
    scene.clean();
}

#[test]
fn a_policy_waits_for_what_it_needs_to_know() {
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "t");
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    let mut policy = allow(&[cidr("good", "192.0.2.0/24")]);
    policy["clusterDns"] = false.into();
    scene.policy("policy", &policy);
    let mut agent = scene.run(&[]);
    let slow = Fault::Delay(Duration::from_secs(4));
    scene.double().faults().add(Rule::new(slow, When::Always).verb(Verb::List).kind(Kind::Service));
    let service = json!({ "name": "cache", "service": { "namespace": "kube-system", "name": "cache" } });
    let mut next = allow(&[cidr("bad", "198.51.100.0/24"), service]);
    next["clusterDns"] = false.into();
    scene.policy("policy", &next);
    agent.unready("waiting: what the policies of 1 pods need to know");
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok, "the policy before is in force");
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    wait(&pod, GOOD, Outcome::NotPermitted);
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::Ok);
    agent.ready();
    drop(agent);
    scene.clean();
}
