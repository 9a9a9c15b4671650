//! The same promises over real sockets and real files.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;

use strandline_wal::Epoch;
use strandline_wal::io::Env;

use super::S0;
use crate::driver::{Command, Driver, DriverHandle};
use crate::error::Error;
use crate::follower::FollowerOptions;
use crate::leader::LeaderOptions;
use crate::message::Wants;
use crate::notify::Notifier;
use crate::quorum::{Level, Policy};
use crate::store::{FollowerStore, LogSource};
use crate::testing::{Setup, TestStore, node};
use crate::transport::tcp::{TcpOptions, TcpTransport};
use crate::transport::{Transport, TransportEvent};

const ANY: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// A driver on its own thread.
struct Running {
    handle: DriverHandle,
    thread: Option<JoinHandle<()>>,
    address: Option<SocketAddr>,
}

fn run(notifier: &Arc<Notifier>, options: TcpOptions) -> Running {
    let env = Env::real();
    let transport =
        TcpTransport::new(options, Arc::clone(&env.clock), Arc::clone(notifier)).unwrap();
    let address = transport.local_addr();
    let mut driver = Driver::new(Box::new(transport), Arc::clone(notifier));
    let handle = driver.handle();
    let thread = std::thread::spawn(move || driver.run(env.clock.as_ref()));
    Running {
        handle,
        thread: Some(thread),
        address,
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.stop();
        let ended = self.thread.take().unwrap().join();
        assert!(
            ended.is_ok() || std::thread::panicking(),
            "the driver does not panic"
        );
    }
}

fn peers(name: &str, address: SocketAddr) -> BTreeMap<String, SocketAddr> {
    BTreeMap::from([(name.to_owned(), address)])
}

/// Waits, with the thread's time given away, until something holds.
fn until(holds: impl Fn() -> bool) {
    let clock = Env::real().clock;
    let end = clock.mono_ns() + 60_000_000_000;
    while !holds() {
        assert!(clock.mono_ns() < end, "it did not happen within a minute");
        std::thread::yield_now();
    }
}

#[test]
fn two_processes_worth_of_drivers_replicate_real_files() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let env = Env::real();
    let mut setup = Setup::new("a");
    setup.level = Some(Level::Durable(1));
    let leader = TestStore::lead(&env, dir_a.path(), setup, Epoch(1)).unwrap();
    let follower = TestStore::follow(&env, dir_b.path(), Setup::new("b")).unwrap();

    let listen = TcpOptions {
        listen: Some(ANY.into()),
        ..TcpOptions::default()
    };
    let a = run(&leader.notifier, listen);
    let policy = Policy::Fixed(vec![node("a"), node("b")]);
    let wants = Wants {
        durable: true,
        ..Wants::default()
    };
    let options = LeaderOptions {
        policy,
        wants,
        ..LeaderOptions::default()
    };
    a.handle
        .call(Command::Lead(leader.clone(), options))
        .unwrap();

    let dial = TcpOptions {
        peers: peers("a", a.address.unwrap()),
        ..TcpOptions::default()
    };
    let b = run(&follower.notifier, dial);
    let options = FollowerOptions {
        peers: vec!["a".to_owned()],
        ..FollowerOptions::default()
    };
    b.handle
        .call(Command::Follow(follower.clone(), options))
        .unwrap();

    for n in 0..500u32 {
        leader.write(S0, &n.to_le_bytes().repeat(100)).unwrap();
    }
    // Longer than a frame, and than what is written inline.
    let seq = leader.write(S0, &vec![3; 10 << 20]).unwrap();
    leader.sync(S0).unwrap();
    leader.notifier.notify();
    until(|| leader.confirmed_at(S0, Level::Durable(1)) == seq);
    until(|| follower.applied(S0) == seq);
    assert!(leader.image(S0) == follower.image(S0));

    // The driver lets go of a store when it is told to.
    b.handle
        .call(Command::Retire(follower.identity().dataset))
        .unwrap();
    leader.write(S0, b"more").unwrap();
    drop((a, b));
    assert_eq!(follower.log(S0).last_seq(), seq);
    let names = |dir: &tempfile::TempDir| {
        let names = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name());
        let mut names: Vec<_> = names
            .filter(|n| n.to_string_lossy().starts_with("wal-"))
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&dir_a), names(&dir_b));
}

