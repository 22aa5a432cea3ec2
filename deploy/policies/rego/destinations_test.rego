package egress_test

import rego.v1

test_a_whole_provider_is_denied if {
	found := data.egress.deny with input as document([
		{"name": "a", "awsService": "EC2", "ports": [443]},
		{"name": "b", "awsService": "amazon", "regions": [], "ports": [443]},
		{"name": "c", "cloud": {"provider": "aws", "services": ["S3", "AMAZON"]}, "ports": [443]},
		{"name": "d", "cloud": {"provider": "azure", "service": "AzureCloud"}, "ports": [443]},
		{"name": "e", "cloud": {"provider": "aws"}, "ports": [443]},
	])
	print(found)
	paths(found, "EGR-0006") == {
		"allowedDestinations[0].awsService",
		"allowedDestinations[1].awsService",
		"allowedDestinations[2].cloud",
		"allowedDestinations[3].cloud",
		"allowedDestinations[4].cloud",
	}
}

test_providers_without_services_are_denied if {
	every provider in ["aws", "azure", "digitalocean", "google", "oracle"] {
		found := data.egress.deny with input as document([{"name": "a", "cloud": {"provider": provider}, "ports": [443]}])
		print(provider, found)
		paths(found, "EGR-0006") == {"allowedDestinations[0].cloud"}
	}
}

test_a_list_of_regions_may_be_too_long if {
	regions := ["us-east-1", "us-east-2", "us-west-1", "us-west-2", "eu-west-1", "eu-west-2"]
	areas := [sprintf("AzureCloud.region%d", [n]) | some n in [1, 2, 3, 4, 5, 6]]
	found := data.egress.deny with input as document([
		{"name": "a", "awsService": "EC2", "regions": regions, "ports": [443]},
		{"name": "b", "cloud": {"provider": "aws", "service": "EC2", "regions": regions}, "ports": [443]},
		{"name": "c", "cloud": {"provider": "google", "regions": regions}, "ports": [443]},
		{"name": "d", "cloud": {"provider": "azure", "services": areas}, "ports": [443]},
		{"name": "e", "awsService": "S3", "regions": regions, "ports": [443]},
		{"name": "f", "awsService": "EC2", "regions": array.slice(regions, 0, 5), "ports": [443]},
		{"name": "g", "cloud": {"provider": "azure", "services": array.slice(areas, 0, 5)}, "ports": [443]},
	])
	print(found)
	paths(found, "EGR-0006") == {
		"allowedDestinations[0].awsService",
		"allowedDestinations[1].cloud",
		"allowedDestinations[2].cloud",
		"allowedDestinations[3].cloud",
	}
}

test_one_service_or_region_passes if {
	found := data.egress.deny with input as document([
		{"name": "a", "awsService": "S3", "ports": [443]},
		{"name": "b", "awsService": "EC2", "regions": ["eu-west-1"], "ports": [443]},
		{"name": "c", "cloud": {"provider": "aws", "regions": ["eu-west-1"]}, "ports": [443]},
		{"name": "d", "cloud": {"provider": "github"}, "ports": [443]},
		{"name": "e", "cloud": {"provider": "azure", "services": ["Storage"]}, "ports": [443]},
	])
	print(found)
	paths(found, "EGR-0006") == set()
}

test_wildcards_at_public_suffixes_are_denied if {
	found := data.egress.deny with input as document([
		{"name": "a", "domain": "*.com", "ports": [443]},
		{"name": "b", "domains": ["api.example.org", "*.CO.uk."], "ports": [443]},
		{"name": "c", "domain": "*.github.io", "ports": [443]},
	])
	print(found)
	paths(found, "EGR-0007") == {
		"allowedDestinations[0].domain",
		"allowedDestinations[1].domains[1]",
		"allowedDestinations[2].domain",
	}
}

test_registered_names_pass if {
	found := data.egress.deny with input as document([
		{"name": "a", "domain": "*.example.com", "ports": [443]},
		{"name": "b", "domains": ["example.co.uk", "*.example.co.uk", "github.io"], "ports": [443]},
	])
	print(found)
	paths(found, "EGR-0007") == set()
}

test_no_ports_are_warned_of if {
	found := data.egress.warn with input as document([
		{"name": "a", "cidr": "192.0.2.0/24"},
		{"name": "b", "service": {"name": "redis"}},
	])
	print(found)
	paths(found, "EGR-0008") == {"allowedDestinations[0]", "allowedDestinations[1]"}
}

test_nearly_every_port_is_warned_of if {
	found := data.egress.warn with input as document([
		{"name": "a", "cidr": "192.0.2.0/24", "ports": ["TCP", "UDP"]},
		{"name": "b", "service": {"name": "redis"}, "ports": ["1-40000"]},
		{"name": "c", "entity": "world", "ports": ["TCP"]},
	])
	print(found)
	paths(found, "EGR-0008") == {"allowedDestinations[0]", "allowedDestinations[1]"}
}

test_ports_pass if {
	found := data.egress.warn with input as document([
		{"name": "a", "cidr": "192.0.2.0/24", "ports": [443]},
		{"name": "b", "entity": "world"},
	])
	print(found)
	paths(found, "EGR-0008") == set()
}
