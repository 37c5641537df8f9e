//! The meaning of a configuration: samples, schema, variables, and directories.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tollgate::clock::{ManualClock, Timestamp};
use tollgate::config::{Config, Errors, SourceText, WarningKind, json_schema};
use tollgate::decision::Decision;
use tollgate::descriptor::{Descriptor, Hits, Request};
use tollgate::engine;
use tollgate::limiter::{Algorithm, Limiter, OnStoreError, Schedule};
use tollgate::rules::{Action, Charge, Matcher, Normaliser, RequestBounds, Rules};
use tollgate::settings::Listen;
use tollgate::store::StoreConfig;
use tollgate::store::{MemorySettings, Stores};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

/// Every sample, with its path and text.
fn samples() -> Vec<SourceText> {
    let mut samples: Vec<SourceText> = std::fs::read_dir(directory())
        .expect("the samples are there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml" || ending == "yaml"))
        .map(|path| SourceText {
            text: std::fs::read_to_string(&path).expect("readable"),
            name: path.file_name().expect("a file").to_string_lossy().into_owned(),
        })
        .collect();
    samples.sort_by(|a, b| a.name.cmp(&b.name));
    samples
}

fn sample(name: &str) -> Config {
    Config::load(Some(&directory().join(name))).unwrap_or_else(|errors| panic!("{errors}"))
}

fn read_with(name: &str, text: &str, variables: &dyn Fn(&str) -> Option<String>) -> Result<Config, Errors> {
    Config::read(&[SourceText { name: name.to_owned(), text: text.to_owned() }], variables)
}

fn read(text: &str) -> Config {
    read_with("a.toml", text, &|_| None).unwrap_or_else(|errors| panic!("{errors}"))
}

fn refused(text: &str) -> String {
    read_with("a.toml", text, &|_| None).expect_err("refused").to_string()
}

fn limiter<'a>(config: &'a Config, name: &str) -> &'a Limiter {
    config.book.limiters.iter().find(|limiter| limiter.name == name).expect(name)
}

/// Weakness R29: samples of the documentation do not work.
#[test]
fn every_sample_is_read_without_warnings_and_compiles() {
    let samples = samples();
    assert!(samples.len() >= 6, "only {} samples", samples.len());
    for source in samples {
        let config = Config::read(std::slice::from_ref(&source), &|_| None);
        let config = config.unwrap_or_else(|errors| panic!("{errors}"));
        assert!(config.warnings.is_empty(), "{}: {:?}", source.name, config.warnings);
        Rules::compile(config.book).unwrap_or_else(|errors| panic!("{}: {errors:?}", source.name));
    }
}

#[test]
fn toml_and_yaml_have_the_same_schema() {
    assert_eq!(sample("login.toml").effective(), sample("login.yaml").effective());
}

#[test]
fn a_printed_configuration_reads_as_the_same_configuration() {
    for source in samples() {
        let config = Config::read(std::slice::from_ref(&source), &|_| None);
        let effective = config.unwrap_or_else(|errors| panic!("{errors}")).effective();
        let again = read_with("effective.yaml", &effective, &|_| None);
        assert_eq!(again.unwrap_or_else(|errors| panic!("{errors}")).effective(), effective, "{}", source.name);
    }
}

#[test]
fn the_entries_that_a_domain_declares_are_printed() {
    let effective = |entries: &str| read(&format!("[domains.edge]\n{entries}\n")).effective();
    assert!(effective("entries = ['account', 'tier']").contains("    entries:\n    - account\n    - tier\n"));
    assert!(effective("entries = []").contains("    entries: []\n"), "declaring none is not the same as not declaring");
    assert!(effective("").contains("    addresses: []\nrules: []\n"), "{}", effective(""));
}

#[test]
fn the_login_sample_means_what_its_comments_say() {
    let config = sample("login.toml");
    let account = limiter(&config, "login_account");
    let quota = account.quota.as_ref().expect("a window");
    assert_eq!((quota.limit, quota.window), (5, Duration::from_secs(300)));
    assert!(matches!(quota.algorithm, Algorithm::SlidingWindow));
    assert_eq!(account.on_store_error, OnStoreError::Deny);
    assert_eq!(limiter(&config, "login_ip").on_store_error, OnStoreError::Local, "semantics 31");
    let [rule] = &config.book.rules[..] else { panic!("one rule") };
    assert_eq!(rule.matches[0], ("path".to_owned(), Matcher::parse("/login")));
    let Action::Apply(applies) = &rule.action else { panic!("limiters apply") };
    assert_eq!((applies[0].charge, applies[1].charge), (Charge::Own, Charge::Admitted));
    let domain = &config.book.domains[0];
    assert_eq!(
        domain.normalise[1],
        ("account".to_owned(), vec![Normaliser::Nfkc, Normaliser::Trim, Normaliser::Lowercase])
    );
    assert_eq!(config.server.authz.domain, "edge");
}

