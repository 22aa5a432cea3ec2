//! How often destinations decided, over changes of policies and of the pods that need them.
//!
//! The kernel counts by rule slot. A slot begins at nothing when it goes to another rule, so what a destination has come to is kept here
//! when no pod needs it any more. And a slot goes on counting where a destination becomes another under its old name, so what it had
//! counted until then is taken off.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use crate::{
    kernel::engine::GivenUp,
    policy::{
        entries::identity,
        model::{Policy, PolicyId, PolicyKind, Rule, RuleName, RulePart},
    },
};

/// What the kernel's counters do not tell.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// Packets that slots had counted when they were given up, by the destination's identity. None is 0.
    before: HashMap<u64, u64>,
    /// What a counter shows that another destination of the same name has counted.
    others: HashMap<u64, u64>,
    /// The policies these are of, in order of their names. Those that are the same as before are the same object.
    policies: Vec<Arc<Policy>>,
}

impl Uses {
    /// Keeps what slots had counted that were given up, of the destinations there are: what is given up for another reason, such as a rule of
    /// a namespace, or long after its policy has gone, is nobody's.
    pub(super) fn keep(&mut self, given_up: impl IntoIterator<Item = GivenUp>) {
        let mut given_up = given_up.into_iter().peekable();
        if given_up.peek().is_none() {
            return;
        }
        let known: HashSet<u64> = self
            .policies
            .iter()
            .flat_map(|policy| destinations(policy))
            .map(|(name, _)| identity(&name))
            .collect();
        for GivenUp { identity, packets } in given_up.filter(|slot| known.contains(&slot.identity)) {
            let own = packets.saturating_sub(self.others.remove(&identity).unwrap_or(0));
            if own > 0 {
                let before = self.before.entry(identity).or_default();
                *before = before.saturating_add(own);
            }
        }
    }

    /// Takes note of the policies that are now in force. `counted` returns what the counter of a destination shows that has one.
    ///
    /// What a changed destination decided between that it was in force and this call counts as the former's. There is traffic after it,
    /// or it was none to rely on.
    pub(super) fn follow<E>(
        &mut self,
        policies: &BTreeMap<PolicyId, Arc<Policy>>,
        counted: impl Fn(&RuleName) -> Result<Option<u64>, E>,
    ) -> Result<(), E> {
        let is_known = |(known, policy): (&Arc<Policy>, &Arc<Policy>)| Arc::ptr_eq(known, policy);
        if self.policies.len() == policies.len() && self.policies.iter().zip(policies.values()).all(is_known)
        {
            return Ok(());
        }
        for (known, now) in changed(&self.policies, policies) {
            let now = now.iter().flat_map(|policy| &policy.rules);
            let now: HashMap<&str, &Rule> = now.map(|rule| (rule.name.as_str(), rule)).collect();
            for (name, rule) in destinations(&known) {
                match now.get(rule.name.as_str()) {
                    Some(now) if is_same(rule, now) => {}
                    Some(_) => {
                        self.forget(&name);
                        if let Some(packets) = counted(&name)?.filter(|packets| *packets > 0) {
                            self.others.insert(identity(&name), packets);
                        }
                    }
                    None => self.forget(&name),
                }
            }
        }
        self.policies = policies.values().cloned().collect();
        Ok(())
    }

    fn forget(&mut self, name: &RuleName) {
        let identity = identity(name);
        self.before.remove(&identity);
        self.others.remove(&identity);
    }

    /// Returns how often a destination decided whose counter shows this.
    pub(super) fn of(&self, name: &RuleName, counted: u64) -> u64 {
        let identity = identity(name);
        let others = self.others.get(&identity).copied().unwrap_or(0);
        let before = self.before.get(&identity).copied().unwrap_or(0);
        counted.saturating_sub(others).saturating_add(before)
    }

    /// Returns the destinations that decided before, and how often. They may have counters again.
    pub(super) fn before(&self) -> impl Iterator<Item = (RuleName, u64)> {
        let all = self.policies.iter().flat_map(|policy| destinations(policy));
        all.filter_map(|(name, _)| Some((self.before.get(&identity(&name)).copied()?, name)))
            .map(|(packets, name)| (name, packets))
    }
}

/// A policy that there was, and what it is now, if there is one of the name.
type Changed = (Arc<Policy>, Option<Arc<Policy>>);

/// Returns the ConfigMaps' policies of `before` that are no longer what they were. Both are in order of their names.
fn changed(before: &[Arc<Policy>], now: &BTreeMap<PolicyId, Arc<Policy>>) -> Vec<Changed> {
    let mut changed = Vec::new();
    let mut now = now.iter().peekable();
    for known in before {
        while now.next_if(|(id, _)| **id < known.id).is_some() {}
        let same = now.next_if(|(id, _)| **id == known.id).map(|(_, policy)| policy);
        let stays = same.is_some_and(|policy| Arc::ptr_eq(known, policy));
        if !stays && known.id.kind == PolicyKind::ConfigMap {
            changed.push((Arc::clone(known), same.cloned()));
        }
    }
    changed
}

