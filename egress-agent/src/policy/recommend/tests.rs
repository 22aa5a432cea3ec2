use std::sync::Arc;

use egress_common::verdict::Verdict;
use proptest::prelude::*;

use super::*;
use crate::policy::{
    cluster::{Pod, Service, ServicePort, Settings},
    document,
    flow::Flow,
    generate::scenario,
    model::{LabelSelector, Protocol},
    ranges::{
        custom::Custom,
        table::{Builder, Row},
    },
    reference::reference,
};

/// How many clusters are tried.
const CASES: u32 = 400;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap_or_else(|_| address(text).into())
}

fn seen(to: &str, protocol: u8, port: u16) -> Seen {
    Seen { to: net(to), protocol, port, name: None }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Returns destinations as `name: targets / ports`.
fn told(seen: &[Seen], limits: Limits) -> Vec<String> {
    let tell = |destination: &Destination| {
        let to = match &destination.to {
            Target::Named(name) => format!("{name:?}"),
            Target::Cidrs(cidrs) => cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        };
        let ports: Vec<String> = destination
            .ports
            .iter()
            .map(|(protocol, port)| format!("{port}/{}", protocol_word(*protocol)))
            .collect();
        format!("{}: {to} / {}", destination.name, ports.join(" "))
    };
    propose(seen, limits, &BTreeSet::new()).iter().map(tell).collect()
}

/// Returns the proposal as it holds once its blanks are filled.
fn filled(proposal: &Proposal) -> String {
    let mut document = proposal.document();
    let entries = document["allowedDestinations"].as_array_mut().expect("a list");
    for entry in entries {
        let entry = entry.as_object_mut().expect("an object");
        entry.remove("governance");
    }
    document.to_string()
}

#[test]
fn addresses_stay_as_they_are_unless_many_neighbours_were_seen() {
    let few: Vec<Seen> = (1..=7).map(|last| seen(&format!("192.0.2.{last}"), TCP, 443)).collect();
    assert_eq!(
        told(&few, Limits::default()),
        ["192.0.2.1-tcp-443: 192.0.2.1/32 192.0.2.2/31 192.0.2.4/30 / 443/TCP"],
        "what fills a prefix is written as that, and opens nothing more"
    );
    let many: Vec<Seen> = (1..=8).map(|last| seen(&format!("192.0.2.{}", last * 5), TCP, 443)).collect();
    assert_eq!(told(&many, Limits::default()), ["192.0.2.0-tcp-443: 192.0.2.0/26 / 443/TCP"], "the smallest");
    let apart: Vec<Seen> = (0..200).map(|third| seen(&format!("198.51.{third}.7"), TCP, 443)).collect();
    let told = told(&apart, Limits::default());
    assert_eq!(told.len(), 200, "never wider than the limit");
    assert_eq!(told[0], "198.51.0.7-tcp-443: 198.51.0.7/32 / 443/TCP");
}

#[test]
fn each_destination_has_the_ports_that_were_seen_there() {
    let all = [
        seen("192.0.2.1", TCP, 443),
        seen("192.0.2.1", TCP, 80),
        seen("192.0.2.2", TCP, 443),
        seen("192.0.2.2", ICMP, 0),
        seen("2001:db8::1", UDP, 53),
        seen("192.0.2.3", 47, 0),
    ];
    assert_eq!(
        told(&all, Limits::default()),
        [
            "192.0.2.3: 192.0.2.3/32 / ",
            "192.0.2.2-icmp: 192.0.2.2/32 / 0/ICMP 443/TCP",
            "192.0.2.1-tcp-80: 192.0.2.1/32 / 80/TCP 443/TCP",
            "2001:db8::1-udp-53: 2001:db8::1/128 / 53/UDP",
        ]
    );
}

#[test]
fn names_are_given_once() {
    let taken = BTreeSet::from(["192.0.2.1-tcp-443".to_owned()]);
    let one = propose(&[seen("192.0.2.1", TCP, 443)], Limits::default(), &taken);
    assert_eq!(one[0].name, "192.0.2.1-tcp-443-2");
}

fn small_cluster() -> Cluster {
    let mut cluster = Cluster::default();
    let port = |port| ServicePort { name: String::new(), protocol: Protocol::Tcp, port };
    let service = |address_: &str, number| Service {
        cluster_ips: vec![address(address_)],
        ports: vec![port(number)],
        ..Service::default()
    };
    cluster.services.insert(NsName::new("infra", "redis"), service("10.96.0.5", 6379));
    cluster.services.insert(NsName::new("default", "kubernetes"), service("10.96.0.1", 443));
    let pod = |last: u8, labels_: &[(&str, &str)], host_network| Pod {
        labels: labels(labels_),
        ips: [address(&format!("10.244.0.{last}"))].into_iter().collect(),
        host_network,
        ..Pod::default()
    };
    cluster
        .pods
        .insert(NsName::new("infra", "db-0"), pod(7, &[("app", "db"), ("pod-template-hash", "1")], false));
    cluster.pods.insert(NsName::new("infra", "bare"), pod(8, &[("pod-template-hash", "1")], false));
    cluster.pods.insert(NsName::new("infra", "host"), pod(9, &[("app", "host")], true));
    cluster
}

#[test]
fn what_the_cluster_knows_is_called_by_its_name() {
    let cluster = small_cluster();
    let asked = |text: &str, protocol, port| (address(text), protocol, port);
    let sought = BTreeSet::from([
        asked("10.96.0.5", TCP, 6379),
        asked("10.96.0.5", TCP, 80),
        asked("10.96.0.1", TCP, 443),
        asked("10.244.0.7", TCP, 5432),
        asked("10.244.0.7", ICMP, 0),
        asked("10.244.0.8", TCP, 80),
        asked("10.244.0.9", TCP, 80),
        asked("192.0.2.1", TCP, 80),
    ]);
    let found = names(&cluster, &Ranges::default(), &sought);
    let redis = Name::Service { namespace: "infra".to_owned(), name: "redis".to_owned() };
    let db = Name::Pods {
        namespace: "infra".to_owned(),
        labels: BTreeMap::from([("app".to_owned(), "db".to_owned())]),
    };
    let wanted = BTreeMap::from([
        (asked("10.96.0.5", TCP, 6379), redis),
        (asked("10.96.0.1", TCP, 443), Name::KubeApiserver),
        (asked("10.244.0.7", TCP, 5432), db),
    ]);
    assert_eq!(
        found, wanted,
        "a port the Service does not have, ICMP, no lasting label, the host's network: no name"
    );
}

#[test]
fn a_service_that_the_platform_team_defines_is_recognised_for_its_ports() {
    let text = r#"{"services": {
        "partners": {"cidrs": ["198.51.100.0/24"]},
        "cards": {"cidrs": ["198.51.100.0/28", "2001:db8:1::/48"], "ports": [{"port": 443, "protocol": "TCP"}]},
        "wide": {"cidrs": ["128.0.0.0/1", "2000::/12"]}}}"#;
    let mut ranges = Ranges::default();
    ranges.set_custom(Custom::parse(&[("own.json", text)]).unwrap_or_else(|faults| panic!("{faults:?}")));
    let at = |ranges: &Ranges, text: &str, protocol, port| {
        let key = (address(text), protocol, port);
        let found = names(&Cluster::default(), ranges, &BTreeSet::from([key]));
        found.get(&key).map(|name| match name {
            Name::Cloud { provider, service, region: None } => format!("{provider} {service}"),
            Name::Cloud { provider, service, .. } => format!("{provider} {service} somewhere"),
            other => panic!("{other:?} is no cloud"),
        })
    };
    for (to, protocol, port, wanted) in [
        ("198.51.100.1", TCP, 443, Some("custom cards")),
        ("198.51.100.1", TCP, 80, Some("custom partners")),
        ("198.51.100.1", UDP, 443, Some("custom partners")),
        ("198.51.100.200", UDP, 53, Some("custom partners")),
        ("2001:db8:1::5", TCP, 443, Some("custom cards")),
        ("2001:db8:1::5", TCP, 444, None),
        // What is as wide as that names nothing.
        ("203.0.113.1", TCP, 443, None),
        ("2001:db8:2::1", TCP, 443, None),
    ] {
        assert_eq!(at(&ranges, to, protocol, port).as_deref(), wanted, "{to} {protocol} {port}");
    }
    let name = Name::Cloud { provider: "custom".to_owned(), service: "cards".to_owned(), region: None };
    let proposal = Proposal {
        destinations: propose(
            &[Seen { name: Some(name), ..seen("198.51.100.1", TCP, 443) }],
            Limits::default(),
            &BTreeSet::new(),
        ),
        ..Proposal::default()
    };
    let document = filled(&proposal);
    let parsed = document::parse(&NsName::new("shop", "p"), &document);
    assert!(
        parsed.policy.is_some() && document.contains(r#""service":"cards""#),
        "{document}: {:?}",
        parsed.findings
    );
    // Of a provider's and one's own, the narrower.
    let mut builder = Builder::new();
    let row = |cidr| Row {
        service: "S3",
        region: "us-east-1",
        network_border_group: "us-east-1",
        wider: "",
        cidr: net(cidr),
    };
    builder.push(row("198.51.100.0/30")).expect("it fits");
    ranges.set_provider("aws", Arc::new(builder.finish(None)));
    assert_eq!(at(&ranges, "198.51.100.1", TCP, 443).as_deref(), Some("aws S3 somewhere"));
    assert_eq!(at(&ranges, "198.51.100.9", TCP, 443).as_deref(), Some("custom cards"));
}

