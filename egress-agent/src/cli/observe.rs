//! `egress-agent observe`: what this node's agent denies, audits and allows, as it happens.

use std::{
    env,
    ffi::OsString,
    io::{self, BufRead as _, BufReader, IsTerminal as _, Read as _, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use egress_common::verdict::Verdict;

use crate::{
    observe::{self, Filter, Message, Observation, Request, reason_of},
    policy::document::is_hidden,
    telemetry::client,
};

/// How long the agent may take to take a request, and to answer one that asks for nothing to come.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many events are shown when nothing is said about it.
pub(super) const LAST: usize = 20;
/// How long a line of an answer may be, in bytes.
const LONGEST_LINE: u64 = 1 << 20;
/// How much of a name is shown in a table.
const LONGEST: usize = 80;
/// What stands for what is not there.
const NONE: &str = "<none>";

/// Which events, and how to write them.
#[derive(Debug, Args)]
#[command(
    after_help = "Options may be repeated or take several values with commas between; an event is shown if each option given fits it.\n\
    Exit codes: 0 as it should be, 2 no agent answers, or it stopped.\n\
    Over several nodes: kubectl egress observe."
)]
pub struct Arguments {
    /// Ask the agent whose socket is in this folder
    #[arg(long, value_name = "DIR", env = "EGRESS_RUNTIME_DIR", default_value = super::agent::RUNTIME_DIR)]
    runtime_dir: PathBuf,

    /// Go on with what comes, until interrupted
    #[arg(short, long)]
    follow: bool,

    /// Begin with the last N events that fit; without it 20, or with --follow none
    #[arg(long, value_name = "N")]
    last: Option<usize>,

    #[command(flatten)]
    which: Which,

    /// How to write them
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,

    /// Whether verdicts have colours in a table; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: Colour,

    /// Show this name in a column NODE
    #[arg(long, value_name = "NAME")]
    node: Option<String>,

    /// Write no heads over the columns
    #[arg(long)]
    no_headers: bool,

    /// End with standard input too: for whoever starts this elsewhere and may go away
    #[arg(long)]
    until_eof: bool,
}

/// Which events.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// Of pods in these namespaces
    #[arg(short, long, value_name = "NAMESPACE,…", value_delimiter = ',')]
    namespace: Vec<String>,

    /// Of pods with these names
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pod: Vec<String>,

    /// Decided by these policies, each as NAME or NAMESPACE/NAME
    #[arg(long, value_name = "POLICY,…", value_delimiter = ',')]
    policy: Vec<String>,

    /// With these reasons, such as default_deny
    #[arg(long, value_name = "REASON,…", value_delimiter = ',', value_parser = reason)]
    reason: Vec<String>,

    /// To these destination ports
    #[arg(long, value_name = "PORT,…", value_delimiter = ',')]
    port: Vec<u16>,

    /// With these verdicts; what is allowed is told only while somebody follows it, or learns from it
    #[arg(long, value_name = "VERDICT,…", value_delimiter = ',', default_value = "deny,audit", value_parser = ["allow", "audit", "deny"])]
    verdict: Vec<String>,
}

impl Which {
    /// Returns the options that say the same to another `egress-agent observe`.
    pub(super) fn options(&self) -> Vec<OsString> {
        let ports: Vec<String> = self.port.iter().map(u16::to_string).collect();
        let lists = [
            ("--namespace", &self.namespace),
            ("--pod", &self.pod),
            ("--policy", &self.policy),
            ("--reason", &self.reason),
            ("--port", &ports),
            ("--verdict", &self.verdict),
        ];
        let given = lists.iter().filter(|(_, words)| !words.is_empty());
        given.map(|(flag, words)| format!("{flag}={}", words.join(",")).into()).collect()
    }

    /// Returns the namespaces and the pods that are wanted, if not all.
    pub(super) fn pods(&self) -> (&[String], &[String]) {
        (&self.namespace, &self.pod)
    }

