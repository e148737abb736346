//! One instance of the component: started, asked, and why it ended.

use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wasmtime::{
    Store, Trap,
    component::{Instance, TypedFunc},
};
use wasmtime_wasi::I32Exit;

use crate::{
    component::{MOST_MEMORY, Python, TICK},
    error::SandboxError,
    memory::{Regions, Snapshot, made_by},
    wasi::{OutputFull, World},
};

/// How much a program may use. Fuel decides: it is the same on every machine and under every load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// WebAssembly instructions over all of a program's tests, or of each test where each has an
    /// instance of its own, in millions; about ten thousand of them are a second, and CPython
    /// here needs about three times the time it needs natively.
    pub fuel_millions: u64,
    /// Memory, in MiB, 64 to 1024; the interpreter itself takes about 30.
    pub memory_mib: u32,
    /// What may be written to standard output, and to standard error, in KiB.
    pub output_kib: u32,
    /// Python's recursion limit.
    pub recursion: u32,
    /// Seconds of wall-clock time after which the sandbox gives up without a verdict.
    pub backstop_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            fuel_millions: 100_000,
            memory_mib: 256,
            output_kib: 1024,
            recursion: 1000,
            backstop_s: 120,
        }
    }
}

impl Limits {
    pub(crate) fn fuel(&self) -> u64 {
        self.fuel_millions.saturating_mul(1_000_000)
    }

    pub(crate) fn output(&self) -> usize {
        (self.output_kib as usize) << 10
    }

    pub(crate) fn memory(&self) -> usize {
        ((self.memory_mib as usize) << 20).min(MOST_MEMORY)
    }

    fn ticks(&self) -> u64 {
        let tick = TICK.as_millis() as u64;
        Duration::from_secs(self.backstop_s).as_millis() as u64 / tick + 1
    }

    /// Gives an instance the fuel and time of a new one.
    pub(crate) fn refill(&self, store: &mut Store<World>) {
        store.set_fuel(self.fuel()).expect("every engine of this crate counts fuel");
        store.data_mut().fuel = self.fuel();
        store.set_epoch_deadline(self.ticks());
    }
}

/// Why a program's instance is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Fuel,
    Memory,
    Output,
    Stack,
    /// The interpreter ended itself: `os._exit`, with this status.
    Exit(i32),
    /// The interpreter broke down.
    Crash(String),
    Backstop,
}

impl End {
    /// What a failed call into the instance of `store` means.
    pub(crate) fn of(store: &Store<World>, error: &wasmtime::Error) -> Self {
        if error.downcast_ref::<OutputFull>().is_some() {
            return Self::Output;
        }
        if let Some(exit) = error.downcast_ref::<I32Exit>() {
            return Self::Exit(exit.0);
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::OutOfFuel) => Self::Fuel,
            Some(Trap::StackOverflow) => Self::Stack,
            Some(Trap::Interrupt) => Self::Backstop,
            // CPython gives up by a trap where an allocation that it cannot do without fails.
            _ if store.data().limits.met => Self::Memory,
            _ => Self::Crash(format!("{:#}", error.root_cause())),
        }
    }
}

/// Bytes of a reply to the judge. Read as JSON it takes up to twenty times as much.
const MOST_REPLY: usize = 8 << 20;
/// Programs that one instance serves. Each leaves some entries in the instance's table of streams,
/// which only grows.
const SERVED: u32 = 1000;

/// A running instance and its entry points.
pub(crate) struct Guest {
    pub(crate) store: Store<World>,
    load: TypedFunc<(String, u32, u64), (String,)>,
    operate: TypedFunc<(String,), (String,)>,
    more: TypedFunc<(String,), (String,)>,
    check: TypedFunc<(String,), (String,)>,
    pub(crate) limits: Limits,
    /// Its memories, if they lie on the snapshot.
    regions: Option<Regions>,
    /// Programs it has served before this one.
    served: u32,
}

/// Instances whose memory has been put back, and what it is put back to.
pub(crate) struct Stock {
    kept: bool,
    snapshot: OnceLock<Option<Snapshot>>,
    guests: Mutex<Vec<Guest>>,
}

