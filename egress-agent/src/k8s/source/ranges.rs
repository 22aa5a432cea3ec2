//! Follows what is published of one provider's ranges.

use std::time::Instant;

use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};

use super::{News, Teller};
pub use crate::k8s::published::Published;
use crate::k8s::published::{LABEL, Parts, Wrong};

/// What was told last.
#[derive(PartialEq)]
enum Told {
    Nothing,
    /// A publication, by its head; or custom services, by their texts.
    Head(String),
    Texts(Vec<(String, String)>),
    Wrong(Wrong),
}

impl Told {
    fn of(outcome: &Result<Option<Published>, Wrong>) -> Self {
        match outcome {
            Ok(None) => Self::Nothing,
            Ok(Some(Published::Table { publication, .. })) => Self::Head(publication.head.text()),
            Ok(Some(Published::Custom { texts, .. })) => Self::Texts(texts.to_vec()),
            Err(wrong) => Self::Wrong(wrong.clone()),
        }
    }
}

/// Lists and watches for ever. What belongs together is told together; while something is missing or wrong, what was told before
/// stays.
pub(super) async fn follow(client: Client, namespace: String, provider: String, teller: Teller) {
    let api = Api::<ConfigMap>::namespaced(client, &namespace);
    let config = watcher::Config::default().labels(&format!("{LABEL}={provider}"));
    let events = watcher(api, config).default_backoff();
    pin_mut!(events);
    let mut parts = Parts::new(&provider);
    let mut told = Told::Nothing;
    // Within a list nothing is complete, and what was known before is.
    let mut listing: Option<Parts> = None;
    let mut synced = false;
    while let Some(event) = events.next().await {
        let at = Instant::now();
        match event {
            Ok(Event::Init) => listing = Some(Parts::new(&provider)),
            Ok(Event::InitApply(object)) => listing.get_or_insert_with(|| Parts::new(&provider)).put(object),
            Ok(Event::InitDone) => parts = listing.take().unwrap_or_else(|| Parts::new(&provider)),
            Ok(Event::Apply(object)) => parts.put(object),
            Ok(Event::Delete(object)) => {
                if let Some(name) = &object.metadata.name {
                    parts.remove(name);
                }
            }
            Err(error) => {
                if !teller.tell(at, News::Failed(error.to_string())).await {
                    return;
                }
                continue;
            }
        }
        if listing.is_some() {
            continue;
        }
        let outcome = parts.together();
        let now = Told::of(&outcome);
        let changed = now != told;
        told = now;
        let news = match outcome {
            Ok(published) => News::Ranges(published.map(Box::new)),
            // Chunks are written before the head, and told in the order they were written.
            Err(wrong) => News::Failed(wrong.to_string()),
        };
        // What is known comes before that all of it is, and what is wrong after: it is forgotten with the next news.
        let first = !std::mem::replace(&mut synced, true);
        let wrong = matches!(news, News::Failed(_));
        let (news, end) = (changed.then_some(news), first.then_some(News::End));
        let (before, after) = if wrong { (end, news) } else { (news, end) };
        for news in before.into_iter().chain(after) {
            if !teller.tell(at, news).await {
                return;
            }
        }
    }
}
