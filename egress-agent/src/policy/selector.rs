//! What a label selector matches, with Kubernetes' meaning.

use super::{
    cluster::Labels,
    model::{LabelSelector, Operator, Requirement},
};

/// The label every namespace has, with its name as the value.
pub const METADATA_NAME: &str = "kubernetes.io/metadata.name";

impl LabelSelector {
    /// Returns whether an object with these labels is selected.
    ///
    /// Every part must hold, so an empty selector holds for everything.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value.as_str()))
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }

    /// Returns whether it has no conditions, so that it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }
}

impl Requirement {
    /// Returns whether this one condition holds.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.iter().any(|listed| listed == value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.iter().any(|listed| listed == value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// Returns what is wrong with a label's key, if anything: an optional DNS name and `/`, then up to 63 letters, digits,
/// `-`, `_` and `.`, beginning and ending with a letter or digit.
#[must_use]
pub fn key_fault(key: &str) -> Option<&'static str> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if let Some(prefix) = prefix {
        let label = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !part.starts_with('-')
                && !part.ends_with('-')
        };
        if prefix.len() > 253 || !prefix.split('.').all(label) {
            return Some("the part before `/` must be a DNS name in lower case");
        }
    }
    if name.is_empty() {
        return Some("a label key must not be empty");
    }
    qualified_fault(name)
}

/// Returns what is wrong with a label's value, if anything: empty, or the same as the name part of a key.
#[must_use]
pub fn value_fault(value: &str) -> Option<&'static str> {
    if value.is_empty() { None } else { qualified_fault(value) }
}

fn qualified_fault(name: &str) -> Option<&'static str> {
    if name.len() > 63 {
        return Some("at most 63 characters are allowed");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Some("only letters, digits, `-`, `_` and `.` are allowed");
    }
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    if !edge(name.as_bytes().first()) || !edge(name.as_bytes().last()) {
        return Some("it must begin and end with a letter or digit");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn strings(values: &[&str]) -> Vec<String> {
        values.iter().map(|v| (*v).to_owned()).collect()
    }

    #[test]
    fn an_empty_selector_matches_everything() {
        assert!(LabelSelector::default().matches(&labels(&[])));
        assert!(LabelSelector::default().matches(&labels(&[("a", "b")])));
        assert!(LabelSelector::default().is_empty());
    }

    #[test]
    fn match_labels_need_every_pair() {
        let selector = LabelSelector {
            match_labels: vec![("app".into(), "web".into()), ("tier".into(), String::new())],
            match_expressions: Vec::new(),
        };
        for (pairs, expected) in [
            (&[("app", "web"), ("tier", "")][..], true),
            (&[("app", "web"), ("tier", ""), ("more", "x")], true),
            (&[("app", "web")], false),
            (&[("app", "web"), ("tier", "x")], false),
            (&[("app", "Web"), ("tier", "")], false),
            (&[], false),
        ] {
            assert_eq!(selector.matches(&labels(pairs)), expected, "labels {pairs:?}");
        }
    }

    #[test]
    fn every_operator_follows_the_upstream_table() {
        let values = || strings(&["a", "b"]);
        let absent: &[(&str, &str)] = &[("other", "a")];
        let listed: &[(&str, &str)] = &[("k", "a")];
        let unlisted: &[(&str, &str)] = &[("k", "c")];
        for (operator, on_absent, on_listed, on_unlisted) in [
            (Operator::In(values()), false, true, false),
            (Operator::NotIn(values()), true, false, true),
            (Operator::Exists, false, true, true),
            (Operator::DoesNotExist, true, false, false),
        ] {
            let requirement = Requirement { key: "k".into(), operator };
            for (pairs, expected) in [(absent, on_absent), (listed, on_listed), (unlisted, on_unlisted)] {
                assert_eq!(
                    requirement.matches(&labels(pairs)),
                    expected,
                    "{:?} against {pairs:?}",
                    requirement.operator
                );
            }
        }
    }

    #[test]
    fn labels_and_expressions_must_both_hold() {
        let selector = LabelSelector {
            match_labels: vec![("app".into(), "web".into())],
            match_expressions: vec![
                Requirement { key: "env".into(), operator: Operator::NotIn(strings(&["dev"])) },
                Requirement { key: "zone".into(), operator: Operator::Exists },
            ],
        };
        assert!(selector.matches(&labels(&[("app", "web"), ("zone", "z")])));
        assert!(!selector.matches(&labels(&[("app", "web"), ("zone", "z"), ("env", "dev")])));
        assert!(!selector.matches(&labels(&[("app", "web")])));
        assert!(!selector.matches(&labels(&[("zone", "z")])));
    }

    #[test]
    fn keys_and_values_are_checked_like_upstream() {
        for key in ["app", "app.kubernetes.io/name", "a", "A_b-c.d", "example.com/A"] {
            assert_eq!(key_fault(key), None, "{key}");
        }
        let long = "a".repeat(64);
        for key in ["", " app", "app ", "-a", "a-", "/a", "a/", "A.com/a", "a/b/c", "a..b/c", &long] {
            assert!(key_fault(key).is_some(), "{key}");
        }
        for value in ["", "a", "1.0", "A_b"] {
            assert_eq!(value_fault(value), None, "{value}");
        }
        for value in [" ", "a b", "-a", "a.", "a/b", &long] {
            assert!(value_fault(value).is_some(), "{value}");
        }
    }
}
