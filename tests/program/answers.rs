//! What an answer says besides its verdict, with a store that does not answer.

use crate::support::binary::{DOORS, Served};
use crate::support::processes::{Answer, Ask, ports};

/// Serves three limiters, one of each policy, in a store at a port where nothing listens.
fn without_a_store() -> Served {
    let mut toml = format!(
        "{DOORS}secret = 'of this test, and no other'\n\n[stores.main]\nengine = 'redis'\n\
         url = 'redis://127.0.0.1:{}'\n\n[authz]\ndomain = 'edge'\n",
        ports::free()
    );
    for policy in ["allow", "deny", "local"] {
        toml += &format!(
            "\n[limiters.{policy}]\nalgorithm = 'sliding_window'\nlimit = 1\nwindow = '1h'\n\
             on_store_error = '{policy}'\n\n[[rules]]\ndomain = 'edge'\nname = '{policy}'\n\
             match = {{ path = '/{policy}' }}\napply = [{{ limiter = '{policy}' }}]\n"
        );
    }
    Served::start(&toml, &[])
}

#[test]
fn semantics_31_an_answer_without_its_store_is_marked_and_says_when_to_try_again() {
    let served = without_a_store();
    let port = served.http.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let ask = |policy: &str| -> Answer { Ask::get(&format!("/authz/envoy/{policy}")).send(port).expect("it answers") };
    let marked = |answer: &Answer| answer.header("x-tollgate-degraded") == Some("true");

    let allowed = ask("allow").expect(200);
    assert!(marked(&allowed) && allowed.header("x-tollgate-reason").is_none(), "{allowed:?}");
    let refused = ask("deny").expect(503);
    assert!(marked(&refused), "{refused:?}");
    assert_eq!(refused.header("x-tollgate-reason"), Some("store_error"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    let counted = ask("local").expect(200);
    assert!(marked(&counted), "{counted:?}");
    let refused = ask("local").expect(429);
    assert!(marked(&refused), "{refused:?}");
    assert_eq!(refused.header("x-tollgate-reason"), Some("limit"));
    // No store is needed where no rule matches.
    let other = ask("other").expect(200);
    assert!(!marked(&other), "{other:?}");
}
