# Rules about who is answerable for an allowed destination, and until when it holds.
package egress

import data.egress.lib
import rego.v1

# METADATA
# title: Governance is missing
# description: >-
#   An exception nobody owns and nobody gave a reason for is never taken back. The fields may stand at the destination or at the top.
# related_resources:
# - ref: https://csrc.nist.gov/pubs/sp/800/53/r5/upd1/final
#   description: NIST SP 800-53, AC-4 and CM-3
# custom:
#   id: EGR-0010
#   governance: [GOV-0001, GOV-0002, GOV-0003, GOV-0004, GOV-0005, GOV-0006]
#   severity: error
#   remediation: add the fields under governance, at the destination or at the top of the document
#   source: NIST SP 800-53
deny contains lib.finding("EGR-0010", exception.path, message) if {
	lib.enabled("EGR-0010")
	some exception in exceptions
	lacking := [field |
		some field in data.egress.governance.required
		not is_said(exception.governance, field)
	]
	count(lacking) > 0
	message := sprintf("%v lacks %s", [exception.name, concat(", ", lacking)])
}

deny contains lib.finding("EGR-0010", exception.path, message) if {
	lib.enabled("EGR-0010")
	some exception in exceptions
	expiry := exception.governance.expiry
	not ends(expiry)
	message := sprintf("the expiry of %v is neither a date nor a time with an offset: %v", [exception.name, expiry])
}

is_said(governance, field) if {
	is_string(governance[field])
	trim_space(governance[field]) != ""
}

# METADATA
# title: The exception has ended
# description: >-
#   An expired destination matches nothing. It stays in the text as something that looks open and is not.
# related_resources:
# - ref: https://csrc.nist.gov/pubs/sp/800/53/r5/upd1/final
#   description: NIST SP 800-53, AC-2(3) and CM-3
# custom:
#   id: EGR-0011
#   governance: [GOV-0012]
#   severity: error
#   remediation: take the destination out, or ask its owner for a new expiry
#   source: NIST SP 800-53
deny contains lib.finding("EGR-0011", exception.path, message) if {
	lib.enabled("EGR-0011")
	some exception in exceptions
	ends(exception.governance.expiry) <= lib.now
	message := sprintf("%v expired: %s", [exception.name, exception.governance.expiry])
}

# METADATA
# title: The expiry is further away than its class of data allows
# description: >-
#   The more harm the data can do, the sooner somebody has to look again. An end after the latest year stands for no end at all.
# related_resources:
# - ref: https://csrc.nist.gov/pubs/sp/800/60/v1/r1/final
#   description: NIST SP 800-60, classes of data
# custom:
#   id: EGR-0012
#   governance: [GOV-0010, GOV-0011]
#   severity: error
#   remediation: bring the expiry forward, and renew the exception when it comes near
#   source: NIST SP 800-60
deny contains lib.finding("EGR-0012", exception.path, message) if {
	lib.enabled("EGR-0012")
	some exception in exceptions
	days := longest(exception.governance)
	ends(exception.governance.expiry) > midnight + ((days + 1) * day)
	not beyond_latest_year(exception.governance.expiry)
	message := sprintf("%v may last %d days after today, and its expiry is %s", [exception.name, days, exception.governance.expiry])
}

deny contains lib.finding("EGR-0012", exception.path, message) if {
	lib.enabled("EGR-0012")
	some exception in exceptions
	beyond_latest_year(exception.governance.expiry)
	message := sprintf("the expiry of %v is %s, which stands for never", [exception.name, exception.governance.expiry])
}

# Without a class, the most any class may last.
longest(governance) := data.egress.governance.longestDays[governance.dataClassification]

longest(governance) := max([days | some days in data.egress.governance.longestDays]) if not governance.dataClassification

midnight := lib.now - (lib.now % day)

beyond_latest_year(expiry) if {
	is_expiry(expiry)
	to_number(substring(expiry, 0, 4)) > data.egress.governance.latestYear
}

# METADATA
# title: Restricted data goes to an unapproved destination
# description: >-
#   Restricted data may leave the cluster only for destinations on the approved list: a prefix, a domain pattern, or a cloud service by its
#   name. The name an author gives a destination counts for nothing. Pods, Services, nodes and the API server are in the cluster.
# related_resources:
# - ref: https://csrc.nist.gov/pubs/sp/800/53/r5/upd1/final
#   description: NIST SP 800-53, AC-4 and SC-7
# custom:
#   id: EGR-0013
#   severity: error
#   remediation: have the destination approved, or lower the class if the data is not restricted
#   source: NIST SP 800-53
deny contains lib.finding("EGR-0013", exception.path, message) if {
	lib.enabled("EGR-0013")
	count(data.egress.cluster.approvedDestinations) > 0
	some exception in exceptions
	exception.governance.dataClassification == "restricted"
	unapproved := [target |
		some target in targets(exception.entry)
		not is_approved(target)
	]
	count(unapproved) > 0
	message := sprintf("%v sends restricted data to unapproved %s", [exception.name, concat(", ", unapproved)])
}

# Where an entry leads outside the cluster.
targets(entry) := array.concat(
	array.concat([t | t := entry.cidr], [t | some t in entry.cidrs]),
	array.concat(
		array.concat([t | t := entry.domain], [t | some t in entry.domains]),
		array.concat(
			array.concat([t | t := entry.awsService], cloud_names(object.get(entry, "cloud", {}))),
			[t | t := entry.entity; t == "world"],
		),
	),
)

# A cloud without services is named by its provider.
cloud_names(cloud) := array.concat([s | s := cloud.service], [s | some s in cloud.services]) if not is_whole(cloud)

cloud_names(cloud) := [cloud.provider] if is_whole(cloud)

