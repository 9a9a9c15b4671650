//! Both ends of TLS over real sockets: who is let in, who is not, and what is said about it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use strandline_wal::io::{Clock, Env};

use super::*;
use crate::message::{Link, Message};
use crate::transport::tcp::{TcpOptions, TcpTransport};
use crate::transport::{Transport, TransportEvent};

const ANY: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// An authority, and what it signs.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: Pem,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem().into_bytes();
        Authority {
            issuer: Issuer::new(params, key),
            pem: Pem {
                name: format!("{name}.pem"),
                bytes: pem,
            },
        }
    }

    fn signed(&self, names: &[&str], valid_to: i32) -> (Pem, Pem) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(valid_to, 1, 1);
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        let pem = |name: &str, text: String| Pem {
            name: name.to_owned(),
            bytes: text.into_bytes(),
        };
        (
            pem("node.pem", signed.pem()),
            pem("node.key", key.serialize_pem()),
        )
    }

    /// A node of these names that trusts this authority.
    pub fn node(&self, names: &[&str]) -> TlsConfig {
        self.node_until(names, 2040)
    }

    fn node_until(&self, names: &[&str], year: i32) -> TlsConfig {
        let (certificate, key) = self.signed(names, year);
        TlsConfig {
            certificate,
            key,
            authorities: vec![self.pem.clone()],
            pins: Vec::new(),
        }
    }
}

fn pin(name: &str, of: &TlsConfig) -> Pin {
    let certificate = certificates(&of.certificate).unwrap();
    Pin {
        name: name.to_owned(),
        digest: key_digest(&certificate[0]).unwrap(),
    }
}

fn tls(config: &TlsConfig) -> Arc<Tls> {
    Arc::new(Tls::new(config, Env::real().clock).unwrap())
}

fn transport(listen: bool, config: Option<&TlsConfig>) -> TcpTransport {
    let options = TcpOptions {
        listen: listen.then(|| ANY.into()),
        tls: config.map(tls),
        hello_ms: 2_000,
        ..TcpOptions::default()
    };
    TcpTransport::new(options, Env::real().clock, Arc::default()).unwrap()
}

/// The next event.
fn wait_for(transport: &mut TcpTransport) -> TransportEvent {
    let mut came = None;
    until(|| {
        came = transport.poll(0);
        came.is_some()
    });
    came.unwrap()
}

fn until(mut holds: impl FnMut() -> bool) {
    let clock = Env::real().clock;
    let end = clock.mono_ns() + 20_000_000_000;
    while !holds() {
        assert!(clock.mono_ns() < end, "it did not happen in time");
        std::thread::yield_now();
    }
}

fn frame(link: &mut Link, len: usize) -> Vec<u8> {
    link.seal(&Message::BundleData {
        file: 0,
        at: 0,
        bytes: vec![7; len],
    })
}

