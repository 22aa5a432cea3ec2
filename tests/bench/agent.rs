//! The real agent as a process of its own: how fast it follows, and what it takes.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use egress_common::maps::name;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

use crate::{
    measure::{Effort, Spread, percentile},
    report::{Report, Table, number},
    room::{PodRoom, Qos, Room, move_to},
    scene::{self, Numbers},
};

/// The environment variable that names the agent's binary.
const VARIABLE: &str = "EGRESS_AGENT_BIN";
/// The word that makes this binary the sender of denied datagrams.
pub const SENDER: &str = "send-denied";

const PODS: usize = 110;
const POLICIES: usize = 50;
const DENIED_EACH_SECOND: u32 = 10_000;
/// No policy here names it.
const NOWHERE: &str = "198.51.100.77:9";

/// A mounted bpffs, in a mount namespace that ends with this process.
struct BpfFs {
    folder: tempfile::TempDir,
}

impl BpfFs {
    fn mount() -> Result<Self> {
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
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        if let Err(error) = unmount(self.folder.path(), UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", self.folder.path().display());
        }
    }
}

/// The running agent; killed at the end.
struct Agent {
    child: Child,
    log: PathBuf,
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("the agent: {error}");
        }
    }
}

impl Agent {
    fn start(room: &Room, manifests: &Path, pins: &Path, log: PathBuf) -> Result<Self> {
        let binary =
            env::var_os(VARIABLE).map_or_else(|| "target/release/egress-agent".into(), PathBuf::from);
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .context("cannot find a free port")?;
        let child = Command::new(&binary)
            .arg("agent")
            .arg("--manifests")
            .arg(manifests)
            .arg("--kubepods-cgroup")
            .arg(&room.kubepods.path)
            .arg("--pin-dir")
            .arg(pins)
            .args(["--listen", &address.to_string(), "--runtime-dir"])
            .arg(log.with_extension("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).context("cannot make the log")?)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let mut agent = Self { child, log };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !ready(address) {
            let ended = agent.child.try_wait().context("cannot wait for the agent")?;
            if ended.is_some() || Instant::now() >= deadline {
                bail!("the agent is not ready ({ended:?}):\n{}", agent.said());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(agent)
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| error.to_string())
    }

    /// MiB of a line of `/proc/<pid>/status`.
    fn memory(&self, field: &str) -> Result<f64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)).context("the field is there")?;
        let value = line.split_whitespace().next().context("it has a value")?;
        Ok(value.parse::<f64>().context("it is a number")? / 1024.0)
    }

    /// Seconds all its threads have spent on processors.
    fn processor_time(&self) -> Result<f64> {
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
}

fn ready(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text.starts_with("HTTP/1.1 200"))
    };
    // Until it listens, it is not ready.
    ask().is_ok_and(|ready| ready)
}

/// The UID of a pod; no other section uses it.
fn uid(number: usize) -> String {
    scene::uid(1000 + number)
}

fn namespace(app: usize) -> String {
    format!("team-{}", app % 10)
}

/// What a team's policy looks like: a few services, prefixes and peers. `port` is what the benchmark changes.
fn policy_text(app: usize, port: u16) -> String {
    let mut numbers = Numbers::new(app as u64);
    let mut allowed: Vec<Value> = scene::destinations(scene::Shape::V4, 8 + app % 5)
        .iter()
        .enumerate()
        .map(|(index, destination)| {
            json!({"name": format!("net-{index}"), "cidr": destination.net.to_string(), "ports": [443, destination.port]})
        })
        .collect();
    allowed.push(json!({"name": "changing", "cidr": "203.0.113.0/24", "ports": [port]}));
    allowed.push(json!({"name": "cache", "service": {"namespace": "infra", "name": format!("service-{}", numbers.within(0, 9))}, "ports": [6379]}));
    allowed.push(json!({"name": "neighbours", "pods": {"podSelector": {"matchLabels": {"app": format!("app-{}", (app + 10) % POLICIES)}}}, "ports": [8080]}));
    allowed.push(json!({"name": "api", "entity": "kube-apiserver", "ports": [443]}));
    json!({
        "defaultAction": "deny",
        "podSelector": {"matchLabels": {"app": format!("app-{app}")}},
        "governance": {"owner": format!("team-{}", app % 10)},
        "allowedDestinations": allowed,
        "deniedDestinations": [{"name": "imds", "cidr": "169.254.169.254/32"}],
    })
    .to_string()
}

fn policy_manifest(app: usize, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": format!("policy-{app}"), "namespace": namespace(app), "labels": {"egress-controller": "managed"}},
        "data": {"policy.json": policy_text(app, port)},
    })
}

