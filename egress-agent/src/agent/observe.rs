//! Tells whoever asks what is judged: the last events, and those to come, at a socket for this user alone.
//!
//! Nobody who reads slowly holds up the agent or other readers. Each has a queue; what does not fit there is counted, and told in
//! the place where it is missing.

use std::{
    collections::{BTreeSet, VecDeque},
    future::Future,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use egress_common::verdict::Verdict;
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedReadHalf, unix::OwnedWriteHalf},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tracing::{debug, error, warn};

use crate::observe::{Filter, MAX_REQUEST, Message, Observation, Request};

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How many are served at once. Others are told so.
    clients: usize,
    /// How many events may wait for one of them.
    queue: usize,
    /// How long a client may take to say what it wants.
    request: Duration,
    /// How long it may take to read a line.
    line: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 16,
            queue: 256,
            request: Duration::from_secs(5),
            // A terminal may be held for a while.
            line: Duration::from_secs(60),
        }
    }
}

/// Turns the events about what is allowed on and off in the kernel, as [`Hub::wants_allowed`] says then. It runs on a thread of its
/// own.
pub(super) type Turn = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Returns which destinations the workloads of some namespaces sent to. It runs on a thread of its own.
pub(super) type Seen = Arc<dyn Fn(BTreeSet<String>) -> Result<Vec<Message>, String> + Send + Sync>;

/// Returns the node's counters. It runs on a thread of its own.
pub(super) type Counted = Arc<dyn Fn() -> Result<Vec<Message>, String> + Send + Sync>;

/// What clients ask of the agent besides events.
#[derive(Clone)]
pub(super) struct Answers {
    pub(super) turn: Turn,
    pub(super) seen: Seen,
    pub(super) counted: Counted,
}

/// The events that are kept, and who waits for more.
#[derive(Debug)]
pub(super) struct Hub {
    /// How many of each sort are kept.
    keep: usize,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many there were.
    count: u64,
    /// The newest denied and audited ones, each with its number.
    told: VecDeque<(u64, Arc<Observation>)>,
    /// The newest allowed ones, apart, so that these do not take the place of those.
    allowed: VecDeque<(u64, Arc<Observation>)>,
    clients: Vec<Client>,
    next_client: u64,
}

#[derive(Debug)]
struct Client {
    number: u64,
    filter: Filter,
    queue: mpsc::Sender<Queued>,
    /// How many did not fit into the queue since the last that did.
    lost: u64,
}

/// An event for a client.
#[derive(Debug)]
struct Queued {
    /// How many are missing before it.
    lost: u64,
    event: Arc<Observation>,
}

/// A client's place among those who wait for events. Given up with this.
#[derive(Debug)]
struct Place {
    hub: Arc<Hub>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hub.state().clients.retain(|client| client.number != self.number);
    }
}

impl Hub {
    /// Returns a hub that keeps so many events.
    pub(super) fn new(keep: usize) -> Self {
        Self::with_limits(keep, Limits::default())
    }

