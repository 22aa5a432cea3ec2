//! Agents that start while no API server answers, and what happens when it is back.

use egress_tests::lab::{
    ANSWER_MILLIS,
    api::{Kind, Server},
    at,
    wire::Outcome,
};
use serde_json::json;

use crate::scene::{BAD, GOOD, Scene, allow, cidr, of, until, wait, watch};

/// Killed, and started again without a server: what is pinned is enforced, and the agent says what it has not heard.
pub(crate) fn pins_hold(server: &Server, name: &str) {
    let scene = Scene::new(server, name);
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24")]));
    let agent = scene.run(&[]);
    let open = pod.connect(at(GOOD));
    let seen = watch(&pod, &["192.0.2.10:9", "198.51.100.7:9"]);
    scene.kill(agent);
    server.stop().expect("the server can be stopped");
    let mut agent = scene.spawn(&[]);
    agent.unready("sync: not heard yet from the API server");
    assert_eq!(agent.get("/healthz").expect("the agent answers").0, 200);
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok);
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    assert_eq!(pod.exchange(open.id, ANSWER_MILLIS), Outcome::Ok);
    // Another start of it changes nothing.
    scene.kill(agent);
    agent = scene.spawn(&[]);
    agent.unready("sync: not heard yet");
    assert!(!agent.scrape().0.contains_key("egress_state_age_seconds"), "there is no state yet");
    server.resume().expect("the server starts again");
    agent.ready();
    let seen = pod.close(seen);
    assert_eq!(of(&seen, 0), [Outcome::Ok], "what is allowed never failed: {seen:?}");
    assert_eq!(of(&seen, 1), [Outcome::NotPermitted], "what is denied never passed: {seen:?}");
    assert_eq!(pod.exchange(open.id, ANSWER_MILLIS), Outcome::Ok);
    assert_eq!(agent.sum("egress_state_age_seconds", &[]), 0.0);
    // And it follows.
    scene.policy("policy", &allow(&[cidr("bad", "198.51.100.0/24")]));
    wait(&pod, GOOD, Outcome::NotPermitted);
    drop(agent);
    scene.clean();
}

/// As after a reboot: nothing is pinned, no server answers, and there is a file.
pub(crate) fn kept_state_holds(server: &Server, name: &str) {
    let scene = Scene::new(server, name);
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    let free = scene.pod("free", &json!({ "app": "free" }), "10.244.0.6");
    let mut policy = allow(&[cidr("good", "192.0.2.0/24")]);
    policy["podSelector"] = json!({ "matchLabels": { "app": "web" } });
    scene.policy("policy", &policy);
    let mut agent = scene.spawn_with_snapshot(&[]);
    agent.ready();
    until("the state is kept", || agent.sum("egress_snapshot_timestamp_seconds", &[]) > 0.0);
    // Told to end, it writes what has changed last.
    let mut second = allow(&[cidr("late", "203.0.113.9/32")]);
    second["podSelector"] = policy["podSelector"].clone();
    scene.policy("second", &second);
    scene.out.serve_tcp(at("203.0.113.9:443"));
    wait(&pod, "203.0.113.9:443", Outcome::Ok);
    scene.terminate(agent);
    scene.unload();
    wait(&pod, BAD, Outcome::Ok);

    server.stop().expect("the server can be stopped");
    let mut agent = scene.spawn_with_snapshot(&[]);
    agent.unready("sync: not heard yet");
    wait(&pod, BAD, Outcome::NotPermitted);
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok);
    assert_eq!(pod.connect(at("203.0.113.9:443")).outcome, Outcome::Ok);
    assert_eq!(free.connect(at(BAD)).outcome, Outcome::Ok);
    assert_eq!(agent.get("/healthz").expect("the agent answers").0, 200);
    assert_eq!(agent.says("starting from the last good state"), 1, "{}", agent.log());
    until("the state grows old", || agent.sum("egress_state_age_seconds", &[]) >= 2.0);

    // Something happens behind its back, where that can be done without the server.
    let gone = server
        .as_double()
        .is_some_and(|double| double.remove(Kind::ConfigMap, Some(&scene.namespace), "policy"));
    server.resume().expect("the server starts again");
    agent.ready();
    assert_eq!(agent.sum("egress_state_age_seconds", &[]), 0.0);
    if gone {
        wait(&pod, GOOD, Outcome::NotPermitted);
    } else {
        assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok);
    }
    assert_eq!(pod.connect(at("203.0.113.9:443")).outcome, Outcome::Ok);
    scene.delete_policy("second");
    wait(&pod, "203.0.113.9:443", if gone { Outcome::Ok } else { Outcome::NotPermitted });
    drop(agent);
    scene.clean();
}

/// The server comes back with an older history: versions go backwards. An agent that starts believes it, over what is pinned and over
/// what was kept.
#[test]
fn a_server_with_an_older_history_is_believed() {
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "t");
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24")]));
    let before = scene.double().snapshot();
    let mut agent = scene.spawn_with_snapshot(&[]);
    agent.ready();
    scene.policy("second", &allow(&[cidr("bad", "198.51.100.0/24")]));
    scene.policy("policy", &allow(&[cidr("other", "203.0.113.0/24")]));
    wait(&pod, BAD, Outcome::Ok);
    wait(&pod, GOOD, Outcome::NotPermitted);
    let open = pod.connect(at(BAD));
    scene.terminate(agent);
    server.stop().expect("the double stops");
    let mut agent = scene.spawn_with_snapshot(&[]);
    agent.unready("sync: not heard yet");
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::Ok);
    scene.double().restore(&before);
    server.resume().expect("the double listens again");
    wait(&pod, BAD, Outcome::NotPermitted);
    wait(&pod, GOOD, Outcome::Ok);
    crate::scene::is_cut(&pod, open.id);
    agent.ready();
    // It follows from there.
    scene.policy("policy", &allow(&[cidr("bad", "198.51.100.0/24")]));
    wait(&pod, BAD, Outcome::Ok);
    drop(agent);
    scene.clean();
}
