//! One entry of `allowedDestinations` or `deniedDestinations`.

use std::collections::HashMap;

use super::{
    cidrs::{self, Place, Set},
    clouds,
    context::{Context, Fields, Slot, shown},
    domains,
    governance::{self, Given},
    ports, selectors,
};
use crate::policy::{
    cluster::NsName,
    model::{Effect, Entity, Peer, Ports, Rule, Unresolved},
};

/// The kinds of destination, in the order messages name them.
const KINDS: [&str; 9] =
    ["cidr", "cidrs", "awsService", "cloud", "domain", "domains", "service", "pods", "entity"];

const FIELDS: [&str; 15] = [
    "name",
    "cidr",
    "cidrs",
    "except",
    "awsService",
    "regions",
    "cloud",
    "domain",
    "domains",
    "service",
    "pods",
    "entity",
    "ports",
    "governance",
    "description",
];

const ENTITIES: [(&str, Entity); 4] = [
    ("cluster-dns", Entity::ClusterDns),
    ("kube-apiserver", Entity::KubeApiserver),
    ("node", Entity::Node),
    ("world", Entity::World),
];

/// A destination that was read, with the places later checks speak of.
pub(super) struct Entry {
    pub(super) rule: Rule,
    pub(super) at: usize,
    pub(super) path: String,
    /// Of the prefixes, where it has any.
    pub(super) places: Vec<Place>,
    /// Of the fields of its governance.
    pub(super) fields: governance::Places,
}

/// Reads destinations one after the other.
pub(super) struct Reader<'a> {
    /// The policy's own namespace.
    pub(super) namespace: &'a str,
    /// What the top of the document says.
    pub(super) above: &'a Given,
    /// Names so far, with the byte each stands at.
    pub(super) names: HashMap<String, usize>,
}

impl Reader<'_> {
    /// Reads one destination. `None` means that an error was reported.
    pub(super) fn read(&mut self, cx: &mut Context<'_>, slot: &Slot<'_>, effect: Effect) -> Option<Entry> {
        let fields = cx.fields(slot)?;
        unknown(cx, &fields);
        if let Some(slot) = fields.get("description") {
            cx.string(&slot);
        }
        let name = self.name(cx, slot, &fields);
        let kind = kind(cx, slot, &fields);
        for (field, owners) in [("except", ["cidr", "cidrs"].as_slice()), ("regions", &["awsService"])] {
            if let Some(at) = fields.key_at(field)
                && kind.is_some_and(|kind| !owners.contains(&kind))
            {
                let finding =
                    cx.error_at(at, fields.path(field), format!("{field} needs {}", owners.join(" or ")));
                if field == "regions" && kind == Some("cloud") {
                    finding.hint = Some("write it inside cloud".into());
                }
            }
        }
        let mut places = Vec::new();
        let peer = kind.and_then(|kind| {
            let slot = fields.get(kind).expect("the kind is a field of the object");
            self.peer(cx, kind, &slot, &fields, effect, &mut places)
        });
        let ports = match fields.get("ports") {
            // Without a kind nobody knows whether names are fine, so they get the benefit of the doubt.
            Some(slot) => ports::read(cx, &slot, kind.is_none_or(|kind| matches!(kind, "pods" | "service"))),
            None => Some(Ports::All),
        };
        let own = match fields.get("governance") {
            Some(slot) => governance::read(cx, &slot),
            None => Some(Given::default()),
        };
        let given = own?.or(self.above);
        let rule = Rule {
            name: name?,
            effect,
            peers: vec![peer?],
            ports: ports?,
            expires: given.expires,
            governance: given.governance,
        };
        Some(Entry { rule, at: slot.at(), path: slot.path.clone(), places, fields: given.places })
    }

    fn name(&mut self, cx: &mut Context<'_>, slot: &Slot<'_>, fields: &Fields<'_>) -> Option<String> {
        let Some(slot) = fields.get("name") else {
            cx.error(slot, "Missing field: name").hint =
                Some("answers and metrics call the destination so".into());
            return None;
        };
        let name = cx.string(&slot)?;
        let fault = if name.is_empty() {
            Some("it is empty")
        } else if name.chars().count() > 63 {
            Some("it is longer than 63 characters")
        } else if name.contains(['(', ')']) {
            Some("it has a parenthesis")
        } else if shown(name) != name {
            Some("it has a control character")
        } else {
            None
        };
        if let Some(fault) = fault {
            let separator = if name.is_empty() { "" } else { ", " };
            cx.error(&slot, format!("Invalid name: {}{separator}{fault}", shown(name))).hint =
                Some("1 to 63 characters, without parentheses and control characters".into());
            return None;
        }
        if let Some(&first) = self.names.get(name) {
            let line = cx.line(first);
            cx.error(&slot, format!("Duplicate name: {name}")).hint =
                Some(format!("line {line} has it first; names are unique over both lists"));
            return None;
        }
        self.names.insert(name.to_owned(), slot.at());
        Some(name.to_owned())
    }

    fn peer(
        &self,
        cx: &mut Context<'_>,
        kind: &str,
        slot: &Slot<'_>,
        fields: &Fields<'_>,
        effect: Effect,
        places: &mut Vec<Place>,
    ) -> Option<Peer> {
        let unresolved = match kind {
            "cidr" => {
                let read = cidrs::read(cx, slot).map(|place| vec![place]);
                return prefixes(cx, fields, read, places);
            }
            "cidrs" => {
                let read = cidrs::read_list(cx, slot, "name at least one prefix");
                return prefixes(cx, fields, read, places);
            }
            "service" => return self.service(cx, slot),
            "pods" => return pods(cx, slot),
            "entity" => return cx.word(slot, "entity", &ENTITIES).map(Peer::Entity),
            "awsService" => clouds::aws(cx, slot, fields.get("regions").as_ref()),
            "cloud" => clouds::any(cx, slot),
            "domain" => domains::read(cx, slot).map(|domain| Unresolved::Domains(vec![domain])),
            "domains" => domains::read_list(cx, slot).map(Unresolved::Domains),
            other => unreachable!("{other} is no kind of destination"),
        };
        if effect == Effect::Deny {
            let at = fields.key_at(kind).unwrap_or_else(|| slot.at());
            if kind.starts_with("domain") {
                cx.error_at(at, slot.path.clone(), "domain cannot be denied").hint = Some(
                    "an address serves many names, so others would be denied with it; deny a cidr".into(),
                );
                return None;
            }
            cx.warning_at(
                at,
                slot.path.clone(),
                format!("{kind} denies every address outside the cluster until its own are known"),
            )
            .hint = Some("a cidr denies no more than itself".into());
        }
        unresolved.map(Peer::Unresolved)
    }

    fn service(&self, cx: &mut Context<'_>, slot: &Slot<'_>) -> Option<Peer> {
        let fields = cx.object(slot, &["namespace", "name"])?;
        let namespace = match fields.get("namespace") {
            Some(slot) => dns_label(cx, &slot, "namespace"),
            None => Some(self.namespace.to_owned()),
        };
        let Some(slot) = fields.get("name") else {
            cx.error(slot, "Missing field: name").hint = Some("the name of the Service".into());
            return None;
        };
        let name = dns_label(cx, &slot, "service name");
        Some(Peer::Service(NsName::new(namespace?, name?)))
    }
}

