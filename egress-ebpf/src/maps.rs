//! Every map: who writes it and who reads it. Layouts and names live in `egress_common`; sizes here are defaults that the
//! loader overrides.

use aya_ebpf::{
    bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use egress_common::{
    config::setting,
    endpoint::Endpoint,
    event::{Bucket, Event},
    maps::{self, Counter, capacity, node_counter},
    policy::{AddressKey, RuleEntry, Span},
    socket::{ReplyKey, SocketState},
    verdict::CLASSES,
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const ENDPOINTS_MAX: usize = capacity::ENDPOINTS as usize;

/// Which slot a pod has. Agent writes, programs read.
#[btf_map]
pub static PODS: HashMap<u64, u32, ENDPOINTS_MAX> = HashMap::new();

/// Which revision of a slot holds. Agent writes (one store), programs read on every packet.
#[btf_map]
pub static REVISIONS: Array<u64, ENDPOINTS_MAX> = Array::new();

/// What holds for a slot under a revision. Agent writes the record not in force, programs read the one that is.
#[btf_map]
pub static ENDPOINTS: Array<Endpoint, { 2 * ENDPOINTS_MAX }> = Array::new();

/// Single addresses of all sets. Agent writes, programs read.
#[btf_map]
pub static EXACT: HashMap<AddressKey, Span, { capacity::EXACT as usize }, NO_PREALLOC> = HashMap::new();

/// Prefixes of all sets. Agent writes, programs read.
#[btf_map]
pub static PREFIXES: LpmTrie<AddressKey, Span, { capacity::PREFIXES as usize }> = LpmTrie::new();

/// Rule entries of all sets. Agent writes blocks no span points to yet, programs read.
#[btf_map]
pub static RULES: Array<RuleEntry, { capacity::RULES as usize }> = Array::new();

/// Verdicts kept in sockets. Programs write and read.
#[btf_map]
pub static SOCKETS: SocketStorage = SocketStorage::new();

/// Peers that sent datagrams. Programs write and read.
#[btf_map]
pub static REPLIES: LruHashMap<ReplyKey, u64, { capacity::REPLIES as usize }> = LruHashMap::new();

/// Packets and bytes by slot and class. Programs write, agent reads.
#[btf_map]
pub static COUNTERS: PerCpuArray<Counter, { ENDPOINTS_MAX * CLASSES as usize }> = PerCpuArray::new();

/// Packets and bytes by rule. Programs write, agent reads.
#[btf_map]
pub static RULE_COUNTERS: PerCpuArray<Counter, { capacity::RULE_SLOTS as usize }> = PerCpuArray::new();

/// Which rule a slot stands for. Agent writes; the agent that takes over reads.
#[btf_map]
pub static RULE_IDENTITIES: Array<u64, { capacity::RULE_SLOTS as usize }> = Array::new();

/// Losses and failures of the node. Programs write, agent reads.
#[btf_map]
pub static NODE_COUNTERS: PerCpuArray<u64, { node_counter::COUNT as usize }> = PerCpuArray::new();

/// Sockets that sent a packet of late. Programs write and read.
#[btf_map]
pub static RECENT: PerCpuArray<u64, { maps::RECENT as usize }> = PerCpuArray::new();

/// Each slot's allowance of events. Programs write and read.
#[btf_map]
pub static BUCKETS: Array<Bucket, ENDPOINTS_MAX> = Array::new();

/// Denied and audited packets, and allowed ones while somebody asks. Programs write, agent reads.
#[btf_map]
pub static EVENTS: RingBuf<Event, { capacity::EVENT_BYTES as usize }> = RingBuf::new();

/// What can change while the programs run. Agent writes, programs read.
#[btf_map]
pub static SETTINGS: Array<u64, { setting::COUNT as usize }> = Array::new();

/// A socket storage whose values an accepted socket inherits from its listener. aya-ebpf's own type lacks that flag.
#[repr(C)]
pub struct SocketStorage {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const SocketState,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the fields describe the map to the loader and are never dereferenced; the kernel synchronises access to a map.
unsafe impl Sync for SocketStorage {}

impl SocketStorage {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The address the loader replaces by the map itself.
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// Depth of the kubepods cgroup. Written by the loader, see [`egress_common::config::constant`].
#[unsafe(no_mangle)]
static KUBEPODS_LEVEL: u32 = 0;
/// Whether verdicts are kept in sockets.
#[unsafe(no_mangle)]
static KEEP_VERDICTS: u32 = 0;

#[inline(always)]
fn constant(word: &u32) -> u32 {
    // SAFETY: a shared reference to a static. Volatile, because the loader changes the value after compilation.
    unsafe { core::ptr::read_volatile(word) }
}

/// Ticks per second.
#[inline(always)]
pub fn ticks_per_second() -> u64 {
    setting(setting::TICKS_PER_SECOND)
}

/// Depth of the kubepods cgroup below the root.
#[inline(always)]
pub fn kubepods_level() -> i32 {
    constant(&KUBEPODS_LEVEL) as i32
}

/// Whether verdicts are kept in sockets.
#[inline(always)]
pub fn keep_verdicts() -> bool {
    constant(&KEEP_VERDICTS) != 0
}

/// Reads a word of the settings.
#[inline(always)]
pub fn setting(index: u32) -> u64 {
    SETTINGS.get(index).copied().unwrap_or(0)
}
