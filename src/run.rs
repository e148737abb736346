//! One run: its folder, what it writes there, and where it goes on when it was stopped.
//!
//! A finished stage is the folder `models/STAGE`, renamed into place; a stage under way is its
//! newest sound checkpoint. Everything else (metrics, samples) is cut back to that point on resume,
//! so that a run killed anywhere ends with the same files as one that was not.
//!
//! Variants of an experiment are runs in `variants/NAME`. Stages that two variants agree in down to
//! the last key are run once: the later variant starts from the earlier one's model.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tallow_envs::{Seed, Split};
use tallow_policies::gpu::Device;
use tallow_verifiers::{Preparation, Verifier};

use crate::checkpoints::{Checkpoints, Retention};
use crate::config::document::resolved_toml;
use crate::config::{Experiment, RunPlan, StagePlan};
use crate::console::{Bar, Console, SampleRow, samples_table};
use crate::device;
use crate::documents::resolve;
use crate::error::Error;
use crate::files::{StoreError, replace_folder, write_atomic};
use crate::model::{ModelSettings, ModelState};
use crate::rollout::trajectory::{ScoredGroup, ScoredTrajectory};
use crate::run_folder::{
    Ending, RunFolder, RunFolderError, RunRecord, RunState, StageRecord, Status,
};
use crate::samples::{self, SampleRecord, SampleTask, SampleTurn};
use crate::tensorboard::{EventWriter, unix_seconds};
use crate::tracking::{MetricLine, MetricSink, Metrics, ResumePoint, Tracker};

/// The folder of a run in which the models of its stages lie.
const MODELS: &str = "models";

/// Checkpoints kept of each stage: one may be damaged, and then the one before serves.
const KEPT_CHECKPOINTS: usize = 2;

/// The file of a checkpoint with a stage's own state.
const STATE_FILE: &str = "state.json";

/// How an experiment is to be run.
pub struct RunOptions {
    /// The run's folder.
    pub out: PathBuf,
    /// Go on where it stopped.
    pub resume: bool,
    /// Neither bars nor notes.
    pub quiet: bool,
    /// Threads for everything.
    pub threads: usize,
    /// Where to compute; none is the CPU.
    pub device: Option<Device>,
    /// The batch table and memory plan, shown before the start.
    pub plan: String,
    /// The command line, for the record.
    pub command: Vec<String>,
}

/// Runs every variant of an experiment, and writes its report.
///
/// # Errors
/// See [`Error`]; the folder says how the run stands.
pub fn run_experiment(experiment: &Experiment, options: &RunOptions) -> Result<(), Error> {
    let console = Console::new(options.quiet);
    let interrupted = watch_interrupts();
    console.line(options.plan.trim_end());
    let started = std::time::Instant::now();
    let toml = toml_of(&experiment.resolved())?;
    if let [only] = experiment.runs.as_slice()
        && only.variant.is_none()
    {
        let sitting = Sitting { console: &console, options, interrupted };
        let folder = open(&options.out, options, record(experiment, only, options), &toml)?;
        sitting.run(only, folder, None)?;
    } else {
        run_variants(experiment, options, &console, &interrupted, &toml)?;
    }
    console.line(format!("finished in {:.0} s", started.elapsed().as_secs_f64()));
    match crate::report::write(&options.out) {
        Ok(report) => console.line(format!("report: {}", report.html.display())),
        Err(error) => {
            let told = format!(
                "the run is complete, but its report could not be written: {error}; mend that and \
                 run `tallow report {}`",
                options.out.display()
            );
            return Err(Error::Data(told));
        }
    }
    Ok(())
}

