//! The policies as standard NetworkPolicy, for a network plugin that enforces it.
//!
//! A policy becomes one or more objects. What a NetworkPolicy cannot say follows one rule, [`Inexpressible`], and every place where
//! the objects say something else than the kernel layer does is a [`Loss`].
//!
//! 1. Each allowed destination becomes pieces: addresses or selectors, with ports (`pieces.rs`).
//! 2. Objects add up over the pods they select, with no word for a default that allows or for a denial. A policy that denies by default
//!    becomes an object with its pieces. One that allows by default needs none where it stands alone; its pieces matter to the pods that
//!    another policy denies by default, so they go into an object for the pods that both select (`selectors.rs`).
//! 3. Denied destinations of the policy, and of every policy that selects all the object's pods, are carved out of addresses where
//!    that leaves something a NetworkPolicy can say.
//! 4. Ports are folded where VPC CNI would lose some (`limits.rs`), and the rules are spread over objects that the API takes.

mod limits;
mod names;
mod pieces;
mod ports;
mod selectors;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fmt,
    rc::Rc,
    sync::Arc,
};

use ipnet::IpNet;

use self::{
    pieces::{Denied, Directory, Piece, Place},
    ports::EVERYTHING,
};
use super::{
    addresses::Addresses,
    cluster::{Cluster, InvalidPolicy, Labels, NsName, Settings},
    governance::is_active,
    model::{
        self, DefaultAction, Effect, LabelSelector, Mode, Policy, PolicyId, PolicyKind, PortMatch, PortSpec,
        Ports, Protocol, Rule,
    },
};

pub use self::{
    limits::Limits,
    names::{label, object_name},
    ports::{Range, Ranges},
};

/// A NetworkPolicy with egress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Its namespace and name.
    pub id: NsName,
    /// The pods it isolates.
    pub selector: LabelSelector,
    /// What they may reach; without any, nothing.
    pub egress: Vec<EgressRule>,
}

/// What a NetworkPolicy allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressRule {
    /// Where to; without any, everywhere.
    pub to: Vec<Peer>,
    /// On which ports; without any, on all of every protocol.
    pub ports: Vec<PortSpec>,
}

/// Where a NetworkPolicy lets pods go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The addresses of a prefix that are in none of others inside it.
    Block {
        /// The prefix.
        cidr: IpNet,
        /// Those left out.
        except: Vec<IpNet>,
    },
    /// Pods by label; without `namespaces` those of the policy's own. One of the two is there.
    Pods {
        /// Selects namespaces.
        namespaces: Option<LabelSelector>,
        /// Selects pods of them; `None` means all.
        pods: Option<LabelSelector>,
    },
}

/// What to do about what a NetworkPolicy cannot say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Inexpressible {
    /// Say something wider, so that the objects never block what the kernel layer allows.
    #[default]
    Widen,
    /// Leave it out: a destination that cannot be said is not allowed, one that cannot be denied is not denied.
    Omit,
    /// Generate nothing for a policy of which something cannot be said.
    Skip,
}

/// How to generate.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to do about what cannot be said.
    pub inexpressible: Inexpressible,
    /// Whether the ClusterIPs in front of allowed endpoints are allowed too, as a plugin needs that judges addresses as the pod sends
    /// them.
    pub cluster_ips: bool,
    /// The labels each Service selects pods by; those without a selector are absent, their endpoints become single addresses.
    pub selectors: BTreeMap<NsName, Labels>,
    /// How large objects may be.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            inexpressible: Inexpressible::Widen,
            cluster_ips: true,
            selectors: BTreeMap::new(),
            limits: Limits::default(),
        }
    }
}

/// In which direction the objects differ from what the kernel layer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// They allow more.
    Wider,
    /// They allow less.
    Narrower,
}

