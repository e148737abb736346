//! A run repeats bit for bit: on another day, with other threads, and after any number of kills.

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use support::Scene;

/// Longer stages with denser checkpoints than the tiny experiment has by itself.
const LONGER: &[&str] = &[
    "--set=pretrain.steps=60",
    "--set=pretrain.checkpoint_every=3",
    "--set=rl.steps=24",
    "--set=rl.checkpoint_every=3",
];

/// When each kill comes, as a share of an undisturbed run's duration.
const KILLS: [f64; 20] = [
    0.31, 0.07, 0.52, 0.18, 0.83, 0.44, 0.02, 0.67, 0.26, 0.95, 0.13, 0.58, 0.37, 0.74, 0.10, 0.48,
    0.89, 0.22, 0.63, 0.41,
];

#[test]
fn the_same_configuration_gives_the_same_bytes() {
    let scene = Scene::new();
    scene.run("one", &[]);
    scene.run("two", &[]);
    scene.check_same_results("one", "two", "a second run");
}

#[test]
fn another_seed_gives_other_weights() {
    let scene = Scene::new();
    scene.run("one", &["--set=rl.steps=1"]);
    scene.run("two", &["--set=rl.steps=1", "--seed=4"]);
    let weights = |run: &str| {
        std::fs::read(scene.path(run).join("models/rl/model.safetensors")).expect("a model")
    };
    assert!(weights("one") != weights("two"));
}

#[test]
fn one_rollout_thread_and_eight_give_the_same_bytes() {
    let scene = Scene::new();
    scene.run("one", &["--set=rl.rollout.threads=1"]);
    scene.run("eight", &["--set=rl.rollout.threads=8"]);
    scene.check_same_results("one", "eight", "eight threads");
}

#[test]
fn twenty_kills_change_nothing() {
    check_kills(LONGER, &KILLS);
}

#[test]
fn kills_change_nothing_for_adapters() {
    let mut settings = LONGER.to_vec();
    settings.extend(["--set=rl.optimizer.lora={rank=4}", "--set=rl.algorithm.kl={weight=0.1}"]);
    settings.push("--set=rl.sampling.top_p=0.9");
    check_kills(&settings, &KILLS[..6]);
}

/// What a method keeps between steps: a critic with its optimizer, a weight that adapts, a reference
/// that is refreshed, tasks that were played to refill a step.
#[test]
fn kills_change_nothing_for_methods_with_state() {
    for method in [
        "name = \"ppo\", critic = { value_clip = 0.1 }, kl = { weight = 0.1, place = \"reward\", estimator = \"k1\", adaptive = { target = 0.01, horizon = 50.0 } }",
        "name = \"ppo\", critic = { trunk = \"shared\" }, entropy_bonus = 0.01",
        "name = \"grpo\", kl = { weight = 0.1, refresh_every = 2 }, refill = { most_batches = 3 }",
    ] {
        let algorithm = format!("--set=rl.algorithm={{ {method} }}");
        let mut settings = LONGER.to_vec();
        settings.extend([algorithm.as_str(), "--set=rl.minibatches=2"]);
        check_kills(&settings, &KILLS[..4]);
    }
}

fn check_kills(settings: &[&str], shares: &[f64]) {
    let scene = Scene::new();
    let begun = Instant::now();
    scene.run("whole", settings);
    let duration = begun.elapsed();
    // Gains are told against an evaluation that a resumed run did not make itself.
    let metrics = scene.read("whole/metrics.jsonl");
    assert!(metrics.contains("eval/pass@2_gain"), "no gain to compare");
    let mut run = 0;
    let mut resumed = settings.to_vec();
    resumed.push("--resume");
    let mut kills = 0;
    for share in shares.iter().cycle().take(200) {
        if kills == shares.len() {
            break;
        }
        let out = format!("killed_{run}");
        let status = scene.status(&out);
        if status.as_deref() == Some("done") {
            scene.check_same_results("whole", &out, &format!("after {kills} kills in all"));
            run += 1;
            continue;
        }
        let mut child = scene.spawn(&out, if status.is_some() { &resumed } else { settings });
        // Not for correctness: it chooses the moment of the kill.
        std::thread::sleep(duration.mul_f64(*share).max(Duration::from_millis(5)));
        match child.try_wait().expect("a child of ours") {
            Some(status) => assert!(status.success(), "a resumed run failed after {kills} kills"),
            None => {
                child.kill().expect("a child of ours");
                child.wait().expect("a child of ours");
                kills += 1;
            }
        }
    }
    assert_eq!(kills, shares.len(), "the machine was too fast to be killed");
    let out = format!("killed_{run}");
    match scene.status(&out).as_deref() {
        Some("done") => {}
        Some(_) => scene.run(&out, &resumed),
        None => scene.run(&out, settings),
    }
    scene.check_same_results("whole", &out, "after the last kill");
}

/// Sends SIGINT once `when` says so, resumes, and compares with a run that was left alone.
fn check_interrupt(settings: &[&str], stage: &str, when: impl Fn(&str) -> bool) {
    let scene = Scene::new();
    scene.run("whole", settings);
    let mut child = scene.spawn("stopped", settings);
    let metrics = scene.path("stopped").join("metrics.jsonl");
    while !std::fs::read_to_string(&metrics).is_ok_and(|it| when(&it)) {
        assert!(child.try_wait().expect("a child of ours").is_none(), "it ended too early");
        std::thread::yield_now();
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill(1)").success());
    let status = child.wait().expect("a child of ours");
    assert_eq!(status.code(), Some(1), "interrupted is neither success nor a signal's death");
    assert_eq!(scene.status("stopped").as_deref(), Some("interrupted"));
    let kept = scene.checkpoints("stopped", stage);
    assert_eq!(kept.len(), 1, "no checkpoint was due: {kept:?}");
    let mut resumed = settings.to_vec();
    resumed.push("--resume");
    scene.run("stopped", &resumed);
    scene.check_same_results("whole", "stopped", "after Ctrl-C");
}

#[test]
fn ctrl_c_in_pretraining_leaves_a_checkpoint_to_go_on_from() {
    let settings = ["--set=pretrain.steps=600", "--set=pretrain.checkpoint_every=0"];
    check_interrupt(&settings, "pretrain", |it| it.contains(r#""stage":"pretrain""#));
}

#[test]
fn ctrl_c_during_rollouts_leaves_a_checkpoint_to_go_on_from() {
    let settings =
        ["--set=rl.steps=120", "--set=rl.checkpoint_every=0", "--set=rl.evaluation.every=0"];
    check_interrupt(&settings, "rl", |it| it.contains(r#""step":2,"stage":"rl""#));
}

#[test]
fn ctrl_c_during_an_evaluation_loses_neither_the_steps_nor_the_evaluation() {
    let settings = [
        "--set=rl.steps=6",
        "--set=rl.checkpoint_every=0",
        "--set=rl.evaluation.every=2",
        "--set=rl.evaluation.samples=64",
        "--set=rl.evaluation.tasks=64",
    ];
    check_interrupt(&settings, "rl", |it| it.contains(r#""step":2,"stage":"rl""#));
}
