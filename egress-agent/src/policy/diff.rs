//! From what is wanted and what is there to ordered steps for the kernel layer.
//!
//! The order keeps every packet under one whole policy: a set is written before an endpoint refers to it, and taken away after
//! the last one has left it. What does not fit leaves its endpoints as they are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use egress_common::{
    endpoint::{Endpoint, flags},
    maps::name,
    policy::{AddressKey, NO_RULE, RuleEntry, candidate},
    words,
};

use super::{
    cluster::NsName,
    compile::{Addresses, Compiled, PolicySet},
    entries::{Allocator, Capacities, Content, Full, Inconsistent, Numbered, Slots},
    simulate::{endpoint_of, set_flags},
};

/// What is to hold for the pod of one cgroup.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The pod, for reports.
    pub pod: NsName,
    /// What its packets are looked up in; `None` when no policy governs it.
    pub set: Option<Arc<PolicySet>>,
    /// Its own addresses.
    pub addresses: Addresses,
    /// With no set: whether that is because its policies are not known yet, so that what passes counts as unprotected.
    pub unprotected: bool,
}

impl Wanted {
    /// Returns what was compiled for `pod` as a wish.
    #[must_use]
    pub fn new(pod: NsName, compiled: &Compiled) -> Self {
        Self { pod, set: compiled.set.clone(), addresses: compiled.addresses, unprotected: false }
    }

    /// Returns the wish to let `pod` pass, as one that nobody governs.
    #[must_use]
    pub fn ungoverned(pod: NsName) -> Self {
        Self { pod, set: None, addresses: Addresses::default(), unprotected: false }
    }

    /// Returns the wish to let `pod` pass, and to count that, until its policies are known.
    #[must_use]
    pub fn unprotected(pod: NsName) -> Self {
        Self { unprotected: true, ..Self::ungoverned(pod) }
    }
}

/// One thing for the kernel layer to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write a new set: rule entries, then exact entries, then prefixes. No endpoint refers to it yet.
    WriteSet(Numbered),
    /// Make a record the one in force for a pod: the record of the slot that the revision's lowest bit names, then the slot's
    /// revision, then the pod's slot. The other record of the slot may still be read by packets under way.
    WriteEndpoint {
        /// The pod's cgroup id.
        cgroup: u64,
        /// The record. Its revision differs in the lowest bit from the one before it in the slot.
        endpoint: Endpoint,
    },
    /// Make a pod known and ungoverned.
    WriteUngoverned {
        /// The pod's cgroup id.
        cgroup: u64,
        /// Whether its packets count as unprotected.
        unprotected: bool,
        /// The slot it had, now free, and a new revision for it, under which no kept verdict holds.
        released: Option<(u32, u64)>,
    },
    /// Forget a pod.
    RemoveEndpoint {
        /// The pod's cgroup id.
        cgroup: u64,
        /// The slot it had, if any, and a new revision for it, as above.
        released: Option<(u32, u64)>,
    },
    /// Take a set's keys away, once no packet can still be using it. Its rule entries need no erasing: nothing refers to them.
    RetireSet {
        /// Its id.
        id: u32,
        /// Its keys in the exact map.
        exact: Vec<AddressKey>,
        /// Its prefix lengths in bits and keys in the LPM map.
        prefixes: Vec<(u32, AddressKey)>,
        /// The rule slots that no set needs any more, with the identity of their rule. Their counters say what it came to until they
        /// go to another.
        slots: Vec<(u32, u64)>,
    },
}

/// Endpoints whose wish does not fit into the maps. They keep what they have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Their pods.
    pub pods: Vec<NsName>,
    /// What is full.
    pub full: Full,
}

/// What to do, and what is then the case.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The steps, in the order to take them.
    pub steps: Vec<Step>,
    /// What does not fit.
    pub refused: Vec<Refused>,
    /// The state once all steps are done.
    pub next: State,
}

/// What a former agent left in the maps.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Known pods by cgroup id, with the record in force; `None` for ungoverned ones.
    pub endpoints: BTreeMap<u64, Option<Endpoint>>,
    /// Those of the ungoverned ones whose packets count as unprotected.
    pub unprotected: BTreeSet<u64>,
    /// The sets, read back.
    pub sets: Vec<Numbered>,
    /// Which rule each rule slot stands for, by [`super::entries::identity`].
    pub identities: Vec<(u64, u32)>,
    /// The revision of each slot that has one.
    pub revisions: BTreeMap<u32, u64>,
}

/// A set that is in the maps.
#[derive(Clone, Debug)]
enum Held {
    /// Written by this agent, or recognised as what it would write.
    Known(Arc<PolicySet>),
    /// A former agent's.
    Foreign(Arc<Numbered>),
}

