//! The state of a cluster, trimmed to what decides about egress.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::model::{Policy, PolicyId, Protocol};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

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

impl fmt::Display for NsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Everything known about the cluster. Ordered maps, so that every walk over it comes out the same.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Labels of each namespace. A namespace that is named but absent here has no labels but `kubernetes.io/metadata.name`.
    pub namespaces: BTreeMap<String, Labels>,
    /// Pods of all nodes.
    pub pods: BTreeMap<NsName, Pod>,
    /// Services.
    pub services: BTreeMap<NsName, Service>,
    /// EndpointSlices, by their own name.
    pub slices: BTreeMap<NsName, EndpointSlice>,
    /// Nodes.
    pub nodes: BTreeMap<String, Node>,
    /// The policies in force, each in its last good version.
    pub policies: BTreeMap<PolicyId, Arc<Policy>>,
    /// Managed ConfigMaps that never had a good version.
    pub broken: BTreeSet<NsName>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: String,
    /// Of a static pod, the hash of its manifest: kubelet names its cgroup after that and not after the UID. Otherwise empty.
    pub static_hash: String,
    /// Its labels.
    pub labels: Labels,
    /// The node it is bound to; empty when none.
    pub node: String,
    /// `status.podIPs`, at most one of each family.
    pub ips: Vec<IpAddr>,
    /// Whether it uses the node's network.
    pub host_network: bool,
    /// Whether it has run to its end (phase Succeeded or Failed): its address may belong to another pod by now, so it is
    /// nobody's peer and no endpoint.
    pub finished: bool,
    /// Named ports of its containers.
    pub ports: Vec<NamedPort>,
    /// The controller it belongs to (`kind/name`), or its own name.
    pub workload: String,
}

/// A container port that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
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
