//! Any text as a configuration, in TOML and in YAML: it is rejected with a location, or its printed form means the
//! same.

use tollgate::config::{Config, Errors, Problem, SourceText, WarningKind};
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
            Ok(config) => {
                have_places(&config.warnings, name, text);
                prints_what_is_accepted_and_equal(config);
            }
            Err(errors) => {
                assert!(errors.iter().count() > 0, "refused without an error");
                have_places(errors.iter(), name, text);
            }
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
    // It states that there is a token, and not which.
    assert_eq!(again.server.admin.token.is_some(), config.server.admin.token.is_some());
    config.server.admin.token.clone_from(&again.server.admin.token);
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

/// Errors and warnings have a place in the file. The warning that a file has no rules is about all of it.
fn have_places<'a>(problems: impl IntoIterator<Item = &'a Problem>, name: &str, text: &str) {
    // An error may be located at the end, after the last line.
    let lines = text.split(['\n', '\r']).count() as u32 + 1;
    let longest = text.split('\n').map(|line| line.chars().count()).max().unwrap_or(0) as u32 + 1;
    for problem in problems {
        assert!(!problem.text.is_empty());
        if problem.warning == Some(WarningKind::NoRules) && problem.path.is_empty() {
            continue;
        }
        assert_eq!(problem.file, name, "{problem}");
        assert!(problem.line.is_some_and(|line| (1..=lines).contains(&line)), "{lines} lines, and {problem:?}");
        assert!(problem.column.is_none_or(|column| (1..=longest).contains(&column)), "{longest} wide, and {problem:?}");
        assert!(problem.warning.is_none() || problem.text.starts_with(&problem.path), "{problem:?}");
    }
}
