//! Every method of the shelf learns: from one start, on held-out tasks, within a bounded number of
//! steps, with three seeds. A method that is added to the table is covered by being there.
//!
//! The start knows the sums of two digits, and three ways to reply: `;=7`, which is always right, `=7`,
//! which is right one time in four, and `=8`, which never is. So it is right about half the time, and
//! what must be learned is one systematic choice. A held-out task is one that RL never plays; the
//! documents hold all hundred sums, since a model this small learns them by heart.

mod support;

use std::fmt::Write;

use serde_json::Value;
use support::Scene;
use tallow::algorithms::BUILTIN;

/// Held-out accuracy that all must reach; the start has about half.
const WANTED: f64 = 0.9;

/// Batches of 128 replies, two optimizer steps each.
const STEPS: u64 = 60;

/// The teacher's folder in the scene.
const TEACHER: &str = "teacher/models/pretrain";

/// The model, and its pretraining on `documents`.
fn start(seed: u64, documents: &str) -> String {
    format!(
        r#"name = "learning"
seed = {seed}

[model]
layers = 2
hidden = 64
heads = 4
context = 16
rope_theta = 100.0
norm_eps = 1e-5
tied_embeddings = false
init = {{ std = 0.02, residual_std = 0.01 }}

[[stage]]
kind = "tokenizer"
type = "characters"
alphabet = "0123456789+=?;"

[[stage]]
kind = "pretrain"
steps = 800
batch = 64
loss_on = "replies"
evaluate_every = 0
checkpoint_every = 0
documents = {{ kind = "conversations", path = "{documents}" }}

[stage.optimizer]
learning_rate = 3e-3
schedule = {{ shape = "cosine", warmup_steps = 50, final_fraction = 0.1 }}
adamw = {{ weight_decay = 0.01, clip_norm = 1.0 }}
"#
    )
}

/// The stage that each variant changes. AdamW takes steps of one size whatever a loss is multiplied
/// with, so one learning rate serves all methods.
fn rl() -> String {
    format!(
        r#"
[[stage]]
kind = "rl"
steps = {STEPS}
minibatches = 2
groups_per_step = 16
group_size = 8
env = {{ name = "arithmetic", terms = 2, digits = 1, operators = "+" }}
checkpoint_every = 0
samples_every = 0
sampling = {{ max_tokens = 5 }}
evaluation = {{ every = 0, tasks = 96, samples = 8, k = [1] }}

[stage.optimizer]
learning_rate = 3e-4
schedule = {{ shape = "linear", final_fraction = 0.1 }}
adamw = {{ weight_decay = 0.0, clip_norm = 1.0 }}
"#
    )
}

/// Conversations over all sums; in each round of them, `marked` in ten replies are `;=` and right.
fn documents(marked: u32) -> String {
    let mut lines = String::new();
    for round in 0..80u32 {
        for (left, right) in (0..100u32).map(|it| (it / 10, it % 10)) {
            // No pattern in the numbers of a question tells its reply.
            let drawn = (round * 37 + left * 73 + right * 151).wrapping_mul(2_654_435_761) >> 16;
            let sum = left + right;
            let reply = match (drawn % 10 < marked, drawn / 10 % 4) {
                (true, _) => format!(";={sum}"),
                (false, 0) => format!("={sum}"),
                (false, _) => format!("={}", sum + 1),
            };
            let line = serde_json::json!({
                "prompt": format!("{left}+{right}?"), "completion": reply,
            });
            writeln!(lines, "{line}").expect("a string can be written");
        }
    }
    lines
}

/// The `algorithm` tables that must learn: every built-in method as it is, and settings that take
/// other paths through the learner.
fn methods() -> Vec<(String, String)> {
    let taught = format!("teacher = \"{TEACHER}\"");
    let mut methods: Vec<(String, String)> = BUILTIN
        .iter()
        .map(|it| {
            let more = if it.name == "distill" { format!(", {taught}") } else { String::new() };
            (it.name.to_owned(), format!("name = \"{}\"{more}", it.name))
        })
        .collect();
    let settings = [
        ("ppo_shared_trunk", "name = \"ppo\", critic = { trunk = \"shared\" }".to_owned()),
        ("distill_vocabulary", format!("name = \"distill\", over = \"vocabulary\", {taught}")),
        ("rloo_clip", "name = \"rloo\", clip = 0.2".to_owned()),
        (
            "kl_in_reward",
            "name = \"rloo\", kl = { weight = 0.01, place = \"reward\", estimator = \"k1\" }"
                .to_owned(),
        ),
        ("entropy_bonus", "name = \"grpo\", entropy_bonus = 0.001".to_owned()),
        ("corrected", "name = \"grpo\", old_policy = \"learner\", correction = {}".to_owned()),
        ("ipo", "name = \"dpo\", loss = \"ipo\"".to_owned()),
    ];
    methods.extend(settings.map(|(name, table)| (name.to_owned(), table)));
    methods
}

/// The first and the last held-out accuracy of a variant.
fn accuracies(scene: &Scene, variant: &str) -> (f64, f64) {
    let text = scene.read(&format!("run/variants/{variant}/metrics.jsonl"));
    let lines =
        text.lines().map(|it| serde_json::from_str::<Value>(it).expect("a line of metrics"));
    let told: Vec<f64> = lines.filter_map(|it| it["eval/accuracy"].as_f64()).collect();
    assert_eq!(told.len(), 2, "{variant} was evaluated before and after");
    (told[0], told[1])
}

fn all_learn(seed: u64) {
    let scene = Scene::new();
    scene.write("mixed.jsonl", documents(4));
    scene.write("right.jsonl", documents(10));
    scene.write("tiny.toml", start(seed, "right.jsonl"));
    scene.run("teacher", &[]);

    let mut config = start(seed, "mixed.jsonl") + &rl();
    for (name, table) in methods() {
        let set = format!("rl.algorithm={{ {table} }}");
        write!(config, "\n[[variant]]\nname = \"{name}\"\nset = ['{set}']\n").expect("written");
    }
    config += "\n[[variant]]\nname = \"coin\"\nrole = \"control\"\nset = ['rl.coin_reward=0.5']\n";
    scene.write("tiny.toml", config);
    scene.run("run", &[]);

    // All that fail are told at once.
    let mut failures = Vec::new();
    for (name, _) in methods() {
        let (before, after) = accuracies(&scene, &name);
        assert!(
            (0.3..0.7).contains(&before),
            "seed {seed}: the start is right {before} of the time"
        );
        if after < WANTED {
            failures.push(format!("{name}, seed {seed}: held-out accuracy {before} to {after}"));
        }
    }
    assert!(failures.is_empty(), "below {WANTED} after {STEPS} steps:\n{}", failures.join("\n"));
    // What rises without a reward that means something is not learning.
    let (before, after) = accuracies(&scene, "coin");
    assert!(after < before + 0.15, "seed {seed}: a coin as reward took {before} to {after}");
}

#[test]
fn every_method_learns_arithmetic_with_seed_1() {
    all_learn(1);
}

#[test]
fn every_method_learns_arithmetic_with_seed_2() {
    all_learn(2);
}

#[test]
fn every_method_learns_arithmetic_with_seed_3() {
    all_learn(3);
}
