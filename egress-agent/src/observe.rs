//! What `egress-agent observe` and the agent say to each other: a request, and lines of JSON until one side has had enough.
//!
//! The client sends one [`Request`] on a line. Each line of the answer is a [`Message`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
};

use egress_common::verdict::{Reason, Verdict};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::policy::recommend::Name;

/// The name of the socket in the runtime folder.
const SOCKET: &str = "observe.sock";

/// How long a request may be, its end included.
pub const MAX_REQUEST: usize = 16 * 1024;

/// Returns the path of the socket in a runtime folder.
#[must_use]
pub fn socket(runtime: &Path) -> PathBuf {
    runtime.join(SOCKET)
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// What was told lately, and what will be.
    Observe {
        /// How many of what the agent still has, the newest.
        last: usize,
        /// Whether to go on with what comes.
        follow: bool,
        /// Which.
        #[serde(default)]
        filter: Filter,
    },
    /// Which destinations the workloads of these namespaces sent to; none: of all.
    Flows {
        /// Which.
        namespaces: BTreeSet<String>,
    },
    /// How much each pod was denied and allowed, and how often each destination decided.
    Counters,
}

/// A line of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Message<E = Box<Observation>> {
    /// Something was judged.
    Event(E),
    /// So many came that this client did not read fast enough; they stood here.
    Lost(u64),
    /// A workload whose flows were seen.
    Workload(WorkloadSeen),
    /// A flow of the workload named before.
    Flow(Box<FlowSeen>),
    /// A destination of a policy.
    Entry(EntryUse),
    /// Events of workloads there was no room for.
    LeftOut(u64),
    /// The node's name.
    Node(String),
    /// A pod's counters.
    Pod(PodUse),
    /// Why there is no more.
    Error(String),
}

/// A workload whose flows were seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSeen {
    /// Its namespace.
    pub namespace: String,
    /// What it is, such as `Deployment/web`.
    pub workload: String,
    /// The labels all of its pods have that were seen, but for those that go with a pod.
    pub labels: BTreeMap<String, String>,
    /// Since when they were watched, in seconds since the epoch.
    pub since: u64,
    /// Events of further flows, for which there was no room.
    pub left_out: u64,
    /// Events that the kernel held back.
    pub held_back: u64,
}

/// A destination that a workload sent to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowSeen {
    /// The workload's namespace.
    pub namespace: String,
    /// The workload.
    pub workload: String,
    /// What happened.
    #[serde(with = "verdict")]
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
    /// The policy that decided, `namespace/name`.
    pub policy: Option<String>,
    /// The part of it that did.
    pub destination: Option<String>,
    /// Its name, or its number where it has none that policies use.
    pub protocol: String,
    /// The destination address, as far as it may be shown.
    pub to: Destination,
    /// The destination port; 0 for protocols without.
    pub port: u16,
    /// How often it was told.
    pub count: u64,
    /// What stands at the address, as far as the agent knows.
    pub name: Option<Name>,
}

/// How often a destination of a policy decided, on one node and since its counters began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryUse {
    /// The policy, `namespace/name`.
    pub policy: String,
    /// The destination.
    pub destination: String,
    /// Packets.
    pub packets: u64,
}

/// What a governed pod's packets came to since it got its counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodUse {
    /// Its namespace; null for the pods nobody knows, which are counted as one.
    pub namespace: Option<String>,
    /// Its name; null likewise.
    pub pod: Option<String>,
    /// What it belongs to; null likewise.
    pub workload: Option<String>,
    /// Verdict, reason and packets, where there were any.
    pub packets: Vec<(String, String, u64)>,
}

/// Packets or calls of a pod that were judged alike: one that is new, or all that came again since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observation {
    /// When the last of them was, RFC 3339 in UTC, to the microsecond.
    pub time: String,
    /// The pod's namespace; null for a pod nobody knows, as are the next two.
    pub namespace: Option<String>,
    /// The pod.
    pub pod: Option<String>,
    /// What it belongs to, such as `Deployment/web`.
    pub workload: Option<String>,
    /// What happened to them.
    #[serde(with = "verdict")]
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
    /// The policy that decided, `namespace/name`.
    pub policy: Option<String>,
    /// The part of it that did.
    pub destination: Option<String>,
    /// `packet`, `connect` or `sendmsg`.
    pub hook: String,
    /// Its name, or its number where it has none that policies use.
    pub protocol: String,
    /// Null at the hooks that do not know it.
    pub source: Option<String>,
    /// 0 likewise.
    pub source_port: u16,
    /// The destination address, as far as it may be shown.
    pub to: Destination,
    /// The destination port; 0 for protocols without.
    pub port: u16,
    /// The length of the packet; 0 for calls.
    pub bytes: u32,
    /// Events of this pod that the kernel held back before this one.
    pub suppressed: u32,
    /// How many this stands for.
    pub count: u64,
    /// The allow rule that came closest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Nearest>,
}

