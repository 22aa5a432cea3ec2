//! Creating, changing and deleting objects as an API server does.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{
    apply::{self, Manager},
    kinds::Kind,
    status::{Failure, Result},
    store::{self, Object, Store},
};

/// What a write is about.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) kind: Kind,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) subresource: Option<&'static str>,
}

/// How it is to be done.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    pub(super) manager: String,
    pub(super) dry: bool,
    pub(super) force: bool,
}

/// What came of a write.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) object: Arc<Object>,
    pub(super) created: bool,
}

/// What a delete asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct Deletion {
    pub(super) grace: Option<i64>,
    pub(super) uid: Option<String>,
    pub(super) version: Option<String>,
    pub(super) dry: bool,
}

/// What came of a delete.
#[derive(Debug)]
pub(super) struct Deleted {
    pub(super) object: Arc<Object>,
    /// Whether it is gone, and not just marked.
    pub(super) gone: bool,
}

/// Returns the time as it stands in objects.
pub(super) fn now() -> String {
    jiff::Timestamp::from_second(jiff::Timestamp::now().as_second())
        .expect("the present is in range")
        .to_string()
}

/// Returns a uid that no other object has.
pub(super) fn uid(store: &Store, kind: Kind) -> String {
    let number = store.version + 1;
    format!("{:08x}-0000-4000-8000-{number:012x}", kind as u32 + 1)
}

impl Target {
    fn key(&self) -> String {
        store::key(self.namespace.as_deref(), &self.name)
    }

    fn missing(&self) -> Failure {
        Failure::not_found(self.kind, &self.name)
    }
}

/// Brings a body into shape: kind, name, namespace and fields as they must be.
fn shaped(target: &mut Target, mut value: Value) -> Result<Value> {
    let kind = target.kind;
    let bad = |why: String| Failure::new(400, why);
    for (field, wanted) in [("apiVersion", kind.api_version()), ("kind", kind.facts().kind.to_owned())] {
        match value.get(field).and_then(Value::as_str) {
            None | Some("") => value[field] = wanted.into(),
            Some(given) if given == wanted => {}
            Some(given) => {
                return Err(bad(format!("{field}: {given} does not match the expected {wanted}")));
            }
        }
    }
    let mut value = (kind.facts().shape)(value).map_err(|error| {
        bad(format!("{} in version \"v1\" cannot be handled: {error}", kind.facts().kind))
    })?;
    without_empty(&mut value);
    let metadata = metadata(&mut value);
    if let Some(namespace) = &target.namespace {
        match metadata.get("namespace").and_then(Value::as_str) {
            None => {
                metadata.insert("namespace".to_owned(), namespace.as_str().into());
            }
            Some(given) if given == namespace => {}
            Some(_) => {
                return Err(bad(
                    "the namespace of the provided object does not match the namespace sent on the request"
                        .into(),
                ));
            }
        }
    } else {
        metadata.remove("namespace");
    }
    match metadata.get("name").and_then(Value::as_str) {
        None if !target.name.is_empty() => {
            metadata.insert("name".to_owned(), target.name.as_str().into());
        }
        None => {}
        Some(given) if target.name.is_empty() => given.clone_into(&mut target.name),
        Some(given) if given == target.name => {}
        Some(given) => {
            return Err(bad(format!(
                "the name of the object ({given}) does not match the name on the URL ({})",
                target.name
            )));
        }
    }
    Ok(value)
}

/// Removes the empty maps and lists in the metadata and at the top, which a real server does not write either.
fn without_empty(value: &mut Value) {
    let empty = |value: &Value| {
        matches!(value, Value::Object(fields) if fields.is_empty())
            || matches!(value, Value::Array(items) if items.is_empty())
    };
    if let Value::Object(fields) = value {
        fields.retain(|name, inner| {
            !empty(inner) || matches!(name.as_str(), "metadata" | "spec" | "endpoints")
        });
    }
    metadata(value).retain(|_, inner| !empty(inner));
}

fn metadata(value: &mut Value) -> &mut Map<String, Value> {
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    value["metadata"].as_object_mut().expect("it is an object by now")
}

fn check_name(target: &Target) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let name = target.name.as_bytes();
    if name.is_empty() {
        return Err(Failure::invalid(
            target.kind,
            "",
            "metadata.name",
            "Required value: name or generateName is required",
        ));
    }
    if !name.iter().copied().all(good) || !edge(name.first()) || !edge(name.last()) || name.len() > 253 {
        let why = format!(
            "Invalid value: \"{}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'",
            target.name
        );
        return Err(Failure::invalid(target.kind, &target.name, "metadata.name", &why));
    }
    Ok(())
}

