//! The frame around every message: length, checksum and a number, so that what is damaged, lost or
//! repeated on the way is found here and nowhere else.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | crc | CRC-32 (IEEE) of everything after it |
//! | 4 | 4 | len | payload bytes, at most [`PAYLOAD_LEN_MAX`] |
//! | 8 | 8 | number | of this frame on this connection and direction, from 1 |
//! | 16 | 1 | kind | which message; zero is never valid |
//! | 17 | 7 | reserved | 0 |
//! | 24 | list | payload | see [`super`] |

use strandline_wal::bug::planted;

use super::codec;
use super::{DataHead, Message};
use crate::error::{Error, Result};

/// Length of the frame header.
pub const FRAME_HEADER_LEN: usize = 24;
/// Longest payload. Checked before anything is allocated.
pub const PAYLOAD_LEN_MAX: usize = 8 << 20;
/// Most stored bytes in one Data.
pub const DATA_LEN_MAX: usize = PAYLOAD_LEN_MAX - codec::DATA_FIXED_LEN;

const _: () = assert!(PAYLOAD_LEN_MAX <= u32::MAX as usize);

/// Both directions of one connection: numbers what goes out, checks what comes in.
#[derive(Debug, Default)]
pub struct Link {
    sent: u64,
    received: u64,
}

impl Link {
    /// The next frame to send.
    pub fn seal(&mut self, message: &Message) -> Vec<u8> {
        let mut frame = vec![0; FRAME_HEADER_LEN];
        let kind = codec::encode(message, &mut frame);
        self.finish(frame, kind)
    }

    /// The next frame to send, as Data with these bytes, which are copied once.
    pub fn seal_data(&mut self, head: &DataHead, bytes: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(FRAME_HEADER_LEN + codec::DATA_FIXED_LEN + bytes.len());
        frame.resize(FRAME_HEADER_LEN, 0);
        let kind = codec::encode_data(head, bytes, &mut frame);
        self.finish(frame, kind)
    }

    fn finish(&mut self, mut frame: Vec<u8>, kind: u8) -> Vec<u8> {
        let len = frame.len() - FRAME_HEADER_LEN;
        assert!(len <= PAYLOAD_LEN_MAX, "a payload of {len} bytes");
        self.sent += 1;
        frame[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        frame[8..16].copy_from_slice(&self.sent.to_le_bytes());
        frame[16] = kind;
        let crc = crc32fast::hash(&frame[4..]);
        frame[..4].copy_from_slice(&crc.to_le_bytes());
        frame
    }

    /// Reads a frame that came; `None` for one that came before.
    ///
    /// # Errors
    /// [`Error::Damaged`] where bytes changed or a frame is missing: the connection is of no more
    /// use. [`Error::Protocol`] where the payload is not a message.
    pub fn open(&mut self, peer: &str, frame: Vec<u8>) -> Result<Option<Message>> {
        let len = payload_len(&frame)?;
        let damaged = |what, expected: String, found: String| Error::Damaged {
            what,
            expected,
            found,
        };
        if frame.len() != FRAME_HEADER_LEN + len {
            let (expected, found) = (
                format!("{len} payload bytes"),
                format!("{} in all", frame.len()),
            );
            return Err(damaged("frame length", expected, found));
        }
        let header = frame
            .first_chunk::<FRAME_HEADER_LEN>()
            .expect("its length was checked");
        let (found, expected) = (codec::u32_in(header, 0), crc32fast::hash(&frame[4..]));
        if expected != found && !planted("frame.crc") {
            let (expected, found) = (format!("{expected:#010x}"), format!("{found:#010x}"));
            return Err(damaged("frame checksum", expected, found));
        }
        let number = codec::u64_in(header, 8);
        if number <= self.received && !planted("frame.again") {
            return Ok(None);
        }
        if number != self.received + 1 && !planted("frame.number") {
            let expected = format!("{}", self.received + 1);
            return Err(damaged("frame number", expected, format!("{number}")));
        }
        self.received = number;
        if header[17..].iter().any(|byte| *byte != 0) {
            return Err(Error::protocol(
                peer,
                "reserved bytes of a frame are not zero",
            ));
        }
        codec::decode(header[16], frame, FRAME_HEADER_LEN)
            .map(Some)
            .map_err(|wrong| Error::protocol(peer, wrong.to_string()))
    }
}

/// The payload length that a frame's first bytes state, checked before anything is allocated for it.
///
/// # Errors
/// [`Error::Damaged`] where there is no whole header or the length is past the limit.
pub fn payload_len(header: &[u8]) -> Result<usize> {
    let Some(header) = header.first_chunk::<FRAME_HEADER_LEN>() else {
        let (expected, found) = ("24 bytes".to_owned(), format!("{}", header.len()));
        return Err(Error::Damaged {
            what: "frame header",
            expected,
            found,
        });
    };
    let len = codec::u32_in(header, 4) as usize;
    if len > PAYLOAD_LEN_MAX && !planted("frame.len") {
        let (expected, found) = (format!("at most {PAYLOAD_LEN_MAX}"), format!("{len}"));
        return Err(Error::Damaged {
            what: "frame length",
            expected,
            found,
        });
    }
    Ok(len)
}
