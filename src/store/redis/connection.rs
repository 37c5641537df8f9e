//! A connection to one server that all calls share, and the task that reconnects it.
//!
//! ```text
//!   supervisor:  connect -> open -> lost, or abandoned -> connect at once ...
//!                   ^ with a longer delay after each failure
//!   send:        a connection is open: the command is sent at once; none is open: an error at once
//!   linked:      waits while a connection is being opened, until the attempt fails
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, Value};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::dial::{Dial, Driver, ask, send};
use super::product::{self, UsedAs};
use super::sentinel::Sentinels;
use super::settings::Address;
use super::takeovers::Takeovers;
use super::wire::CommandError;
use crate::plan::Fault;
use crate::store::warnings::Warnings;

/// The delay before a reconnection: after the first failure, and at most.
const MIN_RECONNECT_DELAY: Duration = Duration::from_millis(20);
const MAX_RECONNECT_DELAY: Duration = Duration::from_millis(250);

/// The minimum age of a connection before it may be abandoned because its server is read-only, since the next
/// connection may reach the same server.
const MIN_CONNECTION_AGE: Duration = Duration::from_secs(1);

/// A connection that lived longer is replaced at once. One that did not is replaced after a delay: a server, or a gateway
/// on the way, that closes each one after some milliseconds would otherwise be connected to, and be in the log as
/// connected, tens of times a second.
const SHORT_LIFE: Duration = Duration::from_millis(100);

/// A connection without a reply for this long is asked whether it is still one: a gateway on the way may have dropped it
/// silently.
const PING_AFTER: Duration = Duration::from_secs(5);

/// The server to connect to.
#[derive(Debug)]
pub(super) enum ServerChoice {
    /// Always this one.
    Fixed(Address),
    /// This node of a cluster.
    ClusterNode(Address),
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
    /// Notified when a connection opens, and when an attempt to open one fails.
    tried_notify: Notify,
    /// When the last reply arrived.
    last_reply: Mutex<Option<Instant>>,
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
            ServerChoice::Fixed(address) | ServerChoice::ClusterNode(address) => address.clone(),
            ServerChoice::Master(sentinels) => {
                sentinels.master().await.map_err(|error| ("the sentinels".to_owned(), error))?
            }
        };
        match self.connect_to(&address, dial).await {
            Ok((connection, driver)) => Ok((address, connection, driver)),
            Err(error) => Err((address.to_string(), error)),
        }
    }

    async fn connect_to(
        &self,
        address: &Address,
        dial: &Dial,
    ) -> Result<(MultiplexedConnection, Driver), CommandError> {
        let (mut connection, mut driver) = dial.connect(address).await?;
        let used_as = match self {
            ServerChoice::Fixed(_) => UsedAs::Whole,
            ServerChoice::Master(_) => {
                check_is_master(&mut connection, &mut driver).await?;
                UsedAs::Whole
            }
            ServerChoice::ClusterNode(_) => UsedAs::ClusterNode,
        };
        product::check(&mut connection, &mut driver, used_as).await?;
        Ok((connection, driver))
    }

    /// Waits until the sentinels announce another master.
    async fn moved_from(&self, address: &Address) {
        match self {
            ServerChoice::Fixed(_) | ServerChoice::ClusterNode(_) => std::future::pending().await,
            ServerChoice::Master(sentinels) => sentinels.moved_from(address).await,
        }
    }
}

/// Asks the server for its role, because a sentinel may not know yet that it was replaced.
async fn check_is_master(connection: &mut MultiplexedConnection, driver: &mut Driver) -> Result<(), CommandError> {
    match ask(connection, driver, &redis::cmd("ROLE")).await? {
        Value::Array(words) if words.first() == Some(&Value::BulkString(b"master".to_vec())) => Ok(()),
        _ => Err(CommandError { fault: Fault::ReadOnly, text: "the server is not a master".to_owned() }),
    }
}

impl RedisConnection {
    /// Starts to connect in the background. Must be called within a runtime.
    pub(super) fn open(server: ServerChoice, dial: Dial, warnings: Arc<Warnings>, takeovers: Takeovers) -> Self {
        let state = Arc::new(ConnectionState::default());
        let supervisor = tokio::spawn(supervise(server, dial, state.clone(), warnings, takeovers));
        Self { state, supervisor }
    }

    /// Sends a command once.
    pub(super) async fn send(&self, cmd: &Cmd) -> Result<Value, SendError> {
        let open = self.current()?;
        let reply = send(&mut open.connection.clone(), cmd).await.map_err(|error| self.failed(&open, error));
        self.state.replied(&reply);
        reply
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
        while self.linked().await.is_err() {
            self.tried(|| self.is_connected()).await;
        }
    }

