//! What a socket remembers, and which peers wrote to it.

/// The last verdict of a socket, kept in its storage: the value of the sockets map. Written by the kernel programs only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketState {
    /// The endpoint's revision when the verdict was reached; 0 when none was.
    pub revision: u64,
    /// Until when it holds, in seconds since the epoch; [`crate::policy::NEVER`] for always.
    pub valid_until: u64,
    /// The destination it is about, network byte order in memory, IPv4 mapped.
    pub remote: [u32; 4],
    /// The endpoint's slot.
    pub slot: u32,
    /// The rule that decided.
    pub rule: u32,
    /// The destination port, network byte order; 0 for protocols without ports.
    pub remote_port_be: u16,
    /// The protocol number off the wire.
    pub protocol: u8,
    /// See [`flags`].
    pub flags: u8,
    /// The counter among the endpoint's, see [`crate::verdict::class`]. Only verdicts that let a packet pass are kept.
    pub class: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Bits of [`SocketState::flags`].
pub mod flags {
    /// A listener of a governed pod: sockets it accepts inherit the bit and become [`ACCEPTED`].
    pub const LISTENER: u8 = 1;
    /// The peer at `remote` opened the connection, so packets to it are replies.
    pub const ACCEPTED: u8 = 2;
}

/// A peer that sent a datagram to a socket, the key of the replies map. Its value is the time in kernel ticks, and [`POD_FIRST`].
///
/// By socket and not by pod and port: a socket stays in its network namespace, so what a pod sends to itself in a namespace of
/// its own making permits nothing in the pod's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplyKey {
    /// The receiving socket's cookie.
    pub cookie: u64,
    /// Where the datagram came from, network byte order in memory, IPv4 mapped.
    pub remote: [u32; 4],
    /// The port it came from, network byte order.
    pub remote_port_be: u16,
    /// The protocol number off the wire: UDP or SCTP.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 5],
}

/// The bit of the replies map's value that says that the pod may have written to the peer first, so that what the peer writes
/// is an answer and permits nothing. The other bits are the time of the last datagram in kernel ticks, which stay far below.
pub const POD_FIRST: u64 = 1 << 63;

/// How long a datagram from a peer permits answers to it, in seconds. Each further datagram starts it anew.
pub const REPLY_WINDOW_SECONDS: u64 = 120;

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layouts_are_what_the_documentation_draws() {
        assert_eq!(size_of::<SocketState>(), 48);
        assert_eq!(offset_of!(SocketState, remote), 16);
        assert_eq!(offset_of!(SocketState, remote_port_be), 40);
        assert_eq!(offset_of!(SocketState, class), 44);
        assert_eq!(size_of::<ReplyKey>(), 32);
        assert_eq!(offset_of!(ReplyKey, remote_port_be), 24);
    }
}
