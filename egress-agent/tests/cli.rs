//! `explain` and `validate` from the outside: the built program on manifests in a folder.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

const CLUSTER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: checkout, namespace: shop, labels: {app: checkout}}
spec: {nodeName: node-1, containers: [{name: c, image: x}]}
status: {phase: Running, podIPs: [{ip: 10.1.0.5}, {ip: "fd00::5"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: redis, namespace: infra, labels: {app: redis}}
spec: {nodeName: node-1, containers: [{name: c, image: x}]}
status: {phase: Running, podIPs: [{ip: 10.1.0.6}]}
---
apiVersion: v1
kind: Service
metadata: {name: redis, namespace: infra}
spec: {clusterIP: None, ports: [{name: redis, port: 6379}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: redis-1, namespace: infra, labels: {kubernetes.io/service-name: redis}}
addressType: IPv4
ports: [{name: redis, port: 16379, protocol: TCP}]
endpoints: [{addresses: [10.1.0.6], conditions: {ready: true}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: np, namespace: infra}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24}}]}]
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: egress
  namespace: shop
  labels: {egress-controller: managed}
data:
  policy.json: |
    { "defaultAction": "deny",
      "allowedDestinations": [
        {"name": "db", "cidr": "192.0.2.0/24", "ports": [443]},
        {"name": "cache", "service": {"namespace": "infra", "name": "redis"}, "ports": [6379]},
        {"name": "ping", "cidr": "198.51.100.0/24", "ports": [{"protocol": "ICMP"}]},
        {"name": "old", "cidr": "203.0.113.0/24", "ports": [443],
         "governance": {"owner": "a", "reason": "b", "expiry": "2030-01-01T00:00:00Z"}} ],
      "deniedDestinations": [ {"name": "bad", "cidr": "192.0.2.66/32"} ] }
"#;

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("it can be written to");
    }
    folder
}

