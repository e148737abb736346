//! Threads around episodes: workers play, one engine thread samples, rayon judges.
//!
//! ```text
//! pool (caller) ──Job::Start──▶ workers ──ToEngine::Request──▶ engine thread
//!      ▲  ▲                      │   ▲                              │
//!      │  └──Event::Ended────────┘   └────────Job::Reply────────────┘
//!      └──Event::Scored── rayon, or judge threads (one job per complete group)
//! ```
//!
//! A verifier that waits for something outside (a program, a server) judges on threads of its own: on
//! rayon's it would hold up the matrix products of everybody else.
//!
//! Channels are bounded by the episodes in flight, which the pool limits: a slow learner slows the
//! rollouts. The engine never waits for a worker: its channel holds every episode in flight.
//!
//! Lockstep: the engine waits until every live episode has asked, sorts the requests by episode and
//! samples them all before it listens again. Which thread ran first then changes nothing, and a
//! step repeats bit for bit. Free-running: requests join the batch as they come.
//!
//! Shutdown is the drop of the pool: it tells the engine to stop, which closes the workers' mailbox;
//! all threads are joined.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use tallow_envs::{Environment, Seed, Split, Task};
use tallow_policies::{
    Completion, Decoder, Engine, PolicyError, PolicyVersion, Request, SamplingParams,
};

use super::episode::{EpisodePlan, LiveEpisode, Next, contained};
use super::scoring::Scoring;
use super::trajectory::{ScoredGroup, Trajectory};
use crate::error::Error;
use crate::renderer::Renderer;

/// Groups that a verifier which waits judges at a time.
const JUDGES: usize = 16;

/// How often a waiting pool looks whether the user pressed Ctrl-C.
const INTERRUPT_POLL: Duration = Duration::from_millis(50);

/// Threads and limits of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Worker threads that play episodes.
    pub threads: usize,
    /// Replies sampled at once.
    pub slots: usize,
    /// A bound on the memory of keys and values.
    pub cache_bytes: Option<usize>,
    /// Most episodes in flight, at least the largest group; what is asked for beyond waits.
    pub episodes: usize,
    /// Most replies in one episode.
    pub max_turns: usize,
    /// Whether to run in lockstep, see the file's header.
    pub lockstep: bool,
}

/// One group to be played.
#[derive(Clone)]
pub struct GroupPlan {
    /// Which half of the environment.
    pub split: Split,
    /// Which task of it.
    pub index: u64,
    /// How many siblings.
    pub size: usize,
    /// How their replies are sampled.
    pub params: Arc<SamplingParams>,
    /// Seeds the siblings' replies.
    pub seed: Seed,
}

/// Plays groups in parallel and hands them back in the order they were asked for.
pub struct RolloutPool {
    environment: Arc<dyn Environment>,
    scoring: Scoring,
    limits: PoolLimits,
    jobs: Option<Sender<Job>>,
    engine: Option<Sender<ToEngine>>,
    /// Where complete groups go to, if the verifier waits.
    judges: Option<Sender<Verdicts>>,
    events: Receiver<Event>,
    events_in: Sender<Event>,
    threads: Vec<JoinHandle<()>>,
    interrupted: Arc<AtomicBool>,
    /// Set on shutdown; the engine looks between two tokens.
    stopping: Arc<AtomicBool>,
    /// Groups started and not yet handed out, by number.
    groups: BTreeMap<u64, Pending>,
    next_group: u64,
    next_episode: u64,
    in_flight: usize,
}

/// A group being played or waiting to be handed out.
struct Pending {
    task: Arc<Task>,
    seed: Seed,
    size: usize,
    trajectories: Vec<Trajectory>,
    errors: Vec<String>,
    scored: Option<ScoredGroup>,
}

enum Job {
    Start(Box<EpisodePlan>),
    Reply(Box<LiveEpisode>, Completion),
}

enum ToEngine {
    /// So many episodes begin; lockstep waits for each to ask or to end.
    Begin(usize),
    Request(Request, Box<LiveEpisode>),
    /// An episode ended, well or not, and will not ask again.
    Ended,
    Publish(Box<Decoder>, PolicyVersion),
    /// The pool is going down. Needed because workers and engine hold each other's mailboxes open.
    Stop,
}

enum Event {
    Ended { group: u64, outcome: Result<Trajectory, String> },
    Scored { group: u64, scored: ScoredGroup },
    EngineFailed(Error),
}

