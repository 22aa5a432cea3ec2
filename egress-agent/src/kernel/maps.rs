//! The maps as typed values: writing a policy set, binding a pod, flipping it, reading counters. Each method is one step; which
//! steps in which order is decided in `policy::diff`.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::maps::{
    Array, HashMap, LpmTrie, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf, lpm_trie::Key,
};
use egress_common::{
    endpoint::{Endpoint, record_index},
    maps::{Counter, name, node_counter},
    policy::{AddressKey, RuleEntry, Span, in_trie, out_of_trie},
    verdict::CLASSES,
};

use super::{
    bpf,
    loader::{Datapath, LoadError},
};

/// Every map the agent reads or writes.
pub struct Maps {
    pods: HashMap<MapData, u64, u32>,
    revisions: Array<MapData, u64>,
    endpoints: Array<MapData, Endpoint>,
    exact: HashMap<MapData, AddressKey, Span>,
    prefixes: LpmTrie<MapData, AddressKey, Span>,
    rules: Array<MapData, RuleEntry>,
    counters: PerCpuArray<MapData, Counter>,
    rule_counters: PerCpuArray<MapData, Counter>,
    rule_identities: Array<MapData, u64>,
    node_counters: PerCpuArray<MapData, u64>,
    processors: usize,
    sizes: Sizes,
    batch: Batch,
}

/// Descriptors of the maps a set is written to, for writing many entries in one call.
struct Batch {
    rules: OwnedFd,
    exact: OwnedFd,
    prefixes: OwnedFd,
}

/// A key of the LPM map, as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy)]
struct PrefixKey {
    bits: u32,
    key: AddressKey,
}

impl PrefixKey {
    fn new(bits: u32, key: AddressKey) -> Self {
        let (bits, key) = in_trie(bits, key);
        Self { bits, key }
    }
}

// SAFETY: `repr(C)`, `Copy`, six words of 32 bits without padding, every bit pattern a value.
unsafe impl aya::Pod for PrefixKey {}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

/// A map that refused, and what it refused.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {source}")]
pub struct Refused {
    /// Which map.
    pub map: &'static str,
    /// Why.
    #[source]
    pub source: MapError,
}

fn refused(map: &'static str) -> impl Fn(MapError) -> Refused {
    move |source| Refused { map, source }
}

/// Everything the maps hold of policies: what an agent finds when it takes over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Slot by cgroup id.
    pub pods: BTreeMap<u64, u32>,
    /// The revision in force by slot, for the slots that ever had one.
    pub revisions: BTreeMap<u32, u64>,
    /// The record in force by slot.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// Single addresses.
    pub exact: Vec<(AddressKey, Span)>,
    /// Prefixes: length, key, span.
    pub prefixes: Vec<(u32, AddressKey, Span)>,
    /// Identity by rule slot, for the slots that ever stood for a rule.
    pub identities: Vec<(u64, u32)>,
}

impl Maps {
    /// Takes the maps out of a loaded datapath.
    ///
    /// # Errors
    ///
    /// [`LoadError`] when the object lacks one or it has another shape.
    pub fn new(datapath: &mut Datapath) -> Result<Self, LoadError> {
        macro_rules! take {
            ($kind:ident, $name:expr) => {
                $kind::try_from(datapath.take_map($name)?)
                    .map_err(|source| LoadError::Map { map: $name, source })?
            };
        }
        let size = |name| datapath.map_capacity(name);
        let sizes = Sizes {
            endpoints: size(name::REVISIONS)?,
            exact: size(name::EXACT)?,
            prefixes: size(name::PREFIXES)?,
            rules: size(name::RULES)?,
            rule_slots: size(name::RULE_COUNTERS)?,
        };
        let batch = Batch {
            rules: datapath.map_fd(name::RULES)?,
            exact: datapath.map_fd(name::EXACT)?,
            prefixes: datapath.map_fd(name::PREFIXES)?,
        };
        let processors = aya::util::nr_cpus().map_err(|(path, source)| LoadError::File {
            action: "reading",
            path: path.into(),
            source,
        })?;
        Ok(Self {
            pods: take!(HashMap, name::PODS),
            revisions: take!(Array, name::REVISIONS),
            endpoints: take!(Array, name::ENDPOINTS),
            exact: take!(HashMap, name::EXACT),
            prefixes: take!(LpmTrie, name::PREFIXES),
            rules: take!(Array, name::RULES),
            counters: take!(PerCpuArray, name::COUNTERS),
            rule_counters: take!(PerCpuArray, name::RULE_COUNTERS),
            rule_identities: take!(Array, name::RULE_IDENTITIES),
            node_counters: take!(PerCpuArray, name::NODE_COUNTERS),
            processors,
            sizes,
            batch,
        })
    }

