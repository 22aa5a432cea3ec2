//! From rules to addresses and selectors, each with ports.

use std::{
    borrow::Cow,
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    Direction, Inexpressible, Loss, LossKind, Options,
    ports::{self, EVERYTHING, Range, Ranges},
};
use crate::policy::{
    addresses::{Addresses, METADATA},
    cluster::{Cluster, EndpointSlice, NsName, Pod, Service, Settings},
    model::{Entity, LabelSelector, Peer, Ports, Protocol, Rule, Unresolved},
    selector::METADATA_NAME,
};

/// What one rule of a NetworkPolicy is to say.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// The destination it comes from; `None` for what no destination says.
    pub(super) destination: Option<Arc<str>>,
    pub(super) place: Place,
    /// By number, normal.
    pub(super) ports: Ranges,
    /// By name; only where pods are selected.
    pub(super) names: Vec<(Protocol, String)>,
}

#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Addresses, and the prefixes a person wrote that they are part of.
    Blocks { outer: Vec<IpNet>, addresses: Addresses },
    /// Pods, and the addresses they have now.
    Pods { namespaces: Option<LabelSelector>, pods: Option<LabelSelector>, now: Addresses },
}

impl Place {
    pub(super) fn addresses(&self) -> &Addresses {
        match self {
            Self::Blocks { addresses, .. } | Self::Pods { now: addresses, .. } => addresses,
        }
    }

    fn hosts(addresses: impl Iterator<Item = IpAddr>) -> Self {
        let outer: Vec<IpNet> = addresses.map(|address| IpNet::from(address.to_canonical())).collect();
        let addresses = Addresses::of_nets(&outer);
        Self::Blocks { outer: addresses.nets().collect(), addresses }
    }

    pub(super) fn everywhere() -> Self {
        Self::Blocks { outer: Addresses::all().nets().collect(), addresses: Addresses::all() }
    }
}

/// What a denied destination denies: addresses and the ports at them.
pub(super) type Denied = (Addresses, Ranges);

/// A port of a Service, with what stands behind it in one family.
struct Front {
    addresses: Vec<IpAddr>,
    port: Range,
    /// Endpoints with the range of target ports.
    behind: Vec<(IpAddr, Range)>,
}

/// Ranges of ports by address.
type At = BTreeMap<IpAddr, Ranges>;

/// The cluster, with what is looked up in it often.
pub(super) struct Directory<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    options: &'a Options,
    slices: OnceCell<HashMap<NsName, Vec<&'a EndpointSlice>>>,
    fronts: OnceCell<Vec<Front>>,
    inside: OnceCell<Inside>,
}

/// What is not the world.
struct Inside {
    /// Ranges that are told to us, and those that never are the world.
    ranges: Addresses,
    /// Single addresses outside of them.
    single: Addresses,
    count: usize,
}

/// Returns the ports that a rule means at a peer; nothing if there are none.
fn ports_of<'a>(peer: &'a Peer, rule: &'a Rule) -> Option<Cow<'a, Ports>> {
    match peer {
        Peer::Cloud(cloud) => cloud.ports(&rule.ports),
        _ => Some(Cow::Borrowed(&rule.ports)),
    }
}

impl<'a> Directory<'a> {
    pub(super) fn new(cluster: &'a Cluster, settings: &'a Settings, options: &'a Options) -> Self {
        let (slices, fronts, inside) = (OnceCell::new(), OnceCell::new(), OnceCell::new());
        Self { cluster, settings, options, slices, fronts, inside }
    }

    /// Appends what an allowed destination of a policy in `namespace` allows, and what gets lost.
    pub(super) fn allow(
        &self,
        namespace: &str,
        rule: &Rule,
        pieces: &mut Vec<Piece>,
        losses: &mut Vec<Loss>,
    ) {
        let destination: Arc<str> = rule.name.as_str().into();
        for peer in &rule.peers {
            let Some(ports) = ports_of(peer, rule) else { continue };
            let ports = &*ports;
            let mut asked =
                Asked { destination: Some(Arc::clone(&destination)), ports, namespace, pieces, losses };
            self.peer(peer, &mut asked);
        }
    }

