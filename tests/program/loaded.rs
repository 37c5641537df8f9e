//! The real program under load, which a shared store has to decide exactly.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tollgate::server::grpc::messages::service::ratelimit::v3::rate_limit_response::Code;

use crate::support::binary::{DOORS, Served};
use crate::support::processes::{WAIT_TIMEOUT, until};
use crate::support::service::Rls;

/// Requests in flight.
pub(super) const CALLERS: usize = 8;

/// A decision must not take longer, however busy the machine is: the `timeout` of the stores.
pub(super) const LONGEST: Duration = Duration::from_secs(2);

/// The requests that are answered between two reloads, at least.
pub(super) const REQUESTS_BETWEEN: usize = 100;

/// The limit of each account: of one, or of one for each caller.
pub(super) const LIMIT: usize = 3_000;
pub(super) const LIMIT_OF_CALLER: usize = 300;

pub(super) const TAKEN: &str = "configuration applied";
pub(super) const REFUSED: &str = "configuration rejected";

/// A limit of each caller in a shared store with these keys.
pub(super) fn limited(store: &str) -> String {
    limited_to(LIMIT_OF_CALLER, store)
}

pub(super) fn limited_to(limit: usize, store: &str) -> String {
    format!(
        "{DOORS}secret = 'of this test, and no other'\n[stores.main]\n{store}\n\
         [limiters.daily]\nalgorithm = 'fixed_window'\nalignment = 'first_hit'\nlimit = {limit}\nwindow = '24h'\n\
         [[rules]]\ndomain = 'edge'\nname = 'daily'\napply = [{{ limiter = 'daily', key = ['account'] }}]\n"
    )
}

/// The program under load.
pub(super) struct Loaded {
    pub(super) served: Served,
    pub(super) rls: Rls,
    pub(super) done: Arc<AtomicBool>,
    pub(super) answered: Arc<AtomicUsize>,
    /// By account.
    pub(super) admitted: Arc<Vec<AtomicUsize>>,
    pub(super) limit: usize,
    pub(super) callers: Vec<JoinHandle<Duration>>,
}

impl Loaded {
    /// Each caller has an account of its own.
    pub(super) async fn start(toml: &str) -> Self {
        Self::with_accounts(toml, CALLERS, LIMIT_OF_CALLER).await
    }

    pub(super) async fn with_accounts(toml: &str, accounts: usize, limit: usize) -> Self {
        let served = Served::start(toml, &[]).ready();
        let rls = Rls::at(&served.grpc).await;
        let (done, answered) = <(Arc<AtomicBool>, Arc<AtomicUsize>)>::default();
        let admitted: Arc<Vec<AtomicUsize>> = Arc::new((0..accounts).map(|_| AtomicUsize::default()).collect());
        let call = |caller| {
            let (rls, done, answered, admitted) = (rls.clone(), done.clone(), answered.clone(), admitted.clone());
            tokio::spawn(async move {
                let mut longest = Duration::ZERO;
                while !done.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    ask(&rls, &admitted, caller % accounts).await;
                    longest = longest.max(began.elapsed());
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                longest
            })
        };
        let callers = (0..CALLERS).map(call).collect();
        Self { served, rls, done, answered, admitted, limit, callers }
    }

    /// The requests of an account that were admitted so far.
    pub(super) fn admitted(&self, account: usize) -> usize {
        self.admitted[account].load(Ordering::Relaxed)
    }

    pub(super) fn said(&self, words: &str) -> usize {
        self.served.said().matches(words).count()
    }

    /// Changes a file, and waits until the change is taken, and some requests are answered after it.
    pub(super) fn take(&self, change: impl FnOnce()) {
        self.take_unasked(|| {
            change();
            self.served.signal("-HUP");
        });
    }

    /// Changes a file that is watched, and waits until the change is taken, and some requests are answered after it.
    pub(super) fn take_unasked(&self, change: impl FnOnce()) {
        let taken = self.said(TAKEN);
        change();
        self.until_said(TAKEN, taken + 1);
        self.answers_more();
    }

    pub(super) fn until_said(&self, words: &str, times: usize) {
        let began = Instant::now();
        while self.said(words) < times {
            let late = began.elapsed() > WAIT_TIMEOUT || self.served.said().contains("panicked");
            assert!(!late, "{words:?} is not said {times} times: {}", self.served.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until some requests are answered.
    pub(super) fn answers_more(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        until("requests are answered", || self.answered.load(Ordering::Relaxed) >= before + REQUESTS_BETWEEN);
    }

    /// Checks answered by policy so far.
    pub(super) fn by_policy(&self) -> f64 {
        let series = |policy| format!("tollgate_store_policy_answers_total{{store=\"main\",policy=\"{policy}\"}}");
        ["allow", "deny", "local"].map(|policy| self.served.metric(&series(policy))).iter().sum()
    }

    /// Ends the load, uses up what is left, and returns the longest decision.
    pub(super) async fn finish(&mut self) -> Duration {
        self.done.store(true, Ordering::Relaxed);
        let mut longest = Duration::ZERO;
        for caller in self.callers.drain(..) {
            longest = longest.max(caller.await.expect("every answer is an answer"));
        }
        let began = Instant::now();
        for account in 0..self.admitted.len() {
            // Units that an old store had leased come back shortly after its end.
            while self.admitted(account) < self.limit {
                assert!(began.elapsed() < WAIT_TIMEOUT, "{:?}: {}", self.admitted, self.served.said());
                ask(&self.rls, &self.admitted, account).await;
            }
            for _ in 0..20 {
                ask(&self.rls, &self.admitted, account).await;
            }
        }
        longest
    }

    /// Ends the load, and checks that all of it was decided by the store: exactly.
    pub(super) async fn ends_exact(mut self, what: &str) {
        let policy = self.by_policy();
        let answered = self.answered.load(Ordering::Relaxed);
        let longest = self.finish().await;
        let over: usize = (0..self.admitted.len()).map(|account| self.admitted(account) - self.limit).sum();
        println!("| {what} | {answered} answers | {policy} by policy | {over} over the limit | {longest:?} |");
        assert_eq!((policy, over), (0.0, 0), "{what}: {}", self.served.said());
        assert_eq!(self.by_policy(), 0.0, "{what}: {}", self.served.said());
        assert!(longest < LONGEST, "{what}: {longest:?}");
    }
}

/// Sends a request of an account, and counts it if it is admitted.
pub(super) async fn ask(rls: &Rls, admitted: &[AtomicUsize], account: usize) {
    match rls.one(&[("account", &account.to_string())]).await.overall_code() {
        Code::Ok => admitted[account].fetch_add(1, Ordering::Relaxed),
        Code::OverLimit => 0,
        Code::Unknown => panic!("no answer"),
    };
}

pub(super) fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("a file in the test's directory");
}
