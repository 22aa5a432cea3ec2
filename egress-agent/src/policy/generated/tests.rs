use std::net::IpAddr;

use super::*;
use crate::policy::{
    cluster::{EndpointPort, EndpointSlice, Node, Pod, Service, ServicePort},
    document,
    model::{Operator, Requirement},
};

const NOW: u64 = 1_800_000_000;

fn net(text: &str) -> IpNet {
    text.parse().expect("a literal prefix")
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::Block { cidr: net(cidr), except: except.iter().map(|part| net(part)).collect() }
}

fn tcp(first: u16, last: u16) -> PortSpec {
    PortSpec { protocol: Protocol::Tcp, port: PortMatch::Range(first, last) }
}

fn id(name: &str) -> PolicyId {
    PolicyId { kind: PolicyKind::ConfigMap, id: NsName::new("shop", name) }
}

/// A namespace `shop` with these policies, by name and text.
fn shop(policies: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::default();
    for (name, text) in policies {
        let parsed = document::parse(&NsName::new("shop", *name), text);
        let policy = parsed.policy.unwrap_or_else(|| panic!("{name}: {:?}", parsed.findings));
        cluster.policies.insert(policy.id.clone(), Arc::new(policy));
    }
    cluster
}

fn made(cluster: &Cluster, options: &Options, name: &str) -> Generated {
    generate(cluster, &Settings::default(), options, &id(name), NOW)
}

/// The first object of the policy `p`, which stands alone.
fn alone(text: &str) -> Generated {
    made(&shop(&[("p", text)]), &Options::default(), "p")
}

fn kinds(generated: &Generated) -> Vec<LossKind> {
    generated.losses.iter().map(|loss| loss.kind).collect()
}

fn selected(pairs: &[(&str, &str)]) -> LabelSelector {
    LabelSelector {
        match_labels: pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        match_expressions: Vec::new(),
    }
}

#[test]
fn a_policy_without_destinations_denies_everything() {
    let generated = alone(r#"{"clusterDns": false, "podSelector": {"matchLabels": {"app": "x"}}}"#);
    let [object] = &generated.objects[..] else { panic!("{generated:?}") };
    assert_eq!(object.id, NsName::new("shop", "egress-p"));
    assert_eq!(object.selector, selected(&[("app", "x")]));
    assert_eq!(object.egress, []);
    assert_eq!(kinds(&generated), [LossKind::OwnNode]);
}

#[test]
fn prefixes_keep_the_form_they_were_written_in() {
    let generated = alone(
        r#"{"clusterDns": false, "allowedDestinations": [
            {"name": "lan", "cidrs": ["10.0.0.0/8", "192.0.2.0/25"], "except": ["10.9.0.0/16"],
             "ports": [443, "8000-8010/TCP", 444, "53/UDP"]},
            {"name": "all", "cidr": "2001:db8::/32"}]}"#,
    );
    let rules = &generated.objects[0].egress;
    assert_eq!(rules[0].to, [block("10.0.0.0/8", &["10.9.0.0/16"]), block("192.0.2.0/25", &[])]);
    let dns = PortSpec { protocol: Protocol::Udp, port: PortMatch::Range(53, 53) };
    assert_eq!(rules[0].ports, [tcp(443, 444), tcp(8000, 8010), dns], "ports that touch become one range");
    assert_eq!(rules[1], EgressRule { to: vec![block("2001:db8::/32", &[])], ports: vec![] });
}

#[test]
fn what_is_denied_is_carved_out_of_what_is_allowed() {
    let generated = alone(
        r#"{"clusterDns": false,
            "allowedDestinations": [{"name": "web", "cidr": "0.0.0.0/0", "ports": [443, 25]},
                                    {"name": "near", "cidr": "10.0.0.0/24", "ports": [5432]}],
            "deniedDestinations": [{"name": "imds", "cidr": "169.254.169.254/32"},
                                   {"name": "mail", "cidr": "192.0.2.0/24", "ports": [25]},
                                   {"name": "near", "cidr": "10.0.0.0/8", "ports": [5432]}]}"#
            .replace(r#""name": "near", "cidr": "10.0.0.0/8""#, r#""name": "far", "cidr": "10.0.0.0/8""#)
            .as_str(),
    );
    let rules = &generated.objects[0].egress;
    assert_eq!(rules[0].to, [block("0.0.0.0/0", &["169.254.169.254/32", "192.0.2.0/24"])]);
    assert_eq!(rules[0].ports, [tcp(25, 25), tcp(443, 443)]);
    assert_eq!(rules[1], EgressRule { to: vec![block("192.0.2.0/24", &[])], ports: vec![tcp(443, 443)] });
    assert_eq!(rules.len(), 2, "nothing is left of what is denied as a whole: {rules:?}");
    assert_eq!(kinds(&generated), [LossKind::OwnNode]);
}

