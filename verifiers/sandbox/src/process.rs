//! Workers that are processes: this program again, judging programs for the one that started it.
//!
//! A worker that crashes takes no other with it, nor the program that asked. Threads judge about a
//! tenth more programs a second (experiments/LOG.md, 2026-11-27).
//!
//! A job and its report are each a line of JSON on the worker's standard input and output.

use std::{
    env,
    io::{BufRead, BufReader, Write, stdin, stdout},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::OnceLock,
    thread,
};

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::{
    component::{Python, THREAD_STACK},
    error::SandboxError,
    grade::{Grader, Job},
    pool::{Backend, Graded},
};

/// Set in the environment of a worker.
const WORKER: &str = "TALLOW_SANDBOX_WORKER";

/// Set once this program has promised to serve when it is started as a worker.
static SERVES: OnceLock<()> = OnceLock::new();

/// Call first thing in `main`, and leave at once if it says so: this process was started as a
/// worker, and has now done its work. Without this call there are no worker processes.
#[must_use]
pub fn served_as_worker() -> bool {
    if env::var_os(WORKER).is_none() {
        // A second promise adds nothing to the first.
        let _ = SERVES.set(());
        return false;
    }
    let serving = thread::Builder::new().stack_size(THREAD_STACK).spawn(serve);
    if let Ok(serving) = serving {
        // A panic there has been told on standard error; the one who waits sees the pipe close.
        let _ = serving.join();
    }
    true
}

fn serve() {
    let mut grader: Option<Grader> = None;
    for line in stdin().lock().lines() {
        let Ok(line) = line else { return };
        let Ok(job) = serde_json::from_str::<Job>(&line) else { return };
        let graded = match &mut grader {
            Some(grader) => grader.grade(&job),
            None => {
                Python::open(1).and_then(|python| grader.insert(Grader::new(python)).grade(&job))
            }
        };
        let Ok(mut reply) = serde_json::to_string(&graded) else { return };
        reply.push('\n');
        let mut out = stdout().lock();
        if out.write_all(reply.as_bytes()).and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

/// Workers that are processes of their own.
pub(crate) struct Processes {
    queue: Sender<(Job, Sender<Graded>)>,
}

impl Processes {
    pub(crate) fn start(workers: u32) -> Result<Self, SandboxError> {
        if SERVES.get().is_none() {
            return Err(SandboxError::Start(
                "this program does not serve as a worker process; use threads".to_owned(),
            ));
        }
        let (queue, jobs) = bounded::<(Job, Sender<Graded>)>(4 * workers as usize);
        for number in 0..workers {
            let jobs = jobs.clone();
            thread::Builder::new()
                .name(format!("sandbox-{number}"))
                .spawn(move || tend(&jobs))
                .map_err(|error| {
                    SandboxError::Start(format!("no thread can be started: {error}"))
                })?;
        }
        Ok(Self { queue })
    }
}

impl Backend for Processes {
    fn submit(&self, job: Job) -> Receiver<Graded> {
        let (answer, report) = bounded(1);
        // The tending threads never end before the queue does.
        let _ = self.queue.send((job, answer));
        report
    }
}

/// Hands jobs to one worker, and starts another where it died.
fn tend(jobs: &Receiver<(Job, Sender<Graded>)>) {
    let mut worker = None;
    for (job, answer) in jobs {
        let asked = match &mut worker {
            Some(worker) => Worker::ask(worker, &job),
            None => Worker::spawn().and_then(|started| worker.insert(started).ask(&job)),
        };
        if let Err(SandboxError::Died(_)) = asked {
            worker = None;
        }
        // Nobody waiting any more is no concern of the worker's.
        let _ = answer.send(asked);
    }
}

struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Worker {
    fn spawn() -> Result<Self, SandboxError> {
        let failed = |error| SandboxError::Start(format!("no worker can be started: {error}"));
        let program = env::current_exe().map_err(failed)?;
        let mut child = Command::new(program)
            .env(WORKER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => {
                Ok(Self { child, input, output: BufReader::new(output) })
            }
            _ => Err(SandboxError::Start("a worker has no pipes".to_owned())),
        }
    }

    fn ask(&mut self, job: &Job) -> Graded {
        let died = |why: &dyn std::fmt::Display| SandboxError::Died(why.to_string());
        let mut line = serde_json::to_string(job).map_err(|error| died(&error))?;
        line.push('\n');
        self.input.write_all(line.as_bytes()).map_err(|error| died(&error))?;
        let mut reply = String::new();
        let read = self.output.read_line(&mut reply).map_err(|error| died(&error))?;
        if read == 0 {
            return Err(died(&"it closed its pipe"));
        }
        serde_json::from_str::<Graded>(&reply).map_err(|error| died(&error))?
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Gone already, or about to be: either way it is waited for, so that none is left undead.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
