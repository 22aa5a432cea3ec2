//! `egress-agent agent`: enforces policies on this node.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use ipnet::IpNet;

use crate::{
    agent::{self, Config, SourceConfig},
    heap,
    k8s::client::Access,
    kernel::loader::Capacities,
    observe::Mask,
    policy::cluster::{InvalidPolicy, NsName, Settings},
    ranges::files::provider_file,
    telemetry::log,
};

/// Where pins go unless told otherwise.
pub const PIN_DIR: &str = "/sys/fs/bpf/egress-agent";

/// Where the sockets for `egress-agent status` and `observe` go unless told otherwise.
pub const RUNTIME_DIR: &str = "/run/egress-agent";

const SOURCE: &str = "Source";
const ENFORCEMENT: &str = "Enforcement";
const KERNEL: &str = "Kernel";
const CAPACITY: &str = "Capacity";
const OUTPUT: &str = "Output and service";

/// How to run.
#[derive(Debug, Args)]
#[command(
    after_help = "EGRESS_LOG sets what is logged, such as `debug` or `egress_agent=debug,warn`; NO_COLOR is obeyed.\n\
    It runs until SIGTERM or SIGINT. What is pinned goes on enforcing until `egress-agent unload`."
)]
pub struct Arguments {
    /// Read Namespaces, Pods, Services, EndpointSlices, Nodes, ConfigMaps and NetworkPolicies from this file or directory, and
    /// follow its changes, in place of an API server
    #[arg(long, value_name = "DIR", env = "EGRESS_MANIFESTS", help_heading = SOURCE,
          conflicts_with_all = ["kubeconfig", "context", "node_name", "snapshot"])]
    manifests: Option<PathBuf>,

    /// Find the API server in this file; without it in KUBECONFIG's, the home directory's, or the pod's service account
    #[arg(long, value_name = "FILE", env = "EGRESS_KUBECONFIG", help_heading = SOURCE)]
    kubeconfig: Option<PathBuf>,

    /// Use this context of the kubeconfig instead of its current one
    #[arg(long, value_name = "NAME", env = "EGRESS_CONTEXT", help_heading = SOURCE)]
    context: Option<String>,

    /// Follow the pods of this node; without it, of the node with this machine's host name
    #[arg(long, value_name = "NAME", env = "EGRESS_NODE_NAME", help_heading = SOURCE,
          value_parser = clap::builder::NonEmptyStringValueParser::new())]
    node_name: Option<String>,

    /// Keep the last good state in this file, and begin with it where no API server answers
    #[arg(long, value_name = "FILE", env = "EGRESS_SNAPSHOT", help_heading = SOURCE)]
    snapshot: Option<PathBuf>,

    /// Follow the address ranges of clouds that the controller publishes in this namespace. Whoever may write ConfigMaps there decides
    /// what clouds' services stand for
    #[arg(long, value_name = "NAMESPACE", env = "EGRESS_RANGES_NAMESPACE", help_heading = SOURCE)]
    ranges_namespace: Option<String>,

    /// Publish what this node enforces as a ConfigMap in this namespace, for the controller and `egress-agent status --cluster`
    #[arg(long, value_name = "NAMESPACE", env = "EGRESS_SUMMARY_NAMESPACE", help_heading = OUTPUT)]
    summary_namespace: Option<String>,

    /// How many seconds there are at least between two of those; what has not changed is written every ten minutes
    #[arg(long, value_name = "SECONDS", env = "EGRESS_SUMMARY_EVERY", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=3600), help_heading = OUTPUT)]
    summary_every: u16,

    /// Read a provider's address ranges from this file, in the provider's own format, and again when it changes; `custom` for
    /// services of your own; may be repeated
    #[arg(long, value_name = "PROVIDER=FILE", env = "EGRESS_RANGES", value_delimiter = ',', value_parser = provider_file, help_heading = SOURCE)]
    ranges: Vec<(String, PathBuf)>,

    /// What a pod may do before its policies are known, unless its namespace's label egress-agent.dev/pod-start says otherwise
    #[arg(long, value_name = "MODE", env = "EGRESS_POD_START", default_value = "strict", help_heading = ENFORCEMENT)]
    pod_start: PodStart,

    /// Refuse connect() and sendmsg() to denied addresses at once; off where a service mesh rewrites addresses below these
    /// calls (packets are judged either way)
    #[arg(long, value_name = "ON|OFF", env = "EGRESS_CONNECT_HOOKS", default_value = "on", help_heading = ENFORCEMENT)]
    connect_hooks: Switch,

    /// Take every policy as if it said mode audit: what it would deny passes, and is counted and reported. What the start mode, governed
    /// namespaces and policies that never were valid deny stays denied
    #[arg(long, env = "EGRESS_AUDIT", help_heading = ENFORCEMENT)]
    audit: bool,

    /// Enforce the egress rules of NetworkPolicies too
    #[arg(long, env = "EGRESS_ENFORCE_NETWORK_POLICY", help_heading = ENFORCEMENT)]
    enforce_network_policy: bool,

    /// Namespaces whose pods are denied by default while no policy selects them
    #[arg(long, value_name = "NAMESPACE,…", env = "EGRESS_GOVERNED_NAMESPACES", value_delimiter = ',', help_heading = ENFORCEMENT)]
    governed_namespaces: Vec<String>,

    /// What a policy that never had a valid version does to its namespace
    #[arg(long, value_name = "ACTION", env = "EGRESS_INVALID_POLICY", default_value = "deny", help_heading = ENFORCEMENT)]
    invalid_policy: Invalid,

    /// Services that answer the cluster's names
    #[arg(
        long,
        value_name = "NAMESPACE/NAME,…",
        env = "EGRESS_CLUSTER_DNS",
        default_value = "kube-system/kube-dns",
        value_delimiter = ',',
        value_parser = namespaced,
        help_heading = ENFORCEMENT
    )]
    cluster_dns: Vec<NsName>,

    /// Further addresses pods ask for names, such as a node-local cache
    #[arg(long, value_name = "ADDRESS,…", env = "EGRESS_CLUSTER_DNS_ADDRESSES", value_delimiter = ',', help_heading = ENFORCEMENT)]
    cluster_dns_addresses: Vec<std::net::IpAddr>,

    /// Prefixes that belong to the cluster, so not to the entity `world`
    #[arg(long, value_name = "CIDR,…", env = "EGRESS_CLUSTER_CIDRS", value_delimiter = ',', help_heading = ENFORCEMENT)]
    cluster_cidrs: Vec<IpNet>,

    /// The UID of the pod this agent runs in; its own cgroup is never judged
    #[arg(long, value_name = "UID", env = "EGRESS_POD_UID", help_heading = ENFORCEMENT)]
    pod_uid: Option<String>,

    /// The cgroup all pods are in, when it is not where kubelet usually puts it
    #[arg(long, value_name = "PATH", env = "EGRESS_KUBEPODS_CGROUP", help_heading = KERNEL)]
    kubepods_cgroup: Option<PathBuf>,

    /// Folder on a bpffs to pin maps and links under, so that enforcement outlives the agent
    #[arg(long, value_name = "DIR", env = "EGRESS_PIN_DIR", default_value = PIN_DIR, help_heading = KERNEL)]
    pin_dir: PathBuf,

    /// Pin nothing: enforcement ends with this process
    #[arg(long, env = "EGRESS_NO_PIN", help_heading = KERNEL)]
    no_pin: bool,

    /// Mount a bpffs at the parent of the pin folder if there is none
    #[arg(long, env = "EGRESS_MOUNT_BPFFS", help_heading = KERNEL)]
    mount_bpffs: bool,

    /// Remove everything pinned when told to stop, so that nothing is enforced any more; for uninstalling
    #[arg(long, env = "EGRESS_CLEANUP_ON_EXIT", help_heading = KERNEL)]
    cleanup_on_exit: bool,

    /// Use this BPF object instead of the one inside the binary
    #[arg(long, value_name = "FILE", env = "EGRESS_BPF_OBJECT_FILE", help_heading = KERNEL)]
    bpf_object: Option<PathBuf>,

    /// Pods this node can hold
    #[arg(long, value_name = "N", env = "EGRESS_MAX_PODS", default_value_t = Capacities::default().endpoints - 1,
          value_parser = clap::value_parser!(u32).range(1..=65_535), help_heading = CAPACITY)]
    max_pods: u32,

    /// Single addresses, and again prefixes, all policies in force may name together
    #[arg(long, value_name = "N", env = "EGRESS_MAX_ADDRESSES", default_value_t = Capacities::default().prefixes,
          value_parser = clap::value_parser!(u32).range(1024..=16_777_216), help_heading = CAPACITY)]
    max_addresses: u32,

    /// Rule entries (a range of ports at some addresses) all policies in force may need together
    #[arg(long, value_name = "N", env = "EGRESS_MAX_RULES", default_value_t = Capacities::default().rules,
          value_parser = clap::value_parser!(u32).range(1024..=1_048_576), help_heading = CAPACITY)]
    max_rules: u32,

    /// Destinations all policies in force may name together; each costs 16 bytes per processor
    #[arg(long, value_name = "N", env = "EGRESS_MAX_DESTINATIONS", default_value_t = Capacities::default().rule_slots - 1,
          value_parser = clap::value_parser!(u32).range(255..=1_048_576), help_heading = CAPACITY)]
    max_destinations: u32,

    /// Print each denial and audit event to standard output
    #[arg(short, long, value_name = "FORMAT", help_heading = OUTPUT)]
    output: Option<Output>,

    /// How to write the log, to standard error
    #[arg(long, value_name = "FORMAT", env = "EGRESS_LOG_FORMAT", default_value = "text", help_heading = OUTPUT)]
    log_format: LogFormat,

    /// Serve /metrics, /healthz and /readyz here
    #[arg(long, value_name = "ADDRESS", env = "EGRESS_LISTEN", default_value = "127.0.0.1:9469", help_heading = OUTPUT)]
    listen: SocketAddr,

    /// Keep so many denied and audited events, and again allowed ones, for `egress-agent observe`
    #[arg(long, value_name = "N", env = "EGRESS_KEEP_EVENTS", default_value_t = 512,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(0..=65_536), help_heading = OUTPUT)]
    keep_events: usize,

    /// Have what is allowed told all the time, so that `egress-agent recommend` knows which allowed destinations are used
    #[arg(long, env = "EGRESS_LEARN_ALLOWED", help_heading = OUTPUT)]
    learn_allowed: bool,

    /// How much of destination addresses is told in events, on standard output, on pods and to `egress-agent observe`
    #[arg(long, value_name = "MASK", env = "EGRESS_MASK_ADDRESSES", default_value = "off",
          num_args = 0..=1, require_equals = true, default_missing_value = "prefix", help_heading = OUTPUT)]
    mask_addresses: Masked,

    /// Folder for the sockets at which `egress-agent status` and `observe` ask
    #[arg(long, value_name = "DIR", env = "EGRESS_RUNTIME_DIR", default_value = RUNTIME_DIR, help_heading = OUTPUT)]
    runtime_dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PodStart {
    /// Nothing leaves a pod whose policy is not known
    Strict,
    /// It passes, and is counted as unprotected
    Standard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Invalid {
    /// Its pods are denied by default
    Deny,
    /// Nothing
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// One JSON object a line
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Masked {
    /// All of them is told
    Off,
    /// The first 24 bits of IPv4 addresses and the first 48 of IPv6 ones
    Prefix,
    /// Nothing
    All,
}

impl From<Masked> for Mask {
    fn from(mask: Masked) -> Self {
        match mask {
            Masked::Off => Self::Off,
            Masked::Prefix => Self::Prefix,
            Masked::All => Self::All,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

impl From<Invalid> for InvalidPolicy {
    fn from(action: Invalid) -> Self {
        match action {
            Invalid::Deny => Self::Deny,
            Invalid::Ignore => Self::Ignore,
        }
    }
}

pub(super) fn namespaced(text: &str) -> Result<NsName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(NsName::new(namespace, name))
        }
        _ => Err("write it as NAMESPACE/NAME".to_owned()),
    }
}

/// Returns the host name, which is the node's name unless kubelet was told another.
fn host_name() -> anyhow::Result<String> {
    let name = rustix::system::uname().nodename().to_str().map(str::to_lowercase);
    name.ok()
        .filter(|name| !name.is_empty())
        .context("this machine has no host name that could be a node's; pass --node-name")
}

/// Runs the agent until it is told to stop.
///
/// # Errors
///
/// When it cannot start, or the kernel or the runtime fails it.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    heap::economize();
    log::init(match arguments.log_format {
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    })?;
    let object = match &arguments.bpf_object {
        None => None,
        Some(path) => {
            Some(std::fs::read(path).with_context(|| format!("reading BPF object {}", path.display()))?)
        }
    };
    let source = match &arguments.manifests {
        Some(path) => SourceConfig::Directory(path.clone()),
        None => SourceConfig::Kube {
            access: Access { kubeconfig: arguments.kubeconfig.clone(), context: arguments.context.clone() },
            node: match &arguments.node_name {
                Some(name) => name.clone(),
                None => host_name()?,
            },
            snapshot: arguments.snapshot.clone(),
        },
    };
    let config = Config {
        source,
        own_uid: arguments.pod_uid.clone().filter(|uid| !uid.is_empty()),
        cleanup_on_exit: arguments.cleanup_on_exit,
        kubepods: arguments.kubepods_cgroup.clone(),
        pins: (!arguments.no_pin).then(|| arguments.pin_dir.clone()),
        mount_bpffs: arguments.mount_bpffs,
        object,
        listen: arguments.listen,
        runtime: arguments.runtime_dir.clone(),
        strict: arguments.pod_start == PodStart::Strict,
        connect_hooks: arguments.connect_hooks == Switch::On,
        audit: arguments.audit,
        settings: Settings {
            enforce_network_policy: arguments.enforce_network_policy,
            governed_namespaces: arguments.governed_namespaces.iter().cloned().collect(),
            invalid_policy: arguments.invalid_policy.into(),
            cluster_dns: arguments.cluster_dns.clone(),
            cluster_dns_addresses: arguments.cluster_dns_addresses.clone(),
            cluster_cidrs: arguments.cluster_cidrs.clone(),
        },
        capacities: Capacities {
            endpoints: arguments.max_pods + 1,
            exact: arguments.max_addresses,
            prefixes: arguments.max_addresses,
            rules: arguments.max_rules,
            rule_slots: arguments.max_destinations + 1,
            ..Capacities::default()
        },
        ranges_namespace: arguments.ranges_namespace.clone().filter(|name| !name.is_empty()),
        ranges_files: arguments.ranges.clone(),
        summary: arguments.summary_namespace.clone().filter(|name| !name.is_empty()).map(|namespace| {
            agent::summary::Options { namespace, every: Duration::from_secs(arguments.summary_every.into()) }
        }),
        print_events: arguments.output == Some(Output::Json),
        keep_events: arguments.keep_events,
        mask: arguments.mask_addresses.into(),
        learn_allowed: arguments.learn_allowed,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(agent::run(config))?;
    Ok(ExitCode::SUCCESS)
}
