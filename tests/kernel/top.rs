//! `egress-agent top`, on a terminal and once.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::{Child, Stdio},
    sync::{Arc, Mutex},
};

use super::*;

/// What stands over the columns of pods.
pub(super) const HEAD: [&str; 9] =
    ["NAMESPACE", "POD", "DENIED/s", "DENIED", "AUDITED/s", "AUDITED", "ALLOWED/s", "ALLOWED", "MOSTLY"];

/// A terminal, and what was written on it.
struct Terminal {
    main: File,
    side: OwnedFd,
    seen: Arc<Mutex<String>>,
}

impl Terminal {
    fn new(columns: u16, rows: u16) -> Self {
        let (mut main, mut side) = (0, 0);
        // SAFETY: two places for descriptors, and nothing else asked for.
        let made = unsafe {
            libc::openpty(
                &raw mut main,
                &raw mut side,
                std::ptr::null_mut(),
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: both were just made, and nobody else has them.
        let (main, side) = unsafe { (File::from_raw_fd(main), OwnedFd::from_raw_fd(side)) };
        let seen = Arc::new(Mutex::new(String::new()));
        let (mut reader, text) = (main.try_clone().expect("it can be cloned"), Arc::clone(&seen));
        thread::spawn(move || {
            let mut octets = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut octets) {
                let more = String::from_utf8_lossy(&octets[..count]).into_owned();
                text.lock().expect("no thread panics with the lock held").push_str(&more);
            }
        });
        let terminal = Self { main, side, seen };
        terminal.resize(columns, rows);
        terminal
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: a terminal of ours, and a size that lives until the call returns.
        let set = unsafe { libc::ioctl(self.main.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }

    /// Its modes, as one that was taken over has others.
    fn modes(&self) -> (u32, Vec<u8>) {
        let modes = rustix::termios::tcgetattr(&self.side).expect("it is a terminal");
        let codes = [
            rustix::termios::SpecialCodeIndex::VMIN,
            rustix::termios::SpecialCodeIndex::VTIME,
            rustix::termios::SpecialCodeIndex::VSUSP,
        ];
        (modes.local_modes.bits(), codes.iter().map(|code| modes.special_codes[*code]).collect())
    }

    fn text(&self) -> String {
        self.seen.lock().expect("no thread panics with the lock held").clone()
    }

    /// What is on the screen now, as lines.
    fn screen(&self) -> Vec<String> {
        let text = self.text();
        let last = text.rsplit("\x1b[H").next().unwrap_or("");
        last.split("\r\n").map(|line| line.replace("\x1b[K", "").replace("\x1b[J", "")).collect()
    }

    #[track_caller]
    fn wait(&self, what: &str, wanted: impl Fn(&[String]) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !wanted(&self.screen()) {
            assert!(Instant::now() < deadline, "{what}: {:#?}", self.screen());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn start(&self, node: &Node, agent: &Agent) -> Child {
        let side = || Stdio::from(self.side.try_clone().expect("it can be cloned"));
        let child = Command::new(&node.binary)
            .args(["top", "--interval", "0.2", "--runtime-dir"])
            .arg(&agent.runtime)
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .expect("the agent's binary starts");
        node.lab.keeper.process(child.id()).unwrap_or_else(|error| panic!("{error:#}"));
        child
    }
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
        ("q", &|terminal, _| (&terminal.main).write_all(b"q").expect("it is open")),
        ("SIGTERM", &|_, child| signal(child, libc::SIGTERM)),
        ("SIGINT", &|_, child| signal(child, libc::SIGINT)),
        ("SIGHUP", &|_, child| signal(child, libc::SIGHUP)),
        ("SIGQUIT", &|_, child| signal(child, libc::SIGQUIT)),
    ];
    for (round, (what, end)) in (2_u32..).zip(ends) {
        let terminal = Terminal::new(120, 12);
        let before = terminal.modes();
        let mut child = terminal.start(&node, &agent);
        terminal.wait("the pod is there", |lines| {
            lines.iter().any(|line| line.contains("shop") && line.contains("web"))
        });
        assert_ne!(terminal.modes(), before, "it is taken over");
        assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
        terminal.wait("what is denied is counted", |lines| {
            let row = lines.iter().find(|line| line.starts_with("shop"));
            row.is_some_and(|row| row.split_whitespace().nth(3) == Some(&round.to_string()))
        });
        (&terminal.main).write_all(b"d").expect("it is open");
        terminal.wait("destinations", |lines| {
            lines.iter().any(|line| line.starts_with("shop/policy") && line.contains("good"))
        });
        terminal.resize(30, 5);
        signal(&child, libc::SIGWINCH);
        terminal.wait("a smaller window", |lines| {
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
    let (code, _, error) = top(&[]);
    assert!(code == Some(2) && error.contains("--once"), "{error}");
}
