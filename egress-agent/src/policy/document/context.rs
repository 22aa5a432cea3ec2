//! What every part of the reader needs: where to put findings, and fields with their types checked.

use std::collections::HashMap;

use super::json::{Member, Node, Value};
use crate::policy::finding::{Finding, Severity};

/// Findings of one severity that are listed one by one; the rest are counted.
const MAX_FINDINGS: usize = 1000;

/// A value and the path that leads to it.
#[derive(Clone, Debug)]
pub(super) struct Slot<'a> {
    pub(super) node: &'a Node<'a>,
    pub(super) path: String,
}

impl<'a> Slot<'a> {
    pub(super) fn new(node: &'a Node<'a>, path: impl Into<String>) -> Self {
        Self { node, path: path.into() }
    }

    /// Returns the byte of the text at which the value begins.
    pub(super) fn at(&self) -> usize {
        self.node.span.start
    }
}

/// Findings so far, and the text they are about.
pub(super) struct Context<'t> {
    text: &'t str,
    /// The bytes at which lines begin.
    lines: Vec<usize>,
    /// With the byte each is about; `None` where it is about no place.
    found: Vec<(Option<usize>, Finding)>,
    /// How many errors and warnings are among them.
    listed: [usize; 2],
    /// How many there are beyond those.
    left_off: [usize; 2],
    /// Takes what goes beyond [`MAX_FINDINGS`].
    spare: Finding,
    failed: bool,
}

