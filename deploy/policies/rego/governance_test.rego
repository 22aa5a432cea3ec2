package egress_test

import rego.v1

now := "2026-11-22T12:00:00Z"

# A destination with everything an exception must say, and what is put in its place.
governed(over) := {
	"name": "a",
	"cidr": "192.0.2.0/24",
	"ports": [443],
	"governance": object.union(
		{
			"owner": "team-payments",
			"reason": "card capture",
			"dataClassification": "internal",
			"expiry": "2027-01-31",
			"auditRef": "SEC-123",
		},
		over,
	),
}

lists := {
	"required": ["owner", "reason", "dataClassification", "expiry"],
	"owners": ["team-a", "team-pay*", "*@example.com"],
	"longestDays": {"restricted": 30, "confidential": 90, "internal": 180, "public": 365},
	"latestYear": 2098,
	"refusedReasons": ["temp", "test"],
	"auditRef": "^(SEC|RISK)-[0-9]+$",
}

judged(destinations) := found if {
	found := data.egress.deny with input as document(destinations)
		with data.egress.now as now
		with data.egress.governance as lists
}

test_missing_governance_is_denied if {
	found := judged([
		{"name": "a", "cidr": "192.0.2.0/24", "ports": [443]},
		object.union(governed({}), {"governance": {"reason": " "}}),
		governed({"expiry": "soon"}),
		governed({"expiry": "2027-13-01"}),
	])
	print(found)
	paths(found, "EGR-0010") == {
		"allowedDestinations[0]",
		"allowedDestinations[1]",
		"allowedDestinations[2]",
		"allowedDestinations[3]",
	}
	"a lacks owner, reason, dataClassification, expiry" in {finding.msg | some finding in found}
}

test_whole_governance_passes if {
	found := judged([governed({})])
	print(found)
	found == set()
	paths(found, "EGR-0010") == set()
}

test_governance_is_inherited_and_has_other_spellings if {
	policy := {
		"governance": {"owner": "team-a", "data-classification": "public", "expiresAt": "2027-01-01T00:00:00+02:00"},
		"allowedDestinations": [{"name": "a", "cidr": "192.0.2.0/24", "ports": [443], "governance": {"reason": "card capture"}}],
	}
	found := data.egress.deny with input as policy with data.egress.now as now with data.egress.governance as lists
	print(found)
	found == set()
}

test_what_has_ended_is_denied if {
	found := judged([
		governed({"expiry": "2026-11-21"}),
		governed({"expiry": "2026-11-22T12:00:00Z"}),
		governed({"expiry": "2026-11-22t13:00:00.5+02:00"}),
	])
	print(found)
	paths(found, "EGR-0011") == {"allowedDestinations[0]", "allowedDestinations[1]", "allowedDestinations[2]"}
}

test_a_date_holds_to_its_end if {
	found := judged([governed({"expiry": "2026-11-22"}), governed({"expiry": "2026-11-22T12:00:01Z"})])
	print(found)
	paths(found, "EGR-0011") == set()
}

test_a_distant_expiry_is_denied if {
	found := judged([
		governed({"expiry": "2026-12-23", "dataClassification": "restricted"}),
		governed({"expiry": "2027-02-21", "dataClassification": "confidential"}),
		governed({"expiry": "2027-05-22"}),
		governed({"expiry": "2027-11-23", "dataClassification": "public"}),
		governed({"expiry": "2099-01-01", "dataClassification": "public"}),
		governed({"expiry": "9999-12-31"}),
	])
	print(found)
	paths(found, "EGR-0012") == {
		"allowedDestinations[0]",
		"allowedDestinations[1]",
		"allowedDestinations[2]",
		"allowedDestinations[3]",
		"allowedDestinations[4]",
		"allowedDestinations[5]",
	}
}

test_an_expiry_within_its_class_passes if {
	found := judged([
		governed({"expiry": "2026-12-22", "dataClassification": "restricted"}),
		governed({"expiry": "2027-02-20", "dataClassification": "confidential"}),
		governed({"expiry": "2027-05-21"}),
		governed({"expiry": "2027-11-22", "dataClassification": "public"}),
	])
	print(found)
	paths(found, "EGR-0012") == set()
}

