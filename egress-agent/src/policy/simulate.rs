//! Looks a flow up as the kernel does, in a policy set or in numbered entries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_common::{
    decide::{At, decide},
    endpoint::{Endpoint, flags},
    policy::{AddressKey, NEVER, NO_RULE, RuleEntry, Span, normal_protocol, port_key},
    v4_mapped,
    verdict::{Decision, Reason, Verdict},
    words,
};

use super::{
    compile::{Addresses, Compiled, PolicySet},
    entries::Numbered,
    flow::{Answer, Flow},
};

/// Returns the verdict on `flow` of the pod that `compiled` was made for, at `now` (seconds since the epoch).
#[must_use]
pub fn simulate(compiled: &Compiled, flow: &Flow, now: u64) -> Answer {
    let Some(set) = &compiled.set else {
        return Answer { verdict: Verdict::Allow, reason: Reason::Ungoverned, rule: None };
    };
    let endpoint = unnumbered(set, compiled.addresses);
    let decision =
        judge(&endpoint, flow, now, |key| list_of(set, key).map(|list| set.lists[list as usize].as_slice()));
    Answer { verdict: decision.verdict, reason: decision.reason, rule: set.rule(decision.rule).cloned() }
}

/// Returns the verdict on `flow` of `endpoint`, whose packets are looked up in `set`, at `now`. The decision's rule is a slot.
///
/// # Panics
/// When the endpoint names another set, or the set's spans leave its block.
pub fn simulate_entries(set: Option<&Numbered>, endpoint: &Endpoint, flow: &Flow, now: u64) -> Decision {
    assert_eq!(endpoint.set, set.map_or(0, |set| set.id), "an endpoint is judged by its own set");
    judge(endpoint, flow, now, |octets| {
        let set = set?;
        let span = span_of(set, endpoint.flags, AddressKey { set: set.id, address: words(octets) })?;
        if span.length == 0 {
            // It has no place, so its offset says nothing.
            return Some(&[][..]);
        }
        let start = (span.offset - set.block.offset) as usize;
        Some(&set.rules[start..start + span.length as usize])
    })
}

/// Returns an endpoint for a set whose rules have no slots: local numbers stand in for them.
fn unnumbered(set: &PolicySet, addresses: Addresses) -> Endpoint {
    let mut endpoint = endpoint_of(addresses);
    endpoint.flags = set_flags(set);
    endpoint.default_rule = set.default_deny.unwrap_or(NO_RULE);
    endpoint.audit_default_rule = set.audit_default_deny.unwrap_or(NO_RULE);
    endpoint
}

/// Returns an ungoverned endpoint with these addresses.
pub(super) fn endpoint_of(addresses: Addresses) -> Endpoint {
    Endpoint {
        revision: 0,
        slot: 0,
        set: 0,
        flags: 0,
        default_rule: NO_RULE,
        audit_default_rule: NO_RULE,
        address_v4: addresses.v4.map_or(0, |v4| u32::from_ne_bytes(v4.octets())),
        address_v6: addresses.v6.map_or([0; 4], |v6| words(v6.octets())),
    }
}

/// Returns the flags of an endpoint that `set` governs.
pub(super) fn set_flags(set: &PolicySet) -> u32 {
    let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
    flags::GOVERNED
        | flag(!set.exact.is_empty(), flags::HAS_EXACT)
        | flag(!set.prefixes.is_empty(), flags::HAS_PREFIXES)
        | flag(set.default_deny.is_some(), flags::DEFAULT_DENY)
        | flag(set.audit_default_deny.is_some(), flags::AUDIT_DEFAULT_DENY)
}

/// A rule entry, with its place in the map or without.
trait AsEntry {
    fn entry(&self) -> &RuleEntry;
}

impl AsEntry for RuleEntry {
    fn entry(&self) -> &RuleEntry {
        self
    }
}

impl AsEntry for (u32, RuleEntry) {
    fn entry(&self) -> &RuleEntry {
        &self.1
    }
}

fn judge<'a, E: AsEntry + 'a>(
    endpoint: &Endpoint,
    flow: &Flow,
    now: u64,
    list: impl FnOnce([u8; 16]) -> Option<&'a [E]>,
) -> Decision {
    let pass = |reason| Decision { verdict: Verdict::Allow, reason, rule: NO_RULE, valid_until: NEVER };
    if endpoint.flags & flags::GOVERNED == 0 {
        return pass(Reason::Ungoverned);
    }
    if is_local(endpoint, flow.destination) {
        return pass(Reason::Local);
    }
    let protocol = normal_protocol(flow.protocol, flow.destination.is_ipv6());
    let key = port_key(protocol, flow.port);
    let entry = list(key_octets(flow.destination)).and_then(|entries| {
        let after = entries.partition_point(|entry| entry.entry().low <= key);
        entries[..after].last().map(AsEntry::entry).filter(|entry| key <= entry.high)
    });
    decide(entry, endpoint, &At(now))
}

fn is_local(endpoint: &Endpoint, destination: IpAddr) -> bool {
    let own = match destination {
        IpAddr::V4(v4) => {
            u32::from_ne_bytes(v4.octets()) == endpoint.address_v4 && v4 != Ipv4Addr::UNSPECIFIED
        }
        IpAddr::V6(v6) => words(v6.octets()) == endpoint.address_v6 && v6 != Ipv6Addr::UNSPECIFIED,
    };
    destination.is_loopback() || own
}

fn key_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => egress_common::octets(v4_mapped(v4.octets())),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Returns `octets` with all bits after the first `length` cleared.
fn prefix(octets: [u8; 16], length: u8) -> [u8; 16] {
    let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
    (u128::from_be_bytes(octets) & mask).to_be_bytes()
}

/// Returns the shortest prefix a lookup of an address may meet: IPv4 does not see the IPv6 prefixes around its room.
fn shortest(octets: [u8; 16]) -> u8 {
    const ROOM: u8 = 96;
    if prefix(octets, ROOM) == key_octets(Ipv4Addr::UNSPECIFIED.into()) { ROOM } else { 0 }
}

/// The exact map, then the longest prefix.
fn list_of(set: &PolicySet, octets: [u8; 16]) -> Option<u32> {
    if let Ok(place) = set.exact.binary_search_by_key(&octets, |(address, _)| *address) {
        return Some(set.exact[place].1);
    }
    (shortest(octets)..=128).rev().find_map(|length| {
        let wanted = (prefix(octets, length), length);
        let place = set.prefixes.binary_search_by_key(&wanted, |(address, length, _)| (*address, *length));
        place.ok().map(|place| set.prefixes[place].2)
    })
}

/// The same in numbered entries, which are searched one by one: their keys are in map order, not in address order.
fn span_of(set: &Numbered, has: u32, key: AddressKey) -> Option<Span> {
    if has & flags::HAS_EXACT != 0
        && let Some((_, span)) = set.exact.iter().find(|(exact, _)| *exact == key)
    {
        return Some(*span);
    }
    if has & flags::HAS_PREFIXES == 0 {
        return None;
    }
    let octets = egress_common::octets(key.address);
    let holds = |bits: u32, address: [u32; 4]| {
        u8::try_from(bits - 32).is_ok_and(|length| {
            length >= shortest(octets) && prefix(octets, length) == egress_common::octets(address)
        })
    };
    let around =
        set.prefixes.iter().filter(|(bits, around, _)| around.set == key.set && holds(*bits, around.address));
    around.max_by_key(|(bits, _, _)| *bits).map(|(_, _, span)| *span)
}