impl RolloutPool {
    /// Starts the threads, and an engine that samples with `decoder`'s weights. `interrupted` makes
    /// a waiting call return [`Error::Interrupted`].
    ///
    /// # Errors
    /// If the model's configuration allows no cache.
    pub fn new(
        decoder: &Decoder,
        renderer: &Arc<Renderer>,
        environment: Arc<dyn Environment>,
        scoring: Scoring,
        limits: PoolLimits,
        interrupted: Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        let mut engine = Engine::new(decoder, Arc::clone(renderer.tokenizer()), limits.slots)?;
        if let Some(bytes) = limits.cache_bytes {
            engine = engine.with_cache_bytes(bytes);
        }
        let room = limits.episodes.max(1);
        let judges = scoring.verifier.waits().then(|| judges(room));
        let (jobs, job_box) = bounded(room);
        let (to_engine, mailbox) = bounded(limits.threads.max(1) * 4);
        // Ended and Scored of every episode in flight, and a failure.
        let (events_in, events) = bounded(2 * room + 1);
        let stopping = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for number in 0..limits.threads.max(1) {
            let worker = Worker {
                environment: Arc::clone(&environment),
                renderer: Arc::clone(renderer),
                jobs: job_box.clone(),
                engine: to_engine.clone(),
                events: events_in.clone(),
            };
            threads.push(spawn(&format!("rollout-{number}"), move || worker.run()));
        }
        let loop_ = EngineLoop {
            engine,
            mailbox,
            jobs: jobs.clone(),
            events: events_in.clone(),
            waiting: HashMap::new(),
            lockstep: limits.lockstep,
            stopping: Arc::clone(&stopping),
        };
        threads.push(spawn("engine", move || loop_.run()));
        Ok(Self {
            environment,
            scoring,
            limits,
            jobs: Some(jobs),
            engine: Some(to_engine),
            judges,
            events,
            events_in,
            threads,
            interrupted,
            stopping,
            groups: BTreeMap::new(),
            next_group: 0,
            next_episode: 0,
            in_flight: 0,
        })
    }

    /// What is played.
    pub fn environment(&self) -> &dyn Environment {
        &*self.environment
    }

    /// Samples with `decoder`'s weights from now on.
    ///
    /// # Errors
    /// If the engine thread is gone.
    pub fn publish(&self, decoder: Decoder, version: PolicyVersion) -> Result<(), Error> {
        self.tell_engine(ToEngine::Publish(Box::new(decoder), version))
    }

    /// Starts groups, waiting for room where too many episodes are in flight.
    ///
    /// # Errors
    /// If a group is empty, a task cannot be made, the engine failed, or the user interrupted.
    pub fn start(&mut self, plans: &[GroupPlan]) -> Result<(), Error> {
        if plans.iter().any(|it| it.size == 0) {
            // It would never be complete, and who waits for it would wait for ever.
            return Err(Error::Data("a group of no replies to sample".into()));
        }
        if self.limits.lockstep {
            // As one: an engine told of them one by one may begin before it hears of the last, and
            // what is sampled together would depend on the threads.
            while self.in_flight > 0 {
                self.handle_event()?;
            }
            return self.begin(plans);
        }
        for plan in plans {
            while self.in_flight > 0 && self.in_flight + plan.size > self.limits.episodes {
                self.handle_event()?;
            }
            self.begin(std::slice::from_ref(plan))?;
        }
        Ok(())
    }

    /// Hands out the oldest `count` groups, in the order they were started.
    ///
    /// # Errors
    /// If the engine failed or the user interrupted.
    pub fn finish(&mut self, count: usize) -> Result<Vec<ScoredGroup>, Error> {
        let mut finished = Vec::with_capacity(count);
        while finished.len() < count {
            match self.groups.first_entry() {
                Some(entry) if entry.get().scored.is_some() => {
                    finished.extend(entry.remove().scored);
                }
                Some(_) => self.handle_event()?,
                None => break,
            }
        }
        Ok(finished)
    }

    /// Plays groups from start to end, as many at once as fit.
    ///
    /// In lockstep each batch is complete before the next begins, so that what is sampled together
    /// depends on `plans` alone.
    ///
    /// # Errors
    /// As [`start`](Self::start) and [`finish`](Self::finish).
    pub fn play(
        &mut self,
        plans: &[GroupPlan],
        mut done: impl FnMut(usize),
    ) -> Result<Vec<ScoredGroup>, Error> {
        let mut finished = Vec::with_capacity(plans.len());
        let mut rest = plans;
        while !rest.is_empty() {
            let mut episodes = 0;
            let fitting = rest
                .iter()
                .take_while(|it| {
                    episodes += it.size;
                    episodes <= self.limits.episodes
                })
                .count()
                .max(1);
            let (batch, later) = rest.split_at(fitting);
            self.begin(batch)?;
            for _ in batch {
                finished.extend(self.finish(1)?);
                done(finished.len());
            }
            rest = later;
        }
        Ok(finished)
    }

