//! Whether generated NetworkPolicies say what the kernel layer does, over every flow there is.
//!
//! A flow is an address, a protocol and a port. Both sides become layers over the line of all addresses (IPv4 in its place inside
//! IPv6): stretches of it, each with ranges of protocol and port that pass. One sweep over the ends of all stretches cuts the line into
//! parts on which nothing changes, and compares what passes there. So the answer holds for each of the 2¹²⁸ × 2²⁴ flows of a pod, and
//! not for samples of them.
//!
//! The kernel's side are the compiled entries, decided on with the kernel's own function. The objects' side is read here from the words
//! of the API, with no code of the compiler or of the reader of NetworkPolicies: if those misunderstand something, this does not share it.
//! Protocols other than TCP, UDP and SCTP, of which the API promises nothing, pass here where a rule names no ports. Destinations count
//! as the pod sends them, so a ClusterIP is an address like any other. A NetworkPolicy never blocks a pod from itself or from its node.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    rc::Rc,
    sync::Arc,
};

use egress_common::{
    decide::{At, decide},
    endpoint::{Endpoint, flags},
    policy::{HIGHEST_PORT_KEY, LOWEST_PORT_KEY, NO_RULE, RuleEntry, normal_protocol, port_key},
    verdict::Verdict,
};
use ipnet::IpNet;

use crate::policy::{
    addresses::Addresses,
    cluster::{Cluster, Labels, NsName, Pod, Settings},
    compile::{Compiled, PolicySet, compile_all},
    flow::Flow,
    generated::{
        Direction, Generated, Generator, Loss, LossKind, NetworkPolicy, Options, Peer, Range, Ranges,
        restated,
    },
    model::{LabelSelector, Operator, PolicyId, PolicyKind, PortMatch, PortSpec, Protocol},
    simulate::simulate,
};

/// Flows on which the two sides differ for some pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The pods; all of them are in the same case.
    pub pods: Vec<NsName>,
    /// Which way the objects differ from the kernel layer.
    pub direction: Direction,
    /// At which addresses.
    pub addresses: Addresses,
    /// On which ports.
    pub ports: Ranges,
    /// One of the flows, of the first pod.
    pub flow: Flow,
    /// What each side says about it, and why.
    pub reason: String,
    /// The losses that declare it, each with its policy; empty if none does.
    pub declared: Vec<(PolicyId, LossKind)>,
}

impl Difference {
    /// Tells whether it was announced as a loss.
    #[must_use]
    pub fn is_declared(&self) -> bool {
        !self.declared.is_empty()
    }
}

/// What came out of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// How many pods were compared.
    pub pods: usize,
    /// How many objects there are, without those of people's own.
    pub objects: usize,
    /// Where the sides differ.
    pub differences: Vec<Difference>,
    /// What was declared as lost, by policy.
    pub losses: Vec<(PolicyId, Loss)>,
}

impl Outcome {
    /// Returns the differences that no loss declares.
    pub fn undeclared(&self) -> impl Iterator<Item = &Difference> {
        self.differences.iter().filter(|difference| !difference.is_declared())
    }
}

/// The objects of a cluster.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// All of them; those of people's own too, where the kernel layer enforces them.
    pub list: Vec<NetworkPolicy>,
    /// How many of the list are generated; they come first.
    pub generated: usize,
    /// What was declared as lost, by policy.
    pub losses: BTreeMap<PolicyId, Vec<Loss>>,
}

impl Objects {
    /// Generates those of every policy.
    #[must_use]
    pub fn of(cluster: &Cluster, settings: &Settings, options: &Options, now: u64) -> Self {
        let generator = Generator::new(cluster, settings, options, now);
        let mut objects = Self::default();
        for id in generator.policies() {
            let Generated { objects: list, losses, next: _ } = generator.generate(id);
            objects.list.extend(list);
            objects.losses.insert(id.clone(), losses);
        }
        objects.generated = objects.list.len();
        if settings.enforce_network_policy {
            for policy in cluster.policies.values() {
                let Some(object) = restated(policy) else { continue };
                objects.losses.insert(policy.id.clone(), fronts(cluster, &object).into_iter().collect());
                objects.list.push(object);
            }
        }
        objects
    }
}

