//! Asks the kernel and the agent of this node. Changes nothing.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    super::{Fact, Unchecked},
    Attached, Exported, Facts, PinnedLink, Pins, Programs,
};
use crate::{
    agent::status,
    kernel::{
        bpf, cgroup, clock,
        loader::{self, ATTACHED, Capacities, Datapath, LoadError},
        object,
    },
    telemetry::client::{self, Answer},
};

/// Where to look.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of the pins.
    pub pin_dir: PathBuf,
    /// The folder of the agent's socket.
    pub runtime_dir: PathBuf,
    /// Where the agent serves its metrics.
    pub listen: SocketAddr,
    /// The kubepods cgroup, if it is not where kubelet puts it.
    pub kubepods: Option<PathBuf>,
    /// The agent's snapshot.
    pub snapshot: PathBuf,
    /// A BPF object instead of the one in the binary.
    pub object: Option<PathBuf>,
}

/// Gathers what there is to know of this node.
///
/// Programs are loaded to see whether the kernel takes them, and let go at once; they are never attached.
#[must_use]
pub fn gather(options: &Options) -> (Facts, Vec<Unchecked>) {
    let (now, _) = clock::wall_seconds_and_fraction();
    let mount = cgroup::hierarchy();
    let kubepods = cgroup::find(options.kubepods.as_deref());
    let level = kubepods.as_ref().map_or(1, |kubepods| kubepods.level);
    let pins = read_pins(&options.pin_dir);
    let own = pins.as_ref().map(|(_, own)| own.clone()).unwrap_or_default();
    let socket = status::socket(&options.runtime_dir);
    let agent = ask_agent(&socket);
    let facts = Facts {
        now,
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        v1: read(Path::new("/proc/self/mountinfo")).map(|text| v1_controllers(&text)),
        v2: mount.map_err(|error| told(&error)),
        attached: match &kubepods {
            Ok(kubepods) => attached(kubepods, &own, options, &agent),
            Err(error) => Err(told(error)),
        },
        kubepods: kubepods.as_ref().map_err(|error| told(error)).and_then(|kubepods| {
            let pods = cgroup::pods(kubepods).map_err(|error| told(&error))?;
            Ok((kubepods.id, kubepods.path.clone(), pods.len()))
        }),
        bpffs: loader::is_bpffs(&options.pin_dir),
        pin_dir: options.pin_dir.clone(),
        capabilities: read(Path::new("/proc/self/status")).and_then(|text| effective(&text)),
        lockdown: or_nothing("/sys/kernel/security/lockdown").map(|text| chosen(&text.unwrap_or_default())),
        jit: or_nothing("/proc/sys/net/core/bpf_jit_enable")
            .map(|text| text.and_then(|text| text.trim().parse().ok())),
        programs: load(options.object.as_deref(), level),
        pins: pins.map(|(pins, _)| pins),
        socket_exists: socket.exists(),
        socket,
        agent,
        exported: ask_metrics(options.listen),
        snapshot: age(&options.snapshot, now),
    };
    let mut unchecked = Vec::new();
    let mut note = |what: &str, why: Option<&String>| {
        unchecked.extend(why.map(|why| Unchecked { what: what.to_owned(), why: why.clone() }));
    };
    note("the mounts of this machine", facts.v1.as_ref().err());
    note("the capabilities of this process", facts.capabilities.as_ref().err());
    note("the kernel's lockdown", facts.lockdown.as_ref().err());
    note("whether the kernel compiles programs", facts.jit.as_ref().err());
    note("whether the kernel takes the programs", facts.programs.as_ref().err());
    note("the pins", facts.pins.as_ref().err());
    note("the age of the snapshot", facts.snapshot.as_ref().err());
    // Without a cgroup nothing is attached to it, and that is a finding by itself.
    if facts.kubepods.is_ok() {
        note("programs of others", facts.attached.as_ref().err());
    }
    // Nor is there a heartbeat of an agent that does not answer.
    if facts.agent.is_ok() {
        note("the agent's heartbeat", facts.exported.as_ref().err());
    }
    (facts, unchecked)
}

