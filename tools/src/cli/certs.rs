//! `certs`: an authority of one's own, and certificates of nodes.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use strandline_wal::io::Env;

use super::links::private;
use crate::failure::{During, Exit, Failure, Result};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Days that an authority is good for.
const CA_DAYS: u32 = 3_650;

/// `strandline certs`
#[derive(Subcommand)]
pub(super) enum Certs {
    /// Make an authority in DIR (ca.pem, ca.key), or with --node a certificate that it signs (NAME.pem,
    /// NAME.key). Nothing that is there is overwritten
    New(New),
}

impl Certs {
    pub(super) fn run(self) -> Result<Exit> {
        match self {
            Certs::New(new) => new.run(),
        }
    }
}

/// `strandline certs new`
#[derive(Args)]
pub(super) struct New {
    /// The authority's directory: its key belongs on no node
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// A node's name
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// A host name or IP address at which the node is reached without its name; may be repeated
    #[arg(long = "host", value_name = "HOST", requires = "node")]
    hosts: Vec<String>,
    /// Days that the node's certificate is good for
    #[arg(long, value_name = "DAYS", default_value_t = 825, requires = "node",
          value_parser = clap::value_parser!(u32).range(1..=CA_DAYS as i64))]
    days: u32,
    /// Directory of the node's files [default: that of the authority]
    #[arg(long, value_name = "DIR", requires = "node")]
    out: Option<PathBuf>,
}

fn unusable(error: rcgen::Error) -> Failure {
    Failure::usage(format!("certificate: {error}"))
}

/// Valid from yesterday on, for clocks that are late.
fn dated(params: &mut CertificateParams, days: u32) {
    let since = Duration::from_millis(Env::real().clock.wall_ms());
    let now = rcgen::date_time_ymd(1970, 1, 1) + since;
    params.not_before = now - DAY;
    params.not_after = now + DAY * days;
}

impl New {
    fn run(self) -> Result<Exit> {
        match &self.node {
            None => self.authority(),
            Some(name) => self.node(name),
        }?;
        Ok(Exit::Ok)
    }

    fn authority(&self) -> Result<()> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "strandline authority");
        dated(&mut params, CA_DAYS);
        let key = KeyPair::generate().map_err(unusable)?;
        let certificate = params.self_signed(&key).map_err(unusable)?;
        directory(&self.ca)?;
        write_new(&self.ca.join("ca.key"), &key.serialize_pem())?;
        write_new(&self.ca.join("ca.pem"), &certificate.pem())
    }

    fn node(&self, name: &str) -> Result<()> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        if name.is_empty() || name.starts_with('.') || !name.bytes().all(is_plain) {
            return Err(Failure::usage(format!(
                "node name {name:?}: letters, digits, - and . are what a certificate can have"
            )));
        }
        let signer = private(&self.ca.join("ca.key"))?;
        let signer = KeyPair::from_pem(&String::from_utf8_lossy(&signer.bytes));
        let path = self.ca.join("ca.pem");
        let authority = std::fs::read_to_string(&path).during("read", &path)?;
        let issuer = Issuer::from_ca_cert_pem(&authority, signer.map_err(unusable)?);
        let issuer = issuer.map_err(|error| unusable(error).at(path.display()))?;

        let mut names = vec![name.to_owned()];
        names.extend(self.hosts.iter().cloned());
        let mut params = CertificateParams::new(names).map_err(unusable)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        dated(&mut params, self.days);
        let key = KeyPair::generate().map_err(unusable)?;
        let certificate = params.signed_by(&key, &issuer).map_err(unusable)?;
        let out = self.out.as_ref().unwrap_or(&self.ca);
        directory(out)?;
        write_new(&out.join(format!("{name}.key")), &key.serialize_pem())?;
        write_new(&out.join(format!("{name}.pem")), &certificate.pem())?;
        let pin = strandline::replica::key_pin(name, &key.subject_public_key_info());
        println!("pin {pin}");
        Ok(())
    }
}

fn directory(path: &Path) -> Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(path).during("create", path)
}

/// Writes a file that is not there yet, for nobody else to read.
fn write_new(path: &Path, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.during("create", path)?;
    file.write_all(text.as_bytes()).during("write", path)?;
    file.sync_all().during("sync", path)?;
    println!("wrote {}", path.display());
    Ok(())
}
