//! One TCP connection: its two threads, its two bounded queues, its deadlines.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Arrival, QUEUE_LEN_MAX, Shared};
use crate::error::{Error, Result};
use crate::message::FRAME_HEADER_LEN;
use crate::message::frame::payload_len;
use crate::transport::{ConnId, TransportEvent};

/// How often a blocked read looks at its deadline.
const READ_STEP: Duration = Duration::from_millis(500);
/// How often a blocked write looks at its deadline; also the longest that a send may hold its caller.
const WRITE_STEP: Duration = Duration::from_millis(5);
/// Frames up to this length are written by whoever sends them, which saves a thread's waking.
const INLINE_LEN_MAX: usize = 64 << 10;
/// A body is allocated in steps of this as its bytes come: a stated length alone costs nothing.
const BODY_STEP: usize = 256 << 10;

pub(super) struct Conn {
    id: ConnId,
    peer: String,
    accepted: bool,
    shared: Arc<Shared>,
    stream: OnceLock<TcpStream>,
    out: Mutex<Out>,
    out_changed: Condvar,
    // Bytes of frames that came and were not taken yet.
    waiting: Mutex<usize>,
    waiting_changed: Condvar,
    aborted: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Out {
    frames: VecDeque<Vec<u8>>,
    len: usize,
    // Somebody writes to the socket without the lock.
    writing: bool,
    closing_since: Option<u64>,
    over: bool,
}

impl Conn {
    pub fn accepted(shared: &Arc<Shared>, stream: TcpStream) -> io::Result<Arc<Conn>> {
        prepare(&stream)?;
        let conn = Conn::new(shared, "a stranger", true);
        conn.stream.set(stream).expect("it is new");
        Ok(conn)
    }

    /// Connects in the background.
    pub fn connecting(shared: &Arc<Shared>, to: &str, address: SocketAddr) -> Result<Arc<Conn>> {
        let conn = Conn::new(shared, to, false);
        let own = Arc::clone(&conn);
        conn.spawn("repl-write", move || own.connect(address))?;
        Ok(conn)
    }

    fn new(shared: &Arc<Shared>, peer: &str, accepted: bool) -> Arc<Conn> {
        Arc::new(Conn {
            id: shared.conn_id(),
            peer: peer.to_owned(),
            accepted,
            shared: Arc::clone(shared),
            stream: OnceLock::new(),
            out: Mutex::default(),
            out_changed: Condvar::new(),
            waiting: Mutex::new(0),
            waiting_changed: Condvar::new(),
            aborted: AtomicBool::new(false),
            threads: Mutex::default(),
        })
    }

    pub fn id(&self) -> ConnId {
        self.id
    }

    /// Starts the threads of an accepted connection.
    pub fn start(self: &Arc<Conn>) {
        let (reader, writer) = (Arc::clone(self), Arc::clone(self));
        let started = self
            .spawn("repl-write", move || writer.write_all())
            .and_then(|()| self.spawn("repl-read", move || reader.read_all()));
        if let Err(why) = started {
            self.fail(why);
            self.leave();
        }
    }

    fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body);
        let thread = thread.map_err(super::failed("start thread", name))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    fn connect(self: &Arc<Conn>, address: SocketAddr) {
        let timeout = Duration::from_millis(self.shared.options.connect_ms);
        let connected = TcpStream::connect_timeout(&address, timeout).and_then(|stream| {
            prepare(&stream)?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => {
                self.stream.set(stream).expect("it is set once");
                let reader = Arc::clone(self);
                if let Err(why) = self.spawn("repl-read", move || reader.read_all()) {
                    self.fail(why);
                    return self.leave();
                }
                self.shared
                    .arrive(Arrival::Event(TransportEvent::Opened(self.id)));
                self.write_all();
            }
            Err(error) => {
                self.fail(Error::unreachable(
                    &self.peer,
                    format!("connect to {address}: {error}"),
                ));
                self.leave();
            }
        }
    }

    /// Queues a frame, or writes it at once where nothing is before it.
    pub fn send(&self, frame: Vec<u8>) -> Result<()> {
        let mut out = self.out.lock();
        if out.over || out.closing_since.is_some() {
            return Err(Error::unreachable(&self.peer, "the connection ended"));
        }
        if out.len + frame.len() > QUEUE_LEN_MAX {
            return Err(Error::Full {
                what: "connection queue",
                limit: QUEUE_LEN_MAX,
            });
        }
        let mut frame = frame;
        let idle = out.frames.is_empty() && !out.writing && frame.len() <= INLINE_LEN_MAX;
        if let Some(mut stream) = self.stream.get().filter(|_| idle) {
            // At most one step of waiting; a failure is found again by the thread, which reports it.
            let written = stream.write(&frame).unwrap_or(0);
            if written == frame.len() {
                return Ok(());
            }
            frame.drain(..written);
        }
        out.len += frame.len();
        out.frames.push_back(frame);
        self.out_changed.notify_one();
        Ok(())
    }

    pub fn room(&self) -> usize {
        QUEUE_LEN_MAX - self.out.lock().len
    }

    /// A frame of this length was taken by the driver.
    pub fn taken(&self, len: usize) {
        *self.waiting.lock() -= cost(len);
        self.waiting_changed.notify_one();
    }

    /// Sends what is queued, then ends.
    pub fn close(&self) {
        self.out.lock().closing_since = Some(self.shared.now_ms());
        self.out_changed.notify_one();
        self.waiting_changed.notify_one();
    }

    /// Ends at once.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.out.lock().over = true;
        self.out_changed.notify_one();
        self.waiting_changed.notify_one();
        if let Some(stream) = self.stream.get() {
            // It may have ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // A panic of ours was printed by the thread; there is nobody to hand it to.
            let _ = thread.join();
        }
    }

    /// Joins the threads where they have ended.
    pub fn join_if_over(&self) -> bool {
        let over = self
            .threads
            .lock()
            .iter()
            .all(|thread| thread.is_finished());
        if over {
            self.join();
        }
        over
    }

    /// Reports the end of the connection, once.
    fn fail(&self, why: Error) {
        let silent = {
            let mut out = self.out.lock();
            std::mem::replace(&mut out.over, true) || out.closing_since.is_some()
        };
        self.out_changed.notify_one();
        if let Some(stream) = self.stream.get() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if !silent {
            self.shared
                .arrive(Arrival::Event(TransportEvent::Closed(self.id, why)));
        }
    }

    /// The place of this connection is free again.
    fn leave(&self) {
        self.shared.conn_count.fetch_sub(1, Ordering::AcqRel);
    }

    fn write_all(self: &Arc<Conn>) {
        let stream = self.stream.get().expect("it is connected");
        loop {
            let frame = {
                let mut out = self.out.lock();
                out.writing = false;
                while out.frames.is_empty() && out.closing_since.is_none() && !out.over {
                    self.out_changed.wait(&mut out);
                }
                if out.over {
                    return;
                }
                let Some(frame) = out.frames.pop_front() else {
                    break;
                };
                out.writing = true;
                frame
            };
            let written = self.write(stream, &frame);
            self.out.lock().len -= frame.len();
            if let Err(why) = written {
                return self.fail(why);
            }
            // Room again: there may be more to ship.
            self.shared.notifier.notify();
        }
        // The peer reads to the end of what was sent; the reader waits for it to close.
        let _ = stream.shutdown(Shutdown::Write);
    }

    /// Writes one frame, as long as some of it goes.
    fn write(&self, mut stream: &TcpStream, mut bytes: &[u8]) -> Result<()> {
        let mut moved_ms = self.shared.now_ms();
        while !bytes.is_empty() {
            match stream.write(bytes) {
                Ok(0) => return Err(Error::unreachable(&self.peer, "the connection ended")),
                Ok(n) => {
                    bytes = &bytes[n..];
                    moved_ms = self.shared.now_ms();
                }
                Err(error) if is_timeout(&error) => {
                    let (now, options) = (self.shared.now_ms(), &self.shared.options);
                    let closing = self.out.lock().closing_since;
                    let drained = closing.is_some_and(|since| now > since + options.drain_ms);
                    if drained || now > moved_ms + options.progress_ms {
                        return Err(Error::unreachable(&self.peer, "it takes no more bytes"));
                    }
                }
                Err(error) => return Err(Error::unreachable(&self.peer, error.to_string())),
            }
        }
        Ok(())
    }

