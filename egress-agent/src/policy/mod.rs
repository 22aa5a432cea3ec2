//! The pure core: no clock, no environment, no tokio, no kube, no aya.
//!
//! Data goes one way: [`document`] (text of a policy) and [`cluster`] (everything else that matters) make a
//! [`cluster::Cluster`]; [`compile`] turns it into a [`compile::PolicySet`] for each pod; [`entries`] numbers the sets for
//! the maps; [`diff`] says what to write. [`simulate`] looks a flow up as the kernel does, [`reference`] answers from the
//! model by brute force and shares no code with any of them.
pub mod addresses;
pub mod changes;
pub mod cluster;
pub mod compile;
pub mod demand;
pub mod diff;
pub mod difference;
pub mod document;
pub mod entries;
pub mod finding;
pub mod flow;
#[cfg(any(test, feature = "generate"))]
pub mod generate;
pub mod generated;
pub mod governance;
pub mod index;
pub mod model;
pub mod ranges;
pub mod recommend;
pub mod reference;
pub mod selector;
pub mod simulate;