/// An engine with the rules of a sample, and its manual clock.
fn engine(name: &str) -> (engine::Engine, ManualClock) {
    engine_of(sample(name))
}

fn engine_of(config: Config) -> (engine::Engine, ManualClock) {
    let clock = ManualClock::at(Timestamp::from_secs(1_700_000_000));
    let stores = Stores::memory(&vec![MemorySettings::default(); config.stores.len()]);
    let rules = Rules::compile(config.book).unwrap_or_else(|errors| panic!("{errors:?}"));
    (engine::Engine::new(rules, stores, Arc::new(clock.clone())), clock)
}

/// Decides descriptors together.
fn decision<'a>(engine: &engine::Engine, domain: &'a str, descriptors: &[Descriptor<'a>]) -> Decision {
    let request = Request { domain, descriptors: descriptors.iter().cloned().collect() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.decide(&request))
}

/// The limiter that refuses a request, if one does.
fn decide<'a>(engine: &engine::Engine, domain: &'a str, hits: Hits, entries: &[(&'a str, &'a str)]) -> Option<String> {
    let decision = decision(engine, domain, &[Descriptor { hits, ..Descriptor::of(entries.iter().copied()) }]);
    let refusal = decision.refusal();
    refusal.map(|refusal| refusal.limiter.unwrap_or("no limiter").to_owned())
}

const ONE: Hits = Hits::Charge(1);

#[test]
fn the_login_sample_stops_an_account_and_an_address() {
    let (engine, _) = engine("login.toml");
    let login = |address: &str, account: &str| {
        let entries = [("path", "//login"), ("method", "POST"), ("remote_address", address), ("account", account)];
        decide(&engine, "edge", ONE, &entries)
    };
    for host in 0..5 {
        assert_eq!(login(&format!("192.0.2.{host}"), "bob"), None);
    }
    assert_eq!(login("192.0.2.9", " BOB"), Some("login_account".to_owned()));
    let tries: Vec<_> = (0..31).map(|number| login("198.51.100.1", &format!("user{number}"))).collect();
    assert_eq!(tries[29], None);
    assert_eq!(tries[30], Some("login_ip".to_owned()));
}

#[test]
fn the_tiers_sample_gives_each_tier_its_numbers() {
    let (engine, _) = engine("tiers.toml");
    let admitted = |account: &str, tier: &str| {
        let ask = |_: &u32| decide(&engine, "edge", ONE, &[("account", account), ("tier", tier)]).is_none();
        (0..200).take_while(ask).count()
    };
    assert_eq!(admitted("ann", "free"), 20);
    assert_eq!(admitted("eve", "Pro"), 100);
    assert_eq!(admitted("joe", "platinum"), 20, "an unknown tier is free");
    assert_eq!(admitted("ann", "pro"), 80, "an upgrade keeps what was used");
    assert!(decide(&engine, "edge", ONE, &[("account", "ann")]).is_some(), "an account without a tier is refused");
}

/// Weakness R13: a sliding window drops the slots that are configured with it.
#[test]
fn the_concurrency_sample_has_two_slots_and_charges_no_window_without_one() {
    let (engine, clock) = engine("concurrency.toml");
    let export = |account: &str| {
        let entries = [("path", "/export/7"), ("account", account), ("remote_address", "192.0.2.1")];
        decide(&engine, "edge", ONE, &entries)
    };
    assert_eq!((export("bob"), export("bob")), (None, None));
    for _ in 0..30 {
        assert_eq!(export("bob"), Some("exports".to_owned()));
    }
    assert_eq!(export("ann"), None);
    clock.advance(Duration::from_secs(301));
    assert_eq!(export("bob"), None, "the leases have expired, and the hour has room");
}

#[test]
fn the_tokens_sample_holds_first_and_charges_what_was_used() {
    let (engine, clock) = engine("tokens.toml");
    let of = |hits, phase| Descriptor { hits, ..Descriptor::of([("phase", phase), ("account", "bob")]) };
    let hold = || decision(&engine, "llm", &[of(Hits::Charge(8_000), "hold")]).allowed();
    let settle = |used| {
        decision(&engine, "llm", &[of(Hits::Refund(8_000), "settle"), of(Hits::Charge(used), "settle")]);
    };
    let passes = |count| (0..count).filter(|_| hold()).count();
    assert_eq!(passes(5), 2, "of twenty thousand");
    settle(3_000);
    settle(3_000);
    assert_eq!(passes(5), 1, "of fourteen thousand");
    settle(70_000);
    assert_eq!(passes(5), 0, "56000 are owed");
    clock.advance(Duration::from_secs(31 * 60));
    assert_eq!(passes(5), 0, "4333 are owed");
    clock.advance(Duration::from_secs(8 * 60));
    assert_eq!(passes(5), 1, "they have drained, and 8999 are left");
    assert!(decide(&engine, "llm", ONE, &[("phase", "hold")]).is_some(), "without an account");
}

