//! The JSON Schema of the policy document, for editors and for those who check documents without this program.
//!
//! The types here say what [`document`](crate::policy::document) reads. It does not read into them: it knows the place of everything and says
//! what was probably meant. A test holds the two together.

pub mod reference;

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde::Serialize;
use serde_json::Value;

/// Where the schema can be found.
pub const ID: &str = "https://egress-agent.dev/schemas/policy.schema.json";

/// Returns the schema as it stands in the repository.
#[must_use]
pub fn policy() -> String {
    let generator: SchemaGenerator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<Document>().to_value();
    never_null(&mut schema);
    if let Value::Object(fields) = &mut schema {
        fields.insert("$id".into(), ID.into());
    }
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema is JSON");
    text.push('\n');
    text
}

/// Takes `null` out of what may stand in a field: one that is not given is left out.
fn never_null(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::Array(types)) = fields.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    fields.insert("type".into(), only);
                }
            }
            if let Some(Value::Array(choices)) = fields.get_mut("anyOf") {
                choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
                if let [Value::Object(only)] = choices.as_slice() {
                    let only = only.clone();
                    fields.remove("anyOf");
                    fields.extend(only);
                }
            }
            if let Some(Value::Array(values)) = fields.get_mut("enum") {
                values.retain(|value| !value.is_null());
            }
            fields.values_mut().for_each(never_null);
        }
        Value::Array(items) => items.iter_mut().for_each(never_null),
        _ => {}
    }
}

/// An egress policy: what stands in `policy.json` of a ConfigMap labelled `egress-controller: managed`.
#[derive(Debug, JsonSchema)]
#[schemars(title = "Egress policy", rename_all = "camelCase", deny_unknown_fields)]
#[schemars(example = Example::default())]
pub struct Document {
    /// The schema, for editors.
    #[schemars(rename = "$schema")]
    pub schema: Option<String>,
    /// What the policy is for, in words.
    pub description: Option<String>,
    /// What holds where no destination matches.
    #[schemars(extend("default" = "deny"))]
    pub default_action: Option<Action>,
    /// Whether what the policy denies is dropped, or passes and is reported.
    #[schemars(extend("default" = "enforce"))]
    pub mode: Option<Mode>,
    /// Which pods of the namespace the policy is about. Left out: all of them.
    pub pod_selector: Option<LabelSelector>,
    /// Whether the selected pods reach the cluster's DNS without a destination for it.
    #[schemars(extend("default" = true))]
    pub cluster_dns: Option<bool>,
    /// What each destination inherits.
    pub governance: Option<Governance>,
    /// What the pods may reach.
    #[schemars(length(max = 16384))]
    pub allowed_destinations: Option<Vec<Destination>>,
    /// What the pods may not reach, whatever allows it.
    #[schemars(length(max = 16384))]
    pub denied_destinations: Option<Vec<Destination>>,
}

/// The example of the schema.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Example(Value);

impl Default for Example {
    fn default() -> Self {
        Self(serde_json::json!({
            "defaultAction": "deny",
            "podSelector": {"matchLabels": {"app": "checkout"}},
            "governance": {"owner": "team-payments"},
            "allowedDestinations": [
                {
                    "name": "card-api",
                    "cidr": "192.0.2.10/32",
                    "ports": [443],
                    "governance": {
                        "reason": "card capture",
                        "dataClassification": "restricted",
                        "expiry": "2027-03-31",
                        "auditRef": "SEC-12345",
                    },
                },
                {"name": "cache", "service": {"namespace": "infra", "name": "redis"}, "ports": [6379]},
            ],
            "deniedDestinations": [{"name": "metadata", "cidr": "169.254.169.254/32"}],
        }))
    }
}

/// What holds where no destination matches.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Action {
    /// It passes.
    Allow,
    /// It is denied.
    Deny,
}

/// Whether a policy is enforced.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Mode {
    /// What it denies is dropped.
    Enforce,
    /// What it alone would deny passes, and is reported.
    Audit,
}

