//! Several algorithms on the rollouts that a run kept for one step: how far their gradients agree.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};
use tallow_envs::{Seed, Split, Task, TaskId};
use tallow_policies::Decoder;
use tallow_verifiers::{Outcome, Reference, StopReason, Transcript, Verdict};

use super::{Common, say};
use crate::algorithms::{Algorithm, AlgorithmEntry, Reference as ReferencePolicy};
use crate::error::Error;
use crate::learner::update::UpdateSettings;
use crate::learner::{Beside, Learner, OptimizerConfig};
use crate::registry::Registry;
use crate::rollout::trajectory::{ScoredGroup, ScoredTrajectory, Trajectory, Turn};
use crate::run_folder::read_record;
use crate::samples::{SampleRecord, path_of, read_samples};
use crate::tracking::Metrics;

/// Which stored rollouts, and with which weights.
#[derive(Args)]
pub struct StoredStep {
    /// A run folder (of one variant, where there are several).
    #[arg(value_name = "RUN_DIR")]
    run: Option<PathBuf>,
    /// The step whose rollouts are used.
    #[arg(long, value_name = "N")]
    step: Option<u64>,
    /// The stage; default: the last `rl` stage.
    #[arg(long)]
    stage: Option<String>,
    /// The policy of now; default: the first checkpoint after the step, else the stage's model.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The policy that KL penalties and pairs compare with; default: the model before the stage.
    #[arg(long, value_name = "DIR")]
    reference: Option<PathBuf>,
}

/// What one algorithm makes of the rollouts.
struct Made {
    name: String,
    metrics: Metrics,
    gradient: Vec<f32>,
}

/// `tallow loss --compare`.
pub fn compare(
    names: &[String],
    stored: &StoredStep,
    common: &Common,
    registry: &Registry,
) -> Result<(), Error> {
    let (Some(run), Some(step)) = (&stored.run, stored.step) else {
        return Err(Error::usage(
            "--compare needs a run folder and a step",
            "tallow loss --compare grpo,dapo runs/NAME --step N",
        ));
    };
    let algorithms: Vec<(String, Algorithm)> = names
        .iter()
        .map(|name| Ok((name.clone(), built(name, registry)?)))
        .collect::<Result<_, Error>>()?;
    let stage = match &stored.stage {
        Some(stage) => stage.clone(),
        None => last_rl_stage(run)?,
    };
    let groups = stored_groups(run, &stage, step)?;
    let (temperature, max_tokens) = sampled_with(run, &stage);
    let folder = match &stored.model {
        Some(folder) => folder.clone(),
        None => policy_after(run, &stage, step)?,
    };
    let policy = Decoder::from_folder(&folder)?;
    let settings = UpdateSettings {
        epochs: 1,
        minibatches: 1,
        temperature,
        max_tokens: max_tokens.unwrap_or_else(|| longest_reply(&groups)),
        newest: step,
        seed: Seed(0),
    };
    let mut made = Vec::new();
    for (name, algorithm) in &algorithms {
        let beside = match &algorithm.reference {
            None => Beside::Nothing,
            Some(ReferencePolicy::Folder(path)) => {
                Beside::Model(Box::new(Decoder::from_folder(path)?))
            }
            Some(ReferencePolicy::Start) => {
                let path = match &stored.reference {
                    Some(path) => path.clone(),
                    None => model_before(run, &stage, name)?,
                };
                Beside::Model(Box::new(Decoder::from_folder(&path)?))
            }
        };
        let config = OptimizerConfig::default();
        let mut learner = Learner::new(policy.clone(), config, 1, beside, Seed(0))?;
        if let Some(critic) = algorithm.critic {
            learner.add_critic(critic, Seed(0))?;
        }
        let (metrics, gradient) = learner.gradient(algorithm, &groups, &settings)?;
        made.push(Made { name: name.clone(), metrics, gradient });
    }
    print(&made, &folder, &groups, common);
    Ok(())
}

fn built(name: &str, registry: &Registry) -> Result<Algorithm, Error> {
    let known = |it: &&AlgorithmEntry| it.name == name;
    let Some(entry) = registry.algorithms.iter().find(known) else {
        let names: Vec<&str> = registry.algorithms.iter().map(|it| it.name).collect();
        return Err(Error::usage(
            format!("there is no algorithm called `{name}`"),
            format!("one of {}", names.join(", ")),
        ));
    };
    entry.build(json!({})).map_err(|fault| {
        Error::usage(format!("`{name}` does not work by its defaults: {fault}"), "compare another")
    })
}

