//! The table of environments: from a name and options to an environment.

use std::{path::PathBuf, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tallow_verifiers::{ConfigFault, config_fault::read_options};

use crate::{environment::Environment, task::Seed};

/// The options of one kind of environment, and how it is made from them.
///
/// Derive `Deserialize` with `#[serde(deny_unknown_fields, default)]`, so that a misspelt key is
/// refused and every key has a default.
pub trait EnvConfig: DeserializeOwned + Serialize + Default {
    /// The name in configs.
    const NAME: &'static str;
    /// One line for `tallow list`: lower case, no full stop.
    const SUMMARY: &'static str;

    /// Makes the environment.
    ///
    /// # Errors
    /// The first problem with the options, or with the files they name.
    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault>;
}

/// What an environment may know of the run it is built for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildContext {
    /// Relative paths in options are resolved against this folder, then against the current one.
    pub folder: PathBuf,
    /// The root of every draw of tasks.
    pub seed: Seed,
}

/// Makes one from its options.
type Build = fn(Value, &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault>;

/// One row of the table of environments.
#[derive(Clone, Copy, Debug)]
pub struct EnvEntry {
    name: &'static str,
    summary: &'static str,
    build: Build,
    default_options: fn() -> Value,
}

impl EnvEntry {
    /// The row of the environment configured by `C`.
    pub const fn of<C: EnvConfig>() -> Self {
        Self {
            name: C::NAME,
            summary: C::SUMMARY,
            build: |options, context| read_options::<C>(options)?.build(context),
            default_options: || {
                serde_json::to_value(C::default())
                    .expect("options are plain data with text keys, which always serialise")
            },
        }
    }

    /// The name in configs.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// One line about it.
    pub fn summary(&self) -> &'static str {
        self.summary
    }

    /// Makes the environment from its options.
    ///
    /// # Errors
    /// The first problem with the options, its key relative to them.
    pub fn build(
        &self,
        options: Value,
        context: &BuildContext,
    ) -> Result<Arc<dyn Environment>, ConfigFault> {
        (self.build)(options, context)
    }

    /// All options at their defaults.
    pub fn default_options(&self) -> Value {
        (self.default_options)()
    }
}

/// A table of environments by name.
#[derive(Clone, Debug)]
pub struct Environments {
    entries: Vec<EnvEntry>,
}

impl Environments {
    /// The built-in ones.
    pub fn builtin() -> Self {
        Self { entries: crate::BUILTIN.to_vec() }
    }

    /// One environment more; it replaces one of the same name.
    #[must_use]
    pub fn with<C: EnvConfig>(mut self) -> Self {
        self.entries.retain(|entry| entry.name != C::NAME);
        self.entries.push(EnvEntry::of::<C>());
        self.entries.sort_by_key(|entry| entry.name);
        self
    }

    /// All rows, alphabetical.
    pub fn entries(&self) -> &[EnvEntry] {
        &self.entries
    }

    /// The row called `name`.
    pub fn get(&self, name: &str) -> Option<&EnvEntry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// Makes the environment called `name`.
    ///
    /// # Errors
    /// A fault at key `name` if there is none of that name, else the environment's own.
    pub fn build(
        &self,
        name: &str,
        options: Value,
        context: &BuildContext,
    ) -> Result<Arc<dyn Environment>, ConfigFault> {
        let entry = self.get(name).ok_or_else(|| {
            let names = self.entries.iter().map(|entry| entry.name);
            ConfigFault::unknown_name("name", "environment", name, names)
        })?;
        entry.build(options, context)
    }
}

impl Default for Environments {
    fn default() -> Self {
        Self::builtin()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_alphabetical_and_distinct() {
        let names: Vec<_> = crate::BUILTIN.iter().map(EnvEntry::name).collect();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones_and_the_nearest() {
        let context = BuildContext { folder: PathBuf::new(), seed: Seed(0) };
        let fault = Environments::builtin()
            .build("digit_sums", Value::Null, &context)
            .err()
            .expect("there is no such environment");
        assert_eq!(fault.key, "name");
        assert_eq!(fault.hint.as_deref(), Some("did you mean `digit_sum`?"));
    }
}
