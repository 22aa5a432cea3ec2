//! `egress-agent top`: what this node's pods send and are denied, as it happens.

mod screen;
mod table;

use std::{
    io::{self, IsTerminal as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{
    screen::{Key, Screen},
    table::{Sample, Sort, View},
};
use super::observe::ask;
use crate::observe::{self, Message, Request};

/// What to show.
#[derive(Debug, Args)]
#[command(after_help = "Keys: p pods, d destinations, r reasons, s another order, up and down, q end.\n\
    Exit codes: 0 as it should be, 2 no agent answers, or no terminal is there.")]
pub struct Arguments {
    /// Ask the agent whose socket is in this folder
    #[arg(long, value_name = "DIR", env = "EGRESS_RUNTIME_DIR", default_value = super::agent::RUNTIME_DIR)]
    runtime_dir: PathBuf,

    /// Of pods and policies of this namespace only
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// How many seconds are between two looks
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    interval: Duration,

    /// What to begin with
    #[arg(long, value_name = "VIEW", default_value = "pods")]
    view: ViewArgument,

    /// What comes first
    #[arg(long, value_name = "COLUMN", default_value = "denied")]
    sort: SortArgument,

    /// Look twice, print one table, and end
    #[arg(long)]
    once: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ViewArgument {
    /// One line a pod
    Pods,
    /// One line a destination of a policy
    Destinations,
    /// One line a verdict and reason
    Reasons,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SortArgument {
    /// The most denied per second
    Denied,
    /// The most allowed per second
    Allowed,
    /// By name
    Name,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a number of seconds between 0.1 and 3600".to_owned()),
    }
}

/// Shows until it is told to end.
///
/// # Errors
///
/// When no agent answers at first, or there is no terminal to show it on.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let path = observe::socket(&arguments.runtime_dir);
    let view = match arguments.view {
        ViewArgument::Pods => View::Pods,
        ViewArgument::Destinations => View::Destinations,
        ViewArgument::Reasons => View::Reasons,
    };
    let sort = match arguments.sort {
        SortArgument::Denied => Sort::Denied,
        SortArgument::Allowed => Sort::Allowed,
        SortArgument::Name => Sort::Name,
    };
    let namespace = arguments.namespace.as_deref();
    let first = sample(&path, namespace)?;
    if arguments.once {
        std::thread::sleep(arguments.interval);
        let second = sample(&path, namespace)?;
        let lines = table::lines(&second, Some(&first), view, sort);
        super::write(&(lines.join("\n") + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !io::stdout().is_terminal() {
        bail!(
            "standard output is no terminal; print one table with --once, or follow events with `egress-agent observe --follow`"
        );
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let terminal = io::stdout().as_fd().try_clone_to_owned().context("using the terminal")?;
    let mut shown = Shown { path, before: None, now: first, view, sort, from: 0, trouble: None };
    runtime.block_on(shown.follow(Screen::enter(terminal)?, namespace, arguments.interval))?;
    Ok(ExitCode::SUCCESS)
}

/// Asks the agent for its counters.
fn sample(path: &Path, namespace: Option<&str>) -> anyhow::Result<Sample> {
    let mut sample = Sample::new(Instant::now());
    for message in ask(path, &Request::Counters, true)? {
        match message? {
            Message::Pod(pod) => sample.add_pod(pod, namespace),
            Message::Entry(entry) => sample.add_entry(entry, namespace),
            Message::Node(node) => sample.node = node,
            Message::Error(why) => bail!("the agent says: {}", super::observe::shown(&why)),
            _ => {}
        }
    }
    Ok(sample)
}

/// What is on the screen.
struct Shown {
    path: PathBuf,
    before: Option<Sample>,
    now: Sample,
    view: View,
    sort: Sort,
    /// The first row that is shown.
    from: usize,
    /// Why the last look failed.
    trouble: Option<String>,
}

/// The signals that end it.
struct Ends([Signal; 4]);

impl Ends {
    fn new() -> io::Result<Self> {
        let watch = |kind| signal(kind);
        Ok(Self([
            watch(SignalKind::interrupt())?,
            watch(SignalKind::terminate())?,
            watch(SignalKind::hangup())?,
            watch(SignalKind::quit())?,
        ]))
    }

    async fn recv(&mut self) {
        let [interrupt, terminate, hangup, quit] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

impl Shown {
    /// Shows until a key or a signal ends it. The screen is as it was once this returns, however it does.
    async fn follow(
        &mut self,
        screen: Screen,
        namespace: Option<&str>,
        interval: Duration,
    ) -> anyhow::Result<()> {
        let mut ends = Ends::new().context("watching for signals")?;
        let mut resized = signal(SignalKind::window_change()).context("watching for the window's size")?;
        let mut keys = screen.keys().context("reading keys")?;
        let mut tick = tokio::time::interval(interval);
        // The first look was just now.
        tick.tick().await;
        loop {
            self.draw(&screen)?;
            tokio::select! {
                () = ends.recv() => return Ok(()),
                _ = resized.recv() => {}
                _ = tick.tick() => self.look(namespace).await,
                key = keys.next() => match key.context("reading keys")? {
                    Key::Quit => return Ok(()),
                    Key::View(view) => (self.view, self.from) = (view, 0),
                    Key::Sort => self.sort = self.sort.next(),
                    Key::Up => self.from = self.from.saturating_sub(1),
                    Key::Down => self.from += 1,
                    Key::Other => {}
                },
            }
        }
    }

    /// Looks again. What is shown stays where the agent does not answer.
    async fn look(&mut self, namespace: Option<&str>) {
        let (path, namespace) = (self.path.clone(), namespace.map(str::to_owned));
        let looked = tokio::task::spawn_blocking(move || sample(&path, namespace.as_deref())).await;
        match looked.map_err(anyhow::Error::from).and_then(|sample| sample) {
            Ok(sample) => {
                self.before = Some(std::mem::replace(&mut self.now, sample));
                self.trouble = None;
            }
            Err(error) => self.trouble = Some(format!("{error:#}")),
        }
    }

    fn draw(&mut self, screen: &Screen) -> io::Result<()> {
        let (columns, rows) = screen.size();
        let frame = table::frame(
            &self.now,
            self.before.as_ref(),
            (self.view, self.sort),
            &mut self.from,
            self.trouble.as_deref(),
            (columns, rows),
        );
        screen.show(&frame)
    }
}
