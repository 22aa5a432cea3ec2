//! Programs we start: what failed is named with its whole command line.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use std::{fs, io, iter, thread};

use anyhow::{Context, Result, anyhow, bail};

/// How long any command may take that has no limit of its own.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// Runs the command; fails unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    run_within(command, LIMIT)
}

/// Runs the command for at most `limit`; fails unless it succeeds in time.
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    let name = line(command);
    let mut child = command.spawn().with_context(|| format!("cannot start `{name}`"))?;
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait().with_context(|| format!("cannot wait for `{name}`"))? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("`{name}` failed: {status}"),
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            None => return Err(killed(&name, &mut child, limit)),
        }
    }
}

/// Runs the command and returns what it wrote to its standard output; fails unless it succeeds.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", line(command), output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` wrote something other than text", line(command)))
}

/// Runs the command for at most `limit`, passes its output on line by line, and shows `see` each line.
///
/// # Errors
///
/// When the command cannot start or is still running after `limit`; it and its descendants are then killed.
pub(crate) fn stream_within(
    command: &mut Command,
    limit: Duration,
    mut see: impl FnMut(&str),
) -> Result<ExitStatus> {
    let name = line(command);
    let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.with_context(|| format!("cannot start `{name}`"))?;
    let (sender, lines) = mpsc::channel();
    forward(child.stdout.take().expect("stdout is piped"), io::stdout(), sender.clone());
    forward(child.stderr.take().expect("stderr is piped"), io::stderr(), sender);
    let deadline = Instant::now() + limit;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => see(&line.with_context(|| format!("lost the output of `{name}`"))?),
            Err(RecvTimeoutError::Disconnected) => {
                return child.wait().with_context(|| format!("cannot wait for `{name}`"));
            }
            Err(RecvTimeoutError::Timeout) => return Err(killed(&name, &mut child, limit)),
        }
    }
}

fn forward(
    from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
    sender: Sender<io::Result<String>>,
) {
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n') {
            let line = line.and_then(|line| {
                to.write_all(&line)?;
                to.write_all(b"\n")?;
                Ok(String::from_utf8_lossy(&line).into_owned())
            });
            let broken = line.is_err();
            // The receiver is gone only after a time-out; what the killed command still writes has no reader.
            if sender.send(line).is_err() || broken {
                break;
            }
        }
    });
}

/// Kills a command that ran too long and returns the error that says so.
fn killed(name: &str, child: &mut Child, limit: Duration) -> anyhow::Error {
    let overdue = anyhow!("`{name}` was killed: it ran longer than {} s", limit.as_secs());
    match kill_tree(child) {
        Ok(()) => overdue,
        Err(error) => error.context(overdue),
    }
}

/// Kills the child and everything it started: cargo does not take its test binaries with it.
fn kill_tree(child: &mut Child) -> Result<()> {
    let mut doomed = vec![child.id()];
    let parents = parents()?;
    let mut next = 0;
    while let Some(&parent) = doomed.get(next) {
        doomed.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(process, _)| *process));
        next += 1;
    }
    let doomed: Vec<String> = doomed.iter().map(u32::to_string).collect();
    // A process that ended meanwhile makes `kill` fail, which is as good.
    Command::new("kill").arg("-KILL").args(&doomed).status().context("cannot start `kill`")?;
    child.wait().context("cannot wait for a killed command")?;
    Ok(())
}

/// Lists every process with its parent.
fn parents() -> Result<Vec<(u32, u32)>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let entry = entry.context("cannot list /proc")?;
        let Ok(process) = entry.file_name().to_string_lossy().parse() else { continue };
        // A process may end between the listing and the reading.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // `pid (name) state parent …`, where the name may hold spaces and brackets.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if let Some(Ok(parent)) = parent.map(str::parse) {
            parents.push((process, parent));
        }
    }
    Ok(parents)
}

/// Returns the command as a person would type it, without the folder of the program.
pub(crate) fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let words = iter::once(program.file_name().unwrap_or(program.as_os_str())).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_names_the_command_line() {
        let error = run(&mut shell("exit 3")).expect_err("the command fails");
        assert_eq!(error.to_string(), "`sh -c exit 3` failed: exit status: 3");
    }

    #[test]
    fn every_line_of_both_streams_is_seen() {
        let mut seen = Vec::new();
        let status = stream_within(&mut shell("echo a; echo b >&2; printf c"), LIMIT, |line| {
            seen.push(line.to_owned());
        });
        assert!(status.expect("the command runs").success());
        seen.sort();
        assert_eq!(seen, ["a", "b", "c"]);
    }

    #[test]
    fn an_overdue_command_is_killed_with_what_it_started() {
        // The grandchild holds the output open: only its death ends the reading.
        let mut pid = String::new();
        let mut command = shell("sleep 300 & echo $!; wait");
        let outcome =
            stream_within(&mut command, Duration::from_millis(300), |line| line.clone_into(&mut pid));
        let error = outcome.expect_err("the command takes longer than it may");
        assert!(error.to_string().contains("ran longer than"), "{error:#}");
        // Once killed it is gone, or a zombie that waits for its new parent; the kernel takes a moment for that.
        let runs =
            || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        let deadline = Instant::now() + Duration::from_secs(10);
        while runs() {
            assert!(Instant::now() < deadline, "process {pid} still runs");
            thread::sleep(Duration::from_millis(5));
        }
    }
}
