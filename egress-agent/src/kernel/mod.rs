//! The thin side towards the kernel: the object, the maps, the events.

pub mod bpf;
pub mod cgroup;
pub mod clock;
pub mod engine;
pub mod events;
pub mod loader;
pub mod maps;
pub mod object;
pub mod program_run;
