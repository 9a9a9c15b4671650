//! One connection: its two threads, its two bounded queues, its deadlines.
//!
//! An accepted one is a stranger until its first frame is whole: it has one thread, and nobody hears of
//! it but the list of refusals.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::channel::{Channel, READ_STEP, Written, is_timeout};
use super::{Arrival, QUEUE_LEN_MAX, Shared, Target};
use crate::error::{Error, Result};
use crate::message::FRAME_HEADER_LEN;
use crate::message::frame::payload_len;
use crate::transport::ssh::Command;
use crate::transport::{ConnId, TransportEvent};

/// Who was refused is read for so long, in milliseconds, that it gets to know why: a socket that is
/// closed with unread bytes takes back what was sent to it.
const LINGER_MS: u64 = 250;
/// Frames up to this length are written by whoever sends them, which saves a thread's waking.
const INLINE_LEN_MAX: usize = 64 << 10;
/// A body is allocated in steps of this as its bytes come: a stated length alone costs nothing.
const BODY_STEP: usize = 256 << 10;

pub(super) struct Conn {
    id: ConnId,
    peer: String,
    // Where it was accepted from.
    from: Option<SocketAddr>,
    began_ms: u64,
    shared: Arc<Shared>,
    channel: OnceLock<Channel>,
    out: Mutex<Out>,
    out_changed: Condvar,
    // Bytes of frames that came and were not taken yet.
    waiting: Mutex<usize>,
    waiting_changed: Condvar,
    aborted: AtomicBool,
    // It was accepted, or connected to, and has a place among the connections.
    known: AtomicBool,
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
    pub fn accepted(
        shared: &Arc<Shared>,
        stream: TcpStream,
        from: SocketAddr,
    ) -> io::Result<Arc<Conn>> {
        let conn = Conn::new(shared, "a stranger", Some(from));
        let channel = shared.options.accept(stream)?;
        assert!(conn.channel.set(channel).is_ok(), "it is new");
        Ok(conn)
    }

    /// Connects in the background. It has its place already.
    pub fn connecting(shared: &Arc<Shared>, to: &str, target: Target) -> Result<Arc<Conn>> {
        let conn = Conn::new(shared, to, None);
        conn.known.store(true, Ordering::Release);
        let own = Arc::clone(&conn);
        conn.spawn("repl-write", move || own.connect(target))?;
        Ok(conn)
    }

    fn new(shared: &Arc<Shared>, peer: &str, from: Option<SocketAddr>) -> Arc<Conn> {
        Arc::new(Conn {
            id: shared.conn_id(),
            peer: peer.to_owned(),
            from,
            began_ms: shared.now_ms(),
            shared: Arc::clone(shared),
            channel: OnceLock::new(),
            out: Mutex::default(),
            out_changed: Condvar::new(),
            waiting: Mutex::new(0),
            waiting_changed: Condvar::new(),
            aborted: AtomicBool::new(false),
            known: AtomicBool::new(false),
            threads: Mutex::default(),
        })
    }

    pub fn id(&self) -> ConnId {
        self.id
    }

    pub fn is_stranger(&self) -> bool {
        !self.known.load(Ordering::Acquire)
    }

    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    /// Whether the peer may call itself so, as far as its authentication says.
    pub fn may_claim(&self, name: &str) -> bool {
        match self.channel.get() {
            #[cfg(feature = "tls")]
            Some(Channel::Tls(session)) => {
                let may = session.may_claim(name);
                if let Some(from) = self.from.filter(|_| !may) {
                    let why =
                        format!("it calls itself {name:?}, which its certificate does not say");
                    self.shared.refuse(from, &why);
                }
                may
            }
            _ => {
                let _ = name;
                true
            }
        }
    }

    /// Starts the thread of an accepted connection; `false` where there is none to be had.
    pub fn start(self: &Arc<Conn>) -> bool {
        let own = Arc::clone(self);
        self.spawn("repl-read", move || own.greet()).is_ok()
    }

