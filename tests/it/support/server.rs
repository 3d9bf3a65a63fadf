//! A small HTTP server on this machine that answers as a test says: cut off, late, with other bytes.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a client asked for.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// Gives a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<String>,
    pub body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Wait in the middle of the body.
    pub stall: Option<Duration>,
}

impl Reply {
    /// The whole of `body`.
    pub fn ok(body: &[u8]) -> Self {
        Self { status: 200, body: body.to_vec(), ..Self::default() }
    }

    /// An error without a body.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// What a server with ranges and entity tags answers.
    pub fn ranged(request: &Request, body: &[u8], etag: &str) -> Self {
        let headers = vec![format!("ETag: {etag}"), "Accept-Ranges: bytes".into()];
        let from =
            request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let valid = request.header("if-range").is_none_or(|tag| tag == etag);
        match from {
            Some(from) if valid && from < body.len() => {
                let range = format!("Content-Range: bytes {from}-{}/{}", body.len() - 1, body.len());
                let headers = headers.into_iter().chain([range]).collect();
                Self { status: 206, headers, body: body[from..].to_vec(), ..Self::default() }
            }
            _ => Self { headers, ..Self::ok(body) },
        }
    }

    /// Closes the connection after so many bytes of the body.
    pub fn cut(self, at: usize) -> Self {
        Self { cut: Some(at), ..self }
    }
}

/// A server; it runs until the program ends.
pub struct Server {
    pub url: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Starts a server; `answer` gets each request with its number, counted from 0.
    pub fn start(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&seen), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let Some(request) = read(&stream) else { return };
                    let number = {
                        let mut log = log.lock().expect("the log");
                        log.push(request.clone());
                        log.len() - 1
                    };
                    let _ = write(stream, &answer(&request, number)); // the client may have gone away
                });
            }
        });
        Self { url, seen }
    }

    /// Lists the requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().expect("the log").clone()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let path = lines.next()?.split_whitespace().nth(1)?.to_owned();
    let headers = lines.filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_owned(), v.to_owned()))).collect();
    Some(Request { path, headers })
}

fn write(mut stream: TcpStream, reply: &Reply) -> std::io::Result<()> {
    let mut head =
        format!("HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n", reply.status, reply.body.len());
    for header in &reply.headers {
        head += &format!("{header}\r\n");
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    let body = &reply.body[..reply.cut.unwrap_or(reply.body.len())];
    let half = body.len() / 2;
    stream.write_all(&body[..half])?;
    if let Some(pause) = reply.stall {
        stream.flush()?;
        std::thread::sleep(pause);
    }
    stream.write_all(&body[half..])?;
    stream.flush()
}