impl<'t> Context<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self {
            text,
            lines,
            found: Vec::new(),
            listed: [0; 2],
            left_off: [0; 2],
            spare: blank(Severity::Error),
            failed: false,
        }
    }

    /// Returns whether there was an error.
    pub(super) fn failed(&self) -> bool {
        self.failed
    }

    /// Returns the number of the line with byte `at`.
    pub(super) fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|&start| start <= at)
    }

    pub(super) fn error(&mut self, slot: &Slot<'_>, message: impl Into<String>) -> &mut Finding {
        self.error_at(slot.at(), slot.path.clone(), message)
    }

    pub(super) fn error_at(
        &mut self,
        at: usize,
        path: impl Into<String>,
        message: impl Into<String>,
    ) -> &mut Finding {
        self.failed = true;
        self.add(Some(at), Finding { path: path.into(), message: message.into(), ..blank(Severity::Error) })
    }

    pub(super) fn warning(&mut self, slot: &Slot<'_>, message: impl Into<String>) -> &mut Finding {
        self.warning_at(slot.at(), slot.path.clone(), message)
    }

    pub(super) fn warning_at(
        &mut self,
        at: usize,
        path: impl Into<String>,
        message: impl Into<String>,
    ) -> &mut Finding {
        self.add(Some(at), Finding { path: path.into(), message: message.into(), ..blank(Severity::Warning) })
    }

    /// Takes a finding about byte `at`. It does not make the document [failed](Self::failed).
    pub(super) fn add(&mut self, at: Option<usize>, finding: Finding) -> &mut Finding {
        let severity = finding.severity as usize;
        if self.listed[severity] == MAX_FINDINGS {
            self.left_off[severity] += 1;
            self.spare = finding;
            return &mut self.spare;
        }
        self.listed[severity] += 1;
        &mut self.found.push_mut((at, finding)).1
    }

    /// Returns the findings in the order of the text, with lines and columns, each once.
    pub(super) fn finish(mut self) -> Vec<Finding> {
        self.found.sort_by_key(|(at, _)| *at);
        let mut findings: Vec<Finding> = Vec::with_capacity(self.found.len() + 1);
        let mut places = Places::new(self.text, &self.lines);
        // Those at the byte before the one that is looked at begin here.
        let (mut same, mut before) = (0, None);
        for (at, mut finding) in std::mem::take(&mut self.found) {
            if let Some(at) = at {
                (finding.line, finding.column) = places.next(at);
            }
            if at != before {
                (same, before) = (findings.len(), at);
            }
            if !findings[same..].contains(&finding) {
                findings.push(finding);
            }
        }
        let left_off: usize = self.left_off.iter().sum();
        if left_off > 0 {
            let error = self.left_off[Severity::Error as usize] > 0;
            let severity = if error { Severity::Error } else { Severity::Warning };
            let message = format!("{left_off} more findings are not listed");
            findings.push(Finding { message, ..blank(severity) });
        }
        findings
    }

    /// Returns the line and the column of byte `at`.
    pub(super) fn place(&self, at: usize) -> (u32, u32) {
        Places::new(self.text, &self.lines).next(at)
    }

    /// Returns the fields of an object, each once; reports what is no object, fields given twice, and unknown ones.
    pub(super) fn object<'a>(&mut self, slot: &Slot<'a>, known: &[&str]) -> Option<Fields<'a>> {
        let fields = self.fields(slot)?;
        self.unknown_fields(&fields, known, |_| None);
        Some(fields)
    }

    /// Reports fields that are not `known`. `advise` may know better what to do about one than its likeness to those.
    pub(super) fn unknown_fields(
        &mut self,
        fields: &Fields<'_>,
        known: &[&str],
        advise: impl Fn(&str) -> Option<String>,
    ) {
        for member in fields.in_order().filter(|member| !known.contains(&member.key.as_str())) {
            let message = format!("Unknown field: {}", shown(&member.key));
            let hint =
                advise(&member.key).unwrap_or_else(|| match nearest(&member.key, known.iter().copied()) {
                    Some(name) => format!("did you mean {name}?"),
                    None => format!("known here: {}", known.join(", ")),
                });
            self.error_at(member.key_span.start, fields.path(&member.key), message).hint = Some(hint);
        }
    }

    /// Returns the fields of an object whose keys are free; reports what is no object and keys given twice.
    pub(super) fn fields<'a>(&mut self, slot: &Slot<'a>) -> Option<Fields<'a>> {
        let Value::Object(members) = &slot.node.value else {
            self.wrong_type(slot, "an object");
            return None;
        };
        let mut fields = Fields { path: slot.path.clone(), members, by_key: HashMap::new() };
        for member in members {
            if let Some(first) = fields.by_key.get(member.key.as_str()) {
                let message = format!("Duplicate field: {}", shown(&member.key));
                let line = self.line(first.key_span.start);
                self.error_at(member.key_span.start, fields.path(&member.key), message).hint =
                    Some(format!("it stands in line {line} already"));
            } else {
                fields.by_key.insert(&member.key, member);
            }
        }
        Some(fields)
    }

    pub(super) fn wrong_type(&mut self, slot: &Slot<'_>, expected: &str) -> &mut Finding {
        let found = slot.node.value.kind();
        let finding = self.error(slot, format!("Wrong type: expected {expected}, found {found}"));
        if matches!(slot.node.value, Value::Null) {
            finding.hint = Some("leave it out instead".into());
        }
        finding
    }

    pub(super) fn string<'a>(&mut self, slot: &Slot<'a>) -> Option<&'a str> {
        match &slot.node.value {
            Value::String(text) => Some(text),
            _ => {
                self.wrong_type(slot, "a string");
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, slot: &Slot<'_>) -> Option<bool> {
        match &slot.node.value {
            Value::Bool(value) => Some(*value),
            other => {
                let hint = match other {
                    Value::String(text) if text == "true" || text == "false" => {
                        Some(format!("write {text} without quotes"))
                    }
                    _ => None,
                };
                let finding = self.wrong_type(slot, "true or false");
                if hint.is_some() {
                    finding.hint = hint;
                }
                None
            }
        }
    }

    /// Returns the items of a list.
    pub(super) fn list<'a>(&mut self, slot: &Slot<'a>) -> Option<Vec<Slot<'a>>> {
        match &slot.node.value {
            Value::Array(items) => Some(
                items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| Slot::new(item, format!("{}[{index}]", slot.path)))
                    .collect(),
            ),
            _ => {
                self.wrong_type(slot, "a list");
                None
            }
        }
    }

    /// Returns the items of a list that must have one.
    pub(super) fn filled_list<'a>(&mut self, slot: &Slot<'a>, hint: &str) -> Option<Vec<Slot<'a>>> {
        let items = self.list(slot)?;
        if items.is_empty() {
            let name = slot.path.rsplit('.').next().expect("a split has a last part");
            self.error(slot, format!("Empty list: {name}")).hint = Some(hint.into());
            return None;
        }
        Some(items)
    }

    /// Returns what the word in `slot` stands for; `field` names it in the message.
    pub(super) fn word<T: Copy>(&mut self, slot: &Slot<'_>, field: &str, words: &[(&str, T)]) -> Option<T> {
        let text = self.string(slot)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let hint = match nearest(text, words.iter().map(|(word, _)| *word)) {
            Some(word) => format!("did you mean {word}?"),
            None => format!("one of {}", words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ")),
        };
        self.error(slot, format!("Invalid {field}: {}", shown(text))).hint = Some(hint);
        None
    }
}

/// Turns bytes into lines and columns, from the front to the back. Columns are counted on from the place before, so that a
/// text of one long line is walked once.
struct Places<'a> {
    text: &'a str,
    lines: &'a [usize],
    line: usize,
    counted: usize,
    column: usize,
}

impl<'a> Places<'a> {
    fn new(text: &'a str, lines: &'a [usize]) -> Self {
        Self { text, lines, line: 0, counted: 0, column: 1 }
    }

