//! Workers: one thread each, with a judge's instance of its own and a bounded queue before it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::{
    component::{Python, THREAD_STACK},
    error::SandboxError,
    grade::{Grader, Job, Report},
};

/// What became of a job.
pub type Graded = Result<Report, SandboxError>;

/// Where jobs go and reports come from.
pub(crate) trait Backend: Send + Sync {
    /// Queues a job; waits while the queue is full.
    fn submit(&self, job: Job) -> Receiver<Graded>;
}

/// Workers that are threads of this process.
pub(crate) struct Threads {
    queue: Sender<(Job, Sender<Graded>)>,
}

impl Threads {
    pub(crate) fn start(workers: u32) -> Result<Self, SandboxError> {
        let python = Python::open(workers)?;
        let (queue, jobs) = bounded::<(Job, Sender<Graded>)>(4 * workers as usize);
        for number in 0..workers {
            let (python, jobs) = (python.clone(), jobs.clone());
            thread::Builder::new()
                .name(format!("sandbox-{number}"))
                .stack_size(THREAD_STACK)
                .spawn(move || work(&python, &jobs))
                .map_err(|error| {
                    SandboxError::Start(format!("no thread can be started: {error}"))
                })?;
        }
        Ok(Self { queue })
    }
}

impl Backend for Threads {
    fn submit(&self, job: Job) -> Receiver<Graded> {
        let (answer, report) = bounded(1);
        // Workers outlive every panic, so the queue is open as long as they are wanted; were it
        // not, `answer` is dropped and the receiver says so.
        let _ = self.queue.send((job, answer));
        report
    }
}

fn work(python: &Python, jobs: &Receiver<(Job, Sender<Graded>)>) {
    let mut grader = Grader::new(python.clone());
    for (job, answer) in jobs {
        let graded = catch_unwind(AssertUnwindSafe(|| grader.grade(&job))).unwrap_or_else(|_| {
            // Whatever state it left is not looked at again.
            grader = Grader::new(python.clone());
            Err(SandboxError::Died("it panicked".to_owned()))
        });
        // Nobody waiting any more is no concern of the worker's.
        let _ = answer.send(graded);
    }
}
