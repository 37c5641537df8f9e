//! Prints the output of commands.

use std::io::Write;
use std::time::Duration;

use tollgate::server::admin::api::{CounterReading, CounterState};

/// Writes to standard output. A closed pipe, as with `| head`, is not an error.
pub(super) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Formats rows with aligned columns.
pub(super) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
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

/// Formats a table of counters and their values.
pub(super) fn counters(states: &[CounterState]) -> String {
    let mut rows = vec![["LIMITER", "RULE", "COUNTED BY", "USED", "LEFT", "NOW", "EMPTY IN", "KEY"].map(str::to_owned)];
    rows.extend(states.iter().map(|counter| {
        let [used, left, now, reset] = match &counter.state {
            CounterReading::Unknown { error } => {
                [String::new(), String::new(), format!("unknown: {error}"), String::new()]
            }
            CounterReading::Holds { limit, used, held, remaining, passes, retry_after_ms, reset_ms } => [
                match (held, counter.slots) {
                    (_, true) => format!("{used} of {limit} slots"),
                    (0, false) => format!("{used} of {limit}"),
                    (held, false) => format!("{used} of {limit}, {held} held"),
                },
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

/// Formats a duration.
pub(super) fn span(millis: u64) -> String {
    // Above 10 s, round up to whole seconds.
    let rounded = if millis > 10_000 { millis.div_ceil(1000) * 1000 } else { millis };
    humantime::format_duration(Duration::from_millis(rounded)).to_string()
}
