//! Numbers policy sets for the maps.

use egress_common::policy::{AddressKey, RuleEntry, Span};

/// A stretch of the rules map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block {
    /// Index of its first entry.
    pub offset: u32,
    /// How many entries it has.
    pub length: u32,
}

/// A policy set as it stands in the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Its id.
    pub id: u32,
    /// The place of its rule entries.
    pub block: Block,
    /// Entries of the exact map.
    pub exact: Vec<(AddressKey, Span)>,
    /// Entries of the LPM map: prefix length in bits (32 for the set, then the address), key, value.
    pub prefixes: Vec<(u32, AddressKey, Span)>,
    /// Entries of the rules map by index, ascending, all of `block`. Their rules are slots.
    pub rules: Vec<(u32, RuleEntry)>,
}
