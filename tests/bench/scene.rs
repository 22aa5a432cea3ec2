//! Clusters and policies to measure with, and packets that meet them.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, MapData, RingBuf};
use egress_agent::{
    kernel::{
        engine::Engine,
        loader::{Capacities, Options},
        maps::Maps,
        object,
    },
    policy::{
        cluster::{
            Addresses, Cluster, EndpointPort, EndpointSlice, Local, NsName, Pod, Service, ServicePort,
            Settings,
        },
        compile,
        diff::Wanted,
        model::{
            DefaultAction, Effect, Governance, LabelSelector, Mode, Peer, Policy, PolicyId, PolicyKind,
            PortMatch, PortSpec, Ports, Protocol, Rule,
        },
    },
};
use egress_common::{
    event::Bucket,
    maps::name,
    policy::{TCP, UDP},
    verdict::{Reason, Verdict, class},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::room::{PodRoom, Room};

/// The namespace everything lives in.
pub const NAMESPACE: &str = "bench";
/// The address of the pod under test.
pub const POD_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 5);
/// Its other address.
pub const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 5);
/// What every policy here denies by name.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Numbers that look random and are the same in every run (splitmix64).
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// Starts a sequence.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// One of `low..=high`.
    pub fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }
}

/// A destination of a policy: one prefix, one TCP port.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    /// Where.
    pub net: IpNet,
    /// Which port.
    pub port: u16,
}

/// How the prefixes of a policy are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// IPv4, lengths /16 to /32 alike.
    V4,
    /// IPv4, nine of ten a /32.
    V4Hosts,
    /// IPv6, lengths /32 to /64 alike.
    V6,
}

fn unicast_v4(numbers: &mut Numbers) -> Ipv4Addr {
    loop {
        let address = Ipv4Addr::from(u32::try_from(numbers.next() >> 32).expect("32 bits are left"));
        let first = address.octets()[0];
        if (1..224).contains(&first) && first != 127 && first != 10 {
            return address;
        }
    }
}

fn unicast_v6(numbers: &mut Numbers) -> Ipv6Addr {
    let high = (numbers.next() >> 3) | (1 << 61);
    Ipv6Addr::from((u128::from(high) << 64) | u128::from(numbers.next()))
}

/// Returns `count` distinct destinations, uniformly over the unicast addresses.
///
/// # Panics
///
/// Never: the lengths are legal.
#[must_use]
pub fn destinations(shape: Shape, count: usize) -> Vec<Destination> {
    let mut numbers = Numbers::new(count as u64);
    let mut seen = HashSet::new();
    let mut destinations = Vec::new();
    while destinations.len() < count {
        let mut length = |low, high| u8::try_from(numbers.within(low, high)).expect("a prefix length");
        let bits = match shape {
            Shape::V4 => length(16, 32),
            Shape::V4Hosts if length(0, 9) > 0 => 32,
            Shape::V4Hosts => length(16, 31),
            Shape::V6 => length(32, 64),
        };
        let net = if shape == Shape::V6 {
            IpNet::from(Ipv6Net::new_assert(unicast_v6(&mut numbers), bits)).trunc()
        } else {
            IpNet::from(Ipv4Net::new_assert(unicast_v4(&mut numbers), bits)).trunc()
        };
        let port = u16::try_from(numbers.within(1, 65_535)).expect("a port");
        if seen.insert(net) {
            destinations.push(Destination { net, port });
        }
    }
    destinations
}

/// An address inside a prefix.
fn inside(net: IpNet, numbers: &mut Numbers) -> IpAddr {
    match net {
        IpNet::V4(net) => {
            let host = u32::try_from(numbers.next() >> 32).expect("32 bits are left");
            Ipv4Addr::from(u32::from(net.network()) | (host & u32::from(net.hostmask()))).into()
        }
        IpNet::V6(net) => {
            let host = (u128::from(numbers.next()) << 64) | u128::from(numbers.next());
            Ipv6Addr::from(u128::from(net.network()) | (host & u128::from(net.hostmask()))).into()
        }
    }
}

/// Returns packets that each meet a destination, from all over the policy.
///
/// # Panics
///
/// Without destinations.
#[must_use]
pub fn hits(destinations: &[Destination], count: usize, protocol: u8) -> Vec<Vec<u8>> {
    let mut numbers = Numbers::new(7);
    let last = destinations.len() as u64 - 1;
    (0..count)
        .map(|_| {
            let index = usize::try_from(numbers.within(0, last)).expect("an index");
            let destination = &destinations[index];
            packet(protocol, inside(destination.net, &mut numbers), destination.port)
        })
        .collect()
}