fn last_rl_stage(run: &Path) -> Result<String, Error> {
    let record = read_record(run)?;
    if !record.variants.is_empty() {
        let folders: Vec<String> = record
            .variants
            .iter()
            .map(|it| run.join("variants").join(it).display().to_string())
            .collect();
        return Err(Error::usage(
            format!("{} is an experiment of several runs", run.display()),
            format!("give one of {}", folders.join(", ")),
        ));
    }
    let stage = record.stages.iter().rev().find(|it| it.kind == "rl");
    stage.map(|it| it.name.clone()).ok_or_else(|| {
        Error::usage(format!("{} has no stage of kind rl", run.display()), "give --stage NAME")
    })
}

/// The training rollouts of a step, by task.
fn stored_groups(run: &Path, stage: &str, step: u64) -> Result<Vec<ScoredGroup>, Error> {
    let folder = run.join("samples");
    let path = path_of(&folder, stage, step);
    if !path.is_file() {
        let mut kept: Vec<u64> = std::fs::read_dir(folder.join(stage))
            .into_iter()
            .flatten()
            .filter_map(|it| it.ok()?.file_name().into_string().ok())
            .filter_map(|it| it.strip_prefix("step_")?.split('.').next()?.parse::<u64>().ok())
            .collect();
        kept.sort_unstable();
        let kept: Vec<String> = kept.iter().map(u64::to_string).collect();
        return Err(Error::usage(
            format!("no rollouts of step {step} at {}", path.display()),
            format!(
                "steps that were kept: {}",
                if kept.is_empty() { "none".into() } else { kept.join(", ") }
            ),
        ));
    }
    let mut groups: Vec<ScoredGroup> = Vec::new();
    for record in read_samples(&path)?.into_iter().filter(|it| it.task.split == "train") {
        let Some(reward) = record.reward else { continue };
        if record.tokens.is_empty() {
            return Err(Error::Data(format!(
                "{}: the rollouts hold no tokens: they were kept by an older version",
                path.display()
            )));
        }
        let index = record.task.index;
        let member = scored(record, reward as f32);
        match groups.last_mut().filter(|it| it.task.id.index == index) {
            Some(group) => group.members.push(member),
            None => groups.push(ScoredGroup {
                task: Arc::new(Task {
                    id: TaskId { split: Split::Train, index },
                    prompt: Vec::new(),
                    reference: Reference::None,
                    notes: Value::Null,
                }),
                members: vec![member],
                environment_errors: Vec::new(),
                verifier_errors: Vec::new(),
            }),
        }
    }
    if groups.is_empty() {
        return Err(Error::Data(format!("{} holds no training rollouts", path.display())));
    }
    Ok(groups)
}

fn scored(record: SampleRecord, reward: f32) -> ScoredTrajectory {
    let turns = record.turns.into_iter().filter_map(|turn| {
        let start = turn.start? as usize;
        let range = start..start + turn.ids.len();
        Some(Turn { range, logprobs: turn.logprobs, kept_masses: Vec::new() })
    });
    let stop = if record.stop == "length" { StopReason::Length } else { StopReason::Finished };
    ScoredTrajectory {
        trajectory: Trajectory {
            member: record.member as usize,
            turns: turns.collect(),
            tokens: record.tokens,
            transcript: Transcript { messages: Vec::new(), stop },
            versions: record.policy_version..=record.policy_version,
        },
        verdict: Verdict { outcome: Outcome::Graded, ..Verdict::graded(reward) },
        reward,
    }
}

/// Temperature and longest reply of a stage, as the run's resolved configuration has them.
fn sampled_with(run: &Path, stage: &str) -> (f64, Option<usize>) {
    let above = run.parent().and_then(Path::parent).unwrap_or(run);
    let variant = run.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
    let found = [(run, "run"), (above, variant.as_str())].iter().find_map(|(folder, name)| {
        let text = std::fs::read_to_string(folder.join("config.resolved.toml")).ok()?;
        let table: toml::Table = text.parse().ok()?;
        let stages = table.get("runs")?.get(name)?.get("stage")?.as_array()?.clone();
        stages.into_iter().find(|it| it.get("name").and_then(toml::Value::as_str) == Some(stage))
    });
    let sampling = found.as_ref().and_then(|it| it.get("sampling"));
    let number = |key: &str| sampling.and_then(|it| it.get(key)).cloned();
    (
        number("temperature").and_then(|it| it.as_float()).unwrap_or(1.0),
        number("max_tokens").and_then(|it| it.as_integer()).map(|it| it as usize),
    )
}

