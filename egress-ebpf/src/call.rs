//! The context of the connect and sendmsg hooks, behind safe methods.

use aya_ebpf::{bindings::bpf_sock_addr, helpers::generated::bpf_get_socket_cookie};
use egress_common::V4_MAPPED_WORD;

/// A `connect()` or `sendmsg()` that a program was called for.
#[derive(Clone, Copy)]
pub struct Call {
    context: *mut bpf_sock_addr,
    /// Where to, network byte order, IPv4 mapped.
    pub target: [u32; 4],
}

impl Call {
    /// Wraps the context of a hook for IPv4.
    ///
    /// # Safety
    ///
    /// `context` is the context of the running program.
    #[inline(always)]
    pub unsafe fn v4(context: *mut bpf_sock_addr) -> Self {
        // SAFETY: the caller's promise.
        Self { context, target: [0, 0, V4_MAPPED_WORD, unsafe { (*context).user_ip4 }] }
    }

    /// Wraps the context of a hook for IPv6.
    ///
    /// # Safety
    ///
    /// `context` is the context of the running program.
    #[inline(always)]
    pub unsafe fn v6(context: *mut bpf_sock_addr) -> Self {
        // SAFETY: the caller's promise.
        Self { context, target: unsafe { words_of(&raw const (*context).user_ip6) } }
    }

    /// `SOCK_STREAM` and so on.
    #[inline(always)]
    pub fn kind(self) -> u32 {
        // SAFETY: the context, see `v4`.
        unsafe { (*self.context).type_ }
    }

    /// Protocol number of the socket.
    #[inline(always)]
    pub fn protocol(self) -> u32 {
        // SAFETY: the context, see `v4`.
        unsafe { (*self.context).protocol }
    }

    /// Destination port, network byte order.
    #[inline(always)]
    pub fn port_be(self) -> u16 {
        // SAFETY: the context, see `v4`. The word holds the port in its first two bytes.
        unsafe { (*self.context).user_port as u16 }
    }

    /// A number that is the socket's alone.
    #[inline(always)]
    pub fn socket_cookie(self) -> u64 {
        // SAFETY: the context, see `v4`.
        unsafe { bpf_get_socket_cookie(self.context.cast()) }
    }
}

/// Reads an address out of a context, which the verifier allows only word by word.
///
/// # Safety
///
/// `words` points into the context of the running program.
#[inline(always)]
pub unsafe fn words_of(words: *const [u32; 4]) -> [u32; 4] {
    let word = |index: usize| {
        // SAFETY: the caller's promise; volatile, so that the reads are not joined.
        unsafe { core::ptr::read_volatile(words.cast::<u32>().add(index)) }
    };
    [word(0), word(1), word(2), word(3)]
}
