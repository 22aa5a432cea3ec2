//! The few `bpf(2)` calls aya 0.14 does not offer: links that can be pinned and given a new program, and plain element access
//! to maps that are already pinned.
//!
//! `union bpf_attr` is written out per command, as in `include/uapi/linux/bpf.h`; every struct is zeroed before it is filled.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_GET_FD_BY_ID: u32 = 13;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const MAP_UPDATE_BATCH: u32 = 26;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;

/// Where a program is attached in a cgroup (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachType {
    /// Packets to a socket.
    Ingress = 0,
    /// Packets from a socket.
    Egress = 1,
    /// TCP events.
    SockOps = 3,
    /// `connect()` over IPv4.
    Connect4 = 10,
    /// `connect()` over IPv6.
    Connect6 = 11,
    /// `sendmsg()` over UDP and IPv4.
    Sendmsg4 = 14,
    /// `sendmsg()` over UDP and IPv6.
    Sendmsg6 = 15,
}

#[repr(C)]
#[derive(Default)]
struct ObjAttr {
    pathname: u64,
    fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct ByIdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// The part of `struct bpf_link_info` that cgroup links fill.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkInfo {
    kind: u32,
    /// The link's id.
    pub id: u32,
    /// The id of the program behind it.
    pub program: u32,
    pad: u32,
    /// The cgroup it is attached to; 0 once that is gone.
    pub cgroup: u64,
    /// The attach type.
    pub attach_type: u32,
    pad_end: u32,
}

fn call<T>(command: u32, attr: &mut T) -> io::Result<i64> {
    // SAFETY: `attr` is the command's own struct, zero-initialised and outliving the call; the kernel reads no more than its
    // size and treats what it does not know there as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn fd(result: i64) -> OwnedFd {
    let raw = i32::try_from(result).expect("the kernel returns file descriptors that fit an int");
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn path_bytes(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Attaches a program to a cgroup and returns the link. Several links at one cgroup all run; any that refuses decides.
///
/// # Errors
///
/// What the kernel says.
pub fn link_create(program: BorrowedFd<'_>, cgroup: impl AsFd, at: AttachType) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: raw(program),
        target_fd: raw(cgroup.as_fd()),
        attach_type: at as u32,
        flags: 0,
    };
    call(LINK_CREATE, &mut attr).map(fd)
}

/// Puts another program behind a link; no packet runs without one.
///
/// # Errors
///
/// What the kernel says.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr =
        LinkUpdateAttr { link_fd: raw(link), new_prog_fd: raw(program), ..LinkUpdateAttr::default() };
    call(LINK_UPDATE, &mut attr).map(|_| ())
}

/// Returns what the kernel knows of a link.
///
/// # Errors
///
/// What the kernel says.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let length = u32::try_from(size_of::<LinkInfo>()).expect("the struct is small");
    let mut attr = InfoAttr { fd: raw(link), length, info: (&raw mut info) as u64 };
    call(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// Writes many entries of a map in one call. On an error some may have been written.
///
/// # Errors
///
/// What the kernel says; Linux before 5.6, and before 5.13 for a trie, knows no batches (`ENOTSUPP`).
///
/// # Panics
///
/// When there are not as many values as keys.
pub fn update_batch<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    assert_eq!(keys.len(), values.len(), "each key has a value");
    if keys.is_empty() {
        return Ok(());
    }
    let count = u32::try_from(keys.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map_fd: raw(map),
        ..BatchAttr::default()
    };
    call(MAP_UPDATE_BATCH, &mut attr).map(|_| ())
}

/// Returns the kernel's id of a loaded program.
///
/// # Errors
///
/// What the kernel says.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    object_id(program)
}

/// Returns the kernel's id of a map.
///
/// # Errors
///
/// What the kernel says.
pub fn map_id(map: BorrowedFd<'_>) -> io::Result<u32> {
    object_id(map)
}

fn object_id(object: BorrowedFd<'_>) -> io::Result<u32> {
    /// The first two words of `struct bpf_prog_info`, and of `struct bpf_map_info`.
    #[repr(C)]
    #[derive(Default)]
    struct ObjectInfo {
        kind: u32,
        id: u32,
    }
    let mut info = ObjectInfo::default();
    let length = u32::try_from(size_of::<ObjectInfo>()).expect("the struct is small");
    let mut attr = InfoAttr { fd: raw(object), length, info: (&raw mut info) as u64 };
    call(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info.id)
}

/// The programs attached to a cgroup itself at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedPrograms {
    /// How: 0 alone and not to be overridden, 1 overridable, 2 one of several.
    pub flags: u32,
    /// Their ids, in the order they run.
    pub programs: Vec<u32>,
}

/// Returns what is attached to a cgroup itself, by whomever.
///
/// # Errors
///
/// What the kernel says.
pub fn query(cgroup: impl AsFd, at: AttachType) -> io::Result<AttachedPrograms> {
    let mut ids = [0_u32; 64];
    let count =
        u32::try_from(ids.len()).expect("it is 64, which is also the most a cgroup takes at one place");
    let mut attr = QueryAttr {
        target_fd: raw(cgroup.as_fd()),
        attach_type: at as u32,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: count,
        ..QueryAttr::default()
    };
    call(PROG_QUERY, &mut attr)?;
    let programs = ids.iter().take(attr.prog_cnt as usize).copied().collect();
    Ok(AttachedPrograms { flags: attr.attach_flags, programs })
}

/// Returns the name its author gave the program with this id; at most 15 characters.
///
/// # Errors
///
/// What the kernel says: it tells only who has `CAP_SYS_ADMIN`.
pub fn program_name(id: u32) -> io::Result<String> {
    /// The beginning of `struct bpf_prog_info`.
    #[repr(C)]
    #[derive(Default)]
    struct ProgramInfo {
        before: [u64; 8],
        name: [u8; 16],
    }
    let mut attr = ByIdAttr { id, ..ByIdAttr::default() };
    let program = call(PROG_GET_FD_BY_ID, &mut attr).map(fd)?;
    let mut info = ProgramInfo::default();
    let length = u32::try_from(size_of::<ProgramInfo>()).expect("the struct is small");
    let mut attr = InfoAttr { fd: raw(program.as_fd()), length, info: (&raw mut info) as u64 };
    call(OBJ_GET_INFO_BY_FD, &mut attr)?;
    let end = info.name.iter().position(|&byte| byte == 0).unwrap_or(info.name.len());
    Ok(String::from_utf8_lossy(&info.name[..end]).into_owned())
}

/// Pins an object under a bpffs path.
///
/// # Errors
///
/// What the kernel says.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_bytes(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, fd: raw(object), file_flags: 0 };
    call(OBJ_PIN, &mut attr).map(|_| ())
}

/// Opens a pinned object.
///
/// # Errors
///
/// What the kernel says; `NotFound` when nothing is pinned there.
pub fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = path_bytes(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, ..ObjAttr::default() };
    call(OBJ_GET, &mut attr).map(fd)
}

/// Waits until no program that runs now is still running, on any processor.
///
/// `membarrier(MEMBARRIER_CMD_GLOBAL)` waits for an RCU grace period, and programs run inside RCU read sections. Where the
/// kernel refuses it (`nohz_full`), a pause far longer than any program may run takes its place.
pub fn wait_for_running_programs() {
    const GLOBAL: libc::c_int = 1;
    // SAFETY: a system call that takes numbers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result != 0 {
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}
