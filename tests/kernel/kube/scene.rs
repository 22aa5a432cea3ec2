//! What the tests are made of: a lab with a host outside, an API server, and agents.

use std::{
    cell::Cell,
    env,
    fs::{self, File},
    io::Write as _,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use egress_tests::lab::{
    Driver, Host, Lab, Pod, Qos, SILENCE_MILLIS,
    agent::{self, Agent, Metrics},
    api::{Backend, Double, Server, real},
    at,
    wire::{Outcome, Reply, Request},
};
use serde_json::{Value, json};

/// How long the agent may take for anything. Debug builds on busy machines are slow.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);

pub(crate) const GOOD: &str = "192.0.2.10:443";
pub(crate) const BAD: &str = "198.51.100.7:443";

/// The variables that would send an agent to a proxy instead of the server on this machine.
const PROXIES: [&str; 8] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
];

/// A node, its API server, and a host outside with two servers.
pub(crate) struct Scene<'a> {
    pub(crate) server: &'a Server,
    /// The namespace of the pods.
    pub(crate) namespace: String,
    /// The name of the node.
    pub(crate) node: String,
    pub(crate) out: Arc<Host>,
    pub(crate) pins: PathBuf,
    pub(crate) binary: PathBuf,
    pub(crate) snapshot: PathBuf,
    /// Who the agent is.
    pub(crate) kubeconfig: PathBuf,
    agents: Cell<u32>,
    pub(crate) lab: Lab,
}

/// An agent, and the file its log goes to.
pub(crate) struct Running {
    agent: Option<Agent>,
    log: PathBuf,
}

/// Returns a value, or fails with what is behind the error.
#[track_caller]
pub(crate) fn good<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error:#}"))
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "not after {LIMIT:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a new connection ends as wanted.
#[track_caller]
pub(crate) fn wait(from: &Host, to: &str, wanted: Outcome) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let seen = from.connect(at(to));
        if seen.outcome == Outcome::Ok {
            // One that stays open would cost both sides a thread.
            assert_eq!(from.close(seen.id).outcome, Outcome::Ok);
        }
        if seen.outcome == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{to} is still {}, not {wanted}", seen.outcome);
        thread::sleep(Duration::from_millis(5));
    }
}

/// Checks that an open connection is cut: what is sent has no answer.
#[track_caller]
pub(crate) fn is_cut(from: &Host, connection: u64) {
    assert_eq!(from.exchange(connection, SILENCE_MILLIS), Outcome::Timeout, "the open connection is cut");
}

/// Starts to send datagrams to these addresses in turn.
pub(crate) fn watch(from: &Host, to: &[&str]) -> u64 {
    from.ask(&Request::Watch { to: to.iter().map(|to| at(to)).collect(), micros: 200 }).id
}

/// What came of the datagrams to the address at this place.
pub(crate) fn of(seen: &Reply, place: usize) -> Vec<Outcome> {
    seen.changes.iter().filter(|change| change.1 == place).map(|change| change.2).collect()
}

/// A policy's text: it denies by default and allows these destinations.
pub(crate) fn allow(destinations: &[Value]) -> Value {
    json!({ "defaultAction": "deny", "allowedDestinations": destinations })
}

pub(crate) fn cidr(name: &str, cidr: &str) -> Value {
    json!({ "name": name, "cidr": cidr })
}

pub(crate) fn config_map(namespace: &str, name: &str, policy: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "namespace": namespace, "name": name, "labels": { "egress-controller": "managed" } },
        "data": { "policy.json": policy },
    })
}

pub(crate) fn pod_object(namespace: &str, name: &str, node: &str, labels: &Value, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name, "labels": labels },
        "spec": { "nodeName": node, "containers": [{ "name": "main", "image": "example.com/none" }] },
        "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] },
    })
}

fn assets() -> PathBuf {
    // The real server's own binaries lie there, too.
    env::var_os(real::VARIABLE).map_or_else(|| PathBuf::from("/usr/local/kubebuilder/bin"), PathBuf::from)
}

fn kubectl() -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    std::iter::once(assets())
        .chain(env::split_paths(&path))
        .map(|folder| folder.join("kubectl"))
        .find(|path| path.is_file())
        .with_context(|| format!("no kubectl in {} or PATH", assets().display()))
}

