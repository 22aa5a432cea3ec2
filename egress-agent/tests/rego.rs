//! Policy as code: the shipped rules, what a bundle may do, and what comes of one that is wrong.
//!
//! `EGRESS_WRITE=1 cargo test -p egress-agent --test rego` writes `catalogue.rego` and the table of `docs/policy-as-code.md` anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use egress_agent::{
    policy::{addresses::METADATA, cluster::NsName, document, finding::Severity, governance},
    rego::{self, Bundle, Context, Error, Violation},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

/// 2026-11-22T12:00:00Z.
const NOW: u64 = 1_795_348_800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn shipped() -> PathBuf {
    root().join("deploy/policies/rego")
}

fn context() -> Context<'static> {
    // A test may run without optimisation on a busy machine.
    Context { now: NOW, namespace: "shop", name: "egress", limit: Duration::from_secs(30) }
}

fn builtin(settings: &Value) -> Bundle {
    Bundle::builtin(settings).unwrap_or_else(|error| panic!("the shipped rules cannot be used: {error}"))
}

fn ask(bundle: &Bundle, document: &Value) -> Vec<Violation> {
    bundle.evaluate(&document.to_string(), &context()).unwrap_or_else(|error| panic!("{document}: {error}"))
}

fn bundle(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a file stands in a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    dir
}

fn load(files: &[(&str, &str)]) -> Result<Bundle, Error> {
    Bundle::load(bundle(files).path(), &json!({}))
}

fn refusal(files: &[(&str, &str)]) -> String {
    match load(files) {
        Ok(_) => panic!("a bundle that should be refused is not: {files:?}"),
        Err(error) => error.to_string(),
    }
}

/// What stands in a METADATA block.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    title: String,
    description: String,
    related_resources: Vec<Resource>,
    custom: Custom,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resource {
    r#ref: String,
    description: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Custom {
    id: String,
    severity: String,
    remediation: String,
    source: String,
    /// The rules of the program itself that say the same.
    #[serde(default)]
    governance: Vec<String>,
}

/// Returns every METADATA block with the first line of the rule below it, by id.
fn metadata() -> BTreeMap<String, (Metadata, String)> {
    let mut all = BTreeMap::new();
    for (name, text) in rego::MODULES {
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line != "# METADATA" {
                continue;
            }
            let mut block = String::new();
            let rule = loop {
                let line = lines.next().expect("a rule stands below its metadata");
                let Some(line) = line.strip_prefix('#') else { break line };
                block.push_str(line.strip_prefix(' ').unwrap_or(line));
                block.push('\n');
            };
            let metadata: Metadata =
                serde_saphyr::from_str(&block).unwrap_or_else(|error| panic!("{name}: {error} in\n{block}"));
            let id = metadata.custom.id.clone();
            let twice = all.insert(id.clone(), (metadata, rule.to_owned()));
            assert!(twice.is_none(), "{id} is given to two rules");
        }
    }
    all
}

#[test]
fn the_program_holds_what_the_folder_holds() {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(shipped()).expect("the shipped rules are a folder") {
        names.insert(entry.expect("an entry").file_name().into_string().expect("a plain name"));
    }
    let mut held: BTreeMap<String, &str> =
        rego::MODULES.iter().map(|(name, text)| ((*name).to_owned(), *text)).collect();
    held.insert("data.yaml".into(), rego::DATA);
    assert_eq!(
        names,
        held.keys().cloned().collect(),
        "rego/builtin.rs lists the files of deploy/policies/rego"
    );
    for (name, text) in held {
        assert_eq!(fs::read_to_string(shipped().join(&name)).expect("a file"), text, "{name}");
    }
}

