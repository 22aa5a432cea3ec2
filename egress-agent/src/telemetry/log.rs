//! Logs on stderr, as text for people or JSON for machines.

use std::{
    env::{self, VarError},
    fs::File,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter,
    fmt::{MakeWriter, format::FmtSpan},
    util::SubscriberInitExt,
};

/// The environment variable that says what is logged, in the language of `tracing_subscriber::EnvFilter`.
pub const FILTER: &str = "EGRESS_LOG";

/// What is logged unless [`FILTER`] says otherwise. The client for the API server has a line for each request that fails; the agent has
/// one for each watch that does.
const DEFAULT_FILTER: &str = "info,kube_client=off,kube_runtime=error";

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Lines for people, coloured on a terminal unless `NO_COLOR` is set.
    #[default]
    Text,
    /// One JSON object on each line.
    Json,
}

/// Why logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter cannot be read.
    #[error(
        "{FILTER}={value}: write a level, such as info, or targets with levels, such as egress_agent=debug,warn"
    )]
    Filter {
        /// What the variable holds.
        value: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The filter is not text.
    #[error("{FILTER} is not UTF-8")]
    NotUtf8,
    /// The process can have no more descriptors or threads.
    #[error("cannot prepare to write the log")]
    Stderr(#[source] io::Error),
    /// Logging was started before.
    #[error("logging was started before")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// How many log lines may wait for whoever reads standard error.
const WAITING: usize = 4096;

/// The lines that wait for standard error, once logging has started.
static STDERR: OnceLock<Lines> = OnceLock::new();

/// Lines that a thread writes, so that a reader who does not read stops nobody. What does not fit is lost and counted.
#[derive(Clone, Debug)]
pub struct Lines {
    queue: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Everything before this is written.
    Flushed(SyncSender<()>),
}

impl Lines {
    /// Returns lines for standard output, of which `room` may wait.
    ///
    /// # Errors
    ///
    /// When the process can have no more descriptors or threads.
    pub fn stdout(room: usize) -> io::Result<Self> {
        Self::new(room, File::from(io::stdout().as_fd().try_clone_to_owned()?), None)
    }

    /// Starts the thread. With `notice`, it writes how many lines were lost as soon as there is room again.
    fn new(
        room: usize,
        to: impl Write + Send + 'static,
        notice: Option<fn(u64) -> String>,
    ) -> io::Result<Self> {
        let (queue, lines) = mpsc::sync_channel(room);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        thread::Builder::new().name("lines".to_owned()).spawn(move || write(to, &lines, &counter, notice))?;
        Ok(Self { queue, lost })
    }

    /// Adds a line, its end included, unless there is no room.
    pub fn send(&self, line: Vec<u8>) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns how many lines were lost and not reported.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until what was added before is written, but no longer than `limit`. Returns whether it is.
    pub fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let (done, flushed) = mpsc::sync_channel(1);
        let mut message = Message::Flushed(done);
        loop {
            match self.queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => message = back,
                Err(_stuck) => return false,
            }
            thread::sleep(Duration::from_millis(1));
        }
        flushed.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok()
    }
}

