//! A scorer that is a program of the user's, in any language: JSON lines over stdin and stdout.
//!
//! The program reads a request from a line of stdin and answers with a line of stdout, until stdin ends.
//! `exchange.rs` shows both; `examples/reward.py` is a whole one in ten lines. It is started once and kept,
//! `workers` times, in the configuration's folder; each start is followed by a request about no items (id
//! 0), which it answers with no results, so imports and models are loaded before anything is judged.
//! What it writes to stderr is read, and its last lines stand in errors; stdout is for answers alone.
//!
//! | What it does | What follows |
//! |---|---|
//! | ends, or closes stdout, before it answered | a new one is asked the same, once; then the group is unscorable |
//! | takes longer than `timeout_s` | it is killed, the group is unscorable |
//! | writes anything but an answer, or a line longer than `max_reply_bytes` | the same |
//! | does not start, or answers nothing within `start_timeout_s` | the group is unscorable |
//! | gives a result that is none | that item is unscorable |
//!
//! The next group is judged by a new program. Killing takes the whole process group, so also what the
//! program started. Unscorable is dropped and counted, with an error that names the command: no fault of
//! a program makes a reward of 0.

mod child;

use std::{
    collections::BTreeMap,
    env,
    path::{self, Path, PathBuf},
    process::Command,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use self::child::{Child, Fault};
use crate::{
    config_fault::ConfigFault,
    endpoint::seconds,
    error::VerifyError,
    exchange,
    registry::{ContractCase, VerifierConfig, Verifiers},
    transcript::Transcript,
    verifier::{Preparation, Reference, ReferenceKind, Verdict, Verifier},
};

/// Options of the `process` verifier.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessConfig {
    /// The program and its arguments, e.g. `["python3", "reward.py"]`. It runs in the
    /// configuration's folder, from which relative paths start; a bare name is looked up in `PATH`.
    pub command: Vec<String>,
    /// Environment variables that it gets besides those of this process.
    pub env: BTreeMap<String, String>,
    /// How many of it run at a time; 0 is one per processor core.
    pub workers: u32,
    /// Seconds that it may take over one group.
    pub timeout_s: f64,
    /// Seconds that it may take to start.
    pub start_timeout_s: f64,
    /// Bytes that one answer may have.
    pub max_reply_bytes: u64,
}

impl Default for ProcessConfig {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            env: BTreeMap::new(),
            workers: 1,
            timeout_s: 60.0,
            start_timeout_s: 120.0,
            max_reply_bytes: 4 << 20,
        }
    }
}

impl VerifierConfig for ProcessConfig {
    const NAME: &'static str = "process";
    const SUMMARY: &'static str = "a program in any language, JSON lines over stdin and stdout";
    const NEEDS: Option<&'static str> = Some("a program");

    fn build(&self, verifiers: &Verifiers) -> Result<Arc<dyn Verifier>, ConfigFault> {
        let Some(program) = self.command.first().filter(|it| !it.is_empty()) else {
            return Err(ConfigFault::new("command", "there is no program")
                .expected("a program and its arguments")
                .hint("command = [\"python3\", \"reward.py\"]"));
        };
        for name in self.env.keys() {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(ConfigFault::new("env", "not the name of an environment variable")
                    .found(format!("{name:?}")));
            }
        }
        if self.workers > 1024 {
            return Err(ConfigFault::new("workers", "that many cannot work at a time")
                .found(self.workers)
                .expected("0 to 1024"));
        }
        if !(64..=1 << 30).contains(&self.max_reply_bytes) {
            return Err(ConfigFault::new("max_reply_bytes", "the limit is out of range")
                .found(self.max_reply_bytes)
                .expected("64 to 1073741824"));
        }
        let timeout = seconds("timeout_s", self.timeout_s, 0.001)?;
        let start_timeout = seconds("start_timeout_s", self.start_timeout_s, 0.001)?;
        let folder = absolute(verifiers.folder())?;
        let program = found(program, &folder, self.env.get("PATH"))?;
        let workers = match self.workers {
            0 => thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
            workers => workers,
        };
        Ok(Arc::new(Process {
            config: self.clone(),
            program,
            folder,
            timeout,
            start_timeout,
            asked: AtomicU64::new(0),
            idle: Mutex::new((0..workers).map(|_| None).collect()),
            returned: Condvar::new(),
        }))
    }

    fn cases() -> Vec<ContractCase> {
        Vec::new()
    }
}

/// The folder's whole path, since the program is looked for in it and started in it.
fn absolute(folder: &Path) -> Result<PathBuf, ConfigFault> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    path::absolute(folder).map_err(|error| {
        ConfigFault::new("command", format!("no folder to run in: {error}")).found(folder.display())
    })
}

/// Where the program is: under `folder` if it has a path, else in one of the folders of `PATH`.
fn found(program: &str, folder: &Path, path: Option<&String>) -> Result<PathBuf, ConfigFault> {
    let fault = |problem: &str, found: String| {
        Err(ConfigFault::new("command[0]", problem)
            .found(found)
            .expected("a program's name, or its path from the configuration's folder"))
    };
    if Path::new(program).components().count() > 1 || program.starts_with('.') {
        let below = folder.join(program);
        if below.is_file() {
            Ok(below)
        } else {
            fault("no program there", below.display().to_string())
        }
    } else {
        let folders = path.map(Into::into).or_else(|| env::var_os("PATH")).unwrap_or_default();
        let known = env::split_paths(&folders).any(|it| {
            [program.to_owned(), format!("{program}.exe")]
                .iter()
                .any(|name| it.join(name).is_file())
        });
        if known {
            Ok(program.into())
        } else {
            fault("no such program in PATH", format!("`{program}`"))
        }
    }
}