/// Runs kubectl as an administrator, with something to read. Returns what it prints.
pub(crate) fn run_kubectl(server: &Server, arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new(kubectl()?);
    for proxy in PROXIES {
        command.env_remove(proxy);
    }
    command.arg("--kubeconfig").arg(server.kubeconfig()).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start kubectl")?;
    child
        .stdin
        .take()
        .expect("stdin is piped")
        .write_all(input.as_bytes())
        .context("kubectl does not read")?;
    let output = child.wait_with_output().context("cannot wait for kubectl")?;
    if !output.status.success() {
        bail!("kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).context("kubectl prints text")
}

/// Returns the manifest of the rights the agent ships with.
///
/// # Errors
///
/// When it cannot be read.
pub(crate) fn shipped_rbac() -> Result<String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/base/rbac.yaml");
    fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))
}

/// Gives the agent's ServiceAccount the rights it ships with.
///
/// # Errors
///
/// When there is no kubectl, or it fails.
pub(crate) fn apply_rbac(server: &Server) -> Result<()> {
    kubectl()?;
    let text = shipped_rbac()?;
    good(server.namespace("egress-agent", &[]));
    good(run_kubectl(server, &["apply", "--namespace", "egress-agent", "--filename", "-"], &text));
    Ok(())
}

impl<'a> Scene<'a> {
    pub(crate) fn new(server: &'a Server, name: &str) -> Self {
        Self::with_outside(server, name, &["192.0.2.10", "198.51.100.7", "203.0.113.9", "203.0.113.10"])
    }

    /// Makes a scene whose host outside has these addresses, the two with servers among them.
    pub(crate) fn with_outside(server: &'a Server, name: &str, addresses: &[&str]) -> Self {
        let binary = good(agent::binary());
        let lab = good(Lab::new(Driver::Cgroupfs));
        let out = good(lab.outside(addresses));
        for server in [GOOD, BAD] {
            out.serve_tcp(at(server));
        }
        let pins = good(lab.bpffs()).join("egress-agent");
        let snapshot = lab.folder.join("state").join("snapshot");
        let namespace = format!("{name}-shop");
        good(server.namespace(&namespace, &[]));
        let kubeconfig = good(server.kubeconfig_for("egress-agent", "egress-agent"));
        let node = format!("{name}-node");
        Self { server, namespace, node, out, pins, binary, snapshot, kubeconfig, agents: Cell::new(0), lab }
    }

    /// The double, for faults and counts.
    pub(crate) fn double(&self) -> &Double {
        self.server.as_double().expect("this case is for the double")
    }

    /// Starts the agent and returns without waiting.
    pub(crate) fn spawn(&self, more: &[&str]) -> Running {
        let number = self.agents.replace(self.agents.get() + 1);
        let log = self.lab.folder.join(format!("agent-{number}.log"));
        let address = good(agent::free_address());
        let mut command = Command::new(&self.binary);
        for proxy in PROXIES {
            command.env_remove(proxy);
        }
        command.arg("agent").args([
            "--listen",
            &address.to_string(),
            "-o",
            "json",
            "--node-name",
            &self.node,
        ]);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--pin-dir").arg(&self.pins);
        command.arg("--kubepods-cgroup").arg(&self.lab.kubepods().path).args(more);
        command.stderr(File::create(&log).expect("the lab's folder can be written"));
        let agent = Some(good(Agent::listening(command, address, &self.lab.keeper)));
        Running { agent, log }
    }

    /// Starts the agent and waits until it is ready.
    pub(crate) fn run(&self, more: &[&str]) -> Running {
        let mut agent = self.spawn(more);
        agent.ready();
        agent
    }

    /// Starts the agent with a snapshot.
    pub(crate) fn spawn_with_snapshot(&self, more: &[&str]) -> Running {
        let path = self.snapshot.to_str().expect("the lab's paths are text").to_owned();
        let mut arguments = vec!["--snapshot", &path];
        arguments.extend(more);
        self.spawn(&arguments)
    }

    pub(crate) fn kill(&self, mut agent: Running) {
        good(agent.agent.take().expect("it runs").kill(&self.lab.keeper));
    }

    pub(crate) fn terminate(&self, mut agent: Running) {
        let status = good(agent.agent.take().expect("it runs").terminate(&self.lab.keeper));
        assert!(status.success(), "SIGTERM is how an agent ends: {status}\n{}", agent.log());
    }

    pub(crate) fn unload(&self) {
        good(agent::unload(&self.binary, &self.pins));
    }

    /// Creates an object, or brings it to this state; with kubectl where the server is a real one.
    pub(crate) fn apply(&self, object: &Value) {
        if self.server.backend() == Backend::Real {
            good(run_kubectl(self.server, &["apply", "--filename", "-"], &object.to_string()));
        } else {
            good(self.server.put(object));
        }
    }

