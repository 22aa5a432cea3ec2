//! A process for the lab: it plays a container, a server outside, or the keeper that cleans up after the lab.
//!
//! `podrun host own` makes a network namespace of its own, `podrun host shared` stays in the one it was started in; both
//! then do what they are asked to, a JSON object a line, until their input ends. `podrun forge FROM TO` is what
//! [`Request::Forge`] starts. `podrun keeper` is described in `keeper.rs`.

use std::{
    collections::BTreeMap,
    env,
    ffi::CString,
    fs,
    io::{self, BufRead, Read, Write},
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{self, Command, ExitCode},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use egress_tests::lab::{
    keeper, packet,
    wire::{Outcome, Reply, Request, SocketOption},
};
use socket2::{Domain, Protocol, Socket, Type};

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let outcome = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["keeper"] => keeper::run(),
        ["host", "own"] => unshare().and_then(|()| host()),
        ["host", "shared"] => host(),
        ["forge", from, to] => forge(from, to),
        _ => Err(io::Error::other("usage: podrun host own|shared, podrun forge FROM TO, or podrun keeper")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podrun: {error}");
            ExitCode::FAILURE
        }
    }
}

fn unshare() -> io::Result<()> {
    // SAFETY: the process has one thread, and the call takes a number.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Does what it is asked to until the input ends.
fn host() -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "ready")?;
    output.flush()?;
    let mut host = Host::default();
    for line in io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        let begin = Instant::now();
        let mut reply = host.answer(request).unwrap_or_else(|error| Reply::new(Outcome::from(&error)));
        reply.millis = millis(begin.elapsed());
        serde_json::to_writer(&mut output, &reply)?;
        writeln!(output)?;
        output.flush()?;
    }
    // Without waiting for servers and workers.
    process::exit(0)
}

