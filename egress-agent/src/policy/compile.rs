//! From the policies that select a pod to its policy set: what its packets are looked up in.
//!
//! 1. The policies that select the pod are found ([`Compiled::policies`]).
//! 2. Their rules are resolved against the cluster into grants: addresses, ports, effect, deadline (`peers.rs`, `ports.rs`).
//! 3. Grants are folded into entries of which a lookup needs only one (`fold.rs`).
//! 4. Rules are numbered and everything is sorted, so that equal policies make equal sets, whichever pod they were made for.

mod fold;
mod memory;
mod peers;
mod ports;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use egress_common::policy::{NEVER, NO_RULE, RuleEntry, candidate};

use self::{
    fold::{Folded, Grants, Origin, TooLarge},
    memory::{Choice, Memory, Touched},
    peers::{Asker, Directory, apiserver},
};
use super::{
    changes::Changes,
    cluster::{Cluster, InvalidPolicy, NsName, Pod, Settings},
    model::{
        DefaultAction, Effect, Entity, LabelSelector, Mode, Peer, Policy, PolicyId, PolicyKind, PortMatch,
        PortSpec, Ports, Protocol, RuleName, RulePart,
    },
};

pub use self::peers::Why;
pub use super::cluster::Addresses;

/// Everything the policies say to one pod, ready for the maps. Own addresses and whether a rule has expired are not in it.
///
/// Sets that say the same are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicySet {
    /// The rules it refers to, in policy order. Rule numbers in this struct are places here, from 1; 0 is
    /// [`NO_RULE`].
    pub rules: Vec<RuleName>,
    /// The number of the rule that stands for "denies by default" of the enforcing policies, if one does.
    pub default_deny: Option<u32>,
    /// The same for the audited policies.
    pub audit_default_deny: Option<u32>,
    /// Single addresses (16 octets, IPv4 mapped) and the index of their list, sorted. Empty where fewer than half of the entries
    /// are single addresses; they then stand among the prefixes.
    pub exact: Vec<([u8; 16], u32)>,
    /// Prefixes (16 octets, length 0 to 128 in the 128-bit space) and the index of their list, sorted.
    pub prefixes: Vec<([u8; 16], u8, u32)>,
    /// Rule entries: each list sorted by range and without overlap, the lists sorted and distinct.
    pub lists: Vec<Vec<RuleEntry>>,
    /// Whether the set was given up because it needs more rule entries than any map holds. Such a set has no entries and
    /// never fits (see [`super::entries::Allocator::allocate`]), so that the version before it stays in force.
    pub too_large: bool,
}

/// How many rule entries a set may have before it counts as too large.
pub const MAX_ENTRIES: usize = fold::MAX_ENTRIES;

impl PolicySet {
    /// Returns the name of the rule with this number; `None` for [`NO_RULE`].
    ///
    /// # Panics
    /// When the number is not one of this set's.
    #[must_use]
    pub fn rule(&self, number: u32) -> Option<&RuleName> {
        (number != NO_RULE).then(|| &self.rules[number as usize - 1])
    }

    /// Returns how many rule entries its lists have together.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.lists.iter().map(Vec::len).sum()
    }
}

/// A peer of a rule that matches less than it says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unmatched {
    /// The rule it stands in.
    pub rule: RuleName,
    /// Why.
    pub why: Why,
}

impl fmt::Display for Unmatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "policy {}, destination {} matches less than it says: {}",
            self.rule.policy,
            self.rule.part.as_str(),
            self.why
        )
    }
}

/// What is to hold for one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// What its packets are looked up in; `None` when no policy governs it.
    pub set: Option<Arc<PolicySet>>,
    /// Its own addresses, which it always reaches.
    pub addresses: Addresses,
    /// Peers that match nothing, to be reported.
    pub unresolved: Vec<Unmatched>,
    /// The policies that select it, in policy order.
    pub policies: Vec<PolicyId>,
}

/// Returns what is to hold for `pod`. A pod that is absent or has finished is not governed.
#[must_use]
pub fn compile(cluster: &Cluster, settings: &Settings, pod: &NsName) -> Compiled {
    let mut cache = Cache::default();
    Compiler::new(cluster, settings, &mut cache).compile(pod)
}

/// Returns what is to hold for each of `pods`. Pods that the same policies select share one set.
#[must_use]
pub fn compile_all<N: Into<NsName>>(
    cluster: &Cluster,
    settings: &Settings,
    pods: impl Iterator<Item = N>,
) -> BTreeMap<NsName, Compiled> {
    compile_all_cached(&mut Cache::default(), cluster, settings, Changes::default(), pods)
}

