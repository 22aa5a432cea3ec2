//! Writes the policies as standard NetworkPolicies, and tells their owners what became of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt as _;

use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, ObjectReference, Service},
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use super::{Clock, Lead, events::Events, lease::FIELD_MANAGER};
use crate::{
    agent::read_policy,
    k8s::{
        convert::MANAGED,
        generated::{self as objects, LOSSES, MANAGED_BY, Origin, SOURCE, SOURCE_REVISION},
        source::{self, KubeSource},
    },
    policy::{
        cluster::{Labels, NsName, Settings},
        demand::{self, Demand, Nodes},
        generated::{Generator, Inexpressible, Limits, Loss, LossKind, Options as How},
        index::{InForce, Index, View},
        model::{Mode, Peer, PolicyId, PolicyKind},
    },
    ranges::publish::Sha256,
};

/// How long nothing may change before policies are written: they often come many at once.
const QUIET: Duration = Duration::from_millis(200);
/// No longer than this, however much changes.
const NOT_LONGER: Duration = Duration::from_secs(2);
/// After a write that failed, everything is looked at again.
const AGAIN: Duration = Duration::from_secs(10);
/// Everything is looked at again after this time, whatever was heard.
const LOOK: Duration = Duration::from_secs(300);
/// How many writes are under way at once.
const AT_ONCE: usize = 8;
/// How long before its end an exception is told of.
const SOON: u64 = 14 * 24 * 60 * 60;
/// How many objects one policy may become. A few words can name thousands of prefixes many times, and all of it has to be stored.
const MOST_OBJECTS: usize = 16;
/// How many findings or losses an Event names.
const NAMED: usize = 3;

/// How to write.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to do about what a NetworkPolicy cannot say.
    pub inexpressible: Inexpressible,
    /// Whether ClusterIPs are written, too.
    pub cluster_ips: bool,
    /// How agents run, as far as it changes what policies mean.
    pub settings: Settings,
    /// The namespace that ranges are published in.
    pub ranges: String,
}

/// What is counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Policies that objects are made of.
    pub policies: AtomicU64,
    /// Objects that are wanted.
    pub objects: AtomicU64,
    /// Places where objects say something else than the kernel layer does.
    pub losses: AtomicU64,
    /// Objects written.
    pub written: AtomicU64,
    /// Objects deleted.
    pub deleted: AtomicU64,
    /// Objects that somebody else had changed, or that are in the way.
    pub conflicts: AtomicU64,
    /// Requests that failed.
    pub failed: AtomicU64,
    /// Microseconds that the last look at everything took, without waiting for the API server.
    pub took: AtomicU64,
}

/// What is wanted of one policy.
struct Wanted {
    objects: Vec<NetworkPolicy>,
    /// There would be more than are written.
    too_many: bool,
    losses: Vec<Loss>,
}

pub(super) struct Reconciler {
    client: Client,
    options: Options,
    writer: Writer,
    counts: Arc<Counts>,
    clock: Clock,
    index: Index,
    /// NetworkPolicies with our label, as the API server has them.
    present: Option<BTreeMap<NsName, NetworkPolicy>>,
    /// The UIDs of managed ConfigMaps.
    owners: Option<BTreeMap<NsName, String>>,
    /// The labels that Services select pods by.
    selectors: Option<BTreeMap<NsName, Labels>>,
    /// What was said of each policy.
    told: BTreeMap<NsName, BTreeSet<(&'static str, String)>>,
}

impl Reconciler {
    pub(super) fn new(
        client: Client,
        options: Options,
        lead: Lead,
        counts: Arc<Counts>,
        clock: Clock,
    ) -> Self {
        Self {
            writer: Writer {
                events: Events::new(client.clone()),
                client: client.clone(),
                lead,
                counts: Arc::clone(&counts),
            },
            client,
            options,
            counts,
            clock,
            index: Index::new(read_policy),
            present: None,
            owners: None,
            selectors: None,
            told: BTreeMap::new(),
        }
    }