#[test]
fn every_rule_says_what_it_is() {
    let all = metadata();
    let tests: String = rego::MODULES
        .iter()
        .filter(|(name, _)| name.ends_with("_test.rego"))
        .map(|(_, text)| *text)
        .collect();
    let rules: String = rego::MODULES
        .iter()
        .filter(|(name, _)| !name.ends_with("_test.rego"))
        .map(|(_, text)| *text)
        .collect();
    for (number, (id, (metadata, rule))) in (1..).zip(&all) {
        assert_eq!(*id, format!("EGR-{number:04}"), "ids follow one another");
        let Metadata { title, description, related_resources, custom } = metadata;
        assert!(!title.is_empty() && !title.ends_with('.'), "{id}: the title is no sentence: {title}");
        assert!(description.trim().ends_with('.'), "{id}: the description is sentences: {description}");
        assert!(!custom.remediation.is_empty(), "{id}");
        assert!(!custom.source.is_empty(), "{id}");
        assert!(!related_resources.is_empty(), "{id}");
        for resource in related_resources {
            assert!(
                resource.r#ref.starts_with("https://") && !resource.description.is_empty(),
                "{id}: {resource:?}"
            );
        }
        let set = match custom.severity.as_str() {
            "error" => "deny",
            "warning" => "warn",
            other => panic!("{id}: {other} is no severity"),
        };
        assert!(
            rule.starts_with(&format!("{set} contains lib.finding(\"{id}\"")),
            "{id} stands above {rule}"
        );
        assert!(
            rules.contains(&format!("lib.enabled(\"{id}\")")) || id == "EGR-0015",
            "{id} can be left out"
        );
        let cases: Vec<&str> = tests
            .lines()
            .filter(|line| line.contains(&format!("\"{id}\"")) && line.contains(" == "))
            .collect();
        let passing = cases.iter().any(|line| line.ends_with("== set()")) || id == "EGR-0015";
        let failing = cases.iter().any(|line| !line.ends_with("== set()"));
        assert!(passing && failing, "{id} has no test that it holds, or none that it does not");
    }
    assert!(all.len() >= 14, "the blocks are found");
}

#[test]
fn rules_that_governance_covers_say_so() {
    let covered: BTreeSet<String> =
        metadata().into_values().flat_map(|(metadata, _)| metadata.custom.governance).collect();
    let own: BTreeSet<String> = governance::RULES
        .iter()
        .filter(|rule| rule.severity == Severity::Error)
        .map(|rule| rule.id.to_owned())
        .collect();
    assert_eq!(
        covered, own,
        "every rule of governance that refuses has its like in Rego, for those who run only that"
    );
    let left_out: BTreeSet<String> = rego::GOVERNED.iter().map(|id| (*id).to_owned()).collect();
    let said: BTreeSet<String> = metadata()
        .into_iter()
        .filter(|(_, (metadata, _))| !metadata.custom.governance.is_empty())
        .map(|(id, _)| id)
        .collect();
    assert_eq!(left_out, said, "rego::GOVERNED lists the rules with custom.governance");
}

/// Compares a file with what it should hold, or writes it.
fn current(path: &Path, wanted: &str) {
    if std::env::var_os("EGRESS_WRITE").is_some() {
        fs::write(path, wanted).expect("the file can be written");
        return;
    }
    let text = fs::read_to_string(path).expect("the file is there");
    assert_eq!(text, wanted, "{} is not current; EGRESS_WRITE=1 writes it", path.display());
}

#[test]
fn the_catalogue_is_current() {
    let mut text = String::from(
        "# What a finding says besides its sentence. Written from the METADATA of the rules, which regorus cannot read while it evaluates;\n\
         # a test compares.\npackage egress.catalogue\n\nimport rego.v1\n\nrules := {\n",
    );
    for (id, (metadata, _)) in metadata() {
        let Custom { severity, remediation, .. } = metadata.custom;
        text.push_str(&format!(
            "\t\"{id}\": {{\n\t\t\"severity\": \"{severity}\",\n\t\t\"remediation\": {},\n\t}},\n",
            Value::from(remediation)
        ));
    }
    text.push_str("}\n");
    current(&shipped().join("catalogue.rego"), &text);
}