/// Returns what [`compile_all`] returns, and compiles only what may have changed since the last call with the same `cache`.
///
/// One cache serves one [`Settings`] value; make a new one when settings change. `pods` are all that the caller cares for:
/// what none of them needed in this call is forgotten. `changes` are those of the cluster since the last call; policies are not
/// among them, since a policy is known by its [`Arc`]: one that has not changed must be the same `Arc` as before, and a changed
/// one another. A set that comes out as before is the same `Arc` as before.
pub fn compile_all_cached<N: Into<NsName>>(
    cache: &mut Cache,
    cluster: &Cluster,
    settings: &Settings,
    changes: Changes,
    pods: impl Iterator<Item = N>,
) -> BTreeMap<NsName, Compiled> {
    cache.absorb(cluster, changes);
    cache.round += 1;
    let mut compiler = Compiler::new(cluster, settings, cache);
    let compiled = pods.map(Into::into).map(|pod| (pod.clone(), compiler.compile(&pod))).collect();
    let compiled: BTreeMap<NsName, Compiled> = compiled;
    let round = cache.round;
    cache.done.retain(|_, kept| kept.round == round);
    let used: HashSet<*const PolicySet> = cache.done.values().map(|kept| Arc::as_ptr(&kept.set)).collect();
    cache.sets.retain(|set| used.contains(&Arc::as_ptr(set)));
    let used: HashSet<*const Choice> =
        cache.done.values().flat_map(|kept| &kept.reads.choices).map(Arc::as_ptr).collect();
    cache.memory.retain(|choice| used.contains(&Arc::as_ptr(choice)));
    cache.asked = compiled.keys().cloned().collect();
    compiled
}

/// What was compiled before, for [`compile_all_cached`], and what of the cluster it depends on.
#[derive(Debug, Default)]
pub struct Cache {
    /// By all it depends on, besides the cluster.
    done: HashMap<Key, Kept>,
    /// The same sets, so that equal ones are one.
    sets: HashSet<Arc<PolicySet>>,
    memory: Memory,
    /// The pods of the last call.
    asked: BTreeSet<NsName>,
    /// The current call.
    round: u64,
    /// How many sets were compiled.
    compiled: u64,
}

impl Cache {
    /// Returns how many times a set was compiled, whether it came out otherwise or not.
    #[must_use]
    pub fn compiled(&self) -> u64 {
        self.compiled
    }

    /// Takes note of changes that led to `cluster`. Returns whether, because of them, [`compile_all_cached`] may return something
    /// else than the last time, for the pods of the last time or because one of this node has come.
    ///
    /// Whoever asks here first saves a call for every pod elsewhere that no policy is about. Changed policies are not among the
    /// changes, so when there are any, compile whatever this says.
    pub fn absorb(&mut self, cluster: &Cluster, changes: Changes) -> bool {
        if changes.everything {
            self.done.clear();
            self.memory = Memory::default();
            return true;
        }
        if changes.is_empty() {
            return false;
        }
        let here = |id: &NsName, pod: Option<&Pod>| {
            pod.is_some_and(|pod| pod.local.is_some()) || self.asked.contains(id)
        };
        let own = changes.pods.iter().any(|(id, before)| {
            here(id, before.as_ref()) || cluster.pods.get(id).is_some_and(|pod| pod.local.is_some())
        });
        let touched = self.memory.absorb(cluster, changes);
        let before = self.done.len();
        self.done.retain(|key, kept| !kept.reads.any(&touched, &key.node));
        own || self.done.len() < before
    }
}

#[derive(Debug)]
struct Kept {
    set: Arc<PolicySet>,
    unresolved: Vec<Unmatched>,
    reads: Reads,
    /// The last call that needed it.
    round: u64,
}

/// What compiling read of the cluster, besides policies and the pod itself.
#[derive(Debug, Default)]
struct Reads {
    /// Services with what stands behind them, by name.
    services: BTreeSet<NsName>,
    /// All ClusterIPs and what stands behind them.
    fronts: bool,
    /// The pod's node.
    node: bool,
    /// All that is not the world.
    world: bool,
    choices: Vec<Arc<Choice>>,
}

