"""Compares what the Helm chart renders with what kustomize renders, object by object.

usage: chart.py CHART RENDERED OUT

RENDERED has what kustomize makes of each overlay and component, OUT gets what the chart makes of unusual values, to be validated.
"""

import pathlib
import sys

import helm_python
import yaml

OVERLAYS = ["dev", "stage", "prod"]
# Components the chart can add, by the value that switches them on.
COMPONENTS = {"prometheusOperator": "prometheus-operator", "grafana": "grafana", "egressProxy": "egress-proxy"}
MANAGED_BY = "app.kubernetes.io/managed-by"
DIGEST = "sha256:" + "0123456789abcdef" * 4
UNUSUAL = {
    "image": {"repository": "registry.example.com/egress", "digest": DIGEST, "pullPolicy": "Always", "pullSecrets": ["pull"]},
    "rules": {"governance": {"profile": "required", "owners": ["team-*"]}},
    "agent": {
        "env": {"EGRESS_CLUSTER_CIDRS": "10.0.0.0/8", "EGRESS_POD_START": "standard", "EGRESS_MAX_PODS": "1000000"},
        "resources": {"limits": {"memory": "1Gi"}},
    },
    "controller": {"env": {"HTTPS_PROXY": "http://proxy.example.com:3128"}, "replicas": 3},
    "webhook": {"env": {"EGRESS_LOG": "debug"}, "replicas": 5},
}
REFUSED = [
    {"environment": "production"},
    {"image": {"repo": "typo"}},
    {"image": {"digest": "sha256:short"}},
    {"agent": {"env": {"EGRESS_MAX_PODS": 1000000}}},
    {"webhook": {"replicas": 0}},
    {"wehbook": {}},
]


def documents(text):
    """Returns the objects of a text, by kind, namespace and name."""
    objects = {}
    for document in yaml.safe_load_all(text):
        if document is None:
            continue
        key = (document["kind"], document["metadata"].get("namespace"), document["metadata"]["name"])
        if key in objects:
            raise SystemExit(f"{key} is given twice")
        objects[key] = document
    return objects


def read(path):
    return documents(path.read_text(encoding="utf-8"))


def by_helm(objects):
    """Returns the objects as Helm's own."""
    for document in objects.values():
        labels = document["metadata"].get("labels") or {}
        if MANAGED_BY in labels:
            labels[MANAGED_BY] = "Helm"
    return objects


def differences(what, seen, wanted):
    """Returns what differs between two sets of objects."""
    found = [f"{what}: {key} is missing" for key in wanted.keys() - seen.keys()]
    found += [f"{what}: {key} is too much" for key in seen.keys() - wanted.keys()]
    found += [f"{what}: {key} differs" for key in wanted.keys() & seen.keys() if wanted[key] != seen[key]]
    return found


def container(objects, kind, name):
    (found,) = [one for key, one in objects.items() if key[0] == kind and key[2] == name]
    return found, found["spec"]["template"]["spec"], found["spec"]["template"]["spec"]["containers"][0]


def values_work(objects):
    """Returns what of UNUSUAL did not reach the objects."""
    wrong = []

    def must(what, seen, wanted):
        if seen != wanted:
            wrong.append(f"{what} is {seen!r}, not {wanted!r}")

    for kind, name in [("DaemonSet", "egress-agent"), ("Deployment", "egress-controller"), ("Deployment", "egress-webhook")]:
        workload, pod, own = container(objects, kind, name)
        must(f"{name}: image", own["image"], f"registry.example.com/egress@{DIGEST}")
        must(f"{name}: imagePullPolicy", own["imagePullPolicy"], "Always")
        must(f"{name}: imagePullSecrets", pod["imagePullSecrets"], [{"name": "pull"}])
        names = [variable["name"] for variable in own["env"]]
        must(f"{name}: variables given once", len(set(names)), len(names))
        values = UNUSUAL[name.split("-")[1]]
        for variable, value in values["env"].items():
            must(f"{name}: {variable}", [one["value"] for one in own["env"] if one["name"] == variable], [value])
        if "replicas" in values:
            must(f"{name}: replicas", workload["spec"]["replicas"], values["replicas"])
    _, pod, own = container(objects, "DaemonSet", "egress-agent")
    must("agent: resources", own["resources"], UNUSUAL["agent"]["resources"])
    _, pod, _ = container(objects, "Deployment", "egress-webhook")
    (mounted,) = [volume["configMap"]["name"] for volume in pod["volumes"] if volume["name"] == "rules"]
    rules = [one for key, one in objects.items() if key[0] == "ConfigMap" and key[2].startswith("egress-rules-")]
    must("rules", [one["metadata"]["name"] for one in rules], [mounted])
    must("rules", yaml.safe_load(rules[0]["data"]["rules.yaml"]), UNUSUAL["rules"])
    return wrong


def main(chart_folder, rendered, out):
    wrong = []
    base = read(rendered / "base.yaml")
    files = {name: read(rendered / f"{name}.yaml") for name in OVERLAYS}
    for component in COMPONENTS.values():
        whole = read(rendered / f"{component}.yaml")
        files[component] = {key: whole[key] for key in whole.keys() - base.keys()}
    for name, wanted in files.items():
        for difference in differences(f"files/{name}.yaml", read(chart_folder / "files" / f"{name}.yaml"), wanted):
            wrong.append(f"{difference}; run `cargo xtask chart`")
    compared = 0
    with helm_python.Chart.load(chart_folder) as chart:

        def render(values):
            texts = chart.render(values, name="egress", namespace="kube-system")
            return "\n---\n".join(text for text in texts.values() if text.strip())

        if render({}) != render({"environment": "prod"}):
            wrong.append("without values it is not prod")
        for overlay in OVERLAYS:
            for switches in [[], list(COMPONENTS)]:
                seen = documents(render({"environment": overlay, **{switch: {"enabled": True} for switch in switches}}))
                wanted = dict(files[overlay])
                for switch in switches:
                    wanted |= files[COMPONENTS[switch]]
                wrong += differences(f"{overlay} {switches}", seen, by_helm(wanted))
                compared += len(seen)
        for overlay in OVERLAYS:
            text = render({"environment": overlay, **UNUSUAL})
            wrong += [f"{overlay} with values: {what}" for what in values_work(documents(text))]
            (out / f"chart-{overlay}.yaml").write_text(text, encoding="utf-8")
        for values in REFUSED:
            try:
                chart.validate_schema(values)
            except helm_python.HelmError:
                continue
            wrong.append(f"the schema takes {values}")
        chart.validate_schema(UNUSUAL)
    report = helm_python.lint(chart_folder, strict=True)
    # An icon would be fetched from somewhere.
    wrong += [f"lint: {one}" for one in report["messages"] if one["severity"] > 1]
    wrong += [f"lint: {one}" for one in report["errors"]]
    for line in wrong:
        print(line)
    print(f"chart: {compared} objects compared with those of kustomize, {len(wrong)} wrong")
    return 1 if wrong or not compared else 0


if __name__ == "__main__":
    sys.exit(main(*(pathlib.Path(argument) for argument in sys.argv[1:])))
