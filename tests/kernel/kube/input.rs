//! Objects nobody should make, and disks nobody should have.

use std::{ffi::CString, fs, os::unix::ffi::OsStrExt as _, path::Path};

use egress_tests::lab::{
    Qos,
    api::{Backend, Server},
    at,
    wire::Outcome,
};
use serde_json::{Value, json};

use crate::scene::{BAD, GOOD, Scene, allow, cidr, config_map, pod_object, uid, until, wait};

/// A pod without a status, two with one address, a node without addresses, a policy of a megabyte: the others are as they should be.
pub(crate) fn odd_objects(server: &Server, name: &str) {
    let scene = Scene::new(server, name);
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    let agent = scene.run(&[]);

    // Of a pod without a status, nobody knows an address; what it sends is judged all the same.
    let mut bare = pod_object(&scene.namespace, "bare", &scene.node, &json!({ "app": "bare" }), "");
    bare.as_object_mut().expect("it is one").remove("status");
    let bare = scene.put(&bare);
    let bare = scene.lab.pod(&uid(&bare), Qos::BestEffort, &["10.244.0.8"]).expect("a pod can be made");
    wait(&bare, BAD, Outcome::Ok);

    // Two pods with the same address, one of them allowed as a peer: the address is.
    scene.api_pod("twin-a", &json!({ "app": "twin", "side": "a" }), "192.0.2.10");
    scene.api_pod("twin-b", &json!({ "app": "twin", "side": "b" }), "192.0.2.10");
    scene.put(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": scene.node } }));
    let peers = json!({ "name": "twin", "pods": { "podSelector": { "matchLabels": { "side": "a" } } } });
    let node = json!({ "name": "node", "entity": "node" });
    scene.policy("policy", &allow(&[peers, node]));
    wait(&pod, BAD, Outcome::NotPermitted);
    wait(&pod, GOOD, Outcome::Ok);
    wait(&bare, BAD, Outcome::NotPermitted);
    assert_eq!(bare.connect(at(GOOD)).outcome, Outcome::Ok);
    // The one that is not selected keeps its address when the other goes.
    scene.delete(&pod_object(&scene.namespace, "twin-a", &scene.node, &json!({}), ""));
    wait(&pod, GOOD, Outcome::NotPermitted);

    // A policy as large as the API lets it be (etcd takes a megabyte and a half, a ConfigMap one megabyte).
    let mut text = allow(&[cidr("good", "192.0.2.0/24")]).to_string();
    let all = (1 << 20) - "policy.json".len();
    text.push_str(&" ".repeat(all - text.len()));
    scene.put(&config_map(&scene.namespace, "policy", &text));
    wait(&pod, GOOD, Outcome::Ok);
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);

    // One that never was valid closes its namespace, and one line says so.
    scene.put(&config_map(&scene.namespace, "broken", "{ \"defaultAction\": \"perhaps\" }"));
    until("the error is counted", || agent.sum("egress_policy_errors", &[("policy", "broken")]) >= 1.0);
    scene.delete_policy("policy");
    wait(&pod, GOOD, Outcome::NotPermitted);
    assert_eq!(agent.says(&format!("policy {}/broken: ", scene.namespace)), 1, "{}", agent.log());
    scene.delete_policy("broken");
    wait(&pod, GOOD, Outcome::Ok);
    drop(agent);
    if server.backend() == Backend::Double {
        assert_eq!(server.as_double().expect("it is one").open_watches().len(), 0);
    }
    scene.delete(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": scene.node } }));
    scene.clean();
}

/// Thousands of policies in one namespace, there before the agent starts and while it runs.
#[test]
fn many_policies_in_one_namespace() {
    const MANY: usize = 10_000;
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "t");
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    let policies = |of: std::ops::Range<usize>| -> Vec<Value> {
        of.map(|number| {
            let [_, _, high, low] = u32::try_from(number).expect("it is small").to_be_bytes();
            let policy = allow(&[cidr("one", &format!("10.77.{high}.{low}/32"))]);
            config_map(&scene.namespace, &format!("policy-{number}"), &policy.to_string())
        })
        .collect()
    };
    scene.double().load(policies(0..MANY)).expect("the double takes them");
    scene.policy("good", &allow(&[cidr("good", "192.0.2.0/24")]));
    let mut agent = scene.run(&["--max-destinations", "65535"]);
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok);
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    scene.double().load(policies(MANY..MANY + 500)).expect("the double takes them");
    until("all of them are in force", || agent.sum("egress_map_entries", &[("map", "EXACT")]) >= 10_500.0);
    assert!(
        agent.says("Service kube-system/kube-dns does not exist") < 30,
        "thousands of times the same is a few lines"
    );
    scene.policy("bad", &allow(&[cidr("bad", "198.51.100.0/24")]));
    wait(&pod, BAD, Outcome::Ok);
    agent.ready();
    drop(agent);
    scene.clean();
}

