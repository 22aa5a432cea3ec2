use super::*;
use crate::policy::{cluster::NsName, document};

const NOW: u64 = 1_800_000_000;

fn policy(name: &str, text: &str) -> Policy {
    let parsed = document::parse(&NsName::new("shop", name), text);
    parsed.policy.unwrap_or_else(|| panic!("{:?}", parsed.findings))
}

const CHECKOUT: &str = r#"{"podSelector": {"matchLabels": {"app": "checkout"}}, "allowedDestinations": [
    {"name": "stripe", "domains": ["api.stripe.com", "*.stripe.com"], "ports": ["443/TCP", 80]},
    {"name": "metrics", "domain": "metrics.example.com", "ports": [8080, "8125/UDP"]},
    {"name": "any", "domain": "any.example.com"},
    {"name": "lan", "cidr": "10.0.0.0/8"},
    {"name": "gone", "domain": "gone.example.com", "ports": [443], "governance": {"expiry": "2026-01-01"}}]}"#;

#[test]
fn only_domains_that_hold_now_are_taken() {
    let audited = policy(
        "audited",
        r#"{"mode": "audit", "allowedDestinations": [{"name": "a", "domain": "a.example.com", "ports": [443]}]}"#,
    );
    let policies = [policy("checkout", CHECKOUT), audited];
    let (destinations, notes) = destinations(policies.iter(), NOW);
    let names: Vec<(&str, &[u16])> =
        destinations.iter().map(|one| (one.name.as_str(), &one.ports[..])).collect();
    assert_eq!(names, [("stripe", &[80, 443][..]), ("metrics", &[8080]), ("any", &[80, 443])]);
    let notes: Vec<String> = notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        notes,
        [
            "shop/checkout: metrics: UDP has no names a proxy could read: it is left out",
            "shop/checkout: any: it names no ports: 80 and 443 are generated",
            "shop/audited: a: its policy is audited, and a proxy has no audit: nothing is generated for it",
        ]
    );
}

#[test]
fn names_and_wildcards_are_apart_for_istio() {
    let policy = policy("checkout", CHECKOUT);
    let (destinations, _) = destinations(std::iter::once(&policy), NOW);
    let entries = istio::entries(&destinations);
    let told: Vec<String> = entries
        .iter()
        .map(|entry| {
            let spec = &entry["spec"];
            format!("{} {} {}", entry["metadata"]["name"], spec["hosts"], spec["resolution"])
        })
        .collect();
    assert_eq!(
        told,
        [
            r#""egress-checkout" ["api.stripe.com"] "DNS""#,
            r#""egress-checkout-2" ["*.stripe.com"] "NONE""#,
            r#""egress-checkout-3" ["metrics.example.com"] "DNS""#,
            r#""egress-checkout-4" ["any.example.com"] "DNS""#,
        ]
    );
    let advice = istio::advice(&[&policy]);
    assert!(advice.lines().all(|line| line.starts_with('#')), "{advice}");
    assert!(advice.contains(r#"workloadSelector: {labels: {"app": "checkout"}}"#), "{advice}");
    assert!(advice.contains("REGISTRY_ONLY"), "{advice}");
}

#[test]
fn envoy_knows_the_names_of_each_port_and_no_others() {
    let policy = policy("checkout", CHECKOUT);
    let (destinations, _) = destinations(std::iter::once(&policy), NOW);
    let bootstrap = envoy::bootstrap(&destinations).expect("the ports are low");
    let listeners = bootstrap["static_resources"]["listeners"].as_array().expect("there are listeners");
    let names: Vec<&str> = listeners.iter().filter_map(|listener| listener["name"].as_str()).collect();
    assert_eq!(names, ["http_80", "tls_443", "http_8080"]);
    let matched = &listeners[1]["filter_chains"][0]["filter_chain_match"];
    assert_eq!(
        matched["server_names"],
        serde_json::json!(["*.stripe.com", "any.example.com", "api.stripe.com"])
    );
    assert_eq!(matched["transport_protocol"], "tls");
    assert_eq!(listeners[1]["filter_chains"].as_array().map(Vec::len), Some(1));
    assert!(listeners[1].get("default_filter_chain").is_none(), "what has no chain is closed");
    let hosts = |listener: usize| {
        let config = &listeners[listener]["filter_chains"][0]["filters"][0]["typed_config"];
        let hosts = &config["route_config"]["virtual_hosts"];
        assert_eq!(hosts[1]["routes"][0]["direct_response"]["status"], 403);
        hosts[0]["domains"].clone()
    };
    let usual = [
        "*.stripe.com",
        "*.stripe.com:80",
        "any.example.com",
        "any.example.com:80",
        "api.stripe.com",
        "api.stripe.com:80",
    ];
    assert_eq!(hosts(0), serde_json::json!(usual));
    assert_eq!(hosts(2), serde_json::json!(["metrics.example.com:8080"]), "an unusual port must be named");
    let high = [Destination { ports: vec![60_000], ..destinations[0].clone() }];
    assert_eq!(envoy::bootstrap(&high), Err(envoy::TooHigh(60_000)));
}