    /// Takes the ring of events out of a loaded datapath.
    ///
    /// # Errors
    ///
    /// [`LoadError`] when the object has none.
    pub fn events(datapath: &mut Datapath) -> Result<RingBuf<MapData>, LoadError> {
        RingBuf::try_from(datapath.take_map(name::EVENTS)?)
            .map_err(|source| LoadError::Map { map: name::EVENTS, source })
    }

    /// Entries the maps hold. Pinned maps keep the size they were made with, whatever the flags say now.
    #[must_use]
    pub const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Writes a block of rule entries from `offset` on. Nothing may point there yet.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn write_rules(&mut self, offset: u32, entries: &[RuleEntry]) -> Result<(), Refused> {
        let keys: Vec<u32> = (offset..).take(entries.len()).collect();
        if bpf::update_batch(self.batch.rules.as_fd(), &keys, entries).is_ok() {
            return Ok(());
        }
        for (index, entry) in keys.into_iter().zip(entries) {
            self.rules.set(index, entry, 0).map_err(refused(name::RULES))?;
        }
        Ok(())
    }

    /// Writes the addresses of a set. Where the kernel takes no batch, or refuses it, one by one, so that an error is that of an
    /// entry.
    ///
    /// # Errors
    ///
    /// [`Refused`], also when a map is full.
    pub fn write_addresses(
        &mut self,
        exact: &[(AddressKey, Span)],
        prefixes: &[(u32, AddressKey, Span)],
    ) -> Result<(), Refused> {
        let (keys, spans): (Vec<AddressKey>, Vec<Span>) = exact.iter().copied().unzip();
        if bpf::update_batch(self.batch.exact.as_fd(), &keys, &spans).is_err() {
            for (key, span) in exact {
                self.write_exact(*key, *span)?;
            }
        }
        let (keys, spans): (Vec<PrefixKey>, Vec<Span>) =
            prefixes.iter().map(|(bits, key, span)| (PrefixKey::new(*bits, *key), *span)).unzip();
        if bpf::update_batch(self.batch.prefixes.as_fd(), &keys, &spans).is_err() {
            for (bits, key, span) in prefixes {
                self.write_prefix(*bits, *key, *span)?;
            }
        }
        Ok(())
    }

    /// Reads rule entries.
    ///
    /// # Errors
    ///
    /// [`Refused`] when the span leaves the map.
    pub fn read_rules(&self, span: Span) -> Result<Vec<RuleEntry>, Refused> {
        (span.offset..span.offset.saturating_add(span.length))
            .map(|index| self.rules.get(&index, 0).map_err(refused(name::RULES)))
            .collect()
    }

    /// Writes a single address of a set.
    ///
    /// # Errors
    ///
    /// [`Refused`], also when the map is full.
    pub fn write_exact(&mut self, key: AddressKey, span: Span) -> Result<(), Refused> {
        self.exact.insert(key, span, 0).map_err(refused(name::EXACT))
    }

    /// Writes a prefix of a set.
    ///
    /// # Errors
    ///
    /// [`Refused`], also when the map is full.
    pub fn write_prefix(&mut self, bits: u32, key: AddressKey, span: Span) -> Result<(), Refused> {
        let PrefixKey { bits, key } = PrefixKey::new(bits, key);
        self.prefixes.insert(&Key::new(bits, key), span, 0).map_err(refused(name::PREFIXES))
    }

