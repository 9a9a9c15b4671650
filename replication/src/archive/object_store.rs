//! An archive in S3, GCS, Azure or a directory, through the crate `object_store`.
//!
//! That crate sends a create once; whoever calls sends it again and compares what is there. A directory
//! is synced with every object. Lists go folder by folder.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::object_store::local::LocalFileSystem;
use ::object_store::path::Path;
use ::object_store::{
    Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

use super::{ArchiveStore, Error, Listed, OBJECT_LEN_MAX, Put, Result, damaged};

/// How long to wait for a store.
#[derive(Clone, Debug)]
pub struct ObjectArchiveOptions {
    /// What all its objects' names begin with.
    pub prefix: String,
    /// Longest time of a request.
    pub deadline_ms: u64,
    /// How long to wait after a request that failed.
    pub pause_ms: u64,
}

impl Default for ObjectArchiveOptions {
    fn default() -> ObjectArchiveOptions {
        ObjectArchiveOptions {
            prefix: String::new(),
            deadline_ms: 60_000,
            pause_ms: 200,
        }
    }
}

/// The store.
pub struct ObjectArchive {
    runtime: Runtime,
    store: Arc<dyn ObjectStore>,
    options: ObjectArchiveOptions,
    request_count: AtomicU64,
}

impl ObjectArchive {
    /// Over a store that is there. One in a directory is to be made `with_fsync(true)`.
    ///
    /// # Errors
    /// [`Error::Refused`] where no runtime can be made.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        options: ObjectArchiveOptions,
    ) -> Result<ObjectArchive> {
        let runtime = Builder::new_current_thread().enable_all().build();
        Ok(ObjectArchive {
            runtime: runtime.map_err(|error| Error::Refused(error.to_string()))?,
            store,
            options,
            request_count: AtomicU64::new(0),
        })
    }

    /// The store of an address as `file:///dir`, `s3://bucket/prefix`, `gs://…` or `az://…`; `settings`
    /// are those of the crate by name, as `aws_region`.
    ///
    /// # Errors
    /// [`Error::Refused`] for an address or a setting that means nothing.
    pub fn open(
        address: &str,
        settings: impl IntoIterator<Item = (String, String)>,
    ) -> Result<ObjectArchive> {
        let refused = |what: String| Error::Refused(format!("archive at {address}: {what}"));
        let url = address.parse();
        let url = url.map_err(|error| refused(format!("no address: {error}")))?;
        let known = settings.into_iter().map(|(k, v)| (k.to_lowercase(), v));
        let opened = ::object_store::parse_url_opts(&url, known);
        let (store, path) = opened.map_err(|error| refused(error.to_string()))?;
        let store: Arc<dyn ObjectStore> = match address.starts_with("file:") {
            true => Arc::new(LocalFileSystem::new().with_fsync(true)),
            false => Arc::from(store),
        };
        let options = ObjectArchiveOptions {
            prefix: path.to_string(),
            ..ObjectArchiveOptions::default()
        };
        ObjectArchive::new(store, options)
    }

    fn path(&self, name: &str) -> Result<Path> {
        let prefix = &self.options.prefix;
        let whole = match prefix.is_empty() {
            true => name.to_owned(),
            false => format!("{prefix}/{name}"),
        };
        Path::parse(whole.trim_end_matches('/')).map_err(|error| Error::Refused(error.to_string()))
    }

    fn ask<T>(
        &self,
        object: &str,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<Result<T, StoreError>> {
        self.request_count.fetch_add(1, Ordering::Relaxed);
        let limit = Duration::from_millis(self.options.deadline_ms);
        let answer = self.runtime.block_on(async {
            let answer = timeout(limit, request).await;
            let failed = match &answer {
                Err(_) => true,
                Ok(Err(error)) => !is_answer(error),
                Ok(Ok(_)) => false,
            };
            if failed {
                // Who sends it again finds the store a little later.
                sleep(Duration::from_millis(self.options.pause_ms)).await;
            }
            answer
        });
        answer.map_err(|_| Error::Store {
            object: object.to_owned(),
            what: format!("no answer within {} ms", limit.as_millis()),
        })
    }
}

/// Whether it says something of the object.
fn is_answer(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::NotFound { .. }
            | StoreError::AlreadyExists { .. }
            | StoreError::Precondition { .. }
    )
}

fn failed(object: &str, error: &StoreError) -> Error {
    let (object, what) = (object.to_owned(), error.to_string());
    match error {
        StoreError::NotImplemented { .. } | StoreError::NotSupported { .. } => {
            Error::Refused(format!("{object}: {what}"))
        }
        _ => Error::Store { object, what },
    }
}

impl ArchiveStore for ObjectArchive {
    fn put(&self, name: &str, bytes: &[u8]) -> Result<Put> {
        let path = self.path(name)?;
        let payload = PutPayload::from(bytes.to_vec());
        let options = PutOptions::from(PutMode::Create);
        match self.ask(name, self.store.put_opts(&path, payload, options))? {
            Ok(_) => Ok(Put::Created),
            // Azure's and S3's ways to say it.
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                Ok(Put::Exists)
            }
            Err(error) => Err(failed(name, &error)),
        }
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(name)?;
        let read = async {
            let found = self.store.get(&path).await?;
            if found.meta.size > OBJECT_LEN_MAX {
                return Ok(Err(found.meta.size));
            }
            found.bytes().await.map(Ok)
        };
        match self.ask(name, read)? {
            Ok(Ok(bytes)) => Ok(Some(bytes.to_vec())),
            Ok(Err(len)) => Err(damaged(name, format!("{len} bytes are too many"))),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(name, &error)),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        let mut folders = vec![self.path(prefix)?];
        let strip = self.options.prefix.len() + usize::from(!self.options.prefix.is_empty());
        while let Some(folder) = folders.pop() {
            let found = self.ask(prefix, self.store.list_with_delimiter(Some(&folder)))?;
            let found = match found {
                Ok(found) => found,
                Err(StoreError::NotFound { .. }) => continue,
                Err(error) => return Err(failed(prefix, &error)),
            };
            folders.extend(found.common_prefixes);
            listed.extend(found.objects.iter().map(|meta| {
                Listed {
                    name: meta
                        .location
                        .as_ref()
                        .get(strip..)
                        .unwrap_or_default()
                        .to_owned(),
                    len: meta.size,
                }
            }));
        }
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    fn delete(&self, name: &str) -> Result<()> {
        let path = self.path(name)?;
        match self.ask(name, self.store.delete(&path))? {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(name, &error)),
        }
    }

    fn request_count(&self) -> u64 {
        self.request_count.load(Ordering::Relaxed)
    }
}
