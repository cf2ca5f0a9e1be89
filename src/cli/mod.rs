//! The command line. [`command`] lists the verbs; each verb has a file of its own with its arguments and the function
//! that runs it. Results go to stdout ([`output`]), messages and progress to stderr ([`console`], [`progress`]).

mod command;
mod compact;
mod console;
mod dataset;
mod demo;
mod embed;
mod evaluate;
mod evaluate_representation;
mod export;
mod index;
mod info;
mod ingest;
mod init;
mod model;
mod model_fit;
mod model_size;
mod output;
mod pretrain;
mod progress;
#[cfg(test)]
mod reference_page;
mod search;
mod shared_args;
mod shell;
mod sql;
mod verify;
mod versions;

use std::process::ExitCode;

use clap::Parser;

use crate::error::{Error, Result};
use crate::query::STACK;
use command::{Cli, Verb};
use console::Console;

/// Exit status of an internal failure. That of wrong usage is 2, from clap.
const INTERNAL: u8 = 3;

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // The system chooses the stack size of the first thread, which is too small for deeply nested statements.
    let main = std::thread::Builder::new().stack_size(STACK).spawn(|| run_to_end(cli));
    match main.map(std::thread::JoinHandle::join) {
        Ok(Ok(code)) => code,
        _ => ExitCode::from(INTERNAL),
    }
}

fn run_to_end(cli: Cli) -> ExitCode {
    let console = Console::new(cli.quiet);
    let runtime = match tokio::runtime::Builder::new_multi_thread().thread_stack_size(STACK).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            console.error(&format!("the async runtime cannot start: {error}"));
            return ExitCode::from(INTERNAL);
        }
    };
    let is_sql = matches!(cli.verb, Verb::Sql(_));
    let done = runtime.block_on(run(cli.verb, &console));
    if is_sql {
        // A query that was stopped may still be inside a model, which nothing waits for.
        runtime.shutdown_background();
    }
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            console.error(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

/// True if stdout was closed by its reader, as `| head` does. That is not a failure.
fn is_broken_pipe(error: &Error) -> bool {
    let is_broken = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    cellql_store::causes(error).any(|cause| cause.downcast_ref().is_some_and(is_broken))
}

async fn run(verb: Verb, console: &Console) -> Result<()> {
    match verb {
        Verb::Init(args) => init::run(args, console).await,
        Verb::Ingest(args) => ingest::run(args, console).await,
        Verb::Export(args) => export::run(args, console).await,
        Verb::Dataset { verb } => dataset::run(verb, console).await,
        Verb::Versions(args) => versions::run(args).await,
        Verb::Compact(args) => compact::run(args, console).await,
        Verb::Verify(args) => verify::run(args, console).await,
        Verb::Info(args) => info::run(args).await,
        Verb::Sql(args) => sql::run(args, console).await,
        Verb::Model { verb } => model::run(verb, console).await,
        Verb::Embed(args) => embed::run(args, console).await,
        Verb::Index { verb } => index::run(verb, console).await,
        Verb::Search(args) => search::run(args, console).await,
        Verb::Pretrain(args) => pretrain::run(*args, console).await,
        Verb::Evaluate(args) => evaluate::run(args, console).await,
        Verb::Demo(args) => demo::run(args, console).await,
    }
}
