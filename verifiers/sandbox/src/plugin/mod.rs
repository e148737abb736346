//! Verifiers and environments in any language: WebAssembly components after `wit/plugin.wit`.
//!
//! A plugin sees the world that programs see (`wasi.rs`) and what [`Grants`] add to it. Each of its
//! workers is a thread with an instance of its own, opened at its first call. A call that meets a
//! limit, traps or returns nonsense costs that call and its instance; the next opens another.

mod interface;

pub use interface::{
    About, Conversation, Message, Next, Outcome, Reference, ReferenceKind, Role, Split, Stop, Task,
    TestCase, Verdict,
};

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use crossbeam::channel::{Sender, bounded};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use wasmtime::{
    Engine, Store,
    component::{ComponentNamedList, Instance, InstancePre, Lift, Linker, Lower, TypedFunc},
};

use crate::{
    component::{self, Source, THREAD_STACK},
    guest::{End, Limits},
    wasi::{World, link},
};

/// What a plugin may reach besides its arguments; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grants {
    /// Folders that it may read, under the names they have here.
    pub read: Vec<PathBuf>,
    /// Environment variables that it may see.
    pub variables: Vec<String>,
}

/// How a plugin is run.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The component: binary, or text that ends in `.wat`.
    pub path: PathBuf,
    /// Handed to its `open`, as JSON.
    pub options: String,
    /// What each call may use.
    pub limits: Limits,
    /// What it may reach.
    pub grants: Grants,
    /// Calls at a time.
    pub workers: u32,
    /// Seed of its random numbers, and of an environment's tasks.
    pub seed: u64,
}

/// What is wrong with a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PluginError {
    /// It is none, or cannot be run here.
    #[error("{0}")]
    Unusable(String),
    /// A grant names what is not there.
    #[error("{0}")]
    Grant(String),
    /// It does not take its options.
    #[error("{0}")]
    Refused(String),
    /// A call came to nothing: a limit, a trap, nonsense, or the plugin's own error.
    #[error("{0}")]
    Call(String),
}

/// What a component must export to be a plugin of a kind.
pub trait Kind: Sized + Send + 'static {
    /// The interface it exports.
    const INTERFACE: &'static str;
    /// What it says of itself when it is opened.
    type Opened: Send + 'static;

    /// Finds its functions.
    ///
    /// # Errors
    /// Which is missing or of another type.
    fn find(exports: &mut Exports<'_>) -> Result<Self, String>;

    /// Calls its `open`; the inner error is its own.
    ///
    /// # Errors
    /// If the call came to nothing.
    fn open(
        &self,
        store: &mut PluginStore,
        settings: &Settings,
    ) -> wasmtime::Result<Result<Self::Opened, String>>;
}

/// Holds a plugin's memory.
pub type PluginStore = Store<World>;

/// The functions of an instance.
pub struct Exports<'a> {
    instance: &'a Instance,
    store: &'a mut PluginStore,
    interface: &'static str,
}

impl Exports<'_> {
    fn function<Given, Got>(&mut self, name: &str) -> Result<TypedFunc<Given, Got>, String>
    where
        Given: ComponentNamedList + Lower,
        Got: ComponentNamedList + Lift,
    {
        let interface = self.interface;
        let found = self
            .instance
            .get_export_index(&mut *self.store, None, interface)
            .and_then(|it| self.instance.get_export_index(&mut *self.store, Some(&it), name))
            .ok_or_else(|| format!("it does not export `{name}` of `{interface}`"))?;
        self.instance.get_typed_func(&mut *self.store, found).map_err(|error| {
            format!("its `{name}` is not that of `{interface}`: {:#}", error.root_cause())
        })
    }
}

/// What a plugin returns where it may tell an error of its own.
type Told<T> = Result<T, String>;

/// The exports of a verifier.
pub struct VerifierKind {
    open: TypedFunc<(String,), (Told<()>,)>,
    judge: TypedFunc<(Vec<Conversation>,), (Vec<Told<Verdict>>,)>,
}

