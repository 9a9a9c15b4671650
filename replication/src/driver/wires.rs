//! The connections of a driver: which machine each belongs to, and the numbers of its frames.

use std::collections::BTreeMap;

use strandline_wal::DatasetId;

use crate::error::{Error, Reason, Result};
use crate::message::frame::Link;
use crate::message::{DataHead, Message, Refusal};
use crate::transport::{ConnId, Transport, TransportEvent};

/// Which machine of a dataset a connection belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    Server,
    Lender,
    Pursuer,
    Voter,
    Candidate,
    Fetcher,
}

pub(super) struct Conn {
    link: Link,
    pub peer: String,
    /// `None` until the hello of an accepted connection came.
    pub owner: Option<(DatasetId, Part)>,
    pub since_ms: u64,
}

/// What came in.
pub(super) enum Incoming {
    Opened(ConnId),
    Message(ConnId, Message),
    Closed(ConnId, Error),
}

/// Transport and connections. A machine that sends on a connection that is gone is told so by the
/// next event, never by a panic.
pub(super) struct Wires {
    transport: Box<dyn Transport>,
    pub conns: BTreeMap<ConnId, Conn>,
    // Bytes of what was sent in this step; the driver sees from it whether anything happened.
    pub sent_count: u64,
    /// Bytes of logs that were sent.
    pub data_len: u64,
    /// Whether a log was shipped to its end in this step, by a short piece.
    pub is_drained: bool,
}

impl Wires {
    pub fn new(transport: Box<dyn Transport>) -> Wires {
        Wires {
            transport,
            conns: BTreeMap::new(),
            sent_count: 0,
            data_len: 0,
            is_drained: false,
        }
    }

    pub fn connect(
        &mut self,
        now: u64,
        to: &str,
        dataset: &DatasetId,
        part: Part,
    ) -> Result<ConnId> {
        let conn = self.transport.connect(now, to)?;
        let owner = Some((dataset.clone(), part));
        let peer = to.to_owned();
        self.conns.insert(
            conn,
            Conn {
                link: Link::default(),
                peer,
                owner,
                since_ms: now,
            },
        );
        Ok(conn)
    }

    /// Queues a message. A failure ends the connection: its numbers are out of step from then on.
    pub fn send(&mut self, now: u64, conn: ConnId, message: &Message) -> Result<()> {
        let Some(entry) = self.conns.get_mut(&conn) else {
            return Ok(());
        };
        let frame = entry.link.seal(message);
        self.queue(now, conn, frame)
    }

    pub fn send_data(
        &mut self,
        now: u64,
        conn: ConnId,
        head: &DataHead,
        bytes: &[u8],
    ) -> Result<()> {
        let Some(entry) = self.conns.get_mut(&conn) else {
            return Ok(());
        };
        let frame = entry.link.seal_data(head, bytes);
        self.data_len += bytes.len() as u64;
        self.queue(now, conn, frame)
    }

    fn queue(&mut self, now: u64, conn: ConnId, frame: Vec<u8>) -> Result<()> {
        self.sent_count += 1;
        let queued = self.transport.send(now, conn, frame);
        if queued.is_err() {
            self.close(now, conn);
        }
        queued
    }

    /// The bytes of a frame that came are of no more use.
    pub fn give_back(&mut self, buffer: Vec<u8>) {
        self.transport.give_back(buffer);
    }

    /// Whether an accepted connection's peer may call itself so.
    pub fn may_claim(&self, conn: ConnId, name: &str) -> bool {
        self.transport.may_claim(conn, name)
    }

    pub fn room(&self, conn: ConnId) -> usize {
        if self.conns.contains_key(&conn) {
            self.transport.room(conn)
        } else {
            0
        }
    }

    pub fn close(&mut self, now: u64, conn: ConnId) {
        if self.conns.remove(&conn).is_some() {
            self.transport.close(now, conn);
        }
    }

    /// Tells a peer that no machine takes it, and ends the connection.
    pub fn turn_away(&mut self, now: u64, conn: ConnId, reason: Reason, text: &str, want: &str) {
        let refusal = Refusal {
            reason,
            text: text.to_owned(),
            have: String::new(),
            want: want.to_owned(),
            epoch: strandline_wal::Epoch(0),
        };
        // Where even that cannot be queued the connection is closed by it.
        let _ = self.send(now, conn, &Message::Refused(refusal));
        self.close(now, conn);
    }

    /// The next thing that came in.
    pub fn poll(&mut self, now: u64) -> Option<Incoming> {
        loop {
            match self.transport.poll(now)? {
                TransportEvent::Opened(conn) => {
                    if self.conns.contains_key(&conn) {
                        return Some(Incoming::Opened(conn));
                    }
                    self.transport.close(now, conn);
                }
                TransportEvent::Accepted(conn, peer) => {
                    let link = Link::default();
                    self.conns.insert(
                        conn,
                        Conn {
                            link,
                            peer,
                            owner: None,
                            since_ms: now,
                        },
                    );
                }
                TransportEvent::Frame(conn, frame) => {
                    let Some(entry) = self.conns.get_mut(&conn) else {
                        continue;
                    };
                    match entry.link.open(&entry.peer, frame) {
                        Ok(Some(message)) => return Some(Incoming::Message(conn, message)),
                        Ok(None) => {}
                        Err(why) => {
                            self.transport.close(now, conn);
                            return Some(Incoming::Closed(conn, why));
                        }
                    }
                }
                TransportEvent::Closed(conn, why) => return Some(Incoming::Closed(conn, why)),
            }
        }
    }

    pub fn due_ms(&self) -> Option<u64> {
        self.transport.due_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::local::LocalNetwork;

    /// A machine may send on a connection that another machine's refusal ended in the same step.
    #[test]
    fn nothing_goes_to_a_connection_that_is_gone_and_nobody_panics() {
        let network = LocalNetwork::new(1);
        let (a, _b) = (network.attach("a"), network.attach("b"));
        let mut wires = Wires::new(Box::new(a));
        let dataset = DatasetId::default();
        let conn = wires.connect(0, "b", &dataset, Part::Voter).unwrap();
        assert!(wires.room(conn) > 0);
        wires.send(0, conn, &Message::StatusRequest).unwrap();
        assert_eq!(wires.sent_count, 1);
        for _ in 0..2 {
            wires.close(0, conn);
            wires.send(0, conn, &Message::StatusRequest).unwrap();
            let head = DataHead::default();
            wires.send_data(0, conn, &head, b"bytes").unwrap();
            assert_eq!((wires.room(conn), wires.sent_count), (0, 1));
        }
        assert!(wires.poll(9).is_none());
    }

    #[test]
    fn a_failure_to_send_ends_the_connection() {
        let network = LocalNetwork::new(1);
        let (a, _b) = (network.attach("a"), network.attach("b"));
        let mut wires = Wires::new(Box::new(a));
        let dataset = DatasetId::default();
        let conn = wires.connect(0, "b", &dataset, Part::Voter).unwrap();
        network.detach("b");
        let gone = wires.send(0, conn, &Message::StatusRequest).unwrap_err();
        assert!(matches!(gone, Error::Unreachable { .. }), "{gone}");
        assert!(wires.conns.is_empty());
    }
}
