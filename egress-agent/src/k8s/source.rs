//! Follows an API server, and keeps an index up to date with what the policies in force need of it.
//!
//! Namespaces, managed ConfigMaps and the pods of the own node are always followed; pods of other nodes, Services, EndpointSlices and
//! nodes only as far as [`Demand`] says. Each watch is a task of its own that lists, watches, starts over and waits as it must; what it
//! finds goes through one channel to whoever owns the index. Nothing here touches the kernel.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, pin_mut};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use self::ranges::Published;
use super::{
    convert::MANAGED,
    trimmed::{Raw, Rejected, plural},
};
use crate::policy::{
    cluster::{NsName, Pod},
    demand::{Demand, Nodes, Scope},
    index::{Change, Index, Object, ObjectKey, ObjectKind},
};

/// How many objects may wait between the watches and the index.
const WAITING: usize = 1024;
/// How many objects one page of a list has.
const PAGE: u32 = 500;
/// How long what is no longer demanded is still followed: a policy often goes only to come back.
const LINGER: Duration = Duration::from_secs(60);
/// A watch that failed counts as failing for so long unless it is heard of again: longer than it waits between two attempts.
const FAILING: Duration = Duration::from_secs(70);
/// How long a watch waits that could not understand what it was sent, at first and at most.
const NOT_UNDERSTOOD: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How many octets the policies of one namespace may have together: as many as two hundred large ones. What is read takes a multiple of
/// that.
const MOST_POLICY_BYTES: usize = 4 << 20;
/// How many octets all policies may have together for those to be kept whose namespace has no pod here, which nobody reads: two thousand
/// namespaces with sixteen kilobytes each.
const MOST_UNREAD_BYTES: usize = 32 << 20;
/// A namespace with more octets of policies than this is a large one. All of those have half of that room, so that few of them do not
/// take it from all others.
const LARGE: usize = 16 << 10;
/// What is put in the place of all policies of a namespace of which some are not kept: an allow must not hold without the denial that goes
/// with it, nor an older version of either.
const CLOSED: &str = r#"{"defaultAction":"deny"}"#;
/// How long after the policies were listed again for one that was not kept they are not for another.
const LISTED_AGAIN: Duration = Duration::from_secs(30);
/// How many objects that cannot be read are told by name.
const MOST_REJECTED: usize = 1000;

/// What one watch is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// All namespaces.
    Namespaces,
    /// ConfigMaps with the label of a policy.
    Policies,
    /// All NetworkPolicies.
    NetworkPolicies,
    /// The pods of this node.
    LocalPods,
    /// Pods of other nodes that have not finished; in one namespace, or in all.
    RemotePods(Option<String>),
    /// Services in one namespace, or in all.
    Services(Option<String>),
    /// EndpointSlices in one namespace, or in all.
    Slices(Option<String>),
    /// This node.
    OwnNode,
    /// All nodes.
    Nodes,
    /// The published ranges of a provider.
    Ranges(String),
}

impl Subject {
    /// Returns the kind of the objects.
    #[must_use]
    pub const fn kind(&self) -> ObjectKind {
        match self {
            Self::Namespaces => ObjectKind::Namespace,
            Self::Policies | Self::Ranges(_) => ObjectKind::ConfigMap,
            Self::NetworkPolicies => ObjectKind::NetworkPolicy,
            Self::LocalPods | Self::RemotePods(_) => ObjectKind::Pod,
            Self::Services(_) => ObjectKind::Service,
            Self::Slices(_) => ObjectKind::EndpointSlice,
            Self::OwnNode | Self::Nodes => ObjectKind::Node,
        }
    }

    /// Returns whether every agent follows it, whatever the policies say.
    #[must_use]
    pub const fn is_base(&self) -> bool {
        matches!(self, Self::Namespaces | Self::Policies | Self::NetworkPolicies | Self::LocalPods)
    }

    fn namespace(&self) -> Option<&str> {
        match self {
            Self::RemotePods(namespace) | Self::Services(namespace) | Self::Slices(namespace) => {
                namespace.as_deref()
            }
            _ => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespaces => f.write_str("namespaces"),
            Self::Policies => f.write_str("managed configmaps"),
            Self::NetworkPolicies => f.write_str("networkpolicies"),
            Self::LocalPods => f.write_str("pods of this node"),
            Self::RemotePods(_) => write!(f, "pods of other nodes in {}", place(self)),
            Self::Services(_) => write!(f, "services in {}", place(self)),
            Self::Slices(_) => write!(f, "endpointslices in {}", place(self)),
            Self::OwnNode => f.write_str("this node"),
            Self::Nodes => f.write_str("all nodes"),
            Self::Ranges(provider) => write!(f, "published ranges of {provider}"),
        }
    }
}

