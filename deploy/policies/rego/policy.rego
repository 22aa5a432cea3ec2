# Rules about the document as a whole.
package egress

import data.egress.lib
import rego.v1

# METADATA
# title: The default is allow outside dev
# description: >-
#   With a default of allow, whatever nobody thought of passes. That is for finding out what a workload needs, not for production.
# related_resources:
# - ref: https://csrc.nist.gov/pubs/sp/800/41/r1/final
#   description: NIST SP 800-41, deny by default
# custom:
#   id: EGR-0009
#   severity: error
#   remediation: set defaultAction to deny; mode audit shows what that would stop
#   source: NIST SP 800-41
deny contains lib.finding("EGR-0009", "defaultAction", message) if {
	lib.enabled("EGR-0009")
	lib.policy.defaultAction == "allow"
	environment := data.egress.cluster.environment
	environment != "dev"
	message := sprintf("defaultAction allow is for dev, and this is %s", [environment])
}

# METADATA
# title: The document cannot be judged
# description: >-
#   Rules say nothing about what they cannot read, and without the data they compare with they would let everything pass.
# related_resources:
# - ref: https://www.conftest.dev/options/
#   description: how conftest is given data
# custom:
#   id: EGR-0015
#   severity: error
#   remediation: put JSON under the key policy.json; give conftest and opa the file data.yaml beside the rules
#   source: no error is taken for "nothing found"
deny contains lib.finding("EGR-0015", "", "policy.json is missing or is not JSON") if {
	lib.is_config_map
	not lib.is_readable
}

deny contains lib.finding("EGR-0015", "", message) if {
	count(missing) > 0
	message := sprintf("data.egress lacks %s", [concat(", ", missing)])
}

# Written out, because a reference to data.egress by a variable would take in these rules themselves.
missing contains "broadServices" if not data.egress.broadServices

missing contains "cluster" if not data.egress.cluster

missing contains "disabled" if not data.egress.disabled

missing contains "governance" if not data.egress.governance

missing contains "linkLocal" if not data.egress.linkLocal

missing contains "metadata" if not data.egress.metadata

missing contains "mostPorts" if not data.egress.mostPorts

missing contains "mostRegions" if not data.egress.mostRegions

missing contains "private" if not data.egress.private

missing contains "publicSuffixes" if not data.egress.publicSuffixes

missing contains "widest" if not data.egress.widest