/// Receives, in a user and a network namespace made for that, a datagram that comes over a device and was written by hand.
fn forge(from: &str, to: &str) -> io::Result<()> {
    let parse = |text: &str| text.parse::<SocketAddrV4>().map_err(io::Error::other);
    let (from, to) = (parse(from)?, parse(to)?);
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    // SAFETY: the process has one thread, and the call takes a number.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {} 1", user.as_raw()))?;
    fs::write("/proc/self/gid_map", format!("0 {} 1", group.as_raw()))?;
    let address = format!("address add {}/32 dev inner", to.ip());
    for command in [
        "link set lo up",
        "link add outer type veth peer name inner",
        address.as_str(),
        "link set outer up",
        "link set inner up",
        "route add default dev inner",
    ] {
        let status = Command::new("ip").args(command.split(' ')).status()?;
        if !status.success() {
            return Err(io::Error::other(format!("ip {command}: {status}")));
        }
    }
    let receiver = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    receiver.bind(&SocketAddr::from(to).into())?;
    let mut forged = packet::V4::plain(17).packet(*from.ip(), *to.ip(), &packet::udp(from.into(), to.into()));
    // What the kernel does for packets of raw IP sockets.
    let sum: u32 = forged[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("ten small numbers carry once");
    forged[10..12].copy_from_slice(&(!folded).to_be_bytes());
    send_frame("outer", &forged)?;
    match receive(&receiver, Duration::from_secs(5))? {
        Some(sender) if sender == SocketAddr::from(from) => Ok(()),
        other => Err(io::Error::other(format!("the datagram came from {other:?}"))),
    }
}

/// Sends an IPv4 packet as a broadcast frame, past the IP layer.
fn send_frame(device: &str, packet: &[u8]) -> io::Result<()> {
    let name = CString::new(device).map_err(io::Error::other)?;
    // SAFETY: a string that ends in zero and lives as long as the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    // SAFETY: a call that takes numbers.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if index == 0 || raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: a struct of integers, for which zero is a value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).expect("the family is a small number");
    to.sll_protocol = 0x0800_u16.to_be();
    to.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    to.sll_halen = 6;
    to.sll_addr = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
    let length = libc::socklen_t::try_from(size_of_val(&to)).expect("the struct is small");
    // SAFETY: the kernel reads `packet` and `length` bytes of the address, both of which are there.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

fn add(counts: &Counts, outcome: Outcome) {
    *counts.lock().expect("no thread panics with the lock held").entry(outcome.to_string()).or_default() += 1;
}

#[derive(Default)]
struct Host {
    sockets: BTreeMap<u64, Socket>,
    servers: BTreeMap<u64, Counts>,
    workers: BTreeMap<u64, Worker>,
    next: u64,
}

struct Worker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Reply>,
}

impl Host {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn keep(&mut self, socket: Socket) -> Reply {
        let id = self.number();
        let local = socket.local_addr().map_or(None, |address| address.as_socket());
        self.sockets.insert(id, socket);
        Reply { id, local, ..Reply::new(Outcome::Ok) }
    }

    fn socket(&self, id: u64) -> io::Result<&Socket> {
        self.sockets.get(&id).ok_or_else(|| io::Error::other(format!("no socket {id}")))
    }

    fn answer(&mut self, request: Request) -> io::Result<Reply> {
        match request {
            Request::Listen { at, echo } => self.listen(at, echo),
            Request::Accept { id, millis } => {
                let listener = self.socket(id)?;
                listener.set_read_timeout(Some(Duration::from_millis(millis)))?;
                let (socket, from) = listener.accept()?;
                Ok(Reply { from: from.as_socket(), ..self.keep(socket) })
            }
            Request::Connect { to, mapped, options, millis } => {
                let socket = new_socket(to, mapped, Type::STREAM)?;
                set_options(&socket, &options)?;
                socket.connect_timeout(&target(to, mapped).into(), Duration::from_millis(millis))?;
                socket.set_tcp_nodelay(true)?;
                Ok(self.keep(socket))
            }
            Request::ConnectFrom { from, to, options, millis } => {
                let socket = new_socket(to, false, Type::STREAM)?;
                socket.set_reuse_address(true)?;
                set_options(&socket, &options)?;
                socket.bind(&from.into())?;
                socket.connect_timeout(&to.into(), Duration::from_millis(millis))?;
                Ok(self.keep(socket))
            }
            Request::TurnListener { id } => {
                let socket = self.socket(id)?;
                disconnect(socket)?;
                socket.listen(16)?;
                Ok(Reply::new(Outcome::Ok))
            }
            Request::Forge { from, to } => {
                let mut child = Command::new(env::current_exe()?);
                let status = child.arg("forge").arg(from.to_string()).arg(to.to_string()).status()?;
                if !status.success() {
                    return Err(io::Error::other(format!("podrun forge: {status}")));
                }
                Ok(Reply::new(Outcome::Ok))
            }
            Request::Reconnect { id, to, millis } => {
                let socket = self.socket(id)?;
                disconnect(socket)?;
                socket.connect_timeout(&to.into(), Duration::from_millis(millis))?;
                Ok(Reply::new(Outcome::Ok))
            }
            Request::Exchange { id, bytes, millis } => {
                exchange(self.socket(id)?, bytes, Duration::from_millis(millis))?;
                Ok(Reply::new(Outcome::Ok))
            }
            Request::Close { id } => self.close(id),
            Request::Udp { at, ipv6, echo, options } => self.udp(at, ipv6, echo, &options),
            Request::UdpConnect { id, to } => {
                self.socket(id)?.connect(&to.into())?;
                Ok(Reply::new(Outcome::Ok))
            }
            Request::Send { id, to } => {
                let socket = self.socket(id)?;
                match to {
                    Some(to) => socket.send_to(b"datagram", &to.into())?,
                    None => socket.send(b"datagram")?,
                };
                Ok(Reply::new(Outcome::Ok))
            }
            Request::Receive { id, millis } => {
                let from = receive(self.socket(id)?, Duration::from_millis(millis))?;
                Ok(Reply { from, ..Reply::new(Outcome::Ok) })
            }
            Request::UdpProbe { to, mapped, millis } => {
                let socket = new_socket(to, mapped, Type::DGRAM)?;
                socket.send_to(b"probe", &target(to, mapped).into())?;
                let from = receive(&socket, Duration::from_millis(millis))?;
                Ok(Reply { from, ..Reply::new(Outcome::Ok) })
            }
            Request::Raw { packet, to } => {
                raw(&packet, to)?;
                Ok(Reply::new(Outcome::Ok))
            }
            Request::Ping { to, millis } => {
                ping(to, Duration::from_millis(millis))?;
                Ok(Reply::new(Outcome::Ok))
            }
            Request::Burst { to, count, millis } => {
                let counts = Counts::default();
                for _ in 0..count {
                    let socket = new_socket(to, false, Type::STREAM)?;
                    let outcome = socket.connect_timeout(&to.into(), Duration::from_millis(millis));
                    add(&counts, outcome.as_ref().map_or_else(Outcome::from, |()| Outcome::Ok));
                }
                let counts = counts.lock().expect("no thread panics with the lock held").clone();
                Ok(Reply { counts, ..Reply::new(Outcome::Ok) })
            }
            Request::Starts { parent, uids, each, to } => {
                let mut counts = BTreeMap::<String, u64>::new();
                for uid in uids {
                    for outcome in starts(&parent.join(format!("pod{uid}")), each, to)? {
                        *counts.entry(outcome.to_string()).or_default() += 1;
                    }
                }
                Ok(Reply { counts, ..Reply::new(Outcome::Ok) })
            }
            Request::Pump { id, micros } => {
                let socket = self.socket(id)?.try_clone()?;
                Ok(self.work(move |stop| pump(&socket, Duration::from_micros(micros), stop)))
            }
            Request::Watch { to, micros } => {
                Ok(self.work(move |stop| watch(&to, Duration::from_micros(micros), stop)))
            }
            Request::Count { id } => {
                let server = self.servers.get(&id).ok_or_else(|| io::Error::other("no such server"))?;
                let counts = server.lock().expect("no thread panics with the lock held").clone();
                Ok(Reply { counts, ..Reply::new(Outcome::Ok) })
            }
            Request::Pass { id, path } => {
                let stream = UnixStream::connect(path)?;
                send_descriptor(&stream, self.socket(id)?.as_raw_fd())?;
                Ok(Reply::new(Outcome::Ok))
            }
            Request::Take { path, millis } => {
                let socket = take(&path, Duration::from_millis(millis))?;
                Ok(self.keep(socket))
            }
        }
    }

    fn listen(&mut self, at: SocketAddr, echo: bool) -> io::Result<Reply> {
        let socket = new_socket(at, false, Type::STREAM)?;
        socket.set_reuse_address(true)?;
        socket.bind(&at.into())?;
        socket.listen(1024)?;
        if !echo {
            return Ok(self.keep(socket));
        }
        let counts = Counts::default();
        let id = self.number();
        self.servers.insert(id, Arc::clone(&counts));
        thread::spawn(move || {
            while let Ok((connection, _)) = socket.accept() {
                let counts = Arc::clone(&counts);
                add(&counts, Outcome::Ok);
                thread::spawn(move || echo_stream(connection));
            }
        });
        Ok(Reply { id, ..Reply::new(Outcome::Ok) })
    }

    fn udp(
        &mut self,
        at: Option<SocketAddr>,
        ipv6: bool,
        echo: bool,
        options: &[SocketOption],
    ) -> io::Result<Reply> {
        let any = if ipv6 { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = new_socket(at.unwrap_or(SocketAddr::new(any, 0)), false, Type::DGRAM)?;
        set_options(&socket, options)?;
        if let Some(at) = at {
            socket.bind(&at.into())?;
        }
        if !echo {
            return Ok(self.keep(socket));
        }
        let counts = Counts::default();
        let id = self.number();
        self.servers.insert(id, Arc::clone(&counts));
        thread::spawn(move || {
            let mut buffer = [MaybeUninit::uninit(); 2048];
            loop {
                // An ICMP error of an earlier answer is told at the next call; the server goes on.
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                add(&counts, Outcome::Ok);
                // SAFETY: the kernel has filled that many bytes.
                let bytes: Vec<u8> =
                    buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
                if let Err(error) = socket.send_to(&bytes, &from) {
                    add(&counts, Outcome::from(&error));
                }
            }
        });
        Ok(Reply { id, ..Reply::new(Outcome::Ok) })
    }

    fn work(&mut self, work: impl FnOnce(&AtomicBool) -> Reply + Send + 'static) -> Reply {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let id = self.number();
        self.workers.insert(id, Worker { stop, thread: thread::spawn(move || work(&seen)) });
        Reply { id, ..Reply::new(Outcome::Ok) }
    }

    fn close(&mut self, id: u64) -> io::Result<Reply> {
        if let Some(worker) = self.workers.remove(&id) {
            worker.stop.store(true, Ordering::Relaxed);
            return worker.thread.join().map_err(|_| io::Error::other("the worker panicked"));
        }
        if self.sockets.remove(&id).is_none() {
            return Err(io::Error::other(format!("no socket {id}")));
        }
        Ok(Reply::new(Outcome::Ok))
    }
}

fn new_socket(to: SocketAddr, mapped: bool, kind: Type) -> io::Result<Socket> {
    let domain = if mapped { Domain::IPV6 } else { Domain::for_address(to) };
    Socket::new(domain, kind, None)
}

fn target(to: SocketAddr, mapped: bool) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(v4) if mapped => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
        _ => to,
    }
}

