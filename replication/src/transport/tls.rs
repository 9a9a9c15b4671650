//! TLS 1.3 below the frames, with both ends authenticated: what makes a connection beyond loopback
//! worth trusting.
//!
//! Each end shows a certificate. It is good where an authority that the other end names has signed it,
//! for that use and now, or where its key is pinned there. Whoever dials checks that it names the node
//! that was dialled; whoever listens checks, at the Hello, that it names the node that the Hello claims
//! to be. A pin binds a name to a key: nobody else's certificate is good for that name, whoever signed
//! it, and a pinned key is good for the names that it is pinned under alone. A pin has no date: it is
//! good until it is taken off the list.
//!
//! There is no older version to fall back to, no ticket, no resumption and no early data: every session
//! has fresh keys of both ends, so the bytes of a recorded one open nothing. ALPN binds the session to
//! this protocol. Versions of the protocol itself are negotiated inside.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore,
    ServerConfig, SignatureScheme,
};
use strandline_wal::bug::planted;
use strandline_wal::io::Clock;

use crate::error::{Error, Result};

mod session;

pub(super) use session::Session;

/// What both ends say they speak inside TLS.
const ALPN: &[u8] = b"strandline/1";

/// The content of a PEM file, and what to call it where it is wrong.
#[derive(Clone)]
pub struct Pem {
    /// The file, for people.
    pub name: String,
    /// What stands in it.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Pem {
    /// Without the content: it may be a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pem({:?})", self.name)
    }
}

/// A name bound to a key: the SHA-256 of the key's SubjectPublicKeyInfo.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pin {
    /// The node's name.
    pub name: String,
    /// The digest.
    pub digest: [u8; 32],
}

impl std::str::FromStr for Pin {
    type Err = String;

    /// Reads `NAME=DIGEST`, the digest in 64 hexadecimal digits.
    fn from_str(text: &str) -> Result<Pin, String> {
        let wrong = || format!("expected NAME=DIGEST with 64 hexadecimal digits, found {text:?}");
        let (name, hex) = text.split_once('=').ok_or_else(wrong)?;
        let mut digest = [0; 32];
        if name.is_empty() || hex.len() != 64 || !hex.is_ascii() {
            return Err(wrong());
        }
        for (n, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Pin {
            name: name.to_owned(),
            digest,
        })
    }
}

/// Who this node is and whom it trusts.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// This node's certificate, with those between it and its authority behind it.
    pub certificate: Pem,
    /// The certificate's private key.
    pub key: Pem,
    /// Certificates of the authorities whose nodes are trusted.
    pub authorities: Vec<Pem>,
    /// Keys of nodes that are trusted by themselves.
    pub pins: Vec<Pin>,
}

/// [`TlsConfig`], read and checked.
pub struct Tls {
    name: String,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    trust: Arc<Trust>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({:?})", self.name)
    }
}

fn wrong(file: &str, what: impl Into<String>) -> Error {
    Error::Certificate {
        file: file.to_owned(),
        what: what.into(),
    }
}

fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>> {
    let read: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem.bytes).collect();
    let read = read.map_err(|error| wrong(&pem.name, format!("not PEM: {error}")))?;
    match read.is_empty() {
        true => Err(wrong(&pem.name, "no certificate in PEM stands in it")),
        false => Ok(read),
    }
}

impl Tls {
    /// Reads what the configuration says.
    ///
    /// # Errors
    /// [`Error::Certificate`] names the file that is of no use, and why.
    pub fn new(config: &TlsConfig, clock: Arc<dyn Clock>) -> Result<Tls> {
        let chain = certificates(&config.certificate)?;
        let key = || {
            PrivateKeyDer::from_pem_slice(&config.key.bytes)
                .map_err(|error| wrong(&config.key.name, format!("no private key: {error}")))
        };
        let name = first_name(&chain[0]).ok_or_else(|| {
            wrong(
                &config.certificate.name,
                "it names no node: its subject alternative names need one of DNS",
            )
        })?;
        let provider = Arc::new(ring::default_provider());
        let trust = Arc::new(Trust::new(config, &provider)?);
        let time: Arc<dyn TimeProvider> = Arc::new(Time(clock));
        let mismatch = |error: rustls::Error| {
            let what = match error {
                rustls::Error::InconsistentKeys(_) => {
                    format!("it is not the key of {}", config.certificate.name)
                }
                error => error.to_string(),
            };
            wrong(&config.key.name, what)
        };
        let mut server =
            ServerConfig::builder_with_details(Arc::clone(&provider), Arc::clone(&time))
                .with_protocol_versions(&[&TLS13])
                .expect("the provider has suites of TLS 1.3")
                .with_client_cert_verifier(Arc::clone(&trust) as Arc<dyn ClientCertVerifier>)
                .with_single_cert(chain.clone(), key()?)
                .map_err(mismatch)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;
        let mut client = ClientConfig::builder_with_details(provider, time)
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&trust) as Arc<dyn ServerCertVerifier>)
            .with_client_auth_cert(chain, key()?)
            .map_err(mismatch)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_early_data = false;
        Ok(Tls {
            name,
            server: Arc::new(server),
            client: Arc::new(client),
            trust,
        })
    }

    /// The first name of this node's certificate.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The name of a node that is called `[NODE@]HOST:PORT`: what its certificate must say.
