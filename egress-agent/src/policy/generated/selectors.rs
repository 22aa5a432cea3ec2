//! What can be said about two label selectors without looking at any labels.

use std::collections::{BTreeMap, BTreeSet};

use crate::policy::model::{LabelSelector, Operator, Requirement};

/// Most selectors that [`without`] returns.
const MOST: usize = 8;

/// Returns a selector for what both select.
pub(super) fn both(one: &LabelSelector, other: &LabelSelector) -> LabelSelector {
    let mut all = one.clone();
    for label in &other.match_labels {
        if !all.match_labels.contains(label) {
            all.match_labels.push(label.clone());
        }
    }
    for requirement in &other.match_expressions {
        if !all.match_expressions.contains(requirement) {
            all.match_expressions.push(requirement.clone());
        }
    }
    all
}

/// Returns every condition as a requirement.
fn requirements(selector: &LabelSelector) -> impl Iterator<Item = Requirement> {
    let labels = selector
        .match_labels
        .iter()
        .map(|(key, value)| Requirement { key: key.clone(), operator: Operator::In(vec![value.clone()]) });
    labels.chain(selector.match_expressions.iter().cloned())
}

/// Returns the opposite of a requirement. One condition is always enough: `NotIn` holds for what has no such label, `In` does not.
fn not(requirement: &Requirement) -> Requirement {
    let operator = match &requirement.operator {
        Operator::In(values) => Operator::NotIn(values.clone()),
        Operator::NotIn(values) => Operator::In(values.clone()),
        Operator::Exists => Operator::DoesNotExist,
        Operator::DoesNotExist => Operator::Exists,
    };
    Requirement { key: requirement.key.clone(), operator }
}

fn and(selector: &LabelSelector, requirement: Requirement) -> LabelSelector {
    let mut all = selector.clone();
    if !all.match_expressions.contains(&requirement) {
        all.match_expressions.push(requirement);
    }
    all
}

/// What the conditions on one label leave.
#[derive(Default)]
struct Left {
    /// One of these; `None` while any value will do.
    values: Option<BTreeSet<String>>,
    not: BTreeSet<String>,
    present: bool,
    absent: bool,
}

/// Tells whether there are labels that the selector selects.
pub(super) fn satisfiable(selector: &LabelSelector) -> bool {
    let mut left: BTreeMap<String, Left> = BTreeMap::new();
    for Requirement { key, operator } in requirements(selector) {
        let left = left.entry(key).or_default();
        match operator {
            Operator::In(values) => {
                let values: BTreeSet<String> = values.into_iter().collect();
                left.present = true;
                left.values = Some(match left.values.take() {
                    Some(before) => before.intersection(&values).cloned().collect(),
                    None => values,
                });
            }
            Operator::NotIn(values) => left.not.extend(values),
            Operator::Exists => left.present = true,
            Operator::DoesNotExist => left.absent = true,
        }
    }
    left.values().all(|left| {
        let one = left.values.as_ref().is_none_or(|values| values.difference(&left.not).next().is_some());
        one && !(left.present && left.absent)
    })
}

/// Tells whether whatever `narrow` selects `wide` selects too.
pub(super) fn implies(narrow: &LabelSelector, wide: &LabelSelector) -> bool {
    requirements(wide).all(|requirement| !satisfiable(&and(narrow, not(&requirement))))
}

/// Tells whether something may be selected by both.
pub(super) fn overlap(one: &LabelSelector, other: &LabelSelector) -> bool {
    satisfiable(&both(one, other))
}

/// Returns selectors that together select what `selector` selects and none of `others` does. `None` when it takes too many.
pub(super) fn without<'s>(
    selector: &LabelSelector,
    others: impl Iterator<Item = &'s LabelSelector>,
) -> Option<Vec<LabelSelector>> {
    let mut left = vec![selector.clone()];
    for other in others {
        let mut next: Vec<LabelSelector> = Vec::new();
        for selector in left {
            if !overlap(&selector, other) {
                next.push(selector);
                continue;
            }
            for requirement in requirements(other) {
                let narrowed = and(&selector, not(&requirement));
                if satisfiable(&narrowed) && !next.contains(&narrowed) {
                    next.push(narrowed);
                }
            }
            if next.len() > MOST {
                return None;
            }
        }
        left = next;
    }
    Some(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::cluster::Labels;

    /// Every selector with at most one label and one expression, out of few words.
    fn some() -> Vec<LabelSelector> {
        let owned = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
        let operators = [
            None,
            Some(Operator::In(owned(&["x", "y"]))),
            Some(Operator::NotIn(owned(&["x"]))),
            Some(Operator::Exists),
            Some(Operator::DoesNotExist),
        ];
        let mut all = Vec::new();
        for label in [None, Some(("a", "x")), Some(("b", "y"))] {
            for key in ["a", "b"] {
                for operator in &operators {
                    all.push(LabelSelector {
                        match_labels: label.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
                        match_expressions: operator
                            .iter()
                            .map(|operator| Requirement { key: key.to_owned(), operator: operator.clone() })
                            .collect(),
                    });
                }
            }
        }
        all
    }

    fn every_label() -> Vec<Labels> {
        let values = [None, Some("x"), Some("y"), Some("z")];
        let pairs = values.iter().flat_map(|a| values.iter().map(move |b| (a, b)));
        pairs
            .map(|(a, b)| {
                let label =
                    |key: &str, value: &Option<&str>| value.map(|value| (key.to_owned(), value.to_owned()));
                label("a", a).into_iter().chain(label("b", b)).collect()
            })
            .collect()
    }

    #[test]
    fn what_is_said_without_labels_holds_for_all_labels() {
        let labels = every_label();
        for one in &some() {
            assert_eq!(satisfiable(one), labels.iter().any(|labels| one.matches(labels)), "{one:?}");
            for other in &some() {
                let joined = both(one, other);
                let left = without(one, std::iter::once(other)).expect("there are few conditions");
                let (mut implied, mut meet) = (true, false);
                for labels in &labels {
                    let (here, there) = (one.matches(labels), other.matches(labels));
                    // Two values for one label cannot be written, and select nothing.
                    assert_eq!(joined.matches(labels), here && there, "{one:?} and {other:?} on {labels:?}");
                    let some = left.iter().any(|selector| selector.matches(labels));
                    assert_eq!(some, here && !there, "{one:?} without {other:?} on {labels:?}: {left:?}");
                    implied &= !here || there;
                    meet |= here && there;
                }
                assert_eq!(implies(one, other), implied, "{one:?} implies {other:?}");
                assert_eq!(overlap(one, other), meet, "{one:?} overlaps {other:?}");
            }
        }
    }
}
