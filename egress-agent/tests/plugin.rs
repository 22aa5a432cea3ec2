//! The plugin against a kubectl that is a script.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

/// A kubectl that knows two agents, and three pods on their nodes. What it is asked stands in the file `asked` beside it; the files
/// `agents` and `exec`, if there are any, say which agents there are and what happens in their pods.
const KUBECTL: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$*" >> "$here/asked"
# Tells of an event of a pod at a time.
event() {
    printf '{"time":"%s","namespace":"shop","pod":"%s","verdict":"deny","reason":"default_deny","hook":"connect",' "$1" "$2"
    printf '"protocol":"TCP","sourcePort":0,"to":"192.0.2.1","port":443,"bytes":0,"suppressed":0,"count":1}\n'
}
say() { event "2026-11-22T03:00:0$1.000000Z" "$2"; }
now() { event "$(date -u +%Y-%m-%dT%H:%M:%S.%6NZ)" "$1"; }
# Stays until standard input ends, as the real one; its process id is in a file.
stay() {
    echo $$ > "$here/new-$1" && mv "$here/new-$1" "$here/$1"
    exec cat > /dev/null
}
case "$*" in
*"get pods --namespace egress-agent"*)
    if [ -e "$here/agents" ]; then cat "$here/agents"; exit; fi
    printf 'agent-1   node-a   2026-11-22T03:00:00Z   <none>\n'
    printf 'agent-2   node-b   2026-11-22T03:00:00Z   <none>\n'
    printf 'agent-3   <none>   2026-11-22T03:00:00Z   <none>\n' ;;
*"get pods --namespace shop"*) printf 'web   node-b\ntill   node-a\n' ;;
*"get pods --namespace secret"*) echo "Error: forbidden" >&2; exit 1 ;;
*"get pods --namespace stuck"*) exec sleep 1000 ;;
*)
    if [ -e "$here/exec" ]; then . "$here/exec"; fi
    case "$*" in
    *exec*agent-1*--export*) echo '{"leftOut":1}' ;;
    *exec*agent-2*--export*) echo '{"leftOut":2}' ;;
    *exec*agent-1*recommend*--flows*)
        echo "from $(sort | tr -d '\n')"
        echo 'fill in' >&2 ;;
    *exec*agent-1*--follow*) say 1 one; stay pid-a ;;
    *exec*agent-1*) say 1 one; say 3 three ;;
    *exec*agent-2*--follow*) say 0 zero; stay pid-b ;;
    *exec*agent-2*) say 2 two ;;
    *) echo "what is $*" >&2; exit 1 ;;
    esac ;;
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

    /// Says what happens in the agents' pods, as a piece of the script.
    fn exec(&self, text: &str) {
        fs::write(self.path("exec"), text).expect("the folder can be written");
    }

    fn agents(&self, text: &str) {
        let new = self.path("agents.new");
        fs::write(&new, text).expect("the folder can be written");
        fs::rename(&new, self.path("agents")).expect("the folder can be written");
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.path("asked")).expect("it was asked")
    }
}

/// The pods of the events in a table.
fn pods(out: &str) -> Vec<&str> {
    out.lines().skip(1).map(pod).collect()
}

fn pod(line: &str) -> &str {
    line.split_whitespace().nth(4).and_then(|pod| pod.strip_prefix("shop/")).unwrap_or(line)
}

#[test]
fn the_events_of_all_nodes_come_in_one_order() {
    let script = Script::new();
    let (code, out, error) = script.run(&["observe"]);
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    assert_eq!(pods(&out), ["one", "two", "three"]);
    let (_, out, _) = script.run(&["observe", "--last", "2"]);
    assert_eq!(pods(&out), ["two", "three"], "of all nodes together");
}

