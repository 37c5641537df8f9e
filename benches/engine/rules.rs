//! Ten thousand mixed rules against ten, with the same number of matches.

use std::hint::black_box;

use tollgate::descriptor::{Descriptor, Request};
use tollgate::engine::Engine;
use tollgate::rules::{Matcher, Rule};
use tollgate::store::MemorySettings;

use crate::books::{apply, bucket, decide, engine, rule};
use crate::timing::{Draws, compare, line};

/// Requests of one turn.
const REQUESTS: usize = 1 << 19;
const FEW: usize = 10;
const MANY: usize = 10_000;

/// Prints the table.
pub fn report() {
    println!("rules: exact, prefix, CIDR and list rules in equal parts and one for all; every request matches two");
    let (few, many) = (book(FEW), book(MANY));
    let mut draws = Draws(11);
    let asked = std::cell::RefCell::new(Vec::new());
    let costs = compare(
        REQUESTS,
        &mut || *asked.borrow_mut() = (0..REQUESTS).map(|_| draws.below(MANY)).collect(),
        &mut [&mut || ask(&few, FEW, &asked.borrow()), &mut || ask(&many, MANY, &asked.borrow())],
    );
    let [few, many] = costs[..] else { unreachable!("two contenders") };
    line("10 rules", &format!("{few:.0} ns"), "");
    line("10 000 rules", &format!("{many:.0} ns = {:.2} x", many / few), "goal 1.5 x");
}

/// Rules of four kinds in turn, all of which apply one limiter to one entry, and one that every request matches.
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
    format!("10.{}.{}.0", number >> 8, number & 255)
}

fn tenants(number: usize) -> [String; 3] {
    [0, 1, 2].map(|member| format!("tenant-{number}-{member}"))
}

/// Asks for each of `rules` in turn at random. What does not concern it stays out of every other rule.
fn ask(engine: &Engine, rules: usize, asked: &[usize]) {
    let mut text = String::new();
    let [mut path, mut address, mut tenant] = [const { String::new() }; 3];
    for &asked in asked {
        use std::fmt::Write;
        let number = asked % (rules - 1);
        for text in [&mut path, &mut address, &mut tenant, &mut text] {
            text.clear();
        }
        // The same length and the same work whatever the kind.
        let kind = number % 4;
        let written = match kind {
            0 => write!(path, "/exact/{number}"),
            1 => write!(path, "/prefix/{number:05}/x"),
            _ => write!(path, "/other/{number}"),
        };
        let written = written.and_then(|()| match kind {
            2 => write!(address, "10.{}.{}.7", number >> 8, number & 255),
            _ => write!(address, "192.168.{}.7", number & 255),
        });
        let written = written.and_then(|()| match kind {
            3 => write!(tenant, "tenant-{number}-{}", asked % 3),
            _ => write!(tenant, "nobody-{number}"),
        });
        let written = written.and_then(|()| write!(text, "acct-{}", asked % 1_000));
        written.expect("a String takes it");
        let entries = [("path", &*path), ("remote_address", &*address), ("tenant", &*tenant), ("account", &*text)];
        let request = Request { domain: "edge", descriptors: [Descriptor::of(entries)].into_iter().collect() };
        let decision = decide(engine, &request);
        assert_eq!(black_box(&decision).planned().links.len(), 2);
    }
}
