//! Numbers of a run over time: one JSON line for each step in `metrics.jsonl`.
//!
//! A line is `{"step", "stage", "time_s", "area/quantity_unit": number, …}` and is written with
//! one call, so a reader sees whole lines and a kill tears the last one at most. JSON has no
//! infinity: what is not finite is written as `null` and counted in
//! `tracking/non_finite_values`, because a loss that became NaN must not pass for one that was
//! not measured.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value};

use crate::files::{self, OnPath, StoreError};

/// How many values of a line were NaN or infinite; absent if none were.
pub const NON_FINITE: &str = "tracking/non_finite_values";

/// Named numbers in the order they were first set.
///
/// Names are `area/quantity_unit`: `learner/kl_nats`, `rollout/reply_tokens`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    values: Vec<(String, f64)>,
}

impl Metrics {
    /// No numbers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a number, replacing an earlier one of that name.
    pub fn set(&mut self, name: impl Into<String>, value: f64) {
        let name = name.into();
        debug_assert!(is_name(&name), "`{name}` is not of the form area/quantity_unit");
        match self.values.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.values.push((name, value)),
        }
    }

    /// Adds to a number, which starts at 0.
    pub fn add(&mut self, name: impl Into<String>, value: f64) {
        let name = name.into();
        let before = self.value(&name).unwrap_or(0.0);
        self.set(name, before + value);
    }

    /// Adds every number of `other`.
    pub fn accumulate(&mut self, other: &Metrics) {
        for (name, value) in other.iter() {
            self.add(name, value);
        }
    }

    /// Multiplies every number.
    pub fn scale(&mut self, factor: f64) {
        for (_, value) in &mut self.values {
            *value *= factor;
        }
    }

    /// The number called `name`.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }

    /// Names and numbers in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.values.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// Sets every number of `other`.
    pub fn extend(&mut self, other: Metrics) {
        for (name, value) in other.values {
            self.set(name, value);
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }
}

impl<S: Into<String>> FromIterator<(S, f64)> for Metrics {
    fn from_iter<I: IntoIterator<Item = (S, f64)>>(values: I) -> Self {
        let mut metrics = Self::new();
        for (name, value) in values {
            metrics.set(name, value);
        }
        metrics
    }
}

/// Somewhere else that numbers go, such as TensorBoard's event files.
pub trait MetricSink: Send {
    /// Takes the numbers of one step. Values that are not finite are passed on as they are.
    ///
    /// # Errors
    /// If they could not be kept; the run stops as for `metrics.jsonl` itself.
    fn scalars(&mut self, step: u64, stage: &str, metrics: &Metrics) -> Result<(), StoreError>;
}

/// The point a run goes on from; what lies behind it in time is kept, what lies ahead is dropped.
#[derive(Clone, Copy, Debug)]
pub struct ResumePoint<'a> {
    /// All stages of the run in order.
    pub stages: &'a [String],
    /// The stage that goes on.
    pub stage: &'a str,
    /// The last step whose lines are kept, as it was logged; 0 keeps nothing of a stage whose
    /// steps are counted from 1.
    pub step: u64,
}

impl ResumePoint<'_> {
    /// Whether what was logged for `step` of `stage` is still true. Stages that the run does not
    /// know are somebody else's and stay.
    pub fn keeps(&self, stage: &str, step: u64) -> bool {
        let position = |name: &str| self.stages.iter().position(|stage| stage == name);
        match (position(stage), position(self.stage)) {
            (Some(logged), Some(resumed)) if logged == resumed => step <= self.step,
            (Some(logged), Some(resumed)) => logged < resumed,
            _ => true,
        }
    }
}

/// What [`Tracker::resume`] did to `metrics.jsonl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Lines that stayed.
    pub kept: usize,
    /// Lines that lay ahead of the checkpoint.
    pub dropped: usize,
    /// Lines that were torn or otherwise no JSON object.
    pub torn: usize,
}

/// Appends the numbers of a run to `metrics.jsonl` and passes them on.
pub struct Tracker {
    path: PathBuf,
    file: File,
    sinks: Vec<Box<dyn MetricSink>>,
    started: Instant,
    /// Seconds that earlier sittings of the run took.
    earlier_s: f64,
    non_finite: u64,
    /// A write failed half way, so the next line must first end the torn one.
    torn: bool,
}

