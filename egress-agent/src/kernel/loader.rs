//! Loads the programs, attaches them to the kubepods cgroup, and keeps both pinned so that they outlive the agent.
//!
//! Under the pin folder (a folder of our own on a bpffs) stand `v<layout>/maps/<MAP>` and `v<layout>/links/<program>`. A new
//! agent takes the maps over as they are and puts its own programs behind the links in one step each; no packet passes
//! unjudged in between.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, Map, MapData, MapError},
    programs::{Program, ProgramError, ProgramInfo},
};
use egress_common::{
    LAYOUT_VERSION,
    config::{constant, setting},
    maps::{capacity, name},
    verdict::CLASSES,
};
use thiserror::Error;

use super::{
    bpf::{self, AttachType},
    cgroup::Kubepods,
    clock,
};

/// The programs that are attached, and where; in this order, because what `egress` lets pass as a reply is what the first two have
/// seen coming.
pub const ATTACHED: [(&str, AttachType); 7] = [
    ("accepted", AttachType::SockOps),
    ("ingress", AttachType::Ingress),
    ("egress", AttachType::Egress),
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
    ("sendmsg4", AttachType::Sendmsg4),
    ("sendmsg6", AttachType::Sendmsg6),
];

/// Every map, by name.
const MAPS: [&str; 16] = [
    name::PODS,
    name::REVISIONS,
    name::ENDPOINTS,
    name::EXACT,
    name::PREFIXES,
    name::RULES,
    name::SOCKETS,
    name::REPLIES,
    name::COUNTERS,
    name::RULE_COUNTERS,
    name::RULE_IDENTITIES,
    name::NODE_COUNTERS,
    name::RECENT,
    name::BUCKETS,
    name::EVENTS,
    name::SETTINGS,
];

/// What can go wrong on the way into the kernel.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The binary holds no object.
    #[error(
        "this binary was built without its BPF object; build it with `cargo xtask build`, or pass --bpf-object FILE"
    )]
    NoObject,
    /// The pin folder is not on a bpffs.
    #[error("{path} is not on a bpffs; mount one with `mount -t bpf bpf {mount}`, or pass --mount-bpffs")]
    NotBpffs {
        /// The pin folder.
        path: PathBuf,
        /// Where it could be mounted.
        mount: PathBuf,
    },
    /// A file operation failed.
    #[error("{action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not enough privilege.
    #[error(
        "the kernel refused bpf(2) ({source}); the agent needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, before Linux 5.11 CAP_SYS_RESOURCE as well, and before 5.8 CAP_SYS_ADMIN instead of the first and the third"
    )]
    Privilege {
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused a program.
    #[error("the kernel refused program {program}: {source}\nthe verifier's last lines:\n{log}")]
    Refused {
        /// Which.
        program: String,
        /// What the kernel said.
        source: io::Error,
        /// The end of what the verifier wrote.
        log: String,
    },
    /// A program could not be loaded for another reason.
    #[error("program {program}: {source}")]
    Program {
        /// Which.
        program: String,
        /// Why.
        source: Box<ProgramError>,
    },
    /// The object or its maps could not be loaded.
    #[error("BPF object: {0}")]
    Object(#[from] Box<EbpfError>),
    /// The object lacks something.
    #[error("the BPF object has no {0}; it does not belong to this agent")]
    Missing(String),
    /// A map refused.
    #[error("map {map}: {source}")]
    Map {
        /// Which.
        map: &'static str,
        /// Why.
        source: MapError,
    },
    /// A link could not be made or changed.
    #[error("attaching {program} to {cgroup}: {source}")]
    Attach {
        /// Which program.
        program: &'static str,
        /// Which cgroup.
        cgroup: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process works with the same pins.
    #[error("another agent works with the pins under {0}; stop it first")]
    Busy(PathBuf),
    /// The tick rate could not be measured.
    #[error("could not measure the kernel's tick rate: {0}")]
    Clock(String),
}

impl From<EbpfError> for LoadError {
    fn from(error: EbpfError) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(current) = cause {
            if let Some(io) = current.downcast_ref::<io::Error>()
                && io.raw_os_error() == Some(libc::EPERM)
            {
                return Self::Privilege { source: io::Error::from_raw_os_error(libc::EPERM) };
            }
            cause = current.source();
        }
        Self::Object(Box::new(error))
    }
}

/// Entries the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Pods known at once.
    pub endpoints: u32,
    /// Single addresses over all sets.
    pub exact: u32,
    /// Prefixes over all sets.
    pub prefixes: u32,
    /// Rule entries over all sets.
    pub rules: u32,
    /// Destinations told apart in counters.
    pub rule_slots: u32,
    /// Peers whose datagrams permit an answer.
    pub replies: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            endpoints: capacity::ENDPOINTS,
            exact: capacity::EXACT,
            prefixes: capacity::PREFIXES,
            rules: capacity::RULES,
            rule_slots: capacity::RULE_SLOTS,
            replies: capacity::REPLIES,
        }
    }
}

