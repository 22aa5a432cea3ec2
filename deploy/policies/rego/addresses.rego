# Rules about addresses.
package egress

import data.egress.lib
import rego.v1

# METADATA
# title: Any address is allowed
# description: >-
#   A destination of every address takes in the internet, the metadata address and the nodes of the cluster, and makes every other
#   destination of the policy pointless.
# related_resources:
# - ref: https://kubernetes.io/docs/concepts/services-networking/network-policies/
#   description: how NetworkPolicy reads 0.0.0.0/0
# custom:
#   id: EGR-0001
#   severity: error
#   remediation: name the prefixes, domains or cloud services the pods need; entity world with ports names all addresses outside the cluster
#   source: Trivy KUBE-0002
deny contains lib.finding("EGR-0001", lib.path(prefix), message) if {
	lib.enabled("EGR-0001")
	some prefix in wide
	prefix.length == 0
	message := sprintf("%s allows every address", [prefix.cidr])
}

deny contains lib.finding("EGR-0001", path, "entity world without ports allows every address outside the cluster on every port") if {
	lib.enabled("EGR-0001")
	some destination in lib.worlds
	not destination.entry.ports
	path := sprintf("%s.entity", [destination.path])
}

deny contains lib.finding("EGR-0001", path, message) if {
	lib.enabled("EGR-0001")
	some destination in lib.worlds
	some protocol in lib.wide_lists[destination.entry.ports]
	path := sprintf("%s.entity", [destination.path])
	message := sprintf("entity world with more than %d ports of %s allows every address outside the cluster", [data.egress.mostPorts, protocol])
}

# METADATA
# title: A public prefix is too wide
# description: >-
#   Addresses of so wide a prefix belong to many organisations, and who owns them changes. Wider than /16 (IPv4) or /32 (IPv6) is not
#   one partner's network any more.
# related_resources:
# - ref: https://www.iana.org/assignments/iana-ipv4-special-registry/iana-ipv4-special-registry.xhtml
#   description: what is not public
# custom:
#   id: EGR-0002
#   severity: error
#   remediation: narrow the prefix, or name the domain or the cloud service behind it
#   source: the project's own limit
deny contains lib.finding("EGR-0002", lib.path(prefix), message) if {
	lib.enabled("EGR-0002")
	some prefix in wide
	prefix.length > 0
	limit := data.egress.widest[lib.family(prefix.cidr)]
	prefix.length < limit
	not lib.within(prefix.cidr, data.egress.private)
	message := sprintf("%s is public and wider than /%d", [prefix.cidr, limit])
}

# The prefixes that may be too wide, whatever their family.
wide := [prefix | some prefix in lib.prefixes; prefix.length < widest_limit]

widest_limit := max(array.concat([1], [limit | some limit in data.egress.widest]))

# Prefixes that are narrow one by one, and together are not.
deny contains lib.finding("EGR-0002", path, message) if {
	lib.enabled("EGR-0002")
	some family, limit in data.egress.widest
	is_crowded(family, limit)
	some destination in lib.allowed
	count(destination.entry.cidrs) > 1
	public := {cidr: length |
		some cidr in destination.entry.cidrs
		lib.is_prefix(cidr)
		lib.family(cidr) == family
		length := to_number(split(cidr, "/")[1])
		length >= limit
		not lib.within(cidr, data.egress.private)
		not lib.within(cidr, destination.entry.except)
	}
	room := bits.lsh(1, bits_of[family] - limit)
	size(public, family) > room

	# What lies inside another one was counted twice.
	outermost := {cidr: length |
		some cidr, length in public
		not lies_inside(cidr, length, public)
	}
	size(outermost, family) > room
	path := sprintf("%s.cidrs", [destination.path])
	message := sprintf("%v allows more public addresses than a /%d", [object.get(destination.entry, "name", "the destination"), limit])
}

# Whether the prefixes of all destinations together are enough for one of them to have too many addresses.
is_crowded("ipv4", limit) if {
	sizes := [size |
		some prefix in lib.prefixes
		prefix.length >= limit
		prefix.length <= 32
		size := bits.lsh(1, 32 - prefix.length)
	]
	sum(sizes) > bits.lsh(1, 32 - limit)
}

is_crowded("ipv6", _) if {
	some prefix in lib.prefixes
	contains(prefix.cidr, ":")
}

bits_of := {"ipv4": 32, "ipv6": 128}

size(prefixes, family) := sum([bits.lsh(1, bits_of[family] - length) | some _, length in prefixes])

lies_inside(cidr, length, prefixes) if {
	some other, shorter in prefixes
	shorter < length
	net.cidr_contains(other, cidr)
}

