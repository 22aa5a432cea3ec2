//! What is answered to an AdmissionReview: bytes in, bytes out. Knows no network, no clock and no API server.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    check::{Judgement, Rules, Subject},
    k8s::convert::{MANAGED, POLICY_KEY},
    policy::{cluster::NsName, finding::Finding, governance::Profile},
};

/// The version of AdmissionReviews that is understood.
const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// Longest warning, in characters: what the API's documentation recommends, and what a server cuts to when there are many.
const WARNING_CHARS: usize = 256;
/// Most warnings of an answer. A server drops what goes beyond 4096 characters together.
const WARNINGS: usize = 15;
/// Longest value of an audit annotation, in characters.
const ANNOTATION_CHARS: usize = 1024;

/// What became of a review, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// The policy may be written.
    Allowed,
    /// It may not, for what it says.
    Refused,
    /// There is no policy in it to judge.
    Ignored,
    /// It is no review that can be answered.
    Invalid,
    /// It could not be judged, and is refused for that.
    Failed,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Allowed, Self::Refused, Self::Ignored, Self::Invalid, Self::Failed];

    /// Returns the lower-case word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Ignored => "ignored",
            Self::Invalid => "invalid",
            Self::Failed => "failed",
        }
    }
}

/// An answer that can be sent: an AdmissionReview, and how it is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The JSON of the AdmissionReview.
    pub body: Vec<u8>,
    /// What became of it.
    pub verdict: Verdict,
}

/// Why bytes are no review. There is then nobody whose review could be answered, only an HTTP request.
#[derive(Debug, thiserror::Error)]
pub enum NotAReview {
    /// They are no JSON of the right shape.
    #[error("this is not an AdmissionReview of {API_VERSION}: {0}")]
    Json(#[source] serde_json::Error),
    /// They are something else.
    #[error(
        "this is {kind} of {version}, not an {KIND} of {API_VERSION}; the webhook configuration must list admissionReviewVersions: [v1]"
    )]
    Other {
        /// The `kind` it says it is.
        kind: String,
        /// The `apiVersion` it says it has.
        version: String,
    },
    /// It asks nothing.
    #[error("this AdmissionReview has no request")]
    NoRequest,
    /// Nobody could match the answer with it.
    #[error("the request of this AdmissionReview has no uid")]
    NoUid,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(borrow, default)]
    request: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    kind: GroupKind,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    sub_resource: Option<String>,
    // What is in them is read once it is known to be a ConfigMap.
    #[serde(borrow, default)]
    object: Option<&'a RawValue>,
    #[serde(borrow, default)]
    old_object: Option<&'a RawValue>,
}

#[derive(Debug, Default, Deserialize)]
struct GroupKind {
    #[serde(default)]
    group: String,
    #[serde(default)]
    kind: String,
}

/// What matters of a ConfigMap.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigMap {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
    #[serde(default)]
    binary_data: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

impl ConfigMap {
    fn is_managed(&self) -> bool {
        let labels = self.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(MANAGED.0)).is_some_and(|value| value == MANAGED.1)
    }

    fn policy(&self) -> Option<&str> {
        self.data.as_ref()?.get(POLICY_KEY).map(String::as_str)
    }
}

/// How governance is taken in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Governance {
    /// The profile.
    pub profile: Profile,
    /// What is doubtful about how the namespace names it.
    pub notice: Option<Finding>,
}

/// A review that has been read.
#[derive(Debug)]
pub struct Review {
    uid: String,
    id: NsName,
    what: What,
}

/// What a review is about.
#[derive(Debug)]
enum What {
    /// A ConfigMap with the label, and the one before it, if that had the label, too.
    Policy { new: Box<ConfigMap>, old: Option<ConfigMap> },
    /// A ConfigMap that had the label and is to have it no longer.
    Released,
    /// Nothing of ours.
    Other,
    /// Something that cannot be judged, for this reason.
    Odd(String),
}

impl Review {
    /// Reads the body of a request.
    ///
    /// # Errors
    ///
    /// [`NotAReview`], when there is no review in it that can be answered.
    pub fn read(bytes: &[u8]) -> Result<Self, NotAReview> {
        let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(NotAReview::Json)?;
        if envelope.api_version != API_VERSION || envelope.kind != KIND {
            let word = |text: String, none: &str| {
                if text.is_empty() { none.to_owned() } else { brief(&text, 100) }
            };
            return Err(NotAReview::Other {
                kind: word(envelope.kind, "something without a kind"),
                version: word(envelope.api_version, "no version"),
            });
        }
        let request = envelope.request.ok_or(NotAReview::NoRequest)?;
        let request: Request<'_> = serde_json::from_str(request.get()).map_err(NotAReview::Json)?;
        if request.uid.is_empty() {
            return Err(NotAReview::NoUid);
        }
        let (what, name) = match about(&request) {
            Ok(what) => what,
            Err(odd) => (What::Odd(odd), None),
        };
        let name = request.name.filter(|name| !name.is_empty()).or(name).unwrap_or_default();
        let id = NsName::new(request.namespace.as_deref().unwrap_or_default(), &name);
        Ok(Self { uid: request.uid, id, what })
    }