    /// Keeps everything up to date until it is ended from outside.
    pub(super) async fn run(mut self) {
        let options = source::Options {
            // The controller belongs to no node.
            node: String::new(),
            network_policies: false,
            ranges: Some(self.options.ranges.clone()),
            other_ranges: BTreeSet::new(),
        };
        let (mut source, mut news) = KubeSource::start(self.client.clone(), options);
        let labelled =
            |(key, value): (&str, &str)| watcher::Config::default().labels(&format!("{key}={value}"));
        let mut present = pin!(
            watcher(Api::<NetworkPolicy>::all(self.client.clone()), labelled(MANAGED_BY)).default_backoff()
        );
        let owners = Api::<PartialObjectMeta<ConfigMap>>::all(self.client.clone());
        let owners = watcher(owners, labelled(MANAGED));
        let mut owners = pin!(owners.default_backoff());
        let services = watcher(Api::<Service>::all(self.client.clone()), watcher::Config::default());
        let mut services = pin!(services.default_backoff());
        let mut lists = Lists::default();
        // Since when something is to be done, and when it last was heard that there is.
        let mut changed: Option<(Instant, Instant)> = None;
        let mut look = Instant::now() + LOOK;
        loop {
            let due = changed.map_or(look, |(first, last)| (last + QUIET).min(first + NOT_LONGER).min(look));
            let mut change = false;
            tokio::select! {
                message = news.recv() => {
                    let Some(message) = message else { return };
                    let taken = source.take(message, &mut self.index);
                    change = taken.change.any() || taken.status;
                }
                Some(event) = present.next() => change = lists.present.take(event, &mut self.present, Some, "networkpolicies"),
                Some(event) = owners.next() => {
                    let uid = |object: PartialObjectMeta<ConfigMap>| object.metadata.uid;
                    change = lists.owners.take(event, &mut self.owners, uid, "managed configmaps");
                }
                Some(event) = services.next() => {
                    let selector = |service: Service| {
                        let selector = service.spec.and_then(|spec| spec.selector)?;
                        (!selector.is_empty()).then(|| selector.into_iter().collect())
                    };
                    change = lists.services.take(event, &mut self.selectors, selector, "services");
                }
                () = tokio::time::sleep_until(due.into()) => {
                    changed = None;
                    look = Instant::now() + self.reconcile(&mut source).await;
                }
            }
            if change {
                let now = Instant::now();
                changed = Some((changed.map_or(now, |(first, _)| first), now));
            }
        }
    }

