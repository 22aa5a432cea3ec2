//! Prefixes: reading them, and which lies inside which.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::{
    MAX_CIDRS,
    context::{Context, Slot, shown},
};
use crate::policy::model::is_v4_mapped;

/// A prefix and its place.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) net: IpNet,
    pub(super) at: usize,
    pub(super) path: String,
}

/// Reads the prefix in `slot`.
pub(super) fn read(cx: &mut Context<'_>, slot: &Slot<'_>) -> Option<Place> {
    let text = cx.string(slot)?;
    match parse(text) {
        Ok(net) => Some(Place { net, at: slot.at(), path: slot.path.clone() }),
        Err(fault) => {
            cx.error(slot, format!("Invalid CIDR format: {}{}", shown(text), fault.what)).hint = fault.hint;
            None
        }
    }
}

/// Reads a list of prefixes that must not be empty. `None` if one of them is wrong.
pub(super) fn read_list(cx: &mut Context<'_>, slot: &Slot<'_>, hint: &str) -> Option<Vec<Place>> {
    let items = cx.filled_list(slot, hint)?;
    if items.len() > MAX_CIDRS {
        cx.error(slot, format!("Too many CIDRs: {}, at most {MAX_CIDRS} in a list", items.len())).hint =
            Some("join neighbouring prefixes, or make several destinations of it".into());
        return None;
    }
    let places: Vec<Place> = items.iter().filter_map(|item| read(cx, item)).collect();
    for (inner, outer) in contained(&places) {
        let (inner, outer) = (&places[inner], &places[outer]);
        let line = cx.line(outer.at);
        let message = if inner.net == outer.net {
            format!("Duplicate CIDR: {}", inner.net)
        } else {
            format!("CIDR {} lies inside {} of the same list", inner.net, outer.net)
        };
        cx.warning_at(inner.at, inner.path.clone(), message).hint =
            Some(format!("it adds nothing to line {line}"));
    }
    // A list with a gap would make later checks speak of prefixes that are there.
    (places.len() == items.len()).then_some(places)
}

struct Fault {
    /// Goes on after the prefix; may be empty.
    what: &'static str,
    hint: Option<String>,
}

fn fault(what: &'static str, hint: impl Into<Option<String>>) -> Fault {
    Fault { what, hint: hint.into() }
}

fn meant(text: impl std::fmt::Display) -> String {
    format!("did you mean {text}?")
}

fn parse(text: &str) -> Result<IpNet, Fault> {
    let Some(net) = plain(text) else {
        return Err(fault("", repair(text)));
    };
    if is_v4_mapped(&net) {
        return Err(fault(" is IPv4 in the spelling of IPv6", unmapped(&net).map(meant)));
    }
    if net != net.trunc() {
        let hint = format!("did you mean {} or {}?", net.trunc(), IpNet::from(net.addr().to_canonical()));
        return Err(fault(" has host bits set", hint));
    }
    Ok(net)
}

/// Reads `address/length`, both in their plain spelling.
fn plain(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let digits = length.len() <= 3 && length.bytes().all(|b| b.is_ascii_digit());
    if !digits || (length.len() > 1 && length.starts_with('0')) {
        return None;
    }
    let (Ok(address), Ok(length)) = (address.parse::<IpAddr>(), length.parse::<u8>()) else { return None };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    (length <= longest).then(|| IpNet::new_assert(address, length))
}

fn unmapped(net: &IpNet) -> Option<IpNet> {
    let IpNet::V6(net) = net else { return None };
    let address = net.addr().to_ipv4_mapped()?;
    Ipv4Net::new(address, net.prefix_len() - 96).map_or(None, |net| Some(IpNet::V4(net.trunc())))
}

/// Says what was probably meant by a text that is no prefix. What it proposes is always accepted.
fn repair(text: &str) -> Option<String> {
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Some("write a prefix such as 10.1.0.0/16".into());
    }
    if text.len() > 100 {
        return None;
    }
    if let Ok(address) = trimmed.parse::<IpAddr>() {
        return acceptable(&IpNet::from(address.to_canonical()).to_string()).map(meant);
    }
    let Some((address, length)) = trimmed.split_once('/') else {
        if super::domains::parse(trimmed).is_ok() {
            return Some("use domain for a name".into());
        }
        return octets(trimmed).and_then(|address| acceptable(&format!("{address}/32"))).map(meant);
    };
    let address = address.trim();
    let length = length.trim();
    let address = octets(address).unwrap_or_else(|| address.to_owned());
    let longest = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return None,
    };
    if let Ok(mask) = length.parse::<Ipv4Addr>()
        && let Ok(length) = ipnet::ip_mask_to_prefix(IpAddr::V4(mask))
        && let Some(net) = acceptable(&format!("{address}/{length}"))
    {
        return Some(meant(net));
    }
    let shorter = [
        length.trim_start_matches('0'),
        length.get(..length.len().saturating_sub(1)).unwrap_or_default(),
        length.get(1..).unwrap_or_default(),
    ];
    let candidates = std::iter::once(length).chain(shorter).map(|length| format!("{address}/{length}"));
    if let Some(net) = candidates.filter_map(|text| acceptable(&text)).next() {
        return Some(meant(net));
    }
    let step = longest / 4;
    let example = (1..=4).filter_map(|n| acceptable(&format!("{address}/{}", n * step))).next();
    Some(match example {
        Some(net) => format!("the length is 0 to {longest}, such as in {net}"),
        None => format!("the length is 0 to {longest}"),
    })
}

/// Tells whether `text` is meant to be a prefix.
pub(super) fn looks_like(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, _)| address.parse::<IpAddr>().is_ok())
}

