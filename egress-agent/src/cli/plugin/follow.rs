//! One command in the pod of each agent and, for those who follow, in that of its successor and on nodes that join.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsString,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, BufReader},
    process::Child,
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    cluster::{Agent, Cluster, Whose},
    merge::{cut, next_line},
};

/// How long a command must run to count as heard that has said nothing.
const SETTLED: Duration = Duration::from_secs(3);
/// How often new agents are looked for, unless somebody says otherwise.
pub const LOOK_EVERY: Duration = Duration::from_secs(15);
/// No two looks at the cluster's pods are closer.
const PAUSE: Duration = Duration::from_secs(1);
/// How long it takes at most until a node that is not heard is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How many usual pauses between two looks a node is waited for that has no agent.
const FORGOTTEN: u32 = 4;
/// How many complaints of one command are told.
const COMPLAINTS: usize = 10;

/// How many lines of one command may be something else than what was asked for.
const STRANGE: usize = 100;

/// Returns a command, for one of the first agents or for one that came later.
pub type Command = dyn Fn(bool) -> Vec<OsString>;

/// What is run and how.
pub struct Plan<T> {
    /// Returns what to run in an agent's pod.
    pub command: Box<Command>,
    /// Which agents.
    pub whose: Whose,
    /// Reads a line; nothing if it is not what was asked for.
    pub read: fn(&str) -> Option<T>,
    /// Whether the command is run again where it ends, and how often new agents are looked for.
    pub follow: Option<Duration>,
    /// How long the command takes before it says anything, besides the time it may take.
    pub pause: Duration,
    /// How long a line may be, in bytes.
    pub longest: usize,
    /// How many lines a command may say.
    pub most: usize,
    /// How many lines may wait.
    pub waiting: usize,
}

/// What is heard of the agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard<T> {
    /// A line of a node's agent.
    Line {
        /// The node.
        node: Arc<str>,
        /// What it says.
        what: T,
        /// Whether the command was started after the first ones.
        later: bool,
    },
    /// Something that people are to be told.
    Notice(String),
}

/// The agents that are asked.
pub struct Agents<T> {
    cluster: Arc<Cluster>,
    plan: Plan<T>,
    nodes: BTreeMap<Arc<str>, Node>,
    say: mpsc::Sender<(Arc<str>, u64, Said)>,
    said: mpsc::Receiver<(Arc<str>, u64, Said)>,
    /// The number of the last command.
    count: u64,
    looking: Option<JoinHandle<anyhow::Result<Vec<Agent>>>>,
    looked: Instant,
    /// Why the last look failed, and whether more nodes were found than may be asked: each is told once.
    trouble: Option<String>,
    too_many: bool,
    /// What is told before anything else.
    next: VecDeque<Heard<T>>,
    /// Whether each command that has ended has done its work.
    well: bool,
    /// Whether any was heard.
    ever: bool,
}

/// A node, and the command that runs there or ran last.
struct Node {
    pod: String,
    number: u64,
    /// Began, or ended where none runs.
    since: Instant,
    task: Option<JoinHandle<()>>,
    /// Whether this command was heard.
    heard: bool,
    later: bool,
    /// When it was heard last, while nothing runs that is heard.
    silent: Option<Instant>,
    pause: Duration,
    /// Lines of this command, and those of them that are not what was asked for.
    lines: usize,
    strange: usize,
    /// Its complaints, and the last that was told.
    complaints: usize,
    told: Option<String>,
}

enum Said {
    Line(String),
    Complaint(String),
    /// Whether it ended well, or why it was ended.
    Ended(Result<bool, String>),
}

impl<T> Agents<T> {
    /// Asks these agents.
    pub fn start(cluster: Arc<Cluster>, agents: &[Agent], plan: Plan<T>) -> anyhow::Result<Self> {
        let (say, said) = mpsc::channel(plan.waiting);
        let now = Instant::now();
        let mut all = Self {
            cluster,
            plan,
            nodes: BTreeMap::new(),
            say,
            said,
            count: 0,
            looking: None,
            looked: now,
            trouble: None,
            too_many: false,
            next: VecDeque::new(),
            well: true,
            ever: false,
        };
        for agent in agents {
            all.begin(agent, false)?;
        }
        Ok(all)
    }

