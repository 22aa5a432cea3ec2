//! The port list of a destination.

use std::collections::HashSet;

use super::{
    MAX_PORTS,
    context::{Context, Slot, nearest, shown},
    json::Value,
};
use crate::policy::model::{PortMatch, PortSpec, Ports, Protocol};

const PROTOCOLS: [Protocol; 4] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp];

/// What is wrong with one item, and what to do about it.
type Fault = (String, Option<String>);

/// Reads `ports`. `named` tells whether the destination has ports with names.
pub(super) fn read(cx: &mut Context<'_>, slot: &Slot<'_>, named: bool) -> Option<Ports> {
    let items = cx.filled_list(slot, "leave ports out to name every protocol and port")?;
    if items.len() > MAX_PORTS {
        cx.error(slot, format!("Too many ports: {}, at most {MAX_PORTS} items", items.len())).hint =
            Some("write ranges such as 8000-8010/TCP".into());
        return None;
    }
    let mut seen = HashSet::new();
    let mut list = Vec::with_capacity(items.len());
    let mut items_of = Vec::with_capacity(items.len());
    for item in items {
        let Some(spec) = item_of(cx, &item) else { continue };
        if let PortMatch::Name(name) = &spec.port
            && !named
        {
            cx.error(&item, format!("Named port \"{name}\" needs pods or service")).hint =
                Some("give its number".into());
        } else if seen.insert(spec.clone()) {
            list.push(spec);
            items_of.push(item);
        } else {
            cx.warning(&item, format!("Duplicate port: {}", written(&spec)));
        }
    }
    overlaps(cx, &items_of, &list);
    Some(Ports::List(list))
}

/// Warns of ranges that share ports with another one of the list. Each is told at most once.
fn overlaps(cx: &mut Context<'_>, items: &[Slot<'_>], list: &[PortSpec]) {
    let mut ranges: Vec<(Protocol, u16, u16, usize)> = Vec::new();
    for (index, spec) in list.iter().enumerate() {
        match spec.port {
            PortMatch::Any => ranges.push((spec.protocol, 0, u16::MAX, index)),
            PortMatch::Range(first, last) => ranges.push((spec.protocol, first, last, index)),
            PortMatch::Name(_) => {}
        }
    }
    ranges.sort_by_key(|&(protocol, first, last, index)| (protocol, first, std::cmp::Reverse(last), index));
    let mut before: Option<(Protocol, u16, usize)> = None;
    for (protocol, first, last, index) in ranges {
        match before {
            Some((same, end, outer)) if same == protocol && first <= end => {
                let (inner, outer) = (written(&list[index]), written(&list[outer]));
                let message = match last <= end {
                    true => format!("Port {inner} lies inside {outer} of the same list"),
                    false => format!("Ports {inner} overlap {outer} of the same list"),
                };
                cx.warning(&items[index], message);
            }
            _ => {}
        }
        if before.is_none_or(|(same, end, _)| same != protocol || last > end) {
            before = Some((protocol, last, index));
        }
    }
}

/// Returns the shortest spelling of an item.
fn written(spec: &PortSpec) -> String {
    let protocol = spec.protocol.as_str();
    match &spec.port {
        PortMatch::Any => protocol.to_owned(),
        PortMatch::Range(first, last) if first == last => format!("{first}/{protocol}"),
        PortMatch::Range(first, last) => format!("{first}-{last}/{protocol}"),
        PortMatch::Name(name) => format!("{name}/{protocol}"),
    }
}

fn item_of(cx: &mut Context<'_>, slot: &Slot<'_>) -> Option<PortSpec> {
    let read = match &slot.node.value {
        Value::Number(text) => {
            number(text).map(|port| PortSpec { protocol: Protocol::Tcp, port: PortMatch::Range(port, port) })
        }
        Value::String(text) => string(text),
        Value::Object(_) => return object(cx, slot),
        _ => {
            cx.wrong_type(slot, "a number, a string or an object");
            return None;
        }
    };
    report(cx, slot, read)
}

fn report<T>(cx: &mut Context<'_>, slot: &Slot<'_>, read: Result<T, Fault>) -> Option<T> {
    match read {
        Ok(value) => Some(value),
        Err((message, hint)) => {
            cx.error(slot, message).hint = hint;
            None
        }
    }
}

fn invalid<T>(text: &str, hint: impl Into<String>) -> Result<T, Fault> {
    Err((format!("Invalid port: {}", shown(text)), Some(hint.into())))
}

/// Reads digits as a port.
fn number(text: &str) -> Result<u16, Fault> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(0) => invalid(text, "leave ports out to name every port; a single one is 1 to 65535"),
        Ok(port) if port.to_string() == text => Ok(port),
        Ok(port) => invalid(text, format!("did you mean {port}?")),
        Err(_) if digits => invalid(text, "a port is 1 to 65535"),
        Err(_) => invalid(text, "a port is a whole number, 1 to 65535"),
    }
}

fn protocol(text: &str) -> Result<Protocol, Fault> {
    let upper = text.to_ascii_uppercase();
    if let Some(protocol) = PROTOCOLS.into_iter().find(|protocol| protocol.as_str() == upper) {
        return Ok(protocol);
    }
    let hint = match upper.as_str() {
        "ICMPV6" | "ICMP6" | "ICMPV4" => "ICMP covers IPv4 and IPv6".to_owned(),
        "ALL" | "ANY" | "*" => "leave ports out to name every protocol".to_owned(),
        _ => match nearest(text, PROTOCOLS.iter().map(|protocol| protocol.as_str())) {
            Some(name) => format!("did you mean {name}?"),
            None => "one of TCP, UDP, SCTP, ICMP".to_owned(),
        },
    };
    Err((format!("Invalid protocol: {}", shown(text)), Some(hint)))
}

