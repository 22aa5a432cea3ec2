use super::*;
use crate::policy::entries::{identity, tests::sample};

fn plan(current: &State, wanted: &BTreeMap<u64, Wanted>) -> Plan {
    super::plan(current, wanted, &BTreeSet::new())
}

fn small() -> Capacities {
    Capacities { exact: 40, prefixes: 6, rules: 10, rule_slots: 24, endpoints: 4 }
}

fn governed(set: &PolicySet) -> PolicySet {
    PolicySet { default_deny: Some(1), ..set.clone() }
}

fn wish(set: Option<Arc<PolicySet>>) -> Wanted {
    Wanted { set, ..Wanted::ungoverned(NsName::new("n", "p")) }
}

/// Pods that want the same set share it, as after compiling.
fn wishes(list: &[(u64, Option<&PolicySet>)]) -> BTreeMap<u64, Wanted> {
    let mut sets: HashMap<&PolicySet, Arc<PolicySet>> = HashMap::new();
    let mut shared = |set| Arc::clone(sets.entry(set).or_insert_with(|| Arc::new(set.clone())));
    list.iter().map(|(cgroup, set)| (*cgroup, wish(set.map(&mut shared)))).collect()
}

/// The names of steps, to compare their order.
fn kinds(plan: &Plan) -> Vec<&'static str> {
    plan.steps
        .iter()
        .map(|step| match step {
            Step::WriteSet(_) => "set",
            Step::WriteEndpoint { .. } => "endpoint",
            Step::WriteUngoverned { .. } => "ungoverned",
            Step::RemoveEndpoint { .. } => "remove",
            Step::RetireSet { .. } => "retire",
        })
        .collect()
}

#[test]
fn equal_sets_are_written_once_and_nothing_changes_without_need() {
    let set = governed(&sample(0, 3));
    let wanted = wishes(&[(10, Some(&set)), (11, Some(&set)), (12, None)]);
    let first = plan(&State::new(small()), &wanted);
    assert_eq!(kinds(&first), ["ungoverned", "set", "endpoint", "endpoint"]);
    assert!(plan(&first.next, &wishes(&[(10, Some(&set)), (11, Some(&set)), (12, None)])).steps.is_empty());
}

#[test]
fn a_pod_is_unprotected_until_its_policies_are_known() {
    let set = governed(&sample(0, 3));
    let unprotected = BTreeMap::from([(10, Wanted::unprotected(NsName::new("n", "p")))]);
    let first = plan(&State::new(small()), &unprotected);
    assert_eq!(first.steps, [Step::WriteUngoverned { cgroup: 10, unprotected: true, released: None }]);
    assert_eq!(first.next.unprotected(), &BTreeSet::from([10]));
    assert!(plan(&first.next, &unprotected).steps.is_empty());

    let found = Found {
        endpoints: first.next.endpoints().clone(),
        unprotected: first.next.unprotected().clone(),
        ..Found::default()
    };
    let adopted = State::adopt(small(), found).expect("it is consistent");
    for state in [&first.next, &adopted] {
        let ungoverned = plan(state, &wishes(&[(10, None)]));
        assert_eq!(
            ungoverned.steps,
            [Step::WriteUngoverned { cgroup: 10, unprotected: false, released: None }]
        );
        assert!(ungoverned.next.unprotected().is_empty());
        let governed = plan(state, &wishes(&[(10, Some(&set))]));
        assert_eq!(kinds(&governed), ["set", "endpoint"]);
        assert!(governed.next.unprotected().is_empty());
        let gone = plan(state, &BTreeMap::new());
        assert_eq!(kinds(&gone), ["remove"]);
        assert!(gone.next.unprotected().is_empty());
    }
}

#[test]
fn a_large_set_keeps_no_small_one_out() {
    let (large, small_one) = (governed(&sample(0, 8)), governed(&sample(10, 3)));
    let plan = plan(&State::new(small()), &wishes(&[(10, Some(&large)), (11, Some(&small_one))]));
    assert_eq!(plan.refused.len(), 1);
    assert_eq!(plan.refused[0].full.needed, 8, "the large one is refused: {:?}", plan.refused);
}

#[test]
fn a_new_version_is_written_before_the_flip_and_the_old_one_goes_last() {
    let (old, new) = (governed(&sample(0, 3)), governed(&sample(0, 4)));
    let first = plan(&State::new(small()), &wishes(&[(10, Some(&old))]));
    let second = plan(&first.next, &wishes(&[(10, Some(&new))]));
    assert_eq!(kinds(&second), ["set", "endpoint", "retire"]);
    let revision = |plan: &Plan| plan.next.endpoints[&10].expect("governed").revision;
    assert!(revision(&second) > revision(&first));
    assert_ne!(revision(&second) & 1, revision(&first) & 1, "the record nobody reads is the one written");
    let Step::RetireSet { id, exact, prefixes, .. } = &second.steps[2] else { panic!("a set is retired") };
    assert_eq!((*id, exact.len(), prefixes.len()), (1, 3, 1));
}

