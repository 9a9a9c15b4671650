//! What nodes say to each other, and the bytes they say it in.
//!
//! Everything travels in frames ([`frame`]). This page is the only description of their payloads;
//! [`codec`] is the only encoder and decoder. All numbers are little-endian; reserved bytes are zero
//! and checked. Lists follow the fixed part, in the order of the table's rows that say `list`; their
//! counts are checked against the bytes that came before anything is allocated.
//!
//! Hello: the first frame of whoever connects.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | magic | `SDLR` |
//! | 4 | 2 | version_min | lowest protocol version spoken |
//! | 6 | 2 | version_max | highest |
//! | 8 | 1 | purpose | see [`Purpose`] |
//! | 9 | 1 | name_len | 1 to 64 |
//! | 10 | 1 | dataset_len | 1 to 48 |
//! | 11 | 1 | reserved | 0 |
//! | 12 | 4 | promised_epoch | messages below it are refused |
//! | 16 | 16 | node | who connects |
//! | 32 | 16 | incarnation | of its store |
//! | 48 | 16 | lineage | of its dataset; zeros where it has no history yet |
//! | 64 | 4 | end_count | shards that it wants |
//! | 68 | 4 | reserved2 | 0 |
//! | 72 | list | name | of the node |
//! | 72 | list | dataset | name |
//! | 72 | list | ends | where its logs end |
//!
//! Welcome: the answer of one who serves.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 2 | version | the one both speak from now on |
//! | 2 | 1 | wants | which acks are waited for: bit 0 received, 1 durable, 2 applied; bit 3 is not one of them: sole, nobody else can have won the epoch |
//! | 3 | 1 | name_len | 1 to 64 |
//! | 4 | 4 | epoch | of everything that comes on this connection |
//! | 8 | 16 | node | who serves |
//! | 24 | 16 | incarnation | of its store |
//! | 40 | 16 | leader | identity of its claim to the epoch; zeros where it only lends its log |
//! | 56 | 16 | lineage | of its dataset |
//! | 72 | 4 | verdict_count | |
//! | 76 | 4 | reserved | 0 |
//! | 80 | list | name | of the node |
//! | 80 | list | verdicts | on the ends of the hello |
//!
//! Refused: the last frame of a connection.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 1 | reason | see [`crate::Reason`] |
//! | 1 | 1 | reserved | 0 |
//! | 2 | 2 | text_len | at most 512, as the two below |
//! | 4 | 2 | have_len | |
//! | 6 | 2 | want_len | |
//! | 8 | 4 | epoch | the highest epoch that the one who refuses knows |
//! | 12 | 4 | reserved2 | 0 |
//! | 16 | list | text | for people |
//! | 16 | list | have | what the one who refuses has |
//! | 16 | list | want | what was asked of it |
//!
//! Ends: a follower asks again, with lower ends.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | end_count | |
//! | 4 | 4 | reserved | 0 |
//! | 8 | list | ends | |
//!
//! Verdicts: the answer.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | verdict_count | |
//! | 4 | 4 | reserved | 0 |
//! | 8 | list | verdicts | |
//!
//! Data: stored bytes of a segment, verbatim.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | epoch | of the connection |
//! | 4 | 2 | shard | |
//! | 6 | 2 | reserved | 0 |
//! | 8 | 8 | segment | first sequence of the segment |
//! | 16 | 8 | at | offset of the bytes in it |
//! | 24 | 8 | written | last sequence of this shard's log |
//! | 32 | 8 | committed | last committed sequence of this shard |
//! | 40 | 8 | closed_time | nothing more is written at or below it |
//! | 48 | 8 | committed_time | everything at or below it is committed |
//! | 56 | 8 | wall_ms | the sender's wall clock, for lag |
//! | 64 | list | bytes | the rest of the frame |
//!
//! Seal: the footer of a sealed segment.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | epoch | of the connection |
//! | 4 | 2 | shard | |
//! | 6 | 2 | reserved | 0 |
//! | 8 | 8 | segment | first sequence of the segment |
//! | 16 | 8 | at | offset of the footer: all bytes before it were sent |
//! | 24 | list | footer | the rest of the frame |
//!
//! Tick: marks without data, and the sign of life of one who serves.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | epoch | of the connection |
//! | 4 | 4 | mark_count | |
//! | 8 | 8 | wall_ms | the sender's wall clock, for lag |
//! | 16 | 8 | closed_time | as in Data |
//! | 24 | 8 | committed_time | as in Data |
//! | 32 | list | marks | of all shards |
//!
//! Ack: what the follower has, and its sign of life.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | epoch | of the connection |
//! | 4 | 4 | ack_count | |
//! | 8 | 8 | wall_ms | newest wall_ms whose written marks are all applied here |
//! | 16 | 8 | taken | bytes of Data and BundleData that came since the connection began |
//! | 24 | list | acks | of shards that changed |
//!
//! Credit: the follower takes this many bytes of Data and BundleData in all.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 8 | granted | since the connection began; never falls |
//!
//! BundleAsk: the follower needs a bundle.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 16 | again | the bundle it has a part of, or zeros |
//!
//! BundleBegin: a bundle is pinned.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 16 | id | of the bundle |
//! | 16 | 4 | file_count | |
//! | 20 | 4 | end_count | |
//! | 24 | list | ends | where each shard stands once it is installed |
//!
//! BundleFiles: the next files of the list.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | file_count | |
//! | 4 | 4 | reserved | 0 |
//! | 8 | list | files | |
//!
//! BundleFrom: the follower is ready for bytes.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | file | index in the list; the file count where nothing is missing |
//! | 4 | 4 | reserved | 0 |
//! | 8 | 8 | at | byte in the file |
//!
//! BundleData: bytes of a file, in order.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | file | index in the list |
//! | 4 | 4 | reserved | 0 |
//! | 8 | 8 | at | byte in the file |
//! | 16 | list | bytes | the rest of the frame |
//!
//! BundleEnd: everything was sent.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 16 | id | of the bundle |
//!
//! PromiseRequest: the node that said Hello wants to lead.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | epoch | the one it wants |
//!
//! Promise: made durable, and the durable ends of all shards behind it.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | epoch | |
//! | 4 | 4 | end_count | |
//! | 8 | list | ends | |
//!
//! PromiseRefused: an equal or higher epoch was promised before.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | promised_epoch | |
//! | 4 | 16 | to | whose claim it is |
//!
//! StatusRequest has no payload. Status:
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 1 | role | see [`Role`] |
//! | 1 | 1 | leader_name_len | 0 where no leader is known |
//! | 2 | 2 | reserved | 0 |
//! | 4 | 4 | promised_epoch | |
//! | 8 | 4 | epoch | of the leadership held or followed |
//! | 12 | 4 | shard_count | |
//! | 16 | 16 | promised_to | |
//! | 32 | 16 | leader | |
//! | 48 | list | leader_name | |
//! | 48 | list | shards | an end and an ack for each |
//!
//! Entries of lists. End:
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 2 | shard | |
//! | 2 | 2 | reserved | 0 |
//! | 4 | 4 | epoch | of the last record |
//! | 8 | 8 | seq | of the last record |
//! | 16 | 16 | leader | of that epoch |
//! | 32 | 4 | chain | `header_crc` of the last batch |
//! | 36 | 4 | reserved2 | 0 |
//!
//! Verdict:
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 2 | shard | |
//! | 2 | 1 | kind | 1 agreed, 2 ends, 3 pruned |
//! | 3 | 1 | reserved | 0 |
//! | 4 | 4 | epoch | agreed, ends: of the last common record |
//! | 8 | 8 | seq | its sequence; pruned: the first one there is |
//! | 16 | 16 | leader | ends: of that epoch |
//! | 32 | 8 | segment | agreed: where the next bytes come from |
//! | 40 | 8 | at | agreed: offset in it |
//!
//! Mark:
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 2 | shard | |
//! | 2 | 6 | reserved | 0 |
//! | 8 | 8 | written | |
//! | 16 | 8 | committed | |
//!
//! AckEntry:
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 2 | shard | |
//! | 2 | 6 | reserved | 0 |
//! | 8 | 8 | received | appended to the follower's log |
//! | 16 | 8 | durable | synced there |
//! | 24 | 8 | applied | readable there |
//!
//! File:
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 1 | kind | the store's numbering |
//! | 1 | 7 | reserved | 0 |
//! | 8 | 8 | number | within the kind |
//! | 16 | 8 | len | in bytes |
//! | 24 | 32 | digest | BLAKE3 |

