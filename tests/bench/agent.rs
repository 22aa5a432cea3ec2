//! The real agent as a process of its own: how fast it follows, and what it takes.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    measure::{Effort, Spread, percentile},
    process::{Agent, BpfFs, Pinned},
    report::{Report, Table, number},
    room::{PodRoom, Qos, Room},
    scene::{self, Numbers},
};

/// Pods on the node.
pub const PODS: usize = 110;
/// Policies, each for two or three of them.
pub const POLICIES: usize = 50;

/// The UID of a pod; no other section uses it.
pub fn uid(number: usize) -> String {
    scene::uid(1000 + number)
}

fn namespace(app: usize) -> String {
    format!("team-{}", app % 10)
}

/// Makes the cgroups of all pods.
///
/// # Errors
///
/// When the kernel refuses.
pub fn pods(room: &Room) -> Result<Vec<PodRoom>> {
    let quality = |number: usize| if number.is_multiple_of(3) { Qos::Guaranteed } else { Qos::Burstable };
    (0..PODS).map(|number| room.pod(quality(number), &uid(number))).collect()
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

/// A policy as an object of the API.
pub fn policy_manifest(app: usize, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": format!("policy-{app}"), "namespace": namespace(app), "labels": {"egress-controller": "managed"}},
        "data": {"policy.json": policy_text(app, port)},
    })
}

/// Everything that is no policy, as a List.
pub fn cluster_manifest() -> Value {
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

/// Everything about the running agent.
///
/// # Errors
///
/// When the agent does not do what it should.
pub fn run(room: &Room, effort: &Effort, report: &mut Report) -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let pins = bpffs.pins("egress-agent");
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let manifests = folder.path().join("manifests");
    let policies = manifests.join("policies");
    fs::create_dir_all(&policies).context("cannot make the folder of manifests")?;
    fs::write(manifests.join("cluster.json"), cluster_manifest().to_string()).context("cannot write it")?;
    let pods = pods(room)?;
    for app in 0..POLICIES {
        let file = policies.join(format!("policy-{app}.json"));
        fs::write(&file, policy_manifest(app, 1000).to_string()).context("cannot write a policy")?;
    }
    let source = ["--manifests", manifests.to_str().context("a folder of this process has a plain name")?];
    let agent = Agent::start(room, &source, &pins, folder.path().join("agent.log"))?;
    let pinned = Pinned::open(&pins)?;
    for pod in &pods {
        ensure!(pinned.revision(pod)?.is_some(), "every pod is governed; the agent says:\n{}", agent.said());
    }
    thread::sleep(Duration::from_secs(2));
    let settled = agent.memory("VmRSS:")?;

    let change =
        Change { policies: &policies, aside: &folder.path().join("aside"), pinned: &pinned, pods: &pods };
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
    let goal = report.goal("policy event to enforced, 110 pods and 50 policies, p99", 50.0, p99, "ms");
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
        head: &CHANGES,
        rows: vec![changes(times, goal)],
    });
}

/// The head of a table of times from a change to its enforcement.
pub const CHANGES: [&str; 7] = ["changes", "p50, ms", "p99, ms", "fastest, ms", "slowest, ms", "goal", ""];

/// A row of it: `goal` is the limit of its p99, and whether it is kept.
#[must_use]
pub fn changes(times: &[f64], [limit, verdict]: [String; 2]) -> Vec<String> {
    let spread = Spread::of(times);
    vec![
        times.len().to_string(),
        number(percentile(times, 0.5)),
        number(percentile(times, 0.99)),
        number(spread.low),
        number(spread.high),
        limit,
        verdict,
    ]
}

/// Changes policies of the running agent.
struct Change<'a> {
    policies: &'a Path,
    aside: &'a Path,
    pinned: &'a Pinned,
    pods: &'a [PodRoom],
}

impl Change<'_> {
    /// Changes one policy, and returns how long it took until one of its pods had another revision.
    fn make(&self, count: usize, agent: &Agent) -> Result<Duration> {
        let app = count * 7 % POLICIES;
        let port = u16::try_from(2000 + count % 50_000).expect("a port");
        let manifest = policy_manifest(app, port);
        let pod = &self.pods[app];
        let before = self.pinned.revision(pod)?;
        let began = Instant::now();
        replace(&self.policies.join(format!("policy-{app}.json")), self.aside, &manifest)?;
        loop {
            if self.pinned.revision(pod)? != before {
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
    let idle = agent.share(Duration::from_secs(seconds))?;
    let (rate, share) = agent.flooded(pod, seconds)?;
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
