//! The walk: plan, apply, judge. The one place that awaits.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::clock::Clock;
use crate::decision::Decision;
use crate::descriptor::Request;
use crate::limiter::{Applied, LeaseAction, LeaseChange, LeaseFate, Plan};
use crate::rules::{LeaseIds, LeaseToken, Rules};
use crate::store::{Store, Stores};

/// Decides requests by the rules in use.
pub struct Engine {
    rules: ArcSwap<Rules>,
    stores: Stores,
    clock: Arc<dyn Clock>,
    leases: LeaseIds,
}

impl Engine {
    /// An engine with these rules, keeping its counters in `stores`, in the order the rules count them.
    pub fn new(rules: Rules, stores: Stores, clock: Arc<dyn Clock>) -> Self {
        Self { rules: ArcSwap::from_pointee(rules), stores, clock, leases: LeaseIds::new() }
    }

    /// Replaces the rules whole. Requests under way finish by the ones they began with.
    ///
    /// The stores stay: the new rules must count the same ones in the same order. What a counter holds carries over
    /// where its name does (semantics 1 and 29).
    pub fn replace(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
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
        let rules = self.rules.load_full();
        let now = self.clock.now();
        let planned = rules.plan(request, now, self.leases.make());
        let applied = match planned.plan.is_empty() {
            true => Applied { admitted: !planned.plan.refused, ..Applied::default() },
            false => self.stores.apply(&planned.plan, now).await,
        };
        Decision::judge(rules, planned, applied)
    }

    /// Gives back every slot of a lease; `None` when the text is no lease of this deployment. Giving back twice, or
    /// late, is no error.
    pub async fn release(&self, lease: &str) -> Option<LeaseFate> {
        self.change(lease, LeaseAction::Release).await
    }

    /// Lets every slot of a lease that is still held expire `length` microseconds from now; `None` when the text is no
    /// lease of this deployment.
    pub async fn renew(&self, lease: &str, length: u64) -> Option<LeaseFate> {
        self.change(lease, LeaseAction::Renew(length)).await
    }

    /// The rules in use.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// The stores.
    pub fn stores(&self) -> &Stores {
        &self.stores
    }

    /// The clock that decides.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    async fn change(&self, lease: &str, action: LeaseAction) -> Option<LeaseFate> {
        let rules = self.rules.load_full();
        let token = LeaseToken::open(lease, rules.secret(), rules.stores())?;
        let change = |&(store, counter)| LeaseChange { counter, store, lease: token.id, action };
        let plan = Plan { changes: token.slots.iter().map(change).collect(), ..Plan::default() };
        let applied = self.stores.apply(&plan, self.clock.now()).await;
        // Of several slots the one that fared worst is told.
        let fates = applied.fates.into_iter();
        Some(fates.max_by_key(|fate| *fate as u8).unwrap_or(LeaseFate::Unknown))
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("stores", &self.stores).finish_non_exhaustive()
    }
}
