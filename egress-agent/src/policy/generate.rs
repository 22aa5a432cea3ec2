//! Random clusters and flows for property tests, with rare shapes made frequent.
//!
//! Everything is drawn from small pools, so that addresses, prefixes, ports and labels of unrelated objects collide. Flows
//! are aimed: most go to an address that occurs in the cluster or its policies, or to one next to it. Whatever refers to
//! another object is drawn as an index and resolved at the end, so that a failing scenario shrinks part by part.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::{
    collection::vec,
    option,
    prelude::{Just, Strategy, any, prop_oneof},
    sample::{Index, select, subsequence},
    strategy::{BoxedStrategy, Union},
};

use super::{
    cluster::{
        Cluster, EndpointPort, EndpointSlice, InvalidPolicy, Labels, Local, NamedPort, Node, NsName, Pod,
        Service, ServicePort, Settings,
    },
    flow::Flow,
    model::{
        Cloud, DefaultAction, Effect, Entity, Governance, LabelSelector, Mode, Operator, Peer, Policy,
        PolicyId, PolicyKind, PortMatch, PortSpec, Ports, Protocol, Requirement, Rule, Unresolved,
        is_v4_mapped,
    },
};

/// A cluster, a pod of it, and flows it may want to start.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The cluster.
    pub cluster: Cluster,
    /// How the agent runs.
    pub settings: Settings,
    /// The pod that sends; it is in the cluster.
    pub pod: NsName,
    /// Seconds since the epoch, UTC. Expiries lie at, just before and just after it.
    pub now: u64,
    /// Where it sends. Never to a v4-mapped address, and with port 0 where the protocol has no ports.
    pub flows: Vec<Flow>,
}

/// Namespaces of pods and policies. `gamma` may be missing from [`Cluster::namespaces`].
const NAMESPACES: [&str; 3] = ["alpha", "beta", "gamma"];
const NODES: [&str; 2] = ["node-1", "node-2"];
const PORT_NAMES: [&str; 3] = ["http", "dns", "web"];
const PORT_NUMBERS: [u16; 6] = [1, 53, 80, 443, 8080, 65535];

/// Addresses at the edges of blocks with a meaning of their own.
const SPECIAL_V4: [[u8; 4]; 14] = [
    [0, 0, 0, 0],
    [0, 255, 255, 255],
    [1, 0, 0, 0],
    [127, 0, 0, 1],
    [127, 255, 255, 255],
    [128, 0, 0, 0],
    [169, 254, 20, 10],
    [169, 254, 169, 254],
    [169, 255, 0, 0],
    [223, 255, 255, 255],
    [224, 0, 0, 1],
    [239, 255, 255, 255],
    [240, 0, 0, 0],
    [255, 255, 255, 255],
];

const SPECIAL_V6: [[u16; 8]; 12] = [
    [0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 1],
    [0, 0, 0, 0, 0, 0, 0, 2],
    [0, 0, 0, 0, 0, 0xfffe, 0xffff, 0xffff],
    [0, 0, 0, 0, 0, 1, 0, 1],
    [0xfe7f, 0, 0, 0, 0, 0, 0, 1],
    [0xfe80, 0, 0, 0, 0, 0, 0, 1],
    [0xfebf, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff],
    [0xff00, 0, 0, 0, 0, 0, 0, 0],
    [0xff02, 0, 0, 0, 0, 0, 0, 1],
    [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254],
    [0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff],
];

fn v4(octets: [u8; 4]) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(octets))
}

fn v6(prefix: [u16; 7], last: u16) -> IpAddr {
    let [a, b, c, d, e, f, g] = prefix;
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, last))
}

fn pod_v4() -> impl Strategy<Value = IpAddr> {
    (0..16_u8).prop_map(|last| v4([10, 0, 0, last]))
}

fn pod_v6() -> impl Strategy<Value = IpAddr> {
    (0..8_u16).prop_map(|last| v6([0xfd00, 0, 0, 0, 0, 0, 0], last))
}

fn cluster_ip_v4() -> impl Strategy<Value = IpAddr> {
    (0..8_u8).prop_map(|last| v4([10, 96, 0, last]))
}

fn cluster_ip_v6() -> impl Strategy<Value = IpAddr> {
    (0..4_u16).prop_map(|last| v6([0xfd00, 0x10, 0x96, 0, 0, 0, 0], last))
}

