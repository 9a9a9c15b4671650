//! Tells systemd how far the process is: the protocol of `sd_notify(3)`.
//!
//! A service of `Type=notify` is named the path of a datagram socket, or with `@` in front an abstract
//! name, in `NOTIFY_SOCKET`; each datagram has assignments, one a line.

use std::ffi::OsStr;
use std::io;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The service is up: whoever waits for it goes on.
pub(crate) const READY: &str = "READY=1\nSTATUS=serving";
/// The service ends, which may take a while.
pub(crate) const STOPPING: &str = "STOPPING=1\nSTATUS=closing";

/// Tells the service manager that started this process, where there is one.
pub(crate) fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(event = "notify", "the service manager is not told: {error}");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        #[cfg(target_os = "linux")]
        Some(name) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // A manager that takes nothing must not hold up the service.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn received(receiver: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let len = receiver.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    #[test]
    fn a_state_arrives_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), READY).unwrap();
        assert_eq!(received(&receiver), READY);
        let name = format!("strandline-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let receiver = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&format!("@{name}")), STOPPING).unwrap();
        assert_eq!(received(&receiver), STOPPING);
    }

    #[test]
    fn nobody_there_is_an_error_and_no_wait() {
        send(OsStr::new("/nowhere/notify"), READY).unwrap_err();
    }
}
