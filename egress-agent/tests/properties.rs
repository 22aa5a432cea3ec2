//! The compiler against the brute-force reference, on random clusters.
//!
//! `PROPTEST_CASES` says how many clusters are tried.

use std::{collections::BTreeMap, env};

use egress_agent::policy::{
    compile::compile,
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
    let closed = closed_fronts(1500);
    println!("flows to a ClusterIP that only what stands behind it denies, by peer: {closed:?}");
    for kind in ["any", "cidrs", "pods", "service", "entity"] {
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
                Peer::Unresolved(_) => "unresolved",
            };
            *closed.entry(kind).or_default() += 1;
        }
    }
    closed
}