/// What does not fit into the maps leaves the version before in force, with a line, a reason and a metric.
#[test]
fn what_does_not_fit_leaves_what_was() {
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "t");
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24")]));
    let mut agent = scene.run(&["--max-addresses", "1024"]);
    let cidrs: Vec<String> =
        (0..5_000).map(|number| format!("10.{}.{}.1/32", number / 250, number % 250)).collect();
    scene.policy("policy", &allow(&[json!({ "name": "all", "cidrs": cidrs })]));
    agent.unready("capacity");
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok, "the version before is in force");
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    assert_eq!(agent.says("does not fit"), 1, "{}", agent.log());
    scene.policy("policy", &allow(&[cidr("bad", "198.51.100.0/24")]));
    wait(&pod, BAD, Outcome::Ok);
    agent.ready();
    drop(agent);
    scene.clean();
}

/// The labels of pods and namespaces change while the first lists are under way.
#[test]
fn labels_change_during_the_first_sync() {
    use egress_tests::lab::api::{Fault, Kind, Rule, Verb, When};
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "t");
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    let mut policy = allow(&[cidr("good", "192.0.2.0/24")]);
    policy["podSelector"] = json!({ "matchLabels": { "app": "web" } });
    scene.policy("policy", &policy);
    let slow = Fault::Delay(std::time::Duration::from_secs(2));
    scene.double().faults().add(Rule::new(slow, When::Always).verb(Verb::List).kind(Kind::ConfigMap));
    let mut agent = scene.spawn(&[]);
    agent.unready("managed configmaps");
    let object = pod_object(&scene.namespace, "web", &scene.node, &json!({}), "");
    for value in ["a", "b", "web"] {
        server
            .merge(&object, &json!({ "metadata": { "labels": { "app": value } } }))
            .expect("labels can be changed");
        let mut changed = config_map(&scene.namespace, "policy", &policy.to_string());
        changed["metadata"]["annotations"] = json!({ "turn": value });
        scene.put(&changed);
    }
    agent.ready();
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok);
    drop(agent);
    scene.clean();
}

/// A disk that is full, then one that is read-only: the agent goes on, says so once, and counts.
#[test]
fn a_full_disk_keeps_the_agent_from_nothing_else() {
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "t");
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24")]));
    let folder = scene.snapshot.parent().expect("it is in a folder").to_owned();
    scene.lab.keeper.mount(&folder).expect("the keeper listens");
    fs::create_dir_all(&folder).expect("the lab's folder can be written");
    mount(&folder, 0, "size=64k");
    let mut agent = scene.spawn_with_snapshot(&[]);
    agent.ready();
    until("the state is kept", || agent.sum("egress_snapshot_timestamp_seconds", &[]) > 0.0);
    let kept = fs::read(&scene.snapshot).expect("it is there");
    // More than fits.
    let cidrs: Vec<String> =
        (0..10_000).map(|number| format!("10.{}.{}.1/32", number / 250, number % 250)).collect();
    scene.policy("large", &allow(&[json!({ "name": "all", "cidrs": cidrs })]));
    until("the failure is counted", || agent.sum("egress_snapshot_failures_total", &[]) >= 2.0);
    assert_eq!(agent.says("the state cannot be kept"), 1, "{}", agent.log());
    assert_eq!(fs::read(&scene.snapshot).expect("it is there"), kept, "the one before still counts");
    agent.ready();
    scene.policy("second", &allow(&[cidr("bad", "198.51.100.0/24")]));
    wait(&pod, BAD, Outcome::Ok);
    // There is room again.
    scene.delete_policy("large");
    until("the state is kept again", || fs::read(&scene.snapshot).is_ok_and(|now| now != kept));
    let kept = fs::read(&scene.snapshot).expect("it is there");
    let failures = agent.sum("egress_snapshot_failures_total", &[]);
    mount(&folder, libc::MS_REMOUNT | libc::MS_RDONLY, "size=64k");
    scene.delete_policy("second");
    wait(&pod, BAD, Outcome::NotPermitted);
    until("that is counted, too", || agent.sum("egress_snapshot_failures_total", &[]) > failures);
    assert_eq!(fs::read(&scene.snapshot).expect("it is there"), kept);
    // A start finds it there and usable.
    scene.terminate(agent);
    let mut agent = scene.spawn_with_snapshot(&[]);
    agent.ready();
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    drop(agent);
    scene.clean();
}

fn mount(at: &Path, flags: libc::c_ulong, options: &str) {
    let target = CString::new(at.as_os_str().as_bytes()).expect("a temporary folder has no zero in its name");
    let options = CString::new(options).expect("a constant");
    // SAFETY: strings that end in zero and live as long as the call.
    let result = unsafe {
        libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), flags, options.as_ptr().cast())
    };
    assert_eq!(result, 0, "mounting a tmpfs: {}", std::io::Error::last_os_error());
}
