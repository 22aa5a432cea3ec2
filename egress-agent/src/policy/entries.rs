//! Numbers policy sets for the maps: ids, places in the rules map, slots of rules. Also recognises a set in what a former
//! agent left there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use egress_common::{
    endpoint::{Endpoint, flags},
    maps::{capacity, name},
    octets,
    policy::{AddressKey, NO_RULE, RuleEntry, Span, TRIE_IPV4},
    words,
};

use super::{
    compile::{MAX_ENTRIES, PolicySet},
    model::{PolicyKind, RuleName, RulePart},
};

/// A stretch of the rules map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block {
    /// Index of its first entry.
    pub offset: u32,
    /// How many entries it has.
    pub length: u32,
}

/// A policy set as it stands in the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbered {
    /// Its id.
    pub id: u32,
    /// The place of its rule entries.
    pub block: Block,
    /// Entries of the exact map.
    pub exact: Vec<(AddressKey, Span)>,
    /// Entries of the LPM map: prefix length in bits (32 for the set, then the address), key, value.
    pub prefixes: Vec<(u32, AddressKey, Span)>,
    /// Entries of the rules map by index, ascending, all of `block`. Their rules are slots.
    pub rules: Vec<(u32, RuleEntry)>,
    /// Rule slots that now stand for another rule than before, so their counters begin at zero.
    pub fresh_slots: Vec<u32>,
}

/// A map has no room for what was to be written, or none that one set may take. Nothing was changed.
///
/// Whoever may write policies for one namespace must not be able to leave no room for the others. So a set that needs more than
/// half of a map is refused where it would leave less than an eighth of the map free. Maps with fewer than [`SHARED`] entries
/// are exempt: they serve tests and single pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("map {map} {}: {needed} entries needed, {free} of {capacity} free", self.limit())]
pub struct Full {
    /// The map, by its name in the object.
    pub map: &'static str,
    /// How many entries are needed (in one piece, for the rules map).
    pub needed: u32,
    /// How many there are (in one piece, for the rules map).
    pub free: u32,
    /// How many the map holds at most.
    pub capacity: u32,
}

/// From how many entries on a map has a part that no single set may take, see [`Full`].
pub const SHARED: u32 = 256;

impl Full {
    fn limit(&self) -> &'static str {
        if self.needed > self.free {
            "is full"
        } else {
            "has no room for a set this large: more than half of the map, and less than an eighth would be left"
        }
    }

    /// Returns an error if there is no room for `needed` more entries that one set wants.
    fn check(map: &'static str, needed: u32, free: u32, capacity: u32) -> Result<(), Self> {
        let large = capacity >= SHARED && needed > capacity / 2 && free.saturating_sub(needed) < capacity / 8;
        if needed > free || large { Err(Self { map, needed, free, capacity }) } else { Ok(()) }
    }
}

/// What stands in the maps contradicts itself, so nothing can be built on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inconsistent {
    /// The rule entries of a set overlap another's, or leave the map.
    #[error("the rule entries of set {0} overlap another set's or leave the map")]
    Block(u32),
    /// A set id is 0 or appears twice.
    #[error("set {0} appears twice, or has no id")]
    Set(u32),
    /// A slot is out of range or taken twice.
    #[error("slot {0} is out of range or taken twice")]
    Slot(u32),
    /// There are more entries than the map may hold.
    #[error("map {0} holds more than its capacity")]
    Overfull(&'static str),
}

/// Entries each map may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Of the exact map.
    pub exact: u32,
    /// Of the LPM map.
    pub prefixes: u32,
    /// Of the rules map.
    pub rules: u32,
    /// Rule slots, slot 0 included, which is never given away.
    pub rule_slots: u32,
    /// Endpoint slots, slot 0 included, which is never given away.
    pub endpoints: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            exact: capacity::EXACT,
            prefixes: capacity::PREFIXES,
            rules: capacity::RULES,
            rule_slots: capacity::RULE_SLOTS,
            endpoints: capacity::ENDPOINTS,
        }
    }
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The map, by its name in the object.
    pub map: &'static str,
    /// Entries in use.
    pub used: u32,
    /// Entries it may hold.
    pub capacity: u32,
}

