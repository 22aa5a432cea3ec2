//! What compiling has found out about the whole cluster and keeps, and how changes of the cluster change it.
//!
//! A cluster may have very many pods, and one of them changes all the time. So the addresses that a selector chooses are kept,
//! and a changed pod is put in its place among them.

use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops,
    sync::{Arc, OnceLock},
};

use ipnet::IpNet;

use super::{
    fold::host,
    peers::{outermost, within},
    ports::Range,
};
use crate::policy::{
    changes::Changes,
    cluster::{Addresses, Cluster, Labels, NsName, Pod, named_labels},
    model::{LabelSelector, PolicyKind},
};

/// How many addresses of chosen pods are kept, so that many selectors do not fill the memory.
const KEPT: usize = 1 << 20;

/// A bag of addresses: each is in it as many times as it was put in.
#[derive(Clone, Debug, Default)]
pub(super) struct Bag {
    v4: Vec<u32>,
    v6: Vec<u128>,
}

impl Bag {
    fn of(addresses: impl Iterator<Item = Addresses>) -> Self {
        let mut bag = Self::default();
        for addresses in addresses {
            bag.v4.extend(addresses.v4.map(u32::from));
            bag.v6.extend(addresses.v6.map(u128::from));
        }
        bag.v4.sort_unstable();
        bag.v6.sort_unstable();
        bag
    }

    fn insert(&mut self, address: IpAddr) {
        fn into<T: Ord>(bag: &mut Vec<T>, address: T) {
            let place = bag.partition_point(|other| *other < address);
            bag.insert(place, address);
        }
        match address {
            IpAddr::V4(v4) => into(&mut self.v4, v4.into()),
            IpAddr::V6(v6) => into(&mut self.v6, v6.into()),
        }
    }

    fn remove(&mut self, address: IpAddr) {
        fn from<T: Ord>(bag: &mut Vec<T>, address: &T) {
            let place = bag.binary_search(address).expect("what is taken out was put in");
            bag.remove(place);
        }
        match address {
            IpAddr::V4(v4) => from(&mut self.v4, &v4.into()),
            IpAddr::V6(v6) => from(&mut self.v6, &v6.into()),
        }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.binary_search(&v4.into()).is_ok(),
            IpAddr::V6(v6) => self.v6.binary_search(&v6.into()).is_ok(),
        }
    }

    /// Returns each address once, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.chunk_by(u32::eq).map(|same| IpAddr::V4(Ipv4Addr::from(same[0])));
        v4.chain(self.v6.chunk_by(u128::eq).map(|same| IpAddr::V6(Ipv6Addr::from(same[0]))))
    }

    /// Returns how many different addresses there are.
    pub(super) fn distinct(&self) -> usize {
        self.v4.chunk_by(u32::eq).count() + self.v6.chunk_by(u128::eq).count()
    }

    fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
}

/// A ClusterIP port of one address family, with what stands behind it.
#[derive(Debug)]
pub(super) struct Front {
    pub(super) cluster_ips: Vec<IpAddr>,
    pub(super) range: Range,
    /// The family.
    is_v4: bool,
    /// Its place in [`Behind::pairs`]; not empty.
    pairs: ops::Range<u32>,
}

/// All endpoints of one address family that stand behind a front. A cluster has as many as pods, so each is kept small.
#[derive(Debug)]
struct Behind<A> {
    /// Addresses and the numbers of the ports there; those of one front sorted and distinct.
    pairs: Vec<(A, u32)>,
    /// Fronts and their pairs, in the order of the addresses.
    by_address: Vec<(u32, u32)>,
}

impl<A> Default for Behind<A> {
    fn default() -> Self {
        Self { pairs: Vec::new(), by_address: Vec::new() }
    }
}

impl<A: Copy + Ord> Behind<A> {
    fn add(&mut self, pairs: impl Iterator<Item = (A, u32)>) -> ops::Range<u32> {
        let start = number(self.pairs.len());
        self.pairs.extend(pairs);
        start..number(self.pairs.len())
    }

