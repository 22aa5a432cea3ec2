# What a finding says besides its sentence. Written from the METADATA of the rules, which regorus cannot read while it evaluates;
# a test compares.
package egress.catalogue

import rego.v1

rules := {
	"EGR-0001": {
		"severity": "error",
		"remediation": "name the prefixes, domains or cloud services the pods need; entity world with ports names all addresses outside the cluster",
	},
	"EGR-0002": {
		"severity": "error",
		"remediation": "narrow the prefix, or name the domain or the cloud service behind it",
	},
	"EGR-0003": {
		"severity": "warning",
		"remediation": "take the link-local range out with except, or name the one address and port that is needed",
	},
	"EGR-0004": {
		"severity": "error",
		"remediation": "except the metadata address or deny it, and give the workload an identity of its own",
	},
	"EGR-0005": {
		"severity": "warning",
		"remediation": "name pods or a service by label, or take the range out with except",
	},
	"EGR-0006": {
		"severity": "error",
		"remediation": "name the service itself, such as S3, or the few regions that are needed",
	},
	"EGR-0007": {
		"severity": "error",
		"remediation": "write the domain that is registered below the suffix, such as *.example.co.uk",
	},
	"EGR-0008": {
		"severity": "warning",
		"remediation": "list the ports the workload connects to, such as 443",
	},
	"EGR-0009": {
		"severity": "error",
		"remediation": "set defaultAction to deny; mode audit shows what that would stop",
	},
	"EGR-0010": {
		"severity": "error",
		"remediation": "add the fields under governance, at the destination or at the top of the document",
	},
	"EGR-0011": {
		"severity": "error",
		"remediation": "take the destination out, or ask its owner for a new expiry",
	},
	"EGR-0012": {
		"severity": "error",
		"remediation": "bring the expiry forward, and renew the exception when it comes near",
	},
	"EGR-0013": {
		"severity": "error",
		"remediation": "have the destination approved, or lower the class if the data is not restricted",
	},
	"EGR-0014": {
		"severity": "error",
		"remediation": "name a team of the owner list",
	},
	"EGR-0015": {
		"severity": "error",
		"remediation": "put JSON under the key policy.json; give conftest and opa the file data.yaml beside the rules",
	},
	"EGR-0016": {
		"severity": "error",
		"remediation": "say what the destination is needed for",
	},
	"EGR-0017": {
		"severity": "error",
		"remediation": "name the ticket or decision that approved it",
	},
}