fn run_variants(
    experiment: &Experiment,
    options: &RunOptions,
    console: &Console,
    interrupted: &Arc<AtomicBool>,
    toml: &str,
) -> Result<(), Error> {
    let first = &experiment.runs[0];
    let mut parent = record(experiment, first, options);
    parent.name = experiment.name.clone();
    parent.stages = Vec::new();
    parent.role = None;
    parent.note = None;
    parent.variants = experiment.runs.iter().filter_map(variant_name).collect();
    let parent = open(&options.out, options, parent, toml)?;
    let sitting = Sitting { console, options, interrupted: Arc::clone(interrupted) };
    let ran = (|| {
        let mut done: Vec<(&RunPlan, PathBuf)> = Vec::new();
        for plan in &experiment.runs {
            let name = variant_name(plan).unwrap_or_default();
            let path = options.out.join("variants").join(&name);
            if !matches!(RunState::of(&path)?, RunState::Finished(_)) {
                console.line(format!("variant {name}"));
                let begun = matches!(RunState::of(&path)?, RunState::Unfinished(_));
                let sub = RunOptions {
                    out: path.clone(),
                    resume: begun,
                    plan: String::new(),
                    command: options.command.clone(),
                    device: options.device.clone(),
                    ..*options
                };
                let record = record(experiment, plan, options);
                let folder = open(&path, &sub, record, &toml_of(&plan.resolved())?)?;
                sitting.run(plan, folder, shared_start(plan, &done))?;
            }
            done.push((plan, path));
        }
        Ok(())
    })();
    parent.finish(ending(&ran))?;
    ran
}

/// Stages that a variant need not run, because one that is done has run them.
struct Shared {
    /// How many.
    count: usize,
    /// The folder with the model of the last of them, and with the scorers of all.
    models: PathBuf,
    /// The folder of the newest policy among them, if one of them leaves a policy.
    policy: Option<PathBuf>,
}

/// The longest sequence of stages that `plan` shares with a variant that is done.
fn shared_start(plan: &RunPlan, done: &[(&RunPlan, PathBuf)]) -> Option<Shared> {
    // A variant that shared a stage itself has no model of it, so the one that ran it is found.
    let model_of = |index: usize| {
        let prefix = plan.prefix(index + 1);
        let alike = |it: &&(&RunPlan, PathBuf)| {
            it.0.stages.len() > index && it.0.prefix(index + 1) == prefix
        };
        let models = done.iter().filter(alike).map(|it| it.1.join(MODELS));
        models.map(|it| (it.join(&plan.stages[index].name), it)).find(|it| it.0.is_dir())
    };
    let (index, (_, models)) =
        (0..plan.stages.len()).rev().find_map(|index| Some((index, model_of(index)?)))?;
    let count = index + 1;
    let policy = match newest_policy(plan, count) {
        Some(index) => Some(model_of(index)?.0),
        None => None,
    };
    Some(Shared { count, models, policy })
}

/// Which of the first `count` stages leaves the policy that the next one goes on from.
fn newest_policy(plan: &RunPlan, count: usize) -> Option<usize> {
    (0..count).rev().find(|it| plan.stages[*it].stage.leaves_policy())
}

fn variant_name(plan: &RunPlan) -> Option<String> {
    plan.variant.as_ref().map(|it| it.name.clone())
}

fn toml_of(value: &serde_json::Value) -> Result<String, Error> {
    resolved_toml(value).map_err(|e| Error::Data(format!("resolved configuration: {e}")))
}

fn record(experiment: &Experiment, plan: &RunPlan, options: &RunOptions) -> RunRecord {
    let stages = plan
        .stages
        .iter()
        .map(|it| StageRecord {
            name: it.name.clone(),
            kind: it.stage.kind().into(),
            status: None,
            provenance: it.stage.provenance(),
        })
        .collect();
    let versions = [
        ("tallow".to_string(), env!("CARGO_PKG_VERSION").to_string()),
        // Verdicts on programs depend on it.
        #[cfg(feature = "sandbox")]
        ("python".to_string(), tallow_verifiers::code::component_hash().to_string()),
    ];
    RunRecord {
        name: variant_name(plan).unwrap_or_else(|| experiment.name.clone()),
        question: experiment.question.clone(),
        variants: Vec::new(),
        role: plan.variant.as_ref().map(|it| it.role),
        note: plan.variant.as_ref().and_then(|it| it.note.clone()),
        versions: versions.into_iter().collect(),
        command: options.command.clone(),
        seed: plan.seed.0,
        device: device::name_of(options.device.as_ref()),
        threads: options.threads,
        started: String::new(),
        resumed: Vec::new(),
        ended: None,
        status: Status::Running,
        failure: None,
        stages,
    }
}

fn open(
    path: &Path,
    options: &RunOptions,
    record: RunRecord,
    toml: &str,
) -> Result<RunFolder, Error> {
    let opened = if options.resume {
        RunFolder::open_to_resume(path, toml, &[])
    } else {
        RunFolder::create(path, record, toml)
    };
    opened.map_err(Error::from)
}

