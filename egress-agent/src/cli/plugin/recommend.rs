//! `kubectl egress recommend`: what the agents of a cluster saw, put together by one of them.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    process::{ExitCode, Output},
};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Child,
    task::JoinSet,
};

use super::{cluster::Cluster, merge::plain};
use crate::cli::COULD_NOT_RUN;

/// The most that is taken from an agent, in bytes.
const MOST: u64 = 64 << 20;

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
    let agents = cluster.agents(std::slice::from_ref(&arguments.namespace), &[]).await?;
    let ask = |more: &[&str]| -> Vec<OsString> {
        let first = ["recommend", "--namespace", &arguments.namespace];
        first.iter().chain(more).map(OsString::from).collect()
    };
    let mut asked = JoinSet::new();
    for agent in &agents {
        let child = cluster.start(agent, &ask(&["--export"]))?;
        let node = agent.node.clone();
        asked.spawn(async move { (node, exchange(child, Vec::new()).await) });
    }
    let (mut seen, mut well) = (Vec::new(), true);
    while let Some(answer) = asked.join_next().await {
        let (node, output) = answer.context("waiting for an agent")?;
        let output = output?;
        complain(&node, &output.stderr);
        if output.status.success() {
            seen.extend_from_slice(&output.stdout);
        } else {
            well = false;
            eprintln!("{}: what this node saw is missing", plain(&node));
        }
    }
    if arguments.export {
        print(&seen)?;
        return Ok(code(well));
    }
    let Some(first) = agents.first() else { bail!("no agent was asked") };
    let mut last = ask(&["--flows", "-"]);
    last.extend(arguments.more.iter().cloned());
    let output = exchange(cluster.start(first, &last)?, seen).await?;
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

/// Writes to a child, closes its standard input, and returns what it writes.
async fn exchange(mut child: Child, input: Vec<u8>) -> anyhow::Result<Output> {
    let mut stdin = child.stdin.take().context("it is piped")?;
    let write = async {
        // One that ends early says why itself.
        if let Err(error) = stdin.write_all(&input).await
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            eprintln!("writing to an agent: {error}");
        }
        drop(stdin);
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let out = child.stdout.take().context("it is piped")?;
    let error = child.stderr.take().context("it is piped")?;
    let (mut out, mut error) = (out.take(MOST + 1), error.take(MOST + 1));
    let ((), read, complained) =
        tokio::join!(write, out.read_to_end(&mut stdout), error.read_to_end(&mut stderr));
    read.and(complained).context("reading from kubectl")?;
    if stdout.len().max(stderr.len()) as u64 > MOST {
        bail!("an agent writes more than {MOST} bytes, which no agent does");
    }
    let status = child.wait().await.context("waiting for kubectl")?;
    Ok(Output { status, stdout, stderr })
}

fn complain(node: &str, stderr: &[u8]) {
    for line in String::from_utf8_lossy(stderr).lines() {
        eprintln!("{}: {}", plain(node), plain(line));
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
