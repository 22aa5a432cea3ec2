//! Puts the kernel object where the agent embeds it from.
//!
//! `cargo xtask build` names the object in `EGRESS_BPF_OBJECT`. A plain `cargo build` does not, and embeds nothing: the
//! agent then says at start-up that it was built without its kernel programs.

use std::path::PathBuf;
use std::{env, fs};

const VARIABLE: &str = "EGRESS_BPF_OBJECT";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    let out_dir = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    let embedded = PathBuf::from(out_dir).join("egress-ebpf.o");
    let object = match env::var_os(VARIABLE) {
        None => Vec::new(),
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo:rerun-if-changed={}", path.display());
            fs::read(&path).unwrap_or_else(|e| panic!("{VARIABLE}: cannot read {}: {e}", path.display()))
        }
    };
    // Relative relocations in a few kilobytes instead of half a megabyte that stays resident. The static binary of the image has another
    // linker, which does not take the flag; their pages are given back at the start (heap.rs).
    if env::var_os("CARGO_CFG_TARGET_ENV").is_some_and(|env| env == "gnu") {
        println!("cargo:rustc-link-arg-bin=egress-agent=-Wl,-z,pack-relative-relocs");
    }
    fs::write(&embedded, object).unwrap_or_else(|e| panic!("cannot write {}: {e}", embedded.display()));
}