/// What gets lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LossKind {
    /// An audited policy; its reports are the kernel layer's alone.
    Audit,
    /// ICMP.
    Icmp,
    /// A destination known by domain.
    Domain,
    /// A denied destination of the policy that some object allows.
    Denied,
    /// A denied destination of another policy that an object of this one allows.
    DeniedElsewhere,
    /// The policy was skipped.
    Skipped,
    /// The pod's own node, which every NetworkPolicy allows.
    OwnNode,
    /// Pods with the node's network, which no NetworkPolicy isolates.
    HostNetwork,
    /// A destination whose addresses nobody knows; neither side allows it.
    Unresolved,
    /// `world` with more addresses of the cluster in it than can be left out one by one.
    World,
    /// A Service's selector that selects more than gets its traffic.
    Service,
    /// ClusterIPs, left out on purpose.
    ClusterIp,
    /// More port entries at an address than VPC CNI takes.
    PortEntries,
    /// A default that allows, of pods that cannot be told from those another policy denies by default.
    DefaultAllow,
}

impl LossKind {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Icmp => "icmp",
            Self::Domain => "domain",
            Self::Denied => "denied",
            Self::DeniedElsewhere => "denied-elsewhere",
            Self::Skipped => "skipped",
            Self::OwnNode => "own-node",
            Self::HostNetwork => "host-network",
            Self::Unresolved => "unresolved",
            Self::World => "world",
            Self::Service => "service",
            Self::ClusterIp => "cluster-ip",
            Self::PortEntries => "port-entries",
            Self::DefaultAllow => "default-allow",
        }
    }

    /// Tells whether it is something the policy says and a NetworkPolicy cannot, so that [`Inexpressible`] decides.
    #[must_use]
    pub const fn is_inexpressible(self) -> bool {
        matches!(
            self,
            Self::Icmp | Self::Domain | Self::Denied | Self::World | Self::PortEntries | Self::DefaultAllow
        )
    }
}

/// A place where the objects of a policy say something else than the kernel layer does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What gets lost.
    pub kind: LossKind,
    /// The destination it is about, if it is about one.
    pub destination: Option<String>,
    /// Which way they differ; `None` where they do not, but a reader should know.
    pub direction: Option<Direction>,
    /// At which addresses. Those of [`LossKind::OwnNode`] depend on the pod and are not here.
    pub addresses: Addresses,
    /// On which ports.
    pub ports: Ranges,
    /// The same in words.
    pub text: String,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.destination {
            Some(destination) => write!(f, "{destination}: {} [{}]", self.text, self.kind.as_str()),
            None => write!(f, "{} [{}]", self.text, self.kind.as_str()),
        }
    }
}

/// What a policy becomes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generated {
    /// The objects.
    pub objects: Vec<NetworkPolicy>,
    /// Where they say something else.
    pub losses: Vec<Loss>,
    /// The second (since the epoch, UTC) at which they may change by themselves, if there is one.
    pub next: Option<u64>,
}

/// A policy before limits: what its objects are to say.
#[derive(Debug, Default)]
struct Draft {
    objects: Vec<(LabelSelector, Vec<Piece>)>,
    losses: Vec<Loss>,
    next: Option<u64>,
}

/// Generates, for a cluster at one instant. What policies have in common is looked up once.
pub struct Generator<'a> {
    cluster: &'a Cluster,
    options: &'a Options,
    now: u64,
    directory: Directory<'a>,
    /// The policies in force, by namespace; those that stand for broken ones included.
    policies: BTreeMap<&'a str, Vec<Arc<Policy>>>,
    drafts: RefCell<HashMap<PolicyId, Rc<Draft>>>,
}

/// Returns what the policy `id` becomes at `now` (seconds since the epoch).
#[must_use]
pub fn generate(
    cluster: &Cluster,
    settings: &Settings,
    options: &Options,
    id: &PolicyId,
    now: u64,
) -> Generated {
    Generator::new(cluster, settings, options, now).generate(id)
}

