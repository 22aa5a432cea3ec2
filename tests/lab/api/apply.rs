//! JSON merge patch, server-side apply, and who owns which field.
//!
//! Ownership is kept in `metadata.managedFields`, as a real server does. Lists are one field, except for a few that are known
//! to be maps or sets by the names of their fields.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{
    kinds::Kind,
    status::{Failure, Result},
};

/// A field: the steps to it as they stand in `fieldsV1`.
type Path = Vec<String>;
type Fields = BTreeSet<Path>;

/// Lists whose elements are told apart by a field.
const KEYED: [(&str, &str); 7] = [
    ("conditions", "type"),
    ("ownerReferences", "uid"),
    ("containers", "name"),
    ("initContainers", "name"),
    ("volumes", "name"),
    ("env", "name"),
    ("addresses", "type"),
];
/// Maps that are owned as one field.
const ATOMIC: [&str; 4] = ["podSelector", "namespaceSelector", "selector", "nodeSelector"];
/// What the server writes by itself.
const SERVER: [&str; 7] =
    ["name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"];

/// Who writes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manager {
    pub(super) name: String,
    pub(super) apply: bool,
    pub(super) subresource: Option<&'static str>,
}

#[derive(Clone, Debug)]
struct Owner {
    manager: Manager,
    time: String,
    fields: Fields,
}

/// Merges a patch as RFC 7396 says.
pub(super) fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let fields = target.as_object_mut().expect("it was just made an object");
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge_patch(fields.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Returns what an object becomes when `applied` is applied, and who owns what then.
pub(super) fn apply(
    kind: Kind,
    name: &str,
    live: &Value,
    applied: &Value,
    manager: &Manager,
    force: bool,
    now: &str,
) -> Result<Value> {
    let mut owners = owners(live);
    let wanted = leaves_of(applied);
    let mut conflicts = Vec::new();
    for owner in owners.iter_mut().filter(|owner| owner.manager != *manager) {
        let disputed: Fields = wanted
            .iter()
            .filter(|path| owner.fields.iter().any(|other| related(path, other)))
            .filter(|path| find(live, path) != find(applied, path))
            .cloned()
            .collect();
        for path in &disputed {
            if !force {
                conflicts.push((owner.manager.clone(), shown(path)));
            }
        }
        owner.fields.retain(|other| !disputed.iter().any(|path| related(path, other)));
    }
    if !conflicts.is_empty() {
        return Err(apply_conflict(kind, name, &conflicts));
    }
    let mut result = live.clone();
    overlay(&mut result, applied, "");
    let mut before = Fields::new();
    if let Some(mine) = owners.iter_mut().find(|owner| owner.manager == *manager) {
        before = std::mem::take(&mut mine.fields);
    }
    for path in before.difference(&wanted) {
        let kept = wanted.iter().any(|other| related(path, other))
            || owners.iter().any(|owner| owner.fields.iter().any(|other| related(path, other)));
        if !kept {
            remove(&mut result, path);
        }
    }
    let changed = before != wanted || without_owners(&result) != without_owners(live);
    match owners.iter_mut().find(|owner| owner.manager == *manager) {
        Some(mine) => {
            mine.fields = wanted;
            if changed {
                now.clone_into(&mut mine.time);
            }
        }
        None => owners.push(Owner { manager: manager.clone(), time: now.to_owned(), fields: wanted }),
    }
    set_owners(&mut result, kind, owners);
    Ok(result)
}

/// Gives the fields that an ordinary write changed to whoever wrote.
pub(super) fn own_changes(kind: Kind, before: &Value, after: &mut Value, manager: &Manager, now: &str) {
    let mut owners = owners(before);
    let old = leaves_of(before);
    let new = leaves_of(after);
    let changed: Fields =
        new.iter().filter(|path| find(before, path) != find(after, path)).cloned().collect();
    for owner in &mut owners {
        owner.fields.retain(|path| {
            let gone = old.contains(path) && find(after, path).is_none();
            !gone && !changed.iter().any(|other| related(path, other))
        });
    }
    if !changed.is_empty() {
        match owners.iter_mut().find(|owner| owner.manager == *manager) {
            Some(mine) => {
                mine.fields.extend(changed);
                now.clone_into(&mut mine.time);
            }
            None => owners.push(Owner { manager: manager.clone(), time: now.to_owned(), fields: changed }),
        }
    }
    set_owners(after, kind, owners);
}

/// Returns an object without the note of who owns what.
pub(super) fn without_owners(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        metadata.remove("resourceVersion");
    }
    value
}