/// Returns an error with its causes.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

fn read(path: &Path) -> Fact<String> {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Returns a file's text; nothing where there is no such file.
fn or_nothing(path: &str) -> Fact<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

/// Returns the controllers of the cgroup v1 mounts in the text of a mountinfo file.
pub(super) fn v1_controllers(mountinfo: &str) -> Vec<String> {
    const NONE: [&str; 5] = ["rw", "ro", "xattr", "noprefix", "clone_children"];
    let mut found: Vec<String> = mountinfo
        .lines()
        .filter_map(|line| line.split_once(" - ")?.1.strip_prefix("cgroup "))
        .filter_map(|rest| rest.split(' ').nth(1))
        .map(|options| {
            let controllers = options.split(',').filter(|one| !NONE.contains(one) && !one.contains('='));
            controllers.collect::<Vec<_>>().join(",")
        })
        .filter(|controllers| !controllers.is_empty())
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Returns the effective capabilities in the text of a process' status.
pub(super) fn effective(status: &str) -> Fact<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let number = line.and_then(|number| u64::from_str_radix(number.trim(), 16).ok());
    number.ok_or_else(|| "/proc/self/status has no CapEff".to_owned())
}

/// Returns the word in brackets.
pub(super) fn chosen(text: &str) -> String {
    let word = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    word.map(|(word, _)| word.to_owned()).unwrap_or_default()
}

/// Loads the programs as the agent does, with small maps, and lets them go.
fn load(file: Option<&Path>, level: u32) -> Fact<Programs> {
    let object = match file {
        None => object::embedded().map(<[u8]>::to_vec).ok_or_else(|| LoadError::NoObject.to_string())?,
        Some(path) => fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?,
    };
    let capacities = Capacities {
        endpoints: 16,
        exact: 1024,
        prefixes: 1024,
        rules: 1024,
        rule_slots: 256,
        ..Capacities::default()
    };
    match Datapath::load(&object, &loader::Options { level, pins: None, capacities, keep_verdicts: true }) {
        Ok(_let_go) => Ok(Programs::Loaded),
        // It says nothing of the kernel, and the capabilities are a check of their own.
        Err(error @ LoadError::Privilege { .. }) => Err(told(&error)),
        Err(error) => Ok(Programs::Refused(told(&error))),
    }
}

/// Reads what is pinned, and returns the ids of the pinned programs too.
fn read_pins(folder: &Path) -> Fact<(Pins, Vec<u32>)> {
    let failed = |path: &Path, error: &io::Error| format!("{}: {error}", path.display());
    let list = |path: &Path| -> Fact<Vec<PathBuf>> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(path, &error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.map_err(|error| failed(path, &error))?.path());
        }
        paths.sort();
        Ok(paths)
    };
    let current = loader::layout_folder(folder);
    let mut pins = Pins { holder: holder(folder)?, ..Pins::default() };
    for layout in list(folder)? {
        if layout != current {
            pins.other_layouts.push(layout.display().to_string());
        }
    }
    let mut programs = Vec::new();
    for link in list(&current.join("links"))? {
        let opened = bpf::get(&link).map_err(|error| failed(&link, &error))?;
        let info =
            bpf::link_info(std::os::fd::AsFd::as_fd(&opened)).map_err(|error| failed(&link, &error))?;
        let name = link.file_name().unwrap_or_default().to_string_lossy().into_owned();
        pins.links.push(PinnedLink { program: name, cgroup: info.cgroup });
        programs.push(info.program);
    }
    Ok((pins, programs))
}

