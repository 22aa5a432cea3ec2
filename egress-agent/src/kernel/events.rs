//! Denied and audited packets, out of the ring buffer.

use std::{io, net::IpAddr};

use aya::maps::{MapData, RingBuf};
use egress_common::{
    V4_MAPPED_WORD,
    event::{Event, Hook},
    octets,
    policy::{ICMP, ICMPV6, SCTP, TCP, UDP},
    verdict::{Reason, Verdict},
};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{Interest, unix::AsyncFd};

/// The ring the programs write events to.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// One event, in the agent's terms. Names of pod and rule are added by whoever knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denial {
    /// When, in seconds and nanoseconds since the epoch.
    pub time: (u64, u32),
    /// The pod's cgroup id.
    pub cgroup: u64,
    /// The endpoint's slot; 0 for pods nobody knows.
    pub slot: u32,
    /// The deciding rule's slot.
    pub rule: u32,
    /// Audit or deny.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Where it was judged: `packet`, `connect` or `sendmsg`.
    pub hook: &'static str,
    /// Protocol number off the wire.
    pub protocol: u8,
    /// Source address; unspecified at the connect hooks.
    pub source: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
    /// Bytes of the packet; 0 at the connect hooks.
    pub bytes: u32,
    /// Events of this pod that were held back before this one.
    pub suppressed: u32,
}

impl Events {
    /// Starts to read. It must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the runtime cannot watch the ring.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the ring owns its descriptor, returns the same one each time and closes it only when dropped.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        Ok(Self { ring: ring.map_err(io::Error::from)? })
    }

    /// Waits for events and hands each to `receive`; returns how many there were and how many records had another shape.
    ///
    /// # Errors
    ///
    /// When the ring can no longer be watched.
    pub async fn receive(&mut self, mut receive: impl FnMut(Denial)) -> io::Result<Received> {
        /// So that a flood of events cannot keep the agent from its other duties.
        const AT_ONCE: usize = 256;
        let mut guard = self.ring.readable_mut().await?;
        let now = (nanoseconds(ClockId::Realtime), nanoseconds(ClockId::Monotonic));
        let ring = guard.get_inner_mut();
        let mut received = Received::default();
        while received.events + received.malformed < AT_ONCE {
            let Some(record) = ring.next() else {
                guard.clear_ready();
                break;
            };
            match decode(&record, now) {
                Some(denial) => {
                    received.events += 1;
                    receive(denial);
                }
                None => received.malformed += 1,
            }
        }
        Ok(received)
    }
}

/// What came out of the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Events.
    pub events: usize,
    /// Records of another size, or with a verdict or reason this agent does not know: another version's.
    pub malformed: usize,
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).expect("the clock is past 1970");
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).expect("nanoseconds are not negative")
}

/// Reads a record; `now` is the wall clock and the monotonic one, in nanoseconds.
fn decode(record: &[u8], now: (u64, u64)) -> Option<Denial> {
    if record.len() != size_of::<Event>() {
        return None;
    }
    // SAFETY: the length is that of `Event`, for which every bit pattern is a value; the read does not need alignment.
    let event: Event = unsafe { std::ptr::read_unaligned(record.as_ptr().cast()) };
    let age = now.1.saturating_sub(event.time_ns);
    let time = now.0.saturating_sub(age);
    Some(Denial {
        time: (time / 1_000_000_000, u32::try_from(time % 1_000_000_000).expect("less than a second")),
        cgroup: event.cgroup,
        slot: event.slot,
        rule: event.rule,
        verdict: Verdict::from_number(event.verdict)?,
        reason: Reason::from_number(event.reason)?,
        hook: Hook::name_of(event.hook),
        protocol: event.protocol,
        source: address(event.source),
        source_port: u16::from_be(event.source_port_be),
        destination: address(event.destination),
        destination_port: u16::from_be(event.destination_port_be),
        bytes: event.length,
        suppressed: event.suppressed,
    })
}

/// The address in a key or event.
#[must_use]
pub fn address(words: [u32; 4]) -> IpAddr {
    let bytes = octets(words);
    if words[0] | words[1] == 0 && words[2] == V4_MAPPED_WORD {
        return IpAddr::from([bytes[12], bytes[13], bytes[14], bytes[15]]);
    }
    IpAddr::from(bytes)
}

/// The name of a protocol, where it has one that rules use; otherwise its number.
#[must_use]
pub fn protocol_name(number: u8) -> String {
    match number {
        TCP => "TCP".to_owned(),
        UDP => "UDP".to_owned(),
        SCTP => "SCTP".to_owned(),
        ICMP => "ICMP".to_owned(),
        ICMPV6 => "ICMPv6".to_owned(),
        other => other.to_string(),
    }
}

/// The number of a protocol by what [`protocol_name`] calls it.
#[must_use]
pub fn protocol_number(name: &str) -> Option<u8> {
    (0..=u8::MAX).find(|number| protocol_name(*number) == name)
}

#[cfg(test)]
mod tests {
    use egress_common::v4_mapped;

    use super::*;

    fn event() -> Event {
        Event {
            time_ns: 5_000_000_000,
            cgroup: 77,
            source: v4_mapped([10, 0, 0, 5]),
            destination: v4_mapped([192, 0, 2, 1]),
            slot: 3,
            rule: 9,
            length: 60,
            source_port_be: 40_000u16.to_be(),
            destination_port_be: 443u16.to_be(),
            suppressed: 2,
            protocol: TCP,
            verdict: Verdict::Deny as u8,
            reason: Reason::DefaultDeny as u8,
            hook: Hook::Packet as u8,
        }
    }

    fn bytes(event: &Event) -> Vec<u8> {
        // SAFETY: `Event` has no padding, so all its bytes are initialised.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(event).cast::<u8>(), size_of::<Event>()) }
            .to_vec()
    }

    #[test]
    fn a_record_reads_as_what_the_kernel_wrote() {
        let denial =
            decode(&bytes(&event()), (1_700_000_010_000_000_000, 7_500_000_000)).expect("well formed");
        assert_eq!(
            denial.time,
            (1_700_000_007, 500_000_000),
            "the age on the monotonic clock is taken off the wall clock"
        );
        assert_eq!(denial.destination, "192.0.2.1".parse::<IpAddr>().expect("an address"));
        assert_eq!((denial.destination_port, denial.source_port, denial.suppressed), (443, 40_000, 2));
        assert_eq!(
            (denial.verdict, denial.reason, denial.hook),
            (Verdict::Deny, Reason::DefaultDeny, "packet")
        );
    }

    #[test]
    fn a_protocol_is_found_by_its_name() {
        for number in 0..=u8::MAX {
            assert_eq!(protocol_number(&protocol_name(number)), Some(number));
        }
        assert_eq!(protocol_number("tcp"), None);
    }

    #[test]
    fn a_record_of_another_shape_is_refused() {
        let whole = bytes(&event());
        assert_eq!(decode(&whole[1..], (0, 0)), None, "short");
        let strange = Event { verdict: 200, ..event() };
        assert_eq!(decode(&bytes(&strange), (0, 0)), None, "no such verdict");
    }
}