/// Any address of the pools.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        6 => pod_v4(),
        2 => pod_v6(),
        2 => cluster_ip_v4(),
        1 => cluster_ip_v6(),
        3 => (0..8_u8).prop_map(|last| v4([192, 0, 2, last])),
        1 => (0..4_u16).prop_map(|last| v6([0x2001, 0xdb8, 0, 0, 0, 0, 0], last)),
        2 => (1..4_u8).prop_map(|last| v4([172, 16, 0, last])),
        2 => select(&SPECIAL_V4[..]).prop_map(v4),
        1 => select(&SPECIAL_V6[..]).prop_map(|segments| IpAddr::V6(Ipv6Addr::from(segments))),
    ]
}

/// A prefix around an address of the pools, often one that holds or equals others. Never a v4-mapped one.
fn prefix() -> impl Strategy<Value = IpNet> {
    let length_v4 = prop_oneof![
        2 => Just(0_u8), 3 => Just(8), 4 => Just(24), 1 => 25..30_u8, 3 => Just(30), 2 => Just(31), 4 => Just(32), 1 => 1..24_u8,
    ];
    let length_v6 = prop_oneof![
        2 => Just(0_u8), 2 => Just(64), 1 => Just(96), 1 => Just(97), 2 => Just(120), 2 => Just(127), 3 => Just(128),
        1 => 1..128_u8,
    ];
    (address(), length_v4, length_v6).prop_map(|(address, length_v4, length_v6)| {
        let net = match address {
            IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new(v4, length_v4).expect("at most 32").trunc()),
            IpAddr::V6(v6) => IpNet::V6(Ipv6Net::new(v6, length_v6).expect("at most 128").trunc()),
        };
        assert!(!is_v4_mapped(&net), "the pools hold nothing in IPv4's room");
        net
    })
}

fn labels() -> impl Strategy<Value = Labels> {
    (option::of(select(&["x", "y"][..])), option::of(select(&["1", "2"][..]))).prop_map(|(app, tier)| {
        let app = app.map(|value| ("app".to_owned(), value.to_owned()));
        let tier = tier.map(|value| ("tier".to_owned(), value.to_owned()));
        app.into_iter().chain(tier).collect()
    })
}

/// A selector over [`labels`], half of the time one that holds for everything.
fn selector() -> impl Strategy<Value = LabelSelector> {
    let one = || select(&[("app", "x"), ("app", "y"), ("tier", "1"), ("tier", "2")][..]);
    prop_oneof![
        4 => Just(LabelSelector::default()),
        2 => one().prop_map(|(key, value)| matching(&[(key, value)])),
        1 => (one(), one()).prop_map(|(a, b)| matching(&[a, b])),
        2 => (one(), requirement()).prop_map(|((key, _), operator)| requiring(key, operator)),
        1 => (one(), one(), requirement()).prop_map(|(label, (key, _), operator)| LabelSelector {
            match_labels: matching(&[label]).match_labels,
            match_expressions: requiring(key, operator).match_expressions,
        }),
    ]
}

fn requirement() -> impl Strategy<Value = Operator> {
    let values = || subsequence(vec!["x".to_owned(), "1".to_owned(), "2".to_owned()], 1..=3);
    prop_oneof![
        values().prop_map(Operator::In),
        values().prop_map(Operator::NotIn),
        Just(Operator::Exists),
        Just(Operator::DoesNotExist),
    ]
}

fn matching(labels: &[(&str, &str)]) -> LabelSelector {
    let match_labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    LabelSelector { match_labels, match_expressions: Vec::new() }
}

fn requiring(key: &str, operator: Operator) -> LabelSelector {
    LabelSelector {
        match_labels: Vec::new(),
        match_expressions: vec![Requirement { key: key.to_owned(), operator }],
    }
}

/// A selector of namespaces: by team, by the name every namespace carries as a label, or all.
fn namespace_selector() -> impl Strategy<Value = LabelSelector> {
    prop_oneof![
        3 => Just(LabelSelector::default()),
        2 => select(&["x", "y"][..]).prop_map(|team| matching(&[("team", team)])),
        2 => select(&NAMESPACES[..]).prop_map(|name| matching(&[("kubernetes.io/metadata.name", name)])),
        1 => requirement().prop_map(|operator| requiring("team", operator)),
    ]
}

