//! Connects to a server: TCP or a Unix socket, TLS, authentication.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Cmd, Pipeline, RedisConnectionInfo, RedisError, Value};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::settings::{Address, Credentials, RedisSettings};
use crate::tls::TlsClient;

/// Keeps gateways on the way from dropping an idle connection, and notices a peer that is gone.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(1)).with_retries(3);

/// How to connect: credentials, database, TLS and timeouts.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    credentials: Credentials,
    db: u32,
    tls: Option<TlsClient>,
    connect_timeout: Duration,
    response_timeout: Duration,
}

/// The task that reads and writes a connection. It ends when the connection does.
pub(super) struct Driver {
    task: Pin<Box<dyn Future<Output = ()> + Send>>,
    cause: Cause,
    /// Whether the server may expect TLS, which is off.
    may_expect_tls: bool,
}

/// The first error of a stream, which the client library does not pass on: a TLS server says so that it wants another
/// certificate, after the handshake.
type Cause = Arc<OnceLock<io::Error>>;

impl Driver {
    /// Why the connection broke. `None` if the server closed it in order.
    pub(super) fn cause(&self) -> Option<String> {
        self.cause.get().map(io::Error::to_string)
    }

    /// The error of a connection that broke while it was set up.
    fn broken(&self) -> RedisError {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        let closed = match self.cause.get() {
            Some(cause)
                if !matches!(cause.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof) =>
            {
                return io::Error::other(cause.to_string()).into();
            }
            Some(cause) => format!(" ({cause})"),
            None => String::new(),
        };
        let tls = if self.may_expect_tls {
            "its port expects TLS (then the url has to begin with rediss://), or "
        } else {
            ""
        };
        io::Error::other(format!(
            "the server closed the connection before it answered{closed}: it is stopping or restarting, or {tls}it is a \
             proxy that does not know a command (then connect to Redis or Valkey itself)"
        ))
        .into()
    }

    /// Awaits what needs this connection, which no task polls yet.
    async fn drive<T>(&mut self, future: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
        let result = tokio::select! {
            result = future => result,
            () = &mut *self => return Err(self.broken()),
        };
        // The library says that the connection is gone, but not why.
        result.map_err(|error| if error.is_io_error() && !error.is_timeout() { self.broken() } else { error })
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.task.as_mut().poll(context)
    }
}

trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> ByteStream for S {}

/// A stream that records its first error.
struct Recorded {
    stream: Box<dyn ByteStream>,
    cause: Cause,
}

impl Recorded {
    fn record<T>(&self, result: io::Result<T>) -> Poll<io::Result<T>> {
        if let Err(error) = &result {
            self.cause.get_or_init(|| io::Error::new(error.kind(), error.to_string()));
        }
        Poll::Ready(result)
    }

    /// The error of a write, or why the peer closed the connection, if it said so before.
    fn why(&mut self, context: &mut Context<'_>, error: io::Error) -> io::Error {
        let mut unread = [0; 1];
        match Pin::new(&mut self.stream).poll_read(context, &mut ReadBuf::new(&mut unread)) {
            Poll::Ready(Err(cause)) => cause,
            Poll::Ready(Ok(())) | Poll::Pending => error,
        }
    }
}

impl AsyncRead for Recorded {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_read(context, to));
        self.record(result)
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(context, from));
        let result = result.map_err(|error| self.why(context, error));
        self.record(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_flush(context));
        let result = result.map_err(|error| self.why(context, error));
        self.record(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Dial {
    pub(super) fn new(settings: &RedisSettings, credentials: &Credentials, db: u32, tls: Option<TlsClient>) -> Self {
        let &RedisSettings { connect_timeout, response_timeout, .. } = settings;
        Self { credentials: credentials.clone(), db, tls, connect_timeout, response_timeout }
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Opens an authenticated connection. The caller must poll its driver.
    pub(super) async fn connect(&self, address: &Address) -> Result<(MultiplexedConnection, Driver), RedisError> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(self.response_timeout));
        self.within_connect_timeout(async {
            let cause = Cause::default();
            let stream = Recorded { stream: self.stream(address).await?, cause: cause.clone() };
            let (mut connection, task) = MultiplexedConnection::new_with_config(&plain(), stream, config).await?;
            let may_expect_tls = self.tls.is_none() && matches!(address, Address::Tcp(..));
            let mut driver = Driver { task: Box::pin(task), cause, may_expect_tls };
            driver.drive(self.open(&mut connection)).await?;
            Ok((connection, driver))
        })
        .await
    }

    /// Authenticates, and selects the database. The client library would not pass on why the server refuses.
    async fn open(&self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        let mut opening = Pipeline::new();
        if let Some(password) = &self.credentials.password {
            opening.cmd("AUTH").arg(&self.credentials.user).arg(password.reveal());
        }
        if self.db != 0 {
            opening.cmd("SELECT").arg(self.db);
        }
        if opening.is_empty() {
            return Ok(());
        }
        for reply in connection.send_packed_commands(&opening, 0, opening.len()).await? {
            if let Value::ServerError(error) = reply {
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Sends one command over a connection of its own.
    pub(super) async fn send_once(&self, address: &Address, cmd: &Cmd) -> Result<Value, RedisError> {
        let (mut connection, mut driver) = self.connect(address).await?;
        ask(&mut connection, &mut driver, cmd).await
    }

    /// Opens a connection for subscriptions.
    pub(super) async fn connect_pubsub(&self, address: &Address) -> Result<PubSub, RedisError> {
        let mut info = plain().set_db(self.db.into());
        if let Some(user) = &self.credentials.user {
            info = info.set_username(user);
        }
        if let Some(password) = &self.credentials.password {
            info = info.set_password(password.reveal());
        }
        self.within_connect_timeout(async { PubSub::new(&info, self.stream(address).await?).await }).await
    }

    async fn within_connect_timeout<T>(
        &self,
        connecting: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        let timed_out = |_| Err(io::Error::from(io::ErrorKind::TimedOut).into());
        tokio::time::timeout(self.connect_timeout, connecting).await.unwrap_or_else(timed_out)
    }

    async fn stream(&self, address: &Address) -> io::Result<Box<dyn ByteStream>> {
        Ok(match address {
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Address::Tcp(host, port) => {
                let stream = TcpStream::connect((&**host, *port)).await?;
                stream.set_nodelay(true)?;
                SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE)?;
                match &self.tls {
                    None => Box::new(stream),
                    Some(tls) => Box::new(tls.connect(host, stream).await?),
                }
            }
        })
    }
}

/// The parameters of a connection on which the client library sends no commands of its own.
fn plain() -> RedisConnectionInfo {
    RedisConnectionInfo::default().set_skip_set_lib_name()
}

/// Sends one command. An error reply, which the library returns as a value, becomes an error.
pub(super) async fn send(connection: &mut MultiplexedConnection, cmd: &Cmd) -> Result<Value, RedisError> {
    match connection.send_packed_command(cmd).await? {
        Value::ServerError(error) => Err(error.into()),
        value => Ok(value),
    }
}

/// Sends one command over a connection whose driver no task polls yet.
pub(super) async fn ask(
    connection: &mut MultiplexedConnection,
    driver: &mut Driver,
    cmd: &Cmd,
) -> Result<Value, RedisError> {
    driver.drive(send(connection, cmd)).await
}
