//! Plans as they can be spread over places that decide one after the other.

use tollgate::limiter::Limit;
use tollgate::plan::{Charges, Plan};

/// Leaves out what rules never make, plans of several groups that take slots, and overdrafts: what is charged past what a
/// counter can hold is lost, and cannot be told from what is to stay when it is taken back.
pub fn as_is_undone(plan: &mut Plan) {
    let several = plan.groups.len() > 1;
    for check in &mut plan.checks {
        match check.limit {
            Limit::Concurrency(_) if several => check.charges = Charges::default(),
            Limit::Concurrency(_) => {}
            _ => check.needs.fits = check.needs.fits.max(check.charges.admitted),
        }
    }
}
