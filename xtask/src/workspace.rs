//! Where this checkout and its build output are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};

use crate::process;

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

/// How variables begin that change how C is compiled, profiles, or which allocator is linked.
const SETTINGS: [&str; 14] = [
    "AR",
    "CARGO_PROFILE_",
    "CARGO_TARGET_AARCH64_",
    "CARGO_TARGET_X86_64_",
    "CC",
    "CFLAGS",
    "CXX",
    "HOST_C",
    "JEMALLOC_",
    "LDFLAGS",
    "MALLOC_CONF",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "TARGET_C",
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
    pub(crate) fn bpf_cargo(&self, verb: &str, linker: &Path) -> Result<Command> {
        let mut command = Command::new(cargo_program());
        self.without_flags(&mut command);
        let mut flags = vec![
            format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            // Otherwise the linker keeps clearing and copying of any size as calls of functions that go byte by byte: 83
            // instructions to clear the 12 bytes of a key, for every packet.
            "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
            format!("-Clinker={}", linker.display()),
        ];
        flags.extend(self.remapped()?);
        command
            // The standard library is built from source, which a stable compiler allows only with this.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .args([verb, "--package", "egress-ebpf", "--target", BPF_TARGET, "-Z", "build-std=core"])
            .args(["--profile", "bpf", "--target-dir"])
            .arg(self.target.join("bpf"));
        Ok(command)
    }

    /// Returns flags of rustc that keep folders of this machine out of what is built, so that it is the same everywhere.
    pub(crate) fn remapped(&self) -> Result<Vec<String>> {
        let sysroot = process::output(Command::new("rustc").args(["--print", "sysroot"]))?;
        let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
        let mut places = vec![(self.root.clone(), "/egress-agent"), (library, "/rust")];
        // One folder for each registry, and for each way to reach it. There is none where crates are vendored.
        let registries = cargo_home()?.join("registry").join("src");
        if registries.is_dir() {
            let failed = || format!("cannot list {}", registries.display());
            for entry in fs::read_dir(&registries).with_context(failed)? {
                places.push((entry.with_context(failed)?.path(), "/crates"));
            }
        }
        // A compiler may follow links and then has the real names.
        for (place, name) in places.clone() {
            let real = place.canonicalize().with_context(|| format!("cannot find {}", place.display()))?;
            if real != place {
                places.push((real, name));
            }
        }
        Ok(places
            .iter()
            .map(|(place, name)| format!("--remap-path-prefix={}={name}", place.display()))
            .collect())
    }

    /// Has a cargo command run in the root and take none of the caller's compiler flags.
    pub(crate) fn without_flags(&self, command: &mut Command) {
        command.current_dir(&self.root);
        for name in HARMFUL {
            command.env_remove(name);
        }
    }

    /// Has a command that builds a release take nothing from the caller's environment that changes what is built.
    pub(crate) fn without_settings(&self, command: &mut Command) {
        self.without_flags(command);
        for (name, _) in env::vars_os() {
            if SETTINGS.iter().any(|setting| name.to_string_lossy().starts_with(setting)) {
                command.env_remove(name);
            }
        }
    }

    /// Returns where `bpf_cargo("build", ..)` leaves its result.
    pub(crate) fn bpf_output(&self) -> PathBuf {
        self.target.join("bpf").join(BPF_TARGET).join("bpf").join("egress-ebpf")
    }
}

const BPF_TARGET: &str = "bpfel-unknown-none";

/// Returns where cargo keeps what it has downloaded and installed.
pub(crate) fn cargo_home() -> Result<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let default = || env::home_dir().map(|home| home.join(".cargo"));
    home.or_else(default).context("neither CARGO_HOME nor a home directory is known")
}

fn cargo_program() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
