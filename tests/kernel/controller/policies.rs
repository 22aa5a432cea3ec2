//! Policies as NetworkPolicies in a cluster.

use std::fs;

use egress_tests::lab::api::Server;
use serde_json::{Value, json};

use crate::ranges::{Scene, until};

pub(crate) fn network_policy(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": namespace, "name": name },
    })
}

pub(crate) fn config_map(namespace: &str, name: &str, policy: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "namespace": namespace, "name": name, "labels": { "egress-controller": "managed" } },
        "data": { "policy.json": policy.to_string() },
    })
}

pub(crate) fn allow(destinations: &[Value]) -> Value {
    json!({ "defaultAction": "deny", "clusterDns": false, "allowedDestinations": destinations })
}

pub(crate) fn cidr(cidr: &str) -> Value {
    json!({ "name": "one", "cidr": cidr, "ports": [443] })
}

/// The prefixes that an object allows.
fn blocks(object: &Value) -> Vec<String> {
    let rules = object["spec"]["egress"].as_array().into_iter().flatten();
    let peers = rules.flat_map(|rule| rule["to"].as_array().into_iter().flatten());
    peers.filter_map(|peer| peer["ipBlock"]["cidr"].as_str().map(str::to_owned)).collect()
}

/// Objects come, follow their policy, are put right, and go with it; what is somebody else's stays.
pub(crate) async fn follow(server: &Server) {
    let scene = Scene::shipped(server);
    scene.provide(100, &[("192.0.2.0/24", "us-east-1")]);
    let tenant = "generate-tenant";
    server.namespace(tenant, &[]).expect("a namespace can be made");
    let one = scene.start("one", &[]);
    let get = |name: &str| server.get(&network_policy(tenant, name)).ok();
    server.put(&config_map(tenant, "web", &allow(&[cidr("198.51.100.0/24")]))).expect("it is taken");
    until("the object is there", || {
        get("egress-web").is_some_and(|object| blocks(&object) == ["198.51.100.0/24"])
    });
    let object = get("egress-web").expect("it is there");
    assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/managed-by"], "egress-agent");
    assert_eq!(object["metadata"]["annotations"]["egress-agent.dev/source"], format!("{tenant}/web"));
    assert_eq!(object["metadata"]["ownerReferences"][0]["name"], "web");
    assert_eq!(object["spec"]["egress"][0]["ports"], json!([{ "protocol": "TCP", "port": 443 }]));

    // Nothing is written that need not be.
    let version = object["metadata"]["resourceVersion"].clone();
    server
        .merge(
            &config_map(tenant, "web", &json!({})),
            &json!({ "metadata": { "annotations": { "a": "b" } } }),
        )
        .expect("it is taken");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(get("egress-web").expect("it is there")["metadata"]["resourceVersion"], version);

    server
        .put(&config_map(tenant, "web", &allow(&[json!({ "name": "s3", "awsService": "s3" })])))
        .expect("it is taken");
    until("it follows its policy", || {
        get("egress-web").is_some_and(|object| blocks(&object) == ["192.0.2.0/24"])
    });
    scene.provide(200, &[("203.0.113.0/24", "us-east-1")]);
    until("it follows the ranges", || {
        get("egress-web").is_some_and(|object| blocks(&object) == ["203.0.113.0/24"])
    });

    // Somebody changes it.
    let open = json!({ "spec": { "egress": [{}] } });
    server.merge(&network_policy(tenant, "egress-web"), &open).expect("it is taken");
    until("it is put right", || {
        get("egress-web").is_some_and(|object| blocks(&object) == ["203.0.113.0/24"])
    });

    // It is put right, too, where they say that it is another controller's.
    let theirs = json!({
        "metadata": { "annotations": { "egress-agent.dev/controller": "a/b" } }, "spec": { "egress": [{}] },
    });
    server.merge(&network_policy(tenant, "egress-web"), &theirs).expect("it is taken");
    until("it is put right again", || {
        get("egress-web").is_some_and(|object| {
            object["metadata"]["annotations"]["egress-agent.dev/controller"] != "a/b"
                && blocks(&object) == ["203.0.113.0/24"]
        })
    });

    // One that allows nothing is opened by somebody.
    server.put(&config_map(tenant, "none", &allow(&[]))).expect("it is taken");
    until("it is there", || get("egress-none").is_some());
    server.merge(&network_policy(tenant, "egress-none"), &open).expect("it is taken");
    let is_closed = |object: &Value| object["spec"]["egress"].as_array().is_none_or(Vec::is_empty);
    until("it is closed again", || get("egress-none").is_some_and(|object| is_closed(&object)));

    // A name that is taken.
    let mut foreign = network_policy(tenant, "egress-other");
    foreign["spec"] = json!({ "podSelector": {}, "policyTypes": ["Egress"] });
    server.create(&foreign).expect("it is taken");
    server.put(&config_map(tenant, "other", &allow(&[cidr("198.51.100.0/24")]))).expect("it is taken");
    until("it is told", || one.says("is somebody else's"));
    assert_eq!(blocks(&get("egress-other").expect("it is there")), Vec::<String>::new());

    // An invalid version leaves what was; audited policies have no object.
    server.put(&config_map(tenant, "web", &json!({ "defaultAction": 5 }))).expect("it is taken");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(blocks(&get("egress-web").expect("it is there")), ["203.0.113.0/24"]);
    let mut audit = allow(&[cidr("198.51.100.0/24")]);
    audit["mode"] = "audit".into();
    server.put(&config_map(tenant, "web", &audit)).expect("it is taken");
    until("it goes", || get("egress-web").is_none());

    // A policy goes while nobody looks, and another one is invalid for who comes next.
    server.put(&config_map(tenant, "kept", &allow(&[cidr("198.51.100.0/24")]))).expect("it is taken");
    until("it is there", || get("egress-kept").is_some());
    server.put(&config_map(tenant, "kept", &json!({ "defaultAction": 5 }))).expect("it is taken");
    server.put(&config_map(tenant, "late", &allow(&[cidr("198.51.100.0/24")]))).expect("it is taken");
    until("it is there", || get("egress-late").is_some());
    one.kill(&scene.keeper);
    server.delete(&config_map(tenant, "late", &json!({}))).expect("it is deleted");
    server.delete(&config_map(tenant, "other", &json!({}))).expect("it is deleted");
    let two = scene.start("two", &[]);
    until("its object goes", || get("egress-late").is_none());
    assert_eq!(
        get("egress-kept").map(|object| blocks(&object)),
        Some(vec!["198.51.100.0/24".to_owned()]),
        "nodes may hold the version before"
    );
    assert!(get("egress-other").is_some(), "what is somebody else's stays");

    // One ends.
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(6);
    let mut ending = cidr("198.51.100.0/24");
    ending["governance"] = json!({ "expiry": soon.to_string() });
    server
        .put(&config_map(
            tenant,
            "ending",
            &allow(&[ending, json!({ "name": "two", "cidr": "192.0.2.1/32", "ports": [53] })]),
        ))
        .expect("it is taken");
    until("both are there", || get("egress-ending").is_some_and(|object| blocks(&object).len() == 2));
    until("the one that ended is gone", || {
        get("egress-ending").is_some_and(|object| blocks(&object) == ["192.0.2.1/32"])
    });
    two.end(&scene.keeper);
    let path = format!("/apis/events.k8s.io/v1/namespaces/{tenant}/events");
    let events =
        server.request("GET", &path, "application/json", &Value::Null).expect("they are listed").to_string();
    for reason in ["Accepted", "Rejected", "Generated", "NameTaken", "Overwritten", "Expiring", "Expired"] {
        assert!(events.contains(&format!("\"reason\":\"{reason}\"")), "{reason}: {events}");
    }
    assert!(fs::exists(scene.file()).expect("it can be asked"));
}

