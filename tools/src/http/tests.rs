//! The listener among clients that mean no good.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use super::*;

fn start() -> Http {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Http::start(listen, |path| match path {
        "/page" => Some(Answer {
            status: "200 OK",
            kind: "text/plain",
            body: "x".repeat(1 << 20),
        }),
        "/panics" => panic!("a page that panics"),
        _ => None,
    })
    .unwrap()
}

fn connect(http: &Http) -> TcpStream {
    let stream = TcpStream::connect(http.address()).unwrap();
    let timeout = Some(Duration::from_secs(60));
    stream.set_read_timeout(timeout).unwrap();
    stream
}

/// What is answered to some bytes; empty where the connection just ends.
fn ask(http: &Http, request: &[u8]) -> String {
    let mut stream = connect(http);
    // It may be refused before all of it is sent.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[track_caller]
fn serves(http: &Http) {
    let answer = ask(http, b"GET /page?x=1 HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("\r\nContent-Length: 1048576\r\n"), "{head}");
    assert_eq!(body.len(), 1 << 20);
}

#[test]
fn pages_are_served_and_everything_else_is_refused_by_number() {
    let http = start();
    serves(&http);
    let long = [b"GET /page HTTP/1.1\r\nx: ".to_vec(), vec![b'a'; 20_000]].concat();
    let behind = [
        b"GET /nowhere HTTP/1.1\r\nContent-Length: 9000\r\n\r\n".to_vec(),
        vec![b'z'; 9_000],
    ]
    .concat();
    let cases: [(&[u8], &str); 14] = [
        (b"HEAD /page HTTP/1.0\n\n", "200 OK"),
        (b"GET /nowhere HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", "404"),
        (&behind, "404"),
        (b"GET /panics HTTP/1.1\r\n\r\n", "500"),
        (b"POST /page HTTP/1.1\r\n\r\n", "405"),
        (b"PRI * HTTP/2.0\r\n\r\n", "400"),
        (b"GET http://x/page HTTP/1.1\r\n\r\n", "400"),
        (b"GET  /page HTTP/1.1\r\n\r\n", "400"),
        (b"GET /page\r\n\r\n", "400"),
        (b"get /page HTTP/1.1\r\n\r\n", "400"),
        (b"\r\n\r\n", "400"),
        (b"\x16\x03\x01\x02\x00\x01\xff\xfe\r\n\r\n", "400"),
        (&long, "431"),
    ];
    for (request, status) in cases {
        let answer = ask(&http, request);
        let shown = String::from_utf8_lossy(&request[..request.len().min(40)]);
        let start = format!("HTTP/1.1 {status}");
        assert!(answer.starts_with(&start), "{shown}: {answer}");
    }
    let head = ask(&http, b"HEAD /page HTTP/1.1\r\n\r\n");
    assert!(head.ends_with("\r\n\r\n"), "no body: {head}");
    serves(&http);
}

#[test]
fn who_sends_nothing_or_slowly_is_cut_off_and_others_are_served_meanwhile() {
    let http = start();
    let started = Instant::now();
    let mut slow = connect(&http);
    let mut mute = connect(&http);
    // Takes nothing of an answer that no buffer holds.
    let mut greedy = connect(&http);
    greedy.write_all(b"GET /page HTTP/1.1\r\n\r\n").unwrap();
    serves(&http);
    let mut is_open = true;
    while is_open {
        assert!(started.elapsed() < Duration::from_secs(60), "it lasts");
        is_open = slow.write_all(b"x").is_ok();
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(started.elapsed() >= PATIENCE / 2);
    let mut rest = Vec::new();
    assert_eq!(mute.read_to_end(&mut rest).unwrap_or(0), 0);
    serves(&http);
}

#[test]
fn many_connections_make_the_oldest_go_and_the_newest_is_served() {
    let http = start();
    let mut held: Vec<TcpStream> = (0..4 * CONN_COUNT_MAX).map(|_| connect(&http)).collect();
    serves(&http);
    let mut first = held.remove(0);
    assert_eq!(first.read(&mut [0; 1]).unwrap_or(0), 0, "it made room");
    serves(&http);
    drop(held);
    serves(&http);
}

#[test]
fn garbage_of_any_length_is_survived() {
    let http = start();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for len in 0..200usize {
        let garbage: Vec<u8> = (0..len * 7)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                (seed >> 32) as u8
            })
            .collect();
        let mut stream = connect(&http);
        let _ = stream.write_all(&garbage);
        // Reset by who goes without reading.
        drop(stream);
    }
    serves(&http);
}

#[test]
fn the_thread_ends_with_the_listener_and_the_address_is_free() {
    let http = start();
    let address = http.address();
    let _held = connect(&http);
    let started = Instant::now();
    drop(http);
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(TcpStream::connect(address).is_err());
}