/// Returns the process that holds the lock on a folder. Asking for the lock would keep an agent that starts now from it.
fn holder(folder: &Path) -> Fact<Option<u32>> {
    let metadata = match fs::metadata(folder) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", folder.display())),
    };
    let device = metadata.dev();
    let wanted = (rustix::fs::major(device), rustix::fs::minor(device), metadata.ino());
    Ok(lock_holder(&read(Path::new("/proc/locks"))?, wanted))
}

/// Returns the process that has locked the file with this device and inode, in the text of `/proc/locks`.
pub(super) fn lock_holder(locks: &str, (major, minor, inode): (u32, u32, u64)) -> Option<u32> {
    let wanted = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let process = fields.nth(4)?;
        (fields.next()? == wanted && line.contains("FLOCK")).then(|| process.parse().ok())?
    })
}

/// Asks what is attached to the kubepods cgroup and to those around it.
fn attached(
    kubepods: &cgroup::Kubepods,
    own: &[u32],
    options: &Options,
    agent: &Fact<Box<status::Status>>,
) -> Fact<Vec<Attached>> {
    let mut found = Vec::new();
    // An agent that pins nothing has its programs there too: nothing but their names tells them.
    let unpinned =
        agent.as_ref().is_ok_and(|status| status.enforcement.pins.is_none()) || !options.pin_dir.exists();
    for folder in kubepods.path.ancestors().take_while(|folder| folder.starts_with(&kubepods.mount)) {
        let cgroup = fs::File::open(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        for (at, kind) in ATTACHED {
            let here = bpf::query(&cgroup, kind)
                .map_err(|error| format!("asking what is attached to {}: {error}", folder.display()))?;
            let others: Vec<(u32, Option<String>)> = here
                .programs
                .into_iter()
                .filter(|id| !own.contains(id))
                // Only who may do anything is told names; the ids say enough.
                .map(|id| (id, bpf::program_name(id).map(Some).unwrap_or(None)))
                .filter(|(_, name)| !(unpinned && name.as_deref() == Some(at)))
                .collect();
            let is_kubepods = folder == kubepods.path;
            found.push(Attached { cgroup: folder.to_owned(), is_kubepods, at, flags: here.flags, others });
        }
    }
    Ok(found)
}

fn ask_agent(socket: &Path) -> Fact<Box<status::Status>> {
    let answer = client::connect(socket).and_then(|stream| client::get(stream, "/status"));
    let Answer { code, body } = answer.map_err(|error| error.to_string())?;
    if code != 200 {
        return Err(format!("it answers {code}: {}", body.trim_end()));
    }
    serde_json::from_str(&body)
        .map_err(|error| format!("its answer cannot be read, so it is another version: {error}"))
}

fn ask_metrics(listen: SocketAddr) -> Fact<Exported> {
    let ask = |page: &str| client::get(client::connect_to(listen)?, page);
    let failed = |error: io::Error| format!("http://{listen}: {error}");
    let health = ask("/healthz").map_err(failed)?.code;
    let Answer { code, body } = ask("/metrics").map_err(failed)?;
    if code != 200 {
        return Err(format!("http://{listen}/metrics answers {code}"));
    }
    Ok(Exported { health, ..exported(&body) })
}

/// Reads what the doctor wants of the text of a scrape.
pub(super) fn exported(text: &str) -> Exported {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.split(' ').next()?.parse::<f64>().ok())
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "times and counts are positive and far below 2^53"
    )]
    let whole = |value: f64| value as u64;
    Exported {
        health: 0,
        beat: value("egress_clock_check_timestamp_seconds").map(whole),
        store_failures: value("egress_socket_store_failures_total").map_or(0, whole),
    }
}

/// Returns the age of a file in seconds; nothing if it is not there.
fn age(path: &Path, now: u64) -> Fact<Option<(PathBuf, u64)>> {
    match fs::metadata(path) {
        Ok(metadata) => {
            let written = u64::try_from(metadata.mtime()).unwrap_or(0);
            Ok(Some((path.to_owned(), now.saturating_sub(written))))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}
