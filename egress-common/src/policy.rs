//! A policy set in the maps: which addresses it knows, and which ports at them meet which verdict.
//!
//! A set is compiled for an endpoint and never changes while in use. Two maps turn `(set, address)` into a span of
//! [`RuleEntry`]s; the entries of a span are sorted by their key range and do not overlap, so one binary search finds the
//! only one that can match. Everything that several rules say about one address and port is folded into that entry when
//! the set is compiled; the kernel never combines.

use crate::V4_MAPPED_WORD;

/// The slot number that stands for no rule.
pub const NO_RULE: u32 = 0;

/// A deadline that is never reached.
pub const NEVER: u64 = u64::MAX;

/// Which set, which address. The key of the exact map; in the LPM map it stands in another form, see [`in_trie`].
///
/// A prefix length counts from the first bit of `set`: 32 bits of set, then the address; every entry has at least 32. One LPM
/// lookup follows one exact lookup, and an exact hit is final.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressKey {
    /// Policy set id, native byte order; 0 is never a set, and [`TRIE_IPV4`] is in none. Written by the agent.
    pub set: u32,
    /// Destination, network byte order in memory; IPv4 as `::ffff:a.b.c.d`.
    pub address: [u32; 4],
}

/// The prefix length of a whole [`AddressKey`], in bits: what a lookup of an IPv6 address asks with.
pub const ADDRESS_KEY_BITS: u32 = 160;

/// The bit of the set id that tells IPv4 from IPv6 in the LPM map.
pub const TRIE_IPV4: u32 = 1 << 31;

/// The prefix length of a set id and an IPv4 address: what a lookup of one asks with.
pub const TRIE_IPV4_BITS: u32 = 64;

/// How many bits of a mapped IPv4 address say that it is one.
const MAPPED_BITS: u32 = 96;

/// Returns a prefix in the form the LPM map holds it: of IPv4, the address stands right behind the set id, which has the bit
/// [`TRIE_IPV4`], and the prefix is 96 bits shorter.
///
/// The kernel compares eight bytes, then four at a time, at each node of its walk. So an IPv4 address takes one step and not
/// four.
#[must_use]
pub const fn in_trie(bits: u32, key: AddressKey) -> (u32, AddressKey) {
    let [first, second, third, fourth] = key.address;
    if first | second != 0 || third != V4_MAPPED_WORD || bits < 32 + MAPPED_BITS {
        return (bits, key);
    }
    (bits - MAPPED_BITS, AddressKey { set: key.set | TRIE_IPV4, address: [fourth, 0, 0, 0] })
}

/// The inverse of [`in_trie`].
#[must_use]
pub const fn out_of_trie(bits: u32, key: AddressKey) -> (u32, AddressKey) {
    if key.set & TRIE_IPV4 == 0 {
        return (bits, key);
    }
    let address = [0, 0, V4_MAPPED_WORD, key.address[0]];
    (bits + MAPPED_BITS, AddressKey { set: key.set & !TRIE_IPV4, address })
}

/// Where the rules of an address stand in the rules map. The value of the exact and the LPM map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// Index of the first [`RuleEntry`].
    pub offset: u32,
    /// How many there are; 0 means that no rule speaks for the address.
    pub length: u32,
}

/// The places of the four candidates in a [`RuleEntry`], in the order the decision asks them.
pub mod candidate {
    /// A denied destination of an enforcing policy.
    pub const DENY: usize = 0;
    /// An allowed destination of an enforcing policy.
    pub const ALLOW: usize = 1;
    /// A denied destination of an audited policy.
    pub const AUDIT_DENY: usize = 2;
    /// An allowed destination of an audited policy.
    pub const AUDIT_ALLOW: usize = 3;
}

