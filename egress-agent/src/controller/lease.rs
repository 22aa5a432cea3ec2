//! Which of several controllers works: the one that holds a Lease.
//!
//! The rules are those every Kubernetes component follows. Times of other machines are never compared with ours: a Lease counts as
//! abandoned once it has been seen unchanged for as long as it says it lasts. The holder stops before that, by its own clock, whatever
//! the network does. Each write carries the version that was read, so of two that take an abandoned Lease one is refused.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use crate::k8s::summary::plain;

/// The field manager of everything a controller writes.
pub const FIELD_MANAGER: &str = "egress-controller";

/// How much is told of an error.
const MOST_REASON: usize = 500;

/// How long things last.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long the others wait for a holder that is not heard of. In whole seconds, at least one.
    pub lease: Duration,
    /// After this time without a renewal that came through, the holder stops. Less than `lease`.
    pub deadline: Duration,
    /// The pause between two attempts.
    pub pause: Duration,
}

impl Default for Timing {
    /// Returns what Kubernetes' own components use.
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            pause: Duration::from_secs(2),
        }
    }
}

/// Who leads, as far as this process knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is known of the Lease.
    Unknown {
        /// Why; empty before the first answer.
        why: String,
    },
    /// This process does, until then at least.
    Leader {
        /// When it has to have stopped unless the Lease is renewed.
        until: Instant,
        /// How often the Lease has changed hands.
        term: i32,
    },
    /// Another one does, or nobody.
    Follower {
        /// Who; empty for nobody.
        leader: String,
    },
}

impl Standing {
    /// Returns whether this process may write now.
    #[must_use]
    pub fn leads(&self, now: Instant) -> bool {
        matches!(self, Self::Leader { until, .. } if now < *until)
    }
}

/// The Lease as it was seen last, and since when it is like that.
#[derive(Clone, Debug)]
struct Seen {
    version: String,
    spec: LeaseSpec,
    since: Instant,
}

/// Tries to hold a Lease.
pub struct Elector {
    leases: Api<Lease>,
    name: String,
    identity: String,
    timing: Timing,
    seen: Option<Seen>,
    standing: watch::Sender<Standing>,
}

impl Elector {
    /// Returns one for the Lease of this name, and where it says how it stands. `identity` must be another for each process.
    #[must_use]
    pub fn new(
        leases: Api<Lease>,
        name: impl Into<String>,
        identity: impl Into<String>,
        timing: Timing,
    ) -> (Self, watch::Receiver<Standing>) {
        let (standing, receiver) = watch::channel(Standing::Unknown { why: String::new() });
        let elector =
            Self { leases, name: name.into(), identity: identity.into(), timing, seen: None, standing };
        (elector, receiver)
    }

