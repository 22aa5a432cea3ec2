//! `kubectl egress observe`: what the agents of a cluster tell, in one order.

use std::{
    env,
    ffi::OsString,
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    time::Instant,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio::{
    io::{AsyncRead, BufReader},
    process::Child,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{
    cluster::{Agent, Cluster},
    merge::{Merge, WAIT, coloured, next_line, plain},
};
use crate::cli::COULD_NOT_RUN;

/// How many events are shown when nothing is said about it.
const LAST: usize = 20;
/// How many lines of one agent may wait here.
const WAITING: usize = 256;

/// Which events, and how to write them.
#[derive(Debug, Args)]
#[command(
    after_help = "The agents asked are those of the nodes that the pods of --namespace (and --pod) are on when it starts, or of --node, or all."
)]
pub struct Arguments {
    #[command(flatten)]
    cluster: Cluster,

    /// Go on with what comes, until interrupted
    #[arg(short, long)]
    follow: bool,

    /// Begin with the last N events that fit; without it 20, or with --follow none
    #[arg(long, value_name = "N")]
    last: Option<usize>,

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
    #[arg(long, value_name = "REASON,…", value_delimiter = ',')]
    reason: Vec<String>,

    /// To these destination ports
    #[arg(long, value_name = "PORT,…", value_delimiter = ',')]
    port: Vec<u16>,

    /// With these verdicts; what is allowed is told only while somebody follows it
    #[arg(long, value_name = "VERDICT,…", value_delimiter = ',', value_parser = ["allow", "audit", "deny"])]
    verdict: Vec<String>,

    /// How to write them
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// One JSON object a line
    Json,
}

impl Arguments {
    fn last(&self) -> usize {
        self.last.unwrap_or(if self.follow { 0 } else { LAST })
    }

    /// Returns what `egress-agent` is to do in the pod of an agent.
    fn of(&self, agent: &Agent, coloured: bool) -> Vec<OsString> {
        let mut all: Vec<OsString> =
            ["observe", "--until-eof", "--no-headers", "--node"].map(OsString::from).into();
        all.push((&agent.node).into());
        if self.follow {
            all.push("--follow".into());
        }
        all.push("--last".into());
        all.push(self.last().to_string().into());
        let ports: Vec<String> = self.port.iter().map(u16::to_string).collect();
        let lists = [
            ("--namespace", &self.namespace),
            ("--pod", &self.pod),
            ("--policy", &self.policy),
            ("--reason", &self.reason),
            ("--port", &ports),
            ("--verdict", &self.verdict),
        ];
        for (flag, words) in lists {
            if !words.is_empty() {
                all.push(format!("{flag}={}", words.join(",")).into());
            }
        }
        all.push(if self.output == Output::Json { "--output=json" } else { "--output=table" }.into());
        all.push(if coloured { "--color=always" } else { "--color=never" }.into());
        all
    }
}

/// What an agent's kubectl has to say.
enum Said {
    Line(String),
    /// It has ended: on which node, and whether well.
    Ended(String, bool),
}

/// Asks and prints until all have answered, or this is told to end.
pub async fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let cluster = &arguments.cluster;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("watching for SIGHUP")?;
    let agents = cluster.agents(&arguments.namespace, &arguments.pod).await?;
    let coloured = io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (say, mut said) = mpsc::channel(WAITING);
    // Each is ended with its task, and those with the runtime.
    for agent in &agents {
        let child =
            cluster.start(agent, &arguments.of(agent, coloured && arguments.output == Output::Table))?;
        tokio::spawn(listen(child, agent.node.clone(), say.clone()));
    }
    drop(say);
    if arguments.output == Output::Table {
        print(
            "TIME                      NODE  VERDICT  REASON              POD                       PROTOCOL  TO                     COUNT  POLICY\n",
        )?;
    }
    let mut merge = Merge::default();
    let mut well = true;
    let mut tick = tokio::time::interval(WAIT / 2);
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = hangup.recv() => break,
            _ = tick.tick(), if arguments.follow => {
                let lines = merge.ready(Instant::now()).concat();
                if !print(&lines)? {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            next = said.recv() => match next {
                Some(Said::Line(line)) => merge.push(line, Instant::now()),
                Some(Said::Ended(node, ended_well)) => {
                    if arguments.follow || !ended_well {
                        well = false;
                        eprintln!("{}: no more is heard of this node", plain(&node));
                    }
                }
                None => break,
            },
        }
    }
    let last = if arguments.follow { usize::MAX } else { arguments.last() };
    print(&merge.all(last).concat())?;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(COULD_NOT_RUN) })
}

/// Writes to standard output. Returns whether somebody reads on.
fn print(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Passes on what a kubectl writes, until it ends.
async fn listen(mut child: Child, node: String, say: mpsc::Sender<Said>) {
    // Held open until the end: it ends the other side.
    let stdin = child.stdin.take();
    let stdout = child.stdout.take().expect("it is piped");
    let stderr = child.stderr.take().expect("it is piped");
    let complaints = async {
        let mut stderr = BufReader::new(stderr);
        while let Ok(Some(line)) = next_line(&mut stderr).await {
            eprintln!("{}: {}", plain(&node), plain(&line));
        }
    };
    let ((), ()) = tokio::join!(pass(stdout, &say), complaints);
    drop(stdin);
    let well = child.wait().await.is_ok_and(|status| status.success());
    // Nobody listens any more at the end.
    drop(say.send(Said::Ended(node, well)).await);
}

async fn pass(stdout: impl AsyncRead + Unpin, say: &mpsc::Sender<Said>) {
    let mut stdout = BufReader::new(stdout);
    while let Ok(Some(line)) = next_line(&mut stdout).await {
        if say.send(Said::Line(coloured(&line) + "\n")).await.is_err() {
            return;
        }
    }
}