/// Where pods may, or may not, connect to: a name and exactly one kind of destination.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend(
    "oneOf" = [
        {"required": ["cidr"]},
        {"required": ["cidrs"]},
        {"required": ["awsService"]},
        {"required": ["cloud"]},
        {"required": ["domain"]},
        {"required": ["domains"]},
        {"required": ["service"]},
        {"required": ["pods"]},
        {"required": ["entity"]},
    ],
    "dependentRequired" = {"regions": ["awsService"]},
    "dependentSchemas" = {"except": {"anyOf": [{"required": ["cidr"]}, {"required": ["cidrs"]}]}},
))]
pub struct Destination {
    /// What answers and metrics call it; unique over both lists.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[^()\u0000-\u001f\u007f]+$"))]
    pub name: String,
    /// A prefix, without host bits. A single address is a /32 or a /128.
    pub cidr: Option<Cidr>,
    /// Prefixes.
    #[schemars(length(min = 1, max = 32768))]
    pub cidrs: Option<Vec<Cidr>>,
    /// Prefixes inside `cidr` or `cidrs` that this destination is not about.
    #[schemars(length(min = 1, max = 32768))]
    pub except: Option<Vec<Cidr>>,
    /// A service by its name in the published ranges of AWS, such as `S3` or `DYNAMODB`.
    #[schemars(length(min = 1), example = &"S3", example = &"DYNAMODB")]
    pub aws_service: Option<String>,
    /// The regions of `awsService`; left out: all.
    #[schemars(length(min = 1))]
    pub regions: Option<Vec<Region>>,
    /// Published ranges of a provider.
    pub cloud: Option<Cloud>,
    /// A name, or with `*.` in front every name below one.
    pub domain: Option<Domain>,
    /// Names.
    #[schemars(length(min = 1))]
    pub domains: Option<Vec<Domain>>,
    /// A Service of the cluster.
    pub service: Option<Service>,
    /// Pods of the cluster, by label.
    pub pods: Option<Pods>,
    /// A part of the cluster by role.
    pub entity: Option<Entity>,
    /// Protocols and ports; left out: every protocol and port.
    #[schemars(length(min = 1, max = 256))]
    pub ports: Option<Vec<Port>>,
    /// Who is answerable, why, and until when.
    pub governance: Option<Governance>,
    /// What it is, in words.
    pub description: Option<String>,
}

/// An address and the length of its prefix.
#[derive(Debug, JsonSchema)]
#[schemars(transparent)]
pub struct Cidr(
    #[schemars(
        regex(
            pattern = r"^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}/(3[0-2]|[12]?[0-9])|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))$"
        ),
        example = &"10.1.0.0/24",
        example = &"2001:db8::/32"
    )]
    pub String,
);

/// A region of AWS, a network border group in one such as `us-east-1-atl-1`, or `GLOBAL` for addresses of no region.
#[derive(Debug, JsonSchema)]
#[schemars(transparent)]
pub struct Region(
    #[schemars(regex(pattern = r"^(GLOBAL|[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}((-[a-z0-9]{1,8}){2,6})?)$"), example = &"us-east-1")]
    pub String,
);

/// A name in DNS. `*.` in front stands for one or more labels, never for none: `*.example.com` is not `example.com`.
#[derive(Debug, JsonSchema)]
#[schemars(transparent)]
pub struct Domain(
    #[schemars(
        length(min = 3, max = 1024),
        regex(pattern = r"^(\*[.])?[^*/:?#\s]+$"),
        example = &"api.example.com",
        example = &"*.example.com"
    )]
    pub String,
);

/// A provider that publishes its ranges.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Provider {
    /// Amazon Web Services.
    Aws,
    /// Microsoft Azure.
    Azure,
    /// Cloudflare.
    Cloudflare,
    /// Services that the platform team defines itself.
    Custom,
    /// DigitalOcean.
    Digitalocean,
    /// Fastly.
    Fastly,
    /// GitHub.
    Github,
    /// Google Cloud.
    Google,
    /// Oracle Cloud.
    Oracle,
}