/// What is in the maps.
#[derive(Clone, Debug)]
pub struct State {
    allocator: Allocator,
    slots: Slots,
    sets: BTreeMap<u32, Held>,
    by_set: HashMap<Arc<PolicySet>, u32>,
    /// A former agent's sets that are not recognised yet.
    by_content: HashMap<Arc<Content>, u32>,
    /// `None` for a pod that is known and ungoverned.
    endpoints: BTreeMap<u64, Option<Endpoint>>,
    /// Those of the ungoverned ones whose packets count as unprotected.
    unprotected: BTreeSet<u64>,
    /// The last revision of each slot that ever had one.
    revisions: BTreeMap<u32, u64>,
    next_revision: u64,
}

impl State {
    /// Returns the state of empty maps.
    #[must_use]
    pub fn new(capacities: Capacities) -> Self {
        Self {
            allocator: Allocator::new(capacities),
            slots: Slots::new(name::REVISIONS, capacities.endpoints),
            sets: BTreeMap::new(),
            by_set: HashMap::new(),
            by_content: HashMap::new(),
            endpoints: BTreeMap::new(),
            unprotected: BTreeSet::new(),
            revisions: BTreeMap::new(),
            next_revision: 1,
        }
    }

    /// Returns the state of maps that a former agent has left. The first plan keeps of them what is still wanted.
    ///
    /// # Errors
    /// When what was found contradicts itself.
    pub fn adopt(capacities: Capacities, found: Found) -> Result<Self, Inconsistent> {
        let mut state = Self::new(capacities);
        let mut users: BTreeMap<u32, Endpoint> = BTreeMap::new();
        for endpoint in found.endpoints.values().flatten() {
            state.slots.reserve(endpoint.slot)?;
            let user = users.entry(endpoint.set).or_insert(*endpoint);
            let defaults =
                |endpoint: &Endpoint| (endpoint.flags, endpoint.default_rule, endpoint.audit_default_rule);
            if endpoint.set != 0 && defaults(user) != defaults(endpoint) {
                return Err(Inconsistent::Set(endpoint.set));
            }
        }
        let ids: BTreeSet<u32> = found.sets.iter().map(|set| set.id).collect();
        if let Some(missing) = users.keys().find(|id| **id != 0 && !ids.contains(id)) {
            return Err(Inconsistent::Set(*missing));
        }
        let defaults = |set: &Numbered| {
            users.get(&set.id).map_or_else(Vec::new, |user| vec![user.default_rule, user.audit_default_rule])
        };
        let sets = found.sets.iter().map(|set| (set, defaults(set)));
        state.allocator = Allocator::adopt(capacities, sets, found.identities.iter().copied())?;
        let identities: HashMap<u32, u64> =
            found.identities.iter().map(|(identity, slot)| (*slot, *identity)).collect();
        for set in found.sets {
            let content = users
                .get(&set.id)
                .and_then(|user| Content::found(&set, user, |slot| identities.get(&slot).copied()));
            if let Some(content) = content {
                state.by_content.insert(Arc::new(content), set.id);
            }
            state.sets.insert(set.id, Held::Foreign(Arc::new(set)));
        }
        let revisions = found.endpoints.values().flatten().map(|endpoint| (endpoint.slot, endpoint.revision));
        state.revisions = found.revisions;
        for (slot, revision) in revisions {
            let last = state.revisions.entry(slot).or_insert(revision);
            *last = revision.max(*last);
        }
        state.next_revision = state.revisions.values().max().map_or(1, |last| last + 1);
        state.endpoints = found.endpoints;
        state.unprotected = found.unprotected;
        Ok(state)
    }

    /// Returns the allocator, which knows rule slots and how full the maps are.
    #[must_use]
    pub fn allocator(&self) -> &Allocator {
        &self.allocator
    }

    /// Returns how much the maps hold.
    #[must_use]
    pub fn capacities(&self) -> Capacities {
        self.allocator.capacities()
    }

    /// Returns the endpoint slots.
    #[must_use]
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Returns the known pods by cgroup id; ungoverned ones have no record.
    #[must_use]
    pub fn endpoints(&self) -> &BTreeMap<u64, Option<Endpoint>> {
        &self.endpoints
    }

    /// Returns the cgroup ids of those ungoverned pods that only pass until their policies are known.
    #[must_use]
    pub fn unprotected(&self) -> &BTreeSet<u64> {
        &self.unprotected
    }

