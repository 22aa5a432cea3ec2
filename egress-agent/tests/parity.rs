//! Generated NetworkPolicies against the kernel layer, on random clusters.
//!
//! `PROPTEST_CASES` says how many clusters are tried.

use std::{collections::BTreeMap, env, sync::Arc};

use egress_agent::{
    parity::{Difference, Objects, compare_pods, passes},
    policy::{
        cluster::{Cluster, Labels, NsName},
        flow::Flow,
        generate::{Scenario, scenario},
        generated::{self, Direction, Generator, Inexpressible, LossKind, Options},
        model::{DefaultAction, Effect, LabelSelector, Mode, Peer, Policy, PolicyKind, Ports, Protocol},
        reference::reference,
    },
};
use egress_common::{
    policy::{normal_protocol, port_key},
    verdict::Verdict,
};
use proptest::{
    prelude::*,
    sample::Index,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

fn cases() -> u32 {
    match env::var("PROPTEST_CASES") {
        Ok(text) => text.parse().expect("PROPTEST_CASES is a number"),
        Err(_) => 600,
    }
}

const MODES: [Inexpressible; 3] = [Inexpressible::Widen, Inexpressible::Omit, Inexpressible::Skip];

/// Gives each Service no selector, or the labels of some pod of its namespace.
fn selectors(cluster: &Cluster, draws: &[Option<Index>]) -> BTreeMap<NsName, Labels> {
    let mut selectors = BTreeMap::new();
    for (name, draw) in cluster.services.keys().zip(draws.iter().cycle()) {
        let pods: Vec<Labels> =
            cluster.pods.of_namespace(&name.namespace).map(|(_, pod)| pod.labels.clone()).collect();
        if let Some(draw) = draw
            && !pods.is_empty()
        {
            selectors.insert(name.clone(), draw.get(&pods).clone());
        }
    }
    selectors
}

/// A scenario such as the API takes: what NetworkPolicies can say, and namespaces whose name label is their name.
fn real() -> impl Strategy<Value = Scenario> {
    scenario().prop_map(|mut scenario| {
        for (name, labels) in &mut scenario.cluster.namespaces {
            if labels.get("kubernetes.io/metadata.name").is_some_and(|label| *label != **name) {
                *labels = Labels::new();
            }
        }
        for policy in scenario.cluster.policies.values_mut() {
            if policy.id.kind == PolicyKind::NetworkPolicy {
                *policy = Arc::new(network_policy(policy));
            }
        }
        scenario
    })
}

fn network_policy(policy: &Policy) -> Policy {
    let mut rules = policy.rules.clone();
    for rule in &mut rules {
        rule.expires = None;
        rule.peers.retain(|peer| matches!(peer, Peer::Any | Peer::Cidrs { .. } | Peer::Pods { .. }));
        if rule.peers.contains(&Peer::Any) {
            rule.peers = vec![Peer::Any];
        }
        if let Ports::List(list) = &mut rule.ports {
            list.retain(|item| item.protocol != Protocol::Icmp);
        }
    }
    rules.retain(|rule| {
        let ports = !matches!(&rule.ports, Ports::List(list) if list.is_empty());
        rule.effect == Effect::Allow && !rule.peers.is_empty() && ports
    });
    Policy {
        id: policy.id.clone(),
        mode: Mode::Enforce,
        default_action: DefaultAction::Deny,
        selector: policy.selector.clone(),
        cluster_dns: false,
        own_node: true,
        rules,
    }
}

fn options() -> impl Strategy<Value = (Vec<Option<Index>>, bool, bool)> {
    (prop::collection::vec(prop::option::of(any::<Index>()), 1..4), any::<bool>(), any::<bool>())
}

/// Whether the flow is among those that differ in this direction.
fn is_in(differences: &[Difference], direction: Direction, flow: &Flow) -> bool {
    let key = port_key(normal_protocol(flow.protocol, flow.destination.is_ipv6()), flow.port);
    differences.iter().any(|difference| {
        difference.direction == direction
            && difference.addresses.contains(flow.destination)
            && difference.ports.iter().any(|(low, high)| *low <= key && key <= *high)
    })
}

fn check(scenario: &Scenario, options: &Options, now: u64) -> Result<(), TestCaseError> {
    let Scenario { cluster, settings, pod, flows, .. } = scenario;
    let objects = Objects::of(cluster, settings, options, now);
    let outcome = compare_pods(cluster, settings, &objects, now, &|name| name == pod);
    let undeclared: Vec<&Difference> = outcome.undeclared().collect();
    prop_assert!(
        undeclared.is_empty(),
        "{:?} cluster IPs {}: {:#?}\nobjects {:#?}\nlosses {:#?}",
        options.inexpressible,
        options.cluster_ips,
        undeclared,
        objects.list,
        objects.losses
    );
    let differences = &outcome.differences;
    if options.inexpressible == Inexpressible::Widen && options.cluster_ips {
        let blocked = differences.iter().find(|difference| {
            let others = difference.declared.iter().all(|(id, _)| id.kind == PolicyKind::NetworkPolicy);
            difference.direction == Direction::Narrower && !(difference.is_declared() && others)
        });
        prop_assert!(blocked.is_none(), "widened objects block {:#?}", blocked);
    }
    for flow in flows {
        let kernel = reference(cluster, settings, pod, flow, now).expect("the pod is in the cluster").verdict;
        let (kernel, objects) = (kernel != Verdict::Deny, passes(cluster, &objects, pod, flow));
        prop_assert_eq!(
            is_in(differences, Direction::Wider, flow),
            objects && !kernel,
            "wider on {:?}",
            flow
        );
        prop_assert_eq!(
            is_in(differences, Direction::Narrower, flow),
            kernel && !objects,
            "narrower on {:?}",
            flow
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: cases(), failure_persistence: None, ..Config::default() })]

    #[test]
    fn objects_differ_only_where_they_say_so(scenario in real(), (draws, cluster_ips, tight) in options()) {
        let mut options =
            Options { cluster_ips, selectors: selectors(&scenario.cluster, &draws), ..Options::default() };
        if tight {
            options.limits.single = 2;
            options.limits.port_entries = 2;
            options.limits.object_peers = 2;
            options.limits.except = 0;
        }
        for inexpressible in MODES {
            options.inexpressible = inexpressible;
            for now in [scenario.now - 1, scenario.now, scenario.now + 1] {
                check(&scenario, &options, now)?;
            }
        }
    }

    /// A comparison that is blind to a change of the objects would agree with anything.
    #[test]
    fn changed_objects_are_compared_as_they_are(scenario in real(), (draws, _, _) in options(), at in any::<Index>(), drop in any::<bool>()) {
        let Scenario { cluster, settings, pod, now, flows } = &scenario;
        let options = Options { selectors: selectors(cluster, &draws), ..Options::default() };
        let mut objects = Objects::of(cluster, settings, &options, *now);
        let mut peers: Vec<_> =
            objects.list.iter_mut().flat_map(|object| &mut object.egress).flat_map(|rule| &mut rule.to).collect();
        prop_assume!(!peers.is_empty());
        let peer = at.index(peers.len());
        match &mut *peers[peer] {
            generated::Peer::Block { cidr, except } if !drop => {
                *cidr = cidr.supernet().unwrap_or(*cidr);
                except.clear();
            }
            generated::Peer::Block { cidr, except } => {
                // A multicast address that nothing is about.
                *cidr = "239.9.9.9/32".parse().expect("a literal prefix");
                except.clear();
            }
            generated::Peer::Pods { pods, .. } => {
                *pods = (!drop).then(LabelSelector::default);
            }
        }
        let differences = compare_pods(cluster, settings, &objects, *now, &|name| name == pod).differences;
        for flow in flows {
            let kernel = reference(cluster, settings, pod, flow, *now).expect("the pod is in the cluster").verdict;
            let (kernel, objects) = (kernel != Verdict::Deny, passes(cluster, &objects, pod, flow));
            prop_assert_eq!(is_in(&differences, Direction::Wider, flow), objects && !kernel, "wider on {:?}", flow);
            prop_assert_eq!(is_in(&differences, Direction::Narrower, flow), kernel && !objects, "narrower on {:?}", flow);
        }
    }

    /// What comes out depends on what is in force, and changes by itself only when it was said.
    #[test]
    fn objects_change_when_they_say_so(scenario in real()) {
        let Scenario { cluster, settings, now, .. } = &scenario;
        let options = Options::default();
        let (before, after) = (now - 1, *now);
        let first = Generator::new(cluster, settings, &options, before);
        let again = Generator::new(cluster, settings, &options, before);
        let later = Generator::new(cluster, settings, &options, after);
        let ids: Vec<_> = first.policies().cloned().collect();
        for id in ids.iter().rev() {
            let generated = first.generate(id);
            prop_assert_eq!(&generated, &again.generate(id), "whatever was asked before");
            let changed = later.generate(id);
            prop_assert!(generated.objects == changed.objects || generated.next == Some(after), "{} changes unannounced", id);
            for object in &generated.objects {
                prop_assert_eq!(&object.id.namespace, &id.id.namespace);
            }
        }
    }
}

