//! GitHub: `api.github.com/meta`. Its groups of prefixes, and of domains, are the services.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{
    ParseError, Provider, checked,
    json::{self, Text},
    prefix, push,
};
use crate::policy::{
    document::{domain_pattern, shown},
    ranges::{Builder, GLOBAL, Table},
};

/// GitHub.
pub(super) struct GitHub;

const FORM: &str = "GitHub's meta has lists of prefixes such as hooks, web, api and git";

/// Known groups of prefixes. One of them with something else in it is a document that cannot be read; a list of another name whose first
/// item is no prefix, such as `ssh_keys`, is about something else.
const GROUPS: [&str; 13] = [
    "actions",
    "actions_macos",
    "api",
    "codespaces",
    "copilot",
    "dependabot",
    "git",
    "github_enterprise_importer",
    "hooks",
    "importer",
    "packages",
    "pages",
    "web",
];

/// What there must be at least.
const NEEDED: [&str; 4] = ["hooks", "web", "api", "git"];

/// The fields of an object, in order.
struct Fields<'d, V>(Vec<(Cow<'d, str>, V)>);

impl<'de: 'd, 'd, V: Deserialize<'de>> Deserialize<'de> for Fields<'d, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for All<V> {
            type Value = Vec<(Cow<'de, str>, V)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields: Self::Value = Vec::new();
                while let Some((Text(name), value)) = map.next_entry()? {
                    if fields.iter().any(|(other, _)| *other == name) {
                        let message = format!("duplicate field {}", shown(&name));
                        return Err(serde::de::Error::custom(message));
                    }
                    fields.push((name, value));
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(All(std::marker::PhantomData)).map(Fields)
    }
}

/// A value that may be a group of prefixes or the groups of domains.
enum Value<'d> {
    /// A list of strings.
    List(Vec<Cow<'d, str>>),
    Object(Fields<'d, Value<'d>>),
    Other,
}

impl<'de: 'd, 'd> Deserialize<'de> for Value<'d> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let (mut list, mut strings) = (Vec::new(), true);
                while let Some(item) = seq.next_element::<Item<'de>>()? {
                    match item {
                        Item::Text(text) => list.push(text),
                        Item::Other => strings = false,
                    }
                }
                Ok(if strings { Value::List(list) } else { Value::Other })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                Fields::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Value::Object)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Value::Other)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(Value::Other)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(Value::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Value::Other)
            }

            fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
                Ok(Value::Other)
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Value::Other)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

enum Item<'d> {
    Text(Cow<'d, str>),
    Other,
}

impl<'de: 'd, 'd> Deserialize<'de> for Item<'d> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Item<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Item::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Item::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Item::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Item::Other)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Item::Other)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(Item::Other)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(Item::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Item::Other)
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Item::Other)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl Provider for GitHub {
    fn name(&self) -> &'static str {
        "github"
    }

    fn urls(&self) -> &'static [&'static str] {
        &["https://api.github.com/meta"]
    }

    fn parse(&self, documents: &[&[u8]]) -> Result<Table, ParseError> {
        let name = self.name();
        let [document] = checked(name, documents)?;
        let Fields(fields): Fields<'_, Value<'_>> = json::read(name, 0, document, FORM)?;
        let of = |message: String| ParseError::new(name, 0, message).hint(FORM);
        if let Some(needed) = NEEDED.iter().find(|needed| !fields.iter().any(|(field, _)| field == *needed)) {
            return Err(of(format!("there is no {needed} in it")));
        }
        let mut builder = Builder::new();
        for (field, value) in &fields {
            let known = GROUPS.contains(&&**field);
            match value {
                Value::Object(groups) if field == "domains" => domains(&mut builder, groups).map_err(of)?,
                Value::List(list) => {
                    let about_prefixes = list.first().is_some_and(|first| prefix(first).is_ok());
                    if !known && !about_prefixes {
                        continue;
                    }
                    for (row, text) in list.iter().enumerate() {
                        let at =
                            |message: String| of(format!("row {} of {}: {message}", row + 1, shown(field)));
                        let cidr = prefix(text).map_err(at)?;
                        push(&mut builder, field, GLOBAL, cidr).map_err(|error| at(error.to_string()))?;
                    }
                }
                Value::Object(_) | Value::Other if known => {
                    return Err(of(format!("{field} is no list of prefixes")));
                }
                Value::Object(_) | Value::Other => {}
            }
        }
        if builder.is_empty() {
            return Err(of("there is no prefix in it".into()));
        }
        Ok(builder.finish(None))
    }
}

/// Reads the groups of domains: a list, or an object with lists in it.
fn domains(builder: &mut Builder, groups: &Fields<'_, Value<'_>>) -> Result<(), String> {
    for (group, value) in &groups.0 {
        let lists: Vec<&Vec<Cow<'_, str>>> = match value {
            Value::List(list) => vec![list],
            Value::Object(fields) => fields
                .0
                .iter()
                .filter_map(|(_, value)| match value {
                    Value::List(list) => Some(list),
                    Value::Object(_) | Value::Other => None,
                })
                .collect(),
            Value::Other => return Err(format!("domains.{} is no list", shown(group))),
        };
        for text in lists.into_iter().flatten() {
            let at = |what: &str| format!("domain {} of {} {what}", shown(text), shown(group));
            let domain = domain_pattern(text).map_err(|(what, _)| at(what))?;
            builder.push_domain(group, &domain).map_err(|error| at(&format!("is refused: {error}")))?;
        }
    }
    Ok(())
}
