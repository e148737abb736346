//! Runs one program against its tests.
//!
//! Three kinds of test, none of which shows the program what is expected of it: what it prints
//! for an input, what its functions return, and assertions in Python, which the judge's own
//! instance runs.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    component::Python,
    error::SandboxError,
    guest::{End, Guest, Limits, Loaded, Program},
    value::{arguments, matches},
};

/// What a program must do.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tests {
    /// Python source with assertions about the program's functions.
    Asserts(Asserts),
    /// Inputs and what must be printed for them; each in a fresh instance.
    Cases(Vec<Case>),
    /// Calls and what they must return.
    Calls(Vec<Call>),
    /// No tests: source that is run piece by piece after the program, as a notebook does. The report
    /// tells of the last piece alone: what it wrote and what it raised.
    Cells(Vec<String>),
}

/// Assertions in Python.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Asserts {
    /// The source. `check(candidate)` and `test_...` functions that it only defines are called.
    pub source: String,
    /// Definitions that the tests may use and the program cannot change.
    #[serde(default)]
    pub prelude: String,
    /// The function under test, where the tests call it `candidate`.
    #[serde(default)]
    pub entry: Option<String>,
}

/// One input and what must be printed for it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Case {
    /// Standard input.
    pub stdin: String,
    /// Standard output; white space at the ends of lines and of the text does not count.
    pub stdout: String,
}

/// One call and what it must return.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Call {
    /// A function of the program, or `Class.method`, whose class is then made without arguments.
    pub function: String,
    /// Positional arguments.
    pub args: Vec<Value>,
    /// What it must return.
    pub expected: Value,
}

/// A program to judge.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Job {
    /// Python source.
    pub program: String,
    /// What it must do.
    pub tests: Tests,
    /// What it may use.
    pub limits: Limits,
    /// Whether every test is run, for partial credit; otherwise the first failure ends it.
    pub every_test: bool,
    /// Whether each test gets a fresh instance, so that a program cannot learn from those before.
    pub fresh: bool,
    /// Whether tests that can only run beside the program, where it can forge them, may.
    pub inside: bool,
    /// Difference between floats that does not count, relative or absolute.
    pub tolerance: f64,
    /// Seed of the program's randomness.
    pub seed: u64,
}

impl Job {
    /// `program` against `tests` under default limits.
    pub fn new(program: impl Into<String>, tests: Tests) -> Self {
        Self {
            program: program.into(),
            tests,
            limits: Limits::default(),
            every_test: false,
            fresh: false,
            inside: false,
            tolerance: 1e-9,
            seed: 0,
        }
    }
}

/// Why a program failed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// A test was not met; which and how.
    WrongAnswer(String),
    /// It raised: type, text and line.
    RuntimeError(String),
    /// Its fuel ran out.
    Time,
    /// Its memory ran out.
    Memory,
    /// It wrote more than it may.
    Output,
    /// Its calls nested deeper than the stack.
    Stack,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongAnswer(what) => write!(formatter, "wrong answer: {what}"),
            Self::RuntimeError(what) => write!(formatter, "runtime error: {what}"),
            Self::Time => formatter.write_str("time: the fuel ran out"),
            Self::Memory => formatter.write_str("memory: the limit was met"),
            Self::Output => formatter.write_str("output: more was written than is allowed"),
            Self::Stack => formatter.write_str("stack: calls nested too deeply"),
        }
    }
}

/// What became of a program.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Report {
    /// Why it failed; `None` if it met every test.
    pub failure: Option<Failure>,
    /// Tests met.
    pub passed: u32,
    /// Tests run, or at least known of.
    pub total: u32,
    /// Whether the tests ran beside the program, where it could have forged them.
    pub inside: bool,
    /// What it wrote to standard output (of the last input, where there were several).
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// WebAssembly instructions of the program.
    pub fuel: u64,
}

/// Judges programs one after the other.
pub(crate) struct Grader {
    python: Python,
    /// The instance that runs tests, kept from job to job.
    judge: Option<Guest>,
}

/// What the judge may use for one program's tests: as much as any test needs that makes sense, and
/// no less fuel than the program.
const JUDGE: Limits = Limits {
    fuel_millions: 1000,
    memory_mib: 512,
    output_kib: 1 << 20,
    recursion: 1000,
    backstop_s: 600,
};
/// Bytes to which the judge may have grown before it is replaced.
const JUDGE_MEMORY: usize = 128 << 20;
/// Characters of what is told of a program.
const TOLD: usize = 300;

