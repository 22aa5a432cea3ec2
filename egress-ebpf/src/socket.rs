//! What sockets remember: kept verdicts, accepted connections, and peers that wrote first.

use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_F_CURRENT_NETNS, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp},
};
use egress_common::{
    V4_MAPPED_WORD,
    decide::Clock as _,
    maps::{self, node_counter},
    policy::{NEVER, SCTP, TCP, UDP},
    socket::{POD_FIRST, REPLY_WINDOW_SECONDS, ReplyKey, SocketState, flags},
    verdict::{Decision, Verdict, class},
};

use crate::{
    maps::{RECENT, REPLIES, REVISIONS, keep_verdicts, ticks_per_second},
    parse::{ACK, Packet, SYN},
    policy::{Ticks, jiffies},
    report::count_node,
    skb::{Skb, Sock},
};

const SOCK_STREAM: u32 = 1;
const SOCK_RAW: u32 = 3;
const TCP_SYN_SENT: u32 = 2;
const TCP_SYN_RECV: u32 = 3;
const TCP_LISTEN: u32 = 10;

/// Whether what the socket remembers still holds and is about this packet: nearly every packet of nearly every flow ends
/// here. Never so for sockets whose verdicts are not kept.
#[inline(always)]
pub fn still_holds(skb: Skb, state: &SocketState) -> bool {
    let Some(revision) = REVISIONS.get_ptr(state.slot) else { return false };
    // SAFETY: an element of an array map; volatile, so that the word is read once.
    if unsafe { core::ptr::read_volatile(revision) } != state.revision || state.revision == 0 {
        return false;
    }
    if state.valid_until != NEVER && Ticks.reached(state.valid_until) {
        return false;
    }
    let bytes = skb.linear();
    if !bytes.holds(28) {
        return false;
    }
    let first = bytes.read::<u8>(0);
    if first == 0x45 {
        if bytes.read::<u32>(16) != state.remote[3]
            || bytes.read::<u16>(22) != state.remote_port_be
            || bytes.read::<u8>(9) != state.protocol
            || state.remote[2] != V4_MAPPED_WORD
            || state.remote[0] | state.remote[1] != 0
            || u16::from_be(bytes.read::<u16>(6)) & 0x3fff != 0
        {
            return false;
        }
        return state.flags & flags::ACCEPTED == 0 || (bytes.holds(40) && !opens(bytes.read::<u8>(33)));
    }
    if first >> 4 != 6 || !bytes.holds(48) {
        return false;
    }
    bytes.read::<u8>(6) == state.protocol
        && bytes.read::<u16>(42) == state.remote_port_be
        && bytes.read::<u32>(24) == state.remote[0]
        && bytes.read::<u32>(28) == state.remote[1]
        && bytes.read::<u32>(32) == state.remote[2]
        && bytes.read::<u32>(36) == state.remote[3]
        && (state.flags & flags::ACCEPTED == 0 || (bytes.holds(60) && !opens(bytes.read::<u8>(53))))
}

/// Whether a TCP packet with these flag bits opens a connection.
#[inline(always)]
pub fn opens(tcp_flags: u8) -> bool {
    tcp_flags & (SYN | ACK) == SYN
}

/// Whether the packet answers a connection that came to the pod.
///
/// 1. A SYN-ACK of a listener. It also marks the listener, so that accepted sockets inherit the mark (see `accepted`).
/// 2. A packet of an accepted socket to its peer, unless it opens a connection: a socket can be reconnected elsewhere.
/// 3. A packet of a connection nothing is remembered of, if something listens on its local port: the connection is older
///    than its governing.
#[inline(always)]
pub fn is_tcp_reply(skb: Skb, sk: Sock, known: Option<&SocketState>, packet: &Packet) -> bool {
    if packet.protocol != TCP {
        return false;
    }
    let Some(full) = sk.full() else { return false };
    if full.kind() != SOCK_STREAM || full.protocol() != u32::from(TCP) {
        return false;
    }
    let tcp_state = full.tcp_state();
    // 1.
    if tcp_state == TCP_LISTEN {
        if packet.tcp_flags & (SYN | ACK) != SYN | ACK {
            return false;
        }
        if known.is_none_or(|state| state.flags & flags::LISTENER == 0) {
            // What it remembers otherwise stems from a connection it made before it began to listen.
            full.forget();
            let mut mark = EMPTY;
            mark.flags = flags::LISTENER;
            if !full.remember(&mut mark) {
                count_node(node_counter::STORE_FAILED);
            }
        }
        return true;
    }
    // 2.
    if let Some(state) = known {
        return state.flags & flags::ACCEPTED != 0
            && !opens(packet.tcp_flags)
            && state.remote_port_be == packet.destination_port_be
            && state.remote[0] == packet.destination[0]
            && state.remote[1] == packet.destination[1]
            && state.remote[2] == packet.destination[2]
            && state.remote[3] == packet.destination[3];
    }
    // 3.
    if tcp_state == TCP_SYN_SENT || tcp_state == TCP_SYN_RECV || opens(packet.tcp_flags) {
        return false;
    }
    listens(skb, packet)
}

