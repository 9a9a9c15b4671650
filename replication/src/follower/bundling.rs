//! From a log that does not reach back to a bundle that is installed, and back to agreeing.

use super::{Action, Follower, Here, State};
use crate::bundle::{BundleFile, BundlePlace, BundlePlan};
use crate::error::{Error, Result};
use crate::ids::{BundleId, ShardEnd};
use crate::message::Message;

/// What came of a bundle so far.
#[derive(Debug)]
pub(super) struct Receipt {
    plan: BundlePlan,
    file_count: usize,
    // The byte that comes next.
    file: u32,
    at: u64,
    // Whether the sink has said where to start.
    begun: bool,
}

impl Receipt {
    pub(super) fn new(id: BundleId, file_count: u32, ends: Vec<ShardEnd>) -> Receipt {
        let plan = BundlePlan {
            id,
            ends,
            files: Vec::new(),
        };
        Receipt {
            plan,
            file_count: file_count as usize,
            file: 0,
            at: 0,
            begun: false,
        }
    }

    fn len_of(&self, file: u32) -> Option<u64> {
        self.plan.files.get(file as usize).map(|file| file.len)
    }

    /// Steps over files that are complete.
    fn settle(&mut self) {
        while self.len_of(self.file).is_some_and(|len| self.at >= len) {
            (self.file, self.at) = (self.file + 1, 0);
        }
    }
}

impl Follower {
    /// The sink is ready, if the store has one; `staged` is what an earlier transfer left.
    pub(super) fn sink_opened(&mut self, now: u64, staged: Option<Option<BundlePlace>>) {
        if !matches!(self.state, State::Asking) {
            return;
        }
        match staged {
            Some(staged) => {
                let again = staged.map(|place| place.id).unwrap_or_default();
                self.send(now, Message::BundleAsk { again });
            }
            None => {
                let here = self.here.as_ref().expect("it was looked up for the hello");
                let (shard, needed) = here
                    .shards
                    .first()
                    .map(|(e, _)| (e.shard, e.position.seq + 1))
                    .unwrap_or_default();
                let why = Error::Pruned {
                    shard,
                    needed,
                    first_available: 0,
                };
                self.stop(now, why);
            }
        }
    }

    /// The next files of the list came; after the last one the sink is told.
    pub(super) fn bundle_listed(&mut self, now: u64, mut receipt: Receipt, files: Vec<BundleFile>) {
        receipt.plan.files.extend(files);
        if receipt.plan.files.len() > receipt.file_count {
            return self.protocol(now, "more files than the bundle has");
        }
        if receipt.plan.files.len() < receipt.file_count {
            self.state = State::Listing(receipt);
            return;
        }
        let here = self.here.as_ref().expect("it was looked up for the hello");
        for (own, floor) in &here.shards {
            let end = receipt.plan.ends.iter().find(|end| end.shard == own.shard);
            let Some(end) = end else {
                return self.protocol(now, format!("a bundle without shard {}", own.shard));
            };
            if floor.strict && end.position.seq < floor.committed {
                let (shard, committed, to) = (own.shard, floor.committed, end.position.seq);
                return self.stop(
                    now,
                    Error::BelowCommitted {
                        shard,
                        committed,
                        to,
                    },
                );
            }
        }
        self.actions
            .push_back(Action::BeginBundle(receipt.plan.clone()));
        self.state = State::Receiving(receipt);
    }

    pub(super) fn bundle_begun(&mut self, now: u64, place: Result<BundlePlace>) {
        let State::Receiving(receipt) = &mut self.state else {
            return;
        };
        match place {
            Ok(place) => {
                (receipt.file, receipt.at, receipt.begun) = (place.file, place.at, true);
                receipt.settle();
                let from = Message::BundleFrom {
                    file: receipt.file,
                    at: receipt.at,
                };
                self.send(now, from);
            }
            Err(why) => self.stop(now, why),
        }
    }

    pub(super) fn bundle_data(
        &mut self,
        now: u64,
        mut receipt: Receipt,
        file: u32,
        at: u64,
        bytes: Vec<u8>,
    ) {
        let len = bytes.len() as u64;
        let in_order = receipt.begun && (file, at) == (receipt.file, receipt.at);
        let fits = receipt
            .len_of(file)
            .is_some_and(|all| len > 0 && len <= all - receipt.at.min(all));
        if !in_order || !fits {
            self.state = State::Receiving(receipt);
            return self.protocol(now, format!("BundleData of file {file} at {at}"));
        }
        if !self.grantor.take(len) {
            self.state = State::Receiving(receipt);
            return self.protocol(now, "more BundleData than was granted");
        }
        receipt.at += len;
        receipt.settle();
        self.state = State::Receiving(receipt);
        self.actions.push_back(Action::WriteBundle(file, at, bytes));
    }

    pub(super) fn bundle_written(&mut self, now: u64, done: Result<()>) {
        match done {
            Ok(()) => {}
            // The sink dropped the file: the next transfer asks for it again.
            Err(why @ Error::Damaged { .. }) => self.fail(now, why),
            Err(why) => self.stop(now, why),
        }
    }

    pub(super) fn bundle_end(&mut self, now: u64, receipt: Receipt, id: BundleId) {
        let whole = receipt.begun && receipt.file as usize == receipt.file_count;
        let same = receipt.plan.id == id;
        self.state = State::Receiving(receipt);
        match whole && same {
            true => self.actions.push_back(Action::Install),
            false => self.protocol(now, "BundleEnd before the last byte"),
        }
    }

    /// The bundle is the dataset: agree anew, from where it ends.
    pub(super) fn installed(&mut self, now: u64, here: Result<Here>) {
        if !matches!(self.state, State::Receiving(_)) {
            return;
        }
        match here {
            Ok(here) => {
                let ends = here.shards.iter().map(|(end, _)| *end).collect();
                self.ask_with(&here);
                self.here = Some(here);
                self.send(now, Message::Ends(ends));
            }
            Err(why) => self.stop(now, why),
        }
    }
}
