//! The shipped roles are exactly sufficient: with them all goes well, and without any one right the controller says which it lacks.

use std::{path::Path, process::Command};

use egress_agent::k8s::published;
use egress_tests::lab::{
    api::Server,
    rights::{self, Right},
};
use serde_json::{Value, json};

use crate::{
    policies::{allow, cidr, config_map, network_policy},
    ranges::{Controller, Scene, kubectl, until},
    reports, startup,
};

/// The namespace of the shipped controller.
const HOME: &str = "egress-controller";
const TENANT: &str = "rights-tenant";
/// A namespace without policies.
const EMPTY: &str = "rights-empty";
/// How many controllers run side by side.
const AT_ONCE: usize = 8;

/// Returns the roles that these components ship for the controller.
fn shipped(server: &Server) -> Vec<Value> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/components");
    let mut command = Command::new(kubectl());
    command.arg("--kubeconfig").arg(server.kubeconfig());
    command.args(["create", "--dry-run=client", "--validate=false", "--output", "json"]);
    for component in ["controller", "controller-startup-taint"] {
        command.arg("--filename").arg(deploy.join(component).join("rbac.yaml"));
    }
    let said = command.env("NO_PROXY", "*").output().expect("kubectl starts");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    rights::roles(&String::from_utf8(said.stdout).expect("it prints text")).expect("it prints JSON")
}

/// A controller without one right.
struct Case<'a> {
    right: Right,
    scene: Scene<'a>,
    running: Controller,
}

/// What is there before a controller starts, so that it comes to use each of its rights.
fn prepare(server: &Server, account: &str, right: &Right) -> Vec<&'static str> {
    // Those that write in namespaces of others would be in each other's way.
    let mut arguments = vec!["--network-policies", "off", "--reports", "off", "--reports-every", "1"];
    match (right.resource.as_str(), right.verb.as_str()) {
        ("networkpolicies", verb) if !matches!(verb, "list" | "watch") => arguments[1] = "on",
        ("configmaps", "delete") => {
            // A chunk that no head names.
            let name = format!("{}-{}", published::head_name("aws"), "0".repeat(32));
            server
                .put(&json!({
                    "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": { "namespace": account, "name": name, "labels": { published::LABEL: "aws" } },
                }))
                .expect("it is taken");
        }
        ("policyreports" | "reports", verb) => {
            let older = right.resource == "policyreports";
            arguments[3] = if older { "policyreport" } else { "openreports" };
            if verb == "delete" {
                // One of its own, in a namespace without policies.
                let mut report = if older { reports::old(EMPTY) } else { reports::new(EMPTY) };
                report["metadata"]["labels"] = json!({ "app.kubernetes.io/managed-by": "egress-agent" });
                let instance = format!("{account}/{HOME}");
                report["metadata"]["annotations"] = json!({ "egress-agent.dev/controller": instance });
                server.put(&report).expect("it is taken");
            }
        }
        ("nodes", "get" | "patch") => {
            arguments.extend(["--startup-taint", startup::TAINT, "--agent-namespace", startup::AGENTS]);
        }
        _ => {}
    }
    arguments
}

/// Starts a controller that has the shipped roles without this right.
fn start<'a>(server: &'a Server, roles: &[Value], right: Right) -> Case<'a> {
    let Right { group, resource, verb } = &right;
    let group = if group.is_empty() { "core" } else { group.split('.').next().expect("it has a name") };
    let account = format!("rights-{verb}-{resource}-{group}");
    let scene = Scene::of_account(server, &account);
    scene.provide(100, &[("192.0.2.0/24", "us-east-1")]);
    let less: Vec<Value> = roles.iter().map(|role| rights::without(role, &right)).collect();
    assert_ne!(less, roles, "{right:?} is taken away");
    rights::grant(server, &account, HOME, &less).expect("they are taken");
    let arguments = prepare(server, &account, &right);
    let running = scene.start(verb, &arguments);
    Case { right, scene, running }
}

/// Waits until each of them says what it lacks; then they end.
fn hear(cases: Vec<Case<'_>>) {
    for Case { right, scene, running } in cases {
        until(&format!("it says that it {}", right.missing()), || {
            running.log().replace('\\', "").contains(&right.missing())
        });
        assert_eq!(running.get("/healthz").0, 200, "without {right:?}");
        let (code, reasons) = running.get("/readyz");
        if right.resource == "leases" && right.verb != "patch" {
            assert!(code == 503 && reasons.contains(&right.missing()), "without {right:?}: {reasons}");
        }
        println!("without {} on {}: {code} {reasons}", right.verb, right.resource);
        running.kill(&scene.keeper);
    }
}

