//! How a command's connections to other nodes are made: the options of TLS.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use strandline::replica::{Links, Pem, Pin, TlsConfig};

use crate::failure::{During, Failure, Result};

/// The options of TLS.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct LinkArgs {
    /// This node's certificate, in PEM: puts connections under TLS, so that any address is allowed.
    /// Other nodes are then NODE@HOST:PORT, or HOST:PORT where their certificates name the host
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(super) tls_cert: Option<PathBuf>,
    /// The certificate's private key, which nobody else may read
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(super) tls_key: Option<PathBuf>,
    /// Certificate of an authority whose nodes are trusted; may be repeated
    #[arg(long = "tls-ca", value_name = "FILE", requires = "tls_cert")]
    pub(super) tls_authorities: Vec<PathBuf>,
    /// Key of a node that is trusted by itself: the SHA-256 that `certs new` prints; may be repeated
    #[arg(long = "tls-pin", value_name = "NODE=DIGEST", requires = "tls_cert")]
    pub(super) tls_pins: Vec<Pin>,
}

impl LinkArgs {
    /// The name of the certificate's file without its ending, as `certs new` gives it: the node's name.
    pub(crate) fn name(&self) -> Option<String> {
        let stem = self.tls_cert.as_ref()?.file_stem()?;
        Some(stem.to_string_lossy().into_owned())
    }

    /// Reads the files.
    pub(crate) fn read(&self) -> Result<Links> {
        let mut links = Links::default();
        if let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) {
            let authorities = self.tls_authorities.iter().map(|path| pem(path));
            links.tls = Some(TlsConfig {
                certificate: pem(certificate)?,
                key: private(key)?,
                authorities: authorities.collect::<Result<_>>()?,
                pins: self.tls_pins.clone(),
            });
        }
        Ok(links)
    }
}

fn pem(path: &Path) -> Result<Pem> {
    Ok(Pem {
        name: path.display().to_string(),
        bytes: std::fs::read(path).during("read", path)?,
    })
}

/// A file that nobody else may read.
pub(super) fn private(path: &Path) -> Result<Pem> {
    let found = std::fs::metadata(path).during("read", path)?;
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let shown = path.display();
        return Err(Failure::io(format!(
            "{shown}: others may read this key (mode {mode:o}): chmod 600 {shown}, and make a new one \
             where somebody may have"
        )));
    }
    pem(path)
}
