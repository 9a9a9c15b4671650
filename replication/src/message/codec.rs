//! Payload bytes of every message, out and in. The tables stand in [`super`].

use std::fmt;

use strandline_wal::{DatasetId, Epoch, Hlc, Position, ShardId};

use super::{
    Ack, AckEntry, Data, DataHead, FILES_PER_FRAME_MAX, Hello, Message, Purpose, Refusal, Role,
    Seal, Status, TEXT_LEN_MAX, Tick, TickMark, Verdict, Wants, Welcome,
};
use crate::bundle::{BundleFile, FILE_COUNT_MAX};
use crate::error::Reason;
use crate::ids::{
    BundleId, Incarnation, LeaderId, Lineage, NODE_NAME_LEN_MAX, NodeId, Promise, ShardEnd,
};
use crate::store::Times;

const MAGIC: [u8; 4] = *b"SDLR";

/// Name, kind byte and length of the fixed part, per message. Held against the tables by a test.
pub(crate) const FIXED: [(&str, u8, usize); 21] = [
    ("Hello", 1, 72),
    ("Welcome", 2, 80),
    ("Refused", 3, 16),
    ("Ends", 4, 8),
    ("Verdicts", 5, 8),
    ("Data", 6, DATA_FIXED_LEN),
    ("Seal", 7, 24),
    ("Tick", 8, 32),
    ("Ack", 9, 24),
    ("Credit", 10, 8),
    ("BundleAsk", 11, 16),
    ("BundleBegin", 12, 24),
    ("BundleFiles", 13, 8),
    ("BundleFrom", 14, 16),
    ("BundleData", 15, 16),
    ("BundleEnd", 16, 16),
    ("PromiseRequest", 17, 4),
    ("Promise", 18, 8),
    ("PromiseRefused", 19, 20),
    ("StatusRequest", 20, 0),
    ("Status", 21, 48),
];

/// Length of Data before its bytes.
pub const DATA_FIXED_LEN: usize = 64;
pub(super) const END_LEN: usize = 40;
pub(super) const VERDICT_LEN: usize = 48;
pub(super) const MARK_LEN: usize = 24;
pub(super) const ACK_LEN: usize = 32;
pub(super) const FILE_LEN: usize = 56;

/// Why a payload is not a message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wrong {
    what: &'static str,
    found: u64,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}", self.what, self.found)
    }
}

fn wrong(what: &'static str, found: impl TryInto<u64>) -> Wrong {
    Wrong {
        what,
        found: found.try_into().unwrap_or(u64::MAX),
    }
}

