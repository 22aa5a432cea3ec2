//! What the agent does not know for sure never opens a pod.

use std::{fs, thread, time::Duration};

use egress_tests::lab::{
    Qos,
    api::{Fault, Kind, Rule, Server, Verb, When},
    at,
    wire::Outcome,
};
use serde_json::json;

use crate::scene::{BAD, Scene, allow, cidr, pod_object, until, wait};

/// Long enough for an agent that is about to do the wrong thing.
const A_WHILE: Duration = Duration::from_secs(2);

fn refuse(kind: Kind) -> Rule {
    Rule::new(Fault::Refuse { code: 500, retry_after: None }, When::Always).verb(Verb::List).kind(kind)
}

#[test]
fn a_pod_deleted_by_force_keeps_its_policy_until_its_cgroup_goes() {
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "forced");
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24")]));
    let agent = scene.run(&["--pod-start", "standard"]);
    wait(&pod, BAD, Outcome::NotPermitted);
    assert!(scene.double().remove(Kind::Pod, Some(&scene.namespace), "web"));
    thread::sleep(A_WHILE);
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    drop(agent);
    scene.clean();
}

#[test]
fn what_is_pinned_is_newer_than_what_was_kept_in_a_file() {
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "older");
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    let mut agent = scene.spawn_with_snapshot(&[]);
    agent.ready();
    until("the state is kept", || agent.sum("egress_snapshot_timestamp_seconds", &[]) > 0.0);
    thread::sleep(A_WHILE);
    let old = fs::read(&scene.snapshot).expect("it is there");
    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24")]));
    wait(&pod, BAD, Outcome::NotPermitted);
    scene.kill(agent);
    // As when the disk was full, or the agent killed before it could write.
    fs::write(&scene.snapshot, old).expect("it can be written");
    server.stop().expect("it stops");
    let agent = scene.spawn_with_snapshot(&[]);
    agent.unready("sync: not heard yet");
    thread::sleep(A_WHILE);
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    drop(agent);
    server.resume().expect("it comes back");
    scene.clean();
}

/// `world` leaves out the addresses of nodes, so it must not be compiled without them. The nodes are never heard; the state is
/// kept all the same, and an agent begins with it: without an API server, or with one that does not tell of pods.
fn world_without_nodes(unload: bool, alive: bool) {
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "world");
    scene.put(&json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "other" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "198.51.100.7" }] },
    }));
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    scene.double().faults().add(refuse(Kind::Node));
    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24")]));
    let mut agent = scene.spawn_with_snapshot(&[]);
    agent.ready();
    wait(&pod, BAD, Outcome::NotPermitted);
    let world = allow(&[json!({ "name": "all", "entity": "world" })]);
    if !alive {
        scene.policy("policy", &world);
        agent.unready("waiting");
        assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    }
    thread::sleep(A_WHILE);
    scene.terminate(agent);
    if unload {
        scene.unload();
    }
    if alive {
        scene.double().faults().add(refuse(Kind::Pod));
        scene.policy("policy", &world);
    } else {
        server.stop().expect("it stops");
    }
    let agent = scene.spawn_with_snapshot(&[]);
    agent.unready("sync: not heard yet");
    thread::sleep(A_WHILE);
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    drop(agent);
    scene.double().faults().clear();
    if !alive {
        server.resume().expect("it comes back");
    }
    scene.clean();
}

#[test]
fn world_is_never_wider_for_what_was_not_heard_when_the_state_was_kept() {
    world_without_nodes(true, false);
    world_without_nodes(false, false);
}

#[test]
fn world_is_never_wider_for_what_was_not_heard_since_the_state_was_kept() {
    world_without_nodes(true, true);
    world_without_nodes(false, true);
}

#[test]
fn a_pod_nobody_governed_does_not_wait_for_ever() {
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "waits");
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    let agent = scene.run(&[]);
    wait(&pod, BAD, Outcome::Ok);
    scene.double().faults().add(refuse(Kind::Service));
    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24")]));
    agent.unready("waiting");
    // Three seconds, and up to five until it is looked at.
    thread::sleep(Duration::from_secs(9));
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    drop(agent);
    scene.double().faults().clear();
    scene.clean();
}

#[test]
fn a_pod_that_claims_to_be_a_static_one_is_not_believed() {
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "static");
    let hash = "0123456789abcdef0123456789abcdef";
    let victim = scene.lab.pod(hash, Qos::Burstable, &["10.244.0.7"]).expect("a pod");
    server.namespace("system", &[]).expect("a namespace");
    let annotations = json!({ "kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash });
    let mut mirror = pod_object("system", "apiserver", &scene.node, &json!({}), "10.244.0.7");
    mirror["metadata"]["annotations"] = annotations.clone();
    mirror["status"]["hostIP"] = "192.0.2.1".into();
    scene.put(&mirror);
    let agent = scene.run(&[]);
    wait(&victim, BAD, Outcome::Ok);
    scene.policy("policy", &allow(&[]));
    // Kubelet gives it no status, since it has no such pod.
    let mut fake = pod_object(&scene.namespace, "fake", &scene.node, &json!({}), "");
    fake["metadata"]["annotations"] = annotations;
    fake.as_object_mut().expect("an object").remove("status");
    scene.put(&fake);
    thread::sleep(A_WHILE);
    assert_eq!(
        victim.connect(at(BAD)).outcome,
        Outcome::Ok,
        "another namespace's policy does not hold for it"
    );
    drop(agent);
    scene.clean();
}
