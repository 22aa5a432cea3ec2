//! `egress-agent validate`: what is wrong, or doubtful, in policies and manifests.

mod output;
pub(super) mod report;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use self::{
    output::{Checked, Outcome, Output},
    report::Report,
};
use super::{
    COULD_NOT_RUN,
    documents::{Document, Documents},
};
use crate::{
    check::{Rules, Subject},
    k8s::{
        convert::{MANAGED, POLICY_KEY},
        manifests::ManifestError,
    },
    kernel::clock,
    policy::{
        cluster::{Cluster, NsName, Settings},
        compile::{Why, compile_all},
        finding::{Finding, Severity},
        governance::Profile,
        index::{Change, Index, Object},
        model::{Effect, Policy, PolicyId, PolicyKind, RulePart},
    },
    ranges::files::{Files, provider_file},
    rego,
};

/// The exit code when something was found.
const FINDINGS: u8 = 1;

const RULES: &str = "Rules";
const OUTPUT: &str = "Output";

/// What to check.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 nothing found that fails, 1 errors (with --fail-on-warn also warnings), 2 could not run, or found no policy.\n\
    Findings go to standard output, what they add up to goes to standard error. NO_COLOR is obeyed.\n\n\
    Examples:\n  \
    egress-agent validate policies/\n  \
    kubectl kustomize overlays/prod | egress-agent validate --rules rules.yaml -\n  \
    egress-agent validate -o sarif policies/ > findings.sarif\n  \
    egress-agent validate --test my-rules/"
)]
pub struct Arguments {
    /// Manifests, policy.json documents, and directories of them; - for standard input
    #[arg(value_name = "PATH", required_unless_present = "test")]
    paths: Vec<PathBuf>,

    /// Judge by the rules in this file too: governance, policy as code, what is known of the cluster
    #[arg(long, value_name = "FILE", env = "EGRESS_RULES", help_heading = RULES)]
    rules: Option<PathBuf>,

    /// Ask the policy as code in this folder too, and the shipped one; may be given several times
    #[arg(long, value_name = "DIR", help_heading = RULES, conflicts_with = "test")]
    policies: Vec<PathBuf>,

    /// Say what a provider's address ranges in this file, in its own format, mean for the policies; `custom` for services of your own;
    /// may be given several times
    #[arg(long, value_name = "PROVIDER=FILE", value_parser = provider_file, help_heading = RULES)]
    ranges: Vec<(String, PathBuf)>,

    /// The profile of governance, in place of the one in the rules; the annotation of a Namespace among the PATHs counts as in the
    /// webhook
    #[arg(long, value_name = "PROFILE", help_heading = RULES, conflicts_with = "test")]
    profile: Option<ProfileArgument>,

    /// Judge as of this time (RFC 3339) instead of now
    #[arg(long, value_name = "TIME", value_parser = super::second, help_heading = RULES, conflicts_with = "test")]
    now: Option<u64>,

    /// Run the tests of policy as code in the PATHs, which are folders then; without one those of the shipped rules
    #[arg(long, help_heading = RULES, conflicts_with_all = ["output", "fail_on_warn"])]
    test: bool,

    /// How to write the findings
    #[arg(short, long, value_name = "FORMAT", help_heading = OUTPUT)]
    output: Option<Output>,

    /// Fail on warnings too
    #[arg(long, help_heading = OUTPUT)]
    fail_on_warn: bool,

