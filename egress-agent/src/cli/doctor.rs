//! `egress-agent doctor`: what is wrong, how it shows, and what mends it.

use std::{
    env,
    fmt::Write as _,
    io::{self, IsTerminal as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::{
    doctor::{Outcome, Report, Severity, cluster, examine, node},
    k8s::client::Access,
    policy::cluster::NsName,
};

const NODE: &str = "This node";
const CLUSTER: &str = "The cluster";

/// The exit code of a run that found something.
const FINDINGS: u8 = 1;

/// Where to look.
#[derive(Debug, Args)]
#[command(after_help = "Without --cluster it looks at this node, as root or in the agent's pod:\n\
    kubectl exec --namespace egress-agent daemonset/egress-agent -- egress-agent doctor\n\
    It changes nothing. Exit codes: 0 nothing has to be done, 1 findings, 2 could not look at everything and found nothing.")]
pub struct Arguments {
    /// Look at the cluster from outside, with a kubeconfig
    #[arg(long)]
    cluster: bool,

    /// How to write the answer
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,

    /// Folder the agent's maps and links are pinned under
    #[arg(long, value_name = "DIR", env = "EGRESS_PIN_DIR", default_value = super::agent::PIN_DIR, help_heading = NODE)]
    pin_dir: PathBuf,

    /// Folder of the agent's socket
    #[arg(long, value_name = "DIR", env = "EGRESS_RUNTIME_DIR", default_value = super::agent::RUNTIME_DIR, help_heading = NODE)]
    runtime_dir: PathBuf,

    /// Where the agent serves /metrics and /healthz
    #[arg(long, value_name = "ADDRESS", env = "EGRESS_LISTEN", default_value = "127.0.0.1:9469", help_heading = NODE)]
    listen: SocketAddr,

    /// The cgroup all pods are in, when it is not where kubelet usually puts it
    #[arg(long, value_name = "PATH", env = "EGRESS_KUBEPODS_CGROUP", help_heading = NODE)]
    kubepods_cgroup: Option<PathBuf>,

    /// The file with the agent's last good state
    #[arg(long, value_name = "FILE", env = "EGRESS_SNAPSHOT", default_value = "/var/lib/egress-agent/snapshot", help_heading = NODE)]
    snapshot: PathBuf,

    /// Try whether the kernel takes this BPF object instead of the one inside the binary
    #[arg(long, value_name = "FILE", env = "EGRESS_BPF_OBJECT_FILE", help_heading = NODE)]
    bpf_object: Option<PathBuf>,

    /// Find the API server in this file; without it in KUBECONFIG's, the home directory's, or the pod's service account
    #[arg(long, value_name = "FILE", env = "EGRESS_KUBECONFIG", help_heading = CLUSTER, requires = "cluster")]
    kubeconfig: Option<PathBuf>,

    /// Use this context of the kubeconfig instead of its current one
    #[arg(long, value_name = "NAME", env = "EGRESS_CONTEXT", help_heading = CLUSTER, requires = "cluster")]
    context: Option<String>,

    /// The namespace of the agents
    #[arg(long, value_name = "NAME", default_value = "egress-agent", help_heading = CLUSTER)]
    agent_namespace: String,

    /// The namespace of the webhook
    #[arg(long, value_name = "NAME", default_value = "egress-webhook", help_heading = CLUSTER)]
    webhook_namespace: String,

    /// The namespace of the controller
    #[arg(long, value_name = "NAME", default_value = "egress-controller", help_heading = CLUSTER)]
    controller_namespace: String,

    /// Services that answer the cluster's names, when the agents were told others than this
    #[arg(long, value_name = "NAMESPACE/NAME,…", default_value = "kube-system/kube-dns", value_delimiter = ',',
          value_parser = super::agent::namespaced, help_heading = CLUSTER)]
    cluster_dns: Vec<NsName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
    /// For both
    Yaml,
}

