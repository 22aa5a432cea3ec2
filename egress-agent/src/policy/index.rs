//! Keeps the [`Cluster`] up to date, one object at a time.
//!
//! Plain synchronous code that knows no client: a directory of manifests and API watches feed it alike. What it adds to a
//! map of objects is memory: a policy that turns invalid keeps its last good version in force, and one that never had a
//! good version fails closed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    hash::Hash,
    ops::{BitOr, BitOrAssign},
    sync::Arc,
};

use super::{
    changes::Changes,
    cluster::{Cluster, EndpointSlice, Labels, NamedPorts, Node, NsName, Pod, Service},
    document,
    finding::{Finding, Severity},
    model::{
        Cloud, DefaultAction, LabelSelector, Mode, Peer, Policy, PolicyId, PolicyKind, Ports, Unresolved,
    },
    ranges::{Found, Missing, Ranges},
};

/// The kinds of object the index knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Pod.
    Pod,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
    /// `v1` ConfigMap.
    ConfigMap,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
}

impl ObjectKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Namespace,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::ConfigMap,
        Self::NetworkPolicy,
    ];

    /// The word in a manifest's `kind`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ConfigMap => "ConfigMap",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }

    /// The manifest's `apiVersion`.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::Namespace | Self::Pod | Self::Service | Self::Node | Self::ConfigMap => "v1",
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKey {
    /// A namespace.
    Namespace(String),
    /// A pod.
    Pod(NsName),
    /// A Service.
    Service(NsName),
    /// An EndpointSlice.
    EndpointSlice(NsName),
    /// A node.
    Node(String),
    /// A ConfigMap.
    ConfigMap(NsName),
    /// A NetworkPolicy.
    NetworkPolicy(NsName),
}

impl ObjectKey {
    /// Returns the kind of the object.
    #[must_use]
    pub const fn kind(&self) -> ObjectKind {
        match self {
            Self::Namespace(_) => ObjectKind::Namespace,
            Self::Pod(_) => ObjectKind::Pod,
            Self::Service(_) => ObjectKind::Service,
            Self::EndpointSlice(_) => ObjectKind::EndpointSlice,
            Self::Node(_) => ObjectKind::Node,
            Self::ConfigMap(_) => ObjectKind::ConfigMap,
            Self::NetworkPolicy(_) => ObjectKind::NetworkPolicy,
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(name) | Self::Node(name) => write!(f, "{} {name}", self.kind()),
            Self::Pod(id)
            | Self::Service(id)
            | Self::EndpointSlice(id)
            | Self::ConfigMap(id)
            | Self::NetworkPolicy(id) => write!(f, "{} {id}", self.kind()),
        }
    }
}

/// An object as the index takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A namespace.
    Namespace {
        /// Its name.
        name: String,
        /// Its labels.
        labels: Labels,
    },
    /// A pod.
    Pod(NsName, Pod),
    /// A Service.
    Service(NsName, Service),
    /// An EndpointSlice.
    EndpointSlice(NsName, EndpointSlice),
    /// A node.
    Node(String, Node),
    /// A ConfigMap.
    ConfigMap {
        /// Its name.
        id: NsName,
        /// Whether it is labelled `egress-controller: managed`.
        managed: bool,
        /// The text under `policy.json`, if that key is there.
        policy: Option<String>,
    },
    /// A NetworkPolicy: its egress half, nothing when it is not about egress.
    NetworkPolicy(NsName, Result<Option<Policy>, Unreadable>),
}

impl Object {
    /// Returns its name.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Namespace { name, .. } => ObjectKey::Namespace(name.clone()),
            Self::Pod(id, _) => ObjectKey::Pod(id.clone()),
            Self::Service(id, _) => ObjectKey::Service(id.clone()),
            Self::EndpointSlice(id, _) => ObjectKey::EndpointSlice(id.clone()),
            Self::Node(name, _) => ObjectKey::Node(name.clone()),
            Self::ConfigMap { id, .. } => ObjectKey::ConfigMap(id.clone()),
            Self::NetworkPolicy(id, _) => ObjectKey::NetworkPolicy(id.clone()),
        }
    }
}

/// A NetworkPolicy whose egress half cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Unreadable {
    /// Where in the object, such as `spec.egress[0].ports[1]`.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead, where that can be told.
    pub hint: Option<String>,
    /// Its `podSelector`, when that much could be read: the pods that are denied while there is no good version. Without
    /// it those are all pods of the namespace.
    pub selector: Option<LabelSelector>,
}

/// What a call has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "a change that is not acted on leaves the kernel with an older state"]
pub struct Change {
    /// The [`Cluster`] differs, so policies have to be compiled again.
    pub cluster: bool,
    /// The [problems](Index::problems) differ, so they have to be reported again; or a text does that is kept without being read.
    pub problems: bool,
}

impl Change {
    /// Nothing.
    pub const NONE: Self = Self { cluster: false, problems: false };

    /// Returns whether anything changed.
    #[must_use]
    pub const fn any(self) -> bool {
        self.cluster || self.problems
    }

    const fn cluster(changed: bool) -> Self {
        Self { cluster: changed, problems: false }
    }
}

impl BitOr for Change {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self { cluster: self.cluster || other.cluster, problems: self.problems || other.problems }
    }
}

impl BitOrAssign for Change {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

/// Which version of a policy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InForce {
    /// The one that is there now.
    Current,
    /// The one that is there now is invalid; the last good one holds.
    Earlier,
    /// There never was a good one. A ConfigMap is in [`Cluster::broken`]; of a NetworkPolicy the selected pods are denied.
    Nothing,
}

/// What there is to say about one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem<'a> {
    /// The policy.
    pub policy: &'a PolicyId,
    /// Errors and warnings of the version that is there now.
    pub findings: &'a [Finding],
    /// What holds.
    pub in_force: InForce,
}

/// What is remembered of an object that carries a policy.
#[derive(Debug)]
struct Source {
    /// The text of a ConfigMap, so that it is parsed only when it changes.
    text: Option<Arc<str>>,
    /// The text in force, where that is an earlier one.
    good: Option<Arc<str>>,
    findings: Vec<Finding>,
    in_force: InForce,
}

/// A policy of a namespace that has no pod here.
#[derive(Debug)]
struct Unread {
    /// The text as it is now.
    text: Option<Arc<str>>,
    /// The one that would be in force, where that is an earlier one.
    good: Option<Arc<str>>,
}

/// A ConfigMap, its text as it is now, and the one in force where that is an earlier one.
type Text = (NsName, Option<Arc<str>>, Option<Arc<str>>);

/// An index as it was at one time. It shares with the index what has not changed since.
#[derive(Clone, Debug)]
pub struct View {
    cluster: Cluster,
    texts: Vec<Text>,
}

impl View {
    /// Returns the state of then.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Returns what [`Index::texts`] returned then.
    pub fn texts(&self) -> impl Iterator<Item = (&NsName, Option<&str>, Option<&str>)> {
        self.texts.iter().map(|(id, text, good)| (id, text.as_deref(), good.as_deref()))
    }
}

