//! JSON that providers publish.

use std::{borrow::Cow, fmt};

use ipnet::IpNet;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, Visitor},
};

use super::{CUT, ParseError, prefix};
use crate::policy::document::shown;

/// Reads a document of the given form. `form` says what should be there if it is something else.
pub(super) fn read<'d, T: Deserialize<'d>>(
    provider: &'static str,
    number: usize,
    document: &'d [u8],
    form: &'static str,
) -> Result<T, ParseError> {
    serde_json::from_slice(document).map_err(|error| {
        let text = error.to_string();
        let tail = format!(" at line {} column {}", error.line(), error.column());
        let message = short(text.strip_suffix(&tail).unwrap_or(&text));
        let made = ParseError::new(provider, number, message).at(error.line(), error.column());
        match error.classify() {
            serde_json::error::Category::Eof => made.hint(CUT),
            serde_json::error::Category::Data => made.hint(form),
            serde_json::error::Category::Syntax | serde_json::error::Category::Io => {
                made.hint("this is not JSON; was something else answered?")
            }
        }
    })
}

/// Returns a message that may quote the document as a sentence of bounded length.
fn short(message: &str) -> String {
    const LONGEST: usize = 160;
    let mut short: String =
        message.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < message.len() {
        short.push('…');
    }
    short
}

/// A prefix, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prefix(pub(super) IpNet);

/// A prefix that must be IPv4.
#[derive(Clone, Copy, Debug)]
pub(super) struct V4(pub(super) IpNet);

/// A prefix that must be IPv6.
#[derive(Clone, Copy, Debug)]
pub(super) struct V6(pub(super) IpNet);

/// Text that is copied only where the document escapes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text<'d>(pub(super) Cow<'d, str>);

impl Default for Text<'_> {
    fn default() -> Self {
        Self(Cow::Borrowed(""))
    }
}

/// A number that is written as a string of digits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Digits(pub(super) u64);

struct PrefixVisitor;

impl Visitor<'_> for PrefixVisitor {
    type Value = IpNet;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a prefix such as 192.0.2.0/24")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<IpNet, E> {
        prefix(text).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(PrefixVisitor).map(Self)
    }
}

impl<'de> Deserialize<'de> for V4 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_str(PrefixVisitor)? {
            net @ IpNet::V4(_) => Ok(Self(net)),
            net @ IpNet::V6(_) => Err(D::Error::custom(format!("{net} among IPv4 prefixes"))),
        }
    }
}

impl<'de> Deserialize<'de> for V6 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_str(PrefixVisitor)? {
            net @ IpNet::V6(_) => Ok(Self(net)),
            net @ IpNet::V4(_) => Err(D::Error::custom(format!("{net} among IPv6 prefixes"))),
        }
    }
}

impl<'de: 'd, 'd> Deserialize<'de> for Text<'d> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Cow<'de, str>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(text))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(text.to_owned()))
            }
        }
        deserializer.deserialize_str(TextVisitor).map(Self)
    }
}

impl<'de> Deserialize<'de> for Digits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?;
        let number = super::number(&text.0);
        number.map(Self).ok_or_else(|| D::Error::custom(format!("{} is no number", shown(&text.0))))
    }
}
