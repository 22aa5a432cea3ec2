//! What nodes tell, put together: Reports in namespaces, and `egress-agent status --cluster`.

use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use egress_agent::k8s::{generated::LOSSES, summary};
use egress_tests::lab::{agent, api::Server};
use serde_json::{Value, json};

use crate::{
    policies::{allow, cidr, config_map, network_policy},
    ranges::{Scene, kubectl, until},
};

pub(crate) const AGENTS: &str = "egress-agent";
const EVERY: [&str; 2] = ["--reports-every", "1"];

fn report(api_version: &str, kind: &str, namespace: &str) -> Value {
    json!({
        "apiVersion": api_version, "kind": kind, "metadata": { "namespace": namespace, "name": "egress-agent" },
    })
}

pub(crate) fn old(namespace: &str) -> Value {
    report("wgpolicyk8s.io/v1alpha2", "PolicyReport", namespace)
}

pub(crate) fn new(namespace: &str) -> Value {
    report("openreports.io/v1alpha1", "Report", namespace)
}

/// Lets the API server know a kind of Report.
pub(crate) fn define(server: &Server, file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernel/controller/crds").join(file);
    let said = Command::new(kubectl())
        .arg("--kubeconfig")
        .arg(server.kubeconfig())
        .args(["apply", "--filename"])
        .arg(path)
        .env("NO_PROXY", "*")
        .output()
        .expect("kubectl starts");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}

/// Has a node tell which policies it has, each with its revision.
fn tell(server: &Server, node: &str, policies: &[(&str, &str)]) {
    tell_as(server, node, policies, false);
}

/// Has a node tell that, and whether it only audits.
fn tell_as(server: &Server, node: &str, policies: &[(&str, &str)], audit: bool) {
    let held: serde_json::Map<String, Value> =
        policies.iter().map(|(policy, revision)| ((*policy).to_owned(), json!([revision, 2, 0]))).collect();
    let now = jiff::Timestamp::now().as_second();
    let text = json!({ "version": "0.1.0", "written": now, "ready": true, "audit": audit, "reasons": [], "policies": held });
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "namespace": AGENTS, "name": summary::name(node).expect("it is short"),
            "labels": { summary::LABEL.0: summary::LABEL.1 },
        },
        "data": { summary::KEY: text.to_string() },
    });
    server.put(&object).expect("it is taken");
}

fn uid_of(object: &Value) -> String {
    object["metadata"]["uid"].as_str().expect("the server gives it one").to_owned()
}

fn summary_of(node: &str) -> Value {
    let name = summary::name(node).expect("it is short");
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "namespace": AGENTS, "name": name } })
}

fn status(server: &Server, arguments: &[&str]) -> (Option<i32>, String, String) {
    status_as(&server.kubeconfig(), arguments)
}

/// Returns the main result of a policy.
fn result(report: &Value, policy: &str) -> Value {
    let results = report["results"].as_array().expect("a Report has results");
    let main = |result: &&Value| result["policy"] == policy && result["rule"] == "in-force";
    results.iter().find(main).cloned().unwrap_or_default()
}