    fn read_all(self: &Arc<Conn>) {
        let mut first = self.accepted;
        let why = loop {
            match self.read_frame(first) {
                Ok(Some(frame)) => self.deliver(frame),
                Ok(None) => {}
                Err(why) => break why,
            }
            first = false;
        };
        self.fail(why);
        self.leave();
    }

    /// The next frame; `None` for one that came after the connection was closed here.
    fn read_frame(&self, first: bool) -> Result<Option<Vec<u8>>> {
        let options = &self.shared.options;
        // A first frame has begun when the connection has.
        let mut began_ms = first.then(|| self.shared.now_ms());
        let limit_ms = if first {
            options.hello_ms
        } else {
            options.progress_ms
        };
        let mut frame = Vec::with_capacity(FRAME_HEADER_LEN);
        self.fill(&mut frame, 0..FRAME_HEADER_LEN, &mut began_ms, limit_ms)?;
        let len = payload_len(&frame)?;
        if first && len > options.hello_len_max {
            let (expected, found) = (
                format!("at most {}", options.hello_len_max),
                len.to_string(),
            );
            return Err(Error::Damaged {
                what: "length of the first frame",
                expected,
                found,
            });
        }
        let end = FRAME_HEADER_LEN + len;
        if let Some(mut buffer) = self.shared.buffer(end) {
            buffer.truncate(end);
            buffer[..FRAME_HEADER_LEN].copy_from_slice(&frame);
            frame = buffer;
        }
        let mut at = FRAME_HEADER_LEN;
        while at < end {
            let step = at..end.min(at + BODY_STEP);
            at = step.end;
            self.fill(&mut frame, step, &mut began_ms, limit_ms)?;
        }
        Ok(self.out.lock().closing_since.is_none().then_some(frame))
    }

    /// Reads a part of a frame, within the limit once its first byte came.
    fn fill(
        &self,
        frame: &mut Vec<u8>,
        part: Range<usize>,
        began_ms: &mut Option<u64>,
        limit_ms: u64,
    ) -> Result<()> {
        let mut stream = self.stream.get().expect("it is connected");
        let Range {
            start: mut at,
            end: len,
        } = part;
        if frame.len() < len {
            frame.resize(len, 0);
        }
        while at < len {
            let read = stream.read(&mut frame[at..len]);
            let now = self.shared.now_ms();
            match read {
                Ok(0) => return Err(Error::unreachable(&self.peer, "it closed the connection")),
                Ok(n) => {
                    at += n;
                    began_ms.get_or_insert(now);
                }
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(Error::unreachable(&self.peer, error.to_string())),
            }
            let closing = self.out.lock().closing_since;
            let drained = closing.is_some_and(|since| now > since + self.shared.options.drain_ms);
            let drained = drained || self.aborted.load(Ordering::Acquire);
            if drained || at < len && began_ms.is_some_and(|began| now > began + limit_ms) {
                return Err(Error::unreachable(
                    &self.peer,
                    "a frame that began does not come",
                ));
            }
        }
        Ok(())
    }

    /// Hands a frame to the driver, and waits while it has too many: then the peer waits too.
    fn deliver(&self, frame: Vec<u8>) {
        let mut waiting = self.waiting.lock();
        while *waiting + cost(frame.len()) > QUEUE_LEN_MAX && *waiting > 0 {
            let closing = { self.out.lock().closing_since.is_some() };
            if closing || self.aborted.load(Ordering::Acquire) {
                return;
            }
            self.waiting_changed.wait_for(&mut waiting, READ_STEP);
        }
        *waiting += cost(frame.len());
        drop(waiting);
        self.shared
            .arrive(Arrival::Event(TransportEvent::Frame(self.id, frame)));
    }
}

/// What a frame that waits costs: many tiny ones are not free.
fn cost(frame_len: usize) -> usize {
    frame_len + 256
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(READ_STEP))?;
    stream.set_write_timeout(Some(WRITE_STEP))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
