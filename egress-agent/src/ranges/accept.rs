//! Compares new ranges with the last good ones.
//!
//! A download that went wrong at its source is well-formed: an empty list, last year's file, half of it. What looks so is refused, and
//! what was good stays in force; only a person, by wider [`Limits`], lets such a change through. Real changes are small: of the 13,344
//! rows that AWS had in July 2025 it took back 2 in a hundred until August 2026, and 2 rows in the six hours before the last revision.

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashSet},
    fmt,
};

use ipnet::IpNet;

use crate::policy::{
    document::shown,
    ranges::{Revision, Row, Table, Width},
};

/// Rows that may be lost without a look at what share of all they are.
const FEW: usize = 4;

/// What is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The loss of more than this share of the rows of a family, or of the IPv4 addresses, in percent. 100 allows any.
    pub loss: u8,
    /// A service or a region that had more rows than this and has none.
    pub vanished: usize,
    /// More rows than this.
    pub rows: usize,
    /// More IPv4 addresses than this: an allowance of such a service would be one of everything.
    pub addresses: u64,
}

impl Default for Limits {
    /// Half of all, twenty rows, 400,000 rows, an eighth of IPv4. The largest provider has 96,000 rows; AWS has 102 million addresses.
    fn default() -> Self {
        Self { loss: 50, vanished: 20, rows: 400_000, addresses: 1 << 29 }
    }
}

/// What changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Prefixes that had no row, sorted.
    pub added: Vec<IpNet>,
    /// Prefixes that have no row any more, sorted.
    pub removed: Vec<IpNet>,
    /// Rows that were not there; a prefix that gets another service is among them.
    pub rows_added: usize,
    /// Rows that are not there any more.
    pub rows_removed: usize,
    /// Domains that are new for their service, and those it has no more.
    pub domains: usize,
    /// Services that have nothing any more, sorted.
    pub services_gone: Vec<String>,
}

impl Delta {
    /// Returns whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows_added == 0 && self.rows_removed == 0 && self.domains == 0
    }
}

impl fmt::Display for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, removed, rows_added, rows_removed, domains, services_gone } = self;
        write!(f, "+{} -{} prefixes, +{rows_added} -{rows_removed} rows", added.len(), removed.len())?;
        if *domains > 0 {
            write!(f, ", {domains} domains changed")?;
        }
        if !services_gone.is_empty() {
            write!(f, ", gone: {}", services_gone.join(", "))?;
        }
        Ok(())
    }
}

/// Why new ranges are not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is nothing in them.
    #[error("there is nothing in the new ranges")]
    Empty,
    /// They were published before those that are there.
    #[error("the new ranges are older: revision {to} after {from}")]
    Older {
        /// What is there.
        from: Revision,
        /// What is offered.
        to: Revision,
    },
    /// Too much of them is gone.
    #[error("the new ranges have {to} {what} where there were {from}")]
    Shrunk {
        /// Of what.
        what: &'static str,
        /// How many there are.
        from: u64,
        /// How many are offered.
        to: u64,
    },
    /// A whole service or region is gone.
    #[error("the new ranges have nothing of {what} {}, which had {rows} rows", shown(.name))]
    Vanished {
        /// `service` or `region`.
        what: &'static str,
        /// Its name.
        name: String,
        /// How many rows it had.
        rows: usize,
    },
    /// There is more in them than there can be.
    #[error("the new ranges have {has} {what}, more than {limit}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many are offered.
        has: u64,
        /// How many may be.
        limit: u64,
    },
}

/// Tells what the new ranges change, if they may take the place of the old ones.
///
/// A revision equal to the old one is no reason to refuse: providers have corrected files without a new number.
///
/// # Errors
///
/// When they look like an accident.
pub fn accept(old: Option<&Table>, new: &Table, limits: &Limits) -> Result<Delta, Refused> {
    let count = new.count();
    if count.rows() == 0 && count.domains == 0 {
        return Err(Refused::Empty);
    }
    let at_most = |what, has: u64, limit: u64| match has > limit {
        true => Err(Refused::TooLarge { what, has, limit }),
        false => Ok(()),
    };
    at_most("rows", count.rows() as u64, limits.rows as u64)?;
    let width = Width::of(&new.collapsed()).addresses;
    at_most("IPv4 addresses", width, limits.addresses)?;
    let Some(old) = old else { return Ok(delta(None, new)) };
    if let (Revision::Published(from), Revision::Published(to)) = (old.revision(), new.revision())
        && to < from
    {
        return Err(Refused::Older { from: old.revision(), to: new.revision() });
    }
    let before = old.count();
    for (what, from, to, few) in [
        ("IPv4 rows", before.v4 as u64, count.v4 as u64, FEW as u64),
        ("IPv6 rows", before.v6 as u64, count.v6 as u64, FEW as u64),
        ("IPv4 addresses", Width::of(&old.collapsed()).addresses, width, 0),
    ] {
        let lost = from.saturating_sub(to);
        if lost > few && u128::from(lost) * 100 > u128::from(from) * u128::from(limits.loss) {
            return Err(Refused::Shrunk { what, from, to });
        }
    }
    vanished("service", &old.count_by_service(), &new.count_by_service(), limits)?;
    vanished("region", &old.count_by_region(), &new.count_by_region(), limits)?;
    Ok(delta(Some(old), new))
}

