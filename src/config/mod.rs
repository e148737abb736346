//! An experiment: one TOML file, read strictly and checked whole before anything starts.
//!
//! ```toml
//! name = "digits"
//! seed = 1
//! [model]
//! hidden = 64
//! [[stage]]
//! kind = "tokenizer"
//! [[stage]]
//! kind = "rl"
//! env = { name = "digit_sum" }
//! ```
//!
//! Every component's settings are a struct in the component's own file; this one composes them.
//! `[[variant]]` tables are further runs of the same experiment with some keys changed (controls,
//! sweeps, seeds); they share the stages that their changes do not reach. `seeds = [1, 2, 3]` runs
//! every variant once with each, as `NAME/seed_1` and so on.

pub mod document;
mod overrides;
pub mod problem;
mod strict;
mod value;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tallow_envs::{BuildContext, Seed};
use tallow_verifiers::{ConfigFault, Verifiers};

use crate::chat_template::TemplateOptions;
use crate::error::Error;
use crate::model::ModelSettings;
use crate::registry::Registry;
use crate::reward_scorer::FolderScorers;
use crate::stages::{self, Stage};
use document::{Document, Table};
use problem::{Fault, Problems};

impl From<ConfigFault> for Fault {
    fn from(fault: ConfigFault) -> Self {
        let ConfigFault { key, problem, found, expected, hint } = fault;
        Self { key, problem, found, expected, hint }
    }
}

/// Top-level keys.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Head {
    /// Names the run; its default folder is `runs/NAME`.
    name: String,
    /// Seeds everything that is drawn.
    #[serde(default = "default_seed")]
    seed: u64,
    /// Every variant is run with each of these in place of `seed`.
    #[serde(default)]
    seeds: Vec<u64>,
    /// What the experiment asks, shown on top of its report.
    #[serde(default)]
    question: Option<String>,
}

fn default_seed() -> u64 {
    1
}

/// Whether a variant is the experiment or a control of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VariantRole {
    /// The experiment.
    #[default]
    Main,
    /// A run that must not show the effect.
    Control,
}

/// A `[[variant]]` table.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VariantSettings {
    /// Names its folder and its line in plots.
    pub name: String,
    /// Whether it is a control.
    #[serde(default)]
    pub role: VariantRole,
    /// What it is there to show.
    #[serde(default)]
    pub note: Option<String>,
    /// Keys to change, written as for `--set`: `"rl.coin_reward=0.5"`.
    #[serde(default)]
    pub set: Vec<String>,
}

/// One run: a model and the stages it goes through.
pub struct RunPlan {
    /// The run's name.
    pub name: String,
    /// Its seed.
    pub seed: Seed,
    /// What is asked.
    pub question: Option<String>,
    /// The model.
    pub model: ModelSettings,
    /// Stages in order, with unique names.
    pub stages: Vec<StagePlan>,
    /// Folder of the configuration file, which relative paths start from.
    pub folder: PathBuf,
    /// The variant this is, if the experiment has any.
    pub variant: Option<VariantSettings>,
}

/// A stage with its name.
pub struct StagePlan {
    /// Unique within the run: the `name` key, or the kind.
    pub name: String,
    /// What it does.
    pub stage: Box<dyn Stage>,
}

/// An experiment as it will be run.
pub struct Experiment {
    /// Its name.
    pub name: String,
    /// What is asked.
    pub question: Option<String>,
    /// One run, or one for each variant.
    pub runs: Vec<RunPlan>,
}

/// What building a stage may look at.
pub struct StageContext<'a> {
    /// What exists.
    pub registry: &'a Registry,
    /// Folder of the configuration file.
    pub folder: &'a Path,
    /// Seed of the run.
    pub seed: Seed,
    /// Names of the stages before it that leave a scorer.
    pub scorers: &'a [String],
    /// What the chat template sees in every conversation.
    pub template_options: &'a TemplateOptions,
}

impl StageContext<'_> {
    /// The verifiers that a stage can judge by.
    pub fn verifiers(&self) -> Verifiers {
        let loader = FolderScorers::with_options(self.template_options.clone());
        self.registry
            .verifiers
            .clone()
            .in_folder(self.folder)
            .with_scorer_loader(Arc::new(loader))
            .after_stages(self.scorers.iter().cloned())
    }

    /// What environments are built from.
    pub fn environment_context(&self) -> BuildContext {
        BuildContext { folder: self.folder.to_path_buf(), seed: self.seed }
    }
}

