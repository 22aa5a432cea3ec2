//! Rights as RBAC has them: what a role grants, and what is left of it without one.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::api::Server;

const GROUP: &str = "rbac.authorization.k8s.io";

/// A verb on a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// The API group; empty for the core.
    pub group: String,
    /// The resource, in the plural.
    pub resource: String,
    /// The verb.
    pub verb: String,
}

impl Right {
    /// Returns how the API server names a right that is missing.
    #[must_use]
    pub fn missing(&self) -> String {
        let Self { group, resource, verb } = self;
        format!("cannot {verb} resource \"{resource}\" in API group \"{group}\"")
    }
}

fn words(value: &Value) -> Vec<String> {
    let words = value.as_array().expect("a rule has lists of words").iter();
    words.map(|word| word.as_str().expect("a word is text").to_owned()).collect()
}

fn rules(role: &Value) -> impl Iterator<Item = &Value> {
    role["rules"].as_array().expect("a role has rules").iter()
}

/// Returns the roles, of namespaces and of the cluster, in what `kubectl --output json` prints.
///
/// # Errors
///
/// When it is no JSON.
pub fn roles(printed: &str) -> Result<Vec<Value>> {
    let mut objects: Vec<Value> = Vec::new();
    for document in serde_json::Deserializer::from_str(printed).into_iter::<Value>() {
        let document = document.context("kubectl prints JSON")?;
        match document["items"].as_array() {
            Some(items) => objects.extend(items.iter().cloned()),
            None => objects.push(document),
        }
    }
    objects.retain(|object| object["kind"] == "ClusterRole" || object["kind"] == "Role");
    Ok(objects)
}

/// Returns every right of a role, each once.
#[must_use]
pub fn of(role: &Value) -> Vec<Right> {
    let mut rights = Vec::new();
    for rule in rules(role) {
        for group in words(&rule["apiGroups"]) {
            for resource in words(&rule["resources"]) {
                for verb in words(&rule["verbs"]) {
                    rights.push(Right { group: group.clone(), resource: resource.clone(), verb });
                }
            }
        }
    }
    rights.sort();
    rights.dedup();
    rights
}

/// Returns a role without one of its rights.
#[must_use]
pub fn without(role: &Value, right: &Right) -> Value {
    let mut role = role.clone();
    let mut left = Vec::new();
    for rule in rules(&role) {
        for group in words(&rule["apiGroups"]) {
            for resource in words(&rule["resources"]) {
                let is_meant = group == right.group && resource == right.resource;
                let verbs = words(&rule["verbs"]).into_iter();
                let verbs: Vec<String> = verbs.filter(|verb| !is_meant || *verb != right.verb).collect();
                if !verbs.is_empty() {
                    let mut less = rule.clone();
                    less["apiGroups"] = json!([group]);
                    less["resources"] = json!([resource]);
                    less["verbs"] = json!(verbs);
                    left.push(less);
                }
            }
        }
    }
    role["rules"] = left.into();
    role
}

/// Gives the account of this name, in a namespace of that name, copies of roles of its own. A role of the namespace `home` becomes one of
/// that namespace.
///
/// # Errors
///
/// When the server refuses.
pub fn grant(server: &Server, account: &str, home: &str, roles: &[Value]) -> Result<()> {
    for (number, role) in roles.iter().enumerate() {
        let (kind, binding) = match role["kind"].as_str() {
            Some("Role") => ("Role", "RoleBinding"),
            Some("ClusterRole") => ("ClusterRole", "ClusterRoleBinding"),
            other => bail!("{other:?} is no role"),
        };
        let mut metadata = json!({ "name": format!("{account}-{number}") });
        if kind == "Role" {
            let own = &role["metadata"]["namespace"];
            metadata["namespace"] = if own == home { account.into() } else { own.clone() };
        }
        let version = format!("{GROUP}/v1");
        server.put(
            &json!({ "apiVersion": version, "kind": kind, "metadata": metadata, "rules": role["rules"] }),
        )?;
        server.put(&json!({
            "apiVersion": version, "kind": binding, "metadata": metadata,
            "roleRef": { "apiGroup": GROUP, "kind": kind, "name": metadata["name"] },
            "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": account }],
        }))?;
    }
    Ok(())
}
