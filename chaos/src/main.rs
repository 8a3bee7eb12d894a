//! The program `chaos`. What its commands do is in `cli`, `backend` and the library; here is only the exit code.

mod backend;
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