impl Kind for VerifierKind {
    const INTERFACE: &'static str = "rl:plugin/verifier@0.1.0";
    type Opened = ();

    fn find(exports: &mut Exports<'_>) -> Result<Self, String> {
        Ok(Self { open: exports.function("open")?, judge: exports.function("judge")? })
    }

    fn open(
        &self,
        store: &mut PluginStore,
        settings: &Settings,
    ) -> wasmtime::Result<Result<(), String>> {
        Ok(self.open.call(store, (settings.options.clone(),))?.0)
    }
}

/// The exports of an environment.
pub struct EnvironmentKind {
    open: TypedFunc<(String, u64), (Told<About>,)>,
    task: TypedFunc<(Split, u64), (Told<Task>,)>,
    reply: TypedFunc<(Task, String, u64), (Option<String>,)>,
    step: TypedFunc<(Task, Vec<Message>), (Told<Next>,)>,
}

impl Kind for EnvironmentKind {
    const INTERFACE: &'static str = "rl:plugin/environment@0.1.0";
    type Opened = About;

    fn find(exports: &mut Exports<'_>) -> Result<Self, String> {
        Ok(Self {
            open: exports.function("open")?,
            task: exports.function("get-task")?,
            reply: exports.function("write-reply")?,
            step: exports.function("step")?,
        })
    }

    fn open(
        &self,
        store: &mut PluginStore,
        settings: &Settings,
    ) -> wasmtime::Result<Result<About, String>> {
        Ok(self.open.call(store, (settings.options.clone(), settings.seed))?.0)
    }
}

/// A verifier that is a plugin.
pub type VerifierPlugin = Plugin<VerifierKind>;
/// An environment that is a plugin.
pub type EnvironmentPlugin = Plugin<EnvironmentKind>;

/// A plugin with its workers.
pub struct Plugin<K: Kind> {
    queue: Sender<Call<K>>,
    name: String,
    opened: K::Opened,
}

type Call<K> = Box<dyn FnOnce(&mut Seat<K>) + Send>;

