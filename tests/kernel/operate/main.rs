//! What a platform team asks with: the doctor on a node and of a cluster, and the smoke test of a pod.

mod cluster;
mod node;
mod scene;
mod smoke;
