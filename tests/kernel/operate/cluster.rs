//! The doctor from outside.

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use egress_tests::lab::{
    agent,
    api::{Server, real},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};

use crate::scene::{Said, ask, good};

const GOOD: &str = r#"{"defaultAction": "deny", "allowedDestinations": []}"#;
const JSON_PATCH: &str = "application/json-patch+json";

fn doctor(server: &Server) -> Said {
    let mut command = Command::new(good(agent::binary()));
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(proxy);
    }
    ask(command.args(["doctor", "--cluster", "-o", "json", "--kubeconfig"]).arg(server.kubeconfig()))
}

fn policy(namespace: &str, name: &str, text: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "namespace": namespace, "name": name, "labels": { "egress-controller": "managed" } },
        "data": { "policy.json": text },
    })
}

fn event(namespace: &str, number: usize, note: &str) -> Value {
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": { "namespace": namespace, "name": format!("denied-{number}") },
        "eventTime": "2026-11-22T10:00:00.000000Z", "reason": "EgressDenied", "type": "Warning", "action": "Connect",
        "reportingController": "egress-agent", "reportingInstance": "node-a", "note": note,
        "regarding": { "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": "web", "uid": "u" },
    })
}

/// The namespaces, policies and denials of a cluster in which names are denied.
fn names_are_denied(server: &Server) {
    good(server.namespace("shop", &[("egress-validation", "enabled")]));
    good(server.namespace("cart", &[]));
    good(server.put(&policy("shop", "web", GOOD)));
    good(server.put(&policy("cart", "broken", r#"{"defaultAction": "perhaps"}"#)));
    for number in 0..4 {
        let note = "UDP to 10.96.0.10 port 53 was denied: no destination allows it";
        good(server.put(&event("shop", number, note)));
    }
}

fn has(said: &Said, wanted: &str) {
    let findings = said.findings(&[]);
    assert!(findings.iter().any(|finding| finding.contains(wanted)), "{wanted} is not in {findings:#?}");
}

/// The double serves few kinds: what it does not serve is told, and the rest is judged.
#[test]
fn on_the_double() {
    let server = good(Server::double());
    names_are_denied(&server);
    let said = doctor(&server);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.findings(&[])[0].starts_with("dns critical"), "{said:?}");
    has(&said, "policy cart/broken is not in force as it is written: Invalid defaultAction: perhaps");
    has(&said, "namespace cart has policies, and not the label");
    assert!(said.unchecked().contains(&"the agents".to_owned()), "{said:?}");
    good(server.stop());
    let said = doctor(&server);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.errors.contains("the API server cannot be asked"), "{said:?}");
}

#[test]
fn on_a_real_server() {
    let binaries = match real::binaries() {
        Ok(binaries) => binaries,
        Err(error) => return skip(&format!("{error:#}")),
    };
    let Some(kubectl) = kubectl() else { return skip("there is no kubectl") };
    let server = good(Server::real(&binaries, &real::Settings::default()));

    let said = doctor(&server);
    assert_eq!(said.unchecked(), [""; 0], "{said:?}");
    has(&said, "agents critical: there is no DaemonSet");
    has(&said, "webhook warning: there is no webhook configuration");

    // Before there is a webhook that nobody answers for.
    names_are_denied(&server);
    install(&server, &kubectl);
    let said = doctor(&server);
    assert_eq!((said.code, said.unchecked()), (Some(1), Vec::new()), "{said:?}");
    assert!(said.findings(&[])[0].starts_with("dns critical"), "{said:?}");
    for wanted in [
        "dns critical: the Service kube-system/kube-dns, which is to answer names, does not exist",
        "dns critical: most of what is denied asks for names: 4 of 4 denials in Events are of port 53, in shop",
        "agents critical: the DaemonSet of agents fits no node",
        "webhook critical: the caBundle of egress-agent is empty",
        "certificate critical: there is no Secret egress-webhook/egress-webhook-certificates",
        "endpoints critical: no webhook is ready",
        "controller critical: no controller is ready",
        "controller critical: there is no Lease in egress-controller",
        "policies critical: policy cart/broken",
        "validation warning: namespace cart",
    ] {
        has(&said, wanted);
    }

    mend(&server);
    let said = doctor(&server);
    assert_eq!(said.findings(&["nodes"]), [""; 0], "{said:?}");
    assert_eq!((said.code, said.unchecked()), (Some(0), Vec::new()), "{said:?}");
}

pub(crate) fn skip(why: &str) {
    // Past the harness, which shows nothing of tests that pass, and which may have begun a line.
    let line = format!("\nSKIPPED cluster: {why}\n");
    std::io::stdout().write_all(line.as_bytes()).expect("standard output is open");
}

pub(crate) fn kubectl() -> Option<PathBuf> {
    let assets = env::var_os(real::VARIABLE)
        .map_or_else(|| PathBuf::from("/usr/local/kubebuilder/bin"), PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = std::iter::once(assets).chain(env::split_paths(&path));
    folders.find_map(|folder| Some(folder.join("kubectl")).filter(|path| path.is_file()))
}

/// Applies what is shipped.
fn install(server: &Server, kubectl: &Path) {
    let folder = tempfile::Builder::new().prefix("egress-doctor-").tempdir().expect("a folder can be made");
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let deploy = deploy.canonicalize().expect("the manifests are in the checkout");
    // kustomize takes no absolute paths.
    let up = "../".repeat(folder.path().components().count() - 1);
    let deploy = format!("{up}{}", deploy.strip_prefix("/").expect("it is absolute").display());
    let components = ["webhook", "controller"].map(|name| format!("{deploy}/components/{name}")).join(", ");
    let text = format!("resources: [{deploy}/base]\ncomponents: [{components}]\n");
    fs::write(folder.path().join("kustomization.yaml"), text).expect("a file can be written");
    let mut command = Command::new(kubectl);
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(proxy);
    }
    command.arg("--kubeconfig").arg(server.kubeconfig()).args(["apply", "--kustomize"]).arg(folder.path());
    let output = good(command.output().context("kubectl starts"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Does what controllers, kubelets and people would do.
fn mend(server: &Server) {
    let apps = |kind: &str, namespace: &str, name: &str| json!({ "apiVersion": "apps/v1", "kind": kind, "metadata": { "namespace": namespace, "name": name } });
    let rolled_out = json!({
        "observedGeneration": 9, "desiredNumberScheduled": 1, "currentNumberScheduled": 1, "numberMisscheduled": 0,
        "numberReady": 1, "updatedNumberScheduled": 1,
    });
    good(server.set_status(&apps("DaemonSet", "egress-agent", "egress-agent"), &rolled_out));
    let ready = json!({ "observedGeneration": 9, "replicas": 2, "readyReplicas": 2, "updatedReplicas": 2 });
    good(server.set_status(&apps("Deployment", "egress-controller", "egress-controller"), &ready));
    let (ca, leaf) = certificates();
    let patch =
        json!([{ "op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": base64(ca.as_bytes()) }]);
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/egress-agent";
    good(server.request("PATCH", path, JSON_PATCH, &patch));
    good(server.create(&json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": { "namespace": "egress-webhook", "name": "egress-webhook-certificates" },
        "stringData": { "tls.crt": leaf },
    })));
    let slice = |namespace: &str, service: &str, addresses: &[&str]| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "namespace": namespace, "name": format!("{service}-1"), "labels": { "kubernetes.io/service-name": service } },
            "endpoints": addresses.iter().map(|address| json!({ "addresses": [address], "conditions": { "ready": true } })).collect::<Vec<_>>(),
            "ports": [{ "name": "one", "port": 443 }],
        })
    };
    good(server.create(&slice("egress-webhook", "egress-webhook", &["10.244.0.2", "10.244.0.3"])));
    good(server.create(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "kube-system", "name": "kube-dns" },
        "spec": { "ports": [{ "port": 53, "protocol": "UDP" }] },
    })));
    good(server.create(&slice("kube-system", "kube-dns", &["10.244.0.4"])));
    let now = "%Y-%m-%dT%H:%M:%S.000000Z";
    good(server.create(&json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "namespace": "egress-controller", "name": "egress-controller" },
        "spec": { "holderIdentity": "a", "leaseDurationSeconds": 15, "renewTime": jiff::Timestamp::now().strftime(now).to_string() },
    })));
    good(server.delete(&policy("cart", "broken", "")));
    for number in 0..4 {
        good(server.delete(&event("shop", number, "")));
    }
}

/// Returns a CA and a certificate of the webhook that it has signed, as PEM.
fn certificates() -> (String, String) {
    let mut params = CertificateParams::new(vec!["ca".to_owned()]).expect("a name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = || KeyPair::generate().expect("a key can be made");
    let ca = CertifiedIssuer::self_signed(params, key()).expect("it can be signed");
    let names = vec!["egress-webhook.egress-webhook.svc".to_owned()];
    let leaf =
        CertificateParams::new(names).expect("names").signed_by(&key(), &ca).expect("it can be signed");
    (ca.pem(), leaf.pem())
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |word: u32, shift: u32| char::from(DIGITS[(word >> shift & 63) as usize]);
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |place: usize| u32::from(chunk.get(place).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        text.extend([digit(word, 18), digit(word, 12)]);
        text.push(if chunk.len() > 1 { digit(word, 6) } else { '=' });
        text.push(if chunk.len() > 2 { digit(word, 0) } else { '=' });
    }
    text
}