fn place(subject: &Subject) -> String {
    subject.namespace().map_or_else(|| "all namespaces".to_owned(), |name| format!("namespace {name}"))
}

/// What a watch says.
#[derive(Debug)]
pub struct Message {
    subject: Subject,
    /// Which of the watches that were about this subject.
    watch: u64,
    /// When it was received.
    pub at: Instant,
    news: News,
}

#[derive(Debug)]
enum News {
    /// A list begins.
    Begin,
    /// An object as it is now.
    Object(Result<Object, Rejected>),
    /// An object is gone, or no longer what the watch is about.
    Gone(Option<ObjectKey>),
    /// The list is whole: what was not in it is gone.
    End,
    /// What is published of a provider's ranges is another than before; nothing if nothing is.
    Ranges(Option<Box<Published>>),
    /// The watch cannot go on for now.
    Failed(String),
}

/// A watch.
#[derive(Debug)]
struct Watch {
    number: u64,
    task: AbortHandle,
    synced: bool,
    /// Marks of the keys in the list that is under way.
    listed: Option<HashSet<(u64, u64)>>,
    /// What of that list cannot be read.
    unreadable: BTreeSet<String>,
    failed: Option<(Instant, String)>,
    /// Since when nobody demands it.
    idle: Option<Instant>,
}

/// What there is to say about one watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchStatus {
    /// What it is about.
    pub subject: Subject,
    /// Whether it has had a whole list.
    pub synced: bool,
    /// Why it cannot go on, if so.
    pub failing: Option<String>,
}

/// What came of a message.
#[derive(Debug, Default)]
pub struct Taken {
    /// What it has changed in the index.
    pub change: Change,
    /// Whether that may matter to policies already: an object of a first list does not, before the list is whole.
    pub apply: bool,
    /// Whether a policy has changed.
    pub policies: bool,
    /// Whether that is of what every agent follows: a policy, a namespace, a pod of this node.
    pub here: bool,
    /// Something else is synced, or failing, or rejected than before.
    pub status: bool,
}

/// How to follow.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name of this node; empty where this is none, so that no pod is local.
    pub node: String,
    /// Whether NetworkPolicies are followed.
    pub network_policies: bool,
    /// The namespace that ranges are published in, if any are.
    pub ranges: Option<String>,
    /// Providers whose ranges are known otherwise.
    pub other_ranges: BTreeSet<String>,
}

/// Follows an API server.
pub struct KubeSource {
    client: Client,
    options: Options,
    news: mpsc::Sender<Message>,
    tasks: JoinSet<()>,
    watches: BTreeMap<Subject, Watch>,
    started: u64,
    hashers: (RandomState, RandomState),
    /// The pods of this node. When a pod is deleted and another of its name is bound to another node, the two watches may tell it
    /// in either order; what one says about a pod never takes away what the other says.
    local: BTreeSet<NsName>,
    /// Pods of other nodes with the name of one here.
    shadowed: BTreeMap<NsName, Object>,
    rejected: BTreeMap<(Subject, String), String>,
    /// What is in force of published ranges.
    published: BTreeMap<String, Published>,
    /// Why what is published now is not, by provider.
    older: BTreeMap<String, String>,
    /// Of which providers that was not asked for yet.
    unkept: BTreeSet<String>,
    /// The lengths of policies.
    lengths: Texts,
    /// When policies were listed again last for one that was not kept.
    listed_again: Option<Instant>,
    events: BTreeMap<ObjectKind, u64>,
    failures: u64,
}

impl fmt::Debug for KubeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeSource").field("options", &self.options).finish_non_exhaustive()
    }
}

impl KubeSource {
    /// Starts to follow what is always followed. What is found comes out of the receiver, for [`KubeSource::take`].
    ///
    /// It must be called within a tokio runtime. The watches end with this value.
    #[must_use]
    pub fn start(client: Client, options: Options) -> (Self, mpsc::Receiver<Message>) {
        let (news, receiver) = mpsc::channel(WAITING);
        let mut source = Self {
            client,
            options,
            news,
            tasks: JoinSet::new(),
            watches: BTreeMap::new(),
            started: 0,
            hashers: (RandomState::new(), RandomState::new()),
            local: BTreeSet::new(),
            shadowed: BTreeMap::new(),
            rejected: BTreeMap::new(),
            published: BTreeMap::new(),
            older: BTreeMap::new(),
            unkept: BTreeSet::new(),
            lengths: Texts::default(),
            listed_again: None,
            events: BTreeMap::new(),
            failures: 0,
        };
        for subject in [Subject::Namespaces, Subject::Policies] {
            source.follow(subject);
        }
        if !source.options.node.is_empty() {
            source.follow(Subject::LocalPods);
        }
        if source.options.network_policies {
            source.follow(Subject::NetworkPolicies);
        }
        (source, receiver)
    }

