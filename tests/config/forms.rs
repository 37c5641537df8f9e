//! One form for values and for what they are compared with: what rules match and count, whatever the spelling on either
//! side (semantics 27).

use std::borrow::Cow;
use std::sync::Arc;

use futures_util::FutureExt;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config as Cases, RngSeed, TestRunner};
use tollgate::clock::{ManualClock, Timestamp};
use tollgate::config::{Config, Problem, SourceText, WarningKind};
use tollgate::descriptor::{Descriptor, Request};
use tollgate::engine::Engine;
use tollgate::rules::Rules;
use tollgate::store::{MemorySettings, Stores};

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

fn read(text: &str) -> Result<Config, String> {
    let source = SourceText { name: "a.toml".to_owned(), text: text.to_owned() };
    Config::read(&[source], &|_| None).map_err(|errors| errors.to_string())
}

fn rules(text: &str) -> Rules {
    let config = read(text).unwrap_or_else(|errors| panic!("{errors}"));
    Rules::compile(config.book).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn engine(text: &str) -> Engine {
    Engine::new(rules(text), Stores::memory(&[MemorySettings::default()]), Arc::new(ManualClock::at(NOW)))
}

fn decide(engine: &Engine, descriptor: Descriptor<'_>) -> tollgate::decision::Decision {
    let request = Request { domain: "edge", descriptors: [descriptor].into_iter().collect() };
    engine.decide(&request).now_or_never().expect("the memory store never waits")
}

fn passes(engine: &Engine, entries: &[(&str, &str)]) -> bool {
    decide(engine, Descriptor::of(entries.iter().copied())).allowed()
}

/// A domain with these settings, and a rule that denies what this test matches.
fn deny(settings: &str, test: &str) -> String {
    format!("{settings}\n[[rules]]\ndomain = 'edge'\nname = 'wall'\nmatch = {{ {test} }}\naction = 'deny'\n")
}

/// Whether the rule denies a descriptor of this entry.
fn denies(settings: &str, test: &str, entry: &str, value: &str) -> bool {
    !passes(&engine(&deny(settings, test)), &[(entry, value)])
}

const AUTHZ: &str = "[authz]\ndomain = 'edge'";

fn normalise(entry: &str, steps: &str) -> String {
    format!("[domains.edge]\nnormalise = {{ {entry} = {steps} }}")
}

#[test]
fn semantics_27_an_address_in_a_match_has_the_form_of_the_values() {
    for (literal, value) in [
        ("2001:DB8::7", "2001:db8::7"),
        ("2001:db8:0:0::7", "2001:DB8::7"),
        ("::ffff:192.0.2.9", "192.0.2.9"),
        ("192.0.2.9", "::ffff:192.0.2.9"),
        ("::ffff:10.0.0.0/104", "10.1.2.3"),
        ("64:ff9b::192.0.2.9", "192.0.2.9"),
        ("64:ff9b::10.0.0.0/104", "10.1.2.3"),
        ("2002:c000:209::/48", "192.0.2.9"),
        ("192.0.2.0/24", "2002:c000:209::1"),
        ("192.0.2.0/24", "64:ff9b::192.0.2.9"),
        ("192.0.2.0/24", "64:ff9b:1::192.0.2.9"),
        ("192.0.2.0/24", "::192.0.2.9"),
        ("192.0.2.0/24", "2001:0:4136:e378:8000:63bf:3fff:fdf6"),
        ("2001:DB8::/32", "2001:db8:1::1"),
        ("2001:0DB8:*", "2001:db8:1::1"),
        ("::FFFF:10.*", "10.1.2.3"),
        ("10.1.*", "10.1.2.3"),
        ("10.1*", "10.100.2.3"),
    ] {
        let test = format!("remote_address = '{literal}'");
        assert!(denies("", &test, "remote_address", value), "{literal} and {value}");
        let list = format!("remote_address = ['198.51.100.1', '{literal}']");
        assert!(denies("", &list, "remote_address", value), "a list with {literal}, and {value}");
        let not = format!("remote_address = {{ not = '{literal}' }}");
        assert!(!denies("", &not, "remote_address", value), "not {literal}, and {value}");
        assert!(denies("", &not, "remote_address", "203.0.113.1"), "not {literal}");
        let listed = deny("[domains.edge]\naddresses = ['peer']", &format!("peer = '{literal}'"));
        assert!(!passes(&engine(&listed), &[("peer", value)]), "peer {literal} and {value}");
    }
    assert!(!denies("", "remote_address = { not = '2001:DB8::7' }", "remote_address", "2001:db8::7"));
    assert!(denies("", "remote_address = { not = '2001:DB8::7' }", "remote_address", "2001:db8::8"));
}

#[test]
fn semantics_27_a_block_matches_a_block_inside_it() {
    for (literal, value, matches) in [
        ("10.0.0.0/8", "10.1.2.0/24", true),
        ("10.0.0.0/8", "10.1.2.3/32", true),
        ("10.0.0.0/8", "10.0.0.0/8", true),
        ("10.0.0.0/8", "8.0.0.0/6", false),
        ("10.1.*", "10.1.2.0/24", true),
        ("10.1.2.3", "10.1.2.3/32", true),
        ("2001:DB8::/32", "2001:db8:1::/64", true),
        ("2001:db8::/64", "2001:db8::/56", false),
        ("10.0.0.0/8", "::ffff:10.1.2.0/120", true),
    ] {
        let test = format!("masked_remote_address = '{literal}'");
        assert_eq!(denies("", &test, "masked_remote_address", value), matches, "{literal} and {value}");
    }
}

#[test]
fn semantics_27_a_literal_goes_through_the_normalisers_of_its_entry() {
    let lower = normalise("account", "['lowercase']");
    let name = normalise("account", "['nfkc', 'trim', 'lowercase']");
    let host = normalise("host", "['host']");
    let path = normalise("path", "['path']");
    let bearer = normalise("token", "['bearer']");
    for (settings, test, value) in [
        (lower.as_str(), "account = 'Mallory'", "mallory"),
        (&lower, "account = 'Mallory'", "MALLORY"),
        (&lower, "account = ['Eve', 'Mallory']", "mallory"),
        (&lower, "account = 'Mal*Y'", "mallory"),
        (&lower, "account = '*LORY'", "mallory"),
        (&lower, "account = { not = ['Ann', 'B*'] }", "mallory"),
        (&lower, "account = 'ΟΔΥΣ*'", "οδυσσευς"),
        (&lower, "account = 'ΟΔΥΣΣΕΥΣ'", "οδυσσευς"),
        (&name, "account = 'Vic5'", "\u{ff36}\u{ff49}\u{ff43}\u{ff15} "),
        (&name, "account = '\u{ff36}\u{ff49}\u{ff43}5'", "vic5"),
        (&name, "account = '\u{ff36}*'", "vic5"),
        (&name, "account = 'J\u{30c}'", "\u{1f0}"),
        (&name, "account = '\u{1f0}'", "J\u{30c}"),
        (&name, "account = 'ﬁ*'", "Fiona"),
        (&name, "account = '  bob'", "BOB\u{a0}"),
        (&host, "host = 'Admin.Example.com'", "admin.example.com:443"),
        (&host, "host = 'admin.example.com.:80'", "Admin.example.com."),
        (&host, "host = '*.Example.com.'", "a.example.com"),
        (&host, "host = 'API.*'", "api.example.com"),
        (&host, "host = '*.example.com:443'", "a.example.com"),
        (&host, "host = '[2001:DB8:0::7]:443'", "[2001:db8::7]"),
        (&host, "host = '2001:db8::7'", "[2001:DB8::7]:8443"),
        (&host, "host = '2001:db8::/32'", "[2001:DB8::7]:8443"),
        (&path, "path = '/legacy//admin'", "/legacy/admin"),
        (&path, "path = '/legacy//admin'", "/legacy/./%61dmin?x=1"),
        (&path, "path = '/legacy//adm*'", "/legacy/admin"),
        (&path, "path = '/a/../legacy/*'", "/legacy/admin"),
        (&path, "path = '/%61%2f*'", "/a%2fb"),
        (&path, "path = '/a%2*'", "/a%2fb"),
        (&path, "path = '/.*'", "/.well-known"),
        (&path, "path = '*//x/*.CSS'", "/a/x/b.CSS"),
        (&path, "path = '*.css?v=1'", "/a.css?v=2"),
        (&path, "path = '/login?next=1'", "/login"),
        (&path, "path = 'login'", "/login"),
        (&path, "path = '/login'", "http://x/login"),
        (&bearer, "token = 'Bearer t'", "bearer  t"),
        (&bearer, "token = 't'", "BEARER t"),
        (&bearer, "token = 'bearer t*'", "Bearer t1"),
        (&bearer, "token = 'Basic *'", "Basic dTpw"),
        ("", "method = 'post'", "POST"),
        ("", "method = ['get', 'Post']", "post"),
        ("", "method = 'p*'", "PUT"),
        (AUTHZ, "host = 'Admin.Example.com'", "admin.example.com"),
        (AUTHZ, "path = '/legacy//admin'", "/legacy/admin"),
        (AUTHZ, "path = '/legacy//admin/*'", "/legacy/admin/x"),
    ] {
        let (entry, _) = test.split_once(' ').expect("an entry and its test");
        assert!(denies(settings, test, entry, value), "{test} and {value:?}");
    }
    assert!(!denies("", "method = { not = 'post' }", "method", "POST"));
    assert!(!denies("", "account = 'Mallory'", "account", "mallory"), "without a normaliser it is another account");
    assert!(!denies(&bearer, "token = 'Basic *'", "token", "Basically"));
}

/// ext_authz has normalised host and path before the domain's own normalisers see them.
#[test]
fn semantics_27_the_domain_of_ext_authz_adds_its_normalisers_to_those_of_its_own() {
    let settings = format!("{AUTHZ}\n{}", normalise("path", "['lowercase']"));
    assert!(denies(&settings, "path = '/Legacy//ADMIN'", "path", "/legacy/admin"));
    let settings = format!("{AUTHZ}\n{}", normalise("path", "['path']"));
    let printed = read(&deny(&settings, "path = '/a'")).expect("good").effective();
    assert!(printed.contains("normalise:\n      path:\n      - path\n      host:\n      - host\n"), "{printed}");
}

/// ext_authz normalises host and path also where a route names another domain, whose literals are compared as written.
#[test]
fn semantics_27_a_literal_that_ext_authz_never_sends_to_another_domain_causes_a_warning() {
    let warnings = |text: &str| -> Vec<String> {
        let others = "[[rules]]\ndomain = 'web'\nname = 'a'\naction = 'allow'\n";
        let config = read(&format!("[authz]\ndomain = 'web'\n{text}\n{others}")).expect("good");
        let of_form = |warning: &&Problem| warning.warning == Some(WarningKind::ForeignForm);
        config.warnings.iter().filter(of_form).map(ToString::to_string).collect()
    };
    assert_eq!(
        warnings(&deny("", "path = '/legacy//admin'")),
        ["a.toml:7: rules[0].match.path is \"/legacy//admin\", which ext_authz requests never have: theirs is \
             \"/legacy/admin\"; write that, or set domains.edge.normalise.path = [\"path\"]"]
    );
    assert_eq!(warnings(&deny("", "host = { not = ['Example.com', 'a.b'] }")).len(), 1);
    assert_eq!(warnings(&deny("", "path = '/login?*'")).len(), 1);
    assert_eq!(warnings(&deny("", "path = ['/login', '/api/*'], host = 'a.b'")), [""; 0]);
    assert_eq!(warnings(&deny(&normalise("path", "['path']"), "path = '/legacy//admin'")), [""; 0]);
    let alone = read(&deny("", "path = '/login?*'")).expect("good").warnings;
    let kinds: Vec<_> = alone.iter().map(|warning| warning.warning).collect();
    assert_eq!(kinds, [Some(WarningKind::NotNormalised)], "without [authz]");
}

#[test]
fn semantics_27_the_part_of_a_limiter_name_that_an_entry_fills_has_the_form_of_the_entry() {
    let tiers = |settings: &str, reference: &str, names: &[&str]| {
        let limiter = |name: &&str| {
            format!("[limiters.{name}]\nalgorithm = 'fixed_window'\nlimit = {}\nwindow = '1h'\n", name.len())
        };
        let limiters: String = names.iter().map(limiter).collect();
        let apply = format!("[{{ limiter = '{reference}', otherwise = 'rest', key = ['account'] }}]");
        format!(
            "{settings}\n[limiters.rest]\nalgorithm = 'fixed_window'\nlimit = 1\nwindow = '1h'\n{limiters}\
             [[rules]]\ndomain = 'edge'\nname = 'quota'\napply = {apply}\n"
        )
    };
    let admitted = |text: &str, entries: &[(&str, &str)]| {
        let engine = engine(text);
        (0..20).take_while(|_| passes(&engine, entries)).count()
    };
    let plan = normalise("plan", "['lowercase']");
    let pro = tiers(&plan, "api_{plan}", &["api_Pro", "api_basic"]);
    for spelling in ["pro", "Pro", "PRO"] {
        assert_eq!(admitted(&pro, &[("account", "a"), ("plan", spelling)]), 7, "{spelling}");
    }
    assert_eq!(admitted(&pro, &[("account", "a"), ("plan", "basic")]), 9);
    assert_eq!(admitted(&pro, &[("account", "a"), ("plan", "gold")]), 1);
    let two = tiers(&plan, "{plan}_{region}", &["Pro_EU", "pro_us"]);
    assert_eq!(admitted(&two, &[("account", "a"), ("plan", "PRO"), ("region", "EU")]), 6);
    assert_eq!(admitted(&two, &[("account", "a"), ("plan", "PRO"), ("region", "eu")]), 1, "region has any text");
    let alone = tiers(&plan, "{plan}", &["Pro"]);
    assert_eq!(admitted(&alone, &[("account", "a"), ("plan", "pro")]), 3);

    let hidden = read(&tiers(&plan, "api_{plan}", &["api_Pro", "api_pro"])).expect_err("one is never selected");
    assert!(
        hidden.contains(
            "a.toml:18: rules[0].apply[0].limiter is \"api_{plan}\", but never selects \"api_Pro\": plan \"Pro\" is \
             normalised to \"pro\", which selects \"api_pro\"; rename one of them"
        ),
        "{hidden}"
    );
    let named = tiers(&plan, "api_{plan}", &["api_Pro", "api_pro"])
        + "[[rules]]\ndomain = 'edge'\nname = 'b'\napply = [{ limiter = 'api_Pro' }]\n";
    assert_eq!(read(&named).err(), None, "a rule names it");

    let matched = tiers(&plan, "api_{plan}", &["api_Pro"]).replace(", otherwise = 'rest'", "")
        + "match = { plan = ['PRO', 'Gold'] }\n";
    let missing = read(&matched).expect_err("gold has no limiter");
    assert!(missing.contains("normalised to \"gold\", and no limiter is named \"api_gold\""), "{missing}");
    assert!(!missing.contains("PRO"), "{missing}");
}

#[test]
fn semantics_27_a_literal_that_no_value_has_is_an_error_with_both_forms_and_the_remedy() {
    let refused = |settings: &str, test: &str| read(&deny(settings, test)).expect_err(test);
    let path = normalise("path", "['path']");
    assert_eq!(
        refused(&path, "path = '/login?*'"),
        "a.toml:6: rules[0].match.path is \"/login?*\", which no value matches: \"path\" removes the query, the \
         fragment, parameters of segments and dot segments, so that \"/login?\" is \"/login\"; write a pattern of the \
         path alone"
    );
    assert_eq!(
        refused(AUTHZ, "path = ['/a', '/login?*']"),
        "a.toml:6: rules[0].match.path[1] is \"/login?*\", which no value matches: \"path\" removes the query, the \
         fragment, parameters of segments and dot segments, so that \"/login?\" is \"/login\"; write a pattern of the \
         path alone"
    );
    assert_eq!(
        refused("", "remote_address = { not = '64:ff9b::/96' }"),
        "a.toml:5: rules[0].match.remote_address.not is \"64:ff9b::/96\", which no value matches: its addresses are \
         counted as the IPv4 addresses in them, so that \"64:ff9b::/96\" is \"0.0.0.0/0\"; write the block of these"
    );
    let host = normalise("host", "['host']");
    let bearer = normalise("token", "['bearer']");
    let trim = normalise("account", "['trim']");
    for (settings, test) in [
        (path.as_str(), "path = '/a;*'"),
        (&path, "path = '/a/*/../b'"),
        (&path, "path = '*?x=1'"),
        (&path, "path = '/a#*'"),
        (&host, "host = 'example.com:*'"),
        (&host, "host = '*:443'"),
        (&host, "host = 'https://example.com'"),
        (&host, "host = 'https://*'"),
        (&host, "host = 'example.com/*'"),
        (AUTHZ, "host = 'example.com:*'"),
        (&bearer, "token = 'Bearer *'"),
        (&trim, "account = ' *'"),
        ("", "remote_address = '2002::/16'"),
        ("", "remote_address = '2001::/32'"),
        ("", "remote_address = 'host-*'"),
        ("", "remote_address = '2001:db8::*'"),
        ("", "masked_remote_address = 'ten'"),
    ] {
        let text = refused(settings, test);
        assert!(text.contains("which no value matches") || text.contains("expected an address"), "{text}");
        let entry = test.split(' ').next().expect("an entry");
        assert!(text.starts_with("a.toml:") && text.contains(&format!("rules[0].match.{entry}")), "{text}");
    }
}

#[test]
fn explain_shows_a_literal_in_both_forms() {
    let settings = normalise("account", "['lowercase']");
    let explained = |test: &str, account: &str| {
        rules(&deny(&settings, test)).explain_in_words("edge", &Descriptor::of([("account", account)]))
    };
    let text = explained("account = 'Mallory'", "MALLORY");
    assert!(text.contains("  account = \"mallory\", normalised from \"MALLORY\"\n"), "{text}");
    assert!(text.contains("rule wall matches\n  account passes \"mallory\", normalised from \"Mallory\"\n"), "{text}");
    let text = explained("account = 'Mallory'", "bob");
    assert!(text.contains("account is \"bob\", expected \"mallory\", normalised from \"Mallory\"\n"), "{text}");
    let text = explained("account = 'mallory', plan = { not = '*' }", "Mallory");
    assert!(text.contains("rule wall matches\n  denies"), "{text}");
    let absent = rules(&deny(&settings, "account = 'mallory', plan = { not = '*' }"));
    let text = absent.explain_in_words("edge", &Descriptor::of([("account", "mallory"), ("plan", "pro")]));
    assert!(text.contains("plan is \"pro\", expected { not = \"*\" }, or no value\n"), "{text}");
}

#[test]
fn semantics_07_an_entry_can_be_required_to_be_absent() {
    for test in ["account = { not = '*' }", "account = { not = ['*', 'bob'] }", "account = ['root', { not = '*' }]"] {
        let engine = engine(&deny("", test));
        assert!(!passes(&engine, &[("path", "/")]), "{test}");
        assert!(!passes(&engine, &[]), "{test}");
        assert!(passes(&engine, &[("path", "/"), ("account", "bob")]), "{test}");
        assert!(passes(&engine, &[("account", "")]), "an empty value is a value");
    }
    let both = engine(&deny("", "path = '/login', account = { not = '*' }"));
    assert!(!passes(&both, &[("path", "/login")]));
    assert!(passes(&both, &[("path", "/login"), ("account", "bob")]) && passes(&both, &[("path", "/other")]));
    let other = engine(&deny("", "account = { not = 'bob' }"));
    assert!(passes(&other, &[("path", "/")]), "any other test needs the entry");
}

#[test]
fn semantics_27_a_list_matches_if_any_value_does_and_is_counted_as_all_of_them() {
    let roles = |roles: &[&'static str]| {
        let mut descriptor = Descriptor::of([("path", "/")]);
        descriptor.push_list("roles", roles.iter().map(|role| Cow::Borrowed(*role)).collect());
        descriptor
    };
    let settings = normalise("roles", "['lowercase']");
    for (test, given, denied) in [
        ("roles = 'Admin'", &["user", "ADMIN"][..], true),
        ("roles = 'adm*'", &["user", "ADMIN"], true),
        ("roles = ['root', 'user']", &["user", "ADMIN"], true),
        ("roles = 'root'", &["user", "ADMIN"], false),
        ("roles = 'admin,user'", &["user", "ADMIN"], false),
        ("roles = { not = 'admin' }", &["user", "ADMIN"], false),
        ("roles = { not = 'root' }", &["user", "ADMIN"], true),
        ("roles = '*'", &["user", "ADMIN"], true),
        ("roles = { not = '*' }", &["user", "ADMIN"], false),
    ] {
        let engine = engine(&deny(&settings, test));
        assert_eq!(decide(&engine, roles(given)).allowed(), !denied, "{test} and {given:?}");
    }
    let limiter = "[limiters.one]\nalgorithm = 'fixed_window'\nlimit = 1\nwindow = '1h'\n";
    let rule = "[[rules]]\ndomain = 'edge'\nname = 'a'\napply = [{ limiter = 'one', key = ['roles'] }]\n";
    let engine = engine(&format!("{settings}\n{limiter}{rule}"));
    assert!(decide(&engine, roles(&["user", "Admin"])).allowed());
    for same in [&["admin", "user"][..], &["User", "admin", "ADMIN"]] {
        assert!(!decide(&engine, roles(same)).allowed(), "{same:?}");
    }
    assert!(!passes(&engine, &[("roles", "admin,user")]), "`tollgate key` finds the counter by this text");
    assert!(decide(&engine, roles(&["admin"])).allowed());
}

#[test]
fn metadata_can_be_written_with_a_list_of_keys() {
    use tollgate::settings::RequestPart;
    let source = |metadata: &str| read(&format!("[authz.entries]\nplan = {{ metadata = {metadata} }}\n"));
    let config = source("{ namespace = 'jwt', path = ['payload', 'https://x.example/plan'] }").expect("good");
    let path = ["payload", "https://x.example/plan"].map(str::to_owned).to_vec();
    let expected = RequestPart::Metadata { namespace: "jwt".to_owned(), path };
    assert_eq!(config.server.authz.entries[0].1.from, expected);
    let printed = config.effective();
    let again = Config::read(&[SourceText { name: "a.yaml".to_owned(), text: printed }], &|_| None).expect("printed");
    assert_eq!(again.server.authz.entries[0].1.from, expected);
    let short = source("'jwt:payload.plan'").expect("good").server.authz.entries[0].1.from.clone();
    assert_eq!(
        source("{ namespace = 'jwt', path = ['payload', 'plan'] }").expect("good").server.authz.entries[0].1.from,
        short
    );
    for (written, expected) in [
        ("{ namespace = 'jwt', path = [] }", "expected at least one key"),
        ("{ namespace = '', path = ['a'] }", "expected the namespace of a filter"),
        ("{ namespace = 'jwt', path = ['a', ''] }", "expected a key"),
        ("{ namespace = 'jwt' }", "authz.entries.plan.metadata.path is missing"),
        ("{ namespace = 'jwt', path = ['a'], key = 'b' }", "metadata.key is not a known key"),
        ("5", "expected \"namespace:path.to.value\" or { namespace = ..., path = [...] }"),
    ] {
        let errors = source(written).expect_err(written);
        assert!(errors.contains(expected), "{errors}");
    }
}

/// 2000 cases, always the same.
fn always<S: Strategy>(strategy: S, holds: impl Fn(S::Value)) {
    let cases = Cases { cases: 2_000, rng_seed: RngSeed::Fixed(0x0f0f), failure_persistence: None, ..Cases::default() };
    let ran = TestRunner::new(cases).run(&strategy, |value| {
        holds(value);
        Ok(())
    });
    ran.unwrap_or_else(|error| panic!("{error}"));
}

/// Settings, an entry, and two spellings of one value.
fn spellings() -> impl Strategy<Value = (String, &'static str, String, String)> {
    let of = |entry: &'static str,
              steps: &'static str,
              values: BoxedStrategy<String>,
              spell: fn(&str) -> BoxedStrategy<String>| {
        let settings = match (entry, steps) {
            (_, "") => String::new(),
            (_, "authz") => AUTHZ.to_owned(),
            (entry, steps) => normalise(entry, steps),
        };
        values.prop_flat_map(move |value| (Just(settings.clone()), Just(entry), spell(&value), spell(&value))).boxed()
    };
    prop_oneof![
        of("account", "['nfkc', 'trim', 'lowercase']", "[a-zà-öα-ωа-я0-9@.ǰ]{1,12}".boxed(), spelled_account),
        of("account", "['lowercase', 'trim', 'nfkc']", "[a-zà-öα-ω0-9@.]{1,12}".boxed(), spelled_account),
        of("host", "['host']", "[a-z0-9-]{1,9}(\\.[a-z0-9-]{1,9}){0,3}".boxed(), spelled_host),
        of("host", "authz", "[a-z0-9-]{1,9}(\\.[a-z0-9-]{1,9}){0,3}".boxed(), spelled_host),
        of("path", "['path']", "(/[a-z0-9._~-]{0,1}[a-z0-9]{1,6}){1,4}/?".boxed(), spelled_path),
        of("path", "authz", "(/[a-z0-9._~-]{0,1}[a-z0-9]{1,6}){1,4}/?".boxed(), spelled_path),
        of("method", "", "[A-Z]{3,7}".boxed(), cased),
        of("token", "['bearer']", "[a-zA-Z0-9._~+/-]{1,20}=?".boxed(), spelled_token),
        of(
            "remote_address",
            "",
            any::<u32>().prop_map(|bits| std::net::Ipv4Addr::from(bits | 1 << 24).to_string()).boxed(),
            spelled_ipv4
        ),
        of(
            "remote_address",
            "",
            any::<[u16; 7]>()
                .prop_map(|groups| {
                    let [b, c, d, e, f, g, h] = groups.map(|group| if group % 3 == 0 { 0 } else { group });
                    std::net::Ipv6Addr::new(0x2a00, b, c, d, e, f, g, h).to_string()
                })
                .boxed(),
            spelled_ipv6
        ),
    ]
}

/// Upper and lower case at random, where that is the same letter.
fn cased(value: &str) -> BoxedStrategy<String> {
    let value = value.to_owned();
    proptest::collection::vec(any::<bool>(), value.chars().count())
        .prop_map(move |upper| {
            let spelled = value.chars().zip(upper).map(|(c, upper)| {
                let other: String =
                    if c.is_lowercase() { c.to_uppercase().collect() } else { c.to_lowercase().collect() };
                let back: String = if c.is_lowercase() { other.to_lowercase() } else { other.to_uppercase() };
                if upper && back == c.to_string() { other } else { c.to_string() }
            });
            spelled.collect()
        })
        .boxed()
}

fn spelled_account(value: &str) -> BoxedStrategy<String> {
    let space = select(vec!["", " ", "\t", "\u{a0}", "\u{3000} "]);
    (cased(value), any::<u64>(), space.clone(), space)
        .prop_map(|(value, wide, before, after)| {
            let widened = value.chars().enumerate().map(|(at, c)| match c {
                '!'..='~' if wide >> (at % 64) & 1 == 1 => char::from_u32(c as u32 + 0xfee0).expect("full width"),
                c => c,
            });
            format!("{before}{}{after}", widened.collect::<String>())
        })
        .boxed()
}

fn spelled_host(value: &str) -> BoxedStrategy<String> {
    (cased(value), select(vec!["", "."]), select(vec!["", ":443", ":8080", ":"]))
        .prop_map(|(value, dot, port)| format!("{value}{dot}{port}"))
        .boxed()
}

fn spelled_path(value: &str) -> BoxedStrategy<String> {
    let value = value.to_owned();
    let end = select(vec!["", "?a=/b", "#c", "?", ";d=1"]);
    let slash = select(vec!["/", "//", "/./", "/x/../", "///", "\\"]);
    (proptest::collection::vec((any::<bool>(), any::<bool>()), value.len()), slash, end)
        .prop_map(move |(escaped, slash, end)| {
            let mut spelled = String::new();
            for (at, (c, (escape, lower))) in value.chars().zip(escaped).enumerate() {
                match c {
                    '/' if at > 0 && escape => spelled.push_str(slash),
                    '/' => spelled.push('/'),
                    c if escape && lower => spelled.push_str(&format!("%{:02x}", u32::from(c))),
                    c if escape => spelled.push_str(&format!("%{:02X}", u32::from(c))),
                    c => spelled.push(c),
                }
            }
            spelled + end
        })
        .boxed()
}

fn spelled_token(value: &str) -> BoxedStrategy<String> {
    let value = value.to_owned();
    let scheme = select(vec!["", "Bearer ", "bearer  ", "BEARER\t", " Bearer "]);
    (scheme, select(vec!["", " "])).prop_map(move |(scheme, end)| format!("{scheme}{value}{end}")).boxed()
}

fn spelled_ipv4(value: &str) -> BoxedStrategy<String> {
    let address: std::net::Ipv4Addr = value.parse().expect("an address");
    let [a, b, c, d] = address.octets();
    let mut forms = vec![value.to_owned(), format!("::ffff:{value}"), format!("::FFFF:{a:02X}{b:02x}:{c:x}{d:02x}")];
    if a != 127 {
        forms.extend([format!("64:ff9b::{value}"), format!("64:FF9B:1::{value}"), format!("::{value}")]);
        forms.push(format!("64:ff9b:1:{a:x}{b:02x}:{c:x}:{d:x}00::"));
        let private =
            address.is_private() || address.is_link_local() || address.is_multicast() || address.is_broadcast();
        if !private {
            forms.push(format!("2002:{a:x}{b:02x}:{c:x}{d:02x}::9"));
            let [e, f, g, h] = address.octets().map(|octet| !octet);
            forms.push(format!("2001:0:1:2:3:4:{e:x}{f:02x}:{g:x}{h:02x}"));
        }
    }
    // `64:ff9b:1::` cannot tell an address that ends in zero from the longer forms of its prefix.
    select(forms)
        .prop_filter("unambiguous", move |form| d != 0 || !form.to_lowercase().starts_with("64:ff9b:1:"))
        .boxed()
}

fn spelled_ipv6(value: &str) -> BoxedStrategy<String> {
    let address: std::net::Ipv6Addr = value.parse().expect("an address");
    let groups = address.segments();
    let long = groups.map(|group| format!("{group:04x}")).join(":");
    let short = groups.map(|group| format!("{group:x}")).join(":");
    select(vec![value.to_owned(), long.clone(), long.to_uppercase(), short, value.to_uppercase()]).boxed()
}

#[test]
fn spellings_of_one_value_meet_one_counter_and_a_literal_in_any_spelling_matches_them() {
    always(spellings(), |(settings, entry, one, other)| {
        let limiter = "[limiters.one]\nalgorithm = 'fixed_window'\nlimit = 1\nwindow = '1h'\n";
        let apply =
            format!("[[rules]]\ndomain = 'edge'\nname = 'a'\napply = [{{ limiter = 'one', key = ['{entry}'] }}]\n");
        let counted = engine(&format!("{settings}\n{limiter}{apply}"));
        assert!(passes(&counted, &[(entry, &one)]));
        assert!(!passes(&counted, &[(entry, &other)]), "{entry} {one:?} and {other:?} have two counters");

        // TOML's escapes are those of JSON, but for a few that no spelling has.
        let quoted = serde_json::to_string(&one).expect("text");
        for (test, denied) in [
            (format!("{entry} = {quoted}"), true),
            (format!("{entry} = ['1.2.3.4', {quoted}]"), true),
            (format!("{entry} = {{ not = {quoted} }}"), false),
            (format!("{entry} = {{ not = {{ not = {quoted} }} }}"), true),
        ] {
            assert_eq!(denies(&settings, &test, entry, &other), denied, "{test} and {other:?}");
        }

        let name = serde_json::to_string(&format!("tier_{one}")).expect("text");
        let tier = format!(
            "{settings}\n[limiters.{name}]\nalgorithm = 'fixed_window'\nlimit = 1\nwindow = '1h'\n\
             [[rules]]\ndomain = 'edge'\nname = 'a'\napply = [{{ limiter = 'tier_{{{entry}}}' }}]\n"
        );
        match read(&tier) {
            Ok(_) => {
                let tier = engine(&tier);
                assert!(passes(&tier, &[(entry, &other)]), "the limiter of {one:?} for {other:?}");
                assert!(!passes(&tier, &[(entry, &other)]));
            }
            // Names of limiters have no odd characters.
            Err(errors) => assert!(errors.contains("limiters."), "{errors}"),
        }
    });
}
