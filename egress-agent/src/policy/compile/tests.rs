use std::net::{IpAddr, Ipv4Addr};

use egress_common::{
    policy::{TCP, UDP},
    verdict::{Reason, Verdict},
};
use ipnet::IpNet;

use super::*;
use crate::policy::{
    cluster::{EndpointPort, EndpointSlice, Labels, Local, NamedPort, Node, Service, ServicePort},
    flow::Flow,
    model::{Governance, Rule, Unresolved},
    simulate::simulate,
};

const NOW: u64 = 1_000;

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn tcp(first: u16, last: u16) -> PortSpec {
    PortSpec { protocol: Protocol::Tcp, port: PortMatch::Range(first, last) }
}

fn tcp_ports(ports: &[u16]) -> Ports {
    Ports::List(ports.iter().map(|port| tcp(*port, *port)).collect())
}

fn named(name: &str) -> Ports {
    Ports::List(vec![PortSpec { protocol: Protocol::Tcp, port: PortMatch::Name(name.into()) }])
}

fn cidrs(cidrs: &[&str], except: &[&str]) -> Peer {
    Peer::Cidrs {
        cidrs: cidrs.iter().copied().map(net).collect(),
        except: except.iter().copied().map(net).collect(),
    }
}

fn rule(name: &str, effect: Effect, peer: Peer, ports: Ports) -> Rule {
    Rule {
        name: name.into(),
        effect,
        peers: vec![peer],
        ports,
        expires: None,
        governance: Governance::default(),
    }
}

fn allow(name: &str, peer: Peer, ports: Ports) -> Rule {
    rule(name, Effect::Allow, peer, ports)
}

fn deny(name: &str, peer: Peer, ports: Ports) -> Rule {
    rule(name, Effect::Deny, peer, ports)
}

