use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::{
    super::{Severity, examine},
    gather::{certificate as read_certificate, is_of_names, policy as read_policy},
    *,
};
use crate::k8s::summary::Held;

const NOW: u64 = 1_800_000_000;

fn ns(namespace: &str, name: &str) -> NsName {
    NsName::new(namespace, name)
}

fn healthy() -> Facts {
    let rollout = Rollout { wanted: 3, updated: 3, ready: 3, observed: true };
    let policy =
        Policy { revision: "r1".to_owned(), needs_dns: true, changed: NOW - DAY, ..Policy::default() };
    let held = Held { revision: "r1".to_owned(), pods: 2, behind: 0 };
    let summary = Summary {
        version: "0.1.0".to_owned(),
        written: NOW - 60,
        ready: true,
        policies: BTreeMap::from([("shop/web".to_owned(), held)]),
        ..Summary::default()
    };
    Facts {
        now: NOW,
        options: Options {
            agent_namespace: "egress-agent".to_owned(),
            webhook_namespace: "egress-webhook".to_owned(),
            controller_namespace: "egress-controller".to_owned(),
            cluster_dns: vec![ns("kube-system", "kube-dns")],
        },
        nodes: Ok(3),
        agents: Ok(Some(Agents { rollout, dns_addresses: false, summaries: true })),
        controller: Ok(Some(Rollout { wanted: 2, updated: 2, ready: 2, observed: true })),
        webhook: Ok(Some(Webhook {
            name: "egress-agent".to_owned(),
            service: ns("egress-webhook", "egress-webhook"),
            failure_policy: "Fail".to_owned(),
            bundle: Ok(vec![NOW + 100 * DAY]),
        })),
        certificate: Ok(Some(Certificate {
            begins: NOW - DAY,
            ends: NOW + 60 * DAY,
            covers: true,
            trusted: Some(true),
        })),
        endpoints: Ok(Some(2)),
        lease: Ok(Some(Lease { holder: "a".to_owned(), renewed: NOW - 2, lasts: 15 })),
        ranges: Ok(BTreeMap::from([("aws".to_owned(), NOW - DAY)])),
        summaries: Ok(BTreeMap::from([("node-a".to_owned(), summary)])),
        generated: Ok(4),
        policies: Ok(BTreeMap::from([(ns("shop", "web"), policy)])),
        validated: Ok(vec!["shop".to_owned()]),
        dns: Ok(vec![(ns("kube-system", "kube-dns"), Some(2))]),
        node_local_dns: Ok(false),
        denials: Ok(Denials { all: 50, names: 1, namespaces: BTreeMap::from([("shop".to_owned(), 1)]) }),
    }
}

type Case = (&'static str, Severity, &'static str, fn(&mut Facts));

fn agents_of(facts: &mut Facts) -> &mut Agents {
    facts.agents.as_mut().expect("they were asked for").as_mut().expect("they are there")
}

fn webhook_of(facts: &mut Facts) -> &mut Webhook {
    facts.webhook.as_mut().expect("it was asked for").as_mut().expect("it is there")
}

fn certificate_of(facts: &mut Facts) -> &mut Certificate {
    facts.certificate.as_mut().expect("it was asked for").as_mut().expect("it is there")
}

fn policy_of(facts: &mut Facts) -> &mut Policy {
    facts.policies.as_mut().expect("they were asked for").get_mut(&ns("shop", "web")).expect("it is there")
}

fn summary_of(facts: &mut Facts) -> &mut Summary {
    facts.summaries.as_mut().expect("they were asked for").get_mut("node-a").expect("it is there")
}

