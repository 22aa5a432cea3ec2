//! What the API server judges by itself, and what the webhook may do.

use serde_json::{Value, json};

use crate::scene::{GOOD, JSON, OWN, Scene, good, policy, until};

pub(crate) fn shape(scene: &Scene<'_>, name: &str) {
    let namespace = scene.validated(&format!("{name}-shop"));
    let mut keyless = policy(&namespace, "keyless", GOOD);
    keyless["data"] = json!({ "policy.yaml": GOOD });
    let said = scene.apply(&keyless);
    assert!(!said.well, "{}", said.text);
    assert!(said.text.contains("ValidatingAdmissionPolicy 'egress-policy-shape'"), "{}", said.text);
    assert!(said.text.contains("Policy validation failed: no text under `policy.json`"), "{}", said.text);
    let large = format!("{GOOD}{}", " ".repeat(524_288));
    let refused = scene.dry_run(&policy(&namespace, "large", &large)).expect_err("it is too large");
    let refused = format!("{refused:#}");
    assert!(refused.contains("characters, at most 524288 are taken; split it"), "{refused}");
    let fits = format!("{GOOD}{}", " ".repeat(524_288 - GOOD.len()));
    good(scene.dry_run(&policy(&namespace, "fits", &fits)));
    // Where nobody asked for validation, nothing is.
    let open = format!("{name}-open");
    good(scene.server.namespace(&open, &[]));
    keyless["metadata"]["namespace"] = open.clone().into();
    assert!(scene.apply(&keyless).well);
    // What was there before may be annotated, though not become another that is as bad.
    let said = scene.kubectl(&["label", "namespace", &open, "egress-validation=enabled"], "");
    assert!(said.well, "{}", said.text);
    let mut other = keyless.clone();
    other["metadata"]["name"] = "other".into();
    until("validation is on", || !scene.apply(&other).well);
    let said = scene.kubectl(&["-n", &open, "annotate", "configmap", "keyless", "seen=yes"], "");
    assert!(said.well, "{}", said.text);
    keyless["data"] = json!({ "policy.json": large });
    let refused = scene.server.update(&keyless).expect_err("a change is judged");
    assert!(format!("{refused:#}").contains("at most 524288"), "{refused:#}");
}

pub(crate) fn switch(scene: &Scene<'_>, name: &str) {
    let namespace = scene.validated(&format!("{name}-tenant"));
    let group = "rbac.authorization.k8s.io";
    let role = json!({
        "apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": { "name": "namespace-editor" },
        "rules": [{
            "apiGroups": [""], "resources": ["namespaces", "namespaces/status", "namespaces/finalize"],
            "verbs": ["get", "patch", "update"],
        }],
    });
    good(scene.server.put(&role));
    let bind = |role: &str, to: &str| {
        let binding = json!({
            "apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding",
            "metadata": { "name": format!("{role}-{to}") },
            "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "name": to, "namespace": "default" }],
        });
        good(scene.server.put(&binding));
    };
    let tenant = good(scene.server.kubeconfig_for("default", "tenant"));
    bind("namespace-editor", "tenant");
    until("the tenant may edit namespaces", || {
        scene.kubectl_as(&tenant, &["annotate", "namespace", &namespace, "--overwrite", "a=b"], "").well
    });
    let try_it = ["label", "namespace", &namespace, "--dry-run=server", "egress-validation-"];
    until("the server has taken the guard up", || !scene.kubectl_as(&tenant, &try_it, "").well);
    for change in ["egress-validation-", "egress-validation=disabled", "egress-validation="] {
        let said = scene.kubectl_as(&tenant, &["label", "namespace", &namespace, "--overwrite", change], "");
        assert!(!said.well, "{change}: {}", said.text);
        let wanted = format!(
            "the label egress-validation=enabled of the namespace {namespace} may be changed only by who has the verb"
        );
        assert!(said.text.contains(&wanted), "{}", said.text);
    }
    // What carries an update of a part carries labels, too.
    let path = format!("/api/v1/namespaces/{namespace}");
    let mut object = good(scene.server.request("GET", &path, JSON, &Value::Null));
    object["metadata"]["labels"].as_object_mut().expect("it has labels").remove("egress-validation");
    object["metadata"].as_object_mut().expect("it has a name").remove("resourceVersion");
    for part in ["", "/status", "/finalize"] {
        let replace = ["replace", "--raw", &format!("{path}{part}"), "-f", "-"];
        let said = scene.kubectl_as(&tenant, &replace, &object.to_string());
        assert!(
            !said.well && said.text.contains("may be changed only by who has the verb"),
            "{part}: {}",
            said.text
        );
    }
    // On is for everybody.
    let open = format!("{name}-open");
    good(scene.server.namespace(&open, &[("egress-validation", "disabled")]));
    let on = ["label", "namespace", &open, "--overwrite", "egress-validation=enabled"];
    let said = scene.kubectl_as(&tenant, &on, "");
    assert!(said.well, "{}", said.text);
    // With the shipped role the tenant may.
    let off = ["label", "namespace", &namespace, "egress-validation-"];
    bind("egress-validation-disable", "tenant");
    until("the tenant may switch it off", || scene.kubectl_as(&tenant, &off, "").well);
    // And so may an administrator.
    let said = scene.kubectl(&["label", "namespace", &open, "egress-validation-"], "");
    assert!(said.well, "{}", said.text);
}

pub(crate) fn rights(scene: &Scene<'_>, _: &str) {
    let kubeconfig = good(scene.server.kubeconfig_for(OWN, OWN));
    let can = |arguments: &[&str]| {
        let said = scene.kubectl_as(&kubeconfig, &[&["auth", "can-i"], arguments].concat(), "");
        said.text.contains("yes")
    };
    for may in [
        &["get", "secret/egress-webhook-certificates", "-n", OWN][..],
        &["update", "secret/egress-webhook-certificates", "-n", OWN],
        &["watch", "namespaces"],
        &["patch", "validatingwebhookconfigurations/egress-agent"],
    ] {
        assert!(can(may), "{may:?}");
    }
    for may_not in [
        &["get", "secret/other", "-n", OWN][..],
        &["list", "secrets", "-n", OWN],
        &["get", "secret/egress-webhook-certificates", "-n", "default"],
        &["delete", "secret/egress-webhook-certificates", "-n", OWN],
        &["list", "configmaps", "-n", "default"],
        &["patch", "namespaces"],
        &["patch", "validatingwebhookconfigurations/other"],
        &["delete", "validatingwebhookconfigurations/egress-agent"],
        &["disable-egress-validation", "namespaces"],
    ] {
        assert!(!can(may_not), "{may_not:?}");
    }
    // A watch of the one Secret is a list of those with its name.
    let one = ["get", "secrets", "-n", OWN, "--field-selector", "metadata.name=egress-webhook-certificates"];
    let said = scene.kubectl_as(&kubeconfig, &one, "");
    assert!(said.well, "{}", said.text);
    let path = format!("/api/v1/namespaces/{OWN}/secrets/egress-webhook-certificates");
    let secret = good(scene.server.request("GET", &path, JSON, &Value::Null));
    let mut keys: Vec<&str> =
        secret["data"].as_object().expect("it has data").keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["ca.crt", "ca.key", "tls.crt", "tls.key"]);
    assert!(!scene.log().contains("PRIVATE"), "no key is ever logged");
}
