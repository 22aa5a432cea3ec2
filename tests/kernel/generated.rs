//! A real API server takes the NetworkPolicies that are generated, and keeps them as they are.

use std::{io::Write as _, path::Path};

use anyhow::Result;
use egress_agent::{
    k8s::{
        generated::{Origin, object},
        manifests,
    },
    policy::{
        cluster::{Cluster, Settings},
        generate::scenario,
        generated::{Generator, Inexpressible, Options},
        index::{Change, Index},
    },
};
use egress_tests::lab::api::{Server, real};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Value, json};

const APPLY: &str = "application/apply-patch+yaml";
const JSON: &str = "application/json";

fn skip(why: &str) {
    // The harness may have begun a line with the name of the test.
    let line = format!("\nSKIPPED cluster: {why}\n");
    std::io::stdout().write_all(line.as_bytes()).expect("standard output is open");
}

/// Returns the objects of every policy of a cluster.
fn objects(cluster: &Cluster, settings: &Settings, options: &Options, now: u64) -> Vec<NetworkPolicy> {
    let generator = Generator::new(cluster, settings, options, now);
    let mut objects = Vec::new();
    for id in generator.policies() {
        let made = generator.generate(id);
        let origin = Origin { policy: &id.id, revision: Some("17"), owner: None, losses: &made.losses };
        objects.extend(made.objects.iter().map(|plain| object(plain, &origin)));
    }
    objects
}

/// Returns what the server answers to applying an object with strict checks.
fn apply(server: &Server, object: &NetworkPolicy, query: &str) -> Result<Value> {
    let (namespace, name) = (object.metadata.namespace.as_deref(), object.metadata.name.as_deref());
    let path = format!(
        "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies/{}?fieldManager=egress-agent&fieldValidation=Strict{query}",
        namespace.expect("it has a namespace"),
        name.expect("it has a name")
    );
    server.request("PATCH", &path, APPLY, &serde_json::to_value(object).expect("it is JSON"))
}

/// Applies objects: dry, in earnest, and once more.
fn stored(server: &Server, objects: &[NetworkPolicy]) {
    for object in objects {
        let said = || serde_json::to_string_pretty(object).expect("it is JSON");
        apply(server, object, "&dryRun=All").unwrap_or_else(|error| panic!("{error:#}: {}", said()));
        let first = apply(server, object, "").unwrap_or_else(|error| panic!("{error:#}: {}", said()));
        let mut spec = serde_json::to_value(&object.spec).expect("it is JSON");
        // The server leaves an empty list out.
        let is_empty = spec["egress"].as_array().is_some_and(Vec::is_empty);
        if is_empty && let Some(fields) = spec.as_object_mut() {
            fields.remove("egress");
        }
        assert_eq!(first["spec"], spec, "the server keeps it as it is");
        let again = apply(server, object, "").expect("it is taken again");
        let version = |answer: &Value| answer["metadata"]["resourceVersion"].clone();
        // So each time it is said, it is taken for a change; the controller says it only where something differs.
        assert!(is_empty || version(&first) == version(&again), "applying the same changes nothing");
    }
}

fn namespace(server: &Server, name: &str) {
    server
        .create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
        .expect("the namespace is created");
}

#[test]
fn a_real_server_takes_what_is_generated() {
    let binaries = match real::binaries() {
        Ok(binaries) => binaries,
        Err(error) => return skip(&format!("{error:#}")),
    };
    let server = Server::real(&binaries, &real::Settings::default()).expect("the real server starts");
    for name in ["shop", "alpha", "beta", "gamma"] {
        namespace(&server, name);
    }

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../egress-agent/tests/generated/manifests.yaml");
    let (mut index, mut options) = (Index::default(), Options::default());
    for file in manifests::load(&path).expect("the manifests can be read").files {
        options.selectors.extend(file.selectors);
        for (_, object) in file.objects {
            // All of them are there before the first is asked for.
            let _: Change = index.apply(object);
        }
    }
    let made = objects(index.cluster(), &Settings::default(), &options, 1_800_000_000);
    assert_eq!(made.len(), 3);
    stored(&server, &made);

    let mut runner =
        TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let scenarios = scenario();
    let mut count = 0;
    for number in 0..60 {
        let scenario = scenarios.new_tree(&mut runner).expect("the strategy filters nothing").current();
        let modes = [Inexpressible::Widen, Inexpressible::Omit, Inexpressible::Skip];
        let options = Options { inexpressible: modes[number % 3], ..Options::default() };
        let made = objects(&scenario.cluster, &scenario.settings, &options, scenario.now);
        stored(&server, &made);
        count += made.len();
        for object in &made {
            server.delete(object).expect("it is deleted");
        }
    }
    assert!(count > 30, "only {count} objects");

    // It does look.
    let mut bad = made[0].clone();
    bad.spec.as_mut().expect("it has a spec").policy_types = Some(vec!["egress".to_owned()]);
    let refused = apply(&server, &bad, "&dryRun=All").expect_err("there is no such type");
    assert!(format!("{refused:#}").contains("policyTypes"), "{refused:#}");
    let misspelt = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "misspelt"}, "spec": {"podSelector": {}, "egres": []}});
    let path = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies?fieldValidation=Strict&dryRun=All";
    let refused = server.request("POST", path, JSON, &misspelt).expect_err("there is no such field");
    assert!(format!("{refused:#}").contains("egres"), "{refused:#}");
}
