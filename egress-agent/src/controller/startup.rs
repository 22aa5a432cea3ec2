//! The start-up taint: a new node takes no pods before its agent enforces.
//!
//! Nodes are registered with the taint, by kubelet or by whoever makes them. Here it is taken away when the agent's pod on a node is ready,
//! and never put back: an agent that goes leaves what is pinned in force. Agents' pods are watched, not nodes, so that a node costs one
//! read for each time its agent becomes ready. Now and then all nodes are listed from the cache of the API server: one that was made anew
//! under its name is another one, and a pod that became ready before its node was made says nothing of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::StreamExt as _;
use k8s_openapi::{
    api::core::v1::{Node, Pod, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use serde_json::json;
use tracing::{info, warn};

use super::Lead;
use crate::k8s::summary::plain;

/// The labels of agents' pods.
const AGENTS: &str = "app.kubernetes.io/name=egress-agent,app.kubernetes.io/component=agent";

/// When nodes are tried again that could not be changed.
const AGAIN: Duration = Duration::from_secs(5);

/// When it is looked again which nodes there are.
const NOW_AND_THEN: Duration = Duration::from_secs(60);

/// How long a list of all nodes may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long an error may be that is told, in bytes.
const MOST_ERROR: usize = 500;

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
    /// The agents that are ready, by node.
    ready: BTreeMap<String, Ready>,
    /// Nodes that were looked at since their agent became ready, with their UID; nothing for one that was not there.
    done: BTreeMap<String, Option<String>>,
    /// Nodes with a ready agent that are to be looked at.
    waiting: BTreeSet<String>,
    /// What was said last of a node that could not be changed.
    said: BTreeMap<String, String>,
}

/// An agent that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ready {
    /// The name of its pod.
    pod: String,
    /// Since when, if it says so.
    since: Option<Time>,
}

/// What became of a node.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The taint is gone.
    Untainted,
    /// It was not there.
    Free,
    /// The node is younger than what its pod says.
    Younger,
}

impl Remover {
    pub(super) fn new(client: &Client, options: &Options, lead: Lead) -> Self {
        Self {
            nodes: Api::all(client.clone()),
            agents: Api::namespaced(client.clone(), &options.agents),
            taint: options.taint.clone(),
            lead,
            ready: BTreeMap::new(),
            done: BTreeMap::new(),
            waiting: BTreeSet::new(),
            said: BTreeMap::new(),
        }
    }

    /// Follows the agents for ever.
    pub(super) async fn run(mut self) {
        let config = watcher::Config::default().labels(AGENTS).page_size(100);
        let mut events = Box::pin(watcher::watcher(self.agents.clone(), config).default_backoff());
        let mut listed = BTreeSet::new();
        let mut round = tokio::time::interval(NOW_AND_THEN);
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = tokio::time::sleep(AGAIN), if !self.waiting.is_empty() => {
                    self.look().await;
                    continue;
                }
                _ = round.tick() => {
                    self.list().await;
                    continue;
                }
            };
            match event.expect("a watcher never ends") {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(pod)) => {
                    listed.extend(ready_on(&pod).map(|(node, _)| node.to_owned()));
                    self.see(&pod);
                }
                Ok(Event::InitDone) => {
                    self.ready.retain(|node, _| listed.contains(node));
                    self.done.retain(|node, _| listed.contains(node));
                    self.waiting.retain(|node| listed.contains(node));
                    self.said.retain(|node, _| listed.contains(node));
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
        let Some((node, since)) = ready_on(pod) else {
            self.forget(pod);
            return false;
        };
        let ready = Ready { pod: pod.metadata.name.clone().unwrap_or_default(), since: since.cloned() };
        let is_new = self.ready.insert(node.to_owned(), ready.clone()) != Some(ready);
        (is_new || !self.done.contains_key(node)) && self.waiting.insert(node.to_owned())
    }