    fn finish<'a>(&mut self, fronts: impl Iterator<Item = (u32, &'a Front)>) {
        self.pairs.shrink_to_fit();
        self.by_address.reserve_exact(self.pairs.len());
        for (front, one) in fronts {
            self.by_address.extend(one.pairs.clone().map(|pair| (front, pair)));
        }
        let pairs = &self.pairs;
        self.by_address.sort_unstable_by_key(|(front, pair)| (pairs[*pair as usize].0, *front, *pair));
    }

    /// Returns fronts and pairs with an address from `first` to `last`.
    fn between(&self, first: A, last: A) -> &[(u32, u32)] {
        let at = |(_, pair): &(u32, u32)| self.pairs[*pair as usize].0;
        let from = self.by_address.partition_point(|endpoint| at(endpoint) < first);
        let count = self.by_address[from..].partition_point(|endpoint| at(endpoint) <= last);
        &self.by_address[from..from + count]
    }
}

/// All ClusterIP ports that have something behind them.
#[derive(Debug, Default)]
pub(super) struct Fronts {
    fronts: Vec<Front>,
    /// Which ports endpoints have: few of very many differ.
    targets: Vec<Range>,
    v4: Behind<u32>,
    /// In octets, which unlike a number can stand anywhere.
    v6: Behind<[u8; 16]>,
}

impl Fronts {
    /// Returns all of them: ClusterIPs of one family, their port, and the endpoints of that family behind it, sorted, distinct, and at
    /// least one.
    pub(super) fn new(all: impl Iterator<Item = (Vec<IpAddr>, Range, Vec<(IpAddr, Range)>)>) -> Self {
        let mut fronts = Self::default();
        let mut numbers: HashMap<Range, u32> = HashMap::new();
        for (cluster_ips, range, pairs) in all {
            let Self { targets, v4, v6, .. } = &mut fronts;
            let mut target = |target: Range| {
                *numbers.entry(target).or_insert_with(|| {
                    targets.push(target);
                    number(targets.len() - 1)
                })
            };
            let is_v4 = pairs[0].0.is_ipv4();
            let pairs = if is_v4 {
                v4.add(pairs.iter().filter_map(|(address, ports)| match address {
                    IpAddr::V4(v4) => Some((u32::from(*v4), target(*ports))),
                    IpAddr::V6(_) => None,
                }))
            } else {
                v6.add(pairs.iter().filter_map(|(address, ports)| match address {
                    IpAddr::V6(v6) => Some((v6.octets(), target(*ports))),
                    IpAddr::V4(_) => None,
                }))
            };
            fronts.fronts.push(Front { cluster_ips, range, is_v4, pairs });
        }
        let Self { fronts: all, v4, v6, .. } = &mut fronts;
        all.shrink_to_fit();
        let of = |is_v4: bool| (0..).zip(all.iter()).filter(move |(_, front)| front.is_v4 == is_v4);
        v4.finish(of(true));
        v6.finish(of(false));
        fronts
    }

    pub(super) fn get(&self, front: u32) -> &Front {
        &self.fronts[front as usize]
    }

    /// Returns the endpoints behind a front.
    pub(super) fn pairs(&self, front: u32) -> impl ExactSizeIterator<Item = (IpAddr, Range)> {
        let Front { is_v4, pairs, .. } = self.get(front);
        (pairs.start as usize..pairs.end as usize)
            .map(|pair| if *is_v4 { self.v4_pair(pair) } else { self.v6_pair(pair) })
    }

    fn v4_pair(&self, pair: usize) -> (IpAddr, Range) {
        let (address, target) = self.v4.pairs[pair];
        (IpAddr::V4(address.into()), self.targets[target as usize])
    }

    fn v6_pair(&self, pair: usize) -> (IpAddr, Range) {
        let (address, target) = self.v6.pairs[pair];
        (IpAddr::V6(address.into()), self.targets[target as usize])
    }

