//! The agent as it ships: a process that reads manifests, finds pods by their cgroups, and is killed at bad moments.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use egress_tests::lab::{
    ANSWER_MILLIS, Driver, Host, Lab, Pod, Qos, SILENCE_MILLIS,
    agent::{self, Agent},
    at,
    direct::now,
    wire::{Outcome, Reply, Request},
};

mod first;
mod observe;
#[path = "../pages/mod.rs"]
#[expect(dead_code, reason = "the other tests of pages use the rest")]
mod pages;
mod recommend;
mod top;

const UID: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// How long the agent may take for anything. Debug builds on busy machines are slow.
const LIMIT: Duration = Duration::from_secs(30);

const GOOD: &str = "192.0.2.10:443";
const BAD: &str = "198.51.100.7:443";

/// A lab with one pod, one host outside with servers, and manifests.
struct Node {
    pod: Pod,
    out: Arc<Host>,
    manifests: PathBuf,
    pins: PathBuf,
    binary: PathBuf,
    lab: Lab,
}

impl Node {
    fn new(driver: Driver, qos: Qos) -> Self {
        let binary = agent::binary().unwrap_or_else(|error| panic!("{error:#}"));
        let lab = Lab::new(driver).unwrap_or_else(|error| panic!("{error:#}"));
        let pod = lab.pod(UID, qos, &["10.244.0.5"]).unwrap_or_else(|error| panic!("{error:#}"));
        let out = lab
            .outside(&["192.0.2.10", "198.51.100.7", "203.0.113.9", "203.0.113.10"])
            .unwrap_or_else(|error| panic!("{error:#}"));
        for server in [GOOD, BAD] {
            out.serve_tcp(at(server));
        }
        let pins = lab.bpffs().unwrap_or_else(|error| panic!("{error:#}")).join("egress-agent");
        let manifests = lab.folder.join("manifests");
        fs::create_dir(&manifests).expect("the lab's folder can be written");
        let node = Self { pod, out, manifests, pins, binary, lab };
        node.write("namespace.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
        node.write("pod.yaml", &pod_manifest(UID));
        node
    }

    /// Puts a manifest there in one step.
    fn write(&self, name: &str, text: &str) {
        let hidden = self.manifests.join(format!(".{name}"));
        fs::write(&hidden, text).expect("the lab's folder can be written");
        fs::rename(&hidden, self.manifests.join(name)).expect("the lab's folder can be written");
    }

    /// Puts a policy there that denies by default, with these allowed destinations.
    fn policy(&self, destinations: &[String]) {
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  namespace: shop\n  name: policy\n  labels: {{egress-controller: managed}}\ndata:\n  policy.json: '{{\"defaultAction\": \"deny\", \"allowedDestinations\": [{}]}}'\n",
            destinations.join(", ")
        );
        self.write("policy.yaml", &text);
    }

    /// Starts the agent and returns without waiting.
    fn spawn(&self, more: &[&str]) -> Agent {
        let text = |path: &'_ Path| path.to_str().expect("the lab's paths are text").to_owned();
        let (manifests, kubepods, pins) =
            (text(&self.manifests), text(&self.lab.kubepods().path), text(&self.pins));
        let mut arguments =
            vec!["--manifests", &manifests, "--kubepods-cgroup", &kubepods, "--pin-dir", &pins];
        arguments.extend(more);
        Agent::start(&self.binary, &self.lab.keeper, &arguments).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Starts the agent and waits until its policies are in force.
    fn run(&self, more: &[&str]) -> Agent {
        let mut agent = self.spawn(more);
        agent.wait_ready(LIMIT).unwrap_or_else(|error| panic!("{error:#}"));
        agent
    }

    fn kill(&self, agent: Agent) {
        agent.kill(&self.lab.keeper).unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Starts to send datagrams to these addresses in turn.
    fn watch(&self, to: &[&str]) -> u64 {
        let to: Vec<SocketAddr> = to.iter().map(|to| at(to)).collect();
        self.pod.ask(&Request::Watch { to, micros: 200 }).id
    }

    /// Waits until a new connection ends as wanted.
    #[track_caller]
    fn wait(&self, to: &str, wanted: Outcome) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let seen = self.pod.connect(at(to)).outcome;
            if seen == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{to} is still {seen}, not {wanted}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn pod_manifest(uid: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: shop, name: web, uid: {uid}, labels: {{app: web}}}}\n\
         spec: {{nodeName: node-a, containers: [{{name: main, image: example.com/web}}]}}\n\
         status: {{phase: Running, podIPs: [{{ip: 10.244.0.5}}]}}\n"
    )
}