type Counts<'t> = [(&'t str, crate::policy::ranges::Count)];

fn vanished(what: &'static str, old: &Counts<'_>, new: &Counts<'_>, limits: &Limits) -> Result<(), Refused> {
    let left: HashSet<String> =
        new.iter().filter(|(_, count)| count.rows() > 0).map(|(name, _)| name.to_ascii_lowercase()).collect();
    // The one with most rows tells most.
    let gone = old
        .iter()
        .filter(|(name, count)| count.rows() > limits.vanished && !left.contains(&name.to_ascii_lowercase()))
        .max_by_key(|(_, count)| count.rows());
    match gone {
        Some((name, count)) => Err(Refused::Vanished { what, name: (*name).to_owned(), rows: count.rows() }),
        None => Ok(()),
    }
}

/// Tells what changes, whether it may or not.
#[must_use]
pub fn delta(old: Option<&Table>, new: &Table) -> Delta {
    let mut delta = Delta::default();
    let (mut added, mut removed) = (BTreeSet::new(), BTreeSet::new());
    let mut old_rows = old.into_iter().flat_map(Table::rows).peekable();
    let mut new_rows = new.rows().peekable();
    loop {
        let order = match (old_rows.peek(), new_rows.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => Row::in_order(old, new),
        };
        if order.is_le() {
            let row = old_rows.next();
            if let Some(row) = row.filter(|_| order.is_lt()) {
                delta.rows_removed += 1;
                removed.insert(row.cidr);
            }
        }
        if order.is_ge() {
            let row = new_rows.next();
            if let Some(row) = row.filter(|_| order.is_gt()) {
                delta.rows_added += 1;
                added.insert(row.cidr);
            }
        }
    }
    // A prefix of several rows is there as long as one of them is.
    if !added.is_empty() {
        for row in old.into_iter().flat_map(Table::rows) {
            added.remove(&row.cidr);
        }
    }
    if !removed.is_empty() {
        for row in new.rows() {
            removed.remove(&row.cidr);
        }
    }
    delta.added = added.into_iter().collect();
    delta.removed = removed.into_iter().collect();

    let domains = |table: &Table| -> BTreeSet<(String, String)> {
        table.domains().map(|(service, domain)| (service.to_ascii_lowercase(), domain.to_owned())).collect()
    };
    let (before, after) = (old.map(domains).unwrap_or_default(), domains(new));
    delta.domains = before.symmetric_difference(&after).count();
    if let Some(old) = old {
        let names: HashSet<String> = new.services().map(str::to_ascii_lowercase).collect();
        let gone = old.services().filter(|service| !names.contains(&service.to_ascii_lowercase()));
        delta.services_gone = gone.map(str::to_owned).collect();
    }
    delta
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        policy::ranges::{Builder, GLOBAL},
        ranges::providers::provider,
    };

    /// Returns a table of service S and region R with `count` rows from `first` on, and the given others.
    fn table(revision: u64, count: u32, others: &[(&str, &str, &str)]) -> Table {
        let mut builder = Builder::new();
        for n in 0..count {
            let cidr = format!("20.{}.{}.0/24", n / 256, n % 256).parse().expect("a network");
            let row = Row { service: "S", region: "R", network_border_group: "", wider: "", cidr };
            builder.push(row).expect("it is good");
        }
        for (service, region, cidr) in others {
            let cidr = cidr.parse().expect("a network");
            let row = Row { service, region, network_border_group: "", wider: "", cidr };
            builder.push(row).expect("it is good");
        }
        builder.finish(Some(revision))
    }

    fn judged(old: &Table, new: &Table) -> Result<Delta, String> {
        accept(Some(old), new, &Limits::default()).map_err(|refused| refused.to_string())
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }

    #[test]
    fn the_first_ranges_are_all_new() {
        let delta = accept(None, &table(1, 3, &[]), &Limits::default()).expect("they are good");
        assert_eq!((delta.added.len(), delta.rows_added, delta.removed.len()), (3, 3, 0));
        let empty = accept(None, &Builder::new().finish(Some(1)), &Limits::default());
        assert_eq!(empty, Err(Refused::Empty));
    }

    #[test]
    fn older_ones_are_refused_and_equal_ones_change_nothing() {
        let old = table(5, 9, &[]);
        assert_eq!(judged(&old, &table(5, 9, &[])), Ok(Delta::default()));
        assert_eq!(
            judged(&old, &table(4, 9, &[])),
            Err("the new ranges are older: revision 4 after 5".into())
        );
        let corrected = judged(&old, &table(5, 10, &[])).expect("a correction is no reason to refuse");
        assert_eq!(corrected.added, nets(&["20.0.9.0/24"]));
    }

    #[test]
    fn the_loss_of_more_than_half_is_refused() {
        let old = table(1, 100, &[]);
        assert!(judged(&old, &table(2, 50, &[])).is_ok());
        assert_eq!(
            judged(&old, &table(2, 49, &[])),
            Err("the new ranges have 49 IPv4 rows where there were 100".into())
        );
        let any = Limits { loss: 100, ..Limits::default() };
        assert!(accept(Some(&old), &table(2, 1, &[]), &any).is_ok(), "a person may allow it");
        let v6 = |count: u32| {
            let rows: Vec<String> = (0..count).map(|n| format!("2001:db8:{n:x}::/48")).collect();
            let rows: Vec<_> = rows.iter().map(|cidr| ("S", "R", cidr.as_str())).collect();
            table(1, 1000, &rows)
        };
        assert_eq!(
            judged(&v6(10), &v6(0)),
            Err("the new ranges have 0 IPv6 rows where there were 10".into()),
            "each family counts by itself"
        );
        assert!(judged(&v6(4), &v6(0)).is_ok(), "a few rows are no accident");
    }

    #[test]
    fn the_loss_of_most_addresses_is_refused_whatever_the_rows() {
        let wide = [("S", "R", "30.0.0.0/8")];
        assert_eq!(
            judged(&table(1, 100, &wide), &table(2, 100, &[])),
            Err("the new ranges have 25600 IPv4 addresses where there were 16802816".into())
        );
    }

    #[test]
    fn a_service_or_region_of_some_size_does_not_vanish() {
        let of = |service: &'static str, region: &'static str, count: u32| {
            let rows: Vec<String> = (0..count).map(|n| format!("192.0.{n}.0/24")).collect();
            let rows: Vec<_> = rows.iter().map(|cidr| (service, region, cidr.as_str())).collect();
            table(1, 100, &rows)
        };
        let without = table(2, 100, &[]);
        assert_eq!(
            judged(&of("T", "R", 21), &without),
            Err("the new ranges have nothing of service T, which had 21 rows".into())
        );
        assert_eq!(
            judged(&of("S", "Q", 21), &without),
            Err("the new ranges have nothing of region Q, which had 21 rows".into())
        );
        assert_eq!(
            judged(&of("T", "R", 20), &without).map(|delta| delta.services_gone),
            Ok(vec!["T".to_owned()])
        );
        assert!(judged(&of("t", "q", 21), &of("T", "Q", 1)).is_ok(), "one row is left, under the same name");
    }

    #[test]
    fn more_than_there_can_be_is_refused() {
        let wide: Vec<String> = (16..49).map(|n| format!("{n}.0.0.0/8")).collect();
        let wide: Vec<_> = wide.iter().map(|cidr| ("S", "R", cidr.as_str())).collect();
        assert_eq!(
            judged(&table(1, 1, &[]), &table(2, 1, &wide)),
            Err("the new ranges have 553648128 IPv4 addresses, more than 536870912".into())
        );
        let limits = Limits { rows: 9, ..Limits::default() };
        assert_eq!(
            accept(None, &table(1, 10, &[]), &limits),
            Err(Refused::TooLarge { what: "rows", has: 10, limit: 9 })
        );
    }

    #[test]
    fn a_prefix_that_changes_its_service_is_a_change_of_rows_only() {
        let old = table(1, 9, &[("T", "R", "192.0.2.0/24")]);
        let new = table(2, 9, &[("S", "R", "192.0.2.0/24"), ("T", "R", "198.51.100.0/24")]);
        let delta = judged(&old, &new).expect("it is small");
        assert_eq!((delta.rows_added, delta.rows_removed), (2, 1));
        assert_eq!((delta.added.clone(), delta.removed.clone()), (nets(&["198.51.100.0/24"]), vec![]));
        assert!(!delta.is_empty());
        assert_eq!(delta.to_string(), "+1 -0 prefixes, +2 -1 rows");
    }

    #[test]
    fn domains_count() {
        let of = |domain: &str| {
            let mut builder = Builder::new();
            builder.push_domain("website", domain).expect("it is good");
            builder.finish(None)
        };
        assert_eq!(judged(&of("a.example"), &of("A.example")), Ok(Delta::default()));
        let delta = judged(&of("a.example"), &of("b.example")).expect("it is small");
        assert_eq!((delta.domains, delta.is_empty()), (2, false));
        assert_eq!(delta.to_string(), "+0 -0 prefixes, +0 -0 rows, 2 domains changed");
    }

    proptest! {
        #[test]
        fn what_changes_is_the_difference_of_the_sets(
            old in prop::collection::btree_set((0..3_usize, 0..3_usize, 0..20_u8), 0..40),
            new in prop::collection::btree_set((0..3_usize, 0..3_usize, 0..20_u8), 1..40),
        ) {
            let names = ["S3", "ec2", "Z"];
            let made = |rows: &BTreeSet<(usize, usize, u8)>| -> BTreeSet<(&str, &str, IpNet)> {
                rows.iter()
                    .map(|(service, region, n)| {
                        let cidr = if *n < 10 { format!("192.0.{n}.0/24") } else { format!("2001:db8:{n}::/48") };
                        (names[*service], [GLOBAL, "eu", "us"][*region], cidr.parse().expect("a network"))
                    })
                    .collect()
            };
            let (old, new) = (made(&old), made(&new));
            let table = |rows: &BTreeSet<(&str, &str, IpNet)>| {
                let mut builder = Builder::new();
                for (service, region, cidr) in rows {
                    let row = Row { service, region, network_border_group: "", wider: "", cidr: *cidr };
                    builder.push(row).expect("it is good");
                }
                builder.finish(None)
            };
            let nets = |rows: &BTreeSet<(&str, &str, IpNet)>| -> BTreeSet<IpNet> {
                rows.iter().map(|(_, _, cidr)| *cidr).collect()
            };
            let delta = delta(Some(&table(&old)), &table(&new));
            prop_assert_eq!(delta.rows_added, new.difference(&old).count());
            prop_assert_eq!(delta.rows_removed, old.difference(&new).count());
            let added: Vec<IpNet> = nets(&new).difference(&nets(&old)).copied().collect();
            prop_assert_eq!(delta.added, added);
            let removed: Vec<IpNet> = nets(&old).difference(&nets(&new)).copied().collect();
            prop_assert_eq!(delta.removed, removed);
        }
    }

    #[test]
    fn real_revisions() {
        let Ok(folder) = std::env::var("EGRESS_DATA_DIR") else {
            println!("skipped: EGRESS_DATA_DIR does not say where aws/ip-ranges.json is");
            return;
        };
        let read = |name: &str| {
            let path = std::path::Path::new(&folder).join("aws").join(name);
            let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            let aws = provider("aws").expect("it is a provider");
            aws.parse(&[&bytes]).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let (current, previous) = (read("ip-ranges.json"), read("ip-ranges.previous.json"));
        let delta = judged(&previous, &current).expect("it is six hours later");
        assert_eq!((delta.added.clone(), delta.removed.clone()), (vec![], nets(&["1.178.86.0/24"])));
        assert_eq!((delta.rows_added, delta.rows_removed), (0, 2), "of AMAZON and of EC2");
        assert!(judged(&current, &previous).is_err_and(|sentence| sentence.contains("older")));

        let delta = judged(&read("ip-ranges.2025-07.json"), &current).expect("it is a year later");
        assert_eq!(delta.services_gone, [""; 0]);
        assert!(delta.rows_added > 1_856 && delta.rows_removed > 161, "{delta}");
        assert!(judged(&read("ip-ranges.2015-11.json"), &current).is_ok(), "growth is no accident");
        let refused = accept(Some(&current), &read("ip-ranges.2015-11.json"), &Limits::default());
        assert!(matches!(refused, Err(Refused::Older { .. })));
    }
}
