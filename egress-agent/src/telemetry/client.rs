//! Asks an agent for one of its pages, as its own programs do on its node: at its socket, or where it serves metrics.
//!
//! It speaks as much of HTTP as that takes. An answer is bounded in bytes and as a whole in time, however slowly it comes.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// How long an answer may take, its last byte included.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may be, its head included. The metrics of a node with thousands of destinations have a tenth of that.
const MOST_BYTES: usize = 64 << 20;

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// The body.
    pub body: String,
}

/// Something that can be given a time to be read in.
pub trait Stream: Read + Write {
    /// Lets reading and writing fail after this.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    fn limit(&self, time: Duration) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn limit(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time)).and_then(|()| self.set_write_timeout(Some(time)))
    }
}

impl Stream for UnixStream {
    fn limit(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time)).and_then(|()| self.set_write_timeout(Some(time)))
    }
}

/// Connects to an agent's socket.
///
/// # Errors
///
/// When nobody listens, who listens takes nobody for a while, or it is another user's.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let (tell, told) = mpsc::channel();
    let path = socket.to_owned();
    // Where more wait than may, it blocks for as long as they do. The thread then ends with the process.
    thread::Builder::new().name("connect".to_owned()).spawn(move || {
        // Nobody waits any more once it has taken too long.
        drop(tell.send(UnixStream::connect(path)));
    })?;
    told.recv_timeout(PATIENCE).unwrap_or_else(|_elapsed| Err(late()))
}

/// Connects to where an agent serves its metrics.
///
/// # Errors
///
/// When nobody answers there.
pub fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&address, PATIENCE)
}

/// Asks for a page.
///
/// # Errors
///
/// When what comes is not HTTP, is cut off, too long or too slow, or is no text.
pub fn get(stream: impl Stream, page: &str) -> io::Result<Answer> {
    get_within(stream, page, PATIENCE, MOST_BYTES)
}

fn get_within(mut stream: impl Stream, page: &str, limit: Duration, most: usize) -> io::Result<Answer> {
    let deadline = Instant::now() + limit;
    stream.limit(limit)?;
    // In one piece, for servers that answer what they have read of it.
    stream.write_all(format!("GET {page} HTTP/1.0\r\n\r\n").as_bytes())?;
    let (mut answer, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        stream.limit(left)?;
        let read = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(late());
            }
            Err(error) => return Err(error),
        };
        answer.extend_from_slice(&buffer[..read]);
        if answer.len() > most {
            return Err(strange(&format!("the answer is longer than {most} bytes")));
        }
    }
    let answer = String::from_utf8(answer).map_err(|_| strange("the answer is no text"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| strange("the answer is not HTTP"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().filter(|line| line.starts_with("HTTP/1."));
    let code = status.and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let code = code.ok_or_else(|| strange("the answer is not HTTP"))?;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") && value.trim().parse() != Ok(body.len()) {
            return Err(strange("the answer is cut off"));
        }
    }
    Ok(Answer { code, body: body.to_owned() })
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer came in time")
}

fn strange(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(400);

    /// Returns what comes of an answer that is sent in these pieces, each after a pause, until the other side has had enough.
    fn answered(pieces: &[&[u8]], pause: Duration, most: usize) -> Result<Answer, String> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it has one");
        thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().expect("somebody asks");
                let mut asked = [0; 64];
                let count = stream.read(&mut asked).expect("a request comes");
                assert_eq!(&asked[..count], b"GET /page HTTP/1.0\r\n\r\n");
                for piece in pieces {
                    thread::sleep(pause);
                    if stream.write_all(piece).is_err() {
                        return;
                    }
                }
            });
            let stream = connect_to(address).expect("it listens");
            get_within(stream, "/page", LIMIT, most).map_err(|error| error.to_string())
        })
    }

    #[test]
    fn an_answer_has_a_code_and_a_body() {
        let at_once = |text: &str| answered(&[text.as_bytes()], Duration::ZERO, 1000);
        let good = |code, body: &str| Ok(Answer { code, body: body.to_owned() });
        assert_eq!(at_once("HTTP/1.0 200 OK\r\n\r\nbody\r\n\r\nmore"), good(200, "body\r\n\r\nmore"));
        assert_eq!(at_once("HTTP/1.1 503 no\r\nContent-Length: 3\r\n\r\nwhy"), good(503, "why"));
        for (text, why) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nbody", "cut off"),
            ("HTTP/1.1 200 OK\r\n", "not HTTP"),
            ("HTTP/1.1 many\r\n\r\n", "not HTTP"),
            ("SSH-2.0 200 x\r\n\r\n", "not HTTP"),
            ("", "not HTTP"),
        ] {
            let answer = at_once(text);
            assert!(answer.as_ref().is_err_and(|error| error.contains(why)), "{text}: {answer:?}");
        }
        let binary = answered(&[b"HTTP/1.1 200 OK\r\n\r\n\xff"], Duration::ZERO, 1000);
        assert_eq!(binary, Err("the answer is no text".to_owned()));
    }

    #[test]
    fn an_answer_that_is_long_or_slow_is_not_waited_for() {
        let head: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
        let endless = vec![&[b'x'; 1 << 16][..]; 1000];
        let long = answered(&[&[head][..], &endless].concat(), Duration::ZERO, 1 << 20);
        assert_eq!(long, Err("the answer is longer than 1048576 bytes".to_owned()));
        // Each piece comes in time, and all of them do not.
        let began = Instant::now();
        let slow = answered(&[&b"x"[..]; 100], Duration::from_millis(50), 1000);
        assert_eq!(slow, Err("no answer came in time".to_owned()));
        assert!(began.elapsed() < LIMIT * 4, "{:?}", began.elapsed());
        assert_eq!(answered(&[head], LIMIT * 2, 1000), Err("no answer came in time".to_owned()));
    }

    #[test]
    fn a_socket_that_takes_nobody_is_told_from_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        assert_eq!(connect(&path).expect_err("there is none").kind(), io::ErrorKind::NotFound);
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("the folder can be written");
        let stream = connect(&path).expect("it listens");
        drop(listener);
        let error = get_within(stream, "/page", LIMIT, 1000).expect_err("nobody answers");
        assert_ne!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }
}