#[test]
fn a_denial_that_cannot_be_carved_is_told() {
    let generated = alone(
        r#"{"clusterDns": false, "allowedDestinations": [{"name": "all", "cidr": "0.0.0.0/0"}],
            "deniedDestinations": [{"name": "mail", "cidr": "192.0.2.0/24", "ports": [25]}]}"#,
    );
    assert_eq!(
        generated.objects[0].egress[0].to,
        [block("0.0.0.0/0", &[])],
        "without the port ICMP would be blocked"
    );
    let denied = &generated.losses[0];
    assert_eq!((denied.kind, denied.direction), (LossKind::Denied, Some(Direction::Wider)));
    assert_eq!(denied.addresses, Addresses::of_nets(&[net("192.0.2.0/24")]));
    assert_eq!(denied.destination.as_deref(), Some("mail"));
}

#[test]
fn a_policy_for_every_pod_carves_out_of_the_others() {
    let denies = r#"{"defaultAction": "allow", "deniedDestinations": [{"name": "imds", "cidr": "169.254.169.254/32"}]}"#;
    let web = r#"{"clusterDns": false, "podSelector": {"matchLabels": {"app": "web"}},
        "allowedDestinations": [{"name": "all", "cidr": "0.0.0.0/0"}]}"#;
    let cluster = shop(&[("baseline", denies), ("web", web)]);
    let generated = made(&cluster, &Options::default(), "web");
    assert_eq!(generated.objects[0].egress[0].to, [block("0.0.0.0/0", &["169.254.169.254/32"])]);
    assert_eq!(kinds(&generated), [LossKind::OwnNode]);

    // The other pods may go everywhere else.
    let generated = made(&cluster, &Options::default(), "baseline");
    let [object] = &generated.objects[..] else { panic!("{generated:?}") };
    let not_web = Requirement { key: "app".into(), operator: Operator::NotIn(vec!["web".into()]) };
    assert_eq!(object.selector, LabelSelector { match_labels: vec![], match_expressions: vec![not_web] });
    let everything = EgressRule {
        to: vec![block("0.0.0.0/0", &["169.254.169.254/32"]), block("::/0", &[])],
        ports: vec![],
    };
    assert_eq!(object.egress, [everything]);
}

#[test]
fn what_allows_by_default_adds_to_what_denies_by_default() {
    let open = r#"{"defaultAction": "allow", "clusterDns": false, "podSelector": {"matchLabels": {"tier": "a"}},
        "allowedDestinations": [{"name": "db", "cidr": "192.0.2.1/32"}]}"#;
    let shut = r#"{"clusterDns": false, "podSelector": {"matchLabels": {"app": "web"}}}"#;
    let generated = made(&shop(&[("open", open)]), &Options::default(), "open");
    assert_eq!(generated.objects, [], "alone it isolates nothing");
    let generated = made(&shop(&[("open", open), ("shut", shut)]), &Options::default(), "open");
    let [object] = &generated.objects[..] else { panic!("{generated:?}") };
    assert_eq!(object.selector, selected(&[("tier", "a"), ("app", "web")]));
    assert_eq!(object.egress[0].to, [block("192.0.2.1/32", &[])]);
    let audited = shut.replace('{', r#"{"mode": "audit", "#).replacen(
        r#"{"mode": "audit", "matchLabels": {"mode": "audit", "app""#,
        r#"{"matchLabels": {"app""#,
        1,
    );
    let cluster = shop(&[("open", open), ("shut", &audited)]);
    assert_eq!(made(&cluster, &Options::default(), "open").objects, [], "an audited policy denies nothing");
    assert_eq!(kinds(&made(&cluster, &Options::default(), "shut")), [LossKind::Audit]);
}

