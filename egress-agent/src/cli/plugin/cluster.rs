//! Where agents are, and how to run something in their pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::PathBuf,
    process::Stdio,
};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::process::{Child, Command};

use super::merge::plain;

/// Which cluster, and where its agents are.
#[derive(Debug, Args)]
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
    max_agents: usize,
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
        let output = self.kubectl().args(arguments).stdin(Stdio::null()).output().await.with_context(run)?;
        if !output.status.success() {
            bail!("{}: {}", run(), plain(String::from_utf8_lossy(&output.stderr).trim()));
        }
        String::from_utf8(output.stdout).with_context(run)
    }

    /// Returns the running agents to ask about these pods: those of the nodes asked for, or else of the nodes that the pods are on,
    /// or else all.
    pub async fn agents(&self, namespaces: &[String], pods: &[String]) -> anyhow::Result<Vec<Agent>> {
        let columns = "custom-columns=POD:.metadata.name,NODE:.spec.nodeName";
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
        let mut agents: Vec<Agent> = rows(&found).map(|(pod, node)| Agent { pod, node }).collect();
        if agents.is_empty() {
            bail!(
                "no agent runs in namespace {} with the labels {}; say where with --agent-namespace and --agent-selector",
                self.agent_namespace,
                self.agent_selector
            );
        }
        let mut wanted: Option<BTreeSet<String>> = None;
        if !self.node.is_empty() {
            wanted = Some(self.node.iter().cloned().collect());
        } else if !namespaces.is_empty() {
            let mut nodes = BTreeSet::new();
            for namespace in namespaces {
                let of = self
                    .ask(&["get", "pods", "--namespace", namespace, "--no-headers", "--output", columns])
                    .await
                    .context("without --node, the pods of the namespaces are looked up")?;
                let on: BTreeMap<String, String> = rows(&of).collect();
                let fits = |pod: &&String| pods.is_empty() || pods.contains(pod);
                nodes.extend(on.iter().filter(|(pod, _)| fits(pod)).map(|(_, node)| node.clone()));
            }
            wanted = Some(nodes);
        }
        if let Some(wanted) = wanted {
            agents.retain(|agent| wanted.contains(&agent.node));
            if agents.is_empty() {
                bail!("none of these is on a node whose agent runs; name nodes with --node");
            }
        }
        if agents.len() > self.max_agents {
            bail!(
                "{} agents would be asked, more than --max-agents {}; narrow it with --node, or with --namespace and --pod",
                agents.len(),
                self.max_agents
            );
        }
        agents.sort_by(|one, other| one.node.cmp(&other.node));
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

/// Returns the rows of two columns. What has no node yet is left out.
fn rows(text: &str) -> impl Iterator<Item = (String, String)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let row = (words.next()?.to_owned(), words.next()?.to_owned());
        (row.1 != "<none>").then_some(row)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_without_a_node_have_no_agent() {
        let text = "web-1   node-a\nweb-2   <none>\n\nweb-3   node-b\n";
        let of = |pod: &str, node: &str| (pod.to_owned(), node.to_owned());
        assert_eq!(rows(text).collect::<Vec<_>>(), [of("web-1", "node-a"), of("web-3", "node-b")]);
    }
}
