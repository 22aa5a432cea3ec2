//! The kernel programs. Entry points only: each gathers what its hook knows, asks the other modules, and turns the answer into
//! the hook's return code (1 lets through, 0 refuses).
//!
//! All of them are attached once, to the node's kubepods cgroup. `cgroup_skb/egress` is the authority; the connect and sendmsg
//! hooks give the same answer earlier, so that a refused call fails at once instead of timing out.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the program macros wrap each documented entry point in an undocumented one"
)]
#![expect(clippy::needless_pass_by_value, reason = "the program macros hand contexts over by value")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "sizes and fields fit by construction; a checked conversion would need a way to panic"
)]

mod call;
mod maps;
mod parse;
mod pod;
mod policy;
mod report;
mod skb;
mod socket;

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock_addr, classifier, sock_ops},
    programs::{SkBuffContext, SockAddrContext, SockOpsContext, TcContext},
};
use egress_common::{
    V4_MAPPED_WORD,
    config::setting,
    event::Hook,
    policy::{NEVER, NO_RULE, SCTP, TCP, UDP},
    socket::{SocketState, flags},
    verdict::{Decision, Reason, Verdict},
};

use crate::{
    call::{Call, words_of},
    parse::Packet,
    pod::{Owner, Standing},
    report::Occasion,
    skb::{Skb, Sock},
};

const PASS: i32 = 1;
const REFUSE: i32 = 0;

/// Judges a packet a pod sends.
#[cgroup_skb(egress)]
pub fn egress(ctx: SkBuffContext) -> i32 {
    // SAFETY: this program's context.
    let skb = unsafe { Skb::new(ctx.skb.skb) };
    // The hook runs for a socket, always; without one nobody can be held to a policy.
    let Some(sk) = skb.socket() else { return REFUSE };
    let known = sk.state();
    if let Some(state) = known
        && socket::still_holds(skb, state)
    {
        report::count(state.slot, u32::from(state.class), state.rule, skb.len());
        return PASS;
    }
    match judge_packet(skb, sk, known) {
        Verdict::Deny => REFUSE,
        Verdict::Allow | Verdict::Audit => PASS,
    }
}

/// The verdict on a packet whose socket remembers nothing that holds.
///
/// 1. Pods no policy governs pass, uncounted.
/// 2. What cannot be followed to its destination and ports is refused.
/// 3. Loopback and the pod's own addresses pass.
/// 4. Pods the maps do not know: the node's start mode decides. Pods whose policy is not known yet and may pass until then do.
/// 5. Answers to connections that came to the pod pass.
/// 6. The policy decides.
/// 7. What it would refuse passes if it answers a datagram that came to the pod.
#[inline(always)]
fn judge_packet(skb: Skb, sk: Sock, known: Option<&SocketState>) -> Verdict {
    // 1.
    let Owner { standing, cgroup, slot, revision } = pod::of_packet(skb);
    if standing == Standing::Ungoverned {
        return Verdict::Allow;
    }
    let length = skb.len();
    let mut packet = Packet::EMPTY;
    // 2.
    if let Err(reason) = parse::parse(skb, &mut packet) {
        let occasion = Occasion { cgroup, slot, hook: Hook::Packet, packet: &packet, length, first: true };
        return conclude(&occasion, fixed(Verdict::Deny, reason));
    }
    let mut occasion = Occasion { cgroup, slot, hook: Hook::Packet, packet: &packet, length, first: true };
    if standing != Standing::Governed {
        // 3. and 4.
        if policy::is_local(None, &packet.source, &packet.destination) {
            return conclude(&occasion, fixed(Verdict::Allow, Reason::Local));
        }
        return conclude(&occasion, without_policy(standing));
    }
    let Some(endpoint) = pod::record(slot, revision) else {
        return conclude(&occasion, fixed(Verdict::Deny, Reason::UnknownPod));
    };
    // 3.
    if policy::is_local(Some(endpoint), &packet.source, &packet.destination) {
        return conclude(&occasion, fixed(Verdict::Allow, Reason::Local));
    }
    // 5.
    if socket::is_tcp_reply(skb, sk, known, &packet) {
        let decision = fixed(Verdict::Allow, Reason::Reply);
        // A reply never opens a connection, so it may leave whether or not the socket could remember it.
        let _kept = socket::keep(skb, sk, known, &packet, (slot, revision), &decision, true);
        return conclude(&occasion, decision);
    }
    // 6.
    let decision = policy::judge(
        endpoint,
        &packet.destination,
        packet.protocol,
        packet.destination_port_be,
        packet.ipv6,
    );
    // 7.
    if decision.verdict != Verdict::Allow && socket::is_datagram_reply(|| skb.socket_cookie(), &packet) {
        return conclude(&occasion, fixed(Verdict::Allow, Reason::Reply));
    }
    if decision.verdict != Verdict::Deny
        && !socket::keep(skb, sk, known, &packet, (slot, revision), &decision, false)
    {
        return conclude(&occasion, fixed(Verdict::Deny, Reason::NotRemembered));
    }
    if decision.verdict == Verdict::Audit {
        // The answer must not turn the rest of the flow into replies, unseen by the audit and by what is enforced later.
        occasion.first = socket::note_own_datagram(|| skb.socket_cookie(), &packet)
            && (packet.protocol != TCP || socket::opens(packet.tcp_flags));
    }
    conclude(&occasion, decision)
}

