//! `tallow list`: what is registered, one line each, with options on `--long`.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{Common, say};
use crate::config::without_nulls;
use crate::error::Error;
use crate::model::ModelSettings;
use crate::registry::Registry;
use crate::{documents, preferences, stages};

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
    /// Sources of preference pairs.
    Pairs,
}

/// One thing that exists.
struct Row {
    kind: &'static str,
    name: String,
    summary: String,
    /// With `null` for those that have no value unless they are given.
    options: Value,
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
            let Row { kind, name, summary, options } = row;
            let mut lines = Vec::new();
            flatten(options, "", &mut lines);
            let unset: Vec<&str> =
                lines.iter().filter(|it| it.1.is_null()).map(|it| it.0.as_str()).collect();
            let options = without_nulls(options.clone());
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
        say(&format!("  {:<22} {}", row.name, row.summary));
        if args.long {
            let mut lines = Vec::new();
            flatten(&row.options, "", &mut lines);
            for (path, value) in lines {
                say(&match toml::Value::try_from(value) {
                    Ok(value) => format!("      {path} = {value}"),
                    Err(_) => format!("      {path} is not set"),
                });
            }
        }
    }
    Ok(())
}

fn rows(registry: &Registry) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |kind, name: &str, summary: &str, options: Value| {
        let (name, summary) = (name.to_string(), summary.to_string());
        rows.push(Row { kind, name, summary, options });
    };
    for it in registry.environments.entries() {
        add("envs", it.name(), it.summary(), it.default_options());
    }
    for it in registry.verifiers.entries() {
        add("verifiers", it.name(), it.summary(), it.default_options());
    }
    for it in &registry.algorithms {
        add("algorithms", it.name, it.summary, it.default_options());
    }
    for it in tallow_policies::models::BUILTIN {
        let table = ModelSettings { family: it.name.into(), ..Default::default() };
        add("models", it.name, it.architecture, json!(table));
    }
    for it in stages::BUILTIN {
        add("stages", it.name, it.summary, (it.default_options)());
    }
    for it in documents::BUILTIN {
        add("documents", it.name, it.summary, (it.default_options)());
    }
    for it in preferences::BUILTIN {
        add("pairs", it.name, it.summary, (it.default_options)());
    }
    rows
}

/// The options below `value` with their dotted paths, as `--set` takes them.
fn flatten<'a>(value: &'a Value, path: &str, found: &mut Vec<(String, &'a Value)>) {
    match value {
        Value::Object(table) if !table.is_empty() => {
            for (key, value) in table {
                let inside = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(value, &inside, found);
            }
        }
        // A component without options.
        Value::Object(_) if path.is_empty() => {}
        value => found.push((path.to_owned(), value)),
    }
}