/// Looks, and writes what it finds.
///
/// # Errors
///
/// When it cannot begin to look.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let report = if arguments.cluster { of_cluster(arguments)? } else { of_node(arguments) };
    let text = match arguments.output {
        Output::Table => table(&report, coloured()),
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&report)?,
    };
    super::write(&text).context("writing the answer")?;
    Ok(match report.outcome() {
        Outcome::Clean => ExitCode::SUCCESS,
        Outcome::Findings => ExitCode::from(FINDINGS),
        Outcome::Incomplete => ExitCode::from(super::COULD_NOT_RUN),
    })
}

fn of_node(arguments: &Arguments) -> Report {
    let options = node::Options {
        pin_dir: arguments.pin_dir.clone(),
        runtime_dir: arguments.runtime_dir.clone(),
        listen: reachable(arguments.listen),
        kubepods: arguments.kubepods_cgroup.clone(),
        snapshot: arguments.snapshot.clone(),
        object: arguments.bpf_object.clone(),
    };
    let (facts, unchecked) = node::gather(&options);
    examine(&node::CHECKS, &facts, &unchecked)
}

/// Returns where something that listens there can be reached from this machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let address = match listen.ip() {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    SocketAddr::new(address, listen.port())
}

fn of_cluster(arguments: &Arguments) -> anyhow::Result<Report> {
    let options = cluster::Options {
        agent_namespace: arguments.agent_namespace.clone(),
        webhook_namespace: arguments.webhook_namespace.clone(),
        controller_namespace: arguments.controller_namespace.clone(),
        cluster_dns: arguments.cluster_dns.clone(),
    };
    let access = Access { kubeconfig: arguments.kubeconfig.clone(), context: arguments.context.clone() };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let (facts, unchecked) = runtime.block_on(cluster::gather(&access, &options))?;
    Ok(examine(&cluster::CHECKS, &facts, &unchecked))
}

fn coloured() -> bool {
    io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Returns the report for people.
fn table(report: &Report, coloured: bool) -> String {
    let mut text = String::new();
    let mut line = |head: &str, rest: &str| {
        writeln!(text, "{head:<10}{rest}").expect("a string takes everything");
    };
    for finding in &report.findings {
        let colour = match finding.severity {
            Severity::Note => "36",
            Severity::Warning => "33",
            Severity::Critical => "31",
        };
        let word = format!("{:<9}", finding.severity.as_str());
        let word = if coloured { format!("\x1b[{colour}m{word}\x1b[0m ") } else { format!("{word} ") };
        line(&word, &format!("{}: {}", finding.check, finding.what));
        line("", &format!("shows: {}", finding.shows));
        line("", &format!("fix:   {}", finding.fix));
    }
    for unchecked in &report.unchecked {
        line("unchecked", &format!("{}: {}", unchecked.what, unchecked.why));
    }
    let count = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    let counts = [Severity::Critical, Severity::Warning, Severity::Note]
        .map(|severity| format!("{} {}", count(severity), severity.as_str()));
    let (checks, unchecked) = (report.checks, report.unchecked.len());
    writeln!(text, "{checks} checks: {}, {unchecked} could not be looked at", counts.join(", "))
        .expect("a string takes everything");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Finding, Unchecked};

    #[test]
    fn a_report_for_people() {
        let report = Report {
            findings: vec![Finding {
                severity: Severity::Warning,
                check: "jit",
                what: "slow".to_owned(),
                shows: "slowly".to_owned(),
                fix: "sysctl".to_owned(),
            }],
            unchecked: vec![Unchecked { what: "the pins".to_owned(), why: "no permission".to_owned() }],
            checks: 16,
        };
        let wanted = "\
warning   jit: slow
          shows: slowly
          fix:   sysctl
unchecked the pins: no permission
16 checks: 0 critical, 1 warning, 0 note, 1 could not be looked at
";
        assert_eq!(table(&report, false), wanted);
        assert!(table(&report, true).starts_with("\x1b[33mwarning  \x1b[0m jit"));
    }

    #[test]
    fn what_listens_everywhere_is_asked_on_loopback() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert_eq!(reachable(at("[::]:9469")), at("[::1]:9469"));
        assert_eq!(reachable(at("0.0.0.0:9469")), at("127.0.0.1:9469"));
        assert_eq!(reachable(at("192.0.2.1:1")), at("192.0.2.1:1"));
    }
}