/// Reads the text of a policy: the policy if it is valid, and what there is to say about it.
pub type ParsePolicy = fn(&NsName, &str) -> (Option<Policy>, Vec<Finding>);

/// The cluster's state and what is needed to keep it up to date.
#[derive(Debug)]
pub struct Index {
    parse: ParsePolicy,
    cluster: Cluster,
    changes: Changes,
    labels: Shared<Labels>,
    ports: Shared<NamedPorts>,
    sources: BTreeMap<PolicyId, Source>,
    /// Whether policies are read only while their namespace has a pod here.
    for_pods_here: bool,
    /// Whether every policy counts as one in audit mode.
    audits: bool,
    /// ConfigMaps of namespaces that have none.
    unread: BTreeMap<NsName, Unread>,
    /// What clouds' services stand for.
    ranges: Ranges,
    /// What was found of them for policies. It is forgotten when they change.
    found: HashMap<Unresolved, Option<Arc<Cloud>>>,
}

impl Default for Index {
    /// Returns an empty one that reads policies with [`document::parse`].
    fn default() -> Self {
        Self::new(|id, text| {
            let parsed = document::parse(id, text);
            (parsed.policy, parsed.findings)
        })
    }
}

impl Index {
    /// Returns an empty one that reads policies with `parse`.
    #[must_use]
    pub fn new(parse: ParsePolicy) -> Self {
        Self {
            parse,
            cluster: Cluster::default(),
            changes: Changes::default(),
            labels: Shared::default(),
            ports: Shared::default(),
            sources: BTreeMap::new(),
            for_pods_here: false,
            audits: false,
            unread: BTreeMap::new(),
            ranges: Ranges::default(),
            found: HashMap::new(),
        }
    }

    /// Returns an empty one that reads a ConfigMap only while its namespace has a pod with a [`Pod::local`], and of the others keeps the
    /// text: a policy matters to no other namespace, and what is read takes a multiple of its text. Which policies are in force for those
    /// pods, and what there is to say about them, is the same as if all had been read when they came.
    #[must_use]
    pub fn for_pods_here(parse: ParsePolicy) -> Self {
        Self { for_pods_here: true, ..Self::new(parse) }
    }

    /// Returns one that takes every policy as if it said `mode: audit`. It must be empty.
    ///
    /// What stands in for a policy that never was valid, and for one that is missing, is not a policy somebody wrote, and stays as it is.
    #[must_use]
    pub fn auditing(self) -> Self {
        Self { audits: true, ..self }
    }

    /// Returns whether the policies of a namespace are read.
    #[must_use]
    pub fn reads(&self, namespace: &str) -> bool {
        !self.for_pods_here || self.cluster.pods.has_local(namespace)
    }

    /// Returns what has changed in the cluster since the last call, for [`super::compile::compile_all_cached`].
    pub fn take_changes(&mut self) -> Changes {
        self.changes.take()
    }

