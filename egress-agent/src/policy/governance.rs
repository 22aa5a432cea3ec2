//! Who may open what for how long: the rules every exception has to keep, as data.
//!
//! An exception is an allowed destination. Nothing here takes a policy out of force; a [`Profile`] says whether what is found
//! keeps it from being admitted.

mod config;
#[cfg(test)]
mod tests;
mod update;

use std::collections::HashMap;

use egress_common::decide::{At, Clock as _};
use jiff::{
    Span, Timestamp,
    civil::{Date, date},
};

pub use self::config::{Config, LongestDays, Pattern};
pub(crate) use self::update::{Kept, are_in, is_among, plain, port_is_in};
use super::{
    document::{Destination, Reading, nearest, shown},
    finding::{Finding, Severity},
    model::{Effect, Policy, Rule},
};

/// What happens to a policy that breaks the rules of governance. The order is from lax to strict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// The rules are not looked at; only what has ended, or soon will, is told.
    #[default]
    Off,
    /// A broken rule is a warning.
    Warn,
    /// A broken rule is an error: the policy is refused.
    Required,
}

impl Profile {
    /// All of them, from lax to strict.
    pub const ALL: [Self; 3] = [Self::Off, Self::Warn, Self::Required];

    /// Returns the word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::Required => "required",
        }
    }
}

/// The annotation of a Namespace that names its profile.
pub const ANNOTATION: &str = "egress-agent.dev/governance";

/// Returns the profile of a namespace: the one its [`ANNOTATION`] names, which may be laxer than the cluster's only with
/// `allow_weaker`. A word that is no profile leaves the cluster's, and is told.
#[must_use]
pub fn profile(cluster: Profile, annotation: Option<&str>, allow_weaker: bool) -> (Profile, Option<Finding>) {
    let Some(word) = annotation else { return (cluster, None) };
    let Some(own) = Profile::ALL.into_iter().find(|profile| profile.as_str() == word) else {
        let words = Profile::ALL.map(Profile::as_str);
        let hint = match nearest(word, words.into_iter()) {
            Some(word) => format!("did you mean {word}?"),
            None => format!("one of {}", words.join(", ")),
        };
        let message =
            format!("Unknown profile in the annotation {ANNOTATION} of the namespace: {}", shown(word));
        let finding = Finding {
            severity: Severity::Warning,
            path: String::new(),
            line: 0,
            column: 0,
            message,
            hint: Some(hint),
            rule: None,
        };
        return (cluster, Some(finding));
    };
    (if allow_weaker { own } else { own.max(cluster) }, None)
}

/// Tells whether something that ends at second `expires` (since the epoch, UTC; `None`: never) still holds at second `now`.
///
/// It asks the clock that [`egress_common::decide`] is given outside the kernel, so that both mean the same second. The kernel
/// compares ticks, and [`reference`](super::reference) has its own comparison on purpose, to find this one wrong.
#[must_use]
pub fn is_active(expires: Option<u64>, now: u64) -> bool {
    expires.is_none_or(|end| !At(now).reached(end))
}

/// A field of governance. The order is that of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Field {
    /// Who is answerable.
    Owner,
    /// Why it is needed.
    Reason,
    /// What it is limited to.
    Scope,
    /// How sensitive the data is that goes there.
    DataClassification,
    /// Until when it holds.
    Expiry,
    /// Where the decision is recorded.
    AuditRef,
}

impl Field {
    /// Returns its name in a document.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Reason => "reason",
            Self::Scope => "scope",
            Self::DataClassification => "dataClassification",
            Self::Expiry => "expiry",
            Self::AuditRef => "auditRef",
        }
    }

    /// Returns the rule that a destination without it breaks.
    const fn missing(self) -> &'static RuleInfo {
        match self {
            Self::Owner => &MISSING_OWNER,
            Self::Reason => &MISSING_REASON,
            Self::Scope => &MISSING_SCOPE,
            Self::DataClassification => &MISSING_CLASS,
            Self::Expiry => &MISSING_EXPIRY,
            Self::AuditRef => &MISSING_AUDIT_REF,
        }
    }
}