/// Whether something listens on the packet's source port. The lookup asks for a peer that cannot exist, so that it finds a
/// listener and not the connection itself.
#[inline(always)]
fn listens(skb: Skb, packet: &Packet) -> bool {
    const NOWHERE_V4: u32 = u32::from_ne_bytes([192, 0, 2, 0]);
    const NOWHERE_V6: [u32; 4] = [u32::from_ne_bytes([1, 0, 0, 0]), 0, 0, 0];
    const PORT: u16 = 1u16.to_be();
    let netns = BPF_F_CURRENT_NETNS as u64;
    // SAFETY: the context and a tuple of the size that is passed; a found socket is released before the program ends.
    unsafe {
        let found = if packet.ipv6 {
            let mut tuple = bpf_sock_tuple {
                __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 {
                    ipv6: bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
                        saddr: NOWHERE_V6,
                        daddr: packet.source,
                        sport: PORT,
                        dport: packet.source_port_be,
                    },
                },
            };
            let size = size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>() as u32;
            bpf_skc_lookup_tcp(skb.as_ptr(), &raw mut tuple, size, netns, 0)
        } else {
            let mut tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                saddr: NOWHERE_V4,
                daddr: packet.source[3],
                sport: PORT,
                dport: packet.source_port_be,
            };
            let size = size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>() as u32;
            bpf_skc_lookup_tcp(skb.as_ptr(), (&raw mut tuple).cast(), size, netns, 0)
        };
        if found.is_null() {
            return false;
        }
        let listening = (*found).state == TCP_LISTEN;
        bpf_sk_release(found.cast());
        listening
    }
}

/// Nothing remembered.
pub const EMPTY: SocketState = SocketState {
    revision: 0,
    valid_until: 0,
    remote: [0; 4],
    slot: 0,
    rule: 0,
    remote_port_be: 0,
    protocol: 0,
    flags: 0,
    class: 0,
    pad: [0; 3],
};

/// Keeps a verdict that lets a packet pass, where that pays: at once for TCP, from the second packet on for others, never for
/// raw sockets and protocols without ports.
///
/// Of a datagram socket a kept verdict is never changed in place: such a socket may send from several processors, and a reader
/// must not see half of one verdict and half of another. A stale one is dropped and a new one put in its place.
///
/// An audited verdict does not hold for the next packet, which is to be counted and told anew. But a TCP socket remembers that it
/// had one, so that it is not taken for a connection older than its governing. For the same reason the packet that opens a TCP
/// connection may not leave unless its socket remembers it: then this returns false.
#[inline(always)]
pub fn keep(
    skb: Skb,
    sk: Sock,
    known: Option<&SocketState>,
    packet: &Packet,
    place: (u32, u64),
    decision: &Decision,
    accepted: bool,
) -> bool {
    if !keep_verdicts() || (packet.protocol != TCP && packet.protocol != UDP && packet.protocol != SCTP) {
        return true;
    }
    let Some(full) = sk.full() else { return true };
    let kind = full.kind();
    if kind == SOCK_RAW || (kind == SOCK_STREAM && full.tcp_state() == TCP_LISTEN) {
        return true;
    }
    let holds = decision.verdict == Verdict::Allow;
    let mut value = SocketState {
        revision: if holds { place.1 } else { 0 },
        valid_until: decision.valid_until,
        remote: packet.destination,
        slot: place.0,
        rule: decision.rule,
        remote_port_be: packet.destination_port_be,
        protocol: packet.protocol,
        flags: if accepted { flags::ACCEPTED } else { 0 },
        class: class(decision.verdict, decision.reason) as u8,
        pad: [0; 3],
    };
    if kind == SOCK_STREAM {
        if known.is_some() && sk.rewrite(&value) {
            return true;
        }
        if full.remember(&mut value) {
            return true;
        }
        count_node(node_counter::STORE_FAILED);
        return !opens(packet.tcp_flags);
    }
    if !holds {
        return true;
    }
    if let Some(state) = known {
        // It holds and is about another peer, or about this one and the packet has headers the quick look does not follow.
        if state.revision == place.1 {
            let elsewhere = state.remote_port_be != packet.destination_port_be
                || state.protocol != packet.protocol
                || state.remote[0] != packet.destination[0]
                || state.remote[1] != packet.destination[1]
                || state.remote[2] != packet.destination[2]
                || state.remote[3] != packet.destination[3];
            if elsewhere || state.valid_until == decision.valid_until {
                return true;
            }
        }
        full.forget();
    } else {
        let cookie = skb.socket_cookie();
        let Some(recent) = RECENT.get_ptr_mut(cookie as u32 & (maps::RECENT - 1)) else { return true };
        // SAFETY: an element of a per-CPU map. A softirq on this processor may come between the read and the write; then a
        // verdict is kept one packet earlier or later.
        let recent = unsafe { &mut *recent };
        if *recent != cookie {
            *recent = cookie;
            return true;
        }
    }
    if !full.remember(&mut value) {
        count_node(node_counter::STORE_FAILED);
    }
    true
}

