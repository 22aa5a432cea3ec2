//! Where this checkout and its build output are.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What cargo sets for the programs it runs, and what would change the flags of the cargo we start.
const HARMFUL: [&str; 7] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "RUSTC",
    "RUSTFLAGS",
];

/// The two directories every task needs.
pub(crate) struct Workspace {
    /// The directory of the top `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's build output: `CARGO_TARGET_DIR`, or `target` in the root.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Returns the workspace that this program was compiled from.
    pub(crate) fn locate() -> Workspace {
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace");
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        Workspace { root: root.to_owned(), target }
    }

    /// Returns a cargo command that runs in the root with the caller's own compiler flags.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(cargo_program());
        command.current_dir(&self.root);
        command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
        command
    }

    /// Returns a cargo command for the BPF target, which takes none of the caller's compiler flags.
    ///
    /// `verb` is `build` or `clippy`. The output has its own directory, so that these flags never rebuild the host's crates.
    pub(crate) fn bpf_cargo(&self, verb: &str, linker: &Path) -> Command {
        let mut command = Command::new(cargo_program());
        command.current_dir(&self.root);
        for name in HARMFUL {
            command.env_remove(name);
        }
        let flags = [
            format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            // Otherwise the linker keeps clearing and copying of any size as calls of functions that go byte by byte: 83
            // instructions to clear the 12 bytes of a key, for every packet.
            "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
            format!("-Clinker={}", linker.display()),
        ];
        command
            // The standard library is built from source, which a stable compiler allows only with this.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .args([verb, "--package", "egress-ebpf", "--target", BPF_TARGET, "-Z", "build-std=core"])
            .args(["--profile", "bpf", "--target-dir"])
            .arg(self.target.join("bpf"));
        command
    }

    /// Returns where `bpf_cargo("build", ..)` leaves its result.
    pub(crate) fn bpf_output(&self) -> PathBuf {
        self.target.join("bpf").join(BPF_TARGET).join("bpf").join("egress-ebpf")
    }
}

const BPF_TARGET: &str = "bpfel-unknown-none";

fn cargo_program() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