impl Tracker {
    /// Begins a new file; the folder must exist.
    ///
    /// # Errors
    /// If there is such a file already or it cannot be created.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        let file = OpenOptions::new().append(true).create_new(true).open(&path);
        let file = file.on_path("create", &path)?;
        Ok(Self::writing(path, file, 0.0))
    }

    /// Goes on with a file from which everything ahead of `point` has been dropped. `time_s`
    /// continues from the last line that is kept. A file that is missing begins anew.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn resume(
        path: impl Into<PathBuf>,
        point: ResumePoint<'_>,
    ) -> Result<(Self, Trimmed), StoreError> {
        let path = path.into();
        let mut trimmed = Trimmed::default();
        let mut kept = String::new();
        let mut earlier_s = 0.0;
        for line in lines_of(&path)? {
            let Some(read) = MetricLine::parse(&line) else {
                trimmed.torn += 1;
                continue;
            };
            if point.keeps(&read.stage, read.step) {
                trimmed.kept += 1;
                earlier_s = read.time_s;
                kept.push_str(&line);
                kept.push('\n');
            } else {
                trimmed.dropped += 1;
            }
        }
        files::write_atomic(&path, kept)?;
        let file = OpenOptions::new().append(true).open(&path).on_path("open", &path)?;
        Ok((Self::writing(path, file, earlier_s), trimmed))
    }

    /// Passes everything that is logged from now on to `sink` too.
    pub fn add_sink(&mut self, sink: Box<dyn MetricSink>) {
        self.sinks.push(sink);
    }

    /// Appends one line with the time since the run began.
    ///
    /// # Errors
    /// If it cannot be written. The file stays readable.
    pub fn log(&mut self, step: u64, stage: &str, metrics: &Metrics) -> Result<(), StoreError> {
        let time_s = self.time_s();
        self.log_at(time_s, step, stage, metrics)
    }

    /// As [`log`](Self::log), with the time given.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn log_at(
        &mut self,
        time_s: f64,
        step: u64,
        stage: &str,
        metrics: &Metrics,
    ) -> Result<(), StoreError> {
        let mut object = Map::new();
        object.insert("step".to_owned(), Value::from(step));
        object.insert("stage".to_owned(), Value::from(stage));
        // Milliseconds are enough, and keep the lines short.
        object.insert("time_s".to_owned(), Value::from((time_s * 1e3).round() / 1e3));
        let mut non_finite = 0;
        for (name, value) in metrics.iter() {
            non_finite += u64::from(!value.is_finite());
            object.insert(name.to_owned(), Value::from(value));
        }
        if non_finite > 0 {
            object.insert(NON_FINITE.to_owned(), Value::from(non_finite));
            self.non_finite += non_finite;
        }
        let end_of_torn = if self.torn { "\n" } else { "" };
        let line = format!("{end_of_torn}{}\n", Value::Object(object));
        let written = self.file.write_all(line.as_bytes());
        self.torn = written.is_err();
        written.on_path("write", &self.path)?;
        for sink in &mut self.sinks {
            sink.scalars(step, stage, metrics)?;
        }
        Ok(())
    }

    /// Seconds the run has taken, earlier sittings included.
    pub fn time_s(&self) -> f64 {
        self.earlier_s + self.started.elapsed().as_secs_f64()
    }

    /// How many values were NaN or infinite since this tracker was opened.
    pub fn non_finite(&self) -> u64 {
        self.non_finite
    }

    fn writing(path: PathBuf, file: File, earlier_s: f64) -> Self {
        let started = Instant::now();
        Self { path, file, sinks: Vec::new(), started, earlier_s, non_finite: 0, torn: false }
    }
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricLine {
    /// The step as it was logged.
    pub step: u64,
    /// The stage it belongs to.
    pub stage: String,
    /// Seconds since the run began.
    pub time_s: f64,
    /// Everything else that is a number, in order; NaN where it was not finite.
    pub metrics: Metrics,
}

impl MetricLine {
    /// Reads one line; `None` if it is torn or lacks step or stage.
    pub fn parse(line: &str) -> Option<Self> {
        let object: Map<String, Value> = serde_json::from_str(line).ok()?;
        let mut metrics = Metrics::new();
        for (name, value) in &object {
            let value = if value.is_null() { Some(f64::NAN) } else { value.as_f64() };
            if let Some(value) = value.filter(|_| is_name(name)) {
                metrics.set(name, value);
            }
        }
        Some(Self {
            step: object.get("step")?.as_u64()?,
            stage: object.get("stage")?.as_str()?.to_owned(),
            time_s: object.get("time_s").and_then(Value::as_f64).unwrap_or(0.0),
            metrics,
        })
    }
}

/// Reads `metrics.jsonl`, passing over torn lines; none if there is no such file.
///
/// # Errors
/// If the file is there and cannot be read.
pub fn read_metrics(path: &Path) -> Result<Vec<MetricLine>, StoreError> {
    Ok(lines_of(path)?.iter().filter_map(|line| MetricLine::parse(line)).collect())
}

