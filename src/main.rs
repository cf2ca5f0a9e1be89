//! The program `cellql`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cellql::cli::main()
}
