//! Where agents are, and how to run something in their pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use super::merge::plain;

/// Which cluster, and where its agents are.
#[derive(Clone, Debug, Args)]
pub struct Cluster {
    /// The kubectl to run
    #[arg(long, value_name = "FILE", env = "KUBECTL", default_value = "kubectl")]
    kubectl: PathBuf,

    /// Passed to kubectl
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Passed to kubectl
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

    /// The namespace of the agents
    #[arg(long, value_name = "NAMESPACE", env = "EGRESS_AGENT_NAMESPACE", default_value = "egress-agent")]
    agent_namespace: String,

    /// The labels of their pods
    #[arg(
        long,
        value_name = "SELECTOR",
        default_value = "app.kubernetes.io/name=egress-agent,app.kubernetes.io/component=agent"
    )]
    agent_selector: String,

    /// Ask the agents of these nodes only
    #[arg(long, value_name = "NODE,…", value_delimiter = ',')]
    node: Vec<String>,

    /// Ask no more agents than this at once: a kubectl runs for each
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub max_agents: usize,

    /// How long kubectl may take for an answer that comes at once
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
}

/// Reads a number of seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds)),
        _ => Err("a number of seconds between 1 and 3600".to_owned()),
    }
}

/// Whose agents are asked: those of the nodes that these pods are on, or all where nothing is said.
#[derive(Clone, Debug, Default)]
pub struct Whose {
    /// The namespaces of the pods.
    pub namespaces: Vec<String>,
    /// The names of the pods; none: all of the namespaces.
    pub pods: Vec<String>,
}

/// An agent: its pod, and its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    pub pod: String,
    pub node: String,
}

impl Cluster {
    fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        if let Some(file) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(file);
        }
        if let Some(context) = &self.context {
            command.arg("--context").arg(context);
        }
        command
    }

    /// Runs kubectl and returns what it prints.
    async fn ask(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let run = || format!("running {} {}", self.kubectl.display(), arguments.join(" "));
        let output = self.kubectl().args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
        let output = timeout(self.timeout, output).await;
        let Ok(output) = output else { bail!("{}: no answer in {}s", run(), self.timeout.as_secs()) };
        let output = output.with_context(run)?;
        if !output.status.success() {
            bail!("{}: {}", run(), plain(String::from_utf8_lossy(&output.stderr).trim()));
        }
        String::from_utf8(output.stdout).with_context(run)
    }

    /// Returns the running agents to ask, as [`Self::find`] does.
    ///
    /// # Errors
    ///
    /// When kubectl fails, and when there is none or more than may be asked.
    pub async fn agents(&self, whose: &Whose) -> anyhow::Result<Vec<Agent>> {
        let agents = self.find(whose).await?;
        if agents.is_empty() {
            let narrowed = !self.node.is_empty() || !whose.namespaces.is_empty();
            bail!(
                "no agent runs in namespace {} with the labels {}{}; say where with --agent-namespace and --agent-selector",
                self.agent_namespace,
                self.agent_selector,
                if narrowed { " on any of these nodes, which --node names" } else { "" }
            );
        }
        if agents.len() > self.max_agents {
            bail!(
                "{} agents would be asked, more than --max-agents {}; narrow it with --node, or with --namespace and --pod",
                agents.len(),
                self.max_agents
            );
        }
        Ok(agents)
    }

    /// Returns the running agents, one of each node: those of the nodes asked for, or else of the nodes that the pods are on, or else all.
    ///
    /// # Errors
    ///
    /// When kubectl fails.
    pub async fn find(&self, whose: &Whose) -> anyhow::Result<Vec<Agent>> {
        let columns = "custom-columns=POD:.metadata.name,NODE:.spec.nodeName,\
             CREATED:.metadata.creationTimestamp,ENDS:.metadata.deletionTimestamp";
        let found = self
            .ask(&[
                "get",
                "pods",
                "--namespace",
                &self.agent_namespace,
                "--selector",
                &self.agent_selector,
                "--field-selector",
                "status.phase=Running",
                "--no-headers",
                "--output",
                columns,
            ])
            .await?;
        let mut agents = one_of_each_node(&found);
        let mut wanted: Option<BTreeSet<String>> = None;
        if !self.node.is_empty() {
            wanted = Some(self.node.iter().cloned().collect());
        } else if !whose.namespaces.is_empty() {
            let mut nodes = BTreeSet::new();
            for namespace in &whose.namespaces {
                let of = self
                    .ask(&["get", "pods", "--namespace", namespace, "--no-headers", "--output", columns])
                    .await
                    .context("without --node, the pods of the namespaces are looked up")?;
                let fits = |pod: &str| whose.pods.is_empty() || whose.pods.iter().any(|wanted| wanted == pod);
                nodes.extend(rows(&of).filter(|row| fits(row.pod)).map(|row| row.node.to_owned()));
            }
            wanted = Some(nodes);
        }
        if let Some(wanted) = wanted {
            agents.retain(|agent| wanted.contains(&agent.node));
        }
        Ok(agents)
    }

    /// Starts `egress-agent` with these arguments in an agent's pod. It ends with its standard input, and that with this process.
    pub fn start(&self, agent: &Agent, arguments: &[OsString]) -> anyhow::Result<Child> {
        self.kubectl()
            .args(["exec", "--stdin", "--quiet", "--namespace", &self.agent_namespace, &agent.pod])
            .args(["--container", "agent", "--", "egress-agent"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.kubectl.display()))
    }
}

