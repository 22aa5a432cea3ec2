//! Names and default sizes of the maps, and the small values that have no module of their own.

/// Packets and bytes. The value of both counter maps, one copy for each processor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
}

/// Indices of the node counters map.
pub mod node_counter {
    /// Events held back by a pod's allowance.
    pub const EVENTS_SUPPRESSED: u32 = 0;
    /// Events that found the ring buffer full.
    pub const EVENTS_LOST: u32 = 1;
    /// Verdicts that could not be kept in a socket for want of memory.
    pub const STORE_FAILED: u32 = 2;
    /// How many there are.
    pub const COUNT: u32 = 3;
}

/// The names of the maps, in the object and under the pin folder.
pub mod name {
    /// HASH: cgroup id (`u64`) to slot (`u32`), [`crate::endpoint::UNGOVERNED`] or [`crate::endpoint::UNPROTECTED`].
    pub const PODS: &str = "PODS";
    /// ARRAY: slot to the revision in force (`u64`).
    pub const REVISIONS: &str = "REVISIONS";
    /// ARRAY: [`crate::endpoint::record_index`] to [`crate::endpoint::Endpoint`].
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// HASH: [`crate::policy::AddressKey`] to [`crate::policy::Span`].
    pub const EXACT: &str = "EXACT";
    /// LPM_TRIE: prefix length and [`crate::policy::AddressKey`], as [`crate::policy::in_trie`] makes them, to [`crate::policy::Span`].
    pub const PREFIXES: &str = "PREFIXES";
    /// ARRAY: index to [`crate::policy::RuleEntry`].
    pub const RULES: &str = "RULES";
    /// SK_STORAGE: socket to [`crate::socket::SocketState`].
    pub const SOCKETS: &str = "SOCKETS";
    /// LRU_HASH: [`crate::socket::ReplyKey`] to `jiffies64` and [`crate::socket::POD_FIRST`] (`u64`).
    pub const REPLIES: &str = "REPLIES";
    /// PERCPU_ARRAY: slot × [`crate::verdict::CLASSES`] + class to [`super::Counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// PERCPU_ARRAY: rule slot to [`super::Counter`].
    pub const RULE_COUNTERS: &str = "RULE_COUNTERS";
    /// ARRAY: rule slot to the identity of the rule it stands for (`u64`). For the agent that takes over; no program reads it.
    pub const RULE_IDENTITIES: &str = "RULE_IDENTITIES";
    /// PERCPU_ARRAY: [`super::node_counter`] to `u64`.
    pub const NODE_COUNTERS: &str = "NODE_COUNTERS";
    /// PERCPU_ARRAY: socket cookie modulo [`super::RECENT`] to the last such cookie (`u64`): tells a socket's second packet
    /// from its first, because keeping a verdict pays only from then on.
    pub const RECENT: &str = "RECENT";
    /// ARRAY: slot to [`crate::event::Bucket`].
    pub const BUCKETS: &str = "BUCKETS";
    /// RINGBUF: [`crate::event::Event`].
    pub const EVENTS: &str = "EVENTS";
    /// ARRAY: [`crate::config::setting`] to `u64`.
    pub const SETTINGS: &str = "SETTINGS";
}

/// How many cookies the recent map remembers on each processor. A power of two.
pub const RECENT: u32 = 1024;

/// Entries each map holds unless the agent is told otherwise.
pub mod capacity {
    /// Pods known at once, and with them slots.
    pub const ENDPOINTS: u32 = 512;
    /// Addresses (/32 and /128) over all sets.
    pub const EXACT: u32 = 131_072;
    /// Prefixes over all sets.
    pub const PREFIXES: u32 = 131_072;
    /// Rule entries over all sets.
    pub const RULES: u32 = 32_768;
    /// Rule slots: destinations that can be told apart in counters and events.
    pub const RULE_SLOTS: u32 = 16_384;
    /// Peers whose datagrams permit an answer.
    pub const REPLIES: u32 = 16_384;
    /// Bytes of the event ring: 3 276 records of 80 bytes, what 160 pods may tell in a second. A reader has it mapped twice.
    pub const EVENT_BYTES: u32 = 1 << 18;
}

#[cfg(feature = "user")]
mod pod {
    use crate::{
        endpoint::Endpoint,
        event::{Bucket, Event},
        maps::Counter,
        policy::{AddressKey, RuleEntry, Span},
        socket::{ReplyKey, SocketState},
    };

    macro_rules! plain_old_data {
        ($($name:ty),* $(,)?) => {
            // SAFETY: each is `repr(C)`, `Copy`, made of integers and arrays of them, and has no implicit padding (its
            // layout test pins the size), so every bit pattern is a value and every byte is initialised.
            $(unsafe impl aya::Pod for $name {})*
        };
    }
    plain_old_data!(Endpoint, Bucket, Event, Counter, AddressKey, RuleEntry, Span, ReplyKey, SocketState);
}