impl Capacities {
    fn of_map(&self) -> [(&'static str, u32); 11] {
        [
            // Holds the pods no policy governs, too, which take no slot.
            (name::PODS, self.endpoints.saturating_mul(4)),
            (name::REVISIONS, self.endpoints),
            (name::ENDPOINTS, self.endpoints.saturating_mul(2)),
            (name::BUCKETS, self.endpoints),
            (name::COUNTERS, self.endpoints.saturating_mul(CLASSES)),
            (name::EXACT, self.exact),
            (name::PREFIXES, self.prefixes),
            (name::RULES, self.rules),
            (name::RULE_COUNTERS, self.rule_slots),
            (name::RULE_IDENTITIES, self.rule_slots),
            (name::REPLIES, self.replies),
        ]
    }
}

/// How to load.
#[derive(Clone, Debug)]
pub struct Options {
    /// How deep the kubepods cgroup lies; see [`Kubepods::level`].
    pub level: u32,
    /// The folder for pins, on a bpffs; `None` keeps everything in this process.
    pub pins: Option<PathBuf>,
    /// Map sizes. Maps taken over from pins keep theirs.
    pub capacities: Capacities,
    /// Whether sockets keep verdicts; off only for measurements.
    pub keep_verdicts: bool,
}

/// The programs and maps, loaded.
#[derive(Debug)]
pub struct Datapath {
    bpf: Ebpf,
    links: BTreeMap<&'static str, OwnedFd>,
    pins: Option<PathBuf>,
    /// Descriptors of the pinned maps, to pin them again; empty without pins.
    maps: BTreeMap<&'static str, OwnedFd>,
    /// Held as long as this process works with the pins.
    lock: Option<OwnedFd>,
    /// Whether maps of an earlier agent were taken over.
    pub taken_over: bool,
    /// Ticks per second of the kernel.
    pub hz: u32,
}

/// The folder inside the pin folder that belongs to this layout.
#[must_use]
pub fn layout_folder(pins: &Path) -> PathBuf {
    pins.join(format!("v{LAYOUT_VERSION}"))
}

/// Returns whether `path`, or the nearest folder above it that exists, is on a bpffs.
#[must_use]
pub fn is_bpffs(path: &Path) -> bool {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    path.ancestors()
        .find_map(|folder| rustix::fs::statfs(folder).map(Some).unwrap_or(None))
        .is_some_and(|stat| stat.f_type == BPF_FS_MAGIC)
}

fn make_folder(path: &Path) -> Result<(), LoadError> {
    fs::create_dir_all(path).map_err(|source| LoadError::File {
        action: "making folder",
        path: path.to_owned(),
        source,
    })
}

impl Datapath {
    /// Loads the object, taking over pinned maps where there are any, and measures the tick rate. Attaches nothing yet.
    ///
    /// # Errors
    ///
    /// See [`LoadError`]. Nothing that was pinned before is changed.
    pub fn load(object: &[u8], options: &Options) -> Result<Self, LoadError> {
        let mut loader = EbpfLoader::new();
        let level = options.level;
        let keep = u32::from(options.keep_verdicts);
        loader.override_global(constant::KUBEPODS_LEVEL, &level, true).override_global(
            constant::KEEP_VERDICTS,
            &keep,
            true,
        );
        for (map, entries) in options.capacities.of_map() {
            loader.map_max_entries(map, entries);
        }
        let mut taken_over = false;
        let mut lock = None;
        if let Some(pins) = &options.pins {
            if !is_bpffs(pins) {
                let mount = pins.parent().unwrap_or(pins).to_owned();
                return Err(LoadError::NotBpffs { path: pins.clone(), mount });
            }
            let folder = layout_folder(pins).join("maps");
            make_folder(&folder)?;
            lock = Some(lock_pins(pins)?);
            for map in MAPS {
                let path = folder.join(map);
                taken_over |= path.exists();
                loader.map_pin_path(map, path);
            }
        }
        let mut bpf = loader.load(object)?;
        for (program, _) in ATTACHED {
            load_program(&mut bpf, program)?;
        }
        load_program(&mut bpf, "clock")?;
        load_program(&mut bpf, "floor")?;
        let maps = match &options.pins {
            Some(pins) => pinned_maps(pins)?,
            None => BTreeMap::new(),
        };
        let links = BTreeMap::new();
        let mut datapath = Self { bpf, links, maps, lock, pins: options.pins.clone(), taken_over, hz: 0 };
        datapath.hz = datapath.measure_hz()?;
        datapath.set(setting::TICKS_PER_SECOND, u64::from(datapath.hz))?;
        datapath.set_clock()?;
        Ok(datapath)
    }