/// A pod that has a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row<'a> {
    pod: &'a str,
    node: &'a str,
    created: &'a str,
    /// Whether it is to end.
    ends: bool,
}

/// Returns the rows of a list of pods. What has no node yet is left out.
fn rows(text: &str) -> impl Iterator<Item = Row<'_>> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (pod, node) = (words.next()?, words.next()?);
        let (created, ends) = (words.next().unwrap_or(""), words.next().is_some_and(|ends| ends != NONE));
        (node != NONE).then_some(Row { pod, node, created, ends })
    })
}

/// Returns the agents of a list of pods by node. Of several on a node it is the one that does not end, or else the newest.
fn one_of_each_node(text: &str) -> Vec<Agent> {
    let mut nodes: BTreeMap<&str, Row<'_>> = BTreeMap::new();
    for row in rows(text) {
        let known = nodes.entry(row.node).or_insert(row);
        if (!row.ends, row.created) > (!known.ends, known.created) {
            *known = row;
        }
    }
    nodes.into_values().map(|row| Agent { pod: row.pod.to_owned(), node: row.node.to_owned() }).collect()
}

/// What kubectl writes for what is not there.
const NONE: &str = "<none>";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_one_agent_that_does_not_end() {
        let text = "web-1   node-b   2026-11-22T03:00:00Z   <none>\n\
             web-2   <none>   2026-11-22T03:00:00Z   <none>\n\n\
             web-3   node-a   2026-11-22T03:00:01Z   2026-11-22T04:00:00Z\n\
             web-4   node-a   2026-11-22T03:00:00Z   <none>\n\
             web-5   node-c   2026-11-22T03:00:00Z   <none>\n\
             web-6   node-c   2026-11-22T03:00:01Z   <none>\n\
             web-7   node-d   2026-11-22T03:00:01Z   2026-11-22T04:00:00Z\n";
        let agents: Vec<(String, String)> =
            one_of_each_node(text).into_iter().map(|agent| (agent.node, agent.pod)).collect();
        let wanted = [("node-a", "web-4"), ("node-b", "web-1"), ("node-c", "web-6"), ("node-d", "web-7")];
        assert_eq!(agents, wanted.map(|(node, pod)| (node.to_owned(), pod.to_owned())));
    }
}
