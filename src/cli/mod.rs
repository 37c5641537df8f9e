//! The command line: commands, arguments and exit codes.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the configuration has errors (for `check --strict`, or warnings), or the command failed |
//! | 2 | invalid command line |
//! | 75 | `acquire` and `peek`: refused, worth another try |
//! | 130 | stopped by a second signal, before requests in flight finished |

mod acquire;
mod address;
mod check;
mod client;
mod convert;
mod entry;
mod explain;
mod hold;
mod load;
mod lookup;
mod port;
mod serve;
mod state;
mod store;
mod table;
mod workers;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tollgate::server::admin::api::LiftRequest;

use self::acquire::{AskArgs, HoldArgs};
use self::client::ServerArgs;
use self::entry::entry;
use self::table::print;
use self::workers::ApiArgs;

/// Rate limits and quotas for Envoy and other gateways.
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
  tollgate convert rate-sync.toml > tollgate.toml
  tollgate explain --config tollgate.toml edge path=/login method=POST account=bob
  tollgate state edge account=bob
  tollgate lift edge account=bob --why \"ticket 4711\"
  tollgate top
  tollgate acquire jobs --limiter stripe_api --wait 30s -- ./charge.sh
  tollgate store migrate --config tollgate.toml
  tollgate schema > tollgate.schema.json
  tollgate completions bash > /etc/bash_completion.d/tollgate