fn until(deadline: u64, rule: Rule) -> Rule {
    Rule { expires: Some(deadline), ..rule }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn selector(key: &str, value: &str) -> LabelSelector {
    LabelSelector { match_labels: vec![(key.into(), value.into())], match_expressions: Vec::new() }
}

/// A cluster with the pod `n/p` at 10.0.0.1 and fd00::1, on node `w`.
#[derive(Clone)]
struct World {
    cluster: Cluster,
    settings: Settings,
}

impl World {
    fn new() -> Self {
        let mut cluster = Cluster::default();
        cluster.nodes.insert("w".into(), Node { addresses: vec![ip("192.168.0.9")], pod_cidrs: vec![] });
        let world = Self { cluster, settings: Settings::default() };
        world.pod("n/p", &["10.0.0.1", "fd00::1"], &[("app", "p")], &[])
    }

    fn with(mut self, name: &str, rules: Vec<Rule>) -> Self {
        self.add(Policy {
            rules,
            cluster_dns: false,
            ..denying(PolicyId { kind: PolicyKind::ConfigMap, id: NsName::new("n", name) })
        });
        self
    }

    fn add(&mut self, policy: Policy) {
        self.cluster.policies.insert(policy.id.clone(), Arc::new(policy));
    }

    fn change(mut self, name: &str, change: impl FnOnce(&mut Policy)) -> Self {
        let id = PolicyId { kind: PolicyKind::ConfigMap, id: NsName::new("n", name) };
        change(Arc::make_mut(self.cluster.policies.get_mut(&id).expect("the policy is there")));
        self
    }

    /// Changes a pod of `n`. Returns what it was before.
    fn change_pod(&mut self, name: &str, change: impl FnOnce(&mut Pod)) -> (NsName, Option<Pod>) {
        let id = NsName::new("n", name);
        let before = self.cluster.pods[&id].clone();
        assert!(self.cluster.pods.change(&id, change));
        (id, Some(before))
    }

    fn pod(mut self, name: &str, ips: &[&str], pairs: &[(&str, &str)], ports: &[(&str, u16)]) -> Self {
        let (namespace, name) = name.split_once('/').expect("namespace/name");
        let ports = ports.iter().map(|(name, port)| NamedPort {
            name: (*name).into(),
            protocol: Protocol::Tcp,
            port: *port,
        });
        let pod = Pod {
            labels: labels(pairs),
            local: Some(Box::new(Local { node: "w".into(), ..Local::default() })),
            ips: ips.iter().copied().map(ip).collect(),
            ports: ports.collect(),
            ..Pod::default()
        };
        self.cluster.pods.insert(NsName::new(namespace, name), pod);
        self
    }

    /// A Service `n/name` with one TCP port, and one slice with the target port.
    fn service(mut self, name: &str, ips: &[&str], port: u16, target: u16, endpoints: &[&str]) -> Self {
        let service = Service {
            cluster_ips: ips.iter().copied().map(ip).collect(),
            ports: vec![ServicePort { name: "main".into(), protocol: Protocol::Tcp, port }],
            external_name: None,
        };
        let slice = EndpointSlice {
            service: name.into(),
            ports: vec![EndpointPort { name: "main".into(), protocol: Protocol::Tcp, port: Some(target) }],
            addresses: endpoints.iter().copied().map(ip).collect(),
        };
        self.cluster.services.insert(NsName::new("n", name), service);
        self.cluster.slices.insert(NsName::new("n", format!("{name}-1")), slice);
        self
    }

    fn compiled(&self) -> Compiled {
        let compiled = compile(&self.cluster, &self.settings, &NsName::new("n", "p"));
        if let Some(set) = &compiled.set {
            check(set);
        }
        compiled
    }

    fn set(&self) -> Arc<PolicySet> {
        self.compiled().set.expect("governed")
    }

    fn ask(&self, protocol: u8, to: &str, port: u16) -> (Verdict, Reason, String) {
        let flow = Flow { destination: ip(to), protocol, port };
        let answer = simulate(&self.compiled(), &flow, NOW);
        let rule = answer
            .rule
            .map_or_else(String::new, |rule| format!("{}:{}", rule.policy.id.name, rule.part.as_str()));
        (answer.verdict, answer.reason, rule)
    }

    /// Asserts that TCP to each place is allowed by the rule named, or denied by default if none is.
    fn expect(&self, table: &[(&str, u16, &str)]) {
        for (to, port, rule) in table {
            let (verdict, _, by) = self.ask(TCP, to, *port);
            let wanted = if rule.is_empty() {
                (Verdict::Deny, "a:(default)".to_owned())
            } else {
                (Verdict::Allow, format!("a:{rule}"))
            };
            assert_eq!((verdict, by), wanted, "TCP to {to} port {port}\n{:#?}", self.compiled().set);
        }
    }
}

/// Asserts what every set promises about its shape.
fn check(set: &PolicySet) {
    assert!(set.exact.is_sorted_by(|a, b| a.0 < b.0), "exact addresses are sorted and distinct");
    assert!(set.prefixes.is_sorted_by(|a, b| (a.0, a.1) < (b.0, b.1)), "prefixes are sorted and distinct");
    let hosts = set.exact.len() + set.prefixes.iter().filter(|(_, length, _)| *length == 128).count();
    let hashed = hosts * 2 >= set.exact.len() + set.prefixes.len();
    assert_eq!(
        set.exact.len(),
        if hashed { hosts } else { 0 },
        "single addresses stand in one map, by their share"
    );
    let used: std::collections::BTreeSet<u32> = set
        .exact
        .iter()
        .map(|(_, list)| *list)
        .chain(set.prefixes.iter().map(|(_, _, list)| *list))
        .collect();
    assert!(used.into_iter().eq(0..u32::try_from(set.lists.len()).expect("few")), "every list is used");
    assert!(
        set.lists.is_sorted_by(|a, b| a.iter().map(order).lt(b.iter().map(order))),
        "lists are sorted and distinct"
    );
    let mut named = vec![false; set.rules.len() + 1];
    for list in &set.lists {
        assert!(list.is_sorted_by(|a, b| a.high < b.low), "ranges of a list do not overlap");
        for entry in list {
            assert!(entry.low <= entry.high && entry.rules != [NO_RULE; 4], "an entry says something");
            entry.rules.iter().for_each(|rule| named[*rule as usize] = true);
        }
    }
    set.default_deny.into_iter().chain(set.audit_default_deny).for_each(|rule| named[rule as usize] = true);
    assert!(named[1..].iter().all(|named| *named), "every rule is referred to");
}

#[test]
fn a_narrow_prefix_inherits_the_ports_of_the_wide_ones_around_it() {
    let world = World::new().with(
        "a",
        vec![
            allow("wide", cidrs(&["10.0.0.0/8"], &[]), tcp_ports(&[80])),
            allow("narrow", cidrs(&["10.1.0.0/16"], &[]), tcp_ports(&[443])),
            allow("host", cidrs(&["10.1.0.7/32"], &[]), tcp_ports(&[22])),
        ],
    );
    world.expect(&[
        ("10.2.0.1", 80, "wide"),
        ("10.2.0.1", 443, ""),
        ("10.1.0.1", 80, "wide"),
        ("10.1.0.1", 443, "narrow"),
        ("10.1.0.7", 80, "wide"),
        ("10.1.0.7", 443, "narrow"),
        ("10.1.0.7", 22, "host"),
        ("10.1.0.8", 22, ""),
        ("11.0.0.1", 80, ""),
    ]);
}

#[test]
fn except_carves_out_of_its_own_peer_only() {
    let world = World::new().with(
        "a",
        vec![
            allow("holed", cidrs(&["10.0.0.0/8", "10.1.1.0/24"], &["10.1.0.0/16"]), Ports::All),
            allow("whole", cidrs(&["10.1.2.0/24"], &[]), tcp_ports(&[80])),
            allow("back", cidrs(&["10.1.3.0/24"], &["10.1.3.4/32"]), Ports::All),
        ],
    );
    world.expect(&[
        ("10.0.0.9", 1, "holed"),
        ("10.1.0.1", 1, ""),
        ("10.1.1.1", 1, ""),
        ("10.1.2.1", 80, "whole"),
        ("10.1.2.1", 81, ""),
        ("10.1.3.1", 9, "back"),
        ("10.1.3.4", 9, ""),
    ]);
}

#[test]
fn what_a_pierced_grant_hid_comes_back_where_it_is_excepted() {
    let world = World::new().with(
        "a",
        vec![
            allow("all", cidrs(&["0.0.0.0/0"], &["10.1.0.0/16"]), Ports::All),
            allow("some", cidrs(&["10.0.0.0/8"], &[]), tcp_ports(&[80])),
        ],
    );
    world.expect(&[("10.0.0.9", 80, "all"), ("10.1.0.1", 80, "some"), ("10.1.0.1", 81, "")]);
}

#[test]
fn equal_prefixes_join_their_ports() {
    let world = World::new().with(
        "a",
        vec![
            allow("x", cidrs(&["10.0.0.0/8"], &[]), tcp_ports(&[80])),
            allow("y", cidrs(&["10.0.0.0/8"], &[]), Ports::List(vec![tcp(79, 81)])),
        ],
    );
    world.expect(&[
        ("10.0.0.9", 79, "y"),
        ("10.0.0.9", 80, "x"),
        ("10.0.0.9", 81, "y"),
        ("10.0.0.9", 82, ""),
    ]);
    assert_eq!(world.set().prefixes.len(), 1);
}

#[test]
fn a_denied_destination_beats_every_allow() {
    let world = World::new().with(
        "a",
        vec![
            allow("all", Peer::Any, Ports::All),
            allow("narrow", cidrs(&["169.254.169.254/32"], &[]), tcp_ports(&[80])),
            deny("imds", cidrs(&["169.254.0.0/16"], &[]), Ports::All),
        ],
    );
    assert_eq!(
        world.ask(TCP, "169.254.169.254", 80),
        (Verdict::Deny, Reason::DeniedDestination, "a:imds".into())
    );
    world.expect(&[("1.1.1.1", 80, "all")]);
}

#[test]
fn of_rules_that_match_the_longest_lived_is_the_candidate() {
    let anywhere = || cidrs(&["10.0.0.0/8"], &[]);
    let world = World::new().with(
        "a",
        vec![
            until(NOW, allow("over", anywhere(), Ports::All)),
            until(NOW + 5, allow("soon", anywhere(), tcp_ports(&[80]))),
            until(NOW + 5, allow("same", anywhere(), tcp_ports(&[80]))),
        ],
    );
    world.expect(&[("10.0.0.9", 80, "soon")]);
    assert_eq!(world.ask(TCP, "10.0.0.9", 81), (Verdict::Deny, Reason::Expired, "a:over".into()));
}

#[test]
fn audit_adds_its_own_candidates_and_widens_nothing() {
    let audit = |policy: &mut Policy| policy.mode = Mode::Audit;
    let rules = vec![
        allow("x", cidrs(&["10.0.0.0/8"], &[]), Ports::All),
        deny("y", cidrs(&["10.9.0.0/16"], &[]), Ports::All),
    ];
    let world = World::new().with("z", rules).change("z", audit);
    assert_eq!(world.ask(TCP, "10.9.0.1", 1), (Verdict::Audit, Reason::DeniedDestination, "z:y".into()));
    assert_eq!(world.ask(TCP, "10.8.0.1", 1), (Verdict::Allow, Reason::AllowedDestination, "z:x".into()));
    assert_eq!(world.ask(TCP, "1.1.1.1", 1), (Verdict::Audit, Reason::DefaultDeny, "z:(default)".into()));
    let world = world.with("a", vec![allow("w", cidrs(&["10.9.0.0/16"], &[]), Ports::All)]);
    assert_eq!(world.ask(TCP, "10.9.0.1", 1), (Verdict::Audit, Reason::DeniedDestination, "z:y".into()));
    assert_eq!(world.ask(TCP, "10.8.0.1", 1), (Verdict::Deny, Reason::DefaultDeny, "a:(default)".into()));
}

#[test]
fn an_ipv6_default_route_does_not_reach_ipv4() {
    let world = World::new().with("a", vec![allow("six", cidrs(&["::/0"], &[]), Ports::All)]);
    world.expect(&[("2001:db8::1", 1, "six"), ("1.1.1.1", 1, "")]);
    let world = World::new().with(
        "a",
        vec![
            allow("six", cidrs(&["::/64"], &[]), Ports::All),
            allow("four", cidrs(&["1.0.0.0/8"], &[]), tcp_ports(&[80])),
        ],
    );
    world.expect(&[("::1:2", 1, "six"), ("1.1.1.1", 80, "four"), ("1.1.1.1", 81, ""), ("2.1.1.1", 80, "")]);
    assert_eq!(world.set().prefixes.len(), 2, "nothing has to keep the families apart");
    // What is said of both families is said twice.
    let world = World::new().with("a", vec![allow("any", Peer::Any, Ports::All)]);
    world.expect(&[("::1:2", 1, "any"), ("1.1.1.1", 1, "any")]);
    assert_eq!(world.set().prefixes.len(), 2);
}

#[test]
fn a_mapped_ipv6_prefix_says_nothing_about_ipv4() {
    let world = World::new().with("a", vec![allow("x", cidrs(&["::ffff:1.1.1.0/120"], &[]), Ports::All)]);
    world.expect(&[("1.1.1.1", 1, "")]);
}

#[test]
fn an_entry_that_repeats_the_one_around_it_is_left_out() {
    let world = World::new().with(
        "a",
        vec![
            allow("x", cidrs(&["10.0.0.0/8"], &[]), Ports::All),
            allow("y", cidrs(&["10.1.0.0/16", "10.1.1.1/32"], &[]), tcp_ports(&[80])),
        ],
    );
    let set = world.set();
    assert_eq!(
        (set.prefixes.len(), set.exact.len(), set.rules.len()),
        (1, 0, 2),
        "x and the default are left"
    );
}

#[test]
fn icmp_needs_its_name_or_no_ports() {
    let icmp = Ports::List(vec![PortSpec { protocol: Protocol::Icmp, port: PortMatch::Any }]);
    let world = World::new().with(
        "a",
        vec![
            allow("ping", Peer::Any, icmp),
            allow("all", cidrs(&["10.0.0.0/8"], &[]), Ports::All),
            allow("tcp", cidrs(&["11.0.0.0/8"], &[]), tcp_ports(&[80])),
        ],
    );
    let verdict = |protocol, to| world.ask(protocol, to, 0).0;
    assert_eq!(verdict(1, "11.0.0.1"), Verdict::Allow);
    assert_eq!(verdict(58, "2001:db8::1"), Verdict::Allow);
    assert_eq!(verdict(58, "11.0.0.1"), Verdict::Deny);
    assert_eq!(verdict(1, "2001:db8::1"), Verdict::Deny);
    assert_eq!(verdict(47, "11.0.0.1"), Verdict::Deny);
    assert_eq!(verdict(47, "10.0.0.9"), Verdict::Allow);
}

#[test]
fn loopback_and_own_addresses_pass_and_ungoverned_pods_pass_first() {
    let world = World::new().with("a", vec![]);
    for to in ["127.0.0.5", "::1", "10.0.0.1", "fd00::1"] {
        assert_eq!(world.ask(TCP, to, 1), (Verdict::Allow, Reason::Local, String::new()), "{to}");
    }
    assert_eq!(World::new().ask(TCP, "127.0.0.1", 1).1, Reason::Ungoverned);
}

#[test]
fn named_ports_are_those_of_each_pod() {
    let peer = Peer::Pods { namespaces: None, pods: Some(selector("app", "web")) };
    let world = World::new()
        .pod("n/w1", &["10.0.0.2"], &[("app", "web")], &[("http", 8080), ("http", 8081)])
        .pod("n/w2", &["10.0.0.3"], &[("app", "web")], &[("http", 9090)])
        .pod("m/w3", &["10.0.0.4"], &[("app", "web")], &[("http", 8080)])
        .with("a", vec![allow("web", peer, named("http"))]);
    world.expect(&[
        ("10.0.0.2", 8080, "web"),
        ("10.0.0.2", 8081, "web"),
        ("10.0.0.2", 9090, ""),
        ("10.0.0.3", 9090, "web"),
        ("10.0.0.3", 8080, ""),
        ("10.0.0.4", 8080, ""),
    ]);
}

#[test]
fn namespaces_always_carry_their_name_as_a_label() {
    let peer = Peer::Pods { namespaces: Some(selector("kubernetes.io/metadata.name", "m")), pods: None };
    let world = World::new()
        .pod("m/x", &["10.0.0.4"], &[], &[])
        .pod("k/x", &["10.0.0.5"], &[], &[])
        .with("a", vec![allow("m", peer, Ports::All)]);
    world.expect(&[("10.0.0.4", 1, "m"), ("10.0.0.5", 1, "")]);
}

#[test]
fn a_cluster_ip_opens_when_every_endpoint_behind_it_is_allowed() {
    let peer = || Peer::Pods { namespaces: None, pods: Some(selector("app", "web")) };
    let world = World::new()
        .pod("n/w1", &["10.0.0.2"], &[("app", "web")], &[("http", 8080)])
        .pod("n/w2", &["10.0.0.3"], &[("app", "web")], &[("http", 8080)])
        .pod("n/db", &["10.0.0.4"], &[("app", "db")], &[("http", 8080)])
        .service("web", &["172.20.0.1"], 80, 8080, &["10.0.0.2", "10.0.0.3"])
        .service("mixed", &["172.20.0.2"], 80, 8080, &["10.0.0.2", "10.0.0.4"])
        .service("other-port", &["172.20.0.3"], 80, 8081, &["10.0.0.2"])
        .service("empty", &["172.20.0.4"], 80, 8080, &[])
        .service("six", &["fd01::5"], 80, 8080, &["10.0.0.2"]);
    let allowed = world.clone().with("a", vec![allow("web", peer(), tcp_ports(&[8080]))]);
    allowed.expect(&[
        ("10.0.0.2", 8080, "web"),
        ("172.20.0.1", 80, "web"),
        ("172.20.0.1", 8080, ""),
        ("172.20.0.2", 80, ""),
        ("172.20.0.3", 80, ""),
        ("172.20.0.4", 80, ""),
        ("fd01::5", 80, ""),
    ]);
    let by_name = world.with("a", vec![allow("web", peer(), named("http"))]);
    by_name.expect(&[("172.20.0.1", 80, "web"), ("172.20.0.2", 80, ""), ("172.20.0.3", 80, "")]);
}

#[test]
fn a_denied_endpoint_closes_the_cluster_ip_ports_in_front_of_it() {
    let world = || {
        World::new()
            .pod("n/db", &["10.0.7.1"], &[("app", "db")], &[])
            .pod("n/other", &["10.0.7.2"], &[("app", "other")], &[])
            .service("db", &["172.20.0.1", "fd01::1"], 5432, 6000, &["10.0.7.1", "10.0.7.2"])
            .service("alias", &["172.20.0.2"], 80, 6000, &["10.0.7.1"])
            .service("else", &["172.20.0.3"], 80, 6001, &["10.0.7.1"])
            .service("out", &["172.20.0.4"], 443, 443, &["1.1.1.1"])
            .service("node", &["172.20.0.5"], 443, 6443, &["192.168.0.9"])
    };
    let pods = || Peer::Pods { namespaces: None, pods: Some(selector("app", "db")) };
    let closed = |peer: Peer, ports: Ports| {
        let any = allow("any", Peer::Any, Ports::All);
        let world = world().with("a", vec![any, deny("no", peer, ports)]);
        let fronts = [
            ("172.20.0.1", 5432),
            ("fd01::1", 5432),
            ("172.20.0.2", 80),
            ("172.20.0.3", 80),
            ("172.20.0.4", 443),
            ("172.20.0.5", 443),
        ];
        assert_eq!(world.ask(TCP, "172.20.0.1", 5433).0, Verdict::Allow, "only ports with something behind");
        assert_eq!(world.ask(UDP, "172.20.0.1", 5432).0, Verdict::Allow, "only the port's protocol");
        fronts.map(|(to, port)| u8::from(world.ask(TCP, to, port).0 == Verdict::Deny))
    };
    let db = || Peer::Service(NsName::new("n", "alias"));
    assert_eq!(closed(cidrs(&["10.0.7.1/32"], &[]), Ports::All), [1, 0, 1, 1, 0, 0]);
    assert_eq!(closed(cidrs(&["10.0.7.0/24"], &[]), tcp_ports(&[6000])), [1, 0, 1, 0, 0, 0]);
    assert_eq!(closed(cidrs(&["10.0.7.0/24"], &["10.0.7.0/31"]), Ports::All), [1, 0, 0, 0, 0, 0]);
    assert_eq!(closed(cidrs(&["10.0.7.0/24"], &["10.0.7.0/24"]), Ports::All), [0; 6]);
    assert_eq!(closed(cidrs(&["::/0"], &[]), tcp_ports(&[6000, 443])), [0; 6]);
    assert_eq!(closed(Peer::Any, tcp_ports(&[6001])), [0, 0, 0, 1, 0, 0]);
    assert_eq!(closed(db(), tcp_ports(&[80])), [1, 0, 1, 0, 0, 0]);
    assert_eq!(closed(pods(), tcp_ports(&[6000])), [1, 0, 1, 0, 0, 0]);
    assert_eq!(closed(Peer::Entity(Entity::World), tcp_ports(&[443])), [0, 0, 0, 0, 1, 0]);
    assert_eq!(closed(Peer::Entity(Entity::Node), tcp_ports(&[6443])), [0, 0, 0, 0, 0, 1]);
}

#[test]
fn what_would_keep_the_agent_busy_is_given_up() {
    let everywhere = |name: String, ports| allow(&name, cidrs(&["0.0.0.0/0"], &[]), ports);
    let one = |number: u16| tcp_ports(&[number * 2 + 1]);
    let wide = (0..9_000).map(|n| everywhere(format!("wide-{n}"), one(n)));
    let host = |n: u16| format!("20.0.{}.{}/32", n / 256, n % 256);
    let hosts = (0..9_000).map(|n| allow(&format!("host-{n}"), cidrs(&[&host(n)], &[]), tcp_ports(&[1])));
    let nested = World::new().with("a", wide.chain(hosts).collect());
    timed("9000 hosts inside 9000 rules for everything", &nested);
    assert!(nested.set().too_large, "each host would need a list of 9000 entries");

    let mut crowd = World::new();
    for n in 0..3_000_u32 {
        let address = Ipv4Addr::from(0x0a08_0000 + n).to_string();
        crowd = crowd.pod(&format!("o/p{n}"), &[&address], &[], &[]);
    }
    let world = |n| allow(&format!("world-{n}"), Peer::Entity(Entity::World), one(n));
    let rules = crowd.clone().with("a", (0..8_000).map(world).collect());
    timed("8000 rules for the world, 3000 pods", &rules);
    assert_eq!(rules.set().entries(), 8_000, "one list for all rules");

    for n in 0..1_000_u32 {
        let ips = [0, 1, 2].map(|k| Ipv4Addr::from(0x0a08_0000 + n * 3 + k).to_string());
        let front = Ipv4Addr::from(0xac14_0000 + n).to_string();
        crowd = crowd.service(&format!("s{n}"), &[&front], 80, 8080, &ips.each_ref().map(String::as_str));
    }
    let pods = || Peer::Pods { namespaces: Some(LabelSelector::default()), pods: None };
    let many =
        crowd.clone().with("a", (0..2_000).map(|n| allow(&format!("pods-{n}"), pods(), one(n))).collect());
    timed("2000 rules for 3000 pods, 1000 Services", &many);
    assert!(!many.set().too_large);
    let ports: Vec<u16> = (0..16_384).map(|n| n * 4 + 1).collect();
    let ports = crowd.with("a", vec![allow("ports", pods(), tcp_ports(&ports))]);
    timed("one rule with 16384 ports for 3000 pods", &ports);
    assert_eq!(ports.set().lists.len(), 1, "all pods share it");
}

#[test]
fn a_service_opens_its_cluster_ips_and_endpoints_each_with_their_own_port() {
    let peer = || Peer::Service(NsName::new("n", "redis"));
    let world = World::new().service("redis", &["172.20.0.9"], 6379, 7000, &["10.0.7.1", "10.0.7.2"]);
    let by_number = world.clone().with("a", vec![allow("redis", peer(), tcp_ports(&[6379]))]);
    by_number.expect(&[
        ("172.20.0.9", 6379, "redis"),
        ("172.20.0.9", 7000, ""),
        ("10.0.7.1", 7000, "redis"),
        ("10.0.7.2", 6379, ""),
    ]);
    let by_name = world.clone().with("a", vec![allow("redis", peer(), named("main"))]);
    assert_eq!(by_name.set(), by_number.set());
    let all = world.with("a", vec![allow("redis", peer(), Ports::All)]);
    all.expect(&[("172.20.0.9", 1, "redis"), ("10.0.7.1", 1, "redis"), ("10.0.7.3", 1, "")]);
}

#[test]
fn what_cannot_be_resolved_matches_nothing_and_is_reported() {
    let mut world = World::new().with(
        "a",
        vec![
            allow("gone", Peer::Service(NsName::new("n", "gone")), Ports::All),
            allow("aws", Peer::Unresolved(Unresolved::Domains(vec!["example.com".into()])), Ports::All),
        ],
    );
    world.change_pod("p", |pod| pod.local.as_mut().expect("it is here").node = "unknown".into());
    let world = world.change("a", |policy| policy.own_node = true);
    let reported: Vec<_> =
        world.compiled().unresolved.iter().map(|u| u.rule.part.as_str().to_owned()).collect();
    assert_eq!(reported, ["gone", "aws", "(own-node)"]);
    world.expect(&[("10.0.0.9", 1, "")]);
}

#[test]
fn cluster_dns_opens_port_53_of_the_service_and_of_the_extra_addresses() {
    let mut world = World::new().with("a", vec![]).change("a", |policy| policy.cluster_dns = true);
    let port = |name: &str, protocol| ServicePort { name: name.into(), protocol, port: 53 };
    let service = Service {
        cluster_ips: vec![ip("172.20.0.10")],
        ports: vec![port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)],
        external_name: None,
    };
    let target = |name: &str, protocol| EndpointPort { name: name.into(), protocol, port: Some(1053) };
    let slice = EndpointSlice {
        service: "kube-dns".into(),
        ports: vec![target("dns", Protocol::Udp), target("dns-tcp", Protocol::Tcp)],
        addresses: vec![ip("10.0.5.3")],
    };
    world.cluster.services.insert(NsName::new("kube-system", "kube-dns"), service);
    world.cluster.slices.insert(NsName::new("kube-system", "kube-dns-x"), slice);
    world.settings.cluster_dns_addresses = vec![ip("169.254.20.10")];
    world.expect(&[
        ("172.20.0.10", 53, "(cluster-dns)"),
        ("10.0.5.3", 1053, "(cluster-dns)"),
        ("10.0.5.3", 53, ""),
        ("169.254.20.10", 53, "(cluster-dns)"),
    ]);
    assert_eq!(world.ask(UDP, "10.0.5.3", 1053).0, Verdict::Allow);
}

