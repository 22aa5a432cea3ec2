//! Whose packet it is: from a socket's or a task's cgroup to the endpoint that holds for it.

use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use egress_common::{
    config::setting,
    endpoint::{Endpoint, UNGOVERNED, flags, record_index},
};

use crate::{
    maps::{ENDPOINTS, PODS, REVISIONS, kubepods_level, setting as read_setting},
    skb::Skb,
};

/// Whose packet or call it is.
#[derive(Clone, Copy)]
pub enum Owner {
    /// A pod with an endpoint; its cgroup id, slot and the revision in force.
    Governed {
        /// The pod's cgroup id.
        cgroup: u64,
        /// Its slot.
        slot: u32,
        /// What holds for it now.
        revision: u64,
    },
    /// A pod no policy governs.
    Ungoverned,
    /// A cgroup below kubepods that the maps do not know; its id.
    Unknown(u64),
}

#[inline(always)]
fn known(cgroup: u64) -> Option<Owner> {
    // SAFETY: the value is four bytes, read at once; the agent changes it by replacing it.
    let slot = *unsafe { PODS.get(cgroup) }?;
    if slot == UNGOVERNED {
        return Some(Owner::Ungoverned);
    }
    let revision = REVISIONS.get_ptr(slot)?;
    // SAFETY: an element of an array map; volatile, so that the word is read once.
    let revision = unsafe { core::ptr::read_volatile(revision) };
    Some(Owner::Governed { cgroup, slot, revision })
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
    Owner::Unknown(if inner != 0 { inner } else { outer })
}

/// Returns whose call it is, by the cgroup of the calling task; `None` when the task is not below kubepods (a socket can be
/// handed to another process; the packet hook then judges by the socket).
#[inline(always)]
pub fn of_task() -> Option<Owner> {
    let level = kubepods_level();
    // SAFETY: the helper takes a number and returns one.
    let ancestor = |level| unsafe { bpf_get_current_ancestor_cgroup_id(level) };
    let inner = ancestor(level + 2);
    if let Some(owner) = known(inner) {
        return Some(owner);
    }
    let outer = ancestor(level + 1);
    if let Some(owner) = known(outer) {
        return Some(owner);
    }
    if ancestor(level) != read_setting(setting::KUBEPODS) {
        return None;
    }
    Some(Owner::Unknown(if inner != 0 { inner } else { outer }))
}

/// Returns the record that `revision` made current. A slot that was given up keeps its last record for packets under way, whose
/// revision is then an older one.
#[inline(always)]
pub fn record(slot: u32, revision: u64) -> Option<&'static Endpoint> {
    let record = ENDPOINTS.get(record_index(slot, revision))?;
    (record.flags & flags::GOVERNED != 0).then_some(record)
}
