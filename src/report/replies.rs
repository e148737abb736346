//! Sampled replies worth reading: right and wrong ones of each stage's first, middle and last step.
//!
//! They are the first of their kind in each file, not picked for their looks.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{ReportError, run_folder::Variant};

/// Right replies, and as many wrong ones, that are shown of a step.
const SHOWN_OF_A_KIND: usize = 2;

/// Rollouts read of a file in search of both kinds.
const ROLLOUTS_READ: usize = 4096;

/// Bytes read of a file, unpacked: a small packed file may unfold to any size.
const BYTES_READ: u64 = 64 << 20;

/// The replies of one variant.
#[derive(Debug)]
pub(super) struct VariantReplies {
    pub(super) variant: String,
    pub(super) steps: Vec<StepReplies>,
}

/// The replies of one step.
#[derive(Debug)]
pub(super) struct StepReplies {
    pub(super) stage: String,
    pub(super) step: u64,
    pub(super) rollouts: Vec<Rollout>,
}

/// One rollout as samples/*.jsonl.zst holds it; fields the report does not show are skipped.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Rollout {
    pub(super) stage: Option<String>,
    pub(super) prompt: Option<String>,
    pub(super) turns: Vec<Turn>,
    pub(super) reward: Option<f64>,
    pub(super) outcome: Option<String>,
    pub(super) stop: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) reply_tokens: Option<u64>,
}

/// One turn; turns of tools and of the environment have no tokens.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Turn {
    pub(super) role: String,
    pub(super) text: String,
    pub(super) token_texts: Option<Vec<String>>,
    pub(super) logprobs: Option<Vec<Option<f64>>>,
    pub(super) advantages: Option<Vec<Option<f64>>>,
}

impl Rollout {
    /// Whether the verifier found the reply right.
    pub(super) fn is_right(&self) -> bool {
        match &self.outcome {
            Some(outcome) => outcome == "correct",
            None => self.reward.is_some_and(|reward| reward > 0.0),
        }
    }
}

/// The replies to show of a variant; unreadable files are named in `gaps`.
pub(super) fn of(variant: &Variant, gaps: &mut Vec<String>) -> Option<VariantReplies> {
    let mut steps = Vec::new();
    for (stage, dir) in stage_folders(variant) {
        let files = step_files(&dir);
        let Some(last) = files.len().checked_sub(1) else { continue };
        let mut chosen = vec![0, last / 2, last];
        chosen.dedup();
        for nth in chosen {
            let (step, path) = &files[nth];
            match first_of_each_kind(path) {
                Ok(rollouts) if rollouts.is_empty() => {}
                Ok(rollouts) => {
                    steps.push(StepReplies { stage: stage.clone(), step: *step, rollouts });
                }
                Err(error) => gaps
                    .push(format!("samples of {stage}, step {step}, of {}: {error}", variant.name)),
            }
        }
    }
    (!steps.is_empty()).then(|| VariantReplies { variant: variant.name.clone(), steps })
}

/// The folders of samples with the names of their stages, in the order of the stages.
fn stage_folders(variant: &Variant) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(variant.dir.join("samples")).into_iter().flatten().flatten();
    let mut folders: Vec<_> = entries
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect();
    let stages = variant.stages();
    let position = |name: &String| stages.iter().position(|stage| stage == name);
    folders.sort_by_key(|(name, _)| (position(name).unwrap_or(stages.len()), name.clone()));
    folders
}

/// (step, path) of the sample files in `dir`, by step.
fn step_files(dir: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let step = name.strip_prefix("step_")?.strip_suffix(".jsonl.zst")?;
            Some((step.parse().ok()?, entry.path()))
        })
        .collect();
    files.sort();
    files
}

/// Right ones first. A torn file gives what it holds.
fn first_of_each_kind(path: &Path) -> Result<Vec<Rollout>, ReportError> {
    let io_error = |source| ReportError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io_error)?;
    let reader = zstd::Decoder::new(file).map_err(io_error)?;
    let (mut right, mut wrong) = (Vec::new(), Vec::new());
    for row in BufReader::new(reader.take(BYTES_READ)).lines().take(ROLLOUTS_READ) {
        let Ok(Ok(rollout)) = row.map(|row| serde_json::from_str::<Rollout>(&row)) else { break };
        let kind = if rollout.is_right() { &mut right } else { &mut wrong };
        let prompt_shown = kind.iter().any(|shown: &Rollout| shown.prompt == rollout.prompt);
        if kind.len() < SHOWN_OF_A_KIND && !prompt_shown {
            kind.push(rollout);
        }
        if right.len() + wrong.len() == 2 * SHOWN_OF_A_KIND {
            break;
        }
    }
    right.append(&mut wrong);
    Ok(right)
}