const CASES: &[Case] = &[
    ("dns", Severity::Critical, "does not exist", |facts| {
        facts.dns = Ok(vec![(ns("kube-system", "kube-dns"), None)]);
    }),
    ("dns", Severity::Critical, "no ready endpoint", |facts| {
        facts.dns = Ok(vec![(ns("kube-system", "kube-dns"), Some(0))]);
    }),
    ("dns", Severity::Warning, "cache for names", |facts| facts.node_local_dns = Ok(true)),
    ("dns", Severity::Warning, "\"clusterDns\": false` in cart/x", |facts| {
        let policy = Policy { without_dns: true, ..Policy::default() };
        facts.policies.as_mut().expect("they were asked for").insert(ns("cart", "x"), policy);
    }),
    ("dns", Severity::Critical, "names are denied there", |facts| policy_of(facts).without_dns = true),
    ("dns", Severity::Critical, "30 of 50", |facts| {
        facts.denials.as_mut().expect("they were asked for").names = 30;
    }),
    ("agents", Severity::Critical, "no DaemonSet", |facts| facts.agents = Ok(None)),
    ("agents", Severity::Critical, "fits no node", |facts| agents_of(facts).rollout = Rollout::default()),
    ("agents", Severity::Critical, "0 of 3", |facts| agents_of(facts).rollout.ready = 0),
    ("agents", Severity::Warning, "2 of 3 agents", |facts| agents_of(facts).rollout.ready = 2),
    ("agents", Severity::Warning, "not rolled out", |facts| agents_of(facts).rollout.updated = 1),
    ("agents", Severity::Warning, "not rolled out", |facts| agents_of(facts).rollout.observed = false),
    ("agents", Severity::Note, "3 of 4 nodes", |facts| facts.nodes = Ok(4)),
    ("webhook", Severity::Warning, "no webhook configuration", |facts| facts.webhook = Ok(None)),
    ("webhook", Severity::Warning, "failurePolicy Ignore", |facts| {
        webhook_of(facts).failure_policy = "Ignore".to_owned();
    }),
    ("webhook", Severity::Critical, "is empty", |facts| webhook_of(facts).bundle = Ok(Vec::new())),
    ("webhook", Severity::Critical, "cannot be read", |facts| {
        webhook_of(facts).bundle = Err("it is no PEM".to_owned());
    }),
    ("webhook", Severity::Critical, "has expired", |facts| webhook_of(facts).bundle = Ok(vec![NOW - 9])),
    ("webhook", Severity::Warning, "ends in 3 days", |facts| {
        webhook_of(facts).bundle = Ok(vec![NOW + 3 * DAY]);
    }),
    ("certificate", Severity::Critical, "no Secret", |facts| facts.certificate = Ok(None)),
    ("certificate", Severity::Critical, "expired 2 h ago", |facts| certificate_of(facts).ends = NOW - 7200),
    ("certificate", Severity::Warning, "was not renewed", |facts| certificate_of(facts).ends = NOW + DAY),
    ("certificate", Severity::Critical, "a clock is wrong", |facts| certificate_of(facts).begins = NOW + 500),
    ("certificate", Severity::Critical, "egress-webhook.egress-webhook.svc", |facts| {
        certificate_of(facts).covers = false;
    }),
    ("certificate", Severity::Critical, "has signed", |facts| certificate_of(facts).trusted = Some(false)),
    ("endpoints", Severity::Critical, "does not exist", |facts| facts.endpoints = Ok(None)),
    ("endpoints", Severity::Critical, "no webhook is ready", |facts| facts.endpoints = Ok(Some(0))),
    ("endpoints", Severity::Warning, "one webhook alone", |facts| facts.endpoints = Ok(Some(1))),
    ("controller", Severity::Note, "no controller", |facts| facts.controller = Ok(None)),
    ("controller", Severity::Warning, "no controller", |facts| {
        policy_of(facts).providers = vec!["aws".to_owned()];
        facts.controller = Ok(None);
    }),
    ("controller", Severity::Critical, "no controller is ready", |facts| {
        facts.controller = Ok(Some(Rollout { wanted: 2, ..Rollout::default() }));
    }),
    ("controller", Severity::Critical, "ever led", |facts| facts.lease = Ok(None)),
    ("controller", Severity::Warning, "nobody holds", |facts| facts.lease = Ok(Some(Lease::default()))),
    ("controller", Severity::Critical, "renewed it 46 s ago", |facts| {
        facts.lease = Ok(Some(Lease { holder: "a".to_owned(), renewed: NOW - 46, lasts: 15 }));
    }),
    ("ranges", Severity::Warning, "31 days old", |facts| {
        facts.ranges = Ok(BTreeMap::from([("aws".to_owned(), NOW - 31 * DAY)]));
    }),
    ("ranges", Severity::Critical, "nothing is published of gcp, which shop/web", |facts| {
        policy_of(facts).providers = vec!["gcp".to_owned()];
    }),
    ("policies", Severity::Critical, "as it is written: Missing", |facts| {
        policy_of(facts).invalid = Some("Missing field: name".to_owned());
        summary_of(facts).policies.clear();
    }),
    ("policies", Severity::Warning, "as it is written: Missing", |facts| {
        policy_of(facts).invalid = Some("Missing field: name".to_owned());
    }),
    ("policies", Severity::Warning, "another version on node-a", |facts| {
        policy_of(facts).revision = "r2".to_owned();
    }),
    ("policies", Severity::Warning, "node-a (1 of 2 pods)", |facts| {
        summary_of(facts).policies.values_mut().for_each(|held| held.behind = 1);
    }),
    ("nodes", Severity::Warning, "told of itself 3 h ago", |facts| {
        summary_of(facts).written = NOW - 3 * 3600;
    }),
    ("nodes", Severity::Critical, "not ready: full", |facts| {
        let summary = summary_of(facts);
        (summary.ready, summary.reasons) = (false, vec!["full".to_owned()]);
    }),
    ("nodes", Severity::Warning, "degraded: a map", |facts| {
        summary_of(facts).reasons = vec!["a map".to_owned()];
    }),
    ("nodes", Severity::Note, "do not publish", |facts| agents_of(facts).summaries = false),
    ("nodes", Severity::Note, "0.1.0, 0.2.0", |facts| {
        let other = Summary { version: "0.2.0".to_owned(), ..summary_of(facts).clone() };
        facts.summaries.as_mut().expect("they were asked for").insert("node-b".to_owned(), other);
    }),
    ("nodes", Severity::Warning, "1 of 2 nodes only audit", |facts| {
        let other = Summary { audit: true, ..summary_of(facts).clone() };
        facts.summaries.as_mut().expect("they were asked for").insert("node-b".to_owned(), other);
    }),
    ("nodes", Severity::Warning, "every node only audits (--audit), and 4 NetworkPolicies", |facts| {
        summary_of(facts).audit = true;
    }),
    ("validation", Severity::Warning, "shop has policies, which govern pods there (2", |facts| {
        facts.validated = Ok(Vec::new());
    }),
];