fn set_options(socket: &Socket, options: &[SocketOption]) -> io::Result<()> {
    for option in options {
        let length = libc::socklen_t::try_from(option.value.len()).map_err(io::Error::other)?;
        // SAFETY: the kernel reads `length` bytes of a buffer that is that long.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                option.level,
                option.name,
                option.value.as_ptr().cast(),
                length,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn disconnect(socket: &Socket) -> io::Result<()> {
    let nobody = libc::sockaddr {
        sa_family: u16::try_from(libc::AF_UNSPEC).expect("the family is a small number"),
        sa_data: [0; 14],
    };
    let length = libc::socklen_t::try_from(size_of_val(&nobody)).expect("the struct is small");
    // SAFETY: the kernel reads `length` bytes of the struct.
    if unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn exchange(mut socket: &Socket, bytes: usize, limit: Duration) -> io::Result<()> {
    socket.set_read_timeout(Some(limit))?;
    socket.set_write_timeout(Some(limit))?;
    socket.write_all(&vec![b'x'; bytes])?;
    socket.read_exact(&mut vec![0; bytes])
}

fn receive(socket: &Socket, limit: Duration) -> io::Result<Option<SocketAddr>> {
    socket.set_read_timeout(Some(limit))?;
    let (_, from) = socket.recv_from(&mut [MaybeUninit::uninit(); 2048])?;
    Ok(from.as_socket())
}

fn echo_stream(mut connection: Socket) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match connection.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                if connection.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        }
    }
}