    /// Returns whether everything that is always followed has been seen whole.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.watches.iter().filter(|(subject, _)| subject.is_base()).all(|(_, watch)| watch.synced)
    }

    /// Returns what of the rest has been seen whole.
    #[must_use]
    pub fn known(&self) -> Demand {
        let synced = |subject: &Subject| self.watches.get(subject).is_some_and(|watch| watch.synced);
        let scope = |all: &Subject, one: fn(&Subject) -> Option<&String>| {
            if synced(all) {
                return Scope::Everything;
            }
            let here = self.watches.iter().filter(|(_, watch)| watch.synced);
            let here: BTreeSet<String> = here.filter_map(|(subject, _)| one(subject)).cloned().collect();
            if here.is_empty() { Scope::Nothing } else { Scope::Namespaces(here) }
        };
        let pods = scope(&Subject::RemotePods(None), |subject| match subject {
            Subject::RemotePods(namespace) => namespace.as_ref(),
            _ => None,
        });
        let services = scope(&Subject::Services(None), |subject| match subject {
            Subject::Services(namespace) => namespace.as_ref(),
            _ => None,
        });
        let slices = scope(&Subject::Slices(None), |subject| match subject {
            Subject::Slices(namespace) => namespace.as_ref(),
            _ => None,
        });
        let nodes = match (synced(&Subject::Nodes), synced(&Subject::OwnNode)) {
            (true, _) => Nodes::Everything,
            (false, true) => Nodes::Own,
            (false, false) => Nodes::Nothing,
        };
        let ranges = match &self.options.ranges {
            // Nobody publishes any: there is nothing to wait for.
            None => Scope::Everything,
            Some(_) => {
                let here = self.watches.iter().filter(|(_, watch)| watch.synced);
                let here = here.filter_map(|(subject, _)| match subject {
                    Subject::Ranges(provider) => Some(provider.clone()),
                    _ => None,
                });
                let here = here.chain(self.options.other_ranges.iter().cloned()).collect::<BTreeSet<_>>();
                if here.is_empty() { Scope::Nothing } else { Scope::Namespaces(here) }
            }
        };
        Demand { pods, services: both(services, slices), nodes, ranges }
    }

    /// Follows what is demanded, and after a while no longer what is not.
    ///
    /// A wider watch replaces narrower ones only once it has seen everything. Returns what leaving something has changed.
    pub fn want(&mut self, demand: &Demand, index: &mut Index, now: Instant) -> Change {
        self.list_again(index, now);
        let mut wanted = subjects(demand);
        wanted.retain(|subject| match subject {
            Subject::Ranges(provider) => {
                self.options.ranges.is_some() && !self.options.other_ranges.contains(provider)
            }
            _ => true,
        });
        for subject in &wanted {
            match self.watches.get_mut(subject) {
                Some(watch) => watch.idle = None,
                None => self.follow(subject.clone()),
            }
        }
        // What a wanted watch will replace stays until that one is synced; the rest lingers.
        let mut leave = Vec::new();
        for (subject, watch) in &mut self.watches {
            if subject.is_base() || wanted.contains(subject) {
                continue;
            }
            if now.duration_since(*watch.idle.get_or_insert(now)) >= LINGER {
                leave.push(subject.clone());
            }
        }
        for subject in wanted.iter().filter(|subject| self.is_synced(subject)) {
            for (narrow, _) in self.watches.iter().filter(|(narrow, _)| is_part(narrow, subject)) {
                if !wanted.contains(narrow) && !leave.contains(narrow) {
                    leave.push(narrow.clone());
                }
            }
        }
        // A wide watch goes only when what is wanted of it is followed otherwise.
        leave.retain(|subject| {
            !wanted.iter().any(|narrow| is_part(narrow, subject) && !self.is_synced(narrow))
        });
        let mut change = Change::NONE;
        for subject in leave {
            change |= self.leave(&subject, index);
        }
        change
    }

    /// Lists policies again if one was not kept whose namespace has a pod here by now. A list that is under way is left to end.
    fn list_again(&mut self, index: &Index, now: Instant) {
        let rests = self.listed_again.is_some_and(|last| now.duration_since(last) < LISTED_AGAIN);
        let lists = self.watches.get(&Subject::Policies).is_some_and(|watch| watch.listed.is_some());
        let fits = |namespace: &String| index.reads(namespace) && !self.lengths.is_too_large(namespace);
        if rests || lists || !self.lengths.left.iter().any(fits) {
            return;
        }
        self.listed_again = Some(now);
        // Until the list begins, nothing is told of policies.
        let Some(before) = self.watches.remove(&Subject::Policies) else { return };
        before.task.abort();
        self.follow(Subject::Policies);
        // What was known stays known: the list replaces it bit by bit.
        if let Some(watch) = self.watches.get_mut(&Subject::Policies) {
            watch.synced = before.synced;
        }
    }

    fn is_synced(&self, subject: &Subject) -> bool {
        self.watches.get(subject).is_some_and(|watch| watch.synced)
    }

    /// Takes what a watch says into the index.
    pub fn take(&mut self, message: Message, index: &mut Index) -> Taken {
        let Message { subject, watch: number, news, .. } = message;
        let mut taken = Taken::default();
        let pods_known = self.is_synced(&Subject::LocalPods);
        // A watch that was left may still have had something to say.
        let Some(watch) = self.watches.get_mut(&subject).filter(|watch| watch.number == number) else {
            return taken;
        };
        if !matches!(news, News::Failed(_)) && watch.failed.take().is_some() {
            taken.status = true;
        }
        match news {
            News::Begin => {
                watch.listed = Some(HashSet::new());
                watch.unreadable.clear();
                if subject == Subject::Policies {
                    // The list says anew which are not kept.
                    self.lengths.left.clear();
                }
            }
            News::Object(object) => {
                *self.events.entry(subject.kind()).or_default() += 1;
                let left = self.lengths.left.len();
                let object = object.and_then(|object| self.lengths.take(object, index));
                let closes = self.lengths.left.len() > left;
                let key = match &object {
                    Ok(object) => Some(object.key()),
                    Err(rejected) => rejected.key.clone(),
                };
                if let (Some(listed), Some(key)) = (&mut watch.listed, &key) {
                    listed.insert(mark(&self.hashers, key));
                }
                let name = (subject.clone(), key.as_ref().map_or_else(String::new, ToString::to_string));
                match object {
                    Ok(object) => {
                        taken.status |= self.rejected.remove(&name).is_some();
                        taken.change = self.apply(&subject, object, index);
                    }
                    Err(rejected) => {
                        if watch.listed.is_some() {
                            watch.unreadable.insert(name.1.clone());
                        }
                        taken.change = match &key {
                            Some(ObjectKey::ConfigMap(id)) if self.lengths.left.contains(&id.namespace) => {
                                let others =
                                    if closes { self.lengths.names(&id.namespace) } else { Vec::new() };
                                self.close(others.into_iter().chain([id.clone()]), pods_known, index)
                            }
                            _ => unreadable(index, key.as_ref()),
                        };
                        if let Some(ObjectKey::ConfigMap(id)) = &key {
                            self.lengths.keep(id, index);
                        }
                        if self.rejected.len() < MOST_REJECTED || self.rejected.contains_key(&name) {
                            let before = self.rejected.insert(name, rejected.message.clone());
                            taken.status |= before.as_ref() != Some(&rejected.message);
                        }
                    }
                }
            }
            News::Gone(key) => {
                *self.events.entry(subject.kind()).or_default() += 1;
                if let Some(key) = key {
                    let name = (subject.clone(), key.to_string());
                    taken.status |= self.rejected.remove(&name).is_some();
                    taken.change = self.delete(&subject, &key, index);
                }
            }
            News::End => {
                watch.synced = true;
                taken.status = true;
                if let Some(listed) = watch.listed.take() {
                    let again = std::mem::take(&mut watch.unreadable);
                    self.rejected.retain(|(of, name), _| *of != subject || again.contains(name));
                    taken.change = self.retain(&subject, index, &listed);
                }
                if subject == Subject::LocalPods && !pods_known {
                    // The others are listed again, now that somebody needs them.
                    let closed =
                        self.lengths.left.iter().filter(|namespace| {
                            !index.reads(namespace) || self.lengths.is_too_large(namespace)
                        });
                    let closed: Vec<NsName> =
                        closed.flat_map(|namespace| index.config_maps(namespace)).collect();
                    taken.change |= self.close(closed, true, index);
                }
            }
            News::Ranges(published) => {
                *self.events.entry(subject.kind()).or_default() += 1;
                if let Subject::Ranges(provider) = &subject {
                    taken.change = self.publish(provider, published, index);
                    // The whole set of one provider at once, so it may matter whatever else is still under way.
                    taken.apply = taken.change.cluster;
                    taken.here = taken.apply;
                }
                taken.status = true;
                return taken;
            }
            News::Failed(reason) => {
                self.failures += 1;
                taken.status = watch.failed.as_ref().is_none_or(|(_, before)| *before != reason);
                watch.failed = Some((Instant::now(), reason));
            }
        }
        taken.apply = taken.change.cluster && self.is_synced(&subject);
        taken.here = taken.apply && subject.is_base();
        taken.policies = taken.apply && matches!(subject, Subject::Policies | Subject::NetworkPolicies);
        taken
    }

    /// Returns what there is to say about each watch.
    #[must_use]
    pub fn status(&self) -> Vec<WatchStatus> {
        let status = |(subject, watch): (&Subject, &Watch)| WatchStatus {
            subject: subject.clone(),
            synced: watch.synced,
            failing: watch
                .failed
                .as_ref()
                .filter(|(at, _)| at.elapsed() < FAILING || !watch.synced)
                .map(|(_, reason)| reason.clone())
                .or_else(|| match subject {
                    Subject::Ranges(provider) => self.older.get(provider).cloned(),
                    _ => None,
                }),
        };
        self.watches.iter().map(status).collect()
    }

    /// Returns the objects that cannot be read, and why; their last readable version holds, if there was one.
    pub fn rejected(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rejected.iter().map(|((subject, name), why)| {
            (if name.is_empty() { plural(subject.kind()) } else { name.as_str() }, why.as_str())
        })
    }

    /// Returns how many events each kind of object has had.
    pub fn events(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.events.iter().map(|(kind, count)| (plural(*kind), *count))
    }

    /// Returns how often a watch could not go on.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Takes what is published of a provider's ranges, unless it is older than what is in force. What is gone stays in force until this process ends: somebody may only be
    /// about to publish anew.
    fn publish(&mut self, provider: &str, published: Option<Box<Published>>, index: &mut Index) -> Change {
        let Some(published) = published else { return Change::NONE };
        let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
        let before = self.published.get(provider);
        if let Some(why) = before.and_then(|before| published.is_older(before, now)) {
            self.older.insert(provider.to_owned(), why);
            return Change::NONE;
        }
        self.older.remove(provider);
        let mut ranges = index.ranges().clone();
        published.enter(provider, &mut ranges);
        self.unkept.insert(provider.to_owned());
        self.published.insert(provider.to_owned(), *published);
        index.set_ranges(ranges)
    }

    /// Returns what was published since the last call.
    pub fn take_news(&mut self) -> Vec<(String, Published)> {
        let unkept = std::mem::take(&mut self.unkept);
        unkept
            .into_iter()
            .filter_map(|name| Some((name.clone(), self.published.get(&name)?.clone())))
            .collect()
    }

    /// Returns what is published, by provider.
    #[must_use]
    pub fn published(&self) -> &BTreeMap<String, Published> {
        &self.published
    }

    fn follow_ranges(&mut self, provider: String, number: u64) -> AbortHandle {
        let namespace = self.options.ranges.clone().unwrap_or_default();
        let subject = Subject::Ranges(provider.clone());
        let teller = Teller { subject, watch: number, news: self.news.clone() };
        self.tasks.spawn(ranges::follow(self.client.clone(), namespace, provider, teller))
    }

    fn follow(&mut self, subject: Subject) {
        self.started += 1;
        let number = self.started;
        let task = match &subject {
            Subject::Ranges(provider) => self.follow_ranges(provider.clone(), number),
            _ => self.follow_objects(&subject, number),
        };
        let watch = Watch {
            number,
            task,
            synced: false,
            listed: None,
            unreadable: BTreeSet::new(),
            failed: None,
            idle: None,
        };
        self.watches.insert(subject, watch);
    }

    fn follow_objects(&mut self, subject: &Subject, number: u64) -> AbortHandle {
        let kind = subject.kind();
        let api: Api<Raw> = match subject.namespace() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &kind),
            None => Api::all_with(self.client.clone(), &kind),
        };
        let mut config = watcher::Config::default().page_size(PAGE);
        match subject {
            Subject::Policies => config = config.labels(&format!("{}={}", MANAGED.0, MANAGED.1)),
            Subject::LocalPods => config = config.fields(&format!("spec.nodeName={}", self.options.node)),
            Subject::RemotePods(_) => {
                config = config.fields(&format!(
                    "spec.nodeName!={},spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed",
                    self.options.node
                ));
            }
            Subject::OwnNode => config = config.fields(&format!("metadata.name={}", self.options.node)),
            _ => {}
        }
        let teller = Teller { subject: subject.clone(), watch: number, news: self.news.clone() };
        self.tasks.spawn(watch(api, config, teller))
    }

    /// Stops a watch, and forgets what no other watch is about.
    fn leave(&mut self, subject: &Subject, index: &mut Index) -> Change {
        if let Some(watch) = self.watches.remove(subject) {
            watch.task.abort();
        }
        self.rejected.retain(|(of, _), _| of != subject);
        self.retain(subject, index, &HashSet::new())
    }

    /// Puts what denies its namespace in the place of each policy. Before the pods of this node are known it forgets the policies instead,
    /// so that a pod keeps what an earlier agent gave it.
    fn close(
        &mut self,
        policies: impl IntoIterator<Item = NsName>,
        pods_known: bool,
        index: &mut Index,
    ) -> Change {
        let mut change = Change::NONE;
        for id in policies {
            if !pods_known {
                change |= index.delete(&ObjectKey::ConfigMap(id.clone()));
            }
            let policy = pods_known.then(|| CLOSED.to_owned());
            change |= index.apply(Object::ConfigMap { id: id.clone(), managed: true, policy });
            self.lengths.keep(&id, index);
        }
        change
    }

    fn apply(&mut self, subject: &Subject, object: Object, index: &mut Index) -> Change {
        match object {
            Object::ConfigMap { ref id, .. } => {
                let id = id.clone();
                let change = index.apply(object);
                self.lengths.keep(&id, index);
                change
            }
            Object::Pod(id, pod) if *subject == Subject::LocalPods => {
                if self.local.insert(id.clone())
                    && let Some(other) = index.cluster().pods.get(&id)
                {
                    self.shadowed.insert(id.clone(), Object::Pod(id.clone(), other.clone()));
                }
                index.apply(Object::Pod(id, pod))
            }
            Object::Pod(id, pod) => {
                let pod = Object::Pod(id.clone(), elsewhere(pod));
                if self.local.contains(&id) {
                    self.shadowed.insert(id, pod);
                    return Change::NONE;
                }
                index.apply(pod)
            }
            other => index.apply(other),
        }
    }

    fn delete(&mut self, subject: &Subject, key: &ObjectKey, index: &mut Index) -> Change {
        if let ObjectKey::ConfigMap(id) = key {
            self.lengths.set(id, None);
            self.lengths.declare(id, None);
        }
        let ObjectKey::Pod(id) = key else { return index.delete(key) };
        if *subject == Subject::LocalPods {
            if !self.local.remove(id) {
                return Change::NONE;
            }
            return match self.shadowed.remove(id) {
                Some(other) => index.apply(other),
                None => index.delete(key),
            };
        }
        if self.local.contains(id) {
            self.shadowed.remove(id);
            return Change::NONE;
        }
        index.delete(key)
    }

    /// Returns whether a subject is about the object that the index has under this key.
    fn owns(&self, subject: &Subject, key: &ObjectKey) -> bool {
        let within = |namespace: &str| subject.namespace().is_none_or(|of| *of == *namespace);
        match (subject, key) {
            (Subject::Namespaces, ObjectKey::Namespace(_))
            | (Subject::Policies, ObjectKey::ConfigMap(_))
            | (Subject::NetworkPolicies, ObjectKey::NetworkPolicy(_))
            | (Subject::Nodes, ObjectKey::Node(_)) => true,
            (Subject::LocalPods, ObjectKey::Pod(id)) => self.local.contains(id),
            (Subject::RemotePods(_), ObjectKey::Pod(id)) => !self.local.contains(id) && within(&id.namespace),
            (Subject::Services(_), ObjectKey::Service(id))
            | (Subject::Slices(_), ObjectKey::EndpointSlice(id)) => within(&id.namespace),
            (Subject::OwnNode, ObjectKey::Node(name)) => **name == *self.options.node,
            _ => false,
        }
    }

    /// Deletes what a watch is about and has not listed, unless another watch is about it too.
    fn retain(&mut self, subject: &Subject, index: &mut Index, listed: &HashSet<(u64, u64)>) -> Change {
        let others: Vec<Subject> = self
            .watches
            .keys()
            .filter(|other| *other != subject && other.kind() == subject.kind())
            .cloned()
            .collect();
        let stays = |source: &Self, key: &ObjectKey| {
            listed.contains(&mark(&source.hashers, key)) || others.iter().any(|other| source.owns(other, key))
        };
        let gone: Vec<ObjectKey> = index
            .keys(subject.kind())
            .into_iter()
            .filter(|key| self.owns(subject, key) && !stays(self, key))
            .collect();
        let mut change = Change::NONE;
        for key in gone {
            change |= self.delete(subject, &key, index);
        }
        if let Subject::RemotePods(_) = subject {
            let about =
                |subject: &Subject, id: &NsName| subject.namespace().is_none_or(|of| *of == *id.namespace);
            let shadowed = std::mem::take(&mut self.shadowed);
            let kept = shadowed.into_iter().filter(|(id, _)| {
                !about(subject, id)
                    || listed.contains(&mark(&self.hashers, &ObjectKey::Pod(id.clone())))
                    || others.iter().any(|other| *other != Subject::LocalPods && about(other, id))
            });
            self.shadowed = kept.collect();
        }
        change
    }

    /// Returns the pods of this node.
    #[must_use]
    pub fn local(&self) -> &BTreeSet<NsName> {
        &self.local
    }

    /// Takes over what an index holds already, from a time before: the watches then delete what is gone since. `published` are the ranges
    /// in it.
    pub fn adopt(&mut self, index: &Index, published: Vec<(String, Published)>) {
        self.published.extend(published);
        let here = index.cluster().pods.local().filter(|(_, pod)| *pod.node() == *self.options.node);
        self.local.extend(here.map(|(id, _)| id.clone()));
    }

    /// Forgets what an index holds of a time before and no watch is about: nothing would ever tell that it is gone.
    pub fn forget_unfollowed(&self, index: &mut Index) -> Change {
        let mut change = Change::NONE;
        for kind in [ObjectKind::Pod, ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::Node] {
            change |= index.retain(kind, |key| self.watches.keys().any(|subject| self.owns(subject, key)));
        }
        change
    }
}

