//! Scorers outside: real programs, a real HTTP server, a stand-in for a model. Whatever they do, nothing
//! hangs, the error names the scorer, no fault becomes a reward, and the next group is judged.

mod http;
mod judge;
#[cfg(unix)]
mod process;
mod reward_model;
mod server;

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use serde_json::Value;
use tallow_verifiers::{
    Message, Reference, Transcript, Verdict, Verifier, VerifierEntry, Verifiers, VerifyError,
};

/// Longer than anything here may take, and shorter than anything that hangs.
const BOUND: Duration = Duration::from_secs(20);

type Verdicts = Vec<Result<Verdict, VerifyError>>;

fn build(name: &str, options: &Value) -> Arc<dyn Verifier> {
    Verifiers::builtin()
        .build(name, options.clone())
        .unwrap_or_else(|fault| panic!("{options} is refused: {fault}"))
}

fn group(replies: &[&str]) -> Vec<Transcript> {
    replies.iter().map(|it| Transcript::of_reply(vec![Message::user("6*7?")], *it)).collect()
}

fn gold() -> Reference {
    Reference::Answer("42".to_owned())
}

/// Runs `work` on a thread of its own and fails if it does not end.
fn bounded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(work()));
    ended.recv_timeout(BOUND).expect("it ends, without a panic, within the bound")
}

/// Judges a group by gold 42.
fn judge(verifier: &Arc<dyn Verifier>, replies: &[&str]) -> Verdicts {
    let (verifier, group) = (Arc::clone(verifier), group(replies));
    let wanted = group.len();
    let verdicts = bounded(move || verifier.verify_group(&group, &gold()));
    assert_eq!(verdicts.len(), wanted);
    verdicts
}

fn rewards(verdicts: &Verdicts) -> Vec<f32> {
    verdicts.iter().map(|it| it.as_ref().expect("a verdict").reward).collect()
}

/// Every member of the group has an error that says all of `told`.
#[track_caller]
fn check_broken(verdicts: &Verdicts, told: &[&str]) {
    for verdict in verdicts {
        let error = verdict.as_ref().expect_err("a fault is no verdict");
        assert!(matches!(error, VerifyError::Broken { .. }), "{error}");
        for part in told {
            assert!(error.to_string().contains(part), "{part:?} is not told by: {error}");
        }
    }
}

/// The part `name` of a verdict.
#[track_caller]
fn part(verdict: &Result<Verdict, VerifyError>, name: &str) -> f32 {
    let parts = &verdict.as_ref().expect("a verdict").parts;
    parts.iter().find(|it| it.0 == name).unwrap_or_else(|| panic!("no {name} in {parts:?}")).1
}

/// The row of a built-in verifier.
fn entry(verifiers: &Verifiers, name: &str) -> VerifierEntry {
    *verifiers.get(name).expect("it is built in")
}

/// Says that a check did not run, where everybody reads it.
fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}

#[test]
fn those_that_need_something_say_so_and_refuse_to_do_without() {
    let verifiers = Verifiers::builtin();
    for (name, key) in
        [("http", "url"), ("judge", "model"), ("process", "command"), ("reward_model", "model")]
    {
        let entry = entry(&verifiers, name);
        assert!(entry.needs().is_some() && entry.cases().is_empty(), "{name}");
        let fault = entry.build(entry.default_options(), &verifiers).err().expect("refused");
        assert_eq!(fault.key, key, "{fault}");
    }
}

#[test]
fn the_example_is_the_one_that_is_shown() {
    let example = include_str!("../../examples/reward.py");
    assert!(example.lines().count() <= 12);
    assert!(include_str!("../../README.md").contains(example), "README.md shows another");
}
