//! Runs the stock command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    tallow::cli::main(tallow::registry::Registry::builtin())
}
