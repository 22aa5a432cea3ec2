package egress_test

import data.egress.lib
import rego.v1

# Every id, and whether it is an error.
test_disabled_rules_say_nothing if {
	policy := {"defaultAction": "allow", "allowedDestinations": [{"name": "a", "cidr": "0.0.0.0/0"}]}
	found := data.egress.deny | data.egress.warn with input as policy
		with data.egress.disabled as [id | some id, _ in data.egress.catalogue.rules]
	print(found)
	{finding.id | some finding in found} - {"EGR-0015"} == set()
}

test_findings_say_what_to_do if {
	found := data.egress.deny with input as document([{"name": "a", "cidr": "0.0.0.0/0"}])
	print(found)
	every finding in found {
		finding.severity == "error"
		finding.remediation != ""
	}
	softer := data.egress.warn with input as document([{"name": "a", "cidr": "192.0.2.0/24"}])
	print(softer)
	every finding in softer {
		finding.severity == "warning"
		finding.remediation != ""
	}
}

test_time_comes_from_data if {
	now := lib.now with data.egress.now as "2026-11-22T12:00:00Z"
	print(now)
	now == time.parse_rfc3339_ns("2026-11-22T12:00:00Z")
}

test_time_comes_from_the_clock_otherwise if {
	now := lib.now
	print(now)
	now > time.parse_rfc3339_ns("2025-01-01T00:00:00Z")
}

# Every prefix that overlaps one of the ranges is near them, however either is written.
test_what_overlaps_is_near if {
	cidrs := [
		"0.0.0.0/0", "8.0.0.0/5", "10.0.0.0/8", "10.1.2.3/32", "169.0.0.0/7", "169.254.169.254/32", "172.31.0.0/16", "203.0.113.0/24",
		"::/0", "::ffff:10.0.0.0/104", "FD00:EC2::254/128", "fd00:ec2:0:0:0:0:0:254/128", "2001:db8::/32",
	]
	every ranges in [["10.0.0.0/8"], ["169.254.169.254"], ["169.254.0.0/16", "fd00:ec2::/32"], ["172.16.0.0/12"], ["8.0.0.0/5"], ["::/0"], []] {
		near := {prefix.cidr | some prefix in lib.near(ranges)} with input as {"allowedDestinations": [{"name": "a", "cidrs": cidrs}]}
		over := {cidr | some cidr in cidrs; some range in ranges; overlap(range, cidr)}
		print(ranges, over - near)
		count(over - near) == 0
	}
}

overlap(range, cidr) if net.cidr_contains(cidr, range)

overlap(range, cidr) if {
	contains(range, "/")
	net.cidr_contains(range, cidr)
}

test_far_prefixes_are_left_out if {
	near := {prefix.cidr | some prefix in lib.near(["10.0.0.0/8", "169.254.169.254"])} with input as {"allowedDestinations": [
		{"name": "a", "cidrs": ["10.0.0.0/16", "11.0.0.0/16", "0.0.0.0/7", "169.254.0.0/16", "203.0.113.0/24"]},
		{"name": "b", "cidr": "192.0.2.1/32"},
	]}
	print(near)
	near == {"10.0.0.0/16", "0.0.0.0/7", "169.254.0.0/16"}
}
