//! From what a rule says about peers to addresses, each with the ports that hold at it.

use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    rc::Rc,
};

use ipnet::IpNet;

use super::{
    fold::{self, Grants, Key, Origin, host},
    ports::{self, Range},
};
use crate::policy::{
    cluster::{Cluster, EndpointSlice, Labels, NsName, Pod, Settings},
    model::{Entity, LabelSelector, Peer, PolicyKind, PortMatch, Ports, Unresolved},
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

/// A ClusterIP port of one address family, with what stands behind it.
struct Front {
    cluster_ips: Vec<IpAddr>,
    range: Range,
    /// Endpoint addresses and ports there, sorted and distinct; at least one.
    pairs: Vec<(IpAddr, Range)>,
}

/// All ClusterIP ports that have something behind them.
struct Fronts {
    fronts: Vec<Front>,
    /// Every endpoint of every front: its address in the 128-bit space, its ports, its front. Sorted.
    endpoints: Vec<(u128, Range, usize)>,
}

impl Fronts {
    /// Returns the endpoints with an address from `first` to `last`.
    fn between(&self, first: u128, last: u128) -> &[(u128, Range, usize)] {
        let from = self.endpoints.partition_point(|(address, _, _)| *address < first);
        let count = self.endpoints[from..].partition_point(|(address, _, _)| *address <= last);
        &self.endpoints[from..from + count]
    }
}

/// What chooses pods: the selectors and the side they are asked from.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Choice {
    namespaces: Option<LabelSelector>,
    pods: Option<LabelSelector>,
    /// The policy's namespace, where it matters.
    namespace: String,
    /// Whether hostNetwork pods count.
    host_network: bool,
}

/// The pods that were chosen.
struct Chosen<'a> {
    pods: Vec<&'a Pod>,
    /// Their addresses, sorted and distinct.
    addresses: Vec<IpAddr>,
    /// Fronts all of whose endpoints are at these addresses.
    whole: Vec<usize>,
}

/// Work steps for looking at one pod, or at one endpoint.
const LOOK_STEPS: u64 = 30;

/// How many addresses of chosen pods are remembered, so that many selectors do not fill the memory.
const REMEMBERED: usize = 1 << 20;

/// The cluster with the lookups that resolving peers needs, each made once and only if asked for.
pub(super) struct Directory<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    slices: OnceCell<HashMap<NsName, Vec<&'a EndpointSlice>>>,
    fronts: OnceCell<Fronts>,
    inside: OnceCell<Vec<IpNet>>,
    /// With the number of addresses in it.
    chosen: RefCell<(ChosenBefore<'a>, usize)>,
}

/// What each choice has led to.
type ChosenBefore<'a> = HashMap<Rc<Choice>, Rc<Chosen<'a>>>;

/// Ports by address, before they are normalized.
type Places = BTreeMap<IpAddr, Vec<Range>>;

impl<'a> Directory<'a> {
    pub(super) fn new(cluster: &'a Cluster, settings: &'a Settings) -> Self {
        Self {
            cluster,
            settings,
            slices: OnceCell::new(),
            fronts: OnceCell::new(),
            inside: OnceCell::new(),
            chosen: RefCell::default(),
        }
    }

