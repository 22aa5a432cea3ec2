//! The command line of egress-agent.
fn main() {}