/// Reads `443`, `443/TCP`, `8000-8010/UDP`, `http`, `http/UDP`, `ICMP`.
fn string(text: &str) -> Result<PortSpec, Fault> {
    let Some((port, after)) = text.split_once('/') else {
        if let Ok(protocol) = protocol(text) {
            return Ok(PortSpec { protocol, port: PortMatch::Any });
        }
        if matches!(text.to_ascii_uppercase().as_str(), "ICMPV6" | "ICMP6" | "ICMPV4") {
            return invalid(text, "ICMP covers IPv4 and IPv6");
        }
        return Ok(PortSpec { protocol: Protocol::Tcp, port: numbers_or_name(text, text)? });
    };
    if protocol(port).is_ok() && number(after).is_ok() {
        return invalid(text, format!("did you mean {after}/{}?", port.to_ascii_uppercase()));
    }
    if after.is_empty() {
        return invalid(text, "a protocol stands after the slash, such as in 443/TCP");
    }
    let protocol = protocol(after)?;
    let port = numbers_or_name(port, text)?;
    portless(protocol)?;
    Ok(PortSpec { protocol, port })
}

fn portless(protocol: Protocol) -> Result<(), Fault> {
    match protocol {
        Protocol::Icmp => Err(("ICMP has no port".into(), Some("write \"ICMP\" alone".into()))),
        _ => Ok(()),
    }
}

/// Reads the part before the slash; `whole` is what messages show.
fn numbers_or_name(text: &str, whole: &str) -> Result<PortMatch, Fault> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        let port = number(text)?;
        return Ok(PortMatch::Range(port, port));
    }
    if let Some((first, last)) = text.split_once(['-', ':'])
        && [first, last].iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    {
        if text.contains(':') {
            return invalid(whole, format!("did you mean {}?", shown(&whole.replacen(':', "-", 1))));
        }
        return range(number(first)?, number(last)?);
    }
    if text.trim() != text {
        return invalid(whole, "remove the space");
    }
    if text == "*" || text.is_empty() {
        return invalid(whole, "leave ports out to name every port; a protocol alone is written \"TCP\"");
    }
    if text.contains(',') {
        return invalid(whole, "give each port as its own item");
    }
    if is_name(text) {
        return Ok(PortMatch::Name(text.to_owned()));
    }
    invalid(
        whole,
        "a number, a range such as 8000-8010/TCP, or a name of 1 to 15 lower-case letters, digits and '-'",
    )
}

fn range(first: u16, last: u16) -> Result<PortMatch, Fault> {
    if last < first {
        let message = format!("Invalid port range: {first}-{last}");
        return Err((message, Some(format!("did you mean {last}-{first}?"))));
    }
    Ok(PortMatch::Range(first, last))
}

/// Tells whether `text` is a service name of RFC 6335 section 5.1, in lower case as Kubernetes wants it.
fn is_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && text.bytes().any(|b| b.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--")
}

/// Reads `{port, endPort, protocol}`.
fn object(cx: &mut Context<'_>, slot: &Slot<'_>) -> Option<PortSpec> {
    let fields = cx.object(slot, &["port", "endPort", "protocol"])?;
    let protocol = match fields.get("protocol") {
        None => Some(Protocol::Tcp),
        Some(slot) => {
            let text = cx.string(&slot);
            text.and_then(|text| report(cx, &slot, protocol(text)))
        }
    };
    let end = match fields.get("endPort") {
        None => Some(None),
        Some(slot) => whole(cx, &slot, "a number").map(Some),
    };
    let Some(port_slot) = fields.get("port") else {
        if let Some(at) = fields.key_at("endPort") {
            cx.error_at(at, fields.path("endPort"), "endPort needs port").hint =
                Some("port is where the range begins".into());
            return None;
        }
        if fields.get("protocol").is_none() {
            cx.error(slot, "Missing field: port or protocol");
            return None;
        }
        return Some(PortSpec { protocol: protocol?, port: PortMatch::Any });
    };
    let port = match &port_slot.node.value {
        Value::String(text) if is_name(text) && text.parse::<u16>().is_err() => {
            if let Some(at) = fields.key_at("endPort") {
                cx.error_at(at, fields.path("endPort"), "endPort needs a number in port");
                return None;
            }
            PortMatch::Name(text.clone())
        }
        _ => {
            let first = whole(cx, &port_slot, "a number or a name");
            let end = end?;
            let first = first?;
            let read = range(first, end.unwrap_or(first));
            let at_end = fields.get("endPort").unwrap_or_else(|| port_slot.clone());
            report(cx, &at_end, read)?
        }
    };
    let protocol = protocol?;
    if protocol == Protocol::Icmp {
        cx.error(&port_slot, "ICMP has no port").hint = Some("leave port out".into());
        return None;
    }
    Some(PortSpec { protocol, port })
}

/// Reads one port from a number or from a string of digits.
fn whole(cx: &mut Context<'_>, slot: &Slot<'_>, expected: &str) -> Option<u16> {
    let read = match &slot.node.value {
        Value::Number(text) => number(text),
        Value::String(text) if text.contains(['/', '-', ':']) => {
            invalid(text, "here it is one number; endPort and protocol are fields of their own")
        }
        Value::String(text) if text.bytes().any(|b| b.is_ascii_alphabetic()) && expected != "a number" => {
            invalid(text, "a name has 1 to 15 lower-case letters, digits and '-'")
        }
        Value::String(text) => number(text),
        _ => {
            cx.wrong_type(slot, expected);
            return None;
        }
    };
    report(cx, slot, read)
}