/// Creates an object.
pub(super) fn create(
    store: &mut Store,
    mut target: Target,
    value: Value,
    manner: &Manner,
) -> Result<Written> {
    let value = shaped(&mut target, value)?;
    let mut value = begun(store, &mut target, value)?;
    let manager = Manager { name: manner.manager.clone(), apply: false, subresource: None };
    apply::own_changes(target.kind, &json!({}), &mut value, &manager, &now());
    Ok(Written { object: stored(store, target.kind, value, manner.dry), created: true })
}

/// Checks that an object may begin to exist, and gives it what objects have from the start.
fn begun(store: &Store, target: &mut Target, mut value: Value) -> Result<Value> {
    let kind = target.kind;
    if target.name.is_empty()
        && let Some(prefix) = value["metadata"]["generateName"].as_str()
    {
        target.name = format!("{prefix}{:05x}", (store.version + 1) & 0xf_ffff);
        value["metadata"]["name"] = target.name.as_str().into();
    }
    check_name(target)?;
    if value["metadata"]["resourceVersion"].as_str().is_some_and(|version| !version.is_empty()) {
        return Err(Failure::new(500, "resourceVersion should not be set on objects to be created"));
    }
    if let Some(namespace) = &target.namespace {
        let Some(found) = store.get(Kind::Namespace, namespace) else {
            return Err(Failure::not_found(Kind::Namespace, namespace));
        };
        if &*found.fields[0] == "Terminating" {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            return Err(Failure::forbidden(kind, &target.name, &why));
        }
    }
    if store.get(kind, &target.key()).is_some() {
        return Err(Failure::exists(kind, &target.name));
    }
    let uid = uid(store, kind);
    let metadata = metadata(&mut value);
    metadata.insert("uid".to_owned(), uid.into());
    metadata.insert("creationTimestamp".to_owned(), now().into());
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "generation"] {
        metadata.remove(field);
    }
    if kind.facts().generation {
        metadata.insert("generation".to_owned(), 1.into());
    }
    match kind {
        Kind::Pod => {
            if value["spec"]["containers"].as_array().is_none_or(Vec::is_empty) {
                return Err(Failure::invalid(kind, &target.name, "spec.containers", "Required value"));
            }
            defaults(
                &mut value["spec"],
                &json!({
                    "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
                    "schedulerName": "default-scheduler", "securityContext": {}, "enableServiceLinks": true,
                }),
            );
            for container in value["spec"]["containers"].as_array_mut().into_iter().flatten() {
                default_protocols(container);
            }
            value["status"] = json!({ "phase": "Pending", "qosClass": "BestEffort" });
        }
        Kind::Namespace => {
            let name = Value::from(target.name.as_str());
            value["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            value["spec"]["finalizers"] = json!(["kubernetes"]);
            value["status"] = json!({ "phase": "Active" });
        }
        Kind::Service => service_defaults(store, &mut value),
        _ => {}
    }
    Ok(value)
}

fn defaults(fields: &mut Value, wanted: &Value) {
    for (name, value) in wanted.as_object().into_iter().flatten() {
        if fields.get(name).is_none() {
            fields[name] = value.clone();
        }
    }
}

fn default_protocols(holder: &mut Value) {
    for port in holder.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        defaults(port, &json!({ "protocol": "TCP" }));
    }
}

fn service_defaults(store: &Store, value: &mut Value) {
    value["status"] = json!({ "loadBalancer": {} });
    let spec = &mut value["spec"];
    defaults(spec, &json!({ "type": "ClusterIP", "sessionAffinity": "None" }));
    default_protocols(spec);
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let number = port["port"].clone();
        defaults(port, &json!({ "targetPort": number }));
    }
    if spec["type"] == "ExternalName" {
        return;
    }
    if spec["clusterIP"].as_str().is_none_or(str::is_empty) {
        let given = spec["clusterIPs"][0].as_str().map(str::to_owned);
        let number = store.version % 0xfff0 + 0x100;
        let free = || format!("10.96.{}.{}", (number >> 8) & 0xff, number & 0xff);
        spec["clusterIP"] = given.unwrap_or_else(free).into();
    }
    let first = spec["clusterIP"].clone();
    let six = first.as_str().is_some_and(|address| address.contains(':'));
    defaults(
        spec,
        &json!({
            "clusterIPs": [first], "internalTrafficPolicy": "Cluster", "ipFamilyPolicy": "SingleStack",
            "ipFamilies": [if six { "IPv6" } else { "IPv4" }],
        }),
    );
}