/// Gives away numbers from 1 up to a limit, the lowest free one first.
#[derive(Clone, Debug)]
pub struct Slots {
    map: &'static str,
    capacity: u32,
    /// No number from here on was ever given away.
    untouched: u32,
    /// Numbers below `untouched` that are free.
    returned: BTreeSet<u32>,
}

impl Slots {
    /// Returns slots 1 to `capacity` - 1 of `map`.
    #[must_use]
    pub fn new(map: &'static str, capacity: u32) -> Self {
        Self { map, capacity, untouched: 1, returned: BTreeSet::new() }
    }

    /// Returns the lowest free slot, which is then taken.
    ///
    /// # Errors
    /// When all are taken.
    pub fn take(&mut self) -> Result<u32, Full> {
        if let Some(slot) = self.returned.pop_first() {
            return Ok(slot);
        }
        if self.free() == 0 {
            return Err(self.full(1));
        }
        self.untouched += 1;
        Ok(self.untouched - 1)
    }

    /// Takes a given slot.
    ///
    /// # Errors
    /// When it is taken or out of range.
    pub fn reserve(&mut self, slot: u32) -> Result<(), Inconsistent> {
        if slot == 0 || slot >= self.capacity {
            return Err(Inconsistent::Slot(slot));
        }
        if slot < self.untouched {
            return if self.returned.remove(&slot) { Ok(()) } else { Err(Inconsistent::Slot(slot)) };
        }
        self.returned.extend(self.untouched..slot);
        self.untouched = slot + 1;
        Ok(())
    }

    /// Gives a slot back.
    ///
    /// # Panics
    /// When it was not taken.
    pub fn give_back(&mut self, slot: u32) {
        let taken = slot != 0 && slot < self.untouched && self.returned.insert(slot);
        assert!(taken, "slot {slot} of {} was taken before it is given back", self.map);
    }

    /// Returns how many slots are free.
    #[must_use]
    pub fn free(&self) -> u32 {
        let returned = u32::try_from(self.returned.len()).expect("no more than the capacity");
        self.capacity.saturating_sub(self.untouched) + returned
    }

    /// Returns how many slots are taken, out of how many.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let capacity = self.capacity.saturating_sub(1);
        Usage { map: self.map, used: capacity - self.free(), capacity }
    }

    fn full(&self, needed: u32) -> Full {
        Full { map: self.map, needed, free: self.free(), capacity: self.capacity.saturating_sub(1) }
    }
}

/// The free stretches of the rules map, by offset. Neighbours are joined.
#[derive(Clone, Debug, Default)]
struct FreeBlocks(BTreeMap<u32, u32>);

impl FreeBlocks {
    fn new(capacity: u32) -> Self {
        let mut free = Self::default();
        free.put(Block { offset: 0, length: capacity });
        free
    }

    /// Returns where the first stretch of at least `length` entries begins.
    fn find(&self, length: u32) -> Option<u32> {
        self.0.iter().find(|(_, free)| **free >= length).map(|(offset, _)| *offset)
    }

    fn longest(&self) -> u32 {
        self.0.values().copied().max().unwrap_or(0)
    }

    fn total(&self) -> u32 {
        self.0.values().sum()
    }

    /// Takes a block if all of it is free. An empty block always is.
    fn take(&mut self, block: Block) -> bool {
        if block.length == 0 {
            return true;
        }
        let Some(end) = block.offset.checked_add(block.length) else { return false };
        let Some((&offset, &length)) = self.0.range(..=block.offset).next_back() else { return false };
        if offset + length < end {
            return false;
        }
        self.0.remove(&offset);
        for (from, to) in [(offset, block.offset), (end, offset + length)] {
            if from < to {
                self.0.insert(from, to - from);
            }
        }
        true
    }