fn raw(packet: &[u8], to: IpAddr) -> io::Result<()> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.send_to(packet, &SocketAddr::new(to, 0).into())?;
    Ok(())
}

fn ping(to: IpAddr, limit: Duration) -> io::Result<()> {
    let (domain, protocol, reply_kind, header) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 0, 20),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 129, 0),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    // The kernel fills in the checksum of ICMPv6 itself.
    socket.send_to(&packet::echo_request(to.is_ipv6()), &SocketAddr::new(to, 0).into())?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let mut buffer = [MaybeUninit::uninit(); 2048];
        let (length, from) = socket.recv_from(&mut buffer)?;
        // SAFETY: the kernel has filled `length` bytes, more than `header`.
        let kind = (length > header).then(|| unsafe { buffer[header].assume_init() });
        if kind == Some(reply_kind) && from.as_socket().is_some_and(|from| from.ip() == to) {
            return Ok(());
        }
    }
}

/// Makes a pod's cgroup with a container's in it, starts processes there that connect, and removes it.
fn starts(pod: &Path, count: u32, to: SocketAddr) -> io::Result<Vec<Outcome>> {
    let container = pod.join("0123456789abcdef");
    fs::create_dir_all(&container)?;
    let folder = fs::File::open(&container)?;
    let address = socket2::SockAddr::from(to);
    let children: io::Result<Vec<libc::pid_t>> =
        (0..count).map(|_| start_in(&folder, || first_call(&address))).collect();
    let mut outcomes = Vec::new();
    for child in children? {
        let mut status = 0;
        // SAFETY: the status is an integer of this frame.
        if unsafe { libc::waitpid(child, &raw mut status, 0) } != child || !libc::WIFEXITED(status) {
            return Err(io::Error::other(format!("process {child} has not ended by itself: {status}")));
        }
        outcomes.push(match libc::WEXITSTATUS(status) {
            0 => Outcome::Ok,
            code => Outcome::from(&io::Error::from_raw_os_error(code)),
        });
    }
    drop(folder);
    let deadline = Instant::now() + Duration::from_secs(5);
    for folder in [&container, pod] {
        while let Err(error) = fs::remove_dir(folder) {
            if Instant::now() >= deadline {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(outcomes)
}

/// Starts a process inside a cgroup, which ends with what `run` returns. Nothing in `run` may allocate or lock.
fn start_in(cgroup: &fs::File, run: impl FnOnce() -> i32) -> io::Result<libc::pid_t> {
    // SAFETY: a struct of integers, for which zero is a value.
    let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
    how.flags = 0x2_0000_0000; // CLONE_INTO_CGROUP
    how.exit_signal = u64::try_from(libc::SIGCHLD).map_err(io::Error::other)?;
    how.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: without CLONE_VM this is a fork; the child has a copy of everything and one thread, and `run` makes system calls only.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw mut how, size_of_val(&how)) };
    match child {
        0 => {
            let code = run();
            // SAFETY: it ends the process without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
        child if child < 0 => Err(io::Error::last_os_error()),
        child => libc::pid_t::try_from(child).map_err(io::Error::other),
    }
}

/// Connects, and returns the error's number, or 0.
fn first_call(to: &socket2::SockAddr) -> i32 {
    let number = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    // SAFETY: system calls with numbers and with pointers to what lives as long as they do.
    unsafe {
        let socket = libc::socket(i32::from(to.family()), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0);
        if socket < 0 {
            return number();
        }
        if libc::connect(socket, to.as_ptr().cast(), to.len()) == 0 {
            return 0;
        }
        let error = number();
        if error != libc::EINPROGRESS {
            return error;
        }
        let mut event = libc::pollfd { fd: socket, events: libc::POLLOUT, revents: 0 };
        if libc::poll(&raw mut event, 1, 1500) != 1 {
            return libc::ETIMEDOUT;
        }
        let mut error = 0;
        let mut length = libc::socklen_t::try_from(size_of_val(&error)).expect("an int is small");
        let (error_at, length_at) = ((&raw mut error).cast(), &raw mut length);
        if libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_ERROR, error_at, length_at) == 0 {
            error
        } else {
            number()
        }
    }
}

/// Exchanges bytes on a connection until told to stop or the connection breaks.
fn pump(socket: &Socket, pause: Duration, stop: &AtomicBool) -> Reply {
    let counts = Counts::default();
    let mut gap = Duration::ZERO;
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        match exchange(socket, 64, Duration::from_secs(5)) {
            Ok(()) => add(&counts, Outcome::Ok),
            Err(error) => {
                add(&counts, Outcome::from(&error));
                break;
            }
        }
        gap = gap.max(last.elapsed());
        last = Instant::now();
        thread::sleep(pause);
    }
    let counts = counts.lock().expect("no thread panics with the lock held").clone();
    Reply { counts, gap_millis: millis(gap), ..Reply::new(Outcome::Ok) }
}

