//! Decides requests with one version of rules and stores: plan, apply, judge. Stores are awaited only here.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use smallvec::SmallVec;

use crate::clock::{Clock, Timestamp};
use crate::decision::Decision;
use crate::descriptor::Request;
use crate::lease::{LeaseIds, LeaseToken};
use crate::limiter::{LeaseId, LeaseStatus};
use crate::plan::{Applied, Check, LeaseAction, LeaseChange, Plan};
use crate::rules::Rules;
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
        let planned = self.rules.plan(request, lease);
        let applied = self.apply(&planned.plan, now).await;
        Decision::judge(self.rules.clone(), planned, applied)
    }

    /// Executes a plan, if it has anything to do.
    pub(crate) async fn apply(&self, plan: &Plan, now: Timestamp) -> Applied {
        match plan.is_empty() {
            true => Applied { admitted: !plan.refused, ..Applied::default() },
            false => self.stores.apply(plan, now).await,
        }
    }

    /// Releases or renews every slot of a lease. Returns `None` when the text is not a lease of this deployment.
    ///
    /// Releasing twice or late is not an error. Of several slots, returns the status furthest from
    /// [`LeaseStatus::Done`].
    pub async fn change_lease(&self, lease: &str, action: LeaseAction, now: Timestamp) -> Option<LeaseStatus> {
        let token = LeaseToken::open(lease, self.rules.secret(), self.rules.stores())?;
        let change = |&(store, counter)| LeaseChange { counter, store, lease: token.id, action };
        let plan = Plan { changes: token.slots.iter().map(change).collect(), ..Plan::default() };
        let applied = self.stores.apply(&plan, now).await;
        let statuses = applied.statuses.into_iter();
        Some(statuses.max_by_key(|status| *status as u8).unwrap_or(LeaseStatus::Unknown))
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
    ///         }]),
    ///         last: false,
    ///         shadow: false,
    ///         enforce_percent: None,
    ///         refusal: RefusalText::default(),
    ///         headers: RuleHeaders::default(),
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

    /// Releases every slot of a lease; see [`Version::change_lease`].
    pub async fn release(&self, lease: &str) -> Option<LeaseStatus> {
        self.current.load_full().change_lease(lease, LeaseAction::Release, self.clock.now()).await
    }

    /// Renews every held slot of a lease, to expire `length` microseconds from now; see [`Version::change_lease`].
    pub async fn renew(&self, lease: &str, length: u64) -> Option<LeaseStatus> {
        self.current.load_full().change_lease(lease, LeaseAction::Renew(length), self.clock.now()).await
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
