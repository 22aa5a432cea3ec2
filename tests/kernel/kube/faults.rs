//! An API server that fails in every way a server, a network and a cache in between can, while policies change.

use std::{thread, time::Duration};

use egress_tests::lab::{
    Pod,
    api::{Fault, Kind, Rule, Server, Verb, When},
    at,
    wire::Outcome,
};
use serde_json::{Value, json};

use crate::scene::{BAD, GOOD, Running, Scene, allow, cidr, config_map, until, wait};

/// The places a policy of these tests can allow, all of them at the host outside.
const PLACES: [&str; 8] = [
    "203.0.113.1:443",
    "203.0.113.2:443",
    "203.0.113.3:443",
    "203.0.113.4:443",
    "203.0.113.5:443",
    "203.0.113.6:443",
    "203.0.113.7:443",
    "203.0.113.8:443",
];

fn scene(server: &Server) -> Scene<'_> {
    let mut addresses = vec!["192.0.2.10", "198.51.100.7"];
    addresses.extend(PLACES.iter().map(|place| place.split(':').next().expect("there is an address")));
    Scene::with_outside(server, "t", &addresses)
}

/// Waits until the policy has changed from what is good to what is bad, and the agent is at rest.
fn has_turned(pod: &Pod, agent: &mut Running) {
    wait(pod, BAD, Outcome::Ok);
    wait(pod, GOOD, Outcome::NotPermitted);
    agent.ready();
}

/// The policy for one place.
fn place(scene: &Scene<'_>, number: usize) -> Value {
    let address = PLACES[number].split(':').next().expect("there is an address");
    let policy = allow(&[cidr("place", &format!("{address}/32"))]);
    config_map(&scene.namespace, &format!("place-{number}"), &policy.to_string())
}

/// Makes a policy and deletes it.
fn nudge(scene: &Scene<'_>) {
    let all = allow(&[cidr("all", "0.0.0.0/0")]);
    scene.put(&config_map("default", "nudge", &all.to_string()));
    scene.delete(&config_map("default", "nudge", ""));
}

/// What goes wrong, and how often.
fn all(events: u32) -> [(&'static str, Fault, When); 10] {
    let times = When::Times(events);
    [
        ("too old", Fault::GoneLater, times),
        ("cut", Fault::Cut, times),
        ("429", Fault::Refuse { code: 429, retry_after: Some(1) }, times),
        ("500", Fault::Refuse { code: 500, retry_after: None }, times),
        ("no JSON", Fault::Malformed, times),
        ("twice", Fault::Duplicate, When::Always),
        ("out of order", Fault::Swap, When::Chance(0.5)),
        ("late", Fault::SlowEvent(Duration::from_millis(300)), When::Chance(0.3)),
        ("odd", Fault::Odd, times),
        ("refused as too old", Fault::Gone, times),
    ]
}

/// Each fault in turn strikes watches and lists while policies come and go; afterwards the kernel holds what the server has.
#[test]
fn after_each_fault_the_kernel_holds_what_the_server_has() {
    let server = Server::double().expect("the double starts");
    let scene = scene(&server);
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    scene.policy("base", &allow(&[cidr("good", "192.0.2.0/24")]));
    let mut agent = scene.run(&[]);
    let faults = scene.double().faults();
    let mut there = [false; PLACES.len()];
    for (round, (what, fault, when)) in all(2).into_iter().enumerate() {
        let rules =
            [Verb::Watch, Verb::List].map(|verb| faults.add(Rule::new(fault.clone(), when).verb(verb)));
        let strikes = || rules.iter().map(|rule| faults.strikes(*rule)).sum::<u64>();
        if fault == Fault::Odd {
            // What it takes the place of is lost, which nobody can notice; so that is nothing anybody misses.
            nudge(&scene);
            until("it has struck", || strikes() == 2);
        }
        for step in 0..6 {
            let number = (round * 5 + step * 3) % PLACES.len();
            if there[number] {
                scene.delete(&place(&scene, number));
            } else {
                scene.put(&place(&scene, number));
            }
            there[number] = !there[number];
            thread::sleep(Duration::from_millis(20));
        }
        if matches!(fault, Fault::Refuse { .. } | Fault::Gone) {
            // These strike only who asks anew.
            scene
                .double()
                .faults()
                .add(Rule::new(Fault::Cut, When::Times(1)).verb(Verb::Watch).kind(Kind::ConfigMap));
            nudge(&scene);
        }
        assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted, "{what}: nothing opens");
        assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok, "{what}: nothing closes");
        until(&format!("{what} has struck"), || strikes() > 0);
        for (number, there) in there.iter().enumerate() {
            // Nobody serves there: what is allowed is refused by the host.
            wait(&pod, PLACES[number], if *there { Outcome::Refused } else { Outcome::NotPermitted });
        }
        println!("{what}: {} strikes", strikes());
        faults.clear();
    }
    agent.ready();
    assert!(agent.says("the API server does not tell of managed configmaps") >= 1, "{}", agent.log());
    let rejected = || agent.sum("egress_api_rejected_objects", &[]);
    until("nothing is rejected any more", || rejected() == 0.0);
    let entries = |agent: &Running| agent.scrape().0.remove("egress_map_entries");
    let held = entries(&agent);
    scene.terminate(agent);
    scene.unload();
    let fresh = scene.run(&[]);
    assert_eq!(entries(&fresh), held, "a fresh agent puts the same into the kernel");
    drop(fresh);
    scene.clean();
}

/// An object that fits no kind costs itself: the others of its list count, and one line tells of it.
#[test]
fn an_odd_object_in_a_list_costs_itself() {
    let server = Server::double().expect("the double starts");
    let scene = scene(&server);
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    for number in 0..4 {
        scene.put(&place(&scene, number));
    }
    scene.policy("zone", &allow(&[cidr("good", "192.0.2.0/24")]));
    let odd = Rule::new(Fault::Odd, When::Always).kind(Kind::ConfigMap);
    scene.double().faults().add(odd.verb(Verb::List));
    let mut agent = scene.run(&[]);
    until("it is counted", || agent.sum("egress_api_rejected_objects", &[]) >= 1.0);
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok, "the others are in force");
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    assert_eq!(agent.says("cannot be read"), 1, "{}", agent.log());
    // What is heard later is taken.
    scene.policy("zone", &allow(&[cidr("bad", "198.51.100.0/24")]));
    has_turned(&pod, &mut agent);
    assert_eq!(agent.says("cannot be read"), 1, "{}", agent.log());
    drop(agent);
    scene.clean();
}

/// A server that says nothing for a while and then drops the connection has not made anybody forget anything.
#[test]
fn silence_and_then_a_drop_lose_nothing() {
    let server = Server::double().expect("the double starts");
    let scene = scene(&server);
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    scene.policy("base", &allow(&[cidr("good", "192.0.2.0/24")]));
    let mut agent = scene.run(&[]);
    let faults = scene.double().faults();
    // The watches that are open are cut, and those that follow are silent.
    let silence = faults.add(Rule::new(Fault::Silence, When::Always).verb(Verb::Watch));
    server.stop().expect("the double stops");
    server.resume().expect("the double listens again");
    until("watches are silent", || faults.strikes(silence) >= 3);
    scene.policy("base", &allow(&[cidr("bad", "198.51.100.0/24")]));
    thread::sleep(Duration::from_secs(1));
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok, "nothing was heard");
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    faults.clear();
    server.stop().expect("the double stops");
    server.resume().expect("the double listens again");
    has_turned(&pod, &mut agent);
    drop(agent);
    scene.clean();
}
