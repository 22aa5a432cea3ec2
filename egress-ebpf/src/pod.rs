//! Whose packet it is: from a socket's or a task's cgroup to the endpoint that holds for it.

use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use egress_common::{
    config::setting,
    endpoint::{Endpoint, UNGOVERNED, UNPROTECTED, flags, record_index},
};

use crate::{
    maps::{ENDPOINTS, PODS, REVISIONS, kubepods_level, setting as read_setting},
    skb::Skb,
};

/// Whose packet or call it is.
///
/// Not an enum with fields of its own for each case: the compiler keeps such fields on the stack whether or not the case has
/// them, and kernels before 6.3 refuse a program that reads a word of the stack that was not written.
#[derive(Clone, Copy)]
pub struct Owner {
    /// What the maps know about it.
    pub standing: Standing,
    /// The pod's cgroup id; 0 for [`Standing::Outside`].
    pub cgroup: u64,
    /// The pod's slot; 0 unless it is governed.
    pub slot: u32,
    /// The revision in force; 0 unless the pod is governed.
    pub revision: u64,
}

/// What the maps know about an owner.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A pod with an endpoint.
    Governed,
    /// A pod no policy governs.
    Ungoverned,
    /// A pod whose policy is not known yet and that passes until it is.
    Unprotected,
    /// A cgroup below kubepods that the maps do not know.
    Unknown,
    /// Not below kubepods.
    Outside,
}

/// Returns an owner without a slot.
#[inline(always)]
const fn without_slot(standing: Standing, cgroup: u64) -> Owner {
    Owner { standing, cgroup, slot: 0, revision: 0 }
}

#[inline(always)]
fn known(cgroup: u64) -> Option<Owner> {
    // SAFETY: the value is four bytes, read at once; the agent changes it by replacing it.
    let slot = *unsafe { PODS.get(cgroup) }?;
    if slot == UNGOVERNED {
        return Some(without_slot(Standing::Ungoverned, cgroup));
    }
    let revision = match REVISIONS.get_ptr(slot) {
        // SAFETY: an element of an array map; volatile, so that the word is read once.
        Some(word) => unsafe { core::ptr::read_volatile(word) },
        // Asked only here, where it costs governed pods nothing: it lies beyond the last slot.
        None if slot == UNPROTECTED => return Some(without_slot(Standing::Unprotected, cgroup)),
        // No slot of ours: no record will fit, and the pod is denied.
        None => 0,
    };
    Some(Owner { standing: Standing::Governed, cgroup, slot, revision })
}

/// Returns whose packet `skb` is, by the cgroup its socket was made in.
///
/// Burstable and best-effort pods stand two levels below kubepods, guaranteed ones one level below.
#[inline(always)]
pub fn of_packet(skb: Skb) -> Owner {
    let level = kubepods_level();
    let inner = skb.ancestor_cgroup(level + 2);
    if let Some(owner) = known(inner) {
        return owner;
    }
    let outer = skb.ancestor_cgroup(level + 1);
    if let Some(owner) = known(outer) {
        return owner;
    }
    without_slot(Standing::Unknown, if inner != 0 { inner } else { outer })
}

/// Returns whose call it is, by the cgroup of the calling task; the task may be outside (a socket can be handed to another
/// process; the packet hook then judges by the socket).
#[inline(always)]
pub fn of_task() -> Owner {
    let level = kubepods_level();
    // SAFETY: the helper takes a number and returns one.
    let ancestor = |level| unsafe { bpf_get_current_ancestor_cgroup_id(level) };
    let inner = ancestor(level + 2);
    if let Some(owner) = known(inner) {
        return owner;
    }
    let outer = ancestor(level + 1);
    if let Some(owner) = known(outer) {
        return owner;
    }
    if ancestor(level) != read_setting(setting::KUBEPODS) {
        return without_slot(Standing::Outside, 0);
    }
    without_slot(Standing::Unknown, if inner != 0 { inner } else { outer })
}

/// Returns the record that `revision` made current; `None` where there is none, which must deny. That happens to a packet whose pod
/// is being taken out of the maps.
#[inline(always)]
pub fn record(slot: u32, revision: u64) -> Option<&'static Endpoint> {
    let record = ENDPOINTS.get(record_index(slot, revision))?;
    (record.revision == revision && record.flags & flags::GOVERNED != 0).then_some(record)
}