/// A rule of governance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// Its name, never given to another one.
    pub id: &'static str,
    /// What it asks for.
    pub title: &'static str,
    /// How bad it is under [`Profile::Required`]. Under [`Profile::Warn`] everything is a warning.
    pub severity: Severity,
    /// What to do where it is broken.
    pub remediation: &'static str,
}

const fn error(id: &'static str, title: &'static str, remediation: &'static str) -> RuleInfo {
    RuleInfo { id, title, severity: Severity::Error, remediation }
}

/// See its title.
pub const MISSING_OWNER: RuleInfo = error(
    "GOV-0001",
    "An exception has an owner",
    "name the team that answers for it, here or in governance at the top",
);
/// See its title.
pub const MISSING_REASON: RuleInfo = error("GOV-0002", "An exception has a reason", "say why it is needed");
/// See its title.
pub const MISSING_AUDIT_REF: RuleInfo =
    error("GOV-0003", "An exception has an auditRef", "name the ticket or decision that approved it");
/// See its title.
pub const MISSING_CLASS: RuleInfo = error(
    "GOV-0004",
    "An exception has a dataClassification",
    "say what data goes there: public, internal, confidential or restricted",
);
/// See its title.
pub const MISSING_EXPIRY: RuleInfo =
    error("GOV-0005", "An exception has an expiry", "say until when it is needed, such as 2027-03-31");
/// See its title.
pub const MISSING_SCOPE: RuleInfo =
    error("GOV-0006", "An exception has a scope", "say what it is limited to");
/// See its title.
pub const UNKNOWN_OWNER: RuleInfo =
    error("GOV-0007", "The owner is a known one", "name a team from the list of owners");
/// See its title.
pub const BAD_AUDIT_REF: RuleInfo =
    error("GOV-0008", "The auditRef has the form of one", "name the ticket or decision that approved it");
/// See its title.
pub const REFUSED_REASON: RuleInfo =
    error("GOV-0009", "The reason says why", "say what the destination is needed for");
/// See its title.
pub const TOO_LONG: RuleInfo = error(
    "GOV-0010",
    "An exception ends within the time its dataClassification allows",
    "choose an earlier expiry, and renew it when it comes near",
);
/// See its title.
pub const TOO_FAR: RuleInfo = error(
    "GOV-0011",
    "An expiry is not a year that means never",
    "choose a date at which somebody looks at it again",
);
/// See its title.
pub const EXPIRED: RuleInfo =
    error("GOV-0012", "An exception has not ended", "renew its expiry or remove it");
/// See its title.
pub const ENDS_SOON: RuleInfo = RuleInfo {
    id: "GOV-0013",
    title: "An exception does not end within the next days",
    severity: Severity::Warning,
    remediation: "renew its expiry in time, or remove it",
};

/// All rules, in the order of their names.
pub const RULES: [RuleInfo; 13] = [
    MISSING_OWNER,
    MISSING_REASON,
    MISSING_AUDIT_REF,
    MISSING_CLASS,
    MISSING_EXPIRY,
    MISSING_SCOPE,
    UNKNOWN_OWNER,
    BAD_AUDIT_REF,
    REFUSED_REASON,
    TOO_LONG,
    TOO_FAR,
    EXPIRED,
    ENDS_SOON,
];

const DAY: u64 = 24 * 60 * 60;

/// Adds what the rules of governance have to say about a document, if its text and meaning are right.
///
/// `old` is the policy it takes the place of. What an entry of the same name broke already stays a warning, as long as it is
/// neither extended nor widened.
pub fn add(config: &Config, profile: Profile, reading: &mut Reading<'_>, old: Option<&Policy>, now: u64) {
    let Some(policy) = &reading.policy else { return };
    let mut kept = Kept::new(policy, old.filter(|_| profile == Profile::Required), now);
    let mut found = Found { profile, list: Vec::new(), inherited: HashMap::new() };
    for (rule, destination) in policy.rules.iter().zip(&reading.destinations) {
        let judged = Judged { config, rule, destination, now };
        judged.ends(&mut found, &mut kept);
        if profile != Profile::Off && rule.effect == Effect::Allow {
            judged.fields(&mut found, &mut kept);
        }
    }
    for (at, finding) in found.list {
        reading.add(at, finding);
    }
}

