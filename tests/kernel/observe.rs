//! What an agent tells of what it denies, audits and allows, to those who ask at its socket.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
};

use serde_json::Value;

use super::*;

/// Runs `egress-agent observe` and returns its exit code, standard output and standard error.
fn observe(node: &Node, agent: &Agent, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(&node.binary)
        .args(["observe", "--runtime-dir"])
        .arg(&agent.runtime)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the agent's binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("no signal ends it"), text(&output.stdout), text(&output.stderr))
}

/// The events that are kept and fit.
fn kept(node: &Node, agent: &Agent, arguments: &[&str]) -> Vec<Value> {
    let mut all = vec!["-o", "json", "--last", "1000"];
    all.extend(arguments);
    let (code, out, error) = observe(node, agent, &all);
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    out.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

/// Waits until events that fit are as wanted.
#[track_caller]
fn wait_kept(
    node: &Node,
    agent: &Agent,
    arguments: &[&str],
    wanted: impl Fn(&[Value]) -> bool,
) -> Vec<Value> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let events = kept(node, agent, arguments);
        if wanted(&events) {
            return events;
        }
        assert!(Instant::now() < deadline, "the events are {events:#?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A process that follows events.
struct Follower {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Follower {
    fn start(node: &Node, agent: &Agent, arguments: &[&str]) -> Self {
        let mut child = Command::new(&node.binary)
            .args(["observe", "--follow", "-o", "json", "--until-eof", "--runtime-dir"])
            .arg(&agent.runtime)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the agent's binary starts");
        node.lab.keeper.process(child.id()).unwrap_or_else(|error| panic!("{error:#}"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (stdout, seen) = (child.stdout.take().expect("it is piped"), Arc::clone(&lines));
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { return };
                seen.lock().expect("no thread panics with the lock held").push(line);
            }
        });
        Self { child, lines }
    }

    fn events(&self) -> Vec<Value> {
        let lines = self.lines.lock().expect("no thread panics with the lock held");
        lines.iter().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
    }

    /// Waits until there is such an event.
    #[track_caller]
    fn wait(&self, to: &str, verdict: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.events().iter().any(|event| event["to"] == to && event["verdict"] == verdict) {
            assert!(Instant::now() < deadline, "no {verdict} to {to} among {:?}", self.events());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Closes its standard input and waits until it ends.
    fn end(mut self, node: &Node) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end with its standard input");
            thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "{status}");
        node.lab.keeper.forget(self.child.id()).unwrap_or_else(|error| panic!("{error:#}"));
    }
}

const GOOD_HOST: &str = "192.0.2.10";
const BAD_HOST: &str = "198.51.100.7";

#[test]
fn denials_are_told_to_those_who_ask_later_and_to_those_who_follow() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("good", "192.0.2.0/24")]);
    let agent = node.run(&[]);
    let socket = agent.runtime.join("observe.sock");
    let mode = fs::metadata(&socket).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it is for one user");
    assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    let events = wait_kept(&node, &agent, &[], |events| !events.is_empty());
    assert_eq!(events.len(), 1, "{events:?}");
    for (field, value) in [
        ("namespace", "shop"),
        ("pod", "web"),
        ("verdict", "deny"),
        ("reason", "default_deny"),
        ("policy", "shop/policy"),
        ("to", BAD_HOST),
        ("hook", "connect"),
    ] {
        assert_eq!(events[0][field], value, "{events:?}");
    }
    let follower = Follower::start(&node, &agent, &["-n", "shop", "--port", "444"]);
    let other = Follower::start(&node, &agent, &["-n", "till"]);
    let all = Follower::start(&node, &agent, &["--last", "10"]);
    all.wait(BAD_HOST, "deny");
    // The others are there when a third is: each is in its place before it is told anything.
    thread::sleep(Duration::from_millis(300));
    assert_eq!(node.pod.connect(at("198.51.100.7:444")).outcome, Outcome::NotPermitted);
    follower.wait(BAD_HOST, "deny");
    assert_eq!(all.events().len(), 2, "{:?}", all.events());
    assert_eq!(follower.events().len(), 1);
    assert_eq!(follower.events()[0]["port"], 444);
    assert_eq!(other.events().len(), 0, "{:?}", other.events());
    for filter in
        [&["--policy", "policy", "--pod", "web"][..], &["--reason", "default_deny"], &["--port", "443,444"]]
    {
        assert_eq!(kept(&node, &agent, filter).len(), 2, "{filter:?}");
    }
    for filter in
        [&["--policy", "other"][..], &["--verdict", "audit"], &["--reason", "expired"], &["--port", "80"]]
    {
        assert_eq!(kept(&node, &agent, filter).len(), 0, "{filter:?}");
    }
    let (code, table, _) = observe(&node, &agent, &[]);
    assert_eq!(code, 0, "{table}");
    assert!(table.lines().count() == 3 && table.contains("shop/web") && !table.contains('\x1b'), "{table}");
    for follower in [follower, other, all] {
        follower.end(&node);
    }
    agent.terminate(&node.lab.keeper).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(!socket.exists(), "the socket goes with its agent");
}

