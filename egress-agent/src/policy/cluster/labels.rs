//! Labels, packed: a cluster has many pods, and equal labels are shared by the pods of one template.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Serialize, Serializer};

/// Labels of an object. Cheap to clone; equal ones may share their place in memory.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Option<Arc<Box<str>>>);

/// Appends a part of labels to their text: its length, then the part. The length is in digits of six bits, the lowest first, each a
/// character below 128 of which the seventh bit says that more follow; most parts have one.
fn push(text: &mut String, part: &str) {
    let mut length = part.len();
    loop {
        let digit = u8::try_from(length & 0x3f).expect("it has six bits");
        length >>= 6;
        if length == 0 {
            text.push(char::from(digit));
            break;
        }
        text.push(char::from(digit | 0x40));
    }
    text.push_str(part);
}

/// Takes the first part off a text that [`push`] has made.
fn pop<'a>(text: &mut &'a str) -> &'a str {
    let (mut length, mut digits) = (0, 0);
    for digit in text.bytes() {
        length |= usize::from(digit & 0x3f) << (6 * digits);
        digits += 1;
        if digit & 0x40 == 0 {
            break;
        }
    }
    let part;
    (part, *text) = text[digits..].split_at(length);
    part
}

impl Labels {
    /// Returns no labels.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns the value of a label.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(label, _)| *label == key).map(|(_, value)| value)
    }

    /// Returns whether the label is there.
    #[must_use]
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Returns keys and values in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest = self.0.as_ref().map_or("", |text| text);
        std::iter::from_fn(move || (!rest.is_empty()).then(|| (pop(&mut rest), pop(&mut rest))))
    }

    /// Returns the same labels and `key`, unless that is there already.
    #[must_use]
    pub fn or_with(&self, key: &str, value: &str) -> Self {
        if self.contains_key(key) {
            return self.clone();
        }
        let pairs = self.iter().chain([(key, value)]);
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// Returns whether these are `other`'s very labels, or there are none on both sides. Equal labels need not be the same.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// Returns whether nobody else shares them. Of no labels, `true`.
    #[must_use]
    pub fn is_unshared(&self) -> bool {
        self.0.as_ref().is_none_or(|packed| Arc::strong_count(packed) == 1)
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        if labels.is_empty() {
            return Self::new();
        }
        let mut text =
            String::with_capacity(labels.iter().map(|(key, value)| key.len() + value.len() + 3).sum());
        for part in labels.iter().flat_map(|(key, value)| [key, value]) {
            push(&mut text, part);
        }
        Self(Some(Arc::new(text.into())))
    }
}

impl<const N: usize> From<[(String, String); N]> for Labels {
    fn from(labels: [(String, String); N]) -> Self {
        BTreeMap::from(labels).into()
    }
}

impl FromIterator<(String, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(labels: I) -> Self {
        labels.into_iter().collect::<BTreeMap<_, _>>().into()
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn labels_come_out_as_they_went_in() {
        for pairs in
            [&[][..], &[("", "")], &[("a", "b")], &[("a", ""), ("ab", "c\0d"), ("b", "é"), ("c\0", "a")]]
        {
            let labels = mk_labels(pairs);
            assert_eq!(labels.iter().collect::<Vec<_>>(), pairs);
            for (key, value) in pairs {
                assert_eq!(labels.get(key), Some(*value));
            }
            assert_eq!(labels.is_empty(), pairs.is_empty());
            assert_eq!(labels.get("absent"), None);
        }
    }

    #[test]
    fn parts_of_every_length_come_out() {
        for length in [0, 1, 62, 63, 64, 65, 127, 128, 4095, 4096, 4097, 300_000] {
            let (key, value) = ("k".repeat(length), "é".repeat(length));
            let labels = mk_labels(&[("a", &value), (&format!("b{key}"), "x")]);
            let pairs: Vec<(&str, &str)> = labels.iter().collect();
            assert_eq!(pairs, [("a", value.as_str()), (format!("b{key}").as_str(), "x")], "{length}");
        }
    }

    #[test]
    fn where_a_key_ends_is_part_of_the_labels() {
        assert_ne!(mk_labels(&[("a", "bc")]), mk_labels(&[("ab", "c")]));
        assert_eq!(mk_labels(&[("a", "1"), ("b", "2")]), mk_labels(&[("b", "2"), ("a", "1")]));
    }

    #[test]
    fn a_label_is_added_only_where_it_is_missing() {
        let labels = mk_labels(&[("b", "1")]);
        assert_eq!(labels.or_with("a", "2"), mk_labels(&[("a", "2"), ("b", "1")]));
        assert_eq!(labels.or_with("b", "2"), labels);
    }
}
