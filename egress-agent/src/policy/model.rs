//! A policy in our own words, already validated: where it came from no longer matters.

use std::{borrow::Cow, fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::cluster::NsName;

/// The kinds of object a policy can come from. The order is part of policy order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyKind {
    /// A ConfigMap labelled `egress-controller: managed`.
    ConfigMap,
    /// A `networking.k8s.io/v1` NetworkPolicy with egress.
    NetworkPolicy,
    /// The default of a governed namespace; its name is empty.
    Namespace,
}

/// Names a policy. Its order is policy order: of rules that tie, the first in it decides.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyId {
    /// What kind of object it is.
    pub kind: PolicyKind,
    /// Namespace and name of the object.
    pub id: NsName,
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            PolicyKind::ConfigMap => write!(f, "{}", self.id),
            PolicyKind::NetworkPolicy => write!(f, "{} (NetworkPolicy)", self.id),
            PolicyKind::Namespace => write!(f, "{} (governed namespace)", self.id.namespace),
        }
    }
}

/// Whether a policy is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// What it denies is dropped.
    #[default]
    Enforce,
    /// What it alone would deny passes, and is counted and reported.
    Audit,
}

/// What holds where no rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DefaultAction {
    /// It passes.
    Allow,
    /// It is denied.
    #[default]
    Deny,
}

/// One validated policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub id: PolicyId,
    /// Whether it is enforced.
    pub mode: Mode,
    /// What holds where none of its rules matches.
    pub default_action: DefaultAction,
    /// Which pods of its own namespace it selects.
    pub selector: LabelSelector,
    /// Whether selected pods reach the cluster's DNS (port 53, UDP and TCP) without a rule that says so.
    pub cluster_dns: bool,
    /// Whether selected pods reach their own node without a rule that says so; true for NetworkPolicy.
    pub own_node: bool,
    /// Its rules in the order of the text: allowed destinations, then denied ones.
    pub rules: Vec<Rule>,
}

/// One destination of a policy (or one egress rule of a NetworkPolicy).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Unique within the policy. NetworkPolicy rules are named `egress[0]`, `egress[1]`, …
    pub name: String,
    /// Whether it allows or denies.
    pub effect: Effect,
    /// What it is about; it matches where any of them does.
    pub peers: Vec<Peer>,
    /// Which protocols and ports.
    pub ports: Ports,
    /// From this second on (since the epoch, UTC) it matches nothing.
    pub expires: Option<u64>,
    /// Who is answerable for it.
    pub governance: Governance,
}

/// What a matching rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// Lets traffic pass.
    Allow,
    /// Stops it, whatever allows it.
    Deny,
}

/// What a rule permits (or forbids) to talk to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// Every address, IPv4 and IPv6 (a NetworkPolicy rule without `to`).
    Any,
    /// Addresses in one of `cidrs` and in none of `except`.
    Cidrs {
        /// Without host bits.
        cidrs: Vec<IpNet>,
        /// Without host bits. Carves out of this peer only.
        except: Vec<IpNet>,
    },
    /// Pods by label. Without `namespaces`: those of the policy's own namespace.
    Pods {
        /// Selects namespaces by their labels; `None` means the policy's own.
        namespaces: Option<LabelSelector>,
        /// Selects pods by their labels; `None` means all.
        pods: Option<LabelSelector>,
    },
    /// A Service: its ClusterIPs and the addresses behind them.
    Service(NsName),
    /// A part of the cluster by role.
    Entity(Entity),
    /// A destination that is known by name only, with the addresses published for it.
    Cloud(Arc<Cloud>),
    /// A destination whose addresses nobody has looked up yet. Where it is allowed it matches nothing; where it is denied, it
    /// stands for [`Unresolved::at_most`]. It is reported.
    Unresolved(Unresolved),
}

/// A cloud's service with its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cloud {
    /// As the policy says it.
    pub what: Unresolved,
    /// Its addresses: no prefix inside another, IPv4 first, sorted. Empty when there are none for the regions named.
    pub cidrs: Arc<[IpNet]>,
    /// Domain patterns that belong to it, lower case, without a final dot.
    pub domains: Vec<String>,
    /// Ports of the definition; traffic must match the rule's, too. Only a service the platform team defined has them.
    pub ports: Option<Ports>,
}

impl Cloud {
    /// Returns the ports that hold for it in a rule: what both the rule and the definition name; nothing if that is none.
    ///
    /// A port by name is none: names are those of pods and Services.
    #[must_use]
    pub fn ports<'a>(&'a self, rule: &'a Ports) -> Option<Cow<'a, Ports>> {
        match (rule, &self.ports) {
            (_, None | Some(Ports::All)) => Some(Cow::Borrowed(rule)),
            (Ports::All, Some(own)) => Some(Cow::Borrowed(own)),
            (Ports::List(rule), Some(Ports::List(own))) => {
                let both: Vec<PortSpec> =
                    rule.iter().flat_map(|rule| own.iter().filter_map(|own| rule.and(own))).collect();
                (!both.is_empty()).then_some(Cow::Owned(Ports::List(both)))
            }
        }
    }
}

/// Parts of a cluster by role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entity {
    /// The cluster's DNS Services ([`Settings::cluster_dns`](super::cluster::Settings)) and the extra addresses pods are
    /// told to ask.
    ClusterDns,
    /// The Service `default/kubernetes`.
    KubeApiserver,
    /// The node the pod runs on.
    Node,
    /// Every address outside the cluster: not a pod's, a Service's or a node's, not in a node's pod CIDRs nor in
    /// [`Settings::cluster_cidrs`](super::cluster::Settings), not loopback, link-local, multicast or unspecified.
    World,
}

