//! From what a rule says about peers to addresses, each with the ports that hold at it.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    fold::{Grants, Key, Origin, host},
    memory::{Choice, Chosen, Fronts, Memory, World},
    ports::{self, Range},
};
use crate::policy::{
    addresses::METADATA,
    cluster::{Cluster, EndpointSlice, NsName, Settings},
    model::{Entity, Peer, PolicyKind, PortMatch, Ports, Unresolved},
};

/// Why a peer of a rule matches nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// The Service it names does not exist.
    NoService(NsName),
    /// The Service it names only stands for a name outside the cluster.
    ExternalName(NsName, String),
    /// The node the pod runs on is not known.
    NoNode(String),
    /// Its addresses have to be looked up outside the cluster, and nobody has.
    NotLookedUp(Unresolved),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoService(service) => write!(f, "Service {service} does not exist"),
            Self::ExternalName(service, name) => {
                write!(f, "Service {service} is of type ExternalName (for {name}) and has no addresses")
            }
            Self::NoNode(node) => write!(f, "node {node:?} is not known"),
            Self::NotLookedUp(Unresolved::AwsService { service, .. }) => {
                write!(f, "the addresses of AWS service {service} are not known yet")
            }
            Self::NotLookedUp(Unresolved::Cloud { provider, .. }) => {
                write!(f, "the address ranges of {provider} are not known yet")
            }
            Self::NotLookedUp(Unresolved::Domains(domains)) => {
                write!(f, "no addresses are known for {}", domains.join(", "))
            }
        }
    }
}

/// The pod's side of a question about peers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker<'a> {
    /// The policy's namespace, which is the pod's.
    pub(super) namespace: &'a str,
    /// The node the pod runs on.
    pub(super) node: &'a str,
    /// The kind of the policy that asks.
    pub(super) kind: PolicyKind,
}

/// Work steps for looking at one pod, or at one endpoint.
const LOOK_STEPS: u64 = 30;

/// The cluster with the lookups that resolving peers needs, each made once and only if asked for.
pub(super) struct Directory<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    memory: &'a Memory,
    slices: OnceCell<Slices<'a>>,
    inside: OnceCell<Vec<IpNet>>,
}

/// EndpointSlices by the namespace and name of their Service.
type Slices<'a> = HashMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>;

/// Ports by address, before they are normalized.
type Places = BTreeMap<IpAddr, Vec<Range>>;

impl<'a> Directory<'a> {
    pub(super) fn new(cluster: &'a Cluster, settings: &'a Settings, memory: &'a Memory) -> Self {
        Self { cluster, settings, memory, slices: OnceCell::new(), inside: OnceCell::new() }
    }

    /// Adds the grants of one peer of a rule. Returns why it matches less than it says, if so.
    ///
    /// Where a denied peer is behind a port of a ClusterIP, that port is denied with it: a single denied endpoint is enough,
    /// since nobody knows which one the packet will reach.
    pub(super) fn resolve(
        &self,
        grants: &mut Grants,
        origin: Origin,
        asker: Asker<'_>,
        peer: &Peer,
        ports: &Ports,
    ) -> Vec<Why> {
        let mut why = Vec::new();
        if grants.given_up() {
            return why;
        }
        let mut places = Places::new();
        match peer {
            Peer::Any => {
                let ranges = ports::numeric(ports);
                grants.add_at(origin, &ranges, Key::Everywhere, |_, marks| marks.begin(everywhere()));
                self.close(grants, origin, &ranges, &everywhere(), &[]);
            }
            Peer::Cidrs { cidrs, except } => {
                let ranges = ports::numeric(ports);
                grants.add(origin, &ranges, cidrs.clone(), except.clone());
                if origin.denies() {
                    self.close(grants, origin, &ranges, cidrs, &outermost(except.iter().copied()));
                }
            }
            Peer::Pods { namespaces, pods } => {
                let choice = self.memory.choice(Choice::new(namespaces, pods, asker.namespace, asker.kind));
                self.pods(grants, origin, choice, ports);
            }
            Peer::Service(name) => why.extend(self.service(&mut places, name, ports)),
            Peer::Entity(Entity::KubeApiserver) => {
                why.extend(self.service(&mut places, &apiserver(), ports));
            }
            Peer::Entity(Entity::ClusterDns) => {
                for name in &self.settings.cluster_dns {
                    why.extend(self.service(&mut places, name, ports));
                }
                for address in &self.settings.cluster_dns_addresses {
                    open(&mut places, *address, &ports::numeric(ports));
                }
            }
            Peer::Entity(Entity::Node) => match self.cluster.nodes.get(asker.node) {
                Some(node) => {
                    for address in &node.addresses {
                        open(&mut places, *address, &ports::numeric(ports));
                    }
                }
                None => why.push(Why::NoNode(asker.node.to_owned())),
            },
            Peer::Entity(Entity::World) => self.world(grants, origin, ports),
            Peer::Cloud(cloud) => {
                if let Some(ports) = cloud.ports(ports) {
                    let ranges = ports::numeric(&ports);
                    grants.add(origin, &ranges, cloud.cidrs.to_vec(), Vec::new());
                    if origin.denies() {
                        self.close(grants, origin, &ranges, &cloud.cidrs, &[]);
                    }
                }
                if !cloud.domains.is_empty() {
                    why.push(Why::NotLookedUp(Unresolved::Domains(cloud.domains.clone())));
                }
            }
            Peer::Unresolved(unresolved) => {
                // What is denied may be anywhere until its addresses are known.
                if let Some(most) = unresolved.at_most().filter(|_| origin.denies()) {
                    why.extend(self.resolve(grants, origin, asker, &most, ports));
                }
                why.push(Why::NotLookedUp(unresolved.clone()));
            }
        }
        let places = add_places(grants, origin, places);
        if origin.denies() {
            let mut denied = BTreeSet::new();
            for (address, ranges) in &places {
                self.touch(grants, &mut denied, ranges, host(*address), &[]);
            }
            self.add_fronts(grants, origin, &denied);
        }
        why
    }

