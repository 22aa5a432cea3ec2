//! `validate` from the outside: rules, formats, and input that is broken.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

const GOOD: &str = r#"{"defaultAction": "deny", "allowedDestinations": [{"name": "a", "cidr": "10.0.0.0/8", "ports": [443]}]}"#;
const BAD: &str = "{\n  \"allowedDestinations\": [\n    {\"name\": \"a\", \"cidr\": \"10.0.0.0/99\"}]\n}\n";
const NOW: &str = "2026-11-22T12:00:00Z";

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect("it can be written to");
    }
    folder
}

/// Runs in a folder, so that paths in what is said are short.
fn run(folder: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_egress-agent"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("EGRESS_RULES")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let written = child.stdin.take().expect("it is piped").write_all(input);
    let output = child.wait_with_output().expect("the program ends");
    // A program that is not asked to read may end before everything is written.
    assert!(written.is_ok() || output.status.code() == Some(2), "{output:?}");
    output
}

fn validate(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    said(&run(folder, &[&["validate"], arguments].concat(), b""))
}

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("output is UTF-8");
    (output.status.code().expect("it ends by itself"), text(&output.stdout), text(&output.stderr))
}

fn config_map(name: &str, policy: &str) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n  namespace: shop\n  labels: {{egress-controller: managed}}\n\
         data:\n  policy.json: |\n"
    );
    for line in policy.lines() {
        writeln!(text, "    {line}").expect("a string takes everything");
    }
    text
}

#[test]
fn rules_are_obeyed() {
    let folder = folder(&[
        ("p.json", GOOD),
        ("rules.yaml", "governance: {profile: required, required: [owner]}\n"),
        ("code.yaml", "policyAsCode: {enabled: true, limitMillis: 20000}\n"),
        ("wrong.yaml", "governance: {profil: off}\n"),
    ]);
    let at = folder.path();
    let plain = validate(at, &["p.json"]);
    assert_eq!((plain.0, plain.1.as_str()), (0, ""), "{plain:?}");
    let (code, out, _) = validate(at, &["p.json", "--rules", "rules.yaml"]);
    assert_eq!(code, 1);
    assert!(out.contains("error: Missing governance: owner") && out.contains("[GOV-0001]"), "{out}");
    let (code, out, _) = validate(at, &["p.json", "--rules", "rules.yaml", "--profile", "warn"]);
    assert!(code == 0 && out.contains("warning: Missing governance: owner"), "{out}");
    assert_eq!(validate(at, &["p.json", "--rules", "rules.yaml", "--profile", "off"]).1, "");
    let (code, out, _) = validate(at, &["p.json", "--profile", "required"]);
    assert_eq!((code, out.lines().count()), (1, 5), "{out}");
    let (code, out, _) = validate(at, &["p.json", "--rules", "code.yaml"]);
    assert!(code == 0 || code == 1, "{out}");
    for refused in [&["--rules", "wrong.yaml"], &["--rules", "absent.yaml"], &["--policies", "absent"]] {
        let (code, out, err) = validate(at, &[&["p.json"], &refused[..]].concat());
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert!(err.starts_with("error: "), "{err}");
    }
    let environment = Command::new(env!("CARGO_BIN_EXE_egress-agent"))
        .args(["validate", "p.json"])
        .current_dir(at)
        .env("EGRESS_RULES", "rules.yaml")
        .output()
        .expect("the program runs");
    assert_eq!(environment.status.code(), Some(1), "{environment:?}");
}

#[test]
fn policy_as_code_of_ones_own_is_asked() {
    let folder = folder(&[("p.json", GOOD), ("rules.yaml", "policyAsCode: {limitMillis: 20000}\n")]);
    let own = folder.path().join("own");
    fs::create_dir(&own).expect("a folder");
    let rule = "package shop\n\nimport rego.v1\n\ndeny contains {\"id\": \"SHOP-1\", \"msg\": \"no name a\", \"path\": \"allowedDestinations[0].name\"} if {\n\
                \tinput.data[\"policy.json\"]\n\tcontains(input.data[\"policy.json\"], \"\\\"a\\\"\")\n}\n";
    fs::write(own.join("own.rego"), rule).expect("it can be written");
    let arguments = ["p.json", "--policies", "own", "--rules", "rules.yaml"];
    let (code, out, err) = validate(folder.path(), &arguments);
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("p.json:1:60: error: no name a (allowedDestinations[0].name) [SHOP-1]"), "{out}");
    let (_, sarif, _) = validate(folder.path(), &[&arguments[..], &["-o", "sarif"]].concat());
    let sarif: Value = serde_json::from_str(&sarif).expect("JSON");
    let rules = sarif["runs"][0]["tool"]["driver"]["rules"].as_array().expect("a list");
    assert!(rules.iter().any(|rule| rule["id"] == "SHOP-1"), "{rules:?}");
}

