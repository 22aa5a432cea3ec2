//! Writes the policies as standard NetworkPolicies, and tells their owners what became of them.
//!
//! What is written is written over the version that was seen, so that nothing of somebody else's is taken over, however it got there.

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
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
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
use tokio::{sync::watch, task::JoinSet};
use tracing::{debug, error, info, warn};

use super::{ABSENT, Clock, Lead, Means, events::Events, lease::FIELD_MANAGER};
use crate::{
    agent::read_policy,
    k8s::{
        convert::MANAGED,
        generated::{self as objects, LOSSES, MANAGED_BY, Origin, SOURCE, SOURCE_REVISION},
        source::{self, KubeSource},
        summary::{self, plain},
    },
    overview::{CONTROLLER, Facts, Objects},
    policy::{
        cluster::{Labels, NsName, Settings},
        demand::{self, Demand, Nodes},
        generated::{Generator, Inexpressible, Limits, Loss, LossKind, Options as How},
        index::{InForce, Index, View},
        model::{Mode, Peer, Policy, PolicyId, PolicyKind},
    },
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
/// How many objects the policies of one namespace may become together.
const MOST_IN_NAMESPACE: usize = 1024;
/// How much is told of an error.
const MOST_REASON: usize = 500;
/// How many findings or losses an Event names.
const NAMED: usize = 3;

/// How to write NetworkPolicies.
#[derive(Clone, Copy, Debug)]
pub struct Writing {
    /// What to do about what a NetworkPolicy cannot say.
    pub inexpressible: Inexpressible,
    /// Whether ClusterIPs are written, too.
    pub cluster_ips: bool,
}

/// How to follow policies.
#[derive(Clone, Debug)]
pub struct Options {
    /// How they are written as NetworkPolicies, if they are.
    pub network_policies: Option<Writing>,
    /// Which controller this is, in the annotation of what it writes.
    pub instance: String,
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
    /// Policies whose objects would be too many, or are another controller's.
    pub refused: AtomicU64,
    /// Requests that failed.
    pub failed: AtomicU64,
    /// Microseconds that the last look at everything took, without waiting for the API server.
    pub took: AtomicU64,
}

/// What is wanted of one policy.
#[derive(Default)]
struct Wanted {
    objects: Vec<NetworkPolicy>,
    /// Why there are none, and those that are there stay.
    refused: Option<Refused>,
    losses: Vec<Loss>,
}

/// Why a policy becomes no objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// There would be too many.
    TooLarge,
    /// There would be too many in its namespace.
    NamespaceFull,
    /// Another controller has made some.
    Foreign,
}

impl Refused {
    const fn reason(self) -> &'static str {
        match self {
            Self::TooLarge => "TooLarge",
            Self::NamespaceFull => "NamespaceFull",
            Self::Foreign => "AnotherController",
        }
    }

    fn note(self) -> String {
        const STAYS: &str = "NetworkPolicies that are there stay as they are, no others are made, and nodes enforce it all the same";
        match self {
            Self::TooLarge => format!("It would become more than {MOST_OBJECTS} NetworkPolicies. {STAYS}."),
            Self::NamespaceFull => format!(
                "The policies of its namespace would become more than {MOST_IN_NAMESPACE} NetworkPolicies together. {STAYS}."
            ),
            Self::Foreign => format!(
                "Another controller has made its NetworkPolicies, as their annotation {CONTROLLER} says. {STAYS}. End one of the two, or \
                 give this one the name of the other with --instance."
            ),
        }
    }
}

impl Wanted {
    /// Returns the losses that are worth a warning: every NetworkPolicy allows the pod's own node.
    fn telling(&self) -> impl Iterator<Item = &Loss> {
        self.losses.iter().filter(|loss| loss.direction.is_some() && loss.kind != LossKind::OwnNode)
    }
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
    /// Where what is known of policies goes.
    facts: watch::Sender<Option<Arc<Vec<Facts>>>>,
    /// What the API server does not tell of, and why, as it was said last.
    silent: BTreeMap<String, String>,
}

