//! Sets of addresses, to be counted and compared.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

use super::model::{Effect, Peer, Policy};

/// Where clouds hand out the credentials of a node. `world` leaves them out, and a destination that names one is warned of; the shipped
/// rules of policy as code have the same list.
pub const METADATA: [IpAddr; 5] = [
    // AWS, Azure, Google and most others.
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    // AWS.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    // Google.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    // Alibaba.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Azure's host agent.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

/// Addresses of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Addresses {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

/// First and last of each range, ascending, with a gap between any two.
type Ranges<T> = Vec<(T, T)>;

/// How many addresses there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Count {
    /// Of IPv4.
    pub v4: u64,
    /// Of IPv6. All there are, 2¹²⁸, are one too many for the type and are told as its largest number.
    pub v6: u128,
}

impl Addresses {
    /// Returns every address.
    #[must_use]
    pub fn all() -> Self {
        Self { v4: vec![(0, u32::MAX)], v6: vec![(0, u128::MAX)] }
    }

    /// Returns the addresses in one of `nets`.
    #[must_use]
    pub fn of_nets<'n>(nets: impl IntoIterator<Item = &'n IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in nets {
            match net {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        Self { v4: merged(v4), v6: merged(v6) }
    }

    /// Returns the addresses a peer names by themselves; none for what only a cluster or a provider knows.
    #[must_use]
    pub fn of_peer(peer: &Peer) -> Self {
        match peer {
            Peer::Any => Self::all(),
            Peer::Cidrs { cidrs, except } if except.is_empty() => Self::of_nets(cidrs),
            Peer::Cidrs { cidrs, except } => Self::of_nets(cidrs).minus(&Self::of_nets(except)),
            Peer::Cloud(cloud) => Self::of_nets(cloud.cidrs.iter()),
            Peer::Pods { .. } | Peer::Service(_) | Peer::Entity(_) | Peer::Unresolved(_) => Self::default(),
        }
    }

    /// Returns the addresses that rules of one effect name, each once. Ports and expiries make no difference.
    #[must_use]
    pub fn of_policy(policy: &Policy, effect: Effect) -> Self {
        let peers = policy.rules.iter().filter(|rule| rule.effect == effect).flat_map(|rule| &rule.peers);
        let mut all = Self::default();
        for peer in peers {
            let Self { v4, v6 } = Self::of_peer(peer);
            all.v4.extend(v4);
            all.v6.extend(v6);
        }
        Self { v4: merged(all.v4), v6: merged(all.v6) }
    }

    /// Returns those that are in one of the two.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            v4: merged(self.v4.iter().chain(&other.v4).copied().collect()),
            v6: merged(self.v6.iter().chain(&other.v6).copied().collect()),
        }
    }

    /// Returns those that are not in `other`.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        Self { v4: minus(&self.v4, &other.v4), v6: minus(&self.v6, &other.v6) }
    }

    /// Returns those outside networks that are private, reserved or of one machine.
    #[must_use]
    pub fn public(&self) -> Self {
        self.minus(&NOT_PUBLIC)
    }

    /// Tells whether all of them are in `other`.
    #[must_use]
    pub fn are_in(&self, other: &Self) -> bool {
        self.minus(other).is_empty()
    }

    /// Tells whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Returns how many there are.
    #[must_use]
    pub fn count(&self) -> Count {
        Count {
            v4: self.v4.iter().map(|(first, last)| u64::from(last - first) + 1).sum(),
            v6: self
                .v6
                .iter()
                .fold(0, |sum: u128, (first, last)| sum.saturating_add((last - first).saturating_add(1))),
        }
    }

    /// Returns the fewest prefixes that hold them, in ascending order.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.v4.iter().flat_map(|&(first, last)| {
            Ipv4Subnets::new(Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(last), 0)
        });
        let v6 = self.v6.iter().flat_map(|&(first, last)| {
            Ipv6Subnets::new(Ipv6Addr::from_bits(first), Ipv6Addr::from_bits(last), 0)
        });
        v4.map(IpNet::from).chain(v6.map(IpNet::from))
    }

    /// Tells whether `address` is among them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        fn among<T: Ord>(ranges: &[(T, T)], one: &T) -> bool {
            let after = ranges.partition_point(|(first, _)| first <= one);
            after > 0 && *one <= ranges[after - 1].1
        }
        match address {
            IpAddr::V4(address) => among(&self.v4, &address.to_bits()),
            IpAddr::V6(address) => among(&self.v6, &address.to_bits()),
        }
    }
}

