//! The policy document as a page of the documentation, from the same types as the schema.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt::Write as _,
};

use egress_common::verdict::{COUNTED, Reason, Verdict};
use serde_json::{Map, Value};

use crate::{
    explain::sentence,
    policy::{
        document::{MAX_BYTES, MAX_CIDRS, MAX_CIDRS_TOGETHER, MAX_DESTINATIONS, MAX_PORTS},
        governance::RULES,
    },
};

/// What the document itself is called on the page.
const ROOT: &str = "Document";
/// Longest pattern that is shown in a row; longer ones stand with their type.
const SHORT: usize = 40;

/// What a schema may say that this page knows how to tell. Another word here would be left out in silence.
const KNOWN: &[&str] = &[
    "$id",
    "$ref",
    "$schema",
    "$defs",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "default",
    "dependentRequired",
    "dependentSchemas",
    "description",
    "else",
    "enum",
    "examples",
    "format",
    "if",
    "items",
    "maxItems",
    "maxLength",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "not",
    "oneOf",
    "pattern",
    "properties",
    "required",
    "then",
    "title",
    "type",
];

/// Returns `docs/policy-reference.md`.
///
/// # Panics
///
/// When the schema says something that the page cannot tell.
#[must_use]
pub fn page() -> String {
    let schema: Value = serde_json::from_str(&super::policy()).expect("a schema is JSON");
    let mut page = format!(
        "# Reference of the policy document\n\nEvery field of `policy.json`, with its type, its default and its limits, as of version {}. What fields mean together is in [The policy document](policy.md).\n\n\
         Made from the code by `cargo xtask docs`. Times are in UTC unless they carry an offset.\n\n",
        env!("CARGO_PKG_VERSION")
    );
    let mut waiting: VecDeque<String> = VecDeque::from([ROOT.to_owned()]);
    let mut seen: BTreeSet<String> = waiting.iter().cloned().collect();
    while let Some(name) = waiting.pop_front() {
        let part = if name == ROOT { &schema } else { &schema["$defs"][&name] };
        let part = part.as_object().unwrap_or_else(|| panic!("{name} has a definition"));
        section(&name, part, &mut page);
        let mut references = Vec::new();
        referred(part, &mut references);
        for reference in references {
            if seen.insert(reference.clone()) {
                waiting.push_back(reference);
            }
        }
    }
    size(&mut page);
    outcomes(&mut page);
    rules(&mut page);
    page
}

/// Adds the types that a schema refers to, in their order; those below `$defs` are others' business.
fn referred(schema: &Map<String, Value>, names: &mut Vec<String>) {
    for (word, value) in schema.iter().filter(|(word, _)| *word != "$defs") {
        match value {
            Value::String(to) if word == "$ref" => names.push(type_name(to).to_owned()),
            Value::Object(inner) => referred(inner, names),
            Value::Array(items) => {
                items.iter().filter_map(Value::as_object).for_each(|inner| referred(inner, names));
            }
            _ => {}
        }
    }
}

fn type_name(reference: &str) -> &str {
    reference.rsplit('/').next().unwrap_or(reference)
}

fn put(page: &mut String, text: &str) {
    page.push_str(text);
}

fn section(name: &str, schema: &Map<String, Value>, page: &mut String) {
    for word in schema.keys() {
        assert!(KNOWN.contains(&word.as_str()), "{name}: the page cannot tell of {word}");
    }
    put(page, &format!("## {name}\n\n{}\n\n", description(schema)));
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        let required = names(schema.get("required"));
        put(page, "| field | type | default | limits | |\n|---|---|---|---|---|\n");
        let (first, rest): (Vec<_>, Vec<_>) =
            properties.iter().partition(|(field, _)| required.contains(&field.as_str()));
        for (field, value) in first.into_iter().chain(rest) {
            let value = value.as_object().unwrap_or_else(|| panic!("{name}.{field} has a schema"));
            let default = match value.get("default") {
                Some(default) => format!("`{default}`"),
                None if required.contains(&field.as_str()) => "**required**".to_owned(),
                None => "–".to_owned(),
            };
            let row = [format!("`{field}`"), kind(value), default, limits(value, SHORT), description(value)];
            put(page, &format!("| {} |\n", row.map(|cell| cell.replace('|', "\\|")).join(" | ")));
        }
        put(page, "\n");
        let notes = conditions(name, schema);
        for note in &notes {
            put(page, &format!("- {note}\n"));
        }
        if !notes.is_empty() {
            put(page, "\n");
        }
    } else if let Some(choices) = schema.get("oneOf").and_then(Value::as_array) {
        put(page, "| value | |\n|---|---|\n");
        for choice in choices.iter().filter_map(Value::as_object) {
            let value = choice.get("const").and_then(Value::as_str);
            let value = value.unwrap_or_else(|| panic!("{name}: a choice is a word: {choice:?}"));
            put(page, &format!("| `{value}` | {} |\n", description(choice)));
        }
        put(page, "\n");
    } else if let Some(choices) = schema.get("anyOf").and_then(Value::as_array) {
        for choice in choices.iter().filter_map(Value::as_object) {
            let limits = limits(choice, 0);
            let within = if limits == "–" { String::new() } else { format!(", {limits}") };
            put(page, &format!("- {}{within}: {}\n", kind(choice), description(choice)));
            pattern(choice, "  ", page);
        }
        put(page, "\n");
    } else {
        let limits = limits(schema, 0);
        let within = if limits == "–" { String::new() } else { format!(" of {limits}") };
        put(page, &format!("Written as {}{within}{}.\n", kind(schema), examples(schema)));
        pattern(schema, "", page);
        put(page, "\n");
    }
}

