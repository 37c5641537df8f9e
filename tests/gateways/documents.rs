//! Reads or runs every command and configuration that the documents show.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tollgate::config::{Config, SourceText};

use crate::support::processes::{Answer, Ask, Ports, Tollgate, installed, project, read};

/// The documents whose commands, configuration and links are checked.
const DOCUMENTS: [&str; 23] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "RELEASING.md",
    "SECURITY.md",
    "benches/README.md",
    "docs/admin-api.md",
    "docs/algorithms.md",
    "docs/api.md",
    "docs/check.md",
    "docs/data.md",
    "docs/envoy.md",
    "docs/faq.md",
    "docs/gateways.md",
    "docs/getting-started.md",
    "docs/limits.md",
    "docs/metrics.md",
    "docs/operating.md",
    "docs/semantics.md",
    "docs/stores.md",
    "docs/workers.md",
    "examples/README.md",
];

/// The documents that show a first rule, with requests to try.
const WITH_A_FIRST_RULE: [&str; 2] = ["README.md", GETTING_STARTED];

const GETTING_STARTED: &str = "docs/getting-started.md";

/// A fenced block: its language and its text.
struct Block {
    document: &'static str,
    language: String,
    text: String,
}

fn blocks(document: &'static str) -> Vec<Block> {
    let text = read(document);
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(Block { document, language: language.to_owned(), text: text.join("\n") });
        }
    }
    blocks
}

fn all(language: &str) -> Vec<Block> {
    DOCUMENTS.into_iter().flat_map(blocks).filter(|block| block.language == language).collect()
}

#[test]
fn every_block_is_of_a_language_that_these_tests_know() {
    // The tests of PostgreSQL execute the statements.
    let known = BTreeSet::from(["json", "sh", "sql", "toml", "yaml", "text"]);
    for block in DOCUMENTS.into_iter().flat_map(blocks) {
        assert!(known.contains(block.language.as_str()), "{}: ```{}", block.document, block.language);
    }
}

#[test]
fn every_configuration_is_accepted() {
    let written = all("toml");
    assert!(written.len() > WITH_A_FIRST_RULE.len(), "the documents show configuration");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate").pem();
    let keys = format!("api_key,account,tier\n{},acme,gold\n", "0123456789abcdef".repeat(4));
    let files = [
        ("ca.crt", &*certificate),
        ("ca.pem", &certificate),
        ("tls.crt", &certificate),
        ("password", "of any form"),
        ("token", "of sixteen letters"),
        ("office.txt", "192.0.2.7"),
        ("blocked.txt", "192.0.2.8"),
        ("keys.csv", &keys),
    ];
    for (name, content) in files.into_iter().chain([("tls.key", &*key.serialize_pem())]) {
        fs::write(directory.path().join(name), content).expect("a file in the test's directory");
    }
    let secrets_of_a_store = format!("{}/", directory.path().display());
    for block in written {
        // A fragment without rules is read together with some, unless workers ask for its limiters by name.
        let text = match block.text.contains("[[rules]]") || block.text.contains("direct = true") {
            true => block.text,
            false => format!("{}\n{}", block.text, a_rule(&block.text)),
        };
        let text = text
            .replace("/var/lib/tollgate/", "")
            .replace("file = \"", &format!("file = \"{secrets_of_a_store}"))
            .replace("/run/secrets/db/", &secrets_of_a_store)
            .replace("/etc/tollgate/redis-", &secrets_of_a_store)
            .replace("/run/secrets/tollgate-api", &format!("{secrets_of_a_store}token"));
        let source = SourceText { name: format!("{} block.toml", block.document), text };
        let secrets = ["TOLLGATE_ADMIN_TOKEN", "TOLLGATE_SECRET", "REDIS_PASSWORD"];
        let variable = |name: &str| secrets.contains(&name).then(|| "of sixteen letters".to_owned());
        let config = Config::read(&[source], &variable).unwrap_or_else(|errors| panic!("{errors}"));
        assert!(config.warnings.is_empty(), "{}: {:?}", block.document, config.warnings);
    }
}

