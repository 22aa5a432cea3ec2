//! What an agent tells the cluster of its node: one small ConfigMap for each.
//!
//! It names the policies that select a pod of the node, and no others, so whoever adds summaries up knows both which nodes should enforce
//! a policy and which do. It is written seldom and read by one controller, and by people. What is in it was written by a node, and a node
//! may lie: about itself, and about nothing else.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{
    api::core::v1::ConfigMap,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use serde::{Deserialize, Serialize};

use crate::{
    policy::{cluster::NsName, document::is_hidden},
    ranges::publish::Sha256,
};

/// The label of every summary.
pub const LABEL: (&str, &str) = ("egress-agent.dev/summary", "node");
/// The namespace that agents ship with.
pub const NAMESPACE: &str = "egress-agent";
/// Where the summary is.
pub const KEY: &str = "summary.json";
/// The field manager of an agent.
pub const FIELD_MANAGER: &str = "egress-agent";
/// What a summary's name begins with; the node's name follows.
const PREFIX: &str = "egress-node.";
/// No summary is written that is longer, in bytes.
const MOST_WRITTEN: usize = 48 << 10;
/// Nor is one read that is.
const MOST_READ: usize = 64 << 10;
/// How many reasons there are of each sort.
const MOST_REASONS: usize = 8;
/// How long one may be, in bytes.
const MOST_REASON: usize = 300;
/// How many providers' ranges are read.
const MOST_PROVIDERS: usize = 32;
/// How long a name may be in Kubernetes.
const MOST_NAME: usize = 253;

/// What an agent tells of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Summary {
    /// The agent's version.
    pub version: String,
    /// When it was written, in seconds since the epoch by the node's clock.
    pub written: u64,
    /// Whether everything wanted is in force.
    pub ready: bool,
    /// Whether the agent takes every policy as one in audit mode, so that nothing is denied there.
    #[serde(skip_serializing_if = "is_false")]
    pub audit: bool,
    /// Why not, and what else somebody should look at: the first few.
    pub reasons: Vec<String>,
    /// The revision of each provider's ranges in force.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ranges: BTreeMap<String, String>,
    /// The policies that select a pod of this node, as `namespace/name`.
    pub policies: BTreeMap<String, Held>,
    /// How many more of them there was no room for.
    #[serde(skip_serializing_if = "is_none")]
    pub more: usize,
}

/// What holds of one policy: its revision, and pods. In JSON a list of the three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(String, u32, u32)", into = "(String, u32, u32)")]
pub struct Held {
    /// The version in force, see [`revision`]; empty for none, so that the namespace is denied by default.
    pub revision: String,
    /// How many pods it selects that have a cgroup.
    pub pods: u32,
    /// How many of them still have something older: because it does not fit, or not all it needs is known.
    pub behind: u32,
}

impl From<(String, u32, u32)> for Held {
    fn from((revision, pods, behind): (String, u32, u32)) -> Self {
        Self { revision, pods, behind }
    }
}

impl From<Held> for (String, u32, u32) {
    fn from(Held { revision, pods, behind }: Held) -> Self {
        (revision, pods, behind)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_none(count: &usize) -> bool {
    *count == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// Why an object is no summary.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// It is called otherwise.
    #[error("its name is not egress-node.NODE")]
    Name,
    /// There is none in it.
    #[error("it has no {KEY}")]
    Missing,
    /// There is too much.
    #[error("it has {0} bytes; {MOST_READ} are the most")]
    TooLong(usize),
    /// It is something else.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// Returns what stands for one version of a policy's text.
#[must_use]
pub fn revision(text: &str) -> String {
    let mut hash = Sha256::of(text.as_bytes()).to_string();
    hash.truncate(16);
    hash
}

/// Returns the name of a node's summary; nothing for a node whose own name leaves no room.
#[must_use]
pub fn name(node: &str) -> Option<String> {
    let name = format!("{PREFIX}{node}");
    (!node.is_empty() && name.len() <= MOST_NAME).then_some(name)
}

/// Returns the text in one line of at most `most` bytes, without what is invisible or reaches into a terminal.
#[must_use]
pub fn plain(text: &str, most: usize) -> String {
    let shown: Cow<'_, str> = match text.contains(is_hidden) {
        true => text.chars().map(|c| if is_hidden(c) { ' ' } else { c }).collect::<String>().into(),
        false => text.into(),
    };
    if shown.len() <= most {
        return shown.into_owned();
    }
    let mut end = most.saturating_sub('…'.len_utf8());
    while !shown.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &shown[..end])
}

impl Summary {
    /// Returns the first few of the reasons, each cut to a length.
    #[must_use]
    pub fn few(reasons: &[String]) -> Vec<String> {
        let mut few: Vec<String> =
            reasons.iter().take(MOST_REASONS).map(|reason| plain(reason, MOST_REASON)).collect();
        if reasons.len() > MOST_REASONS {
            few.push(format!("and {} more", reasons.len() - MOST_REASONS));
        }
        few
    }

