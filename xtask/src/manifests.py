"""Checks Kubernetes objects against the schemas of one release, strictly: a field the schema does not know is an error.

usage: manifests.py RELEASE FILE…

Kinds the release does not have need a schema in OTHERS; without one they are listed as unchecked, which fails as well.
"""

import sys

import jsonschema
import kubernetes_validate
import yaml

# What we use of kinds that are custom resources, and what their definitions require. Extend it with what is used.
OTHERS = {
    ("cert-manager.io/v1", "Issuer"): {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {},
            "kind": {},
            "metadata": {"type": "object", "required": ["name", "namespace"]},
            "spec": {
                "type": "object",
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
                "properties": {
                    "selfSigned": {"type": "object", "additionalProperties": False},
                    "ca": {
                        "type": "object",
                        "required": ["secretName"],
                        "additionalProperties": False,
                        "properties": {"secretName": {"type": "string"}},
                    },
                },
            },
        },
    },
    ("cert-manager.io/v1", "Certificate"): {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {},
            "kind": {},
            "metadata": {"type": "object", "required": ["name", "namespace"]},
            "spec": {
                "type": "object",
                "required": ["secretName", "issuerRef"],
                "additionalProperties": False,
                "properties": {
                    "secretName": {"type": "string"},
                    "issuerRef": {
                        "type": "object",
                        "required": ["name"],
                        "additionalProperties": False,
                        "properties": {
                            "group": {"type": "string"},
                            "kind": {"enum": ["Issuer", "ClusterIssuer"]},
                            "name": {"type": "string"},
                        },
                    },
                    "commonName": {"type": "string", "maxLength": 64},
                    "isCA": {"type": "boolean"},
                    "dnsNames": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                    "duration": {"type": "string", "pattern": "^[0-9]+h$"},
                    "renewBefore": {"type": "string", "pattern": "^[0-9]+h$"},
                    "privateKey": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "algorithm": {"enum": ["RSA", "ECDSA", "Ed25519"]},
                            "size": {"type": "integer"},
                            "rotationPolicy": {"enum": ["Never", "Always"]},
                        },
                    },
                    "usages": {"type": "array", "items": {"enum": ["digital signature", "server auth"]}},
                },
            },
        },
    },
    ("argoproj.io/v1alpha1", "Application"): {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {},
            "kind": {},
            "metadata": {"type": "object", "required": ["name", "namespace"]},
            "spec": {
                "type": "object",
                "required": ["project", "source", "destination"],
                "additionalProperties": False,
                "properties": {
                    "project": {"type": "string"},
                    "source": {
                        "type": "object",
                        "required": ["repoURL", "path"],
                        "additionalProperties": False,
                        "properties": {
                            "repoURL": {"type": "string"},
                            "targetRevision": {"type": "string"},
                            "path": {"type": "string"},
                        },
                    },
                    "destination": {
                        "type": "object",
                        "required": ["server"],
                        "additionalProperties": False,
                        "properties": {"server": {"type": "string"}, "namespace": {"type": "string"}},
                    },
                    "ignoreDifferences": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["kind"],
                            "additionalProperties": False,
                            "properties": {
                                "group": {"type": "string"},
                                "kind": {"type": "string"},
                                "name": {"type": "string"},
                                "jqPathExpressions": {"type": "array", "items": {"type": "string"}},
                            },
                        },
                    },
                    "syncPolicy": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "automated": {
                                "type": "object",
                                "additionalProperties": False,
                                "properties": {"prune": {"type": "boolean"}, "selfHeal": {"type": "boolean"}},
                            },
                            "syncOptions": {
                                "type": "array",
                                "items": {"enum": ["ServerSideApply=true", "RespectIgnoreDifferences=true"]},
                            },
                        },
                    },
                },
            },
        },
    },
    ("source.toolkit.fluxcd.io/v1", "GitRepository"): {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {},
            "kind": {},
            "metadata": {"type": "object", "required": ["name", "namespace"]},
            "spec": {
                "type": "object",
                "required": ["interval", "url"],
                "additionalProperties": False,
                "properties": {
                    "interval": {"type": "string"},
                    "url": {"type": "string", "pattern": "^(https?|ssh)://"},
                    "ref": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {"branch": {"type": "string"}},
                    },
                },
            },
        },
    },
    ("kustomize.toolkit.fluxcd.io/v1", "Kustomization"): {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {},
            "kind": {},
            "metadata": {"type": "object", "required": ["name", "namespace"]},
            "spec": {
                "type": "object",
                "required": ["interval", "prune", "sourceRef"],
                "additionalProperties": False,
                "properties": {
                    "interval": {"type": "string"},
                    "sourceRef": {
                        "type": "object",
                        "required": ["kind", "name"],
                        "additionalProperties": False,
                        "properties": {"kind": {"enum": ["GitRepository"]}, "name": {"type": "string"}},
                    },
                    "path": {"type": "string"},
                    "prune": {"type": "boolean"},
                    "wait": {"type": "boolean"},
                    "timeout": {"type": "string"},
                    "dependsOn": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["name"],
                            "additionalProperties": False,
                            "properties": {"name": {"type": "string"}},
                        },
                    },
                    "targetNamespace": {"type": "string"},
                    "serviceAccountName": {"type": "string"},
                },
            },
        },
    },
    ("monitoring.coreos.com/v1", "PrometheusRule"): {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {},
            "kind": {},
            "metadata": {"type": "object", "required": ["name", "namespace"]},
            "spec": {
                "type": "object",
                "required": ["groups"],
                "additionalProperties": False,
                "properties": {
                    "groups": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["name", "rules"],
                            "additionalProperties": False,
                            "properties": {
                                "name": {"type": "string", "minLength": 1},
                                "interval": {"type": "string", "pattern": "^[0-9]+(s|m|h)$"},
                                "rules": {
                                    "type": "array",
                                    "minItems": 1,
                                    "items": {
                                        "oneOf": [
                                            {
                                                "type": "object",
                                                "required": ["record", "expr"],
                                                "additionalProperties": False,
                                                "properties": {
                                                    "record": {"type": "string", "pattern": "^[a-zA-Z_:][a-zA-Z0-9_:]*$"},
                                                    "expr": {"type": "string", "minLength": 1},
                                                },
                                            },
                                            {
                                                "type": "object",
                                                "required": ["alert", "expr", "labels", "annotations"],
                                                "additionalProperties": False,
                                                "properties": {
                                                    "alert": {"type": "string", "pattern": "^[A-Z][A-Za-z]+$"},
                                                    "expr": {"type": "string", "minLength": 1},
                                                    "for": {"type": "string", "pattern": "^[0-9]+(s|m|h)$"},
                                                    "labels": {
                                                        "type": "object",
                                                        "required": ["severity"],
                                                        "additionalProperties": {"type": "string"},
                                                    },
                                                    "annotations": {
                                                        "type": "object",
                                                        "required": ["summary", "description", "runbook_url"],
                                                        "additionalProperties": {"type": "string"},
                                                    },
                                                },
                                            },
                                        ],
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
    ("monitoring.coreos.com/v1", "PodMonitor"): {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {},
            "kind": {},
            "metadata": {"type": "object", "required": ["name"]},
            "spec": {
                "type": "object",
                "required": ["selector", "podMetricsEndpoints"],
                "additionalProperties": False,
                "properties": {
                    "namespaceSelector": {
                        "type": "object",
                        "required": ["matchNames"],
                        "additionalProperties": False,
                        "properties": {"matchNames": {"type": "array", "minItems": 1, "items": {"type": "string"}}},
                    },
                    "selector": {
                        "type": "object",
                        "additionalProperties": False,
                        "minProperties": 1,
                        "properties": {
                            "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
                        },
                    },
                    "podMetricsEndpoints": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["port"],
                            "additionalProperties": False,
                            "properties": {
                                "port": {"type": "string", "maxLength": 15},
                                "path": {"type": "string", "pattern": "^/"},
                                "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
                                "honorLabels": {"type": "boolean"},
                                "relabelings": {
                                    "type": "array",
                                    "items": {
                                        "type": "object",
                                        "additionalProperties": False,
                                        "properties": {
                                            "sourceLabels": {"type": "array", "items": {"type": "string"}},
                                            "targetLabel": {"type": "string"},
                                        },
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


class Loader(yaml.SafeLoader):
    """Refuses what a plain loader silently drops: a key that is given twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"given twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def check(document, release):
    """Returns what is wrong with one object, or None."""
    if not isinstance(document, dict) or not {"apiVersion", "kind", "metadata"} <= document.keys():
        return "no apiVersion, kind or metadata"
    try:
        kind = (document["apiVersion"], document["kind"])
        if kind in OTHERS:
            jsonschema.validate(document, OTHERS[kind])
        else:
            kubernetes_validate.validate(document, release, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return f"UNCHECKED: no schema for {kind[0]} {kind[1]}; add one to OTHERS in manifests.py"
    except jsonschema.ValidationError as error:
        return f"{'.'.join(str(step) for step in error.path)}: {error.message}"
    return None


def main(release, files):
    objects = wrong = 0
    for file in files:
        seen = set()
        try:
            with open(file, encoding="utf-8") as text:
                documents = [document for document in yaml.load_all(text, Loader) if document is not None]
        except (OSError, yaml.YAMLError) as error:
            print(f"{file}: {error}")
            wrong += 1
            continue
        if not documents:
            print(f"{file}: no objects")
            wrong += 1
        for document in documents:
            objects += 1
            problem = check(document, release)
            meta = document.get("metadata") or {} if isinstance(document, dict) else {}
            name = f"{document.get('kind')} {meta.get('namespace', '')}/{meta.get('name')}" if meta else "an object"
            if problem is None and name in seen:
                problem = "given twice"
            seen.add(name)
            if problem is not None:
                print(f"{file}: {name}: {problem}")
                wrong += 1
    print(f"manifests: {objects} objects in {len(files)} files, {wrong} wrong, against Kubernetes {release}")
    return 1 if wrong or not files else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
