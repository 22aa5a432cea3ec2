//! Label selectors and the names of Kubernetes.

use std::collections::BTreeSet;

use super::{
    context::{Context, Slot, shown},
    json::Value,
};
use crate::policy::model::{LabelSelector, Operator, Requirement};

/// Reads a label selector.
pub(super) fn read(cx: &mut Context<'_>, slot: &Slot<'_>) -> Option<LabelSelector> {
    let fields = cx.object(slot, &["matchLabels", "matchExpressions"])?;
    let mut selector = LabelSelector::default();
    if let Some(slot) = fields.get("matchLabels")
        && let Some(labels) = cx.fields(&slot)
    {
        for member in labels.in_order() {
            let slot = Slot::new(&member.value, labels.path(&member.key));
            check_key(cx, member.key_span.start, &slot.path, &member.key);
            if let Some(value) = value(cx, &slot) {
                selector.match_labels.push((member.key.clone(), value));
            }
        }
    }
    if let Some(slot) = fields.get("matchExpressions")
        && let Some(items) = cx.list(&slot)
    {
        selector.match_expressions = items.iter().filter_map(|item| requirement(cx, item)).collect();
    }
    // Their order means nothing, so a selector that is written in another one is the same.
    selector.match_labels.sort_unstable();
    selector.match_expressions.sort_by(|one, other| one.key.cmp(&other.key));
    Some(selector)
}

/// Tells whether a selector is written without any condition. One whose conditions are wrong is not.
pub(super) fn is_written_empty(slot: &Slot<'_>) -> bool {
    match &slot.node.value {
        Value::Object(members) => members.iter().all(|member| match &member.value.value {
            Value::Object(members) => members.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => false,
        }),
        _ => false,
    }
}

#[derive(Clone, Copy)]
enum Word {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

const OPERATORS: [(&str, Word); 4] = [
    ("In", Word::In),
    ("NotIn", Word::NotIn),
    ("Exists", Word::Exists),
    ("DoesNotExist", Word::DoesNotExist),
];

fn requirement(cx: &mut Context<'_>, slot: &Slot<'_>) -> Option<Requirement> {
    let fields = cx.object(slot, &["key", "operator", "values"])?;
    let key = match fields.get("key") {
        None => {
            cx.error(slot, "Missing field: key");
            None
        }
        Some(slot) => {
            let key = cx.string(&slot);
            if let Some(key) = key {
                check_key(cx, slot.at(), &slot.path, key);
            }
            key
        }
    };
    let word = match fields.get("operator") {
        None => {
            cx.error(slot, "Missing field: operator").hint =
                Some("one of In, NotIn, Exists, DoesNotExist".into());
            None
        }
        Some(slot) => cx.word(&slot, "operator", &OPERATORS),
    };
    let given = fields.get("values");
    let items = match &given {
        None => Some(Vec::new()),
        Some(slot) => cx.list(slot),
    };
    let values =
        items.as_ref().map(|items| items.iter().filter_map(|item| value(cx, item)).collect::<BTreeSet<_>>());
    let (key, word, items, values) = (key?, word?, items?, values?);
    let named = || OPERATORS[word as usize].0;
    let operator = match word {
        Word::In | Word::NotIn if given.is_none() => {
            cx.error(slot, "Missing field: values").hint = Some(format!("{} needs at least one", named()));
            return None;
        }
        Word::In | Word::NotIn if items.is_empty() => {
            let slot = given.as_ref().unwrap_or(slot);
            cx.error(slot, "Empty list: values").hint = Some(format!("{} needs at least one", named()));
            return None;
        }
        Word::Exists | Word::DoesNotExist if !items.is_empty() => {
            let slot = given.as_ref().unwrap_or(slot);
            cx.error(slot, format!("{} takes no values", named())).hint = Some("leave values out".into());
            return None;
        }
        Word::In => Operator::In(Vec::from_iter(values)),
        Word::NotIn => Operator::NotIn(Vec::from_iter(values)),
        Word::Exists => Operator::Exists,
        Word::DoesNotExist => Operator::DoesNotExist,
    };
    Some(Requirement { key: key.to_owned(), operator })
}

fn value(cx: &mut Context<'_>, slot: &Slot<'_>) -> Option<String> {
    let text = cx.string(slot)?;
    if text.is_empty() || is_label_part(text) {
        return Some(text.to_owned());
    }
    cx.error(slot, format!("Invalid label value: {}", shown(text))).hint = Some(LABEL_RULE.into());
    None
}

const LABEL_RULE: &str =
    "up to 63 letters, digits, '-', '_' and '.', with a letter or digit at the beginning and the end";

fn check_key(cx: &mut Context<'_>, at: usize, path: &str, key: &str) {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if !is_label_part(name) || prefix.is_some_and(|prefix| !is_subdomain(prefix)) {
        let finding = cx.error_at(at, path, format!("Invalid label key: {}", shown(key)));
        finding.hint = Some(if is_label_part(name) {
            "what stands before '/' is a lower-case DNS name".into()
        } else {
            LABEL_RULE.into()
        });
    }
}

/// Tells whether `text` can be a label's value or the name in its key.
fn is_label_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        && bytes[0].is_ascii_alphanumeric()
        && bytes[bytes.len() - 1].is_ascii_alphanumeric()
}

/// Tells whether `text` is a DNS-1123 subdomain.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(|label| is_dns_label_of(label, usize::MAX))
}

/// Tells whether `text` is a DNS-1123 label, as names of namespaces and Services are. (Before Kubernetes 1.33 a Service's
/// name had to begin with a letter.)
pub(super) fn is_dns_label(text: &str) -> bool {
    is_dns_label_of(text, 63)
}

fn is_dns_label_of(text: &str, longest: usize) -> bool {
    !text.is_empty()
        && text.len() <= longest
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-')
}