    /// Appends what opens the cluster's DNS.
    pub(super) fn dns(&self, namespace: &str, pieces: &mut Vec<Piece>, losses: &mut Vec<Loss>) {
        let ports = super::dns_ports();
        let mut asked = Asked { destination: None, ports: &ports, namespace, pieces, losses };
        self.peer(&Peer::Entity(Entity::ClusterDns), &mut asked);
    }

    fn peer(&self, peer: &Peer, asked: &mut Asked<'_>) {
        match peer {
            Peer::Any => self.blocks(asked, Place::everywhere()),
            Peer::Cidrs { cidrs, except } => {
                let addresses = Addresses::of_nets(cidrs).minus(&Addresses::of_nets(except));
                self.blocks(asked, Place::Blocks { outer: cidrs.clone(), addresses });
            }
            Peer::Cloud(cloud) => {
                let outer = cloud.cidrs.to_vec();
                let addresses = Addresses::of_nets(&outer);
                self.blocks(asked, Place::Blocks { outer, addresses });
                if !cloud.domains.is_empty() {
                    self.domains(asked, &cloud.domains);
                }
            }
            Peer::Unresolved(Unresolved::Domains(domains)) => self.domains(asked, domains),
            Peer::Unresolved(_) => {
                let text = "its addresses are not known; the object allows them when they are";
                asked.lose(LossKind::Unresolved, None, Addresses::default(), Ranges::new(), text);
            }
            Peer::Pods { namespaces, pods } => self.pods(asked, namespaces.as_ref(), pods.as_ref()),
            Peer::Service(name) => self.service(asked, name),
            Peer::Entity(Entity::ClusterDns) => {
                for name in &self.settings.cluster_dns {
                    self.service(asked, name);
                }
                let more = &self.settings.cluster_dns_addresses;
                if !more.is_empty() {
                    self.blocks(asked, Place::hosts(more.iter().copied()));
                }
            }
            Peer::Entity(Entity::KubeApiserver) => self.service(asked, &apiserver()),
            // Every NetworkPolicy allows the pod's own node.
            Peer::Entity(Entity::Node) => {}
            Peer::Entity(Entity::World) => self.world(asked),
        }
    }

    /// Appends addresses where port numbers mean themselves.
    fn blocks(&self, asked: &mut Asked<'_>, place: Place) {
        let spoken = self.spoken(asked, place.addresses());
        asked.add(place, spoken, Vec::new());
    }

    /// Returns the ports asked for as far as they can be said.
    fn spoken(&self, asked: &mut Asked<'_>, addresses: &Addresses) -> Ranges {
        self.said(asked, addresses, ports::numeric(asked.ports))
    }

    /// Returns `ranges`, or what stands for them if they name ICMP.
    fn said(&self, asked: &mut Asked<'_>, addresses: &Addresses, ranges: Ranges) -> Ranges {
        let icmp = ports::whole(Protocol::Icmp);
        if ranges == [EVERYTHING] || !ports::touch(&ranges, &[icmp]) || addresses.is_empty() {
            return ranges;
        }
        match self.options.inexpressible {
            Inexpressible::Widen => {
                let text = "a NetworkPolicy has no word for ICMP: every protocol and port is allowed there";
                asked.lose(LossKind::Icmp, Some(Direction::Wider), addresses.clone(), vec![EVERYTHING], text);
                vec![EVERYTHING]
            }
            Inexpressible::Omit | Inexpressible::Skip => {
                let text = "a NetworkPolicy has no word for ICMP: it is not allowed there";
                asked.lose(LossKind::Icmp, Some(Direction::Narrower), addresses.clone(), vec![icmp], text);
                ports::minus(&ranges, &[icmp])
            }
        }
    }

