//! The one judge of a policy document in all its layers: text, meaning, governance, policy as code.
//!
//! The webhook, `egress-agent validate` and the agent ask [`Rules::judge`], so they say the same in the same words.

use std::{
    collections::HashSet,
    sync::{PoisonError, RwLock},
};

mod rules;
#[cfg(test)]
mod tests;

pub use self::rules::{Facts, PolicyAsCode, RulesError};
use crate::{
    policy::{
        cluster::NsName,
        document::{self, Reading, shown},
        finding::{Finding, Severity},
        governance::{self, Kept, Profile},
        model::{Effect, Mode, Peer, Policy, Rule, Unresolved},
        ranges::{Found, Missing, Ranges, Width},
    },
    rego::{self, Bundle, Violation},
};

/// What documents are judged by. The default judges text and meaning, and tells what has ended or soon will.
#[derive(Debug, Default)]
pub struct Rules {
    /// What is asked of every exception.
    pub governance: governance::Config,
    /// Whether and how policy as code is asked.
    pub policy_as_code: PolicyAsCode,
    /// What is known of the cluster.
    pub cluster: Facts,
    /// The rules of policy as code that are asked, one bundle after the other.
    pub bundles: Vec<Bundle>,
    /// What clouds' services stand for, as far as it is known.
    pub ranges: Known,
}

/// The ranges that are known, which may change while documents are judged.
#[derive(Debug, Default)]
pub struct Known(RwLock<Ranges>);

impl Known {
    /// Returns those of this moment.
    #[must_use]
    pub fn now(&self) -> Ranges {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes them at once.
    pub fn change(&self, change: impl FnOnce(&mut Ranges)) {
        let mut next = self.now();
        change(&mut next);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = next;
    }
}

impl From<Ranges> for Known {
    fn from(ranges: Ranges) -> Self {
        Self(RwLock::new(ranges))
    }
}

/// A document to judge.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The ConfigMap it stands in.
    pub id: &'a NsName,
    /// The text under `policy.json`.
    pub text: &'a str,
    /// The text it takes the place of, if any: an expired exception may stay in it as it is.
    pub old: Option<&'a str>,
    /// The profile of governance of its namespace.
    pub profile: Profile,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The policy; `None` if its text or its meaning is wrong. It is there where only governance or policy as code refuse it.
    pub policy: Option<Policy>,
    /// Everything worth saying, in the order of the text.
    pub findings: Vec<Finding>,
}

impl Rules {
    /// Returns the profile of a namespace with this [annotation](governance::ANNOTATION), and a warning if that is no profile.
    #[must_use]
    pub fn profile(&self, annotation: Option<&str>) -> (Profile, Option<Finding>) {
        governance::profile(self.governance.profile, annotation, self.governance.allow_weaker)
    }

    /// Judges a document at second `now` (since the epoch, UTC).
    #[must_use]
    pub fn judge(&self, subject: &Subject<'_>, now: u64) -> Judgement {
        let mut reading = document::read(subject.id, subject.text);
        unresolved(&mut reading);
        clouds(&mut reading, &self.ranges.now());
        // Only what may refuse is compared with what was there, and a policy that may have been enforced.
        let audited = reading.policy.as_ref().is_some_and(|policy| policy.mode == Mode::Audit);
        let asked = subject.profile == Profile::Required || !self.bundles.is_empty() || audited;
        let old = subject.old.filter(|_| asked);
        let old = old.map(|old| document::read(subject.id, old)).filter(|old| old.policy.is_some());
        let before = old.as_ref().and_then(|old| old.policy.as_ref());
        if audited && before.is_some_and(|before| before.mode == Mode::Enforce) {
            let message =
                "mode is audit instead of enforce: what the policy denies passes, and is only reported";
            let hint = "enforce it again as soon as what it denied is known".to_owned();
            let at = reading.find("mode");
            reading.add(at, finding(Severity::Warning, "mode".into(), message.into(), Some(hint)));
        }
        governance::add(&self.governance, subject.profile, &mut reading, before, now);
        if reading.policy.is_some() {
            for bundle in &self.bundles {
                self.ask(bundle, subject, &mut reading, old.as_ref(), now);
            }
        }
        Judgement { policy: reading.policy.take(), findings: reading.finish() }
    }