/// A rule that applies the limiters of a fragment.
fn a_rule(fragment: &str) -> String {
    let limiters = fragment.lines().filter_map(|line| line.strip_prefix("[limiters.")?.strip_suffix(']'));
    let applies: Vec<String> = limiters.map(|name| format!("{{ limiter = '{name}' }}")).collect();
    let action = match applies.is_empty() {
        true => "action = 'deny'".to_owned(),
        false => format!("apply = [{}]", applies.join(", ")),
    };
    format!("[[rules]]\ndomain = 'edge'\nname = 'all'\n{action}\n")
}

#[test]
fn every_filter_is_accepted_by_a_real_envoy() {
    let Some(envoy) = installed::envoy() else { return };
    let filters = all("yaml");
    assert_eq!(filters.len(), 4, "docs/envoy.md shows ext_authz, RLS, the end of a lease, and folded repeats");
    for block in filters {
        let filter: String = block.text.lines().map(|line| format!("          {line}\n")).collect();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("envoy.yaml");
        fs::write(&file, AROUND_A_FILTER.replace("FILTERS\n", &filter)).expect("a file in the test's directory");
        let output = Command::new(&envoy).args(["--mode", "validate", "-c"]).arg(&file).output().expect("envoy runs");
        assert!(output.status.success(), "{}\n{}", block.text, String::from_utf8_lossy(&output.stderr));
    }
}

/// Weakness R29: the documented examples do not work.
#[test]
fn every_command_is_one_that_works() {
    let targets = read("Makefile");
    let commands = all("sh");
    let lines = commands.iter().flat_map(|block| block.text.lines().map(|line| (block.document, line)));
    for (document, line) in lines {
        let command = line.split(" #").next().unwrap_or_default().trim();
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["make", target] => assert!(targets.contains(&format!("\n{target}:")), "{line}"),
            // The tests of rate-sync's files run these.
            ["tollgate", .., file] if *file == "rate-sync.toml" => {}
            ["target/release/tollgate" | "tollgate", "serve", "--config", file] => {
                assert!(served(document, file), "{line}");
            }
            ["target/release/tollgate", arguments @ ..] => {
                let output = in_a_new_project(document, arguments);
                assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
            }
            ["python3", file] | ["\"$(scripts/envoy)\"", "-c", file] => {
                assert!(project().join(file).is_file(), "{line}");
            }
            ["make", target, "STORE=redis" | "DURATION=600" | "DURATION=3m"] => {
                assert!(targets.contains(&format!("\n{target}:")), "{line}");
            }
            [script] if script.starts_with("scripts/") => assert!(project().join(script).is_file(), "{line}"),
            ["cargo", "run", "--", "serve", "--config", file] => assert!(served(document, file), "{line}"),
            ["cargo", "run", "--", "explain", "--config", file, arguments @ ..] => {
                let file = project().join(file);
                let file = file.to_str().expect("a path in UTF-8");
                let output = in_a_new_project(document, &[&["explain", "--config", file][..], arguments].concat());
                assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
            }
            ["cargo", "test", "--test", binary] => assert!(project().join("tests").join(binary).is_dir(), "{line}"),
            ["cargo", "test", "--lib", room] => assert!(project().join("src").join(room).is_dir(), "{line}"),
            ["cargo", "test", "--test", tests, "--", rooms @ .., "--nocapture"] => {
                let room = |room: &&str| project().join(format!("tests/{tests}/{room}.rs")).is_file();
                assert!(rooms.iter().all(room), "{line}");
            }
            ["cargo", "test", name] => assert!(read("docs/semantics.md").contains(name), "{line}"),
            // A bench takes too long for a test, and a profiler need not be installed: only the bench's name is
            // checked.
            ["CARGO_PROFILE_BENCH_STRIP=none", "cargo", "bench", "--bench", bench, ..] => {
                assert!(is_bench(bench), "{line}");
            }
            ["perf", "record", "-e", _, binary, ..] => {
                let bench = binary.strip_prefix("target/release/deps/").and_then(|name| name.strip_suffix("-*"));
                assert!(bench.is_some_and(is_bench), "{line}");
            }
            // `program::api_page` runs these.
            ["curl", ..] if document == "docs/api.md" => {}
            // The request of login.yaml, which the tests of that example send.
            ["curl", "-i", "-H", ..] => assert!(read("examples/envoy/login.yaml").contains(command), "{line}"),
            ["curl", "-i", "-X", "POST", ..] => assert!(line.contains(FIRST_REQUEST), "{line}"),
            // These build or test the code that runs here; the next test covers the curl line.
            [] | ["cargo", "build"] | ["cargo", "build", "--release"] | ["cargo", "test"] => {}
            _ => panic!("no test knows this command: {line}"),
        }
    }
}

