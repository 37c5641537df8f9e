//! Decisions per second of two limiters over a million accounts and a million clients.

use std::hint::black_box;
use std::io::Write;

use tollgate::descriptor::Request;
use tollgate::engine::Engine;

use crate::baseline::Bare;
use crate::books::{composite, decide};
use crate::instructions::counted;
use crate::timing::{Draws, compare, line};

/// Values of each of the two keys.
const KEYS: usize = 1_000_000;
/// Requests of a turn.
const REQUESTS: usize = 1 << 20;

/// How requests are distributed over the keys.
#[derive(Clone, Copy)]
enum Traffic {
    Uniform,
    /// Half of the requests on one key in a hundred.
    Skewed,
}

/// One login: its account and its client, as text.
struct Login {
    text: [u8; 32],
    account: u8,
    client: u8,
}

impl Login {
    fn of(account: usize, client: usize) -> Self {
        let mut text = [0; 32];
        let mut rest = &mut text[..];
        write!(rest, "acct-{account:07}").expect("it fits");
        let middle = 32 - rest.len();
        write!(rest, "client-{client:07}").expect("it fits");
        let end = 32 - rest.len();
        Self { text, account: middle as u8, client: end as u8 }
    }

    fn account(&self) -> &str {
        std::str::from_utf8(&self.text[..self.account.into()]).expect("ascii")
    }

    fn client(&self) -> &str {
        std::str::from_utf8(&self.text[self.account.into()..self.client.into()]).expect("ascii")
    }
}

impl Traffic {
    fn logins(self, draws: &mut Draws) -> Vec<Login> {
        // Both keys of a login are hot or neither is: a busy client uses its own account.
        (0..REQUESTS)
            .map(|_| match self {
                Traffic::Skewed if draws.below(2) == 0 => Login::of(draws.below(KEYS / 100), draws.below(KEYS / 100)),
                Traffic::Uniform | Traffic::Skewed => Login::of(draws.below(KEYS), draws.below(KEYS)),
            })
            .collect()
    }
}

/// Prints the table.
pub fn report() {
    println!("decisions: two token buckets, 1 M accounts and 1 M clients, one thread");
    let (engine, bare) = (composite(), Bare::new());
    fill(&engine, &bare);
    let [uniform, skewed] = [Traffic::Uniform, Traffic::Skewed].map(|traffic| measure(&engine, &bare, traffic));
    let each = |nanoseconds: f64| format!("{nanoseconds:.0} ns");
    line("naming and hashing alone, two counters", &each(uniform.naming), "");
    line("bare: naming, hashing, two updates; uniform", &each(uniform.bare), "");
    line(
        "engine; uniform",
        &format!("{} = {:.2} x bare", each(uniform.engine), uniform.engine / uniform.bare),
        "goal 1.2 x",
    );
    line("bare; half of the traffic on 1 % of the keys", &each(skewed.bare), "");
    line(
        "engine; half of the traffic on 1 % of the keys",
        &format!("{} = {:.2} M/s", each(skewed.engine), 1e3 / skewed.engine),
        "goal 4 M/s",
    );
}

/// Runs the engine alone, for a profiler.
pub fn profile(rounds: usize) {
    let (engine, bare) = (composite(), Bare::new());
    fill(&engine, &bare);
    let mut draws = Draws(7);
    for _ in 0..rounds {
        ask(&engine, &Traffic::Skewed.logins(&mut draws));
    }
}

/// Makes `requests` decisions on few counters, or only the unavoidable part of them: this counts instructions, not
/// cache misses.
pub fn count(bare_only: bool, requests: usize) {
    let (engine, bare) = (composite(), Bare::new());
    let mut draws = Draws(7);
    let logins: Vec<Login> = (0..1_000).map(|_| Login::of(draws.below(KEYS), draws.below(KEYS))).collect();
    let turn = |number| match bare_only {
        true => update(&bare, &logins, number as u64),
        false => ask(&engine, &logins),
    };
    turn(0);
    counted(|| (1..=requests / logins.len()).for_each(turn));
}

struct Cost {
    naming: f64,
    bare: f64,
    engine: f64,
}

fn measure(engine: &Engine, bare: &Bare, traffic: Traffic) -> Cost {
    let mut draws = Draws(0x5eed);
    let logins = std::cell::RefCell::new(Vec::new());
    let mut now = 1;
    let costs = compare(
        REQUESTS,
        &mut || *logins.borrow_mut() = traffic.logins(&mut draws),
        &mut [
            &mut || {
                for login in logins.borrow().iter() {
                    black_box(bare.names(login.account(), login.client()));
                }
            },
            &mut || {
                now += 1;
                update(bare, &logins.borrow(), now);
            },
            &mut || ask(engine, &logins.borrow()),
        ],
    );
    Cost { naming: costs[0], bare: costs[1], engine: costs[2] }
}

fn ask(engine: &Engine, logins: &[Login]) {
    for login in logins {
        let entries = [("path", "/login"), ("account", login.account()), ("client", login.client())];
        let decision = decide(engine, &Request::of("edge", entries));
        assert!(black_box(&decision).allowed());
    }
}

fn update(bare: &Bare, logins: &[Login], now: u64) {
    for login in logins {
        for name in bare.names(login.account(), login.client()) {
            black_box(bare.update(name, now));
        }
    }
}

/// Inserts every key before anything is measured.
fn fill(engine: &Engine, bare: &Bare) {
    for key in 0..KEYS {
        let login = Login::of(key, key);
        ask(engine, std::slice::from_ref(&login));
        for name in bare.names(login.account(), login.client()) {
            bare.update(name, 1);
        }
    }
}