#[test]
fn the_time_can_be_given() {
    let policy = GOOD.replace("[443]}", r#"[443], "governance": {"expiry": "2027-03-31"}}"#);
    let folder = folder(&[("p.json", &policy)]);
    let at = folder.path();
    assert_eq!(validate(at, &["p.json", "--now", NOW]).1, "");
    let (_, out, _) = validate(at, &["p.json", "--now", "2027-03-25T00:00:00Z"]);
    assert!(out.contains("Ends soon: a"), "{out}");
    let (_, out, _) = validate(at, &["p.json", "--now", "2027-04-01T00:00:00Z"]);
    assert!(out.contains("Expired: a"), "{out}");
    assert_eq!(validate(at, &["p.json", "--now", "tomorrow"]).0, 2);
}

#[test]
fn a_namespace_says_its_profile() {
    let namespace = |word: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  annotations: {{egress-agent.dev/governance: {word}}}\n"
        )
    };
    let check = |word: &str, more: &[&str]| {
        let folder = folder(&[("a.yaml", &config_map("p", GOOD)), ("b.yaml", &namespace(word))]);
        validate(folder.path(), &[&["."], more].concat())
    };
    let (code, out, _) = check("required", &[]);
    assert!(code == 1 && out.contains("error: Missing governance: owner"), "{out}");
    let (code, out, _) = check("\"off\"", &["--profile", "warn"]);
    assert!(code == 0 && out.contains("warning: Missing governance"), "it is not made laxer: {out}");
    let (code, out, _) = check("requierd", &[]);
    assert!(code == 0 && out.contains("Unknown profile") && out.contains("did you mean required?"), "{out}");
}

#[test]
fn a_terminal_and_whoever_asks_see_the_line() {
    let folder = folder(&[("p.yaml", &config_map("p", BAD))]);
    let (code, out, err) = validate(folder.path(), &["p.yaml", "-o", "text"]);
    assert_eq!(code, 1);
    let expected = "error: Invalid CIDR format: 10.0.0.0/99\n  --> p.yaml:11:31\n   |\n11 |         {\"name\": \"a\", \"cidr\": \"10.0.0.0/99\"}]\n   |                               ^^^^^^^^^^^^^ allowedDestinations[0].cidr\n   |\n   = help: did you mean 10.0.0.0/9?\n   = note: in policy shop/p\n\n";
    assert_eq!(out, expected, "{err}");
    assert!(!out.contains('\u{1b}'));
    let (_, piped, _) = validate(folder.path(), &["p.yaml"]);
    assert_eq!(piped.lines().count(), 1, "{piped}");
}

#[test]
fn sarif_has_what_it_must() {
    let folder = folder(&[("p.yaml", &config_map("p", BAD)), ("q.json", GOOD), ("broken.yaml", "a: b: c\n")]);
    let (code, out, _) = validate(folder.path(), &[".", "-o", "sarif", "--profile", "warn"]);
    assert_eq!(code, 1);
    let sarif: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&sarif["version"], sarif["runs"].as_array().map(Vec::len)), (&Value::from("2.1.0"), Some(1)));
    let run = &sarif["runs"][0];
    assert_eq!(run["tool"]["driver"]["name"], "egress-agent");
    assert_eq!(run["columnKind"], "unicodeCodePoints");
    let rules = run["tool"]["driver"]["rules"].as_array().expect("a list");
    for rule in rules {
        for text in [&rule["id"], &rule["shortDescription"]["text"], &rule["help"]["text"]] {
            assert!(text.as_str().is_some_and(|text| !text.is_empty()), "{rule}");
        }
    }
    let results = run["results"].as_array().expect("a list");
    assert!(results.len() >= 7, "{results:?}");
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().expect("a number")).expect("small");
        assert_eq!(result["ruleId"], rules[index]["id"]);
        assert!(matches!(result["level"].as_str(), Some("error" | "warning")), "{result}");
        assert!(result["message"]["text"].as_str().is_some_and(|text| !text.is_empty()), "{result}");
        let place = &result["locations"][0]["physicalLocation"];
        assert!(place["artifactLocation"]["uri"].is_string(), "{result}");
        let region = &place["region"];
        assert!(region["startLine"].as_u64().is_some_and(|line| line > 0), "{result}");
        if let Some(end) = region["endColumn"].as_u64() {
            assert!(end >= region["startColumn"].as_u64().expect("an end has a start"), "{result}");
        }
    }
    let cidr = results.iter().find(|result| {
        result["message"]["text"].as_str().is_some_and(|text| text.starts_with("Invalid CIDR"))
    });
    let region = &cidr.expect("it is told")["locations"][0]["physicalLocation"]["region"];
    let place = ["startLine", "startColumn", "endColumn"].map(|name| region[name].as_u64());
    assert_eq!(place, [Some(11), Some(31), Some(44)]);
}

