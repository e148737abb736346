//! What the policy wrote, for people to read: `samples/STAGE/step_NNNNNN.jsonl.zst`.
//!
//! One line for each rollout, with every token, its log-probability and its advantage, the
//! verdict and its parts. Each stage has its folder, since all count their steps from the same
//! number. The file of a step is replaced as a whole; writing the rollouts of one split of the
//! tasks keeps those that the file has of the other.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{self, AtomicFile, OnPath, StoreError};
use crate::tracking::ResumePoint;

/// zstd's own default: text shrinks about fivefold, and higher levels cost more than they save.
const COMPRESSION_LEVEL: i32 = 3;

/// One rollout.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// The stage that made it.
    pub stage: String,
    /// The step it was made for.
    pub step: u64,
    /// The task that was set.
    pub task: SampleTask,
    /// Which of the replies to this task, from 0.
    pub member: u64,
    /// The task's text as the policy saw it.
    pub prompt: String,
    /// Every token of the episode, prompt and tool output included.
    #[serde(default)]
    pub tokens: Vec<u32>,
    /// What was said, in order.
    pub turns: Vec<SampleTurn>,
    /// What the learner was told: the verdict's reward, or a coin's in a control.
    #[serde(default, with = "finite_option")]
    pub reward: Option<f64>,
    /// `correct`, `incorrect`, `malformed` or `graded`.
    pub outcome: String,
    /// The verdict's parts before they were weighted.
    #[serde(default, with = "finite_map")]
    pub parts: BTreeMap<String, f64>,
    /// Why the episode ended: `finished`, `length` or `turn_limit`.
    pub stop: String,
    /// What the verifier had to say.
    #[serde(default)]
    pub reason: String,
    /// Tokens the policy wrote in all turns.
    pub reply_tokens: u64,
    /// The newest version of the policy that wrote a token.
    pub policy_version: u64,
}

/// Names a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleTask {
    /// `train` or `test`.
    pub split: String,
    /// Its number in the split.
    pub index: u64,
}

/// One turn of a rollout. The vectors are as long as `ids` for a reply of the policy, but for
/// `advantages` of one that was not trained on; for other roles all are empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleTurn {
    /// `assistant`, `user` or `tool`.
    pub role: String,
    /// The turn as text.
    pub text: String,
    /// Where a reply's `ids` begin in the episode's `tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<u64>,
    /// The tokens.
    #[serde(default)]
    pub ids: Vec<u32>,
    /// Each token as text.
    #[serde(default)]
    pub token_texts: Vec<String>,
    /// Log-probability of each token under the distribution that sampled it, in nats.
    #[serde(default, with = "finite_list")]
    pub logprobs: Vec<f32>,
    /// Advantage of each token; empty if the rollout was not trained on.
    #[serde(default, with = "finite_list")]
    pub advantages: Vec<f32>,
}

/// The file in the folder `samples` for `step` of `stage`.
pub fn path_of(folder: &Path, stage: &str, step: u64) -> PathBuf {
    folder.join(stage).join(format!("step_{step:06}.jsonl.zst"))
}

/// Writes the rollouts of one step of `stage` into the folder `samples`, which is created if need
/// be. Records of the same split that the file already has are replaced.
///
/// # Errors
/// If the file cannot be written, or an older one cannot be read.
pub fn write_samples(
    folder: &Path,
    stage: &str,
    step: u64,
    records: &[SampleRecord],
) -> Result<(), StoreError> {
    files::create_folder(&folder.join(stage))?;
    let path = path_of(folder, stage, step);
    let replaced = |old: &SampleRecord| records.iter().any(|new| new.task.split == old.task.split);
    let mut all = if path.exists() { read_samples(&path)? } else { Vec::new() };
    all.retain(|old| !replaced(old));
    all.extend_from_slice(records);
    write_all(&path, &all)
}

