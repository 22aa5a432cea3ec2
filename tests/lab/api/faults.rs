//! Faults that the double commits on demand.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use super::{counts::Verb, kinds::Kind};

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The answer begins only after a time.
    Delay(Duration),
    /// A watch event is sent only after a time.
    SlowEvent(Duration),
    /// The answer is an error: 429, 500, 503, 403 or whichever code.
    Refuse {
        /// The HTTP status.
        code: u16,
        /// Seconds, in the `Retry-After` header and in the body.
        retry_after: Option<u32>,
    },
    /// The connection ends: in a watch instead of the next event, in a list amid the body, else before the answer.
    Cut,
    /// A watch answers that its version is too old: with an `ERROR` event of code 410, then the stream ends.
    Gone,
    /// A watch that asks for the initial state gets an `ERROR` event of code 500, as with an etcd that is too old for it.
    NoWatchList,
    /// As [`Fault::Gone`], but amid a watch, instead of the next event.
    GoneLater,
    /// A list answers that its continue token is too old.
    ExpiredContinue,
    /// A watch event is sent twice.
    Duplicate,
    /// A watch event is sent after the next one of another object; alone, after a fifth of a second.
    Swap,
    /// A line that is no JSON is sent instead of a watch event.
    Malformed,
    /// An object that fits no kind is sent: instead of the first item of a list, or of the object in a watch event.
    Odd,
    /// A watch never sends anything and never ends; another request is never answered.
    Silence,
}

/// How often a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// Each time it can.
    Always,
    /// The first so many times it can.
    Times(u32),
    /// Once, after it could have so many times.
    After(u32),
    /// Each time with this probability.
    Chance(f64),
}

/// A fault, and where and when it strikes.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Only for this verb.
    pub verb: Option<Verb>,
    /// Only for this kind.
    pub kind: Option<Kind>,
    /// How often.
    pub when: When,
    /// What goes wrong.
    pub fault: Fault,
}

/// Names a rule that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleId(usize);

#[derive(Debug)]
struct Live {
    rule: Rule,
    on: bool,
    /// How often it could have struck, and how often it did.
    chances: u64,
    strikes: u64,
}

#[derive(Debug)]
struct State {
    rules: Vec<Live>,
    random: u64,
}

/// The faults in force.
#[derive(Debug)]
pub struct Faults(Mutex<State>);

impl Default for Faults {
    fn default() -> Self {
        Self(Mutex::new(State { rules: Vec::new(), random: 1 }))
    }
}

impl Rule {
    /// Returns a rule for all verbs and kinds.
    #[must_use]
    pub fn new(fault: Fault, when: When) -> Self {
        Self { verb: None, kind: None, when, fault }
    }

    /// Returns the rule for one verb only.
    #[must_use]
    pub fn verb(self, verb: Verb) -> Self {
        Self { verb: Some(verb), ..self }
    }

    /// Returns the rule for one kind only.
    #[must_use]
    pub fn kind(self, kind: Kind) -> Self {
        Self { kind: Some(kind), ..self }
    }
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no thread panics with the lock held")
    }

    /// Starts the random numbers of [`When::Chance`] anew.
    pub fn seed(&self, seed: u64) {
        self.state().random = seed;
    }

    /// Puts a rule in force, after those that are.
    pub fn add(&self, rule: Rule) -> RuleId {
        let mut state = self.state();
        state.rules.push(Live { rule, on: true, chances: 0, strikes: 0 });
        RuleId(state.rules.len() - 1)
    }

    /// Takes a rule out of force; what it did is still known.
    pub fn remove(&self, id: RuleId) {
        self.state().rules[id.0].on = false;
    }

    /// Takes all rules out of force.
    pub fn clear(&self) {
        for live in &mut self.state().rules {
            live.on = false;
        }
    }

    /// Returns how often a rule struck.
    #[must_use]
    pub fn strikes(&self, id: RuleId) -> u64 {
        self.state().rules[id.0].strikes
    }

    /// Returns the first fault among some that strikes now.
    pub(super) fn strike(&self, verb: Verb, kind: Kind, fits: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let mut state = self.state();
        let State { rules, random } = &mut *state;
        for live in rules.iter_mut().filter(|live| live.on && fits(&live.rule.fault)) {
            let rule = &live.rule;
            if rule.verb.is_some_and(|wanted| wanted != verb)
                || rule.kind.is_some_and(|wanted| wanted != kind)
            {
                continue;
            }
            let chances = live.chances;
            live.chances += 1;
            let strikes = match rule.when {
                When::Always => true,
                When::Times(times) => chances < u64::from(times),
                When::After(times) => chances == u64::from(times),
                When::Chance(probability) => chance(random) < probability,
            };
            if strikes {
                live.strikes += 1;
                return Some(rule.fault.clone());
            }
        }
        None
    }
}

/// Returns the next random number from 0 to 1 (splitmix64).
fn chance(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut number = *state;
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^= number >> 31;
    let high = u32::try_from(number >> 32).expect("half of the bits fit");
    f64::from(high) / f64::from(u32::MAX)
}