/// Returns what a NetworkPolicy of people's own loses where it selects pods: it says nothing of the ClusterIPs in front of them.
fn fronts(cluster: &Cluster, object: &NetworkPolicy) -> Option<Loss> {
    let pods = object.egress.iter().flat_map(|rule| &rule.to).any(|peer| matches!(peer, Peer::Pods { .. }));
    let services = cluster.services.values().flat_map(|service| &service.cluster_ips);
    let nets: Vec<IpNet> = services.map(|address| IpNet::from(address.to_canonical())).collect();
    (pods && !nets.is_empty()).then(|| Loss {
        kind: LossKind::ClusterIp,
        destination: None,
        direction: Some(Direction::Narrower),
        addresses: Addresses::of_nets(&nets),
        ports: vec![EVERYTHING],
        text: "it selects pods and names no ClusterIPs in front of them".to_owned(),
    })
}

/// Compares, for every pod that has not finished.
#[must_use]
pub fn compare(cluster: &Cluster, settings: &Settings, objects: &Objects, now: u64) -> Outcome {
    compare_pods(cluster, settings, objects, now, &|_| true)
}

/// Compares, for the pods that `wanted` says yes to.
#[must_use]
pub fn compare_pods(
    cluster: &Cluster,
    settings: &Settings,
    objects: &Objects,
    now: u64,
    wanted: &dyn Fn(&NsName) -> bool,
) -> Outcome {
    let names = cluster.pods.iter().filter(|(_, pod)| !pod.finished).map(|(name, _)| NsName::from(name));
    let names: Vec<NsName> = names.filter(|name| wanted(name)).collect();
    let compiled = compile_all(cluster, settings, names.iter());
    let mut groups: BTreeMap<Case<'_>, Vec<&NsName>> = BTreeMap::new();
    for name in &names {
        let (pod, compiled) = (&cluster.pods[name], &compiled[name]);
        groups.entry(Case::of(name, pod, compiled, objects)).or_default().push(name);
    }
    let losses =
        objects.losses.iter().flat_map(|(id, losses)| losses.iter().map(|loss| (id.clone(), loss.clone())));
    let mut outcome = Outcome {
        pods: names.len(),
        objects: objects.generated,
        differences: Vec::new(),
        losses: losses.collect(),
    };
    let reading = Reading { cluster, objects };
    let mut groups: Vec<(Case<'_>, Vec<&NsName>)> = groups.into_iter().collect();
    groups.sort_by_key(|(_, pods)| pods[0]);
    for (case, pods) in groups {
        let comparison =
            Comparison { reading: &reading, case: &case, compiled: &compiled[pods[0]], pods: &pods, now };
        outcome.differences.extend(comparison.run());
    }
    outcome
}

/// What pods have in common whose comparison comes out the same, but for their own addresses.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Case<'a> {
    namespace: &'a str,
    set: Option<*const PolicySet>,
    policies: &'a [PolicyId],
    /// Places in the list of those that isolate the pod.
    objects: Vec<usize>,
    host_network: bool,
    node: &'a str,
}

impl<'a> Case<'a> {
    fn of(name: &'a NsName, pod: &'a Pod, compiled: &'a Compiled, objects: &Objects) -> Self {
        let isolating = objects.list.iter().enumerate().filter(|(_, object)| {
            object.id.namespace == name.namespace && selects(&object.selector, &pod.labels)
        });
        Self {
            namespace: &name.namespace,
            set: compiled.set.as_ref().map(Arc::as_ptr),
            policies: &compiled.policies,
            objects: isolating.map(|(at, _)| at).collect(),
            host_network: pod.host_network,
            node: pod.node(),
        }
    }
}

/// The objects, read by the words of the API.
struct Reading<'a> {
    cluster: &'a Cluster,
    objects: &'a Objects,
}