    /// Returns the namespace whose profile of governance matters for the judgement, if any does.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        matches!(self.what, What::Policy { .. }).then_some(&*self.id.namespace)
    }

    /// Judges it at second `now`.
    #[must_use]
    pub fn judge(&self, rules: &Rules, governance: &Governance, now: u64) -> Answer {
        match &self.what {
            What::Other => self.answer(Verdict::Ignored, None, &[], BTreeMap::new()),
            What::Odd(why) => {
                let status = Status::new(400, "BadRequest", format!("Policy validation failed: {why}"));
                self.answer(Verdict::Refused, Some(status), &[], BTreeMap::new())
            }
            What::Released => {
                let warning = format!(
                    "without the label {}={} the ConfigMap {} is no policy any more: what it allowed or denied ends",
                    MANAGED.0, MANAGED.1, self.id
                );
                let audit = BTreeMap::from([("policy", "released".to_owned())]);
                self.answer(Verdict::Allowed, None, &[warning], audit)
            }
            What::Policy { new, old } => self.judge_policy(new, old.as_ref(), rules, governance, now),
        }
    }

    fn judge_policy(
        &self,
        new: &ConfigMap,
        old: Option<&ConfigMap>,
        rules: &Rules,
        governance: &Governance,
        now: u64,
    ) -> Answer {
        let profile = governance.profile;
        let old_text = old.and_then(ConfigMap::policy);
        let judgement = match new.policy() {
            Some(text) => rules.judge(&Subject { id: &self.id, text, old: old_text, profile }, now),
            None => Judgement { policy: None, findings: vec![missing_key(new)] },
        };
        let mut warnings = Vec::new();
        let mut soft: Vec<&Finding> = judgement.warnings().collect();
        // What a rule of the house says comes first, then the rest, each in the order of the text.
        soft.sort_by_key(|finding| finding.rule.is_none());
        let unchanged = old.is_some() && old_text == new.policy();
        let message = judgement.message();
        let verdict = match &message {
            Some(_) if !unchanged => Verdict::Refused,
            _ => Verdict::Allowed,
        };
        if let Some(message) = message.as_ref().filter(|_| unchanged) {
            // Otherwise nobody could take a finalizer or an annotation off once a rule has become stricter.
            warnings.push(format!("let through because the policy does not change: {message}"));
        }
        warnings.extend(governance.notice.as_ref().map(Finding::to_string));
        warnings.extend(ignored_keys(new));
        warnings.extend(soft.into_iter().map(Finding::to_string));
        let status = message.filter(|_| !unchanged).map(|message| Status::new(422, "Invalid", message));
        self.answer(verdict, status, &warnings, audit(&judgement, profile, unchanged))
    }

    /// Returns the answer that refuses it because it could not be judged.
    #[must_use]
    pub fn failed(&self, code: u16, reason: &'static str, why: &str) -> Answer {
        let status = Status::new(code, reason, format!("Policy could not be validated: {why}"));
        self.answer(Verdict::Failed, Some(status), &[], BTreeMap::new())
    }

    fn answer(
        &self,
        verdict: Verdict,
        status: Option<Status>,
        warnings: &[String],
        audit_annotations: BTreeMap<&'static str, String>,
    ) -> Answer {
        let response = Response {
            uid: &self.uid,
            allowed: status.is_none(),
            status,
            warnings: bounded(warnings),
            audit_annotations,
        };
        let body = Written { api_version: API_VERSION, kind: KIND, response };
        let body = serde_json::to_vec(&body).expect("text and numbers can be written as JSON");
        Answer { body, verdict }
    }
}

