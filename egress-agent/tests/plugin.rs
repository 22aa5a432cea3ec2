//! The plugin against a kubectl that is a script.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A kubectl that knows two agents, and three pods on their nodes. What it is asked stands in the file `asked` beside it.
const KUBECTL: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$*" >> "$here/asked"
case "$*" in
*"get pods --namespace egress-agent"*) printf 'agent-1   node-a\nagent-2   node-b\nagent-3   <none>\n' ;;
*"get pods --namespace shop"*) printf 'web   node-b\ntill   node-a\n' ;;
*"get pods --namespace secret"*) echo "Error: forbidden" >&2; exit 1 ;;
*exec*agent-1*--export*) echo '{"leftOut":1}' ;;
*exec*agent-2*--export*) echo '{"leftOut":2}' ;;
*exec*agent-1*recommend*--flows*)
    echo "from $(sort | tr -d '\n')"
    echo 'fill in' >&2 ;;
*exec*agent-1*--follow*)
    echo '2026-11-22T03:00:01.000Z  node-a  deny  one'
    echo $$ > "$here/pid-a"
    # Until standard input ends, as the real one.
    cat > /dev/null ;;
*exec*agent-1*)
    echo '2026-11-22T03:00:01.000Z  node-a  deny  one'
    echo '2026-11-22T03:00:03.000Z  node-a  deny  three' ;;
*exec*agent-2*--follow*)
    echo '2026-11-22T03:00:00.000Z  node-b  deny  zero'
    echo $$ > "$here/pid-b"
    cat > /dev/null ;;
*exec*agent-2*)
    if [ -e "$here/broken" ]; then
        printf 'error: no \033[2Jagent\n' >&2
        exit 2
    fi
    echo '2026-11-22T03:00:02.000Z  node-b  deny  two' ;;
*) echo "what is $*" >&2; exit 1 ;;
esac
"#;

struct Script(tempfile::TempDir);

impl Script {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kubectl");
        fs::write(&path, KUBECTL).expect("the folder can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode can be set");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_egress-agent"), folder.path().join("kubectl-egress"))
            .expect("the folder can be written");
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let (subcommand, rest) = arguments.split_first().expect("there is a subcommand");
        let mut command = Command::new(self.path("kubectl-egress"));
        command.arg(subcommand).arg("--kubectl").arg(self.path("kubectl")).args(rest);
        command
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.command(arguments).output().expect("the plugin starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().expect("no signal ends it"), text(&output.stdout), text(&output.stderr))
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.path("asked")).expect("it was asked")
    }
}

fn last_words(out: &str) -> Vec<&str> {
    out.lines().skip(1).filter_map(|line| line.split_whitespace().last()).collect()
}

#[test]
fn the_events_of_all_nodes_come_in_one_order() {
    let script = Script::new();
    let (code, out, error) = script.run(&["observe"]);
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    assert_eq!(last_words(&out), ["one", "two", "three"]);
    let (_, out, _) = script.run(&["observe", "--last", "2"]);
    assert_eq!(last_words(&out), ["two", "three"], "of all nodes together");
}

#[test]
fn only_the_agents_of_the_nodes_that_matter_are_asked() {
    let script = Script::new();
    let (code, out, _) = script.run(&[
        "observe",
        "-n",
        "shop",
        "--pod",
        "web",
        "--reason",
        "expired",
        "--port",
        "80,81",
        "--verdict",
        "deny",
    ]);
    assert_eq!((code, last_words(&out)), (0, vec!["two"]));
    let asked = script.asked();
    let exec = asked.lines().find(|line| line.contains("exec")).expect("it ran something");
    for part in [
        "--namespace egress-agent agent-2 --container agent -- egress-agent observe",
        "--node node-b",
        "--namespace=shop",
        "--pod=web",
        "--reason=expired",
        "--port=80,81",
        "--verdict=deny",
        "--last 20",
    ] {
        assert!(exec.contains(part), "{part} stands in {exec}");
    }
    assert!(!exec.contains("--follow"), "{exec}");
    let (_, out, _) = script.run(&["observe", "--context", "c", "-n", "shop", "--node", "node-a"]);
    assert_eq!(last_words(&out), ["one", "three"]);
    assert!(script.asked().contains("--context c exec"), "{}", script.asked());
}

#[test]
fn what_cannot_be_asked_is_said_and_changes_the_exit_code() {
    let script = Script::new();
    fs::write(script.path("broken"), "").expect("the folder can be written");
    let (code, out, error) = script.run(&["observe"]);
    assert_eq!((code, last_words(&out)), (2, vec!["one", "three"]), "what came is shown");
    assert!(error.contains("node-b: error: no  [2Jagent\n"), "{error:?}");
    assert!(error.contains("node-b: no more is heard"), "{error}");
    for (arguments, why) in [
        (&["observe", "-n", "secret"][..], "forbidden"),
        (&["observe", "--max-agents", "1"], "--max-agents"),
        (&["observe", "--node", "node-x"], "--node"),
        (&["observe", "--agent-namespace", "shop", "--node", "x"], "--node"),
    ] {
        let (code, out, error) = script.run(arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{error}");
        assert!(error.starts_with("error: ") && error.contains(why), "{error}");
    }
}

#[test]
fn what_all_saw_is_put_together_by_one() {
    let script = Script::new();
    let (code, out, error) = script.run(&["recommend", "-n", "shop", "--", "--mode", "audit"]);
    assert_eq!(
        (code, out.as_str(), error.as_str()),
        (0, "from {\"leftOut\":1}{\"leftOut\":2}\n", "fill in\n")
    );
    let asked = script.asked();
    assert!(asked.lines().last().is_some_and(|line| line.ends_with("--flows - --mode audit")), "{asked}");
    let (code, out, _) = script.run(&["recommend", "-n", "shop", "--export"]);
    assert_eq!((code, out.lines().count()), (0, 2), "{out}");
}

fn runs(pid: &str) -> bool {
    let Ok(stat) = fs::read_to_string(Path::new("/proc").join(pid).join("stat")) else { return false };
    // The state comes after the name. A zombie runs no more.
    !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

#[test]
fn a_follower_that_is_told_to_end_ends_all_it_started() {
    let script = Script::new();
    for signal in ["-INT", "-TERM", "-HUP", "-KILL"] {
        for name in ["pid-a", "pid-b"] {
            fs::write(script.path(name), "").expect("the folder can be written");
        }
        let mut child = script
            .command(&["observe", "--follow"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the plugin starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut next = || lines.next().expect("there is more").expect("it is text");
        assert!(next().starts_with("TIME"));
        assert!(next().ends_with("zero") && next().ends_with("one"), "in their order");
        let pids = ["pid-a", "pid-b"].map(|name| {
            let pid = fs::read_to_string(script.path(name)).expect("it was written");
            pid.trim().to_owned()
        });
        assert!(pids.iter().all(|pid| runs(pid)), "{pids:?}");
        let sent =
            Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill starts");
        assert!(sent.success());
        let status = child.wait().expect("it ends");
        assert_eq!(status.success(), signal != "-KILL", "{signal}: {status}");
        let deadline = Instant::now() + Duration::from_secs(10);
        while pids.iter().any(|pid| runs(pid)) {
            assert!(Instant::now() < deadline, "{signal}: one of {pids:?} still runs");
            thread::sleep(Duration::from_millis(10));
        }
    }
}
