//! `egress-agent webhook`: tells the API server which policies may be written.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use jiff::SignedDuration;

use super::validate::read_rules;
use crate::{
    heap,
    k8s::client::Access,
    kernel::clock,
    ranges::files::{Files, provider_file},
    telemetry::log,
    webhook::{self, Certificates, Config, certificates::Lifetimes, keeper::Place, server::Limits},
};

const CLUSTER: &str = "Cluster";
const CERTIFICATES: &str = "Certificates";
const OUTPUT: &str = "Output and service";

/// How to run.
#[derive(Debug, Args)]
#[command(
    after_help = "EGRESS_LOG sets what is logged, such as `debug` or `egress_agent=debug,warn`; NO_COLOR is obeyed.\n\
    It runs until SIGTERM or SIGINT."
)]
pub struct Arguments {
    /// Find the API server in this file; without it in KUBECONFIG's, the home directory's, or the pod's service account
    #[arg(long, value_name = "FILE", env = "EGRESS_KUBECONFIG", help_heading = CLUSTER)]
    kubeconfig: Option<PathBuf>,

    /// Use this context of the kubeconfig instead of its current one
    #[arg(long, value_name = "NAME", env = "EGRESS_CONTEXT", help_heading = CLUSTER)]
    context: Option<String>,

    /// Judge by the rules in this file too: governance, policy as code, what is known of the cluster
    #[arg(long, value_name = "FILE", env = "EGRESS_RULES", help_heading = CLUSTER)]
    rules: Option<PathBuf>,

    /// Ask the policy as code in this folder too, and the shipped one; may be given several times
    #[arg(long, value_name = "DIR", env = "EGRESS_WEBHOOK_POLICIES", value_delimiter = ',', help_heading = CLUSTER)]
    policies: Vec<PathBuf>,

    /// Follow the address ranges of clouds that the controller publishes in this namespace, and warn of destinations that they make wide
    /// or empty
    #[arg(long, value_name = "NAMESPACE", env = "EGRESS_RANGES_NAMESPACE", help_heading = CLUSTER)]
    ranges_namespace: Option<String>,

    /// Read a provider's address ranges from this file, in the provider's own format, at the start; `custom` for services of your own; may
    /// be repeated
    #[arg(long, value_name = "PROVIDER=FILE", env = "EGRESS_RANGES", value_delimiter = ',', value_parser = provider_file, help_heading = CLUSTER)]
    ranges: Vec<(String, PathBuf)>,

    /// The namespace of the webhook's Service and Secret
    #[arg(long, value_name = "NAME", env = "EGRESS_NAMESPACE", default_value = "egress-webhook", help_heading = CLUSTER)]
    namespace: String,

    /// The ValidatingWebhookConfiguration that is told which certificates to trust
    #[arg(long, value_name = "NAME", env = "EGRESS_WEBHOOK_CONFIGURATION", default_value = "egress-agent", help_heading = CLUSTER)]
    configuration: String,

    /// The Service by whose name the API server calls
    #[arg(long, value_name = "NAME", env = "EGRESS_WEBHOOK_SERVICE", default_value = "egress-webhook", help_heading = CERTIFICATES)]
    service: String,

    /// The Secret that certificates are kept in
    #[arg(long, value_name = "NAME", env = "EGRESS_WEBHOOK_SECRET", default_value = "egress-webhook-certificates", help_heading = CERTIFICATES)]
    secret: String,

    /// Further names and addresses the certificate is for, such as those of a webhook outside the cluster
    #[arg(long, value_name = "NAME,…", env = "EGRESS_WEBHOOK_TLS_NAMES", value_delimiter = ',', help_heading = CERTIFICATES)]
    tls_names: Vec<String>,

    /// Show the certificate in this file instead of making one; it is read again when it changes
    #[arg(long, value_name = "FILE", env = "EGRESS_WEBHOOK_TLS_CERT_FILE", requires = "tls_key_file", help_heading = CERTIFICATES)]
    tls_cert_file: Option<PathBuf>,

    /// The key of the certificate in the other file
    #[arg(long, value_name = "FILE", env = "EGRESS_WEBHOOK_TLS_KEY_FILE", requires = "tls_cert_file", help_heading = CERTIFICATES)]
    tls_key_file: Option<PathBuf>,

    /// The life of the certificate authority; it is replaced after two thirds of it
    #[arg(long, value_name = "TIME", env = "EGRESS_WEBHOOK_CA_LIFE", default_value = "8760h", value_parser = duration, help_heading = CERTIFICATES)]
    ca_life: Duration,

