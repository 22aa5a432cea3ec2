//! The errors an API server answers with.

use serde_json::{Value, json};

use super::kinds::Kind;

/// An error with the fields of a `Status` body.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) details: Value,
    pub(super) retry_after: Option<u32>,
    /// A token to go on with, in `metadata.continue`.
    pub(super) go_on: Option<String>,
}

pub(super) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub(super) fn new(code: u16, message: impl Into<String>) -> Self {
        let reason = match code {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            405 => "MethodNotAllowed",
            406 => "NotAcceptable",
            409 => "Conflict",
            410 => "Expired",
            415 => "UnsupportedMediaType",
            422 => "Invalid",
            429 => "TooManyRequests",
            500 => "InternalError",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "Unknown",
        };
        Self { code, reason, message: message.into(), details: Value::Null, retry_after: None, go_on: None }
    }

    fn about(mut self, kind: Kind, name: &str) -> Self {
        self.details = json!({ "name": name, "kind": kind.facts().plural });
        if !kind.facts().group.is_empty() {
            self.details["group"] = kind.facts().group.into();
        }
        self
    }

    pub(super) fn not_found(kind: Kind, name: &str) -> Self {
        Self::new(404, format!("{} \"{name}\" not found", kind.resource())).about(kind, name)
    }

    pub(super) fn exists(kind: Kind, name: &str) -> Self {
        let mut failure =
            Self::new(409, format!("{} \"{name}\" already exists", kind.resource())).about(kind, name);
        failure.reason = "AlreadyExists";
        failure
    }

    pub(super) fn conflict(kind: Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.resource());
        Self::new(409, message).about(kind, name)
    }

    pub(super) fn forbidden(kind: Kind, name: &str, why: &str) -> Self {
        Self::new(403, format!("{} \"{name}\" is forbidden: {why}", kind.resource())).about(kind, name)
    }

    pub(super) fn invalid(kind: Kind, name: &str, field: &str, why: &str) -> Self {
        let mut failure =
            Self::new(422, format!("{} \"{name}\" is invalid: {field}: {why}", kind.facts().kind))
                .about(kind, name);
        failure.details["causes"] =
            json!([{ "reason": "FieldValueInvalid", "message": why, "field": field }]);
        failure
    }

    /// The version asked for is no longer known.
    pub(super) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, message)
    }

    /// Returns the body.
    pub(super) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(token) = &self.go_on {
            status["metadata"]["continue"] = token.as_str().into();
        }
        let mut details = self.details.clone();
        if let Some(seconds) = self.retry_after {
            if details.is_null() {
                details = json!({});
            }
            details["retryAfterSeconds"] = seconds.into();
        }
        if !details.is_null() {
            status["details"] = details;
        }
        status
    }
}