    /// Does what is to be done, and returns how long there is nothing more if nothing is heard.
    async fn reconcile(&mut self, source: &mut KubeSource) -> Duration {
        let settings = &self.options.settings;
        let cluster = self.index.cluster();
        let mut demand = demand::of(cluster, settings, cluster.policies.keys());
        // What belongs to the pod's own node is no node's here.
        if demand.nodes == Nodes::Own {
            demand.nodes = Nodes::Nothing;
        }
        let change = source.want(&demand, &mut self.index, Instant::now());
        let heard: Demand = source.known();
        let (Some(owners), Some(selectors), Some(_)) = (&self.owners, &self.selectors, &self.present) else {
            return AGAIN;
        };
        // What is not known yet would be taken for what is not there.
        if change.any() || !source.synced() || !heard.covers(&demand) {
            return AGAIN.min(Duration::from_millis(500));
        }
        let began = Instant::now();
        let now = (self.clock)();
        let given = Given {
            view: self.index.view(),
            owners: owners.clone(),
            settings: settings.clone(),
            how: How {
                inexpressible: self.options.inexpressible,
                cluster_ips: self.options.cluster_ips,
                selectors: selectors.clone(),
                limits: Limits::default(),
            },
            now,
        };
        // Thousands of policies take seconds, and the lease is renewed meanwhile.
        let generated = tokio::task::spawn_blocking(move || wanted(&given)).await;
        let (wanted, next) = match generated {
            Ok(generated) => generated,
            Err(failure) => {
                self.counts.failed.fetch_add(1, Ordering::Relaxed);
                error!(%failure, "the policies could not be written as NetworkPolicies; what is there stays");
                return AGAIN;
            }
        };
        let store = |counter: &AtomicU64, value: usize| counter.store(value as u64, Ordering::Relaxed);
        store(&self.counts.policies, wanted.len());
        store(&self.counts.objects, wanted.values().map(|wanted| wanted.objects.len()).sum());
        store(&self.counts.losses, wanted.values().map(|wanted| wanted.losses.len()).sum());
        self.counts
            .took
            .store(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let well = self.write(&wanted, &self.held()).await;
        self.tell(&wanted, now).await;
        let expiry = next
            .map_or(LOOK, |next| Duration::from_secs(next.saturating_sub(now)).max(Duration::from_secs(1)));
        if well { expiry.min(LOOK) } else { AGAIN }
    }

    /// Returns the policies whose objects are left as they are, if there are any: nodes may hold a version of them, or addresses, that
    /// this process has never known, and what it knows would be narrower.
    fn held(&self) -> BTreeSet<String> {
        let broken = self.index.problems().filter(|problem| problem.in_force == InForce::Nothing);
        let broken = broken.map(|problem| problem.policy);
        let is_unknown = |peer: &Peer| matches!(peer, Peer::Unresolved(what) if what.is_cloud());
        let unknown = self
            .index
            .cluster()
            .policies
            .values()
            .filter(|policy| policy.rules.iter().flat_map(|rule| &rule.peers).any(is_unknown));
        let unknown = unknown.map(|policy| &policy.id);
        broken
            .chain(unknown)
            .filter(|id| id.kind == PolicyKind::ConfigMap)
            .map(|id| id.id.to_string())
            .collect()
    }

    /// Writes what differs, and deletes what is ours and no longer wanted, but for objects of policies in `held`. Returns whether all of
    /// it went well.
    async fn write(&self, wanted: &BTreeMap<PolicyId, Wanted>, held: &BTreeSet<String>) -> bool {
        let Some(present) = &self.present else { return false };
        let source = |object: &NetworkPolicy| object.metadata.annotations.as_ref()?.get(SOURCE).cloned();
        let made: BTreeSet<String> = present
            .values()
            .filter(|object| objects::is_generated(&object.metadata))
            .filter_map(source)
            .collect();
        let stays = |object: &NetworkPolicy| {
            source(object).is_some_and(|source| held.contains(&source) && made.contains(&source))
        };
        let mut names = BTreeSet::new();
        let mut writes: Vec<(NetworkPolicy, bool)> = Vec::new();
        for object in wanted.values().flat_map(|wanted| &wanted.objects) {
            let id = name(object);
            if stays(object) {
                continue;
            }
            if present.get(&id).is_none_or(|present| differs(present, object)) {
                writes.push((object.clone(), present.contains_key(&id)));
            }
            names.insert(id);
        }
        let gone = present.iter().filter(|(id, object)| {
            !names.contains(*id) && objects::is_generated(&object.metadata) && !stays(object)
        });
        let gone: Vec<NetworkPolicy> = gone.map(|(_, object)| object.clone()).collect();
        let mut well = true;
        let mut tasks = JoinSet::new();
        for (object, is_present) in writes {
            if tasks.len() >= AT_ONCE {
                well &= ended(&mut tasks).await;
            }
            let writer = self.writer.clone();
            tasks.spawn(async move { writer.apply(object, is_present).await });
        }
        for object in gone {
            if tasks.len() >= AT_ONCE {
                well &= ended(&mut tasks).await;
            }
            let writer = self.writer.clone();
            tasks.spawn(async move { writer.delete(object).await });
        }
        while !tasks.is_empty() {
            well &= ended(&mut tasks).await;
        }
        well
    }

    /// Tells each policy what became of it, once.
    async fn tell(&mut self, wanted: &BTreeMap<PolicyId, Wanted>, now: u64) {
        let mut say: BTreeMap<NsName, BTreeSet<(&'static str, String)>> = BTreeMap::new();
        let rejected: BTreeSet<&NsName> = self
            .index
            .problems()
            .filter(|problem| {
                problem.policy.kind == PolicyKind::ConfigMap && problem.in_force != InForce::Current
            })
            .map(|problem| {
                let errors: Vec<String> = problem
                    .findings
                    .iter()
                    .filter(|finding| finding.is_error())
                    .map(ToString::to_string)
                    .collect();
                let holds = match problem.in_force {
                    InForce::Current => "it is in force",
                    InForce::Earlier => "its last valid version stays in force",
                    InForce::Nothing => "no valid version is known, so its namespace is denied by default",
                };
                let note = format!("{} ({holds})", few(&errors));
                say.entry(problem.policy.id.clone()).or_default().insert(("Rejected", note));
                &problem.policy.id
            })
            .collect();
        for (id, made) in wanted {
            let lines = say.entry(id.id.clone()).or_default();
            if !rejected.contains(&id.id) {
                lines.insert(("Accepted", "The policy is valid.".to_owned()));
            }
            let Some(policy) = self.index.cluster().policies.get(id) else { continue };
            if policy.mode == Mode::Audit {
                continue;
            }
            // Every NetworkPolicy allows the pod's own node, which is worth no warning at each.
            let telling = |loss: &&Loss| loss.direction.is_some() && loss.kind != LossKind::OwnNode;
            let losses: Vec<String> = made.losses.iter().filter(telling).map(ToString::to_string).collect();
            if made.too_many {
                let note = format!(
                    "It would become more than {MOST_OBJECTS} NetworkPolicies, so there is none; nodes enforce it all the same."
                );
                lines.insert(("TooLarge", note));
            } else if losses.is_empty() {
                lines.insert(("Generated", format!("NetworkPolicies: {}.", made.objects.len())));
            } else {
                let note = format!(
                    "NetworkPolicies: {}. They differ from what nodes enforce: {}",
                    made.objects.len(),
                    few(&losses)
                );
                lines.insert(("GeneratedWithLosses", note));
            }
            for rule in &policy.rules {
                match rule.expires {
                    Some(expires) if expires <= now => {
                        lines.insert((
                            "Expired",
                            format!("{} has ended and matches nothing any more.", rule.name),
                        ));
                    }
                    Some(expires) if expires - now <= SOON => {
                        let when =
                            i64::try_from(expires).ok().and_then(|at| jiff::Timestamp::from_second(at).ok());
                        let when = when.map_or_else(|| expires.to_string(), |at| at.to_string());
                        lines.insert(("Expiring", format!("{} ends at {when}.", rule.name)));
                    }
                    _ => {}
                }
                for peer in &rule.peers {
                    if let Peer::Unresolved(what) = peer
                        && what.is_cloud()
                        && let Err(missing) = self.index.ranges().resolve(what)
                    {
                        lines.insert(("Unresolved", format!("{}: {missing}.", rule.name)));
                    }
                }
            }
        }
        for (id, lines) in &say {
            let before = self.told.get(id);
            let owner = self.owners.as_ref().and_then(|owners| owners.get(id));
            for (reason, note) in lines {
                if before.is_some_and(|before| before.contains(&(*reason, note.clone())))
                    || self.writer.lead.permit().is_err()
                {
                    continue;
                }
                let about = reference(id, owner.map(String::as_str));
                if matches!(*reason, "Accepted" | "Generated") {
                    self.writer.events.tell(&about, reason, "Generate", note).await;
                } else {
                    self.writer.events.warn(&about, reason, "Generate", note).await;
                }
            }
        }
        self.told = say;
    }
}

/// What everything is generated from.
struct Given {
    view: View,
    owners: BTreeMap<NsName, String>,
    settings: Settings,
    how: How,
    now: u64,
}

/// Returns what is wanted, and when that changes by itself.
fn wanted(given: &Given) -> (BTreeMap<PolicyId, Wanted>, Option<u64>) {
    let Given { view, owners, settings, how, now } = given;
    let generator = Generator::new(view.cluster(), settings, how, *now);
    let revisions: BTreeMap<&NsName, String> = view
        .texts()
        .filter_map(|(id, text, good)| {
            Some((id, Sha256::of(good.or(text)?.as_bytes()).to_string()[..16].to_owned()))
        })
        .collect();
    let mut wanted: BTreeMap<PolicyId, Wanted> = BTreeMap::new();
    let mut next = None;
    for id in generator.policies() {
        let made = generator.generate(id);
        next = match (next, made.next) {
            (Some(a), Some(b)) => Some(u64::min(a, b)),
            (a, b) => a.or(b),
        };
        let owner = owners.get(&id.id).map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "ConfigMap".to_owned(),
            name: id.id.name.clone(),
            uid: uid.clone(),
            ..OwnerReference::default()
        });
        // Without its owner it would outlive it. The watch of owners is about to tell.
        let Some(owner) = &owner else { continue };
        let origin = Origin {
            policy: &id.id,
            revision: revisions.get(&id.id).map(String::as_str),
            owner: Some(owner),
            losses: &made.losses,
        };
        let too_many = made.objects.len() > MOST_OBJECTS;
        // None at all isolates no pod: wider than the policy, never narrower.
        let made_objects = made
            .objects
            .iter()
            .filter(|_| !too_many)
            .map(|object| objects::object(object, &origin))
            .collect();
        wanted.insert(id.clone(), Wanted { objects: made_objects, losses: made.losses, too_many });
    }
    (wanted, next)
}

/// Waits for one of them. Returns whether it went well; one that panicked did not.
async fn ended(tasks: &mut JoinSet<bool>) -> bool {
    tasks.join_next().await.is_some_and(|ended| ended.unwrap_or(false))
}

/// Writes single objects.
#[derive(Clone)]
struct Writer {
    client: Client,
    lead: Lead,
    events: Events,
    counts: Arc<Counts>,
}

impl Writer {
    async fn apply(&self, object: NetworkPolicy, is_present: bool) -> bool {
        let object = &object;
        let id = name(object);
        let api = Api::<NetworkPolicy>::namespaced(self.client.clone(), &id.namespace);
        if self.lead.permit().is_err() {
            return false;
        }
        if !is_present {
            // One without our label is somebody else's, whatever its name.
            match api.get_metadata_opt(&id.name).await {
                Ok(None) => {}
                Ok(Some(other)) if other.labels().get(MANAGED_BY.0).is_some_and(|by| by == MANAGED_BY.1) => {}
                Ok(Some(_)) => {
                    self.counts.conflicts.fetch_add(1, Ordering::Relaxed);
                    self.warn_owner(
                        object,
                        "NameTaken",
                        &format!("NetworkPolicy {} is somebody else's and stays as it is", id.name),
                    )
                    .await;
                    // Nothing is wrong with anything else, and nothing changes by trying again soon.
                    return true;
                }
                Err(error) => return self.failed("reading", &id, &error),
            }
        }
        let mut params =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let patch = Patch::Apply(object);
        match api.patch(&id.name, &params, &patch).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.counts.conflicts.fetch_add(1, Ordering::Relaxed);
                self.warn_owner(
                    object,
                    "Overwritten",
                    &format!(
                        "NetworkPolicy {} was changed by somebody else and is put right: {}",
                        id.name, status.message
                    ),
                )
                .await;
                params.force = true;
                if let Err(error) = api.patch(&id.name, &params, &patch).await {
                    return self.failed("writing", &id, &error);
                }
            }
            // The namespace is going, and takes everything with it.
            Err(kube::Error::Api(status)) if status.code == 404 || is_terminating(&status) => return true,
            Err(error) => return self.failed("writing", &id, &error),
        }
        self.counts.written.fetch_add(1, Ordering::Relaxed);
        debug!(networkpolicy = %id, "written");
        true
    }

    async fn delete(&self, object: NetworkPolicy) -> bool {
        let id = &name(&object);
        if self.lead.permit().is_err() {
            return false;
        }
        let api = Api::<NetworkPolicy>::namespaced(self.client.clone(), &id.namespace);
        let preconditions =
            Preconditions { uid: object.metadata.uid, resource_version: object.metadata.resource_version };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(&id.name, &params).await {
            Ok(_) => {
                self.counts.deleted.fetch_add(1, Ordering::Relaxed);
                info!(networkpolicy = %id, "deleted, because no policy wants it any more");
                true
            }
            Err(kube::Error::Api(status)) if status.code == 404 => true,
            // It has changed meanwhile: the watch tells, and it is looked at again.
            Err(kube::Error::Api(status)) if status.code == 409 => true,
            Err(error) => self.failed("deleting", id, &error),
        }
    }

    fn failed(&self, what: &str, id: &NsName, error: &kube::Error) -> bool {
        self.counts.failed.fetch_add(1, Ordering::Relaxed);
        warn!(networkpolicy = %id, %error, "{what} it failed; it is tried again");
        false
    }

    async fn warn_owner(&self, object: &NetworkPolicy, reason: &str, note: &str) {
        let owner = object.metadata.owner_references.iter().flatten().next();
        let Some(owner) = owner else { return };
        let id = NsName::new(name(object).namespace, owner.name.clone());
        warn!(policy = %id, "{note}");
        self.events.warn(&reference(&id, Some(&owner.uid)), reason, "Generate", note).await;
    }
}