impl<K: Kind> Plugin<K> {
    /// Loads and opens it.
    ///
    /// # Errors
    /// If it is no plugin of this kind, or refuses its options.
    pub fn start(settings: Settings) -> Result<Self, PluginError> {
        let workers = settings.workers.max(1);
        let name = settings
            .path
            .file_stem()
            .map_or_else(|| "plugin".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let opener = Arc::new(Opener::load(settings)?);
        let (queue, calls) = bounded::<Call<K>>(4 * workers as usize);
        for number in 0..workers {
            let mut seat = Seat { opener: Arc::clone(&opener), live: None };
            let calls = calls.clone();
            thread::Builder::new()
                .name(format!("plugin-{number}"))
                .stack_size(THREAD_STACK)
                .spawn(move || {
                    for call in calls {
                        call(&mut seat);
                    }
                })
                .map_err(|error| {
                    PluginError::Unusable(format!("no thread can be started: {error}"))
                })?;
        }
        let opened = on_worker(&queue, |seat| seat.open())?;
        Ok(Self { queue, name, opened })
    }

    /// The name of its file, without ending.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it said of itself.
    pub fn opened(&self) -> &K::Opened {
        &self.opened
    }
}

/// Runs `work` on one of the workers and waits for it.
fn on_worker<K: Kind, T: Send + 'static>(
    queue: &Sender<Call<K>>,
    work: impl FnOnce(&mut Seat<K>) -> Result<T, PluginError> + Send + 'static,
) -> Result<T, PluginError> {
    let gone = || PluginError::Call("its worker died".to_owned());
    let (answer, result) = bounded(1);
    let call: Call<K> = Box::new(move |seat| {
        // The caller waits; were it gone, nobody wants the result.
        let _ = answer.send(work(seat));
    });
    queue.send(call).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

impl VerifierPlugin {
    /// Judges conversations, one result for each. Where judging them together comes to nothing,
    /// each is judged by itself, so that one that the plugin cannot bear costs no other its
    /// verdict.
    pub fn judge(&self, batch: Vec<Conversation>) -> Vec<Result<Verdict, PluginError>> {
        let judged = |batch: Vec<Conversation>| {
            let count = batch.len();
            on_worker(&self.queue, move |seat| {
                let verdicts =
                    seat.call("judge", |kind, store| kind.judge.call(store, (batch,)))?;
                if verdicts.0.len() == count {
                    return Ok(verdicts.0);
                }
                let told = format!("`judge` gave {} verdicts for {count}", verdicts.0.len());
                Err(PluginError::Call(told))
            })
        };
        let one = |verdict: Result<Verdict, String>| {
            let verdict = verdict.map_err(PluginError::Call)?;
            if verdict.reward.is_finite() && verdict.parts.iter().all(|part| part.1.is_finite()) {
                return Ok(verdict);
            }
            Err(PluginError::Call("`judge` gave a reward or a part that is not finite".to_owned()))
        };
        match judged(batch.clone()) {
            Ok(verdicts) => verdicts.into_iter().map(one).collect(),
            Err(error) if batch.len() == 1 => vec![Err(error)],
            Err(_) => batch
                .into_iter()
                .map(|it| judged(vec![it]).and_then(|mut verdicts| one(verdicts.swap_remove(0))))
                .collect(),
        }
    }
}

impl EnvironmentPlugin {
    /// The task of an index.
    ///
    /// # Errors
    /// If the call came to nothing, or there is no such task.
    pub fn task(&self, split: Split, index: u64) -> Result<Task, PluginError> {
        on_worker(&self.queue, move |seat| {
            let task =
                seat.call("get-task", |kind, store| kind.task.call(store, (split, index)))?;
            task.0.map_err(PluginError::Call)
        })
    }

    /// A right reply to a task.
    ///
    /// # Errors
    /// If the call came to nothing.
    pub fn reply(
        &self,
        task: Task,
        style: String,
        seed: u64,
    ) -> Result<Option<String>, PluginError> {
        on_worker(&self.queue, move |seat| {
            let given = (task, style, seed);
            Ok(seat.call("write-reply", |kind, store| kind.reply.call(store, given))?.0)
        })
    }

    /// What follows the last of an episode's messages.
    ///
    /// # Errors
    /// If the call came to nothing, or the plugin says so.
    pub fn step(&self, task: Task, messages: Vec<Message>) -> Result<Next, PluginError> {
        on_worker(&self.queue, move |seat| {
            let next = seat.call("step", |kind, store| kind.step.call(store, (task, messages)))?;
            next.0.map_err(PluginError::Call)
        })
    }
}

/// A plugin, ready to be instantiated.
struct Opener {
    engine: Engine,
    ready: InstancePre<World>,
    settings: Settings,
}

impl Opener {
    fn load(settings: Settings) -> Result<Self, PluginError> {
        let shown = settings.path.display().to_string();
        let unusable = |why: String| PluginError::Unusable(why);
        let bytes = fs::read(&settings.path)
            .map_err(|error| unusable(format!("cannot read the file {shown}: {error}")))?;
        for folder in &settings.grants.read {
            if !folder.is_dir() {
                let told = format!("there is no folder {}", folder.display());
                return Err(PluginError::Grant(told));
            }
        }
        let engine =
            Engine::new(&component::config()).map_err(|error| unusable(format!("{error:#}")))?;
        let source = Source::plugin(&shown, bytes);
        let component = component::compiled(&engine, &source)
            .map_err(|error| unusable(format!("{shown} is no component: {error}")))?;
        let mut linker = Linker::new(&engine);
        link(&mut linker)
            .and_then(|()| link_host(&mut linker))
            .map_err(|error| unusable(format!("{error:#}")))?;
        let ready = linker.instantiate_pre(&component).map_err(|error| {
            unusable(format!("{shown} asks for what plugins do not get: {error:#}"))
        })?;
        component::tick(&engine).map_err(|error| unusable(error.to_string()))?;
        Ok(Self { engine, ready, settings })
    }
}

/// Adds what only plugins may import.
fn link_host(linker: &mut Linker<World>) -> wasmtime::Result<()> {
    linker.instance("rl:plugin/host@0.1.0")?.func_wrap(
        "log",
        |mut store: wasmtime::StoreContextMut<'_, World>, (text,): (String,)| {
            store.data_mut().log(text);
            Ok(())
        },
    )
}

