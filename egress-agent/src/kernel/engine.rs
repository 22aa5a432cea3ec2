//! What the agent has put into the kernel, and the steps from there to what is wanted.
//!
//! [`crate::policy::diff`] decides the steps; this carries them out. Before anything is taken away or written over that a packet
//! under way may still be reading, it waits until no program that was running then still runs.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::{
    config::setting,
    endpoint::{UNGOVERNED, UNPROTECTED},
    maps::{Counter, name},
    policy::{AddressKey, Span},
    verdict::CLASSES,
};
use thiserror::Error;

use super::{
    bpf,
    cgroup::Kubepods,
    loader::{Datapath, LoadError, Options},
    maps::{Contents, Maps, Refused},
};
use crate::policy::{
    diff::{self, Found, State, Step, Wanted},
    entries::{self, Block, Capacities, Inconsistent, Numbered},
};

/// Why the kernel does not hold what is wanted.
#[derive(Debug, Error)]
pub enum EngineError {
    /// Programs or maps could not be loaded or attached.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map refused a step.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Pinned maps contradict themselves.
    #[error(
        "the pinned maps contradict themselves ({0}); what they hold stays enforced, but cannot be taken over: run `egress-agent unload` and start again"
    )]
    Inconsistent(#[from] Inconsistent),
    /// Pinned maps have no room for a setting.
    #[error(
        "the pinned maps are of an older agent and have no word for it; they are made anew after `egress-agent unload` or a reboot"
    )]
    TooOld,
}

/// Programs, maps, and what is in them.
#[derive(Debug)]
pub struct Engine {
    datapath: Datapath,
    maps: Maps,
    state: State,
    /// Slots changed since a grace period was last waited for; `None` when nobody knows which.
    unsettled: Option<BTreeSet<u32>>,
    /// The kernel refused a step and `state` no longer says what the maps hold.
    stale: bool,
    /// What was given up and nobody has taken note of yet.
    given_up: Vec<GivenUp>,
}

/// What a rule came to whose slot was given up, because no pod needs it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// The rule, by its [`entries::identity`].
    pub identity: u64,
    /// The packets it decided about, more than none.
    pub packets: u64,
}

/// What came of bringing the kernel up to date.
#[derive(Debug, Default)]
pub struct Applied {
    /// Pods whose policy does not fit, and why; they keep what they had.
    pub refused: Vec<diff::Refused>,
    /// How many endpoints were flipped, bound or removed.
    pub endpoints: usize,
    /// How many sets were written.
    pub sets: usize,
}

impl Engine {
    /// Loads programs and maps, and reads what an earlier agent has left in them.
    ///
    /// # Errors
    ///
    /// [`EngineError`]; what was pinned stays as it is.
    pub fn new(
        object: &[u8],
        options: &Options,
        strict: bool,
        connect_hooks: bool,
    ) -> Result<Self, EngineError> {
        let mut datapath = Datapath::load(object, options)?;
        let maps = Maps::new(&mut datapath)?;
        datapath.set(setting::STRICT, u64::from(strict))?;
        datapath.set(setting::CONNECT_HOOKS, u64::from(connect_hooks))?;
        let state = read_state(&maps)?;
        let mut engine = Self { datapath, maps, state, unsettled: None, stale: false, given_up: Vec::new() };
        engine.end_released_slots()?;
        if engine.can_tell_allowed()? {
            // An agent that was killed may have left it on.
            engine.tell_allowed(false)?;
        }
        Ok(engine)
    }

