//! The terminal: taken over, and given back as it was on every way out.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, Once, PoisonError},
};

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr,
};
use tokio::io::{Interest, unix::AsyncFd};

use super::table::View;

/// Another screen, without a cursor.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
/// The cursor again, and the first screen.
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";
/// How large a terminal is that does not say so.
const USUAL: (usize, usize) = (80, 24);

/// What is to be given back: the terminal and how it was. Also found by a panic.
static TAKEN: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// The terminal, as long as it is taken.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: OwnedFd,
}

impl Screen {
    /// Takes the terminal: keys come one by one and are not echoed, and what stood on the screen stays aside.
    pub(super) fn enter(terminal: OwnedFd) -> io::Result<Self> {
        static HOOK: Once = Once::new();
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        // What is there at once, or nothing: a look never waits.
        raw.special_codes[SpecialCodeIndex::VMIN] = 0;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        // To be stopped would leave the terminal like this.
        raw.special_codes[SpecialCodeIndex::VSUSP] = 0;
        HOOK.call_once(|| {
            let tell = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                // First, so that what is told is seen.
                leave();
                tell(panic);
            }));
        });
        let kept = terminal.try_clone()?;
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) = Some((kept, before));
        let screen = Self { terminal };
        tcsetattr(&screen.terminal, OptionalActions::Now, &raw)?;
        write(screen.terminal.as_fd(), ENTER)?;
        Ok(screen)
    }

    /// Returns columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(&self.terminal) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => USUAL,
        }
    }

    /// Shows lines from the top; below them is nothing.
    pub(super) fn show(&self, lines: &[String]) -> io::Result<()> {
        let mut text = String::from("\x1b[H");
        for (place, line) in lines.iter().enumerate() {
            if place > 0 {
                // The terminal adds the return.
                text.push('\n');
            }
            text.push_str(line);
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        write(self.terminal.as_fd(), text.as_bytes())
    }

    /// Returns the keys that are pressed, if standard input is a terminal.
    pub(super) fn keys(&self) -> io::Result<Keys> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(Keys(None));
        }
        let input = stdin.as_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor is owned, stays the same, and is closed only when dropped.
        let input = unsafe { AsyncFd::register_with_interest(input, Interest::READABLE) };
        Ok(Keys(Some(input.map_err(io::Error::from)?)))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

/// Gives the terminal back, once. What fails cannot be helped here.
fn leave() {
    let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((terminal, before)) = taken {
        let written = write(terminal.as_fd(), LEAVE);
        let set = tcsetattr(&terminal, OptionalActions::Now, &before);
        if written.is_err() || set.is_err() {
            eprintln!("the terminal could not be given back as it was; `reset` repairs it");
        }
    }
}

fn write(terminal: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(terminal, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    View(View),
    Sort,
    Up,
    Down,
    Other,
}

impl Key {
    /// Returns what the octets of one look mean: those of one key, or the last of several.
    fn of(octets: &[u8]) -> Self {
        match octets {
            [.., b'q' | b'Q'] => Self::Quit,
            [.., b'w' | b'W'] => Self::View(View::Workloads),
            [.., b'p' | b'P'] => Self::View(View::Pods),
            [.., b'd' | b'D'] if !octets.ends_with(b"\x1b[D") => Self::View(View::Destinations),
            [.., b'r' | b'R'] => Self::View(View::Reasons),
            [.., b's' | b'S'] => Self::Sort,
            [.., 0x1b, b'[', b'A'] | [.., b'k'] => Self::Up,
            [.., 0x1b, b'[', b'B'] | [.., b'j'] => Self::Down,
            _ => Self::Other,
        }
    }
}

/// Keys as they are pressed.
pub(super) struct Keys(Option<AsyncFd<OwnedFd>>);

impl Keys {
    /// Waits for the next; for ever where there are none.
    pub(super) async fn next(&mut self) -> io::Result<Key> {
        let Some(input) = &mut self.0 else { return std::future::pending().await };
        let mut octets = [0; 64];
        let mut ready = input.readable_mut().await?;
        let read = rustix::io::read(ready.get_inner(), &mut octets)?;
        ready.clear_ready();
        Ok(Key::of(&octets[..read]))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _, os::fd::FromRawFd as _};

    use super::*;

    /// Returns a terminal and its other side.
    fn terminal() -> (OwnedFd, File) {
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
        assert_eq!(made, 0, "{}", io::Error::last_os_error());
        // SAFETY: both were just made, and nobody else has them.
        unsafe { (OwnedFd::from_raw_fd(side), File::from_raw_fd(main)) }
    }

    fn modes(terminal: &OwnedFd) -> (LocalModes, u8) {
        let modes = tcgetattr(terminal).expect("it is a terminal");
        (modes.local_modes, modes.special_codes[SpecialCodeIndex::VSUSP])
    }

    /// One test: there is one terminal to give back in a process.
    #[test]
    fn the_terminal_is_given_back_on_every_way_out() {
        let (side, mut main) = terminal();
        let own = side.try_clone().expect("it can be cloned");
        let before = modes(&own);
        // Up to where it is given back, in as many reads as it takes.
        let mut seen = || {
            let mut text = Vec::new();
            while !text.ends_with(LEAVE) {
                let mut octets = [0; 4096];
                let count = main.read(&mut octets).expect("something was written");
                text.extend_from_slice(&octets[..count]);
            }
            String::from_utf8(text).expect("it is text")
        };
        let screen = Screen::enter(side).expect("it is a terminal");
        assert!(!modes(&own).0.contains(LocalModes::ECHO) && modes(&own).0.contains(LocalModes::ISIG));
        assert_eq!(screen.size(), USUAL, "it says nothing of its size");
        screen.show(&["one".to_owned(), "two".to_owned()]).expect("it can be written");
        drop(screen);
        assert_eq!(modes(&own), before);
        let text = seen();
        assert!(text.starts_with("\x1b[?1049h\x1b[?25l\x1b[Hone\x1b[K\r\ntwo\x1b[K\x1b[J"), "{text:?}");
        assert!(text.ends_with("\x1b[?25h\x1b[?1049l"), "{text:?}");
        let again = own.try_clone().expect("it can be cloned");
        let panicked = std::panic::catch_unwind(|| {
            let screen = Screen::enter(again).expect("it is a terminal");
            assert_eq!(screen.size(), (1, 1), "this fails on purpose");
        });
        assert!(panicked.is_err());
        assert_eq!(modes(&own), before);
        let text = seen();
        assert_eq!(text.matches("\x1b[?1049l").count(), 1, "{text:?}");
    }

    #[test]
    fn keys_are_what_terminals_send() {
        assert_eq!(Key::of(b"q"), Key::Quit);
        assert_eq!(Key::of(b"\x1b[A"), Key::Up);
        assert_eq!(Key::of(b"\x1b[B"), Key::Down);
        assert_eq!(Key::of(b"\x1b[D"), Key::Other, "to the left");
        assert_eq!(Key::of(b"d"), Key::View(View::Destinations));
        assert_eq!(Key::of(b"w"), Key::View(View::Workloads));
        assert_eq!(Key::of(b""), Key::Other);
        assert_eq!(Key::of(b"sr"), Key::View(View::Reasons), "the last");
    }
}
