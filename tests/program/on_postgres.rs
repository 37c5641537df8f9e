//! The real program with a real PostgreSQL, directly and behind a pooler.

use crate::support::binary::{DOORS, Served};
use crate::support::processes::{PgBouncer, postgres};

/// A limit of 25 by account, which refuses while the store fails.
fn limited(url: &str) -> String {
    format!(
        "{DOORS}secret = 'of this test, and no other'\n\n[stores.main]\nengine = 'postgres'\nurl = '{url}'\n\
         timeout = '2s'\n\n[limiters.login]\nalgorithm = 'fixed_window'\nalignment = 'first_hit'\nlimit = 25\n\
         window = '1d'\non_store_error = 'deny'\n\n\
         [[rules]]\ndomain = 'edge'\nname = 'login'\napply = [{{ limiter = 'login', key = ['account'] }}]\n\n\
         [authz]\ndomain = 'edge'\n\n[authz.entries]\naccount = {{ header = 'x-account' }}\n"
    )
}

const BY_POLICY: &str = "tollgate_store_policy_answers_total{store=\"main\",policy=\"deny\"}";

fn sign_in(served: &Served) -> u16 {
    served.ask("GET /authz/envoy/", "x-account: ada\r\n")
}

#[test]
fn two_instances_behind_a_transaction_pooler_admit_exactly_the_limit() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let Some(pooler) = PgBouncer::start(&server, &["default_pool_size = 3"]) else { return };
    let database = server.database();
    for parameters in ["", "?pgbouncer=true"] {
        server.execute(&database, "DROP SCHEMA IF EXISTS tollgate CASCADE");
        let toml = limited(&format!("{}{parameters}", pooler.url(&database)));
        let instances = [Served::start(&toml, &[]).ready(), Served::start(&toml, &[]).ready()];
        let admitted = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..8)
                .map(|caller| {
                    let served = &instances[caller % 2];
                    scope.spawn(move || (0..20).filter(|_| sign_in(served) == 200).count())
                })
                .collect();
            callers.into_iter().map(|caller| caller.join().expect("it is answered")).sum::<usize>()
        });
        assert_eq!(admitted, 25, "{parameters}");
        assert_eq!(instances.iter().map(|served| served.metric(BY_POLICY)).sum::<f64>(), 0.0, "{parameters}");
    }
}

#[test]
fn the_connections_are_there_before_the_first_request() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let database = server.database();
    let served = Served::start(&limited(&server.url(&database)), &[]);
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tollgate' AND datname = \
                    current_database()";
    // The line that names the ports was written already.
    let connected = server.value(&database, sessions).expect("a number");
    assert!(connected.parse::<usize>().expect("a number") >= 2, "{connected}");
    assert_eq!((0..30).filter(|_| sign_in(&served) == 200).count(), 25);
    assert_eq!(served.metric(BY_POLICY), 0.0);
}
