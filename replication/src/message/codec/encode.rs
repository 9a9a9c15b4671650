//! Payload bytes of every message, out.

use strandline_wal::{Epoch, Position};

use super::{FIXED, MAGIC};
use crate::ids::{LeaderId, ShardEnd};
use crate::message::{
    AckEntry, DataHead, Hello, Message, Refusal, Status, TEXT_LEN_MAX, Verdict, Welcome,
};
use crate::store::Times;

/// Appends the payload of a message to `out` and returns its kind byte.
pub(in crate::message) fn encode(message: &Message, out: &mut Vec<u8>) -> u8 {
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
pub(in crate::message) fn encode_data(head: &DataHead, bytes: &[u8], out: &mut Vec<u8>) -> u8 {
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
        let bits = bits | u8::from(welcome.sole) << 3;
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