impl<'a> Generator<'a> {
    /// Prepares.
    #[must_use]
    pub fn new(cluster: &'a Cluster, settings: &'a Settings, options: &'a Options, now: u64) -> Self {
        let mut policies: BTreeMap<&str, Vec<Arc<Policy>>> = BTreeMap::new();
        for policy in cluster.policies.values() {
            let counts = match policy.id.kind {
                PolicyKind::ConfigMap => true,
                PolicyKind::NetworkPolicy => settings.enforce_network_policy,
                PolicyKind::Namespace => false,
            };
            if counts {
                policies.entry(&policy.id.id.namespace).or_default().push(Arc::clone(policy));
            }
        }
        if settings.invalid_policy == InvalidPolicy::Deny {
            for id in &cluster.broken {
                policies.entry(&id.namespace).or_default().push(Arc::new(closed(id)));
            }
        }
        let directory = Directory::new(cluster, settings, options);
        Self { cluster, options, now, directory, policies, drafts: RefCell::default() }
    }

    /// Returns the policies that objects are made of: managed ConfigMaps, those that never had a good version included.
    pub fn policies(&self) -> impl Iterator<Item = &PolicyId> {
        let all = self.policies.values().flatten().map(|policy| &policy.id);
        all.filter(|id| id.kind == PolicyKind::ConfigMap)
    }

    /// Returns what a policy becomes: nothing when there is no such policy, or it is itself a NetworkPolicy.
    #[must_use]
    pub fn generate(&self, id: &PolicyId) -> Generated {
        let Some(policy) = self.of(&id.id.namespace).iter().find(|policy| policy.id == *id) else {
            return Generated::default();
        };
        if id.kind != PolicyKind::ConfigMap {
            return Generated::default();
        }
        if policy.mode == Mode::Audit {
            let text = "an audited policy has no object; what it would deny only the kernel layer reports";
            let losses = vec![plain(LossKind::Audit, None, text)];
            return Generated { losses, ..Generated::default() };
        }
        let draft = self.draft(policy);
        let mut losses = draft.losses.clone();
        let mut objects = draft.objects.clone();
        let others: Vec<Rc<Draft>> = self
            .of(&id.id.namespace)
            .iter()
            .filter(|other| other.id != *id && other.mode == Mode::Enforce)
            .filter(|other| selectors::overlap(&policy.selector, &other.selector))
            .map(|other| self.draft(other))
            .collect();
        limits::fold(&mut objects, &others, self.options, &mut losses);
        if self.options.inexpressible == Inexpressible::Skip {
            let lost: Vec<&str> = losses
                .iter()
                .filter(|loss| loss.kind.is_inexpressible())
                .map(|loss| loss.text.as_str())
                .collect();
            if let Some(first) = lost.first() {
                let text = format!("no object is generated, because {first}");
                losses.push(everything(LossKind::Skipped, Direction::Wider, &text));
                let text = "what it allows is blocked where the object of another policy isolates the pod";
                losses.push(everything(LossKind::Skipped, Direction::Narrower, text));
                objects.clear();
            }
        }
        if !objects.is_empty() {
            let node = "every NetworkPolicy allows the pod's own node";
            losses.push(plain(LossKind::OwnNode, Some(Direction::Wider), node));
            let pods = self.cluster.pods.of_namespace(&id.id.namespace);
            let host = pods
                .filter(|(_, pod)| !pod.finished && pod.host_network && policy.selector.matches(&pod.labels));
            let host: Vec<&str> = host.map(|(name, _)| name).collect();
            if !host.is_empty() {
                let text = format!(
                    "no NetworkPolicy isolates pods with the node's network: {}",
                    few(host.iter().copied())
                );
                losses.push(plain(LossKind::HostNetwork, Some(Direction::Wider), &text));
            }
        }
        // What is lost may be lost for several reasons, but each is told once.
        let mut told: Vec<Loss> = Vec::with_capacity(losses.len());
        for loss in losses {
            if !told.contains(&loss) {
                told.push(loss);
            }
        }
        let objects = limits::packed(&id.id, objects, &self.options.limits);
        Generated { objects, losses: told, next: draft.next }
    }

    fn of(&self, namespace: &str) -> &[Arc<Policy>] {
        self.policies.get(namespace).map_or(&[], Vec::as_slice)
    }

    fn draft(&self, policy: &Arc<Policy>) -> Rc<Draft> {
        if let Some(draft) = self.drafts.borrow().get(&policy.id) {
            return Rc::clone(draft);
        }
        let draft = Rc::new(self.fresh(policy));
        self.drafts.borrow_mut().insert(policy.id.clone(), Rc::clone(&draft));
        draft
    }

