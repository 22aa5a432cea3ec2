//! What the rules say about documents, word for word.

use super::*;
use crate::policy::{cluster::NsName, document};

/// Noon of 2026-11-22, UTC.
const NOW: u64 = 1_795_348_800;

/// A governance that breaks no rule.
const GOOD: &str = r#""owner": "team-a", "reason": "card capture", "dataClassification": "internal", "expiry": "2027-03-31", "auditRef": "SEC-1""#;

fn config() -> Config {
    Config {
        owners: vec!["team-*".into(), "security".into()],
        audit_ref: Some(Pattern::try_from("^(SEC|RISK)-[0-9]+$".to_owned()).expect("a pattern")),
        ..Config::default()
    }
}

/// A document with these destinations, each a line.
fn document(destinations: &[String]) -> String {
    format!("{{\"allowedDestinations\": [\n{}]}}", destinations.join(",\n"))
}

fn entry(governance: &str) -> String {
    format!(
        "{{\"name\": \"a\", \"cidr\": \"10.0.0.0/24\", \"ports\": [443], \"governance\": {{{governance}}}}}"
    )
}

fn said_of(config: &Config, profile: Profile, old: Option<&str>, text: &str) -> Vec<String> {
    let id = NsName::new("shop", "egress");
    let mut reading = document::read(&id, text);
    assert!(reading.policy.is_some(), "{text}");
    let old = old.map(|old| document::parse(&id, old).policy.expect("the old one is good"));
    add(config, profile, &mut reading, old.as_ref(), NOW);
    let word = |finding: &Finding| format!("{}: {finding}", finding.severity);
    reading.finish().iter().map(word).collect()
}

fn said(governance: &str) -> Vec<String> {
    said_of(&config(), Profile::Required, None, &document(&[entry(governance)]))
}

