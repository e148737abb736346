//! Tasks drawn from a seed: candidates, and the split each belongs to.
//!
//! The split of a candidate is decided by a hash of its canonical text, so no task can be in both
//! splits, whatever the seed: a task held out under one seed is held out under all. Candidates for
//! `(split, index)` are drawn from `seed.derive(&[index, attempt])` until one falls in the split.

//!
//! [`Puzzle`] is all that a single-turn procedural environment has to say; [`Procedural`] makes an
//! [`Environment`] of it. [`draw`] alone serves environments that talk back.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tallow_verifiers::{ConfigFault, Message, Reference, ReferenceKind};

use crate::{
    environment::Environment,
    error::EnvError,
    task::{Seed, Split, Task, TaskId},
};

/// A kind of question that can be drawn at random, asked in one message and answered in one reply.
///
/// The reply ends in `=` and the answer, unless [`default_verifier`](Self::default_verifier) says
/// otherwise.
pub trait Puzzle: Send + Sync + 'static {
    /// One question, with whatever is needed to ask and answer it. It travels in the task's notes.
    type Question: Serialize + DeserializeOwned;

    /// The environment's name.
    fn name(&self) -> &'static str;

    /// Draws a question.
    fn candidate(&self, rng: &mut ChaCha8Rng) -> Self::Question;

    /// The one user message.
    fn prompt(&self, question: &Self::Question) -> String;

    /// The question with all that does not matter removed, such as the order of factors; by it the
    /// splits are kept apart. The default is the prompt.
    fn canonical(&self, question: &Self::Question) -> String {
        self.prompt(question)
    }

    /// What a right reply must meet.
    fn reference(&self, question: &Self::Question) -> Reference;

    /// The kind of every reference.
    fn reference_kind(&self) -> ReferenceKind {
        ReferenceKind::Answer
    }

    /// Who judges; the default compares what follows the last `=`.
    fn default_verifier(&self) -> (&'static str, Value) {
        ("exact", json!({ "after": "=" }))
    }

    /// The ways to write a right reply, the gold one first.
    fn reply_styles(&self) -> &'static [&'static str];

    /// A right reply in that style, `None` if there is none. Must not panic, whatever the question
    /// holds, since notes may have been through a file.
    fn reply(&self, question: &Self::Question, style: &str, seed: Seed) -> Option<String>;
}

/// The environment of a puzzle.
pub struct Procedural<P> {
    puzzle: P,
    seed: Seed,
}

impl<P: Puzzle> Procedural<P> {
    /// The environment, if there are enough distinct questions to hold some out.
    ///
    /// # Errors
    /// A fault at `size_key`, the option that makes the space larger, if there are too few.
    pub fn build(
        puzzle: P,
        seed: Seed,
        size_key: &str,
    ) -> Result<Arc<dyn Environment>, ConfigFault> {
        check_space(
            puzzle.name(),
            size_key,
            |rng| puzzle.candidate(rng),
            |question| puzzle.canonical(question),
        )?;
        Ok(Arc::new(Self { puzzle, seed }))
    }
}

impl<P: Puzzle> Environment for Procedural<P> {
    fn name(&self) -> &str {
        self.puzzle.name()
    }

    fn len(&self, split: Split) -> u64 {
        len(split)
    }

    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        let question = draw(
            self.puzzle.name(),
            self.seed,
            split,
            index,
            |rng| self.puzzle.candidate(rng),
            |question| self.puzzle.canonical(question),
        )?;
        let notes = serde_json::to_value(&question).map_err(|error| EnvError::Broken {
            environment: self.puzzle.name().to_owned(),
            problem: format!("a question does not serialise: {error}"),
        })?;
        Ok(Task {
            id: TaskId { split, index },
            prompt: vec![Message::user(self.puzzle.prompt(&question))],
            reference: self.puzzle.reference(&question),
            notes,
        })
    }

    fn reference_kind(&self) -> ReferenceKind {
        self.puzzle.reference_kind()
    }

    fn default_verifier(&self) -> (&'static str, Value) {
        self.puzzle.default_verifier()
    }

    fn reply_styles(&self) -> &'static [&'static str] {
        self.puzzle.reply_styles()
    }

    fn reply(&self, task: &Task, style: &str, seed: Seed) -> Option<String> {
        let question = P::Question::deserialize(&task.notes).ok()?;
        self.puzzle.reply(&question, style, seed)
    }
}

/// One in this many candidates is held out for testing.
const TEST_SHARE: u64 = 8;

/// Range of indices of procedural training tasks: beyond any run's need.
pub const TRAIN_LEN: u64 = 1 << 40;

/// Range of indices of procedural test tasks: beyond any evaluation's need.
pub const TEST_LEN: u64 = 1 << 20;