/// Appends the payload of a message to `out` and returns its kind byte.
pub(super) fn encode(message: &Message, out: &mut Vec<u8>) -> u8 {
    let start = out.len();
    let mut w = Writer(out);
    let named = |name| {
        FIXED
            .iter()
            .find(|fixed| fixed.0 == name)
            .expect("every message is listed")
    };
    let (_, kind, fixed_len) = *named(message.name());
    match message {
        Message::Hello(hello) => w.hello(hello),
        Message::Welcome(welcome) => w.welcome(welcome),
        Message::Refused(refusal) => w.refusal(refusal),
        Message::Ends(ends) => w.count(ends.len()).zeros(4).ends(ends),
        Message::Verdicts(verdicts) => w.count(verdicts.len()).zeros(4).verdicts(verdicts),
        Message::Data(data) => return encode_data(&data.head, &data.bytes, w.0),
        Message::Seal(seal) => {
            w.u32(seal.epoch.0)
                .u16(seal.shard.0)
                .zeros(2)
                .u64(seal.segment)
                .u64(seal.at);
            w.bytes(&seal.footer)
        }
        Message::Tick(tick) => {
            w.u32(tick.epoch.0)
                .count(tick.marks.len())
                .u64(tick.wall_ms)
                .times(&tick.times);
            for mark in &tick.marks {
                w.u16(mark.shard.0)
                    .zeros(6)
                    .u64(mark.written)
                    .u64(mark.committed);
            }
            &mut w
        }
        Message::Ack(ack) => {
            w.u32(ack.epoch.0)
                .count(ack.acks.len())
                .u64(ack.wall_ms)
                .u64(ack.taken);
            ack.acks.iter().for_each(|entry| {
                w.ack(entry);
            });
            &mut w
        }
        Message::Credit { granted } => w.u64(*granted),
        Message::BundleAsk { again } => w.bytes(&again.0),
        Message::BundleBegin {
            id,
            file_count,
            ends,
        } => w.bytes(&id.0).u32(*file_count).count(ends.len()).ends(ends),
        Message::BundleFiles(files) => {
            w.count(files.len()).zeros(4);
            for file in files {
                w.bytes(&[file.kind])
                    .zeros(7)
                    .u64(file.number)
                    .u64(file.len)
                    .bytes(&file.digest);
            }
            &mut w
        }
        Message::BundleFrom { file, at } => w.u32(*file).zeros(4).u64(*at),
        Message::BundleData { file, at, bytes } => w.u32(*file).zeros(4).u64(*at).bytes(bytes),
        Message::BundleEnd { id } => w.bytes(&id.0),
        Message::PromiseRequest { epoch } => w.u32(epoch.0),
        Message::Promise { epoch, ends } => w.u32(epoch.0).count(ends.len()).ends(ends),
        Message::PromiseRefused { promise } => w.u32(promise.epoch.0).bytes(&promise.to.0),
        Message::StatusRequest => &mut w,
        Message::Status(status) => w.status(status),
    };
    assert!(
        out.len() - start >= fixed_len,
        "{} has its fixed part",
        message.name()
    );
    kind
}

/// As [`encode`], for Data whose bytes lie elsewhere.
pub(super) fn encode_data(head: &DataHead, bytes: &[u8], out: &mut Vec<u8>) -> u8 {
    let mut w = Writer(out);
    w.u32(head.epoch.0)
        .u16(head.shard.0)
        .zeros(2)
        .u64(head.segment)
        .u64(head.at);
    w.u64(head.written)
        .u64(head.committed)
        .times(&head.times)
        .u64(head.wall_ms)
        .bytes(bytes);
    6
}