    fn with_limits(keep: usize, limits: Limits) -> Self {
        Self { keep, limits, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What it guards is whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether there is any use in an event.
    pub(super) fn listens(&self) -> bool {
        self.keep > 0 || !self.state().clients.is_empty()
    }

    /// Returns whether somebody waits for what is allowed.
    pub(super) fn wants_allowed(&self) -> bool {
        self.state().clients.iter().any(|client| client.filter.wants_allowed())
    }

    /// Keeps an event and hands it to those who want it. It never waits.
    pub(super) fn publish(&self, event: Observation) {
        let event = Arc::new(event);
        let mut state = self.state();
        let state = &mut *state;
        let number = state.count;
        state.count += 1;
        let kept = if event.verdict == Verdict::Allow { &mut state.allowed } else { &mut state.told };
        if self.keep > 0 {
            if kept.len() == self.keep {
                kept.pop_front();
            }
            kept.push_back((number, Arc::clone(&event)));
        }
        for client in state.clients.iter_mut().filter(|client| client.filter.admits(&event)) {
            let queued = Queued { lost: client.lost, event: Arc::clone(&event) };
            match client.queue.try_send(queued) {
                Ok(()) => client.lost = 0,
                // Or the client has gone, and its place goes in a moment.
                Err(_full) => client.lost += 1,
            }
        }
    }

    /// Returns the newest `last` events that are wanted and still kept, oldest first.
    fn newest(&self, filter: &Filter, last: usize) -> Vec<Arc<Observation>> {
        newest(&self.state(), filter, last)
    }

    /// Returns the newest events as [`Hub::newest`] does, and a place for all after them.
    fn join(
        self: &Arc<Self>,
        filter: Filter,
        last: usize,
    ) -> (Vec<Arc<Observation>>, mpsc::Receiver<Queued>, Place) {
        let (queue, events) = mpsc::channel(self.limits.queue);
        let mut state = self.state();
        let before = newest(&state, &filter, last);
        let number = state.next_client;
        state.next_client += 1;
        state.clients.push(Client { number, filter, queue, lost: 0 });
        drop(state);
        (before, events, Place { hub: Arc::clone(self), number })
    }

    /// Returns how many events a client lost after the last one in its queue.
    fn take_lost(&self, number: u64) -> u64 {
        let mut state = self.state();
        let client = state.clients.iter_mut().find(|client| client.number == number);
        client.map_or(0, |client| std::mem::take(&mut client.lost))
    }
}

fn newest(state: &State, filter: &Filter, last: usize) -> Vec<Arc<Observation>> {
    let of = |kept: &VecDeque<(u64, Arc<Observation>)>| -> Vec<(u64, Arc<Observation>)> {
        kept.iter().rev().filter(|(_, event)| filter.admits(event)).take(last).cloned().collect()
    };
    let mut both = of(&state.told);
    both.extend(of(&state.allowed));
    both.sort_unstable_by_key(|(number, _)| *number);
    let from = both.len().saturating_sub(last);
    both.drain(from..).map(|(_, event)| event).collect()
}

/// Serves clients until `stopped`. That it ends early ends nothing else.
pub(super) fn serve(
    listener: UnixListener,
    hub: Arc<Hub>,
    answers: Answers,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        // Dropped at the end, and every client with it.
        let mut clients = JoinSet::new();
        tokio::pin!(stopped);
        loop {
            tokio::select! {
                () = &mut stopped => break,
                Some(_ended) = clients.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if clients.len() < hub.limits.clients => {
                        let (hub, answers) = (Arc::clone(&hub), answers.clone());
                        clients.spawn(async move {
                            if let Err(failure) = attend(stream, &hub, &answers).await {
                                debug!(error = %failure, "a client of the events has gone");
                            }
                        });
                    }
                    Ok((stream, _)) => refuse(&stream, hub.limits.clients),
                    Err(failure) => {
                        // Descriptors come back when others give theirs up.
                        error!(error = %failure, "a client of the events cannot be accepted");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
            }
        }
    })
}

/// Tells a client that there is no place for it. Its socket is new, so a line fits; what does not is not waited for.
fn refuse(stream: &UnixStream, clients: usize) {
    let message: Message =
        Message::Error(format!("{clients} clients are served already, and no more at once"));
    if let Err(failure) = line(&message).and_then(|line| stream.try_write(&line)) {
        debug!(error = %failure, "a client could not be told that there is no place");
    }
}

fn line<E: Serialize>(message: &Message<E>) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// One client: what it asks, and what it is told.
async fn attend(stream: UnixStream, hub: &Arc<Hub>, answers: &Answers) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::with_capacity(1024, reader);
    let request = match timeout(hub.limits.request, request(&mut reader)).await {
        Ok(Ok(request)) => request,
        Ok(Err(why)) => return refuse_late(&mut writer, why, hub.limits.line).await,
        Err(_elapsed) => {
            let why = "no request came in time".to_owned();
            return refuse_late(&mut writer, why, hub.limits.line).await;
        }
    };
    let turn = &answers.turn;
    let (last, follow, filter) = match request {
        Request::Observe { last, follow, filter } => (last, follow, filter),
        Request::Flows { namespaces } => {
            let seen = Arc::clone(&answers.seen);
            return answer(&mut writer, move || seen(namespaces), hub.limits.line).await;
        }
        Request::Counters => {
            let counted = Arc::clone(&answers.counted);
            return answer(&mut writer, move || counted(), hub.limits.line).await;
        }
    };
    if !follow {
        for event in hub.newest(&filter, last) {
            tell(&mut writer, &Message::Event(&*event), hub.limits.line).await?;
        }
        return Ok(());
    }
    let allowed = filter.wants_allowed();
    let (before, events, place) = hub.join(filter, last);
    if allowed && let Err(why) = turned(turn).await {
        return refuse_late(&mut writer, why, hub.limits.line).await;
    }
    let followed = follow_events(&mut reader, &mut writer, before, events, &place).await;
    drop(place);
    if allowed && let Err(why) = turned(turn).await {
        warn!(error = why, "events about what is allowed go on, though nobody waits for them");
    }
    followed
}

