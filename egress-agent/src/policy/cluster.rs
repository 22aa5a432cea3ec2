//! The state of a cluster, trimmed to what decides about egress.

mod labels;
mod pods;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Deref,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    model::{Policy, PolicyId, Protocol},
    selector::METADATA_NAME,
};

pub use self::{
    labels::Labels,
    pods::{PodName, Pods},
    table::Table,
};

/// A namespaced name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NsName {
    /// The namespace.
    pub namespace: String,
    /// The name in it.
    pub name: String,
}

impl NsName {
    /// Joins the two.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl From<&Self> for NsName {
    fn from(name: &Self) -> Self {
        name.clone()
    }
}

impl fmt::Display for NsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Everything known about the cluster. Ordered maps, so that every walk over it comes out the same. A clone shares with it, until either
/// changes, what there is much of.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Labels of each namespace. A namespace that is named but absent here has no labels but `kubernetes.io/metadata.name`.
    pub namespaces: BTreeMap<String, Labels>,
    /// Pods of all nodes.
    pub pods: Pods,
    /// Services.
    pub services: Table<NsName, Service>,
    /// EndpointSlices, by their own name.
    pub slices: Table<NsName, EndpointSlice>,
    /// Nodes.
    pub nodes: Table<String, Node>,
    /// The policies in force, each in its last good version.
    pub policies: BTreeMap<PolicyId, Arc<Policy>>,
    /// Managed ConfigMaps that never had a good version.
    pub broken: BTreeSet<NsName>,
}

impl Cluster {
    /// Returns the labels a selector of namespaces is asked about: those the namespace has, and its name, which Kubernetes
    /// gives to each.
    #[must_use]
    pub fn namespace_labels(&self, namespace: &str) -> Labels {
        named_labels(self.namespaces.get(namespace), namespace)
    }
}

/// Returns `labels` with the namespace's name among them.
pub(super) fn named_labels(labels: Option<&Labels>, namespace: &str) -> Labels {
    labels.unwrap_or(&Labels::new()).or_with(METADATA_NAME, namespace)
}

/// A pod. What decides whether it is a peer is kept small, since there are many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its labels.
    pub labels: Labels,
    /// `status.podIPs`.
    pub ips: Addresses,
    /// Whether it uses the node's network.
    pub host_network: bool,
    /// Whether it has run to its end (phase Succeeded or Failed): its address may belong to another pod by now, so it is
    /// nobody's peer and no endpoint.
    pub finished: bool,
    /// Named ports of its containers.
    pub ports: NamedPorts,
    /// What only its own node needs; `None` when it is known to run on another one.
    pub local: Option<Box<Local>>,
}

impl Pod {
    /// Returns its UID; empty when that is not known.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.local.as_ref().map_or("", |local| &local.uid)
    }

    /// Returns the hash of its manifest if it is a static pod, otherwise nothing; see [`Local::static_hash`].
    #[must_use]
    pub fn static_hash(&self) -> &str {
        self.local.as_ref().map_or("", |local| &local.static_hash)
    }

    /// Returns the controller it belongs to (`kind/name`); empty when that is not known.
    #[must_use]
    pub fn workload(&self) -> &str {
        self.local.as_ref().map_or("", |local| &local.workload)
    }

    /// Returns the node it is bound to; empty when none, or when it is known to be another than the agent's.
    #[must_use]
    pub fn node(&self) -> &str {
        self.local.as_ref().map_or("", |local| &local.node)
    }
}

/// What only the pod's own node needs to know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// `metadata.uid`.
    pub uid: String,
    /// Of a static pod, the hash of its manifest: kubelet names its cgroup after that and not after the UID. Otherwise empty.
    pub static_hash: String,
    /// The node it is bound to; empty when none.
    pub node: String,
    /// The controller it belongs to (`kind/name`), or its own name.
    pub workload: String,
}