/// Returns what a request is about, and the name of its object.
fn about(request: &Request<'_>) -> Result<(What, Option<String>), String> {
    if !request.kind.group.is_empty() || request.kind.kind != "ConfigMap" {
        let GroupKind { group, kind } = &request.kind;
        let group = if group.is_empty() { "core" } else { group };
        return Err(format!(
            "only ConfigMaps are judged here, not {} of the group {}; the webhook configuration must say so",
            brief(kind, 100),
            brief(group, 100)
        ));
    }
    if request.sub_resource.as_ref().is_some_and(|part| !part.is_empty()) {
        return Err("ConfigMaps have no subresource".to_owned());
    }
    let operation = request.operation.as_str();
    if operation == "DELETE" {
        // Who may delete a policy is a question of rights, not of its text.
        return Ok((What::Other, None));
    }
    let read = |raw: Option<&RawValue>, which: &str| -> Result<ConfigMap, String> {
        let raw = raw.ok_or_else(|| format!("the {operation} request has no {which}"))?;
        // The library would take a list of fields as well.
        if !raw.get().starts_with('{') {
            return Err(format!("{which} is no ConfigMap: it is no JSON object"));
        }
        serde_json::from_str(raw.get()).map_err(|error| format!("{which} is no ConfigMap: {error}"))
    };
    let old = match operation {
        "CREATE" => None,
        "UPDATE" => Some(read(request.old_object, "oldObject")?).filter(ConfigMap::is_managed),
        other => return Err(format!("{} is none of CREATE, UPDATE and DELETE", brief(other, 100))),
    };
    let mut new = read(request.object, "object")?;
    let name = new.metadata.name.take();
    let what = match (new.is_managed(), old) {
        // A text that was no policy before has no past that counts.
        (true, old) => What::Policy { new: Box::new(new), old },
        (false, Some(_)) => What::Released,
        (false, None) => What::Other,
    };
    Ok((what, name))
}

/// Says that a policy is not where it must be. The agent says the same.
fn missing_key(map: &ConfigMap) -> Finding {
    let mut finding = crate::policy::index::missing_key();
    if map.binary_data.as_ref().is_some_and(|data| data.contains_key(POLICY_KEY)) {
        finding.hint = Some("it stands under binaryData: put it under data, as text in UTF-8".to_owned());
    }
    finding
}

/// Warns of keys beside the policy's.
fn ignored_keys(map: &ConfigMap) -> Option<String> {
    let data = map.data.iter().flat_map(BTreeMap::keys);
    let keys: Vec<&str> = data
        .chain(map.binary_data.iter().flat_map(BTreeMap::keys))
        .map(String::as_str)
        .filter(|key| *key != POLICY_KEY)
        .collect();
    let (first, rest) = keys.split_at(keys.len().min(3));
    match rest.len() {
        _ if first.is_empty() => None,
        0 => Some(format!("only the key {POLICY_KEY} is read; ignored: {}", first.join(", "))),
        more => {
            Some(format!("only the key {POLICY_KEY} is read; ignored: {} and {more} more", first.join(", ")))
        }
    }
}

/// Returns what goes into the audit log. The server puts the webhook's name before each key.
fn audit(judgement: &Judgement, profile: Profile, unchanged: bool) -> BTreeMap<&'static str, String> {
    let mut audit = BTreeMap::from([("governance", profile.as_str().to_owned())]);
    if unchanged {
        audit.insert("policy", "unchanged".to_owned());
    }
    let errors = judgement.findings.iter().filter(|finding| finding.is_error()).count();
    let warnings = judgement.findings.len() - errors;
    for (key, count) in [("errors", errors), ("warnings", warnings)] {
        if count > 0 {
            audit.insert(key, count.to_string());
        }
    }
    for (key, is_error) in [("refused-by", true), ("warned-by", false)] {
        let mut rules: Vec<&str> = judgement
            .findings
            .iter()
            .filter(|finding| finding.is_error() == is_error)
            .filter_map(|finding| finding.rule.as_deref())
            .collect();
        rules.sort_unstable();
        rules.dedup();
        if !rules.is_empty() {
            audit.insert(key, brief(&rules.join(","), ANNOTATION_CHARS));
        }
    }
    audit
}

/// Cuts a text to so many characters, and takes control characters out, which no HTTP header may hold.
fn brief(text: &str, chars: usize) -> String {
    let clean =
        |text: &str| -> String { text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect() };
    match text.char_indices().nth(chars) {
        None => clean(text),
        Some(_) => {
            let end = text.char_indices().nth(chars - 1).map_or(text.len(), |(at, _)| at);
            clean(&text[..end]) + "…"
        }
    }
}

/// Cuts warnings to what a server passes on.
fn bounded(warnings: &[String]) -> Vec<String> {
    let more = warnings.len().saturating_sub(WARNINGS);
    let kept = if more > 0 { WARNINGS - 1 } else { WARNINGS };
    let mut result: Vec<String> =
        warnings.iter().take(kept).map(|warning| brief(warning, WARNING_CHARS)).collect();
    if more > 0 {
        result.push(format!("and {} more warnings; `egress-agent validate` tells every one", more + 1));
    }
    result
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: BTreeMap<&'static str, String>,
}

/// What kubectl shows of a refusal.
#[derive(Serialize)]
struct Status {
    status: &'static str,
    code: u16,
    reason: &'static str,
    message: String,
}

impl Status {
    fn new(code: u16, reason: &'static str, message: String) -> Self {
        Self { status: "Failure", code, reason, message }
    }
}

#[cfg(test)]
mod tests;
