//! A verifier in any language, as a WebAssembly component.
//!
//! `sandbox/wit/plugin.wit` says what it exports; [`tallow_sandbox::plugin`] runs it. A reply that it
//! cannot bear (its limits, a trap, nonsense for an answer) is unscorable, and the error names the
//! plugin.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow_sandbox::{
    Limits,
    plugin::{self, Grants, PluginError, Settings, VerifierPlugin},
};

use crate::{
    config_fault::ConfigFault,
    error::VerifyError,
    registry::{ContractCase, VerifierConfig, Verifiers},
    transcript::{Message, Role, StopReason, Transcript},
    verifier::{Outcome, Reference, ReferenceKind, TestCase, Verdict, Verifier},
};

/// Options of a plugin, whether it is a verifier or an environment. `{ plugin = "my.wasm" }` needs no
/// name.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PluginConfig {
    /// The component's file: `.wasm`, or text in `.wat`.
    pub plugin: String,
    /// A table for the plugin itself, which gets it as JSON.
    pub options: Value,
    /// What each call may use.
    pub limits: Limits,
    /// What it may reach besides its arguments.
    pub grants: Grants,
    /// How many calls run at a time, each in an instance of its own; 0 is one per processor core.
    pub workers: u32,
}

impl Default for PluginConfig {
    fn default() -> Self {
        Self {
            plugin: String::new(),
            options: json!({}),
            limits: Limits::default(),
            grants: Grants::default(),
            workers: 0,
        }
    }
}

impl PluginConfig {
    /// What it takes to run the plugin; relative paths start from `folder`, or failing that from
    /// the current one.
    ///
    /// # Errors
    /// The first option that cannot be.
    pub fn settings(&self, folder: &Path, seed: u64) -> Result<Settings, ConfigFault> {
        if self.plugin.is_empty() {
            return Err(ConfigFault::new("plugin", "there is no plugin")
                .expected("the path of a WebAssembly component"));
        }
        if !self.options.is_object() {
            return Err(ConfigFault::new("options", "options are a table")
                .found(self.options.to_string())
                .expected("{ key = value, … }"));
        }
        check_limits(&self.limits)?;
        check_workers(self.workers)?;
        let grants = Grants {
            read: self.grants.read.iter().map(|it| resolved(it, folder)).collect(),
            variables: self.grants.variables.clone(),
        };
        Ok(Settings {
            path: resolved(Path::new(&self.plugin), folder),
            options: self.options.to_string(),
            limits: self.limits,
            grants,
            workers: workers(self.workers),
            seed,
        })
    }
}

/// The file under `folder` if there is one, else the path as written.
fn resolved(written: &Path, folder: &Path) -> PathBuf {
    let below = folder.join(written);
    if below.exists() { below } else { written.to_owned() }
}

/// Refuses limits that nothing can run under.
///
/// # Errors
/// The first such limit.
pub fn check_limits(limits: &Limits) -> Result<(), ConfigFault> {
    for (key, value, from, to) in [
        ("limits.fuel_millions", limits.fuel_millions, 100, 100_000_000),
        ("limits.memory_mib", limits.memory_mib.into(), 64, 1024),
        ("limits.output_kib", limits.output_kib.into(), 1, 1 << 20),
        ("limits.recursion", limits.recursion.into(), 50, 1_000_000),
        ("limits.backstop_s", limits.backstop_s, 1, 86_400),
    ] {
        check_range(key, "the limit is out of range", value, from, to)?;
    }
    Ok(())
}

/// Refuses a number of workers that is no sensible one.
///
/// # Errors
/// If it is.
pub fn check_workers(workers: u32) -> Result<(), ConfigFault> {
    check_range("workers", "that many cannot work at a time", workers.into(), 0, 1024)
}

fn check_range(
    key: &str,
    problem: &str,
    value: u64,
    from: u64,
    to: u64,
) -> Result<(), ConfigFault> {
    if (from..=to).contains(&value) {
        return Ok(());
    }
    Err(ConfigFault::new(key, problem).found(value.to_string()).expected(format!("{from} to {to}")))
}

/// A number of workers, where 0 stands for one per core.
pub(crate) fn workers(given: u32) -> u32 {
    match given {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
        given => given,
    }
}

/// What is wrong with the options of a plugin that did not start.
pub fn fault(error: PluginError) -> ConfigFault {
    match error {
        PluginError::Unusable(problem) | PluginError::Call(problem) => {
            ConfigFault::new("plugin", problem)
        }
        PluginError::Grant(problem) => ConfigFault::new("grants", problem),
        PluginError::Refused(problem) => {
            ConfigFault::new("options", format!("the plugin refuses them: {problem}"))
        }
    }
}

impl VerifierConfig for PluginConfig {
    const NAME: &'static str = "plugin";
    const SUMMARY: &'static str = "a WebAssembly component in any language";

