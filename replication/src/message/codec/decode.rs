//! Payload bytes of every message, in: trusts none of them.

use strandline_wal::bug::planted;
use strandline_wal::{DatasetId, Epoch, Hlc, Position, ShardId};

use super::{
    ACK_LEN, DATA_FIXED_LEN, END_LEN, FILE_LEN, MAGIC, MARK_LEN, VERDICT_LEN, Wrong, wrong,
};
use crate::bundle::{BundleFile, FILE_COUNT_MAX};
use crate::error::Reason;
use crate::ids::{
    BundleId, Incarnation, LeaderId, Lineage, NODE_NAME_LEN_MAX, NodeId, Promise, ShardEnd,
};
use crate::message::{
    Ack, AckEntry, Data, DataHead, EPOCH_MAX, FILES_PER_FRAME_MAX, Hello, Message, Piece, Purpose,
    Refusal, Role, Seal, Status, TEXT_LEN_MAX, Tick, TickMark, Verdict, Wants, Welcome,
};
use crate::store::Times;

/// Reads the payload that starts at `at` of a frame, trusting none of it.
pub(in crate::message) fn decode(kind: u8, frame: Vec<u8>, at: usize) -> Result<Message, Wrong> {
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
            let bytes = Piece::behind(frame, at + DATA_FIXED_LEN);
            return Ok(Message::Data(Data { head, bytes }));
        }
        7 => {
            let (epoch, shard) = (r.epoch()?, ShardId(r.u16()?));
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
            let (epoch, count, wall_ms) = (r.epoch()?, r.count()?, r.u64()?);
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
            let (epoch, count) = (r.epoch()?, r.count()?);
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
        17 => Message::PromiseRequest { epoch: r.epoch()? },
        18 => {
            let (epoch, count) = (r.epoch()?, r.count()?);
            Message::Promise {
                epoch,
                ends: r.list(count, END_LEN, Reader::end)?,
            }
        }
        19 => {
            let promise = Promise {
                epoch: r.epoch()?,
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

    fn epoch(&mut self) -> Result<Epoch, Wrong> {
        match Epoch(self.u32()?) {
            epoch if epoch <= EPOCH_MAX || planted("decode.epoch") => Ok(epoch),
            epoch => Err(wrong("epoch", epoch.0)),
        }
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
            epoch: self.epoch()?,
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
            epoch: self.epoch()?,
            seq: self.u64()?,
        };
        let leader = LeaderId(self.array()?);
        let (segment, at) = (self.u64()?, self.u64()?);
        // A field that its kind does not have is as reserved as any: it may mean something later.
        let foreign = match kind {
            1 => leader != LeaderId::default(),
            2 => segment | at != 0,
            _ => position.epoch.0 != 0 || leader != LeaderId::default() || segment | at != 0,
        };
        if foreign && !planted("decode.verdict") {
            return Err(wrong("a field of another verdict, of kind", kind));
        }
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
        let (epoch, shard) = (self.epoch()?, ShardId(self.u16()?));
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
        let promised_epoch = self.epoch()?;
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
        if bits > 15 {
            return Err(wrong("wanted acks", bits));
        }
        let wants = Wants {
            received: bits & 1 != 0,
            durable: bits & 2 != 0,
            applied: bits & 4 != 0,
        };
        let sole = bits & 8 != 0;
        let epoch = self.epoch()?;
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
            sole,
        })
    }

    fn refusal(&mut self) -> Result<Refusal, Wrong> {
        let byte = self.u8()?;
        let reason = Reason::of(byte).ok_or(wrong("reason", byte))?;
        self.zeros(1)?;
        let lens = [self.u16()?, self.u16()?, self.u16()?];
        let epoch = self.epoch()?;
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
        let (promised, epoch, count) = (self.epoch()?, self.epoch()?, self.count()?);
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