/// What was found, with the bytes it is about.
struct Found {
    profile: Profile,
    list: Vec<(usize, Finding)>,
    /// Where in `list` stands what was said of a field at the top, by its rule and place: it is said once for all that inherit it.
    inherited: HashMap<(&'static str, usize), usize>,
}

/// A rule of a policy, and what it is judged by.
struct Judged<'a> {
    config: &'a Config,
    rule: &'a Rule,
    destination: &'a Destination,
    now: u64,
}

impl Judged<'_> {
    /// Says of a rule that it has ended, or soon will.
    fn ends(&self, found: &mut Found, kept: &mut Kept<'_>) {
        let Self { config, rule, now, .. } = *self;
        let Some(expires) = rule.expires else { return };
        let name = &rule.name;
        if !is_active(rule.expires, now) {
            let message = format!("Expired: {name} matches nothing since {}", when(expires));
            let excused = rule.effect == Effect::Deny || kept.is_no_wider(rule);
            self.say(found, &EXPIRED, None, message, None, excused);
        } else if rule.effect == Effect::Allow && expires - now <= u64::from(config.soon_days) * DAY {
            let message = format!("Ends soon: {name} matches nothing from {} on", when(expires));
            self.say(found, &ENDS_SOON, None, message, None, true);
        }
    }

    fn fields(&self, found: &mut Found, kept: &mut Kept<'_>) {
        let Self { config, rule, now, .. } = *self;
        for field in &config.required {
            if value(rule, *field).is_none() {
                let message = format!("Missing governance: {}", field.as_str());
                let hint = (*field == Field::Expiry)
                    .then(|| format!("{}; {}", MISSING_EXPIRY.remediation, self.latest_hint()));
                self.say(found, field.missing(), None, message, hint, kept.is_unchanged(rule, &[*field]));
            }
        }
        let governance = &rule.governance;
        if let Some(owner) = &governance.owner
            && !config.owns(owner)
        {
            let message = format!("Unknown owner: {}", shown(owner));
            let hint = match nearest(owner, config.owners.iter().map(String::as_str)) {
                Some(owner) => format!("did you mean {owner}?"),
                None => format!("one of {}", few(&config.owners)),
            };
            let excused = kept.is_unchanged(rule, &[Field::Owner]);
            self.say(found, &UNKNOWN_OWNER, Some(Field::Owner), message, Some(hint), excused);
        }
        if let (Some(text), Some(pattern)) = (&governance.audit_ref, &config.audit_ref)
            && !pattern.matches(text)
        {
            let message = format!("Invalid auditRef: {}", shown(text));
            let hint = format!("it has the form {pattern}");
            let excused = kept.is_unchanged(rule, &[Field::AuditRef]);
            self.say(found, &BAD_AUDIT_REF, Some(Field::AuditRef), message, Some(hint), excused);
        }
        if let Some(reason) = &governance.reason
            && config.refuses(reason)
        {
            let message = format!("Not a reason: {}", shown(reason));
            let excused = kept.is_unchanged(rule, &[Field::Reason]);
            self.say(found, &REFUSED_REASON, Some(Field::Reason), message, None, excused);
        }
        let Some(expires) = rule.expires.filter(|_| is_active(rule.expires, now)) else { return };
        let excused = kept.is_unchanged(rule, &[Field::DataClassification]);
        if last_year(expires) > i64::from(config.latest_year) {
            let message = format!("Expiry too far: {} is after {}", last_day(expires), config.latest_year);
            self.say(found, &TOO_FAR, Some(Field::Expiry), message, Some(self.latest_hint()), excused);
        } else if expires > self.latest() {
            let days = (expires - 1) / DAY - now / DAY;
            let message = format!("Expiry too far: {} is {days} days from now", last_day(expires));
            self.say(found, &TOO_LONG, Some(Field::Expiry), message, Some(self.latest_hint()), excused);
        }
    }

    /// Returns the second at which it has to end: its class's number of days after today, at the end of the day.
    fn latest(&self) -> u64 {
        let days = self.config.longest_days.of(self.rule.governance.data_classification.as_deref());
        (self.now / DAY + u64::from(days) + 1).saturating_mul(DAY)
    }

    fn latest_hint(&self) -> String {
        let class = self.rule.governance.data_classification.as_deref();
        let days = self.config.longest_days.of(class);
        let date = last_day(self.latest());
        match class {
            Some(class) => format!("with {class} data it may last {days} days, to {date}"),
            None => format!("it may last {days} days, to {date}"),
        }
    }

    /// Adds a finding at a field's value, or at the destination.
    fn say(
        &self,
        found: &mut Found,
        info: &'static RuleInfo,
        field: Option<Field>,
        message: String,
        hint: Option<String>,
        excused: bool,
    ) {
        let severity = match (found.profile, excused) {
            (Profile::Required, false) => info.severity,
            _ => Severity::Warning,
        };
        let place = field.and_then(|field| self.destination.field(field));
        let (path, at) = place.unwrap_or_else(|| (self.destination.path.clone(), self.destination.at));
        if path.starts_with("governance.") {
            let index = *found.inherited.entry((info.id, at)).or_insert(found.list.len());
            if let Some((_, said)) = found.list.get_mut(index) {
                // The same words may be an error for one destination and excused for another.
                said.severity = said.severity.min(severity);
                return;
            }
        }
        let hint = Some(hint.unwrap_or_else(|| info.remediation.to_owned()));
        let rule = Some(info.id.to_owned());
        found.list.push((at, Finding { severity, path, line: 0, column: 0, message, hint, rule }));
    }
}