#[test]
fn only_the_agents_of_the_nodes_that_matter_are_asked() {
    let script = Script::new();
    script.exec(r#"case "$*" in *agent-2*) say 2 web; say 3 other; exit ;; esac"#);
    let (code, out, _) = script.run(&[
        "observe",
        "-n",
        "shop",
        "--pod",
        "web",
        "--reason",
        "default_deny,expired",
        "--port",
        "443,81",
        "--verdict",
        "deny",
    ]);
    assert_eq!((code, pods(&out)), (0, vec!["web"]), "and no other, whatever is said");
    let asked = script.asked();
    let exec = asked.lines().find(|line| line.contains("exec")).expect("it ran something");
    for part in [
        "--namespace egress-agent agent-2 --container agent -- egress-agent observe",
        "--namespace=shop",
        "--pod=web",
        "--reason=default_deny,expired",
        "--port=443,81",
        "--verdict=deny",
        "--last 20",
    ] {
        assert!(exec.contains(part), "{part} stands in {exec}");
    }
    assert!(!exec.contains("--follow"), "{exec}");
    let (_, out, _) = script.run(&["observe", "--context", "c", "-n", "shop", "--node", "node-a"]);
    assert_eq!(pods(&out), ["one", "three"]);
    assert!(script.asked().contains("--context c exec"), "{}", script.asked());
}

#[test]
fn what_cannot_be_asked_is_said_and_changes_the_exit_code() {
    let script = Script::new();
    script.exec(r#"case "$*" in *agent-2*) printf 'error: no \033[2Jagent\n' >&2; exit 2 ;; esac"#);
    let (code, out, error) = script.run(&["observe"]);
    assert_eq!((code, pods(&out)), (2, vec!["one", "three"]), "what came is shown");
    assert!(error.contains("node-b: error: no  [2Jagent\n"), "{error:?}");
    assert!(error.contains("node-b: no more is heard"), "{error}");
    for (arguments, why) in [
        (&["observe", "-n", "secret"][..], "forbidden"),
        (&["observe", "-n", "stuck", "--timeout", "1"], "no answer in 1s"),
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

#[test]
fn a_node_that_says_no_flows_is_left_out_and_named() {
    let script = Script::new();
    for (what, says, why) in [
        ("nothing", "exec sleep 1000", "it has not said all in 2s"),
        ("garbage", r#"printf '{"leftOut":7}\nx \033[2J\n[]\n'"#, "2 lines are not what was asked for"),
        ("an error", r#"echo '{"error":"none"}'"#, "1 lines are not what was asked for"),
        ("too much", "exec tr '\\0' x < /dev/zero", "it writes more than 16777216 bytes"),
        ("endless complaints", "exec yes complaint >&2", "it writes more than 16777216 bytes"),
        ("that it failed", "echo '{\"leftOut\":7}'; exit 1", "what this node saw is missing"),
    ] {
        script.exec(&format!("case \"$*\" in *agent-2*) {says}; exit ;; esac"));
        let (code, out, error) = script.run(&["recommend", "-n", "shop", "--timeout", "2"]);
        assert_eq!((code, out.as_str()), (2, "from {\"leftOut\":1}\n"), "{what}: {error}");
        assert!(error.contains(&format!("node-b: {why}")) && !error.contains('\x1b'), "{what}: {error:?}");
        assert!(error.lines().count() < 30, "{what}: {error}");
    }
}

/// Waits until a file is there, and returns what is in it.
#[track_caller]
fn wait_for(path: &Path) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match fs::read_to_string(path) {
            Ok(text) => return text.trim().to_owned(),
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn signal(signal: &str, pid: &str) {
    let sent = Command::new("kill").args([signal, pid]).status().expect("kill starts");
    assert!(sent.success());
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
            drop(fs::remove_file(script.path(name)));
        }
        let mut child = script
            .command(&["observe", "--follow"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the plugin starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut next = || lines.next().expect("there is more").expect("it is text");
        assert!(next().starts_with("TIME"));
        assert!(pod(&next()) == "zero" && pod(&next()) == "one", "in their order");
        let pids = ["pid-a", "pid-b"].map(|name| wait_for(&script.path(name)));
        assert!(pids.iter().all(|pid| runs(pid)), "{pids:?}");
        self::signal(signal, &child.id().to_string());
        let status = child.wait().expect("it ends");
        assert_eq!(status.success(), signal != "-KILL", "{signal}: {status}");
        let deadline = Instant::now() + Duration::from_secs(10);
        while pids.iter().any(|pid| runs(pid)) {
            assert!(Instant::now() < deadline, "{signal}: one of {pids:?} still runs");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A process that runs and whose lines are read as they come.
struct Running {
    child: std::process::Child,
    out: Arc<Mutex<Vec<String>>>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended and been waited for is left alone by both.
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the plugin starts");
        let collect = |from: Box<dyn Read + Send>| {
            let lines: Arc<Mutex<Vec<String>>> = Arc::default();
            let told = Arc::clone(&lines);
            thread::spawn(move || {
                for line in BufReader::new(from).lines() {
                    told.lock().expect("no thread panics with the lock held").push(line.expect("it is text"));
                }
            });
            lines
        };
        let out = collect(Box::new(child.stdout.take().expect("it is piped")));
        let errors = collect(Box::new(child.stderr.take().expect("it is piped")));
        Self { child, out, errors }
    }

    fn lines(lines: &Mutex<Vec<String>>) -> Vec<String> {
        lines.lock().expect("no thread panics with the lock held").clone()
    }

    #[track_caller]
    fn wait(lines: &Mutex<Vec<String>>, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !Self::lines(lines).iter().any(|line| line.contains(what)) {
            assert!(Instant::now() < deadline, "no {what} in {:#?}", Self::lines(lines));
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it as a user does, and returns its exit code.
    fn end(mut self) -> Option<i32> {
        signal("-INT", &self.child.id().to_string());
        self.child.wait().expect("it ends").code()
    }
}

#[test]
fn an_agent_is_followed_to_its_successor_and_nodes_that_join_are_asked() {
    let script = Script::new();
    script.agents("agent-1   node-a   2026-11-22T03:00:00Z   <none>\n");
    // The successor tells once more what the first has told, something older than all, and something new.
    script.exec(
        r#"case "$*" in
        *agent-1*--follow*) now first > "$here/told"; cat "$here/told"; stay pid-1 ;;
        *agent-8*) echo 'error: container not found' >&2; exit 1 ;;
        *agent-9*--last\ 512*) cat "$here/told"; say 1 old; now second; stay pid-9 ;;
        *agent-2*--last\ 512*) say 1 old; now joined; stay pid-2 ;;
        esac"#,
    );
    let running = Running::start(script.command(&["observe", "--follow", "--look-every", "1"]));
    Running::wait(&running.out, "shop/first");
    let pid = wait_for(&script.path("pid-1"));
    script.agents(
        "agent-1   node-a   2026-11-22T03:00:00Z   2026-11-22T03:30:00Z\n\
         agent-8   node-a   2026-11-22T03:00:01Z   <none>\n\
         agent-2   node-b   2026-11-22T03:00:01Z   <none>\n",
    );
    Running::wait(&running.out, "shop/joined");
    signal("-KILL", &pid);
    Running::wait(&running.errors, "node-a: error: container not found");
    script.agents("agent-9   node-a   2026-11-22T03:00:02Z   <none>\nagent-2   node-b   2026-11-22T03:00:01Z   <none>\n");
    Running::wait(&running.out, "shop/second");
    let (out, errors) = (Running::lines(&running.out), Running::lines(&running.errors));
    let seen: Vec<(&str, &str)> =
        out.iter().skip(1).map(|line| (line.split_whitespace().nth(1).unwrap_or(""), pod(line))).collect();
    assert_eq!(seen, [("node-a", "first"), ("node-b", "joined"), ("node-a", "second")], "{errors:#?}");
    for (count, what) in [
        (1, "node-a: no more is heard of this node, whose agent was agent-1"),
        (1, "node-a: error: container not found"),
        (1, "node-a: heard again after"),
        (1, "node-b: heard from now on, of the agent agent-2"),
    ] {
        let found = errors.iter().filter(|line| line.starts_with(what)).count();
        assert_eq!(found, count, "{what}: {errors:#?}");
    }
    assert_eq!(running.end(), Some(0), "all are heard");
}

#[test]
fn a_node_that_is_not_heard_again_is_tried_at_a_bounded_rate_and_told_once() {
    let script = Script::new();
    script.exec(r#"case "$*" in *agent-2*) echo 'error: gone' >&2; exit 1 ;; esac"#);
    let running = Running::start(script.command(&["observe", "--follow"]));
    Running::wait(&running.errors, "node-b: no more is heard");
    thread::sleep(Duration::from_secs(6));
    let (asked, errors) = (script.asked(), Running::lines(&running.errors));
    let count = |what: &str| asked.lines().filter(|line| line.contains(what)).count();
    let (looks, tries) = (count("get pods"), count("agent-2"));
    assert!((2..=6).contains(&looks) && (2..=4).contains(&tries), "{looks} looks and {tries} tries");
    assert_eq!(errors.iter().filter(|line| line.contains("gone")).count(), 1, "{errors:#?}");
    assert_eq!(running.end(), Some(2), "a node was not heard at the end");
    // Where nobody is heard at all, there is nothing to wait for.
    script.exec("echo 'error: forbidden' >&2; exit 1");
    let (code, _, error) = script.run(&["observe", "--follow"]);
    assert!(code == 2 && error.contains("node-a: error: forbidden"), "{error}");
}

/// All agents may go at once and come again, as where somebody makes them anew.
#[test]
fn a_cluster_without_agents_is_waited_for() {
    let script = Script::new();
    script.agents("agent-1   node-a   2026-11-22T03:00:00Z   <none>\n");
    script.exec(r#"case "$*" in *agent-1*) now one; stay pid-1 ;; *agent-2*) now two; stay pid-2 ;; esac"#);
    let running = Running::start(script.command(&["observe", "--follow", "--look-every", "1"]));
    Running::wait(&running.out, "shop/one");
    let pid = wait_for(&script.path("pid-1"));
    script.agents("");
    signal("-KILL", &pid);
    Running::wait(&running.errors, "node-a: no agent was there for 4s");
    script.agents("agent-2   node-b   2026-11-22T03:00:01Z   <none>\n");
    Running::wait(&running.out, "shop/two");
    assert_eq!(running.end(), Some(0), "all are heard that are there");
}

/// Whatever comes from one node, the others are shown, the node is named, and all of it takes bounded room and time.
#[test]
fn a_node_that_says_anything_else_harms_no_other() {
    let script = Script::new();
    for (what, says, why) in [
        ("nothing", "exec sleep 1000", "it has not said all in 2s"),
        ("garbage", r"printf 'x \033[2J\n[]\n{}\n'", "it says what was not asked for"),
        ("endless garbage", "exec yes garbage", "it says more than was asked for"),
        ("an endless line", "exec tr '\\0' x < /dev/zero", "it says a line without an end"),
        ("endless events", "while say 0 more; do :; done 2> /dev/null", "it says more than was asked for"),
        ("endless complaints", "exec yes complaint >&2", "it has not said all in 2s"),
        ("another's event", "say 1 one | sed 's/shop/till/'; exit 1", "no more is heard of this node"),
    ] {
        script.exec(&format!("case \"$*\" in *agent-2*) {says}; exit ;; esac"));
        let began = Instant::now();
        let mut command = Command::new("sh");
        // Of the memory of one process: enough for what is asked, and far too little for what is said.
        command.args(["-c", "ulimit -v 2000000; exec \"$@\"", "sh"]).arg(script.path("kubectl-egress"));
        command.args(["observe", "-n", "shop", "--timeout", "2", "--kubectl"]).arg(script.path("kubectl"));
        let output = command.output().expect("the plugin starts");
        let (out, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(out.contains("shop/one") && out.contains("shop/three"), "{what}: {out}{errors}");
        assert!(!out.contains("till") && !out.contains("garbage"), "{what}: {out}");
        assert!(errors.contains(&format!("node-b: {why}")), "{what}: {errors}");
        assert!(!errors.contains('\x1b') && errors.lines().count() < 20, "{what}: {errors:?}");
        assert!(began.elapsed() < Duration::from_secs(20), "{what}: {:?}", began.elapsed());
    }
}
