//! Shows the agent at work: real processes in pod cgroups and network namespaces of their own, the real agent, and the verdicts
//! they meet. Run by `cargo xtask demo`.

use std::{
    collections::BTreeMap,
    env, fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use egress_agent::{
    k8s::manifests,
    policy::{cluster, index::Object},
};
use egress_tests::lab::{
    ANSWER_MILLIS, CONNECT_MILLIS, Driver, Host, Lab, Pod, Qos,
    agent::{self, Agent, Metrics},
    wire::{Outcome, Request},
};
use serde_json::json;

/// How long the agent may take to be ready.
const READY: Duration = Duration::from_secs(30);
/// How long a change may take to be seen before the demo calls it missing.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one exchange on an open connection may take before it counts as refused.
const REFUSED_MILLIS: u64 = 1000;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Where prose and tables go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Output {
    Table,
    Json,
}

impl Output {
    /// Says something to the person who watches.
    fn say(self, text: &str) {
        match self {
            Self::Table => println!("{text}"),
            Self::Json => eprintln!("{text}"),
        }
    }
}

fn output() -> Result<Output> {
    let words: Vec<String> = env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["-o", "table"] => Ok(Output::Table),
        ["-o", "json"] => Ok(Output::Json),
        _ => bail!("usage: demo [-o table|json]"),
    }
}

/// One attempt and what came of it.
struct Probe {
    from: String,
    to: String,
    protocol: &'static str,
    port: u16,
    expected: &'static str,
    seen: String,
    millis: f64,
}

impl Probe {
    fn is_right(&self) -> bool {
        self.seen == self.expected
    }
}

/// What an attempt is expected to come to.
const CONNECTED: &str = "connected";
const ANSWERED: &str = "answered";
const REFUSED: &str = "EPERM";

/// Every attempt: pod, address, protocol, port, what must come of it.
const PROBES: [(&str, &str, &str, u16, &str); 22] = [
    ("shop/checkout", "192.0.2.10", "TCP", 443, CONNECTED),
    ("shop/checkout", "2001:db8::10", "TCP", 443, CONNECTED),
    ("shop/checkout", "192.0.2.10", "TCP", 80, REFUSED),
    ("shop/checkout", "192.0.2.10", "UDP", 443, REFUSED),
    ("shop/checkout", "192.0.2.10", "ICMP", 0, ANSWERED),
    ("shop/checkout", "198.51.100.8", "TCP", 8080, CONNECTED),
    ("shop/checkout", "198.51.100.7", "TCP", 8080, REFUSED),
    ("shop/checkout", "203.0.113.5", "TCP", 443, REFUSED),
    ("shop/checkout", "2001:db8::bad", "TCP", 443, REFUSED),
    ("shop/checkout", "169.254.169.254", "TCP", 80, REFUSED),
    ("shop/checkout", "10.0.0.1", "TCP", 10250, REFUSED),
    ("shop/checkout", "10.96.0.50", "TCP", 6379, CONNECTED),
    ("shop/checkout", "10.244.1.20", "TCP", 6379, CONNECTED),
    ("shop/checkout", "10.96.0.10", "UDP", 53, ANSWERED),
    ("shop/legacy", "192.0.2.10", "TCP", 443, CONNECTED),
    ("shop/legacy", "203.0.113.5", "TCP", 443, CONNECTED),
    ("shop/partner", "203.0.113.5", "TCP", 443, CONNECTED),
    ("shop/partner", "192.0.2.10", "TCP", 443, REFUSED),
    ("infra/logs", "192.0.2.20", "UDP", 514, ANSWERED),
    ("infra/logs", "192.0.2.20", "UDP", 515, REFUSED),
    ("infra/logs", "203.0.113.5", "TCP", 443, REFUSED),
    ("infra/redis", "203.0.113.5", "TCP", 443, CONNECTED),
];

/// Everybody who plays a part.
struct Cast {
    pods: BTreeMap<String, Pod>,
    _outside: Arc<Host>,
}

