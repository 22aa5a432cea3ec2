//! The compiler against the brute-force reference, on random clusters.
//!
//! `PROPTEST_CASES` says how many clusters are tried.

use std::{collections::BTreeMap, env, net::IpAddr};

use egress_agent::policy::{
    cluster::Cluster,
    compile::compile,
    demand::{self, Demand, Nodes},
    flow::{Answer, Flow},
    generate::{Scenario, scenario},
    model::Peer,
    reference::{nearest_allow, reference},
    simulate::simulate,
};
use egress_common::verdict::{Reason, Verdict};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

fn cases() -> u32 {
    match env::var("PROPTEST_CASES") {
        Ok(text) => text.parse().expect("PROPTEST_CASES is a number"),
        Err(_) => 3000,
    }
}

fn expected(scenario: &Scenario, flow: &Flow, now: u64) -> Answer {
    let Scenario { cluster, settings, pod, .. } = scenario;
    reference(cluster, settings, pod, flow, now).expect("the pod of a scenario is in its cluster")
}

/// The instants at which a scenario's rules begin to differ: just before its time, at it, just after.
fn instants(scenario: &Scenario) -> [u64; 3] {
    [scenario.now - 1, scenario.now, scenario.now + 1]
}

/// What an agent on `node` holds that watches what is demanded and no more.
fn trimmed(cluster: &Cluster, demand: &Demand, node: &str) -> Cluster {
    let mut part = cluster.clone();
    part.pods.retain(|name, pod| pod.node() == node || demand.pods.holds(name.namespace));
    part.services.retain(|name, _| demand.services.holds(&name.namespace));
    part.slices.retain(|name, _| demand.services.holds(&name.namespace));
    part.nodes.retain(|name, _| match demand.nodes {
        Nodes::Nothing => false,
        Nodes::Own => name == node,
        Nodes::Everything => true,
    });
    part
}

proptest! {
    #![proptest_config(Config { cases: cases(), failure_persistence: None, ..Config::default() })]

    #[test]
    fn a_compiled_policy_answers_as_the_model_does(scenario in scenario()) {
        let compiled = compile(&scenario.cluster, &scenario.settings, &scenario.pod);
        for now in instants(&scenario) {
            for flow in &scenario.flows {
                let (compiled, model) = (simulate(&compiled, flow, now), expected(&scenario, flow, now));
                prop_assert_eq!(&compiled, &model, "compiled (left) and model (right) differ on {:?} at {}", flow, now);
            }
        }
    }

    /// An agent that knows only what is demanded answers as one that knows everything; but where a Service has endpoints in
    /// another namespace, a `pods` destination may open its ClusterIP only for the latter.
    #[test]
    fn what_is_not_demanded_is_not_missed(scenario in scenario()) {
        let Scenario { cluster, settings, pod, .. } = &scenario;
        // The API has an object for every namespace.
        let mut cluster = cluster.clone();
        for name in cluster.pods.keys() {
            cluster.namespaces.entry(name.namespace.to_owned()).or_default();
        }
        let cluster = &cluster;
        let full = compile(cluster, settings, pod);
        let demand = demand::of(cluster, settings, &full.policies);
        let part = compile(&trimmed(cluster, &demand, cluster.pods[pod].node()), settings, pod);
        prop_assert_eq!(&part.policies, &full.policies);
        prop_assert_eq!(&demand::of(cluster, settings, &part.policies), &demand);
        let fronts: Vec<IpAddr> = cluster.services.values().flat_map(|service| service.cluster_ips.clone()).collect();
        for now in instants(&scenario) {
            for flow in &scenario.flows {
                let (part, full) = (simulate(&part, flow, now), simulate(&full, flow, now));
                let closed = fronts.contains(&flow.destination) && part.verdict >= full.verdict;
                prop_assert!(part == full || closed, "with {:?} (left) and all (right): {:?} {:?} on {:?}", demand, part, full, flow);
            }
        }
    }

    #[test]
    fn a_near_miss_is_told_only_of_what_is_denied_or_would_be(scenario in scenario()) {
        let Scenario { cluster, settings, pod, now, flows } = &scenario;
        for flow in flows {
            let answer = expected(&scenario, flow, *now);
            let near = nearest_allow(cluster, settings, pod, flow, *now).expect("the pod is in the cluster");
            prop_assert!(near.is_none() || answer.verdict != Verdict::Allow, "{flow:?} passes, yet {near:?}");
            if answer.reason == Reason::Expired {
                let near = near.expect("the rule that ended came near");
                prop_assert!(near.rule.policy.id.namespace == pod.namespace, "{near:?} is of another namespace");
            }
        }
    }
}

