//! The webhook: judging in this process, and the released binary asked over TLS as an API server asks.

use std::{
    env, fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use egress_agent::{
    check::Rules,
    webhook::review::{Governance, Review, Verdict},
};
use egress_tests::lab::api::Double;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    measure::{Effort, Pinned, median, percentile},
    report::{Report, Table, number},
    room::Room,
};

/// Destinations of the policy that is judged.
const DESTINATIONS: usize = 100;
/// Requests each second.
const RATE: u32 = 200;
/// How many connections they come on. An API server keeps as many as it needed at once.
const CONNECTIONS: usize = 8;
/// The time of the judgement: before every expiry in the policy.
const NOW: u64 = 1_790_000_000;

/// All the layers there are, with the rules of governance refused by no destination of the policy.
const RULES: &str = "
governance:
  profile: required
policyAsCode:
  enabled: true
  limitMillis: 1000
cluster:
  podCidrs: [10.244.0.0/16]
  serviceCidrs: [10.96.0.0/16]
  nodeCidrs: [172.31.0.0/16]
  environment: prod
";

/// Everything about the webhook.
///
/// # Errors
///
/// When it does not do what it should.
pub fn run(_: &Room, effort: &Effort, report: &mut Report) -> Result<()> {
    let body = review();
    let rules = Rules::parse(RULES).context("the rules of the benchmark")?;
    let inside = judged(&rules, &body, effort)?;
    let outside = asked(&body, effort)?;
    let mut rows = Vec::new();
    let mut row =
        |report: &mut Report, what: &str, limit: f64, value: f64, unit: &'static str, middle: &str| {
            let [goal, verdict] = report.goal(what, limit, value, unit);
            rows.push(vec![
                what.to_owned(),
                middle.to_owned(),
                format!("{} {unit}", number(value)),
                goal,
                verdict,
            ]);
        };
    let middle = |times: &[f64]| format!("{:.2} ms", median(times));
    let p99 = percentile(&inside, 0.99);
    row(report, "A review of 100 destinations in this process, p99", 5.0, p99, "ms", &middle(&inside));
    let p99_tls = percentile(&outside.millis, 0.99);
    row(
        report,
        "The same over TLS at 200 requests a second, p99",
        20.0,
        p99_tls,
        "ms",
        &middle(&outside.millis),
    );
    row(report, "Resident memory of the webhook after that", 30.0, outside.resident, "MB", "");
    let seconds = validated(effort)?;
    let whole = median(&seconds);
    row(
        report,
        "`egress-agent validate` of 10 000 policies in one file each, one processor",
        2.0,
        whole,
        "s",
        &format!("{whole:.2} s"),
    );
    report.table(Table {
        title: "The webhook",
        about: "A policy of 100 destinations with full governance, judged with every layer on. Over TLS: the released binary on loopback, requests \
                begun at fixed times on 8 connections, from the time a request was due to its whole answer.",
        reading: format!(
            "p99 {} ms in process, {} ms over TLS; {} MB.",
            number(p99),
            number(p99_tls),
            number(outside.resident)
        ),
        head: &["what", "median", "measured", "goal", ""],
        rows,
    });
    Ok(())
}

/// Policies that are validated at once.
const POLICIES: usize = 10_000;

/// Returns the seconds `egress-agent validate` takes for a folder of policies, once for each of a few rounds.
fn validated(effort: &Effort) -> Result<Vec<f64>> {
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    for number in 0..POLICIES {
        let policy = json!({
            "defaultAction": "deny",
            "podSelector": {"matchLabels": {"app": format!("app-{number}")}},
            "allowedDestinations": [
                {"name": "db", "cidr": format!("10.{}.{}.0/24", number / 256 % 256, number % 256), "ports": [5432]},
                {"name": "s3", "awsService": "s3", "regions": ["us-east-1"], "ports": [443]},
                {"name": "api", "domains": [format!("api.example{number}.com")], "ports": ["443/TCP"]},
                {"name": "cache", "service": {"name": "redis"}, "ports": [6379]},
            ],
        });
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"namespace": "bench", "name": format!("p{number}"), "labels": {"egress-controller": "managed"}},
            "data": {"policy.json": serde_json::to_string_pretty(&policy).context("writing a policy")?},
        });
        let file = folder.path().join(format!("p{number}.json"));
        fs::write(&file, object.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let agent = env::var_os("EGRESS_AGENT_BIN").context("EGRESS_AGENT_BIN names the released binary")?;
    // What is started from here stays on this thread's processor.
    let _pinned = Pinned::new()?;
    let mut seconds = Vec::new();
    for _ in 0..if effort.quick { 1 } else { 5 } {
        let begun = Instant::now();
        let output = Command::new(&agent)
            .args(["validate", "-o", "json"])
            .arg(folder.path())
            .env_remove("EGRESS_RULES")
            .output()
            .context("cannot start the binary")?;
        seconds.push(begun.elapsed().as_secs_f64());
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "validate ended with {}: {said}", output.status);
        ensure!(said.contains(&format!("{POLICIES} policies checked: 0 errors")), "validate said {said}");
    }
    Ok(seconds)
}

/// The review of a policy with so many destinations, each with its governance.
fn review() -> String {
    let destinations: Vec<Value> = (0..DESTINATIONS)
        .map(|number| {
            json!({
                "name": format!("partner-{number}"),
                "cidrs": [format!("203.0.{number}.0/26"), format!("198.51.{number}.128/27")],
                "ports": [443, { "port": 8000, "endPort": 8010, "protocol": "TCP" }],
                "governance": {
                    "owner": "team-payments", "reason": "settlement files of the partner", "scope": "checkout",
                    "dataClassification": "internal", "expiry": "2026-12-31", "auditRef": format!("SEC-{number}"),
                },
            })
        })
        .collect();
    let policy = json!({
        "defaultAction": "deny", "podSelector": { "matchLabels": { "app": "checkout" } },
        "allowedDestinations": destinations,
    });
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": { "group": "", "version": "v1", "kind": "ConfigMap" },
            "name": "checkout", "namespace": "shop", "operation": "CREATE",
            "object": {
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": "checkout", "namespace": "shop", "labels": { "egress-controller": "managed" } },
                "data": { "policy.json": format!("{policy:#}") },
            },
        },
    })
    .to_string()
}