/// Tells whether labels satisfy every part of a selector.
fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    for (key, value) in &selector.match_labels {
        if labels.get(key) != Some(value) {
            return false;
        }
    }
    for requirement in &selector.match_expressions {
        let value = labels.get(&requirement.key);
        let holds = match &requirement.operator {
            Operator::In(values) => value.is_some_and(|value| values.iter().any(|one| one == value)),
            Operator::NotIn(values) => !value.is_some_and(|value| values.iter().any(|one| one == value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        };
        if !holds {
            return false;
        }
    }
    true
}

impl Reading<'_> {
    /// Returns the pods that a peer of an object in `namespace` selects. Pods with the node's network are none.
    fn chosen(
        &self,
        namespace: &str,
        namespaces: Option<&LabelSelector>,
        pods: Option<&LabelSelector>,
    ) -> Vec<&Pod> {
        let all = self.cluster.pods.iter().filter(|(_, pod)| !pod.finished && !pod.host_network);
        let mut known: HashMap<String, bool> = HashMap::new();
        let chosen = all.filter(|(name, pod)| {
            let here = match namespaces {
                None => name.namespace == namespace,
                Some(selector) => *known.entry(name.namespace.to_owned()).or_insert_with_key(|namespace| {
                    selects(selector, &self.cluster.namespace_labels(namespace))
                }),
            };
            here && pods.is_none_or(|selector| selects(selector, &pod.labels))
        });
        chosen.map(|(_, pod)| pod).collect()
    }

    /// Returns the first rule that lets a flow of a pod pass, as the place of its object and its own; none where none of the objects
    /// that isolate the pod does.
    fn allowing(&self, isolating: &[usize], flow: &Flow) -> Option<(usize, usize)> {
        for &at in isolating {
            let object = &self.objects.list[at];
            for (number, rule) in object.egress.iter().enumerate() {
                let anywhere = rule.to.is_empty() && port_passes(&rule.ports, flow, None);
                if anywhere || rule.to.iter().any(|peer| self.passes(object, peer, &rule.ports, flow)) {
                    return Some((at, number));
                }
            }
        }
        None
    }

    fn passes(&self, object: &NetworkPolicy, peer: &Peer, ports: &[PortSpec], flow: &Flow) -> bool {
        let to = flow.destination;
        match peer {
            Peer::Block { cidr, except } => {
                cidr.contains(&to)
                    && !except.iter().any(|part| part.contains(&to))
                    && port_passes(ports, flow, None)
            }
            Peer::Pods { namespaces, pods } => self
                .chosen(&object.id.namespace, namespaces.as_ref(), pods.as_ref())
                .iter()
                .any(|pod| pod.ips.contains(&to) && port_passes(ports, flow, Some(pod))),
        }
    }
}

/// Tells whether one of `ports` is the flow's; names are those of `pod`.
fn port_passes(ports: &[PortSpec], flow: &Flow, pod: Option<&Pod>) -> bool {
    if ports.is_empty() {
        return true;
    }
    ports.iter().any(|item| {
        item.protocol != Protocol::Icmp
            && item.protocol.number() == flow.protocol
            && match &item.port {
                PortMatch::Any => true,
                PortMatch::Range(first, last) => *first <= flow.port && flow.port <= *last,
                PortMatch::Name(name) => pod.is_some_and(|pod| {
                    pod.ports.iter().any(|port| {
                        port.name == *name && port.protocol == item.protocol && port.port == flow.port
                    })
                }),
            }
    })
}

/// Tells whether the objects let a flow of a pod pass, asked for this flow alone.
#[must_use]
pub fn passes(cluster: &Cluster, objects: &Objects, name: &NsName, flow: &Flow) -> bool {
    let Some(pod) = cluster.pods.get(name).filter(|pod| !pod.finished) else { return true };
    let reading = Reading { cluster, objects };
    let isolating: Vec<usize> = (0..objects.list.len())
        .filter(|at| {
            let object = &objects.list[*at];
            object.id.namespace == name.namespace && selects(&object.selector, &pod.labels)
        })
        .collect();
    let own = flow.destination.is_loopback() || pod.ips.contains(&flow.destination);
    let node = cluster.nodes.get(pod.node());
    let own_node = node.is_some_and(|node| node.addresses.contains(&flow.destination));
    isolating.is_empty()
        || pod.host_network
        || own
        || own_node
        || reading.allowing(&isolating, flow).is_some()
}

/// Ranges of ports over stretches of addresses; where several are, all of theirs.
#[derive(Default)]
struct Layer {
    stretches: Vec<(u128, u128, u32)>,
}

/// Distinct sets of ports, by number.
#[derive(Default)]
struct Sets {
    list: Vec<Rc<Ranges>>,
    numbers: HashMap<Rc<Ranges>, u32>,
}

impl Sets {
    fn number(&mut self, ranges: Ranges) -> u32 {
        let ranges = Rc::new(ranges);
        if let Some(number) = self.numbers.get(&ranges) {
            return *number;
        }
        let number = u32::try_from(self.list.len()).expect("there are fewer sets than memory holds");
        self.list.push(Rc::clone(&ranges));
        self.numbers.insert(ranges, number);
        number
    }
}

/// Where IPv4 begins on the line of all addresses.
const V4: u128 = 0xffff << 32;
/// Where it ends.
const V4_LAST: u128 = V4 | 0xffff_ffff;
const EVERYTHING: Range = (LOWEST_PORT_KEY, HIGHEST_PORT_KEY);

