//! The recipe of `login_form.yaml`: the account comes from the body of a form or JSON login, and failures are counted.

use super::recipes::{Recipe, at_once, count, settlements, used};
use crate::support::processes::{Ask, Gateway, until};

fn posted(password: &str) -> Ask {
    Ask::post("/login").header("x-password", password)
}

fn form(password: &str, body: &str) -> Ask {
    posted(password).header("content-type", "application/x-www-form-urlencoded").body(body)
}

/// How many tries of an account are charged.
fn charged(gateway: &Gateway, account: &str) -> u64 {
    used(gateway, "edge", "failures", ("account", account)).used
}

#[test]
fn semantics_62_of_40_guesses_of_a_form_login_three_reach_the_password_check() {
    let Some(gateway) = Recipe::new("login_form").start() else { return };
    let guesses: Vec<Ask> =
        (0..40).map(|number| form("guess", &format!("password=p{number}&username=%41da"))).collect();
    let statuses = at_once(&gateway, &guesses);
    assert_eq!((count(&statuses, 401), count(&statuses, 429)), (3, 37), "{statuses:?}");
    assert_eq!(gateway.upstream.seen().len(), 3);
    // Any other way to write the account is the same account, and the right password is refused too.
    for refused in [
        form("secret", "username=ada"),
        form("secret", "username=+ADA+&password=x"),
        posted("secret").json(r#"{"username": "\u0061da"}"#),
        posted("secret").header("content-type", "application/json; charset=utf-8").body(r#"{"username":"Ada"}"#),
    ] {
        gateway.ask(&refused).expect(429);
    }
    for number in 1..=12 {
        gateway.ask(&form("secret", "username=bob&password=secret")).expect(200);
        until("the login to be given back", || settlements(&gateway).0 == 3 + number);
    }
    assert_eq!((charged(&gateway, "ada"), charged(&gateway, "bob")), (3, 0));
}

#[test]
fn semantics_62_a_login_whose_account_is_in_doubt_is_refused_and_other_bodies_pass() {
    let Some(gateway) = Recipe::new("login_form").start() else { return };
    let long = format!("username=eve&comment={}", "x".repeat(9_000));
    for doubtful in [
        form("guess", "username=ada&username=eve"),
        form("guess", "Username=eve"),
        form("guess", "username[]=eve"),
        form("guess", "username=%zz"),
        form("guess", &long),
        posted("guess").json(r#"{"username":"ada","USERNAME":"eve"}"#),
        posted("guess").json(r#"{"username":["eve"]}"#),
        posted("guess").json(r#"{"username":"eve""#),
        posted("guess").header("content-type", "text/plain").body("username=eve"),
        posted("guess").body("username=eve"),
        form("guess", "username=eve").header("content-encoding", "gzip"),
    ] {
        gateway.ask(&doubtful).expect(400);
    }
    // A login without an account is what `missing` says.
    gateway.ask(&form("guess", "password=x")).expect(429);
    assert_eq!(gateway.upstream.seen().len(), 0, "none of them reached the password check");
    let upload = Ask::post("/upload").header("content-type", "text/plain").body(&long);
    gateway.ask(&upload).expect(200);
    gateway.ask(&Ask::get("/")).expect(200);
    assert_eq!(charged(&gateway, "eve"), 0);
}
