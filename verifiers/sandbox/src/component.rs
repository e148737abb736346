//! The component that holds CPython, and the compiled forms of it and of plugins on this machine.
//!
//! The component travels with the source, compressed. Machine code for it is made once, in about
//! ten seconds, and kept in the user's cache folder under a name that holds a hash of the
//! component, of wasmtime's version and settings and of this processor's features, and a hash of
//! the file's own content. Loading machine code is trusting it: only a file of our own user,
//! that others may not write and whose content has the hash in its name, is loaded.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use sha2::{Digest, Sha256};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    component::{Component, InstancePre, Linker},
};

use crate::{
    error::SandboxError,
    guest::Stock,
    memory::{self, Memories},
    wasi::{World, link},
};

/// CPython 3.14 and the guest of this crate, made by `guest/build.sh`.
static COMPRESSED: &[u8] = include_bytes!("../guest/python.wasm.zst");
/// Environment variable that names another cache folder.
const CACHE_VARIABLE: &str = "TALLOW_CACHE";
/// How often the backstop's clock ticks.
pub(crate) const TICK: Duration = Duration::from_millis(50);
const MIB: usize = 1 << 20;
/// Stack of WebAssembly code; a worker's thread holds two such stacks and more.
const WASM_STACK: usize = 4 * MIB;
/// Stack of a thread that runs programs.
pub(crate) const THREAD_STACK: usize = 32 * MIB;
/// Memory that no program can be given more of.
pub(crate) const MOST_MEMORY: usize = 1024 * MIB;

/// Told what takes long; by default it goes to standard error.
static NOTICE: OnceLock<fn(&str)> = OnceLock::new();

/// Has lines about what takes long, such as compiling once, handed to `notice`.
pub fn on_notice(notice: fn(&str)) {
    // A second listener changes nothing: the first stays.
    let _ = NOTICE.set(notice);
}

pub(crate) fn notice(line: &str) {
    match NOTICE.get() {
        Some(notice) => notice(line),
        None => eprintln!("{line}"),
    }
}

/// SHA-256 of the component, in hexadecimal: part of what makes a verdict reproducible.
pub fn component_hash() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| hex(&Sha256::digest(COMPRESSED)))
}

/// CPython, ready to be instantiated.
#[derive(Clone)]
pub(crate) struct Python {
    pub(crate) engine: Engine,
    pub(crate) ready: InstancePre<World>,
    /// What instances begin with, and those that wait for another program.
    pub(crate) stock: Arc<Stock>,
}

impl Python {
    /// With room for the instances of so many workers.
    pub(crate) fn open(workers: u32) -> Result<Self, SandboxError> {
        let kept = memory::available();
        let mut config = config();
        if kept {
            // The memory's own mapping is what makes copies; wasmtime's would lie under it.
            config.memory_init_cow(false).with_host_memory(Arc::new(Memories));
        } else {
            pool(&mut config, workers);
        }
        let engine = Engine::new(&config).map_err(SandboxError::start)?;
        let component = compiled(&engine, &Source::python())?;
        let mut linker = Linker::new(&engine);
        link(&mut linker).map_err(SandboxError::start)?;
        let ready = linker.instantiate_pre(&component).map_err(SandboxError::start)?;
        tick(&engine)?;
        Ok(Self { engine, ready, stock: Arc::new(Stock::new(kept)) })
    }
}

/// Starts the clock by which calls into `engine` meet their backstops; it ends with the engine.
pub(crate) fn tick(engine: &Engine) -> Result<(), SandboxError> {
    let clock = engine.weak();
    std::thread::Builder::new()
        .name("sandbox-clock".to_owned())
        .spawn(move || {
            while let Some(engine) = clock.upgrade() {
                engine.increment_epoch();
                drop(engine);
                std::thread::sleep(TICK);
            }
        })
        .map_err(|error| SandboxError::Start(format!("no thread can be started: {error}")))?;
    Ok(())
}

/// A component before it is compiled.
pub(crate) struct Source {
    /// What it is called where the user is told of it.
    name: String,
    hash: String,
    content: Content,
}

