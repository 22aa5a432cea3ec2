//! `egress-agent controller`: does for the whole cluster what need be done once.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use jiff::SignedDuration;

use crate::{
    controller::{
        self, Config,
        lease::Timing,
        policies::{self, Writing},
        reports, startup,
    },
    heap,
    k8s::client::Access,
    overview::report::Dialect,
    policy::{
        cluster::{NsName, Settings},
        generated::Inexpressible,
    },
    ranges::{accept, fetch::Roots},
    telemetry::log,
};

const CLUSTER: &str = "Cluster";
const RANGES: &str = "Published address ranges";
const POLICIES: &str = "NetworkPolicies";
const REPORTS: &str = "Reports";
const NODES: &str = "Nodes";
const OUTPUT: &str = "Output and service";

/// How to run.
#[derive(Debug, Args)]
#[command(
    after_help = "HTTPS_PROXY and NO_PROXY are obeyed, and SSL_CERT_FILE. EGRESS_LOG sets what is logged; NO_COLOR is obeyed.\n\
    It runs until SIGTERM or SIGINT. Several may run: the one that holds the Lease works."
)]
pub struct Arguments {
    /// Find the API server in this file; without it in KUBECONFIG's, the home directory's, or the pod's service account
    #[arg(long, value_name = "FILE", env = "EGRESS_KUBECONFIG", help_heading = CLUSTER)]
    kubeconfig: Option<PathBuf>,

    /// Use this context of the kubeconfig instead of its current one
    #[arg(long, value_name = "NAME", env = "EGRESS_CONTEXT", help_heading = CLUSTER)]
    context: Option<String>,

    /// The namespace of the Lease, and of the ranges that are published
    #[arg(long, value_name = "NAME", env = "EGRESS_NAMESPACE", default_value = "egress-controller", help_heading = CLUSTER)]
    namespace: String,

    /// The Lease that the working controller holds
    #[arg(long, value_name = "NAME", env = "EGRESS_CONTROLLER_LEASE", default_value = "egress-controller", help_heading = CLUSTER)]
    lease: String,

    /// What this process is called in the Lease; without it the host's name and a random number
    #[arg(long, value_name = "NAME", env = "EGRESS_CONTROLLER_IDENTITY", help_heading = CLUSTER)]
    identity: Option<String>,

    /// What this controller is called in the annotation of what it writes; without it the namespace and name of the Lease. What another
    /// one has written is left alone
    #[arg(long, value_name = "NAME", env = "EGRESS_CONTROLLER_INSTANCE", help_heading = CLUSTER)]
    instance: Option<String>,

    /// How many seconds others wait for a controller that is not heard of; it stops after two thirds of that by itself
    #[arg(long, value_name = "SECONDS", env = "EGRESS_CONTROLLER_LEASE_TIME", default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..=3600), help_heading = CLUSTER)]
    lease_time: u16,

    /// Publish the address ranges of these providers
    #[arg(long, value_name = "PROVIDER,…", env = "EGRESS_PROVIDERS", value_delimiter = ',', default_value = "aws", help_heading = RANGES)]
    providers: Vec<String>,

    /// Read a provider's ranges from this file instead of downloading them; as often as it has documents
    #[arg(long, value_name = "PROVIDER=FILE", env = "EGRESS_RANGES", value_delimiter = ',', value_parser = pair, help_heading = RANGES)]
    ranges: Vec<(String, String)>,

    /// Download a provider's ranges from here, such as a mirror; as often as it has documents
    #[arg(long, value_name = "PROVIDER=URL", env = "EGRESS_RANGES_URLS", value_delimiter = ',', value_parser = pair, help_heading = RANGES)]
    ranges_url: Vec<(String, String)>,

    /// How often providers are asked for something new
    #[arg(long, value_name = "TIME", env = "EGRESS_RANGES_EVERY", default_value = "30m", value_parser = duration, help_heading = RANGES)]
    ranges_every: Duration,

    /// Trust the certificates in this PEM file instead of the system's
    #[arg(long, value_name = "FILE", env = "EGRESS_CA_FILE", help_heading = RANGES)]
    ca_file: Option<PathBuf>,