/// The property above says something only if the scenarios reach every outcome.
#[test]
fn scenarios_reach_every_outcome_often() {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = scenario();
    let mut seen: BTreeMap<(Verdict, Reason), u32> = BTreeMap::new();
    let mut total = 0_u32;
    for _ in 0..1500 {
        let scenario = strategy.new_tree(&mut runner).expect("the strategy filters nothing").current();
        for flow in &scenario.flows {
            let answer = expected(&scenario, flow, scenario.now);
            assert!(
                flow.port == 0 || [6, 17, 132].contains(&flow.protocol),
                "only TCP, UDP and SCTP have ports: {flow:?}"
            );
            assert_eq!(
                flow.destination.to_canonical(),
                flow.destination,
                "no flow goes to a v4-mapped address"
            );
            *seen.entry((answer.verdict, answer.reason)).or_default() += 1;
            total += 1;
        }
    }
    for outcome in [
        (Verdict::Allow, Reason::AllowedDestination),
        (Verdict::Allow, Reason::DefaultAllow),
        (Verdict::Allow, Reason::Local),
        (Verdict::Allow, Reason::Ungoverned),
        (Verdict::Audit, Reason::DefaultDeny),
        (Verdict::Audit, Reason::DeniedDestination),
        (Verdict::Audit, Reason::Expired),
        (Verdict::Deny, Reason::DefaultDeny),
        (Verdict::Deny, Reason::DeniedDestination),
        (Verdict::Deny, Reason::Expired),
    ] {
        let count = seen.get(&outcome).copied().unwrap_or(0);
        assert!(
            count * 200 >= total,
            "{outcome:?} is the outcome of {count} of {total} flows only; all: {seen:?}"
        );
    }
    println!("{total} flows: {seen:?}");
    let closed = closed_fronts(6000);
    println!("flows to a ClusterIP that only what stands behind it denies, by peer: {closed:?}");
    for kind in ["any", "cidrs", "pods", "service", "entity", "cloud", "unresolved"] {
        assert!(closed.get(kind).copied().unwrap_or(0) >= 5, "{kind} closes too few ClusterIPs: {closed:?}");
    }
}

/// Counts flows that a denied destination stops although they pass in the same cluster without endpoints, by the kind of its
/// first peer.
fn closed_fronts(scenarios: u32) -> BTreeMap<&'static str, u32> {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = scenario();
    let mut closed = BTreeMap::new();
    for _ in 0..scenarios {
        let scenario = strategy.new_tree(&mut runner).expect("the strategy filters nothing").current();
        let mut without = scenario.clone();
        without.cluster.slices.clear();
        for flow in &scenario.flows {
            let services = scenario.cluster.services.values();
            let answer = expected(&scenario, flow, scenario.now);
            if answer.reason != Reason::DeniedDestination
                || !services.into_iter().any(|service| service.cluster_ips.contains(&flow.destination))
                || expected(&without, flow, scenario.now).rule == answer.rule
            {
                continue;
            }
            let name = answer.rule.expect("a denied destination has a rule");
            let rules = &scenario.cluster.policies[&*name.policy].rules;
            let rule = rules.iter().find(|rule| rule.name == name.part.as_str()).expect("it is one of them");
            let kind = match rule.peers[0] {
                Peer::Any => "any",
                Peer::Cidrs { .. } => "cidrs",
                Peer::Pods { .. } => "pods",
                Peer::Service(_) => "service",
                Peer::Entity(_) => "entity",
                Peer::Cloud(_) => "cloud",
                Peer::Unresolved(_) => "unresolved",
            };
            *closed.entry(kind).or_default() += 1;
        }
    }
    closed
}