/// Returns a pod of another node without what nobody asks of it.
fn elsewhere(pod: Pod) -> Pod {
    Pod { local: None, ..pod }
}

/// The lengths of policies, each with that of the earlier version in force, if there is one.
#[derive(Debug, Default)]
struct Texts {
    namespaces: BTreeMap<String, Lengths>,
    /// The lengths as the API server has them, kept or not.
    declared: BTreeMap<String, Lengths>,
    total: usize,
    /// Of that, those of large namespaces.
    large: usize,
    /// Namespaces of which some were not kept because there are too many, of their own or of all together. They are closed until a list
    /// begins.
    left: BTreeSet<String>,
}

/// The lengths of one namespace's policies.
#[derive(Debug, Default)]
struct Lengths {
    each: BTreeMap<String, usize>,
    total: usize,
}

impl Texts {
    fn set(&mut self, id: &NsName, length: Option<usize>) {
        let namespace = self.namespaces.entry(id.namespace.clone()).or_default();
        let before = match length {
            Some(length) => namespace.each.insert(id.name.clone(), length),
            None => namespace.each.remove(&id.name),
        };
        let exchange = |total: usize| total - before.unwrap_or(0) + length.unwrap_or(0);
        let large = |total: usize| if total > LARGE { total } else { 0 };
        self.large -= large(namespace.total);
        (namespace.total, self.total) = (exchange(namespace.total), exchange(self.total));
        self.large += large(namespace.total);
        if namespace.each.is_empty() {
            self.namespaces.remove(&id.namespace);
        }
    }