    pub(crate) fn put(&self, object: &Value) -> Value {
        good(self.server.put(object))
    }

    pub(crate) fn delete(&self, object: &Value) {
        good(self.server.delete(object));
    }

    /// Creates a pod on this node and returns what the server made of it.
    pub(crate) fn api_pod(&self, name: &str, labels: &Value, address: &str) -> Value {
        self.put(&pod_object(&self.namespace, name, &self.node, labels, address))
    }

    /// Creates a pod through the API, and then its cgroup and process as kubelet does.
    pub(crate) fn pod(&self, name: &str, labels: &Value, address: &str) -> Pod {
        let uid = uid(&self.api_pod(name, labels, address));
        good(self.lab.pod(&uid, Qos::Burstable, &[address]))
    }

    /// Ends a pod's processes and removes its cgroup.
    pub(crate) fn end(&self, pod: &Pod) {
        let pid = i32::try_from(pod.pid).expect("a process id is a positive int");
        // SAFETY: a system call that takes numbers; the lab has not waited for the process, so the number is still its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0, "the process is there");
        let inner = fs::read_dir(&pod.cgroup).expect("the cgroup is there");
        let folders: Vec<PathBuf> =
            inner.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        for folder in folders.iter().chain([&pod.cgroup]) {
            until("the cgroup can be removed", || fs::remove_dir(folder).is_ok());
        }
    }

    /// Puts a policy there for the pods of the scene's namespace.
    pub(crate) fn policy(&self, name: &str, policy: &Value) {
        self.apply(&config_map(&self.namespace, name, &policy.to_string()));
    }

    pub(crate) fn delete_policy(&self, name: &str) {
        self.delete(&config_map(&self.namespace, name, ""));
    }

    /// Removes the scene's namespace, so that the next case finds the cluster as it was.
    pub(crate) fn clean(self) {
        good(self.server.remove_namespace(&self.namespace));
        good(self.lab.close());
    }
}

/// Returns the time that a share of the measured changes took no longer than.
pub(crate) fn quantile(metrics: &Metrics, share: f64) -> f64 {
    let total = metrics.sum("egress_policy_apply_seconds_count", &[]);
    let buckets = metrics.0.get("egress_policy_apply_seconds_bucket").expect("changes were measured");
    let mut bounds: Vec<(f64, f64)> = buckets
        .iter()
        .map(|(labels, count)| (labels["le"].parse().unwrap_or(f64::INFINITY), *count))
        .collect();
    bounds.sort_by(|left, right| left.0.total_cmp(&right.0));
    bounds.iter().find(|(_, count)| *count >= total * share).map_or(f64::INFINITY, |(bound, _)| *bound)
}

/// The UID of an object the server has made.
#[track_caller]
pub(crate) fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().expect("the server gives each object a UID").to_owned()
}

impl Deref for Running {
    type Target = Agent;

    fn deref(&self) -> &Agent {
        self.agent.as_ref().expect("it runs")
    }
}

impl Running {
    #[track_caller]
    pub(crate) fn ready(&mut self) {
        let ready = self.agent.as_mut().expect("it runs").wait_ready(LIMIT);
        ready.unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Waits until the agent is not ready for this reason.
    #[track_caller]
    pub(crate) fn unready(&self, reason: &str) {
        let mut last = String::new();
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.get("/readyz") {
                Ok((503, body)) if body.contains(reason) => return,
                other => last = format!("{other:?}, not {reason:?} (before: {last:.100})"),
            }
            assert!(Instant::now() < deadline, "/readyz is {last}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log is text")
    }

    /// How many lines of its log hold these words.
    pub(crate) fn says(&self, words: &str) -> usize {
        self.log().lines().filter(|line| line.contains(words)).count()
    }

    #[track_caller]
    pub(crate) fn scrape(&self) -> Metrics {
        good(self.metrics())
    }

    #[track_caller]
    pub(crate) fn sum(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        self.scrape().sum(family, labels)
    }

    /// How many kilobytes of memory it has in use.
    pub(crate) fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid);
        let text = fs::read_to_string(&path).expect("the agent runs");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has it");
        line.trim().trim_end_matches(" kB").parse().expect("it is a number")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_else(|error| error.to_string());
            let lines: Vec<&str> = log.lines().collect();
            println!("{}:\n{}", self.log.display(), lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}