/// Everything that is no policy.
fn cluster_manifest() -> Value {
    let mut items = Vec::new();
    for team in 0..10 {
        items.push(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("team-{team}")}}),
        );
    }
    for number in 0..PODS {
        let app = number % POLICIES;
        items.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("pod-{number}"), "namespace": namespace(app), "uid": uid(number),
                "labels": {"app": format!("app-{app}")},
            },
            "spec": {"nodeName": "node", "containers": [{"name": "main", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": format!("10.244.1.{}", number + 1)}]},
        }));
    }
    let mut service = |namespace: &str,
                       name: &str,
                       address: &str,
                       port: u16,
                       protocol: &str,
                       endpoint: &str| {
        items.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": address, "clusterIPs": [address], "ports": [{"name": "main", "port": port, "protocol": protocol}]},
        }));
        items.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": format!("{name}-1"), "namespace": namespace, "labels": {"kubernetes.io/service-name": name},
            },
            "ports": [{"name": "main", "port": port, "protocol": protocol}],
            "endpoints": [{"addresses": [endpoint], "conditions": {"ready": true}}],
        }));
    };
    service("kube-system", "kube-dns", "10.96.0.10", 53, "UDP", "10.244.200.2");
    service("default", "kubernetes", "10.96.0.1", 443, "TCP", "192.0.2.10");
    for number in 0..10 {
        let (address, endpoint) = (format!("10.96.1.{number}"), format!("10.244.201.{}", number + 1));
        service("infra", &format!("service-{number}"), &address, 6379, "TCP", &endpoint);
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// Puts a file in its place in one step, as a mounted volume changes.
fn replace(file: &Path, aside: &Path, content: &Value) -> Result<()> {
    fs::write(aside, content.to_string()).with_context(|| format!("cannot write {}", aside.display()))?;
    fs::rename(aside, file).with_context(|| format!("cannot write {}", file.display()))
}

/// The revisions the kernel holds, as the running agent pinned them.
struct Revisions {
    slots: HashMap<MapData, u64, u32>,
    revisions: Array<MapData, u64>,
}

impl Revisions {
    fn open(pins: &Path) -> Result<Self> {
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
        })
    }

    /// The revision in force for a pod.
    fn of(&self, pod: &PodRoom) -> Result<u64> {
        let slot = self.slots.get(&pod.id, 0).context("the pod is known")?;
        self.revisions.get(&slot, 0).context("the slot is there")
    }
}

/// Everything about the running agent.
///
/// # Errors
///
/// When the agent does not do what it should.
pub fn run(room: &Room, effort: &Effort, report: &mut Report) -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let pins = bpffs.folder.path().join("egress-agent");
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let manifests = folder.path().join("manifests");
    let policies = manifests.join("policies");
    fs::create_dir_all(&policies).context("cannot make the folder of manifests")?;
    fs::write(manifests.join("cluster.json"), cluster_manifest().to_string()).context("cannot write it")?;
    let pods = (0..PODS)
        .map(|number| room.pod(if number % 3 == 0 { Qos::Guaranteed } else { Qos::Burstable }, &uid(number)))
        .collect::<Result<Vec<_>>>()?;
    for app in 0..POLICIES {
        let file = policies.join(format!("policy-{app}.json"));
        fs::write(&file, policy_manifest(app, 1000).to_string()).context("cannot write a policy")?;
    }
    let agent = Agent::start(room, &manifests, &pins, folder.path().join("agent.log"))?;
    let revisions = Revisions::open(&pins)?;
    for pod in &pods {
        ensure!(revisions.of(pod)? != 0, "every pod is governed; the agent says:\n{}", agent.said());
    }
    thread::sleep(Duration::from_secs(2));
    let settled = agent.memory("VmRSS:")?;

    let change = Change {
        policies: &policies,
        aside: &folder.path().join("aside"),
        revisions: &revisions,
        pods: &pods,
    };
    let mut numbers = Numbers::new(3);
    let mut times = Vec::new();
    for count in 0..effort.changes {
        // The agent is at rest, and at no fixed point of its own rhythm.
        thread::sleep(Duration::from_millis(numbers.within(15, 45)));
        times.push(change.make(count, &agent)?.as_secs_f64() * 1e3);
    }
    let busy = agent.processor_time()?;
    let began = Instant::now();
    for count in effort.changes..effort.changes + effort.wear {
        change.make(count, &agent)?;
    }
    let wear = (agent.processor_time()? - busy) * 1e3 / effort.wear as f64;
    let pace = effort.wear as f64 / began.elapsed().as_secs_f64();
    let worn = agent.memory("VmRSS:")?;
    let most = agent.memory("VmHWM:")?;
    following(report, &times, wear, pace, effort);
    flooded(&agent, &pods[1], report, [settled, worn, most], effort)
}

