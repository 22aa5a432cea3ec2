//! The command line of egress-agent: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use egress_agent::cli;

/// The static program's allocator: musl's own keeps half as much again.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What jemalloc reads at the start, by this name, as a pointer to text that ends in a zero: one thread does the work, and what is free goes back to
/// the kernel at once.
#[cfg(target_env = "musl")]
// Nothing else has the name: it is of the crate's own jemalloc.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static OPTIONS: &[u8; 61] = b"narenas:1,dirty_decay_ms:0,muzzy_decay_ms:0,lg_tcache_max:12\0";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next();
    if cli::completions::is_called(program.as_deref()) {
        return cli::completions::answer(arguments);
    }
    if cli::plugin::is_called(program.as_deref()) {
        return cli::plugin::run(&cli::plugin::Plugin::parse());
    }
    cli::run(cli::Cli::parse())
}
