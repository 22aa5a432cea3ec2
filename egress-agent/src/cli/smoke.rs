//! `egress-agent smoke`: proves from inside a pod what its policies let pass and what they deny.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::ListParams};

use crate::{
    agent::status::Status,
    k8s::{
        client::{self, Access},
        convert::{MANAGED, POLICY_KEY},
        summary,
    },
    smoke::{
        Claim, Expect, Expectations, Host, Seen, Target,
        evidence::{Agent, Check, Evidence},
        probe, resolvers, usual,
    },
    telemetry::client::{self as asking, Answer},
};

/// The exit code when not everything is proven.
const NOT_PROVEN: u8 = 1;
/// How long the API server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a count may lag behind the packet.
const COUNTED: Duration = Duration::from_millis(20);

const EXPECTED: &str = "What is expected";
const EVIDENCE: &str = "Evidence";

/// What to prove.
#[derive(Debug, Args)]
#[command(
    after_help = "A destination is [tcp|udp|dns|dns+tcp://]HOST[:PORT], such as 10.1.0.7:5432, udp://[fd00::7]:514, dns://10.96.0.10 or \
    api.example.com:443; a name is asked for first, and both families of it are proven. Without --allow, --deny and --expect it proves \
    that the pod's resolvers answer over UDP and TCP, and that the metadata service and addresses for documentation are denied, in both \
    families.\n\n\
    Exit codes: 0 everything is proven, 1 something is not, 2 could not run."
)]
pub struct Arguments {
    /// A destination that can be reached; may be repeated
    #[arg(long, value_name = "DESTINATION", help_heading = EXPECTED)]
    allow: Vec<Target>,

    /// A destination that is denied; may be repeated
    #[arg(long, value_name = "DESTINATION", help_heading = EXPECTED)]
    deny: Vec<Target>,

    /// More of both, from a file: {"allow": ["DESTINATION", …], "deny": […]}
    #[arg(long, value_name = "FILE", env = "EGRESS_SMOKE_EXPECT", help_heading = EXPECTED)]
    expect: Option<PathBuf>,

    /// Prove what is proven without expectations, too
    #[arg(long, help_heading = EXPECTED)]
    usual: bool,

    /// How long one destination may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=60), help_heading = EXPECTED)]
    timeout: u16,

    /// How many destinations are proven at most; more are an error
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000), help_heading = EXPECTED)]
    at_most: u16,

    /// How to write what came of it
    #[arg(short, long, value_name = "FORMAT", default_value = "table", help_heading = EVIDENCE)]
    output: Output,

    /// Write smoke.json and smoke.md into this folder as well
    #[arg(long, value_name = "DIR", env = "EGRESS_SMOKE_EVIDENCE", help_heading = EVIDENCE)]
    evidence: Option<PathBuf>,

    /// The namespace of this pod
    #[arg(long, value_name = "NAME", env = "EGRESS_POD_NAMESPACE", help_heading = EVIDENCE)]
    pod_namespace: Option<String>,

    /// The name of this pod; without it, the host's name
    #[arg(long, value_name = "NAME", env = "EGRESS_POD_NAME", help_heading = EVIDENCE)]
    pod_name: Option<String>,

    /// The name of its node
    #[arg(long, value_name = "NAME", env = "EGRESS_NODE_NAME", help_heading = EVIDENCE)]
    node_name: Option<String>,

    /// The revision of a policy, to be written down; may be repeated
    #[arg(long, value_name = "NAMESPACE/NAME=REVISION", value_parser = revision, help_heading = EVIDENCE)]
    policy_revision: Vec<(String, String)>,

    /// Ask the API server for the policies of the namespace and their revisions, as the pod's ServiceAccount or KUBECONFIG's user
    #[arg(long, requires = "pod_namespace", help_heading = EVIDENCE)]
    ask_api: bool,

    /// Ask the agent at its socket, which tells denials that look like silence from silence
    #[arg(long, value_name = "SOCKET", env = "EGRESS_AGENT_SOCKET", help_heading = EVIDENCE)]
    agent_socket: Option<PathBuf>,

    /// Count the pod's denials in the agent's metrics, such as 10.0.0.5:9469, where its socket is out of reach
    #[arg(long, value_name = "ADDRESS", conflicts_with = "agent_socket", help_heading = EVIDENCE)]
    agent_metrics: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
    /// A page for people
    Markdown,
}