fn destination(name: &str, cidr: &str) -> String {
    format!("{{\"name\": \"{name}\", \"cidr\": \"{cidr}\"}}")
}

/// What came of the datagrams to the address at this place.
fn of(seen: &Reply, place: usize) -> Vec<Outcome> {
    seen.changes.iter().filter(|change| change.1 == place).map(|change| change.2).collect()
}

#[test]
fn policies_hold_for_the_pods_kubelet_made_in_every_layout() {
    for (driver, qos) in [
        (Driver::Cgroupfs, Qos::Guaranteed),
        (Driver::Cgroupfs, Qos::Burstable),
        (Driver::Systemd, Qos::Guaranteed),
        (Driver::Systemd, Qos::BestEffort),
    ] {
        let node = Node::new(driver, qos);
        node.policy(&[destination("good", "192.0.2.0/24")]);
        let agent = node.run(&[]);
        assert_eq!(node.pod.connect(at(GOOD)).outcome, Outcome::Ok, "{driver:?} {qos:?}");
        assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::NotPermitted, "{driver:?} {qos:?}");
        let metrics = agent.metrics().unwrap_or_else(|error| panic!("{error:#}"));
        let labels = |reason| [("namespace", "shop"), ("pod", "web"), ("reason", reason)];
        assert_eq!(metrics.sum("egress_denied_packets_total", &labels("default_deny")), 1.0);
        assert!(metrics.sum("egress_allowed_packets_total", &labels("allowed_destination")) >= 2.0);
    }
}

#[test]
fn a_denial_is_told_with_who_and_why() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("good", "192.0.2.0/24")]);
    let agent = node.run(&[]);
    assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    let deadline = Instant::now() + LIMIT;
    let line = loop {
        if let Some(line) = agent.lines().first() {
            break line.clone();
        }
        assert!(Instant::now() < deadline, "no event is printed");
        thread::sleep(Duration::from_millis(10));
    };
    let event: serde_json::Value = serde_json::from_str(&line).expect("an event is a JSON object");
    let text = event.to_string();
    for word in ["shop", "web", "198.51.100.7", "443", "default_deny", "deny"] {
        assert!(text.contains(word), "{word} stands in {text}");
    }
}

#[test]
fn connect_hooks_off_leaves_the_refusal_to_the_packets() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("good", "192.0.2.0/24")]);
    let _agent = node.run(&["--connect-hooks", "off"]);
    assert_eq!(node.pod.connect(at(GOOD)).outcome, Outcome::Ok);
    assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::Timeout);
}

#[test]
fn a_pod_without_a_manifest_waits_for_it_in_strict_mode_and_passes_in_standard_mode() {
    for (mode, before) in [("strict", Outcome::NotPermitted), ("standard", Outcome::Ok)] {
        let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
        fs::remove_file(node.manifests.join("pod.yaml")).expect("it was written");
        node.policy(&[destination("good", "192.0.2.0/24")]);
        let _agent = node.run(&["--pod-start", mode]);
        assert_eq!(node.pod.connect(at(GOOD)).outcome, before, "{mode}");
        assert_eq!(node.pod.connect(at(BAD)).outcome, before, "{mode}");
        node.write("pod.yaml", &pod_manifest(UID));
        node.wait(GOOD, Outcome::Ok);
        node.wait(BAD, Outcome::NotPermitted);
    }
}

#[test]
fn a_pod_no_policy_selects_passes_unless_its_namespace_is_governed() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    let agent = node.run(&[]);
    assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::Ok);
    let status = agent.terminate(&node.lab.keeper).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(status.success(), "SIGTERM is how an agent ends: {status}");
    let _agent = node.run(&["--governed-namespaces", "shop"]);
    node.wait(BAD, Outcome::NotPermitted);
}