impl Experiment {
    /// Reads `path`, a TOML file or a folder with `config.toml`, with overrides.
    ///
    /// # Errors
    /// Every problem of the file and the overrides at once.
    pub fn read(path: &Path, overrides: &[String], registry: &Registry) -> Result<Self, Error> {
        let file = if path.is_dir() { path.join("config.toml") } else { path.to_path_buf() };
        let folder = file
            .parent()
            .filter(|it| !it.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
            .to_path_buf();
        let document = Document::read(&file)?;
        let mut problems = Problems::of(document.name());
        let mut variants: Vec<VariantSettings> = Vec::new();
        for table in document.root().children("variant", &mut problems) {
            let Some(variant) = table.take::<VariantSettings>(&mut problems) else { continue };
            if let Some(fault) = name_fault("name", &variant.name, true) {
                problems.at(&table, fault);
            }
            variants.push(variant);
        }
        let variants = with_seeds(variants, &seeds(&document, overrides));
        let mut runs = Vec::new();
        if variants.is_empty() {
            runs.extend(read_run(
                document.clone(),
                overrides,
                None,
                &folder,
                registry,
                &mut problems,
            ));
        }
        for variant in variants {
            if runs.iter().any(|it: &RunPlan| {
                it.variant.as_ref().is_some_and(|seen| seen.name == variant.name)
            }) {
                let fault = Fault::new("variant", "two variants have one name")
                    .found(variant.name.as_str());
                problems.at(&document.root(), fault);
            }
            let copy = document.clone();
            let changed: Vec<String> = variant.set.iter().chain(overrides).cloned().collect();
            let plan = read_run(copy, &changed, Some(variant), &folder, registry, &mut problems);
            runs.extend(plan);
        }
        let found = runs.first().map(|it| (it.name.clone(), it.question.clone()));
        let (name, question) = problems.into_result(found)?;
        Ok(Self { name, question, runs })
    }

    /// The experiment with every default filled in, as it is written beside its results.
    pub fn resolved(&self) -> Value {
        let mut table = Map::new();
        table.insert("name".into(), json!(self.name));
        if let Some(question) = &self.question {
            table.insert("question".into(), json!(question));
        }
        let runs: Map<String, Value> = self
            .runs
            .iter()
            .map(|run| {
                let name = run.variant.as_ref().map_or("run", |it| it.name.as_str());
                (name.to_string(), run.resolved())
            })
            .collect();
        table.insert("runs".into(), Value::Object(runs));
        Value::Object(table)
    }
}

impl RunPlan {
    /// The run with every default filled in.
    pub fn resolved(&self) -> Value {
        let stages: Vec<Value> =
            (0..self.stages.len()).map(|index| self.resolved_stage(index)).collect();
        let mut table = Map::new();
        table.insert("seed".into(), json!(self.seed.0));
        if let Some(variant) = &self.variant {
            table.insert("variant".into(), without_nulls(json!(variant)));
        }
        table.insert("model".into(), without_nulls(json!(self.model)));
        table.insert("stage".into(), json!(stages));
        Value::Object(table)
    }

    /// Everything that decides what the first `count` stages leave behind: runs that agree in it
    /// share those stages.
    pub fn prefix(&self, count: usize) -> Value {
        let stages: Vec<Value> = (0..count).map(|index| self.resolved_stage(index)).collect();
        json!({"seed": self.seed.0, "model": self.model, "stage": stages})
    }