fn transport() -> impl Strategy<Value = Protocol> {
    prop_oneof![5 => Just(Protocol::Tcp), 3 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn port_number() -> impl Strategy<Value = u16> {
    select(&PORT_NUMBERS[..])
}

fn port_name() -> impl Strategy<Value = String> {
    select(&PORT_NAMES[..]).prop_map(str::to_owned)
}

fn port_spec() -> impl Strategy<Value = PortSpec> {
    let numbered = |protocol, port| PortSpec { protocol, port };
    prop_oneof![
        5 => (transport(), port_number()).prop_map(move |(protocol, port)| numbered(protocol, PortMatch::Range(port, port))),
        3 => (transport(), port_number(), port_number()).prop_map(move |(protocol, a, b)| {
            numbered(protocol, PortMatch::Range(a.min(b), a.max(b)))
        }),
        2 => transport().prop_map(move |protocol| numbered(protocol, PortMatch::Any)),
        2 => transport().prop_map(move |protocol| numbered(protocol, PortMatch::Range(1, u16::MAX))),
        3 => (transport(), port_name()).prop_map(move |(protocol, name)| numbered(protocol, PortMatch::Name(name))),
        2 => Just(PortSpec { protocol: Protocol::Icmp, port: PortMatch::Any }),
    ]
}

fn ports() -> impl Strategy<Value = Ports> {
    prop_oneof![2 => Just(Ports::All), 5 => vec(port_spec(), 1..=3).prop_map(Ports::List)]
}

fn service_name() -> impl Strategy<Value = NsName> {
    prop_oneof![
        6 => (select(&NAMESPACES[..2]), 0..2_usize).prop_map(|(namespace, index)| NsName::new(namespace, format!("svc-{index}"))),
        1 => Just(NsName::new("kube-system", "kube-dns")),
        1 => Just(NsName::new("default", "kubernetes")),
        1 => Just(NsName::new("alpha", "missing")),
    ]
}

/// A cloud's service with addresses, some with domains and ports of its own.
fn cloud() -> impl Strategy<Value = Cloud> {
    let ports = prop_oneof![2 => Just(None), 1 => ports().prop_map(Some)];
    (vec(prefix(), 0..=4), any::<bool>(), ports).prop_map(|(cidrs, with_domain, ports)| Cloud {
        what: Unresolved::AwsService { service: "s3".to_owned(), regions: Vec::new() },
        cidrs: IpNet::aggregate(&cidrs).into(),
        domains: if with_domain { vec!["s3.example.com".to_owned()] } else { Vec::new() },
        ports,
    })
}

fn peer() -> impl Strategy<Value = Peer> {
    let unresolved = prop_oneof![
        Just(Unresolved::AwsService { service: "s3".to_owned(), regions: Vec::new() }),
        Just(Unresolved::Cloud {
            provider: "gcp".to_owned(),
            services: Vec::new(),
            regions: vec!["eu".to_owned()]
        }),
        Just(Unresolved::Cloud {
            provider: "custom".to_owned(),
            services: vec!["mine".to_owned()],
            regions: Vec::new()
        }),
        Just(Unresolved::Domains(vec!["*.example.com".to_owned()])),
    ];
    prop_oneof![
        2 => Just(Peer::Any),
        8 => (vec(prefix(), 1..=3), prop_oneof![2 => Just(Vec::new()), 1 => vec(prefix(), 1..=3)])
            .prop_map(|(cidrs, except)| Peer::Cidrs { cidrs, except }),
        5 => (option::of(namespace_selector()), option::of(selector()))
            .prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods }),
        3 => service_name().prop_map(Peer::Service),
        4 => select(&[Entity::ClusterDns, Entity::KubeApiserver, Entity::Node, Entity::World][..]).prop_map(Peer::Entity),
        1 => unresolved.prop_map(Peer::Unresolved),
        2 => cloud().prop_map(|cloud| Peer::Cloud(Arc::new(cloud))),
    ]
}

/// A rule before its policy names it: expiry is relative to the scenario's time.
#[derive(Clone, Debug)]
struct DraftRule {
    denies: bool,
    peers: Vec<Peer>,
    ports: Ports,
    expires: Option<i64>,
}

fn draft_rule() -> impl Strategy<Value = DraftRule> {
    let expires = prop_oneof![
        4 => Just(None), 2 => Just(Some(-1)), 2 => Just(Some(0)), 2 => Just(Some(1)), 1 => Just(Some(2)), 1 => Just(Some(-86_400)),
        1 => Just(Some(86_400)),
    ];
    let peers = prop_oneof![3 => vec(peer(), 1..=1), 1 => vec(peer(), 2..=3)];
    (proptest::bool::weighted(0.25), peers, ports(), expires)
        .prop_map(|(denies, peers, ports, expires)| DraftRule { denies, peers, ports, expires })
}