    /// Returns the nodes that are asked, and whether each is heard now.
    pub fn nodes(&self) -> impl Iterator<Item = (&Arc<str>, bool)> {
        self.nodes.iter().map(|(name, node)| (name, node.task.is_some()))
    }

    /// Returns the nodes that are not heard now.
    pub fn silent(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.iter().filter(|(_, node)| node.task.is_none()).map(|(name, _)| name)
    }

    /// Returns whether all was heard that was to be.
    pub fn is_well(&self) -> bool {
        self.well && (self.plan.follow.is_none() || !self.nodes.is_empty() && self.silent().next().is_none())
    }

    /// Waits for what is heard next; nothing when all have ended and nothing more can come.
    pub async fn next(&mut self) -> Option<Heard<T>> {
        loop {
            if let Some(heard) = self.next.pop_front() {
                return Some(heard);
            }
            if self.nodes.values().all(|node| node.task.is_none())
                && (self.plan.follow.is_none() || !self.ever)
                && self.said.is_empty()
            {
                return None;
            }
            let settled = self.settles();
            let looks = self.looks();
            tokio::select! {
                Some((node, number, said)) = self.said.recv() => self.hear(&node, number, said),
                () = sleep_until(settled.unwrap_or(looks)), if settled.is_some() => self.settle(),
                () = sleep_until(looks), if self.plan.follow.is_some() && self.looking.is_none() => self.look(),
                found = async { self.looking.as_mut().expect("it was asked").await }, if self.looking.is_some() => {
                    self.looking = None;
                    self.looked = Instant::now();
                    match found {
                        Ok(Ok(agents)) => self.found(&agents),
                        Ok(Err(error)) => self.tell_trouble(format!("{error:#}")),
                        Err(error) => self.tell_trouble(error.to_string()),
                    }
                }
            }
        }
    }

    fn begin(&mut self, agent: &Agent, later: bool) -> anyhow::Result<()> {
        let child = self.cluster.start(agent, &(self.plan.command)(later))?;
        self.count += 1;
        let name: Arc<str> = agent.node.as_str().into();
        let (number, limit) =
            (self.count, self.plan.follow.is_none().then_some(self.cluster.timeout + self.plan.pause));
        let listening = listen(child, Arc::clone(&name), number, self.say.clone(), self.plan.longest, limit);
        let task = Some(tokio::spawn(listening));
        let (pod, since) = (agent.pod.clone(), Instant::now());
        let new = Node {
            pod,
            number,
            since,
            task,
            heard: false,
            later,
            silent: None,
            pause: PAUSE,
            lines: 0,
            strange: 0,
            complaints: 0,
            told: None,
        };
        match self.nodes.get_mut(&name) {
            None => drop(self.nodes.insert(name, new)),
            Some(known) => {
                let before = std::mem::replace(known, new);
                (known.silent, known.pause, known.told) = (before.silent, before.pause, before.told);
            }
        }
        Ok(())
    }

    fn hear(&mut self, name: &Arc<str>, number: u64, said: Said) {
        let Some(node) = self.nodes.get_mut(name).filter(|node| node.number == number) else { return };
        match said {
            Said::Line(line) => {
                node.lines += 1;
                if node.lines > self.plan.most {
                    return self.give_up(name, "it says more than was asked for");
                }
                let Some(what) = (self.plan.read)(&line) else {
                    node.strange += 1;
                    return match node.strange {
                        1 => self.say(name, "it says what was not asked for; is it another version?"),
                        STRANGE => self.give_up(name, "it goes on saying what was not asked for"),
                        _ => {}
                    };
                };
                let later = node.later;
                self.was_heard(name);
                self.next.push_back(Heard::Line { node: Arc::clone(name), what, later });
            }
            Said::Complaint(line) => self.complain(name, &line),
            Said::Ended(well) => {
                node.task = None;
                if let Err(why) = &well {
                    self.say(name, why);
                }
                self.ended(name, well == Ok(true));
            }
        }
    }

