//! Real CPython in a WebAssembly sandbox, and the grading of programs that cannot be forged from
//! inside it.
//!
//! # Threat model
//! The program under test is written by a policy that is rewarded for full marks. It is assumed to
//! know this source. Covered:
//! - *The host*: WebAssembly has no way out but its imports; those offer no files, network,
//!   environment or processes (`wasi.rs`). Escaping needs a bug in wasmtime.
//! - *The machine's time and memory*: fuel, memory, output and stack are limited by the host and a
//!   program cannot catch, move or reset a limit. Sleeping takes no time.
//! - *The grade*: tests run in another instance than the program. Expected values never enter the
//!   program's instance, what comes back is plain data, and all comparing is done where the program
//!   has never been (`guest/judge.py`, `grade.rs`).
//! - *Other programs*: each program starts from the same snapshot, in a fresh instance or in one
//!   whose memory was put back (`memory.rs`). A judge's instance goes on to other tests only if its
//!   tests' text cannot have changed the interpreter.
//! - *Plugins*: confined as programs are, and to what they are granted; their verdicts are believed.
//!
//! Not covered: a program that knows or guesses the answers; arguments of one test seen while
//! another is graded, unless each test gets a fresh instance; weak tests, such as those that compute
//! what they expect from what the program returned, or ask an object of the program's own class
//! about itself; tests that run inside the program's instance because they pass it functions
//! (refused unless asked for, and labelled); timing side channels of the processor.
//!
//! Reading order: `grade.rs` (jobs and reports), `guest.rs` (one instance), `wasi.rs` (what it
//! sees), `pool.rs`; then `guest/` (the Python side). `plugin/` runs verifiers and environments
//! that users bring as components.

#![deny(unsafe_code)]

pub mod error;
pub mod grade;
pub mod plugin;

mod component;
mod guest;
#[cfg_attr(not(target_os = "linux"), path = "memory_fresh.rs")]
mod memory;
mod pool;
mod process;
mod value;
mod wasi;

pub use component::{component_hash, on_notice};
pub use error::SandboxError;
pub use grade::{Asserts, Call, Case, Failure, Job, Report, Tests};
pub use guest::Limits;
pub use pool::Graded;
pub use process::served_as_worker;

use crossbeam::channel::Receiver;
use serde::{Deserialize, Serialize};

/// What workers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workers {
    /// Threads of this process.
    #[default]
    Threads,
    /// Processes of their own; `main` must begin with [`served_as_worker`].
    Processes,
}

/// A pool of workers that judge programs.
pub struct Sandbox {
    backend: Box<dyn pool::Backend>,
}

impl Sandbox {
    /// With `count` workers. Compiles the component at the first use on this machine.
    ///
    /// # Errors
    /// If it does not start on this machine.
    pub fn start(workers: Workers, count: u32) -> Result<Self, SandboxError> {
        let count = count.max(1);
        Ok(Self {
            backend: match workers {
                Workers::Threads => Box::new(pool::Threads::start(count)?),
                Workers::Processes => Box::new(process::Processes::start(count)?),
            },
        })
    }

    /// Queues a job, waiting while the queue is full; see [`Sandbox::wait`].
    pub fn submit(&self, job: Job) -> Receiver<Graded> {
        self.backend.submit(job)
    }

    /// The report of a queued job.
    ///
    /// # Errors
    /// If the sandbox broke or the tests are wrong.
    pub fn wait(report: &Receiver<Graded>) -> Graded {
        report.recv().unwrap_or_else(|_| Err(SandboxError::Died("it is gone".to_owned())))
    }

    /// Judges one program.
    ///
    /// # Errors
    /// As [`Sandbox::wait`].
    pub fn grade(&self, job: Job) -> Graded {
        Self::wait(&self.submit(job))
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