fn longest_reply(groups: &[ScoredGroup]) -> usize {
    let members = groups.iter().flat_map(|it| &it.members);
    members.map(|it| it.trajectory.sampled_tokens()).max().unwrap_or(1)
}

/// The first checkpoint of the stage after the step, else what the stage left.
fn policy_after(run: &Path, stage: &str, step: u64) -> Result<PathBuf, Error> {
    let folder = run.join("checkpoints").join(stage);
    let steps = std::fs::read_dir(&folder).into_iter().flatten().filter_map(|it| {
        let path = it.ok()?.path();
        let number: u64 = path.file_name()?.to_str()?.strip_prefix("step_")?.parse().ok()?;
        (number >= step && path.join("config.json").is_file()).then_some((number, path))
    });
    if let Some((_, path)) = steps.min() {
        return Ok(path);
    }
    let left = run.join("models").join(stage);
    if tallow_policies::holds_model(&left) {
        return Ok(left);
    }
    Err(Error::usage(
        format!(
            "no checkpoint after step {step} in {}, and no {}",
            folder.display(),
            left.display()
        ),
        "give the policy with --model DIR",
    ))
}

/// The policy that the stage started from.
fn model_before(run: &Path, stage: &str, algorithm: &str) -> Result<PathBuf, Error> {
    let record = read_record(run)?;
    let before: Vec<PathBuf> = record
        .stages
        .iter()
        .take_while(|it| it.name != stage)
        .filter(|it| it.kind != "reward_model")
        .map(|it| run.join("models").join(&it.name))
        .filter(|it| tallow_policies::holds_model(it))
        .collect();
    before.into_iter().next_back().ok_or_else(|| {
        Error::usage(
            format!("`{algorithm}` compares with the policy before `{stage}`, which the run did not keep"),
            "give it with --reference DIR",
        )
    })
}

fn print(made: &[Made], folder: &Path, groups: &[ScoredGroup], common: &Common) {
    let shown = |metrics: &Metrics, name: &str| metrics.value(&format!("learner/{name}"));
    let norm = |values: &[f32]| values.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>().sqrt();
    let cosine = |one: &[f32], other: &[f32]| {
        let product: f64 = one.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        product / (norm(one) * norm(other)).max(f64::MIN_POSITIVE)
    };
    if common.json {
        for it in made {
            say(&json!({
                "algorithm": it.name, "grad_norm": norm(&it.gradient),
                "loss": shown(&it.metrics, "loss"),
                "clip_share": shown(&it.metrics, "clipped_share"),
                "effective_sample_size": shown(&it.metrics, "effective_sample_size"),
                "approx_kl_nats": shown(&it.metrics, "approx_kl_nats"),
            })
            .to_string());
        }
    } else {
        let replies: usize = groups.iter().map(|it| it.members.len()).sum();
        say(&format!("{replies} replies to {} tasks, policy {}", groups.len(), folder.display()));
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
        table.set_header([
            "algorithm",
            "loss",
            "grad norm",
            "clipped",
            "effective samples",
            "KL, nats",
        ]);
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |it| format!("{it:.digits$}"))
        };
        for it in made {
            table.add_row([
                it.name.clone(),
                number(shown(&it.metrics, "loss"), 4),
                number(Some(norm(&it.gradient)), 4),
                number(shown(&it.metrics, "clipped_share"), 3),
                number(shown(&it.metrics, "effective_sample_size"), 3),
                number(shown(&it.metrics, "approx_kl_nats"), 4),
            ]);
        }
        say(&table.to_string());
    }
    if common.json {
        for (index, one) in made.iter().enumerate() {
            for other in &made[index + 1..] {
                let cosine = cosine(&one.gradient, &other.gradient);
                let names = [&one.name, &other.name];
                say(&json!({"algorithms": names, "gradient_cosine": cosine}).to_string());
            }
        }
        return;
    }
    let mut matrix = comfy_table::Table::new();
    matrix.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    let names = made.iter().map(|it| it.name.clone());
    matrix.set_header(std::iter::once("gradient cosine".to_owned()).chain(names));
    for (index, one) in made.iter().enumerate() {
        let below =
            made[..=index].iter().map(|it| format!("{:.2}", cosine(&one.gradient, &it.gradient)));
        matrix.add_row(std::iter::once(one.name.clone()).chain(below));
    }
    say(&matrix.to_string());
}