    /// Attaches every program to the kubepods cgroup, or puts it behind the link that is pinned for it.
    ///
    /// # Errors
    ///
    /// [`LoadError::Attach`] and [`LoadError::File`]; links made so far stay.
    pub fn attach(&mut self, kubepods: &Kubepods) -> Result<(), LoadError> {
        self.set(setting::KUBEPODS, kubepods.id)?;
        let cgroup = fs::File::open(&kubepods.path).map_err(|source| LoadError::File {
            action: "opening",
            path: kubepods.path.clone(),
            source,
        })?;
        for (program, at) in ATTACHED {
            let refused = |source| LoadError::Attach { program, cgroup: kubepods.path.clone(), source };
            let pin = self.link_pin(program);
            let fd = self.program_fd(program)?;
            let link = match &pin {
                Some(path) => pinned_link(path, fd, kubepods.id).map_err(refused)?,
                None => None,
            };
            let link = match link {
                Some(link) => link,
                None => {
                    let link = bpf::link_create(fd, &cgroup, at).map_err(refused)?;
                    if let Some(path) = &pin {
                        make_folder(path.parent().expect("a pin path has a folder"))?;
                        bpf::pin(link.as_fd(), path).map_err(refused)?;
                    }
                    link
                }
            };
            self.links.insert(program, link);
        }
        // Programs of another layout read maps nobody writes any more. They may go now that ours judge every packet.
        if let Some(pins) = &self.pins {
            let own = layout_folder(pins);
            for layout in list(pins)?.into_iter().filter(|layout| *layout != own) {
                remove_layout(&layout, &mut Vec::new())?;
            }
        }
        Ok(())
    }

    /// Returns the names of attached programs whose link no longer leads from the cgroup to our program, or is no longer pinned.
    /// [`Self::attach`] mends it.
    ///
    /// # Errors
    ///
    /// [`LoadError::Attach`] when the kernel cannot be asked.
    pub fn detached(&self, kubepods: &Kubepods) -> Result<Vec<&'static str>, LoadError> {
        let mut gone = Vec::new();
        for (&program, link) in &self.links {
            let refused = |source| LoadError::Attach { program, cgroup: kubepods.path.clone(), source };
            let info = bpf::link_info(link.as_fd()).map_err(refused)?;
            let ours = bpf::program_id(self.program_fd(program)?).map_err(refused)?;
            let pinned = self.link_pin(program).is_none_or(|path| path.exists());
            if info.cgroup != kubepods.id || info.program != ours || !pinned {
                gone.push(program);
            }
        }
        Ok(gone)
    }