# METADATA
# title: Link-local addresses are allowed
# description: >-
#   Link-local addresses are services of the node itself and of the cloud under it: metadata, credentials, time, DNS.
# related_resources:
# - ref: https://www.rfc-editor.org/rfc/rfc3927
#   description: IPv4 link-local addresses
# custom:
#   id: EGR-0003
#   severity: warning
#   remediation: take the link-local range out with except, or name the one address and port that is needed
#   source: Trivy, Checkov and cloud hardening guides
warn contains lib.finding("EGR-0003", lib.path(prefix), message) if {
	lib.enabled("EGR-0003")
	some prefix in lib.near(data.egress.linkLocal)
	prefix.length > 0
	some range in data.egress.linkLocal
	lib.overlap(range, prefix.cidr)
	not prefix.cidr in data.egress.metadata
	not lib.within(range, prefix.destination.entry.except)
	message := sprintf("%s allows link-local addresses", [prefix.cidr])
}

# METADATA
# title: The metadata address is allowed
# description: >-
#   A pod that reaches the metadata service over HTTP can take the credentials of its node. The address counts as allowed unless it is
#   excepted or a denied destination without ports and without expiry names it.
# related_resources:
# - ref: https://docs.aws.amazon.com/whitepapers/latest/security-practices-multi-tenant-saas-applications-eks/restrict-the-use-of-host-networking-and-block-access-to-instance-metadata-service.html
#   description: why pods are kept from it on EKS
# custom:
#   id: EGR-0004
#   severity: error
#   remediation: except the metadata address or deny it, and give the workload an identity of its own
#   source: CIS Amazon EKS Benchmark
deny contains lib.finding("EGR-0004", lib.path(prefix), message) if {
	lib.enabled("EGR-0004")
	some prefix in lib.near(data.egress.metadata)
	some address in data.egress.metadata
	net.cidr_contains(prefix.cidr, address)
	names_http(prefix.destination.entry)
	not lib.within(address, prefix.destination.entry.except)
	not address in denied_metadata
	message := sprintf("%s allows the metadata address %s", [prefix.cidr, split(address, "/")[0]])
}

denied_metadata contains address if {
	some destination in lib.policy.deniedDestinations
	not destination.ports
	not ends_sometime(destination)
	some cidr in array.concat([c | c := destination.cidr], [c | some c in destination.cidrs])
	some address in data.egress.metadata
	net.cidr_contains(cidr, address)
	not lib.within(address, destination.except)
}

# Whatever the field is called, and if only the top of the document has it.
ends_sometime(destination) if object.union(top, fields(object.get(destination, "governance", {}))).expiry

names_http(entry) if not entry.ports

names_http(entry) if {
	some port in entry.ports
	is_http(port)
}

is_http(port) if port == 80

is_http(port) if {
	is_string(port)
	upper(port) in {"80", "80/TCP", "TCP"}
}

is_http(port) if {
	is_string(port)
	bounds := regex.find_all_string_submatch_n(`^([0-9]+)-([0-9]+)(?:/TCP)?$`, upper(port), 1)[0]
	to_number(bounds[1]) <= 80
	to_number(bounds[2]) >= 80
}

is_http(port) if {
	is_object(port)
	upper(object.get(port, "protocol", "TCP")) == "TCP"
	includes_80(port)
}

includes_80(port) if not port.port

includes_80(port) if {
	first := lib.number(port.port)
	first <= 80
	lib.number(object.get(port, "endPort", first)) >= 80
}

# METADATA
# title: A prefix overlaps the cluster's own ranges
# description: >-
#   Addresses of pods, Services and nodes pass from one workload to another. A prefix that holds them opens whatever stands there next.
# related_resources:
# - ref: https://kubernetes.io/docs/concepts/services-networking/network-policies/#networkpolicy-resource
#   description: why addresses of pods do not belong in an ipBlock
# custom:
#   id: EGR-0005
#   severity: warning
#   remediation: name pods or a service by label, or take the range out with except
#   source: the Kubernetes documentation of ipBlock
warn contains lib.finding("EGR-0005", lib.path(prefix), message) if {
	lib.enabled("EGR-0005")
	count(cluster_ranges) > 0
	some prefix in lib.near([range.cidr | some range in cluster_ranges])
	prefix.length > 0
	some range in cluster_ranges
	lib.overlap(range.cidr, prefix.cidr)
	not lib.within(range.cidr, prefix.destination.entry.except)
	message := sprintf("%s overlaps the %s range %s", [prefix.cidr, range.of, range.cidr])
}

cluster_ranges := [{"of": of, "cidr": cidr} |
	some of, key in {"pod": "podCidrs", "service": "serviceCidrs", "node": "nodeCidrs"}
	some cidr in data.egress.cluster[key]
]