    /// Removes a single address; that it is not there is fine.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn remove_exact(&mut self, key: AddressKey) -> Result<(), Refused> {
        absent_is_fine(self.exact.remove(&key)).map_err(refused(name::EXACT))
    }

    /// Removes a prefix; that it is not there is fine.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn remove_prefix(&mut self, bits: u32, key: AddressKey) -> Result<(), Refused> {
        let PrefixKey { bits, key } = PrefixKey::new(bits, key);
        absent_is_fine(self.prefixes.remove(&Key::new(bits, key))).map_err(refused(name::PREFIXES))
    }

    /// Writes the record that `endpoint.revision` names. It must not be the one in force.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn write_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), Refused> {
        let index = record_index(endpoint.slot, endpoint.revision);
        self.endpoints.set(index, endpoint, 0).map_err(refused(name::ENDPOINTS))
    }

    /// Puts a revision in force with one 64-bit store.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn flip(&mut self, slot: u32, revision: u64) -> Result<(), Refused> {
        self.revisions.set(slot, revision, 0).map_err(refused(name::REVISIONS))
    }

    /// Tells the programs which slot a pod has ([`egress_common::endpoint::UNGOVERNED`] for none).
    ///
    /// # Errors
    ///
    /// [`Refused`], also when the map is full.
    pub fn bind(&mut self, cgroup: u64, slot: u32) -> Result<(), Refused> {
        self.pods.insert(cgroup, slot, 0).map_err(refused(name::PODS))
    }

    /// Returns the slot of a pod, if it is known.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn slot_of(&self, cgroup: u64) -> Result<Option<u32>, Refused> {
        match self.pods.get(&cgroup, 0) {
            Ok(slot) => Ok(Some(slot)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(Refused { map: name::PODS, source }),
        }
    }

    /// Makes a pod unknown; that it is not there is fine.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn unbind(&mut self, cgroup: u64) -> Result<(), Refused> {
        absent_is_fine(self.pods.remove(&cgroup)).map_err(refused(name::PODS))
    }

    /// Reads everything that belongs to policies.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn contents(&self) -> Result<Contents, Refused> {
        let mut contents = Contents::default();
        for entry in self.pods.iter() {
            let (cgroup, slot) = entry.map_err(refused(name::PODS))?;
            contents.pods.insert(cgroup, slot);
        }
        for slot in 0..self.revisions.len() {
            let revision = self.revisions.get(&slot, 0).map_err(refused(name::REVISIONS))?;
            if revision == 0 {
                continue;
            }
            contents.revisions.insert(slot, revision);
            let record =
                self.endpoints.get(&record_index(slot, revision), 0).map_err(refused(name::ENDPOINTS))?;
            contents.endpoints.insert(slot, record);
        }
        for entry in self.exact.iter() {
            contents.exact.push(entry.map_err(refused(name::EXACT))?);
        }
        for entry in self.prefixes.iter() {
            let (key, span) = entry.map_err(refused(name::PREFIXES))?;
            let (bits, key) = out_of_trie(key.prefix_len(), key.data());
            contents.prefixes.push((bits, key, span));
        }
        for slot in 1..self.rule_identities.len() {
            let identity = self.rule_identities.get(&slot, 0).map_err(refused(name::RULE_IDENTITIES))?;
            if identity != 0 {
                contents.identities.push((identity, slot));
            }
        }
        Ok(contents)
    }

    /// Gives a rule slot to a rule: its counter starts at zero.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn assign_rule(&mut self, slot: u32, identity: u64) -> Result<(), Refused> {
        self.clear_rule_counter(slot)?;
        self.rule_identities.set(slot, identity, 0).map_err(refused(name::RULE_IDENTITIES))
    }

    /// Reads an endpoint's counters, summed over processors.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn counters(&self, slot: u32) -> Result<[Counter; CLASSES as usize], Refused> {
        let mut counters = [Counter::default(); CLASSES as usize];
        for (class, counter) in (0..CLASSES).zip(&mut counters) {
            let values = self.counters.get(&(slot * CLASSES + class), 0).map_err(refused(name::COUNTERS))?;
            *counter = sum(&values);
        }
        Ok(counters)
    }

    /// Sets an endpoint's counters to zero, before its slot goes to another pod.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn clear_counters(&mut self, slot: u32) -> Result<(), Refused> {
        for class in 0..CLASSES {
            let zero = zeros(self.processors, name::COUNTERS)?;
            self.counters.set(slot * CLASSES + class, zero, 0).map_err(refused(name::COUNTERS))?;
        }
        Ok(())
    }

    /// Reads a rule's counter, summed over processors.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn rule_counter(&self, rule: u32) -> Result<Counter, Refused> {
        Ok(sum(&self.rule_counters.get(&rule, 0).map_err(refused(name::RULE_COUNTERS))?))
    }

    /// Sets a rule's counter to zero, before its slot goes to another rule.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn clear_rule_counter(&mut self, rule: u32) -> Result<(), Refused> {
        let zero = zeros(self.processors, name::RULE_COUNTERS)?;
        self.rule_counters.set(rule, zero, 0).map_err(refused(name::RULE_COUNTERS))
    }

    /// Reads the node's counters, see [`node_counter`].
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn node_counters(&self) -> Result<[u64; node_counter::COUNT as usize], Refused> {
        let mut counters = [0; node_counter::COUNT as usize];
        for (index, counter) in (0..node_counter::COUNT).zip(&mut counters) {
            let values = self.node_counters.get(&index, 0).map_err(refused(name::NODE_COUNTERS))?;
            *counter = values.iter().sum();
        }
        Ok(counters)
    }
}

/// Entries of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Slots, the one for unknown pods included.
    pub endpoints: u32,
    /// Single addresses.
    pub exact: u32,
    /// Prefixes.
    pub prefixes: u32,
    /// Rule entries.
    pub rules: u32,
    /// Rule slots, the one for no rule included.
    pub rule_slots: u32,
}

fn sum(values: &PerCpuValues<Counter>) -> Counter {
    values.iter().fold(Counter::default(), |sum, value| Counter {
        packets: sum.packets.wrapping_add(value.packets),
        bytes: sum.bytes.wrapping_add(value.bytes),
    })
}

fn zeros(processors: usize, map: &'static str) -> Result<PerCpuValues<Counter>, Refused> {
    PerCpuValues::try_from(vec![Counter::default(); processors])
        .map_err(|error| Refused { map, source: MapError::IoError(error) })
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}
