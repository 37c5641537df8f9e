//! Ten thousand mixed rules against ten, with the same number of matches.

use std::cell::RefCell;
use std::hint::black_box;

use tollgate::decision::Decision;
use tollgate::descriptor::Request;
use tollgate::engine::Engine;
use tollgate::rules::{Matcher, Rule};
use tollgate::store::MemorySettings;

use crate::books::{apply, bucket, decide, engine, rule};
use crate::instructions::counted;
use crate::timing::{Draws, compare, line};

/// Requests of a turn.
const REQUESTS: usize = 1 << 17;
/// Numbers of rules in the two books.
pub const FEW: usize = 10;
pub const MANY: usize = 10_000;

/// Prints the table.
pub fn report() {
    println!("rules: exact, prefix, CIDR and list rules in equal parts and one for all; every request matches two");
    let (few, many) = (book(FEW), book(MANY));
    let mut draws = Draws(11);
    let asked = RefCell::new((Vec::new(), Vec::new()));
    let costs = compare(
        REQUESTS,
        &mut || {
            let mut of = |rules: usize| (0..REQUESTS).map(|_| Question::of(draws.below(rules - 1))).collect();
            *asked.borrow_mut() = (of(FEW), of(MANY));
        },
        &mut [&mut || ask(&few, &asked.borrow().0), &mut || ask(&many, &asked.borrow().1)],
    );
    let [few, many] = costs[..] else { unreachable!("two contenders") };
    line("10 rules", &format!("{few:.0} ns"), "");
    line("10 000 rules", &format!("{many:.0} ns = {:.2} x", many / few), "goal 1.5 x");
}

/// Makes `requests` decisions by a book of `rules` rules.
pub fn count(rules: usize, requests: usize) {
    let engine = book(rules);
    let mut draws = Draws(11);
    let asked: Vec<Question> = (0..1_000).map(|_| Question::of(draws.below(rules - 1))).collect();
    ask(&engine, &asked);
    counted(|| (0..requests / asked.len()).for_each(|_| ask(&engine, &asked)));
}

/// A book of many rules and the requests for it.
pub struct Many {
    engine: Engine,
    asked: Vec<Question>,
}

impl Many {
    pub fn of(rules: usize) -> Self {
        let mut draws = Draws(11);
        // The last rule matches every request.
        let asked = (0..10_000).map(|_| Question::of(draws.below(rules.max(2) - 1))).collect();
        Self { engine: book(rules), asked }
    }

    pub fn ask(&self, requests: usize) {
        for question in self.asked.iter().cycle().take(requests) {
            black_box(question.decide(&self.engine));
        }
    }
}

/// Rules of four kinds in turn, each of which applies one limiter to one entry, and one rule that every request
/// matches.
fn book(rules: usize) -> Engine {
    let of_kind = |number: usize| -> Rule {
        let matches = match number % 4 {
            0 => ("path", Matcher::parse(&format!("/exact/{number}"))),
            1 => ("path", Matcher::parse(&format!("/prefix/{number:05}/*"))),
            2 => ("remote_address", Matcher::parse(&format!("{}/24", block(number)))),
            _ => ("tenant", Matcher::AnyOf(tenants(number).iter().map(|name| Matcher::parse(name)).collect())),
        };
        let matches = vec![(matches.0.to_owned(), matches.1)];
        rule(&format!("rule {number}"), matches, vec![apply("one", "account")])
    };
    let rules = (0..rules - 1).map(of_kind).chain([rule("all", vec![], vec![apply("all", "account")])]);
    engine(vec![bucket("one"), bucket("all")], rules.collect(), MemorySettings::default())
}

fn block(number: usize) -> String {
    format!("{}.{}.{}.0", 10 + (number >> 16), number >> 8 & 255, number & 255)
}

fn tenants(number: usize) -> [String; 3] {
    [0, 1, 2].map(|member| format!("tenant-{number}-{member}"))
}

/// The entries that match one rule and no other.
struct Question {
    path: String,
    address: String,
    tenant: String,
    account: String,
}

impl Question {
    fn of(number: usize) -> Self {
        let kind = number % 4;
        Self {
            path: match kind {
                0 => format!("/exact/{number}"),
                1 => format!("/prefix/{number:05}/x"),
                _ => format!("/other/{number}"),
            },
            address: match kind {
                2 => format!("{}7", block(number).trim_end_matches("0")),
                _ => format!("192.168.{}.7", number & 255),
            },
            tenant: match kind {
                3 => format!("tenant-{number}-1"),
                _ => format!("nobody-{number}"),
            },
            account: format!("acct-{}", number % 1_000),
        }
    }
}

impl Question {
    fn decide(&self, engine: &Engine) -> Decision {
        let Self { path, address, tenant, account } = self;
        let entries = [("path", path), ("remote_address", address), ("tenant", tenant), ("account", account)];
        let entries = entries.map(|(key, value)| (key, value.as_str()));
        decide(engine, &Request::of("edge", entries))
    }
}

fn ask(engine: &Engine, questions: &[Question]) {
    for question in questions {
        assert_eq!(black_box(question.decide(engine)).planned().sources.len(), 2);
    }
}
