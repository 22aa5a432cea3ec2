//! The webhook and the agent say about every document of the corpus what the judge says, word for word.
//!
//! What the command line says is compared in `corpus.rs`.

use egress_agent::{
    agent::read_policy,
    check::Rules,
    policy::{cluster::NsName, governance::Profile},
    webhook::review::{Governance, Review},
};
use serde_json::{Value, json};

#[path = "../../tests/corpus/mod.rs"]
mod corpus;

use corpus::{Case, NOW, RULES};

/// Longest refusal, in bytes, and longest warning, in characters: what goes beyond is cut off and said to be.
const LONGEST_MESSAGE: usize = 4096;
const LONGEST_WARNING: usize = 256;

/// Most findings the agent keeps of a document, errors first.
const KEPT: usize = 32;

/// The ConfigMap of a text.
fn config_map(name: &str, text: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": "shop", "name": name, "labels": {"egress-controller": "managed"}},
        "data": {"policy.json": text},
    })
}

/// What the API server sends about a case.
fn review(case: &Case) -> Vec<u8> {
    let old = case.old.as_ref().map(|old| config_map(&case.name, old));
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": case.name,
            "kind": {"group": "", "version": "v1", "kind": "ConfigMap"},
            "operation": if old.is_some() { "UPDATE" } else { "CREATE" },
            "namespace": "shop",
            "name": case.name,
            "object": config_map(&case.name, &case.text),
            "oldObject": old,
        },
    });
    serde_json::to_vec(&review).expect("it can be written")
}

fn sentences<'a>(case: &'a Case, severity: &str) -> Vec<&'a str> {
    case.expected.iter().filter_map(|line| line.strip_prefix(severity)?.strip_prefix(": ")).collect()
}

#[test]
fn the_webhook_says_what_is_expected() {
    let rules = Rules::parse(RULES).expect("good rules");
    let (mut refused, mut warned) = (0, 0);
    for case in corpus::cases() {
        let name = &case.name;
        let profile =
            Profile::ALL.into_iter().find(|profile| profile.as_str() == case.profile).expect("a profile");
        let read = Review::read(&review(&case)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let answer = read.judge(&rules, &Governance { profile, notice: None }, NOW);
        let answer: Value = serde_json::from_slice(&answer.body).expect("an answer is JSON");
        let response = &answer["response"];
        assert_eq!(response["uid"], name.as_str());
        let unchanged = case.old.as_ref() == Some(&case.text);
        let errors = sentences(&case, "error");
        let message = response["status"]["message"].as_str();
        if errors.is_empty() || unchanged {
            assert_eq!((&response["allowed"], message), (&json!(true), None), "{name}");
        } else {
            refused += 1;
            let whole = format!("Policy validation failed: {}", errors.join("\nalso: "));
            let message = message.unwrap_or_else(|| panic!("{name} is refused: {answer}"));
            assert_eq!(response["allowed"], false, "{name}");
            if whole.len() <= LONGEST_MESSAGE - 64 {
                assert_eq!(message, whole, "{name}");
            } else {
                assert!(message.len() <= LONGEST_MESSAGE, "{name}: {} bytes", message.len());
                let first = message.split("\nand ").next().expect("the first part");
                assert!(whole.starts_with(first), "{name}: {message}");
            }
        }
        let said: Vec<&str> = response["warnings"].as_array().map_or_else(Vec::new, |warnings| {
            warnings.iter().map(|warning| warning.as_str().expect("text")).collect()
        });
        let expected = sentences(&case, "warning");
        warned += expected.len();
        // Of many, some are told and the rest counted. They come with those of the house's rules first.
        if expected.len() <= 10 && !unchanged {
            assert_eq!(said.len(), expected.len(), "{name}: {said:?}");
        }
        for sentence in said.iter().filter(|said| !said.starts_with("and ") && !unchanged) {
            let cut = sentence.chars().count() >= LONGEST_WARNING;
            let begins = sentence.trim_end_matches('…');
            let found = expected.iter().any(|whole| whole == sentence || (cut && whole.starts_with(begins)));
            assert!(found, "{name}: nobody expects: {sentence}");
        }
    }
    assert!(refused > 200 && warned > 80, "{refused} are refused, {warned} warnings are told");
}

#[test]
fn the_agent_says_what_is_expected() {
    // The agent asks nothing of governance, and has the clock of the machine.
    let cases: Vec<Case> = corpus::cases()
        .into_iter()
        .filter(|case| !case.fixed_clock && case.old.is_none() && case.profile == "off")
        .collect();
    assert!(cases.len() > 250, "{} documents", cases.len());
    for case in cases {
        let (policy, findings) = read_policy(&NsName::new("shop", &case.name), &case.text);
        let said: Vec<String> =
            findings.iter().map(|finding| format!("{}: {finding}", finding.severity)).collect();
        if case.expected.len() <= KEPT {
            assert_eq!(said, case.expected, "{}", case.name);
        } else {
            assert_eq!(said.len(), KEPT, "{}", case.name);
            assert!(said.iter().all(|said| case.expected.contains(said)), "{}", case.name);
        }
        let good = case.expected.iter().all(|line| line.starts_with("warning: "));
        assert_eq!(policy.is_some(), good, "{}", case.name);
    }
}
