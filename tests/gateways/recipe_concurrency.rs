//! The recipe of `concurrency.yaml`: a slot is free however its request ends. `envoy_examples.rs` has the requests that end
//! as they should, and a client that hangs up.

use super::recipes::{Recipe, at_once, count, settled, until_taken};
use crate::support::processes::{Ask, Gateway, until};

fn recipe() -> Recipe {
    Recipe::new("concurrency")
}

fn export(account: &str) -> Ask {
    Ask::get("/slow").account(account)
}

/// Waits until an account has so many slots of its two.
fn slots(gateway: &Gateway, account: &str, slots: u64) {
    until_taken(gateway, "exports", "exports", ("account", account), slots);
}

#[test]
fn semantics_44_of_thirty_parallel_exports_two_run_and_no_slot_stays_taken() {
    let Some(gateway) = recipe().start() else { return };
    let exports = vec![export("ada"); 30];
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| at_once(&gateway, &exports));
        until("all to be decided", || {
            gateway.upstream.held() == 2 && gateway.stat("cluster.upstream.ratelimit.over_limit") == 28
        });
        slots(&gateway, "ada", 2);
        gateway.upstream.open_gate();
        let statuses = sent.join().expect("answers");
        assert_eq!((count(&statuses, 200), count(&statuses, 429)), (2, 28), "{statuses:?}");
    });
    slots(&gateway, "ada", 0);
}

#[test]
fn semantics_44_an_export_that_the_route_gives_up_frees_its_slot() {
    let Some(gateway) = recipe().envoy("cluster: upstream, timeout: 60s", "cluster: upstream, timeout: 0.2s").start()
    else {
        return;
    };
    for _ in 0..3 {
        gateway.ask(&export("ada")).expect(504);
        slots(&gateway, "ada", 0);
    }
}

#[test]
fn semantics_44_an_export_that_envoy_repeats_takes_one_slot() {
    let Some(gateway) = recipe().retrying().start() else { return };
    let client = export("ada").header("x-unavailable", "2").begin(gateway.port(10_000)).expect("Envoy accepts");
    until("the third try to be at the upstream", || gateway.upstream.seen().len() == 3 && gateway.upstream.held() == 1);
    slots(&gateway, "ada", 1);
    gateway.upstream.open_gate();
    drop(client);
    slots(&gateway, "ada", 0);
}

#[test]
fn semantics_44_an_export_that_a_filter_behind_refuses_frees_its_slot() {
    let Some(gateway) = recipe().with_a_second_filter().start() else { return };
    gateway.upstream.open_gate();
    for status in [200, 200, 200, 429, 429, 429] {
        gateway.ask(&export("ada")).expect(status);
        settled(&gateway, "second", "second", ("filter", "second"));
        slots(&gateway, "ada", 0);
    }
}