struct Process {
    config: ProcessConfig,
    program: PathBuf,
    folder: PathBuf,
    timeout: Duration,
    start_timeout: Duration,
    /// Groups so far, which numbers the requests.
    asked: AtomicU64,
    /// A place for each worker that nobody uses; those whose program runs last.
    idle: Mutex<Vec<Option<Child>>>,
    returned: Condvar,
}

/// A worker's place, held while it judges.
struct Place<'a> {
    process: &'a Process,
    child: Option<Child>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // A program that failed is ended before others wait for this lock.
        let child = self.child.take().filter(Child::is_sound);
        let mut idle = self.process.idle.lock().unwrap_or_else(PoisonError::into_inner);
        match child {
            None => idle.insert(0, None),
            running => idle.push(running),
        }
        self.process.returned.notify_one();
    }
}

impl Place<'_> {
    /// The program, started if it was not.
    fn child(&mut self) -> Result<&mut Child, String> {
        if self.child.as_ref().is_none_or(|it| !it.is_sound()) {
            // The old one first: two of them might not fit.
            self.child = None;
            self.child = Some(self.process.start()?);
        }
        self.child.as_mut().ok_or_else(|| "does not start".to_owned())
    }
}

impl Process {
    /// A place of a worker that nobody uses, one whose program runs if there is any. Every holder gives its
    /// own back within the timeouts.
    fn place(&self) -> Place<'_> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(child) = idle.pop() {
                return Place { process: self, child };
            }
            idle = self.returned.wait(idle).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A new program that has answered its first request.
    fn start(&self) -> Result<Child, String> {
        let mut command = Command::new(&self.program);
        command.args(&self.config.command[1..]).envs(&self.config.env).current_dir(&self.folder);
        let mut child = Child::start(command, self.config.max_reply_bytes)?;
        let request = exchange::request(0, &[], &Reference::None);
        let answer = child.ask(request, self.start_timeout).map_err(|fault| match fault {
            Fault::Died(told) | Fault::Misbehaved(told) => format!("at its start: {told}"),
        })?;
        match exchange::response(&answer, 0, 0) {
            Ok(_) => Ok(child),
            Err(problem) => {
                child.give_up();
                let told = format!("at its start, to a request about no items, {problem}");
                Err(child.with_last_words(told))
            }
        }
    }

    fn judge(
        &self,
        transcripts: &[Transcript],
        reference: &Reference,
    ) -> Result<Vec<exchange::Result>, String> {
        let id = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let request = exchange::request(id, transcripts, reference);
        let mut place = self.place();
        let child = place.child()?;
        let answer = match child.ask(request.clone(), self.timeout) {
            // It may have died of old age between two groups, and the next one lives.
            Err(Fault::Died(_)) => place.child()?.ask(request, self.timeout),
            answer => answer,
        };
        let answer = answer.map_err(|fault| match fault {
            Fault::Died(told) => format!("twice over the same group: {told}"),
            Fault::Misbehaved(told) => told,
        })?;
        exchange::response(&answer, id, transcripts.len()).map_err(|problem| {
            match &mut place.child {
                Some(child) => {
                    child.give_up();
                    child.with_last_words(format!("{problem} (stdout is for answers alone)"))
                }
                None => problem,
            }
        })
    }

    fn broken(&self, problem: &str) -> VerifyError {
        VerifyError::Broken {
            verifier: ProcessConfig::NAME.to_owned(),
            problem: format!("`{}` {problem}", self.config.command.join(" ")),
        }
    }
}

impl Verifier for Process {
    fn name(&self) -> &str {
        ProcessConfig::NAME
    }

    fn reference_kinds(&self) -> &'static [ReferenceKind] {
        ReferenceKind::ALL
    }

    fn waits(&self) -> bool {
        true
    }

    fn prepare(&self, _: &Preparation<'_>) -> Result<(), VerifyError> {
        self.place().child().map(|_| ()).map_err(|problem| self.broken(&problem))
    }

    fn verify(
        &self,
        transcript: &Transcript,
        reference: &Reference,
    ) -> Result<Verdict, VerifyError> {
        self.verify_group(std::slice::from_ref(transcript), reference).remove(0)
    }

    fn verify_group(
        &self,
        transcripts: &[Transcript],
        reference: &Reference,
    ) -> Vec<Result<Verdict, VerifyError>> {
        if transcripts.is_empty() {
            return Vec::new();
        }
        match self.judge(transcripts, reference) {
            Ok(results) => results
                .into_iter()
                .map(|result| {
                    result.map_err(|problem| self.broken(&format!("gave no verdict: {problem}")))
                })
                .collect(),
            Err(problem) => transcripts.iter().map(|_| Err(self.broken(&problem))).collect(),
        }
    }
}
