//! The world that a program sees: empty, silent and outside of time.
//!
//! No files, no network, no environment, arguments or working folder (a plugin may be granted some
//! to read). Standard input is given;
//! standard output and error are kept up to a limit that ends the program. Clocks show a fixed
//! date plus one nanosecond per unit of fuel and whatever was slept: sleeping moves them and takes
//! no time. Random bytes are drawn from the seed.

use std::sync::{Arc, Mutex, PoisonError};

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use wasmtime::{
    StoreContextMut, StoreLimits, StoreLimitsBuilder,
    component::{Linker, Resource, ResourceTable},
};
use wasmtime_wasi::{
    FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView,
    cli::{IsTerminal, StdoutStream},
    p2::{
        DynPollable, OutputStream, Pollable, StreamError, StreamResult,
        pipe::{MemoryInputPipe, MemoryOutputPipe},
        subscribe,
    },
};

use crate::{
    guest::{Limits, Program},
    plugin::Grants,
};

/// Seconds since 1970 at which every program starts: 2026-01-01 00:00:00 UTC.
const START: u64 = 1_767_225_600;

/// Interfaces that the component may ask for under either version.
const CLOCKS: [(&str, &str); 2] = [
    ("wasi:clocks/monotonic-clock@0.2.0", "wasi:clocks/wall-clock@0.2.0"),
    ("wasi:clocks/monotonic-clock@0.2.9", "wasi:clocks/wall-clock@0.2.9"),
];

/// Lines that one call may log, and bytes of each.
const LOGGED: (usize, usize) = (100, 1000);

/// What an instance's store carries.
pub struct World {
    wasi: WasiCtx,
    table: ResourceTable,
    pub(crate) limits: MemoryLimit,
    stdout: Output,
    stderr: Output,
    /// Fuel at the start, and nanoseconds slept since.
    pub(crate) fuel: u64,
    slept: u64,
    /// In the judge's instance: the program it asks.
    pub(crate) program: Option<Program>,
    /// Lines that a plugin has logged.
    log: Vec<String>,
}

impl WasiView for World {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl World {
    /// A world with `stdin` to read and what `limits` leave room for.
    pub(crate) fn new(stdin: &str, limits: Limits, seed: u64) -> Self {
        let mut wasi = WasiCtxBuilder::new();
        wasi.stdin(MemoryInputPipe::new(stdin.to_owned()));
        Self::of(wasi, limits, seed)
    }

    /// A world with nothing to read from standard input, and with what `grants` add.
    pub(crate) fn granted(limits: Limits, seed: u64, grants: &Grants) -> wasmtime::Result<Self> {
        let mut wasi = WasiCtxBuilder::new();
        for folder in &grants.read {
            let name = folder.to_string_lossy();
            wasi.preopened_dir(folder, name.as_ref(), FsPerms::ReadOnly)?;
        }
        for name in &grants.variables {
            if let Ok(value) = std::env::var(name) {
                wasi.env(name, value);
            }
        }
        Ok(Self::of(wasi, limits, seed))
    }

    fn of(mut wasi: WasiCtxBuilder, limits: Limits, seed: u64) -> Self {
        let stdout = Output::new(limits.output());
        let stderr = Output::new(limits.output());
        wasi.allow_blocking_current_thread(true)
            .stdout(stdout.clone())
            .stderr(stderr.clone())
            .secure_random(ChaCha8Rng::seed_from_u64(seed))
            .insecure_random(ChaCha8Rng::seed_from_u64(seed.wrapping_add(1)))
            .insecure_random_seed(u128::from(seed));
        Self {
            wasi: wasi.build(),
            table: ResourceTable::new(),
            limits: MemoryLimit::new(limits.memory()),
            stdout,
            stderr,
            fuel: limits.fuel(),
            slept: 0,
            program: None,
            log: Vec::new(),
        }
    }

    /// What was written to standard output and standard error since this was last asked.
    pub(crate) fn take_output(&self) -> (String, String) {
        (self.stdout.take(), self.stderr.take())
    }

    /// Keeps a line for the user, as long as there are not too many.
    pub(crate) fn log(&mut self, mut line: String) {
        let (lines, bytes) = LOGGED;
        if self.log.len() < lines {
            line.truncate(line.floor_char_boundary(bytes));
            self.log.push(line);
        }
    }

