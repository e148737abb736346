//! What can go wrong in the sandbox itself. Whatever a program does is never one of these.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The sandbox could not do its work: the caller drops the sample and counts it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, Error)]
pub enum SandboxError {
    /// It does not start on this machine.
    #[error("the Python sandbox does not start: {0}")]
    Start(String),
    /// The tests themselves are wrong, whatever the program.
    #[error("the tests cannot be run: {0}")]
    Tests(String),
    /// The tests hand the program something that is not plain data, so they could only run
    /// beside the program, where it can forge their result.
    #[error("{0}, which cannot leave the judge's interpreter")]
    NeedsInside(String),
    /// The wall clock ran out before the fuel: the machine is overloaded.
    #[error("a program did not end within the backstop of {0} s of wall-clock time")]
    Backstop(u64),
    /// A worker died.
    #[error("a sandbox worker died: {0}")]
    Died(String),
}

impl SandboxError {
    pub(crate) fn start(error: wasmtime::Error) -> Self {
        Self::Start(format!("{error:#}"))
    }
}
