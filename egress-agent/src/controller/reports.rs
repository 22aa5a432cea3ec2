//! Puts together what nodes tell of policies, for metrics and as a Report in each namespace.
//!
//! It looks at everything no more often than every half minute, and writes only what is new, a bounded number of Reports at a time. A
//! Report is written over the version that was read, so nothing of somebody else's is taken over, and two controllers do not undo each
//! other's.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use serde_json::Value;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::{
    ABSENT, Clock, Lead,
    lease::FIELD_MANAGER,
    policies::{List, is_terminating},
};
use crate::{
    k8s::{
        generated::MANAGED_BY,
        summary::{LABEL, Summary, plain},
    },
    overview::{
        self, CONTROLLER, Facts, Nodes, Overview, State,
        report::{self, Dialect, NAME, Report},
    },
    policy::cluster::NsName,
};

/// After so many times that, it is looked at what the API server has: which nodes, which kinds of Report, which Reports.
const LOOK: u32 = 10;
/// How many Reports are written each time; the rest wait for the next.
const MOST_WRITES: usize = 100;
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Nodes that take no agent.
const NO_AGENT: &str = "eks.amazonaws.com/compute-type!=fargate,kubernetes.io/os!=windows";
/// How many Reports one page of a list has: each may have the 1.5 MiB of an object in etcd.
const PAGE: u32 = 10;
/// How many of the writes each time are kept for Reports to be deleted.
const MOST_DELETES: usize = 20;
/// After so many failures each time the rest waits for the next.
const MOST_FAILURES: usize = 5;
/// How long a Report waits that could not be written: so many times the time between two looks after the first failure, and at most.
const PAUSES: (u32, u32) = (2, 32);

/// Which Reports are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Those the API server knows; of both, the newer.
    Auto,
    /// Those, where the API server knows them.
    Only(Dialect),
    /// None.
    Off,
}

/// How to report.
#[derive(Clone, Debug)]
pub struct Options {
    /// The namespace that agents write their summaries in.
    pub summaries: String,
    /// Which Reports are written.
    pub choice: Choice,
    /// Which controller this is.
    pub instance: String,
    /// The time between two looks at what nodes tell.
    pub every: Duration,
}

/// What is counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Reports written.
    pub written: AtomicU64,
    /// Reports deleted.
    pub deleted: AtomicU64,
    /// Reports of somebody else that are in the way.
    pub conflicts: AtomicU64,
    /// Requests that failed.
    pub failed: AtomicU64,
    /// Nodes and policies, by how they do.
    pub(super) seen: Mutex<Seen>,
}

/// How nodes and policies do.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) nodes: Vec<(&'static str, u64)>,
    pub(super) policies: BTreeMap<&'static str, u64>,
}

impl Counts {
    pub(super) fn see(&self, overview: &Overview) {
        let mut policies: BTreeMap<&str, u64> = State::ALL.iter().map(|state| (state.as_str(), 0)).collect();
        for policy in &overview.policies {
            *policies.entry(policy.state.as_str()).or_default() += 1;
        }
        let nodes = overview.nodes.as_ref().map_or_else(Vec::new, |nodes| {
            let mut counts = vec![
                ("ready", nodes.ready as u64),
                ("audit", nodes.auditing as u64),
                ("not_ready", nodes.not_ready as u64),
                ("silent", nodes.silent as u64),
            ];
            counts.extend(nodes.missing.map(|missing| ("missing", missing as u64)));
            counts
        });
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen { nodes, policies };
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("the API server did not answer in time")]
    Silence,
    #[error("the answer cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
}

impl Trouble {
    /// Returns the HTTP status, if there was one.
    fn code(&self) -> u16 {
        match self {
            Self::Api(kube::Error::Api(status)) => status.code,
            _ => 0,
        }
    }

    /// Whether the object, or the namespace around it, is gone or going.
    fn is_gone(&self) -> bool {
        self.code() == 404 || matches!(self, Self::Api(kube::Error::Api(status)) if is_terminating(status))
    }
}