impl Reads {
    fn of(policies: &[Arc<Policy>], namespace: &str, settings: &Settings, memory: &Memory) -> Self {
        let mut reads = Self::default();
        for policy in policies {
            for rule in &policy.rules {
                // What is denied closes the ClusterIPs in front of it.
                reads.fronts |= rule.effect == Effect::Deny;
                for peer in &rule.peers {
                    reads.add(peer, policy.id.kind, namespace, settings, memory);
                    reads.world |= rule.effect == Effect::Deny && is_unknown_cloud(peer);
                }
            }
            if policy.cluster_dns {
                reads.services.extend(settings.cluster_dns.iter().cloned());
            }
            reads.node |= policy.own_node;
        }
        reads
    }

    fn add(&mut self, peer: &Peer, kind: PolicyKind, namespace: &str, settings: &Settings, memory: &Memory) {
        match peer {
            Peer::Any | Peer::Cidrs { .. } | Peer::Cloud(_) | Peer::Unresolved(_) => {}
            Peer::Service(name) => {
                self.services.insert(name.clone());
            }
            Peer::Entity(Entity::ClusterDns) => self.services.extend(settings.cluster_dns.iter().cloned()),
            Peer::Entity(Entity::KubeApiserver) => {
                self.services.insert(apiserver());
            }
            Peer::Entity(Entity::Node) => self.node = true,
            Peer::Entity(Entity::World) => self.world = true,
            Peer::Pods { namespaces, pods } => {
                self.fronts = true;
                self.choices.push(memory.choice(Choice::new(namespaces, pods, namespace, kind)));
            }
        }
    }

    /// Returns whether something of it was touched, for a pod on `node`.
    fn any(&self, touched: &Touched, node: &str) -> bool {
        self.fronts && !touched.services.is_empty()
            || !self.services.is_disjoint(&touched.services)
            || self.node && touched.nodes.contains(node)
            || self.world && touched.world
            || self.choices.iter().any(|choice| touched.choice(choice))
    }
}

fn is_unknown_cloud(peer: &Peer) -> bool {
    matches!(peer, Peer::Unresolved(what) if what.is_cloud())
}

/// What compiling reads of a pod, besides its addresses, and the policies that select it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    namespace: String,
    node: String,
    policies: Vec<Known>,
}

/// A policy, known by its place in memory. Those made up for a pod are known by what they say, which follows from the name.
#[derive(Clone, Debug)]
struct Known(Arc<Policy>);

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        let made_up = self.0.rules.is_empty() && other.0.rules.is_empty();
        Arc::ptr_eq(&self.0, &other.0) || made_up && self.0 == other.0
    }
}

impl Eq for Known {}

impl Hash for Known {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

struct Compiler<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    cache: &'a mut Cache,
}

impl<'a> Compiler<'a> {
    fn new(cluster: &'a Cluster, settings: &'a Settings, cache: &'a mut Cache) -> Self {
        Self { cluster, settings, cache }
    }

    fn compile(&mut self, name: &NsName) -> Compiled {
        let Some(pod) = self.cluster.pods.get(name).filter(|pod| !pod.finished) else {
            return Compiled::default();
        };
        let addresses = pod.ips;
        let selecting = selecting(self.cluster, self.settings, name, pod);
        if selecting.is_empty() {
            return Compiled { addresses, ..Compiled::default() };
        }
        let policies: Vec<PolicyId> = selecting.iter().map(|policy| policy.id.clone()).collect();
        let key = Key {
            namespace: name.namespace.clone(),
            node: pod.node().to_owned(),
            policies: selecting.iter().map(|policy| Known(Arc::clone(policy))).collect(),
        };
        let round = self.cache.round;
        if let Some(kept) = self.cache.done.get_mut(&key) {
            kept.round = round;
            let (set, unresolved) = (Some(Arc::clone(&kept.set)), kept.unresolved.clone());
            return Compiled { set, addresses, unresolved, policies };
        }
        let reads = Reads::of(&selecting, &name.namespace, self.settings, &self.cache.memory);
        let (set, unresolved) = self.fresh(&selecting, &name.namespace, pod.node());
        self.cache.compiled += 1;
        let set = match self.cache.sets.get(&set) {
            Some(same) => Arc::clone(same),
            None => {
                let set = Arc::new(set);
                self.cache.sets.insert(Arc::clone(&set));
                set
            }
        };
        let kept = Kept { set: Arc::clone(&set), unresolved: unresolved.clone(), reads, round };
        self.cache.done.insert(key, kept);
        Compiled { set: Some(set), addresses, unresolved, policies }
    }

