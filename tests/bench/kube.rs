//! The real agent behind an API server: how fast it follows, how fast it starts, and what it takes.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use egress_tests::lab::api::{Double, Verb};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    agent::{self, CHANGES, POLICIES},
    measure::{Effort, Spread, median, percentile},
    process::{Agent, BpfFs, Metrics, Pinned, reached},
    report::{Report, Table, number},
    room::{PodRoom, Room},
    scene::Numbers,
};

/// The name of the node in the objects that the section on the directory source uses, too.
const NODE: &str = "node";
/// What the agent says when everything that is always followed was heard.
const HEARD: &str = "the API server was heard in full";
/// From the event to the flip, as the agent counts it.
pub const APPLY: &str = "egress_policy_apply_seconds";
/// How long a start may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the double sends bookmarks while the agent idles; a real API server sends them once a minute.
const BOOKMARKS: Duration = Duration::from_secs(10);

/// Everything about an agent on a node of the usual size.
///
/// # Errors
///
/// When the agent does not do what it should.
pub fn run(room: &Room, effort: &Effort, report: &mut Report) -> Result<()> {
    let double = Double::start()?;
    double.bookmark_every(BOOKMARKS);
    let cluster = agent::cluster_manifest();
    let items = cluster["items"].as_array().context("a List has items")?;
    double.load(items.iter().cloned())?;
    double.load([json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
        "spec": {"podCIDRs": ["10.244.1.0/24"]}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.20"}]},
    })])?;
    double.load((0..POLICIES).map(|app| agent::policy_manifest(app, 1000)))?;
    let pods = agent::pods(room)?;
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let bpffs = BpfFs::mount()?;
    let node = Node { room, double: &double, pods: &pods, folder: folder.path() };

    let running = starts(&node, &bpffs, effort, report)?;
    thread::sleep(Duration::from_secs(2));
    let settled = running.agent.memory("VmRSS:")?;
    let idle = Idle::measure(&node, &running.agent, if effort.quick { 10 } else { 35 })?;
    let pinned = Pinned::open(&running.pins)?;
    changes(&node, &running.agent, &pinned, effort, report)?;
    let worn = running.agent.memory("VmRSS:")?;
    let flood = running.agent.flooded(&pods[1], if effort.quick { 3 } else { 10 })?;
    let memory = [settled, worn, running.agent.memory("VmHWM:")?];
    takes(report, memory, &idle, flood, effort);
    Ok(())
}

/// A node behind an API server.
struct Node<'a> {
    room: &'a Room,
    double: &'a Double,
    pods: &'a [PodRoom],
    folder: &'a Path,
}

struct Running {
    agent: Agent,
    pins: std::path::PathBuf,
}

/// How long one start took, in milliseconds.
struct Start {
    /// From the execution until the agent has heard what it always follows.
    heard: f64,
    /// From then until each pod has its policy in the kernel.
    enforced: f64,
    /// From the execution until `/readyz` says yes.
    ready: f64,
    /// Processor time until then.
    spent: f64,
}

impl Node<'_> {
    fn spawn(&self, pins: &Path) -> Result<Agent> {
        let kubeconfig = self.double.kubeconfig();
        let source = [
            "--kubeconfig",
            kubeconfig.to_str().context("a folder of this process has a plain name")?,
            "--node-name",
            NODE,
        ];
        Agent::spawn(self.room, &source, pins, self.folder.join("agent.log"))
    }

    /// Starts the agent, and waits until each pod has another revision than `before` and the agent is ready.
    fn start(&self, pins: &Path, before: &[Option<u64>]) -> Result<(Agent, Start)> {
        let mut agent = self.spawn(pins)?;
        let clock = Timestamp::now();
        let since = |time: Timestamp| time.duration_since(clock).as_secs_f64() * 1e3;
        let mut next = 0;
        let mut pinned = None;
        while next < self.pods.len() {
            agent.still(PATIENCE, "has not put all policies into force")?;
            thread::sleep(Duration::from_micros(500));
            // Until all is pinned there is nothing to open.
            let Some(maps) = pinned.as_ref() else {
                if let Ok(maps) = Pinned::open(pins) {
                    pinned = Some(maps);
                }
                continue;
            };
            while let Some(pod) = self.pods.get(next)
                && let revision = maps.revision(pod)?
                && revision.is_some()
                && revision != before[next]
            {
                next += 1;
            }
        }
        let enforced = since(Timestamp::now());
        while !agent.ready() {
            agent.still(PATIENCE, "is not ready")?;
            thread::sleep(Duration::from_millis(1));
        }
        let ready = agent.began.elapsed().as_secs_f64() * 1e3;
        let spent = agent.processor_time()? * 1e3;
        // A thread of the agent writes what it says.
        let heard = loop {
            match agent.said_at(HEARD)? {
                Some(time) => break since(time),
                None => agent.still(PATIENCE, "does not say that it has heard the API server")?,
            }
            thread::sleep(Duration::from_millis(1));
        };
        Ok((agent, Start { heard, enforced: enforced - heard, ready, spent }))
    }
}