    /// Be content with no policy at all
    #[arg(long, help_heading = OUTPUT, conflicts_with = "test")]
    allow_none: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProfileArgument {
    /// Only what has ended or soon will is told
    Off,
    /// What breaks a rule is a warning
    Warn,
    /// What breaks a rule is an error
    Required,
}

impl From<ProfileArgument> for Profile {
    fn from(profile: ProfileArgument) -> Self {
        match profile {
            ProfileArgument::Off => Self::Off,
            ProfileArgument::Warn => Self::Warn,
            ProfileArgument::Required => Self::Required,
        }
    }
}

impl Arguments {
    fn rules(&self) -> anyhow::Result<Rules> {
        let mut rules = read_rules(self.rules.as_deref(), &self.policies)?;
        if let Some(profile) = self.profile {
            rules.governance.profile = profile.into();
        }
        rules.ranges = Files::load(&self.ranges, clock::wall_seconds_and_fraction().0)?.into();
        Ok(rules)
    }
}

/// Reads the rules of a file, and policy as code in folders, which is asked besides.
pub(super) fn read_rules(file: Option<&Path>, folders: &[PathBuf]) -> anyhow::Result<Rules> {
    let mut rules = file.map_or_else(|| Ok(Rules::default()), Rules::from_file)?;
    for folder in folders {
        rules.add_bundle(folder)?;
    }
    Ok(rules)
}

/// Checks.
///
/// # Errors
///
/// When the rules cannot be used, or the findings cannot be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.test {
        let report = rego::test::run(&arguments.paths)?;
        super::write(&report.to_string()).context("writing what the tests came to")?;
        return Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::from(FINDINGS) });
    }
    let rules = arguments.rules()?;
    let now = arguments.now.unwrap_or_else(|| clock::wall_seconds_and_fraction().0);
    let mut documents = Documents::default();
    let mut unreadable = false;
    for path in &arguments.paths {
        if let Err(error) = documents.add(path) {
            super::complain(&error);
            unreadable = true;
            // What is told in a file must not look as if all were well.
            documents.errors.push(ManifestError {
                path: path.clone(),
                document: None,
                line: None,
                message: format!("{error:#}"),
                hint: None,
            });
        }
    }
    let policies = documents.list.len() + documents.network_policies;
    let outcome = check(documents, &rules, now, arguments.fail_on_warn);
    super::write(&outcome.write(arguments.output)?).context("writing the findings")?;
    let errors = outcome.reports.iter().filter(|report| report.is_error()).count();
    let warnings = outcome.reports.len() - errors;
    let count = |number: usize, word: &str| match number {
        1 => format!("1 {word}"),
        number => format!("{number} {word}s"),
    };
    let checked = if policies == 1 { "1 policy".to_owned() } else { format!("{policies} policies") };
    let sum = format!("{checked} checked: {}, {}\n", count(errors, "error"), count(warnings, "warning"));
    // Whoever does not listen has the exit code.
    if let Err(error) = io::stderr().lock().write_all(sum.as_bytes())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        return Err(error).context("writing what was found");
    }
    let none = policies == 0 && errors == 0 && !arguments.allow_none;
    if none {
        super::complain(&anyhow::anyhow!(
            "there is no policy among what was read; --allow-none has that pass"
        ));
    }
    Ok(if unreadable || none {
        ExitCode::from(COULD_NOT_RUN)
    } else if errors > 0 || (arguments.fail_on_warn && warnings > 0) {
        ExitCode::from(FINDINGS)
    } else {
        ExitCode::SUCCESS
    })
}

/// Judges everything that was read.
fn check(documents: Documents, rules: &Rules, now: u64, strict: bool) -> Outcome {
    let Documents { list, objects, errors, twice, unlabelled, annotations, sources, order, .. } = documents;
    let judged = judge_all(&list, rules, &annotations, now);
    let mut reports: Vec<Report> = errors.iter().chain(&twice).map(Report::of_file).collect();
    reports.extend(
        unlabelled.into_iter().map(|(id, place)| Report::new(&id, unlabelled_policy(), &place, None)),
    );
    let mut good = BTreeMap::new();
    for (number, (document, (findings, holds))) in list.iter().zip(judged).enumerate() {
        let place = &document.place;
        reports.extend(
            findings.into_iter().map(|finding| Report::new(&document.id, finding, place, Some(number))),
        );
        if holds {
            good.entry(&document.id).or_insert(number);
        }
    }
    for (id, finding) in unmatched(objects) {
        if let Some(number) = good.get(&id) {
            reports.push(Report::new(&id, finding, &list[*number].place, Some(*number)));
        }
    }
    reports.sort_by_key(|report| order.get(&report.file));
    let checked = list.iter().map(|Document { id, place, .. }| Checked {
        file: place.file.to_string(),
        name: if place.bare { id.name.clone() } else { id.to_string() },
        line: place.line,
    });
    Outcome { checked: checked.collect(), reports, sources, strict }
}

/// What is said of a ConfigMap that looks like a policy and is none.
fn unlabelled_policy() -> Finding {
    Finding {
        severity: Severity::Warning,
        path: String::new(),
        line: 0,
        column: 0,
        message: format!("`{POLICY_KEY}` without the label `{}: {}`: nobody reads it", MANAGED.0, MANAGED.1),
        hint: Some("add the label if it is to be enforced".into()),
        rule: None,
    }
}

/// Judges documents on all processors, and returns of each, in their order, what was found and whether it is a policy.
fn judge_all(
    list: &[Document],
    rules: &Rules,
    annotations: &BTreeMap<String, Option<String>>,
    now: u64,
) -> Vec<(Vec<Finding>, bool)> {
    /// Fewer than these are not worth a thread.
    const SHARE: usize = 16;
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(document) = list.get(number) else { return done };
            done.push((number, judge(document, rules, annotations, now)));
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(list.len().div_ceil(SHARE));
    let mut done = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, judged)| judged).collect()
}