#[test]
fn junit_has_a_case_for_each_policy() {
    let folder = folder(&[("p.yaml", &config_map("p", BAD)), ("q.json", GOOD), ("broken.yaml", "a: b: c\n")]);
    let (code, out, _) = validate(folder.path(), &[".", "-o", "junit"]);
    assert_eq!(code, 1);
    let xml = roxmltree::Document::parse(&out).expect("XML");
    let suite = xml.descendants().find(|node| node.has_tag_name("testsuite")).expect("a suite");
    let count = |name| suite.attribute(name).expect("it is counted");
    assert_eq!(["tests", "failures", "errors"].map(count), ["3", "1", "1"]);
    let cases: Vec<(&str, Option<&str>)> = suite
        .children()
        .filter(roxmltree::Node::is_element)
        .map(|case| {
            (
                case.attribute("name").expect("a name"),
                case.first_element_child().map(|child| child.tag_name().name()),
            )
        })
        .collect();
    assert_eq!(cases, [("shop/p", Some("failure")), ("q", None), ("manifest", Some("error"))]);
}

#[test]
fn github_marks_lines() {
    let folder = folder(&[("p.yaml", &config_map("p", BAD))]);
    let (code, out, _) = validate(folder.path(), &["p.yaml", "-o", "github"]);
    assert_eq!(code, 1);
    assert_eq!(
        out,
        "::error file=p.yaml,line=11,col=31,title=shop/p::Invalid CIDR format: 10.0.0.0/99 (allowedDestinations[0].cidr); did you mean 10.0.0.0/9?\n"
    );
}

#[test]
fn broken_input_is_told_and_stops_nothing_else() {
    let folder = folder(&[("good.yaml", &config_map("p", GOOD)), ("broken.yaml", "a: b: c\n")]);
    let at = folder.path();
    fs::write(at.join("bytes.yaml"), b"kind: \xff\xfe\n").expect("it can be written");
    fs::write(at.join("big.json"), format!("{{\"description\": \"{}\"}}", "x".repeat(10 << 20)))
        .expect("it can be written");
    let (code, out, err) = validate(at, &["."]);
    assert_eq!(code, 1, "{err}");
    assert!(out.contains("bytes.yaml: error: cannot be read: not UTF-8"), "{out}");
    assert!(out.contains("broken.yaml:1"), "{out}");
    assert!(out.contains("big.json: error: Policy too large: 10485"), "{}", out.get(..2000).unwrap_or(&out));
    assert!(err.contains("2 policies checked: 3 errors"), "{err}");
    for (path, told) in
        [("absent.yaml", "cannot read manifests from absent.yaml"), ("bytes.yaml", "cannot read bytes.yaml")]
    {
        let (code, _, err) = validate(at, &[path, "good.yaml"]);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(told) && err.contains("1 policy checked"), "{err}");
    }
    let output = run(at, &["validate", "-"], b"\xff\xfe");
    assert_eq!(said(&output).0, 2);
    assert_eq!(validate(at, &[]).0, 2);
    // Of a terminal's bell or colour nothing comes through.
    fs::write(at.join("odd\u{1b}[31m\n.json"), "{\"a\u{7}b\\u001b\": 1}").expect("it can be written");
    let (_, out, _) = validate(at, &["."]);
    assert!(!out.contains(['\u{1b}', '\u{7}']), "{out:?}");
}

#[test]
fn many_policies_come_in_their_order() {
    let mut text = String::new();
    for number in 0..300 {
        text += &config_map(&format!("p{number}"), &BAD.replace("/99", &format!("/{}", 33 + number)));
        text += "---\n";
    }
    let folder = folder(&[("all.yaml", &text)]);
    let (code, out, _) = validate(folder.path(), &["all.yaml"]);
    assert_eq!((code, out.lines().count()), (1, 300));
    for (number, line) in out.lines().enumerate() {
        let place =
            format!("all.yaml:{}:31: error: Invalid CIDR format: 10.0.0.0/{}", 11 + 13 * number, 33 + number);
        assert!(line.starts_with(&place) && line.contains(&format!("shop/p{number},")), "{place}\n{line}");
    }
}

