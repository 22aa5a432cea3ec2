//! The context of a packet hook and its socket, behind safe methods: each helper call and each raw read of the context stands here,
//! once, with the reason why it is sound.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::{
        bpf_get_socket_cookie, bpf_sk_fullsock, bpf_sk_storage_delete, bpf_sk_storage_get,
        bpf_skb_ancestor_cgroup_id, bpf_skb_load_bytes,
    },
};
use egress_common::socket::SocketState;

use crate::maps::SOCKETS;

/// The packet a program was called for.
#[derive(Clone, Copy)]
pub struct Skb(*mut __sk_buff);

impl Skb {
    /// Wraps a program's context.
    ///
    /// # Safety
    ///
    /// `skb` is the context of the running program, which outlives every use of the value: programs have no other memory to
    /// keep it in.
    #[inline(always)]
    pub unsafe fn new(skb: *mut __sk_buff) -> Self {
        Self(skb)
    }

    /// The context, for helpers that take it.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut core::ffi::c_void {
        self.0.cast()
    }

    /// Bytes from the IP header on.
    #[inline(always)]
    pub fn len(self) -> u32 {
        // SAFETY: the context, see `new`.
        unsafe { (*self.0).len }
    }

    /// The Ethernet type, network byte order.
    #[inline(always)]
    pub fn protocol(self) -> u32 {
        // SAFETY: the context, see `new`.
        unsafe { (*self.0).protocol }
    }

    /// Index of the interface the packet is on.
    #[inline(always)]
    pub fn interface(self) -> u32 {
        // SAFETY: the context, see `new`.
        unsafe { (*self.0).ifindex }
    }

    /// Whether the packet is the pod's own multicast or broadcast, looped back on the interface it left by.
    #[inline(always)]
    pub fn is_looped_back(self) -> bool {
        const PACKET_LOOPBACK: u32 = 5;
        // SAFETY: the context, see `new`.
        unsafe { (*self.0).pkt_type == PACKET_LOOPBACK }
    }

    /// The linear part; empty on kernels that show none to test runs.
    #[inline(always)]
    pub fn linear(self) -> Linear {
        // SAFETY: the context, see `new`; the verifier turns both words into packet pointers.
        unsafe { Linear { start: (*self.0).data as usize, end: (*self.0).data_end as usize } }
    }

    /// Copies bytes at `offset` out of the packet, wherever it keeps them; false when it has not that many.
    #[inline(always)]
    pub fn load<T: Wire>(self, offset: u32, into: &mut T) -> bool {
        let size = size_of::<T>() as u32;
        // SAFETY: the context, see `new`; the helper checks the offset and writes exactly `size` bytes, and every bit pattern
        // is a `Wire`.
        unsafe { bpf_skb_load_bytes(self.0.cast(), offset, core::ptr::from_mut(into).cast(), size) == 0 }
    }

    /// The id of the cgroup `level` below the root that the packet's socket is in; 0 when it is not that deep.
    #[inline(always)]
    pub fn ancestor_cgroup(self, level: i32) -> u64 {
        // SAFETY: the context, see `new`.
        unsafe { bpf_skb_ancestor_cgroup_id(self.0, level) }
    }

    /// A number that is the socket's alone.
    #[inline(always)]
    pub fn socket_cookie(self) -> u64 {
        // SAFETY: the context, see `new`.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    /// The packet's socket.
    #[inline(always)]
    pub fn socket(self) -> Option<Sock> {
        // SAFETY: the context, see `new`. Volatile, so that the pointer compared with null is the one that is used.
        let sk = unsafe { core::ptr::read_volatile(&raw const (*self.0).__bindgen_anon_2.sk) };
        if sk.is_null() { None } else { Some(Sock(sk)) }
    }
}

/// What may be copied out of a packet: every bit pattern is a value.
///
/// # Safety
///
/// Implementors are integers or arrays of them.
pub unsafe trait Wire: Copy {}
// SAFETY: an integer.
unsafe impl Wire for u8 {}
// SAFETY: an integer.
unsafe impl Wire for u16 {}
// SAFETY: an integer.
unsafe impl Wire for u32 {}
// SAFETY: an array of integers.
unsafe impl<T: Wire, const N: usize> Wire for [T; N] {}

/// A window on the linear part of a packet.
pub struct Linear {
    start: usize,
    end: usize,
}