/// What is allowed is told while somebody follows it, once for a flow; not before, not after, and never to others.
#[test]
fn allowed_flows_are_told_while_somebody_follows_them() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("good", "192.0.2.0/24")]);
    let agent = node.run(&[]);
    assert_eq!(node.pod.connect(at(GOOD)).outcome, Outcome::Ok);
    let plain = Follower::start(&node, &agent, &[]);
    let follower = Follower::start(&node, &agent, &["--verdict", "allow,deny"]);
    let connection = {
        let deadline = Instant::now() + LIMIT;
        loop {
            let connection = node.pod.connect(at(GOOD));
            assert_eq!(connection.outcome, Outcome::Ok);
            thread::sleep(Duration::from_millis(100));
            if !follower.events().is_empty() {
                break connection;
            }
            assert!(Instant::now() < deadline, "nothing allowed is told");
        }
    };
    let event = &follower.events()[0];
    for (field, value) in [
        ("pod", "web"),
        ("verdict", "allow"),
        ("reason", "allowed_destination"),
        ("destination", "good"),
        ("to", GOOD_HOST),
    ] {
        assert_eq!(event[field], value, "{event}");
    }
    let seen = follower.events().len();
    for _ in 0..50 {
        assert_eq!(node.pod.exchange(connection.id, ANSWER_MILLIS), Outcome::Ok);
    }
    // Longer than the agent holds back what comes again.
    thread::sleep(Duration::from_secs(12));
    assert_eq!(follower.events().len(), seen, "a flow that is known is not told again");
    follower.end(&node);
    let deadline = Instant::now() + LIMIT;
    let before = loop {
        let before = kept(&node, &agent, &["--verdict", "allow"]).len();
        assert_eq!(node.pod.connect(at("192.0.2.10:443")).outcome, Outcome::Ok);
        thread::sleep(Duration::from_millis(300));
        if kept(&node, &agent, &["--verdict", "allow"]).len() == before {
            break before;
        }
        assert!(Instant::now() < deadline, "allowed flows are told though nobody follows");
    };
    node.out.serve_tcp(at("192.0.2.10:8080"));
    assert_eq!(node.pod.connect(at("192.0.2.10:8080")).outcome, Outcome::Ok);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(kept(&node, &agent, &["--verdict", "allow"]).len(), before);
    assert!(agent.lines().is_empty(), "standard output has what is not allowed: {:?}", agent.lines());
    assert!(plain.events().is_empty(), "{:?}", plain.events());
    plain.end(&node);
}

/// A transfer whose every packet is audited leaves room for what is new.
#[test]
fn an_audited_transfer_does_not_hide_new_flows() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.write(
        "policy.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  namespace: shop\n  name: policy\n  labels: {egress-controller: managed}\ndata:\n  policy.json: '{\"defaultAction\": \"deny\", \"mode\": \"audit\", \"allowedDestinations\": []}'\n",
    );
    let agent = node.run(&[]);
    let connection = node.pod.connect(at(GOOD));
    assert_eq!(connection.outcome, Outcome::Ok);
    let pump = node.pod.ask(&Request::Pump { id: connection.id, micros: 500 }).id;
    let datagrams = node.watch(&["192.0.2.10:9"]);
    // Whatever the moment of the second.
    for port in [1000, 1001, 1002] {
        thread::sleep(Duration::from_millis(700));
        node.out.serve_tcp(at(&format!("198.51.100.7:{port}")));
        assert_eq!(node.pod.connect(at(&format!("198.51.100.7:{port}"))).outcome, Outcome::Ok);
    }
    let sent = node.pod.close(datagrams);
    assert!(sent.count(Outcome::Ok) > 0, "{sent:?}");
    let pumped = node.pod.close(pump);
    assert!(pumped.count(Outcome::Ok) > 50, "{pumped:?}");
    let events = wait_kept(&node, &agent, &["--port", "1000,1001,1002"], |events| events.len() >= 3);
    for event in &events {
        assert_eq!((&event["verdict"], &event["to"]), (&"audit".into(), &BAD_HOST.into()), "{event}");
    }
    let all = wait_kept(&node, &agent, &[], |events| {
        events.iter().any(|event| event["suppressed"].as_u64().is_some_and(|held_back| held_back > 0))
    });
    assert!(all.len() > events.len(), "the transfers are told too: {all:?}");
}

#[test]
fn destination_addresses_are_masked_wherever_they_are_told() {
    for (mask, shown) in [("prefix", "198.51.100.0/24"), ("all", "masked")] {
        let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
        node.policy(&[destination("good", "192.0.2.0/24")]);
        let mask = format!("--mask-addresses={mask}");
        let agent = node.run(&[&mask]);
        assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
        let events = wait_kept(&node, &agent, &[], |events| !events.is_empty());
        assert_eq!(events[0]["to"], shown, "{events:?}");
        let (_, table, _) = observe(&node, &agent, &[]);
        let told = [table, format!("{events:?}"), agent.lines().join("\n")];
        for text in told {
            assert!(text.contains(shown) && !text.contains(BAD_HOST), "{text}");
        }
    }
}

/// Whatever is written into the socket, the agent goes on judging and telling.
#[test]
fn a_client_that_is_none_harms_nobody() {
    use std::{io::Write as _, os::unix::net::UnixStream};
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("good", "192.0.2.0/24")]);
    let agent = node.run(&[]);
    let socket = agent.runtime.join("observe.sock");
    let mut open = Vec::new();
    for round in 0..100_usize {
        let mut client = UnixStream::connect(&socket).expect("it listens");
        client.set_write_timeout(Some(Duration::from_secs(1))).expect("it can be set");
        let noise: Vec<u8> =
            (0..round * 400).map(|place| (place * 31 + round * 7).to_le_bytes()[0]).collect();
        // It may be refused before all is written.
        if let Err(error) = client.write_all(&noise) {
            assert!(
                matches!(error.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset),
                "{error}"
            );
        }
        if round % 3 == 0 {
            open.push(client);
        }
    }
    assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    // Clients that say nothing give their places up after a while.
    let deadline = Instant::now() + LIMIT;
    loop {
        let (code, out, error) = observe(&node, &agent, &["-o", "json"]);
        if code == 0 && out.contains(BAD_HOST) {
            break;
        }
        assert!(Instant::now() < deadline, "{code} {out} {error}");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(agent.get("/readyz").unwrap_or_else(|error| panic!("{error:#}")).0, 200);
}