/// Reports come with the kind that the API server knows, follow what nodes tell, and go with the last policy; others' stay.
pub(crate) async fn written(server: &Server) {
    let scene = Scene::shipped(server);
    scene.provide(100, &[("192.0.2.0/24", "us-east-1")]);
    server.namespace(AGENTS, &[]).expect("a namespace can be made");
    let (tenant, foreign) = ("report-tenant", "report-foreign");
    for namespace in [tenant, foreign] {
        server.namespace(namespace, &[]).expect("a namespace can be made");
    }
    let policy = allow(&[cidr("198.51.100.0/24")]);
    let revision = summary::revision(&policy.to_string());
    for namespace in [tenant, foreign] {
        server.put(&config_map(namespace, "web", &policy)).expect("it is taken");
    }
    let web = format!("{tenant}/web");
    tell(server, "node-a", &[(&web, &revision)]);
    let one = scene.start("one", &EVERY);
    until("it says that there is nowhere to report to", || {
        one.says("knows neither reports.openreports.io nor policyreports.wgpolicyk8s.io")
    });
    let seen = |state: &str| one.sum("egress_policies", &[("state", state)]);
    until("it counts what nodes tell", || {
        one.sum("egress_nodes", &[("state", "ready")]) == 1.0 && seen("in_force") >= 1.0
    });
    // Every node audits, and the policy is a NetworkPolicy all the same.
    until("there is one", || server.get(&network_policy(tenant, "egress-web")).is_ok());
    tell_as(server, "node-a", &[(&web, &revision)], true);
    until("it says that one contradicts the other", || one.says("are written all the same"));
    assert!(seen("audited") >= 1.0 && one.sum("egress_nodes", &[("state", "audit")]) == 1.0);
    tell(server, "node-a", &[(&web, &revision)]);
    until("it says that this is over", || one.says("no longer contradicts"));
    if server.as_real().is_none() {
        one.end(&scene.keeper);
        return;
    }

    define(server, "policyreports.yaml");
    let main = |object: &Value| server.get(object).ok().map(|report| result(&report, "web"));
    until("there is a PolicyReport", || main(&old(tenant)).is_some_and(|result| result["result"] == "pass"));
    let first = server.get(&old(tenant)).expect("it is there");
    let properties = &result(&first, "web")["properties"];
    assert_eq!((&properties["nodes"], &properties["pods"]), (&json!("1 of 1"), &json!("2")), "{first}");
    assert_eq!(properties["revision"], revision.as_str());
    assert_eq!(first["summary"]["pass"], 1);

    // Nothing new, nothing written.
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(version(&server.get(&old(tenant)).expect("it is there")), version(&first));
    tell(server, "node-b", &[(&web, "0000000000000000")]);
    until("it says that one node has another", || {
        main(&old(tenant)).is_some_and(|result| {
            result["result"] == "warn"
                && result["message"].as_str().is_some_and(|text| text.contains("node-b"))
        })
    });
    tell(server, "node-b", &[(&web, &revision)]);
    until("both have it", || {
        main(&old(tenant)).is_some_and(|result| result["properties"]["nodes"] == "2 of 2")
    });

    // Somebody changes it.
    server.merge(&old(tenant), &json!({ "results": [] })).expect("it is taken");
    until("it is put right", || main(&old(tenant)).is_some_and(|result| result["result"] == "pass"));

    // The newer kind takes its place, but not where somebody has the name.
    define(server, "reports.yaml");
    let mut theirs = new(foreign);
    theirs["results"] = json!([{ "policy": "theirs" }]);
    until("it can be written", || server.put(&theirs).is_ok());
    until("the newer kind is there", || main(&new(tenant)).is_some_and(|result| result["result"] == "pass"));
    until("the older one is gone", || server.get(&old(tenant)).is_err());
    until("it is told", || one.says("somebody else's, or of another controller, and stays as it is"));
    let kept = server.get(&new(foreign)).expect("it is there");
    assert_eq!(kept["results"], theirs["results"]);
    assert!(kept["metadata"].get("labels").is_none(), "{kept}");

    server.put(&config_map(tenant, "web", &json!({ "defaultAction": 5 }))).expect("it is taken");
    until("it is reported", || main(&new(tenant)).is_some_and(|result| result["result"] == "fail"));
    server.delete(&config_map(tenant, "web", &json!({}))).expect("it is deleted");
    until("it goes with the last policy", || server.get(&new(tenant)).is_err());
    assert!(server.get(&new(foreign)).is_ok());
    assert_eq!(one.sum("egress_reports_total", &[("result", "failed")]), 0.0);
    one.end(&scene.keeper);
    for namespace in [tenant, foreign] {
        server.remove_namespace(namespace).expect("it can be removed");
    }
}