enum Content {
    /// Ours, compressed.
    Python,
    Plugin(Vec<u8>),
}

impl Source {
    fn python() -> Self {
        Self {
            name: "the Python sandbox".to_owned(),
            hash: component_hash().to_owned(),
            content: Content::Python,
        }
    }

    pub(crate) fn plugin(name: &str, content: Vec<u8>) -> Self {
        let hash = hex(&Sha256::digest(&content));
        Self { name: name.to_owned(), hash, content: Content::Plugin(content) }
    }
}

/// Settings of every engine.
pub(crate) fn config() -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .cranelift_opt_level(OptLevel::Speed)
        .wasm_backtrace_max_frames(None)
        // Never used, but must not be smaller than the other.
        .async_stack_size(WASM_STACK + MIB)
        .max_wasm_stack(WASM_STACK)
        .concurrency_support(false)
        .consume_fuel(true)
        .epoch_interruption(true);
    config
}

/// Has instances come from a pool with room for so many workers.
fn pool(config: &mut Config, workers: u32) {
    let slots = workers * SLOTS_PER_WORKER;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(slots * 60)
        .total_memories(slots * 4)
        .total_tables(slots * 16)
        .max_component_instance_size(MIB)
        .max_core_instances_per_component(60)
        .max_core_instance_size(MIB)
        .max_memories_per_component(4)
        .max_tables_per_component(16)
        .table_elements(40_000)
        .max_memory_size(MOST_MEMORY)
        .max_unused_warm_slots(slots)
        .pagemap_scan(Enabled::No);
    if workers > 1 {
        // With one worker, fresh copy-on-write pages are cheaper than resetting old ones; with more,
        // their page faults contend for the address space and a second worker adds nothing.
        pool.linear_memory_keep_resident(64 * MIB);
    }
    config
        .memory_init_cow(true)
        .memory_guaranteed_dense_image_size(64 << 20)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
}

/// Instances that a worker holds at a time: its judge, a program and the next program.
const SLOTS_PER_WORKER: u32 = 3;

/// The component as machine code: from the cache if a good one is there, else compiled.
pub(crate) fn compiled(engine: &Engine, source: &Source) -> Result<Component, SandboxError> {
    let key = key(engine, source);
    let folder = cache_folder();
    if let Some(component) = folder.as_deref().and_then(|folder| cached(engine, folder, &key)) {
        return Ok(component);
    }
    let Some(folder) = folder else {
        notice(&format!("no cache folder is known: compiling {} for this run", source.name));
        return compile(engine, source).and_then(|code| load(engine, &code));
    };
    // Of several processes one compiles and the others wait for it. Where no lock can be had,
    // each compiles for itself.
    let lock = fs::create_dir_all(&folder)
        .and_then(|()| fs::File::create(folder.join("sandbox.lock")))
        .and_then(|file| file.lock().map(|()| file));
    if lock.is_ok()
        && let Some(component) = cached(engine, &folder, &key)
    {
        return Ok(component);
    }
    notice(&format!(
        "compiling {}, once (about 10 s for all of Python); kept in {}",
        source.name,
        folder.display()
    ));
    let code = compile(engine, source)?;
    match lock.and_then(|_lock| store(&folder, &key, &code)) {
        Ok(path) => load_file(engine, &path).map_or_else(|| load(engine, &code), Ok),
        Err(error) => {
            notice(&format!(
                "what was compiled of {} cannot be kept in {}: {error}; the next run compiles it \
                 again. Set {CACHE_VARIABLE} to a folder that can be written",
                source.name,
                folder.display()
            ));
            load(engine, &code)
        }
    }
}

fn compile(engine: &Engine, source: &Source) -> Result<Vec<u8>, SandboxError> {
    let component = match &source.content {
        Content::Python => &zstd::decode_all(COMPRESSED)
            .map_err(|error| SandboxError::Start(format!("the component is damaged: {error}")))?,
        Content::Plugin(component) => component,
    };
    // On every core, however few threads the process otherwise keeps busy.
    let threads = rayon::ThreadPoolBuilder::new().build();
    let work = || engine.precompile_component(component).map_err(SandboxError::start);
    threads.map_or_else(|_| work(), |threads| threads.install(work))
}