    /// Takes note of how long a policy is, kept or not.
    fn declare(&mut self, id: &NsName, length: Option<usize>) {
        let namespace = self.declared.entry(id.namespace.clone()).or_default();
        let before = match length {
            Some(length) => namespace.each.insert(id.name.clone(), length),
            None => namespace.each.remove(&id.name),
        };
        namespace.total = namespace.total - before.unwrap_or(0) + length.unwrap_or(0);
        if namespace.each.is_empty() {
            self.declared.remove(&id.namespace);
        }
    }

    /// Returns whether the policies of a namespace are more than one may have.
    fn is_too_large(&self, namespace: &str) -> bool {
        self.declared.get(namespace).is_some_and(|lengths| lengths.total > MOST_POLICY_BYTES)
    }

    /// Takes note of how much the index keeps of a policy.
    fn keep(&mut self, id: &NsName, index: &Index) {
        self.set(id, Some(index.octets(id)).filter(|octets| *octets > 0));
    }

    /// Returns the policies of a namespace of which something is kept.
    fn names(&self, namespace: &str) -> Vec<NsName> {
        let names = self.namespaces.get(namespace).into_iter().flat_map(|lengths| lengths.each.keys());
        names.map(|name| NsName::new(namespace, name.as_str())).collect()
    }