#[test]
fn the_flag_decides_about_what_cannot_be_said() {
    let text = r#"{"clusterDns": false, "allowedDestinations": [
        {"name": "api", "domain": "api.example.com", "ports": [443]},
        {"name": "ping", "cidr": "192.0.2.0/24", "ports": ["ICMP", 80]}]}"#;
    let cluster = shop(&[("p", text)]);
    let with = |inexpressible| made(&cluster, &Options { inexpressible, ..Options::default() }, "p");
    let everywhere = EgressRule { to: vec![], ports: vec![tcp(443, 443)] };
    let there = |ports| EgressRule { to: vec![block("192.0.2.0/24", &[])], ports };
    let lost = [LossKind::Domain, LossKind::Icmp];

    let widened = with(Inexpressible::Widen);
    assert_eq!(widened.objects[0].egress, [everywhere, there(vec![])]);
    assert_eq!(kinds(&widened)[..2], lost);
    let omitted = with(Inexpressible::Omit);
    assert_eq!(omitted.objects[0].egress, [there(vec![tcp(80, 80)])]);
    assert_eq!(kinds(&omitted)[..2], lost);
    let skipped = with(Inexpressible::Skip);
    assert_eq!(skipped.objects, []);
    assert!(kinds(&skipped).contains(&LossKind::Skipped), "{:?}", skipped.losses);
}

#[test]
fn what_has_ended_is_absent_and_the_next_end_is_told() {
    let generated = alone(
        r#"{"clusterDns": false, "allowedDestinations": [
            {"name": "gone", "cidr": "192.0.2.1/32", "governance": {"expiry": "2027-01-15T07:59:59Z"}},
            {"name": "soon", "cidr": "192.0.2.2/32", "governance": {"expiry": "2027-01-15T08:00:01Z"}},
            {"name": "later", "cidr": "192.0.2.3/32", "governance": {"expiry": "2028-01-01"}}]}"#,
    );
    let to: Vec<&Peer> = generated.objects[0].egress.iter().flat_map(|rule| &rule.to).collect();
    assert_eq!(to, [&block("192.0.2.2/32", &[]), &block("192.0.2.3/32", &[])]);
    assert_eq!(generated.next, Some(NOW + 1), "2027-01-15T08:00:00Z is now");
}

/// Adds a Service `infra/cache` on port 80, in front of port 8080 of pods `app=cache`.
fn cache(cluster: &mut Cluster) -> Options {
    let ips: [IpAddr; 3] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into(), [10, 0, 0, 3].into()];
    for (number, ip) in ips.iter().enumerate() {
        let pod =
            Pod { labels: labels(&[("app", "cache")]), ips: [*ip].into_iter().collect(), ..Pod::default() };
        cluster.pods.insert(NsName::new("infra", format!("cache-{number}")), pod);
    }
    let name = NsName::new("infra", "cache");
    let port = ServicePort { name: String::new(), protocol: Protocol::Tcp, port: 80 };
    let service =
        Service { cluster_ips: vec![[10, 96, 0, 9].into()], ports: vec![port], external_name: None };
    cluster.services.insert(name.clone(), service);
    let target = EndpointPort { name: String::new(), protocol: Protocol::Tcp, port: Some(8080) };
    // One pod is not ready, and one endpoint is no pod.
    let addresses = vec![ips[0], ips[1], [192, 0, 2, 7].into()];
    let slice = EndpointSlice { service: "cache".into(), ports: vec![target], addresses };
    cluster.slices.insert(NsName::new("infra", "cache-1"), slice);
    Options { selectors: [(name, labels(&[("app", "cache")]))].into(), ..Options::default() }
}