    fn begin(&mut self, plans: &[GroupPlan]) -> Result<(), Error> {
        let episodes: usize = plans.iter().map(|it| it.size).sum();
        // With more in flight than the channels hold, engine and workers would wait for each other.
        if self.in_flight + episodes > self.limits.episodes {
            let most = self.limits.episodes;
            return Err(Error::Sampling(format!("{episodes} episodes at once, at most {most}")));
        }
        let mut starting = Vec::with_capacity(episodes);
        for plan in plans {
            let environment = &self.environment;
            let task = contained("making the task", || environment.task(plan.split, plan.index))
                .map_err(Error::Environment)?
                .map_err(|e| Error::Environment(e.to_string()))?;
            let task = Arc::new(task);
            let group = self.next_group;
            self.next_group += 1;
            for member in 0..plan.size {
                starting.push(EpisodePlan {
                    id: self.next_episode,
                    group,
                    member,
                    task: Arc::clone(&task),
                    params: Arc::clone(&plan.params),
                    seed: plan.seed.derive(&[member as u64]),
                    max_turns: self.limits.max_turns,
                });
                self.next_episode += 1;
            }
            let pending = Pending {
                task,
                seed: plan.seed,
                size: plan.size,
                trajectories: Vec::with_capacity(plan.size),
                errors: Vec::new(),
                scored: None,
            };
            self.groups.insert(group, pending);
        }
        self.in_flight += episodes;
        self.tell_engine(ToEngine::Begin(episodes))?;
        for plan in starting {
            let jobs = self.jobs.as_ref().expect("the pool is open until it is dropped");
            jobs.send(Job::Start(Box::new(plan))).map_err(|_| engine_gone())?;
        }
        Ok(())
    }

    fn tell_engine(&self, message: ToEngine) -> Result<(), Error> {
        let engine = self.engine.as_ref().expect("the pool is open until it is dropped");
        engine.send(message).map_err(|_| engine_gone())
    }

    fn handle_event(&mut self) -> Result<(), Error> {
        let event = loop {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            match self.events.recv_timeout(INTERRUPT_POLL) {
                Ok(event) => break event,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(engine_gone()),
            }
        };
        match event {
            Event::EngineFailed(error) => Err(error),
            Event::Scored { group, scored } => {
                if let Some(pending) = self.groups.get_mut(&group) {
                    pending.scored = Some(scored);
                }
                Ok(())
            }
            Event::Ended { group, outcome } => {
                self.in_flight -= 1;
                let Some(pending) = self.groups.get_mut(&group) else { return Ok(()) };
                match outcome {
                    Ok(trajectory) => pending.trajectories.push(trajectory),
                    Err(problem) => pending.errors.push(problem),
                }
                if pending.trajectories.len() + pending.errors.len() == pending.size {
                    let verdicts =
                        judged(group, pending, self.scoring.clone(), self.events_in.clone());
                    match &self.judges {
                        // Its room is for all episodes in flight, so it never blocks.
                        Some(judges) => drop(judges.send(verdicts)),
                        None => rayon::spawn(verdicts),
                    }
                }
                Ok(())
            }
        }
    }
}

/// Judges a complete group and tells the pool.
type Verdicts = Box<dyn FnOnce() + Send>;

/// Threads for a verifier that waits, at most one for each of `room` groups. They end when the pool
/// drops their mailbox; nobody joins them, for what they wait for may take its time, and a verdict that
/// comes too late is dropped.
fn judges(room: usize) -> Sender<Verdicts> {
    let (sender, mailbox) = bounded::<Verdicts>(room);
    for number in 0..room.min(JUDGES) {
        let mailbox = mailbox.clone();
        drop(spawn(&format!("judge-{number}"), move || {
            while let Ok(verdicts) = mailbox.recv() {
                verdicts();
            }
        }));
    }
    sender
}

/// The judging of a complete group, still to be done.
fn judged(group: u64, pending: &mut Pending, scoring: Scoring, events: Sender<Event>) -> Verdicts {
    let mut trajectories = std::mem::take(&mut pending.trajectories);
    trajectories.sort_by_key(|it| it.member);
    let mut errors = std::mem::take(&mut pending.errors);
    errors.sort_unstable();
    let (task, seed) = (Arc::clone(&pending.task), pending.seed);
    Box::new(move || {
        let scored = scoring.score(&task, trajectories, errors, seed);
        // The pool may be gone already; then nobody waits for this group.
        drop(events.send(Event::Scored { group, scored }));
    })
}

