//! `egress-agent top`, on a terminal and once.

use std::process::{Child, Stdio};

use egress_tests::lab::terminal::Terminal;

use super::*;

/// What stands over the columns of pods.
pub(super) const HEAD: [&str; 9] =
    ["NAMESPACE", "POD", "DENIED/s", "DENIED", "AUDITED/s", "AUDITED", "ALLOWED/s", "ALLOWED", "MOSTLY"];

/// Starts `egress-agent top` on a terminal.
fn start(terminal: &Terminal, node: &Node, agent: &Agent) -> Child {
    let child = Command::new(&node.binary)
        .args(["top", "--interval", "0.2", "--runtime-dir"])
        .arg(&agent.runtime)
        .stdin(terminal.side())
        .stdout(terminal.side())
        .stderr(terminal.side())
        .spawn()
        .expect("the agent's binary starts");
    node.lab.keeper.process(child.id()).unwrap_or_else(|error| panic!("{error:#}"));
    child
}

fn signal(child: &Child, number: i32) {
    let pid = i32::try_from(child.id()).expect("a process id is a positive int");
    // SAFETY: a system call that takes numbers; the child has not been waited for, so the number is still its own.
    assert_eq!(unsafe { libc::kill(pid, number) }, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn top_shows_what_is_denied_and_gives_the_terminal_back() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("good", "192.0.2.0/24")]);
    let agent = node.run(&[]);
    assert_eq!(node.pod.connect(at(GOOD)).outcome, Outcome::Ok);
    assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    type End<'a> = (&'a str, &'a dyn Fn(&Terminal, &Child));
    let ends: [End<'_>; 5] = [
        ("q", &|terminal, _| terminal.press(b"q")),
        ("SIGTERM", &|_, child| signal(child, libc::SIGTERM)),
        ("SIGINT", &|_, child| signal(child, libc::SIGINT)),
        ("SIGHUP", &|_, child| signal(child, libc::SIGHUP)),
        ("SIGQUIT", &|_, child| signal(child, libc::SIGQUIT)),
    ];
    for (round, (what, end)) in (2_u32..).zip(ends) {
        let terminal = Terminal::new(120, 12);
        let before = terminal.modes();
        let mut child = start(&terminal, &node, &agent);
        terminal.wait(LIMIT, "the pod is there", |lines| {
            lines.iter().any(|line| line.contains("shop") && line.contains("web"))
        });
        assert_ne!(terminal.modes(), before, "it is taken over");
        assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
        terminal.wait(LIMIT, "what is denied is counted", |lines| {
            let row = lines.iter().find(|line| line.starts_with("shop"));
            row.is_some_and(|row| row.split_whitespace().nth(3) == Some(&round.to_string()))
        });
        terminal.press(b"d");
        terminal.wait(LIMIT, "destinations", |lines| {
            lines.iter().any(|line| line.starts_with("shop/policy") && line.contains("good"))
        });
        terminal.resize(30, 5);
        signal(&child, libc::SIGWINCH);
        terminal.wait(LIMIT, "a smaller window", |lines| {
            lines.len() == 5 && lines.iter().all(|line| line.chars().count() <= 30)
        });
        end(&terminal, &child);
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait().expect("it can be waited for") {
                break status;
            }
            assert!(Instant::now() < deadline, "{what} does not end it");
            thread::sleep(Duration::from_millis(10));
        };
        node.lab.keeper.forget(child.id()).unwrap_or_else(|error| panic!("{error:#}"));
        assert!(status.success(), "{what}: {status}: {}", terminal.text());
        assert_eq!(terminal.modes(), before, "{what}");
        let deadline = Instant::now() + LIMIT;
        while !terminal.text().ends_with("\x1b[?25h\x1b[?1049l") {
            assert!(Instant::now() < deadline, "{what}: {:?}", terminal.text());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn top_prints_one_table_for_scripts() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("good", "192.0.2.0/24")]);
    let agent = node.run(&[]);
    assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    let top = |more: &[&str]| {
        let output = Command::new(&node.binary)
            .args(["top", "--interval", "0.2", "--runtime-dir"])
            .arg(&agent.runtime)
            .args(more)
            .stdin(Stdio::null())
            .output()
            .expect("the agent's binary starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, table, error) = top(&["--once"]);
    assert_eq!((code, error.as_str()), (Some(0), ""), "{table}");
    let head: Vec<&str> = table.lines().next().expect("there is a head").split_whitespace().collect();
    assert_eq!(head, HEAD);
    let row: Vec<&str> = table.lines().nth(1).expect("there is the pod").split_whitespace().collect();
    assert_eq!(row[..4], ["shop", "web", "-", "1"], "{table}");
    assert_eq!(row[8], "default_deny", "{table}");
    assert!(!table.contains('\x1b'), "{table:?}");
    let (_, reasons, _) = top(&["--once", "--view", "reasons"]);
    assert!(reasons.lines().any(|line| line.starts_with("deny") && line.ends_with(" 1")), "{reasons}");
    let (_, other, _) = top(&["--once", "-n", "till"]);
    assert_eq!(other.lines().count(), 1, "{other}");
    let (_, workloads, _) = top(&["--once", "--view", "workloads"]);
    assert!(
        workloads.lines().any(|line| line.starts_with("shop") && line.contains("Pod/web")),
        "{workloads}"
    );
    let (_, json, _) = top(&["--once", "-o", "json"]);
    let value: serde_json::Value = serde_json::from_str(&json).expect("one look is one object");
    assert_eq!(
        value["pods"][0]["denied"],
        serde_json::json!({ "packets": 1, "perSecond": 0.0 }),
        "{value:#}"
    );
    assert_eq!(value["destinations"][0]["policy"], "shop/policy", "{value:#}");
    let (code, _, error) = top(&[]);
    assert!(code == Some(2) && error.contains("--once"), "{error}");
}
