package egress_test

import rego.v1

# What the rules of one id say about allowed destinations, as a set of paths.
paths(found, id) := {finding.path | some finding in found; finding.id == id}

document(destinations) := {"defaultAction": "deny", "allowedDestinations": destinations}

test_any_address_is_denied if {
	found := data.egress.deny with input as document([
		{"name": "a", "cidr": "0.0.0.0/0", "ports": [443]},
		{"name": "b", "cidrs": ["192.0.2.0/24", "::/0"], "ports": [443]},
		{"name": "c", "entity": "world"},
	])
	print(found)
	paths(found, "EGR-0001") == {
		"allowedDestinations[0].cidr",
		"allowedDestinations[1].cidrs[1]",
		"allowedDestinations[2].entity",
	}
}

test_some_addresses_and_world_with_ports_pass if {
	found := data.egress.deny with input as document([
		{"name": "a", "cidr": "192.0.2.0/24", "ports": [443]},
		{"name": "b", "entity": "world", "ports": [443]},
		{"name": "c", "entity": "node"},
	])
	print(found)
	paths(found, "EGR-0001") == set()
}

test_world_on_nearly_every_port_is_denied if {
	every ports in [
		["TCP", "UDP", "SCTP", "ICMP"],
		["tcp"],
		["1-65535"],
		["1-32767/UDP", "32768-65535/UDP"],
		[443, {"port": 1, "endPort": 65535}],
		[{"port": "1", "endPort": "40000", "protocol": "udp"}],
		[{"protocol": "TCP"}],
	] {
		found := data.egress.deny with input as document([{"name": "a", "entity": "world", "ports": ports}])
		print(ports, found)
		paths(found, "EGR-0001") == {"allowedDestinations[0].entity"}
	}
}

test_world_on_some_ports_passes if {
	every ports in [
		["443-443", "8000-8010/UDP"],
		["32768-65535"],
		["1-20000", "30000-40000/UDP"],
		["ICMP", "SCTP"],
		["1-65535/SCTP"],
	] {
		found := data.egress.deny with input as document([{"name": "a", "entity": "world", "ports": ports}])
		print(ports, found)
		paths(found, "EGR-0001") == set()
	}
}

test_a_denied_destination_may_be_any_address if {
	found := data.egress.deny with input as {
		"defaultAction": "deny",
		"deniedDestinations": [{"name": "all", "cidr": "0.0.0.0/0"}],
	}
	print(found)
	paths(found, "EGR-0001") == set()
}

test_wide_public_prefixes_are_denied if {
	found := data.egress.deny with input as document([
		{"name": "a", "cidr": "8.0.0.0/15", "ports": [443]},
		{"name": "b", "cidr": "2001:db8::/31", "ports": [443]},
		{"name": "c", "cidr": "10.0.0.0/7", "ports": [443]},
		{"name": "d", "cidrs": ["0.0.0.0/1", "128.0.0.0/1"], "ports": [443]},
	])
	print(found)
	paths(found, "EGR-0002") == {
		"allowedDestinations[0].cidr",
		"allowedDestinations[1].cidr",
		"allowedDestinations[2].cidr",
		"allowedDestinations[3].cidrs[0]",
		"allowedDestinations[3].cidrs[1]",
	}
}

test_prefixes_that_are_wide_together_are_denied if {
	found := data.egress.deny with input as document([
		{"name": "a", "cidrs": ["8.0.0.0/16", "8.1.0.0/16"], "ports": [443]},
		{"name": "b", "cidrs": ["8.0.0.0/17", "9.0.0.0/17", "11.0.0.1/32"], "ports": [443]},
		{"name": "c", "cidrs": ["2001:db8::/33", "2001:db9::/33", "2001:dba::/64"], "ports": [443]},
	])
	print(found)
	paths(found, "EGR-0002") == {
		"allowedDestinations[0].cidrs",
		"allowedDestinations[1].cidrs",
		"allowedDestinations[2].cidrs",
	}
}

# One address more than fits, and no other destination in the document.
test_one_destination_is_enough_to_be_wide if {
	every cidrs in [["8.0.0.0/16", "9.0.0.1/32"], ["2001:db8::/32", "2001:db9::/128"]] {
		found := data.egress.deny with input as document([{"name": "a", "cidrs": cidrs, "ports": [443]}])
		print(found)
		paths(found, "EGR-0002") == {"allowedDestinations[0].cidrs"}
	}
}