/// What the listening end and the dialling end say of a connection that must not be.
fn refused(listen: Option<&TlsConfig>, dial: Option<&TlsConfig>, to: &str) -> (String, String) {
    let mut listen = transport(true, listen);
    let mut dial = transport(false, dial);
    let clock = Env::real().clock;
    let began_ns = clock.mono_ns();
    let address = listen.local_addr().unwrap();
    let conn = dial
        .connect(0, &to.replace('*', &address.to_string()))
        .unwrap();
    let mut link = Link::default();
    let why = loop {
        match wait_for(&mut dial) {
            // The dialling end of TLS is done before the other one has looked at its certificate.
            TransportEvent::Opened(_) => {
                let _ = dial.send(0, conn, frame(&mut link, 1));
            }
            TransportEvent::Closed(_, why) => break why.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let refusals = listen.refusals();
    until(|| refusals.count() > 0);
    let lines = refusals.take();
    assert_eq!(lines.len(), 1, "one clear line");
    assert!(listen.poll(0).is_none(), "nobody hears of it");
    let within_ms = (clock.mono_ns() - began_ns) / 1_000_000;
    assert!(within_ms < 5_000, "the handshake deadline holds");
    (lines[0].clone(), why)
}

fn check(said: (String, String), here: &str, there: &str) {
    assert!(said.0.contains(here), "{}", said.0);
    assert!(said.1.contains(there), "{}", said.1);
}

#[test]
fn two_nodes_of_one_authority_talk_and_every_frame_arrives() {
    let authority = Authority::new("ours");
    let (a, b) = (authority.node(&["a"]), authority.node(&["b"]));
    let (mut listen, mut dial) = (transport(true, Some(&a)), transport(false, Some(&b)));
    let to = format!("a@{}", listen.local_addr().unwrap());
    let conn = dial.connect(0, &to).unwrap();
    assert!(matches!(wait_for(&mut dial), TransportEvent::Opened(_)));
    let mut link = Link::default();
    let lens = [1, 50_000, 100_000, 3 << 20, 1, 8_000_000, 65_536 - 40, 70];
    let frames: Vec<_> = lens.iter().map(|len| frame(&mut link, *len)).collect();
    for frame in &frames {
        dial.send(0, conn, frame.clone()).unwrap();
    }
    let TransportEvent::Accepted(theirs, _) = wait_for(&mut listen) else {
        panic!("it came")
    };
    for frame in &frames {
        let TransportEvent::Frame(_, came) = wait_for(&mut listen) else {
            panic!("it came")
        };
        assert!(came == *frame);
        // And back, while more comes.
        listen.send(0, theirs, came).unwrap();
    }
    for frame in &frames {
        let TransportEvent::Frame(_, came) = wait_for(&mut dial) else {
            panic!("it came")
        };
        assert!(came == *frame);
    }
    assert!(listen.may_claim(theirs, "b@10.0.0.1:4000"));
    assert!(
        !listen.may_claim(theirs, "a@10.0.0.1:4000"),
        "another's name"
    );
    assert!(!listen.may_claim(theirs, "10.0.0.1:4000"));
    assert_eq!(listen.refusals().take().len(), 1);
    dial.close(0, conn);
    assert!(matches!(wait_for(&mut listen), TransportEvent::Closed(..)));
    until(|| dial.is_idle() && listen.is_idle());
}

#[test]
fn a_certificate_of_another_authority_is_refused_by_both_ends() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let (a, mut b) = (ours.node(&["a"]), other.node(&["b"]));
    check(
        refused(Some(&a), Some(&b), "a@*"),
        "it does not trust the authority of this node's certificate",
        "no authority trusted here",
    );
    // The dialling end trusts the listening one, and not the other way round.
    b.authorities.clone_from(&a.authorities);
    check(
        refused(Some(&a), Some(&b), "a@*"),
        "no authority trusted here has signed its certificate",
        "it does not trust the authority of this node's certificate",
    );
}

#[test]
fn a_certificate_that_has_expired_is_refused_by_both_ends() {
    let ours = Authority::new("ours");
    let (good, old) = (ours.node(&["a", "b"]), ours.node_until(&["a", "b"], 2021));
    check(
        refused(Some(&old), Some(&good), "a@*"),
        "has expired",
        "its certificate has expired: make it a new one",
    );
    check(
        refused(Some(&good), Some(&old), "a@*"),
        "its certificate has expired: make it a new one",
        "this node's certificate has expired",
    );
}

#[test]
fn a_node_that_has_another_name_is_not_the_one_that_was_dialled() {
    let ours = Authority::new("ours");
    let (a, b) = (ours.node(&["a", "127.0.0.1"]), ours.node(&["b"]));
    let said = refused(Some(&a), Some(&b), "c@*");
    check(said, "refuses", "its certificate is another node's");
    // A host is as good as a node where the certificate names it.
    let mut listen = transport(true, Some(&a));
    let mut dial = transport(false, Some(&b));
    let address = listen.local_addr().unwrap();
    dial.connect(0, &address.to_string()).unwrap();
    assert!(matches!(wait_for(&mut dial), TransportEvent::Opened(_)));
    dial.connect(0, &format!("localhost:{}", address.port()))
        .unwrap();
    let TransportEvent::Closed(_, why) = wait_for(&mut dial) else {
        panic!("no certificate names localhost")
    };
    assert!(why.to_string().contains("another node's"), "{why}");
    assert!(dial.connect(0, "no address").is_err());
    assert!(listen.poll(0).is_none());
}

#[test]
fn plain_and_tls_refuse_each_other_by_name() {
    let ours = Authority::new("ours");
    let a = ours.node(&["a"]);
    check(
        refused(Some(&a), None, "*"),
        "it does not speak TLS",
        "it speaks TLS",
    );
    check(
        refused(None, Some(&a), "a@*"),
        "it speaks TLS: start this node with a certificate",
        "TLS",
    );
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let ours = Authority::new("ours");
    let a = ours.node(&["a"]);
    let trust = Trust::new(&a, &Arc::new(ring::default_provider())).unwrap();
    let mut bare = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trust))
        .with_no_client_auth();
    bare.alpn_protocols = vec![ALPN.to_vec()];
    assert!(let_in(&a, bare).contains("it shows no certificate: give it one"));
}

