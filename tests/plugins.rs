//! Plugins in training: an environment and a verifier that are WebAssembly components, named by
//! their paths in a configuration; and one that fails on some replies.
#![cfg(feature = "sandbox")]

mod support;

use std::path::Path;

use serde_json::Value;
use support::{Scene, text};

const CONFIG: &str = r#"name = "counting"

[model]
layers = 1
hidden = 16
heads = 2
context = 16

[[stage]]
kind = "tokenizer"
alphabet = "0123456789=?T"

[[stage]]
kind = "pretrain"
steps = 20
batch = 16
loss_on = "replies"
evaluate_every = 0
documents = { kind = "environment", env = { plugin = "counting.wat" }, styles = { bare = 1.0 } }

[[stage]]
kind = "rl"
steps = 3
groups_per_step = 4
group_size = 8
env = { plugin = "counting.wat", workers = 2 }
sampling = { max_tokens = 4 }
evaluation = { tasks = 8, samples = 2, k = [1] }
"#;

/// A folder with the plugins and a configuration beside them.
fn scene() -> Scene {
    let scene = Scene::new();
    let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("verifiers/sandbox/tests/plugins");
    for file in ["counting.wat", "exact.wat"] {
        scene.write(file, std::fs::read_to_string(plugins.join(file)).expect("a plugin"));
    }
    scene.write("tiny.toml", CONFIG);
    scene
}

#[test]
fn a_policy_trains_on_plugins_and_the_run_repeats() {
    let scene = scene();
    scene.run("own", &[]);
    scene.run("again", &["--set=rl.env.workers=1"]);
    scene.check_same_results("own", "again", "with other workers");
    let judge = "--set=rl.verifier={ plugin = \"exact.wat\", workers = 2 }";
    scene.run("judged", &[judge]);
    let resolved = scene.read("judged/config.resolved.toml");
    assert!(resolved.contains("exact.wat") && resolved.contains("counting.wat"), "{resolved}");
    let record: Value = serde_json::from_str(&scene.read("own/run.json")).expect("JSON");
    assert!(record.to_string().contains("sha256"), "the plugin's hash is on record: {record}");
}

#[test]
fn a_plugin_that_fails_costs_replies_is_counted_and_named() {
    let scene = scene();
    // Replies of one token from random weights: every thirteenth is the letter that traps.
    let failing = [
        "--set=pretrain.steps=1",
        "--set=rl.verifier={ plugin = \"exact.wat\" }",
        "--set=rl.sampling.max_tokens=1",
        "--set=rl.cut_off_is_malformed=false",
        "--set=rl.groups_per_step=32",
    ];
    let tolerant = [&failing[..], &["--set=rl.rollout.largest_broken_share=1.0"]].concat();
    scene.run("tolerant", &tolerant);
    let lines = scene.read("tolerant/metrics.jsonl");
    let errors: f64 = lines
        .lines()
        .map(|it| serde_json::from_str::<Value>(it).expect("a line"))
        .filter_map(|it| it["rollout/verifier_errors"].as_f64())
        .sum();
    assert!(errors > 0.0, "some replies trapped:\n{lines}");
    let strict = [
        &["run", "tiny.toml", "--quiet", "--out", "strict"][..],
        &failing,
        &["--set=rl.rollout.largest_broken_share=0.0"],
    ];
    let output = scene.output(strict.concat());
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("exact") && told.contains("`judge` failed"), "{told}");
}

#[test]
fn what_is_wrong_with_a_plugin_is_told_at_its_line() {
    let scene = scene();
    for (set, told) in [
        ("pretrain.documents.env={ plugin = \"absent.wasm\" }", "cannot read the file absent.wasm"),
        ("rl.env={ plugin = \"absent.wasm\" }", "cannot read the file absent.wasm"),
        ("rl.env={ plugin = \"exact.wat\" }", "does not export `open` of `rl:plugin/environment@"),
        ("rl.env={ plugin = \"tiny.toml\" }", "is no component"),
        ("rl.verifier={ plugin = \"exact.wat\", options = { a = 1 } }", "takes no options"),
        ("rl.verifier={ plugin = \"exact.wat\", grants = { read = [\"no\"] } }", "no folder no"),
        ("rl.env={ plugin = \"counting.wat\", limits = { memory_mib = 1 } }", "out of range"),
    ] {
        let output = scene.output(["check", "tiny.toml", "--set", set]);
        let stderr = text(&output.stderr);
        assert!(stderr.contains("1 problem in"), "{set}: {stderr}");
        assert_eq!(output.status.code(), Some(2), "{set}: {stderr}");
        assert!(stderr.contains(told), "{set}: {stderr}");
    }
}
