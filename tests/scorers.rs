//! Learned rewards and scorers of the user's in whole runs: trained from pairs, judged by, broken.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use support::{Scene, skipped, text};
use tallow::reward_scorer::{FolderScorers, RewardScorer};
use tallow_policies::{Keep, PackedSequences, Pass};
use tallow_verifiers::{
    Message, Preparation, Reference, ScorerLoader, StopReason, Transcript, Verifiers,
};

/// A reward model, then RL by it, DPO, and an evaluation by the true reward.
const LEARNED: &str = r#"name = "learned"
seed = 3

[model]
layers = 1
hidden = 16
intermediate = 32
heads = 2
context = 32

[[stage]]
kind = "tokenizer"
type = "characters"
alphabet = "0123456789+=?"

[[stage]]
kind = "pretrain"
steps = 30
batch = 16
loss_on = "replies"
evaluate_every = 0
checkpoint_every = 0

[stage.documents]
kind = "environment"
env = { name = "digit_sum", digits = 3, modulus = 10 }
styles = { bare = 0.5, chain = 0.5 }

[stage.optimizer]
learning_rate = 3e-3

[[stage]]
kind = "reward_model"
name = "reward"
batch = 4
epochs = 3
evaluate_every = 5
checkpoint_every = 2
loss = { centering = 0.01 }
optimizer = { learning_rate = 1e-3 }

[stage.pairs]
kind = "file"
path = "pairs.jsonl"
held_out = 0.3

[[stage]]
kind = "rl"
steps = 4
groups_per_step = 4
group_size = 4
env = { name = "digit_sum", digits = 3, modulus = 10 }
verifier = { name = "reward_model", stage = "reward", scale = 2.0 }
checkpoint_every = 2
cut_off_is_malformed = false
sampling = { max_tokens = 8 }
algorithm = { name = "grpo" }
evaluation = { tasks = 4, samples = 2, k = [1] }

[[stage]]
kind = "dpo"
batch = 4
steps = 6
evaluate_every = 3
checkpoint_every = 2
loss = { beta = 0.2 }
optimizer = { learning_rate = 1e-3 }

[stage.pairs]
kind = "file"
path = "pairs.jsonl"
held_out = 0.3
"#;

/// Sums, of which the longer way to say it is preferred.
fn pairs() -> String {
    (0..60u32)
        .map(|it| {
            let prompt = format!("{}+{}=?", it % 10, it / 10);
            let sum = it % 10 + it / 10;
            let pair = json!({
                "prompt": prompt,
                "chosen": format!("{}+{}={sum}", it % 10, it / 10),
                "rejected": sum.to_string(),
            });
            format!("{pair}\n")
        })
        .collect()
}

fn scene() -> Scene {
    let scene = Scene::new();
    scene.write("pairs.jsonl", pairs());
    scene.write("tiny.toml", LEARNED);
    scene
}

fn metrics(scene: &Scene, out: &str, stage: &str) -> Vec<Value> {
    scene
        .read(&format!("{out}/metrics.jsonl"))
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a line is one object"))
        .filter(|line| line["stage"] == stage)
        .collect()
}

/// The last value of a metric.
fn last(lines: &[Value], key: &str) -> f64 {
    lines.iter().rev().find_map(|it| it[key].as_f64()).unwrap_or_else(|| panic!("no {key}"))
}

#[test]
fn a_reward_model_learns_its_pairs_and_the_policy_goes_on() {
    let scene = scene();
    scene.run("run", &["--set=reward.epochs=30", "--set=reward.optimizer.learning_rate=3e-3"]);
    let lines = metrics(&scene, "run", "reward");
    assert!(last(&lines, "eval/accuracy") > 0.9, "{lines:?}");
    assert!(last(&lines, "eval/accuracy_low") > 0.5);
    assert!(last(&lines, "eval/loss") < 0.5);
    assert!(last(&lines, "eval/reward_std") > 0.0);
    assert!(lines.iter().any(|it| it["calibration/bin_5_pairs"].is_number()));
    assert!(last(&metrics(&scene, "run", "rl"), "rollout/reward_std") > 0.0);
    assert!(last(&metrics(&scene, "run", "dpo"), "eval/accuracy") > 0.5);
    let config = scene.read("run/models/reward/config.json");
    assert!(config.contains("LlamaForSequenceClassification"), "{config}");
    assert!(scene.path("run/models/reward/tokenizer.json").is_file());
    assert!(scene.read("run/models/rl/config.json").contains("LlamaForCausalLM"));
    let report = scene.read("run/report.md");
    assert!(report.contains("Pairs ranked right") && report.contains("Calibration"), "{report}");
}

