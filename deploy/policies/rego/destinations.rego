# Rules about cloud services, domains and ports.
package egress

import data.egress.lib
import rego.v1

# METADATA
# title: All of a cloud provider is allowed
# description: >-
#   AMAZON and EC2 hold what every customer of AWS runs: whoever rents a machine there is reachable. So do AzureCloud and a cloud named
#   without services. A few regions are less; a list of most of them is not.
# related_resources:
# - ref: https://docs.aws.amazon.com/vpc/latest/userguide/aws-ip-ranges.html
#   description: what the services in the published ranges mean
# custom:
#   id: EGR-0006
#   severity: error
#   remediation: name the service itself, such as S3, or the few regions that are needed
#   source: AWS IP address ranges
deny contains lib.finding("EGR-0006", service.path, message) if {
	lib.enabled("EGR-0006")
	some service in cloud_services
	where := everywhere(service.regions)
	is_string(service.name)
	lower(service.name) in data.egress.broadServices[service.provider]
	message := sprintf("%s %s is most of %s", [service.name, where, service.provider])
}

# Azure has a service for each region, such as AzureCloud.westeurope.
deny contains lib.finding("EGR-0006", path, message) if {
	lib.enabled("EGR-0006")
	some destination in clouds
	some broad in data.egress.broadServices[destination.entry.cloud.provider]
	names := {name |
		some name in destination.entry.cloud.services
		is_string(name)
		startswith(lower(name), concat("", [broad, "."]))
	}
	count(names) > data.egress.mostRegions
	path := sprintf("%s.cloud", [destination.path])
	message := sprintf("%s of %d regions is most of %s", [broad, count(names), destination.entry.cloud.provider])
}

# A provider without services is all of it, but for regions.
deny contains lib.finding("EGR-0006", path, message) if {
	lib.enabled("EGR-0006")
	some destination in clouds
	cloud := destination.entry.cloud
	not cloud.service
	not cloud.services
	where := everywhere(object.get(cloud, "regions", []))
	lower(cloud.provider) in object.keys(data.egress.broadServices)
	path := sprintf("%s.cloud", [destination.path])
	message := sprintf("cloud without service %s is all of %s", [joined(where), cloud.provider])
}

joined(where) := "and regions" if where == "without regions"

joined(where) := where if where != "without regions"

clouds := [destination | some destination in lib.allowed; destination.entry.cloud]

everywhere(regions) := "without regions" if count(regions) == 0

everywhere(regions) := sprintf("in %d regions", [count(names)]) if {
	names := {name | some name in regions}
	count(names) > data.egress.mostRegions
}

cloud_services contains {"provider": "aws", "name": name, "regions": regions, "path": path} if {
	some destination in lib.allowed
	name := destination.entry.awsService
	regions := object.get(destination.entry, "regions", [])
	path := sprintf("%s.awsService", [destination.path])
}

cloud_services contains {"provider": provider, "name": name, "regions": regions, "path": path} if {
	some destination in clouds
	cloud := destination.entry.cloud
	provider := lower(cloud.provider)
	some name in array.concat([s | s := cloud.service], [s | some s in cloud.services])
	regions := object.get(cloud, "regions", [])
	path := sprintf("%s.cloud", [destination.path])
}

# METADATA
# title: A wildcard stands at a public suffix
# description: >-
#   Below a public suffix anybody can register a name, so the wildcard allows everybody.
# related_resources:
# - ref: https://publicsuffix.org/
#   description: the list of such suffixes
# custom:
#   id: EGR-0007
#   severity: error
#   remediation: write the domain that is registered below the suffix, such as *.example.co.uk
#   source: the Public Suffix List
deny contains lib.finding("EGR-0007", domain.path, message) if {
	lib.enabled("EGR-0007")
	some domain in domains
	startswith(domain.name, "*.")
	suffix := trim_prefix(domain.name, "*.")
	is_public_suffix(suffix)
	message := sprintf("*.%s allows every name under the public suffix %s", [suffix, suffix])
}

is_public_suffix(suffix) if not contains(suffix, ".")

is_public_suffix(suffix) if suffix in data.egress.publicSuffixes

domains contains {"name": trim_suffix(lower(name), "."), "path": path} if {
	some destination in lib.allowed
	name := destination.entry.domain
	is_string(name)
	path := sprintf("%s.domain", [destination.path])
}

domains contains {"name": trim_suffix(lower(name), "."), "path": path} if {
	some destination in lib.allowed
	some i, name in destination.entry.domains
	is_string(name)
	path := sprintf("%s.domains[%v]", [destination.path, i])
}

# METADATA
# title: A destination has no ports
# description: >-
#   Without ports a destination is about every protocol and every port, remote shells and tunnels included.
# related_resources:
# - ref: https://kubernetes.io/docs/reference/networking/ports-and-protocols/
#   description: what listens in a cluster
# custom:
#   id: EGR-0008
#   severity: warning
#   remediation: list the ports the workload connects to, such as 443
#   source: least privilege
warn contains lib.finding("EGR-0008", destination.path, message) if {
	lib.enabled("EGR-0008")
	some destination in lib.allowed
	not destination.entry.ports
	not destination.entry.entity == "world"
	message := sprintf("%v has no ports: it allows every protocol and port", [object.get(destination.entry, "name", "the destination")])
}

warn contains lib.finding("EGR-0008", destination.path, message) if {
	lib.enabled("EGR-0008")
	some destination in lib.allowed
	not destination.entry.entity == "world"
	some protocol in lib.wide_lists[destination.entry.ports]
	name := object.get(destination.entry, "name", "the destination")
	message := sprintf("%v allows more than %d ports of %s", [name, data.egress.mostPorts, protocol])
}