/// The first configuration that a document shows.
fn shown_in(document: &str) -> engine::Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(document);
    let text = std::fs::read_to_string(path).expect("the document is there");
    let (_, block) = text.split_once("```toml\n").expect("it shows a configuration");
    let (block, _) = block.split_once("\n```").expect("the configuration ends");
    engine_of(read(block)).0
}

#[test]
fn one_address_locks_six_accounts_a_minute_with_the_first_rule_and_none_with_the_one_of_the_faq() {
    let login = |engine: &engine::Engine, address: &str, account: &str| {
        let entries = [("path", "/login"), ("method", "POST"), ("remote_address", address), ("account", account)];
        decide(engine, "edge", ONE, &entries)
    };
    for (document, locked) in [("getting-started.md", 6), ("faq.md", 0)] {
        let engine = shown_in(document);
        for account in 0..40 {
            for _ in 0..5 {
                login(&engine, "192.0.2.1", &format!("account{account}"));
            }
        }
        let owner = |account: &u8| login(&engine, &format!("198.51.100.{account}"), &format!("account{account}"));
        assert_eq!((0..40).filter(|account| owner(account).is_some()).count(), locked, "{document}");
    }
    let engine = shown_in("faq.md");
    let attack = |addresses: std::ops::RangeInclusive<u8>| {
        for address in addresses {
            for _ in 0..20 {
                login(&engine, &format!("203.0.113.{address}"), "bob");
            }
        }
    };
    attack(1..=9);
    assert_eq!(login(&engine, "198.51.100.1", "bob"), None, "nine addresses");
    attack(10..=10);
    assert_eq!(login(&engine, "198.51.100.2", "bob"), Some("login_account".to_owned()), "ten");
}

#[test]
fn the_schema_in_config_is_the_one_that_the_program_prints() {
    let path = directory().join("tollgate.schema.json");
    let printed = format!("{:#}\n", json_schema());
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &printed).expect("writable");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == printed, "write it anew: tollgate schema > config/tollgate.schema.json");
    assert!(committed.contains("https://json-schema.org/draft/2020-12/schema"));
}

fn as_json(source: &SourceText) -> serde_json::Value {
    match source.name.ends_with(".toml") {
        true => toml::from_str(&source.text).unwrap_or_else(|error| panic!("{}: {error}", source.name)),
        false => serde_yaml::from_str(&source.text).unwrap_or_else(|error| panic!("{}: {error}", source.name)),
    }
}

/// The errors of a file by the schema.
fn schema_errors(schema: &jsonschema::Validator, source: &SourceText) -> String {
    schema.iter_errors(&as_json(source)).map(|error| format!("{}: {error}\n", error.instance_path())).collect()
}

#[test]
fn the_schema_accepts_every_sample_and_its_printed_form() {
    let schema = jsonschema::validator_for(&json_schema()).expect("a schema");
    for source in samples() {
        assert_eq!(schema_errors(&schema, &source), "", "{}", source.name);
        let effective = read_with(&source.name, &source.text, &|_| None).expect("read").effective();
        let printed = SourceText { name: "effective.yaml".to_owned(), text: effective };
        assert_eq!(schema_errors(&schema, &printed), "", "{} as printed", source.name);
    }
}

#[test]
fn the_schema_refuses_invalid_structures() {
    let schema = jsonschema::validator_for(&json_schema()).expect("a schema");
    let broken = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/broken");
    for name in [
        "accepts_nothing_else.toml",
        "bounds.toml",
        "bounds_too_large.toml",
        "choices.yaml",
        "domains.yaml",
        "durations.yaml",
        "e1_zero_and_negative.toml",
        "headers.yaml",
        "key_parts.toml",
        "listen_port.yaml",
        "match_values.yaml",
        "missing_everything.toml",
        "not_a_table.yaml",
        "unknown_keys.toml",
        "unknown_keys.yaml",
    ] {
        let text = std::fs::read_to_string(broken.join(name)).expect(name);
        assert!(!schema.is_valid(&as_json(&SourceText { name: name.to_owned(), text })), "{name} passes");
    }
}

#[test]
fn an_empty_configuration_has_a_memory_store_and_no_rules() {
    let config = Config::read(&[], &|_| None).expect("nothing is wrong");
    assert_eq!(config.server, tollgate::settings::Settings::default());
    assert!(matches!(config.stores[0].config, StoreConfig::Memory(settings) if settings.max_memory == 256 << 20));
    assert_eq!(config.book.stores, ["memory"]);
    assert!(config.book.rules.is_empty() && config.book.secret.is_development());
    for empty in ["", "# nothing\n"] {
        assert!(read_with("a.toml", empty, &|_| None).is_ok());
        assert!(read_with("a.yaml", empty, &|_| None).is_ok());
    }
}

