//! Publishes what this node enforces, seldom, for whoever looks at the whole cluster.
//!
//! Nothing waits for it: what is to be written goes to a task of its own, which has time limits and waits longer after each failure.
//! Only the newest is written. Each node looks at itself at times of its own, so a policy of all pods does not bring all nodes' writes at
//! once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{ConfigMap, Node as ApiNode},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::{Node, Source};
use crate::{
    k8s::summary::{self, FIELD_MANAGER, Held, Summary},
    kernel::clock,
    policy::{cluster::NsName, model::PolicyKind},
};

/// What has not changed is written again after this time, so that a node that is silent can be told from one that has no news.
const RENEWED: Duration = Duration::from_secs(600);
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it waits after a failure, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// Where to publish, and how often at most.
#[derive(Clone, Debug)]
pub struct Options {
    /// The namespace of the ConfigMap.
    pub namespace: String,
    /// The time between two looks at what there is to say.
    pub every: Duration,
}

/// What became of it.
#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    failed: AtomicU64,
}

/// Sees whether there is something new to say, and hands it on.
#[derive(Debug)]
pub(super) struct Publisher {
    every: Duration,
    /// Not before this.
    next: Instant,
    /// What was handed on last, and when.
    last: Option<(Instant, Summary)>,
    /// The revisions of texts that were in force then.
    revisions: BTreeMap<NsName, (Arc<str>, String)>,
    queue: watch::Sender<Option<Arc<str>>>,
    counts: Arc<Counts>,
}

impl Publisher {
    /// Starts the task that writes. It ends with this value.
    pub(super) fn start(client: Client, node: &str, options: &Options, now: Instant) -> Self {
        let (queue, latest) = watch::channel(None);
        let counts = Arc::new(Counts::default());
        match summary::name(node) {
            Some(name) => {
                let writer = Writer {
                    maps: Api::namespaced(client.clone(), &options.namespace),
                    nodes: Api::all(client),
                    node: node.to_owned(),
                    name,
                    counts: Arc::clone(&counts),
                };
                tokio::spawn(writer.run(latest));
            }
            None => {
                warn!(node, "the node's name leaves no room for the name of its summary, so there is none");
            }
        }
        let next = now + options.every.mul_f64(random());
        Self { every: options.every, next, last: None, revisions: BTreeMap::new(), queue, counts }
    }

    /// Returns whether it is time to see what there is to say. The next time is set.
    fn is_due(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + self.every.mul_f64(0.9 + 0.2 * random());
        true
    }

    /// Hands on what there is to say, if it is new, or was said long ago.
    fn tell(&mut self, now: Instant, summary: Summary) {
        let is_old = |(at, last): &(Instant, Summary)| {
            !last.says_the_same(&summary) || now.duration_since(*at) >= RENEWED
        };
        if self.last.as_ref().is_none_or(is_old) {
            _ = self.queue.send_replace(Some(summary.text().into()));
            self.last = Some((now, summary));
        }
    }

    /// Returns how often the summary was written, and could not be.
    pub(super) fn counts(&self) -> [(&'static str, u64); 2] {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [("written", count(&self.counts.written)), ("failed", count(&self.counts.failed))]
    }
}

impl Node {
    /// Publishes what this node enforces if that is due. Nothing is said before the API server was heard in full.
    pub(super) fn publish(&mut self, now: Instant) {
        if !self.complete || self.restored.is_some() {
            return;
        }
        let Some(mut publisher) = self.publisher.take() else { return };
        if publisher.is_due(now) {
            let summary = self.summary(&mut publisher.revisions);
            publisher.tell(now, summary);
        }
        self.publisher = Some(publisher);
    }

    fn summary(&self, revisions: &mut BTreeMap<NsName, (Arc<str>, String)>) -> Summary {
        let not_ready = self.health.reasons();
        let ready = not_ready.is_empty();
        let (source, maps, policies) = (self.source_status(), self.map_fill(), self.policy_status());
        let reasons: Vec<String> =
            not_ready.into_iter().chain(self.degraded(&source, &maps, &policies)).collect();
        let ranges = match &self.source {
            Source::Kube(source) => source
                .published()
                .iter()
                .filter_map(|(provider, published)| {
                    Some((provider.clone(), published.revision()?.to_string()))
                })
                .collect(),
            Source::Directory(_) => BTreeMap::new(),
        };
        let mut known = BTreeMap::new();
        let mut held: BTreeMap<String, Held> = BTreeMap::new();
        for (cgroup, pod) in &self.pods {
            let behind = self.stale
                || self.kept.contains(cgroup)
                || self.waits.contains_key(cgroup)
                || self.refused.contains(&pod.id);
            for policy in pod.policies.iter().filter(|policy| policy.kind == PolicyKind::ConfigMap) {
                let held = held.entry(policy.id.to_string()).or_insert_with(|| Held {
                    revision: self.index.text_in_force(&policy.id).map_or_else(String::new, |text| {
                        let revision = match revisions.remove(&policy.id) {
                            Some((known, revision)) if Arc::ptr_eq(&known, text) => revision,
                            _ => summary::revision(text),
                        };
                        known.insert(policy.id.clone(), (Arc::clone(text), revision.clone()));
                        revision
                    }),
                    pods: 0,
                    behind: 0,
                });
                held.pods += 1;
                held.behind += u32::from(behind);
            }
        }
        *revisions = known;
        Summary {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            written: clock::wall_seconds_and_fraction().0,
            ready,
            audit: self.config.audit,
            reasons: Summary::few(&reasons),
            ranges,
            policies: held,
            more: 0,
        }
    }
}

/// Writes the newest of what it is handed.
struct Writer {
    maps: Api<ConfigMap>,
    nodes: Api<ApiNode>,
    node: String,
    name: String,
    counts: Arc<Counts>,
}

/// Why the summary was not written.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("there is no Node of this name")]
    NoNode,
    #[error("the API server did not answer in time")]
    Silence,
}

