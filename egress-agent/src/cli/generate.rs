//! `egress-agent generate`: the policies in the words of other tools.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::{ArgAction, Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use serde::Serialize;

use crate::{
    explain::namespaced,
    k8s::{generated, manifests},
    kernel::clock,
    policy::{
        cluster::{InvalidPolicy, NsName, Settings},
        generated::{Generator, Inexpressible, Options},
        index::{Change, Index},
        model::{Policy, PolicyId},
    },
    proxies,
    ranges::files::{Files, provider_file},
};

/// The exit code when a policy is invalid, so that another stands in for it.
const INVALID: u8 = 1;

/// What to generate.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// NetworkPolicies that allow what the policies allow, as far as they can say it
    #[command(name = "networkpolicy", visible_alias = "netpol")]
    NetworkPolicy(Objects),
    /// Istio ServiceEntries for destinations known by domain, with advice on what makes them forbid the rest
    #[command(name = "serviceentry")]
    ServiceEntry(Domains),
    /// The configuration of an Envoy that passes on what goes to the domains of the policies, by server name and Host
    Envoy(Domains),
}

/// Which domains to generate for.
#[derive(Debug, Args)]
#[command(
    after_help = "A mesh and a proxy know no pod selectors, prefixes or denials: the domains of all policies are allowed together. What else they do not say is told on standard error.\n\n\
    Exit codes: 0 generated, 1 a policy is invalid and its domains are missing, 2 could not run.\n\n\
    Examples:\n  \
    egress-agent generate serviceentry --manifests policies/ -n shop | kubectl apply --server-side -f -\n  \
    egress-agent generate envoy --manifests policies/ > envoy.yaml && envoy --mode validate -c envoy.yaml"
)]
struct Domains {
    #[command(flatten)]
    source: Source,

    /// Of this policy only
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,

    /// How to write them
    #[arg(short, long, value_name = "FORMAT", default_value = "yaml")]
    output: Output,
}

/// Where policies and cluster come from.
#[derive(Debug, Args)]
pub(super) struct Source {
    /// Read Namespaces, Pods, Services, EndpointSlices, Nodes, ConfigMaps and NetworkPolicies from these files and directories
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    manifests: Vec<PathBuf>,

    /// Read a provider's address ranges from this file, in the provider's own format; `custom` for services of your own; may be given
    /// several times
    #[arg(long, value_name = "PROVIDER=FILE", value_parser = provider_file)]
    ranges: Vec<(String, PathBuf)>,

    /// What is in force at this time (RFC 3339) instead of now
    #[arg(long, value_name = "TIME", value_parser = super::second)]
    at: Option<u64>,

    /// Of this namespace only
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,

    /// NetworkPolicies among the manifests are enforced by the agent too
    #[arg(long, help_heading = "Cluster")]
    enforce_network_policy: bool,

    /// Namespaces whose pods are denied by default while no policy selects them
    #[arg(long, value_name = "NAMESPACE,…", value_delimiter = ',', help_heading = "Cluster")]
    governed_namespaces: Vec<String>,

    /// What a policy that never had a valid version does to its namespace
    #[arg(long, value_name = "ACTION", default_value = "deny", help_heading = "Cluster")]
    invalid_policy: Invalid,

    /// Services that answer the cluster's names
    #[arg(
        long,
        value_name = "NAMESPACE/NAME,…",
        default_value = "kube-system/kube-dns",
        value_delimiter = ',',
        value_parser = |text: &str| namespaced(text).map_err(|error| error.to_string()),
        help_heading = "Cluster"
    )]
    cluster_dns: Vec<NsName>,

    /// Further addresses pods ask for names, such as a node-local cache
    #[arg(long, value_name = "ADDRESS,…", value_delimiter = ',', help_heading = "Cluster")]
    cluster_dns_addresses: Vec<IpAddr>,

    /// Prefixes that belong to the cluster, so not to the entity `world`
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',', help_heading = "Cluster")]
    cluster_cidrs: Vec<IpNet>,
}

