//! Changes and what is said of them.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::policy::{cluster::NsName, document::parse, governance::port_is_in};

/// Noon of 2026-11-22, UTC.
const NOW: u64 = 1_795_348_800;

fn policy(text: &str) -> Policy {
    parse(&NsName::new("shop", "egress"), text).policy.unwrap_or_else(|| panic!("{text} is a policy"))
}

fn said(old: &str, new: &str) -> Vec<String> {
    let difference = Difference::between(Some(&policy(old)), Some(&policy(new)), NOW);
    lines(&difference)
}

fn lines(difference: &Difference) -> Vec<String> {
    let parts = [("+", &difference.opens), ("-", &difference.closes), ("~", &difference.changes)];
    parts
        .into_iter()
        .flat_map(|(sign, list)| {
            list.iter().map(move |statement| {
                let name = statement.destination.as_ref().map_or(String::new(), |name| format!("{name}: "));
                format!("{sign} {name}{}", statement.text)
            })
        })
        .collect()
}

fn allowed(list: &str) -> String {
    format!(r#"{{"allowedDestinations": [{list}]}}"#)
}

#[test]
fn destinations_are_compared_by_name() {
    let a = |rest: &str| allowed(&format!(r#"{{"name": "a", {rest}}}"#));
    for (old, new, expected) in [
        (
            r#""cidr": "10.1.0.0/24", "ports": [443]"#,
            r#""cidr": "10.1.0.0/24", "ports": ["443/TCP"]"#,
            &[][..],
        ),
        (
            r#""cidr": "10.1.0.0/24", "ports": [443]"#,
            r#""cidr": "10.1.0.0/23", "ports": [443]"#,
            &["+ a: 256 IPv4 addresses (10.1.1.0/24) on 443/TCP"],
        ),
        (
            r#""cidr": "10.1.0.0/24", "ports": [443, "8000-8010"]"#,
            r#""cidr": "10.1.0.0/25", "ports": [80, "8005-8020"]"#,
            &[
                "+ a: 128 IPv4 addresses (10.1.0.0/25) on 80/TCP, 8011-8020/TCP",
                "- a: 128 IPv4 addresses (10.1.0.128/25) on 443/TCP, 8000-8010/TCP",
                "- a: 128 IPv4 addresses (10.1.0.0/25) on 443/TCP, 8000-8004/TCP",
            ],
        ),
        (
            r#""cidr": "10.1.0.0/24", "ports": [443]"#,
            r#""cidr": "10.1.0.0/24""#,
            &["+ a: 256 IPv4 addresses (10.1.0.0/24) on every protocol and port but 443/TCP"],
        ),
        (
            r#""domains": ["api.a.com", "b.com"]"#,
            r#""domains": ["*.a.com", "b.com"]"#,
            &["+ a: domain *.a.com, but for what stays on every protocol and port"],
        ),
        (
            r#""awsService": "s3""#,
            r#""awsService": "S3", "regions": ["us-east-1"]"#,
            &["- a: AWS service S3 in every region, but for what stays on every protocol and port"],
        ),
        (
            r#""entity": "node", "ports": ["UDP", "ICMP"]"#,
            r#""service": {"name": "redis"}, "ports": ["http"]"#,
            &["+ a: service shop/redis on http/TCP", "- a: the pod's own node on every port of UDP, ICMP"],
        ),
        (
            r#""pods": {"podSelector": {"matchLabels": {"b": "1", "a": "2"}}}"#,
            r#""pods": {"namespaceSelector": {"matchExpressions": [{"key": "t", "operator": "In", "values": ["x", "y"]}]}}"#,
            &[
                "+ a: every pod of namespaces with t in (x,y) on every protocol and port",
                "- a: pods with a=2,b=1 of its own namespace on every protocol and port",
            ],
        ),
    ] {
        assert_eq!(said(&a(old), &a(new)), expected, "{old} to {new}");
    }
}

#[test]
fn what_another_destination_allows_is_told_apart() {
    let wide = r#"{"name": "wide", "cidr": "10.0.0.0/8", "ports": [443]}"#;
    let narrow = r#"{"name": "narrow", "cidrs": ["10.1.0.0/24", "192.0.2.0/24"], "ports": [443]}"#;
    assert_eq!(
        said(&allowed(wide), &allowed(&format!("{wide}, {narrow}"))),
        [
            "+ narrow: 512 IPv4 addresses (10.1.0.0/24, 192.0.2.0/24) on 443/TCP; no other destination allows 256 IPv4 addresses"
        ]
    );
    assert_eq!(
        said(&allowed(&format!("{wide}, {narrow}")), &allowed(narrow)),
        [
            "- wide: 16777216 IPv4 addresses (10.0.0.0/8) on 443/TCP; no other destination allows 16776960 IPv4 addresses"
        ]
    );
    let ends = wide.replace("[443]", r#"[443], "governance": {"expiry": "2027-01-01"}"#);
    assert_eq!(
        said(&allowed(&ends), &allowed(&format!("{ends}, {narrow}"))),
        ["+ narrow: 512 IPv4 addresses (10.1.0.0/24, 192.0.2.0/24) on 443/TCP"],
        "what ends sooner does not make up for it"
    );
    let other = narrow.replace("443", "80");
    assert_eq!(
        said(&allowed(wide), &allowed(&format!("{wide}, {other}"))),
        ["+ narrow: 512 IPv4 addresses (10.1.0.0/24, 192.0.2.0/24) on 80/TCP"]
    );
}

#[test]
fn ends_and_governance() {
    let a = |governance: &str| {
        allowed(&format!(
            r#"{{"name": "a", "cidr": "192.0.2.0/24", "ports": [443], "governance": {{{governance}}}}}"#
        ))
    };
    let all = "256 IPv4 addresses (192.0.2.0/24) on 443/TCP";
    for (old, new, expected) in [
        (
            r#""expiry": "2027-01-01""#,
            r#""expiry": "2027-02-01""#,
            vec!["+ a: ends at 2027-02-02T00:00:00Z instead of 2027-01-02T00:00:00Z".to_owned()],
        ),
        (
            "",
            r#""expiry": "2027-02-01""#,
            vec!["- a: ends at 2027-02-02T00:00:00Z instead of no time".to_owned()],
        ),
        (
            r#""expiry": "2026-01-01""#,
            r#""expiry": "2027-02-01""#,
            vec![
                format!("+ a: {all}"),
                "~ a: ends at 2027-02-02T00:00:00Z instead of 2026-01-02T00:00:00Z".to_owned(),
            ],
        ),
        (
            r#""owner": "x", "reason": "r""#,
            r#""owner": "y""#,
            vec![
                r#"~ a: owner is "y" instead of "x""#.to_owned(),
                r#"~ a: reason is nothing instead of "r""#.to_owned(),
            ],
        ),
    ] {
        assert_eq!(said(&a(old), &a(new)), expected, "{old} to {new}");
    }
    let ended = a(r#""expiry": "2026-01-01""#);
    assert_eq!(said("{}", &ended), ["~ a: is new, but ended at 2026-01-02T00:00:00Z"]);
    assert_eq!(said(&ended, "{}"), ["~ a: is gone; it ended at 2026-01-02T00:00:00Z"]);
    assert_eq!(said(&a(""), &a("").replace("\"a\"", "\"b\"")), ["~ b: is called so instead of a"]);
}

#[test]
fn denied_destinations_are_the_other_way_round() {
    let denied = r#"{"deniedDestinations": [{"name": "a", "cidr": "192.0.2.1/32"}]}"#;
    let text = "a: 1 IPv4 address (192.0.2.1/32) on every protocol and port, a denied destination";
    assert_eq!(said("{}", denied), [format!("- {text}")]);
    assert_eq!(said(denied, "{}"), [format!("+ {text}")]);
    let allowed = denied.replace("denied", "allowed");
    assert_eq!(said(denied, &allowed).len(), 2);
}

#[test]
fn the_top_is_compared() {
    let old = r#"{"mode": "audit", "defaultAction": "allow", "clusterDns": false}"#;
    let new = r#"{"podSelector": {"matchLabels": {"app": "a"}}}"#;
    assert_eq!(
        said(old, new),
        [
            "+ mode is enforce instead of audit: its destinations are open, also where another policy denies by default",
            "+ the cluster's DNS, by clusterDns",
            "+ it selects pods with app=a instead of every pod: pods that are selected no more are not held by it, those that are now have its destinations",
            "- mode is enforce instead of audit: what it denies is dropped",
            "- everything that no destination allows: the default is deny instead of allow",
        ]
    );
    let back = said(new, old);
    assert!(back[0].starts_with("+ mode is audit") && back[1].starts_with("+ everything"), "{back:?}");
    let comes = Difference::between(None, Some(&policy(new)), NOW);
    assert_eq!((comes.opens.len(), comes.closes.len(), comes.changes.len()), (1, 1, 1));
    assert_eq!(comes.opens[0].text, "the cluster's DNS, by clusterDns");
    let goes = Difference::between(Some(&policy(new)), None, NOW);
    assert_eq!((goes.opens.len(), goes.closes.len(), goes.changes.len()), (1, 1, 1));
    assert_eq!(goes.closes[0].text, "the cluster's DNS, by clusterDns");
}

#[test]
fn a_policy_that_becomes_enforced_opens_its_destinations() {
    let policy = |mode: &str| {
        format!(
            r#"{{"mode": "{mode}", "allowedDestinations": [
                {{"name": "a", "cidr": "192.0.2.0/24", "ports": [443]}},
                {{"name": "ended", "cidr": "198.51.100.0/24", "governance": {{"expiry": "2026-01-01"}}}}],
                "deniedDestinations": [{{"name": "d", "cidr": "203.0.113.0/24"}}]}}"#
        )
    };
    let (audit, enforce) = (policy("audit"), policy("enforce"));
    let a = "a: 256 IPv4 addresses (192.0.2.0/24) on 443/TCP";
    let dns = "the cluster's DNS, by clusterDns";
    assert_eq!(
        said(&audit, &enforce),
        [
            "+ mode is enforce instead of audit: its destinations are open, also where another policy denies by default",
            &format!("+ {dns}"),
            &format!("+ {a}"),
            "- mode is enforce instead of audit: what it denies is dropped",
        ]
    );
    assert_eq!(
        said(&enforce, &audit),
        [
            "+ mode is audit instead of enforce: what it denies passes and is reported",
            "- mode is audit instead of enforce: its destinations open nothing that another policy closes",
            &format!("- {dns}"),
            &format!("- {a}"),
        ]
    );
    let wider = enforce.replace("192.0.2.0/24", "192.0.2.0/23");
    let both = said(&audit, &wider);
    assert!(both.contains(&"+ a: 512 IPv4 addresses (192.0.2.0/23) on 443/TCP".to_owned()), "{both:?}");
    let later = said(&wider, &audit);
    assert!(later.iter().any(|line| line.starts_with("~ a: leads elsewhere")), "{later:?}");
    let renamed = said(&audit, &enforce.replace(r#""a""#, r#""b""#));
    assert!(renamed.contains(&format!("+ {}", a.replacen('a', "b", 1))), "{renamed:?}");
    assert!(said(&audit, &audit).is_empty());
}

#[test]
fn what_is_cut_where_it_is_shown_is_compared_whole() {
    let long = "x".repeat(90);
    let cloud = |service: &str, region: &str| {
        allowed(&format!(
            r#"{{"name": "a", "cloud": {{"provider": "azure", "services": ["{service}"], "regions": ["{region}"]}}}}"#
        ))
    };
    for (old, new) in [
        (cloud(&format!("{long}1"), "r"), cloud(&format!("{long}2"), "r")),
        (cloud("s", &format!("{long}1")), cloud("s", &format!("{long}2"))),
    ] {
        assert_eq!(said(&old, &new).len(), 2, "one opens, one closes: {:?}", said(&old, &new));
    }
}

#[test]
fn an_ended_destination_that_changes_is_told_of() {
    let a = |cidr: &str, ports: &str| {
        allowed(&format!(
            r#"{{"name": "a", "cidr": "{cidr}", "ports": {ports}, "governance": {{"expiry": "2026-01-01"}}}}"#
        ))
    };
    let old = a("192.0.2.0/24", "[443]");
    let expected = ["~ a: leads elsewhere, or to other ports, than before; it ended at 2026-01-02T00:00:00Z"];
    assert_eq!(said(&old, &a("192.0.0.0/16", "[443]")), expected);
    assert_eq!(said(&old, &a("192.0.2.0/24", "[443, 80]")), expected);
    assert!(said(&old, &a("192.0.2.0/24", r#"["443/TCP"]"#)).is_empty());
}

#[test]
fn ports_written_another_way_are_the_same() {
    let a = |ports: &str| allowed(&format!(r#"{{"name": "a", "cidr": "192.0.2.0/24", "ports": {ports}}}"#));
    for (old, new) in [
        (r#"["80-90", "91-99"]"#, r#"["80-99"]"#),
        (r#"[443, "TCP"]"#, r#"["TCP"]"#),
        (r#"["53/UDP", 443, "1-5", "3-9"]"#, r#"["1-9", "443", "53/UDP"]"#),
    ] {
        assert!(said(&a(old), &a(new)).is_empty(), "{old} to {new}");
        assert!(said(&a(new), &a(old)).is_empty(), "{new} to {old}");
    }
    let selector = |text: &str| format!(r#"{{"podSelector": {text}}}"#);
    let one = r#"{"matchLabels": {"a": "1", "b": "2"}, "matchExpressions": [{"key": "x", "operator": "In", "values": ["1", "2"]}, {"key": "y", "operator": "Exists"}]}"#;
    let other = r#"{"matchLabels": {"b": "2", "a": "1"}, "matchExpressions": [{"key": "y", "operator": "Exists"}, {"key": "x", "operator": "In", "values": ["2", "1"]}]}"#;
    assert!(said(&selector(one), &selector(other)).is_empty());
    let denied =
        |rest: &str| format!(r#"{{"deniedDestinations": [{{"name": "a", "cidr": "192.0.2.1/32"{rest}}}]}}"#);
    assert_eq!(
        said(&denied(""), &denied(r#", "ports": ["TCP"]"#)),
        [
            "+ a: 1 IPv4 address (192.0.2.1/32) on every protocol and port but every port of TCP, a denied destination"
        ]
    );
}

#[test]
fn many_lists_of_many_ports_are_compared_in_time() {
    let rules: Vec<String> = (0..300)
        .map(|n: usize| {
            let ports: Vec<String> = (0..256).map(|port| (2 + 4 * port + n % 2).to_string()).collect();
            format!(
                r#"{{"name": "d{n}", "cidr": "10.{}.{}.0/24", "ports": [{},"{}"]}}"#,
                n / 256,
                n % 256,
                ports[..255].join(","),
                60_000 + n
            )
        })
        .collect();
    let document = allowed(&rules.join(","));
    let began = std::time::Instant::now();
    // Each is compared with what all of the others allow.
    let moved = document.replace("\"10.", "\"11.");
    let difference = Difference::between(Some(&policy(&document)), Some(&policy(&moved)), NOW);
    assert_eq!((difference.opens.len(), difference.closes.len()), (300, 300));
    assert!(began.elapsed() < std::time::Duration::from_secs(30), "{:?}", began.elapsed());
}

fn rule() -> impl Strategy<Value = String> {
    let net = (0u8..8, 29u8..=32).prop_map(|(low, length)| {
        ipnet::IpNet::new_assert(IpAddr::from([10, 0, 0, low]), length).trunc().to_string()
    });
    let port = (1u16..6, 0u16..3, any::<bool>()).prop_map(|(first, more, udp)| {
        format!("\"{first}-{}/{}\"", first + more, if udp { "UDP" } else { "TCP" })
    });
    (net, proptest::option::of(proptest::collection::vec(port, 1..3))).prop_map(|(net, ports)| {
        let ports = ports.map_or(String::new(), |ports| format!(", \"ports\": [{}]", ports.join(",")));
        format!("\"cidr\": \"{net}\"{ports}")
    })
}

proptest! {
    #[test]
    fn what_is_said_to_open_is_what_was_closed(old in rule(), new in rule()) {
        let document = |rest: &str| allowed(&format!(r#"{{"name": "a", {rest}}}"#));
        let (old, new) = (policy(&document(&old)), policy(&document(&new)));
        let both = Both { old: Side::new(Some(&old), None, NOW), new: Side::new(Some(&new), None, NOW), now: NOW };
        let statements = both.beyond(&new.rules[0], Some(&old.rules[0]), Some(&both.old));
        let allows = |policy: &Policy, ip: IpAddr, port: u16, protocol: Protocol| {
            let rule = &policy.rules[0];
            let spec = PortSpec { protocol, port: PortMatch::Range(port, port) };
            let named = match &rule.ports {
                Ports::All => true,
                Ports::List(list) => list.iter().any(|outer| port_is_in(&spec, outer)),
            };
            named && addresses(rule).contains(ip)
        };
        let mut opened = false;
        for low in 0..8 {
            for port in 1..9 {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let ip = IpAddr::from([10, 0, 0, low]);
                    opened |= allows(&new, ip, port, protocol) && !allows(&old, ip, port, protocol);
                }
            }
        }
        // Ports above those tried are opened where the list goes away.
        let all = matches!((&new.rules[0].ports, &old.rules[0].ports), (Ports::All, Ports::List(_)));
        prop_assert_eq!(!statements.is_empty(), opened || all, "{:?}", statements);
        prop_assert!(Difference::between(Some(&new), Some(&new), NOW).is_empty());
    }

    #[test]
    fn ports_that_are_left_are_in_the_one_and_not_in_the_other(
        list in proptest::collection::vec((1u16..20, 0u16..5), 1..4),
        away in proptest::collection::vec((1u16..20, 0u16..5), 1..4),
    ) {
        let ports = |list: &[(u16, u16)]| {
            let spec = |(first, more): &(u16, u16)| PortSpec { protocol: Protocol::Tcp, port: PortMatch::Range(*first, first + more) };
            Ports::List(list.iter().map(spec).collect())
        };
        let holds = |ports: Option<&Ports>, port: u16| match ports {
            Some(Ports::List(list)) => list.iter().any(|spec| matches!(spec.port, PortMatch::Range(first, last) if first <= port && port <= last)),
            Some(Ports::All) => true,
            None => false,
        };
        let (list, away) = (ports(&list), ports(&away));
        let rest = match ports_minus(&plain(&list), &plain(&away)) {
            Some(Rest::Ports(ports)) => Some(ports),
            Some(Rest::AllBut(_)) => panic!("a list is not all"),
            None => None,
        };
        prop_assert_eq!(rest.is_none(), are_in(&plain(&list), &plain(&away)));
        for port in 1..30 {
            prop_assert_eq!(holds(rest.as_ref(), port), holds(Some(&list), port) && !holds(Some(&away), port), "{}", port);
        }
    }
}
