//! The policy document: the JSON text of a ConfigMap's `policy.json` into a [`Policy`], or into findings.
//!
//! [`parse`] is the one judge of a document: the agent, the webhook and the command line all ask it.

mod cidrs;
mod clouds;
mod context;
mod destination;
mod domains;
mod governance;
mod json;
mod ports;
mod selectors;
#[cfg(test)]
mod tests;
mod warnings;

use std::collections::HashMap;

use self::{
    context::{Context, Fields, Slot},
    destination::Entry,
    json::Value,
};
use super::{
    cluster::NsName,
    finding::{Finding, Severity},
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
    if text.len() > MAX_BYTES {
        let message =
            format!("Policy too large: {} bytes, at most {MAX_BYTES} fit into a ConfigMap", text.len());
        let hint = Some("split it into several ConfigMaps: their allowed destinations add up".to_owned());
        let finding = Finding {
            severity: Severity::Error,
            path: String::new(),
            line: 0,
            column: 0,
            message,
            hint,
            rule: None,
        };
        return Parsed { policy: None, findings: vec![finding] };
    }
    let mut cx = Context::new(text);
    let policy = match json::parse(text) {
        Ok(root) => read(&mut cx, id, &Slot::new(&root, "")),
        Err(error) => {
            cx.error_at(error.at, "", format!("Invalid JSON: {}", error.message)).hint = error.hint;
            None
        }
    };
    let failed = cx.failed();
    Parsed { policy: policy.filter(|_| !failed), findings: cx.finish() }
}

/// Returns a warning for each destination of `policy` that matches nothing any more at second `now`.
///
/// Their places in the text are not known here.
#[must_use]
pub fn expiry_findings(policy: &Policy, now: u64) -> Vec<Finding> {
    let (mut allowed, mut denied) = (0, 0);
    let mut findings = Vec::new();
    for rule in &policy.rules {
        let (list, index) = match rule.effect {
            Effect::Allow => ("allowedDestinations", &mut allowed),
            Effect::Deny => ("deniedDestinations", &mut denied),
        };
        let path = format!("{list}[{index}]");
        *index += 1;
        let Some(expires) = rule.expires.filter(|&expires| expires <= now) else { continue };
        let when = match i64::try_from(expires).map(jiff::Timestamp::from_second) {
            Ok(Ok(timestamp)) => timestamp.to_string(),
            _ => format!("second {expires}"),
        };
        findings.push(Finding {
            severity: Severity::Warning,
            path,
            line: 0,
            column: 0,
            message: format!("Expired: {} matches nothing since {when}", rule.name),
            hint: Some("renew its expiry or remove it".into()),
            rule: None,
        });
    }
    findings
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

fn read(cx: &mut Context<'_>, id: &NsName, root: &Slot<'_>) -> Option<Policy> {
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
    Some(Policy {
        id: PolicyId { kind: PolicyKind::ConfigMap, id: id.clone() },
        mode,
        default_action,
        selector,
        cluster_dns,
        own_node: false,
        rules: entries.into_iter().map(|entry| entry.rule).collect(),
    })
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
    let written_empty = match &slot.node.value {
        Value::Object(members) => members.iter().all(|member| match &member.value.value {
            Value::Object(members) => members.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => false,
        }),
        _ => false,
    };
    if written_empty {
        cx.warning(&slot, "An empty podSelector selects every pod of the namespace").hint =
            Some("leave it out if that is meant".into());
    }
    Some(selector)
}
