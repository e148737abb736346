//! Paths through the whole program that no other test takes: rollouts that run ahead of the learner,
//! multi-turn episodes token by token, a policy that must learn, and the smoke experiment.

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use support::Scene;
use tallow::registry::Registry;
use tallow::renderer::Renderer;
use tallow::rollout::episode::{EpisodePlan, LiveEpisode, Next};
use tallow_envs::{BuildContext, Seed, Split};
use tallow_policies::{Completion, FinishReason, SamplingParams, Tokenizer};

fn metrics(scene: &Scene, run: &str) -> Vec<Value> {
    let text = scene.read(&format!("{run}/metrics.jsonl"));
    text.lines().map(|it| serde_json::from_str(it).expect("a line of metrics")).collect()
}

#[test]
fn rollouts_that_run_ahead_are_counted_stale_and_every_evaluation_is_made() {
    let scene = Scene::new();
    let free = ["--set=rl.rollout.lockstep=false", "--set=rl.rollout.max_staleness=2"];
    scene.run("free", &free);
    let lines = metrics(&scene, "free");
    let staleness: Vec<f64> =
        lines.iter().filter_map(|it| it["learner/staleness_mean"].as_f64()).collect();
    assert!(staleness.iter().all(|it| (0.0..=2.0).contains(it)), "{staleness:?}");
    for line in lines.iter().filter(|it| it["rollout/accuracy"].is_number()) {
        let bars = (0..=2).map(|it| line[format!("learner/staleness_{it}").as_str()].as_f64());
        let bars: Vec<f64> = bars.map(|it| it.expect("a bar for each allowed delay")).collect();
        assert!((bars.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{bars:?}");
    }
    let evaluated: Vec<u64> = lines
        .iter()
        .filter(|it| it["stage"] == "rl" && !it["eval/accuracy"].is_null())
        .filter_map(|it| it["step"].as_u64())
        .collect();
    assert_eq!(evaluated, [0, 4, 8]);
}

#[test]
fn two_stages_of_one_kind_keep_their_own_steps() {
    let scene = Scene::new();
    let start = support::TINY.find("[[stage]]\nkind = \"rl\"").expect("it has rl");
    let end = support::TINY.find("[[stage]]\nkind = \"eval\"").expect("it evaluates");
    let (before, rl) = (&support::TINY[..start], &support::TINY[start..end]);
    let named =
        |name: &str| rl.replace("kind = \"rl\"", &format!("kind = \"rl\"\nname = \"{name}\""));
    scene.write("tiny.toml", format!("{before}{}{}", named("easy"), named("hard")));
    scene.run("run", &["--set=hard.steps=4"]);
    let lines = metrics(&scene, "run");
    for (stage, steps) in [("easy", 8), ("hard", 4)] {
        let logged: Vec<u64> = lines
            .iter()
            .filter(|it| it["stage"] == stage && it["rollout/accuracy"].is_number())
            .filter_map(|it| it["step"].as_u64())
            .collect();
        assert_eq!(logged, (1..=steps).collect::<Vec<_>>(), "{stage}");
        let samples = scene.path("run/samples").join(stage);
        let kept = tallow::samples::steps_in(&scene.path("run/samples"), stage).expect("samples");
        assert_eq!(kept, [0, 1].into_iter().chain((2..=steps).step_by(2)).collect::<Vec<_>>());
        let first = tallow::samples::read_samples(&samples.join("step_000001.jsonl.zst"));
        assert_eq!(first.expect("rollouts").len(), 16, "{stage}");
    }
    let report = scene.read("run/report.md");
    for heading in ["tiny, easy, step 8", "tiny, hard, step 4", "| tiny, easy | tiny, hard |"] {
        assert!(report.contains(heading), "{heading} in\n{report}");
    }
}

#[test]
fn every_variant_runs_once_with_each_seed() {
    let scene = Scene::new();
    let config = support::TINY.replace("seed = 3\n", "seeds = [3, 5]\n")
        + "\n[[variant]]\nname = \"one\"\n\n[[variant]]\nname = \"other\"\nset = [\"rl.steps=1\"]\n";
    scene.write("tiny.toml", config);
    scene.run("run", &["--set=pretrain.steps=5"]);
    let weights = |run: &str| {
        let path = scene.path(format!("run/variants/{run}/models/pretrain/model.safetensors"));
        std::fs::read(path).expect("a model")
    };
    assert_ne!(weights("one/seed_3"), weights("one/seed_5"));
    assert!(scene.path("run/variants/other/seed_5/metrics.jsonl").is_file());
    let report = scene.read("run/report.md");
    assert!(report.contains("one, rl (mean of 2 seeds)"), "{report}");
    // A seed of the command line is the only one.
    scene.run("single", &["--set=rl.steps=1", "--set=pretrain.steps=5", "--set=seed=5"]);
    assert!(scene.path("single/variants/one/metrics.jsonl").is_file());
    assert!(!scene.path("single/variants/one/seed_3").exists());
}

#[test]
fn chat_replies_to_each_line_and_outlives_one_it_cannot_read() {
    let scene = Scene::new();
    scene.run("run", &["--set=rl.steps=1", "--set=pretrain.steps=5"]);
    let mut command = scene.tallow(["chat", "--model", "run/models/rl", "--max-tokens", "2"]);
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().expect("the binary starts");
    let lines = "1+2?\nwhat?\n3?\n".to_owned() + &"4".repeat(20) + "\n";
    let mut stdin = child.stdin.take().expect("piped");
    std::io::Write::write_all(&mut stdin, lines.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", support::text(&output.stderr));
    let told = support::text(&output.stdout);
    assert_eq!(told.matches("model> ").count(), 2, "{told}");
    assert!(told.contains("no token for the character \"w\""), "{told}");
    assert!(told.contains("the model's context is full"), "{told}");
}

#[test]
fn a_tiny_policy_learns_from_the_verdicts_alone() {
    let scene = Scene::new();
    // A fifth of the pretraining documents think before they answer; the reward must choose those.
    let task = "{ name = \"digit_sum\", digits = 4, modulus = 5 }";
    let start = format!("--set=pretrain.documents.env={task}");
    let env = format!("--set=rl.env={task}");
    let check = format!("--set=eval.env={task}");
    let more = [
        start.as_str(),
        env.as_str(),
        check.as_str(),
        "--set=model.hidden=48",
        "--set=model.layers=2",
        "--set=model.rope_theta=100",
        "--set=pretrain.steps=700",
        "--set=pretrain.batch=32",
        "--set=pretrain.documents.styles={ bare = 0.8, chain = 0.2 }",
        "--set=pretrain.evaluate_every=0",
        "--set=pretrain.checkpoint_every=0",
        "--set=rl.steps=40",
        "--set=rl.sampling.max_tokens=12",
        "--set=rl.groups_per_step=16",
        "--set=rl.group_size=8",
        "--set=rl.algorithm.aggregation=sequence_mean",
        "--set=rl.optimizer.learning_rate=1e-3",
        "--set=rl.checkpoint_every=0",
        "--set=rl.evaluation.every=0",
        "--set=rl.evaluation.tasks=64",
        "--set=rl.evaluation.samples=4",
    ];
    scene.write("tiny.toml", support::TINY.replace("coin_reward = 0.5\n", ""));
    scene.run("learn", &more);
    let accuracy: Vec<f64> = metrics(&scene, "learn")
        .iter()
        .filter(|it| it["stage"] == "rl")
        .filter_map(|it| it["eval/accuracy"].as_f64())
        .collect();
    let (before, after) = (accuracy[0], accuracy[accuracy.len() - 1]);
    assert!(before < 0.5 && after > 0.85, "held-out accuracy went from {before} to {after}");
}

#[test]
fn the_smoke_experiment_goes_through_every_stage() {
    let scene = Scene::new();
    let config = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("experiments/smoke");
    let config = config.to_str().expect("a path of plain characters");
    let output = scene.output(["run", config, "--quiet", "--out", "smoke"]);
    assert!(output.status.success(), "{}", support::text(&output.stderr));
    for stage in ["tokenizer", "pretrain", "sft", "rl", "eval"] {
        assert!(scene.path(format!("smoke/models/{stage}")).is_dir(), "no model of {stage}");
    }
    let report = scene.read("smoke/report.html");
    assert!(report.contains("<svg"), "the report has plots");
    let lines = metrics(&scene, "smoke");
    let last = lines.iter().rev().find_map(|it| it["eval/accuracy"].as_f64());
    assert!(last.is_some_and(|it| it > 0.7), "final accuracy {last:?}");
}

#[test]
fn a_tool_call_is_answered_and_only_sampled_tokens_are_marked_as_such() {
    let context = BuildContext { folder: PathBuf::from("."), seed: Seed(1) };
    let registry = Registry::builtin();
    let environment = registry
        .environments
        .build("calculator", serde_json::json!({}), &context)
        .expect("the defaults are valid");
    let task = Arc::new(environment.task(Split::Train, 0).expect("a task"));
    let gold = environment.gold_reply(&task).expect("a gold reply");
    let alphabet: String = (' '..='~').chain("\n×·".chars()).collect();
    let tokenizer = Arc::new(Tokenizer::of_characters([alphabet.as_str()], None).expect("made"));
    let renderer = Renderer::new(Arc::clone(&tokenizer)).expect("plain");
    let plan = EpisodePlan {
        id: 0,
        group: 0,
        member: 0,
        task,
        params: Arc::new(SamplingParams::default()),
        seed: Seed(5),
        max_turns: 4,
    };
    let (mut episode, _) =
        LiveEpisode::start(plan, &*environment, &renderer).expect("the episode opens");
    let completion = |text: &str| {
        let mut tokens = tokenizer.encode(text).expect("encoded");
        tokens.push(tokenizer.end_id());
        let logprobs = vec![-0.5; tokens.len()];
        Completion {
            tokens,
            logprobs,
            kept_masses: Vec::new(),
            finish: FinishReason::Stop,
            versions: 3..=3,
        }
    };
    let call = "<calc>12*345</calc>";
    let Next::Reply(request) = episode.reply(completion(call), &renderer).expect("played") else {
        panic!("a tool call does not end the episode");
    };
    let seen = tokenizer.decode(&request.prompt).expect("text");
    assert!(seen.contains("4140"), "the tool's answer is in what comes next: {seen}");
    let Next::Ended(trajectory) = episode.reply(completion(&gold), &renderer).expect("played")
    else {
        panic!("an answer ends the episode");
    };
    let sampled: Vec<String> = trajectory
        .turns
        .iter()
        .map(|it| tokenizer.decode(&trajectory.tokens[it.range.clone()]).expect("text"))
        .collect();
    assert_eq!(sampled, [call.to_string(), gold]);
    assert_eq!(trajectory.logprobs().len(), trajectory.sampled_tokens());
    assert_eq!(trajectory.versions, 3..=3);
}

/// A tokenizer of `fixtures/tokenizers`.
fn published(name: &str) -> Arc<Tokenizer> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers");
    Arc::new(Tokenizer::from_folder(&folder.join(name)).expect("a tokenizer"))
}

#[test]
fn a_later_turn_is_the_ids_so_far_whatever_the_template_does_to_history() {
    let context = BuildContext { folder: PathBuf::from("."), seed: Seed(1) };
    let environment = Registry::builtin()
        .environments
        .build("calculator", serde_json::json!({}), &context)
        .expect("the defaults are valid");
    for (name, options) in [
        ("smollm2", serde_json::json!({})),
        ("qwen3", serde_json::json!({})),
        ("qwen3", serde_json::json!({"enable_thinking": false})),
    ] {
        let tokenizer = published(name);
        let options = options.as_object().expect("an object").clone();
        let thinks = options.is_empty();
        let renderer = Renderer::with_options(Arc::clone(&tokenizer), options).expect("a template");
        let plan = EpisodePlan {
            id: 0,
            group: 0,
            member: 0,
            task: Arc::new(environment.task(Split::Train, 0).expect("a task")),
            params: Arc::new(SamplingParams::default()),
            seed: Seed(5),
            max_turns: 4,
        };
        let (mut episode, Next::Reply(first)) =
            LiveEpisode::start(plan, &*environment, &renderer).expect("the episode opens")
        else {
            panic!("an episode begins with a reply");
        };
        let mut seen = first.prompt.to_vec();
        for turn in 0..3 {
            // Letter by letter: no tokenizer cuts text so, and encoding it again would show.
            let text = format!("<think>\nwhat is it, {turn}?\n</think>\n\n<calc>12*{turn}</calc>");
            let mut sampled: Vec<u32> = text
                .chars()
                .flat_map(|it| tokenizer.encode(&it.to_string()).expect("a letter"))
                .collect();
            assert_ne!(sampled, tokenizer.encode(&text).expect("encoded"));
            sampled.push(tokenizer.end_id());
            let completion = Completion {
                logprobs: vec![-0.5; sampled.len()],
                kept_masses: Vec::new(),
                tokens: sampled.clone(),
                finish: FinishReason::Stop,
                versions: 0..=0,
            };
            let next = episode.reply(completion, &renderer).expect("played");
            let Next::Reply(request) = next else { panic!("a tool call goes on") };
            seen.extend(sampled);
            let (before, added) = request.prompt.split_at(seen.len());
            assert_eq!(before, seen, "{name}, turn {turn}: earlier ids are kept");
            let added = tokenizer.decode_with_specials(added).expect("text");
            assert!(added.starts_with("\n<|im_start|>"), "{name}: {added:?}");
            assert!(added.contains(&(12 * turn).to_string()), "{name}: {added:?}");
            assert_eq!(added.matches("<|im_end|>").count(), 1, "{name}: {added:?}");
            let opened = if name == "qwen3" && !thinks { "<think>\n\n</think>\n\n" } else { "" };
            let end = format!("<|im_start|>assistant\n{opened}");
            assert!(added.ends_with(&end), "{name}: {added:?}");
            seen = request.prompt.to_vec();
        }
    }
}

#[test]
fn training_on_a_conversation_sees_what_sampling_would_have_seen() {
    use tallow_verifiers::Message;
    let tokenizer = published("qwen3");
    let renderer = Renderer::new(Arc::clone(&tokenizer)).expect("a template");
    let replies = ["<think>\none and one\n</think>\n\n2", "<think>\nless\n</think>\n\n1"];
    let messages = [
        Message::user("1+1?"),
        Message::assistant(replies[0]),
        Message::user("minus 1?"),
        Message::assistant(replies[1]),
    ];
    let rendered = renderer.conversation(&messages).expect("rendered");
    // The same by hand, as an episode does it.
    let reply = |it: &str| tokenizer.encode(&format!("{it}<|im_end|>")).expect("encoded");
    let mut ids = renderer.prompt(&messages[..1]).expect("a prompt");
    let mut is_reply = vec![false; ids.len()];
    ids.extend(reply(replies[0]));
    is_reply.resize(ids.len(), true);
    ids.extend(renderer.continuation(&messages[2..3], true).expect("a continuation"));
    is_reply.resize(ids.len(), false);
    ids.extend(reply(replies[1]));
    is_reply.resize(ids.len(), true);
    assert_eq!(rendered.tokens[..ids.len()], ids);
    assert_eq!(rendered.is_reply[..ids.len()], is_reply);
    assert_eq!(tokenizer.decode(&rendered.tokens[ids.len()..]).expect("text"), "\n");
    // Rendering it at once would have left the first thought out.
    let whole = renderer.prompt(&messages[..3]).expect("a prompt");
    assert!(!tokenizer.decode(&whole).expect("text").contains("one and one"));
    assert!(tokenizer.decode(&ids).expect("text").contains("one and one"));
}
