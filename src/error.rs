//! Everything a run can fail with, and the hint that goes with it.
//!
//! A model's bad answer is never here: that is a verdict. Errors end a run; what it had is kept.

use std::path::{Path, PathBuf};

use tallow_policies::PolicyError;

use crate::config::problem::Problems;
use crate::files::StoreError;

/// A failure that ends the command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration; nothing was started.
    #[error("{0}")]
    Config(Problems),
    /// A request that makes no sense, told in one line.
    #[error("{problem}")]
    Usage {
        /// What was asked for.
        problem: String,
        /// What to do instead.
        hint: Option<String>,
    },
    /// The model, its files or the device.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A tensor operation.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A file of the run.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file the user named.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The user's data.
    #[error("{0}")]
    Data(String),
    /// An environment could not even give its tasks.
    #[error("environment: {0}")]
    Environment(String),
    /// So many rollouts broke that training on the rest would mislead.
    #[error("{broken} of {played} rollouts of step {step} broke in {who}: {example}")]
    TooManyBroken {
        /// Broken trajectories.
        broken: usize,
        /// Trajectories asked for.
        played: usize,
        /// The step.
        step: u64,
        /// "the environment" or "the verifier".
        who: &'static str,
        /// The first message.
        example: String,
    },
    /// The sampling engine failed.
    #[error("sampling: {0}")]
    Sampling(String),
    /// Weights or gradients stopped being numbers.
    #[error("training diverged: {0}")]
    Diverged(String),
    /// A chat template that cannot be used.
    #[error("chat template: {0}")]
    Template(String),
    /// The user pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// A file the user named could not be used.
    pub fn file(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::File { action, path: path.to_path_buf(), source }
    }

    /// A chat template that Jinja refuses.
    pub fn chat_template(error: &minijinja::Error) -> Self {
        Self::Template(format!("{error:#}"))
    }

    /// A request that makes no sense.
    pub fn usage(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { problem: problem.into(), hint: Some(hint.into()) }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. } => hint.clone(),
            Self::Store(error) => error.hint(),
            Self::Policy(PolicyError::File { action, path, source }) => {
                let source = std::io::Error::from_raw_os_error(source.raw_os_error()?);
                StoreError::new(action, path, source).hint()
            }
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                let told = "check the path; one in a configuration is taken from that file's folder, then \
                            from here";
                Some(told.into())
            }
            Self::Diverged(_) => Some(
                "lower optimizer.learning_rate or set optimizer.adamw.clip_norm, and begin anew in \
                 another folder by --out DIR; the last checkpoint is kept"
                    .into(),
            ),
            Self::TooManyBroken { .. } => Some(
                "no broken rollout was scored; mend what broke, or raise rollout.largest_broken_share"
                    .into(),
            ),
            Self::Interrupted => Some("go on with --resume".into()),
            _ => None,
        }
    }

    /// The process's exit status: 2 for bad usage or configuration, 1 for failed work.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage { .. } => 2,
            _ => 1,
        }
    }
}

impl From<Problems> for Error {
    fn from(problems: Problems) -> Self {
        Self::Config(problems)
    }
}