    /// Returns the state so far.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Returns every policy about which there is something to say, in policy order.
    pub fn problems(&self) -> impl Iterator<Item = Problem<'_>> {
        self.sources
            .iter()
            .filter(|(_, source)| !source.findings.is_empty() || source.in_force != InForce::Current)
            .map(|(policy, source)| Problem { policy, findings: &source.findings, in_force: source.in_force })
    }

    /// Returns the text of every managed ConfigMap as it is now, if it has one, and the one in force where that is an earlier one.
    pub fn texts(&self) -> impl Iterator<Item = (&NsName, Option<&str>, Option<&str>)> {
        self.sources
            .iter()
            .filter(|(policy, _)| policy.kind == PolicyKind::ConfigMap)
            .map(|(policy, source)| (&policy.id, source.text.as_deref(), source.good.as_deref()))
            .chain(
                self.unread.iter().map(|(id, unread)| (id, unread.text.as_deref(), unread.good.as_deref())),
            )
    }

    /// Returns the text of a ConfigMap that is in force; nothing if it never had a good one, or is not read.
    #[must_use]
    pub fn text_in_force(&self, id: &NsName) -> Option<&Arc<str>> {
        let source = self.sources.get(&PolicyId { kind: PolicyKind::ConfigMap, id: id.clone() })?;
        match source.in_force {
            InForce::Current => source.text.as_ref(),
            InForce::Earlier => source.good.as_ref(),
            InForce::Nothing => None,
        }
    }

    /// Returns how many octets the texts of a ConfigMap have: the one it has now, and the one in force where that is an earlier one.
    #[must_use]
    pub fn octets(&self, id: &NsName) -> usize {
        let length = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len());
        let policy = PolicyId { kind: PolicyKind::ConfigMap, id: id.clone() };
        match (self.sources.get(&policy), self.unread.get(id)) {
            (Some(Source { text, good, .. }), _) | (None, Some(Unread { text, good })) => {
                length(text) + length(good)
            }
            (None, None) => 0,
        }
    }

    /// Returns the managed ConfigMaps of a namespace.
    #[must_use]
    pub fn config_maps(&self, namespace: &str) -> Vec<NsName> {
        let first = NsName::new(namespace, "");
        let policy = PolicyId { kind: PolicyKind::ConfigMap, id: first.clone() };
        let read = self.sources.range(policy..).map(|(policy, _)| policy);
        let read = read.take_while(|policy| policy.kind == PolicyKind::ConfigMap).map(|policy| &policy.id);
        let unread = self.unread.range(first..).map(|(id, _)| id);
        let within = |id: &&NsName| id.namespace == namespace;
        read.take_while(within).chain(unread.take_while(within)).cloned().collect()
    }

    /// Returns the index as it is now, for whoever reads it while it changes. That takes little time, however much there is.
    #[must_use]
    pub fn view(&self) -> View {
        let read = self.sources.iter().filter(|(policy, _)| policy.kind == PolicyKind::ConfigMap);
        let read = read.map(|(policy, source)| (&policy.id, &source.text, &source.good));
        let unread = self.unread.iter().map(|(id, unread)| (id, &unread.text, &unread.good));
        let texts = read.chain(unread).map(|(id, text, good)| (id.clone(), text.clone(), good.clone()));
        View { cluster: self.cluster.clone(), texts: texts.collect() }
    }

    /// Returns what clouds' services stand for.
    #[must_use]
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// Sets what clouds' services stand for. Each policy that speaks of one changes as a whole, or not at all.
    pub fn set_ranges(&mut self, ranges: Ranges) -> Change {
        if self.ranges == ranges {
            return Change::NONE;
        }
        self.ranges = ranges;
        self.found.clear();
        let mut changed = false;
        for policy in self.cluster.policies.values_mut() {
            if !names_a_cloud(policy) {
                continue;
            }
            let mut resolved = Policy::clone(policy);
            resolve(&mut resolved, &self.ranges, &mut self.found);
            if resolved != **policy {
                *policy = Arc::new(resolved);
                changed = true;
            }
        }
        Change::cluster(changed)
    }

    /// Takes an object in its present version.
    pub fn apply(&mut self, object: Object) -> Change {
        match object {
            Object::Namespace { name, labels } => Change::cluster(self.put_namespace(name, labels)),
            Object::Pod(id, pod) => self.put_pod(id, pod),
            Object::Service(id, service) => Change::cluster(self.put_service(id, service)),
            Object::EndpointSlice(id, slice) => Change::cluster(self.put_slice(id, slice)),
            Object::Node(name, node) => {
                let changed = self.cluster.nodes.get(&name) != Some(&node);
                if changed {
                    self.changes.node(name.clone());
                    self.cluster.nodes.insert(name, node);
                }
                Change::cluster(changed)
            }
            Object::ConfigMap { id, managed: false, .. } => self.delete(&ObjectKey::ConfigMap(id)),
            Object::ConfigMap { id, managed: true, policy } => {
                let text = policy.map(Arc::from);
                if self.reads(&id.namespace) {
                    self.apply_config_map(id, text)
                } else {
                    self.keep_unread(id, text)
                }
            }
            Object::NetworkPolicy(id, policy) => self.apply_network_policy(id, policy),
        }
    }

    /// Forgets an object, and with it the last good version of a policy.
    pub fn delete(&mut self, key: &ObjectKey) -> Change {
        let cluster = &mut self.cluster;
        match key {
            ObjectKey::Namespace(name) => {
                let before = cluster.namespaces.remove(name);
                let changed = before.is_some();
                if changed {
                    self.changes.namespace(name.clone(), before);
                }
                Change::cluster(changed)
            }
            ObjectKey::Pod(id) => {
                let read = self.reads(&id.namespace);
                let before = self.cluster.pods.remove(id);
                let changed = before.is_some();
                if changed {
                    self.changes.pod(id.clone(), before);
                }
                Change::cluster(changed) | self.read_or_not(&id.namespace, read)
            }
            ObjectKey::Service(id) => {
                let before = cluster.services.remove(id);
                if let Some(before) = &before {
                    self.changes.service(id.clone());
                    self.changes.cluster_ips |= !before.cluster_ips.is_empty();
                }
                Change::cluster(before.is_some())
            }
            ObjectKey::EndpointSlice(id) => {
                let before = cluster.slices.remove(id);
                if let Some(before) = &before {
                    self.changes.service(before.of(id));
                }
                Change::cluster(before.is_some())
            }
            ObjectKey::Node(name) => {
                let changed = cluster.nodes.remove(name).is_some();
                if changed {
                    self.changes.node(name.clone());
                }
                Change::cluster(changed)
            }
            ObjectKey::ConfigMap(id) => {
                let mut change = self.delete_policy(PolicyKind::ConfigMap, id);
                change.cluster |= self.cluster.broken.remove(id);
                change.problems |= self.unread.remove(id).is_some();
                change
            }
            ObjectKey::NetworkPolicy(id) => self.delete_policy(PolicyKind::NetworkPolicy, id),
        }
    }

    /// Makes `objects` all there is of `kind`, as after a fresh list: the others of that kind are deleted.
    ///
    /// Objects of other kinds in the list are applied like any.
    pub fn replace(&mut self, kind: ObjectKind, objects: impl IntoIterator<Item = Object>) -> Change {
        let mut present = BTreeSet::new();
        let mut change = Change::NONE;
        for object in objects {
            present.insert(object.key());
            change |= self.apply(object);
        }
        change | self.retain(kind, |key| present.contains(key))
    }

    /// Deletes the objects of `kind` for which `keep` says no.
    ///
    /// For a list that comes in pieces: apply each piece, note the keys, then retain those.
    pub fn retain(&mut self, kind: ObjectKind, mut keep: impl FnMut(&ObjectKey) -> bool) -> Change {
        let mut change = Change::NONE;
        for key in self.keys(kind) {
            if !keep(&key) {
                change |= self.delete(&key);
            }
        }
        change
    }

    /// Returns the objects of one kind. ConfigMaps that are not managed are not among them.
    #[must_use]
    pub fn keys(&self, kind: ObjectKind) -> Vec<ObjectKey> {
        let cluster = &self.cluster;
        let of = |wanted: PolicyKind| {
            self.sources.keys().filter(move |policy| policy.kind == wanted).map(|policy| policy.id.clone())
        };
        match kind {
            ObjectKind::Namespace => cluster.namespaces.keys().cloned().map(ObjectKey::Namespace).collect(),
            ObjectKind::Pod => cluster.pods.keys().map(|id| ObjectKey::Pod(id.into())).collect(),
            ObjectKind::Service => cluster.services.keys().cloned().map(ObjectKey::Service).collect(),
            ObjectKind::EndpointSlice => {
                cluster.slices.keys().cloned().map(ObjectKey::EndpointSlice).collect()
            }
            ObjectKind::Node => cluster.nodes.keys().cloned().map(ObjectKey::Node).collect(),
            ObjectKind::ConfigMap => of(PolicyKind::ConfigMap)
                .chain(self.unread.keys().cloned())
                .map(ObjectKey::ConfigMap)
                .collect(),
            ObjectKind::NetworkPolicy => {
                of(PolicyKind::NetworkPolicy).map(ObjectKey::NetworkPolicy).collect()
            }
        }
    }

    fn put_namespace(&mut self, name: String, labels: Labels) -> bool {
        if self.cluster.namespaces.get(&name) == Some(&labels) {
            return false;
        }
        let before = self.cluster.namespaces.insert(name.clone(), labels);
        self.changes.namespace(name, before);
        true
    }

    fn put_pod(&mut self, id: NsName, mut pod: Pod) -> Change {
        if self.cluster.pods.get(&id) == Some(&pod) {
            return Change::NONE;
        }
        let read = self.reads(&id.namespace);
        pod.labels = self.labels.share(pod.labels);
        pod.ports = self.ports.share(pod.ports);
        let before = self.cluster.pods.insert(id.clone(), pod);
        let change = self.read_or_not(&id.namespace, read);
        self.changes.pod(id, before);
        Change::cluster(true) | change
    }

    /// Reads the policies of a namespace if its first pod here has come, and keeps only their texts if its last one has gone. `read` says
    /// whether they were read before.
    fn read_or_not(&mut self, namespace: &str, read: bool) -> Change {
        let mut change = Change::NONE;
        if self.reads(namespace) == read {
            return change;
        }
        let first = NsName::new(namespace, "");
        if read {
            let first = PolicyId { kind: PolicyKind::ConfigMap, id: first };
            let here = self.sources.range(first..).map(|(id, _)| id);
            let here = here.take_while(|id| id.kind == PolicyKind::ConfigMap && id.id.namespace == namespace);
            for policy in here.cloned().collect::<Vec<_>>() {
                let source = self.sources.remove(&policy).expect("it was listed");
                change.problems = true;
                change.cluster |= self.cluster.policies.remove(&policy).is_some();
                change.cluster |= self.cluster.broken.remove(&policy.id);
                self.unread.insert(policy.id, Unread { text: source.text, good: source.good });
            }
        } else {
            let here = self.unread.range(first..).map(|(id, _)| id);
            for id in here.take_while(|id| id.namespace == namespace).cloned().collect::<Vec<_>>() {
                let Unread { text, good } = self.unread.remove(&id).expect("it was listed");
                if good.is_some() {
                    change |= self.apply_config_map(id.clone(), good);
                }
                change |= self.apply_config_map(id, text);
            }
        }
        change
    }

    /// Keeps a text without reading it. One that takes another's place is read, for which of the two would be in force.
    fn keep_unread(&mut self, id: NsName, text: Option<Arc<str>>) -> Change {
        let good = match self.unread.get(&id) {
            Some(before) if before.text == text => return Change::NONE,
            None => None,
            Some(before) => {
                let valid = |text: &Option<Arc<str>>| {
                    text.as_deref().is_some_and(|text| (self.parse)(&id, text).0.is_some())
                };
                if valid(&text) {
                    None
                } else {
                    before.good.clone().or_else(|| before.text.clone().filter(|_| valid(&before.text)))
                }
            }
        };
        self.unread.insert(id, Unread { text, good });
        Change { cluster: false, problems: true }
    }

    fn put_service(&mut self, id: NsName, service: Service) -> bool {
        let before = self.cluster.services.get(&id);
        if before == Some(&service) {
            return false;
        }
        let before = before.map_or(&[][..], |before| before.cluster_ips.as_slice());
        self.changes.cluster_ips |= before != service.cluster_ips;
        self.changes.service(id.clone());
        self.cluster.services.insert(id, service);
        true
    }

    fn put_slice(&mut self, id: NsName, slice: EndpointSlice) -> bool {
        let before = self.cluster.slices.get(&id);
        if before == Some(&slice) {
            return false;
        }
        if let Some(before) = before {
            self.changes.service(before.of(&id));
        }
        self.changes.service(slice.of(&id));
        self.cluster.slices.insert(id, slice);
        true
    }

    fn apply_config_map(&mut self, id: NsName, text: Option<Arc<str>>) -> Change {
        let policy_id = PolicyId { kind: PolicyKind::ConfigMap, id };
        if self.sources.get(&policy_id).is_some_and(|source| source.text == text) {
            return Change::NONE;
        }
        let (policy, findings) = match &text {
            Some(text) => (self.parse)(&policy_id.id, text),
            None => (None, vec![missing_key()]),
        };
        let (changed, in_force) = match policy {
            Some(policy) => {
                let was_broken = self.cluster.broken.remove(&policy_id.id);
                (self.put_policy(&policy_id, self.taken(policy)) || was_broken, InForce::Current)
            }
            None if self.cluster.policies.contains_key(&policy_id) => (false, InForce::Earlier),
            None => (self.cluster.broken.insert(policy_id.id.clone()), InForce::Nothing),
        };
        let good = match in_force {
            InForce::Earlier => {
                let before = self.sources.get(&policy_id);
                before.and_then(|before| before.good.clone().or_else(|| before.text.clone()))
            }
            InForce::Current | InForce::Nothing => None,
        };
        let problems = self.remember(policy_id, Source { text, good, findings, in_force });
        Change { cluster: changed, problems }
    }

    fn apply_network_policy(&mut self, id: NsName, policy: Result<Option<Policy>, Unreadable>) -> Change {
        let policy_id = PolicyId { kind: PolicyKind::NetworkPolicy, id };
        let had_good = self.sources.get(&policy_id).is_some_and(|source| source.in_force != InForce::Nothing);
        let (changed, findings, in_force) = match policy {
            Ok(Some(policy)) => {
                (self.put_policy(&policy_id, self.taken(policy)), Vec::new(), InForce::Current)
            }
            Ok(None) => (self.cluster.policies.remove(&policy_id).is_some(), Vec::new(), InForce::Current),
            Err(fault) if had_good => (false, vec![unreadable(fault)], InForce::Earlier),
            Err(mut fault) => {
                let selector = fault.selector.take().unwrap_or_default();
                let changed = self.put_policy(&policy_id, deny_all(policy_id.clone(), selector));
                (changed, vec![unreadable(fault)], InForce::Nothing)
            }
        };
        let problems = self.remember(policy_id, Source { text: None, good: None, findings, in_force });
        Change { cluster: changed, problems }
    }

    /// Returns a policy that somebody wrote as it is to be taken.
    fn taken(&self, policy: Policy) -> Policy {
        Policy { mode: if self.audits { Mode::Audit } else { policy.mode }, ..policy }
    }

    /// Puts a policy in force. An equal one keeps its place in memory, so that whoever holds it can tell by its address.
    fn put_policy(&mut self, id: &PolicyId, mut policy: Policy) -> bool {
        if names_a_cloud(&policy) {
            resolve(&mut policy, &self.ranges, &mut self.found);
        }
        if self.cluster.policies.get(id).is_some_and(|present| **present == policy) {
            return false;
        }
        self.cluster.policies.insert(id.clone(), Arc::new(policy));
        true
    }

    /// Returns whether the problems differ.
    fn remember(&mut self, id: PolicyId, source: Source) -> bool {
        let quiet = |source: &Source| source.findings.is_empty() && source.in_force == InForce::Current;
        let changed = match self.sources.get(&id) {
            Some(before) => before.findings != source.findings || before.in_force != source.in_force,
            None => !quiet(&source),
        };
        self.sources.insert(id, source);
        changed
    }

    fn delete_policy(&mut self, kind: PolicyKind, id: &NsName) -> Change {
        let policy_id = PolicyId { kind, id: id.clone() };
        let problems = self
            .sources
            .remove(&policy_id)
            .is_some_and(|source| !source.findings.is_empty() || source.in_force != InForce::Current);
        Change { cluster: self.cluster.policies.remove(&policy_id).is_some(), problems }
    }
}

