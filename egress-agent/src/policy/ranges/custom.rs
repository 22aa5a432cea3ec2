//! Services that a platform team defines itself.
//!
//! ```json
//! {"services": {"payment-partners": {
//!   "cidrs": ["192.0.2.0/24"], "domains": ["*.pay.example.com"],
//!   "ports": [{"port": 443, "protocol": "TCP"}], "includes": ["card-networks"]}}}
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use ipnet::IpNet;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::collapse::collapsed;
use crate::policy::{
    document::{domain_pattern, nearest, shown},
    model::{PortMatch, PortSpec, Protocol},
};

/// Services that may be defined.
pub const MAX_SERVICES: usize = 4096;
/// CIDRs and domains that a service may have, with those it includes.
pub const MAX_MEMBERS: usize = 65_536;
/// How deep services may include others.
pub const MAX_DEPTH: usize = 32;

/// Definitions that have been checked, with what they include already in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Custom {
    /// By the lower case of the name.
    services: BTreeMap<String, Arc<Service>>,
}

/// A defined service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// As written.
    pub name: String,
    /// The fewest, IPv4 first, each family in order.
    pub cidrs: Arc<[IpNet]>,
    /// Patterns, sorted.
    pub domains: Vec<String>,
    /// Sorted; empty means whatever ports the rule says.
    pub ports: Vec<PortSpec>,
}

/// What is wrong with definitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The name of the document.
    pub document: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// One sentence.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { document, line, column, message, hint } = self;
        write!(f, "{document}:{line}:{column}: {message}")?;
        match hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Fault {}

impl Custom {
    /// Reads documents, each with the name that faults call it by. Services of all of them may include each other.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, but of each document only the first thing that is no definition at all. One fault anywhere makes all of
    /// it unusable: a service without the one it includes would be another service.
    pub fn parse(documents: &[(&str, &str)]) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut written: BTreeMap<String, Written<'_>> = BTreeMap::new();
        for &(name, text) in documents {
            let parsed: Document<'_> = match serde_json::from_str(text) {
                Ok(parsed) => parsed,
                Err(error) => {
                    faults.push(of_json(name, &error));
                    continue;
                }
            };
            for (key, definition) in parsed.services.0 {
                let place = Place { document: name, text };
                let service = key_of(key);
                if let Err(hint) = check_name(&service) {
                    let message = format!("{} is no name of a service", shown(&service));
                    faults.push(place.fault(key, message, Some(hint.to_owned())));
                } else if let Some(first) = written.get(&service.to_ascii_lowercase()) {
                    let message = format!(
                        "{service} is defined twice: first in {} as {}",
                        first.place.document, first.name
                    );
                    faults.push(place.fault(key, message, None));
                } else if written.len() == MAX_SERVICES {
                    faults.push(place.fault(key, format!("more than {MAX_SERVICES} services"), None));
                    break;
                } else {
                    let lower = service.to_ascii_lowercase();
                    written.insert(lower, Written { name: service, key, place, definition });
                }
            }
        }
        let mut flat = Flattened {
            written: &written,
            done: BTreeMap::new(),
            failed: BTreeSet::new(),
            path: Vec::new(),
            faults,
        };
        for name in written.keys() {
            flat.service(name);
        }
        if flat.faults.is_empty() { Ok(Self { services: flat.done }) } else { Err(flat.faults) }
    }

    /// Returns the services in order of their names.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Service> {
        self.services.values().map(AsRef::as_ref)
    }

    /// Returns the service of this name, whatever its case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Service> {
        self.services.get(&name.to_ascii_lowercase()).map(AsRef::as_ref)
    }

    /// Returns whether nothing is defined.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let bytes = name.as_bytes();
    let fits = bytes.len() <= 63 && bytes.iter().copied().all(good);
    match fits && ends(bytes.first().copied()) && ends(bytes.last().copied()) {
        true => Ok(()),
        false => Err("up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"),
    }
}

/// The text a definition stands in.
#[derive(Clone, Copy)]
struct Place<'t> {
    document: &'t str,
    text: &'t str,
}

impl Place<'_> {
    /// Returns a fault at the place of `raw`, which is a part of the text.
    fn fault(&self, raw: &RawValue, message: String, hint: Option<String>) -> Fault {
        let at = (raw.get().as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        let before = self.text.get(..at).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Fault {
            document: self.document.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message,
            hint,
        }
    }
}