#[test]
fn an_auditing_agent_denies_nothing_that_policies_do_and_tells_it() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("good", "192.0.2.0/24")]);
    let agent = node.run(&[]);
    assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    let only_audits =
        |agent: &Agent| agent.metrics().expect("the agent answers").sum("egress_audit_only", &[]);
    assert!(only_audits(&agent) < 0.5);
    node.kill(agent);
    // What the one before had pinned gives way.
    let agent = node.run(&["--audit"]);
    node.wait(BAD, Outcome::Ok);
    assert_eq!(node.pod.connect(at(GOOD)).outcome, Outcome::Ok);
    assert!(only_audits(&agent) > 0.5);
    let metrics = || agent.metrics().expect("the agent answers");
    assert!(metrics().sum("egress_audited_packets_total", &[("reason", "default_deny")]) > 0.0);
    let is_told =
        || agent.lines().iter().any(|line| line.contains("\"audit\"") && line.contains("198.51.100.7"));
    let deadline = Instant::now() + LIMIT;
    while !is_told() {
        assert!(Instant::now() < deadline, "no event tells of it: {:?}", agent.lines());
        thread::sleep(Duration::from_millis(10));
    }
    // What is no policy denies as before.
    let (_, status, _) = status(&node, &agent.runtime, &[]);
    assert!(status.contains("every policy audited"), "{status}");
    node.kill(agent);
    let agent = node.run(&["--audit", "--governed-namespaces", "shop"]);
    node.wait(BAD, Outcome::NotPermitted);
    node.kill(agent);
    let _agent = node.run(&[]);
    node.wait(BAD, Outcome::NotPermitted);
}

#[test]
fn network_policies_are_enforced_when_asked_for() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.write(
        "network-policy.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: web}\n\
         spec:\n  podSelector: {}\n  policyTypes: [Egress]\n  egress:\n    - to: [{ipBlock: {cidr: 192.0.2.0/24}}]\n",
    );
    let agent = node.run(&[]);
    assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::Ok);
    node.kill(agent);
    let _agent = node.run(&["--enforce-network-policy"]);
    node.wait(BAD, Outcome::NotPermitted);
    assert_eq!(node.pod.connect(at(GOOD)).outcome, Outcome::Ok);
}

/// Kill, work on without it, take over, edit, unload: denied traffic passes at no moment, allowed traffic loses nothing.
#[test]
fn an_agent_may_die_and_come_back_unnoticed() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("good", "192.0.2.0/24")]);
    let agent = node.run(&[]);
    let connection = node.pod.connect(at(GOOD));
    assert_eq!(connection.outcome, Outcome::Ok);
    let pump = node.pod.ask(&Request::Pump { id: connection.id, micros: 500 }).id;
    let watch = node.watch(&["192.0.2.10:9", "198.51.100.7:9"]);
    thread::sleep(Duration::from_millis(100));
    node.kill(agent);
    thread::sleep(Duration::from_millis(300));
    let bad = node.pod.connect(at(BAD));
    assert_eq!(bad.outcome, Outcome::NotPermitted, "the programs enforce on their own");
    let agent = node.run(&[]);
    // What the new agent does reaches the kernel the old one left behind.
    node.policy(&[destination("good", "192.0.2.0/24"), destination("late", "203.0.113.9/32")]);
    node.out.serve_tcp(at("203.0.113.9:443"));
    node.wait("203.0.113.9:443", Outcome::Ok);
    let seen = node.pod.close(watch);
    assert_eq!(of(&seen, 0), [Outcome::Ok], "what is allowed never failed: {seen:?}");
    assert_eq!(of(&seen, 1), [Outcome::NotPermitted], "what is denied never passed: {seen:?}");
    let pumped = node.pod.close(pump);
    assert!(pumped.count(Outcome::Ok) > 50, "{pumped:?}");
    assert_eq!(pumped.counts.len(), 1, "the connection never broke: {pumped:?}");
    node.kill(agent);
    let removed = agent::unload(&node.binary, &node.pins).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(removed.contains("egress"), "it names what it removed: {removed}");
    assert!(!node.pins.exists(), "nothing is pinned any more");
    node.wait(BAD, Outcome::Ok);
}