    /// Adds the grants of every address outside the cluster.
    fn world(&self, grants: &mut Grants, origin: Origin, ports: &Ports) {
        let ranges = ports::numeric(ports);
        grants.add_at(origin, &ranges, Key::World, |_, marks| {
            marks.begin(everywhere());
            marks.except(self.inside().iter().copied());
        });
        self.close(grants, origin, &ranges, &everywhere(), self.inside());
    }

    /// Denies the ClusterIP ports that have an endpoint in `nets`, but not in `except` (which has no prefix inside another),
    /// at one of the ports in `ranges`. Does nothing for an origin that allows.
    fn close(&self, grants: &mut Grants, origin: Origin, ranges: &[Range], nets: &[IpNet], except: &[IpNet]) {
        if !origin.denies() {
            return;
        }
        let mut denied = BTreeSet::new();
        for net in nets {
            self.touch(grants, &mut denied, ranges, *net, except);
        }
        self.add_fronts(grants, origin, &denied);
    }

    /// Adds the fronts that have an endpoint in `net`, but not in `except`, at one of the ports in `ranges`.
    fn touch(
        &self,
        grants: &mut Grants,
        fronts: &mut BTreeSet<u32>,
        ranges: &[Range],
        net: IpNet,
        except: &[IpNet],
    ) {
        if !grants.spend(LOOK_STEPS * (1 + self.fronts().count(net) as u64)) {
            return;
        }
        for (front, address, target) in self.fronts().between(net) {
            if ports::touches(ranges, target) && !within(except, address) {
                fronts.insert(front);
            }
        }
    }

    /// Adds grants for the ports of `fronts`.
    fn add_fronts(&self, grants: &mut Grants, origin: Origin, fronts: &BTreeSet<u32>) {
        let mut places = Places::new();
        for front in fronts {
            let front = self.fronts().get(*front);
            for address in &front.cluster_ips {
                open(&mut places, *address, &[front.range]);
            }
        }
        add_places(grants, origin, places);
    }

