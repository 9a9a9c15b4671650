//! Real sockets: one listener, and per connection a thread that reads and one that writes.
//!
//! Plain TCP has neither secrecy nor authentication, so it goes over loopback and nowhere else:
//! listening on or connecting to any other address is an error. With a certificate every connection is
//! under TLS, and any address is as good. A node may also be reached through a command, as ssh.
//! Sockets are touched here, in `tcp/`, `tls/` and `ssh.rs`, and nowhere else in this crate.
//!
//! What a peer can cost is bounded: the number of connections, and apart from them the number of those
//! that have not said hello; the bytes of both queues, the length of the first frame, and the time in
//! which the first frame, and later one that has begun, must come or go. The driver hears of a
//! connection when its first frame is whole.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use strandline_wal::bug::planted;
use strandline_wal::io::Clock;

#[cfg(feature = "tls")]
use super::tls::{Session, Tls, node_name};
use super::{ConnId, Transport, TransportEvent};
use crate::error::{Error, Result};
use crate::message::{FRAME_HEADER_LEN, PAYLOAD_LEN_MAX};
use crate::notify::Notifier;

pub(super) mod channel;
mod conn;
mod strangers;

use channel::Channel;
use conn::Conn;
use strangers::Strangers;

pub use strangers::Refusals;

/// Bytes that one direction of a connection may hold in this process.
pub const QUEUE_LEN_MAX: usize = 16 << 20;

/// Buffers of long frames that are kept to be used again, of all connections together: fresh ones cost
/// more than what is read into them, because their pages do.
const BUFFER_COUNT_MAX: usize = 32;
/// Lengths of buffers that are kept.
const BUFFER_LENS: std::ops::RangeInclusive<usize> = 64 << 10..=512 << 10;

const _: () = assert!(QUEUE_LEN_MAX > PAYLOAD_LEN_MAX + FRAME_HEADER_LEN);
const _: () = assert!(BUFFER_COUNT_MAX * (512 << 10) <= QUEUE_LEN_MAX);

/// Settings of a TCP transport.
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// Where to listen; a port of 0 takes any. `None`: others cannot connect.
    pub listen: Option<SocketAddr>,
    /// Addresses of nodes by name. A name that is an address need not stand here: `HOST:PORT`, and under
    /// TLS `NODE@HOST:PORT` where the certificate there names the node and not the host.
    pub peers: BTreeMap<String, SocketAddr>,
    /// Nodes that are reached through a command and not through a socket, by name: a program and its
    /// arguments.
    pub commands: BTreeMap<String, Vec<String>>,
    /// Puts every connection but those of commands under TLS.
    #[cfg(feature = "tls")]
    pub tls: Option<Arc<Tls>>,
    /// Most connections at a time, both ways together.
    pub conn_count_max: usize,
    /// Most accepted connections besides that have not said hello.
    pub stranger_count_max: usize,
    /// A connection comes up within this time, in milliseconds.
    pub connect_ms: u64,
    /// The first frame of an accepted connection comes within this time, authentication included, in
    /// milliseconds.
    pub hello_ms: u64,
    /// Longest first frame of an accepted connection, in bytes.
    pub hello_len_max: usize,
    /// A frame that has begun comes within this time, and while there is something to write some of
    /// it goes within this time, in milliseconds.
    pub progress_ms: u64,
    /// What is queued when a connection is closed goes within this time, in milliseconds.
    pub drain_ms: u64,
}

impl Default for TcpOptions {
    fn default() -> TcpOptions {
        TcpOptions {
            listen: None,
            peers: BTreeMap::new(),
            commands: BTreeMap::new(),
            #[cfg(feature = "tls")]
            tls: None,
            conn_count_max: 128,
            stranger_count_max: 32,
            connect_ms: 5_000,
            hello_ms: 5_000,
            hello_len_max: 64 << 10,
            progress_ms: 30_000,
            drain_ms: 1_000,
        }
    }
}