/// A test task needs eight candidates on average; that this many fail by chance has probability
/// 1e-237 when an eighth of the space is held out.
const ATTEMPTS: u64 = 4096;

/// Number of tasks in a split of a procedural environment.
pub fn len(split: Split) -> u64 {
    match split {
        Split::Train => TRAIN_LEN,
        Split::Test => TEST_LEN,
    }
}

/// The split to which a task of that canonical text belongs, on every machine and for every seed.
pub fn split_of(environment: &str, canonical: &str) -> Split {
    let mut hasher = Sha256::new();
    hasher.update(environment.as_bytes());
    hasher.update([0]);
    hasher.update(canonical.as_bytes());
    if u64::from(hasher.finalize()[0]) % TEST_SHARE == 0 { Split::Test } else { Split::Train }
}

/// Draws the task of `(split, index)`: the first candidate that falls in the split.
///
/// `candidate` draws one task; `canonical` is its text with all that does not matter removed
/// (such as the order of factors), by which the splits are kept apart.
///
/// # Errors
/// [`EnvError::NoSuchTask`] past the end, [`EnvError::Broken`] if no candidate fell in the split,
/// which [`check_space`] at build time makes all but impossible.
pub fn draw<T>(
    environment: &str,
    seed: Seed,
    split: Split,
    index: u64,
    candidate: impl Fn(&mut ChaCha8Rng) -> T,
    canonical: impl Fn(&T) -> String,
) -> Result<T, EnvError> {
    if index >= len(split) {
        return Err(EnvError::NoSuchTask {
            environment: environment.to_owned(),
            split,
            index,
            len: len(split),
        });
    }
    (0..ATTEMPTS)
        .map(|attempt| candidate(&mut seed.derive(&[index, attempt]).rng()))
        .find(|drawn| split_of(environment, &canonical(drawn)) == split)
        .ok_or_else(|| EnvError::Broken {
            environment: environment.to_owned(),
            problem: format!("no {split} task among {ATTEMPTS} candidates for index {index}"),
        })
}

/// Refuses options whose tasks are too few to be split.
///
/// Draws from a fixed seed, so that the answer depends on the options alone.
///
/// # Errors
/// A fault at `key` if fewer than a handful of distinct tasks fall in either split.
pub fn check_space<T>(
    environment: &str,
    key: &str,
    candidate: impl Fn(&mut ChaCha8Rng) -> T,
    canonical: impl Fn(&T) -> String,
) -> Result<(), ConfigFault> {
    /// Enough to see a held-out eighth many times over.
    const PROBES: u64 = 512;
    /// Fewer distinct test tasks than this measure nothing.
    const FEWEST: usize = 4;

    let (mut train, mut test) =
        (std::collections::HashSet::new(), std::collections::HashSet::new());
    for probe in 0..PROBES {
        let text = canonical(&candidate(&mut Seed(0).derive(&[probe]).rng()));
        match split_of(environment, &text) {
            Split::Train => train.insert(text),
            Split::Test => test.insert(text),
        };
    }
    if train.len() >= FEWEST && test.len() >= FEWEST {
        return Ok(());
    }
    Err(ConfigFault::new(key, "too few distinct tasks to hold some out for testing")
        .found(format!("{} to train on and {} to test on", train.len(), test.len()))
        .expected(format!("at least {FEWEST} of each"))
        .hint(format!("raise `{key}`")))
}

/// Refuses a number outside its range.
///
/// # Errors
/// A fault at `key` that states the range.
pub fn check_range(
    key: &str,
    found: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<(), ConfigFault> {
    if range.contains(&found) {
        return Ok(());
    }
    Err(ConfigFault::new(key, "out of range").found(found).expected(format!(
        "{} to {}",
        range.start(),
        range.end()
    )))
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;

    #[test]
    fn about_an_eighth_is_held_out() {
        let held_out =
            (0..8000).filter(|it| split_of("any", &format!("{it}")) == Split::Test).count();
        // Binomial(8000, 1/8): mean 1000, standard deviation 30; five of them allowed.
        assert!((850..=1150).contains(&held_out), "{held_out} of 8000 held out");
    }

    #[test]
    fn a_space_of_two_tasks_is_refused_and_names_the_key() {
        let fault =
            check_space("coin", "sides", |rng| rng.random_range(0..2u8), |side| side.to_string())
                .expect_err("two tasks cannot be split");
        assert_eq!(fault.key, "sides");
    }

    #[test]
    fn past_the_end_there_is_no_task() {
        let drawn = draw("any", Seed(0), Split::Test, TEST_LEN, |_| 0u8, |_| String::new());
        assert!(matches!(drawn, Err(EnvError::NoSuchTask { index: TEST_LEN, .. })), "{drawn:?}");
    }
}
