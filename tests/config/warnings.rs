//! Warnings about configurations that are valid and probably not meant so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tollgate::config::{Config, Problem, SourceText, WarningKind};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read_as(name: &str, text: &str) -> Config {
    let source = SourceText { name: name.to_owned(), text: text.to_owned() };
    Config::read(&[source], &|name| (name == "SECRET_PATH").then(|| "hidden/path".to_owned()))
        .unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// A warning with its place: `3:9 rules[0].match.path relative_path: ...`.
fn shown(warning: &Problem) -> String {
    let Problem { line, column, path, warning, text, .. } = warning;
    let place = line.map_or("-".to_owned(), |line| format!("{line}:{}", column.expect("a line has a column")));
    assert!(text.starts_with(path.as_str()), "the text of {path} is {text}");
    let name = warning.expect("a warning has a kind").name();
    format!("{place} {path} {name}:{}", text.strip_prefix(path.as_str()).expect("checked"))
}

fn warnings(text: &str) -> Vec<String> {
    read_as("a.toml", text).warnings.iter().map(shown).collect()
}

/// The kinds of the warnings about a text, each once.
fn kinds(text: &str) -> BTreeSet<&'static str> {
    read_as("a.toml", text).warnings.iter().filter_map(|warning| Some(warning.warning?.name())).collect()
}

/// A domain that normalises, and a rule in it with this `match`, from line 6. The match is on line 9.
fn rule(test: &str) -> String {
    format!(
        "[domains.edge]\nnormalise = {{ path = ['path'], host = ['host'] }}\n[check]\naccept = ['unused_entry']\n\n\
         [[rules]]\ndomain = 'edge'\nname = 'a'\nmatch = {{ {test} }}\naction = 'deny'\n"
    )
}

/// A rule of the domain `edge`, without a name of its own.
fn apply(apply: &str) -> String {
    format!(
        "[limiters.a]\nmax_concurrent = 1\n[[rules]]\ndomain = 'edge'\nname = 'a'\napply = [{{ limiter = 'a', {apply} }}]\n"
    )
}

#[test]
fn a_method_in_any_case_is_compared_in_upper_case_and_needs_no_warning() {
    let text = "[[rules]]\ndomain = 'edge'\nname = 'a'\nmatch = { method = 'post' }\naction = 'deny'\n";
    assert_eq!(warnings(text), [""; 0]);
    assert_eq!(
        warnings(&text.replace("'post'", "'PSOT'")),
        ["4:11 rules[0].match.method unknown_method: is \"PSOT\", which is no usual method; did you mean \"POST\"?"]
    );
    assert_eq!(
        warnings(&text.replace("'post'", "{ not = ['GET', 'put, patch'] }")),
        [
            "4:36 rules[0].match.method.not[1] unknown_method: is \"put, patch\", which no method is; write [\"PUT\", \"PATCH\"]"
        ]
    );
    for good in ["'PROPFIND'", "['get', 'M-SEARCH']", "'*'", "'GE*'", "'FROBNICATE'"] {
        assert_eq!(warnings(&text.replace("'post'", good)), [""; 0], "{good}");
    }
}

#[test]
fn a_path_with_a_query_and_a_host_that_clients_spell_otherwise_cause_a_warning() {
    assert_eq!(
        warnings(&rule("path = '/only?x=1'")),
        [
            "9:11 rules[0].match.path query_in_path: is \"/only?x=1\", whose query is removed, so that it matches the path \
             with any query; write \"/only\""
        ]
    );
    for path in ["/a#b", "/login/?", "/a?"] {
        assert_eq!(kinds(&rule(&format!("path = '{path}'"))), BTreeSet::from(["query_in_path"]), "{path}");
    }
    assert_eq!(kinds(&rule("path = '/a%3Fb'")), BTreeSet::new());
    assert_eq!(
        warnings(&rule("host = 'b\u{fc}cher.example'")),
        [
            "9:11 rules[0].match.host unicode_host: is \"b\u{fc}cher.example\", with letters that clients send in ASCII form; \
             write that, which begins with \"xn--\""
        ]
    );
}

#[test]
fn a_normaliser_of_an_entry_that_every_gateway_sends_causes_no_warning() {
    let toml = "[domains.edge.normalise]\npath = ['path']\n\n[limiters.a]\nalgorithm = 'sliding_window'\nlimit = 1\n\
                window = '1m'\n\n[[rules]]\ndomain = 'edge'\nname = 'r'\napply = [{ limiter = 'a', key = ['remote_address'] }]\n";
    assert_eq!(kinds(toml), BTreeSet::new());
}

