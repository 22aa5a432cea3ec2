//! The rows of one provider, in little room.

use std::{cmp::Ordering, collections::HashMap, fmt, net::Ipv4Addr, ops::Range};

use ipnet::{IpNet, Ipv4Net};

use super::collapse::{self, collapse, v4_net, v6_net};

/// Rows a table may have.
pub const MAX_ROWS: usize = 1 << 20;
/// Names of services, and names of regions, that a table may have.
pub const MAX_NAMES: usize = 1 << 14;
/// Bytes of a name.
pub const MAX_NAME: usize = 128;

/// The region of addresses that belong to no region. Some providers write it in lower case.
pub const GLOBAL: &str = "GLOBAL";

/// Stands for no name.
const NONE: u16 = u16::MAX;

/// What says which publication the rows are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Revision {
    /// A number of the provider's that grows with every publication.
    Published(u64),
    /// The provider gives none: a number made from the rows.
    Content(u64),
}

impl Revision {
    /// Returns the number.
    #[must_use]
    pub fn number(self) -> u64 {
        match self {
            Self::Published(number) | Self::Content(number) => number,
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Published(number) => write!(f, "{number}"),
            Self::Content(number) => write!(f, "content-{number:016x}"),
        }
    }
}

/// One published prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row<'a> {
    /// The service it belongs to.
    pub service: &'a str,
    /// Its region, or [`GLOBAL`].
    pub region: &'a str,
    /// The part of the region it is announced from, or another name of the region; the region itself if there is none.
    pub network_border_group: &'a str,
    /// What the region is a part of, such as a country; empty if nothing is said.
    pub wider: &'a str,
    /// Without host bits.
    pub cidr: IpNet,
}

/// Rows of the same service and the same place. Its rows begin at `v4` and `v6`, and end where the next group's begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    service: u16,
    /// Region, network border group, wider; indexes of `Table::areas` or `NONE`.
    areas: [u16; 3],
    v4: u32,
    v6: u32,
}

/// The rows of one provider.
///
/// It is canonical: the same rows make an equal table in whatever order, and however often, they are given. A row takes 5 bytes (IPv4)
/// or 17 (IPv6), names are kept once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    revision: Revision,
    /// In the order of their lower case, which is how they are compared.
    services: Box<[Box<str>]>,
    areas: Box<[Box<str>]>,
    /// The last is no group, but the end of the one before it.
    groups: Box<[Group]>,
    v4: Box<[u32]>,
    v4_lengths: Box<[u8]>,
    v6: Box<[u128]>,
    v6_lengths: Box<[u8]>,
    /// Sorted; the number is a service's.
    domains: Box<[(u16, Box<str>)]>,
    global_is_sum: bool,
}

/// How many rows, of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// IPv4 rows.
    pub v4: usize,
    /// IPv6 rows.
    pub v6: usize,
    /// Domains.
    pub domains: usize,
}

impl Count {
    /// Returns how many rows there are of both families.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.v4 + self.v6
    }
}

/// A service that is named, all of it or the part in one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named {
    service: u16,
    /// From a name such as `Sql.EastUS`.
    area: Option<u16>,
}

/// What was selected.
#[derive(Debug, Default)]
pub(super) struct Selected {
    pub(super) cidrs: Vec<IpNet>,
    pub(super) domains: Vec<String>,
    /// Rows of region GLOBAL that were left out because regions were named.
    pub(super) left_out_global: usize,
    /// Which of the named services gave something.
    pub(super) services: Vec<bool>,
    /// Which of the named regions gave something.
    pub(super) regions: Vec<bool>,
}

impl Table {
    /// Returns what says which publication the rows are from.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Returns the table under another revision: one made of a part of the rows is of the whole's.
    #[must_use]
    pub fn with_revision(self, revision: Revision) -> Self {
        Self { revision, ..self }
    }

