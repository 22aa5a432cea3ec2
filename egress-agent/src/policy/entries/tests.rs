use std::net::Ipv4Addr;

use egress_common::policy::NEVER;
use proptest::prelude::*;

use super::*;
use crate::policy::{cluster::NsName, model::PolicyId};

/// A set of `lists` lists (of one entry each) at as many addresses, whose rules are `rule`, `rule` + 1, …
pub(in crate::policy) fn sample(rule: u32, lists: u32) -> PolicySet {
    let policy = Arc::new(PolicyId { kind: PolicyKind::ConfigMap, id: NsName::new("n", "a") });
    let entry = |list| RuleEntry {
        low: 0,
        high: 9,
        rules: [NO_RULE, list + 1, NO_RULE, NO_RULE],
        deadlines: [NEVER; 4],
    };
    let address = |list: u32| Ipv4Addr::from(list).to_ipv6_mapped().octets();
    PolicySet {
        rules: (0..lists)
            .map(|list| RulePart::Destination(format!("{:05}", rule + list)))
            .map(|part| RuleName { policy: Arc::clone(&policy), part })
            .collect(),
        exact: (0..lists).map(|list| (address(list), list)).collect(),
        prefixes: vec![([0; 16], 96, 0)].into_iter().take(lists as usize).collect(),
        lists: (0..lists).map(|list| vec![entry(list)]).collect(),
        ..PolicySet::default()
    }
}

fn small() -> Capacities {
    Capacities { exact: 40, prefixes: 6, rules: 32, rule_slots: 24, endpoints: 8 }
}

/// Asserts that nothing overlaps and nothing is lost.
fn check(allocator: &Allocator) {
    let mut stretches: Vec<(u32, u32)> =
        allocator.blocks.0.iter().map(|(offset, length)| (*offset, *length)).collect();
    assert!(stretches.is_sorted_by(|a, b| a.0 + a.1 < b.0), "free stretches are joined: {stretches:?}");
    stretches.extend(allocator.sets.values().map(|taken| (taken.block.offset, taken.block.length)));
    stretches.retain(|(_, length)| *length > 0);
    stretches.sort_unstable();
    let end = stretches.iter().fold(0, |end, (offset, length)| {
        assert_eq!(*offset, end, "free and taken stretches fill the rules map: {stretches:?}");
        end + length
    });
    assert_eq!(end, allocator.capacities.rules);
    let mut uses: BTreeMap<u32, u32> = BTreeMap::new();
    allocator
        .sets
        .values()
        .flat_map(|taken| &taken.slots)
        .for_each(|slot| *uses.entry(*slot).or_default() += 1);
    let held: BTreeMap<u32, u32> =
        allocator.holders.iter().map(|(slot, holder)| (*slot, holder.uses)).collect();
    assert_eq!(held, uses, "slots are held as often as sets use them");
    assert_eq!(allocator.slots.usage().used as usize, held.len(), "slots nobody uses are free");
    for (name, slot) in &allocator.by_name {
        assert_eq!(allocator.rule(*slot), Some(&**name));
    }
    assert_eq!(allocator.exact, allocator.sets.values().map(|taken| taken.exact).sum::<u32>());
    assert_eq!(allocator.prefixes, allocator.sets.values().map(|taken| taken.prefixes).sum::<u32>());
}

proptest! {
    #[test]
    fn nothing_overlaps_and_nothing_is_lost(steps in prop::collection::vec((0u32..30, 0u32..12, any::<bool>(), any::<prop::sample::Index>()), 1..60)) {
        let mut allocator = Allocator::new(small());
        let mut live: Vec<(u32, PolicySet)> = Vec::new();
        let mut last_id = 0;
        for (rule, lists, add, which) in steps {
            if add || live.is_empty() {
                let before = format!("{allocator:?}");
                let set = sample(rule, lists);
                match allocator.allocate(&set) {
                    Ok(numbered) => {
                        prop_assert!(numbered.id > last_id, "ids are never used again");
                        last_id = numbered.id;
                        for (local, name) in (1..).zip(&set.rules) {
                            let slot = allocator.slot_of(name).expect("it was allocated");
                            prop_assert_eq!(allocator.rule(slot), Some(name));
                            prop_assert!(numbered.rules.iter().any(|(_, entry)| entry.rules[1] == slot), "rule {} kept", local);
                        }
                        let endpoint = crate::policy::simulate::endpoint_of(crate::policy::compile::Addresses::default());
                        let found = Content::found(&numbered, &endpoint, |slot| allocator.rule(slot).map(identity));
                        prop_assert_eq!(found, Some(Content::of(&set)));
                        live.push((numbered.id, set));
                    }
                    Err(full) => {
                        prop_assert!(full.needed > full.free, "{full}");
                        prop_assert_eq!(before, format!("{allocator:?}"), "a failure changes nothing");
                    }
                }
            } else {
                let (id, _) = live.swap_remove(which.index(live.len()));
                allocator.release(id);
            }
            check(&allocator);
        }
        live.into_iter().for_each(|(id, _)| drop(allocator.release(id)));
        check(&allocator);
        prop_assert!(allocator.usage().iter().all(|usage| usage.used == 0));
    }
}

