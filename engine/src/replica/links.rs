//! How a node's connections are made, as the user says it.

use std::collections::BTreeMap;
use std::sync::Arc;

use strandline_replication::ids::NODE_NAME_LEN_MAX;
use strandline_replication::transport::tcp::TcpOptions;
#[cfg(feature = "tls")]
use strandline_replication::transport::tls::Tls;
#[cfg(feature = "tls")]
pub use strandline_replication::transport::tls::{Pem, Pin, TlsConfig, key_pin};
use strandline_wal::io::Clock;

use crate::error::{Error, Result};

/// How a node's connections are made. Default: plain TCP, over loopback and nowhere else.
#[derive(Clone, Debug, Default)]
pub struct Links {
    /// Puts every connection but those of commands under TLS 1.3 with both ends authenticated; any address
    /// is allowed then. Other nodes are named `NODE@HOST:PORT`, or `HOST:PORT` where the certificate names
    /// the host.
    #[cfg(feature = "tls")]
    pub tls: Option<TlsConfig>,
    /// `HOST:PORT` at which other nodes reach this one. Default: where it listens.
    pub advertise: Option<String>,
    /// Nodes that are reached through a command's standard input and output, by the name that they are
    /// followed under: a program and its arguments, as `ssh host strandline serve --stdio /data`.
    pub commands: BTreeMap<String, Vec<String>>,
}

impl Links {
    /// The transport's settings.
    pub(super) fn options(&self, clock: &Arc<dyn Clock>) -> Result<TcpOptions> {
        #[cfg(feature = "tls")]
        let read = |config| Tls::new(config, Arc::clone(clock)).map(Arc::new);
        #[cfg(not(feature = "tls"))]
        let _ = clock;
        Ok(TcpOptions {
            commands: self.commands.clone(),
            #[cfg(feature = "tls")]
            tls: self
                .tls
                .as_ref()
                .map(read)
                .transpose()
                .map_err(super::hub::failed)?,
            ..TcpOptions::default()
        })
    }

    /// What this node calls itself: what others connect to, and under TLS the name of its certificate.
    pub(super) fn name(&self, options: &TcpOptions, listens_at: &str) -> Result<String> {
        let at = self.advertise.as_deref().unwrap_or(listens_at);
        #[cfg(feature = "tls")]
        let name = match &options.tls {
            Some(tls) if !at.contains('@') => format!("{}@{at}", tls.name()),
            _ => at.to_owned(),
        };
        #[cfg(not(feature = "tls"))]
        let (name, _) = (at.to_owned(), options);
        if name.len() > NODE_NAME_LEN_MAX {
            return Err(Error::Argument {
                what: "name of this node",
                expected: format!("at most {NODE_NAME_LEN_MAX} bytes"),
                found: name,
            });
        }
        Ok(name)
    }

    /// What this process calls itself where it asks and is no node.
    pub(super) fn asker(options: &TcpOptions) -> String {
        #[cfg(feature = "tls")]
        if let Some(tls) = &options.tls {
            return tls.name().to_owned();
        }
        let _ = options;
        // Everybody has a name; nobody connects to this one.
        "status".to_owned()
    }
}