/// A policy before it has a name.
#[derive(Clone, Debug)]
struct DraftPolicy {
    /// Whether it lives in the namespace of the pod that is asked about.
    at_home: bool,
    namespace: &'static str,
    network: bool,
    audit: bool,
    default_allow: bool,
    cluster_dns: bool,
    selector: LabelSelector,
    rules: Vec<DraftRule>,
}

fn draft_policy() -> impl Strategy<Value = DraftPolicy> {
    let chance = proptest::bool::weighted;
    let traits = (chance(0.85), select(&NAMESPACES[..]), chance(0.25), chance(0.5), chance(0.4), chance(0.7));
    let selector = prop_oneof![1 => Just(LabelSelector::default()), 1 => selector()];
    (traits, selector, vec(draft_rule(), 0..=6)).prop_map(|(traits, selector, rules)| {
        let (at_home, namespace, network, audit, default_allow, cluster_dns) = traits;
        DraftPolicy { at_home, namespace, network, audit, default_allow, cluster_dns, selector, rules }
    })
}

impl DraftPolicy {
    fn finish(self, index: usize, home: &str, now: u64) -> Policy {
        let namespace = if self.at_home { home } else { self.namespace };
        // Names run against the order of drawing, so that policy order is not insertion order.
        let id = NsName::new(namespace, format!("policy-{}", 9 - index));
        let kind = if self.network { PolicyKind::NetworkPolicy } else { PolicyKind::ConfigMap };
        let mut rules: Vec<Rule> = self
            .rules
            .into_iter()
            .enumerate()
            .map(|(index, draft)| Rule {
                name: if self.network { format!("egress[{index}]") } else { format!("rule-{}", 9 - index) },
                effect: if draft.denies && !self.network { Effect::Deny } else { Effect::Allow },
                peers: draft.peers,
                ports: draft.ports,
                expires: draft
                    .expires
                    .filter(|_| !self.network)
                    .map(|offset| now.saturating_add_signed(offset)),
                governance: Governance::default(),
            })
            .collect();
        rules.sort_by_key(|rule| rule.effect == Effect::Deny);
        Policy {
            id: PolicyId { kind, id },
            mode: if self.audit && !self.network { Mode::Audit } else { Mode::Enforce },
            default_action: if self.default_allow && !self.network {
                DefaultAction::Allow
            } else {
                DefaultAction::Deny
            },
            selector: self.selector,
            cluster_dns: self.cluster_dns && !self.network,
            own_node: self.network,
            rules,
        }
    }
}

/// A pod before it knows its node's addresses.
#[derive(Clone, Debug)]
struct DraftPod {
    namespace: &'static str,
    labels: Labels,
    /// An index into [`NODES`]; beyond it, the pod is bound to none.
    node: usize,
    ips: Vec<IpAddr>,
    host_network: bool,
    finished: bool,
    ports: Vec<NamedPort>,
}

fn draft_pod() -> impl Strategy<Value = DraftPod> {
    let ips = prop_oneof![
        4 => pod_v4().prop_map(|ip| vec![ip]),
        3 => (pod_v4(), pod_v6()).prop_map(|(first, second)| vec![first, second]),
        1 => pod_v6().prop_map(|ip| vec![ip]),
        1 => Just(Vec::new()),
    ];
    let named = (port_name(), transport(), port_number()).prop_map(|(name, protocol, port)| NamedPort {
        name,
        protocol,
        port,
    });
    let node = prop_oneof![6 => Just(0), 4 => Just(1), 1 => Just(2)];
    let chance = proptest::bool::weighted;
    (select(&NAMESPACES[..]), labels(), node, ips, chance(0.12), chance(0.1), vec(named, 0..=3)).prop_map(
        |(namespace, labels, node, ips, host_network, finished, ports)| DraftPod {
            namespace,
            labels,
            node,
            ips,
            host_network,
            finished,
            ports,
        },
    )
}

