//! A terminal that a test looks at.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::Stdio,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

/// A terminal, and what was written on it.
#[derive(Debug)]
pub struct Terminal {
    main: File,
    side: OwnedFd,
    seen: Arc<Mutex<String>>,
}

impl Terminal {
    /// Makes one of this size.
    ///
    /// # Panics
    ///
    /// When there is none to be had.
    #[must_use]
    pub fn new(columns: u16, rows: u16) -> Self {
        let (mut main, mut side) = (0, 0);
        // SAFETY: two places for descriptors, and nothing else asked for.
        let made = unsafe {
            libc::openpty(
                &raw mut main,
                &raw mut side,
                std::ptr::null_mut(),
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: both were just made, and nobody else has them.
        let (main, side) = unsafe { (File::from_raw_fd(main), OwnedFd::from_raw_fd(side)) };
        let seen = Arc::new(Mutex::new(String::new()));
        let (mut reader, text) = (main.try_clone().expect("it can be cloned"), Arc::clone(&seen));
        thread::spawn(move || {
            let mut octets = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut octets) {
                let more = String::from_utf8_lossy(&octets[..count]).into_owned();
                text.lock().expect("no thread panics with the lock held").push_str(&more);
            }
        });
        let terminal = Self { main, side, seen };
        terminal.resize(columns, rows);
        terminal
    }

    /// Gives it another size.
    ///
    /// # Panics
    ///
    /// When it has gone.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: a terminal of ours, and a size that lives until the call returns.
        let set = unsafe { libc::ioctl(self.main.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }

    /// Its modes, as one that was taken over has others.
    ///
    /// # Panics
    ///
    /// When it has gone.
    #[must_use]
    pub fn modes(&self) -> (u32, Vec<u8>) {
        let modes = rustix::termios::tcgetattr(&self.side).expect("it is a terminal");
        let codes = [
            rustix::termios::SpecialCodeIndex::VMIN,
            rustix::termios::SpecialCodeIndex::VTIME,
            rustix::termios::SpecialCodeIndex::VSUSP,
        ];
        (modes.local_modes.bits(), codes.iter().map(|code| modes.special_codes[*code]).collect())
    }

    /// All that was written on it.
    ///
    /// # Panics
    ///
    /// Never: no thread panics with the lock held.
    #[must_use]
    pub fn text(&self) -> String {
        self.seen.lock().expect("no thread panics with the lock held").clone()
    }

    /// What is on the screen now, as lines.
    #[must_use]
    pub fn screen(&self) -> Vec<String> {
        let text = self.text();
        let last = text.rsplit("\x1b[H").next().unwrap_or("");
        last.split("\r\n").map(|line| line.replace("\x1b[K", "").replace("\x1b[J", "")).collect()
    }

    /// Waits until the screen is as wanted.
    ///
    /// # Panics
    ///
    /// When it is not within this time.
    #[track_caller]
    pub fn wait(&self, limit: Duration, what: &str, wanted: impl Fn(&[String]) -> bool) {
        let deadline = Instant::now() + limit;
        while !wanted(&self.screen()) {
            assert!(Instant::now() < deadline, "{what}: {:#?}", self.screen());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its other side, for a program.
    ///
    /// # Panics
    ///
    /// When there are no more descriptors.
    #[must_use]
    pub fn side(&self) -> Stdio {
        self.side.try_clone().expect("it can be cloned").into()
    }

    /// Types on it.
    ///
    /// # Panics
    ///
    /// When it has gone.
    pub fn press(&self, keys: &[u8]) {
        (&self.main).write_all(keys).expect("it is open");
    }
}
