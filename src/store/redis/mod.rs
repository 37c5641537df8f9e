//! Counters in Redis or Valkey. Each call runs one script on the server, which decides a batch of plans.
//!
//! ```text
//!   plans -> wire::encode -> connection -> EVALSHA script.lua -> wire::decode -> answers
//! ```
//!
//! In a cluster, the plans of one hash slot are one call, and the calls of several slots are in flight together.
//!
//! `script.lua` is [`crate::plan::advance`] in Lua. It returns what is counted, from which the outcomes are computed here
//! by the arithmetic of `limiter`.

mod cluster;
mod connection;
mod dial;
mod hash_slot;
mod hints;
mod product;
mod sentinel;
mod settings;
mod takeovers;
mod wire;

use std::sync::{Arc, LazyLock};

use futures_util::future::join_all;
use redis::{Cmd, Value};
use tokio::sync::watch;

use self::cluster::Cluster;
use self::connection::{RedisConnection, ServerChoice};
use self::dial::Dial;
use self::hash_slot::hash_slot;
use self::hints::HintChannel;
use self::sentinel::Sentinels;
pub use self::settings::{Address, Credentials, RedisSettings, Topology};
use self::takeovers::Takeovers;
use self::wire::{CommandError, Keys, Reply, ScriptRef};
use super::shared::{Backend, CALENDAR_ATTEMPTS, HearText, StoreClock};
use super::warnings::Warnings;
use crate::clock::{Clock, Timestamp};
use crate::plan::{Applied, CounterName, Fault, Plan};
use crate::tls::{TlsClient, TlsError};

/// The SHA-1 digest that `EVALSHA` names the script by.
static SCRIPT_DIGEST: LazyLock<String> = LazyLock::new(|| redis::Script::new(wire::SCRIPT).get_hash().to_owned());

/// A Redis or Valkey store.
pub struct Redis {
    servers: Servers,
    /// `None` where one server has all counters for ever.
    takeovers: Option<Takeovers>,
    keys: Keys,
    warnings: Arc<Warnings>,
    /// Replaces the server's own clock, in tests.
    clock: Option<Arc<dyn Clock>>,
    server_clock: StoreClock,
    hints: HintChannel,
}

/// The connections to one server, or to the nodes of a cluster.
#[derive(Debug)]
enum Servers {
    Single(RedisConnection),
    Cluster(Cluster),
}

impl Redis {
    /// Starts to connect in the background. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// [`TlsError`] when the TLS settings are invalid.
    pub fn new(settings: &RedisSettings) -> Result<Self, TlsError> {
        Self::named("", settings)
    }

    /// Like [`new`](Self::new), with the name of the store for the log, which begins before the store is put to use.
    ///
    /// # Errors
    ///
    /// As `new`.
    pub fn named(name: &str, settings: &RedisSettings) -> Result<Self, TlsError> {
        let warnings = Arc::new(Warnings::of(name));
        let tls = settings.tls.as_ref().map(TlsClient::new).transpose()?;
        let dial = Dial::new(settings, &settings.credentials, settings.db, tls.clone());
        let tls_of_hints = tls.clone();
        let takeovers = Takeovers::default();
        let single =
            |server| Servers::Single(RedisConnection::open(server, dial.clone(), warnings.clone(), takeovers.clone()));
        let servers = match &settings.topology {
            Topology::Standalone(address) => single(ServerChoice::Fixed(address.clone())),
            Topology::Sentinel { sentinels, master, credentials } => {
                let dial = Dial::new(settings, credentials, 0, tls);
                single(ServerChoice::Master(Sentinels::new(sentinels.clone(), master, dial)))
            }
            Topology::Cluster(seeds) => {
                Servers::Cluster(Cluster::open(seeds.clone(), dial.clone(), warnings.clone(), takeovers.clone()))
            }
        };
        let tagged = matches!(servers, Servers::Cluster(_));
        Ok(Self {
            servers,
            takeovers: (!matches!(settings.topology, Topology::Standalone(_))).then_some(takeovers),
            keys: Keys::new(&settings.key_prefix, tagged),
            warnings,
            clock: None,
            server_clock: StoreClock::default(),
            hints: HintChannel::new(settings, dial, tls_of_hints),
        })
    }