impl DraftPod {
    fn finish(self, index: usize, nodes: &BTreeMap<String, Node>) -> (NsName, Pod) {
        let name = NsName::new(self.namespace, format!("pod-{index}"));
        let node = NODES.get(self.node).copied().unwrap_or("").to_owned();
        let ips = match nodes.get(&node) {
            Some(home) if self.host_network => home.addresses.clone(),
            _ => self.ips,
        };
        let pod = Pod {
            labels: self.labels,
            ips: ips.into_iter().collect(),
            host_network: self.host_network,
            finished: self.finished,
            ports: self.ports.into(),
            local: Some(Box::new(Local {
                uid: format!("uid-{index}"),
                static_hash: String::new(),
                node,
                workload: format!("deployment/d-{index}"),
            })),
        };
        (name, pod)
    }
}

/// An address that may get a Service's traffic: one of a pod, or any.
#[derive(Clone, Debug)]
enum DraftEndpoint {
    Pod(Index),
    Other(IpAddr),
}

fn draft_endpoint() -> impl Strategy<Value = DraftEndpoint> {
    prop_oneof![8 => any::<Index>().prop_map(DraftEndpoint::Pod), 1 => address().prop_map(DraftEndpoint::Other)]
}

/// A slice before it knows the Service's ports. Each port of the Service is left out, or has a target.
#[derive(Clone, Debug)]
struct DraftSlice {
    targets: Vec<Option<Option<u16>>>,
    stray: Option<EndpointPort>,
    endpoints: Vec<DraftEndpoint>,
}

fn draft_slice() -> impl Strategy<Value = DraftSlice> {
    let target = prop_oneof![1 => Just(None), 6 => port_number().prop_map(|port| Some(Some(port))), 2 => Just(Some(None))];
    let stray = (port_name(), transport(), option::of(port_number()))
        .prop_map(|(name, protocol, port)| EndpointPort { name, protocol, port });
    (vec(target, 2..=2), option::weighted(0.1, stray), vec(draft_endpoint(), 0..=3))
        .prop_map(|(targets, stray, endpoints)| DraftSlice { targets, stray, endpoints })
}

/// A Service with its slices.
#[derive(Clone, Debug)]
struct DraftService {
    cluster_ips: Vec<IpAddr>,
    ports: Vec<(Protocol, u16)>,
    external: bool,
    slices: Vec<DraftSlice>,
}

fn draft_service() -> impl Strategy<Value = DraftService> {
    let cluster_ips = prop_oneof![
        4 => cluster_ip_v4().prop_map(|ip| vec![ip]),
        3 => (cluster_ip_v4(), cluster_ip_v6()).prop_map(|(first, second)| vec![first, second]),
        1 => cluster_ip_v6().prop_map(|ip| vec![ip]),
        1 => Just(Vec::new()),
    ];
    let ports = prop_oneof![
        1 => Just(Vec::new()),
        4 => vec((transport(), port_number()), 1..=1),
        4 => vec((transport(), port_number()), 2..=2),
    ];
    (cluster_ips, ports, proptest::bool::weighted(0.05), vec(draft_slice(), 0..=3)).prop_map(
        |(cluster_ips, ports, external, slices)| DraftService { cluster_ips, ports, external, slices },
    )
}

impl DraftService {
    /// Gives it the port every Service of this role has.
    fn with_port(mut self, protocol: Protocol, port: u16) -> Self {
        self.ports.insert(0, (protocol, port));
        self.ports.truncate(2);
        self.external = false;
        self
    }

    fn finish(self, name: &NsName, cluster: &mut Cluster, pod_ips: &[IpAddr]) {
        let several = self.ports.len() > 1;
        let ports: Vec<ServicePort> = self
            .ports
            .iter()
            .zip(PORT_NAMES)
            .map(|((protocol, port), name)| ServicePort {
                name: if several { name.to_owned() } else { String::new() },
                protocol: *protocol,
                port: *port,
            })
            .collect();
        for (index, draft) in self.slices.into_iter().enumerate() {
            let behind = ports.iter().zip(draft.targets).filter_map(|(port, target)| {
                let port = EndpointPort { name: port.name.clone(), protocol: port.protocol, port: target? };
                Some(port)
            });
            let addresses: BTreeSet<IpAddr> = draft
                .endpoints
                .into_iter()
                .filter_map(|endpoint| match endpoint {
                    DraftEndpoint::Pod(_) if pod_ips.is_empty() => None,
                    DraftEndpoint::Pod(index) => Some(*index.get(pod_ips)),
                    DraftEndpoint::Other(address) => Some(address),
                })
                .collect();
            let slice = EndpointSlice {
                service: name.name.clone(),
                ports: behind.chain(draft.stray).collect(),
                addresses: addresses.into_iter().collect(),
            };
            cluster
                .slices
                .insert(NsName::new(name.namespace.clone(), format!("{}-{index}", name.name)), slice);
        }
        let service = Service {
            cluster_ips: if self.external { Vec::new() } else { self.cluster_ips },
            ports,
            external_name: self.external.then(|| "db.example.com".to_owned()),
        };
        cluster.services.insert(name.clone(), service);
    }
}