/// How NetworkPolicies are generated.
#[derive(Debug, Args)]
pub(super) struct Manner {
    /// What to do about what a NetworkPolicy cannot say
    #[arg(long, value_name = "WAY", default_value = "widen")]
    inexpressible: Way,

    /// Allow the ClusterIPs in front of allowed endpoints too, as VPC CNI needs
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    cluster_ips: bool,

    /// Write what a prefix leaves out as `except`; otherwise list what remains of it
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    except: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Invalid {
    /// Its pods are denied by default
    Deny,
    /// Nothing
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Allow more, so that nothing is blocked that the policies allow
    Widen,
    /// Leave it out
    Omit,
    /// Generate nothing for such a policy
    Skip,
}

/// Which NetworkPolicies to generate.
#[derive(Debug, Args)]
#[command(
    after_help = "What NetworkPolicies cannot say is told on standard error, and in an annotation of each object.\n\n\
    Exit codes: 0 generated, 1 a policy is invalid and another stands in for it, 2 could not run.\n\n\
    Example:\n  \
    egress-agent generate networkpolicy --manifests cluster/ policies/ | kubectl apply --server-side -f -"
)]
struct Objects {
    #[command(flatten)]
    source: Source,

    #[command(flatten)]
    manner: Manner,

    /// Of this policy only
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,

    /// How to write the objects
    #[arg(short, long, value_name = "FORMAT", default_value = "yaml")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Documents
    Yaml,
    /// A List
    Json,
}

/// What was read.
pub(super) struct Read {
    pub(super) index: Index,
    pub(super) settings: Settings,
    pub(super) options: Options,
    pub(super) now: u64,
    /// Whether every policy is valid.
    pub(super) valid: bool,
}

impl Source {
    /// Reads the manifests. Standard error has what is wrong with policies.
    pub(super) fn read(&self) -> anyhow::Result<Read> {
        let now = self.at.unwrap_or_else(|| clock::wall_seconds_and_fraction().0);
        let mut index = Index::default();
        let _: Change = index.set_ranges(Files::load(&self.ranges, now)?);
        let mut options = Options::default();
        let mut seen = BTreeSet::new();
        let mut errors = 0;
        for path in &self.manifests {
            for file in manifests::load(path)?.files {
                for error in &file.errors {
                    eprintln!("{error}");
                }
                errors += usize::from(file.unread);
                for (id, selector) in file.selectors {
                    options.selectors.entry(id).or_insert(selector);
                }
                // Of an object that stands twice the first counts, as for the agent.
                for (key, object) in file.objects {
                    if seen.insert(key) {
                        // Nothing was made of the index yet that would have to change.
                        let _: Change = index.apply(object);
                    }
                }
            }
        }
        if errors > 0 {
            bail!("{errors} files could not be read, so that objects may be missing");
        }
        if seen.is_empty() {
            let paths: Vec<String> = self.manifests.iter().map(|path| path.display().to_string()).collect();
            bail!("no objects could be read from {}", paths.join(", "));
        }
        let mut valid = true;
        for problem in index.problems() {
            for finding in problem.findings {
                valid &= !finding.is_error();
                eprintln!("{}: {}: {finding}", problem.policy, finding.severity);
            }
        }
        Ok(Read { index, settings: self.settings(), options, now, valid })
    }

    fn settings(&self) -> Settings {
        Settings {
            enforce_network_policy: self.enforce_network_policy,
            governed_namespaces: self.governed_namespaces.iter().cloned().collect(),
            invalid_policy: match self.invalid_policy {
                Invalid::Deny => InvalidPolicy::Deny,
                Invalid::Ignore => InvalidPolicy::Ignore,
            },
            cluster_dns: self.cluster_dns.clone(),
            cluster_dns_addresses: self.cluster_dns_addresses.clone(),
            cluster_cidrs: self.cluster_cidrs.clone(),
        }
    }
}