fn apply_conflict(kind: Kind, name: &str, conflicts: &[(Manager, String)]) -> Failure {
    let with = |manager: &Manager| {
        let sub = manager.subresource.map(|sub| format!(" with subresource \"{sub}\"")).unwrap_or_default();
        let using = if manager.apply { String::new() } else { format!(" using {}", kind.api_version()) };
        format!("with \"{}\"{sub}{using}", manager.name)
    };
    let cause = |(manager, field): &(Manager, String)| {
        let message = format!("conflict {}", with(manager));
        json!({ "reason": "FieldManagerConflict", "message": message, "field": field })
    };
    let mut failure = Failure::conflict(kind, name, "");
    failure.details = json!({ "causes": conflicts.iter().map(cause).collect::<Vec<_>>() });
    failure.message = match conflicts {
        [(manager, field)] => format!("Apply failed with 1 conflict: conflict {}: {field}", with(manager)),
        _ => {
            let mut message = format!("Apply failed with {} conflicts:", conflicts.len());
            for (index, (manager, field)) in conflicts.iter().enumerate() {
                if index == 0 || conflicts[index - 1].0 != *manager {
                    message.push_str(&format!(
                        "{} {}:",
                        if index == 0 { " conflicts" } else { "\nconflicts" },
                        with(manager)
                    ));
                }
                message.push_str(&format!("\n- {field}"));
            }
            message
        }
    };
    failure
}

/// Returns whether one of two fields holds the other.
fn related(one: &Path, other: &Path) -> bool {
    one.iter().zip(other).all(|(left, right)| left == right)
}

/// Returns a path the way messages show it.
fn shown(path: &Path) -> String {
    let mut text = String::new();
    for step in path {
        match step.split_once(':') {
            Some(("f", name)) => text.push_str(&format!(".{name}")),
            Some((_, key)) => text
                .push_str(&format!("[{}]", key.replace("\":\"", "=\"").replace("{\"", "").replace('}', ""))),
            None => {}
        }
    }
    text
}

fn leaves_of(value: &Value) -> Fields {
    let mut fields = Fields::new();
    let Value::Object(object) = value else { return fields };
    for (name, value) in object {
        match (name.as_str(), value) {
            ("apiVersion" | "kind", _) => {}
            ("metadata", Value::Object(metadata)) => {
                for (inner, value) in metadata {
                    if !SERVER.contains(&inner.as_str()) {
                        let mut path = vec!["f:metadata".to_owned(), format!("f:{inner}")];
                        leaves(value, inner, &mut path, &mut fields);
                    }
                }
            }
            _ => leaves(value, name, &mut vec![format!("f:{name}")], &mut fields),
        }
    }
    fields
}

fn leaves(value: &Value, name: &str, path: &mut Path, fields: &mut Fields) {
    match value {
        Value::Null => {}
        Value::Object(object) if !ATOMIC.contains(&name) => {
            for (inner, value) in object {
                path.push(format!("f:{inner}"));
                leaves(value, inner, path, fields);
                path.pop();
            }
        }
        Value::Array(items) if name == "finalizers" => {
            for item in items {
                path.push(format!("v:{item}"));
                fields.insert(path.clone());
                path.pop();
            }
        }
        Value::Array(items) if keyed(name, items).is_some() => {
            let key = keyed(name, items).expect("it was just seen");
            for item in items {
                path.push(format!("k:{}", json!({ key: item[key] })));
                leaves(item, "", path, fields);
                path.pop();
            }
        }
        _ => {
            fields.insert(path.clone());
        }
    }
}

/// Returns the field that tells the elements of a list apart, if there is one and all of them have it.
fn keyed(name: &str, items: &[Value]) -> Option<&'static str> {
    let (_, key) = KEYED.iter().find(|(list, _)| *list == name)?;
    items.iter().all(|item| item.get(key).is_some()).then_some(key)
}

fn place(items: &[Value], step: &str) -> Option<usize> {
    let (sort, text) = step.split_once(':')?;
    // Steps are written by this module, or by a client that makes up its managed fields.
    let Ok(wanted) = serde_json::from_str::<Value>(text) else { return None };
    items.iter().position(|item| match sort {
        "v" => *item == wanted,
        _ => wanted
            .as_object()
            .is_some_and(|keys| keys.iter().all(|(key, value)| item.get(key) == Some(value))),
    })
}

