//! What a platform team asks with: the doctor on a node and of a cluster, `kubectl egress`, and the smoke test of a
//! pod.

mod cluster;
mod node;
mod plugin;
mod scene;
mod smoke;