    /// Tries until `stop` ends, and gives back then what it has.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                () = async {
                    self.round().await;
                    sleep(self.timing.pause).await;
                } => {}
            }
        }
        self.release().await;
    }

    /// Tries once, and says how it stands.
    pub async fn round(&mut self) {
        let began = Instant::now();
        let limit = match &*self.standing.borrow() {
            // An answer that comes when the others may have taken over is no answer.
            Standing::Leader { until, .. } if began < *until => until.duration_since(began),
            _ => self.timing.deadline,
        };
        let outcome = tokio::time::timeout(limit, self.attempt(began)).await;
        let standing = match outcome {
            Ok(Ok(standing)) => standing,
            failed => {
                let reason = match failed {
                    Ok(Err(error)) => plain(&error.to_string(), MOST_REASON),
                    _ => "no answer in time".to_owned(),
                };
                let before = self.standing.borrow().clone();
                if before.leads(Instant::now()) {
                    warn!(lease = %self.name, reason, "the lease could not be renewed; trying again");
                    before
                } else {
                    let standing = Standing::Unknown { why: reason };
                    if let (true, Standing::Unknown { why }) = (before != standing, &standing) {
                        warn!(lease = %self.name, reason = why, "the lease cannot be read or written");
                    }
                    standing
                }
            }
        };
        self.tell(standing);
    }

    fn tell(&self, standing: Standing) {
        self.standing.send_if_modified(|before| {
            match (&*before, &standing) {
                (Standing::Leader { .. }, Standing::Leader { .. }) => {}
                (_, Standing::Leader { term, .. }) => {
                    info!(lease = %self.name, term, "this controller leads");
                }
                (Standing::Leader { .. }, _) => warn!(lease = %self.name, "this controller no longer leads"),
                (before, Standing::Follower { leader }) if *before != standing => {
                    info!(lease = %self.name, leader, "another controller leads");
                }
                _ => {}
            }
            let changed = *before != standing;
            *before = standing;
            changed
        });
    }

    async fn attempt(&mut self, began: Instant) -> Result<Standing, kube::Error> {
        let Some(lease) = self.leases.get_opt(&self.name).await? else {
            self.seen = None;
            let lease = self.lease(None, &LeaseSpec::default());
            return match self.leases.create(&params(), &lease).await {
                Ok(written) => {
                    self.note(&written);
                    Ok(Standing::Leader { until: began + self.timing.deadline, term: 0 })
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    Ok(Standing::Follower { leader: String::new() })
                }
                Err(error) => Err(error),
            };
        };
        self.note(&lease);
        // Without a version a write would be guarded by nothing.
        let Some(version) = lease.metadata.resource_version else {
            return Ok(Standing::Unknown { why: "it has no version".to_owned() });
        };
        let spec = lease.spec.unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let lasts = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let lasts = lasts.map_or(self.timing.lease, Duration::from_secs);
        let abandoned = self.seen.as_ref().is_some_and(|seen| seen.since.elapsed() >= lasts);
        if !holder.is_empty() && holder != self.identity && !abandoned {
            return Ok(Standing::Follower { leader: holder });
        }
        let wanted = self.lease(Some(version), &spec);
        let term = wanted.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or_default();
        match self.leases.patch(&self.name, &forced(), &Patch::Apply(&wanted)).await {
            Ok(written) => {
                self.note(&written);
                Ok(Standing::Leader { until: began + self.timing.deadline, term })
            }
            // Somebody was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.seen = None;
                Ok(Standing::Follower { leader: String::new() })
            }
            Err(error) => Err(error),
        }
    }

    /// Takes note of the Lease as it is now. What has not changed keeps the time it was first seen like that.
    fn note(&mut self, lease: &Lease) {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|seen| seen.version != version) {
            let spec = lease.spec.clone().unwrap_or_default();
            self.seen = Some(Seen { version, spec, since: Instant::now() });
        }
    }

    /// Returns the Lease as this process wants it.
    fn lease(&self, version: Option<String>, before: &LeaseSpec) -> Lease {
        let now = MicroTime(jiff::Timestamp::now());
        let mine = before.holder_identity.as_deref() == Some(&self.identity);
        let moved = before.lease_transitions.unwrap_or_default().saturating_add(i32::from(
            !mine && before.holder_identity.as_ref().is_some_and(|holder| !holder.is_empty()),
        ));
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                resource_version: version,
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(i32::try_from(self.timing.lease.as_secs()).unwrap_or(i32::MAX)),
                acquire_time: if mine { before.acquire_time.clone() } else { Some(now.clone()) },
                renew_time: Some(now),
                lease_transitions: Some(moved),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Gives the Lease back, so that another need not wait. To be called when nothing is written any more.
    pub async fn release(&mut self) {
        if !self.standing.borrow().leads(Instant::now()) {
            return;
        }
        self.tell(Standing::Follower { leader: String::new() });
        let Some(seen) = self.seen.take() else { return };
        let mut lease = self.lease(Some(seen.version), &seen.spec);
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        let (params, patch) = (forced(), Patch::Apply(&lease));
        let given =
            tokio::time::timeout(self.timing.pause, self.leases.patch(&self.name, &params, &patch)).await;
        if !matches!(given, Ok(Ok(_))) {
            warn!(lease = %self.name, "the lease could not be given back; the others wait until it has run out");
        }
    }
}

/// How the Lease is applied. Force takes the fields over from the holder before; the version in it keeps two from doing so at once.
fn forced() -> PatchParams {
    PatchParams { force: true, field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

fn params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() }
}
