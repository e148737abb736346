//! Programs in Python, run against tests in a sandbox.
//!
//! What the sandbox covers and what not is said at the head of [`tallow_sandbox`]; here stand
//! the options, where the program stands in a reply, and what a report is worth.

mod reply;

pub use crate::plugin::{check_limits, check_workers};
pub use tallow_sandbox::{component_hash, served_as_worker};

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow_sandbox::{
    Asserts, Call, Case, Graded, Job, Limits, Sandbox, SandboxError, Tests, Workers,
};

use crate::{
    config_fault::ConfigFault,
    error::VerifyError,
    plugin,
    registry::{ContractCase, VerifierConfig, Verifiers},
    transcript::Transcript,
    verifier::{Outcome, Reference, ReferenceKind, Verdict, Verifier},
};

/// Options of the `python` verifier.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PythonConfig {
    /// Where the program is: in a fenced block of the reply, or the reply is nothing else.
    pub form: Form,
    /// Whether a program that meets some of its tests gets that share of the reward.
    pub partial: bool,
    /// Whether each test gets a fresh instance, so that a program cannot learn from the tests
    /// before; costs a few milliseconds each.
    pub fresh: bool,
    /// Whether tests that pass functions to the program may run beside it, where it can forge
    /// their result. Otherwise such a task is unscorable.
    pub inside: bool,
    /// Difference between floats that does not count, relative or absolute, where results are
    /// compared with JSON.
    pub tolerance: f64,
    /// What a program may use.
    pub limits: Limits,
    /// Seed of the programs' randomness.
    pub seed: u64,
    /// How many programs run at a time; 0 is one per processor core. Verifiers that ask for the
    /// same number and kind share their workers.
    pub workers: u32,
    /// Whether workers are `threads` of this process or `processes` of their own.
    pub backend: Workers,
}

/// Where the program is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// In the last fenced block of Python.
    #[default]
    Reply,
    /// The reply is the program.
    Source,
}

impl Default for PythonConfig {
    fn default() -> Self {
        Self {
            form: Form::Reply,
            partial: false,
            fresh: false,
            inside: false,
            tolerance: 1e-9,
            limits: Limits::default(),
            seed: 0,
            workers: 0,
            backend: Workers::default(),
        }
    }
}

impl VerifierConfig for PythonConfig {
    const NAME: &'static str = "python";
    const SUMMARY: &'static str = "a Python program meets its tests, run in a sandbox";

    fn build(&self, _verifiers: &Verifiers) -> Result<Arc<dyn Verifier>, ConfigFault> {
        check_limits(&self.limits)?;
        check_workers(self.workers)?;
        if !(self.tolerance >= 0.0 && self.tolerance.is_finite()) {
            return Err(ConfigFault::new("tolerance", "it is not a distance")
                .found(self.tolerance.to_string())
                .expected("a number, 0 or more"));
        }
        Ok(Arc::new(Python { config: self.clone() }))
    }

    fn cases() -> Vec<ContractCase> {
        let asserts = json!({"asserts": "assert double(2) == 4\nassert double([1]) == [1, 1]"});
        let cases = json!({"cases": [{"stdin": "2\n", "stdout": "4\n"}]});
        let calls = json!({"calls": [{"function": "double", "args": [2], "expected": 4}]});
        let right = "```python\ndef double(x):\n    return x + x\n```";
        let printing = "```python\nprint(int(input()) * 2)\n```";
        let case = |options: Value, tests: &Value, reply: &str, outcome| ContractCase {
            options,
            reference: Reference::Custom(tests.clone()),
            reply: reply.to_owned(),
            outcome,
        };
        vec![
            case(json!({}), &asserts, right, Outcome::Correct),
            case(json!({}), &calls, right, Outcome::Correct),
            case(json!({}), &cases, printing, Outcome::Correct),
            case(json!({}), &asserts, &right.replace("x + x", "2 * 2"), Outcome::Incorrect),
            case(
                json!({"partial": true}),
                &asserts,
                &right.replace("x + x", "2 * 2"),
                Outcome::Graded,
            ),
            case(json!({}), &cases, right, Outcome::Incorrect),
            case(json!({}), &asserts, "It is x + x.", Outcome::Malformed),
            case(json!({"form": "source"}), &calls, "double = lambda x: x * 2", Outcome::Correct),
            ContractCase {
                options: json!({}),
                reference: Reference::Tests(vec![crate::TestCase {
                    input: "3".to_owned(),
                    output: "6".to_owned(),
                }]),
                reply: printing.to_owned(),
                outcome: Outcome::Correct,
            },
        ]
    }
}

struct Python {
    config: PythonConfig,
}

/// Tests as they stand in a task's reference.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    asserts: Option<String>,
    #[serde(default)]
    prelude: String,
    entry: Option<String>,
    cases: Option<Vec<Case>>,
    calls: Option<Vec<Call>>,
}

impl Given {
    fn tests(self) -> Result<Tests, String> {
        let none = |what: &str| format!("`{what}` is empty: every program would meet it");
        match (self.asserts, self.cases, self.calls) {
            (Some(source), None, None) if source.trim().is_empty() => Err(none("asserts")),
            (Some(source), None, None) => {
                Ok(Tests::Asserts(Asserts { source, prelude: self.prelude, entry: self.entry }))
            }
            (None, Some(cases), None) if cases.is_empty() => Err(none("cases")),
            (None, Some(cases), None) => Ok(Tests::Cases(cases)),
            (None, None, Some(calls)) if calls.is_empty() => Err(none("calls")),
            (None, None, Some(calls)) => Ok(Tests::Calls(calls)),
            _ => Err("exactly one of `asserts`, `cases` and `calls` is expected".to_owned()),
        }
    }
}