fn transport(options: TcpOptions) -> crate::Result<TcpTransport> {
    TcpTransport::new(options, Env::real().clock, Arc::default())
}

#[test]
fn addresses_beyond_loopback_are_refused_both_ways() {
    let far: SocketAddr = ([192, 0, 2, 1], 4000).into();
    for address in [far, ([0, 0, 0, 0], 0).into(), "[::]:0".parse().unwrap()] {
        let refused = transport(TcpOptions {
            listen: Some(address),
            ..TcpOptions::default()
        });
        assert!(
            matches!(refused.err(), Some(Error::NotLoopback { .. })),
            "{address}"
        );
    }
    let options = TcpOptions {
        peers: peers("far", far),
        ..TcpOptions::default()
    };
    let mut dial = transport(options).unwrap();
    assert!(matches!(
        dial.connect(0, "far"),
        Err(Error::NotLoopback { .. })
    ));
    assert!(matches!(
        dial.connect(0, "nobody"),
        Err(Error::UnknownPeer { .. })
    ));
}

fn wait_for(transport: &mut TcpTransport) -> TransportEvent {
    let clock = Env::real().clock;
    let end = clock.mono_ns() + 60_000_000_000;
    loop {
        if let Some(event) = transport.poll(0) {
            return event;
        }
        assert!(clock.mono_ns() < end, "nothing came within a minute");
        std::thread::yield_now();
    }
}

#[test]
fn a_stranger_that_says_nothing_or_too_much_is_dropped() {
    let options = TcpOptions {
        listen: Some(ANY.into()),
        hello_ms: 50,
        ..TcpOptions::default()
    };
    let mut listen = transport(options).unwrap();
    let address = listen.local_addr().unwrap();
    let refusals = listen.refusals();
    let silent = TcpStream::connect(address).unwrap();
    until(|| refusals.count() == 1);
    let why = "refused 127.0.0.1: a frame that began does not come";
    assert_eq!(refusals.take(), [why]);
    drop(silent);
    let mut loud = TcpStream::connect(address).unwrap();
    let mut header = [0; 24];
    header[4..8].copy_from_slice(&(1u32 << 20).to_le_bytes());
    loud.write_all(&header).unwrap();
    until(|| refusals.count() == 2);
    let mut rest = Vec::new();
    assert!(loud.read_to_end(&mut rest).is_err() || rest.is_empty());
    until(|| listen.is_idle());
    assert!(listen.poll(0).is_none(), "the driver hears of neither");
}

/// One that speaks TLS is told apart at once, from its greeting, however short that is.
#[test]
fn a_greeting_of_tls_is_refused_by_name() {
    let mut listen = transport(TcpOptions {
        listen: Some(ANY.into()),
        ..TcpOptions::default()
    })
    .unwrap();
    let refusals = listen.refusals();
    let mut stranger = TcpStream::connect(listen.local_addr().unwrap()).unwrap();
    let mut greeting = [0; 205];
    greeting[..9].copy_from_slice(&[0x16, 3, 1, 0, 200, 1, 0, 0, 196]);
    stranger.write_all(&greeting).unwrap();
    until(|| refusals.count() == 1);
    let why = "refused 127.0.0.1: it speaks TLS: start this node with a certificate, or it without";
    assert_eq!(refusals.take(), [why]);
    assert!(listen.poll(0).is_none());
}

