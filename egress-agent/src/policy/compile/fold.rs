//! From grants, which may overlap in every way, to entries of which a lookup needs only one.
//!
//! A longest-prefix lookup returns a single entry, so each prefix carries what all prefixes around it say. Prefixes of one
//! family are walked from the outside in, with the prefixes around the current one on a stack:
//!
//! 1. the areas that hold at a prefix are those that hold around it, plus those that begin there, minus those whose exception
//!    begins there; grants for the same addresses share one area;
//! 2. a sweep over their port ranges picks the four candidates of each range;
//! 3. the prefix is left out if the entry around it says the same.
//!
//! Whoever writes policies must not be able to keep the agent busy or take the node's memory, so the work is counted, and a set
//! that needs more than [`MAX_WORK`], [`MAX_MARKS`] or [`MAX_ENTRIES`] is given up. The count depends on the set alone, so
//! every run comes to the same end.
//!
//! IPv4 lives inside `::ffff:0:0/96` of the same 128-bit space. The families are walked apart, and an IPv4 lookup does not see
//! the IPv6 prefixes around that room.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, hash_map},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use egress_common::policy::{NO_RULE, RuleEntry, candidate};
use ipnet::IpNet;

use super::{
    memory::Choice,
    ports::{EVERYTHING, Range},
};

/// How many rule entries one set may need before compiling it is given up. Far above what the maps hold; it keeps a policy
/// written to explode (thousands of ports for every address, times thousands of prefixes) from taking the node's memory.
pub(super) const MAX_ENTRIES: usize = 1 << 20;

/// How many steps compiling one set may take, a step being about a nanosecond of an optimized build.
pub(super) const MAX_WORK: u64 = 1_000_000_000;

/// How many prefixes the areas of one set may begin and end at.
pub(super) const MAX_MARKS: usize = 1 << 21;

/// Steps for one range in a sweep: it is sorted three times, passes a tree and may become two entries.
const RANGE_STEPS: u64 = 800;
/// Steps for one area in the set of a prefix: it is copied, compared and hashed.
const AREA_STEPS: u64 = 10;
/// Steps for one grant in the set of a list.
const GRANT_STEPS: u64 = 20;
/// Steps for one prefix of an area, looked for among others.
const NET_STEPS: u64 = 30;

/// The number of the list that says nothing, in every [`Folded`].
const EMPTY: u32 = 0;

/// What one rule says about some addresses: these ports, this kind of candidate, until then.
#[derive(Clone, Copy, Debug)]
struct Grant {
    /// Number of its rule, from 1 in policy order.
    rule: u32,
    /// Index of its kind, see [`egress_common::policy::candidate`].
    kind: usize,
    /// Second from which on it is over.
    deadline: u64,
    /// Index of its ranges in [`Grants::ports`].
    ports: u32,
    /// Whether it speaks for every protocol and port.
    every_port: bool,
}

/// A prefix at which an area begins, or stops. Of IPv4 there may be very many, so they are kept as short as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Mark<A> {
    address: A,
    length: u8,
    area: u32,
    except: bool,
}

/// Addresses of one family.
trait Family: Copy + Ord {
    /// Returns the place of a prefix in the 128-bit space.
    fn place(self, length: u8) -> (u128, u8);
}

impl Family for u32 {
    fn place(self, length: u8) -> (u128, u8) {
        (V4_ROOM | u128::from(self), V4_LENGTH + length)
    }
}

impl Family for u128 {
    fn place(self, length: u8) -> (u128, u8) {
        (self, length)
    }
}

/// The start of IPv4's room.
const V4_ROOM: u128 = 0xffff << 32;
/// The prefix length of IPv4's room.
const V4_LENGTH: u8 = 96;

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

/// Names the addresses of an area, so that grants for the same ones share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// Every address.
    Everywhere,
    /// Every address outside the cluster.
    World,
    /// The addresses of the pods that a selector chooses.
    Chosen(Arc<Choice>),
    /// Prefixes and exceptions.
    Nets(Vec<IpNet>, Vec<IpNet>),
}