/// A decision no policy had a say in.
#[inline(always)]
fn fixed(verdict: Verdict, reason: Reason) -> Decision {
    Decision { verdict, reason, rule: NO_RULE, valid_until: NEVER }
}

/// A decision about a pod that the maps do not know, or whose policy they do not.
#[inline(always)]
fn without_policy(standing: Standing) -> Decision {
    if standing != Standing::Unprotected && maps::setting(setting::STRICT) != 0 {
        fixed(Verdict::Deny, Reason::UnknownPod)
    } else {
        fixed(Verdict::Allow, Reason::Unprotected)
    }
}

#[inline(always)]
fn conclude(occasion: &Occasion<'_>, decision: Decision) -> Verdict {
    #[cfg(feature = "debug-log")]
    debug::log(occasion, &decision);
    report::record(occasion, &decision);
    decision.verdict
}

/// Remembers who wrote to a pod; never refuses.
#[cgroup_skb(ingress)]
pub fn ingress(ctx: SkBuffContext) -> i32 {
    // SAFETY: this program's context.
    let skb = unsafe { Skb::new(ctx.skb.skb) };
    if may_be_datagram(skb) {
        remember(skb);
    }
    PASS
}

/// Whether the packet may be a datagram from elsewhere: a quick look, so that TCP pays next to nothing. What a pod writes to
/// itself over loopback proves nothing about other peers, whatever source address it claims.
#[inline(always)]
fn may_be_datagram(skb: Skb) -> bool {
    const LOOPBACK_INTERFACE: u32 = 1;
    let bytes = skb.linear();
    if bytes.holds(20) {
        let version = bytes.read::<u8>(0) >> 4;
        if (version == 4 && bytes.read::<u8>(9) == TCP) || (version == 6 && bytes.read::<u8>(6) == TCP) {
            return false;
        }
    }
    skb.interface() != LOOPBACK_INTERFACE && !skb.is_looped_back()
}

#[inline(always)]
fn remember(skb: Skb) {
    let mut packet = Packet::EMPTY;
    if parse::parse(skb, &mut packet).is_err() || (packet.protocol != UDP && packet.protocol != SCTP) {
        return;
    }
    let owner = pod::of_packet(skb);
    if owner.standing != Standing::Governed {
        return;
    }
    let Some(endpoint) = pod::record(owner.slot, owner.revision) else { return };
    // What the pod may write to anyway needs no permission to answer. That the peer now writes may be its answer, and must
    // not become a permission once the policy no longer gives one.
    socket::remember_datagram(skb.socket_cookie(), &packet, || {
        let back =
            policy::judge(endpoint, &packet.source, packet.protocol, packet.source_port_be, packet.ipv6);
        back.verdict == Verdict::Allow
    });
}

/// Refuses a `connect()` to a denied IPv4 address.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: this program's context.
    judge_call(unsafe { Call::v4(ctx.sock_addr) }, Hook::Connect)
}

/// Refuses a `connect()` to a denied IPv6 address; a v4-mapped one is IPv4.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: this program's context.
    judge_call(unsafe { Call::v6(ctx.sock_addr) }, Hook::Connect)
}

/// Refuses a `sendmsg()` to a denied IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    // SAFETY: this program's context.
    judge_call(unsafe { Call::v4(ctx.sock_addr) }, Hook::Sendmsg)
}

/// Refuses a `sendmsg()` to a denied IPv6 address; a v4-mapped one is IPv4.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    // SAFETY: this program's context.
    judge_call(unsafe { Call::v6(ctx.sock_addr) }, Hook::Sendmsg)
}

/// The answer to a call: the packet hook's, for what the call would send.
///
/// Only where that is certain. A datagram socket that connects sends nothing yet (resolvers do it to learn their own source
/// address), so it is let through and its packets are judged. So is a call by a task outside the pods.
#[inline(always)]
fn judge_call(call: Call, hook: Hook) -> i32 {
    const SOCK_STREAM: u32 = 1;
    const SOCK_DGRAM: u32 = 2;
    if maps::setting(setting::CONNECT_HOOKS) == 0 {
        return PASS;
    }
    let (kind, protocol, target) = (call.kind(), call.protocol(), call.target);
    let fits = match hook {
        Hook::Connect => kind == SOCK_STREAM && protocol == u32::from(TCP),
        _ => kind == SOCK_DGRAM && protocol == u32::from(UDP),
    };
    if !fits || policy::is_loopback(&target) || is_unspecified(&target) {
        return PASS;
    }
    let mut packet = Packet::EMPTY;
    packet.destination = target;
    packet.destination_port_be = call.port_be();
    packet.protocol = protocol as u8;
    packet.ipv6 = !(target[0] | target[1] == 0 && target[2] == V4_MAPPED_WORD);
    let Owner { standing, cgroup, slot, revision } = pod::of_task();
    let decision = match standing {
        Standing::Outside | Standing::Ungoverned | Standing::Unprotected => return PASS,
        Standing::Unknown => without_policy(standing),
        Standing::Governed => {
            let Some(endpoint) = pod::record(slot, revision) else { return PASS };
            if policy::is_own(endpoint, &target) {
                return PASS;
            }
            policy::judge(
                endpoint,
                &packet.destination,
                packet.protocol,
                packet.destination_port_be,
                packet.ipv6,
            )
        }
    };
    // What passes, audited or not, is counted and told by its packets.
    if decision.verdict != Verdict::Deny {
        return PASS;
    }
    if matches!(hook, Hook::Sendmsg) && socket::is_datagram_reply(|| call.socket_cookie(), &packet) {
        return PASS;
    }
    let occasion = Occasion { cgroup, slot, hook, packet: &packet, length: 0, first: true };
    match conclude(&occasion, decision) {
        Verdict::Deny => REFUSE,
        Verdict::Allow | Verdict::Audit => PASS,
    }
}

