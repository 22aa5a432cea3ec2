//! From what a rule says about peers to addresses, each with the ports that hold at it.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{
    fold::{Grants, Origin, host},
    ports::{self, Range},
};
use crate::policy::{
    cluster::{Cluster, EndpointSlice, Labels, NsName, Pod, Service, Settings},
    model::{Entity, LabelSelector, Peer, PolicyKind, Ports, Protocol, Unresolved},
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

/// A Service port and the address pairs behind it.
struct Behind {
    protocol: Protocol,
    port: u16,
    /// Endpoint address and port there; without a port, every one.
    pairs: Vec<(IpAddr, Option<u16>)>,
}

/// A Service that has ClusterIPs, with what stands behind each port.
struct Front<'a> {
    cluster_ips: &'a [IpAddr],
    ports: Vec<Behind>,
}

/// The cluster with the lookups that resolving peers needs, each made once and only if asked for.
pub(super) struct Directory<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    slices: OnceCell<HashMap<NsName, Vec<&'a EndpointSlice>>>,
    fronts: OnceCell<Vec<Front<'a>>>,
    inside: OnceCell<Vec<IpNet>>,
}

/// Ports by address, before they are normalized.
type Places = BTreeMap<IpAddr, Vec<Range>>;

impl<'a> Directory<'a> {
    pub(super) fn new(cluster: &'a Cluster, settings: &'a Settings) -> Self {
        Self { cluster, settings, slices: OnceCell::new(), fronts: OnceCell::new(), inside: OnceCell::new() }
    }

    pub(super) fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    pub(super) fn settings(&self) -> &'a Settings {
        self.settings
    }

    /// Adds the grants of one peer of a rule. Returns why it matches less than it says, if so.
    pub(super) fn resolve(
        &self,
        grants: &mut Grants,
        origin: Origin,
        asker: Asker<'_>,
        peer: &Peer,
        ports: &Ports,
    ) -> Vec<Why> {
        let mut why = Vec::new();
        let mut places = Places::new();
        match peer {
            Peer::Any => grants.add(origin, ports::numeric(ports), everywhere(), []),
            Peer::Cidrs { cidrs, except } => {
                grants.add(origin, ports::numeric(ports), cidrs.iter().copied(), except.iter().copied());
            }
            Peer::Pods { namespaces, pods } => {
                let selected = self.selected(asker, namespaces.as_ref(), pods.as_ref());
                self.pods(&mut places, &selected, ports, origin.denies());
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
                grants.add(origin, ports::numeric(ports), everywhere(), self.inside().iter().copied());
            }
            Peer::Unresolved(unresolved) => why.push(Why::NotLookedUp(unresolved.clone())),
        }
        // Addresses with the same ports share a grant.
        let mut by_ports: BTreeMap<Vec<Range>, Vec<IpNet>> = BTreeMap::new();
        for (address, ranges) in places {
            by_ports.entry(ports::normalize(ranges)).or_default().push(host(address));
        }
        for (ranges, addresses) in by_ports {
            grants.add(origin, ranges, addresses, []);
        }
        why
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

    fn fronts(&self) -> &[Front<'a>] {
        self.fronts.get_or_init(|| {
            let services =
                self.cluster.services.iter().filter(|(_, service)| !service.cluster_ips.is_empty());
            services.map(|(name, service)| self.front(name, service)).collect()
        })
    }

    fn front(&self, name: &NsName, service: &'a Service) -> Front<'a> {
        let slices = self.slices(name);
        let ports = service.ports.iter().map(|port| {
            let pairs = slices.iter().flat_map(|slice| {
                ports::behind(port, slice).flat_map(|target| {
                    slice.addresses.iter().map(|address| (address.to_canonical(), target.port))
                })
            });
            Behind { protocol: port.protocol, port: port.port, pairs: pairs.collect() }
        });
        Front { cluster_ips: &service.cluster_ips, ports: ports.collect() }
    }

    /// Marks the addresses of the selected pods, and ClusterIP ports by what stands behind them: to allow one, every endpoint
    /// must be allowed; to deny one, it takes a single denied endpoint, since nobody knows which one the packet will reach.
    fn pods(&self, places: &mut Places, selected: &[&Pod], ports: &Ports, denies: bool) {
        let numeric = ports::numeric(ports);
        for pod in selected {
            let mut ranges = numeric.clone();
            ports::named_at_pod(ports, pod, &mut ranges);
            for address in &pod.ips {
                open(places, *address, &ranges);
            }
        }
        for ranges in places.values_mut() {
            *ranges = ports::normalize(std::mem::take(ranges));
        }
        let mut fronts: Vec<(IpAddr, Range)> = Vec::new();
        for front in self.fronts() {
            for port in &front.ports {
                for cluster_ip in front.cluster_ips {
                    let cluster_ip = cluster_ip.to_canonical();
                    let mut pairs =
                        port.pairs.iter().filter(|(ip, _)| ip.is_ipv4() == cluster_ip.is_ipv4()).peekable();
                    let marked = |(address, target): &(IpAddr, Option<u16>)| {
                        let target = ports::target(port.protocol, *target);
                        let holds = if denies { ports::touches } else { ports::covers };
                        places.get(address).is_some_and(|ranges| holds(ranges, target))
                    };
                    let counts =
                        if denies { pairs.any(marked) } else { pairs.peek().is_some() && pairs.all(marked) };
                    if counts {
                        fronts.push((cluster_ip, ports::single(port.protocol, port.port)));
                    }
                }
            }
        }
        for (cluster_ip, range) in fronts {
            open(places, cluster_ip, &[range]);
        }
    }

    fn selected(
        &self,
        asker: Asker<'_>,
        namespaces: Option<&LabelSelector>,
        pods: Option<&LabelSelector>,
    ) -> Vec<&'a Pod> {
        let mut chosen: HashMap<&str, bool> = HashMap::new();
        let candidates = self.cluster.pods.iter().filter(|(_, pod)| {
            !(pod.finished || pod.host_network && asker.kind == PolicyKind::NetworkPolicy)
        });
        let of_namespaces = candidates.filter(|(name, _)| match namespaces {
            None => name.namespace == asker.namespace,
            Some(selector) => *chosen
                .entry(&name.namespace)
                .or_insert_with(|| selector.matches(&self.namespace_labels(&name.namespace))),
        });
        of_namespaces
            .map(|(_, pod)| pod)
            .filter(|pod| pods.is_none_or(|selector| selector.matches(&pod.labels)))
            .collect()
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
            let nets: BTreeSet<IpNet> = addresses
                .map(|address| host(*address))
                .chain(nodes.flat_map(|node| &node.pod_cidrs).copied())
                .chain(self.settings.cluster_cidrs.iter().copied())
                .chain(never_world())
                .map(|net| net.trunc())
                .collect();
            let mut outermost: Vec<IpNet> = Vec::new();
            // In this order a prefix comes right before those inside it.
            for net in nets {
                if !outermost.last().is_some_and(|last| last.contains(&net)) {
                    outermost.push(net);
                }
            }
            outermost
        })
    }
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
