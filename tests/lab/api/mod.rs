//! The API server that tests run against: a real one, or a double in this process.
//!
//! [`Server`] is either of them. The double is always there, starts at once, holds large clusters and commits faults on
//! demand; the real one needs its binaries and some seconds. One conformance suite runs on both, in `kernel/api.rs`.

mod apply;
pub mod client;
pub mod counts;
pub mod double;
pub mod faults;
pub mod kinds;
pub mod real;
mod selectors;
mod status;
mod store;
mod watching;
mod write;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail};
use kube::Client;
use serde::Serialize;
use serde_json::{Value, json};

use self::client::{User, Worker};
pub use self::{
    counts::{Asked, Count, Verb},
    double::Double,
    faults::{Fault, Faults, Rule, RuleId, When},
    kinds::Kind,
    real::Real,
    store::{Form, Snapshot},
};

/// The kinds without a namespace that tests create, besides those the double serves.
const CLUSTER_WIDE: [&str; 6] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "PriorityClass",
    "ValidatingAdmissionPolicy",
    "ValidatingWebhookConfiguration",
];
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

/// Which server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `kube-apiserver`.
    Real,
    /// The double.
    Double,
}

enum Inner {
    Real(Real),
    Double(Double),
}

/// An API server, and a client of it with all rights.
///
/// All calls wait for the answer, from async code too; they run on a thread of their own.
pub struct Server {
    // In the order of their end: the client, the worker, the server.
    client: Client,
    worker: Worker,
    inner: Inner,
    files: AtomicU32,
}

/// Returns the path of an object, or of all objects of its kind when `name` is empty.
///
/// # Errors
///
/// When the object has no `apiVersion` or `kind`.
pub fn path(object: &Value, name: &str) -> Result<String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("");
    let (version, kind) = (text("/apiVersion"), text("/kind"));
    if version.is_empty() || kind.is_empty() {
        bail!("an object without apiVersion or kind: {object}");
    }
    let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let known = Kind::named(version, kind).map(Kind::facts);
    let lower = kind.to_lowercase();
    let plural = match known {
        Some(facts) => facts.plural.to_owned(),
        None if lower.ends_with('y') => format!("{}ies", &lower[..lower.len() - 1]),
        None if lower.ends_with('s') => format!("{lower}es"),
        None => format!("{lower}s"),
    };
    let namespaced = known.map_or(!CLUSTER_WIDE.contains(&kind), |facts| facts.namespaced);
    let within = match text("/metadata/namespace") {
        _ if !namespaced => String::new(),
        "" => "/namespaces/default".to_owned(),
        namespace => format!("/namespaces/{namespace}"),
    };
    let last = if name.is_empty() { String::new() } else { format!("/{name}") };
    Ok(format!("{root}{within}/{plural}{last}"))
}

fn name(object: &Value) -> Result<String> {
    let name = object.pointer("/metadata/name").and_then(Value::as_str);
    name.map(str::to_owned).with_context(|| format!("an object without a name: {object}"))
}

fn value(object: &impl Serialize) -> Result<Value> {
    serde_json::to_value(object).context("an object that cannot be written as JSON")
}

/// Returns whether an error is an answer of the server with this HTTP status.
#[must_use]
pub fn refused_with(error: &anyhow::Error, code: u16) -> bool {
    matches!(error.downcast_ref::<kube::Error>(), Some(kube::Error::Api(status)) if status.code == code)
}