impl Grader {
    pub(crate) fn new(python: Python) -> Self {
        Self { python, judge: None }
    }

    pub(crate) fn grade(&mut self, job: &Job) -> Result<Report, SandboxError> {
        match &job.tests {
            Tests::Cases(cases) => self.cases(job, cases),
            Tests::Calls(calls) => self.calls(job, calls),
            Tests::Asserts(asserts) => self.asserts(job, asserts),
            Tests::Cells(cells) => self.cells(job, cells),
        }
    }

    fn cells(&self, job: &Job, cells: &[String]) -> Result<Report, SandboxError> {
        let mut report = Report::of(cells.len());
        let mut guest = Guest::start(&self.python, "", job.limits, job.seed)?;
        let mut ran = guest.load(&job.program, job.seed);
        for cell in cells {
            if ran.is_err() {
                break;
            }
            // What came before has been shown before.
            let _ = guest.output();
            ran = guest.more(cell);
        }
        report.fuel = guest.fuel_used();
        (report.stdout, report.stderr) = guest.output();
        match ran {
            Ok(loaded) => {
                report.failure = unfinished(&loaded, &guest);
                guest.leave(&self.python);
            }
            Err(end) => report.failure = Some(failure(end, job.limits)?),
        }
        Ok(report)
    }

    fn cases(&self, job: &Job, cases: &[Case]) -> Result<Report, SandboxError> {
        let mut report = Report::of(cases.len());
        for (number, case) in cases.iter().enumerate() {
            let mut guest = Guest::start(&self.python, &case.stdin, job.limits, job.seed)?;
            let loaded = guest.load(&job.program, job.seed);
            report.fuel += guest.fuel_used();
            (report.stdout, report.stderr) = guest.output();
            let returned = loaded.is_ok();
            let failure = match loaded {
                Ok(loaded) => match unfinished(&loaded, &guest) {
                    Some(failure) => Some(failure),
                    None => differs(&report.stdout, &case.stdout, number + 1),
                },
                Err(End::Exit(0)) => differs(&report.stdout, &case.stdout, number + 1),
                Err(end) => Some(failure(end, job.limits)?),
            };
            if returned {
                guest.leave(&self.python);
            }
            report.count(failure);
            if report.failure.is_some() && !job.every_test {
                break;
            }
        }
        Ok(report)
    }