/// Of two controllers that do not know of each other, the second leaves alone what the first has made, and says so.
pub(crate) async fn two(server: &Server) {
    let first = Scene::new(server, "generate-first");
    let second = Scene::new(server, "generate-second");
    let tenant = "generate-twice";
    server.namespace(tenant, &[]).expect("a namespace can be made");
    let get = |name: &str| server.get(&network_policy(tenant, name)).ok();
    for scene in [&first, &second] {
        scene.provide(100, &[("192.0.2.0/24", "us-east-1")]);
    }
    let one = first.start("one", &[]);
    server.put(&config_map(tenant, "web", &allow(&[cidr("198.51.100.0/24")]))).expect("it is taken");
    until("the first has made it", || get("egress-web").is_some());
    let object = get("egress-web").expect("it is there");
    assert_eq!(
        object["metadata"]["annotations"]["egress-agent.dev/controller"],
        "generate-first/egress-controller"
    );
    let two = second.start("two", &["--inexpressible", "skip"]);
    until("the second counts what it leaves alone", || two.sum("egress_generated_refused", &[]) >= 1.0);
    let path = format!("/apis/events.k8s.io/v1/namespaces/{tenant}/events");
    let events = || {
        server.request("GET", &path, "application/json", &Value::Null).expect("they are listed").to_string()
    };
    until("it is told", || events().contains("\"reason\":\"AnotherController\""));
    server.put(&config_map(tenant, "web", &allow(&[cidr("192.0.2.0/24")]))).expect("it is taken");
    until("the first goes on", || {
        get("egress-web").is_some_and(|object| blocks(&object) == ["192.0.2.0/24"])
    });
    // What is new is whoever's is first; then it stays theirs.
    let version = |name: &str| get(name).map(|object| object["metadata"]["resourceVersion"].clone());
    server.put(&config_map(tenant, "more", &allow(&[cidr("198.51.100.0/24")]))).expect("it is taken");
    until("it is there", || get("egress-more").is_some());
    std::thread::sleep(std::time::Duration::from_secs(1));
    let before = (version("egress-web"), version("egress-more"));
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert_eq!((version("egress-web"), version("egress-more")), before, "nobody fights");
    assert!(two.sum("egress_generated_writes_total", &[("result", "deleted")]) == 0.0);
    // With the other's name, it goes on with what there is.
    one.end(&first.keeper);
    two.end(&second.keeper);
    let three = second.start("three", &["--instance", "generate-first/egress-controller"]);
    server.put(&config_map(tenant, "web", &allow(&[cidr("203.0.113.0/24")]))).expect("it is taken");
    until("the one in its place goes on", || {
        get("egress-web").is_some_and(|object| blocks(&object) == ["203.0.113.0/24"])
    });
    three.end(&second.keeper);
    server.remove_namespace(tenant).expect("it can be removed");
}

/// A thousand policies at once.
pub(crate) async fn many(server: &Server) {
    let scene = Scene::new(server, "generate-many");
    scene.provide(100, &[("192.0.2.0/24", "us-east-1")]);
    let tenant = "generate-many-tenant";
    server.namespace(tenant, &[]).expect("a namespace can be made");
    let count = if server.as_double().is_some() { 1000 } else { 100 };
    for number in 0_u8..=u8::MAX {
        for half in 0_usize..4 {
            if usize::from(number) * 4 + half < count {
                let policy = allow(&[cidr(&format!("10.{half}.{number}.0/24"))]);
                server
                    .put(&config_map(tenant, &format!("policy-{half}-{number}"), &policy))
                    .expect("it is taken");
            }
        }
    }
    let one = scene.start("one", &[]);
    until("all objects are there", || {
        one.sum("egress_generated_writes_total", &[("result", "written")]) >= count as f64
    });
    let seconds = one.sum("egress_generation_seconds", &[]);
    println!("{count} policies are generated in {seconds:.3} s");
    assert_eq!(one.sum("egress_generated_writes_total", &[("result", "failed")]), 0.0);
    one.end(&scene.keeper);
}
