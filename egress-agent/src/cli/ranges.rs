//! `egress-agent ranges`: what providers publish, without a cluster.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::json;

use crate::{
    policy::{
        model::Unresolved,
        ranges::{Custom, Found, Missing, Ranges, Row, Table, Width, collapsed, custom::Fault},
    },
    ranges::{
        accept::{self, Limits},
        cache,
        fetch::{self, Answer, Fetcher, Proxy, Roots},
        providers::{self, PROVIDERS, ParseError, Provider},
    },
};

/// The exit code when something is refused, stands for nothing, or differs.
const FINDING: u8 = 1;

/// What to do with published ranges.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List services, or the addresses of some
    Show(Show),
    /// Say whether a file can be used
    Check(Check),
    /// Say what a newer file changes, and whether it would be taken
    Diff(Diff),
}

/// Which ranges to show.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 something was found, 1 it stands for nothing, 2 could not run.\n\n\
    Examples:\n  \
    egress-agent ranges show\n  \
    egress-agent ranges show --service S3 --region us-east-1 ip-ranges.json\n  \
    egress-agent ranges show --provider github --service actions -o json")]
struct Show {
    /// Read this; of google and cloudflare two files. Without any, download what the provider publishes
    #[arg(value_name = "FILE", conflicts_with = "cache")]
    files: Vec<PathBuf>,

    /// Who publishes it
    #[arg(long, value_name = "NAME", default_value = "aws", value_parser = provider_named)]
    provider: &'static dyn Provider,

    /// List the addresses of this service; can be repeated
    #[arg(long = "service", value_name = "NAME")]
    services: Vec<String>,

    /// List the addresses in this region; can be repeated
    #[arg(long = "region", value_name = "NAME")]
    regions: Vec<String>,

    /// Read what was downloaded to this directory before
    #[arg(long, value_name = "DIR", env = "EGRESS_RANGES_CACHE")]
    cache: Option<PathBuf>,

    /// Trust the certificates in this file instead of the system's
    #[arg(long, value_name = "FILE", conflicts_with_all = ["files", "cache"])]
    ca_file: Option<PathBuf>,

    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

/// What to check.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 it can be used, 1 it cannot, 2 could not run.")]
struct Check {
    /// What a provider publishes, of google and cloudflare two files; with --custom definitions
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// Who publishes it
    #[arg(long, value_name = "NAME", default_value = "aws", value_parser = provider_named)]
    provider: &'static dyn Provider,

    /// The files define services of your own
    #[arg(long, conflicts_with = "provider")]
    custom: bool,
}

/// What to compare.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 nothing changes, 1 something does or the new file is refused, 2 could not run."
)]
struct Diff {
    /// What is there; of google and cloudflare two files with a comma between them
    #[arg(value_name = "OLD")]
    old: String,

    /// What comes in its place
    #[arg(value_name = "NEW")]
    new: String,

    /// Who publishes it
    #[arg(long, value_name = "NAME", default_value = "aws", value_parser = provider_named)]
    provider: &'static dyn Provider,

    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

fn provider_named(name: &str) -> Result<&'static dyn Provider, String> {
    providers::provider(name).ok_or_else(|| format!("one of {}", PROVIDERS.map(Provider::name).join(", ")))
}

/// Does what is asked.
///
/// # Errors
///
/// When files or downloads cannot be had, or the answer cannot be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match &arguments.command {
        Command::Show(show) => show.run(),
        Command::Check(check) => check.run(),
        Command::Diff(diff) => diff.run(),
    }
}

fn read(files: &[impl AsRef<Path>]) -> anyhow::Result<Vec<Vec<u8>>> {
    let read = |file: &Path| fetch::read_file(file).with_context(|| file.display().to_string());
    files.iter().map(|file| read(file.as_ref())).collect()
}

fn parse(provider: &dyn Provider, documents: &[Vec<u8>]) -> Result<Table, ParseError> {
    let documents: Vec<&[u8]> = documents.iter().map(Vec::as_slice).collect();
    provider.parse(&documents)
}

