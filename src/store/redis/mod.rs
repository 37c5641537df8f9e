//! Counters in Redis or Valkey: every call is one script, which decides a batch of plans where the counters are.
//!
//! ```text
//!   plans -> wire::encode -> link -> EVALSHA script.lua -> wire::decode -> answers
//! ```
//!
//! `script.lua` is [`crate::limiter::advance`] in Lua; it tells what is counted, and what follows from that is computed
//! here, by the same arithmetic as everywhere.

mod link;
mod sentinel;
mod settings;
mod tls;
mod warnings;
mod wire;

use std::sync::{Arc, LazyLock};

use redis::{Cmd, ErrorKind, ServerErrorKind, Value};

use self::link::{Dial, Link, Target, Unanswered};
use self::sentinel::Sentinels;
pub use self::settings::{Address, Credentials, Identity, Password, RedisSettings, TlsSettings, Topology};
use self::tls::Tls;
pub use self::tls::TlsError;
use self::warnings::Warnings;
use self::wire::{Keys, Named, Problem};
use super::backend::Backend;
use crate::clock::Timestamp;
use crate::limiter::{Applied, CounterName, Fault, Plan};

/// What the server knows the script by.
static DIGEST: LazyLock<String> = LazyLock::new(|| redis::Script::new(wire::SCRIPT).get_hash().to_owned());

/// A Redis or Valkey that keeps counters.
#[derive(Debug)]
pub struct Redis {
    link: Link,
    keys: Keys,
    warnings: Arc<Warnings>,
}

impl Redis {
    /// A Redis that is connected to from now on, in the background. To be called within a runtime.
    ///
    /// # Errors
    ///
    /// [`TlsError`] when connections cannot be secured as the settings say.
    pub fn new(settings: &RedisSettings) -> Result<Self, TlsError> {
        let warnings = Arc::new(Warnings::default());
        let tls = settings.tls.as_ref().map(Tls::new).transpose()?;
        let target = match &settings.topology {
            Topology::Standalone(address) => Target::Server(address.clone()),
            Topology::Sentinel { sentinels, master, credentials } => {
                let dial = Dial::new(settings, credentials, 0, tls.clone());
                Target::Master(Sentinels::new(sentinels.clone(), master, dial))
            }
        };
        let dial = Dial::new(settings, &settings.credentials, settings.db, tls);
        let link = Link::open(target, dial, warnings.clone());
        Ok(Self { link, keys: Keys::new(&settings.key_prefix, false), warnings })
    }

    /// Asks by the script's digest, and with its text if the server does not know it: then nothing was executed.
    async fn call(&self, plans: &[Plan], now: Option<Timestamp>) -> Result<Value, Problem> {
        let cmd = wire::encode(plans, now, &self.keys, Named::Digest(&DIGEST));
        match self.link.ask(&cmd).await {
            Err(Unanswered::Failed(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.ask(&wire::encode(plans, now, &self.keys, Named::Text)).await
            }
            answer => answer.map_err(Problem::from),
        }
    }

    async fn ask(&self, cmd: &Cmd) -> Result<Value, Problem> {
        self.link.ask(cmd).await.map_err(Problem::from)
    }

    async fn execute_some(&self, plans: &[Plan], now: Option<Timestamp>) -> Vec<Result<Applied, Fault>> {
        match self.call(plans, now).await {
            Ok(reply) => {
                let answers = wire::decode(plans, &reply).into_iter();
                answers.map(|answer| answer.map_err(|problem| self.warn(problem))).collect()
            }
            Err(problem) => {
                let fault = self.warn(problem);
                plans.iter().map(|_| Err(fault)).collect()
            }
        }
    }

    fn warn(&self, problem: Problem) -> Fault {
        if problem.text.starts_with("READONLY") {
            self.link.look_again();
        }
        // Of a connection that is not there its supervisor tells.
        if !problem.text.is_empty() {
            self.warnings.say(&problem.text);
        }
        problem.fault
    }
}

impl Backend for Redis {
    async fn execute(&self, plans: &[Plan], now: Option<Timestamp>) -> Vec<Result<Applied, Fault>> {
        let mut answers = Vec::with_capacity(plans.len());
        let mut rest = plans;
        while !rest.is_empty() {
            let (some, others) = rest.split_at(wire::fitting(rest));
            match some {
                [plan] if !wire::can_be_asked(plan) => answers.push(Err(Fault::Script)),
                some => answers.append(&mut self.execute_some(some, now).await),
            }
            rest = others;
        }
        answers
    }

    async fn forget(&self, counter: CounterName) -> Result<bool, Fault> {
        let cmd = redis::cmd("UNLINK").arg(&self.keys.of(counter)).take();
        match self.ask(&cmd).await {
            Ok(Value::Int(keys)) => Ok(keys > 0),
            Ok(_) => Err(Fault::Script),
            Err(problem) => Err(self.warn(problem)),
        }
    }

    /// Writes a key that holds no counter: nothing else says that one can be written.
    async fn probe(&self) -> Result<(), Fault> {
        let cmd = redis::cmd("SET").arg(self.keys.probe()).arg("").arg("PX").arg(60_000).take();
        self.ask(&cmd).await.map(drop).map_err(|problem| self.warn(problem))
    }
}
