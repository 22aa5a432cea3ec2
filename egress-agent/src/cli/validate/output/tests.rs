//! Whatever is found, each format stays one.

use proptest::prelude::*;

use super::*;

fn report(file: &str, message: &str, hint: Option<&str>, column: Option<u64>) -> Report {
    Report {
        file: file.to_owned(),
        line: Some(1),
        column,
        policy: Some(format!("shop/{message}")),
        severity: "error",
        path: Some(message.to_owned()),
        message: message.to_owned(),
        hint: hint.map(str::to_owned),
        rule: Some(message.to_owned()),
        policy_line: None,
        policy_column: None,
        document: None,
    }
}

fn outcome(reports: Vec<Report>, text: &str) -> Outcome {
    let sources = reports.iter().map(|report| (report.file.as_str().into(), text.into())).collect();
    let checked = vec![Checked { file: "a".into(), name: "b".into(), line: None }];
    Outcome { reports, checked, sources, strict: false }
}

#[test]
fn the_mark_takes_in_what_begins_there() {
    let line = r#"  {"n\"é": "10.0.0.0/99", x: -12.5e3 ]"#;
    for (column, expected) in
        [(3, "{"), (4, r#""n\"é""#), (12, r#""10.0.0.0/99""#), (30, "-12.5e3"), (38, "]")]
    {
        let span = span_at(line, column).map(|span| &line[span]);
        assert_eq!(span, Some(expected), "{column}");
    }
    let end = line.chars().count();
    assert_eq!((span_at(line, end + 1).map(|span| span.len()), span_at(line, end + 2)), (Some(0), None));
    assert_eq!(span_at("\"open", 1), Some(0..5));
    assert_eq!(span_at("", 0), None);
}

#[test]
fn a_snippet_shows_the_line() {
    let mut found = report("p.json", "Wrong", Some("right"), Some(2));
    found.policy = None;
    let said = outcome(vec![found], "[\"a\", 1]").write(Some(Output::Text)).expect("text");
    assert_eq!(
        said,
        "error[Wrong]: Wrong\n --> p.json:1:2\n  |\n1 | [\"a\", 1]\n  |  ^^^ Wrong\n  |\n  = help: right\n\n"
    );
}

#[test]
fn workflow_commands_are_escaped() {
    let mut found = report("a,b:c%.yaml", "50%\nmore", None, Some(4));
    found.rule = None;
    assert_eq!(
        github(&found),
        "::error file=a%2Cb%3Ac%25.yaml,line=1,col=4,title=shop/50%25%0Amore::50%25%0Amore (50%25%0Amore)\n"
    );
}

#[test]
fn uris() {
    assert_eq!(uri("./a b/é.yaml"), "a%20b/%C3%A9.yaml");
    assert_eq!(uri("/etc/p.json"), "file:///etc/p.json");
    assert_eq!(uri("//host/p.json"), "file:///host/p.json");
    assert_eq!(uri("<stdin>"), "%3Cstdin%3E");
}

#[test]
fn every_shipped_rule_says_what_it_is() {
    let shipped = shipped();
    let written: usize = rego::MODULES
        .iter()
        .map(|(_, text)| text.lines().filter(|line| line.starts_with("#   id: EGR-")).count())
        .sum();
    assert_eq!(shipped.len(), written);
    assert!(written >= 17, "{written}");
}

proptest! {
    #[test]
    fn every_format_stays_one(
        file in "[\\PC\\n\\t\u{1}\u{fffe}&<>\"':,%]{1,12}",
        message in "[\\PC\\n\\r\\t\u{0}\u{1b}\u{fffe}\u{ffff}\u{85}\u{2028}&<>\"':,%\\]]{0,24}",
        hint in proptest::option::of("[\\PC\\n\u{1}<&]{0,8}"),
        text in "[ \\PC\"\\\\\t]{0,20}",
        column in proptest::option::of(1u64..30),
        strict in any::<bool>(),
        document in proptest::option::of(Just(0usize)),
    ) {
        let mut found = report(&file, &message, hint.as_deref(), column);
        found.document = document;
        let mut outcome = outcome(vec![found], &text);
        outcome.strict = strict;
        let write = |output| outcome.write(Some(output)).expect("everything can be written");
        prop_assert_eq!(write(Output::Table).lines().count(), 1);
        let github = write(Output::Github);
        prop_assert!(github.ends_with('\n') && github.matches(['\n', '\r']).count() == 1, "{}", github);
        let json: Value = serde_json::from_str(&write(Output::Json)).expect("JSON");
        prop_assert_eq!(json[0]["message"].as_str(), Some(message.as_str()));
        let sarif: Value = serde_json::from_str(&write(Output::Sarif)).expect("JSON");
        prop_assert!(sarif["runs"][0]["results"][0]["ruleId"].is_string());
        let junit = write(Output::Junit);
        let xml = roxmltree::Document::parse(&junit);
        prop_assert!(xml.is_ok(), "{:?} {}", xml.err(), junit);
        // Whether it can be drawn is for the crate that draws; that it does is for here.
        prop_assert!(!write(Output::Text).is_empty());
    }
}