    /// Forgets what a pod has said that is not ready any more. What another one of its node says stays.
    fn forget(&mut self, pod: &Pod) {
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) else { return };
        if self.ready.get(node).is_some_and(|ready| pod.metadata.name.as_ref() == Some(&ready.pod)) {
            self.ready.remove(node);
            self.done.remove(node);
            self.waiting.remove(node);
            self.said.remove(node);
        }
    }

    /// Sees which nodes are others than those that were looked at.
    async fn list(&mut self) {
        if self.ready.is_empty() {
            return;
        }
        let params = ListParams::default().match_any();
        match tokio::time::timeout(PATIENCE, self.nodes.list_metadata(&params)).await {
            Ok(Ok(list)) => {
                let nodes = list.items.into_iter().map(|node| (node.metadata.name, node.metadata.uid));
                self.compare(nodes.filter_map(|(name, uid)| Some((name?, uid))).collect());
            }
            failed => {
                let error = match failed {
                    Ok(Err(error)) => plain(&error.to_string(), MOST_ERROR),
                    _ => "no answer in time".to_owned(),
                };
                self.complain("(all)", "which nodes there are", error);
                return;
            }
        }
        self.said.remove("(all)");
        self.look().await;
    }

    /// Takes for waiting what has a ready agent and was not looked at, or was another one then.
    fn compare(&mut self, nodes: BTreeMap<String, Option<String>>) {
        for (node, uid) in nodes {
            if self.ready.contains_key(&node) && self.done.get(&node) != Some(&uid) {
                self.done.remove(&node);
                self.waiting.insert(node);
            }
        }
    }

    /// Says once what is in the way of a node. Returns whether that is news.
    fn complain(&mut self, node: &str, what: &str, error: String) -> bool {
        if self.said.get(node) == Some(&error) {
            return false;
        }
        warn!(%node, taint = %self.taint, %error, "the start-up taint cannot be taken away: {what}; it is tried again");
        self.said.insert(node.to_owned(), error);
        true
    }

    /// Looks at the nodes that wait for it; those that could not be changed go on waiting.
    async fn look(&mut self) {
        for node in self.waiting.clone() {
            let since = self.ready.get(&node).and_then(|ready| ready.since.clone());
            let (outcome, uid) = match self.untaint(&node, since.as_ref()).await {
                Ok(done) => done,
                Err(error) => {
                    self.complain(&node, "the node", plain(&error.to_string(), MOST_ERROR));
                    continue;
                }
            };
            self.waiting.remove(&node);
            match outcome {
                Outcome::Younger => {
                    // It is looked at again when its pod says something new, and now and then.
                    self.done.remove(&node);
                    let why = "the pod there was ready before the node was made, or does not say since when";
                    self.complain(&node, "the agent", why.to_owned());
                    continue;
                }
                Outcome::Untainted => {
                    info!(%node, taint = %self.taint, "the node takes pods: its agent is ready");
                }
                Outcome::Free => {}
            }
            self.said.remove(&node);
            self.done.insert(node, uid);
        }
    }

    /// Takes the taint from a node whose agent is ready since then, and says what became of it, and of which node.
    async fn untaint(&self, name: &str, since: Option<&Time>) -> anyhow::Result<(Outcome, Option<String>)> {
        for _ in 0..RACES {
            let Some(node) = self.nodes.get_opt(name).await? else { return Ok((Outcome::Free, None)) };
            let uid = node.metadata.uid.clone();
            let Some(left) = without(&node, &self.taint) else { return Ok((Outcome::Free, uid)) };
            if !is_of(&node, since) {
                return Ok((Outcome::Younger, uid));
            }
            self.lead.permit()?;
            // With the version that was read: taints of others come and go.
            let patch = json!({
                "metadata": { "resourceVersion": node.metadata.resource_version },
                "spec": { "taints": left },
            });
            match self.nodes.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => return Ok((Outcome::Untainted, uid)),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
        }
        anyhow::bail!("somebody else changes the node all the time")
    }
}

/// Returns the node of a pod that is ready and does not end, and since when it is ready.
fn ready_on(pod: &Pod) -> Option<(&str, Option<&Time>)> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let ready = conditions.iter().find(|one| one.type_ == "Ready" && one.status == "True")?;
    let stays = pod.metadata.deletion_timestamp.is_none();
    let node = pod.spec.as_ref()?.node_name.as_deref().filter(|_| stays)?;
    Some((node, ready.last_transition_time.as_ref()))
}

/// Returns whether a pod that is ready since then can be of this node, and not of one that had its name before.
fn is_of(node: &Node, since: Option<&Time>) -> bool {
    match (since, &node.metadata.creation_timestamp) {
        (Some(since), Some(made)) => since.0 >= made.0,
        _ => false,
    }
}