impl Manner {
    pub(super) fn set(&self, options: &mut Options) {
        options.cluster_ips = self.cluster_ips;
        if !self.except {
            options.limits.except = 0;
        }
        options.inexpressible = match self.inexpressible {
            Way::Widen => Inexpressible::Widen,
            Way::Omit => Inexpressible::Omit,
            Way::Skip => Inexpressible::Skip,
        };
    }
}

/// Generates.
///
/// # Errors
///
/// When the manifests cannot be read, or nothing can be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match &arguments.command {
        Command::NetworkPolicy(objects) => objects.run(),
        Command::ServiceEntry(domains) => domains.run(true),
        Command::Envoy(domains) => domains.run(false),
    }
}

impl Domains {
    fn run(&self, istio: bool) -> anyhow::Result<ExitCode> {
        let read = self.source.read()?;
        let policies: Vec<&Policy> = read
            .index
            .cluster()
            .policies
            .values()
            .map(|policy| &**policy)
            .filter(|policy| {
                self.source.namespace.as_ref().is_none_or(|namespace| policy.id.id.namespace == *namespace)
                    && self.policy.as_ref().is_none_or(|name| policy.id.id.name == *name)
            })
            .collect();
        if let (Some(name), true) = (&self.policy, policies.is_empty()) {
            bail!("there is no policy {name}");
        }
        let (destinations, notes) = proxies::destinations(policies.iter().copied(), read.now);
        for note in &notes {
            eprintln!("{note}");
        }
        let text = if istio {
            let named: Vec<&Policy> = policies
                .into_iter()
                .filter(|policy| destinations.iter().any(|destination| destination.policy == policy.id))
                .collect();
            let entries = proxies::istio::entries(&destinations);
            match self.output {
                Output::Yaml => proxies::istio::advice(&named) + &documents(&entries)?,
                Output::Json => list(&entries)?,
            }
        } else {
            let bootstrap = proxies::envoy::bootstrap(&destinations)?;
            match self.output {
                Output::Yaml => serde_saphyr::to_string(&bootstrap)?,
                Output::Json => serde_json::to_string_pretty(&bootstrap)? + "\n",
            }
        };
        super::write(&text).context("writing the configuration")?;
        Ok(if read.valid { ExitCode::SUCCESS } else { ExitCode::from(INVALID) })
    }
}

impl Objects {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let mut read = self.source.read()?;
        self.manner.set(&mut read.options);
        let generator = Generator::new(read.index.cluster(), &read.settings, &read.options, read.now);
        let wanted = |id: &&PolicyId| {
            self.source.namespace.as_ref().is_none_or(|namespace| id.id.namespace == *namespace)
                && self.policy.as_ref().is_none_or(|name| id.id.name == *name)
        };
        let ids: Vec<&PolicyId> = generator.policies().filter(wanted).collect();
        if let (Some(name), true) = (&self.policy, ids.is_empty()) {
            bail!("there is no policy {name}");
        }
        let mut objects = Vec::new();
        for id in ids {
            let made = generator.generate(id);
            for loss in &made.losses {
                eprintln!("{id}: {loss}");
            }
            let origin =
                generated::Origin { policy: &id.id, revision: None, owner: None, losses: &made.losses };
            objects.extend(made.objects.iter().map(|object| generated::object(object, &origin)));
        }
        let text = match self.output {
            Output::Yaml => documents(&objects)?,
            Output::Json => list(&objects)?,
        };
        super::write(&text).context("writing the objects")?;
        Ok(if read.valid { ExitCode::SUCCESS } else { ExitCode::from(INVALID) })
    }
}

/// Returns objects as YAML documents.
pub(super) fn documents<T: Serialize>(objects: &[T]) -> anyhow::Result<String> {
    let mut text = String::new();
    for object in objects {
        text += "---\n";
        text += serde_saphyr::to_string(object)?.trim_end();
        text.push('\n');
    }
    Ok(text)
}

fn list<T: Serialize>(objects: &[T]) -> anyhow::Result<String> {
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
    Ok(serde_json::to_string_pretty(&list)? + "\n")
}