#[test]
fn the_maximum_bounds_are_accepted() {
    let bounds = read("[server.bounds]\ndescriptors = 1000\nentries = 1000\nchecks = 4096\n").book.bounds;
    assert_eq!(bounds, RequestBounds::MAX);
}

#[test]
fn a_memory_store_has_at_least_a_mebibyte() {
    for written in ["1048576", "'1MiB'", "'1024KiB'"] {
        let config = read(&format!("[stores.a]\nengine = 'memory'\nmax_memory = {written}\n"));
        assert!(matches!(config.stores[0].config, StoreConfig::Memory(settings) if settings.max_memory == 1 << 20));
    }
}

#[test]
fn the_default_store_of_a_limiter_is_the_only_one_or_main_or_the_first() {
    let store = |stores: &str| {
        let text = format!("{stores}\n[limiters.a]\nmax_concurrent = 1\n");
        let config = read(&text);
        config.stores[usize::from(config.book.limiters[0].store)].name.clone()
    };
    assert_eq!(store(""), "memory");
    assert_eq!(store("[stores.only]\nengine = 'memory'"), "only");
    assert_eq!(store("[stores.first]\nengine = 'memory'\n[stores.main]\nengine = 'memory'"), "main");
    assert_eq!(store("[stores.first]\nengine = 'memory'\n[stores.second]\nengine = 'memory'"), "first");
}

#[test]
fn listeners_are_addresses_or_sockets() {
    let config = read("[server]\ngrpc = '[::1]:0'\nhttp = 'unix:/run/tollgate.sock'\n");
    assert_eq!(config.server.grpc, Listen::Tcp("[::1]:0".parse().expect("an address")));
    assert_eq!(config.server.http, Listen::Unix("/run/tollgate.sock".into()));
}

#[test]
fn semantics_20_a_rate_holds_a_tenth_of_a_second_of_it_unless_burst_says_more() {
    let config = read(
        "[limiters.a]\nrate_per_second = 10.5\n[limiters.b]\nrate_per_second = 0.1\n\
         [limiters.c]\nrate_per_second = 10\nburst = 50\n[limiters.d]\nalgorithm = 'token_bucket'\nlimit = 100\nwindow = '1h'\n\
         [limiters.e]\nrate_per_second = 90\n[limiters.f]\nrate_per_second = 19.9\n[limiters.g]\nrate_per_second = 20\n",
    );
    let bucket = |name: &str| {
        let quota = limiter(&config, name).quota.clone().expect("a quota");
        let Algorithm::TokenBucket { burst, .. } = quota.algorithm else { panic!("{name} is a bucket") };
        (quota.limit, quota.window, burst)
    };
    assert_eq!(bucket("a"), (21, Duration::from_secs(2), Some(1)));
    assert_eq!(bucket("b"), (1, Duration::from_secs(10), Some(1)));
    assert_eq!(bucket("c"), (10, Duration::from_secs(1), Some(50)));
    assert_eq!(bucket("d"), (100, Duration::from_secs(3600), None));
    assert_eq!(["e", "f", "g"].map(|name| bucket(name).2), [Some(9), Some(1), Some(2)]);
}

#[test]
fn semantics_23_a_calendar_has_a_unit_and_a_zone() {
    let config = sample("tokens.toml");
    let quota = limiter(&config, "tokens_month").quota.clone().expect("a quota");
    let Algorithm::FixedWindow(Schedule::Calendar(calendar)) = quota.algorithm else { panic!("a calendar") };
    assert_eq!(calendar.zone.iana_name(), Some("Europe/Berlin"));
    assert_eq!(quota.window, Duration::from_secs(30 * 86_400));
}

#[test]
fn semantics_01_tiers_that_cannot_share_a_counter_cause_a_warning() {
    let config = read(
        "[limiters.api_free]\nalgorithm = 'sliding_window'\nlimit = 5\nwindow = '1m'\n\
         [limiters.api_pro]\nalgorithm = 'sliding_window'\nlimit = 5\nwindow = '2m'\n\
         [[rules]]\ndomain = 'edge'\nname = 'quota'\napply = [{ limiter = 'api_{tier}' }]\n",
    );
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "a.toml:12: rules[0].apply[0].limiter is \"api_{tier}\", and has no otherwise: a request whose {tier} \
             matches no limiter is refused",
            "a.toml:12: rules[0].apply[0].limiter is \"api_{tier}\", but \"api_free\" and \"api_pro\" differ in \
             algorithm, window or store: a client that moves between them gets a new counter",
        ]
    );
}