#[test]
fn the_world_leaves_out_the_cluster() {
    let mut world = World::new()
        .pod("n/q", &["100.64.0.5"], &[], &[])
        .service("s", &["172.20.0.9"], 1, 1, &[])
        .with("a", vec![allow("out", Peer::Entity(Entity::World), Ports::All)]);
    world.settings.cluster_cidrs = vec![net("10.0.0.0/8")];
    world.expect(&[
        ("1.1.1.1", 1, "out"),
        ("2001:db8::1", 1, "out"),
        ("100.64.0.6", 1, "out"),
        ("100.64.0.5", 1, ""),
        ("172.20.0.9", 1, ""),
        ("10.255.0.1", 1, ""),
        ("192.168.0.9", 1, ""),
        ("169.254.169.254", 1, ""),
        ("fd00:ec2::254", 1, ""),
        ("fd20:ce::254", 1, ""),
        ("100.100.100.200", 1, ""),
        ("168.63.129.16", 1, ""),
        ("168.63.129.17", 1, "out"),
        ("fe80::1", 1, ""),
        ("224.0.0.1", 1, ""),
        ("255.255.255.255", 1, ""),
        ("0.1.2.3", 1, ""),
    ]);
}

#[test]
fn governed_namespaces_and_broken_policies_deny_by_default() {
    let mut world = World::new();
    world.settings.governed_namespaces.insert("n".into());
    let compiled = world.compiled();
    assert_eq!(compiled.policies[0].kind, PolicyKind::Namespace);
    assert_eq!(world.ask(TCP, "1.1.1.1", 1), (Verdict::Deny, Reason::DefaultDeny, ":(default)".into()));
    let mut world = world.with("z", vec![]).change("z", |policy| policy.mode = Mode::Audit);
    assert_eq!(
        world.compiled().policies.len(),
        2,
        "an audited policy does not stand in for an enforcing one"
    );
    world.cluster.broken.insert(NsName::new("n", "b"));
    assert_eq!(world.ask(TCP, "1.1.1.1", 1), (Verdict::Deny, Reason::DefaultDeny, "b:(default)".into()));
    assert_eq!(world.compiled().policies.len(), 2);
    world.settings.invalid_policy = InvalidPolicy::Ignore;
    assert_eq!(world.compiled().policies[1].kind, PolicyKind::Namespace);
}