    /// Refuse new ranges that have lost more than this share of what was there, in percent; 100 takes whatever comes
    #[arg(long, value_name = "PERCENT", env = "EGRESS_RANGES_LOSS", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100), help_heading = RANGES)]
    ranges_loss: u8,

    /// Write the policies as standard NetworkPolicies too
    #[arg(long, value_name = "ON|OFF", env = "EGRESS_NETWORK_POLICIES", default_value = "on", help_heading = POLICIES)]
    network_policies: Switch,

    /// What to do about what a NetworkPolicy cannot say
    #[arg(long, value_name = "HOW", env = "EGRESS_INEXPRESSIBLE", default_value = "widen", help_heading = POLICIES)]
    inexpressible: How,

    /// Write the ClusterIPs in front of allowed endpoints too, for network plugins that judge addresses as the pod sends them
    #[arg(long, value_name = "ON|OFF", env = "EGRESS_CLUSTER_IPS", default_value = "on", help_heading = POLICIES)]
    cluster_ips: Switch,

    /// Services that answer the cluster's names, as agents are told
    #[arg(long, value_name = "NAMESPACE/NAME,…", env = "EGRESS_CLUSTER_DNS", default_value = "kube-system/kube-dns",
          value_delimiter = ',', value_parser = super::agent::namespaced, help_heading = POLICIES)]
    cluster_dns: Vec<NsName>,

    /// Further addresses pods ask for names, as agents are told
    #[arg(long, value_name = "ADDRESS,…", env = "EGRESS_CLUSTER_DNS_ADDRESSES", value_delimiter = ',', help_heading = POLICIES)]
    cluster_dns_addresses: Vec<IpAddr>,

    /// What a policy that never had a valid version does to its namespace, as agents are told
    #[arg(long, value_name = "ACTION", env = "EGRESS_INVALID_POLICY", default_value = "deny", help_heading = POLICIES)]
    invalid_policy: super::agent::Invalid,

    /// Prefixes that belong to the cluster, as agents are told
    #[arg(long, value_name = "CIDR,…", env = "EGRESS_CLUSTER_CIDRS", value_delimiter = ',', help_heading = POLICIES)]
    cluster_cidrs: Vec<IpNet>,

    /// The namespace in which agents tell what their nodes enforce
    #[arg(long, value_name = "NAMESPACE", env = "EGRESS_SUMMARY_NAMESPACE", default_value = crate::k8s::summary::NAMESPACE, help_heading = REPORTS)]
    summary_namespace: String,

    /// Write a Report in each namespace that has policies, for dashboards
    #[arg(long, value_name = "KIND", env = "EGRESS_REPORTS", default_value = "auto", help_heading = REPORTS)]
    reports: Reports,

    /// How many seconds there are at least between two looks at what nodes tell
    #[arg(long, value_name = "SECONDS", env = "EGRESS_REPORTS_EVERY", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=3600), help_heading = REPORTS)]
    reports_every: u16,

    /// Take the taint with this key from a node once its agent is ready, such as egress-agent.dev/not-ready; without it no node is touched
    #[arg(long, value_name = "KEY", env = "EGRESS_STARTUP_TAINT", help_heading = NODES, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    startup_taint: Option<String>,

    /// The namespace of the agents' pods
    #[arg(long, value_name = "NAMESPACE", env = "EGRESS_AGENT_NAMESPACE", default_value = "egress-agent", help_heading = NODES)]
    agent_namespace: String,

    /// Serve /metrics, /healthz and /readyz here
    #[arg(long, value_name = "ADDRESS", env = "EGRESS_CONTROLLER_LISTEN", default_value = "127.0.0.1:9471", help_heading = OUTPUT)]
    listen: SocketAddr,

    /// How to write the log, to standard error
    #[arg(long, value_name = "FORMAT", env = "EGRESS_LOG_FORMAT", default_value = "text", help_heading = OUTPUT)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    /// Do
    On,
    /// Do not
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Reports {
    /// The kind that the API server knows; the second of these if it knows both
    Auto,
    /// PolicyReport of wgpolicyk8s.io, where the API server knows it
    #[value(name = "policyreport")]
    Older,
    /// Report of openreports.io, where the API server knows it
    #[value(name = "openreports")]
    Newer,
    /// None
    Off,
}

