//! What processes may do whose first call comes before anybody has seen their cgroup.

use std::{collections::BTreeMap, time::Duration};

use egress_tests::lab::{
    Qos,
    api::{Fault, Kind, Rule, Server, Verb, When},
    at,
    wire::{Outcome, Reply, Request},
};
use serde_json::{Value, json};

use crate::scene::{BAD, GOOD, Running, Scene, allow, cidr, pod_object, until, wait};

/// How many cgroups are made in each run, and how many processes start in each.
const CGROUPS: usize = 250;
const EACH: u32 = 20;

fn uids(of: &str) -> Vec<String> {
    (0..CGROUPS).map(|number| format!("{of}-89ab-cdef-0123-{number:012}")).collect()
}

/// Starts processes in new cgroups, each with one connection as the first thing it does.
fn start(scene: &Scene<'_>, uids: Vec<String>, each: u32, to: &str) -> Reply {
    let starter = scene.lab.outside(&["10.244.9.9"]).expect("a host can be made");
    let parent = scene.lab.kubepods().path.join("burstable");
    std::fs::create_dir_all(&parent).expect("cgroups can be made");
    starter.ask(&Request::Starts { parent, uids, each, to: at(to) })
}

/// Ten thousand starts, half of them in pods the API server has told of: no connection comes about.
#[test]
fn none_of_ten_thousand_starts_connects() {
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "t");
    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24")]));
    let known = uids("aaaaaaaa");
    let pods = known.iter().enumerate().map(|(number, uid)| {
        let mut pod =
            pod_object(&scene.namespace, &format!("known-{number}"), &scene.node, &json!({}), "10.244.9.9");
        pod["metadata"]["uid"] = uid.as_str().into();
        pod
    });
    scene.double().load(pods).expect("the double takes them");
    let agent = scene.run(&[]);
    let served = scene.out.serve_tcp(at("198.51.100.7:444"));
    let mut total = BTreeMap::<String, u64>::new();
    for uids in [uids("bbbbbbbb"), known] {
        let seen = start(&scene, uids, EACH, "198.51.100.7:444");
        assert_eq!(seen.outcome, Outcome::Ok, "{seen:?}");
        for (outcome, count) in seen.counts {
            *total.entry(outcome).or_default() += count;
        }
    }
    println!("{total:?}");
    assert_eq!(total, BTreeMap::from([(Outcome::NotPermitted.to_string(), 10_000)]));
    assert_eq!(scene.out.served(served), 0, "nobody was served");
    until("nobody is left", || agent.sum("egress_pods", &[]) == 0.0);
    drop(agent);
    scene.clean();
}

/// Where pods start open, the first call passes; the label of one namespace closes that for everybody nobody knows.
#[test]
fn a_namespace_that_asks_for_strict_starts_closes_what_nobody_knows() {
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "t");
    let agent = scene.run(&["--pod-start", "standard"]);
    let few = |of: &str| uids(of).into_iter().take(20).collect::<Vec<_>>();
    let open = start(&scene, few("cccccccc"), 5, BAD);
    assert_eq!(open.count(Outcome::Ok), 100, "{open:?}");
    until("it is counted", || agent.sum("egress_unprotected_packets_total", &[]) >= 100.0);
    label(&scene, &"strict".into());
    let unknown = scene.lab.pod("dddddddd-0000-0000-0000-000000000000", Qos::Burstable, &["10.244.0.9"]);
    wait(&unknown.expect("a pod can be made"), BAD, Outcome::NotPermitted);
    let closed = start(&scene, few("eeeeeeee"), 5, BAD);
    assert_eq!(closed.count(Outcome::NotPermitted), 100, "{closed:?}");
    label(&scene, &Value::Null);
    until("pods start open again", || start(&scene, few("ffffffff"), 1, BAD).count(Outcome::Ok) == 20);
    drop(agent);
    scene.clean();
}

/// A pod is known and its policy is not in force yet, because what that needs has not been heard: the label of its namespace, or
/// else the node, says what it may do until then.
#[test]
fn a_known_pod_starts_as_its_namespace_says() {
    for (node, label_of, wanted) in [
        ("strict", Value::Null, Outcome::NotPermitted),
        ("strict", "standard".into(), Outcome::Ok),
        ("standard", Value::Null, Outcome::Ok),
        ("standard", "strict".into(), Outcome::NotPermitted),
    ] {
        let server = Server::double().expect("the double starts");
        let scene = Scene::new(&server, "t");
        label(&scene, &label_of);
        let service = json!({ "name": "cache", "service": { "namespace": "kube-system", "name": "cache" } });
        let mut policy = allow(&[cidr("good", "192.0.2.0/24"), service]);
        policy["clusterDns"] = false.into();
        scene.policy("policy", &policy);
        let slow = Fault::Delay(Duration::from_secs(4));
        scene.double().faults().add(Rule::new(slow, When::Always).verb(Verb::List).kind(Kind::Service));
        let mut agent: Running = scene.run(&["--pod-start", node]);
        let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
        until("the pod is known", || agent.sum("egress_api_events_total", &[("resource", "pods")]) >= 1.0);
        // Its address comes after it, so nothing is known of it for a moment.
        let seen = pod.connect(at(BAD)).outcome;
        assert_eq!(seen, wanted, "node {node}, namespace {label_of}");
        wait(&pod, BAD, Outcome::NotPermitted);
        wait(&pod, GOOD, Outcome::Ok);
        agent.ready();
        drop(agent);
        scene.clean();
    }
}

fn label(scene: &Scene<'_>, value: &Value) {
    let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": scene.namespace } });
    let patch = json!({ "metadata": { "labels": { "egress-agent.dev/pod-start": value } } });
    scene.server.merge(&object, &patch).expect("labels can be changed");
}