fn run() -> Result<bool> {
    let output = output()?;
    let binary = agent::binary()?;
    let examples = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the tests are a folder of the workspace")?
        .join("deploy/examples/demo");
    let lab = Lab::new(Driver::Cgroupfs)?;
    let manifests = lab.folder.join("manifests");
    copy(&examples, &manifests)?;
    let cast = assemble(&lab, &manifests)?;
    let pins = lab.bpffs()?.join("egress-agent");
    output.say(&format!(
        "Six pods in cgroups and network namespaces of their own, policies from {}.",
        relative(&examples).display()
    ));
    let begin = Instant::now();
    let mut agent = Agent::start(
        &binary,
        &lab.keeper,
        &[
            "--manifests",
            path(&manifests)?,
            "--kubepods-cgroup",
            path(&lab.kubepods().path)?,
            "--pin-dir",
            path(&pins)?,
            "--enforce-network-policy",
        ],
    )?;
    agent.wait_ready(READY)?;
    output.say(&format!("The agent enforces after {:.0} ms.\n", millis(begin.elapsed())));

    let probes = attempt(&cast);
    if output == Output::Table {
        print_probes(&probes);
    }
    let counters = agent.metrics()?;
    output.say("\nWhat the agent counted, as Prometheus scrapes it:\n");
    print_counters(output, &counters);
    let audited = counters.sum("egress_audited_packets_total", &[("pod", "legacy")]);

    let mut checks = vec![
        Check::new("every verdict is the expected one", probes.iter().all(Probe::is_right)),
        Check::new("what the audited policy would refuse passed and was counted", audited >= 1.0),
    ];
    output.say("");
    checks.extend(edit(output, &cast, &manifests)?);
    checks.extend(expire(output, &cast, &manifests)?);
    checks.extend(outlive(output, &cast, &lab, agent, &binary, &pins)?);

    output.say("");
    for check in &checks {
        output.say(&format!("{}   {}", if check.passed { "ok    " } else { "FAILED" }, check.what));
    }
    let good = checks.iter().all(|check| check.passed);
    if output == Output::Json {
        println!("{}", report(&probes, &checks, good));
    }
    drop(cast);
    lab.close()?;
    output.say("\nEverything is removed: pods, network namespaces, cgroups, programs, maps.");
    Ok(good)
}

/// Something the demo shows and checks.
struct Check {
    what: &'static str,
    passed: bool,
    millis: Option<f64>,
}

impl Check {
    fn new(what: &'static str, passed: bool) -> Self {
        Self { what, passed, millis: None }
    }

    fn timed(what: &'static str, millis: Option<f64>) -> Self {
        Self { what, passed: millis.is_some(), millis }
    }
}

fn report(probes: &[Probe], checks: &[Check], good: bool) -> serde_json::Value {
    let probes: Vec<_> = probes
        .iter()
        .map(|probe| {
            json!({
                "from": probe.from, "to": probe.to, "protocol": probe.protocol, "port": probe.port,
                "expected": probe.expected, "seen": probe.seen, "millis": rounded(probe.millis),
            })
        })
        .collect();
    let checks: Vec<_> = checks
        .iter()
        .map(|check| json!({ "what": check.what, "ok": check.passed, "millis": check.millis.map(rounded) }))
        .collect();
    json!({ "probes": probes, "checks": checks, "ok": good })
}

fn rounded(millis: f64) -> f64 {
    (millis * 100.0).round() / 100.0
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not text", path.display()))
}

