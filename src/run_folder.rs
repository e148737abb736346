//! The folder of one run: who writes it, what it was asked to do and how far it came.
//!
//! `run.json` tells the story, `config.resolved.toml` repeats the run, and a lock keeps a second
//! process out. A folder is finished only if the run said so; a kill leaves it unfinished, and
//! then nothing is begun anew in it unless `--resume` is given. Results are never deleted.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::files::{self, OnPath, StoreError};

/// The file that holds the whole configuration, defaults included.
pub const CONFIG: &str = "config.resolved.toml";
/// The file that holds the [`RunRecord`].
pub const RECORD: &str = "run.json";
/// The file that is locked while a process writes the folder; it holds the process's number.
const LOCK: &str = ".lock";

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It goes on, or was killed before it could say otherwise.
    Running,
    /// Every stage came to its end.
    Done,
    /// It stopped at an error.
    Failed,
    /// The user stopped it.
    Interrupted,
}

impl Status {
    fn in_words(self) -> &'static str {
        match self {
            Self::Running => "was cut off",
            Self::Done => "is done",
            Self::Failed => "failed",
            Self::Interrupted => "was interrupted",
        }
    }
}

/// One stage in `run.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRecord {
    /// The name under which its checkpoints, metrics and model are kept.
    pub name: String,
    /// `pretrain`, `sft`, `rl` or another registered kind.
    pub kind: String,
    /// `None` until it begins.
    pub status: Option<Status>,
    /// Where its tasks came from: files and their hashes; `None` if options and seed say it all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<serde_json::Value>,
}

/// What `run.json` holds. Keys it does not know are left out when it is written again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The name of the experiment, or of the variant.
    pub name: String,
    /// What the experiment asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// Runs in `variants/` that together are the experiment; the folder then has none of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<String>,
    /// Whether a variant is the experiment or a control.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<crate::config::VariantRole>,
    /// What a variant is there to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Versions of what the result depends on; at least `tallow`.
    pub versions: BTreeMap<String, String>,
    /// The command line, the program first.
    pub command: Vec<String>,
    /// The run's seed.
    pub seed: u64,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// Threads the run may use.
    pub threads: usize,
    /// When it first began, UTC.
    #[serde(default)]
    pub started: String,
    /// When it was resumed.
    #[serde(default)]
    pub resumed: Vec<String>,
    /// When it last ended; `None` while it goes on.
    #[serde(default)]
    pub ended: Option<String>,
    /// How it stands.
    pub status: Status,
    /// The error at which it stopped.
    #[serde(default)]
    pub failure: Option<String>,
    /// Its stages in order.
    pub stages: Vec<StageRecord>,
}

/// What stands in the way of using a folder.
#[derive(Debug, thiserror::Error)]
pub enum RunFolderError {
    /// A file could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A run in it was not brought to its end.
    #[error("`{}` holds an unfinished run, which {}", folder.display(), status.in_words())]
    Unfinished {
        /// The folder.
        folder: PathBuf,
        /// How the run stands.
        status: Status,
    },
    /// A run in it is done.
    #[error("`{}` holds a finished run", folder.display())]
    Finished {
        /// The folder.
        folder: PathBuf,
    },
    /// It has other things in it.
    #[error("`{}` is not empty and no run folder: it holds `{found}`", folder.display())]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// One of the things in it.
        found: String,
    },
    /// There is no run to go on with.
    #[error("`{}` holds no run to resume", folder.display())]
    NothingToResume {
        /// The folder.
        folder: PathBuf,
    },
    /// Another process writes it.
    #[error("`{}` is being written by another process{owner}", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// ` (4711)`, or nothing if it did not say.
        owner: String,
    },
    /// The run was begun with another configuration.
    #[error(
        "`{}` was begun with another configuration; these keys differ:\n{}",
        folder.display(),
        list(differences)
    )]
    ConfigDiffers {
        /// The folder.
        folder: PathBuf,
        /// What differs.
        differences: Vec<Difference>,
    },
}

