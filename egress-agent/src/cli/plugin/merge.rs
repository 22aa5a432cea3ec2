//! Lines of several agents in one order.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};

use crate::policy::document::is_hidden;

/// How long a line waits for older ones of other nodes.
pub const WAIT: Duration = Duration::from_millis(500);
/// How many lines wait at most. Beyond that the oldest go first, whether or not something older may still come.
const MOST: usize = 10_000;

/// Lines that wait for older ones.
#[derive(Debug, Default)]
pub struct Merge {
    /// Each with its time, when it came, and its place among all that came.
    waiting: Vec<(String, Instant, u64, String)>,
    count: u64,
}

impl Merge {
    /// Takes a line.
    pub fn push(&mut self, line: String, now: Instant) {
        self.waiting.push((time_of(&line).to_owned(), now, self.count, line));
        self.count += 1;
    }

    /// Returns lines for which nothing older is expected, oldest first: none that came before `now` less the time to wait is kept
    /// back, nor is anything older than it.
    pub fn ready(&mut self, now: Instant) -> Vec<String> {
        self.sort();
        let late = |entry: &(String, Instant, u64, String)| now.duration_since(entry.1) >= WAIT;
        let until = self.waiting.iter().rposition(late).map_or(0, |place| place + 1);
        let until = until.max(self.waiting.len().saturating_sub(MOST));
        self.waiting.drain(..until).map(|(.., line)| line).collect()
    }

    /// Returns the newest `last` lines of all that wait, oldest first.
    pub fn all(&mut self, last: usize) -> Vec<String> {
        self.sort();
        let from = self.waiting.len().saturating_sub(last);
        self.waiting.drain(..).skip(from).map(|(.., line)| line).collect()
    }

    fn sort(&mut self) {
        self.waiting.sort_by(|one, other| (&one.0, one.2).cmp(&(&other.0, other.2)));
    }
}

/// Returns the time a line begins with, in a table or an object. Times are RFC 3339 in UTC with fractions, so they sort as text.
fn time_of(line: &str) -> &str {
    const FIELD: &str = "\"time\":\"";
    match line.split_once(FIELD) {
        Some((_, rest)) if line.starts_with('{') => rest.split('"').next().unwrap_or(""),
        _ => line.split_whitespace().next().unwrap_or(""),
    }
}

/// Longest line that is taken from a node, in bytes. What is beyond is left out: nothing that an agent writes is as long.
pub const LONGEST: usize = 64 * 1024;

/// Returns text without what reaches into the terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if is_hidden(c) { ' ' } else { c }).collect()
}

/// Returns a line without what reaches into the terminal, but for the colours that an agent gives it.
pub fn coloured(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("\x1b[") {
        let (before, colour) = rest.split_at(at);
        shown += &plain(before);
        let digits = colour[2..].bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b';').count();
        let end = 2 + digits + 1;
        if digits <= 8 && colour.as_bytes().get(end - 1) == Some(&b'm') {
            shown += &colour[..end];
            rest = &colour[end..];
        } else {
            shown.push(' ');
            rest = &colour[1..];
        }
    }
    shown + &plain(rest)
}

/// Returns the next line of at most [`LONGEST`] bytes, without its end; nothing at the end of the input. What does not fit is dropped.
pub async fn next_line(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    loop {
        let piece = reader.fill_buf().await?;
        if piece.is_empty() {
            let is_line = !line.is_empty();
            return Ok(is_line.then(|| String::from_utf8_lossy(&line).into_owned()));
        }
        let end = piece.iter().position(|byte| *byte == b'\n');
        let of_line = &piece[..end.unwrap_or(piece.len())];
        line.extend_from_slice(&of_line[..of_line.len().min(LONGEST - line.len())]);
        let read = end.map_or(piece.len(), |end| end + 1);
        reader.consume(read);
        if end.is_some() {
            return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_colours_reach_the_terminal() {
        let line = "\x1b[31mdeny\x1b[0m \x1b[2Jx \x1b]0;t\x07 \u{202e}y \x1b[";
        assert_eq!(coloured(line), "\x1b[31mdeny\x1b[0m  [2Jx  ]0;t   y  [");
        assert_eq!(plain("\x1b[31mdeny"), " [31mdeny");
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_cut_and_the_next_is_whole() {
        let mut text = vec![b'x'; LONGEST * 3];
        text.extend_from_slice(b"\nnext\nlast");
        let mut reader = tokio::io::BufReader::with_capacity(1000, &text[..]);
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut reader).await.expect("memory can be read") {
            lines.push(line);
        }
        assert_eq!(lines[0].len(), LONGEST);
        assert_eq!(lines[1..], ["next", "last"]);
    }

    #[test]
    fn lines_come_in_the_order_of_their_times() {
        let start = Instant::now();
        let mut merge = Merge::default();
        merge.push("2026-11-22T03:00:02.000Z  b".to_owned(), start);
        merge.push("2026-11-22T03:00:01.000Z  a".to_owned(), start + WAIT / 2);
        merge.push("2026-11-22T03:00:03.000Z  c".to_owned(), start + WAIT / 2);
        assert!(merge.ready(start + WAIT / 2).is_empty(), "something older may come");
        let ready = merge.ready(start + WAIT);
        assert_eq!(ready, ["2026-11-22T03:00:01.000Z  a", "2026-11-22T03:00:02.000Z  b"]);
        assert_eq!(merge.ready(start + WAIT * 2), ["2026-11-22T03:00:03.000Z  c"]);
    }

    #[test]
    fn equal_times_keep_the_order_they_came_in() {
        let now = Instant::now();
        let mut merge = Merge::default();
        for word in ["z", "y", "x"] {
            merge.push(format!("2026-11-22T03:00:02.000Z  {word}"), now);
        }
        let all = merge.all(2);
        assert!(all[0].ends_with('y') && all[1].ends_with('x'), "{all:?}");
    }

    #[test]
    fn waiting_takes_bounded_room() {
        let now = Instant::now();
        let mut merge = Merge::default();
        for _ in 0..MOST + 5 {
            merge.push("2026-11-22T03:00:02.000Z".to_owned(), now);
        }
        assert_eq!(merge.ready(now).len(), 5);
    }

    #[test]
    fn an_object_has_its_time_in_a_field() {
        assert_eq!(
            time_of(r#"{"node":"a","time":"2026-11-22T03:00:02Z","pod":"p"}"#),
            "2026-11-22T03:00:02Z"
        );
        assert_eq!(time_of("2026-11-22T03:00:02Z  a"), "2026-11-22T03:00:02Z");
        assert_eq!(time_of(""), "");
    }
}