/// Published ranges of a provider.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("not" = {"required": ["service", "services"]}))]
pub struct Cloud {
    /// Whose.
    pub provider: Provider,
    /// One service, by the provider's name for it.
    pub service: Option<Tag>,
    /// Several services; left out: all.
    #[schemars(length(min = 1))]
    pub services: Option<Vec<Tag>>,
    /// The regions; left out: all.
    #[schemars(length(min = 1))]
    pub regions: Option<Vec<Tag>>,
}

/// A name whose grammar only its provider knows.
#[derive(Debug, JsonSchema)]
#[schemars(transparent)]
pub struct Tag(#[schemars(length(min = 1, max = 128), regex(pattern = r"^[!-~]+$"))] pub String);

/// A Service of the cluster.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Service {
    /// Its namespace; left out: the policy's own.
    pub namespace: Option<DnsLabel>,
    /// Its name.
    pub name: DnsLabel,
}

/// A name as Kubernetes gives them to namespaces and Services.
#[derive(Debug, JsonSchema)]
#[schemars(transparent)]
pub struct DnsLabel(
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))] pub String,
);

/// Pods by label. Without `namespaceSelector` those of the policy's own namespace.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct Pods {
    /// Selects namespaces by their labels.
    pub namespace_selector: Option<LabelSelector>,
    /// Selects pods by their labels; left out: all.
    pub pod_selector: Option<LabelSelector>,
}

/// A part of the cluster by role.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "kebab-case")]
pub enum Entity {
    /// The cluster's DNS.
    ClusterDns,
    /// The Service `default/kubernetes`.
    KubeApiserver,
    /// The node the pod runs on.
    Node,
    /// Every address outside the cluster.
    World,
}

/// Ports of one protocol.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Port {
    /// A port of TCP.
    Number(#[schemars(range(min = 1, max = 65535))] u16),
    /// Such as `443/TCP`, `8000-8010/UDP`, `ICMP`, or, with `pods` and `service`, a name such as `http`.
    Text(
        #[schemars(regex(
            pattern = r"^(([1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?|(?=[0-9-]*[a-z])[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?)(/([Tt][Cc][Pp]|[Uu][Dd][Pp]|[Ss][Cc][Tt][Pp]))?|[Tt][Cc][Pp]|[Uu][Dd][Pp]|[Ss][Cc][Tt][Pp]|[Ii][Cc][Mm][Pp])$"
        ))]
        String,
    ),
    /// In the form of a NetworkPolicy.
    Object(PortObject),
}

/// Ports in the form of a NetworkPolicy.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("anyOf" = [{"required": ["port"]}, {"required": ["protocol"]}], "dependentRequired" = {"endPort": ["port"]}))]
pub struct PortObject {
    /// A number, or a name.
    pub port: Option<PortOrName>,
    /// The last port of a range.
    pub end_port: Option<PortNumber>,
    /// `TCP`, `UDP`, `SCTP` or `ICMP`, in either case; `ICMP` has no ports.
    #[schemars(extend("default" = "TCP"))]
    #[schemars(regex(pattern = r"^([Tt][Cc][Pp]|[Uu][Dd][Pp]|[Ss][Cc][Tt][Pp]|[Ii][Cc][Mm][Pp])$"))]
    pub protocol: Option<String>,
}

/// A port by number or name.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum PortOrName {
    /// A number.
    Number(#[schemars(range(min = 1, max = 65535))] u16),
    /// A number in quotes, or a name.
    Text(
        #[schemars(regex(
            pattern = r"^([1-9][0-9]{0,4}|(?=[0-9-]*[a-z])[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?)$"
        ))]
        String,
    ),
}