/// Returns the first few texts, and how many more there are.
fn few(texts: &[String]) -> String {
    let mut text = texts.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join("; ");
    if texts.len() > NAMED {
        text += &format!("; and {} more", texts.len() - NAMED);
    }
    text
}

fn name(object: &NetworkPolicy) -> NsName {
    NsName::new(
        object.metadata.namespace.clone().unwrap_or_default(),
        object.metadata.name.clone().unwrap_or_default(),
    )
}

fn reference(id: &NsName, uid: Option<&str>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("ConfigMap".to_owned()),
        namespace: Some(id.namespace.clone()),
        name: Some(id.name.clone()),
        uid: uid.map(str::to_owned),
        ..ObjectReference::default()
    }
}

fn is_terminating(status: &kube::core::Status) -> bool {
    status.code == 403 && status.message.contains("being terminated")
}

/// Whether an object is not what is wanted. What others have added beside is theirs.
fn differs(present: &NetworkPolicy, wanted: &NetworkPolicy) -> bool {
    let labels = |object: &NetworkPolicy| object.metadata.labels.clone().unwrap_or_default();
    let (have, want) = (labels(present), labels(wanted));
    let own = |object: &NetworkPolicy| -> BTreeMap<String, String> {
        let all = object.metadata.annotations.clone().unwrap_or_default();
        all.into_iter().filter(|(key, _)| [SOURCE, SOURCE_REVISION, LOSSES].contains(&key.as_str())).collect()
    };
    let owners = |object: &NetworkPolicy| -> BTreeSet<String> {
        object.metadata.owner_references.iter().flatten().map(|owner| owner.uid.clone()).collect()
    };
    // The server leaves an empty list out.
    let spec = |object: &NetworkPolicy| {
        let mut spec = object.spec.clone().unwrap_or_default();
        spec.egress.get_or_insert_default();
        spec
    };
    spec(present) != spec(wanted)
        || want.iter().any(|(key, value)| have.get(key) != Some(value))
        || own(present) != own(wanted)
        || !owners(wanted).is_subset(&owners(present))
}