impl Show {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let documents = match (&self.cache, self.files.as_slice()) {
            (Some(folder), _) => {
                let Some(cached) = cache::load(folder, self.provider.name())? else {
                    bail!("there is nothing of {} in {}", self.provider.name(), folder.display());
                };
                cached.documents.into_iter().map(|document| document.bytes).collect()
            }
            (None, []) => self.download()?,
            (None, files) => read(files)?,
        };
        let table = Arc::new(parse(self.provider, &documents)?);
        if self.services.is_empty() && self.regions.is_empty() {
            super::write(&match self.output {
                Output::Table => services(self.provider.name(), &table),
                Output::Json => pretty(&json!({
                    "provider": self.provider.name(),
                    "revision": table.revision().to_string(),
                    "services": services_as_json(&table),
                    "regions": table.regions().collect::<Vec<_>>(),
                }))?,
            })?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut ranges = Ranges::default();
        ranges.set_provider(self.provider.name(), table);
        let what = Unresolved::Cloud {
            provider: self.provider.name().to_owned(),
            services: self.services.clone(),
            regions: self.regions.clone(),
        };
        match ranges.resolve(&what) {
            Ok(found) => {
                super::write(&match self.output {
                    Output::Table => addresses(&found),
                    Output::Json => pretty(&json!({
                        "cidrs": found.cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
                        "domains": found.domains,
                        "ipv4Addresses": found.width().addresses,
                        "leftOutGlobal": found.left_out_global,
                        "nothingOf": found.nothing_of,
                    }))?,
                })?;
                for line in remarks(&found) {
                    eprintln!("{line}");
                }
                Ok(ExitCode::SUCCESS)
            }
            Err(missing) => {
                self.tell(&missing);
                Ok(ExitCode::from(FINDING))
            }
        }
    }

    fn tell(&self, missing: &Missing) {
        eprintln!("error: {missing}");
    }

    fn download(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let roots = self.ca_file.clone().map_or(Roots::System, Roots::File);
        let proxy = Proxy::from_variables(|name| std::env::var(name).ok())?;
        let fetcher = Fetcher::new(&roots, proxy, fetch::Limits::default())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the runtime")?;
        let mut documents = Vec::new();
        for url in self.provider.urls() {
            match runtime.block_on(fetcher.get(url, None)).with_context(|| format!("downloading {url}"))? {
                Answer::Body { bytes, .. } => documents.push(bytes),
                Answer::NotModified => bail!("{url} is not modified, though nothing was known of it"),
            }
        }
        Ok(documents)
    }
}

/// Returns what a person should know of an answer.
fn remarks(found: &Found) -> Vec<String> {
    let mut lines = vec![found.width().to_string()];
    if found.left_out_global > 0 {
        let rows =
            if found.left_out_global == 1 { "1 row" } else { &format!("{} rows", found.left_out_global) };
        lines.push(format!(
            "warning: {rows} of region GLOBAL are left out; add GLOBAL to the regions to have them"
        ));
    }
    for name in &found.nothing_of {
        lines.push(format!("warning: {name} gives nothing here"));
    }
    lines
}

fn addresses(found: &Found) -> String {
    let cidrs = found.cidrs.iter().map(|cidr| format!("{cidr}\n"));
    cidrs.chain(found.domains.iter().map(|domain| format!("{domain}\n"))).collect()
}

/// What a service has.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Service<'t> {
    name: &'t str,
    ipv4_rows: usize,
    ipv6_rows: usize,
    domains: usize,
    /// After collapsing.
    cidrs: usize,
    ipv4_addresses: u64,
}

fn services_as_json(table: &Table) -> Vec<Service<'_>> {
    let mut nets = std::collections::BTreeMap::<&str, Vec<ipnet::IpNet>>::new();
    for Row { service, cidr, .. } in table.rows() {
        nets.entry(service).or_default().push(cidr);
    }
    let counts = table.count_by_service();
    counts
        .into_iter()
        .map(|(name, count)| {
            let Width { addresses, cidrs } = Width::of(&collapsed(nets.get(name).map_or(&[], Vec::as_slice)));
            Service {
                name,
                ipv4_rows: count.v4,
                ipv6_rows: count.v6,
                domains: count.domains,
                cidrs,
                ipv4_addresses: addresses,
            }
        })
        .collect()
}

