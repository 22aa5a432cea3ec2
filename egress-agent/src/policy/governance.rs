//! Who may open what for how long: the rules every exception has to keep, as data.

/// What happens to a policy that breaks the rules of governance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Profile {
    /// The rules are not looked at.
    #[default]
    Off,
    /// A broken rule is a warning.
    Warn,
    /// A broken rule is an error: the policy is refused.
    Required,
}

/// Tells whether something that ends at second `expires` (since the epoch, UTC; `None`: never) still holds at second `now`.
#[must_use]
pub const fn is_active(expires: Option<u64>, now: u64) -> bool {
    match expires {
        Some(end) => now < end,
        None => true,
    }
}