/// Ten thousand destinations that change places, with the agent killed while it writes them.
#[test]
fn an_agent_killed_while_it_writes_leaves_the_old_policy_whole() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    let policies = [false, true].map(|odd| {
        let mut cidrs = String::new();
        for number in (0u32..20_000).filter(|number| (number % 2 == 1) == odd) {
            let [_, _, high, low] = number.to_be_bytes();
            write!(cidrs, "\"10.77.{high}.{low}/32\", ").expect("a string takes everything");
        }
        let one = if odd { "203.0.113.9/32" } else { "203.0.113.10/32" };
        format!("{{\"name\": \"all\", \"cidrs\": [{cidrs}\"{one}\", \"192.0.2.10/32\"]}}")
    });
    node.policy(&policies[..1]);
    let mut agent = node.run(&[]);
    let watch = node.watch(&["203.0.113.10:9", "203.0.113.9:9", "192.0.2.10:9", "198.51.100.7:9"]);
    // From before the agent has read the file to after it has written everything.
    for (round, pause) in (1..).zip([5, 40, 80, 120, 200, 400]) {
        node.policy(std::slice::from_ref(&policies[round % 2]));
        thread::sleep(Duration::from_millis(pause));
        node.kill(agent);
        agent = node.run(&[]);
        let port = 1000 + round;
        for address in ["203.0.113.9", "203.0.113.10"] {
            node.out.serve_tcp(at(&format!("{address}:{port}")));
        }
        let reached = |odd: bool| {
            let address = if odd { "203.0.113.9" } else { "203.0.113.10" };
            node.pod.connect(at(&format!("{address}:{port}"))).outcome
        };
        assert_eq!(reached(round % 2 == 1), Outcome::Ok, "after the restart the new policy holds");
        assert_eq!(reached(round % 2 == 0), Outcome::NotPermitted, "and the old one does not");
    }
    let seen = node.pod.close(watch);
    assert_eq!(of(&seen, 2), [Outcome::Ok], "both allow it, so it never failed: {seen:?}");
    assert_eq!(of(&seen, 3), [Outcome::NotPermitted], "both deny it, so it never passed: {seen:?}");
    // Each round swapped the other two once, both within one turn: nobody saw half of a policy.
    let swaps: Vec<_> = seen.changes.iter().filter(|change| change.0 >= 4).collect();
    assert_eq!(swaps.len(), 12, "{seen:?}");
    for pair in swaps.chunks(2) {
        assert_ne!(pair[0].1, pair[1].1, "both change: {seen:?}");
        assert!(pair[1].0 - pair[0].0 <= 4, "in one step: {seen:?}");
    }
}

#[test]
fn an_exception_ends_on_time_with_the_agent_dead() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    let end = now() + 8;
    let expiry = jiff::Timestamp::from_second(i64::try_from(end).expect("it is this century"))
        .expect("it is this century");
    node.policy(&[format!(
        "{{\"name\": \"soon\", \"cidr\": \"192.0.2.10/32\", \"governance\": {{\"expiry\": \"{expiry}\"}}}}"
    )]);
    let agent = node.run(&[]);
    let connection = node.pod.connect(at(GOOD));
    assert_eq!(connection.outcome, Outcome::Ok);
    node.kill(agent);
    assert_eq!(node.pod.exchange(connection.id, 1000), Outcome::Ok);
    assert!(now() < end, "the machine is far too slow for this test");
    while now() < end {
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(50));
    assert_eq!(node.pod.exchange(connection.id, SILENCE_MILLIS), Outcome::Timeout);
    assert_eq!(node.pod.connect(at(GOOD)).outcome, Outcome::NotPermitted);
    let agent = node.run(&[]);
    let metrics = agent.metrics().unwrap_or_else(|error| panic!("{error:#}"));
    let labels = [("namespace", "shop"), ("pod", "web"), ("reason", "expired")];
    assert!(metrics.sum("egress_denied_packets_total", &labels) >= 2.0, "counted while it was dead");
}

