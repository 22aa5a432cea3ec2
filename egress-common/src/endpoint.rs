//! A pod on this node, as the kernel sees it.

/// What holds for one governed pod: an element of the endpoints map.
///
/// Each slot has two records, at `2 × slot` and `2 × slot + 1`. The slot's word in the revisions map says which one holds
/// (its lowest bit), so a policy change writes the record nobody reads and then flips with one 64-bit store: a packet sees
/// the old or the new one and nothing between. The agent leaves a record alone until no packet can still be reading it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The word that made this record the current one; see [`record_index`]. Rises with each change to any endpoint of
    /// the node and never repeats, so that a verdict cached under another revision, or by another pod that had the same
    /// slot, is not used. Never 0.
    pub revision: u64,
    /// The endpoint's place among revisions, counters and token buckets; 0 belongs to pods nobody knows.
    pub slot: u32,
    /// The policy set its packets are looked up in; 0 when not governed.
    pub set: u32,
    /// See [`flags`].
    pub flags: u32,
    /// The rule that stands for "denies by default" of the enforcing policies; [`crate::policy::NO_RULE`] if none does.
    pub default_rule: u32,
    /// The same for the audited policies.
    pub audit_default_rule: u32,
    /// The pod's IPv4 address, network byte order in memory; 0 when it has none.
    pub address_v4: u32,
    /// The pod's IPv6 address, network byte order in memory; all zero when it has none.
    pub address_v6: [u32; 4],
}

/// In the pods map, stands for a pod that is known and that no policy governs.
pub const UNGOVERNED: u32 = 0;

/// In the pods map, stands for a pod that is known and whose policy is not known yet, in a namespace that starts in standard
/// mode: its packets pass and are counted among the unprotected ones of pods nobody knows, also on a node in strict mode. Far
/// beyond any slot.
pub const UNPROTECTED: u32 = u32::MAX - 1;

/// Returns the index in the endpoints map of the record that `revision` makes current.
#[must_use]
#[inline(always)]
pub const fn record_index(slot: u32, revision: u64) -> u32 {
    slot.wrapping_mul(2) | (revision & 1) as u32
}

/// Bits of [`Endpoint::flags`].
pub mod flags {
    /// Some policy governs the pod. Without it, its packets pass unseen.
    pub const GOVERNED: u32 = 1;
    /// The set has entries in the exact map.
    pub const HAS_EXACT: u32 = 2;
    /// The set has entries in the LPM map.
    pub const HAS_PREFIXES: u32 = 4;
    /// What no enforcing rule allows is denied.
    pub const DEFAULT_DENY: u32 = 8;
    /// What no rule allows would be denied if the audited policies were enforced.
    pub const AUDIT_DEFAULT_DENY: u32 = 16;
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layout_is_what_the_documentation_draws() {
        assert_eq!(size_of::<Endpoint>(), 48);
        assert_eq!(offset_of!(Endpoint, slot), 8);
        assert_eq!(offset_of!(Endpoint, flags), 16);
        assert_eq!(offset_of!(Endpoint, address_v4), 28);
        assert_eq!(offset_of!(Endpoint, address_v6), 32);
    }
}
