//! Wires: ordered, bounded frames between named nodes.
//!
//! `Ok` from [`Transport::send`] means queued, never delivered and never applied: only an ack says
//! so. A connection delivers its frames in order or ends; what a faulty wire loses, repeats or
//! changes is found by the frame's number and checksum ([`crate::message::frame`]).

use std::fmt;

use crate::error::{Error, Result};

pub mod local;
mod ssh;
pub mod tcp;
#[cfg(feature = "tls")]
pub mod tls;

/// A connection of one transport; never used again once it ended.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ConnId(pub u64);

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What happened on the wire.
#[derive(Debug)]
pub enum TransportEvent {
    /// A connection that [`Transport::connect`] began is up.
    Opened(ConnId),
    /// Somebody connected; the name is only good for messages until the peer has said hello, and that
    /// one for what [`Transport::may_claim`] says.
    Accepted(ConnId, String),
    /// A whole frame came.
    Frame(ConnId, Vec<u8>),
    /// A connection ended, or never came up. Nothing more comes of it.
    Closed(ConnId, Error),
}

/// One node's end of all its connections.
pub trait Transport: Send {
    /// Begins to connect to a node. [`TransportEvent::Opened`] or [`TransportEvent::Closed`] follows.
    ///
    /// # Errors
    /// [`Error::UnknownPeer`], [`Error::NotLoopback`], [`Error::Full`].
    fn connect(&mut self, now: u64, to: &str) -> Result<ConnId>;

    /// Queues a frame.
    ///
    /// # Errors
    /// [`Error::Full`] where the connection's queue is: nothing was queued.
    /// [`Error::Unreachable`] where the connection ended.
    fn send(&mut self, now: u64, conn: ConnId, frame: Vec<u8>) -> Result<()>;

    /// Bytes that a connection's queue takes now.
    fn room(&self, conn: ConnId) -> usize;

    /// The bytes of a frame that came are of no more use; other frames may come into them.
    fn give_back(&mut self, _buffer: Vec<u8>) {}

    /// Whether the peer of an accepted connection may call itself so: `false` where it is authenticated
    /// as somebody else.
    fn may_claim(&self, _conn: ConnId, _name: &str) -> bool {
        true
    }

    /// What happened next, if anything did by `now`.
    fn poll(&mut self, now: u64) -> Option<TransportEvent>;

    /// Ends a connection once what is queued is sent, or a deadline passed. No event follows.
    fn close(&mut self, now: u64, conn: ConnId);

    /// When [`Transport::poll`] has something, as far as that is known ahead.
    fn due_ms(&self) -> Option<u64>;
}