test_prefixes_that_are_narrow_together_pass if {
	found := data.egress.deny with input as document([
		{"name": "a", "cidrs": ["8.0.0.0/17", "8.1.0.0/17"], "ports": [443]},
		{"name": "b", "cidrs": ["8.0.0.0/16", "8.0.1.0/24", "10.0.0.0/8", "192.168.0.0/16"], "ports": [443]},
		{"name": "c", "cidrs": ["8.0.0.0/16", "9.0.0.0/16"], "except": ["9.0.0.0/16"], "ports": [443]},
		{"name": "d", "cidrs": ["2001:db8::/33", "2001:db9::/34", "fd00::/8"], "ports": [443]},
	])
	print(found)
	paths(found, "EGR-0002") == set()
}

test_narrow_or_private_prefixes_pass if {
	found := data.egress.deny with input as document([
		{"name": "a", "cidr": "8.0.0.0/16", "ports": [443]},
		{"name": "b", "cidr": "2001:db8::/32", "ports": [443]},
		{"name": "c", "cidr": "10.0.0.0/8", "ports": [443]},
		{"name": "d", "cidr": "fc00::/7", "ports": [443]},
		{"name": "e", "cidr": "172.16.0.0/12", "ports": [443]},
	])
	print(found)
	paths(found, "EGR-0002") == set()
}

test_the_widest_prefix_is_data if {
	found := data.egress.deny with input as document([{"name": "a", "cidr": "8.8.0.0/16", "ports": [443]}])
		with data.egress.widest as {"ipv4": 24, "ipv6": 48}
	print(found)
	paths(found, "EGR-0002") == {"allowedDestinations[0].cidr"}
}

test_link_local_addresses_are_warned_of if {
	found := data.egress.warn with input as document([
		{"name": "a", "cidr": "169.254.20.10/32", "ports": [53]},
		{"name": "b", "cidr": "169.0.0.0/8", "ports": [443]},
		{"name": "c", "cidr": "fe80::/64", "ports": [443]},
	])
	print(found)
	paths(found, "EGR-0003") == {
		"allowedDestinations[0].cidr",
		"allowedDestinations[1].cidr",
		"allowedDestinations[2].cidr",
	}
}

test_other_or_excepted_addresses_are_not_link_local if {
	found := data.egress.warn with input as document([
		{"name": "a", "cidr": "169.253.0.0/16", "ports": [443]},
		{"name": "b", "cidrs": ["169.0.0.0/8"], "except": ["169.254.0.0/16"], "ports": [443]},
		{"name": "c", "cidr": "169.254.169.254/32", "ports": [80]},
	])
	print(found)
	paths(found, "EGR-0003") == set()
}

test_the_metadata_address_is_denied if {
	found := data.egress.deny with input as document([
		{"name": "a", "cidr": "169.254.169.254/32"},
		{"name": "b", "cidr": "169.254.0.0/16", "ports": ["80/TCP"]},
		{"name": "c", "cidr": "fd00:ec2::/32", "ports": ["1-1024"]},
		{"name": "d", "cidr": "100.64.0.0/10", "ports": [{"port": 1, "endPort": 80}]},
		{"name": "e", "cidr": "168.63.129.16/32", "ports": [{"protocol": "tcp"}]},
		{"name": "f", "cidr": "169.254.169.0/24", "ports": [443, 80]},
		{"name": "g", "cidr": "169.254.169.254/32", "ports": ["80/Tcp"]},
		{"name": "h", "cidr": "169.254.169.254/32", "ports": ["tCP"]},
		{"name": "i", "cidr": "169.254.169.254/32", "ports": ["79-81/tcP"]},
	])
	print(found)
	paths(found, "EGR-0004") == {
		"allowedDestinations[0].cidr",
		"allowedDestinations[1].cidr",
		"allowedDestinations[2].cidr",
		"allowedDestinations[3].cidr",
		"allowedDestinations[4].cidr",
		"allowedDestinations[5].cidr",
		"allowedDestinations[6].cidr",
		"allowedDestinations[7].cidr",
		"allowedDestinations[8].cidr",
	}
}

test_every_spelling_of_port_80_counts if {
	every port in [
		80, "80", "80/TCP", "80/tcp", "79-81", "79-81/TCP", "TCP", "tcp",
		{"port": 80}, {"port": "80"}, {"port": 79, "endPort": 81}, {"port": "79", "endPort": 81},
		{"port": 79, "endPort": "81"}, {"port": "79", "endPort": "81"}, {"port": "80", "protocol": "tcp"},
		{"port": "80", "endPort": "80", "protocol": "TCP"}, {"protocol": "TCP"},
	] {
		found := data.egress.deny with input as document([{"name": "a", "cidr": "100.100.100.200/32", "ports": [port]}])
		print(port, found)
		paths(found, "EGR-0004") == {"allowedDestinations[0].cidr"}
	}
}

