//! The closed vocabulary of outcomes. Numbers are stable: they stand in pinned maps, in events and in users' logs. A retired
//! number is never used again.

/// What happens to a packet.
#[must_use]
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// It passes.
    Allow = 1,
    /// It passes, but would be denied if the audited policies were enforced; counted and reported as such.
    Audit = 2,
    /// It is dropped.
    Deny = 3,
}

impl Verdict {
    /// Returns the verdict with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Allow),
            2 => Some(Self::Audit),
            3 => Some(Self::Deny),
            _ => None,
        }
    }

    /// The word used in explanations, events and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Audit => "audit",
            Self::Deny => "deny",
        }
    }
}

/// Why a packet met its verdict.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A destination of a policy allows it.
    AllowedDestination = 1,
    /// No destination names it, and no policy that selects the pod denies by default.
    DefaultAllow = 2,
    /// It answers a connection or datagram that came to the pod.
    Reply = 3,
    /// Loopback, or the pod's own address.
    Local = 4,
    /// No policy governs the pod.
    Ungoverned = 5,
    /// The pod is not in the maps yet and the node runs in standard mode.
    Unprotected = 6,
    /// No destination allows it, and a policy denies by default.
    DefaultDeny = 16,
    /// A `deniedDestinations` entry names it.
    DeniedDestination = 17,
    /// An allowed destination would match, but it has expired.
    Expired = 18,
    /// The pod is not in the maps yet and the node runs in strict mode.
    UnknownPod = 19,
    /// The headers are truncated, contradict themselves or cannot be followed to their end.
    InvalidPacket = 20,
    /// A fragment made by hand: the kernel's own come into being only after this layer.
    Fragment = 21,
    /// The packet carries a source route, so its destination field is not where it goes.
    SourceRoute = 22,
    /// Neither IPv4 nor IPv6.
    UnknownFamily = 23,
    /// The socket could not be made to remember that it opens a connection, for want of memory; its later packets could not be
    /// told from those of a connection that came to the pod.
    NotRemembered = 24,
}

impl Reason {
    /// Returns the reason with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::AllowedDestination,
            2 => Self::DefaultAllow,
            3 => Self::Reply,
            4 => Self::Local,
            5 => Self::Ungoverned,
            6 => Self::Unprotected,
            16 => Self::DefaultDeny,
            17 => Self::DeniedDestination,
            18 => Self::Expired,
            19 => Self::UnknownPod,
            20 => Self::InvalidPacket,
            21 => Self::Fragment,
            22 => Self::SourceRoute,
            23 => Self::UnknownFamily,
            24 => Self::NotRemembered,
            _ => return None,
        })
    }

    /// The word used in explanations, events and the `reason` label of metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllowedDestination => "allowed_destination",
            Self::DefaultAllow => "default_allow",
            Self::Reply => "reply",
            Self::Local => "local",
            Self::Ungoverned => "ungoverned",
            Self::Unprotected => "unprotected",
            Self::DefaultDeny => "default_deny",
            Self::DeniedDestination => "denied_destination",
            Self::Expired => "expired",
            Self::UnknownPod => "unknown_pod",
            Self::InvalidPacket => "invalid_packet",
            Self::Fragment => "fragment",
            Self::SourceRoute => "source_route",
            Self::UnknownFamily => "unknown_family",
            Self::NotRemembered => "not_remembered",
        }
    }
}

/// How many counters each endpoint has: one for each pair of verdict and reason that is counted.
pub const CLASSES: u32 = 17;

/// Every counted pair, by its place among an endpoint's counters. [`Reason::Ungoverned`] is absent on purpose: such pods
/// are not counted, so that they cost next to nothing.
pub const COUNTED: [(Verdict, Reason); CLASSES as usize] = [
    (Verdict::Allow, Reason::AllowedDestination),
    (Verdict::Allow, Reason::DefaultAllow),
    (Verdict::Allow, Reason::Reply),
    (Verdict::Allow, Reason::Local),
    (Verdict::Allow, Reason::Unprotected),
    (Verdict::Audit, Reason::DefaultDeny),
    (Verdict::Audit, Reason::DeniedDestination),
    (Verdict::Audit, Reason::Expired),
    (Verdict::Deny, Reason::DefaultDeny),
    (Verdict::Deny, Reason::DeniedDestination),
    (Verdict::Deny, Reason::Expired),
    (Verdict::Deny, Reason::UnknownPod),
    (Verdict::Deny, Reason::InvalidPacket),
    (Verdict::Deny, Reason::Fragment),
    (Verdict::Deny, Reason::SourceRoute),
    (Verdict::Deny, Reason::UnknownFamily),
    (Verdict::Deny, Reason::NotRemembered),
];

/// Returns the place of a pair among an endpoint's counters; pairs that are not counted share the first denial's place,
/// which no code path reaches.
#[must_use]
#[inline(always)]
pub const fn class(verdict: Verdict, reason: Reason) -> u32 {
    match (verdict, reason) {
        (Verdict::Allow, Reason::AllowedDestination) => 0,
        (Verdict::Allow, Reason::DefaultAllow) => 1,
        (Verdict::Allow, Reason::Reply) => 2,
        (Verdict::Allow, Reason::Local) => 3,
        (Verdict::Allow, _) => 4,
        (Verdict::Audit, Reason::DefaultDeny) => 5,
        (Verdict::Audit, Reason::DeniedDestination) => 6,
        (Verdict::Audit, _) => 7,
        (Verdict::Deny, Reason::DeniedDestination) => 9,
        (Verdict::Deny, Reason::Expired) => 10,
        (Verdict::Deny, Reason::UnknownPod) => 11,
        (Verdict::Deny, Reason::InvalidPacket) => 12,
        (Verdict::Deny, Reason::Fragment) => 13,
        (Verdict::Deny, Reason::SourceRoute) => 14,
        (Verdict::Deny, Reason::UnknownFamily) => 15,
        (Verdict::Deny, Reason::NotRemembered) => 16,
        (Verdict::Deny, _) => 8,
    }
}

/// A judged packet: the verdict, why, and which rule decided.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What happens to the packet.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The deciding rule's slot; [`crate::policy::NO_RULE`] when no policy had a say.
    pub rule: u32,
    /// Until when the same answer holds for the same flow under the same policy, in seconds since the epoch;
    /// [`crate::policy::NEVER`] when it does not depend on the time.
    pub valid_until: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counted_pair_sits_where_class_says() {
        for (index, (verdict, reason)) in COUNTED.into_iter().enumerate() {
            assert_eq!(class(verdict, reason) as usize, index, "{verdict:?} {reason:?}");
        }
    }

    #[test]
    fn numbers_read_back_as_what_they_were_written_from() {
        for number in 0..=u8::MAX {
            if let Some(verdict) = Verdict::from_number(number) {
                assert_eq!(verdict as u8, number);
            }
            if let Some(reason) = Reason::from_number(number) {
                assert_eq!(reason as u8, number);
            }
        }
        assert_eq!(
            COUNTED.map(|(_, reason)| Reason::from_number(reason as u8)),
            COUNTED.map(|(_, reason)| Some(reason))
        );
    }
}