fn services(provider: &str, table: &Table) -> String {
    let head = ["SERVICE", "IPV4-ROWS", "IPV6-ROWS", "DOMAINS", "CIDRS", "IPV4-ADDRESSES"].map(str::to_owned);
    let mut rows = vec![head];
    for service in services_as_json(table) {
        let Service { name, ipv4_rows, ipv6_rows, domains, cidrs, ipv4_addresses } = service;
        rows.push([
            name.to_owned(),
            ipv4_rows.to_string(),
            ipv6_rows.to_string(),
            domains.to_string(),
            cidrs.to_string(),
            ipv4_addresses.to_string(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("   ").trim_end();
        text.push('\n');
    }
    let count = table.count();
    let regions = table.count_by_region().len();
    text + &format!(
        "\n{provider}, revision {}: {} rows in {regions} regions\n",
        table.revision(),
        count.rows()
    )
}

impl Check {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let documents = read(&self.files)?;
        let sentence = if self.custom { self.custom(&documents) } else { self.published(&documents) };
        match sentence {
            Ok(sentence) => {
                super::write(&sentence)?;
                Ok(ExitCode::SUCCESS)
            }
            Err(lines) => {
                for line in lines {
                    eprintln!("error: {line}");
                }
                Ok(ExitCode::from(FINDING))
            }
        }
    }

    fn published(&self, documents: &[Vec<u8>]) -> Result<String, Vec<String>> {
        let table = parse(self.provider, documents).map_err(|error| vec![error.to_string()])?;
        accept::accept(None, &table, &Limits::default()).map_err(|refused| vec![refused.to_string()])?;
        let count = table.count();
        Ok(format!(
            "{}, revision {}: {} IPv4 and {} IPv6 rows of {} services, {} domains\n",
            self.provider.name(),
            table.revision(),
            count.v4,
            count.v6,
            table.services().len(),
            count.domains
        ))
    }

    fn custom(&self, documents: &[Vec<u8>]) -> Result<String, Vec<String>> {
        let names: Vec<String> = self.files.iter().map(|file| file.display().to_string()).collect();
        let mut texts = Vec::new();
        for (name, bytes) in names.iter().zip(documents) {
            let text = std::str::from_utf8(bytes).map_err(|error| vec![format!("{name}: {error}")])?;
            texts.push((name.as_str(), text));
        }
        let custom = Custom::parse(&texts)
            .map_err(|faults| faults.iter().map(Fault::to_string).collect::<Vec<_>>())?;
        let mut text = String::new();
        for service in custom.services() {
            text += &format!(
                "{}: {}, {} domains\n",
                service.name,
                Width::of(&service.cidrs),
                service.domains.len()
            );
        }
        Ok(text)
    }
}

impl Diff {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let table = |names: &str| -> anyhow::Result<Table> {
            let files: Vec<&str> = names.split(',').collect();
            parse(self.provider, &read(&files)?).with_context(|| names.to_owned())
        };
        let (old, new) = (table(&self.old)?, table(&self.new)?);
        let delta = accept::delta(Some(&old), &new);
        let refused = accept::accept(Some(&old), &new, &Limits::default()).err();
        let nets = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (added, removed) = (nets(&delta.added), nets(&delta.removed));
        super::write(&match self.output {
            Output::Table => {
                let lines = removed.iter().map(|net| format!("- {net}\n"));
                lines.chain(added.iter().map(|net| format!("+ {net}\n"))).collect::<String>()
                    + &format!("{delta}\n")
            }
            Output::Json => pretty(&json!({
                "old": old.revision().to_string(),
                "new": new.revision().to_string(),
                "added": added,
                "removed": removed,
                "rowsAdded": delta.rows_added,
                "rowsRemoved": delta.rows_removed,
                "domainsChanged": delta.domains,
                "servicesGone": delta.services_gone,
                "refused": refused.as_ref().map(ToString::to_string),
            }))?,
        })?;
        if let Some(refused) = &refused {
            eprintln!("error: {refused}");
        }
        Ok(ExitCode::from(if delta.is_empty() && refused.is_none() { 0 } else { FINDING }))
    }
}

fn pretty(value: &serde_json::Value) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}