const BIDI: char = '\u{202e}';

/// Tells whether a text would reach into a terminal, or show something else than it is.
fn reaches_out(text: &str) -> bool {
    text.contains(|c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c))
}

#[test]
fn names_and_texts_do_not_reach_into_the_terminal() {
    let folder = folder(&[]);
    let at = folder.path();
    fs::write(at.join(format!("{BIDI}\u{1b}[31m\u{9b}2J\n::error::x.json")), "{\"mode\": \"\u{9b}2J\"}")
        .expect("written");
    let name = r#"\u001b[31m\n::error ::forged\u202e"#;
    let object = format!(
        r#"{{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {{"name": "{name}", "namespace": "shop", "labels": {{"egress-controller": "managed"}}}}, "data": {{"policy.json": "{{\"mode\": 1}}"}}}}"#
    );
    fs::write(at.join("object.json"), object).expect("written");
    for output in ["table", "text", "github", "junit"] {
        let (code, out, err) = validate(at, &[".", "-o", output]);
        assert_eq!(code, 1);
        assert!(!reaches_out(&out) && !reaches_out(&err), "{output}: {out:?} {err:?}");
        assert!(
            !out.lines().any(|line| line.starts_with("::error ::") || line.starts_with("::error::x")),
            "{out}"
        );
    }
    for command in [&["fmt"][..], &["diff", "."], &["exceptions", "list"], &["fmt", "--check"]] {
        let output = run(at, &[command, &["."]].concat(), b"");
        let (_, out, err) = said(&output);
        assert!(!reaches_out(&out) && !reaches_out(&err), "{command:?}: {out:?} {err:?}");
    }
    let absent = format!("absent\u{1b}[31m\n{BIDI}");
    for command in ["validate", "fmt", "diff"] {
        let output = run(at, &[command, &absent, &absent][..if command == "diff" { 3 } else { 2 }], b"");
        let (code, _, err) = said(&output);
        assert!(code == 2 && !reaches_out(&err), "{err:?}");
        assert_eq!(err.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{err:?}");
    }
}

#[test]
fn a_pipe_is_read_once() {
    let folder = folder(&[]);
    let at = folder.path();
    for (arguments, input, expected) in [
        (&["validate", "/dev/stdin"][..], BAD, 1),
        (&["validate", "/dev/stdin"], &config_map("p", GOOD), 0),
        (&["fmt", "--check", "/dev/stdin"], GOOD, 1),
        (&["fmt", "/dev/stdin"], GOOD, 0),
    ] {
        let (code, out, err) = said(&run(at, arguments, input.as_bytes()));
        assert_eq!(code, expected, "{arguments:?}: {out} {err}");
        assert_eq!(out.is_empty(), arguments[0] == "validate" && expected == 0, "{arguments:?}: {out} {err}");
    }
    let (code, _, err) = said(&run(at, &["fmt", "-w", "/dev/stdin"], GOOD.as_bytes()));
    assert!(code == 2 && err.contains("is no file"), "{err}");
}

#[test]
fn nothing_to_check_is_no_success() {
    let folder = folder(&[
        ("policy.json", ""),
        ("null.json", "null\n"),
        ("comment.yaml", "# nothing\n---\n"),
        ("kind.yaml", "apiVersion: v1\nkind: configmap\nmetadata: {name: a}\n"),
        ("label.yaml", &config_map("p", GOOD).replace("managed", "manged")),
    ]);
    let at = folder.path();
    fs::create_dir(at.join("empty")).expect("a folder can be made");
    fs::create_dir(at.join("upper")).expect("a folder can be made");
    fs::write(at.join("upper/POLICY.YAML"), config_map("p", BAD)).expect("it can be written");
    for named in ["policy.json", "null.json", "comment.yaml"] {
        let (code, out, _) = validate(at, &[named, "--allow-none"]);
        assert!(code == 1 && out.contains("it holds no object and no policy"), "{named}: {out}");
        assert_eq!(said(&run(at, &["fmt", "--check", named], b"")).0, 1);
        assert_eq!(said(&run(at, &["diff", named, named], b"")).0, 2);
    }
    assert_eq!(said(&run(at, &["validate", "-"], b"")).0, 1);
    for none in ["empty", "upper", "kind.yaml", "label.yaml"] {
        let (code, _, err) = validate(at, &[none]);
        assert!(code == 2 && err.contains("there is no policy"), "{none}: {err}");
        assert_eq!(validate(at, &[none, "--allow-none"]).0, 0);
    }
    let (_, out, err) = validate(at, &["label.yaml", "-o", "table"]);
    assert!(
        out.contains("warning: `policy.json` without the label") && out.contains("shop/p"),
        "{out} {err}"
    );
    assert_eq!(validate(at, &["label.yaml", "--allow-none", "--fail-on-warn"]).0, 1);
    let (_, junit, _) = validate(at, &["label.yaml", "-o", "junit"]);
    assert!(junit.contains("errors=\"0\""), "a warning is no error: {junit}");
}

#[test]
fn of_two_of_a_name_nobody_knows_which_counts() {
    let folder = folder(&[
        ("a.yaml", &config_map("p", GOOD)),
        ("b.yaml", &config_map("p", &GOOD.replace("10.0", "11.0"))),
    ]);
    let at = folder.path();
    let (code, out, _) = validate(at, &["."]);
    assert_eq!(code, 1);
    assert!(out.contains("./b.yaml:8: error: ConfigMap shop/p stands in ./a.yaml line 8 already"), "{out}");
    let (code, _, err) = said(&run(at, &["diff", "a.yaml", "."], b""));
    assert!(code == 2 && err.contains("already"), "{err}");
    let (code, out, err) = said(&run(at, &["exceptions", "list", "."], b""));
    assert!(code == 1 && err.contains("already") && out.lines().count() == 3, "{out} {err}");
    // The one without the label would take the other's place.
    let unlabelled = config_map("p", GOOD).replace("egress-controller", "other");
    fs::write(at.join("b.yaml"), unlabelled).expect("it can be written");
    let (code, out, _) = validate(at, &["."]);
    assert!(code == 1 && out.contains("already"), "{out}");
}

#[test]
fn findings_stand_at_the_policys_own_lines() {
    let body: String = BAD.lines().map(|line| format!("      {line}\n")).collect();
    let decoy = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: p\n  namespace: shop\n  labels: {{egress-controller: managed}}\ndata:\n  README: |\n    policy.json: |\n{body}  policy.json: |\n{body}"
    );
    let folder = folder(&[("decoy.yaml", &decoy)]);
    let (_, out, _) = validate(folder.path(), &["decoy.yaml"]);
    assert!(out.starts_with("decoy.yaml:17:33: error: Invalid CIDR"), "{out}");
}

