//! What a platform team asks with: the doctor on a node and of a cluster.

mod cluster;
mod node;
mod scene;
