//! Pods by name, without much around them: there are as many as the cluster has.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Index,
    sync::Arc,
};

use super::{NsName, Pod};

/// How many pods stand in one piece of a namespace.
const PIECE: usize = 256;

/// The name of a pod, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodName<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The name in it.
    pub name: &'a str,
}

impl fmt::Display for PodName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl From<PodName<'_>> for NsName {
    fn from(name: PodName<'_>) -> Self {
        Self::new(name.namespace, name.name)
    }
}

/// Some pods of a namespace, in the order of their names. The names stand one after the other in one text: a name by itself would
/// take half as much again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Piece {
    names: String,
    /// Where each name ends.
    ends: Vec<u32>,
    pods: Vec<Pod>,
}

impl Piece {
    fn len(&self) -> usize {
        self.pods.len()
    }

    fn start(&self, place: usize) -> usize {
        if place == 0 { 0 } else { self.ends[place - 1] as usize }
    }

    fn name(&self, place: usize) -> &str {
        &self.names[self.start(place)..self.ends[place] as usize]
    }

    /// Returns where `name` is, or else where it belongs.
    fn find(&self, name: &str) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.name(middle).cmp(name) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    fn insert(&mut self, place: usize, name: &str, pod: Pod) {
        // By themselves they would double; most namespaces have few pods.
        if self.pods.len() == self.pods.capacity() {
            let more = 4 + self.len() / 8;
            self.pods.reserve_exact(more);
            self.ends.reserve_exact(more);
        }
        if self.names.capacity() - self.names.len() < name.len() {
            self.names.reserve_exact(name.len() * (1 + self.len() / 8));
        }
        let start = self.start(place);
        self.names.insert_str(start, name);
        self.ends.insert(place, end(start + name.len()));
        let length = end(name.len());
        self.ends[place + 1..].iter_mut().for_each(|end| *end += length);
        self.pods.insert(place, pod);
    }

    fn remove(&mut self, place: usize) -> Pod {
        let (start, stop) = (self.start(place), self.ends[place] as usize);
        self.names.replace_range(start..stop, "");
        self.ends.remove(place);
        let length = end(stop - start);
        self.ends[place..].iter_mut().for_each(|end| *end -= length);
        self.pods.remove(place)
    }

    /// Takes away what stands from `place` on, and returns it.
    fn split_off(&mut self, place: usize) -> Self {
        let start = self.start(place);
        let names = self.names.split_off(start);
        let before = end(start);
        let ends = self.ends.split_off(place).into_iter().map(|end| end - before).collect();
        let rest = Self { names, ends, pods: self.pods.split_off(place) };
        self.names.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.pods.shrink_to_fit();
        rest
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &Pod)> + Clone {
        self.pods.iter().enumerate().map(|(place, pod)| (self.name(place), pod))
    }
}

/// Returns a place in the names of a piece.
fn end(place: usize) -> u32 {
    u32::try_from(place).expect("the names of one piece have less than 4 GiB")
}

/// The pods of a namespace, in the order of their names: pieces of at most [`PIECE`], none empty. A clone shares them until either side
/// changes one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Namespace(Vec<Arc<Piece>>);

impl Namespace {
    /// Returns the piece where `name` is or belongs, and whether it is there and where.
    fn find(&self, name: &str) -> (usize, Result<usize, usize>) {
        let after = self.0.partition_point(|piece| piece.name(0) <= name);
        let piece = after.saturating_sub(1);
        (piece, self.0.get(piece).map_or(Err(0), |piece| piece.find(name)))
    }

    fn get(&self, name: &str) -> Option<&Pod> {
        let (piece, place) = self.find(name);
        place.ok().map(|place| &self.0[piece].pods[place])
    }

