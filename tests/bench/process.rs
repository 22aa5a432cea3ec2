//! The real agent as a process: starting it, asking it, reading what it pinned, and seeing what it takes.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key};
use egress_common::{
    endpoint::{Endpoint, record_index},
    maps::name,
    policy::{ADDRESS_KEY_BITS, AddressKey, Span, in_trie},
    v4_mapped, words,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::room::{PodRoom, Room, move_to};

/// The environment variable that names the agent's binary.
const VARIABLE: &str = "EGRESS_AGENT_BIN";
/// The word that makes this binary the sender of denied datagrams.
pub const SENDER: &str = "send-denied";
/// How many of them it sends.
pub const DENIED_EACH_SECOND: u32 = 10_000;
/// No policy here names it.
const NOWHERE: &str = "198.51.100.77:9";

/// A mounted bpffs, in a mount namespace that ends with this process.
pub struct BpfFs {
    folder: tempfile::TempDir,
}

impl BpfFs {
    /// Mounts one.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn mount() -> Result<Self> {
        // SAFETY: a system call that takes a number; mounts made from here on are this process's and its children's.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return Err(std::io::Error::last_os_error()).context("cannot make a mount namespace");
        }
        rustix::mount::mount_change(
            "/",
            rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
        )
        .context("cannot make mounts private")?;
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        mount("bpf", folder.path(), "bpf", MountFlags::empty(), None).context("cannot mount a bpffs")?;
        Ok(Self { folder })
    }

    /// Returns where an agent may pin.
    pub fn pins(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        if let Err(error) = unmount(self.folder.path(), UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", self.folder.path().display());
        }
    }
}

/// The running agent; killed at the end, which leaves its pins.
pub struct Agent {
    child: Child,
    log: PathBuf,
    address: SocketAddr,
    _runtime: tempfile::TempDir,
    /// Just before it was executed.
    pub began: Instant,
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("the agent: {error}");
        }
    }
}

impl Agent {
    /// Executes it, and waits for nothing.
    ///
    /// # Errors
    ///
    /// When it cannot be executed.
    pub fn spawn(room: &Room, source: &[&str], pins: &Path, log: PathBuf) -> Result<Self> {
        let binary =
            env::var_os(VARIABLE).map_or_else(|| "target/release/egress-agent".into(), PathBuf::from);
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .context("cannot find a free port")?;
        let runtime = tempfile::tempdir().context("cannot make a folder")?;
        let mut command = Command::new(&binary);
        command
            .arg("agent")
            .args(source)
            .args(["--log-format", "json"])
            .arg("--kubepods-cgroup")
            .arg(&room.kubepods.path)
            .arg("--pin-dir")
            .arg(pins)
            .arg("--runtime-dir")
            .arg(runtime.path())
            .args(["--listen", &address.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).context("cannot make the log")?);
        let began = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        Ok(Self { child, log, address, _runtime: runtime, began })
    }

    /// Executes it, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it is not, within half a minute.
    pub fn start(room: &Room, source: &[&str], pins: &Path, log: PathBuf) -> Result<Self> {
        let mut agent = Self::spawn(room, source, pins, log)?;
        while !agent.ready() {
            agent.still(Duration::from_secs(30), "is not ready")?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(agent)
    }

    /// Fails if it has ended, or was executed longer than `limit` ago.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn still(&mut self, limit: Duration, what: &str) -> Result<()> {
        let ended = self.child.try_wait().context("cannot wait for the agent")?;
        if ended.is_some() || self.began.elapsed() >= limit {
            bail!("the agent {what} ({ended:?}):\n{}", self.said());
        }
        Ok(())
    }