pub(super) fn node_name(called: &str) -> &str {
    if let Some((node, _)) = called.split_once('@') {
        return node;
    }
    let host = called.rsplit_once(':').map_or(called, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// A name in the one spelling that pins go by: certificates are as good for others.
fn canonical(name: &str) -> String {
    if let Ok(address) = name.parse::<IpAddr>() {
        return address.to_string();
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    name.to_ascii_lowercase()
}

/// The SHA-256 of a certificate's SubjectPublicKeyInfo.
///
/// # Errors
/// What is wrong with the certificate.
fn key_digest(certificate: &CertificateDer<'_>) -> Result<[u8; 32], rustls::Error> {
    let parsed = webpki::EndEntityCert::try_from(certificate)
        .map_err(|_| rustls::Error::from(CertificateError::BadEncoding))?;
    let spki = parsed.subject_public_key_info();
    Ok(key_pin("", spki.as_ref()).digest)
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.name)?;
        self.digest
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The pin of a public key, of which the SubjectPublicKeyInfo is given.
pub fn key_pin(name: &str, public_key_info: &[u8]) -> Pin {
    let rustls::SupportedCipherSuite::Tls13(suite) =
        ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256;
    let digest = suite.common.hash_provider.hash(public_key_info);
    Pin {
        name: name.to_owned(),
        digest: digest.as_ref().try_into().expect("SHA-256 has 32 bytes"),
    }
}

fn first_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    // One with a wildcard is nobody's own.
    let own = parsed.valid_dns_names().find(|name| !name.contains('*'));
    own.map(str::to_owned)
}

/// The clock of the process, injected as everywhere.
struct Time(Arc<dyn Clock>);

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        // Some day on which everything is valid.
        const PLANTED_SECONDS: u64 = 1_900_000_000;
        let seconds = match planted("tls.time") {
            true => PLANTED_SECONDS,
            false => self.0.wall_ms() / 1000,
        };
        let since = std::time::Duration::from_secs(seconds);
        Some(UnixTime::since_unix_epoch(since))
    }
}

/// Whose certificates are good, and for which names.
#[derive(Debug)]
struct Trust {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    pins: BTreeMap<String, Vec<[u8; 32]>>,
}

impl Trust {
    fn new(config: &TlsConfig, provider: &Arc<CryptoProvider>) -> Result<Trust> {
        let mut roots = RootCertStore::empty();
        for pem in &config.authorities {
            for certificate in certificates(pem)? {
                let added = roots.add(certificate);
                added.map_err(|error| wrong(&pem.name, format!("no authority: {error}")))?;
            }
        }
        let mut pins: BTreeMap<String, Vec<[u8; 32]>> = BTreeMap::new();
        for pin in &config.pins {
            let name = canonical(&pin.name);
            pins.entry(name).or_default().push(pin.digest);
        }
        if roots.is_empty() && pins.is_empty() {
            let what = "it trusts nobody: name an authority or pin a key";
            return Err(wrong("the TLS configuration", what));
        }
        let roots = Arc::new(roots);
        let clients = (!roots.is_empty()).then(|| {
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
                .build()
                .expect("there are roots")
        });
        Ok(Trust {
            provider: Arc::clone(provider),
            roots,
            clients,
            pins,
        })
    }

    fn is_pinned(&self, digest: &[u8; 32]) -> bool {
        self.pins.values().flatten().any(|pin| pin == digest) && !planted("tls.pinned_name")
    }