    /// The life of an accepted connection.
    fn greet(self: &Arc<Conn>) {
        let from = self.from.expect("it was accepted");
        let end_ms = self.began_ms + self.shared.options.hello_ms;
        let admitted = self.handshake(end_ms).and_then(|()| {
            let frame = self.read_frame(true)?;
            let limit = self.shared.options.conn_count_max;
            let full = Error::Full {
                what: "connection table",
                limit,
            };
            self.shared.admit().then_some(frame).ok_or(full)
        });
        let frame = match admitted {
            Ok(frame) => frame,
            Err(why) => {
                // One that says nothing and goes is a look at the port, and one that was aborted made
                // room: there is nothing to act on.
                if !self.is_aborted() {
                    self.shared.refuse(from, &text_of(&why));
                    self.linger();
                }
                return self.fail(why);
            }
        };
        // From here on it is the driver's.
        self.shared
            .arrive(Arrival::Accepted(Arc::clone(self), from));
        // Afterwards: whoever takes it off the strangers must find it there.
        self.known.store(true, Ordering::Release);
        let writer = Arc::clone(self);
        if let Err(why) = self.spawn("repl-write", move || writer.write_all()) {
            self.fail(why);
            return self.leave();
        }
        if let Some(frame) = frame {
            self.deliver(frame);
        }
        self.read_all();
    }

    /// Authenticates both ends, where that is what the connection does.
    fn handshake(&self, end_ms: u64) -> Result<()> {
        #[cfg(feature = "tls")]
        if let Some(Channel::Tls(session)) = self.channel.get() {
            let is_late = || self.shared.now_ms() > end_ms || self.is_aborted();
            return session
                .handshake(is_late)
                .map_err(|error| Error::unreachable(&self.peer, error.to_string()));
        }
        let _ = end_ms;
        Ok(())
    }