#[test]
fn connections_past_the_limit_are_dropped_and_their_places_come_back() {
    let options = TcpOptions {
        listen: Some(ANY.into()),
        conn_count_max: 2,
        ..TcpOptions::default()
    };
    let mut listen = transport(options).unwrap();
    let address = listen.local_addr().unwrap();
    for _ in 0..3 {
        let held: Vec<_> = (0..2).map(|_| said_hello(address)).collect();
        for event in (0..4).map(|_| wait_for(&mut listen)).collect::<Vec<_>>() {
            assert!(matches!(
                event,
                TransportEvent::Accepted(..) | TransportEvent::Frame(..)
            ));
        }
        let mut third = said_hello(address);
        assert_eq!(third.read(&mut [0]).unwrap_or(0), 0, "it is closed");
        drop(held);
        let closed: Vec<_> = (0..2).map(|_| wait_for(&mut listen)).collect();
        assert!(
            closed
                .iter()
                .all(|event| matches!(event, TransportEvent::Closed(..)))
        );
        until(|| listen.is_idle());
    }
}

/// A connection whose first frame is sent.
fn said_hello(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let frame = frame_of(&mut crate::message::Link::default(), 1);
    stream.write_all(&frame).unwrap();
    stream
}

/// Who says nothing takes nobody's place: the oldest of them goes.
#[test]
fn strangers_make_room_for_each_other_and_for_a_node() {
    let mut listen = transport(TcpOptions {
        listen: Some(ANY.into()),
        conn_count_max: 1,
        stranger_count_max: 2,
        ..TcpOptions::default()
    })
    .unwrap();
    let address = listen.local_addr().unwrap();
    let mut silent: Vec<_> = (0..2)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    for _ in 0..20 {
        silent.push(TcpStream::connect(address).unwrap());
        silent[0]
            .set_read_timeout(Some(std::time::Duration::from_secs(2)))
            .unwrap();
        let mut oldest = silent.remove(0);
        assert_eq!(oldest.read(&mut [0]).unwrap(), 0, "it made room");
    }
    let _node = said_hello(address);
    assert!(matches!(
        wait_for(&mut listen),
        TransportEvent::Accepted(..)
    ));
    assert!(matches!(wait_for(&mut listen), TransportEvent::Frame(..)));
    drop(listen);
    for mut stream in silent {
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    }
}

#[test]
fn what_was_queued_before_a_close_still_arrives() {
    let options = TcpOptions {
        listen: Some(ANY.into()),
        ..TcpOptions::default()
    };
    let mut listen = transport(options).unwrap();
    let peers = peers("a", listen.local_addr().unwrap());
    let mut dial = transport(TcpOptions {
        peers,
        ..TcpOptions::default()
    })
    .unwrap();
    let conn = dial.connect(0, "a").unwrap();
    assert!(matches!(wait_for(&mut dial), TransportEvent::Opened(_)));
    let mut link = crate::message::Link::default();
    let frames: Vec<_> = (0..50)
        .map(|n| {
            let bytes = vec![n as u8; if n == 0 { 100 } else { 100_000 }];
            link.seal(&crate::message::Message::BundleData {
                file: n,
                at: 0,
                bytes,
            })
        })
        .collect();
    frames
        .iter()
        .for_each(|frame| dial.send(0, conn, frame.clone()).unwrap());
    dial.close(0, conn);
    assert!(matches!(
        wait_for(&mut listen),
        TransportEvent::Accepted(..)
    ));
    for frame in &frames {
        let TransportEvent::Frame(_, came) = wait_for(&mut listen) else {
            panic!("it came")
        };
        assert!(came == *frame);
    }
    assert!(matches!(wait_for(&mut listen), TransportEvent::Closed(..)));
}

/// A transport that listens, and one that dials it by name.
fn pair(options: TcpOptions) -> (TcpTransport, TcpTransport) {
    let listen = transport(TcpOptions {
        listen: Some(ANY.into()),
        ..options.clone()
    });
    let listen = listen.unwrap();
    let peers = peers("a", listen.local_addr().unwrap());
    let dial = transport(TcpOptions { peers, ..options }).unwrap();
    (listen, dial)
}

fn left(event: TransportEvent) -> String {
    match event {
        TransportEvent::Closed(_, why) => why.to_string(),
        other => panic!("{other:?}"),
    }
}

