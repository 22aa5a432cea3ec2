//! Label and field selectors.

use super::{
    kinds::Kind,
    status::{Failure, Result},
    store::Object,
};

/// What a list or watch asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    labels: Vec<Requirement>,
    fields: Vec<Field>,
}

#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

#[derive(Clone, Debug)]
struct Field {
    of: Source,
    equal: bool,
    value: String,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Name,
    Namespace,
    /// The place among the kind's own fields.
    Own(usize),
}

impl Filter {
    pub(super) fn parse(kind: Kind, labels: &str, fields: &str) -> Result<Self> {
        let bad = |why: String| Failure::new(400, format!("unable to parse requirement: {why}"));
        let labels = split(labels).into_iter().map(requirement).collect::<Result<_, _>>().map_err(bad)?;
        let fields = split(fields).into_iter().map(|term| field(kind, term)).collect::<Result<_>>()?;
        Ok(Self { labels, fields })
    }

    /// Returns whether everything matches.
    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn matches(&self, object: &Object) -> bool {
        self.fields.iter().all(|field| {
            let value = match field.of {
                Source::Name => object.name(),
                Source::Namespace => object.namespace().unwrap_or(""),
                Source::Own(index) => &object.fields[index],
            };
            (value == field.value) == field.equal
        }) && self.labels.iter().all(|requirement| requirement.matches(object.label(&requirement.key)))
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number =
            |fits: &dyn Fn(i64) -> bool| value.is_some_and(|value| value.parse::<i64>().is_ok_and(fits));
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.iter().any(|one| one == value)),
            Operator::NotIn(values) => value.is_none_or(|value| values.iter().all(|one| one != value)),
            Operator::Exists => value.is_some(),
            Operator::Absent => value.is_none(),
            Operator::Greater(bound) => number(&|number| number > *bound),
            Operator::Less(bound) => number(&|number| number < *bound),
        }
    }
}

/// Splits at the commas outside of parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0_u32;
    let terms = text.split(move |character| {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ',' && depth == 0
    });
    terms.map(str::trim).filter(|term| !term.is_empty()).collect()
}

fn requirement(term: &str) -> Result<Requirement, String> {
    let (key, operator) = if let Some(key) = term.strip_prefix('!') {
        (key, Operator::Absent)
    } else if let Some((key, value)) = term.split_once("!=") {
        (key, Operator::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (key, Operator::In(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = term.split_once('>') {
        (key, Operator::Greater(number(value)?))
    } else if let Some((key, value)) = term.split_once('<') {
        (key, Operator::Less(number(value)?))
    } else if let Some((head, values)) = term.split_once('(') {
        let values = values.strip_suffix(')').ok_or_else(|| format!("{term}: no closing parenthesis"))?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        match head.split_whitespace().collect::<Vec<_>>()[..] {
            [key, "in"] => (key, Operator::In(values)),
            [key, "notin"] => (key, Operator::NotIn(values)),
            _ => return Err(format!("{term}: neither in nor notin")),
        }
    } else {
        (term, Operator::Exists)
    };
    let key = key.trim();
    let good = |character: char| character.is_ascii_alphanumeric() || "-_./".contains(character);
    if key.is_empty() || !key.chars().all(good) {
        return Err(format!("{term}: {key:?} is no label key"));
    }
    Ok(Requirement { key: key.to_owned(), operator })
}

fn number(value: &str) -> Result<i64, String> {
    value.trim().parse().map_err(|_not_a_number| format!("{value} is no number"))
}

fn field(kind: Kind, term: &str) -> Result<Field> {
    let (key, value, equal) = if let Some((key, value)) = term.split_once("!=") {
        (key, value, false)
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (key, value, true)
    } else {
        let message = format!("invalid selector: '{term}'; can't understand '{term}'");
        return Err(Failure::new(400, message));
    };
    let of = match key {
        "metadata.name" => Source::Name,
        "metadata.namespace" if kind.facts().namespaced => Source::Namespace,
        _ => {
            let place = kind.facts().fields.iter().position(|(name, _)| *name == key);
            let message = || format!("\"{key}\" is not a known field selector: field label not supported");
            Source::Own(place.ok_or_else(|| Failure::new(400, message()))?)
        }
    };
    Ok(Field { of, equal, value: value.to_owned() })
}
