//! The command line: what is typed, and with which code the process ends.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | a configuration is refused, or a start failed |
//! | 2 | the command line makes no sense |
//! | 130 | told to stop a second time, before requests under way finished |

mod check;
mod client;
mod explain;
mod serve;
mod state;
mod store;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tollgate::config::{CONFIG_VARIABLE, Errors, Problem, search_paths};
use tollgate::server::admin::api::Lift;

use self::client::Place;

/// Rate limits and quotas for Envoy and everything that asks like Envoy.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  tollgate serve --config tollgate.toml
  tollgate check tollgate.toml
  tollgate check --print conf.d/
  tollgate explain --config tollgate.toml edge path=/login method=POST account=bob
  tollgate state edge account=bob
  tollgate lift edge account=bob --why \"ticket 4711\"
  tollgate top
  tollgate store migrate --config tollgate.toml
  tollgate schema > tollgate.schema.json
  tollgate completions bash > /etc/bash_completion.d/tollgate

Exit codes: 0 done, 1 a refused configuration or a failed start, 2 usage, 130 told to stop twice.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer gateways until told to stop.
    ///
    /// Without --config the configuration is TOLLGATE_CONFIG, else the first of ./tollgate.{toml,yaml,yml},
    /// ./config/tollgate.{toml,yaml,yml} and the directory /etc/tollgate. Without any of them there are no rules,
    /// every request passes, and only this machine is listened to.
    #[command(after_help = "Examples:\n  tollgate serve\n  tollgate serve --config /etc/tollgate/tollgate.toml")]
    Serve {
        /// A file in TOML or YAML, or a directory of them.
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
    },
    /// Find everything that is wrong with a configuration.
    ///
    /// Each path is a configuration of its own; a directory is one. Nothing is started or asked.
    #[command(
        after_help = "Examples:\n  tollgate check tollgate.toml\n  tollgate check --print conf.d/ > effective.yaml"
    )]
    Check {
        /// Files in TOML or YAML, or directories of them.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Print the configuration as it takes effect: defaults written out, variables expanded, secrets masked.
        #[arg(long)]
        print: bool,
    },
    /// Say what the rules make of a request.
    ///
    /// Which rules match, which just miss and why, which limiters and keys apply, and what would be charged. By the
    /// rules of a file and without asking any store; or, with --server, by the rules that a server has in use, and with
    /// what its counters hold now.
    #[command(
        after_help = "Examples:\n  tollgate explain --config tollgate.toml edge path=/login method=POST account=bob\n  \
                      tollgate explain --server 127.0.0.1:9090 edge path=/login method=POST account=bob"
    )]
    Explain {
        #[command(flatten)]
        place: Place,
        /// The domain that is asked.
        domain: String,
        /// The entries of the descriptor.
        #[arg(value_name = "ENTRY=VALUE", value_parser = entry)]
        entries: Vec<(String, String)>,
    },
    /// Print the hashed names of an identity's counters, as logs and `top` show them.
    ///
    /// By the rules and the secret of a file; no server is asked.
    #[command(after_help = "Examples:\n  tollgate key --config tollgate.toml edge account=bob")]
    Key {
        /// A file in TOML or YAML, or a directory of them; looked for as serve does when not given.
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
        /// The domain.
        domain: String,
        /// The entries that identify it.
        #[arg(required = true, value_name = "ENTRY=VALUE", value_parser = entry)]
        entries: Vec<(String, String)>,
    },
    /// Show what the counters of an identity hold: somebody says they are locked out.
    ///
    /// Of every rule of the domain, each limiter whose key is made of these entries alone. Without entries, the
    /// counters that are one for all.
    #[command(
        after_help = "Examples:\n  tollgate state edge account=bob\n  tollgate state edge remote_address=203.0.113.7"
    )]
    State {
        #[command(flatten)]
        place: Place,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// The domain.
        domain: String,
        /// The entries that identify it.
        #[arg(value_name = "ENTRY=VALUE", value_parser = entry)]
        entries: Vec<(String, String)>,
    },
    /// Forget what the counters of an identity hold, so that it is let in again.
    ///
    /// Slots that it holds are given up too. Who asked and why goes to the server's audit log; the identity does not.
    #[command(after_help = "Examples:\n  tollgate lift edge account=bob --why \"ticket 4711\"")]
    Lift {
        #[command(flatten)]
        place: Place,
        /// Only the counters of this limiter.
        #[arg(long, value_name = "NAME")]
        limiter: Option<String>,
        /// Who asks for it. Without it SUDO_USER, USER or LOGNAME; where none is set, as in most containers, the
        /// number of the user and the name of the host.
        #[arg(long, value_name = "NAME")]
        who: Option<String>,
        /// Why, in words, for the audit log. The identity does not belong there.
        #[arg(long, value_name = "TEXT")]
        why: String,
        /// The domain.
        domain: String,
        /// The entries that identify it.
        #[arg(required = true, value_name = "ENTRY=VALUE", value_parser = entry)]
        entries: Vec<(String, String)>,
    },
    /// Show the rules and the hashed keys that were refused most in the last minutes.
    #[command(after_help = "Examples:\n  tollgate top\n  tollgate top --minutes 10 --lines 50")]
    Top {
        #[command(flatten)]
        place: Place,
        /// How many minutes, the one under way among them.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=10))]
        minutes: u8,
        /// How many rules, and how many keys.
        #[arg(long, default_value_t = 10)]
        lines: usize,
    },
    /// Prepare the stores outside this process.
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
    /// Print the JSON Schema (draft 2020-12) of a configuration, for editors.
    Schema,
    /// Print a script that completes this command line.
    #[command(after_help = "Examples:\n  tollgate completions zsh > ~/.zfunc/_tollgate")]
    Completions {
        /// The shell to complete in.
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Make or upgrade the schema of every PostgreSQL store, and say what was done.
    ///
    /// Where a store has auto_create = false, or serves with a role that may not create anything, this has to run before
    /// the first start, and again before a version of tollgate that says so. Counters stay. Where unlogged was changed,
    /// the tables are rewritten, which decisions wait for.
    #[command(after_help = "Examples:\n  tollgate store migrate --config /etc/tollgate/tollgate.toml")]
    Migrate {
        /// A file in TOML or YAML, or a directory of them; looked for as serve does when not given.
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
    },
}

