//! A small HTTP listener for pages that are made on request: metrics, health, status.
//!
//! One thread serves all connections, one request each, and trusts none of them:
//!
//! | Who | meets |
//! |-----|-------|
//! | sends a head of more than [`HEAD_LEN_MAX`] bytes | 431, and the end |
//! | sends slowly, or takes slowly | the end, [`PATIENCE`] after it connected |
//! | connects more than [`CONN_COUNT_MAX`] times | the oldest connection makes room |
//! | sends something else than a request | 400, 405 or 404, and the end |

pub(crate) mod pages;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::failure::{Failure, Result};

/// Longest head of a request, in bytes.
const HEAD_LEN_MAX: usize = 8 << 10;
/// Most connections.
const CONN_COUNT_MAX: usize = 32;
/// Most connections that are taken before those that there are go on.
const ACCEPT_COUNT_MAX: usize = 8;
/// How long a connection may last.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes behind a request that are read and forgotten, so that its answer arrives.
const REST_LEN_MAX: usize = 64 << 10;
/// Longest wait of the thread without a look at whether it is to end.
const WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// What is answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Answer {
    /// HTTP's number and words.
    pub status: &'static str,
    /// The media type.
    pub kind: &'static str,
    pub body: String,
}

impl Answer {
    fn plain(status: &'static str) -> Answer {
        Answer {
            status,
            kind: "text/plain; charset=utf-8",
            body: format!("{status}\n"),
        }
    }
}

/// Makes the page of a path; `None` where there is none.
type Pages = Box<dyn Fn(&str) -> Option<Answer> + Send>;

/// A listener and its thread.
pub(crate) struct Http {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Http {
    /// Listens and serves pages until it is stopped or dropped.
    ///
    /// # Errors
    /// I/O, where the address is taken.
    pub fn start(
        listen: SocketAddr,
        pages: impl Fn(&str) -> Option<Answer> + Send + 'static,
    ) -> Result<Http> {
        let failed = |error| Failure::io(format!("listen at http://{listen}: {error}"));
        let listener = TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let serving = Serving {
            listener,
            conns: VecDeque::new(),
            pages: Box::new(pages),
            stopped: Arc::clone(&stopped),
        };
        let thread = std::thread::Builder::new()
            .name("strandline-http".to_owned())
            .spawn(move || serving.run())
            .map_err(failed)?;
        Ok(Http {
            address,
            stopped,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic was printed by the thread; nothing depends on it.
            let _ = thread.join();
        }
    }
}

struct Serving {
    listener: TcpListener,
    /// Oldest first.
    conns: VecDeque<Conn>,
    pages: Pages,
    stopped: Arc<AtomicBool>,
}

impl Serving {
    fn run(mut self) {
        while !self.stopped.load(Ordering::Acquire) {
            if !self.wait() || !self.accept() {
                // Out of descriptors or memory: some time for them to come back.
                std::thread::sleep(Duration::from_millis(50));
            }
            let now = Instant::now();
            let pages = &self.pages;
            self.conns
                .retain_mut(|conn| now < conn.deadline && conn.step(pages));
        }
    }

    /// Waits until a connection has something to do.
    fn wait(&self) -> bool {
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        for conn in &self.conns {
            let flags = match conn.state {
                State::Sending { .. } => PollFlags::OUT,
                State::Head(_) | State::Rest(_) => PollFlags::IN,
            };
            fds.push(PollFd::new(&conn.stream, flags));
        }
        match poll(&mut fds, Some(&WAIT)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => true,
            Err(_) => false,
        }
    }

    fn accept(&mut self) -> bool {
        for _ in 0..ACCEPT_COUNT_MAX {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_err() {
                        continue;
                    }
                    if self.conns.len() == CONN_COUNT_MAX {
                        self.conns.pop_front();
                    }
                    self.conns.push_back(Conn {
                        stream,
                        deadline: Instant::now() + PATIENCE,
                        state: State::Head(Vec::new()),
                    });
                }
                Err(error) => {
                    let passes = [
                        ErrorKind::WouldBlock,
                        ErrorKind::Interrupted,
                        ErrorKind::ConnectionAborted,
                        ErrorKind::ConnectionReset,
                    ];
                    return passes.contains(&error.kind());
                }
            }
        }
        true
    }
}