/// Returns the prefix that `text` is if it can stand in a document. Asks no [`repair`], which asks it.
fn acceptable(text: &str) -> Option<IpNet> {
    plain(text).filter(|net| !is_v4_mapped(net) && *net == net.trunc())
}

/// Returns an IPv4 address with leading zeros removed and missing parts added.
fn octets(text: &str) -> Option<String> {
    let mut parts: Vec<String> = Vec::with_capacity(4);
    for part in text.trim_end_matches('.').split('.') {
        if part.is_empty() || part.len() > 4 || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let stripped = part.trim_start_matches('0');
        parts.push(if stripped.is_empty() { "0" } else { stripped }.to_owned());
    }
    if parts.len() < 2 {
        return None;
    }
    while parts.len() < 4 {
        parts.push("0".into());
    }
    let address = parts.join(".");
    address.parse::<Ipv4Addr>().is_ok().then_some(address)
}

/// Returns pairs of positions: a prefix, and another that contains it. Each prefix comes first in at most one pair; of
/// equal ones the first in the list contains the others.
fn contained(places: &[Place]) -> Vec<(usize, usize)> {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by_key(|&index| key(&places[index].net));
    let mut pairs = Vec::new();
    let mut outer: Option<usize> = None;
    for index in order {
        match outer {
            Some(widest) if places[widest].net.contains(&places[index].net) => pairs.push((index, widest)),
            _ => outer = Some(index),
        }
    }
    pairs
}

/// Sorts a prefix behind all that contain it.
fn key(net: &IpNet) -> (IpAddr, u8) {
    (net.network(), net.prefix_len())
}

/// A set of prefixes that answers fast what it contains.
#[derive(Clone, Debug, Default)]
pub(super) struct Set(Vec<IpNet>);

impl Set {
    pub(super) fn new(nets: impl IntoIterator<Item = IpNet>) -> Self {
        let mut nets: Vec<IpNet> = nets.into_iter().collect();
        nets.sort_by_key(key);
        nets.dedup_by(|inner, outer| outer.contains(&*inner));
        Self(nets)
    }

    /// Returns whether one of its prefixes contains all of `net`.
    pub(super) fn contains(&self, net: &IpNet) -> bool {
        let after = self.0.partition_point(|own| key(own) <= key(net));
        after > 0 && self.0[after - 1].contains(net)
    }

    /// Returns whether `net` and one of its prefixes have an address in common.
    pub(super) fn overlaps(&self, net: &IpNet) -> bool {
        let after = self.0.partition_point(|own| key(own) <= key(net));
        self.contains(net) || self.0.get(after).is_some_and(|own| net.contains(own))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets() -> impl Strategy<Value = Vec<IpNet>> {
        let v4 = (0u32..16, 24u8..=32)
            .prop_map(|(low, length)| IpNet::new(Ipv4Addr::from(0x0a00_0000 + low * 20).into(), length));
        let v6 = (0u128..16, 120u8..=128).prop_map(|(low, length)| {
            IpNet::new(std::net::Ipv6Addr::from((0xfd << 120) + low * 20).into(), length)
        });
        proptest::collection::vec(
            prop_oneof![v4, v6].prop_map(|net| net.expect("short enough").trunc()),
            0..12,
        )
    }

    proptest! {
        #[test]
        fn set_agrees_with_looking_at_each(nets in nets(), probes in nets()) {
            let set = Set::new(nets.iter().copied());
            for probe in &probes {
                prop_assert_eq!(set.contains(probe), nets.iter().any(|net| net.contains(probe)), "{} in {:?}", probe, nets);
                let overlaps = nets.iter().any(|net| net.contains(probe) || probe.contains(net));
                prop_assert_eq!(set.overlaps(probe), overlaps, "{} and {:?}", probe, nets);
            }
        }

        #[test]
        fn contained_agrees_with_looking_at_each(nets in nets()) {
            let places: Vec<Place> = nets.iter().map(|&net| Place { net, at: 0, path: String::new() }).collect();
            let mut pairs = contained(&places);
            pairs.sort_unstable();
            let expected: Vec<usize> = (0..nets.len())
                .filter(|&i| (0..nets.len()).any(|j| nets[j].contains(&nets[i]) && (nets[i] != nets[j] || j < i)))
                .collect();
            prop_assert_eq!(pairs.iter().map(|(inner, _)| *inner).collect::<Vec<_>>(), expected);
            for (inner, outer) in pairs {
                prop_assert!(nets[outer].contains(&nets[inner]));
            }
        }

        #[test]
        fn proposals_are_accepted(text in "[0-9./: a-f]{0,24}|[0-9]{1,3}(\\.[0-9]{1,3}){1,3}/[0-9]{0,3}|::ffff:[0-9]{1,2}\\.0\\.0\\.0/[0-9]{1,3}") {
            let Err(fault) = parse(&text) else { return Ok(()) };
            let proposed = fault.hint.as_deref().and_then(|hint| hint.strip_prefix("did you mean ")?.strip_suffix('?'));
            for net in proposed.iter().flat_map(|both| both.split(" or ")) {
                prop_assert!(parse(net).is_ok(), "{} was proposed for {}", net, text);
            }
        }

        #[test]
        fn accepts_what_ipnet_prints(address in any::<IpAddr>(), length in 0u8..=128) {
            let Ok(net) = IpNet::new(address, length) else { return Ok(()) };
            let net = net.trunc();
            prop_assert_eq!(parse(&net.to_string()).is_ok(), !is_v4_mapped(&net), "{}", net);
        }
    }
}