/// Sends datagrams to each address in turn until told to stop.
fn watch(to: &[SocketAddr], pause: Duration, stop: &AtomicBool) -> Reply {
    let counts = Counts::default();
    let mut changes: Vec<(u64, usize, Outcome)> = Vec::new();
    let mut last: Vec<Option<Outcome>> = vec![None; to.len()];
    let sockets: io::Result<Vec<Socket>> =
        to.iter().map(|address| new_socket(*address, false, Type::DGRAM)).collect();
    let sockets = match sockets {
        Ok(sockets) => sockets,
        Err(error) => return Reply::new(Outcome::from(&error)),
    };
    let mut number = 0;
    'all: loop {
        for (place, (address, socket)) in to.iter().zip(&sockets).enumerate() {
            if stop.load(Ordering::Relaxed) {
                break 'all;
            }
            let sent = socket.send_to(b"watch", &(*address).into());
            let outcome = match &sent {
                Ok(_) => Outcome::Ok,
                // The answer of a closed port to an earlier datagram, not this one's.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => Outcome::from(error),
            };
            add(&counts, outcome);
            if last[place] != Some(outcome) {
                last[place] = Some(outcome);
                changes.push((number, place, outcome));
            }
            number += 1;
            if !pause.is_zero() {
                thread::sleep(pause);
            }
        }
    }
    let counts = counts.lock().expect("no thread panics with the lock held").clone();
    Reply { counts, changes, ..Reply::new(Outcome::Ok) }
}