/// All Services there may be, each absent at times.
fn draft_services() -> impl Strategy<Value = Vec<(NsName, DraftService)>> {
    let mut slots: Vec<BoxedStrategy<Option<(NsName, DraftService)>>> = Vec::new();
    for namespace in &NAMESPACES[..2] {
        for index in 0..2 {
            let name = NsName::new(*namespace, format!("svc-{index}"));
            let named = draft_service().prop_map(move |service| (name.clone(), service));
            slots.push(option::weighted(0.6, named).boxed());
        }
    }
    let dns = draft_service()
        .prop_map(|service| (NsName::new("kube-system", "kube-dns"), service.with_port(Protocol::Udp, 53)));
    let api = draft_service()
        .prop_map(|service| (NsName::new("default", "kubernetes"), service.with_port(Protocol::Tcp, 443)));
    slots.push(option::weighted(0.85, dns).boxed());
    slots.push(option::weighted(0.85, api).boxed());
    slots.prop_map(|services| services.into_iter().flatten().collect())
}

fn nodes() -> impl Strategy<Value = BTreeMap<String, Node>> {
    let node = |last: u8| {
        let second =
            option::weighted(0.3, (1..4_u16).prop_map(|last| v6([0xfd00, 0x172, 0, 0, 0, 0, 0], last)));
        let cidrs = vec(prefix(), 0..=1);
        (second, cidrs, proptest::bool::weighted(0.7)).prop_map(move |(second, mut pod_cidrs, usual)| {
            if usual {
                let block = Ipv4Net::new(Ipv4Addr::new(10, 0, 0, (last - 1) * 8), 29).expect("at most 32");
                pod_cidrs.push(IpNet::V4(block));
            }
            Node { addresses: [v4([172, 16, 0, last])].into_iter().chain(second).collect(), pod_cidrs }
        })
    };
    (option::weighted(0.95, node(1)), option::weighted(0.9, node(2))).prop_map(|(first, second)| {
        let named = NODES.iter().zip([first, second]);
        named.filter_map(|(name, node)| Some(((*name).to_owned(), node?))).collect()
    })
}

fn namespaces() -> impl Strategy<Value = BTreeMap<String, Labels>> {
    let team = || option::of(select(&["x", "y"][..]));
    (vec(team(), 3), proptest::bool::weighted(0.5), proptest::bool::weighted(0.1)).prop_map(
        |(teams, third, renamed)| {
            let mut namespaces = BTreeMap::new();
            for (name, team) in NAMESPACES.iter().zip(teams).take(if third { 3 } else { 2 }) {
                let labels = team.into_iter().map(|team| ("team".to_owned(), team.to_owned())).collect();
                namespaces.insert((*name).to_owned(), labels);
            }
            if renamed {
                let labels: Labels = [("kubernetes.io/metadata.name".to_owned(), "alpha".to_owned())].into();
                namespaces.insert("beta".to_owned(), labels);
            }
            namespaces
        },
    )
}

fn settings() -> impl Strategy<Value = Settings> {
    let governed = prop_oneof![4 => Just(Vec::new()), 1 => subsequence(NAMESPACES.to_vec(), 1..=3)];
    let cluster_dns = prop_oneof![
        5 => Just(vec![NsName::new("kube-system", "kube-dns")]),
        1 => Just(vec![NsName::new("kube-system", "kube-dns"), NsName::new("alpha", "svc-0")]),
        1 => Just(Vec::new()),
    ];
    let dns_addresses = prop_oneof![
        4 => Just(Vec::new()), 2 => Just(vec![v4([169, 254, 20, 10])]), 1 => vec(address(), 1..=2),
    ];
    let cluster_cidrs = prop_oneof![3 => Just(Vec::new()), 1 => vec(prefix(), 1..=2)];
    let flags = (any::<bool>(), proptest::bool::weighted(0.3));
    (flags, governed, cluster_dns, dns_addresses, cluster_cidrs).prop_map(
        |((enforce_network_policy, ignore), governed, cluster_dns, cluster_dns_addresses, cluster_cidrs)| {
            Settings {
                enforce_network_policy,
                governed_namespaces: governed.into_iter().map(str::to_owned).collect(),
                invalid_policy: if ignore { InvalidPolicy::Ignore } else { InvalidPolicy::Deny },
                cluster_dns,
                cluster_dns_addresses,
                cluster_cidrs,
            }
        },
    )
}