fn ending(ran: &Result<(), Error>) -> Ending {
    match ran {
        Ok(()) => Ending::Done,
        Err(Error::Interrupted) => Ending::Interrupted,
        Err(error) => Ending::Failed(error.to_string()),
    }
}

/// A flag that Ctrl-C sets; a second Ctrl-C ends the process at once.
fn watch_interrupts() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    let watched = ctrlc::set_handler(move || {
        if set.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
    // Another handler is there already only where an embedding program has its own.
    drop(watched);
    flag
}

/// What all runs of one command share.
struct Sitting<'a> {
    console: &'a Console,
    options: &'a RunOptions,
    interrupted: Arc<AtomicBool>,
}

impl Sitting<'_> {
    fn run(
        &self,
        plan: &RunPlan,
        mut folder: RunFolder,
        shared: Option<Shared>,
    ) -> Result<(), Error> {
        let ran = self.run_stages(plan, &mut folder, shared);
        // The run's own error is the one to tell.
        let noted = folder.finish(ending(&ran));
        ran?;
        noted?;
        Ok(())
    }

    fn run_stages(
        &self,
        plan: &RunPlan,
        folder: &mut RunFolder,
        shared: Option<Shared>,
    ) -> Result<(), Error> {
        let retention = Retention { keep_last: Some(KEPT_CHECKPOINTS), keep_every: None };
        let checkpoints = Checkpoints::new(folder.checkpoints(), retention);
        checkpoints.recover()?;
        crate::files::recover(&folder.path().join(MODELS))?;
        let names: Vec<String> = plan.stages.iter().map(|it| it.name.clone()).collect();
        let skipped = shared.as_ref().map_or(0, |it| it.count);
        let own =
            (skipped..names.len()).take_while(|it| folder.model(&names[*it]).is_dir()).count();
        let first = skipped + own;
        if let Some(Shared { models, .. }) = &shared {
            take_scorers(&plan.stages[..skipped], models, &folder.path().join(MODELS))?;
        }
        // A kill may have come between a stage's model and its record.
        for index in 0..first {
            folder.set_stage(index, Status::Done)?;
        }
        if first == names.len() {
            return Ok(());
        }
        let found = checkpoints.latest_valid(&names[first])?;
        for warning in &found.warnings {
            self.console.line(format!("warning: {warning}"));
        }
        let point = ResumePoint {
            stages: &names,
            stage: &names[first],
            step: found.checkpoint.as_ref().map_or(0, |it| it.step),
        };
        let mut tracker = if found.checkpoint.is_some() {
            let (tracker, _) = Tracker::resume(folder.metrics(), point)?;
            samples::trim_samples(&folder.samples(), point)?;
            tracker
        } else {
            fresh_start(folder, point)?
        };
        let kept = crate::tracking::read_metrics(&folder.metrics())?;
        tracker.add_sink(Box::new(TensorBoard::begin(&folder.tensorboard(), &kept)?));
        // Where the weights that a stage starts from lie.
        let policy = match newest_policy(plan, first) {
            Some(index) if index < skipped => shared.and_then(|it| it.policy),
            own => own.map(|index| folder.model(&names[index])),
        };
        let (mut state, mut base) = match policy {
            Some(model) => {
                let state = ModelState::load(&model)?;
                let base = state.decoder.is_some().then_some(model);
                (state, base)
            }
            None => {
                let given = plan.model.folder.as_ref().map(|it| resolve(it, &plan.folder));
                (ModelState::initial(&plan.model, &plan.folder)?, given)
            }
        };
        for (index, stage) in plan.stages.iter().enumerate().skip(first) {
            folder.set_stage(index, Status::Running)?;
            self.console.line(format!("stage {} ({})", stage.name, stage.stage.kind()));
            let mut run = StageRun {
                name: &stage.name,
                seed: plan.seed.derive(&[hash(&stage.name)]),
                run_seed: plan.seed,
                model: &plan.model,
                folder,
                checkpoints: &checkpoints,
                tracker: &mut tracker,
                console: self.console,
                threads: self.options.threads,
                device: self.options.device.as_ref(),
                interrupted: Arc::clone(&self.interrupted),
            };
            let saved = folder.model(&stage.name);
            state = stage.stage.run(state, &mut run)?;
            replace_folder(&saved, |staging| state.save(staging, base.as_deref()))?;
            if state.scorer.take().is_none() {
                base = state.decoder.is_some().then_some(saved);
            }
            folder.set_stage(index, Status::Done)?;
        }
        Ok(())
    }
}

