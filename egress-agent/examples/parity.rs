//! Measures how long it takes to generate NetworkPolicies and to compare them with the kernel layer.
//!
//! `cargo run --release -p egress-agent --example parity`

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use egress_agent::{
    parity::{Objects, compare},
    policy::{
        cluster::{Cluster, Labels, NsName, Pod, Settings},
        document,
        generated::{Generator, Options},
        model::PolicyId,
    },
};

const NOW: u64 = 1_800_000_000;
const RUNS: usize = 20;

fn policy(cluster: &mut Cluster, namespace: &str, name: &str, app: &str, cidrs: usize) {
    let list: Vec<String> = (0..cidrs)
        .map(|number| format!("\"10.{}.{}.{}/30\"", number % 200, number / 200 % 250, number % 16 * 8))
        .collect();
    let text = format!(
        r#"{{"podSelector": {{"matchLabels": {{"app": "{app}"}}}}, "allowedDestinations": [
            {{"name": "list", "cidrs": [{}], "ports": [443, 8443]}},
            {{"name": "web", "entity": "world", "ports": [443]}}],
            "deniedDestinations": [{{"name": "imds", "cidr": "169.254.169.254/32"}}]}}"#,
        list.join(", ")
    );
    let policy = document::parse(&NsName::new(namespace, name), &text).policy.expect("it is valid");
    cluster.policies.insert(policy.id.clone(), Arc::new(policy));
    let labels: Labels = [("app".to_owned(), app.to_owned())].into_iter().collect();
    cluster.pods.insert(NsName::new(namespace, app), Pod { labels, ..Pod::default() });
}

fn median(mut run: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[RUNS / 2]
}

fn main() {
    let (settings, options) = (Settings::default(), Options::default());
    let mut one = Cluster::default();
    policy(&mut one, "shop", "big", "web", 1000);
    let objects = Objects::of(&one, &settings, &options, NOW);
    let outcome = compare(&one, &settings, &objects, NOW);
    assert_eq!((outcome.pods, outcome.undeclared().count()), (1, 0), "the sides agree");
    let generating = median(|| drop(Objects::of(&one, &settings, &options, NOW)));
    let comparing = median(|| drop(compare(&one, &settings, &objects, NOW)));
    println!(
        "one policy of 1000 prefixes: generated in {generating:?}, compared (with compiling) in {comparing:?}"
    );

    for (namespaces, each) in [(100, 10), (1, 1000)] {
        let mut many = Cluster::default();
        for number in 0..namespaces * each {
            let (namespace, app) = (format!("ns-{}", number / each), format!("app-{number}"));
            policy(&mut many, &namespace, &app, &app, 5);
        }
        let start = Instant::now();
        let generator = Generator::new(&many, &settings, &options, NOW);
        let ids: Vec<PolicyId> = generator.policies().cloned().collect();
        let objects: usize = ids.iter().map(|id| generator.generate(id).objects.len()).sum();
        println!(
            "{} policies in {namespaces} namespaces: {objects} objects in {:?}",
            ids.len(),
            start.elapsed()
        );
    }
}
