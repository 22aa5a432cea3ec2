//! Where Kubernetes objects turn into our own words. Knows nothing of the kernel.
//!
//! [`convert`] and [`network_policy`] are the only places that look inside Kubernetes types; [`manifests`] reads them from
//! files.
pub mod client;
pub mod convert;
pub mod generated;
pub mod manifests;
pub mod network_policy;
pub mod published;
pub mod snapshot;
pub mod source;
pub mod summary;
pub mod trimmed;