    fn build(&self, verifiers: &Verifiers) -> Result<Arc<dyn Verifier>, ConfigFault> {
        let settings = self.settings(verifiers.folder(), 0)?;
        Ok(Arc::new(Plugin(VerifierPlugin::start(settings).map_err(fault)?)))
    }

    fn cases() -> Vec<ContractCase> {
        // From this crate's own folder, where its tests run.
        let options = json!({"plugin": "sandbox/tests/plugins/exact.wat"});
        [("42", Outcome::Correct), ("43", Outcome::Incorrect)]
            .map(|(reply, outcome)| ContractCase {
                options: options.clone(),
                reference: Reference::Answer("42".to_owned()),
                reply: reply.to_owned(),
                outcome,
            })
            .to_vec()
    }
}

struct Plugin(VerifierPlugin);

impl Verifier for Plugin {
    fn name(&self) -> &str {
        self.0.name()
    }

    /// Those that the plugin does not know are errors of its own.
    fn reference_kinds(&self) -> &'static [ReferenceKind] {
        ReferenceKind::ALL
    }

    fn verify(
        &self,
        transcript: &Transcript,
        reference: &Reference,
    ) -> Result<Verdict, VerifyError> {
        self.verify_group(std::slice::from_ref(transcript), reference).remove(0)
    }

    fn verify_group(
        &self,
        transcripts: &[Transcript],
        reference: &Reference,
    ) -> Vec<Result<Verdict, VerifyError>> {
        let batch = transcripts
            .iter()
            .map(|transcript| plugin::Conversation {
                messages: transcript.messages.iter().map(Into::into).collect(),
                stop: match transcript.stop {
                    StopReason::Finished => plugin::Stop::Finished,
                    StopReason::Length => plugin::Stop::Length,
                    StopReason::TurnLimit => plugin::Stop::TurnLimit,
                },
                reference: reference.into(),
            })
            .collect();
        self.0
            .judge(batch)
            .into_iter()
            .map(|verdict| {
                verdict.map(Verdict::from).map_err(|error| VerifyError::Broken {
                    verifier: self.0.name().to_owned(),
                    problem: error.to_string(),
                })
            })
            .collect()
    }
}

impl From<plugin::Verdict> for Verdict {
    fn from(verdict: plugin::Verdict) -> Self {
        Self {
            reward: verdict.reward,
            outcome: match verdict.outcome {
                plugin::Outcome::Correct => Outcome::Correct,
                plugin::Outcome::Incorrect => Outcome::Incorrect,
                plugin::Outcome::Malformed => Outcome::Malformed,
                plugin::Outcome::Graded => Outcome::Graded,
            },
            parts: verdict.parts,
            reason: verdict.reason,
        }
    }
}

impl From<&Message> for plugin::Message {
    fn from(message: &Message) -> Self {
        Self {
            role: match message.role {
                Role::System => plugin::Role::System,
                Role::User => plugin::Role::User,
                Role::Assistant => plugin::Role::Assistant,
                Role::Tool => plugin::Role::Tool,
            },
            content: message.content.clone(),
        }
    }
}

impl From<plugin::Message> for Message {
    fn from(message: plugin::Message) -> Self {
        Self {
            role: match message.role {
                plugin::Role::System => Role::System,
                plugin::Role::User => Role::User,
                plugin::Role::Assistant => Role::Assistant,
                plugin::Role::Tool => Role::Tool,
            },
            content: message.content,
        }
    }
}

impl From<&Reference> for plugin::Reference {
    fn from(reference: &Reference) -> Self {
        match reference {
            Reference::None => Self::None,
            Reference::Answer(answer) => Self::Answer(answer.clone()),
            Reference::Tests(cases) => Self::Tests(
                cases
                    .iter()
                    .map(|it| plugin::TestCase {
                        input: it.input.clone(),
                        output: it.output.clone(),
                    })
                    .collect(),
            ),
            Reference::Custom(value) => Self::Custom(value.to_string()),
        }
    }
}

impl TryFrom<plugin::Reference> for Reference {
    type Error = String;

    /// Fails for a custom reference that is no JSON.
    fn try_from(reference: plugin::Reference) -> Result<Self, String> {
        Ok(match reference {
            plugin::Reference::None => Self::None,
            plugin::Reference::Answer(answer) => Self::Answer(answer),
            plugin::Reference::Tests(cases) => Self::Tests(
                cases
                    .into_iter()
                    .map(|it| TestCase { input: it.input, output: it.output })
                    .collect(),
            ),
            plugin::Reference::Custom(text) => Self::Custom(
                serde_json::from_str(&text)
                    .map_err(|error| format!("a custom reference is no JSON: {error}"))?,
            ),
        })
    }
}

impl From<plugin::ReferenceKind> for ReferenceKind {
    fn from(kind: plugin::ReferenceKind) -> Self {
        match kind {
            plugin::ReferenceKind::None => Self::None,
            plugin::ReferenceKind::Answer => Self::Answer,
            plugin::ReferenceKind::Tests => Self::Tests,
            plugin::ReferenceKind::Custom => Self::Custom,
        }
    }
}