fn place(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => V4 | u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(place: u128) -> IpAddr {
    Ipv6Addr::from_bits(place).to_canonical()
}

impl Layer {
    fn add(&mut self, (first, last): (u128, u128), set: u32) {
        self.stretches.push((first, last, set));
    }

    /// Adds addresses of IPv6, of which those in IPv4's place are none.
    fn add_v6(&mut self, first: u128, last: u128, set: u32) {
        if first < V4 {
            self.add((first, last.min(V4 - 1)), set);
        }
        if last > V4_LAST {
            self.add((first.max(V4_LAST + 1), last), set);
        }
    }

    fn add_net(&mut self, net: IpNet, set: u32) {
        match net {
            IpNet::V4(net) => self.add((place(net.network().into()), place(net.broadcast().into())), set),
            IpNet::V6(net) => self.add_v6(net.network().to_bits(), net.broadcast().to_bits(), set),
        }
    }

    /// Adds the addresses of a prefix that are in none of others.
    fn add_block(&mut self, cidr: IpNet, except: &[IpNet], set: u32) {
        let bounds = |net: &IpNet| match net {
            IpNet::V4(net) => (place(net.network().into()), place(net.broadcast().into())),
            IpNet::V6(net) => (net.network().to_bits(), net.broadcast().to_bits()),
        };
        let (first, last) = bounds(&cidr);
        let v4 = matches!(cidr, IpNet::V4(_));
        let mut holes: Vec<(u128, u128)> =
            except.iter().filter(|net| matches!(net, IpNet::V4(_)) == v4).map(bounds).collect();
        holes.sort_unstable();
        let mut next = Some(first);
        for (from, to) in holes {
            let Some(start) = next else { break };
            if from > start {
                self.add_part(v4, start, (from - 1).min(last), set);
            }
            next = to.checked_add(1).map(|after| after.max(start)).filter(|after| *after <= last);
        }
        if let Some(start) = next {
            self.add_part(v4, start, last, set);
        }
    }

    fn add_part(&mut self, v4: bool, first: u128, last: u128, set: u32) {
        if v4 {
            self.add((first, last), set);
        } else {
            self.add_v6(first, last, set);
        }
    }

    fn add_all(&mut self, addresses: &Addresses, set: u32) {
        for net in addresses.nets() {
            self.add_net(net, set);
        }
    }

    fn add_everywhere(&mut self, set: u32) {
        self.add((0, u128::MAX), set);
    }
}

/// The comparison for pods in one case.
struct Comparison<'a> {
    reading: &'a Reading<'a>,
    case: &'a Case<'a>,
    compiled: &'a Compiled,
    pods: &'a [&'a NsName],
    now: u64,
}

/// What the parts of the line look like where both sides and what is declared are the same.
type Part = [u32; 4];

const KERNEL: usize = 0;
const OBJECTS: usize = 1;
const WIDER: usize = 2;
const NARROWER: usize = 3;