/// A worker's place: its instance, if it has one.
struct Seat<K: Kind> {
    opener: Arc<Opener>,
    live: Option<(PluginStore, K)>,
}

impl<K: Kind> Seat<K> {
    /// A fresh instance, and what it says of itself.
    fn open(&mut self) -> Result<K::Opened, PluginError> {
        let Opener { engine, ready, settings } = &*self.opener;
        let limits = settings.limits;
        let world = World::granted(limits, settings.seed, &settings.grants)
            .map_err(|error| PluginError::Grant(format!("{error:#}")))?;
        let mut store = Store::new(engine, world);
        store.limiter(|world| &mut world.limits);
        limits.refill(&mut store);
        let failed = |store: &PluginStore, what: &str, error: &wasmtime::Error| {
            PluginError::Unusable(told(store, what, error, limits))
        };
        let instance =
            ready.instantiate(&mut store).map_err(|error| failed(&store, "its start", &error))?;
        let mut exports =
            Exports { instance: &instance, store: &mut store, interface: K::INTERFACE };
        let kind = K::find(&mut exports).map_err(PluginError::Unusable)?;
        let opened = kind
            .open(&mut store, settings)
            .map_err(|error| failed(&store, "`open`", &error))?
            .map_err(PluginError::Refused)?;
        show(&mut store, &settings.path);
        self.live = Some((store, kind));
        Ok(opened)
    }

    /// One call. Its instance is given up if the call comes to nothing.
    fn call<T>(
        &mut self,
        what: &str,
        call: impl FnOnce(&K, &mut PluginStore) -> wasmtime::Result<T>,
    ) -> Result<T, PluginError> {
        if self.live.is_none() {
            self.open().map_err(|error| PluginError::Call(error.to_string()))?;
        }
        let limits = self.opener.settings.limits;
        let Some((mut store, kind)) = self.live.take() else {
            return Err(PluginError::Call("it does not open".to_owned()));
        };
        limits.refill(&mut store);
        let result = call(&kind, &mut store);
        show(&mut store, &self.opener.settings.path);
        match result {
            Ok(result) => {
                // What it prints is for nobody.
                let _ = store.data().take_output();
                self.live = Some((store, kind));
                Ok(result)
            }
            Err(error) => {
                Err(PluginError::Call(told(&store, &format!("`{what}`"), &error, limits)))
            }
        }
    }
}

/// Shows what a plugin logged.
fn show(store: &mut PluginStore, path: &Path) {
    for line in store.data_mut().take_log() {
        component::notice(&format!("{}: {line}", path.display()));
    }
}

/// Why a call came to nothing.
fn told(store: &PluginStore, what: &str, error: &wasmtime::Error, limits: Limits) -> String {
    match End::of(store, error) {
        End::Fuel => {
            format!("{what} took more than {} million instructions", limits.fuel_millions)
        }
        End::Memory => format!("{what} took more than {} MiB of memory", limits.memory_mib),
        End::Output => format!("{what} wrote more than {} KiB", limits.output_kib),
        End::Stack => format!("{what} nested its calls too deeply"),
        End::Exit(status) => format!("{what} left with status {status}"),
        End::Backstop => format!("{what} took longer than {} s", limits.backstop_s),
        End::Crash(why) => {
            // Where a language has exceptions, the last line of what it wrote names them.
            let (_, stderr) = store.data().take_output();
            let last = stderr.lines().rev().find(|line| !line.trim().is_empty());
            match last {
                Some(last) => format!("{what} failed: {}", last.trim()),
                None => format!("{what} failed: {why}"),
            }
        }
    }
}
