//! `egress-agent top`: what this node's pods send and are denied, as it happens.

mod look;
mod screen;
mod table;

use std::{
    io::{self, IsTerminal as _, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

pub(super) use self::{look::Look, table::lines};
use self::{
    look::Sample,
    screen::{Key, Screen},
    table::{Sort, View},
};
use super::observe::{ask, end_with_stdin, escaped};
use crate::observe::{self, Message, Request};

/// What to show.
#[derive(Debug, Args)]
#[command(
    after_help = "Keys: w workloads, p pods, d destinations, r reasons, s another order, up and down, q end.\n\
    Exit codes: 0 as it should be, 2 no agent answers, or no terminal is there.\n\
    Over several nodes: kubectl egress top."
)]
pub struct Arguments {
    /// Ask the agent whose socket is in this folder
    #[arg(long, value_name = "DIR", env = "EGRESS_RUNTIME_DIR", default_value = super::agent::RUNTIME_DIR)]
    runtime_dir: PathBuf,

    #[command(flatten)]
    how: How,

    /// What to begin with
    #[arg(long, value_name = "VIEW", default_value = "pods")]
    view: ViewArgument,

    /// End with standard input too: for whoever starts this elsewhere and may go away
    #[arg(long)]
    until_eof: bool,
}

/// How to show it.
#[derive(Debug, Args)]
pub(super) struct How {
    /// Of pods and policies of this namespace only
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,

    /// How many seconds are between two looks
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    pub(super) interval: Duration,

    /// What comes first
    #[arg(long, value_name = "COLUMN", default_value = "denied")]
    sort: SortArgument,

    /// Look twice, print what came between, and end
    #[arg(long)]
    pub(super) once: bool,

    /// How to print it: a table, on a terminal or with --once, or an object a look, one a line
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(super) output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    Table,
    /// For programs: every view
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ViewArgument {
    /// One line a workload
    Workloads,
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

impl ViewArgument {
    pub(super) fn view(self) -> View {
        match self {
            Self::Workloads => View::Workloads,
            Self::Pods => View::Pods,
            Self::Destinations => View::Destinations,
            Self::Reasons => View::Reasons,
        }
    }
}

impl How {
    pub(super) fn sort(&self) -> Sort {
        match self.sort {
            SortArgument::Denied => Sort::Denied,
            SortArgument::Allowed => Sort::Allowed,
            SortArgument::Name => Sort::Name,
        }
    }

    /// Prints a look. Returns whether somebody reads on.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub(super) fn print(&self, look: &Look, view: View) -> anyhow::Result<bool> {
        let text = match self.output {
            Output::Json => escaped(&look.line()?),
            Output::Table => lines(look, view, self.sort()).join("\n"),
        };
        let mut out = io::stdout().lock();
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(error).context("writing what was counted"),
        }
    }

    /// Returns whether it is shown on a terminal.
    ///
    /// # Errors
    ///
    /// When it is to be, and there is none.
    pub(super) fn is_live(&self) -> anyhow::Result<bool> {
        let live = !self.once && self.output == Output::Table;
        if live && !io::stdout().is_terminal() {
            bail!(
                "standard output is no terminal; print one table with --once, objects with -o json, or follow events with \
                 `egress-agent observe --follow`"
            );
        }
        Ok(live)
    }
}

/// Reads a number of seconds.
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
    let (how, view) = (&arguments.how, arguments.view.view());
    let (interval, namespace) = (how.interval, how.namespace.clone());
    let live = how.is_live()?;
    let mut before = sample(&path, namespace.as_deref())?;
    if arguments.until_eof {
        end_with_stdin()?;
    }
    if !live {
        if !how.once && !how.print(&Look::of(&before, None), view)? {
            return Ok(ExitCode::SUCCESS);
        }
        loop {
            thread::sleep(interval);
            let now = sample(&path, namespace.as_deref())?;
            if !how.print(&Look::of(&now, Some(&before)), view)? || how.once {
                return Ok(ExitCode::SUCCESS);
            }
            before = now;
        }
    }
    let first = Look::of(&before, None);
    let (tell, updates) = mpsc::channel(1);
    let look = move || {
        loop {
            thread::sleep(interval);
            let update = match sample(&path, namespace.as_deref()) {
                Ok(now) => {
                    let look = Look::of(&now, Some(&before));
                    before = now;
                    Update::Look(Box::new(look))
                }
                Err(error) => Update::Trouble(format!("{error:#}")),
            };
            // Nobody waits for it at the end.
            if tell.blocking_send(update).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("look".to_owned()).spawn(look).context("starting a thread")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(show(first, updates, view, how.sort()))?;
    Ok(ExitCode::SUCCESS)
}

/// What there is to show next.
pub(super) enum Update {
    Look(Box<Look>),
    /// Why there is none. What is shown stays.
    Trouble(String),
}

/// Shows what comes on the terminal until a key or a signal ends it, or nothing more comes. The screen is as it was once this returns,
/// however it does.
///
/// # Errors
///
/// When there is no terminal, or it cannot be used.
pub(super) async fn show(
    first: Look,
    updates: mpsc::Receiver<Update>,
    view: View,
    sort: Sort,
) -> anyhow::Result<()> {
    let terminal = io::stdout().as_fd().try_clone_to_owned().context("using the terminal")?;
    let mut shown = Shown { look: first, view, sort, from: 0, trouble: None };
    shown.follow(Screen::enter(terminal)?, updates).await
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
    look: Look,
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
    async fn follow(&mut self, screen: Screen, mut updates: mpsc::Receiver<Update>) -> anyhow::Result<()> {
        let mut ends = Ends::new().context("watching for signals")?;
        let mut resized = signal(SignalKind::window_change()).context("watching for the window's size")?;
        let mut keys = screen.keys().context("reading keys")?;
        loop {
            self.draw(&screen)?;
            tokio::select! {
                () = ends.recv() => return Ok(()),
                _ = resized.recv() => {}
                update = updates.recv() => match update {
                    None => return Ok(()),
                    Some(Update::Look(look)) => (self.look, self.trouble) = (*look, None),
                    Some(Update::Trouble(why)) => self.trouble = Some(why),
                },
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

    fn draw(&mut self, screen: &Screen) -> io::Result<()> {
        let sorted = (self.view, self.sort);
        screen.show(&table::frame(&self.look, sorted, &mut self.from, self.trouble.as_deref(), screen.size()))
    }
}