impl Count {
    /// Tells whether there are none.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.v4 == 0 && self.v6 == 0
    }
}

impl fmt::Display for Count {
    /// Writes it such as `256 IPv4 addresses and 3 IPv6 networks of /64`: so many that the last is filled, where there are
    /// more than a network has.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NETWORK: u128 = 1 << 64;
        let plural = |one: bool, word: &str, ending: &str| format!("{word}{}", if one { "" } else { ending });
        if self.v4 > 0 || self.v6 == 0 {
            write!(f, "{} {}", self.v4, plural(self.v4 == 1, "IPv4 address", "es"))?;
        }
        if self.v4 > 0 && self.v6 > 0 {
            f.write_str(" and ")?;
        }
        match self.v6 {
            0 => Ok(()),
            few @ ..NETWORK => write!(f, "{few} {}", plural(few == 1, "IPv6 address", "es")),
            many => {
                let networks = many.div_ceil(NETWORK);
                write!(f, "{networks} {} of /64", plural(networks == 1, "IPv6 network", "s"))
            }
        }
    }
}

/// What is not reached over the internet: the special-purpose registries of IANA (RFC 6890), multicast and, of IPv6, all outside
/// of what is given out as global unicast.
static NOT_PUBLIC: LazyLock<Addresses> = LazyLock::new(|| {
    let v4 = [
        ([0, 0, 0, 0], 8),
        ([10, 0, 0, 0], 8),
        ([100, 64, 0, 0], 10),
        ([127, 0, 0, 0], 8),
        ([169, 254, 0, 0], 16),
        ([172, 16, 0, 0], 12),
        ([192, 0, 0, 0], 24),
        ([192, 0, 2, 0], 24),
        ([192, 168, 0, 0], 16),
        ([198, 18, 0, 0], 15),
        ([198, 51, 100, 0], 24),
        ([203, 0, 113, 0], 24),
        ([224, 0, 0, 0], 3),
    ];
    let v6 = [(0, 3), (0x2001_0db8 << 96, 32), (0b010 << 125, 2), (1 << 127, 1)];
    let v4 = v4.map(|(octets, length)| IpNet::from(Ipv4Net::new_assert(octets.into(), length)));
    let v6 = v6.map(|(bits, length)| IpNet::from(Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), length)));
    Addresses::of_nets(v4.iter().chain(&v6))
});

trait Number: Copy + Ord {
    fn next(self) -> Option<Self>;
    /// Not for the first.
    fn before(self) -> Self;
}

impl Number for u32 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn before(self) -> Self {
        self - 1
    }
}

impl Number for u128 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn before(self) -> Self {
        self - 1
    }
}