fn names_a_cloud(policy: &Policy) -> bool {
    policy.rules.iter().flat_map(|rule| &rule.peers).any(|peer| match peer {
        Peer::Cloud(_) => true,
        Peer::Unresolved(what) => what.is_cloud(),
        _ => false,
    })
}

/// How many clouds' services one policy may name, and how many prefixes they may be together, those named twice counted twice: some
/// sixty bytes can name four thousand. What goes beyond is unresolved, so that it is denied where it would be allowed and the other way round.
const MOST_CLOUDS: (usize, usize) = (1024, 65_536);
/// How many different ones are remembered for all policies together.
const MOST_FOUND: usize = 4096;

/// Gives each cloud's service of a policy the addresses it has now.
///
/// One that the ranges know, but that has no address in the regions named, has none; one that they do not know is unresolved.
fn resolve(policy: &mut Policy, ranges: &Ranges, known: &mut HashMap<Unresolved, Option<Arc<Cloud>>>) {
    let (mut clouds, mut prefixes) = (0, 0);
    for peer in policy.rules.iter_mut().flat_map(|rule| &mut rule.peers) {
        let what = match peer {
            Peer::Cloud(cloud) => cloud.what.clone(),
            Peer::Unresolved(what) if what.is_cloud() => what.clone(),
            _ => continue,
        };
        clouds += 1;
        if clouds > MOST_CLOUDS.0 || prefixes > MOST_CLOUDS.1 {
            *peer = Peer::Unresolved(what);
            continue;
        }
        if known.len() >= MOST_FOUND {
            known.clear();
        }
        let found = known.entry(what.clone()).or_insert_with(|| find(&what, ranges));
        prefixes += found.as_ref().map_or(0, |cloud| cloud.cidrs.len());
        *peer = match found {
            Some(cloud) if prefixes <= MOST_CLOUDS.1 => Peer::Cloud(Arc::clone(cloud)),
            _ => Peer::Unresolved(what),
        };
    }
}

