//! Decides requests with one version of rules and stores: plan, apply, judge. Stores are awaited only here.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use smallvec::SmallVec;

use crate::clock::{Clock, Timestamp};
use crate::decision::Decision;
use crate::descriptor::Request;
use crate::lease::{LeaseCommand, LeaseIds, LeaseToken, UnknownLimiter};
use crate::limiter::{LeaseId, LeaseStatus};
use crate::plan::{Applied, Check, Plan};
use crate::rules::{Planned, Rules};
use crate::store::Stores;

/// Rules, and the stores they refer to by index. A request is decided by one version.
#[derive(Debug)]
pub struct Version {
    /// The rules.
    pub rules: Arc<Rules>,
    /// The stores, in the order of [`crate::rules::RuleBook::stores`].
    pub stores: Stores,
}

impl Version {
    /// Decides one request at `now`. Slots that it takes are held under `lease`.
    pub async fn decide(&self, request: &Request<'_>, now: Timestamp, lease: LeaseId) -> Decision {
        let mut planned = self.rules.plan(request, lease);
        let Planned { plan, applied, .. } = &mut *planned;
        // Not `apply`: one more future costs 6 % of the instructions of a decision in memory.
        match plan.is_empty() {
            true => applied.admitted = !plan.refused,
            false => self.stores.apply_into(plan, now, applied).await,
        }
        Decision::judge_applied(self.rules.clone(), planned)
    }

    /// Executes a plan, if it has anything to do.
    pub(crate) async fn apply(&self, plan: &Plan, now: Timestamp) -> Applied {
        match plan.is_empty() {
            true => Applied { admitted: !plan.refused, ..Applied::default() },
            false => self.stores.apply(plan, now).await,
        }
    }

    /// Releases, renews or settles everything that a lease took. Returns `None` when the text is not a lease of this
    /// deployment.
    ///
    /// Doing so twice or late is not an error. Of several slots and holds the fate is `Expired` if that of one is, else
    /// `Done`, or after a renewal `Held`, if that of one is, else `Unknown`.
    ///
    /// # Errors
    ///
    /// [`UnknownLimiter`] when units are given for a limiter of which the lease holds nothing; nothing is changed then.
    pub async fn change_lease(
        &self,
        lease: &str,
        command: &LeaseCommand,
        now: Timestamp,
    ) -> Result<Option<LeaseStatus>, UnknownLimiter> {
        let Some(token) = LeaseToken::open(lease, self.rules.secret(), self.rules.stores()) else { return Ok(None) };
        let plan = token.changes(command, self.rules.secret())?;
        let applied = match plan.is_empty() {
            true => Applied::default(),
            false => self.stores.apply(&plan, now).await,
        };
        let (changes, answered) = (plan.changes.len() + plan.holds.len(), applied.statuses.len());
        Ok(Some(match LeaseStatus::of_several(applied.statuses) {
            // A fallback knows what it gave itself, and nothing of what the store holds.
            LeaseStatus::Unknown if applied.degraded || answered < changes => LeaseStatus::Unanswered,
            status => status,
        }))
    }

    /// Reads counters without charging them: one answer for each check.
    pub(crate) async fn read_counters(&self, checks: impl Iterator<Item = Check>, now: Timestamp) -> Applied {
        let checks: SmallVec<_> = checks.collect();
        // Each check is a group of its own, so that the outcome of one does not affect the others.
        let groups = (1..=checks.len()).map(|end| u16::try_from(end).expect("the counters of an identity are few"));
        let plan = Plan { groups: groups.collect(), checks, ..Plan::default() };
        self.stores.apply(&plan, now).await
    }
}

/// Decides requests in this process, without doors: one version in use, a clock, and ids for leases.
pub struct Engine {
    current: ArcSwap<Version>,
    clock: Arc<dyn Clock>,
    leases: LeaseIds,
}