/// Adds the pattern of a text, where it does not stand in a row.
fn pattern(schema: &Map<String, Value>, indent: &str, page: &mut String) {
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
        put(page, &format!("\n{indent}```text\n{indent}{pattern}\n{indent}```\n"));
    }
}

fn examples(schema: &Map<String, Value>) -> String {
    let examples = names(schema.get("examples"));
    match examples.as_slice() {
        [] => String::new(),
        some => {
            format!(
                ", such as {}",
                some.iter().map(|one| format!("`{one}`")).collect::<Vec<_>>().join(" or ")
            )
        }
    }
}

fn names(list: Option<&Value>) -> Vec<&str> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

fn description(schema: &Map<String, Value>) -> String {
    let text = schema.get("description").and_then(Value::as_str).unwrap_or("");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns what a value is, with a link where it is one of the page's types.
fn kind(schema: &Map<String, Value>) -> String {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let name = type_name(reference);
        return format!("[{name}](#{})", name.to_lowercase());
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("array") => {
            let items = schema.get("items").and_then(Value::as_object);
            format!("list of {}", kind(items.unwrap_or_else(|| panic!("a list says of what: {schema:?}"))))
        }
        Some("object") => match schema.get("additionalProperties").and_then(Value::as_object) {
            Some(values) => format!("names with a {} each", kind(values)),
            None => "object".to_owned(),
        },
        Some("string") => "text".to_owned(),
        Some("integer") => "whole number".to_owned(),
        Some("boolean") => "`true` or `false`".to_owned(),
        _ => panic!("the page cannot tell the type of {schema:?}"),
    }
}

/// Returns how large a value may be, and its pattern if that has no more than so many characters.
fn limits(schema: &Map<String, Value>, longest: usize) -> String {
    let number = |word: &str| schema.get(word).and_then(Value::as_u64);
    let mut parts = Vec::new();
    for (least, most, one, many) in [
        ("minItems", "maxItems", " item", " items"),
        ("minLength", "maxLength", " character", " characters"),
        ("minimum", "maximum", "", ""),
    ] {
        let what = |count: u64| if count == 1 { one } else { many };
        match (number(least), number(most)) {
            (Some(least), Some(most)) => parts.push(format!("{least} to {most}{}", what(most))),
            (Some(least), None) => parts.push(format!("at least {least}{}", what(least))),
            (None, Some(0)) => parts.push(format!("no{many}")),
            (None, Some(most)) => parts.push(format!("at most {most}{}", what(most))),
            (None, None) => {}
        }
    }
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
        && pattern.len() <= longest
    {
        parts.push(format!("`{pattern}`"));
    }
    if parts.is_empty() { "–".to_owned() } else { parts.join(", ") }
}

/// Returns which fields go together.
fn conditions(name: &str, schema: &Map<String, Value>) -> Vec<String> {
    let mut notes = Vec::new();
    let code = |names: &[&str], word: &str| {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        match names.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} {word} {last}", rest.join(", ")),
            _ => names.concat(),
        }
    };
    let each = |choices: &Value| -> Vec<String> {
        choices
            .as_array()
            .into_iter()
            .flatten()
            .map(|choice| code(&names(choice.get("required")), "and"))
            .collect()
    };
    let or = |mut parts: Vec<String>| {
        let last = parts.pop().unwrap_or_default();
        if parts.is_empty() { last } else { format!("{} or {last}", parts.join(", ")) }
    };
    for (word, value) in schema {
        match word.as_str() {
            "oneOf" => notes.push(format!("Exactly one of {} is there.", or(each(value)))),
            "anyOf" => notes.push(format!("{} is there, or both.", or(each(value)))),
            "minProperties" => notes.push(format!("At least {value} of the fields is there.")),
            "not" => {
                notes.push(format!("{} are not there together.", code(&names(value.get("required")), "and")));
            }
            "allOf" => {
                for part in value.as_array().into_iter().flatten() {
                    let both = names(part.get("not").and_then(|not| not.get("required")));
                    assert!(both.len() == 2, "{name}: the page cannot tell of {part}");
                    notes.push(format!("{} are not there together.", code(&both, "and")));
                }
            }
            "dependentRequired" => {
                for (field, needs) in value.as_object().into_iter().flatten() {
                    notes.push(format!("`{field}` is there only with {}.", code(&names(Some(needs)), "and")));
                }
            }
            "dependentSchemas" => {
                for (field, needs) in value.as_object().into_iter().flatten() {
                    notes.push(format!("`{field}` is there only with {}.", or(each(&needs["anyOf"]))));
                }
            }
            "if" => notes.push(format!(
                "Where {}: {}. Otherwise: {}.",
                consequence(name, value),
                consequence(name, &schema["then"]),
                consequence(name, &schema["else"])
            )),
            _ => {}
        }
    }
    notes
}