    fn domains(&self, asked: &mut Asked<'_>, domains: &[String]) {
        let shown = super::few(domains.iter().map(String::as_str));
        match self.options.inexpressible {
            Inexpressible::Widen => {
                let text = format!(
                    "a NetworkPolicy has no word for domains ({shown}): every address is allowed on these ports"
                );
                let ranges = ports::numeric(asked.ports);
                asked.lose(LossKind::Domain, Some(Direction::Wider), Addresses::all(), ranges, text);
                self.blocks(asked, Place::everywhere());
            }
            Inexpressible::Omit | Inexpressible::Skip => {
                let text =
                    format!("a NetworkPolicy has no word for domains ({shown}): nothing is allowed for them");
                let ranges = ports::numeric(asked.ports);
                asked.lose(LossKind::Domain, Some(Direction::Narrower), Addresses::all(), ranges, text);
            }
        }
    }

    fn world(&self, asked: &mut Asked<'_>) {
        let inside = self.inside();
        let exact = Addresses::all().minus(&inside.ranges).minus(&inside.single);
        let place = |addresses| Place::Blocks { outer: Addresses::all().nets().collect(), addresses };
        if inside.count <= self.options.limits.single {
            return self.blocks(asked, place(exact));
        }
        let text = format!(
            "{} addresses of pods, nodes and Services lie outside of the cluster's known ranges, too many to leave out one by one: {}",
            inside.count,
            match self.options.inexpressible {
                Inexpressible::Widen => "`world` includes them (--cluster-cidrs names the ranges)",
                Inexpressible::Omit | Inexpressible::Skip =>
                    "`world` is left out (--cluster-cidrs names the ranges)",
            }
        );
        let ranges = ports::numeric(asked.ports);
        match self.options.inexpressible {
            Inexpressible::Widen => {
                asked.lose(LossKind::World, Some(Direction::Wider), inside.single.clone(), ranges, text);
                self.blocks(asked, place(exact.plus(&inside.single)));
            }
            Inexpressible::Omit | Inexpressible::Skip => {
                asked.lose(LossKind::World, Some(Direction::Narrower), exact, ranges, text);
            }
        }
    }

    fn inside(&self) -> &Inside {
        self.inside.get_or_init(|| {
            let nodes = self.cluster.nodes.values();
            let told = nodes.clone().flat_map(|node| &node.pod_cidrs).chain(&self.settings.cluster_cidrs);
            let ranges: Vec<IpNet> = told.copied().chain(never_world()).collect();
            let ranges = Addresses::of_nets(&ranges);
            let services = self.cluster.services.values();
            let addresses = nodes
                .flat_map(|node| node.addresses.iter().copied())
                .chain(services.flat_map(|service| service.cluster_ips.iter().copied()))
                .chain(self.cluster.pods.values().filter(|pod| !pod.finished).flat_map(|pod| pod.ips.iter()));
            let single: BTreeSet<IpAddr> = addresses
                .map(|address| address.to_canonical())
                .filter(|address| !ranges.contains(*address))
                .collect();
            let count = single.len();
            let nets: Vec<IpNet> = single.into_iter().map(IpNet::from).collect();
            Inside { ranges, single: Addresses::of_nets(&nets), count }
        })
    }