impl From<Reports> for reports::Choice {
    fn from(reports: Reports) -> Self {
        match reports {
            Reports::Auto => Self::Auto,
            Reports::Older => Self::Only(Dialect::PolicyReport),
            Reports::Newer => Self::Only(Dialect::OpenReports),
            Reports::Off => Self::Off,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    /// Say something wider
    Widen,
    /// Leave it out
    Omit,
    /// Write nothing for such a policy
    Skip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration = text.parse().map_err(|_unlike| "write it like 15s, 30m or 2h".to_owned())?;
    match Duration::try_from(parsed) {
        Ok(time) if time >= Duration::from_secs(1) => Ok(time),
        _ => Err("it must be a second at least".to_owned()),
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((provider, what)) if !provider.is_empty() && !what.is_empty() => {
            Ok((provider.to_owned(), what.to_owned()))
        }
        _ => Err("write it as PROVIDER=WHERE, such as aws=/etc/egress/ip-ranges.json".to_owned()),
    }
}

/// Runs the controller until it is told to stop.
///
/// # Errors
///
/// When it cannot start, or a part of it fails for good.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    heap::economize();
    log::init(match arguments.log_format {
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    })?;
    let mut providers: Vec<(String, Vec<PathBuf>)> = arguments
        .providers
        .iter()
        .filter(|name| !name.is_empty())
        .map(|name| (name.clone(), Vec::new()))
        .collect();
    for (name, file) in &arguments.ranges {
        match providers.iter_mut().find(|(provider, _)| provider.eq_ignore_ascii_case(name)) {
            Some((_, files)) => files.push(file.into()),
            None => providers.push((name.clone(), vec![file.into()])),
        }
    }
    let identity = match &arguments.identity {
        Some(identity) => identity.clone(),
        None => identity()?,
    };
    let lease = format!("{}/{}", arguments.namespace, arguments.lease);
    let instance = arguments.instance.clone().filter(|name| !name.is_empty()).unwrap_or(lease);
    let lease_time = Duration::from_secs(arguments.lease_time.into());
    let config = Config {
        access: Access { kubeconfig: arguments.kubeconfig.clone(), context: arguments.context.clone() },
        namespace: arguments.namespace.clone(),
        lease: arguments.lease.clone(),
        identity,
        timing: Timing { lease: lease_time, deadline: lease_time * 2 / 3, pause: lease_time * 2 / 15 },
        telemetry: arguments.listen,
        providers,
        urls: arguments.ranges_url.clone(),
        every: arguments.ranges_every,
        roots: arguments.ca_file.clone().map_or(Roots::System, Roots::File),
        policies: policies::Options {
            network_policies: (arguments.network_policies == Switch::On).then(|| Writing {
                inexpressible: match arguments.inexpressible {
                    How::Widen => Inexpressible::Widen,
                    How::Omit => Inexpressible::Omit,
                    How::Skip => Inexpressible::Skip,
                },
                cluster_ips: arguments.cluster_ips == Switch::On,
            }),
            instance: instance.clone(),
            settings: Settings {
                cluster_dns: arguments.cluster_dns.clone(),
                cluster_dns_addresses: arguments.cluster_dns_addresses.clone(),
                cluster_cidrs: arguments.cluster_cidrs.clone(),
                invalid_policy: arguments.invalid_policy.into(),
                ..Settings::default()
            },
            ranges: arguments.namespace.clone(),
        },
        reports: reports::Options {
            summaries: arguments.summary_namespace.clone(),
            choice: arguments.reports.into(),
            instance,
            every: Duration::from_secs(arguments.reports_every.into()),
        },
        startup: arguments
            .startup_taint
            .clone()
            .map(|taint| startup::Options { taint, agents: arguments.agent_namespace.clone() }),
        limits: accept::Limits { loss: arguments.ranges_loss, ..accept::Limits::default() },
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(controller::run(config))?;
    Ok(ExitCode::SUCCESS)
}

/// Returns a name that no other process has: a restarted container has the host's name of the one before.
fn identity() -> anyhow::Result<String> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut bytes = [0; 8];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .ok()
        .context("the system has no random numbers")?;
    Ok(format!("{host}_{:016x}", u64::from_le_bytes(bytes)))
}