    fn fresh(&self, policy: &Policy) -> Draft {
        let namespace = policy.id.id.namespace.as_str();
        let mut draft = Draft::default();
        // Those that may select a pod that this one selects.
        let others: Vec<&Arc<Policy>> = self
            .of(namespace)
            .iter()
            .filter(|other| other.id != policy.id && other.mode == Mode::Enforce)
            .filter(|other| selectors::overlap(&policy.selector, &other.selector))
            .collect();
        let all = || others.iter().map(|other| &***other).chain(std::iter::once(policy));
        let ends = all().flat_map(|policy| &policy.rules).filter_map(|rule| rule.expires);
        draft.next = ends.filter(|end| *end > self.now).min();

        let mut pieces = Vec::new();
        for rule in self.active(policy, Effect::Allow) {
            self.directory.allow(namespace, rule, &mut pieces, &mut draft.losses);
        }
        if policy.cluster_dns {
            self.directory.dns(namespace, &mut pieces, &mut draft.losses);
        }
        let mut wanted = match policy.default_action {
            DefaultAction::Deny => vec![(policy.selector.clone(), pieces)],
            DefaultAction::Allow => self.beside(policy, &others, &pieces, &mut draft.losses),
        };
        for (selector, pieces) in &mut wanted {
            for other in all() {
                let everywhere = selectors::implies(selector, &other.selector);
                if everywhere || selectors::overlap(selector, &other.selector) {
                    self.carve(other, policy, everywhere, pieces, &mut draft.losses);
                }
            }
        }
        // Of "everything but", nothing could be taken away: then the pods are as open without it.
        wanted.retain(|(_, pieces)| !matches!(&pieces[..], [piece] if is_everything(piece)));
        if policy.id.kind == PolicyKind::ConfigMap {
            self.standing(policy, &others, &mut draft.losses);
        }
        draft.objects = wanted;
        draft
    }

