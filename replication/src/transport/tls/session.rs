//! One TLS session over one socket, read by one thread while another writes.
//!
//! The session itself is behind a lock that nobody holds while the socket waits: the reader takes it to
//! open what came, the writer to seal what goes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConnection, Connection, ServerConnection};
use strandline_wal::bug::planted;

use super::{ALPN, Tls, Trust, explain, server_name};
use crate::transport::tcp::channel::{Written, is_timeout, prepare};

/// Bytes that are sealed at a time: four records.
const CHUNK_LEN: usize = 64 << 10;
/// Bytes of the socket that are read at a time: one record.
const INPUT_LEN: usize = 17 << 10;

/// See the module.
pub(in crate::transport) struct Session {
    stream: TcpStream,
    session: Mutex<Connection>,
    input: Mutex<Input>,
    output: Mutex<Output>,
    trust: Arc<Trust>,
    // Of the peer, once the handshake is over.
    certificate: Mutex<Option<CertificateDer<'static>>>,
}

/// Bytes of the socket that the session has not taken.
struct Input {
    bytes: Vec<u8>,
    at: usize,
    len: usize,
}

/// Bytes that are sealed and did not go yet.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    at: usize,
}

impl Output {
    /// Takes what the session has to send.
    fn take(&mut self, session: &mut Connection) -> io::Result<()> {
        while session.wants_write() {
            session.write_tls(&mut self.bytes)?;
        }
        Ok(())
    }

    /// Writes some of it.
    fn flush(&mut self, mut stream: &TcpStream) -> io::Result<usize> {
        if self.is_empty() {
            return Ok(0);
        }
        let went = stream.write(&self.bytes[self.at..])?;
        self.at += went;
        if self.is_empty() {
            self.bytes.clear();
            self.at = 0;
        }
        match went {
            0 => Err(ErrorKind::WriteZero.into()),
            went => Ok(went),
        }
    }

    fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }
}

fn failed(error: &rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, explain(error))
}

impl Session {
    /// The end that listens.
    pub fn accept(tls: &Tls, stream: TcpStream) -> io::Result<Session> {
        let session = ServerConnection::new(Arc::clone(&tls.server));
        let session = session.map_err(|error| failed(&error))?;
        Session::new(tls, stream, session.into())
    }

    /// The end that dials; the peer must show a certificate for `name`.
    pub fn dial(tls: &Tls, stream: TcpStream, name: &str) -> io::Result<Session> {
        let server_name = server_name(name).ok_or_else(|| {
            let what = format!("{name:?} is no name that a certificate can have");
            io::Error::new(ErrorKind::InvalidInput, what)
        })?;
        let session = ClientConnection::new(Arc::clone(&tls.client), server_name);
        let session = session.map_err(|error| failed(&error))?;
        Session::new(tls, stream, session.into())
    }

    fn new(tls: &Tls, stream: TcpStream, mut session: Connection) -> io::Result<Session> {
        prepare(&stream)?;
        // What is sealed goes into `Output`, a chunk at a time.
        session.set_buffer_limit(None);
        Ok(Session {
            stream,
            session: Mutex::new(session),
            input: Mutex::new(Input {
                bytes: vec![0; INPUT_LEN],
                at: 0,
                len: 0,
            }),
            output: Mutex::default(),
            trust: Arc::clone(&tls.trust),
            certificate: Mutex::default(),
        })
    }

    /// Does the handshake until it is over or `is_late`.
    pub fn handshake(&self, is_late: impl Fn() -> bool) -> io::Result<()> {
        loop {
            if is_late() {
                return Err(io::Error::new(
                    ErrorKind::TimedOut,
                    "the TLS handshake does not come to an end",
                ));
            }
            let is_over = {
                let (mut output, mut session) = (self.output.lock(), self.session.lock());
                output.take(&mut session)?;
                output.is_empty() && !session.is_handshaking()
            };
            let moved = match is_over {
                true => return self.admit(),
                false if !self.is_flushed() => self.output.lock().flush(&self.stream),
                false => self.receive(&mut self.input.lock()),
            };
            match moved {
                Ok(0) => {
                    let what =
                        "it closed the connection in the TLS handshake: it may not speak TLS";
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, what));
                }
                Ok(_) => {}
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// After the handshake: who it is, and what it speaks.
    fn admit(&self) -> io::Result<()> {
        let session = self.session.lock();
        // A peer that names no protocol at all is let through by TLS itself.
        if session.alpn_protocol() != Some(ALPN) && !planted("tls.alpn") {
            return Err(failed(&rustls::Error::NoApplicationProtocol));
        }
        let shown = session.peer_certificates().and_then(<[_]>::first);
        *self.certificate.lock() = shown.cloned();
        Ok(())
    }

    /// Whether the peer may call itself so.
    pub fn may_claim(&self, called: &str) -> bool {
        let certificate = self.certificate.lock();
        let certificate = certificate.as_ref();
        certificate.is_some_and(|shown| self.trust.may_claim(shown, called)) || planted("tls.claim")
    }

    /// Reads from the socket and opens what came. The number of bytes; 0 at the end.
    fn receive(&self, input: &mut Input) -> io::Result<usize> {
        if input.at == input.len {
            input.at = 0;
            input.len = 0;
            input.len = (&self.stream).read(&mut input.bytes)?;
        }
        let mut rest = &input.bytes[input.at..input.len];
        let mut session = self.session.lock();
        let taken = session.read_tls(&mut rest)?;
        input.at += taken;
        if let Err(error) = session.process_new_packets() {
            // The peer is told why, as far as that goes without waiting for it.
            if let Some(mut output) = self.output.try_lock() {
                let _ = output.take(&mut session);
                let _ = output.flush(&self.stream);
            }
            return Err(failed(&error));
        }
        Ok(taken)
    }

    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut input = self.input.lock();
        let mut has_received = false;
        loop {
            match self.session.lock().reader().read(buffer) {
                // Bytes that open nothing yet must not keep the caller from its deadlines.
                Err(error) if error.kind() == ErrorKind::WouldBlock && !has_received => {}
                // Frames are whole or not at all: an end that TLS did not announce is as good as one.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            if self.receive(&mut input)? == 0 && input.at == input.len {
                return Ok(0);
            }
            has_received = true;
        }
    }

    /// Bytes of the socket that the session is of no use for any more.
    pub fn read_raw(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.stream).read(buffer)
    }

    pub fn write(&self, bytes: &[u8]) -> io::Result<Written> {
        let mut output = self.output.lock();
        // What was sealed before goes before.
        if !output.is_empty() {
            let went = output.flush(&self.stream)?;
            return Ok(Written { taken: 0, went });
        }
        let taken = bytes.len().min(CHUNK_LEN);
        {
            let mut session = self.session.lock();
            session.writer().write_all(&bytes[..taken])?;
            output.take(&mut session)?;
        }
        match output.flush(&self.stream) {
            Ok(went) => Ok(Written { taken, went }),
            Err(error) if is_timeout(&error) => Ok(Written { taken, went: 0 }),
            Err(error) => Err(error),
        }
    }

    pub fn is_flushed(&self) -> bool {
        self.output.lock().is_empty()
    }

    pub fn end_writes(&self) -> io::Result<()> {
        if let Some(mut output) = self.output.try_lock() {
            let mut session = self.session.lock();
            session.send_close_notify();
            let _ = output.take(&mut session);
            let _ = output.flush(&self.stream);
        }
        self.stream.shutdown(Shutdown::Write)
    }

    pub fn end(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Both)
    }
}