    /// Gives a block back.
    fn put(&mut self, block: Block) {
        let Block { mut offset, mut length } = block;
        if length == 0 {
            return;
        }
        if let Some((&before, &free)) = self.0.range(..offset).next_back() {
            assert!(before + free <= offset, "block {block:?} was taken before it is given back");
            if before + free == offset {
                self.0.remove(&before);
                (offset, length) = (before, free + length);
            }
        }
        if let Some((&after, &free)) = self.0.range(block.offset..).next() {
            assert!(offset + length <= after, "block {block:?} was taken before it is given back");
            if offset + length == after {
                self.0.remove(&after);
                length += free;
            }
        }
        self.0.insert(offset, length);
    }
}

/// A rule slot in use.
#[derive(Clone, Debug)]
struct Holder {
    /// The rule; unknown while only a former agent's set uses the slot.
    name: Option<Arc<RuleName>>,
    /// How many sets use it.
    uses: u32,
}

/// What a set takes of the maps.
#[derive(Clone, Debug)]
struct Taken {
    block: Block,
    exact: u32,
    prefixes: u32,
    slots: Vec<u32>,
}

/// Knows what is taken of each map, and numbers new sets.
#[derive(Clone, Debug)]
pub struct Allocator {
    capacities: Capacities,
    /// The next set id; ids are never used again.
    next_id: u32,
    blocks: FreeBlocks,
    exact: u32,
    prefixes: u32,
    slots: Slots,
    holders: BTreeMap<u32, Holder>,
    by_name: HashMap<Arc<RuleName>, u32>,
    /// Slots of a former agent whose rule's name nobody has said yet, by [`identity`].
    unnamed: HashMap<u64, u32>,
    sets: BTreeMap<u32, Arc<Taken>>,
}

impl Allocator {
    /// Returns how much the maps hold.
    #[must_use]
    pub const fn capacities(&self) -> Capacities {
        self.capacities
    }

    /// Returns an allocator for empty maps.
    #[must_use]
    pub fn new(capacities: Capacities) -> Self {
        Self {
            capacities,
            next_id: 1,
            blocks: FreeBlocks::new(capacities.rules),
            exact: 0,
            prefixes: 0,
            slots: Slots::new(name::RULE_COUNTERS, capacities.rule_slots),
            holders: BTreeMap::new(),
            by_name: HashMap::new(),
            unnamed: HashMap::new(),
            sets: BTreeMap::new(),
        }
    }

    /// Returns an allocator for maps that hold `sets`. Each comes with the rule slots it uses apart from those in its entries.
    /// `identities` says which rule a slot stands for.
    ///
    /// # Errors
    /// When the sets contradict each other or the capacities.
    pub fn adopt<'a>(
        capacities: Capacities,
        sets: impl IntoIterator<Item = (&'a Numbered, Vec<u32>)>,
        identities: impl IntoIterator<Item = (u64, u32)>,
    ) -> Result<Self, Inconsistent> {
        let mut adopted = Self::new(capacities);
        for (set, further_slots) in sets {
            if set.id == 0 || adopted.sets.contains_key(&set.id) {
                return Err(Inconsistent::Set(set.id));
            }
            if !adopted.blocks.take(set.block) {
                return Err(Inconsistent::Block(set.id));
            }
            let in_entries = set.rules.iter().flat_map(|(_, entry)| entry.rules);
            let slots: BTreeSet<u32> =
                in_entries.chain(further_slots).filter(|slot| *slot != NO_RULE).collect();
            for &slot in &slots {
                if let Some(holder) = adopted.holders.get_mut(&slot) {
                    holder.uses += 1;
                } else {
                    adopted.slots.reserve(slot)?;
                    adopted.holders.insert(slot, Holder { name: None, uses: 1 });
                }
            }
            let count = |length: usize, map| u32::try_from(length).map_err(|_| Inconsistent::Overfull(map));
            let taken = Taken {
                block: set.block,
                exact: count(set.exact.len(), name::EXACT)?,
                prefixes: count(set.prefixes.len(), name::PREFIXES)?,
                slots: slots.into_iter().collect(),
            };
            adopted.exact = adopted.exact.saturating_add(taken.exact);
            adopted.prefixes = adopted.prefixes.saturating_add(taken.prefixes);
            adopted.next_id = adopted.next_id.max(set.id.saturating_add(1));
            adopted.sets.insert(set.id, Arc::new(taken));
        }
        if adopted.exact > capacities.exact {
            return Err(Inconsistent::Overfull(name::EXACT));
        }
        if adopted.prefixes > capacities.prefixes {
            return Err(Inconsistent::Overfull(name::PREFIXES));
        }
        for (identity, slot) in identities {
            if adopted.holders.contains_key(&slot) {
                adopted.unnamed.insert(identity, slot);
            }
        }
        Ok(adopted)
    }

