//! Alerts, recording rules and the dashboard ask for what the code exports, and each alert leads to a section that is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use egress_agent::telemetry::catalogue;
use serde_json::{Value, json};

/// What Prometheus and the PodMonitor add to every series.
const ADDED: [&str; 7] = ["container", "instance", "job", "le", "namespace", "node", "pod"];
/// What PromQL has besides names of metrics and labels.
const WORDS: [&str; 22] = [
    "absent",
    "and",
    "by",
    "count",
    "histogram_quantile",
    "ignoring",
    "increase",
    "max",
    "min",
    "offset",
    "on",
    "or",
    "rate",
    "sort",
    "sort_desc",
    "sum",
    "time",
    "topk",
    "unless",
    "up",
    "without",
    "label_values",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a crate of the workspace").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn groups() -> Vec<Value> {
    let rule: Value =
        serde_saphyr::from_str(&read("deploy/components/prometheus-operator/prometheusrule.yaml"))
            .expect("it is YAML");
    rule["spec"]["groups"].as_array().expect("it has groups").clone()
}

fn rules() -> Vec<Value> {
    groups().iter().flat_map(|group| group["rules"].as_array().expect("it has rules").clone()).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} of {value}"))
}

fn dashboard() -> Value {
    serde_json::from_str(&read("deploy/components/grafana/egress.json")).expect("it is JSON")
}

/// Returns every question the dashboard asks, with the panel that asks it.
fn questions() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let mut questions = Vec::new();
    for panel in dashboard["panels"].as_array().expect("it has panels") {
        let title = text(panel, "title");
        let targets = panel["targets"].as_array();
        assert_eq!(targets.is_none(), panel["type"] == "row", "{title} asks something");
        for target in targets.into_iter().flatten() {
            questions.push((title.to_owned(), text(target, "expr").to_owned()));
        }
    }
    questions
}

/// Every series of the code, with its labels.
fn exported() -> BTreeMap<String, BTreeSet<String>> {
    let mut exported: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, _, entries) in catalogue::ROLES {
        for (description, labels) in *entries {
            for name in catalogue::series(description) {
                exported.entry(name).or_default().extend(labels.iter().map(|label| (*label).to_owned()));
            }
        }
    }
    exported
}

/// Returns the words of an expression, without what stands in quotes, in brackets as a range, and after a `$`.
fn words(expression: &str) -> Vec<String> {
    let mut plain = String::new();
    for (number, part) in expression.split('"').enumerate() {
        if number % 2 == 0 {
            plain.push_str(part);
        }
    }
    let mut depth = 0;
    plain.retain(|character| {
        match character {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => return depth == 0,
        }
        false
    });
    plain
        .split(|character: char| !character.is_ascii_alphanumeric() && !['_', ':'].contains(&character))
        .filter(|word| word.starts_with(|first: char| first.is_ascii_alphabetic()))
        .map(str::to_owned)
        .collect()
}

/// Returns what an expression names that is neither a series, one of its labels, nor a word of the language.
fn unknown(expression: &str, known: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let words = words(expression);
    let labels: BTreeSet<&str> =
        words.iter().filter_map(|word| known.get(word)).flatten().map(String::as_str).chain(ADDED).collect();
    let is_known = |word: &&String| {
        known.contains_key(*word) || labels.contains(word.as_str()) || WORDS.contains(&word.as_str())
    };
    words.iter().filter(|word| !is_known(word)).cloned().collect()
}

/// Every series of the code, and what the rules record.
fn known() -> BTreeMap<String, BTreeSet<String>> {
    let mut known = exported();
    for rule in rules().iter().filter(|rule| rule.get("record").is_some()) {
        let name = text(rule, "record").to_owned();
        let level = name.split(':').next().expect("a name has a first part");
        let labels: BTreeSet<String> = match level {
            // What is recorded without labels begins with the metric's own name.
            level if level.starts_with("egress_") => BTreeSet::new(),
            level => level.split('_').map(str::to_owned).collect(),
        };
        let grouped = text(rule, "expr").split_once("by (").and_then(|(_, rest)| rest.split_once(')'));
        let by: BTreeSet<String> = grouped
            .map(|(labels, _)| labels.split(", ").map(str::to_owned).filter(|label| label != "le").collect())
            .unwrap_or_default();
        assert_eq!(labels, by, "{name} says which labels it keeps");
        assert!(known.insert(name.clone(), labels).is_none(), "{name} is recorded once");
    }
    known
}