fn merged<T: Number>(mut ranges: Ranges<T>) -> Ranges<T> {
    ranges.sort_unstable();
    let mut merged: Ranges<T> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if before.1.next().is_none_or(|next| first <= next) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn minus<T: Number>(from: &[(T, T)], away: &[(T, T)]) -> Ranges<T> {
    let mut rest = Vec::with_capacity(from.len());
    let mut away = away.iter().copied().peekable();
    for &(mut first, last) in from {
        let mut some = true;
        while let Some(&(gone, until)) = away.peek() {
            if gone > last {
                break;
            }
            if until >= first {
                if gone > first {
                    rest.push((first, gone.before()));
                }
                match until.next().filter(|next| *next <= last) {
                    Some(next) => first = next,
                    // It may reach into the ranges that follow.
                    None => {
                        some = false;
                        break;
                    }
                }
            }
            away.next();
        }
        if some {
            rest.push((first, last));
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(nets: &[&str]) -> Addresses {
        let nets: Vec<IpNet> = nets.iter().map(|net| net.parse().expect("a prefix")).collect();
        Addresses::of_nets(&nets)
    }

    #[test]
    fn counts() {
        for (nets, count, said) in [
            (&[][..], Count { v4: 0, v6: 0 }, "0 IPv4 addresses"),
            (&["10.0.0.0/32"], Count { v4: 1, v6: 0 }, "1 IPv4 address"),
            (&["10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/25"], Count { v4: 512, v6: 0 }, "512 IPv4 addresses"),
            (&["0.0.0.0/0"], Count { v4: 1 << 32, v6: 0 }, "4294967296 IPv4 addresses"),
            (&["fd00::1/128"], Count { v4: 0, v6: 1 }, "1 IPv6 address"),
            (&["fd00::/64", "fd01::/128"], Count { v4: 0, v6: (1 << 64) + 1 }, "2 IPv6 networks of /64"),
            (&["::/1"], Count { v4: 0, v6: 1 << 127 }, "9223372036854775808 IPv6 networks of /64"),
            (&["::/0"], Count { v4: 0, v6: u128::MAX }, "18446744073709551616 IPv6 networks of /64"),
            (&["10.0.0.0/31", "fd00::/127"], Count { v4: 2, v6: 2 }, "2 IPv4 addresses and 2 IPv6 addresses"),
        ] {
            assert_eq!((of(nets).count(), of(nets).count().to_string().as_str()), (count, said), "{nets:?}");
        }
    }

    #[test]
    fn public_leaves_out_what_is_private() {
        assert_eq!(
            of(&["10.0.0.0/8", "fd00::/8", "2001:db8::/32", "ff02::/16"]).public(),
            Addresses::default()
        );
        assert_eq!(of(&["11.0.0.0/8"]).public(), of(&["11.0.0.0/8"]));
        assert_eq!(of(&["2000::/3"]).public().count().v6, (1 << 125) - (1 << 96));
        assert_eq!(of(&["192.168.0.0/15"]).public(), of(&["192.169.0.0/16"]));
    }

    proptest! {
        #[test]
        fn sets_agree_with_looking_at_each(a in small(), b in small()) {
            let (left, right) = (Addresses::of_nets(&a), Addresses::of_nets(&b));
            let (minus, plus) = (left.minus(&right), left.plus(&right));
            let holds = |nets: &[IpNet], ip: &IpAddr| nets.iter().any(|net| net.contains(ip));
            let mut within = true;
            let mut count = 0;
            for low in 0..=255u8 {
                for ip in [IpAddr::from([10, 0, 0, low]), IpAddr::from([255, 255, 255, low])] {
                    let (in_a, in_b) = (holds(&a, &ip), holds(&b, &ip));
                    prop_assert_eq!(left.contains(ip), in_a);
                    prop_assert_eq!(minus.contains(ip), in_a && !in_b, "{}", ip);
                    prop_assert_eq!(plus.contains(ip), in_a || in_b, "{}", ip);
                    within &= in_b || !in_a;
                    count += u64::from(in_a);
                }
            }
            prop_assert_eq!(left.are_in(&right), within);
            prop_assert_eq!(left.count().v4, count);
            let nets: Vec<IpNet> = left.nets().collect();
            prop_assert_eq!(Addresses::of_nets(&nets), left);
        }
    }

    fn small() -> impl Strategy<Value = Vec<IpNet>> {
        let net = (any::<bool>(), any::<u8>(), 24u8..=32).prop_map(|(high, low, length)| {
            let octets = if high { [255, 255, 255, low] } else { [10, 0, 0, low] };
            IpNet::new_assert(octets.into(), length).trunc()
        });
        proptest::collection::vec(net, 0..8)
    }
}
