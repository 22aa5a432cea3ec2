//! An agent that lacks one of the rights it ships with: it says which, and what it enforces stays enforced.

use egress_tests::lab::{
    api::{Server, real},
    at,
    wire::Outcome,
};
use serde_json::{Value, json};

use crate::scene::{BAD, GOOD, Scene, allow, apply_rbac, cidr, good, run_kubectl, shipped_rbac, until, wait};

/// A verb on a resource.
type Right = (String, String);

/// Returns the shipped role as the API has it.
fn role(server: &Server) -> Value {
    let manifest = good(shipped_rbac());
    let printed = good(run_kubectl(
        server,
        &["create", "--dry-run=client", "--validate=false", "--output", "json", "--filename", "-"],
        &manifest,
    ));
    let mut objects: Vec<Value> = Vec::new();
    for document in serde_json::Deserializer::from_str(&printed).into_iter::<Value>() {
        let document = document.expect("kubectl prints JSON");
        match document["items"].as_array() {
            Some(items) => objects.extend(items.iter().cloned()),
            None => objects.push(document),
        }
    }
    let mut roles = objects.into_iter().filter(|object| object["kind"] == "ClusterRole");
    let role = roles.next().expect("a role is shipped");
    assert!(roles.next().is_none(), "one role is shipped");
    role
}

fn words(value: &Value) -> Vec<String> {
    let words = value.as_array().expect("a rule has lists of words").iter();
    words.map(|word| word.as_str().expect("a word is text").to_owned()).collect()
}

/// Returns every right of a role.
fn rights(role: &Value) -> Vec<Right> {
    let rules = role["rules"].as_array().expect("a role has rules").iter();
    rules
        .flat_map(|rule| {
            let verbs = words(&rule["verbs"]);
            words(&rule["resources"])
                .into_iter()
                .flat_map(move |resource| verbs.clone().into_iter().map(move |verb| (verb, resource.clone())))
        })
        .collect()
}

/// Returns a role without one of its rights.
fn without(role: &Value, (verb, resource): &Right) -> Value {
    let mut role = role.clone();
    let mut rules = Vec::new();
    for rule in role["rules"].as_array().expect("a role has rules") {
        let (resources, verbs) = (words(&rule["resources"]), words(&rule["verbs"]));
        let (with, others): (Vec<String>, Vec<String>) =
            resources.into_iter().partition(|other| other == resource);
        let fewer: Vec<String> = verbs.iter().filter(|other| *other != verb).cloned().collect();
        for (resources, verbs) in [(others, verbs), (with, fewer)] {
            if !resources.is_empty() && !verbs.is_empty() {
                rules.push(json!({ "apiGroups": rule["apiGroups"], "resources": resources, "verbs": verbs }));
            }
        }
    }
    role["rules"] = rules.into();
    role
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
    let role = role(&server);
    let scene = Scene::new(&server, "rights");
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    // It speaks of something of every kind.
    let peers = json!({ "name": "peers", "pods": { "podSelector": {} } });
    let world = json!({ "name": "world", "entity": "world", "ports": [1] });
    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24"), peers, world]));
    let more = ["--enforce-network-policy"];
    let agent = scene.run(&more);
    wait(&pod, BAD, Outcome::NotPermitted);
    scene.terminate(agent);
    let set = |role: &Value| {
        good(run_kubectl(&server, &["replace", "--filename", "-"], &role.to_string()));
    };
    // An Event is brought up to date only when a denial comes again after minutes.
    for right in rights(&role).into_iter().filter(|(verb, _)| verb != "patch") {
        let (verb, resource) = &right;
        set(&without(&role, &right));
        let mut agent = scene.spawn(&more);
        let named = format!("cannot {verb} resource \"{resource}\"");
        until(&format!("the agent says that it {named}"), || {
            // What is denied is what Events are made of.
            assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted, "without {right:?}");
            agent.log().replace('\\', "").contains(&named)
        });
        assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok, "without {right:?}");
        assert_eq!(agent.get("/healthz").expect("the agent answers").0, 200, "without {right:?}");
        let (code, reasons) = agent.get("/readyz").expect("the agent answers");
        // Without its list nothing of a kind is known; without its watch it is known as it was.
        if verb == "list" {
            assert_eq!(code, 503, "without {right:?}: {reasons}");
        }
        println!("without {verb} on {resource}: {code} {reasons}");
        set(&role);
        agent.ready();
        assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted, "with {right:?} again");
        scene.terminate(agent);
    }
    scene.clean();
}
