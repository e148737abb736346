//! What exists: the built-in tables and what a user's binary adds to them.

use tallow_envs::{EnvConfig, Environments};
use tallow_verifiers::{VerifierConfig, Verifiers};

use crate::algorithms::{self, AlgorithmConfig, AlgorithmEntry};

/// Environments, verifiers and algorithms by name.
#[derive(Clone)]
pub struct Registry {
    /// Environments.
    pub environments: Environments,
    /// Verifiers.
    pub verifiers: Verifiers,
    /// Algorithms.
    pub algorithms: Vec<AlgorithmEntry>,
}

impl Registry {
    /// Everything that Tallow ships.
    pub fn builtin() -> Self {
        Self {
            environments: Environments::builtin(),
            verifiers: Verifiers::builtin(),
            algorithms: algorithms::BUILTIN.to_vec(),
        }
    }

    /// One environment more; it replaces a built-in one of the same name.
    #[must_use]
    pub fn with_env<C: EnvConfig>(mut self) -> Self {
        self.environments = self.environments.with::<C>();
        self
    }

    /// One verifier more; it replaces a built-in one of the same name.
    #[must_use]
    pub fn with_verifier<C: VerifierConfig>(mut self) -> Self {
        self.verifiers = self.verifiers.with::<C>();
        self
    }

    /// One algorithm more; it replaces a built-in one of the same name.
    #[must_use]
    pub fn with_algorithm<C: AlgorithmConfig>(mut self) -> Self {
        let entry = AlgorithmEntry::of::<C>();
        self.algorithms.retain(|it| it.name != entry.name);
        self.algorithms.push(entry);
        self
    }
}
