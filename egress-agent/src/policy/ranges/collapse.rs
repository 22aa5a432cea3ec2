//! The fewest CIDRs for a set of addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The address of a network, as a number.
pub(super) trait Bits: Copy + Ord {
    /// Returns the address with every bit after the first `length` cleared.
    fn cut(self, length: u8) -> Self;
}

impl Bits for u32 {
    fn cut(self, length: u8) -> Self {
        self & Self::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
    }
}

impl Bits for u128 {
    fn cut(self, length: u8) -> Self {
        self & Self::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
    }
}

/// Sorts networks and leaves the fewest that hold the same addresses.
///
/// It is one pass over the sorted list: what lies inside its predecessor goes, and two halves become the whole, which may be the half
/// of another one.
pub(super) fn collapse<B: Bits>(nets: &mut Vec<(B, u8)>) {
    nets.sort_unstable();
    let mut kept = 0;
    for next in 0..nets.len() {
        let (mut bits, mut length) = nets[next];
        if kept > 0 {
            let (outer, outer_length) = nets[kept - 1];
            if outer_length <= length && bits.cut(outer_length) == outer {
                continue;
            }
        }
        while kept > 0 && length > 0 && nets[kept - 1] == (bits.cut(length - 1), length) {
            (bits, length) = (bits.cut(length - 1), length - 1);
            kept -= 1;
        }
        nets[kept] = (bits, length);
        kept += 1;
    }
    nets.truncate(kept);
}

/// Returns the networks with the given addresses, which have no host bits.
pub(super) fn nets(v4: &[(u32, u8)], v6: &[(u128, u8)]) -> Vec<IpNet> {
    let mut nets = Vec::with_capacity(v4.len() + v6.len());
    nets.extend(v4.iter().map(|&(bits, length)| IpNet::V4(v4_net(bits, length))));
    nets.extend(v6.iter().map(|&(bits, length)| IpNet::V6(v6_net(bits, length))));
    nets
}

pub(super) fn v4_net(bits: u32, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::from(bits), length)
}

pub(super) fn v6_net(bits: u128, length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::from(bits), length)
}

/// Returns the fewest networks that hold the addresses of `all`: IPv4 first, each family in order. Host bits are dropped.
#[must_use]
pub fn collapsed(all: &[IpNet]) -> Vec<IpNet> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for net in all {
        match net.trunc() {
            IpNet::V4(net) => v4.push((u32::from(net.addr()), net.prefix_len())),
            IpNet::V6(net) => v6.push((u128::from(net.addr()), net.prefix_len())),
        }
    }
    collapse(&mut v4);
    collapse(&mut v6);
    nets(&v4, &v6)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4() -> impl Strategy<Value = IpNet> {
        // Few addresses and many lengths, so that networks meet: /0 and /32 are among them.
        (prop_oneof![0..64_u32, (0..64_u32).prop_map(|n| n << 26), Just(u32::MAX)], 0..=32_u8)
            .prop_map(|(bits, length)| IpNet::V4(v4_net(bits, length).trunc()))
    }

    fn v6() -> impl Strategy<Value = IpNet> {
        (prop_oneof![0..64_u128, (0..64_u128).prop_map(|n| n << 122), Just(u128::MAX)], 0..=128_u8)
            .prop_map(|(bits, length)| IpNet::V6(v6_net(bits, length).trunc()))
    }

    proptest! {
        #[test]
        fn is_what_another_implementation_says(nets in prop::collection::vec(prop_oneof![v4(), v6()], 0..40)) {
            let mut expected = IpNet::aggregate(&nets);
            expected.sort();
            prop_assert_eq!(collapsed(&nets), expected);
        }
    }

    #[test]
    fn halves_of_halves_become_one() {
        let nets: Vec<IpNet> = ["10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/25", "10.0.0.7/32", "10.0.2.0/24"]
            .map(|net| net.parse().expect("a network"))
            .to_vec();
        let text: Vec<String> = collapsed(&nets).iter().map(ToString::to_string).collect();
        assert_eq!(text, ["10.0.0.0/24", "10.0.2.0/24"]);
        assert_eq!(collapsed(&[]), []);
    }
}
