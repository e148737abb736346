//! What the report reads of a run folder: run.json, metrics.jsonl, and the variants beneath it.
//!
//! A run that crashed, or still goes on, is read as far as it got: a torn last line is skipped,
//! and where a resumed run wrote steps again the later line counts.

use std::{
    collections::BTreeMap,
    fs,
    path::{Component, Path, PathBuf},
};

use serde_json::{Map, Value};

use super::ReportError;

/// Keys of run.json that have their own place in the report, so are not repeated as facts.
const PLACED: [&str; 7] = ["name", "question", "variants", "stages", "role", "note", "command"];

/// One experiment: its facts, and the variants that were run of it.
#[derive(Debug)]
pub(super) struct RunFolder {
    /// run.json of the experiment.
    pub(super) info: Map<String, Value>,
    /// config.resolved.toml as it stands.
    pub(super) config: Option<String>,
    /// The variants that have metrics, in the order run.json lists them. An experiment without
    /// variants is one variant with the name of the experiment.
    pub(super) variants: Vec<Variant>,
    /// What was missing or unreadable, as sentences.
    pub(super) gaps: Vec<String>,
}

/// One run within an experiment.
#[derive(Clone, Debug)]
pub(super) struct Variant {
    /// Its name, for instance `main`, `random_reward` or `main/seed_1`.
    pub(super) name: String,
    /// run.json of the variant.
    pub(super) info: Map<String, Value>,
    /// Where its samples are.
    pub(super) dir: PathBuf,
    /// Its lines of metrics.jsonl, in order.
    pub(super) lines: Vec<Line>,
}

/// One line of metrics.jsonl.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    pub(super) step: f64,
    pub(super) stage: String,
    /// Finite numbers by key `area/quantity_unit`.
    pub(super) values: BTreeMap<String, f64>,
}

/// A quantity of one stage over its steps.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve {
    pub(super) stage: String,
    /// (step, value), steps rising.
    pub(super) points: Vec<(f64, f64)>,
}

impl RunFolder {
    /// Reads the folder as far as it is there.
    pub(super) fn read(dir: &Path) -> Result<Self, ReportError> {
        let mut gaps = Vec::new();
        let info = run_json(dir, &mut gaps)?;
        let own_lines = lines(dir, &mut gaps)?;
        let names = variant_names(dir, &info);

        let mut variants = Vec::new();
        if !own_lines.is_empty() {
            let name = if names.is_empty() { text(&info, "name") } else { None };
            let name = name.unwrap_or(if names.is_empty() { "run" } else { "shared" }).to_owned();
            let (info, dir) = (info.clone(), dir.to_owned());
            variants.push(Variant { name, info, dir, lines: own_lines });
        }
        for name in names {
            let Some(dir) = beneath(&dir.join("variants"), &name) else {
                gaps.push(format!("variant {name:?} leaves the run folder and was not read"));
                continue;
            };
            if !dir.is_dir() {
                gaps.push(format!("variant {name:?} has not been run"));
                continue;
            }
            let info = run_json(&dir, &mut gaps)?;
            let lines = lines(&dir, &mut gaps)?;
            if lines.is_empty() {
                gaps.push(format!("variant {name:?} has no metrics yet"));
                continue;
            }
            variants.push(Variant { name, info, dir, lines });
        }
        if variants.is_empty() {
            return Err(ReportError::NoMetrics { dir: dir.to_owned() });
        }
        let config = read_if_there(&dir.join("config.resolved.toml"))?
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Self { info, config, variants, gaps })
    }

    /// The title: the name of the experiment, or of its folder.
    pub(super) fn name(&self) -> &str {
        text(&self.info, "name").unwrap_or("unnamed run")
    }

    /// The facts of run.json that have no place of their own, as (name, value).
    pub(super) fn facts(&self) -> Vec<(String, String)> {
        let command = match self.info.get("command") {
            Some(Value::Array(words)) => words.iter().map(plain).collect::<Vec<_>>().join(" "),
            Some(other) => plain(other),
            None => String::new(),
        };
        let stages = self.info.get("stages").and_then(Value::as_array).map(|stages| {
            let names = stages.iter().filter_map(|stage| {
                let name = stage.get("label").or(stage.get("name")).map(plain)?;
                let kind = stage.get("kind").map(plain).filter(|kind| *kind != name);
                Some(kind.map_or(name.clone(), |kind| format!("{name} ({kind})")))
            });
            names.collect::<Vec<_>>().join(" → ")
        });
        let mut facts = vec![("command".to_owned(), command)];
        facts.extend(stages.map(|stages| ("stages".to_owned(), stages)));
        let rest = self.info.iter().filter(|(key, _)| !PLACED.contains(&key.as_str()));
        facts.extend(rest.map(|(key, value)| (key.replace('_', " "), plain(value))));
        facts.retain(|(_, value)| !value.is_empty());
        facts
    }
}