/// Answers with what `work` returns.
async fn answer(
    writer: &mut OwnedWriteHalf,
    work: impl FnOnce() -> Result<Vec<Message>, String> + Send + 'static,
    limit: Duration,
) -> io::Result<()> {
    match apart(work).await {
        Ok(lines) => {
            for line in lines {
                tell(writer, &line, limit).await?;
            }
            Ok(())
        }
        Err(why) => refuse_late(writer, why, limit).await,
    }
}

/// Tells a client why there is no more.
async fn refuse_late(writer: &mut OwnedWriteHalf, why: String, limit: Duration) -> io::Result<()> {
    tell::<&Observation>(writer, &Message::Error(why), limit).await
}

async fn turned(turn: &Turn) -> Result<(), String> {
    let turn = Arc::clone(turn);
    apart(move || turn()).await
}

/// Does something on a thread of its own.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let result = tokio::task::spawn_blocking(work).await;
    result.unwrap_or_else(|error| Err(error.to_string()))
}

/// Reads the request.
async fn request(reader: &mut BufReader<OwnedReadHalf>) -> Result<Request, String> {
    let mut line = Vec::new();
    let limit = MAX_REQUEST as u64;
    match (&mut *reader).take(limit).read_until(b'\n', &mut line).await {
        Err(failure) => return Err(format!("the request cannot be read: {failure}")),
        Ok(_) if line.last() != Some(&b'\n') && line.len() >= MAX_REQUEST => {
            return Err(format!("the request is longer than {MAX_REQUEST} octets"));
        }
        Ok(_) => {}
    }
    serde_json::from_slice(&line).map_err(|error| format!("this is no request: {error}"))
}

/// Tells what was, and then what comes, until the client goes.
async fn follow_events(
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    before: Vec<Arc<Observation>>,
    mut events: mpsc::Receiver<Queued>,
    place: &Place,
) -> io::Result<()> {
    let limit = place.hub.limits.line;
    for event in before {
        tell(writer, &Message::Event(&*event), limit).await?;
    }
    loop {
        let queued = tokio::select! {
            biased;
            // A client says nothing more: what can be read is the end, or a client that is none.
            _said = reader.fill_buf() => return Ok(()),
            queued = events.recv() => queued,
        };
        let Some(Queued { lost, event }) = queued else { return Ok(()) };
        if lost > 0 {
            tell::<&Observation>(writer, &Message::Lost(lost), limit).await?;
        }
        tell(writer, &Message::Event(&*event), limit).await?;
        if events.is_empty() {
            let lost = place.hub.take_lost(place.number);
            if lost > 0 {
                tell::<&Observation>(writer, &Message::Lost(lost), limit).await?;
            }
        }
    }
}