#[test]
fn what_cannot_be_read_stands_in_every_format() {
    let folder = folder(&[("good.yaml", &config_map("p", GOOD))]);
    for (output, told) in [
        ("junit", "errors=\"1\""),
        ("sarif", "cannot read manifests"),
        ("json", "cannot read manifests"),
        ("github", "::error file=absent.yaml"),
    ] {
        let (code, out, _) = validate(folder.path(), &["absent.yaml", "good.yaml", "-o", output]);
        assert!(code == 2 && out.contains(told), "{output}: {out}");
    }
}

#[test]
fn a_policy_with_too_many_unknown_fields_is_told_of_in_time() {
    let fields: String = (0..40_000).map(|n| format!("    field{n}: 1\n")).collect();
    let text = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: a}}\nspec:\n  podSelector: {{}}\n  egress:\n  - ports: []\n{fields}"
    );
    let folder = folder(&[("np.yaml", &text)]);
    let began = std::time::Instant::now();
    let (code, out, _) = validate(folder.path(), &["np.yaml"]);
    assert!(code == 1 && out.contains("more fields beside these 100"), "{}", out.get(..1000).unwrap_or(&out));
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn paths_of_a_change_are_written_as_the_change_has_them() {
    let folder = folder(&[("p.yaml", &config_map("p", BAD))]);
    let (_, out, _) = validate(folder.path(), &[".", "-o", "github"]);
    assert!(out.starts_with("::error file=p.yaml,"), "{out}");
}

#[test]
fn the_webhook_takes_policy_as_code_as_validate_does() {
    let folder = folder(&[("bad.rego", "package payments\n\ndeny contains 1 if nothing\n")]);
    for command in [&["webhook"][..], &["validate", "-"]] {
        let at = folder.path().to_str().expect("a path of letters");
        for (given, told) in [(at, "bad.rego"), ("absent", "absent")] {
            let output = run(folder.path(), &[command, &["--policies", given]].concat(), GOOD.as_bytes());
            let (code, _, err) = said(&output);
            assert!(
                code == 2 && err.contains(told) && !err.contains("unexpected argument"),
                "{command:?}: {err}"
            );
        }
    }
}
