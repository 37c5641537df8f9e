//! A connection to one server that all calls share, and the task that reconnects it.
//!
//! ```text
//!   supervisor:  connect -> open -> lost, or abandoned -> connect ...
//!                   ^ with a longer delay after each failure
//!   send:        a connection is open: the command is sent at once; none is open: an error at once
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, Value};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::dial::{Dial, Driver, send};
use super::sentinel::Sentinels;
use super::settings::Address;
use super::warnings::Warnings;
use super::wire::CommandError;
use crate::plan::Fault;

/// The delay before a reconnection: after the first failure, and at most.
const MIN_RECONNECT_DELAY: Duration = Duration::from_millis(20);
const MAX_RECONNECT_DELAY: Duration = Duration::from_millis(250);

/// The minimum age of a connection before it may be abandoned because its server is read-only, since the next
/// connection may reach the same server. One that lived longer also resets the reconnection delay.
const MIN_CONNECTION_AGE: Duration = Duration::from_secs(1);

/// The server to connect to.
#[derive(Debug)]
pub(super) enum ServerChoice {
    /// Always this one.
    Fixed(Address),
    /// The master that the sentinels name.
    Master(Sentinels),
}

/// A connection that reconnects when it is lost, and closes when this is dropped.
#[derive(Debug)]
pub(super) struct RedisConnection {
    state: Arc<ConnectionState>,
    supervisor: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct ConnectionState {
    open: ArcSwapOption<OpenConnection>,
    /// The reason why no connection is open.
    fault: ArcSwapOption<Fault>,
    /// Connections up to this number are abandoned.
    abandoned: AtomicU64,
    abandon_notify: Notify,
    /// Notified when a connection opens.
    open_notify: Notify,
}

#[derive(Debug)]
struct OpenConnection {
    connection: MultiplexedConnection,
    /// Its place among the attempts of the supervisor, counted from 1.
    number: u64,
    since: Instant,
}

/// A command without a reply.
#[derive(Debug)]
pub(super) enum SendError {
    /// No connection is open, so nothing was sent.
    NotConnected(Fault),
    /// An error of the connection or of the server.
    Failed(RedisError),
}

impl From<SendError> for CommandError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::NotConnected(fault) => Self { fault, text: String::new() },
            SendError::Failed(error) => error.into(),
        }
    }
}

impl ServerChoice {
    /// Connects to the server that accepts writes.
    async fn connect(
        &mut self,
        dial: &Dial,
    ) -> Result<(Address, MultiplexedConnection, Driver), (String, CommandError)> {
        let address = match self {
            ServerChoice::Fixed(address) => address.clone(),
            ServerChoice::Master(sentinels) => {
                sentinels.master().await.map_err(|error| ("the sentinels".to_owned(), error))?
            }
        };
        let connected = match dial.connect(&address).await {
            Ok((connection, driver)) if matches!(self, ServerChoice::Master(_)) => {
                check_is_master(connection, driver).await
            }
            connected => connected.map_err(CommandError::from),
        };
        match connected {
            Ok((connection, driver)) => Ok((address, connection, driver)),
            Err(error) => Err((address.to_string(), error)),
        }
    }

    /// Waits until the sentinels announce another master.
    async fn moved_from(&self, address: &Address) {
        match self {
            ServerChoice::Fixed(_) => std::future::pending().await,
            ServerChoice::Master(sentinels) => sentinels.moved_from(address).await,
        }
    }
}

/// Asks the server for its role, because a sentinel may not know yet that it was replaced.
async fn check_is_master(
    mut connection: MultiplexedConnection,
    mut driver: Driver,
) -> Result<(MultiplexedConnection, Driver), CommandError> {
    let cmd = redis::cmd("ROLE");
    let role = tokio::select! {
        role = send(&mut connection, &cmd) => role?,
        () = &mut driver => return Err(RedisError::from(io::Error::from(io::ErrorKind::ConnectionReset)).into()),
    };
    match role {
        Value::Array(words) if words.first() == Some(&Value::BulkString(b"master".to_vec())) => {
            Ok((connection, driver))
        }
        _ => Err(CommandError { fault: Fault::ReadOnly, text: "the server is not a master".to_owned() }),
    }
}