/// All grants of the policies that select a pod, in policy order.
#[derive(Debug, Default)]
pub(super) struct Grants {
    grants: Vec<Grant>,
    /// For each area, its grants in policy order.
    areas: Vec<Vec<u32>>,
    area_of: HashMap<Key, u32>,
    ports: Vec<Rc<[Range]>>,
    interned: HashMap<Rc<[Range]>, u32>,
    marks: Marks,
    work: u64,
    too_large: bool,
}

/// Which rule a grant comes from and what kind of candidate it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    /// Number of the rule, from 1 in policy order.
    pub(super) rule: u32,
    /// Index of its kind, see [`egress_common::policy::candidate`].
    pub(super) kind: usize,
    /// Second from which on it is over.
    pub(super) deadline: u64,
}

impl Origin {
    /// Whether it stems from a denied destination.
    pub(super) const fn denies(self) -> bool {
        matches!(self.kind, candidate::DENY | candidate::AUDIT_DENY)
    }
}

impl Grants {
    /// Counts work. Returns whether there may be more.
    pub(super) fn spend(&mut self, steps: u64) -> bool {
        self.work = self.work.saturating_add(steps);
        self.too_large |= self.work > MAX_WORK;
        !self.too_large
    }

    /// Returns whether the set has been given up, so that nothing needs to be added to it any more.
    pub(super) fn given_up(&self) -> bool {
        self.too_large
    }

    /// Adds a grant that holds at each of `nets` and at none of `except`. Must be called in policy order. `ports` are
    /// normalized; without any, the grant matches nothing and is left out.
    pub(super) fn add(&mut self, origin: Origin, ports: &[Range], nets: Vec<IpNet>, except: Vec<IpNet>) {
        let count = nets.len() + except.len();
        if !self.spend(NET_STEPS * count as u64) {
            return;
        }
        self.add_at(origin, ports, Key::Nets(nets, except), |key, marks| match key {
            Key::Nets(nets, except) => {
                marks.begin(nets.iter().copied());
                marks.except(except.iter().copied());
            }
            Key::Everywhere | Key::World | Key::Chosen(_) => unreachable!("the key is the one given"),
        });
    }

    /// Adds a grant for the area that `key` names. `area` says what it is, if no grant before was for the same: its prefixes
    /// and its exceptions.
    pub(super) fn add_at(
        &mut self,
        origin: Origin,
        ports: &[Range],
        key: Key,
        area: impl FnOnce(&Key, &mut Area<'_>),
    ) {
        if ports.is_empty() || !self.spend(GRANT_STEPS + ports.len() as u64) {
            return;
        }
        let next = u32::try_from(self.areas.len()).expect("fewer areas than grants");
        let number = match self.area_of.entry(key) {
            hash_map::Entry::Occupied(known) => *known.get(),
            hash_map::Entry::Vacant(vacant) => {
                let marks = &mut self.marks;
                area(vacant.key(), &mut Area { number: next, marks });
                self.areas.push(Vec::new());
                *vacant.insert(next)
            }
        };
        if self.marks.too_many {
            self.too_large = true;
            return;
        }
        let grant = u32::try_from(self.grants.len()).expect("fewer than 2^32 grants fit into memory");
        self.areas[number as usize].push(grant);
        let every_port = ports == [EVERYTHING];
        let ports = self.intern(ports);
        let Origin { rule, kind, deadline } = origin;
        self.grants.push(Grant { rule, kind, deadline, ports, every_port });
    }

    fn intern(&mut self, ports: &[Range]) -> u32 {
        if let Some(index) = self.interned.get(ports) {
            return *index;
        }
        let index = u32::try_from(self.ports.len()).expect("fewer port lists than grants");
        let ports: Rc<[Range]> = ports.into();
        self.ports.push(Rc::clone(&ports));
        self.interned.insert(ports, index);
        index
    }
}

/// The prefixes at which areas begin and stop.
#[derive(Debug, Default)]
struct Marks {
    v4: Vec<Mark<u32>>,
    v6: Vec<Mark<u128>>,
    /// There were more than [`MAX_MARKS`]; those after that are not here.
    too_many: bool,
}

impl Marks {
    fn add(&mut self, net: IpNet, area: u32, except: bool) {
        if self.v4.len() + self.v6.len() == MAX_MARKS {
            self.too_many = true;
            return;
        }
        match net {
            IpNet::V4(v4) => {
                self.v4.push(Mark { address: v4.network().into(), length: v4.prefix_len(), area, except });
            }
            IpNet::V6(v6) => {
                let (address, length) = (u128::from(v6.network()), v6.prefix_len());
                // No packet has an IPv6 address of IPv4's room, so such a prefix matches nothing.
                if length < V4_LENGTH || address & mask(V4_LENGTH) != V4_ROOM {
                    self.v6.push(Mark { address, length, area, except });
                }
            }
        }
    }
}

/// Takes the prefixes of one area.
pub(super) struct Area<'a> {
    number: u32,
    marks: &'a mut Marks,
}