    /// Returns `set` numbered for the maps.
    ///
    /// A rule keeps its slot while any set uses it, and takes over the slot a former agent gave it.
    ///
    /// # Errors
    /// When it does not fit, or would leave too little for others (see [`Full`]). Then nothing has changed.
    pub fn allocate(&mut self, set: &PolicySet) -> Result<Numbered, Full> {
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let needed = if set.too_large { count(MAX_ENTRIES + 1) } else { count(set.entries()) };
        let (exact, prefixes) = (count(set.exact.len()), count(set.prefixes.len()));
        let Capacities { exact: exact_capacity, prefixes: prefix_capacity, .. } = self.capacities;
        Full::check(name::EXACT, exact, exact_capacity - self.exact, exact_capacity)?;
        Full::check(name::PREFIXES, prefixes, prefix_capacity - self.prefixes, prefix_capacity)?;
        let offset = if needed == 0 { Some(0) } else { self.blocks.find(needed) };
        let longest = self.blocks.longest();
        let Some(offset) = offset.filter(|_| !set.too_large) else {
            return Err(Full { map: name::RULES, needed, free: longest, capacity: self.capacities.rules });
        };
        Full::check(name::RULES, needed, self.blocks.total(), self.capacities.rules)?;
        let slots = self.choose(set);
        let new = count(slots.iter().filter(|slot| slot.is_none()).count());
        let Full { map, needed: new, free, capacity } = self.slots.full(new);
        Full::check(map, new, free, capacity)?;
        // The last id is never given away, so that the next one can always be counted.
        Full::check("set ids", 1, TRIE_IPV4.saturating_sub(self.next_id), TRIE_IPV4)?;

        let id = self.next_id;
        self.next_id += 1;
        let block = Block { offset, length: needed };
        assert!(self.blocks.take(block), "the stretch was found free");
        self.exact += exact;
        self.prefixes += prefixes;
        let mut fresh_slots = Vec::new();
        let slots: Vec<u32> = set
            .rules
            .iter()
            .zip(slots)
            .map(|(rule, slot)| {
                let slot = slot.unwrap_or_else(|| {
                    let slot = self.slots.take().expect("free slots were counted");
                    fresh_slots.push(slot);
                    slot
                });
                self.hold(slot, rule);
                slot
            })
            .collect();
        let numbered = number(set, id, block, &slots, fresh_slots);
        self.sets.insert(id, Arc::new(Taken { block, exact, prefixes, slots }));
        Ok(numbered)
    }

    /// Returns the slot each rule of `set` has already, if any.
    fn choose(&self, set: &PolicySet) -> Vec<Option<u32>> {
        let mut claimed = HashSet::new();
        set.rules
            .iter()
            .map(|rule| {
                self.by_name.get(rule).copied().or_else(|| {
                    // Of two rules of the same identity only one can take the slot over.
                    self.unnamed.get(&identity(rule)).copied().filter(|slot| claimed.insert(*slot))
                })
            })
            .collect()
    }

    fn hold(&mut self, slot: u32, rule: &RuleName) {
        let holder = self.holders.entry(slot).or_insert(Holder { name: None, uses: 0 });
        holder.uses += 1;
        if holder.name.is_none() {
            self.entitle(slot, rule);
        }
    }