#[test]
fn rules_and_dashboard_ask_for_what_is_exported() {
    let known = known();
    for rule in rules() {
        let expression = text(&rule, "expr");
        assert_eq!(unknown(expression, &known), [""; 0], "{expression}");
    }
    for (title, expression) in questions() {
        assert_eq!(unknown(&expression, &known), [""; 0], "{title}: {expression}");
    }
    // The check itself sees what is not there.
    assert_eq!(unknown("rate(egress_denied_packets[5m])", &known), ["egress_denied_packets"]);
    assert_eq!(unknown(r#"egress_pods{reason="a"}"#, &known), ["reason"]);
    assert_eq!(unknown("sum by (policy) (egress_denied_packets_total)", &known), ["policy"]);
}

#[test]
fn every_role_is_on_the_dashboard() {
    let asked: BTreeSet<String> = questions().iter().flat_map(|(_, expression)| words(expression)).collect();
    let recorded = rules();
    let recorded: BTreeSet<String> = recorded
        .iter()
        .filter(|rule| rule.get("record").is_some_and(|name| asked.contains(name.as_str().expect("a name"))))
        .flat_map(|rule| words(text(rule, "expr")))
        .collect();
    let is_asked = |name: &str| asked.contains(name) || recorded.contains(name);
    for name in [
        "egress_denied_packets_total",
        "egress_allowed_packets_total",
        "egress_audited_packets_total",
        "egress_destination_packets_total",
        "egress_exception_expiry_timestamp_seconds",
        "egress_policy_apply_seconds_bucket",
        "egress_map_entries",
        "egress_policy_errors",
        "egress_admission_requests_total",
        "egress_controller_leader",
        "egress_policies",
        "egress_nodes",
        "egress_reports_total",
        "egress_controller_events_total",
        "egress_generated_refused",
        "egress_audit_only",
    ] {
        assert!(is_asked(name), "{name}");
    }
    let dashboard = dashboard();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("it has panels") {
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "an id is given once");
        let place = &panel["gridPos"];
        let end = place["x"].as_u64().expect("a number") + place["w"].as_u64().expect("a number");
        assert!(end <= 24, "{} is within the page", panel["title"]);
    }
}

/// Returns the anchors of a page, as GitHub and GitLab make them of headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|heading| {
            let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
            heading.chars().filter(|c| c.is_alphanumeric() || ['-', '_'].contains(c)).collect()
        })
        .collect()
}

#[test]
fn each_alert_leads_to_the_section_that_speaks_of_it() {
    let page = read("docs/operations.md");
    let anchors = anchors(&page);
    let mut named = BTreeSet::new();
    for alert in rules().iter().filter(|rule| rule.get("alert").is_some()) {
        let name = text(alert, "alert");
        let (address, anchor) =
            text(&alert["annotations"], "runbook_url").split_once('#').expect("it leads to a section");
        assert!(address.ends_with("/docs/operations.md"), "{name}: {address}");
        assert!(anchors.contains(anchor), "{name}: no section {anchor}");
        let section = page.split("\n### ").find(|section| {
            self::anchors(&format!("# {}", section.lines().next().unwrap_or(""))).contains(anchor)
        });
        let section = section.unwrap_or_else(|| panic!("{name}: no section {anchor}"));
        assert!(section.contains(&format!("`{name}`")), "{name}: the section {anchor} does not speak of it");
        let severity = text(&alert["labels"], "severity");
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        assert!(named.insert(name.to_owned()), "{name} is given once");
    }
    assert!(named.len() > 20, "{named:?}");
    let words = page.split(|c: char| !c.is_ascii_alphanumeric());
    let pascal = words.filter(|word| word.starts_with("Egress") && word.len() > 12);
    for word in pascal.filter(|word| !["EgressDenied", "EgressAudited"].contains(word)) {
        assert!(named.contains(word), "docs/operations.md speaks of {word}, which no alert is called");
    }
}

#[test]
fn promtool_finds_every_alert_firing_when_it_should() {
    let tests = read("deploy/components/prometheus-operator/rules_test.yaml");
    let cases: Value = serde_saphyr::from_str(&tests).expect("it is YAML");
    let (mut fires, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for case in cases["tests"].as_array().expect("there are tests") {
        for expected in case["alert_rule_test"].as_array().into_iter().flatten() {
            let is_silent = expected["exp_alerts"].as_array().is_none_or(Vec::is_empty);
            let of = if is_silent { &mut silent } else { &mut fires };
            of.insert(text(expected, "alertname").to_owned());
        }
    }
    let alerts: BTreeSet<String> = rules()
        .iter()
        .filter_map(|rule| rule.get("alert").map(|name| name.as_str().expect("a name").to_owned()))
        .collect();
    assert_eq!(fires, alerts, "each alert has a case in which it fires");
    assert_eq!(silent, alerts, "and one in which it does not");

    let folder = tempfile::tempdir().expect("a folder can be made");
    let rules = folder.path().join("rules.yaml");
    // JSON is YAML.
    fs::write(&rules, json!({ "groups": groups() }).to_string()).expect("a file can be written");
    let asked: Vec<Value> = questions()
        .iter()
        .enumerate()
        .map(|(number, (_, expression))| {
            let expression = expression.replace("$__rate_interval", "5m").replace("$__range", "1h");
            json!({ "record": format!("question:{number}"), "expr": expression })
        })
        .collect();
    let questions = folder.path().join("questions.yaml");
    let group = json!({ "groups": [{ "name": "dashboard", "rules": asked }] });
    fs::write(&questions, group.to_string()).expect("a file can be written");
    let file = folder.path().join("rules_test.yaml");
    fs::write(&file, tests).expect("a file can be written");
    for (arguments, path) in
        [(["check", "rules"], &rules), (["check", "rules"], &questions), (["test", "rules"], &file)]
    {
        let output = match Command::new("promtool").args(arguments).arg(path).output() {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // Past the harness, which shows nothing of tests that pass, and which may have begun a line.
                let line = "\nSKIPPED promtool: it is not in PATH; Debian has it in the package prometheus\n";
                std::io::stdout().write_all(line.as_bytes()).expect("standard output is open");
                return;
            }
            Err(error) => panic!("promtool cannot be run: {error}"),
        };
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "promtool {arguments:?}: {said}");
    }
}