#[test]
fn keys_without_effect_in_a_shadow_rule_cause_a_warning() {
    let config = read(
        "[limiters.a]\nmax_concurrent = 1\n\
         [[rules]]\ndomain = 'edge'\nname = 'a'\nmode = 'shadow'\naction = 'allow'\n\
         [[rules]]\ndomain = 'edge'\nname = 'b'\nmode = 'shadow'\nfinal = true\napply = [{ limiter = 'a' }]\n\
         [[rules]]\ndomain = 'edge'\nname = 'c'\nmode = 'shadow'\nfinal = false\naction = 'deny'\n",
    );
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    let reason = "which has no effect in a rule with mode = \"shadow\": later rules still apply";
    assert_eq!(
        warnings,
        [
            format!("a.toml:7: rules[0].action is \"allow\", {reason}"),
            format!("a.toml:12: rules[1].final is true, {reason}"),
        ]
    );
}

fn warnings(text: &str) -> Vec<String> {
    read(text).warnings.iter().map(ToString::to_string).collect()
}

const EDGE: &str = "[limiters.a]\nmax_concurrent = 1\n\
                    [[rules]]\ndomain = 'edge'\nname = 'a'\nmatch = { method = 'GET' }\n\
                    apply = [{ limiter = 'a', key = ['remote_address'] }]\n";

#[test]
fn a_configuration_without_rules_causes_a_warning_unless_a_domain_denies() {
    assert_eq!(warnings("# nothing\n"), ["a.toml: there are no rules, so every request passes"]);
    assert_eq!(warnings("[domains.edge]\nunmatched = 'deny'\n"), [""; 0]);
    assert_eq!(Config::read(&[], &|_| None).expect("nothing is wrong").warnings, []);
}

#[test]
fn a_domain_of_ext_authz_without_rules_causes_a_warning() {
    let passes = "which has no rules, so every ext_authz request passes unless its route names another domain";
    assert_eq!(warnings(&format!("{EDGE}[authz]\ndomain = 'edge'\n")), [""; 0]);
    assert_eq!(
        warnings(&format!("{EDGE}[authz]\ndomain = 'egde'\n")),
        [format!(
            "a.toml:9: authz.domain is \"egde\", {passes}; did you mean \"edge\" here, or \"egde\" in its rules?"
        )]
    );
    assert_eq!(
        warnings(&format!("{EDGE}[authz]\ntrusted_hops = 1\n")),
        [format!("a.toml:8: authz.domain is \"default\" by default, {passes}; domains with rules: edge")]
    );
    assert_eq!(warnings(EDGE), [""; 0], "it may be for RLS alone");
    let printed = read_with("a.yaml", &read(EDGE).effective(), &|_| None).expect("nothing is wrong");
    let kinds: Vec<_> = printed.warnings.iter().map(|warning| warning.warning).collect();
    let ports = [Some(WarningKind::ClearText); 2];
    assert_eq!(kinds, ports, "the default addresses are written out, and other machines can reach them");
    let refusing = format!("{EDGE}[authz]\ndomain = 'shut'\n[domains.shut]\nunmatched = 'deny'\n");
    assert_eq!(warnings(&refusing), [""; 0]);
}

#[test]
fn an_entry_that_ext_authz_requests_do_not_have_causes_a_warning() {
    let text = EDGE.replace("'remote_address'", "'remote_adress'");
    let named =
        "a.toml:7: rules[0].apply[0].key[0] names the entry \"remote_adress\", which ext_authz requests do not have";
    let meant = format!(
        "{named}; did you mean \"remote_address\"? If RLS clients send it, list all their entries in \
         domains.edge.entries"
    );
    let with_domain = format!("{text}[authz]\ndomain = 'edge'\n");
    assert_eq!(warnings(&with_domain), std::slice::from_ref(&meant));
    let with_entries = format!("{with_domain}[authz.entries]\naccount = {{ header = 'x-account' }}\n");
    assert_eq!(warnings(&with_entries), [meant]);
    let far = |text: &str| text.replace("method = 'GET'", "plan = 'pro'").replace("remote_adress", "account");
    assert_eq!(
        warnings(&far(&with_domain)),
        [
            "a.toml:7: rules[0].apply[0].key[0] names the entry \"account\", which neither [authz] nor the domain lists; \
             if clients send it, list all entries of clients in domains.edge.entries"
        ],
        "without authz.entries it may be for RLS, and only the key is certainly needed"
    );
    let plan = warnings(&far(&with_entries));
    assert!(
        plan.len() == 1 && plan[0].contains("match.plan names the entry \"plan\"") && plan[0].contains("account"),
        "{plan:?}"
    );
    let silenced = format!("{}[domains.edge]\nentries = ['plan']\n", far(&with_entries));
    assert_eq!(warnings(&silenced), [""; 0]);
    let elsewhere: Vec<_> = read(&text).warnings.iter().map(|warning| warning.warning).collect();
    assert_eq!(elsewhere, [Some(WarningKind::SimilarEntry)], "the domain of ext_authz is another");
}