#[test]
fn network_policies_count_only_when_asked_for() {
    let mut world = World::new();
    let id = PolicyId { kind: PolicyKind::NetworkPolicy, id: NsName::new("n", "np") };
    world.add(Policy { own_node: true, cluster_dns: false, ..denying(id) });
    assert!(world.compiled().set.is_none());
    world.settings.enforce_network_policy = true;
    assert_eq!(world.ask(TCP, "192.168.0.9", 1).2, "np:(own-node)");
    assert_eq!(world.ask(TCP, "1.1.1.1", 1).2, "np:(default)");
}

#[test]
fn pods_of_the_same_policies_share_one_set() {
    let mut world = World::new()
        .pod("n/q", &["10.0.0.2"], &[("app", "q")], &[])
        .pod("n/r", &["10.0.0.3"], &[("app", "r")], &[])
        .with("a", vec![allow("x", cidrs(&["10.0.0.0/8"], &[]), Ports::All)])
        .with("b", vec![])
        .change("b", |policy| policy.selector = selector("app", "r"));
    world.change_pod("q", |pod| pod.local.as_mut().expect("it is here").node = "other".into());
    let all = compile_all(&world.cluster, &world.settings, world.cluster.pods.keys());
    let set = |name: &str| all[&NsName::new("n", name)].set.clone().expect("governed");
    assert!(Arc::ptr_eq(&set("p"), &set("q")), "equal though compiled for other nodes");
    assert!(Arc::ptr_eq(&set("p"), &set("r")), "b adds nothing: its default stands behind a's");
    assert_eq!(*set("p"), *world.set());
}