    fn insert(&mut self, name: &str, pod: Pod) -> Option<Pod> {
        let (mut piece, mut place) = match self.find(name) {
            (piece, Ok(place)) => {
                let piece = Arc::make_mut(&mut self.0[piece]);
                return Some(std::mem::replace(&mut piece.pods[place], pod));
            }
            (piece, Err(place)) => (piece, place),
        };
        if self.0.is_empty() {
            self.0.push(Arc::default());
        }
        if self.0[piece].len() == PIECE {
            // After the last one a new piece begins, so that names in order leave full ones behind.
            let at = if place == PIECE { PIECE } else { PIECE / 2 };
            let rest = Arc::make_mut(&mut self.0[piece]).split_off(at);
            self.0.insert(piece + 1, Arc::new(rest));
            if place >= at {
                (piece, place) = (piece + 1, place - at);
            }
        }
        Arc::make_mut(&mut self.0[piece]).insert(place, name, pod);
        None
    }

    fn remove(&mut self, name: &str) -> Option<Pod> {
        let (piece, Ok(place)) = self.find(name) else { return None };
        let removed = Arc::make_mut(&mut self.0[piece]).remove(place);
        if self.0[piece].len() == 0 {
            self.0.remove(piece);
        }
        Some(removed)
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &Pod)> + Clone {
        self.0.iter().flat_map(|piece| piece.iter())
    }
}

/// All pods, in the order of their namespaces and names.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Pods {
    /// None empty.
    namespaces: BTreeMap<Box<str>, Namespace>,
    /// The pods that have a [`Pod::local`].
    local: BTreeSet<NsName>,
    len: usize,
}

impl Pods {
    /// Returns no pods.
    #[must_use]
    pub const fn new() -> Self {
        Self { namespaces: BTreeMap::new(), local: BTreeSet::new(), len: 0 }
    }

    /// Returns how many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the pod of that name.
    #[must_use]
    pub fn get(&self, id: &NsName) -> Option<&Pod> {
        self.namespaces.get(id.namespace.as_str())?.get(&id.name)
    }

    /// Returns whether there is a pod of that name.
    #[must_use]
    pub fn contains_key(&self, id: &NsName) -> bool {
        self.get(id).is_some()
    }

    /// Puts a pod in the place of the one of that name, which it returns.
    pub fn insert(&mut self, id: NsName, pod: Pod) -> Option<Pod> {
        let local = pod.local.is_some();
        if !self.namespaces.contains_key(id.namespace.as_str()) {
            self.namespaces.insert(id.namespace.as_str().into(), Namespace::default());
        }
        let namespace = self.namespaces.get_mut(id.namespace.as_str()).expect("it was put there");
        let before = namespace.insert(&id.name, pod);
        self.len += usize::from(before.is_none());
        if local {
            self.local.insert(id);
        } else if before.as_ref().is_some_and(|pod| pod.local.is_some()) {
            self.local.remove(&id);
        }
        before
    }

    /// Takes a pod away and returns it.
    pub fn remove(&mut self, id: &NsName) -> Option<Pod> {
        let namespace = self.namespaces.get_mut(id.namespace.as_str())?;
        let removed = namespace.remove(&id.name)?;
        if namespace.0.is_empty() {
            self.namespaces.remove(id.namespace.as_str());
        }
        self.len -= 1;
        if removed.local.is_some() {
            self.local.remove(id);
        }
        Some(removed)
    }

    /// Takes the pods away for which `keep` says no.
    pub fn retain(&mut self, mut keep: impl FnMut(PodName<'_>, &Pod) -> bool) {
        let gone: Vec<NsName> =
            self.iter().filter(|(name, pod)| !keep(*name, pod)).map(|(name, _)| name.into()).collect();
        for id in gone {
            self.remove(&id);
        }
    }

    /// Changes the pod of that name. Returns whether there is one.
    pub fn change(&mut self, id: &NsName, change: impl FnOnce(&mut Pod)) -> bool {
        let Some(mut pod) = self.get(id).cloned() else { return false };
        change(&mut pod);
        self.insert(id.clone(), pod);
        true
    }

    /// Returns names and pods in order.
    pub fn iter(&self) -> impl Iterator<Item = (PodName<'_>, &Pod)> + Clone {
        self.namespaces.iter().flat_map(|(namespace, pods)| {
            pods.iter().map(move |(name, pod)| (PodName { namespace, name }, pod))
        })
    }

    /// Returns the names in order.
    pub fn keys(&self) -> impl Iterator<Item = PodName<'_>> + Clone {
        self.iter().map(|(name, _)| name)
    }

