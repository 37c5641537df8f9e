//! `tollgate key`, `state`, `lift` and `top`: finding an identity that is locked out, and letting it in again.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tollgate::clock::{Clock, SystemClock};
use tollgate::descriptor::Descriptor;
use tollgate::server::admin::answers::{CounterState, Lift, Lifted, Refused, State, TopRefused};

use super::ask::{Server, identity};

/// Prints the hashed names of an identity's counters, by the rules and the secret of a file.
pub fn key(path: Option<&Path>, domain: &str, entries: &[(String, String)]) -> ExitCode {
    let rules = match super::explain::rules(path) {
        Ok(rules) => rules,
        Err(code) => return code,
    };
    let descriptor = Descriptor::of(entries.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    let Some(known) = rules.counters(domain, &descriptor, SystemClock::new().now()) else {
        eprintln!("tollgate: there is no domain {domain:?} in the configuration");
        return ExitCode::FAILURE;
    };
    if known.is_empty() {
        eprintln!("tollgate: no limiter of this domain counts by these entries alone");
        return ExitCode::FAILURE;
    }
    let mut rows = vec![["KEY", "LIMITER", "RULE", "COUNTED BY"].map(str::to_owned)];
    rows.extend(
        known
            .into_iter()
            .map(|counter| [counter.look.counter.to_string(), counter.limiter, counter.rule, counter.key.join(", ")]),
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
    anyhow::ensure!(!states.is_empty(), "no limiter of this domain counts by these entries alone");
    super::print(&table(&states));
    Ok(())
}

/// What counters hold, for people.
pub fn table(states: &[CounterState]) -> String {
    let mut rows = vec![["LIMITER", "RULE", "COUNTED BY", "USED", "LEFT", "NOW", "EMPTY IN", "KEY"].map(str::to_owned)];
    rows.extend(states.iter().map(|counter| {
        let [used, left, now, reset] = match &counter.state {
            State::Unknown { error } => [String::new(), String::new(), format!("unknown: {error}"), String::new()],
            State::Holds { limit, used, remaining, passes, retry_after_ms, reset_ms } => [
                format!("{used} of {limit}"),
                remaining.to_string(),
                match (passes, retry_after_ms) {
                    (true, _) => "passes".to_owned(),
                    (false, Some(wait)) => format!("refused for {}", span(*wait)),
                    (false, None) => "refused always".to_owned(),
                },
                span(*reset_ms),
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
    let failed = lifted.iter().any(|counter| counter.error.is_some());
    anyhow::ensure!(!failed, "not everything could be lifted");
    Ok(())
}

/// Prints the most refused of the last minutes.
pub fn top(server: &Server, minutes: u8, lines: usize) -> anyhow::Result<()> {
    let top: TopRefused = server.fetch(&format!("/top?minutes={minutes}"))?;
    let mut rows = vec![["REFUSED", "DOMAIN", "RULE", "LIMITER", "KEY"].map(str::to_owned)];
    let row = |refused: &Refused| {
        let count = match refused.over {
            0 => refused.refused.to_string(),
            over => format!("{} to {}", refused.refused - over, refused.refused),
        };
        let key = refused.key.clone().unwrap_or_default();
        [count, refused.domain.clone(), refused.rule.clone(), refused.limiter.clone(), key]
    };
    rows.extend(top.rules.iter().take(lines).map(row));
    rows.extend(top.keys.iter().take(lines).map(row));
    if rows.len() == 1 {
        super::print(&format!("nothing was refused in the last {minutes} minutes\n"));
        return Ok(());
    }
    super::print(&aligned(&rows));
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
