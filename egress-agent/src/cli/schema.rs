//! `egress-agent schema`: the JSON Schema of the policy document.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;

/// Writes it to standard output.
///
/// # Errors
///
/// When it cannot be written.
pub fn run() -> anyhow::Result<ExitCode> {
    io::stdout().lock().write_all(crate::schema::policy().as_bytes()).context("writing the schema")?;
    Ok(ExitCode::SUCCESS)
}
