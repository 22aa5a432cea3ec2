//! Writes `docs/metrics.md` to standard output: `cargo xtask metrics` puts it into its place.

fn main() {
    print!("{}", egress_agent::telemetry::catalogue::page());
}