#[test]
fn the_table_of_the_docs_is_current() {
    const BEGIN: &str = "<!-- rules: written by a test -->\n";
    const END: &str = "<!-- end of rules -->\n";
    let mut table =
        String::from("| id | severity | rule | what to do | where it comes from |\n|---|---|---|---|---|\n");
    for (id, (metadata, _)) in metadata() {
        let Metadata { title, related_resources, custom, .. } = metadata;
        let (severity, remediation) = (custom.severity, custom.remediation);
        let also = match custom.governance.as_slice() {
            [] => String::new(),
            governance => format!(" (in the program: {})", governance.join(", ")),
        };
        let source = format!("[{}]({})", custom.source, related_resources[0].r#ref);
        table.push_str(&format!("| {id} | {severity} | {title}{also} | {remediation} | {source} |\n"));
    }
    let path = root().join("docs/policy-as-code.md");
    let text = fs::read_to_string(&path).expect("the file is there");
    let (before, rest) = text.split_once(BEGIN).expect("the page marks where the table begins");
    let (_, after) = rest.split_once(END).expect("the page marks where the table ends");
    current(&path, &format!("{before}{BEGIN}{table}{END}{after}"));
}

#[test]
fn data_and_rules_have_names_of_their_own() {
    // opa refuses a rule that stands where data stand; regorus lets the rule hide them.
    let data: Value = serde_saphyr::from_str(rego::DATA).expect("the data are YAML");
    let keys: Vec<&String> = data["egress"].as_object().expect("data under egress").keys().collect();
    assert!(keys.len() > 5, "{keys:?}");
    for (name, text) in rego::MODULES {
        for key in keys.iter().map(|key| key.as_str()).chain(["now"]) {
            let defines = |line: &str| {
                line.strip_prefix(key)
                    .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
            };
            let in_egress = text.contains("package egress\n");
            assert!(
                !in_egress || !text.lines().any(defines),
                "{name} has a rule {key}, and there are data of that name"
            );
        }
    }
}

#[test]
fn the_tests_of_the_shipped_rules_hold() {
    for folders in [vec![], vec![shipped()]] {
        let report = rego::test::run(&folders).expect("the shipped rules can be tested");
        assert!(report.passed(), "{report}");
        assert!(report.tests.len() > 40, "{report}");
        for file in &report.files {
            assert!(file.not_run.is_empty(), "every line of a rule is run by a test:\n{report}");
        }
    }
}

#[test]
fn a_failing_test_is_told_with_its_place_and_values() {
    let dir = bundle(&[
        (
            "main.rego",
            "package main\n\nimport rego.v1\n\ndeny contains \"a\" if input.a\n\ndeny contains \"b\" if {\n\tinput.b\n\tinput.c\n}\n",
        ),
        (
            "main_test.rego",
            "package main_test\n\nimport data.main\nimport rego.v1\n\ntest_good if {\n\tcount(main.deny) == 1 with input as {\"a\": 1}\n}\n\n\
             test_bad if {\n\tfound := main.deny with input as {\"a\": 1}\n\tprint(found)\n\tcount(found) == 2\n}\n\n\
             test_broken if {\n\tx := to_number(\"x\")\n\tx == 1\n}\n\ntodo_test_later if {\n\tfalse\n}\n",
        ),
    ]);
    let report = rego::test::run(&[dir.path().to_owned()]).expect("the bundle can be tested");
    assert!(!report.passed(), "{report}");
    let text = report.to_string().replace(&format!("{}/", dir.path().display()), "");
    assert!(
        text.contains(
            "main_test.rego:10: FAIL main_test.test_bad\n    line 13 does not hold: count(found) == 2\n    printed: "
        ),
        "{text}"
    );
    assert!(text.contains("{\"a\"}"), "what was printed is shown: {text}");
    assert!(text.contains("main_test.rego:16: ERROR main_test.test_broken\n"), "{text}");
    assert!(text.contains("main.rego: 50 % of 4 lines ran, not 7, 9\n"), "{text}");
    assert!(text.ends_with("4 tests: 1 passed, 1 failed, 1 broken, 1 skipped\n"), "{text}");
}

#[test]
fn a_bundle_without_tests_does_not_pass() {
    let dir = bundle(&[("main.rego", "package main\n\nimport rego.v1\n\ndeny contains \"a\" if input.a\n")]);
    let report = rego::test::run(&[dir.path().to_owned()]).expect("the bundle can be read");
    assert!(!report.passed(), "{report}");
}

#[test]
fn findings_of_the_shipped_rules() {
    let bundle = builtin(&json!({"cluster": {"podCidrs": ["10.200.0.0/16"]}, "disabled": ["EGR-0010"]}));
    let found = ask(
        &bundle,
        &json!({"defaultAction": "allow", "allowedDestinations": [
            {"name": "all", "cidr": "10.0.0.0/7", "ports": [443], "governance": {"expiry": "2026-11-21"}},
        ]}),
    );
    let brief: Vec<(&str, Severity, &str, &str)> = found
        .iter()
        .map(|found| (found.id.as_str(), found.severity, found.path.as_str(), found.msg.as_str()))
        .collect();
    assert_eq!(
        brief,
        [
            (
                "EGR-0002",
                Severity::Error,
                "allowedDestinations[0].cidr",
                "10.0.0.0/7 is public and wider than /16"
            ),
            (
                "EGR-0009",
                Severity::Error,
                "defaultAction",
                "defaultAction allow is for dev, and this is prod"
            ),
            ("EGR-0011", Severity::Error, "allowedDestinations[0]", "all expired: 2026-11-21"),
            (
                "EGR-0005",
                Severity::Warning,
                "allowedDestinations[0].cidr",
                "10.0.0.0/7 overlaps the pod range 10.200.0.0/16"
            ),
        ]
    );
    for violation in &found {
        assert_eq!(violation.remediation.as_ref(), Some(&metadata()[&violation.id].0.custom.remediation));
    }
}

#[test]
fn the_metadata_addresses_are_those_of_the_program() {
    let data: Value = serde_saphyr::from_str(rego::DATA).expect("the data are YAML");
    let listed: BTreeSet<String> = data["egress"]["metadata"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|cidr| cidr.as_str().expect("a prefix").to_owned())
        .collect();
    let known = METADATA.map(|address| format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }));
    assert_eq!(listed, BTreeSet::from(known));
}

