//! The table of verifiers: from a name and options to a verifier.
//!
//! A row is data, so "what exists?" is answered by reading one array ([`BUILTIN`](crate::BUILTIN)).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    config_fault::{ConfigFault, read_options},
    verifier::{Outcome, Reference, ScorerLoader, Verifier},
};

/// The options of one kind of verifier, and how it is made from them.
///
/// Derive `Deserialize` with `#[serde(deny_unknown_fields, default)]`, so that a misspelt key is
/// refused and every key has a default.
pub trait VerifierConfig: DeserializeOwned + Serialize + Default {
    /// The name in configs.
    const NAME: &'static str;
    /// One line for `tallow list`: lower case, no full stop.
    const SUMMARY: &'static str;
    /// Classes of [exploits](crate::attack) that it rewards by design, because what it judges is
    /// not the answer.
    const ACCEPTS: &'static [&'static str] = &[];

    /// What it judges by that no test of its own can bring, e.g. `a server`; `None` for most. Such a
    /// verifier has no cases, and whoever has a server for it checks it with
    /// [`check_with_cases`](crate::contract::check_with_cases).
    const NEEDS: Option<&'static str> = None;

    /// Makes the verifier; `verifiers` is the table to build children from.
    ///
    /// # Errors
    /// The first problem with the options.
    fn build(&self, verifiers: &Verifiers) -> Result<Arc<dyn Verifier>, ConfigFault>;

    /// Replies with known verdicts; the contract test judges each. At least one must be
    /// [`Outcome::Correct`] or [`Outcome::Graded`], unless it [needs](Self::NEEDS) something.
    fn cases() -> Vec<ContractCase>;
}

/// One reply whose verdict is known.
#[derive(Clone, Debug, PartialEq)]
pub struct ContractCase {
    /// Options of the verifier.
    pub options: Value,
    /// What it judges against.
    pub reference: Reference,
    /// The reply it judges.
    pub reply: String,
    /// What it must conclude.
    pub outcome: Outcome,
}

/// Makes one from its options.
type Build = fn(Value, &Verifiers) -> Result<Arc<dyn Verifier>, ConfigFault>;

/// One row of the table of verifiers.
#[derive(Clone, Copy, Debug)]
pub struct VerifierEntry {
    name: &'static str,
    summary: &'static str,
    build: Build,
    default_options: fn() -> Value,
    cases: fn() -> Vec<ContractCase>,
    accepts: &'static [&'static str],
    needs: Option<&'static str>,
}

impl VerifierEntry {
    /// The row of the verifier configured by `C`.
    pub const fn of<C: VerifierConfig>() -> Self {
        Self {
            name: C::NAME,
            summary: C::SUMMARY,
            build: |options, verifiers| read_options::<C>(options)?.build(verifiers),
            default_options: || {
                serde_json::to_value(C::default())
                    .expect("options are plain data with text keys, which always serialise")
            },
            cases: C::cases,
            accepts: C::ACCEPTS,
            needs: C::NEEDS,
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

    /// Makes the verifier from its options.
    ///
    /// # Errors
    /// The first problem with the options, its key relative to them.
    pub fn build(
        &self,
        options: Value,
        verifiers: &Verifiers,
    ) -> Result<Arc<dyn Verifier>, ConfigFault> {
        (self.build)(options, verifiers)
    }

    /// All options at their defaults.
    pub fn default_options(&self) -> Value {
        (self.default_options)()
    }

    /// Classes of exploits that it rewards by design.
    pub fn accepts(&self) -> &'static [&'static str] {
        self.accepts
    }

    /// What it judges by that no test of its own can bring.
    pub fn needs(&self) -> Option<&'static str> {
        self.needs
    }

    /// Replies with known verdicts.
    pub fn cases(&self) -> Vec<ContractCase> {
        (self.cases)()
    }
}

/// A table of verifiers by name.
#[derive(Clone, Debug)]
pub struct Verifiers {
    entries: Vec<VerifierEntry>,
    folder: PathBuf,
    scorer_loader: Option<Arc<dyn ScorerLoader>>,
    earlier_stages: Option<Vec<String>>,
}

impl Verifiers {
    /// The built-in ones.
    pub fn builtin() -> Self {
        Self {
            entries: crate::BUILTIN.to_vec(),
            folder: PathBuf::new(),
            scorer_loader: None,
            earlier_stages: None,
        }
    }

    /// The same table, where relative paths in options start from `folder`.
    #[must_use]
    pub fn in_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// Where relative paths in options start from; empty for the current folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The same table, where reward models are loaded by `loader`.
    #[must_use]
    pub fn with_scorer_loader(mut self, loader: Arc<dyn ScorerLoader>) -> Self {
        self.scorer_loader = Some(loader);
        self
    }

    /// What loads reward models, if anything does.
    pub fn scorer_loader(&self) -> Option<&Arc<dyn ScorerLoader>> {
        self.scorer_loader.as_ref()
    }

    /// The same table, for a stage that comes after those called `names`: a verifier that uses the
    /// model of another is refused.
    #[must_use]
    pub fn after_stages(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.earlier_stages = Some(names.into_iter().collect());
        self
    }

    /// Names of the stages whose models there will be, if that is known.
    pub fn earlier_stages(&self) -> Option<&[String]> {
        self.earlier_stages.as_deref()
    }

    /// One verifier more; it replaces one of the same name.
    #[must_use]
    pub fn with<C: VerifierConfig>(mut self) -> Self {
        self.entries.retain(|entry| entry.name != C::NAME);
        self.entries.push(VerifierEntry::of::<C>());
        self.entries.sort_by_key(|entry| entry.name);
        self
    }

    /// All rows, alphabetical.
    pub fn entries(&self) -> &[VerifierEntry] {
        &self.entries
    }

    /// The row called `name`.
    pub fn get(&self, name: &str) -> Option<&VerifierEntry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// Makes the verifier called `name`.
    ///
    /// # Errors
    /// A fault at key `name` if there is none of that name, else the verifier's own.
    pub fn build(&self, name: &str, options: Value) -> Result<Arc<dyn Verifier>, ConfigFault> {
        let entry = self.get(name).ok_or_else(|| {
            let names = self.entries.iter().map(|entry| entry.name);
            ConfigFault::unknown_name("name", "verifier", name, names)
        })?;
        entry.build(options, self)
    }
}

impl Default for Verifiers {
    fn default() -> Self {
        Self::builtin()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_alphabetical_and_distinct() {
        let names: Vec<_> = crate::BUILTIN.iter().map(VerifierEntry::name).collect();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones_and_the_nearest() {
        let fault = Verifiers::builtin()
            .build("exat", Value::Null)
            .err()
            .expect("there is no such verifier");
        assert_eq!(fault.key, "name");
        assert_eq!(fault.hint.as_deref(), Some("did you mean `exact`?"));
        assert!(fault.expected.expect("the names are listed").contains("`exact`"));
    }
}