/// Reads the payload that starts at `at` of a frame, trusting none of it.
pub(super) fn decode(kind: u8, frame: Vec<u8>, at: usize) -> Result<Message, Wrong> {
    let mut r = Reader(&frame[at..]);
    let message = match kind {
        1 => Message::Hello(r.hello()?),
        2 => Message::Welcome(r.welcome()?),
        3 => Message::Refused(r.refusal()?),
        4 => {
            let count = r.count()?;
            r.zeros(4)?;
            Message::Ends(r.list(count, END_LEN, Reader::end)?)
        }
        5 => {
            let count = r.count()?;
            r.zeros(4)?;
            Message::Verdicts(r.list(count, VERDICT_LEN, Reader::verdict)?)
        }
        6 => {
            let head = r.data_head()?;
            let mut bytes = frame;
            // The bytes stay where they are: a frame of 8 MiB is not worth a second allocation.
            bytes.drain(..at + DATA_FIXED_LEN);
            return Ok(Message::Data(Data { head, bytes }));
        }
        7 => {
            let (epoch, shard) = (Epoch(r.u32()?), ShardId(r.u16()?));
            r.zeros(2)?;
            let (segment, at) = (r.u64()?, r.u64()?);
            Message::Seal(Seal {
                epoch,
                shard,
                segment,
                at,
                footer: r.rest(),
            })
        }
        8 => {
            let (epoch, count, wall_ms) = (Epoch(r.u32()?), r.count()?, r.u64()?);
            let times = r.times()?;
            let marks = r.list(count, MARK_LEN, Reader::mark)?;
            Message::Tick(Tick {
                epoch,
                wall_ms,
                times,
                marks,
            })
        }
        9 => {
            let (epoch, count) = (Epoch(r.u32()?), r.count()?);
            let (wall_ms, taken) = (r.u64()?, r.u64()?);
            Message::Ack(Ack {
                epoch,
                wall_ms,
                taken,
                acks: r.list(count, ACK_LEN, Reader::ack)?,
            })
        }
        10 => Message::Credit { granted: r.u64()? },
        11 => Message::BundleAsk {
            again: BundleId(r.array()?),
        },
        12 => {
            let (id, file_count, count) = (BundleId(r.array()?), r.u32()?, r.count()?);
            if file_count > FILE_COUNT_MAX {
                return Err(wrong("file count of a bundle", file_count));
            }
            Message::BundleBegin {
                id,
                file_count,
                ends: r.list(count, END_LEN, Reader::end)?,
            }
        }
        13 => {
            let count = r.count()?;
            r.zeros(4)?;
            if count > FILES_PER_FRAME_MAX {
                return Err(wrong("file count of a frame", count));
            }
            Message::BundleFiles(r.list(count, FILE_LEN, Reader::file)?)
        }
        14 => {
            let file = r.u32()?;
            r.zeros(4)?;
            Message::BundleFrom { file, at: r.u64()? }
        }
        15 => {
            let file = r.u32()?;
            r.zeros(4)?;
            Message::BundleData {
                file,
                at: r.u64()?,
                bytes: r.rest(),
            }
        }
        16 => Message::BundleEnd {
            id: BundleId(r.array()?),
        },
        17 => Message::PromiseRequest {
            epoch: Epoch(r.u32()?),
        },
        18 => {
            let (epoch, count) = (Epoch(r.u32()?), r.count()?);
            Message::Promise {
                epoch,
                ends: r.list(count, END_LEN, Reader::end)?,
            }
        }
        19 => {
            let promise = Promise {
                epoch: Epoch(r.u32()?),
                to: NodeId(r.array()?),
            };
            Message::PromiseRefused { promise }
        }
        20 => Message::StatusRequest,
        21 => Message::Status(r.status()?),
        kind => return Err(wrong("message kind", kind)),
    };
    match r.0.len() {
        0 => Ok(message),
        left => Err(wrong("bytes behind a message", left)),
    }
}

