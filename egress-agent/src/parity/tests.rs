use super::*;
use crate::policy::{
    cluster::{Local, Node},
    document,
    generated::EgressRule,
};

const NOW: u64 = 1_800_000_000;

fn net(text: &str) -> IpNet {
    text.parse().expect("a literal prefix")
}

/// A cluster with one pod and one policy that selects it.
fn scene(text: &str) -> (Cluster, Objects) {
    let mut cluster = Cluster::default();
    let local = Local { node: "n".into(), ..Local::default() };
    let pod = Pod {
        ips: [IpAddr::from([10, 0, 0, 5])].into_iter().collect(),
        local: Some(Box::new(local)),
        ..Pod::default()
    };
    cluster.pods.insert(NsName::new("shop", "pod"), pod);
    cluster.nodes.insert("n".into(), Node { addresses: vec![[10, 0, 1, 1].into()], pod_cidrs: Vec::new() });
    let parsed = document::parse(&NsName::new("shop", "p"), text);
    let policy = parsed.policy.unwrap_or_else(|| panic!("{:?}", parsed.findings));
    cluster.policies.insert(policy.id.clone(), Arc::new(policy));
    let objects = Objects::of(&cluster, &Settings::default(), &Options::default(), NOW);
    (cluster, objects)
}

fn outcome(cluster: &Cluster, objects: &Objects) -> Outcome {
    compare(cluster, &Settings::default(), objects, NOW)
}

const TWO: &str = r#"{"clusterDns": false, "allowedDestinations": [
    {"name": "web", "cidr": "192.0.2.0/24", "ports": [443]},
    {"name": "db", "cidr": "2001:db8::/64", "ports": ["5432-5433/TCP"]}]}"#;

#[test]
fn equal_sides_differ_at_the_pods_node_only() {
    let (cluster, objects) = scene(TWO);
    let outcome = outcome(&cluster, &objects);
    let [difference] = &outcome.differences[..] else { panic!("{:#?}", outcome.differences) };
    assert_eq!(difference.addresses, Addresses::of_nets(&[net("10.0.1.1/32")]));
    assert_eq!(difference.ports, [EVERYTHING]);
    assert_eq!(difference.direction, Direction::Wider);
    assert_eq!(difference.declared[0].1, LossKind::OwnNode);
    assert_eq!((outcome.pods, outcome.objects), (1, 1));
}

/// Every difference but the declared one, as direction, addresses and ports.
fn told(cluster: &Cluster, objects: &Objects) -> Vec<(Direction, Vec<String>, String)> {
    let outcome = outcome(cluster, objects);
    let told = outcome.undeclared().map(|difference| {
        let nets = difference.addresses.nets().map(|net| net.to_string()).collect();
        (difference.direction, nets, shown(&difference.ports))
    });
    told.collect()
}

#[test]
fn each_change_of_the_objects_is_found() {
    use Direction::{Narrower, Wider};
    let nets = |list: &[&str]| list.iter().map(|net| (*net).to_owned()).collect::<Vec<_>>();
    let (cluster, objects) = scene(TWO);
    let with = |change: &dyn Fn(&mut Vec<EgressRule>)| {
        let mut objects = objects.clone();
        change(&mut objects.list[0].egress);
        told(&cluster, &objects)
    };
    assert_eq!(with(&|_| {}), []);
    assert_eq!(
        with(&|rules| rules.truncate(1)),
        [(Narrower, nets(&["2001:db8::/64"]), "TCP 5432-5433".to_owned())]
    );
    let except = |rules: &mut Vec<EgressRule>| {
        rules[0].to = vec![Peer::Block { cidr: net("192.0.2.0/24"), except: vec![net("192.0.2.128/25")] }];
    };
    assert_eq!(with(&except), [(Narrower, nets(&["192.0.2.128/25"]), "TCP 443".to_owned())]);
    let supernet = |rules: &mut Vec<EgressRule>| {
        rules[0].to = vec![Peer::Block { cidr: net("192.0.2.0/23"), except: vec![] }];
    };
    assert_eq!(with(&supernet), [(Wider, nets(&["192.0.3.0/24"]), "TCP 443".to_owned())]);
    let ports = |rules: &mut Vec<EgressRule>| {
        rules[1].ports[0].port = PortMatch::Range(5432, 5434);
    };
    assert_eq!(with(&ports), [(Wider, nets(&["2001:db8::/64"]), "TCP 5434".to_owned())]);
    let found = with(&|rules| rules.push(EgressRule { to: vec![], ports: vec![] }));
    assert!(found.iter().all(|(direction, ..)| *direction == Wider), "{found:?}");
    assert!(found.iter().any(|(_, _, ports)| ports == "every protocol"), "{found:?}");

    // No object: nothing is blocked.
    let mut none = objects.clone();
    none.list.clear();
    assert!(!told(&cluster, &none).is_empty());
}

#[test]
fn a_difference_comes_with_a_flow_and_reasons() {
    let (cluster, mut objects) = scene(TWO);
    objects.list[0].egress.remove(0);
    let outcome = outcome(&cluster, &objects);
    let difference = outcome.undeclared().next().expect("it is found");
    let flow = Flow { destination: [192, 0, 2, 0].into(), protocol: 6, port: 443 };
    assert_eq!(difference.flow, flow);
    assert_eq!(
        difference.reason,
        "kernel: allow (allowed_destination by web of shop/p); objects: not allowed by egress-p"
    );
    assert!(!passes(&cluster, &objects, &NsName::new("shop", "pod"), &flow));
}

#[test]
fn the_innermost_prefix_decides() {
    let nested = vec![(0, 15, 1), (4, 7, 2), (6, 6, 3), (8, 11, 4), (15, 15, 5)];
    let flat = flattened(nested.clone(), (0, 31), 0);
    for place in 0..=31 {
        let inner = nested
            .iter()
            .filter(|(first, last, _)| (*first..=*last).contains(&place))
            .min_by_key(|n| n.1 - n.0);
        let here: Vec<u32> =
            flat.iter().filter(|(first, last, _)| (*first..=*last).contains(&place)).map(|n| n.2).collect();
        assert_eq!(here, [inner.map_or(0, |inner| inner.2)], "at {place} of {flat:?}");
    }
    let all = flattened(vec![(0, u128::MAX, 1), (u128::MAX, u128::MAX, 2)], (0, u128::MAX), 0);
    assert_eq!(all, [(0, u128::MAX - 1, 1), (u128::MAX, u128::MAX, 2)]);
}

#[test]
fn what_is_left_of_ranges() {
    assert_eq!(without(&[(1, 10), (20, 30)], &[(0, 2), (5, 22), (30, 40)]), [(3, 4), (23, 29)]);
    assert_eq!(without(&[(1, 10), (20, 30)], &[(0, 50)]), []);
    assert_eq!(without(&[(1, 1)], &[]), [(1, 1)]);
    assert_eq!(without(&[EVERYTHING], &[(5, 5)]), [(0, 4), (6, HIGHEST_PORT_KEY)]);
}

#[test]
fn ipv6_prefixes_say_nothing_about_ipv4() {
    let mut layer = Layer::default();
    layer.add_block(net("::/0"), &[net("::ffff:0:0/97")], 7);
    layer.add_block(net("0.0.0.0/0"), &[net("128.0.0.0/1")], 8);
    layer.stretches.sort_unstable();
    assert_eq!(layer.stretches, [(0, V4 - 1, 7), (V4, V4 | 0x7fff_ffff, 8), (V4_LAST + 1, u128::MAX, 7)]);
}
