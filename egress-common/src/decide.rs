//! From a looked-up rule entry to a verdict. The kernel programs and the simulator run this same function; the reference
//! model does not, so that a mistake here shows.

use crate::{
    endpoint::{Endpoint, flags},
    policy::{NEVER, NO_RULE, RuleEntry, candidate},
    verdict::{Decision, Reason, Verdict},
};

/// Tells whether a deadline has come. The kernel compares ticks, everybody else seconds.
pub trait Clock {
    /// Returns true from `deadline` on (seconds since the epoch, not [`NEVER`]).
    fn reached(&self, deadline: u64) -> bool;
}

/// A point in time, in seconds since the epoch.
#[derive(Clone, Copy, Debug)]
pub struct At(pub u64);

impl Clock for At {
    fn reached(&self, deadline: u64) -> bool {
        self.0 >= deadline
    }
}

#[inline(always)]
fn active<C: Clock>(entry: &RuleEntry, index: usize, clock: &C) -> bool {
    entry.rules[index] != NO_RULE
        && (entry.deadlines[index] == NEVER || !clock.reached(entry.deadlines[index]))
}

/// Decides about a packet of a governed endpoint whose destination and ports found `entry` (or nothing).
///
/// Precedence, in this order:
/// 1. an active denied destination of an enforcing policy: deny;
/// 2. an active allowed destination of an enforcing policy: allow, or audit if an audited policy denies that destination;
/// 3. enforcing policies deny by default: deny (as expired, if an allow of theirs has ended);
/// 4. nothing enforced stands against it; had the audited policies been enforced: their denied destination, then their allowed
///    one, then their default decide between audit and allow.
#[inline(always)]
pub fn decide<C: Clock>(entry: Option<&RuleEntry>, endpoint: &Endpoint, clock: &C) -> Decision {
    let Some(entry) = entry else { return by_default(endpoint, NO_RULE, NO_RULE, NEVER) };
    let mut valid_until = NEVER;
    let mut dead = [false; 4];
    let mut index = 0;
    while index < 4 {
        if !active(entry, index, clock) {
            dead[index] = true;
        } else if entry.deadlines[index] < valid_until {
            valid_until = entry.deadlines[index];
        }
        index += 1;
    }
    let [deny, allow, audit_deny, audit_allow] = entry.rules;
    // 1.
    if !dead[candidate::DENY] {
        return Decision {
            verdict: Verdict::Deny,
            reason: Reason::DeniedDestination,
            rule: deny,
            valid_until,
        };
    }
    // 2.
    if !dead[candidate::ALLOW] {
        if !dead[candidate::AUDIT_DENY] {
            return Decision {
                verdict: Verdict::Audit,
                reason: Reason::DeniedDestination,
                rule: audit_deny,
                valid_until,
            };
        }
        return Decision {
            verdict: Verdict::Allow,
            reason: Reason::AllowedDestination,
            rule: allow,
            valid_until,
        };
    }
    // 4. (3. and the defaults of 4. follow in `by_default`)
    if endpoint.flags & flags::DEFAULT_DENY == 0 {
        if !dead[candidate::AUDIT_DENY] {
            return Decision {
                verdict: Verdict::Audit,
                reason: Reason::DeniedDestination,
                rule: audit_deny,
                valid_until,
            };
        }
        if !dead[candidate::AUDIT_ALLOW] {
            return Decision {
                verdict: Verdict::Allow,
                reason: Reason::AllowedDestination,
                rule: audit_allow,
                valid_until,
            };
        }
    }
    by_default(endpoint, allow, audit_allow, valid_until)
}

/// Decides where no active rule does. `expired` and `audit_expired` are allows that have ended, or [`NO_RULE`].
#[inline(always)]
fn by_default(endpoint: &Endpoint, expired: u32, audit_expired: u32, valid_until: u64) -> Decision {
    if endpoint.flags & flags::DEFAULT_DENY != 0 {
        let (reason, rule) = ended(expired, endpoint.default_rule);
        return Decision { verdict: Verdict::Deny, reason, rule, valid_until };
    }
    if endpoint.flags & flags::AUDIT_DEFAULT_DENY != 0 {
        let (reason, rule) = ended(audit_expired, endpoint.audit_default_rule);
        return Decision { verdict: Verdict::Audit, reason, rule, valid_until };
    }
    Decision { verdict: Verdict::Allow, reason: Reason::DefaultAllow, rule: NO_RULE, valid_until }
}

#[inline(always)]
fn ended(expired: u32, default_rule: u32) -> (Reason, u32) {
    if expired == NO_RULE { (Reason::DefaultDeny, default_rule) } else { (Reason::Expired, expired) }
}