    /// Returns an object, unless it is a policy that is one too many, for its namespace or for all without a pod here. Then its namespace
    /// is closed.
    fn take(&mut self, object: Object, index: &Index) -> Result<Object, Rejected> {
        let Object::ConfigMap { id, policy, .. } = &object else { return Ok(object) };
        self.set(id, policy.as_ref().map(String::len));
        self.declare(id, policy.as_ref().map(String::len));
        let of_namespace = self.namespaces.get(&id.namespace).map_or(0, |lengths| lengths.total);
        let full =
            self.total > MOST_UNREAD_BYTES || of_namespace > LARGE && self.large > MOST_UNREAD_BYTES / 2;
        let message = if of_namespace > MOST_POLICY_BYTES || self.is_too_large(&id.namespace) {
            self.left.insert(id.namespace.clone());
            format!(
                "the policies of namespace {} have more than {} MiB together, so that all its pods are denied; split them over namespaces, or shorten them",
                id.namespace,
                MOST_POLICY_BYTES >> 20
            )
        } else if self.left.contains(&id.namespace) || full && !index.reads(&id.namespace) {
            self.left.insert(id.namespace.clone());
            format!(
                "there is room for {} MiB of policies of namespaces without a pod on this node, for half of that of those with more than \
                 {} KiB, and no more for namespace {}; when a pod of it comes, it is denied until policies are listed again",
                MOST_UNREAD_BYTES >> 20,
                LARGE >> 10,
                id.namespace
            )
        } else {
            return Ok(object);
        };
        self.set(id, None);
        Err(Rejected { key: Some(object.key()), message })
    }
}