/// Room for one descriptor in a control message, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

fn message(vector: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: a struct of numbers and pointers, for which zero means none.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vector;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header
}

fn send_descriptor(stream: &UnixStream, descriptor: RawFd) -> io::Result<()> {
    let mut byte = 0u8;
    let mut vector = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = Control([0; 64]);
    let mut header = message(&mut vector, &mut control);
    let size = u32::try_from(size_of::<RawFd>()).expect("an int is small");
    // SAFETY: the buffer has room for a header and one descriptor; the pointers live as long as the call.
    let result = unsafe {
        header.msg_controllen = libc::CMSG_SPACE(size) as _;
        let first = libc::CMSG_FIRSTHDR(&raw const header);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(size) as _;
        libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(descriptor);
        libc::sendmsg(stream.as_raw_fd(), &raw const header, 0)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn take(path: &Path, limit: Duration) -> io::Result<Socket> {
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + limit;
    let stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error),
        }
    };
    stream.set_nonblocking(false)?;
    let mut byte = 0u8;
    let mut vector = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = Control([0; 64]);
    let mut header = message(&mut vector, &mut control);
    header.msg_controllen = size_of::<Control>() as _;
    // SAFETY: the pointers live as long as the call; the control message is read only where the kernel wrote one.
    unsafe {
        if libc::recvmsg(stream.as_raw_fd(), &raw mut header, 0) < 0 {
            return Err(io::Error::last_os_error());
        }
        let first = libc::CMSG_FIRSTHDR(&raw const header);
        if first.is_null() || (*first).cmsg_type != libc::SCM_RIGHTS {
            return Err(io::Error::other("no descriptor was passed"));
        }
        let descriptor = libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned();
        Ok(OwnedFd::from_raw_fd(descriptor).into())
    }
}
