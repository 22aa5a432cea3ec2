//! The canonical form of a document: the same values, each field in its place.

use super::{
    governance,
    json::{self, Member, Node, Value},
};

/// Longest line that a list is kept on, in characters.
const WIDTH: usize = 100;

/// What an object is, so what its fields are. A list has the shape of its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Top,
    Destination,
    Governance,
    Selector,
    Requirement,
    Cloud,
    Service,
    Pods,
    Port,
    /// Its keys are free, or it is no object.
    Other,
}

/// The fields of each shape in their order.
const fn fields(shape: Shape) -> &'static [(&'static str, Shape)] {
    use Shape::{Cloud, Destination, Governance, Other, Pods, Port, Requirement, Selector, Service, Top};
    match shape {
        Top => &[
            ("$schema", Other),
            ("description", Other),
            ("defaultAction", Other),
            ("mode", Other),
            ("podSelector", Selector),
            ("clusterDns", Other),
            ("governance", Governance),
            ("allowedDestinations", Destination),
            ("deniedDestinations", Destination),
        ],
        Destination => &[
            ("name", Other),
            ("description", Other),
            ("cidr", Other),
            ("cidrs", Other),
            ("except", Other),
            ("awsService", Other),
            ("regions", Other),
            ("cloud", Cloud),
            ("domain", Other),
            ("domains", Other),
            ("service", Service),
            ("pods", Pods),
            ("entity", Other),
            ("ports", Port),
            ("governance", Governance),
        ],
        Governance => &[
            ("owner", Other),
            ("reason", Other),
            ("scope", Other),
            ("dataClassification", Other),
            ("expiry", Other),
            ("auditRef", Other),
        ],
        Selector => &[("matchLabels", Other), ("matchExpressions", Requirement)],
        Requirement => &[("key", Other), ("operator", Other), ("values", Other)],
        Cloud => &[("provider", Other), ("service", Other), ("services", Other), ("regions", Other)],
        Service => &[("namespace", Other), ("name", Other)],
        Pods => &[("namespaceSelector", Selector), ("podSelector", Selector)],
        Port => &[("port", Other), ("endPort", Other), ("protocol", Other)],
        Other => &[],
    }
}

/// Returns the canonical form of a document; `None` if the text is no JSON.
///
/// Fields stand in the order of the documentation under their main names, two blanks for each level; lists keep their order, and texts
/// and numbers their value. What the document means stays the same.
#[must_use]
pub fn canonical(text: &str) -> Option<String> {
    let Ok(root) = json::parse(text) else { return None };
    let mut form = String::with_capacity(text.len() + text.len() / 2);
    write(&mut form, &root, Shape::Top, 0, 0);
    form.push('\n');
    Some(form)
}

/// Writes a value at `depth`, after `before` characters of its line that are not blanks in front.
fn write(form: &mut String, node: &Node<'_>, shape: Shape, depth: usize, before: usize) {
    match &node.value {
        Value::Array(items) if !items.is_empty() => {
            if items.iter().all(|item| is_small(item, shape)) {
                let start = form.len();
                inline(form, node, shape);
                // One more for the comma that may follow.
                if 2 * depth + before + form[start..].chars().count() < WIDTH {
                    return;
                }
                form.truncate(start);
            }
            form.push('[');
            for (index, item) in items.iter().enumerate() {
                next(form, index, depth + 1);
                match is_small(item, shape) {
                    true => inline(form, item, shape),
                    false => write(form, item, shape, depth + 1, 0),
                }
            }
            line(form, depth);
            form.push(']');
        }
        Value::Object(members) if !members.is_empty() => {
            form.push('{');
            for (index, (key, value, inner)) in in_order(members, shape).into_iter().enumerate() {
                next(form, index, depth + 1);
                let start = form.len();
                string(form, key);
                form.push_str(": ");
                let before = form[start..].chars().count();
                write(form, value, inner, depth + 1, before);
            }
            line(form, depth);
            form.push('}');
        }
        _ => inline(form, node, shape),
    }
}

/// Tells whether an item may share its line with others.
fn is_small(node: &Node<'_>, shape: Shape) -> bool {
    match &node.value {
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => {
            let plain =
                |member: &Member<'_>| !matches!(member.value.value, Value::Array(_) | Value::Object(_));
            members.is_empty() || (shape == Shape::Port && members.iter().all(plain))
        }
        _ => true,
    }
}

