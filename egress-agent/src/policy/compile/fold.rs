//! From grants, which may overlap in every way, to entries of which a lookup needs only one.
//!
//! A longest-prefix lookup returns a single entry, so each prefix carries what all prefixes around it say. Prefixes of one
//! family are walked from the outside in, with the prefixes around the current one on a stack:
//!
//! 1. the grants that hold at a prefix are those that hold around it, plus those that begin there, minus those whose `except`
//!    begins there;
//! 2. a sweep over their port ranges picks the four candidates of each range;
//! 3. the prefix is left out if the entry around it says the same.
//!
//! IPv4 lives inside `::ffff:0:0/96` of the same 128-bit space. The families are walked apart; an IPv6 prefix around that room
//! would be inherited by IPv4 lookups, so IPv4 then gets an entry for its whole room.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    rc::Rc,
};

use egress_common::policy::{NO_RULE, RuleEntry, candidate};
use ipnet::IpNet;

use super::ports::{EVERYTHING, Range};

/// How many rule entries one set may need before compiling it is given up. Far above what the maps hold; it keeps a policy
/// written to explode (thousands of ports for every address, times thousands of prefixes) from taking the node's memory.
pub(super) const MAX_ENTRIES: usize = 1 << 20;

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
    /// Whether an `except` carves out of it somewhere.
    pierced: bool,
}

/// A prefix at which a grant begins to hold, or stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Mark {
    address: u128,
    length: u8,
    grant: u32,
    except: bool,
}

/// The start of IPv4's room.
const V4_ROOM: u128 = 0xffff << 32;
/// The prefix length of IPv4's room.
const V4_LENGTH: u8 = 96;

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

fn position(net: IpNet) -> (u128, u8) {
    match net {
        IpNet::V4(v4) => (V4_ROOM | u128::from(u32::from(v4.network())), V4_LENGTH + v4.prefix_len()),
        IpNet::V6(v6) => (u128::from(v6.network()), v6.prefix_len()),
    }
}

/// All grants of the policies that select a pod, in policy order.
#[derive(Debug, Default)]
pub(super) struct Grants {
    grants: Vec<Grant>,
    ports: Vec<Vec<Range>>,
    interned: HashMap<Vec<Range>, u32>,
    v4: Vec<Mark>,
    v6: Vec<Mark>,
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
    /// Adds a grant that holds at each of `nets` and at none of `except`. Must be called in policy order. `ports` are
    /// normalized; without any, the grant matches nothing and is left out.
    pub(super) fn add(
        &mut self,
        origin: Origin,
        ports: Vec<Range>,
        nets: impl IntoIterator<Item = IpNet>,
        except: impl IntoIterator<Item = IpNet>,
    ) {
        if ports.is_empty() {
            return;
        }
        let grant = u32::try_from(self.grants.len()).expect("fewer than 2^32 grants fit into memory");
        let every_port = ports == [EVERYTHING];
        let ports = self.intern(ports);
        for net in nets {
            self.mark(net, grant, false);
        }
        let mut pierced = false;
        for net in except {
            self.mark(net, grant, true);
            pierced = true;
        }
        let Origin { rule, kind, deadline } = origin;
        self.grants.push(Grant { rule, kind, deadline, ports, every_port, pierced });
    }

    fn intern(&mut self, ports: Vec<Range>) -> u32 {
        if let Some(index) = self.interned.get(&ports) {
            return *index;
        }
        let index = u32::try_from(self.ports.len()).expect("fewer port lists than grants");
        self.ports.push(ports.clone());
        self.interned.insert(ports, index);
        index
    }