#[test]
fn a_literal_that_looks_like_a_regular_expression_causes_a_warning() {
    assert_eq!(
        warnings(&rule("path = '^/login.*$'")),
        [
            "9:11 rules[0].match.path regular_expression: is \"^/login.*$\", which looks like a regular expression for its \
          \"^\": only * is special here; write \"/login*\""
        ]
    );
    assert_eq!(
        warnings(&rule(r"host = ['a.example', '.*\.example\.com']")),
        [
            r#"9:32 rules[0].match.host[1] regular_expression: is ".*\\.example\\.com", which looks like a regular expression for its "\\.": only * is special here; write "*.example.com""#
        ]
    );
    let regular = [
        r"path = '/api/.*'",
        r"path = '/login.*'",
        "path = '/users/[0-9]+'",
        r"path = '/users/\d+'",
        "path = '/(a|b)/c'",
        "path = '/a|/b'",
        "path = '/login$'",
        "path = '/x/.+'",
        "path = '(?i)/login'",
        "path = { not = '^/login' }",
        r"host = 'a\.example'",
        "method = 'GET|POST'",
        "account = '^bob'",
        r"account = '.*'",
        r"account = 'bob\d+'",
        "path = '/files/[^/]+'",
    ];
    for test in regular {
        assert_eq!(kinds(&rule(test)), BTreeSet::from(["regular_expression"]), "{test}");
    }
    let plain = [
        "path = '/api/*'",
        "path = '/index.**'",
        "path = '/.well-known/x'",
        "path = '/a(b)'",
        "path = '/odata/$metadata'",
        "host = '*.example.com'",
        "host = '[2001:db8::7]'",
        r"account = 'DOMAIN\dave'",
        "account = 'HOST$'",
        "account = 'first.+tag@x.example'",
        "remote_address = '10.1.*'",
        "path = '/*.*'",
        "agent = 'Mozilla/5.0 (X11)*'",
    ];
    for test in plain {
        assert_eq!(warnings(&rule(test)), [""; 0], "{test}");
    }
}

#[test]
fn a_path_without_a_leading_slash_causes_a_warning() {
    assert_eq!(
        warnings(&rule("path = 'login'")),
        ["9:11 rules[0].match.path relative_path: is \"login\", which is compared as if it began with a slash, since \
          every path does; write \"/login\""]
    );
    let of_rls =
        "[[rules]]\ndomain = 'edge'\nname = 'a'\nmatch = { path = { not = ['/a', 'api/*'] } }\naction = 'deny'\n";
    let found = warnings(of_rls);
    let expected = "4:33 rules[0].match.path.not[1] relative_path: is \"api/*\", which no path is: every path begins with a \
                    slash; write \"/api/*\"";
    assert!(found.iter().any(|warning| warning == expected), "{found:#?}");
    let found = warnings(&rule("path = '${SECRET_PATH}'"));
    assert!(found.len() == 1 && !found[0].contains("hidden"), "a variable can be a secret: {found:?}");
    for good in ["'/login'", "'*/login'", "'*'"] {
        assert_eq!(warnings(&rule(&format!("path = {good}"))), [""; 0], "{good}");
    }
}

