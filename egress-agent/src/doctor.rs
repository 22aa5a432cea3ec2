//! What is wrong with a node or a cluster, how it shows, and the command that mends it.
//!
//! Gathering and judging are apart: [`node::gather`](mod@node) and [`cluster::gather`](mod@cluster) ask the kernel, the agent and the API server;
//! the checks are pure functions over what came of it, in a table. What could not be asked is told as such and is never "no finding".

pub mod cluster;
pub mod node;

use serde::Serialize;

use crate::k8s::summary::plain;

/// No text of a finding is longer, in bytes.
const MOST_TEXT: usize = 600;
/// How many findings of one check are told one by one.
const MOST_ALIKE: usize = 20;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing has to be done.
    Note,
    /// Will hurt, or hurts a part.
    Warning,
    /// Policies are not enforced as written, or pods are cut off.
    Critical,
}

impl Severity {
    /// Returns its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The check that found it.
    pub check: &'static str,
    /// What is wrong.
    pub what: String,
    /// How it shows, to pods and people.
    pub shows: String,
    /// The command, or the change, that mends it.
    pub fix: String,
}

/// Something that could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unchecked {
    /// What.
    pub what: String,
    /// Why not.
    pub why: String,
}

/// Everything there is to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What is wrong, the worst first; but what makes everything else look broken comes before all.
    pub findings: Vec<Finding>,
    /// What could not be looked at.
    pub unchecked: Vec<Unchecked>,
    /// How many checks looked.
    pub checks: usize,
}

/// A fact, or why it is not known.
pub type Fact<T> = Result<T, String>;

/// A check: its name, and what it finds in the facts.
pub struct Check<F> {
    /// Its name.
    pub name: &'static str,
    /// What it says of what it finds.
    pub look: fn(&F, &mut Findings),
}

/// The check that comes first whatever the severities: without names everything looks broken, and most people look elsewhere.
const FIRST: &str = "dns";

/// Collects what one check finds.
#[derive(Debug, Default)]
pub struct Findings(Vec<(Severity, String, String, String)>);

impl Findings {
    /// Adds a finding: what is wrong, how it shows, and what mends it.
    pub fn add(
        &mut self,
        severity: Severity,
        what: impl Into<String>,
        shows: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.0.push((severity, what.into(), shows.into(), fix.into()));
    }
}

/// Has every check look at the facts.
pub fn examine<F>(checks: &[Check<F>], facts: &F, unchecked: &[Unchecked]) -> Report {
    let mut findings = Vec::new();
    for check in checks {
        let mut found = Findings::default();
        (check.look)(facts, &mut found);
        let mut found = found.0;
        found.sort_by_key(|(severity, ..)| std::cmp::Reverse(*severity));
        let left = found.len().saturating_sub(MOST_ALIKE);
        let hidden = found.get(MOST_ALIKE).map(|(severity, ..)| *severity);
        findings.extend(found.into_iter().take(MOST_ALIKE).map(|(severity, what, shows, fix)| Finding {
            severity,
            check: check.name,
            what: plain(&what, MOST_TEXT),
            shows: plain(&shows, MOST_TEXT),
            fix: plain(&fix, MOST_TEXT),
        }));
        if let Some(severity) = hidden {
            findings.push(Finding {
                severity,
                check: check.name,
                what: format!("and {left} more of this check"),
                shows: "as above".to_owned(),
                fix: "mend those above and ask again".to_owned(),
            });
        }
    }
    findings.sort_by_key(|finding| (finding.check != FIRST, std::cmp::Reverse(finding.severity)));
    let unchecked = unchecked
        .iter()
        .map(|Unchecked { what, why }| Unchecked { what: plain(what, MOST_TEXT), why: plain(why, MOST_TEXT) })
        .collect();
    Report { findings, unchecked, checks: checks.len() }
}

/// What a run of the doctor comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was looked at, and nothing has to be done.
    Clean,
    /// Something has to be done.
    Findings,
    /// Nothing was found, but not everything could be looked at.
    Incomplete,
}

impl Report {
    /// Returns what it comes to. Notes are no findings.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match (self.findings.iter().any(|f| f.severity > Severity::Note), self.unchecked.is_empty()) {
            (true, _) => Outcome::Findings,
            (false, true) => Outcome::Clean,
            (false, false) => Outcome::Incomplete,
        }
    }
}

/// Returns a span of time in its largest unit, such as `3 h`.
fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Returns the share in percent, rounded down; 0 of nothing.
fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100).checked_div(whole).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKS: [Check<usize>; 3] = [
        Check {
            name: "many",
            look: |count, found| {
                (0..*count).for_each(|n| found.add(Severity::Warning, format!("{n}\u{1b}[31m"), "", ""));
            },
        },
        Check { name: "worst", look: |_, found| found.add(Severity::Critical, "worst", "", "") },
        Check { name: "dns", look: |_, found| found.add(Severity::Note, "names", "", "") },
    ];

    #[test]
    fn names_come_first_then_the_worst_and_no_check_floods() {
        let report = examine(&CHECKS, &100, &[]);
        let order: Vec<&str> = report.findings.iter().map(|finding| finding.check).collect();
        assert_eq!(order[..3], ["dns", "worst", "many"]);
        assert_eq!(order.len(), 2 + MOST_ALIKE + 1);
        let last = report.findings.last().map(|finding| finding.what.as_str());
        assert_eq!(last, Some("and 80 more of this check"));
        assert!(report.findings.iter().all(|finding| !finding.what.contains('\u{1b}')));
    }

    #[test]
    fn what_was_not_asked_is_not_clean() {
        let none: [Check<()>; 0] = [];
        let unchecked = [Unchecked { what: "the agent".to_owned(), why: "no permission".to_owned() }];
        assert_eq!(examine(&none, &(), &[]).outcome(), Outcome::Clean);
        assert_eq!(examine(&none, &(), &unchecked).outcome(), Outcome::Incomplete);
        let noted = [Check { name: "n", look: |(), found| found.add(Severity::Note, "", "", "") }];
        assert_eq!(examine(&noted, &(), &[]).outcome(), Outcome::Clean);
        let warned = [Check { name: "w", look: |(), found| found.add(Severity::Warning, "", "", "") }];
        assert_eq!(examine(&warned, &(), &unchecked).outcome(), Outcome::Findings);
    }
}
