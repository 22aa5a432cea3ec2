//! `cargo xtask image`: the agent as a static program for each architecture, and the container image around it.
//!
//! No daemon and no base image are needed: the image has one program, Mozilla's authorities, a user, and the licences. What packs it is a
//! package of its own, `xtask-pack`.
//!
//! The programs are linked with Zig's own C library, linker and start files, which a Python package brings for every target, and with a standard
//! library that is compiled from the same source as everywhere: nothing of this machine is in them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, iter};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;
use crate::{build, process, python, toolchain};

/// What links: cargo-zigbuild, which runs cargo with Zig as C compiler and linker, and Zig itself, which has the source of musl.
const TOOLS: &str = "xtask/src/image.txt";
/// What Zig links in besides, each with its licence in Zig's folder.
const LINKED: [(&str, &str); 3] = [
    ("musl 1.2.5", "lib/libc/musl/COPYRIGHT"),
    ("LLVM libunwind", "lib/libunwind/LICENSE.TXT"),
    ("Zig compiler-rt", "LICENSE"),
];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// For which architectures: amd64, arm64
    #[arg(long, value_delimiter = ',', default_value = "amd64,arm64")]
    arch: Vec<Architecture>,
    /// The image's name, such as registry.example.com/egress-agent
    #[arg(long, default_value = "egress-agent")]
    name: String,
    /// The image's tag [default: the version of the workspace]
    #[arg(long)]
    tag: Option<String>,
    /// Where the sources can be had, for the image's labels
    #[arg(long, value_name = "URL")]
    source: Option<String>,
    /// The address below which the archives will be; writes the kubectl plugin's manifest for krew
    #[arg(long, value_name = "URL")]
    download: Option<String>,
    /// Where the results go [default: target/image/out]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write what a container sees as / into folders too: rootfs/ARCH
    #[arg(long)]
    unpacked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    /// The name that OCI and Go have for it.
    fn name(self) -> &'static str {
        match self {
            Architecture::Amd64 => "amd64",
            Architecture::Arm64 => "arm64",
        }
    }

    fn target(self) -> &'static str {
        match self {
            Architecture::Amd64 => "x86_64-unknown-linux-musl",
            Architecture::Arm64 => "aarch64-unknown-linux-musl",
        }
    }
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let out =
        arguments.out.as_ref().map_or_else(|| folder(workspace).join("out"), |out| workspace.root.join(out));
    let object = build::object(workspace, false)?;
    let zig = Zig::ensure(workspace)?;
    let sources = Sources::of(workspace)?;
    let mut pack = pack(workspace);
    for architecture in &arguments.arch {
        let program = program(workspace, *architecture, &object, &zig)?;
        pack.args(["--program", &format!("{}={}", architecture.name(), program.display())]);
    }
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    pack.arg("--root").arg(&workspace.root).arg("--out").arg(&out).args(["--name", &arguments.name]);
    pack.args(["--version", arguments.tag.as_deref().unwrap_or(env!("CARGO_PKG_VERSION"))]);
    pack.args(["--revision", &sources.revision, "--created", &sources.time.to_string()]);
    let zig = zig.folder()?;
    for (name, licence) in LINKED {
        pack.args(["--notice", &format!("{name}={}", zig.join(licence).display())]);
    }
    if let Some(source) = &arguments.source {
        pack.args(["--source", source]);
    }
    if let Some(download) = &arguments.download {
        pack.args(["--download", download]);
    }
    if arguments.unpacked {
        pack.arg("--unpacked");
    }
    process::run(&mut pack)
}

/// Returns the architecture of this machine.
fn here() -> Result<Architecture> {
    match env::consts::ARCH {
        "x86_64" => Ok(Architecture::Amd64),
        "aarch64" => Ok(Architecture::Arm64),
        other => bail!("no image is made for {other}"),
    }
}

/// Builds the image's program for this machine and returns its path.
pub(crate) fn program_of_this_machine(workspace: &Workspace, object: &Path) -> Result<PathBuf> {
    program(workspace, here()?, object, &Zig::ensure(workspace)?)
}

/// Builds the image of this machine's architecture and returns its layout.
pub(crate) fn for_tests(workspace: &Workspace) -> Result<PathBuf> {
    let out = folder(workspace).join("tested");
    let arguments = Arguments {
        arch: vec![here()?],
        name: "egress-agent".to_owned(),
        tag: None,
        source: None,
        download: None,
        out: Some(out.clone()),
        unpacked: false,
    };
    run(workspace, &arguments)?;
    Ok(out.join("oci"))
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target.join("image")
}