#[test]
fn other_literals_that_match_something_else_cause_a_warning() {
    for (test, expected) in [
        (
            "path = '/users/{id}/posts'",
            "9:11 rules[0].match.path path_template: is \"/users/{id}/posts\", where {id} is compared as text: only * is \
             special here; write \"/users/*/posts\"",
        ),
        (
            "account = ['bob', 'eve ']",
            "9:29 rules[0].match.account[1] outer_space: is \"eve \", with white space at an end, which few values have; \
             write \"eve\"",
        ),
        (
            "remote_address = { not = '10.1.2.3/8' }",
            "9:30 rules[0].match.remote_address.not host_bits: is \"10.1.2.3/8\", with bits after its length, which \
             counts as the whole block; write \"10.0.0.0/8\", or correct the length",
        ),
        (
            "host = '*example.com'",
            "9:11 rules[0].match.host loose_host: is \"*example.com\", which other domains match too, such as \
             \"otherexample.com\"; write [\"example.com\", \"*.example.com\"]",
        ),
        (
            "host = 'example.com*'",
            "9:11 rules[0].match.host loose_host: is \"example.com*\", which other domains match too, such as \
             \"example.com.other.example\"; write \"example.com\"",
        ),
    ] {
        let found: Vec<String> = warnings(&rule(test));
        assert_eq!(found.len(), 1, "{test}: {found:?}");
        assert_eq!(found[0], expected);
    }
    assert_eq!(kinds(&rule("path = '/users/:id'")), BTreeSet::from(["path_template"]));
    let remedy = |text: &str| warnings(&rule(text))[0].rsplit_once("; ").expect("a remedy").1.to_owned();
    assert_eq!(remedy("path = '/{login,signin}/x'"), r#"write ["/login/x", "/signin/x"]"#);
    assert_eq!(remedy("path = '/{id}'"), "write the paths that are meant", "and not every path");
    assert_eq!(kinds(&rule("path = '/users/<id>'")), BTreeSet::from(["path_template"]));
    for good in [
        "host = '*.example.com'",
        "host = 'api.*'",
        "path = '/time/12:30'",
        "remote_address = '10.0.0.0/8'",
        "host = ' a.example '",
    ] {
        assert_eq!(warnings(&rule(good)), [""; 0], "{good}");
    }
}

#[test]
fn an_entry_that_is_almost_a_known_one_causes_a_warning() {
    assert_eq!(
        warnings(&apply("key = ['remote-address']")),
        ["6:34 rules[0].apply[0].key[0] similar_entry: names the entry \"remote-address\"; did you mean \
          \"remote_address\"? Otherwise list all entries of clients in domains.edge.entries"]
    );
    for name in ["Remote_Address", "remote_adress", "masked-remote-address", "generic-key", "Path"] {
        assert_eq!(kinds(&apply(&format!("key = ['{name}']"))), BTreeSet::from(["similar_entry"]), "{name}");
    }
    let of_authz = format!(
        "{}[authz]\ndomain = 'other'\nentries.api_key = {{ header = 'x-api-key' }}\n",
        apply("key = ['api-key']")
    );
    assert!(kinds(&of_authz).contains("similar_entry"));
    assert_eq!(
        warnings(&format!(
            "{}[domains.edge.normalise]\nremote-address = ['trim']\n",
            apply("key = ['remote-address']")
        )),
        ["8:1 domains.edge.normalise.remote-address similar_entry: names the entry \"remote-address\"; did you mean \
          \"remote_address\"? Otherwise list all entries of clients in domains.edge.entries"]
    );
    let in_template = "[limiters.a_x]\nmax_concurrent = 1\n[[rules]]\ndomain = 'edge'\nname = 'a'\n\
                       apply = [{ limiter = 'a_{generic-key}', otherwise = 'a_x' }]\n";
    assert_eq!(kinds(in_template), BTreeSet::from(["similar_entry"]));
    let declared = format!("[domains.edge]\nentries = ['remote-address']\n{}", apply("key = ['remote-address']"));
    assert_eq!(warnings(&declared), [""; 0]);
}

#[test]
fn a_key_with_an_entry_that_nothing_lists_causes_a_warning() {
    let expected = "rules[0].apply[0].key[0] unknown_entry: names the entry \"ip\", which neither [authz] nor the domain \
                    lists; did you mean \"remote_address\"? If clients send it, list all entries of clients in \
                    domains.edge.entries";
    let text = apply("key = ['ip']");
    assert_eq!(warnings(&text), [format!("6:34 {expected}")]);
    assert_eq!(warnings(&format!("{text}[authz]\ndomain = 'edge'\n")), [format!("6:34 {expected}")]);
    assert_eq!(
        kinds(&format!("{text}[authz]\ndomain = 'edge'\nentries.a = {{ header = 'a' }}\n")),
        BTreeSet::from(["unknown_entry"])
    );
    for known in [
        "[domains.edge]\nentries = ['ip']\n",
        "[domains.edge]\naddresses = ['ip']\n",
        "[domains.edge.normalise]\nip = ['trim']\n",
        "[authz]\ndomain = 'edge'\nentries.ip = { header = 'x-ip' }\n",
    ] {
        assert_eq!(warnings(&format!("{text}{known}")), [""; 0], "{known}");
    }
}

#[test]
fn a_domain_without_rules_and_one_that_is_almost_another_cause_warnings() {
    let text = format!("{}[domains.egde]\nmode = 'shadow'\n", apply("key = ['remote_address']"));
    assert_eq!(warnings(&text), ["7:10 domains.egde unused_domain: is a domain without rules; did you mean \"edge\"?"]);
    assert_eq!(kinds(&text.replace("mode = 'shadow'", "unmatched = 'deny'")), BTreeSet::from(["unused_domain"]));
    assert_eq!(warnings(&text.replace("egde]\nmode = 'shadow'", "shut]\nunmatched = 'deny'")), [""; 0]);
    assert_eq!(
        warnings(&text.replace("egde", "other")),
        ["7:10 domains.other unused_domain: is a domain without rules; domains with rules: edge"]
    );
    let rules = |domains: &[&str]| -> String {
        let rule = |(number, domain): (usize, &&str)| {
            format!(
                "[[rules]]\ndomain = '{domain}'\nname = 'r{number}'\nmatch = {{ account = 'a{number}' }}\naction = 'deny'\n"
            )
        };
        domains.iter().enumerate().map(rule).collect()
    };
    let almost = "similar_domain: is \"egde\", which is almost \"edge\", the domain of other rules; if it is another domain, \
                  add [domains.egde]";
    assert_eq!(warnings(&rules(&["edge", "edge", "egde"])), [format!("12:1 rules[2].domain {almost}")]);
    assert_eq!(warnings(&rules(&["egde", "edge", "edge"])), [format!("2:1 rules[0].domain {almost}")]);
    assert_eq!(kinds(&rules(&["edge", "egde"])), BTreeSet::from(["similar_domain"]));
    assert_eq!(warnings(&rules(&["api1", "api2", "site-a", "site-b"])), [""; 0]);
    let both = format!("{}[domains.edge]\n[domains.egde]\n", rules(&["edge", "edge", "egde"]));
    assert_eq!(warnings(&both), [""; 0]);
}

#[test]
fn a_path_or_host_that_is_not_normalised_causes_a_warning() {
    let text = "[[rules]]\ndomain = 'edge'\nname = 'a'\nmatch = { path = ['/login', '/in'] }\naction = 'deny'\n";
    assert_eq!(
        warnings(text),
        [
            "4:11 rules[0].match.path not_normalised: uses path as clients spell it: \"//login\" and \"/login?x\" are not \
          \"/login\"; set domains.edge.normalise.path = [\"path\"]"
        ]
    );
    assert_eq!(kinds(&text.replace("path =", "host =").replace('/', "")), BTreeSet::from(["not_normalised"]));
    assert_eq!(kinds(&apply("key = ['path']")), BTreeSet::from(["not_normalised"]));
    assert_eq!(warnings(&apply("key = [{ entry = 'path', normalise = ['path'] }]")), [""; 0]);
    for good in [
        format!("{text}[domains.edge.normalise]\npath = ['lowercase', 'path']\n"),
        format!("{text}[authz]\ndomain = 'edge'\n"),
        text.replace("['/login', '/in']", "'*'"),
        text.replace("['/login', '/in']", "{ not = '*' }"),
    ] {
        assert_eq!(warnings(&good), [""; 0], "{good}");
    }
}

/// Rules of the domain `edge`, each with these keys on its fourth line of five.
fn rules(keys: &[&str]) -> String {
    let rule = |(number, keys): (usize, &&str)| format!("[[rules]]\ndomain = 'edge'\nname = 'r{number}'\n{keys}\n\n");
    let limiters = "[domains.edge.normalise]\npath = ['path']\n[limiters.a]\nmax_concurrent = 1\n[check]\naccept = ['unused_limiter', 'unused_entry']\n";
    limiters.to_owned() + &keys.iter().enumerate().map(rule).collect::<String>()
}

#[test]
fn a_rule_behind_one_that_ends_every_walk_before_it_causes_a_warning() {
    let deny = "action = 'deny'";
    let apply = "apply = [{ limiter = 'a', key = ['remote_address'] }]";
    let text = rules(&[deny, apply]);
    assert_eq!(
        warnings(&text),
        [
            "12:1 rules[1] unreachable_rule: is never reached: rule \"r0\" at a.toml:7 matches all its requests and ends the \
          walk; move it before that"
        ]
    );
    let tests = [
        ("match = { path = '*' }", "match = { path = '/login' }"),
        ("match = { path = '/api/*' }", "match = { path = '/api/v1/*', method = 'GET' }"),
        ("match = { path = '//api/*' }", "match = { path = ['/api/a', '/x/../api/b'] }"),
        ("match = { remote_address = '10.0.0.0/8' }", "match = { remote_address = ['10.1.2.3', '10.2.0.0/16'] }"),
        ("match = { method = ['get', 'post'] }", "match = { method = 'POST' }"),
        ("match = { account = { not = 'bob' } }", "match = { account = 'eve' }"),
        ("match = { account = { not = '*' } }", "match = { account = { not = '*' }, path = '/a' }"),
        ("match = { method = 'GET', path = '/a' }", "match = { path = '/a', method = 'GET', host = '*' }"),
    ];
    for (ending, covered) in tests {
        for (end, one) in [("action = 'allow'", deny), (deny, apply), (&*format!("final = true\n{apply}"), deny)] {
            let text = rules(&[&format!("{ending}\n{end}"), &format!("{covered}\n{one}")]);
            assert_eq!(kinds(&text), BTreeSet::from(["unreachable_rule"]), "{text}");
            let reversed = rules(&[&format!("{covered}\n{one}"), &format!("{ending}\n{end}")]);
            assert_eq!(warnings(&reversed), [""; 0], "{reversed}");
        }
    }
    for end in [apply, "action = 'deny'\nmode = 'shadow'", &format!("final = true\nenforce_percent = 50\n{apply}")] {
        let text = rules(&[end, "match = { path = '/a' }\naction = 'deny'"]);
        assert!(!kinds(&text).contains("unreachable_rule"), "{text}");
    }
    let elsewhere = rules(&[deny, apply]).replacen("domain = 'edge'", "domain = 'login'", 1);
    assert_eq!(warnings(&elsewhere), [""; 0]);
}

#[test]
fn many_rules_are_compared_in_little_time() {
    let banned: Vec<String> =
        (0..3_000).map(|number| format!("match = {{ account = 'a{number}' }}\naction = 'deny'")).collect();
    let patterns = (0..1_500).map(|number| format!("match = {{ account = 'b{number}*c' }}\naction = 'deny'"));
    let all: Vec<String> =
        banned.into_iter().chain(patterns).chain(["match = { account = 'a7' }\naction = 'allow'".to_owned()]).collect();
    let text = rules(&all.iter().map(String::as_str).collect::<Vec<_>>());
    let began = std::time::Instant::now();
    assert_eq!(kinds(&text), BTreeSet::from(["unreachable_rule"]));
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
}

#[test]
fn a_rule_that_does_what_an_earlier_one_does_causes_a_warning() {
    let first =
        "match = { path = '/a', method = 'get' }\napply = [{ limiter = 'a', key = ['remote_address', 'path'] }]";
    let same =
        "match = { method = 'GET', path = '/x/../a' }\napply = [{ limiter = 'a', key = ['path', 'remote_address'] }]";
    assert_eq!(
        warnings(&rules(&[first, same])),
        [
            "13:1 rules[1] duplicate_rule: matches and does the same as rule \"r0\" at a.toml:7; remove one, or correct its \
          match or apply"
        ]
    );
    for other in [
        same.replace("'GET'", "'POST'"),
        same.replace("'path', ", ""),
        format!("{same}\nmode = 'shadow'"),
        same.replace("limiter = 'a',", "limiter = 'a', missing = 'deny',"),
    ] {
        assert_eq!(warnings(&rules(&[first, &other])), [""; 0], "{other}");
    }
}

#[test]
fn semantics_40_a_hold_that_is_given_back_when_it_is_lost_causes_a_warning() {
    let window = "algorithm = 'sliding_window'\nlimit = 5\nwindow = '1m'";
    let holds = |keys: &str| {
        let apply = format!("apply = [{{ limiter = 'a', key = ['path'], hold = '5m'{keys} }}]");
        rules(&[&apply]).replace("max_concurrent = 1", window)
    };
    assert_eq!(
        warnings(&holds(", lost = 'release'")),
        [
            "12:56 rules[0].apply[0].lost lost_release: is \"release\", a client that breaks a request off pays nothing: \
             expected \"charge\", unless that is meant"
        ]
    );
    assert_eq!(warnings(&holds(", lost = 'charge'")), [""; 0]);
    assert_eq!(warnings(&holds("")), [""; 0]);
}

#[test]
fn a_redirect_and_a_key_that_is_absent_cause_warnings() {
    assert_eq!(
        warnings(&rules(&["action = 'deny'\nstatus = 302"])),
        [
            "11:1 rules[0].status redirect_without_location: is 302, a redirect without a location: no rule can set that \
          header; expected a status from 400 to 599"
        ]
    );
    assert_eq!(warnings(&rules(&["action = 'deny'\nstatus = 404"])), [""; 0]);
    let absent = "match = { remote_address = { not = '*' } }\napply = [{ limiter = 'a', key = ['remote_address'] }]";
    assert_eq!(
        warnings(&rules(&[absent])),
        [
            "11:34 rules[0].apply[0].key[0] absent_key: names the entry \"remote_address\", which the rule requires to be \
          absent, so nothing is counted; correct the match, or the key"
        ]
    );
    assert_eq!(warnings(&rules(&[&absent.replace("key =", "missing = 'empty', key =")])), [""; 0]);
}

#[test]
fn a_limiter_that_no_rule_applies_causes_a_warning() {
    let limiters: String = ["a", "b", "api_free", "api_pro", "apifree"]
        .map(|name| format!("[limiters.{name}]\nmax_concurrent = 1\n"))
        .concat();
    let text = format!(
        "{limiters}[[rules]]\ndomain = 'edge'\nname = 'a'\napply = [{{ limiter = 'api_{{plan}}', otherwise = 'b' }}]\n"
    );
    let unused = "unused_limiter: is applied by no rule, so it limits nothing; apply it in a rule, remove it, or, if workers \
                  ask for it by name, set direct = true";
    assert_eq!(warnings(&text), [format!("1:11 limiters.a {unused}"), format!("9:11 limiters.apifree {unused}")]);
    let yaml = read_as(
        "a.yaml",
        "limiters:\n  a: { max_concurrent: 1 }\n  b: { max_concurrent: 1 }\nrules:\n  - { domain: edge, name: a, apply: [{ limiter: b }] }\n",
    );
    assert_eq!(yaml.warnings.iter().map(shown).collect::<Vec<_>>(), [format!("2:3 limiters.a {unused}")]);
}

#[test]
fn numbers_that_admit_more_or_longer_than_they_say_cause_warnings() {
    let limiter = |keys: &str| {
        format!("[limiters.a]\n{keys}\n[[rules]]\ndomain = 'edge'\nname = 'a'\napply = [{{ limiter = 'a' }}]\n")
    };
    assert_eq!(
        warnings(&limiter("rate_per_second = 10\nburst = 50")),
        [
            "3:1 limiters.a.burst large_burst: is 50, so the first second admits 60, but rate_per_second is 10; expected at \
          most 1, which it is without burst"
        ]
    );
    assert_eq!(
        warnings(&limiter("algorithm = 'token_bucket'\nlimit = 10\nwindow = '1m'\nburst = 11")),
        [
            "5:1 limiters.a.burst large_burst: is 11, so the first window admits 21, but limit is 10; expected at most 10, \
          which it is without burst"
        ]
    );
    for good in ["rate_per_second = 10", "rate_per_second = 90\nburst = 9", "rate_per_second = 0.5\nburst = 1"] {
        assert_eq!(warnings(&limiter(good)), [""; 0], "{good}");
    }
    assert_eq!(
        warnings(&limiter("algorithm = 'sliding_counter'\nlimit = 10\nwindow = '400d'")),
        [
            "4:1 limiters.a.window long_window: is \"400d\", which is more than a year: a counter is kept that long; is the unit \
          meant?"
        ]
    );
    assert_eq!(kinds(&limiter("max_concurrent = 1\nlease = '300h'")), BTreeSet::from(["long_window"]));
    assert_eq!(warnings(&limiter("algorithm = 'fixed_window'\nlimit = 1\nwindow = '366d'")), [""; 0]);
}

#[test]
fn a_file_of_rate_sync_causes_no_warnings_and_its_keys_elsewhere_do() {
    let file =
        "limiters:\n  login:\n    algorithm: sliding_window\n    limit: 60\n    window_seconds: 60\n    timeout: 5.0\n";
    assert!(read_as("a.yaml", file).warnings.is_empty());
    let store =
        "[stores.main]\nengine = 'redis'\nurl = 'redis://h'\npool_max_size = 9\nsocket_timeout = 1\n[fastapi]\n";
    let rule = "[[rules]]\ndomain = 'edge'\nname = 'a'\naction = 'deny'\n";
    assert_eq!(warnings(&format!("{store}[limiters.a]\nrate_per_second = 5\n")), [""; 0]);
    let found = warnings(&format!("{store}{rule}"));
    assert!(found.len() == 3 && found.iter().all(|warning| warning.contains("ignored_key")), "{found:?}");
}

#[test]
fn a_limiter_without_rules_causes_a_warning_unless_workers_can_ask_for_it() {
    let slots = "[limiters.a]\nmax_concurrent = 1\n";
    assert_eq!(
        warnings(slots),
        [
            "1:11 limiters.a no_rules: is applied by no rule: there are no rules, so every request passes; add one: [[rules]] \
             with domain = \"edge\", name = \"a\" and apply = [{ limiter = \"a\", key = [\"remote_address\"] }], or, if \
             workers ask for it by name, direct = true"
        ]
    );
    assert_eq!(warnings(&format!("{slots}direct = true\n")), [""; 0]);
    let second = format!("{slots}direct = true\n[limiters.b]\nmax_concurrent = 1\n");
    assert!(warnings(&second)[0].starts_with("4:11 limiters.b no_rules:"));
    let rule = "[[rules]]\ndomain = 'edge'\nname = 'a'\naction = 'deny'\n";
    assert_eq!(
        warnings(&format!("{slots}{rule}")),
        [
            "1:11 limiters.a unused_limiter: is applied by no rule, so it limits nothing; apply it in a rule, remove it, or, \
             if workers ask for it by name, set direct = true"
        ]
    );
    assert_eq!(warnings(&format!("{slots}direct = true\n{rule}")), [""; 0]);
    assert_eq!(warnings(&format!("{slots}direct = true\n[domains.jobs]\nmode = 'shadow'\n{rule}")), [""; 0]);
}

#[test]
fn semantics_46_wait_on_a_limiter_whose_callers_cannot_be_granted_ahead_causes_a_warning() {
    let limiter = |keys: &str| format!("[limiters.a]\ndirect = true\nwait = true\n{keys}\n");
    assert_eq!(
        warnings(&limiter("max_concurrent = 2")),
        [
            "3:1 limiters.a.wait queued_wait: is true, but a limiter that is no token_bucket grants nobody ahead: its callers \
             queue in each instance in the order of their arrival there, and one that does not wait can be ahead of them; \
             remove it: timeout and max_wait alone let them wait"
        ]
    );
    let joined = warnings(&limiter("rate_per_second = 5\nmax_concurrent = 2"));
    assert!(joined[0].contains("but a limiter with max_concurrent grants nobody ahead"), "{joined:?}");
    assert_eq!(
        kinds(&limiter("algorithm = 'fixed_window'\nlimit = 2\nwindow = '1m'")),
        BTreeSet::from(["queued_wait"])
    );
    assert_eq!(warnings(&limiter("rate_per_second = 5")), [""; 0]);
    assert_eq!(warnings(&limiter("max_concurrent = 2").replace("wait = true", "wait = false")), [""; 0]);
}

#[test]
fn semantics_50_direct_on_a_limiter_that_rules_apply_causes_a_warning() {
    let text = |reference: &str, more: &str| {
        format!(
            "[check]\naccept = ['unknown_entry']\n[limiters.api_free]\nmax_concurrent = 1\ndirect = true\n[limiters.other]\nmax_concurrent = 1\ndirect = true\n\
             [[rules]]\ndomain = 'edge'\nname = 'plans'\nmatch = {{ tier = '*' }}\n\
             apply = [{{ limiter = '{reference}', key = ['account']{more} }}]\n"
        )
    };
    let warning = |reference: &str| {
        format!(
            "5:1 limiters.api_free.direct direct_applied: is true, but rule \"plans\" applies it, and workers ask for it as that \
             rule does, in the domain \"edge\" as {reference:?} by the entries of its key; direct is for limiters that no \
             rule applies, so remove it, or give workers a limiter of their own"
        )
    };
    assert_eq!(warnings(&text("api_free", "")), [warning("api_free")]);
    let template = warnings(&text("api_{tier}", ", otherwise = 'other'"));
    assert_eq!((template.len(), &template[0]), (2, &warning("api_{tier}")), "{template:?}");
    assert!(template[1].contains("limiters.other.direct direct_applied: is true, but rule \"plans\" applies it"));
    assert_eq!(warnings(&text("api_free", "").replacen("direct = true\n", "", 1)), [""; 0]);
}

#[test]
fn a_domain_of_the_api_without_rules_causes_a_warning() {
    let text = |domain: &str| {
        format!("[server]\napi_domain = '{domain}'\n[[rules]]\ndomain = 'edge'\nname = 'a'\naction = 'deny'\n")
    };
    assert_eq!(
        warnings(&text("egde")),
        [
            "2:1 server.api_domain api_without_rules: is \"egde\", which has no rules and no limiter with direct = true, so \
             calls that name no domain fail; did you mean \"edge\"?"
        ]
    );
    assert_eq!(warnings(&text("edge")), [""; 0]);
    assert_eq!(warnings(&format!("{}[limiters.a]\nmax_concurrent = 1\ndirect = true\n", text("jobs"))), [""; 0]);
}

#[test]
fn a_port_in_clear_text_that_others_can_reach_causes_a_warning() {
    let server = |keys: &str| format!("[server]\n{keys}\n[[rules]]\ndomain = 'edge'\nname = 'a'\naction = 'deny'\n");
    assert_eq!(
        warnings(&server("grpc = '0.0.0.0:8081'")),
        [
            "2:1 server.grpc clear_text: is \"0.0.0.0:8081\", so the descriptors of all requests can be read on the network and \
          by others who reach it; use a loopback address or a Unix socket, or, if only gateways are on that network, set \
          server.clear_text = \"accepted\""
        ]
    );
    for open in [
        "http = '[::]:8080'",
        "http = '10.1.2.3:8080'",
        "grpc = '[::ffff:10.1.2.3]:1'",
        "admin = '0.0.0.0:9090'\nadmin_token = 'sixteen letters and more'",
        "api = '0.0.0.0:9091'\napi_token = ['sixteen letters and more', 'another of these']",
    ] {
        assert_eq!(kinds(&server(open)), BTreeSet::from(["clear_text"]), "{open}");
        assert_eq!(warnings(&server(&format!("{open}\nclear_text = 'accepted'"))), [""; 0], "{open}");
    }
    for closed in [
        "grpc = '127.0.0.1:1'",
        "http = '[::1]:1'",
        "http = '[::ffff:127.0.0.1]:1'",
        "grpc = 'unix:/run/a'",
        "admin = 'off'",
    ] {
        assert_eq!(warnings(&server(closed)), [""; 0], "{closed}");
    }
}

#[test]
fn entries_that_no_rule_uses_and_headers_that_gateways_drop_cause_warnings() {
    let text = format!(
        "{}[domains.edge]\nnormalise = {{ remote_adress = ['trim'] }}\nentries = ['remote_adress']\n",
        apply("key = ['account']").replace("account", "remote_address")
    );
    let text = text.replace("entries = ['remote_adress']", "entries = ['remote_adress', 'remote_address']");
    assert_eq!(
        warnings(&text),
        [
            "8:15 domains.edge.normalise.remote_adress unused_entry: is about the entry \"remote_adress\", which no rule of the \
          domain uses; did you mean \"remote_address\"?"
        ]
    );
    let header = format!(
        "{}[authz]\ndomain = 'edge'\nentries.account = {{ header = 'X_Account' }}\n",
        apply("key = ['account']")
    );
    assert_eq!(
        warnings(&header),
        ["9:21 authz.entries.account.header header_underscore: is \"X_Account\", which nginx drops, and Envoy with \
          headers_with_underscores_action: name a header with dashes"]
    );
}

#[test]
fn a_warning_is_accepted_by_its_name() {
    let text = apply("key = ['ip']");
    assert_eq!(warnings(&format!("{text}[check]\naccept = ['unknown_entry', 'no_rules']\n")), [""; 0]);
    assert_eq!(warnings(&format!("{text}[check]\naccept = ['no_rules']\n")).len(), 1);
    let unknown =
        SourceText { name: "a.toml".to_owned(), text: format!("{text}[check]\naccept = ['unknown_entri']\n") };
    let errors = Config::read(&[unknown], &|_| None).expect_err("there is no such warning").to_string();
    assert!(
        errors.contains("a.toml:8: check.accept[0] is \"unknown_entri\", expected one of")
            && errors.ends_with("did you mean \"unknown_entry\"?"),
        "{errors}"
    );
}

#[test]
fn errors_come_alone_and_with_their_place() {
    let text = "[limiters.a]\nalgorithm = 'sliding_window'\nlimit = 0\nwindow = '1m'\ntimeout = 1\n[[rules]]\ndomain = 'edge'\nname = 'é'\napply = [{ limiter = 'é', key = 'x' }]\n";
    let source = SourceText { name: "a.toml".to_owned(), text: text.to_owned() };
    let errors = Config::read(&[source], &|_| None).expect_err("refused");
    let places: Vec<_> =
        errors.iter().map(|error| (error.line, error.column, error.path.as_str(), error.warning)).collect();
    assert_eq!(
        places,
        [
            (Some(3), Some(1), "limiters.a.limit", None),
            (Some(9), Some(12), "rules[0].apply[0].limiter", None),
            (Some(9), Some(27), "rules[0].apply[0].key", None),
        ]
    );
}

#[test]
fn no_sample_causes_a_warning_wherever_it_is_used() {
    let mut paths = Vec::new();
    collect(&root().join("config"), &mut paths);
    collect(&root().join("examples"), &mut paths);
    let mut read = 0;
    for path in paths {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let text = std::fs::read_to_string(&path).expect("text");
        let ours = ending == "toml" || ending == "yaml" && text.contains("\nlimiters:");
        if !ours || path.ends_with("redis.toml") {
            continue;
        }
        read += 1;
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        for host in [None, Some("0.0.0.0".to_owned())] {
            let source = SourceText { name: name.clone(), text: text.clone() };
            let config = Config::read(&[source], &|name| host.clone().filter(|_| name == "TOLLGATE_HOST"));
            let found: Vec<String> =
                config.unwrap_or_else(|errors| panic!("{errors}")).warnings.iter().map(shown).collect();
            assert_eq!(found, [""; 0], "{} for {host:?}", path.display());
        }
    }
    assert!(read >= 15, "only {read} samples");
    // docker-compose.yml reads these two as one.
    let sources = ["gateway.toml", "redis.toml"].map(|name| SourceText {
        name: name.to_owned(),
        text: std::fs::read_to_string(root().join("examples/envoy").join(name)).expect("text"),
    });
    let config = Config::read(&sources, &|name| (name == "TOLLGATE_HOST").then(|| "0.0.0.0".to_owned()));
    assert_eq!(config.expect("good").warnings, []);
}

fn collect(directory: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("readable").path();
        match path.is_dir() {
            true => collect(&path, paths),
            false => paths.push(path),
        }
    }
}

#[test]
fn every_kind_has_a_name_of_its_own_and_sentences() {
    let names: BTreeSet<&str> = WarningKind::ALL.iter().map(|kind| kind.name()).collect();
    assert_eq!(names.len(), WarningKind::ALL.len());
    for kind in WarningKind::ALL {
        assert!(kind.name().chars().all(|letter| letter.is_ascii_lowercase() || letter == '_'), "{}", kind.name());
        assert!(kind.about().ends_with('.') && kind.remedy().ends_with('.'), "{}", kind.name());
    }
}
