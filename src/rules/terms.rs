//! The terms of a check: its needs, charges and refund, from the hits of a descriptor.

use super::book::Charge;
use super::compiled::CompiledApply;
use crate::descriptor::Hits;
use crate::plan::{Charges, Needs};

/// The needs, charges and refund of a descriptor's hits on a quota (semantics 5 and 9 to 12).
pub(super) fn quota_terms(hits: Hits, apply: &CompiledApply) -> (Needs, Charges, u32) {
    match hits {
        Hits::Peek => (Needs { one_left: true, ..Needs::default() }, Charges::default(), 0),
        Hits::Refund(units) => (Needs::default(), Charges::default(), units),
        Hits::Charge(cost) => {
            let needs = match apply.overdraw {
                true => Needs { one_left: true, ..Needs::default() },
                false => Needs { fits: cost, ..Needs::default() },
            };
            let (passed, refused) = match apply.charge {
                Charge::Admitted => (0, 0),
                Charge::Own => (cost, 0),
                Charge::Always => (cost, cost),
            };
            (needs, Charges { admitted: cost, passed, refused }, 0)
        }
    }
}

/// The needs and charges of a descriptor's hits on distinct values: one value, whatever the hits (semantics 57). `None` for a
/// refund, which gives none back.
pub(super) fn value_terms(hits: Hits, charge: Charge) -> Option<(Needs, Charges)> {
    match hits {
        Hits::Charge(_) => {
            // Beyond the limit, a value could only push out another: compiling refuses `always`.
            let passed = u32::from(charge != Charge::Admitted);
            Some((Needs { fits: 1, ..Needs::default() }, Charges { admitted: 1, passed, refused: 0 }))
        }
        Hits::Peek => Some((Needs { one_left: true, ..Needs::default() }, Charges::default())),
        Hits::Refund(_) => None,
    }
}

/// The needs and charges of a descriptor's hits on slots. `None` for a refund: a slot is released by its lease
/// (semantics 11).
pub(super) fn slot_terms(hits: Hits) -> Option<(Needs, Charges)> {
    match hits {
        Hits::Charge(_) => Some((Needs { fits: 1, ..Needs::default() }, Charges { admitted: 1, ..Charges::default() })),
        Hits::Peek => Some((Needs { one_left: true, ..Needs::default() }, Charges::default())),
        Hits::Refund(_) => None,
    }
}
