//! `cargo xtask kernels`: the kernel tests on kernels other than this machine's.
//!
//! Debian's kernels boot under QEMU without hardware support in a few seconds, and need no privilege. Everything they run comes in
//! an initial file system made here: the test programs linked statically, busybox, `ip`, and the modules a lab needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::Workspace;
use crate::{apt, build, process};

/// The kernels that are tried unless others are named: what nodes run today, oldest first, and the newest there is.
const SERIES: [&str; 4] = ["5.10", "6.1", "6.12", NEWEST];
const NEWEST: &str = "newest";
/// The suites that have them.
const SUITES: [&str; 4] = ["bullseye", "bookworm", "trixie", "trixie-backports"];
/// What the static programs are built for, and what the kernels run on.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Modules the labs need, each after what it needs itself.
const MODULES: [&str; 4] = ["llc", "stp", "bridge", "veth"];
/// The test programs, and for how many seconds each may run.
const TESTS: [(&str, u32); 3] = [("load", 90), ("program_run", 180), ("sockets", 900)];
/// How many random clusters `program_run` tries: an emulated processor is slow.
const CASES: u32 = 40;
/// How long a virtual machine may run.
const LIMIT: Duration = Duration::from_secs(1200);
/// Begins the lines that the guest's script writes, as opposed to the programs it runs.
const MARK: &str = "@@ ";
/// Programs this task calls, and the package that has each.
const TOOLS: [(&str, &str); 7] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("ip", "iproute2"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("strip", "binutils"),
    ("xz", "xz-utils"),
];

/// Where the guest has the object that logs.
const DEBUG_OBJECT: &str = "tests/egress-ebpf-debug.o";

/// The page that keeps the last complete result, and where in it.
const PAGE: &str = "docs/kernels.md";
const BEGIN: &str = "<!-- results: written by `cargo xtask kernels --record` -->";
const END: &str = "<!-- end of results -->";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Series to run on, such as 5.10, or `newest` [default: 5.10 6.1 6.12 newest]
    #[arg(value_name = "VERSION")]
    versions: Vec<String>,
    /// Use this kernel object instead of building one
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
    /// Leave this test program out (load, program_run, sockets); may be repeated
    #[arg(long, value_name = "TEST")]
    without: Vec<String>,
    /// Run only the tests whose name contains this
    #[arg(long, value_name = "TEXT", value_parser = filter, conflicts_with = "record")]
    only: Option<String>,
    /// Look for newer releases of the kernels that were downloaded before
    #[arg(long)]
    refresh: bool,
    /// Write the results into docs/kernels.md
    #[arg(long)]
    record: bool,
}

/// A kernel that was downloaded and unpacked.
struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

/// What a kernel said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// Its release, once it had started.
    release: Option<String>,
    /// Instructions the verifier walked, by program, in words.
    verified: BTreeMap<String, String>,
    tests: BTreeMap<String, Ended>,
    seconds: u64,
}