const FIRST_REQUEST: &str = "-H 'x-account: bob' http://127.0.0.1:8080/authz/envoy/login";

#[test]
fn the_sixth_call_of_a_first_rule_is_refused_as_the_readme_says() {
    for document in WITH_A_FIRST_RULE {
        let tollgate = Tollgate::start(&with_addresses(&first_rule(document)), &Ports::free());
        let ask = Ask::post("/authz/envoy/login").account("bob");
        for _ in 0..5 {
            tollgate.ask(&ask).expect(200);
        }
        let refused = tollgate.ask(&ask).expect(429);
        // Five minutes after the first request, which was sent a moment ago.
        assert!(matches!(refused.retry_after(), Some(270..=300)), "{refused:?}");
        assert_eq!(refused.header("x-tollgate-rule"), Some("login"));
        assert_eq!(refused.header("x-tollgate-limiter"), Some("login_account"));
        if document == "README.md" {
            let lines = first_rule(document).lines().filter(|line| !line.is_empty()).count();
            assert_eq!(lines, 10, "the README says ten lines");
            assert_eq!(timeless(&printed(&refused)), timeless(&shown_refusal()));
        }
    }
}

/// The refusal shown in the README, as curl prints it.
fn shown_refusal() -> String {
    let texts = blocks("README.md").into_iter().filter(|block| block.language == "text").map(|block| block.text);
    texts.into_iter().find(|text| text.starts_with("HTTP/1.1 429")).expect("the README shows a refusal")
}

/// A response as `curl -i` prints it. The tests' connection closes, unlike that of curl.
fn printed(answer: &Answer) -> String {
    let shown = answer.headers.iter().filter(|(name, _)| name != "connection");
    let headers: String = shown.map(|(name, value)| format!("{name}: {value}\n")).collect();
    format!("HTTP/1.1 429 Too Many Requests\n{headers}\n{}", answer.body)
}

/// A refusal without its date and the seconds left.
fn timeless(refusal: &str) -> String {
    let date = refusal.lines().find(|line| line.starts_with("date: ")).expect("a date");
    let seconds = refusal.lines().find_map(|line| line.strip_prefix("retry-after: ")).expect("a time to wait");
    let names = ["x-ratelimit-reset: ", ";t=", "retry-after: ", "\"retry_after\":"];
    let text = names.iter().fold(refusal.to_owned(), |text, name| text.replace(&format!("{name}{seconds}"), name));
    text.replace(date, "date:").trim().to_owned()
}

#[test]
fn a_transcript_shows_what_a_command_prints() {
    let mut played = 0;
    for block in blocks(GETTING_STARTED).into_iter().filter(|block| block.language == "text") {
        let (command, expected) = block.text.split_once('\n').expect("a command and what it prints");
        let command = command.strip_prefix("$ target/release/tollgate ").expect("a command of tollgate");
        let output = in_a_new_project(GETTING_STARTED, &command.split(' ').collect::<Vec<_>>());
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), expected, "{command}");
        played += 1;
    }
    assert_eq!(played, 1);
}

