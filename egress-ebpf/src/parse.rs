//! Bytes to [`Packet`]: the only file that walks headers. It follows every header to its end or refuses the packet; it
//! never guesses.

use egress_common::{
    V4_MAPPED_WORD,
    policy::{SCTP, TCP, UDP},
    verdict::Reason,
};

use crate::skb::Skb;

const ETH_P_IP: u32 = 0x0800u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86ddu16.to_be() as u32;

/// More fragments, or any offset: what only a hand-made packet has at this layer.
const FRAGMENT_BITS: u16 = 0x3fff;

/// TCP header bits.
pub const SYN: u8 = 0x02;
/// TCP header bits.
pub const ACK: u8 = 0x10;

/// What a packet tells us. Addresses in network byte order, IPv4 mapped.
#[derive(Clone, Copy)]
pub struct Packet {
    /// Where it says it comes from.
    pub source: [u32; 4],
    /// Where it goes.
    pub destination: [u32; 4],
    /// Source port, network byte order; 0 where the protocol has none.
    pub source_port_be: u16,
    /// Destination port, likewise.
    pub destination_port_be: u16,
    /// Protocol number off the wire.
    pub protocol: u8,
    /// Flag bits of TCP; means nothing for other protocols.
    pub tcp_flags: u8,
    /// Whether it is IPv6.
    pub ipv6: bool,
}

impl Packet {
    /// Nothing known yet.
    pub const EMPTY: Self = Self {
        source: [0; 4],
        destination: [0; 4],
        source_port_be: 0,
        destination_port_be: 0,
        protocol: 0,
        tcp_flags: 0,
        ipv6: false,
    };
}

/// Parses a packet.
///
/// What a function of its own writes to must lie on the stack. So those have a value of their own, and the fields of nearly
/// every packet stay in registers or in whole words: with one value for both, each field was written in one size and read in
/// another, and waiting for that took 10 ns of a packet.
#[inline(always)]
pub fn parse(skb: Skb, packet: &mut Packet) -> Result<(), Reason> {
    let mut plain = Packet::EMPTY;
    let protocol = skb.protocol();
    let is_plain = match protocol {
        ETH_P_IP => plain_v4(skb, &mut plain),
        ETH_P_IPV6 => plain_v6(skb, &mut plain),
        _ => false,
    };
    if is_plain {
        *packet = plain;
        return Ok(());
    }
    let mut walked = Packet::EMPTY;
    let outcome = match protocol {
        ETH_P_IP => reason(walk_v4(skb, &mut walked)),
        ETH_P_IPV6 => reason(walk_v6(skb, &mut walked)),
        _ => Err(Reason::UnknownFamily),
    };
    *packet = walked;
    outcome
}

/// Functions of their own return a number, since the verifier of older kernels follows only scalars out of them.
#[inline(always)]
fn reason(number: u32) -> Result<(), Reason> {
    match number {
        0 => Ok(()),
        1 => Err(Reason::InvalidPacket),
        2 => Err(Reason::Fragment),
        _ => Err(Reason::SourceRoute),
    }
}
const PARSED: u32 = 0;
const INVALID: u32 = 1;
const FRAGMENT: u32 = 2;
const SOURCE_ROUTE: u32 = 3;