fn find(what: &Unresolved, ranges: &Ranges) -> Option<Arc<Cloud>> {
    let Found { cidrs, domains, ports, .. } = match ranges.resolve(what) {
        Ok(found) => found,
        Err(Missing::Empty { .. }) => Found::default(),
        Err(_) => return None,
    };
    let ports = (!ports.is_empty()).then_some(Ports::List(ports));
    Some(Arc::new(Cloud { what: what.clone(), cidrs, domains, ports }))
}

/// Values of which equal ones share their place in memory.
#[derive(Debug)]
struct Shared<T> {
    known: HashSet<T>,
    /// How many there may be until those that nobody else has are looked for.
    room: usize,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), room: 1024 }
    }
}

/// A value that knows whether others have it, too.
trait Counted: Clone + Eq + Hash {
    fn is_unshared(&self) -> bool;
}

impl Counted for Labels {
    fn is_unshared(&self) -> bool {
        self.is_unshared()
    }
}

impl Counted for NamedPorts {
    fn is_unshared(&self) -> bool {
        self.is_unshared()
    }
}

impl<T: Counted> Shared<T> {
    /// Returns the value equal to this one that others have.
    fn share(&mut self, value: T) -> T {
        if let Some(known) = self.known.get(&value) {
            return known.clone();
        }
        if self.known.len() >= self.room {
            self.known.retain(|known| !known.is_unshared());
            self.room = 1024.max(self.known.len() * 2);
        }
        self.known.insert(value.clone());
        value
    }
}

/// What a NetworkPolicy without any good version is taken for.
fn deny_all(id: PolicyId, selector: LabelSelector) -> Policy {
    Policy {
        id,
        mode: Mode::Enforce,
        default_action: DefaultAction::Deny,
        selector,
        cluster_dns: false,
        own_node: true,
        rules: Vec::new(),
    }
}

/// Returns what is found in a ConfigMap with the label and no policy.
pub(crate) fn missing_key() -> Finding {
    Finding {
        severity: Severity::Error,
        path: String::new(),
        line: 0,
        column: 0,
        message: "no text under `policy.json`".into(),
        hint: Some(
            "put the policy under that key, or take the label `egress-controller: managed` off".into(),
        ),
        rule: None,
    }
}

