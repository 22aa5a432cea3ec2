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
    waiting: Vec<Waiting>,
    count: u64,
}

#[derive(Debug)]
struct Waiting {
    /// Of the event. RFC 3339 in UTC with fractions, so they sort as text.
    time: String,
    /// Its place among all that came.
    number: u64,
    came: Instant,
    line: String,
}

impl Merge {
    /// Takes a line about an event of this time.
    pub fn push(&mut self, time: String, line: String, now: Instant) {
        self.waiting.push(Waiting { time, number: self.count, came: now, line });
        self.count += 1;
    }

    /// Returns lines for which nothing older is expected, oldest first: none that came before `now` less the time to wait is kept
    /// back, nor is anything older than it.
    pub fn ready(&mut self, now: Instant) -> Vec<String> {
        self.sort();
        let late = |entry: &Waiting| now.duration_since(entry.came) >= WAIT;
        let until = self.waiting.iter().rposition(late).map_or(0, |place| place + 1);
        let until = until.max(self.waiting.len().saturating_sub(MOST));
        self.waiting.drain(..until).map(|entry| entry.line).collect()
    }

    /// Returns whether so many lines wait that some must go.
    pub fn is_full(&self) -> bool {
        self.waiting.len() > MOST
    }

    /// Forgets all but the newest `last` lines, if far more than these wait.
    pub fn keep_newest(&mut self, last: usize) {
        if self.waiting.len() > last.saturating_mul(2).saturating_add(MOST) {
            self.sort();
            self.waiting.drain(..self.waiting.len() - last);
        }
    }

    /// Returns the newest `last` lines of all that wait, oldest first.
    pub fn all(&mut self, last: usize) -> Vec<String> {
        self.sort();
        let from = self.waiting.len().saturating_sub(last);
        self.waiting.drain(..).skip(from).map(|entry| entry.line).collect()
    }

    fn sort(&mut self) {
        self.waiting.sort_by(|one, other| (&one.time, one.number).cmp(&(&other.time, other.number)));
    }
}

/// How much of what others say is told on a line of ours.
const TOLD: usize = 400;

/// Returns text without what reaches into the terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if is_hidden(c) { ' ' } else { c }).collect()
}

/// Returns the beginning of a text likewise.
pub fn cut(text: &str) -> String {
    let mut told: String = text.chars().take(TOLD).map(|c| if is_hidden(c) { ' ' } else { c }).collect();
    if text.chars().nth(TOLD).is_some() {
        told.push('…');
    }
    told
}

/// Returns the next line of at most `longest` bytes, without its end; nothing at the end of the input. What does not fit is dropped.
///
/// # Errors
///
/// When it cannot be read, and when it is so long that it will hardly have an end.
pub async fn next_line(
    reader: &mut (impl AsyncBufRead + Unpin),
    longest: usize,
) -> io::Result<Option<String>> {
    /// How many times as long as a line may be.
    const ENDLESS: usize = 64;
    let (mut line, mut length) = (Vec::new(), 0_usize);
    loop {
        let piece = reader.fill_buf().await?;
        if piece.is_empty() {
            return Ok((length > 0).then(|| String::from_utf8_lossy(&line).into_owned()));
        }
        let end = piece.iter().position(|byte| *byte == b'\n');
        let of_line = &piece[..end.unwrap_or(piece.len())];
        length += of_line.len();
        line.extend_from_slice(&of_line[..of_line.len().min(longest - line.len())]);
        let read = end.map_or(piece.len(), |end| end + 1);
        reader.consume(read);
        if end.is_some() {
            return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
        }
        if length > longest.saturating_mul(ENDLESS) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it says a line without an end"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reaches_into_the_terminal_is_left_out() {
        assert_eq!(plain("\x1b[31mdeny\u{9b}\u{202e}"), " [31mdeny  ");
        assert_eq!(cut("a\nb"), "a b");
        assert_eq!(cut(&"x".repeat(1000)).chars().count(), TOLD + 1);
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_cut_and_the_next_is_whole() {
        const LONGEST: usize = 64 * 1024;
        let mut text = vec![b'x'; LONGEST * 3];
        text.extend_from_slice(b"\nnext\nlast");
        let mut reader = tokio::io::BufReader::with_capacity(1000, &text[..]);
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut reader, LONGEST).await.expect("memory can be read") {
            lines.push(line);
        }
        assert_eq!(lines[0].len(), LONGEST);
        assert_eq!(lines[1..], ["next", "last"]);
        let mut endless = tokio::io::BufReader::new(tokio::io::repeat(b'x'));
        assert!(next_line(&mut endless, 100).await.is_err());
    }

    fn push(merge: &mut Merge, second: &str, line: &str, now: Instant) {
        merge.push(format!("2026-11-22T03:00:{second}Z"), line.to_owned(), now);
    }

    #[test]
    fn lines_come_in_the_order_of_their_times() {
        let start = Instant::now();
        let mut merge = Merge::default();
        push(&mut merge, "02.000000", "b", start);
        push(&mut merge, "01.000000", "a", start + WAIT / 2);
        push(&mut merge, "03.000000", "c", start + WAIT / 2);
        assert!(merge.ready(start + WAIT / 2).is_empty(), "something older may come");
        assert_eq!(merge.ready(start + WAIT), ["a", "b"]);
        assert_eq!(merge.ready(start + WAIT * 2), ["c"]);
    }

    #[test]
    fn equal_times_keep_the_order_they_came_in() {
        let now = Instant::now();
        let mut merge = Merge::default();
        for word in ["z", "y", "x"] {
            push(&mut merge, "02", word, now);
        }
        assert_eq!(merge.all(2), ["y", "x"]);
    }

    #[test]
    fn waiting_takes_bounded_room() {
        let now = Instant::now();
        let mut merge = Merge::default();
        for number in 0..MOST + 5 {
            assert_eq!(merge.is_full(), number > MOST);
            push(&mut merge, "02", "", now);
        }
        assert_eq!(merge.ready(now).len(), 5);
        let mut merge = Merge::default();
        for number in 0..3 * MOST {
            push(&mut merge, &format!("{number:08}"), &number.to_string(), now);
            merge.keep_newest(3);
            assert!(merge.waiting.len() <= MOST + 6, "{}", merge.waiting.len());
        }
        assert_eq!(merge.all(2), [(3 * MOST - 2).to_string(), (3 * MOST - 1).to_string()]);
    }
}