#[test]
fn a_rule_keeps_its_slot_while_any_set_uses_it() {
    let mut allocator = Allocator::new(small());
    let first = allocator.allocate(&sample(3, 3)).expect("fits");
    assert_eq!(first.fresh_slots, [1, 2, 3]);
    let second = allocator.allocate(&sample(4, 3)).expect("fits");
    assert_eq!(second.fresh_slots, [4], "two of the rules have slots");
    assert_eq!(
        allocator.release(first.id).iter().map(|(slot, _)| *slot).collect::<Vec<_>>(),
        [1],
        "the others are in use"
    );
    assert_eq!(allocator.slot_of(&sample(4, 1).rules[0]), Some(2));
    assert_eq!(allocator.slot_of(&sample(3, 1).rules[0]), None);
    assert_eq!(allocator.allocate(&sample(9, 1)).expect("fits").fresh_slots, [1], "the lowest free one");
}

#[test]
fn what_does_not_fit_says_which_map() {
    let mut allocator = Allocator::new(Capacities { rules: 10, ..small() });
    assert_eq!(
        allocator.allocate(&sample(0, 11)).expect_err("too long"),
        Full { map: name::RULES, needed: 11, free: 10, capacity: 10 }
    );
    let given_up = PolicySet { too_large: true, ..PolicySet::default() };
    assert_eq!(allocator.allocate(&given_up).expect_err("given up").map, name::RULES);
    let mut allocator = Allocator::new(Capacities { rule_slots: 3, ..small() });
    assert_eq!(
        allocator.allocate(&sample(0, 3)).expect_err("two slots"),
        Full { map: name::RULE_COUNTERS, needed: 3, free: 2, capacity: 2 }
    );
}

#[test]
fn no_set_leaves_others_without_room() {
    let capacities = Capacities { exact: 4096, prefixes: 4096, rules: 1024, rule_slots: 4097, endpoints: 8 };
    let mut allocator = Allocator::new(capacities);
    let refused = allocator.allocate(&sample(0, 1016)).expect_err("8 of 1024 would be left");
    assert_eq!(refused, Full { map: name::RULES, needed: 1016, free: 1024, capacity: 1024 });
    let text = refused.to_string();
    assert!(text.starts_with(&format!("map {} has no room for a set this large: ", name::RULES)), "{text}");
    check(&allocator);
    let large = allocator.allocate(&sample(0, 896)).expect("an eighth is left");
    allocator.allocate(&sample(5000, 128)).expect("a small set may take the last entry");
    assert!(allocator.allocate(&sample(6000, 1)).expect_err("full").to_string().contains("is full"));
    allocator.release(large.id);
    allocator.allocate(&sample(0, 512)).expect("half of the map");
    let mut allocator = Allocator::new(Capacities { rule_slots: 513, ..capacities });
    assert_eq!(allocator.allocate(&sample(0, 500)).expect_err("12 would be left").map, name::RULE_COUNTERS);
    let mut allocator = Allocator::new(Capacities { exact: 512, ..capacities });
    assert_eq!(allocator.allocate(&sample(0, 500)).expect_err("12 would be left").map, name::EXACT);
    check(&allocator);
}

#[test]
fn an_adopted_rule_keeps_its_slot_for_the_rule_of_the_same_identity() {
    let set = sample(5, 4);
    let mut former = Allocator::new(small());
    former.allocate(&sample(1, 2)).expect("fits");
    let numbered = former.allocate(&set).expect("fits");
    let identities: Vec<(u64, u32)> = former.rules().map(|(slot, rule)| (identity(rule), slot)).collect();
    let mut adopted = Allocator::adopt(small(), [(&numbered, vec![])], identities).expect("consistent");
    check(&adopted);
    assert_eq!(adopted.rule(3), None);
    let again = adopted.allocate(&set).expect("fits");
    check(&adopted);
    assert!(again.id > numbered.id);
    assert_eq!(again.fresh_slots, [0u32; 0], "its counters go on");
    assert_eq!(adopted.slot_of(&set.rules[0]), former.slot_of(&set.rules[0]));
    adopted.release(numbered.id);
    check(&adopted);
    let twice = Allocator::adopt(small(), [(&numbered, vec![]), (&numbered, vec![])], []);
    assert_eq!(twice.expect_err("the same set twice"), Inconsistent::Set(numbered.id));
    let other = Numbered { id: 9, ..numbered.clone() };
    let overlap = Allocator::adopt(small(), [(&numbered, vec![]), (&other, vec![])], []);
    assert_eq!(overlap.expect_err("the same block twice"), Inconsistent::Block(9));
}

#[test]
fn identities_and_fingerprints_tell_things_apart() {
    let rule = |namespace: &str, name: &str, part| RuleName {
        policy: Arc::new(PolicyId { kind: PolicyKind::ConfigMap, id: NsName::new(namespace, name) }),
        part,
    };
    let rules = [
        rule("n", "a", RulePart::Default),
        rule("n", "a", RulePart::ClusterDns),
        rule("na", "", RulePart::Default),
        rule("n", "a", RulePart::Destination(String::new())),
        rule("n", "a", RulePart::Destination("x".into())),
    ];
    let identities: BTreeSet<u64> = rules.iter().map(identity).collect();
    assert_eq!(identities.len(), rules.len());
    assert_ne!(fingerprint(&sample(0, 2)), fingerprint(&sample(0, 3)));
    assert_ne!(fingerprint(&sample(0, 2)), fingerprint(&sample(1, 2)));
    // Pinned maps outlive the agent, so these numbers must never change.
    assert_eq!(identity(&rules[4]), 4097054588688571896);
}
