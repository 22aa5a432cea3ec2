//! Reads what a debug object logs about each packet it judges. Part of no release.

use std::{fmt, io};

use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tokio::io::{Interest, unix::AsyncFd};

use super::loader::{Datapath, LoadError};

/// The map the records stand in. It is not pinned: each load makes its own, and its programs keep it.
pub const MAP: &str = "AYA_LOGS";

/// The reader.
pub struct DebugLog {
    logger: EbpfLogger<Lines>,
}

impl fmt::Debug for DebugLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebugLog").finish_non_exhaustive()
    }
}

/// Takes records of the kind `aya-log` writes.
struct Lines(Box<dyn Fn(fmt::Arguments<'_>) + Send + Sync>);

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        (self.0)(*record.args());
    }

    fn flush(&self) {}
}

impl DebugLog {
    /// Starts to read and gives each line to `take`; `None` when the object logs nothing.
    ///
    /// # Errors
    ///
    /// [`LoadError::Missing`] when the map of that name is no such log.
    pub fn new(
        datapath: &mut Datapath,
        take: impl Fn(fmt::Arguments<'_>) + Send + Sync + 'static,
    ) -> Result<Option<Self>, LoadError> {
        match EbpfLogger::init_with_logger(datapath.object_mut(), Lines(Box::new(take))) {
            Ok(logger) => Ok(Some(Self { logger })),
            Err(aya_log::Error::MapNotFound) => Ok(None),
            Err(error) => Err(LoadError::Missing(format!("log to read: {error}"))),
        }
    }

    /// Reads what stands in the log.
    ///
    /// # Panics
    ///
    /// When the log holds something that is no record.
    pub fn read(&mut self) {
        self.logger.flush();
    }

    /// Reads whenever there is something, for ever.
    ///
    /// # Errors
    ///
    /// When the log can no longer be watched.
    pub async fn follow(self) -> io::Result<()> {
        // SAFETY: the logger owns its ring's descriptor, returns the same one each time and closes it only when dropped.
        let watched = unsafe { AsyncFd::register_with_interest(self.logger, Interest::READABLE) };
        let mut watched = watched.map_err(io::Error::from)?;
        loop {
            let mut guard = watched.readable_mut().await?;
            // Before reading, so that what comes meanwhile wakes it again.
            guard.clear_ready();
            guard.get_inner_mut().flush();
        }
    }
}