    pub(super) fn filter(&self) -> Filter {
        Filter {
            namespaces: self.namespace.iter().cloned().collect(),
            pods: self.pod.iter().cloned().collect(),
            policies: self.policy.iter().cloned().collect(),
            reasons: self.reason.iter().cloned().collect(),
            ports: self.port.iter().copied().collect(),
            verdicts: self.verdict.iter().cloned().collect(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    Table,
    /// One JSON object a line
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Colour {
    Auto,
    Always,
    Never,
}

impl Colour {
    /// Returns whether what goes to standard output is to have colours.
    pub(super) fn is_wanted(self) -> bool {
        match self {
            Self::Auto => {
                io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
            Self::Always => true,
            Self::Never => false,
        }
    }
}

fn reason(text: &str) -> Result<String, String> {
    match reason_of(text) {
        Some(_) => Ok(text.to_owned()),
        None => {
            let all: Vec<&str> =
                egress_common::verdict::COUNTED.iter().map(|(_, reason)| reason.as_str()).collect();
            let mut words: Vec<&str> = all;
            words.sort_unstable();
            words.dedup();
            Err(format!("one of {}", words.join(", ")))
        }
    }
}

/// Asks the agent and prints what it says, until it has said it or this is interrupted.
///
/// # Errors
///
/// When no agent answers, or it ends while events are followed.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let last = arguments.last.unwrap_or(if arguments.follow { 0 } else { LAST });
    let request = Request::Observe { last, follow: arguments.follow, filter: arguments.which.filter() };
    let path = observe::socket(&arguments.runtime_dir);
    let messages = ask(&path, &request, !arguments.follow)?;
    if arguments.until_eof {
        end_with_stdin()?;
    }
    let stdout = io::stdout();
    let mut shown = Shown::new(arguments.output, arguments.node.is_some(), arguments.color.is_wanted());
    shown.heads = !arguments.no_headers;
    let node = arguments.node.as_deref();
    match shown.write(messages, node, &mut stdout.lock(), &mut io::stderr()) {
        Ok(()) if arguments.follow => bail!("the agent at {} has ended", path.display()),
        Ok(()) => Ok(ExitCode::SUCCESS),
        // Whoever does not read on has had enough.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(is_broken) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
    }
}

fn is_broken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// Sends a request and returns the lines of the answer. `short` is one that comes at once.
pub(super) fn ask(
    path: &Path,
    request: &Request,
    short: bool,
) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Message>> + use<>> {
    let mut stream = match client::connect(path) {
        Ok(stream) => stream,
        Err(error) => {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => "run it as the user the agent runs as, normally root",
                _ => {
                    "start one with `egress-agent agent`, or pass the --runtime-dir it was given; in a cluster, ask with \
                     `kubectl egress observe`"
                }
            };
            bail!("no agent answers at {} ({error}); {hint}", path.display());
        }
    };
    let asking = format!("asking the agent at {}", path.display());
    let send = |stream: &mut UnixStream| -> io::Result<()> {
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(short.then_some(PATIENCE))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)
    };
    send(&mut stream).with_context(|| asking.clone())?;
    let mut reader = BufReader::new(stream);
    let mut next = move || -> anyhow::Result<Option<Message>> {
        let mut line = Vec::new();
        let read = (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut line);
        if read.with_context(|| asking.clone())? == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&line);
        message
            .map(Some)
            .context("the agent's answer cannot be read; use the version of egress-agent that runs")
    };
    // Nothing that follows what cannot be read is read.
    let mut ended = false;
    Ok(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let message = next();
        ended = !matches!(message, Ok(Some(_)));
        message.transpose()
    }))
}

/// Ends this process when its standard input ends. A thread of its own waits for that.
pub(super) fn end_with_stdin() -> anyhow::Result<()> {
    let wait = || {
        let mut buffer = [0; 256];
        let mut stdin = io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => std::process::exit(0),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => std::process::exit(0),
            }
        }
    };
    thread::Builder::new().name("stdin".to_owned()).spawn(wait).context("waiting for standard input")?;
    Ok(())
}

/// How events are shown.
#[derive(Debug)]
pub(super) struct Shown {
    output: Output,
    /// Whether the node is told.
    nodes: bool,
    coloured: bool,
    heads: bool,
    widths: [usize; COLUMNS],
}

const COLUMNS: usize = 9;
const HEADS: [&str; COLUMNS] =
    ["TIME", "NODE", "VERDICT", "REASON", "POD", "PROTOCOL", "TO", "COUNT", "POLICY"];
const NODE: usize = 1;
const VERDICT: usize = 2;
/// How wide the columns are at first. They grow with what is in them and never shrink.
const WIDTHS: [usize; COLUMNS] = [24, 10, 7, 18, 24, 8, 21, 5, 0];

impl Shown {
    pub(super) fn new(output: Output, nodes: bool, coloured: bool) -> Self {
        Self { output, nodes, coloured, heads: true, widths: WIDTHS }
    }

    fn write(
        &mut self,
        messages: impl Iterator<Item = anyhow::Result<Message>>,
        node: Option<&str>,
        out: &mut impl Write,
        notices: &mut impl Write,
    ) -> anyhow::Result<()> {
        out.write_all(self.head().as_bytes())?;
        out.flush()?;
        for message in messages {
            match message? {
                Message::Event(event) => {
                    out.write_all(self.event(&event, node)?.as_bytes())?;
                    out.flush()?;
                }
                Message::Lost(count) => {
                    let place = node.map_or_else(String::new, |node| format!("{}: ", shown(node)));
                    writeln!(
                        notices,
                        "{place}{count} events are missing here: they came faster than they were read"
                    )?;
                }
                Message::Error(why) => bail!("the agent says: {}", shown(&why)),
                // Answers to other requests.
                Message::Workload(_)
                | Message::Flow(_)
                | Message::Entry(_)
                | Message::LeftOut(_)
                | Message::Node(_)
                | Message::Pod(_) => {}
            }
        }
        Ok(())
    }