/// The list of each watch that is under way.
#[derive(Default)]
struct Lists {
    present: List<NetworkPolicy>,
    owners: List<String>,
    services: List<Labels>,
}

/// A list that is under way, of what is kept of each object.
struct List<T> {
    listing: Option<BTreeMap<NsName, T>>,
    failing: bool,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { listing: None, failing: false }
    }
}

impl<T: PartialEq> List<T> {
    /// Takes what a watch says into what is known. Returns whether that has changed.
    fn take<K: kube::ResourceExt>(
        &mut self,
        event: Result<Event<K>, watcher::Error>,
        known: &mut Option<BTreeMap<NsName, T>>,
        kept: impl Fn(K) -> Option<T>,
        what: &str,
    ) -> bool {
        let id = |object: &K| NsName::new(object.namespace().unwrap_or_default(), object.name_any());
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(%error, "the API server does not tell of {what}; trying again");
                }
                return false;
            }
        };
        self.failing = false;
        match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                false
            }
            Event::InitApply(object) => {
                let (id, listing) = (id(&object), self.listing.get_or_insert_default());
                listing.extend(kept(object).map(|kept| (id, kept)));
                false
            }
            Event::InitDone => {
                let listed = self.listing.take().unwrap_or_default();
                let changed = known.as_ref() != Some(&listed);
                *known = Some(listed);
                changed
            }
            Event::Apply(object) => {
                let (id, known) = (id(&object), known.get_or_insert_default());
                match kept(object) {
                    Some(kept) if known.get(&id) == Some(&kept) => false,
                    Some(kept) => {
                        known.insert(id, kept);
                        true
                    }
                    None => known.remove(&id).is_some(),
                }
            }
            Event::Delete(object) => known.as_mut().is_some_and(|known| known.remove(&id(&object)).is_some()),
        }
    }
}