/// Offers a session of a client's own making, and a frame in it; what the listening end says.
fn let_in(listener: &TlsConfig, client: ClientConfig) -> String {
    let mut listen = transport(true, Some(listener));
    let mut stream = TcpStream::connect(listen.local_addr().unwrap()).unwrap();
    let patience = std::time::Duration::from_secs(5);
    stream.set_read_timeout(Some(patience)).unwrap();
    let name = ServerName::try_from("a").unwrap();
    let mut session = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
    let frame = frame(&mut Link::default(), 1);
    session.writer().write_all(&frame).unwrap();
    while session
        .complete_io(&mut stream)
        .is_ok_and(|(read, wrote)| read + wrote > 0)
    {}
    let refusals = listen.refusals();
    until(|| refusals.count() > 0);
    assert!(listen.poll(0).is_none(), "nobody hears of it");
    refusals.take().join("\n")
}

/// A client with a good certificate whose key it does not have, and one that speaks something else.
#[test]
fn a_stolen_certificate_and_another_protocol_are_refused() {
    #[derive(Debug)]
    struct Stolen(Arc<rustls::sign::CertifiedKey>);
    impl rustls::client::ResolvesClientCert for Stolen {
        fn resolve(
            &self,
            _: &[&[u8]],
            _: &[SignatureScheme],
        ) -> Option<Arc<rustls::sign::CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
        fn has_certs(&self) -> bool {
            true
        }
    }
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let (a, b, thief) = (ours.node(&["a"]), ours.node(&["b"]), other.node(&["b"]));
    let client = |alpn: &[u8], key: &TlsConfig| {
        let key = PrivateKeyDer::from_pem_slice(&key.key.bytes).unwrap();
        let key = ring::sign::any_supported_type(&key).unwrap();
        let chain = certificates(&b.certificate).unwrap();
        let stolen = rustls::sign::CertifiedKey::new(chain, key);
        let trust = Trust::new(&a, &Arc::new(ring::default_provider())).unwrap();
        let mut client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(trust))
            .with_client_cert_resolver(Arc::new(Stolen(Arc::new(stolen))));
        client.alpn_protocols = Vec::from_iter((!alpn.is_empty()).then(|| alpn.to_vec()));
        client
    };
    let said = let_in(&a, client(ALPN, &thief));
    assert!(
        said.contains("no authority trusted here") && said.contains("BadSignature"),
        "{said}"
    );
    for alpn in [&b"http/1.1"[..], b""] {
        let said = let_in(&a, client(alpn, &b));
        assert!(
            said.contains("it speaks TLS and not this protocol"),
            "{said}"
        );
    }
}