    fn fresh(&self, selecting: &[Arc<Policy>], namespace: &str, node: &str) -> (PolicySet, Vec<Unmatched>) {
        let directory = Directory::new(self.cluster, self.settings, &self.cache.memory);
        let mut names = Names::default();
        let mut grants = Grants::default();
        let mut unresolved = Vec::new();
        let (mut default_deny, mut audit_default_deny) = (None, None);
        for policy in selecting {
            let id = Arc::new(policy.id.clone());
            let asker = Asker { namespace, node, kind: policy.id.kind };
            let mut resolve = |part: RulePart, rule: RuleView<'_>| {
                let number = names.add(RuleName { policy: Arc::clone(&id), part });
                let origin =
                    Origin { rule: number, kind: kind(policy.mode, rule.effect), deadline: rule.deadline };
                for peer in rule.peers {
                    for why in directory.resolve(&mut grants, origin, asker, peer, rule.ports) {
                        unresolved.push((number, why));
                    }
                }
            };
            for rule in &policy.rules {
                let view = RuleView {
                    effect: rule.effect,
                    deadline: rule.expires.unwrap_or(NEVER),
                    peers: &rule.peers,
                    ports: &rule.ports,
                };
                resolve(RulePart::Destination(rule.name.clone()), view);
            }
            if policy.cluster_dns {
                let peers = [Peer::Entity(Entity::ClusterDns)];
                resolve(RulePart::ClusterDns, RuleView::implicit(&peers, &dns_ports()));
            }
            if policy.own_node {
                let peers = [Peer::Entity(Entity::Node)];
                resolve(RulePart::OwnNode, RuleView::implicit(&peers, &Ports::All));
            }
            if policy.default_action == DefaultAction::Deny {
                let number = names.add(RuleName { policy: Arc::clone(&id), part: RulePart::Default });
                let slot = match policy.mode {
                    Mode::Enforce => &mut default_deny,
                    Mode::Audit => &mut audit_default_deny,
                };
                slot.get_or_insert(number);
            }
        }
        let unresolved = unresolved
            .into_iter()
            .map(|(number, why)| Unmatched { rule: names.get(number).clone(), why })
            .collect();
        (canonical(names, default_deny, audit_default_deny, fold::fold(grants)), unresolved)
    }
}

/// A rule of a policy, written or implied.
struct RuleView<'a> {
    effect: Effect,
    deadline: u64,
    peers: &'a [Peer],
    ports: &'a Ports,
}

impl<'a> RuleView<'a> {
    fn implicit(peers: &'a [Peer], ports: &'a Ports) -> Self {
        Self { effect: Effect::Allow, deadline: NEVER, peers, ports }
    }
}

/// Names of all rules, before it is known which of them matter.
#[derive(Default)]
struct Names(Vec<RuleName>);

impl Names {
    fn add(&mut self, name: RuleName) -> u32 {
        self.0.push(name);
        u32::try_from(self.0.len()).expect("fewer than 2^32 rules fit into memory")
    }

    fn get(&self, number: u32) -> &RuleName {
        &self.0[number as usize - 1]
    }
}

fn kind(mode: Mode, effect: Effect) -> usize {
    match (mode, effect) {
        (Mode::Enforce, Effect::Deny) => candidate::DENY,
        (Mode::Enforce, Effect::Allow) => candidate::ALLOW,
        (Mode::Audit, Effect::Deny) => candidate::AUDIT_DENY,
        (Mode::Audit, Effect::Allow) => candidate::AUDIT_ALLOW,
    }
}

fn dns_ports() -> Ports {
    let port = |protocol| PortSpec { protocol, port: PortMatch::Range(53, 53) };
    Ports::List(vec![port(Protocol::Udp), port(Protocol::Tcp)])
}

/// Returns the policies that select a pod, in policy order.
fn selecting(cluster: &Cluster, settings: &Settings, name: &NsName, pod: &Pod) -> Vec<Arc<Policy>> {
    let mut policies: BTreeMap<PolicyId, Arc<Policy>> = BTreeMap::new();
    let mut add = |policy: Arc<Policy>| {
        policies.insert(policy.id.clone(), policy);
    };
    let kinds = [PolicyKind::ConfigMap, PolicyKind::NetworkPolicy];
    for kind in kinds.into_iter().take(if settings.enforce_network_policy { 2 } else { 1 }) {
        let first = PolicyId { kind, id: NsName::new(name.namespace.as_str(), "") };
        cluster
            .policies
            .range(first..)
            .take_while(|(id, _)| id.kind == kind && id.id.namespace == name.namespace)
            .filter(|(_, policy)| policy.selector.matches(&pod.labels))
            .for_each(|(_, policy)| add(Arc::clone(policy)));
    }
    if settings.invalid_policy == InvalidPolicy::Deny {
        let first = NsName::new(name.namespace.as_str(), "");
        let broken = cluster.broken.range(first..).take_while(|id| id.namespace == name.namespace);
        for id in broken {
            add(Arc::new(denying(PolicyId { kind: PolicyKind::ConfigMap, id: id.clone() })));
        }
    }
    let enforced = policies.values().any(|policy| policy.mode == Mode::Enforce);
    if !enforced && settings.governed_namespaces.contains(&name.namespace) {
        let id = NsName::new(name.namespace.as_str(), "");
        let policy = denying(PolicyId { kind: PolicyKind::Namespace, id });
        policies.insert(policy.id.clone(), Arc::new(policy));
    }
    policies.into_values().collect()
}