    /// Pins the maps again whose pins are gone or lead to other maps, and returns their names. Without pins a new agent would begin
    /// with empty maps, behind links that still lead to programs with these.
    ///
    /// # Errors
    ///
    /// [`LoadError::NotBpffs`], [`LoadError::Busy`] when another agent has taken the folder, and [`LoadError::File`]; what was pinned
    /// before stays.
    pub fn repin(&mut self) -> Result<Vec<&'static str>, LoadError> {
        let Some(pins) = &self.pins else { return Ok(Vec::new()) };
        let folder = layout_folder(pins).join("maps");
        let mut gone = Vec::new();
        for (&map, own) in &self.maps {
            let path = folder.join(map);
            let pinned = match bpf::get(&path) {
                Ok(pinned) => same_map(pinned.as_fd(), own.as_fd()).map_err(failed("reading pin", &path))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => return Err(failed("opening pin", &path)(error)),
            };
            if !pinned {
                gone.push(map);
            }
        }
        if gone.is_empty() {
            return Ok(gone);
        }
        if !is_bpffs(pins) {
            let mount = pins.parent().unwrap_or(pins).to_owned();
            return Err(LoadError::NotBpffs { path: pins.clone(), mount });
        }
        make_folder(&folder)?;
        // The lock is the folder's: it went with the old one.
        if !self.lock.as_ref().is_some_and(|lock| is_at(lock, pins)) {
            self.lock = Some(lock_pins(pins)?);
        }
        for map in &gone {
            let path = folder.join(map);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("removing", &path)(error));
                }
                _removed_or_gone => {}
            }
            bpf::pin(self.maps[map].as_fd(), &path).map_err(failed("pinning", &path))?;
        }
        Ok(gone)
    }

    fn link_pin(&self, program: &str) -> Option<PathBuf> {
        self.pins.as_ref().map(|pins| layout_folder(pins).join("links").join(program))
    }

    /// The descriptor of a loaded program.
    ///
    /// # Errors
    ///
    /// [`LoadError::Missing`].
    pub fn program_fd(&self, program: &str) -> Result<BorrowedFd<'_>, LoadError> {
        let missing = || LoadError::Missing(format!("program {program}"));
        let fd = match self.bpf.program(program).ok_or_else(missing)? {
            Program::CgroupSkb(p) => p.fd(),
            Program::CgroupSockAddr(p) => p.fd(),
            Program::SockOps(p) => p.fd(),
            Program::SchedClassifier(p) => p.fd(),
            _ => return Err(missing()),
        };
        let fd = fd
            .map_err(|source| LoadError::Program { program: program.to_owned(), source: Box::new(source) })?;
        // SAFETY: the program owns the descriptor and lives as long as `self`, from which it is borrowed.
        Ok(unsafe { BorrowedFd::borrow_raw(fd.as_fd().as_raw_fd()) })
    }

    /// How many entries a map holds, as the kernel says.
    ///
    /// # Errors
    ///
    /// [`LoadError::Missing`] and [`LoadError::Map`].
    pub fn map_capacity(&self, map: &'static str) -> Result<u32, LoadError> {
        let info = self.map_data(map)?.info().map_err(|source| LoadError::Map { map, source })?;
        Ok(info.max_entries())
    }

    /// What the kernel tells about a loaded program.
    ///
    /// # Errors
    ///
    /// [`LoadError::Missing`] and [`LoadError::Program`].
    pub fn program_info(&self, program: &str) -> Result<ProgramInfo, LoadError> {
        let missing = || LoadError::Missing(format!("program {program}"));
        let info = match self.bpf.program(program).ok_or_else(missing)? {
            Program::CgroupSkb(p) => p.info(),
            Program::CgroupSockAddr(p) => p.info(),
            Program::SockOps(p) => p.info(),
            Program::SchedClassifier(p) => p.info(),
            _ => return Err(missing()),
        };
        info.map_err(|source| LoadError::Program { program: program.to_owned(), source: Box::new(source) })
    }

    /// Another descriptor of a map, for calls aya does not offer.
    ///
    /// # Errors
    ///
    /// [`LoadError::Missing`] and [`LoadError::Map`].
    pub fn map_fd(&self, map: &'static str) -> Result<OwnedFd, LoadError> {
        let fd = self.map_data(map)?.fd().as_fd().try_clone_to_owned();
        fd.map_err(|source| LoadError::Map { map, source: MapError::IoError(source) })
    }

    fn map_data(&self, map: &'static str) -> Result<&MapData, LoadError> {
        match self.bpf.map(map) {
            Some(Map::Array(data) | Map::HashMap(data) | Map::LpmTrie(data) | Map::PerCpuArray(data)) => {
                Ok(data)
            }
            _ => Err(LoadError::Missing(format!("map {map}"))),
        }
    }

    /// Takes a map out, to use it as a typed one.
    ///
    /// # Errors
    ///
    /// [`LoadError::Missing`] when the object has none of that name, or it has been taken.
    pub fn take_map(&mut self, map: &'static str) -> Result<Map, LoadError> {
        self.bpf.take_map(map).ok_or_else(|| LoadError::Missing(format!("map {map}")))
    }

    /// The loaded object, for the reader of its log.
    #[cfg(feature = "debug-log")]
    pub(super) fn object_mut(&mut self) -> &mut Ebpf {
        &mut self.bpf
    }

    /// Runs a program over a packet (Ethernet header first) and returns its return value and mean duration.
    ///
    /// # Errors
    ///
    /// [`LoadError::Program`].
    pub fn run(
        &self,
        program: &str,
        packet: &[u8],
        context: Option<&[u8]>,
        repeat: u32,
    ) -> Result<(u32, std::time::Duration), LoadError> {
        let options =
            TestRunOptions { data_in: Some(packet), ctx_in: context, repeat, ..TestRunOptions::new() };
        let missing = || LoadError::Missing(format!("program {program}"));
        let result = match self.bpf.program(program).ok_or_else(missing)? {
            Program::CgroupSkb(p) => p.test_run(options),
            Program::SchedClassifier(p) => p.test_run(options),
            _ => return Err(missing()),
        };
        let result = result
            .map_err(|source| LoadError::Program { program: program.to_owned(), source: Box::new(source) })?;
        Ok((result.return_value, result.duration))
    }

    /// Writes one word of the settings.
    ///
    /// # Errors
    ///
    /// [`LoadError::Map`].
    pub fn set(&mut self, index: u32, value: u64) -> Result<(), LoadError> {
        let refused = |source| LoadError::Map { map: name::SETTINGS, source };
        let map =
            self.bpf.map_mut(name::SETTINGS).ok_or_else(|| LoadError::Missing(name::SETTINGS.to_owned()))?;
        let mut settings: Array<&mut MapData, u64> = Array::try_from(map).map_err(refused)?;
        settings.set(index, value, 0).map_err(refused)
    }

    /// Reads one word of the settings.
    ///
    /// # Errors
    ///
    /// [`LoadError::Map`].
    pub fn get(&self, index: u32) -> Result<u64, LoadError> {
        let refused = |source| LoadError::Map { map: name::SETTINGS, source };
        let map =
            self.bpf.map(name::SETTINGS).ok_or_else(|| LoadError::Missing(name::SETTINGS.to_owned()))?;
        let settings: Array<&MapData, u64> = Array::try_from(map).map_err(refused)?;
        settings.get(&index, 0).map_err(refused)
    }

    /// Relates the kernel's ticks to the wall clock, so that deadlines hold whether or not the agent lives. To be called at
    /// start, now and then, and whenever the wall clock jumps.
    ///
    /// # Errors
    ///
    /// [`LoadError::Program`] and [`LoadError::Map`].
    pub fn set_clock(&mut self) -> Result<(), LoadError> {
        let (ticks, _) = self.read_clocks()?;
        let offset = clock::ticks_from(clock::wall_seconds_and_fraction(), self.hz).wrapping_sub(ticks);
        self.set(setting::CLOCK_OFFSET, offset)
    }

    /// Returns `jiffies64` and `CLOCK_MONOTONIC` in nanoseconds, of one moment.
    fn read_clocks(&self) -> Result<(u64, u64), LoadError> {
        self.run("clock", &[0; 64], None, 1)?;
        Ok((self.get(setting::SEEN_TICKS)?, self.get(setting::SEEN_NANOSECONDS)?))
    }

    fn measure_hz(&self) -> Result<u32, LoadError> {
        for pause in [100, 400, 1000] {
            let (ticks, nanoseconds) = self.read_clocks()?;
            std::thread::sleep(std::time::Duration::from_millis(pause));
            let (ticks_later, later) = self.read_clocks()?;
            if let Some(hz) =
                clock::nearest_hz(ticks_later.wrapping_sub(ticks), later.saturating_sub(nanoseconds))
            {
                return Ok(hz);
            }
        }
        Err(LoadError::Clock(
            "ticks passed at no rate a kernel is built with (100, 250, 300 or 1000 Hz)".to_owned(),
        ))
    }
}