#[test]
fn a_service_is_its_selector_its_cluster_ips_and_what_else_is_behind_it() {
    let text = r#"{"clusterDns": false, "allowedDestinations": [
        {"name": "cache", "service": {"namespace": "infra", "name": "cache"}, "ports": [80]}]}"#;
    let mut cluster = shop(&[("p", text)]);
    let mut options = cache(&mut cluster);
    let generated = made(&cluster, &options, "p");
    let pods = Peer::Pods {
        namespaces: Some(selected(&[("kubernetes.io/metadata.name", "infra")])),
        pods: Some(selected(&[("app", "cache")])),
    };
    let front = EgressRule { to: vec![block("10.96.0.9/32", &[])], ports: vec![tcp(80, 80)] };
    let behind = EgressRule { to: vec![pods, block("192.0.2.7/32", &[])], ports: vec![tcp(8080, 8080)] };
    assert_eq!(generated.objects[0].egress, [front, behind.clone()]);
    let unready = &generated.losses[0];
    assert_eq!((unready.kind, unready.direction), (LossKind::Service, Some(Direction::Wider)));
    assert_eq!(unready.addresses, Addresses::of_nets(&[net("10.0.0.3/32")]));

    options.cluster_ips = false;
    let generated = made(&cluster, &options, "p");
    assert_eq!(generated.objects[0].egress, [behind]);
    assert_eq!(generated.losses[0].kind, LossKind::ClusterIp);

    options.selectors.clear();
    let generated = made(&cluster, &options, "p");
    let to = ["10.0.0.1/32", "10.0.0.2/32", "192.0.2.7/32"];
    let covered: Vec<Peer> = generated.objects[0].egress.iter().flat_map(|rule| rule.to.clone()).collect();
    assert_eq!(
        covered,
        to.map(|one| block(one, &[])),
        "without a selector its endpoints are single addresses"
    );
}

#[test]
fn pods_open_the_cluster_ips_in_front_of_all_of_them() {
    let text = |port: &str| {
        format!(
            r#"{{"clusterDns": false, "allowedDestinations": [{{"name": "x", "pods": {{"namespaceSelector": {{}}}}, "ports": [{port}]}}]}}"#
        )
    };
    for (port, opens) in [("8080", true), ("80", false)] {
        let mut cluster = shop(&[("p", &text(port))]);
        let options = cache(&mut cluster);
        // Without the endpoint that is no pod.
        let mut slice = cluster.slices[&NsName::new("infra", "cache-1")].clone();
        slice.addresses.pop();
        cluster.slices.insert(NsName::new("infra", "cache-1"), slice);
        let rules = &made(&cluster, &options, "p").objects[0].egress;
        assert_eq!(rules[0].to, [Peer::Pods { namespaces: Some(LabelSelector::default()), pods: None }]);
        let front = rules.get(1).map(|rule| (rule.to.clone(), rule.ports.clone()));
        assert_eq!(
            front,
            opens.then(|| (vec![block("10.96.0.9/32", &[])], vec![tcp(80, 80)])),
            "port {port}"
        );
    }
}

#[test]
fn the_world_leaves_out_the_cluster() {
    let text = r#"{"clusterDns": false, "allowedDestinations": [{"name": "out", "entity": "world", "ports": [443]}]}"#;
    let mut cluster = shop(&[("p", text)]);
    let node = Node { addresses: vec![[198, 51, 100, 1].into()], pod_cidrs: vec![net("10.244.0.0/16")] };
    cluster.nodes.insert("n".into(), node);
    let generated = made(&cluster, &Options::default(), "p");
    let Peer::Block { cidr, except } = &generated.objects[0].egress[0].to[0] else { panic!("{generated:?}") };
    assert_eq!(*cidr, net("0.0.0.0/0"));
    for part in ["10.244.0.0/16", "198.51.100.1/32", "127.0.0.0/8", "169.254.0.0/16"] {
        assert!(except.contains(&net(part)), "{part} is not among {except:?}");
    }
    // Too many single addresses: they are named once, as a loss.
    for number in 0..100_u8 {
        let pod = Pod { ips: [IpAddr::from([100, 64, 0, number])].into_iter().collect(), ..Pod::default() };
        cluster.pods.insert(NsName::new("shop", format!("pod-{number}")), pod);
    }
    let generated = made(&cluster, &Options::default(), "p");
    let loss = &generated.losses[0];
    assert_eq!(loss.kind, LossKind::World);
    assert!(
        loss.addresses.contains([100, 64, 0, 99].into())
            && !loss.addresses.contains([100, 64, 0, 100].into())
    );
    let settings = Settings { cluster_cidrs: vec![net("100.64.0.0/24")], ..Settings::default() };
    let generated = generate(&cluster, &settings, &Options::default(), &id("p"), NOW);
    assert_eq!(kinds(&generated), [LossKind::OwnNode], "known ranges are left out as such");
}