/// Waits for an answer, not for ever.
async fn within<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Trouble> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(answer) => Ok(answer?),
        Err(_elapsed) => Err(Trouble::Silence),
    }
}

fn resource(dialect: Dialect) -> ApiResource {
    let (group, version, kind, plural) = dialect.names();
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: format!("{group}/{version}"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// Where a Report is.
type Place = (Dialect, String);

pub(super) struct Reporter {
    client: Client,
    options: Options,
    lead: Lead,
    counts: Arc<Counts>,
    clock: Clock,
    facts: watch::Receiver<Option<Arc<Vec<Facts>>>>,
    /// What nodes tell, by the name of the object.
    told: Option<BTreeMap<NsName, (String, Summary)>>,
    /// The nodes that take an agent, if they could be listed.
    nodes: Option<BTreeSet<String>>,
    /// The kinds of Report that the API server knows.
    known: BTreeSet<Dialect>,
    /// Reports with our label, as the API server had them last.
    present: BTreeMap<Place, Value>,
    /// Names that somebody else has taken.
    taken: BTreeSet<Place>,
    /// Reports that could not be written or deleted: when they are tried again, and how many looks they wait after that.
    waits: BTreeMap<Place, (Instant, u32)>,
    /// The first namespace that the last round had no writes left for.
    next: Option<String>,
    /// When the API server is asked anew what it has.
    look: Instant,
    /// What was said last, so that it is said once.
    said: BTreeMap<&'static str, String>,
}

impl Reporter {
    pub(super) fn new(
        client: Client,
        options: Options,
        lead: Lead,
        counts: Arc<Counts>,
        clock: Clock,
        facts: watch::Receiver<Option<Arc<Vec<Facts>>>>,
    ) -> Self {
        Self {
            client,
            options,
            lead,
            counts,
            clock,
            facts,
            told: None,
            nodes: None,
            known: BTreeSet::new(),
            present: BTreeMap::new(),
            taken: BTreeSet::new(),
            waits: BTreeMap::new(),
            next: None,
            look: Instant::now(),
            said: BTreeMap::new(),
        }
    }

    /// Keeps everything up to date until it is ended from outside.
    pub(super) async fn run(mut self) {
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), &self.options.summaries);
        let labelled = watcher::Config::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
        let mut maps = pin!(watcher(maps, labelled).default_backoff());
        let mut list = List::default();
        let mut next = Instant::now() + Duration::from_secs(1).min(self.options.every);
        loop {
            tokio::select! {
                Some(event) = maps.next() => {
                    let read = |object: ConfigMap| match Summary::read(object) {
                        Ok(summary) => Some(summary),
                        Err(wrong) => {
                            debug!(%wrong, "an object with the label of a summary is none");
                            None
                        }
                    };
                    list.take(event, &mut self.told, read, "nodes' summaries");
                }
                () = tokio::time::sleep_until(next.into()) => {
                    self.round().await;
                    next = Instant::now() + self.options.every;
                }
            }
        }
    }

    async fn round(&mut self) {
        // Without them everything would look as if it were gone.
        let Some(facts) = self.facts.borrow_and_update().clone() else { return };
        let Some(told) = &self.told else { return };
        let summaries: BTreeMap<String, Summary> = told.values().cloned().collect();
        let looks = Instant::now() >= self.look;
        if looks {
            self.nodes = self.list_nodes().await;
        }
        let now = (self.clock)();
        let nodes = Nodes { summaries, all: self.nodes.clone() };
        let overview = overview::overview(&facts, Some(&nodes), now);
        self.counts.see(&overview);
        self.contradict(overview.contradiction.as_deref());
        if self.options.choice == Choice::Off {
            return;
        }
        if looks {
            let well = self.look().await;
            self.look = Instant::now() + self.options.every * if well { LOOK } else { 1 };
            if !well {
                return;
            }
        }
        let chosen = match self.options.choice {
            Choice::Off => None,
            Choice::Only(dialect) => Some(dialect).filter(|dialect| self.known.contains(dialect)),
            Choice::Auto => Dialect::ALL.into_iter().find(|dialect| self.known.contains(dialect)),
        };
        let reports = match chosen {
            Some(_) => report::reports(&overview),
            None => BTreeMap::new(),
        };
        self.say("reports", match chosen {
            Some(dialect) => format!("{}.{}", dialect.names().3, dialect.names().0),
            None => "none: the API server knows neither reports.openreports.io nor policyreports.wgpolicyk8s.io".to_owned(),
        });
        self.write(chosen, &reports, now).await;
    }

    /// Says something that differs from what was said before.
    fn say(&mut self, what: &'static str, text: String) {
        if self.said.get(what) != Some(&text) {
            info!("{what}: {text}");
            self.said.insert(what, text);
        }
    }

    /// Says once that what is written is enforced by others though every node only audits, and that it is no longer so.
    fn contradict(&mut self, contradiction: Option<&str>) {
        const WHAT: &str = "audit";
        match (contradiction, self.said.get(WHAT)) {
            (Some(text), said) if said.is_none_or(|said| said != text) => {
                warn!("{text}; --network-policies off writes none");
                self.said.insert(WHAT, text.to_owned());
            }
            (None, Some(_)) => {
                info!("what is written no longer contradicts what nodes do");
                self.said.remove(WHAT);
            }
            _ => {}
        }
    }

    fn failed(&mut self, what: &'static str, trouble: &Trouble) {
        let error = &plain(&trouble.to_string(), 500);
        self.counts.failed.fetch_add(1, Ordering::Relaxed);
        if self.said.get(what).is_none_or(|said| said != error) {
            warn!(error, "{what} failed; it is tried again");
            self.said.insert(what, error.to_owned());
        }
    }

    async fn list_nodes(&mut self) -> Option<BTreeSet<String>> {
        let nodes = Api::<Node>::all(self.client.clone());
        // From the cache of the API server.
        let params = ListParams::default().labels(NO_AGENT).match_any();
        match within(nodes.list_metadata(&params)).await {
            Ok(list) => Some(list.items.into_iter().filter_map(|node| node.metadata.name).collect()),
            Err(error) => {
                self.failed("listing nodes", &error);
                None
            }
        }
    }

    /// Sees which kinds of Report there are, and which Reports of ours.
    async fn look(&mut self) -> bool {
        for dialect in Dialect::ALL {
            let (group, version, _, plural) = dialect.names();
            match within(self.client.list_api_group_resources(&format!("{group}/{version}"))).await {
                Ok(list) if list.resources.iter().any(|resource| resource.name == plural) => {
                    self.known.insert(dialect);
                }
                Ok(_) => {
                    self.known.remove(&dialect);
                }
                Err(error) if error.code() == 404 => {
                    self.known.remove(&dialect);
                }
                Err(error) => {
                    self.failed("asking for kinds of Report", &error);
                    return false;
                }
            }
        }
        let mut present = BTreeMap::new();
        for dialect in self.known.clone() {
            match self.list(dialect).await {
                Ok(listed) => present.extend(listed),
                Err(error) => {
                    self.failed("listing Reports", &error);
                    return false;
                }
            }
        }
        self.present = present;
        self.taken.clear();
        true
    }

    async fn list(&self, dialect: Dialect) -> Result<Vec<(Place, Value)>, Trouble> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource(dialect));
        // What is called otherwise is nothing to us, however much of it there is.
        let mut params = ListParams::default()
            .labels(&format!("{}={}", MANAGED_BY.0, MANAGED_BY.1))
            .fields(&format!("metadata.name={NAME}"))
            .limit(PAGE);
        let mut listed = Vec::new();
        loop {
            let page = within(api.list(&params)).await?;
            for object in page.items {
                let value = serde_json::to_value(object)?;
                let namespace = value["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
                if value["metadata"]["name"] == NAME && self.is_ours(&value) {
                    listed.push(((dialect, namespace), report::kept(value)));
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(listed),
            }
        }
    }

    /// Returns whether a Report with our label is this controller's, and not another one's.
    fn is_ours(&self, object: &Value) -> bool {
        object["metadata"]["annotations"][CONTROLLER] == self.options.instance.as_str()
    }

    /// Writes what differs, and deletes what is not wanted. It begins where the last round had to end.
    async fn write(&mut self, chosen: Option<Dialect>, reports: &BTreeMap<String, Report>, now: u64) {
        let mut left = MOST_WRITES - MOST_DELETES;
        let mut failures = 0;
        for (namespace, report) in from(reports, self.next.take().as_deref()) {
            let Some(dialect) = chosen else { break };
            let place = (dialect, namespace.clone());
            if self.taken.contains(&place) || self.has_to_wait(&place) {
                continue;
            }
            let before = self.present.get(&place);
            let mut object = report.object(dialect, namespace, &self.options.instance, before, now);
            if before.is_some_and(|before| report::says_the_same(before, &object)) {
                continue;
            }
            if self.lead.permit().is_err() {
                return;
            }
            if left == 0 || failures >= MOST_FAILURES {
                self.next = Some(namespace.clone());
                break;
            }
            left -= 1;
            object["metadata"]["resourceVersion"] = match before {
                Some(before) => {
                    object["metadata"]["uid"] = before["metadata"]["uid"].clone();
                    before["metadata"]["resourceVersion"].clone()
                }
                None => ABSENT.into(),
            };
            let well = self.apply(place.clone(), &object).await;
            failures += usize::from(!well);
            self.note(place, well);
        }
        let wanted = |place: &Place| Some(place.0) == chosen && reports.contains_key(&place.1);
        let gone: Vec<(Place, Value)> = self
            .present
            .iter()
            .filter(|(place, _)| !wanted(place) && !self.has_to_wait(place))
            .map(|(place, object)| (place.clone(), object["metadata"].clone()))
            .take(left + MOST_DELETES)
            .collect();
        for (place, meta) in gone {
            if failures >= MOST_FAILURES || self.lead.permit().is_err() {
                return;
            }
            let well = self.delete(place.clone(), &meta).await;
            failures += usize::from(!well);
            self.note(place, well);
        }
        let present = &self.present;
        self.waits.retain(|place, _| present.contains_key(place) || reports.contains_key(&place.1));
    }

    /// Returns whether a place has failed, and its time has not come yet.
    fn has_to_wait(&self, place: &Place) -> bool {
        self.waits.get(place).is_some_and(|(until, _)| Instant::now() < *until)
    }

    /// Notes how it went with a place. One that fails waits longer each time.
    fn note(&mut self, place: Place, well: bool) {
        if well {
            self.waits.remove(&place);
            return;
        }
        let looks = self.waits.get(&place).map_or(PAUSES.0, |(_, looks)| *looks);
        let until = Instant::now() + self.options.every * looks;
        self.waits.insert(place, (until, (looks * 2).min(PAUSES.1)));
    }

    /// Writes a Report. Returns whether there is an answer that says how it stands.
    async fn apply(&mut self, place: Place, object: &Value) -> bool {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &place.1, &resource(place.0));
        // Ours by its version: what somebody has changed of it meanwhile is put right.
        let params = PatchParams {
            force: true,
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Apply(object);
        let written = within(api.patch(NAME, &params, &patch)).await;
        match written.and_then(|written| Ok(serde_json::to_value(written)?)) {
            Ok(written) => {
                self.counts.written.fetch_add(1, Ordering::Relaxed);
                debug!(namespace = place.1, "a Report is written");
                self.present.insert(place, report::kept(written));
            }
            Err(error) if error.code() == 409 => {
                if self.present.remove(&place).is_some() {
                    // It has changed since it was read. It is read again soon.
                    self.look = Instant::now();
                    return true;
                }
                self.counts.conflicts.fetch_add(1, Ordering::Relaxed);
                warn!(
                    namespace = place.1,
                    name = NAME,
                    "a Report of this name is somebody else's, or of another controller, and stays as it is"
                );
                self.taken.insert(place);
            }
            // The namespace is going.
            Err(error) if error.is_gone() => {
                self.present.remove(&place);
            }
            Err(error) => {
                self.failed("writing a Report", &error);
                return false;
            }
        }
        true
    }

    /// Deletes a Report that was seen with this metadata. Returns whether there is an answer that says how it stands.
    async fn delete(&mut self, place: Place, meta: &Value) -> bool {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &place.1, &resource(place.0));
        let text = |field: &str| meta[field].as_str().map(str::to_owned);
        let preconditions = Preconditions { uid: text("uid"), resource_version: text("resourceVersion") };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match within(api.delete(NAME, &params)).await {
            Ok(_) => {
                self.counts.deleted.fetch_add(1, Ordering::Relaxed);
                self.present.remove(&place);
            }
            Err(error) if error.is_gone() => {
                self.present.remove(&place);
            }
            Err(error) if error.code() == 409 => {
                self.present.remove(&place);
                self.look = Instant::now();
            }
            Err(error) => {
                self.failed("deleting a Report", &error);
                return false;
            }
        }
        true
    }
}