/// IPv4 without options, TCP or UDP, all of it in the linear part: nearly every packet.
///
/// The protocol is read a second time, and is what UDP has for flags. A constant instead would hold in one branch only, and the verifier
/// would walk everything that follows once for each: on Linux 6.1 that was twice the work.
#[inline(always)]
fn plain_v4(skb: Skb, packet: &mut Packet) -> bool {
    let bytes = skb.linear();
    if !bytes.holds(28) || bytes.read::<u8>(0) != 0x45 {
        return false;
    }
    let total = u16::from_be(bytes.read::<u16>(2));
    if u16::from_be(bytes.read::<u16>(6)) & FRAGMENT_BITS != 0 {
        return false;
    }
    let protocol = bytes.read::<u8>(9);
    if protocol == TCP {
        if total < 40 || !bytes.holds(40) {
            return false;
        }
        packet.tcp_flags = bytes.read::<u8>(33);
    } else if protocol == UDP && total >= 28 {
        packet.tcp_flags = bytes.read::<u8>(9);
    } else {
        return false;
    }
    packet.protocol = bytes.read::<u8>(9);
    packet.source = [0, 0, V4_MAPPED_WORD, bytes.read::<u32>(12)];
    packet.destination = [0, 0, V4_MAPPED_WORD, bytes.read::<u32>(16)];
    packet.source_port_be = bytes.read::<u16>(20);
    packet.destination_port_be = bytes.read::<u16>(22);
    packet.ipv6 = false;
    true
}

/// IPv6 without extension headers, TCP or UDP, all of it in the linear part. Reads the protocol twice as [`plain_v4`] does.
#[inline(always)]
fn plain_v6(skb: Skb, packet: &mut Packet) -> bool {
    let bytes = skb.linear();
    if !bytes.holds(48) || bytes.read::<u8>(0) >> 4 != 6 {
        return false;
    }
    let protocol = bytes.read::<u8>(6);
    if protocol == TCP {
        if !bytes.holds(60) {
            return false;
        }
        packet.tcp_flags = bytes.read::<u8>(53);
    } else if protocol == UDP {
        packet.tcp_flags = bytes.read::<u8>(6);
    } else {
        return false;
    }
    packet.protocol = bytes.read::<u8>(6);
    packet.source =
        [bytes.read::<u32>(8), bytes.read::<u32>(12), bytes.read::<u32>(16), bytes.read::<u32>(20)];
    packet.destination =
        [bytes.read::<u32>(24), bytes.read::<u32>(28), bytes.read::<u32>(32), bytes.read::<u32>(36)];
    if is_mapped(&packet.destination) {
        return false;
    }
    packet.source_port_be = bytes.read::<u16>(40);
    packet.destination_port_be = bytes.read::<u16>(42);
    packet.ipv6 = true;
    true
}

/// Whether an IPv6 packet's destination lies in the room that stands for IPv4 in the maps.
#[inline(always)]
fn is_mapped(address: &[u32; 4]) -> bool {
    address[0] | address[1] == 0 && address[2] == V4_MAPPED_WORD
}

/// Any IPv4 packet, read piece by piece.
#[inline(never)]
fn walk_v4(skb: Skb, packet: &mut Packet) -> u32 {
    let mut header = [0u32; 5];
    if !skb.load(0, &mut header) {
        return INVALID;
    }
    let first = header[0].to_ne_bytes();
    let header_length = u32::from(first[0] & 0x0f) * 4;
    if first[0] >> 4 != 4 || header_length < 20 {
        return INVALID;
    }
    let length = skb.len();
    let mut total = u32::from(u16::from_be_bytes([first[2], first[3]]));
    if total == 0 && length > 0xffff {
        // The kernel's own mark for a packet it will cut up before it leaves (BIG TCP, Linux 6.3).
        total = length;
    }
    if total < header_length || total > length {
        return INVALID;
    }
    packet.ipv6 = false;
    packet.source = [0, 0, V4_MAPPED_WORD, header[3]];
    packet.destination = [0, 0, V4_MAPPED_WORD, header[4]];
    packet.protocol = header[2].to_ne_bytes()[1];
    let second = header[1].to_ne_bytes();
    if u16::from_be_bytes([second[2], second[3]]) & FRAGMENT_BITS != 0 {
        return FRAGMENT;
    }
    if header_length > 20 {
        let verdict = options_v4(skb, header_length);
        if verdict != PARSED {
            return verdict;
        }
    }
    transport(skb, header_length, total, packet)
}