    fn resolved_stage(&self, index: usize) -> Value {
        let StagePlan { name, stage } = &self.stages[index];
        let mut table = Map::new();
        table.insert("name".into(), json!(name));
        table.insert("kind".into(), json!(stage.kind()));
        if let Value::Object(settings) = without_nulls(stage.resolved()) {
            table.extend(settings);
        }
        Value::Object(table)
    }
}

/// The seeds that every variant is to be run with. A `seed` given on the command line is the only
/// one; what is wrong with the rest of the overrides is told where they are applied.
fn seeds(document: &Document, overrides: &[String]) -> Vec<u64> {
    let given = |it: &String| it.split_once('=').is_some_and(|it| it.0.trim() == "seed");
    if overrides.iter().any(given) {
        return Vec::new();
    }
    let mut copy = document.clone();
    let mut told_later = Problems::of(document.name());
    copy.set_all(overrides, &mut told_later);
    copy.root().pull("seeds", &mut told_later).unwrap_or_default()
}

/// Each variant once with each seed; without variants, the experiment itself as `main`.
fn with_seeds(mut variants: Vec<VariantSettings>, seeds: &[u64]) -> Vec<VariantSettings> {
    if seeds.is_empty() {
        return variants;
    }
    if variants.is_empty() {
        let (role, note, set) = (VariantRole::Main, None, Vec::new());
        variants.push(VariantSettings { name: "main".into(), role, note, set });
    }
    let with_seed = |(variant, seed): (&VariantSettings, &u64)| {
        let mut variant = variant.clone();
        variant.name = format!("{}/seed_{seed}", variant.name);
        variant.set.push(format!("seed={seed}"));
        variant
    };
    let all = variants.iter().flat_map(|it| seeds.iter().map(move |seed| (it, seed)));
    all.map(with_seed).collect()
}

fn read_run(
    mut document: Document,
    overrides: &[String],
    variant: Option<VariantSettings>,
    folder: &Path,
    registry: &Registry,
    problems: &mut Problems,
) -> Option<RunPlan> {
    document.set_all(overrides, problems);
    let mut root = document.root();
    root.children("variant", problems);
    let model_table = root.split_or_empty("model", problems);
    let stage_tables = root.children("stage", problems);
    let head: Option<Head> = root.take(problems);
    if let Some(fault) = head.as_ref().and_then(|it| name_fault("name", &it.name, true)) {
        problems.at(&root, fault);
    }
    let model: Option<ModelSettings> = model_table.take(problems);
    if let Some(model) = &model {
        for fault in model.faults(folder) {
            problems.at(&model_table, fault);
        }
    }
    if stage_tables.is_empty() {
        problems.at(
            &root,
            Fault::new("stage", "the experiment has no stage")
                .expected("at least one [[stage]] table")
                .hint("`tallow list stages` shows what a stage can be"),
        );
    }
    let seed = Seed(head.as_ref().map_or(1, |it| it.seed));
    let template_options =
        model.as_ref().map(|it| it.chat_template_kwargs.clone()).unwrap_or_default();
    let mut scorers: Vec<String> = Vec::new();
    let mut stages: Vec<StagePlan> = Vec::new();
    for mut table in stage_tables {
        let context = StageContext {
            registry,
            folder,
            seed,
            scorers: &scorers,
            template_options: &template_options,
        };
        let called = table.text("name").or(table.text("kind")).map(str::to_owned);
        let Some((name, stage)) = read_stage(&mut table, &context, problems) else {
            // Whoever judges by it makes no second mistake.
            scorers.extend(called);
            continue;
        };
        if let Some(fault) = name_fault("name", &name, false) {
            problems.at(&table, fault);
        }
        if stages.iter().any(|it| it.name == name) {
            let fault = Fault::new("name", "two stages have one name")
                .found(name.as_str())
                .hint("give one of them another `name`");
            problems.at(&table, fault);
        }
        if !stage.leaves_policy() {
            scorers.push(name.clone());
        }
        stages.push(StagePlan { name, stage });
    }
    let head = head?;
    Some(RunPlan {
        name: head.name,
        seed,
        question: head.question,
        model: model?,
        stages,
        folder: folder.to_path_buf(),
        variant,
    })
}

/// What is wrong with a name that folders are called by. Those of variants may lie in each other:
/// `main/seed_1`.
fn name_fault(key: &str, name: &str, nested: bool) -> Option<Fault> {
    let is_sound = |part: &str| {
        !part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\\', '\0'])
    };
    let sound = if nested { name.split('/').all(is_sound) } else { is_sound(name) };
    (!sound).then(|| {
        Fault::new(key, "this name cannot be that of a folder")
            .found(format!("{name:?}"))
            .expected("letters, digits, `_` and `-`")
    })
}

fn read_stage(
    table: &mut Table,
    context: &StageContext<'_>,
    problems: &mut Problems,
) -> Option<(String, Box<dyn Stage>)> {
    let kind: String = table.require("kind", problems)?;
    let name: Option<String> = table.pull("name", problems);
    let Some(entry) = stages::BUILTIN.iter().find(|it| it.name == kind) else {
        let names = stages::BUILTIN.iter().map(|it| it.name);
        let fault = ConfigFault::unknown_name("kind", "stage", &kind, names);
        problems.at(table, fault.into());
        return None;
    };
    let stage = (entry.read)(table, context, problems)?;
    Some((name.unwrap_or(kind), stage))
}

/// TOML has no null: a key without a value is left out.
pub(crate) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key, without_nulls(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}
