//! Plans that can be spread over stores or partitions which decide one after the other.

use tollgate::limiter::Limit;
use tollgate::plan::{Charges, Holding, Plan};

/// Removes what rules never produce, overdrafts of an exact log or of values, and plans of several groups that take slots or hold: those
/// of one group would be given back with those of another, because they are under one lease.
pub fn as_is_undone(plan: &mut Plan) {
    let several = plan.groups.len() > 1;
    for check in &mut plan.checks {
        match check.limit {
            Limit::Concurrency(_) if several => check.charges = Charges::default(),
            Limit::SlidingWindow(_) | Limit::Distinct(_) => {
                check.needs.fits = check.needs.fits.max(check.charges.admitted);
            }
            Limit::Concurrency(_) | Limit::TokenBucket(_) | Limit::SlidingCounter(_) | Limit::FixedWindow(_) => {}
        }
        if several && check.holding.holds() {
            check.holding = Holding::Reported;
        }
    }
}
