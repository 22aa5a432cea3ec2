//! Documents and what is said about them, word for word.

use proptest::prelude::*;

use super::*;
use crate::policy::model::{Entity, Peer, PortMatch, PortSpec, Ports, Protocol, Unresolved};

const FIRST: &str = r#"{ "defaultAction": "deny",
  "allowedDestinations": [
    {"name": "s3", "awsService": "s3", "regions": ["us-east-1"], "ports": [443]},
    {"name": "db", "cidr": "10.1.0.0/24", "ports": [5432]} ] }"#;

const SECOND: &str = r#"{ "defaultAction": "deny", "mode": "enforce",
  "podSelector": {"matchLabels": {"app": "checkout"}},
  "governance": {"owner": "team-payments"},
  "allowedDestinations": [
    {"name": "stripe", "domains": ["api.stripe.com", "*.stripe.com"], "ports": ["443/TCP"],
     "governance": {"reason": "card capture", "dataClassification": "restricted", "expiry": "2027-03-31", "auditRef": "SEC-12345"}},
    {"name": "lan", "cidrs": ["10.0.0.0/8"], "except": ["10.9.0.0/16"], "ports": [{"port": 8000, "endPort": 8010, "protocol": "TCP"}]},
    {"name": "cache", "service": {"namespace": "infra", "name": "redis"}, "ports": [6379]},
    {"name": "peers", "pods": {"namespaceSelector": {"matchLabels": {"team": "x"}}, "podSelector": {}}, "ports": ["http"]},
    {"name": "api", "entity": "kube-apiserver", "ports": [443]},
    {"name": "ping", "cidr": "192.0.2.0/24", "ports": [{"protocol": "ICMP"}]} ],
  "deniedDestinations": [ {"name": "imds", "cidr": "169.254.169.254/32"} ] }"#;

fn id() -> NsName {
    NsName::new("shop", "egress")
}

fn said(text: &str) -> Vec<String> {
    let parsed = parse(&id(), text);
    let failed = parsed.findings.iter().any(Finding::is_error);
    assert_eq!(parsed.policy.is_none(), failed, "no policy exactly if there is an error: {text}");
    parsed
        .findings
        .iter()
        .map(|f| if f.is_error() { f.to_string() } else { format!("warning: {f}") })
        .collect()
}

fn good(text: &str) -> Policy {
    let parsed = parse(&id(), text);
    assert_eq!(parsed.findings, [], "{text}");
    parsed.policy.expect("no findings")
}

/// A document with one allowed destination that has these fields besides its name.
fn one(fields: &str) -> String {
    format!("{{\"allowedDestinations\": [\n{{\"name\": \"a\", {fields}}}]}}")
}

fn range(protocol: Protocol, first: u16, last: u16) -> PortSpec {
    PortSpec { protocol, port: PortMatch::Range(first, last) }
}