    /// Returns its log.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| error.to_string())
    }

    /// Returns when it said something, by its own clock; `None` if it has not.
    ///
    /// # Errors
    ///
    /// When a line of its log has no time.
    pub fn said_at(&self, words: &str) -> Result<Option<jiff::Timestamp>> {
        let said = self.said();
        let Some(line) = said.lines().find(|line| line.contains(words)) else { return Ok(None) };
        let line: serde_json::Value = serde_json::from_str(line).context("a line of the log is JSON")?;
        let time = line["timestamp"].as_str().context("a line of the log has a time")?;
        Ok(Some(time.parse().context("it is one")?))
    }

    /// MiB of a line of `/proc/<pid>/status`.
    ///
    /// # Errors
    ///
    /// When it has no such line.
    pub fn memory(&self, field: &str) -> Result<f64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)).context("the field is there")?;
        let value = line.split_whitespace().next().context("it has a value")?;
        Ok(value.parse::<f64>().context("it is a number")? / 1024.0)
    }

    /// Seconds all its threads have spent on processors.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn processor_time(&self) -> Result<f64> {
        let folder = format!("/proc/{}/task", self.child.id());
        let mut nanoseconds = 0.0;
        for thread in fs::read_dir(&folder).with_context(|| format!("cannot list {folder}"))? {
            let path = thread?.path().join("schedstat");
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let first = text.split_whitespace().next().context("schedstat has fields")?;
            nanoseconds += first.parse::<f64>().context("it is a number")?;
        }
        Ok(nanoseconds / 1e9)
    }

    /// Returns whether it says that it is ready.
    pub fn ready(&self) -> bool {
        // Until it listens, it is not ready.
        self.ask("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    fn ask(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Returns its metrics.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics(self.ask("/metrics").context("the agent has no metrics")?))
    }

    /// Floods it with denied packets of a pod. Returns how many there were in a second, and the part of a core it took meanwhile.
    ///
    /// # Errors
    ///
    /// When a packet is not denied, or the sender is too slow.
    pub fn flooded(&self, pod: &PodRoom, seconds: u64) -> Result<(f64, f64)> {
        let mut sender = Command::new(env::current_exe().context("cannot find this program")?)
            .args([SENDER, &DENIED_EACH_SECOND.to_string(), &seconds.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the sender")?;
        move_to(&pod.container, sender.id())?;
        let before = self.processor_time()?;
        let began = Instant::now();
        sender.stdin.take().expect("stdin is piped").write_all(b"go\n").context("the sender is gone")?;
        let mut text = String::new();
        sender
            .stdout
            .take()
            .expect("stdout is piped")
            .read_to_string(&mut text)
            .context("the sender says nothing")?;
        ensure!(sender.wait().context("cannot wait for the sender")?.success(), "the sender failed: {text}");
        let share = (self.processor_time()? - before) / began.elapsed().as_secs_f64() * 100.0;
        let denied: f64 = text.trim().parse().with_context(|| format!("the sender says {text}"))?;
        let rate = denied / began.elapsed().as_secs_f64();
        ensure!(rate > f64::from(DENIED_EACH_SECOND) * 0.95, "only {rate} packets a second were denied");
        Ok((rate, share))
    }

    /// Returns the part of a core it takes over a time, in percent.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn share(&self, time: Duration) -> Result<f64> {
        let before = self.processor_time()?;
        let began = Instant::now();
        thread::sleep(time);
        Ok((self.processor_time()? - before) / began.elapsed().as_secs_f64() * 100.0)
    }
}

/// What the agent says of itself, in the text format of Prometheus.
pub struct Metrics(String);

impl Metrics {
    /// Returns the sum of the samples whose line begins so.
    ///
    /// # Errors
    ///
    /// When a sample is no number.
    pub fn sum(&self, prefix: &str) -> Result<f64> {
        let mut sum = 0.0;
        for line in self.0.lines().filter(|line| line.starts_with(prefix)) {
            let value = line.rsplit(' ').next().context("a sample has a value")?;
            sum += value.parse::<f64>().with_context(|| format!("{line} is no sample"))?;
        }
        Ok(sum)
    }

    /// Returns the bounds of a histogram's buckets and how many observations since `earlier` are within each.
    ///
    /// # Errors
    ///
    /// When there is no such histogram.
    pub fn buckets(&self, name: &str, earlier: Option<&Self>) -> Result<Vec<(f64, f64)>> {
        let prefix = format!("{name}_bucket{{le=\"");
        let read = |text: &str| -> Result<Vec<(f64, f64)>> {
            let mut buckets = Vec::new();
            for line in text.lines().filter_map(|line| line.strip_prefix(&prefix)) {
                let (bound, count) = line.split_once("\"} ").context("a bucket has a bound")?;
                buckets.push((bound.parse()?, count.parse()?));
            }
            Ok(buckets)
        };
        let mut buckets = read(&self.0)?;
        ensure!(!buckets.is_empty(), "there is no histogram {name}");
        if let Some(earlier) = earlier {
            for (bucket, (_, count)) in buckets.iter_mut().zip(read(&earlier.0)?) {
                bucket.1 -= count;
            }
        }
        Ok(buckets)
    }
}

/// Returns the bound of the bucket in which `share` of the observations are reached.
#[must_use]
pub fn reached(buckets: &[(f64, f64)], share: f64) -> f64 {
    let total = buckets.last().map_or(0.0, |(_, count)| *count);
    buckets.iter().find(|(_, count)| *count >= total * share).map_or(f64::INFINITY, |(bound, _)| *bound)
}

/// What the kernel holds, as the running agent pinned it.
pub struct Pinned {
    slots: HashMap<MapData, u64, u32>,
    revisions: Array<MapData, u64>,
    endpoints: Array<MapData, Endpoint>,
    exact: HashMap<MapData, AddressKey, Span>,
    prefixes: LpmTrie<MapData, AddressKey, Span>,
}

impl Pinned {
    /// Opens the maps under a folder of pins.
    ///
    /// # Errors
    ///
    /// When they are not there.
    pub fn open(pins: &Path) -> Result<Self> {
        let mut folder = None;
        for entry in fs::read_dir(pins).with_context(|| format!("cannot list {}", pins.display()))? {
            folder = Some(entry?.path().join("maps"));
        }
        let folder = folder.context("the agent has pinned nothing")?;
        let data = |map: &str| {
            MapData::from_pin(folder.join(map)).with_context(|| format!("cannot open the pinned {map}"))
        };
        Ok(Self {
            slots: HashMap::try_from(Map::HashMap(data(name::PODS)?))?,
            revisions: Array::try_from(Map::Array(data(name::REVISIONS)?))?,
            endpoints: Array::try_from(Map::Array(data(name::ENDPOINTS)?))?,
            exact: HashMap::try_from(Map::HashMap(data(name::EXACT)?))?,
            prefixes: LpmTrie::try_from(Map::LpmTrie(data(name::PREFIXES)?))?,
        })
    }

    /// Returns the revision in force for a pod; `None` while the kernel does not know it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn revision(&self, pod: &PodRoom) -> Result<Option<u64>> {
        let Some(slot) = found(self.slots.get(&pod.id, 0))? else { return Ok(None) };
        // A number beyond all slots stands for a pod without a policy.
        found(self.revisions.get(&slot, 0)).map(|revision| revision.filter(|revision| *revision != 0))
    }

    /// Returns whether any rule speaks for an address in the policy set of a pod.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or the pod has no policy.
    pub fn speaks(&self, pod: &PodRoom, address: IpAddr) -> Result<bool> {
        let slot = self.slots.get(&pod.id, 0).context("the pod is known")?;
        let revision = self.revisions.get(&slot, 0).context("the slot is there")?;
        let endpoint = self.endpoints.get(&record_index(slot, revision), 0).context("the record is there")?;
        let address = match address {
            IpAddr::V4(v4) => v4_mapped(v4.octets()),
            IpAddr::V6(v6) => words(v6.octets()),
        };
        let key = AddressKey { set: endpoint.set, address };
        if let Some(span) = found(self.exact.get(&key, 0))? {
            return Ok(span.length > 0);
        }
        let (bits, key) = in_trie(ADDRESS_KEY_BITS, key);
        Ok(found(self.prefixes.get(&Key::new(bits, key), 0))?.is_some_and(|span| span.length > 0))
    }
}