#[test]
fn a_cloud_is_recognised_by_its_narrowest_service_and_never_as_its_room_for_customers() {
    let mut builder = Builder::new();
    for (service, region, cidr) in [
        ("AMAZON", "us-east-1", "198.51.100.0/24"),
        ("S3", "us-east-1", "198.51.100.0/25"),
        ("S3", "eu-west-1", "203.0.113.0/25"),
        ("AMAZON", "eu-west-1", "203.0.113.0/24"),
        ("EC2", "eu-west-1", "203.0.113.128/25"),
        ("DYNAMODB", "us-east-1", "198.51.100.64/26"),
        ("CLOUDFRONT", "GLOBAL", "192.0.2.0/24"),
    ] {
        let row = Row { service, region, network_border_group: region, wider: "", cidr: net(cidr) };
        builder.push(row).expect("it fits");
    }
    let mut ranges = Ranges::default();
    ranges.set_provider("aws", Arc::new(builder.finish(None)));
    let at = |text: &str| {
        let key = (address(text), TCP, 443);
        let found = names(&Cluster::default(), &ranges, &BTreeSet::from([key]));
        found.get(&key).map(|name| match name {
            Name::Cloud { provider, service, region } => {
                format!("{provider} {service} {}", region.as_deref().unwrap_or("everywhere"))
            }
            other => panic!("{other:?} is no cloud"),
        })
    };
    assert_eq!(at("198.51.100.1").as_deref(), Some("aws S3 us-east-1"));
    assert_eq!(at("198.51.100.70").as_deref(), Some("aws DYNAMODB us-east-1"), "the narrowest");
    assert_eq!(at("203.0.113.1").as_deref(), Some("aws S3 eu-west-1"));
    assert_eq!(at("203.0.113.200"), None, "whatever customers run");
    assert_eq!(at("192.0.2.1").as_deref(), Some("aws CLOUDFRONT GLOBAL"));
    assert_eq!(at("8.8.8.8"), None);
    let named = Seen {
        name: names(&Cluster::default(), &ranges, &BTreeSet::from([(address("198.51.100.1"), TCP, 443)]))
            .into_values()
            .next(),
        ..seen("198.51.100.1", TCP, 443)
    };
    let proposal = Proposal {
        destinations: propose(&[named], Limits::default(), &BTreeSet::new()),
        ..Proposal::default()
    };
    let parsed = document::parse(&NsName::new("shop", "p"), &filled(&proposal));
    assert!(parsed.policy.is_some(), "{:?}", parsed.findings);
}