    /// Adds what a bundle has against a document. What it had against the same entry before stays a warning, as long as that is neither
    /// extended nor widened; what it had against the document as a whole, as long as nothing in it is. What it does not answer is an
    /// error.
    fn ask(
        &self,
        bundle: &Bundle,
        subject: &Subject<'_>,
        reading: &mut Reading<'_>,
        old: Option<&Reading<'_>>,
        now: u64,
    ) {
        let NsName { namespace, name } = subject.id;
        let context = rego::Context { now, namespace, name, limit: self.policy_as_code.limit() };
        let violations = match bundle.evaluate(subject.text, &context) {
            Ok(violations) => violations,
            Err(error) => {
                let message = format!("Not judged: {error}");
                let finding = finding(Severity::Error, String::new(), message, None);
                reading.add(0, finding);
                return;
            }
        };
        let is_error = |violation: &&Violation| violation.severity == Severity::Error;
        let before = match (subject.old, old) {
            // Without an answer nothing is excused.
            (Some(text), Some(_)) if violations.iter().any(|violation| is_error(&violation)) => {
                bundle.evaluate(text, &context).unwrap_or_else(|_| Vec::new())
            }
            _ => Vec::new(),
        };
        // The same words may be about an entry that was fine before, so they count for the entry they were said of.
        let before: HashSet<(&str, &str, Option<&str>)> = before
            .iter()
            .filter(is_error)
            .map(|said| {
                let rule = old.and_then(|old| rule_at(&said.path, old));
                (said.id.as_str(), said.msg.as_str(), rule.map(|rule| rule.name.as_str()))
            })
            .collect();
        let mut found = Vec::new();
        if let Some(policy) = &reading.policy {
            let mut kept = Kept::new(policy, old.and_then(|old| old.policy.as_ref()), now);
            let mut whole = None;
            for violation in violations {
                let Violation { id, msg, path, severity, remediation } = violation;
                let rule = rule_at(&path, reading);
                let excused =
                    before.contains(&(id.as_str(), msg.as_str(), rule.map(|rule| rule.name.as_str())))
                        && match rule {
                            Some(rule) => kept.is_no_wider(rule),
                            None if SETTINGS.contains(&path.as_str()) => kept.is_no_laxer(policy),
                            // It may be about any of the entries.
                            None => *whole.get_or_insert_with(|| kept.opens_no_more(policy)),
                        };
                let severity = if excused { Severity::Warning } else { severity };
                let at = reading.find(&path);
                let finding = Finding { rule: Some(id), ..finding(severity, path, msg, remediation) };
                found.push((at, finding));
            }
        }
        for (at, finding) in found {
            reading.add(at, finding);
        }
    }
}

/// Fields at the top that say nothing of destinations.
const SETTINGS: [&str; 4] = ["clusterDns", "defaultAction", "mode", "podSelector"];

/// Returns the rule of the policy that a path leads to.
fn rule_at<'r>(path: &str, reading: &'r Reading<'_>) -> Option<&'r Rule> {
    let end = path.find(']')? + 1;
    let index = reading.destinations.iter().position(|destination| destination.path == path[..end])?;
    reading.policy.as_ref()?.rules.get(index)
}

fn finding(severity: Severity, path: String, message: String, hint: Option<String>) -> Finding {
    Finding { severity, path, line: 0, column: 0, message, hint, rule: None }
}

/// Longest message, in bytes.
const LONGEST_MESSAGE: usize = 4096;

impl Judgement {
    /// Returns whether the document is refused.
    #[must_use]
    pub fn refused(&self) -> bool {
        self.findings.iter().any(Finding::is_error)
    }

