//! Labels, packed: a cluster has many pods, and equal labels are shared by the pods of one template.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Serialize, Serializer};

/// Labels of an object. Cheap to clone; equal ones may share their place in memory.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Option<Arc<Packed>>);

/// All keys and values in one text, the pairs in the order of their keys.
#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Packed {
    text: Box<str>,
    /// Where each key and each value ends.
    ends: Box<[(u32, u32)]>,
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
        let mut start = 0;
        self.0.iter().flat_map(|packed| packed.ends.iter().map(|ends| (&packed.text, ends))).map(
            move |(text, &(key_end, value_end))| {
                let (key_end, value_end) = (key_end as usize, value_end as usize);
                let pair = (&text[start..key_end], &text[key_end..value_end]);
                start = value_end;
                pair
            },
        )
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
        let mut text = String::with_capacity(labels.iter().map(|(key, value)| key.len() + value.len()).sum());
        let mut place = |part: &str| {
            text.push_str(part);
            u32::try_from(text.len()).expect("an object has fewer than 4 GiB of labels")
        };
        let ends = labels.iter().map(|(key, value)| (place(key), place(value))).collect();
        Self(Some(Arc::new(Packed { text: text.into(), ends })))
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