/// Cold starts and take-overs. Returns the last agent, which runs on.
fn starts(node: &Node<'_>, bpffs: &BpfFs, effort: &Effort, report: &mut Report) -> Result<Running> {
    let count = if effort.quick { 3 } else { 11 };
    let nothing = vec![None; node.pods.len()];
    let mut cold = Vec::new();
    let mut taken_over = Vec::new();
    let mut last = None;
    for number in 0..count {
        let pins = bpffs.pins(&format!("cold-{number}"));
        let (agent, start) = node.start(&pins, &nothing)?;
        cold.push(start);
        drop(agent);
        let maps = Pinned::open(&pins)?;
        let before = node.pods.iter().map(|pod| maps.revision(pod)).collect::<Result<Vec<_>>>()?;
        drop(maps);
        // While no agent runs, every policy changes: what is pinned is right for none of the pods.
        let port = u16::try_from(1001 + number).context("a port")?;
        node.double.load((0..POLICIES).map(|app| agent::policy_manifest(app, port)))?;
        let (agent, start) = node.start(&pins, &before)?;
        taken_over.push(start);
        last = Some(Running { agent, pins });
    }
    let row = |what: &str, starts: &[Start], verdict: [String; 2]| {
        let values = |field: fn(&Start) -> f64| starts.iter().map(field).collect::<Vec<f64>>();
        let enforced = Spread::of(&values(|start| start.enforced));
        let [limit, verdict] = verdict;
        vec![
            what.to_owned(),
            number(median(&values(|start| start.heard))),
            number(enforced.median),
            number(enforced.high),
            number(median(&values(|start| start.ready))),
            number(median(&values(|start| start.spent))),
            limit,
            verdict,
        ]
    };
    let slowest = |starts: &[Start]| starts.iter().map(|start| start.enforced).fold(0.0, f64::max);
    let cold_goal =
        report.goal("cold start, from the sync to enforced, 110 pods, slowest", 300.0, slowest(&cold), "ms");
    let over_goal = report.goal("the same, taking over pins, slowest", 300.0, slowest(&taken_over), "ms");
    report.table(Table {
        title: "Starting behind an API server",
        about: "110 pods and 50 policies, with Services, pods and the API server among their destinations. The sync ends when the agent says that it has heard \
                what every agent follows: namespaces, policies, the pods of its node. Only then does it know which pods, Services and EndpointSlices of \
                which namespaces the policies need; to hear those is within the time from the sync to enforced, which ends when each of the 110 \
                pods has the new revision in the pinned map. Before a take-over every policy has changed while no agent ran.",
        reading: format!(
            "{} starts of each kind; medians, and the slowest from the sync to enforced.",
            cold.len()
        ),
        head: &[
            "start",
            "execution to sync, ms",
            "sync to enforced, ms",
            "slowest, ms",
            "execution to ready, ms",
            "processor time, ms",
            "goal",
            "",
        ],
        rows: vec![
            row("cold", &cold, cold_goal),
            row("over pins of an earlier agent", &taken_over, over_goal),
        ],
    });
    let mut ready = |what: &str, goal: &str, starts: &[Start]| {
        let times: Vec<f64> = starts.iter().map(|start| start.ready).collect();
        let spread = Spread::of(&times);
        let [limit, verdict] = report.goal(goal, 1000.0, spread.high, "ms");
        vec![what.to_owned(), number(spread.median), number(spread.high), limit, verdict]
    };
    let rows = vec![
        ready("cold", "cold start, from the execution to ready, 110 pods and 50 policies, slowest", &cold),
        ready(
            "over pins of an earlier agent",
            "the same, from the execution to ready, taking over pins, slowest",
            &taken_over,
        ),
    ];
    report.table(Table {
        title: "From the execution to ready",
        about: "The starts of the section before: from before the process is made until `/readyz` answers 200, asked every millisecond once all 110 pods have their policies in the \
                kernel. A pod that kubelet starts meanwhile waits no longer than this for its policies.",
        reading: format!("{} starts of each kind.", cold.len()),
        head: &["start", "median, ms", "slowest, ms", "goal", ""],
        rows,
    });
    last.context("there was a start")
}