#[test]
fn a_policy_is_edited_under_an_open_connection() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("good", "192.0.2.0/24")]);
    let _agent = node.run(&[]);
    let connection = node.pod.connect(at(GOOD));
    assert_eq!(node.pod.exchange(connection.id, ANSWER_MILLIS), Outcome::Ok);
    node.policy(&[destination("bad", "198.51.100.0/24")]);
    node.wait(GOOD, Outcome::NotPermitted);
    assert_eq!(node.pod.exchange(connection.id, SILENCE_MILLIS), Outcome::Timeout);
    node.wait(BAD, Outcome::Ok);
    // A policy that cannot be read leaves the last good one in force.
    node.write(
        "policy.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  namespace: shop\n  name: policy\n  labels: {egress-controller: managed}\ndata:\n  policy.json: '{'\n",
    );
    thread::sleep(Duration::from_millis(500));
    assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::Ok);
    assert_eq!(node.pod.connect(at(GOOD)).outcome, Outcome::NotPermitted);
}

/// Whatever has become of the manifests, a new agent opens nothing that the old one had closed, and says what is wrong.
#[test]
fn a_restart_without_readable_manifests_opens_nothing() {
    type Break = fn(&Path);
    let breaks: [(&str, bool, Break); 4] = [
        ("missing", false, |manifests| fs::remove_dir_all(manifests).expect("it is there")),
        ("empty", false, |manifests| {
            for name in ["namespace.yaml", "pod.yaml", "policy.yaml"] {
                fs::remove_file(manifests.join(name)).expect("it was written");
            }
        }),
        ("half a file", false, |manifests| {
            fs::write(manifests.join("policy.yaml"), "apiVersion: v1\nkind: [").expect("it can be written");
        }),
        ("broken policy", true, |manifests| {
            let path = manifests.join("policy.yaml");
            let text = fs::read_to_string(&path).expect("it was written");
            fs::write(path, text.replace("deny", "perhaps")).expect("it can be written");
        }),
    ];
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    for (what, ready, spoil) in breaks {
        let good = [destination("good", "192.0.2.0/24")];
        node.policy(&good);
        let agent = node.run(&[]);
        node.wait(GOOD, Outcome::Ok);
        node.wait(BAD, Outcome::NotPermitted);
        let watch = node.watch(&["192.0.2.10:9", "198.51.100.7:9"]);
        node.kill(agent);
        spoil(&node.manifests);
        let mut agent = node.spawn(&[]);
        let deadline = Instant::now() + LIMIT;
        loop {
            match agent.get("/readyz") {
                Ok((200, _)) if ready => break,
                Ok((503, reason)) if !ready && reason.contains("manifests: ") => break,
                other => assert!(Instant::now() < deadline, "{what}: {other:?}"),
            }
            thread::sleep(Duration::from_millis(10));
        }
        // Longer than the check waits.
        thread::sleep(Duration::from_secs(6));
        let seen = node.pod.close(watch);
        assert_eq!(of(&seen, 0), [Outcome::Ok], "{what}: {seen:?}");
        assert_eq!(of(&seen, 1), [Outcome::NotPermitted], "{what}: {seen:?}");
        // Once they are right again, they hold as they are.
        if !node.manifests.exists() {
            fs::create_dir(&node.manifests).expect("the lab's folder can be written");
        }
        node.write("pod.yaml", &pod_manifest(UID));
        node.write("namespace.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
        node.policy(&[destination("bad", "198.51.100.0/24")]);
        node.wait(BAD, Outcome::Ok);
        node.wait(GOOD, Outcome::NotPermitted);
        agent.wait_ready(LIMIT).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        node.kill(agent);
    }
}

/// A pod that nobody has judged yet is unknown, not open, as long as a manifest is missing that may govern it.
#[test]
fn a_first_start_with_a_broken_manifest_opens_nothing_in_strict_mode() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.write("policy.yaml", "apiVersion: v1\nkind: [");
    let mut agent = node.spawn(&["--pod-start", "strict"]);
    node.wait(GOOD, Outcome::NotPermitted);
    thread::sleep(Duration::from_millis(500));
    assert_eq!(node.pod.connect(at(GOOD)).outcome, Outcome::NotPermitted);
    fs::remove_file(node.manifests.join("policy.yaml")).expect("it was written");
    node.wait(GOOD, Outcome::Ok);
    agent.wait_ready(LIMIT).unwrap_or_else(|error| panic!("{error:#}"));
}