use strandline_wal::Epoch;

use crate::bundle::BundleFile;
use crate::ids::{BundleId, Promise, ShardEnd};

pub mod codec;
pub mod frame;
mod parts;

pub use frame::{FRAME_HEADER_LEN, Link, PAYLOAD_LEN_MAX};
pub use parts::{
    Ack, AckEntry, Data, DataHead, Hello, Piece, Purpose, Refusal, Role, Seal, Status, Tick,
    TickMark, Verdict, Wants, Welcome,
};

/// Lowest and highest protocol version of this build.
pub const VERSIONS: (u16, u16) = (1, 1);
/// The highest epoch that is taken from a peer. A promise is durable, and the next leadership is one
/// above it: a peer that asked for the last number there is would end all leading for ever.
pub const EPOCH_MAX: Epoch = Epoch(u32::MAX >> 1);
/// Longest text in a refusal, in bytes.
pub const TEXT_LEN_MAX: usize = 512;
/// Most files in one BundleFiles.
pub const FILES_PER_FRAME_MAX: usize = 4096;

/// Anything that goes over a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message {
    /// The first frame of whoever connects.
    Hello(Hello),
    /// The answer of one who serves.
    Welcome(Welcome),
    /// The last frame of a connection.
    Refused(Refusal),
    /// A follower asks again, with lower ends.
    Ends(Vec<ShardEnd>),
    /// The answer.
    Verdicts(Vec<Verdict>),
    /// Stored bytes of a segment.
    Data(Data),
    /// The footer of a sealed segment.
    Seal(Seal),
    /// Marks without data.
    Tick(Tick),
    /// What the follower has.
    Ack(Ack),
    /// Bytes that the follower takes in all.
    Credit {
        /// Since the connection began.
        granted: u64,
    },
    /// The follower needs a bundle.
    BundleAsk {
        /// The one it has a part of, or zeros.
        again: BundleId,
    },
    /// A bundle is pinned.
    BundleBegin {
        /// Which.
        id: BundleId,
        /// Number of files that it has.
        file_count: u32,
        /// Where each shard stands once it is installed.
        ends: Vec<ShardEnd>,
    },
    /// The next files of its list.
    BundleFiles(Vec<BundleFile>),
    /// The follower is ready for bytes.
    BundleFrom {
        /// Index in the list.
        file: u32,
        /// Byte in the file.
        at: u64,
    },
    /// Bytes of a file.
    BundleData {
        /// Index in the list.
        file: u32,
        /// Byte in the file.
        at: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Everything was sent.
    BundleEnd {
        /// Of which bundle.
        id: BundleId,
    },
    /// The node that said Hello wants to lead.
    PromiseRequest {
        /// The epoch that it wants.
        epoch: Epoch,
    },
    /// The promise is durable.
    Promise {
        /// The epoch.
        epoch: Epoch,
        /// The durable ends of all shards.
        ends: Vec<ShardEnd>,
    },
    /// An equal or higher epoch was promised before.
    PromiseRefused {
        /// To whom.
        promise: Promise,
    },
    /// How are you?
    StatusRequest,
    /// The answer.
    Status(Status),
}

impl Message {
    /// Its name, for errors and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Hello(_) => "Hello",
            Message::Welcome(_) => "Welcome",
            Message::Refused(_) => "Refused",
            Message::Ends(_) => "Ends",
            Message::Verdicts(_) => "Verdicts",
            Message::Data(_) => "Data",
            Message::Seal(_) => "Seal",
            Message::Tick(_) => "Tick",
            Message::Ack(_) => "Ack",
            Message::Credit { .. } => "Credit",
            Message::BundleAsk { .. } => "BundleAsk",
            Message::BundleBegin { .. } => "BundleBegin",
            Message::BundleFiles(_) => "BundleFiles",
            Message::BundleFrom { .. } => "BundleFrom",
            Message::BundleData { .. } => "BundleData",
            Message::BundleEnd { .. } => "BundleEnd",
            Message::PromiseRequest { .. } => "PromiseRequest",
            Message::Promise { .. } => "Promise",
            Message::PromiseRefused { .. } => "PromiseRefused",
            Message::StatusRequest => "StatusRequest",
            Message::Status(_) => "Status",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