impl Drop for RolloutPool {
    fn drop(&mut self) {
        self.jobs = None;
        self.judges = None;
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(engine) = self.engine.take() {
            drop(engine.send(ToEngine::Stop));
        }
        // Threads may be blocked on sending to a full channel; empty it until they have gone.
        while self.threads.iter().any(|it| !it.is_finished()) {
            drop(self.events.recv_timeout(Duration::from_millis(5)));
        }
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// Plays episodes. Mailbox: [`Job`]; ends when the pool and the engine have dropped their senders.
struct Worker {
    environment: Arc<dyn Environment>,
    renderer: Arc<Renderer>,
    jobs: Receiver<Job>,
    engine: Sender<ToEngine>,
    events: Sender<Event>,
}

impl Worker {
    fn run(self) {
        while let Ok(job) = self.jobs.recv() {
            let sent = match job {
                Job::Start(plan) => {
                    let group = plan.group;
                    match LiveEpisode::start(*plan, &*self.environment, &self.renderer) {
                        Ok((episode, next)) => self.go_on(Box::new(episode), next),
                        Err(problem) => self.ended(group, Err(problem)),
                    }
                }
                Job::Reply(mut episode, completion) => {
                    match episode.reply(completion, &self.renderer) {
                        Ok(next) => self.go_on(episode, next),
                        Err(problem) => self.ended(episode.group, Err(problem)),
                    }
                }
            };
            if !sent {
                return;
            }
        }
    }

    /// False when nobody listens any more.
    fn go_on(&self, episode: Box<LiveEpisode>, next: Next) -> bool {
        match next {
            Next::Reply(request) => self.engine.send(ToEngine::Request(request, episode)).is_ok(),
            Next::Ended(trajectory) => self.ended(episode.group, Ok(trajectory)),
        }
    }

    fn ended(&self, group: u64, outcome: Result<Trajectory, String>) -> bool {
        self.events.send(Event::Ended { group, outcome }).is_ok()
            && self.engine.send(ToEngine::Ended).is_ok()
    }
}

/// Samples. Mailbox: [`ToEngine`]; ends when the pool has dropped its sender, or on a failure,
/// which it reports.
struct EngineLoop {
    engine: Engine,
    mailbox: Receiver<ToEngine>,
    jobs: Sender<Job>,
    events: Sender<Event>,
    /// Episodes whose reply is being sampled.
    waiting: HashMap<u64, Box<LiveEpisode>>,
    lockstep: bool,
    stopping: Arc<AtomicBool>,
}

impl EngineLoop {
    fn run(mut self) {
        let ran = contained("the engine", || {
            if self.lockstep { self.run_lockstep() } else { self.run_free() }
        });
        let error = match ran {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(panic) => Error::Sampling(panic),
        };
        drop(self.events.send(Event::EngineFailed(error)));
    }

    fn run_lockstep(&mut self) -> Result<(), Error> {
        let mut asked: Vec<Request> = Vec::new();
        let mut live = 0;
        loop {
            while live == 0 || asked.len() < live {
                match self.mailbox.recv() {
                    Ok(ToEngine::Begin(count)) => live += count,
                    Ok(ToEngine::Ended) => live -= 1,
                    Ok(ToEngine::Publish(decoder, version)) => {
                        self.engine.publish(&decoder, version);
                    }
                    Ok(ToEngine::Request(request, episode)) => {
                        self.waiting.insert(request.id, episode);
                        asked.push(request);
                    }
                    Ok(ToEngine::Stop) | Err(_) => return Ok(()),
                }
            }
            asked.sort_by_key(|it| it.id);
            for request in asked.drain(..) {
                self.engine.submit(request);
            }
            while !self.engine.is_idle() {
                if self.stopping.load(Ordering::Relaxed) {
                    return Ok(());
                }
                self.sample()?;
            }
        }
    }

    fn run_free(&mut self) -> Result<(), Error> {
        loop {
            loop {
                let message = if self.engine.is_idle() {
                    self.mailbox.recv().map_err(|_| TryRecvError::Disconnected)
                } else {
                    self.mailbox.try_recv()
                };
                match message {
                    Ok(ToEngine::Begin(_) | ToEngine::Ended) => {}
                    Ok(ToEngine::Publish(decoder, version)) => {
                        self.engine.publish(&decoder, version);
                    }
                    Ok(ToEngine::Request(request, episode)) => {
                        self.waiting.insert(request.id, episode);
                        self.engine.submit(request);
                    }
                    Err(TryRecvError::Empty) => break,
                    Ok(ToEngine::Stop) | Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            self.sample()?;
        }
    }

    fn sample(&mut self) -> Result<(), Error> {
        let finished = self.engine.step().map_err(|e| match e {
            PolicyError::NotFinite { .. } => Error::Diverged(e.to_string()),
            other => Error::Sampling(other.to_string()),
        })?;
        for (id, completion) in finished {
            let episode = self.waiting.remove(&id).expect("a finished request was waited for");
            // A closed channel means the pool is going down; the mailbox will say so next.
            drop(self.jobs.send(Job::Reply(episode, completion)));
        }
        Ok(())
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new()
        .name(name.to_string())
        .spawn(work)
        .expect("the system can start a thread")
}

fn engine_gone() -> Error {
    Error::Sampling("the engine thread has ended".into())
}
