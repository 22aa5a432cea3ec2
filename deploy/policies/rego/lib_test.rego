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