/// A destination that needs data from outside the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Unresolved {
    /// A service of AWS, by the name in its published ranges.
    AwsService {
        /// As written.
        service: String,
        /// Empty means all.
        regions: Vec<String>,
    },
    /// A service of any provider.
    Cloud {
        /// As written.
        provider: String,
        /// As written; empty means all.
        services: Vec<String>,
        /// Empty means all.
        regions: Vec<String>,
    },
    /// Domain patterns, lower case, without a final dot.
    Domains(Vec<String>),
}

impl Unresolved {
    /// Tells whether it is something a cloud publishes addresses for, and not a domain.
    #[must_use]
    pub const fn is_cloud(&self) -> bool {
        matches!(self, Self::AwsService { .. } | Self::Cloud { .. })
    }

    /// Returns what stands for it where it is denied and its addresses are not known: what it may be at most. Providers publish public
    /// addresses only; what a platform team defines may be anything.
    #[must_use]
    pub fn at_most(&self) -> Option<Peer> {
        match self {
            Self::Cloud { provider, .. } if provider.eq_ignore_ascii_case(super::ranges::CUSTOM) => {
                Some(Peer::Any)
            }
            Self::AwsService { .. } | Self::Cloud { .. } => Some(Peer::Entity(Entity::World)),
            Self::Domains(_) => None,
        }
    }
}

/// Which protocols and ports a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ports {
    /// Every protocol and every port.
    All,
    /// Those that one of the items names. Never empty.
    List(Vec<PortSpec>),
}

/// One item of a port list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortSpec {
    /// The protocol.
    pub protocol: Protocol,
    /// The ports; always [`PortMatch::Any`] for ICMP.
    pub port: PortMatch,
}

impl PortSpec {
    /// Returns what both name by number.
    fn and(&self, other: &Self) -> Option<Self> {
        if self.protocol != other.protocol {
            return None;
        }
        let port = match (&self.port, &other.port) {
            (PortMatch::Name(_), _) | (_, PortMatch::Name(_)) => return None,
            (PortMatch::Any, port) | (port, PortMatch::Any) => port.clone(),
            (PortMatch::Range(a, b), PortMatch::Range(c, d)) => {
                let (first, last) = (*a.max(c), *b.min(d));
                if first > last {
                    return None;
                }
                PortMatch::Range(first, last)
            }
        };
        Some(Self { protocol: self.protocol, port })
    }
}

/// Ports of one protocol. Numbers are host order, 1 to 65535.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortMatch {
    /// All of them, 0 included.
    Any,
    /// From the first to the last, both included.
    Range(u16, u16),
    /// The port that the pod's containers, or the Service, call so.
    Name(String),
}

/// A protocol a rule can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP over IPv4, ICMPv6 over IPv6.
    Icmp,
}

impl Protocol {
    /// The number rules use, see [`egress_common::policy::normal_protocol`].
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => egress_common::policy::TCP,
            Self::Udp => egress_common::policy::UDP,
            Self::Sctp => egress_common::policy::SCTP,
            Self::Icmp => egress_common::policy::ICMP,
        }
    }

    /// The word used in manifests.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
        }
    }
}

/// Who asked for a destination, why, and where that is recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Governance {
    /// The team or person answerable.
    pub owner: Option<String>,
    /// Why it is needed.
    pub reason: Option<String>,
    /// What it is limited to, in words.
    pub scope: Option<String>,
    /// `public`, `internal`, `confidential` or `restricted`.
    pub data_classification: Option<String>,
    /// The ticket or decision.
    pub audit_ref: Option<String>,
}

/// A label query with Kubernetes' meaning: every part must hold; an empty one holds for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    /// Key and value that must be present.
    pub match_labels: Vec<(String, String)>,
    /// Further conditions.
    pub match_expressions: Vec<Requirement>,
}

/// One condition on a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What must hold.
    pub operator: Operator,
}

/// What a label must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// Present, with one of the values.
    In(Vec<String>),
    /// Absent, or with none of the values.
    NotIn(Vec<String>),
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
}

/// Names the rule that decided, in people's terms.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleName {
    /// The policy it stands in.
    pub policy: Arc<PolicyId>,
    /// Which part of it.
    pub part: RulePart,
}

/// The parts of a policy that can decide.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RulePart {
    /// A destination, by its name.
    Destination(String),
    /// What `clusterDns` allows without a destination.
    ClusterDns,
    /// A NetworkPolicy's allowance for the pod's own node.
    OwnNode,
    /// Its default action.
    Default,
}

impl RulePart {
    /// The word for it in answers and metrics. Parts that are not destinations stand in parentheses, which no destination's
    /// name may contain.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Destination(name) => name,
            Self::ClusterDns => "(cluster-dns)",
            Self::OwnNode => "(own-node)",
            Self::Default => "(default)",
        }
    }
}

/// Returns whether `net` is an IPv6 prefix inside `::ffff:0:0/96`, which is IPv4's room in the maps.
#[must_use]
pub fn is_v4_mapped(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() && v6.prefix_len() >= 96)
}

/// Returns `address` with IPv4 taken out of its IPv6 mapping, if it is in one.
#[must_use]
pub fn unmapped(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