/// Returns the text of a field; of an expiry, whatever is not empty.
pub(super) fn value(rule: &Rule, field: Field) -> Option<&str> {
    let governance = &rule.governance;
    match field {
        Field::Owner => governance.owner.as_deref(),
        Field::Reason => governance.reason.as_deref(),
        Field::Scope => governance.scope.as_deref(),
        Field::DataClassification => governance.data_classification.as_deref(),
        Field::Expiry => rule.expires.map(|_| "given"),
        Field::AuditRef => governance.audit_ref.as_deref(),
    }
}

/// Returns the first few of a list in words.
fn few(list: &[String]) -> String {
    const MOST: usize = 5;
    let more = if list.len() > MOST { ", …" } else { "" };
    list.iter().take(MOST).map(String::as_str).collect::<Vec<_>>().join(", ") + more
}

/// Returns a second as a time in UTC.
pub(crate) fn when(second: u64) -> String {
    let time = i64::try_from(second).map(Timestamp::from_second);
    match (time, day(second)) {
        (Ok(Ok(time)), _) => time.to_string(),
        // The last hours of the calendar are no timestamps, because some zone is beyond it by then.
        (_, Some(day)) => day.to_string(),
        (_, None) => format!("second {second}"),
    }
}

/// Returns the day, in UTC, of which a second is part; `None` after the year 9999.
fn day(second: u64) -> Option<Date> {
    let Ok(days) = i32::try_from(second / DAY) else { return None };
    let Ok(since) = Span::new().try_days(days) else { return None };
    let Ok(day) = date(1970, 1, 1).checked_add(since) else { return None };
    Some(day)
}

/// Returns the last day that what ends at second `end` has a part of.
fn last_day(end: u64) -> String {
    day(end.saturating_sub(1)).map_or_else(|| format!("second {end}"), |day| day.to_string())
}

fn last_year(end: u64) -> i64 {
    day(end.saturating_sub(1)).map_or(i64::MAX, |day| day.year().into())
}
