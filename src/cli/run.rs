//! `tallow run` and `tallow check`.

use std::path::PathBuf;

use clap::Args;
use tallow_policies::ModelConfig;
use tallow_policies::gpu::Device;

use super::{Common, say};
use crate::config::document::resolved_toml;
use crate::config::{Experiment, RunPlan};
use crate::documents::resolve;
use crate::error::Error;
use crate::learner::memory::{MemoryPlan, available_bytes, human_bytes};
use crate::registry::Registry;
use crate::run::{RunOptions, run_experiment};

/// Run the stages of an experiment.
#[derive(Args)]
#[command(after_help = "Example: tallow run experiments/emergence --set rl.steps=30")]
pub struct RunArgs {
    /// A TOML file, or a folder that holds config.toml.
    config: PathBuf,
    /// Change a key: `rl.group_size=8`, `model.hidden=128`, `stage[1].steps=10`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where the run's files go; default: runs/NAME.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on where the run folder stopped.
    #[arg(long)]
    resume: bool,
    /// Print the resolved configuration, the batch table and the memory plan; start nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Check everything a run would, without starting it; all problems at once.
#[derive(Args)]
#[command(after_help = "Example: tallow check experiments/emergence")]
pub struct CheckArgs {
    /// A TOML file, or a folder that holds config.toml.
    config: PathBuf,
    /// Change a key, as for run.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// `tallow run`.
pub fn run(args: &RunArgs, common: &Common, registry: &Registry) -> Result<(), Error> {
    let experiment = read(&args.config, &args.set, common, registry)?;
    if args.dry_run {
        let toml = resolved_toml(&experiment.resolved())
            .map_err(|e| Error::Data(format!("resolved configuration: {e}")))?;
        say(&format!("{toml}\n{}", plans(&experiment, None)?));
        return Ok(());
    }
    let device = common.open_device()?;
    let text = plans(&experiment, device.as_ref())?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(&experiment.name));
    run_experiment(
        &experiment,
        &RunOptions {
            out,
            resume: args.resume,
            quiet: common.quiet || common.json,
            threads: common.threads(),
            device,
            plan: text,
            command: std::env::args().collect(),
        },
    )
}

/// `tallow check`.
pub fn check(args: &CheckArgs, common: &Common, registry: &Registry) -> Result<(), Error> {
    let experiment = read(&args.config, &args.set, common, registry)?;
    let text = plans(&experiment, None)?;
    if !common.quiet {
        say(&format!("{text}{}: no problems", args.config.display()));
    }
    Ok(())
}

fn read(
    config: &std::path::Path,
    set: &[String],
    common: &Common,
    registry: &Registry,
) -> Result<Experiment, Error> {
    let mut set = set.to_vec();
    if let Some(seed) = common.seed {
        set.push(format!("seed={seed}"));
    }
    Experiment::read(config, &set, registry)
}

/// The batch table and the memory plan of every run; refuses what cannot fit.
fn plans(experiment: &Experiment, device: Option<&Device>) -> Result<String, Error> {
    let mut text = String::new();
    let mut shown: Option<(&str, String)> = None;
    for run in &experiment.runs {
        let plan = plan_of(run, device)?;
        let name = run.variant.as_ref().map_or("", |it| it.name.as_str());
        if let Some((same, _)) = shown.as_ref().filter(|it| it.1 == plan) {
            text.push_str(&format!("variant {name}: as {same}\n"));
            continue;
        }
        if !name.is_empty() {
            text.push_str(&format!("variant {name}\n"));
        }
        text.push_str(&plan);
        shown = Some((name, plan));
    }
    Ok(text)
}

/// The batch table and the memory plan of one run.
fn plan_of(run: &RunPlan, device: Option<&Device>) -> Result<String, Error> {
    let mut text = String::new();
    let model = model_of(run)?;
    for plan in &run.stages {
        text.push_str(&format!("  {} ({})\n", plan.name, plan.stage.kind()));
        for (name, value) in plan.stage.derived(&run.model) {
            text.push_str(&format!("    {name:<34}{value:>14}\n"));
        }
        let Some(demand) = plan.stage.demand(&run.model) else { continue };
        if device.is_some() && demand.lora.is_some() {
            return Err(Error::usage(
                format!(
                    "stage `{}` trains adapters, which are computed on the CPU only",
                    plan.name
                ),
                "use --device cpu, or leave optimizer.lora out",
            ));
        }
        let memory = MemoryPlan::new(&model, &demand)?;
        for (name, bytes) in [
            ("memory: weights", memory.weights),
            ("memory: gradients and optimizer", memory.training_state),
            ("memory: activations, at most", memory.activations),
            ("memory: weights laid out to sample", memory.sampling),
            ("memory: sampling cache, at most", memory.cache),
            ("memory: rollouts, at most", memory.rollouts),
        ] {
            if bytes > 0 {
                text.push_str(&format!("    {name:<34}{:>14}\n", human_bytes(bytes)));
            }
        }
        let available = match device {
            // A GPU in bf16 needs less than the plan, which is for f32.
            Some(device) => Some(device.memory()?.0),
            None => available_bytes(),
        };
        let Some(available) = available else { continue };
        match memory.cache_within(available) {
            Some(cache) if cache < memory.cache => {
                let (name, cache) = ("memory: cache bounded to what is free", human_bytes(cache));
                text.push_str(&format!("    {name:<34}{cache:>11}\n"));
            }
            Some(_) => {}
            None if memory.cache < memory.least_cache => {
                return Err(Error::usage(
                    format!(
                        "stage `{}` may hold {} of keys and values, and one reply may need {}",
                        plan.name,
                        human_bytes(memory.cache),
                        human_bytes(memory.least_cache)
                    ),
                    memory.what_to_lower(),
                ));
            }
            None => {
                return Err(Error::usage(
                    format!(
                        "stage `{}` needs about {} of memory and {} are free",
                        plan.name,
                        human_bytes(memory.total()),
                        human_bytes(available)
                    ),
                    memory.what_to_lower(),
                ));
            }
        }
    }
    Ok(text)
}

/// The run's model as far as it is known before its tokenizer is made.
fn model_of(run: &RunPlan) -> Result<ModelConfig, Error> {
    /// Vocabulary that a memory plan assumes where a tokenizer is yet to be trained.
    const ASSUMED_VOCABULARY: usize = 4096;
    match &run.model.folder {
        Some(folder) => Ok(ModelConfig::from_folder(&resolve(folder, &run.folder))?),
        None => run.model.config(ASSUMED_VOCABULARY),
    }
}