fn load_program(bpf: &mut Ebpf, name: &str) -> Result<(), LoadError> {
    let missing = || LoadError::Missing(format!("program {name}"));
    let result = match bpf.program_mut(name).ok_or_else(missing)? {
        Program::CgroupSkb(p) => p.load(),
        Program::CgroupSockAddr(p) => p.load(),
        Program::SockOps(p) => p.load(),
        Program::SchedClassifier(p) => p.load(),
        _ => return Err(missing()),
    };
    result.map_err(|error| match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            if io_error.raw_os_error() == Some(libc::EPERM) {
                return LoadError::Privilege { source: io_error };
            }
            let text = verifier_log.to_string();
            let lines: Vec<&str> = text.lines().collect();
            let log = lines[lines.len().saturating_sub(12)..].join("\n");
            LoadError::Refused { program: name.to_owned(), source: io_error, log }
        }
        other => LoadError::Program { program: name.to_owned(), source: Box::new(other) },
    })
}

/// Opens the link pinned at `path` and puts `program` behind it; `None` if nothing is pinned there or its cgroup is gone, in
/// which case the pin is removed.
fn pinned_link(path: &Path, program: BorrowedFd<'_>, cgroup: u64) -> io::Result<Option<OwnedFd>> {
    let link = match bpf::get(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if bpf::link_info(link.as_fd())?.cgroup != cgroup {
        fs::remove_file(path)?;
        return Ok(None);
    }
    bpf::link_update(link.as_fd(), program)?;
    Ok(Some(link))
}

/// Opens the maps that are pinned, all of which are.
fn pinned_maps(pins: &Path) -> Result<BTreeMap<&'static str, OwnedFd>, LoadError> {
    let folder = layout_folder(pins).join("maps");
    let open = |map| {
        let path = folder.join(map);
        bpf::get(&path).map(|descriptor| (map, descriptor)).map_err(failed("opening pin", &path))
    };
    MAPS.into_iter().map(open).collect()
}