impl Comparison<'_> {
    fn run(&self) -> Vec<Difference> {
        let mut sets = Sets::default();
        let losses = self.losses();
        let mut layers = [
            self.kernel(&mut sets),
            self.objects(&mut sets),
            declared(&losses, Direction::Wider, &mut sets),
            declared(&losses, Direction::Narrower, &mut sets),
        ];
        // What every pod of the case reaches, whatever is said.
        let all = sets.number(vec![EVERYTHING]);
        let ips = |name: &NsName| self.reading.cluster.pods[name].ips;
        let everybodys = |address: &IpAddr| self.pods.iter().all(|name| ips(name).contains(address));
        let own: Vec<IpAddr> = ips(self.pods[0]).iter().filter(everybodys).collect();
        for layer in &mut layers[..2] {
            for address in &own {
                layer.add((place(*address), place(*address)), all);
            }
            layer.add_net(IpNet::new_assert([127, 0, 0, 0].into(), 8), all);
            layer.add((1, 1), all);
        }
        self.differences(sweep(&layers, &mut sets), &sets, &losses)
    }

    /// Returns what was declared for the policies that select the pods.
    fn losses(&self) -> Vec<(PolicyId, Loss)> {
        let Reading { cluster, objects } = self.reading;
        let mut losses = Vec::new();
        let whole = |kind, text: &str| Loss {
            kind,
            destination: None,
            direction: Some(Direction::Wider),
            addresses: Addresses::all(),
            ports: vec![EVERYTHING],
            text: text.to_owned(),
        };
        for id in self.case.policies {
            if id.kind == PolicyKind::Namespace {
                // No ConfigMap stands for it that an object could belong to.
                let text = "the default of a governed namespace is the kernel layer's alone";
                losses.push((id.clone(), whole(LossKind::DefaultAllow, text)));
            }
            if self.case.host_network {
                losses.push((id.clone(), whole(LossKind::HostNetwork, "no NetworkPolicy isolates it")));
            }
            for loss in objects.losses.get(id).into_iter().flatten() {
                let mut loss = loss.clone();
                if loss.kind == LossKind::OwnNode {
                    let node = cluster.nodes.get(self.case.node);
                    let nets: Vec<IpNet> = node
                        .into_iter()
                        .flat_map(|node| &node.addresses)
                        .map(|address| IpNet::from(address.to_canonical()))
                        .collect();
                    (loss.addresses, loss.ports) = (Addresses::of_nets(&nets), vec![EVERYTHING]);
                }
                losses.push((id.clone(), loss));
            }
        }
        losses
    }

    /// Returns what the compiled entries let pass.
    fn kernel(&self, sets: &mut Sets) -> Layer {
        let mut layer = Layer::default();
        let Some(set) = &self.compiled.set else {
            let all = sets.number(vec![EVERYTHING]);
            layer.add_everywhere(all);
            return layer;
        };
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        let endpoint = Endpoint {
            revision: 0,
            slot: 0,
            set: 0,
            flags: flags::GOVERNED
                | flag(set.default_deny.is_some(), flags::DEFAULT_DENY)
                | flag(set.audit_default_deny.is_some(), flags::AUDIT_DEFAULT_DENY),
            default_rule: set.default_deny.unwrap_or(NO_RULE),
            audit_default_rule: set.audit_default_deny.unwrap_or(NO_RULE),
            address_v4: 0,
            address_v6: [0; 4],
        };
        let passes =
            |entry: Option<&RuleEntry>| decide(entry, &endpoint, &At(self.now)).verdict != Verdict::Deny;
        let lists: Vec<u32> = set
            .lists
            .iter()
            .map(|list| {
                let mut ranges = Ranges::new();
                let mut next = LOWEST_PORT_KEY;
                for entry in list {
                    if entry.low > next && passes(None) {
                        ranges.push((next, entry.low - 1));
                    }
                    if passes(Some(entry)) {
                        ranges.push((entry.low, entry.high));
                    }
                    next = entry.high + 1;
                }
                if next <= HIGHEST_PORT_KEY && passes(None) {
                    ranges.push((next, HIGHEST_PORT_KEY));
                }
                sets.number(joined(ranges))
            })
            .collect();
        let by_default = sets.number(if passes(None) { vec![EVERYTHING] } else { Ranges::new() });

        // The longest prefix decides, and a single address before any prefix.
        let mut nested: Vec<(u128, u128, u32)> = Vec::with_capacity(set.prefixes.len() + set.exact.len());
        for (octets, length, list) in &set.prefixes {
            let first = u128::from_be_bytes(*octets);
            let last = first | u128::MAX.checked_shr(u32::from(*length)).unwrap_or(0);
            nested.push((first, last, lists[*list as usize]));
        }
        for (octets, list) in &set.exact {
            let one = u128::from_be_bytes(*octets);
            nested.retain(|(first, last, _)| !(*first == one && *last == one));
            nested.push((one, one, lists[*list as usize]));
        }
        // Prefixes of IPv6 say nothing about IPv4.
        let (v4, v6): (Vec<_>, Vec<_>) =
            nested.into_iter().partition(|(first, last, _)| *first >= V4 && *last <= V4_LAST);
        for (first, last, set) in flattened(v4, (V4, V4_LAST), by_default) {
            layer.add((first, last), set);
        }
        for (first, last, set) in flattened(v6, (0, u128::MAX), by_default) {
            layer.add_v6(first, last, set);
        }
        layer
    }

    /// Returns what the objects let pass.
    fn objects(&self, sets: &mut Sets) -> Layer {
        let mut layer = Layer::default();
        let all = sets.number(vec![EVERYTHING]);
        if self.case.objects.is_empty() || self.case.host_network {
            layer.add_everywhere(all);
            return layer;
        }
        let Reading { cluster, objects } = self.reading;
        for address in cluster.nodes.get(self.case.node).iter().flat_map(|node| &node.addresses) {
            layer.add((place(*address), place(*address)), all);
        }
        for at in &self.case.objects {
            let object = &objects.list[*at];
            for rule in &object.egress {
                let numbers = sets.number(ranges(&rule.ports, None));
                if rule.to.is_empty() {
                    layer.add_everywhere(numbers);
                }
                for peer in &rule.to {
                    match peer {
                        Peer::Block { cidr, except } => layer.add_block(*cidr, except, numbers),
                        Peer::Pods { namespaces, pods } => {
                            let chosen =
                                self.reading.chosen(&object.id.namespace, namespaces.as_ref(), pods.as_ref());
                            for pod in chosen {
                                let set = sets.number(ranges(&rule.ports, Some(pod)));
                                for address in pod.ips.iter() {
                                    layer.add((place(address), place(address)), set);
                                }
                            }
                        }
                    }
                }
            }
        }
        layer
    }

    fn differences(
        &self,
        parts: Vec<(u128, u128, Part)>,
        sets: &Sets,
        losses: &[(PolicyId, Loss)],
    ) -> Vec<Difference> {
        // What differs in a part, in one direction, declared or not.
        type Kind = (Direction, bool, Ranges);
        let mut known: HashMap<Part, Rc<Vec<Kind>>> = HashMap::new();
        let mut found: BTreeMap<Kind, Vec<(u128, u128)>> = BTreeMap::new();
        for (first, last, part) in parts {
            let kinds = known.entry(part).or_insert_with(|| {
                let of = |layer: usize| &sets.list[part[layer] as usize];
                let mut kinds = Vec::new();
                for (direction, more, less, declared) in [
                    (Direction::Wider, OBJECTS, KERNEL, WIDER),
                    (Direction::Narrower, KERNEL, OBJECTS, NARROWER),
                ] {
                    let different = without(of(more), of(less));
                    let undeclared = without(&different, of(declared));
                    let rest = without(&different, &undeclared);
                    for (is_declared, ranges) in [(false, undeclared), (true, rest)] {
                        if !ranges.is_empty() {
                            kinds.push((direction, is_declared, ranges));
                        }
                    }
                }
                Rc::new(kinds)
            });
            for kind in kinds.iter() {
                found.entry(kind.clone()).or_default().push((first, last));
            }
        }
        let mut differences = Vec::new();
        for ((direction, is_declared, ports), stretches) in found {
            let addresses = addresses(&stretches);
            let flow = example(stretches[0].0, &ports);
            let mut declared = Vec::new();
            if is_declared {
                for (id, loss) in losses.iter().filter(|(_, loss)| loss.direction == Some(direction)) {
                    let here =
                        !addresses.are_in(&addresses.minus(&loss.addresses)) && meet(&ports, &loss.ports);
                    if here && !declared.contains(&(id.clone(), loss.kind)) {
                        declared.push((id.clone(), loss.kind));
                    }
                }
            }
            differences.push(Difference {
                pods: self.pods.iter().map(|name| (*name).clone()).collect(),
                direction,
                addresses,
                reason: self.reason(&flow),
                flow,
                ports,
                declared,
            });
        }
        differences
    }

    /// Says what each side thinks of a flow.
    fn reason(&self, flow: &Flow) -> String {
        let answer = simulate(self.compiled, flow, self.now);
        let by = answer
            .rule
            .map_or_else(String::new, |rule| format!(" by {} of {}", rule.part.as_str(), rule.policy));
        let kernel = format!("kernel: {} ({}{by})", answer.verdict.as_str(), answer.reason.as_str());
        let list = &self.reading.objects.list;
        let objects = if self.case.host_network {
            "no NetworkPolicy is about pods with the node's network".to_owned()
        } else if self.case.objects.is_empty() {
            "no object selects the pod".to_owned()
        } else if let Some((object, rule)) = self.reading.allowing(&self.case.objects, flow) {
            format!("allowed by egress[{rule}] of {}", list[object].id.name)
        } else if self.is_own_node(flow.destination) {
            "allowed, the pod's own node".to_owned()
        } else {
            let names: Vec<&str> = self.case.objects.iter().map(|at| list[*at].id.name.as_str()).collect();
            format!("not allowed by {}", names.join(", "))
        };
        format!("{kernel}; objects: {objects}")
    }

    fn is_own_node(&self, address: IpAddr) -> bool {
        self.reading.cluster.nodes.get(self.case.node).is_some_and(|node| node.addresses.contains(&address))
    }
}

