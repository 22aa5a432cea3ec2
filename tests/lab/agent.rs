//! The real agent as a process of its own.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::keeper::Keeper;

/// The environment variable that names the agent's binary.
pub const VARIABLE: &str = "EGRESS_AGENT_BIN";

/// Returns the agent's binary.
///
/// # Errors
///
/// When [`VARIABLE`] is unset or names no file.
pub fn binary() -> Result<PathBuf> {
    let path = env::var_os(VARIABLE).map(PathBuf::from).with_context(|| {
        format!("{VARIABLE} names no agent: run `cargo xtask test`, which builds one and sets it")
    })?;
    if !path.is_file() {
        bail!("{VARIABLE}: no file {}", path.display());
    }
    Ok(path)
}

/// Returns an address of loopback that nobody listens at.
///
/// # Errors
///
/// When there is none.
pub fn free_address() -> Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .context("cannot find a free port")
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    /// Its process id.
    pub pid: u32,
    /// Where it serves metrics and health.
    pub address: SocketAddr,
    /// The folder with its socket for `egress-agent status`, unless its command names another.
    pub runtime: PathBuf,
    output: Arc<Mutex<Vec<String>>>,
}

impl Agent {
    /// Starts `egress-agent agent` with these arguments, and `--listen` at a free port.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(binary: &Path, keeper: &Keeper, arguments: &[&str]) -> Result<Self> {
        let address = free_address()?;
        let mut command = Command::new(binary);
        command.arg("agent").args(["--listen", &address.to_string(), "-o", "json"]).args(arguments);
        Self::listening(command, address, keeper)
    }

    /// Starts a command that becomes an agent, or a container it is in, which listens at this address.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn listening(mut command: Command, address: SocketAddr, keeper: &Keeper) -> Result<Self> {
        let runtime = tempfile::Builder::new()
            .prefix("egress-run-")
            .tempdir()
            .context("cannot make a runtime folder")?
            .keep();
        keeper.folder(&runtime)?;
        let mut child = command
            .env("EGRESS_RUNTIME_DIR", &runtime)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let pid = child.id();
        let stdout = child.stdout.take().expect("stdout is piped");
        let output = Arc::new(Mutex::new(Vec::new()));
        let agent = Self { child, pid, address, runtime, output: Arc::clone(&output) };
        keeper.process(pid)?;
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { return };
                output.lock().expect("no thread panics with the lock held").push(line);
            }
        });
        Ok(agent)
    }

    /// Waits until the policies are in force.
    ///
    /// # Errors
    ///
    /// When that takes longer than `limit`, or the agent ends.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for the agent")? {
                bail!("the agent ended: {status}");
            }
            match self.get("/readyz") {
                Ok((200, _)) => return Ok(()),
                Ok((status, body)) if Instant::now() >= deadline => {
                    bail!("the agent is not ready after {limit:?}: {status} {body}")
                }
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context(format!("the agent is not ready after {limit:?}")));
                }
                _not_yet => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Fetches a page and returns its status and body.
    ///
    /// # Errors
    ///
    /// When the agent does not answer as HTTP says.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no HTTP status")?;
        let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            unchunk(body)?
        } else {
            body.to_owned()
        };
        Ok((status, body))
    }

    /// Scrapes the metrics.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub fn metrics(&self) -> Result<Metrics> {
        let (status, text) = self.get("/metrics")?;
        if status != 200 {
            bail!("/metrics answers {status}");
        }
        Ok(Metrics::parse(&text))
    }

    /// The lines it has written to its standard output so far.
    ///
    /// # Panics
    ///
    /// Never: no thread panics with the lock held.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.output.lock().expect("no thread panics with the lock held").clone()
    }

    /// Kills it with `SIGKILL`.
    ///
    /// # Errors
    ///
    /// When it has been waited for already.
    pub fn kill(mut self, keeper: &Keeper) -> Result<()> {
        self.child.kill().context("cannot kill the agent")?;
        self.child.wait().context("cannot wait for the agent")?;
        keeper.forget(self.pid)
    }

    /// Asks it to end with `SIGTERM` and returns how it ended.
    ///
    /// # Errors
    ///
    /// When it does not end in ten seconds.
    pub fn terminate(mut self, keeper: &Keeper) -> Result<ExitStatus> {
        let pid = i32::try_from(self.pid).context("a process id is a positive int")?;
        // SAFETY: a system call that takes numbers; the child has not been waited for, so the number is still its own.
        if unsafe { libc::kill(pid, libc::SIGTERM) } != 0 {
            return Err(std::io::Error::last_os_error()).context("cannot signal the agent");
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for the agent")? {
                keeper.forget(self.pid)?;
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("the agent does not end within ten seconds of SIGTERM");
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // One that has ended and been waited for is left alone by both.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("the agent: {error}");
        }
    }
}

/// Runs `egress-agent unload` on a pin folder.
///
/// # Errors
///
/// When it fails.
pub fn unload(binary: &Path, pins: &Path) -> Result<String> {
    let output = Command::new(binary)
        .args(["unload", "--pin-dir"])
        .arg(pins)
        .output()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    if !output.status.success() {
        bail!("unload: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn unchunk(mut body: &str) -> Result<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").context("a chunk has no size")?;
        let size = usize::from_str_radix(size.trim(), 16).context("a chunk has no size")?;
        if size == 0 {
            return Ok(whole);
        }
        whole.push_str(rest.get(..size).context("a chunk is cut off")?);
        body = rest.get(size + 2..).context("a chunk is cut off")?;
    }
}

/// The labels of a sample, and its value.
pub type Sample = (BTreeMap<String, String>, f64);

/// Samples by family.
#[derive(Clone, Debug, Default)]
pub struct Metrics(pub BTreeMap<String, Vec<Sample>>);

impl Metrics {
    fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse() else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let mut pairs = BTreeMap::new();
            // Values of the agent's labels hold no commas, quotes or backslashes.
            for pair in labels.trim_end_matches('}').split(',').filter(|pair| !pair.is_empty()) {
                if let Some((label, value)) = pair.split_once('=') {
                    pairs.insert(label.to_owned(), value.trim_matches('"').to_owned());
                }
            }
            metrics.0.entry(name.to_owned()).or_default().push((pairs, value));
        }
        metrics
    }

    /// The sum of the samples of a family that carry all these labels.
    #[must_use]
    pub fn sum(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        let samples = self.0.get(family).map_or(&[][..], Vec::as_slice);
        let fits = |own: &BTreeMap<String, String>| {
            labels.iter().all(|(label, value)| own.get(*label).is_some_and(|own| own == value))
        };
        samples.iter().filter(|(own, _)| fits(own)).map(|(_, value)| value).sum()
    }
}