    /// Returns the pods in the order of their names.
    pub fn values(&self) -> impl Iterator<Item = &Pod> + Clone {
        self.iter().map(|(_, pod)| pod)
    }

    /// Returns the namespaces that have pods, in order.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces.keys().map(|namespace| &**namespace)
    }

    /// Returns the pods of one namespace in the order of their names.
    pub fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = (&str, &Pod)> {
        self.namespaces.get(namespace).into_iter().flat_map(Namespace::iter)
    }

    /// Returns whether a namespace has such a pod as [`Pods::local`] returns.
    #[must_use]
    pub fn has_local(&self, namespace: &str) -> bool {
        let first = NsName::new(namespace, "");
        self.local.range(first..).next().is_some_and(|id| id.namespace == namespace)
    }

    /// Returns the pods of which the details are known that only their own node needs, in order.
    pub fn local(&self) -> impl Iterator<Item = (&NsName, &Pod)> {
        self.local.iter().map(|id| (id, self.get(id).expect("removing a pod removes its name here")))
    }
}

impl Index<&NsName> for Pods {
    type Output = Pod;

    fn index(&self, id: &NsName) -> &Pod {
        self.get(id).expect("the caller knows the pod")
    }
}

impl<'a> IntoIterator for &'a Pods {
    type Item = (PodName<'a>, &'a Pod);
    type IntoIter = Box<dyn Iterator<Item = Self::Item> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl Extend<(NsName, Pod)> for Pods {
    fn extend<I: IntoIterator<Item = (NsName, Pod)>>(&mut self, pods: I) {
        for (id, pod) in pods {
            self.insert(id, pod);
        }
    }
}

impl FromIterator<(NsName, Pod)> for Pods {
    fn from_iter<I: IntoIterator<Item = (NsName, Pod)>>(pods: I) -> Self {
        let mut all = Self::new();
        all.extend(pods);
        all
    }
}

impl fmt::Debug for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{super::Local, *};

    fn mk_pod(number: u8) -> Pod {
        let local =
            number.is_multiple_of(3).then(|| Box::new(Local { uid: number.to_string(), ..Local::default() }));
        Pod { host_network: number.is_multiple_of(2), local, ..Pod::default() }
    }

    proptest! {
        #[test]
        fn pods_are_an_ordered_map(steps in vec((0..3_u8, 0..600_u16, any::<u8>(), 0..4_u8), 0..3000)) {
            let mut pods = Pods::new();
            let mut model = BTreeMap::new();
            for (namespace, name, number, what) in steps {
                let id = NsName::new(format!("ns-{namespace}"), format!("{name:03}"));
                if what == 0 {
                    prop_assert_eq!(pods.remove(&id), model.remove(&id));
                } else {
                    let pod = mk_pod(number);
                    prop_assert_eq!(pods.insert(id.clone(), pod.clone()), model.insert(id, pod));
                }
            }
            prop_assert_eq!(pods.len(), model.len());
            prop_assert!(pods.iter().map(|(id, pod)| (NsName::from(id), pod.clone())).eq(model.clone()));
            for namespace in ["ns-0", "ns-2", "ns-9"] {
                let expected = model.iter().filter(|(id, _)| id.namespace == namespace);
                prop_assert!(pods.of_namespace(namespace).eq(expected.map(|(id, pod)| (id.name.as_str(), pod))));
            }
            prop_assert!(pods.local().eq(model.iter().filter(|(_, pod)| pod.local.is_some())));
            prop_assert!(model.iter().all(|(id, pod)| pods.get(id) == Some(pod)));
        }
    }

    #[test]
    fn names_in_order_leave_full_pieces() {
        let pods: Pods =
            (0..1000).map(|number| (NsName::new("ns", format!("{number:04}")), mk_pod(1))).collect();
        let lengths: Vec<usize> = pods.namespaces["ns"].0.iter().map(|piece| piece.len()).collect();
        assert_eq!(lengths, [PIECE, PIECE, PIECE, 1000 - 3 * PIECE]);
    }
}
