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
	[{"cidr": cidr, "destination": destination, "place": "cidr", "length": length, "head": head(cidr, length)} |
		some destination in allowed
		cidr := destination.entry.cidr
		is_prefix(cidr)
		length := to_number(split(cidr, "/")[1])
	],
	[{"cidr": cidr, "destination": destination, "place": place, "length": length, "head": head(cidr, length)} |
		some destination in allowed
		some place, cidr in destination.entry.cidrs
		is_prefix(cidr)
		length := to_number(split(cidr, "/")[1])
	],
)

is_prefix(cidr) if {
	is_string(cidr)
	net.cidr_is_valid(cidr)
}

# What IPv4 prefixes share that overlap: the first byte. Those with less than a byte, and IPv6, may overlap any of their kind.
head(cidr, length) := split(cidr, ".")[0] if {
	length >= 8
	not contains(cidr, ":")
} else := "any"

# The prefixes that may overlap one of these ranges. Few do, and only those are worth a closer look.
near(ranges) := [prefix |
	heads := {"any"} | {start | some range in ranges; start := split(range, ".")[0]}
	some prefix in prefixes
	prefix.head in heads
] if {
	is_array(ranges)
	not has_short(ranges)
} else := prefixes

# Whether there is a range of IPv4 that is wider than a byte. An address without a length is none.
has_short(ranges) if {
	some range in ranges
	not contains(range, ":")
	to_number(split(concat("/", [range, "32"]), "/")[1]) < 8
}

path(prefix) := sprintf("%s.cidr", [prefix.destination.path]) if prefix.place == "cidr"

path(prefix) := sprintf("%s.cidrs[%d]", [prefix.destination.path, prefix.place]) if is_number(prefix.place)

family(cidr) := "ipv6" if contains(cidr, ":")

else := "ipv4"

# The allowed destinations that are the world outside the cluster.
worlds := [destination | some destination in allowed; destination.entry.entity == "world"]

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

# Lists of ports that name so many of a protocol that they might as well name all, each with those protocols. Many destinations share a
# list, so it is read once.
wide_lists[ports] := protocols if {
	some ports in {ports | some destination in allowed; ports := destination.entry.ports}
	protocols := wide_protocols(ports)
	count(protocols) > 0
}

# The protocols of which a list names so many ports that it might as well name all.
wide_protocols(ports) := {protocol |
	spans := {many |
		some port in ports
		not is_number(port)
		many := span(port)
	}
	count(spans) > 0
	some protocol in ["TCP", "UDP"]
	sum([many.ports | some many in spans; many.protocol == protocol]) > data.egress.mostPorts
}

# What an item names, if it may be many ports: first, last, how many, and the protocol.
span(port) := span_of_text(upper(port)) if is_string(port)

span(port) := span_of_fields(port, upper(object.get(port, "protocol", "TCP"))) if is_object(port)

span_of_text(text) := {"first": 0, "ports": 65535, "protocol": text} if text in {"TCP", "UDP"}

span_of_text(text) := stretch(to_number(bounds[1]), to_number(bounds[2]), protocol_of(text)) if {
	contains(text, "-")
	bounds := regex.find_all_string_submatch_n(`^([0-9]{1,5})-([0-9]{1,5})(?:/(?:TCP|UDP))?$`, text, 1)[0]
}

span_of_fields(port, protocol) := stretch(number(port.port), number(port.endPort), protocol) if port.port

else := {"first": 0, "ports": 65535, "protocol": protocol} if not port.port

stretch(first, last, protocol) := {"first": first, "ports": (last - first) + 1, "protocol": protocol}

protocol_of(text) := "UDP" if endswith(text, "/UDP")

else := "TCP"