/// Returns packets that meet none.
#[must_use]
pub fn misses(destinations: &[Destination], shape: Shape, count: usize) -> Vec<Vec<u8>> {
    let mut numbers = Numbers::new(11);
    let mut packets = Vec::new();
    while packets.len() < count {
        let address: IpAddr = match shape {
            Shape::V6 => unicast_v6(&mut numbers).into(),
            Shape::V4 | Shape::V4Hosts => unicast_v4(&mut numbers).into(),
        };
        if !destinations.iter().any(|destination| destination.net.contains(&address)) {
            packets.push(packet(TCP, address, 443));
        }
    }
    packets
}

/// Builds a packet from the pod under test, Ethernet header first.
///
/// # Panics
///
/// Never: lengths are small.
#[must_use]
pub fn packet(protocol: u8, destination: IpAddr, port: u16) -> Vec<u8> {
    packet_between(
        protocol,
        match destination {
            IpAddr::V4(_) => POD_V4.into(),
            IpAddr::V6(_) => POD_V6.into(),
        },
        40_000,
        destination,
        port,
    )
}

/// Builds a packet, Ethernet header first.
///
/// # Panics
///
/// When one address is IPv4 and the other IPv6.
#[must_use]
pub fn packet_between(
    protocol: u8,
    source: IpAddr,
    source_port: u16,
    destination: IpAddr,
    port: u16,
) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(source_port.to_be_bytes());
    body.extend(port.to_be_bytes());
    if protocol == UDP {
        body.extend([0, 8, 0, 0]);
    } else {
        // Sequence and acknowledgement numbers, five words of header, ACK, window.
        body.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 3, 0xe8, 0, 0, 0, 0]);
    }
    let mut bytes = vec![0; 12];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend([8, 0, 0x45, 0]);
            bytes.extend(u16::try_from(20 + body.len()).expect("it is short").to_be_bytes());
            bytes.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend(u16::try_from(body.len()).expect("it is short").to_be_bytes());
            bytes.extend([protocol, 64]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
        }
        _ => panic!("both addresses are of one family"),
    }
    bytes.extend(body);
    bytes
}

/// The name of the pod with this number; number 0 is the one under test.
#[must_use]
pub fn pod_name(number: usize) -> NsName {
    NsName::new(NAMESPACE, format!("pod-{number}"))
}

fn rule(name: String, effect: Effect, net: IpNet, ports: Ports, expires: Option<u64>) -> Rule {
    let peers = vec![Peer::Cidrs { cidrs: vec![net], except: Vec::new() }];
    Rule { name, effect, peers, ports, expires, governance: Governance::default() }
}

/// Returns a policy for the pods labelled `app: <app>`: denies by default, allows these destinations and cluster DNS, denies the
/// metadata address by name.
#[must_use]
pub fn policy(app: &str, destinations: &[Destination], expires: Option<u64>) -> Policy {
    let mut rules: Vec<Rule> = destinations
        .iter()
        .enumerate()
        .map(|(index, destination)| {
            let port = PortMatch::Range(destination.port, destination.port);
            let ports = Ports::List(vec![PortSpec { protocol: Protocol::Tcp, port }]);
            rule(format!("d{index}"), Effect::Allow, destination.net, ports, expires)
        })
        .collect();
    rules.push(rule("imds".to_owned(), Effect::Deny, IpAddr::V4(METADATA).into(), Ports::All, None));
    Policy {
        id: PolicyId { kind: PolicyKind::ConfigMap, id: NsName::new(NAMESPACE, app) },
        mode: Mode::Enforce,
        default_action: DefaultAction::Deny,
        selector: LabelSelector {
            match_labels: vec![("app".to_owned(), app.to_owned())],
            match_expressions: Vec::new(),
        },
        cluster_dns: true,
        own_node: false,
        rules,
    }
}