/// What both of two scopes cover.
fn both(left: Scope, right: Scope) -> Scope {
    match (left, right) {
        (Scope::Everything, other) | (other, Scope::Everything) => other,
        (Scope::Namespaces(left), Scope::Namespaces(right)) => {
            let both: BTreeSet<String> = left.intersection(&right).cloned().collect();
            if both.is_empty() { Scope::Nothing } else { Scope::Namespaces(both) }
        }
        (Scope::Nothing, _) | (_, Scope::Nothing) => Scope::Nothing,
    }
}

/// Returns what to watch for a demand.
fn subjects(demand: &Demand) -> BTreeSet<Subject> {
    let demand = demand.clone().rounded();
    let mut subjects = BTreeSet::new();
    if let Scope::Namespaces(providers) = &demand.ranges {
        subjects.extend(providers.iter().cloned().map(Subject::Ranges));
    }
    let mut add = |scope: &Scope, subject: fn(Option<String>) -> Subject| match scope {
        Scope::Nothing => {}
        Scope::Namespaces(names) => subjects.extend(names.iter().cloned().map(|name| subject(Some(name)))),
        Scope::Everything => {
            subjects.insert(subject(None));
        }
    };
    add(&demand.pods, Subject::RemotePods);
    add(&demand.services, Subject::Services);
    add(&demand.services, Subject::Slices);
    match demand.nodes {
        Nodes::Nothing => {}
        Nodes::Own => {
            subjects.insert(Subject::OwnNode);
        }
        Nodes::Everything => {
            subjects.insert(Subject::Nodes);
        }
    }
    subjects
}

