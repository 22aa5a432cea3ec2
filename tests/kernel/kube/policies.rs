//! Policies, labels, pods and Services as they come and go, each seen by new and by open connections.

use egress_tests::lab::{ANSWER_MILLIS, api::Server, at, wire::Outcome};
use serde_json::{Value, json};

use crate::scene::{BAD, GOOD, Scene, allow, cidr, config_map, is_cut, pod_object, wait};

/// A policy is applied, changed, taken its label and given it again, and deleted.
pub(crate) fn come_change_and_go(server: &Server, name: &str) {
    let scene = Scene::new(server, name);
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    let agent = scene.run(&[]);
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok, "nobody governs the pod yet");
    let open = pod.connect(at(BAD));
    assert_eq!(open.outcome, Outcome::Ok);

    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24")]));
    wait(&pod, BAD, Outcome::NotPermitted);
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok);
    is_cut(&pod, open.id);

    let other = pod.connect(at(GOOD));
    scene.policy("policy", &allow(&[cidr("bad", "198.51.100.0/24")]));
    wait(&pod, GOOD, Outcome::NotPermitted);
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::Ok);
    is_cut(&pod, other.id);
    assert_eq!(pod.exchange(open.id, ANSWER_MILLIS), Outcome::Ok, "the connection of before goes on");

    // A second policy adds to the first.
    scene.policy("second", &allow(&[cidr("good", "192.0.2.0/24")]));
    wait(&pod, GOOD, Outcome::Ok);
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::Ok);
    assert_eq!(pod.exchange(other.id, ANSWER_MILLIS), Outcome::Ok);
    scene.delete_policy("second");
    wait(&pod, GOOD, Outcome::NotPermitted);

    // Without its label the ConfigMap is none of the agent's, with it again it is.
    let map = config_map(&scene.namespace, "policy", "");
    let label = |value: Value| json!({ "metadata": { "labels": { "egress-controller": value } } });
    server.merge(&map, &label(Value::Null)).expect("labels can be changed");
    wait(&pod, GOOD, Outcome::Ok);
    let open = pod.connect(at(GOOD));
    server.merge(&map, &label("managed".into())).expect("labels can be changed");
    wait(&pod, GOOD, Outcome::NotPermitted);
    is_cut(&pod, open.id);

    // What cannot be read leaves the version before in force.
    scene.apply(&config_map(&scene.namespace, "policy", "{"));
    crate::scene::until("the broken policy is counted", || agent.sum("egress_policy_errors", &[]) >= 1.0);
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::NotPermitted);
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::Ok);

    scene.delete_policy("policy");
    wait(&pod, GOOD, Outcome::Ok);
    assert_eq!(pod.exchange(open.id, ANSWER_MILLIS), Outcome::Ok);
    let applied = agent.sum("egress_policy_apply_seconds_count", &[]);
    assert!(applied >= 7.0, "each change was measured: {applied}");
    drop(agent);
    scene.clean();
}

/// A pod is selected and no longer by changes of its labels.
pub(crate) fn labels_of_pods_select(server: &Server, name: &str) {
    let scene = Scene::new(server, name);
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    let other = scene.pod("other", &json!({ "app": "other" }), "10.244.0.6");
    let mut policy = allow(&[cidr("good", "192.0.2.0/24")]);
    policy["podSelector"] = json!({ "matchLabels": { "app": "web" } });
    scene.policy("policy", &policy);
    let agent = scene.run(&[]);
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    let open = other.connect(at(BAD));
    assert_eq!(open.outcome, Outcome::Ok);
    let label = |name: &str, value: &str| {
        let object = pod_object(&scene.namespace, name, &scene.node, &json!({}), "");
        server
            .merge(&object, &json!({ "metadata": { "labels": { "app": value } } }))
            .expect("labels can be changed");
    };
    label("web", "other");
    wait(&pod, BAD, Outcome::Ok);
    label("other", "web");
    wait(&other, BAD, Outcome::NotPermitted);
    is_cut(&other, open.id);
    let metrics = agent.scrape();
    let denied = |pod: &str| {
        metrics.sum("egress_denied_packets_total", &[("namespace", &scene.namespace), ("pod", pod)])
    };
    assert!(denied("other") >= 2.0, "{metrics:?}");
    label("other", "third");
    wait(&other, BAD, Outcome::Ok);
    assert_eq!(other.exchange(open.id, ANSWER_MILLIS), Outcome::Ok);
    drop(agent);
    scene.clean();
}

