//! `tollgate key`, `state`, `lift` and `top`: find a refused identity, and reset its counters.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use tollgate::descriptor::Descriptor;
use tollgate::server::admin::api::{
    CounterReading, CounterState, LiftRequest, LiftedCounter, MistakeCount, RefusalCount, TopRefused,
};

use super::client::{AdminClient, identity};
use super::load;
use super::table::{self, aligned, print, span};

/// Prints the hashed names of an identity's counters, with the rules and the secret of a file.
pub(super) fn key(path: Option<&Path>, domain: &str, entries: &[(String, String)]) -> ExitCode {
    let rules = match load::rules(path) {
        Ok((rules, _)) => rules,
        Err(code) => return code,
    };
    let descriptor = Descriptor::of(entries.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    let counters = match rules.counters(domain, &descriptor) {
        Ok(counters) => counters,
        Err(error) => {
            eprintln!("tollgate: {error}");
            return ExitCode::FAILURE;
        }
    };
    if rules.secret().is_development() {
        eprintln!("tollgate: server.secret is not set: these keys are valid only for servers without a secret");
    }
    let mut rows = vec![["KEY", "LIMITER", "RULE", "COUNTED BY"].map(str::to_owned)];
    rows.extend(
        counters
            .into_iter()
            .map(|counter| [counter.check.counter.to_string(), counter.limiter, counter.rule, counter.key.join(", ")]),
    );
    print(&aligned(&rows));
    ExitCode::SUCCESS
}

/// Prints the values of an identity's counters.
pub(super) fn state(
    client: &AdminClient,
    domain: &str,
    entries: &[(String, String)],
    json: bool,
) -> anyhow::Result<()> {
    let states: Vec<CounterState> = client.post("/state", &identity(domain, entries))?;
    if json {
        print(&format!("{}\n", serde_json::to_string_pretty(&states)?));
        return Ok(());
    }
    print(&table::counters(&states));
    let refuses = |counter: &CounterState| {
        !counter.shadow && !matches!(counter.state, CounterReading::Holds { passes: true, .. })
    };
    if !states.iter().any(refuses) {
        eprintln!(
            "tollgate: none of these refuses; tollgate explain --server HOST:PORT shows how the rules treat a whole request"
        );
    }
    Ok(())
}

/// The default of `--who`: the user who logged in, else the user id of the process and the host name.
pub(super) fn who() -> String {
    let named = |variable| std::env::var(variable).ok().filter(|name| !name.trim().is_empty());
    ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(named).unwrap_or_else(|| {
        let user = std::fs::metadata("/proc/self")
            .map_or("unknown user".to_owned(), |process| format!("user {}", process.uid()));
        match std::fs::read_to_string("/proc/sys/kernel/hostname") {
            Ok(host) => format!("{user} on {}", host.trim()),
            Err(_) => user,
        }
    })
}

/// Resets the counters of an identity.
pub(super) fn lift(client: &AdminClient, lift: &LiftRequest) -> anyhow::Result<()> {
    let lifted: Vec<LiftedCounter> = client.post("/lift", lift)?;
    let mut rows = vec![["LIMITER", "LIFTED", "KEY"].map(str::to_owned)];
    rows.extend(lifted.iter().map(|counter| {
        let what = match (&counter.error, counter.held) {
            (Some(error), _) => format!("no: {error}"),
            (None, true) => "yes".to_owned(),
            (None, false) => "held nothing".to_owned(),
        };
        [counter.limiter.clone(), what, counter.key.clone()]
    }));
    print(&aligned(&rows));
    eprintln!("tollgate: recorded in the server's audit log, by {}: {}", lift.who, lift.why);
    let failed = lifted.iter().any(|counter| counter.error.is_some());
    anyhow::ensure!(!failed, "some counters could not be lifted");
    Ok(())
}

/// Prints the rules and keys with the most refusals in the last minutes.
pub(super) fn top(client: &AdminClient, minutes: u8, lines: usize) -> anyhow::Result<()> {
    let top: TopRefused = client.fetch(&format!("/top?minutes={minutes}"))?;
    let row = |refused: &RefusalCount| {
        let count = match refused.over {
            0 => refused.refused.to_string(),
            over => format!("{} to {}", refused.refused - over, refused.refused),
        };
        // A domain can refuse without a rule, and a rule without a limiter.
        let or_dash = |name: &str| if name.is_empty() { "-".to_owned() } else { name.to_owned() };
        let [domain, rule, limiter] = [&refused.domain, &refused.rule, &refused.limiter].map(|name| or_dash(name));
        [count, domain, rule, limiter, refused.key.clone().unwrap_or_default()]
    };
    let table = |last: &str, all: &[RefusalCount]| {
        let mut rows = vec![["REFUSED", "DOMAIN", "RULE", "LIMITER", last].map(str::to_owned)];
        rows.extend(all.iter().take(lines).map(row));
        aligned(&rows)
    };
    for MistakeCount { mistake, text, count } in &top.gateway_mistakes {
        eprintln!("tollgate: gateway mistake {mistake}, {count} since the start: {text}; the log has examples");
    }
    if top.rules.is_empty() {
        print(&format!("nothing was refused in the last {}\n", span(u64::from(minutes) * 60_000)));
        return Ok(());
    }
    print(&table("", &top.rules));
    if !top.keys.is_empty() {
        print(&format!("\n{}", table("KEY", &top.keys)));
    }
    Ok(())
}