/// Two pods with one UID: the one that nobody governs does not open the other's cgroup, whatever their names.
#[test]
fn a_second_pod_with_the_same_uid_opens_nothing() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("good", "192.0.2.0/24")]);
    let _agent = node.run(&[]);
    node.wait(BAD, Outcome::NotPermitted);
    for namespace in ["a", "z"] {
        node.write("other.yaml", &pod_manifest(UID).replace("shop", namespace));
        thread::sleep(Duration::from_millis(500));
        assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::NotPermitted, "{namespace}");
        assert_eq!(node.pod.connect(at(GOOD)).outcome, Outcome::Ok, "{namespace}");
    }
}

/// Runs `egress-agent status` and returns its exit code, standard output and standard error.
fn status(node: &Node, runtime: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(&node.binary)
        .arg("status")
        .arg("--runtime-dir")
        .arg(runtime)
        .args(arguments)
        .output()
        .expect("the agent's binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("no signal ends it"), text(&output.stdout), text(&output.stderr))
}

#[test]
fn status_tells_of_a_healthy_agent_in_every_format() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("good", "192.0.2.0/24")]);
    let agent = node.run(&[]);
    assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    let (code, table, error) = status(&node, &agent.runtime, &[]);
    assert_eq!((code, error.as_str()), (0, ""), "{table}");
    let mut lines = table.lines();
    assert!(table.contains("\nHealth:      healthy\n"), "{table}");
    let heads =
        lines.find(|line| line.starts_with("NAMESPACE")).unwrap_or_else(|| panic!("no pods: {table}"));
    let row = lines.next().unwrap_or_else(|| panic!("no pods: {table}"));
    let row: BTreeMap<String, String> = cells(heads).into_iter().zip(cells(row)).collect();
    for (head, cell) in [
        ("NAMESPACE", "shop"),
        ("POD", "web"),
        ("HOLDS", "governed"),
        ("DENIED", "1"),
        ("POLICIES", "shop/policy"),
    ] {
        assert_eq!(row[head], cell, "{table}");
    }
    let (code, json, _) = status(&node, &agent.runtime, &["-o", "json"]);
    assert_eq!(code, 0, "{json}");
    let json: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!(json["ready"], true, "{json}");
    assert_eq!(json["source"]["kind"], "directory", "{json}");
    assert_eq!(json["source"]["path"], node.manifests.to_str().expect("the lab's paths are text"), "{json}");
    assert_eq!(json["pods"].as_array().map(Vec::len), Some(1), "{json}");
    let pod = &json["pods"][0];
    assert_eq!((&pod["uid"], &pod["holds"]), (&UID.into(), &"governed".into()), "{json}");
    assert_eq!((&pod["policies"][0], &pod["deniedPackets"]), (&"shop/policy".into(), &1.into()), "{json}");
    assert_eq!(pod["cgroupId"], node.pod.id, "{json}");
    let (code, yaml, _) = status(&node, &agent.runtime, &["-o", "yaml", "--pods"]);
    assert_eq!(code, 0, "{yaml}");
    assert!(yaml.contains("namespace: shop\n") && yaml.contains("holds: governed\n"), "{yaml}");
    let (code, none, _) = status(&node, &agent.runtime, &["--pods", "-n", "other"]);
    assert_eq!((code, none.as_str()), (0, "No pods.\n"));
}