    fn within(&self, net: IpNet) -> &[(u32, u32)] {
        match net {
            IpNet::V4(net) => self.v4.between(net.network().into(), net.broadcast().into()),
            IpNet::V6(net) => self.v6.between(net.network().octets(), net.broadcast().octets()),
        }
    }

    /// Returns how many endpoints there are in a prefix, of its family.
    pub(super) fn count(&self, net: IpNet) -> usize {
        self.within(net).len()
    }

    /// Returns the fronts of the endpoints at one address.
    fn at(&self, address: IpAddr) -> impl Iterator<Item = u32> {
        self.within(host(address)).iter().map(|(front, _)| *front)
    }

    /// Returns the endpoints in a prefix, of its family: front, address, ports.
    pub(super) fn between(&self, net: IpNet) -> impl Iterator<Item = (u32, IpAddr, Range)> {
        let is_v4 = net.addr().is_ipv4();
        self.within(net).iter().map(move |(front, pair)| {
            let (address, range) =
                if is_v4 { self.v4_pair(*pair as usize) } else { self.v6_pair(*pair as usize) };
            (*front, address, range)
        })
    }
}

fn number(place: usize) -> u32 {
    u32::try_from(place).expect("fewer than 2^32 endpoints fit into memory")
}

/// What chooses pods: the selectors and the side they are asked from.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Choice {
    namespaces: Option<LabelSelector>,
    pods: Option<LabelSelector>,
    /// The policy's namespace, where it matters.
    namespace: String,
    /// Whether hostNetwork pods count.
    host_network: bool,
}

impl Choice {
    /// Returns what a peer of a policy of that namespace and kind chooses.
    pub(super) fn new(
        namespaces: &Option<LabelSelector>,
        pods: &Option<LabelSelector>,
        namespace: &str,
        kind: PolicyKind,
    ) -> Self {
        Self {
            namespaces: namespaces.clone(),
            pods: pods.clone(),
            namespace: if namespaces.is_none() { namespace.to_owned() } else { String::new() },
            host_network: kind != PolicyKind::NetworkPolicy,
        }
    }

    /// Returns whether pods of that namespace may be chosen. `labels` are its own and its name.
    fn takes_from(&self, namespace: &str, labels: &Labels) -> bool {
        match &self.namespaces {
            Some(selector) => selector.matches(labels),
            None => self.namespace == namespace,
        }
    }

    /// Returns whether pods with these labels may be chosen.
    fn takes_labels(&self, labels: &Labels) -> bool {
        self.pods.as_ref().is_none_or(|selector| selector.matches(labels))
    }

    /// Returns whether a pod is chosen whose namespace and labels are right.
    fn takes_state(&self, pod: &Pod) -> bool {
        !pod.finished && (self.host_network || !pod.host_network)
    }
}

/// The pods that were chosen.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    /// Their addresses.
    pub(super) addresses: Bag,
    /// Fronts all of whose endpoints are at these addresses.
    whole: OnceLock<BTreeSet<u32>>,
}

impl Chosen {
    pub(super) fn whole(&self, fronts: &Fronts) -> &BTreeSet<u32> {
        self.whole.get_or_init(|| {
            let mut here: BTreeMap<u32, usize> = BTreeMap::new();
            for address in self.addresses.iter() {
                for front in fronts.at(address) {
                    *here.entry(front).or_default() += 1;
                }
            }
            let whole = here.into_iter().filter(|(front, count)| fronts.pairs(*front).len() == *count);
            whole.map(|(front, _)| front).collect()
        })
    }

    /// Puts `after` in the place of `before`.
    fn exchange(&mut self, fronts: Option<&Fronts>, before: Addresses, after: Addresses) {
        before.iter().for_each(|address| self.addresses.remove(address));
        after.iter().for_each(|address| self.addresses.insert(address));
        let Some(fronts) = fronts else {
            self.whole.take();
            return;
        };
        let Some(whole) = self.whole.get_mut() else { return };
        for address in before.iter().chain(after.iter()) {
            for front in fronts.at(address) {
                if fronts.pairs(front).all(|(address, _)| self.addresses.contains(address)) {
                    whole.insert(front);
                } else {
                    whole.remove(&front);
                }
            }
        }
    }
}