/// A frame with a payload so long.
fn frame_of(link: &mut crate::message::Link, len: usize) -> Vec<u8> {
    link.seal(&crate::message::Message::BundleData {
        file: 0,
        at: 0,
        bytes: vec![7; len],
    })
}

#[test]
fn a_peer_that_does_not_listen_is_told_with_its_address() {
    let free = std::net::TcpListener::bind(SocketAddr::from(ANY)).unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut dial = transport(TcpOptions {
        peers: peers("a", address),
        ..TcpOptions::default()
    })
    .unwrap();
    let conn = dial.connect(0, "a").unwrap();
    let why = left(wait_for(&mut dial));
    let expected = format!("a is not reachable: connect to {address}: ");
    assert!(why.starts_with(&expected), "{why}");
    let gone = dial.send(0, conn, vec![0]).unwrap_err();
    assert!(gone.to_string().contains("the connection ended"), "{gone}");
    assert_eq!(dial.room(conn), 0);
    until(|| dial.is_idle());
    let taken = transport(TcpOptions {
        listen: Some(address),
        ..TcpOptions::default()
    });
    let taken = taken.unwrap();
    let again = transport(TcpOptions {
        listen: taken.local_addr(),
        ..TcpOptions::default()
    });
    let why = again.err().unwrap().to_string();
    assert!(why.starts_with(&format!("listen on {address}: ")), "{why}");
}

#[test]
fn no_more_connections_are_made_than_the_limit() {
    let (_listen, mut dial) = pair(TcpOptions {
        conn_count_max: 1,
        ..TcpOptions::default()
    });
    let conn = dial.connect(0, "a").unwrap();
    let full = dial.connect(0, "a").unwrap_err();
    assert!(matches!(full, Error::Full { limit: 1, .. }), "{full}");
    assert!(matches!(wait_for(&mut dial), TransportEvent::Opened(_)));
    dial.close(0, conn);
    dial.close(0, conn);
    until(|| dial.is_idle());
    dial.connect(0, "a").unwrap();
}

/// Who does not take what is sent holds the sender, frame by frame, and nothing is lost by it.
#[test]
fn a_driver_that_is_slow_fills_every_queue_and_gets_every_frame() {
    let (mut listen, mut dial) = pair(TcpOptions {
        hello_len_max: 4 << 20,
        ..TcpOptions::default()
    });
    let conn = dial.connect(0, "a").unwrap();
    assert!(matches!(wait_for(&mut dial), TransportEvent::Opened(_)));
    let mut link = crate::message::Link::default();
    let mut frame = || frame_of(&mut link, 2 << 20);
    // The two queues take as many, however fast their threads are.
    for _ in 0..14 {
        until(|| dial.room(conn) >= (2 << 20) + 1_000);
        dial.send(0, conn, frame()).unwrap();
    }
    // And the sockets between them some more.
    let (mut sent, mut refused) = (14, 0);
    while refused < 1_000 {
        match dial.send(0, conn, frame()) {
            Ok(()) => sent += 1,
            Err(full) => {
                assert!(full.to_string().starts_with("connection queue is full at "));
                refused += 1;
                std::thread::yield_now();
            }
        }
    }
    assert!(matches!(
        wait_for(&mut listen),
        TransportEvent::Accepted(..)
    ));
    for n in 0..sent {
        let event = wait_for(&mut listen);
        assert!(matches!(event, TransportEvent::Frame(..)), "{n}: {event:?}");
    }
    dial.close(0, conn);
    let why = left(wait_for(&mut listen));
    assert!(why.contains("it closed the connection"), "{why}");
}

