//! An HTTP server on loopback that misbehaves as it is told.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

/// What to do with a request.
pub enum Answer {
    /// A status and a body.
    Text(u16, String),
    /// The same after a while.
    Late(Duration, String),
    /// A status with headers and no body.
    Headers(u16, &'static str),
    /// Whatever bytes, then the end of the connection.
    Bytes(&'static str),
    /// The connection closes without a byte.
    Hangup,
    /// Half of the body that was promised, then the end.
    Half,
    /// A body without an end.
    Flood,
    /// A beginning of headers, then the same bytes without an end.
    Again(&'static str),
    /// A byte now and then, without an end.
    Trickle,
}

/// A request as it came.
pub struct Request {
    /// Its headers, in lower case.
    pub head: String,
    /// Its body.
    pub body: Value,
}

/// A running server, which ends with the test process.
pub struct Server {
    /// Where it is.
    pub address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: AtomicUsize,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    bodies: Mutex<Vec<Value>>,
}

impl Server {
    /// Starts one; `answer` is told how many requests came before.
    pub fn start(answer: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it has an address");
        let (seen, answer) = (Arc::new(Seen::default()), Arc::new(answer));
        let shared = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, answer) = (Arc::clone(&shared), Arc::clone(&answer));
                // Small pieces of an answer leave at once.
                let _ = stream.set_nodelay(true);
                thread::spawn(move || serve(&stream, &seen, &*answer));
            }
        });
        Self { address, seen }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }

    pub fn most_in_flight(&self) -> usize {
        self.seen.most_in_flight.load(Ordering::SeqCst)
    }

    pub fn bodies(&self) -> Vec<Value> {
        self.seen.bodies.lock().expect("unpoisoned").clone()
    }
}

fn serve(stream: &TcpStream, seen: &Seen, answer: &dyn Fn(usize, &Request) -> Answer) {
    let mut input = BufReader::new(stream);
    while let Some(request) = read(&mut input) {
        let before = seen.requests.fetch_add(1, Ordering::SeqCst);
        let now = seen.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        seen.most_in_flight.fetch_max(now, Ordering::SeqCst);
        seen.bodies.lock().expect("unpoisoned").push(request.body.clone());
        let answer = answer(before, &request);
        if let Answer::Late(pause, _) = &answer {
            thread::sleep(*pause);
        }
        // Before the answer: afterwards the next request may be here already.
        seen.in_flight.fetch_sub(1, Ordering::SeqCst);
        if !matches!(respond(stream, answer), Ok(true)) {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn read(input: &mut impl BufRead) -> Option<Request> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if input.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let head = head.to_lowercase();
    let length = head.split("content-length: ").nth(1)?.lines().next()?.trim().parse().ok()?;
    let mut body = vec![0; length];
    input.read_exact(&mut body).ok()?;
    Some(Request { head, body: serde_json::from_slice(&body).ok()? })
}

/// Whether the connection goes on.
fn respond(mut stream: &TcpStream, answer: Answer) -> std::io::Result<bool> {
    match answer {
        Answer::Text(status, body) => {
            let length = body.len();
            write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{body}")?;
            Ok(true)
        }
        Answer::Late(_, body) => respond(stream, Answer::Text(200, body)),
        Answer::Headers(status, headers) => {
            write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 0\r\n{headers}\r\n\r\n")?;
            Ok(true)
        }
        Answer::Bytes(bytes) => {
            stream.write_all(bytes.as_bytes())?;
            Ok(false)
        }
        Answer::Hangup => Ok(false),
        Answer::Half => {
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{{\"results\": [1")?;
            Ok(false)
        }
        Answer::Flood => {
            write!(stream, "HTTP/1.1 200 OK\r\n\r\n")?;
            loop {
                stream.write_all(&[b'x'; 4096])?;
            }
        }
        Answer::Again(bytes) => {
            let start = if bytes.starts_with("HTTP") { "" } else { "HTTP/1.1 200 OK\r\n" };
            stream.write_all(start.as_bytes())?;
            loop {
                stream.write_all(bytes.as_bytes())?;
                thread::sleep(Duration::from_millis(5));
            }
        }
        Answer::Trickle => {
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")?;
            loop {
                stream.write_all(b" ")?;
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// What a sound scorer answers to the request of a group: 1 for each reply that is the reference.
pub fn results(request: &Request) -> String {
    let results: Vec<Value> = request.body["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| {
            let right = item["reply"] == request.body["reference"];
            let outcome = if right { "correct" } else { "incorrect" };
            json!({"reward": u8::from(right), "outcome": outcome})
        })
        .collect();
    json!({"id": request.body["id"], "results": results}).to_string()
}