/// Reads a file of rollouts.
///
/// # Errors
/// If it cannot be read, or a line is no record, which is told with its number.
pub fn read_samples(path: &Path) -> Result<Vec<SampleRecord>, StoreError> {
    let file = fs::File::open(path).on_path("read", path)?;
    let decoder = zstd::Decoder::new(file).on_path("read", path)?;
    let mut records = Vec::new();
    for (number, line) in BufReader::new(decoder).lines().enumerate() {
        let line = line.on_path("read", path)?;
        let record = serde_json::from_str(&line).map_err(|error| {
            StoreError::malformed(path, format!("line {}: {error}", number + 1))
        })?;
        records.push(record);
    }
    Ok(records)
}

/// The steps of `stage` that the folder `samples` has files for, ascending; none if there is no
/// such folder.
///
/// # Errors
/// If the folder cannot be read.
pub fn steps_in(folder: &Path, stage: &str) -> Result<Vec<u64>, StoreError> {
    let step = |name: String| name.strip_prefix("step_")?.strip_suffix(".jsonl.zst")?.parse().ok();
    let names = files::names_in(&folder.join(stage))?;
    let mut steps: Vec<u64> = names.into_iter().filter_map(step).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// Removes the files of steps that lie ahead of the checkpoint a run goes on from, and what an
/// interrupted write left; returns how many files went.
///
/// # Errors
/// If a folder cannot be read, or a file not be removed.
pub fn trim_samples(folder: &Path, point: ResumePoint<'_>) -> Result<usize, StoreError> {
    let mut dropped = 0;
    for stage in point.stages {
        files::recover(&folder.join(stage))?;
        for step in steps_in(folder, stage)? {
            if !point.keeps(stage, step) {
                let path = path_of(folder, stage, step);
                fs::remove_file(&path).on_path("remove", &path)?;
                dropped += 1;
            }
        }
    }
    Ok(dropped)
}

fn write_all(path: &Path, records: &[SampleRecord]) -> Result<(), StoreError> {
    let file = AtomicFile::create(path)?;
    let mut encoder = zstd::Encoder::new(file, COMPRESSION_LEVEL).on_path("write", path)?;
    for record in records {
        let mut line = serde_json::to_vec(record).expect("a sample record has a JSON form");
        line.push(b'\n');
        encoder.write_all(&line).on_path("write", path)?;
    }
    encoder.finish().on_path("write", path)?.commit()
}

/// Numbers that may be NaN or infinite: `null` in JSON, NaN when read back.
mod finite_list {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(values: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
        // serde_json writes what is not finite as `null`.
        values.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
        let values = Vec::<Option<f32>>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|value| value.unwrap_or(f32::NAN)).collect())
    }
}