fn stored(store: &mut Store, kind: Kind, value: Value, dry: bool) -> Arc<Object> {
    let Value::Object(fields) = value else { unreachable!("what is stored was an object all along") };
    if dry { Arc::new(Object::new(kind, fields, store.version)) } else { store.put(kind, fields) }
}

/// Replaces an object.
pub(super) fn update(
    store: &mut Store,
    mut target: Target,
    value: Value,
    manner: &Manner,
) -> Result<Written> {
    let value = shaped(&mut target, value)?;
    let Some(live) = store.get(target.kind, &target.key()).cloned() else {
        if target.kind.facts().upsert && target.subresource.is_none() {
            return create(store, target, value, manner);
        }
        return Err(target.missing());
    };
    if target.kind == Kind::Lease && value["metadata"]["resourceVersion"].as_str().is_none_or(str::is_empty) {
        let why = "Invalid value: 0: must be specified for an update";
        return Err(Failure::invalid(target.kind, &target.name, "metadata.resourceVersion", why));
    }
    replace(store, &target, &live, value, manner)
}

/// Merges a patch into an object.
pub(super) fn patch(
    store: &mut Store,
    mut target: Target,
    patch: &Value,
    manner: &Manner,
) -> Result<Written> {
    let live = store.get(target.kind, &target.key()).cloned().ok_or_else(|| target.missing())?;
    if !patch.is_object() {
        return Err(Failure::new(400, "a merge patch must be an object"));
    }
    let mut value = live.value(target.kind);
    let version = patch.pointer("/metadata/resourceVersion").cloned();
    apply::merge_patch(&mut value, patch);
    // The version counts only where the patch names one.
    metadata(&mut value).remove("resourceVersion");
    if let Some(version) = version {
        value["metadata"]["resourceVersion"] = version;
    }
    let value = shaped(&mut target, value).map_err(|mut failure| {
        // What was sent is a good patch, but not for this object.
        (failure.code, failure.reason) = (422, "Invalid");
        failure
    })?;
    replace(store, &target, &live, value, manner)
}

/// Puts a whole new state in the place of a live one, with what the server keeps.
fn replace(
    store: &mut Store,
    target: &Target,
    live: &Arc<Object>,
    value: Value,
    manner: &Manner,
) -> Result<Written> {
    let before = live.value(target.kind);
    let mut value = kept(target, &before, value)?;
    let manager = Manager { name: manner.manager.clone(), apply: false, subresource: target.subresource };
    apply::own_changes(target.kind, &before, &mut value, &manager, &now());
    settle(store, target, live, &before, value, manner)
}