/// The allow rule that came closest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Nearest {
    /// The policy, `namespace/name`.
    pub policy: String,
    /// The part of it.
    pub destination: String,
    /// Why it did not let this pass.
    pub why: String,
}

/// A verdict by its word.
mod verdict {
    use egress_common::verdict::Verdict;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(verdict.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Verdict, D::Error> {
        let word = String::deserialize(deserializer)?;
        super::verdict_of(&word).ok_or_else(|| de::Error::custom("no verdict has this name"))
    }
}

/// Returns the verdict with this word.
#[must_use]
pub fn verdict_of(word: &str) -> Option<Verdict> {
    [Verdict::Allow, Verdict::Audit, Verdict::Deny].into_iter().find(|verdict| verdict.as_str() == word)
}

/// Returns the reason with this word.
#[must_use]
pub fn reason_of(word: &str) -> Option<Reason> {
    (0..=u8::MAX).filter_map(Reason::from_number).find(|reason| reason.as_str() == word)
}

/// How much of destination addresses is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mask {
    /// All.
    #[default]
    Off,
    /// The first 24 bits of an IPv4 address, the first 48 of an IPv6 one.
    Prefix,
    /// Nothing.
    All,
}

impl Mask {
    /// Returns what may be shown of an address.
    ///
    /// # Panics
    ///
    /// Never: the lengths are those of prefixes.
    #[must_use]
    pub fn show(self, address: IpAddr) -> Destination {
        const LENGTHS: &str = "24 bits of 32, 48 of 128";
        match (self, address) {
            (Self::Off, _) => Destination::Known(address.into()),
            (Self::Prefix, IpAddr::V4(address)) => {
                Destination::Known(Ipv4Net::new(address, 24).expect(LENGTHS).trunc().into())
            }
            (Self::Prefix, IpAddr::V6(address)) => {
                Destination::Known(Ipv6Net::new(address, 48).expect(LENGTHS).trunc().into())
            }
            (Self::All, _) => Destination::Masked,
        }
    }
}

/// A destination address, as far as it may be shown: as text an address, a prefix, or `masked`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// An address, or the prefix it is in.
    Known(IpNet),
    /// Nothing of it is told.
    Masked,
}

impl Destination {
    /// Returns the address, if all of it is known.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Known(net) if net.prefix_len() == net.max_prefix_len() => Some(net.addr()),
            _ => None,
        }
    }

    /// Returns it with a port, as people write the two.
    #[must_use]
    pub fn with_port(&self, port: u16) -> String {
        match self {
            _ if port == 0 => self.to_string(),
            Self::Known(net) if net.addr().is_ipv6() => format!("[{self}]:{port}"),
            _ => format!("{self}:{port}"),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(net) if net.prefix_len() == net.max_prefix_len() => write!(f, "{}", net.addr()),
            Self::Known(net) => write!(f, "{net}"),
            Self::Masked => f.write_str(MASKED),
        }
    }
}

/// What stands for an address that is masked.
const MASKED: &str = "masked";

impl Serialize for Destination {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Destination {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == MASKED {
            return Ok(Self::Masked);
        }
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(|net| Self::Known(net.trunc()))
            .map_err(|_| serde::de::Error::custom("neither an address nor a prefix"))
    }
}

impl Default for Destination {
    fn default() -> Self {
        Self::Known(IpAddr::V6(Ipv6Addr::UNSPECIFIED).into())
    }
}

/// Which observations are wanted: those that each field admits, and an empty one admits all.
///
/// Without verdicts, all but the allowed ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Filter {
    /// Namespaces of pods.
    pub namespaces: BTreeSet<String>,
    /// Names of pods.
    pub pods: BTreeSet<String>,
    /// Policies, as `name` or `namespace/name`.
    pub policies: BTreeSet<String>,
    /// Words of reasons.
    pub reasons: BTreeSet<String>,
    /// Destination ports.
    pub ports: BTreeSet<u16>,
    /// Words of verdicts.
    pub verdicts: BTreeSet<String>,
}

impl Filter {
    /// Returns whether allowed observations are wanted.
    #[must_use]
    pub fn wants_allowed(&self) -> bool {
        self.verdicts.contains(Verdict::Allow.as_str())
    }