/// A connection on which policies are written, so that its making is not in the times.
struct Writer {
    stream: BufReader<TcpStream>,
}

impl Writer {
    fn open(double: &Double) -> Result<Self> {
        let url = double.url();
        let address = url.strip_prefix("http://").context("the double speaks plain HTTP")?;
        let stream = TcpStream::connect(address.trim_end_matches('/')).context("cannot reach the double")?;
        stream.set_nodelay(true).context("cannot set an option")?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a policy, and does not wait for the answer.
    fn send(&mut self, policy: &Value) -> Result<()> {
        let name = |field: &str| policy["metadata"][field].as_str().context("a policy has a name");
        let body = policy.to_string();
        let head = format!(
            "PUT /api/v1/namespaces/{}/configmaps/{} HTTP/1.1\r\nHost: double\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            name("namespace")?,
            name("name")?,
            body.len()
        );
        self.stream.get_mut().write_all(format!("{head}{body}").as_bytes()).context("cannot send a policy")
    }

    /// Reads the answer.
    fn answered(&mut self) -> Result<()> {
        let mut line = String::new();
        self.stream.read_line(&mut line).context("no answer to a policy")?;
        ensure!(line.starts_with("HTTP/1.1 200"), "a policy was refused: {line}");
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line).context("no answer to a policy")?;
            match line.trim().split_once(':') {
                None => break,
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().context("a length")?;
                }
                Some(_) => {}
            }
        }
        self.stream.read_exact(&mut vec![0; length]).context("no answer to a policy")
    }
}

fn changes(
    node: &Node<'_>,
    agent: &Agent,
    pinned: &Pinned,
    effort: &Effort,
    report: &mut Report,
) -> Result<()> {
    let mut writer = Writer::open(node.double)?;
    let mut change = |count: usize| -> Result<Duration> {
        let app = count * 7 % POLICIES;
        let port = u16::try_from(2000 + count % 50_000).expect("a port");
        let manifest = agent::policy_manifest(app, port);
        let pod = &node.pods[app];
        let before = pinned.revision(pod)?;
        let began = Instant::now();
        writer.send(&manifest)?;
        while pinned.revision(pod)? == before {
            if began.elapsed() > Duration::from_secs(10) {
                bail!("a change was not enforced within ten seconds; the agent says:\n{}", agent.said());
            }
            thread::sleep(Duration::from_micros(50));
        }
        let time = began.elapsed();
        writer.answered()?;
        Ok(time)
    };
    let before = agent.metrics()?;
    let mut numbers = Numbers::new(5);
    let mut times = Vec::new();
    for count in 0..effort.changes {
        // The agent is at rest, and at no fixed point of its own rhythm.
        thread::sleep(Duration::from_millis(numbers.within(15, 45)));
        times.push(change(count)?.as_secs_f64() * 1e3);
    }
    let own = agent.metrics()?.buckets(APPLY, Some(&before))?;
    let busy = agent.processor_time()?;
    let began = Instant::now();
    for count in effort.changes..effort.changes + effort.wear {
        change(count)?;
    }
    let wear = (agent.processor_time()? - busy) * 1e3 / effort.wear as f64;
    let pace = effort.wear as f64 / began.elapsed().as_secs_f64();
    let p99 = percentile(&times, 0.99);
    let goal = report.goal(
        "policy event of an API server to enforced, 110 pods and 50 policies, p99",
        50.0,
        p99,
        "ms",
    );
    report.table(Table {
        title: "From a changed policy in the API to its enforcement",
        about: "The agent of the section before, behind the API double. One port of one policy changes with a PUT: the time from before the request is written until the \
                pinned map, asked every 50 µs, shows a new revision for one of its pods. The API server's part (storing, sending the watch event) is in it. The agent's \
                own measure, `egress_policy_apply_seconds`, begins when it has received the event, and is known by the bounds of its buckets.",
        reading: format!(
            "Half of the {} changes are enforced within {} ms; by the agent's own measure half within {} ms, 99 of a hundred within {} ms and all within {} ms of \
             the event. {} further changes, as fast as they are enforced ({} a second), take {:.2} ms of processor time each.",
            times.len(),
            number(percentile(&times, 0.5)),
            reached(&own, 0.5) * 1e3,
            reached(&own, 0.99) * 1e3,
            reached(&own, 1.0) * 1e3,
            effort.wear,
            number(pace),
            wear
        ),
        head: &CHANGES,
        rows: vec![agent::changes(&times, goal)],
    });
    Ok(())
}