#[test]
fn only_what_may_have_changed_is_compiled_again() {
    let peer = Peer::Pods { namespaces: None, pods: Some(selector("app", "web")) };
    let mut world = World::new()
        .pod("n/web", &["10.0.0.2"], &[("app", "web")], &[])
        .pod("n/r", &["10.0.0.3"], &[("app", "r")], &[])
        .pod("n/s", &["10.0.0.4"], &[("app", "s")], &[])
        .service("front", &["172.20.0.1"], 80, 80, &["10.9.0.1"])
        .with("p", vec![allow("x", cidrs(&["10.0.0.0/8"], &[]), Ports::All)])
        .with("r", vec![allow("x", peer, Ports::All)])
        .with(
            "s",
            vec![allow("x", Peer::Any, Ports::All), deny("y", cidrs(&["10.9.0.1/32"], &[]), Ports::All)],
        );
    for name in ["p", "r", "s"] {
        world = world.change(name, |policy| policy.selector = selector("app", name));
    }
    let mut cache = Cache::default();
    let mut compiled = 0;
    let mut run = |world: &World, changes| {
        let pods = world.cluster.pods.keys();
        let all = compile_all_cached(&mut cache, &world.cluster, &world.settings, changes, pods);
        assert_eq!(all, compile_all(&world.cluster, &world.settings, world.cluster.pods.keys()));
        let fresh = cache.compiled() - compiled;
        compiled = cache.compiled();
        let sets = ["p", "r", "s"].map(|name| all[&NsName::new("n", name)].set.clone().expect("governed"));
        (fresh, sets)
    };
    let none = Changes::default;
    let services = || Changes { services: [NsName::new("n", "front")].into(), ..none() };
    let (fresh, first) = run(&world, none());
    assert_eq!(fresh, 3);
    assert_eq!(run(&world, none()).0, 0);
    let changed = world.change_pod("web", |pod| pod.ips = [ip("10.0.0.8")].into_iter().collect());
    let (fresh, sets) = run(&world, Changes { pods: [changed].into(), ..none() });
    assert_eq!(fresh, 1, "only one reads pods");
    let same = |sets: &[Arc<PolicySet>; 3]| [0, 1, 2].map(|n| Arc::ptr_eq(&sets[n], &first[n]));
    assert_eq!(same(&sets), [true, false, true]);
    world.cluster.slices.get_mut(&NsName::new("n", "front-1")).expect("there").addresses.clear();
    let (fresh, sets) = run(&world, services());
    assert_eq!((fresh, same(&sets)), (2, [true, false, false]), "a denied destination reads endpoints");
    let (fresh, again) = run(&world, services());
    assert_eq!(fresh, 2);
    assert!(again.iter().zip(&sets).all(|(one, other)| Arc::ptr_eq(one, other)), "equal sets are one");
    let rules = vec![allow("z", cidrs(&["10.0.0.0/8"], &[]), Ports::All)];
    let world = world.with("p", rules).change("p", |policy| policy.selector = selector("app", "p"));
    assert_eq!(run(&world, none()).0, 1, "a changed policy is another Arc");
    let mut world = world;
    world.cluster.broken.insert(NsName::new("n", "b"));
    assert_eq!(run(&world, none()).0, 4, "a broken policy selects all, the web pod too");
    assert_eq!(run(&world, none()).0, 0, "and is known again");
}