/// The path as seen from the folder the person stands in, where that is shorter.
fn relative(path: &Path) -> PathBuf {
    match env::current_dir() {
        Ok(here) => path.strip_prefix(here).unwrap_or(path).to_owned(),
        Err(_) => path.to_owned(),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let file = entry.with_context(|| format!("cannot read {}", from.display()))?.path();
        let name = file.file_name().expect("a folder's entries have names");
        fs::copy(&file, to.join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    Ok(())
}

/// Starts the pods of the manifests and the host outside, with their servers.
fn assemble(lab: &Lab, manifests: &Path) -> Result<Cast> {
    lab.node_addresses(&["10.0.0.1"])?;
    let outside = lab.outside(&[
        "192.0.2.10",
        "192.0.2.20",
        "198.51.100.7",
        "198.51.100.8",
        "203.0.113.5",
        "169.254.169.254",
        "2001:db8::10",
        "2001:db8::bad",
    ])?;
    let loaded = manifests::load(manifests)?;
    if let Some(error) = loaded.errors().next() {
        bail!("{error}");
    }
    let mut pods = BTreeMap::new();
    for (_, object) in loaded.files.into_iter().flat_map(|file| file.objects) {
        if let Object::Pod(id, pod) = object {
            pods.insert(format!("{}/{}", id.namespace, id.name), start(lab, &id, &pod)?);
        }
    }
    // Every address that is attempted has a server, so that a refusal is the policy's.
    for (_, to, protocol, port, _) in PROBES {
        let to = SocketAddr::new(to.parse().context("the table holds addresses")?, port);
        let owner = match owner(to.ip()) {
            None => &outside,
            Some("node") => continue,
            Some(pod) => &pods.get(pod).with_context(|| format!("no pod {pod} in the manifests"))?.host,
        };
        let request = match protocol {
            "TCP" => Request::Listen { at: to, echo: true },
            "UDP" => Request::Udp { at: Some(to), ipv6: to.is_ipv6(), echo: true, options: Vec::new() },
            _ => continue,
        };
        let outcome = owner.ask(&request).outcome;
        // Several attempts go to one server.
        if outcome != Outcome::Ok && outcome != Outcome::Other(libc::EADDRINUSE) {
            bail!("no server at {to}: {outcome}");
        }
    }
    Ok(Cast { pods, _outside: outside })
}

/// Who owns an address of the cluster. No service balancer runs here: the pod behind a Service owns its address too.
fn owner(address: IpAddr) -> Option<&'static str> {
    match address.to_string().as_str() {
        "10.0.0.1" => Some("node"),
        "10.96.0.50" | "10.244.1.20" => Some("infra/redis"),
        "10.96.0.10" | "10.244.1.53" => Some("kube-system/coredns"),
        _ => None,
    }
}

fn start(lab: &Lab, id: &cluster::NsName, pod: &cluster::Pod) -> Result<Pod> {
    let mut addresses: Vec<String> = pod.ips.iter().map(|address| address.to_string()).collect();
    match id.name.as_str() {
        "redis" => addresses.push("10.96.0.50".to_owned()),
        "coredns" => addresses.push("10.96.0.10".to_owned()),
        _ => {}
    }
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let qos = if id.name == "partner" { Qos::Guaranteed } else { Qos::Burstable };
    lab.pod(pod.uid(), qos, &addresses)
}

fn attempt(cast: &Cast) -> Vec<Probe> {
    PROBES
        .iter()
        .map(|(from, to, protocol, port, expected)| {
            let pod = &cast.pods[*from];
            let address: IpAddr = to.parse().expect("the table holds addresses");
            let target = SocketAddr::new(address, *port);
            let reply = match *protocol {
                "TCP" => pod.connect(target),
                "UDP" => pod.ask(&Request::UdpProbe { to: target, mapped: false, millis: ANSWER_MILLIS }),
                _ => pod.ask(&Request::Ping { to: address, millis: ANSWER_MILLIS }),
            };
            let seen = match (reply.outcome, *protocol) {
                (Outcome::Ok, "TCP") => CONNECTED.to_owned(),
                (Outcome::Ok, _) => ANSWERED.to_owned(),
                (other, _) => other.to_string(),
            };
            Probe {
                from: (*from).to_owned(),
                to: (*to).to_owned(),
                protocol,
                port: *port,
                expected,
                seen,
                millis: reply.millis,
            }
        })
        .collect()
}

/// Prints rows under heads as kubectl does.
fn print_table(output: Output, heads: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = heads.iter().map(|head| head.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let line = |cells: &[&str]| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        output.say(padded.join("   ").trim_end());
    };
    line(heads);
    for row in rows {
        line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

fn print_probes(probes: &[Probe]) {
    let rows: Vec<Vec<String>> = probes
        .iter()
        .map(|probe| {
            let port = if probe.protocol == "ICMP" { "-".to_owned() } else { probe.port.to_string() };
            vec![
                probe.from.clone(),
                probe.to.clone(),
                probe.protocol.to_owned(),
                port,
                probe.expected.to_owned(),
                probe.seen.clone(),
                format!("{:.2}", probe.millis),
            ]
        })
        .collect();
    print_table(Output::Table, &["FROM", "TO", "PROTO", "PORT", "EXPECTED", "SEEN", "MILLIS"], &rows);
}

fn print_counters(output: Output, metrics: &Metrics) {
    let mut rows = Vec::new();
    for verdict in ["allowed", "denied", "audited"] {
        let family = format!("egress_{verdict}_packets_total");
        for (labels, value) in metrics.0.get(&family).into_iter().flatten() {
            let label = |name: &str| labels.get(name).cloned().unwrap_or_else(|| "-".to_owned());
            if *value > 0.0 {
                let pod = format!("{}/{}", label("namespace"), label("pod"));
                rows.push(vec![pod, verdict.to_owned(), label("reason"), format!("{value:.0}")]);
            }
        }
    }
    rows.sort();
    print_table(output, &["POD", "VERDICT", "REASON", "PACKETS"], &rows);
}

/// Replaces a manifest in one step, as a ConfigMap's update does.
fn replace(folder: &Path, name: &str, change: impl Fn(&str) -> String) -> Result<()> {
    let file = folder.join(name);
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let changed = change(&text);
    if changed == text {
        bail!("{name} does not hold what was to be changed");
    }
    let new = folder.join(format!(".{name}"));
    fs::write(&new, changed).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, &file).with_context(|| format!("cannot replace {}", file.display()))
}

fn open(pod: &Pod, to: &str) -> Result<u64> {
    let to: SocketAddr = to.parse().context("the demo names addresses")?;
    let reply = pod.connect(to);
    if reply.outcome != Outcome::Ok {
        bail!("cannot connect to {to}: {}", reply.outcome);
    }
    Ok(reply.id)
}

/// Uses an open connection until it is refused; returns when it last worked.
fn until_refused(pod: &Pod, id: u64, since: Instant) -> Option<Duration> {
    let mut last = Duration::ZERO;
    while since.elapsed() < PATIENCE {
        let begin = Instant::now();
        match pod.exchange(id, REFUSED_MILLIS) {
            Outcome::Ok => last = since.elapsed(),
            // The packet that was refused was sent at once.
            Outcome::Timeout => return Some(begin.duration_since(since).max(last)),
            _ => return None,
        }
    }
    None
}

/// Edits a policy while a connection is open.
fn edit(output: Output, cast: &Cast, manifests: &Path) -> Result<Vec<Check>> {
    const BEFORE: &str = r#"["192.0.2.10/32", "2001:db8::10/128"]"#;
    const AFTER: &str = r#"["192.0.2.99/32"]"#;
    let pod = &cast.pods["shop/checkout"];
    let id = open(pod, "192.0.2.10:443")?;
    let worked = pod.exchange(id, ANSWER_MILLIS) == Outcome::Ok;
    replace(manifests, "checkout.yaml", |text| text.replace(BEFORE, AFTER))?;
    let closed = until_refused(pod, id, Instant::now());
    if let Some(after) = closed {
        output.say(&format!(
            "checkout.yaml no longer allows 192.0.2.10: the open connection is cut after {:.1} ms.",
            millis(after)
        ));
    }
    let refused =
        pod.connect("192.0.2.10:443".parse().context("an address")?).outcome == Outcome::NotPermitted;
    replace(manifests, "checkout.yaml", |text| text.replace(AFTER, BEFORE))?;
    let begin = Instant::now();
    let mut back = None;
    while back.is_none() && begin.elapsed() < PATIENCE {
        if pod.connect("192.0.2.10:443".parse().context("an address")?).outcome == Outcome::Ok {
            back = Some(begin.elapsed());
        }
    }
    if let Some(after) = back {
        output.say(&format!(
            "checkout.yaml allows it again: a new connection is made after {:.1} ms.",
            millis(after)
        ));
    }
    Ok(vec![
        Check::new("an open connection worked before its policy changed", worked),
        Check::timed("a policy's change cut the open connection", closed.map(millis)),
        Check::new("a new connection was then refused", refused),
        Check::timed("the change back let a new connection through", back.map(millis)),
    ])
}

fn wall() -> Result<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")
}

/// Lets an exception end while a connection uses it.
fn expire(output: Output, cast: &Cast, manifests: &Path) -> Result<Vec<Check>> {
    const NEVER: &str = "2099-12-31T00:00:00Z";
    let pod = &cast.pods["shop/partner"];
    let id = open(pod, "203.0.113.5:443")?;
    let worked = pod.exchange(id, ANSWER_MILLIS) == Outcome::Ok;
    let end = Duration::from_secs(wall()?.as_secs() + 4);
    let seconds = i64::try_from(end.as_secs()).context("the clock is far off")?;
    let expiry = jiff::Timestamp::from_second(seconds).context("the clock is far off")?.to_string();
    replace(manifests, "partner.yaml", |text| text.replace(NEVER, &expiry))?;
    output.say(&format!("partner.yaml: the exception now expires at {expiry}."));
    let last = until_refused(pod, id, Instant::now());
    let now = wall()?;
    let at = now.saturating_sub(Duration::from_millis(REFUSED_MILLIS));
    let in_time = at + Duration::from_secs(1) >= end && at <= end + Duration::from_secs(2);
    if last.is_some() {
        output.say("The connection was cut when the exception ended; nobody edited anything.");
    }
    let refused =
        pod.connect("203.0.113.5:443".parse().context("an address")?).outcome == Outcome::NotPermitted;
    Ok(vec![
        Check::new("an exception let a connection pass", worked),
        Check::new("its end cut the open connection, on time", last.is_some() && in_time),
        Check::new("a new connection was then refused", refused),
    ])
}

/// Ends the agent, shows that its programs stay, and takes them out.
fn outlive(
    output: Output,
    cast: &Cast,
    lab: &Lab,
    agent: Agent,
    binary: &Path,
    pins: &Path,
) -> Result<Vec<Check>> {
    let pod = &cast.pods["shop/checkout"];
    let forbidden: SocketAddr = "203.0.113.5:443".parse().context("an address")?;
    agent.kill(&lab.keeper)?;
    let refused = pod.connect(forbidden).outcome == Outcome::NotPermitted;
    let allowed = pod.connect("192.0.2.10:443".parse().context("an address")?).outcome == Outcome::Ok;
    output.say("The agent was killed: what it had put in force still is.");
    agent::unload(binary, pins)?;
    let begin = Instant::now();
    let mut free = false;
    // The kernel takes programs out a moment after their last pin is gone.
    while !free && begin.elapsed() < PATIENCE {
        free = pod
            .ask(&Request::Connect {
                to: forbidden,
                mapped: false,
                options: Vec::new(),
                millis: CONNECT_MILLIS,
            })
            .outcome
            == Outcome::Ok;
    }
    output.say("`egress-agent unload` has taken everything out of the kernel.");
    Ok(vec![
        Check::new("with the agent killed, what was denied stays denied", refused),
        Check::new("with the agent killed, what was allowed stays allowed", allowed),
        Check::new("after unload the pod is free, and nothing is pinned", free && !pins.exists()),
    ])
}
