//! `kubectl egress observe`: what the agents of a cluster tell, in one order.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Write as _},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    cluster::{Cluster, Whose},
    follow::{Agents, Heard, Plan},
    merge::{Merge, WAIT},
};
use crate::{
    cli::{
        COULD_NOT_RUN,
        observe::{Colour, LAST, Output, Shown, Which},
    },
    observe::Observation,
};

/// How many lines may wait here.
const WAITING: usize = 256;
/// How long a line may be: nothing that an agent writes is as long.
const LONGEST: usize = 64 * 1024;
/// How much a node's clock may be behind ours before something new is taken for old.
const SKEW: Duration = Duration::from_secs(60);
/// How many events an agent is asked for that was not heard for a while: as many as it keeps unless told otherwise.
const KEPT: usize = 512;

/// Which events, and how to write them.
#[derive(Debug, Args)]
#[command(
    after_help = "The agents asked are those of the nodes that the pods of --namespace (and --pod) are on, or of --node, or all.\n\
    With --follow, an agent that ends is followed to its successor, and nodes that join are asked, too; until then a node that is not \
    heard is named on standard error.\n\
    Exit codes: 0 as it should be, 2 a node could not be asked, or was not heard at the end."
)]
pub struct Arguments {
    #[command(flatten)]
    cluster: Cluster,

    /// Go on with what comes, until interrupted
    #[arg(short, long)]
    follow: bool,

    /// With --follow, look for agents of nodes that join so often
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = clap::value_parser!(u64).range(1..=3600))]
    look_every: u64,

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
}

/// Asks and prints until all have answered, or this is told to end.
pub async fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("watching for SIGHUP")?;
    let began = Timestamp::now().checked_sub(SKEW).context("the clock of this machine is wrong")?;
    let began = began.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let (namespaces, pods) = arguments.which.pods();
    let whose = Whose { namespaces: namespaces.to_vec(), pods: pods.to_vec() };
    let found = arguments.cluster.agents(&whose).await?;
    let (follow, last) =
        (arguments.follow, arguments.last.unwrap_or(if arguments.follow { 0 } else { LAST }));
    let options = arguments.which.options();
    let plan = Plan {
        command: Box::new(move |later| {
            let last = if later { KEPT } else { last }.to_string();
            let mut all = vec!["observe".into(), "--until-eof".into(), "--output=json".into()];
            all.extend(follow.then(|| "--follow".into()));
            all.extend(["--last".into(), last.into()]);
            all.extend(options.iter().cloned());
            all
        }),
        read: |line| serde_json::from_str::<Observation>(line).ok(),
        whose,
        follow: follow.then(|| Duration::from_secs(arguments.look_every)),
        pause: Duration::ZERO,
        longest: LONGEST,
        most: if follow { usize::MAX } else { last },
        waiting: WAITING,
    };
    let mut agents = Agents::start(Arc::new(arguments.cluster.clone()), &found, plan)?;
    let mut shown = Shown::new(arguments.output, true, arguments.color.is_wanted());
    print(&shown.head())?;
    let (filter, mut told) = (arguments.which.filter(), Told { began, nodes: BTreeMap::new() });
    let mut merge = Merge::default();
    let mut tick = tokio::time::interval(WAIT / 2);
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = hangup.recv() => break,
            _ = tick.tick(), if follow => {
                if !print(&merge.ready(Instant::now()).concat())? {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            heard = agents.next() => match heard {
                None => break,
                Some(Heard::Notice(notice)) => eprintln!("{notice}"),
                Some(Heard::Line { node, what: event, later }) => {
                    if !filter.admits(&event) || follow && !told.is_new(&node, &event, later) {
                        continue;
                    }
                    let line = shown.event(&event, Some(&node))?;
                    merge.push(sortable(event.time), line, Instant::now());
                    if !follow {
                        merge.keep_newest(last);
                    } else if merge.is_full() && !print(&merge.ready(Instant::now()).concat())? {
                        return Ok(ExitCode::SUCCESS);
                    }
                }
            },
        }
    }
    print(&merge.all(if follow { usize::MAX } else { last }).concat())?;
    Ok(if agents.is_well() { ExitCode::SUCCESS } else { ExitCode::from(COULD_NOT_RUN) })
}

/// What was told of each node, so that an agent that is asked again says nothing twice.
struct Told {
    /// A little before this began. What is older is not asked for.
    began: String,
    nodes: BTreeMap<Arc<str>, VecDeque<u64>>,
}

impl Told {
    /// How many events of a node are known again: more than its agent is asked for.
    const KNOWN: usize = 2 * KEPT;

    /// Returns whether an event was not told yet. `later` ones are of an agent that was asked for what it had.
    fn is_new(&mut self, node: &Arc<str>, event: &Observation, later: bool) -> bool {
        let mut hasher = DefaultHasher::new();
        (&event.time, &event.pod, &event.policy, &event.destination).hash(&mut hasher);
        (&event.source, event.source_port, event.to, event.port, event.count, event.bytes).hash(&mut hasher);
        (&event.namespace, event.verdict.as_str(), &event.reason, &event.hook, &event.protocol)
            .hash(&mut hasher);
        let (hash, known) = (hasher.finish(), self.nodes.entry(Arc::clone(node)).or_default());
        if later && (event.time < self.began || known.contains(&hash)) {
            return false;
        }
        if known.len() == Self::KNOWN {
            known.pop_front();
        }
        known.push_back(hash);
        true
    }
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

/// Returns the time of an event, or now if it is no time, or far ahead: a node whose clock is wrong must not decide how those of others
/// are ordered.
fn sortable(time: String) -> String {
    const AHEAD: SignedDuration = SignedDuration::from_mins(1);
    let now = Timestamp::now();
    match time.parse::<Timestamp>() {
        Ok(told) if told <= now + AHEAD => time,
        _ => now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::tests::denial;

    #[test]
    fn an_agent_that_is_asked_again_says_nothing_twice() {
        let mut told = Told { began: "2026-11-22T03:49:48.000000Z".to_owned(), nodes: BTreeMap::new() };
        let (here, there): (Arc<str>, Arc<str>) = ("node-a".into(), "node-b".into());
        let event = denial("192.0.2.9", 443);
        let old = Observation { time: "2026-11-22T03:49:47.999999Z".to_owned(), ..event.clone() };
        assert!(told.is_new(&here, &event, false) && told.is_new(&here, &old, false));
        assert!(told.is_new(&here, &event, false), "an agent may say the same twice");
        assert!(!told.is_new(&here, &event, true) && !told.is_new(&there, &old, true));
        assert!(told.is_new(&there, &event, true));
        for (number, count) in (2_u16..).zip(2..Told::KNOWN as u64 + 3) {
            assert!(told.is_new(&here, &Observation { port: number, count, ..event.clone() }, true));
        }
        assert!(told.nodes.values().all(|known| known.len() <= Told::KNOWN));
    }

    #[test]
    fn a_clock_that_is_ahead_orders_nothing() {
        let good = "2026-11-22T03:52:45.225485Z";
        assert_eq!(sortable(good.to_owned()), good);
        for bad in ["9999-01-01T00:00:00.000000Z", "zzzz", ""] {
            let taken = sortable(bad.to_owned());
            assert!(taken.parse::<Timestamp>().expect("a time") <= Timestamp::now(), "{bad}: {taken}");
        }
    }
}