    /// Returns the line and the column of byte `at`, which is not before the last one asked for.
    fn next(&mut self, at: usize) -> (u32, u32) {
        let line = self.lines.partition_point(|&start| start <= at);
        if line != self.line {
            (self.line, self.counted, self.column) = (line, self.lines[line - 1], 1);
        }
        self.column += self.text[self.counted..at].chars().count();
        self.counted = at;
        (number(self.line), number(self.column))
    }
}

fn blank(severity: Severity) -> Finding {
    Finding {
        severity,
        path: String::new(),
        line: 0,
        column: 0,
        message: String::new(),
        hint: None,
        rule: None,
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The fields of an object.
pub(super) struct Fields<'a> {
    path: String,
    members: &'a [Member<'a>],
    by_key: HashMap<&'a str, &'a Member<'a>>,
}

impl<'a> Fields<'a> {
    /// Returns the path of a field of this object.
    pub(super) fn path(&self, key: &str) -> String {
        let plain = !key.is_empty()
            && key.len() <= 63
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_$".contains(&b));
        match (plain, self.path.is_empty()) {
            (true, true) => key.to_owned(),
            (true, false) => format!("{}.{key}", self.path),
            (false, _) => format!("{}[\"{}\"]", self.path, shown(key)),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<Slot<'a>> {
        self.by_key.get(key).map(|member| Slot::new(&member.value, self.path(key)))
    }

    /// Returns the byte of the text at which a field's name begins.
    pub(super) fn key_at(&self, key: &str) -> Option<usize> {
        self.by_key.get(key).map(|member| member.key_span.start)
    }

    /// Returns the fields in the order of the text, each key once.
    pub(super) fn in_order(&self) -> impl Iterator<Item = &'a Member<'a>> {
        self.members.iter().filter(|member| std::ptr::eq(self.by_key[member.key.as_str()], *member))
    }
}

/// Returns `text` as it may stand in a sentence: control characters escaped, a long one cut.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut shown = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == LONGEST {
            shown.push('…');
            break;
        }
        match c {
            c if is_hidden(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// Tells whether a character begins another line, reaches into the terminal, is invisible, or reorders the text around it.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control() || is_format_control(c)
}

/// Tells whether a character is invisible or reorders the text around it.
pub(super) fn is_format_control(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Returns the candidate that is so like `word` that it was probably meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const LONGEST: usize = 64;
    if word.len() > LONGEST {
        return None;
    }
    let plain = |text: &str| -> Vec<char> {
        text.chars().filter(|c| !matches!(c, '-' | '_')).map(|c| c.to_ascii_lowercase()).collect()
    };
    let word = plain(word);
    candidates
        .map(|candidate| (distance(&word, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= (word.len().min(candidate.len()) / 3).max(1))
        .filter(|(distance, _)| *distance < word.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Returns how many insertions, removals, replacements and swaps of neighbours lead from one word to the other.
fn distance(from: &[char], to: &[char]) -> usize {
    let mut rows = [vec![0; to.len() + 1], (0..=to.len()).collect(), vec![0; to.len() + 1]];
    for (i, a) in from.iter().enumerate() {
        let [before, last, row] = &mut rows;
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let mut least = (last[j] + usize::from(a != b)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && from[i - 1] == *b && *a == to[j - 1] {
                least = least.min(before[j - 1] + 1);
            }
            row[j + 1] = least;
        }
        rows.rotate_left(1);
    }
    rows[1][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_of_the_finger_and_nothing_else() {
        let known = ["cidr", "cidrs", "domain", "domains", "podSelector", "ports", "governance"];
        for (word, expected) in [
            ("cdir", Some("cidr")),
            ("CIDR", Some("cidr")),
            ("port", Some("ports")),
            ("pod_selector", Some("podSelector")),
            ("govrenance", Some("governance")),
            ("domian", Some("domain")),
            ("x", None),
            ("", None),
            ("hostname", None),
        ] {
            assert_eq!(nearest(word, known.into_iter()), expected, "{word}");
        }
        assert_eq!(nearest(&"c".repeat(100_000), known.into_iter()), None, "long words cost nothing");
    }

    #[test]
    fn distance_counts_edits() {
        let of = |a: &str, b: &str| distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        assert_eq!(of("", ""), 0);
        assert_eq!(of("", "abc"), 3);
        assert_eq!(of("abc", ""), 3);
        assert_eq!(of("abc", "acb"), 1);
        assert_eq!(of("kitten", "sitting"), 3);
    }

    #[test]
    fn shown_is_one_harmless_line() {
        assert_eq!(shown("a\nb\u{202e}c"), "a\\u{a}b\\u{202e}c");
        assert_eq!(shown(&"é".repeat(81)), format!("{}…", "é".repeat(80)));
    }
}
