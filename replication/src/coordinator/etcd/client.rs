//! The records of a real etcd, through the crate `etcd-client`.
//!
//! Each endpoint has a connection of its own, and the next one is taken where one fails: a balancer over
//! all of them goes on asking those that are dead. A member that has no leader says so at once.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, Error as EtcdError, GetResponse, Txn, TxnOp,
    TxnOpResponse, WatchOptions,
};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

use super::{Found, KeyValues, Keys, Swapped};
use crate::coordinator::attempt::{Failure, Nonces};
use crate::coordinator::{Coordinator, Record, Replaced, Version};
use crate::error::Result;

/// So many requests may go unanswered within the deadline of a call.
const REQUEST_COUNT: u32 = 5;

/// Where the records are, and for how long to ask.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// What errors call it.
    pub name: String,
    /// The members, as `http://host:2379`.
    pub endpoints: Vec<String>,
    /// What all its keys begin with.
    pub prefix: String,
    /// Longest time of a call.
    pub deadline_ms: u64,
    /// User and TLS.
    pub connect: ConnectOptions,
}

impl Default for EtcdOptions {
    fn default() -> EtcdOptions {
        EtcdOptions {
            name: "etcd".to_owned(),
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            prefix: "strandline".to_owned(),
            deadline_ms: 10_000,
            connect: ConnectOptions::default(),
        }
    }
}

/// A coordinator in etcd. Not to be called, nor dropped, by a thread of an async runtime.
pub struct EtcdCoordinator {
    runtime: Runtime,
    keys: Keys<Members>,
    name: String,
    deadline: Duration,
}

struct Members {
    endpoints: Vec<String>,
    connect: ConnectOptions,
    request: Duration,
    /// Whom to ask next, and the connection if it was good.
    turn: Cell<usize>,
    client: RefCell<Option<Client>>,
}

impl EtcdCoordinator {
    /// Opens the records of a cluster. It asks nothing yet.
    ///
    /// # Errors
    /// [`crate::Error::Coordinator`] without endpoints.
    pub fn open(options: EtcdOptions, nonces: Nonces) -> Result<EtcdCoordinator> {
        let EtcdOptions {
            name,
            endpoints,
            prefix,
            deadline_ms,
            connect,
        } = options;
        if endpoints.is_empty() {
            return Err(Failure::new("it has no endpoints").error(&name));
        }
        let deadline = Duration::from_millis(deadline_ms);
        let request = deadline / REQUEST_COUNT;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(error.to_string()).error(&name))?;
        let members = Members {
            endpoints,
            connect: connect
                .with_connect_timeout(request)
                .with_require_leader(true),
            request,
            turn: Cell::new(0),
            client: RefCell::new(None),
        };
        Ok(EtcdCoordinator {
            runtime,
            keys: Keys::new(members, &name, &prefix, nonces),
            name,
            deadline,
        })
    }

    fn call<T>(&mut self, work: impl AsyncFnOnce(&mut Keys<Members>) -> Result<T>) -> Result<T> {
        let (keys, deadline) = (&mut self.keys, self.deadline);
        let work = async { timeout(deadline, work(keys)).await };
        match self.runtime.block_on(work) {
            Ok(result) => result,
            Err(_) => Err(late(deadline).error(&self.name)),
        }
    }
}

impl Coordinator for EtcdCoordinator {
    fn read(&mut self, dataset: &str) -> Result<Option<(Version, Record)>> {
        self.call(async |keys| keys.read(dataset).await)
    }

    fn replace(&mut self, dataset: &str, expected: Version, record: &Record) -> Result<Replaced> {
        self.call(async |keys| keys.replace(dataset, expected, record).await)
    }

    fn watch(&mut self, dataset: &str, seen: Version, wait_ms: u64) -> Result<()> {
        let work = self.keys.watch(dataset, seen, wait_ms);
        self.runtime.block_on(work)
    }
}