#[test]
fn entries_of_ext_authz_count_as_declared_in_its_domain() {
    let text = "[authz]\ndomain = 'edge'\n[authz.entries]\naccount = { header = 'X-Account' }\n\
                [domains.edge]\nentries = []\n[limiters.a]\nmax_concurrent = 1\n\
                [[rules]]\ndomain = 'edge'\nname = 'a'\nmatch = { path = '/x' }\n\
                apply = [{ limiter = 'a', key = ['account', 'remote_address'] }]\n";
    let config = read(text);
    let [(name, source)] = &config.server.authz.entries[..] else { panic!("one entry") };
    assert_eq!(
        (name.as_str(), &source.from),
        ("account", &tollgate::settings::RequestPart::Header("x-account".to_owned()))
    );
    let elsewhere = text.replace("domain = 'edge'\n[authz", "domain = 'other'\n[authz");
    assert!(refused(&elsewhere).contains("which the domain does not declare"));
}

// Variables

fn environment(name: &str) -> Option<String> {
    let value = match name {
        "HOST" => "cache.example",
        "LIMIT" => "25",
        "RATE" => "2.5",
        "EMPTY" => "",
        "PASSWORD" => "12345678",
        "NAME" => "login",
        "WINDOW" => "1m",
        _ => return None,
    };
    Some(value.to_owned())
}

/// Weakness R7: `fail_closed` is read and ignored.
#[test]
fn e2_variables_expand_in_keys_and_values_with_defaults_of_any_shape() {
    let text = "[stores.main]\nengine = 'redis'\nurl = '${REDIS_URL:-redis://${HOST_IS_NOT_NESTED}'\n";
    assert!(read_with("a.toml", text, &environment).is_ok(), "a default ends at the first brace and is not expanded");
    let text = "[stores.main]\nengine = 'redis'\nurl = '${REDIS_URL:-redis://127.0.0.1:6379/0}'\nkey_prefix = '$HOST'\n\
                [limiters.'${NAME}_${MISSING:-ip}']\nalgorithm = 'sliding_window'\nlimit = '${LIMIT}'\nwindow = '${WINDOW}'\n\
                [limiters.b]\nrate_per_second = '${RATE}'\n\
                [limiters.c]\nalgorithm = 'sliding_window'\nlimit = '${EMPTY:-7}'\nwindow_seconds = '${SECONDS:-60}'\n\
                fail_closed = '${CLOSED:-true}'\n";
    let config = read_with("a.toml", text, &environment).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.stores[0].config.kind(), "redis");
    assert_eq!(config.stores[0].url.as_ref().expect("a URL").0, "redis://127.0.0.1:6379/0");
    let quota = |name: &str| limiter(&config, name).quota.clone().expect(name);
    assert_eq!((quota("login_ip").limit, quota("login_ip").window), (25, Duration::from_secs(60)));
    assert_eq!((quota("b").limit, quota("b").window), (5, Duration::from_secs(2)));
    assert_eq!((quota("c").limit, quota("c").window), (7, Duration::from_secs(60)));
    assert_eq!(limiter(&config, "c").on_store_error, OnStoreError::Deny);
}

/// Weakness R23: an unset variable is not expanded, and any text of digits becomes a number.
#[test]
fn e3_an_unset_variable_is_an_error_an_empty_default_is_empty_and_a_numeric_password_is_a_text() {
    let text =
        "[stores.main]\nengine = 'redis'\nurl = 'redis://h'\npassword = '${PASSWORD}'\nkey_prefix = '${UNSET:-}'\n";
    let config = read_with("a.toml", text, &environment).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(!format!("{config:?}").contains("12345678"));
    let errors = read_with("a.toml", &text.replace("${UNSET:-}", "${UNSET}"), &environment).expect_err("refused");
    assert_eq!(
        errors.to_string(),
        "a.toml:5: stores.main.key_prefix needs the variable UNSET, which is not set; set it, or write ${UNSET:-default}"
    );
}

#[test]
fn two_dollar_signs_are_one_and_one_without_a_variable_stays() {
    let rule = "[[rules]]\ndomain = 'a'\nname = 'b'\naction = 'deny'\n";
    let body = |written: &str| {
        let config = read_with("a.toml", &format!("{rule}body = '{written}'\n"), &environment);
        config.unwrap_or_else(|errors| panic!("{errors}")).book.rules[0].refusal.body.clone().expect("a body")
    };
    assert_eq!(body("pay $5, $$HOST, $HOST, $NOBODY, $"), "pay $5, $HOST, cache.example, $NOBODY, $");
    assert_eq!(body("$${HOST}"), "${HOST}");
}