/// The cells of a row of a table.
fn cells(row: &str) -> Vec<String> {
    row.split("   ").map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

#[test]
fn status_tells_what_is_degraded_with_another_exit_code() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("good", "192.0.2.0/24")]);
    let agent = node.run(&[]);
    node.policy(&["{".to_owned()]);
    let deadline = Instant::now() + LIMIT;
    let table = loop {
        let (code, table, _) = status(&node, &agent.runtime, &[]);
        if code == 1 {
            break table;
        }
        assert!(code == 0 && Instant::now() < deadline, "{code}: {table}");
        thread::sleep(Duration::from_millis(20));
    };
    assert!(table.contains("Health:      degraded\n"), "{table}");
    assert!(table.contains("policies that are not in force as they are written: 1\n"), "{table}");
    assert!(table.contains("shop/policy   earlier version   "), "{table}");
    fs::remove_dir_all(&node.manifests).expect("it is there");
    let deadline = Instant::now() + LIMIT;
    while !status(&node, &agent.runtime, &[]).1.contains("Health:      not ready\n") {
        assert!(Instant::now() < deadline, "the missing manifests are not told");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_socket_of_a_dead_agent_is_replaced_and_that_of_a_live_one_respected() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    let runtime = node.lab.folder.join("run");
    let folder = runtime.to_str().expect("the lab's paths are text");
    let (code, table, error) = status(&node, &runtime, &[]);
    assert_eq!((code, table.as_str()), (2, ""), "{error}");
    assert!(error.contains(folder) && error.contains("egress-agent agent"), "{error}");
    let agent = node.run(&["--runtime-dir", folder]);
    assert_eq!(status(&node, &runtime, &[]).0, 0);
    let second = Command::new(&node.binary)
        .args(["agent", "--no-pin", "--listen", "127.0.0.1:0", "--runtime-dir", folder, "--manifests"])
        .arg(&node.manifests)
        .arg("--kubepods-cgroup")
        .arg(&node.lab.kubepods().path)
        .output()
        .expect("the agent's binary starts");
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(2), "{error}");
    assert!(error.contains("another agent answers at") && error.contains("--runtime-dir"), "{error}");
    assert_eq!(status(&node, &runtime, &[]).0, 0, "the first one still answers");
    node.kill(agent);
    assert!(runtime.join("agent.sock").exists(), "a killed agent leaves it");
    let (code, _, error) = status(&node, &runtime, &[]);
    assert_eq!(code, 2, "{error}");
    let agent = node.run(&["--runtime-dir", folder]);
    assert_eq!(status(&node, &runtime, &[]).0, 0);
    agent.terminate(&node.lab.keeper).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(!runtime.join("agent.sock").exists(), "one that is told to stop does not");
}

/// Pins that vanish come back, so that a new agent finds what is in force.
#[test]
fn pins_that_vanish_come_back() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("good", "192.0.2.0/24")]);
    let agent = node.run(&[]);
    let every_pin = pinned(&node.pins);
    let some = |path: &&PathBuf| path.ends_with("maps/RULES") || path.ends_with("links/egress");
    type Remove<'a> = &'a dyn Fn();
    let removals: [(&str, Remove<'_>); 2] = [
        ("two of them", &|| {
            every_pin.iter().filter(some).for_each(|pin| fs::remove_file(pin).expect("it is there"));
        }),
        ("the whole folder", &|| fs::remove_dir_all(&node.pins).expect("it is there")),
    ];
    for (what, remove) in removals {
        let watch = node.watch(&["192.0.2.10:9", "198.51.100.7:9"]);
        remove();
        assert_ne!(pinned(&node.pins), every_pin, "{what}");
        let deadline = Instant::now() + LIMIT;
        while pinned(&node.pins) != every_pin {
            assert!(Instant::now() < deadline, "{what}: {:?} are all that is pinned", pinned(&node.pins));
            thread::sleep(Duration::from_millis(20));
        }
        let seen = node.pod.close(watch);
        assert_eq!(of(&seen, 0), [Outcome::Ok], "{what}: {seen:?}");
        assert_eq!(of(&seen, 1), [Outcome::NotPermitted], "{what}: {seen:?}");
    }
    let metrics = agent.metrics().unwrap_or_else(|error| panic!("{error:#}"));
    let repaired = metrics.sum("egress_datapath_repairs_total", &[]);
    assert_eq!(repaired, 2.0 + every_pin.len() as f64);
    assert_eq!(agent.get("/readyz").unwrap_or_else(|error| panic!("{error:#}")).0, 200);
    // The new folder is locked as the old one was.
    let refused = agent::unload(&node.binary, &node.pins).expect_err("an agent works with it").to_string();
    assert!(refused.contains("another agent works with the pins"), "{refused}");
    node.kill(agent);
    assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::NotPermitted, "it is pinned again");
    let agent = node.run(&[]);
    let metrics = agent.metrics().unwrap_or_else(|error| panic!("{error:#}"));
    let labels = [("namespace", "shop"), ("pod", "web"), ("reason", "default_deny")];
    assert!(metrics.sum("egress_denied_packets_total", &labels) > 1.0, "the counters are those from before");
}

/// Everything that is pinned.
fn pinned(pins: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![pins.to_owned()];
    while let Some(folder) = folders.pop() {
        // A folder may be on its way out or in.
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path);
            }
        }
    }
    found
}