    /// Writes down which rule a slot stands for.
    fn entitle(&mut self, slot: u32, rule: &RuleName) {
        let rule = Arc::new(rule.clone());
        self.unnamed.remove(&identity(&rule));
        self.holders.get_mut(&slot).expect("only slots in use get a name").name = Some(Arc::clone(&rule));
        self.by_name.insert(rule, slot);
    }

    /// Learns from `set`, found equal to the adopted set `id`, which rules its slots stand for. Returns whether all were found.
    pub(super) fn recognise(&mut self, id: u32, set: &PolicySet) -> bool {
        let Some(taken) = self.sets.get(&id).cloned() else { return false };
        let slots = self.choose(set);
        if !slots.iter().all(|slot| slot.is_some_and(|slot| taken.slots.contains(&slot))) {
            return false;
        }
        for (rule, slot) in set.rules.iter().zip(slots) {
            let slot = slot.expect("all have one");
            if self.holders[&slot].name.is_none() {
                self.entitle(slot, rule);
            }
        }
        true
    }

    /// Takes back everything a set has. Returns the rule slots that are free now, with the [`identity`] of the rule where it is known.
    ///
    /// # Panics
    /// When there is no such set.
    pub fn release(&mut self, id: u32) -> Vec<(u32, u64)> {
        let mut freed = Vec::new();
        let taken = self.sets.remove(&id).expect("only sets that are there are released");
        self.blocks.put(taken.block);
        self.exact -= taken.exact;
        self.prefixes -= taken.prefixes;
        for &slot in &taken.slots {
            let holder = self.holders.get_mut(&slot).expect("slots of sets are held");
            holder.uses -= 1;
            if holder.uses == 0 {
                if let Some(Holder { name: Some(name), .. }) = self.holders.remove(&slot) {
                    freed.push((slot, identity(&name)));
                    self.by_name.remove(&name);
                } else {
                    self.unnamed.retain(|_, unnamed| *unnamed != slot);
                }
                self.slots.give_back(slot);
            }
        }
        freed
    }

    /// Returns the slot of a rule that some set uses.
    #[must_use]
    pub fn slot_of(&self, rule: &RuleName) -> Option<u32> {
        self.by_name.get(rule).copied()
    }

    /// Returns the rule a slot stands for. `None` for [`NO_RULE`], for free slots, and for those of a former agent whose rule
    /// has not been seen again yet.
    #[must_use]
    pub fn rule(&self, slot: u32) -> Option<&RuleName> {
        self.holders.get(&slot)?.name.as_deref()
    }

    /// Returns each slot in use whose rule is known, with the rule.
    pub fn rules(&self) -> impl Iterator<Item = (u32, &RuleName)> {
        self.holders.iter().filter_map(|(slot, holder)| Some((*slot, holder.name.as_deref()?)))
    }

    /// Returns how full the maps are.
    #[must_use]
    pub fn usage(&self) -> [Usage; 4] {
        let Capacities { exact, prefixes, rules, .. } = self.capacities;
        [
            Usage { map: name::EXACT, used: self.exact, capacity: exact },
            Usage { map: name::PREFIXES, used: self.prefixes, capacity: prefixes },
            Usage { map: name::RULES, used: rules - self.blocks.total(), capacity: rules },
            self.slots.usage(),
        ]
    }
}