/// The greeting of a client that knows TLS 1.2 and nothing newer.
fn old_greeting() -> Vec<u8> {
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    // No session; three suites of TLS 1.2; no compression.
    hello.extend([0, 0, 6, 0xc0, 0x2f, 0xc0, 0x2b, 0xcc, 0xa8, 1, 0]);
    // Groups, and signature algorithms.
    let extensions = [0, 10, 0, 4, 0, 2, 0, 29, 0, 13, 0, 4, 0, 2, 4, 3];
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    let len = hello.len() as u16;
    let mut record = vec![0x16, 3, 1];
    record.extend((len + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend(len.to_be_bytes());
    record.extend(hello);
    record
}

#[test]
fn a_client_that_knows_an_older_version_alone_is_refused() {
    let a = Authority::new("ours").node(&["a"]);
    let mut listen = transport(true, Some(&a));
    let mut stream = TcpStream::connect(listen.local_addr().unwrap()).unwrap();
    stream.write_all(&old_greeting()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    // A fatal alert: protocol_version.
    assert_eq!((answer[0], &answer[5..]), (0x15, &[2, 70][..]));
    let refusals = listen.refusals();
    until(|| refusals.count() > 0);
    let lines = refusals.take();
    assert!(lines[0].contains("does not offer TLS 1.3"), "{lines:?}");
    assert!(listen.poll(0).is_none());
}

/// A good session is recorded on the way, and its bytes are sent again.
#[test]
fn the_bytes_of_a_recorded_session_open_nothing() {
    let ours = Authority::new("ours");
    let (a, b) = (ours.node(&["a"]), ours.node(&["b"]));
    let mut listen = transport(true, Some(&a));
    let address = listen.local_addr().unwrap();
    let between = TcpListener::bind(SocketAddr::from(ANY)).unwrap();
    let to = format!("a@{}", between.local_addr().unwrap());
    let recorder = std::thread::spawn(move || {
        let (mut client, _) = between.accept().unwrap();
        let mut server = TcpStream::connect(address).unwrap();
        let (mut back, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let answers = std::thread::spawn(move || std::io::copy(&mut back, &mut to_client));
        let (mut recorded, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(n @ 1..) = client.read(&mut buffer) {
            recorded.extend(&buffer[..n]);
            server.write_all(&buffer[..n]).unwrap();
        }
        drop((client, server));
        let _ = answers;
        recorded
    });
    let mut dial = transport(false, Some(&b));
    let conn = dial.connect(0, &to).unwrap();
    assert!(matches!(wait_for(&mut dial), TransportEvent::Opened(_)));
    dial.send(0, conn, frame(&mut Link::default(), 9)).unwrap();
    assert!(matches!(
        wait_for(&mut listen),
        TransportEvent::Accepted(..)
    ));
    assert!(matches!(wait_for(&mut listen), TransportEvent::Frame(..)));
    dial.close(0, conn);
    let TransportEvent::Closed(..) = wait_for(&mut listen) else {
        panic!("it was closed")
    };
    drop(dial);
    let recorded = recorder.join().unwrap();
    assert!(recorded.len() > 500, "a whole session");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&recorded).unwrap();
    let refusals = listen.refusals();
    until(|| refusals.count() > 0);
    assert!(listen.poll(0).is_none(), "it opened nothing");
}

#[test]
fn a_pinned_key_is_good_for_its_name_and_nothing_else_is() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    // Both trust each other by pins alone.
    let (mut a, mut b) = (ours.node(&["x"]), other.node(&["y"]));
    let (pin_a, pin_b) = (pin("a", &a), pin("b", &b));
    for node in [&mut a, &mut b] {
        node.authorities.clear();
        node.pins = vec![pin_a.clone(), pin_b.clone()];
    }
    let mut listen = transport(true, Some(&a));
    let mut dial = transport(false, Some(&b));
    let to = format!("a@{}", listen.local_addr().unwrap());
    let conn = dial.connect(0, &to).unwrap();
    assert!(matches!(wait_for(&mut dial), TransportEvent::Opened(_)));
    dial.send(0, conn, frame(&mut Link::default(), 9)).unwrap();
    let TransportEvent::Accepted(theirs, _) = wait_for(&mut listen) else {
        panic!("it came")
    };
    for (name, may) in [
        ("b@h:1", true),
        ("B.@h:1", true),
        ("a@h:1", false),
        ("A@h:1", false),
        ("y@h:1", false),
    ] {
        assert_eq!(listen.may_claim(theirs, name), may, "{name}");
    }
    // Whoever answers as `b` is not `a`, and the authority's word does not replace a pin.
    let wrong = "its key is not the one that is pinned for this name";
    check(refused(Some(&b), Some(&a), "a@*"), "refuse", wrong);
    let same_name = ours.node(&["a"]);
    let mut both = ours.node(&["c"]);
    both.pins = vec![pin_a];
    // However the name is spelled.
    for to in ["a@*", "A@*", "a.@*"] {
        check(refused(Some(&same_name), Some(&both), to), "refuse", wrong);
    }
    // Nobody's key, and no authority.
    let stranger = ours.node(&["b"]);
    let said = refused(
        Some(&a),
        Some(&TlsConfig {
            pins: vec![pin("a", &a)],
            ..stranger
        }),
        "a@*",
    );
    assert!(said.0.contains("no authority trusted here"), "{}", said.0);
}

#[test]
fn files_that_are_of_no_use_are_named() {
    let ours = Authority::new("ours");
    let (good, other) = (ours.node(&["a"]), ours.node(&["a"]));
    let why = |config: TlsConfig| match Tls::new(&config, Env::real().clock) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it is of no use"),
    };
    let pem = |name: &str, bytes: &[u8]| Pem {
        name: name.to_owned(),
        bytes: bytes.to_vec(),
    };
    let certificate = pem("empty.pem", b"");
    let found = why(TlsConfig {
        certificate,
        ..good.clone()
    });
    assert_eq!(found, "empty.pem: no certificate in PEM stands in it");
    let found = why(TlsConfig {
        key: pem("no.key", b"?"),
        ..good.clone()
    });
    assert!(found.starts_with("no.key: no private key"), "{found}");
    let found = why(TlsConfig {
        key: other.key,
        ..good.clone()
    });
    assert_eq!(found, "node.key: it is not the key of node.pem");
    let found = why(TlsConfig {
        authorities: Vec::new(),
        ..good.clone()
    });
    assert!(found.contains("it trusts nobody"), "{found}");
    let found = why(TlsConfig {
        authorities: vec![pem("ca.pem", b"")],
        ..good.clone()
    });
    assert!(found.starts_with("ca.pem: no certificate"), "{found}");
    let (certificate, key) = ours.signed(&["10.0.0.1"], 2040);
    let found = why(TlsConfig {
        certificate,
        key,
        ..good.clone()
    });
    assert!(found.starts_with("node.pem: it names no node"), "{found}");
    assert!(
        !format!("{good:?}").contains("PRIVATE"),
        "keys are not printed"
    );
    assert_eq!(tls(&good).name(), "a");
    for text in ["", "a", "a=", "=00", &format!("a={}", "0g".repeat(32))] {
        assert!(text.parse::<Pin>().is_err(), "{text:?}");
    }
    let digest = [0xab; 32];
    let read: Pin = format!("a={}", "ab".repeat(32)).parse().unwrap();
    assert_eq!(
        read,
        Pin {
            name: "a".to_owned(),
            digest
        }
    );
}

/// A clock that a test sets.
struct Hand(AtomicU64);

impl Clock for Hand {
    fn wall_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn mono_ns(&self) -> u64 {
        Env::real().clock.mono_ns()
    }
}

/// A node that runs for years finds out on the day.
#[test]
fn a_certificate_expires_by_the_injected_clock() {
    let ours = Authority::new("ours");
    let (a, b) = (ours.node_until(&["a"], 2031), ours.node_until(&["b"], 2031));
    let hand = Arc::new(Hand(AtomicU64::new(1_900_000_000_000)));
    let clocked = |config: &TlsConfig, listen: bool| {
        let options = TcpOptions {
            listen: listen.then(|| ANY.into()),
            tls: Some(Arc::new(Tls::new(config, hand.clone()).unwrap())),
            ..TcpOptions::default()
        };
        TcpTransport::new(options, Env::real().clock, Arc::default()).unwrap()
    };
    let (listen, mut dial) = (clocked(&a, true), clocked(&b, false));
    let to = format!("a@{}", listen.local_addr().unwrap());
    dial.connect(0, &to).unwrap();
    assert!(matches!(wait_for(&mut dial), TransportEvent::Opened(_)));
    hand.0.store(1_930_000_000_000, Ordering::Relaxed);
    dial.connect(0, &to).unwrap();
    let TransportEvent::Closed(_, why) = wait_for(&mut dial) else {
        panic!("it has expired")
    };
    assert!(why.to_string().contains("has expired"), "{why}");
}

#[test]
fn names_of_nodes_stand_before_the_host_or_are_the_host() {
    let table = [
        ("a@10.0.0.1:7000", "a"),
        ("10.0.0.1:7000", "10.0.0.1"),
        ("[::1]:7000", "::1"),
        ("node-a.example:7000", "node-a.example"),
        ("status", "status"),
    ];
    for (called, name) in table {
        assert_eq!(node_name(called), name);
    }
}
