//! The `outrider` command: reads what its user wants, hands it to the library that does it, and says how
//! it went. Exit codes: 0 done, 1 it failed, 2 it was asked wrongly (usage or configuration); of `get` also
//! 3 it is not there, 4 it is not what it should be.

#![forbid(unsafe_code)]

mod at;
mod banner;
mod cli;
mod cluster;
mod embedded;
mod get;
mod graph;
mod operate;
mod progress;
mod secret;
mod state;
mod status;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use outrider_edge::{Config, Ready};
use outrider_node::command::CommandError;

use cli::{Cli, Command, ControlArguments, EdgeArguments};

/// Many small allocations of many threads: it is what mimalloc is for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The command failed.
const FAILED: u8 = 1;
/// The command was asked wrongly.
const ASKED_WRONGLY: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    match cli.command {
        Command::Up(arguments) => match arguments.into_config() {
            Ok(config) => run(&config, |ready| say(banner::text(ready))),
            Err(error) => fail(error, ASKED_WRONGLY),
        },
        Command::Edge(arguments) => edge(&arguments),
        Command::Control(arguments) => control(&arguments),
        Command::Cluster(command) => said(cluster::run(command), cluster::ClusterError::is_usage),
        Command::Graph(command) => told(graph::run(command).map(String::into_bytes)),
        Command::State(command) => told(state::run(command)),
        Command::Customer(command) => told(operate::customer(command).map(String::into_bytes)),
        Command::Weights(arguments) => told(operate::weights(arguments).map(String::into_bytes)),
        Command::Placement(command) => told(operate::placement(command).map(String::into_bytes)),
        Command::Invalidate(arguments) => {
            told(operate::invalidate(arguments).map(String::into_bytes))
        }
        Command::Tags(arguments) => told(operate::tags(arguments).map(String::into_bytes)),
        Command::Status(arguments) => match status::run(&arguments) {
            Ok((text, healthy)) => {
                say(text.as_bytes());
                if healthy { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
            }
            Err(error) => told(Err(error)),
        },
        Command::Get(arguments) => {
            let data = cli::data_default(|name| std::env::var_os(name));
            match get::run(&arguments, data.map(|data| data.join("tls/ca.pem"))) {
                Ok(text) => {
                    if !arguments.quiet {
                        say(&text);
                    }
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    let (text, code) = error.explain(FAILED, ASKED_WRONGLY);
                    fail(text, code)
                }
            }
        }
        Command::Secret(arguments) => said(secret::run(&arguments), secret::SecretError::is_usage),
        Command::Version => {
            say(format!("outrider {}\n", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
    }
}

fn edge(arguments: &EdgeArguments) -> ExitCode {
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return fail(error, ASKED_WRONGLY),
    };
    if arguments.check_config {
        say(format!("{}: the configuration is valid\n", arguments.config.display()));
        return ExitCode::SUCCESS;
    }
    run(&config, |_| ())
}

fn control(arguments: &ControlArguments) -> ExitCode {
    let config = match outrider_node::Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return fail(error, ASKED_WRONGLY),
    };
    if arguments.check_config {
        say(format!("{}: the configuration is valid\n", arguments.config.display()));
        return ExitCode::SUCCESS;
    }
    outrider_settings::logging::start(&config.log);
    match outrider_node::run(&config, |_| ()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error, FAILED),
    }
}

fn run(config: &Config, ready: impl FnOnce(&Ready)) -> ExitCode {
    outrider_edge::logging::start(&config.log);
    let node = Box::new(embedded::Node::default());
    match outrider_edge::run(config, Some(node), ready) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => fail(error, FAILED),
    }
}

/// Help and version go to stdout and are no failure; everything else is told as this program tells all
/// its errors.
fn explain(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            say(&text);
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = write!(std::io::stderr(), "{text}");
            ExitCode::from(ASKED_WRONGLY)
        }
        _ => fail(text.strip_prefix("error: ").unwrap_or(&text).trim_end(), ASKED_WRONGLY),
    }
}

fn fail(error: impl Display, code: u8) -> ExitCode {
    // Nobody is left to be told when stderr is closed.
    let _ = writeln!(std::io::stderr(), "outrider: {error}");
    ExitCode::from(code)
}

fn say(text: impl AsRef<[u8]>) {
    let mut out = std::io::stdout();
    // A reader that has seen enough (`| head`) is no reason to stop serving.
    let _ = out.write_all(text.as_ref()).and_then(|()| out.flush());
}

/// The output of a command, or why there is none.
fn said<E: Display>(result: Result<String, E>, is_usage: impl FnOnce(&E) -> bool) -> ExitCode {
    match result {
        Ok(text) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            let code = if is_usage(&error) { ASKED_WRONGLY } else { FAILED };
            fail(error, code)
        }
    }
}

/// What a command for a running node or edge has to say.
fn told(result: Result<Vec<u8>, CommandError>) -> ExitCode {
    match result {
        Ok(text) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Err(error @ CommandError::Url { .. }) => fail(error, ASKED_WRONGLY),
        Err(error) => fail(error, FAILED),
    }
}