    /// Reads what a refused peer still sends, briefly.
    fn linger(&self) {
        let channel = self.channel.get().expect("it is connected");
        channel.end_writes();
        let end_ms = self.shared.now_ms() + LINGER_MS;
        let mut rest = [0; 4096];
        let mut left = self.shared.options.hello_len_max;
        while left > 0 && self.shared.now_ms() < end_ms {
            match channel.read_raw(&mut rest) {
                Ok(0) => return,
                Ok(n) => left = left.saturating_sub(n),
                Err(error) if is_timeout(&error) => {}
                Err(_) => return,
            }
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

    fn connect(self: &Arc<Conn>, target: Target) {
        let timeout = Duration::from_millis(self.shared.options.connect_ms);
        let connected = match &target {
            Target::Socket { address, node } => self.shared.options.dial(address, node, timeout),
            Target::Command(arguments) => Command::start(arguments).map(Channel::Command),
        };
        let failed = |error| {
            let what = format!("connect to {target}: {error}");
            Error::unreachable(&self.peer, what)
        };
        let opened = connected.map_err(failed).and_then(|channel| {
            assert!(self.channel.set(channel).is_ok(), "it is set once");
            if self.is_aborted() {
                return Err(Error::unreachable(&self.peer, "the connection ended"));
            }
            self.handshake(self.shared.now_ms() + self.shared.options.connect_ms)?;
            let reader = Arc::clone(self);
            self.spawn("repl-read", move || reader.read_all())
        });
        if let Err(why) = opened {
            self.fail(why);
            return self.leave();
        }
        self.shared
            .arrive(Arrival::Event(TransportEvent::Opened(self.id)));
        self.write_all();
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
        if let Some(channel) = self.channel.get().filter(|_| idle) {
            // At most one step of waiting; a failure is found again by the thread, which reports it.
            let taken = channel.write(&frame).unwrap_or_default().taken;
            if taken == frame.len() && channel.is_flushed() {
                return Ok(());
            }
            // What is left of it; an empty one makes the thread send what was taken.
            frame.drain(..taken);
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
        if let Some(channel) = self.channel.get() {
            channel.end();
        }
    }

    pub fn join(&self) {
        // A thread may start the other one before it ends.
        while let Some(thread) = { self.threads.lock().pop() } {
            // A panic of ours was printed by the thread; there is nobody to hand it to.
            let _ = thread.join();
        }
        if let Some(channel) = self.channel.get() {
            channel.reap();
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
        if let Some(channel) = self.channel.get() {
            channel.end();
        }
        if !silent && !self.is_stranger() {
            self.shared
                .arrive(Arrival::Event(TransportEvent::Closed(self.id, why)));
        }
    }

    /// The place of this connection is free again.
    fn leave(&self) {
        self.shared.conn_count.fetch_sub(1, Ordering::AcqRel);
    }

    fn write_all(self: &Arc<Conn>) {
        let channel = self.channel.get().expect("it is connected");
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
            let written = self.write(channel, &frame);
            self.out.lock().len -= frame.len();
            if let Err(why) = written {
                return self.fail(self.explained(why));
            }
            // Room again: there may be more to ship.
            self.shared.notifier.notify();
        }
        // The peer reads to the end of what was sent; the reader waits for it to close.
        channel.end_writes();
    }

    /// Writes one frame, as long as some of it goes.
    fn write(&self, channel: &Channel, mut bytes: &[u8]) -> Result<()> {
        let mut moved_ms = self.shared.now_ms();
        while !bytes.is_empty() || !channel.is_flushed() {
            let written = match channel.write(bytes) {
                Ok(written) => written,
                Err(error) if is_timeout(&error) => Written::default(),
                Err(error) => return Err(Error::unreachable(&self.peer, error.to_string())),
            };
            bytes = &bytes[written.taken..];
            let (now, options) = (self.shared.now_ms(), &self.shared.options);
            if written.went > 0 {
                moved_ms = now;
                continue;
            }
            let closing = self.out.lock().closing_since;
            let drained = closing.is_some_and(|since| now > since + options.drain_ms);
            if drained || now > moved_ms + options.progress_ms {
                return Err(Error::unreachable(&self.peer, "it takes no more bytes"));
            }
        }
        Ok(())
    }

    fn read_all(self: &Arc<Conn>) {
        let why = loop {
            match self.read_frame(false) {
                Ok(Some(frame)) => self.deliver(frame),
                Ok(None) => {}
                Err(why) => break why,
            }
        };
        self.fail(self.explained(why));
        self.leave();
    }

    /// What ended the connection, where that says more than what became of its bytes.
    fn explained(&self, why: Error) -> Error {
        let ended = self.channel.get().and_then(Channel::ended);
        ended.map_or(why, |what| Error::unreachable(&self.peer, what))
    }

    /// The next frame; `None` for one that came after the connection was closed here.
    fn read_frame(&self, first: bool) -> Result<Option<Vec<u8>>> {
        let options = &self.shared.options;
        // A first frame has begun when the connection has.
        let mut began_ms = first.then_some(self.began_ms);
        let limit_ms = if first {
            options.hello_ms
        } else {
            options.progress_ms
        };
        let mut frame = Vec::with_capacity(FRAME_HEADER_LEN);
        let filled = self.fill(&mut frame, 0..FRAME_HEADER_LEN, &mut began_ms, limit_ms);
        if is_tls(&frame) {
            let what = "it speaks TLS: start this node with a certificate, or it without";
            return Err(Error::unreachable(&self.peer, what));
        }
        filled?;
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
        let channel = self.channel.get().expect("it is connected");
        let Range {
            start: mut at,
            end: len,
        } = part;
        if frame.len() < len {
            frame.resize(len, 0);
        }
        while at < len {
            let read = channel.read(&mut frame[at..len]);
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

/// Why a stranger is refused: nobody tries that again here.
fn text_of(why: &Error) -> String {
    match why {
        Error::Unreachable { what, .. } => what.clone(),
        why => why.to_string(),
    }
}

/// Whether what came first is a record of TLS and no frame: a client's greeting, or an alert.
fn is_tls(frame: &[u8]) -> bool {
    match frame {
        // Handshake, version, record length; client hello, its length: the two lengths agree.
        [0x16, 3, 0..=4, high, low, 1, 0, inner_high, inner_low, ..] => {
            let (outer, inner) = ([*high, *low], [*inner_high, *inner_low]);
            u32::from(u16::from_be_bytes(outer)) == u32::from(u16::from_be_bytes(inner)) + 4
        }
        // An alert of two bytes, and nothing after it.
        [0x15, 3, 0..=4, 0, 2, _, _, rest @ ..] => rest.iter().all(|byte| *byte == 0),
        _ => false,
    }
}
