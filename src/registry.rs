//! What exists: the built-in tables and what a user's binary adds to them.

use std::sync::Arc;

use tallow_envs::{EnvConfig, Environments};
use tallow_verifiers::{VerifierConfig, Verifiers};

use crate::algorithms::{self, AlgorithmConfig, AlgorithmEntry};
use crate::reward_scorer::FolderScorers;

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
            verifiers: Verifiers::builtin().with_scorer_loader(Arc::new(FolderScorers::default())),
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
        self.algorithms.sort_by_key(|it| it.name);
        self
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use tallow_verifiers::ConfigFault;

    use super::*;
    use crate::algorithms::Algorithm;
    use crate::config::Experiment;

    /// Replaces an algorithm, and does not work by its defaults.
    #[derive(Default, Deserialize, Serialize)]
    struct NeedsABeta {
        #[serde(default)]
        beta: f64,
    }

    impl AlgorithmConfig for NeedsABeta {
        const NAME: &'static str = "grpo";
        const SUMMARY: &'static str = "for this test";

        fn build(&self) -> Result<Algorithm, ConfigFault> {
            Err(ConfigFault::new("beta", "beta is missing"))
        }
    }

    #[test]
    fn an_algorithm_that_refuses_its_defaults_is_a_problem_and_no_missing_stage() {
        let registry = Registry::builtin().with_algorithm::<NeedsABeta>();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("config.toml");
        let stage = "[[stage]]\nkind = \"rl\"\nenv = { name = \"parity\" }\n";
        for table in ["", "algorithm = \"grpo\""] {
            std::fs::write(&file, format!("name = \"x\"\n{stage}{table}\n")).expect("written");
            let told = Experiment::read(&file, &[], &registry).err().expect("refused").to_string();
            assert!(told.contains("beta is missing"), "{told}");
        }
    }
}