    /// Decides by this clock instead of the server's own, for tests. It is read once for each call.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock: Some(clock), ..self }
    }

    /// Calls the script, again with the windows of the server's time if those of a calendar did not hold for it.
    async fn call(&self, plans: &[Plan]) -> Result<Vec<Result<Applied, CommandError>>, CommandError> {
        let now = self.clock.as_ref().map(|clock| clock.now());
        let mut at = now.unwrap_or_else(|| self.server_clock.now());
        for _ in 0..CALENDAR_ATTEMPTS {
            let reply = self.call_at(plans, at, now).await?;
            match wire::decode(plans, &reply)? {
                Reply::Answers(server, answers) => {
                    self.server_clock.record(server);
                    return Ok(answers);
                }
                Reply::OutsideCalendar(server) => {
                    self.server_clock.record(server);
                    at = server;
                }
            }
        }
        let text = "the clock of the server leaves the windows of a calendar while it is called".to_owned();
        Err(CommandError { fault: Fault::Script, text })
    }

    /// Calls the script by its digest, and by its text if the server replies that it does not have it.
    async fn call_at(&self, plans: &[Plan], at: Timestamp, now: Option<Timestamp>) -> Result<Value, CommandError> {
        let cmd = wire::encode(plans, at, now, &self.keys, ScriptRef::Digest(&SCRIPT_DIGEST));
        let partition = plans.first().map_or(0, Plan::partition);
        match self.send(partition, &cmd).await {
            Err(error) if error.text.starts_with("NOSCRIPT") => {
                self.send(partition, &wire::encode(plans, at, now, &self.keys, ScriptRef::Text)).await
            }
            result => result,
        }
    }

    /// Sends a command to the server of a partition.
    async fn send(&self, partition: u16, cmd: &Cmd) -> Result<Value, CommandError> {
        match &self.servers {
            Servers::Single(connection) => connection.send(cmd).await.map_err(CommandError::from),
            Servers::Cluster(cluster) => cluster.send(self.hash_slot(partition), cmd).await,
        }
    }

    fn hash_slot(&self, partition: u16) -> u16 {
        hash_slot(&self.keys.in_partition(partition))
    }

    /// Executes plans of one hash slot, or of a single server, in calls that the script can hold.
    async fn execute_on_one(&self, plans: &[Plan]) -> Vec<Result<Applied, Fault>> {
        let mut answers = Vec::with_capacity(plans.len());
        let mut rest = plans;
        while !rest.is_empty() {
            let (batch, others) = rest.split_at(wire::batch_size(rest));
            match batch {
                [plan] if !wire::is_encodable(plan) => answers.push(Err(Fault::Script)),
                batch => answers.append(&mut self.execute_batch(batch).await),
            }
            rest = others;
        }
        answers
    }

    /// Executes plans of several hash slots: those of one slot in order, several slots concurrently.
    async fn execute_by_slot(&self, plans: &[Plan]) -> Vec<Result<Applied, Fault>> {
        let slots: Vec<u16> = plans.iter().map(|plan| self.hash_slot(plan.partition())).collect();
        if slots.iter().all(|&slot| slot == slots[0]) {
            return self.execute_on_one(plans).await;
        }
        let mut order: Vec<usize> = (0..plans.len()).collect();
        order.sort_by_key(|&index| slots[index]);
        let parts = order.chunk_by(|&one, &other| slots[one] == slots[other]).map(async |part| match part {
            &[index] => self.execute_on_one(&plans[index..=index]).await,
            part => {
                let plans: Vec<Plan> = part.iter().map(|&index| plans[index].clone()).collect();
                self.execute_on_one(&plans).await
            }
        });
        let mut answers: Vec<_> = order.iter().copied().zip(join_all(parts).await.into_iter().flatten()).collect();
        answers.sort_unstable_by_key(|(index, _)| *index);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    async fn execute_batch(&self, plans: &[Plan]) -> Vec<Result<Applied, Fault>> {
        match self.call(plans).await {
            Ok(answers) => answers.into_iter().map(|answer| answer.map_err(|error| self.warn(&error))).collect(),
            Err(error) => {
                let fault = self.warn(&error);
                plans.iter().map(|_| Err(fault)).collect()
            }
        }
    }

    /// Logs an error. A read-only server is left for another one.
    fn warn(&self, error: &CommandError) -> Fault {
        if let (Servers::Single(connection), true) = (&self.servers, error.text.starts_with("READONLY")) {
            connection.reconnect();
        }
        // The supervisor of a connection has logged why none is open; there is no text then.
        if !error.text.is_empty() {
            self.warnings.warn(&error.text);
        }
        error.fault
    }
}