fn inline(form: &mut String, node: &Node<'_>, shape: Shape) {
    let comma = |form: &mut String, index: usize| form.push_str(if index > 0 { ", " } else { "" });
    match &node.value {
        Value::Null => form.push_str("null"),
        Value::Bool(value) => form.push_str(if *value { "true" } else { "false" }),
        Value::Number(text) => form.push_str(text),
        Value::String(text) => string(form, text),
        Value::Array(items) => {
            form.push('[');
            for (index, item) in items.iter().enumerate() {
                comma(form, index);
                inline(form, item, shape);
            }
            form.push(']');
        }
        Value::Object(members) => {
            form.push('{');
            for (index, (key, value, inner)) in in_order(members, shape).into_iter().enumerate() {
                comma(form, index);
                string(form, key);
                form.push_str(": ");
                inline(form, value, inner);
            }
            form.push('}');
        }
    }
}

/// Returns the fields of an object in their order, those that are not known at the end.
fn in_order<'n, 't>(members: &'n [Member<'t>], shape: Shape) -> Vec<(&'n str, &'n Node<'t>, Shape)> {
    let known = fields(shape);
    let mut sorted: Vec<(usize, &str, &Node<'_>, Shape)> = members
        .iter()
        .map(|member| {
            let key = match shape {
                Shape::Governance => governance::field_of(&member.key).unwrap_or(&member.key),
                _ => &member.key,
            };
            let place = known.iter().position(|(name, _)| *name == key).unwrap_or(known.len());
            let inner = known.get(place).map_or(Shape::Other, |(_, inner)| *inner);
            (place, key, &member.value, inner)
        })
        .collect();
    sorted.sort_by_key(|(place, ..)| *place);
    sorted.into_iter().map(|(_, key, value, inner)| (key, value, inner)).collect()
}

fn next(form: &mut String, index: usize, depth: usize) {
    if index > 0 {
        form.push(',');
    }
    line(form, depth);
}

fn line(form: &mut String, depth: usize) {
    form.push('\n');
    form.extend(std::iter::repeat_n("  ", depth));
}

/// Writes a string, with escapes for what JSON asks them for, and for what YAML takes no more than half of.
fn string(form: &mut String, text: &str) {
    form.push('"');
    for c in text.chars() {
        match c {
            '"' => form.push_str("\\\""),
            '\\' => form.push_str("\\\\"),
            '\n' => form.push_str("\\n"),
            '\r' => form.push_str("\\r"),
            '\t' => form.push_str("\\t"),
            '\u{8}' => form.push_str("\\b"),
            '\u{c}' => form.push_str("\\f"),
            c if c.is_control()
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') =>
            {
                form.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => form.push(c),
        }
    }
    form.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{cluster::NsName, document::parse};

    #[test]
    fn every_field_has_its_place() {
        let text = r#"{"deniedDestinations":[],"allowedDestinations":[{"ports":[443,"53/UDP",{"protocol":"TCP","endPort":9,"port":8}],
            "governance":{"audit_ref":"S-1","expiresAt":"2027-01-01","data-classification":"public","owner":"é\u0085"},
            "cidrs":["10.0.0.0/8"],"name":"a","description":"x"}],
            "podSelector":{"matchExpressions":[{"values":["b"],"operator":"In","key":"k"}],"matchLabels":{"z":"1","a":"2"}},
            "defaultAction":"deny","$schema":"s"}"#;
        let expected = r#"{
  "$schema": "s",
  "defaultAction": "deny",
  "podSelector": {
    "matchLabels": {
      "z": "1",
      "a": "2"
    },
    "matchExpressions": [
      {
        "key": "k",
        "operator": "In",
        "values": ["b"]
      }
    ]
  },
  "allowedDestinations": [
    {
      "name": "a",
      "description": "x",
      "cidrs": ["10.0.0.0/8"],
      "ports": [443, "53/UDP", {"port": 8, "endPort": 9, "protocol": "TCP"}],
      "governance": {
        "owner": "é\u0085",
        "dataClassification": "public",
        "expiry": "2027-01-01",
        "auditRef": "S-1"
      }
    }
  ],
  "deniedDestinations": []
}
"#;
        assert_eq!(canonical(text).as_deref(), Some(expected));
        assert_eq!(canonical(expected).as_deref(), Some(expected));
        assert_eq!(canonical("{"), None);
    }

    #[test]
    fn a_list_that_is_too_long_has_a_line_for_each_item() {
        let list = |number: usize| {
            format!(
                r#"{{"allowedDestinations": [{{"cidrs": [{}]}}]}}"#,
                vec!["\"10.0.0.0/8\""; number].join(",")
            )
        };
        let lines = |number| canonical(&list(number)).expect("JSON").lines().count();
        assert_eq!((lines(6), lines(7)), (7, 15));
    }

    fn check(text: &str) -> Result<(), TestCaseError> {
        let Some(form) = canonical(text) else { return Ok(()) };
        prop_assert_eq!(canonical(&form), Some(form.clone()), "once is enough");
        let id = NsName::new("shop", "egress");
        let (before, after) = (parse(&id, text), parse(&id, &form));
        if before.policy.is_some() {
            prop_assert_eq!(before.policy, after.policy, "{}\n{}", text, form);
            let said = |findings: Vec<crate::policy::finding::Finding>| {
                let mut said: Vec<_> = findings.into_iter().map(|f| (f.severity, f.message)).collect();
                said.sort();
                said
            };
            // Two of a pair may change which one is told to be the second.
            prop_assert_eq!(said(before.findings).len(), said(after.findings).len(), "{}\n{}", text, form);
        }
        Ok(())
    }

    #[test]
    fn the_corpus_means_the_same_in_its_form() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/corpus/policies");
        let mut formed = 0;
        for file in std::fs::read_dir(folder).expect("the corpus") {
            let path = file.expect("a file").path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let text = std::fs::read_to_string(&path).expect("it can be read");
                check(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                formed += usize::from(canonical(&text).is_some());
            }
        }
        assert!(formed > 250, "{formed}");
    }

    fn document() -> impl Strategy<Value = String> {
        let text = "[a-z\\PC\u{85}\u{2028}\u{1}]{1,8}";
        let label = proptest::sample::select(vec!["app", "team", "tier"]);
        let governance = (
            "[a-zà-öø-ÿ\"\\\\\n 例え]{0,8}",
            proptest::sample::select(vec!["expiry", "expiresAt", "expires_at"]),
            any::<bool>(),
        )
            .prop_map(|(owner, expiry, first)| {
                let owner = format!("\"owner\": {}", serde_json::Value::from(format!("o{owner}")));
                let expiry = format!("\"{expiry}\": \"2031-01-01\"");
                if first { format!("{{{owner},{expiry}}}") } else { format!("{{ {expiry} ,\n{owner}}}") }
            });
        let kind = prop_oneof![
            (0u8..9).prop_map(|n| format!(r#""cidr": "10.{n}.0.0/16""#)),
            (1usize..20).prop_map(|n| format!(
                r#""except": ["10.0.0.0/32"], "cidrs": [{}]"#,
                (0..n).map(|n| format!("\"10.{n}.0.0/16\"")).collect::<Vec<_>>().join(" , ")
            )),
            Just(
                r#""pods": {"podSelector": {"matchLabels": {"b": "1", "a": "2"}}, "namespaceSelector": {}}"#
                    .to_owned()
            ),
            Just(r#""service": {"name": "redis", "namespace": "infra"}"#.to_owned()),
            Just(r#""regions": ["us-east-1", "GLOBAL"], "awsService": "s3""#.to_owned()),
            Just(r#""cloud": {"regions": ["x"], "services": ["a", "b"], "provider": "azure"}"#.to_owned()),
            Just(r#""domains": ["b.example", "a.example"]"#.to_owned()),
        ];
        let port = prop_oneof![
            (1u16..).prop_map(|n| n.to_string()),
            (1u16..).prop_map(|n| format!("\"{n}/UDP\"")),
            (1u16..60000, 0u16..9).prop_map(|(n, more)| format!(
                r#"{{"protocol": "SCTP", "endPort": {}, "port": "{n}"}}"#,
                n + more
            )),
            Just("\"ICMP\"".to_owned()),
        ];
        let destination = (
            kind,
            proptest::collection::vec(port, 1..12),
            proptest::option::of(governance.clone()),
            any::<bool>(),
        )
            .prop_map(|(kind, ports, governance, first)| {
                let governance = governance.map_or(String::new(), |g| format!(", \"governance\": {g}"));
                let ports = format!("\"ports\": [{}]", ports.join(","));
                if first {
                    format!("{kind}, {ports}{governance}")
                } else {
                    format!("{ports}, {kind}{governance}")
                }
            });
        (proptest::collection::vec(destination, 0..5), proptest::option::of(governance), text, label, any::<bool>()).prop_map(
            |(destinations, governance, description, label, dns)| {
                let list: Vec<String> =
                    destinations.iter().enumerate().map(|(n, d)| format!("{{{d}, \"name\": \"d{n}\"}}")).collect();
                let governance = governance.map_or(String::new(), |g| format!("\"governance\": {g},"));
                format!(
                    r#"{{"allowedDestinations": [{}], {governance} "clusterDns": {dns},"description": {}, "podSelector": {{"matchLabels": {{"{label}": "x"}}}}}}"#,
                    list.join(","),
                    serde_json::Value::from(description)
                )
            },
        )
    }

    proptest! {
        #[test]
        fn a_document_means_the_same_in_its_form(text in document()) {
            prop_assert!(parse(&NsName::new("shop", "egress"), &text).policy.is_some(), "{}", text);
            check(&text)?;
        }
    }
}
