//! The thin side towards the kernel: the object, the maps, the events.

pub mod object;
