//! A question (may this pod send there?) and its answer.

use std::net::IpAddr;

use egress_common::verdict::{Reason, Verdict};

use super::model::RuleName;

/// A packet as the policy sees it: where to, and with which protocol and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Destination as the pod sends it. Never a v4-mapped IPv6 address.
    pub destination: IpAddr,
    /// Protocol number as it stands on the wire (ICMPv6 is 58).
    pub protocol: u8,
    /// Destination port, host order; 0 for protocols other than TCP, UDP and SCTP.
    pub port: u16,
}

/// What the policies say about a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The rule that decided; none for local traffic, ungoverned pods and [`Reason::DefaultAllow`].
    pub rule: Option<RuleName>,
}
