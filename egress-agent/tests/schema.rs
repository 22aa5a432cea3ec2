//! The schema in the repository is the one that is generated, and refuses what the parser refuses, as far as a schema can.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use egress_agent::policy::{cluster::NsName, document, finding::Finding};

#[path = "../../tests/corpus/mod.rs"]
#[expect(dead_code, reason = "only the texts matter here")]
mod corpus;

const FILE: &str = "../deploy/schema/policy.schema.json";

fn schema() -> jsonschema::Validator {
    let text = egress_agent::schema::policy();
    let schema = serde_json::from_str(&text).expect("a schema is JSON");
    jsonschema::draft202012::new(&schema).expect("it is a schema")
}

#[test]
fn the_file_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    let output =
        Command::new(env!("CARGO_BIN_EXE_egress-agent")).arg("schema").output().expect("the program runs");
    assert!(output.status.success(), "{output:?}");
    let written = fs::read_to_string(&path).expect("the file is there");
    assert!(
        written.as_bytes() == output.stdout,
        "deploy/schema/policy.schema.json is old; run: egress-agent schema > deploy/schema/policy.schema.json"
    );
    assert_eq!(written, egress_agent::schema::policy());
}

#[test]
fn its_example_is_a_good_policy() {
    let schema: serde_json::Value = serde_json::from_str(&egress_agent::schema::policy()).expect("JSON");
    let examples = schema["examples"].as_array().expect("a list");
    assert!(!examples.is_empty());
    for example in examples {
        let parsed = document::parse(&NsName::new("shop", "egress"), &example.to_string());
        assert_eq!(parsed.findings, [], "{example}");
    }
}

/// How what only the parser finds begins: it takes more than the form of one field to see.
const MEANING: &[&str] = &[
    "Duplicate field: ",
    "Duplicate name: ",
    "Invalid CIDR format: ",
    "Invalid domain: ",
    "Invalid label key: ",
    "Invalid name: ",
    "Invalid port range: ",
    // To a schema it is a whole number.
    "Invalid port: 1e3",
    "Invalid region: ",
    "Invalid service: ",
    "Invalid expiry: ",
    "Invalid owner: it has an invisible character",
    "Invalid reason: it has an invisible character",
    "ICMP has no port",
    "Named port ",
    "domain cannot be denied",
    "endPort needs a number in port",
    "except ",
];

#[test]
fn schema_and_parser_agree() {
    let schema = schema();
    let (mut used, mut differences, mut both) = (BTreeSet::new(), String::new(), 0);
    for case in corpus::cases() {
        // A text that is no JSON is not for a schema to judge.
        let Ok(value) = serde_json::from_str(&case.text) else { continue };
        let parsed = document::parse(&NsName::new("shop", &case.name), &case.text);
        let errors: Vec<&Finding> = parsed.findings.iter().filter(|finding| finding.is_error()).collect();
        let faults: Vec<String> =
            schema.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        match (errors.is_empty(), faults.is_empty()) {
            (true, true) => {}
            (false, false) => both += 1,
            (true, false) => {
                differences += &format!("{}: only the schema says {}\n", case.name, faults.join("; "));
            }
            (false, true) => {
                for error in errors {
                    if let Some(start) = MEANING.iter().find(|start| error.message.starts_with(**start)) {
                        used.insert(*start);
                    } else {
                        differences += &format!("{}: only the parser says {error}\n", case.name);
                    }
                }
            }
        }
    }
    assert!(differences.is_empty(), "{differences}");
    let unused: Vec<_> = MEANING.iter().filter(|start| !used.contains(**start)).collect();
    assert!(unused.is_empty(), "nothing in the corpus needs these exceptions: {unused:?}");
    assert!(both >= 80, "only {both} documents are refused by both");
}

/// Returns every default of the schema: the type and the field it is of, and the value.
fn defaults() -> Vec<(String, String, serde_json::Value)> {
    let schema: serde_json::Value =
        serde_json::from_str(&egress_agent::schema::policy()).expect("a schema is JSON");
    let types = schema["$defs"].as_object().expect("it has types");
    let parts = types.iter().map(|(name, part)| (name.as_str(), part)).chain([("", &schema)]);
    parts
        .flat_map(|(name, part)| {
            let fields = part["properties"].as_object().into_iter().flatten();
            fields.filter_map(move |(field, value)| {
                Some((name.to_owned(), field.clone(), value.get("default")?.clone()))
            })
        })
        .collect()
}

#[test]
fn a_default_that_is_written_changes_nothing_and_another_value_does() {
    let defaults = defaults();
    assert_eq!(defaults.len(), 4, "{defaults:?}");
    for (of, field, default) in defaults {
        let policy = |value: Option<serde_json::Value>| {
            let mut document = serde_json::json!({
                "allowedDestinations": [{"name": "a", "cidr": "192.0.2.0/24", "ports": [{"port": 53}]}],
                "deniedDestinations": [{"name": "b", "cidr": "198.51.100.0/24"}],
            });
            let place = match of.as_str() {
                "" => &mut document,
                "PortObject" => &mut document["allowedDestinations"][0]["ports"][0],
                other => panic!("where does a {other} stand in a document?"),
            };
            if let Some(value) = value {
                place[&field] = value;
            }
            let parsed = document::parse(&NsName::new("shop", "egress"), &document.to_string());
            parsed.policy.unwrap_or_else(|| panic!("{document}: {:?}", parsed.findings))
        };
        let other = match default.as_str() {
            None => serde_json::json!(false),
            Some("deny") => serde_json::json!("allow"),
            Some("enforce") => serde_json::json!("audit"),
            Some("TCP") => serde_json::json!("UDP"),
            Some(word) => panic!("what is another value than {word}?"),
        };
        assert_eq!(policy(Some(default)), policy(None), "{field}");
        assert_ne!(policy(Some(other)), policy(None), "{field}");
    }
}