/// What is not the world.
#[derive(Debug)]
pub(super) struct World {
    /// What does not come from pods, none inside another.
    base: Vec<IpNet>,
    /// Addresses of pods that are in none of those.
    pods: Bag,
}

impl World {
    pub(super) fn new(base: Vec<IpNet>, cluster: &Cluster) -> Self {
        let mut world = Self { base, pods: Bag::default() };
        let pods = cluster.pods.values().map(|pod| world.outside(Some(pod)));
        world.pods = Bag::of(pods);
        world
    }

    /// Returns the pod's addresses that are not known without it.
    fn outside(&self, pod: Option<&Pod>) -> Addresses {
        let pod = pod.filter(|pod| !pod.finished);
        pod.iter().flat_map(|pod| pod.ips.iter()).filter(|address| !within(&self.base, *address)).collect()
    }

    /// Returns all of it, none inside another.
    pub(super) fn inside(&self) -> Vec<IpNet> {
        if self.pods.len() == 0 {
            return self.base.clone();
        }
        outermost(self.base.iter().copied().chain(self.pods.iter().map(host)))
    }
}

/// What is kept between two calls.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) fronts: OnceCell<Fronts>,
    pub(super) world: OnceCell<World>,
    /// Each choice that sets depend on, with its pods unless those were too many to keep.
    choices: RefCell<HashMap<Arc<Choice>, Option<Arc<Chosen>>>>,
}

/// What is not as it was, of all that a set may depend on.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Services, by name.
    pub(super) services: BTreeSet<NsName>,
    /// Nodes, by name.
    pub(super) nodes: BTreeSet<String>,
    /// What is not the world.
    pub(super) world: bool,
    choices: Vec<Arc<Choice>>,
}

impl Touched {
    pub(super) fn choice(&self, choice: &Arc<Choice>) -> bool {
        self.choices.iter().any(|touched| Arc::ptr_eq(touched, choice))
    }
}

impl Memory {
    /// Returns the one place of a choice.
    pub(super) fn choice(&self, choice: Choice) -> Arc<Choice> {
        let mut choices = self.choices.borrow_mut();
        if let Some((known, _)) = choices.get_key_value(&choice) {
            return Arc::clone(known);
        }
        let choice = Arc::new(choice);
        choices.insert(Arc::clone(&choice), None);
        choice
    }

    /// Returns the pods of a choice.
    pub(super) fn chosen(&self, cluster: &Cluster, choice: &Arc<Choice>) -> Arc<Chosen> {
        if let Some(Some(chosen)) = self.choices.borrow().get(choice) {
            return Arc::clone(chosen);
        }
        let mut addresses = Bag::default();
        self.each(cluster, choice, |pod| {
            addresses.v4.extend(pod.ips.v4.map(u32::from));
            addresses.v6.extend(pod.ips.v6.map(u128::from));
        });
        addresses.v4.sort_unstable();
        addresses.v6.sort_unstable();
        let chosen = Arc::new(Chosen { addresses, whole: OnceLock::new() });
        let mut choices = self.choices.borrow_mut();
        let kept: usize = choices.values().flatten().map(|chosen| chosen.addresses.len()).sum();
        if kept + chosen.addresses.len() > KEPT {
            choices.values_mut().for_each(|chosen| *chosen = None);
        }
        choices.insert(Arc::clone(choice), Some(Arc::clone(&chosen)));
        chosen
    }