impl Python {
    fn tests(&self, reference: &Reference) -> Result<Tests, VerifyError> {
        let problem = match reference {
            Reference::Custom(value) => match Given::deserialize(value) {
                Ok(given) => match given.tests() {
                    Ok(tests) => return Ok(tests),
                    Err(problem) => problem,
                },
                Err(error) => error.to_string(),
            },
            Reference::Tests(cases) if cases.is_empty() => "there are no tests".to_owned(),
            Reference::Tests(cases) => {
                return Ok(Tests::Cases(
                    cases
                        .iter()
                        .map(|it| Case { stdin: it.input.clone(), stdout: it.output.clone() })
                        .collect(),
                ));
            }
            Reference::None | Reference::Answer(_) => {
                return Err(VerifyError::WrongReference {
                    verifier: PythonConfig::NAME.to_owned(),
                    wanted: ReferenceKind::Custom,
                    got: reference.kind(),
                });
            }
        };
        Err(VerifyError::BadReference { verifier: PythonConfig::NAME.to_owned(), problem })
    }

    /// The job that judges a reply, or `None` if it holds no program.
    fn job(&self, transcript: &Transcript, tests: &Tests) -> Option<Job> {
        let reply = transcript.last_reply();
        let program = match self.config.form {
            Form::Reply => reply::program(reply)?,
            Form::Source => reply.to_owned(),
        };
        Some(Job {
            every_test: self.config.partial,
            fresh: self.config.fresh,
            inside: self.config.inside,
            tolerance: self.config.tolerance,
            limits: self.config.limits,
            seed: self.config.seed,
            ..Job::new(program, tests.clone())
        })
    }

    fn verdict(&self, graded: Graded) -> Result<Verdict, VerifyError> {
        let verifier = PythonConfig::NAME.to_owned();
        let report = graded.map_err(|error| match error {
            SandboxError::Tests(problem) => VerifyError::BadReference { verifier, problem },
            SandboxError::NeedsInside(problem) => VerifyError::BadReference {
                verifier,
                problem: format!("{problem}; `inside = true` runs such tests beside the program"),
            },
            broken => VerifyError::Broken { verifier, problem: broken.to_string() },
        })?;
        let share = f64::from(report.passed) / f64::from(report.total.max(1));
        let mut verdict = match report.failure {
            None => Verdict::correct(),
            Some(failure) if self.config.partial && report.passed > 0 => {
                Verdict { reason: Some(failure.to_string()), ..Verdict::graded(share as f32) }
            }
            Some(failure) => Verdict::incorrect(failure.to_string()),
        };
        if self.config.partial {
            verdict = verdict.with_part("tests", share as f32);
        }
        if report.inside {
            verdict = verdict.with_part("inside", 1.0);
        }
        Ok(verdict)
    }
}

impl Verifier for Python {
    fn name(&self) -> &str {
        PythonConfig::NAME
    }

    fn reference_kinds(&self) -> &'static [ReferenceKind] {
        &[ReferenceKind::Tests, ReferenceKind::Custom]
    }

    fn verify(
        &self,
        transcript: &Transcript,
        reference: &Reference,
    ) -> Result<Verdict, VerifyError> {
        self.verify_group(std::slice::from_ref(transcript), reference).remove(0)
    }

    /// All of a group's programs are queued before the first is waited for.
    fn verify_group(
        &self,
        transcripts: &[Transcript],
        reference: &Reference,
    ) -> Vec<Result<Verdict, VerifyError>> {
        let prepared = self.tests(reference).and_then(|tests| {
            let sandbox = shared(self.config.backend, self.config.workers).map_err(|error| {
                VerifyError::Broken {
                    verifier: PythonConfig::NAME.to_owned(),
                    problem: error.to_string(),
                }
            })?;
            Ok((tests, sandbox))
        });
        let (tests, sandbox) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return transcripts.iter().map(|_| Err(error.clone())).collect(),
        };
        let queued: Vec<_> = transcripts
            .iter()
            .map(|transcript| self.job(transcript, &tests).map(|job| sandbox.submit(job)))
            .collect();
        queued
            .into_iter()
            .map(|report| match report {
                Some(report) => self.verdict(Sandbox::wait(&report)),
                None => Ok(Verdict::malformed("no fenced block of Python in the reply")),
            })
            .collect()
    }
}

/// The pool of this kind and number of workers, started when it is first needed.
///
/// # Errors
/// If the sandbox does not start on this machine.
pub fn shared(backend: Workers, workers: u32) -> Result<Arc<Sandbox>, SandboxError> {
    type Pools = HashMap<(Workers, u32), Arc<Sandbox>>;
    static POOLS: OnceLock<Mutex<Pools>> = OnceLock::new();
    let workers = plugin::workers(workers);
    let mut pools =
        POOLS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = pools.get(&(backend, workers)) {
        return Ok(Arc::clone(pool));
    }
    let pool = Arc::new(Sandbox::start(backend, workers)?);
    pools.insert((backend, workers), Arc::clone(&pool));
    Ok(pool)
}