    /// Returns the names of the services, in order.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &str> {
        self.services.iter().map(AsRef::as_ref)
    }

    /// Returns every name a region can be called by: regions, network border groups and what they are a part of.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = &str> {
        self.areas.iter().map(AsRef::as_ref)
    }

    /// Returns whether the rows of region [`GLOBAL`] repeat those of the regions, as Azure's do.
    #[must_use]
    pub fn global_is_sum(&self) -> bool {
        self.global_is_sum
    }

    /// Returns the rows: IPv4 before IPv6 within a group, groups by service and region.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        (0..self.groups.len() - 1).flat_map(move |group| self.rows_of(group))
    }

    /// Returns the names of services and regions that have rows in common, each pair once, and how many rows.
    pub fn groups(&self) -> impl Iterator<Item = (Row<'_>, Count)> {
        (0..self.groups.len() - 1).filter_map(move |group| {
            let (v4, v6) = self.spans(group);
            let count = Count { v4: v4.len(), v6: v6.len(), domains: 0 };
            self.rows_of(group).next().map(|first| (first, count))
        })
    }

    /// Returns domains, each with its service.
    pub fn domains(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.domains.iter().map(|(service, domain)| (&*self.services[usize::from(*service)], &**domain))
    }

    /// Returns how much there is.
    #[must_use]
    pub fn count(&self) -> Count {
        Count { v4: self.v4.len(), v6: self.v6.len(), domains: self.domains.len() }
    }

    /// Returns how much there is of each service, in order.
    #[must_use]
    pub fn count_by_service(&self) -> Vec<(&str, Count)> {
        let mut counts: Vec<(&str, Count)> =
            self.services().map(|service| (service, Count::default())).collect();
        for (index, group) in self.groups[..self.groups.len() - 1].iter().enumerate() {
            let (v4, v6) = self.spans(index);
            let count = &mut counts[usize::from(group.service)].1;
            count.v4 += v4.len();
            count.v6 += v6.len();
        }
        for (service, _) in &*self.domains {
            counts[usize::from(*service)].1.domains += 1;
        }
        counts
    }

    /// Returns how much there is in each region, in order.
    #[must_use]
    pub fn count_by_region(&self) -> Vec<(&str, Count)> {
        let mut counts = vec![Count::default(); self.areas.len()];
        for (index, group) in self.groups[..self.groups.len() - 1].iter().enumerate() {
            let (v4, v6) = self.spans(index);
            let count = &mut counts[usize::from(group.areas[0])];
            count.v4 += v4.len();
            count.v6 += v6.len();
        }
        self.regions().zip(counts).filter(|(_, count)| count.rows() > 0).collect()
    }

    /// Returns how many bytes it takes, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let names = |names: &[Box<str>]| names.iter().map(|name| name.len() + 16).sum::<usize>();
        let domains: usize = self.domains.iter().map(|(_, domain)| domain.len() + 24).sum();
        size_of::<Self>()
            + names(&self.services)
            + names(&self.areas)
            + size_of_val(&*self.groups)
            + self.v4.len() * 5
            + self.v6.len() * 17
            + domains
    }

    /// Returns the fewest CIDRs for all rows: IPv4 first, each family in order.
    #[must_use]
    pub fn collapsed(&self) -> Vec<IpNet> {
        let (mut v4, mut v6) = (self.v4_rows(0..self.v4.len()), self.v6_rows(0..self.v6.len()));
        collapse(&mut v4);
        collapse(&mut v6);
        collapse::nets(&v4, &v6)
    }

    fn spans(&self, group: usize) -> (Range<usize>, Range<usize>) {
        let (here, next) = (self.groups[group], self.groups[group + 1]);
        (here.v4 as usize..next.v4 as usize, here.v6 as usize..next.v6 as usize)
    }

    fn v4_rows(&self, span: Range<usize>) -> Vec<(u32, u8)> {
        self.v4[span.clone()].iter().copied().zip(self.v4_lengths[span].iter().copied()).collect()
    }

    fn v6_rows(&self, span: Range<usize>) -> Vec<(u128, u8)> {
        self.v6[span.clone()].iter().copied().zip(self.v6_lengths[span].iter().copied()).collect()
    }

    fn rows_of(&self, group: usize) -> impl Iterator<Item = Row<'_>> {
        let Group { service, areas, .. } = self.groups[group];
        let area = |index: u16| if index == NONE { "" } else { &*self.areas[usize::from(index)] };
        let row = Row {
            service: &self.services[usize::from(service)],
            region: area(areas[0]),
            network_border_group: area(areas[1]),
            wider: area(areas[2]),
            cidr: IpNet::default(),
        };
        let (v4, v6) = self.spans(group);
        let v4 = v4.map(|at| IpNet::V4(v4_net(self.v4[at], self.v4_lengths[at])));
        let v6 = v6.map(|at| IpNet::V6(v6_net(self.v6[at], self.v6_lengths[at])));
        v4.chain(v6).map(move |cidr| Row { cidr, ..row })
    }

    /// Finds a service by its name, or by its name and a region's, such as `Sql.EastUS`.
    pub(super) fn service(&self, name: &str) -> Option<Named> {
        if let Some(service) = find(&self.services, name) {
            return Some(Named { service, area: None });
        }
        let (service, region) = name.rsplit_once('.')?;
        Some(Named { service: find(&self.services, service)?, area: Some(find(&self.areas, region)?) })
    }

    /// Finds a region by one of its names.
    pub(super) fn region(&self, name: &str) -> Option<u16> {
        find(&self.areas, name)
    }

    /// Returns what is of one of `services`, all if there are none, and in one of `regions`, all if there are none.
    pub(super) fn select(&self, services: &[Named], regions: &[u16]) -> Selected {
        let mut selected = Selected {
            services: vec![false; services.len()],
            regions: vec![false; regions.len()],
            ..Selected::default()
        };
        let global = find(&self.areas, GLOBAL);
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (index, group) in self.groups[..self.groups.len() - 1].iter().enumerate() {
            let named = |named: &Named| {
                named.service == group.service && named.area.is_none_or(|area| group.areas.contains(&area))
            };
            if !services.is_empty() && !services.iter().any(named) {
                continue;
            }
            let (v4_span, v6_span) = self.spans(index);
            if !regions.is_empty() && !regions.iter().any(|region| group.areas.contains(region)) {
                if !self.global_is_sum && global.is_some_and(|global| group.areas[0] == global) {
                    selected.left_out_global += v4_span.len() + v6_span.len();
                }
                continue;
            }
            for (service, gave) in services.iter().zip(&mut selected.services) {
                *gave |= named(service);
            }
            for (region, gave) in regions.iter().zip(&mut selected.regions) {
                *gave |= group.areas.contains(region);
            }
            v4.extend(self.v4[v4_span.clone()].iter().copied().zip(self.v4_lengths[v4_span].iter().copied()));
            v6.extend(self.v6[v6_span.clone()].iter().copied().zip(self.v6_lengths[v6_span].iter().copied()));
        }
        // A domain is in no region: with regions it is named by GLOBAL only, as an address in none is.
        if regions.is_empty() || regions.iter().any(|region| global == Some(*region)) {
            for (service, domain) in &*self.domains {
                let named = |named: &Named| named.service == *service && named.area.is_none();
                if services.is_empty() || services.iter().any(named) {
                    selected.domains.push(domain.to_string());
                    for (service, gave) in services.iter().zip(&mut selected.services) {
                        *gave |= named(service);
                    }
                }
            }
            selected.domains.sort();
            selected.domains.dedup();
        }
        collapse(&mut v4);
        collapse(&mut v6);
        selected.cidrs = collapse::nets(&v4, &v6);
        selected
    }
}

