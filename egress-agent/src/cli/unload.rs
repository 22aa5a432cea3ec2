//! `egress-agent unload`: takes everything out of the kernel.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use crate::kernel::loader;

/// What to remove.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder the agent's maps and links are pinned under
    #[arg(long, value_name = "DIR", env = "EGRESS_PIN_DIR", default_value = super::agent::PIN_DIR)]
    pin_dir: PathBuf,
}

/// Removes all pins under the folder.
///
/// # Errors
///
/// When the folder is not on a bpffs or a pin cannot be removed.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let removed = loader::unload(&arguments.pin_dir)?;
    if removed.is_empty() {
        println!("nothing is pinned under {}", arguments.pin_dir.display());
    }
    for path in removed {
        println!("removed {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}