fn write(mut to: impl Write, lines: &Receiver<Message>, lost: &AtomicU64, notice: Option<fn(u64) -> String>) {
    let mut put = |line: &[u8]| {
        if to.write_all(line).is_err() {
            lost.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        true
    };
    for message in lines {
        match message {
            Message::Line(line) => {
                if put(&line)
                    && let Some(notice) = notice
                {
                    let missing = lost.swap(0, Ordering::Relaxed);
                    if missing > 0 && !put(notice(missing).as_bytes()) {
                        lost.fetch_add(missing, Ordering::Relaxed);
                    }
                }
            }
            // Whoever asked may have stopped waiting.
            Message::Flushed(done) => drop(done.send(())),
        }
    }
}

/// A place for one log line at a time.
struct Line(Lines);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.send(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until the log is written, but no longer than `limit`.
pub fn flush(limit: Duration) {
    if let Some(lines) = STDERR.get() {
        lines.flush(limit);
    }
}

/// Starts logging to stderr for the whole process.
///
/// # Errors
///
/// If [`FILTER`] cannot be read, or logging was started before.
pub fn init(format: Format) -> Result<(), Error> {
    let value = match env::var(FILTER) {
        Ok(value) => Some(value),
        Err(VarError::NotPresent) => None,
        Err(VarError::NotUnicode(_)) => return Err(Error::NotUtf8),
    };
    let colour = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let notice: fn(u64) -> String = match format {
        Format::Text => |lost| format!("{lost} log lines were lost because nobody read them\n"),
        Format::Json => |lost| {
            format!(
                "{{\"level\":\"WARN\",\"message\":\"log lines were lost because nobody read them\",\"lost\":{lost}}}\n"
            )
        },
    };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(Error::Stderr)?;
    let lines = Lines::new(WAITING, File::from(stderr), Some(notice)).map_err(Error::Stderr)?;
    let writer = lines.clone();
    subscriber(format, filter(value.as_deref())?, colour, move || Line(writer.clone()))
        .try_init()
        .map_err(Error::Twice)?;
    STDERR.get_or_init(|| lines);
    Ok(())
}

/// Returns the filter that a value of [`FILTER`] describes. None and an empty one mean the default.
fn filter(value: Option<&str>) -> Result<EnvFilter, Error> {
    let value = value.filter(|value| !value.is_empty()).unwrap_or(DEFAULT_FILTER);
    EnvFilter::builder().parse(value).map_err(|source| Error::Filter { value: value.to_owned(), source })
}

/// Returns what writes the log lines.
fn subscriber<W>(
    format: Format,
    filter: EnvFilter,
    colour: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_span_events(FmtSpan::NONE).with_writer(writer);
    match format {
        Format::Text => Box::new(builder.with_ansi(colour).finish()),
        Format::Json => Box::new(
            builder
                .with_ansi(false)
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false)
                .finish(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Returns what is written when a few things are logged.
    fn written(format: Format, value: Option<&str>, colour: bool) -> String {
        #[derive(Clone, Default)]
        struct Buffer(Arc<Mutex<Vec<u8>>>);

        impl io::Write for Buffer {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().expect("no writer panicked").write(bytes)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let buffer = Buffer::default();
        let writer = buffer.clone();
        let filter = filter(value).expect("the filter is right");
        tracing::subscriber::with_default(subscriber(format, filter, colour, move || writer.clone()), || {
            tracing::info_span!("watch", kind = "Pod").in_scope(|| {
                tracing::info!(namespace = "shop", "policy applied");
                tracing::debug!("entry written");
            });
        });
        let bytes = buffer.0.lock().expect("no writer panicked").clone();
        String::from_utf8(bytes).expect("logs are text")
    }

    #[test]
    fn a_reader_that_does_not_read_stops_nobody() {
        let (mut reader, writer) = io::pipe().expect("a pipe can be made");
        let lines =
            Lines::new(8, writer, Some(|lost| format!("lost {lost}\n"))).expect("a thread can be made");
        let line = || [b'x'; 4095].iter().chain(b"\n").copied().collect::<Vec<u8>>();
        // More than fits into the pipe and the queue together.
        for _ in 0..1000 {
            lines.send(line());
        }
        assert!(!lines.flush(Duration::from_millis(20)), "nobody reads");
        let read = thread::spawn(move || {
            let mut text = String::new();
            io::Read::read_to_string(&mut reader, &mut text).expect("the pipe can be read");
            text
        });
        assert!(lines.flush(Duration::from_secs(10)), "now somebody does");
        drop(lines);
        let text = read.join().expect("the reader ends");
        // Told at once or in parts, as the thread came to it.
        let told: usize = text
            .lines()
            .filter_map(|line| line.strip_prefix("lost "))
            .map(|number| number.parse::<usize>().expect("a number"))
            .sum();
        let written = text.lines().filter(|line| line.starts_with('x')).count();
        assert!(told > 500, "{told}");
        assert_eq!(told + written, 1000, "what was lost is told");
    }

    #[test]
    fn text_has_the_sentence_and_its_fields() {
        let text = written(Format::Text, None, false);
        assert!(text.contains("INFO"), "{text}");
        assert!(text.contains("policy applied namespace=\"shop\""), "{text}");
        assert!(!text.contains('\x1b'), "no colour was asked for: {text}");
        assert!(!text.contains("entry written"), "info is the default: {text}");
        assert!(written(Format::Text, None, true).contains('\x1b'), "colour was asked for");
    }

    #[test]
    fn json_is_one_object_on_each_line() {
        let text = written(Format::Json, Some("debug"), true);
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!(lines[0]["level"], "INFO");
        assert_eq!(lines[0]["message"], "policy applied");
        assert_eq!(lines[0]["namespace"], "shop");
        assert_eq!(lines[0]["span"]["kind"], "Pod");
        assert_eq!(lines[1]["message"], "entry written");
    }

    #[test]
    fn the_filter_decides_what_is_written() {
        assert_eq!(written(Format::Text, Some("warn"), false), "");
        assert_eq!(written(Format::Text, Some("off"), false), "");
        assert!(written(Format::Text, Some(""), false).contains("policy applied"), "empty means the default");
        assert!(written(Format::Text, Some("warn,egress_agent=debug"), false).contains("entry written"));
    }

    #[test]
    fn a_wrong_filter_is_an_error_that_repeats_it() {
        let error = filter(Some("egress_agent=loud")).expect_err("there is no such level").to_string();
        assert!(error.starts_with("EGRESS_LOG=egress_agent=loud"), "{error}");
    }
}
