//! Kubernetes Events about what the controller does.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tracing::warn;

/// How long the text of an Event may be, in bytes; the API server's limit is 1024.
const MOST: usize = 1000;

/// Writes Events. The same one again becomes a count.
#[derive(Clone)]
pub(super) struct Events(Recorder);

impl Events {
    pub(super) fn new(client: Client) -> Self {
        let reporter = Reporter { controller: "egress-controller".to_owned(), instance: None };
        Self(Recorder::new(client, reporter))
    }

    /// Says that something is as it should be.
    pub(super) async fn tell(&self, about: &ObjectReference, reason: &str, action: &str, note: &str) {
        self.publish(EventType::Normal, about, reason, action, note).await;
    }

    /// Says that something is not.
    pub(super) async fn warn(&self, about: &ObjectReference, reason: &str, action: &str, note: &str) {
        self.publish(EventType::Warning, about, reason, action, note).await;
    }

    async fn publish(
        &self,
        type_: EventType,
        about: &ObjectReference,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(cut(note)),
            action: action.to_owned(),
            secondary: None,
        };
        // What it tells is in the log, too.
        if let Err(error) = self.0.publish(&event, about).await {
            warn!(reason, %error, "an Event could not be written");
        }
    }
}

/// Returns a text that is short enough, cut where a character ends.
fn cut(text: &str) -> String {
    if text.len() <= MOST {
        return text.to_owned();
    }
    let mut end = MOST - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        for length in MOST - 3..MOST + 3 {
            let text = "é".repeat(length);
            let cut = cut(&text);
            assert!(cut.len() <= MOST && text.starts_with(cut.trim_end_matches('…')), "{length}");
        }
    }
}