impl Members {
    /// Asks the member whose turn it is; after a failure it is the next one's.
    async fn ask<T>(
        &self,
        request: impl AsyncFnOnce(&mut Client) -> Result<T, EtcdError>,
    ) -> Result<T, Failure> {
        let work = async {
            let mut client = self.client().await?;
            let answer = request(&mut client).await?;
            Ok::<_, EtcdError>((client, answer))
        };
        let failure = match timeout(self.request, work).await {
            Ok(Ok((client, answer))) => {
                self.client.replace(Some(client));
                return Ok(answer);
            }
            Ok(Err(error)) => Failure::new(format!("{}: {error}", self.endpoint())),
            Err(_) => Failure::new(format!("{}: {}", self.endpoint(), late(self.request).what)),
        };
        self.client.replace(None);
        self.turn.set((self.turn.get() + 1) % self.endpoints.len());
        Err(failure)
    }

    /// As [`Self::ask`], of each member until one answers: for what changes nothing.
    async fn ask_any<T>(
        &self,
        request: impl AsyncFn(&mut Client) -> Result<T, EtcdError>,
    ) -> Result<T, Failure> {
        let mut answer = self.ask(&request).await;
        for _ in 1..self.endpoints.len() {
            if answer.is_ok() {
                break;
            }
            answer = self.ask(&request).await;
        }
        answer
    }

    async fn client(&self) -> Result<Client, EtcdError> {
        if let Some(client) = self.client.take() {
            return Ok(client);
        }
        Client::connect([self.endpoint()], Some(self.connect.clone())).await
    }

    fn endpoint(&self) -> &str {
        &self.endpoints[self.turn.get()]
    }
}

impl KeyValues for Members {
    async fn get(&self, key: &str) -> Result<Option<Found>, Failure> {
        let found = self.ask_any(async |client| client.get(key, None).await);
        Ok(found_in(&found.await?))
    }

    async fn swap(&self, key: &str, expected: u64, bytes: &[u8]) -> Result<Swapped, Failure> {
        let Ok(expected) = i64::try_from(expected) else {
            return Ok(Swapped::No(None));
        };
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, expected)])
            .and_then([TxnOp::put(key, bytes, None)])
            .or_else([TxnOp::get(key, None)]);
        let answer = self.ask(async |client| client.txn(txn).await).await?;
        if answer.succeeded() {
            let revision = answer.header().map_or(0, |header| header.revision());
            return Ok(Swapped::Yes(revision as u64));
        }
        let responses = answer.op_responses();
        let found = responses.first().and_then(|response| match response {
            TxnOpResponse::Get(found) => found_in(found),
            _ => None,
        });
        Ok(Swapped::No(found))
    }

    async fn wait(&self, key: &str, seen: u64, ms: u64) -> Result<(), Failure> {
        let found = self.ask_any(async |client| client.get(key, None).await);
        let found = found.await?;
        if found_in(&found).is_some_and(|(revision, _)| revision > seen) {
            return Ok(());
        }
        let next = found.header().map_or(0, |header| header.revision()) + 1;
        let options = WatchOptions::new().with_start_revision(next);
        let watch = async |client: &mut Client| client.watch(key, Some(options)).await;
        let mut changes = self.ask(watch).await?;
        let wait = async {
            while let Some(change) = changes.message().await? {
                if change.canceled() || !change.events().is_empty() {
                    break;
                }
            }
            Ok::<(), EtcdError>(())
        };
        match timeout(Duration::from_millis(ms), wait).await {
            Ok(Ok(())) | Err(_) => Ok(()),
            Ok(Err(error)) => Err(Failure::new(error.to_string())),
        }
    }

    async fn pause(&self, ms: u64) {
        sleep(Duration::from_millis(ms)).await;
    }
}

fn found_in(found: &GetResponse) -> Option<Found> {
    let found = found.kvs().first()?;
    Some((found.mod_revision() as u64, found.value().to_vec()))
}

fn late(limit: Duration) -> Failure {
    Failure::new(format!("no answer within {} ms", limit.as_millis()))
}