    fn pods(&self, asked: &mut Asked<'_>, namespaces: Option<&LabelSelector>, pods: Option<&LabelSelector>) {
        let chosen = self.chosen(asked.namespace, namespaces, pods);
        let names = ports::names(asked.ports);
        // Pods with the node's network are no pods to a NetworkPolicy, only addresses.
        let (host, own): (Vec<&Pod>, Vec<&Pod>) = chosen.iter().copied().partition(|pod| pod.host_network);
        let now: Addresses = hosts(own.iter().flat_map(|pod| pod.ips.iter()));
        let everywhere = now.plus(&hosts(host.iter().flat_map(|pod| pod.ips.iter())));
        let spoken = self.spoken(asked, &everywhere);
        let named = if spoken == [EVERYTHING] { Vec::new() } else { names.clone() };
        let place = Place::Pods { namespaces: namespaces.cloned(), pods: pods.cloned(), now };
        asked.add(place, spoken.clone(), named);
        let mut at = At::new();
        for pod in host {
            for address in pod.ips.iter() {
                at.entry(address)
                    .or_default()
                    .extend(spoken.iter().copied().chain(ports::named_at(&names, pod)));
            }
        }
        asked.add_all(at);

        // A ClusterIP in front of them opens where every endpoint behind it is theirs.
        let numeric = ports::numeric(asked.ports);
        let mut granted: HashMap<IpAddr, Ranges> = HashMap::new();
        for pod in &chosen {
            let ranges = numeric.iter().copied().chain(ports::named_at(&names, pod));
            let ranges: Ranges = ranges.collect();
            for address in pod.ips.iter() {
                granted.entry(address).or_default().extend(&ranges);
            }
        }
        granted.values_mut().for_each(|ranges| *ranges = ports::normal(std::mem::take(ranges)));
        let opens = |front: &&Front| {
            front.behind.iter().all(|(address, target)| {
                granted.get(address).is_some_and(|ranges| ports::minus(&[*target], ranges).is_empty())
            })
        };
        let mut at = At::new();
        for front in self.fronts().iter().filter(opens) {
            for address in &front.addresses {
                at.entry(*address).or_default().push(front.port);
            }
        }
        self.cluster_ips(asked, at);
    }