impl Row<'_> {
    /// Compares rows in the order in which [`Table::rows`] gives them, also those of different tables.
    #[must_use]
    pub fn in_order(&self, other: &Self) -> Ordering {
        // No name comes after all names.
        let wider = |a: &str, b: &str| a.is_empty().cmp(&b.is_empty()).then_with(|| order(a, b));
        order(self.service, other.service)
            .then_with(|| order(self.region, other.region))
            .then_with(|| order(self.network_border_group, other.network_border_group))
            .then_with(|| wider(self.wider, other.wider))
            .then_with(|| self.cidr.cmp(&other.cidr))
    }
}

/// Compares names as [`Table`] orders them.
fn order(a: &str, b: &str) -> Ordering {
    a.bytes().map(|b| b.to_ascii_lowercase()).cmp(b.bytes().map(|b| b.to_ascii_lowercase()))
}

fn find(names: &[Box<str>], name: &str) -> Option<u16> {
    let at = names.binary_search_by(|candidate| order(candidate, name)).ok()?;
    u16::try_from(at).ok()
}

/// Why rows make no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// More than [`MAX_ROWS`].
    #[error("more than {MAX_ROWS} rows")]
    Rows,
    /// More than [`MAX_NAMES`] services or regions.
    #[error("more than {MAX_NAMES} names of services or regions")]
    Names,
    /// Empty, longer than [`MAX_NAME`] bytes, or with characters that policies cannot have in a name.
    #[error("a name of a service or region that is empty, too long, or not of printable ASCII characters")]
    Name,
    /// Wider than what anybody publishes, private, or of no host.
    #[error("a prefix that no provider has")]
    Prefix,
}

/// Names of one kind while rows come in.
#[derive(Debug, Default)]
struct Names {
    numbers: HashMap<Box<str>, u16>,
    list: Vec<Box<str>>,
    /// Rows of the same name stand together often.
    last: u16,
}

