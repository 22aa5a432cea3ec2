//! Cleans up after the lab, however it ends.
//!
//! The keeper is a process that is told what the lab makes, before it makes it, and whose input ends when the lab's process
//! does: on its own accord, on a panic, on Ctrl-C, or killed. Then it ends the processes, takes the mounts away, and removes
//! the cgroups and folders.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs,
    io::{self, BufRead, BufReader, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// How long processes may take to leave their cgroups.
const PATIENCE: Duration = Duration::from_secs(10);

/// The lab's end of a keeper.
#[derive(Debug)]
pub struct Keeper {
    child: Child,
    pipes: Mutex<Option<(ChildStdin, BufReader<ChildStdout>)>>,
}

impl Keeper {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// When `podrun` is missing.
    pub fn start() -> Result<Self> {
        let program = super::program("podrun")?;
        let mut child = Command::new(&program)
            .arg("keeper")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let input = child.stdin.take().expect("stdin is piped");
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Ok(Self { child, pipes: Mutex::new(Some((input, output))) })
    }

    fn say(&self, word: &str, what: &str) -> Result<()> {
        let mut pipes = self.pipes.lock().expect("no thread panics with the lock held");
        let Some((input, output)) = pipes.as_mut() else { bail!("the keeper has been dismissed") };
        writeln!(input, "{word} {what}").context("the keeper is gone")?;
        let mut answer = String::new();
        output.read_line(&mut answer).context("the keeper is gone")?;
        if answer.trim_end() != "ok" {
            bail!("the keeper cannot {word} {what}: {answer}");
        }
        Ok(())
    }

    /// Names a process to be killed.
    ///
    /// # Errors
    ///
    /// When the keeper is gone or there is no such process.
    pub fn process(&self, pid: u32) -> Result<()> {
        self.say("kill", &pid.to_string())
    }

    /// Takes a process back that has ended.
    ///
    /// # Errors
    ///
    /// When the keeper is gone.
    pub fn forget(&self, pid: u32) -> Result<()> {
        self.say("forget", &pid.to_string())
    }

    /// Names a cgroup to be removed with those below it.
    ///
    /// # Errors
    ///
    /// When the keeper is gone.
    pub fn cgroup(&self, path: &Path) -> Result<()> {
        self.say("cgroup", &path.display().to_string())
    }

    /// Names a mount point to be unmounted and removed.
    ///
    /// # Errors
    ///
    /// When the keeper is gone.
    pub fn mount(&self, path: &Path) -> Result<()> {
        self.say("mount", &path.display().to_string())
    }

    /// Names a folder to be removed with what is in it.
    ///
    /// # Errors
    ///
    /// When the keeper is gone.
    pub fn folder(&self, path: &Path) -> Result<()> {
        self.say("folder", &path.display().to_string())
    }

    /// Has everything cleaned up now and waits until it is.
    ///
    /// # Errors
    ///
    /// When something could not be removed; the keeper has written what.
    pub fn dismiss(&self) -> Result<()> {
        let pipes = self.pipes.lock().expect("no thread panics with the lock held").take();
        let Some((input, mut output)) = pipes else { return Ok(()) };
        drop(input);
        let mut last = String::new();
        output.read_line(&mut last).context("the keeper is gone")?;
        if last.trim_end() != "clean" {
            bail!("something stays behind: {last}");
        }
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Err(error) = self.dismiss() {
            eprintln!("{error:#}");
        }
        if let Err(error) = self.child.wait() {
            eprintln!("cannot wait for the keeper: {error}");
        }
    }
}

/// What the keeper has been told.
#[derive(Default)]
struct Estate {
    processes: BTreeMap<i32, OwnedFd>,
    mounts: Vec<PathBuf>,
    cgroups: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

/// The keeper's own side: what `podrun keeper` does.
///
/// # Errors
///
/// When something could not be removed.
pub fn run() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let mut estate = Estate::default();
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let (word, what) = line.split_once(' ').unwrap_or((&line, ""));
        match estate.note(word, what) {
            Ok(()) => writeln!(output, "ok")?,
            Err(error) => writeln!(output, "{error}")?,
        }
        output.flush()?;
    }
    let outcome = estate.clean();
    let told = match &outcome {
        Ok(()) => writeln!(output, "clean"),
        Err(error) => writeln!(output, "{error}"),
    };
    // Nobody listens when the lab was killed.
    if told.is_err() {
        return outcome;
    }
    outcome
}

impl Estate {
    fn note(&mut self, word: &str, what: &str) -> io::Result<()> {
        match word {
            "kill" => {
                let pid: i32 = what.parse().map_err(io::Error::other)?;
                // SAFETY: a system call that takes numbers.
                let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
                if descriptor < 0 {
                    return Err(io::Error::last_os_error());
                }
                let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
                // SAFETY: the kernel has just made this descriptor for us.
                self.processes.insert(pid, unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
            "forget" => drop(self.processes.remove(&what.parse().map_err(io::Error::other)?)),
            "mount" => self.mounts.push(what.into()),
            "cgroup" => self.cgroups.push(what.into()),
            "folder" => self.folders.push(what.into()),
            _ => return Err(io::Error::other("no such word")),
        }
        Ok(())
    }

    /// Tries everything, and returns the first thing that failed.
    fn clean(&self) -> io::Result<()> {
        let mut outcome = Ok(());
        let mut see = |what: &Path, result: io::Result<()>| {
            if let Err(error) = result {
                let error = io::Error::other(format!("{}: {error}", what.display()));
                if outcome.is_ok() {
                    outcome = Err(error);
                }
            }
        };
        for descriptor in self.processes.values() {
            // SAFETY: a system call that takes numbers and no pointer. A process that has ended is as good as killed.
            unsafe {
                libc::syscall(libc::SYS_pidfd_send_signal, descriptor.as_raw_fd(), libc::SIGKILL, 0, 0)
            };
        }
        for path in self.mounts.iter().rev() {
            see(path, unmount(path).and_then(|()| absent_is_fine(fs::remove_dir(path))));
        }
        for path in self.cgroups.iter().rev() {
            see(path, remove_cgroup(path));
        }
        for path in self.folders.iter().rev() {
            see(path, absent_is_fine(fs::remove_dir_all(path)));
        }
        outcome
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn unmount(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: the path is a string that ends in zero and lives as long as the call.
    if unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // It was named before it was mounted, and may never have been.
    if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) { Ok(()) } else { Err(error) }
}

/// Removes a cgroup and those below; processes that were killed take a moment to leave.
fn remove_cgroup(path: &Path) -> io::Result<()> {
    fn attempt(path: &Path) -> io::Result<()> {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                attempt(&entry.path())?;
            }
        }
        fs::remove_dir(path)
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        match absent_is_fine(attempt(path)) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_busy) => thread::sleep(Duration::from_millis(5)),
        }
    }
}