fn revision(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((policy, revision)) if policy.contains('/') && !revision.is_empty() => {
            Ok((policy.to_owned(), revision.to_owned()))
        }
        _ => Err("write it as NAMESPACE/NAME=REVISION".to_owned()),
    }
}

/// Proves what is to be proven, and writes the evidence.
///
/// # Errors
///
/// When there is nothing to prove, or the evidence cannot be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let claims = claims(arguments)?;
    let most = usize::from(arguments.at_most);
    ensure!(claims.len() <= most, "{} destinations are more than --at-most {most}", claims.len());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let pod = arguments.pod_name.clone().unwrap_or_else(|| host.clone());
    let witness = Witness {
        socket: arguments.agent_socket.clone(),
        metrics: arguments.agent_metrics,
        namespace: arguments.pod_namespace.clone(),
        pod,
    };
    let mut policies: BTreeMap<String, String> = arguments.policy_revision.iter().cloned().collect();
    if let (true, Some(namespace)) = (arguments.ask_api, &arguments.pod_namespace) {
        policies.extend(ask_api(namespace)?);
    }
    let started = jiff::Timestamp::now();
    let before = witness.look()?;
    let limit = Duration::from_secs(arguments.timeout.into());
    let mut checks = Vec::new();
    for claim in &claims {
        prove(claim, limit, &witness, &mut checks)?;
    }
    let after = witness.look()?;
    let agent = before.map(|before| {
        let denied_after = after.as_ref().and_then(|after| after.denied_before);
        Agent { denied_after, ..after.unwrap_or(before.clone()).since(before.denied_before) }
    });
    let evidence = Evidence {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: option_env!("EGRESS_REVISION").filter(|text| !text.is_empty()).map(str::to_owned),
        started: second(started),
        ended: second(jiff::Timestamp::now()),
        host,
        namespace: arguments.pod_namespace.clone(),
        pod: arguments.pod_name.clone(),
        node: arguments.node_name.clone(),
        policies,
        agent,
        checks,
    };
    if let Some(folder) = &arguments.evidence {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        for (name, text) in [("smoke.json", evidence.json()), ("smoke.md", evidence.page())] {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    let text = match arguments.output {
        Output::Table => evidence.table(),
        Output::Json => evidence.json(),
        Output::Markdown => evidence.page(),
    };
    super::write(&text).context("writing what came of it")?;
    Ok(if evidence.is_proven() { ExitCode::SUCCESS } else { ExitCode::from(NOT_PROVEN) })
}

/// Returns a time without its fraction.
fn second(time: jiff::Timestamp) -> String {
    jiff::Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

fn claims(arguments: &Arguments) -> anyhow::Result<Vec<Claim>> {
    let mut claims = Vec::new();
    let mut add = |expect, targets: &[Target]| {
        claims.extend(targets.iter().cloned().map(|target| Claim { expect, target }));
    };
    add(Expect::Allow, &arguments.allow);
    add(Expect::Deny, &arguments.deny);
    if let Some(path) = &arguments.expect {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let read: Expectations =
            serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        for (expect, list) in [(Expect::Allow, &read.allow), (Expect::Deny, &read.deny)] {
            for text in list {
                let target =
                    text.parse().map_err(|why| anyhow::anyhow!("{}, {text:?}: {why}", path.display()))?;
                add(expect, &[target]);
            }
        }
    }
    if arguments.usual || claims.is_empty() {
        let text = fs::read_to_string("/etc/resolv.conf").context("reading /etc/resolv.conf")?;
        claims.extend(usual(&resolvers(&text)));
    }
    Ok(claims)
}

/// Asks a destination, each address of it, and adds what came of it.
fn prove(claim: &Claim, limit: Duration, witness: &Witness, checks: &mut Vec<Check>) -> anyhow::Result<()> {
    let Claim { expect, target } = claim;
    let addresses = match &target.host {
        Host::Address(address) => vec![SocketAddr::new(*address, target.port)],
        Host::Name(name) => probe::resolve(name, target.port, limit),
    };
    let check = |address: Option<SocketAddr>, seen: Seen, began: Instant, denied| Check {
        expect: *expect,
        target: target.to_string(),
        address: address.map(|address| address.to_string()),
        seen,
        reason: seen.words(),
        outcome: seen.outcome(*expect, denied),
        milliseconds: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        denied,
    };
    let began = Instant::now();
    if addresses.is_empty() {
        checks.push(check(None, Seen::NotResolved, began, None));
    }
    for address in addresses {
        let before = witness.denied()?;
        let began = Instant::now();
        let seen = probe::ask(target.protocol, address, limit);
        let mut check = check(Some(address), seen, began, None);
        if let Some(before) = before {
            std::thread::sleep(COUNTED);
            check.denied = witness.denied()?.map(|after| after.saturating_sub(before));
            check.outcome = seen.outcome(*expect, check.denied);
        }
        checks.push(check);
    }
    Ok(())
}

/// Whoever counts denials besides the socket.
struct Witness {
    socket: Option<PathBuf>,
    metrics: Option<SocketAddr>,
    namespace: Option<String>,
    pod: String,
}

impl Agent {
    /// Returns it with this count of before.
    fn since(self, denied_before: Option<u64>) -> Self {
        Self { denied_before, ..self }
    }
}

impl Witness {
    /// Returns what the agent says now, and its count as that of before; nothing where there is none to ask.
    fn look(&self) -> anyhow::Result<Option<Agent>> {
        if let Some(socket) = &self.socket {
            let status = ask_socket(socket)?;
            let pod = status.pods.iter().find(|pod| {
                pod.name.as_ref() == Some(&self.pod)
                    && (self.namespace.is_none() || pod.namespace == self.namespace)
            });
            return Ok(Some(Agent {
                holds: pod.map(|pod| pod.holds.as_str().to_owned()),
                revision: pod.and_then(|pod| pod.revision),
                policies: pod.map(|pod| pod.policies.clone()).unwrap_or_default(),
                denied_before: pod.map(|pod| pod.denied_packets),
                denied_after: None,
                version: status.version,
                node: status.node,
                ready: status.ready,
            }));
        }
        let Some(address) = self.metrics else { return Ok(None) };
        let text = ask_tcp(address, "/metrics")?.body;
        Ok(Some(Agent {
            version: version(&text).with_context(|| {
                format!("{address} tells no egress_build_info and egress_pods, so it is no agent's: its counts prove nothing")
            })?,
            node: address.ip().to_string(),
            ready: ask_tcp(address, "/readyz")?.code == 200,
            denied_before: Some(denied_in(&text, self.namespace.as_deref(), &self.pod)),
            ..Agent::default()
        }))
    }

    fn denied(&self) -> anyhow::Result<Option<u64>> {
        Ok(self.look()?.and_then(|agent| agent.denied_before))
    }
}

/// Returns the version of the agent whose scrape it is. The controller and the webhook tell theirs, too, and know no pods.
fn version(text: &str) -> Option<String> {
    label(text, "egress_build_info", "version").filter(|_| label(text, "egress_pods", "state").is_some())
}

/// Returns the value of a label of the first series of a family.
fn label(text: &str, family: &str, name: &str) -> Option<String> {
    let line =
        text.lines().find(|line| line.strip_prefix(family).is_some_and(|rest| rest.starts_with('{')))?;
    let (_, rest) = line.split_once(&format!("{name}=\""))?;
    rest.split_once('"').map(|(value, _)| value.to_owned())
}

/// Returns how many packets of a pod were denied, in the text of a scrape.
fn denied_in(text: &str, namespace: Option<&str>, pod: &str) -> u64 {
    let named = |line: &str| {
        line.contains(&format!("pod=\"{pod}\""))
            && namespace.is_none_or(|namespace| line.contains(&format!("namespace=\"{namespace}\"")))
    };
    let series = text.lines().filter(|line| line.starts_with("egress_denied_packets_total{") && named(line));
    series.filter_map(|line| line.rsplit_once("} ")?.1.split(' ').next()?.parse::<u64>().ok()).sum()
}

fn ask_socket(path: &Path) -> anyhow::Result<Status> {
    let answer = asking::connect(path).and_then(|stream| asking::get(stream, "/status"));
    let Answer { code, body } = answer.with_context(|| format!("asking the agent at {}", path.display()))?;
    if code != 200 {
        bail!("the agent at {} answers {code}", path.display());
    }
    serde_json::from_str(&body)
        .context("the agent's answer cannot be read; use the version of egress-agent that runs")
}

fn ask_tcp(address: SocketAddr, page: &str) -> anyhow::Result<Answer> {
    let answer = asking::connect_to(address).and_then(|stream| asking::get(stream, page));
    answer.with_context(|| format!("asking the agent at {address}; a policy of this pod has to let it"))
}

/// Returns the revisions of a namespace's policies: of the text, and the API server's own.
fn ask_api(namespace: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(async {
        let (client, _contact) = client::connect(&Access::default()).await?;
        let api: Api<ConfigMap> = Api::namespaced(client, namespace);
        let params = ListParams::default().labels(&format!("{}={}", MANAGED.0, MANAGED.1));
        let asked = tokio::time::timeout(PATIENCE, api.list(&params)).await;
        let found = asked.context("the API server does not answer; a policy of this pod has to let it")??;
        let revisions = found.items.into_iter().map(|object| {
            let name = object.metadata.name.unwrap_or_default();
            let text = object.data.and_then(|mut data| data.remove(POLICY_KEY)).unwrap_or_default();
            let version = object.metadata.resource_version.unwrap_or_default();
            (
                format!("{namespace}/{name}"),
                format!("{} (resourceVersion {version})", summary::revision(&text)),
            )
        });
        Ok(revisions.collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRAPE: &str = "egress_denied_packets_total{namespace=\"shop\",pod=\"web\",workload=\"Pod/web\",reason=\"default_deny\"} 3\n\
        egress_denied_packets_total{namespace=\"shop\",pod=\"web\",workload=\"Pod/web\",reason=\"expired\"} 2\n\
        egress_denied_packets_total{namespace=\"other\",pod=\"web\",workload=\"Pod/web\",reason=\"expired\"} 9\n\
        egress_build_info{version=\"0.1.0\",revision=\"\"} 1\n";

    #[test]
    fn denials_of_a_pod_are_summed() {
        assert_eq!(denied_in(SCRAPE, Some("shop"), "web"), 5);
        assert_eq!(denied_in(SCRAPE, None, "web"), 14);
        assert_eq!(denied_in(SCRAPE, Some("shop"), "we"), 0);
        assert_eq!(label(SCRAPE, "egress_build_info", "version").as_deref(), Some("0.1.0"));
        assert_eq!(label(SCRAPE, "egress_build", "version"), None);
    }

    #[test]
    fn revisions_are_written_with_their_policy() {
        assert_eq!(revision("shop/web=7"), Ok(("shop/web".to_owned(), "7".to_owned())));
        assert!(
            revision("shop=7").is_err() && revision("shop/web=").is_err() && revision("shop/web").is_err()
        );
    }
}