fn unreadable(fault: Unreadable) -> Finding {
    Finding {
        severity: Severity::Error,
        path: fault.path,
        line: 0,
        column: 0,
        message: fault.message,
        hint: fault.hint,
        rule: None,
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use proptest::{collection::vec, prelude::*};

    use super::{
        super::{
            cluster::Local,
            model::{Operator, Requirement},
        },
        *,
    };

    /// Takes any text that does not begin with `bad` for a policy selecting `app: <text>`; `warn` draws a warning.
    fn parse(id: &NsName, text: &str) -> (Option<Policy>, Vec<Finding>) {
        let finding = |severity| Finding {
            severity,
            path: String::new(),
            line: 1,
            column: 1,
            message: text.to_owned(),
            hint: None,
            rule: None,
        };
        if text.starts_with("bad") {
            return (None, vec![finding(Severity::Error)]);
        }
        let policy = mk_policy(PolicyKind::ConfigMap, id, text.trim_end());
        let warnings = if text.starts_with("warn") { vec![finding(Severity::Warning)] } else { Vec::new() };
        (Some(policy), warnings)
    }

    fn mk_policy(kind: PolicyKind, id: &NsName, app: &str) -> Policy {
        let mut policy = deny_all(PolicyId { kind, id: id.clone() }, selector(app));
        policy.own_node = kind == PolicyKind::NetworkPolicy;
        policy
    }

    fn selector(app: &str) -> LabelSelector {
        LabelSelector { match_labels: vec![("app".into(), app.into())], match_expressions: Vec::new() }
    }

    fn mk_pod(name: &str, ip: &str) -> Object {
        let local = Local { uid: name.into(), node: "n".into(), ..Local::default() };
        let ips = [ip.parse().expect("a literal address")].into_iter().collect();
        let pod = Pod { ips, local: Some(Box::new(local)), ..Pod::default() };
        Object::Pod(NsName::new("ns", name), pod)
    }

    fn mk_config_map(name: &str, text: &str) -> Object {
        Object::ConfigMap { id: NsName::new("ns", name), managed: true, policy: Some(text.into()) }
    }

    fn mk_fault(selector: Option<LabelSelector>) -> Unreadable {
        Unreadable { path: "spec".into(), message: "wrong".into(), hint: None, selector }
    }

    fn config_map_id(name: &str) -> PolicyId {
        PolicyId { kind: PolicyKind::ConfigMap, id: NsName::new("ns", name) }
    }

    fn network_policy_id(name: &str) -> PolicyId {
        PolicyId { kind: PolicyKind::NetworkPolicy, id: NsName::new("ns", name) }
    }

    fn in_force(index: &Index, id: &PolicyId) -> Option<InForce> {
        index.problems().find(|problem| problem.policy == id).map(|problem| problem.in_force)
    }

    const BOTH: Change = Change { cluster: true, problems: true };
    const CLUSTER: Change = Change { cluster: true, problems: false };
    const PROBLEMS: Change = Change { cluster: false, problems: true };

    /// A pod of this node, or of another one, in a namespace.
    fn mk_pod_of(namespace: u8, name: u8, here: bool) -> Object {
        let local = here.then(|| Box::new(Local { uid: name.to_string(), ..Local::default() }));
        Object::Pod(
            NsName::new(format!("ns-{namespace}"), format!("pod-{name}")),
            Pod { local, ..Pod::default() },
        )
    }

    proptest! {
        /// Whoever reads policies only while a pod of their namespace is here knows the same of those pods as who reads all.
        #[test]
        fn policies_are_read_for_pods_here(steps in vec((0..7_u8, 0..2_u8, 0..3_u8, 0..4_usize), 0..80)) {
            let mut all = Index::new(parse);
            let mut some = Index::for_pods_here(parse);
            for (what, namespace, name, text) in steps {
                let id = NsName::new(format!("ns-{namespace}"), format!("p-{name}"));
                let pod = NsName::new(format!("ns-{namespace}"), format!("pod-{name}"));
                let text = [Some("one"), Some("warn"), Some("bad"), None][text].map(str::to_owned);
                let before = some.cluster().policies.clone();
                let change = match what {
                    0 => some.delete(&ObjectKey::ConfigMap(id.clone())),
                    1 => some.delete(&ObjectKey::Pod(pod.clone())),
                    2 | 3 => some.apply(mk_pod_of(namespace, name, what == 2)),
                    _ => some.apply(Object::ConfigMap { id: id.clone(), managed: true, policy: text.clone() }),
                };
                prop_assert!(change.cluster || some.cluster().policies == before);
                let _ = match what {
                    0 => all.delete(&ObjectKey::ConfigMap(id)),
                    1 => all.delete(&ObjectKey::Pod(pod)),
                    2 | 3 => all.apply(mk_pod_of(namespace, name, what == 2)),
                    _ => all.apply(Object::ConfigMap { id, managed: true, policy: text }),
                };
                let here = |id: &NsName| all.cluster().pods.has_local(&id.namespace);
                let in_force = |index: &Index| -> Vec<_> {
                    let policies = index.cluster().policies.iter().filter(|(id, _)| here(&id.id));
                    policies.map(|(id, policy)| (id.clone(), Policy::clone(policy))).collect()
                };
                let broken = |index: &Index| -> Vec<_> {
                    index.cluster().broken.iter().filter(|id| here(id)).cloned().collect()
                };
                let problems = |index: &Index| -> Vec<_> {
                    let problems = index.problems().filter(|problem| here(&problem.policy.id));
                    problems.map(|one| (one.policy.clone(), one.findings.to_vec(), one.in_force)).collect()
                };
                prop_assert_eq!(in_force(&some), in_force(&all));
                prop_assert_eq!(broken(&some), broken(&all));
                prop_assert_eq!(problems(&some), problems(&all));
                prop_assert!(some.cluster().policies.keys().all(|policy| here(&policy.id)), "no others are read");
                let mut keys = [&some, &all].map(|index| index.keys(ObjectKind::ConfigMap));
                keys.iter_mut().for_each(|keys| keys.sort());
                prop_assert_eq!(&keys[0], &keys[1]);
                let texts = |index: &Index| -> BTreeMap<NsName, (Option<String>, Option<String>)> {
                    let own = |text: Option<&str>| text.map(str::to_owned);
                    index.texts().map(|(id, text, good)| (id.clone(), (own(text), own(good)))).collect()
                };
                prop_assert_eq!(texts(&some), texts(&all), "what a snapshot keeps");
            }
        }
    }

    #[test]
    fn every_kind_is_put_replaced_and_deleted() {
        let mut index = Index::new(parse);
        let id = NsName::new("ns", "x");
        let address = "10.0.0.1".parse().expect("a literal address");
        let objects = [
            (
                Object::Namespace { name: "ns".into(), labels: Labels::new() },
                Object::Namespace { name: "ns".into(), labels: Labels::from([("a".into(), "b".into())]) },
            ),
            (mk_pod("x", "10.0.0.1"), mk_pod("x", "10.0.0.2")),
            (
                Object::Service(id.clone(), Service::default()),
                Object::Service(id.clone(), Service { cluster_ips: vec![address], ..Service::default() }),
            ),
            (
                Object::EndpointSlice(id.clone(), EndpointSlice::default()),
                Object::EndpointSlice(
                    id.clone(),
                    EndpointSlice { addresses: vec![address], ..EndpointSlice::default() },
                ),
            ),
            (
                Object::Node("n".into(), Node::default()),
                Object::Node("n".into(), Node { addresses: vec![address], ..Node::default() }),
            ),
            (mk_config_map("x", "one"), mk_config_map("x", "two")),
            (
                Object::NetworkPolicy(id.clone(), Ok(Some(mk_policy(PolicyKind::NetworkPolicy, &id, "one")))),
                Object::NetworkPolicy(id.clone(), Ok(Some(mk_policy(PolicyKind::NetworkPolicy, &id, "two")))),
            ),
        ];
        for (first, second) in objects {
            let key = first.key();
            assert_eq!(index.apply(first.clone()), CLUSTER, "{key} is new");
            assert_eq!(index.apply(first.clone()), Change::NONE, "{key} is the same as before");
            assert_eq!(index.apply(second), CLUSTER, "{key} differs");
            assert_eq!(index.keys(key.kind()), vec![key.clone()]);
            assert_eq!(index.delete(&key), CLUSTER, "{key} goes");
            assert_eq!(index.delete(&key), Change::NONE, "{key} is gone already");
            assert!(index.keys(key.kind()).is_empty());
        }
    }

    #[test]
    fn an_invalid_config_map_keeps_its_last_good_version() {
        let mut index = Index::new(parse);
        let id = config_map_id("p");
        assert_eq!(index.apply(mk_config_map("p", "one")), CLUSTER);
        assert_eq!(index.apply(mk_config_map("p", "bad")), PROBLEMS, "the state stays, the report changes");
        assert_eq!(index.cluster().policies[&id].selector, selector("one"));
        assert!(index.cluster().broken.is_empty());
        assert_eq!(in_force(&index, &id), Some(InForce::Earlier));
        assert_eq!(index.apply(mk_config_map("p", "bad")), Change::NONE);
        assert_eq!(index.apply(mk_config_map("p", "bad again")), PROBLEMS, "other findings are news");
        assert_eq!(index.apply(mk_config_map("p", "two")), BOTH);
        assert_eq!(index.cluster().policies[&id].selector, selector("two"));
        assert_eq!(index.problems().count(), 0);
    }

    #[test]
    fn the_text_in_force_is_told_until_another_one_is() {
        let mut index = Index::new(parse);
        let texts = |index: &Index| -> Vec<(Option<String>, Option<String>)> {
            index.texts().map(|(_, text, good)| (text.map(str::to_owned), good.map(str::to_owned))).collect()
        };
        let some = |text: &str| Some(text.to_owned());
        for (text, expected) in [
            ("bad", (some("bad"), None)),
            ("one", (some("one"), None)),
            ("bad", (some("bad"), some("one"))),
            ("bad again", (some("bad again"), some("one"))),
            ("two", (some("two"), None)),
        ] {
            let _ = index.apply(mk_config_map("p", text));
            assert_eq!(texts(&index), [expected], "after {text}");
        }
    }

    #[test]
    fn a_config_map_without_a_good_version_is_broken_until_it_has_one() {
        let mut index = Index::new(parse);
        let id = config_map_id("p");
        assert_eq!(index.apply(mk_config_map("p", "bad")), BOTH);
        assert!(index.cluster().broken.contains(&id.id));
        assert_eq!(in_force(&index, &id), Some(InForce::Nothing));
        assert_eq!(index.apply(mk_config_map("p", "bad two")), PROBLEMS);
        assert_eq!(index.apply(mk_config_map("p", "one")), BOTH);
        assert!(index.cluster().broken.is_empty(), "a good version ends it");
        assert_eq!(index.problems().count(), 0);

        assert_eq!(index.apply(mk_config_map("q", "bad")), BOTH);
        assert_eq!(index.delete(&ObjectKey::ConfigMap(NsName::new("ns", "q"))), BOTH);
        assert!(index.cluster().broken.is_empty(), "deleting the ConfigMap ends it too");
        assert_eq!(index.problems().count(), 0);
    }

    #[test]
    fn a_managed_config_map_without_the_key_is_invalid() {
        let mut index = Index::new(parse);
        let object = Object::ConfigMap { id: NsName::new("ns", "p"), managed: true, policy: None };
        assert_eq!(index.apply(object.clone()), BOTH);
        assert!(index.cluster().broken.contains(&NsName::new("ns", "p")));
        assert!(
            index.problems().next().expect("it is a problem").findings[0].message.contains("policy.json")
        );
        assert_eq!(index.apply(mk_config_map("p", "one")), BOTH);
        assert_eq!(index.apply(object), PROBLEMS);
        assert_eq!(in_force(&index, &config_map_id("p")), Some(InForce::Earlier));
        assert!(index.cluster().policies.contains_key(&config_map_id("p")));
    }

    #[test]
    fn a_config_map_that_is_not_managed_counts_as_deleted() {
        let mut index = Index::new(parse);
        let unmanaged = |text: &str| Object::ConfigMap {
            id: NsName::new("ns", "p"),
            managed: false,
            policy: Some(text.into()),
        };
        assert_eq!(index.apply(unmanaged("bad")), Change::NONE);
        assert_eq!(index.apply(mk_config_map("p", "one")), CLUSTER);
        assert_eq!(index.apply(unmanaged("one")), CLUSTER, "taking the label off takes the policy off");
        assert!(index.cluster().policies.is_empty());
        assert_eq!(index.apply(mk_config_map("p", "bad")), BOTH);
        assert!(
            index.cluster().broken.contains(&NsName::new("ns", "p")),
            "the earlier good version is forgotten"
        );
    }

    #[test]
    fn a_text_that_means_the_same_changes_nothing() {
        let mut index = Index::new(parse);
        let id = config_map_id("p");
        assert_eq!(index.apply(mk_config_map("p", "one")), CLUSTER);
        let before = Arc::clone(&index.cluster().policies[&id]);
        assert_eq!(index.apply(mk_config_map("p", "one ")), Change::NONE);
        assert!(Arc::ptr_eq(&before, &index.cluster().policies[&id]));
    }

    #[test]
    fn warnings_are_problems_of_a_policy_in_force() {
        let mut index = Index::new(parse);
        assert_eq!(index.apply(mk_config_map("p", "warn")), BOTH);
        assert_eq!(in_force(&index, &config_map_id("p")), Some(InForce::Current));
        assert_eq!(index.apply(mk_config_map("p", "one")), BOTH);
        assert_eq!(index.problems().count(), 0);
    }

    #[test]
    fn who_audits_takes_every_policy_so_but_not_what_stands_in_for_one() {
        let mut index = Index::new(parse).auditing();
        assert!(index.apply(mk_config_map("p", "one")).cluster);
        assert_eq!(index.cluster().policies[&config_map_id("p")].mode, Mode::Audit);
        let id = network_policy_id("n");
        let good = mk_policy(PolicyKind::NetworkPolicy, &id.id, "one");
        assert_eq!(good.mode, Mode::Enforce);
        assert!(index.apply(Object::NetworkPolicy(id.id.clone(), Ok(Some(good)))).cluster);
        assert_eq!(index.cluster().policies[&id].mode, Mode::Audit);
        let never = network_policy_id("never");
        assert!(index.apply(Object::NetworkPolicy(never.id.clone(), Err(mk_fault(None)))).cluster);
        assert_eq!(index.cluster().policies[&never].mode, Mode::Enforce);
    }

    #[test]
    fn an_unreadable_network_policy_fails_closed_or_keeps_the_good_one() {
        let mut index = Index::new(parse);
        let id = network_policy_id("p");
        let apply = |index: &mut Index, policy| index.apply(Object::NetworkPolicy(id.id.clone(), policy));

        let odd = LabelSelector {
            match_labels: Vec::new(),
            match_expressions: vec![Requirement { key: "k".into(), operator: Operator::Exists }],
        };
        assert_eq!(apply(&mut index, Err(mk_fault(Some(odd.clone())))), BOTH);
        let policy = &index.cluster().policies[&id];
        assert_eq!(policy.selector, odd, "the pods it selects are denied");
        assert_eq!((policy.mode, policy.default_action), (Mode::Enforce, DefaultAction::Deny));
        assert!(policy.rules.is_empty() && !policy.cluster_dns);
        assert_eq!(in_force(&index, &id), Some(InForce::Nothing));

        assert_eq!(
            apply(&mut index, Err(mk_fault(None))),
            CLUSTER,
            "still no good version, so the stand-in follows"
        );
        assert!(index.cluster().policies[&id].selector.is_empty(), "all pods of the namespace");

        let good = mk_policy(PolicyKind::NetworkPolicy, &id.id, "one");
        assert_eq!(apply(&mut index, Ok(Some(good.clone()))), BOTH);
        assert_eq!(apply(&mut index, Err(mk_fault(None))), PROBLEMS);
        assert_eq!(*index.cluster().policies[&id], good, "the good version stays");
        assert_eq!(in_force(&index, &id), Some(InForce::Earlier));
        assert_eq!(apply(&mut index, Err(mk_fault(None))), Change::NONE);

        assert_eq!(apply(&mut index, Ok(None)), BOTH, "it is not about egress any more");
        assert!(index.cluster().policies.is_empty());
        assert_eq!(apply(&mut index, Err(mk_fault(None))), PROBLEMS, "the good version had no egress");
        assert!(index.cluster().policies.is_empty());
        assert_eq!(index.delete(&ObjectKey::NetworkPolicy(id.id.clone())), PROBLEMS);
        assert_eq!(
            apply(&mut index, Err(mk_fault(None))),
            BOTH,
            "a new object of that name has no good version"
        );
    }

    #[test]
    fn a_fresh_list_deletes_what_is_not_in_it() {
        let mut index = Index::new(parse);
        assert_eq!(
            index.replace(ObjectKind::Pod, [mk_pod("a", "10.0.0.1"), mk_pod("b", "10.0.0.2")]),
            CLUSTER
        );
        assert_eq!(index.apply(mk_config_map("p", "bad")), BOTH);
        assert_eq!(
            index.replace(ObjectKind::Pod, [mk_pod("a", "10.0.0.1"), mk_pod("b", "10.0.0.2")]),
            Change::NONE,
            "the same list again"
        );
        assert_eq!(
            index.replace(ObjectKind::Pod, [mk_pod("b", "10.0.0.2"), mk_pod("c", "10.0.0.3")]),
            CLUSTER
        );
        let names: Vec<_> = index.cluster().pods.keys().map(|id| id.name).collect();
        assert_eq!(names, ["b", "c"]);
        assert!(index.cluster().broken.contains(&NsName::new("ns", "p")), "other kinds are left alone");
        assert_eq!(index.replace(ObjectKind::ConfigMap, [mk_config_map("q", "one")]), BOTH);
        assert!(index.cluster().broken.is_empty());
        assert_eq!(index.replace(ObjectKind::ConfigMap, []), CLUSTER);
        assert!(index.cluster().policies.is_empty());
        assert_eq!(index.retain(ObjectKind::Pod, |_| false), CLUSTER);
        assert!(index.cluster().pods.is_empty());
    }

    #[test]
    fn a_fresh_list_keeps_the_last_good_version() {
        let mut index = Index::new(parse);
        assert_eq!(index.apply(mk_config_map("p", "one")), CLUSTER);
        assert_eq!(index.replace(ObjectKind::ConfigMap, [mk_config_map("p", "bad")]), PROBLEMS);
        assert_eq!(index.cluster().policies[&config_map_id("p")].selector, selector("one"));
    }

    #[test]
    fn changes_tell_what_was_before_the_first_of_them() {
        let mut index = Index::new(parse);
        let id = NsName::new("ns", "a");
        assert_eq!(index.apply(mk_pod("a", "10.0.0.1")), CLUSTER);
        let changes = index.take_changes();
        assert_eq!(changes.pods.into_iter().collect::<Vec<_>>(), [(id.clone(), None)]);
        let before = index.cluster().pods[&id].clone();
        assert_eq!(index.apply(mk_pod("a", "10.0.0.2")), CLUSTER);
        assert_eq!(index.delete(&ObjectKey::Pod(id.clone())), CLUSTER);
        let slice = EndpointSlice { service: "s".into(), ..EndpointSlice::default() };
        assert_eq!(index.apply(Object::EndpointSlice(NsName::new("ns", "s-1"), slice)), CLUSTER);
        let changes = index.take_changes();
        assert_eq!(changes.pods.into_iter().collect::<Vec<_>>(), [(id, Some(before))]);
        assert_eq!(changes.services.into_iter().collect::<Vec<_>>(), [NsName::new("ns", "s")]);
        assert!(!changes.everything && !changes.cluster_ips && changes.nodes.is_empty());
        assert!(index.take_changes().is_empty());
    }

    #[test]
    fn too_many_changes_are_not_listed() {
        let mut index = Index::new(parse);
        for number in 0..5000 {
            assert_eq!(index.apply(mk_pod(&number.to_string(), "10.0.0.1")), CLUSTER);
        }
        let changes = index.take_changes();
        assert!(changes.everything && changes.pods.is_empty());
    }

    #[test]
    fn labels_that_nobody_has_any_more_are_forgotten() {
        let mut index = Index::new(parse);
        for number in 0..5000 {
            let labels = Labels::from([("n".into(), number.to_string())]);
            let object = Object::Pod(NsName::new("ns", "a"), Pod { labels, ..Pod::default() });
            assert_eq!(index.apply(object), CLUSTER);
        }
        assert!(index.labels.known.len() <= 1024 + 1, "{} are known", index.labels.known.len());
    }

    #[test]
    fn ranges_change_the_policies_that_name_a_cloud_and_no_others() {
        use crate::policy::ranges::{Builder, Row};

        let ranges = |prefixes: &[&str]| {
            let mut builder = Builder::new();
            for prefix in prefixes {
                let row = Row {
                    service: "S3",
                    region: "us-east-1",
                    network_border_group: "us-east-1",
                    wider: "",
                    cidr: prefix.parse().expect("a literal prefix"),
                };
                builder.push(row).expect("it can be published");
            }
            let mut ranges = Ranges::default();
            ranges.set_provider("aws", Arc::new(builder.finish(Some(1))));
            ranges
        };
        let mut index = Index::default();
        let put = |index: &mut Index, name: &str, destination: &str| {
            let text = format!(
                r#"{{"defaultAction": "deny", "allowedDestinations": [{{"name": "a", {destination}}}]}}"#
            );
            let id = NsName::new("ns", name);
            let _ = index.apply(Object::ConfigMap { id: id.clone(), managed: true, policy: Some(text) });
            PolicyId { kind: PolicyKind::ConfigMap, id }
        };
        let s3 = put(&mut index, "s3", r#""awsService": "s3""#);
        let other = put(&mut index, "other", r#""cidr": "10.0.0.0/8""#);
        let peer = |index: &Index, id: &PolicyId| index.cluster().policies[id].rules[0].peers[0].clone();
        assert!(matches!(peer(&index, &s3), Peer::Unresolved(_)));
        let before = Arc::clone(&index.cluster().policies[&other]);

        assert!(index.set_ranges(ranges(&["192.0.2.0/24"])).cluster);
        let cidrs = |index: &Index, id: &PolicyId| match peer(index, id) {
            Peer::Cloud(cloud) => cloud.cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(cidrs(&index, &s3), ["192.0.2.0/24"]);
        assert!(Arc::ptr_eq(&before, &index.cluster().policies[&other]), "it is not made anew");
        assert_eq!(index.set_ranges(ranges(&["192.0.2.0/24"])), Change::NONE);
        // One that comes later has them at once, and one whose last version is invalid follows them, too.
        let late = put(&mut index, "late", r#""awsService": "S3", "regions": ["us-east-1"]"#);
        assert_eq!(cidrs(&index, &late), ["192.0.2.0/24"]);
        let _ = put(&mut index, "s3", r#""awsService": 5"#);
        assert!(index.set_ranges(ranges(&["198.51.100.0/24"])).cluster);
        assert_eq!(cidrs(&index, &s3), ["198.51.100.0/24"]);
        // Nothing of a region is nothing, and nothing known is unresolved.
        let none = put(
            &mut index,
            "none",
            r#""cloud": {"provider": "aws", "service": "S3", "regions": ["GLOBAL"]}"#,
        );
        assert!(matches!(peer(&index, &none), Peer::Unresolved(_)), "the ranges have no such region");
        assert!(index.set_ranges(Ranges::default()).cluster);
        assert!(matches!(peer(&index, &s3), Peer::Unresolved(_)));
    }

    #[test]
    fn a_policy_has_no_more_of_clouds_than_there_is_room_for() {
        use crate::policy::ranges::{Builder, Row};

        let mut builder = Builder::new();
        for third in 0..=255_u8 {
            let cidr = IpNet::from(ipnet::Ipv4Net::new_assert([52, 94, third, 0].into(), 25));
            let row = Row { service: "S3", region: "r-1", network_border_group: "r-1", wider: "", cidr };
            builder.push(row).expect("it can be published");
        }
        let mut ranges = Ranges::default();
        ranges.set_provider("aws", Arc::new(builder.finish(Some(1))));
        let mut index = Index::default();
        let _ = index.set_ranges(ranges);
        let mut resolved = |destinations: usize, service: &str| {
            let entries: Vec<String> = (0..destinations)
                .map(|number| format!(r#"{{"name": "d{number}", "cloud": {{"provider": "aws"{service}}}}}"#))
                .collect();
            let text =
                format!(r#"{{"defaultAction": "deny", "allowedDestinations": [{}]}}"#, entries.join(","));
            let id = NsName::new("ns", "p");
            let _ = index.apply(Object::ConfigMap { id: id.clone(), managed: true, policy: Some(text) });
            let policy = &index.cluster().policies[&PolicyId { kind: PolicyKind::ConfigMap, id }];
            let clouds = policy.rules.iter().filter_map(|rule| match &rule.peers[0] {
                Peer::Cloud(cloud) => Some(Arc::clone(&cloud.cidrs)),
                _ => None,
            });
            clouds.collect::<Vec<_>>()
        };
        let few = resolved(200, "");
        assert_eq!(few.len(), 200);
        assert!(few.iter().all(|cidrs| Arc::ptr_eq(cidrs, &few[0])), "they share what they have in common");
        assert_eq!(resolved(400, "").len(), MOST_CLOUDS.1 / 256);
        assert_eq!(resolved(2000, r#", "regions": ["GLOBAL"]"#).len(), 0, "there is nothing of that");
    }
}
