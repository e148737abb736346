//! What can go wrong with a model: its files, its configuration, its inputs, its numbers.
//!
//! Messages are lower case, name what was found and what was expected, and carry no stop.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

/// A failure of the model or its files; never a verdict on a completion.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A tensor operation failed: shape, dtype, memory or device.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),

    /// The operating system refused to read or write a file.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb: "read", "write", "rename".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// The model configuration asks for something this crate does not compute.
    #[error("model config: {message}")]
    Config {
        /// The field, its value and what is supported.
        message: String,
    },

    /// A weights or state file is damaged or does not fit the model.
    #[error("{}: {message}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, naming the tensor.
        message: String,
    },

    /// The caller passed inputs that contradict each other or the model.
    #[error("{message}")]
    Input {
        /// Found and expected.
        message: String,
    },

    /// A gradient is missing or not a finite number; weights were left untouched.
    #[error("gradient of {name}: {problem}")]
    Gradient {
        /// The parameter's name.
        name: String,
        /// What is wrong with its gradient.
        problem: String,
    },

    /// Weights, adapters or moments of the optimizer stopped being numbers.
    #[error("{bad} of {count} values of {name} are NaN or infinite")]
    Weights {
        /// The first such tensor's name.
        name: String,
        /// How many of its values are no numbers.
        bad: usize,
        /// How many it has.
        count: usize,
    },

    /// What the model computes stopped being numbers, though its weights are.
    #[error("{what} hold NaN or an infinity, though the weights are numbers")]
    NotFinite {
        /// What was computed, in the plural.
        what: &'static str,
    },

    /// A GPU, its driver or its libraries failed.
    #[error("GPU: {message}")]
    Device {
        /// What was tried, and the driver's words.
        message: String,
    },

    /// A model broke its contract (see [`crate::contract`]).
    #[error("contract broken: {message}")]
    Contract {
        /// The clause and the numbers.
        message: String,
    },
}

impl PolicyError {
    pub(crate) fn file(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::File { action, path: path.to_path_buf(), source }
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::Config { message: message.into() }
    }

    pub(crate) fn checkpoint(path: &Path, message: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.to_path_buf(), message: message.into() }
    }

    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::Input { message: message.into() }
    }

    pub(crate) fn gradient(name: &str, problem: impl Into<String>) -> Self {
        Self::Gradient { name: name.to_owned(), problem: problem.into() }
    }

    /// A failure of a GPU.
    pub fn device(message: impl Into<String>) -> Self {
        Self::Device { message: message.into() }
    }

    /// Nothing, or how many of a tensor's values are no numbers.
    pub(crate) fn unless_finite(name: &str, values: &[f32]) -> Result<(), Self> {
        match not_finite(values) {
            0 => Ok(()),
            bad => Err(Self::Weights { name: name.to_owned(), bad, count: values.len() }),
        }
    }

    pub(crate) fn contract(message: impl Into<String>) -> Self {
        Self::Contract { message: message.into() }
    }
}

/// How many values are NaN or an infinity.
pub(crate) fn not_finite(values: &[f32]) -> usize {
    // Without a branch, so that the loop takes no longer than reading the values.
    let in_chunk = |chunk: &[f32]| chunk.iter().map(|it| usize::from(!it.is_finite())).sum();
    match values.len() {
        0..=SHORT => in_chunk(values),
        _ => values.par_chunks(SHORT).map(in_chunk).sum(),
    }
}

/// Values that are not worth a second thread.
const SHORT: usize = 64 * 1024;