/// What to connect to.
enum Target {
    Socket {
        /// An address, or a host and a port to look up.
        address: Address,
        /// Whose certificate must be there.
        node: String,
    },
    Command(Vec<String>),
}

enum Address {
    Known(SocketAddr),
    #[cfg(feature = "tls")]
    Named(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Socket { address, .. } => match address {
                Address::Known(address) => write!(f, "{address}"),
                #[cfg(feature = "tls")]
                Address::Named(name) => f.write_str(name),
            },
            Target::Command(arguments) => write!(f, "{arguments:?}"),
        }
    }
}

impl TcpOptions {
    fn is_plain(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_none();
        #[cfg(not(feature = "tls"))]
        true
    }

    fn check_address(&self, address: SocketAddr) -> Result<()> {
        match address.ip().is_loopback() || !self.is_plain() || planted("tcp.loopback") {
            true => Ok(()),
            false => Err(Error::NotLoopback { address }),
        }
    }

    fn target(&self, to: &str) -> Result<Target> {
        if let Some(arguments) = self.commands.get(to) {
            return Ok(Target::Command(arguments.clone()));
        }
        let unknown = || Error::UnknownPeer {
            name: to.to_owned(),
        };
        let listed = self.peers.get(to).map(|address| (*address, to.to_owned()));
        #[cfg(feature = "tls")]
        if listed.is_none() && !self.is_plain() {
            let at = to.split_once('@').map_or(to, |(_, at)| at);
            let node = node_name(to).to_owned();
            let address = match at.parse() {
                Ok(address) => Address::Known(address),
                Err(_) if at.contains(':') => Address::Named(at.to_owned()),
                Err(_) => return Err(unknown()),
            };
            return Ok(Target::Socket { address, node });
        }
        let parsed = || to.parse().ok().map(|address| (address, String::new()));
        let (address, node) = listed.or_else(parsed).ok_or_else(unknown)?;
        self.check_address(address)?;
        let address = Address::Known(address);
        Ok(Target::Socket { address, node })
    }

    fn accept(&self, stream: TcpStream) -> io::Result<Channel> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return Ok(Channel::Tls(Box::new(Session::accept(tls, stream)?)));
        }
        Channel::plain(stream)
    }

    /// Connects to a socket; a handshake is left to do.
    fn dial(&self, address: &Address, node: &str, timeout: Duration) -> io::Result<Channel> {
        let stream = match address {
            Address::Known(address) => TcpStream::connect_timeout(address, timeout)?,
            #[cfg(feature = "tls")]
            Address::Named(name) => {
                use std::net::ToSocketAddrs;
                let mut last = io::Error::from(io::ErrorKind::NotFound);
                // The few addresses of a host, one after the other, within the time that there is.
                let addresses: Vec<_> = name.to_socket_addrs()?.take(4).collect();
                let timeout = timeout / u32::try_from(addresses.len().max(1)).expect("a few");
                let found = addresses.into_iter().find_map(|address| {
                    TcpStream::connect_timeout(&address, timeout)
                        .map_err(|error| last = error)
                        .ok()
                });
                found.ok_or(last)?
            }
        };
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return Ok(Channel::Tls(Box::new(Session::dial(tls, stream, node)?)));
        }
        let _ = node;
        Channel::plain(stream)
    }
}

/// See the module.
pub struct TcpTransport {
    shared: Arc<Shared>,
    conns: BTreeMap<ConnId, Arc<Conn>>,
    // Closed here, still sending what was queued.
    ending: Vec<Arc<Conn>>,
    listener: Option<(SocketAddr, JoinHandle<()>)>,
}

/// What the threads share.
struct Shared {
    options: TcpOptions,
    clock: Arc<dyn Clock>,
    notifier: Arc<Notifier>,
    inbox: Mutex<VecDeque<Arrival>>,
    strangers: Strangers,
    refusals: Arc<Refusals>,
    buffers: Mutex<Vec<Vec<u8>>>,
    conn_next: AtomicU64,
    conn_count: AtomicUsize,
    stop: AtomicBool,
}