impl Names {
    fn number(&mut self, name: &str) -> Result<u16, BuildError> {
        if self.list.get(usize::from(self.last)).is_some_and(|last| **last == *name) {
            return Ok(self.last);
        }
        if let Some(&number) = self.numbers.get(name) {
            self.last = number;
            return Ok(number);
        }
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(BuildError::Name);
        }
        if self.list.len() == MAX_NAMES {
            return Err(BuildError::Names);
        }
        let number = u16::try_from(self.list.len()).map_err(|_| BuildError::Names)?;
        self.numbers.insert(name.into(), number);
        self.list.push(name.into());
        self.last = number;
        Ok(number)
    }

    /// Returns the names in order, one for those that differ in case, and for each number so far its place among them.
    fn finish(self) -> (Box<[Box<str>]>, Vec<u16>) {
        let mut sorted: Vec<(Box<str>, usize)> = self.list.into_iter().zip(0..).collect();
        sorted.sort_by(|(a, _), (b, _)| order(a, b).then_with(|| a.cmp(b)));
        let mut places = vec![0; sorted.len()];
        let mut names: Vec<Box<str>> = Vec::with_capacity(sorted.len());
        for (name, number) in sorted {
            if names.last().is_none_or(|last| order(last, &name).is_ne()) {
                names.push(name);
            }
            places[number] = u16::try_from(names.len() - 1).unwrap_or(NONE);
        }
        (names.into(), places)
    }
}

/// Takes rows in any order.
#[derive(Debug, Default)]
pub struct Builder {
    services: Names,
    areas: Names,
    groups: HashMap<(u16, [u16; 3]), u32>,
    list: Vec<(u16, [u16; 3])>,
    last: u32,
    v4: Vec<(u32, u32, u8)>,
    v6: Vec<(u32, [u64; 2], u8)>,
    domains: Vec<(u16, Box<str>)>,
    global_is_sum: bool,
}

impl Builder {
    /// Returns one without rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that the rows of region [`GLOBAL`] repeat those of the regions.
    pub fn global_is_sum(&mut self) {
        self.global_is_sum = true;
    }

    /// Takes the name of a service that may have no rows here, because they are elsewhere.
    ///
    /// # Errors
    ///
    /// When there are too many, or the name is unusable.
    pub fn name_service(&mut self, name: &str) -> Result<(), BuildError> {
        self.services.number(name).map(|_| ())
    }

    /// Takes a name of a region that may have no rows here, because they are elsewhere.
    ///
    /// # Errors
    ///
    /// When there are too many, or the name is unusable.
    pub fn name_region(&mut self, name: &str) -> Result<(), BuildError> {
        self.areas.number(name).map(|_| ())
    }

