//! The datapath driven by hand, without an agent: a test says exactly what stands in the maps.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use anyhow::{Context, Result};
use egress_agent::kernel::{
    cgroup::Kubepods,
    clock,
    loader::{Capacities, Datapath, Options},
    maps::Maps,
    object,
};
use egress_common::{
    config::setting,
    endpoint::{Endpoint, UNGOVERNED, UNPROTECTED, flags},
    maps::Counter,
    policy::{
        AddressKey, HIGHEST_PORT_KEY, ICMP, LOWEST_PORT_KEY, NEVER, NO_RULE, RuleEntry, Span, TCP, UDP,
        candidate, port_key,
    },
    verdict::{Reason, Verdict, class},
    words,
};
use ipnet::IpNet;

use super::Pod;

/// The rule slot of "denies by default".
pub const DEFAULT_RULE: u32 = 1;
/// The rule slot of the audited "denies by default".
pub const AUDIT_DEFAULT_RULE: u32 = 2;

/// Which ports of an address an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Every protocol and port.
    All,
    /// A TCP port.
    Tcp(u16),
    /// A UDP port.
    Udp(u16),
    /// ICMP.
    Icmp,
}

impl Ports {
    fn keys(self) -> (u32, u32) {
        let one = |key| (key, key);
        match self {
            Self::All => (LOWEST_PORT_KEY, HIGHEST_PORT_KEY),
            Self::Tcp(port) => one(port_key(TCP, port)),
            Self::Udp(port) => one(port_key(UDP, port)),
            Self::Icmp => one(port_key(ICMP, 0)),
        }
    }
}

/// What holds for a pod. Prefixes do not inherit ports of wider ones here: that is the compiler's work.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    default_deny: bool,
    audit_default_deny: bool,
    entries: BTreeMap<IpNet, Vec<RuleEntry>>,
    next_rule: u32,
}

impl Rules {
    /// Denies by default.
    #[must_use]
    pub fn deny() -> Self {
        Self { default_deny: true, ..Self::default() }
    }

    /// Would deny by default if it were not audited.
    #[must_use]
    pub fn audit() -> Self {
        Self { audit_default_deny: true, ..Self::default() }
    }

    /// Allows by default.
    #[must_use]
    pub fn allow() -> Self {
        Self::default()
    }

    /// Adds a rule of a kind with a deadline.
    ///
    /// # Panics
    ///
    /// When `net` is no address or prefix.
    #[must_use]
    pub fn with(mut self, kind: usize, net: &str, ports: Ports, until: u64) -> Self {
        let net: IpNet = net
            .parse()
            .or_else(|_| net.parse::<IpAddr>().map(IpNet::from))
            .unwrap_or_else(|error| panic!("{net}: {error}"));
        self.next_rule += 1;
        let rule = AUDIT_DEFAULT_RULE + self.next_rule;
        let (low, high) = ports.keys();
        let mut entry = RuleEntry { low, high, rules: [NO_RULE; 4], deadlines: [NEVER; 4] };
        entry.rules[kind] = rule;
        entry.deadlines[kind] = until;
        self.entries.entry(net).or_default().push(entry);
        self
    }

    /// Allows an address or prefix.
    #[must_use]
    pub fn to(self, net: &str, ports: Ports) -> Self {
        self.with(candidate::ALLOW, net, ports, NEVER)
    }

    /// Allows it until a time, in seconds since the epoch.
    #[must_use]
    pub fn until(self, net: &str, ports: Ports, until: u64) -> Self {
        self.with(candidate::ALLOW, net, ports, until)
    }

    /// Denies it.
    #[must_use]
    pub fn not(self, net: &str, ports: Ports) -> Self {
        self.with(candidate::DENY, net, ports, NEVER)
    }

    /// Audits a denial of it.
    #[must_use]
    pub fn audit_not(self, net: &str, ports: Ports) -> Self {
        self.with(candidate::AUDIT_DENY, net, ports, NEVER)
    }
}

/// The loaded datapath.
#[derive(Debug)]
pub struct Direct {
    /// The programs.
    pub datapath: Datapath,
    /// The maps.
    pub maps: Maps,
    kubepods: Kubepods,
    slots: BTreeMap<u64, u32>,
    next_set: u32,
    next_entry: u32,
    revision: u64,
}

impl Direct {
    /// Loads it, strict and with the connect hooks on, and attaches nothing yet.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or the crate was built without the object.
    pub fn load(kubepods: &Kubepods, pins: Option<PathBuf>) -> Result<Self> {
        let object = object::embedded().context("built without the BPF object: run `cargo xtask test`")?;
        let options =
            Options { level: kubepods.level, pins, capacities: Capacities::default(), keep_verdicts: true };
        let mut datapath = Datapath::load(object, &options)?;
        datapath.set(setting::STRICT, 1)?;
        datapath.set(setting::CONNECT_HOOKS, 1)?;
        let maps = Maps::new(&mut datapath)?;
        Ok(Self {
            datapath,
            maps,
            kubepods: kubepods.clone(),
            slots: BTreeMap::new(),
            next_set: 1,
            next_entry: 0,
            revision: 1,
        })
    }
}