enum Arrival {
    Accepted(Arc<Conn>, SocketAddr),
    Event(TransportEvent),
}

impl Shared {
    fn now_ms(&self) -> u64 {
        self.clock.mono_ns() / 1_000_000
    }

    fn arrive(&self, arrival: Arrival) {
        self.inbox.lock().push_back(arrival);
        self.notifier.notify();
    }

    /// A buffer to read a frame of this length into, with bytes of another one in it.
    fn buffer(&self, len: usize) -> Option<Vec<u8>> {
        let is_kept = BUFFER_LENS.contains(&len);
        is_kept.then(|| self.buffers.lock().pop()).flatten()
    }

    /// Takes a place for one more connection.
    fn admit(&self) -> bool {
        let max = self.options.conn_count_max;
        let admit = |count: usize| (count < max).then_some(count + 1);
        self.conn_count
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, admit)
            .is_ok()
    }

    /// Notes that a connection was refused before it belonged to anybody.
    fn refuse(&self, from: SocketAddr, why: &str) {
        self.refusals.note(self.now_ms(), from.ip(), why);
    }

    fn conn_id(&self) -> ConnId {
        ConnId(self.conn_next.fetch_add(1, Ordering::Relaxed))
    }
}

impl TcpTransport {
    /// Starts to listen, where the options say so. `notifier` is the driver's.
    ///
    /// # Errors
    /// [`Error::NotLoopback`], [`Error::Io`].
    pub fn new(
        options: TcpOptions,
        clock: Arc<dyn Clock>,
        notifier: Arc<Notifier>,
    ) -> Result<TcpTransport> {
        let listen = options.listen;
        let shared = Arc::new(Shared {
            options,
            clock,
            notifier,
            inbox: Mutex::default(),
            strangers: Strangers::default(),
            refusals: Arc::default(),
            buffers: Mutex::default(),
            conn_next: AtomicU64::new(1),
            conn_count: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let listener = listen
            .map(|address| start_listener(&shared, address))
            .transpose()?;
        Ok(TcpTransport {
            shared,
            conns: BTreeMap::new(),
            ending: Vec::new(),
            listener,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.listener.as_ref().map(|(address, _)| *address)
    }

    /// Why connections were refused before they belonged to anybody.
    pub fn refusals(&self) -> Arc<Refusals> {
        Arc::clone(&self.shared.refusals)
    }

    /// Whether no connection has a thread.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.shared.conn_count.load(Ordering::Acquire) == 0 && self.shared.strangers.is_empty()
    }

    /// Joins the threads of connections that have ended.
    fn reap(&mut self) {
        self.ending.retain(|conn| !conn.join_if_over());
        self.shared.strangers.reap();
    }
}

fn failed(op: &'static str, what: impl ToString) -> impl FnOnce(io::Error) -> Error {
    let what = what.to_string();
    move |source| Error::Io {
        op,
        what,
        source: Arc::new(source),
    }
}

fn start_listener(
    shared: &Arc<Shared>,
    address: SocketAddr,
) -> Result<(SocketAddr, JoinHandle<()>)> {
    shared.options.check_address(address)?;
    let listener = TcpListener::bind(address).map_err(failed("listen on", address))?;
    let address = listener
        .local_addr()
        .map_err(failed("listen on", address))?;
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name("repl-accept".to_owned());
    let thread = thread.spawn(move || accept_all(&shared, &listener));
    Ok((
        address,
        thread.map_err(failed("start thread", "repl-accept"))?,
    ))
}

/// Takes connections until the transport is dropped, which wakes it by connecting.
fn accept_all(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        let accepted = listener.accept();
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        match accepted {
            // One too many is dropped without a word: it costs a stranger a connection and us nothing.
            Ok((stream, from)) if shared.options.check_address(from).is_ok() => {
                if let Ok(conn) = Conn::accepted(shared, stream, from) {
                    let count_max = shared.options.stranger_count_max;
                    shared.strangers.take_in(&conn, from.ip(), count_max);
                }
            }
            Ok(_) => {}
            // Out of descriptors, or a connection that ended before it was taken: go on, slowly.
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
}

impl Transport for TcpTransport {
    fn connect(&mut self, _now: u64, to: &str) -> Result<ConnId> {
        let target = self.shared.options.target(to)?;
        if !self.shared.admit() {
            let limit = self.shared.options.conn_count_max;
            return Err(Error::Full {
                what: "connection table",
                limit,
            });
        }
        let conn = Conn::connecting(&self.shared, to, target).inspect_err(|_| {
            self.shared.conn_count.fetch_sub(1, Ordering::AcqRel);
        })?;
        let id = conn.id();
        self.conns.insert(id, conn);
        Ok(id)
    }

    fn send(&mut self, _now: u64, conn: ConnId, frame: Vec<u8>) -> Result<()> {
        match self.conns.get(&conn) {
            Some(conn) => conn.send(frame),
            None => Err(Error::unreachable("the peer", "the connection ended")),
        }
    }

    fn give_back(&mut self, buffer: Vec<u8>) {
        let mut buffers = self.shared.buffers.lock();
        let is_kept =
            BUFFER_LENS.contains(&buffer.len()) && BUFFER_LENS.contains(&buffer.capacity());
        if is_kept && buffers.len() < BUFFER_COUNT_MAX {
            buffers.push(buffer);
        }
    }

    fn room(&self, conn: ConnId) -> usize {
        self.conns.get(&conn).map_or(0, |conn| conn.room())
    }

    fn poll(&mut self, _now: u64) -> Option<TransportEvent> {
        loop {
            let arrival = self.shared.inbox.lock().pop_front();
            let Some(arrival) = arrival else {
                self.reap();
                return None;
            };
            match arrival {
                Arrival::Accepted(conn, from) => {
                    let id = conn.id();
                    self.conns.insert(id, conn);
                    return Some(TransportEvent::Accepted(id, from.to_string()));
                }
                Arrival::Event(event) => {
                    let id = match &event {
                        TransportEvent::Opened(id)
                        | TransportEvent::Accepted(id, _)
                        | TransportEvent::Frame(id, _)
                        | TransportEvent::Closed(id, _) => *id,
                    };
                    // What was under way when it was closed here is dropped.
                    let Some(conn) = self.conns.get(&id) else {
                        continue;
                    };
                    if let TransportEvent::Frame(_, frame) = &event {
                        conn.taken(frame.len());
                    }
                    if let TransportEvent::Closed(..) = &event {
                        self.ending.extend(self.conns.remove(&id));
                    }
                    return Some(event);
                }
            }
        }
    }

    fn close(&mut self, _now: u64, conn: ConnId) {
        if let Some(conn) = self.conns.remove(&conn) {
            conn.close();
            self.ending.push(conn);
        }
    }

    fn may_claim(&self, conn: ConnId, name: &str) -> bool {
        self.conns
            .get(&conn)
            .is_none_or(|conn| conn.may_claim(name))
    }

    fn due_ms(&self) -> Option<u64> {
        None
    }
}

impl Drop for TcpTransport {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some((address, thread)) = self.listener.take() {
            // Wakes the accept; where it fails the listener has failed too and is awake.
            let _ = TcpStream::connect(address);
            let _ = thread.join();
        }
        for arrival in std::mem::take(&mut *self.shared.inbox.lock()) {
            if let Arrival::Accepted(conn, _) = arrival {
                self.ending.push(conn);
            }
        }
        self.ending
            .extend(std::mem::take(&mut self.conns).into_values());
        // A stranger whose first frame came just now is in both lists or in the second one.
        let strangers = self.shared.strangers.leave();
        strangers.iter().for_each(|conn| conn.abort());
        strangers.into_iter().for_each(|conn| conn.join());
        self.ending.iter().for_each(|conn| conn.abort());
        self.ending.drain(..).for_each(|conn| conn.join());
    }
}
