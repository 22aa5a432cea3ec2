//! What has changed in a cluster since somebody last looked.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    mem,
};

use super::cluster::{Labels, NsName, Pod};

/// How many changes are listed one by one. With more, looking at the whole cluster again costs less than going through them.
const LISTED: usize = 4096;

/// What may be different in a cluster. Policies are not in it: one that has changed is another `Arc`.
#[derive(Debug, Default)]
pub struct Changes {
    /// Too much to list; what is listed is not all.
    pub everything: bool,
    /// Changed pods, each as it was before; `None` for new ones.
    pub pods: BTreeMap<NsName, Option<Pod>>,
    /// Namespaces whose labels changed, as they were before; `None` for new ones.
    pub namespaces: BTreeMap<String, Option<Labels>>,
    /// Services that changed, or one of whose EndpointSlices did.
    pub services: BTreeSet<NsName>,
    /// Nodes that changed.
    pub nodes: BTreeSet<String>,
    /// Whether ClusterIPs changed.
    pub cluster_ips: bool,
}

impl Changes {
    /// Returns changes that may be anything.
    #[must_use]
    pub fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.everything
            && self.pods.is_empty()
            && self.namespaces.is_empty()
            && self.services.is_empty()
            && self.nodes.is_empty()
            && !self.cluster_ips
    }

    /// Returns the changes so far and begins anew.
    #[must_use]
    pub fn take(&mut self) -> Self {
        mem::take(self)
    }

    /// Notes that a pod changed from `before`.
    pub(super) fn pod(&mut self, id: NsName, before: Option<Pod>) {
        note(&mut self.pods, id, before);
        self.limit();
    }

    /// Notes that a namespace's labels changed from `before`.
    pub(super) fn namespace(&mut self, name: String, before: Option<Labels>) {
        note(&mut self.namespaces, name, before);
        self.limit();
    }

    /// Notes that a Service changed, or what stands behind it.
    pub(super) fn service(&mut self, id: NsName) {
        self.services.insert(id);
        self.limit();
    }

    /// Notes that a node changed.
    pub(super) fn node(&mut self, name: String) {
        self.nodes.insert(name);
        self.limit();
    }

    fn limit(&mut self) {
        let listed = self.pods.len() + self.namespaces.len() + self.services.len() + self.nodes.len();
        if self.everything || listed > LISTED {
            *self = Self::everything();
        }
    }
}

/// What was first is what somebody saw last.
fn note<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, before: V) {
    if let Entry::Vacant(vacant) = map.entry(key) {
        vacant.insert(before);
    }
}
