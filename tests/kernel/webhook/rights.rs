//! The shipped roles are exactly sufficient: with them all goes well, and without any one right the webhook says which it lacks.

use std::{fs::File, path::Path, process::Command};

use egress_tests::lab::{
    agent::{self, Agent},
    rights::{self, Right},
};
use serde_json::{Value, json};

use crate::scene::{CONFIGURATION, JSON, LIMIT, OWN, PROXIES, Scene, good, until};

/// The right of people who may switch validation off: it is bound to nobody.
const OTHERS: &str = "disable-egress-validation";

/// Returns the roles that these components ship for the webhook.
fn shipped(scene: &Scene<'_>) -> Vec<Value> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/components");
    let files = ["webhook", "webhook-ranges"].map(|component| deploy.join(component).join("rbac.yaml"));
    let [first, second] = files.each_ref().map(|file| file.to_str().expect("paths are text"));
    let create = ["create", "--dry-run=client", "--validate=false", "--output", "json"];
    let said = scene.kubectl(&[&create[..], &["--filename", first, "--filename", second]].concat(), "");
    assert!(said.well, "{}", said.text);
    let mut roles = good(rights::roles(&said.text));
    roles.retain(|role| rights::of(role).iter().all(|right| right.verb != OTHERS));
    roles
}

/// A webhook without one right, or with all.
struct Case {
    right: Option<Right>,
    account: String,
    webhook: Agent,
    log: std::path::PathBuf,
}

/// Starts a webhook of its own, in a namespace and with a configuration of its own.
fn start(scene: &Scene<'_>, roles: &[Value], right: Option<Right>) -> Case {
    let account = match &right {
        Some(Right { resource, verb, .. }) => format!("rights-{verb}-{resource}"),
        None => "rights-all".to_owned(),
    };
    let server = scene.server;
    good(server.namespace(&account, &[]));
    let mut roles = roles.to_vec();
    for role in &mut roles {
        if let Some(right) = &right {
            *role = rights::without(role, right);
        }
        for rule in role["rules"].as_array_mut().expect("a role has rules") {
            if rule["resources"] == json!(["validatingwebhookconfigurations"]) {
                assert_eq!(rule["resourceNames"], json!(["egress-agent"]));
                rule["resourceNames"] = json!([account]);
            }
        }
    }
    good(rights::grant(server, &account, OWN, &roles));
    let mut configuration = good(server.request("GET", CONFIGURATION, JSON, &Value::Null));
    configuration["metadata"] = json!({ "name": account });
    // Nobody is ever asked.
    for webhook in configuration["webhooks"].as_array_mut().expect("it has some") {
        webhook["clientConfig"]["caBundle"] = Value::Null;
        webhook["namespaceSelector"] = json!({ "matchLabels": { "nobody": "has-it" } });
    }
    good(server.put(&configuration));
    if right.as_ref().is_some_and(|right| right.resource == "secrets" && right.verb == "update") {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": { "namespace": account, "name": "egress-webhook-certificates" },
        });
        good(server.put(&secret));
    }
    let telemetry = good(agent::free_address());
    let log = scene.folder.path().join(format!("{account}.log"));
    let mut command = Command::new(good(agent::binary()));
    for proxy in PROXIES {
        command.env_remove(proxy);
    }
    command
        .args(["webhook", "--namespace", &account, "--configuration", &account])
        .args(["--ranges-namespace", "egress-controller", "--farewell", "0s"])
        .args(["--listen", &good(agent::free_address()).to_string(), "--telemetry", &telemetry.to_string()])
        .arg("--kubeconfig")
        .arg(good(server.kubeconfig_for(&account, &account)))
        .stderr(File::create(&log).expect("a log can be made"));
    Case { right, account, webhook: good(Agent::listening(command, telemetry, &scene.keeper)), log }
}

impl Case {
    fn says(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log is there")
    }

    fn end(self, scene: &Scene<'_>) {
        good(self.webhook.kill(&scene.keeper));
        let configuration = CONFIGURATION.replace("egress-agent", &self.account);
        good(scene.server.request("DELETE", &configuration, JSON, &json!({})));
    }
}

pub(crate) fn named(scene: &Scene<'_>, _: &str) {
    let roles = shipped(scene);
    assert_eq!(roles.len(), 3, "{roles:?}");
    let mut case = start(scene, &roles, None);
    good(case.webhook.wait_ready(LIMIT));
    let configuration = CONFIGURATION.replace("egress-agent", &case.account);
    until("the API server is told whom to trust", || {
        let configuration = good(scene.server.request("GET", &configuration, JSON, &Value::Null));
        configuration["webhooks"][0]["clientConfig"]["caBundle"].is_string()
    });
    assert!(!case.says().contains("forbidden"), "{}", case.says());
    case.end(scene);

    let all = roles.iter().flat_map(rights::of);
    let cases: Vec<Case> = all.map(|right| start(scene, &roles, Some(right))).collect();
    for case in cases {
        let right = case.right.clone().expect("it lacks one");
        until(&format!("it says that it {}", right.missing()), || {
            case.says().replace('\\', "").contains(&right.missing())
        });
        assert_eq!(good(case.webhook.get("/healthz")).0, 200, "without {right:?}");
        let (code, reasons) = good(case.webhook.get("/readyz"));
        if matches!(
            (right.resource.as_str(), right.verb.as_str()),
            ("secrets", "get" | "create" | "update") | ("namespaces", "list")
        ) {
            assert!(code == 503 && reasons.contains(&right.missing()), "without {right:?}: {reasons}");
        }
        println!("without {} on {}: {code} {reasons}", right.verb, right.resource);
        case.end(scene);
    }
}
