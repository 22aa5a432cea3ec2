//! Who is answerable for a destination, and until when it holds.

use super::context::{Context, Fields, Slot, is_format_control, shown};
use crate::policy::model::Governance;

/// The names of the fields, each with other spellings that are taken, in the order of [`Field`](crate::policy::governance::Field).
const FIELDS: [(&str, &[&str]); 6] = [
    ("owner", &[]),
    ("reason", &[]),
    ("scope", &[]),
    ("dataClassification", &["data-classification", "data_classification"]),
    ("expiry", &["expiresAt", "expires_at"]),
    ("auditRef", &["audit-ref", "audit_ref"]),
];

const CLASSES: [(&str, &str); 4] = [
    ("public", "public"),
    ("internal", "internal"),
    ("confidential", "confidential"),
    ("restricted", "restricted"),
];

/// Invisible characters that some scripts are written with.
const JOINERS: [char; 2] = ['\u{200c}', '\u{200d}'];

/// Longest text of a field, in characters.
const LONGEST: usize = 1024;

/// What a `governance` object says.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    pub(super) governance: Governance,
    pub(super) expires: Option<u64>,
    pub(super) places: Places,
}

/// Where each field stands, in the order of [`FIELDS`].
pub(super) type Places = [Option<FieldPlace>; FIELDS.len()];

/// Where the value of a field stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct FieldPlace {
    pub(super) at: usize,
    /// The name it is given under.
    pub(super) key: &'static str,
    /// Whether it is inherited from the top.
    pub(super) inherited: bool,
}

impl Given {
    /// Fills each field that is not given from `above`.
    pub(super) fn or(self, above: &Self) -> Self {
        let (own, top) = (self.governance, &above.governance);
        let either = |own: Option<String>, top: &Option<String>| own.or_else(|| top.clone());
        let inherited = |place: FieldPlace| FieldPlace { inherited: true, ..place };
        Self {
            governance: Governance {
                owner: either(own.owner, &top.owner),
                reason: either(own.reason, &top.reason),
                scope: either(own.scope, &top.scope),
                data_classification: either(own.data_classification, &top.data_classification),
                audit_ref: either(own.audit_ref, &top.audit_ref),
            },
            expires: self.expires.or(above.expires),
            places: std::array::from_fn(|index| self.places[index].or(above.places[index].map(inherited))),
        }
    }
}

/// Returns the field that `name` is, or is another spelling of.
pub(super) fn field_of(name: &str) -> Option<&'static str> {
    FIELDS.iter().find(|(field, others)| *field == name || others.contains(&name)).map(|(field, _)| *field)
}

/// Reads a `governance` object.
pub(super) fn read(cx: &mut Context<'_>, slot: &Slot<'_>) -> Option<Given> {
    let known: Vec<&str> = FIELDS
        .iter()
        .flat_map(|(field, others)| std::iter::once(*field).chain(others.iter().copied()))
        .collect();
    let fields = cx.object(slot, &known)?;
    let given = FIELDS.map(|field| one(cx, &fields, field));
    let place = |(key, slot): &(&'static str, Slot<'_>)| FieldPlace { at: slot.at(), key, inherited: false };
    let places = given.each_ref().map(|field| field.as_ref().map(place));
    let [owner, reason, scope, class, expiry, audit_ref] = given.map(|field| field.map(|(_, slot)| slot));
    Some(Given {
        governance: Governance {
            owner: owner.and_then(|slot| text(cx, &slot, "owner")),
            reason: reason.and_then(|slot| text(cx, &slot, "reason")),
            scope: scope.and_then(|slot| text(cx, &slot, "scope")),
            data_classification: class
                .and_then(|slot| cx.word(&slot, "dataClassification", &CLASSES))
                .map(str::to_owned),
            audit_ref: audit_ref.and_then(|slot| text(cx, &slot, "auditRef")),
        },
        expires: expiry.and_then(|slot| expires(cx, &slot)),
        places,
    })
}

/// Returns a field, with the one of its names that is used; reports it if it stands under two.
fn one<'a>(
    cx: &mut Context<'_>,
    fields: &Fields<'a>,
    (name, others): (&'static str, &'static [&'static str]),
) -> Option<(&'static str, Slot<'a>)> {
    let mut given = std::iter::once(name)
        .chain(others.iter().copied())
        .filter_map(|name| Some((name, fields.key_at(name)?, fields.get(name)?)));
    let (first, _, slot) = given.next()?;
    for (other, at, _) in given {
        cx.error_at(at, fields.path(other), format!("Cannot specify both {first} and {other}")).hint =
            Some(format!("both mean {name}"));
    }
    Some((first, slot))
}

fn text(cx: &mut Context<'_>, slot: &Slot<'_>, field: &str) -> Option<String> {
    let text = cx.string(slot)?;
    let fault = if text.trim().is_empty() {
        ("is empty", "leave the field out instead")
    } else if text.chars().count() > LONGEST {
        ("is longer than 1024 characters", "put the rest where auditRef points")
    } else if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        ("has a control character", "remove it")
    } else if text.chars().any(|c| is_format_control(c) && !JOINERS.contains(&c)) {
        ("has an invisible character", "remove it")
    } else {
        return Some(text.to_owned());
    };
    cx.error(slot, format!("Invalid {field}: it {}", fault.0)).hint = Some(fault.1.into());
    None
}

