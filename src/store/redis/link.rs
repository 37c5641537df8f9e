//! One connection to one server, which many calls share, and the task that makes it again when it is lost.
//!
//! ```text
//!   supervisor:  connect -> in use -> lost, or useless -> connect ...
//!                   ^ waits a little longer after each failure
//!   ask:         there is a connection: the call goes out at once; there is none: a fault, at once
//! ```

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Cmd, RedisConnectionInfo, RedisError, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::sentinel::Sentinels;
use super::settings::{Address, Credentials, RedisSettings};
use super::warnings::Warnings;
use super::wire::Problem;
use crate::plan::Fault;
use crate::tls::TlsClient;

/// How long to wait before a connection that failed is made again, at first and at most.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// How long a connection has to serve before it is said to be of no use: the next one may be no better.
const TRIED: Duration = Duration::from_secs(1);

/// How a connection is made.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    info: RedisConnectionInfo,
    tls: Option<TlsClient>,
    connect_timeout: Duration,
    response_timeout: Duration,
}

/// What a connection is made to.
#[derive(Debug)]
pub(super) enum Target {
    /// One server, always.
    Server(Address),
    /// The server that the sentinels name.
    Master(Sentinels),
}

/// What carries a connection's bytes; it ends when the connection does.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection that is made again when it is lost. It is let go when this is dropped.
#[derive(Debug)]
pub(super) struct Link {
    shared: Arc<Shared>,
    supervisor: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    in_use: ArcSwapOption<InUse>,
    /// Why there is none.
    absent: ArcSwapOption<Fault>,
    /// Connections up to this one are useless.
    useless: AtomicU64,
    told: Notify,
    /// Told when there is a connection.
    came: Notify,
}

#[derive(Debug)]
struct InUse {
    connection: MultiplexedConnection,
    /// Which one since the beginning.
    number: u64,
    since: Instant,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// Nothing was sent: there is no connection.
    Absent(Fault),
    /// What the connection or the server says.
    Failed(RedisError),
}

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

    /// A connection that was let in, and what drives it.
    pub(super) async fn connect(&self, address: &Address) -> Result<(MultiplexedConnection, Driver), RedisError> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(self.response_timeout));
        self.in_time(async {
            let stream = self.stream(address).await?;
            let (connection, driver) = MultiplexedConnection::new_with_config(&self.info, stream, config).await?;
            Ok((connection, Box::pin(driver) as Driver))
        })
        .await
    }

    /// Asks one thing over a connection of its own.
    pub(super) async fn ask_once(&self, address: &Address, cmd: &Cmd) -> Result<Value, RedisError> {
        let (mut connection, driver) = self.connect(address).await?;
        tokio::select! {
            answer = asked(&mut connection, cmd) => answer,
            () = driver => Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
        }
    }

    /// A connection that listens to what is published.
    pub(super) async fn listen(&self, address: &Address) -> Result<PubSub, RedisError> {
        self.in_time(async { PubSub::new(&self.info, self.stream(address).await?).await }).await
    }

    async fn in_time<T>(&self, made: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
        let late = |_| Err(io::Error::from(io::ErrorKind::TimedOut).into());
        tokio::time::timeout(self.connect_timeout, made).await.unwrap_or_else(late)
    }

    async fn stream(&self, address: &Address) -> io::Result<Box<dyn Stream>> {
        Ok(match address {
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Address::Tcp(host, port) => {
                let stream = TcpStream::connect((&**host, *port)).await?;
                stream.set_nodelay(true)?;
                match &self.tls {
                    None => Box::new(stream),
                    Some(tls) => Box::new(tls.connect(host, stream).await?),
                }
            }
        })
    }
}

impl Target {
    /// The server that there is to write to, connected.
    async fn connect(&mut self, dial: &Dial) -> Result<(Address, MultiplexedConnection, Driver), (String, Problem)> {
        let address = match self {
            Target::Server(address) => address.clone(),
            Target::Master(sentinels) => {
                sentinels.master().await.map_err(|problem| ("the sentinels".to_owned(), problem))?
            }
        };
        let connected = match dial.connect(&address).await {
            Ok((connection, driver)) if matches!(self, Target::Master(_)) => is_master(connection, driver).await,
            connected => connected.map_err(Problem::from),
        };
        match connected {
            Ok((connection, driver)) => Ok((address, connection, driver)),
            Err(problem) => Err((address.to_string(), problem)),
        }
    }

    /// Waits until another server is to be written to.
    async fn moved_from(&self, address: &Address) {
        match self {
            Target::Server(_) => std::future::pending().await,
            Target::Master(sentinels) => sentinels.moved_from(address).await,
        }
    }
}

