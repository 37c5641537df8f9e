//! What the real program logs about a shared store that does not let it in: each line names the store, and the cause is
//! among them, with what to do.

use std::time::Duration;

use crate::support::binary::{DOORS, Served};
use crate::support::processes::redis::Setup;
use crate::support::processes::{Certificates, Postgres, WAIT_TIMEOUT, postgres, until};

/// A rule that needs the store with these keys.
fn limited(store: &str) -> String {
    format!(
        "{DOORS}secret = 'of this test, and no other'\n[stores.limits]\n{store}\n\
         [limiters.daily]\nalgorithm = 'fixed_window'\nlimit = 5\nwindow = '1d'\n\
         [[rules]]\ndomain = 'edge'\nname = 'daily'\napply = [{{ limiter = 'daily', key = ['account'] }}]\n\
         [authz]\ndomain = 'edge'\n[authz.entries]\naccount = {{ header = 'x-account' }}\n"
    )
}

/// Checks the lines about the store, which have these words of the cause and of the remedy.
fn names_store_and_cause(served: &Served, cause: &str, remedy: &str) {
    served.until(cause);
    let said = served.said();
    let warnings: Vec<&str> = said.lines().filter(|line| line.contains(" WARN ")).collect();
    let names = |line: &&&str| line.contains("store=\"limits\"") || line.contains("stores=[\"limits\"]");
    let of_store: Vec<&&str> = warnings.iter().filter(names).collect();
    let nameless = said.lines().find(|line| line.contains("store=\"\""));
    assert_eq!(nameless, None, "{said}");
    assert_eq!(of_store.len(), warnings.len(), "each names the store: {said}");
    assert!(of_store.iter().any(|line| line.contains(cause) && line.contains(remedy)), "{cause}, {remedy}: {said}");
    assert!(!said.contains("planted"), "no secret: {said}");
}

/// The store does not let the program in from the start: before a request needs it, and when one does.
fn is_said_from_the_start(store: &str, cause: &str, remedy: &str) {
    let served = Served::start(&limited(store), &[]);
    // The line that names the ports was written, so connecting was waited for.
    let said = served.said();
    let first = said.lines().find(|line| line.contains("stores.limits: not connected within 1s: "));
    let first = first.unwrap_or_else(|| panic!("it is said before serving: {said}"));
    assert!(first.contains(cause) && first.contains(remedy), "{first}");
    assert!(first.contains("its limiters follow on_store_error until it answers"), "{first}");
    served.ask("GET /authz/envoy/", "x-account: ada\r\n");
    names_store_and_cause(&served, cause, remedy);
}

const UNKNOWN_ISSUER: &str = "invalid peer certificate: UnknownIssuer";

#[test]
fn a_redis_whose_authority_is_not_trusted_is_named_with_the_cause() {
    let Some(server) = Setup::redis().map(|setup| setup.line("tls-auth-clients no").tls().start()) else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let other = Certificates::make(directory.path()).authority;
    let store =
        format!("engine = 'redis'\nurl = 'rediss://127.0.0.1:{}'\ntls_ca = '{}'", server.tls().0, other.display());
    is_said_from_the_start(&store, UNKNOWN_ISSUER, "tls_ca");
}

#[test]
fn a_redis_that_rejects_the_password_is_named_with_the_cause() {
    let Some(server) = Setup::redis().map(|setup| setup.password("sesame").start()) else { return };
    let store = format!("engine = 'redis'\nurl = 'redis://127.0.0.1:{}'\npassword = 'planted'", server.port);
    is_said_from_the_start(&store, "WRONGPASS", "password");
}

#[test]
fn a_redis_that_wants_a_client_certificate_is_named_with_the_cause() {
    let Some(server) = Setup::redis().map(|setup| setup.tls().start()) else { return };
    let (port, files) = server.tls();
    let store =
        format!("engine = 'redis'\nurl = 'rediss://127.0.0.1:{port}'\ntls_ca = '{}'", files.authority.display());
    is_said_from_the_start(&store, "CertificateRequired", "tls_certificate");
}

#[test]
fn a_postgres_whose_authority_is_not_trusted_is_named_with_the_cause() {
    let Some(server) = postgres::Setup::new().map(|setup| setup.tls().start()) else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let other = Certificates::make(directory.path()).authority;
    let url = server.url(&server.database());
    let store = format!("engine = 'postgres'\nurl = '{url}'\ntls_ca = '{}'", other.display());
    is_said_from_the_start(&store, UNKNOWN_ISSUER, "tls_ca");
}

#[test]
fn a_postgres_that_rejects_the_password_is_named_with_the_cause() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.url(&server.database()).replace(&format!(":{}@", postgres::PASSWORD), "@");
    let store = format!("engine = 'postgres'\nurl = '{url}'\npassword = 'planted'");
    is_said_from_the_start(&store, "password authentication failed for user", "password");
}

#[test]
fn a_postgres_that_wants_a_client_certificate_is_named_with_the_cause() {
    let Some(server) = postgres::Setup::new().map(|setup| setup.client_certificates().start()) else { return };
    let files = server.certificates.as_ref().expect("it uses TLS");
    let url = server.url(&server.database());
    let store = format!("engine = 'postgres'\nurl = '{url}'\ntls_ca = '{}'", files.authority.display());
    is_said_from_the_start(&store, "client certificate", "tls_certificate");
}

/// Asks until the cause is said: the connections of the store were lost, and none is accepted any more.
fn is_said_after_a_loss(served: &Served, cause: &str, remedy: &str) {
    until("the cause is said", || {
        served.ask("GET /authz/envoy/", "x-account: ada\r\n");
        served.said().contains(cause)
    });
    names_store_and_cause(served, cause, remedy);
}

#[test]
fn a_password_that_is_changed_while_serving_is_said_although_the_loss_of_the_connection_is_said_first() {
    assert!(WAIT_TIMEOUT > Duration::from_secs(10), "the lost connection must not keep the cause silent");
    if let Some(server) = Setup::redis().map(|setup| setup.line("user limits on >sesame ~* &* +@all").start()) {
        let store = format!(
            "engine = 'redis'\nurl = 'redis://127.0.0.1:{}'\nusername = 'limits'\npassword = 'sesame'\nrequired = true",
            server.port
        );
        let served = Served::start(&limited(&store), &[]).ready();
        // The first loss is nothing to worry about.
        server.ask::<()>(&["CLIENT", "KILL", "USER", "limits"]);
        served.until("lost, reconnecting");
        server.ask::<()>(&["ACL", "SETUSER", "limits", "resetpass", ">barley"]);
        server.command::<()>(&["CLIENT", "KILL", "USER", "limits"]).expect("it answers");
        is_said_after_a_loss(&served, "WRONGPASS", "password");
    }
    if let Some(server) = Postgres::shared() {
        let database = server.database();
        let role = format!("one_of_{database}");
        let create = format!("CREATE ROLE {role} LOGIN PASSWORD 'sesame' IN ROLE {}", postgres::USER);
        server.execute("postgres", &create);
        let url = server.url(&database);
        let url = url.replace(&format!("{}:{}@", postgres::USER, postgres::PASSWORD), &format!("{role}:sesame@"));
        let store = format!("engine = 'postgres'\nurl = '{url}'\nrequired = true");
        let served = Served::start(&limited(&store), &[]).ready();
        server.execute("postgres", &format!("ALTER ROLE {role} PASSWORD 'barley'"));
        let end = format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{role}'");
        server.execute("postgres", &end);
        served.until("connection lost: ");
        is_said_after_a_loss(&served, "password authentication failed for user", "password");
    }
}