impl Reconciler {
    pub(super) fn new(
        client: Client,
        options: Options,
        means: Means,
        counts: Arc<Counts>,
        facts: watch::Sender<Option<Arc<Vec<Facts>>>>,
    ) -> Self {
        let Means { lead, events, clock } = means;
        Self {
            writer: Writer { events, client: client.clone(), lead, counts: Arc::clone(&counts) },
            client,
            options,
            counts,
            clock,
            index: Index::new(read_policy),
            present: None,
            owners: None,
            selectors: None,
            told: BTreeMap::new(),
            facts,
            silent: BTreeMap::new(),
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
                    if taken.status {
                        self.complain(&source);
                    }
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

    /// Says once what the API server does not tell of: nothing is written before all of it was heard.
    fn complain(&mut self, source: &KubeSource) {
        let failing = source.status().into_iter();
        let failing = failing
            .filter_map(|watch| Some((watch.subject.to_string(), plain(&watch.failing?, MOST_REASON))));
        let silent: BTreeMap<String, String> = failing.collect();
        for (what, error) in &silent {
            if self.silent.get(what) != Some(error) {
                warn!(error, "the API server does not tell of {what}; trying again");
            }
        }
        for what in self.silent.keys().filter(|what| !silent.contains_key(*what)) {
            info!("the API server tells of {what} again");
        }
        self.silent = silent;
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
            how: self.options.network_policies.map(|writing| How {
                inexpressible: writing.inexpressible,
                cluster_ips: writing.cluster_ips,
                selectors: selectors.clone(),
                limits: Limits::default(),
            }),
            instance: self.options.instance.clone(),
            present: self.present.as_ref().map_or_else(BTreeMap::new, counted),
            foreign: self.present.iter().flatten().filter_map(|(_, object)| self.foreign(object)).collect(),
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
        store(&self.counts.refused, wanted.values().filter(|wanted| wanted.refused.is_some()).count());
        self.counts
            .took
            .store(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        // What is reported of policies does not wait for what is written of them.
        _ = self.facts.send_replace(Some(Arc::new(self.facts_of(&wanted, now))));
        let well = self.options.network_policies.is_none() || self.write(&wanted, &self.held(&wanted)).await;
        self.tell(&wanted, now);
        let expiry = next
            .map_or(LOOK, |next| Duration::from_secs(next.saturating_sub(now)).max(Duration::from_secs(1)));
        if well { expiry.min(LOOK) } else { AGAIN }
    }

    /// Returns what is known of each policy.
    fn facts_of(&self, wanted: &BTreeMap<PolicyId, Wanted>, now: u64) -> Vec<Facts> {
        let problems: BTreeMap<&NsName, _> = self
            .index
            .problems()
            .filter(|problem| problem.policy.kind == PolicyKind::ConfigMap)
            .map(|problem| (&problem.policy.id, problem))
            .collect();
        self.index
            .texts()
            .map(|(id, text, good)| {
                let (in_force, findings) = problems
                    .get(id)
                    .map_or((InForce::Current, &[][..]), |problem| (problem.in_force, problem.findings));
                let key = PolicyId { kind: PolicyKind::ConfigMap, id: id.clone() };
                let policy = self.index.cluster().policies.get(&key);
                let mut facts = Facts::new(id.clone(), in_force, policy.map(Arc::as_ref), findings, now);
                facts.uid = self.owners.as_ref().and_then(|owners| owners.get(id)).cloned();
                facts.written = text.map(summary::revision);
                facts.accepted = match in_force {
                    InForce::Current => facts.written.clone(),
                    InForce::Earlier => good.map(summary::revision),
                    InForce::Nothing => None,
                };
                facts.unresolved = policy.map_or_else(Vec::new, |policy| self.unresolved(policy));
                if self.options.network_policies.is_some() {
                    facts.generated = wanted.get(&key).map(|made| Objects {
                        count: made.objects.len(),
                        losses: made.telling().count(),
                        named: made.telling().take(NAMED).map(ToString::to_string).collect(),
                        refused: made.refused.map(|why| why.note()),
                    });
                }
                facts
            })
            .collect()
    }

    /// Returns a line for each destination of a policy that is not known.
    fn unresolved(&self, policy: &Policy) -> Vec<String> {
        let mut lines = Vec::new();
        for rule in &policy.rules {
            for peer in &rule.peers {
                if let Peer::Unresolved(what) = peer
                    && what.is_cloud()
                    && let Err(missing) = self.index.ranges().resolve(what)
                {
                    lines.push(format!("{}: {missing}.", rule.name));
                }
            }
        }
        lines
    }

    /// Returns the policy of an object that another controller has made.
    fn foreign(&self, object: &NetworkPolicy) -> Option<String> {
        let annotations = object.metadata.annotations.as_ref()?;
        let other = *annotations.get(CONTROLLER)? != self.options.instance
            && is_applied(&object.metadata, CONTROLLER)
            && objects::is_generated(&object.metadata);
        annotations.get(SOURCE).filter(|_| other).cloned()
    }

    /// Returns the policies whose objects are left as they are, if there are any: nodes may hold a version of them, or addresses, that
    /// this process has never known, and what it knows would be narrower; or there would be too many.
    fn held(&self, wanted: &BTreeMap<PolicyId, Wanted>) -> BTreeSet<String> {
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
        let refused = wanted.iter().filter(|(_, wanted)| wanted.refused.is_some()).map(|(id, _)| id);
        broken
            .chain(unknown)
            .chain(refused)
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
        let mut writes: Vec<(NetworkPolicy, Option<Seen>)> = Vec::new();
        for object in wanted.values().flat_map(|wanted| &wanted.objects) {
            let id = name(object);
            if stays(object) {
                continue;
            }
            if present.get(&id).is_none_or(|present| differs(present, object)) {
                writes.push((object.clone(), present.get(&id).map(Seen::of)));
            }
            names.insert(id);
        }
        let gone = present.iter().filter(|(id, object)| {
            !names.contains(*id)
                && objects::is_generated(&object.metadata)
                && self.foreign(object).is_none()
                && !stays(object)
        });
        let gone: Vec<NetworkPolicy> = gone.map(|(_, object)| object.clone()).collect();
        let mut well = true;
        let mut tasks = JoinSet::new();
        for (object, seen) in writes {
            if tasks.len() >= AT_ONCE {
                well &= ended(&mut tasks).await;
            }
            let writer = self.writer.clone();
            tasks.spawn(async move { writer.apply(object, seen).await });
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
    fn tell(&mut self, wanted: &BTreeMap<PolicyId, Wanted>, now: u64) {
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
            let losses: Vec<String> = made.telling().map(ToString::to_string).collect();
            if let Some(refused) = made.refused {
                lines.insert((refused.reason(), refused.note()));
            } else if self.options.network_policies.is_none() {
                // There are none, as was asked for.
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
            for line in self.unresolved(policy) {
                lines.insert(("Unresolved", line));
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
            }
        }
        for (id, lines) in &mut say {
            let before = self.told.get(id);
            let owner = self.owners.as_ref().and_then(|owners| owners.get(id));
            // What there was no room for is said at the next look.
            lines.retain(|line| {
                let (reason, note) = line;
                if before.is_some_and(|before| before.contains(line)) {
                    return true;
                }
                if self.writer.lead.permit().is_err() {
                    return false;
                }
                let about = reference(id, owner.map(String::as_str));
                if matches!(*reason, "Accepted" | "Generated") {
                    self.writer.events.tell(&about, reason, "Generate", note)
                } else {
                    self.writer.events.warn(&about, reason, "Generate", note)
                }
            });
        }
        self.told = say;
    }
}

/// What everything is generated from.
struct Given {
    view: View,
    owners: BTreeMap<NsName, String>,
    settings: Settings,
    /// How objects are written, if they are.
    how: Option<How>,
    instance: String,
    /// How many objects of ours each policy has, by its namespace and name.
    present: BTreeMap<String, usize>,
    /// Policies that another controller has made objects of.
    foreign: BTreeSet<String>,
    now: u64,
}

/// Returns how many objects each policy has that were generated from it.
fn counted(present: &BTreeMap<NsName, NetworkPolicy>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for object in present.values().filter(|object| objects::is_generated(&object.metadata)) {
        if let Some(source) = object.metadata.annotations.as_ref().and_then(|pairs| pairs.get(SOURCE)) {
            *counts.entry(source.clone()).or_default() += 1;
        }
    }
    counts
}

/// Returns what is wanted, and when that changes by itself.
fn wanted(given: &Given) -> (BTreeMap<PolicyId, Wanted>, Option<u64>) {
    let Given { view, owners, settings, how, instance, present, foreign, now } = given;
    let mut wanted: BTreeMap<PolicyId, Wanted> = BTreeMap::new();
    let mut next = None;
    let mut soonest = |when: Option<u64>| {
        next = match (next, when) {
            (Some(a), Some(b)) => Some(u64::min(a, b)),
            (a, b) => a.or(b),
        };
    };
    let Some(how) = how else {
        for policy in
            view.cluster().policies.values().filter(|policy| policy.id.kind == PolicyKind::ConfigMap)
        {
            let ends = policy.rules.iter().filter_map(|rule| rule.expires).filter(|end| end > now);
            soonest(ends.min());
            wanted.insert(policy.id.clone(), Wanted::default());
        }
        return (wanted, next);
    };
    let generator = Generator::new(view.cluster(), settings, how, *now);
    let revisions: BTreeMap<&NsName, String> =
        view.texts().filter_map(|(id, text, good)| Some((id, summary::revision(good.or(text)?)))).collect();
    for id in generator.policies() {
        let made = generator.generate(id);
        soonest(made.next);
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
        let refused = if foreign.contains(&id.id.to_string()) {
            Some(Refused::Foreign)
        } else {
            (made.objects.len() > MOST_OBJECTS).then_some(Refused::TooLarge)
        };
        let object = |object| {
            let mut object = objects::object(object, &origin);
            let annotations = object.metadata.annotations.get_or_insert_default();
            annotations.insert(CONTROLLER.to_owned(), instance.clone());
            object
        };
        let made_objects = made.objects.iter().filter(|_| refused.is_none()).map(object).collect();
        wanted.insert(id.clone(), Wanted { objects: made_objects, losses: made.losses, refused });
    }
    bound(&mut wanted, present);
    (wanted, next)
}

/// Refuses what is too much for a namespace. Those that have objects come first: a policy that comes takes no other's, and what is there
/// is not taken away, which would open what it closes.
fn bound(wanted: &mut BTreeMap<PolicyId, Wanted>, present: &BTreeMap<String, usize>) {
    let has = |id: &PolicyId| present.get(&id.id.to_string()).copied().unwrap_or(0);
    let mut namespaces: BTreeMap<String, Vec<PolicyId>> = BTreeMap::new();
    for id in wanted.keys() {
        namespaces.entry(id.id.namespace.clone()).or_default().push(id.clone());
    }
    for mut policies in namespaces.into_values() {
        policies.sort_by_key(|id| has(id) == 0);
        // What is there stays for certain.
        let mut used: usize = policies.iter().map(has).sum();
        for id in policies {
            let policy = wanted.get_mut(&id).expect("it was just listed");
            let grown = used - has(&id) + policy.objects.len();
            if policy.refused.is_some() {
                continue;
            }
            if grown > MOST_IN_NAMESPACE && policy.objects.len() > has(&id) {
                policy.refused = Some(Refused::NamespaceFull);
                policy.objects.clear();
            } else {
                used = grown;
            }
        }
    }
}

/// An object as it was seen.
#[derive(Clone, Debug)]
struct Seen {
    uid: Option<String>,
    version: Option<String>,
}

impl Seen {
    fn of(object: &NetworkPolicy) -> Self {
        Self { uid: object.metadata.uid.clone(), version: object.metadata.resource_version.clone() }
    }
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
    /// Writes an object over what was seen, or where nothing was.
    async fn apply(&self, mut object: NetworkPolicy, seen: Option<Seen>) -> bool {
        let id = name(&object);
        let api = Api::<NetworkPolicy>::namespaced(self.client.clone(), &id.namespace);
        if self.lead.permit().is_err() {
            return false;
        }
        let was_seen = seen.is_some();
        match seen {
            Some(Seen { uid, version }) => {
                object.metadata.uid = uid;
                object.metadata.resource_version = version;
            }
            None => object.metadata.resource_version = Some(ABSENT.to_owned()),
        }
        let object = &object;
        let mut params =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let patch = Patch::Apply(object);
        let mut written = api.patch(&id.name, &params, &patch).await;
        if let Err(kube::Error::Api(status)) = &written
            && was_seen
            && is_of_fields(status)
        {
            self.counts.conflicts.fetch_add(1, Ordering::Relaxed);
            let note = format!(
                "NetworkPolicy {} was changed by somebody else and is put right: {}",
                id.name, status.message
            );
            self.warn_owner(object, "Overwritten", &note);
            params.force = true;
            written = api.patch(&id.name, &params, &patch).await;
        }
        match written {
            Ok(_) => {}
            // It has changed, or is gone, since it was seen. The watch tells, and it is looked at again.
            Err(kube::Error::Api(status)) if status.code == 409 && was_seen => return true,
            Err(kube::Error::Api(status)) if status.code == 409 => {
                return self.is_taken(&api, object, &id).await;
            }
            // The namespace is going, and takes everything with it.
            Err(kube::Error::Api(status)) if status.code == 404 || is_terminating(&status) => return true,
            Err(error) => return self.failed("writing", &id, &error),
        }
        self.counts.written.fetch_add(1, Ordering::Relaxed);
        debug!(networkpolicy = %id, "written");
        true
    }

    /// Says that there is an object of that name that was not seen: somebody else's, or one that the watch is about to tell of.
    async fn is_taken(&self, api: &Api<NetworkPolicy>, object: &NetworkPolicy, id: &NsName) -> bool {
        match api.get_metadata_opt(&id.name).await {
            Ok(Some(other)) if other.labels().get(MANAGED_BY.0).is_none_or(|by| by != MANAGED_BY.1) => {
                self.counts.conflicts.fetch_add(1, Ordering::Relaxed);
                let note = format!("NetworkPolicy {} is somebody else's and stays as it is", id.name);
                self.warn_owner(object, "NameTaken", &note);
                // Nothing is wrong with anything else, and nothing changes by trying again soon.
                true
            }
            Ok(_) => true,
            Err(error) => self.failed("reading", id, &error),
        }
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

    fn warn_owner(&self, object: &NetworkPolicy, reason: &str, note: &str) {
        let owner = object.metadata.owner_references.iter().flatten().next();
        let Some(owner) = owner else { return };
        let id = NsName::new(name(object).namespace, owner.name.clone());
        warn!(policy = %id, "{note}");
        self.events.warn(&reference(&id, Some(&owner.uid)), reason, "Generate", note);
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

/// Whether it was a controller that has applied an annotation, and not somebody who would have its object left alone.
fn is_applied(metadata: &ObjectMeta, annotation: &str) -> bool {
    metadata.managed_fields.iter().flatten().any(|entry| {
        let of = entry.fields_v1.as_ref();
        let field = of.map(|fields| &fields.0["f:metadata"]["f:annotations"][format!("f:{annotation}")]);
        entry.manager.as_deref() == Some(FIELD_MANAGER)
            && entry.operation.as_deref() == Some("Apply")
            && field.is_some_and(|field| !field.is_null())
    })
}

/// Whether a conflict is about fields that another manager has, and not about the version.
fn is_of_fields(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 409 && causes.into_iter().any(|cause| cause.reason == "FieldManagerConflict")
}

pub(super) fn is_terminating(status: &kube::core::Status) -> bool {
    status.code == 403 && status.message.contains("being terminated")
}

/// Whether an object is not what is wanted. What others have added beside is theirs.
fn differs(present: &NetworkPolicy, wanted: &NetworkPolicy) -> bool {
    let labels = |object: &NetworkPolicy| object.metadata.labels.clone().unwrap_or_default();
    let (have, want) = (labels(present), labels(wanted));
    let own = |object: &NetworkPolicy| -> BTreeMap<String, String> {
        let all = object.metadata.annotations.clone().unwrap_or_default();
        let ours = [SOURCE, SOURCE_REVISION, LOSSES, CONTROLLER];
        all.into_iter().filter(|(key, _)| ours.contains(&key.as_str())).collect()
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
pub(super) struct List<T> {
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
    pub(super) fn take<K: kube::ResourceExt>(
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

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> PolicyId {
        PolicyId { kind: PolicyKind::ConfigMap, id: NsName::new("shop", name) }
    }

    fn wanted(count: usize) -> Wanted {
        Wanted { objects: vec![NetworkPolicy::default(); count], ..Wanted::default() }
    }

    fn refused(wanted: &BTreeMap<PolicyId, Wanted>) -> Vec<&str> {
        let refused = wanted.iter().filter(|(_, wanted)| wanted.refused == Some(Refused::NamespaceFull));
        refused.map(|(id, _)| id.id.name.as_str()).collect()
    }

    #[test]
    fn a_namespace_has_a_bounded_number_of_objects_and_a_new_policy_takes_no_others() {
        let mut all: BTreeMap<PolicyId, Wanted> =
            (10..80).map(|number| (id(&format!("policy-{number}")), wanted(MOST_OBJECTS))).collect();
        let elsewhere = PolicyId { kind: PolicyKind::ConfigMap, id: NsName::new("other", "a") };
        all.insert(elsewhere.clone(), wanted(MOST_OBJECTS));
        bound(&mut all, &BTreeMap::new());
        assert_eq!(
            refused(&all),
            ["policy-74", "policy-75", "policy-76", "policy-77", "policy-78", "policy-79"],
            "64 times 16 fit"
        );
        assert_eq!(all[&elsewhere].objects.len(), MOST_OBJECTS, "another namespace has its own");
        assert!(all[&id("policy-74")].objects.is_empty(), "all of a policy, or nothing");

        // Those that have objects keep them, whatever comes before them in the alphabet.
        let mut all: BTreeMap<PolicyId, Wanted> =
            (10..80).map(|number| (id(&format!("policy-{number}")), wanted(MOST_OBJECTS))).collect();
        let present: BTreeMap<String, usize> =
            (20..80).map(|number| (format!("shop/policy-{number}"), MOST_OBJECTS)).collect();
        bound(&mut all, &present);
        assert_eq!(
            refused(&all),
            ["policy-14", "policy-15", "policy-16", "policy-17", "policy-18", "policy-19"]
        );

        // One that would grow keeps what it has; one that shrinks makes room.
        let mut all =
            BTreeMap::from([(id("grows"), wanted(16)), (id("shrinks"), wanted(1)), (id("new"), wanted(9))]);
        let present = BTreeMap::from([
            ("shop/grows".to_owned(), 1),
            ("shop/shrinks".to_owned(), 10),
            ("shop/gone".to_owned(), 5000),
        ]);
        bound(&mut all, &present);
        assert_eq!(refused(&all), Vec::<&str>::new(), "what is about to be deleted takes no room");
        let mut all =
            BTreeMap::from([(id("a"), wanted(900)), (id("b"), wanted(128)), (id("c"), wanted(100))]);
        let present = BTreeMap::from([("shop/a".to_owned(), 900), ("shop/b".to_owned(), 100)]);
        bound(&mut all, &present);
        assert_eq!(refused(&all), ["b", "c"], "what b has stays, so there is no room for c");
    }
}