    /// Waits while a connection is being opened. Fails as soon as the last attempt has failed.
    pub(super) async fn linked(&self) -> Result<(), Fault> {
        self.tried(|| self.is_connected() || self.state.fault.load().is_some()).await;
        match &*self.state.fault.load() {
            Some(fault) if !self.is_connected() => Err(**fault),
            _ => Ok(()),
        }
    }

    /// Waits until an attempt to connect changes something.
    async fn tried(&self, done: impl Fn() -> bool) {
        loop {
            let mut tried = std::pin::pin!(self.state.tried_notify.notified());
            tried.as_mut().enable();
            if done() {
                return;
            }
            tried.await;
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

    fn failed(&self, open: &Arc<OpenConnection>, error: RedisError) -> SendError {
        if error.is_io_error() {
            self.state.close(open);
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

    /// Stops using a connection at once, before the supervisor notices that it is lost.
    fn close(&self, lost: &Arc<OpenConnection>) {
        let lost = Some(lost.clone());
        self.open.compare_and_swap(&lost, None);
    }

    fn replied<T>(&self, reply: &Result<T, SendError>) {
        let answered = match reply {
            Ok(_) => true,
            Err(SendError::Failed(error)) => !error.is_io_error(),
            Err(SendError::NotConnected(_)) => false,
        };
        if answered {
            *self.last_reply.lock() = Some(Instant::now());
        }
    }

    /// Asks a connection for a sign of life whenever it has been silent. Returns when there is none.
    async fn silent(&self, connection: &mut MultiplexedConnection) {
        *self.last_reply.lock() = Some(Instant::now());
        loop {
            let last = self.last_reply.lock().unwrap_or_else(Instant::now);
            if last.elapsed() < PING_AFTER {
                tokio::time::sleep_until(last + PING_AFTER).await;
                continue;
            }
            let reply = send(connection, &redis::cmd("PING")).await.map_err(SendError::Failed);
            if let Err(SendError::Failed(error)) = &reply
                && error.is_io_error()
            {
                return;
            }
            self.replied(&reply);
        }
    }

    async fn wait_abandoned(&self, number: u64) {
        while self.abandoned.load(Ordering::Relaxed) < number {
            self.abandon_notify.notified().await;
        }
    }
}

async fn supervise(
    mut server: ServerChoice,
    dial: Dial,
    state: Arc<ConnectionState>,
    warnings: Arc<Warnings>,
    takeovers: Takeovers,
) {
    let mut delay = Duration::ZERO;
    let mut last_address: Option<Address> = None;
    // Whether an attempt that is cut off is repeated at once, so that those who wait go on waiting.
    let mut again = true;
    for number in 1.. {
        let since = Instant::now();
        match server.connect(&dial).await {
            Ok((address, connection, mut driver)) => {
                again = true;
                let mut pinged = connection.clone();
                state.open.store(Some(Arc::new(OpenConnection { connection, number, since })));
                state.fault.store(None);
                state.tried_notify.notify_waiters();
                if last_address.replace(address.clone()).is_some_and(|last| last != address) {
                    takeovers.announce();
                }
                tracing::info!(store = warnings.name(), redis = %address, "connected");
                let moved = tokio::select! {
                    () = &mut driver => false,
                    () = state.wait_abandoned(number) => false,
                    () = state.silent(&mut pinged) => false,
                    () = server.moved_from(&address) => true,
                };
                state.open.store(None);
                if moved {
                    tracing::info!(
                        store = warnings.name(), redis = %address,
                        "the sentinels announced another master, reconnecting"
                    );
                } else {
                    let cause = driver.cause().map(|cause| format!(": {cause}")).unwrap_or_default();
                    warnings.warn(&format_args!("connection to {address} lost, reconnecting{cause}"));
                }
                if moved || since.elapsed() > SHORT_LIFE {
                    delay = Duration::ZERO;
                    continue;
                }
            }
            Err((server, error)) => {
                if error.fault == Fault::ConnectionLost && std::mem::take(&mut again) {
                    continue;
                }
                let error = error.while_connecting();
                state.fault.store(Some(Arc::new(error.fault)));
                state.tried_notify.notify_waiters();
                warnings.warn(&format_args!("connecting to {server} failed, retrying: {}", error.text));
            }
        }
        delay = (delay * 2).clamp(MIN_RECONNECT_DELAY, MAX_RECONNECT_DELAY);
        tokio::time::sleep(delay).await;
    }
}