#[test]
fn a_policy_that_a_reward_model_was_made_of_is_unchanged() {
    let scene = scene();
    // Without learning the policy of the last stage is that of the first.
    let still = ["--set=rl.optimizer.learning_rate=0.0", "--set=dpo.optimizer.learning_rate=0.0"];
    scene.run("run", &still);
    let weights = |stage: &str| {
        std::fs::read(scene.path(format!("run/models/{stage}/model.safetensors"))).expect("weights")
    };
    assert!(weights("pretrain") == weights("rl"));
    assert!(weights("pretrain") == weights("dpo"));
    assert!(weights("pretrain") != weights("reward"));
}

#[test]
fn kills_change_nothing_for_learned_rewards() {
    let scene = scene();
    let begun = std::time::Instant::now();
    scene.run("whole", &[]);
    let duration = begun.elapsed();
    let mut kills = 0;
    for share in [0.3, 0.5, 0.1, 0.7, 0.4, 0.6, 0.2, 0.8] {
        let begun = scene.status("killed");
        if begun.as_deref() == Some("done") {
            break;
        }
        let more: &[&str] = if begun.is_some() { &["--resume"] } else { &[] };
        let mut child = scene.spawn("killed", more);
        // Not for correctness: it chooses the moment of the kill.
        std::thread::sleep(duration.mul_f64(share));
        if child.try_wait().expect("a child of ours").is_none() {
            child.kill().expect("a child of ours");
            kills += 1;
        }
        child.wait().expect("a child of ours");
    }
    assert!(kills > 0);
    if scene.status("killed").as_deref() != Some("done") {
        let begun = scene.status("killed").is_some();
        scene.run("killed", if begun { &["--resume"] } else { &[] });
    }
    scene.check_same_results("whole", "killed", &format!("after {kills} kills"));
}