    fn slices<'s>(&'s self, namespace: &'s str, service: &'s str) -> &'s [&'s EndpointSlice] {
        let slices: &Slices<'s> = self.slices.get_or_init(|| {
            let mut slices = Slices::new();
            for (id, slice) in &self.cluster.slices {
                slices.entry((&id.namespace, &slice.service)).or_default().push(slice);
            }
            slices
        });
        slices.get(&(namespace, service)).map_or(&[], Vec::as_slice)
    }

    fn fronts(&self) -> &Fronts {
        self.memory.fronts.get_or_init(|| {
            let with_ip = self.cluster.services.iter().filter(|(_, service)| !service.cluster_ips.is_empty());
            let ports = with_ip
                .flat_map(|(name, service)| service.ports.iter().map(move |port| (name, service, port)));
            Fronts::new(ports.flat_map(|(name, service, port)| {
                let mut pairs: Vec<(IpAddr, Range)> = Vec::new();
                for slice in self.slices(&name.namespace, &name.name) {
                    for behind in ports::behind(port, slice) {
                        let target = ports::target(port.protocol, behind.port);
                        pairs.extend(slice.addresses.iter().map(|ip| (ip.to_canonical(), target)));
                    }
                }
                pairs.sort_unstable();
                pairs.dedup();
                let v6 = pairs.split_off(pairs.partition_point(|(ip, _)| ip.is_ipv4()));
                [(true, pairs), (false, v6)].into_iter().filter_map(|(is_v4, pairs)| {
                    let ips = service.cluster_ips.iter().map(|ip| ip.to_canonical());
                    let cluster_ips: Vec<IpAddr> = ips.filter(|ip| ip.is_ipv4() == is_v4).collect();
                    let here = !cluster_ips.is_empty() && !pairs.is_empty();
                    here.then(|| (cluster_ips, ports::single(port.protocol, port.port), pairs))
                })
            }))
        })
    }

    /// Adds what a rule says about pods, and about ClusterIP ports by what stands behind them. To allow one, every endpoint must
    /// be allowed.
    fn pods(&self, grants: &mut Grants, origin: Origin, choice: Arc<Choice>, ports: &Ports) {
        let chosen = self.chosen(&choice);
        let numeric = ports::numeric(ports);
        let mut named = Named::default();
        if let Ports::List(specs) = ports
            && let names = specs.iter().filter(|spec| matches!(spec.port, PortMatch::Name(_))).count()
            && names > 0
        {
            let mut looks = 0;
            self.memory.each(self.cluster, &choice, |pod| looks += 1 + names * pod.ports.len());
            if !grants.spend(LOOK_STEPS * looks as u64) {
                return;
            }
            let mut places: Vec<(IpAddr, Range)> = Vec::new();
            let mut ranges = Vec::new();
            self.memory.each(self.cluster, &choice, |pod| {
                ranges.clear();
                ports::named_at_pod(ports, pod, &mut ranges);
                for address in pod.ips.iter() {
                    places.extend(ranges.iter().map(|range| (address, *range)));
                }
            });
            named = Named::new(places);
        }
        // Choosing counts for every set, whether it was remembered from another or not.
        let looks = self.cluster.pods.len() + chosen.addresses.distinct();
        let mut first = false;
        grants.add_at(origin, &numeric, Key::Chosen(choice), |_, marks| {
            first = true;
            marks.begin(chosen.addresses.iter().map(host));
        });
        if !grants.spend(if first || numeric.is_empty() { LOOK_STEPS * looks as u64 } else { 0 }) {
            return;
        }
        named.add(grants, origin);
        let mut fronts = BTreeSet::new();
        if origin.denies() {
            for address in chosen.addresses.iter() {
                for ranges in [&numeric[..], named.at(address)] {
                    if !ranges.is_empty() {
                        self.touch(grants, &mut fronts, ranges, host(address), &[]);
                    }
                }
            }
        } else {
            let whole = chosen.whole(self.fronts());
            let pairs: usize = whole.iter().map(|front| self.fronts().pairs(*front).len()).sum();
            if !grants.spend(LOOK_STEPS * pairs as u64) {
                return;
            }
            let allows = |(address, target): (IpAddr, Range)| {
                ports::covers(&numeric, target) || {
                    let named = named.at(address);
                    !named.is_empty() && ports::covers(&ports::normalize([named, &numeric].concat()), target)
                }
            };
            fronts.extend(whole.iter().filter(|front| self.fronts().pairs(**front).all(allows)));
        }
        self.add_fronts(grants, origin, &fronts);
    }

    /// Returns the pods of a choice, from memory if possible.
    fn chosen(&self, choice: &Arc<Choice>) -> Arc<Chosen> {
        self.memory.chosen(self.cluster, choice)
    }

    /// Opens the ClusterIPs of a Service and the addresses behind them.
    fn service(&self, places: &mut Places, name: &NsName, ports: &Ports) -> Option<Why> {
        let Some(service) = self.cluster.services.get(name) else {
            return Some(Why::NoService(name.clone()));
        };
        if let Some(external) = &service.external_name {
            return Some(Why::ExternalName(name.clone(), external.clone()));
        }
        let at_cluster_ip = ports::at_cluster_ip(ports, service);
        for address in &service.cluster_ips {
            open(places, *address, &at_cluster_ip);
        }
        for slice in self.slices(&name.namespace, &name.name) {
            let at_endpoint = ports::at_endpoint(ports, service, slice);
            for address in &slice.addresses {
                open(places, *address, &at_endpoint);
            }
        }
        None
    }

    /// Returns what [`Entity::World`] leaves out, without prefixes inside others.
    fn inside(&self) -> &[IpNet] {
        self.inside.get_or_init(|| {
            let world = self.memory.world.get_or_init(|| {
                let nodes = self.cluster.nodes.values();
                let services = self.cluster.services.values();
                let addresses = nodes
                    .clone()
                    .flat_map(|node| &node.addresses)
                    .chain(services.flat_map(|service| &service.cluster_ips));
                let nets = addresses
                    .map(|address| host(*address))
                    .chain(nodes.flat_map(|node| &node.pod_cidrs).copied())
                    .chain(self.settings.cluster_cidrs.iter().copied())
                    .chain(never_world());
                World::new(outermost(nets), self.cluster)
            });
            world.inside()
        })
    }
}