    /// Returns the rules of one effect that hold now.
    fn active<'p>(&self, policy: &'p Policy, effect: Effect) -> impl Iterator<Item = &'p Rule> {
        let now = self.now;
        policy.rules.iter().filter(move |rule| rule.effect == effect && is_active(rule.expires, now))
    }

    /// Returns the objects of a policy that allows by default: its destinations for the pods that another policy denies by default, and,
    /// if it denies anything, everything else for those that none does.
    fn beside(
        &self,
        policy: &Policy,
        others: &[&Arc<Policy>],
        pieces: &[Piece],
        losses: &mut Vec<Loss>,
    ) -> Vec<(LabelSelector, Vec<Piece>)> {
        // Of one that is skipped there is no object to add to, and an object beside it would block what it allows.
        let skipped = |other: &Arc<Policy>| {
            self.options.inexpressible == Inexpressible::Skip
                && self.draft(other).losses.iter().any(|loss| loss.kind.is_inexpressible())
        };
        let closing: Vec<&Policy> = others
            .iter()
            .filter(|other| other.default_action == DefaultAction::Deny && !skipped(other))
            .map(|other| &***other)
            .collect();
        let mut wanted: Vec<(LabelSelector, Vec<Piece>)> = Vec::new();
        if !pieces.is_empty() {
            let mut both: Vec<LabelSelector> = Vec::new();
            for other in &closing {
                let selector = match selectors::implies(&policy.selector, &other.selector) {
                    true => policy.selector.clone(),
                    false => selectors::both(&policy.selector, &other.selector),
                };
                if !both.contains(&selector) {
                    both.push(selector);
                }
            }
            // One inside another has nothing to add.
            let inside = |at: usize, other: usize| {
                at != other
                    && selectors::implies(&both[at], &both[other])
                    && (other < at || !selectors::implies(&both[other], &both[at]))
            };
            let kept = (0..both.len()).filter(|at| !(0..both.len()).any(|other| inside(*at, other)));
            let kept: Vec<LabelSelector> = kept.map(|at| both[at].clone()).collect();
            wanted.extend(kept.into_iter().map(|selector| (selector, pieces.to_vec())));
        }
        let denies = self.active(policy, Effect::Deny).next().is_some();
        if denies {
            match selectors::without(&policy.selector, closing.iter().map(|other| &other.selector)) {
                Some(alone) => wanted.extend(alone.into_iter().map(|selector| {
                    let piece = Piece {
                        destination: None,
                        place: Place::everywhere(),
                        ports: vec![EVERYTHING],
                        names: Vec::new(),
                    };
                    (selector, vec![piece])
                })),
                None => {
                    let text = "the pods that no policy denies by default cannot be told from the others by labels: they are not isolated";
                    losses.push(everything(LossKind::DefaultAllow, Direction::Wider, text));
                }
            }
        }
        wanted
    }

    /// Takes what `other` denies out of the pieces of an object of `policy`, where it selects all the object's pods and that leaves
    /// something that can be said. What remains allowed is lost.
    fn carve(
        &self,
        other: &Policy,
        policy: &Policy,
        everywhere: bool,
        pieces: &mut Vec<Piece>,
        losses: &mut Vec<Loss>,
    ) {
        let namespace = policy.id.id.namespace.as_str();
        for rule in self.active(other, Effect::Deny) {
            let of = if other.id == policy.id {
                String::new()
            } else {
                format!(" of policy {}", other.id.id.name)
            };
            let mut kept: Vec<Denied> = Vec::new();
            for (addresses, ranges) in self.directory.denied(namespace, rule) {
                let mut left = Vec::with_capacity(pieces.len());
                for piece in std::mem::take(pieces) {
                    let common = common(piece.place.addresses(), &addresses);
                    let no_port = !ports::touch(&piece.ports, &ranges) && piece.names.is_empty();
                    if common.is_empty() || no_port {
                        left.push(piece);
                        continue;
                    }
                    let rest = ports::minus(&piece.ports, &ranges);
                    // A NetworkPolicy of people's own stays as it is.
                    let carved = everywhere
                        && policy.id.kind == PolicyKind::ConfigMap
                        && (rest.is_empty() || ports::items(&rest).is_some());
                    match &piece.place {
                        Place::Blocks { outer, addresses: all } if carved => {
                            let part = |addresses: Addresses, ports: Ranges| Piece {
                                place: Place::Blocks { outer: outer.clone(), addresses },
                                ports,
                                ..piece.clone()
                            };
                            let outside = all.minus(&common);
                            if !outside.is_empty() {
                                left.push(part(outside, piece.ports.clone()));
                            }
                            if !rest.is_empty() {
                                left.push(part(common, rest));
                            }
                        }
                        Place::Blocks { .. } | Place::Pods { .. } => {
                            kept.push((common, ranges.clone()));
                            left.push(piece);
                        }
                    }
                }
                *pieces = left;
            }
            if kept.is_empty() {
                continue;
            }
            let text = match everywhere {
                true => format!(
                    "denied{of}, but allowed by selector or on ports that no NetworkPolicy can list: it stays open"
                ),
                false => format!("denied{of} for some of the pods only: it stays open for them"),
            };
            for (addresses, ports) in kept {
                losses.push(Loss {
                    kind: if other.id == policy.id { LossKind::Denied } else { LossKind::DeniedElsewhere },
                    destination: Some(rule.name.clone()),
                    direction: Some(Direction::Wider),
                    addresses,
                    ports,
                    text: text.clone(),
                });
            }
        }
    }

    /// Appends the losses of denied destinations that no object of this policy's own is about: those of the pod's node, and those that a
    /// NetworkPolicy of people's own may allow.
    fn standing(&self, policy: &Policy, others: &[&Arc<Policy>], losses: &mut Vec<Loss>) {
        let foreign: Vec<&str> = others
            .iter()
            .filter(|other| other.id.kind == PolicyKind::NetworkPolicy)
            .map(|other| other.id.id.name.as_str())
            .collect();
        for rule in self.active(policy, Effect::Deny) {
            let mut lose = |denied: Vec<Denied>, text: String| {
                for (addresses, ports) in denied {
                    losses.push(Loss {
                        kind: LossKind::Denied,
                        destination: Some(rule.name.clone()),
                        direction: Some(Direction::Wider),
                        addresses,
                        ports,
                        text: text.clone(),
                    });
                }
            };
            lose(
                self.directory.denied_node(rule),
                "every NetworkPolicy allows the pod's own node, and the ClusterIPs in front of it may stay open".into(),
            );
            if !foreign.is_empty() {
                let names = few(foreign.iter().copied());
                let denied = self.directory.denied(&policy.id.id.namespace, rule);
                lose(denied, format!("denied, but NetworkPolicies may allow it: {names}"));
            }
        }
    }
}

