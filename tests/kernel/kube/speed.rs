//! How soon an agent is ready with a full node, and how soon a change is in force. The benchmark measures this with a release build;
//! here only what takes far too long fails.

use std::time::{Duration, Instant};

use egress_tests::lab::{Qos, api::Server};
use serde_json::json;

use crate::scene::{Scene, allow, cidr, config_map, good, pod_object, quantile, until};

const PODS: usize = 110;
const POLICIES: usize = 50;
const CHANGES: usize = 200;

#[test]
fn a_full_node_starts_and_follows() {
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "t");
    let policy = |number: usize, port: usize| {
        let mut policy = allow(&[
            cidr("net", &format!("10.{number}.0.0/16")),
            json!({ "name": "peers", "pods": { "podSelector": { "matchLabels": { "app": format!("app-{number}") } } } }),
            json!({ "name": "one", "cidr": "192.0.2.10/32", "ports": [port] }),
        ]);
        policy["podSelector"] = json!({ "matchLabels": { "app": format!("app-{number}") } });
        config_map(&scene.namespace, &format!("policy-{number}"), &policy.to_string())
    };
    let pods = (0..PODS).map(|number| {
        let uid = format!("aaaaaaaa-0000-0000-0000-{number:012}");
        good(scene.lab.pod_cgroup(&uid, Qos::Burstable));
        let labels = json!({ "app": format!("app-{}", number % POLICIES) });
        let address = format!("10.244.1.{}", number + 1);
        let mut pod = pod_object(&scene.namespace, &format!("pod-{number}"), &scene.node, &labels, &address);
        pod["metadata"]["uid"] = uid.into();
        pod
    });
    scene.double().load(pods).expect("the double takes them");
    scene.double().load((0..POLICIES).map(|number| policy(number, 443))).expect("the double takes them");
    let began = Instant::now();
    let agent = scene.run(&[]);
    let ready = began.elapsed();
    let pods = agent.sum("egress_pods", &[("state", "governed")]);
    assert!(
        (109.5..110.5).contains(&pods),
        "ready means that all pods have their policy, not {pods} of them"
    );
    let before = agent.scrape();
    for change in 0..CHANGES {
        scene.double().load([policy(change % POLICIES, 1000 + change)]).expect("the double takes it");
        std::thread::sleep(Duration::from_millis(10));
    }
    let heard = || agent.sum("egress_api_events_total", &[("resource", "configmaps")]);
    #[expect(clippy::cast_precision_loss, reason = "there are a few hundred")]
    let all = (POLICIES + CHANGES) as f64;
    until("all changes were heard", || heard() >= all);
    let applied = || agent.sum("egress_policy_apply_seconds_count", &[]);
    let first = before.sum("egress_policy_apply_seconds_count", &[]);
    // On a busy machine one flip brings several changes.
    until("changes are in force", || applied() - first >= all / 20.0);
    let metrics = agent.scrape();
    let p99 = quantile(&metrics, 0.99);
    println!(
        "{PODS} pods, {POLICIES} policies: ready {ready:?} after the process began; {} changes, p50 {} s, p99 {p99} s; resident {} kB",
        applied() - first,
        quantile(&metrics, 0.5),
        agent.resident(),
    );
    assert!(ready < Duration::from_secs(20), "ready only after {ready:?}");
    assert!(p99 <= 1.0, "a change takes {p99} s");
    drop(agent);
    scene.clean();
}
