//! `tollgate key`, `state`, `lift` and `top`: finding an identity that is locked out, and letting it in again.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tollgate::clock::{Clock, SystemClock};
use tollgate::descriptor::Descriptor;
use tollgate::server::admin::api::{CounterState, Lift, Lifted, Refused, State, TopRefused};

use super::client::{Server, identity};

/// Prints the hashed names of an identity's counters, by the rules and the secret of a file.
pub fn key(path: Option<&Path>, domain: &str, entries: &[(String, String)]) -> ExitCode {
    let rules = match super::explain::rules(path) {
        Ok(rules) => rules,
        Err(code) => return code,
    };
    let descriptor = Descriptor::of(entries.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    let known = match rules.counters(domain, &descriptor, SystemClock::new().now()) {
        Ok(known) => known,
        Err(error) => {
            eprintln!("tollgate: {error}");
            return ExitCode::FAILURE;
        }
    };
    if rules.secret().is_development() {
        eprintln!(
            "tollgate: server.secret is not set, so these are the keys of a server without one; another has others"
        );
    }
    let mut rows = vec![["KEY", "LIMITER", "RULE", "COUNTED BY"].map(str::to_owned)];
    rows.extend(
        known
            .into_iter()
            .map(|counter| [counter.check.counter.to_string(), counter.limiter, counter.rule, counter.key.join(", ")]),
    );
    super::print(&aligned(&rows));
    ExitCode::SUCCESS
}

/// Prints what the counters of an identity hold.
pub fn state(server: &Server, domain: &str, entries: &[(String, String)], json: bool) -> anyhow::Result<()> {
    let states: Vec<CounterState> = server.post("/state", &identity(domain, entries))?;
    if json {
        super::print(&format!("{}\n", serde_json::to_string_pretty(&states)?));
        return Ok(());
    }
    super::print(&table(&states));
    let refuses =
        |counter: &CounterState| !counter.shadow && !matches!(counter.state, State::Holds { passes: true, .. });
    if !states.iter().any(refuses) {
        eprintln!(
            "tollgate: none of these refuses; tollgate explain --server says what the rules make of a whole request"
        );
    }
    Ok(())
}

/// What counters hold, for people.
pub fn table(states: &[CounterState]) -> String {
    let mut rows = vec![["LIMITER", "RULE", "COUNTED BY", "USED", "LEFT", "NOW", "EMPTY IN", "KEY"].map(str::to_owned)];
    rows.extend(states.iter().map(|counter| {
        let [used, left, now, reset] = match &counter.state {
            State::Unknown { error } => [String::new(), String::new(), format!("unknown: {error}"), String::new()],
            State::Holds { limit, used, remaining, passes, retry_after_ms, reset_ms } => [
                format!("{used} of {limit}{}", if counter.slots { " slots" } else { "" }),
                remaining.to_string(),
                match (passes, counter.shadow, retry_after_ms) {
                    (true, false, _) => "passes".to_owned(),
                    (true, true, _) => "passes, in shadow".to_owned(),
                    (false, false, Some(wait)) => format!("refused for {}", span(*wait)),
                    (false, false, None) => "refused always".to_owned(),
                    (false, true, Some(wait)) => format!("over for {}, in shadow: passes", span(*wait)),
                    (false, true, None) => "over always, in shadow: passes".to_owned(),
                },
                if *reset_ms == 0 { "-".to_owned() } else { span(*reset_ms) },
            ],
        };
        let by = match counter.key_entries.is_empty() {
            true => "one for all".to_owned(),
            false => counter.key_entries.join(", "),
        };
        [counter.limiter.clone(), counter.rule.clone(), by, used, left, now, reset, counter.key.clone()]
    }));
    aligned(&rows)
}

/// Who asks, where nobody says so: the person who logged in, else the user of the process and the host.
pub fn who() -> String {
    let named = |variable| std::env::var(variable).ok().filter(|name| !name.trim().is_empty());
    ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(named).unwrap_or_else(|| {
        let user = std::fs::metadata("/proc/self").map_or("somebody".to_owned(), |own| format!("user {}", own.uid()));
        match std::fs::read_to_string("/proc/sys/kernel/hostname") {
            Ok(host) => format!("{user} on {}", host.trim()),
            Err(_) => user,
        }
    })
}

/// Forgets the counters of an identity.
pub fn lift(server: &Server, lift: &Lift) -> anyhow::Result<()> {
    let lifted: Vec<Lifted> = server.post("/lift", lift)?;
    let mut rows = vec![["LIMITER", "LIFTED", "KEY"].map(str::to_owned)];
    rows.extend(lifted.iter().map(|counter| {
        let what = match (&counter.error, counter.held) {
            (Some(error), _) => format!("no: {error}"),
            (None, true) => "yes".to_owned(),
            (None, false) => "held nothing".to_owned(),
        };
        [counter.limiter.clone(), what, counter.key.clone()]
    }));
    super::print(&aligned(&rows));
    eprintln!("tollgate: the server's audit log has it, by {}: {}", lift.who, lift.why);
    let failed = lifted.iter().any(|counter| counter.error.is_some());
    anyhow::ensure!(!failed, "not everything could be lifted");
    Ok(())
}

/// Prints the most refused of the last minutes.
pub fn top(server: &Server, minutes: u8, lines: usize) -> anyhow::Result<()> {
    let top: TopRefused = server.fetch(&format!("/top?minutes={minutes}"))?;
    let row = |refused: &Refused| {
        let count = match refused.over {
            0 => refused.refused.to_string(),
            over => format!("{} to {}", refused.refused - over, refused.refused),
        };
        // A request may be refused by its domain, without a rule, or by a rule that has no limiter.
        let named = |name: &str| if name.is_empty() { "-".to_owned() } else { name.to_owned() };
        let [domain, rule, limiter] = [&refused.domain, &refused.rule, &refused.limiter].map(|name| named(name));
        [count, domain, rule, limiter, refused.key.clone().unwrap_or_default()]
    };
    let table = |last: &str, all: &[Refused]| {
        let mut rows = vec![["REFUSED", "DOMAIN", "RULE", "LIMITER", last].map(str::to_owned)];
        rows.extend(all.iter().take(lines).map(row));
        aligned(&rows)
    };
    if top.rules.is_empty() {
        super::print(&format!("nothing was refused in the last {}\n", span(u64::from(minutes) * 60_000)));
        return Ok(());
    }
    super::print(&table("", &top.rules));
    if !top.keys.is_empty() {
        super::print(&format!("\n{}", table("KEY", &top.keys)));
    }
    Ok(())
}

fn span(millis: u64) -> String {
    // Seconds are enough for a wait of a minute, and hide nothing of a shorter one.
    let rounded = if millis > 10_000 { millis.div_ceil(1000) * 1000 } else { millis };
    humantime::format_duration(Duration::from_millis(rounded)).to_string()
}

/// Rows whose columns begin below each other.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            line += &format!("{cell:width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}