/// What machine code depends on, as 16 hexadecimal digits.
fn key(engine: &Engine, source: &Source) -> String {
    struct IntoSha(Sha256);
    impl std::hash::Hasher for IntoSha {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut hasher = IntoSha(Sha256::new());
    std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut hasher);
    hasher.0.update(&source.hash);
    hex(&hasher.0.finalize())[..16].to_owned()
}

fn cache_folder() -> Option<PathBuf> {
    match std::env::var_os(CACHE_VARIABLE) {
        Some(folder) if !folder.is_empty() => Some(folder.into()),
        _ => dirs::cache_dir().map(|folder| folder.join("tallow")),
    }
}

/// Names of files under `key`: `sandbox-KEY-HASH.cwasm`.
fn prefix(key: &str) -> String {
    format!("sandbox-{key}-")
}

/// The component in the cache, if there is a good one; a damaged one is deleted.
fn cached(engine: &Engine, folder: &Path, key: &str) -> Option<Component> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let name = entry.file_name();
        let Some(hash) = name.to_str().and_then(|name| name.strip_prefix(&prefix(key))) else {
            continue;
        };
        let path = entry.path();
        let Some(hash) = hash.strip_suffix(".cwasm") else { continue };
        let good = is_ours(&path) && fs::read(&path).is_ok_and(|code| digest(&code) == hash);
        if good && let Some(component) = load_file(engine, &path) {
            return Some(component);
        }
        // Whoever put it there: it is of no use.
        let _ = fs::remove_file(&path);
    }
    None
}

/// Whether `path` is a plain file of this user that nobody else may write.
#[cfg(unix)]
fn is_ours(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let own = fs::metadata("/proc/self").map(|process| process.uid()).ok();
    fs::symlink_metadata(path).is_ok_and(|file| {
        file.is_file() && file.mode() & 0o022 == 0 && own.is_none_or(|own| own == file.uid())
    })
}

#[cfg(not(unix))]
fn is_ours(path: &Path) -> bool {
    path.is_file()
}

/// Files of machine code that are kept; the oldest go first.
const KEPT: usize = 16;

/// Writes machine code whole or not at all, and clears away what is no longer used. Under the lock.
fn store(folder: &Path, key: &str, code: &[u8]) -> io::Result<PathBuf> {
    let mut others = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".sandbox-") {
            // Left by a process that was killed: whoever writes one holds the lock.
            let _ = fs::remove_file(entry.path());
        } else if name.ends_with(".cwasm")
            && let Ok(made) = entry.metadata().and_then(|it| it.modified())
        {
            others.push((made, entry.path()));
        }
    }
    others.sort();
    for (_, path) in others.iter().rev().skip(KEPT - 1) {
        let _ = fs::remove_file(path);
    }
    let mut file = tempfile::Builder::new().prefix(".sandbox-").tempfile_in(folder)?;
    io::Write::write_all(&mut file, code)?;
    file.as_file().sync_all()?;
    let path = folder.join(format!("{}{}.cwasm", prefix(key), digest(code)));
    file.persist(&path)?;
    Ok(path)
}

fn digest(code: &[u8]) -> String {
    hex(&Sha256::digest(code))[..32].to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn load(engine: &Engine, code: &[u8]) -> Result<Component, SandboxError> {
    #[expect(unsafe_code, reason = "wasmtime loads machine code only by an unsafe call")]
    // SAFETY: `code` was made by `compile` of this same process.
    unsafe { Component::deserialize(engine, code) }.map_err(SandboxError::start)
}

fn load_file(engine: &Engine, path: &Path) -> Option<Component> {
    #[expect(unsafe_code, reason = "wasmtime loads machine code only by an unsafe call")]
    // SAFETY: the file is our own user's, nobody else may write it, and its content has the hash
    // that `store` gave it; wasmtime checks version and settings itself.
    unsafe { Component::deserialize_file(engine, path) }.ok()
}
