//! What is wrong, or doubtful, in a text a person wrote: where it stands and what to do about it.

use std::fmt;

/// How bad a [`Finding`] is. The order is from bad to less bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The text cannot be put into force.
    Error,
    /// It can, but probably not as its author meant it.
    Warning,
}

impl Severity {
    /// Returns the lower-case word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One sentence about one place of a text.
///
/// Displayed as `message (path, line l column c); hint [rule]`, without the parts that are not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it keeps the text from being put into force.
    pub severity: Severity,
    /// The field, such as `allowedDestinations[1].cidr`; empty for the whole document.
    pub path: String,
    /// Line in the text, from 1; 0 when unknown.
    pub line: u32,
    /// Column in the line, from 1, counted in characters; 0 when unknown.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The rule of governance or of policy as code that found it, such as `EGR-0001`; `None` for what every document must obey.
    pub rule: Option<String>,
}

impl Finding {
    /// Returns whether it is an error.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, column, message, hint, rule, severity: _ } = self;
        f.write_str(message)?;
        match (path.is_empty(), *line) {
            (true, 0) => {}
            (true, _) => write!(f, " (line {line} column {column})")?,
            (false, 0) => write!(f, " ({path})")?,
            (false, _) => write!(f, " ({path}, line {line} column {column})")?,
        }
        if let Some(hint) = hint {
            write!(f, "; {hint}")?;
        }
        if let Some(rule) = rule {
            write!(f, " [{rule}]")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_leaves_out_what_is_unknown() {
        let mut finding = Finding {
            severity: Severity::Error,
            path: "allowedDestinations[1].cidr".into(),
            line: 5,
            column: 30,
            message: "Invalid CIDR format: 10.0.0.0/99".into(),
            hint: Some("did you mean 10.0.0.0/9?".into()),
            rule: None,
        };
        assert_eq!(
            finding.to_string(),
            "Invalid CIDR format: 10.0.0.0/99 (allowedDestinations[1].cidr, line 5 column 30); \
             did you mean 10.0.0.0/9?"
        );
        finding.line = 0;
        finding.hint = None;
        assert_eq!(finding.to_string(), "Invalid CIDR format: 10.0.0.0/99 (allowedDestinations[1].cidr)");
        finding.path.clear();
        assert_eq!(finding.to_string(), "Invalid CIDR format: 10.0.0.0/99");
        finding.line = 5;
        assert_eq!(finding.to_string(), "Invalid CIDR format: 10.0.0.0/99 (line 5 column 30)");
        finding.rule = Some("EGR-0001".into());
        assert_eq!(finding.to_string(), "Invalid CIDR format: 10.0.0.0/99 (line 5 column 30) [EGR-0001]");
        assert_eq!(format!("{:>8}", Severity::Error), "   error", "the severity obeys a width");
    }
}
