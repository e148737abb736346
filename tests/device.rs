//! A whole experiment on a device (an emulated one): every stage, its files, and the numbers of the
//! same experiment on the CPU.

#[path = "../policies/tests/emulated/mod.rs"]
mod emulated;

use std::path::{Path, PathBuf};

use serde_json::Value;
use tallow::config::Experiment;
use tallow::registry::Registry;
use tallow::run::{RunOptions, run_experiment};
use tallow_policies::gpu::{Device, Precision};

/// The published smoke test, with a few steps of each stage.
fn experiment() -> Experiment {
    let config = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("experiments/smoke/config.toml");
    let changes = [
        "stage[1].steps=4",
        "stage[1].batch=8",
        "stage[1].evaluate_every=2",
        "stage[2].steps=2",
        "stage[2].batch=8",
        "stage[2].evaluate_every=2",
        "stage[3].steps=2",
        "stage[3].groups_per_step=3",
        "stage[3].group_size=4",
        "stage[3].checkpoint_every=1",
        "stage[3].evaluation={every=1,tasks=3,samples=2,k=[1]}",
        "stage[4].evaluation={tasks=3,samples=2,k=[1]}",
    ];
    let changes = changes.map(str::to_owned);
    Experiment::read(&config, &changes, &Registry::builtin()).expect("a sound experiment")
}

fn run(out: &Path, device: Option<Device>) {
    let options = RunOptions {
        out: out.to_owned(),
        resume: false,
        quiet: true,
        threads: 2,
        device,
        plan: String::new(),
        command: Vec::new(),
    };
    run_experiment(&experiment(), &options).expect("a finished run");
}

/// What was logged, without what depends on the clock.
fn metrics(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).expect("metrics");
    let mut lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for line in &mut lines {
        let line = line.as_object_mut().expect("an object");
        line.retain(|key, _| {
            !(key.starts_with("time") || key.ends_with("_s") || key.ends_with("_per_second"))
        });
    }
    lines
}

#[test]
fn every_stage_runs_on_a_device() {
    let Some(device) = emulated::device(Precision::F32) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (on_cpu, on_device) = (folder.path().join("cpu"), folder.path().join("device"));
    run(&on_cpu, None);
    run(&on_device, Some(device));
    let record = std::fs::read_to_string(on_device.join("run.json")).expect("a record");
    assert!(record.contains("\"emulation (f32)\""), "{record}");
    let (expected, found) = (metrics(&on_cpu), metrics(&on_device));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        let (found, expected) = (found.as_object(), expected.as_object());
        let (found, expected) = (found.expect("an object"), expected.expect("an object"));
        assert!(found.keys().eq(expected.keys()), "{found:?} {expected:?}");
        for (name, expected) in expected {
            match (found[name].as_f64(), expected.as_f64()) {
                (Some(found), Some(expected)) => {
                    let most = 1e-3 * expected.abs().max(0.01);
                    assert!((found - expected).abs() <= most, "{name}: {found} {expected}");
                }
                _ => assert_eq!(&found[name], expected, "{name}"),
            }
        }
    }
}