/// Where a flow goes, before the cluster is there.
#[derive(Clone, Debug)]
enum Aim {
    /// At an address of the sending pod.
    Own(Index),
    /// At an address or prefix that occurs somewhere.
    Known(Index, Edge),
    /// Anywhere in the pools.
    Stray(IpAddr),
}

/// Which address of a prefix.
#[derive(Clone, Copy, Debug)]
enum Edge {
    First,
    Last,
    Before,
    After,
}

/// A flow before the cluster is there.
#[derive(Clone, Debug)]
struct DraftFlow {
    aim: Aim,
    protocol: u8,
    port: u16,
    /// Takes protocol and port from a port that occurs in the cluster in place of the drawn ones.
    known_port: Option<Index>,
}

fn draft_flow() -> impl Strategy<Value = DraftFlow> {
    let edge = prop_oneof![4 => Just(Edge::First), 2 => Just(Edge::Last), 1 => Just(Edge::Before), 1 => Just(Edge::After)];
    let aim = prop_oneof![
        1 => any::<Index>().prop_map(Aim::Own),
        16 => (any::<Index>(), edge).prop_map(|(index, edge)| Aim::Known(index, edge)),
        5 => address().prop_map(Aim::Stray),
    ];
    let protocol = Union::new_weighted(vec![
        (10, Just(6_u8)),
        (6, Just(17)),
        (2, Just(132)),
        (2, Just(1)),
        (2, Just(58)),
        (1, Just(47)),
    ]);
    let port = prop_oneof![
        8 => port_number(), 1 => Just(0), 1 => Just(2), 1 => Just(54), 1 => Just(442), 1 => Just(65534), 1 => any::<u16>(),
    ];
    (aim, protocol, port, option::weighted(0.3, any::<Index>()))
        .prop_map(|(aim, protocol, port, known_port)| DraftFlow { aim, protocol, port, known_port })
}

impl DraftFlow {
    fn finish(self, own: &[IpAddr], known: &[IpNet], ports: &[(Protocol, u16)]) -> Flow {
        let aimed = match self.aim {
            Aim::Own(index) if !own.is_empty() => *index.get(own),
            Aim::Own(_) => v4([127, 0, 0, 1]),
            Aim::Known(index, edge) if !known.is_empty() => edge_of(*index.get(known), edge),
            Aim::Known(..) => v4([192, 0, 2, 1]),
            Aim::Stray(address) => address,
        };
        // Next to a prefix may lie IPv4's room, to which no pod sends in IPv6 clothes.
        let destination = match aimed {
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            address => address,
        };
        let (protocol, port) = match self.known_port {
            Some(index) if !ports.is_empty() => {
                let (protocol, port) = *index.get(ports);
                (protocol.number(), port)
            }
            _ => (self.protocol, self.port),
        };
        let has_ports = [6, 17, 132].contains(&protocol);
        Flow { destination, protocol, port: if has_ports { port } else { 0 } }
    }
}

/// The address at one edge of a prefix; at the ends of the address space the search for a neighbour starts over.
fn edge_of(net: IpNet, edge: Edge) -> IpAddr {
    match (net.network(), net.broadcast()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => IpAddr::V4(match edge {
            Edge::First => first,
            Edge::Last => last,
            Edge::Before => Ipv4Addr::from(u32::from(first).wrapping_sub(1)),
            Edge::After => Ipv4Addr::from(u32::from(last).wrapping_add(1)),
        }),
        (IpAddr::V6(first), IpAddr::V6(last)) => IpAddr::V6(match edge {
            Edge::First => first,
            Edge::Last => last,
            Edge::Before => Ipv6Addr::from(u128::from(first).wrapping_sub(1)),
            Edge::After => Ipv6Addr::from(u128::from(last).wrapping_add(1)),
        }),
        (first, _) => first,
    }
}

