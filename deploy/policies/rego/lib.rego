# What the rules share: the policy and its parts, whatever the input is, and how a finding is made.
#
# The input is a managed ConfigMap, as kubectl and conftest see it, or a policy document itself. Any other object has no policy, so no
# rule says anything about it.
package egress.lib

import rego.v1

is_config_map if {
	input.kind == "ConfigMap"
	input.metadata.labels["egress-controller"] == "managed"
}

text := input.data["policy.json"] if is_config_map

is_readable if {
	is_string(text)
	json.is_valid(text)
}

policy := json.unmarshal(text) if is_readable

policy := input if {
	is_object(input)
	not input.kind
}

# Nanoseconds since the epoch: those of `data.egress.now` (RFC 3339), or the clock's.
now := time.parse_rfc3339_ns(data.egress.now)

now := time.now_ns() if not data.egress.now

enabled(id) if not id in data.egress.disabled

finding(id, path, message) := {
	"id": id,
	"path": path,
	"msg": message,
	"severity": data.egress.catalogue.rules[id].severity,
	"remediation": data.egress.catalogue.rules[id].remediation,
}

# The allowed destinations, each with its place in the document.
allowed := [{"path": sprintf("allowedDestinations[%v]", [i]), "entry": entry} |
	some i, entry in policy.allowedDestinations
	is_object(entry)
]

# The prefixes of the allowed destinations. Their paths are made where they are needed, which is seldom.
prefixes := array.concat(
	[prefix_of(destination, cidr, "cidr") |
		some destination in allowed
		cidr := destination.entry.cidr
		is_prefix(cidr)
	],
	[prefix_of(destination, cidr, j) |
		some destination in allowed
		some j, cidr in destination.entry.cidrs
		is_prefix(cidr)
	],
)

is_prefix(cidr) if {
	is_string(cidr)
	net.cidr_is_valid(cidr)
}

prefix_of(destination, cidr, place) := {
	"cidr": cidr,
	"destination": destination,
	"place": place,
	"length": to_number(split(cidr, "/")[1]),
}

path(prefix) := sprintf("%s.cidr", [prefix.destination.path]) if prefix.place == "cidr"

path(prefix) := sprintf("%s.cidrs[%d]", [prefix.destination.path, prefix.place]) if is_number(prefix.place)

family(cidr) := "ipv6" if contains(cidr, ":")

family(cidr) := "ipv4" if not contains(cidr, ":")

overlap(a, b) if net.cidr_contains(a, b)

overlap(a, b) if net.cidr_contains(b, a)

# Whether one of `ranges` holds all of `cidr`.
within(cidr, ranges) if {
	some range in ranges
	net.cidr_contains(range, cidr)
}

# A document writes a port as a number or as the digits of one.
number(port) := port if is_number(port)

number(port) := to_number(port) if {
	is_string(port)
	regex.match(`^[0-9]{1,5}$`, port)
}

# The protocols of which a list names so many ports that it might as well name all.
wide_protocols(ports) := {protocol |
	spans := {many | some port in ports; many := span(port)}
	count(spans) > 0
	some protocol in ["TCP", "UDP"]
	sum([many.ports | some many in spans; many.protocol == protocol]) > data.egress.mostPorts
}

# What an item names, if it may be many ports: first, last, how many, and the protocol.
span(port) := {"first": 0, "ports": 65535, "protocol": upper(port)} if {
	is_string(port)
	upper(port) in {"TCP", "UDP"}
}

span(port) := stretch(to_number(bounds[1]), to_number(bounds[2]), protocol_of(port)) if {
	is_string(port)
	contains(port, "-")
	bounds := regex.find_all_string_submatch_n(`^([0-9]{1,5})-([0-9]{1,5})(?:/(?:TCP|UDP))?$`, upper(port), 1)[0]
}

span(port) := {"first": 0, "ports": 65535, "protocol": upper(object.get(port, "protocol", "TCP"))} if {
	is_object(port)
	not port.port
	is_string(object.get(port, "protocol", "TCP"))
}

span(port) := stretch(number(port.port), number(port.endPort), upper(object.get(port, "protocol", "TCP"))) if {
	is_object(port)
	is_string(object.get(port, "protocol", "TCP"))
}

stretch(first, last, protocol) := {"first": first, "ports": (last - first) + 1, "protocol": protocol}

protocol_of(port) := "UDP" if endswith(upper(port), "/UDP")

protocol_of(port) := "TCP" if not endswith(upper(port), "/UDP")
