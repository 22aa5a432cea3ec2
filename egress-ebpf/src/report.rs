//! Counting and telling.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use egress_common::{
    config::setting,
    event::{Bucket, EVENTS_PER_SECOND, Event, Hook, LESSER_EVENTS_PER_SECOND},
    maps::{Counter, node_counter},
    policy::NO_RULE,
    verdict::{CLASSES, Decision, Reason, Verdict, class},
};

use crate::{
    maps::{self, BUCKETS, COUNTERS, EVENTS, NODE_COUNTERS, RULE_COUNTERS, ticks_per_second},
    parse::Packet,
    policy::jiffies,
};

/// Adds a packet of `bytes` to an endpoint's counter of that class and to the deciding rule's.
#[inline(always)]
pub fn count(slot: u32, class: u32, rule: u32, bytes: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(slot.wrapping_mul(CLASSES).wrapping_add(class)) {
        add(counter, bytes);
    }
    if rule != NO_RULE
        && let Some(counter) = RULE_COUNTERS.get_ptr_mut(rule)
    {
        add(counter, bytes);
    }
}

#[inline(always)]
fn add(counter: *mut Counter, bytes: u32) {
    // SAFETY: an element of a per-CPU map, so no other processor writes it. A softirq that comes between load and store can cost a
    // count; that is the price of not locking.
    unsafe {
        (*counter).packets += 1;
        (*counter).bytes += u64::from(bytes);
    }
}

/// Adds one to a counter of the node.
#[inline(always)]
pub fn count_node(index: u32) {
    if let Some(counter) = NODE_COUNTERS.get_ptr_mut(index) {
        // SAFETY: as in `add`.
        unsafe { *counter += 1 }
    }
}

/// Where and about what something was decided.
pub struct Occasion<'a> {
    /// The pod's cgroup id.
    pub cgroup: u64,
    /// Its slot.
    pub slot: u32,
    /// Which hook.
    pub hook: Hook,
    /// The packet, or what the call would send.
    pub packet: &'a Packet,
    /// Its length; 0 for calls.
    pub length: u32,
    /// Of an audited packet, whether it may be the first of its flow.
    pub first: bool,
}

/// Counts a decision, and sends an event unless it is an allow nobody asks for.
#[inline(always)]
pub fn record(occasion: &Occasion<'_>, decision: &Decision) {
    count(occasion.slot, class(decision.verdict, decision.reason), decision.rule, occasion.length);
    let allowance = match decision.verdict {
        Verdict::Allow => {
            let judged = matches!(decision.reason, Reason::AllowedDestination | Reason::DefaultAllow);
            if !judged || maps::setting(setting::TELL_ALLOWED) == 0 {
                return;
            }
            LESSER_EVENTS_PER_SECOND
        }
        Verdict::Audit if !occasion.first => LESSER_EVENTS_PER_SECOND,
        Verdict::Audit | Verdict::Deny => EVENTS_PER_SECOND,
    };
    tell(occasion, decision, allowance);
}

/// Sends an event if fewer than `allowance` of the pod were sent in this second; otherwise counts it.
#[inline(always)]
fn tell(occasion: &Occasion<'_>, decision: &Decision, allowance: u32) {
    let Some(bucket) = BUCKETS.get_ptr_mut(occasion.slot) else { return };
    let now = jiffies();
    // SAFETY: an element of an array map, used field by field. Processors may race on it; see `Bucket`.
    let bucket: &mut Bucket = unsafe { &mut *bucket };
    if now.wrapping_sub(bucket.window) >= ticks_per_second() {
        bucket.window = now;
        bucket.used = 0;
    }
    if bucket.used >= allowance {
        bucket.suppressed = bucket.suppressed.wrapping_add(1);
        count_node(node_counter::EVENTS_SUPPRESSED);
        return;
    }
    bucket.used += 1;
    let Some(mut entry) = EVENTS.reserve(0) else {
        count_node(node_counter::EVENTS_LOST);
        return;
    };
    entry.write(Event {
        // SAFETY: the helper takes nothing and returns a number.
        time_ns: unsafe { bpf_ktime_get_ns() },
        cgroup: occasion.cgroup,
        source: occasion.packet.source,
        destination: occasion.packet.destination,
        slot: occasion.slot,
        rule: decision.rule,
        length: occasion.length,
        source_port_be: occasion.packet.source_port_be,
        destination_port_be: occasion.packet.destination_port_be,
        suppressed: bucket.suppressed,
        protocol: occasion.packet.protocol,
        verdict: decision.verdict as u8,
        reason: decision.reason as u8,
        hook: occasion.hook as u8,
    });
    bucket.suppressed = 0;
    entry.submit(0);
}