impl RunFolderError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Unfinished { .. } => Some(
                "go on with it by --resume, or begin anew in another folder by --out DIR"
                    .to_owned(),
            ),
            Self::Finished { .. } => {
                Some("choose another folder by --out DIR; results are never overwritten".to_owned())
            }
            Self::Foreign { .. } => Some("choose a new or empty folder by --out DIR".to_owned()),
            Self::NothingToResume { .. } => {
                Some("leave out --resume to begin, or check the folder given by --out".to_owned())
            }
            Self::InUse { .. } => {
                Some("wait for it to end, or choose another folder by --out DIR".to_owned())
            }
            Self::ConfigDiffers { folder, .. } => Some(format!(
                "resume with the configuration it was begun with, `{}`, or begin anew in another \
                 folder by --out DIR",
                folder.join(CONFIG).display()
            )),
        }
    }
}

/// A key that two configurations have different values for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// From the top: `stage[1].group_size`.
    pub key: String,
    /// The value the run was begun with, as TOML; `None` if it had none.
    pub begun_with: Option<String>,
    /// The value it has now.
    pub now: Option<String>,
}

/// What a folder holds, as far as a run is concerned.
#[derive(Clone, Debug, PartialEq)]
pub enum RunState {
    /// No such folder, or nothing of account in it.
    Absent,
    /// Something else.
    Foreign {
        /// One of the things in it.
        found: String,
    },
    /// A run that can go on.
    Unfinished(Box<RunRecord>),
    /// A run that is done.
    Finished(Box<RunRecord>),
}

impl RunState {
    /// Looks into `folder` without changing it.
    ///
    /// # Errors
    /// If it cannot be read or its `run.json` is damaged.
    pub fn of(folder: &Path) -> Result<Self, StoreError> {
        if folder.join(RECORD).exists() {
            let record = Box::new(read_record(folder)?);
            return Ok(match record.status {
                Status::Done => Self::Finished(record),
                _ => Self::Unfinished(record),
            });
        }
        // A run that was killed before its first `run.json` has done nothing yet.
        let begun = |name: &String| {
            name == LOCK || name == CONFIG || (name.starts_with('.') && name.ends_with(".partial"))
        };
        let found = files::names_in(folder)?.into_iter().find(|name| !begun(name));
        Ok(found.map_or(Self::Absent, |found| Self::Foreign { found }))
    }
}

/// The folder of a run that this process writes; the lock is held until it is dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    record: RunRecord,
    _lock: File,
}

impl RunFolder {
    /// Begins a run in a folder that is new, empty or holds nothing of account. `record` is what
    /// `run.json` shall say; its times and status are set here. `config` is the resolved TOML.
    ///
    /// # Errors
    /// If the folder holds a run or anything else, or cannot be written.
    pub fn create(
        path: impl Into<PathBuf>,
        record: RunRecord,
        config: &str,
    ) -> Result<Self, RunFolderError> {
        let path = path.into();
        // First without a trace, so that a refusal leaves the folder as it was.
        refuse_unless_absent(&path)?;
        files::create_folder(&path)?;
        let lock = lock(&path)?;
        refuse_unless_absent(&path)?;
        files::recover(&path)?;
        files::write_atomic(&path.join(CONFIG), config)?;
        let record = RunRecord {
            started: utc_now(),
            resumed: Vec::new(),
            ended: None,
            status: Status::Running,
            failure: None,
            ..record
        };
        let folder = Self { path, record, _lock: lock };
        folder.write_record()?;
        Ok(folder)
    }