    /// The life of a certificate; it is replaced after two thirds of it
    #[arg(long, value_name = "TIME", env = "EGRESS_WEBHOOK_CERTIFICATE_LIFE", default_value = "2160h", value_parser = duration, help_heading = CERTIFICATES)]
    certificate_life: Duration,

    /// How long to wait until every API server and every replica has heard of a new certificate authority
    #[arg(long, value_name = "TIME", env = "EGRESS_WEBHOOK_SETTLE", default_value = "10m", value_parser = duration, help_heading = CERTIFICATES)]
    settle: Duration,

    /// Serve the API server here, with TLS
    #[arg(long, value_name = "ADDRESS", env = "EGRESS_WEBHOOK_LISTEN", default_value = "[::]:9443", help_heading = OUTPUT)]
    listen: SocketAddr,

    /// Serve /metrics, /healthz and /readyz here, without TLS
    #[arg(long, value_name = "ADDRESS", env = "EGRESS_WEBHOOK_TELEMETRY", default_value = "127.0.0.1:9470", help_heading = OUTPUT)]
    telemetry: SocketAddr,

    /// Refuse a policy that is not judged after this time, waiting included; less than the timeoutSeconds of the configuration
    #[arg(long, value_name = "TIME", env = "EGRESS_WEBHOOK_REVIEW_LIMIT", default_value = "4s", value_parser = duration, help_heading = OUTPUT)]
    review_limit: Duration,

    /// How long to go on answering after SIGTERM, until nobody asks here any more
    #[arg(long, value_name = "TIME", env = "EGRESS_WEBHOOK_FAREWELL", default_value = "5s", value_parser = duration_or_none, help_heading = OUTPUT)]
    farewell: Duration,

    /// How to write the log, to standard error
    #[arg(long, value_name = "FORMAT", env = "EGRESS_LOG_FORMAT", default_value = "text", help_heading = OUTPUT)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

fn duration_or_none(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration =
        text.parse().map_err(|_unlike| "write it like 90s, 10m or 2160h".to_owned())?;
    Duration::try_from(parsed).map_err(|_negative| "a time cannot be negative".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_none(text)? {
        time if time < Duration::from_millis(1) => Err("it must be more than nothing".to_owned()),
        time => Ok(time),
    }
}

impl Arguments {
    fn certificates(&self) -> anyhow::Result<Certificates> {
        if let (Some(certificate), Some(key)) = (&self.tls_cert_file, &self.tls_key_file) {
            return Ok(Certificates::Files { certificate: certificate.clone(), key: key.clone() });
        }
        let lifetimes = Lifetimes {
            ca: self.ca_life.as_secs(),
            leaf: self.certificate_life.as_secs(),
            settle: self.settle.as_secs(),
        };
        // Renewed at two thirds, there is a third left for the new one to become known.
        if lifetimes.settle * 4 > lifetimes.leaf || lifetimes.leaf > lifetimes.ca {
            anyhow::bail!(
                "--settle may be no more than a quarter of --certificate-life, and that no more than --ca-life"
            );
        }
        let host = format!("{}.{}.svc", self.service, self.namespace);
        let mut names = vec![format!("{host}.cluster.local"), host];
        names.extend(self.tls_names.iter().cloned());
        Ok(Certificates::Kept(Place {
            namespace: self.namespace.clone(),
            secret: self.secret.clone(),
            configuration: self.configuration.clone(),
            names,
            lifetimes,
        }))
    }
}

/// Runs the webhook until it is told to stop.
///
/// # Errors
///
/// When it cannot start, or one of its servers fails it.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    heap::economize();
    log::init(match arguments.log_format {
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    })?;
    let mut rules = read_rules(arguments.rules.as_deref(), &arguments.policies)?;
    rules.ranges = Files::load(&arguments.ranges, clock::wall_seconds_and_fraction().0)?.into();
    let config = Config {
        access: Access { kubeconfig: arguments.kubeconfig.clone(), context: arguments.context.clone() },
        rules,
        ranges_namespace: arguments.ranges_namespace.clone().filter(|namespace| !namespace.is_empty()),
        listen: arguments.listen,
        telemetry: arguments.telemetry,
        certificates: arguments.certificates()?,
        limits: Limits { review: arguments.review_limit, ..Limits::default() },
        farewell: arguments.farewell,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(webhook::run(config))?;
    Ok(ExitCode::SUCCESS)
}
