//! The command line: what is typed, and with which code the process ends.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | a configuration is refused, or a start failed |
//! | 2 | the command line makes no sense |
//! | 130 | told to stop a second time, before requests under way finished |

mod check;
mod explain;
mod serve;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tollgate::config::{Errors, Problem};

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
    /// Say what the rules make of a request, without asking any store.
    ///
    /// Which rules match, which just miss and why, which limiters and keys apply, and what would be charged.
    #[command(
        after_help = "Examples:\n  tollgate explain --config tollgate.toml edge path=/login method=POST account=bob"
    )]
    Explain {
        /// A file in TOML or YAML, or a directory of them; looked for as serve does when not given.
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
        /// The domain that is asked.
        domain: String,
        /// The entries of the descriptor.
        #[arg(value_name = "ENTRY=VALUE", value_parser = entry)]
        entries: Vec<(String, String)>,
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

/// Does what the command line says.
pub fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Serve { config } => serve::serve(config.as_deref()),
        Command::Check { files, print } => check::check(&files, print),
        Command::Explain { config, domain, entries } => explain::explain(config.as_deref(), &domain, &entries),
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