/// Does what the command line says.
pub fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Serve { config } => serve::serve(config.as_deref()),
        Command::Check { files, print } => check::check(&files, print),
        Command::Explain { place, domain, entries } => match place.named() {
            true => asked(place.server().and_then(|server| explain::explain_there(&server, &domain, &entries))),
            false => explain::explain(place.config(), &domain, &entries),
        },
        Command::Key { config, domain, entries } => state::key(config.as_deref(), &domain, &entries),
        Command::State { place, json, domain, entries } => {
            asked(place.server().and_then(|server| state::state(&server, &domain, &entries, json)))
        }
        Command::Lift { place, limiter, who, why, domain, entries } => {
            let lift = Lift { domain, entries, limiter, who: who.unwrap_or_else(state::who), why };
            asked(place.server().and_then(|server| state::lift(&server, &lift)))
        }
        Command::Top { place, minutes, lines } => {
            asked(place.server().and_then(|server| state::top(&server, minutes, lines)))
        }
        Command::Store { command: StoreCommand::Migrate { config } } => store::migrate_all(config.as_deref()),
        Command::Schema => {
            print(&format!("{:#}\n", tollgate::config::json_schema()));
            ExitCode::SUCCESS
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tollgate", &mut script);
            print(&String::from_utf8_lossy(&script));
            ExitCode::SUCCESS
        }
    }
}

/// How asking a server ended.
fn asked(asked: anyhow::Result<()>) -> ExitCode {
    match asked {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tollgate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn entry(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected ENTRY=VALUE, such as account=bob".to_owned()),
    }
}

/// Writes to standard output. A reader that has gone away, `| head`, is no error.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Where a configuration that nobody named was looked for.
fn looked_at() -> String {
    let places: Vec<String> = search_paths().iter().map(|place| place.display().to_string()).collect();
    format!("{CONFIG_VARIABLE} (not set), {}", places.join(", "))
}

/// Tells everything that is wrong with a configuration.
fn refuse(errors: &Errors) -> ExitCode {
    eprintln!("{errors}");
    ExitCode::FAILURE
}

fn warn(warnings: &[Problem]) {
    for Problem { file, line, text } in warnings {
        match line {
            Some(line) => eprintln!("{file}:{line}: warning: {text}"),
            None => eprintln!("{file}: warning: {text}"),
        }
    }
}
