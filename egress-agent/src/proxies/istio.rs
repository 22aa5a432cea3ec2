//! Domain destinations as Istio ServiceEntry.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Destination, is_plain};
use crate::{
    k8s::generated::{MANAGED_BY, POLICY, SOURCE},
    policy::{
        cluster::NsName,
        generated::{label, object_name},
        model::{LabelSelector, Policy},
    },
};

/// Returns the ServiceEntry objects of destinations, which come in the order of their policies.
///
/// Names and wildcards are apart: of a wildcard Istio cannot look up addresses (`resolution: NONE`).
#[must_use]
pub fn entries(destinations: &[Destination]) -> Vec<Value> {
    let mut objects = Vec::new();
    for of_policy in destinations.chunk_by(|one, other| one.policy == other.policy) {
        let mut number = 0;
        for destination in of_policy {
            let (wild, names): (Vec<&String>, Vec<&String>) =
                destination.domains.iter().partition(|domain| domain.starts_with("*."));
            for (hosts, resolution) in [(names, "DNS"), (wild, "NONE")] {
                if hosts.is_empty() {
                    continue;
                }
                objects.push(entry(destination, &hosts, resolution, number));
                number += 1;
            }
        }
    }
    objects
}

fn entry(destination: &Destination, hosts: &[&String], resolution: &str, number: usize) -> Value {
    let id = &destination.policy.id;
    let ports = destination.ports.iter().map(|port| {
        let (name, protocol) = if is_plain(*port) { ("http", "HTTP") } else { ("tls", "TLS") };
        json!({"number": port, "name": format!("{name}-{port}"), "protocol": protocol})
    });
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {
            "namespace": id.namespace,
            "name": object_name(&id.name, number),
            "labels": {MANAGED_BY.0: MANAGED_BY.1, POLICY: label(&id.name)},
            "annotations": {SOURCE: id.to_string(), "egress-agent.dev/destination": destination.name},
        },
        "spec": {
            // The policy speaks for its own namespace.
            "exportTo": ["."],
            "hosts": hosts,
            "location": "MESH_EXTERNAL",
            "ports": ports.collect::<Vec<Value>>(),
            "resolution": resolution,
        },
    })
}

/// Returns advice, as comments: a ServiceEntry forbids nothing until a Sidecar does.
#[must_use]
pub fn advice(policies: &[&Policy]) -> String {
    let mut text = String::from(
        "# A ServiceEntry makes a name known to the mesh and forbids nothing. What is not known passes until the proxies of the pods are\n\
         # told to refuse it:\n#\n",
    );
    let mut line = |words: &str| writeln!(text, "# {words}").expect("a string takes everything");
    for policy in policies {
        let NsName { namespace, name } = &policy.id.id;
        line("apiVersion: networking.istio.io/v1");
        line("kind: Sidecar");
        line(&format!("metadata: {{namespace: {namespace}, name: {}}}", object_name(name, 0)));
        line("spec:");
        let LabelSelector { match_labels, match_expressions } = &policy.selector;
        if !match_labels.is_empty() {
            // Keys and values of labels need no escapes.
            let labels: Vec<String> =
                match_labels.iter().map(|(key, value)| format!("\"{key}\": \"{value}\"")).collect();
            line(&format!("  workloadSelector: {{labels: {{{}}}}}", labels.join(", ")));
        }
        if !match_expressions.is_empty() {
            line("  # A Sidecar selects by labels only; the policy's matchExpressions are left out.");
        }
        line("  outboundTrafficPolicy: {mode: REGISTRY_ONLY}");
        line("  egress: [{hosts: [\"./*\", \"istio-system/*\"]}]");
        line("---");
    }
    text += "#\n# The proxy is in the pod, so a pod may go around it; the kernel layer or a NetworkPolicy is what it cannot go around.\n";
    text
}
