package egress_test

import rego.v1

test_default_allow_outside_dev_is_denied if {
	found := data.egress.deny with input as {"defaultAction": "allow"}
	print(found)
	paths(found, "EGR-0009") == {"defaultAction"}
}

test_default_allow_in_dev_passes if {
	found := data.egress.deny with input as {"defaultAction": "allow"}
		with data.egress.cluster as object.union(cluster, {"environment": "dev"})
	print(found)
	paths(found, "EGR-0009") == set()
}

test_default_deny_passes if {
	denied := data.egress.deny with input as {"defaultAction": "deny"}
	silent := data.egress.deny with input as {"allowedDestinations": []}
	print(denied, silent)
	paths(denied | silent, "EGR-0009") == set()
}

config_map(text) := {
	"apiVersion": "v1",
	"kind": "ConfigMap",
	"metadata": {"name": "egress", "labels": {"egress-controller": "managed"}},
	"data": {"policy.json": text},
}

test_unreadable_documents_are_denied if {
	broken := data.egress.deny with input as config_map("{\"defaultAction\":")
	absent := data.egress.deny with input as object.remove(config_map(""), ["data"])
	print(broken, absent)
	paths(broken, "EGR-0015") == {""}
	paths(absent, "EGR-0015") == {""}
}

test_missing_data_are_denied if {
	found := data.egress.deny with input as {"defaultAction": "deny"} with data.egress.metadata as false
	print(found)
	{finding.msg | some finding in found} == {"data.egress lacks metadata"}
}

test_readable_documents_pass if {
	found := data.egress.deny with input as config_map("{\"defaultAction\": \"deny\"}")
	print(found)
	found == set()
}

test_a_config_map_is_judged_like_its_document if {
	policy := document([{"name": "a", "cidr": "0.0.0.0/0"}])
	bare := data.egress.deny with input as policy
	mapped := data.egress.deny with input as config_map(json.marshal(policy))
	print(bare, mapped)
	bare == mapped
	count(bare) > 0
}

test_other_objects_are_not_judged if {
	text := json.marshal(document([{"name": "a", "cidr": "0.0.0.0/0"}]))
	unmanaged := data.egress.deny with input as object.remove(config_map(text), ["metadata"])
	deployment := data.egress.deny with input as {"kind": "Deployment", "allowedDestinations": [{"cidr": "0.0.0.0/0"}]}
	print(unmanaged, deployment)
	unmanaged | deployment == set()
}