/// Applies an object as a field manager.
pub(super) fn apply(store: &mut Store, mut target: Target, value: Value, manner: &Manner) -> Result<Written> {
    if value.pointer("/metadata/managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(Failure::new(400, "metadata.managedFields must be nil"));
    }
    if value.get("apiVersion").is_none() || value.get("kind").is_none() {
        return Err(Failure::new(400, "invalid object type: apiVersion and kind are required"));
    }
    let manager = Manager { name: manner.manager.clone(), apply: true, subresource: target.subresource };
    // What is applied is merged as it is written: the shape may add fields that nobody wrote.
    let mut applied = value.clone();
    let fields = applied.as_object_mut().ok_or_else(|| Failure::new(400, "not an object"))?;
    match (target.kind.facts().status, target.subresource) {
        (true, None) => {
            fields.remove("status");
        }
        (true, Some("status")) => {
            fields.retain(|name, _| matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
        }
        _ => {}
    }
    shaped(&mut target, value)?;
    let Some(live) = store.get(target.kind, &target.key()).cloned() else {
        if target.subresource.is_some() {
            return Err(target.missing());
        }
        if let Some(uid) = applied.pointer("/metadata/uid").and_then(Value::as_str) {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(Failure::conflict(target.kind, &target.name, &why));
        }
        // A version says what must not have changed; where nothing is, nothing has.
        metadata(&mut applied).remove("resourceVersion");
        let begun = begun(store, &mut target.clone(), shaped(&mut target, applied.clone())?)?;
        let mut value = apply::apply(target.kind, &target.name, &begun, &applied, &manager, true, &now())?;
        let shaped = shaped(&mut target, value.clone())?;
        let owners = value["metadata"]["managedFields"].take();
        value = shaped;
        value["metadata"]["managedFields"] = owners;
        return Ok(Written { object: stored(store, target.kind, value, manner.dry), created: true });
    };
    let before = live.value(target.kind);
    let merged = apply::apply(target.kind, &target.name, &before, &applied, &manager, manner.force, &now())?;
    let owners = merged["metadata"]["managedFields"].clone();
    let given = applied.pointer("/metadata/resourceVersion").cloned();
    let mut merged = merged;
    metadata(&mut merged).remove("resourceVersion");
    if let Some(given) = given {
        merged["metadata"]["resourceVersion"] = given;
    }
    let mut value = kept(&target, &before, shaped(&mut target.clone(), merged)?)?;
    value["metadata"]["managedFields"] = owners;
    settle(store, &target, &live, &before, value, manner)
}

/// Checks a new state against the live one and restores what a client may not write.
fn kept(target: &Target, before: &Value, mut value: Value) -> Result<Value> {
    let kind = target.kind;
    let given = value["metadata"]["resourceVersion"].as_str().unwrap_or("").to_owned();
    if !given.is_empty() && before["metadata"]["resourceVersion"] != given.as_str() {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        return Err(Failure::conflict(kind, &target.name, why));
    }
    if let Some(uid) = value["metadata"]["uid"].as_str()
        && before["metadata"]["uid"] != uid
    {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            before["metadata"]["uid"].as_str().unwrap_or("")
        );
        return Err(Failure::conflict(kind, &target.name, &why));
    }
    let status = target.subresource == Some("status");
    if kind.facts().status {
        let copied: &[&str] = if status { &["spec", "data", "stringData"] } else { &["status"] };
        for field in copied {
            match before.get(field) {
                Some(old) => value[*field] = old.clone(),
                None => {
                    value.as_object_mut().expect("shaped values are objects").remove(*field);
                }
            }
        }
    }
    let old = &before["metadata"];
    let metadata = metadata(&mut value);
    let server = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
    ];
    for field in server.iter().chain(if status { &["ownerReferences", "finalizers"][..] } else { &[] }) {
        match old.get(field) {
            Some(value) => {
                metadata.insert((*field).to_owned(), value.clone());
            }
            None => {
                metadata.remove(*field);
            }
        }
    }
    metadata.insert("resourceVersion".to_owned(), old["resourceVersion"].clone());
    match kind {
        Kind::Pod if !status => {
            let binding = target.subresource == Some("binding");
            if before["spec"]["nodeName"] != value["spec"]["nodeName"] && !binding {
                let why = "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
                return Err(Failure::invalid(kind, &target.name, "spec", why));
            }
        }
        Kind::Namespace => {
            let name = Value::from(target.name.as_str());
            value["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            if target.subresource != Some("finalize") {
                value["spec"] = before["spec"].clone();
            }
        }
        Kind::Service if !status => {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if value["spec"].get(field).is_none()
                    && value["spec"]["type"] != "ExternalName"
                    && let Some(old) = before["spec"].get(field)
                {
                    value["spec"][field] = old.clone();
                }
            }
        }
        _ => {}
    }
    if kind.facts().generation && !status {
        let body = |value: &Value| {
            let mut value = value.clone();
            if let Some(fields) = value.as_object_mut() {
                fields.retain(|name, _| !matches!(name.as_str(), "metadata" | "status"));
            }
            value
        };
        if body(before) != body(&value) {
            let generation = before["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            value["metadata"]["generation"] = generation.into();
        }
    }
    Ok(value)
}

/// Stores a new state, unless nothing changed or the object is gone with it.
fn settle(
    store: &mut Store,
    target: &Target,
    live: &Arc<Object>,
    before: &Value,
    value: Value,
    manner: &Manner,
) -> Result<Written> {
    let owners = |value: &Value| {
        let mut owners = value["metadata"]["managedFields"].clone();
        for owner in owners.as_array_mut().into_iter().flatten() {
            owner["time"] = Value::Null;
        }
        owners
    };
    if apply::without_owners(before) == apply::without_owners(&value) && owners(before) == owners(&value) {
        return Ok(Written { object: Arc::clone(live), created: false });
    }
    if is_done(target.kind, &value) && !manner.dry {
        let Value::Object(fields) = value else { unreachable!("shaped values are objects") };
        store.put_quietly(target.kind, fields);
        let object = store.remove(target.kind, &target.key()).expect("it was just put there");
        return Ok(Written { object, created: false });
    }
    Ok(Written { object: stored(store, target.kind, value, manner.dry), created: false })
}