    /// Returns what a refusal is told with: the errors, a line for each, as many as fit into 4 KiB, and the number of the others.
    /// `None` if the document is not refused.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        let mut errors = self.of(Severity::Error);
        let mut message = format!("Policy validation failed: {}", errors.next()?);
        let last = |left: usize| match left {
            1 => "\nand 1 more error".to_owned(),
            left => format!("\nand {left} more errors"),
        };
        let room = LONGEST_MESSAGE - last(usize::MAX).len();
        message.truncate(message.floor_char_boundary(room));
        let mut left = errors.map(|error| format!("\nalso: {error}")).peekable();
        while let Some(line) = left.next_if(|line| message.len() + line.len() <= room) {
            message.push_str(&line);
        }
        match left.count() {
            0 => {}
            count => message.push_str(&last(count)),
        }
        Some(message)
    }

    /// Returns the softer findings.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.of(Severity::Warning)
    }

    fn of(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.severity == severity)
    }
}

/// Warns of clouds' services that stand for nothing, for less than they say, or for much.
fn clouds(reading: &mut Reading<'_>, ranges: &Ranges) {
    /// IPv4 addresses that are worth a warning: as many as a /16 has.
    const MANY: u64 = 1 << 16;
    let mut found = Vec::new();
    let rules = reading.policy.iter().flat_map(|policy| &policy.rules);
    for (rule, destination) in rules.zip(&reading.destinations) {
        for peer in &rule.peers {
            let Peer::Unresolved(what) = peer else { continue };
            let mut warn = |message: String, hint: Option<&str>| {
                let hint = hint.map(str::to_owned);
                found.push((
                    destination.at,
                    finding(Severity::Warning, destination.path.clone(), message, hint),
                ));
            };
            let name = &rule.name;
            match ranges.resolve(what) {
                // Nobody has told of that provider.
                Err(Missing::Domains | Missing::Provider(_)) => {}
                Err(missing) => {
                    warn(format!("Nothing published: {name} matches no address: {missing}"), None);
                }
                Ok(Found { left_out_global, nothing_of, cidrs, .. }) => {
                    if left_out_global > 0 {
                        let message = format!(
                            "Less than it says: {name} leaves out what is of region GLOBAL ({left_out_global} of its rows)"
                        );
                        warn(message, Some("name GLOBAL beside the regions if they are needed"));
                    }
                    for nothing in nothing_of {
                        warn(
                            format!(
                                "Nothing published: {name} names {}, of which there is no address",
                                shown(&nothing)
                            ),
                            None,
                        );
                    }
                    let width = Width::of(&cidrs);
                    if rule.effect == Effect::Allow && width.addresses >= MANY {
                        warn(format!("Wide: {name} opens {width}"), Some("name fewer services or regions"));
                    }
                }
            }
        }
    }
    for (at, finding) in found {
        reading.add(at, finding);
    }
}

/// Warns of domains, whose addresses nobody looks up yet.
fn unresolved(reading: &mut Reading<'_>) {
    let mut found = Vec::new();
    let rules = reading.policy.iter().flat_map(|policy| &policy.rules);
    // What is denied stands for more until then, and the document has been warned of it.
    let allowed = |(rule, _): &(&Rule, _)| rule.effect == Effect::Allow;
    for (rule, destination) in rules.zip(&reading.destinations).filter(allowed) {
        for peer in &rule.peers {
            let Peer::Unresolved(unresolved) = peer else { continue };
            // What a cloud's service stands for is known in the cluster, and told there if it is not.
            let Unresolved::Domains(domains) = unresolved else { continue };
            let what = format!("the domain {}", domains.join(", "));
            let message = format!(
                "Not resolved yet: {} matches nothing until the addresses of {what} are known",
                rule.name
            );
            let finding = finding(Severity::Warning, destination.path.clone(), message, None);
            found.push((destination.at, finding));
        }
    }
    for (at, finding) in found {
        reading.add(at, finding);
    }
}