    /// Returns the id of a set, which is written if it is not in the maps.
    fn id_of(&mut self, set: &Arc<PolicySet>, steps: &mut Vec<Step>) -> Result<u32, Full> {
        if let Some(id) = self.by_set.get(set) {
            return Ok(*id);
        }
        let recognised =
            if self.by_content.is_empty() { None } else { self.by_content.remove(&Content::of(set)) };
        let id = match recognised.filter(|id| self.allocator.recognise(*id, set)) {
            Some(id) => id,
            None => {
                let numbered = self.allocator.allocate(set)?;
                let id = numbered.id;
                steps.push(Step::WriteSet(numbered));
                id
            }
        };
        self.sets.insert(id, Held::Known(Arc::clone(set)));
        self.by_set.insert(Arc::clone(set), id);
        Ok(id)
    }

    fn record(&self, set: &PolicySet, id: u32, addresses: Addresses) -> Endpoint {
        let slot = |number: Option<u32>| {
            number.and_then(|number| set.rule(number)).map_or(NO_RULE, |rule| {
                self.allocator.slot_of(rule).expect("rules of sets in the maps have slots")
            })
        };
        Endpoint {
            set: id,
            flags: set_flags(set),
            default_rule: slot(set.default_deny),
            audit_default_rule: slot(set.audit_default_deny),
            ..endpoint_of(addresses)
        }
    }

    /// Makes `endpoint` the one of `cgroup`, with the slot the pod has or a new one and a new revision, unless it already is.
    fn flip(&mut self, cgroup: u64, mut endpoint: Endpoint, steps: &mut Vec<Step>) -> Result<(), Full> {
        match self.endpoints.get(&cgroup).copied().flatten() {
            Some(old) => {
                (endpoint.slot, endpoint.revision) = (old.slot, old.revision);
                if endpoint == old {
                    return Ok(());
                }
            }
            None => endpoint.slot = self.slots.take()?,
        }
        endpoint.revision = self.revision(endpoint.slot);
        self.endpoints.insert(cgroup, Some(endpoint));
        self.unprotected.remove(&cgroup);
        steps.push(Step::WriteEndpoint { cgroup, endpoint });
        Ok(())
    }

    /// Gives a slot back; returns it and the revision that ends what was kept under it. Its lowest bit stays, so that the record
    /// in force remains the one that packets still under way are judged by.
    fn release(&mut self, slot: u32) -> (u32, u64) {
        self.slots.give_back(slot);
        let mut revision = self.next_revision;
        if self.revisions.get(&slot).is_some_and(|last| last & 1 != revision & 1) {
            revision += 1;
        }
        self.next_revision = revision + 1;
        self.revisions.insert(slot, revision);
        (slot, revision)
    }

    /// Gives every slot that had a revision and belongs to no pod a new one; returns both.
    pub fn end_released(&mut self) -> Vec<(u32, u64)> {
        let used: BTreeSet<u32> = self.endpoints.values().flatten().map(|endpoint| endpoint.slot).collect();
        let free: Vec<u32> = self.revisions.keys().copied().filter(|slot| !used.contains(slot)).collect();
        free.into_iter().map(|slot| (slot, self.revision(slot))).collect()
    }

    /// Returns a new revision whose lowest bit differs from the slot's last.
    fn revision(&mut self, slot: u32) -> u64 {
        let mut revision = self.next_revision;
        if self.revisions.get(&slot).is_some_and(|last| last & 1 == revision & 1) {
            revision += 1;
        }
        self.next_revision = revision + 1;
        self.revisions.insert(slot, revision);
        revision
    }

    /// Takes every set away that no endpoint refers to. Returns whether there was one.
    fn retire(&mut self, steps: &mut Vec<Step>) -> bool {
        let used: BTreeSet<u32> = self.endpoints.values().flatten().map(|endpoint| endpoint.set).collect();
        let unused: Vec<u32> = self.sets.keys().copied().filter(|id| !used.contains(id)).collect();
        for &id in &unused {
            let (exact, prefixes) = match self.sets.remove(&id).expect("it was listed") {
                Held::Known(set) => {
                    self.by_set.remove(&set);
                    let key = |address: [u8; 16]| AddressKey { set: id, address: words(address) };
                    let prefix =
                        |(address, length, _): &([u8; 16], u8, u32)| (32 + u32::from(*length), key(*address));
                    (
                        set.exact.iter().map(|(address, _)| key(*address)).collect(),
                        set.prefixes.iter().map(prefix).collect(),
                    )
                }
                Held::Foreign(set) => {
                    self.by_content.retain(|_, by_content| *by_content != id);
                    (
                        set.exact.iter().map(|(key, _)| *key).collect(),
                        set.prefixes.iter().map(|(bits, key, _)| (*bits, *key)).collect(),
                    )
                }
            };
            let slots = self.allocator.release(id);
            steps.push(Step::RetireSet { id, exact, prefixes, slots });
        }
        !unused.is_empty()
    }
}

/// Endpoints that want the same set.
struct Group {
    set: Arc<PolicySet>,
    cgroups: Vec<u64>,
}

