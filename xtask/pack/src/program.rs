//! The programs that are packed, and what they must be.

use std::fmt::{self, Display};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};

/// An architecture images are made for, by the names of OCI and Go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    /// The target that rustc builds it for.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Architecture::Amd64 => "x86_64-unknown-linux-musl",
            Architecture::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    fn machine(self) -> u16 {
        match self {
            Architecture::Amd64 => elf::EM_X86_64,
            Architecture::Arm64 => elf::EM_AARCH64,
        }
    }
}

impl Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Architecture::Amd64 => "amd64",
            Architecture::Arm64 => "arm64",
        })
    }
}

impl FromStr for Architecture {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "amd64" => Ok(Architecture::Amd64),
            "arm64" => Ok(Architecture::Arm64),
            other => Err(format!("no architecture is called {other:?}: amd64 or arm64")),
        }
    }
}

/// Reads a program that runs in an empty container of this architecture.
///
/// # Errors
///
/// When it is for another machine, needs a loader or libraries, is not position-independent (its addresses would be the same
/// everywhere), or was built without the kernel programs.
pub(crate) fn read(path: &Path, architecture: Architecture) -> Result<Vec<u8>> {
    let bytes = crate::read(path)?;
    check(&bytes, architecture).with_context(|| format!("{} cannot be packed", path.display()))?;
    Ok(bytes)
}

fn check(bytes: &[u8], architecture: Architecture) -> Result<()> {
    let header = elf::FileHeader64::<Endianness>::parse(bytes).context("it is no 64-bit ELF program")?;
    let endian = header.endian().context("its header says no byte order")?;
    if header.e_machine(endian) != architecture.machine() {
        bail!("it is not for {architecture} but for ELF machine {}", header.e_machine(endian));
    }
    let segments = header.program_headers(endian, bytes).context("its program headers cannot be read")?;
    if segments.iter().any(|segment| segment.p_type(endian) == elf::PT_INTERP) {
        bail!("it is not static: it names a loader, which an empty container does not have");
    }
    if header.e_type(endian) != elf::ET_DYN {
        bail!("it is not position-independent");
    }
    if !has_kernel_programs(bytes) {
        bail!("it has no kernel programs inside: EGRESS_BPF_OBJECT was not set when it was built");
    }
    Ok(())
}

/// Returns whether there is an ELF file for the kernel's own machine in it.
fn has_kernel_programs(bytes: &[u8]) -> bool {
    const MAGIC: &[u8] = b"\x7fELF\x02\x01\x01";
    /// Where an ELF header says the machine, in bytes.
    const MACHINE: usize = 18;
    let wanted = elf::EM_BPF.to_le_bytes();
    bytes
        .windows(MACHINE + 2)
        .any(|window| window[0] == MAGIC[0] && window.starts_with(MAGIC) && window[MACHINE..] == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest header that is one: type, machine and one program header of this type.
    fn program(kind: u16, machine: u16, segment: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        bytes[16..18].copy_from_slice(&kind.to_le_bytes());
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[20] = 1;
        bytes[32] = 64;
        bytes[52] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64..68].copy_from_slice(&segment.to_le_bytes());
        bytes
    }

    fn with_kernel_programs(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.extend(program(elf::ET_REL, elf::EM_BPF, elf::PT_NULL));
        bytes
    }

    #[track_caller]
    fn refused(bytes: &[u8], why: &str) {
        let error = check(bytes, Architecture::Amd64).expect_err("it is refused");
        assert!(format!("{error:#}").contains(why), "{error:#}");
    }

    #[test]
    fn only_a_static_program_of_the_architecture_is_packed() {
        let good = with_kernel_programs(program(elf::ET_DYN, elf::EM_X86_64, elf::PT_LOAD));
        check(&good, Architecture::Amd64).expect("it can be packed");
        refused(b"#!/bin/sh\n", "no 64-bit ELF program");
        refused(&with_kernel_programs(program(elf::ET_DYN, elf::EM_AARCH64, elf::PT_LOAD)), "not for amd64");
        refused(&with_kernel_programs(program(elf::ET_DYN, elf::EM_X86_64, elf::PT_INTERP)), "not static");
        refused(
            &with_kernel_programs(program(elf::ET_EXEC, elf::EM_X86_64, elf::PT_LOAD)),
            "position-independent",
        );
        refused(&program(elf::ET_DYN, elf::EM_X86_64, elf::PT_LOAD), "no kernel programs");
        refused(&good[..70], "program headers");
    }
}