impl Server {
    /// Starts a double.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn double() -> Result<Self> {
        Self::of_double(Double::start()?)
    }

    /// Takes a double that was started elsewhere.
    ///
    /// # Errors
    ///
    /// When there is no thread to be had.
    pub fn of_double(double: Double) -> Result<Self> {
        let worker = Worker::start()?;
        let client = worker.client(&double.kubeconfig())?;
        Ok(Self { client, worker, inner: Inner::Double(double), files: AtomicU32::new(0) })
    }

    /// Starts a real server.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn real(binaries: &real::Binaries, settings: &real::Settings) -> Result<Self> {
        let real = Real::start(binaries, settings)?;
        let worker = Worker::start()?;
        let client = worker.client(&real.kubeconfig())?;
        Ok(Self { client, worker, inner: Inner::Real(real), files: AtomicU32::new(0) })
    }

    /// Returns which server it is.
    #[must_use]
    pub fn backend(&self) -> Backend {
        match self.inner {
            Inner::Real(_) => Backend::Real,
            Inner::Double(_) => Backend::Double,
        }
    }

    /// Returns the double, if it is one.
    #[must_use]
    pub fn as_double(&self) -> Option<&Double> {
        match &self.inner {
            Inner::Real(_) => None,
            Inner::Double(double) => Some(double),
        }
    }

    /// Returns the real server, if it is one.
    #[must_use]
    pub fn as_real(&self) -> Option<&Real> {
        match &self.inner {
            Inner::Real(real) => Some(real),
            Inner::Double(_) => None,
        }
    }

    /// Returns its URL.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.inner {
            Inner::Real(real) => real.url(),
            Inner::Double(double) => double.url(),
        }
    }

    /// Returns the kubeconfig file of an administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        match &self.inner {
            Inner::Real(real) => real.kubeconfig(),
            Inner::Double(double) => double.kubeconfig(),
        }
    }

    /// Returns a client with all rights. It works in any runtime, as long as the server lives.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Returns the thread that calls run on.
    #[must_use]
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Returns a token of a ServiceAccount, made if it is not there. The double takes any token.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn token(&self, namespace: &str, account: &str) -> Result<String> {
        match &self.inner {
            Inner::Real(real) => real.token(namespace, account),
            Inner::Double(_) => Ok(format!("double:{namespace}:{account}")),
        }
    }

    /// Returns a kubeconfig file with the rights of a ServiceAccount.
    ///
    /// # Errors
    ///
    /// When there is no token for it, or the file cannot be written.
    pub fn kubeconfig_for(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        self.write_kubeconfig(self.token(namespace, account)?, &format!("{namespace}-{account}"))
    }

    /// Returns a kubeconfig file with the rights of a ServiceAccount's pod on a node. The account must be there.
    ///
    /// # Errors
    ///
    /// As [`Self::kubeconfig_for`].
    pub fn kubeconfig_on(&self, namespace: &str, account: &str, node: &str) -> Result<PathBuf> {
        match &self.inner {
            Inner::Real(real) => self.write_kubeconfig(real.token_on(namespace, account, node)?, account),
            Inner::Double(_) => self.kubeconfig_for(namespace, account),
        }
    }

    fn write_kubeconfig(&self, token: String, name: &str) -> Result<PathBuf> {
        let (folder, ca) = match &self.inner {
            Inner::Real(real) => (real.folder(), Some(real.ca())),
            Inner::Double(double) => (double.folder(), None),
        };
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{name}-{number}.kubeconfig"));
        client::write_kubeconfig(&path, &self.url(), ca.as_deref(), &User::Token(token))?;
        Ok(path)
    }

    /// Refuses connections: the double stops listening, the real server is stopped.
    ///
    /// # Errors
    ///
    /// When it does not stop.
    pub fn stop(&self) -> Result<()> {
        match &self.inner {
            Inner::Real(real) => real.stop_api(),
            Inner::Double(double) => double.stop(),
        }
    }

    /// Comes back after [`Self::stop`], with everything it had.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn resume(&self) -> Result<()> {
        match &self.inner {
            Inner::Real(real) => real.start_api(),
            Inner::Double(double) => double.resume(),
        }
    }

    /// Sends any request and returns the JSON of the answer.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached or refuses; [`refused_with`] tells how.
    pub fn request(&self, method: &str, path: &str, sort: &str, body: &Value) -> Result<Value> {
        let answer = self.worker.request(&self.client, method, path, sort, body);
        answer.with_context(|| format!("{method} {path}"))
    }

    /// Creates an object.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn create(&self, object: &impl Serialize) -> Result<Value> {
        let object = value(object)?;
        self.request("POST", &path(&object, "")?, JSON, &object)
    }

    /// Reads the object of this kind, namespace and name.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn get(&self, object: &impl Serialize) -> Result<Value> {
        let object = value(object)?;
        self.request("GET", &path(&object, &name(&object)?)?, JSON, &Value::Null)
    }

    /// Replaces an object.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn update(&self, object: &impl Serialize) -> Result<Value> {
        let object = value(object)?;
        self.request("PUT", &path(&object, &name(&object)?)?, JSON, &object)
    }

    /// Merges a patch into the object of this kind, namespace and name.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn merge(&self, object: &impl Serialize, patch: &Value) -> Result<Value> {
        let object = value(object)?;
        self.request("PATCH", &path(&object, &name(&object)?)?, MERGE, patch)
    }

    /// Sets the status of an object that is there.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn set_status(&self, object: &impl Serialize, status: &Value) -> Result<Value> {
        let object = value(object)?;
        let path = format!("{}/status", path(&object, &name(&object)?)?);
        self.request("PATCH", &path, MERGE, &json!({ "status": status }))
    }

    /// Creates an object or brings the one that is there to this state: labels, annotations, the rest, and the status.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn put(&self, object: &impl Serialize) -> Result<Value> {
        let object = value(object)?;
        let created = self.create(&object);
        let mut result = match created {
            Err(error) if refused_with(&error, 409) => {
                let mut live = self.get(&object)?;
                bring(&mut live, &object);
                self.update(&live)?
            }
            created => created?,
        };
        if let Some(status) = object.get("status")
            && result.get("status") != Some(status)
            && matches!(object["kind"].as_str(), Some("Pod" | "Node" | "Service"))
        {
            result = self.set_status(&object, status)?;
        }
        Ok(result)
    }

    /// Deletes the object of this kind, namespace and name, at once.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn delete(&self, object: &impl Serialize) -> Result<()> {
        let object = value(object)?;
        let options = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0 });
        self.request("DELETE", &path(&object, &name(&object)?)?, JSON, &options)?;
        Ok(())
    }

    /// Deletes a pod the way people do, so that one on a node stays until a kubelet ends it.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn delete_gracefully(&self, object: &impl Serialize) -> Result<()> {
        let object = value(object)?;
        self.request("DELETE", &path(&object, &name(&object)?)?, JSON, &Value::Null)?;
        Ok(())
    }

    /// Creates a namespace with labels, if it is not there.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<Value> {
        let labels: serde_json::Map<String, Value> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
        self.put(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } }))
    }

    /// Removes a namespace with the objects in it that the double serves, as a namespace controller does.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn remove_namespace(&self, name: &str) -> Result<()> {
        let options = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0 });
        let own = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        let own_path = path(&own, name)?;
        self.request("DELETE", &own_path, JSON, &Value::Null)?;
        for kind in kinds::ALL.into_iter().filter(|kind| kind.facts().namespaced) {
            let object = json!({
                "apiVersion": kind.api_version(), "kind": kind.facts().kind, "metadata": { "namespace": name },
            });
            let all = path(&object, "")?;
            let list = self.request("GET", &all, JSON, &Value::Null)?;
            for item in list["items"].as_array().into_iter().flatten() {
                let item = format!("{all}/{}", item["metadata"]["name"].as_str().unwrap_or(""));
                match self.request("DELETE", &item, JSON, &options) {
                    Err(error) if !refused_with(&error, 404) => return Err(error),
                    _ => {}
                }
            }
        }
        let mut live = self.request("GET", &own_path, JSON, &Value::Null)?;
        live["spec"]["finalizers"] = json!([]);
        self.request("PUT", &format!("{own_path}/finalize"), JSON, &live)?;
        Ok(())
    }
}

/// Brings a live object to a wanted state, keeping what the server filled in.
fn bring(live: &mut Value, wanted: &Value) {
    for field in ["labels", "annotations"] {
        live["metadata"][field] = wanted["metadata"][field].clone();
    }
    // Most of a pod may not change, and the server has filled in the rest.
    let merged = wanted["kind"] == "Pod" || wanted["kind"] == "Namespace";
    for (name, value) in wanted.as_object().into_iter().flatten() {
        match name.as_str() {
            "metadata" | "status" | "apiVersion" | "kind" => {}
            "spec" if merged => apply::merge_patch(&mut live["spec"], value),
            _ => live[name.as_str()] = value.clone(),
        }
    }
}