fn find<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, step| match value {
        Value::Object(fields) => fields.get(step.strip_prefix("f:")?),
        Value::Array(items) => items.get(place(items, step)?),
        _ => None,
    })
}

/// Removes a field, and whatever is empty because of that.
fn remove(value: &mut Value, path: &[String]) {
    let [step, rest @ ..] = path else { return };
    match value {
        Value::Object(fields) => {
            let Some(name) = step.strip_prefix("f:") else { return };
            let Some(inner) = fields.get_mut(name) else { return };
            if !rest.is_empty() {
                remove(inner, rest);
            }
            let empty = matches!(inner, Value::Object(left) if left.is_empty())
                || matches!(inner, Value::Array(left) if left.is_empty());
            if rest.is_empty() || empty {
                fields.remove(name);
            }
        }
        Value::Array(items) => {
            let Some(index) = place(items, step) else { return };
            if !rest.is_empty() {
                remove(&mut items[index], rest);
            }
            if rest.is_empty() || matches!(&items[index], Value::Object(left) if left.is_empty()) {
                items.remove(index);
            }
        }
        _ => {}
    }
}

/// Puts what is applied over what is there.
fn overlay(live: &mut Value, applied: &Value, name: &str) {
    match (live, applied) {
        (Value::Object(live), Value::Object(applied)) if !ATOMIC.contains(&name) => {
            for (inner, value) in applied {
                overlay(live.entry(inner.clone()).or_insert(Value::Null), value, inner);
            }
        }
        (Value::Array(live), Value::Array(applied)) if name == "finalizers" => {
            for item in applied {
                if !live.contains(item) {
                    live.push(item.clone());
                }
            }
        }
        (Value::Array(live), Value::Array(applied)) if keyed(name, applied).is_some() => {
            let key = keyed(name, applied).expect("it was just seen");
            for item in applied {
                match live.iter_mut().find(|one| one.get(key) == item.get(key)) {
                    Some(one) => overlay(one, item, ""),
                    None => live.push(item.clone()),
                }
            }
        }
        (live, applied) => *live = applied.clone(),
    }
}

fn owners(value: &Value) -> Vec<Owner> {
    let Some(Value::Array(entries)) = value.pointer("/metadata/managedFields") else { return Vec::new() };
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or("").to_owned();
    entries
        .iter()
        .map(|entry| {
            let mut fields = Fields::new();
            read_fields(&entry["fieldsV1"], &mut Path::new(), &mut fields);
            let subresource = match entry["subresource"].as_str() {
                Some("status") => Some("status"),
                Some("binding") => Some("binding"),
                _ => None,
            };
            let apply = entry["operation"] == "Apply";
            let manager = Manager { name: text(entry, "manager"), apply, subresource };
            Owner { manager, time: text(entry, "time"), fields }
        })
        .collect()
}

fn set_owners(value: &mut Value, kind: Kind, owners: Vec<Owner>) {
    let entries: Vec<Value> = owners
        .into_iter()
        .filter(|owner| !owner.fields.is_empty())
        .map(|owner| {
            let mut entry = json!({
                "manager": owner.manager.name,
                "operation": if owner.manager.apply { "Apply" } else { "Update" },
                "apiVersion": kind.api_version(),
                "time": owner.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": write_fields(&owner.fields),
            });
            if let Some(subresource) = owner.manager.subresource {
                entry["subresource"] = subresource.into();
            }
            entry
        })
        .collect();
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        if entries.is_empty() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".to_owned(), entries.into());
        }
    }
}

fn read_fields(value: &Value, path: &mut Path, fields: &mut Fields) {
    let Value::Object(object) = value else { return };
    if object.is_empty() {
        if !path.is_empty() {
            fields.insert(path.clone());
        }
        return;
    }
    for (step, inner) in object.iter().filter(|(step, _)| *step != ".") {
        path.push(step.clone());
        read_fields(inner, path, fields);
        path.pop();
    }
}

fn write_fields(fields: &Fields) -> Value {
    let mut root = Map::new();
    for path in fields {
        let mut place = &mut root;
        for step in path {
            place = place
                .entry(step.clone())
                .or_insert_with(|| json!({}))
                .as_object_mut()
                .expect("only objects are put in here");
        }
    }
    root.into()
}