/// How a test program ended.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ended {
    passed: u32,
    failed: BTreeSet<String>,
    /// Its exit status; `None` when the kernel did not live to tell.
    status: Option<i32>,
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "this task needs an x86_64 machine: it runs programs built here"
    );
    check_tools()?;
    let tests: Vec<_> =
        TESTS.into_iter().filter(|(test, _)| !arguments.without.iter().any(|out| out == test)).collect();
    let folder = workspace.target.join("xtask").join("kernels");
    let versions: Vec<&str> = if arguments.versions.is_empty() {
        SERIES.to_vec()
    } else {
        arguments.versions.iter().map(String::as_str).collect()
    };
    let kernels = fetch(&folder, &versions, arguments.refresh)?;
    let object = match &arguments.object {
        Some(file) => fs::canonicalize(file).with_context(|| format!("cannot find {}", file.display()))?,
        None => build::object(workspace, false)?,
    };
    let only = arguments.only.as_deref().unwrap_or("");
    let debug_object = build::object(workspace, true)?;
    let files = guest_files(workspace, [&object, &debug_object], &folder, &tests, only)?;
    let mut outcomes = Vec::new();
    for (version, kernel) in versions.iter().zip(&kernels) {
        println!("\n{version}");
        let initrd = folder.join(format!("{version}.cpio"));
        write_initrd(&initrd, &files, kernel)?;
        outcomes.push(boot(kernel, &initrd, &folder.join(format!("{version}.log")))?);
    }
    let table = table(&outcomes, &tests);
    println!("\n{table}");
    let failures = failures(&versions, &outcomes, &tests);
    for failure in &failures {
        println!("{failure}");
    }
    println!("the kernels' whole output: {}/*.log", folder.display());
    if arguments.record {
        record(&workspace.root.join(PAGE), &table)?;
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check_tools() -> Result<()> {
    let missing: Vec<_> = TOOLS.iter().filter(|(program, _)| find_program(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    bail!("no {}; install with `apt-get install --yes {}`", programs.join(", "), packages.join(" "))
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Where `ip` is, and not in everyone's path.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Returns a kernel of each version; downloads those that are not there.
fn fetch(folder: &Path, versions: &[&str], refresh: bool) -> Result<Vec<Kernel>> {
    let home = |version: &str| folder.join(version);
    let wanted: BTreeSet<&str> =
        versions.iter().copied().filter(|version| refresh || !home(version).is_dir()).collect();
    if !wanted.is_empty() {
        let work = folder.join("apt");
        let state = apt::State::new(&work, &SUITES)?;
        state.update()?;
        let names = process::output(state.command("apt-cache").args(["pkgnames", "linux-"]))?;
        for version in wanted {
            let release = pick_release(&names, version)
                .with_context(|| format!("none of {} has a kernel {version}", SUITES.join(", ")))?;
            println!("downloading {release}");
            download(&state, &names, &release, &work, &home(version))?;
        }
    }
    versions.iter().map(|version| unpacked(&home(version))).collect()
}

/// Picks the newest release of a series from names of packages.
fn pick_release(names: &str, version: &str) -> Option<String> {
    let of_series = |release: &&str| {
        version == NEWEST || release.strip_prefix(version).is_some_and(|rest| rest.starts_with('.'))
    };
    names
        .lines()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter(|release| {
            release.ends_with("-cloud-amd64") && release.starts_with(|first: char| first.is_ascii_digit())
        })
        .filter(of_series)
        .max_by_key(|release| numbers(release))
        .map(str::to_owned)
}

/// Returns the numbers in a release, for comparing.
fn numbers(release: &str) -> Vec<u32> {
    release.split(|other: char| !other.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn download(state: &apt::State<'_>, names: &str, release: &str, work: &Path, home: &Path) -> Result<()> {
    let split = format!("linux-binary-{release}");
    // From 7.3 on, the image package is empty and needs these two.
    let packages = if names.lines().any(|name| name == split) {
        vec![split, format!("linux-modules-{release}")]
    } else {
        vec![format!("linux-image-{release}")]
    };
    let partial = home.with_extension("partial");
    for old in [&partial, &home.to_owned()] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    for package in packages {
        state.download(&package)?;
        let file = files_below(work)?
            .into_iter()
            .find(|file| {
                let name = file.file_name().expect("a file has a name").to_string_lossy();
                name.starts_with(&format!("{package}_")) && name.ends_with(".deb")
            })
            .with_context(|| format!("apt-get left no {package} in {}", work.display()))?;
        process::run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&partial))?;
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    fs::rename(&partial, home).with_context(|| format!("cannot move {} to its place", partial.display()))
}

fn unpacked(home: &Path) -> Result<Kernel> {
    let files = files_below(home)?;
    let image = files
        .iter()
        .find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")));
    let image = image.with_context(|| format!("no kernel in {}: remove it and try again", home.display()))?;
    Ok(Kernel { image: image.clone(), modules: home.to_owned() })
}

/// Lists all files below a folder, links not followed.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
            let kind =
                entry.file_type().with_context(|| format!("cannot look at {}", entry.path().display()))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Builds the test programs and returns every file of the guest but its modules: path and content.
fn guest_files(
    workspace: &Workspace,
    [object, debug_object]: [&Path; 2],
    folder: &Path,
    tests: &[(&str, u32)],
    only: &str,
) -> Result<Vec<(String, Vec<u8>)>> {
    let mut build = workspace.cargo();
    build.env("EGRESS_BPF_OBJECT", object).env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    build.args([
        "test",
        "--no-run",
        "--package",
        "egress-tests",
        "--target",
        TARGET,
        "--message-format",
        "json-render-diagnostics",
    ]);
    build.args(["--bin", "podrun"]);
    for (test, _) in tests {
        build.args(["--test", test]);
    }
    let messages = process::output(&mut build)?;
    let mut files = vec![("init".to_owned(), script(tests, only).into_bytes())];
    let podrun = workspace.target.join(TARGET).join("debug").join("podrun");
    let mut programs = vec![("podrun", podrun)];
    for (test, _) in tests {
        let program =
            built(&messages, test).with_context(|| format!("cargo tells no path of test {test}"))?;
        programs.push((test, program));
    }
    for (name, program) in programs {
        let stripped = folder.join(format!("{name}.stripped"));
        process::run(Command::new("strip").args(["--strip-debug", "-o"]).arg(&stripped).arg(&program))?;
        files.push((format!("tests/{name}"), read(&stripped)?));
    }
    files.push((DEBUG_OBJECT.to_owned(), read(debug_object)?));
    files.push(("bin/busybox".to_owned(), read(&find_program("busybox").expect("checked at the start"))?));
    let ip = find_program("ip").expect("checked at the start");
    for library in libraries(&ip)? {
        let path = library.to_string_lossy().trim_start_matches('/').to_owned();
        files.push((path, read(&library)?));
    }
    files.push(("sbin/ip".to_owned(), read(&ip)?));
    Ok(files)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Returns the path of a test program from cargo's messages.
fn built(messages: &str, test: &str) -> Option<PathBuf> {
    let begin = format!("/{test}-");
    let paths = messages
        .lines()
        .filter_map(|line| line.split_once("\"executable\":\""))
        .filter_map(|(_, rest)| rest.split('"').next());
    paths.filter(|path| path.contains(&begin)).map(PathBuf::from).next_back()
}

/// Returns the libraries a program is linked with, as `ldd` lists them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = process::output(Command::new("ldd").arg(program))?;
    Ok(listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// Takes part of a test's name, which goes into the guest's script.
fn filter(text: &str) -> Result<String, String> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if plain { Ok(text.to_owned()) } else { Err("a test's name has letters, digits and `_`".to_owned()) }
}

/// What the guest does.
fn script(tests: &[(&str, u32)], only: &str) -> String {
    let mut script = format!(
        "#!/bin/busybox sh\n\
         /bin/busybox mkdir -p /proc /sys /dev /tmp /run /applets\n\
         /bin/busybox --install -s /applets\n\
         export PATH=/sbin:/bin:/applets PROPTEST_CASES={CASES} RUST_BACKTRACE=0 EGRESS_DEBUG_BPF_OBJECT=/{DEBUG_OBJECT}\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs devtmpfs /dev\n\
         mount -t tmpfs tmpfs /tmp\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         for module in /modules/*.ko; do insmod $module; done\n\
         ip link set lo up\n\
         echo \"{MARK}release $(uname -r)\"\n"
    );
    for (test, seconds) in tests {
        script.push_str(&format!(
            "echo '{MARK}begin {test}'\n\
             timeout -s KILL {seconds} /tests/{test} --show-output --test-threads=1 {only} 2>&1\n\
             echo \"{MARK}end {test} $?\"\n"
        ));
    }
    script.push_str("poweroff -f\n");
    script
}

/// Writes the initial file system: an archive as `cpio --format=newc` makes it.
fn write_initrd(file: &Path, files: &[(String, Vec<u8>)], kernel: &Kernel) -> Result<()> {
    let present = files_below(&kernel.modules)?;
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    for (number, module) in (1..).zip(MODULES) {
        let plain = format!("{module}.ko");
        let is_it = |path: &&PathBuf| {
            let name = path.file_name().expect("a file has a name").to_string_lossy();
            name.strip_prefix(&plain).is_some_and(|rest| rest.is_empty() || rest == ".xz")
        };
        // What is not a module is in the kernel itself, or its absence shows in the tests.
        let Some(found) = present.iter().find(is_it) else { continue };
        let bytes = if found.extension().is_some_and(|extension| extension == "xz") {
            let unpacked = Command::new("xz").arg("-dc").arg(found).output().context("cannot start `xz`")?;
            ensure!(unpacked.status.success(), "xz cannot unpack {}", found.display());
            unpacked.stdout
        } else {
            read(found)?
        };
        all.push((format!("modules/{number}-{plain}"), bytes));
    }
    let mut archive = Vec::new();
    let mut folders = BTreeSet::new();
    for (path, bytes) in files.iter().chain(&all) {
        for folder in Path::new(path).ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
            folders.insert(folder.to_string_lossy().into_owned());
        }
        ensure!(u32::try_from(bytes.len()).is_ok(), "{path} is too large for the archive");
    }
    for folder in &folders {
        append(&mut archive, folder, 0o040_755, &[]);
    }
    for (path, bytes) in files.iter().chain(&all) {
        append(&mut archive, path, 0o100_755, bytes);
    }
    append(&mut archive, "TRAILER!!!", 0, &[]);
    fs::write(file, archive).with_context(|| format!("cannot write {}", file.display()))
}

/// Appends a member: a header of hexadecimal numbers, the name and the content, each padded to four bytes.
fn append(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let pad = |archive: &mut Vec<u8>| archive.resize(archive.len().next_multiple_of(4), 0);
    // Inode, mode, owner, group, links, time, size, device (major, minor), the same of the node, length of the name, checksum.
    let fields = [0, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    pad(archive);
    archive.extend(content);
    pad(archive);
}

/// Boots a kernel and reads what it says; keeps all of it in `log`.
fn boot(kernel: &Kernel, initrd: &Path, log: &Path) -> Result<Outcome> {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-machine", "q35,accel=tcg", "-m", "1536", "-smp", "2"]);
    // QEMU 7.2 garbles the flags register in `cmpxchg16b`, which kernels allocate memory with: they die of double faults. Without
    // that instruction `kmalloc_nolock` (Linux 6.18) gives nothing, so socket storage cannot be made, unless the slabs are checked.
    command.args(["-cpu", "max,-cx16"]);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-no-reboot",
        "-monitor",
        "none",
        "-serial",
        "stdio",
    ]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initrd);
    command.args(["-append", "console=ttyS0 quiet panic=-1 slab_debug=F rdinit=/init"]);
    command.stdin(Stdio::null());
    let mut written = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut lines = Vec::new();
    let mut lost = None;
    let begun = Instant::now();
    let status = process::stream_within(&mut command, LIMIT, |line| {
        if let Err(error) = writeln!(written, "{}", line.trim_end()) {
            lost = Some(error);
        }
        lines.push(line.trim_end().to_owned());
    });
    if let Some(error) = lost {
        return Err(error).with_context(|| format!("cannot write {}", log.display()));
    }
    // A kernel that hangs is a result like others; the others are to be heard too.
    if let Err(error) = status {
        eprintln!("{error:#}");
    }
    let seconds = begun.elapsed().as_secs();
    Ok(Outcome { seconds, ..understand(&lines) })
}

/// Reads what the guest said.
fn understand(lines: &[String]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut current = String::new();
    for line in lines {
        if let Some((_, marked)) = line.split_once(MARK) {
            match marked.split_whitespace().collect::<Vec<_>>()[..] {
                ["release", release] => outcome.release = Some(release.to_owned()),
                ["begin", test] => {
                    test.clone_into(&mut current);
                    outcome.tests.insert(current.clone(), Ended::default());
                }
                ["end", test, status] => {
                    if let Some(ended) = outcome.tests.get_mut(test) {
                        ended.status = status.parse().ok();
                    }
                }
                _ => {}
            }
            continue;
        }
        let Some(ended) = outcome.tests.get_mut(&current) else { continue };
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["test", name, "...", "FAILED"] => _ = ended.failed.insert(name.to_owned()),
            ["test", _, "...", .., "ok"] => ended.passed += 1,
            ["verified", program, number] => {
                outcome.verified.insert(program.to_owned(), number.to_owned());
            }
            _ => {}
        }
    }
    outcome
}

/// Returns a sentence for everything that did not go well.
fn failures(versions: &[&str], outcomes: &[Outcome], tests: &[(&str, u32)]) -> Vec<String> {
    let mut failures = Vec::new();
    for (version, outcome) in versions.iter().zip(outcomes) {
        let Some(release) = &outcome.release else {
            failures.push(format!("{version}: did not start"));
            continue;
        };
        for (test, _) in tests {
            match outcome.tests.get(*test) {
                None => failures.push(format!("{release}: {test} was not reached")),
                Some(ended) => {
                    failures
                        .extend(ended.failed.iter().map(|name| format!("{release}: {test}: {name} failed")));
                    match ended.status {
                        Some(0) => {}
                        None => failures.push(format!("{release}: died during {test}")),
                        Some(status) if ended.failed.is_empty() => {
                            failures.push(format!("{release}: {test} ended with status {status}"));
                        }
                        Some(_) => {}
                    }
                }
            }
        }
    }
    failures
}

/// Returns the results as tables in Markdown. A kernel that refuses one program has no numbers at all.
fn table(outcomes: &[Outcome], tests: &[(&str, u32)]) -> String {
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let rule = |columns: usize| format!("|{}\n", "---|".repeat(columns));
    let release = |outcome: &Outcome| outcome.release.clone().unwrap_or_else(|| "did not start".to_owned());
    let mut text = row(["kernel".to_owned(), "loads".to_owned()]
        .into_iter()
        .chain(tests.iter().map(|(test, _)| format!("`{test}`")))
        .chain(["seconds".to_owned()])
        .collect());
    text.push_str(&rule(tests.len() + 3));
    for outcome in outcomes {
        let loads = match outcome.tests.get("load") {
            None => "not asked",
            Some(_) if outcome.verified.is_empty() => "no",
            Some(_) => "yes",
        };
        let mut cells = vec![release(outcome), loads.to_owned()];
        cells.extend(
            tests
                .iter()
                .map(|(test, _)| outcome.tests.get(*test).map_or("not reached".to_owned(), Ended::cell)),
        );
        cells.push(outcome.seconds.to_string());
        text.push_str(&row(cells));
    }
    let programs: BTreeSet<&String> = outcomes.iter().flat_map(|outcome| outcome.verified.keys()).collect();
    if programs.is_empty() {
        return text;
    }
    text.push_str("\nInstructions the verifier walked:\n\n");
    text.push_str(&row(["program".to_owned()].into_iter().chain(outcomes.iter().map(release)).collect()));
    text.push_str(&rule(outcomes.len() + 1));
    for program in programs {
        let number =
            |outcome: &Outcome| outcome.verified.get(program).map_or("refused".to_owned(), String::clone);
        text.push_str(&row([format!("`{program}`")]
            .into_iter()
            .chain(outcomes.iter().map(number))
            .collect()));
    }
    text
}

impl Ended {
    fn cell(&self) -> String {
        let mut cell = format!("{} passed", self.passed);
        if !self.failed.is_empty() {
            cell.push_str(&format!(", {} failed", self.failed.len()));
        }
        match self.status {
            None => cell.push_str(", kernel died"),
            Some(0 | 101) => {}
            Some(status) => cell.push_str(&format!(", status {status}")),
        }
        cell
    }
}

/// Puts the results into the page, with the day.
fn record(page: &Path, table: &str) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let day = process::output(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?;
    let new = replaced(&text, &format!("Run on {}.\n\n{table}", day.trim()))
        .with_context(|| format!("{} lacks the lines `{BEGIN}` and `{END}`", page.display()))?;
    fs::write(page, new).with_context(|| format!("cannot write {}", page.display()))
}

fn replaced(text: &str, results: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{results}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_release_of_a_series_is_picked() {
        let names = "linux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-50-cloud-amd64\nlinux-image-6.1.0-51-amd64\n\
                     linux-image-6.12.107+deb13-cloud-amd64\nlinux-image-cloud-amd64\nlinux-image-6.1.0-60-cloud-amd64-dbg\n";
        assert_eq!(pick_release(names, "6.1").as_deref(), Some("6.1.0-50-cloud-amd64"));
        assert_eq!(pick_release(names, NEWEST).as_deref(), Some("6.12.107+deb13-cloud-amd64"));
        assert_eq!(pick_release(names, "5.10"), None);
    }

    #[test]
    fn an_archive_has_the_layout_the_kernel_reads() {
        let mut archive = Vec::new();
        append(&mut archive, "a", 0o100_755, b"xyz");
        // 110 bytes of header and 2 of name, no padding; then 3 of content and one of padding.
        assert_eq!(archive.len(), 116);
        assert!(archive.starts_with(b"07070100000000000081ed"), "the mark, no inode, and the mode");
        assert_eq!(&archive[110..], b"a\0xyz\0");
    }

    #[test]
    fn what_a_guest_says_is_understood() {
        let said = "[  1.0] noise\n@@ release 5.10.0\n@@ begin load\ntest one ... ok\ntest two ... FAILED\nverified egress 123\n@@ end load 101\n\
                    @@ begin sockets\ntest three ... ok\n[  9.9] Kernel panic";
        let lines: Vec<String> = said.lines().map(str::to_owned).collect();
        let outcome = understand(&lines);
        assert_eq!(outcome.release.as_deref(), Some("5.10.0"));
        assert_eq!(outcome.verified["egress"], "123");
        let tests = [("load", 1), ("sockets", 1), ("program_run", 1)];
        assert_eq!(
            failures(&["5.10"], &[outcome], &tests),
            [
                "5.10.0: load: two failed",
                "5.10.0: died during sockets",
                "5.10.0: program_run was not reached"
            ]
        );
    }

    #[test]
    fn results_take_the_place_of_older_ones() {
        let page = format!("# Kernels\n{BEGIN}\nold\n{END}\nrest\n");
        assert_eq!(
            replaced(&page, "new").expect("both marks"),
            format!("# Kernels\n{BEGIN}\n\nnew\n{END}\nrest\n")
        );
        assert_eq!(replaced("nothing", "new"), None);
    }
}
