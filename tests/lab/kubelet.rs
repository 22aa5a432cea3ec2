//! A kubelet that runs commands and does nothing else: where the API server's `exec` ends, in SPDY/3.1 as kubelet speaks it.
//!
//! The API server opens its streams one after the other and in a fixed order, errors first, so that the headers of a stream, which
//! are compressed, need not be read to know which one it is.

use std::{
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin},
    sync::{mpsc, watch},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig, crypto,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

/// Returns what to run for a command in a pod; nothing where there is no such pod, or it does not run.
pub type Run = Arc<dyn Fn(&str, &[String]) -> Option<std::process::Command> + Send + Sync>;

/// No head of a request and no frame is longer.
const LONGEST: usize = 1 << 20;
/// `FLAG_FIN`: the last frame of a stream.
const FIN: u8 = 1;
/// What opens the first block of headers of a connection: the header of zlib.
const ZLIB: [u8; 2] = [0x78, 0x01];
/// No headers: their number in 32 bits as a stored block of deflate, and an empty one, without which a reader waits for more.
const NO_HEADERS: [u8; 14] = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// A kubelet that serves on 127.0.0.1, as long as this lives.
pub struct Kubelet {
    address: SocketAddr,
    cut: watch::Sender<u64>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Kubelet {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// When there is no port, no certificate or no thread to be had.
    pub fn start(run: Run) -> Result<Self> {
        let made =
            rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).context("no certificate")?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("no version of TLS")?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .context("no certificate")?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).context("no free port")?;
        let address = listener.local_addr()?;
        let (cut, cuts) = watch::channel(0);
        let (stop, mut stopped) = mpsc::channel(1);
        let accept = async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (acceptor, run, mut cuts) = (acceptor.clone(), Arc::clone(&run), cuts.clone());
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    tokio::select! {
                        served = serve(&acceptor, stream, &run) => {
                            if let Err(error) = served {
                                eprintln!("kubelet: {error:#}");
                            }
                        }
                        _ = cuts.changed() => {}
                    }
                });
            }
        };
        let thread = thread::Builder::new().name("kubelet".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept => {}
                    _ = stopped.recv() => {}
                }
            });
        })?;
        Ok(Self { address, cut, stop: Some(stop), thread: Some(thread) })
    }

    /// Returns where it serves.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the status of the node it is on.
    #[must_use]
    pub fn node_status(&self) -> serde_json::Value {
        json!({
            "addresses": [{ "type": "InternalIP", "address": self.address.ip().to_string() }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": self.address.port() } },
        })
    }

    /// Ends all connections at once. What runs ends with its standard input.
    pub fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("a kubelet panicked");
        }
    }
}

/// What is asked.
#[derive(Debug, Default)]
struct Asked {
    pod: String,
    command: Vec<String>,
    input: bool,
    output: bool,
    error: bool,
}

impl Asked {
    fn parse(head: &str) -> Result<Self> {
        let line = head.lines().next().unwrap_or("");
        let ["POST", target, "HTTP/1.1"] = line.split(' ').collect::<Vec<_>>()[..] else {
            bail!("{line} is not what is served")
        };
        let upgrade = head.lines().filter_map(|line| line.split_once(": "));
        let mut upgrade = upgrade.filter(|(name, _)| name.eq_ignore_ascii_case("upgrade"));
        ensure!(upgrade.any(|(_, to)| to == "SPDY/3.1"), "{head} asks for something else than SPDY");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let ["", "exec", _, pod, _] = path.split('/').collect::<Vec<_>>()[..] else { bail!("{path}") };
        let mut asked = Self { pod: pod.to_owned(), ..Self::default() };
        for pair in query.split('&') {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("command", word) => asked.command.push(decoded(word)),
                ("input", "1") => asked.input = true,
                ("output", "1") => asked.output = true,
                ("error", "1") => asked.error = true,
                ("tty", "1") => bail!("there is no terminal here"),
                _ => {}
            }
        }
        Ok(asked)
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits: String = rest.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&digits, 16).unwrap_or(b'?')
            }
            byte => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One connection: one command.
async fn serve(acceptor: &TlsAcceptor, stream: TcpStream, run: &Run) -> Result<()> {
    let mut stream = BufReader::new(acceptor.accept(stream).await.context("TLS")?);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < LONGEST, "a head without an end");
        head.push(stream.read_u8().await.context("reading a head")?);
    }
    let asked = Asked::parse(&String::from_utf8_lossy(&head))?;
    let Some(command) = run(&asked.pod, &asked.command) else {
        let body = format!("container not found in pod {}", asked.pod);
        let answer = format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await?;
        return Ok(stream.shutdown().await?);
    };
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (frames, mut queue) = mpsc::channel::<Vec<u8>>(16);
    let write = async move {
        while let Some(frame) = queue.recv().await {
            writer.write_all(&frame).await?;
            writer.flush().await?;
        }
        anyhow::Ok(writer)
    };
    let (read, written) = tokio::join!(streams(&mut reader, frames, &asked, command), write);
    read?;
    // The other side has all of it and ends the connection.
    let mut writer = written?;
    Ok(writer.shutdown().await?)
}