impl Linear {
    /// Whether `length` bytes are there.
    #[inline(always)]
    pub fn holds(&self, length: usize) -> bool {
        self.start + length <= self.end
    }

    /// Reads at `offset`. The verifier refuses the program unless [`Self::holds`] was true for all of it on the way here.
    #[inline(always)]
    pub fn read<T: Wire>(&self, offset: usize) -> T {
        // SAFETY: the verifier's check, above. The read may be unaligned, which the supported architectures allow and the
        // verifier forbids on those that do not.
        unsafe { core::ptr::read_volatile((self.start + offset) as *const T) }
    }
}

/// A socket the kernel handed to the running program. Never null.
#[derive(Clone, Copy)]
pub struct Sock(*mut bpf_sock);

impl Sock {
    /// Wraps a socket out of a context; `None` when there is none.
    ///
    /// # Safety
    ///
    /// `sk` was read from the context of the running program, once.
    #[inline(always)]
    pub unsafe fn new(sk: *mut bpf_sock) -> Option<Self> {
        if sk.is_null() { None } else { Some(Self(sk)) }
    }

    /// What the socket remembers, if anything. It stays readable while the program runs, whoever deletes it (RCU).
    #[inline(always)]
    pub fn state(self) -> Option<&'static SocketState> {
        // SAFETY: a socket of the running program; a null value and no flags only look. Who writes to a state in place is alone
        // with its socket, see `Sock::rewrite`.
        unsafe { self.look().as_ref() }
    }

    #[inline(always)]
    fn look(self) -> *mut SocketState {
        // SAFETY: a socket of the running program; a null value and no flags only look.
        unsafe { bpf_sk_storage_get(SOCKETS.as_ptr(), self.0.cast(), core::ptr::null_mut(), 0).cast() }
    }

    /// Writes over what the socket remembers; false if it remembers nothing. The revision goes last, and nothing holds meanwhile.
    ///
    /// Only for TCP sockets, whose packets leave under the socket's lock, and for sockets nobody knows yet: others may be read by
    /// another processor at the same time, which must not see half of each.
    #[inline(always)]
    pub fn rewrite(self, value: &SocketState) -> bool {
        let state = self.look();
        if state.is_null() {
            return false;
        }
        // SAFETY: the storage lives while the program runs (RCU), and this program is alone with it, see above.
        unsafe {
            core::ptr::write_volatile(&raw mut (*state).revision, 0);
            core::ptr::write(state, SocketState { revision: 0, ..*value });
            core::ptr::write_volatile(&raw mut (*state).revision, value.revision);
        }
        true
    }

    /// The whole socket, unless it is one of the kernel's abbreviations (a request, a connection in TIME_WAIT).
    #[inline(always)]
    pub fn full(self) -> Option<Full> {
        // SAFETY: a socket of the running program.
        let full = unsafe { bpf_sk_fullsock(self.0) };
        if full.is_null() { None } else { Some(Full(full)) }
    }
}

/// A whole socket.
#[derive(Clone, Copy)]
pub struct Full(*mut bpf_sock);

impl Full {
    /// `SOCK_STREAM` and so on.
    #[inline(always)]
    pub fn kind(self) -> u32 {
        // SAFETY: a socket of the running program.
        unsafe { (*self.0).type_ }
    }

    /// Protocol number it was made with.
    #[inline(always)]
    pub fn protocol(self) -> u32 {
        // SAFETY: a socket of the running program.
        unsafe { (*self.0).protocol }
    }

    /// TCP state.
    #[inline(always)]
    pub fn tcp_state(self) -> u32 {
        // SAFETY: a socket of the running program.
        unsafe { (*self.0).state }
    }

    /// Makes the socket remember `value`, if it remembers nothing yet; false for want of memory.
    #[inline(always)]
    pub fn remember(self, value: &mut SocketState) -> bool {
        // SAFETY: a socket of the running program; the helper copies the value.
        let made = unsafe {
            bpf_sk_storage_get(
                SOCKETS.as_ptr(),
                self.0.cast(),
                core::ptr::from_mut(value).cast(),
                BPF_SK_STORAGE_GET_F_CREATE as u64,
            )
        };
        !made.is_null()
    }

    /// Makes the socket forget.
    #[inline(always)]
    pub fn forget(self) {
        // SAFETY: a socket of the running program. That it remembered nothing is no failure.
        unsafe {
            bpf_sk_storage_delete(SOCKETS.as_ptr(), self.0.cast());
        }
    }
}