    /// Tells what a command complains about, up to a number of lines.
    fn complain(&mut self, name: &Arc<str>, complaint: &str) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.complaints += 1;
        if node.complaints <= COMPLAINTS {
            self.say(name, complaint);
        }
    }

    /// Tells something about a node. That a try fails as the one before is no news.
    fn say(&mut self, name: &Arc<str>, what: &str) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        if node.silent.is_none() || node.told.as_deref() != Some(what) {
            self.next.push_back(Heard::Notice(format!("{}: {}", cut(name), cut(what))));
        }
        node.told = Some(what.to_owned());
    }

    /// Ends a command that says what nobody asked for.
    fn give_up(&mut self, name: &Arc<str>, why: &str) {
        self.say(name, why);
        let Some(node) = self.nodes.get_mut(name) else { return };
        if let Some(task) = node.task.take() {
            task.abort();
        }
        // What it has still said is listened to no more, and it is not tried again at once.
        (node.number, node.heard) = (0, false);
        self.ended(name, false);
    }

    fn ended(&mut self, name: &Arc<str>, well: bool) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let now = Instant::now();
        if self.plan.follow.is_none() {
            if !well || node.strange > 0 {
                self.well = false;
                self.next.push_back(Heard::Notice(format!("{}: no more is heard of this node", cut(name))));
            }
            return;
        }
        node.pause = if node.heard { PAUSE } else { (node.pause * 2).min(LONGEST_PAUSE) };
        node.since = now;
        if node.silent.is_none() {
            node.silent = Some(now);
            let pod = cut(&node.pod);
            let notice = format!(
                "{}: no more is heard of this node, whose agent was {pod}; looking for its successor",
                cut(name)
            );
            self.next.push_back(Heard::Notice(notice));
        }
    }

    /// Takes note that a node's command does its work.
    fn was_heard(&mut self, name: &Arc<str>) {
        let Some(node) = self.nodes.get_mut(name).filter(|node| !node.heard) else { return };
        (node.heard, node.told, self.ever) = (true, None, true);
        let (pod, node_name) = (cut(&node.pod), cut(name));
        if let Some(silent) = node.silent.take() {
            let seconds = silent.elapsed().as_secs().max(1);
            let notice = format!(
                "{node_name}: heard again after {seconds}s, of the agent {pod}; what it no longer has of that time is missing"
            );
            self.next.push_back(Heard::Notice(notice));
        } else if node.later {
            let notice = format!("{node_name}: heard from now on, of the agent {pod}");
            self.next.push_back(Heard::Notice(notice));
        }
    }

    /// Returns when the next command will have run long enough to count as heard.
    fn settles(&self) -> Option<Instant> {
        let waits = self
            .nodes
            .values()
            .filter(|node| self.plan.follow.is_some() && node.task.is_some() && !node.heard);
        waits.map(|node| node.since + SETTLED).min()
    }

    fn settle(&mut self) {
        let has_run = |node: &Node| node.task.is_some() && !node.heard && node.since.elapsed() >= SETTLED;
        let names: Vec<Arc<str>> =
            self.nodes.iter().filter(|(_, node)| has_run(node)).map(|(name, _)| Arc::clone(name)).collect();
        for name in names {
            self.was_heard(&name);
        }
    }

    /// Returns when to look at the pods of the cluster again.
    fn looks(&self) -> Instant {
        let usual = self.looked + self.plan.follow.unwrap_or(PAUSE);
        let silent = self.nodes.values().filter(|node| node.task.is_none());
        let soonest = silent.map(|node| node.since + node.pause).min();
        soonest.map_or(usual, |soonest| soonest.min(usual)).max(self.looked + PAUSE)
    }

    fn look(&mut self) {
        let (cluster, whose) = (Arc::clone(&self.cluster), self.plan.whose.clone());
        self.looking = Some(tokio::spawn(async move { cluster.find(&whose).await }));
    }

    fn tell_trouble(&mut self, trouble: String) {
        if self.trouble.as_ref() != Some(&trouble) {
            self.next.push_back(Heard::Notice(format!("agents cannot be looked for: {}", cut(&trouble))));
        }
        self.trouble = Some(trouble);
    }

    /// Takes up the agents of nodes that are not heard and of those that are new.
    fn found(&mut self, agents: &[Agent]) {
        self.trouble = None;
        for agent in agents {
            match self.nodes.get(agent.node.as_str()) {
                Some(node) if node.task.is_some() || node.since.elapsed() < node.pause => continue,
                Some(_) => {}
                None if self.nodes.len() >= self.cluster.max_agents => {
                    if !self.too_many {
                        let notice = format!(
                            "{}: not asked, nor are others that come later: {} agents are as many as --max-agents allows",
                            cut(&agent.node),
                            self.nodes.len()
                        );
                        self.next.push_back(Heard::Notice(notice));
                    }
                    self.too_many = true;
                    continue;
                }
                None => {}
            }
            if let Err(error) = self.begin(agent, true) {
                self.tell_trouble(format!("{error:#}"));
            }
        }
        let forgotten = self.plan.follow.unwrap_or(PAUSE) * FORGOTTEN;
        let there = |name: &str| agents.iter().any(|agent| agent.node == name);
        let gone = |name: &str, node: &Node| {
            node.task.is_none()
                && !there(name)
                && node.silent.is_some_and(|silent| silent.elapsed() >= forgotten)
        };
        let gone: Vec<Arc<str>> = self
            .nodes
            .iter()
            .filter(|(name, node)| gone(name, node))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        for name in gone {
            self.nodes.remove(&name);
            self.too_many = false;
            let seconds = forgotten.as_secs();
            let notice = format!(
                "{}: no agent was there for {seconds}s; it is asked again when there is one",
                cut(&name)
            );
            self.next.push_back(Heard::Notice(notice));
        }
    }
}