fn unknown(cx: &mut Context<'_>, fields: &Fields<'_>) {
    cx.unknown_fields(fields, &FIELDS, |key| {
        governance::field_of(key).map(|field| format!("did you mean governance.{field}?"))
    });
}

/// Returns the one kind of destination that is given.
fn kind(cx: &mut Context<'_>, slot: &Slot<'_>, fields: &Fields<'_>) -> Option<&'static str> {
    let mut given = KINDS.into_iter().filter_map(|kind| Some((kind, fields.key_at(kind)?)));
    let Some((first, first_at)) = given.next() else {
        cx.error(slot, format!("Missing field: one of {}", KINDS.join(", ")));
        return None;
    };
    let mut only = Some(first);
    for (other, at) in given {
        let (later, path) = if at > first_at { (at, other) } else { (first_at, first) };
        cx.error_at(later, fields.path(path), format!("Cannot specify both {first} and {other}")).hint =
            Some("make two destinations of it".into());
        only = None;
    }
    only
}

fn prefixes(
    cx: &mut Context<'_>,
    fields: &Fields<'_>,
    cidrs: Option<Vec<Place>>,
    places: &mut Vec<Place>,
) -> Option<Peer> {
    let except = match fields.get("except") {
        Some(slot) => cidrs::read_list(cx, &slot, "leave except out"),
        None => Some(Vec::new()),
    };
    let (cidrs, except) = (cidrs?, except?);
    let set = Set::new(cidrs.iter().map(|place| place.net));
    for place in &except {
        if !set.contains(&place.net) {
            let message = format!("except {} lies outside the destination", place.net);
            cx.error_at(place.at, place.path.clone(), message).hint =
                Some("it can only take away from the cidrs of its own destination".into());
        }
    }
    let carved = Set::new(except.iter().map(|place| place.net));
    for place in cidrs.iter().filter(|place| carved.contains(&place.net)) {
        let message = format!("except takes away all of {}", place.net);
        cx.warning_at(place.at, place.path.clone(), message);
    }
    places.clone_from(&cidrs);
    Some(Peer::Cidrs {
        cidrs: cidrs.iter().map(|place| place.net).collect(),
        except: except.iter().map(|place| place.net).collect(),
    })
}

fn dns_label(cx: &mut Context<'_>, slot: &Slot<'_>, field: &str) -> Option<String> {
    let text = cx.string(slot)?;
    if selectors::is_dns_label(text) {
        return Some(text.to_owned());
    }
    cx.error(slot, format!("Invalid {field}: {}", shown(text))).hint = Some(
        "1 to 63 lower-case letters, digits and '-', with a letter or digit at the beginning and the end"
            .into(),
    );
    None
}

fn pods(cx: &mut Context<'_>, slot: &Slot<'_>) -> Option<Peer> {
    let fields = cx.object(slot, &["namespaceSelector", "podSelector"])?;
    let (namespace_slot, pod_slot) = (fields.get("namespaceSelector"), fields.get("podSelector"));
    if namespace_slot.is_none() && pod_slot.is_none() {
        cx.error(slot, "Missing field: namespaceSelector or podSelector").hint =
            Some("for every pod of the policy's own namespace write {\"podSelector\": {}}".into());
        return None;
    }
    let mut read = |slot: &Option<Slot<'_>>| match slot {
        Some(slot) => selectors::read(cx, slot).map(Some),
        None => Some(None),
    };
    let (namespaces, pods) = (read(&namespace_slot), read(&pod_slot));
    let (namespaces, pods) = (namespaces?, pods?);
    if namespaces.is_none()
        && let Some(slot) = &pod_slot
        && selectors::is_written_empty(slot)
    {
        cx.warning(slot, "An empty podSelector selects every pod of the policy's own namespace").hint =
            Some("add namespaceSelector for other namespaces".into());
    }
    Some(Peer::Pods { namespaces, pods })
}
