//! The walk: plan, apply, judge. The one place that awaits.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use smallvec::SmallVec;

use crate::clock::{Clock, Timestamp};
use crate::decision::Decision;
use crate::descriptor::Request;
use crate::lease::{LeaseIds, LeaseToken};
use crate::limiter::LeaseStatus;
use crate::plan::{Applied, Check, LeaseAction, LeaseChange, Plan};
use crate::rules::Rules;
use crate::store::{Store, Stores};

/// Decides requests by the rules in use.
pub struct Engine {
    in_use: ArcSwap<Version>,
    clock: Arc<dyn Clock>,
    leases: LeaseIds,
}

/// Rules, and the stores they count by their places. A request is decided by one version, whole.
#[derive(Debug)]
pub struct Version {
    /// The rules.
    pub rules: Arc<Rules>,
    /// The stores, in the order that the rules count them.
    pub stores: Stores,
}

impl Engine {
    /// An engine with these rules, keeping its counters in `stores`, in the order the rules count them.
    pub fn new(rules: Rules, stores: Stores, clock: Arc<dyn Clock>) -> Self {
        let version = Version { rules: Arc::new(rules), stores };
        Self { in_use: ArcSwap::from_pointee(version), clock, leases: LeaseIds::new() }
    }

    /// Replaces rules and stores whole. Requests under way finish by the ones they began with.
    ///
    /// What a counter holds carries over where its name does (semantics 1 and 29) and its store is the same
    /// ([`Stores::next`]).
    pub fn replace(&self, version: Arc<Version>) {
        self.in_use.store(version);
    }

    /// Decides one request. It sees one version of the rules.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::time::Duration;
    /// use tollgate::clock::SystemClock;
    /// use tollgate::descriptor::{Descriptor, Request};
    /// use tollgate::engine::Engine;
    /// use tollgate::limiter::{Algorithm, Limiter, OnStoreError, Quota};
    /// use tollgate::rules::{Action, Apply, Charge, KeyPart, Missing, RefusalText, Rule, RuleBook, Rules};
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
    ///     }],
    ///     rules: vec![Rule {
    ///         domain: "edge".into(),
    ///         name: "login".into(),
    ///         matches: vec![],
    ///         action: Action::Apply(vec![Apply {
    ///             limiter: "login".into(),
    ///             otherwise: None,
    ///             key: vec![KeyPart { entry: "account".into(), normalise: vec![] }],
    ///             charge: Charge::Admitted,
    ///             overdraw: false,
    ///             missing: Missing::Skip,
    ///         }]),
    ///         last: false,
    ///         shadow: false,
    ///         enforce_percent: None,
    ///         refusal: RefusalText::default(),
    ///     }],
    ///     ..RuleBook::default()
    /// })
    /// .unwrap();
    /// let engine = Engine::new(rules, Stores::memory(&[MemorySettings::default()]), Arc::new(SystemClock::new()));
    ///
    /// let request = || Request { domain: "edge", descriptors: [Descriptor::of([("account", "a")])].into_iter().collect() };
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// assert!(engine.decide(&request()).await.allowed());
    /// assert!(!engine.decide(&request()).await.allowed());
    /// # });
    /// ```
    pub async fn decide(&self, request: &Request<'_>) -> Decision {
        self.decide_by(&self.in_use.load_full(), request, self.clock.now()).await
    }

    /// Decides one request by a version that the caller holds on to, as of `now`.
    pub async fn decide_by(&self, version: &Version, request: &Request<'_>, now: Timestamp) -> Decision {
        let planned = version.rules.plan(request, now, self.leases.make());
        let applied = match planned.plan.is_empty() {
            true => Applied { admitted: !planned.plan.refused, ..Applied::default() },
            false => version.stores.apply(&planned.plan, now).await,
        };
        Decision::judge(version.rules.clone(), planned, applied)
    }

    /// Gives back every slot of a lease; `None` when the text is no lease of this deployment. Giving back twice, or
    /// late, is no error.
    pub async fn release(&self, lease: &str) -> Option<LeaseStatus> {
        self.change(lease, LeaseAction::Release).await
    }

    /// Lets every slot of a lease that is still held expire `length` microseconds from now; `None` when the text is no
    /// lease of this deployment.
    pub async fn renew(&self, lease: &str, length: u64) -> Option<LeaseStatus> {
        self.change(lease, LeaseAction::Renew(length)).await
    }

    /// What counters hold, without charging them: one answer for each check.
    pub async fn look(&self, version: &Version, checks: impl Iterator<Item = Check>) -> Applied {
        let checks: SmallVec<_> = checks.collect();
        // Each in a group of its own: what one comes to says nothing about another.
        let groups = (1..=checks.len()).map(|end| u16::try_from(end).expect("the counters of an identity are few"));
        let plan = Plan { groups: groups.collect(), checks, ..Plan::default() };
        version.stores.apply(&plan, self.clock.now()).await
    }

    /// The rules and stores in use.
    pub fn in_use(&self) -> Arc<Version> {
        self.in_use.load_full()
    }

    /// The clock that decides.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    async fn change(&self, lease: &str, action: LeaseAction) -> Option<LeaseStatus> {
        let version = self.in_use.load_full();
        let token = LeaseToken::open(lease, version.rules.secret(), version.rules.stores())?;
        let change = |&(store, counter)| LeaseChange { counter, store, lease: token.id, action };
        let plan = Plan { changes: token.slots.iter().map(change).collect(), ..Plan::default() };
        let applied = version.stores.apply(&plan, self.clock.now()).await;
        // Of several slots the one that fared worst is told.
        let fates = applied.fates.into_iter();
        Some(fates.max_by_key(|fate| *fate as u8).unwrap_or(LeaseStatus::Unknown))
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("in_use", &self.in_use).finish_non_exhaustive()
    }
}