/// A port by number.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum PortNumber {
    /// A number.
    Number(#[schemars(range(min = 1, max = 65535))] u16),
    /// A number in quotes.
    Text(#[schemars(regex(pattern = r"^[1-9][0-9]{0,4}$"))] String),
}

/// A query over labels, as in Kubernetes: every part must hold.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels and their values.
    pub match_labels: Option<std::collections::BTreeMap<String, LabelValue>>,
    /// Further conditions.
    pub match_expressions: Option<Vec<Requirement>>,
}

/// The value of a label.
#[derive(Debug, JsonSchema)]
#[schemars(transparent)]
pub struct LabelValue(
    #[schemars(length(max = 63), regex(pattern = r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$"))]
    pub  String,
);

/// A condition on a label.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[schemars(extend(
    "if" = {"properties": {"operator": {"enum": ["In", "NotIn"]}}},
    "then" = {"required": ["values"], "properties": {"values": {"minItems": 1}}},
    "else" = {"properties": {"values": {"maxItems": 0}}},
))]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What must hold.
    pub operator: Operator,
    /// For `In` and `NotIn`.
    pub values: Option<Vec<LabelValue>>,
}

/// What a label must be.
#[derive(Debug, JsonSchema)]
pub enum Operator {
    /// Present, with one of the values.
    In,
    /// Absent, or with none of the values.
    NotIn,
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
}

/// Who is answerable for a destination, why it is there, and until when.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("allOf" = [
    {"not": {"required": ["dataClassification", "data-classification"]}},
    {"not": {"required": ["dataClassification", "data_classification"]}},
    {"not": {"required": ["data-classification", "data_classification"]}},
    {"not": {"required": ["expiry", "expiresAt"]}},
    {"not": {"required": ["expiry", "expires_at"]}},
    {"not": {"required": ["expiresAt", "expires_at"]}},
    {"not": {"required": ["auditRef", "audit-ref"]}},
    {"not": {"required": ["auditRef", "audit_ref"]}},
    {"not": {"required": ["audit-ref", "audit_ref"]}},
]))]
pub struct Governance {
    /// The team or person answerable.
    pub owner: Option<Sentence>,
    /// Why it is needed.
    pub reason: Option<Sentence>,
    /// What it is limited to, in words.
    pub scope: Option<Sentence>,
    /// What data goes there.
    pub data_classification: Option<Class>,
    /// Another name of `dataClassification`.
    #[schemars(rename = "data-classification")]
    pub data_classification_with_dash: Option<Class>,
    /// Another name of `dataClassification`.
    #[schemars(rename = "data_classification")]
    pub data_classification_with_underscore: Option<Class>,
    /// The end of that day, UTC, or that time: from then on the destination matches nothing.
    pub expiry: Option<Expiry>,
    /// Another name of `expiry`.
    pub expires_at: Option<Expiry>,
    /// Another name of `expiry`.
    #[schemars(rename = "expires_at")]
    pub expires_at_with_underscore: Option<Expiry>,
    /// The ticket or decision.
    pub audit_ref: Option<Sentence>,
    /// Another name of `auditRef`.
    #[schemars(rename = "audit-ref")]
    pub audit_ref_with_dash: Option<Sentence>,
    /// Another name of `auditRef`.
    #[schemars(rename = "audit_ref")]
    pub audit_ref_with_underscore: Option<Sentence>,
}

/// A text that says something.
#[derive(Debug, JsonSchema)]
#[schemars(transparent)]
pub struct Sentence(#[schemars(length(min = 1, max = 1024), regex(pattern = r"\S"))] pub String);

/// How sensitive data is.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Class {
    /// Anybody may see it.
    Public,
    /// It stays inside.
    Internal,
    /// Few may see it.
    Confidential,
    /// It does harm in the wrong hands.
    Restricted,
}

/// A date, or a time with its offset from UTC.
#[derive(Debug, JsonSchema)]
#[schemars(transparent)]
pub struct Expiry(
    #[schemars(
        regex(
            pattern = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2}))?$"
        ),
        example = &"2027-03-31",
        example = &"2027-03-31T18:00:00Z"
    )]
    pub String,
);