/// The ports that have a name at the pods of a choice.
#[derive(Default)]
struct Named {
    /// Each address and which of `ranges` it has, sorted.
    places: Vec<(IpAddr, usize)>,
    /// Normalized and distinct.
    ranges: Vec<Vec<Range>>,
}

impl Named {
    fn new(mut at: Vec<(IpAddr, Range)>) -> Self {
        at.sort_unstable();
        at.dedup();
        let mut named = Self::default();
        let mut numbers: HashMap<Vec<Range>, usize> = HashMap::new();
        for here in at.chunk_by(|left, right| left.0 == right.0) {
            let ranges = ports::normalize(here.iter().map(|(_, range)| *range).collect());
            let number = *numbers.entry(ranges).or_insert_with_key(|ranges| {
                named.ranges.push(ranges.clone());
                named.ranges.len() - 1
            });
            named.places.push((here[0].0, number));
        }
        named
    }

    /// Returns the ports at an address.
    fn at(&self, address: IpAddr) -> &[Range] {
        let place = self.places.binary_search_by_key(&address, |(place, _)| *place);
        place.map_or(&[], |place| &self.ranges[self.places[place].1])
    }

    /// Adds grants for them, those with the same ports together.
    fn add(&self, grants: &mut Grants, origin: Origin) {
        for (number, ranges) in self.ranges.iter().enumerate() {
            let here = self.places.iter().filter(|(_, ranges)| *ranges == number);
            grants.add(origin, ranges, here.map(|(address, _)| host(*address)).collect(), Vec::new());
        }
    }
}

/// Returns the Service in front of the API servers.
pub(super) fn apiserver() -> NsName {
    NsName::new("default", "kubernetes")
}

/// Adds grants for places, those with the same ports together. Returns them normalized.
fn add_places(grants: &mut Grants, origin: Origin, mut places: Places) -> Places {
    let mut by_ports: BTreeMap<&[Range], Vec<IpNet>> = BTreeMap::new();
    for ranges in places.values_mut() {
        *ranges = ports::normalize(std::mem::take(ranges));
    }
    for (address, ranges) in &places {
        by_ports.entry(ranges).or_default().push(host(*address));
    }
    for (ranges, addresses) in by_ports {
        grants.add(origin, ranges, addresses, Vec::new());
    }
    places
}

/// Returns `nets` sorted and without those inside others.
pub(super) fn outermost(nets: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = nets.map(|net| net.trunc()).collect();
    nets.sort_unstable();
    let mut outermost: Vec<IpNet> = Vec::new();
    // In this order a prefix comes right before those inside it.
    for net in nets {
        if !outermost.last().is_some_and(|last| last.contains(&net)) {
            outermost.push(net);
        }
    }
    outermost
}

/// Returns whether one of `nets`, as [`outermost`] made them, holds `address`.
pub(super) fn within(nets: &[IpNet], address: IpAddr) -> bool {
    let after = nets.partition_point(|net| *net <= host(address));
    after > 0 && nets[after - 1].contains(&address)
}

fn open(places: &mut Places, address: IpAddr, ranges: &[Range]) {
    if !ranges.is_empty() {
        places.entry(address.to_canonical()).or_default().extend_from_slice(ranges);
    }
}

fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> IpNet {
    IpNet::new_assert(Ipv4Addr::new(a, b, c, d).into(), length)
}

fn v6(address: Ipv6Addr, length: u8) -> IpNet {
    IpNet::new_assert(address.into(), length)
}

fn everywhere() -> [IpNet; 2] {
    [v4(0, 0, 0, 0, 0), v6(Ipv6Addr::UNSPECIFIED, 0)]
}

/// Blocks that are never outside the cluster: unspecified, loopback, link-local, multicast, broadcast, and where clouds hand out the
/// credentials of a node.
fn never_world() -> impl Iterator<Item = IpNet> {
    let blocks = [
        v4(0, 0, 0, 0, 8),
        v4(127, 0, 0, 0, 8),
        v4(169, 254, 0, 0, 16),
        v4(224, 0, 0, 0, 4),
        v4(255, 255, 255, 255, 32),
        v6(Ipv6Addr::UNSPECIFIED, 128),
        v6(Ipv6Addr::LOCALHOST, 128),
        v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
        v6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
    ];
    blocks.into_iter().chain(METADATA.map(host))
}
