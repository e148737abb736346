//! What driven tests share: a tiny experiment, the real binary, and ways to compare run folders.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// Every kind of stage but sft on three-digit sums, with a checkpoint every few steps; half a
/// second.
pub const TINY: &str = r#"name = "tiny"
seed = 3

[model]
layers = 1
hidden = 16
intermediate = 32
heads = 2
context = 24

[[stage]]
kind = "tokenizer"
type = "characters"
alphabet = "0123456789+=?"

[[stage]]
kind = "pretrain"
steps = 30
batch = 16
loss_on = "replies"
evaluate_every = 10
checkpoint_every = 5

[stage.documents]
kind = "environment"
env = { name = "digit_sum", digits = 3, modulus = 10 }
styles = { bare = 0.5, chain = 0.5 }

[stage.optimizer]
learning_rate = 3e-3

[[stage]]
kind = "rl"
steps = 8
groups_per_step = 4
group_size = 4
# A coin gives every step something to learn, however poor the policy is.
coin_reward = 0.5
env = { name = "digit_sum", digits = 3, modulus = 10 }
checkpoint_every = 2
samples_every = 2

[stage.sampling]
max_tokens = 8

[stage.algorithm]
name = "grpo"

[stage.evaluation]
every = 4
tasks = 8
samples = 2
k = [1, 2]

[[stage]]
kind = "eval"
env = { name = "digit_sum", digits = 3, modulus = 10 }
sampling = { max_tokens = 8 }
evaluation = { tasks = 8, samples = 2, k = [1, 2] }
"#;

/// A temporary folder to run in.
pub struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    /// A folder with [`TINY`] in it as `tiny.toml`.
    pub fn new() -> Self {
        let scene = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        scene.write("tiny.toml", TINY);
        scene
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), text).expect("the temporary folder can be written");
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("the file is there")
    }

    /// The binary, in this folder and without output to the terminal.
    pub fn tallow<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tallow"));
        command.args(arguments).current_dir(self.folder.path()).env("RUST_BACKTRACE", "0");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs to the end.
    pub fn output<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Output {
        self.tallow(arguments).output().expect("the binary starts")
    }

    /// `tallow run tiny.toml --quiet --out OUT MORE…`, which must succeed.
    pub fn run(&self, out: &str, more: &[&str]) {
        let output = self.output(run_arguments(out, more));
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    /// The same, left running.
    pub fn spawn(&self, out: &str, more: &[&str]) -> Child {
        let mut command = self.tallow(run_arguments(out, more));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("the binary starts")
    }

    /// `status` of a run's record; `None` before there is one.
    pub fn status(&self, out: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.path(out).join("run.json")).ok()?;
        let record: Value = serde_json::from_str(&text).expect("run.json is always whole");
        Some(record["status"].as_str().expect("a status").to_owned())
    }

    /// Whole checkpoints of a stage, the oldest first.
    pub fn checkpoints(&self, out: &str, stage: &str) -> Vec<PathBuf> {
        let mut paths = sorted(&self.path(out).join("checkpoints").join(stage));
        // A kill leaves unfinished ones under other names.
        paths.retain(|it| name(it).starts_with("step_"));
        paths
    }

    /// Asserts that two runs left the same models, metrics (times aside) and samples.
    pub fn check_same_results(&self, one: &str, other: &str, what: &str) {
        let (one, other) = (self.path(one), self.path(other));
        let (weights, found) = (models(&one), models(&other));
        assert!(!weights.is_empty(), "{what}: no model");
        assert_eq!(weights.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "{what}");
        for (name, bytes) in &weights {
            assert!(found[name] == *bytes, "{what}: {name} differs");
        }
        let (lines, found) = (metrics(&one), metrics(&other));
        for (line, found) in lines.iter().zip(&found) {
            assert_eq!(line, found, "{what}");
        }
        assert_eq!(lines.len(), found.len(), "{what}: lines of metrics");
        let (texts, found) = (samples(&one), samples(&other));
        assert_eq!(texts.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "{what}");
        for (name, text) in &texts {
            assert!(found[name] == *text, "{what}: {name} differs");
        }
    }
}

fn run_arguments(out: &str, more: &[&str]) -> Vec<String> {
    ["run", "tiny.toml", "--quiet", "--out", out]
        .iter()
        .chain(more)
        .map(|it| (*it).to_owned())
        .collect()
}

/// Tells that the test did not run. The harness keeps what the printing macros say of a test that
/// passes; what is written to stderr itself is seen.
pub fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    drop(writeln!(std::io::stderr(), "SKIPPED {test}: {why}"));
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|it| it.expect("an entry").path()).collect();
    paths.sort();
    paths
}

fn name(path: &Path) -> String {
    path.file_name().expect("an entry has a name").to_string_lossy().into_owned()
}

/// Every file of every stage's model.
fn models(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for stage in sorted(&run.join("models")) {
        for file in sorted(&stage) {
            // An adapter's settings name the folder of its base, which lies in the run.
            let file = if file.is_dir() { file.join("adapter_model.safetensors") } else { file };
            let bytes = std::fs::read(&file).expect("a model's file");
            files.insert(format!("{}/{}", name(&stage), name(&file)), bytes);
        }
    }
    files
}

/// The lines of metrics.jsonl without what a clock says.
fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let timed = |key: &str| {
        key == "time_s" || key.starts_with("time/") || key.contains("tokens_per_second")
    };
    text.lines()
        .map(|line| {
            let mut value: Value = serde_json::from_str(line).expect("a line is one object");
            value.as_object_mut().expect("an object").retain(|key, _| !timed(key));
            value
        })
        .collect()
}

/// Every samples file of every stage as text.
fn samples(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for stage in sorted(&run.join("samples")) {
        for file in sorted(&stage) {
            let opened = std::fs::File::open(&file).expect("a samples file");
            let text = zstd::decode_all(opened).expect("whole frames");
            files.insert(format!("{}/{}", name(&stage), name(&file)), text);
        }
    }
    files
}

/// A small file system of its own, if this process may mount one.
pub struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    pub fn new(path: &'a Path, options: &str) -> Option<Self> {
        std::fs::create_dir(path).expect("a new folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(path)
            .output()
            .is_ok_and(|it| it.status.success());
        mounted.then_some(Self(path))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0).status());
    }
}