Exit codes: 0 done, 1 invalid configuration or failed command, 2 usage, 75 refused (acquire and peek), 130 stopped by two\nsignals.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve gateways until stopped.
    ///
    /// Without --config the configuration is TOLLGATE_CONFIG, else the first of ./tollgate.{toml,yaml,yml},
    /// ./config/tollgate.{toml,yaml,yml} and the directory /etc/tollgate. Without any of them there are no rules,
    /// every request passes, and the ports listen on this machine only.
    #[command(after_help = "Examples:\n  tollgate serve\n  tollgate serve --config /etc/tollgate/tollgate.toml")]
    Serve {
        /// A file in TOML or YAML, or a directory of them.
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
    },
    /// Report all errors and warnings of a configuration.
    ///
    /// Each path is a separate configuration; a directory is one configuration. No store is contacted. A warning is
    /// about what is valid and probably not meant; its name stands in brackets, and [check] accept = ["NAME"] in the
    /// configuration accepts it.
    #[command(
        after_help = "Examples:\n  tollgate check tollgate.toml\n  tollgate check --strict --json conf.d/\n  tollgate check \
                      --print conf.d/ > effective.yaml\n\nExit codes: 0 without errors, 1 with errors (with --strict, or \
                      warnings), 2 usage."
    )]
    Check {
        /// Files in TOML or YAML, or directories of them.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        args: check::CheckArgs,
    },
    /// Write a configuration of rate-sync, a Python library, in tollgate's own form.
    ///
    /// Prints TOML, with a comment that says what each key became. It has the same limits as the file, which serve takes
    /// as it is, too. No store is contacted.
    #[command(after_help = "Examples:\n  tollgate convert rate-sync.toml > tollgate.toml")]
    Convert {
        /// A file of rate-sync in TOML or YAML, or a directory of them.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Show how the rules treat a request.
    ///
    /// Shows which rules match, which nearly match and why, which limiters and keys apply, and what would be charged.
    /// Uses the rules of a file, without contacting a store; with --server, uses the rules of a running server and
    /// shows the values of its counters too.
    #[command(
        after_help = "Examples:\n  tollgate explain --config tollgate.toml edge path=/login method=POST account=bob\n  \
                      tollgate explain --server 127.0.0.1:9090 edge path=/login method=POST account=bob"
    )]
    Explain {
        #[command(flatten)]
        server: ServerArgs,
        /// The domain.
        domain: String,
        /// The entries of the descriptor.
        #[arg(value_name = "ENTRY=VALUE", value_parser = entry)]
        entries: Vec<(String, String)>,
    },
    /// Print the hashed names of an identity's counters, as logs and `top` show them.
    ///
    /// Uses the rules and the secret of a file; no server is contacted.
    #[command(after_help = "Examples:\n  tollgate key --config tollgate.toml edge account=bob")]
    Key {
        /// A file in TOML or YAML, or a directory of them. By default the one that serve would use.
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
        /// The domain.
        domain: String,
        /// The entries that identify it.
        #[arg(required = true, value_name = "ENTRY=VALUE", value_parser = entry)]
        entries: Vec<(String, String)>,
    },
    /// Show the counters of an identity, for example of a user who is locked out.
    ///
    /// Shows the counters of all rules of the domain whose key has only entries that are given. Without entries, shows the
    /// counters without a key, which all requests share.
    #[command(
        after_help = "Examples:\n  tollgate state edge account=bob\n  tollgate state edge remote_address=203.0.113.7"
    )]
    State {
        #[command(flatten)]
        server: ServerArgs,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// The domain.
        domain: String,
        /// The entries that identify it.
        #[arg(value_name = "ENTRY=VALUE", value_parser = entry)]
        entries: Vec<(String, String)>,
    },
    /// Reset the counters of an identity, so that it is admitted again.
    ///
    /// Slots that it holds are released too. The server's audit log records who did it and why, but not the identity.
    #[command(after_help = "Examples:\n  tollgate lift edge account=bob --why \"ticket 4711\"")]
    Lift {
        #[command(flatten)]
        server: ServerArgs,
        /// Only the counters of this limiter.
        #[arg(long, value_name = "NAME")]
        limiter: Option<String>,
        /// The person who lifts it. By default SUDO_USER, USER or LOGNAME; if none is set, as in most containers, the
        /// user id and the host name.
        #[arg(long, value_name = "NAME")]
        who: Option<String>,
        /// The reason, for the audit log. It must not contain the identity.
        #[arg(long, value_name = "TEXT")]
        why: String,
        /// The domain.
        domain: String,
        /// The entries that identify it.
        #[arg(required = true, value_name = "ENTRY=VALUE", value_parser = entry)]
        entries: Vec<(String, String)>,
    },
    /// Show the rules and hashed keys that refused most in the last minutes.
    #[command(after_help = "Examples:\n  tollgate top\n  tollgate top --minutes 10 --lines 50")]
    Top {
        #[command(flatten)]
        server: ServerArgs,
        /// The number of minutes, including the current one.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=10))]
        minutes: u8,
        /// The maximum number of rules, and of keys.
        #[arg(long, default_value_t = 10)]
        lines: usize,
    },
    /// Take units or slots of a running server, and run a command under their lease.
    ///
    /// With --limiter, the entries are the key of that limiter; without, the rules of the domain decide them as those of a
    /// gateway. Waits up to --wait for its turn. The command's lease is renewed while it runs and released when it ends;
    /// signals are passed on, and its exit code is that of the command. If the lease cannot be renewed, the command gets
    /// SIGTERM, and SIGKILL before the lease ends. Without a command, prints the lease.
    #[command(
        after_help = "Examples:\n  tollgate acquire jobs --limiter stripe_api --wait 30s -- ./charge.sh 4711\n  \
                      tollgate acquire jobs --limiter nightly --lease 15s --wait 0s -- ./nightly.sh\n  \
                      lease=$(tollgate acquire jobs --limiter uploads account=bob)\n\nExit codes: that of the command; \
                      128 and the signal's number if a signal ended it; 126, 127 if it cannot be run, or is not there; \
                      without a command 0; 1 failed, 2 usage, 75 refused."
    )]
    Acquire {
        #[command(flatten)]
        ask: AskArgs,
        #[command(flatten)]
        hold: HoldArgs,
    },
    /// End a lease that `acquire` printed.
    ///
    /// Prints its fate: done; expired, if it had ended already; or unknown, if it was released before or is none.
    #[command(after_help = "Examples:\n  tollgate release \"$lease\"")]
    Release {
        #[command(flatten)]
        server: ApiArgs,
        /// The lease.
        lease: String,
    },
    /// Show whether units or slots would be granted now, and what is left. Takes nothing.
    #[command(after_help = "Examples:\n  tollgate peek jobs --limiter stripe_api\n  tollgate peek edge path=/login \
                      account=bob\n\nExit codes: 0 it would be granted, 1 failed, 2 usage, 75 it would be refused.")]
    Peek {
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Look at the tables that entries are derived from.
    Table {
        #[command(subcommand)]
        command: TableCommand,
    },
    /// Prepare external stores.
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
    /// Print the JSON Schema (draft 2020-12) of a configuration, for editors.
    Schema,
    /// Print a completion script for a shell.
    #[command(after_help = "Examples:\n  tollgate completions zsh > ~/.zfunc/_tollgate")]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
enum TableCommand {
    /// Show the row that a table has for a value, and what domains derive from it.
    ///
    /// Uses the tables of a file; no server is contacted. The value is normalised, and hashed if the table has digests, as
    /// a request's is.
    #[command(after_help = "Examples:\n  tollgate table lookup keys ak_7f3b\n  pass show api-key | tollgate table \
                            lookup keys -\n\nExit codes: 0 there is a row, 1 there is none or failed, 2 usage.")]
    Lookup {
        /// A file in TOML or YAML, or a directory of them. By default the one that serve would use.
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
        /// The table.
        name: String,
        /// The value, as a client sends it; `-` reads it from standard input.
        value: String,
    },
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Create or upgrade the schema of every PostgreSQL store, and print what was done.
    ///
    /// If a store has auto_create = false, or its role may not create objects, run this before the first start, and
    /// before an upgrade of tollgate that requires it. Counters are kept. If unlogged has changed, the tables are
    /// rewritten, and decisions wait for that.
    #[command(after_help = "Examples:\n  tollgate store migrate --config /etc/tollgate/tollgate.toml")]
    Migrate {
        /// A file in TOML or YAML, or a directory of them. By default the one that serve would use.
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
    },
}

/// Runs the command of the command line.
pub(crate) fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Serve { config } => serve::serve(config.as_deref()),
        Command::Check { files, args } => check::check(&files, args),
        Command::Convert { file } => convert::convert(&file),
        Command::Explain { server, domain, entries } => match server.named() {
            true => {
                exit_code(server.client().and_then(|client| explain::explain_on_server(&client, &domain, &entries)))
            }
            false => explain::explain(server.config(), &domain, &entries),
        },
        Command::Key { config, domain, entries } => state::key(config.as_deref(), &domain, &entries),
        Command::State { server, json, domain, entries } => {
            exit_code(server.client().and_then(|client| state::state(&client, &domain, &entries, json)))
        }
        Command::Lift { server, limiter, who, why, domain, entries } => {
            let lift = LiftRequest { domain, entries, limiter, who: who.unwrap_or_else(state::who), why };
            exit_code(server.client().and_then(|client| state::lift(&client, &lift)))
        }
        Command::Top { server, minutes, lines } => {
            exit_code(server.client().and_then(|client| state::top(&client, minutes, lines)))
        }
        Command::Acquire { ask, hold } => code_or_error(acquire::acquire(&ask, &hold)),
        Command::Release { server, lease } => exit_code(acquire::release(&server, &lease)),
        Command::Peek { ask } => code_or_error(acquire::peek(&ask)),
        Command::Table { command: TableCommand::Lookup { config, name, value } } => {
            lookup::lookup(config.as_deref(), &name, &value)
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

/// The exit code of a request to a server. Prints its error.
fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    code_or_error(result.map(|()| ExitCode::SUCCESS))
}

/// The exit code of a command that has several. Prints its error.
fn code_or_error(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tollgate: {error:#}");
            ExitCode::FAILURE
        }
    }
}