fn pack(workspace: &Workspace) -> Command {
    let mut command = workspace.cargo();
    command.args(["run", "--quiet", "--locked", "--package", "xtask-pack", "--"]);
    command
}

/// Builds the static program of one architecture and returns its path.
fn program(workspace: &Workspace, architecture: Architecture, object: &Path, zig: &Zig) -> Result<PathBuf> {
    let target = architecture.target();
    let mut build = zig.cargo(workspace)?;
    build.args(["--release", "--locked", "--package", "egress-agent", "--bin", "egress-agent"]);
    build.args(["--target", target, "-Z", "build-std=std,panic_unwind"]);
    build.arg("--target-dir").arg(folder(workspace));
    build.env("EGRESS_BPF_OBJECT", object);
    if architecture == Architecture::Arm64 {
        // The allocator works on kernels whose pages are not larger than this: 64 KiB, which arm64 may have.
        build.env("JEMALLOC_SYS_WITH_LG_PAGE", "16");
    }
    process::run(&mut build)?;
    Ok(folder(workspace).join(target).join("release").join("egress-agent"))
}

/// Zig, and the cargo that links with it.
struct Zig {
    /// The Python environment both are in.
    environment: PathBuf,
}

impl Zig {
    fn ensure(workspace: &Workspace) -> Result<Self> {
        toolchain::ensure(workspace)?;
        let environment = workspace.target.join("xtask").join("image").join("venv");
        python::locked(&environment, &workspace.root.join(TOOLS)).with_context(|| {
            format!("what {TOOLS} names cannot be installed; it needs `apt-get install --yes python3-venv` and pip's index")
        })?;
        Ok(Self { environment })
    }

    /// Returns a cargo command that compiles C and links with Zig, and takes none of the caller's compiler flags.
    fn cargo(&self, workspace: &Workspace) -> Result<Command> {
        let programs = self.environment.join("bin");
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(iter::once(programs.clone()).chain(env::split_paths(&path)))
            .context("PATH cannot be extended")?;
        // A static program with the linker's own start files, at an address of its own at each start.
        let mut flags = vec!["-Clink-self-contained=no".to_owned(), "-Clink-arg=-pie".to_owned()];
        flags.extend(workspace.remapped()?);
        let mut command = Command::new(programs.join("cargo-zigbuild"));
        workspace.without_settings(&mut command);
        command
            .arg("zigbuild")
            .env("PATH", path)
            .env("VIRTUAL_ENV", &self.environment)
            // The standard library is built from source, which a stable compiler allows only with this.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        Ok(command)
    }

    /// Returns the folder of Zig itself.
    fn folder(&self) -> Result<PathBuf> {
        let program = "import ziglang, os; print(os.path.dirname(ziglang.__file__))";
        let folder =
            process::output(Command::new(self.environment.join("bin/python")).args(["-c", program]))?;
        Ok(PathBuf::from(folder.trim()))
    }
}

/// What the programs are built from.
struct Sources {
    /// The commit, with `-dirty` if files differ from it.
    revision: String,
    /// When it was made, in seconds since 1970.
    time: u64,
}

impl Sources {
    /// Asks git; `SOURCE_DATE_EPOCH` and `EGRESS_REVISION` answer for a copy without its history.
    fn of(workspace: &Workspace) -> Result<Self> {
        let git = |arguments: &[&str]| {
            process::output(Command::new("git").arg("-C").arg(&workspace.root).args(arguments))
        };
        let given = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let revision = match given("EGRESS_REVISION") {
            Some(revision) => revision,
            None => {
                let commit = git(&["rev-parse", "HEAD"]).context(
                    "no commit is known; set EGRESS_REVISION and SOURCE_DATE_EPOCH if this copy has no history",
                )?;
                let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
                format!("{}{}", commit.trim(), if changed { "-dirty" } else { "" })
            }
        };
        let time = match given("SOURCE_DATE_EPOCH") {
            Some(time) => time,
            None => git(&["log", "-1", "--format=%ct"])?,
        };
        let time =
            time.trim().parse().with_context(|| format!("{:?} is no number of seconds", time.trim()))?;
        Ok(Self { revision, time })
    }
}