/// With all rights nothing fails, whatever there is to do.
fn enough(server: &Server, roles: &[Value]) {
    let account = "rights-all";
    let scene = Scene::of_account(server, account);
    scene.provide(100, &[("192.0.2.0/24", "us-east-1")]);
    rights::grant(server, account, HOME, roles).expect("they are taken");
    let chunk = Right { group: String::new(), resource: "configmaps".to_owned(), verb: "delete".to_owned() };
    prepare(server, account, &chunk);
    let running = scene.start(
        "all",
        &["--reports-every", "1", "--startup-taint", startup::TAINT, "--agent-namespace", startup::AGENTS],
    );
    until("the policy is a NetworkPolicy", || server.get(&network_policy(TENANT, "egress-web")).is_ok());
    until("a name is taken", || running.says("is somebody else's"));
    until("there is a Report", || server.get(&reports::new(TENANT)).is_ok());
    let tainted = || server.get(&startup::node("rights-node", &[])).expect("it is there").to_string();
    until("the node takes pods", || !tainted().contains(startup::TAINT));
    server.delete(&config_map(TENANT, "web", &json!({}))).expect("it is deleted");
    server.delete(&config_map(TENANT, "taken", &json!({}))).expect("it is deleted");
    until("its object goes", || server.get(&network_policy(TENANT, "egress-web")).is_err());
    until("the Report goes", || server.get(&reports::new(TENANT)).is_err());
    for (family, label, outcome) in [
        ("egress_generated_writes_total", "result", "failed"),
        ("egress_reports_total", "result", "failed"),
        ("egress_controller_events_total", "outcome", "failed"),
        ("egress_cloud_ranges_refreshes_total", "result", "failed"),
    ] {
        assert!(running.sum(family, &[(label, outcome)]).abs() < 0.5, "{family}");
    }
    assert!(running.sum("egress_controller_events_total", &[("outcome", "sent")]) > 0.5);
    assert_eq!(running.get("/readyz").0, 200);
    assert!(!running.log().contains("forbidden"), "{}", running.log());
    running.end(&scene.keeper);
}

pub(crate) async fn named(server: &Server) {
    if server.as_real().is_none() {
        return;
    }
    let roles = shipped(server);
    assert_eq!(roles.len(), 3, "{roles:?}");
    server.namespace(reports::AGENTS, &[]).expect("a namespace can be made");
    for namespace in [TENANT, EMPTY] {
        server.namespace(namespace, &[]).expect("a namespace can be made");
    }
    for file in ["policyreports.yaml", "reports.yaml"] {
        reports::define(server, file);
    }
    until("both kinds of Report are known", || {
        [reports::old(EMPTY), reports::new(EMPTY)]
            .iter()
            .all(|report| server.put(report).is_ok() && server.delete(report).is_ok())
    });
    // It speaks of something of every kind.
    let peers = json!({ "name": "peers", "pods": { "podSelector": {} } });
    let policy = allow(&[cidr("198.51.100.0/24"), peers, json!({ "name": "world", "entity": "world" })]);
    let mut foreign = network_policy(TENANT, "egress-taken");
    foreign["spec"] = json!({ "podSelector": {}, "policyTypes": ["Egress"] });
    server.create(&foreign).expect("it is taken");
    let put = || {
        for name in ["web", "taken"] {
            server.put(&config_map(TENANT, name, &policy)).expect("it is taken");
        }
    };
    put();
    startup::account(server);
    server.create(&startup::node("rights-node", &[startup::TAINT])).expect("a node can be made");
    server.create(&startup::agent("rights-node")).expect("a pod can be made");
    server.set_status(&startup::agent("rights-node"), &startup::is_ready("True")).expect("it is ready");

    enough(server, &roles);
    put();
    let tainted = json!({ "spec": { "taints": [{ "key": startup::TAINT, "effect": "NoSchedule" }] } });
    server.merge(&startup::node("rights-node", &[]), &tainted).expect("it is taken");

    // Of those that write NetworkPolicies, these two write all the others, so they come last.
    let is_last = |right: &Right| {
        right.resource == "networkpolicies" && matches!(right.verb.as_str(), "get" | "delete")
    };
    let mut all: Vec<Right> = roles.iter().flat_map(rights::of).collect();
    all.sort_by_key(is_last);
    let last = all.iter().position(is_last).expect("there are two");
    let (first, last) = all.split_at(last);
    for some in first.chunks(AT_ONCE) {
        hear(some.iter().map(|right| start(server, &roles, right.clone())).collect());
    }
    let cases: Vec<Case<'_>> = last.iter().map(|right| start(server, &roles, right.clone())).collect();
    until("there is something to delete", || server.get(&network_policy(TENANT, "egress-web")).is_ok());
    server.delete(&config_map(TENANT, "web", &json!({}))).expect("it is deleted");
    hear(cases);

    server.delete(&startup::agent("rights-node")).expect("it is deleted");
    server.delete(&startup::node("rights-node", &[])).expect("it is deleted");
    for namespace in [TENANT, EMPTY] {
        server.remove_namespace(namespace).expect("it can be removed");
    }
}