/// The property above says something only if objects, losses and differences of every kind come up.
#[test]
fn scenarios_reach_every_kind_of_loss() {
    let mut runner =
        TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let strategy = (real(), options());
    let mut seen: BTreeMap<LossKind, u32> = BTreeMap::new();
    let (mut objects, mut isolated, mut equal) = (0, 0, 0);
    for _ in 0..400 {
        let (scenario, (draws, cluster_ips, _)) =
            strategy.new_tree(&mut runner).expect("the strategy filters nothing").current();
        let Scenario { cluster, settings, pod, now, .. } = &scenario;
        for inexpressible in MODES {
            let mut options = Options {
                cluster_ips,
                inexpressible,
                selectors: selectors(cluster, &draws),
                ..Options::default()
            };
            options.limits.single = 2;
            options.limits.port_entries = 2;
            let all = Objects::of(cluster, settings, &options, *now);
            objects += all.generated;
            for loss in all.losses.values().flatten() {
                *seen.entry(loss.kind).or_default() += 1;
            }
            let outcome = compare_pods(cluster, settings, &all, *now, &|name| name == pod);
            equal += usize::from(outcome.differences.is_empty());
            isolated += usize::from(all.list.iter().any(|object| {
                object.id.namespace == pod.namespace && object.selector.matches(&cluster.pods[pod].labels)
            }));
        }
    }
    let kinds = [
        LossKind::Audit,
        LossKind::Icmp,
        LossKind::Domain,
        LossKind::Denied,
        LossKind::DeniedElsewhere,
        LossKind::Skipped,
        LossKind::OwnNode,
        LossKind::HostNetwork,
        LossKind::Unresolved,
        LossKind::World,
        LossKind::Service,
        LossKind::ClusterIp,
        LossKind::PortEntries,
    ];
    for kind in kinds {
        assert!(seen.get(&kind).is_some_and(|count| *count >= 3), "{kind:?} is too rare: {seen:?}");
    }
    assert!(
        objects > 400 && isolated > 200 && equal > 200,
        "{objects} objects, {isolated} isolate, {equal} equal"
    );
}
