//! The lookup: destination and ports of a governed pod to a decision. The same steps as `policy::simulate` in the agent.

use aya_ebpf::{btf_maps::lpm_trie::Key, helpers::generated::bpf_jiffies64};
use egress_common::{
    V4_MAPPED_WORD,
    config::setting as index,
    decide::{Clock, decide},
    endpoint::{Endpoint, flags},
    policy::{
        ADDRESS_KEY_BITS, AddressKey, RuleEntry, Span, TRIE_IPV4, TRIE_IPV4_BITS, normal_protocol, port_key,
    },
    verdict::Decision,
};

use crate::maps::{EXACT, PREFIXES, RULES, setting, ticks_per_second};

/// The wall clock in ticks: `jiffies64` and what the agent says must be added.
pub struct Ticks;

impl Clock for Ticks {
    #[inline(always)]
    fn reached(&self, deadline: u64) -> bool {
        let now = jiffies().wrapping_add(setting(index::CLOCK_OFFSET));
        now >= deadline.wrapping_mul(ticks_per_second())
    }
}

/// Ticks since boot.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: the helper takes nothing and returns a number.
    unsafe { bpf_jiffies64() }
}

/// Whether `destination` is loopback, or stands for it in a call (the unspecified address).
#[inline(always)]
pub fn is_loopback(destination: &[u32; 4]) -> bool {
    const LOOPBACK_V6: u32 = 1u32.to_be();
    if destination[0] | destination[1] != 0 {
        return false;
    }
    if destination[2] == V4_MAPPED_WORD {
        return destination[3].to_ne_bytes()[0] == 127;
    }
    destination[2] == 0 && destination[3] == LOOPBACK_V6
}

/// Whether `destination` is the pod's own address.
#[inline(always)]
pub fn is_own(endpoint: &Endpoint, destination: &[u32; 4]) -> bool {
    if destination[0] | destination[1] == 0 && destination[2] == V4_MAPPED_WORD {
        return destination[3] == endpoint.address_v4 && endpoint.address_v4 != 0;
    }
    let own = &endpoint.address_v6;
    destination[0] == own[0]
        && destination[1] == own[1]
        && destination[2] == own[2]
        && destination[3] == own[3]
        && own[0] | own[1] | own[2] | own[3] != 0
}

/// Whether a packet stays in the pod: it goes to loopback or to the pod's own address, and comes from there too. A packet that
/// claims to come from elsewhere would make the pod's kernel answer to that place.
///
/// `endpoint` is `None` for a pod that is not known, of which only loopback is.
#[inline(always)]
pub fn is_local(endpoint: Option<&Endpoint>, source: &[u32; 4], destination: &[u32; 4]) -> bool {
    let here = |address: &[u32; 4]| {
        is_loopback(address) || endpoint.is_some_and(|endpoint| is_own(endpoint, address))
    };
    here(destination) && here(source)
}

/// Looks a destination up in the endpoint's set and decides.
///
/// 1. The exact map, if the set has such entries; a hit is final, since the compiler folded every wider prefix into it.
/// 2. Otherwise the longest prefix, if the set has prefixes.
/// 3. Among the span's entries, the one whose range holds protocol and port.
/// 4. [`decide`].
#[inline(always)]
pub fn judge(
    endpoint: &Endpoint,
    destination: &[u32; 4],
    protocol: u8,
    port_be: u16,
    ipv6: bool,
) -> Decision {
    let key = port_key(normal_protocol(protocol, ipv6), u16::from_be(port_be));
    decide(find(endpoint, destination, key, ipv6), endpoint, &Ticks)
}

#[inline(always)]
fn find(endpoint: &Endpoint, destination: &[u32; 4], key: u32, ipv6: bool) -> Option<&'static RuleEntry> {
    let address = AddressKey { set: endpoint.set, address: *destination };
    let mut span: Option<&Span> = None;
    if endpoint.flags & flags::HAS_EXACT != 0 {
        // SAFETY: an entry is never changed or removed while an endpoint in force uses its set.
        span = unsafe { EXACT.get(address) };
    }
    if span.is_none() && endpoint.flags & flags::HAS_PREFIXES != 0 {
        span = PREFIXES.get(TrieKey::new(endpoint.set, destination, ipv6).as_key());
    }
    let span = span?;
    // No rule is an index beyond the last.
    RULES.get(find_rule(span.offset, span.length, key))
}

/// A key of the LPM map, in the form [`egress_common::policy::in_trie`] gives prefixes.
///
/// The kernel reads set and first word in one load of eight bytes. They are written as one, too: a load that takes its bytes
/// from two recent stores has to wait for both to reach the cache.
#[repr(C, align(8))]
struct TrieKey {
    /// Moves what follows the prefix length to a multiple of eight.
    pad: u32,
    bits: u32,
    set_and_first: u64,
    rest: [u32; 3],
}

const _: () = assert!(cfg!(target_endian = "little"), "`set_and_first` has the set in its first bytes");
const _: () = assert!(
    core::mem::offset_of!(TrieKey, rest) - core::mem::offset_of!(TrieKey, bits) + size_of::<[u32; 3]>()
        == size_of::<Key<AddressKey>>()
);

impl TrieKey {
    #[inline(always)]
    fn new(set: u32, address: &[u32; 4], ipv6: bool) -> Self {
        let join = |set: u32, first: u32| u64::from(set) | (u64::from(first) << 32);
        if ipv6 {
            let [first, second, third, fourth] = *address;
            let rest = [second, third, fourth];
            Self { pad: 0, bits: ADDRESS_KEY_BITS, set_and_first: join(set, first), rest }
        } else {
            let set_and_first = join(set | TRIE_IPV4, address[3]);
            Self { pad: 0, bits: TRIE_IPV4_BITS, set_and_first, rest: [0; 3] }
        }
    }

    #[inline(always)]
    fn as_key(&self) -> &Key<AddressKey> {
        let behind_pad = core::mem::offset_of!(Self, bits);
        // SAFETY: from `bits` on the fields have the size and the meaning of those of a key, without padding between them; the
        // whole of `self` is borrowed.
        unsafe { &*core::ptr::from_ref(self).byte_add(behind_pad).cast() }
    }
}

/// What [`find_rule`] returns when there is none: no map has so many elements.
const NO_ENTRY: u32 = u32::MAX;

/// Finds the entry that holds `key` among `length` sorted, disjoint ones from `offset` on; returns its index, or [`NO_ENTRY`].
///
/// A global function takes and returns numbers only, and the verifier walks it once by itself, for all numbers. As part of the
/// program it was walked for every way that leads here, which came to more than half of what Linux 6.1 permits. The call costs
/// nothing that could be measured.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_rule(offset: u32, length: u32, key: u32) -> u32 {
    let (mut low, mut high) = (0u32, length);
    let mut steps = 0;
    // 2^20 entries are more than the map can hold, so the bound never cuts a search short.
    while steps < 20 {
        steps += 1;
        if low >= high {
            return NO_ENTRY;
        }
        let middle = low + (high - low) / 2;
        let index = offset.wrapping_add(middle);
        let Some(entry) = RULES.get(index) else { return NO_ENTRY };
        if key < entry.low {
            high = middle;
        } else if key > entry.high {
            low = middle + 1;
        } else {
            return index;
        }
    }
    NO_ENTRY
}
