//! The command line: flags are parsed ([`args`]), one function per verb runs them, results go to stdout as data
//! ([`output`]), everything else to stderr.

mod args;
mod dataset;
mod demo;
mod evaluate;
mod export;
mod index;
mod info;
mod ingest;
mod model;
mod output;
mod pretrain;
mod search;
mod shell;
mod sizes;
mod sql;
mod talk;
mod training_args;

use std::process::ExitCode;

use clap::Parser;

use crate::error::{Error, Result};
use crate::query::STACK;
use args::{Cli, ReadArgs, Verb};
use cellql_store::Store;
use talk::Talk;

/// Exit status of a broken request; clap's own is 2 for wrong usage.
const INTERNAL: u8 = 3;

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // A thread of its own: the first one's stack is as large as the system likes, too small for deep statements.
    let main = std::thread::Builder::new().stack_size(STACK).spawn(|| run_to_end(cli));
    match main.map(std::thread::JoinHandle::join) {
        Ok(Ok(code)) => code,
        _ => ExitCode::from(INTERNAL),
    }
}

fn run_to_end(cli: Cli) -> ExitCode {
    let talk = Talk::new(cli.quiet);
    let runtime = match tokio::runtime::Builder::new_multi_thread().thread_stack_size(STACK).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            talk.error(&format!("the async runtime cannot start: {error}"));
            return ExitCode::from(INTERNAL);
        }
    };
    let is_sql = matches!(cli.verb, Verb::Sql(_));
    let done = runtime.block_on(run(cli.verb, &talk));
    if is_sql {
        // A query that was stopped may still be inside a model, which nothing waits for.
        runtime.shutdown_background();
    }
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            talk.error(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

/// A reader that has seen enough (`| head`) is no failure.
fn is_broken_pipe(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        if this.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
            return true;
        }
        cause = this.source();
    }
    error.to_string().contains("Broken pipe")
}

/// A store to read, at the version that is asked for.
async fn open(args: &ReadArgs) -> Result<Store> {
    match args.at_version {
        Some(number) => Ok(Store::open_at(&args.store, number).await?),
        None => Ok(Store::open(&args.store).await?),
    }
}

/// A store to change, which waits for other writers.
async fn open_to_write(uri: &str, talk: &Talk) -> Result<Store> {
    Ok(Store::open(uri).await?.patient(talk.waiting(uri)))
}

async fn run(verb: Verb, talk: &Talk) -> Result<()> {
    match verb {
        Verb::Init { store, no_model } => {
            let store = Store::init(&store).await?;
            talk.say(&format!("{}: an empty store", store.uri()));
            if !no_model {
                model::add_shipped(&store, talk).await?;
            }
            Ok(())
        }
        Verb::Ingest(args) => ingest::run(args, talk).await,
        Verb::Export(args) => export::run(args, talk).await,
        Verb::Dataset { verb } => dataset::run(verb, talk).await,
        Verb::Versions { store, format } => dataset::versions(&store, format).await,
        Verb::Compact { store, keep } => dataset::compact(&store, keep, talk).await,
        Verb::Info { store } => info::run(&store).await,
        Verb::Sql(args) => sql::run(args, talk).await,
        Verb::Model { verb } => model::run(verb, talk).await,
        Verb::Embed(args) => index::embed(args, talk).await,
        Verb::Index { verb } => index::run(verb, talk).await,
        Verb::Search(args) => search::run(args, talk).await,
        Verb::Pretrain(args) => pretrain::run(*args, talk).await,
        Verb::Evaluate(args) => evaluate::run(args, talk).await,
        Verb::Demo { store } => demo::run(&store, talk).await,
    }
}
