//! What the double knows about each kind.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// The kinds the double serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` ConfigMap.
    ConfigMap,
    /// `v1` Namespace.
    Namespace,
    /// `v1` Pod.
    Pod,
    /// `v1` Service.
    Service,
    /// `v1` Node.
    Node,
    /// `v1` Event.
    CoreEvent,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `events.k8s.io/v1` Event.
    Event,
    /// `coordination.k8s.io/v1` Lease.
    Lease,
}

/// All of them, in the order of their discriminants.
pub(super) const ALL: [Kind; 10] = [
    Kind::ConfigMap,
    Kind::Namespace,
    Kind::Pod,
    Kind::Service,
    Kind::Node,
    Kind::CoreEvent,
    Kind::EndpointSlice,
    Kind::NetworkPolicy,
    Kind::Event,
    Kind::Lease,
];

/// The fixed facts about a kind.
pub(super) struct Facts {
    pub(super) group: &'static str,
    pub(super) kind: &'static str,
    pub(super) plural: &'static str,
    pub(super) short: &'static [&'static str],
    pub(super) namespaced: bool,
    /// Whether there is a status that only `/status` writes.
    pub(super) status: bool,
    /// Whether `metadata.generation` counts changes of the rest.
    pub(super) generation: bool,
    /// Whether a PUT creates what is not there.
    pub(super) upsert: bool,
    /// Whether the answer to a DELETE is the object.
    pub(super) returns_deleted: bool,
    /// Field selectors besides `metadata.name` and `metadata.namespace`, with the JSON pointer of the field.
    pub(super) fields: &'static [(&'static str, &'static str)],
    /// Checks the shape and drops what the kind does not have.
    pub(super) shape: fn(Value) -> Result<Value, serde_json::Error>,
}

const PLAIN: Facts = Facts {
    group: "",
    kind: "",
    plural: "",
    short: &[],
    namespaced: true,
    status: false,
    generation: false,
    upsert: false,
    returns_deleted: false,
    fields: &[],
    shape: Ok,
};

const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject.kind", "/involvedObject/kind"),
    ("involvedObject.namespace", "/involvedObject/namespace"),
    ("involvedObject.name", "/involvedObject/name"),
    ("involvedObject.uid", "/involvedObject/uid"),
    ("reason", "/reason"),
    ("type", "/type"),
];

use k8s_openapi::api;

static FACTS: [Facts; 10] = [
    Facts {
        kind: "ConfigMap",
        plural: "configmaps",
        short: &["cm"],
        shape: shape::<api::core::v1::ConfigMap>,
        ..PLAIN
    },
    Facts {
        kind: "Namespace",
        plural: "namespaces",
        short: &["ns"],
        namespaced: false,
        status: true,
        returns_deleted: true,
        fields: &[("status.phase", "/status/phase")],
        shape: shape::<api::core::v1::Namespace>,
        ..PLAIN
    },
    Facts {
        kind: "Pod",
        plural: "pods",
        short: &["po"],
        status: true,
        generation: true,
        returns_deleted: true,
        fields: &[
            ("spec.nodeName", "/spec/nodeName"),
            ("spec.restartPolicy", "/spec/restartPolicy"),
            ("spec.schedulerName", "/spec/schedulerName"),
            ("spec.serviceAccountName", "/spec/serviceAccountName"),
            ("status.phase", "/status/phase"),
            ("status.podIP", "/status/podIP"),
        ],
        shape: shape::<api::core::v1::Pod>,
        ..PLAIN
    },
    Facts {
        kind: "Service",
        plural: "services",
        short: &["svc"],
        status: true,
        returns_deleted: true,
        fields: &[("spec.clusterIP", "/spec/clusterIP"), ("spec.type", "/spec/type")],
        shape: shape::<api::core::v1::Service>,
        ..PLAIN
    },
    Facts {
        kind: "Node",
        plural: "nodes",
        short: &["no"],
        namespaced: false,
        status: true,
        shape: shape::<api::core::v1::Node>,
        ..PLAIN
    },
    Facts {
        kind: "Event",
        plural: "events",
        short: &["ev"],
        upsert: true,
        fields: EVENT_FIELDS,
        shape: shape::<api::core::v1::Event>,
        ..PLAIN
    },
    Facts {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        generation: true,
        shape: shape::<api::discovery::v1::EndpointSlice>,
        ..PLAIN
    },
    Facts {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        short: &["netpol"],
        generation: true,
        shape: shape::<api::networking::v1::NetworkPolicy>,
        ..PLAIN
    },
    Facts {
        group: "events.k8s.io",
        kind: "Event",
        plural: "events",
        short: &["ev"],
        upsert: true,
        fields: &[
            ("regarding.kind", "/regarding/kind"),
            ("regarding.namespace", "/regarding/namespace"),
            ("regarding.name", "/regarding/name"),
            ("reason", "/reason"),
            ("type", "/type"),
        ],
        shape: shape::<api::events::v1::Event>,
        ..PLAIN
    },
    Facts {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        upsert: true,
        shape: shape::<api::coordination::v1::Lease>,
        ..PLAIN
    },
];

fn shape<K: Serialize + DeserializeOwned>(value: Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<K>(value)?)
}

impl Kind {
    pub(super) fn facts(self) -> &'static Facts {
        &FACTS[self as usize]
    }

    /// Returns the kind with these words in `apiVersion` and `kind`.
    #[must_use]
    pub fn named(api_version: &str, kind: &str) -> Option<Self> {
        ALL.into_iter().find(|known| known.api_version() == api_version && known.facts().kind == kind)
    }

    /// Returns the kind that is served under a group and plural.
    pub(super) fn served(group: &str, plural: &str) -> Option<Self> {
        ALL.into_iter().find(|known| known.facts().group == group && known.facts().plural == plural)
    }

    /// Returns what stands in `apiVersion`.
    #[must_use]
    pub fn api_version(self) -> String {
        match self.facts().group {
            "" => "v1".to_owned(),
            group => format!("{group}/v1"),
        }
    }

    /// Returns the name in paths and messages, such as `pods` or `leases.coordination.k8s.io`.
    pub(super) fn resource(self) -> String {
        match self.facts() {
            Facts { group: "", plural, .. } => (*plural).to_owned(),
            Facts { group, plural, .. } => format!("{plural}.{group}"),
        }
    }
}