    /// Attaches the programs.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub fn attach(&mut self, kubepods: &Kubepods) -> Result<(), LoadError> {
        self.datapath.attach(kubepods)
    }

    /// Has the programs tell what is allowed, when they judge it, or no longer.
    ///
    /// # Errors
    ///
    /// [`EngineError::TooOld`] when the pinned maps cannot say so; the kernel's own otherwise.
    pub fn tell_allowed(&mut self, on: bool) -> Result<(), EngineError> {
        if !self.can_tell_allowed()? {
            return Err(EngineError::TooOld);
        }
        Ok(self.datapath.set(setting::TELL_ALLOWED, u64::from(on))?)
    }

    fn can_tell_allowed(&self) -> Result<bool, LoadError> {
        Ok(self.datapath.map_capacity(name::SETTINGS)? > setting::TELL_ALLOWED)
    }

    /// The loaded programs.
    #[must_use]
    pub fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// The loaded programs, to change settings.
    pub fn datapath_mut(&mut self) -> &mut Datapath {
        &mut self.datapath
    }

    /// The maps, to read counters.
    #[must_use]
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// What the kernel holds.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Brings the kernel to what is wanted: for each pod of the node, by cgroup id.
    ///
    /// Pods in `kept` stay exactly as they are. `flipped` is called when the new policies are in force; what remains is taking the old ones away.
    ///
    /// # Errors
    ///
    /// [`EngineError::Refused`] when the kernel refuses a step; every pod then has its old or its new policy. The next call reads
    /// back what the maps really hold before it plans anything.
    pub fn apply(
        &mut self,
        wanted: &BTreeMap<u64, Wanted>,
        kept: &BTreeSet<u64>,
        flipped: impl FnOnce(),
    ) -> Result<Applied, EngineError> {
        if self.stale {
            self.state = read_state(&self.maps)?;
            self.unsettled = None;
            self.stale = false;
        }
        let plan = diff::plan(&self.state, wanted, kept);
        let mut applied = Applied { refused: plan.refused, ..Applied::default() };
        let mut flipped = Some(flipped);
        for step in &plan.steps {
            if let Err(error) = self.take(step, &plan.next, &mut applied, &mut flipped) {
                self.stale = true;
                return Err(error.into());
            }
        }
        self.state = plan.next;
        if let Some(flipped) = flipped {
            flipped();
        }
        Ok(applied)
    }

    /// Returns the rules whose slots were given up since this was asked last, and what they came to.
    pub fn take_given_up(&mut self) -> Vec<GivenUp> {
        std::mem::take(&mut self.given_up)
    }

    /// Gives every slot no pod has a new revision. An agent that died between taking a pod out and ending its slot leaves verdicts
    /// in sockets that would otherwise hold until the slot is used again.
    fn end_released_slots(&mut self) -> Result<(), Refused> {
        for (slot, revision) in self.state.end_released() {
            self.maps.flip(slot, revision)?;
        }
        Ok(())
    }

    fn changed(&mut self, slot: u32) {
        if let Some(slots) = &mut self.unsettled {
            slots.insert(slot);
        }
    }

    /// Waits until no packet can still be using what the last flips replaced.
    fn settle(&mut self) {
        if self.unsettled.as_ref().is_none_or(|slots| !slots.is_empty()) {
            bpf::wait_for_running_programs();
        }
        self.unsettled = Some(BTreeSet::new());
    }

    fn take(
        &mut self,
        step: &Step,
        next: &State,
        applied: &mut Applied,
        flipped: &mut Option<impl FnOnce()>,
    ) -> Result<(), Refused> {
        match step {
            Step::WriteSet(set) => {
                applied.sets += 1;
                self.write_set(set, next)?;
            }
            Step::WriteEndpoint { cgroup, endpoint } => {
                applied.endpoints += 1;
                let known = self.maps.slot_of(*cgroup)?;
                if known != Some(endpoint.slot) {
                    self.maps.clear_counters(endpoint.slot)?;
                }
                // The other record of this slot may have been in force a moment ago.
                if self.unsettled.as_ref().is_none_or(|slots| slots.contains(&endpoint.slot)) {
                    self.settle();
                }
                self.maps.write_endpoint(endpoint)?;
                self.maps.flip(endpoint.slot, endpoint.revision)?;
                if known != Some(endpoint.slot) {
                    self.maps.bind(*cgroup, endpoint.slot)?;
                }
                self.changed(endpoint.slot);
            }
            Step::WriteUngoverned { cgroup, unprotected, released } => {
                applied.endpoints += 1;
                self.maps.bind(*cgroup, if *unprotected { UNPROTECTED } else { UNGOVERNED })?;
                if let Some((slot, revision)) = released {
                    self.maps.flip(*slot, *revision)?;
                    self.changed(*slot);
                }
            }
            Step::RemoveEndpoint { cgroup, released } => {
                applied.endpoints += 1;
                // Ended first: should this process die in between, nothing kept under the slot goes on holding.
                if let Some((slot, revision)) = released {
                    self.maps.flip(*slot, *revision)?;
                    self.changed(*slot);
                }
                self.maps.unbind(*cgroup)?;
            }
            Step::RetireSet { exact, prefixes, slots, .. } => {
                if let Some(flipped) = flipped.take() {
                    flipped();
                }
                self.settle();
                for key in exact {
                    self.maps.remove_exact(*key)?;
                }
                for (bits, key) in prefixes {
                    self.maps.remove_prefix(*bits, *key)?;
                }
                // No packet counts there any more, and none of another rule yet.
                for (slot, identity) in slots {
                    let packets = self.maps.rule_counter(*slot)?.packets;
                    if packets > 0 {
                        self.given_up.push(GivenUp { identity: *identity, packets });
                    }
                }
            }
        }
        Ok(())
    }

    fn write_set(&mut self, set: &Numbered, next: &State) -> Result<(), Refused> {
        for slot in &set.fresh_slots {
            let identity = next.allocator().rule(*slot).map_or(0, entries::identity);
            self.maps.assign_rule(*slot, identity)?;
        }
        let rules: Vec<_> = set.rules.iter().map(|(_, entry)| *entry).collect();
        self.maps.write_rules(set.block.offset, &rules)?;
        self.maps.write_addresses(&set.exact, &set.prefixes)?;
        Ok(())
    }

    /// Reads the counters of the pod with this cgroup, if it is governed.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn pod_counters(&self, cgroup: u64) -> Result<Option<[Counter; CLASSES as usize]>, Refused> {
        match self.state.endpoints().get(&cgroup) {
            Some(Some(endpoint)) => self.maps.counters(endpoint.slot).map(Some),
            _ => Ok(None),
        }
    }
}