/// The unspecified address means this host to `connect()` and `sendmsg()`.
#[inline(always)]
fn is_unspecified(target: &[u32; 4]) -> bool {
    target[0] | target[1] | target[3] == 0 && (target[2] == 0 || target[2] == V4_MAPPED_WORD)
}

/// Does nothing: what a program costs at least. For measurements, attached nowhere.
#[cgroup_skb(egress)]
pub fn floor(_ctx: SkBuffContext) -> i32 {
    PASS
}

/// Leaves the kernel's two clocks in the settings, for the agent to relate them. Run by the agent, attached nowhere.
#[classifier]
pub fn clock(_ctx: TcContext) -> i32 {
    if let (Some(ticks), Some(nanoseconds)) = (
        maps::SETTINGS.get_ptr_mut(setting::SEEN_TICKS),
        maps::SETTINGS.get_ptr_mut(setting::SEEN_NANOSECONDS),
    ) {
        // SAFETY: elements of an array map; the helper takes nothing and returns a number.
        unsafe {
            *ticks = policy::jiffies();
            *nanoseconds = aya_ebpf::helpers::generated::bpf_ktime_get_ns();
        }
    }
    0
}

/// Marks the socket of a connection that came to a governed pod, so that its packets count as replies.
///
/// It inherited what its listener remembered when it was made: the mark, or on kernels that do not show the hook SYN-ACKs over IPv6
/// (before 6.2 or so) what the listener remembers of a connection it made before it began to listen. Here it learns its peer.
/// Listeners of other pods remember nothing, so this costs them one look.
#[sock_ops]
pub fn accepted(ctx: SockOpsContext) -> u32 {
    const PASSIVE_ESTABLISHED: u32 = 5;
    const AF_INET: u32 = 2;
    if ctx.op() != PASSIVE_ESTABLISHED {
        return 1;
    }
    // SAFETY: this program's context. Volatile, so that the pointer compared with null is the one used.
    let sk = unsafe { Sock::new(core::ptr::read_volatile(&raw const (*ctx.ops).__bindgen_anon_2.sk)) };
    let Some(sk) = sk else { return 1 };
    let Some(state) = sk.state() else { return 1 };
    let remote = if ctx.family() == AF_INET {
        [0, 0, V4_MAPPED_WORD, ctx.remote_ip4()]
    } else {
        // SAFETY: this program's context, read word by word.
        unsafe { words_of(&raw const (*ctx.ops).remote_ip6) }
    };
    let [_, _, high, low] = ctx.remote_port().to_ne_bytes();
    let remote_port_be = u16::from_ne_bytes([high, low]);
    // Two that call each other at once end here, too. Such a socket has remembered this very peer since its first packet.
    let called = state.remote_port_be == remote_port_be
        && state.remote[0] == remote[0]
        && state.remote[1] == remote[1]
        && state.remote[2] == remote[2]
        && state.remote[3] == remote[3];
    if state.flags & flags::LISTENER == 0 && called {
        return 1;
    }
    // Nobody else knows this socket yet. That it remembered something was seen above, so this cannot fail.
    sk.rewrite(&SocketState {
        remote,
        remote_port_be,
        protocol: TCP,
        flags: flags::ACCEPTED,
        ..socket::EMPTY
    });
    1
}

#[cfg(feature = "debug-log")]
mod debug {
    //! What a debug object says about each judged packet.
    use egress_common::verdict::Decision;

    use crate::report::Occasion;

    /// Logs a decision through the agent.
    #[inline(always)]
    pub fn log(occasion: &Occasion<'_>, decision: &Decision) {
        aya_log_ebpf::debug!(
            // The macro wants a context and does not use it.
            &(),
            "slot {} protocol {} port {}: verdict {} reason {} rule {}",
            occasion.slot,
            occasion.packet.protocol,
            u16::from_be(occasion.packet.destination_port_be),
            decision.verdict as u8,
            decision.reason as u8,
            decision.rule
        );
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence the kernel asks for: some helpers are for GPL programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
