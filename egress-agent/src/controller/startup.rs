//! The start-up taint: a new node takes no pods before its agent enforces.
//!
//! Nodes are registered with the taint, by kubelet or by whoever makes them. Here it is taken away when the agent's pod on a node is ready,
//! and never put back: an agent that goes leaves what is pinned in force. Agents' pods are watched, not nodes, so that a node costs one
//! read for each time its agent becomes ready.

use std::{collections::BTreeSet, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use serde_json::json;
use tracing::{info, warn};

use super::Lead;

/// The labels of agents' pods.
const AGENTS: &str = "app.kubernetes.io/name=egress-agent,app.kubernetes.io/component=agent";

/// When nodes are tried again that could not be changed.
const AGAIN: Duration = Duration::from_secs(5);

/// How often a node is read anew because somebody else has changed it meanwhile.
const RACES: usize = 5;

/// Which taint, and whose pods say that it can go.
#[derive(Clone, Debug)]
pub struct Options {
    /// The key of the taint; its value and effect do not matter.
    pub taint: String,
    /// The namespace of the agents.
    pub agents: String,
}

/// Takes the taint from nodes.
pub(super) struct Remover {
    nodes: Api<Node>,
    agents: Api<Pod>,
    taint: String,
    lead: Lead,
    /// Nodes that were looked at since their agent became ready.
    done: BTreeSet<String>,
    /// Nodes with a ready agent that are to be looked at.
    waiting: BTreeSet<String>,
}

impl Remover {
    pub(super) fn new(client: &Client, options: &Options, lead: Lead) -> Self {
        Self {
            nodes: Api::all(client.clone()),
            agents: Api::namespaced(client.clone(), &options.agents),
            taint: options.taint.clone(),
            lead,
            done: BTreeSet::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// Follows the agents for ever.
    pub(super) async fn run(mut self) {
        let config = watcher::Config::default().labels(AGENTS).page_size(100);
        let mut events = Box::pin(watcher::watcher(self.agents.clone(), config).default_backoff());
        let mut listed = BTreeSet::new();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = tokio::time::sleep(AGAIN), if !self.waiting.is_empty() => {
                    self.look().await;
                    continue;
                }
            };
            match event.expect("a watcher never ends") {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(pod)) => {
                    listed.extend(ready_on(&pod).map(str::to_owned));
                    self.see(&pod);
                }
                Ok(Event::InitDone) => {
                    self.done.retain(|node| listed.contains(node));
                    self.waiting.retain(|node| listed.contains(node));
                    self.look().await;
                }
                Ok(Event::Apply(pod)) => {
                    if self.see(&pod) {
                        self.look().await;
                    }
                }
                Ok(Event::Delete(pod)) => self.forget(&pod),
                Err(error) => {
                    warn!(%error, "the watch of agents was interrupted; new nodes keep their taint until it goes on");
                }
            }
        }
    }

    /// Takes in what a pod is now, and says whether its node is to be looked at.
    fn see(&mut self, pod: &Pod) -> bool {
        let Some(node) = ready_on(pod) else {
            self.forget(pod);
            return false;
        };
        !self.done.contains(node) && self.waiting.insert(node.to_owned())
    }

    fn forget(&mut self, pod: &Pod) {
        if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) {
            self.done.remove(node);
            self.waiting.remove(node);
        }
    }

    /// Looks at the nodes that wait for it; those that could not be changed go on waiting.
    async fn look(&mut self) {
        for node in self.waiting.clone() {
            match self.untaint(&node).await {
                Ok(true) => info!(%node, taint = %self.taint, "the node takes pods: its agent is ready"),
                Ok(false) => {}
                Err(error) => {
                    warn!(%node, taint = %self.taint, %error, "the start-up taint cannot be taken away; it is tried again");
                    continue;
                }
            }
            self.waiting.remove(&node);
            self.done.insert(node);
        }
    }

    /// Takes the taint from a node, and says whether it was there.
    async fn untaint(&self, name: &str) -> anyhow::Result<bool> {
        for _ in 0..RACES {
            let Some(node) = self.nodes.get_opt(name).await? else { return Ok(false) };
            let Some(left) = without(&node, &self.taint) else { return Ok(false) };
            self.lead.permit()?;
            // With the version that was read: taints of others come and go.
            let patch = json!({
                "metadata": { "resourceVersion": node.metadata.resource_version },
                "spec": { "taints": left },
            });
            match self.nodes.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => return Ok(true),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
        }
        anyhow::bail!("somebody else changes the node all the time")
    }
}

/// Returns the node of a pod that is ready and does not end.
fn ready_on(pod: &Pod) -> Option<&str> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let is_ready = conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True");
    let stays = pod.metadata.deletion_timestamp.is_none();
    pod.spec.as_ref()?.node_name.as_deref().filter(|_| is_ready && stays)
}

/// Returns the taints of a node without this one, if it has it.
fn without(node: &Node, taint: &str) -> Option<Vec<Taint>> {
    let taints = node.spec.as_ref()?.taints.as_deref()?;
    let left: Vec<Taint> = taints.iter().filter(|one| one.key != taint).cloned().collect();
    (left.len() < taints.len()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ready: &str, deleted: bool) -> Pod {
        let deleted = deleted.then_some("2026-11-22T00:00:00Z");
        serde_json::from_value(json!({
            "metadata": { "name": "agent", "deletionTimestamp": deleted },
            "spec": { "nodeName": "node-a", "containers": [] },
            "status": { "conditions": [{ "type": "Initialized", "status": "True" }, { "type": "Ready", "status": ready }] },
        }))
        .expect("a pod")
    }

    #[test]
    fn only_a_pod_that_is_ready_and_stays_opens_its_node() {
        assert_eq!(ready_on(&pod("True", false)), Some("node-a"));
        assert_eq!(ready_on(&pod("False", false)), None);
        assert_eq!(ready_on(&pod("Unknown", false)), None);
        assert_eq!(ready_on(&pod("True", true)), None);
        assert_eq!(ready_on(&Pod::default()), None);
    }

    #[test]
    fn taints_of_others_stay() {
        let node = |taints: &[&str]| -> Node {
            let taints: Vec<_> =
                taints.iter().map(|key| json!({ "key": key, "effect": "NoSchedule" })).collect();
            serde_json::from_value(json!({ "metadata": {}, "spec": { "taints": taints } })).expect("a node")
        };
        let left = without(&node(&["a", "ours", "b", "ours"]), "ours").expect("it was there");
        assert_eq!(left.iter().map(|taint| taint.key.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(without(&node(&["ours"]), "ours"), Some(Vec::new()));
        assert_eq!(without(&node(&["our"]), "ours"), None);
        assert_eq!(without(&Node::default(), "ours"), None);
    }
}