impl Stock {
    /// If `kept` is false, every instance is a fresh one.
    pub(crate) fn new(kept: bool) -> Self {
        Self { kept, snapshot: OnceLock::new(), guests: Mutex::default() }
    }

    /// The snapshot; made of the first instance's memories, before it runs anything.
    fn snapshot(&self, first: &Regions) -> Option<&Snapshot> {
        self.snapshot.get_or_init(|| Snapshot::of(first).ok().filter(|_| self.kept)).as_ref()
    }

    fn guests(&self) -> MutexGuard<'_, Vec<Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// An instance in the state of the snapshot.
    pub(crate) fn start(
        python: &Python,
        stdin: &str,
        limits: Limits,
        seed: u64,
    ) -> Result<Self, SandboxError> {
        let waiting = python.stock.guests().pop();
        let mut guest = match waiting {
            Some(guest) => guest,
            None => Self::fresh(python, limits)?,
        };
        *guest.store.data_mut() = World::new(stdin, limits, seed);
        guest.limits = limits;
        guest.refill();
        Ok(guest)
    }

    fn fresh(python: &Python, limits: Limits) -> Result<Self, SandboxError> {
        let mut store = Store::new(&python.engine, World::new("", limits, 0));
        store.limiter(|world| &mut world.limits);
        limits.refill(&mut store);
        let (instance, regions) = made_by(|| python.ready.instantiate(&mut store));
        let instance = instance.map_err(SandboxError::start)?;
        let regions = python
            .stock
            .snapshot(&regions)
            .and_then(|snapshot| snapshot.lay_under(&regions).ok())
            .map(|()| regions);
        Ok(Self {
            load: entry(&instance, &mut store, "load")?,
            operate: entry(&instance, &mut store, "operate")?,
            more: entry(&instance, &mut store, "more")?,
            check: entry(&instance, &mut store, "check")?,
            store,
            limits,
            regions,
            served: 0,
        })
    }

    /// Gives up an instance none of whose calls failed: its memory is put back and it waits for
    /// another program, if that can be.
    pub(crate) fn leave(mut self, python: &Python) {
        self.served += 1;
        if self.served < SERVED && self.put_back(python) {
            python.stock.guests().push(self);
        }
    }

    /// Whether its memory could be put back to the snapshot.
    fn put_back(&self, python: &Python) -> bool {
        match (&self.regions, python.stock.snapshot.get()) {
            (Some(regions), Some(Some(snapshot))) => snapshot.put_back(regions).unwrap_or(false),
            _ => false,
        }
    }

    pub(crate) fn fuel_used(&self) -> u64 {
        self.store.data().fuel.saturating_sub(self.store.get_fuel().unwrap_or(0))
    }

    /// Gives a long-lived instance the fuel and time of a new one.
    pub(crate) fn refill(&mut self) {
        self.limits.refill(&mut self.store);
    }

    /// Runs `source` as `__main__`.
    pub(crate) fn load(&mut self, source: &str, seed: u64) -> Result<Loaded, End> {
        let recursion = self.limits.recursion;
        let result = self.load.call(&mut self.store, (source.to_owned(), recursion, seed));
        let reply = result.map_err(|error| self.end(&error))?.0;
        serde_json::from_str(&reply).map_err(|_| Crash::unreadable())
    }

    pub(crate) fn operate(&mut self, request: &str) -> Result<String, End> {
        // The time in which the judge compares is not the program's.
        self.store.set_epoch_deadline(self.limits.ticks());
        let result = self.operate.call(&mut self.store, (request.to_owned(),));
        Ok(result.map_err(|error| self.end(&error))?.0)
    }

    /// Runs `source` where `load` or the last `more` left off.
    pub(crate) fn more(&mut self, source: &str) -> Result<Loaded, End> {
        let result = self.more.call(&mut self.store, (source.to_owned(),));
        let reply = result.map_err(|error| self.end(&error))?.0;
        serde_json::from_str(&reply).map_err(|_| Crash::unreadable())
    }

    pub(crate) fn check(&mut self, request: &Value) -> Result<String, End> {
        let result = self.check.call(&mut self.store, (request.to_string(),));
        Ok(result.map_err(|error| self.end(&error))?.0)
    }