/// Refuses source routes and options that overrun the header.
#[inline(always)]
fn options_v4(skb: Skb, header_length: u32) -> u32 {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    // Byte by byte with a count of what to skip, rather than jumping: the verifier then meets the same few states at each
    // byte instead of a new one for every way of getting there.
    let mut skip = 0u32;
    let mut wants_length = false;
    let mut at = 20u32;
    while at < 60 {
        if at >= header_length {
            break;
        }
        let mut byte = 0u8;
        if !skb.load(at, &mut byte) {
            return INVALID;
        }
        if wants_length {
            let length = u32::from(byte);
            if length < 2 || at - 1 + length > header_length {
                return INVALID;
            }
            skip = length - 2;
            wants_length = false;
        } else if skip > 0 {
            skip -= 1;
        } else if byte == END {
            return PARSED;
        } else if byte == LOOSE_SOURCE_ROUTE || byte == STRICT_SOURCE_ROUTE {
            return SOURCE_ROUTE;
        } else if byte != NOP {
            wants_length = true;
        }
        at += 1;
    }
    if wants_length { INVALID } else { PARSED }
}

/// Any IPv6 packet: follows extension headers to the transport header.
#[inline(never)]
fn walk_v6(skb: Skb, packet: &mut Packet) -> u32 {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT_HEADER: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    const MOBILITY: u8 = 135;
    const HOST_IDENTITY: u8 = 139;
    const SHIM6: u8 = 140;
    let mut header = [0u32; 10];
    if !skb.load(0, &mut header) {
        return INVALID;
    }
    if header[0].to_ne_bytes()[0] >> 4 != 6 {
        return INVALID;
    }
    packet.ipv6 = true;
    packet.source = [header[2], header[3], header[4], header[5]];
    packet.destination = [header[6], header[7], header[8], header[9]];
    if is_mapped(&packet.destination) {
        return INVALID;
    }
    let length = skb.len();
    let mut next = header[1].to_ne_bytes()[2];
    packet.protocol = next;
    let mut at = 40u32;
    let mut steps = 0;
    while steps < 8 {
        steps += 1;
        let extension = next == HOP_BY_HOP
            || next == ROUTING
            || next == DESTINATION
            || next == AUTHENTICATION
            || next == MOBILITY
            || next == HOST_IDENTITY
            || next == SHIM6;
        if next == FRAGMENT_HEADER {
            return FRAGMENT;
        }
        if !extension {
            packet.protocol = next;
            return transport(skb, at, length, packet);
        }
        let mut head = [0u8; 4];
        if !skb.load(at, &mut head) {
            return INVALID;
        }
        if next == ROUTING && head[3] != 0 {
            return SOURCE_ROUTE;
        }
        let units = u32::from(head[1]);
        at += if next == AUTHENTICATION { (units + 2) * 4 } else { (units + 1) * 8 };
        if at > length {
            return INVALID;
        }
        next = head[0];
    }
    INVALID
}

/// Reads the ports at `at`; `end` is where the packet says it ends.
#[inline(always)]
fn transport(skb: Skb, at: u32, end: u32, packet: &mut Packet) -> u32 {
    packet.source_port_be = 0;
    packet.destination_port_be = 0;
    packet.tcp_flags = 0;
    let needed = match packet.protocol {
        TCP => 20,
        UDP => 8,
        SCTP => 12,
        _ => return PARSED,
    };
    if at + needed > end {
        return INVALID;
    }
    let mut ports = [0u16; 2];
    if !skb.load(at, &mut ports) {
        return INVALID;
    }
    packet.source_port_be = ports[0];
    packet.destination_port_be = ports[1];
    if packet.protocol == TCP {
        let mut tail = [0u8; 4];
        if !skb.load(at + 12, &mut tail) || !skb.load(at + 16, &mut [0u8; 4]) {
            return INVALID;
        }
        packet.tcp_flags = tail[1];
    } else if packet.protocol == UDP {
        if !skb.load(at + 4, &mut [0u8; 4]) {
            return INVALID;
        }
    } else if !skb.load(at + 8, &mut [0u8; 4]) {
        return INVALID;
    }
    PARSED
}