#[test]
fn ports_are_folded_where_a_plugin_would_drop_some() {
    let ports = |numbers: std::ops::Range<u16>| {
        let list: Vec<String> = numbers.map(|number| (number * 10).to_string()).collect();
        list.join(", ")
    };
    let text = |cidr: &str, ports: String| {
        format!(
            r#"{{"clusterDns": false, "allowedDestinations": [{{"name": "x", "cidr": "{cidr}", "ports": [{ports}]}}]}}"#
        )
    };
    let entries = |generated: &Generated| -> usize {
        generated.objects.iter().flat_map(|object| &object.egress).map(|rule| rule.ports.len()).sum()
    };
    // As many as fit.
    let wide = text("10.0.0.0/8", ports(1..25));
    let generated = made(&shop(&[("wide", &wide)]), &Options::default(), "wide");
    assert_eq!((entries(&generated), kinds(&generated)), (24, vec![LossKind::OwnNode]));
    // A narrow prefix inherits what the wide one around it has, of whatever policy.
    let narrow = text("10.1.0.0/16", ports(100..110));
    let both = shop(&[("wide", &wide), ("narrow", &narrow)]);
    let generated = made(&both, &Options::default(), "narrow");
    assert_eq!(entries(&generated), 1, "24 are the other's already");
    assert!(kinds(&generated).contains(&LossKind::PortEntries), "{:?}", generated.losses);
    // Elsewhere it has room.
    let elsewhere = text("11.1.0.0/16", ports(100..110));
    let generated = made(&shop(&[("wide", &wide), ("narrow", &elsewhere)]), &Options::default(), "narrow");
    assert_eq!((entries(&generated), kinds(&generated)), (10, vec![LossKind::OwnNode]));
    // Folding takes no more than it must.
    let many = text("10.0.0.0/8", ports(1..31));
    let generated = made(&shop(&[("many", &many)]), &Options::default(), "many");
    assert_eq!(entries(&generated), 24);
    let omitted = Options { inexpressible: Inexpressible::Omit, ..Options::default() };
    let generated = made(&shop(&[("many", &many)]), &omitted, "many");
    assert_eq!((entries(&generated), generated.losses[0].kind), (30, LossKind::PortEntries));
}

#[test]
fn many_prefixes_are_spread_over_objects() {
    let cidrs: Vec<String> =
        (0..2500).map(|number| format!(r#""10.{}.{}.0/30""#, number / 250, number % 250)).collect();
    let text = format!(
        r#"{{"clusterDns": false, "allowedDestinations": [{{"name": "x", "cidrs": [{}], "ports": [443]}}]}}"#,
        cidrs.join(", ")
    );
    let generated = alone(&text);
    let names: Vec<&str> = generated.objects.iter().map(|object| object.id.name.as_str()).collect();
    assert_eq!(names, ["egress-p", "egress-p-2", "egress-p-3"]);
    let peers: Vec<usize> =
        generated.objects.iter().map(|object| object.egress.iter().map(|rule| rule.to.len()).sum()).collect();
    assert_eq!(peers, [1000, 1000, 500]);
    for object in &generated.objects {
        assert!(object.egress.iter().all(|rule| rule.ports == [tcp(443, 443)] && !rule.to.is_empty()));
    }
    let small =
        Options { limits: Limits { object_bytes: 10_000, ..Limits::default() }, ..Options::default() };
    let generated = made(&shop(&[("p", &text)]), &small, "p");
    assert!(generated.objects.len() > 10);
    for object in &generated.objects {
        let policy = NsName::new("shop", "p");
        let origin =
            crate::k8s::generated::Origin { policy: &policy, revision: None, owner: None, losses: &[] };
        let bytes =
            serde_json::to_vec(&crate::k8s::generated::object(object, &origin)).expect("it is JSON").len();
        assert!(bytes < 10_000 + 500, "{bytes} with metadata");
    }
}

#[test]
fn a_namespace_whose_policy_never_was_valid_is_closed() {
    let mut cluster = Cluster::default();
    cluster.broken.insert(NsName::new("shop", "bad"));
    let generated = made(&cluster, &Options::default(), "bad");
    assert_eq!(generated.objects.len(), 1);
    let ignored = Settings { invalid_policy: InvalidPolicy::Ignore, ..Settings::default() };
    assert_eq!(generate(&cluster, &ignored, &Options::default(), &id("bad"), NOW), Generated::default());
}