    /// Returns the pods that a destination in `namespace` selects.
    fn chosen(
        &self,
        namespace: &str,
        namespaces: Option<&LabelSelector>,
        pods: Option<&LabelSelector>,
    ) -> Vec<&'a Pod> {
        let mut chosen = Vec::new();
        let mut add = |namespace: &str| {
            let here = self.cluster.pods.of_namespace(namespace).map(|(_, pod)| pod);
            chosen.extend(
                here.filter(|pod| !pod.finished && pods.is_none_or(|selector| selector.matches(&pod.labels))),
            );
        };
        match namespaces {
            None => add(namespace),
            Some(selector) => {
                for namespace in self.cluster.pods.namespaces() {
                    if selector.matches(&self.cluster.namespace_labels(namespace)) {
                        add(namespace);
                    }
                }
            }
        }
        chosen
    }

    fn slices(&self, service: &NsName) -> &[&'a EndpointSlice] {
        let slices = self.slices.get_or_init(|| {
            let mut slices: HashMap<NsName, Vec<&EndpointSlice>> = HashMap::new();
            for (id, slice) in &self.cluster.slices {
                slices.entry(slice.of(id)).or_default().push(slice);
            }
            slices
        });
        slices.get(service).map_or(&[], Vec::as_slice)
    }

    fn fronts(&self) -> &[Front] {
        self.fronts.get_or_init(|| {
            let mut fronts = Vec::new();
            for (name, service) in &self.cluster.services {
                for port in &service.ports {
                    let mut behind = BTreeSet::new();
                    for slice in self.slices(name) {
                        let matching = slice
                            .ports
                            .iter()
                            .filter(|target| target.name == port.name && target.protocol == port.protocol);
                        for target in matching {
                            let range = ports::target(port.protocol, target.port);
                            behind.extend(
                                slice.addresses.iter().map(|address| (address.to_canonical(), range)),
                            );
                        }
                    }
                    for is_v4 in [true, false] {
                        let ips = service.cluster_ips.iter().map(|address| address.to_canonical());
                        let addresses: Vec<IpAddr> =
                            ips.filter(|address| address.is_ipv4() == is_v4).collect();
                        let behind: Vec<(IpAddr, Range)> = behind
                            .iter()
                            .filter(|(address, _)| address.is_ipv4() == is_v4)
                            .copied()
                            .collect();
                        if !addresses.is_empty() && !behind.is_empty() {
                            let port = ports::target(port.protocol, Some(port.port));
                            fronts.push(Front { addresses, port, behind });
                        }
                    }
                }
            }
            fronts
        })
    }

    /// Appends ports at ClusterIPs, or says that they are lost.
    fn cluster_ips(&self, asked: &mut Asked<'_>, at: At) {
        if self.options.cluster_ips {
            asked.add_all(at);
            return;
        }
        for (ranges, addresses) in grouped(at) {
            let text = "ClusterIPs are left out, for a network plugin that judges the address behind them";
            asked.lose(
                LossKind::ClusterIp,
                Some(Direction::Narrower),
                hosts(addresses.into_iter()),
                ranges,
                text,
            );
        }
    }

    fn service(&self, asked: &mut Asked<'_>, name: &NsName) {
        let Some(service) = self.cluster.services.get(name).filter(|service| service.external_name.is_none())
        else {
            let text = format!("Service {name} does not exist or has no addresses");
            asked.lose(LossKind::Unresolved, None, Addresses::default(), Ranges::new(), text);
            return;
        };
        let (fronts, endpoints) = self.behind(name, service, asked.ports);
        let mut at = At::new();
        let front = hosts(service.cluster_ips.iter().copied());
        let spoken = self.said(asked, &front, fronts);
        for address in &service.cluster_ips {
            at.entry(address.to_canonical()).or_default().extend(&spoken);
        }
        self.cluster_ips(asked, at);

        let mut endpoints: At = endpoints;
        let all = hosts(endpoints.keys().copied());
        for ranges in endpoints.values_mut() {
            *ranges = ports::normal(std::mem::take(ranges));
        }
        let icmp = endpoints.values().flatten().copied().collect();
        if self.said(asked, &all, ports::normal(icmp)) == [EVERYTHING] {
            endpoints.values_mut().for_each(|ranges| *ranges = vec![EVERYTHING]);
        } else {
            let icmp = ports::whole(Protocol::Icmp);
            endpoints.values_mut().for_each(|ranges| *ranges = ports::minus(ranges, &[icmp]));
        }
        if let Some(labels) = self.options.selectors.get(name).filter(|labels| !labels.is_empty()) {
            let selector = LabelSelector {
                match_labels: labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
                match_expressions: Vec::new(),
            };
            self.selected(asked, name, selector, &mut endpoints);
        }
        asked.add_all(endpoints);
    }

    /// Appends the pods behind a Service by its own selector, and takes their addresses out of `endpoints`.
    fn selected(&self, asked: &mut Asked<'_>, name: &NsName, selector: LabelSelector, endpoints: &mut At) {
        let chosen = self.chosen(&name.namespace, None, Some(&selector));
        let addresses: BTreeSet<IpAddr> =
            chosen.iter().filter(|pod| !pod.host_network).flat_map(|pod| pod.ips.iter()).collect();
        let (behind, rest): (At, At) =
            std::mem::take(endpoints).into_iter().partition(|(address, _)| addresses.contains(address));
        *endpoints = rest;
        let ranges = ports::normal(behind.values().flatten().copied().collect());
        if ranges.is_empty() {
            return;
        }
        for address in &addresses {
            let more = ports::minus(&ranges, behind.get(address).map_or(&[], Vec::as_slice));
            if !more.is_empty() {
                let text = format!(
                    "the selector of Service {name} includes {address}, which gets no traffic of it there"
                );
                asked.lose(
                    LossKind::Service,
                    Some(Direction::Wider),
                    hosts(std::iter::once(*address)),
                    more,
                    text,
                );
            }
        }
        let namespace = (METADATA_NAME.to_owned(), name.namespace.clone());
        let namespaces = (name.namespace != asked.namespace)
            .then(|| LabelSelector { match_labels: vec![namespace], match_expressions: Vec::new() });
        let now = hosts(addresses.into_iter());
        asked.add(Place::Pods { namespaces, pods: Some(selector), now }, ranges, Vec::new());
    }

    /// Returns what a list of ports means at the ClusterIPs of a Service, and at each address behind it.
    fn behind(&self, name: &NsName, service: &Service, ports: &Ports) -> (Ranges, At) {
        let mut endpoints = At::new();
        let slices = self.slices(name);
        let Ports::List(list) = ports else {
            for slice in slices {
                for address in &slice.addresses {
                    endpoints.insert(address.to_canonical(), vec![EVERYTHING]);
                }
            }
            return (vec![EVERYTHING], endpoints);
        };
        let icmp = ports::minus(&ports::numeric(ports), &ports::SPOKEN.map(ports::whole));
        let mut fronts = icmp.clone();
        for port in ports::chosen(list, service) {
            fronts.push(ports::target(port.protocol, Some(port.port)));
        }
        for slice in slices {
            let mut ranges = icmp.clone();
            for port in ports::chosen(list, service) {
                let matching = slice
                    .ports
                    .iter()
                    .filter(|target| target.name == port.name && target.protocol == port.protocol);
                ranges.extend(matching.map(|target| ports::target(port.protocol, target.port)));
            }
            for address in &slice.addresses {
                endpoints.entry(address.to_canonical()).or_default().extend(&ranges);
            }
        }
        (ports::normal(fronts), endpoints)
    }

    /// Returns what a denied destination denies to every pod. What it denies besides, see [`Self::denied_node`].
    pub(super) fn denied(&self, namespace: &str, rule: &Rule) -> Vec<Denied> {
        let mut denied: Vec<Denied> = Vec::new();
        let mut at = At::new();
        for peer in &rule.peers {
            let Some(ports) = ports_of(peer, rule) else { continue };
            let ranges = ports::numeric(&ports);
            match peer {
                Peer::Pods { namespaces, pods } => {
                    let names = ports::names(&rule.ports);
                    for pod in self.chosen(namespace, namespaces.as_ref(), pods.as_ref()) {
                        for address in pod.ips.iter() {
                            let more = ranges.iter().copied().chain(ports::named_at(&names, pod));
                            at.entry(address).or_default().extend(more);
                        }
                    }
                }
                Peer::Service(name) => self.denied_service(name, &rule.ports, &mut at),
                Peer::Entity(Entity::KubeApiserver) => {
                    self.denied_service(&apiserver(), &rule.ports, &mut at);
                }
                Peer::Entity(Entity::ClusterDns) => {
                    for name in &self.settings.cluster_dns {
                        self.denied_service(name, &rule.ports, &mut at);
                    }
                    for address in &self.settings.cluster_dns_addresses {
                        at.entry(address.to_canonical()).or_default().extend(&ranges);
                    }
                }
                // Which one depends on the pod: see `denies_node`.
                Peer::Entity(Entity::Node) | Peer::Unresolved(Unresolved::Domains(_)) => {}
                Peer::Any => denied.push((Addresses::all(), ranges)),
                Peer::Cidrs { .. } | Peer::Cloud(_) => denied.push((Addresses::of_peer(peer), ranges)),
                // What the platform team defines, and nobody knows yet, may be anywhere; a provider's anywhere outside.
                Peer::Unresolved(what) if what.at_most() == Some(Peer::Any) => {
                    denied.push((Addresses::all(), ranges));
                }
                Peer::Entity(Entity::World) | Peer::Unresolved(_) => {
                    let inside = self.inside();
                    denied.push((Addresses::all().minus(&inside.ranges).minus(&inside.single), ranges));
                }
            }
        }
        denied.extend(grouped(at).map(|(ranges, addresses)| (hosts(addresses.into_iter()), ranges)));
        denied.extend(self.closed(&denied));
        denied.retain(|(addresses, ranges)| !addresses.is_empty() && !ranges.is_empty());
        denied
    }

    /// Returns what a denied destination may deny to some pod because it denies the pod's own node.
    pub(super) fn denied_node(&self, rule: &Rule) -> Vec<Denied> {
        let ranges = ports::numeric(&rule.ports);
        if ranges.is_empty() || !rule.peers.contains(&Peer::Entity(Entity::Node)) {
            return Vec::new();
        }
        let nodes = hosts(self.cluster.nodes.values().flat_map(|node| node.addresses.iter().copied()));
        let mut denied = vec![(nodes, ranges)];
        denied.extend(self.closed(&denied));
        denied
    }

    /// Returns the ports of ClusterIPs that are closed because an endpoint behind them is denied: which one a packet would reach nobody
    /// knows.
    fn closed(&self, denied: &[Denied]) -> Vec<Denied> {
        let mut at = At::new();
        for front in self.fronts() {
            let closed = front.behind.iter().any(|(endpoint, target)| {
                denied.iter().any(|(addresses, ranges)| {
                    addresses.contains(*endpoint) && ports::touch(ranges, &[*target])
                })
            });
            if closed {
                for address in &front.addresses {
                    at.entry(*address).or_default().push(front.port);
                }
            }
        }
        grouped(at).map(|(ranges, addresses)| (hosts(addresses.into_iter()), ranges)).collect()
    }

    fn denied_service(&self, name: &NsName, ports: &Ports, at: &mut At) {
        let Some(service) = self.cluster.services.get(name).filter(|service| service.external_name.is_none())
        else {
            return;
        };
        let (fronts, endpoints) = self.behind(name, service, ports);
        for address in &service.cluster_ips {
            at.entry(address.to_canonical()).or_default().extend(&fronts);
        }
        for (address, ranges) in endpoints {
            at.entry(address).or_default().extend(ranges);
        }
    }
}

