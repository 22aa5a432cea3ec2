//! What is kept of a run: for programs as JSON, for people as a page.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::{Expect, Outcome, Seen};
use crate::k8s::summary::plain;

/// No text on the page is longer, in bytes.
const MOST_TEXT: usize = 300;

/// One destination, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// What was expected.
    pub expect: Expect,
    /// Of what.
    pub target: String,
    /// The address that was asked; null for a name without one.
    pub address: Option<String>,
    /// What the socket saw.
    #[serde(flatten)]
    pub seen: Seen,
    /// The same in words.
    pub reason: String,
    /// What that proves.
    pub outcome: Outcome,
    /// How long it took.
    pub milliseconds: u64,
    /// By how much the agent's count of the pod's denials grew meanwhile; null where that is not known.
    pub denied: Option<u64>,
}

/// What the agent said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Its version.
    pub version: String,
    /// Its node.
    pub node: String,
    /// Whether everything wanted was in force.
    pub ready: bool,
    /// What holds of the pod: `governed` or another word of `egress-agent status`.
    pub holds: Option<String>,
    /// The revision of what the kernel enforces for the pod; null where it is not governed.
    pub revision: Option<u64>,
    /// The policies that select the pod.
    pub policies: Vec<String>,
    /// Denials of the pod before and after; null where it does not know the pod.
    pub denied_before: Option<u64>,
    /// The same after.
    pub denied_after: Option<u64>,
}

/// Everything that is kept of a run. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// The version of what asked.
    pub version: String,
    /// The commit it was built from.
    pub revision: Option<String>,
    /// When it began.
    pub started: String,
    /// When it ended.
    pub ended: String,
    /// The host's name, in a pod the pod's.
    pub host: String,
    /// The pod's namespace, if somebody said.
    pub namespace: Option<String>,
    /// The pod's name, if somebody said.
    pub pod: Option<String>,
    /// The node's name, if somebody said.
    pub node: Option<String>,
    /// The revisions of policies, by namespace and name, as far as they are known.
    pub policies: BTreeMap<String, String>,
    /// What the agent said, if it could be asked.
    pub agent: Option<Agent>,
    /// Every check, in order.
    pub checks: Vec<Check>,
}

impl Evidence {
    /// Returns how many checks came to this.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> usize {
        self.checks.iter().filter(|check| check.outcome == outcome).count()
    }

    /// Returns whether every check was proven.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.count(Outcome::Proven) == self.checks.len()
    }

    /// Returns it as JSON.
    ///
    /// # Panics
    ///
    /// Never: it has text keys and no floats.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("it has text keys and no floats") + "\n"
    }

    /// Returns the line that says what it came to.
    #[must_use]
    pub fn verdict(&self) -> String {
        let word = if self.is_proven() { "PASSED" } else { "FAILED" };
        let count = |outcome| self.count(outcome);
        format!(
            "{word}: {} of {} proven, {} disproven, {} unproven",
            count(Outcome::Proven),
            self.checks.len(),
            count(Outcome::Disproven),
            count(Outcome::Unproven)
        )
    }

    /// Returns it as a page of Markdown.
    #[must_use]
    pub fn page(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        line("# Egress smoke test".to_owned());
        line(String::new());
        line(format!("**{}**", self.verdict()));
        line(String::new());
        line("| | |\n|---|---|".to_owned());
        let mut row = |head: &str, value: Option<&str>| {
            if let Some(value) = value {
                line(format!("| {head} | {} |", cell(value)));
            }
        };
        row("Started", Some(&self.started));
        row("Ended", Some(&self.ended));
        row("Host", Some(&self.host));
        row("Namespace", self.namespace.as_deref());
        row("Pod", self.pod.as_deref());
        row("Node", self.node.as_deref());
        row("egress-agent", Some(&self.version));
        row("Commit", self.revision.as_deref());
        for (policy, revision) in &self.policies {
            row(&format!("Policy {}", cell(policy)), Some(revision));
        }
        match &self.agent {
            None => row("Agent", Some("not asked: the verdicts are the socket's alone")),
            Some(agent) => {
                let ready = if agent.ready { "ready" } else { "not ready" };
                row("Agent", Some(&format!("{} on {}, {ready}", agent.version, agent.node)));
                row("Pod is", agent.holds.as_deref());
                row("Revision in the kernel", agent.revision.map(|number| number.to_string()).as_deref());
                row("Policies", Some(&agent.policies.join(", ")));
                if let (Some(before), Some(after)) = (agent.denied_before, agent.denied_after) {
                    row("Denials counted", Some(&format!("{before} before, {after} after")));
                }
            }
        }
        line(String::new());
        line("| expected | destination | address | seen | outcome | ms | denials |".to_owned());
        line("|---|---|---|---|---|---|---|".to_owned());
        for check in &self.checks {
            line(format!(
                "| {} | {} | {} | {} | {} | {} | {} |",
                check.expect.as_str(),
                cell(&check.target),
                check.address.as_deref().map_or_else(|| "–".to_owned(), cell),
                cell(&check.reason),
                check.outcome.as_str(),
                check.milliseconds,
                check.denied.map_or_else(|| "–".to_owned(), |denied| format!("+{denied}")),
            ));
        }
        line(String::new());
        line(
            "Proven: as expected. Disproven: the opposite. Unproven: silence, or no way there, which says nothing about policies. A \
             refusal by the other side proves that it was reached; EPERM proves that the packet never left the pod."
                .to_owned(),
        );
        text
    }

    /// Returns it as a table for a terminal.
    #[must_use]
    pub fn table(&self) -> String {
        let rows: Vec<[String; 4]> = self
            .checks
            .iter()
            .map(|check| {
                let target = match &check.address {
                    Some(address) if !check.target.ends_with(address.as_str()) => {
                        format!("{} ({address})", check.target)
                    }
                    _ => check.target.clone(),
                };
                let outcome = check.outcome.as_str().to_owned();
                [outcome, check.expect.as_str().to_owned(), plain(&target, MOST_TEXT), check.reason.clone()]
            })
            .collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths = [width(0), width(1), width(2)];
        let mut text = String::new();
        for [outcome, expect, target, reason] in rows {
            let [first, second, third] = widths;
            writeln!(text, "{outcome:<first$}   {expect:<second$}   {target:<third$}   {reason}")
                .expect("a string takes everything");
        }
        text + &self.verdict() + "\n"
    }
}

