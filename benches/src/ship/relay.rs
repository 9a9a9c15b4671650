//! A relay of TCP connections that counts what goes through it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::system::Result;

/// What one direction carried.
#[derive(Default)]
pub struct Count {
    pub len: AtomicU64,
    /// Reads that found something: pieces, where they come one at a time.
    pub pieces: AtomicU64,
}

/// Relays for as long as the process lives.
pub struct Relay {
    pub address: String,
    /// From those that connect.
    pub there: Arc<Count>,
    /// To them.
    pub back: Arc<Count>,
}

impl Relay {
    pub fn to(target: String) -> Result<Relay> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let relay = Relay {
            address: listener.local_addr()?.to_string(),
            there: Arc::default(),
            back: Arc::default(),
        };
        let (there, back) = (Arc::clone(&relay.there), Arc::clone(&relay.back));
        thread::spawn(move || {
            for near in listener.incoming() {
                let Ok(near) = near else { continue };
                let Ok(far) = TcpStream::connect(&target) else {
                    continue;
                };
                let ways = [(&near, &far, &there), (&far, &near, &back)];
                for (from, to, count) in ways {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
                        break;
                    };
                    let count = Arc::clone(count);
                    thread::spawn(move || carry(from, to, &count));
                }
            }
        });
        Ok(relay)
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, count: &Count) {
    let mut buf = vec![0; 256 << 10];
    // However a connection ends, its other half is told.
    while let Ok(len @ 1..) = from.read(&mut buf) {
        count.len.fetch_add(len as u64, Ordering::Relaxed);
        count.pieces.fetch_add(1, Ordering::Relaxed);
        if to.write_all(&buf[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