fn judge(
    document: &Document,
    rules: &Rules,
    annotations: &BTreeMap<String, Option<String>>,
    now: u64,
) -> (Vec<Finding>, bool) {
    let Document { id, text, .. } = document;
    let annotation = annotations.get(&id.namespace).and_then(Option::as_deref);
    let (profile, doubt) = rules.profile(annotation);
    let mut findings = Vec::from_iter(doubt);
    let Some(text) = text else {
        findings.push(Finding {
            severity: Severity::Error,
            path: String::new(),
            line: 0,
            column: 0,
            message: format!("no text under `{POLICY_KEY}`"),
            hint: Some(
                "put the policy under that key, or take the label `egress-controller: managed` off".into(),
            ),
            rule: None,
        });
        return (findings, false);
    };
    let judgement = rules.judge(&Subject { id, text, old: None, profile }, now);
    findings.extend(judgement.findings);
    (findings, judgement.policy.is_some())
}

/// Warns of destinations that name what the manifests do not have, if there are pods to ask for.
fn unmatched(objects: Vec<(crate::policy::index::ObjectKey, Object)>) -> Vec<(NsName, Finding)> {
    if !objects.iter().any(|(_, object)| matches!(object, Object::Pod(..))) {
        return Vec::new();
    }
    let mut index = Index::default();
    let mut seen = BTreeSet::new();
    for (key, object) in objects {
        // Of an object that stands twice the first counts, as for the agent.
        if seen.insert(key) {
            // What changes is looked at when all are there.
            let _: Change = index.apply(object);
        }
    }
    let cluster = index.cluster();
    let mut found = BTreeSet::new();
    for compiled in compile_all(cluster, &Settings::default(), cluster.pods.keys()).into_values() {
        for unmatched in compiled.unresolved {
            let RulePart::Destination(name) = &unmatched.rule.part else { continue };
            let told = match &unmatched.why {
                // Told for every policy already.
                Why::NotLookedUp(_) => false,
                // Without any Services among the manifests, that one is absent says nothing.
                Why::NoService(_) => !cluster.services.is_empty(),
                Why::ExternalName(..) => true,
                Why::NoNode(_) => !cluster.nodes.is_empty(),
            };
            if told && unmatched.rule.policy.kind == PolicyKind::ConfigMap {
                found.insert((unmatched.rule.policy.id.clone(), name.clone(), unmatched.why.to_string()));
            }
        }
    }
    let finding = |(id, name, why): (NsName, String, String)| {
        let finding = Finding {
            severity: Severity::Warning,
            path: path_of(cluster, &id, &name),
            line: 0,
            column: 0,
            message: format!("{name} matches nothing: {why}"),
            hint: None,
            rule: None,
        };
        (id, finding)
    };
    found.into_iter().map(finding).collect()
}

/// Returns where a destination stands in its policy.
fn path_of(cluster: &Cluster, id: &NsName, name: &str) -> String {
    let policy = cluster.policies.get(&PolicyId { kind: PolicyKind::ConfigMap, id: id.clone() });
    policy
        .and_then(|policy| paths(policy).find(|(_, other)| *other == name))
        .map_or_else(String::new, |(path, _)| path)
}

/// Each rule of a policy with the field it stands in and its name.
fn paths(policy: &Policy) -> impl Iterator<Item = (String, &str)> {
    let (mut allowed, mut denied) = (0, 0);
    policy.rules.iter().map(move |rule| {
        let (list, index) = match rule.effect {
            Effect::Allow => ("allowedDestinations", &mut allowed),
            Effect::Deny => ("deniedDestinations", &mut denied),
        };
        let path = format!("{list}[{index}]");
        *index += 1;
        (path, rule.name.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::documents::Place;

    #[test]
    fn what_is_judged_at_the_same_time_stays_in_its_order() {
        let document = |number: usize| Document {
            id: NsName::new("shop", "p"),
            text: Some(format!(r#"{{"allowedDestinations": [{{"name": "a", "cidr": "{number}"}}]}}"#)),
            place: Place { file: "p.json".into(), offset: None, line: None, bare: true },
        };
        let list: Vec<Document> = (0..5000).map(document).collect();
        let judged = judge_all(&list, &Rules::default(), &BTreeMap::new(), 0);
        assert_eq!(judged.len(), list.len());
        for (number, (findings, holds)) in judged.iter().enumerate() {
            assert_eq!(findings[0].message, format!("Invalid CIDR format: {number}"));
            assert!(!holds);
        }
        assert!(judge_all(&[], &Rules::default(), &BTreeMap::new(), 0).is_empty());
    }
}