/// Returns a text as it can stand in a cell of a table, without what Markdown or HTML would make of it.
fn cell(text: &str) -> String {
    let text = plain(text, MOST_TEXT);
    let mut cell = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => cell.push_str("&amp;"),
            '<' => cell.push_str("&lt;"),
            '>' => cell.push_str("&gt;"),
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '!' | '#' => {
                cell.push('\\');
                cell.push(c);
            }
            c => cell.push(c),
        }
    }
    cell
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence() -> Evidence {
        let check = |expect, seen: Seen, target: &str| Check {
            expect,
            target: target.to_owned(),
            address: Some("192.0.2.1:443".to_owned()),
            seen,
            reason: seen.words(),
            outcome: seen.outcome(expect, None),
            milliseconds: 3,
            denied: Some(1),
        };
        Evidence {
            version: "0.1.0".to_owned(),
            revision: None,
            started: "2026-11-22T10:00:00Z".to_owned(),
            ended: "2026-11-22T10:00:05Z".to_owned(),
            host: "smoke-x".to_owned(),
            namespace: Some("shop".to_owned()),
            pod: Some("smoke|<script>".to_owned()),
            node: None,
            policies: BTreeMap::from([("shop/web".to_owned(), "abc".to_owned())]),
            agent: None,
            checks: vec![
                check(Expect::Allow, Seen::Connected, "tcp://192.0.2.1:443"),
                check(Expect::Deny, Seen::NotPermitted, "tcp://x.example:443"),
            ],
        }
    }

    #[test]
    fn a_page_says_everything_and_runs_nothing() {
        let page = evidence().page();
        for wanted in [
            "**PASSED: 2 of 2 proven, 0 disproven, 0 unproven**",
            "| Pod | smoke\\|&lt;script&gt; |",
            "| Policy shop/web | abc |",
            "| allow | tcp://192.0.2.1:443 | 192.0.2.1:443 | connected | proven | 3 | +1 |",
            "| Agent | not asked",
        ] {
            assert!(page.contains(wanted), "{wanted} is not in\n{page}");
        }
        assert!(!page.contains("<script>"));
    }

    #[test]
    fn one_that_is_not_proven_fails_the_whole() {
        let mut evidence = evidence();
        evidence.checks[0].outcome = Outcome::Unproven;
        assert!(!evidence.is_proven());
        assert_eq!(evidence.verdict(), "FAILED: 1 of 2 proven, 0 disproven, 1 unproven");
        let json: serde_json::Value = serde_json::from_str(&evidence.json()).expect("it is JSON");
        assert_eq!(json["checks"][1]["seen"], "not-permitted");
        assert_eq!(json["checks"][1]["outcome"], "proven");
        assert!(evidence.table().ends_with("1 unproven\n"), "{}", evidence.table());
    }
}
