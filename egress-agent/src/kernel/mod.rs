//! The thin side towards the kernel: the object, the maps, the events.

pub mod bpf;
pub mod cgroup;
pub mod clock;
#[cfg(feature = "debug-log")]
pub mod debug_log;
pub mod engine;
pub mod events;
pub mod loader;
pub mod maps;
pub mod object;
pub mod program_run;
