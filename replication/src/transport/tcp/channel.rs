//! What carries a connection's bytes: a socket as it is, a socket under TLS, or a command's pipes.
//!
//! Every call waits one step at most, [`READ_STEP`] or [`WRITE_STEP`], so that the threads of a
//! connection see their deadlines. One thread reads and one at a time writes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::transport::ssh::Command;
#[cfg(feature = "tls")]
use crate::transport::tls::Session;

/// How often a blocked read looks at its deadline.
pub(in crate::transport) const READ_STEP: Duration = Duration::from_millis(500);
/// How often a blocked write looks at its deadline; also the longest that a send may hold its caller.
pub(in crate::transport) const WRITE_STEP: Duration = Duration::from_millis(5);

/// See the module.
pub(in crate::transport) enum Channel {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<Session>),
    Command(Command),
}

/// What one write did.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::transport) struct Written {
    /// Bytes of the caller's that it need not write again.
    pub taken: usize,
    /// Bytes that went out: under TLS they are others than those that were taken.
    pub went: usize,
}

impl Channel {
    pub fn plain(stream: TcpStream) -> io::Result<Channel> {
        prepare(&stream)?;
        Ok(Channel::Plain(stream))
    }

    /// Bytes that came; 0 at the end.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Channel::Plain(stream) => (&mut &*stream).read(buffer),
            #[cfg(feature = "tls")]
            Channel::Tls(session) => session.read(buffer),
            Channel::Command(command) => command.read(buffer),
        }
    }

    /// Bytes that came, as they are on the socket.
    pub fn read_raw(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            #[cfg(feature = "tls")]
            Channel::Tls(session) => session.read_raw(buffer),
            Channel::Plain(_) | Channel::Command(_) => self.read(buffer),
        }
    }

    /// Writes some of the bytes, or some of what was taken before.
    pub fn write(&self, bytes: &[u8]) -> io::Result<Written> {
        let plain = |taken| Written { taken, went: taken };
        match self {
            Channel::Plain(stream) => (&mut &*stream).write(bytes).map(plain),
            #[cfg(feature = "tls")]
            Channel::Tls(session) => session.write(bytes),
            Channel::Command(command) => command.write(bytes).map(plain),
        }
    }

    /// Whether everything that was taken went out.
    pub fn is_flushed(&self) -> bool {
        match self {
            #[cfg(feature = "tls")]
            Channel::Tls(session) => session.is_flushed(),
            Channel::Plain(_) | Channel::Command(_) => true,
        }
    }

    /// Tells the peer that nothing more comes.
    pub fn end_writes(&self) {
        // It may have ended already.
        let _ = match self {
            Channel::Plain(stream) => stream.shutdown(Shutdown::Write),
            #[cfg(feature = "tls")]
            Channel::Tls(session) => session.end_writes(),
            Channel::Command(command) => command.end_writes(),
        };
    }

    /// Ends both directions at once and wakes whoever waits in a call.
    pub fn end(&self) {
        // It may have ended already.
        let _ = match self {
            Channel::Plain(stream) => stream.shutdown(Shutdown::Both),
            #[cfg(feature = "tls")]
            Channel::Tls(session) => session.end(),
            Channel::Command(command) => command.end(),
        };
    }

    /// What ended it, where that explains more than the end of its bytes.
    pub fn ended(&self) -> Option<String> {
        match self {
            Channel::Command(command) => command.ended(),
            _ => None,
        }
    }

    /// After the threads have ended: leaves no process behind.
    pub fn reap(&self) {
        if let Channel::Command(command) = self {
            command.reap();
        }
    }
}

pub(in crate::transport) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(READ_STEP))?;
    stream.set_write_timeout(Some(WRITE_STEP))
}

pub(in crate::transport) fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