/// Both ends of a connection whose reader is stuck let go of it when they are told to.
#[test]
fn a_connection_with_full_queues_ends_when_it_is_dropped() {
    let (mut listen, mut dial) = pair(TcpOptions {
        hello_len_max: 8 << 20,
        drain_ms: 1,
        ..TcpOptions::default()
    });
    let conn = dial.connect(0, "a").unwrap();
    assert!(matches!(wait_for(&mut dial), TransportEvent::Opened(_)));
    let mut link = crate::message::Link::default();
    dial.send(0, conn, frame_of(&mut link, 1)).unwrap();
    let TransportEvent::Accepted(theirs, _) = wait_for(&mut listen) else {
        panic!("it was dialled")
    };
    while dial.send(0, conn, frame_of(&mut link, 4 << 20)).is_ok() {}
    dial.close(0, conn);
    listen.close(0, theirs);
    until(|| dial.is_idle() && listen.is_idle());
    assert!(listen.poll(0).is_none(), "nothing more comes of it");
}

#[test]
fn a_frame_that_begins_and_does_not_come_ends_the_connection() {
    let mut listen = transport(TcpOptions {
        listen: Some(ANY.into()),
        progress_ms: 1,
        ..TcpOptions::default()
    })
    .unwrap();
    let mut stranger = TcpStream::connect(listen.local_addr().unwrap()).unwrap();
    let mut link = crate::message::Link::default();
    stranger.write_all(&frame_of(&mut link, 10)).unwrap();
    assert!(matches!(
        wait_for(&mut listen),
        TransportEvent::Accepted(..)
    ));
    assert!(matches!(wait_for(&mut listen), TransportEvent::Frame(..)));
    stranger.write_all(&frame_of(&mut link, 10)[..30]).unwrap();
    let why = left(wait_for(&mut listen));
    assert!(why.contains("a frame that began does not come"), "{why}");
}

#[test]
fn a_peer_that_takes_nothing_is_given_up() {
    let silent = std::net::TcpListener::bind(SocketAddr::from(ANY)).unwrap();
    let mut dial = transport(TcpOptions {
        peers: peers("a", silent.local_addr().unwrap()),
        progress_ms: 1,
        ..TcpOptions::default()
    })
    .unwrap();
    let conn = dial.connect(0, "a").unwrap();
    let _held = silent.accept().unwrap();
    assert!(matches!(wait_for(&mut dial), TransportEvent::Opened(_)));
    let mut link = crate::message::Link::default();
    while dial.send(0, conn, frame_of(&mut link, 1 << 20)).is_ok() {}
    let why = left(wait_for(&mut dial));
    assert!(why.contains("it takes no more bytes"), "{why}");
}

/// A connection that was reset is told once, by whoever meets it first, and takes no more frames.
#[test]
fn a_peer_that_resets_the_connection_is_told() {
    let silent = std::net::TcpListener::bind(SocketAddr::from(ANY)).unwrap();
    let mut dial = transport(TcpOptions {
        peers: peers("a", silent.local_addr().unwrap()),
        ..TcpOptions::default()
    })
    .unwrap();
    let conn = dial.connect(0, "a").unwrap();
    let (held, _) = silent.accept().unwrap();
    assert!(matches!(wait_for(&mut dial), TransportEvent::Opened(_)));
    let mut link = crate::message::Link::default();
    dial.send(0, conn, frame_of(&mut link, 100)).unwrap();
    // Closed with unread bytes, a socket is reset.
    let mut peeked = [0];
    held.peek(&mut peeked).unwrap();
    drop(held);
    let ended = std::cell::RefCell::new((dial, link));
    until(|| {
        let (dial, link) = &mut *ended.borrow_mut();
        dial.send(0, conn, frame_of(link, 100_000)).is_err()
    });
    let (mut dial, _) = ended.into_inner();
    assert!(left(wait_for(&mut dial)).starts_with("a is not reachable: "));
    assert!(dial.poll(0).is_none());
}

#[test]
fn a_transport_that_is_dropped_takes_its_connections_with_it() {
    let (listen, mut dial) = pair(TcpOptions::default());
    let conn = dial.connect(0, "a").unwrap();
    assert!(matches!(wait_for(&mut dial), TransportEvent::Opened(_)));
    let frame = frame_of(&mut crate::message::Link::default(), 1);
    dial.send(0, conn, frame).unwrap();
    until(|| !listen.is_idle());
    drop(listen);
    assert!(left(wait_for(&mut dial)).starts_with("a is not reachable: "));
}