/// Returns whether all that `narrow` is about is what `wide` is about, too.
fn is_part(narrow: &Subject, wide: &Subject) -> bool {
    matches!(
        (narrow, wide),
        (Subject::RemotePods(Some(_)), Subject::RemotePods(None))
            | (Subject::Services(Some(_)), Subject::Services(None))
            | (Subject::Slices(Some(_)), Subject::Slices(None))
            | (Subject::OwnNode, Subject::Nodes)
    )
}

/// Notes that the present version of an object cannot be read. The last readable one stays; a policy that never had one fails
/// closed, as one that is not valid does.
fn unreadable(index: &mut Index, key: Option<&ObjectKey>) -> Change {
    match key {
        Some(ObjectKey::ConfigMap(id)) => {
            index.apply(Object::ConfigMap { id: id.clone(), managed: true, policy: None })
        }
        _ => Change::NONE,
    }
}

/// Returns what stands for a key in a set of many. Two that differ have the same with a chance of one in 2^128.
fn mark(hashers: &(RandomState, RandomState), key: &ObjectKey) -> (u64, u64) {
    (hashers.0.hash_one(key), hashers.1.hash_one(key))
}

/// Speaks for one watch.
struct Teller {
    subject: Subject,
    watch: u64,
    news: mpsc::Sender<Message>,
}

impl Teller {
    /// Returns whether anyone still listens.
    async fn tell(&self, at: Instant, news: News) -> bool {
        let message = Message { subject: self.subject.clone(), watch: self.watch, at, news };
        self.news.send(message).await.is_ok()
    }
}

/// Lists and watches for ever.
///
/// Most failures lose nothing: the watch goes on from the version it has, or lists anew. What could not be understood is lost, so
/// then everything is listed again.
async fn watch(api: Api<Raw>, config: watcher::Config, teller: Teller) {
    let kind = teller.subject.kind();
    let mut pause = NOT_UNDERSTOOD.0;
    loop {
        let events = watcher(api.clone(), config.clone()).default_backoff();
        pin_mut!(events);
        while let Some(event) = events.next().await {
            let at = Instant::now();
            let (news, lost) = match event {
                Ok(Event::Init) => (News::Begin, false),
                Ok(Event::InitApply(raw) | Event::Apply(raw)) => (News::Object(raw.read(kind)), false),
                Ok(Event::Delete(raw)) => (News::Gone(raw.key(kind)), false),
                Ok(Event::InitDone) => {
                    pause = NOT_UNDERSTOOD.0;
                    (News::End, false)
                }
                Err(error) => {
                    let lost = matches!(
                        error,
                        watcher::Error::NoResourceVersion
                            | watcher::Error::WatchFailed(kube::Error::SerdeError(_))
                    );
                    (News::Failed(error.to_string()), lost)
                }
            };
            if !teller.tell(at, news).await {
                return;
            }
            if lost {
                break;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(NOT_UNDERSTOOD.1);
    }
}

pub mod ranges;
#[cfg(test)]
mod tests;