    fn calls(&self, job: &Job, calls: &[Call]) -> Result<Report, SandboxError> {
        let mut report = Report::of(calls.len());
        let mut program = Program::new(&self.python, &job.program, job.limits, job.seed);
        for call in calls {
            if job.fresh {
                program.answer(r#"["fresh"]"#);
            }
            let wrong =
                if program.start() { outcome(&mut program, call, job.tolerance) } else { None };
            let failure = match (wrong, dead(&mut program, job.limits)?) {
                (_, Some(failure)) | (Some(failure), None) => Some(failure),
                (None, None) => None,
            };
            let over = failure.is_some() && (program.end.is_some() || !program.start());
            report.count(failure);
            if over || report.failure.is_some() && !job.every_test {
                break;
            }
        }
        report.fuel = program.fuel_used();
        if let Some(guest) = program.inside() {
            (report.stdout, report.stderr) = guest.output();
        }
        program.leave();
        Ok(report)
    }

    fn asserts(&mut self, job: &Job, asserts: &Asserts) -> Result<Report, SandboxError> {
        let mut program = Program::new(&self.python, &job.program, job.limits, job.seed);
        // Tests of a program that does not even load need no judge.
        let started = program.start();
        let mut report = Report::of(0);
        if started {
            let ask = |inside| {
                json!({
                    "tests": asserts.source, "prelude": asserts.prelude, "entry": asserts.entry,
                    "partial": job.every_test, "fresh": job.fresh, "inside": inside,
                })
            };
            let (mut judged, kept) = self.judge(&ask(false), job.limits, program)?;
            program = kept;
            if let Some(foreign) = judged.functions.take() {
                if !job.inside {
                    return Err(SandboxError::NeedsInside(foreign));
                }
                program.answer(r#"["fresh"]"#);
                if program.start()
                    && let Some(guest) = program.inside()
                {
                    match guest.check(&ask(true)) {
                        Ok(reply) => judged = Judged::read(&reply),
                        Err(end) => program.end = Some(end),
                    }
                }
                report.inside = true;
            }
            if let Some(fault) = judged.fault {
                return Err(SandboxError::Tests(fault));
            }
            report.passed = judged.passed;
            report.total = judged.total.max(judged.passed);
            report.failure = match (judged.failed, judged.error) {
                (Some((line, why)), _) => Some(wrong(format!("line {line} of the tests: {why}"))),
                (None, Some(error)) => Some(wrong(error)),
                (None, None) if judged.passed < judged.total => {
                    Some(wrong("not all of its tests were reached"))
                }
                (None, None) => None,
            };
        }
        if let Some(failure) = dead(&mut program, job.limits)? {
            report.failure = Some(failure);
        }
        if report.failure.is_some() {
            report.total = report.total.max(report.passed + 1);
        }
        report.fuel = program.fuel_used();
        if let Some(guest) = program.inside() {
            (report.stdout, report.stderr) = guest.output();
        }
        program.leave();
        Ok(report)
    }

    /// Has the judge's instance run tests against `program`.
    fn judge(
        &mut self,
        request: &Value,
        limits: Limits,
        program: Program,
    ) -> Result<(Judged, Program), SandboxError> {
        let limits =
            Limits { fuel_millions: limits.fuel_millions.max(JUDGE.fuel_millions), ..JUDGE };
        let mut judge = match self.judge.take() {
            Some(judge) => judge,
            None => Guest::start(&self.python, "", limits, 0)?,
        };
        judge.limits = limits;
        judge.refill();
        judge.store.data_mut().program = Some(program);
        let result = judge.check(request);
        let _ = judge.output();
        let program = judge.store.data_mut().program.take();
        let program = program.ok_or_else(|| SandboxError::Died("it lost its program".into()))?;
        match result {
            Ok(reply) => {
                let judged = Judged::read(&reply);
                // What tests changed in the interpreter itself is not for other tests to meet.
                if judged.keep && judge.memory() < JUDGE_MEMORY {
                    self.judge = Some(judge);
                } else {
                    judge.leave(&self.python);
                }
                Ok((judged, program))
            }
            Err(End::Backstop) => Err(SandboxError::Backstop(JUDGE.backstop_s)),
            // What the program returned was more than comparing it could bear: its own doing, for
            // the same tests hold of every program.
            Err(end) => {
                let why = match end {
                    End::Fuel => "comparing its results takes too long",
                    End::Memory => "comparing its results takes too much memory",
                    End::Stack => "its results are nested too deeply",
                    _ => "its results break the interpreter that compares them",
                };
                Ok((Judged::over(why), program))
            }
        }
    }
}

/// What the judge's instance says of a program; see `guest/judge.py`.
#[derive(Debug, Deserialize)]
struct Judged {
    passed: u32,
    total: u32,
    failed: Option<(u32, String)>,
    error: Option<String>,
    fault: Option<String>,
    functions: Option<String>,
    keep: bool,
}

impl Judged {
    fn read(reply: &str) -> Self {
        serde_json::from_str(reply)
            .unwrap_or_else(|_| Self::over("the tests' result is unreadable"))
    }

    fn over(why: &str) -> Self {
        Self {
            passed: 0,
            total: 0,
            failed: None,
            error: Some(why.to_owned()),
            fault: None,
            functions: None,
            keep: false,
        }
    }
}

impl Report {
    fn of(total: usize) -> Self {
        Self {
            failure: None,
            passed: 0,
            total: total as u32,
            inside: false,
            stdout: String::new(),
            stderr: String::new(),
            fuel: 0,
        }
    }

    /// Counts one test; the first failure is the one that is told.
    fn count(&mut self, failure: Option<Failure>) {
        match failure {
            None => self.passed += 1,
            Some(failure) => self.failure = self.failure.take().or(Some(failure)),
        }
    }
}

fn wrong(what: impl AsRef<str>) -> Failure {
    Failure::WrongAnswer(short(what))
}

fn raised(what: impl AsRef<str>) -> Failure {
    Failure::RuntimeError(short(what))
}

/// What a program has a say in is cut where it is told.
fn short(text: impl AsRef<str>) -> String {
    text.as_ref().chars().take(TOLD).collect()
}

/// Why a program's top level did not end well.
fn unfinished(loaded: &Loaded, guest: &Guest) -> Option<Failure> {
    match (&loaded.error, loaded.exit) {
        (Some(error), _) if error.starts_with("MemoryError") && guest.store.data().limits.met => {
            Some(Failure::Memory)
        }
        (Some(error), _) => Some(raised(error)),
        (None, Some(status)) if status != 0 => {
            Some(raised(format!("it left with status {status}")))
        }
        _ => None,
    }
}

/// What an early end means; an error if it is the sandbox's own.
fn failure(end: End, limits: Limits) -> Result<Failure, SandboxError> {
    Ok(match end {
        End::Fuel => Failure::Time,
        End::Memory => Failure::Memory,
        End::Output => Failure::Output,
        End::Stack => Failure::Stack,
        End::Exit(status) => raised(format!("it left with status {status}")),
        End::Crash(why) => raised(format!("the interpreter broke down: {why}")),
        End::Backstop => return Err(SandboxError::Backstop(limits.backstop_s)),
    })
}

/// Why a program cannot be asked any more, if it cannot.
fn dead(program: &mut Program, limits: Limits) -> Result<Option<Failure>, SandboxError> {
    if let Some(fault) = program.fault.take() {
        return Err(fault);
    }
    if let Some(end) = program.end.clone() {
        return failure(end, limits).map(Some);
    }
    let Some(loaded) = program.loaded.clone() else { return Ok(None) };
    let Some(guest) = program.inside() else { return Ok(None) };
    Ok(unfinished(&loaded, guest)
        .or_else(|| loaded.exit.map(|_| raised("it left before its tests"))))
}

/// How what a program printed differs from what it should have.
fn differs(got: &str, expected: &str, number: usize) -> Option<Failure> {
    let (mut got, mut expected) = (got.trim_end().lines(), expected.trim_end().lines());
    for line in 1.. {
        match (got.next(), expected.next()) {
            (None, None) => return None,
            (Some(got), Some(expected)) if got.trim_end() == expected.trim_end() => {}
            (got, expected) => {
                let show = |line: Option<&str>| {
                    line.map_or("nothing".to_owned(), |line| {
                        format!("{:?}", line.chars().take(80).collect::<String>())
                    })
                };
                return Some(wrong(format!(
                    "input {number}, line {line}: printed {}, not {}",
                    show(got),
                    show(expected)
                )));
            }
        }
    }
    None
}

/// Makes one call and says how its result falls short.
fn outcome(program: &mut Program, call: &Call, tolerance: f64) -> Option<Failure> {
    let mut target = json!(call.function);
    if let Some((class, method)) = call.function.split_once('.') {
        let made = program.answer(&json!(["call", class, ["t"], ["d"]]).to_string());
        let found = handle(&made)
            .map(|object| program.answer(&json!(["attr", object, method]).to_string()));
        match found.as_deref().and_then(handle) {
            Some(found) => target = found,
            None => return Some(fell_short(found.as_deref().unwrap_or(&made))),
        }
    }
    let request = json!(["call", target, arguments(&call.args), ["d"]]).to_string();
    let reply = program.answer(&request);
    let Some(got) = returned(&reply) else { return Some(fell_short(&reply)) };
    if matches(&got, &call.expected, tolerance) {
        return None;
    }
    let show = |value: &Value| value.to_string().chars().take(80).collect::<String>();
    Some(wrong(format!("{}{}: returned {}", call.function, show(&json!(call.args)), show(&got))))
}

fn returned(reply: &str) -> Option<Value> {
    let mut reply: Vec<Value> = serde_json::from_str(reply).ok()?;
    (reply.len() >= 2 && reply[0] == "ok").then(|| reply.swap_remove(1))
}

/// The number of the object that a reply holds.
fn handle(reply: &str) -> Option<Value> {
    let value = returned(reply)?;
    let parts = value.as_array()?;
    let object = parts.len() >= 3 && (parts[0] == "h" || parts[0] == "p");
    object.then(|| parts[1].clone())
}

/// What a reply without a result says.
fn fell_short(reply: &str) -> Failure {
    let reply: Vec<Value> = serde_json::from_str(reply).unwrap_or_default();
    let part = |index| reply.get(index).and_then(Value::as_str).unwrap_or("");
    match part(0) {
        "raise" => raised(part(4)),
        "large" => wrong(format!("the result cannot be compared: {}", part(1))),
        _ => wrong("the result cannot be read"),
    }
}