    /// Returns the line above the columns, if there is to be one.
    pub(super) fn head(&mut self) -> String {
        match self.output {
            Output::Table if self.heads => self.line(&HEADS.map(str::to_owned), None),
            Output::Table | Output::Json => String::new(),
        }
    }

    /// Returns an event as a line.
    pub(super) fn event(&mut self, event: &Observation, node: Option<&str>) -> anyhow::Result<String> {
        match self.output {
            Output::Json => json(event, node),
            Output::Table => Ok(self.row(event, node.unwrap_or(NONE))),
        }
    }

    fn row(&mut self, event: &Observation, node: &str) -> String {
        let pod = match (&event.namespace, &event.pod) {
            (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
            _ => NONE.to_owned(),
        };
        let policy = match (&event.policy, &event.destination) {
            (Some(policy), Some(destination)) => format!("{} {}", shown(policy), shown(destination)),
            _ => NONE.to_owned(),
        };
        let time = event.time.get(..23).map_or_else(|| shown(&event.time), |time| shown(&format!("{time}Z")));
        let cells = [
            time,
            shown(node),
            event.verdict.as_str().to_owned(),
            shown(&event.reason),
            shown(&pod),
            shown(&event.protocol),
            event.to.with_port(event.port),
            event.count.to_string(),
            policy,
        ];
        let colour = match event.verdict {
            Verdict::Deny => 31,
            Verdict::Audit => 33,
            Verdict::Allow => 32,
        };
        self.line(&cells, self.coloured.then_some(colour))
    }

    fn line(&mut self, cells: &[String; COLUMNS], colour: Option<u8>) -> String {
        let mut line = String::new();
        for (place, cell) in cells.iter().enumerate().filter(|(place, _)| self.nodes || *place != NODE) {
            if place > 0 {
                line.push_str("  ");
            }
            let length = cell.chars().count();
            let width = &mut self.widths[place];
            *width = (*width).max(length);
            let pad = " ".repeat(*width - length);
            match (place, colour) {
                (VERDICT, Some(colour)) => line.push_str(&format!("\x1b[{colour}m{cell}\x1b[0m{pad}")),
                _ => line.push_str(&format!("{cell}{pad}")),
            }
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }
}

/// Returns an event as a line of JSON, with the node's name if it is to be shown.
fn json(event: &Observation, node: Option<&str>) -> anyhow::Result<String> {
    let line = serde_json::to_string(event)?;
    Ok(escaped(&match node {
        None => line,
        Some(node) => {
            let rest = line.strip_prefix('{').context("an event is an object")?;
            format!("{{\"node\":{},{rest}", serde_json::to_string(node)?)
        }
    }) + "\n")
}

/// Returns a line of JSON in which what reaches into the terminal is escaped. It says the same.
pub(super) fn escaped(json: &str) -> String {
    let mut line = String::with_capacity(json.len());
    for c in json.chars() {
        if is_hidden(c) {
            // It stands in a string: between strings there is none.
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                line.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            line.push(c);
        }
    }
    line
}

/// Returns text as it may stand in a table: what reaches into the terminal is escaped, and what is long cut.
pub(super) fn shown(text: &str) -> String {
    let mut line = String::new();
    for (place, c) in text.chars().enumerate() {
        match c {
            _ if place == LONGEST => {
                line.push('…');
                break;
            }
            c if is_hidden(c) => line.extend(c.escape_unicode()),
            c => line.push(c),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::tests::denial;

    fn shown_as(
        output: Output,
        node: Option<&str>,
        coloured: bool,
        messages: Vec<Message>,
    ) -> (String, String) {
        let mut shown = Shown::new(output, node.is_some(), coloured);
        let (mut out, mut notices) = (Vec::new(), Vec::new());
        shown.write(messages.into_iter().map(Ok), node, &mut out, &mut notices).expect("it can be written");
        let text = |bytes| String::from_utf8(bytes).expect("it is text");
        (text(out), text(notices))
    }

    fn events() -> Vec<Message> {
        let late =
            Observation { count: 12, policy: None, namespace: None, pod: None, ..denial("2001:db8::1", 80) };
        vec![
            Message::Event(Box::new(denial("192.0.2.9", 443))),
            Message::Lost(3),
            Message::Event(Box::new(late)),
        ]
    }

    #[test]
    fn a_table_has_a_line_for_each_event() {
        let (out, notices) = shown_as(Output::Table, None, false, events());
        let wanted = "\
TIME                      VERDICT  REASON              POD                       PROTOCOL  TO                     COUNT  POLICY
2026-11-22T03:49:48.524Z  deny     default_deny        shop/web                  TCP       192.0.2.9:443          1      shop/policy (default)
2026-11-22T03:49:48.524Z  deny     default_deny        <none>                    TCP       [2001:db8::1]:80       12     <none>
";
        assert_eq!(out, wanted);
        assert_eq!(notices, "3 events are missing here: they came faster than they were read\n");
        let (coloured, _) = shown_as(Output::Table, None, true, events());
        assert!(coloured.contains("\x1b[31mdeny\x1b[0m     default_deny"), "{coloured}");
    }

    #[test]
    fn a_node_stands_in_its_column_and_in_the_object() {
        let (out, notices) = shown_as(Output::Table, Some("node-a"), false, events());
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines[0].starts_with("TIME                      NODE        VERDICT"), "{out}");
        assert!(lines[1].starts_with("2026-11-22T03:49:48.524Z  node-a      deny"), "{out}");
        assert!(notices.starts_with("node-a: 3 events"), "{notices}");
        let (out, _) = shown_as(Output::Json, Some("node-a"), true, events());
        for line in out.lines() {
            let value: serde_json::Value = serde_json::from_str(line).expect("each line is an object");
            assert_eq!((&value["node"], &value["verdict"]), (&"node-a".into(), &"deny".into()));
        }
        assert!(!out.contains('\x1b'), "no colour in JSON");
    }

    #[test]
    fn names_do_not_reach_into_the_terminal() {
        let evil = Observation {
            destination: Some(format!("\x1b[2J\u{202e}{}", "x".repeat(200))),
            reason: "a\nb".to_owned(),
            ..denial("192.0.2.9", 443)
        };
        let (out, _) = shown_as(Output::Table, None, false, vec![Message::Event(Box::new(evil))]);
        assert_eq!(out.lines().count(), 2, "{out}");
        assert!(!out.contains(|c: char| is_hidden(c) && c != '\n'), "{out:?}");
        assert!(out.lines().all(|line| line.chars().count() < 250), "{out}");
        let evil = Observation {
            pod: Some("\u{9b}2J\u{7f}\u{202e}\u{e0041}\u{1b}".to_owned()),
            ..denial("192.0.2.9", 443)
        };
        let (out, _) =
            shown_as(Output::Json, Some("a\u{202e}"), false, vec![Message::Event(Box::new(evil.clone()))]);
        assert!(!out.contains(|c: char| is_hidden(c) && c != '\n'), "{out:?}");
        let value: serde_json::Value = serde_json::from_str(&out).expect("it is JSON still");
        assert_eq!((&value["node"], &value["pod"]), (&"a\u{202e}".into(), &evil.pod.into()));
    }

    #[test]
    fn a_line_without_an_end_is_no_answer() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = observe::socket(folder.path());
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("the folder can be written");
        let said = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("somebody asks");
            let noise = [b'x'; 1 << 16];
            let mut sent = 0;
            // Until the other side has had enough.
            while stream.write_all(&noise).is_ok() && sent < 64 << 20 {
                sent += noise.len();
            }
            sent
        });
        let request = Request::Observe { last: 1, follow: false, filter: Filter::default() };
        let mut answer = ask(&path, &request, true).expect("it listens");
        let error = answer.next().expect("something is said").expect_err("it is no message");
        assert!(error.to_string().contains("cannot be read"), "{error:#}");
        assert!(answer.next().is_none(), "what follows is not read");
        drop(answer);
        let sent = said.join().expect("it ends");
        assert!(sent < 8 << 20, "{sent} bytes were taken");
    }

    #[test]
    fn an_error_of_the_agent_is_one_here() {
        let mut shown = Shown::new(Output::Table, false, false);
        let messages = [Ok(Message::Error("no place\x1b".to_owned()))];
        let error =
            shown.write(messages.into_iter(), None, &mut Vec::new(), &mut Vec::new()).expect_err("it is one");
        assert_eq!(error.to_string(), "the agent says: no place\\u{1b}");
    }

    #[test]
    fn an_agent_that_does_not_run_is_told_with_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = observe::socket(folder.path());
        let request = Request::Observe { last: 1, follow: false, filter: Filter::default() };
        let error = ask(&path, &request, true).err().expect("nobody listens").to_string();
        for part in [path.to_str().expect("text"), "egress-agent agent", "--runtime-dir"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_reason_nobody_gives_is_refused_with_those_there_are() {
        assert_eq!(reason("default_deny"), Ok("default_deny".to_owned()));
        assert!(reason("why").expect_err("it is none").contains("default_deny, denied_destination"));
    }
}
