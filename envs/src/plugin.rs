//! An environment in any language, as a WebAssembly component.
//!
//! `verifiers/sandbox/wit/plugin.wit` says what it exports. An episode is the task and the messages
//! so far, so any instance can go on with it; a call that comes to nothing (a limit, a trap,
//! nonsense for an answer) costs its episode, and the error names the plugin.

use std::{fs, sync::Arc};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tallow_sandbox::plugin::{self, EnvironmentPlugin, Next};
use tallow_verifiers::{
    ConfigFault, Message, Reference, ReferenceKind,
    plugin::{PluginConfig, fault},
};

use crate::{
    environment::{Environment, Episode, Step},
    error::EnvError,
    registry::{BuildContext, EnvConfig},
    task::{Seed, Split, Task, TaskId},
};

impl EnvConfig for PluginConfig {
    const NAME: &'static str = "plugin";
    const SUMMARY: &'static str = "a WebAssembly component in any language";

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault> {
        let settings = self.settings(&context.folder, context.seed.0)?;
        let path = settings.path.clone();
        let plugin = EnvironmentPlugin::start(settings).map_err(fault)?;
        let about = plugin.opened();
        let (verifier, styles) = (about.verifier.clone(), about.styles.clone());
        let verifier_options = serde_json::from_str(&about.verifier_options).map_err(|error| {
            ConfigFault::new("plugin", "the options that it gives its verifier are no JSON")
                .found(format!("{:?}: {error}", about.verifier_options))
        })?;
        let content = fs::read(&path).map_err(|error| {
            ConfigFault::new("plugin", format!("cannot read {}: {error}", path.display()))
        })?;
        let hash: String =
            Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Arc::new(Plugin {
            // The tables of built-in environments hold static names; a configuration names few
            // plugins, so theirs may stay for as long as the process.
            verifier: String::leak(verifier),
            styles: styles.into_iter().map(|style| &*style.leak()).collect::<Vec<_>>().leak(),
            verifier_options,
            provenance: json!({"plugin": path, "sha256": hash}),
            plugin: Arc::new(plugin),
        }))
    }
}

struct Plugin {
    plugin: Arc<EnvironmentPlugin>,
    verifier: &'static str,
    verifier_options: Value,
    styles: &'static [&'static str],
    provenance: Value,
}

fn broken(plugin: &EnvironmentPlugin, problem: impl ToString) -> EnvError {
    EnvError::Broken { environment: plugin.name().to_owned(), problem: problem.to_string() }
}

/// A task as the plugin itself gave it.
fn given(task: &Task) -> plugin::Task {
    plugin::Task {
        prompt: task.prompt.iter().map(Into::into).collect(),
        reference: (&task.reference).into(),
        notes: task.notes.as_str().unwrap_or_default().to_owned(),
    }
}

impl Environment for Plugin {
    fn name(&self) -> &str {
        self.plugin.name()
    }

    fn len(&self, split: Split) -> u64 {
        match split {
            Split::Train => self.plugin.opened().train,
            Split::Test => self.plugin.opened().test,
        }
    }

    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        if index >= self.len(split) {
            return Err(EnvError::NoSuchTask {
                environment: self.name().to_owned(),
                split,
                index,
                len: self.len(split),
            });
        }
        let of = match split {
            Split::Train => plugin::Split::Train,
            Split::Test => plugin::Split::Test,
        };
        let task = self.plugin.task(of, index).map_err(|error| broken(&self.plugin, error))?;
        let reference =
            Reference::try_from(task.reference).map_err(|error| broken(&self.plugin, error))?;
        if reference.kind() != self.reference_kind() {
            let told = format!(
                "a task has a reference of kind {}, not {}",
                reference.kind(),
                self.reference_kind()
            );
            return Err(broken(&self.plugin, told));
        }
        Ok(Task {
            id: TaskId { split, index },
            prompt: task.prompt.into_iter().map(Message::from).collect(),
            reference,
            notes: Value::String(task.notes),
        })
    }

    fn reference_kind(&self) -> ReferenceKind {
        self.plugin.opened().reference.into()
    }

    fn default_verifier(&self) -> (&'static str, Value) {
        (self.verifier, self.verifier_options.clone())
    }

    fn reply_styles(&self) -> &'static [&'static str] {
        self.styles
    }

    fn reply(&self, task: &Task, style: &str, seed: Seed) -> Option<String> {
        // A plugin that breaks here writes no reply; whoever needs one says that there is none.
        self.plugin.reply(given(task), style.to_owned(), seed.0).ok().flatten()
    }

    fn episode(&self, task: &Task) -> Result<Box<dyn Episode>, EnvError> {
        Ok(Box::new(Play {
            plugin: Arc::clone(&self.plugin),
            task: given(task),
            messages: Vec::new(),
            over: false,
        }))
    }

    fn provenance(&self) -> Option<Value> {
        Some(self.provenance.clone())
    }
}

struct Play {
    plugin: Arc<EnvironmentPlugin>,
    task: plugin::Task,
    /// Replies, and what was said in between.
    messages: Vec<plugin::Message>,
    over: bool,
}

impl Episode for Play {
    fn step(&mut self, reply: &str) -> Result<Step, EnvError> {
        if self.over {
            return Err(EnvError::EpisodeOver { environment: self.plugin.name().to_owned() });
        }
        self.messages.push((&Message::assistant(reply)).into());
        let next = self
            .plugin
            .step(self.task.clone(), self.messages.clone())
            .map_err(|error| broken(&self.plugin, error))?;
        Ok(match next {
            Next::Done => {
                self.over = true;
                Step::Done
            }
            Next::More(messages) => {
                self.messages.extend(messages.iter().cloned());
                Step::Continue(messages.into_iter().map(Message::from).collect())
            }
        })
    }
}