    /// What was logged since this was last asked.
    pub(crate) fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }
}

/// Adds everything that a component may import.
pub(crate) fn link(linker: &mut Linker<World>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_sync(linker)?;
    linker.allow_shadowing(true);
    for (monotonic, wall) in CLOCKS {
        let mut clock = linker.instance(monotonic)?;
        clock.func_wrap("now", |store: StoreContextMut<'_, World>, (): ()| Ok((now(&store)?,)))?;
        clock.func_wrap("resolution", |_: StoreContextMut<'_, World>, (): ()| Ok((1_u64,)))?;
        clock.func_wrap(
            "subscribe-instant",
            |mut store: StoreContextMut<'_, World>, (when,): (u64,)| {
                let wait = when.saturating_sub(now(&store)?);
                Ok((sleep(store.data_mut(), wait)?,))
            },
        )?;
        clock.func_wrap(
            "subscribe-duration",
            |mut store: StoreContextMut<'_, World>, (wait,): (u64,)| {
                Ok((sleep(store.data_mut(), wait)?,))
            },
        )?;
        let mut clock = linker.instance(wall)?;
        clock.func_wrap("now", |store: StoreContextMut<'_, World>, (): ()| {
            let nanos = now(&store)?;
            let whole = START + nanos / 1_000_000_000;
            let rest = (nanos % 1_000_000_000) as u32;
            Ok((DateTime { seconds: whole, nanoseconds: rest },))
        })?;
        clock.func_wrap("resolution", |_: StoreContextMut<'_, World>, (): ()| {
            Ok((DateTime { seconds: 0, nanoseconds: 1 },))
        })?;
    }
    linker.allow_shadowing(false);
    linker.root().func_wrap(
        "ask",
        |mut store: StoreContextMut<'_, World>, (request,): (String,)| {
            let program = store.data_mut().program.as_mut();
            let program =
                program.ok_or_else(|| wasmtime::format_err!("a program has nobody to ask"))?;
            Ok((program.answer(&request),))
        },
    )
}

#[derive(wasmtime::component::ComponentType, wasmtime::component::Lower)]
#[component(record)]
struct DateTime {
    seconds: u64,
    nanoseconds: u32,
}

/// Nanoseconds since the program started.
fn now(store: &StoreContextMut<'_, World>) -> wasmtime::Result<u64> {
    let world = store.data();
    Ok(world.fuel.saturating_sub(store.get_fuel()?).saturating_add(world.slept))
}

fn sleep(world: &mut World, nanos: u64) -> wasmtime::Result<Resource<DynPollable>> {
    world.slept = world.slept.saturating_add(nanos);
    let moment = world.table.push(Now)?;
    subscribe(&mut world.table, moment)
}

/// A wait that is over.
struct Now;

#[wasmtime_wasi::async_trait]
impl Pollable for Now {
    async fn ready(&mut self) {}
}

/// Memory up to a limit; remembers whether more was asked for.
pub(crate) struct MemoryLimit {
    inner: StoreLimits,
    pub(crate) met: bool,
    /// What was granted so far: the largest memory, in bytes.
    pub(crate) bytes: usize,
}

impl MemoryLimit {
    fn new(bytes: usize) -> Self {
        Self { inner: StoreLimitsBuilder::new().memory_size(bytes).build(), met: false, bytes: 0 }
    }
}

impl wasmtime::ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let granted = self.inner.memory_growing(current, desired, maximum)?;
        self.met |= !granted;
        if granted {
            self.bytes = self.bytes.max(desired);
        }
        Ok(granted)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.inner.table_growing(current, desired, maximum)
    }
}

/// What was written to one stream, up to a limit.
#[derive(Clone)]
pub(crate) struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    room: usize,
}

/// More was written than is allowed: ends the program, and no program can catch it.
#[derive(Debug, thiserror::Error)]
#[error("the output limit was met")]
pub(crate) struct OutputFull;

impl Output {
    fn new(room: usize) -> Self {
        Self { bytes: Arc::default(), room }
    }

    /// Takes what was written so far.
    pub(crate) fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner));
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(MemoryOutputPipe::new(0))
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Output {
    fn write(&mut self, bytes: bytes::Bytes) -> StreamResult<()> {
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let room = self.room.saturating_sub(kept.len());
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if bytes.len() > room {
            return Err(StreamError::Trap(OutputFull.into()));
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}