/// Returns the layer of what was declared in one direction.
fn declared(losses: &[(PolicyId, Loss)], direction: Direction, sets: &mut Sets) -> Layer {
    let mut layer = Layer::default();
    for (_, loss) in losses.iter().filter(|(_, loss)| loss.direction == Some(direction)) {
        if !loss.ports.is_empty() {
            let set = sets.number(loss.ports.clone());
            layer.add_all(&loss.addresses, set);
        }
    }
    layer
}

/// Returns what a list of ports lets pass, names as `pod` has them.
fn ranges(ports: &[PortSpec], pod: Option<&Pod>) -> Ranges {
    if ports.is_empty() {
        return vec![EVERYTHING];
    }
    let mut ranges = Ranges::new();
    for item in ports {
        let key = |port| port_key(item.protocol.number(), port);
        match &item.port {
            PortMatch::Any => ranges.push((key(0), key(u16::MAX))),
            PortMatch::Range(first, last) => ranges.push((key(*first), key(*last))),
            PortMatch::Name(name) => {
                for port in pod.into_iter().flat_map(|pod| pod.ports.iter()) {
                    if port.name == *name && port.protocol == item.protocol {
                        ranges.push((key(port.port), key(port.port)));
                    }
                }
            }
        }
    }
    joined(ranges)
}