/// Puts what scores replies among the models of a variant that shares the stages that made it, so that
/// its verifiers find all they need in its own folder. Files of models never change, so links do.
fn take_scorers(stages: &[StagePlan], from: &Path, to: &Path) -> Result<(), StoreError> {
    for stage in stages.iter().filter(|it| !it.stage.leaves_policy()) {
        let (from, to) = (from.join(&stage.name), to.join(&stage.name));
        if to.is_dir() {
            continue;
        }
        replace_folder(&to, |staging| -> Result<(), StoreError> {
            for name in crate::files::files_under(&from)? {
                let (file, copy) = (from.join(&name), staging.join(&name));
                if let Some(folder) = copy.parent() {
                    crate::files::create_folder(folder)?;
                }
                if std::fs::hard_link(&file, &copy).is_err() {
                    std::fs::copy(&file, &copy).map_err(|e| StoreError::new("copy", &file, e))?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// A tracker for a stage that begins: what an earlier try of it logged, step 0 included, goes.
fn fresh_start(folder: &RunFolder, point: ResumePoint<'_>) -> Result<Tracker, StoreError> {
    let before: Vec<String> =
        point.stages.iter().take_while(|it| *it != point.stage).cloned().collect();
    let last = before.last().cloned();
    match last {
        // Everything of the stages before stays.
        Some(stage) => {
            let point = ResumePoint { stages: point.stages, stage: &stage, step: u64::MAX };
            let (tracker, _) = Tracker::resume(folder.metrics(), point)?;
            samples::trim_samples(&folder.samples(), point)?;
            Ok(tracker)
        }
        None => {
            let (path, samples) = (folder.metrics(), folder.samples());
            for stale in [&path, &samples] {
                if stale.is_dir() {
                    crate::files::remove_folder(stale)?;
                } else if stale.exists() {
                    std::fs::remove_file(stale).map_err(|e| StoreError::new("remove", stale, e))?;
                }
            }
            Tracker::create(path)
        }
    }
}

/// What a stage may do with the run it is part of.
pub struct StageRun<'a> {
    name: &'a str,
    seed: Seed,
    run_seed: Seed,
    model: &'a ModelSettings,
    folder: &'a RunFolder,
    checkpoints: &'a Checkpoints,
    tracker: &'a mut Tracker,
    console: &'a Console,
    threads: usize,
    device: Option<&'a Device>,
    interrupted: Arc<AtomicBool>,
}

/// A checkpoint that a stage goes on from.
pub struct Resumed {
    /// Steps that had been made.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
}

impl Resumed {
    /// The stage's own state, as [`save_state`] wrote it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let path = self.path.join(STATE_FILE);
        let bytes = std::fs::read(&path).map_err(|e| Error::file("read", &path, e))?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Data(format!("{}: {e}", path.display())))
    }
}

/// Writes a stage's own state into a checkpoint.
///
/// # Errors
/// If the file cannot be written.
pub fn save_state<T: Serialize>(folder: &Path, state: &T) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(state).expect("a state struct has a JSON form");
    Ok(write_atomic(&folder.join(STATE_FILE), text)?)
}

impl StageRun<'_> {
    /// Seed of this stage: the run's, derived by the stage's name.
    pub fn seed(&self) -> Seed {
        self.seed
    }

    /// Seed of the whole run.
    pub fn run_seed(&self) -> Seed {
        self.run_seed
    }

    /// The `[model]` table.
    pub fn model(&self) -> &ModelSettings {
        self.model
    }

    /// Where to compute; none is the CPU.
    pub fn device(&self) -> Option<&Device> {
        self.device
    }

    /// Lets a verifier load what it judges by, models of earlier stages among it.
    ///
    /// # Errors
    /// If it cannot judge; the error names what it lacks.
    pub fn prepare(&self, verifier: &dyn Verifier) -> Result<(), Error> {
        let models = self.folder.path().join(MODELS);
        verifier
            .prepare(&Preparation { models: Some(&models) })
            .map_err(|error| Error::Data(error.to_string()))
    }

    /// Threads to use.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Set when the user pressed Ctrl-C.
    pub fn interrupted(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.interrupted)
    }

    /// Shows a note.
    pub fn line(&self, text: &str) {
        self.console.line(format!("  {text}"));
    }

    /// A progress bar named for the stage.
    pub fn bar(&self, total: u64, unit: &str) -> Bar {
        self.console.bar(self.name, total, unit)
    }

    /// The checkpoint to go on from, if the stage was stopped after one.
    ///
    /// # Errors
    /// If the checkpoints cannot be read.
    pub fn resume(&self) -> Result<Option<Resumed>, Error> {
        let found = self.checkpoints.latest_valid(self.name)?;
        if let Some(it) = &found.checkpoint {
            self.line(&format!("going on from step {}", it.step));
        }
        Ok(found.checkpoint.map(|it| Resumed { step: it.step, path: it.path }))
    }

    /// Writes a line of metrics.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn metrics(&mut self, step: u64, metrics: &Metrics) -> Result<(), Error> {
        Ok(self.tracker.log(step, self.name, metrics)?)
    }

    /// Writes a checkpoint after step `done` of `total` if one is due every `every` steps, or if
    /// the user interrupted, which then ends the stage; after the last step the stage is as good
    /// as done, and what follows it is interrupted.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once the checkpoint is safe; or what `fill` or the disk says.
    pub fn checkpoint(
        &mut self,
        done: u64,
        total: u64,
        every: u64,
        fill: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let interrupted = self.interrupted.load(Ordering::Relaxed);
        let due = every > 0 && done.is_multiple_of(every) && done < total;
        if due || (interrupted && done < total) {
            self.checkpoints.save(self.name, done, fill)?;
        }
        if interrupted && done < total { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Writes a checkpoint after step `done`, which the user interrupted what follows of.
    ///
    /// # Errors
    /// What `fill` or the disk says.
    pub fn keep(
        &mut self,
        done: u64,
        fill: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.checkpoints.save(self.name, done, fill)?;
        Ok(())
    }

    /// Keeps rollouts for reading and shows some. `credit` is that of each sampled token by group
    /// and member, if they were trained on.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn samples(
        &mut self,
        step: u64,
        groups: &[ScoredGroup],
        credit: Option<&[Vec<Vec<f32>>]>,
        renderer: &crate::renderer::Renderer,
    ) -> Result<(), Error> {
        let mut records = Vec::new();
        for (index, group) in groups.iter().enumerate() {
            for (position, member) in group.members.iter().enumerate() {
                let credit = credit.map_or(&[][..], |it| it[index][position].as_slice());
                records.push(self.sample(step, group, member, credit, renderer));
            }
        }
        samples::write_samples(&self.folder.samples(), self.name, step, &records)?;
        let shown: Vec<SampleRow> = records
            .iter()
            .step_by((records.len() / SHOWN_SAMPLES).max(1))
            .take(SHOWN_SAMPLES)
            .map(|it| SampleRow {
                prompt: it.prompt.clone(),
                reply: it
                    .turns
                    .iter()
                    .map(|turn| turn.text.as_str())
                    .collect::<Vec<_>>()
                    .join(" ⏎ "),
                reward: it.reward,
                advantage: it
                    .turns
                    .iter()
                    .find_map(|it| it.advantages.first())
                    .map(|it| f64::from(*it)),
                tokens: it.reply_tokens as usize,
            })
            .collect();
        self.console.line(format!("step {step}\n{}", samples_table(&shown)));
        Ok(())
    }

    fn sample(
        &self,
        step: u64,
        group: &ScoredGroup,
        member: &ScoredTrajectory,
        credit: &[f32],
        renderer: &crate::renderer::Renderer,
    ) -> SampleRecord {
        let trajectory = &member.trajectory;
        let mut credit = credit;
        let mut turns = Vec::new();
        let mut replies = trajectory.turns.iter();
        for message in &trajectory.transcript.messages[group.task.prompt.len()..] {
            let sampled = match message.role {
                tallow_verifiers::Role::Assistant => replies.next(),
                _ => None,
            };
            let ids = sampled.map_or(&[][..], |it| &trajectory.tokens[it.range.clone()]);
            let (own, later) = credit.split_at(ids.len().min(credit.len()));
            credit = later;
            turns.push(SampleTurn {
                role: role_name(message.role).into(),
                text: message.content.clone(),
                start: sampled.map(|it| it.range.start as u64),
                ids: ids.to_vec(),
                token_texts: renderer.tokenizer().token_texts(ids),
                logprobs: sampled.map_or_else(Vec::new, |it| it.logprobs.clone()),
                advantages: own.to_vec(),
            });
        }
        let id = group.task_id();
        let prompt: Vec<&str> = group.task.prompt.iter().map(|it| it.content.as_str()).collect();
        SampleRecord {
            stage: self.name.to_string(),
            step,
            task: SampleTask {
                split: if id.split == Split::Train { "train" } else { "test" }.into(),
                index: id.index,
            },
            member: trajectory.member as u64,
            prompt: prompt.join("\n"),
            tokens: trajectory.tokens.clone(),
            turns,
            reward: Some(f64::from(member.reward)),
            outcome: text_of(&member.verdict.outcome),
            parts: member.verdict.parts.iter().map(|it| (it.0.clone(), f64::from(it.1))).collect(),
            stop: text_of(&trajectory.transcript.stop),
            reason: member.verdict.reason.clone().unwrap_or_default(),
            reply_tokens: trajectory.sampled_tokens() as u64,
            policy_version: *trajectory.versions.end(),
        }
    }
}

