//! Connects to a server: TCP or a Unix socket, TLS, authentication.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Cmd, RedisConnectionInfo, RedisError, Value};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::settings::{Address, Credentials, RedisSettings};
use crate::tls::TlsClient;

/// Keeps gateways on the way from dropping an idle connection, and notices a peer that is gone.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(1)).with_retries(3);

/// How to connect: credentials, database, TLS and timeouts.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    info: RedisConnectionInfo,
    tls: Option<TlsClient>,
    connect_timeout: Duration,
    response_timeout: Duration,
}

/// The task that reads and writes a connection. It ends when the connection does.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> ByteStream for S {}

impl Dial {
    pub(super) fn new(settings: &RedisSettings, credentials: &Credentials, db: u32, tls: Option<TlsClient>) -> Self {
        let mut info = RedisConnectionInfo::default().set_db(db.into()).set_skip_set_lib_name();
        if let Some(user) = &credentials.user {
            info = info.set_username(user);
        }
        if let Some(password) = &credentials.password {
            info = info.set_password(password.reveal());
        }
        let &RedisSettings { connect_timeout, response_timeout, .. } = settings;
        Self { info, tls, connect_timeout, response_timeout }
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Opens an authenticated connection. The caller must poll its driver.
    pub(super) async fn connect(&self, address: &Address) -> Result<(MultiplexedConnection, Driver), RedisError> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(self.response_timeout));
        self.within_connect_timeout(async {
            let stream = self.stream(address).await?;
            let (connection, driver) = MultiplexedConnection::new_with_config(&self.info, stream, config).await?;
            let driver: Driver = Box::pin(driver);
            Ok((connection, driver))
        })
        .await
    }

    /// Sends one command over a connection of its own.
    pub(super) async fn send_once(&self, address: &Address, cmd: &Cmd) -> Result<Value, RedisError> {
        let (mut connection, driver) = self.connect(address).await?;
        tokio::select! {
            reply = send(&mut connection, cmd) => reply,
            () = driver => Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
        }
    }

    /// Opens a connection for subscriptions.
    pub(super) async fn connect_pubsub(&self, address: &Address) -> Result<PubSub, RedisError> {
        self.within_connect_timeout(async { PubSub::new(&self.info, self.stream(address).await?).await }).await
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

/// Sends one command. An error reply, which the library returns as a value, becomes an error.
pub(super) async fn send(connection: &mut MultiplexedConnection, cmd: &Cmd) -> Result<Value, RedisError> {
    match connection.send_packed_command(cmd).await? {
        Value::ServerError(error) => Err(error.into()),
        value => Ok(value),
    }
}