#[test]
fn a_stopped_run_goes_on_with_the_policy_and_not_with_the_scorer() {
    let scene = scene();
    scene.run("whole", &[]);
    scene.run("stopped", &[]);
    // As a kill between the reward model and the next stage leaves it.
    for stage in ["rl", "dpo"] {
        std::fs::remove_dir_all(scene.path(format!("stopped/models/{stage}"))).expect("a model");
        let checkpoints = scene.path(format!("stopped/checkpoints/{stage}"));
        std::fs::remove_dir_all(checkpoints).expect("checkpoints");
    }
    let record =
        scene.read("stopped/run.json").replace(r#""status": "done""#, r#""status": "running""#);
    scene.write("stopped/run.json", record);
    scene.run("stopped", &["--resume"]);
    scene.check_same_results("whole", "stopped", "after the reward model");
}

#[test]
fn sampled_pairs_are_labelled_kept_in_checkpoints_and_the_same_after_kills() {
    let scene = scene();
    let sampled = LEARNED.replacen(
        "kind = \"file\"\npath = \"pairs.jsonl\"\nheld_out = 0.3",
        "kind = \"sampled\"\nenv = { name = \"digit_sum\", digits = 3, modulus = 10 }\ntasks = 64\n\
         test_tasks = 32\nreplies = 6\npairs_per_task = 4\nnoise = 0.1\nlabel_temperature = 0.5\n\
         sampling = { max_tokens = 8 }",
        1,
    );
    let through_reward = &sampled[..sampled.find("[[stage]]\nkind = \"rl\"").expect("a stage")];
    scene.write("tiny.toml", through_reward);
    scene.run("whole", &[]);
    let lines = metrics(&scene, "whole", "reward");
    assert!(last(&lines, "eval/loss").is_finite());
    let mut child = scene.spawn("killed", &[]);
    while scene.checkpoints("killed", "reward").is_empty() {
        assert!(child.try_wait().expect("a child of ours").is_none(), "it ended too early");
        std::thread::yield_now();
    }
    child.kill().expect("a child of ours");
    child.wait().expect("a child of ours");
    let kept = scene.checkpoints("killed", "reward");
    assert!(kept.iter().any(|it| it.join("pairs_train.jsonl").is_file()));
    scene.run("killed", &["--resume"]);
    scene.check_same_results("whole", "killed", "after a kill");
}

#[test]
fn variants_share_a_reward_model() {
    let scene = scene();
    // The last shares the reward model of the third, and the policy of the first.
    let variants = [
        ("one", ""),
        ("two", r#""rl.steps=5""#),
        ("three", r#""reward.epochs=2""#),
        ("four", r#""reward.epochs=2", "rl.steps=5""#),
    ]
    .map(|(name, set)| format!("[[variant]]\nname = \"{name}\"\nset = [{set}]\n"));
    scene.write("tiny.toml", format!("{LEARNED}\n{}", variants.join("\n")));
    scene.run("run", &[]);
    let model = |variant: &str| {
        std::fs::read(scene.path(format!("run/variants/{variant}/models/reward/model.safetensors")))
            .expect("a reward model")
    };
    assert!(model("one") == model("two") && model("three") == model("four"));
    assert!(model("one") != model("three"));
    // Neither was trained twice.
    for variant in ["two", "four"] {
        let run = format!("run/variants/{variant}");
        assert!(metrics(&scene, &run, "reward").is_empty());
        assert!(last(&metrics(&scene, &run, "rl"), "rollout/reward_std") > 0.0);
    }
}

#[test]
fn the_verifier_gives_what_the_model_gives() {
    let scene = scene();
    scene.run("run", &["--set=rl.steps=1", "--set=dpo.steps=1"]);
    let verifiers = Verifiers::builtin()
        .with_scorer_loader(Arc::new(FolderScorers::default()))
        .after_stages(["reward".to_owned()]);
    let options = json!({"stage": "reward", "offset": 0.5, "scale": 2.0});
    let verifier = verifiers.build("reward_model", options).expect("built");
    let models = scene.path("run/models");
    verifier.prepare(&Preparation { models: Some(&models) }).expect("the model is there");
    let transcripts: Vec<Transcript> = ["1+2=3", "3", "", "12+12+12"]
        .map(|reply| Transcript {
            messages: vec![Message::user("1+2=?"), Message::assistant(reply)],
            stop: StopReason::Finished,
        })
        .to_vec();
    let verdicts = verifier.verify_group(&transcripts, &Reference::None);
    let scorer =
        RewardScorer::from_folder(&models.join("reward"), &Default::default()).expect("a scorer");
    for (transcript, verdict) in transcripts.iter().zip(verdicts) {
        let ids = scorer.ids(transcript).expect("ids");
        let row = scorer.model().pooled_position(&ids) as u32;
        let packed = PackedSequences::of_lengths(&ids, &[ids.len()]);
        let mut pass = Pass::new(Keep::Nothing);
        let value = scorer.model().values(&mut pass, &packed, &[row]).expect("a value")[0];
        let verdict = verdict.expect("a verdict");
        assert_eq!(verdict.parts, [("score".to_owned(), value)]);
        assert_eq!(verdict.reward, (value - 0.5) * 2.0);
    }
}

#[test]
fn wrong_uses_of_reward_models_are_told_before_the_start() {
    let scene = scene();
    for (from, to, told) in [
        ("stage = \"reward\",", "stage = \"pretrain\",", "`pretrain`"),
        ("stage = \"reward\",", "model = \"nowhere\",", "no model folder there"),
        ("path = \"pairs.jsonl\"", "path = \"none.jsonl\"", "cannot read none.jsonl"),
        ("loss = { centering = 0.01 }", "loss = { centering = -1.0 }", "not a weight"),
        ("loss = { beta = 0.2 }", "loss = { beta = 0.0 }", "hold the policy to the reference"),
        ("epochs = 3", "epochs = 0.0", "no number of passes"),
        (
            "optimizer = { learning_rate = 1e-3 }",
            "optimizer = { lora = { rank = 2 } }",
            "a reward model is trained whole",
        ),
        ("kind = \"file\"", "kind = \"files\"", "`file`"),
    ] {
        scene.write("tiny.toml", LEARNED.replacen(from, to, 1));
        let output = scene.output(["check", "tiny.toml"]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{to}: {stderr}");
        assert!(stderr.contains(told), "{to}: {stderr}");
        // A verifier that uses a stage whose table is at fault is no second mistake.
        assert!(!stderr.contains("no earlier stage called `reward`"), "{to}: {stderr}");
        assert!(!stderr.contains("no stage before this one"), "{to}: {stderr}");
    }
}

#[test]
fn a_verifier_that_needs_something_outside_is_attacked_with_cases_only() {
    let scene = Scene::new();
    for (name, needs) in [("process", "a program"), ("reward_model", "a model")] {
        let output = scene.output(["attack", name]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let told = format!("`{name}` needs {needs} and has no cases of its own");
        assert!(stderr.contains(&told), "{stderr}");
    }
}

/// RL alone, judged by what stands in for VERIFIER.
const JUDGED: &str = r#"name = "judged"
seed = 3

[model]
layers = 1
hidden = 16
intermediate = 32
heads = 2
context = 32

[[stage]]
kind = "tokenizer"
type = "characters"
alphabet = "0123456789+=?"

[[stage]]
kind = "rl"
steps = 6
groups_per_step = 8
group_size = 2
env = { name = "digit_sum", digits = 3, modulus = 10 }
verifier = VERIFIER
checkpoint_every = 0
cut_off_is_malformed = false
sampling = { max_tokens = 8 }
algorithm = { name = "grpo" }
evaluation = { tasks = 0 }
"#;

/// A scorer in shell that answers so many requests, then ends for good.
fn dying_program(scene: &Scene, answers: u32) -> String {
    let script = format!(
        "#!/bin/sh\n\
         count=$(cat asked 2>/dev/null || echo 0)\n\
         while read -r line; do\n\
           id=$(printf '%s' \"$line\" | sed 's/.*\"id\":\\([0-9]*\\).*/\\1/')\n\
           items=$(printf '%s' \"$line\" | grep -o '\"reply\"' | wc -l)\n\
           if [ \"$items\" -gt 0 ]; then\n\
             count=$((count + 1)); echo $count > asked\n\
             if [ $count -gt {answers} ]; then echo 'out of memory' >&2; exit 3; fi\n\
           fi\n\
           results=''\n\
           for it in $(seq \"$items\"); do results=\"$results,{{\\\"reward\\\":0.$it}}\"; done\n\
           printf '{{\"id\":%s,\"results\":[%s]}}\\n' \"$id\" \"${{results#,}}\"\n\
         done\n"
    );
    scene.write("scorer.sh", script);
    JUDGED.replace("VERIFIER", r#"{ name = "process", command = ["sh", "scorer.sh"] }"#)
}

#[test]
fn a_program_that_dies_midway_stops_the_run_and_scores_nothing() {
    let scene = Scene::new();
    let config = dying_program(&scene, 20);
    scene.write("tiny.toml", config);
    let output = scene.output(["run", "tiny.toml", "--quiet", "--out", "run"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("the verifier") && stderr.contains("scorer.sh"), "{stderr}");
    // Two whole steps of eight groups; what broke in the third was not learned from.
    let lines = metrics(&scene, "run", "rl");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|it| it["rollout/verifier_errors"] == 0.0));
    assert_eq!(scene.status("run").as_deref(), Some("failed"));
}

#[test]
fn broken_verdicts_are_dropped_and_counted_where_they_are_allowed() {
    let scene = Scene::new();
    let config = dying_program(&scene, 20)
        .replace("steps = 6", "steps = 4\nrollout = { largest_broken_share = 1.0 }");
    scene.write("tiny.toml", config);
    scene.run("run", &[]);
    let lines = metrics(&scene, "run", "rl");
    let broken: f64 = lines.iter().filter_map(|it| it["rollout/verifier_errors"].as_f64()).sum();
    // Of 32 groups of two, 20 were judged.
    assert_eq!(broken, 24.0, "{lines:?}");
    assert!(lines[0]["rollout/reward_mean"].as_f64().expect("a mean") > 0.1);
    assert!(lines[1]["rollout/reward_mean"].as_f64().expect("a mean") > 0.1);
}

#[test]
fn a_server_that_dies_midway_stops_the_run_and_is_named() {
    let scene = Scene::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    // Answers ten groups, then hangs up on everybody.
    let served = std::thread::spawn(move || {
        let mut left = 10;
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
            let mut length = 0;
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|it| it > 2) {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("a whole request");
            let request: Value = serde_json::from_slice(&body).expect("a request");
            let items = request["items"].as_array().expect("items");
            let results: Vec<Value> =
                (0..items.len()).map(|it| json!({"reward": it as f64 / 10.0})).collect();
            let answer = json!({"id": request["id"], "results": results}).to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                answer.len()
            );
            stream.write_all(format!("{head}{answer}").as_bytes()).expect("the answer is sent");
            left -= usize::from(!items.is_empty());
            if left == 0 {
                return;
            }
        }
    });
    let verifier = format!(
        r#"{{ name = "http", url = "http://{address}/score", retries = 0, timeout_s = 5.0 }}"#
    );
    scene.write("tiny.toml", JUDGED.replace("VERIFIER", &verifier));
    let output = scene.output(["run", "tiny.toml", "--quiet", "--out", "run"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&address.to_string()), "{stderr}");
    assert_eq!(metrics(&scene, "run", "rl").len(), 1);
    served.join().expect("the server ended");
}

#[test]
fn transformers_gives_the_scores_of_a_trained_reward_model() {
    let Some(python) = std::env::var_os("TALLOW_PYTHON") else {
        skipped("set TALLOW_PYTHON to a Python with torch and transformers");
        return;
    };
    let scene = scene();
    scene.run("run", &["--set=rl.steps=1", "--set=dpo.steps=1", "--set=reward.epochs=10"]);
    let folder = scene.path("run/models/reward");
    let scorer = RewardScorer::from_folder(&folder, &Default::default()).expect("a scorer");
    let texts: Vec<Vec<u32>> = pairs()
        .lines()
        .map(|line| {
            let pair: Value = serde_json::from_str(line).expect("a line");
            let said = |key: &str| pair[key].as_str().expect("a text").to_owned();
            let transcript = Transcript {
                messages: vec![Message::user(said("prompt")), Message::assistant(said("chosen"))],
                stop: StopReason::Finished,
            };
            scorer.ids(&transcript).expect("ids")
        })
        .collect();
    scene.write("ids.json", json!(texts).to_string());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/reward_scores.py");
    let mut command = Command::new(python);
    command.arg(script).arg(&folder).arg(scene.path("ids.json"));
    let output = command.output().expect("python starts");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let expected: Vec<f64> = serde_json::from_slice(&output.stdout).expect("scores");
    let loaded = FolderScorers::default().load(&folder);
    drop(loaded.expect("the loader takes it, too"));
    let found = tallow::learner::reward::scores(scorer.model(), &texts, 4096).expect("scores");
    let largest = found
        .iter()
        .zip(&expected)
        .map(|(found, expected)| (f64::from(*found) - expected).abs())
        .fold(0.0, f64::max);
    assert_eq!(found.len(), expected.len());
    assert!(largest < 1e-5, "off by {largest}");
    eprintln!("off by {largest:.1e} at most over {} texts", found.len());
}
