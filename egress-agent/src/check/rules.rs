//! The rules as a file.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde::Deserialize;

use super::{Known, Rules};
use crate::{
    policy::{document::nearest, governance::Config},
    rego::{self, Bundle},
};

/// Whether and how policy as code is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PolicyAsCode {
    /// Whether it is asked.
    pub enabled: bool,
    /// How long it may take over one document, in milliseconds.
    pub limit_millis: u32,
}

impl Default for PolicyAsCode {
    fn default() -> Self {
        Self { enabled: false, limit_millis: 100 }
    }
}

impl PolicyAsCode {
    /// Returns how long it may take over one document.
    #[must_use]
    pub const fn limit(self) -> Duration {
        Duration::from_millis(self.limit_millis as u64)
    }
}

/// What is known of the cluster, for policy as code to compare with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Facts {
    /// Addresses of pods.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of Services.
    pub service_cidrs: Vec<IpNet>,
    /// Addresses of nodes.
    pub node_cidrs: Vec<IpNet>,
    /// What the cluster is for, such as `prod` or `dev`.
    pub environment: String,
    /// Where restricted data may go: names of destinations, prefixes and domains.
    pub approved_destinations: Vec<String>,
}

/// What of the shipped policy as code is governance. It is judged here already, by the profile of the namespace, and without
/// forgetting what was there before.
const GOVERNED: [&str; 6] = ["EGR-0010", "EGR-0011", "EGR-0012", "EGR-0014", "EGR-0016", "EGR-0017"];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    governance: Config,
    policy_as_code: PolicyAsCode,
    cluster: Facts,
}

/// Why a file with rules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// It cannot be read.
    #[error("cannot read the rules in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Policy as code cannot be used.
    #[error(transparent)]
    Bundle(#[from] rego::Error),
    /// It says something that has no meaning.
    #[error("{}{place}: {message}", path.as_ref().map_or_else(|| "rules".into(), |path| path.to_string_lossy()))]
    Invalid {
        /// The file, if it is one.
        path: Option<PathBuf>,
        /// Where in it.
        place: Place,
        /// What is wrong, and what could stand there.
        message: String,
    },
}

/// A place in a text; both numbers begin with 1, and are 0 where they are not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: u64,
    /// The column in it.
    pub column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { line: 0, .. } => Ok(()),
            Self { line, column } => write!(f, ":{line}:{column}"),
        }
    }
}

impl Rules {
    /// Reads rules from a file.
    ///
    /// # Errors
    ///
    /// [`RulesError`] when it cannot be read, or [`Rules::parse`] refuses it.
    pub fn from_file(path: &Path) -> Result<Self, RulesError> {
        let text =
            fs::read_to_string(path).map_err(|source| RulesError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|error| match error {
            RulesError::Invalid { path: _, place, message } => {
                RulesError::Invalid { path: Some(path.to_owned()), place, message }
            }
            other @ (RulesError::Read { .. } | RulesError::Bundle(_)) => other,
        })
    }

    /// Reads rules from YAML. What is left out has its default.
    ///
    /// # Errors
    ///
    /// [`RulesError::Invalid`] with its place at the first thing that is wrong, be it a field that is not known.
    pub fn parse(yaml: &str) -> Result<Self, RulesError> {
        let options = serde_saphyr::options! {
            strict_booleans: true,
            with_snippet: false,
        };
        // Without anything in it the text is no mapping; everything has its default then.
        let empty = yaml.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
        let file = match empty {
            true => File::default(),
            false => {
                serde_saphyr::from_str_with_options::<File>(yaml, options).map_err(|error| invalid(&error))?
            }
        };
        let File { governance, policy_as_code, cluster } = file;
        let mut rules =
            Self { governance, policy_as_code, cluster, bundles: Vec::new(), ranges: Known::default() };
        if policy_as_code.enabled {
            rules.bundles.push(Bundle::builtin(&rules.settings())?);
        }
        Ok(rules)
    }

    /// Has the rules in a folder of policy as code asked, too, and the shipped ones if they are not yet.
    ///
    /// # Errors
    ///
    /// [`RulesError::Bundle`] if they cannot be used.
    pub fn add_bundle(&mut self, folder: &Path) -> Result<(), RulesError> {
        let settings = self.settings();
        if self.bundles.is_empty() {
            self.bundles.push(Bundle::builtin(&settings)?);
        }
        self.bundles.push(Bundle::load(folder, &settings)?);
        Ok(())
    }

    /// Returns what the file says in the form that policy as code compares with.
    fn settings(&self) -> serde_json::Value {
        let Facts { pod_cidrs, service_cidrs, node_cidrs, environment, approved_destinations } =
            &self.cluster;
        let environment = if environment.is_empty() { "prod" } else { environment };
        serde_json::json!({
            "disabled": GOVERNED,
            "cluster": {
                "podCidrs": pod_cidrs,
                "serviceCidrs": service_cidrs,
                "nodeCidrs": node_cidrs,
                "environment": environment,
                "approvedDestinations": approved_destinations,
            },
        })
    }
}

fn invalid(error: &serde_saphyr::Error) -> RulesError {
    let place = error
        .location()
        .map_or_else(Place::default, |place| Place { line: place.line(), column: place.column() });
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    RulesError::Invalid { path: None, place, message: in_words(message) }
}

/// Returns what the reader of YAML says, in words that tell what to do.
fn in_words(message: &str) -> String {
    if let Some((what, list)) = message.split_once(", expected one of ") {
        let given = what.split('`').nth(1).unwrap_or_default();
        let known = list.split(", ").map(|name| name.trim_matches('`'));
        return match nearest(given, known) {
            Some(name) => format!("{what}; did you mean {name}?"),
            None => format!("{what}; one of {list}"),
        };
    }
    if let Some(rest) = message.strip_prefix("duplicate mapping key: ") {
        return format!("{} is given twice", rest.split(", set ").next().unwrap_or(rest));
    }
    match message {
        "invalid u16" => format!("expected a whole number, 0 to {}", u16::MAX),
        "invalid u32" => format!("expected a whole number, 0 to {}", u32::MAX),
        "invalid IP address syntax" => "expected a prefix such as 10.0.0.0/16".into(),
        "expected mapping start" => "expected fields".into(),
        other => other.to_owned(),
    }
}