#[test]
fn what_does_not_fit_leaves_its_endpoints_as_they_are() {
    let (old, new, other) = (governed(&sample(0, 4)), governed(&sample(0, 8)), governed(&sample(9, 2)));
    let first = plan(&State::new(small()), &wishes(&[(10, Some(&old))]));
    let second = plan(&first.next, &wishes(&[(10, Some(&new)), (11, Some(&other)), (12, Some(&new))]));
    assert_eq!(second.refused.len(), 1);
    assert_eq!(second.refused[0].full.map, name::RULES);
    assert_eq!(second.refused[0].pods.len(), 2);
    assert_eq!(second.next.endpoints[&10], first.next.endpoints[&10], "the old version stays");
    assert_eq!(second.next.endpoints[&11].expect("governed").set, 2, "everything else proceeds");
    let unknown = second.next.endpoints[&12].expect("a pod nobody knew is denied, not opened");
    assert_eq!((unknown.set, unknown.flags), (0, flags::GOVERNED | flags::DEFAULT_DENY));
    assert!(
        plan(&second.next, &wishes(&[(10, Some(&new)), (11, Some(&other)), (12, Some(&new))]))
            .steps
            .is_empty()
    );
}

#[test]
fn what_fits_once_old_sets_have_gone_is_written_then() {
    let (one, other, big) = (governed(&sample(0, 5)), governed(&sample(20, 1)), governed(&sample(0, 8)));
    let first = plan(&State::new(small()), &wishes(&[(10, Some(&other)), (11, Some(&one))]));
    let second = plan(&first.next, &wishes(&[(10, Some(&other)), (11, Some(&other)), (12, Some(&big))]));
    assert_eq!(kinds(&second), ["endpoint", "retire", "set", "endpoint"]);
    assert!(second.refused.is_empty());
}

#[test]
fn slots_come_back_and_revisions_do_not() {
    let set = governed(&sample(0, 2));
    let set = Arc::new(set);
    let wanted = |cgroups: std::ops::Range<u64>| {
        cgroups.map(|cgroup| (cgroup, wish(Some(Arc::clone(&set))))).collect::<BTreeMap<_, _>>()
    };
    let first = plan(&State::new(small()), &wanted(10..13));
    let full = plan(&first.next, &wanted(10..14));
    assert_eq!(full.refused[0].full.map, name::REVISIONS);
    let second = plan(&first.next, &wanted(11..14));
    let endpoint = second.next.endpoints[&13].expect("governed");
    let before = first.next.endpoints[&10].expect("governed");
    assert_eq!(endpoint.slot, before.slot);
    assert!(endpoint.revision > before.revision && endpoint.revision & 1 != before.revision & 1);
    assert_eq!(kinds(&plan(&second.next, &BTreeMap::new())), ["remove", "remove", "remove", "retire"]);
}

#[test]
fn a_set_found_in_the_maps_is_recognised_and_kept() {
    let (kept, dropped) = (governed(&sample(0, 3)), governed(&sample(7, 2)));
    let former = plan(&State::new(small()), &wishes(&[(10, Some(&kept)), (11, Some(&dropped)), (12, None)]));
    let sets = former.steps.iter().filter_map(|step| match step {
        Step::WriteSet(set) => Some(set.clone()),
        _ => None,
    });
    let found = Found {
        unprotected: BTreeSet::new(),
        endpoints: former.next.endpoints.clone(),
        sets: sets.collect(),
        identities: former.next.allocator.rules().map(|(slot, rule)| (identity(rule), slot)).collect(),
        revisions: BTreeMap::new(),
    };
    let adopted = State::adopt(small(), found.clone()).expect("consistent");
    let next = plan(&adopted, &wishes(&[(10, Some(&kept)), (12, None)]));
    assert_eq!(kinds(&next), ["remove", "retire"]);
    let slot = former.next.allocator.slot_of(&kept.rules[0]).expect("the former agent gave it one");
    assert_eq!(next.next.allocator.rule(slot), Some(&kept.rules[0]));
    let unnamed = Found { identities: Vec::new(), ..found };
    let next = plan(&State::adopt(small(), unnamed).expect("consistent"), &wishes(&[(10, Some(&kept))]));
    assert_eq!(kinds(&next), ["remove", "remove", "set", "endpoint", "retire", "retire"]);
}

#[test]
fn kept_pods_stay_as_they_are_whatever_is_wanted() {
    let (old, new) = (governed(&sample(1, 2)), governed(&sample(2, 2)));
    let first = plan(&State::new(small()), &wishes(&[(10, Some(&old)), (11, Some(&old)), (12, Some(&old))]));
    let kept = BTreeSet::from([10, 11]);
    let second = super::plan(&first.next, &wishes(&[(10, Some(&new)), (12, None)]), &kept);
    assert_eq!(
        kinds(&second),
        ["ungoverned"],
        "12 only; neither 10 is changed nor 11 removed, nor their set retired"
    );
    assert_eq!(second.next.endpoints()[&10], first.next.endpoints()[&10]);
    assert_eq!(second.next.endpoints()[&11], first.next.endpoints()[&11]);
}