impl Backend for Redis {
    async fn execute(&self, plans: &[Plan]) -> Vec<Result<Applied, Fault>> {
        match &self.servers {
            Servers::Single(_) => self.execute_on_one(plans).await,
            Servers::Cluster(_) => self.execute_by_slot(plans).await,
        }
    }

    async fn linked(&self, lane: usize) -> Result<(), Fault> {
        match &self.servers {
            Servers::Single(connection) => connection.linked().await,
            Servers::Cluster(cluster) => cluster.linked(lane).await,
        }
    }

    async fn connected(&self, lane: usize) {
        match &self.servers {
            Servers::Single(connection) => connection.connected().await,
            Servers::Cluster(cluster) => cluster.connected(lane).await,
        }
    }

    async fn forget(&self, counter: CounterName) -> Result<bool, Fault> {
        let cmd = redis::cmd("UNLINK").arg(&self.keys.of(counter)).take();
        match self.send(counter.partition(), &cmd).await {
            Ok(Value::Int(keys)) => Ok(keys > 0),
            Ok(_) => Err(Fault::Script),
            Err(error) => Err(self.warn(&error)),
        }
    }

    async fn publish(&self, message: String) {
        if self.hints.is_allowed() {
            let cmd = redis::cmd("PUBLISH").arg(self.hints.channel()).arg(message).take();
            if let Err(error) = self.send(0, &cmd).await {
                self.hints.note(&error.text);
            }
        }
    }

    async fn listen(&self, hear: HearText) {
        self.hints.listen(hear).await;
    }

    /// Writes a key that holds no counter: only a write shows that writes are accepted.
    async fn probe(&self) -> Result<(), Fault> {
        if let Servers::Cluster(cluster) = &self.servers {
            return cluster.probe(&self.keys).await;
        }
        let cmd = redis::cmd("SET").arg(self.keys.probe()).arg("").arg("PX").arg(60_000).take();
        self.send(0, &cmd).await.map(drop).map_err(|error| self.warn(&error))
    }

    /// Waits for no connection: one that is not open yet is an error.
    async fn warm_up(&self) -> Result<(), String> {
        let warmed_up = match &self.servers {
            Servers::Single(_) => match self.call_at(&[], self.server_clock.now(), None).await {
                Ok(_) => self.probe().await,
                Err(error) => Err(self.warn(&error)),
            },
            Servers::Cluster(cluster) => cluster.warm_up(&self.keys).await,
        };
        warmed_up.map_err(|fault| match self.warnings.latest() {
            text if text.is_empty() => fault.to_string(),
            text => text,
        })
    }

    fn takeovers(&self) -> Option<watch::Receiver<()>> {
        self.takeovers.as_ref().map(Takeovers::subscribe)
    }

    fn lanes(&self) -> usize {
        match &self.servers {
            Servers::Single(_) => 1,
            Servers::Cluster(_) => cluster::LANES,
        }
    }

    fn lane(&self, plan: &Plan) -> usize {
        match &self.servers {
            Servers::Single(_) => 0,
            Servers::Cluster(cluster) => cluster.lane(self.hash_slot(plan.partition())),
        }
    }

    async fn probe_lane(&self, lane: usize) -> Result<(), Fault> {
        match &self.servers {
            Servers::Single(_) => self.probe().await,
            Servers::Cluster(cluster) => cluster.probe_lane(lane, &self.keys).await,
        }
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("servers", &self.servers).field("keys", &self.keys).finish_non_exhaustive()
    }
}