/// Returns the map entries of `set` under `id`, its rule entries in `block`, its rules in `slots`.
fn number(set: &PolicySet, id: u32, block: Block, slots: &[u32], fresh_slots: Vec<u32>) -> Numbered {
    let slot = |rule: u32| if rule == NO_RULE { NO_RULE } else { slots[rule as usize - 1] };
    let mut next = block.offset;
    let mut rules = Vec::with_capacity(block.length as usize);
    let mut spans = Vec::with_capacity(set.lists.len());
    for list in &set.lists {
        let offset = next;
        for entry in list {
            rules.push((next, RuleEntry { rules: entry.rules.map(slot), ..*entry }));
            next += 1;
        }
        // An empty list has no place.
        spans.push(Span { offset: if offset == next { 0 } else { offset }, length: next - offset });
    }
    let key = |address: [u8; 16]| AddressKey { set: id, address: words(address) };
    Numbered {
        id,
        block,
        exact: set.exact.iter().map(|(address, list)| (key(*address), spans[*list as usize])).collect(),
        prefixes: set
            .prefixes
            .iter()
            .map(|(address, length, list)| (32 + u32::from(*length), key(*address), spans[*list as usize]))
            .collect(),
        rules,
        fresh_slots,
    }
}

/// Returns a number that stands for a rule across restarts of the agent.
///
/// It is the 64-bit FNV-1a hash of: the policy's kind (0 ConfigMap, 1 NetworkPolicy, 2 namespace), its namespace, the byte
/// 0xff, its name, 0xff, the part (0 destination, 1 cluster DNS, 2 own node, 3 default), and the destination's name. 0xff is in
/// no UTF-8 text. Somebody may make two rules with the same number on purpose: that can confuse which rule a counter belongs
/// to, but no verdict depends on it.
#[must_use]
pub fn identity(rule: &RuleName) -> u64 {
    let kind = match rule.policy.kind {
        PolicyKind::ConfigMap => 0,
        PolicyKind::NetworkPolicy => 1,
        PolicyKind::Namespace => 2,
    };
    let (part, destination) = match &rule.part {
        RulePart::Destination(name) => (0, name.as_str()),
        RulePart::ClusterDns => (1, ""),
        RulePart::OwnNode => (2, ""),
        RulePart::Default => (3, ""),
    };
    let id = &rule.policy.id;
    let pieces: [&[u8]; 7] = [
        &[kind],
        id.namespace.as_bytes(),
        &[0xff],
        id.name.as_bytes(),
        &[0xff],
        &[part],
        destination.as_bytes(),
    ];
    pieces.into_iter().flatten().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A rule entry whose rules are identities: low, high, rules, deadlines. 0 stands for no rule.
type PlainEntry = (u32, u32, [u64; 4], [u64; 4]);

/// What a set says, without any number that an agent has chosen: equal for a set and for what is found of it in the maps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Content {
    default_deny: Option<u64>,
    audit_default_deny: Option<u64>,
    lists: Vec<Vec<PlainEntry>>,
    exact: Vec<([u8; 16], u32)>,
    prefixes: Vec<([u8; 16], u8, u32)>,
}

impl Content {
    /// Returns the content of a compiled set.
    #[must_use]
    pub fn of(set: &PolicySet) -> Self {
        let identities: Vec<u64> = std::iter::once(0).chain(set.rules.iter().map(identity)).collect();
        let default = |rule: Option<u32>| rule.map(|rule| identities[rule as usize]);
        let plain = |entry: &RuleEntry| {
            let rules = entry.rules.map(|rule| identities[rule as usize]);
            (entry.low, entry.high, rules, entry.deadlines)
        };
        Self::canonical(
            (default(set.default_deny), default(set.audit_default_deny)),
            &set.lists.iter().map(|list| list.iter().map(plain).collect()).collect::<Vec<_>>(),
            set.exact.clone(),
            set.prefixes.clone(),
        )
    }

