//! `kubectl egress top`: what the pods of a cluster send and are denied, as it happens.

use std::{collections::BTreeMap, process::ExitCode, sync::Arc, time::Instant};

use anyhow::bail;
use clap::Args;
use tokio::sync::mpsc;

use super::{
    cluster::{Cluster, Whose},
    follow::{Agents, Heard, LOOK_EVERY, Plan},
};
use crate::cli::{
    COULD_NOT_RUN,
    top::{How, Look, Update, ViewArgument, show},
};

/// How long a look of a node may be: the longest that its maps have room for is shorter.
const LONGEST: usize = 16 << 20;
/// How many of them may wait here.
const WAITING: usize = 2;

/// What to show.
#[derive(Debug, Args)]
#[command(
    after_help = "Keys: w workloads, p pods, d destinations, r reasons, s another order, up and down, q end.\n\
    The agents asked are those of the nodes that the pods of --namespace are on, or of --node, or all. A node that is not heard is named, \
    and what it counted is left out until it is heard again.\n\
    Exit codes: 0 as it should be, 2 a node could not be asked, or no terminal is there."
)]
pub struct Arguments {
    #[command(flatten)]
    cluster: Cluster,

    #[command(flatten)]
    how: How,

    /// What to begin with
    #[arg(long, value_name = "VIEW", default_value = "workloads")]
    view: ViewArgument,
}

/// Asks and shows until this is told to end.
pub async fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let (how, view) = (&arguments.how, arguments.view.view());
    let live = how.is_live()?;
    let whose = Whose { namespaces: how.namespace.iter().cloned().collect(), pods: Vec::new() };
    let found = arguments.cluster.agents(&whose).await?;
    let mut command = vec!["top".into(), "--until-eof".into(), "--output=json".into()];
    command.push(format!("--interval={}", how.interval.as_secs_f64()).into());
    command.extend(how.namespace.iter().map(|namespace| format!("--namespace={namespace}").into()));
    command.extend(how.once.then(|| "--once".into()));
    let plan = Plan {
        command: Box::new(move |_later| command.clone()),
        read: Look::read,
        whose,
        follow: (!how.once).then_some(LOOK_EVERY),
        // It looks twice, so far apart.
        pause: how.interval,
        longest: LONGEST,
        most: if how.once { 1 } else { usize::MAX },
        waiting: WAITING,
    };
    let mut nodes = Nodes {
        agents: Agents::start(Arc::new(arguments.cluster.clone()), &found, plan)?,
        looks: BTreeMap::new(),
        notices: BTreeMap::new(),
    };
    if how.once {
        while nodes.hear(true).await {}
        how.print(&nodes.look(how), view)?;
    } else if live {
        let (tell, updates) = mpsc::channel(1);
        let gather = async {
            let mut tick = tokio::time::interval(how.interval);
            loop {
                tokio::select! {
                    heard = nodes.hear(false) => if !heard { break },
                    // What is shown is never older than this, however slow the terminal is.
                    _ = tick.tick() => drop(tell.try_send(Update::Look(Box::new(nodes.look(how))))),
                }
            }
        };
        let shown = tokio::select! {
            shown = show(Look::default(), updates, view, how.sort()) => Some(shown),
            () = gather => None,
        };
        // The terminal is given back: what was told meanwhile can be read.
        for notice in nodes.notices.values() {
            eprintln!("{notice}");
        }
        match shown {
            Some(shown) => shown?,
            None => bail!("no node is heard"),
        }
    } else {
        let mut tick = tokio::time::interval(how.interval);
        // Nothing was heard yet at the first, which is now.
        tick.tick().await;
        loop {
            tokio::select! {
                heard = nodes.hear(true) => if !heard { bail!("no node is heard") },
                _ = tick.tick() => {
                    if !how.print(&nodes.look(how), view)? {
                        break;
                    }
                }
            }
        }
    }
    Ok(if nodes.agents.is_well() { ExitCode::SUCCESS } else { ExitCode::from(COULD_NOT_RUN) })
}

/// The last look of each node.
struct Nodes {
    agents: Agents<Look>,
    looks: BTreeMap<Arc<str>, (Look, Instant)>,
    /// The last notice about each node.
    notices: BTreeMap<String, String>,
}

impl Nodes {
    /// Waits for what is heard next; says whether more may come. Notices are told at once or kept.
    async fn hear(&mut self, tell: bool) -> bool {
        match self.agents.next().await {
            None => return false,
            Some(Heard::Line { node, what, .. }) => {
                self.looks.insert(node, (what, Instant::now()));
            }
            Some(Heard::Notice(notice)) if tell => eprintln!("{notice}"),
            Some(Heard::Notice(notice)) => {
                let node = notice.split(':').next().unwrap_or("").to_owned();
                self.notices.insert(node, notice);
            }
        }
        true
    }

    /// Returns what all nodes say that are heard.
    fn look(&mut self, how: &How) -> Look {
        // With --once a node says it once, and then it is what there is.
        let fresh = how.interval * 3 + LOOK_EVERY;
        self.looks.retain(|_, (_, at)| how.once || at.elapsed() < fresh);
        let mut all = Look::default();
        for (node, heard) in self.agents.nodes() {
            match self.looks.get(node) {
                Some((look, _)) if heard || how.once => all.add(node, look),
                Some(_) | None => {
                    all.silent.insert(node.to_string());
                }
            }
        }
        all
    }
}