/// Lets a server say itself that it is the one to write to: a sentinel may not know yet that it is not.
async fn is_master(
    mut connection: MultiplexedConnection,
    mut driver: Driver,
) -> Result<(MultiplexedConnection, Driver), Problem> {
    let asks = redis::cmd("ROLE");
    let role = tokio::select! {
        role = asked(&mut connection, &asks) => role?,
        () = &mut driver => return Err(RedisError::from(io::Error::from(io::ErrorKind::ConnectionReset)).into()),
    };
    match role {
        Value::Array(words) if words.first() == Some(&Value::BulkString(b"master".to_vec())) => {
            Ok((connection, driver))
        }
        _ => Err(Problem { fault: Fault::ReadOnly, text: "it is not the master".to_owned() }),
    }
}

/// What a server answers: errors come as values too.
async fn asked(connection: &mut MultiplexedConnection, cmd: &Cmd) -> Result<Value, RedisError> {
    match connection.send_packed_command(cmd).await? {
        Value::ServerError(error) => Err(error.into()),
        value => Ok(value),
    }
}

impl Link {
    /// A connection that is made from now on. To be called within a runtime.
    pub(super) fn open(target: Target, dial: Dial, warnings: Arc<Warnings>) -> Self {
        let shared = Arc::new(Shared::default());
        let supervisor = tokio::spawn(supervise(target, dial, shared.clone(), warnings));
        Self { shared, supervisor }
    }

    /// Asks the server once.
    pub(super) async fn ask(&self, cmd: &Cmd) -> Result<Value, Unanswered> {
        let in_use = self.in_use()?;
        asked(&mut in_use.connection.clone(), cmd).await.map_err(|error| self.failed(&in_use, error))
    }

    /// Asks a node of a cluster once, about a slot that is on its way to it.
    pub(super) async fn ask_asking(&self, cmd: &Cmd) -> Result<Value, Unanswered> {
        let in_use = self.in_use()?;
        let mut both = redis::pipe();
        both.cmd("ASKING").add_command(cmd.clone());
        match in_use.connection.clone().send_packed_commands(&both, 0, 2).await.map(|mut answers| answers.pop()) {
            Ok(Some(Value::ServerError(error))) => Err(Unanswered::Failed(error.into())),
            Ok(Some(value)) => Ok(value),
            Ok(None) => Ok(Value::Nil),
            Err(error) => Err(self.failed(&in_use, error)),
        }
    }

    /// Waits until there is a connection.
    pub(super) async fn connected(&self) {
        loop {
            let mut came = std::pin::pin!(self.shared.came.notified());
            came.as_mut().enable();
            if self.is_connected() {
                return;
            }
            came.await;
        }
    }

    /// Whether there is a connection.
    pub(super) fn is_connected(&self) -> bool {
        self.shared.in_use.load().is_some()
    }

    fn in_use(&self) -> Result<Arc<InUse>, Unanswered> {
        self.shared.in_use.load_full().ok_or_else(|| {
            let absent = self.shared.absent.load_full();
            Unanswered::Absent(absent.map_or(Fault::Unreachable, |fault| *fault))
        })
    }

    fn failed(&self, in_use: &InUse, error: RedisError) -> Unanswered {
        if error.is_io_error() {
            self.shared.give_up(in_use.number);
        }
        Unanswered::Failed(error)
    }

    /// The server cannot be written to. Behind the same name, or named by the sentinels, there may be one that can.
    pub(super) fn look_again(&self) {
        if let Some(in_use) = &*self.shared.in_use.load()
            && in_use.since.elapsed() > TRIED
        {
            self.shared.give_up(in_use.number);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl Shared {
    fn give_up(&self, number: u64) {
        self.useless.fetch_max(number, Ordering::Relaxed);
        self.told.notify_one();
    }

    async fn given_up(&self, number: u64) {
        while self.useless.load(Ordering::Relaxed) < number {
            self.told.notified().await;
        }
    }
}

async fn supervise(mut target: Target, dial: Dial, shared: Arc<Shared>, warnings: Arc<Warnings>) {
    let mut wait = FIRST_WAIT;
    for number in 1.. {
        let since = Instant::now();
        match target.connect(&dial).await {
            Ok((address, connection, driver)) => {
                shared.in_use.store(Some(Arc::new(InUse { connection, number, since })));
                shared.absent.store(None);
                shared.came.notify_waiters();
                tracing::info!(redis = %address, "connected");
                let moved = tokio::select! {
                    () = driver => false,
                    () = shared.given_up(number) => false,
                    () = target.moved_from(&address) => true,
                };
                shared.in_use.store(None);
                if moved {
                    tracing::info!(redis = %address, "the sentinels name another master");
                    wait = FIRST_WAIT;
                    continue;
                }
                warnings.say(&format_args!("the connection to {address} is lost"));
            }
            Err((place, problem)) => {
                shared.absent.store(Some(Arc::new(problem.fault)));
                warnings.say(&format_args!("{place} cannot be used: {}", problem.text));
            }
        }
        if since.elapsed() > TRIED {
            wait = FIRST_WAIT;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}