/// `GOOD` with one field replaced.
fn with(field: &str, value: &str) -> String {
    let mut fields: Vec<String> =
        GOOD.split(", \"").map(|field| field.trim_start_matches('"').to_owned()).collect();
    for text in &mut fields {
        if text.starts_with(&format!("{field}\"")) {
            *text = format!("{field}\": \"{value}\"");
        }
    }
    fields.iter().map(|field| format!("\"{field}")).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_good_exception_passes() {
    assert_eq!(said(GOOD), Vec::<String>::new());
    assert_eq!(with("owner", "team-a"), GOOD);
}

#[test]
fn every_required_field_is_asked_for() {
    assert_eq!(
        said(""),
        [
            "error: Missing governance: owner (allowedDestinations[0], line 2 column 1); name the team that answers for it, here or in governance at the top [GOV-0001]",
            "error: Missing governance: reason (allowedDestinations[0], line 2 column 1); say why it is needed [GOV-0002]",
            "error: Missing governance: dataClassification (allowedDestinations[0], line 2 column 1); say what data goes there: public, internal, confidential or restricted [GOV-0004]",
            "error: Missing governance: expiry (allowedDestinations[0], line 2 column 1); say until when it is needed, such as 2027-03-31; it may last 365 days, to 2027-11-22 [GOV-0005]",
            "error: Missing governance: auditRef (allowedDestinations[0], line 2 column 1); name the ticket or decision that approved it [GOV-0003]",
        ]
    );
    let config = Config { required: vec![Field::Scope], ..config() };
    let text = document(&[entry("")]);
    assert_eq!(
        said_of(&config, Profile::Required, None, &text),
        [
            "error: Missing governance: scope (allowedDestinations[0], line 2 column 1); say what it is limited to [GOV-0006]"
        ]
    );
}

#[test]
fn fields_have_to_say_something() {
    for (governance, expected) in [
        (
            with("owner", "taem-a"),
            "error: Unknown owner: taem-a (allowedDestinations[0].governance.owner, line 2 column 78); one of team-*, security [GOV-0007]",
        ),
        (
            with("owner", "me"),
            "error: Unknown owner: me (allowedDestinations[0].governance.owner, line 2 column 78); one of team-*, security [GOV-0007]",
        ),
        (
            with("owner", "secrity"),
            "error: Unknown owner: secrity (allowedDestinations[0].governance.owner, line 2 column 78); did you mean security? [GOV-0007]",
        ),
        (
            with("auditRef", "see Bob"),
            "error: Invalid auditRef: see Bob (allowedDestinations[0].governance.auditRef, line 2 column 184); it has the form ^(SEC|RISK)-[0-9]+$ [GOV-0008]",
        ),
        (
            with("reason", "Temp."),
            "error: Not a reason: Temp. (allowedDestinations[0].governance.reason, line 2 column 98); say what the destination is needed for [GOV-0009]",
        ),
        (
            with("expiry", "2027-05-22"),
            "error: Expiry too far: 2027-05-22 is 181 days from now (allowedDestinations[0].governance.expiry, line 2 column 158); with internal data it may last 180 days, to 2027-05-21 [GOV-0010]",
        ),
        (
            with("expiry", "2099-12-31"),
            "error: Expiry too far: 2099-12-31 is after 2098 (allowedDestinations[0].governance.expiry, line 2 column 158); with internal data it may last 180 days, to 2027-05-21 [GOV-0011]",
        ),
        (
            with("expiry", "2026-11-21"),
            "error: Expired: a matches nothing since 2026-11-22T00:00:00Z (allowedDestinations[0], line 2 column 1); renew its expiry or remove it [GOV-0012]",
        ),
        (
            with("expiry", "2026-12-05"),
            "warning: Ends soon: a matches nothing from 2026-12-06T00:00:00Z on (allowedDestinations[0], line 2 column 1); renew its expiry in time, or remove it [GOV-0013]",
        ),
    ] {
        assert_eq!(said(&governance), [expected], "{governance}");
    }
    for fine in [
        with("owner", "security"),
        with("expiry", "2027-05-21"),
        with("expiry", "2027-05-21T23:59:59Z"),
        with("expiry", "2027-05-22T00:00:00Z"),
        with("expiry", "2026-12-07"),
        with("reason", "test of the card terminals"),
    ] {
        assert_eq!(said(&fine), Vec::<String>::new(), "{fine}");
    }
}

#[test]
fn each_class_has_its_time() {
    for (class, last, beyond) in [
        ("public", "2027-11-22", "2027-11-23"),
        ("internal", "2027-05-21", "2027-05-22"),
        ("confidential", "2027-02-20", "2027-02-21"),
        ("restricted", "2026-12-22", "2026-12-23"),
    ] {
        let with_expiry = |date: &str| with("dataClassification", class).replace("2027-03-31", date);
        assert_eq!(said(&with_expiry(last)), Vec::<String>::new(), "{class}");
        let said = said(&with_expiry(beyond));
        assert!(said.len() == 1 && said[0].contains("GOV-0010"), "{class}: {said:?}");
    }
}

#[test]
fn what_is_inherited_is_said_once() {
    let text = format!(
        "{{\"governance\": {{{}}}, \"allowedDestinations\": [{{\"name\": \"a\", \"entity\": \"node\"}}, {{\"name\": \"b\", \"entity\": \"world\"}}]}}",
        with("owner", "me").replace("2027-03-31", "2028-01-01").replace("\"auditRef\"", "\"audit_ref\"")
    );
    assert_eq!(
        said_of(&config(), Profile::Required, None, &text),
        [
            "error: Unknown owner: me (governance.owner, line 1 column 26); one of team-*, security [GOV-0007]",
            "error: Expiry too far: 2028-01-01 is 405 days from now (governance.expiry, line 1 column 102); with internal data it may last 180 days, to 2027-05-21 [GOV-0010]",
        ]
    );
    // The one that was there is excused, the new one is not.
    let old = text.replace(", {\"name\": \"b\", \"entity\": \"world\"}", "");
    let again = said_of(&config(), Profile::Required, Some(&old), &text);
    assert!(again.iter().all(|said| said.starts_with("error: ")) && again.len() == 2, "{again:?}");
}

#[test]
fn profiles_say_how_bad_it_is() {
    let text = document(&[entry(&with("expiry", "2020-01-01").replace("team-a", "me"))]);
    let of = |profile| -> Vec<String> {
        let brief = |said: &String| {
            let (severity, rest) = said.split_once(": ").expect("a severity");
            format!("{severity} {}", &rest[rest.len() - 10..])
        };
        said_of(&config(), profile, None, &text).iter().map(brief).collect()
    };
    assert_eq!(of(Profile::Off), ["warning [GOV-0012]"]);
    assert_eq!(of(Profile::Warn), ["warning [GOV-0012]", "warning [GOV-0007]"]);
    assert_eq!(of(Profile::Required), ["error [GOV-0012]", "error [GOV-0007]"]);
}

#[test]
fn a_denial_is_no_exception() {
    let text = r#"{"deniedDestinations": [{"name": "a", "cidr": "10.0.0.0/8", "governance": {"expiry": "2020-01-01", "reason": "temp"}}], "allowedDestinations": [{"name": "b", "entity": "node", "governance": {GOOD}}]}"#
        .replace("GOOD", GOOD);
    assert_eq!(
        said_of(&config(), Profile::Required, None, &text),
        [
            "warning: Expired: a matches nothing since 2020-01-02T00:00:00Z (deniedDestinations[0], line 1 column 25); renew its expiry or remove it [GOV-0012]"
        ]
    );
}

/// Whether an update from one entry to another is refused.
fn refused(from: &str, to: &str) -> bool {
    let (from, to) = (document(&[from.to_owned()]), document(&[to.to_owned()]));
    said_of(&config(), Profile::Required, Some(&from), &to).iter().any(|said| said.starts_with("error"))
}

#[test]
fn what_was_there_may_stay_but_not_grow() {
    let expired = entry(&with("expiry", "2026-01-31"));
    let change = |from: &str, to: &str| {
        assert!(expired.contains(from), "{from}");
        expired.replace(from, to)
    };
    for (to, expected, why) in [
        (expired.clone(), false, "it is the same"),
        (change("10.0.0.0/24", "10.0.0.0/25"), false, "it is narrower"),
        (
            change("\"cidr\": \"10.0.0.0/24\"", "\"cidrs\": [\"10.0.0.0/25\", \"10.0.0.128/25\"]"),
            false,
            "it is as wide",
        ),
        (change("2026-01-31", "2026-01-30"), false, "it ended earlier"),
        (change("card capture", "card capture and refunds"), false, "the reason does not extend it"),
        (change("10.0.0.0/24", "10.0.0.0/23"), true, "it is wider"),
        (change("[443]", "[443, 80]"), true, "it has another port"),
        (change("[443]", "[\"443/UDP\"]"), true, "it is another protocol"),
        (change("\"ports\": [443], ", ""), true, "it has every port"),
        (change("2026-01-31", "2026-02-01"), true, "it lasts longer, though it is over"),
        (change("\"name\": \"a\"", "\"name\": \"b\""), true, "it is another one"),
    ] {
        assert_eq!(refused(&expired, &to), expected, "{why}: {to}");
    }
    let renewed = change("2026-01-31", "2027-03-31");
    assert!(!refused(&expired, &renewed), "a renewal within the rules is a good one");

    let lax = entry("\"reason\": \"temp\", \"expiry\": \"2099-01-01\"");
    for (to, expected, why) in [
        (lax.clone(), false, "it was accepted"),
        (lax.replace("443", "444"), true, "another port is another exception"),
        (lax.replace("temp", "Temp"), true, "the new reason is none"),
        (lax.replace("2099-01-01", "2098-01-01"), false, "it is shorter than before"),
        (lax.replace("2099-01-01", "2099-01-02"), true, "it is longer than before"),
        (lax.replace("}}", ", \"dataClassification\": \"restricted\"}}"), true, "its class allows less"),
        (lax.replace("}}", ", \"owner\": \"team-b\"}}"), false, "it is better than before"),
        (lax.replace("}}", ", \"owner\": \"nobody\"}}"), true, "the new owner is none"),
    ] {
        assert_eq!(refused(&lax, &to), expected, "{why}: {to}");
    }
    let owned = lax.replace("}}", ", \"owner\": \"team-b\"}}");
    assert!(refused(&owned, &lax), "a field that was there must stay");
}

#[test]
fn a_policy_that_reaches_further_is_judged_anew() {
    let policy =
        |head: &str| format!("{{{head} \"allowedDestinations\": [{}]}}", entry("\"reason\": \"temp\""));
    let (narrow, all, audit) = (
        policy("\"podSelector\": {\"matchLabels\": {\"a\": \"b\"}},"),
        policy(""),
        policy("\"mode\": \"audit\","),
    );
    for (from, to, expected) in
        [(&narrow, &all, true), (&all, &narrow, false), (&audit, &all, true), (&all, &audit, false)]
    {
        let said = said_of(&config(), Profile::Required, Some(from), to);
        assert_eq!(said.iter().any(|said| said.starts_with("error")), expected, "{from} to {to}");
    }
}

#[test]
fn a_destination_without_addresses_of_its_own_is_compared_by_what_it_says() {
    let of = |kind: &str| format!("{{\"name\": \"a\", {kind}}}");
    for (from, to, expected) in [
        (r#""domains": ["*.a.com"]"#, r#""domains": ["b.a.com", "*.c.a.com"]"#, false),
        (r#""domains": ["*.a.com"]"#, r#""domain": "a.com""#, true),
        (r#""domain": "b.a.com""#, r#""domain": "*.a.com""#, true),
        (r#""awsService": "s3""#, r#""awsService": "S3", "regions": ["us-east-1"]"#, false),
        (r#""awsService": "S3", "regions": ["us-east-1"]"#, r#""awsService": "s3""#, true),
        (r#""awsService": "S3""#, r#""awsService": "EC2""#, true),
        (r#""cloud": {"provider": "github"}"#, r#""cloud": {"provider": "github", "service": "web"}"#, false),
        (r#""cloud": {"provider": "github", "service": "web"}"#, r#""cloud": {"provider": "github"}"#, true),
        (r#""entity": "node""#, r#""entity": "world""#, true),
        (r#""cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]"#, r#""cidr": "10.0.0.0/16""#, false),
        (r#""cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]"#, r#""cidr": "10.1.2.0/24""#, true),
    ] {
        assert_eq!(refused(&of(from), &of(to)), expected, "{from} to {to}");
    }
}

#[test]
fn a_namespace_may_be_stricter_than_the_cluster() {
    use Profile::{Off, Required, Warn};
    for (cluster, annotation, weaker, expected) in [
        (Warn, None, false, Warn),
        (Warn, Some("required"), false, Required),
        (Warn, Some("off"), false, Warn),
        (Warn, Some("off"), true, Off),
        (Required, Some("warn"), true, Warn),
        (Off, Some("warn"), false, Warn),
    ] {
        assert_eq!(
            profile(cluster, annotation, weaker),
            (expected, None),
            "{cluster:?} {annotation:?} {weaker}"
        );
    }
    let (used, doubt) = profile(Warn, Some("requierd"), true);
    assert_eq!(used, Warn);
    assert_eq!(
        doubt.expect("it is told").to_string(),
        "Unknown profile in the annotation egress-agent.dev/governance of the namespace: requierd; did you mean required?"
    );
}

#[test]
fn rules_have_names_of_their_own() {
    let ids: Vec<String> = RULES.iter().map(|rule| rule.id.to_owned()).collect();
    assert_eq!(ids, (1..=RULES.len()).map(|n| format!("GOV-{n:04}")).collect::<Vec<_>>());
    for field in
        [Field::Owner, Field::Reason, Field::Scope, Field::DataClassification, Field::Expiry, Field::AuditRef]
    {
        assert!(
            RULES.contains(field.missing()) && field.missing().title.ends_with(field.as_str()),
            "{field:?}"
        );
    }
}

#[test]
fn the_second_of_expiry_is_the_first_without() {
    for (expires, now, expected) in
        [(None, 0, true), (Some(10), 9, true), (Some(10), 10, false), (Some(0), 0, false)]
    {
        assert_eq!(is_active(expires, now), expected, "{expires:?} at {now}");
    }
    assert!(is_active(None, u64::MAX));
}