/// People see the same, in each form, with an exit code that says whether somebody should look.
pub(crate) async fn asked(server: &Server) {
    server.namespace(AGENTS, &[]).expect("a namespace can be made");
    let (tenant, other) = ("status-tenant", "status-other");
    for namespace in [tenant, other] {
        server.namespace(namespace, &[]).expect("a namespace can be made");
    }
    for node in ["node-a", "node-b"] {
        // What another case has told counts no more.
        drop(server.delete(&summary_of(node)));
    }
    let policy = allow(&[cidr("198.51.100.0/24")]);
    let revision = summary::revision(&policy.to_string());
    server.put(&config_map(tenant, "web", &policy)).expect("it is taken");
    server.put(&config_map(other, "hidden\u{202e}", &policy)).expect_err("it is no name");
    let web = format!("{tenant}/web");
    tell(server, "node-a", &[(&web, &revision)]);
    server
        .put(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-a" } }))
        .expect("it is taken");

    let (code, text, notes) = status(server, &["--cluster", "-n", tenant]);
    assert_eq!((code, notes.as_str()), (Some(0), ""), "{text}");
    assert!(text.starts_with("Nodes:       1 ready, 0 not ready, 0 silent, nothing heard of 0\n"), "{text}");
    let row = text.lines().find(|line| line.contains("web")).expect("it is in the table");
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words, [tenant, "web", "in", "force", "enforce", &revision, "1/1", "2", "0", "0", "<none>"]);

    let (code, text, _) = status(server, &["--cluster", "-n", tenant, "-o", "json"]);
    let value: Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!(code, Some(0));
    assert_eq!((&value["policies"][0]["state"], &value["nodes"]["ready"]), (&json!("inForce"), &json!(1)));
    let (_, yaml, _) = status(server, &["--cluster", "-n", tenant, "-o", "yaml"]);
    assert!(yaml.contains("state: inForce"), "{yaml}");

    // A cluster that audits is as it is meant to be, unless others enforce, or some of its nodes.
    tell_as(server, "node-a", &[(&web, &revision)], true);
    let (code, text, _) = status(server, &["--cluster", "-n", tenant]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("Nodes:       0 ready, 1 only auditing, 0 not ready"), "{text}");
    assert!(text.contains("every node only audits (--audit): no policy denies anything"), "{text}");
    assert!(text.contains("web      audited   enforce"), "{text}");
    let mut made = network_policy(tenant, "egress-web");
    made["metadata"]["labels"] = json!({ "app.kubernetes.io/managed-by": "egress-agent" });
    made["metadata"]["annotations"] = json!({ "egress-agent.dev/source": web });
    let owner = uid_of(&server.get(&config_map(tenant, "web", &policy)).expect("it is there"));
    made["metadata"]["ownerReferences"] =
        json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "web", "uid": owner }]);
    made["spec"] = json!({ "podSelector": {}, "policyTypes": ["Egress"] });
    // What only says so is nothing of ours.
    let mut foreign = made.clone();
    foreign["metadata"]["name"] = "theirs".into();
    foreign["metadata"]["ownerReferences"] = json!([]);
    server.create(&foreign).expect("it is taken");
    assert_eq!(status(server, &["--cluster", "-n", tenant]).0, Some(0));
    // Every NetworkPolicy allows the pod's own node.
    made["metadata"]["annotations"][LOSSES] = "the node passes [own-node]\nmore passes [wider]".into();
    server.create(&made).expect("it is taken");
    let (code, text, _) = status(server, &["--cluster", "-n", tenant]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("1 NetworkPolicy is written all the same"), "{text}");
    let row = text.lines().find(|line| line.contains(" web ")).expect("it is in the table");
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words, [tenant, "web", "audited", "enforce", &revision, "0/1", "2", "1", "1", "<none>"]);
    for object in [&made, &foreign] {
        server.delete(object).expect("it is deleted");
    }
    tell(server, "node-b", &[(&web, &revision)]);
    let (code, text, _) = status(server, &["--cluster", "-n", tenant]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("1 node only audits (--audit)"), "{text}");
    let row = text.lines().find(|line| line.contains(" web ")).expect("it is in the table");
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words, [tenant, "web", "partly", "enforce", &revision, "1/2", "4", "0", "0", "<none>"]);
    server.delete(&summary_of("node-b")).expect("it is deleted");
    tell(server, "node-a", &[(&web, &revision)]);

    // As a plugin of kubectl it asks about the cluster, and about the context's namespace.
    let folder = tempfile::tempdir().expect("a folder can be made");
    let plugin = folder.path().join("kubectl-egress");
    let binary = std::path::absolute(agent::binary().expect("the agent is built")).expect("it has a path");
    std::os::unix::fs::symlink(binary, &plugin).expect("the folder can be written");
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(&plugin);
        command.arg("status").arg("--kubeconfig").arg(server.kubeconfig()).args(arguments);
        let said = command.env("NO_PROXY", "*").output().expect("it starts");
        (said.status.code(), String::from_utf8(said.stdout).expect("it writes text"))
    };
    let (code, said) = ask(&["-n", tenant]);
    assert!(code == Some(0) && said.contains(&revision), "{said}");
    let (code, said) = ask(&[]);
    assert!(code == Some(0) && !said.contains(tenant), "only the namespace of the context: {said}");

    // A node without an agent, and a policy that is not valid.
    server
        .put(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-b" } }))
        .expect("it is taken");
    let mut bad = config_map(tenant, "bad", &json!({}));
    bad["data"]["policy.json"] = "{\"defaultAction\": \"\u{1b}[31m\"}".into();
    server.put(&bad).expect("it is taken");
    let (code, text, _) = status(server, &["-A"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("node node-b tells nothing") && text.contains("rejected"), "{text}");
    let said: Vec<&str> = text.lines().filter(|line| line.starts_with(&format!("{tenant}/bad"))).collect();
    assert!(said.len() == 1 && said[0].contains("it is not valid: "), "its error is told once: {text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    let (code, text, _) = status(server, &["--cluster", "-n", other]);
    assert!(code == Some(1) && text.contains("No policies."), "nodes are everybody's: {text}");

    // Who may not ask the nodes is told so; who may not ask for policies has no answer.
    if server.as_real().is_some() {
        let kubeconfig = server.kubeconfig_for(tenant, "nobody").expect("it has a token");
        let (code, _, notes) = status_as(&kubeconfig, &["--cluster"]);
        assert_eq!(code, Some(2), "{notes}");
        assert!(notes.contains("forbidden") && notes.contains("--namespace"), "{notes}");
        let group = "rbac.authorization.k8s.io";
        let role = json!({
            "apiVersion": format!("{group}/v1"), "kind": "Role",
            "metadata": { "namespace": tenant, "name": "nobody-views" },
            "rules": [
                { "apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"] },
                { "apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["list"] },
            ],
        });
        server.put(&role).expect("it is taken");
        let binding = json!({
            "apiVersion": format!("{group}/v1"), "kind": "RoleBinding",
            "metadata": { "namespace": tenant, "name": "nobody-views" },
            "roleRef": { "apiGroup": group, "kind": "Role", "name": "nobody-views" },
            "subjects": [{ "kind": "ServiceAccount", "name": "nobody", "namespace": tenant }],
        });
        server.put(&binding).expect("it is taken");
        until("the right is there", || status_as(&kubeconfig, &["--cluster", "-n", tenant]).0 == Some(1));
        let (_, text, notes) = status_as(&kubeconfig, &["--cluster", "-n", tenant]);
        assert!(notes.contains("note: what nodes tell cannot be read in namespace egress-agent"), "{notes}");
        assert!(text.contains("not known") && text.contains("rejected"), "{text}");
    }
    for node in ["node-a", "node-b"] {
        server
            .delete(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node } }))
            .expect("it is deleted");
    }
    for namespace in [tenant, other] {
        server.remove_namespace(namespace).expect("it can be removed");
    }
}

fn status_as(kubeconfig: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = Command::new(agent::binary().expect("the agent is built"))
        .args(["status", "--kubeconfig"])
        .arg(kubeconfig)
        .args(arguments)
        .env("NO_PROXY", "*")
        .output()
        .expect("it starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it writes text");
    (status.code(), text(stdout), text(stderr))
}
