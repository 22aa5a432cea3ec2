//! Asks one destination with a real socket, in bounded time.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{Protocol, Seen};

/// A question for the name servers of the root, with this id: it tells nobody anything.
const fn question(id: [u8; 2]) -> [u8; 17] {
    [id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1]
}

/// Asks a destination and returns what the socket saw. Takes no longer than `limit`, and a moment.
#[must_use]
pub fn ask(protocol: Protocol, to: SocketAddr, limit: Duration) -> Seen {
    let seen = match protocol {
        Protocol::Tcp => TcpStream::connect_timeout(&to, limit).map(|_connected| Seen::Connected),
        Protocol::Udp => datagram(to, &[0], limit.min(Duration::from_millis(300)), |_| true),
        Protocol::Dns => {
            let id = id();
            datagram(to, &question(id), limit, |answer| is_answer(answer, id)).map(|seen| match seen {
                // A resolver answers; one that does not was not reached, as far as anybody can tell.
                Seen::Sent => Seen::Timeout,
                seen => seen,
            })
        }
        Protocol::DnsTcp => over_tcp(to, limit),
    };
    seen.unwrap_or_else(|error| Seen::of(&error))
}

fn id() -> [u8; 2] {
    let mut bytes = [0; 2];
    // Whoever could guess it could only make the answer come sooner.
    if ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).is_err() {
        return *b"eg";
    }
    bytes
}

/// Returns whether a message answers the question with this id.
fn is_answer(message: &[u8], id: [u8; 2]) -> bool {
    message.len() >= 12 && message[..2] == id && message[2] & 0x80 != 0
}

/// Sends a datagram and waits for one that fits.
fn datagram(to: SocketAddr, what: &[u8], limit: Duration, fits: impl Fn(&[u8]) -> bool) -> io::Result<Seen> {
    let deadline = Instant::now() + limit;
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // Connected, so that a refusal of the other side is heard.
    socket.connect(to)?;
    socket.send(what)?;
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Seen::Sent);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut buffer) {
            Ok(length) if fits(&buffer[..length]) => return Ok(Seen::Answered),
            Ok(_other) => {}
            Err(error) => match Seen::of(&error) {
                Seen::Timeout => return Ok(Seen::Sent),
                _ => return Err(error),
            },
        }
    }
}

fn over_tcp(to: SocketAddr, limit: Duration) -> io::Result<Seen> {
    let deadline = Instant::now() + limit;
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))?;
    let id = id();
    let mut message = vec![0, 17];
    message.extend(question(id));
    stream.write_all(&message)?;
    let mut answer = [0; 14];
    match stream.read_exact(&mut answer) {
        Ok(()) if is_answer(&answer[2..], id) => Ok(Seen::Answered),
        // It was reached, whatever it does not say.
        Ok(()) => Ok(Seen::Connected),
        Err(error) => match Seen::of(&error) {
            Seen::Timeout => Ok(Seen::Connected),
            _ => Err(error),
        },
    }
}

/// Returns the first address of each family that a name has, in no more time than `limit`; nothing where it has none or nobody told it.
#[must_use]
pub fn resolve(name: &str, port: u16, limit: Duration) -> Vec<SocketAddr> {
    let (tell, told) = mpsc::channel();
    let name = name.to_owned();
    // The C library asks as long as it likes; a thread that is left behind ends with the process.
    thread::spawn(move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        drop(tell.send(found));
    });
    let Ok(Ok(all)) = told.recv_timeout(limit) else { return Vec::new() };
    let of = |v4: bool| all.iter().copied().find(|address| address.is_ipv4() == v4);
    of(true).into_iter().chain(of(false)).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn a_server_is_reached_and_a_closed_port_refuses() {
        let server = TcpListener::bind(loopback()).expect("loopback has ports");
        let at = server.local_addr().expect("it is bound");
        assert_eq!(ask(Protocol::Tcp, at, LIMIT), Seen::Connected);
        drop(server);
        assert_eq!(ask(Protocol::Tcp, at, LIMIT), Seen::Refused);
        assert_eq!(ask(Protocol::Udp, at, LIMIT), Seen::Refused);
    }

    #[test]
    fn datagrams_are_answered_or_sent() {
        let server = UdpSocket::bind(loopback()).expect("loopback has ports");
        let at = server.local_addr().expect("it is bound");
        assert_eq!(ask(Protocol::Udp, at, LIMIT), Seen::Sent);
        assert_eq!(ask(Protocol::Dns, at, Duration::from_millis(100)), Seen::Timeout);
        let answering = thread::spawn(move || {
            let mut buffer = [0; 512];
            // What came before, and the question.
            for _ in 0..3 {
                let (length, from) = server.recv_from(&mut buffer).expect("it was sent");
                if length > 1 {
                    buffer[0] ^= 0xff;
                    buffer[2] |= 0x80;
                    server.send_to(&buffer[..length], from).expect("another's answer can be sent");
                    buffer[0] ^= 0xff;
                    server.send_to(&buffer[..length], from).expect("it can be answered");
                }
            }
        });
        assert_eq!(ask(Protocol::Dns, at, LIMIT), Seen::Answered);
        answering.join().expect("it does not panic");
    }

    #[test]
    fn names_are_asked_for_over_tcp() {
        let server = TcpListener::bind(loopback()).expect("loopback has ports");
        let at = server.local_addr().expect("it is bound");
        let answering = thread::spawn(move || {
            let (mut stream, _) = server.accept().expect("somebody connects");
            let mut message = [0; 19];
            stream.read_exact(&mut message).expect("a question comes");
            message[4] |= 0x80;
            stream.write_all(&message).expect("it can be answered");
            let (silent, _) = server.accept().expect("somebody connects");
            drop(silent);
        });
        assert_eq!(ask(Protocol::DnsTcp, at, LIMIT), Seen::Answered);
        assert_eq!(ask(Protocol::DnsTcp, at, LIMIT), Seen::Reset);
        answering.join().expect("it does not panic");
    }

    #[test]
    fn names_have_addresses_or_not() {
        let found = resolve("localhost", 7, LIMIT);
        assert!(
            !found.is_empty() && found.iter().all(|at| at.ip().is_loopback() && at.port() == 7),
            "{found:?}"
        );
        assert_eq!(resolve("nobody.invalid", 7, LIMIT), []);
    }
}