#[test]
fn a_healthy_cluster_has_no_findings() {
    assert_eq!(examine(&CHECKS, &healthy(), &[]).findings, []);
}

#[test]
fn each_check_finds_what_it_is_for() {
    for (check, severity, words, change) in CASES {
        let mut facts = healthy();
        change(&mut facts);
        let findings = examine(&CHECKS, &facts, &[]).findings;
        let found = findings.iter().find(|finding| {
            finding.check == *check && finding.severity == *severity && finding.what.contains(words)
        });
        let found = found.unwrap_or_else(|| panic!("{check}: {words} is not in {findings:#?}"));
        assert!(!found.shows.is_empty() && !found.fix.is_empty(), "{found:?}");
    }
    let covered = |check: &&Check<Facts>| !CASES.iter().any(|(name, ..)| *name == check.name);
    assert!(CHECKS.iter().find(covered).is_none(), "every check has a case");
}

#[test]
fn names_come_before_everything_else() {
    let mut facts = healthy();
    facts.agents = Ok(None);
    facts.denials.as_mut().expect("they were asked for").names = 40;
    let findings = examine(&CHECKS, &facts, &[]).findings;
    assert_eq!(findings.iter().map(|finding| finding.check).collect::<Vec<_>>(), ["dns", "agents"]);
    assert!(findings[0].shows.starts_with("everything looks broken"), "{findings:#?}");
}