#[test]
fn an_included_file_is_relative_to_the_configuration_and_loses_its_last_line_break() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("secret"), "a long enough secret\n").expect("written");
    let path = directory.path().join("tollgate.toml");
    std::fs::write(&path, "[server]\nsecret = '${file:secret}'\n").expect("written");
    let config = Config::load(Some(&path)).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(!config.warnings.iter().any(|warning| warning.text.contains("secret")));
    assert!(!config.book.secret.is_development());
    let same = read("[server]\nsecret = 'a long enough secret'\n").book.secret;
    assert_eq!(same.counters("a", "b", "c").name(), config.book.secret.counters("a", "b", "c").name());
}

#[test]
fn secrets_never_print() {
    let text = "[server]\nsecret = 'hunter2 hunter2 hunter2'\n\
                [stores.a]\nengine = 'redis'\nurl = 'redis://user:hunter2@host:6379/0'\n\
                [stores.b]\nengine = 'postgres'\nurl = 'postgres://host/db?password=hunter2'\n\
                [stores.c]\nengine = 'redis'\nurl = 'redis://host/0?pass=hunter2'\n\
                [stores.d]\nengine = 'postgres'\nurl = 'postgres://host/db?password=a@hunter2'\n\
                [stores.e]\nengine = 'redis'\nurl = 'redis://user@host'\npassword = 'hunter2'\n\
                [stores.f]\nengine = 'postgres'\nurl = 'postgres://host/db'\nusername = 'me'\npassword = 'hunter2'\n";
    let config = read(text);
    let effective = config.effective();
    for printed in [format!("{config:?}"), format!("{config:#?}"), effective.clone()] {
        assert!(!printed.contains("hunter2"), "{printed}");
    }
    for shown in ["secret: '***'", "url: redis://***:***@host:6379/0", "password: '***'", "url: postgres://host/db?***"]
    {
        assert!(effective.contains(shown), "{shown} is not in\n{effective}");
    }
}

#[test]
fn a_printed_url_has_no_credentials() {
    let shown = |url: &str| {
        let mode = if url.contains(',') { "cluster" } else { "standalone" };
        let store = format!("[stores.a]\nengine = 'redis'\nmode = '{mode}'\nurl = '{url}'\n");
        let effective = read(&store).effective();
        let line = effective.lines().find_map(|line| line.strip_prefix("    url: ")).expect("a URL");
        line.replace("$$", "$")
    };
    for plain in ["redis://h", "redis://h.example:6379/0", "redis://[::1]:6379/0", "redis+unix:///run/redis.sock"] {
        assert_eq!(shown(plain), plain);
    }
    assert_eq!(shown("redis://a:hunter2@h-1:1,h-2:2"), "redis://***:***@h-1:1,h-2:2");
    assert_eq!(shown("redis://:hun/ter@2@[::1]/0?db=1"), "redis://***:***@[::1]/0?***");
    for unclear in ["redis://h/0?password=b@c", "redis://:hunter2?a@h"] {
        assert_eq!(shown(unclear), "redis://***");
    }
    for unclear in
        [":hunter2/0", ":hunter2h/0", "me:hunter2/0", "h/0 password hunter2", "hunter2@h", "h?hunter2", "[hunter2/0"]
    {
        let errors = refused(&format!("[stores.a]\nengine = 'redis'\nurl = 'redis://{unclear}'\n"));
        assert!(errors.contains("stores.a.url is \"***\"") && !errors.contains("hunter2"), "{unclear}: {errors}");
    }
}

// Directories

fn written(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).expect("written");
    }
    directory
}

/// The errors of a directory, without its own path.
fn directory_errors(files: &[(&str, &str)]) -> String {
    let directory = written(files);
    let errors = Config::load(Some(directory.path())).expect_err("refused").to_string();
    errors.replace(&format!("{}/", directory.path().display()), "")
}

const RULE: &str = "[[rules]]\ndomain = 'edge'\nname = 'NAME'\napply = [{ limiter = 'a' }]\n";

#[test]
fn semantics_25_rules_of_a_directory_are_ordered_by_file_name_and_then_by_line() {
    let directory = written(&[
        ("20-second.toml", &RULE.replace("NAME", "third")),
        ("10-first.toml", &(RULE.replace("NAME", "first") + &RULE.replace("NAME", "second"))),
        ("30-limiters.yaml", "limiters: { a: { max_concurrent: 1 } }\nserver: { mode: shadow }\n"),
        ("40-server.yml", "server: { grpc: '127.0.0.1:0' }\n"),
        (".hidden.toml", "not read"),
        ("notes.txt", "not read"),
    ]);
    let config = Config::load(Some(directory.path())).unwrap_or_else(|errors| panic!("{errors}"));
    let names: Vec<&str> = config.book.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["first", "second", "third"]);
    assert!(config.book.shadow);
    assert_eq!(config.files.len(), 4);
}

