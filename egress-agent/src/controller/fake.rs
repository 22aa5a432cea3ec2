//! For tests: an API server that answers as it is told.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use kube::Client;
use serde_json::Value;
use tokio::sync::watch;

use super::{Lead, lease::Standing};

/// A request: its method, its path with the query, and its body.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) body: Value,
}

/// What was asked so far.
#[derive(Clone, Debug, Default)]
pub(super) struct All(Arc<Mutex<Vec<Asked>>>);

impl All {
    pub(super) fn now(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.0.lock().expect("nobody panicked")
    }
}

/// Starts one, and returns a client of it and what it is asked. Its threads end with the process.
pub(super) fn api(answer: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static) -> (Client, All) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let address = listener.local_addr().expect("it has an address");
    let (all, answer) = (All::default(), Arc::new(answer));
    let asked = all.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (asked, answer) = (asked.clone(), Arc::clone(&answer));
            thread::spawn(move || serve(&stream.expect("it can be accepted"), &asked, &*answer));
        }
    });
    let config = kube::Config::new(format!("http://{address}").parse().expect("an address"));
    (Client::try_from(config).expect("a client can be made"), all)
}

/// Answers until the connection ends.
fn serve(mut stream: &TcpStream, all: &All, answer: &dyn Fn(&Asked) -> (u16, Value)) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut words = line.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut length = 0;
        loop {
            line.clear();
            reader.read_line(&mut line).expect("a head ends");
            match line.trim().split_once(": ") {
                None => break,
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().expect("a length");
                }
                Some(_) => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body ends");
        let asked = Asked { method, path, body: serde_json::from_slice(&body).unwrap_or_default() };
        all.now().push(asked.clone());
        let (code, body) = answer(&asked);
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        if stream.write_all((head + &body).as_bytes()).is_err() {
            return;
        }
    }
}

/// Returns what permits every write.
pub(super) fn lead() -> Lead {
    let until = Instant::now() + Duration::from_secs(600);
    Lead(watch::channel(Standing::Leader { until, term: 0 }).1)
}
