//! What the agent tells about itself: logs, metrics, health.

pub mod catalogue;
pub mod client;
pub mod log;
pub mod metrics;
pub mod server;