#[test]
fn the_time_is_the_one_given() {
    let bundle = builtin(&json!({}));
    let document = json!({"allowedDestinations": [
        {"name": "a", "cidr": "192.0.2.0/24", "ports": [443], "governance": {"expiry": "2026-11-22"}},
    ]})
    .to_string();
    for (now, expired) in [(NOW, false), (NOW + 12 * 3600 - 1, false), (NOW + 12 * 3600, true), (0, false)] {
        let found = bundle.evaluate(&document, &Context { now, ..context() }).expect("an answer");
        assert_eq!(found.iter().any(|found| found.id == "EGR-0011"), expired, "at {now}: {found:?}");
    }
    let error = bundle.evaluate(&document, &Context { now: u64::MAX, ..context() });
    assert!(matches!(error, Err(Error::Failed { .. })), "{error:?}");
}

/// Documents that make the shipped rules say a lot, and little.
fn documents() -> Vec<Value> {
    let mut documents = vec![
        json!({}),
        json!({"defaultAction": "allow"}),
        hundred(),
        json!({"allowedDestinations": [
            {"name": "a", "cidr": "0.0.0.0/0"},
            {"name": "b", "cidrs": ["8.0.0.0/8", "::/0", "fe80::/10", "169.254.0.0/16"], "except": ["169.254.169.254/32"]},
            {"name": "c", "domains": ["*.com", "*.co.uk", "example.com"], "ports": ["443/TCP"]},
            {"name": "d", "awsService": "EC2", "governance": {"dataClassification": "restricted", "expiry": "9999-12-31"}},
            {"name": "e", "cloud": {"provider": "azure"}, "governance": {"expires_at": "2020-01-01T00:00:00Z"}},
            {"name": "f", "entity": "world"},
            {"name": "g", "service": {"name": "redis"}, "ports": ["http", "1-100"]},
        ], "deniedDestinations": [{"name": "z", "cidr": "169.254.169.254/32"}]}),
    ];
    // What the rest of the program refuses must not break the rules either.
    documents.extend([
        json!({"allowedDestinations": {"a": {"cidr": "0.0.0.0/0"}}}),
        json!({"allowedDestinations": [null, 1, "x", [], {"cidr": 1}, {"cidrs": "x"}, {"cidr": "300.0.0.0/99"}]}),
        json!({"allowedDestinations": [{"cidrs": [null, "::/0"], "except": 1, "ports": "x", "domain": 1, "domains": 2}]}),
        json!({"allowedDestinations": [{"awsService": 1, "regions": "x"}, {"cloud": 1}, {"cloud": {"provider": 1}}]}),
        json!({"allowedDestinations": [{"governance": 1}, {"governance": {"expiry": 1, "owner": [], "reason": {}}}], "governance": []}),
        json!({"deniedDestinations": [1, {"cidr": 1}, {"cidrs": {"a": "::/0"}}], "defaultAction": 1}),
        json!([1]),
        json!("x"),
    ]);
    documents
}