fn run(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_egress-agent"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let written = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("the program ends");
    // A program that is not asked to read may end before everything is written.
    assert!(written.is_ok() || output.status.code() == Some(2), "{output:?}");
    output
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("output is UTF-8")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

fn batch(engine: &str, flows: &str, more: &[&str]) -> (Option<i32>, Vec<Value>) {
    let folder = folder(&[("cluster.yaml", CLUSTER)]);
    let mut arguments =
        vec!["explain", "--manifests", path(folder.path()), "--flows", "-", "-o", "json", "--engine", engine];
    arguments.extend(["--at", "2029-06-01T00:00:00Z"]);
    arguments.extend(more);
    let output = run(&arguments, flows);
    let lines = text(&output.stdout).lines();
    let values = lines.map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    (code(&output), values)
}

fn line(verdict: &str, reason: &str, rule: Option<(&str, &str)>) -> Value {
    json!({"verdict": verdict, "reason": reason, "policy": rule.map(|r| r.0), "destination": rule.map(|r| r.1)})
}

#[test]
fn every_line_of_a_batch_gets_one_answer_in_its_place() {
    let flows = r#"{"from":"shop/checkout","to":{"ip":"192.0.2.1"},"protocol":"TCP","port":443}
{"from":"shop/checkout","to":{"ip":"192.0.2.1"},"port":80}

{"from":"shop/checkout","to":{"ip":"192.0.2.66"},"port":443}
{"from":"shop/checkout","to":{"pod":"infra/redis"},"port":16379}
{"from":"shop/checkout","to":{"service":"infra/redis"},"port":6379}
{"from":"shop/checkout","to":{"ip":"198.51.100.1"},"protocol":"ICMP"}
{"from":"shop/checkout","to":{"pod":"shop/checkout"},"family":"ipv6","port":1}
{"from":"shop/checkout","to":{"ip":"203.0.113.1"},"protocol":6,"port":443}
{"from":"infra/redis","to":{"ip":"192.0.2.1"},"port":443}"#;
    let expected = [
        line("allow", "allowed_destination", Some(("shop/egress", "db"))),
        line("deny", "default_deny", Some(("shop/egress", "(default)"))),
        line("deny", "denied_destination", Some(("shop/egress", "bad"))),
        line("allow", "allowed_destination", Some(("shop/egress", "cache"))),
        line("allow", "allowed_destination", Some(("shop/egress", "cache"))),
        line("allow", "allowed_destination", Some(("shop/egress", "ping"))),
        line("allow", "local", None),
        line("allow", "allowed_destination", Some(("shop/egress", "old"))),
        line("allow", "ungoverned", None),
    ];
    for engine in ["reference", "entries"] {
        let (code, lines) = batch(engine, flows, &[]);
        assert_eq!(code, Some(0), "{engine}");
        assert_eq!(lines, expected, "{engine}");
    }
}

#[test]
fn a_bad_line_gets_an_error_in_its_place_and_the_rest_an_answer() {
    let flows = r#"{"from":"shop/checkuot","to":{"ip":"192.0.2.1"},"port":443}
not a flow
{"from":"shop/checkout","to":{"service":"infra/redsi"},"port":6379}
{"from":"shop/checkout","to":{"ip":"192.0.2.1"}}
{"from":"shop/checkout","to":{"ip":"192.0.2.1"},"protocol":300}
{"from":"shop/checkout","to":{"ip":"192.0.2.1"},"port":443}
"#;
    let (code, lines) = batch("reference", flows, &[]);
    assert_eq!(code, Some(2));
    let errors: Vec<Option<&str>> = lines.iter().map(|line| line["error"].as_str()).collect();
    assert_eq!(errors[0], Some("there is no pod shop/checkuot; did you mean shop/checkout?"));
    assert!(errors[1].is_some_and(|error| error.starts_with("not a flow")), "{errors:?}");
    assert_eq!(errors[2], Some("there is no service infra/redsi; did you mean infra/redis?"));
    assert_eq!(errors[3], Some("port is missing"));
    assert_eq!(
        errors[4],
        Some("unknown protocol \"300\"; write TCP, UDP, SCTP, ICMP or a number from 0 to 255")
    );
    assert_eq!(lines[5]["verdict"], "allow");
    assert_eq!(lines.len(), 6);
}

#[test]
fn flags_decide_who_is_governed() {
    let flow = r#"{"from":"infra/redis","to":{"ip":"192.0.2.1"},"port":443}"#;
    let (_, lines) = batch("entries", flow, &["--enforce-network-policy"]);
    assert_eq!(lines, [line("deny", "default_deny", Some(("infra/np", "(default)")))]);
    let (_, lines) = batch("entries", flow, &["--governed-namespaces", "infra,shop"]);
    assert_eq!(lines, [line("deny", "default_deny", Some(("infra", "(default)")))]);
    // Who audits denies nothing for a policy's sake, and what stands in for one denies all the same.
    let (_, lines) = batch("entries", flow, &["--governed-namespaces", "infra,shop", "--audit"]);
    assert_eq!(lines, [line("deny", "default_deny", Some(("infra", "(default)")))]);
    let flow = r#"{"from":"shop/checkout","to":{"ip":"192.0.2.1"},"port":80}"#;
    for (more, verdict) in [(&[][..], "deny"), (&["--audit"], "audit")] {
        let (_, lines) = batch("entries", flow, more);
        assert_eq!(lines, [line(verdict, "default_deny", Some(("shop/egress", "(default)")))]);
    }
}

#[test]
fn a_single_flow_is_explained_to_people() {
    let folder = folder(&[("cluster.yaml", CLUSTER)]);
    let ask = |to: &str, more: &[&str]| {
        let mut arguments =
            vec!["explain", "--manifests", path(folder.path()), "--from", "shop/checkout", "--to", to];
        arguments.extend(["--at", "2029-06-01T00:00:00Z"]);
        arguments.extend(more);
        run(&arguments, "")
    };
    let denied = ask("192.0.2.1:80", &[]);
    assert_eq!(code(&denied), Some(1), "{denied:?}");
    let said = text(&denied.stdout);
    assert!(said.starts_with("Denied: no destination allows it"), "{said}");
    assert!(said.contains("shop/egress: enforce, default deny"), "{said}");
    assert!(said.contains("Nearest rule: db of shop/egress: address and protocol match"), "{said}");

    let ending = ask("203.0.113.9:443", &[]);
    assert_eq!(code(&ending), Some(0), "{ending:?}");
    assert!(text(&ending.stdout).contains("at 2030-01-01T00:00:00Z to deny (expired)"), "{ending:?}");

    let json = ask("service:infra/redis:6379", &["-o", "json"]);
    let value: Value = serde_json::from_slice(&json.stdout).expect("it is JSON");
    assert_eq!((&value["destination"], &value["port"]), (&json!("cache"), &json!(16379)));
    assert_eq!(code(&ask("pod:infra/redis:16379", &["-o", "yaml"])), Some(0));
    assert_eq!(code(&ask("nowhere", &[])), Some(2));
}

#[test]
fn broken_manifests_do_not_stop_the_rest() {
    let folder = folder(&[("cluster.yaml", CLUSTER), ("broken.yaml", "a: b: c\n")]);
    let flow = r#"{"from":"shop/checkout","to":{"ip":"192.0.2.1"},"port":443}"#;
    let arguments = ["explain", "--manifests", path(folder.path()), "--flows", "-"];
    let output = run(&arguments, flow);
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert!(text(&output.stderr).contains("broken.yaml:1"), "{output:?}");
    let nothing = run(&["explain", "--manifests", "does-not-exist", "--flows", "-"], "");
    assert_eq!(code(&nothing), Some(2), "{nothing:?}");
}

#[test]
fn a_finding_points_into_the_manifest() {
    let folder = folder(&[(
        "policy.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: p\n  namespace: shop\n  labels: {egress-controller: managed}\n\
         data:\n  policy.json: |\n    { \"defaultAction\": \"deny\",\n      \"allowedDestinations\": [\n\
         \u{20}       {\"name\": \"a\", \"cidr\": \"10.0.0.0/99\"} ] }\n",
    )]);
    let file = folder.path().join("policy.yaml");
    let output = run(&["validate", path(folder.path())], "");
    assert_eq!(code(&output), Some(1), "{output:?}");
    let place = format!("{}:11:31: error: Invalid CIDR format: 10.0.0.0/99", path(&file));
    assert!(text(&output.stdout).starts_with(&place), "{output:?}");
    assert!(text(&output.stderr).contains("1 policy checked: 1 error, 0 warnings"), "{output:?}");
}

#[test]
fn where_no_place_in_the_file_is_known_the_place_in_the_policy_is_told() {
    let manifest = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "p", "namespace": "shop", "labels": {"egress-controller": "managed"}},
        "data": {"policy.json": "{\n  \"defaultAction\": \"maybe\"\n}"},
    });
    let output = run(&["validate", "-", "-o", "json"], &manifest.to_string());
    assert_eq!(code(&output), Some(1), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(found[0]["policyLine"], 2, "{found}");
    assert_eq!(found[0]["policy"], "shop/p", "{found}");
}