/// Returns the steps from `current` to `wanted`, which says for every pod of the node, by cgroup id, what is to hold. Pods in
/// `kept` stay exactly as they are, whatever is wanted: nothing better is known of them for now.
///
/// What does not fit while old sets are still there is tried again after they have gone. What then does not fit either is
/// refused: a pod that has an endpoint keeps its set, one that was ungoverned stays so; one that nobody knew before is denied
/// everything, if an enforcing policy is among those refused, because passing it would open what was meant to be closed.
#[must_use]
pub fn plan(current: &State, wanted: &BTreeMap<u64, Wanted>, kept: &BTreeSet<u64>) -> Plan {
    let mut next = current.clone();
    let mut steps = Vec::new();
    let mut refused = Vec::new();

    let gone: Vec<u64> = next
        .endpoints
        .keys()
        .copied()
        .filter(|cgroup| !wanted.contains_key(cgroup) && !kept.contains(cgroup))
        .collect();
    for cgroup in gone {
        next.unprotected.remove(&cgroup);
        let released = next.endpoints.remove(&cgroup).flatten().map(|endpoint| next.release(endpoint.slot));
        steps.push(Step::RemoveEndpoint { cgroup, released });
    }
    let mut pending: Vec<Group> = Vec::new();
    let mut groups: HashMap<*const PolicySet, usize> = HashMap::new();
    for (&cgroup, wish) in wanted.iter().filter(|(cgroup, _)| !kept.contains(cgroup)) {
        let Some(set) = &wish.set else {
            let unprotected = wish.unprotected;
            let marked =
                if unprotected { next.unprotected.insert(cgroup) } else { next.unprotected.remove(&cgroup) };
            if marked || next.endpoints.get(&cgroup) != Some(&None) {
                let released = next.endpoints.insert(cgroup, None).flatten();
                let released = released.map(|endpoint| next.release(endpoint.slot));
                steps.push(Step::WriteUngoverned { cgroup, unprotected, released });
            }
            continue;
        };
        let group = *groups.entry(Arc::as_ptr(set)).or_insert_with(|| {
            pending.push(Group { set: Arc::clone(set), cgroups: Vec::new() });
            pending.len() - 1
        });
        pending[group].cgroups.push(cgroup);
    }
    // The smallest sets first, so that a large one keeps no other out.
    pending.sort_by_key(|group| group.set.entries());
    let pods = |cgroups: &[u64]| cgroups.iter().map(|cgroup| wanted[cgroup].pod.clone()).collect();

    let unfit = loop {
        let mut unfit: Vec<(Group, Full)> = Vec::new();
        let mut flips: Vec<(u64, Endpoint)> = Vec::new();
        for group in pending {
            match next.id_of(&group.set, &mut steps) {
                Ok(id) => flips.extend(
                    group
                        .cgroups
                        .iter()
                        .map(|cgroup| (*cgroup, next.record(&group.set, id, wanted[cgroup].addresses))),
                ),
                Err(full) => unfit.push((group, full)),
            }
        }
        for (cgroup, endpoint) in flips {
            if let Err(full) = next.flip(cgroup, endpoint, &mut steps) {
                refused.push(Refused { pods: pods(&[cgroup]), full });
            }
        }
        if !next.retire(&mut steps) || unfit.is_empty() {
            break unfit;
        }
        pending = unfit.into_iter().map(|(group, _)| group).collect();
    };
    for (group, full) in unfit {
        refused.push(Refused { pods: pods(&group.cgroups), full });
        for cgroup in group.cgroups {
            let addresses = endpoint_of(wanted[&cgroup].addresses);
            let endpoint = match next.endpoints.get(&cgroup) {
                Some(None) => continue,
                Some(Some(old)) => {
                    Endpoint { address_v4: addresses.address_v4, address_v6: addresses.address_v6, ..*old }
                }
                None => Endpoint { flags: closed(&group.set), ..addresses },
            };
            if let Err(full) = next.flip(cgroup, endpoint, &mut steps) {
                refused.push(Refused { pods: pods(&[cgroup]), full });
            }
        }
    }
    Plan { steps, refused, next }
}

/// Returns the flags of an endpoint that stands in for `set` without any of its entries.
fn closed(set: &PolicySet) -> u32 {
    let enforces = |entry: &RuleEntry| entry.rules[candidate::DENY] != NO_RULE;
    let enforcing = set.too_large || set.default_deny.is_some() || set.lists.iter().flatten().any(enforces);
    let deny = if enforcing { flags::DEFAULT_DENY } else { 0 };
    let audit = if set.audit_default_deny.is_some() { flags::AUDIT_DEFAULT_DENY } else { 0 };
    flags::GOVERNED | deny | audit
}

#[cfg(test)]
mod tests;