#[test]
fn a_workload_is_what_its_owner_wrote() {
    let hashed = labels(&[("pod-template-hash", "7d4b9c6f5"), ("app", "web")]);
    assert_eq!(workload("ReplicaSet/web-7d4b9c6f5", &hashed), "Deployment/web");
    assert_eq!(workload("ReplicaSet/web", &hashed), "ReplicaSet/web");
    assert_eq!(workload("StatefulSet/db", &Labels::new()), "StatefulSet/db");
    assert_eq!(workload("Job/night-ly-29729160", &Labels::new()), "CronJob/night-ly");
    for own in ["Job/import-2", "Job/night-2972916x", "Job/29729160", "Pod/a-29729160"] {
        assert_eq!(workload(own, &Labels::new()), own);
    }
    assert_eq!(lasting(&hashed).into_keys().collect::<Vec<_>>(), ["app"]);
}

#[test]
fn the_document_is_accepted_but_for_its_blanks() {
    let mut some =
        vec![seen("192.0.2.1", TCP, 443), seen("192.0.2.1", ICMP, 0), seen("2001:db8::/48", UDP, 53)];
    some.push(Seen { name: Some(Name::KubeApiserver), ..seen("10.96.0.1", TCP, 443) });
    let proposal = Proposal {
        enforce: true,
        pods: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
        destinations: propose(&some, Limits::default(), &BTreeSet::new()),
        ..Proposal::default()
    };
    let id = NsName::new("shop", "p");
    let whole = document::parse(&id, &filled(&proposal));
    let policy = whole.policy.expect("it is a policy");
    assert!(!policy.selector.is_empty() && policy.rules.len() == 3, "{policy:?}");
    assert!(!whole.findings.iter().any(crate::policy::finding::Finding::is_error), "{:?}", whole.findings);
    let blank = document::parse(&id, &proposal.document().to_string());
    assert!(blank.policy.is_none(), "somebody must fill it in");
    for finding in blank.findings.iter().filter(|finding| finding.is_error()) {
        assert!(finding.path.contains("governance"), "{finding:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    /// What was seen is not denied once the proposal is all there is; what is elsewhere is.
    #[test]
    fn the_proposal_denies_nothing_that_was_seen(
        scenario in scenario(),
        v4 in 8_u8..=32,
        v6 in 32_u8..=128,
        neighbours in 1_usize..10,
        named in any::<bool>(),
    ) {
        let mut cluster = scenario.cluster;
        cluster.policies.clear();
        cluster.broken.clear();
        let settings = Settings { governed_namespaces: BTreeSet::new(), ..scenario.settings };
        let key = |flow: &Flow| (flow.destination, flow.protocol, flow.port);
        let sought: BTreeSet<_> = scenario.flows.iter().map(key).collect();
        let known = if named { names(&cluster, &Ranges::default(), &sought) } else { BTreeMap::new() };
        let seen: Vec<Seen> = scenario
            .flows
            .iter()
            .map(|flow| Seen {
                to: flow.destination.into(),
                protocol: flow.protocol,
                port: flow.port,
                name: known.get(&key(flow)).cloned(),
            })
            .collect();
        let limits = Limits { v4, v6, neighbours };
        let destinations = propose(&seen, limits, &BTreeSet::new());
        for destination in &destinations {
            if let Target::Cidrs(cidrs) = &destination.to {
                for cidr in cidrs {
                    let limit = if cidr.addr().is_ipv4() { v4 } else { v6 };
                    prop_assert!(cidr.prefix_len() >= limit, "{cidr} is wider than the limit {limit}");
                }
            }
        }
        let proposal = Proposal { enforce: true, destinations, ..Proposal::default() };
        let text = filled(&proposal);
        let parsed = document::parse(&NsName::new(&*scenario.pod.namespace, "proposed"), &text);
        let Some(policy) = parsed.policy else {
            return Err(TestCaseError::fail(format!("{text}: {:?}", parsed.findings)));
        };
        prop_assert_eq!(&policy.selector, &LabelSelector::default());
        cluster.policies.insert(policy.id.clone(), Arc::new(policy));
        for flow in &scenario.flows {
            let answer = reference(&cluster, &settings, &scenario.pod, flow, scenario.now).expect("there is the pod");
            prop_assert!(answer.verdict != Verdict::Deny, "{flow:?}: {answer:?} under {text}");
        }
        // No pool has this address, nor anything near it.
        let elsewhere = Flow { destination: address("203.0.113.77"), protocol: TCP, port: 9 };
        let answer = reference(&cluster, &settings, &scenario.pod, &elsewhere, scenario.now).expect("there is the pod");
        let governed = !cluster.pods[&scenario.pod].finished;
        prop_assert!(!governed || answer.verdict == Verdict::Deny, "{answer:?} under {text}");
    }
}