/// Addresses of a pod, at most one of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Returns them, the IPv4 one first.
    pub fn iter(self) -> impl Iterator<Item = IpAddr> + Clone {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }

    /// Returns whether `address` is one of them.
    #[must_use]
    pub fn contains(self, address: &IpAddr) -> bool {
        self.iter().any(|own| own == *address)
    }

    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl FromIterator<IpAddr> for Addresses {
    /// Takes the first of each family. A v4-mapped address is an IPv4 one.
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut all = Self::default();
        for address in addresses {
            match address.to_canonical() {
                IpAddr::V4(v4) => all.v4 = all.v4.or(Some(v4)),
                IpAddr::V6(v6) => all.v6 = all.v6.or(Some(v6)),
            }
        }
        all
    }
}

/// Named ports of a pod. Cheap to clone; equal ones may share their place in memory.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct NamedPorts(Option<Arc<Vec<NamedPort>>>);

impl NamedPorts {
    /// Returns whether nobody else shares them. Of no ports, `true`.
    #[must_use]
    pub fn is_unshared(&self) -> bool {
        self.0.as_ref().is_none_or(|ports| Arc::strong_count(ports) == 1)
    }
}

impl From<Vec<NamedPort>> for NamedPorts {
    fn from(mut ports: Vec<NamedPort>) -> Self {
        ports.shrink_to_fit();
        Self((!ports.is_empty()).then(|| Arc::new(ports)))
    }
}

impl FromIterator<NamedPort> for NamedPorts {
    fn from_iter<I: IntoIterator<Item = NamedPort>>(ports: I) -> Self {
        ports.into_iter().collect::<Vec<_>>().into()
    }
}

impl Deref for NamedPorts {
    type Target = [NamedPort];

    fn deref(&self) -> &[NamedPort] {
        self.0.as_ref().map_or(&[], |ports| ports.as_slice())
    }
}

impl fmt::Debug for NamedPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A container port that has a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `spec.clusterIPs` without `None`.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// For type ExternalName, the name it stands for.
    pub external_name: Option<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty when the Service has only one port and does not name it.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port clients use.
    pub port: u16,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The Service it belongs to (label `kubernetes.io/service-name`), in its own namespace.
    pub service: String,
    /// The ports behind the Service's, paired by name.
    pub ports: Vec<EndpointPort>,
    /// Addresses that may get traffic: ready, of unknown state, or serving while they terminate.
    pub addresses: Vec<IpAddr>,
}

impl EndpointSlice {
    /// Returns the Service that a slice of this name belongs to.
    #[must_use]
    pub fn of(&self, id: &NsName) -> NsName {
        NsName::new(id.namespace.as_str(), self.service.as_str())
    }
}

/// A port behind a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// Pairs it with the Service's port of this name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The number on the endpoint; `None` means every port.
    pub port: Option<u16>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Internal and external addresses.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
}

/// What a managed ConfigMap that never had a good version does to its namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InvalidPolicy {
    /// Every pod of it is denied by default (cluster DNS still passes).
    #[default]
    Deny,
    /// Nothing.
    Ignore,
}

/// Decisions of the person who runs the agent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether NetworkPolicy egress is enforced too.
    pub enforce_network_policy: bool,
    /// Namespaces whose pods are denied by default while no enforcing policy selects them.
    pub governed_namespaces: BTreeSet<String>,
    /// See [`InvalidPolicy`].
    pub invalid_policy: InvalidPolicy,
    /// The Services that are the cluster's DNS.
    pub cluster_dns: Vec<NsName>,
    /// Further addresses pods ask for names, such as a node-local cache.
    pub cluster_dns_addresses: Vec<IpAddr>,
    /// Prefixes that belong to the cluster, so not to the world: pods, Services, nodes.
    pub cluster_cidrs: Vec<IpNet>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enforce_network_policy: false,
            governed_namespaces: BTreeSet::new(),
            invalid_policy: InvalidPolicy::Deny,
            cluster_dns: vec![NsName::new("kube-system", "kube-dns")],
            cluster_dns_addresses: Vec::new(),
            cluster_cidrs: Vec::new(),
        }
    }
}
