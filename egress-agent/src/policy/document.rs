//! The policy document: the JSON text of a ConfigMap's `policy.json` into a [`Policy`], or into findings.
//!
//! What a document may be once it is understood, by whom and until when, is for [`governance`](super::governance) to say;
//! [`check`](crate::check) asks both.

mod cidrs;
mod clouds;
mod context;
mod destination;
mod domains;
mod format;
mod governance;
mod json;
mod ports;
mod selectors;
#[cfg(test)]
mod tests;
mod warnings;

use std::collections::HashMap;

pub use self::format::canonical;
use self::{
    context::{Context, Fields, Slot},
    destination::Entry,
    json::{Node, Value},
};
pub(crate) use self::{
    context::{is_hidden, nearest, shown},
    domains::parse as domain_pattern,
};
use super::{
    cluster::NsName,
    finding::{Finding, Severity},
    governance::Field,
    model::{DefaultAction, Effect, LabelSelector, Mode, Peer, Policy, PolicyId, PolicyKind, Rule},
};

/// Longest document, in bytes: what Kubernetes allows a whole ConfigMap.
pub const MAX_BYTES: usize = 1 << 20;

/// Most destinations of a document, allowed and denied ones together.
pub const MAX_DESTINATIONS: usize = 16_384;
/// Most items in the `ports` of a destination.
pub const MAX_PORTS: usize = 256;
/// Most prefixes in a list of a destination.
pub const MAX_CIDRS: usize = 32_768;
/// Most prefixes of a document, exceptions included.
pub const MAX_CIDRS_TOGETHER: usize = 65_536;

/// What [`parse`] found in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The policy; `None` exactly if one of the findings is an error.
    pub policy: Option<Policy>,
    /// Everything worth saying, in the order of the text.
    pub findings: Vec<Finding>,
}

/// Reads the document of the ConfigMap `id`.
///
/// Reports everything that is wrong at once, except that a text that is no JSON gives only the place where it stops being
/// JSON. Ends soon and never panics, whatever the text.
#[must_use]
pub fn parse(id: &NsName, text: &str) -> Parsed {
    let mut reading = read(id, text);
    Parsed { policy: reading.policy.take(), findings: reading.finish() }
}

/// Reads the document of the ConfigMap `id` as [`parse`] does, for somebody who has more to say about its places.
#[must_use]
pub fn read<'t>(id: &NsName, text: &'t str) -> Reading<'t> {
    if text.len() > MAX_BYTES {
        let message =
            format!("Policy too large: {} bytes, at most {MAX_BYTES} fit into a ConfigMap", text.len());
        let hint = Some("split it into several ConfigMaps: their allowed destinations add up".to_owned());
        let mut cx = Context::new("");
        cx.add(
            None,
            Finding {
                severity: Severity::Error,
                path: String::new(),
                line: 0,
                column: 0,
                message,
                hint,
                rule: None,
            },
        );
        return Reading { policy: None, destinations: Vec::new(), root: None, cx };
    }
    let mut cx = Context::new(text);
    let mut reading = match json::parse(text) {
        Ok(root) => {
            let (policy, destinations) = root_object(&mut cx, id, &Slot::new(&root, "")).unzip();
            Reading { policy, destinations: destinations.unwrap_or_default(), root: Some(root), cx }
        }
        Err(error) => {
            cx.error_at(error.at, "", format!("Invalid JSON: {}", error.message)).hint = error.hint;
            Reading { policy: None, destinations: Vec::new(), root: None, cx }
        }
    };
    if reading.cx.failed() {
        reading.policy = None;
        reading.destinations.clear();
    }
    reading
}

/// Returns the line and the column, both from 1, of the value at `path` of a document, such as
/// `allowedDestinations[1].cidr`, or of the nearest value around it that is there; `None` if the text is no JSON.
#[must_use]
pub fn position(text: &str, path: &str) -> Option<(u32, u32)> {
    let Ok(root) = json::parse(text) else { return None };
    Some(Context::new(text).place(find(&root, path).span.start))
}

/// A document that was read, with its places.
pub struct Reading<'t> {
    /// The policy; `None` exactly if something is wrong with the text or its meaning.
    pub policy: Option<Policy>,
    /// Where the rules of the policy stand, one for each; empty without a policy.
    pub destinations: Vec<Destination>,
    root: Option<Node<'t>>,
    cx: Context<'t>,
}

impl Reading<'_> {
    /// Returns the byte at which the value at `path` begins, or the nearest one around it that is there.
    #[must_use]
    pub fn find(&self, path: &str) -> usize {
        self.root.as_ref().map_or(0, |root| find(root, path).span.start)
    }

    /// Takes a finding about byte `at` of the text; its line and column are filled in.
    pub fn add(&mut self, at: usize, finding: Finding) {
        self.cx.add(Some(at), finding);
    }

    /// Returns everything worth saying, in the order of the text.
    #[must_use]
    pub fn finish(self) -> Vec<Finding> {
        self.cx.finish()
    }
}

/// Where a rule stands in its document.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Its path, such as `allowedDestinations[1]`.
    pub path: String,
    /// The byte at which it begins.
    pub at: usize,
    fields: governance::Places,
}