/// Returns all of them in turn, beginning with `first`.
fn from<'a>(
    reports: &'a BTreeMap<String, Report>,
    first: Option<&str>,
) -> impl Iterator<Item = (&'a String, &'a Report)> {
    let first = first.unwrap_or_default().to_owned();
    reports.range(first.clone()..).chain(reports.range(..first))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::fake, *};

    fn reporter() -> Reporter {
        let config = kube::Config::new("http://127.0.0.1:1".parse().expect("an address"));
        let client = Client::try_from(config).expect("a client that reaches nobody");
        reporter_of(client)
    }

    fn reporter_of(client: Client) -> Reporter {
        let options = Options {
            summaries: "summaries".to_owned(),
            choice: Choice::Auto,
            instance: "one".to_owned(),
            every: Duration::from_secs(30),
        };
        let lead = fake::lead();
        let facts = watch::channel(None).1;
        Reporter::new(client, options, lead, Arc::default(), Arc::new(|| 7), facts)
    }

    #[test]
    fn a_round_begins_where_the_last_one_ended() {
        let reports: BTreeMap<String, Report> =
            ["a", "b", "c"].map(|name| (name.to_owned(), Report::default())).into();
        let names = |first| from(&reports, first).map(|(name, _)| name.as_str()).collect::<String>();
        assert_eq!(
            (names(None), names(Some("b")), names(Some("bb"))),
            ("abc".into(), "bca".into(), "cab".into())
        );
    }

    const DIALECT: Dialect = Dialect::OpenReports;

    fn of(count: usize) -> BTreeMap<String, Report> {
        (0..count).map(|number| (format!("team-{number:03}"), Report::default())).collect()
    }

    /// Returns a Report of ours as it stands in this namespace, or one of another controller.
    fn standing(namespace: &str, controller: &str) -> Value {
        let mut object = Report::default().object(DIALECT, namespace, controller, None, 7);
        object["metadata"]["uid"] = "u".into();
        object["metadata"]["resourceVersion"] = "5".into();
        object
    }

    fn writes(all: &fake::All) -> usize {
        all.now().iter().filter(|asked| asked.method == "PATCH").count()
    }

    #[tokio::test]
    async fn a_round_writes_a_bounded_number_and_nothing_that_is_not_new() {
        let (client, all) = fake::api(|asked| (200, asked.body.clone()));
        let mut reporter = reporter_of(client);
        let reports = of(130);
        reporter.write(Some(DIALECT), &reports, 7).await;
        assert_eq!(writes(&all), MOST_WRITES - MOST_DELETES);
        reporter.write(Some(DIALECT), &reports, 8).await;
        assert_eq!((writes(&all), reporter.present.len()), (130, 130), "the rest is written the next time");
        reporter.write(Some(DIALECT), &reports, 9).await;
        assert_eq!(writes(&all), 130, "nothing is new");
        assert!(all.now()[0].path.contains("force=true"), "{:?}", all.now()[0]);
        assert_eq!(all.now()[0].body["metadata"]["resourceVersion"], ABSENT);
        // All of them go, a bounded number at a time.
        for (now, left) in [(10, 130 - MOST_WRITES), (11, 0)] {
            reporter.write(Some(DIALECT), &BTreeMap::new(), now).await;
            let deleted = all.now().iter().filter(|asked| asked.method == "DELETE").count();
            assert_eq!((deleted, reporter.present.len()), (130 - left, left));
        }
    }

    #[tokio::test]
    async fn after_a_few_failures_the_rest_waits_and_comes_first_the_next_time() {
        let (client, all) = fake::api(|_| (500, json!({ "code": 500, "message": "no" })));
        let mut reporter = reporter_of(client);
        let reports = of(12);
        for round in 1..=2 {
            reporter.write(Some(DIALECT), &reports, 7).await;
            assert_eq!(writes(&all), round * MOST_FAILURES);
        }
        assert_eq!(reporter.next.as_deref(), Some("team-010"));
        reporter.write(Some(DIALECT), &reports, 7).await;
        assert_eq!(writes(&all), 12, "those that failed wait longer");
        assert_eq!(reporter.counts.failed.load(Ordering::Relaxed), 12);
    }

    #[tokio::test]
    async fn what_is_somebody_elses_is_told_once_and_left_alone() {
        let (client, all) =
            fake::api(|_| (409, json!({ "code": 409, "reason": "Conflict", "message": "no" })));
        let mut reporter = reporter_of(client);
        for now in 7..10 {
            reporter.write(Some(DIALECT), &of(1), now).await;
        }
        let conflicts = reporter.counts.conflicts.load(Ordering::Relaxed);
        assert_eq!((writes(&all), conflicts), (1, 1), "until it is looked at again");
    }

    #[tokio::test]
    async fn all_pages_of_ours_are_read_and_nothing_of_another_controllers() {
        let (client, all) = fake::api(|asked| {
            let second = asked.path.contains("continue=more");
            let (items, more) = match second {
                false => ([standing("a", "one"), standing("b", "two")], "more"),
                true => ([standing("c", "one"), standing("d", "one")], ""),
            };
            let list = json!({ "apiVersion": "openreports.io/v1alpha1", "kind": "ReportList",
                "metadata": { "resourceVersion": "9", "continue": more }, "items": items });
            (200, list)
        });
        let reporter = reporter_of(client);
        let listed = reporter.list(DIALECT).await.expect("there is an answer");
        let names: Vec<&str> = listed.iter().map(|((_, namespace), _)| namespace.as_str()).collect();
        assert_eq!(names, ["a", "c", "d"]);
        let asked = all.now();
        assert_eq!(asked.len(), 2);
        let narrow = ["limit=10", "fieldSelector=metadata.name%3Degress-agent", "labelSelector="];
        assert!(narrow.iter().all(|part| asked[0].path.contains(part)), "{}", asked[0].path);
    }

    #[tokio::test]
    async fn a_place_that_fails_waits_longer_each_time() {
        let mut reporter = reporter();
        let (bad, good) =
            ((Dialect::OpenReports, "bad".to_owned()), (Dialect::OpenReports, "good".to_owned()));
        assert!(!reporter.has_to_wait(&bad));
        let mut looks = Vec::new();
        for _ in 0..7 {
            reporter.note(bad.clone(), false);
            looks.push(reporter.waits[&bad].1);
        }
        assert_eq!(looks, [4, 8, 16, 32, 32, 32, 32]);
        assert!(reporter.has_to_wait(&bad) && !reporter.has_to_wait(&good));
        reporter.note(bad.clone(), true);
        assert!(!reporter.has_to_wait(&bad));
    }
}