pub(super) fn u32_in(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_in(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    fn count(&mut self, count: usize) -> &mut Self {
        self.u32(u32::try_from(count).expect("our own lists are short"))
    }

    fn byte_len(&mut self, len: usize) -> &mut Self {
        self.bytes(&[u8::try_from(len).expect("names are short")])
    }

    fn text_len(&mut self, len: usize) -> &mut Self {
        self.u16(u16::try_from(len).expect("texts are cut"))
    }

    fn times(&mut self, times: &Times) -> &mut Self {
        self.u64(times.closed.0).u64(times.committed.0)
    }

    fn ends(&mut self, ends: &[ShardEnd]) -> &mut Self {
        ends.iter().for_each(|end| {
            self.end(end);
        });
        self
    }

    fn end(&mut self, end: &ShardEnd) -> &mut Self {
        self.u16(end.shard.0)
            .zeros(2)
            .u32(end.position.epoch.0)
            .u64(end.position.seq);
        self.bytes(&end.leader.0).u32(end.chain).zeros(4)
    }

    fn ack(&mut self, ack: &AckEntry) -> &mut Self {
        self.u16(ack.shard.0)
            .zeros(6)
            .u64(ack.received)
            .u64(ack.durable)
            .u64(ack.applied)
    }

    fn verdicts(&mut self, verdicts: &[Verdict]) -> &mut Self {
        for verdict in verdicts {
            let (kind, position, leader, segment, at) = match *verdict {
                Verdict::Agreed {
                    position,
                    segment,
                    at,
                    ..
                } => (1, position, LeaderId::default(), segment, at),
                Verdict::Ends {
                    position, leader, ..
                } => (2, position, leader, 0, 0),
                Verdict::Pruned {
                    first_available: seq,
                    ..
                } => (
                    3,
                    Position {
                        epoch: Epoch(0),
                        seq,
                    },
                    LeaderId::default(),
                    0,
                    0,
                ),
            };
            self.u16(verdict.shard().0)
                .bytes(&[kind, 0])
                .u32(position.epoch.0)
                .u64(position.seq);
            self.bytes(&leader.0).u64(segment).u64(at);
        }
        self
    }

    fn hello(&mut self, hello: &Hello) -> &mut Self {
        self.bytes(&MAGIC)
            .u16(hello.versions.0)
            .u16(hello.versions.1);
        self.bytes(&[hello.purpose as u8])
            .byte_len(hello.name.len());
        self.byte_len(hello.dataset.as_str().len())
            .zeros(1)
            .u32(hello.promised_epoch.0);
        self.bytes(&hello.node.0)
            .bytes(&hello.incarnation.0)
            .bytes(&hello.lineage.0);
        self.count(hello.ends.len())
            .zeros(4)
            .bytes(hello.name.as_bytes());
        self.bytes(hello.dataset.as_str().as_bytes())
            .ends(&hello.ends)
    }

    fn welcome(&mut self, welcome: &Welcome) -> &mut Self {
        let wants = welcome.wants;
        let bits =
            u8::from(wants.received) | u8::from(wants.durable) << 1 | u8::from(wants.applied) << 2;
        self.u16(welcome.version)
            .bytes(&[bits])
            .byte_len(welcome.name.len())
            .u32(welcome.epoch.0);
        self.bytes(&welcome.node.0)
            .bytes(&welcome.incarnation.0)
            .bytes(&welcome.leader.0);
        self.bytes(&welcome.lineage.0)
            .count(welcome.verdicts.len())
            .zeros(4);
        self.bytes(welcome.name.as_bytes())
            .verdicts(&welcome.verdicts)
    }

    fn refusal(&mut self, refusal: &Refusal) -> &mut Self {
        let texts = [&refusal.text, &refusal.have, &refusal.want].map(|text| cut(text));
        self.bytes(&[refusal.reason as u8, 0]);
        texts.iter().for_each(|text| {
            self.text_len(text.len());
        });
        self.u32(refusal.epoch.0).zeros(4);
        texts.iter().for_each(|text| {
            self.bytes(text.as_bytes());
        });
        self
    }

    fn status(&mut self, status: &Status) -> &mut Self {
        self.bytes(&[status.role as u8])
            .byte_len(status.leader_name.len())
            .zeros(2);
        self.u32(status.promise.epoch.0)
            .u32(status.epoch.0)
            .count(status.shards.len());
        self.bytes(&status.promise.to.0).bytes(&status.leader.0);
        self.bytes(status.leader_name.as_bytes());
        for (end, ack) in &status.shards {
            self.end(end).ack(ack);
        }
        self
    }
}

/// The head of a text that fits a refusal, without what would steer a terminal.
fn cut(text: &str) -> String {
    let mut len = text.len().min(TEXT_LEN_MAX);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    text[..len]
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Wrong> {
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(wrong("payload length", self.0.len()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        Ok(self.take(N)?.try_into().expect("as long as was taken"))
    }

    fn u8(&mut self) -> Result<u8, Wrong> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, Wrong> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Wrong> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Wrong> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn count(&mut self) -> Result<usize, Wrong> {
        Ok(self.u32()? as usize)
    }

    fn zeros(&mut self, len: usize) -> Result<(), Wrong> {
        match self.take(len)?.iter().find(|byte| **byte != 0) {
            None => Ok(()),
            Some(byte) => Err(wrong("a reserved byte", *byte)),
        }
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).to_vec()
    }

    /// `count` entries of `len` bytes each: checked against what is left before anything is allocated.
    fn list<T>(
        &mut self,
        count: usize,
        len: usize,
        mut entry: impl FnMut(&mut Self) -> Result<T, Wrong>,
    ) -> Result<Vec<T>, Wrong> {
        if count.checked_mul(len).is_none_or(|all| all > self.0.len()) {
            return Err(wrong("list length", count));
        }
        (0..count).map(|_| entry(self)).collect()
    }

    fn text(&mut self, len: usize, len_max: usize) -> Result<String, Wrong> {
        if len > len_max {
            return Err(wrong("text length", len));
        }
        let bytes = self.take(len)?;
        // Texts end up in logs: nothing in them may steer a terminal.
        match std::str::from_utf8(bytes) {
            Ok(text) if !text.chars().any(char::is_control) => Ok(text.to_owned()),
            _ => Err(wrong("length of a text that is none", len)),
        }
    }

    fn name(&mut self, len: u8) -> Result<String, Wrong> {
        match len {
            0 => Err(wrong("name length", len)),
            len => self.text(len.into(), NODE_NAME_LEN_MAX),
        }
    }

    fn times(&mut self) -> Result<Times, Wrong> {
        Ok(Times {
            closed: Hlc(self.u64()?),
            committed: Hlc(self.u64()?),
        })
    }

    fn end(&mut self) -> Result<ShardEnd, Wrong> {
        let shard = ShardId(self.u16()?);
        self.zeros(2)?;
        let position = Position {
            epoch: Epoch(self.u32()?),
            seq: self.u64()?,
        };
        let (leader, chain) = (LeaderId(self.array()?), self.u32()?);
        self.zeros(4)?;
        Ok(ShardEnd {
            shard,
            position,
            leader,
            chain,
        })
    }

    fn verdict(&mut self) -> Result<Verdict, Wrong> {
        let (shard, kind) = (ShardId(self.u16()?), self.u8()?);
        self.zeros(1)?;
        let position = Position {
            epoch: Epoch(self.u32()?),
            seq: self.u64()?,
        };
        let leader = LeaderId(self.array()?);
        let (segment, at) = (self.u64()?, self.u64()?);
        match kind {
            1 => Ok(Verdict::Agreed {
                shard,
                position,
                segment,
                at,
            }),
            2 => Ok(Verdict::Ends {
                shard,
                position,
                leader,
            }),
            3 => Ok(Verdict::Pruned {
                shard,
                first_available: position.seq,
            }),
            kind => Err(wrong("verdict kind", kind)),
        }
    }

    fn mark(&mut self) -> Result<TickMark, Wrong> {
        let shard = ShardId(self.u16()?);
        self.zeros(6)?;
        Ok(TickMark {
            shard,
            written: self.u64()?,
            committed: self.u64()?,
        })
    }

    fn ack(&mut self) -> Result<AckEntry, Wrong> {
        let shard = ShardId(self.u16()?);
        self.zeros(6)?;
        let (received, durable, applied) = (self.u64()?, self.u64()?, self.u64()?);
        Ok(AckEntry {
            shard,
            received,
            durable,
            applied,
        })
    }

    fn file(&mut self) -> Result<BundleFile, Wrong> {
        let kind = self.u8()?;
        self.zeros(7)?;
        let (number, len, digest) = (self.u64()?, self.u64()?, self.array()?);
        Ok(BundleFile {
            kind,
            number,
            len,
            digest,
        })
    }

    fn data_head(&mut self) -> Result<DataHead, Wrong> {
        let (epoch, shard) = (Epoch(self.u32()?), ShardId(self.u16()?));
        self.zeros(2)?;
        let (segment, at, written, committed) =
            (self.u64()?, self.u64()?, self.u64()?, self.u64()?);
        let (times, wall_ms) = (self.times()?, self.u64()?);
        Ok(DataHead {
            epoch,
            shard,
            segment,
            at,
            written,
            committed,
            times,
            wall_ms,
        })
    }

    fn hello(&mut self) -> Result<Hello, Wrong> {
        let magic = self.array()?;
        if magic != MAGIC {
            return Err(wrong("magic", u32::from_le_bytes(magic)));
        }
        let versions = (self.u16()?, self.u16()?);
        let purpose = match self.u8()? {
            1 => Purpose::Follow,
            2 => Purpose::Fetch,
            3 => Purpose::Control,
            purpose => return Err(wrong("purpose", purpose)),
        };
        let (name_len, dataset_len) = (self.u8()?, self.u8()?);
        self.zeros(1)?;
        let promised_epoch = Epoch(self.u32()?);
        let (node, incarnation) = (NodeId(self.array()?), Incarnation(self.array()?));
        let (lineage, count) = (Lineage(self.array()?), self.count()?);
        self.zeros(4)?;
        let name = self.name(name_len)?;
        let dataset = self.text(
            dataset_len.into(),
            strandline_wal::ids::DATASET_NAME_LEN_MAX,
        )?;
        let dataset = DatasetId::new(&dataset).ok().filter(|_| dataset_len > 0);
        let dataset = dataset.ok_or(wrong("length of a dataset name that is none", dataset_len))?;
        let ends = self.list(count, END_LEN, Reader::end)?;
        Ok(Hello {
            versions,
            purpose,
            promised_epoch,
            node,
            incarnation,
            lineage,
            name,
            dataset,
            ends,
        })
    }

    fn welcome(&mut self) -> Result<Welcome, Wrong> {
        let (version, bits, name_len) = (self.u16()?, self.u8()?, self.u8()?);
        if bits > 7 {
            return Err(wrong("wanted acks", bits));
        }
        let wants = Wants {
            received: bits & 1 != 0,
            durable: bits & 2 != 0,
            applied: bits & 4 != 0,
        };
        let epoch = Epoch(self.u32()?);
        let (node, incarnation) = (NodeId(self.array()?), Incarnation(self.array()?));
        let (leader, lineage) = (LeaderId(self.array()?), Lineage(self.array()?));
        let count = self.count()?;
        self.zeros(4)?;
        let name = self.name(name_len)?;
        let verdicts = self.list(count, VERDICT_LEN, Reader::verdict)?;
        Ok(Welcome {
            version,
            wants,
            epoch,
            node,
            incarnation,
            leader,
            lineage,
            name,
            verdicts,
        })
    }

    fn refusal(&mut self) -> Result<Refusal, Wrong> {
        let byte = self.u8()?;
        let reason = Reason::of(byte).ok_or(wrong("reason", byte))?;
        self.zeros(1)?;
        let lens = [self.u16()?, self.u16()?, self.u16()?];
        let epoch = Epoch(self.u32()?);
        self.zeros(4)?;
        let mut text = |len: u16| self.text(len.into(), TEXT_LEN_MAX);
        let (text, have, want) = (text(lens[0])?, text(lens[1])?, text(lens[2])?);
        Ok(Refusal {
            reason,
            text,
            have,
            want,
            epoch,
        })
    }

    fn status(&mut self) -> Result<Status, Wrong> {
        let role = match self.u8()? {
            1 => Role::Leader,
            2 => Role::Follower,
            3 => Role::Candidate,
            role => return Err(wrong("role", role)),
        };
        let name_len = self.u8()?;
        self.zeros(2)?;
        let (promised, epoch, count) = (Epoch(self.u32()?), Epoch(self.u32()?), self.count()?);
        let promise = Promise {
            epoch: promised,
            to: NodeId(self.array()?),
        };
        let leader = LeaderId(self.array()?);
        let leader_name = self.text(name_len.into(), NODE_NAME_LEN_MAX)?;
        let shards = self.list(count, END_LEN + ACK_LEN, |r| Ok((r.end()?, r.ack()?)))?;
        Ok(Status {
            role,
            promise,
            epoch,
            leader,
            leader_name,
            shards,
        })
    }
}
