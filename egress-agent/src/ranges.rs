//! Where published address ranges come from, and how they reach a node.
//!
//! The way of the data: [`fetch`] (or a file) gives bytes, [`providers`] reads them into a [`Table`](crate::policy::ranges::Table),
//! [`accept`] compares that with the last good one and refuses what looks like an accident, [`cache`] keeps the bytes for the next
//! start; [`refresh`] does that in turn. [`publish`] cuts the table into pieces that nodes fetch. What a policy's destination means is the business of
//! [`policy::ranges`](crate::policy::ranges).

pub mod accept;
pub mod cache;
pub mod fetch;
pub mod files;
pub mod providers;
pub mod publish;
pub mod refresh;
