//! What can go wrong inside an environment. Nothing a policy writes is one of these.

use thiserror::Error;

use crate::task::Split;

/// The environment broke; the caller drops the episode and counts it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EnvError {
    /// There is no task of that index.
    #[error("environment `{environment}` has no {split} task {index}: it has {len}")]
    NoSuchTask {
        /// Name of the environment.
        environment: String,
        /// The split asked for.
        split: Split,
        /// The index asked for.
        index: u64,
        /// How many tasks the split has.
        len: u64,
    },
    /// A step was asked of an episode that had ended.
    #[error("an episode of environment `{environment}` was stepped after it had ended")]
    EpisodeOver {
        /// Name of the environment.
        environment: String,
    },
    /// The environment itself failed.
    #[error("environment `{environment}` broke: {problem}")]
    Broken {
        /// Name of the environment.
        environment: String,
        /// What happened.
        problem: String,
    },
}