/// Tells whether a piece is "everything but what is denied", with nothing taken away.
fn is_everything(piece: &Piece) -> bool {
    piece.destination.is_none()
        && piece.ports == [EVERYTHING]
        && matches!(&piece.place, Place::Blocks { addresses, .. } if *addresses == Addresses::all())
}

fn common(one: &Addresses, other: &Addresses) -> Addresses {
    one.minus(&one.minus(other))
}

fn plain(kind: LossKind, direction: Option<Direction>, text: &str) -> Loss {
    let (addresses, ports) = (Addresses::default(), Ranges::new());
    Loss { kind, destination: None, direction, addresses, ports, text: text.to_owned() }
}

fn everything(kind: LossKind, direction: Direction, text: &str) -> Loss {
    let (addresses, ports) = (Addresses::all(), vec![EVERYTHING]);
    Loss { kind, destination: None, direction: Some(direction), addresses, ports, text: text.to_owned() }
}

/// What holds in the namespace of a ConfigMap that never had a good version.
fn closed(id: &NsName) -> Policy {
    Policy {
        id: PolicyId { kind: PolicyKind::ConfigMap, id: id.clone() },
        mode: Mode::Enforce,
        default_action: DefaultAction::Deny,
        selector: LabelSelector::default(),
        cluster_dns: true,
        own_node: false,
        rules: Vec::new(),
    }
}

/// The ports of names.
fn dns_ports() -> Ports {
    let port = |protocol| PortSpec { protocol, port: PortMatch::Range(53, 53) };
    Ports::List(vec![port(Protocol::Udp), port(Protocol::Tcp)])
}

/// Returns the first few of many, with how many more there are.
fn few<'t>(texts: impl Iterator<Item = &'t str>) -> String {
    let all: Vec<&str> = texts.collect();
    match all.len().checked_sub(3) {
        Some(more) if more > 0 => format!("{} and {more} more", all[..3].join(", ")),
        _ => all.join(", "),
    }
}

/// Returns a NetworkPolicy of people's own, as it was read; `None` for any other policy.
#[must_use]
pub fn restated(policy: &Policy) -> Option<NetworkPolicy> {
    if policy.id.kind != PolicyKind::NetworkPolicy {
        return None;
    }
    let egress = policy.rules.iter().filter_map(|rule| {
        let mut to = Vec::new();
        // The API has no other peers, and none at all means everywhere.
        for peer in &rule.peers {
            match peer {
                model::Peer::Cidrs { cidrs, except } => {
                    to.extend(cidrs.iter().map(|cidr| Peer::Block { cidr: *cidr, except: except.clone() }));
                }
                model::Peer::Pods { namespaces, pods } => {
                    to.push(Peer::Pods { namespaces: namespaces.clone(), pods: pods.clone() });
                }
                _ => {}
            }
        }
        let anywhere = rule.peers.contains(&model::Peer::Any);
        if anywhere {
            to.clear();
        }
        let ports = match &rule.ports {
            Ports::All => Vec::new(),
            Ports::List(list) => list.clone(),
        };
        (anywhere || !to.is_empty()).then_some(EgressRule { to, ports })
    });
    Some(NetworkPolicy {
        id: policy.id.id.clone(),
        selector: policy.selector.clone(),
        egress: egress.collect(),
    })
}

#[cfg(test)]
mod tests;
