//! One connection of another node on standard input and output, as ssh gives it, handed on to a
//! listener on loopback.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;

use crate::failure::{Failure, Result};

/// Bytes that are handed on at a time.
const CHUNK_LEN: usize = 64 << 10;

/// Hands bytes on, both ways, until the listener has closed the connection: it does so as soon as it
/// sees that nothing more comes from standard input.
pub(super) fn hand_on(to: SocketAddr) -> Result<()> {
    if !to.ip().is_loopback() {
        let text = "is not a loopback address; without --stdio nodes connect by themselves";
        return Err(Failure::usage(format!("--to {to} {text}")));
    }
    let failed = |error| Failure::io(format!("{to}: {error}"));
    let stream = TcpStream::connect(to).map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let mut there = stream.try_clone().map_err(failed)?;
    // Past the buffers of the standard streams, which end at lines.
    let own = |stream: std::os::fd::BorrowedFd<'_>| stream.try_clone_to_owned().map(File::from);
    let mut input = own(std::io::stdin().as_fd())?;
    let mut output = own(std::io::stdout().as_fd())?;
    // It ends with the input, or with the process.
    let reader = std::thread::Builder::new().name("stdin".to_owned());
    reader
        .spawn(move || {
            copy(&mut input, &mut there);
            // It may have ended already.
            let _ = there.shutdown(Shutdown::Write);
        })
        .map_err(|error| Failure::io(format!("start thread: {error}")))?;
    copy(&mut &stream, &mut output);
    let _ = stream.shutdown(Shutdown::Both);
    Ok(())
}

/// Copies until one side ends, whichever way: the ends of both are the same news.
fn copy(from: &mut impl Read, to: &mut impl Write) {
    let mut buffer = vec![0; CHUNK_LEN];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) if to.write_all(&buffer[..n]).is_ok() => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return,
        }
    }
}