/// A pod is deleted, and one with the same name and another UID comes: what held for the old cgroup says nothing about the new one.
pub(crate) fn a_pod_comes_again(server: &Server, name: &str) {
    let scene = Scene::new(server, name);
    let labels = json!({ "app": "web" });
    let old = scene.pod("web-0", &labels, "10.244.0.5");
    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24")]));
    let agent = scene.run(&[]);
    assert_eq!(old.connect(at(GOOD)).outcome, Outcome::Ok);
    assert_eq!(old.connect(at(BAD)).outcome, Outcome::NotPermitted);
    let object = pod_object(&scene.namespace, "web-0", &scene.node, &labels, "10.244.0.7");
    scene.delete(&object);
    // Its processes outlive it a while, and are nobody's then.
    wait(&old, GOOD, Outcome::NotPermitted);
    assert_eq!(old.connect(at(BAD)).outcome, Outcome::NotPermitted);
    let new = scene.pod("web-0", &labels, "10.244.0.7");
    assert_ne!(old.uid, new.uid);
    wait(&new, GOOD, Outcome::Ok);
    assert_eq!(new.connect(at(BAD)).outcome, Outcome::NotPermitted);
    assert_eq!(old.connect(at(GOOD)).outcome, Outcome::NotPermitted, "the old one is still nobody's");
    scene.end(&old);
    crate::scene::until("only the new one has series", || {
        let metrics = agent.scrape();
        metrics.sum("egress_pods", &[]) == 1.0 && metrics.sum("egress_pods", &[("state", "governed")]) == 1.0
    });
    let metrics = agent.scrape();
    let denied = metrics.sum("egress_denied_packets_total", &[("pod", "web-0")]);
    assert!((1.0..=3.0).contains(&denied), "the new pod's own denials, and none of the old one's: {denied}");
    drop(agent);
    scene.clean();
}

/// A policy names a Service of another namespace; its endpoints come, change and go.
pub(crate) fn a_service_is_followed(server: &Server, name: &str) {
    let scene = Scene::new(server, name);
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    let infra = format!("{name}-infra");
    server.namespace(&infra, &[]).expect("a namespace can be made");
    let agent = scene.run(&[]);
    let service =
        json!({ "name": "cache", "service": { "namespace": infra, "name": "redis" }, "ports": [6379] });
    scene.policy("policy", &allow(&[service]));
    wait(&pod, GOOD, Outcome::NotPermitted);
    scene.put(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": infra, "name": "redis" },
        "spec": { "ports": [{ "name": "redis", "port": 6379, "targetPort": 443 }] },
    }));
    let slice = |address: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "namespace": infra, "name": "redis-1", "labels": { "kubernetes.io/service-name": "redis" } },
            "addressType": "IPv4", "ports": [{ "name": "redis", "port": 443, "protocol": "TCP" }],
            "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
        })
    };
    scene.put(&slice("192.0.2.10"));
    wait(&pod, GOOD, Outcome::Ok);
    let open = pod.connect(at(GOOD));
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    scene.put(&slice("198.51.100.7"));
    wait(&pod, BAD, Outcome::Ok);
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::NotPermitted);
    is_cut(&pod, open.id);
    scene.delete(&slice("198.51.100.7"));
    wait(&pod, BAD, Outcome::NotPermitted);
    drop(agent);
    server.remove_namespace(&infra).expect("a namespace can be removed");
    scene.clean();
}
