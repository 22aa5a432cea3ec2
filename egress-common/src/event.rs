//! The record of a judged packet, as it travels through the ring buffer.

/// One denied or audited packet, or an allowed one while those are asked for. Rate-limited for each pod; `suppressed` tells how many were not sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// The pod's cgroup id; 0 when the socket is in none.
    pub cgroup: u64,
    /// Source address, network byte order in memory, IPv4 mapped; all zero at the connect hooks.
    pub source: [u32; 4],
    /// Destination address, likewise.
    pub destination: [u32; 4],
    /// The endpoint's slot.
    pub slot: u32,
    /// The deciding rule's slot.
    pub rule: u32,
    /// Bytes of the packet from its IP header on; 0 at the connect hooks.
    pub length: u32,
    /// Source port, network byte order.
    pub source_port_be: u16,
    /// Destination port, network byte order.
    pub destination_port_be: u16,
    /// Events of this pod that were not sent since the last one that was.
    pub suppressed: u32,
    /// The protocol number off the wire.
    pub protocol: u8,
    /// [`crate::verdict::Verdict`].
    pub verdict: u8,
    /// [`crate::verdict::Reason`].
    pub reason: u8,
    /// [`Hook`].
    pub hook: u8,
}

/// Where a packet or call was judged.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A packet on its way out.
    Packet = 1,
    /// A `connect()` call.
    Connect = 2,
    /// A `sendmsg()` call with an address.
    Sendmsg = 3,
}

impl Hook {
    /// The word used in events.
    #[must_use]
    pub const fn name_of(number: u8) -> &'static str {
        match number {
            1 => "packet",
            2 => "connect",
            3 => "sendmsg",
            _ => "unknown",
        }
    }
}

/// How many events a pod may send in one second before the rest are only counted.
pub const EVENTS_PER_SECOND: u32 = 20;

/// How many of these may be about allowed packets, and about audited ones of flows that were told of before. So neither a long
/// transfer nor whoever asks for allowed flows takes the place of what is denied or new.
pub const LESSER_EVENTS_PER_SECOND: u32 = EVENTS_PER_SECOND / 2;

/// A pod's allowance of events: the value of the buckets map. Two processors may race on it; the worst outcome is a few
/// events more or fewer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When the current second began, in kernel ticks.
    pub window: u64,
    /// Events sent in it.
    pub used: u32,
    /// Events not sent since the last one that was.
    pub suppressed: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layouts_are_what_the_documentation_draws() {
        assert_eq!(size_of::<Event>(), 72);
        assert_eq!(offset_of!(Event, slot), 48);
        assert_eq!(offset_of!(Event, source_port_be), 60);
        assert_eq!(offset_of!(Event, protocol), 68);
        assert_eq!(size_of::<Bucket>(), 16);
    }
}
