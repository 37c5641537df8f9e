//! Any text as a configuration, in TOML and in YAML: it is rejected with a location, or its printed form means the
//! same.

use tollgate::config::{Config, Errors, SourceText};
use tollgate::limiter::Algorithm;
use tollgate::rules::{RuleBook, Rules};

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A `file:` would read files of this machine.
    if text.contains("file:") {
        return;
    }
    for name in ["fuzzed.toml", "fuzzed.yaml"] {
        match read(name, text) {
            Ok(config) => prints_what_is_accepted_and_equal(config),
            Err(errors) => have_places(&errors, name, text),
        }
    }
}

fn read(name: &str, text: &str) -> Result<Config, Errors> {
    let source = SourceText { name: name.to_owned(), text: text.to_owned() };
    Config::read(&[source], &|name| (name == "SET").then(|| "7 ${SET} $".to_owned()))
}

fn prints_what_is_accepted_and_equal(mut config: Config) {
    let printed = config.effective();
    let again = match read("printed.yaml", &printed) {
        Ok(again) => again,
        Err(errors) => panic!("what is printed is refused: {errors}\n{printed}"),
    };
    assert_eq!(again.effective(), printed);
    // The printed form states the admin address explicitly.
    config.server.admin.chosen = true;
    assert_eq!(again.server, config.server);
    assert_eq!(meaning(&again.book), meaning(&config.book));
    if let Err(errors) = Rules::compile(config.book) {
        panic!("what is accepted does not compile: {errors:?}");
    }
}

/// Rules in a comparable form: an omitted burst is replaced by the limit.
fn meaning(book: &RuleBook) -> String {
    let mut book = book.clone();
    for quota in book.limiters.iter_mut().filter_map(|limiter| limiter.quota.as_mut()) {
        if let Algorithm::TokenBucket { burst: burst @ None, .. } = &mut quota.algorithm {
            *burst = Some(quota.limit);
        }
    }
    format!("{book:?}")
}

fn have_places(errors: &Errors, name: &str, text: &str) {
    assert!(errors.iter().count() > 0, "refused without an error");
    // An error may be located at the end, after the last line.
    let lines = text.split(['\n', '\r']).count() as u32 + 1;
    for error in errors.iter() {
        assert_eq!(error.file, name, "{error}");
        assert!(error.line.is_some_and(|line| (1..=lines).contains(&line)), "{lines} lines, and {error:?}");
        assert!(!error.text.is_empty());
    }
}