/// The lines of a file that may be torn anywhere, even inside a character.
fn lines_of(path: &Path) -> Result<Vec<String>, StoreError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(StoreError::new("read", path, error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect())
}

fn is_name(name: &str) -> bool {
    name.split_once('/').is_some_and(|(area, quantity)| !area.is_empty() && !quantity.is_empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::{Arc, Mutex};

    use super::*;

    const STAGES: [&str; 3] = ["pretrain", "sft", "rl"];

    fn stages() -> Vec<String> {
        STAGES.map(str::to_owned).to_vec()
    }

    fn loss(value: f64) -> Metrics {
        Metrics::from_iter([("learner/loss", value)])
    }

    fn written() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut tracker = Tracker::create(&path).unwrap();
        for (position, stage) in STAGES.iter().enumerate() {
            for step in 1..=3 {
                let time_s = (position * 10) as f64 + step as f64;
                tracker.log_at(time_s, step, stage, &loss(0.5)).unwrap();
            }
        }
        (folder, path)
    }

    fn steps(path: &Path) -> Vec<(String, u64)> {
        let lines = read_metrics(path).unwrap();
        lines.into_iter().map(|line| (line.stage, line.step)).collect()
    }

    #[test]
    fn a_line_has_the_documented_form() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut tracker = Tracker::create(&path).unwrap();
        let mut metrics = Metrics::from_iter([("learner/loss", 0.25), ("learner/kl_nats", 1e-9)]);
        tracker.log_at(1.23456, 1, "rl", &metrics).unwrap();
        metrics.set("learner/loss", f64::NAN);
        metrics.set("learner/kl_nats", f64::INFINITY);
        tracker.log_at(2.0, 2, "rl", &metrics).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            r#"{"step":1,"stage":"rl","time_s":1.235,"learner/loss":0.25,"learner/kl_nats":1e-9}
{"step":2,"stage":"rl","time_s":2.0,"learner/loss":null,"learner/kl_nats":null,"tracking/non_finite_values":2}
"#
        );
        assert_eq!(tracker.non_finite(), 2);
        assert!(read_metrics(&path).unwrap()[1].metrics.value("learner/loss").unwrap().is_nan());
    }

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let (_folder, path) = written();
        let error = Tracker::create(&path).err().unwrap();
        assert!(error.to_string().ends_with("file exists (17)"), "{error}");
    }

    #[test]
    fn resume_drops_what_lies_ahead_and_what_is_torn() {
        let (_folder, path) = written();
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"step\":4,\"stage\":\"rl\",\"tim\xc3").unwrap();
        let stages = stages();
        let point = ResumePoint { stages: &stages, stage: "sft", step: 2 };
        let (mut tracker, trimmed) = Tracker::resume(&path, point).unwrap();
        assert_eq!(trimmed, Trimmed { kept: 5, dropped: 4, torn: 1 });
        assert!(tracker.time_s() >= 12.0);
        tracker.log_at(13.0, 3, "sft", &loss(0.1)).unwrap();
        let expected =
            [("pretrain", 1), ("pretrain", 2), ("pretrain", 3), ("sft", 1), ("sft", 2), ("sft", 3)];
        assert_eq!(steps(&path), expected.map(|(stage, step)| (stage.to_owned(), step)));
    }

    #[test]
    fn resume_at_the_start_of_a_stage_keeps_the_earlier_ones() {
        let (_folder, path) = written();
        let stages = stages();
        let point = ResumePoint { stages: &stages, stage: "rl", step: 0 };
        let (_, trimmed) = Tracker::resume(&path, point).unwrap();
        assert_eq!(trimmed, Trimmed { kept: 6, dropped: 3, torn: 0 });
    }

    #[test]
    fn sinks_see_what_is_logged() {
        struct Seen(Arc<Mutex<Vec<(u64, String, f64)>>>);
        impl MetricSink for Seen {
            fn scalars(&mut self, step: u64, stage: &str, it: &Metrics) -> Result<(), StoreError> {
                let value = it.value("learner/loss").unwrap();
                self.0.lock().unwrap().push((step, stage.to_owned(), value));
                Ok(())
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let mut tracker = Tracker::create(folder.path().join("metrics.jsonl")).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        tracker.add_sink(Box::new(Seen(Arc::clone(&seen))));
        tracker.log(7, "rl", &loss(0.5)).unwrap();
        assert_eq!(*seen.lock().unwrap(), [(7, "rl".to_owned(), 0.5)]);
    }
}