/// A policy of a hundred destinations that nobody has anything against.
fn hundred() -> Value {
    let destinations: Vec<Value> = (0..100)
        .map(|n| {
            json!({"name": format!("d{n}"), "cidr": format!("192.0.{n}.0/24"), "ports": [443, "53/UDP"], "governance": {
                "owner": "team-payments", "reason": "card capture", "dataClassification": "internal",
                "expiry": "2027-01-31", "auditRef": "SEC-1"}})
        })
        .collect();
    json!({"defaultAction": "deny", "allowedDestinations": destinations})
}

#[test]
fn both_engines_of_regorus_say_the_same() {
    // Documents are judged by the virtual machine, tests run in the interpreter.
    let settings = json!({"cluster": {"podCidrs": ["10.200.0.0/16"], "approvedDestinations": ["S3"]}, "governance": {"owners": ["team-*"]}});
    let bundle = builtin(&settings);
    let mut engine = regorus::Engine::new();
    for (name, text) in rego::MODULES.iter().filter(|(name, _)| !name.ends_with("_test.rego")) {
        engine.add_policy((*name).to_owned(), (*text).to_owned()).expect("the rules are right");
    }
    let mut data: Value = serde_saphyr::from_str(rego::DATA).expect("the data are YAML");
    data["egress"]["cluster"]["podCidrs"] = settings["cluster"]["podCidrs"].clone();
    data["egress"]["cluster"]["approvedDestinations"] = settings["cluster"]["approvedDestinations"].clone();
    data["egress"]["governance"]["owners"] = settings["governance"]["owners"].clone();
    data["egress"]["now"] = json!("2026-11-22T12:00:00Z");
    engine.add_data(data.into()).expect("the data fit");
    let (mut answers, mut broken_ones) = (BTreeSet::new(), 0);
    for document in documents() {
        let by_machine = bundle.evaluate(&document.to_string(), &context());
        engine.set_input(
            json!({"kind": "ConfigMap", "metadata": {"labels": {"egress-controller": "managed"}},
                "data": {"policy.json": document.to_string()}})
            .into(),
        );
        let mut by_interpreter = BTreeSet::new();
        let mut broken = None;
        for set in ["deny", "warn"] {
            match engine.eval_rule(format!("data.egress.{set}")) {
                Ok(value) => {
                    for item in value.as_set().expect("a set").iter() {
                        by_interpreter.insert((
                            item["id"].to_string(),
                            item["path"].to_string(),
                            item["msg"].to_string(),
                        ));
                    }
                }
                Err(error) => broken = Some(error),
            }
        }
        match (by_machine, broken) {
            (Ok(found), None) => {
                let quoted = |text: &str| regorus::Value::from(text).to_string();
                let found: BTreeSet<_> = found
                    .iter()
                    .map(|found| (quoted(&found.id), quoted(&found.path), quoted(&found.msg)))
                    .collect();
                answers.insert(found.len());
                assert_eq!(found, by_interpreter, "{document}");
            }
            // The virtual machine leaves out a rule that fails, which only a document can bring about that is refused before.
            (Ok(_), Some(error)) => {
                assert!(!is_sound(&document), "{document}: {error}");
                broken_ones += 1;
            }
            (found, broken) => panic!("{document}: {found:?}, and the interpreter: {broken:?}"),
        }
    }
    assert!(answers.len() > 3 && broken_ones > 0, "the documents differ: {answers:?}, {broken_ones}");
}

/// Tells whether the text and the meaning of a document are right.
fn is_sound(document: &Value) -> bool {
    let id = NsName { namespace: "shop".into(), name: "egress".into() };
    document::parse(&id, &document.to_string()).policy.is_some()
}

#[test]
fn several_threads_may_ask_at_a_time() {
    for bundle in [builtin(&json!({})), own()] {
        ask_together(&bundle);
    }
}