impl Writer {
    async fn run(self, mut latest: watch::Receiver<Option<Arc<str>>>) {
        let mut told = String::new();
        while latest.changed().await.is_ok() {
            let mut pause = PAUSES.0;
            loop {
                let Some(text) = latest.borrow_and_update().clone() else { break };
                let written = tokio::time::timeout(PATIENCE, self.write(&text)).await;
                match written.unwrap_or(Err(Failure::Silence)) {
                    Ok(()) => {
                        self.counts.written.fetch_add(1, Ordering::Relaxed);
                        debug!(configmap = %self.name, bytes = text.len(), "the summary of this node is written");
                        if !std::mem::take(&mut told).is_empty() {
                            info!("the summary of this node can be written again");
                        }
                        break;
                    }
                    Err(failure) => {
                        self.counts.failed.fetch_add(1, Ordering::Relaxed);
                        let failure = summary::plain(&failure.to_string(), 500);
                        if failure != told {
                            warn!(configmap = %self.name, error = failure, "the summary of this node cannot be written; enforcement does not need it");
                            told = failure;
                        }
                        tokio::time::sleep(pause.mul_f64(0.5 + random())).await;
                        pause = (pause * 2).min(PAUSES.1);
                    }
                }
            }
        }
    }

    async fn write(&self, text: &str) -> Result<(), Failure> {
        // Each time, because a node of the same name may be another one by now, and what belonged to the one before is deleted.
        let named = ListParams::default().fields(&format!("metadata.name={}", self.node)).match_any();
        let node = self.nodes.list_metadata(&named).await?.items.pop().ok_or(Failure::NoNode)?;
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.node.clone(),
            uid: node.metadata.uid.ok_or(Failure::NoNode)?,
            ..OwnerReference::default()
        };
        let object = Summary::object(&self.name, text, owner);
        // It is this node's alone.
        let params = PatchParams {
            force: true,
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        self.maps.patch(&self.name, &params, &Patch::Apply(&object)).await?;
        Ok(())
    }
}

/// Returns a random number from 0 to 1.
fn random() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness all nodes write at the same time, which is all that this is against.
    if ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).is_err() {
        return 0.5;
    }
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publisher(now: Instant) -> (Publisher, watch::Receiver<Option<Arc<str>>>) {
        let (queue, latest) = watch::channel(None);
        let publisher = Publisher {
            every: Duration::from_secs(30),
            next: now,
            last: None,
            revisions: BTreeMap::new(),
            queue,
            counts: Arc::default(),
        };
        (publisher, latest)
    }

    #[test]
    fn it_is_said_when_it_is_new_or_old_and_no_more_often_than_told() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (mut publisher, mut latest) = publisher(start);
        let mut said = || latest.has_changed().expect("it is there") && latest.borrow_and_update().is_some();
        assert!(publisher.is_due(start));
        assert!(!publisher.is_due(at(26)), "at least nine tenths of the time lie between");
        assert!(publisher.is_due(at(34)), "and no more than eleven");
        publisher.tell(start, Summary { written: 1, ..Summary::default() });
        assert!(said());
        publisher.tell(at(30), Summary { written: 2, ..Summary::default() });
        assert!(!said(), "the time it is written is no news");
        publisher.tell(at(60), Summary { ready: true, ..Summary::default() });
        assert!(said());
        publisher.tell(at(60) + RENEWED, Summary { ready: true, ..Summary::default() });
        assert!(said(), "a silent node is one that does not say so");
    }

    #[test]
    fn nodes_look_at_themselves_at_different_times() {
        let now = Instant::now();
        let mut times: Vec<Duration> = (0..32)
            .map(|_| {
                let (mut publisher, _latest) = publisher(now);
                assert!(publisher.is_due(now));
                publisher.next.duration_since(now)
            })
            .collect();
        times.sort();
        times.dedup();
        assert!(times.len() > 16, "{times:?}");
        let seconds = times.iter().map(Duration::as_secs_f64);
        assert!(seconds.clone().all(|time| (26.9..33.1).contains(&time)), "{times:?}");
    }
}