#[test]
fn what_nobody_needs_so_many_of_is_limited() {
    let many =
        |count: usize, item: &dyn Fn(usize) -> String| (0..count).map(item).collect::<Vec<_>>().join(",");
    let starts = |text: &str, begin: &str| {
        let said = said(text);
        assert!(said.len() == 1 && said[0].contains(begin), "{begin}: {said:?}");
    };
    let destination = |n: usize| format!(r#"{{"name":"{n}","entity":"node"}}"#);
    let both = |allowed, denied| {
        let (allowed, denied) = (many(allowed, &destination), many(denied, &|n| destination(n + 100_000)));
        format!(r#"{{"allowedDestinations":[{allowed}],"deniedDestinations":[{denied}]}}"#)
    };
    starts(&both(16_383, 2), "Too many destinations: 16385, at most 16384");
    assert!(parse(&id(), &both(16_383, 1)).policy.is_some());
    let ports =
        |count| one(&format!(r#""cidr":"10.0.0.0/8","ports":[{}]"#, many(count, &|n| (n + 1).to_string())));
    starts(&ports(257), "Too many ports: 257, at most 256 items");
    assert!(parse(&id(), &ports(256)).policy.is_some());
    let address =
        |n: usize| format!(r#""{}/32""#, std::net::Ipv4Addr::from(u32::try_from(n).expect("small")));
    let cidrs = |count| one(&format!(r#""cidrs":[{}]"#, many(count, &address)));
    starts(&cidrs(32_769), "Too many CIDRs: 32769, at most 32768 in a list");
    assert!(parse(&id(), &cidrs(32_768)).policy.is_some());
    let lists = many(9, &|k| {
        let list = many(7_500, &|n| format!("\"{:x}:{n:x}::/32\"", k + 1));
        format!(r#"{{"name":"{k}","cidrs":[{list}]}}"#)
    });
    let text = format!(r#"{{"allowedDestinations":[{lists}]}}"#);
    assert!(text.len() <= MAX_BYTES, "{}", text.len());
    starts(&text, "Too many CIDRs: 67500 in the document, at most 65536");
}

#[test]
fn the_first_example_works() {
    let policy = good(FIRST);
    assert_eq!(policy.id, PolicyId { kind: PolicyKind::ConfigMap, id: id() });
    assert_eq!((policy.mode, policy.default_action), (Mode::Enforce, DefaultAction::Deny));
    assert_eq!((policy.cluster_dns, policy.own_node), (true, false));
    assert_eq!(policy.selector, LabelSelector::default());
    let [s3, db] = policy.rules.as_slice() else { panic!("two rules: {policy:?}") };
    let aws = Unresolved::AwsService { service: "s3".into(), regions: vec!["us-east-1".into()] };
    assert_eq!((s3.name.as_str(), s3.peers.as_slice()), ("s3", &[Peer::Unresolved(aws)][..]));
    let net = "10.1.0.0/24".parse().expect("a prefix");
    assert_eq!(db.peers, [Peer::Cidrs { cidrs: vec![net], except: vec![] }]);
    assert_eq!(db.ports, Ports::List(vec![range(Protocol::Tcp, 5432, 5432)]));
}

#[test]
fn the_second_example_works() {
    let policy = good(SECOND);
    assert_eq!(policy.selector.match_labels, [("app".to_owned(), "checkout".to_owned())]);
    let [stripe, lan, cache, peers, api, ping, imds] = policy.rules.as_slice() else {
        panic!("seven rules: {policy:?}")
    };
    assert_eq!(stripe.expires, Some(1_806_537_600), "the end of the day, UTC");
    assert_eq!(stripe.governance.owner.as_deref(), Some("team-payments"), "inherited from the top");
    assert_eq!(stripe.governance.reason.as_deref(), Some("card capture"));
    assert_eq!(stripe.governance.data_classification.as_deref(), Some("restricted"));
    assert_eq!(stripe.governance.audit_ref.as_deref(), Some("SEC-12345"));
    let domains = vec!["api.stripe.com".to_owned(), "*.stripe.com".to_owned()];
    assert_eq!(stripe.peers, [Peer::Unresolved(Unresolved::Domains(domains))]);
    let nets = |text: &str| vec![text.parse().expect("a prefix")];
    assert_eq!(lan.peers, [Peer::Cidrs { cidrs: nets("10.0.0.0/8"), except: nets("10.9.0.0/16") }]);
    assert_eq!(lan.ports, Ports::List(vec![range(Protocol::Tcp, 8000, 8010)]));
    assert_eq!(cache.peers, [Peer::Service(NsName::new("infra", "redis"))]);
    let team = LabelSelector { match_labels: vec![("team".into(), "x".into())], match_expressions: vec![] };
    assert_eq!(peers.peers, [Peer::Pods { namespaces: Some(team), pods: Some(LabelSelector::default()) }]);
    let http = PortSpec { protocol: Protocol::Tcp, port: PortMatch::Name("http".into()) };
    assert_eq!(peers.ports, Ports::List(vec![http]));
    assert_eq!(api.peers, [Peer::Entity(Entity::KubeApiserver)]);
    assert_eq!(ping.ports, Ports::List(vec![PortSpec { protocol: Protocol::Icmp, port: PortMatch::Any }]));
    assert_eq!((imds.effect, &imds.ports), (Effect::Deny, &Ports::All));
}

#[test]
fn port_spellings() {
    for (text, expected) in [
        ("443", range(Protocol::Tcp, 443, 443)),
        ("\"443\"", range(Protocol::Tcp, 443, 443)),
        ("\"443/udp\"", range(Protocol::Udp, 443, 443)),
        ("\"8000-8010/UDP\"", range(Protocol::Udp, 8000, 8010)),
        ("\"1-65535\"", range(Protocol::Tcp, 1, 65535)),
        ("\"icmp\"", PortSpec { protocol: Protocol::Icmp, port: PortMatch::Any }),
        ("\"SCTP\"", PortSpec { protocol: Protocol::Sctp, port: PortMatch::Any }),
        ("\"http-alt/UDP\"", PortSpec { protocol: Protocol::Udp, port: PortMatch::Name("http-alt".into()) }),
        ("{\"port\": \"80\"}", range(Protocol::Tcp, 80, 80)),
        ("{\"port\": \"http\"}", PortSpec { protocol: Protocol::Tcp, port: PortMatch::Name("http".into()) }),
        ("{\"port\": 80, \"endPort\": 80}", range(Protocol::Tcp, 80, 80)),
        ("{\"protocol\": \"udp\"}", PortSpec { protocol: Protocol::Udp, port: PortMatch::Any }),
    ] {
        let policy = good(&one(&format!("\"service\": {{\"name\": \"x\"}}, \"ports\": [{text}]")));
        assert_eq!(policy.rules[0].ports, Ports::List(vec![expected]), "{text}");
    }
    assert_eq!(
        good(&one("\"service\": {\"name\": \"x\"}")).rules[0].peers,
        [Peer::Service(NsName::new("shop", "x"))]
    );
}

/// What each destination (its fields besides the name) gets said about it.
const DESTINATIONS: &[(&str, &[&str])] = &[
    (
        r#""cidr": "10.1.0.0/99""#,
        &[
            "Invalid CIDR format: 10.1.0.0/99 (allowedDestinations[0].cidr, line 2 column 23); the length is 0 to 32, such as in 10.1.0.0/16",
        ],
    ),
    (
        r#""cidr": "10.0.0.0/99""#,
        &[
            "Invalid CIDR format: 10.0.0.0/99 (allowedDestinations[0].cidr, line 2 column 23); did you mean 10.0.0.0/9?",
        ],
    ),
    (
        r#""cidr": "10.0.0.5""#,
        &[
            "Invalid CIDR format: 10.0.0.5 (allowedDestinations[0].cidr, line 2 column 23); did you mean 10.0.0.5/32?",
        ],
    ),
    (
        r#""cidr": "fd00::1""#,
        &[
            "Invalid CIDR format: fd00::1 (allowedDestinations[0].cidr, line 2 column 23); did you mean fd00::1/128?",
        ],
    ),
    (
        r#""cidr": "10.0.0.5/8""#,
        &[
            "Invalid CIDR format: 10.0.0.5/8 has host bits set (allowedDestinations[0].cidr, line 2 column 23); did you mean 10.0.0.0/8 or 10.0.0.5/32?",
        ],
    ),
    (
        r#""cidr": "fd00::1/8""#,
        &[
            "Invalid CIDR format: fd00::1/8 has host bits set (allowedDestinations[0].cidr, line 2 column 23); did you mean fd00::/8 or fd00::1/128?",
        ],
    ),
    (
        r#""cidr": "::ffff:10.0.0.0/104""#,
        &[
            "Invalid CIDR format: ::ffff:10.0.0.0/104 is IPv4 in the spelling of IPv6 (allowedDestinations[0].cidr, line 2 column 23); did you mean 10.0.0.0/8?",
        ],
    ),
    (
        r#""cidr": "010.0.0.0/8""#,
        &[
            "Invalid CIDR format: 010.0.0.0/8 (allowedDestinations[0].cidr, line 2 column 23); did you mean 10.0.0.0/8?",
        ],
    ),
    (
        r#""cidr": "10.0.0.0/08""#,
        &[
            "Invalid CIDR format: 10.0.0.0/08 (allowedDestinations[0].cidr, line 2 column 23); did you mean 10.0.0.0/8?",
        ],
    ),
    (
        r#""cidr": "10.0/8""#,
        &[
            "Invalid CIDR format: 10.0/8 (allowedDestinations[0].cidr, line 2 column 23); did you mean 10.0.0.0/8?",
        ],
    ),
    (
        r#""cidr": "10.0.0.0/255.0.0.0""#,
        &[
            "Invalid CIDR format: 10.0.0.0/255.0.0.0 (allowedDestinations[0].cidr, line 2 column 23); did you mean 10.0.0.0/8?",
        ],
    ),
    (
        r#""cidr": " 10.0.0.0/8""#,
        &[
            "Invalid CIDR format:  10.0.0.0/8 (allowedDestinations[0].cidr, line 2 column 23); did you mean 10.0.0.0/8?",
        ],
    ),
    (
        r#""cidr": "api.example.com""#,
        &[
            "Invalid CIDR format: api.example.com (allowedDestinations[0].cidr, line 2 column 23); use domain for a name",
        ],
    ),
    (r#""cidr": "x""#, &["Invalid CIDR format: x (allowedDestinations[0].cidr, line 2 column 23)"]),
    (
        r#""cidr": 10"#,
        &["Wrong type: expected a string, found a number (allowedDestinations[0].cidr, line 2 column 23)"],
    ),
    (
        r#""cidr": null"#,
        &[
            "Wrong type: expected a string, found null (allowedDestinations[0].cidr, line 2 column 23); leave it out instead",
        ],
    ),
    (
        r#""cidr": ["10.0.0.0/8"]"#,
        &["Wrong type: expected a string, found a list (allowedDestinations[0].cidr, line 2 column 23)"],
    ),
    (
        r#""cidr": "fd00::/129""#,
        &[
            "Invalid CIDR format: fd00::/129 (allowedDestinations[0].cidr, line 2 column 23); did you mean fd00::/12?",
        ],
    ),
    (
        r#""cidrs": []"#,
        &["Empty list: cidrs (allowedDestinations[0].cidrs, line 2 column 24); name at least one prefix"],
    ),
    (
        r#""cidrs": ["10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8"]"#,
        &[
            "warning: CIDR 10.1.0.0/16 lies inside 10.0.0.0/8 of the same list (allowedDestinations[0].cidrs[1], line 2 column 39); it adds nothing to line 2",
            "warning: Duplicate CIDR: 10.0.0.0/8 (allowedDestinations[0].cidrs[2], line 2 column 54); it adds nothing to line 2",
        ],
    ),
    (
        r#""cidrs": "10.0.0.0/8""#,
        &["Wrong type: expected a list, found a string (allowedDestinations[0].cidrs, line 2 column 24)"],
    ),
    (
        r#""cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]"#,
        &[
            "except 11.0.0.0/8 lies outside the destination (allowedDestinations[0].except[0], line 2 column 48); it can only take away from the cidrs of its own destination",
        ],
    ),
    (
        r#""cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]"#,
        &["warning: except takes away all of 10.0.0.0/8 (allowedDestinations[0].cidr, line 2 column 23)"],
    ),
    (
        r#""cidr": "10.0.0.0/8", "except": ["10.1.0.0/99"]"#,
        &[
            "Invalid CIDR format: 10.1.0.0/99 (allowedDestinations[0].except[0], line 2 column 48); the length is 0 to 32, such as in 10.1.0.0/16",
        ],
    ),
    (
        r#""awsService": "s3", "except": ["10.0.0.0/8"]"#,
        &["except needs cidr or cidrs (allowedDestinations[0].except, line 2 column 35)"],
    ),
    (
        r#""cidr": "10.0.0.0/8", "awsService": "s3""#,
        &[
            "Cannot specify both cidr and awsService (allowedDestinations[0].awsService, line 2 column 37); make two destinations of it",
        ],
    ),
    (
        r#""domain": "a.com", "entity": "world", "cidr": "10.0.0.0/8""#,
        &[
            "Cannot specify both cidr and domain (allowedDestinations[0].cidr, line 2 column 53); make two destinations of it",
            "Cannot specify both cidr and entity (allowedDestinations[0].cidr, line 2 column 53); make two destinations of it",
        ],
    ),
    (
        r#""ports": [443]"#,
        &[
            "Missing field: one of cidr, cidrs, awsService, cloud, domain, domains, service, pods, entity (allowedDestinations[0], line 2 column 1)",
        ],
    ),
    (
        r#""cidr": "10.0.0.0/8", "regions": ["us-east-1"]"#,
        &["regions needs awsService (allowedDestinations[0].regions, line 2 column 37)"],
    ),
    (
        r#""cidr": "10.0.0.0/8", "port": 443"#,
        &["Unknown field: port (allowedDestinations[0].port, line 2 column 37); did you mean ports?"],
    ),
    (
        r#""cidr": "10.0.0.0/8", "expiresAt": "2027-01-01""#,
        &[
            "Unknown field: expiresAt (allowedDestinations[0].expiresAt, line 2 column 37); did you mean governance.expiry?",
        ],
    ),
    (
        r#""cidr": "10.0.0.0/8", "whatever": 1"#,
        &[
            "Unknown field: whatever (allowedDestinations[0].whatever, line 2 column 37); known here: name, cidr, cidrs, except, awsService, regions, cloud, domain, domains, service, pods, entity, ports, governance, description",
        ],
    ),
    (
        r#""cidr": "10.0.0.0/8", "cidr": "11.0.0.0/8""#,
        &[
            "Duplicate field: cidr (allowedDestinations[0].cidr, line 2 column 37); it stands in line 2 already",
        ],
    ),
    (
        r#""awsService": "invalid-svc""#,
        &[
            "Invalid service: invalid-svc (allowedDestinations[0].awsService, line 2 column 29); the names are those of AWS' published ranges, such as S3, DYNAMODB, EC2, API_GATEWAY",
        ],
    ),
    (
        r#""awsService": "dynamo-db""#,
        &[
            "Invalid service: dynamo-db (allowedDestinations[0].awsService, line 2 column 29); did you mean DYNAMODB?",
        ],
    ),
    (
        r#""awsService": "sqs""#,
        &[
            "Invalid service: sqs (allowedDestinations[0].awsService, line 2 column 29); AWS publishes no ranges of its own for it: use domain, or the cidr of a VPC endpoint",
        ],
    ),
    (
        r#""awsService": "S3", "regions": ["us-east-1a", "GLOBAL", "Global", "moon"]"#,
        &[
            "Invalid region: us-east-1a (allowedDestinations[0].regions[0], line 2 column 47); that is a zone; did you mean us-east-1?",
            "Invalid region: Global (allowedDestinations[0].regions[2], line 2 column 71); did you mean GLOBAL?",
            "Invalid region: moon (allowedDestinations[0].regions[3], line 2 column 81); a region is written like us-east-1; GLOBAL stands for addresses of no region",
        ],
    ),
    (
        r#""awsService": "s3", "regions": []"#,
        &[
            "Empty list: regions (allowedDestinations[0].regions, line 2 column 46); leave regions out to name all of them",
        ],
    ),
    (
        r#""cloud": {}"#,
        &[
            "Missing field: provider (allowedDestinations[0].cloud, line 2 column 24); one of aws, azure, cloudflare, custom, digitalocean, fastly, github, google, oracle",
        ],
    ),
    (
        r#""cloud": {"provider": "gogle"}"#,
        &[
            "Invalid provider: gogle (allowedDestinations[0].cloud.provider, line 2 column 37); did you mean google?",
        ],
    ),
    (
        r#""cloud": {"provider": "google", "service": "x", "services": ["y"]}"#,
        &[
            "Cannot specify both service and services (allowedDestinations[0].cloud.services, line 2 column 63)",
        ],
    ),
    (
        r#""cloud": {"provider": "aws", "services": ["s4"], "regions": ["x"]}"#,
        &[
            "Invalid service: s4 (allowedDestinations[0].cloud.services[0], line 2 column 57); did you mean S3?",
            "Invalid region: x (allowedDestinations[0].cloud.regions[0], line 2 column 76); a region is written like us-east-1; GLOBAL stands for addresses of no region",
        ],
    ),
    (
        r#""cloud": {"provider": "azure", "service": "Sql.EastUS", "regions": ["east us"]}"#,
        &[
            "Invalid region: east us (allowedDestinations[0].cloud.regions[0], line 2 column 83); 1 to 128 ASCII characters without spaces",
        ],
    ),
    (
        r#""cloud": {"provider": "aws"}, "regions": ["us-east-1"]"#,
        &[
            "regions needs awsService (allowedDestinations[0].regions, line 2 column 45); write it inside cloud",
        ],
    ),
    (
        r#""domain": "https://a.com""#,
        &[
            "Invalid domain: https://a.com has a scheme (allowedDestinations[0].domain, line 2 column 25); did you mean a.com?",
        ],
    ),
    (
        r#""domain": "*.com""#,
        &[
            "Invalid domain: *.com is a public suffix: it names domains of everybody (allowedDestinations[0].domain, line 2 column 25); did you mean *.example.com?",
        ],
    ),
    (
        r#""domains": ["a.com", "A.com"]"#,
        &["warning: Duplicate domain: a.com (allowedDestinations[0].domains[1], line 2 column 36)"],
    ),
    (
        r#""domains": []"#,
        &["Empty list: domains (allowedDestinations[0].domains, line 2 column 26); name at least one domain"],
    ),
    (
        r#""service": {}"#,
        &["Missing field: name (allowedDestinations[0].service, line 2 column 26); the name of the Service"],
    ),
    (
        r#""service": {"name": "Redis"}"#,
        &[
            "Invalid service name: Redis (allowedDestinations[0].service.name, line 2 column 35); 1 to 63 lower-case letters, digits and '-', with a letter or digit at the beginning and the end",
        ],
    ),
    (
        r#""service": {"name": "redis", "namespace": "a.b"}"#,
        &[
            "Invalid namespace: a.b (allowedDestinations[0].service.namespace, line 2 column 57); 1 to 63 lower-case letters, digits and '-', with a letter or digit at the beginning and the end",
        ],
    ),
    (
        r#""service": "redis""#,
        &[
            "Wrong type: expected an object, found a string (allowedDestinations[0].service, line 2 column 26)",
        ],
    ),
    (
        r#""pods": {}"#,
        &[
            r#"Missing field: namespaceSelector or podSelector (allowedDestinations[0].pods, line 2 column 23); for every pod of the policy's own namespace write {"podSelector": {}}"#,
        ],
    ),
    (
        r#""pods": {"podSelector": {}}"#,
        &[
            "warning: An empty podSelector selects every pod of the policy's own namespace (allowedDestinations[0].pods.podSelector, line 2 column 39); add namespaceSelector for other namespaces",
        ],
    ),
    (r#""pods": {"namespaceSelector": {}}"#, &[]),
    (
        r#""pods": {"podselector": {}}"#,
        &[
            r#"Missing field: namespaceSelector or podSelector (allowedDestinations[0].pods, line 2 column 23); for every pod of the policy's own namespace write {"podSelector": {}}"#,
            "Unknown field: podselector (allowedDestinations[0].pods.podselector, line 2 column 24); did you mean podSelector?",
        ],
    ),
    (
        r#""pods": {"podSelector": {"matchLabels": {"a b": "x", "b": "-", "X.y/c": "", "d": 1}}}"#,
        &[
            r#"Invalid label key: a b (allowedDestinations[0].pods.podSelector.matchLabels["a b"], line 2 column 56); up to 63 letters, digits, '-', '_' and '.', with a letter or digit at the beginning and the end"#,
            "Invalid label value: - (allowedDestinations[0].pods.podSelector.matchLabels.b, line 2 column 73); up to 63 letters, digits, '-', '_' and '.', with a letter or digit at the beginning and the end",
            r#"Invalid label key: X.y/c (allowedDestinations[0].pods.podSelector.matchLabels["X.y/c"], line 2 column 78); what stands before '/' is a lower-case DNS name"#,
            "Wrong type: expected a string, found a number (allowedDestinations[0].pods.podSelector.matchLabels.d, line 2 column 96)",
        ],
    ),
    (
        r#""pods": {"podSelector": {"matchExpressions": [{}, {"key": "a", "operator": "in"}, {"key": "a", "operator": "In"}, {"key": "a", "operator": "NotIn", "values": []}, {"key": "a", "operator": "Exists", "values": ["x"]}, {"key": "a", "operator": "In", "values": ["x"]}]}}"#,
        &[
            "Missing field: key (allowedDestinations[0].pods.podSelector.matchExpressions[0], line 2 column 61)",
            "Missing field: operator (allowedDestinations[0].pods.podSelector.matchExpressions[0], line 2 column 61); one of In, NotIn, Exists, DoesNotExist",
            "Invalid operator: in (allowedDestinations[0].pods.podSelector.matchExpressions[1].operator, line 2 column 90); did you mean In?",
            "Missing field: values (allowedDestinations[0].pods.podSelector.matchExpressions[2], line 2 column 97); In needs at least one",
            "Empty list: values (allowedDestinations[0].pods.podSelector.matchExpressions[3].values, line 2 column 173); NotIn needs at least one",
            "Exists takes no values (allowedDestinations[0].pods.podSelector.matchExpressions[4].values, line 2 column 223); leave values out",
        ],
    ),
    (
        r#""entity": "wrold""#,
        &["Invalid entity: wrold (allowedDestinations[0].entity, line 2 column 25); did you mean world?"],
    ),
    (
        r#""entity": "nodes""#,
        &["Invalid entity: nodes (allowedDestinations[0].entity, line 2 column 25); did you mean node?"],
    ),
    (
        r#""entity": "world", "ports": []"#,
        &[
            "Empty list: ports (allowedDestinations[0].ports, line 2 column 43); leave ports out to name every protocol and port",
        ],
    ),
    (
        r#""entity": "world", "ports": 443"#,
        &["Wrong type: expected a list, found a number (allowedDestinations[0].ports, line 2 column 43)"],
    ),
    (
        r#""entity": "world", "ports": [0]"#,
        &[
            "Invalid port: 0 (allowedDestinations[0].ports[0], line 2 column 44); leave ports out to name every port; a single one is 1 to 65535",
        ],
    ),
    (
        r#""entity": "world", "ports": [65536, -1, 4.5, 1e3]"#,
        &[
            "Invalid port: 65536 (allowedDestinations[0].ports[0], line 2 column 44); a port is 1 to 65535",
            "Invalid port: -1 (allowedDestinations[0].ports[1], line 2 column 51); a port is a whole number, 1 to 65535",
            "Invalid port: 4.5 (allowedDestinations[0].ports[2], line 2 column 55); a port is a whole number, 1 to 65535",
            "Invalid port: 1e3 (allowedDestinations[0].ports[3], line 2 column 60); a port is a whole number, 1 to 65535",
        ],
    ),
    (
        r#""entity": "world", "ports": ["http"]"#,
        &[
            r#"Named port "http" needs pods or service (allowedDestinations[0].ports[0], line 2 column 44); give its number"#,
        ],
    ),
    (
        r#""entity": "world", "ports": ["TCP/443", "8000:8010", "443/", "443/tpc", "443/ICMPv6", "ICMPv6", "443/ICMP", "0443", "*", "80,443", " 80", "Http", "8010-8000", "a/b/c"]"#,
        &[
            "Invalid port: TCP/443 (allowedDestinations[0].ports[0], line 2 column 44); did you mean 443/TCP?",
            "Invalid port: 8000:8010 (allowedDestinations[0].ports[1], line 2 column 55); did you mean 8000-8010?",
            "Invalid port: 443/ (allowedDestinations[0].ports[2], line 2 column 68); a protocol stands after the slash, such as in 443/TCP",
            "Invalid protocol: tpc (allowedDestinations[0].ports[3], line 2 column 76); did you mean TCP?",
            "Invalid protocol: ICMPv6 (allowedDestinations[0].ports[4], line 2 column 87); ICMP covers IPv4 and IPv6",
            "Invalid port: ICMPv6 (allowedDestinations[0].ports[5], line 2 column 101); ICMP covers IPv4 and IPv6",
            r#"ICMP has no port (allowedDestinations[0].ports[6], line 2 column 111); write "ICMP" alone"#,
            "Invalid port: 0443 (allowedDestinations[0].ports[7], line 2 column 123); did you mean 443?",
            r#"Invalid port: * (allowedDestinations[0].ports[8], line 2 column 131); leave ports out to name every port; a protocol alone is written "TCP""#,
            "Invalid port: 80,443 (allowedDestinations[0].ports[9], line 2 column 136); give each port as its own item",
            "Invalid port:  80 (allowedDestinations[0].ports[10], line 2 column 146); remove the space",
            "Invalid port: Http (allowedDestinations[0].ports[11], line 2 column 153); a number, a range such as 8000-8010/TCP, or a name of 1 to 15 lower-case letters, digits and '-'",
            "Invalid port range: 8010-8000 (allowedDestinations[0].ports[12], line 2 column 161); did you mean 8000-8010?",
            "Invalid protocol: b/c (allowedDestinations[0].ports[13], line 2 column 174); one of TCP, UDP, SCTP, ICMP",
        ],
    ),
    (
        r#""entity": "world", "ports": [{}, {"endPort": 5}, {"port": 5, "endPort": 4}, {"port": 5, "protocol": "ICMP"}, {"port": "443/TCP"}, {"port": 1, "endport": 2}, {"port": true}, {"port": 1, "endPort": "x"}]"#,
        &[
            "Missing field: port or protocol (allowedDestinations[0].ports[0], line 2 column 44)",
            "endPort needs port (allowedDestinations[0].ports[1].endPort, line 2 column 49); port is where the range begins",
            "Invalid port range: 5-4 (allowedDestinations[0].ports[2].endPort, line 2 column 87); did you mean 4-5?",
            "ICMP has no port (allowedDestinations[0].ports[3].port, line 2 column 100); leave port out",
            "Invalid port: 443/TCP (allowedDestinations[0].ports[4].port, line 2 column 133); here it is one number; endPort and protocol are fields of their own",
            "Unknown field: endport (allowedDestinations[0].ports[5].endport, line 2 column 157); did you mean endPort?",
            "Wrong type: expected a number or a name, found a boolean (allowedDestinations[0].ports[6].port, line 2 column 181)",
            "Invalid port: x (allowedDestinations[0].ports[7].endPort, line 2 column 211); a port is a whole number, 1 to 65535",
        ],
    ),
    (
        r#""pods": {"namespaceSelector": {}}, "ports": [{"port": "http", "endPort": 5}, {"port": "HTTP"}]"#,
        &[
            "endPort needs a number in port (allowedDestinations[0].ports[0].endPort, line 2 column 77)",
            "Invalid port: HTTP (allowedDestinations[0].ports[1].port, line 2 column 101); a name has 1 to 15 lower-case letters, digits and '-'",
        ],
    ),
    (
        r#""entity": "world", "ports": [443, "443/TCP", {"port": 443}]"#,
        &[
            "warning: Duplicate port: 443/TCP (allowedDestinations[0].ports[1], line 2 column 49)",
            "warning: Duplicate port: 443/TCP (allowedDestinations[0].ports[2], line 2 column 60)",
        ],
    ),
    (
        r#""entity": "world", "ports": [null]"#,
        &[
            "Wrong type: expected a number, a string or an object, found null (allowedDestinations[0].ports[0], line 2 column 44); leave it out instead",
        ],
    ),
    (
        r#""entity": "world", "governance": {"expiry": "soon"}"#,
        &[
            "Invalid expiry: soon (allowedDestinations[0].governance.expiry, line 2 column 59); a date such as 2027-03-31, or a time such as 2027-03-31T18:00:00Z",
        ],
    ),
    (
        r#""entity": "world", "governance": {"expiry": "2027-02-30"}"#,
        &[
            "Invalid expiry: 2027-02-30 is not in the calendar (allowedDestinations[0].governance.expiry, line 2 column 59); a date such as 2027-03-31, or a time such as 2027-03-31T18:00:00Z",
        ],
    ),
    (
        r#""entity": "world", "governance": {"expiry": "2027-02-03T10:00:00"}"#,
        &[
            "Invalid expiry: 2027-02-03T10:00:00 has no offset from UTC (allowedDestinations[0].governance.expiry, line 2 column 59); end it with Z for UTC, or with an offset such as +02:00",
        ],
    ),
    (
        r#""entity": "world", "governance": {"expiry": "2027-02-03", "expiresAt": "2027-02-03"}"#,
        &[
            "Cannot specify both expiry and expiresAt (allowedDestinations[0].governance.expiresAt, line 2 column 73); both mean expiry",
        ],
    ),
    (
        r#""entity": "world", "governance": {"data-classification": "secret", "owner": "", "ower": "x", "audit_ref": 5}"#,
        &[
            "Invalid dataClassification: secret (allowedDestinations[0].governance.data-classification, line 2 column 72); one of public, internal, confidential, restricted",
            "Invalid owner: it is empty (allowedDestinations[0].governance.owner, line 2 column 91); leave the field out instead",
            "Unknown field: ower (allowedDestinations[0].governance.ower, line 2 column 95); did you mean owner?",
            "Wrong type: expected a string, found a number (allowedDestinations[0].governance.audit_ref, line 2 column 121)",
        ],
    ),
    (
        r#""entity": "world", "governance": {"expires_at": "2027-02-03", "audit-ref": "x", "data_classification": "public"}"#,
        &[],
    ),
    (
        r#""entity": "world", "governance": "me""#,
        &[
            "Wrong type: expected an object, found a string (allowedDestinations[0].governance, line 2 column 48)",
        ],
    ),
    (
        r#""cidr": "0.0.0.0/0""#,
        &[
            "warning: 0.0.0.0/0 allows every IPv4 address (allowedDestinations[0].cidr, line 2 column 23); entity world names those outside the cluster",
            "warning: 0.0.0.0/0 allows the metadata addresses 169.254.169.254, 100.100.100.200, 168.63.129.16 (allowedDestinations[0].cidr, line 2 column 23); they hand out the node's credentials; except or deny them if that is not meant",
        ],
    ),
    (
        r#""cidr": "::/0", "ports": [443]"#,
        &[
            "warning: ::/0 allows every IPv6 address (allowedDestinations[0].cidr, line 2 column 23); entity world names those outside the cluster",
        ],
    ),
    (
        r#""cidr": "169.254.0.0/16""#,
        &[
            "warning: 169.254.0.0/16 allows the metadata address 169.254.169.254 (allowedDestinations[0].cidr, line 2 column 23); it hands out the node's credentials; except or deny it if that is not meant",
        ],
    ),
    (
        r#""cidr": "100.100.100.200/32", "ports": [{"port": "80"}]"#,
        &[
            "warning: 100.100.100.200/32 allows the metadata address 100.100.100.200 (allowedDestinations[0].cidr, line 2 column 23); it hands out the node's credentials; except or deny it if that is not meant",
        ],
    ),
    (r#""cidr": "169.254.0.0/16", "except": ["169.254.169.254/32"]"#, &[]),
    (
        r#""cidr": "11.0.0.0/8", "ports": [443]"#,
        &[
            "warning: Wide: a opens 16777216 IPv4 addresses of the internet (allowedDestinations[0].cidr, line 2 column 23); name the prefixes that are needed",
        ],
    ),
    (r#""cidr": "11.0.0.0/16", "ports": [443]"#, &[]),
    (r#""cidr": "11.0.0.0/15", "except": ["11.1.0.0/16"], "ports": [443]"#, &[]),
    (
        r#""cidrs": ["11.0.0.0/16", "12.0.0.0/16", "10.0.0.0/8"], "ports": [443]"#,
        &[
            "warning: Wide: a opens 131072 IPv4 addresses of the internet (allowedDestinations[0], line 2 column 1); name the prefixes that are needed",
        ],
    ),
    (
        r#""cidrs": ["2001:db8::/31", "2600::/32"], "ports": [443]"#,
        &[
            "warning: Wide: a opens 8589934592 IPv6 networks of /64 of the internet (allowedDestinations[0].cidrs[0], line 2 column 25); name the prefixes that are needed",
        ],
    ),
    (
        r#""domain": "Bücher.example""#,
        &[
            "warning: Domain Bücher.example is used as xn--bcher-kva.example (allowedDestinations[0].domain, line 2 column 25); DNS asks for that form",
        ],
    ),
    (
        r#""domain": "*.s3.amazonaws.com""#,
        &[
            "warning: *.s3.amazonaws.com names domains of everybody who rents one there (allowedDestinations[0].domain, line 2 column 25); name your own domains below it",
        ],
    ),
    (r#""domain": "*.my-bucket.s3.amazonaws.com""#, &[]),
    (
        r#""domains": ["*.co.uk"]"#,
        &[
            "Invalid domain: *.co.uk is a public suffix: it names domains of everybody (allowedDestinations[0].domains[0], line 2 column 27); did you mean *.example.co.uk?",
        ],
    ),
    (
        r#""entity": "node", "ports": ["80-90", 85, "88-95", "90/UDP", "UDP"]"#,
        &[
            "warning: Port 85/TCP lies inside 80-90/TCP of the same list (allowedDestinations[0].ports[1], line 2 column 52)",
            "warning: Ports 88-95/TCP overlap 80-90/TCP of the same list (allowedDestinations[0].ports[2], line 2 column 56)",
            "warning: Port 90/UDP lies inside UDP of the same list (allowedDestinations[0].ports[3], line 2 column 65)",
        ],
    ),
    (r#""entity": "node", "ports": ["80-90", "91-95", "80/UDP"]"#, &[]),
];

#[test]
fn destinations() {
    for (fields, expected) in DESTINATIONS {
        assert_eq!(said(&one(fields)), *expected, "{fields}");
    }
}

/// What each document gets said about it.
const DOCUMENTS: &[(&str, &[&str])] = &[
    ("", &["Invalid JSON: the text is empty (line 1 column 1)"]),
    ("[]", &["Wrong type: expected an object, found a list (line 1 column 1)"]),
    (
        r#"{"a""#,
        &[
            "Invalid JSON: expected ':', found the end of the text (line 1 column 5); '{' in line 1 is not closed",
        ],
    ),
    (
        "{",
        &[
            "Invalid JSON: expected a field name in double quotes, found the end of the text (line 1 column 2); '{' in line 1 is not closed",
        ],
    ),
    ("{} x", &["Invalid JSON: expected the end of the text, found 'x' (line 1 column 4)"]),
    (
        r#"{"defaultAction": "deny",}"#,
        &["Invalid JSON: a comma before '}' (line 1 column 25); remove the comma"],
    ),
    (
        "{}",
        &["warning: Without allowedDestinations this denies everything but cluster DNS (line 1 column 1)"],
    ),
    (
        r#"{"defaultAction": "allow"}"#,
        &[
            "warning: defaultAction allow without deniedDestinations denies nothing (defaultAction, line 1 column 19); add deniedDestinations, or leave defaultAction out to deny",
        ],
    ),
    (
        r#"{"defaultAction": "Deny", "mode": 1, "clusterDns": "true", "podSelector": [], "descripton": "x", "apiVersion": "v1", "owner": "x", "$schema": 1}"#,
        &[
            "Invalid defaultAction: Deny (defaultAction, line 1 column 19); did you mean deny?",
            "Wrong type: expected a string, found a number (mode, line 1 column 35)",
            "Wrong type: expected true or false, found a string (clusterDns, line 1 column 52); write true without quotes",
            "Wrong type: expected an object, found a list (podSelector, line 1 column 75)",
            "Unknown field: descripton (descripton, line 1 column 79); did you mean description?",
            "Unknown field: apiVersion (apiVersion, line 1 column 98); policy.json holds the policy alone, not the ConfigMap around it",
            "Unknown field: owner (owner, line 1 column 118); did you mean governance.owner?",
            "Wrong type: expected a string, found a number ($schema, line 1 column 143)",
        ],
    ),
    (
        r#"{"clusterDns": false, "allowedDestinations": []}"#,
        &[
            "warning: Without allowedDestinations this denies everything (allowedDestinations, line 1 column 46)",
        ],
    ),
    (
        r#"{"allowedDestinations": {}, "deniedDestinations": [1]}"#,
        &[
            "Wrong type: expected a list, found an object (allowedDestinations, line 1 column 25)",
            "Wrong type: expected an object, found a number (deniedDestinations[0], line 1 column 52)",
        ],
    ),
    (
        r#"{"podSelector": {}, "allowedDestinations": [{"name": "a", "entity": "world"}]}"#,
        &[
            "warning: An empty podSelector selects every pod of the namespace (podSelector, line 1 column 17); leave it out if that is meant",
        ],
    ),
    (
        r#"{"podSelector": {"matchLabels": {}}, "allowedDestinations": [{"name": "a", "entity": "world"}]}"#,
        &[
            "warning: An empty podSelector selects every pod of the namespace (podSelector, line 1 column 17); leave it out if that is meant",
        ],
    ),
    (
        "{\"allowedDestinations\": [\n{\"name\": \"a\", \"entity\": \"world\"},\n{\"name\": \"a\", \"entity\": \"node\"}],\n\"deniedDestinations\": [{\"name\": \"a\", \"cidr\": \"10.0.0.0/8\"}]}",
        &[
            "Duplicate name: a (allowedDestinations[1].name, line 3 column 10); line 2 has it first; names are unique over both lists",
            "Duplicate name: a (deniedDestinations[0].name, line 4 column 33); line 2 has it first; names are unique over both lists",
        ],
    ),
    (
        r#"{"allowedDestinations": [{"entity": "world"}, {"name": ""}, {"name": 5, "entity": "world"}, {"name": "a(b)", "entity": "world"}, {"name": "a\nb", "entity": "world"}, {"name": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "entity": "world"}]}"#,
        &[
            "Missing field: name (allowedDestinations[0], line 1 column 26); answers and metrics call the destination so",
            "Missing field: one of cidr, cidrs, awsService, cloud, domain, domains, service, pods, entity (allowedDestinations[1], line 1 column 47)",
            "Invalid name: it is empty (allowedDestinations[1].name, line 1 column 56); 1 to 63 characters, without parentheses and control characters",
            "Wrong type: expected a string, found a number (allowedDestinations[2].name, line 1 column 70)",
            "Invalid name: a(b), it has a parenthesis (allowedDestinations[3].name, line 1 column 102); 1 to 63 characters, without parentheses and control characters",
            r#"Invalid name: a\u{a}b, it has a control character (allowedDestinations[4].name, line 1 column 139); 1 to 63 characters, without parentheses and control characters"#,
            "Invalid name: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa, it is longer than 63 characters (allowedDestinations[5].name, line 1 column 176); 1 to 63 characters, without parentheses and control characters",
        ],
    ),
    (
        r#"{"allowedDestinations": [{"name": "a", "cidr": "10.1.0.0/16", "ports": [443]}], "deniedDestinations": [{"name": "b", "cidr": "10.0.0.0/8"}]}"#,
        &["warning: a can never match: b denies all of it (allowedDestinations[0], line 1 column 26)"],
    ),
    (
        r#"{"allowedDestinations": [{"name": "a", "cidr": "10.1.0.0/16"}], "deniedDestinations": [{"name": "b", "cidr": "10.0.0.0/8", "ports": [443]}, {"name": "c", "cidr": "10.0.0.0/8", "except": ["10.1.2.0/24"]}, {"name": "d", "cidr": "10.0.0.0/8", "governance": {"expiry": "2027-01-01"}}]}"#,
        &[],
    ),
    (
        r#"{"allowedDestinations": [{"name": "a", "cidr": "0.0.0.0/0"}], "deniedDestinations": [{"name": "b", "cidrs": ["169.254.169.254/32", "100.100.100.200/32", "168.63.129.16/32"]}]}"#,
        &[
            "warning: 0.0.0.0/0 allows every IPv4 address (allowedDestinations[0].cidr, line 1 column 48); entity world names those outside the cluster",
        ],
    ),
    (
        r#"{"defaultAction": "allow", "deniedDestinations": [{"name": "a", "awsService": "s3"}, {"name": "b", "cloud": {"provider": "github"}}]}"#,
        &[
            "warning: awsService denies every address outside the cluster until its own are known (deniedDestinations[0].awsService, line 1 column 65); a cidr denies no more than itself",
            "warning: cloud denies every address outside the cluster until its own are known (deniedDestinations[1].cloud, line 1 column 100); a cidr denies no more than itself",
        ],
    ),
    (
        r#"{"deniedDestinations": [{"name": "a", "domain": "a.com"}, {"name": "b", "domains": ["a.com"]}]}"#,
        &[
            "domain cannot be denied (deniedDestinations[0].domain, line 1 column 39); an address serves many names, so others would be denied with it; deny a cidr",
            "domain cannot be denied (deniedDestinations[1].domains, line 1 column 73); an address serves many names, so others would be denied with it; deny a cidr",
        ],
    ),
    (
        r#"{"mode": "audit", "mode": "enforce", "governance": {"owner": "a", "owner": "b"}}"#,
        &[
            "Duplicate field: mode (mode, line 1 column 19); it stands in line 1 already",
            "Duplicate field: owner (governance.owner, line 1 column 67); it stands in line 1 already",
        ],
    ),
];

#[test]
fn documents() {
    for (text, expected) in DOCUMENTS {
        assert_eq!(said(text), *expected, "{text}");
    }
}

#[test]
fn size_and_number_of_findings_are_bounded() {
    let message = "Policy too large: 10485760 bytes, at most 1048576 fit into a ConfigMap; \
                   split it into several ConfigMaps: their allowed destinations add up";
    assert_eq!(said(&" ".repeat(10 << 20)), [message]);
    for item in
        ["1,", "{},", "{\"name\":\"x\"},", "{\"cidr\":\"10.0.0.0/8\",\"cidr\":\"::/0\"},", "[[[[]]]],"]
    {
        let items = item.repeat(MAX_DESTINATIONS.min((MAX_BYTES - 100) / item.len()));
        let text = format!("{{\"allowedDestinations\":[{}]}}", items.trim_end_matches(','));
        let findings = parse(&id(), &text).findings;
        assert_eq!(findings.len(), 1001, "{item}");
        assert!(findings[1000].message.ends_with("more findings are not listed"), "{}", findings[1000]);
    }
    let cidrs: Vec<String> = (0..MAX_CIDRS).map(|n| format!("\"10.{}.{}.0/24\"", n / 256, n % 256)).collect();
    let policy = good(&one(&format!("\"cidrs\": [{}]", cidrs.join(","))));
    assert!(matches!(&policy.rules[0].peers[0], Peer::Cidrs { cidrs, .. } if cidrs.len() == MAX_CIDRS));
}

#[test]
fn places_are_found_by_path() {
    let text = "{\n \"governance\": {\"audit_ref\": \"X\"},\n \"allowedDestinations\": [\n  {\"name\": \"a\", \"cidrs\": [\"10.0.0.0/8\", \"11.0.0.0/8\"]}]}";
    for (path, place) in [
        ("", (1, 1)),
        ("nothing.of.the.kind", (1, 1)),
        ("governance.auditRef", (2, 30)),
        ("governance.audit_ref", (2, 30)),
        ("governance.owner", (2, 16)),
        ("allowedDestinations", (3, 25)),
        ("allowedDestinations[0]", (4, 3)),
        ("allowedDestinations[0].ports", (4, 3)),
        ("allowedDestinations[0].ports[5]", (4, 3)),
        ("allowedDestinations[0].cidrs[1]", (4, 41)),
        ("allowedDestinations[1]", (3, 25)),
        ("allowedDestinations[x", (3, 25)),
        ("]]][[[..", (1, 1)),
    ] {
        assert_eq!(position(text, path), Some(place), "{path}");
    }
    assert_eq!(position("{", ""), None, "no JSON has no places");
}

#[test]
fn findings_of_others_stand_in_the_order_of_the_text() {
    let text =
        r#"{"mode": "audit", "allowedDestinations": [{"name": "a", "entity": "world"}], "description": "x"}"#;
    let mut reading = read(&id(), text);
    let blank = |message: &str| Finding {
        severity: Severity::Error,
        path: String::new(),
        line: 0,
        column: 0,
        message: message.to_owned(),
        hint: None,
        rule: Some("R".into()),
    };
    for (path, message) in
        [("description", "third"), ("mode", "first"), ("mode", "first"), ("mode", "second")]
    {
        let at = reading.find(path);
        reading.add(at, blank(message));
    }
    assert!(reading.policy.is_some(), "findings of others are not about the meaning");
    let said: Vec<String> = reading.finish().iter().map(Finding::to_string).collect();
    let expected =
        ["first (line 1 column 10) [R]", "second (line 1 column 10) [R]", "third (line 1 column 93) [R]"];
    assert_eq!(said, expected);
}

#[test]
fn what_another_destination_allows_already_is_told() {
    let said_of = |a: &str, b: &str| {
        let text =
            format!("{{\"allowedDestinations\": [\n{{\"name\": \"a\", {a}}},\n{{\"name\": \"b\", {b}}}]}}");
        said(&text).into_iter().filter(|said| said.contains("adds nothing: ")).collect::<Vec<_>>()
    };
    let second = "warning: b adds nothing: a allows all of it (allowedDestinations[1], line 3 column 1); remove it, or narrow a";
    let first = "warning: a adds nothing: b allows all of it (allowedDestinations[0], line 2 column 1); remove it, or narrow b";
    let net = r#""cidr": "10.0.0.0/24""#;
    for (a, b, expected) in [
        (net, net, Some(second)),
        (r#""cidr": "10.0.0.0/23""#, r#""cidr": "10.0.1.0/24", "ports": [443]"#, Some(second)),
        (r#""cidr": "10.0.1.0/24""#, r#""cidrs": ["10.0.0.0/23", "10.9.0.0/24"]"#, Some(first)),
        (r#""cidr": "10.0.0.0/23", "except": ["10.0.1.128/25"]"#, r#""cidr": "10.0.1.0/24""#, None),
        (r#""cidr": "10.0.0.0/23", "ports": [443]"#, r#""cidr": "10.0.1.0/24""#, None),
        (
            r#""cidr": "10.0.0.0/23", "ports": ["400-500"]"#,
            r#""cidr": "10.0.1.0/24", "ports": [443]"#,
            Some(second),
        ),
        (r#""cidr": "10.0.0.0/23", "governance": {"expiry": "2030-01-01"}"#, net, None),
        (net, r#""cidr": "10.0.0.0/25", "governance": {"expiry": "2030-01-01"}"#, Some(second)),
        (r#""entity": "world""#, r#""entity": "world""#, Some(second)),
        (r#""entity": "world", "ports": [443]"#, r#""entity": "world""#, Some(first)),
        (r#""entity": "world""#, r#""entity": "node""#, None),
        (r#""domain": "a.com""#, r#""domain": "a.com""#, Some(second)),
        (r#""service": {"name": "x"}"#, r#""service": {"name": "x", "namespace": "shop"}"#, Some(second)),
    ] {
        let expected: Vec<&str> = expected.into_iter().collect();
        assert_eq!(said_of(a, b), expected, "{a} and {b}");
    }
    let both = r#"{"allowedDestinations": [{"name": "a", "entity": "node", "ports": [1]}], "deniedDestinations": [{"name": "b", "entity": "node"}]}"#;
    assert_eq!(
        said(both),
        ["warning: a can never match: b denies all of it (allowedDestinations[0], line 1 column 26)"]
    );
}

/// Documents that make each kind of check work hard end soon. The bound is for a build without optimisation on a busy machine.
#[test]
fn large_documents_end_soon() {
    let list =
        |count: usize, item: &dyn Fn(usize) -> String| (0..count).map(item).collect::<Vec<_>>().join(",");
    let documents = [
        // Each a prefix inside the ones before it, and each of another port: none covers another.
        list(MAX_DESTINATIONS, &|n| {
            format!(r#"{{"name":"{n}","cidr":"{:x}::/{}","ports":[{}]}}"#, 0x2600, 16 + n % 112, n + 1)
        }),
        list(8, &|n| {
            let nets = list(7000, &|k| format!("\"{}.{}.0.0/16\"", k % 256, (k / 256) * 8 + n % 8));
            format!(r#"{{"name":"{n}","cidrs":[{nets}]}}"#)
        }),
        list(4000, &|n| {
            let ports = list(40, &|k| format!("\"{}-{}\"", k + 1 + n % 7, 60_000 - k));
            format!(r#"{{"name":"{n}","entity":"world","ports":[{ports}]}}"#)
        }),
        list(9000, &|n| format!(r#"{{"name":"{n}","domain":"*.büchér{n}.github.io"}}"#)),
    ];
    for items in documents {
        let text =
            format!(r#"{{"allowedDestinations":[{}]}}"#, items.chars().take(1_000_000).collect::<String>());
        let text = if items.len() > 1_000_000 {
            let end = text.rfind("},{\"name\"").expect("there are some");
            format!("{}}}]}}", &text[..end])
        } else {
            text
        };
        let start = std::time::Instant::now();
        let parsed = parse(&id(), &text);
        let took = start.elapsed();
        assert!(parsed.policy.is_some(), "{:?}", parsed.findings.first().map(Finding::to_string));
        println!("{} bytes: {took:?}", text.len());
        assert!(took < std::time::Duration::from_secs(10), "{took:?} for {}", &text[..100]);
    }
}

proptest! {
    #[test]
    fn never_panics(text in "\\PC{0,200}|[ \\n\\[\\]{}:,\"a-z0-9./*-]{0,200}", path in "\\PC{0,20}") {
        said(&text);
        assert_eq!(position(&text, &path).is_some(), json::parse(&text).is_ok(), "{text}");
    }

    #[test]
    fn never_panics_on_near_misses(at in 0usize..1500, cut in 0usize..12, put in "\\PC{0,2}|[0-9./:,*\\\\\"{}\\[\\]-]{0,3}|null|\\{\\}|\\[\\]|-1|\"\"") {
        let mut chars: Vec<char> = SECOND.chars().collect();
        let at = at.min(chars.len());
        let end = (at + cut).min(chars.len());
        chars.splice(at..end, put.chars());
        let text: String = chars.into_iter().collect();
        let parsed = parse(&id(), &text);
        let lines: Vec<&str> = text.split('\n').collect();
        let places: Vec<(u32, u32)> = parsed.findings.iter().map(|f| (f.line, f.column)).collect();
        prop_assert!(places.is_sorted(), "findings come in the order of the text: {:?}", places);
        for (line, column) in places {
            let there = lines.get(line as usize - 1).expect("the line is there");
            prop_assert!(column as usize <= there.chars().count() + 1, "column {} of {}", column, there);
        }
        said(&text);
    }

    /// A wrong value is found wherever it stands, at its own place.
    #[test]
    fn findings_point_at_the_value(before in "[ \\n]{0,5}", note in "[é😀a\\n ]{0,9}") {
        let note = note.replace('\n', "\\n");
        let text = format!("{before}{{\"description\": \"{note}\",{before}\"mode\":{before}\"adit\"}}");
        let finding = parse(&id(), &text).findings.into_iter().find(Finding::is_error).expect("adit is no mode");
        let line = text.split('\n').nth(finding.line as usize - 1).expect("the line is there");
        let rest: String = line.chars().skip(finding.column as usize - 1).collect();
        prop_assert!(rest.starts_with("\"adit\""), "{} points at {}", finding, rest);
    }
}