/// Returns ranges in order, those that touch joined.
fn joined(mut ranges: Ranges) -> Ranges {
    ranges.sort_unstable();
    let mut joined = Ranges::new();
    for (low, high) in ranges {
        match joined.last_mut() {
            Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
            _ => joined.push((low, high)),
        }
    }
    joined
}

/// Returns what is in `one` and not in `other`; both are in order.
fn without(one: &[Range], other: &[Range]) -> Ranges {
    let mut left = Ranges::new();
    let mut holes = other.iter().peekable();
    for &(low, high) in one {
        let mut start = low;
        loop {
            while holes.next_if(|hole| hole.1 < start).is_some() {}
            match holes.peek() {
                Some(hole) if hole.0 <= high => {
                    if hole.0 > start {
                        left.push((start, hole.0 - 1));
                    }
                    if hole.1 >= high {
                        break;
                    }
                    start = hole.1 + 1;
                }
                _ => {
                    left.push((start, high));
                    break;
                }
            }
        }
    }
    left
}

fn meet(one: &[Range], other: &[Range]) -> bool {
    one.iter().any(|(low, high)| other.iter().any(|(from, to)| from <= high && low <= to))
}

/// Cuts `whole` into stretches, each with the set of the innermost of `nested` that it lies in, or `outside`.
fn flattened(
    mut nested: Vec<(u128, u128, u32)>,
    whole: (u128, u128),
    outside: u32,
) -> Vec<(u128, u128, u32)> {
    nested.sort_unstable_by_key(|(first, last, _)| (*first, std::cmp::Reverse(*last)));
    let mut flat = Vec::with_capacity(2 * nested.len() + 1);
    // Those around the present place, the innermost last; `next` is the first address not yet in `flat`, `None` behind the last.
    let mut around: Vec<(u128, u32)> = vec![(whole.1, outside)];
    let mut next = Some(whole.0);
    let until = |flat: &mut Vec<(u128, u128, u32)>, next: &mut Option<u128>, last: u128, set: u32| {
        if let Some(first) = *next
            && first <= last
        {
            flat.push((first, last, set));
            *next = last.checked_add(1);
        }
    };
    for (first, last, set) in nested {
        while let Some(&(end, outer)) = around.last()
            && end < first
        {
            until(&mut flat, &mut next, end, outer);
            around.pop();
        }
        if let Some(&(_, outer)) = around.last()
            && first > 0
        {
            until(&mut flat, &mut next, first - 1, outer);
        }
        around.push((last, set));
    }
    while let Some((end, outer)) = around.pop() {
        until(&mut flat, &mut next, end, outer);
    }
    flat
}

/// Cuts the line of addresses wherever a layer changes, and returns what each part looks like.
fn sweep(layers: &[Layer; 4], sets: &mut Sets) -> Vec<(u128, u128, Part)> {
    // Where, which layer, which set, and whether it begins there.
    let mut events: Vec<(u128, usize, u32, bool)> = Vec::new();
    for (layer, Layer { stretches }) in layers.iter().enumerate() {
        for &(first, last, set) in stretches {
            events.push((first, layer, set, true));
            events.extend(last.checked_add(1).map(|after| (after, layer, set, false)));
        }
    }
    events.sort_unstable();
    let mut active: [BTreeMap<u32, u32>; 4] = Default::default();
    let mut unions: HashMap<Vec<u32>, u32> = HashMap::new();
    let nothing = sets.number(Ranges::new());
    let mut part: Part = [nothing; 4];
    let mut parts: Vec<(u128, u128, Part)> = Vec::with_capacity(events.len());
    let mut start = 0;
    let mut at = 0;
    while at < events.len() {
        let here = events[at].0;
        if here > start {
            push(&mut parts, start, here - 1, part);
        }
        let mut touched = [false; 4];
        while at < events.len() && events[at].0 == here {
            let (_, layer, set, begins) = events[at];
            touched[layer] = true;
            let count = active[layer].entry(set).or_default();
            // What ends here began before.
            *count = if begins { *count + 1 } else { *count - 1 };
            at += 1;
        }
        for layer in (0..4).filter(|layer| touched[*layer]) {
            active[layer].retain(|_, count| *count > 0);
            let key: Vec<u32> = active[layer].keys().copied().collect();
            part[layer] = match unions.get(&key) {
                Some(union) => *union,
                None => {
                    let all = key.iter().flat_map(|set| sets.list[*set as usize].iter().copied()).collect();
                    let union = sets.number(joined(all));
                    unions.insert(key, union);
                    union
                }
            };
        }
        start = here;
    }
    push(&mut parts, start, u128::MAX, part);
    parts
}