/// As [`finite_list`], for named numbers.
mod finite_map {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(
        values: &BTreeMap<String, f64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        values.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, f64>, D::Error> {
        let values = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
    }
}

/// A reward that is absent or not finite is `null` alike: neither can be trained on.
mod finite_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        value.filter(|value| value.is_finite()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<f64>, D::Error> {
        Option::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(stage: &str, split: &str, step: u64, member: u64) -> SampleRecord {
        SampleRecord {
            stage: stage.to_owned(),
            step,
            task: SampleTask { split: split.to_owned(), index: 3 },
            member,
            prompt: "2 + 2 = ?".to_owned(),
            tokens: vec![5, 6, 19, 7],
            turns: vec![SampleTurn {
                role: "assistant".to_owned(),
                text: "4 \u{1f56f}".to_owned(),
                start: Some(2),
                ids: vec![19, 7],
                token_texts: vec!["4".to_owned(), " \u{1f56f}".to_owned()],
                logprobs: vec![-0.1, -2.7182817],
                advantages: vec![0.5, 0.5],
            }],
            reward: Some(1.0),
            outcome: "correct".to_owned(),
            parts: BTreeMap::from([("format".to_owned(), 0.0)]),
            stop: "stop".to_owned(),
            reason: "equal".to_owned(),
            reply_tokens: 2,
            policy_version: 9,
        }
    }

    #[test]
    fn what_is_written_is_read_back_exactly() {
        let folder = tempfile::tempdir().unwrap();
        let records: Vec<_> = (0..5).map(|member| record("rl", "train", 40, member)).collect();
        write_samples(folder.path(), "rl", 40, &records).unwrap();
        let path = folder.path().join("rl/step_000040.jsonl.zst");
        assert_eq!(read_samples(&path).unwrap(), records);
        assert_eq!(steps_in(folder.path(), "rl").unwrap(), [40]);
    }

    #[test]
    fn a_line_has_the_documented_keys() {
        let json = serde_json::to_value(record("rl", "train", 40, 1)).unwrap();
        let keys = |value: &serde_json::Value| -> Vec<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let all = "stage step task member prompt tokens turns reward outcome parts stop reason \
                   reply_tokens policy_version";
        assert_eq!(keys(&json), all.split(' ').collect::<Vec<_>>());
        let turn = "role text start ids token_texts logprobs advantages";
        assert_eq!(keys(&json["turns"][0]), turn.split(' ').collect::<Vec<_>>());
    }

    #[test]
    fn numbers_that_are_not_finite_survive_as_nan() {
        let folder = tempfile::tempdir().unwrap();
        let mut odd = record("rl", "train", 1, 0);
        odd.turns[0].logprobs[0] = f32::NEG_INFINITY;
        odd.parts.insert("format".to_owned(), f64::NAN);
        odd.reward = Some(f64::NAN);
        write_samples(folder.path(), "rl", 1, &[odd]).unwrap();
        let read = &read_samples(&path_of(folder.path(), "rl", 1)).unwrap()[0];
        assert!(read.turns[0].logprobs[0].is_nan() && read.parts["format"].is_nan());
        assert_eq!(read.reward, None);
    }

    #[test]
    fn stages_and_splits_share_a_step_without_harm() {
        let folder = tempfile::tempdir().unwrap();
        for (stage, split, member) in
            [("rl", "train", 0), ("late", "train", 0), ("rl", "test", 0), ("rl", "train", 1)]
        {
            write_samples(folder.path(), stage, 5, &[record(stage, split, 5, member)]).unwrap();
        }
        let found = |stage: &str| -> Vec<(String, u64)> {
            let read = read_samples(&path_of(folder.path(), stage, 5)).unwrap();
            assert!(read.iter().all(|it| it.stage == stage));
            read.into_iter().map(|it| (it.task.split, it.member)).collect()
        };
        assert_eq!(found("rl"), [("test".to_owned(), 0), ("train".to_owned(), 1)]);
        assert_eq!(found("late"), [("train".to_owned(), 0)]);
    }

    #[test]
    fn resume_removes_what_lies_ahead() {
        let folder = tempfile::tempdir().unwrap();
        for stage in ["first", "rl", "last"] {
            for step in [10, 20, 30] {
                let records = [record(stage, "train", step, 0)];
                write_samples(folder.path(), stage, step, &records).unwrap();
            }
        }
        let rl = folder.path().join("rl");
        fs::write(rl.join(".step_000040.jsonl.zst.1-0.partial"), "half").unwrap();
        let stages = ["first".to_owned(), "rl".to_owned(), "last".to_owned()];
        let point = ResumePoint { stages: &stages, stage: "rl", step: 10 };
        assert_eq!(trim_samples(folder.path(), point).unwrap(), 5);
        assert_eq!(steps_in(folder.path(), "first").unwrap(), [10, 20, 30]);
        assert_eq!(files::names_in(&rl).unwrap(), ["step_000010.jsonl.zst"]);
        assert!(steps_in(folder.path(), "last").unwrap().is_empty());
    }

    #[test]
    fn a_bad_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("step_000001.jsonl.zst");
        fs::write(&path, zstd::encode_all(&b"{\"stage\": 3}\n"[..], 3).unwrap()).unwrap();
        let error = read_samples(&path).unwrap_err().to_string();
        assert!(error.contains("line 1: invalid type: integer `3`"), "{error}");
    }
}