    fn mark(&mut self, net: IpNet, grant: u32, except: bool) {
        let (address, length) = position(net);
        let marks = match net {
            IpNet::V4(_) => &mut self.v4,
            // No packet has an IPv6 address of IPv4's room, so such a prefix matches nothing.
            IpNet::V6(_) if length >= V4_LENGTH && address & mask(V4_LENGTH) == V4_ROOM => return,
            IpNet::V6(_) => &mut self.v6,
        };
        marks.push(Mark { address, length, grant, except });
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

/// The set needs more rule entries than any map holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

/// Turns grants into entries.
///
/// # Errors
/// When more than [`MAX_ENTRIES`] rule entries are needed.
pub(super) fn fold(mut grants: Grants) -> Result<Folded, TooLarge> {
    let (mut v4, mut v6) = (std::mem::take(&mut grants.v4), std::mem::take(&mut grants.v6));
    let mut walk = Walk {
        grants: &grants,
        covered: vec![0; grants.grants.len()],
        excluded: vec![0; grants.grants.len()],
        by_set: HashMap::from([(Vec::new(), EMPTY)]),
        by_content: HashMap::from([(Rc::from([]), EMPTY)]),
        lists: vec![Rc::from([])],
        entries: 0,
        prefixes: Vec::new(),
    };
    walk.family(&mut v6, (0, 0), EMPTY)?;
    let around_v4 = walk
        .prefixes
        .iter()
        .filter(|(address, length, _)| *length < V4_LENGTH && V4_ROOM & mask(*length) == *address)
        .max_by_key(|(_, length, _)| *length)
        .map_or(EMPTY, |(_, _, list)| *list);
    walk.family(&mut v4, (V4_ROOM, V4_LENGTH), around_v4)?;
    let Walk { prefixes, lists, .. } = walk;
    Ok(Folded { prefixes, lists })
}

/// One prefix around the current one.
struct Frame {
    /// Its last address.
    last: u128,
    /// Its marks.
    marks: std::ops::Range<usize>,
    /// The grants that hold in it, by index, without those that another one always beats.
    set: Rc<Vec<u32>>,
    /// The list a lookup finds in it.
    list: u32,
}

struct Walk<'a> {
    grants: &'a Grants,
    /// For each grant, how many prefixes on the stack it begins at.
    covered: Vec<u32>,
    /// For each grant, how many prefixes on the stack are exceptions of it.
    excluded: Vec<u32>,
    by_set: HashMap<Vec<u32>, u32>,
    by_content: HashMap<Rc<[RuleEntry]>, u32>,
    lists: Vec<Rc<[RuleEntry]>>,
    entries: usize,
    prefixes: Vec<(u128, u8, u32)>,
}

impl Walk<'_> {
    /// Emits the entries of one family. `inherited` is what a lookup finds around the family's `root`.
    fn family(&mut self, marks: &mut Vec<Mark>, root: (u128, u8), inherited: u32) -> Result<(), TooLarge> {
        marks.sort_unstable();
        marks.dedup();
        let mut stack: Vec<Frame> = Vec::new();
        let mut next = 0;
        loop {
            // The first round is the root's, whether it has marks or not.
            let (address, length) = match (stack.is_empty(), marks.get(next)) {
                (true, _) => root,
                (false, Some(mark)) => (mark.address, mark.length),
                (false, None) => break,
            };
            let count =
                marks[next..].iter().take_while(|m| (m.address, m.length) == (address, length)).count();
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

    fn leave(&mut self, marks: &[Mark]) {
        for mark in marks {
            let counts = if mark.except { &mut self.excluded } else { &mut self.covered };
            counts[mark.grant as usize] -= 1;
        }
    }

    /// Returns what holds in a prefix with these marks inside one where `around` holds.
    fn enter(
        &mut self,
        marks: &[Mark],
        around: &Rc<Vec<u32>>,
        around_list: u32,
    ) -> Result<(Rc<Vec<u32>>, u32), TooLarge> {
        let mut removes = false;
        for mark in marks.iter().filter(|mark| mark.except) {
            self.excluded[mark.grant as usize] += 1;
            removes |= self.excluded[mark.grant as usize] == 1;
        }
        let mut new = Vec::new();
        for mark in marks.iter().filter(|mark| !mark.except) {
            let grant = mark.grant as usize;
            self.covered[grant] += 1;
            if self.covered[grant] == 1 && self.excluded[grant] == 0 {
                new.push(mark.grant);
            }
        }
        if new.is_empty() && !removes {
            return Ok((Rc::clone(around), around_list));
        }
        let mut set = merged(around, &new);
        if removes {
            set.retain(|grant| self.excluded[*grant as usize] == 0);
        }
        // A grant without exceptions holds in every prefix further in, so what it beats here it beats there too.
        self.prune(&mut set, |grant| !grant.pierced);
        let list = self.list(&set)?;
        Ok((Rc::new(set), list))
    }

    /// Drops each grant that can be no candidate, because one `beater` of its kind matches wherever it does and lives longer,
    /// or as long and comes first.
    fn prune(&self, set: &mut Vec<u32>, beater: impl Fn(&Grant) -> bool) {
        if set.len() < 2 {
            return;
        }
        let rank = |index: u32| (self.grants.grants[index as usize].deadline, Reverse(index));
        let mut best: [Option<u32>; 4] = [None; 4];
        for &index in &*set {
            let grant = &self.grants.grants[index as usize];
            if grant.every_port
                && beater(grant)
                && best[grant.kind].is_none_or(|best| rank(best) < rank(index))
            {
                best[grant.kind] = Some(index);
            }
        }
        set.retain(|&index| {
            best[self.grants.grants[index as usize].kind].is_none_or(|best| rank(index) >= rank(best))
        });
    }

    /// Returns the number of the list for a set of grants.
    fn list(&mut self, set: &[u32]) -> Result<u32, TooLarge> {
        let mut set = set.to_vec();
        self.prune(&mut set, |_| true);
        if let Some(list) = self.by_set.get(&set) {
            return Ok(*list);
        }
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
        self.by_set.insert(set, list);
        Ok(list)
    }

    /// Returns the list of entries for a set of grants: sorted, without overlap, neighbours that say the same joined.
    fn sweep(&self, set: &[u32]) -> Vec<RuleEntry> {
        let ranges_of = |index: u32| &self.grants.ports[self.grants.grants[index as usize].ports as usize];
        let mut starts: Vec<(u32, u32)> = Vec::new();
        let mut ends: Vec<(u32, u32)> = Vec::new();
        let mut points: Vec<u32> = Vec::new();
        for &index in set {
            for &(low, high) in ranges_of(index) {
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