impl Area<'_> {
    /// Adds prefixes.
    pub(super) fn begin(&mut self, nets: impl IntoIterator<Item = IpNet>) {
        nets.into_iter().for_each(|net| self.marks.add(net, self.number, false));
    }

    /// Adds exceptions.
    pub(super) fn except(&mut self, nets: impl IntoIterator<Item = IpNet>) {
        nets.into_iter().for_each(|net| self.marks.add(net, self.number, true));
    }
}

/// Host prefix of an address.
pub(super) fn host(address: IpAddr) -> IpNet {
    IpNet::from(address.to_canonical())
}

/// Entries and lists, in the order the walk found them. List 0 is the empty one.
#[derive(Debug)]
pub(super) struct Folded {
    /// Prefix (128-bit space) and index of its list.
    pub(super) prefixes: Vec<(u128, u8, u32)>,
    /// Distinct lists; not all of them are used.
    pub(super) lists: Vec<Rc<[RuleEntry]>>,
}

/// The set needs more rule entries than any map holds, or more work than a set is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

/// Turns grants into entries.
///
/// # Errors
/// When more than [`MAX_ENTRIES`] rule entries are needed, or more work than [`MAX_WORK`].
pub(super) fn fold(mut grants: Grants) -> Result<Folded, TooLarge> {
    if grants.too_large {
        return Err(TooLarge);
    }
    let Marks { mut v4, mut v6, .. } = std::mem::take(&mut grants.marks);
    let mut walk = Walk {
        grants: &grants,
        covered: vec![0; grants.areas.len()],
        excluded: vec![0; grants.areas.len()],
        work: grants.work,
        by_areas: HashMap::from([(Vec::new(), EMPTY)]),
        by_content: HashMap::from([(Rc::from([]), EMPTY)]),
        lists: vec![Rc::from([])],
        entries: 0,
        prefixes: Vec::new(),
    };
    walk.family(&mut v6, (0, 0), EMPTY)?;
    walk.family(&mut v4, (V4_ROOM, V4_LENGTH), EMPTY)?;
    let Walk { prefixes, lists, .. } = walk;
    Ok(Folded { prefixes, lists })
}

/// One prefix around the current one.
struct Frame {
    /// Its last address.
    last: u128,
    /// Its marks.
    marks: std::ops::Range<usize>,
    /// The areas it lies in, ascending.
    set: Rc<Vec<u32>>,
    /// The list a lookup finds in it.
    list: u32,
}

struct Walk<'a> {
    grants: &'a Grants,
    /// For each area, how many prefixes on the stack it begins at.
    covered: Vec<u32>,
    /// For each area, how many prefixes on the stack are exceptions of it.
    excluded: Vec<u32>,
    work: u64,
    by_areas: HashMap<Vec<u32>, u32>,
    by_content: HashMap<Rc<[RuleEntry]>, u32>,
    lists: Vec<Rc<[RuleEntry]>>,
    entries: usize,
    prefixes: Vec<(u128, u8, u32)>,
}

