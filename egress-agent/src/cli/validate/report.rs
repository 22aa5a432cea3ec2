//! What is told of a finding.

use std::{borrow::Cow, fmt};

use serde::Serialize;

use crate::{
    cli::documents::Place,
    k8s::{convert::POLICY_KEY, manifests::ManifestError},
    policy::{
        cluster::NsName,
        document::is_hidden,
        finding::{Finding, Severity},
    },
};

/// Something found, with its place.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct Report {
    pub(in crate::cli) file: String,
    /// In the file; of the policy or the object where nothing nearer is known.
    pub(in crate::cli) line: Option<u64>,
    pub(in crate::cli) column: Option<u64>,
    pub(in crate::cli) policy: Option<String>,
    pub(in crate::cli) severity: &'static str,
    /// The field.
    pub(in crate::cli) path: Option<String>,
    pub(in crate::cli) message: String,
    pub(in crate::cli) hint: Option<String>,
    /// The rule of governance or of policy as code that found it.
    pub(in crate::cli) rule: Option<String>,
    /// The place in the text of the policy, where that cannot be turned into one in the file.
    pub(in crate::cli) policy_line: Option<u32>,
    pub(in crate::cli) policy_column: Option<u32>,
    /// The document it is about, by its number; `None` for a file as a whole.
    #[serde(skip)]
    pub(in crate::cli) document: Option<usize>,
}

impl Report {
    /// Puts a finding where it stands in its file.
    pub(in crate::cli) fn new(id: &NsName, finding: Finding, place: &Place, document: Option<usize>) -> Self {
        let Finding { severity, path, line, column, message, hint, rule } = finding;
        let known = line > 0;
        let (in_file, in_policy) = match place.offset {
            Some((before, indent)) if known => (
                (Some(before + line as usize), (column > 0).then_some(indent + column as usize)),
                (None, None),
            ),
            _ => (
                (place.offset.map(|(before, _)| before).filter(|line| *line > 0).or(place.line), None),
                (known.then_some(line), known.then_some(column)),
            ),
        };
        Self {
            file: place.file.to_string(),
            line: in_file.0.map(|line| line as u64),
            column: in_file.1.map(|column| column as u64),
            policy: (!place.bare).then(|| id.to_string()),
            severity: severity.as_str(),
            path: (!path.is_empty()).then_some(path),
            message,
            hint,
            rule,
            policy_line: in_policy.0,
            policy_column: in_policy.1,
            document,
        }
    }

    /// Tells of what is wrong with a file.
    pub(in crate::cli) fn of_file(error: &ManifestError) -> Self {
        Self {
            file: error.path.display().to_string(),
            line: error.line.map(|line| line as u64),
            column: None,
            policy: None,
            severity: Severity::Error.as_str(),
            path: None,
            message: error.message.clone(),
            hint: error.hint.clone(),
            rule: None,
            policy_line: None,
            policy_column: None,
            document: None,
        }
    }

    pub(in crate::cli) fn is_error(&self) -> bool {
        self.severity == Severity::Error.as_str()
    }

    /// Returns what is wrong and what to do about it, on one line.
    pub(super) fn sentence(&self) -> String {
        let mut sentence = one_line(&self.message).into_owned();
        if let Some(hint) = &self.hint {
            sentence += &format!("; {}", one_line(hint));
        }
        sentence
    }

    /// Returns what it is about besides a place in the file.
    pub(super) fn about(&self) -> Vec<String> {
        let mut about = Vec::new();
        about.extend(self.policy.as_deref().map(|policy| one_line(policy).into_owned()));
        about.extend(self.path.as_deref().map(|path| one_line(path).into_owned()));
        if let (Some(line), Some(column)) = (self.policy_line, self.policy_column) {
            about.push(format!("{POLICY_KEY} line {line} column {column}"));
        }
        about
    }
}

impl fmt::Display for Report {
    /// Writes it on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.file))?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        write!(f, ": {}: {}", self.severity, one_line(&self.message))?;
        let about = self.about();
        if !about.is_empty() {
            write!(f, " ({})", about.join(", "))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {}", one_line(hint))?;
        }
        if let Some(rule) = &self.rule {
            write!(f, " [{}]", one_line(rule))?;
        }
        Ok(())
    }
}

/// Returns `text` without what would begin another line, reach into the terminal, or show something else than it is.
pub(in crate::cli) fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => line.push(' '),
            c if is_hidden(c) => line.extend(c.escape_unicode()),
            c => line.push(c),
        }
    }
    Cow::Owned(line)
}

/// Returns the lines of a file with another character in the place of each that [`one_line`] would escape, so that columns stay.
pub(super) fn harmless(text: &str) -> Cow<'_, str> {
    let harms = |c: char| is_hidden(c) && !matches!(c, '\n' | '\t');
    if !text.replace("\r\n", "\n").contains(harms) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace("\r\n", "\n").chars().map(|c| if harms(c) { '\u{fffd}' } else { c }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_hidden_gets_through() {
        for c in [
            '\u{1b}',
            '\u{7f}',
            '\u{9b}',
            '\u{85}',
            '\u{202e}',
            '\u{2066}',
            '\u{200f}',
            '\u{e0041}',
            '\u{61c}',
        ] {
            assert_eq!(one_line(&format!("a{c}b")), format!("a{}b", c.escape_unicode()));
            let text = format!("a{c}b\nc\r\nd");
            let line = one_line(&text);
            assert!(!line.contains(is_hidden), "{line:?}");
            assert_eq!(harmless(&text), "a\u{fffd}b\nc\nd");
        }
        assert_eq!(harmless("a\tb\r\nc"), "a\tb\r\nc");
        assert!(matches!(one_line("plain é"), Cow::Borrowed("plain é")));
    }
}
