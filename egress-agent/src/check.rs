//! The one judge of a policy document in all its layers: text, meaning, governance, policy as code.
//!
//! The webhook, `egress-agent validate` and the agent ask [`Rules::judge`], so they say the same in the same words.

use crate::policy::{
    cluster::NsName,
    document,
    finding::{Finding, Severity},
    governance::Profile,
    model::Policy,
};

/// What documents are judged by. The default judges text and meaning only.
#[derive(Debug, Default)]
pub struct Rules {}

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
    /// Judges a document at second `now` (since the epoch, UTC).
    #[must_use]
    pub fn judge(&self, subject: &Subject<'_>, now: u64) -> Judgement {
        let parsed = document::parse(subject.id, subject.text);
        let mut findings = parsed.findings;
        if let Some(policy) = &parsed.policy {
            findings.extend(document::expiry_findings(policy, now));
        }
        Judgement { policy: parsed.policy, findings }
    }
}

impl Judgement {
    /// Returns whether the document is refused.
    #[must_use]
    pub fn refused(&self) -> bool {
        self.findings.iter().any(Finding::is_error)
    }

    /// Returns the sentence a refusal is told with, all errors in it; `None` if the document is not refused.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        let errors: Vec<String> = self.of(Severity::Error).map(Finding::to_string).collect();
        (!errors.is_empty()).then(|| format!("Policy validation failed: {}", errors.join("; also: ")))
    }

    /// Returns the softer findings.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.of(Severity::Warning)
    }

    fn of(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.severity == severity)
    }
}