struct Conn {
    stream: TcpStream,
    deadline: Instant,
    state: State,
}

enum State {
    /// Of a request, this has come.
    Head(Vec<u8>),
    /// The answer, of which so much was sent.
    Sending { bytes: Vec<u8>, at: usize },
    /// It was sent. A close with bytes unread would take it back; so many were read.
    Rest(usize),
}

/// How far a call on a stream came.
enum Moved {
    Some(usize),
    None,
    End,
}

fn moved(outcome: std::io::Result<usize>) -> Moved {
    match outcome {
        Ok(0) => Moved::End,
        Ok(n) => Moved::Some(n),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Moved::None,
            _ => Moved::End,
        },
    }
}

impl Conn {
    /// Goes on as far as it can without a wait; `false` where it is over.
    fn step(&mut self, pages: &Pages) -> bool {
        let mut buffer = [0; 2048];
        loop {
            match &mut self.state {
                State::Head(head) => match moved(self.stream.read(&mut buffer)) {
                    Moved::None => return true,
                    Moved::End => return false,
                    Moved::Some(n) => {
                        head.extend_from_slice(&buffer[..n]);
                        if let Some(bytes) = answer_to(head, pages) {
                            self.state = State::Sending { bytes, at: 0 };
                        }
                    }
                },
                State::Sending { bytes, at } => match moved(self.stream.write(&bytes[*at..])) {
                    Moved::None => return true,
                    Moved::End => return false,
                    Moved::Some(n) => {
                        *at += n;
                        if *at == bytes.len() {
                            if self.stream.shutdown(Shutdown::Write).is_err() {
                                return false;
                            }
                            self.state = State::Rest(0);
                        }
                    }
                },
                State::Rest(len) => match moved(self.stream.read(&mut buffer)) {
                    Moved::None => return true,
                    Moved::Some(n) if *len + n <= REST_LEN_MAX => *len += n,
                    Moved::Some(_) | Moved::End => return false,
                },
            }
        }
    }
}

/// The bytes of the answer to a request, once its head is whole or can be none.
fn answer_to(head: &[u8], pages: &Pages) -> Option<Vec<u8>> {
    let has = |end: &[u8]| head.windows(end.len()).any(|bytes| bytes == end);
    let is_whole = has(b"\r\n\r\n") || has(b"\n\n");
    if !is_whole {
        let is_over = head.len() > HEAD_LEN_MAX;
        let answer = || Answer::plain("431 Request Header Fields Too Large");
        return is_over.then(|| encode(&answer(), true));
    }
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Some((method, path)) = request(line) else {
        return Some(encode(&Answer::plain("400 Bad Request"), true));
    };
    if method != "GET" && method != "HEAD" {
        return Some(encode(&Answer::plain("405 Method Not Allowed"), true));
    }
    let page = catch_unwind(AssertUnwindSafe(|| pages(path)));
    let answer = match page {
        Ok(Some(answer)) => answer,
        Ok(None) => Answer::plain("404 Not Found"),
        // The panic was printed; the next request may do better.
        Err(_) => Answer::plain("500 Internal Server Error"),
    };
    Some(encode(&answer, method == "GET"))
}

/// Method and path of a request's first line.
fn request(line: &[u8]) -> Option<(&str, &str)> {
    let line = std::str::from_utf8(line).ok()?.trim_end_matches('\r');
    let mut words = line.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let is_method = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
    let is_good = is_method && target.starts_with('/') && version.starts_with("HTTP/1.");
    if !is_good || words.next().is_some() {
        return None;
    }
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    Some((method, path))
}

fn encode(answer: &Answer, with_body: bool) -> Vec<u8> {
    let Answer { status, kind, body } = answer;
    let allow = if status.starts_with("405") {
        "Allow: GET, HEAD\r\n"
    } else {
        ""
    };
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if with_body {
        text.push_str(body);
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests;