    /// Goes on with an unfinished run. `config` is the resolved TOML it is asked to go on with,
    /// which must agree with the one it was begun with but for the keys in `may_differ`:
    /// `rl.steps` style paths in which `[*]` stands for every index, `stage[*].steps`; a path of
    /// a table stands for all in it. `config.resolved.toml` then says what holds from now on.
    ///
    /// Leftovers of interrupted writes in the folder itself are removed; checkpoints and samples
    /// have their own recovery.
    ///
    /// # Errors
    /// If there is no unfinished run, another process writes it, or the configurations differ.
    pub fn open_to_resume(
        path: impl Into<PathBuf>,
        config: &str,
        may_differ: &[&str],
    ) -> Result<Self, RunFolderError> {
        let path = path.into();
        unfinished(&path)?;
        let lock = lock(&path)?;
        // Read again: the process that held the lock may have finished the run meanwhile.
        let mut record = unfinished(&path)?;
        let begun_with = files::read_text(&path.join(CONFIG))?;
        let differences = differences(&path, &begun_with, config, may_differ)?;
        if !differences.is_empty() {
            return Err(RunFolderError::ConfigDiffers { folder: path, differences });
        }
        files::recover(&path)?;
        if begun_with != config {
            files::write_atomic(&path.join(CONFIG), config)?;
        }
        record.status = Status::Running;
        record.ended = None;
        record.failure = None;
        record.resumed.push(utc_now());
        let folder = Self { path, record, _lock: lock };
        folder.write_record()?;
        Ok(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `run.json` says.
    pub fn record(&self) -> &RunRecord {
        &self.record
    }

    /// Changes `run.json`; used for the command, versions or device of a resumed run.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn update(&mut self, change: impl FnOnce(&mut RunRecord)) -> Result<(), StoreError> {
        change(&mut self.record);
        self.write_record()
    }

    /// Notes how a stage stands.
    ///
    /// # Errors
    /// If `run.json` cannot be written.
    pub fn set_stage(&mut self, position: usize, status: Status) -> Result<(), StoreError> {
        self.update(|record| {
            let stage = record.stages.get_mut(position);
            stage.expect("every stage of the run is in its record").status = Some(status);
        })
    }

    /// Notes how the run ended and lets go of the folder. A run that is dropped without it
    /// counts as cut off, and can be resumed.
    ///
    /// # Errors
    /// If `run.json` cannot be written.
    pub fn finish(mut self, ending: Ending) -> Result<RunRecord, StoreError> {
        self.record.ended = Some(utc_now());
        (self.record.status, self.record.failure) = match ending {
            Ending::Done => (Status::Done, None),
            Ending::Interrupted => (Status::Interrupted, None),
            Ending::Failed(why) => (Status::Failed, Some(why)),
        };
        for stage in &mut self.record.stages {
            if stage.status == Some(Status::Running) {
                stage.status = Some(self.record.status);
            }
        }
        self.write_record()?;
        Ok(self.record)
    }

    /// `metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The folder `samples`.
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples")
    }

    /// The folder `checkpoints`.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The folder of the final model of `stage`; write it with [`files::replace_folder`].
    pub fn model(&self, stage: &str) -> PathBuf {
        self.path.join("models").join(stage)
    }

    /// The folder `tensorboard`.
    pub fn tensorboard(&self) -> PathBuf {
        self.path.join("tensorboard")
    }

    fn write_record(&self) -> Result<(), StoreError> {
        let mut text =
            serde_json::to_string_pretty(&self.record).expect("a run record has a JSON form");
        text.push('\n');
        files::write_atomic(&self.path.join(RECORD), text)
    }
}

/// How a run came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every stage is complete.
    Done,
    /// The user stopped it.
    Interrupted,
    /// It stopped at this error.
    Failed(String),
}

/// Reads the `run.json` of any run folder, finished or not.
///
/// # Errors
/// If it is missing or damaged.
pub fn read_record(folder: &Path) -> Result<RunRecord, StoreError> {
    let path = folder.join(RECORD);
    let text = files::read_text(&path)?;
    serde_json::from_str(&text).map_err(|error| StoreError::malformed(path, error))
}

/// The current time as `2026-01-31T12:00:00Z`.
pub fn utc_now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    utc_text(since.as_secs())
}

