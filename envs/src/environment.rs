//! The traits: [`Environment`], a source of tasks, and [`Episode`], one play of one task.

use serde_json::Value;
use tallow_verifiers::{Message, ReferenceKind};

use crate::{
    error::EnvError,
    task::{Seed, Split, Task},
};

/// A source of tasks and the rules by which one is played.
///
/// A single-turn environment implements everything up to [`reply`](Self::reply); override
/// [`episode`](Self::episode) for anything that talks back.
///
/// # Contract (see [`check_environment`](crate::contract::check_environment))
/// - `task(split, index)` is a pure function of the environment's options, its seed, `split` and
///   `index`.
/// - No task appears in both splits.
/// - Every reply the environment itself writes gets full reward from its default verifier.
/// - An episode ends, and does not panic, whatever it is told.
pub trait Environment: Send + Sync {
    /// Stable name: the key in configs and the prefix of metrics, e.g. `digit_sum`.
    fn name(&self) -> &str;

    /// Number of tasks in a split. Procedural environments return the range of their indices,
    /// which may be larger than the number of distinct tasks.
    fn len(&self, split: Split) -> u64;

    /// Whether a split has no tasks.
    fn is_empty(&self, split: Split) -> bool {
        self.len(split) == 0
    }

    /// The `index`-th task of `split`.
    ///
    /// # Errors
    /// [`EnvError::NoSuchTask`] if `index >= len(split)`.
    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError>;

    /// The kind of reference that all its tasks carry.
    fn reference_kind(&self) -> ReferenceKind;

    /// Name and options of the verifier that judges it unless the user chooses another.
    fn default_verifier(&self) -> (&'static str, Value);

    /// The ways in which it can write a right reply, e.g. `["bare", "chain"]`; the first is the
    /// gold one. Empty if it knows no right replies.
    fn reply_styles(&self) -> &'static [&'static str];

    /// A right reply in the given style; `seed` decides where the style leaves a choice.
    ///
    /// `None` if there is no such style, or `task` is not one of this environment's.
    fn reply(&self, task: &Task, style: &str, seed: Seed) -> Option<String>;

    /// The reply in the first style: should earn full reward. Used to test verifiers.
    fn gold_reply(&self, task: &Task) -> Option<String> {
        self.reply(task, self.reply_styles().first()?, Seed(0))
    }

    /// Opens a fresh episode. The default ends after the first reply.
    ///
    /// # Errors
    /// If what the episode needs could not be set up.
    fn episode(&self, task: &Task) -> Result<Box<dyn Episode>, EnvError> {
        let _ = task;
        Ok(Box::new(SingleTurn::new(self.name())))
    }

    /// Where the tasks came from, for the record of a run: file, hash, counts. `None` if they are
    /// determined by the options and the seed alone.
    fn provenance(&self) -> Option<Value> {
        None
    }
}

/// One play of one task. Discard it when it says [`Step::Done`].
pub trait Episode: Send {
    /// Takes the policy's reply; returns what the policy sees next.
    ///
    /// # Errors
    /// If the environment broke, or the episode was already over. Never for what the reply says.
    fn step(&mut self, reply: &str) -> Result<Step, EnvError>;
}

/// What follows a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The policy sees these messages and replies again.
    Continue(Vec<Message>),
    /// The episode is over.
    Done,
}

/// An episode of one reply.
#[derive(Clone, Debug)]
pub struct SingleTurn {
    environment: String,
    over: bool,
}

impl SingleTurn {
    /// A fresh episode of the environment of that name.
    pub fn new(environment: impl Into<String>) -> Self {
        Self { environment: environment.into(), over: false }
    }
}

impl Episode for SingleTurn {
    fn step(&mut self, _reply: &str) -> Result<Step, EnvError> {
        if self.over {
            return Err(EnvError::EpisodeOver { environment: self.environment.clone() });
        }
        self.over = true;
        Ok(Step::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_turn_ends_after_one_reply_and_cannot_be_stepped_again() {
        let mut episode = SingleTurn::new("sums");
        assert_eq!(episode.step("4"), Ok(Step::Done));
        assert_eq!(
            episode.step("4"),
            Err(EnvError::EpisodeOver { environment: "sums".to_owned() })
        );
    }
}