fn found<T>(answer: Result<T, MapError>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::OutOfBounds { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends datagrams nobody allows, at a pace, and prints how many were refused. Waits for a line of input first, so that it can be
/// moved into a pod before it makes its socket.
///
/// # Errors
///
/// When a datagram is not refused.
pub fn send_denied(rate: &str, seconds: &str) -> Result<()> {
    let rate: u32 = rate.parse().context("the rate is a number")?;
    let seconds: u32 = seconds.parse().context("the time is a number")?;
    let mut line = String::new();
    BufReader::new(std::io::stdin()).read_line(&mut line).context("nobody says go")?;
    let socket = UdpSocket::bind("0.0.0.0:0").context("cannot make a socket")?;
    // Where there is no route, the call itself is refused, by the sendmsg hook.
    let connected = socket.connect(NOWHERE).is_ok();
    let began = Instant::now();
    let total = rate * seconds;
    for sent in 0..total {
        let due = Duration::from_secs(1) * sent / rate;
        // Naps of the length of ten packets: one sleep each would cost more than the packet.
        if sent % 10 == 0
            && let Some(early) = due.checked_sub(began.elapsed())
        {
            thread::sleep(early);
        }
        let outcome = if connected { socket.send(b"datagram") } else { socket.send_to(b"datagram", NOWHERE) };
        match outcome {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            other => bail!("a datagram to {NOWHERE} was not refused: {other:?}"),
        }
    }
    println!("{total}");
    Ok(())
}