/// Opens the streams, runs the command, and passes on what is said on both sides until the command has ended.
async fn streams(
    reader: &mut (impl AsyncRead + Unpin),
    frames: mpsc::Sender<Vec<u8>>,
    asked: &Asked,
    command: std::process::Command,
) -> Result<()> {
    let mut wanted = vec!["error"];
    let optional = [("stdin", asked.input), ("stdout", asked.output), ("stderr", asked.error)];
    wanted.extend(optional.iter().filter(|(_, wanted)| *wanted).map(|(name, _)| *name));
    let mut ids: Vec<u32> = Vec::new();
    while ids.len() < wanted.len() {
        if let Frame::Open(id) = frame(reader, &frames).await? {
            let mut block = if ids.is_empty() { ZLIB.to_vec() } else { Vec::new() };
            block.extend(NO_HEADERS);
            frames.send(control(2, id, &block)).await?;
            ids.push(id);
        }
    }
    let id = |name: &str| wanted.iter().position(|wanted| *wanted == name).map(|place| ids[place]);
    let mut child = tokio::process::Command::from(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting a command")?;
    let mut stdin = child.stdin.take();
    let said = async {
        let status = outputs(&mut child, &frames, id("stdout"), id("stderr")).await?;
        let error = id("error").context("it was opened")?;
        frames.send(data(error, FIN, ended(status).to_string().as_bytes())).await?;
        anyhow::Ok(())
    };
    tokio::pin!(said);
    let input = id("stdin");
    tokio::select! {
        said = &mut said => return said,
        gone = hear(reader, &frames, input, &mut stdin) => drop(gone),
    }
    // Who asked has gone, or the command reads no more. It ends with its standard input, and is told of if somebody is still there.
    drop(stdin.take());
    drop(said.await);
    Ok(())
}

/// Passes on what comes for a command's standard input, for ever.
async fn hear(
    reader: &mut (impl AsyncRead + Unpin),
    frames: &mpsc::Sender<Vec<u8>>,
    input: Option<u32>,
    stdin: &mut Option<ChildStdin>,
) -> Result<()> {
    loop {
        let Frame::Data(id, last, bytes) = frame(reader, frames).await? else { continue };
        if Some(id) != input {
            continue;
        }
        if let Some(stdin) = stdin {
            stdin.write_all(&bytes).await?;
        }
        if last {
            drop(stdin.take());
        }
    }
}

async fn outputs(
    child: &mut Child,
    frames: &mpsc::Sender<Vec<u8>>,
    stdout: Option<u32>,
    stderr: Option<u32>,
) -> Result<ExitStatus> {
    let (out, error) = (child.stdout.take().context("piped")?, child.stderr.take().context("piped")?);
    let (out, error) = tokio::join!(pass(out, frames, stdout), pass(error, frames, stderr));
    out.and(error)?;
    child.wait().await.context("waiting for a command")
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    frames: &mpsc::Sender<Vec<u8>>,
    id: Option<u32>,
) -> Result<()> {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        if let Some(id) = id {
            frames.send(data(id, if count == 0 { FIN } else { 0 }, &buffer[..count])).await?;
        }
        if count == 0 {
            return Ok(());
        }
    }
}

/// How a command ended, as kubelet tells it.
fn ended(status: ExitStatus) -> serde_json::Value {
    match status.code() {
        Some(0) => json!({ "metadata": {}, "status": "Success" }),
        // As a shell has it.
        code => {
            let code = code.unwrap_or(137).to_string();
            json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": format!("command terminated with non-zero exit code: {code}"),
                "details": { "causes": [{ "reason": "ExitCode", "message": code }] },
            })
        }
    }
}

/// A frame that was read.
enum Frame {
    /// A stream is opened.
    Open(u32),
    /// Something on a stream, and whether it is the last.
    Data(u32, bool, Vec<u8>),
    Other,
}

/// Reads a frame. Pings are answered.
async fn frame(reader: &mut (impl AsyncRead + Unpin), frames: &mpsc::Sender<Vec<u8>>) -> Result<Frame> {
    let (first, second) = (reader.read_u32().await?, reader.read_u32().await?);
    let (last, length) = (second >> 24 & u32::from(FIN) != 0, second & 0x00ff_ffff);
    ensure!(length as usize <= LONGEST, "a frame of {length} bytes");
    let mut bytes = vec![0; length as usize];
    reader.read_exact(&mut bytes).await?;
    if first & 1 << 31 == 0 {
        return Ok(Frame::Data(first, last, bytes));
    }
    let word = bytes.first_chunk().map_or(0, |word| u32::from_be_bytes(*word)) & !(1 << 31);
    Ok(match first & 0xffff {
        1 => Frame::Open(word),
        6 => {
            frames.send(control(6, word, &[])).await?;
            Frame::Other
        }
        _ => Frame::Other,
    })
}

fn control(kind: u16, word: u32, rest: &[u8]) -> Vec<u8> {
    let [kind_high, kind_low] = kind.to_be_bytes();
    let length = u32::try_from(rest.len() + 4).expect("they are short").to_be_bytes();
    [&[0x80, 3, kind_high, kind_low], &length[..], &word.to_be_bytes(), rest].concat()
}

fn data(id: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = u32::try_from(bytes.len()).expect("they are short").to_be_bytes();
    [&id.to_be_bytes()[..], &[flags, high, middle, low], bytes].concat()
}