    pub(super) fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    pub(super) fn settings(&self) -> &'a Settings {
        self.settings
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
                grants.add_at(origin, &ranges, Key::Everywhere, |_| (everywhere().into(), Vec::new()));
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
                let choice = Choice {
                    namespaces: namespaces.clone(),
                    pods: pods.clone(),
                    namespace: if namespaces.is_none() { asker.namespace.to_owned() } else { String::new() },
                    host_network: asker.kind != PolicyKind::NetworkPolicy,
                };
                self.pods(grants, origin, Rc::new(choice), ports);
            }
            Peer::Service(name) => why.extend(self.service(&mut places, name, ports)),
            Peer::Entity(Entity::KubeApiserver) => {
                why.extend(self.service(&mut places, &NsName::new("default", "kubernetes"), ports));
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
            Peer::Entity(Entity::World) => {
                let ranges = ports::numeric(ports);
                grants.add_at(origin, &ranges, Key::World, |_| (everywhere().into(), self.inside().to_vec()));
                self.close(grants, origin, &ranges, &everywhere(), self.inside());
            }
            Peer::Unresolved(unresolved) => why.push(Why::NotLookedUp(unresolved.clone())),
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
        fronts: &mut BTreeSet<usize>,
        ranges: &[Range],
        net: IpNet,
        except: &[IpNet],
    ) {
        let (first, last) = fold::span(net);
        let endpoints = self.fronts().between(first, last);
        if !grants.spend(LOOK_STEPS * (1 + endpoints.len() as u64)) {
            return;
        }
        for (address, target, front) in endpoints {
            let address = fold::address(*address);
            // IPv4's room lies inside the wide prefixes of IPv6.
            if address.is_ipv4() == net.addr().is_ipv4()
                && ports::touches(ranges, *target)
                && !within(except, address)
            {
                fronts.insert(*front);
            }
        }
    }

    /// Adds grants for the ports of `fronts`.
    fn add_fronts(&self, grants: &mut Grants, origin: Origin, fronts: &BTreeSet<usize>) {
        let mut places = Places::new();
        for front in fronts {
            let front = &self.fronts().fronts[*front];
            for address in &front.cluster_ips {
                open(&mut places, *address, &[front.range]);
            }
        }
        add_places(grants, origin, places);
    }

    fn slices(&self, service: &NsName) -> &[&'a EndpointSlice] {
        let slices = self.slices.get_or_init(|| {
            let mut slices: HashMap<NsName, Vec<&EndpointSlice>> = HashMap::new();
            for (name, slice) in &self.cluster.slices {
                let service = NsName::new(name.namespace.as_str(), slice.service.as_str());
                slices.entry(service).or_default().push(slice);
            }
            slices
        });
        slices.get(service).map_or(&[], Vec::as_slice)
    }

    fn fronts(&self) -> &Fronts {
        self.fronts.get_or_init(|| {
            let mut fronts = Vec::new();
            for (name, service) in &self.cluster.services {
                if service.cluster_ips.is_empty() {
                    continue;
                }
                for port in &service.ports {
                    let mut pairs: Vec<(IpAddr, Range)> = Vec::new();
                    for slice in self.slices(name) {
                        for behind in ports::behind(port, slice) {
                            let target = ports::target(port.protocol, behind.port);
                            pairs.extend(slice.addresses.iter().map(|ip| (ip.to_canonical(), target)));
                        }
                    }
                    pairs.sort_unstable();
                    pairs.dedup();
                    let (v4, v6): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(ip, _)| ip.is_ipv4());
                    for (is_v4, pairs) in [(true, v4), (false, v6)] {
                        let ips = service.cluster_ips.iter().map(|ip| ip.to_canonical());
                        let cluster_ips: Vec<IpAddr> = ips.filter(|ip| ip.is_ipv4() == is_v4).collect();
                        if !cluster_ips.is_empty() && !pairs.is_empty() {
                            let range = ports::single(port.protocol, port.port);
                            fronts.push(Front { cluster_ips, range, pairs });
                        }
                    }
                }
            }
            let mut endpoints: Vec<(u128, Range, usize)> = (0..)
                .zip(&fronts)
                .flat_map(|(number, front)| {
                    front.pairs.iter().map(move |(ip, range)| (fold::span(host(*ip)).0, *range, number))
                })
                .collect();
            endpoints.sort_unstable();
            Fronts { fronts, endpoints }
        })
    }

    /// Adds what a rule says about pods, and about ClusterIP ports by what stands behind them. To allow one, every endpoint must
    /// be allowed.
    fn pods(&self, grants: &mut Grants, origin: Origin, choice: Rc<Choice>, ports: &Ports) {
        let chosen = self.chosen(&choice);
        let numeric = ports::numeric(ports);
        let mut named = Places::new();
        if let Ports::List(specs) = ports
            && let names = specs.iter().filter(|spec| matches!(spec.port, PortMatch::Name(_))).count()
            && names > 0
        {
            let looks: usize = chosen.pods.iter().map(|pod| 1 + names * pod.ports.len()).sum();
            if !grants.spend(LOOK_STEPS * looks as u64) {
                return;
            }
            for pod in &chosen.pods {
                let mut ranges = Vec::new();
                ports::named_at_pod(ports, pod, &mut ranges);
                pod.ips.iter().for_each(|address| open(&mut named, *address, &ranges));
            }
        }
        // Choosing counts for every set, whether it was remembered from another or not.
        let looks = self.cluster.pods.len() + chosen.addresses.len();
        let mut first = false;
        grants.add_at(origin, &numeric, Key::Chosen(choice), |_| {
            first = true;
            (chosen.addresses.iter().map(|address| host(*address)).collect(), Vec::new())
        });
        if !grants.spend(if first || numeric.is_empty() { LOOK_STEPS * looks as u64 } else { 0 }) {
            return;
        }
        let named = add_places(grants, origin, named);
        let mut fronts = BTreeSet::new();
        if origin.denies() {
            for address in &chosen.addresses {
                let ranges = named.get(address).map_or(&[][..], Vec::as_slice);
                for ranges in [&numeric, ranges] {
                    if !ranges.is_empty() {
                        self.touch(grants, &mut fronts, ranges, host(*address), &[]);
                    }
                }
            }
        } else {
            let all = &self.fronts().fronts;
            let pairs: usize = chosen.whole.iter().map(|front| all[*front].pairs.len()).sum();
            if !grants.spend(LOOK_STEPS * pairs as u64) {
                return;
            }
            let allows = |(address, target): &(IpAddr, Range)| {
                ports::covers(&numeric, *target)
                    || named.get(address).is_some_and(|named| {
                        ports::covers(&ports::normalize([named.as_slice(), &numeric].concat()), *target)
                    })
            };
            fronts.extend(chosen.whole.iter().filter(|front| all[**front].pairs.iter().all(allows)));
        }
        self.add_fronts(grants, origin, &fronts);
    }

    /// Returns the pods of a choice, from memory if possible.
    fn chosen(&self, choice: &Rc<Choice>) -> Rc<Chosen<'a>> {
        if let Some(chosen) = self.chosen.borrow().0.get(choice) {
            return Rc::clone(chosen);
        }
        let pods = self.choose(choice);
        let mut addresses: Vec<IpAddr> =
            pods.iter().flat_map(|pod| &pod.ips).map(IpAddr::to_canonical).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let fronts = self.fronts();
        let mut here: BTreeMap<usize, usize> = BTreeMap::new();
        for address in &addresses {
            let (first, last) = fold::span(host(*address));
            for (_, _, front) in fronts.between(first, last) {
                *here.entry(*front).or_default() += 1;
            }
        }
        let whole = here.into_iter().filter(|(front, count)| fronts.fronts[*front].pairs.len() == *count);
        let whole = whole.map(|(front, _)| front).collect();
        let chosen = Rc::new(Chosen { pods, addresses, whole });
        let (memory, size) = &mut *self.chosen.borrow_mut();
        *size += chosen.addresses.len();
        if *size > REMEMBERED {
            memory.clear();
            *size = chosen.addresses.len();
        }
        memory.insert(Rc::clone(choice), Rc::clone(&chosen));
        chosen
    }

    fn choose(&self, choice: &Choice) -> Vec<&'a Pod> {
        let counts = |pod: &Pod| {
            !pod.finished
                && (choice.host_network || !pod.host_network)
                && choice.pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
        };
        let Some(selector) = &choice.namespaces else {
            let first = NsName::new(choice.namespace.as_str(), "");
            let pods = self.cluster.pods.range(first..);
            let own = pods.take_while(|(name, _)| name.namespace == choice.namespace);
            return own.map(|(_, pod)| pod).filter(|pod| counts(pod)).collect();
        };
        let mut chosen: HashMap<&str, bool> = HashMap::new();
        let of_namespaces = self.cluster.pods.iter().filter(|(name, _)| {
            *chosen
                .entry(&name.namespace)
                .or_insert_with(|| selector.matches(&self.namespace_labels(&name.namespace)))
        });
        of_namespaces.map(|(_, pod)| pod).filter(|pod| counts(pod)).collect()
    }

    fn namespace_labels(&self, namespace: &str) -> Labels {
        let mut labels = self.cluster.namespaces.get(namespace).cloned().unwrap_or_else(Labels::new);
        labels.entry("kubernetes.io/metadata.name".to_owned()).or_insert_with(|| namespace.to_owned());
        labels
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
        for slice in self.slices(name) {
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
            let cluster = self.cluster;
            let nodes = cluster.nodes.values();
            let pods = cluster.pods.values().filter(|pod| !pod.finished);
            let addresses = nodes
                .clone()
                .flat_map(|node| &node.addresses)
                .chain(cluster.services.values().flat_map(|service| &service.cluster_ips))
                .chain(pods.flat_map(|pod| &pod.ips));
            let nets = addresses
                .map(|address| host(*address))
                .chain(nodes.flat_map(|node| &node.pod_cidrs).copied())
                .chain(self.settings.cluster_cidrs.iter().copied())
                .chain(never_world());
            outermost(nets)
        })
    }
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
fn outermost(nets: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
    let nets: BTreeSet<IpNet> = nets.map(|net| net.trunc()).collect();
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
fn within(nets: &[IpNet], address: IpAddr) -> bool {
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

/// Blocks that are never outside the cluster: unspecified, loopback, link-local, multicast, broadcast, and the IPv6 address of
/// the cloud's metadata service (its IPv4 one is link-local).
fn never_world() -> [IpNet; 10] {
    [
        v4(0, 0, 0, 0, 8),
        v4(127, 0, 0, 0, 8),
        v4(169, 254, 0, 0, 16),
        v4(224, 0, 0, 0, 4),
        v4(255, 255, 255, 255, 32),
        v6(Ipv6Addr::UNSPECIFIED, 128),
        v6(Ipv6Addr::LOCALHOST, 128),
        v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
        v6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
        v6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128),
    ]
}
