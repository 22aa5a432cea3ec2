//! Google: `cloud.json`, what customers of Google Cloud have, and `goog.json`, all that is Google's.
//!
//! Service `cloud` is the first, with its scopes as regions; service `services` is what the second has beyond it: the addresses of
//! Google's own APIs. Copies that others make of these files without `syncToken` are refused: nothing would tell an old one from a new
//! one.

use ipnet::IpNet;
use serde::Deserialize;

use super::{
    ParseError, Provider, checked,
    json::{self, Digits, Text, V4, V6},
    push,
};
use crate::policy::ranges::{Builder, GLOBAL, Table};

/// Google and Google Cloud.
pub(super) struct Google;

const FORM: &str = "Google's cloud.json and goog.json have syncToken, and ipv4Prefix or ipv6Prefix; copies with ipPrefix are not read";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document<'d> {
    sync_token: Digits,
    #[serde(borrow)]
    prefixes: Vec<Entry<'d>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'d> {
    ipv4_prefix: Option<V4>,
    ipv6_prefix: Option<V6>,
    #[serde(borrow, default)]
    scope: Option<Text<'d>>,
}

impl Entry<'_> {
    fn net(&self) -> Option<IpNet> {
        match (self.ipv4_prefix, self.ipv6_prefix) {
            (Some(net), None) => Some(net.0),
            (None, Some(net)) => Some(net.0),
            (None, None) | (Some(_), Some(_)) => None,
        }
    }
}

impl Provider for Google {
    fn name(&self) -> &'static str {
        "google"
    }

    fn urls(&self) -> &'static [&'static str] {
        &["https://www.gstatic.com/ipranges/cloud.json", "https://www.gstatic.com/ipranges/goog.json"]
    }

    fn parse(&self, documents: &[&[u8]]) -> Result<Table, ParseError> {
        let name = self.name();
        let [cloud, all] = checked(name, documents)?;
        let cloud: Document<'_> = json::read(name, 0, cloud, FORM)?;
        let all: Document<'_> = json::read(name, 1, all, FORM)?;
        let nets = |number: usize, document: &Document<'_>| -> Result<Vec<IpNet>, ParseError> {
            let wrong = |row: usize| {
                let message = format!("row {} has not one of ipv4Prefix and ipv6Prefix", row + 1);
                ParseError::new(name, number, message).hint(FORM)
            };
            if document.prefixes.is_empty() {
                return Err(ParseError::new(name, number, "there is no prefix in it").hint(FORM));
            }
            let rows = document.prefixes.iter().enumerate();
            rows.map(|(row, entry)| entry.net().ok_or_else(|| wrong(row))).collect()
        };
        let (cloud_nets, all_nets) = (nets(0, &cloud)?, nets(1, &all)?);

        let mut builder = Builder::new();
        for (row, (entry, net)) in cloud.prefixes.iter().zip(&cloud_nets).enumerate() {
            let of =
                |message: String| ParseError::new(name, 0, format!("row {} {message}", row + 1)).hint(FORM);
            // Without it these would be the rows of the other file.
            let scope = entry.scope.as_ref().ok_or_else(|| of("has no scope".into()))?;
            push(&mut builder, "cloud", &scope.0, *net)
                .map_err(|error| of(format!("is refused: {error}")))?;
        }
        for net in without(&all_nets, &cloud_nets) {
            push(&mut builder, "services", GLOBAL, net)
                .map_err(|error| ParseError::new(name, 1, format!("at {net}: {error}")))?;
        }
        Ok(builder.finish(Some(cloud.sync_token.0.max(all.sync_token.0))))
    }
}

/// Returns the fewest networks that hold what is in `all` and not in `other`.
fn without(all: &[IpNet], other: &[IpNet]) -> Vec<IpNet> {
    let other = crate::policy::ranges::collapsed(other);
    let mut rest = Vec::new();
    let mut open = crate::policy::ranges::collapsed(all);
    while let Some(net) = open.pop() {
        // They are sorted, IPv4 before IPv6, and apart: the first that does not end before `net` tells.
        let at = other.partition_point(|out| out.broadcast() < net.network());
        match other.get(at) {
            Some(out) if out.contains(&net) => {}
            Some(out) if net.contains(out) => {
                if let Ok(halves) = net.subnets(net.prefix_len() + 1) {
                    open.extend(halves);
                }
            }
            _ => rest.push(net),
        }
    }
    crate::policy::ranges::collapsed(&rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_away_is_gone_and_nothing_else() {
        let nets = |texts: &[&str]| -> Vec<IpNet> {
            texts.iter().map(|text| text.parse().expect("a network")).collect()
        };
        let of = |all: &[&str], other: &[&str]| -> Vec<String> {
            without(&nets(all), &nets(other)).iter().map(ToString::to_string).collect()
        };
        assert_eq!(of(&["192.0.2.0/24"], &[]), ["192.0.2.0/24"]);
        assert_eq!(of(&["192.0.2.0/24"], &["192.0.0.0/16"]), [""; 0]);
        assert_eq!(
            of(&["192.0.2.0/24"], &["192.0.2.64/26", "192.0.2.255/32", "2001:db8::/32"]),
            [
                "192.0.2.0/26",
                "192.0.2.128/26",
                "192.0.2.192/27",
                "192.0.2.224/28",
                "192.0.2.240/29",
                "192.0.2.248/30",
                "192.0.2.252/31",
                "192.0.2.254/32",
            ]
        );
        assert_eq!(
            of(&["2001:db8::/32", "8.8.8.0/24"], &["8.8.8.0/24", "2001:db8:8000::/33"]),
            ["2001:db8::/33"]
        );
        assert_eq!(of(&["2001:db8::/128"], &["2001:db8::/128", "2001:db8::2/128"]), [""; 0]);
    }
}