/// Reads an expiry as seconds since the epoch.
fn expires(cx: &mut Context<'_>, slot: &Slot<'_>) -> Option<u64> {
    let text = cx.string(slot)?;
    match parse_expiry(text) {
        Ok(seconds) => Some(seconds),
        Err((what, hint)) => {
            let separator = if what.is_empty() { "" } else { " " };
            cx.error(slot, format!("Invalid expiry: {}{separator}{what}", shown(text))).hint =
                Some(hint.into());
            None
        }
    }
}

const FORM: &str = "a date such as 2027-03-31, or a time such as 2027-03-31T18:00:00Z";

fn parse_expiry(text: &str) -> Result<u64, (&'static str, &'static str)> {
    const DAY: u64 = 24 * 60 * 60;
    let seconds = |time: jiff::civil::DateTime, offset: i64| {
        let since = time.duration_since(jiff::civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0)).as_secs();
        u64::try_from(since - offset).map_err(|_| ("is before 1970", "it has long passed"))
    };
    if has_form(text, "0000-00-00") {
        let date: jiff::civil::Date = text.parse().map_err(|_| ("is not in the calendar", FORM))?;
        return Ok(seconds(date.into(), 0)? + DAY);
    }
    let upper = text.to_ascii_uppercase();
    let whole =
        upper.get(.."0000-00-00T00:00:00".len()).filter(|whole| has_form(whole, "0000-00-00T00:00:00"));
    let Some(whole) = whole else { return Err(("", FORM)) };
    let mut offset = &upper[whole.len()..];
    if let Some(fraction) = offset.strip_prefix('.') {
        offset = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
        if offset.len() == fraction.len() {
            return Err(("", FORM));
        }
    }
    if offset.is_empty() {
        return Err(("has no offset from UTC", "end it with Z for UTC, or with an offset such as +02:00"));
    }
    // The fraction is left out: the deadline is a whole second.
    let time: jiff::civil::DateTime = whole.parse().map_err(|_| ("is not in the calendar", FORM))?;
    if offset == "Z" {
        return seconds(time, 0);
    }
    if !has_form(offset, "+00:00") {
        return Err(("", FORM));
    }
    let part = |digits: &str| digits.parse::<i64>().map_err(|_| ("", FORM));
    let (hours, minutes) = (part(&offset[1..3])?, part(&offset[4..6])?);
    if hours > 23 || minutes > 59 {
        return Err(("has an impossible offset from UTC", FORM));
    }
    let east = hours * 3600 + minutes * 60;
    seconds(time, if offset.starts_with('-') { -east } else { east })
}

/// Tells whether `text` is `form` with other digits for its zeros, and perhaps `-` for `+`.
fn has_form(text: &str, form: &str) -> bool {
    text.len() == form.len()
        && text.bytes().zip(form.bytes()).all(|(b, form)| match form {
            b'0' => b.is_ascii_digit(),
            b'+' => b == b'+' || b == b'-',
            _ => b == form,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_a_second() {
        for (text, expected) in [
            ("1970-01-01", 86_400),
            ("2027-03-31", 1_806_537_600),
            ("2027-04-01T00:00:00Z", 1_806_537_600),
            ("2027-04-01t00:00:00z", 1_806_537_600),
            ("2027-04-01T02:00:00+02:00", 1_806_537_600),
            ("2027-03-31T19:00:00.999999999999-05:00", 1_806_537_600),
            ("2028-02-29", 1_835_481_600),
            ("9999-12-31", 253_402_300_800),
        ] {
            assert_eq!(parse_expiry(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for (text, what) in [
            ("", ""),
            ("never", ""),
            ("31.03.2027", ""),
            ("2027-3-31", ""),
            ("2027-02-29", "is not in the calendar"),
            ("2027-13-01", "is not in the calendar"),
            ("2027-03-31T18:00:00", "has no offset from UTC"),
            ("2027-03-31T18:00:00.5", "has no offset from UTC"),
            ("2027-03-31T18:00:00.Z", ""),
            ("2027-03-31T18:00Z", ""),
            ("2027-03-31 18:00:00Z", ""),
            ("2027-03-31T18:00:00+0200", ""),
            ("2027-03-31T18:00:00Z[UTC]", ""),
            ("2027-03-31T24:00:00Z", "is not in the calendar"),
            ("2027-03-31T25:00:00Z", "is not in the calendar"),
            ("2027-03-31T18:00:00+24:00", "has an impossible offset from UTC"),
            ("1969-12-30", "is before 1970"),
            ("1969-12-31T23:59:59Z", "is before 1970"),
            ("٢٠٢٧-03-31", ""),
        ] {
            assert_eq!(parse_expiry(text).expect_err(text).0, what, "{text}");
        }
    }
}