#[test]
fn a_set_that_explodes_is_given_up_and_allows_nothing() {
    let ports: Vec<u16> = (0..3000).map(|port| port * 2 + 1).collect();
    let mut rules = vec![allow("ports", cidrs(&["10.0.0.0/8"], &[]), tcp_ports(&ports))];
    rules.extend((0..=255u8).flat_map(|a| {
        [0u8, 16]
            .map(|b| allow(&format!("{a}-{b}"), cidrs(&[&format!("10.{a}.{b}.0/24")], &[]), tcp_ports(&[2])))
    }));
    let world = World::new().with("a", rules);
    assert!(world.set().too_large);
    world.expect(&[("10.0.0.9", 1, "")]);
}

/// Prints how long compiling takes; the numbers to reach are for an optimized build.
#[test]
fn speed() {
    let host = |number: u32| IpNet::new_assert(Ipv4Addr::from(0x0b00_0000 + number * 7).into(), 32);
    let wide = |number: u32| IpNet::new_assert(Ipv4Addr::from(0x1400_0000 + number * 256).into(), 24);
    let ports = |number: u32| tcp_ports(&[u16::try_from(number % 50 + 1).expect("small")]);
    let peer = |net| Peer::Cidrs { cidrs: vec![net], except: vec![] };
    for count in [10_000_u32, 100_000] {
        let rules = |net: &dyn Fn(u32) -> IpNet| {
            (0..count).map(|n| allow(&format!("rule-{n}"), peer(net(n)), ports(n))).collect::<Vec<_>>()
        };
        for (what, rules) in [("hosts", rules(&host)), ("prefixes", rules(&wide))] {
            let world = World::new().with("a", rules);
            timed(&format!("{count} rules, {what}"), &world);
        }
        let mut nested = rules(&wide);
        nested.push(allow("around", cidrs(&["0.0.0.0/0"], &["169.254.0.0/16"]), tcp_ports(&[443])));
        timed(&format!("{count} rules in a wide one"), &World::new().with("a", nested));
        let addresses: Vec<IpNet> = (0..count).map(host).collect();
        let one = Peer::Cidrs { cidrs: addresses.clone(), except: vec![] };
        timed(
            &format!("one rule, {count} addresses"),
            &World::new().with("a", vec![allow("x", one, Ports::All)]),
        );
        let mut world = World::new().with("a", vec![allow("x", Peer::Entity(Entity::World), Ports::All)]);
        world.settings.cluster_cidrs = addresses;
        timed(&format!("the world without {count} addresses"), &world);
    }
}

#[expect(clippy::print_stderr, reason = "a measurement for whoever runs the test with --nocapture")]
fn timed(what: &str, world: &World) {
    let start = std::time::Instant::now();
    let compiled = compile(&world.cluster, &world.settings, &NsName::new("n", "p"));
    let elapsed = start.elapsed();
    let set = compiled.set.expect("governed");
    eprintln!(
        "{what}: {elapsed:?}, {} exact, {} prefixes, {} entries",
        set.exact.len(),
        set.prefixes.len(),
        set.entries()
    );
}