/// Appends a part, to the last one if it looks the same.
fn push(parts: &mut Vec<(u128, u128, Part)>, first: u128, last: u128, part: Part) {
    match parts.last_mut() {
        // The families are told apart.
        Some(before) if before.2 == part && first != V4 && first != V4_LAST + 1 => before.1 = last,
        _ => parts.push((first, last, part)),
    }
}

/// Returns stretches of the line as addresses.
fn addresses(stretches: &[(u128, u128)]) -> Addresses {
    let mut nets: Vec<IpNet> = Vec::new();
    for &(first, last) in stretches {
        for (from, to, v4) in [
            (first, last.min(V4 - 1), false),
            (first.max(V4), last.min(V4_LAST), true),
            (first.max(V4_LAST + 1), last, false),
        ] {
            if from > to {
                continue;
            }
            let number = |place: u128| u32::try_from(place & 0xffff_ffff).expect("it has 32 bits");
            if v4 {
                let (from, to) = (number(from).into(), number(to).into());
                nets.extend(ipnet::Ipv4Subnets::new(from, to, 0).map(IpNet::from));
            } else {
                let (from, to) = (Ipv6Addr::from_bits(from), Ipv6Addr::from_bits(to));
                nets.extend(ipnet::Ipv6Subnets::new(from, to, 0).map(IpNet::from));
            }
        }
    }
    Addresses::of_nets(&nets)
}

/// Returns a flow to an address on one of `ports`: such as people have, if one is there.
fn example(place: u128, ports: &[Range]) -> Flow {
    let destination = address(place);
    let likely = [(Protocol::Tcp, 443), (Protocol::Tcp, 80), (Protocol::Udp, 53), (Protocol::Icmp, 0)];
    let likely = likely.map(|(protocol, port)| port_key(protocol.number(), port));
    let has = |key: u32| ports.iter().any(|(low, high)| *low <= key && key <= *high);
    let spoken =
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| port_key(protocol.number(), 1));
    let first = spoken.into_iter().find_map(|one| {
        let last = one | 0xffff;
        ports.iter().map(|(low, high)| (*low.max(&one), *high.min(&last))).find(|(low, high)| low <= high)
    });
    let key = likely.into_iter().find(|key| has(*key)).or(first.map(|(low, _)| low)).unwrap_or(ports[0].0);
    let number = u8::try_from(key >> 16).expect("a key has eight bits of protocol");
    // On the wire ICMP has another number over IPv6.
    let protocol = if destination.is_ipv6() && number == normal_protocol(58, true) { 58 } else { number };
    Flow { destination, protocol, port: u16::try_from(key & 0xffff).expect("it has 16 bits") }
}

/// Returns ranges in words, such as `TCP 80, UDP 1-1024`.
#[must_use]
pub fn shown(ports: &[Range]) -> String {
    if *ports == [EVERYTHING] {
        return "every protocol".to_owned();
    }
    let mut words = Vec::new();
    let mut others = false;
    for &(low, high) in ports {
        for protocol in (low >> 16)..=(high >> 16) {
            let name = match u8::try_from(protocol).expect("a key has eight bits of protocol") {
                6 => "TCP",
                17 => "UDP",
                132 => "SCTP",
                1 => "ICMP",
                _ => {
                    others = true;
                    continue;
                }
            };
            let first = if low >> 16 == protocol { low & 0xffff } else { 0 };
            let last = if high >> 16 == protocol { high & 0xffff } else { 0xffff };
            words.push(match (first, last) {
                (0, 0xffff) => name.to_owned(),
                _ if first == last => format!("{name} {first}"),
                _ => format!("{name} {first}-{last}"),
            });
        }
    }
    if others {
        words.push("other protocols".to_owned());
    }
    words.join(", ")
}

#[cfg(test)]
mod tests;
