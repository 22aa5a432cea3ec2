//! The rules as an operator writes them.

use std::fmt;

use serde::Deserialize;

use super::{Field, Profile};

/// What governance asks for. Every field has a default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// The cluster's profile.
    pub profile: Profile,
    /// Whether a namespace may choose a laxer one.
    pub allow_weaker: bool,
    /// The fields that an allowed destination has to have, by itself or from the top.
    pub required: Vec<Field>,
    /// Who can be an owner; `*` stands for any characters. Empty: anybody.
    pub owners: Vec<String>,
    /// What an auditRef looks like.
    pub audit_ref: Option<Pattern>,
    /// How many days after today an exception may last.
    pub longest_days: LongestDays,
    /// The last year that an expiry may name.
    pub latest_year: u16,
    /// What is no reason, if it is all there is: without regard to case and to full stops at the end.
    pub refused_reasons: Vec<String>,
    /// An exception that ends within so many days is told.
    pub soon_days: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            profile: Profile::Off,
            allow_weaker: false,
            required: vec![
                Field::Owner,
                Field::Reason,
                Field::DataClassification,
                Field::Expiry,
                Field::AuditRef,
            ],
            owners: Vec::new(),
            audit_ref: None,
            longest_days: LongestDays::default(),
            latest_year: 2098,
            refused_reasons: ["temp", "test", "temporary", "tbd", "todo", "asap"].map(str::to_owned).to_vec(),
            soon_days: 14,
        }
    }
}

impl Config {
    /// Tells whether `owner` can be one.
    pub(super) fn owns(&self, owner: &str) -> bool {
        self.owners.is_empty() || self.owners.iter().any(|pattern| is_like(owner, pattern))
    }

    /// Tells whether `reason` is one of those that say nothing.
    pub(super) fn refuses(&self, reason: &str) -> bool {
        // Marks around it do not make it a reason, and marks alone are none, nor is a single letter.
        let plain = |text: &str| {
            let visible = text.replace(['\u{200c}', '\u{200d}'], "");
            visible.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase()
        };
        let reason = plain(reason);
        if reason.chars().filter(|c| c.is_alphanumeric()).count() < 2 {
            return true;
        }
        self.refused_reasons.iter().any(|refused| plain(refused) == reason)
    }
}

/// Most days an exception may last, by the class of its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LongestDays {
    /// Of public data.
    pub public: u16,
    /// Of internal data.
    pub internal: u16,
    /// Of confidential data.
    pub confidential: u16,
    /// Of restricted data.
    pub restricted: u16,
}

impl Default for LongestDays {
    fn default() -> Self {
        Self { public: 365, internal: 180, confidential: 90, restricted: 30 }
    }
}

impl LongestDays {
    /// Returns the number of a class; without one, the largest.
    pub(super) fn of(self, class: Option<&str>) -> u16 {
        let Self { public, internal, confidential, restricted } = self;
        match class {
            Some("public") => public,
            Some("internal") => internal,
            Some("confidential") => confidential,
            Some("restricted") => restricted,
            _ => public.max(internal).max(confidential).max(restricted),
        }
    }
}

/// A regular expression.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern(regex::Regex);

impl Pattern {
    /// Tells whether it is found in `text`.
    pub(super) fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        // Small enough that matching stays quick whatever is in it.
        regex::RegexBuilder::new(&text).size_limit(1 << 18).build().map(Self).map_err(|error| {
            // The last line says what, those above draw where.
            let error = error.to_string();
            let what = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!("{text} is no regular expression: {what}")
        })
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// Tells whether `text` is `pattern` with any characters for each `*`.
fn is_like(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().expect("a split has a first part");
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        // The first place is the best: it leaves most for the parts behind it.
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        for (text, pattern, expected) in [
            ("team-a", "team-a", true),
            ("team-ab", "team-a", false),
            ("team-ab", "team-*", true),
            ("team-", "team-*", true),
            ("xteam-a", "team-*", false),
            ("", "*", true),
            ("", "", true),
            ("a", "", false),
            ("a-b-c", "a*b*c", true),
            ("abc", "a*b*c", true),
            ("ac", "a*b*c", false),
            ("aba", "ab*ba", false),
            ("abba", "ab*ba", true),
            ("aXbXb", "a*b", true),
            ("team-é", "*-é", true),
        ] {
            assert_eq!(is_like(text, pattern), expected, "{text} like {pattern}");
        }
    }

    #[test]
    fn reasons_that_say_nothing() {
        let config = Config::default();
        for reason in [
            "temp",
            " Test ",
            "TBD...",
            "asap!",
            "temporary.",
            "temp;",
            "(temp)",
            "- temp -",
            ".",
            "x",
            "…",
            "-x-",
        ] {
            assert!(config.refuses(reason), "{reason}");
        }
        for reason in
            ["test of the card terminal", "temperature sensors", "asap, see SEC-1", "(temp) SEC-1", "QA"]
        {
            assert!(!config.refuses(reason), "{reason}");
        }
    }
}
