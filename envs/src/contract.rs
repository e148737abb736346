//! What every environment must satisfy, as a check that authors run over their own.

use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
};

use serde_json::Value;
use tallow_verifiers::{Message, Outcome, StopReason, Transcript, Verifiers, contract};

use crate::{
    environment::{Environment, Step},
    error::EnvError,
    registry::{BuildContext, EnvEntry},
    task::{Seed, Split, Task},
};

/// Tasks of each split that are looked at.
const TASKS: u64 = 64;

/// Tasks of each split that are played, gold and hostile.
const PLAYED: u64 = 3;

/// Replies after which an episode must have ended.
const LONGEST_EPISODE: usize = 256;

/// Checks one row of a table with the given options.
///
/// - Built twice, it gives equal tasks, each under its own id and with a prompt and the kind of
///   reference it announces.
/// - No prompt is in both splits.
/// - Past the end there is [`EnvError::NoSuchTask`].
/// - Its default verifier exists, judges that kind of reference, and gives every reply the
///   environment writes itself, in every style and for several seeds, full reward.
/// - Episodes end within a bound, refuse to be stepped after that, and neither panic nor err
///   whatever they are told.
///
/// # Errors
/// Every breach, one sentence each.
pub fn check_environment(
    entry: &EnvEntry,
    options: &Value,
    context: &BuildContext,
    verifiers: &Verifiers,
) -> Result<(), Vec<String>> {
    let breach = |what: String| format!("environment `{}` with {options}: {what}", entry.name());
    let build = || entry.build(options.clone(), context);
    let (environment, twin) = match (build(), build()) {
        (Ok(environment), Ok(twin)) => (environment, twin),
        (Err(fault), _) | (_, Err(fault)) => {
            return Err(vec![breach(format!("cannot be built: {fault}"))]);
        }
    };
    let mut breaches = Vec::new();
    if entry.build(serde_json::json!({ "no such key": 1 }), context).is_ok() {
        breaches.push("accepts a key that it does not have".to_owned());
    }
    // What a careless author's code panics at should be reported with the rest.
    let checked = catch_unwind(AssertUnwindSafe(|| {
        check_tasks(environment.as_ref(), twin.as_ref(), &mut breaches);
        check_replies(environment.as_ref(), verifiers, &mut breaches);
        check_episodes(environment.as_ref(), &mut breaches);
    }));
    if checked.is_err() {
        breaches.push("panicked".to_owned());
    }
    if breaches.is_empty() { Ok(()) } else { Err(breaches.into_iter().map(breach).collect()) }
}

/// The first tasks of both splits.
fn tasks(environment: &dyn Environment, most: u64) -> Vec<(Split, u64, Result<Task, EnvError>)> {
    [Split::Train, Split::Test]
        .into_iter()
        .flat_map(|split| (0..environment.len(split).min(most)).map(move |index| (split, index)))
        .map(|(split, index)| (split, index, environment.task(split, index)))
        .collect()
}

fn check_tasks(environment: &dyn Environment, twin: &dyn Environment, breaches: &mut Vec<String>) {
    let (mut train, mut test) = (HashSet::new(), HashSet::new());
    for (split, index, task) in tasks(environment, TASKS) {
        if task != environment.task(split, index) || task != twin.task(split, index) {
            breaches.push(format!("gives two different tasks for {split}/{index}"));
        }
        let task = match task {
            Ok(task) => task,
            Err(error) => {
                breaches
                    .push(format!("has no {split}/{index}, which its length promises: {error}"));
                continue;
            }
        };
        if (task.id.split, task.id.index) != (split, index) {
            breaches.push(format!("calls its task {split}/{index} {}", task.id));
        }
        if task.prompt.is_empty() {
            breaches.push(format!("asks nothing in {split}/{index}"));
        }
        if task.reference.kind() != environment.reference_kind() {
            breaches.push(format!(
                "announces references of kind {}, but {split}/{index} has one of kind {}",
                environment.reference_kind(),
                task.reference.kind()
            ));
        }
        match split {
            Split::Train => train.insert(task.prompt),
            Split::Test => test.insert(task.prompt),
        };
    }
    if let Some(shared) = train.intersection(&test).next() {
        breaches.push(format!("trains and tests on the same prompt {shared:?}"));
    }
    if train.is_empty() {
        breaches.push("has nothing to train on".to_owned());
    }
    for split in [Split::Train, Split::Test] {
        for index in [environment.len(split), u64::MAX] {
            if !matches!(environment.task(split, index), Err(EnvError::NoSuchTask { .. })) {
                breaches.push(format!("has a task {split}/{index}, which is past the end"));
            }
        }
    }
}