test_without_a_class_the_longest_holds if {
	policy := document([{"name": "a", "cidr": "192.0.2.0/24", "ports": [443], "governance": {"expiry": "2027-11-23"}}])
	found := data.egress.deny with input as policy with data.egress.now as now with data.egress.governance as lists
	print(found)
	paths(found, "EGR-0012") == {"allowedDestinations[0]"}
}

approved := object.union(cluster, {"approvedDestinations": ["192.0.2.0/24", "*.example.com", "api.example.org", "s3", "github"]})

restricted(destination) := object.union(
	{"name": "s3", "ports": [443], "governance": governed({"dataClassification": "restricted", "expiry": "2026-12-01"}).governance},
	destination,
)

test_restricted_data_to_unapproved_destinations_are_denied if {
	found := data.egress.deny with data.egress.cluster as approved
		with data.egress.now as now
		with data.egress.governance as lists
		with input as document([
			restricted({"cidr": "192.0.0.0/16"}),
			restricted({"cidrs": ["192.0.2.0/25", "198.51.100.0/24"]}),
			restricted({"domains": ["example.com"]}),
			restricted({"domain": "*.example.org"}),
			restricted({"awsService": "EC2", "regions": ["eu-west-1"]}),
			restricted({"cloud": {"provider": "azure", "service": "Storage"}}),
			restricted({"cloud": {"provider": "google"}}),
			restricted({"entity": "world"}),
		])
	print(found)
	paths(found, "EGR-0013") == {sprintf("allowedDestinations[%d]", [i]) | some i in [0, 1, 2, 3, 4, 5, 6, 7]}
	"s3 sends restricted data to unapproved 198.51.100.0/24" in {finding.msg | some finding in found}
}

test_approved_and_inner_destinations_pass if {
	found := data.egress.deny with data.egress.cluster as approved
		with data.egress.now as now
		with data.egress.governance as lists
		with input as document([
			restricted({"cidr": "192.0.2.128/25"}),
			restricted({"domains": ["pay.example.com", "*.eu.example.com", "*.example.com", "API.example.org"]}),
			restricted({"awsService": "S3"}),
			restricted({"cloud": {"provider": "github"}}),
			restricted({"service": {"name": "redis"}}),
			restricted({"pods": {"podSelector": {}}}),
			restricted({"entity": "kube-apiserver"}),
			object.union(governed({}), {"cidr": "203.0.113.0/24"}),
		])
	print(found)
	paths(found, "EGR-0013") == set()
}

test_without_a_list_everything_is_approved if {
	found := judged([restricted({"cidr": "203.0.113.0/24"})])
	print(found)
	paths(found, "EGR-0013") == set()
}

test_unknown_owners_are_denied if {
	found := judged([
		governed({"owner": "team-b"}),
		governed({"owner": "xteam-a"}),
		governed({"owner": "jo@exampleXcom"}),
	])
	print(found)
	paths(found, "EGR-0014") == {"allowedDestinations[0]", "allowedDestinations[1]", "allowedDestinations[2]"}
}

test_known_owners_pass if {
	found := judged([
		governed({"owner": "team-a"}),
		governed({"owner": "team-payments"}),
		governed({"owner": "jo@example.com"}),
	])
	print(found)
	paths(found, "EGR-0014") == set()
}

test_reasons_that_say_nothing_are_denied if {
	found := judged([governed({"reason": "temp"}), governed({"reason": " TEST..."})])
	print(found)
	paths(found, "EGR-0016") == {"allowedDestinations[0]", "allowedDestinations[1]"}
}

test_marks_do_not_make_a_reason if {
	every reason in ["temp;", "(temp)", "- Temp -", ".", "x", "…"] {
		found := judged([governed({"reason": reason})])
		print(reason, found)
		paths(found, "EGR-0016") == {"allowedDestinations[0]"}
	}
}

test_reasons_pass if {
	found := judged([governed({"reason": "test of the card terminal"})])
	print(found)
	paths(found, "EGR-0016") == set()
}

test_other_audit_refs_are_denied if {
	found := judged([governed({"auditRef": "see mail"})])
	print(found)
	paths(found, "EGR-0017") == {"allowedDestinations[0]"}
}

test_audit_refs_pass if {
	found := judged([governed({"auditRef": "RISK-7"})])
	print(found)
	paths(found, "EGR-0017") == set()
}