/// Reads what the maps hold. Pinned maps keep the size they were made with, so that is what there is to give out.
fn read_state(maps: &Maps) -> Result<State, EngineError> {
    let sizes = maps.sizes();
    let capacities = Capacities {
        exact: sizes.exact,
        prefixes: sizes.prefixes,
        rules: sizes.rules,
        rule_slots: sizes.rule_slots,
        endpoints: sizes.endpoints,
    };
    let contents = maps.contents()?;
    Ok(State::adopt(capacities, found(maps, contents)?)?)
}

/// Groups what the maps hold by policy set.
fn found(maps: &Maps, contents: Contents) -> Result<Found, Refused> {
    type Entries = (Vec<(AddressKey, Span)>, Vec<(u32, AddressKey, Span)>);
    let mut entries: BTreeMap<u32, Entries> = BTreeMap::new();
    for (key, span) in contents.exact {
        entries.entry(key.set).or_default().0.push((key, span));
    }
    for (bits, key, span) in contents.prefixes {
        entries.entry(key.set).or_default().1.push((bits, key, span));
    }
    for endpoint in contents.endpoints.values() {
        entries.entry(endpoint.set).or_default();
    }
    entries.remove(&0);
    let mut sets = Vec::new();
    for (id, (mut exact, mut prefixes)) in entries {
        exact.sort_unstable();
        prefixes.sort_unstable();
        let spans = || exact.iter().map(|(_, span)| span).chain(prefixes.iter().map(|(_, _, span)| span));
        let filled = || spans().filter(|span| span.length > 0);
        let offset = filled().map(|span| span.offset).min().unwrap_or(0);
        let end = filled().map(|span| span.offset.saturating_add(span.length)).max().unwrap_or(0);
        let block = Block { offset, length: end.saturating_sub(offset) };
        let rules = maps.read_rules(Span { offset: block.offset, length: block.length })?;
        let rules = (block.offset..).zip(rules).collect();
        sets.push(Numbered { id, block, exact, prefixes, rules, fresh_slots: Vec::new() });
    }
    let governed = |slot: &u32| *slot != UNGOVERNED && *slot != UNPROTECTED;
    let endpoints = contents
        .pods
        .iter()
        .map(|(cgroup, slot)| (*cgroup, contents.endpoints.get(slot).filter(|_| governed(slot)).copied()))
        .collect();
    let unprotected = contents.pods.iter().filter(|(_, slot)| **slot == UNPROTECTED);
    let unprotected = unprotected.map(|(cgroup, _)| *cgroup).collect();
    Ok(Found { endpoints, unprotected, sets, identities: contents.identities, revisions: contents.revisions })
}
