//! JSON (RFC 8259, strictly) into a tree in which every value knows where it stands.

use std::ops::Range;

/// Arrays and objects inside one another, at most.
pub(super) const MAX_DEPTH: usize = 64;

/// A value and its place.
#[derive(Debug)]
pub(super) struct Node<'t> {
    /// The bytes it takes in the text.
    pub(super) span: Range<usize>,
    pub(super) value: Value<'t>,
}

#[derive(Debug)]
pub(super) enum Value<'t> {
    Null,
    Bool(bool),
    /// As written.
    Number(&'t str),
    /// Without quotes and escapes.
    String(String),
    Array(Vec<Node<'t>>),
    /// In the order of the text, duplicates included.
    Object(Vec<Member<'t>>),
}

impl Value<'_> {
    /// Returns the noun for the type, with its article.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        }
    }
}

/// A key and its value.
#[derive(Debug)]
pub(super) struct Member<'t> {
    pub(super) key: String,
    /// The bytes of the key, quotes included.
    pub(super) key_span: Range<usize>,
    pub(super) value: Node<'t>,
}

/// Why a text is not JSON.
#[derive(Debug)]
pub(super) struct SyntaxError {
    /// The byte at which it stops being JSON; the length of the text when it ends too early.
    pub(super) at: usize,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl SyntaxError {
    fn new(at: usize, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

type Result<T> = std::result::Result<T, SyntaxError>;

/// Returns the one value that `text` holds.
///
/// # Errors
///
/// [`SyntaxError`] at the first byte that breaks the grammar, also where more than [`MAX_DEPTH`] arrays and objects are open.
pub(super) fn parse(text: &str) -> Result<Node<'_>> {
    let mut parser = Parser { text, at: 0, open: Vec::new() };
    if text.starts_with('\u{feff}') {
        return Err(SyntaxError::new(0, "the text begins with a byte order mark").hint("save it without one"));
    }
    parser.space();
    if parser.peek().is_none() {
        return Err(SyntaxError::new(parser.at, "the text is empty"));
    }
    let node = parser.value()?;
    parser.space();
    match parser.peek() {
        None => Ok(node),
        Some(_) => Err(parser.unexpected("the end of the text")),
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    /// Where the arrays and objects begin that are still open.
    open: Vec<usize>,
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Says what stands here in place of `expected`.
    fn unexpected(&self, expected: &str) -> SyntaxError {
        let Some(found) = self.text.get(self.at..).and_then(|rest| rest.chars().next()) else {
            let error = SyntaxError::new(self.at, format!("expected {expected}, found the end of the text"));
            return match self.open.last() {
                Some(&open) => {
                    let line = 1 + self.text[..open].matches('\n').count();
                    error.hint(format!("'{}' in line {line} is not closed", &self.text[open..=open]))
                }
                None => error,
            };
        };
        let error = SyntaxError::new(self.at, format!("expected {expected}, found {found:?}"));
        match found {
            '/' | '#' => error.hint("JSON has no comments"),
            '\'' => error.hint("strings stand in double quotes"),
            _ => error,
        }
    }

    fn value(&mut self) -> Result<Node<'t>> {
        let start = self.at;
        let value = match self.peek() {
            Some(b'{') => self.nested(Self::object)?,
            Some(b'[') => self.nested(Self::array)?,
            Some(b'"') => Value::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => Value::Number(self.number()?),
            Some(b'a'..=b'z' | b'A'..=b'Z') => self.word()?,
            _ => return Err(self.unexpected("a value")),
        };
        Ok(Node { span: start..self.at, value })
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Value<'t>>) -> Result<Value<'t>> {
        if self.open.len() == MAX_DEPTH {
            return Err(SyntaxError::new(self.at, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.open.push(self.at);
        self.at += 1;
        self.space();
        let value = read(self)?;
        self.open.pop();
        Ok(value)
    }

    fn object(&mut self) -> Result<Value<'t>> {
        let mut members = Vec::new();
        if self.closed_by(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.unexpected("a field name in double quotes"));
            }
            let start = self.at;
            let key = self.string()?;
            let key_span = start..self.at;
            self.space();
            if self.peek() != Some(b':') {
                return Err(self.unexpected("':'"));
            }
            self.at += 1;
            self.space();
            let value = self.value()?;
            members.push(Member { key, key_span, value });
            if self.last_item(b'}', "',' or '}'")? {
                return Ok(Value::Object(members));
            }
        }
    }

    fn array(&mut self) -> Result<Value<'t>> {
        let mut items = Vec::new();
        if self.closed_by(b']') {
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value()?);
            if self.last_item(b']', "',' or ']'")? {
                return Ok(Value::Array(items));
            }
        }
    }

    fn closed_by(&mut self, close: u8) -> bool {
        let closed = self.peek() == Some(close);
        self.at += usize::from(closed);
        closed
    }

    /// Returns whether the list ends after the item just read; if not, the next item begins here.
    fn last_item(&mut self, close: u8, expected: &str) -> Result<bool> {
        self.space();
        if self.closed_by(close) {
            return Ok(true);
        }
        if self.peek() != Some(b',') {
            return Err(self.unexpected(expected));
        }
        let comma = self.at;
        self.at += 1;
        self.space();
        if self.peek() == Some(close) {
            let message = format!("a comma before '{}'", char::from(close));
            return Err(SyntaxError::new(comma, message).hint("remove the comma"));
        }
        Ok(false)
    }

    fn word(&mut self) -> Result<Value<'t>> {
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let value = match &rest[..end] {
            "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            word => {
                let error = self.unexpected("a value");
                return Err(match word.to_ascii_lowercase().as_str() {
                    lower @ ("null" | "true" | "false") => error.hint(format!("did you mean {lower}?")),
                    _ => error.hint("strings stand in double quotes"),
                });
            }
        };
        self.at += end;
        Ok(value)
    }

    /// Takes digits and returns how many there were.
    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    fn number(&mut self) -> Result<&'t str> {
        let start = self.at;
        self.at += usize::from(self.peek() == Some(b'-'));
        let first = self.at;
        match self.digits() {
            0 => return Err(self.unexpected("a digit")),
            1 => {}
            _ if self.text.as_bytes()[first] == b'0' => {
                return Err(SyntaxError::new(first, "a number with a leading zero").hint("remove the zero"));
            }
            _ => {}
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return Err(self.unexpected("a digit"));
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            if self.digits() == 0 {
                return Err(self.unexpected("a digit"));
            }
        }
        Ok(&self.text[start..self.at])
    }

    fn string(&mut self) -> Result<String> {
        let start = self.at;
        self.at += 1;
        let mut value = String::new();
        loop {
            let rest = &self.text[self.at..];
            let plain = rest.find(|c: char| matches!(c, '"' | '\\' | '\0'..='\u{1f}')).unwrap_or(rest.len());
            value.push_str(&rest[..plain]);
            self.at += plain;
            match self.peek() {
                None => return Err(SyntaxError::new(start, "a string without its closing quote")),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(value);
                }
                Some(b'\\') => value.push(self.escape()?),
                Some(b'\n' | b'\r') => {
                    return Err(SyntaxError::new(
                        start,
                        "a string without its closing quote in the same line",
                    )
                    .hint("write a line break as \\n"));
                }
                Some(byte) => {
                    let message = format!("a string with the control character U+{byte:04X}");
                    return Err(SyntaxError::new(self.at, message).hint(format!("write it as \\u{byte:04x}")));
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char> {
        let start = self.at;
        self.at += 1;
        let unescaped = match self.peek() {
            Some(plain @ (b'"' | b'\\' | b'/')) => char::from(plain),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(start),
            _ => {
                return Err(
                    SyntaxError::new(start, "an unknown escape").hint("a backslash itself is written \\\\")
                );
            }
        };
        self.at += 1;
        Ok(unescaped)
    }

    /// Reads `uXXXX` and, where that is the first half of a pair, `\uXXXX` after it.
    fn unicode(&mut self, start: usize) -> Result<char> {
        let alone = || SyntaxError::new(start, "an escape with half a surrogate pair");
        let first = self.hex(start)?;
        let code = match first {
            0xd800..=0xdbff => {
                if !self.text[self.at..].starts_with("\\u") {
                    return Err(alone());
                }
                self.at += 1;
                let second = self.hex(start)?;
                if !(0xdc00..=0xdfff).contains(&second) {
                    return Err(alone());
                }
                0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
            }
            _ => first,
        };
        char::from_u32(code).ok_or_else(alone)
    }

    /// Reads `uXXXX`.
    fn hex(&mut self, start: usize) -> Result<u32> {
        self.at += 1;
        let mut code = 0;
        for _ in 0..4 {
            let Some(digit) = self.peek().and_then(|byte| char::from(byte).to_digit(16)) else {
                return Err(SyntaxError::new(start, "an escape without four hexadecimal digits"));
            };
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tells whether serde_json takes it, leaving aside numbers that only its number types cannot hold.
    fn serde_takes(text: &str) -> Option<bool> {
        match serde_json::from_str::<serde_json::Value>(text) {
            Ok(_) => Some(true),
            Err(error) if error.to_string().starts_with("number out of range") => None,
            Err(error) if error.to_string().starts_with("recursion limit") => None,
            Err(_) => Some(false),
        }
    }

    /// Compares a tree with serde_json's of the same text, and every span with the value it claims to hold.
    fn check(text: &str, node: &Node<'_>) {
        let there = &text[node.span.clone()];
        match &node.value {
            Value::Number(number) => assert_eq!(there, *number, "a number's span holds the number"),
            Value::Array(items) => {
                assert!(there.starts_with('[') && there.ends_with(']'), "{there}");
                items.iter().for_each(|item| check(text, item));
            }
            Value::Object(members) => {
                assert!(there.starts_with('{') && there.ends_with('}'), "{there}");
                for member in members {
                    let key = serde_json::from_str::<String>(&text[member.key_span.clone()]);
                    assert_eq!(key.expect("a key's span holds a string"), member.key);
                    check(text, &member.value);
                }
            }
            scalar => {
                let same = match serde_json::from_str(there).expect("a scalar's span holds a scalar") {
                    serde_json::Value::Null => matches!(scalar, Value::Null),
                    serde_json::Value::Bool(b) => matches!(scalar, Value::Bool(own) if *own == b),
                    serde_json::Value::String(s) => matches!(scalar, Value::String(own) if *own == s),
                    _ => false,
                };
                assert!(same, "{there} was read as {scalar:?}");
            }
        }
    }

    fn agree(text: &str) {
        let ours = parse(text);
        match (&ours, serde_takes(text)) {
            (Ok(node), _) => check(text, node),
            (Err(error), _) => assert!(text.is_char_boundary(error.at), "{error:?} in {text:?}"),
        }
        let too_deep = matches!(&ours, Err(error) if error.message.starts_with("nested deeper"));
        if let Some(theirs) = serde_takes(text)
            && !too_deep
        {
            assert_eq!(ours.is_ok(), theirs, "{text:?}: {ours:?}");
        }
    }

    #[test]
    fn agrees_with_serde_json_on_known_corners() {
        for text in [
            "",
            " ",
            "null",
            "nul",
            "nulll",
            "true ",
            " false",
            "True",
            "0",
            "-0",
            "-",
            "01",
            "-01",
            "1.",
            ".5",
            "1.5",
            "1e",
            "1e5",
            "1E+5",
            "1e-",
            "1e-05",
            "+1",
            "0x1",
            "NaN",
            "Infinity",
            "1e999",
            "123456789012345678901234567890",
            r#""""#,
            r#"""#,
            r#""a"#,
            r#""\""#,
            r#""\\""#,
            r#""\/\b\f\n\r\t""#,
            r#""\x""#,
            r#""\u00e9""#,
            r#""\u00g9""#,
            r#""\u12""#,
            r#""\ud83d\ude00""#,
            r#""\ud83d""#,
            r#""\ud83dx""#,
            r#""\ud83d\n""#,
            r#""\ud83d\u0041""#,
            r#""\ude00""#,
            r#""\uD83D\uDE00""#,
            r#""\ud800\udc00""#,
            r#""\udbff\udfff""#,
            r#""\ud7ff\ue000\uffff""#,
            r#""\ud800\ue000""#,
            r#""\u0000""#,
            "\"\u{0}\"",
            "\"\u{1f}\"",
            "\"\u{7f}\"",
            "\"\t\"",
            "\"\n\"",
            "\"é😀\"",
            "[]",
            "[ ]",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[1,2]",
            "[1",
            "[",
            "]",
            "[]]",
            "[] []",
            "{}",
            "{ }",
            r#"{"a":1}"#,
            r#"{"a":1,}"#,
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{a:1}"#,
            r#"{'a':1}"#,
            r#"{"a":1 "b":2}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"":{}}"#,
            "{",
            "}",
            "{]",
            "[}",
            "\u{feff}{}",
            "\u{a0}1",
            "1\u{b}",
            "// x\n1",
            "/* x */ 1",
            "# x\n1",
            "1 // x",
            "{\"a\":1,\r\n\t\"b\":[true,false,null]}",
        ] {
            agree(text);
        }
    }

    #[test]
    fn depth_is_limited() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let nested = |depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
            assert!(parse(&nested(MAX_DEPTH)).is_ok(), "{MAX_DEPTH} levels are fine");
            let error = parse(&nested(MAX_DEPTH + 1)).expect_err("one more is not");
            assert_eq!(error.message, "nested deeper than 64 levels");
            assert!(
                parse(&open.repeat(500_000 / open.len())).is_err(),
                "many more do not overflow the stack"
            );
        }
    }

    #[test]
    fn errors_say_where_and_what() {
        for (text, at, message, hint) in [
            ("", 0, "the text is empty", None),
            ("[1,]", 2, "a comma before ']'", Some("remove the comma")),
            ("{\"a\": 1,\n}", 7, "a comma before '}'", Some("remove the comma")),
            ("[1\n2]", 3, "expected ',' or ']', found '2'", None),
            (
                "\n{\"a\": [1",
                9,
                "expected ',' or ']', found the end of the text",
                Some("'[' in line 2 is not closed"),
            ),
            (
                "{'a': 1}",
                1,
                "expected a field name in double quotes, found '\\''",
                Some("strings stand in double quotes"),
            ),
            ("{a: 1}", 1, "expected a field name in double quotes, found 'a'", None),
            ("{\"a\": True}", 6, "expected a value, found 'T'", Some("did you mean true?")),
            ("{\"a\": deny}", 6, "expected a value, found 'd'", Some("strings stand in double quotes")),
            ("{} // x", 3, "expected the end of the text, found '/'", Some("JSON has no comments")),
            ("{\"a\" 1}", 5, "expected ':', found '1'", None),
            ("[\"a]", 1, "a string without its closing quote", None),
            ("[010]", 1, "a number with a leading zero", Some("remove the zero")),
            ("\u{feff}{}", 0, "the text begins with a byte order mark", Some("save it without one")),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(
                (error.at, error.message.as_str(), error.hint.as_deref()),
                (at, message, hint),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(text in "(\\PC|[ \\n\\[\\]{}:,\"\\\\u0-9a-fA-F.eE+-]|\\\\u[dD][89abcdABCD][0-9a-f]{2}|null|true|\"a\":){0,40}") {
            agree(&text);
        }

        #[test]
        fn agrees_with_serde_json_on_near_misses(at in 0usize..90, cut in 0usize..3, put in "[ \\[\\]{}:,\"\\\\0-9enu.\\x00-]{0,2}") {
            let good = r#"{"a": [1, -2.5e+3, "x\ud83d\ude00y\n", true, false, null, {}], "b": {"c": [[]], "": "\u00e9é"}}"#;
            let mut chars: Vec<char> = good.chars().collect();
            let at = at.min(chars.len());
            let end = (at + cut).min(chars.len());
            chars.splice(at..end, put.chars());
            agree(&chars.into_iter().collect::<String>());
        }
    }
}
