//! `kubectl egress recommend`: what the agents of a cluster saw, put together by one of them.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    process::{ExitCode, Output},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::Child,
    task::JoinSet,
    time::timeout,
};

use super::{
    cluster::{Cluster, Whose},
    merge::{cut, plain},
};
use crate::{
    cli::{COULD_NOT_RUN, recommend::LONGEST_LINE},
    observe::Message,
};

/// The most that is taken from an agent, in bytes: several times what it remembers.
const MOST: u64 = 16 << 20;
/// How many lines of one agent's complaints are told.
const COMPLAINTS: usize = 20;
/// How many flows one may tell of: twice what an agent remembers.
const MOST_FLOWS: usize = 8192;

/// What to propose.
#[derive(Debug, Args)]
#[command(
    after_help = "What stands after -- goes to `egress-agent recommend`, such as -- --mode audit -o json.\n\
    Names of Services and pods that no agent follows stay addresses; to have them, write what was seen with --export and give that to \
    `egress-agent recommend --flows FILE --manifests …` with the manifests of the cluster. The proposal is made by the agent of the first \
    node: who does not trust that node does the same."
)]
pub struct Arguments {
    #[command(flatten)]
    cluster: Cluster,

    /// Propose policies for the workloads of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: String,

    /// Write what was seen and propose nothing
    #[arg(long)]
    export: bool,

    /// For egress-agent recommend
    #[arg(last = true, value_name = "OPTION")]
    more: Vec<OsString>,
}

/// Asks the agents of the namespace's nodes, and one of them what follows from all of it.
pub async fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let cluster = &arguments.cluster;
    let whose = Whose { namespaces: vec![arguments.namespace.clone()], pods: Vec::new() };
    let agents = cluster.agents(&whose).await?;
    let ask = |more: &[&str]| -> Vec<OsString> {
        let first = ["recommend", "--namespace", &arguments.namespace];
        first.iter().chain(more).map(OsString::from).collect()
    };
    let mut asked = JoinSet::new();
    for agent in &agents {
        let child = cluster.start(agent, &ask(&["--export"]))?;
        let (node, limit) = (agent.node.clone(), cluster.timeout);
        asked.spawn(async move { (node, exchange(child, Vec::new(), limit).await) });
    }
    let (mut seen, mut well) = (Vec::new(), true);
    while let Some(answer) = asked.join_next().await {
        let (node, output) = answer.context("waiting for an agent")?;
        let output = output.and_then(|output| {
            complain(&node, &output.stderr);
            if !output.status.success() {
                bail!("what this node saw is missing");
            }
            // One that says something else must not keep the others from being put together.
            let (mut flows, mut strange) = (0, 0);
            for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                match serde_json::from_slice(line) {
                    Ok(message) if is_told(&message) && (line.len() as u64) < LONGEST_LINE => {
                        flows += usize::from(matches!(message, Message::Flow(_)));
                    }
                    _ => strange += 1,
                }
            }
            match strange {
                0 if flows > MOST_FLOWS => {
                    bail!("{flows} flows are more than an agent remembers; what this node saw is missing")
                }
                0 => {
                    let mut told = output.stdout;
                    // The next agent begins on a line of its own.
                    if told.last().is_some_and(|last| *last != b'\n') {
                        told.push(b'\n');
                    }
                    Ok(told)
                }
                lines => bail!(
                    "{lines} lines are not what was asked for; is it another version? What this node saw is missing"
                ),
            }
        });
        match output {
            Ok(lines) => seen.extend_from_slice(&lines),
            Err(error) => {
                well = false;
                eprintln!("{}: {}", cut(&node), cut(&format!("{error:#}")));
            }
        }
    }
    if arguments.export {
        print(&seen)?;
        return Ok(code(well));
    }
    let Some(first) = agents.first() else { bail!("no agent was asked") };
    let mut last = ask(&["--flows", "-"]);
    last.extend(arguments.more.iter().cloned());
    let output = exchange(cluster.start(first, &last)?, seen, cluster.timeout).await?;
    print(&output.stdout)?;
    // Its remarks are about all nodes.
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        eprintln!("{}", plain(line));
    }
    Ok(code(well && output.status.success()))
}

fn code(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::from(COULD_NOT_RUN) }
}

/// Returns whether a message tells of what was seen.
fn is_told(message: &Message) -> bool {
    matches!(message, Message::Workload(_) | Message::Flow(_) | Message::Entry(_) | Message::LeftOut(_))
}

/// Writes to a child, closes its standard input, and returns what it writes. One that takes too long, or writes too much, is ended.
async fn exchange(mut child: Child, input: Vec<u8>, limit: Duration) -> anyhow::Result<Output> {
    let mut stdin = child.stdin.take().context("it is piped")?;
    let write = async {
        // One that ends early says why itself.
        if let Err(error) = stdin.write_all(&input).await
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            eprintln!("writing to an agent: {error}");
        }
        drop(stdin);
        Ok(())
    };
    let out = child.stdout.take().context("it is piped")?;
    let error = child.stderr.take().context("it is piped")?;
    let all = async {
        let ((), stdout, stderr) = tokio::try_join!(write, bounded(out), bounded(error))?;
        let status = child.wait().await.context("waiting for kubectl")?;
        Ok(Output { status, stdout, stderr })
    };
    match timeout(limit, all).await {
        Ok(output) => output,
        Err(_elapsed) => bail!("it has not said all in {}s", limit.as_secs()),
    }
}

/// Reads to the end, if that is not too far.
async fn bounded(from: impl AsyncRead + Unpin) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MOST + 1).read_to_end(&mut bytes).await.context("reading from kubectl")?;
    if bytes.len() as u64 > MOST {
        bail!("it writes more than {MOST} bytes, which no agent does");
    }
    Ok(bytes)
}

fn complain(node: &str, stderr: &[u8]) {
    for line in String::from_utf8_lossy(stderr).lines().take(COMPLAINTS) {
        eprintln!("{}: {}", cut(node), cut(line));
    }
}

fn print(bytes: &[u8]) -> io::Result<()> {
    let mut text = String::new();
    for line in String::from_utf8_lossy(bytes).lines() {
        text += &plain(line);
        text.push('\n');
    }
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