impl RedisConnection {
    /// Starts to connect in the background. Must be called within a runtime.
    pub(super) fn open(server: ServerChoice, dial: Dial, warnings: Arc<Warnings>) -> Self {
        let state = Arc::new(ConnectionState::default());
        let supervisor = tokio::spawn(supervise(server, dial, state.clone(), warnings));
        Self { state, supervisor }
    }

    /// Sends a command once.
    pub(super) async fn send(&self, cmd: &Cmd) -> Result<Value, SendError> {
        let open = self.current()?;
        send(&mut open.connection.clone(), cmd).await.map_err(|error| self.failed(&open, error))
    }

    /// Sends a command after `ASKING`: to the cluster node that imports the hash slot.
    pub(super) async fn send_asking(&self, cmd: &Cmd) -> Result<Value, SendError> {
        let open = self.current()?;
        let mut both = redis::pipe();
        both.cmd("ASKING").add_command(cmd.clone());
        match open.connection.clone().send_packed_commands(&both, 0, 2).await.map(|mut replies| replies.pop()) {
            Ok(Some(Value::ServerError(error))) => Err(SendError::Failed(error.into())),
            Ok(Some(value)) => Ok(value),
            Ok(None) => Ok(Value::Nil),
            Err(error) => Err(self.failed(&open, error)),
        }
    }

    /// Waits until a connection is open.
    pub(super) async fn connected(&self) {
        loop {
            let mut opened = std::pin::pin!(self.state.open_notify.notified());
            opened.as_mut().enable();
            if self.is_connected() {
                return;
            }
            opened.await;
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.state.open.load().is_some()
    }

    fn current(&self) -> Result<Arc<OpenConnection>, SendError> {
        self.state.open.load_full().ok_or_else(|| {
            let fault = self.state.fault.load_full();
            SendError::NotConnected(fault.map_or(Fault::Unreachable, |fault| *fault))
        })
    }

    fn failed(&self, open: &OpenConnection, error: RedisError) -> SendError {
        if error.is_io_error() {
            self.state.abandon(open.number);
        }
        SendError::Failed(error)
    }

    /// Reconnects because the server is read-only. The same host name, or the sentinels, may lead to one that accepts
    /// writes.
    pub(super) fn reconnect(&self) {
        if let Some(open) = &*self.state.open.load()
            && open.since.elapsed() > MIN_CONNECTION_AGE
        {
            self.state.abandon(open.number);
        }
    }
}

impl Drop for RedisConnection {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl ConnectionState {
    fn abandon(&self, number: u64) {
        self.abandoned.fetch_max(number, Ordering::Relaxed);
        self.abandon_notify.notify_one();
    }

    async fn wait_abandoned(&self, number: u64) {
        while self.abandoned.load(Ordering::Relaxed) < number {
            self.abandon_notify.notified().await;
        }
    }
}

async fn supervise(mut server: ServerChoice, dial: Dial, state: Arc<ConnectionState>, warnings: Arc<Warnings>) {
    let mut delay = MIN_RECONNECT_DELAY;
    for number in 1.. {
        let since = Instant::now();
        match server.connect(&dial).await {
            Ok((address, connection, driver)) => {
                state.open.store(Some(Arc::new(OpenConnection { connection, number, since })));
                state.fault.store(None);
                state.open_notify.notify_waiters();
                tracing::info!(redis = %address, "connected");
                let moved = tokio::select! {
                    () = driver => false,
                    () = state.wait_abandoned(number) => false,
                    () = server.moved_from(&address) => true,
                };
                state.open.store(None);
                if moved {
                    tracing::info!(redis = %address, "the sentinels announced another master, reconnecting");
                    delay = MIN_RECONNECT_DELAY;
                    continue;
                }
                warnings.warn(&format_args!("connection to {address} lost, reconnecting"));
            }
            Err((server, error)) => {
                state.fault.store(Some(Arc::new(error.fault)));
                warnings.warn(&format_args!("connecting to {server} failed, retrying: {}", error.text));
            }
        }
        if since.elapsed() > MIN_CONNECTION_AGE {
            delay = MIN_RECONNECT_DELAY;
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(MAX_RECONNECT_DELAY);
    }
}
