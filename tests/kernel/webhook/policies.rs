//! What people see who write policies.

use std::time::Duration;

use serde_json::{Value, json};

use crate::scene::{GOOD, LIMIT, Scene, good, policy, until};

const BAD: &str = r#"{ "defaultAction": "deny",
  "allowedDestinations": [
    {"name": "s3", "cidr": "192.0.2.0/24", "ports": [443]},

    {"name": "db",   "cidr": "10.1.0.0/99", "ports": [5432]},
    {"name": "db",  "cidr": "10.2.0.0/24", "ports": [5432]} ] }"#;

pub(crate) fn refusal(scene: &Scene<'_>, name: &str) {
    let namespace = scene.validated(&format!("{name}-shop"));
    let said = scene.apply(&policy(&namespace, "egress", BAD));
    assert!(!said.well, "{}", said.text);
    let wanted = "admission webhook \"policies.egress-agent.dev\" denied the request: Policy validation failed: \
                  Invalid CIDR format: 10.1.0.0/99 (allowedDestinations[1].cidr, line 5 column 30); ";
    assert!(said.text.contains(wanted), "{}", said.text);
    let second = "also: ";
    assert!(said.text.contains(second), "all errors at once: {}", said.text);
    assert!(said.text.contains("line 6 column "), "{}", said.text);
    println!("{}", said.text.trim());
    let written = scene.server.get(&policy(&namespace, "egress", BAD));
    assert!(written.is_err(), "it was written: {written:?}");
}

pub(crate) fn acceptance(scene: &Scene<'_>, name: &str) {
    let namespace = scene.validated(&format!("{name}-shop"));
    let said = scene.apply(&policy(&namespace, "egress", GOOD));
    assert!(said.well && said.text.contains("configmap/egress created"), "{}", said.text);
    assert!(!said.text.contains("Warning"), "{}", said.text);
    let mut two = policy(&namespace, "two", GOOD);
    two["data"]["notes.txt"] = "for people".into();
    let said = scene.apply(&two);
    assert!(said.well, "{}", said.text);
    assert!(
        said.text.contains("Warning: only the key policy.json is read; ignored: notes.txt"),
        "{}",
        said.text
    );
    let past = r#"{"defaultAction": "deny", "allowedDestinations": [{"name": "old", "cidr": "10.1.0.0/24", "ports": [5432],
        "governance": {"expiry": "2024-03-31"}}]}"#;
    let said = scene.apply(&policy(&namespace, "past", past));
    assert!(said.well && said.text.contains("Warning: "), "{}", said.text);
    assert!(said.text.contains("old"), "{}", said.text);
    println!("{}", said.text.trim());
    // The policy that is there may be annotated, and made worse it may not.
    let said = scene.kubectl(&["-n", &namespace, "annotate", "configmap", "egress", "seen=yes"], "");
    assert!(said.well, "{}", said.text);
    let said = scene.apply(&policy(&namespace, "egress", BAD));
    assert!(!said.well && said.text.contains("Invalid CIDR format"), "{}", said.text);
    let metrics = good(scene.with(egress_tests::lab::agent::Agent::metrics));
    assert!(metrics.sum("egress_admission_requests_total", &[("verdict", "allowed")]) >= 4.0);
    assert!(metrics.sum("egress_admission_requests_total", &[("verdict", "refused")]) >= 1.0);
    assert!(metrics.sum("egress_admission_seconds_count", &[]) >= 5.0);
    assert!(metrics.sum("egress_webhook_certificate_expiry_timestamp_seconds", &[]) > 1.7e9);
    assert!(metrics.sum("egress_webhook_certificate_reloads_total", &[("result", "good")]) >= 1.0);
}