    /// Returns whether this one is wanted.
    #[must_use]
    pub fn admits(&self, seen: &Observation) -> bool {
        let among = |wanted: &BTreeSet<String>, word: Option<&str>| {
            wanted.is_empty() || word.is_some_and(|word| wanted.contains(word))
        };
        let policy = seen.policy.as_deref();
        let verdict = match self.verdicts.is_empty() {
            true => seen.verdict != Verdict::Allow,
            false => self.verdicts.contains(seen.verdict.as_str()),
        };
        verdict
            && among(&self.namespaces, seen.namespace.as_deref())
            && among(&self.pods, seen.pod.as_deref())
            && (among(&self.policies, policy)
                || among(&self.policies, policy.and_then(|policy| Some(policy.split_once('/')?.1))))
            && among(&self.reasons, Some(&seen.reason))
            && (self.ports.is_empty() || self.ports.contains(&seen.port))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns a denial of the pod `shop/web`.
    pub(crate) fn denial(to: &str, port: u16) -> Observation {
        Observation {
            time: "2026-11-22T03:49:48.524041Z".to_owned(),
            namespace: Some("shop".to_owned()),
            pod: Some("web".to_owned()),
            workload: Some("Deployment/web".to_owned()),
            verdict: Verdict::Deny,
            reason: "default_deny".to_owned(),
            policy: Some("shop/policy".to_owned()),
            destination: Some("(default)".to_owned()),
            hook: "connect".to_owned(),
            protocol: "TCP".to_owned(),
            source: None,
            source_port: 0,
            to: Mask::Off.show(to.parse().expect("an address")),
            port,
            bytes: 0,
            suppressed: 0,
            count: 1,
            nearest: None,
        }
    }

    #[test]
    fn a_message_reads_as_it_was_written() {
        let event = Message::Event(Box::new(denial("192.0.2.9", 443)));
        for message in [event, Message::Lost(7), Message::Error("no more".to_owned())] {
            let text = serde_json::to_string(&message).expect("it is JSON");
            assert_eq!(serde_json::from_str::<Message>(&text).expect("it was just written"), message);
        }
        let text = serde_json::to_string(&denial("2001:db8::1", 443)).expect("it is JSON");
        assert!(text.contains(r#""verdict":"deny""#) && text.contains(r#""to":"2001:db8::1""#), "{text}");
        assert!(!text.contains("nearest"), "{text}");
    }

    #[test]
    fn a_mask_shows_no_more_than_it_says() {
        let show = |mask: Mask, text: &str| mask.show(text.parse().expect("an address")).to_string();
        assert_eq!(show(Mask::Off, "192.0.2.9"), "192.0.2.9");
        assert_eq!(show(Mask::Prefix, "192.0.2.9"), "192.0.2.0/24");
        assert_eq!(show(Mask::Prefix, "2001:db8:1:2::9"), "2001:db8:1::/48");
        assert_eq!(show(Mask::All, "192.0.2.9"), "masked");
        for mask in [Mask::Off, Mask::Prefix, Mask::All] {
            for address in ["192.0.2.9", "2001:db8:1:2::9"] {
                let shown = mask.show(address.parse().expect("an address"));
                let text = serde_json::to_string(&shown).expect("it is JSON");
                assert_eq!(serde_json::from_str::<Destination>(&text).expect("it was just written"), shown);
            }
        }
        let with_port = |mask: Mask, text: &str| mask.show(text.parse().expect("an address")).with_port(443);
        assert_eq!(with_port(Mask::Off, "2001:db8::1"), "[2001:db8::1]:443");
        assert_eq!(with_port(Mask::Prefix, "192.0.2.9"), "192.0.2.0/24:443");
    }

    #[test]
    fn a_filter_admits_what_every_field_admits() {
        let seen = denial("192.0.2.9", 443);
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>();
        let filter = |change: fn(&mut Filter, BTreeSet<String>), is: &[&str]| {
            let mut filter = Filter::default();
            change(&mut filter, words(is));
            filter.admits(&seen)
        };
        assert!(Filter::default().admits(&seen));
        assert!(filter(|filter, is| filter.namespaces = is, &["till", "shop"]));
        assert!(!filter(|filter, is| filter.namespaces = is, &["till"]));
        assert!(!filter(|filter, is| filter.pods = is, &["we"]));
        assert!(filter(|filter, is| filter.policies = is, &["shop/policy"]));
        assert!(filter(|filter, is| filter.policies = is, &["policy"]));
        assert!(!filter(|filter, is| filter.policies = is, &["till/policy"]));
        assert!(!filter(|filter, is| filter.reasons = is, &["expired"]));
        assert!(!filter(|filter, is| filter.verdicts = is, &["allow", "audit"]));
        let port = |port| Filter { ports: BTreeSet::from([port]), ..Filter::default() }.admits(&seen);
        assert!(port(443) && !port(80));
        let nobody = Observation { namespace: None, pod: None, policy: None, ..seen.clone() };
        assert!(Filter::default().admits(&nobody));
        assert!(!Filter { pods: words(&["web"]), ..Filter::default() }.admits(&nobody));
        let allowed = Observation { verdict: Verdict::Allow, ..seen };
        assert!(!Filter::default().admits(&allowed), "only on request");
        assert!(Filter { verdicts: words(&["allow"]), ..Filter::default() }.admits(&allowed));
    }

    #[test]
    fn words_name_what_there_is() {
        for number in 0..=u8::MAX {
            if let Some(reason) = Reason::from_number(number) {
                assert_eq!(reason_of(reason.as_str()), Some(reason));
            }
            if let Some(verdict) = Verdict::from_number(number) {
                assert_eq!(verdict_of(verdict.as_str()), Some(verdict));
            }
        }
        assert_eq!((reason_of("why"), verdict_of("perhaps")), (None, None));
    }
}
