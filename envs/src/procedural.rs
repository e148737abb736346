//! Tasks drawn from a seed: candidates, and the split each belongs to.
//!
//! The split of a candidate is decided by a hash of its canonical text, so no task can be in both
//! splits, whatever the seed: a task held out under one seed is held out under all. Candidates for
//! `(split, index)` are drawn from `seed.derive(&[index, attempt])` until one falls in the split.

use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tallow_verifiers::ConfigFault;

use crate::{
    error::EnvError,
    task::{Seed, Split},
};

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