impl Walk<'_> {
    /// Emits the entries of one family. `inherited` is what a lookup finds around the family's `root`.
    fn family<A: Family>(
        &mut self,
        marks: &mut Vec<Mark<A>>,
        root: (u128, u8),
        inherited: u32,
    ) -> Result<(), TooLarge> {
        marks.sort_unstable();
        marks.dedup();
        let mut stack: Vec<Frame> = Vec::new();
        let mut next = 0;
        loop {
            // The first round is the root's, whether it has marks or not.
            let (address, length) = match (stack.is_empty(), marks.get(next)) {
                (true, _) => root,
                (false, Some(mark)) => mark.address.place(mark.length),
                (false, None) => break,
            };
            let same = |mark: &&Mark<A>| mark.address.place(mark.length) == (address, length);
            let count = marks[next..].iter().take_while(same).count();
            let here = next..next + count;
            next += count;
            while stack.last().is_some_and(|frame| frame.last < address) {
                let frame = stack.pop().expect("the loop's condition saw it");
                self.leave(&marks[frame.marks]);
            }
            let last = address | !mask(length);
            let (set, list) = match stack.last() {
                Some(parent) => self.enter(&marks[here.clone()], &parent.set, parent.list)?,
                None => self.enter(&marks[here.clone()], &Rc::default(), EMPTY)?,
            };
            if list != stack.last().map_or(inherited, |parent| parent.list) {
                self.prefixes.push((address, length, list));
            }
            stack.push(Frame { last, marks: here, set, list });
        }
        for frame in stack {
            self.leave(&marks[frame.marks]);
        }
        Ok(())
    }

    fn leave<A>(&mut self, marks: &[Mark<A>]) {
        for mark in marks {
            let counts = if mark.except { &mut self.excluded } else { &mut self.covered };
            counts[mark.area as usize] -= 1;
        }
    }

    /// Returns what holds in a prefix with these marks inside one where `around` holds.
    fn enter<A>(
        &mut self,
        marks: &[Mark<A>],
        around: &Rc<Vec<u32>>,
        around_list: u32,
    ) -> Result<(Rc<Vec<u32>>, u32), TooLarge> {
        let mut removes = false;
        for mark in marks.iter().filter(|mark| mark.except) {
            self.excluded[mark.area as usize] += 1;
            removes |= self.excluded[mark.area as usize] == 1;
        }
        let mut new = Vec::new();
        for mark in marks.iter().filter(|mark| !mark.except) {
            let area = mark.area as usize;
            self.covered[area] += 1;
            if self.covered[area] == 1 && self.excluded[area] == 0 {
                new.push(mark.area);
            }
        }
        if new.is_empty() && !removes {
            return Ok((Rc::clone(around), around_list));
        }
        let mut set = merged(around, &new);
        self.spend(AREA_STEPS * set.len() as u64)?;
        if removes {
            set.retain(|area| self.excluded[*area as usize] == 0);
        }
        let list = self.list(&set)?;
        Ok((Rc::new(set), list))
    }

    fn spend(&mut self, steps: u64) -> Result<(), TooLarge> {
        self.work = self.work.saturating_add(steps);
        if self.work > MAX_WORK { Err(TooLarge) } else { Ok(()) }
    }

    /// Drops each grant that can be no candidate, because one of its kind that speaks for every port lives longer, or as long
    /// and comes first.
    fn prune(&self, set: &mut Vec<u32>) {
        let rank = |index: u32| (self.grants.grants[index as usize].deadline, Reverse(index));
        let mut best: [Option<u32>; 4] = [None; 4];
        for &index in &*set {
            let grant = &self.grants.grants[index as usize];
            if grant.every_port && best[grant.kind].is_none_or(|best| rank(best) < rank(index)) {
                best[grant.kind] = Some(index);
            }
        }
        set.retain(|&index| {
            best[self.grants.grants[index as usize].kind].is_none_or(|best| rank(index) >= rank(best))
        });
    }

    /// Returns the number of the list for a set of areas.
    fn list(&mut self, areas: &[u32]) -> Result<u32, TooLarge> {
        if let Some(list) = self.by_areas.get(areas) {
            return Ok(*list);
        }
        let grants: usize = areas.iter().map(|area| self.grants.areas[*area as usize].len()).sum();
        self.spend(GRANT_STEPS * grants as u64)?;
        let mut set: Vec<u32> =
            areas.iter().flat_map(|area| &self.grants.areas[*area as usize]).copied().collect();
        self.prune(&mut set);
        let ranges_of =
            |index: &u32| self.grants.ports[self.grants.grants[*index as usize].ports as usize].len();
        let ranges: usize = set.iter().map(ranges_of).sum();
        self.spend(RANGE_STEPS * ranges as u64)?;
        let content: Rc<[RuleEntry]> = self.sweep(&set).into();
        let list = match self.by_content.get(&content) {
            Some(list) => *list,
            None => {
                self.entries += content.len();
                if self.entries > MAX_ENTRIES {
                    return Err(TooLarge);
                }
                let list = u32::try_from(self.lists.len()).expect("no more lists than entries, and one");
                self.lists.push(Rc::clone(&content));
                self.by_content.insert(content, list);
                list
            }
        };
        self.by_areas.insert(areas.to_vec(), list);
        Ok(list)
    }

    /// Returns the list of entries for a set of grants: sorted, without overlap, neighbours that say the same joined.
    fn sweep(&self, set: &[u32]) -> Vec<RuleEntry> {
        let ranges_of = |index: u32| &self.grants.ports[self.grants.grants[index as usize].ports as usize];
        let mut starts: Vec<(u32, u32)> = Vec::new();
        let mut ends: Vec<(u32, u32)> = Vec::new();
        let mut points: Vec<u32> = Vec::new();
        for &index in set {
            for &(low, high) in ranges_of(index).iter() {
                starts.push((low, index));
                ends.push((high + 1, index));
                points.extend([low, high + 1]);
            }
        }
        starts.sort_unstable();
        ends.sort_unstable();
        points.sort_unstable();
        points.dedup();
        let (mut starts, mut ends) = (starts.into_iter().peekable(), ends.into_iter().peekable());
        // For each kind the grants that hold at the current point, the candidate first.
        let mut holding: [BTreeSet<(Reverse<u64>, u32)>; 4] = Default::default();
        let mut entries: Vec<RuleEntry> = Vec::new();
        for pair in points.windows(2) {
            let (low, high) = (pair[0], pair[1] - 1);
            while let Some((_, index)) = ends.next_if(|(point, _)| *point == low) {
                let grant = &self.grants.grants[index as usize];
                holding[grant.kind].remove(&(Reverse(grant.deadline), index));
            }
            while let Some((_, index)) = starts.next_if(|(point, _)| *point == low) {
                let grant = &self.grants.grants[index as usize];
                holding[grant.kind].insert((Reverse(grant.deadline), index));
            }
            let mut entry = RuleEntry { low, high, rules: [NO_RULE; 4], deadlines: [0; 4] };
            for (kind, grants) in holding.iter().enumerate() {
                if let Some((Reverse(deadline), index)) = grants.first() {
                    entry.rules[kind] = self.grants.grants[*index as usize].rule;
                    entry.deadlines[kind] = *deadline;
                }
            }
            if entry.rules == [NO_RULE; 4] {
                continue;
            }
            match entries.last_mut() {
                Some(before)
                    if before.high + 1 == low
                        && (before.rules, before.deadlines) == (entry.rules, entry.deadlines) =>
                {
                    before.high = high;
                }
                _ => entries.push(entry),
            }
        }
        entries
    }
}

/// Joins two sorted lists without common members.
fn merged(left: &[u32], right: &[u32]) -> Vec<u32> {
    let mut all = Vec::with_capacity(left.len() + right.len());
    all.extend_from_slice(left);
    all.extend_from_slice(right);
    // Two sorted runs: the sort finds and joins them in linear time.
    all.sort();
    all
}
