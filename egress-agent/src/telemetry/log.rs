//! Logs on stderr, as text for people or JSON for machines.

use std::{
    env::{self, VarError},
    io::{self, IsTerminal},
};

use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter,
    fmt::{MakeWriter, format::FmtSpan},
    util::SubscriberInitExt,
};

/// The environment variable that says what is logged, in the language of `tracing_subscriber::EnvFilter`.
pub const FILTER: &str = "EGRESS_LOG";

/// What is logged unless [`FILTER`] says otherwise.
const DEFAULT_FILTER: &str = "info";

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
    /// Logging was started before.
    #[error("logging was started before")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
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
    subscriber(format, filter(value.as_deref())?, colour, io::stderr).try_init().map_err(Error::Twice)
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