fn of_json(document: &str, error: &serde_json::Error) -> Fault {
    let text = error.to_string();
    let tail = format!(" at line {} column {}", error.line(), error.column());
    Fault {
        document: document.to_owned(),
        line: error.line().max(1),
        column: error.column().max(1),
        message: text.strip_suffix(&tail).unwrap_or(&text).to_owned(),
        hint: None,
    }
}

struct Written<'t> {
    name: String,
    key: &'t RawValue,
    place: Place<'t>,
    definition: Definition<'t>,
}

/// Puts what a service includes into it.
struct Flattened<'w, 't> {
    written: &'w BTreeMap<String, Written<'t>>,
    done: BTreeMap<String, Arc<Service>>,
    failed: BTreeSet<&'w str>,
    /// Services that are being made: each includes the next.
    path: Vec<&'w str>,
    faults: Vec<Fault>,
}

impl<'w> Flattened<'w, '_> {
    /// Returns the service; `None` if something is wrong with it, which has been reported.
    fn service(&mut self, name: &'w str) -> Option<Arc<Service>> {
        if let Some(done) = self.done.get(name) {
            return Some(Arc::clone(done));
        }
        if self.failed.contains(name) {
            return None;
        }
        let service = self.flatten(name);
        match &service {
            Some(service) => drop(self.done.insert(name.to_owned(), Arc::clone(service))),
            None => drop(self.failed.insert(name)),
        }
        service
    }

    fn flatten(&mut self, name: &'w str) -> Option<Arc<Service>> {
        let written = &self.written[name];
        let Definition { cidrs, domains, ports, includes } = &written.definition;
        let mut cidrs: Vec<IpNet> = cidrs.iter().map(|cidr| cidr.0).collect();
        let mut domains: BTreeSet<String> = domains.iter().map(|domain| domain.0.clone()).collect();
        let ports: BTreeSet<PortSpec> = ports.iter().map(|port| port.0.clone()).collect();
        let mut good = true;
        self.path.push(name);
        for include in includes {
            let place = written.place;
            let wanted = key_of(include);
            let lower = wanted.to_ascii_lowercase();
            let Some((key, _)) = self.written.get_key_value(&lower) else {
                let near = nearest(&wanted, self.written.values().map(|written| written.name.as_str()));
                let hint = near.map(|near| format!("did you mean {near}?"));
                let message = format!("{} includes {}, which is not defined", written.name, shown(&wanted));
                self.faults.push(place.fault(include, message, hint));
                good = false;
                continue;
            };
            if let Some(at) = self.path.iter().position(|on_path| on_path == key) {
                let names = self.path[at..].iter().copied().chain([key.as_str()]);
                let names: Vec<&str> = names.map(|name| self.written[name].name.as_str()).collect();
                let message = format!("services include each other in a circle: {}", names.join(" -> "));
                self.faults.push(place.fault(include, message, None));
                good = false;
                continue;
            }
            if self.path.len() == MAX_DEPTH {
                let message = format!("services include others more than {MAX_DEPTH} deep");
                self.faults.push(place.fault(include, message, None));
                good = false;
                continue;
            }
            let Some(included) = self.service(key) else {
                good = false;
                continue;
            };
            if !included.ports.is_empty() && !included.ports.iter().eq(&ports) {
                let message =
                    format!("{} includes {}, whose ports are not its own", written.name, included.name);
                let hint = "give both the same ports, or let policies name both".to_owned();
                self.faults.push(place.fault(include, message, Some(hint)));
                good = false;
                continue;
            }
            cidrs.extend(&*included.cidrs);
            domains.extend(included.domains.iter().cloned());
        }
        self.path.pop();
        if !good {
            return None;
        }
        let cidrs = collapsed(&cidrs);
        let fault = if cidrs.is_empty() && domains.is_empty() {
            Some((format!("{} has no destination", written.name), Some("give it cidrs, domains or includes")))
        } else if cidrs.len() + domains.len() > MAX_MEMBERS {
            Some((format!("{} has more than {MAX_MEMBERS} CIDRs and domains", written.name), None))
        } else {
            None
        };
        if let Some((message, hint)) = fault {
            self.faults.push(written.place.fault(written.key, message, hint.map(str::to_owned)));
            return None;
        }
        Some(Arc::new(Service {
            name: written.name.clone(),
            cidrs: cidrs.into(),
            domains: domains.into_iter().collect(),
            ports: ports.into_iter().collect(),
        }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<'t> {
    #[serde(borrow)]
    services: Definitions<'t>,
}

/// In the order of the text; names that come twice are still there twice.
struct Definitions<'t>(Vec<(&'t RawValue, Definition<'t>)>);

impl<'de: 't, 't> Deserialize<'de> for Definitions<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Definitions<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object whose fields are services")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    all.push(entry);
                }
                Ok(Definitions(all))
            }
        }
        deserializer.deserialize_map(All)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition<'t> {
    #[serde(default)]
    cidrs: Vec<Cidr>,
    #[serde(default)]
    domains: Vec<Domain>,
    #[serde(default)]
    ports: Vec<Port>,
    #[serde(default, borrow)]
    includes: Vec<&'t RawValue>,
}