is_whole(cloud) if {
	cloud.provider
	not cloud.service
	not cloud.services
}

is_approved(target) if lower(target) in {lower(a) | some a in data.egress.cluster.approvedDestinations}

is_approved(target) if {
	contains(target, "/")
	net.cidr_is_valid(target)
	some approved in data.egress.cluster.approvedDestinations
	net.cidr_is_valid(approved)
	net.cidr_contains(approved, target)
}

is_approved(target) if {
	some approved in data.egress.cluster.approvedDestinations
	startswith(approved, "*.")
	endswith(lower(target), lower(trim_prefix(approved, "*")))
}

# METADATA
# title: The owner is unknown
# description: >-
#   An owner that is not on the list is a typing error, a team that is gone, or a person who will be.
# related_resources:
# - ref: https://csrc.nist.gov/pubs/sp/800/53/r5/upd1/final
#   description: NIST SP 800-53, CM-3
# custom:
#   id: EGR-0014
#   governance: [GOV-0007]
#   severity: error
#   remediation: name a team of the owner list
#   source: NIST SP 800-53
deny contains lib.finding("EGR-0014", exception.path, message) if {
	lib.enabled("EGR-0014")
	count(data.egress.governance.owners) > 0
	some exception in exceptions
	owner := exception.governance.owner
	not is_known(owner)
	message := sprintf("%v is owned by %v, which is not on the list of owners", [exception.name, owner])
}

is_known(owner) if {
	is_string(owner)
	some pattern in data.egress.governance.owners
	regex.match(sprintf("^%s$", [replace(quoted(pattern), "*", ".*")]), owner)
}

# The pattern with what a regular expression reads otherwise made literal; the star is left.
quoted(pattern) := regex.replace(pattern, `[.+?()|\[\]{}^$\\]`, `\$0`)

# METADATA
# title: The reason says nothing
# description: >-
#   A word such as temp tells nobody, half a year later, whether the destination is still needed.
# related_resources:
# - ref: https://csrc.nist.gov/pubs/sp/800/53/r5/upd1/final
#   description: NIST SP 800-53, CM-3
# custom:
#   id: EGR-0016
#   governance: [GOV-0009]
#   severity: error
#   remediation: say what the destination is needed for
#   source: NIST SP 800-53
deny contains lib.finding("EGR-0016", exception.path, message) if {
	lib.enabled("EGR-0016")
	some exception in exceptions
	reason := exception.governance.reason
	is_string(reason)
	says_nothing(reason)
	message := sprintf("the reason of %v says nothing: %s", [exception.name, reason])
}

# Marks around it do not make it a reason, and marks alone are none, nor is a single letter.
says_nothing(reason) if lower(trim(reason, marks)) in data.egress.governance.refusedReasons

says_nothing(reason) if {
	trim_space(reason) != ""
	count(trim(reason, marks)) < 2
}

marks := " \t\r\n.,;:!?()[]{}<>'\"`*_-–—…/\\|~+#=&%@^$"

# METADATA
# title: The auditRef does not look like one
# description: >-
#   What does not have the form of a ticket cannot be looked up.
# related_resources:
# - ref: https://csrc.nist.gov/pubs/sp/800/53/r5/upd1/final
#   description: NIST SP 800-53, CM-3
# custom:
#   id: EGR-0017
#   governance: [GOV-0008]
#   severity: error
#   remediation: name the ticket or decision that approved it
#   source: NIST SP 800-53
deny contains lib.finding("EGR-0017", exception.path, message) if {
	lib.enabled("EGR-0017")
	data.egress.governance.auditRef != ""
	some exception in exceptions
	reference := exception.governance.auditRef
	not regex.match(data.egress.governance.auditRef, reference)
	message := sprintf("the auditRef of %v does not match %s: %v", [exception.name, data.egress.governance.auditRef, reference])
}

# The allowed destinations with their governance: what they say themselves, and what the top says for those that do not.
exceptions := [exception |
	some destination in lib.allowed
	exception := {
		"path": destination.path,
		"name": object.get(destination.entry, "name", destination.path),
		"entry": destination.entry,
		"governance": object.union(top, fields(object.get(destination.entry, "governance", {}))),
	}
]

top := fields(object.get(lib.policy, "governance", {}))

# The fields under their first names.
fields(governance) := {field: value |
	some name, value in governance
	field := object.get(spellings, name, name)
}

spellings := {
	"data-classification": "dataClassification",
	"data_classification": "dataClassification",
	"audit-ref": "auditRef",
	"audit_ref": "auditRef",
	"expiresAt": "expiry",
	"expires_at": "expiry",
}

day := ((24 * 60) * 60) * 1000000000

date_form := `^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$`

time_form := `^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`

is_date(expiry) if {
	is_string(expiry)
	regex.match(date_form, expiry)
}

is_time(expiry) if {
	is_string(expiry)
	regex.match(time_form, expiry)
}

is_expiry(expiry) if is_date(expiry)

is_expiry(expiry) if is_time(expiry)

# The nanosecond a date begins, or a time is. What is too far away to count in nanoseconds is as far as can be counted.
begins(expiry) := time.parse_rfc3339_ns(concat("", [expiry, "T00:00:00Z"])) if {
	is_date(expiry)
	is_countable(expiry)
}

begins(expiry) := time.parse_rfc3339_ns(regex.replace(upper(expiry), `\.[0-9]+`, "")) if {
	is_time(expiry)
	is_countable(expiry)
}

begins(expiry) := 9223286400000000000 if {
	is_expiry(expiry)
	not is_countable(expiry)
}

is_countable(expiry) if to_number(substring(expiry, 0, 4)) < 2262

# A date holds to its end.
ends(expiry) := begins(expiry) + day if is_date(expiry)

ends(expiry) := begins(expiry) if is_time(expiry)