/// Everything below panics when the kernel refuses, since a test cannot go on then.
impl Direct {
    /// Attaches the programs.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn attach(&mut self) {
        self.datapath.attach(&self.kubepods).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Whether unknown pods are denied.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn strict(&mut self, on: bool) {
        self.datapath.set(setting::STRICT, on.into()).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Whether the connect hooks judge.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn connect_hooks(&mut self, on: bool) {
        self.datapath.set(setting::CONNECT_HOOKS, on.into()).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Puts rules in force for a pod.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn govern(&mut self, pod: &Pod, rules: &Rules) {
        let fresh = u32::try_from(self.slots.len()).expect("a test has few pods") + 1;
        let slot = *self.slots.entry(pod.id).or_insert(fresh);
        let set = self.next_set;
        self.next_set += 1;
        let mut bits = flags::GOVERNED;
        if rules.default_deny {
            bits |= flags::DEFAULT_DENY;
        }
        if rules.audit_default_deny {
            bits |= flags::AUDIT_DEFAULT_DENY;
        }
        for (net, entries) in &rules.entries {
            let mut entries = entries.clone();
            entries.sort_by_key(|entry| entry.low);
            let length = u32::try_from(entries.len()).expect("a test has few rules");
            let span = Span { offset: self.next_entry, length };
            self.next_entry += length;
            self.maps.write_rules(span.offset, &entries).unwrap_or_else(|error| panic!("{error}"));
            let address = AddressKey { set, address: mapped(net.network()) };
            if net.prefix_len() == net.max_prefix_len() {
                bits |= flags::HAS_EXACT;
                self.maps.write_exact(address, span).unwrap_or_else(|error| panic!("{error}"));
            } else {
                bits |= flags::HAS_PREFIXES;
                let room = 128 - u32::from(net.max_prefix_len());
                let length = 32 + room + u32::from(net.prefix_len());
                self.maps.write_prefix(length, address, span).unwrap_or_else(|error| panic!("{error}"));
            }
        }
        self.revision += 1;
        let (mut address_v4, mut address_v6) = (0, [0; 4]);
        for address in &pod.addresses {
            match address {
                IpAddr::V4(v4) => address_v4 = u32::from_ne_bytes(v4.octets()),
                IpAddr::V6(v6) => address_v6 = words(v6.octets()),
            }
        }
        let endpoint = Endpoint {
            revision: self.revision,
            slot,
            set,
            flags: bits,
            default_rule: DEFAULT_RULE,
            audit_default_rule: AUDIT_DEFAULT_RULE,
            address_v4,
            address_v6,
        };
        // The record in force has the other parity, or is the same slot's from before two changes of other pods: skip one.
        let current = self.current(slot);
        let endpoint = if current & 1 == endpoint.revision & 1 && current != 0 {
            self.revision += 1;
            Endpoint { revision: self.revision, ..endpoint }
        } else {
            endpoint
        };
        self.maps.write_endpoint(&endpoint).unwrap_or_else(|error| panic!("{error}"));
        self.maps.flip(slot, endpoint.revision).unwrap_or_else(|error| panic!("{error}"));
        self.maps.bind(pod.id, slot).unwrap_or_else(|error| panic!("{error}"));
    }

    fn current(&self, slot: u32) -> u64 {
        let contents = self.maps.contents().unwrap_or_else(|error| panic!("{error}"));
        contents.revisions.get(&slot).copied().unwrap_or(0)
    }

    /// Makes a pod known as one no policy governs.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn leave(&mut self, pod: &Pod) {
        self.maps.bind(pod.id, UNGOVERNED).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Makes a pod known as one whose policy is not, and which passes until it is.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn unprotected(&mut self, pod: &Pod) {
        self.maps.bind(pod.id, UNPROTECTED).unwrap_or_else(|error| panic!("{error}"));
    }

    /// The counter of a pod (or of unknown pods) for a verdict and reason.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    #[must_use]
    pub fn counter(&self, pod: Option<&Pod>, verdict: Verdict, reason: Reason) -> Counter {
        let slot = pod.map_or(0, |pod| self.slots.get(&pod.id).copied().unwrap_or(0));
        let counters = self.maps.counters(slot).unwrap_or_else(|error| panic!("{error}"));
        counters[class(verdict, reason) as usize]
    }

    /// Packets of a pod that were denied for a reason.
    #[must_use]
    pub fn denied(&self, pod: &Pod, reason: Reason) -> u64 {
        self.counter(Some(pod), Verdict::Deny, reason).packets
    }

    /// Packets of a pod that passed for a reason.
    #[must_use]
    pub fn allowed(&self, pod: &Pod, reason: Reason) -> u64 {
        self.counter(Some(pod), Verdict::Allow, reason).packets
    }
}

/// The wall clock, in seconds since the epoch.
#[must_use]
pub fn now() -> u64 {
    clock::wall_seconds_and_fraction().0
}

fn mapped(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(v4) => words(v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => words(v6.octets()),
    }
}