/// Every address and prefix that occurs in a cluster.
fn known_addresses(cluster: &Cluster, settings: &Settings) -> Vec<IpNet> {
    let mut nets = Vec::new();
    let pods = cluster.pods.values().flat_map(|pod| pod.ips.iter());
    let services = cluster.services.values().flat_map(|service| &service.cluster_ips);
    let endpoints = cluster.slices.values().flat_map(|slice| &slice.addresses);
    let nodes = cluster.nodes.values().flat_map(|node| &node.addresses);
    let others = services.chain(endpoints).chain(nodes).chain(&settings.cluster_dns_addresses).copied();
    nets.extend(pods.chain(others).map(IpNet::from));
    nets.extend(&settings.cluster_cidrs);
    nets.extend(cluster.nodes.values().flat_map(|node| &node.pod_cidrs));
    for policy in cluster.policies.values() {
        for rule in &policy.rules {
            for peer in &rule.peers {
                if let Peer::Cidrs { cidrs, except } = peer {
                    nets.extend(cidrs);
                    nets.extend(except);
                }
            }
        }
    }
    nets
}

/// Every port that occurs in a cluster, on pods, Services and behind them.
fn known_ports(cluster: &Cluster) -> Vec<(Protocol, u16)> {
    let pods = cluster.pods.values().flat_map(|pod| pod.ports.iter().map(|port| (port.protocol, port.port)));
    let services = cluster.services.values();
    let services = services.flat_map(|service| service.ports.iter().map(|port| (port.protocol, port.port)));
    let slices = cluster.slices.values();
    let slices =
        slices.flat_map(|slice| slice.ports.iter().filter_map(|port| Some((port.protocol, port.port?))));
    pods.chain(services).chain(slices).collect()
}

/// A flow to each port of each ClusterIP.
fn fronts(cluster: &Cluster) -> Vec<Flow> {
    let services = cluster.services.values();
    let pairs = services.flat_map(|service| {
        service.cluster_ips.iter().flat_map(|address| service.ports.iter().map(move |port| (*address, port)))
    });
    pairs
        .map(|(destination, port)| Flow { destination, protocol: port.protocol.number(), port: port.port })
        .collect()
}

/// Returns a strategy for a cluster with a pod, and about thirty flows of that pod.
pub fn scenario() -> impl Strategy<Value = Scenario> {
    let broken = prop_oneof![8 => Just(None), 1 => select(&NAMESPACES[..]).prop_map(Some)];
    let cluster = (
        namespaces(),
        nodes(),
        vec(draft_pod(), 3..=6),
        draft_services(),
        prop_oneof![1 => Just(Vec::new()), 15 => vec(draft_policy(), 1..=5)],
        broken,
    );
    let to_fronts = vec(any::<Index>(), 0..=6);
    let asked = (any::<Index>(), 1_800_000_000..1_800_000_003_u64, vec(draft_flow(), 24..=36), to_fronts);
    (cluster, settings(), asked).prop_map(|(cluster, settings, (asked, now, flows, to_fronts))| {
        let (namespaces, nodes, pods, services, policies, broken) = cluster;
        let pods = pods.into_iter().enumerate().map(|(index, pod)| pod.finish(index, &nodes)).collect();
        let nodes = nodes.into_iter().collect();
        let mut cluster = Cluster { namespaces, nodes, pods, ..Cluster::default() };
        let names: Vec<NsName> = cluster.pods.keys().map(NsName::from).collect();
        let pod = asked.get(&names).clone();
        let pod_ips: Vec<IpAddr> = cluster.pods.values().flat_map(|pod| pod.ips.iter()).collect();
        for (name, service) in services {
            service.finish(&name, &mut cluster, &pod_ips);
        }
        for (index, policy) in policies.into_iter().enumerate() {
            let policy = policy.finish(index, &pod.namespace, now);
            cluster.policies.insert(policy.id.clone(), Arc::new(policy));
        }
        cluster.broken.extend(broken.map(|namespace| NsName::new(namespace, "policy-7-broken")));
        let own: Vec<IpAddr> = cluster.pods[&pod].ips.iter().collect();
        let known = known_addresses(&cluster, &settings);
        let ports = known_ports(&cluster);
        let mut flows: Vec<Flow> = flows.into_iter().map(|flow| flow.finish(&own, &known, &ports)).collect();
        let fronts = fronts(&cluster);
        if !fronts.is_empty() {
            flows.extend(to_fronts.iter().map(|index| *index.get(&fronts)));
        }
        Scenario { cluster, settings, pod, now, flows }
    })
}