/// Returns the string that stands at `raw`; of something else, its text.
fn key_of(raw: &RawValue) -> String {
    serde_json::from_str(raw.get()).unwrap_or_else(|_| raw.get().to_owned())
}

struct Cidr(IpNet);

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let net: IpNet = text
            .parse()
            .map_err(|_| D::Error::custom(format!("{} is no CIDR, such as 192.0.2.0/24", shown(&text))))?;
        if net != net.trunc() {
            return Err(D::Error::custom(format!("{net} has host bits set; did you mean {}?", net.trunc())));
        }
        if net.prefix_len() == 0 {
            return Err(D::Error::custom(format!("{net} is every address; write that in the policy")));
        }
        Ok(Self(net))
    }
}

struct Domain(String);

impl<'de> Deserialize<'de> for Domain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        domain_pattern(&text).map(Self).map_err(|(what, hint)| {
            let hint = hint.map_or_else(String::new, |hint| format!("; {hint}"));
            D::Error::custom(format!("domain {} {what}{hint}", shown(&text)))
        })
    }
}

struct Port(PortSpec);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Form {
            port: Option<u16>,
            end_port: Option<u16>,
            #[serde(default = "tcp")]
            protocol: Word,
        }
        #[derive(Deserialize)]
        enum Word {
            #[serde(rename = "TCP", alias = "tcp")]
            Tcp,
            #[serde(rename = "UDP", alias = "udp")]
            Udp,
            #[serde(rename = "SCTP", alias = "sctp")]
            Sctp,
        }
        fn tcp() -> Word {
            Word::Tcp
        }
        let Form { port, end_port, protocol } = Form::deserialize(deserializer)?;
        let port = match (port, end_port) {
            (None, None) => PortMatch::Any,
            (Some(0), _) | (_, Some(0)) => return Err(D::Error::custom("ports are 1 to 65535")),
            (Some(port), None) => PortMatch::Range(port, port),
            (Some(first), Some(last)) if first <= last => PortMatch::Range(first, last),
            (Some(_), Some(_)) => return Err(D::Error::custom("endPort is below port")),
            (None, Some(_)) => return Err(D::Error::custom("endPort without port")),
        };
        let protocol = match protocol {
            Word::Tcp => Protocol::Tcp,
            Word::Udp => Protocol::Udp,
            Word::Sctp => Protocol::Sctp,
        };
        Ok(Self(PortSpec { protocol, port }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        let faults = Custom::parse(&[("services.json", text)]).expect_err("it is wrong");
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn includes_are_put_in() {
        let base = r#"{"services": {"Base": {"cidrs": ["192.0.2.0/25"], "domains": ["B.example.com"]}}}"#;
        let more = r#"{"services": {
            "all": {"cidrs": ["192.0.2.128/25", "2001:db8::/32"], "domains": ["a.example.com"],
                    "ports": [{"port": 443}, {"port": 53, "protocol": "UDP"}], "includes": ["BASE", "Twin"]},
            "twin": {"includes": ["base"]}}}"#;
        let custom = Custom::parse(&[("one", base), ("two", more)]).expect("it is good");
        let all = custom.get("ALL").expect("it is defined");
        let cidrs: Vec<String> = all.cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(cidrs, ["192.0.2.0/24", "2001:db8::/32"]);
        assert_eq!(all.domains, ["a.example.com", "b.example.com"]);
        let range = |protocol, port| PortSpec { protocol, port: PortMatch::Range(port, port) };
        assert_eq!(all.ports, [range(Protocol::Tcp, 443), range(Protocol::Udp, 53)]);
        assert_eq!(custom.get("twin").map(|twin| twin.cidrs.len()), Some(1));
        assert_eq!(
            custom.services().map(|service| service.name.as_str()).collect::<Vec<_>>(),
            ["all", "Base", "twin"]
        );
    }

    #[test]
    fn circles_and_unknown_names_are_faults_with_their_place() {
        let text = "{\"services\": {\n  \"a\": {\"includes\": [\"b\"]},\n  \"b\": {\"includes\": [\"c\", \"partnres\"]},\n  \
                    \"c\": {\"includes\": [\"A\"]},\n  \"partners\": {\"cidrs\": [\"192.0.2.0/24\"]},\n  \"d\": {\"includes\": [\"d\"]}}}";
        assert_eq!(
            faults(text),
            [
                "services.json:4:22: services include each other in a circle: a -> b -> c -> a",
                "services.json:3:27: b includes partnres, which is not defined (did you mean partners?)",
                "services.json:6:22: services include each other in a circle: d -> d",
            ]
        );
    }

    #[test]
    fn what_is_no_definition_is_told_with_its_place() {
        for (text, expected) in [
            ("", "services.json:1:1: EOF while parsing a value"),
            ("{}", "services.json:1:2: missing field `services`"),
            (
                r#"{"services": []}"#,
                "services.json:1:13: invalid type: sequence, expected an object whose fields are services",
            ),
            (
                r#"{"services": {"a": {}}}"#,
                "services.json:1:15: a has no destination (give it cidrs, domains or includes)",
            ),
            (
                r#"{"services": {"a": {"cidr": []}}}"#,
                "services.json:1:26: unknown field `cidr`, expected one of `cidrs`, `domains`, `ports`, `includes`",
            ),
            (
                r#"{"services": {"a": {"cidrs": ["10.0.0.5/8"]}}}"#,
                "services.json:1:43: 10.0.0.5/8 has host bits set; did you mean 10.0.0.0/8?",
            ),
            (
                r#"{"services": {"a": {"cidrs": ["::/0"]}}}"#,
                "services.json:1:37: ::/0 is every address; write that in the policy",
            ),
            (
                r#"{"services": {"a": {"cidrs": ["ten"]}}}"#,
                "services.json:1:36: ten is no CIDR, such as 192.0.2.0/24",
            ),
            (
                r#"{"services": {"a": {"domains": ["https://x.example.com"]}}}"#,
                "services.json:1:56: domain https://x.example.com has a scheme; did you mean x.example.com?",
            ),
            (
                r#"{"services": {"a": {"ports": [{"port": 5, "endPort": 4}]}}}"#,
                "services.json:1:56: endPort is below port",
            ),
            (
                r#"{"services": {"a b": {"cidrs": ["192.0.2.0/24"]}}}"#,
                "services.json:1:15: a b is no name of a service (up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends)",
            ),
            (
                r#"{"services": {"a": {"cidrs": ["192.0.2.0/24"]}, "A": {"cidrs": ["192.0.2.0/24"]}}}"#,
                "services.json:1:49: A is defined twice: first in services.json as a",
            ),
            (
                r#"{"services": {"a": {"cidrs": ["192.0.2.0/24"], "ports": [{"port": 25}]}, "b": {"includes": ["a"]}}}"#,
                "services.json:1:93: b includes a, whose ports are not its own (give both the same ports, or let policies name both)",
            ),
        ] {
            assert_eq!(faults(text), [expected], "{text}");
        }
    }

    #[test]
    fn depth_and_size_have_limits() {
        let chain = |depth: usize| {
            let mut text = String::from(r#"{"services": {"s00": {"cidrs": ["192.0.2.0/24"]}"#);
            for n in 1..depth {
                text += &format!(r#", "s{n:02}": {{"includes": ["s{:02}"]}}"#, n - 1);
            }
            text + "}}"
        };
        // Made from the front, no chain is deep; turned round it is.
        let turned = |depth: usize| {
            let mut text = String::from(r#"{"services": {"#);
            for n in 0..depth {
                text += &format!(r#""s{n:02}": {{"includes": ["s{:02}"]}}, "#, n + 1);
            }
            text + &format!(r#""s{depth:02}": {{"cidrs": ["192.0.2.0/24"]}}}}}}"#)
        };
        assert!(Custom::parse(&[("d", &chain(99))]).is_ok());
        assert!(Custom::parse(&[("d", &turned(MAX_DEPTH - 1))]).is_ok());
        let faults = Custom::parse(&[("d", &turned(MAX_DEPTH))]).expect_err("it is too deep");
        assert!(faults[0].message.contains("more than 32 deep"), "{}", faults[0]);

        let many: Vec<String> =
            (0..=MAX_SERVICES).map(|n| format!(r#""s{n}": {{"cidrs": ["192.0.2.0/24"]}}"#)).collect();
        let faults = Custom::parse(&[("d", &format!(r#"{{"services": {{{}}}}}"#, many.join(",")))])
            .expect_err("there are too many");
        assert_eq!(faults[0].message, "more than 4096 services");
    }
}
