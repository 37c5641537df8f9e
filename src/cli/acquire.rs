//! `tollgate acquire`, `release` and `peek`: limits for shell scripts.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use tollgate::settings::parse_duration;

use super::entry::entry;
use super::hold::{Holder, Signals};
use super::table::{aligned, print};
use super::workers::{ApiAnswer, ApiArgs, ApiClient, seconds};

/// The exit code of a refusal: `EX_TEMPFAIL` of sysexits.h, "the user is invited to retry".
const REFUSED_CODE: u8 = 75;

/// The longest wait if none is named: the server knows it, and bounds it.
const UNKNOWN_WAIT: Duration = Duration::from_secs(86_400);

/// What is asked for.
#[derive(Debug, Args)]
pub(super) struct AskArgs {
    #[command(flatten)]
    server: ApiArgs,
    /// The limiter, as rules write it. The entries are its key. Without it, the rules of the domain decide the entries.
    #[arg(long, value_name = "NAME")]
    limiter: Option<String>,
    /// The units.
    #[arg(long, value_name = "N")]
    cost: Option<u64>,
    /// Print the server's answer, as JSON.
    #[arg(long)]
    json: bool,
    /// The domain.
    domain: String,
    /// The entries.
    #[arg(value_name = "ENTRY=VALUE", value_parser = entry)]
    entries: Vec<(String, String)>,
}

/// How a lease is held.
#[derive(Debug, Args)]
pub(super) struct HoldArgs {
    /// The longest wait, such as `30s`. By default that of the limiter; `0s` does not wait.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    wait: Option<Duration>,
    /// How long slots are held, such as `15s`. By default as the limiter says. A command has it renewed.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    lease: Option<Duration>,
    /// What happens to the command if its lease cannot be renewed in time.
    #[arg(long, value_enum, default_value_t = OnLost::Kill)]
    on_lost: OnLost,
    /// A command to run under the lease.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What happens to a command whose lease is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OnLost {
    /// It gets SIGTERM, and SIGKILL before the lease ends.
    Kill,
    /// It runs on, although another one may run then.
    Keep,
}

impl AskArgs {
    fn body(&self) -> Map<String, Value> {
        let entries: Map<String, Value> =
            self.entries.iter().map(|(entry, value)| (entry.clone(), json!(value))).collect();
        let mut body = Map::new();
        body.insert("domain".to_owned(), json!(self.domain));
        match &self.limiter {
            Some(limiter) => {
                body.insert("limiter".to_owned(), json!(limiter));
                body.insert("key".to_owned(), entries.into());
            }
            None => {
                body.insert("entries".to_owned(), entries.into());
            }
        }
        if let Some(cost) = self.cost {
            body.insert("cost".to_owned(), json!(cost));
        }
        body
    }
}

/// Takes what is asked for, and runs the command under its lease.
pub(super) fn acquire(ask: &AskArgs, hold: &HoldArgs) -> anyhow::Result<ExitCode> {
    let client = ask.server.client()?;
    let mut body = ask.body();
    for (field, length) in [("max_wait", hold.wait), ("lease", hold.lease)] {
        if let Some(length) = length {
            body.insert(field.to_owned(), json!(seconds(length)));
        }
    }
    runtime()?.block_on(async {
        let mut signals = Signals::listen()?;
        let began = Instant::now();
        let body = body.into();
        // Dropping the call closes its connection, and the server forgets who waited.
        let answer = tokio::select! {
            answer = client.call("acquire", &body, hold.wait.unwrap_or(UNKNOWN_WAIT)) => answer?,
            signal = signals.next() => return Ok(signal.exit_code()),
        };
        // With a command, standard output belongs to the command.
        let by_command = !hold.command.is_empty();
        if ask.json && !(by_command && answer.is("granted")) {
            print(&answer.text);
        }
        if !answer.is("granted") {
            eprintln!("tollgate: {}", refusal(&answer));
            return Ok(ExitCode::from(REFUSED_CODE));
        }
        let lease = answer.text("lease").map(str::to_owned);
        if !by_command {
            if let (Some(lease), false) = (&lease, ask.json) {
                print(&format!("{lease}\n"));
            }
            return Ok(ExitCode::SUCCESS);
        }
        let held = lease.zip(answer.duration("lease_ends_in"));
        let holder = Holder { client: client.clone(), kill: hold.on_lost == OnLost::Kill };
        holder.run(&hold.command, held, hold.lease, began + waited(&answer), signals).await
    })
}

/// How long the server waited before it granted: the lease counts from then.
fn waited(answer: &ApiAnswer) -> Duration {
    answer.duration("waited").unwrap_or_default()
}

/// Looks whether it would be granted.
pub(super) fn peek(ask: &AskArgs) -> anyhow::Result<ExitCode> {
    let client = ask.server.client()?;
    let answer = runtime()?.block_on(client.call("peek", &ask.body().into(), Duration::ZERO))?;
    if ask.json {
        print(&answer.text);
    } else {
        print(&limits(&answer));
    }
    if answer.is("would_grant") {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("tollgate: {}", refusal(&answer));
    Ok(ExitCode::from(REFUSED_CODE))
}

/// Ends a lease.
pub(super) fn release(server: &ApiArgs, lease: &str) -> anyhow::Result<()> {
    let client: ApiClient = server.client()?;
    let fate = runtime()?.block_on(client.release(lease))?;
    print(&format!("{fate}\n"));
    Ok(())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// A refusal in one line.
fn refusal(answer: &ApiAnswer) -> String {
    let reason = answer.text("reason").unwrap_or("unknown reason");
    let of = match (answer.text("limiter"), answer.text("rule")) {
        (Some(limiter), _) => format!(" of {limiter}"),
        (None, Some(rule)) => format!(" by rule {rule}"),
        (None, None) => String::new(),
    };
    let again = match answer.body.get("retry_after_ms").and_then(Value::as_u64) {
        Some(millis) => format!("; try again in {}", humantime::format_duration(Duration::from_millis(millis))),
        None => String::new(),
    };
    format!("refused: {reason}{of}{again}")
}

/// The limits of an answer as a table.
fn limits(answer: &ApiAnswer) -> String {
    let mut rows = vec![["LIMITER", "RULE", "LIMIT", "LEFT", "RESET"].map(str::to_owned)];
    let of = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    for limit in answer.body["limits"].as_array().into_iter().flatten() {
        let number = match &limit["window"] {
            Value::String(window) => format!("{} in {window}", limit["limit"]),
            _ => format!("{} slots", limit["limit"]),
        };
        let [limiter, rule, remaining, reset] =
            ["limiter", "rule", "remaining", "reset"].map(|field| of(&limit[field]));
        rows.push([limiter, rule, number, remaining, reset]);
    }
    aligned(&rows)
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration such as 30s, 1.5s or 5m".to_owned())
}