test_other_ports_excepted_and_denied_metadata_pass if {
	found := data.egress.deny with input as {
		"defaultAction": "deny",
		"allowedDestinations": [
			{"name": "a", "cidr": "169.254.0.0/16", "ports": [443, "53/UDP", "8000-8080", {"port": 81}, {"port": "81"}, {"port": "81", "endPort": "90"}, {"protocol": "UDP"}, "http"]},
			{"name": "b", "cidrs": ["169.254.0.0/16"], "except": ["169.254.169.254/32"]},
			{"name": "c", "cidr": "100.64.0.0/10", "ports": [80]},
		],
		"deniedDestinations": [{"name": "metadata", "cidr": "100.100.100.200/32"}],
	}
	print(found)
	paths(found, "EGR-0004") == set()
}

test_a_denial_that_ends_or_has_holes_does_not_count if {
	found := data.egress.deny with input as {
		"defaultAction": "deny",
		"allowedDestinations": [{"name": "a", "cidr": "169.254.169.254/32", "ports": [80]}],
		"deniedDestinations": [
			{"name": "ends", "cidr": "169.254.169.254/32", "governance": {"expiry": "2099-12-31"}},
			{"name": "ports", "cidr": "169.254.169.254/32", "ports": [81]},
			{"name": "hole", "cidrs": ["169.254.0.0/16"], "except": ["169.254.169.0/24"]},
		],
	}
	print(found)
	paths(found, "EGR-0004") == {"allowedDestinations[0].cidr"}
}

test_a_denial_that_ends_by_another_name_does_not_count if {
	every governance in [{"expiresAt": "2020-01-01"}, {"expires_at": "2020-01-01"}] {
		found := data.egress.deny with input as {
			"allowedDestinations": [{"name": "a", "cidr": "169.254.169.254/32", "ports": [80]}],
			"deniedDestinations": [{"name": "ends", "cidr": "169.254.169.254/32", "governance": governance}],
		}
		print(found)
		paths(found, "EGR-0004") == {"allowedDestinations[0].cidr"}
	}
}

test_a_denial_that_ends_with_the_whole_document_does_not_count if {
	found := data.egress.deny with input as {
		"governance": {"expiry": "2020-01-01"},
		"allowedDestinations": [{"name": "a", "cidr": "169.254.169.254/32", "ports": [80], "governance": {"expiry": "2099-12-31"}}],
		"deniedDestinations": [{"name": "ends", "cidr": "169.254.169.254/32"}],
	}
	print(found)
	paths(found, "EGR-0004") == {"allowedDestinations[0].cidr"}
}

cluster := {
	"podCidrs": ["10.200.0.0/16"],
	"serviceCidrs": ["172.20.0.0/16", "fd00:20::/112"],
	"nodeCidrs": ["10.240.0.0/20"],
	"environment": "prod",
	"approvedDestinations": [],
}

test_overlaps_with_the_cluster_are_warned_of if {
	found := data.egress.warn with data.egress.cluster as cluster
		with input as document([
			{"name": "a", "cidr": "10.0.0.0/8", "ports": [443]},
			{"name": "b", "cidr": "172.20.0.1/32", "ports": [443]},
			{"name": "c", "cidrs": ["fd00:20::/64"], "ports": [443]},
		])
	print(found)
	paths(found, "EGR-0005") == {
		"allowedDestinations[0].cidr",
		"allowedDestinations[1].cidr",
		"allowedDestinations[2].cidrs[0]",
	}
	messages := {finding.msg | some finding in found; finding.path == "allowedDestinations[0].cidr"}
	messages == {
		"10.0.0.0/8 overlaps the pod range 10.200.0.0/16",
		"10.0.0.0/8 overlaps the node range 10.240.0.0/20",
	}
}

test_no_overlap_passes if {
	found := data.egress.warn with data.egress.cluster as cluster
		with input as document([
			{"name": "a", "cidr": "10.1.0.0/16", "ports": [443]},
			{"name": "b", "cidrs": ["10.0.0.0/8"], "except": ["10.200.0.0/16", "10.240.0.0/16"], "ports": [443]},
		])
	print(found)
	paths(found, "EGR-0005") == set()
}