    /// Whether a certificate is good for a name as far as pins say; `None` where they say nothing.
    fn pinned_for(
        &self,
        certificate: &CertificateDer<'_>,
        name: &str,
    ) -> Result<Option<bool>, rustls::Error> {
        let digest = key_digest(certificate)?;
        Ok(match self.pins.get(&canonical(name)) {
            Some(pins) => Some(pins.contains(&digest) || planted("tls.pin")),
            None => self.is_pinned(&digest).then_some(false),
        })
    }

    /// Whether whoever has shown a certificate may call itself so.
    fn may_claim(&self, certificate: &CertificateDer<'_>, called: &str) -> bool {
        let name = node_name(called);
        match self.pinned_for(certificate, name) {
            Ok(Some(is_good)) => is_good,
            Ok(None) => {
                let parsed = webpki::EndEntityCert::try_from(certificate);
                let server_name = ServerName::try_from(name);
                parsed.is_ok_and(|parsed| {
                    server_name
                        .is_ok_and(|name| parsed.verify_is_valid_for_subject_name(&name).is_ok())
                })
            }
            Err(_) => false,
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if planted("tls.signature") {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }
}

fn is_old() -> rustls::Error {
    rustls::Error::General("a signature of an older version".to_owned())
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let good = ServerCertVerified::assertion();
        let text = name.to_str();
        match self.pinned_for(certificate, &text)? {
            Some(true) => return Ok(good),
            Some(false) => return Err(CertificateError::ApplicationVerificationFailure.into()),
            None => {}
        }
        let parsed = ParsedCertificate::try_from(certificate)?;
        if !planted("tls.server_chain") {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &self.roots,
                between,
                now,
                algorithms,
            )?;
        }
        if !planted("tls.server_name") {
            verify_server_name(&parsed, name)?;
        }
        Ok(good)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(is_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Trust {
    fn client_auth_mandatory(&self) -> bool {
        !planted("tls.client_cert")
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if self.is_pinned(&key_digest(certificate)?) || planted("tls.client_chain") {
            return Ok(ClientCertVerified::assertion());
        }
        match &self.clients {
            Some(clients) => clients.verify_client_cert(certificate, between, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(is_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// What a failure of TLS means and what to do about it, in one line.
fn explain(error: &rustls::Error) -> String {
    use rustls::{AlertDescription as Alert, InvalidMessage};
    let meaning = match error {
        rustls::Error::InvalidCertificate(wrong) => match wrong {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "no authority trusted here has signed its certificate: name its authority here, or \
                 give it a certificate of ours"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired: make it a new one"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet: look at the clocks of both nodes"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is another node's: dial it as NODE@HOST:PORT by the name that it has"
            }
            CertificateError::ApplicationVerificationFailure => {
                "its key is not the one that is pinned for this name: pin its key, or find out who \
                 answers there"
            }
            _ => "its certificate is of no use",
        },
        rustls::Error::NoCertificatesPresented => {
            "it shows no certificate: give it one of an authority that is trusted here"
        }
        rustls::Error::AlertReceived(alert) => match alert {
            Alert::UnknownCA | Alert::DecryptError => {
                "it does not trust the authority of this node's certificate"
            }
            Alert::CertificateExpired => "to it this node's certificate has expired",
            Alert::CertificateRequired => "it wants a certificate of this node",
            Alert::BadCertificate | Alert::CertificateUnknown | Alert::AccessDenied => {
                "it refuses this node's certificate"
            }
            Alert::ProtocolVersion => "it speaks another version of TLS",
            Alert::NoApplicationProtocol => "it speaks TLS and not this protocol",
            _ => "it ended the session",
        },
        rustls::Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => "it does not speak TLS: start it with a certificate, or this node without",
        rustls::Error::PeerIncompatible(_) => "it does not offer TLS 1.3 as it is needed here",
        rustls::Error::NoApplicationProtocol => "it speaks TLS and not this protocol",
        _ => "TLS failed",
    };
    format!("{meaning} ({error})")
}

/// The name to look for in the certificate of whoever is dialled.
fn server_name(name: &str) -> Option<ServerName<'static>> {
    match name.parse::<IpAddr>() {
        Ok(ip) => Some(ServerName::from(ip)),
        Err(_) => ServerName::try_from(name.to_owned()).ok(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