/// Returns how long each judgement took, in milliseconds.
fn judged(rules: &Rules, body: &str, effort: &Effort) -> Result<Vec<f64>> {
    let (profile, notice) = rules.profile(None);
    let governance = Governance { profile, notice };
    let mut times = Vec::new();
    for _ in 0..if effort.quick { 300 } else { 3000 } {
        let began = Instant::now();
        let review = Review::read(body.as_bytes()).context("it is a review")?;
        let answer = review.judge(rules, &governance, NOW);
        times.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(answer.verdict == Verdict::Allowed, "{}", String::from_utf8_lossy(&answer.body));
    }
    Ok(times)
}

/// What was seen of the webhook as a process.
struct Seen {
    millis: Vec<f64>,
    resident: f64,
}

/// Kills it at the end.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("the webhook: {error}");
        }
    }
}

fn free_address() -> Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).context("no free port")
}

fn asked(body: &str, effort: &Effort) -> Result<Seen> {
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let double = Double::start()?;
    double.load([json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } })])?;
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["127.0.0.1".to_owned()]).context("cannot make a certificate")?;
    let write = |name: &str, text: &str| -> Result<PathBuf> {
        let path = folder.path().join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    let (listen, telemetry) = (free_address()?, free_address()?);
    let binary =
        env::var_os("EGRESS_AGENT_BIN").map_or_else(|| "target/release/egress-agent".into(), PathBuf::from);
    let mut command = Command::new(&binary);
    command.arg("webhook").arg("--kubeconfig").arg(double.kubeconfig());
    command.arg("--rules").arg(write("rules.yaml", RULES)?);
    command.arg("--tls-cert-file").arg(write("tls.crt", &cert.pem())?);
    command.arg("--tls-key-file").arg(write("tls.key", &signing_key.serialize_pem())?);
    command.args(["--listen", &listen.to_string(), "--telemetry", &telemetry.to_string()]);
    let log = fs::File::create(folder.path().join("log")).context("cannot make the log")?;
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
    let process = Process(child.with_context(|| format!("cannot start {}", binary.display()))?);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let seconds = if effort.quick { 3 } else { 10 };
    let millis = runtime.block_on(load(listen, cert.der(), body, seconds))?;
    let resident = resident(process.0.id())?;
    Ok(Seen { millis, resident })
}

/// Returns the resident memory of a process, in MB.
fn resident(pid: u32) -> Result<f64> {
    let path = Path::new("/proc").join(pid.to_string()).join("status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS is a number")?;
    Ok(kib * 1024.0 / 1e6)
}

/// Asks for so long, and returns how long each answer took from when its request was due.
async fn load(
    address: SocketAddr,
    ca: &CertificateDer<'static>,
    body: &str,
    seconds: u32,
) -> Result<Vec<f64>> {
    let request = Arc::new(format!(
        "POST /validate?timeout=5s HTTP/1.1\r\nHost: webhook\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        streams.push(connect(address, ca).await?);
    }
    // It knows its namespaces a moment after it listens.
    let deadline = Instant::now() + Duration::from_secs(20);
    while ask(&mut streams[0], &request).await.is_err() {
        ensure!(Instant::now() < deadline, "the webhook answers no review");
        tokio::time::sleep(Duration::from_millis(50)).await;
        streams[0] = connect(address, ca).await?;
    }
    let step = Duration::from_secs(1) / RATE;
    let count = (RATE * seconds) as usize;
    let start = tokio::time::Instant::now() + step;
    let mut tasks = Vec::new();
    for (place, mut stream) in streams.into_iter().enumerate() {
        let request = Arc::clone(&request);
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            for number in (place..count).step_by(CONNECTIONS) {
                // Late ones count from when they were due.
                let due = start + step * u32::try_from(number).context("few enough")?;
                tokio::time::sleep_until(due).await;
                ask(&mut stream, &request).await?;
                times.push(due.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(times)
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.context("a client ended early")??);
    }
    Ok(all)
}

async fn connect(address: SocketAddr, ca: &CertificateDer<'static>) -> Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).context("a CA that can be trusted")?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("no versions of TLS")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("127.0.0.1").context("an address")?;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let connected = match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true).context("cannot send at once")?;
                connector.connect(name.clone(), stream).await
            }
            Err(error) => Err(error),
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).context("the webhook does not serve");
            }
            Err(_not_yet) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Sends a request and reads its answer, which must allow the policy.
async fn ask(stream: &mut TlsStream<TcpStream>, request: &str) -> Result<()> {
    stream.write_all(request.as_bytes()).await.context("it does not read")?;
    stream.flush().await.context("it does not read")?;
    let mut text = Vec::with_capacity(8192);
    loop {
        if stream.read_buf(&mut text).await.context("it does not answer")? == 0 {
            bail!("it ends the connection");
        }
        let Some(head) = text.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let lower = String::from_utf8_lossy(&text[..head]).to_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.context("no length")?.parse().context("a length is a number")?;
        if text.len() >= head + 4 + length {
            let body = &text[head + 4..];
            let allowed = body.windows(14).any(|part| part == b"\"allowed\":true");
            ensure!(allowed, "it is not allowed: {}", String::from_utf8_lossy(body));
            return Ok(());
        }
    }
}
