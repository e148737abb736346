//! `tallow list`: what is registered, one line each, with options on `--long`.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{Common, say};
use crate::config::document::resolved_toml;
use crate::config::without_nulls;
use crate::error::Error;
use crate::registry::Registry;
use crate::{documents, stages};

/// Show what is registered.
#[derive(Args)]
#[command(after_help = "Example: tallow list envs --long")]
pub struct ListArgs {
    /// Only this kind.
    #[arg(value_enum)]
    kind: Option<Kind>,
    /// With every option and its default.
    #[arg(long)]
    long: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Environments.
    Envs,
    /// Verifiers.
    Verifiers,
    /// Algorithms.
    Algorithms,
    /// Model families.
    Models,
    /// Stages.
    Stages,
    /// Sources of documents.
    Documents,
}

/// One thing that exists.
struct Row {
    kind: &'static str,
    name: String,
    summary: String,
    options: Value,
    /// Options that have no value unless they are given.
    unset: Vec<String>,
}

/// `tallow list`.
pub fn list(args: &ListArgs, common: &Common, registry: &Registry) -> Result<(), Error> {
    let rows = rows(registry);
    let wanted = args.kind.map(|it| it.to_possible_value().expect("no kind is hidden"));
    let mut last = "";
    for row in &rows {
        if wanted.as_ref().is_some_and(|it| it.get_name() != row.kind) {
            continue;
        }
        if common.json {
            let Row { kind, name, summary, options, unset } = row;
            let line = json!({
                "kind": kind, "name": name, "summary": summary, "options": options, "unset": unset,
            });
            say(&line.to_string());
            continue;
        }
        if wanted.is_none() && last != row.kind {
            say(&format!("{}{}", if last.is_empty() { "" } else { "\n" }, row.kind));
            last = row.kind;
        }
        say(&format!("  {:<16} {}", row.name, row.summary));
        if args.long && row.options.as_object().is_some_and(|it| !it.is_empty()) {
            let toml = resolved_toml(&row.options)
                .map_err(|e| Error::Data(format!("options of {}: {e}", row.name)))?;
            for line in toml.lines() {
                say(format!("      {line}").trim_end());
            }
        }
        if args.long && !row.unset.is_empty() {
            say(&format!("      # not set: {}", row.unset.join(", ")));
        }
    }
    Ok(())
}

fn rows(registry: &Registry) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |kind, name: &str, summary: &str, options: Value| {
        let mut unset = Vec::new();
        nulls(&options, "", &mut unset);
        let (name, summary) = (name.to_string(), summary.to_string());
        rows.push(Row { kind, name, summary, options: without_nulls(options), unset });
    };
    for it in registry.environments.entries() {
        add("envs", it.name(), it.summary(), it.default_options());
    }
    for it in registry.verifiers.entries() {
        add("verifiers", it.name(), it.summary(), it.default_options());
    }
    for it in &registry.algorithms {
        add("algorithms", it.name, it.summary, (it.default_options)());
    }
    for it in tallow_policies::models::BUILTIN {
        add("models", it.name, it.architecture, json!({}));
    }
    for it in stages::BUILTIN {
        add("stages", it.name, it.summary, (it.default_options)());
    }
    for it in documents::BUILTIN {
        add("documents", it.name, it.summary, json!({}));
    }
    rows
}

/// Paths of the keys below `value` that have no value.
fn nulls(value: &Value, path: &str, found: &mut Vec<String>) {
    let Value::Object(table) = value else { return };
    for (key, value) in table {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if value.is_null() {
            found.push(path);
        } else {
            nulls(value, &path, found);
        }
    }
}
