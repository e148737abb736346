//! What can go wrong with a model: its files, its configuration, its inputs, its numbers.
//!
//! Messages are lower case, name what was found and what was expected, and carry no stop.

use std::path::{Path, PathBuf};

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

    pub(crate) fn contract(message: impl Into<String>) -> Self {
        Self::Contract { message: message.into() }
    }
}