    /// Calls `look` for each pod of a choice, in the order of their names.
    pub(super) fn each<'a>(&self, cluster: &'a Cluster, choice: &Choice, mut look: impl FnMut(&'a Pod)) {
        // Pods of one template stand together and share their labels.
        let mut last: Option<(&Labels, bool)> = None;
        let mut takes = |pod: &'a Pod| {
            let right = match last {
                Some((labels, right)) if labels.is_same(&pod.labels) => right,
                _ => choice.takes_labels(&pod.labels),
            };
            last = Some((&pod.labels, right));
            right && choice.takes_state(pod)
        };
        let mut of_namespace = |namespace: &str| {
            cluster
                .pods
                .of_namespace(namespace)
                .map(|(_, pod)| pod)
                .filter(|pod| takes(pod))
                .for_each(&mut look);
        };
        if choice.namespaces.is_none() {
            return of_namespace(&choice.namespace);
        }
        for namespace in cluster.pods.namespaces() {
            if choice.takes_from(namespace, &cluster.namespace_labels(namespace)) {
                of_namespace(namespace);
            }
        }
    }

    /// Forgets choices for which `keep` says no.
    pub(super) fn retain(&mut self, keep: impl Fn(&Arc<Choice>) -> bool) {
        self.choices.get_mut().retain(|choice, _| keep(choice));
    }

    /// Brings everything up to date with `cluster`, to which `changes` have led. Returns what of it has changed.
    pub(super) fn absorb(&mut self, cluster: &Cluster, changes: Changes) -> Touched {
        let mut touched =
            Touched { world: changes.cluster_ips || !changes.nodes.is_empty(), ..Touched::default() };
        if !changes.services.is_empty() {
            self.fronts.take();
            self.choices.get_mut().values_mut().flatten().for_each(|chosen| {
                Arc::make_mut(chosen).whole.take();
            });
        }
        if touched.world {
            self.world.take();
        }
        self.absorb_namespaces(cluster, &changes, &mut touched);
        self.absorb_pods(cluster, &changes, &mut touched);
        touched.services = changes.services;
        touched.nodes = changes.nodes;
        touched
    }

    /// Forgets the pods of each choice that now takes from a namespace from which it did not, or no longer does.
    fn absorb_namespaces(&mut self, cluster: &Cluster, changes: &Changes, touched: &mut Touched) {
        for (name, before) in &changes.namespaces {
            let has_pods = cluster.pods.of_namespace(name).next().is_some();
            if !has_pods && !changes.pods.keys().any(|pod| pod.namespace == *name) {
                continue;
            }
            let (before, after) = (named_labels(before.as_ref(), name), cluster.namespace_labels(name));
            for (choice, chosen) in self.choices.get_mut() {
                if choice.takes_from(name, &before) != choice.takes_from(name, &after) {
                    *chosen = None;
                    if !touched.choice(choice) {
                        touched.choices.push(Arc::clone(choice));
                    }
                }
            }
        }
    }

    fn absorb_pods(&mut self, cluster: &Cluster, changes: &Changes, touched: &mut Touched) {
        let Self { fronts, world, choices } = self;
        for (id, before) in &changes.pods {
            let (before, after) = (before.as_ref(), cluster.pods.get(id));
            if let Some(world) = world.get_mut() {
                let (out, into) = (world.outside(before), world.outside(after));
                if out != into {
                    out.iter().for_each(|address| world.pods.remove(address));
                    into.iter().for_each(|address| world.pods.insert(address));
                    touched.world = true;
                }
            }
            let labels = cluster.namespace_labels(&id.namespace);
            for (choice, chosen) in choices.get_mut() {
                if !choice.takes_from(&id.namespace, &labels) {
                    continue;
                }
                let taken = |pod: Option<&Pod>| {
                    pod.filter(|pod| choice.takes_state(pod) && choice.takes_labels(&pod.labels))
                        .map(|pod| (pod.ips, pod.ports.clone()))
                };
                let (before, after) = (taken(before), taken(after));
                if before == after {
                    continue;
                }
                if let Some(chosen) = chosen {
                    let ips =
                        |taken: Option<(Addresses, _)>| taken.map_or_else(Addresses::default, |(ips, _)| ips);
                    Arc::make_mut(chosen).exchange(fronts.get(), ips(before), ips(after));
                }
                if !touched.choice(choice) {
                    touched.choices.push(Arc::clone(choice));
                }
            }
        }
    }
}
