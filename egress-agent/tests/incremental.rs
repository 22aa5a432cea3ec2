//! A cluster that changes object by object: what is compiled from changes is what is compiled from scratch.
//!
//! `PROPTEST_CASES` says how many histories are tried.

use std::{cell::RefCell, collections::BTreeMap, env};

use egress_agent::policy::{
    cluster::{Cluster, NsName, Pods},
    compile::{Cache, Compiled, compile_all, compile_all_cached},
    generate::{Scenario, scenario},
    index::{Change, Index, Object, ObjectKey},
    model::{Policy, PolicyKind},
};
use proptest::{collection::vec, prelude::*, sample};

thread_local! {
    /// What the texts of ConfigMaps stand for: each is a place in here.
    static POLICIES: RefCell<Vec<Policy>> = const { RefCell::new(Vec::new()) };
}

fn cases() -> u32 {
    match env::var("PROPTEST_CASES") {
        Ok(text) => text.parse().expect("PROPTEST_CASES is a number"),
        Err(_) => 2000,
    }
}

/// One change of the cluster.
#[derive(Clone, Debug)]
struct Step {
    object: sample::Index,
    delete: bool,
    /// Whether the agent looks after it.
    look: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let chance = proptest::bool::weighted;
    (any::<sample::Index>(), chance(0.25), chance(0.5)).prop_map(|(object, delete, look)| Step {
        object,
        delete,
        look,
    })
}

/// Returns every object of some clusters. Those of the same name are versions of one.
fn objects(scenarios: &[Scenario]) -> Vec<Object> {
    let mut objects = Vec::new();
    for Cluster { namespaces, pods, services, slices, nodes, policies, broken } in
        scenarios.iter().map(|scenario| &scenario.cluster)
    {
        let namespaces = namespaces.iter();
        objects.extend(
            namespaces.map(|(name, labels)| Object::Namespace { name: name.clone(), labels: labels.clone() }),
        );
        objects.extend(pods.iter().map(|(id, pod)| {
            let mut pod = pod.clone();
            pod.local = pod.local.filter(|local| local.node != "node-2");
            Object::Pod(id.into(), pod)
        }));
        objects.extend(services.iter().map(|(id, service)| Object::Service(id.clone(), service.clone())));
        objects.extend(slices.iter().map(|(id, slice)| Object::EndpointSlice(id.clone(), slice.clone())));
        objects.extend(nodes.iter().map(|(name, node)| Object::Node(name.clone(), node.clone())));
        for (id, policy) in policies {
            objects.push(match id.kind {
                PolicyKind::NetworkPolicy => {
                    Object::NetworkPolicy(id.id.clone(), Ok(Some(Policy::clone(policy))))
                }
                PolicyKind::ConfigMap | PolicyKind::Namespace => {
                    let number = POLICIES.with_borrow_mut(|known| {
                        known.push(Policy::clone(policy));
                        known.len() - 1
                    });
                    Object::ConfigMap { id: id.id.clone(), managed: true, policy: Some(number.to_string()) }
                }
            });
        }
        let broken = broken.iter();
        objects.extend(broken.map(|id| Object::ConfigMap { id: id.clone(), managed: true, policy: None }));
    }
    objects
}

fn index() -> Index {
    Index::new(|_, text| {
        let number: usize = text.parse().expect("the texts are numbers");
        (Some(POLICIES.with_borrow(|known| known[number].clone())), Vec::new())
    })
}

fn fill(index: &mut Index, objects: &[Object]) {
    let mut change = Change::NONE;
    for object in objects {
        change |= index.apply(object.clone());
    }
    assert!(change.any(), "a cluster has objects");
}

fn here(pods: &Pods) -> Vec<NsName> {
    pods.local().map(|(id, _)| id.clone()).collect()
}

proptest! {
    #![proptest_config(proptest::test_runner::Config {
        cases: cases(), failure_persistence: None, ..proptest::test_runner::Config::default()
    })]

    #[test]
    fn what_is_compiled_from_changes_is_what_is_compiled_from_scratch(
        scenarios in vec(scenario(), 1..=3),
        steps in vec(step(), 1..=40),
    ) {
        POLICIES.with_borrow_mut(Vec::clear);
        let objects = objects(&scenarios);
        let settings = &scenarios[0].settings;
        let mut index = index();
        // The first cluster is there from the beginning.
        fill(&mut index, &objects[..objects.len() / scenarios.len()]);
        let mut cache = Cache::default();
        let mut last: Option<BTreeMap<NsName, Compiled>> = None;
        let mut policies_changed = false;
        for step in &steps {
            let object = step.object.get(&objects);
            let key = object.key();
            let changed = if step.delete { index.delete(&key) } else { index.apply(object.clone()) };
            policies_changed |= changed.any() && matches!(key, ObjectKey::ConfigMap(_) | ObjectKey::NetworkPolicy(_));
            if !step.look {
                continue;
            }
            let changes = index.take_changes();
            let concerned = cache.absorb(index.cluster(), changes);
            let scratch = compile_all(index.cluster(), settings, here(&index.cluster().pods).iter());
            if let Some(last) = &last && !concerned && !policies_changed {
                prop_assert_eq!(last, &scratch, "{} was said to concern nobody", key);
            }
            let changes = index.take_changes();
            let kept = compile_all_cached(&mut cache, index.cluster(), settings, changes, scratch.keys());
            prop_assert_eq!(&kept, &scratch, "after {}", key);
            last = Some(scratch);
            policies_changed = false;
        }
    }
}

/// The property above says something only if much is kept, and much of what changes concerns nobody.
#[test]
fn histories_keep_much() {
    use proptest::{
        strategy::ValueTree,
        test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
    };
    let mut runner =
        TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let strategy = (vec(scenario(), 2..=2), vec(step(), 20..=20));
    let (mut compiled, mut governed, mut idle, mut looks) = (0, 0, 0, 0);
    for _ in 0..200 {
        let (scenarios, steps) =
            strategy.new_tree(&mut runner).expect("the strategy filters nothing").current();
        POLICIES.with_borrow_mut(Vec::clear);
        let objects = objects(&scenarios);
        let (mut index, mut cache) = (index(), Cache::default());
        fill(&mut index, &objects);
        for step in steps {
            let object = step.object.get(&objects);
            let changed = if step.delete { index.delete(&object.key()) } else { index.apply(object.clone()) };
            if !changed.any() {
                continue;
            }
            looks += 1;
            let changes = index.take_changes();
            if !cache.absorb(index.cluster(), changes) {
                idle += 1;
            }
            let pods = here(&index.cluster().pods);
            let settings = &scenarios[0].settings;
            let changes = index.take_changes();
            let all = compile_all_cached(&mut cache, index.cluster(), settings, changes, pods.iter());
            governed += all.values().filter(|one| one.set.is_some()).count() as u64;
        }
        compiled += cache.compiled();
    }
    println!("{looks} changes, {idle} of no concern; {governed} sets needed, {compiled} compiled");
    assert!(compiled * 2 < governed, "{compiled} sets were compiled where {governed} were needed");
    assert!(idle * 10 > looks, "{idle} of {looks} changes were of no concern");
}