pub(crate) fn scope(scene: &Scene<'_>, name: &str) {
    let open = format!("{name}-open");
    good(scene.server.namespace(&open, &[]));
    assert!(scene.apply(&policy(&open, "bad", BAD)).well, "nobody asked for validation there");
    let namespace = scene.validated(&format!("{name}-shop"));
    let mut plain = policy(&namespace, "plain", BAD);
    plain["metadata"]["labels"] = json!({});
    assert!(scene.apply(&plain).well, "it is no policy");
    // The switch as people use it.
    let said = scene.kubectl(&["label", "namespace", &open, "egress-validation=enabled"], "");
    assert!(said.well, "{}", said.text);
    until("validation is on", || !scene.apply(&policy(&open, "worse", BAD)).well);
}

pub(crate) fn label(scene: &Scene<'_>, name: &str) {
    let namespace = scene.validated(&format!("{name}-shop"));
    let mut plain = policy(&namespace, "late", BAD);
    plain["metadata"]["labels"] = json!({});
    assert!(scene.apply(&plain).well);
    let to_label = ["-n", &namespace, "label", "configmap", "late", "egress-controller=managed"];
    let said = scene.kubectl(&to_label, "");
    assert!(!said.well && said.text.contains("Invalid CIDR format"), "{}", said.text);
    plain["data"]["policy.json"] = GOOD.into();
    assert!(scene.apply(&plain).well);
    assert!(scene.kubectl(&to_label, "").well, "now it is good");
    let said = scene.kubectl(&["-n", &namespace, "label", "configmap", "late", "egress-controller-"], "");
    assert!(said.well, "{}", said.text);
    assert!(
        said.text.contains(&format!("the ConfigMap {namespace}/late is no policy any more")),
        "{}",
        said.text
    );
}

pub(crate) fn governance(scene: &Scene<'_>, name: &str) {
    let namespace = scene.validated(&format!("{name}-shop"));
    let said =
        scene.kubectl(&["annotate", "namespace", &namespace, "egress-agent.dev/governance=requird"], "");
    assert!(said.well, "{}", said.text);
    // The webhook hears of it on its own.
    let mut number = 0;
    until("the webhook doubts the annotation", || {
        number += 1;
        let said = scene.apply(&policy(&namespace, &format!("p{number}"), GOOD));
        said.well && said.text.contains("did you mean required?")
    });
}

pub(crate) fn outage(scene: &Scene<'_>, name: &str) {
    let namespace = scene.validated(&format!("{name}-shop"));
    let open = format!("{name}-open");
    good(scene.server.namespace(&open, &[]));
    // Asked to end, it answers for a while, and then ends well.
    let status = good(scene.take().terminate(&scene.keeper));
    assert!(status.success(), "{status}\n{}", scene.log());
    let said = scene.apply(&policy(&namespace, "egress", GOOD));
    assert!(!said.well && said.text.contains("failed calling webhook"), "closed: {}", said.text);
    let mut plain = policy(&namespace, "plain", "no policy");
    plain["metadata"]["labels"] = json!({});
    assert!(scene.apply(&plain).well, "other ConfigMaps of the namespace are not held up");
    assert!(scene.apply(&policy(&open, "egress", GOOD)).well, "nor are namespaces without validation");
    assert!(scene.apply(&policy("kube-system", "egress", GOOD)).well, "nor is the system");
    let label = json!({ "metadata": { "labels": { "egress-validation": "enabled" } } });
    let own = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "egress-webhook" } });
    good(scene.server.merge(&own, &label));
    assert!(scene.apply(&policy("egress-webhook", "egress", GOOD)).well, "nor is what it needs itself");
    // Back again, all is as before: the certificates are those in the Secret.
    let before: Value = scene.configuration()["webhooks"][0]["clientConfig"]["caBundle"].clone();
    let began = std::time::Instant::now();
    scene.start(&[]);
    assert!(began.elapsed() < LIMIT - Duration::from_secs(1));
    assert_eq!(scene.configuration()["webhooks"][0]["clientConfig"]["caBundle"], before);
    assert!(scene.apply(&policy(&namespace, "egress", GOOD)).well);
}