/// Returns the taints of a node without this one, if it has it.
fn without(node: &Node, taint: &str) -> Option<Vec<Taint>> {
    let taints = node.spec.as_ref()?.taints.as_deref()?;
    let left: Vec<Taint> = taints.iter().filter(|one| one.key != taint).cloned().collect();
    (left.len() < taints.len()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::{super::fake, *};

    const SINCE: &str = "2026-11-22T10:00:00Z";

    fn pod(ready: &str, deleted: bool) -> Pod {
        pod_of("agent", ready, SINCE, deleted)
    }

    fn pod_of(name: &str, ready: &str, since: &str, deleted: bool) -> Pod {
        let deleted = deleted.then_some("2026-11-22T00:00:00Z");
        serde_json::from_value(json!({
            "metadata": { "name": name, "deletionTimestamp": deleted },
            "spec": { "nodeName": "node-a", "containers": [] },
            "status": { "conditions": [
                { "type": "Initialized", "status": "True" },
                { "type": "Ready", "status": ready, "lastTransitionTime": since },
            ] },
        }))
        .expect("a pod")
    }

    #[test]
    fn only_a_pod_that_is_ready_and_stays_opens_its_node() {
        let on = |pod: &Pod| ready_on(pod).map(|(node, since)| (node.to_owned(), since.is_some()));
        assert_eq!(on(&pod("True", false)), Some(("node-a".to_owned(), true)));
        assert_eq!(on(&pod("False", false)), None);
        assert_eq!(on(&pod("Unknown", false)), None);
        assert_eq!(on(&pod("True", true)), None);
        assert_eq!(on(&Pod::default()), None);
    }

    #[test]
    fn a_pod_that_was_ready_before_its_node_was_made_says_nothing_of_it() {
        let node = |made: Option<&str>| -> Node {
            serde_json::from_value(json!({ "metadata": { "creationTimestamp": made } })).expect("a node")
        };
        let pod = pod("True", false);
        let since = ready_on(&pod).and_then(|(_, since)| since);
        assert!(is_of(&node(Some("2026-11-22T09:59:00Z")), since));
        assert!(is_of(&node(Some(SINCE)), since));
        assert!(!is_of(&node(Some("2026-11-22T10:00:01Z")), since));
        assert!(!is_of(&node(Some("2026-11-22T09:59:00Z")), None));
        assert!(!is_of(&node(None), since));
    }

    fn remover() -> Remover {
        let config = kube::Config::new("http://127.0.0.1:1".parse().expect("an address"));
        let client = Client::try_from(config).expect("a client that asks nobody");
        let (_, standing) =
            tokio::sync::watch::channel(super::super::Standing::Unknown { why: String::new() });
        let options = Options { taint: "ours".to_owned(), agents: "agents".to_owned() };
        Remover::new(&client, &options, Lead(standing))
    }

    #[tokio::test]
    async fn a_node_is_looked_at_again_when_it_is_another_one() {
        let mut remover = remover();
        assert!(remover.see(&pod("True", false)));
        let node = |uid: &str| BTreeMap::from([("node-a".to_owned(), Some(uid.to_owned()))]);
        remover.waiting.clear();
        remover.done = node("u-1");
        assert!(!remover.see(&pod("True", false)), "nothing new");
        remover.compare(node("u-1"));
        assert!(remover.waiting.is_empty());
        remover.compare(node("u-2"));
        assert!(remover.waiting.contains("node-a") && remover.done.is_empty());
        remover.waiting.clear();
        remover.done = node("u-2");
        assert!(remover.see(&pod_of("agent", "True", "2026-11-22T11:00:00Z", false)), "it is ready anew");
        remover.forget(&pod_of("before", "False", SINCE, true));
        assert!(remover.ready.contains_key("node-a"), "the pod before it is another one");
        remover.forget(&pod("False", false));
        assert!(remover.ready.is_empty() && remover.waiting.is_empty() && remover.done.is_empty());
        remover.compare(node("u-3"));
        assert!(remover.waiting.is_empty(), "no agent is ready there");
    }

    #[tokio::test]
    async fn a_reason_is_said_once() {
        let mut remover = remover();
        remover.see(&pod("True", false));
        remover.look().await;
        let first = remover.said.get("node-a").cloned().expect("nobody answers");
        assert!(remover.waiting.contains("node-a"), "it goes on waiting");
        remover.look().await;
        assert_eq!(remover.said.get("node-a"), Some(&first));
        assert_eq!(remover.said.len(), 1);
        let mut news = |error: &str| remover.complain("node-b", "the node", error.to_owned());
        assert_eq!([news("a"), news("a"), news("b"), news("a")], [true, false, true, true]);
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

    #[tokio::test]
    async fn a_taint_is_taken_from_the_node_that_was_read_and_from_no_younger_one() {
        let node = |made: &str| {
            json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": { "name": "node-a", "uid": "u", "resourceVersion": "5", "creationTimestamp": made },
                "spec": { "taints": [{ "key": "theirs", "effect": "NoSchedule" }, { "key": "ours", "effect": "NoSchedule" }] },
            })
        };
        let outcome = async |made: &'static str| {
            let tries = std::sync::atomic::AtomicUsize::new(0);
            let (client, all) = fake::api(move |asked| match asked.method.as_str() {
                // Somebody else is faster once.
                "PATCH" if tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 => {
                    (409, json!({ "code": 409, "reason": "Conflict", "message": "no" }))
                }
                _ => (200, node(made)),
            });
            let options = Options { taint: "ours".to_owned(), agents: "agents".to_owned() };
            let remover = Remover::new(&client, &options, fake::lead());
            let pod = pod("True", false);
            let since = ready_on(&pod).and_then(|(_, since)| since);
            let (outcome, uid) = remover.untaint("node-a", since).await.expect("there is an answer");
            assert_eq!(uid.as_deref(), Some("u"));
            let written: Vec<_> = all
                .now()
                .iter()
                .filter(|asked| asked.method == "PATCH")
                .map(|asked| asked.body.clone())
                .collect();
            (outcome, written)
        };
        let (gone, written) = outcome("2026-11-22T09:00:00Z").await;
        assert_eq!((gone, written.len()), (Outcome::Untainted, 2));
        for patch in written {
            assert_eq!(patch["metadata"], json!({ "resourceVersion": "5" }));
            assert_eq!(patch["spec"], json!({ "taints": [{ "key": "theirs", "effect": "NoSchedule" }] }));
        }
        let (younger, written) = outcome("2026-11-22T11:00:00Z").await;
        assert_eq!((younger, written), (Outcome::Younger, Vec::new()));
    }
}