/// An agent to which nothing happens.
struct Idle {
    /// Percent of a core.
    share: f64,
    watches: usize,
    /// In a minute.
    requests: f64,
    /// In a minute.
    bytes: f64,
    seconds: u64,
}

impl Idle {
    fn measure(node: &Node<'_>, agent: &Agent, seconds: u64) -> Result<Self> {
        node.double.reset_counts();
        let before = agent.processor_time()?;
        let began = Instant::now();
        for second in 0..seconds {
            // Something nobody follows changes all the time, so that each bookmark has news.
            node.double.load([json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "leader", "namespace": "kube-system"},
                "data": {"renewed": second.to_string()},
            })])?;
            let due = Duration::from_secs(second + 1);
            thread::sleep(due.saturating_sub(began.elapsed()));
        }
        let elapsed = began.elapsed().as_secs_f64();
        let share = (agent.processor_time()? - before) / elapsed * 100.0;
        let counts = node.double.counts();
        let requests: u64 = counts.values().map(|count| count.requests).sum();
        Ok(Self {
            share,
            watches: node.double.open_watches().len(),
            requests: requests as f64 / elapsed * 60.0,
            bytes: node.double.bytes_sent() as f64 / elapsed * 60.0,
            seconds,
        })
    }
}

fn takes(
    report: &mut Report,
    [settled, worn, most]: [f64; 3],
    idle: &Idle,
    (rate, flood): (f64, f64),
    effort: &Effort,
) {
    let after = effort.changes + effort.wear;
    let memory = report.goal(
        "agent resident memory behind an API server, 110 pods and 50 policies",
        25.0,
        settled,
        "MiB",
    );
    let later = report.goal(&format!("the same after {after} changes"), 25.0, worn, "MiB");
    // A goal is compared to a tenth, so this one is told in thousandths of a core.
    let rest =
        report.goal("agent processor time while nothing happens", 1.0, idle.share * 10.0, "‰ of a core");
    let busy = report.goal(
        "agent processor time behind an API server at 10 000 denied packets a second",
        1.0,
        flood,
        "% of a core",
    );
    let row = |what: &str, value: String, [limit, verdict]: [String; 2]| {
        vec![what.to_owned(), value, limit, verdict]
    };
    let none = || [String::new(), String::new()];
    report.table(Table {
        title: "What the agent takes behind an API server",
        about: "The same agent. The double speaks plain HTTP: what TLS takes is not in it. While nothing happens, each watch gets a bookmark every ten seconds, six \
                times as often as from a real API server.",
        reading: format!(
            "{} MiB are resident with {} watches open; idling for {} s takes {:.3} % of a core, {} denied packets a second {:.2} %.",
            number(settled),
            idle.watches,
            idle.seconds,
            idle.share,
            number(rate),
            flood
        ),
        head: &["what", "measured", "goal", ""],
        rows: vec![
            row("resident memory when settled, MiB", number(settled), memory),
            row(&format!("resident memory after {after} changes, MiB"), number(worn), later),
            row("most memory it ever had, MiB", number(most), none()),
            row("open watches", idle.watches.to_string(), none()),
            row("requests a minute while nothing happens", number(idle.requests), none()),
            row("bytes of bookmarks a minute", number(idle.bytes), none()),
            row("processor time while nothing happens, ‰ of a core", format!("{:.2}", idle.share * 10.0), rest),
            row("processor time during the flood, % of a core", format!("{flood:.2}"), busy),
        ],
    });
}

/// Returns how many objects an agent was told of.
///
/// # Errors
///
/// When its metrics cannot be read.
pub fn objects(metrics: &Metrics) -> Result<f64> {
    metrics.sum("egress_api_events_total")
}

/// Returns how many lists and watches a double was asked for.
#[must_use]
pub fn asked(double: &Double) -> u64 {
    double
        .counts()
        .iter()
        .filter(|(asked, _)| matches!(asked.verb, Verb::List | Verb::Watch))
        .map(|(_, count)| count.requests)
        .sum()
}