/// Returns what a part of a condition asks of fields.
fn consequence(name: &str, part: &Value) -> String {
    let mut asked = Vec::new();
    let required = names(part.get("required"));
    for field in &required {
        asked.push(format!("`{field}` is there"));
    }
    for (field, value) in part["properties"].as_object().into_iter().flatten() {
        let value = value.as_object().unwrap_or_else(|| panic!("{name}.{field} has a schema"));
        match names(value.get("enum")).as_slice() {
            [] => asked.push(format!("`{field}` has {}", limits(value, 0))),
            words => asked.push(format!(
                "`{field}` is {}",
                words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" or ")
            )),
        }
    }
    asked.join(", and ")
}

fn size(page: &mut String) {
    put(page, "## Size\n\n| | at most |\n|---|---|\n");
    for (what, most) in [
        ("bytes of a document", MAX_BYTES),
        ("destinations of a document, allowed and denied ones together", MAX_DESTINATIONS),
        ("prefixes in one list", MAX_CIDRS),
        ("prefixes of a document, those in `except` included", MAX_CIDRS_TOGETHER),
        ("items in the `ports` of a destination", MAX_PORTS),
    ] {
        put(page, &format!("| {what} | {most} |\n"));
    }
    put(
        page,
        "\nWhat of that a node has room for depends on the capacities of its agent: [flags](flags.md).\n\n",
    );
}

fn outcomes(page: &mut String) {
    put(
        page,
        "## Verdicts and reasons\n\nWhat answers, events, metrics and `status` say of a packet. `audit` is what only audited policies would deny.\n\n| verdict | reason | because |\n|---|---|---|\n",
    );
    // Such pods are not counted, and so have no place among the others.
    let uncounted = (Verdict::Allow, Reason::Ungoverned);
    for (verdict, reason) in COUNTED.into_iter().chain([uncounted]) {
        writeln!(page, "| `{}` | `{}` | {} |", verdict.as_str(), reason.as_str(), sentence(reason))
            .expect("a string takes everything");
    }
    put(page, "\n");
}

fn rules(page: &mut String) {
    put(
        page,
        "## Rules of governance\n\nWhat a finding names behind its sentence, such as `[GOV-0005]`. How bad it is under the profile `required`; under `warn` all are warnings: [Governance](governance.md). \
         The rules `EGR-…` are in [Policy as code](policy-as-code.md#the-shipped-rules). Findings about the text itself have no number: they keep a document from being read.\n\n\
         | id | severity | rule | what to do |\n|---|---|---|---|\n",
    );
    for rule in RULES {
        writeln!(page, "| {} | {} | {} | {} |", rule.id, rule.severity, rule.title, rule.remediation)
            .expect("a string takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_and_field_of_the_schema_is_there() {
        let page = page();
        let schema: Value = serde_json::from_str(&super::super::policy()).expect("a schema is JSON");
        let types = schema["$defs"].as_object().expect("it has types");
        for (name, part) in types.iter().map(|(name, part)| (name.as_str(), part)).chain([(ROOT, &schema)]) {
            let (_, rest) =
                page.split_once(&format!("\n## {name}\n")).unwrap_or_else(|| panic!("{name} has no section"));
            let section = rest.split("\n## ").next().expect("there is a first part");
            for field in part["properties"].as_object().into_iter().flat_map(Map::keys) {
                assert!(section.contains(&format!("\n| `{field}` | ")), "{name}.{field}: {section}");
            }
        }
        for row in [
            "| `name` | text | **required** | 1 to 63 characters, `^[^()\\u0000-\\u001f\\u007f]+$` |",
            "| `defaultAction` | [Action](#action) | `\"deny\"` | – |",
            "- Exactly one of `cidr`, `cidrs`, `awsService`, `cloud`, `domain`, `domains`, `service`, `pods` or `entity` is there.\n",
            "- `except` is there only with `cidr` or `cidrs`.\n",
            "- Where `operator` is `In` or `NotIn`: `values` is there, and `values` has at least 1 item. Otherwise: `values` has no items.\n",
            "| `deny` | `default_deny` | no destination allows it,",
            "| GOV-0013 | warning |",
        ] {
            assert!(page.contains(row), "{row}\n\n{page}");
        }
    }

    #[test]
    #[should_panic(expected = "the page cannot tell of contains")]
    fn a_word_nobody_knows_is_not_left_out_in_silence() {
        let schema = serde_json::json!({"description": "A list.", "type": "array", "contains": {}});
        section("List", schema.as_object().expect("an object"), &mut String::new());
    }
}