/// Replies in the table on the console.
const SHOWN_SAMPLES: usize = 6;

fn role_name(role: tallow_verifiers::Role) -> &'static str {
    match role {
        tallow_verifiers::Role::System => "system",
        tallow_verifiers::Role::User => "user",
        tallow_verifiers::Role::Assistant => "assistant",
        tallow_verifiers::Role::Tool => "tool",
    }
}

/// The serde name of a unit variant.
fn text_of<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

/// FNV-1a of a stage's name: a stable number to derive its seed by.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl From<RunFolderError> for Error {
    fn from(error: RunFolderError) -> Self {
        match error {
            RunFolderError::Store(error) => Self::Store(error),
            other => Self::Usage { problem: other.to_string(), hint: other.hint() },
        }
    }
}

/// TensorBoard's event files as a sink of metrics.
struct TensorBoard {
    writer: EventWriter,
    path: PathBuf,
}

impl TensorBoard {
    /// Begins the folder anew with the lines of metrics that a resumed run keeps: event files
    /// cannot be cut back to a checkpoint.
    fn begin(folder: &Path, kept: &[MetricLine]) -> Result<Self, StoreError> {
        if folder.is_dir() {
            crate::files::remove_folder(folder)?;
        }
        let writer =
            EventWriter::create(folder).map_err(|e| StoreError::new("write", folder, e))?;
        let mut board = Self { writer, path: folder.to_path_buf() };
        let began = unix_seconds() - kept.last().map_or(0.0, |it| it.time_s);
        for line in kept {
            board.write(began + line.time_s, line.step, &line.stage, &line.metrics)?;
        }
        board.writer.flush().map_err(|e| StoreError::new("write", folder, e))?;
        Ok(board)
    }