#[test]
fn what_is_as_it_should_be_is_no_finding() {
    let quiet: [fn(&mut Facts); 7] = [
        // A cluster that audits, and writes nothing that others enforce.
        |facts| {
            summary_of(facts).audit = true;
            facts.generated = Ok(0);
        },
        // Nobody needs names.
        |facts| {
            policy_of(facts).needs_dns = false;
            facts.dns = Ok(vec![(ns("kube-system", "kube-dns"), None)]);
        },
        |facts| {
            facts.node_local_dns = Ok(true);
            agents_of(facts).dns_addresses = true;
        },
        |facts| facts.denials = Ok(Denials { all: 2, names: 2, namespaces: BTreeMap::new() }),
        // On its way to the nodes.
        |facts| {
            policy_of(facts).revision = "r2".to_owned();
            policy_of(facts).changed = NOW - 10;
        },
        |facts| {
            policy_of(facts).revision = "r2".to_owned();
            policy_of(facts).changed = NOW - 130;
            summary_of(facts).written = NOW - 100;
        },
        |facts| certificate_of(facts).trusted = None,
    ];
    for (number, change) in quiet.iter().enumerate() {
        let mut facts = healthy();
        change(&mut facts);
        assert_eq!(examine(&CHECKS, &facts, &[]).findings, [], "case {number}");
    }
}

#[test]
fn the_events_of_agents_are_told_apart() {
    assert!(is_of_names("UDP to 10.96.0.10 port 53 was denied: no destination allows it"));
    assert!(!is_of_names("TCP to 10.96.0.10 port 5353 was denied: no destination allows it"));
    assert!(!is_of_names("TCP to 192.0.2.1 port 80 was denied: nearest is port 53"));
    assert!(!is_of_names(
        "UDP to 10.96.0.10 port 53 passed, and would be denied if the policy were enforced"
    ));
}

#[test]
fn policies_are_read() {
    let id = ns("shop", "web");
    let read = |text: &str| read_policy(&id, text);
    let plain = read(r#"{"defaultAction": "deny", "allowedDestinations": []}"#);
    assert!(plain.needs_dns && !plain.without_dns && plain.invalid.is_none(), "{plain:?}");
    let without = read(r#"{"defaultAction": "deny", "clusterDns": false, "allowedDestinations": []}"#);
    assert!(without.without_dns && !without.needs_dns, "{without:?}");
    let cloud = read(
        r#"{"defaultAction": "deny", "allowedDestinations": [{"name": "s3", "awsService": "s3", "ports": [443]}]}"#,
    );
    assert_eq!(cloud.providers, ["aws"]);
    let bad = read(r#"{"defaultAction": "perhaps"}"#);
    assert!(bad.invalid.as_ref().is_some_and(|why| why.contains("perhaps")), "{bad:?}");
}

#[test]
fn certificates_are_read() {
    let issuer = |name: &str| {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key can be made");
        CertifiedIssuer::self_signed(params, key).expect("it can be signed")
    };
    let (ca, other) = (issuer("ca"), issuer("other"));
    let names = vec!["egress-webhook.hooks.svc".to_owned()];
    let key = KeyPair::generate().expect("a key can be made");
    let leaf = CertificateParams::new(names).expect("names").signed_by(&key, &ca).expect("it can be signed");
    let cas = |which: &CertifiedIssuer<'_, KeyPair>| vec![which.der().to_vec()];
    let read = |namespace: &str, cas: Option<&[Vec<u8>]>| {
        read_certificate(leaf.der(), &ns(namespace, "egress-webhook"), cas).expect("it is a certificate")
    };
    let good = read("hooks", Some(&cas(&ca)));
    assert!(good.covers && good.trusted == Some(true) && good.begins < good.ends, "{good:?}");
    assert!(!read("elsewhere", None).covers);
    assert_eq!(read("hooks", Some(&cas(&other))).trusted, Some(false));
    assert_eq!(read("hooks", None).trusted, None);
    assert!(read_certificate(b"no", &ns("a", "b"), None).is_err());
}