    /// Returns it as JSON, with as many policies as there is room for.
    #[must_use]
    pub fn text(&self) -> String {
        let write = |summary: &Self| serde_json::to_string(summary).expect("it has text keys and no floats");
        let whole = write(self);
        if whole.len() <= MOST_WRITTEN {
            return whole;
        }
        let mut cut = Self { policies: BTreeMap::new(), more: usize::MAX, ..self.clone() };
        let mut room = MOST_WRITTEN.saturating_sub(write(&cut).len());
        for (policy, held) in &self.policies {
            let entry = serde_json::to_string(&(policy, held)).expect("it has texts and whole numbers");
            // In a map a colon stands for one of its commas, and another comma for its brackets.
            let takes = entry.len();
            let Some(left) = room.checked_sub(takes) else { break };
            room = left;
            cut.policies.insert(policy.clone(), held.clone());
        }
        cut.more = self.more + (self.policies.len() - cut.policies.len());
        write(&cut)
    }

    /// Returns the object a node tells this with. It goes with the node.
    #[must_use]
    pub fn object(name: &str, text: &str, node: OwnerReference) -> ConfigMap {
        let labels = [
            (LABEL.0.to_owned(), LABEL.1.to_owned()),
            ("app.kubernetes.io/managed-by".to_owned(), "egress-agent".to_owned()),
        ];
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(labels.into()),
                owner_references: Some(vec![node]),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(KEY.to_owned(), text.to_owned())])),
            ..ConfigMap::default()
        }
    }

    /// Returns the node an object is about, and what it tells.
    ///
    /// # Errors
    ///
    /// When it is no summary.
    pub fn read(object: ConfigMap) -> Result<(String, Self), Wrong> {
        let name = object.metadata.name.unwrap_or_default();
        let node = name.strip_prefix(PREFIX).filter(|node| !node.is_empty()).ok_or(Wrong::Name)?;
        let text = object.data.and_then(|mut data| data.remove(KEY)).ok_or(Wrong::Missing)?;
        if text.len() > MOST_READ {
            return Err(Wrong::TooLong(text.len()));
        }
        let mut read: Self =
            serde_json::from_str(&text).map_err(|error| Wrong::Unreadable(error.to_string()))?;
        read.version = plain(&read.version, 64);
        read.reasons = Self::few(&read.reasons);
        read.ranges.retain(|provider, _| provider.len() <= 64 && !provider.contains(is_hidden));
        while read.ranges.len() > MOST_PROVIDERS {
            read.ranges.pop_last();
        }
        read.ranges.values_mut().for_each(|revision| *revision = plain(revision, 64));
        for held in read.policies.values_mut() {
            held.revision = plain(&held.revision, 64);
        }
        Ok((node.to_owned(), read))
    }

    /// Returns whether it says the same as another, whenever they were written.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        let Self { version, written: _, ready, audit, reasons, ranges, policies, more } = self;
        *version == other.version
            && *ready == other.ready
            && *audit == other.audit
            && *reasons == other.reasons
            && *ranges == other.ranges
            && *policies == other.policies
            && *more == other.more
    }

    /// Returns what holds of a policy.
    #[must_use]
    pub fn held(&self, policy: &NsName) -> Option<&Held> {
        self.policies.get(&policy.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(policies: usize) -> Summary {
        let held = |number: usize| (format!("team-{number}/policy"), held("0123456789abcdef", 3, 1));
        Summary {
            version: "0.1.0".to_owned(),
            written: 1_800_000_000,
            ready: true,
            ranges: BTreeMap::from([("aws".to_owned(), "7".to_owned())]),
            policies: (0..policies).map(held).collect(),
            ..Summary::default()
        }
    }

    fn held(revision: &str, pods: u32, behind: u32) -> Held {
        Held { revision: revision.to_owned(), pods, behind }
    }

    fn object(text: &str) -> ConfigMap {
        let name = name("node-a").expect("it is short");
        Summary::object(&name, text, OwnerReference::default())
    }

    #[test]
    fn what_is_written_is_read() {
        let written = summary(2);
        let text = written.text();
        let says = r#"{"version":"0.1.0","written":1800000000,"ready":true,"reasons":[],"ranges":{"aws":"7"},"policies":{"team-0/policy":["0123456789abcdef",3,1],"team-1/policy":["0123456789abcdef",3,1]}}"#;
        assert_eq!(text, says);
        let (node, read) = Summary::read(object(&text)).expect("it is a summary");
        assert_eq!((node.as_str(), &read), ("node-a", &written));
        assert_eq!(read.held(&NsName::new("team-1", "policy")), Some(&held("0123456789abcdef", 3, 1)));
        assert!(read.says_the_same(&Summary { written: 5, ..written.clone() }));
        assert!(!read.says_the_same(&Summary { ready: false, ..written.clone() }));
        let audits = Summary { audit: true, ..written };
        assert!(!read.says_the_same(&audits) && audits.text().contains(r#""ready":true,"audit":true,"#));
        assert_eq!(Summary::read(object(&audits.text())).expect("it is a summary").1, audits);
    }

    #[test]
    fn a_summary_is_bounded_and_says_what_is_left_out() {
        let written = summary(5000);
        let text = written.text();
        assert!(text.len() <= MOST_WRITTEN && text.len() > MOST_WRITTEN * 3 / 4, "{}", text.len());
        let (_, read) = Summary::read(object(&text)).expect("it is a summary");
        assert_eq!(read.policies.len() + read.more, 5000);
        let long: Vec<String> = (0..100).map(|number| format!("{number}{}", "é".repeat(500))).collect();
        let few = Summary::few(&long);
        assert_eq!(few.len(), MOST_REASONS + 1);
        assert!(few.iter().all(|reason| reason.len() <= MOST_REASON), "{few:?}");
        assert_eq!(few.last().map(String::as_str), Some("and 92 more"));
    }

    #[test]
    fn what_a_node_writes_is_checked() {
        let mut other = object("{}");
        other.metadata.name = Some("something".to_owned());
        assert_eq!(Summary::read(other), Err(Wrong::Name));
        assert_eq!(Summary::read(ConfigMap { data: None, ..object("{}") }), Err(Wrong::Missing));
        let long = format!("{{\"version\":\"{}\"}}", "x".repeat(MOST_READ));
        assert!(matches!(Summary::read(object(&long)), Err(Wrong::TooLong(_))));
        assert!(matches!(Summary::read(object("{\"policies\":{\"a/b\":[1]}}")), Err(Wrong::Unreadable(_))));
        let hidden = r#"{"version":"\u001b[31mx","reasons":["a\nb\u202e"],"policies":{"a/b":["\u0007",1,0]},"later":{}}"#;
        let (_, read) = Summary::read(object(hidden)).expect("what is not known is passed over");
        assert_eq!(read.version, " [31mx");
        assert_eq!(read.reasons, ["a b "]);
        assert_eq!(read.policies["a/b"].revision, " ");
        let ranges = (0..1000).map(|number| (format!("made-up-{number:04}"), "1".to_owned())).collect();
        let many = Summary { ranges, ..summary(1) };
        let (_, read) = Summary::read(object(&many.text())).expect("it is a summary");
        assert_eq!(read.ranges.len(), MOST_PROVIDERS);
        let strange = r#"{"ranges":{"a\u202eb":"1","aws":"7\u001b[31m"}}"#;
        let (_, read) = Summary::read(object(strange)).expect("it is a summary");
        assert_eq!(read.ranges, BTreeMap::from([("aws".to_owned(), "7 [31m".to_owned())]));
    }

    #[test]
    fn a_name_has_to_fit() {
        assert_eq!(name("n").as_deref(), Some("egress-node.n"));
        assert!(name(&"n".repeat(241)).is_some() && name(&"n".repeat(242)).is_none() && name("").is_none());
    }
}
