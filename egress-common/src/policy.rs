//! A policy set in the maps: which addresses it knows, and which ports at them meet which verdict.
//!
//! A set is compiled for an endpoint and never changes while in use. Two maps turn `(set, address)` into a span of
//! [`RuleEntry`]s; the entries of a span are sorted by their key range and do not overlap, so one binary search finds the
//! only one that can match. Everything that several rules say about one address and port is folded into that entry when
//! the set is compiled; the kernel never combines.

/// The slot number that stands for no rule.
pub const NO_RULE: u32 = 0;

/// A deadline that is never reached.
pub const NEVER: u64 = u64::MAX;

/// Which set, which address. The key of the exact map, and the data behind the prefix length in the LPM map.
///
/// In the LPM map the prefix length counts from the first bit of `set`: 32 bits of set, then the address; every entry has at
/// least 32. The lookup uses [`ADDRESS_KEY_BITS`]. One LPM lookup follows one exact lookup, and an exact hit is final.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressKey {
    /// Policy set id, native byte order; 0 is never a set. Written by the agent.
    pub set: u32,
    /// Destination, network byte order in memory; IPv4 as `::ffff:a.b.c.d`.
    pub address: [u32; 4],
}

/// The prefix length of a whole [`AddressKey`], in bits.
pub const ADDRESS_KEY_BITS: u32 = 160;

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
    fn icmp_of_the_other_family_is_no_icmp() {
        assert_eq!(normal_protocol(ICMPV6, true), ICMP);
        assert_ne!(normal_protocol(ICMP, true), ICMP);
        assert_eq!(normal_protocol(ICMP, false), ICMP);
        assert_eq!(normal_protocol(ICMPV6, false), ICMPV6);
    }
}