fn check_replies(environment: &dyn Environment, verifiers: &Verifiers, breaches: &mut Vec<String>) {
    let (name, options) = environment.default_verifier();
    let verifier = match verifiers.build(name, options) {
        Ok(verifier) => verifier,
        Err(fault) => {
            breaches.push(format!("its default verifier `{name}` cannot be built: {fault}"));
            return;
        }
    };
    if !verifier.reference_kinds().contains(&environment.reference_kind()) {
        breaches.push(format!(
            "its default verifier `{name}` does not judge references of kind {}",
            environment.reference_kind()
        ));
    }
    for (split, index, task) in tasks(environment, TASKS) {
        let Ok(task) = task else { continue };
        if environment.reply(&task, "no such style", Seed(0)).is_some() {
            breaches.push("replies in a style that it does not list".to_owned());
        }
        for style in environment.reply_styles() {
            for seed in 0..3 {
                let reply = environment.reply(&task, style, Seed(seed));
                if reply != environment.reply(&task, style, Seed(seed)) {
                    breaches.push(format!("its `{style}` reply to {split}/{index} varies"));
                }
                let Some(reply) = reply else {
                    breaches.push(format!("has no `{style}` reply to {split}/{index}"));
                    continue;
                };
                let transcript = Transcript::of_reply(task.prompt.clone(), reply.clone());
                match verifier.verify(&transcript, &task.reference) {
                    Ok(it) if it.reward == 1.0 && it.outcome == Outcome::Correct => {}
                    verdict => breaches.push(format!(
                        "its own `{style}` reply {reply:?} to {split}/{index} is not right: \
                         {verdict:?}"
                    )),
                }
            }
        }
        let gold_style = environment.reply_styles().first();
        let first = gold_style.and_then(|style| environment.reply(&task, style, Seed(0)));
        if environment.gold_reply(&task) != first {
            breaches.push(format!("the gold reply to {split}/{index} is not of the first style"));
        }
    }
}

fn check_episodes(environment: &dyn Environment, breaches: &mut Vec<String>) {
    for (split, index, task) in tasks(environment, PLAYED) {
        let Ok(task) = task else { continue };
        let gold = environment.gold_reply(&task).into_iter();
        for reply in gold.chain(contract::hostile_replies()) {
            if let Err(what) = play(environment, &task, &reply) {
                let reply: String = reply.chars().take(40).collect();
                breaches.push(format!("told {reply:?} in {split}/{index}, {what}"));
            }
        }
    }
}

/// Plays one episode in which the policy always says the same.
fn play(environment: &dyn Environment, task: &Task, reply: &str) -> Result<(), String> {
    let mut episode =
        environment.episode(task).map_err(|error| format!("the episode does not open: {error}"))?;
    let mut messages: Vec<Message> = task.prompt.clone();
    for _ in 0..LONGEST_EPISODE {
        messages.push(Message::assistant(reply));
        match episode.step(reply).map_err(|error| format!("the episode erred: {error}"))? {
            Step::Continue(more) if more.is_empty() => {
                return Err("the episode goes on without a word".to_owned());
            }
            Step::Continue(more) => messages.extend(more),
            Step::Done => {
                return match episode.step(reply) {
                    Err(EnvError::EpisodeOver { .. }) => Ok(()),
                    _ => Err("the episode goes on after its end".to_owned()),
                };
            }
        }
    }
    let transcript = Transcript { messages, stop: StopReason::TurnLimit };
    Err(format!("the episode has not ended after {} replies", transcript.replies().count()))
}

#[cfg(test)]
mod tests {
    use std::{
        path::PathBuf,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
    };

    use serde::{Deserialize, Serialize};
    use tallow_verifiers::{ConfigFault, Reference, ReferenceKind};

    use super::*;
    use crate::{
        environment::Episode,
        registry::EnvConfig,
        task::{Task, TaskId},
    };

    /// Breaks every clause: no prompt differs, tasks change, replies are wrong, episodes never end.
    #[derive(Default, Deserialize, Serialize)]
    #[serde(default)]
    struct RogueConfig {}

    struct Rogue {
        calls: AtomicU64,
    }

    struct Endless;

    impl EnvConfig for RogueConfig {
        const NAME: &'static str = "rogue";
        const SUMMARY: &'static str = "breaks the contract";

        fn build(&self, _: &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault> {
            Ok(Arc::new(Rogue { calls: AtomicU64::new(0) }))
        }
    }

    impl Episode for Endless {
        fn step(&mut self, _: &str) -> Result<Step, EnvError> {
            Ok(Step::Continue(vec![Message::tool("again")]))
        }
    }

    impl Environment for Rogue {
        fn name(&self) -> &str {
            "rogue"
        }

        fn len(&self, _: Split) -> u64 {
            2
        }

        fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
            Ok(Task {
                id: TaskId { split, index },
                prompt: vec![Message::user("always this")],
                reference: Reference::Answer("1".to_owned()),
                notes: self.calls.fetch_add(1, Ordering::Relaxed).into(),
            })
        }

        fn reference_kind(&self) -> ReferenceKind {
            ReferenceKind::Tests
        }

        fn default_verifier(&self) -> (&'static str, Value) {
            ("exact", Value::Null)
        }

        fn reply_styles(&self) -> &'static [&'static str] {
            &["bare"]
        }

        fn reply(&self, _: &Task, _: &str, _: Seed) -> Option<String> {
            Some("2".to_owned())
        }

        fn episode(&self, _: &Task) -> Result<Box<dyn Episode>, EnvError> {
            Ok(Box::new(Endless))
        }
    }

    #[test]
    fn every_clause_is_checked() {
        let context = BuildContext { folder: PathBuf::new(), seed: Seed(0) };
        let entry = EnvEntry::of::<RogueConfig>();
        let breaches = check_environment(&entry, &Value::Null, &context, &Verifiers::builtin())
            .expect_err("the rogue breaks the contract")
            .join("\n");
        for clause in [
            "accepts a key that it does not have",
            "gives two different tasks for train/0",
            "announces references of kind tests",
            "trains and tests on the same prompt",
            "which is past the end",
            "does not judge references of kind tests",
            "replies in a style that it does not list",
            "its own `bare` reply \"2\" to test/1 is not right",
            "has not ended after 256 replies",
        ] {
            assert!(breaches.contains(clause), "`{clause}` is not among\n{breaches}");
        }
    }
}