/// What a set says about one range of protocol and port at one address: 56 bytes, inside one cache line.
///
/// Of several rules of one kind that match, the entry holds the one that lives longest, because if that one has expired all
/// have; among equals the first in policy order. So four candidates suffice, whatever the policies are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleEntry {
    /// First [`port_key`] of the range.
    pub low: u32,
    /// Last [`port_key`] of the range, included.
    pub high: u32,
    /// Rule slots by [`candidate`]; [`NO_RULE`] where there is none.
    pub rules: [u32; 4],
    /// Until when each candidate is active, in seconds since the epoch (it no longer is at that second); [`NEVER`] for always.
    pub deadlines: [u64; 4],
}

/// The first key of all: protocol 0, port 0.
pub const LOWEST_PORT_KEY: u32 = 0;
/// The last key of all: protocol 255, port 65535.
pub const HIGHEST_PORT_KEY: u32 = 0x00ff_ffff;

/// Joins protocol and destination port (host order; 0 for protocols without ports) into the number rule ranges are about.
///
/// `protocol` has gone through [`normal_protocol`].
#[must_use]
#[inline(always)]
pub const fn port_key(protocol: u8, port: u16) -> u32 {
    ((protocol as u32) << 16) | port as u32
}

/// ICMP for IPv4, and the number under which rules name ICMP for both families.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;
/// SCTP.
pub const SCTP: u8 = 132;

/// Turns a protocol number off the wire into the one rules use: in IPv6, ICMPv6 becomes [`ICMP`], and what calls itself
/// ICMP inside IPv6 takes ICMPv6's number, so that no rule that says ICMP covers it.
#[must_use]
#[inline(always)]
pub const fn normal_protocol(protocol: u8, ipv6: bool) -> u8 {
    match (protocol, ipv6) {
        (ICMPV6, true) => ICMP,
        (ICMP, true) => ICMPV6,
        _ => protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{v4_mapped, words};
    use core::mem::{offset_of, size_of};

    #[test]
    fn layouts_are_what_the_documentation_draws() {
        assert_eq!(size_of::<AddressKey>(), 20);
        assert_eq!(offset_of!(AddressKey, address), 4);
        assert_eq!(size_of::<AddressKey>() * 8, ADDRESS_KEY_BITS as usize);
        assert_eq!(size_of::<Span>(), 8);
        assert_eq!(size_of::<RuleEntry>(), 56);
        assert_eq!(offset_of!(RuleEntry, rules), 8);
        assert_eq!(offset_of!(RuleEntry, deadlines), 24);
    }

    #[test]
    fn a_prefix_comes_out_of_the_trie_as_it_went_in() {
        let key = |octets| AddressKey { set: 7, address: words(octets) };
        let v4 = AddressKey { set: 7, address: v4_mapped([192, 0, 2, 0]) };
        assert_eq!(
            in_trie(32 + 96 + 24, v4),
            (56, AddressKey { set: 7 | TRIE_IPV4, address: [u32::from_ne_bytes([192, 0, 2, 0]), 0, 0, 0] })
        );
        let all_v4 = AddressKey { set: 7, address: v4_mapped([0; 4]) };
        assert_eq!(in_trie(128, all_v4).0, 32, "the set and the family are always compared");
        assert_eq!(in_trie(160, v4).0, TRIE_IPV4_BITS);
        let mut v6 = [0; 16];
        v6[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        for (bits, plain) in [(32, key([0; 16])), (64, key(v6)), (160, key(v6)), (127, all_v4)] {
            assert_eq!(in_trie(bits, plain), (bits, plain), "IPv6 stays as it is");
        }
        for (bits, plain) in [(128, all_v4), (152, v4), (160, v4), (32, key([0; 16])), (64, key(v6))] {
            let (trie_bits, trie) = in_trie(bits, plain);
            assert_eq!(out_of_trie(trie_bits, trie), (bits, plain));
        }
    }

    #[test]
    fn icmp_of_the_other_family_is_no_icmp() {
        assert_eq!(normal_protocol(ICMPV6, true), ICMP);
        assert_ne!(normal_protocol(ICMP, true), ICMP);
        assert_eq!(normal_protocol(ICMP, false), ICMP);
        assert_eq!(normal_protocol(ICMPV6, false), ICMPV6);
    }
}