fn refuse_unless_absent(folder: &Path) -> Result<(), RunFolderError> {
    let folder = folder.to_owned();
    match RunState::of(&folder)? {
        RunState::Absent => Ok(()),
        RunState::Foreign { found } => Err(RunFolderError::Foreign { folder, found }),
        RunState::Unfinished(_) if in_use(&folder) => {
            Err(RunFolderError::InUse { owner: owner(&folder), folder })
        }
        RunState::Unfinished(record) => {
            Err(RunFolderError::Unfinished { folder, status: record.status })
        }
        RunState::Finished(_) => Err(RunFolderError::Finished { folder }),
    }
}

fn unfinished(folder: &Path) -> Result<RunRecord, RunFolderError> {
    let folder = folder.to_owned();
    match RunState::of(&folder)? {
        RunState::Unfinished(record) => Ok(*record),
        RunState::Finished(_) => Err(RunFolderError::Finished { folder }),
        RunState::Absent => Err(RunFolderError::NothingToResume { folder }),
        RunState::Foreign { found } => Err(RunFolderError::Foreign { folder, found }),
    }
}

/// Takes the lock, which the system gives back when the process ends, however it ends.
fn lock(folder: &Path) -> Result<File, RunFolderError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = file.on_path("create", &path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(RunFolderError::InUse { folder: folder.to_owned(), owner: owner(folder) });
        }
        Err(TryLockError::Error(error)) => {
            return Err(StoreError::new("lock", path, error).into());
        }
    }
    let text = format!("{}\n", std::process::id());
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes()));
    written.on_path("write", &path)?;
    Ok(file)
}

fn in_use(folder: &Path) -> bool {
    let Ok(file) = File::open(folder.join(LOCK)) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

fn owner(folder: &Path) -> String {
    let mut text = String::new();
    let read = File::open(folder.join(LOCK)).and_then(|mut file| file.read_to_string(&mut text));
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(process)) => format!(" ({process})"),
        _ => String::new(),
    }
}

fn differences(
    folder: &Path,
    begun_with: &str,
    now: &str,
    may_differ: &[&str],
) -> Result<Vec<Difference>, StoreError> {
    let read = |text: &str| {
        let mut leaves = Vec::new();
        let table: toml::Table =
            text.parse().map_err(|error| StoreError::malformed(folder.join(CONFIG), error))?;
        collect_leaves(String::new(), &toml::Value::Table(table), &mut leaves);
        Ok(leaves)
    };
    let (begun_with, now): (Vec<_>, Vec<_>) = (read(begun_with)?, read(now)?);
    let value = |leaves: &[(String, String)], key: &str| {
        leaves.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone())
    };
    let mut found = Vec::new();
    let only_now = now.iter().filter(|(key, _)| value(&begun_with, key).is_none());
    for (key, _) in begun_with.iter().chain(only_now) {
        let (old, new) = (value(&begun_with, key), value(&now, key));
        if old != new && !may_differ.iter().any(|pattern| covers(pattern, key)) {
            found.push(Difference { key: key.clone(), begun_with: old, now: new });
        }
    }
    Ok(found)
}

/// Every value that is no table, and every empty one, under its path.
fn collect_leaves(path: String, value: &toml::Value, leaves: &mut Vec<(String, String)>) {
    match value {
        toml::Value::Table(table) if !table.is_empty() => {
            for (key, value) in table {
                let inside = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect_leaves(inside, value, leaves);
            }
        }
        toml::Value::Array(values) if values.iter().any(toml::Value::is_table) => {
            for (index, value) in values.iter().enumerate() {
                collect_leaves(format!("{path}[{index}]"), value, leaves);
            }
        }
        _ => leaves.push((path, value.to_string())),
    }
}

/// Whether `pattern` is `key` or a table around it, `[*]` being any index.
fn covers(pattern: &str, key: &str) -> bool {
    let parts = |text: &str| -> Vec<String> {
        text.replace('[', ".[").split('.').map(str::to_owned).collect()
    };
    let (pattern, key) = (parts(pattern), parts(key));
    let agrees = |(wanted, found): (&String, &String)| {
        wanted == found || (wanted == "[*]" && found.starts_with('['))
    };
    pattern.len() <= key.len() && pattern.iter().zip(&key).all(agrees)
}

