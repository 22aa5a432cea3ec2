//! What the lab and a process in a pod say to each other: one JSON object a line, a reply for each request.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr, SocketAddrV4},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// What a process in a pod can be asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Listens for TCP connections.
    Listen {
        /// Where.
        at: SocketAddr,
        /// Whether connections are accepted and answered at once; otherwise [`Request::Accept`] takes them.
        echo: bool,
    },
    /// Takes a connection of a listener that does not echo.
    Accept {
        /// The listener.
        id: u64,
        /// How long to wait.
        millis: u64,
    },
    /// Connects a new TCP socket.
    Connect {
        /// Where to.
        to: SocketAddr,
        /// Whether the socket is an IPv6 one even if the address is IPv4, which it then sees as mapped.
        mapped: bool,
        /// Socket options to set first.
        options: Vec<SocketOption>,
        /// How long to wait.
        millis: u64,
    },
    /// Connects a new TCP socket that is bound first.
    ConnectFrom {
        /// What it is bound to.
        from: SocketAddr,
        /// Where to.
        to: SocketAddr,
        /// Socket options to set before.
        options: Vec<SocketOption>,
        /// How long to wait.
        millis: u64,
    },
    /// Dissolves the association of a TCP socket with `connect(AF_UNSPEC)` and makes it a listener, which does not echo.
    TurnListener {
        /// The socket.
        id: u64,
    },
    /// Has a process make a user and a network namespace of its own, and receive a forged datagram there.
    Forge {
        /// Where the datagram says it comes from.
        from: SocketAddrV4,
        /// Where a socket receives it.
        to: SocketAddrV4,
    },
    /// Dissolves the association of a TCP socket with `connect(AF_UNSPEC)` and connects it elsewhere.
    Reconnect {
        /// The socket.
        id: u64,
        /// Where to.
        to: SocketAddr,
        /// How long to wait.
        millis: u64,
    },
    /// Writes to a connection and reads as much back.
    Exchange {
        /// The connection.
        id: u64,
        /// How much.
        bytes: usize,
        /// How long to wait.
        millis: u64,
    },
    /// Closes a socket, or ends a worker and tells what it counted.
    Close {
        /// Which.
        id: u64,
    },
    /// Makes a UDP socket.
    Udp {
        /// The address it is bound to, unless the kernel is to choose one when it sends.
        at: Option<SocketAddr>,
        /// Whether it is an IPv6 socket though unbound.
        ipv6: bool,
        /// Whether it sends everything back at once and counts it.
        echo: bool,
        /// Socket options to set first.
        options: Vec<SocketOption>,
    },
    /// Connects a UDP socket.
    UdpConnect {
        /// The socket.
        id: u64,
        /// Where to.
        to: SocketAddr,
    },
    /// Sends a datagram.
    Send {
        /// The socket.
        id: u64,
        /// Where to; none on a connected socket.
        to: Option<SocketAddr>,
    },
    /// Waits for a datagram.
    Receive {
        /// The socket.
        id: u64,
        /// How long.
        millis: u64,
    },
    /// Sends a datagram from a new socket and waits for its echo.
    UdpProbe {
        /// Where to.
        to: SocketAddr,
        /// Whether the socket is an IPv6 one even if the address is IPv4.
        mapped: bool,
        /// How long to wait.
        millis: u64,
    },
    /// Sends a packet, IP header included, through a raw socket.
    Raw {
        /// All of it.
        packet: Vec<u8>,
        /// Where the socket call says it goes.
        to: IpAddr,
    },
    /// Sends an ICMP echo request through a raw socket and waits for the reply.
    Ping {
        /// Where to.
        to: IpAddr,
        /// How long to wait.
        millis: u64,
    },
    /// Makes connections one after the other and counts how they end.
    Burst {
        /// Where to.
        to: SocketAddr,
        /// How many.
        count: u32,
        /// How long to wait for each.
        millis: u64,
    },
    /// Makes pods' cgroups one after the other and starts processes in each, which are in it from their first moment on and connect
    /// before they do anything else; counts how that ends, and removes the cgroups.
    Starts {
        /// The cgroup they are made in.
        parent: PathBuf,
        /// The UIDs of the pods.
        uids: Vec<String>,
        /// How many processes are started in each.
        each: u32,
        /// Where they connect to.
        to: SocketAddr,
    },
    /// Starts a worker that exchanges bytes on a connection again and again.
    Pump {
        /// The connection; nothing else may use it meanwhile.
        id: u64,
        /// Pause between exchanges.
        micros: u64,
    },
    /// Starts a worker that sends datagrams to several addresses in turn from one socket and notes how each call ends.
    Watch {
        /// Where to.
        to: Vec<SocketAddr>,
        /// Pause between datagrams.
        micros: u64,
    },
    /// Tells what an echo server has counted.
    Count {
        /// The server.
        id: u64,
    },
    /// Passes a socket to whoever takes it at this path.
    Pass {
        /// The socket.
        id: u64,
        /// A path both see.
        path: PathBuf,
    },
    /// Takes a socket that is passed at this path.
    Take {
        /// A path both see.
        path: PathBuf,
        /// How long to wait.
        millis: u64,
    },
}

/// A socket option, as `setsockopt` takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    /// Its level.
    pub level: i32,
    /// Its name.
    pub name: i32,
    /// Its value.
    pub value: Vec<u8>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As asked: connected, echoed, sent.
    Ok,
    /// Refused with `EPERM`.
    NotPermitted,
    /// The other side refused.
    Refused,
    /// Nothing happened in time.
    Timeout,
    /// No way there.
    Unreachable,
    /// The other side ended the connection.
    Closed,
    /// Another error, by its number; 0 where there is none.
    Other(i32),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::NotPermitted => "EPERM",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Closed => "closed",
            Self::Other(number) => return write!(f, "errno {number}"),
        })
    }
}

impl From<&io::Error> for Outcome {
    fn from(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM) => return Self::NotPermitted,
            Some(libc::EAGAIN | libc::ETIMEDOUT) => return Self::Timeout,
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => return Self::Unreachable,
            _ => {}
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Timeout,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                Self::Closed
            }
            _ => Self::Other(error.raw_os_error().unwrap_or(0)),
        }
    }
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub millis: f64,
    /// The socket or worker that was made; 0 for none.
    pub id: u64,
    /// Where a connection or datagram came from.
    pub from: Option<SocketAddr>,
    /// The local address of the socket that was made or used, where it has one.
    pub local: Option<SocketAddr>,
    /// How often each outcome was seen: of bursts, workers and servers.
    pub counts: BTreeMap<String, u64>,
    /// The longest time between two exchanges of a pump.
    pub gap_millis: f64,
    /// What a watch saw: which address (its place), and from which datagram on which outcome. Only changes are listed.
    pub changes: Vec<(u64, usize, Outcome)>,
}

impl Reply {
    /// A reply that says how it ended and no more.
    #[must_use]
    pub fn new(outcome: Outcome) -> Self {
        Self {
            outcome,
            millis: 0.0,
            id: 0,
            from: None,
            local: None,
            counts: BTreeMap::new(),
            gap_millis: 0.0,
            changes: Vec::new(),
        }
    }

    /// How often an outcome was seen.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.counts.get(&outcome.to_string()).copied().unwrap_or(0)
    }
}