/// Returns the destinations of a policy with their names.
fn destinations(policy: &Policy) -> impl Iterator<Item = (RuleName, &Rule)> {
    let id = Arc::new(policy.id.clone());
    policy.rules.iter().map(move |rule| {
        let part = RulePart::Destination(rule.name.clone());
        (RuleName { policy: Arc::clone(&id), part }, rule)
    })
}

/// Returns whether two destinations decide about the same.
fn is_same(one: &Rule, other: &Rule) -> bool {
    (one.effect, &one.peers, &one.ports) == (other.effect, &other.peers, &other.ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{cluster::NsName, document};

    fn policy(cidr: &str) -> Arc<Policy> {
        let text = format!(
            r#"{{"defaultAction": "deny", "allowedDestinations": [{{"name": "a", "cidr": "{cidr}"}}, {{"name": "b", "cidr": "10.9.0.0/16"}}]}}"#
        );
        let parsed = document::parse(&NsName::new("shop", "p"), &text);
        Arc::new(parsed.policy.unwrap_or_else(|| panic!("{:?}", parsed.findings)))
    }

    fn name(policy: &Policy, of: &str) -> RuleName {
        destinations(policy)
            .map(|(name, _)| name)
            .find(|name| name.part == RulePart::Destination(of.into()))
            .expect("it is there")
    }

    #[test]
    fn what_a_destination_came_to_outlives_its_slot_and_not_itself() {
        let mut uses = Uses::default();
        let show = |uses: &mut Uses, policy: Option<&Arc<Policy>>, counted: u64| {
            let all = policy.map(|policy| (policy.id.clone(), Arc::clone(policy))).into_iter().collect();
            uses.follow(&all, |_| Ok::<_, ()>(Some(counted))).expect("counters can be read");
        };
        let first = policy("192.0.2.0/24");
        let (a, b) = (name(&first, "a"), name(&first, "b"));
        show(&mut uses, Some(&first), 0);
        assert_eq!(uses.of(&a, 7), 7);
        // Its slot is given up, and it has another later.
        uses.keep([
            GivenUp { identity: identity(&a), packets: 7 },
            GivenUp { identity: identity(&b), packets: 0 },
        ]);
        assert_eq!((uses.of(&a, 0), uses.of(&a, 2), uses.of(&b, 0)), (7, 9, 0));
        assert_eq!(uses.before().collect::<Vec<_>>(), [(a.clone(), 7)]);
        // The same again changes nothing; another place under the same name begins at nothing.
        show(&mut uses, Some(&policy("192.0.2.0/24")), 2);
        assert_eq!(uses.of(&a, 2), 9);
        show(&mut uses, Some(&policy("198.51.100.0/24")), 2);
        assert_eq!((uses.of(&a, 2), uses.of(&a, 3), uses.of(&b, 3)), (0, 1, 3));
        uses.keep([GivenUp { identity: identity(&a), packets: 5 }]);
        assert_eq!(uses.of(&a, 0), 3, "less what was the former's");
        // Others that come and go, before and after it, change nothing.
        let named = |name: &str| {
            let parsed = document::parse(
                &NsName::new("shop", name),
                r#"{"defaultAction": "deny", "allowedDestinations": []}"#,
            );
            Arc::new(parsed.policy.unwrap_or_else(|| panic!("{:?}", parsed.findings)))
        };
        let own = Arc::clone(&uses.policies[0]);
        for others in [&["o", "q"][..], &["q"], &["n", "o", "r"], &[]] {
            let mut all: BTreeMap<PolicyId, Arc<Policy>> =
                others.iter().map(|name| named(name)).map(|policy| (policy.id.clone(), policy)).collect();
            all.insert(own.id.clone(), Arc::clone(&own));
            uses.follow(&all, |_| Err("nothing is asked"))
                .unwrap_or_else(|error| panic!("{others:?}: {error}"));
            assert_eq!((uses.of(&a, 0), uses.policies.len()), (3, others.len() + 1), "{others:?}");
        }
        // Nothing is kept of what is gone.
        show(&mut uses, None, 0);
        assert!(uses.before.is_empty() && uses.others.is_empty() && uses.policies.is_empty());
        // Slots that are given up later, and those of rules that are no destinations, are nobody's.
        uses.keep([GivenUp { identity: identity(&a), packets: 5 }, GivenUp { identity: 1, packets: 5 }]);
        assert!(uses.before.is_empty());
    }
}