fn list(differences: &[Difference]) -> String {
    let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "absent".to_owned());
    let line = |it: &Difference| {
        format!("  {}: was {}, is now {}", it.key, value(&it.begun_with), value(&it.now))
    };
    differences.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Civil time from seconds since 1970 (Howard Hinnant, "chrono-compatible low-level date
/// algorithms", `civil_from_days`), for years that count from March so that the leap day is last.
fn utc_text(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const RESOLVED: &str = "name = \"x\"\nseed = 1\n[[stage]]\nkind = \"rl\"\nsteps = 10\n";

    fn record() -> RunRecord {
        let stage = |name: &str| StageRecord {
            name: name.to_owned(),
            kind: name.to_owned(),
            status: None,
            provenance: None,
        };
        RunRecord {
            name: "x".to_owned(),
            question: None,
            variants: Vec::new(),
            role: None,
            note: None,
            versions: BTreeMap::from([("tallow".to_owned(), "0.1.0".to_owned())]),
            command: vec!["tallow".to_owned(), "run".to_owned()],
            seed: 1,
            device: "cpu".to_owned(),
            threads: 2,
            started: String::new(),
            resumed: Vec::new(),
            ended: None,
            status: Status::Running,
            failure: None,
            stages: vec![stage("sft"), stage("rl")],
        }
    }

    fn told(error: &RunFolderError, folder: &Path) -> String {
        let text = format!("{error}\nhint: {}", error.hint().unwrap());
        text.replace(&folder.display().to_string(), "DIR")
    }

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs/x");
        (folder, path)
    }

    #[test]
    fn a_run_is_begun_resumed_and_finished() {
        let (_folder, path) = scratch();
        let mut run = RunFolder::create(&path, record(), RESOLVED).unwrap();
        run.set_stage(0, Status::Done).unwrap();
        run.set_stage(1, Status::Running).unwrap();
        drop(run);
        assert!(matches!(RunState::of(&path).unwrap(), RunState::Unfinished(_)));
        let run = RunFolder::open_to_resume(&path, RESOLVED, &[]).unwrap();
        assert_eq!(run.record().resumed.len(), 1);
        let finished = run.finish(Ending::Done).unwrap();
        assert_eq!(finished.stages[1].status, Some(Status::Done));
        assert_eq!(read_record(&path).unwrap(), finished);
        assert!(finished.ended.is_some());
        assert_eq!(files::read_text(&path.join(CONFIG)).unwrap(), RESOLVED);
    }

    #[test]
    fn an_unfinished_run_is_not_begun_anew() {
        let (_folder, path) = scratch();
        drop(RunFolder::create(&path, record(), RESOLVED).unwrap());
        let error = RunFolder::create(&path, record(), RESOLVED).unwrap_err();
        assert_eq!(
            told(&error, &path),
            "`DIR` holds an unfinished run, which was cut off\n\
             hint: go on with it by --resume, or begin anew in another folder by --out DIR"
        );
        let run = RunFolder::open_to_resume(&path, RESOLVED, &[]).unwrap();
        run.finish(Ending::Failed("out of memory".to_owned())).unwrap();
        let error = RunFolder::create(&path, record(), RESOLVED).unwrap_err();
        assert!(error.to_string().ends_with("which failed"), "{error}");
        assert_eq!(read_record(&path).unwrap().failure.as_deref(), Some("out of memory"));
        RunFolder::open_to_resume(&path, RESOLVED, &[]).unwrap();
    }

    #[test]
    fn a_finished_run_is_left_alone() {
        let (_folder, path) = scratch();
        let run = RunFolder::create(&path, record(), RESOLVED).unwrap();
        run.finish(Ending::Done).unwrap();
        let expected = "`DIR` holds a finished run\n\
                        hint: choose another folder by --out DIR; results are never overwritten";
        let error = RunFolder::create(&path, record(), RESOLVED).unwrap_err();
        assert_eq!(told(&error, &path), expected);
        let error = RunFolder::open_to_resume(&path, RESOLVED, &[]).unwrap_err();
        assert_eq!(told(&error, &path), expected);
    }

    #[test]
    fn two_processes_cannot_write_one_run() {
        let (_folder, path) = scratch();
        let run = RunFolder::create(&path, record(), RESOLVED).unwrap();
        let error = RunFolder::open_to_resume(&path, RESOLVED, &[]).unwrap_err();
        let expected = format!(
            "`DIR` is being written by another process ({})\n\
             hint: wait for it to end, or choose another folder by --out DIR",
            std::process::id()
        );
        assert_eq!(told(&error, &path), expected);
        let error = RunFolder::create(&path, record(), RESOLVED).unwrap_err();
        assert_eq!(told(&error, &path), expected);
        drop(run);
        RunFolder::open_to_resume(&path, RESOLVED, &[]).unwrap();
    }

    #[test]
    fn resume_needs_a_run() {
        let (_folder, path) = scratch();
        let error = RunFolder::open_to_resume(&path, RESOLVED, &[]).unwrap_err();
        assert_eq!(
            told(&error, &path),
            "`DIR` holds no run to resume\n\
             hint: leave out --resume to begin, or check the folder given by --out"
        );
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_with_other_things_is_not_touched() {
        let (folder, _) = scratch();
        fs::write(folder.path().join("thesis.tex"), "").unwrap();
        let error = RunFolder::create(folder.path(), record(), RESOLVED).unwrap_err();
        assert_eq!(
            told(&error, folder.path()),
            "`DIR` is not empty and no run folder: it holds `thesis.tex`\n\
             hint: choose a new or empty folder by --out DIR"
        );
        assert_eq!(files::names_in(folder.path()).unwrap(), ["thesis.tex"]);
    }

    #[test]
    fn a_run_that_was_killed_before_its_first_record_is_begun_anew() {
        let (_folder, path) = scratch();
        files::create_folder(&path).unwrap();
        for name in [LOCK, CONFIG, ".run.json.1-2.partial"] {
            fs::write(path.join(name), "").unwrap();
        }
        let run = RunFolder::create(&path, record(), RESOLVED).unwrap();
        assert_eq!(files::names_in(run.path()).unwrap(), [LOCK, CONFIG, RECORD]);
    }

    #[test]
    fn a_resumed_run_has_the_same_configuration() {
        let (_folder, path) = scratch();
        drop(RunFolder::create(&path, record(), RESOLVED).unwrap());
        let changed =
            "name = \"x\"\nthreads = 3\n[[stage]]\nkind = \"rl\"\nsteps = 20\ngroup_size = 4\n";
        let error = RunFolder::open_to_resume(&path, changed, &["threads"]).unwrap_err();
        assert_eq!(
            told(&error, &path),
            "`DIR` was begun with another configuration; these keys differ:\n\
             \x20 seed: was 1, is now absent\n\
             \x20 stage[0].steps: was 10, is now 20\n\
             \x20 stage[0].group_size: was absent, is now 4\n\
             hint: resume with the configuration it was begun with, `DIR/config.resolved.toml`, \
             or begin anew in another folder by --out DIR"
        );
        RunFolder::open_to_resume(&path, changed, &["threads", "seed", "stage[*]"]).unwrap();
        assert_eq!(files::read_text(&path.join(CONFIG)).unwrap(), changed);
        let reordered = "seed = 1\nname = 'x'\nstage = [{ steps = 10, kind = 'rl' }]";
        let may_differ = ["threads", "seed", "stage[*].steps", "stage[0].group_size"];
        RunFolder::open_to_resume(&path, reordered, &may_differ).unwrap();
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_it() {
        let (_folder, path) = scratch();
        drop(RunFolder::create(&path, record(), RESOLVED).unwrap());
        fs::write(path.join(RECORD), "{\"name\":").unwrap();
        let error = RunState::of(&path).unwrap_err().to_string();
        assert!(error.contains("run.json`: EOF while parsing"), "{error}");
    }

    #[test]
    fn times_are_civil() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc_text(seconds), expected);
        }
    }
}