/// Passes on what a kubectl writes, until it ends or has had its time.
async fn listen(
    mut child: Child,
    node: Arc<str>,
    number: u64,
    say: mpsc::Sender<(Arc<str>, u64, Said)>,
    longest: usize,
    limit: Option<Duration>,
) {
    // Held open until the end: it ends the other side.
    let stdin = child.stdin.take();
    let stdout = child.stdout.take().expect("it is piped");
    let stderr = child.stderr.take().expect("it is piped");
    let tell = |said| say.send((Arc::clone(&node), number, said));
    let all = async {
        let lines = pass(stdout, longest, |line| tell(Said::Line(line)));
        let complaints = pass(stderr, longest, |line| tell(Said::Complaint(line)));
        tokio::try_join!(lines, complaints)?;
        Ok(child.wait().await.is_ok_and(|status| status.success()))
    };
    let ended = match limit {
        None => all.await,
        Some(limit) => timeout(limit, all)
            .await
            .unwrap_or_else(|_elapsed| Err(format!("it has not said all in {}s", limit.as_secs()))),
    };
    drop(stdin);
    // Nobody listens any more at the end.
    drop(tell(Said::Ended(ended)).await);
}

/// Passes on lines up to their end, or until nobody listens.
async fn pass<E, F: Future<Output = Result<(), E>>>(
    from: impl AsyncRead + Unpin,
    longest: usize,
    say: impl Fn(String) -> F,
) -> Result<(), String> {
    let mut from = BufReader::new(from);
    while let Some(line) = next_line(&mut from, longest).await.map_err(|error| error.to_string())? {
        if say(line).await.is_err() {
            break;
        }
    }
    Ok(())
}