/// Returns whether both descriptors are of one map.
fn same_map(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(bpf::map_id(one)? == bpf::map_id(other)?)
}

/// Returns whether the path still leads to what was opened.
fn is_at(opened: &OwnedFd, path: &Path) -> bool {
    let here = rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino));
    here.is_ok() && here == rustix::fs::fstat(opened).map(|stat| (stat.st_dev, stat.st_ino))
}

/// Makes sure that one process at a time works with the pins. The kernel gives the lock back with the process, however it ends.
fn lock_pins(pins: &Path) -> Result<OwnedFd, LoadError> {
    use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
    let failed = |source: rustix::io::Errno| LoadError::File {
        action: "locking",
        path: pins.to_owned(),
        source: source.into(),
    };
    let folder =
        open(pins, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(folder),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LoadError::Busy(pins.to_owned())),
        Err(other) => Err(failed(other)),
    }
}

/// Removes everything an agent pinned under `pins`, of every layout, and returns what it removed. Programs go with their last
/// pin, so enforcement ends here.
///
/// # Errors
///
/// [`LoadError::Busy`] while an agent runs, [`LoadError::File`]; what could be removed before is gone.
pub fn unload(pins: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let mut removed = Vec::new();
    if !pins.exists() {
        return Ok(removed);
    }
    if !is_bpffs(pins) {
        let mount = pins.parent().unwrap_or(pins).to_owned();
        return Err(LoadError::NotBpffs { path: pins.to_owned(), mount });
    }
    let lock = lock_pins(pins)?;
    for layout in list(pins)? {
        remove_layout(&layout, &mut removed)?;
    }
    fs::remove_dir(pins).map_err(failed("removing", pins))?;
    drop(lock);
    Ok(removed)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LoadError {
    let path = path.to_owned();
    move |source| LoadError::File { action, path, source }
}

/// Removes the pins of one layout. Links first: a packet must not meet a program whose maps are going.
fn remove_layout(layout: &Path, removed: &mut Vec<PathBuf>) -> Result<(), LoadError> {
    for kind in ["links", "maps"] {
        let folder = layout.join(kind);
        if !folder.exists() {
            continue;
        }
        for pin in list(&folder)? {
            fs::remove_file(&pin).map_err(failed("removing", &pin))?;
            removed.push(pin);
        }
        fs::remove_dir(&folder).map_err(failed("removing", &folder))?;
    }
    fs::remove_dir(layout).map_err(failed("removing", layout))
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let failed = |source| LoadError::File { action: "reading folder", path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}
