//! The records of a real store, through the crate `object_store`: S3, GCS, Azure, what speaks like them,
//! and directories.
//!
//! That crate sends a create once, since it cannot know whether a lost one was done; we do, and send it
//! again. A store in a directory must be made `with_fsync(true)`. A user of S3 who may not list the bucket
//! is told "forbidden" of an object that is missing, and is not understood here: let it list.

use std::sync::Arc;
use std::time::Duration;

use ::object_store::path::Path;
use ::object_store::{
    Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

use super::{Created, Objects, RACER_LEN, StateObjects};
use crate::coordinator::attempt::{Failure, Nonces};
use crate::coordinator::{Coordinator, Record, Replaced, Version};
use crate::error::Result;

/// Longest object that is read.
const OBJECT_LEN_MAX: u64 = RACER_LEN as u64;
/// So many requests may go unanswered within the deadline of a call.
const REQUEST_COUNT: u32 = 4;

/// Where the records are, and for how long to ask.
#[derive(Clone, Debug)]
pub struct ObjectStoreOptions {
    /// What errors call it, as `s3://bucket/prefix`.
    pub name: String,
    /// What all its objects' names begin with.
    pub prefix: String,
    /// Longest time of a call, of the probe at open too.
    pub deadline_ms: u64,
}

impl Default for ObjectStoreOptions {
    fn default() -> ObjectStoreOptions {
        ObjectStoreOptions {
            name: "object store".to_owned(),
            prefix: "strandline".to_owned(),
            deadline_ms: 10_000,
        }
    }
}

/// A coordinator in an object store. Not to be called, nor dropped, by a thread of an async runtime.
pub struct ObjectStoreCoordinator {
    runtime: Runtime,
    states: StateObjects<Client>,
    name: String,
    deadline: Duration,
}

struct Client {
    store: Arc<dyn ObjectStore>,
    request: Duration,
}

impl ObjectStoreCoordinator {
    /// Opens the records of a store, and tries whether it is safe.
    ///
    /// # Errors
    /// [`crate::Error::CoordinatorUnsafe`], and [`crate::Error::Coordinator`] where it cannot be asked.
    pub fn open(
        store: Arc<dyn ObjectStore>,
        options: ObjectStoreOptions,
        nonces: Nonces,
    ) -> Result<ObjectStoreCoordinator> {
        let ObjectStoreOptions {
            name,
            prefix,
            deadline_ms,
        } = options;
        let deadline = Duration::from_millis(deadline_ms);
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(error.to_string()).error(&name))?;
        let client = Client {
            store,
            request: deadline / REQUEST_COUNT,
        };
        let mut coordinator = ObjectStoreCoordinator {
            runtime,
            states: StateObjects::new(client, &name, &prefix, nonces),
            name,
            deadline,
        };
        coordinator.call(async |states| states.probe().await)?;
        Ok(coordinator)
    }

    fn call<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut StateObjects<Client>) -> Result<T>,
    ) -> Result<T> {
        let (states, deadline) = (&mut self.states, self.deadline);
        let work = async { timeout(deadline, work(states)).await };
        match self.runtime.block_on(work) {
            Ok(result) => result,
            Err(_) => Err(late(deadline).error(&self.name)),
        }
    }
}

impl Coordinator for ObjectStoreCoordinator {
    fn read(&mut self, dataset: &str) -> Result<Option<(Version, Record)>> {
        self.call(async |states| states.read(dataset).await)
    }

    fn replace(&mut self, dataset: &str, expected: Version, record: &Record) -> Result<Replaced> {
        let replaced = self.call(async |states| states.replace(dataset, expected, record).await)?;
        if let Replaced::Done(_) = replaced {
            // What it leaves is no harm, and the change was made.
            let _ = self.call(async |states| {
                states.prune(dataset).await;
                Ok(())
            });
        }
        Ok(replaced)
    }

    fn watch(&mut self, dataset: &str, seen: Version, wait_ms: u64) -> Result<()> {
        let work = self.states.watch(dataset, seen, wait_ms);
        self.runtime.block_on(work)
    }
}

impl Client {
    async fn ask<T>(
        &self,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<Result<T, StoreError>, Failure> {
        let answer = timeout(self.request, request).await;
        answer.map_err(|_| late(self.request))
    }
}

impl Objects for Client {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        let path = path(key)?;
        let read = async {
            let found = self.store.get(&path).await?;
            if found.meta.size > OBJECT_LEN_MAX {
                return Ok(Err(found.meta.size));
            }
            found.bytes().await.map(Ok)
        };
        match self.ask(read).await? {
            Ok(Ok(bytes)) => Ok(Some(bytes.to_vec())),
            Ok(Err(len)) => Err(Failure::new(format!(
                "{key} has {len} bytes: it is not ours"
            ))),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(failure(&error)),
        }
    }

    async fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, Failure> {
        let path = path(key)?;
        let payload = PutPayload::from(bytes.to_vec());
        let options = PutOptions::from(PutMode::Create);
        match self
            .ask(self.store.put_opts(&path, payload, options))
            .await?
        {
            Ok(_) => Ok(Created::Yes),
            // Azure's and S3's ways to say it; who asks looks at the object anyway.
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                Ok(Created::Exists)
            }
            Err(error) => Err(failure(&error)),
        }
    }

    async fn delete(&self, key: &str) -> Result<(), Failure> {
        let path = path(key)?;
        match self.ask(self.store.delete(&path)).await? {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(failure(&error)),
        }
    }

    async fn pause(&self, ms: u64) {
        sleep(Duration::from_millis(ms)).await;
    }
}

fn path(key: &str) -> Result<Path, Failure> {
    Path::parse(key).map_err(|error| Failure::new(error.to_string()))
}

fn late(limit: Duration) -> Failure {
    Failure::new(format!("no answer within {} ms", limit.as_millis()))
}

fn failure(error: &StoreError) -> Failure {
    Failure {
        what: error.to_string(),
        is_unsupported: matches!(
            error,
            StoreError::NotImplemented { .. } | StoreError::NotSupported { .. }
        ),
    }
}
