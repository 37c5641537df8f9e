//! Where a door listens: a TCP address or a Unix socket.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use crate::settings::Listen;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// The kernel finds out that a silent peer is gone. Pings of HTTP/2 would too, but hyper then reads the clock and
/// takes a lock for every frame.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(20));

/// What a client connected through.
pub(super) type Stream = Either<TcpStream, UnixStream>;

/// Why a door cannot be opened: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else listens there.
    #[error("cannot listen on {0}: the address is in use; stop what listens there or choose another address")]
    InUse(Listen),
    /// A file that is no socket has the path of a Unix socket. It is left alone.
    #[error("cannot listen on {0}: a file that is no socket has this path; move it or choose another path")]
    NoSocket(Listen),
    /// Anything else the operating system says.
    #[error("cannot listen on {0}: {1}")]
    Io(Listen, io::Error),
}

/// The address that a listener really has: the free port that was found for port 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Bound {
    /// The TCP address, where it is one.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Bound::Tcp(address) => Some(*address),
            Bound::Unix(_) => None,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Tcp(address) => address.fmt(f),
            Bound::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An open door. A Unix socket is removed when it closes.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    bound: Bound,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Opens it. A Unix socket that a dead process left behind is replaced.
    pub async fn bind(listen: &Listen) -> Result<Self, ListenError> {
        let bound = match listen {
            Listen::Tcp(address) => bind_tcp(*address),
            Listen::Unix(path) => bind_unix(listen, path).await?,
        };
        bound.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse(listen.clone()),
            _ => ListenError::Io(listen.clone(), error),
        })
    }

    /// Its address.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    pub(super) async fn accept(&self) -> io::Result<(Stream, Bound)> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Answers are small and awaited: they must not wait for more to send. Neither can fail but on a
                // connection that has gone already, and that will be seen.
                let _ = stream.set_nodelay(true);
                let _ = SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE);
                Ok((Either::Left(stream), Bound::Tcp(peer)))
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Either::Right(stream), self.bound.clone()))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Bound::Unix(path) = &self.bound {
            // Nothing is lost when it stays: whoever listens here next replaces it.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<Listener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for connections of the last run to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let bound = Bound::Tcp(listener.local_addr()?);
    Ok(Listener { socket: Socket::Tcp(listener), bound })
}

async fn bind_unix(listen: &Listen, path: &Path) -> Result<io::Result<Listener>, ListenError> {
    if let Ok(file) = std::fs::symlink_metadata(path) {
        if !file.file_type().is_socket() {
            return Err(ListenError::NoSocket(listen.clone()));
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(ListenError::InUse(listen.clone()));
        }
        std::fs::remove_file(path).map_err(|error| ListenError::Io(listen.clone(), error))?;
    }
    let bound = Bound::Unix(path.to_owned());
    Ok(UnixListener::bind(path).map(|listener| Listener { socket: Socket::Unix(listener), bound }))
}