impl Engine {
    /// An engine with these rules and stores, the stores in the order of [`Rules::stores`].
    pub fn new(rules: Rules, stores: Stores, clock: Arc<dyn Clock>) -> Self {
        let version = Version { rules: Arc::new(rules), stores };
        Self { current: ArcSwap::from_pointee(version), clock, leases: LeaseIds::new() }
    }

    /// Replaces rules and stores together. Requests in flight finish with the version they began with.
    ///
    /// A counter keeps its state if its name (semantics 1 and 29) and its store ([`Stores::next`]) stay the same.
    pub fn replace(&self, version: Arc<Version>) {
        self.current.store(version);
    }

    /// Decides one request. It sees one version of the rules.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::time::Duration;
    /// use tollgate::clock::SystemClock;
    /// use tollgate::descriptor::Request;
    /// use tollgate::engine::Engine;
    /// use tollgate::limiter::{Algorithm, Limiter, OnStoreError, Quota, WorkerSettings};
    /// use tollgate::rules::{Action, Apply, Charge, KeyEntry, Missing, RefusalText, Rule, RuleBook, RuleHeaders, Rules};
    /// use tollgate::store::{MemorySettings, Stores};
    ///
    /// let quota = Quota::new(1, Duration::from_secs(60), Algorithm::SlidingWindow).unwrap();
    /// let rules = Rules::compile(RuleBook {
    ///     limiters: vec![Limiter {
    ///         name: "login".into(),
    ///         store: 0,
    ///         quota: Some(quota),
    ///         concurrency: None,
    ///         on_store_error: OnStoreError::Local,
    ///         overridable: false,
    ///         workers: WorkerSettings::default(),
    ///     }],
    ///     rules: vec![Rule {
    ///         domain: "edge".into(),
    ///         name: "login".into(),
    ///         matches: vec![],
    ///         action: Action::Apply(vec![Apply {
    ///             limiter: "login".into(),
    ///             otherwise: None,
    ///             key: vec![KeyEntry { entry: "account".into(), normalise: vec![] }],
    ///             charge: Charge::Admitted,
    ///             overdraw: false,
    ///             missing: Missing::Skip,
    ///             hold: None,
    ///         }]),
    ///         last: false,
    ///         shadow: false,
    ///         enforce_percent: None,
    ///         refusal: RefusalText::default(),
    ///         headers: RuleHeaders::default(),
    ///         skip_absent: false,
    ///     }],
    ///     ..RuleBook::default()
    /// })
    /// .unwrap();
    /// let engine = Engine::new(rules, Stores::memory(&[MemorySettings::default()]), Arc::new(SystemClock::new()));
    ///
    /// let request = || Request::of("edge", [("account", "a")]);
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// assert!(engine.decide(&request()).await.allowed());
    /// assert!(!engine.decide(&request()).await.allowed());
    /// # });
    /// ```
    pub async fn decide(&self, request: &Request<'_>) -> Decision {
        self.current.load_full().decide(request, self.clock.now(), self.leases.next_id()).await
    }

    /// Gives everything back that a lease took; see [`Version::change_lease`].
    pub async fn release(&self, lease: &str) -> Option<LeaseStatus> {
        self.change_lease(lease, &LeaseCommand::Release).await.ok().flatten()
    }

    /// Renews everything that a lease holds, to end `length` microseconds from now; see [`Version::change_lease`].
    pub async fn renew(&self, lease: &str, length: u64) -> Option<LeaseStatus> {
        self.change_lease(lease, &LeaseCommand::Renew(Some(length))).await.ok().flatten()
    }

    /// Releases, renews or settles a lease; see [`Version::change_lease`].
    ///
    /// # Errors
    ///
    /// As [`Version::change_lease`].
    pub async fn change_lease(
        &self,
        lease: &str,
        command: &LeaseCommand,
    ) -> Result<Option<LeaseStatus>, UnknownLimiter> {
        self.current.load_full().change_lease(lease, command, self.clock.now()).await
    }

    /// The version in use.
    pub fn current(&self) -> Arc<Version> {
        self.current.load_full()
    }

    /// The engine's clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("current", &self.current).finish_non_exhaustive()
    }
}
