//! A node with one pod and the real agent, and programs that are run on it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use egress_tests::lab::{
    Driver, Host, Lab, Pod, Qos,
    agent::{self, Agent},
};
use serde_json::Value;

const UID: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// How long the agent may take for anything. Debug builds on busy machines are slow.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);

/// Returns a value, or fails with what is behind the error.
#[track_caller]
pub(crate) fn good<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error:#}"))
}

/// A lab with one pod, one host outside, and manifests.
pub(crate) struct Node {
    pub(crate) pod: Pod,
    pub(crate) out: Arc<Host>,
    pub(crate) manifests: PathBuf,
    pub(crate) pins: PathBuf,
    pub(crate) binary: PathBuf,
    pub(crate) lab: Lab,
}

impl Node {
    /// Makes a node whose pod has the first addresses and whose outside has the others, and this policy.
    pub(crate) fn new(pod: &[&str], outside: &[&str], policy: &str) -> Self {
        let binary = good(agent::binary());
        let lab = good(Lab::new(Driver::Cgroupfs));
        let ips: Vec<String> = pod.iter().map(|ip| format!("{{ip: \"{ip}\"}}")).collect();
        let pod = good(lab.pod(UID, Qos::Burstable, pod));
        let out = good(lab.outside(outside));
        let pins = good(lab.bpffs()).join("egress-agent");
        let manifests = lab.folder.join("manifests");
        fs::create_dir(&manifests).expect("the lab's folder can be written");
        let node = Self { pod, out, manifests, pins, binary, lab };
        node.write("namespace.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
        node.write(
            "pod.yaml",
            &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: shop, name: web, uid: {UID}, labels: {{app: web}}}}\n\
                 spec: {{nodeName: node-a, containers: [{{name: main, image: example.com/web}}]}}\n\
                 status: {{phase: Running, podIPs: [{}]}}\n",
                ips.join(", ")
            ),
        );
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  namespace: shop\n  name: policy\n  \
             labels: {egress-controller: managed}\ndata:\n";
        node.write("policy.yaml", &format!("{text}  policy.json: '{policy}'\n"));
        node
    }

    /// Puts a manifest there in one step.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let hidden = self.manifests.join(format!(".{name}"));
        fs::write(&hidden, text).expect("the lab's folder can be written");
        fs::rename(&hidden, self.manifests.join(name)).expect("the lab's folder can be written");
    }

    /// Starts the agent and waits until its policies are in force.
    pub(crate) fn run(&self, more: &[&str]) -> Agent {
        let text = |path: &'_ Path| path.to_str().expect("the lab's paths are text").to_owned();
        let (manifests, kubepods, pins) =
            (text(&self.manifests), text(&self.lab.kubepods().path), text(&self.pins));
        let mut arguments =
            vec!["--manifests", &manifests, "--kubepods-cgroup", &kubepods, "--pin-dir", &pins];
        arguments.extend(more);
        let mut agent = good(Agent::start(&self.binary, &self.lab.keeper, &arguments));
        good(agent.wait_ready(LIMIT));
        agent
    }
}

/// What a run came to: its exit code, and what it wrote as JSON.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) json: Value,
    pub(crate) errors: String,
}

/// Runs a command that writes JSON.
pub(crate) fn ask(command: &mut Command) -> Said {
    let Output { status, stdout, stderr } = good(command.output().context("the program starts"));
    let errors = String::from_utf8_lossy(&stderr).into_owned();
    let json = serde_json::from_slice(&stdout).unwrap_or(Value::Null);
    Said { code: status.code(), json, errors }
}

impl Said {
    /// Returns the findings as `check severity: what`, in their order, without those of this check.
    pub(crate) fn findings(&self, but: &[&str]) -> Vec<String> {
        let findings = self.json["findings"].as_array().unwrap_or_else(|| panic!("{self:?}"));
        let text = |finding: &Value, field: &str| finding[field].as_str().expect("it is text").to_owned();
        findings
            .iter()
            .filter(|finding| !but.iter().any(|but| finding["check"] == *but))
            .map(|f| format!("{} {}: {}", text(f, "check"), text(f, "severity"), text(f, "what")))
            .collect()
    }

    /// Returns what could not be looked at.
    pub(crate) fn unchecked(&self) -> Vec<String> {
        let unchecked = self.json["unchecked"].as_array().unwrap_or_else(|| panic!("{self:?}"));
        unchecked.iter().map(|one| one["what"].as_str().expect("it is text").to_owned()).collect()
    }
}
