//! The node's settings that can change while the programs run, and the constants fixed when they are loaded.

/// Indices of the settings map, an array of 64-bit words so that each changes in one store.
pub mod setting {
    /// Kernel ticks to add to `jiffies64` to get ticks since the epoch. Rewritten when the wall clock jumps.
    pub const CLOCK_OFFSET: u32 = 0;
    /// 1: a pod that is not in the maps is denied; 0: it passes and is counted.
    pub const STRICT: u32 = 1;
    /// 1: the connect and sendmsg hooks judge; 0: they let everything through to the packet hook.
    pub const CONNECT_HOOKS: u32 = 2;
    /// The cgroup id of the kubepods cgroup.
    pub const KUBEPODS: u32 = 3;
    /// Ticks of `jiffies64` per second. Never 0 while programs are attached.
    pub const TICKS_PER_SECOND: u32 = 4;
    /// `jiffies64` when the clock program last ran. Written by it.
    pub const SEEN_TICKS: u32 = 5;
    /// `CLOCK_MONOTONIC` in nanoseconds at that moment. Written by it.
    pub const SEEN_NANOSECONDS: u32 = 6;
    /// 1: what a policy allows is told as well, when it is judged; 0: only what it does not. On while somebody asks for it.
    pub const TELL_ALLOWED: u32 = 7;
    /// How many words there are.
    pub const COUNT: u32 = 8;
}

/// Names of the constants the loader writes into the object before it is verified.
pub mod constant {
    /// The depth of the kubepods cgroup below the cgroup v2 root (`u32`). Pods stand one level below (guaranteed) or two.
    pub const KUBEPODS_LEVEL: &str = "KUBEPODS_LEVEL";
    /// 0: never keep a verdict in a socket; 1: keep it where it pays (`u32`). Off only for measurements.
    pub const KEEP_VERDICTS: &str = "KEEP_VERDICTS";
}