    fn write(
        &mut self,
        wall_time: f64,
        step: u64,
        stage: &str,
        metrics: &Metrics,
    ) -> Result<(), StoreError> {
        let names: Vec<(String, f64)> =
            metrics.iter().map(|(name, value)| (format!("{stage}/{name}"), value)).collect();
        let values: Vec<(&str, f64)> = names.iter().map(|it| (it.0.as_str(), it.1)).collect();
        self.writer
            .scalars(wall_time, step, &values)
            .map_err(|e| StoreError::new("write", &self.path, e))
    }
}

impl MetricSink for TensorBoard {
    fn scalars(&mut self, step: u64, stage: &str, metrics: &Metrics) -> Result<(), StoreError> {
        self.write(unix_seconds(), step, stage, metrics)?;
        self.writer.flush().map_err(|e| StoreError::new("write", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_begins_its_event_files_anew_with_what_it_keeps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tensorboard");
        let line = |step: u64| MetricLine {
            step,
            stage: "rl".to_owned(),
            time_s: step as f64,
            metrics: Metrics::from_iter([("rollout/accuracy", 0.5)]),
        };
        let bytes = || -> u64 {
            let names = crate::files::names_in(&path).unwrap();
            assert_eq!(names.len(), 1);
            std::fs::metadata(path.join(&names[0])).unwrap().len()
        };
        let lines: Vec<_> = (1..=9).map(line).collect();
        drop(TensorBoard::begin(&path, &lines).unwrap());
        let whole = bytes();
        let mut board = TensorBoard::begin(&path, &lines[..8]).unwrap();
        board.scalars(9, "rl", &lines[8].metrics).unwrap();
        drop(board);
        assert_eq!(bytes(), whole);
    }
}
