//! Listeners of doors: a TCP address or a Unix socket.

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

/// The most connections that wait to be accepted.
const LISTEN_BACKLOG: u32 = 1024;

/// Lets the kernel find silent peers that are gone. HTTP/2 pings could too, but with them hyper reads the clock and
/// takes a lock for every frame.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(20));

/// The stream of a client's connection.
pub(super) type ClientStream = Either<TcpStream, UnixStream>;

/// Why a door cannot be opened: one line for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Another process listens there.
    #[error("cannot listen on {0}: the address is in use; stop what listens there or choose another address")]
    InUse(Listen),
    /// The path of a Unix socket belongs to a file that is not a socket. The file stays.
    #[error(
        "cannot listen on {0}: the path belongs to a file that is not a socket; move the file or choose another path"
    )]
    NotASocket(Listen),
    /// Any other error of the operating system.
    #[error("cannot listen on {0}: {1}")]
    Io(Listen, io::Error),
}

/// The address a listener is bound to. A configured port 0 has become a real port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BoundAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl BoundAddress {
    /// The address, if it is a TCP address.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            BoundAddress::Tcp(address) => Some(*address),
            BoundAddress::Unix(_) => None,
        }
    }
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BoundAddress::Tcp(address) => address.fmt(f),
            BoundAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound listener. Dropping it removes its Unix socket.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    bound: BoundAddress,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds an address. A Unix socket that a dead process left behind is replaced.
    ///
    /// # Errors
    ///
    /// The address is taken or not available.
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

    /// The address it is bound to.
    pub fn bound(&self) -> &BoundAddress {
        &self.bound
    }

    pub(super) async fn accept(&self) -> io::Result<(ClientStream, BoundAddress)> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Answers are small and must not wait for more data to send. Both options fail only on a connection that
                // is closed already, which the next read finds.
                let _ = stream.set_nodelay(true);
                let _ = SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE);
                Ok((Either::Left(stream), BoundAddress::Tcp(peer)))
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
        if let BoundAddress::Unix(path) = &self.bound {
            // A socket that stays does no harm: the next listener replaces it.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<Listener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for old connections in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(LISTEN_BACKLOG)?;
    let bound = BoundAddress::Tcp(listener.local_addr()?);
    Ok(Listener { socket: Socket::Tcp(listener), bound })
}

async fn bind_unix(listen: &Listen, path: &Path) -> Result<io::Result<Listener>, ListenError> {
    if let Ok(file) = std::fs::symlink_metadata(path) {
        if !file.file_type().is_socket() {
            return Err(ListenError::NotASocket(listen.clone()));
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(ListenError::InUse(listen.clone()));
        }
        std::fs::remove_file(path).map_err(|error| ListenError::Io(listen.clone(), error))?;
    }
    let bound = BoundAddress::Unix(path.to_owned());
    Ok(UnixListener::bind(path).map(|listener| Listener { socket: Socket::Unix(listener), bound }))
}