impl Variant {
    /// The name without its seed: `main/seed_1` and `main/seed_2` belong to `main`.
    pub(super) fn group(&self) -> &str {
        self.name.split_once("/seed").map_or(&self.name, |(group, _)| group)
    }

    /// Its stages that have metrics, in order.
    pub(super) fn stages(&self) -> Vec<&str> {
        let mut stages: Vec<&str> = Vec::new();
        for line in &self.lines {
            if !stages.contains(&line.stage.as_str()) {
                stages.push(&line.stage);
            }
        }
        stages
    }

    /// The curves of `key`, one for each stage that has it, in the order of the stages.
    pub(super) fn curves(&self, key: &str) -> Vec<Curve> {
        let mut curves: Vec<Curve> = Vec::new();
        for line in &self.lines {
            let Some(&value) = line.values.get(key) else { continue };
            let curve = match curves.iter_mut().find(|curve| curve.stage == line.stage) {
                Some(curve) => curve,
                None => {
                    let stage = line.stage.clone();
                    curves.push(Curve { stage, points: Vec::new() });
                    curves.last_mut().expect("a curve was just pushed")
                }
            };
            // A resumed run writes steps again.
            while curve.points.last().is_some_and(|&(step, _)| step >= line.step) {
                curve.points.pop();
            }
            curve.points.push((line.step, value));
        }
        curves
    }

    /// Whether a stage learns from pairs: its `eval/accuracy` is a share of pairs, not of replies, and
    /// its losses are those of pairs.
    pub(super) fn learns_from_pairs(&self, stage: &str) -> bool {
        let mut lines = self.lines.iter().filter(|line| line.stage == stage);
        lines.any(|line| {
            line.values.contains_key("train/margin") || line.values.contains_key("eval/margin")
        })
    }

    /// Keys that start with `prefix`, sorted.
    pub(super) fn keys(&self, prefix: &str) -> Vec<String> {
        let mut keys: Vec<_> = self
            .lines
            .iter()
            .flat_map(|line| line.values.keys())
            .filter(|key| key.starts_with(prefix))
            .cloned()
            .collect();
        keys.sort();
        keys.dedup();
        keys
    }
}

/// A text field of run.json.
pub(super) fn text<'a>(info: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    info.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// A value as a reader wants it: texts without quotes, nothing for null.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The names run.json lists, or else the folders that are there.
fn variant_names(dir: &Path, info: &Map<String, Value>) -> Vec<String> {
    if let Some(listed) = info.get("variants").and_then(Value::as_array) {
        return listed.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    }
    let mut names = Vec::new();
    let entries = fs::read_dir(dir.join("variants")).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.path().is_dir()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().join("metrics.jsonl").is_file() {
            names.push(name);
            continue;
        }
        let seeds = fs::read_dir(entry.path()).into_iter().flatten().flatten();
        let seeds = seeds.filter(|seed| seed.path().join("metrics.jsonl").is_file());
        names.extend(seeds.map(|seed| format!("{name}/{}", seed.file_name().to_string_lossy())));
    }
    names.sort_by_key(|name| (!name.starts_with("main"), name.clone()));
    names
}

/// `root/name`, unless `name` leads out of `root`.
fn beneath(root: &Path, name: &str) -> Option<PathBuf> {
    let name = Path::new(name);
    let inside = name.components().all(|part| matches!(part, Component::Normal(_)));
    (inside && name.components().next().is_some()).then(|| root.join(name))
}

fn run_json(dir: &Path, gaps: &mut Vec<String>) -> Result<Map<String, Value>, ReportError> {
    let path = dir.join("run.json");
    let Some(bytes) = read_if_there(&path)? else {
        gaps.push(format!("{} is missing", shown_path(&path)));
        return Ok(Map::new());
    };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(info)) => Ok(info),
        Ok(_) => Err(ReportError::Malformed { path, reason: "expected an object".to_owned() }),
        Err(error) => Err(ReportError::Malformed { path, reason: error.to_string() }),
    }
}