/// Returns whether a marked object has nothing left that it waits for.
fn is_done(kind: Kind, value: &Value) -> bool {
    let metadata = &value["metadata"];
    let waits = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    metadata.get("deletionTimestamp").is_some()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && !waits(&metadata["finalizers"])
        && !(kind == Kind::Namespace && waits(&value["spec"]["finalizers"]))
}

/// Deletes an object, or marks it when something must happen before.
pub(super) fn delete(store: &mut Store, target: &Target, deletion: &Deletion) -> Result<Deleted> {
    let live = store.get(target.kind, &target.key()).cloned().ok_or_else(|| target.missing())?;
    let mut value = live.value(target.kind);
    let wanted = [("uid", &deletion.uid), ("resourceVersion", &deletion.version)];
    for (field, wanted) in wanted {
        if let Some(wanted) = wanted
            && value["metadata"][field] != wanted.as_str()
        {
            let why = format!("Precondition failed: {field} is not {wanted}");
            return Err(Failure::conflict(target.kind, &target.name, &why));
        }
    }
    if deletion.dry {
        return Ok(Deleted { object: live, gone: false });
    }
    let grace = if target.kind == Kind::Pod { grace(&value, deletion.grace) } else { 0 };
    let marked = value["metadata"].get("deletionTimestamp").is_some();
    let left = value["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    if marked && grace >= left && grace > 0 {
        return Ok(Deleted { object: live, gone: false });
    }
    let before = value.clone();
    let fields = metadata(&mut value);
    if !marked {
        let end = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + grace)
            .expect("grace periods are short");
        fields.insert("deletionTimestamp".to_owned(), end.to_string().into());
    }
    fields.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
    if is_done(target.kind, &value) {
        let object = store.remove(target.kind, &target.key()).expect("it was there a moment ago");
        return Ok(Deleted { object, gone: true });
    }
    if target.kind == Kind::Namespace {
        value["status"]["phase"] = "Terminating".into();
    }
    if target.kind.facts().generation && !marked {
        let generation = value["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        value["metadata"]["generation"] = generation.into();
    }
    let object = if value == before { live } else { stored(store, target.kind, value, false) };
    Ok(Deleted { object, gone: false })
}

/// Returns how many seconds a pod has left: none where no kubelet would stop it.
fn grace(pod: &Value, asked: Option<i64>) -> i64 {
    let waiting = pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
    let finished = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if waiting || finished {
        return 0;
    }
    asked.or(pod["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30)
}

/// Assigns a pod to a node.
pub(super) fn bind(store: &mut Store, target: &Target, binding: &Value, manner: &Manner) -> Result<()> {
    let live = store.get(target.kind, &target.key()).cloned().ok_or_else(|| target.missing())?;
    let Some(node) = binding["target"]["name"].as_str().filter(|name| !name.is_empty()) else {
        return Err(Failure::invalid(Kind::Pod, &target.name, "target.name", "Required value"));
    };
    let before = live.value(target.kind);
    if let Some(present) = before["spec"]["nodeName"].as_str().filter(|name| !name.is_empty()) {
        let why = format!("pod {} is already assigned to node \"{present}\"", target.name);
        return Err(Failure::conflict(Kind::Pod, &target.name, &why));
    }
    let mut value = before.clone();
    value["spec"]["nodeName"] = node.into();
    let scheduled = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now(),
    });
    let conditions = &mut value["status"]["conditions"];
    match conditions.as_array_mut() {
        Some(conditions) => {
            conditions.retain(|one| one["type"] != "PodScheduled");
            conditions.push(scheduled);
        }
        None => *conditions = json!([scheduled]),
    }
    let generation = value["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
    value["metadata"]["generation"] = generation.into();
    let manager = Manager { name: manner.manager.clone(), apply: false, subresource: Some("binding") };
    apply::own_changes(target.kind, &before, &mut value, &manager, &now());
    stored(store, target.kind, value, manner.dry);
    Ok(())
}