#[test]
fn a_bare_document_is_a_policy() {
    let folder = folder(&[
        (
            "good.json",
            r#"{"defaultAction": "deny", "allowedDestinations": [{"name": "a", "cidr": "10.0.0.0/8", "ports": [443]}]}"#,
        ),
        ("bad.json", "{\n  \"defaultAction\": \"deny\",,\n}"),
        (
            "warn.json",
            r#"{"defaultAction": "deny", "allowedDestinations": [{"name": "s3", "domain": "s3.example.com", "ports": [443]}]}"#,
        ),
    ]);
    let validate = |file: &str, more: &[&str]| {
        let file = folder.path().join(file);
        let mut arguments = vec!["validate", path(&file)];
        arguments.extend(more);
        run(&arguments, "")
    };
    let good = validate("good.json", &["--fail-on-warn"]);
    assert_eq!(code(&good), Some(0), "{good:?}");
    let bad = validate("bad.json", &[]);
    assert_eq!(code(&bad), Some(1), "{bad:?}");
    assert!(text(&bad.stdout).contains("bad.json:2:27: error: Invalid JSON: "), "{bad:?}");
    let warned = validate("warn.json", &[]);
    assert_eq!(code(&warned), Some(0), "{warned:?}");
    assert!(text(&warned.stdout).contains("warning: Not resolved yet: s3"), "{warned:?}");
    assert_eq!(code(&validate("warn.json", &["--fail-on-warn"])), Some(1));
    assert_eq!(code(&validate("absent.json", &[])), Some(2));
}

#[test]
fn what_has_expired_is_a_warning() {
    let policy = r#"{"defaultAction": "deny", "allowedDestinations": [{"name": "a", "cidr": "10.0.0.0/8",
        "governance": {"owner": "o", "reason": "r", "expiry": "2020-01-01"}}]}"#;
    let output = run(&["validate", "-"], policy);
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert!(
        text(&output.stdout).contains("warning: Expired: a matches nothing since 2020-01-02T00:00:00Z"),
        "{output:?}"
    );
}

#[test]
fn a_service_that_is_not_there_is_a_warning() {
    let policy = CLUSTER.replace("\"name\": \"redis\"}, \"ports\"", "\"name\": \"rediss\"}, \"ports\"");
    let folder = folder(&[("cluster.yaml", &policy)]);
    let output = run(&["validate", path(folder.path())], "");
    assert!(
        text(&output.stdout).contains("cache matches nothing: Service infra/rediss does not exist"),
        "{output:?}"
    );
    assert_eq!(code(&output), Some(0), "{output:?}");
}
