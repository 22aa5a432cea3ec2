//! Every document of the corpus gets the same said about it by the judge and by `egress-agent validate`.

use std::{collections::BTreeMap, fs, process::Command};

use egress_agent::{
    check::{Rules, Subject},
    policy::{cluster::NsName, governance::Profile},
};
use serde_json::{Value, json};

#[path = "../../tests/corpus/mod.rs"]
mod corpus;

use corpus::{Case, NOW, RULES};

/// Compares what is said of each case with what is expected, and tells all that differ.
fn compare(said: impl IntoIterator<Item = (Case, Vec<String>)>) -> usize {
    let mut number = 0;
    let mut differences = String::new();
    for (case, said) in said {
        number += 1;
        if said != case.expected {
            differences += &format!(
                "{}:\n  expected\n    {}\n  said\n    {}\n",
                case.name,
                case.expected.join("\n    "),
                said.join("\n    ")
            );
        }
    }
    assert!(differences.is_empty(), "{differences}");
    number
}

#[test]
fn the_judge_says_what_is_expected() {
    let rules = Rules::parse(RULES).expect("good rules");
    let said = corpus::cases().into_iter().map(|case| {
        let id = NsName::new("shop", &case.name);
        let profile =
            Profile::ALL.into_iter().find(|profile| profile.as_str() == case.profile).expect("a profile");
        let subject = Subject { id: &id, text: &case.text, old: case.old.as_deref(), profile };
        let judgement = rules.judge(&subject, NOW);
        let said: Vec<String> =
            judgement.findings.iter().map(|finding| format!("{}: {finding}", finding.severity)).collect();
        let refused = said.iter().any(|said| said.starts_with("error: "));
        assert_eq!(judgement.refused(), refused, "{}", case.name);
        assert_eq!(judgement.message().is_some(), refused, "{}", case.name);
        for finding in &judgement.findings {
            let placed = finding.line > 0 && finding.column > 0;
            assert!(placed, "{}: {finding} has a place", case.name);
        }
        (case, said)
    });
    let number = compare(said);
    assert!(number >= 300, "the corpus has {number} documents");
}

#[test]
fn validate_says_what_is_expected() {
    // The command knows nothing of what was there before. It is given the profile, the rules and the clock.
    let cases: Vec<Case> = corpus::cases().into_iter().filter(|case| case.old.is_none()).collect();
    let mut number = 0;
    for profile in Profile::ALL.map(Profile::as_str) {
        number += validated(profile, cases.iter().filter(|case| case.profile == profile).cloned().collect());
    }
    assert!(number >= 300, "{number} documents can be validated by themselves");
}

/// Compares what is said of cases of one profile.
fn validated(profile: &str, cases: Vec<Case>) -> usize {
    let folder = tempfile::tempdir().expect("a directory");
    for case in &cases {
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"namespace": "shop", "name": case.name, "labels": {"egress-controller": "managed"}},
            "data": {"policy.json": case.text},
        });
        fs::write(folder.path().join(format!("{}.json", case.name)), object.to_string())
            .expect("it can be written");
    }
    let rules = tempfile::NamedTempFile::new().expect("a file");
    fs::write(rules.path(), RULES).expect("it can be written");
    let output = Command::new(env!("CARGO_BIN_EXE_egress-agent"))
        .args(["validate", "-o", "json", "--now", "2026-11-22T12:00:00Z", "--profile", profile, "--rules"])
        .arg(rules.path())
        .arg(folder.path())
        .output()
        .expect("the program runs");
    let errors = cases.iter().flat_map(|case| &case.expected).any(|said| said.starts_with("error: "));
    let code = output.status.code();
    assert_eq!(code, Some(i32::from(errors)), "{profile}: {}", String::from_utf8_lossy(&output.stderr));
    let reports: Vec<Value> = serde_json::from_slice(&output.stdout).expect("a list");
    let mut said: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for report in &reports {
        let policy = report["policy"].as_str().expect("each is about a policy");
        let name = policy.strip_prefix("shop/").expect("the namespace").to_owned();
        said.entry(name).or_default().push(sentence(report));
    }
    let number = compare(cases.into_iter().map(|case| {
        let said = said.remove(&case.name).unwrap_or_default();
        (case, said)
    }));
    assert!(said.is_empty(), "nothing else is reported: {said:?}");
    number
}

/// Puts a report together as a finding is displayed.
fn sentence(report: &Value) -> String {
    let text = |field: &str| report[field].as_str();
    let place = report["policyLine"].as_u64().zip(report["policyColumn"].as_u64());
    let place = place.map(|(line, column)| format!("line {line} column {column}"));
    let about: Vec<&str> = text("path").into_iter().chain(place.as_deref()).collect();
    let mut sentence =
        format!("{}: {}", text("severity").expect("it has one"), text("message").expect("it has one"));
    if !about.is_empty() {
        sentence += &format!(" ({})", about.join(", "));
    }
    if let Some(hint) = text("hint") {
        sentence += &format!("; {hint}");
    }
    if let Some(rule) = text("rule") {
        sentence += &format!(" [{rule}]");
    }
    sentence
}