/// Returns a policy that selects every pod and allows nothing but the cluster's DNS.
fn denying(id: PolicyId) -> Policy {
    Policy {
        id,
        mode: Mode::Enforce,
        default_action: DefaultAction::Deny,
        selector: LabelSelector::default(),
        cluster_dns: true,
        own_node: false,
        rules: Vec::new(),
    }
}

/// Keeps the rules and lists that are used, renumbers and sorts them.
fn canonical(
    names: Names,
    default_deny: Option<u32>,
    audit_default_deny: Option<u32>,
    folded: Result<Folded, TooLarge>,
) -> PolicySet {
    let (folded, too_large) = match folded {
        Ok(folded) => (folded, false),
        Err(TooLarge) => (Folded { prefixes: Vec::new(), lists: Vec::new() }, true),
    };
    let Folded { mut prefixes, lists } = folded;
    let mut used_lists: Vec<u32> = prefixes.iter().map(|(_, _, list)| *list).collect();
    used_lists.sort_unstable();
    used_lists.dedup();

    let mut numbers = vec![NO_RULE; names.0.len() + 1];
    let in_lists =
        used_lists.iter().flat_map(|list| lists[*list as usize].iter().flat_map(|entry| entry.rules));
    for number in in_lists.chain(default_deny).chain(audit_default_deny).filter(|number| *number != NO_RULE) {
        numbers[number as usize] = 1;
    }
    let mut rules = Vec::new();
    for (name, number) in names.0.into_iter().zip(&mut numbers[1..]).filter(|(_, number)| **number != NO_RULE)
    {
        rules.push(name);
        *number = u32::try_from(rules.len()).expect("a subset of numbered rules");
    }

    let renumbered =
        |entry: &RuleEntry| RuleEntry { rules: entry.rules.map(|rule| numbers[rule as usize]), ..*entry };
    let mut sorted: Vec<(Vec<RuleEntry>, u32)> = used_lists
        .iter()
        .map(|list| (lists[*list as usize].iter().map(renumbered).collect(), *list))
        .collect();
    sorted.sort_unstable_by(|(left, _), (right, _)| left.iter().map(order).cmp(right.iter().map(order)));
    let mut places = vec![0; lists.len()];
    for (place, (_, list)) in (0..).zip(&sorted) {
        places[*list as usize] = place;
    }

    prefixes.sort_unstable_by_key(|(address, length, _)| (*address, *length));
    // An address that is in neither map costs a failed hash lookup before the walk down the trie. That pays where most entries are
    // single addresses; where few are (those of the cluster's DNS, say), the trie holds them too and one lookup does.
    let hosts = prefixes.iter().filter(|(_, length, _)| *length == 128).count();
    let hashed = hosts * 2 >= prefixes.len();
    // Both stay as long as the set is in force, so they take no more room than they need.
    let single = if hashed { hosts } else { 0 };
    let (mut exact, mut wide) = (Vec::with_capacity(single), Vec::with_capacity(prefixes.len() - single));
    for (address, length, list) in prefixes {
        let (octets, list) = (address.to_be_bytes(), places[list as usize]);
        if length == 128 && hashed {
            exact.push((octets, list));
        } else {
            wide.push((octets, length, list));
        }
    }
    PolicySet {
        rules,
        default_deny: default_deny.map(|number| numbers[number as usize]),
        audit_default_deny: audit_default_deny.map(|number| numbers[number as usize]),
        exact,
        prefixes: wide,
        lists: sorted.into_iter().map(|(list, _)| list).collect(),
        too_large,
    }
}

fn order(entry: &RuleEntry) -> (u32, u32, [u32; 4], [u64; 4]) {
    (entry.low, entry.high, entry.rules, entry.deadlines)
}

#[cfg(test)]
mod tests;
