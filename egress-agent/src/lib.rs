//! Per-pod egress control for Kubernetes, enforced in the kernel.
//!
//! [`policy`] is the pure core: text and cluster state in, map entries and verdicts out. The other modules are thin: they
//! read manifests, talk to the kernel, and report.
pub mod agent;
pub mod check;
pub mod cli;
pub mod controller;
pub mod doctor;
pub mod explain;
pub mod heap;
pub mod k8s;
pub mod kernel;
pub mod observe;
pub mod overview;
pub mod parity;
pub mod policy;
pub mod proxies;
pub mod ranges;
pub mod rego;
pub mod schema;
pub mod smoke;
pub mod telemetry;
pub mod watch;
pub mod webhook;