/// Returns a cluster with this many pods on the node, cluster DNS, and one policy for each app: pod `n` belongs to the app
/// `n` modulo the number of policies. Without policies no pod is governed.
///
/// # Panics
///
/// With more than 65 000 pods.
#[must_use]
pub fn cluster(pods: usize, policies: Vec<Policy>) -> Cluster {
    let mut cluster = Cluster::default();
    let apps: Vec<String> = policies.iter().map(|policy| policy.id.id.name.clone()).collect();
    for number in 0..pods {
        let low = u16::try_from(number + 5).expect("so many pods fit an IPv4 subnet");
        let v4 = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 0, 0)) + u32::from(low));
        let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, low);
        let mut pod = Pod {
            ips: Addresses { v4: Some(v4), v6: Some(v6) },
            local: Some(Box::new(Local {
                uid: uid(number),
                node: "node".to_owned(),
                workload: format!("pod-{number}"),
                ..Local::default()
            })),
            ..Pod::default()
        };
        if !apps.is_empty() {
            pod.labels = [("app".to_owned(), apps[number % apps.len()].clone())].into();
        }
        cluster.pods.insert(pod_name(number), pod);
    }
    let dns = NsName::new("kube-system", "kube-dns");
    let protocols = [("dns", Protocol::Udp), ("dns-tcp", Protocol::Tcp)];
    cluster.services.insert(
        dns.clone(),
        Service {
            cluster_ips: vec![Ipv4Addr::new(10, 96, 0, 10).into()],
            ports: protocols
                .map(|(name, protocol)| ServicePort { name: name.to_owned(), protocol, port: 53 })
                .to_vec(),
            external_name: None,
        },
    );
    cluster.slices.insert(
        dns.clone(),
        EndpointSlice {
            service: dns.name,
            ports: protocols
                .map(|(name, protocol)| EndpointPort { name: name.to_owned(), protocol, port: Some(53) })
                .to_vec(),
            addresses: vec![Ipv4Addr::new(10, 244, 200, 2).into(), Ipv4Addr::new(10, 244, 201, 2).into()],
        },
    );
    cluster.policies = policies.into_iter().map(|policy| (policy.id.clone(), Arc::new(policy))).collect();
    cluster
}

/// The UID of the pod with this number.
#[must_use]
pub fn uid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// Map sizes that hold 100 000 rules, each with a counter of its own.
#[must_use]
pub fn large() -> Capacities {
    Capacities {
        exact: 262_144,
        prefixes: 262_144,
        rules: 1_048_576,
        rule_slots: 131_072,
        ..Capacities::default()
    }
}

/// The loaded datapath, with policies compiled and applied as the agent does it.
pub struct Scene {
    /// What the agent uses.
    pub engine: Engine,
    cgroup: u64,
    buckets: Array<MapData, Bucket>,
    ring: RingBuf<MapData>,
}

impl Scene {
    /// Loads the object; the pod under test is the one in `pod`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or there is no object in this binary.
    pub fn load(room: &Room, pod: &PodRoom, keep_verdicts: bool, capacities: Capacities) -> Result<Self> {
        let object = object::embedded().context("built without the BPF object: run `cargo xtask bench`")?;
        let options = Options { level: room.kubepods.level, pins: None, capacities, keep_verdicts };
        let mut engine = Engine::new(object, &options, true, true)?;
        let datapath = engine.datapath_mut();
        let buckets = Array::try_from(datapath.take_map(name::BUCKETS)?)?;
        let ring = Maps::events(datapath)?;
        Ok(Self { engine, cgroup: pod.id, buckets, ring })
    }

    /// Compiles what the cluster says and brings the kernel to it. Pods other than the first get cgroup ids nobody has.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or a policy does not fit.
    pub fn put(&mut self, cluster: &Cluster) -> Result<()> {
        let wanted = wanted(cluster, self.cgroup);
        let applied = self.engine.apply(&wanted, &BTreeSet::new(), || {})?;
        ensure!(applied.refused.is_empty(), "a policy does not fit: {:?}", applied.refused);
        Ok(())
    }

    /// Forgets every pod.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn clear(&mut self) -> Result<()> {
        self.engine.apply(&BTreeMap::new(), &BTreeSet::new(), || {})?;
        Ok(())
    }

    /// Packets of the pod counted under a verdict and reason; those of unknown pods if it has no slot.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn counted(&self, verdict: Verdict, reason: Reason) -> Result<u64> {
        let counters = match self.engine.pod_counters(self.cgroup)? {
            Some(counters) => counters,
            None => self.engine.maps().counters(0)?,
        };
        Ok(counters[class(verdict, reason) as usize].packets)
    }

    /// Gives the pod its allowance of events back, and takes what stands in the ring.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn permit_events(buckets: &mut Array<MapData, Bucket>, ring: &mut RingBuf<MapData>) -> Result<()> {
        // The pod under test has the lowest slot.
        buckets.set(1, Bucket::default(), 0)?;
        while ring.next().is_some() {}
        Ok(())
    }

    /// The parts that are needed apart from each other.
    pub fn parts(&mut self) -> (&Engine, &mut Array<MapData, Bucket>, &mut RingBuf<MapData>) {
        (&self.engine, &mut self.buckets, &mut self.ring)
    }
}

/// Returns what is wanted for each pod of a cluster, all of which are on this node.
#[must_use]
pub fn wanted(cluster: &Cluster, cgroup: u64) -> BTreeMap<u64, Wanted> {
    let compiled = compile::compile_all(cluster, &Settings::default(), cluster.pods.keys());
    let first = pod_name(0);
    (0..)
        .zip(compiled)
        .map(|(number, (pod, compiled))| {
            let id = if pod == first { cgroup } else { (1 << 40) + number };
            let wanted = Wanted::new(pod, &compiled);
            (id, wanted)
        })
        .collect()
}