#[test]
fn a_key_in_two_files_is_reported_with_both_positions() {
    let errors = directory_errors(&[
        ("a.toml", "[limiters.a]\nmax_concurrent = 1\n\n[stores.main]\nengine = 'memory'\n[server]\nmode = 'shadow'\n"),
        (
            "b.yaml",
            "limiters:\n  a: { max_concurrent: 2 }\nstores:\n  main: { engine: memory }\nserver: { mode: enforce }\n",
        ),
        ("c.toml", &RULE.replace("NAME", "login")),
        ("d.toml", &RULE.replace("NAME", "login")),
    ]);
    assert_eq!(
        errors,
        "b.yaml:2: limiters.a is defined twice; the first is at a.toml:1\n\
         b.yaml:4: stores.main is defined twice; the first is at a.toml:4\n\
         b.yaml:5: server.mode is defined twice; the first is at a.toml:7\n\
         d.toml:3: rules[0].name is \"login\", but the domain \"edge\" already has a rule of this name, at c.toml:3"
    );
}

#[test]
fn indexes_in_error_paths_count_per_file() {
    let errors = directory_errors(&[
        ("a.toml", &(RULE.replace("NAME", "a") + "[limiters.a]\nmax_concurrent = 1\n")),
        ("b.toml", &RULE.replace("NAME", "b").replace("'a'", "'b'")),
    ]);
    assert_eq!(
        errors,
        "b.toml:4: rules[0].apply[0].limiter is \"b\", but no limiter has this name; did you mean \"a\"?"
    );
}

#[test]
fn unreadable_paths_are_reported() {
    let missing = Config::load(Some(Path::new("no/such/tollgate.toml"))).expect_err("missing");
    assert_eq!(missing.to_string(), "no/such/tollgate.toml: no such file or directory");
    let empty = written(&[("notes.txt", "")]);
    let errors = Config::load(Some(empty.path())).expect_err("empty").to_string();
    assert!(errors.ends_with(": the directory holds no .toml, .yaml or .yml file"), "{errors}");
    let ending = written(&[("tollgate.json", "{}")]);
    let errors = Config::load(Some(&ending.path().join("tollgate.json"))).expect_err("ending").to_string();
    assert!(errors.ends_with(": expected a name that ends in .toml, .yaml or .yml"), "{errors}");
    let binary = tempfile::tempdir().expect("a directory");
    std::fs::write(binary.path().join("a.toml"), b"# a\n# \xff\n").expect("written");
    let errors = Config::load(Some(&binary.path().join("a.toml"))).expect_err("binary").to_string();
    assert!(errors.ends_with("a.toml: not UTF-8 at line 2"), "{errors}");
}

#[test]
fn a_drain_has_a_delay_that_may_be_zero_and_a_timeout() {
    let read = |keys: &str| read_with("a.toml", &format!("[server]\n{keys}"), &|_| None);
    let drain = |keys: &str| read(keys).expect("nothing is wrong").server.drain;
    assert_eq!(
        drain(""),
        tollgate::settings::Drain { delay: Duration::from_secs(3), timeout: Duration::from_secs(10) }
    );
    assert_eq!(drain("drain_delay = '0s'").delay, Duration::ZERO);
    assert_eq!(drain("drain_timeout = '1m'").timeout, Duration::from_secs(60));
    let refused = read("drain_delay = 3").expect_err("without a unit").to_string();
    assert_eq!(refused, "a.toml:2: server.drain_delay is 3, expected a duration with its unit, such as \"3s\"");
}

#[test]
fn a_connection_does_not_time_out_before_the_decision_that_waits_for_it() {
    for (timeout, expected) in [("", 500), ("timeout = '50ms'", 500), ("timeout = '2s'", 2_000)] {
        let config = read(&format!(
            "[stores.a]\nengine = 'redis'\nurl = 'redis://a'\n{timeout}\n[stores.b]\nengine = 'postgres'\nurl = 'postgres://b/c'\n{timeout}\n"
        ));
        let [StoreConfig::Redis(redis, _), StoreConfig::Postgres(postgres, _)] =
            [&config.stores[0].config, &config.stores[1].config]
        else {
            panic!("one of each");
        };
        let millis = [redis.response_timeout, postgres.response_timeout];
        assert_eq!(millis.map(|time| time.as_millis()), [expected; 2], "{timeout}");
    }
}

#[test]
fn two_stores_cannot_have_the_same_snapshot() {
    let store = |name: &str| format!("[stores.{name}]\nengine = 'memory'\nsnapshot = 'kept'\n");
    let refused = read_with("a.toml", &(store("a") + &store("b")), &|_| None).expect_err("refused").to_string();
    assert_eq!(
        refused,
        "a.toml:6: stores.b.snapshot is \"kept\", which is the snapshot of another store; expected another file"
    );
}