    /// Returns the content of a set found in the maps, used by `endpoint`. `identity_of` says which rule a slot stands for.
    /// `None` when a slot is unknown, or the entries contradict themselves: then it is nobody's set.
    #[must_use]
    pub fn found(
        set: &Numbered,
        endpoint: &Endpoint,
        identity_of: impl Fn(u32) -> Option<u64>,
    ) -> Option<Self> {
        let default =
            |flag, slot| if endpoint.flags & flag == 0 { Some(None) } else { identity_of(slot).map(Some) };
        let defaults = (
            default(flags::DEFAULT_DENY, endpoint.default_rule)?,
            default(flags::AUDIT_DEFAULT_DENY, endpoint.audit_default_rule)?,
        );
        let entries: BTreeMap<u32, RuleEntry> = set.rules.iter().copied().collect();
        let mut places: HashMap<Span, u32> = HashMap::new();
        let mut lists: Vec<Vec<PlainEntry>> = Vec::new();
        let mut place = |span: Span| {
            if let Some(place) = places.get(&span) {
                return Some(*place);
            }
            let mut list = Vec::new();
            for index in span.offset..span.offset.checked_add(span.length)? {
                let entry = entries.get(&index)?;
                let mut rules = [0; 4];
                for (rule, slot) in rules.iter_mut().zip(entry.rules).filter(|(_, slot)| *slot != NO_RULE) {
                    *rule = identity_of(slot)?;
                }
                list.push((entry.low, entry.high, rules, entry.deadlines));
            }
            let place = u32::try_from(lists.len()).ok()?;
            lists.push(list);
            places.insert(span, place);
            Some(place)
        };
        let mut exact = Vec::with_capacity(set.exact.len());
        for (key, span) in &set.exact {
            exact.push((octets(key.address), place(*span)?));
        }
        let mut prefixes = Vec::with_capacity(set.prefixes.len());
        for (bits, key, span) in &set.prefixes {
            prefixes.push((octets(key.address), u8::try_from(bits.checked_sub(32)?).ok()?, place(*span)?));
        }
        Some(Self::canonical(defaults, &lists, exact, prefixes))
    }

    fn canonical(
        (default_deny, audit_default_deny): (Option<u64>, Option<u64>),
        lists: &[Vec<PlainEntry>],
        mut exact: Vec<([u8; 16], u32)>,
        mut prefixes: Vec<([u8; 16], u8, u32)>,
    ) -> Self {
        let mut sorted = lists.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let places: Vec<u32> = lists
            .iter()
            .map(|list| sorted.binary_search(list).expect("it is one of them"))
            .map(|place| u32::try_from(place).expect("no more lists than before"))
            .collect();
        exact.iter_mut().for_each(|(_, list)| *list = places[*list as usize]);
        prefixes.iter_mut().for_each(|(_, _, list)| *list = places[*list as usize]);
        exact.sort_unstable();
        prefixes.sort_unstable();
        Self { default_deny, audit_default_deny, lists: sorted, exact, prefixes }
    }

    /// Returns a number for the content: the 128-bit FNV-1a hash of its fields in order, numbers in little-endian bytes. For
    /// logs and quick comparison; whoever would share entries because of it compares the content itself.
    #[must_use]
    pub fn fingerprint(&self) -> u128 {
        let mut hash = Fnv128::default();
        for default in [self.default_deny, self.audit_default_deny] {
            hash.bytes(&[u8::from(default.is_some())]);
            hash.number(default.unwrap_or(0));
        }
        hash.length(self.lists.len());
        for list in &self.lists {
            hash.length(list.len());
            for (low, high, rules, deadlines) in list {
                hash.number(u64::from(*low) << 32 | u64::from(*high));
                rules.iter().chain(deadlines).for_each(|number| hash.number(*number));
            }
        }
        hash.length(self.exact.len());
        for (address, list) in &self.exact {
            hash.bytes(address);
            hash.number(u64::from(*list));
        }
        hash.length(self.prefixes.len());
        for (address, length, list) in &self.prefixes {
            hash.bytes(address);
            hash.number(u64::from(*length) << 32 | u64::from(*list));
        }
        hash.0
    }
}

/// Returns [`Content::fingerprint`] of a set.
#[must_use]
pub fn fingerprint(set: &PolicySet) -> u128 {
    Content::of(set).fingerprint()
}

struct Fnv128(u128);

impl Default for Fnv128 {
    fn default() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Fnv128 {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    fn length(&mut self, length: usize) {
        self.number(length as u64);
    }
}

#[cfg(test)]
pub(in crate::policy) mod tests;