/// The filter that docs/envoy.md shows for RLS sends the path with its query.
#[test]
fn the_first_rule_holds_whatever_stands_behind_the_path() {
    for path in ["/login", "/login?x", "//login", "/login;x"] {
        let entries = [&*format!("path={path}"), "method=POST", "remote_address=192.0.2.7", "account=bob"];
        let output = in_a_new_project(
            GETTING_STARTED,
            &[&["explain", "--config", "tollgate.toml", "edge"][..], &entries].concat(),
        );
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("login_account"), "{path}: {said}");
        assert!(!said.contains("no rule matches"), "{path}: {said}");
    }
}

#[test]
fn every_command_of_the_table_has_help() {
    let text = read(GETTING_STARTED);
    let commands = text.lines().filter_map(|line| line.strip_prefix("| `tollgate ")?.split([' ', '`']).next());
    let commands: Vec<&str> = commands.collect();
    assert_eq!(
        commands,
        [
            "serve",
            "check",
            "convert",
            "explain",
            "key",
            "state",
            "lift",
            "top",
            "acquire",
            "release",
            "peek",
            "table",
            "store",
            "schema",
            "completions"
        ]
    );
    for command in commands {
        assert!(in_a_new_project(GETTING_STARTED, &[command, "--help"]).status.success(), "{command}");
    }
}

#[test]
fn every_linked_file_is_there() {
    for document in DOCUMENTS {
        let folder = project().join(document).parent().expect("a folder").to_owned();
        for link in read(document).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (file, part) = link.split_once('#').map_or((link, None), |(file, part)| (file, Some(part)));
            let file = if file.is_empty() { project().join(document) } else { folder.join(file) };
            assert!(file.exists(), "{document}: {link}");
            if let Some(part) = part {
                let text = fs::read_to_string(&file).expect("a document");
                let mut titles = text.lines().filter_map(|line| line.strip_prefix('#'));
                let kept = |c: &char| c.is_alphanumeric() || matches!(c, '-' | '_' | ' ');
                let name = |title: &str| title.trim_matches(['#', ' ']).chars().filter(kept).collect::<String>();
                let found = titles.any(|title| name(title).to_lowercase().replace(' ', "-") == part);
                assert!(found, "{document}: {link}");
            }
        }
    }
}

/// The first rule of a document; that of the guide for documents without one.
fn first_rule(document: &'static str) -> String {
    let document = if WITH_A_FIRST_RULE.contains(&document) { document } else { GETTING_STARTED };
    let rule = blocks(document).into_iter().find(|block| block.language == "toml");
    rule.expect("it shows a first rule").text
}

/// The rule with loopback addresses: without addresses, it would listen on all interfaces.
fn with_addresses(rule: &str) -> String {
    match rule.contains("[server]") {
        true => rule.to_owned(),
        false => format!("{rule}\n[server]\ngrpc = '127.0.0.1:8081'\nhttp = '127.0.0.1:8080'\n"),
    }
}

/// Runs the binary in a new directory, where `tollgate.toml` contains the first rule of a document.
fn in_a_new_project(document: &'static str, arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("tollgate.toml"), first_rule(document)).expect("a file in the test's directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(arguments).current_dir(directory.path()).output().expect("the binary runs")
}

/// Whether a configuration that a document names is valid.
fn served(document: &'static str, file: &str) -> bool {
    let text = match Path::new(file) {
        path if path == Path::new("tollgate.toml") => with_addresses(&first_rule(document)),
        path => read(path),
    };
    Tollgate::start(&text, &Ports::free()).ask(&Ask::get("/healthcheck")).status == 200
}

/// Whether the project has a bench of this name.
fn is_bench(name: &str) -> bool {
    read("Cargo.toml").contains(&format!("[[bench]]\nname = \"{name}\"\n"))
}

const AROUND_A_FILTER: &str = r#"
static_resources:
  listeners:
  - name: main
    address: { socket_address: { address: 127.0.0.1, port_value: 10000 } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          route_config: { virtual_hosts: [{ name: all, domains: ["*"], routes: [{ match: { prefix: / }, route: { cluster: tollgate } }] }] }
          http_filters:
FILTERS
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
  clusters:
  - name: tollgate
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http2_protocol_options: {} }
    load_assignment:
      cluster_name: tollgate
      endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 8081 } } } }] }]
"#;