    /// Returns whether nothing has been taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty() && self.domains.is_empty()
    }

    /// Takes a row. An empty border group stands for the region itself; host bits are dropped.
    ///
    /// # Errors
    ///
    /// When there are too many, a name is unusable, or the prefix is one that no provider has.
    pub fn push(&mut self, row: Row<'_>) -> Result<(), BuildError> {
        if !is_plausible(&row.cidr) {
            return Err(BuildError::Prefix);
        }
        if self.v4.len() + self.v6.len() == MAX_ROWS {
            return Err(BuildError::Rows);
        }
        let service = self.services.number(row.service)?;
        let region = self.areas.number(row.region)?;
        let border = match row.network_border_group {
            "" => region,
            name => self.areas.number(name)?,
        };
        let wider = match row.wider {
            "" => NONE,
            name => self.areas.number(name)?,
        };
        let key = (service, [region, border, wider]);
        let group = if self.list.get(self.last as usize) == Some(&key) {
            self.last
        } else {
            let next = u32::try_from(self.list.len()).map_err(|_| BuildError::Rows)?;
            let group = *self.groups.entry(key).or_insert(next);
            if group == next {
                self.list.push(key);
            }
            group
        };
        self.last = group;
        match row.cidr.trunc() {
            IpNet::V4(net) => self.v4.push((group, net.addr().into(), net.prefix_len())),
            IpNet::V6(net) => {
                let bits = u128::from(net.addr());
                #[expect(clippy::cast_possible_truncation, reason = "the halves of a number twice as wide")]
                let halves = [(bits >> 64) as u64, bits as u64];
                self.v6.push((group, halves, net.prefix_len()));
            }
        }
        Ok(())
    }

    /// Takes a domain pattern of a service.
    ///
    /// # Errors
    ///
    /// When there are too many, or a name is unusable.
    pub fn push_domain(&mut self, service: &str, domain: &str) -> Result<(), BuildError> {
        if self.domains.len() == MAX_ROWS {
            return Err(BuildError::Rows);
        }
        if domain.len() > 253 || !domain.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(BuildError::Name);
        }
        let service = self.services.number(service)?;
        // Domains are in no region, which must have its name for that.
        self.areas.number(GLOBAL)?;
        self.domains.push((service, domain.to_ascii_lowercase().into()));
        Ok(())
    }

    /// Returns the table. Without a revision its number is made from the rows.
    #[must_use]
    pub fn finish(self, revision: Option<u64>) -> Table {
        let (services, service_places) = self.services.finish();
        let (areas, area_places) = self.areas.finish();
        let place = |number: u16| if number == NONE { NONE } else { area_places[usize::from(number)] };
        let keys: Vec<(u16, [u16; 3])> = self
            .list
            .iter()
            .map(|(service, areas)| (service_places[usize::from(*service)], areas.map(place)))
            .collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        sorted.dedup();
        // Where each group of before stands now.
        let rank: Vec<u32> =
            keys.iter().map(|key| u32::try_from(sorted.partition_point(|k| k < key)).unwrap_or(0)).collect();

        let mut v4 = self.v4;
        for row in &mut v4 {
            row.0 = rank[row.0 as usize];
        }
        v4.sort_unstable();
        v4.dedup();
        let mut v6 = self.v6;
        for row in &mut v6 {
            row.0 = rank[row.0 as usize];
        }
        v6.sort_unstable();
        v6.dedup();

        // Both fit: a table has at most MAX_ROWS rows.
        let start = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        let mut groups: Vec<Group> = Vec::with_capacity(sorted.len() + 1);
        let (mut v4_at, mut v6_at) = (0, 0);
        for (number, (service, areas)) in (0_u32..).zip(sorted) {
            groups.push(Group { service, areas, v4: start(v4_at), v6: start(v6_at) });
            v4_at += v4[v4_at..].partition_point(|row| row.0 <= number);
            v6_at += v6[v6_at..].partition_point(|row| row.0 <= number);
        }
        groups.push(Group { service: NONE, areas: [NONE; 3], v4: start(v4.len()), v6: start(v6.len()) });

        let mut domains: Vec<(u16, Box<str>)> = self
            .domains
            .into_iter()
            .map(|(service, domain)| (service_places[usize::from(service)], domain))
            .collect();
        domains.sort();
        domains.dedup();

        let mut table = Table {
            revision: Revision::Content(0),
            services,
            areas,
            groups: groups.into(),
            v4: v4.iter().map(|row| row.1).collect(),
            v4_lengths: v4.iter().map(|row| row.2).collect(),
            v6: v6.iter().map(|row| u128::from(row.1[0]) << 64 | u128::from(row.1[1])).collect(),
            v6_lengths: v6.iter().map(|row| row.2).collect(),
            domains: domains.into(),
            global_is_sum: self.global_is_sum,
        };
        table.revision = match revision {
            Some(number) => Revision::Published(number),
            None => Revision::Content(table.content()),
        };
        table
    }
}

impl Table {
    /// Returns a number that other content hardly has: FNV-1a, which is the same on every machine.
    fn content(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut add = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
            hash = (hash ^ 0x100).wrapping_mul(0x0000_0100_0000_01b3);
        };
        for row in self.rows() {
            add(row.service.as_bytes());
            add(row.region.as_bytes());
            add(row.network_border_group.as_bytes());
            add(row.wider.as_bytes());
            match row.cidr {
                IpNet::V4(net) => add(&net.addr().octets()),
                IpNet::V6(net) => add(&net.addr().octets()),
            }
            add(&[row.cidr.prefix_len()]);
        }
        for (service, domain) in self.domains() {
            add(service.as_bytes());
            add(domain.as_bytes());
        }
        hash
    }
}

/// IPv4 networks that nobody can publish: they are private, or of no host.
const NOBODYS: [Ipv4Net; 8] = [
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// Tells whether a provider can have such a prefix. Data that opens half the world, the cluster's own addresses or a node's metadata
/// service is no data.
#[must_use]
pub fn is_plausible(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => {
            let meets = |other: &Ipv4Net| net.contains(other) || other.contains(net);
            net.prefix_len() >= 8 && !NOBODYS.iter().any(meets)
        }
        IpNet::V6(net) => {
            // 2000::/3 is what is given out. Below is what stands for IPv4 and loopback, above are private, link-local and multicast.
            net.prefix_len() >= 16 && net.network().segments()[0] >> 13 == 1
        }
    }
}