impl Destination {
    /// Returns the path of a field of its governance and the byte at which the value begins, which may stand at the top; `None`
    /// if it has no such field.
    #[must_use]
    pub fn field(&self, field: Field) -> Option<(String, usize)> {
        let place = self.fields[field as usize]?;
        let path = match place.inherited {
            true => format!("governance.{}", place.key),
            false => format!("{}.governance.{}", self.path, place.key),
        };
        Some((path, place.at))
    }
}

/// Returns the value at `path`, or the nearest one around it that is there.
fn find<'n, 't>(root: &'n Node<'t>, path: &str) -> &'n Node<'t> {
    let mut node = root;
    // Keys that hold a dot or a bracket are written `["so"]`; what cannot be told from a path ends the search.
    for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
        let step = step.trim_end_matches(']').trim_matches('"');
        let inner = match &node.value {
            Value::Array(items) => step.parse::<usize>().ok().and_then(|index| items.get(index)),
            Value::Object(members) => members
                .iter()
                .find(|member| member.key == step || governance::field_of(&member.key) == Some(step))
                .map(|member| &member.value),
            _ => None,
        };
        match inner {
            Some(inner) => node = inner,
            None => break,
        }
    }
    node
}

/// Fields at the top. `$schema` and `description` are for people and their editors.
const TOP: [&str; 9] = [
    "defaultAction",
    "mode",
    "podSelector",
    "clusterDns",
    "governance",
    "allowedDestinations",
    "deniedDestinations",
    "description",
    "$schema",
];

const ACTIONS: [(&str, DefaultAction); 2] = [("allow", DefaultAction::Allow), ("deny", DefaultAction::Deny)];
const MODES: [(&str, Mode); 2] = [("enforce", Mode::Enforce), ("audit", Mode::Audit)];

fn root_object(cx: &mut Context<'_>, id: &NsName, root: &Slot<'_>) -> Option<(Policy, Vec<Destination>)> {
    let fields = cx.fields(root)?;
    cx.unknown_fields(&fields, &TOP, |key| match key {
        "apiVersion" | "kind" | "metadata" | "data" => {
            Some("policy.json holds the policy alone, not the ConfigMap around it".into())
        }
        _ => governance::field_of(key).map(|field| format!("did you mean governance.{field}?")),
    });
    for name in ["description", "$schema"] {
        if let Some(slot) = fields.get(name) {
            cx.string(&slot);
        }
    }
    // Where a field is there but wrong, what is put in its place does not matter: the error has been reported.
    let default_action = fields
        .get("defaultAction")
        .and_then(|slot| cx.word(&slot, "defaultAction", &ACTIONS))
        .unwrap_or_default();
    let mode = fields.get("mode").and_then(|slot| cx.word(&slot, "mode", &MODES)).unwrap_or_default();
    let cluster_dns = fields.get("clusterDns").and_then(|slot| cx.boolean(&slot)).unwrap_or(true);
    let selector = pod_selector(cx, &fields).unwrap_or_default();
    let above = fields.get("governance").and_then(|slot| governance::read(cx, &slot)).unwrap_or_default();

    let mut reader = destination::Reader { namespace: &id.namespace, above: &above, names: HashMap::new() };
    let mut entries: Vec<Entry> = Vec::new();
    let mut destinations = 0;
    for (list, effect) in [("allowedDestinations", Effect::Allow), ("deniedDestinations", Effect::Deny)] {
        let Some(slot) = fields.get(list) else { continue };
        let items = cx.list(&slot).into_iter().flatten().collect::<Vec<_>>();
        destinations += items.len();
        if destinations > MAX_DESTINATIONS {
            let message = format!("Too many destinations: {destinations}, at most {MAX_DESTINATIONS}");
            cx.error(&slot, message).hint = Some(
                "put prefixes that share their ports into one cidrs list, or split the document into several ConfigMaps"
                    .into(),
            );
            continue;
        }
        for item in items {
            entries.extend(reader.read(cx, &item, effect));
        }
    }
    let cidrs = entries.iter().map(|entry| cidrs_of(&entry.rule)).sum::<usize>();
    if cidrs > MAX_CIDRS_TOGETHER {
        cx.error(root, format!("Too many CIDRs: {cidrs} in the document, at most {MAX_CIDRS_TOGETHER}"))
            .hint = Some("join neighbouring prefixes, or split the document into several ConfigMaps".into());
    }
    if !cx.failed() {
        warnings::add(cx, root, &fields, default_action, cluster_dns, &entries);
    }
    let (rules, destinations) = entries
        .into_iter()
        .map(|Entry { rule, at, path, fields, .. }| (rule, Destination { path, at, fields }))
        .unzip();
    let policy = Policy {
        id: PolicyId { kind: PolicyKind::ConfigMap, id: id.clone() },
        mode,
        default_action,
        selector,
        cluster_dns,
        own_node: false,
        rules,
    };
    Some((policy, destinations))
}

fn cidrs_of(rule: &Rule) -> usize {
    let of_peer = |peer: &Peer| match peer {
        Peer::Cidrs { cidrs, except } => cidrs.len() + except.len(),
        _ => 0,
    };
    rule.peers.iter().map(of_peer).sum()
}

fn pod_selector(cx: &mut Context<'_>, fields: &Fields<'_>) -> Option<LabelSelector> {
    let slot = fields.get("podSelector")?;
    let selector = selectors::read(cx, &slot)?;
    if selectors::is_written_empty(&slot) {
        cx.warning(&slot, "An empty podSelector selects every pod of the namespace").hint =
            Some("leave it out if that is meant".into());
    }
    Some(selector)
}
