//! Documents written from an environment: a task's prompt and a known right reply.
//!
//! The share of each style is the knob of the emergence experiments: mostly bare answers, some
//! step-by-step chains.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::RngExt;
use serde::Deserialize;
use serde_json::Value;
use tallow_envs::{BuildContext, Environment, Seed, Split};
use tallow_verifiers::config_fault::read_options;
use tallow_verifiers::{ConfigFault, Message};

use super::{Document, Documents, SourceContext};
use crate::error::Error;

/// Tag of the seed stream that chooses styles.
const STYLE_STREAM: u64 = 0x7374_796c;

/// Settings of the source `environment`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentDocuments {
    /// The environment: its `name` and its options.
    pub env: Value,
    /// Share of each reply style, such as `{ bare = 0.85, chain = 0.15 }`; shares are relative.
    pub styles: BTreeMap<String, f64>,
}

struct Source {
    environment: Arc<dyn Environment>,
    styles: Vec<(&'static str, f64)>,
    seed: Seed,
}

/// Builds the source.
///
/// # Errors
/// If the environment or a style is unknown, or the shares are no shares.
pub fn build(
    options: Value,
    context: &SourceContext<'_>,
) -> Result<Arc<dyn Documents>, ConfigFault> {
    let config: EnvironmentDocuments = read_options(options)?;
    let build_context = BuildContext { folder: context.folder.to_path_buf(), seed: context.seed };
    let environment = named_environment(config.env, context.environments, &build_context, "env")?;
    let mut styles = Vec::new();
    for (style, share) in &config.styles {
        let key = format!("styles.{style}");
        let known = environment.reply_styles();
        let Some(known) = known.iter().find(|it| *it == style) else {
            return Err(ConfigFault::unknown_name(
                &key,
                "reply style of this environment",
                style,
                known.iter().copied(),
            ));
        };
        if !(*share >= 0.0 && share.is_finite()) {
            return Err(ConfigFault::new(key, "a share must be a number of at least 0")
                .found(share)
                .expected("0 or more, such as 0.15"));
        }
        styles.push((*known, *share));
    }
    if styles.iter().map(|it| it.1).sum::<f64>() <= 0.0 {
        return Err(ConfigFault::new("styles", "no style has a share above 0")
            .expected("shares such as { bare = 0.85, chain = 0.15 }"));
    }
    Ok(Arc::new(Source { environment, styles, seed: context.seed.derive(&[STYLE_STREAM]) }))
}

/// Builds an environment from a table that holds its `name` beside its options, or a `plugin`; faults
/// are told under `key`.
///
/// # Errors
/// If the name is missing or unknown, or the options are wrong.
pub fn named_environment(
    table: Value,
    environments: &tallow_envs::Environments,
    context: &BuildContext,
    key: &str,
) -> Result<Arc<dyn Environment>, ConfigFault> {
    let Value::Object(mut options) = table else {
        return Err(
            ConfigFault::new(key, "an environment is a table").expected("{ name = \"…\", … }")
        );
    };
    let unnamed = options.contains_key("plugin").then(|| "plugin".into());
    let Some(Value::String(name)) = options.remove("name").or(unnamed) else {
        return Err(ConfigFault::new(key, "the environment is not named")
            .expected("a key `name`; `tallow list envs` shows all"));
    };
    environments.build(&name, Value::Object(options), context).map_err(|it| it.within(key))
}

impl Documents for Source {
    fn len(&self, split: Split) -> u64 {
        self.environment.len(split)
    }

    fn is_procedural(&self) -> bool {
        true
    }

    fn document(&self, split: Split, index: u64) -> Result<Document, Error> {
        let broke = |what: String| Error::Environment(what);
        let task = self.environment.task(split, index).map_err(|e| broke(e.to_string()))?;
        let seed = self.seed.derive(&[split as u64, index]);
        let total: f64 = self.styles.iter().map(|it| it.1).sum();
        let mut left = seed.rng().random::<f64>() * total;
        let mut style = self.styles[self.styles.len() - 1].0;
        for (name, share) in &self.styles {
            if left < *share {
                style = name;
                break;
            }
            left -= share;
        }
        let reply = self.environment.reply(&task, style, seed).ok_or_else(|| {
            broke(format!("{} has no `{style}` reply to task {index}", self.environment.name()))
        })?;
        let mut messages = task.prompt;
        messages.push(Message::assistant(reply.as_str()));
        Ok(Document::Conversation(messages))
    }
}
