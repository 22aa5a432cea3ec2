//! `egress-agent observe`: what this node's agent denies, audits and allows, as it happens.

use std::{
    env,
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
};

/// How long the agent may take to take a request, and to answer one that asks for nothing to come.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many events are shown when nothing is said about it.
const LAST: usize = 20;
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
    fn filter(&self) -> Filter {
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
enum Output {
    /// For people
    Table,
    /// One JSON object a line
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Colour {
    Auto,
    Always,
    Never,
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
    let coloured = match arguments.color {
        Colour::Auto => stdout.is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        Colour::Always => true,
        Colour::Never => false,
    };
    let mut shown = Shown {
        output: arguments.output,
        node: arguments.node.clone(),
        coloured,
        heads: !arguments.no_headers,
        widths: WIDTHS,
    };
    match shown.write(messages, &mut stdout.lock(), &mut io::stderr()) {
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
    let mut stream = match UnixStream::connect(path) {
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
    Ok(BufReader::new(stream).lines().map(move |line| {
        let line = line.with_context(|| asking.clone())?;
        serde_json::from_str(&line)
            .context("the agent's answer cannot be read; use the version of egress-agent that runs")
    }))
}

/// Ends this process when its standard input ends. A thread of its own waits for that.
fn end_with_stdin() -> anyhow::Result<()> {
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
struct Shown {
    output: Output,
    node: Option<String>,
    coloured: bool,
    heads: bool,
    widths: [usize; COLUMNS],
}

const COLUMNS: usize = 8;
const HEADS: [&str; COLUMNS] = ["TIME", "VERDICT", "REASON", "POD", "PROTOCOL", "TO", "COUNT", "POLICY"];
/// How wide the columns are at first. They grow with what is in them and never shrink.
const WIDTHS: [usize; COLUMNS] = [24, 7, 18, 24, 8, 21, 5, 0];

impl Shown {
    fn write(
        &mut self,
        messages: impl Iterator<Item = anyhow::Result<Message>>,
        out: &mut impl Write,
        notices: &mut impl Write,
    ) -> anyhow::Result<()> {
        if self.output == Output::Table && self.heads {
            let heads = HEADS.map(str::to_owned);
            let head = self.line(&heads, "NODE", None);
            out.write_all(head.as_bytes())?;
            out.flush()?;
        }
        for message in messages {
            match message? {
                Message::Event(event) => {
                    let line = match self.output {
                        Output::Json => self.json(&event)?,
                        Output::Table => self.row(&event),
                    };
                    out.write_all(line.as_bytes())?;
                    out.flush()?;
                }
                Message::Lost(count) => {
                    let place = self.node.as_ref().map_or_else(String::new, |node| format!("{node}: "));
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

    /// Returns an event as a line of JSON, with the node's name if it is to be shown.
    fn json(&self, event: &Observation) -> anyhow::Result<String> {
        let line = serde_json::to_string(event)?;
        Ok(match &self.node {
            None => line + "\n",
            Some(node) => {
                let rest = line.strip_prefix('{').context("an event is an object")?;
                format!("{{\"node\":{},{rest}\n", serde_json::to_string(node)?)
            }
        })
    }

    fn row(&mut self, event: &Observation) -> String {
        let pod = match (&event.namespace, &event.pod) {
            (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
            _ => NONE.to_owned(),
        };
        let policy = match (&event.policy, &event.destination) {
            (Some(policy), Some(destination)) => format!("{} {}", shown(policy), shown(destination)),
            _ => NONE.to_owned(),
        };
        let time = event.time.get(..23).map_or_else(|| shown(&event.time), |time| format!("{time}Z"));
        let cells = [
            time,
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
        let node = self.node.clone().unwrap_or_default();
        self.line(&cells, &node, self.coloured.then_some(colour))
    }

    fn line(&mut self, cells: &[String; COLUMNS], node: &str, colour: Option<u8>) -> String {
        let mut line = String::new();
        for (place, cell) in cells.iter().enumerate() {
            if place > 0 {
                line.push_str("  ");
            }
            let length = cell.chars().count();
            let width = &mut self.widths[place];
            *width = (*width).max(length);
            let pad = " ".repeat(*width - length);
            match (place, colour) {
                (1, Some(colour)) => line.push_str(&format!("\x1b[{colour}m{cell}\x1b[0m{pad}")),
                _ => line.push_str(&format!("{cell}{pad}")),
            }
            if place == 0 && self.node.is_some() {
                line.push_str(&format!("  {}", shown(node)));
            }
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }
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
        let mut shown =
            Shown { output, node: node.map(str::to_owned), coloured, heads: true, widths: WIDTHS };
        let (mut out, mut notices) = (Vec::new(), Vec::new());
        shown.write(messages.into_iter().map(Ok), &mut out, &mut notices).expect("it can be written");
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
        assert!(lines[0].starts_with("TIME                      NODE  VERDICT"), "{out}");
        assert!(lines[1].starts_with("2026-11-22T03:49:48.524Z  node-a  deny"), "{out}");
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
    }

    #[test]
    fn an_error_of_the_agent_is_one_here() {
        let mut shown =
            Shown { output: Output::Table, node: None, coloured: false, heads: false, widths: WIDTHS };
        let messages = [Ok(Message::Error("no place\x1b".to_owned()))];
        let error =
            shown.write(messages.into_iter(), &mut Vec::new(), &mut Vec::new()).expect_err("it is one");
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
