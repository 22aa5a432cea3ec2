//! The kernel object inside this binary.

/// The bytes that `build.rs` put in `OUT_DIR`, aligned as the ELF parser wants them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress-ebpf.o"));

/// Returns the kernel object, or `None` when the binary was built without one.
///
/// `cargo xtask build` embeds it; a plain `cargo build` has nothing to embed.
pub fn embedded() -> Option<&'static [u8]> {
    (!OBJECT.is_empty()).then_some(OBJECT)
}