fn lines(dir: &Path, gaps: &mut Vec<String>) -> Result<Vec<Line>, ReportError> {
    let path = dir.join("metrics.jsonl");
    let Some(bytes) = read_if_there(&path)? else { return Ok(Vec::new()) };
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = Vec::new();
    let mut rows = text.lines().enumerate().filter(|(_, row)| !row.trim().is_empty()).peekable();
    while let Some((index, row)) = rows.next() {
        match serde_json::from_str::<Value>(row).ok().as_ref().and_then(line) {
            Some(line) => lines.push(line),
            // The last line of a run that was killed is torn; that is no news.
            None if rows.peek().is_none() => {}
            None => gaps.push(format!("{}:{}: not a metrics line", shown_path(&path), index + 1)),
        }
    }
    Ok(lines)
}

fn line(row: &Value) -> Option<Line> {
    let row = row.as_object()?;
    let step = row.get("step")?.as_f64()?;
    let stage = row.get("stage").and_then(Value::as_str).unwrap_or_default().to_owned();
    let numbers = row.iter().filter(|(key, _)| key.contains('/'));
    // Stages that learn from pairs call the share that they order rightly as stages that sample call
    // that of right replies; here the two must not meet.
    let of_pairs = row.contains_key("eval/margin");
    let name = |key: &str| match key.strip_prefix("eval/accuracy") {
        Some(rest) if of_pairs => format!("eval/pair_accuracy{rest}"),
        _ => key.to_owned(),
    };
    let numbers = numbers.filter_map(|(key, value)| Some((name(key), value.as_f64()?)));
    Some(Line { step, stage, values: numbers.collect() })
}

/// The last two parts of a path: enough to find the file, and the same on every machine.
fn shown_path(path: &Path) -> String {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    parts[parts.len().saturating_sub(2)..].join("/")
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, ReportError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ReportError::Io { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(metrics: &str) -> (tempfile::TempDir, Result<RunFolder, ReportError>) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("run.json"), r#"{"name":"smoke","seed":7}"#).unwrap();
        fs::write(dir.path().join("metrics.jsonl"), metrics).unwrap();
        let run = RunFolder::read(dir.path());
        (dir, run)
    }

    #[test]
    fn a_torn_last_line_is_skipped() {
        let (_dir, run) = folder("{\"step\":1,\"stage\":\"rl\",\"a/b\":0.5}\n{\"step\":2,\"sta");
        let run = run.unwrap();
        assert_eq!(run.variants[0].lines.len(), 1);
        assert!(run.gaps.is_empty());
    }

    #[test]
    fn the_accuracy_of_pairs_is_not_that_of_replies() {
        let (_dir, run) = folder(
            "{\"step\":1,\"stage\":\"reward\",\"eval/accuracy\":0.7,\"eval/margin\":0.5}\n\
             {\"step\":1,\"stage\":\"rl\",\"eval/accuracy\":0.9}\n",
        );
        let run = run.unwrap();
        let stages = |key: &str| -> Vec<String> {
            run.variants[0].curves(key).into_iter().map(|it| it.stage).collect()
        };
        assert_eq!(stages("eval/accuracy"), ["rl"]);
        assert_eq!(stages("eval/pair_accuracy"), ["reward"]);
    }

    #[test]
    fn a_bad_line_in_the_middle_is_reported() {
        let (_dir, run) = folder("nonsense\n{\"step\":1,\"stage\":\"rl\",\"a/b\":0.5}\n");
        assert!(run.unwrap().gaps[0].ends_with("metrics.jsonl:1: not a metrics line"));
    }

    #[test]
    fn steps_written_again_after_a_resume_count_once() {
        let steps = [(1, 0.1), (2, 0.2), (3, 0.3), (2, 0.9)];
        let rows = steps.map(|(s, v)| format!("{{\"step\":{s},\"stage\":\"rl\",\"a/b\":{v}}}\n"));
        let (_dir, run) = folder(&rows.concat());
        let curves = run.unwrap().variants[0].curves("a/b");
        assert_eq!(curves[0].points, [(1.0, 0.1), (2.0, 0.9)]);
    }

    #[test]
    fn an_empty_run_is_an_error_that_says_so() {
        let (_dir, run) = folder("");
        assert!(matches!(run, Err(ReportError::NoMetrics { .. })));
    }

    #[test]
    fn names_of_variants_cannot_leave_the_run_folder() {
        for name in ["..", "../x", "/etc", "", "a/../../b"] {
            assert_eq!(beneath(Path::new("variants"), name), None, "{name}");
        }
        assert!(beneath(Path::new("variants"), "main/seed_1").is_some());
    }
}
