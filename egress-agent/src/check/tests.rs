//! The judge as a whole, and the file with its rules.

use super::*;
use crate::policy::governance::Field;

/// Noon of 2026-11-22, UTC.
const NOW: u64 = 1_795_348_800;

fn judge(text: &str) -> Judgement {
    let id = NsName::new("shop", "egress");
    let profile = Profile::Required;
    Rules::default().judge(&Subject { id: &id, text, old: None, profile }, NOW)
}

#[test]
fn one_error_is_one_line() {
    let judgement = judge(
        "{ \"defaultAction\": \"deny\",\n  \"allowedDestinations\": [\n    {\"name\": \"a\", \"entity\": \"node\"},\n    {\"name\": \"b\",\n     \"cidr\": \"10.0.0.0/99\"}]}",
    );
    assert!(judgement.refused() && judgement.policy.is_none());
    assert_eq!(
        judgement.message().as_deref(),
        Some(
            "Policy validation failed: Invalid CIDR format: 10.0.0.0/99 (allowedDestinations[1].cidr, line 5 column 14); did you mean 10.0.0.0/9?"
        )
    );
    let empty = judge("{}");
    assert_eq!((empty.refused(), empty.message(), empty.warnings().count()), (false, None, 1));
}

#[test]
fn several_errors_are_told_at_once_as_far_as_they_fit() {
    let two = judge(r#"{"mode": "x", "clusterDns": 1}"#);
    assert_eq!(
        two.message().as_deref(),
        Some(
            "Policy validation failed: Invalid mode: x (mode, line 1 column 10); one of enforce, audit\n\
             also: Wrong type: expected true or false, found a number (clusterDns, line 1 column 29)"
        )
    );
    let many = format!("{{\"allowedDestinations\": [{}]}}", vec!["1"; 900].join(","));
    let message = judge(&many).message().expect("it is refused");
    assert!(message.len() <= LONGEST_MESSAGE && message.len() > LONGEST_MESSAGE - 200, "{}", message.len());
    let (told, rest) = message.rsplit_once("\nand ").expect("it does not fit");
    let left: usize = rest.strip_suffix(" more errors").and_then(|n| n.parse().ok()).expect("a number");
    assert_eq!(told.lines().count() + left, 900);
}

#[test]
fn a_long_error_is_cut_at_a_character() {
    let finding = Finding {
        severity: Severity::Error,
        path: "é".repeat(4000),
        line: 0,
        column: 0,
        message: "m".into(),
        hint: None,
        rule: None,
    };
    let judgement = Judgement { policy: None, findings: vec![finding.clone(), finding] };
    let message = judgement.message().expect("it is refused");
    assert!(message.len() <= LONGEST_MESSAGE && message.ends_with("\nand 1 more error"), "{message}");
}

#[test]
fn governance_refuses_but_leaves_the_policy() {
    let judgement = judge(r#"{"allowedDestinations": [{"name": "a", "domain": "a.example.com"}]}"#);
    assert!(judgement.refused() && judgement.policy.is_some());
    let rules: Vec<Option<&str>> = judgement.findings.iter().map(|finding| finding.rule.as_deref()).collect();
    assert_eq!(rules.iter().flatten().count(), 5);
    assert_eq!(
        judgement.warnings().map(Finding::to_string).collect::<Vec<_>>(),
        [
            "Not resolved yet: a matches nothing until the addresses of the domain a.example.com are known (allowedDestinations[0], line 1 column 26)"
        ]
    );
}

#[test]
fn an_old_text_that_is_broken_excuses_nothing() {
    let id = NsName::new("shop", "egress");
    let text = r#"{"allowedDestinations": [{"name": "a", "entity": "node"}]}"#;
    let refused = |old| {
        Rules::default().judge(&Subject { id: &id, text, old, profile: Profile::Required }, NOW).refused()
    };
    assert!(refused(None) && refused(Some("{")) && refused(Some("{}")));
    assert!(!refused(Some(text)));
}

const RULES: &str = r#"
# who may do what
governance:
  profile: required
  allowWeaker: true
  required: [owner, dataClassification]
  owners: ["team-payments", "team-*"]
  auditRef: "^(SEC|RISK)-[0-9]+$"
  longestDays: {restricted: 10}
  latestYear: 2050
  refusedReasons: ["because"]
  soonDays: 7
policyAsCode:
  enabled: true
  limitMillis: 50
cluster:
  podCidrs: [10.0.0.0/16, "fd00::/48"]
  environment: dev
  approvedDestinations: ["*.example.com"]
"#;

#[test]
fn rules_are_read_from_yaml() {
    let rules = Rules::parse(RULES).expect("good rules");
    let Rules { governance, policy_as_code, cluster, bundles, ranges: _ } = &rules;
    assert_eq!(bundles.len(), 1);
    assert_eq!(governance.profile, Profile::Required);
    assert_eq!(governance.required, [Field::Owner, Field::DataClassification]);
    assert_eq!(governance.owners, ["team-payments", "team-*"]);
    let days = &governance.longest_days;
    assert_eq!((days.restricted, days.confidential, days.internal, days.public), (10, 90, 180, 365));
    assert_eq!((governance.latest_year, governance.soon_days), (2050, 7));
    assert_eq!((policy_as_code.enabled, policy_as_code.limit().as_millis()), (true, 50));
    assert_eq!(cluster.pod_cidrs.len(), 2);
    assert_eq!((cluster.environment.as_str(), cluster.approved_destinations.len()), ("dev", 1));
    assert_eq!(rules.profile(Some("off")).0, Profile::Off);
    for nothing in ["", "\n# nothing\n", "{}", "governance: {}\ncluster: {}"] {
        let rules = Rules::parse(nothing).expect("the defaults");
        assert_eq!(rules.governance, governance::Config::default(), "{nothing:?}");
        assert_eq!(rules.governance.profile, Profile::Off);
    }
}

#[test]
fn wrong_rules_are_told_with_their_place() {
    for (text, expected) in [
        ("governance:\n  profil: warn\n", "rules:2:3: unknown field `profil`; did you mean profile?"),
        (
            "governance:\n  profile: strict\n",
            "rules:2:12: unknown variant `strict`; one of off, warn, required",
        ),
        ("governance:\n  auditRef: \"(\"\n", "rules:2:13: ( is no regular expression: unclosed group"),
        (
            "governance:\n  longestDays: {restrictd: 3}\n",
            "rules:2:17: unknown field `restrictd`; did you mean restricted?",
        ),
        ("governance:\n  longestDays: {restricted: -1}\n", "rules:2:29: expected a whole number, 0 to 65535"),
        ("cluster:\n  podCidrs: [10.0.0.0/33]\n", "rules:2:14: expected a prefix such as 10.0.0.0/16"),
        ("governance: [\n", "rules:1:13: expected fields"),
        ("governance:\n  soonDays: 1\n  soonDays: 2\n", "rules:3:3: soonDays is given twice"),
        ("- governance\n", "rules:1:1: expected fields"),
    ] {
        assert_eq!(Rules::parse(text).expect_err(text).to_string(), expected, "{text}");
    }
}

#[test]
fn a_file_with_rules_is_named() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("rules.yaml");
    let absent = Rules::from_file(&path).expect_err("it is not there");
    assert_eq!(absent.to_string(), format!("cannot read the rules in {}", path.display()));
    std::fs::write(&path, "governance:\n  x: 1\n").expect("it can be written");
    let wrong = Rules::from_file(&path).expect_err("x is nothing").to_string();
    assert!(wrong.starts_with(&format!("{}:2:3: ", path.display())), "{wrong}");
    std::fs::write(&path, RULES).expect("it can be written");
    assert!(Rules::from_file(&path).is_ok());
}

const AS_CODE: &str = "policyAsCode: {enabled: true, limitMillis: 5000}\ncluster: {environment: prod}\n";

#[test]
fn policy_as_code_is_asked_and_forgives_what_was_there() {
    let rules = Rules::parse(AS_CODE).expect("good rules");
    let id = NsName::new("shop", "egress");
    let judge = |old: Option<&str>, text: &str| {
        let profile = Profile::Off;
        rules.judge(&Subject { id: &id, text, old, profile }, NOW)
    };
    let ids = |judgement: &Judgement| -> Vec<(Severity, String, u32)> {
        let of = |finding: &Finding| Some((finding.severity, finding.rule.clone()?, finding.line));
        judgement.findings.iter().filter_map(of).filter(|(_, rule, _)| rule == "EGR-0001").collect()
    };
    let text =
        "{\"allowedDestinations\": [\n{\"name\": \"all\", \"cidr\": \"0.0.0.0/0\", \"ports\": [443]}]}";
    let fresh = judge(None, text);
    assert!(fresh.refused() && fresh.policy.is_some());
    assert_eq!(ids(&fresh), [(Severity::Error, "EGR-0001".to_owned(), 2)], "{:?}", fresh.findings);
    let same = judge(Some(text), text);
    assert_eq!(ids(&same), [(Severity::Warning, "EGR-0001".to_owned(), 2)], "{:?}", same.findings);
    assert!(!same.refused(), "{:?}", same.message());
    let wider = text.replace("[443]", "[443, 80]");
    assert!(judge(Some(text), &wider).refused(), "another port is another matter");
    assert!(!judge(Some(&wider), text).refused());
    assert!(judge(Some("{"), text).refused());
    let broken = judge(None, "{");
    assert_eq!(
        broken.findings.len(),
        1,
        "a text that is no document is not asked about: {:?}",
        broken.findings
    );
}

#[test]
fn what_rules_of_ones_own_had_against_something_else_excuses_nothing() {
    let folder = tempfile::tempdir().expect("a directory");
    // One says which entry it means, the other does not; both always say the same words.
    let rules = "package main\n\nimport data.egress.lib\nimport rego.v1\n\ndeny contains \"too wide\" if {\n\tsome prefix in lib.prefixes\n\tprefix.length == 12\n}\n\ndeny_class contains {\"msg\": \"restricted\", \"path\": destination.path} if {\n\tsome destination in lib.allowed\n\tdestination.entry.governance.dataClassification == \"restricted\"\n}\n";
    std::fs::write(folder.path().join("own.rego"), rules).expect("it can be written");
    let mut rules = Rules::parse("policyAsCode: {limitMillis: 5000}").expect("good rules");
    rules.add_bundle(folder.path()).expect("a good bundle");
    let id = NsName::new("shop", "egress");
    let judge = |old: &str, text: &str| {
        let subject = Subject { id: &id, text, old: Some(old), profile: Profile::Off };
        rules.judge(&subject, NOW).message()
    };
    let old = r#"{"podSelector": {"matchLabels": {"app": "a"}}, "allowedDestinations": [
        {"name": "a", "cidr": "10.0.0.0/12", "ports": [443], "governance": {"dataClassification": "restricted"}},
        {"name": "b", "cidr": "192.0.2.0/24", "ports": [443], "governance": {"dataClassification": "public"}}],
        "deniedDestinations": [{"name": "c", "cidr": "10.1.0.0/16"}]}"#;
    let change = |from: &str, to: &str| {
        assert!(old.contains(from), "{from}");
        old.replacen(from, to, 1)
    };
    let narrower = change("192.0.2.0/24", "192.0.2.0/25");
    assert_eq!(judge(old, &narrower), None);
    for (wider, said) in [
        (change("192.0.2.0/24", "172.16.0.0/12"), "too wide"),
        (change("10.1.0.0/16", "10.2.0.0/16"), "too wide"),
        (change(r#""app": "a""#, r#""app": "b""#), "too wide"),
        (change("public", "restricted"), "restricted"),
    ] {
        let message = judge(old, &wider).unwrap_or_else(|| panic!("{wider} is refused"));
        assert!(message.contains(said), "{wider}: {message}");
    }
}

#[test]
fn a_default_of_allow_is_excused_for_the_same_pods() {
    let rules = Rules::parse(AS_CODE).expect("good rules");
    let id = NsName::new("shop", "egress");
    let refused = |old: &str, text: &str| {
        rules.judge(&Subject { id: &id, text, old: Some(old), profile: Profile::Off }, NOW).refused()
    };
    let old = r#"{"defaultAction": "allow", "podSelector": {"matchLabels": {"app": "a"}}}"#;
    let with = r#"{"defaultAction": "allow", "podSelector": {"matchLabels": {"app": "a"}},
        "allowedDestinations": [{"name": "a", "cidr": "192.0.2.0/24", "ports": [443]}]}"#;
    assert!(!refused(old, with));
    assert!(refused(old, r#"{"defaultAction": "allow"}"#), "more pods are open");
    let denying = |cidr: &str| {
        format!(
            r#"{{"defaultAction": "allow", "deniedDestinations": [{{"name": "d", "cidr": "{cidr}"}},
                {{"name": "ended", "cidr": "192.0.2.9/32", "governance": {{"expiry": "2020-01-01"}}}}]}}"#
        )
    };
    assert!(!refused(&denying("10.0.0.0/8"), &denying("10.0.0.0/8")));
    assert!(!refused(&denying("10.0.0.0/8"), &denying("10.0.0.0/7")), "more is denied");
    assert!(refused(&denying("10.0.0.0/8"), &denying("10.0.0.0/9")), "less is denied");
    assert!(refused(&denying("10.0.0.0/8"), r#"{"defaultAction": "allow"}"#), "nothing is denied");
}

#[test]
fn an_entry_is_not_excused_if_less_is_taken_out_of_it() {
    let rules = Rules::parse(AS_CODE).expect("good rules");
    let id = NsName::new("shop", "egress");
    let document = |denied: &str| {
        format!(
            r#"{{"allowedDestinations": [{{"name": "a", "cidr": "0.0.0.0/0", "ports": [443]}}], "deniedDestinations": [{denied}]}}"#
        )
    };
    let refused = |old: &str, new: &str| {
        let (old, text) = (document(old), document(new));
        rules.judge(&Subject { id: &id, text: &text, old: Some(&old), profile: Profile::Off }, NOW).refused()
    };
    let one = r#"{"name": "d", "cidr": "192.0.2.0/24"}"#;
    assert!(!refused(one, one));
    assert!(refused(one, ""));
    assert!(refused(one, &one.replace("/24", "/25")));
    assert!(!refused(one, &one.replace("/24", "/23")));
    let ports = |ports: &str| one.replace("/24\"", &format!("/24\", \"ports\": [{ports}]"));
    assert!(!refused(&ports(r#""80-90", "91-99""#), &ports(r#""80-99""#)), "the same in other words");
    assert!(refused(&ports(r#""400-499""#), &ports(r#""400-442", "444-499""#)));
    let six = r#"{"name": "d", "cidr": "2001:db8::/32"}"#;
    assert!(!refused(six, ""), "it denies nothing of the entry");
    let ended = r#"{"name": "d", "cidr": "192.0.2.0/24", "governance": {"expiry": "2020-01-01"}}"#;
    assert!(!refused(ended, ""), "it denied nothing any more");
}

#[test]
fn a_policy_that_is_enforced_no_more_is_warned_of() {
    let id = NsName::new("shop", "egress");
    let said = |old: Option<&str>, text: &str| -> Vec<String> {
        let subject = Subject { id: &id, text, old, profile: Profile::Off };
        let judgement = Rules::default().judge(&subject, NOW);
        judgement
            .findings
            .iter()
            .map(Finding::to_string)
            .filter(|said| said.contains("instead of enforce"))
            .collect()
    };
    let (enforce, audit) = (r#"{"defaultAction": "deny"}"#, r#"{"mode": "audit"}"#);
    assert_eq!(said(Some(enforce), audit).len(), 1);
    assert!(
        said(Some(enforce), audit)[0].contains("(mode, line 1 column 10)"),
        "{:?}",
        said(Some(enforce), audit)
    );
    for (old, text) in [(None, audit), (Some(audit), audit), (Some(audit), enforce), (Some(enforce), enforce)]
    {
        assert!(said(old, text).is_empty(), "{old:?} to {text}");
    }
}

#[test]
fn policy_as_code_leaves_governance_to_governance() {
    let rules = Rules::parse(AS_CODE).expect("good rules");
    let id = NsName::new("shop", "egress");
    let text = r#"{"allowedDestinations": [{"name": "a", "cidr": "192.0.2.0/24", "ports": [443], "governance": {"reason": "temp", "expiry": "2020-01-01"}}]}"#;
    let subject = Subject { id: &id, text, old: None, profile: Profile::Off };
    let said: Vec<String> = rules.judge(&subject, NOW).findings.iter().map(Finding::to_string).collect();
    assert!(said.len() == 1 && said[0].ends_with("[GOV-0012]"), "{said:?}");
}

#[test]
fn policy_as_code_that_does_not_answer_refuses() {
    let folder = tempfile::tempdir().expect("a directory");
    let rule = "package main\n\nimport rego.v1\n\ndeny contains \"no\" if {\n\tsome i in input.allowedDestinations\n\tsome j in input.allowedDestinations\n\tsome k in input.allowedDestinations\n\tsome l in input.allowedDestinations\n\ti.name == j.name\n\tk.name == l.name\n\ti.name == \"none\"\n}\n";
    std::fs::write(folder.path().join("slow.rego"), rule).expect("it can be written");
    let mut rules = Rules::parse("policyAsCode: {limitMillis: 1}").expect("good rules");
    rules.add_bundle(folder.path()).expect("a good bundle");
    assert_eq!(rules.bundles.len(), 2);
    let id = NsName::new("shop", "egress");
    let items: Vec<String> = (0..400)
        .map(|n| format!(r#"{{"name": "n{n}", "cidr": "192.0.2.{}/32", "ports": [{}]}}"#, n % 256, n + 1))
        .collect();
    let text = format!(r#"{{"allowedDestinations": [{}]}}"#, items.join(","));
    let judgement = rules.judge(&Subject { id: &id, text: &text, old: None, profile: Profile::Off }, NOW);
    let message = judgement.message().expect("it is refused");
    assert!(message.contains("Not judged: policy as code took longer than 1ms"), "{message}");
    assert!(judgement.policy.is_some());
}

#[test]
fn clouds_are_warned_of_where_ranges_are_known() {
    use std::sync::Arc;

    use crate::policy::ranges::{Builder, Row};

    let mut builder = Builder::new();
    for (service, region, cidr) in [
        ("S3", "us-east-1", "16.15.176.0/20"),
        ("S3", "GLOBAL", "3.5.0.0/24"),
        ("EC2", "us-east-1", "3.208.0.0/12"),
        ("ROUTE53", "GLOBAL", "205.251.192.0/21"),
    ] {
        let cidr = cidr.parse().expect("a literal prefix");
        let row = Row { service, region, network_border_group: region, wider: "", cidr };
        builder.push(row).expect("a provider may have it");
    }
    let rules = Rules::default();
    rules.ranges.change(|ranges| ranges.set_provider("aws", Arc::new(builder.finish(Some(1)))));
    let warned = |rules: &Rules, destination: &str| {
        let text = format!(
            r#"{{"defaultAction": "deny", "allowedDestinations": [{{"name": "a", "ports": [443], {destination}}}]}}"#
        );
        let id = NsName::new("ns", "p");
        let subject = Subject { id: &id, text: &text, old: None, profile: Profile::Off };
        let judgement = rules.judge(&subject, 0);
        assert!(judgement.policy.is_some(), "{destination}");
        judgement.warnings().map(|finding| finding.message.clone()).collect::<Vec<_>>()
    };
    for (destination, wanted) in [
        (r#""awsService": "s3""#, None),
        (
            r#""awsService": "s3", "regions": ["us-east-1"]"#,
            Some("Less than it says: a leaves out what is of region GLOBAL (1 of its rows)"),
        ),
        (
            r#""awsService": "ROUTE53", "regions": ["us-east-1"]"#,
            Some("Nothing published: a matches no address: aws publishes no address of ROUTE53 in us-east-1"),
        ),
        (r#""awsService": "ec2""#, Some("Wide: a opens 1 CIDR, 1.0 million IPv4 addresses")),
        (r#""cloud": {"provider": "github"}"#, None),
    ] {
        let warnings = warned(&rules, destination);
        let begins = |wanted: &str| warnings.iter().any(|warning| warning.starts_with(wanted));
        assert_eq!(warnings.len(), usize::from(wanted.is_some()), "{destination}: {warnings:?}");
        assert!(wanted.is_none_or(begins), "{destination}: {warnings:?}");
        assert!(
            warned(&Rules::default(), destination).is_empty(),
            "{destination}: without ranges there is nothing to say"
        );
    }
}
