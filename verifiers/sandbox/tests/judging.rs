//! What tests in Python mean: each line of `judging.jsonl` is a program, its tests, and how many of
//! them it meets, or why they are none. And attacks that aim at the judge instead of the tests.

use serde::Deserialize;
use tallow_sandbox::{Asserts, Call, Failure, Job, Report, Sandbox, SandboxError, Tests, Workers};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    program: String,
    tests: String,
    entry: Option<String>,
    #[serde(default)]
    inside: bool,
    #[serde(default = "yes")]
    every_test: bool,
    passed: Option<u32>,
    total: Option<u32>,
    /// In the reason of the failure.
    failure: Option<String>,
    /// The tests are none, and this is in the reason.
    fault: Option<String>,
    /// They can only run beside the program, and this is in the reason.
    inside_only: Option<String>,
}

fn yes() -> bool {
    true
}

fn asserts(program: &str, source: &str) -> Job {
    let tests = Asserts { source: source.to_owned(), ..Asserts::default() };
    Job::new(program, Tests::Asserts(tests))
}

#[test]
fn tests_are_counted_and_judged_as_written() {
    let sandbox = Sandbox::start(Workers::Threads, 1).expect("the sandbox starts");
    let mut wrong = Vec::new();
    for line in include_str!("judging.jsonl").lines() {
        let line: Line = serde_json::from_str(line).expect("a line");
        let mut job = asserts(&line.program, &line.tests);
        if let Tests::Asserts(asserts) = &mut job.tests {
            asserts.entry = line.entry;
        }
        job.inside = line.inside;
        job.every_test = line.every_test;
        let graded = sandbox.grade(job);
        let as_expected = match &graded {
            Ok(report) => {
                let met = line.passed == line.total && line.passed.is_some();
                let counts = line.passed.is_none_or(|it| it == report.passed)
                    && line.total.is_none_or(|it| it == report.total);
                let told = line.failure.is_none_or(|it| {
                    report.failure.as_ref().is_some_and(|failure| failure.to_string().contains(&it))
                });
                line.fault.is_none()
                    && line.inside_only.is_none()
                    && counts
                    && told
                    && met == report.failure.is_none()
            }
            Err(SandboxError::Tests(why)) => line.fault.is_some_and(|it| why.contains(&it)),
            Err(SandboxError::NeedsInside(why)) => {
                line.inside_only.is_some_and(|it| why.contains(&it))
            }
            Err(_) => false,
        };
        if !as_expected {
            wrong.push(format!("{}: {graded:?}", line.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn failed(report: &Report) -> String {
    report.failure.as_ref().map(Failure::to_string).unwrap_or_default()
}

#[test]
fn a_judge_that_was_attacked_judges_the_next_program_as_before() {
    let sandbox = Sandbox::start(Workers::Threads, 1).expect("the sandbox starts");
    let reply =
        |text: &str| format!("import values\ndef f(*x, **y): values.to_json = lambda m: {text:?}");
    for (program, tests) in [
        (
            reply(r#"["ok",null,[["t",["l","x"]],["d"]]]"#),
            "import keyword\nf(keyword.kwlist)\nassert 'if' in keyword.kwlist",
        ),
        (reply(r#"["ok",0,[["t",["l"]],["d"]]]"#), "xs = [1, 2, 3]\nassert f(xs) == sum(xs)"),
        ("def f(x): return 'abc'".to_owned(), "import math\nmath.pi = f(1)\nassert math.pi == 3"),
        (
            "def f(x): return 'Judge'".to_owned(),
            "import sys\nsys.modules.clear()\nassert f(1) == 1",
        ),
        ("def f(x): return 1".to_owned(), "import os\nassert f(1) == 2 or os._exit(3)"),
    ] {
        let report = sandbox.grade(asserts(&program, tests)).expect("a report");
        // A list that belongs to a module never changes, so its test is met.
        assert_eq!(report.failure.is_none(), tests.contains("kwlist"), "{program}");
        let honest = "import keyword, math\nassert f(2) == 4 and len(keyword.kwlist) == 35\nassert 3 < math.pi < 4";
        let report = sandbox.grade(asserts("def f(x): return x * x", honest)).expect("a report");
        assert_eq!((failed(&report).as_str(), report.passed), ("", 2), "after {program}");
    }
}

#[test]
fn dying_early_and_long_results_earn_no_larger_share() {
    let sandbox = Sandbox::start(Workers::Threads, 1).expect("the sandbox starts");
    let share = |program: &str, tests: &str| {
        let job = Job { every_test: true, ..asserts(program, tests) };
        let report = sandbox.grade(job).expect("a report");
        f64::from(report.passed) / f64::from(report.total)
    };
    let ten: String = (1..=10).map(|it| format!("assert f({it}) == {}\n", it * it)).collect();
    assert_eq!(share("def f(x): return 1", &ten), 0.1);
    for end in ["__import__('os')._exit(0)", "exec('while True: pass')", "int('x')"] {
        let program = format!("def f(x): return 1 if x == 1 else {end}");
        assert_eq!(share(&program, &ten), 0.1, "{end}");
    }
    let loops = "for v in f(2):\n    assert v > 0\nassert f(3) == 9\nassert f(4) == 16";
    assert_eq!(share("def f(x): return [1] * 1000", loops), 1.0 / 3.0);
}

#[test]
fn a_flood_of_a_reply_costs_no_memory() {
    let sandbox = Sandbox::start(Workers::Threads, 1).expect("the sandbox starts");
    let call = |expected| Call { function: "f".to_owned(), args: vec![1.into()], expected };
    let flood = "import values\ndef f(x): values.to_json = lambda m: '[\"ok\",[0' + ',[0]' * 10_000_000 + ']]'";
    let report = sandbox.grade(Job::new(flood, Tests::Calls(vec![call(1.into())])));
    let report = report.expect("a report");
    assert!(failed(&report).contains("more than 8 MiB"), "{report:?}");
    let long = "class E(Exception): pass\nE.__name__ = 'e' * 10_000_000\ndef f(x): raise E";
    let report = sandbox.grade(Job::new(long, Tests::Calls(vec![call(1.into())])));
    assert!(failed(&report.expect("a report")).len() < 400);
}