fn following(report: &mut Report, times: &[f64], wear: f64, pace: f64, effort: &Effort) {
    let (p50, p99) = (percentile(times, 0.5), percentile(times, 0.99));
    let spread = Spread::of(times);
    let [limit, verdict] =
        report.goal("policy event to enforced, 110 pods and 50 policies, p99", 50.0, p99, "ms");
    report.table(Table {
        title: "From a changed policy to its enforcement",
        about: "A running agent with 110 pods and 50 policies (12 to 16 destinations each, with Services, pods and the API server among them). One port of one policy changes: \
                the time from before its file is written until the pinned map shows a new revision for one of its pods. The agent waits for 3 ms of \
                quiet before it reads, since editors write in several steps.",
        reading: format!(
            "Half of the {} changes are enforced within {} ms. {} further changes, as fast as they are enforced ({} a second), \
             take {:.2} ms of processor time each.",
            times.len(),
            number(p50),
            effort.wear,
            number(pace),
            wear
        ),
        head: &["changes", "p50, ms", "p99, ms", "fastest, ms", "slowest, ms", "goal", ""],
        rows: vec![vec![
            times.len().to_string(),
            number(p50),
            number(p99),
            number(spread.low),
            number(spread.high),
            limit,
            verdict,
        ]],
    });
}

/// Changes policies of the running agent.
struct Change<'a> {
    policies: &'a Path,
    aside: &'a Path,
    revisions: &'a Revisions,
    pods: &'a [PodRoom],
}

impl Change<'_> {
    /// Changes one policy, and returns how long it took until one of its pods had another revision.
    fn make(&self, count: usize, agent: &Agent) -> Result<Duration> {
        let app = count * 7 % POLICIES;
        let port = u16::try_from(2000 + count % 50_000).expect("a port");
        let manifest = policy_manifest(app, port);
        let pod = &self.pods[app];
        let before = self.revisions.of(pod)?;
        let began = Instant::now();
        replace(&self.policies.join(format!("policy-{app}.json")), self.aside, &manifest)?;
        loop {
            if self.revisions.of(pod)? != before {
                return Ok(began.elapsed());
            }
            if began.elapsed() > Duration::from_secs(10) {
                bail!("a change was not enforced within ten seconds; the agent says:\n{}", agent.said());
            }
            thread::sleep(Duration::from_micros(50));
        }
    }
}

/// A flood of denied packets from a pod, and what the agent takes meanwhile.
fn flooded(
    agent: &Agent,
    pod: &PodRoom,
    report: &mut Report,
    [settled, worn, most]: [f64; 3],
    effort: &Effort,
) -> Result<()> {
    let seconds = if effort.quick { 3 } else { 10 };
    let idle_before = agent.processor_time()?;
    thread::sleep(Duration::from_secs(seconds));
    let idle = (agent.processor_time()? - idle_before) / seconds as f64 * 100.0;
    let mut sender = Command::new(env::current_exe().context("cannot find this program")?)
        .args([SENDER, &DENIED_EACH_SECOND.to_string(), &seconds.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the sender")?;
    move_to(&pod.container, sender.id())?;
    let before = agent.processor_time()?;
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
    let share = (agent.processor_time()? - before) / began.elapsed().as_secs_f64() * 100.0;
    let denied: f64 = text.trim().parse().with_context(|| format!("the sender says {text}"))?;
    let rate = denied / began.elapsed().as_secs_f64();
    ensure!(rate > f64::from(DENIED_EACH_SECOND) * 0.95, "only {rate} packets a second were denied");

    let memory = report.goal("agent resident memory, 110 pods and 50 policies", 25.0, settled, "MiB");
    let after =
        report.goal(&format!("the same after {} changes", effort.changes + effort.wear), 25.0, worn, "MiB");
    let busy =
        report.goal("agent processor time at 10 000 denied packets a second", 1.0, share, "% of a core");
    let row = |what: &str, value: String, cells: [String; 2]| {
        let [limit, verdict] = cells;
        vec![what.to_owned(), value, limit, verdict]
    };
    let none = || [String::new(), String::new()];
    report.table(Table {
        title: "What the agent takes",
        about: "The same agent, 110 pods and 50 policies. The flood comes from a connected datagram socket in a pod; every send fails with EPERM. Processor time is \
                the scheduler's, of all its threads, over the whole time.",
        reading: format!(
            "{} MiB are resident; a flood of {} denied packets a second takes {:.2} % of a core, idling {:.2} %.",
            number(settled),
            number(rate),
            share,
            idle
        ),
        head: &["what", "measured", "goal", ""],
        rows: vec![
            row("resident memory when settled, MiB", number(settled), memory),
            row(
                &format!("resident memory after {} changes, MiB", effort.changes + effort.wear),
                number(worn),
                after,
            ),
            row("most memory it ever had, MiB", number(most), none()),
            row("processor time while nothing happens, % of a core", format!("{idle:.2}"), none()),
            row("processor time during the flood, % of a core", format!("{share:.2}"), busy),
        ],
    });
    Ok(())
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