/// One peer of a rule, and where what it becomes goes.
struct Asked<'r> {
    destination: Option<Arc<str>>,
    ports: &'r Ports,
    namespace: &'r str,
    pieces: &'r mut Vec<Piece>,
    losses: &'r mut Vec<Loss>,
}

impl Asked<'_> {
    fn add(&mut self, place: Place, ports: Ranges, names: Vec<(Protocol, String)>) {
        let nowhere = matches!(&place, Place::Blocks { addresses, .. } if addresses.is_empty());
        let no_ports = ports.is_empty() && names.is_empty();
        if !nowhere && !no_ports {
            self.pieces.push(Piece { destination: self.destination.clone(), place, ports, names });
        }
    }

    /// Adds addresses, those with the same ports together.
    fn add_all(&mut self, at: At) {
        for (ranges, addresses) in grouped(at) {
            self.add(Place::hosts(addresses.into_iter()), ranges, Vec::new());
        }
    }

    fn lose(
        &mut self,
        kind: LossKind,
        direction: Option<Direction>,
        addresses: Addresses,
        ports: Ranges,
        text: impl Into<String>,
    ) {
        let destination = Some(self.destination.as_deref().unwrap_or("(cluster-dns)").to_owned());
        self.losses.push(Loss { kind, destination, direction, addresses, ports, text: text.into() });
    }
}

/// Returns the addresses with the same ports together, in the order of the ports.
fn grouped(at: At) -> impl Iterator<Item = (Ranges, Vec<IpAddr>)> {
    let mut groups: BTreeMap<Ranges, Vec<IpAddr>> = BTreeMap::new();
    for (address, ranges) in at {
        let ranges = ports::normal(ranges);
        if !ranges.is_empty() {
            groups.entry(ranges).or_default().push(address);
        }
    }
    groups.into_iter()
}

pub(super) fn hosts(addresses: impl Iterator<Item = IpAddr>) -> Addresses {
    let nets: Vec<IpNet> = addresses.map(|address| IpNet::from(address.to_canonical())).collect();
    Addresses::of_nets(&nets)
}

fn apiserver() -> NsName {
    NsName::new("default", "kubernetes")
}

/// What never is the world, whatever the cluster.
fn never_world() -> impl Iterator<Item = IpNet> {
    let blocks = [
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "255.255.255.255/32",
        "::/128",
        "::1/128",
        "fe80::/10",
        "ff00::/8",
    ];
    blocks.into_iter().map(|net| net.parse().expect("a literal prefix")).chain(METADATA.map(IpNet::from))
}