/// What names a peer of a datagram socket; `None` for other protocols, of whose sockets the cookie is not asked.
#[inline(always)]
fn reply_key(
    cookie: impl FnOnce() -> u64,
    remote: &[u32; 4],
    remote_port_be: u16,
    protocol: u8,
) -> Option<ReplyKey> {
    if protocol != UDP && protocol != SCTP {
        return None;
    }
    Some(ReplyKey { cookie: cookie(), remote: *remote, remote_port_be, protocol, pad: [0; 5] })
}

/// Whether the peer wrote to this socket of late, before the socket wrote to it.
#[inline(always)]
pub fn is_datagram_reply(cookie: impl FnOnce() -> u64, packet: &Packet) -> bool {
    let Some(key) = reply_key(cookie, &packet.destination, packet.destination_port_be, packet.protocol)
    else {
        return false;
    };
    // SAFETY: the value is eight bytes, read at once.
    let Some(seen) = (unsafe { REPLIES.get(key) }) else { return false };
    *seen & POD_FIRST == 0 && is_recent(*seen)
}

#[inline(always)]
fn is_recent(seen: u64) -> bool {
    jiffies().wrapping_sub(seen & !POD_FIRST) < REPLY_WINDOW_SECONDS * ticks_per_second()
}

/// Remembers that a peer wrote to a socket. `answers` is asked only of a peer that is new, or was silent for the whole window:
/// whether this may be the answer to a datagram of the socket.
///
/// Who wrote first stays as it is until neither has been heard of for the window.
#[inline(always)]
pub fn remember_datagram(cookie: u64, packet: &Packet, answers: impl FnOnce() -> bool) {
    if let Some(key) = reply_key(|| cookie, &packet.source, packet.source_port_be, packet.protocol) {
        let _is_first = note(key, answers);
    }
}

/// Remembers that a socket wrote to a peer, unless the peer wrote first. Returns whether neither was heard of of late, as far as
/// that is remembered; it is of UDP and SCTP.
#[inline(always)]
pub fn note_own_datagram(cookie: impl FnOnce() -> u64, packet: &Packet) -> bool {
    match reply_key(cookie, &packet.destination, packet.destination_port_be, packet.protocol) {
        Some(key) => note(key, || true),
        None => true,
    }
}

#[inline(always)]
fn note(key: ReplyKey, socket_first: impl FnOnce() -> bool) -> bool {
    let now = jiffies();
    if let Some(seen) = REPLIES.get_ptr_mut(key) {
        // SAFETY: an aligned load and store of eight bytes in the map's value; the last of two processors wins.
        unsafe {
            let before = core::ptr::read_volatile(seen);
            if is_recent(before) {
                core::ptr::write_volatile(seen, now | (before & POD_FIRST));
                return false;
            }
        }
    }
    let first = if socket_first() { POD_FIRST } else { 0 };
    if REPLIES.insert(key, now | first, u64::from(BPF_ANY)).is_err() {
        count_node(node_counter::STORE_FAILED);
    }
    true
}