    /// Bytes of WebAssembly memory that it has.
    pub(crate) fn memory(&self) -> usize {
        self.store.data().limits.bytes
    }

    /// What the program wrote to standard output and standard error since this was last asked.
    pub(crate) fn output(&self) -> (String, String) {
        self.store.data().take_output()
    }

    fn end(&self, error: &wasmtime::Error) -> End {
        End::of(&self.store, error)
    }
}

struct Crash;

impl Crash {
    fn unreadable() -> End {
        End::Crash("the interpreter's own reply is unreadable".to_owned())
    }
}

/// What became of running a program's top level.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Loaded {
    /// The exception that ended it.
    pub(crate) error: Option<String>,
    /// The status it left with by `SystemExit`.
    pub(crate) exit: Option<i32>,
}

fn entry<Given, Got>(
    instance: &Instance,
    store: &mut Store<World>,
    name: &str,
) -> Result<TypedFunc<Given, Got>, SandboxError>
where
    Given: wasmtime::component::ComponentNamedList + wasmtime::component::Lower,
    Got: wasmtime::component::ComponentNamedList + wasmtime::component::Lift,
{
    instance.get_typed_func(store, name).map_err(SandboxError::start)
}

/// A program behind the judge's `ask`: started at the first question, dead after a limit.
pub(crate) struct Program {
    python: Python,
    source: String,
    limits: Limits,
    seed: u64,
    guest: Option<Guest>,
    /// Fuel of instances before this one.
    spent: u64,
    pub(crate) end: Option<End>,
    pub(crate) loaded: Option<Loaded>,
    pub(crate) fault: Option<SandboxError>,
}

impl Program {
    pub(crate) fn new(python: &Python, source: &str, limits: Limits, seed: u64) -> Self {
        Self {
            python: python.clone(),
            source: source.to_owned(),
            limits,
            seed,
            guest: None,
            spent: 0,
            end: None,
            loaded: None,
            fault: None,
        }
    }

    pub(crate) fn fuel_used(&self) -> u64 {
        self.spent + self.guest.as_ref().map_or(0, Guest::fuel_used)
    }

    /// Whether the program's top level ran to its end.
    pub(crate) fn start(&mut self) -> bool {
        if self.end.is_some() || self.fault.is_some() {
            return false;
        }
        if self.guest.is_none() {
            match Guest::start(&self.python, "", self.limits, self.seed) {
                Ok(mut guest) => {
                    match guest.load(&self.source, self.seed) {
                        Ok(loaded) => self.loaded = Some(loaded),
                        Err(end) => self.end = Some(end),
                    }
                    self.guest = Some(guest);
                }
                Err(fault) => self.fault = Some(fault),
            }
        }
        self.end.is_none()
            && self.loaded.as_ref().is_some_and(|loaded| {
                // A program that leaves by `SystemExit` never reaches its tests.
                loaded.error.is_none() && loaded.exit.is_none()
            })
    }

    /// The reply to a question of the judge, always readable.
    pub(crate) fn answer(&mut self, request: &str) -> String {
        if request == r#"["fresh"]"# {
            self.leave();
            return r#"["ok",null]"#.to_owned();
        }
        const GONE: &str = r#"["gone","the program is no more"]"#;
        if !self.start() {
            return GONE.to_owned();
        }
        let Some(guest) = self.guest.as_mut() else { return GONE.to_owned() };
        match guest.operate(request) {
            Ok(reply) if reply.len() > MOST_REPLY => r#"["large","more than 8 MiB"]"#.to_owned(),
            Ok(reply) => reply,
            Err(end) => {
                self.end = Some(end);
                GONE.to_owned()
            }
        }
    }

    /// Gives its instance up; the next question begins with the program's first line again.
    pub(crate) fn leave(&mut self) {
        self.spent = self.fuel_used();
        if let Some(guest) = self.guest.take()
            && self.end.is_none()
        {
            guest.leave(&self.python);
        }
    }

    /// The program's instance itself, for tests that can only run inside it.
    pub(crate) fn inside(&mut self) -> Option<&mut Guest> {
        self.guest.as_mut()
    }
}