/// Writes a line.
async fn tell<E: Serialize>(
    writer: &mut OwnedWriteHalf,
    message: &Message<E>,
    limit: Duration,
) -> io::Result<()> {
    match timeout(limit, writer.write_all(&line(message)?)).await {
        Ok(written) => written,
        Err(_elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use proptest::prelude::*;
    use tokio::io::{AsyncBufRead, Lines};

    use super::*;
    use crate::observe::tests::denial;

    const LIMITS: Limits =
        Limits { clients: 3, queue: 4, request: Duration::from_millis(300), line: Duration::from_secs(5) };

    /// A hub that serves at a socket.
    struct Served {
        hub: Arc<Hub>,
        turns: Arc<AtomicUsize>,
        folder: tempfile::TempDir,
        stop: tokio::sync::oneshot::Sender<()>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Served {
        fn new(keep: usize) -> Self {
            Self::turning(keep, |turns| {
                turns.fetch_add(1, Ordering::SeqCst);
                Ok(())
            })
        }

        fn turning(keep: usize, turn: fn(&AtomicUsize) -> Result<(), String>) -> Self {
            let hub = Arc::new(Hub::with_limits(keep, LIMITS));
            let folder = tempfile::tempdir().expect("a folder");
            let listener = UnixListener::bind(folder.path().join("s")).expect("the folder can be written");
            let (stop, stopped) = tokio::sync::oneshot::channel();
            let turns = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&turns);
            let turn: Turn = Arc::new(move || turn(&counter));
            let seen: Seen = Arc::new(|namespaces| match namespaces.is_empty() {
                true => Err("name one".to_owned()),
                false => Ok((0..1000).map(Message::LeftOut).collect()),
            });
            let counted: Counted = Arc::new(|| Ok(vec![Message::Node("node-a".to_owned())]));
            let stopped = async { drop(stopped.await) };
            let task = serve(listener, Arc::clone(&hub), Answers { turn, seen, counted }, stopped);
            Self { hub, turns, folder, stop, task }
        }

        fn path(&self) -> std::path::PathBuf {
            self.folder.path().join("s")
        }

        fn publish(&self, port: u16) {
            self.hub.publish(denial("192.0.2.9", port));
        }

        /// Waits until so many clients wait for events.
        async fn waits_for(&self, clients: usize) {
            while self.hub.state().clients.len() != clients {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    async fn send(path: &Path, request: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(path).await.expect("it listens");
        stream.write_all(request).await.expect("it reads");
        stream
    }

    async fn ask(path: &Path, last: usize, follow: bool, filter: Filter) -> UnixStream {
        let request = Request::Observe { last, follow, filter };
        let mut request = serde_json::to_vec(&request).expect("it is JSON");
        request.push(b'\n');
        send(path, &request).await
    }

    fn lines(stream: UnixStream) -> Lines<BufReader<UnixStream>> {
        BufReader::new(stream).lines()
    }

    async fn next<R: AsyncBufRead + Unpin>(lines: &mut Lines<R>) -> Option<Message> {
        let line = timeout(Duration::from_secs(10), lines.next_line()).await.expect("an answer comes");
        let line = match line {
            // The end, where something the client wrote was not read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
            line => line.expect("it is text"),
        };
        line.map(|line| serde_json::from_str(&line).expect("it is a message"))
    }

    /// Returns the ports of the events up to the end.
    async fn ports(stream: UnixStream) -> Vec<u16> {
        let mut lines = lines(stream);
        let mut ports = Vec::new();
        while let Some(message) = next(&mut lines).await {
            let Message::Event(event) = message else { panic!("{message:?} is no event") };
            ports.push(event.port);
        }
        ports
    }

    async fn refused(stream: UnixStream) -> String {
        let mut lines = lines(stream);
        let message = next(&mut lines).await;
        let Some(Message::Error(why)) = message else { panic!("{message:?} is no error") };
        assert_eq!(next(&mut lines).await, None, "there is no more");
        why
    }

    #[tokio::test]
    async fn the_last_events_are_told_in_their_order_and_no_more_are_kept() {
        let served = Served::new(5);
        for port in 1..=9 {
            served.publish(port);
        }
        for port in 10..=12 {
            let allowed = Observation { verdict: Verdict::Allow, ..denial("192.0.2.9", port) };
            served.hub.publish(allowed);
        }
        let ask = |last, filter| ask_all(served.path(), last, filter);
        assert_eq!(ask(100, Filter::default()).await, [5, 6, 7, 8, 9], "allowed ones take nobody's place");
        assert_eq!(ask(2, Filter::default()).await, [8, 9]);
        assert_eq!(ask(0, Filter::default()).await, [0; 0]);
        let all = BTreeSet::from(["allow".to_owned(), "deny".to_owned()]);
        assert_eq!(ask(4, Filter { verdicts: all, ..Filter::default() }).await, [9, 10, 11, 12]);
        let six = Filter { ports: BTreeSet::from([6]), ..Filter::default() };
        assert_eq!(ask(1, six).await, [6]);
    }

    async fn ask_all(path: std::path::PathBuf, last: usize, filter: Filter) -> Vec<u16> {
        ports(ask(&path, last, false, filter).await).await
    }

    #[tokio::test]
    async fn who_follows_is_told_what_comes_and_nothing_twice() {
        let served = Served::new(5);
        served.publish(1);
        let mut first = lines(ask(&served.path(), 10, true, Filter::default()).await);
        let eighty = Filter { ports: BTreeSet::from([80]), ..Filter::default() };
        let mut second = lines(ask(&served.path(), 10, true, eighty).await);
        served.waits_for(2).await;
        served.publish(2);
        served.publish(80);
        for wanted in [1, 2, 80] {
            let Some(Message::Event(event)) = next(&mut first).await else { panic!("no event") };
            assert_eq!(event.port, wanted);
        }
        let Some(Message::Event(event)) = next(&mut second).await else { panic!("no event") };
        assert_eq!(event.port, 80);
        drop(first);
        served.waits_for(1).await;
        served.stop.send(()).expect("it serves");
        served.task.await.expect("it ends");
        assert_eq!(next(&mut second).await, None, "the agent has ended");
    }

    #[tokio::test]
    async fn a_slow_client_loses_events_and_is_told_how_many_and_where() {
        let served = Served::new(5);
        let slow = ask(&served.path(), 0, true, Filter::default()).await;
        served.waits_for(1).await;
        // Nothing of this waits for the client. More than its queue and its socket together can hold.
        const EVENTS: u64 = 20_000;
        for number in 0..EVENTS {
            served.publish(u16::try_from(number % 60_000).expect("it fits"));
            if number % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let mut slow = lines(slow);
        let (mut told, mut lost, mut notices) = (0, 0, 0);
        while told + lost < EVENTS {
            match next(&mut slow).await.expect("it is served") {
                Message::Event(event) => {
                    assert_eq!(u64::from(event.port), told + lost, "what is missing was told before");
                    told += 1;
                }
                Message::Lost(count) => {
                    lost += count;
                    notices += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(lost > 1000 && notices > 0, "{told} told, {lost} lost in {notices} places");
        served.publish(7);
        assert!(matches!(next(&mut slow).await, Some(Message::Event(event)) if event.port == 7));
    }

    #[tokio::test]
    async fn one_client_too_many_is_told_so_and_a_place_given_up_is_free() {
        let served = Served::new(5);
        let mut clients = Vec::new();
        for count in 1..=LIMITS.clients {
            clients.push(ask(&served.path(), 0, true, Filter::default()).await);
            served.waits_for(count).await;
        }
        let one_more = UnixStream::connect(served.path()).await.expect("it listens");
        assert!(refused(one_more).await.contains("3 clients"));
        drop(clients.pop());
        served.waits_for(LIMITS.clients - 1).await;
        // Its task ends a moment after its place is given up.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let _again = ask(&served.path(), 0, true, Filter::default()).await;
        served.waits_for(LIMITS.clients).await;
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused_with_a_reason() {
        let served = Served::new(5);
        let long = vec![b' '; MAX_REQUEST + 1];
        let requests: [(&[u8], &str); 6] = [
            (b"\n", "no request"),
            (b"GET /status HTTP/1.1\r\n\r\n", "no request"),
            (b"{\"observe\":{\"last\":1,\"follow\":false,\"more\":1}}\n", "unknown field"),
            (b"{\"observe\":{\"last\":-1,\"follow\":false}}\n", "no request"),
            (b"\xff\xfe\n", "no request"),
            (&long, "longer than"),
        ];
        for (request, why) in requests {
            let said = refused(send(&served.path(), request).await).await;
            assert!(said.contains(why), "{said}");
        }
        let silent = UnixStream::connect(served.path()).await.expect("it listens");
        assert!(refused(silent).await.contains("in time"));
    }

    #[tokio::test]
    async fn allowed_events_are_turned_on_for_those_who_want_them() {
        let served = Served::new(5);
        let allow = || Filter { verdicts: BTreeSet::from(["allow".to_owned()]), ..Filter::default() };
        let plain = ask(&served.path(), 0, true, Filter::default()).await;
        served.waits_for(1).await;
        assert!(!served.hub.wants_allowed());
        let wants = ask(&served.path(), 0, true, allow()).await;
        served.waits_for(2).await;
        assert!(served.hub.wants_allowed());
        drop(wants);
        served.waits_for(1).await;
        assert!(!served.hub.wants_allowed());
        while served.turns.load(Ordering::SeqCst) != 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(plain);
        let unable = Served::turning(5, |_| Err("the kernel will not".to_owned()));
        let why = refused(ask(&unable.path(), 0, true, allow()).await).await;
        assert_eq!(why, "the kernel will not");
    }

    #[tokio::test]
    async fn flows_are_told_to_those_who_ask_and_errors_too() {
        let served = Served::new(5);
        let ask = async |namespaces: &[&str]| {
            let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
            let mut request = serde_json::to_vec(&Request::Flows { namespaces }).expect("it is JSON");
            request.push(b'\n');
            send(&served.path(), &request).await
        };
        let mut lines = lines(ask(&["shop"]).await);
        for number in 0..1000 {
            assert_eq!(next(&mut lines).await, Some(Message::LeftOut(number)));
        }
        assert_eq!(next(&mut lines).await, None);
        assert_eq!(refused(ask(&[]).await).await, "name one");
        let mut counted = self::lines(send(&served.path(), b"\"counters\"\n").await);
        assert_eq!(next(&mut counted).await, Some(Message::Node("node-a".to_owned())));
        assert_eq!(next(&mut counted).await, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever comes in at the socket, the client is answered or let go, and the next one is served.
        #[test]
        fn no_input_harms_the_server(
            noise in proptest::collection::vec(any::<u8>(), 0..3000),
            // Of a real request, cut anywhere and changed anywhere.
            cut in 0_usize..120,
            at in 0_usize..120,
            octet in any::<u8>(),
            real in any::<bool>(),
        ) {
            let mut input = noise;
            if real {
                let request = Request::Observe { last: 3, follow: true, filter: Filter::default() };
                input = serde_json::to_vec(&request).expect("it is JSON");
                input.push(b'\n');
                let place = at.min(input.len() - 1);
                input[place] = octet;
                input.truncate(cut);
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let served = Served::new(5);
                let mut stream = UnixStream::connect(served.path()).await.expect("it listens");
                // It may be refused before all is written.
                _ = stream.write_all(&input).await;
                _ = stream.shutdown().await;
                let mut answer = Vec::new();
                let read = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
                prop_assert!(read.is_ok(), "the client is let go");
                for line in String::from_utf8(answer).expect("answers are text").lines() {
                    prop_assert!(serde_json::from_str::<Message>(line).is_ok(), "{line}");
                }
                served.publish(443);
                prop_assert_eq!(ask_all(served.path(), 1, Filter::default()).await, [443]);
                Ok(())
            })?;
        }
    }
}