fn own() -> Bundle {
    load(&[(
        "main.rego",
        "package main\n\nimport data.egress.lib\nimport rego.v1\n\ndeny contains d.path if some d in lib.allowed\n",
    )])
    .expect("the bundle is right")
}

fn ask_together(bundle: &Bundle) {
    let documents = documents();
    let alone: Vec<String> = documents
        .iter()
        .map(|document| format!("{:?}", bundle.evaluate(&document.to_string(), &context())))
        .collect();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (document, alone) in documents.iter().zip(&alone) {
                    let together = format!("{:?}", bundle.evaluate(&document.to_string(), &context()));
                    assert_eq!(together, *alone, "{document}");
                }
            });
        }
    });
}

#[test]
fn a_bundle_of_ones_own() {
    let bundle = load(&[
        (
            "team/main.rego",
            "package main\n\nimport data.egress.lib\nimport rego.v1\n\n\
             deny_plain contains \"no\\nplain text\" if input.metadata.namespace == \"shop\"\n\n\
             warn contains {\"msg\": msg, \"id\": \"TEAM-1\", \"path\": d.path, \"remediation\": \"ask\"} if {\n\
             \tsome d in lib.allowed\n\tnot d.entry.name in data.known\n\tmsg := sprintf(\"%s at %d\", [d.entry.name, lib.now])\n}\n\n\
             violation contains {\"path\": \"x\", \"details\": {\"n\": 1}} if input.kind == \"ConfigMap\"\n\n\
             denying contains \"only another rule's business\" if true\n\ndefault deny_default := false\n",
        ),
        ("a-b/other.rego", "package other[\"a-b\"]\n\nimport rego.v1\n\nwarn := \"one text\" if input.metadata.name == \"egress\"\n"),
        ("ignored_test.rego", "package main\n\nimport rego.v1\n\ndeny contains \"from a test\" if true\n"),
        ("data.yaml", "known: [a]\n"),
        (".hidden/broken.rego", "package"),
        ("readme.txt", "package"),
    ])
    .expect("the bundle is right");
    let found = ask(&bundle, &json!({"allowedDestinations": [{"name": "a"}, {"name": "b"}]}));
    let violation = |id: &str, msg: &str, path: &str, severity, remediation: Option<&str>| Violation {
        id: id.into(),
        msg: msg.into(),
        path: path.into(),
        severity,
        remediation: remediation.map(str::to_owned),
    };
    assert_eq!(
        found,
        [
            violation("main.deny_plain", "no plain text", "", Severity::Error, None),
            violation("main.violation", r#"{"details":{"n":1},"path":"x"}"#, "x", Severity::Error, None),
            violation(
                "TEAM-1",
                "b at 1795348800000000000",
                "allowedDestinations[1]",
                Severity::Warning,
                Some("ask")
            ),
            violation("other.a-b.warn", "one text", "", Severity::Warning, None),
        ]
    );
}

#[test]
fn wrong_bundles_are_refused_with_their_place() {
    let text = refusal(&[(
        "main.rego",
        "package main\n\nimport rego.v1\n\ndeny contains \"a\" if {\n\tinput.a ==\n}\n",
    )]);
    assert!(
        text.contains("main.rego:7:1\n") && text.contains("\n7 | }\n  | ^\nerror: "),
        "file, line, text and caret: {text}"
    );
    let text = refusal(&[("main.rego", "package main\n\nimport rego.v1\n\ndeny contains msg if input.a\n")]);
    assert!(text.contains("main.rego:5:"), "{text}");
    let text = refusal(&[("main.rego", "package main\n\nimport rego.v1\n\nallowed if input.a\n")]);
    assert!(text.ends_with("has no rule named deny, violation or warn"), "{text}");
    let text = refusal(&[(
        "main.rego",
        "package egress.mine\n\nimport rego.v1\n\ndeny contains \"a\" if input.a\n",
    )]);
    assert!(text.contains("main.rego: package egress and those below it are the shipped ones"), "{text}");
    const RULE: &str = "package main\n\nimport rego.v1\n\ndeny contains \"a\" if input.a\n";
    let text = refusal(&[("main.rego", RULE), ("below/data.json", "{}")]);
    assert!(text.contains("below/data.json: data belong into the bundle's own folder"), "{text}");
    let text = refusal(&[("main.rego", RULE), ("data.json", "{\"a\":")]);
    assert!(text.contains("data.json: "), "{text}");
    let text =
        refusal(&[("main.rego", RULE), ("data.json", "{\"egress\": {\"latestYear\": 1, \"widest\": 2}}")]);
    assert!(text.contains("conflict") || text.contains("widest"), "{text}");
    let text = refusal(&[("main.rego", RULE), ("data.json", "{\"a\": 1}"), ("data.yaml", "b: 1")]);
    assert!(text.contains("a bundle has one file of data"), "{text}");
    let error = Bundle::load(Path::new("/does/not/exist"), &json!({})).expect_err("there is no such folder");
    assert_eq!(error.to_string(), "cannot read /does/not/exist");
}

#[test]
fn rules_cannot_reach_out_of_the_engine() {
    let rule = |call: &str| {
        format!("package main\n\nimport rego.v1\n\ndeny contains msg if {{\n\tmsg := {call}\n}}\n")
    };
    for (call, function) in [
        ("http.send({\"method\": \"get\", \"url\": \"http://127.0.0.1\"}).body", "http.send"),
        ("opa.runtime().env.PATH", "opa.runtime"),
        ("net.lookup_ip_addr(\"example.com\")", "net.lookup_ip_addr"),
        ("trace(\"a\")", "trace"),
        ("net.cidr_expand(input.a)", "net.cidr_expand"),
        ("numbers.range(1, 1000000000)", "numbers.range"),
        ("rand.intn(\"a\", 10)", "rand.intn"),
        ("io.jwt.decode(input.a)", "io.jwt.decode"),
    ] {
        let text = refusal(&[("main.rego", &rule(call))]);
        assert!(text.contains(function) && text.contains("main.rego:6:"), "{call}: {text}");
    }
}

#[test]
fn a_rule_that_takes_too_long_is_an_error() {
    let bundle = load(&[(
        "main.rego",
        "package main\n\nimport rego.v1\n\ndeny contains \"a\" if {\n\tsome a in input.metadata.labels\n\tcount(all) == 0\n}\n\n\
         bits := [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n\n\
         all := [1 | some a in bits; some b in bits; some c in bits; some d in bits; some e in bits; some f in bits; some g in bits; a + b + c + d + e + f + g < 0]\n",
    )])
    .expect("the bundle is right");
    let limit = Duration::from_millis(50);
    let begin = Instant::now();
    let answer = bundle.evaluate("{}", &Context { limit, ..context() });
    let took = begin.elapsed();
    assert!(matches!(answer, Err(Error::TooLong { .. })), "{answer:?} after {took:?}");
    assert!(took < Duration::from_secs(5), "it is stopped, not waited for: {took:?}");
}

#[test]
fn a_rule_that_fails_is_an_error_not_silence() {
    // In opa `to_number("x")` is undefined, and the rule says nothing.
    let bundle = load(&[(
        "main.rego",
        "package main\n\nimport rego.v1\n\ndeny contains \"a\" if {\n\tto_number(input.metadata.name) > 1\n}\n",
    )])
    .expect("the bundle is right");
    let error = bundle.evaluate("{}", &context()).expect_err("the name is no number");
    let text = error.to_string();
    assert!(text.starts_with("policy as code failed: ") && text.contains("main.rego:6:"), "{text}");
    assert!(!text.contains('\n'), "a finding is one line: {text}");
}

#[test]
fn what_rules_say_is_bounded() {
    let bundle = load(&[(
        "main.rego",
        "package main\n\nimport data.egress.lib\nimport rego.v1\n\n\
         deny contains sprintf(\"%s %v\", [lib.text, i]) if some i, _ in lib.policy.allowedDestinations\n",
    )])
    .expect("the bundle is right");
    let destinations: Vec<Value> = (0..600).map(|n| json!({"name": n})).collect();
    let found = ask(&bundle, &json!({"allowedDestinations": destinations}));
    assert_eq!(found.len(), 501, "500, and one that counts the others");
    assert!(found.iter().all(|found| found.msg.chars().count() <= 501), "messages are cut");
    let last = found.last().expect("a finding");
    assert_eq!((last.msg.as_str(), last.severity), ("and 100 more findings", Severity::Error));
}
