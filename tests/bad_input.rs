//! What is wrong is told once and clearly, with the place and the way out, and nothing is lost.
//!
//! Status 2: the request or the configuration; nothing was started. Status 1: work failed.

mod support;

use std::path::{Path, PathBuf};
use std::process::Output;

use support::{Mounted, Scene, TINY, skipped, text};

/// Asserts the status, that exactly `errors` errors are told and no panic, and that the message
/// holds every one of `parts`.
fn check_told(output: &Output, status: i32, errors: usize, parts: &[&str]) {
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{told}");
    let found = told.lines().filter(|it| it.starts_with("error")).count();
    assert_eq!(found, errors, "number of errors in:\n{told}");
    assert!(!told.contains("panicked"), "{told}");
    for part in parts {
        assert!(told.contains(part), "`{part}` is missing in:\n{told}");
    }
}

/// `tallow check tiny.toml --set SETTING` must be refused with one error.
fn check_refused(setting: &str, parts: &[&str]) {
    let scene = Scene::new();
    let output = scene.output(["check", "tiny.toml", "--set", setting]);
    check_told(&output, 2, 1, parts);
    assert!(text(&output.stderr).contains("nothing was started"));
}

/// Everything of `stage` and after it in the tiny experiment.
fn from_stage(kind: &str) -> &'static str {
    let start = TINY.find(&format!("[[stage]]\nkind = \"{kind}\"")).expect("the stage is there");
    &TINY[start..]
}

/// The tiny experiment's tokenizer and rl stage, with tasks from `file`.
fn with_tasks_from(file: &str) -> String {
    let before = &TINY[..TINY.find("[[stage]]\nkind = \"pretrain\"").expect("it pretrains")];
    let after = from_stage("rl");
    let rl = &after[..after.find("[[stage]]\nkind = \"eval\"").expect("it evaluates")];
    let env = r#"env = { name = "digit_sum", digits = 3, modulus = 10 }"#;
    let tasks = format!("env = {{ name = \"jsonl\", path = \"{file}\" }}");
    format!("{before}{}", rl.replace(env, &tasks))
}

#[test]
fn an_unknown_key_is_shown_in_its_line_with_the_nearest_known_one() {
    let scene = Scene::new();
    scene.write("tiny.toml", TINY.replace("group_size = 4", "group_sise = 4"));
    let line = 1 + TINY.lines().position(|it| it == "group_size = 4").expect("the key is there");
    let output = scene.output(["check", "tiny.toml"]);
    let place = format!("tiny.toml:{line}:1");
    check_told(
        &output,
        2,
        1,
        &[
            "unknown key `group_sise`",
            &place,
            "stage[2].group_sise",
            "hint: did you mean `group_size`?",
        ],
    );
}

#[test]
fn several_problems_are_told_at_once() {
    let scene = Scene::new();
    let text = TINY
        .replace("group_size = 4", "group_sise = 4")
        .replace("hidden = 16", "hidden = \"x\"")
        .replace("batch = 16", "batch = 0")
        .replace("name = \"grpo\"", "name = \"gprpo\"");
    scene.write("tiny.toml", text);
    let output = scene.output(["run", "tiny.toml", "--out", "run"]);
    check_told(
        &output,
        2,
        4,
        &[
            "`hidden` has the wrong type",
            "batch must not be 0",
            "group_sise",
            "gprpo",
            "4 problems",
        ],
    );
    assert!(!scene.path("run").exists(), "nothing was started");
}

#[test]
fn a_wrong_type_is_told_with_the_right_one() {
    check_refused(
        "rl.steps=\"many\"",
        &["`steps` has the wrong type: found a string, expected a whole number", "stage[2].steps"],
    );
}

#[test]
fn batches_that_cannot_be_made_are_refused() {
    check_refused(
        "rl.minibatches=3",
        &[
            "do not divide into the minibatches",
            "found 16 replies in 3 minibatches",
            "a divisor of",
        ],
    );
    check_refused(
        "rl.group_size=1",
        &["`grpo` compares the replies", "found 1, expected 2 or more", "hint: set group_size = 8"],
    );
    check_refused("rl.sampling.max_tokens=0", &["max_tokens must not be 0", "expected 1 or more"]);
    check_refused("pretrain.batch=0", &["batch must not be 0"]);
}

#[test]
fn numbers_out_of_range_are_refused() {
    check_refused("rl.optimizer.learning_rate=-1", &["not a learning rate: found -1"]);
    check_refused("pretrain.optimizer.learning_rate=nan", &["not a learning rate: found NaN"]);
    check_refused("rl.optimizer.adamw.clip_norm=0.0", &["clip_norm", "a number above 0"]);
    check_refused("rl.sampling.temperature=0.0", &["training needs replies that differ"]);
    check_refused("rl.coin_reward=1.5", &["not a probability: found 1.5"]);
    check_refused("rl.sampling.temperature=1e-40", &["not a temperature: found", "at least"]);
    check_refused("rl.evaluation.samples=0", &["without replies", "evaluation.samples"]);
    check_refused("rl.evaluation.temperature=-1", &["not a temperature: found -1"]);
    check_refused("eval.sampling.min_p=2", &["likeliest token's probability: found 2"]);
    check_refused("eval.evaluation.tasks=0", &["evaluation.tasks must not be 0"]);
    check_refused("eval.evaluation.k=[0]", &["no task is solved within 0 tries"]);
    check_refused("rl.rollout.largest_broken_share=-1", &["not a share: found -1"]);
    check_refused("model.rope_theta=0", &["rope_theta is no positive number: found 0"]);
    check_refused("model.intermediate=0", &["model.intermediate"]);
    check_refused("model.init.std=-1", &["not a standard deviation: found -1"]);
    check_refused("rl.optimizer.lora={rank=0}", &["optimizer.lora.rank", "without rank"]);
    check_refused("pretrain.optimizer.lora={targets=['qkv']}", &["found qkv", "q_proj, k_proj"]);
    check_refused("rl.optimizer.lora={alpha=0.0}", &["optimizer.lora.alpha"]);
    check_refused("rl.optimizer.lora={dropout=0.1}", &["dropout"]);
    check_refused("model.adapter=x", &["an adapter needs the model", "model.folder"]);
    check_refused("model.layers=100000000", &["layers is beyond any model", "at most"]);
    check_refused("stage[0].documents={ kind = \"text\" }", &["there is no file to read"]);
    // What does not fit into 64 bits must not look small.
    let scene = Scene::new();
    let output = scene.output(["check", "tiny.toml", "--set=rl.group_size=4611686018427387904"]);
    check_told(&output, 2, 1, &["stage `rl` needs about", "hint: lower"]);
    let output = scene.output(["check", "tiny.toml", "--set=rl.rollout.cache_mib=0"]);
    check_told(&output, 2, 1, &["may hold 0 B of keys and values", "raise rollout.cache_mib"]);
    check_refused(
        "model.hidden=17",
        &["do not divide the hidden width", "2 heads of a width of 17"],
    );
}

#[test]
fn names_that_lead_out_of_the_run_folder_are_refused() {
    for setting in ["stage[2].name=../rl", "stage[2].name=\"\"", "stage[2].name=.rl", "name=../x"] {
        check_refused(setting, &["this name cannot be that of a folder"]);
    }
}

#[test]
fn flags_that_nothing_can_be_sampled_by_are_refused() {
    let scene = Scene::new();
    scene.write("prompts.jsonl", "");
    for (flags, told) in [
        (["generate", "--prompts=prompts.jsonl", "--temperature=nan"], "--temperature NaN"),
        (["generate", "--prompts=prompts.jsonl", "--max-tokens=0"], "--max-tokens"),
        (["chat", "--model=.", "--min-p=2"], "--min-p 2"),
        (["eval", "--env=digit_sum", "--samples=0"], "--samples"),
        (["eval", "--env=digit_sum", "--limit=0"], "--limit 0"),
    ] {
        // Told before the model is looked for: there is none.
        let model = if flags[0] == "chat" { vec![] } else { vec!["--model=."] };
        let output = scene.output(flags.into_iter().chain(model));
        check_told(&output, 2, 1, &[told, "hint: give"]);
    }
    let output = scene.output(["eval", "--model=.", "--env=digit_sum", "--verifier=countdown"]);
    check_told(
        &output,
        2,
        1,
        &["`countdown` cannot judge this environment's tasks", "kind custom"],
    );
}

#[test]
fn lines_that_cannot_be_written_are_told_before_the_work_and_never_lost() {
    let scene = Scene::new();
    scene.write("cases.jsonl", "{\"gold\":\"4\",\"pred\":\"4\"}\n");
    scene.write("none.jsonl", "");
    let verify = |cases: &str, out: &str| {
        scene.output(["verify", "numeric", "--cases", cases, "--out", out])
    };
    let output = verify("missing.jsonl", "nowhere/verdicts.jsonl");
    check_told(
        &output,
        1,
        1,
        &["nowhere/verdicts.jsonl", "check that the folder `nowhere` exists"],
    );
    assert!(verify("cases.jsonl", "verdicts.jsonl").status.success());
    assert_eq!(scene.read("verdicts.jsonl").lines().count(), 1);
    assert!(verify("none.jsonl", "none_verdicts.jsonl").status.success());
    assert_eq!(scene.read("none_verdicts.jsonl"), "");
    let Ok(full) = std::fs::File::options().write(true).open("/dev/full") else {
        return skipped("there is no /dev/full");
    };
    let mut command = scene.tallow(["verify", "numeric", "--cases", "cases.jsonl"]);
    let output = command.stdout(full).output().expect("the binary starts");
    check_told(&output, 1, 1, &["could not write `stdout`: no space left"]);
}

#[test]
fn unknown_names_list_the_known_ones() {
    for (setting, what, known) in [
        ("rl.env.name=digit_sums", "no environment called `digit_sums`", "`digit_sum`"),
        ("rl.verifier.name=exat", "no verifier called `exat`", "`exact`"),
        ("rl.algorithm.name=grpoo", "no algorithm called `grpoo`", "`grpo`"),
        ("stage[1].kind=pretran", "no stage called `pretran`", "`pretrain`"),
    ] {
        let hint = format!("hint: did you mean {known}?");
        check_refused(setting, &[what, "expected", known, &hint]);
    }
    let scene = Scene::new();
    scene.write("cases.jsonl", "");
    let output = scene.output(["verify", "exat", "--cases", "cases.jsonl"]);
    let told = text(&output.stderr);
    check_told(&output, 2, 1, &["error: there is no verifier called `exat`, expected"]);
    assert_eq!(told.matches("exat").count(), 1, "{told}");
    assert_eq!(told.matches("did you mean").count(), 1, "{told}");
    check_refused("model.family=lama", &["lama", "llama", "model.family"]);
}

#[test]
fn a_verifier_that_cannot_judge_the_tasks_is_refused() {
    check_refused(
        "rl.verifier.name=countdown",
        &["`countdown` cannot judge this environment's tasks", "kind answer", "expected custom"],
    );
}

#[test]
fn settings_on_the_command_line_need_a_key_and_a_value() {
    check_refused("rl", &["`rl` gives no value: expected key=value", "--set rl"]);
    check_refused("=3", &["the key is empty", "hint: keys look like rl.steps"]);
    check_refused("rk.steps=3", &["unknown key `rk`", "known keys here"]);
}

#[test]
fn an_unknown_device_is_refused() {
    let scene = Scene::new();
    let output = scene.output(["check", "tiny.toml", "--device", "tpu"]);
    check_told(&output, 2, 1, &["--device tpu is not a device", "hint: use auto, cpu, cuda"]);
}

#[test]
fn missing_files_are_named() {
    let scene = Scene::new();
    let output = scene.output(["check", "nowhere.toml"]);
    check_told(&output, 2, 1, &["could not read `nowhere.toml`", "no such file", "hint: check"]);
    check_refused("model.folder=nowhere", &["no model folder there", "a folder with config.json"]);
    scene.write("tasks.toml", with_tasks_from("none.jsonl"));
    let output = scene.output(["check", "tasks.toml"]);
    check_told(&output, 2, 1, &["none.jsonl", "cannot read the file", "tasks.toml:", "env.path"]);
}

#[test]
fn a_malformed_line_of_data_is_named_by_file_and_line() {
    let scene = Scene::new();
    scene.write("sums.jsonl", "{\"question\":\"1+1?\",\"answer\":\"2\"}\n\n{\"question\":\n");
    scene.write("tasks.toml", with_tasks_from("sums.jsonl"));
    let output = scene.output(["check", "tasks.toml"]);
    check_told(&output, 2, 1, &["sums.jsonl:3: not a JSON object", "env.path"]);
}

#[test]
fn data_without_a_mapped_field_tells_the_fields_it_has() {
    let scene = Scene::new();
    scene.write("sums.jsonl", "{\"question\":\"1+1?\",\"answer\":\"2\"}\n");
    scene.write("tasks.toml", with_tasks_from("sums.jsonl"));
    let output = scene.output(["check", "tasks.toml", "--set", "rl.env.answer=anser"]);
    check_told(
        &output,
        2,
        1,
        &[
            "sums.jsonl:1: there is no field `anser`",
            "`question`, `answer`",
            "did you mean `answer`?",
        ],
    );
}

#[test]
fn damaged_models_are_named_with_the_fault() {
    let scene = Scene::new();
    scene.run("run", &["--set=rl.steps=1"]);
    let sound = scene.path("run/models/pretrain");
    let model = scene.path("model");
    std::fs::create_dir(&model).expect("a new folder");
    for entry in std::fs::read_dir(&sound).expect("a model") {
        let file = entry.expect("an entry").path();
        let copy = model.join(file.file_name().expect("a name"));
        std::fs::copy(&file, copy).expect("a copy");
    }
    let weights = std::fs::read(sound.join("model.safetensors")).expect("weights");
    let mut holds_nan = weights.clone();
    let count = weights.len();
    holds_nan[count - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    scene.write(
        "tiny.toml",
        format!("name = \"m\"\n[model]\nfolder = \"model\"\n{}", from_stage("rl")),
    );
    let cases: [(&str, &[u8], &str); 5] = [
        ("model.safetensors", &weights[..count / 2], "not a whole safetensors file"),
        ("model.safetensors", b"garbage, and quite enough of it", "not a whole safetensors file"),
        ("model.safetensors", &holds_nan, "holds NaN at element"),
        ("config.json", b"{\"hidden", "config.json"),
        ("tokenizer.json", b"{}", "tokenizer.json"),
    ];
    for (number, (name, damaged, fault)) in cases.into_iter().enumerate() {
        let file = model.join(name);
        let whole = std::fs::read(&file).expect("a whole file");
        std::fs::write(&file, damaged).expect("a damaged file");
        let output = scene.output(["run", "tiny.toml", "-q", "--out", &format!("run_{number}")]);
        check_told(&output, 1, 1, &[&format!("model/{name}"), fault]);
        std::fs::write(&file, whole).expect("a whole file");
    }
}

/// A model folder of a tiny run, for tests to damage.
fn sound_model(scene: &Scene) -> PathBuf {
    scene.run("run", &["--set=rl.steps=1"]);
    let model = scene.path("run/models/pretrain");
    scene.write("texts.jsonl", "{\"text\":\"1+2=3\"}\n");
    let output =
        scene.output(["score", "-q", "--model", "run/models/pretrain", "--data", "texts.jsonl"]);
    check_told(&output, 0, 0, &[]);
    model
}

/// `tallow score --model MODEL` must fail with one error that holds all parts.
fn check_model_refused(scene: &Scene, model: &str, status: i32, parts: &[&str]) {
    let output = scene.output(["score", "-q", "--model", model, "--data", "texts.jsonl"]);
    check_told(&output, status, 1, parts);
}

#[test]
fn weights_that_are_not_the_configs_are_named() {
    let scene = Scene::new();
    let model = sound_model(&scene);
    let file = model.join("model.safetensors");
    let whole = std::fs::read(&file).expect("weights");
    let name = "model.layers.0.mlp.up_proj.weight";
    let tensors =
        || candle_core::safetensors::load(&file, &candle_core::Device::Cpu).expect("weights");
    let sound = tensors();
    let refused = |parts: &[&str]| check_model_refused(&scene, "run/models/pretrain", 1, parts);

    let mut fewer = sound.clone();
    fewer.remove(name);
    candle_core::safetensors::save(&fewer, &file).expect("saved");
    refused(&[&format!("tensor {name} is missing (1 in all)")]);

    let mut other = sound.clone();
    let turned = other[name].t().and_then(|it| it.contiguous()).expect("turned");
    other.insert(name.into(), turned);
    candle_core::safetensors::save(&other, &file).expect("saved");
    refused(&["model.safetensors", name, "has shape [16, 32], expected [32, 16]"]);
    std::fs::write(&file, &whole).expect("a whole file");

    let config = model.join("config.json");
    let text = std::fs::read_to_string(&config).expect("a config");
    for (from, to, parts) in [
        ("\"llama\"", "\"mamba\"", ["\"mamba\"", "which knows llama, qwen2, qwen3"]),
        ("\"vocab_size\": 16", "\"vocab_size\": 12", ["embed_tokens", "expected [12, 16]"]),
        (
            "\"hidden_act\"",
            "\"rope_scaling\": {\"rope_type\": \"dynamic\", \"factor\": 2.0}, \"hidden_act\"",
            ["\"dynamic\" is not computed", "default, linear, llama3 and yarn"],
        ),
    ] {
        assert!(text.contains(from), "{from} in {text}");
        std::fs::write(&config, text.replace(from, to)).expect("written");
        refused(&parts);
    }
}

#[test]
fn shards_and_their_index_must_agree() {
    let scene = Scene::new();
    let model = sound_model(&scene);
    let file = model.join("model.safetensors");
    let sound = candle_core::safetensors::load(&file, &candle_core::Device::Cpu).expect("weights");
    std::fs::remove_file(&file).expect("removed");
    let mut names: Vec<&String> = sound.keys().collect();
    names.sort();
    let mut map = serde_json::Map::new();
    for (index, half) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let shard = format!("model-0000{}-of-00002.safetensors", index + 1);
        let part: std::collections::HashMap<_, _> =
            half.iter().map(|it| ((*it).clone(), sound[*it].clone())).collect();
        candle_core::safetensors::save(&part, model.join(&shard)).expect("saved");
        map.extend(half.iter().map(|it| ((*it).clone(), shard.clone().into())));
    }
    let write_index = |map: &serde_json::Map<String, serde_json::Value>| {
        let index = serde_json::json!({"metadata": {}, "weight_map": map});
        std::fs::write(model.join("model.safetensors.index.json"), index.to_string())
            .expect("written");
    };
    let refused = |parts: &[&str]| check_model_refused(&scene, "run/models/pretrain", 1, parts);
    write_index(&map);
    let output =
        scene.output(["score", "-q", "--model", "run/models/pretrain", "--data", "texts.jsonl"]);
    check_told(&output, 0, 0, &[]);

    let mut odd = map.clone();
    odd.insert("model.layers.7.ghost".into(), "model-00001-of-00002.safetensors".into());
    write_index(&odd);
    refused(&[
        "model-00001-of-00002.safetensors",
        "tensor model.layers.7.ghost is missing",
        "index.json",
    ]);
    odd.insert("model.layers.7.ghost".into(), "../model-00001-of-00002.safetensors".into());
    write_index(&odd);
    refused(&["index.json", "is no plain file name"]);
    write_index(&map);
    std::fs::remove_file(model.join("model-00002-of-00002.safetensors")).expect("removed");
    refused(&["index.json", "shard model-00002-of-00002.safetensors is not in the folder"]);
}

#[test]
fn a_tokenizer_with_ids_that_the_model_has_no_rows_for_is_refused() {
    let scene = Scene::new();
    let model = sound_model(&scene);
    let letters: String = ('a'..='z').chain('0'..='9').collect();
    let tokenizer =
        tallow_policies::Tokenizer::of_characters([letters.as_str()], None).expect("made");
    tokenizer.save_folder(&model).expect("saved");
    let parts = ["the model embeds ", "(vocab_size)", "its tokenizer has ids up to 38"];
    check_model_refused(&scene, "run/models/pretrain", 1, &parts);
    let arguments = ["bench", "train", "--model", "run/models/pretrain"];
    check_told(&scene.output(arguments), 1, 1, &parts);
    scene.write(
        "tiny.toml",
        format!("name = \"m\"\n[model]\nfolder = \"run/models/pretrain\"\n{}", from_stage("rl")),
    );
    check_told(&scene.output(["run", "tiny.toml", "-q", "--out", "again"]), 1, 1, &parts);
}

#[test]
fn what_is_no_model_is_told_as_such() {
    let scene = Scene::new();
    scene.write("texts.jsonl", "{\"text\":\"1+2=3\"}\n");
    let hint = "hint: give a Hugging Face folder, a .gguf file, or models/STAGE of a run";
    check_model_refused(&scene, "nowhere", 2, &["nowhere is not there", hint]);
    check_model_refused(&scene, "texts.jsonl", 2, &["neither a folder nor a .gguf file", hint]);
    std::fs::create_dir(scene.path("empty")).expect("a new folder");
    check_model_refused(&scene, "empty", 2, &["no config.json and no .gguf file", hint]);
    scene.write("model.gguf", b"GGUF, and nothing that belongs to it");
    check_model_refused(&scene, "model.gguf", 1, &["model.gguf", "not a whole GGUF file"]);
    scene.write("other.gguf", b"PK, and nothing that belongs to it");
    check_model_refused(&scene, "other.gguf", 1, &["other.gguf", "not a whole GGUF file"]);
    let folder = scene.path("");
    let folder = folder.to_str().expect("plain characters");
    check_model_refused(&scene, folder, 1, &["several GGUF files (model.gguf, other.gguf)"]);
}

/// Interrupts a run by a learning rate of no use, and leaves two checkpoints of the stage rl.
fn stopped_run(scene: &Scene) {
    let mut child = scene.spawn("run", &["--set=rl.steps=40"]);
    while scene.checkpoints("run", "rl").len() < 2 {
        assert!(child.try_wait().expect("a child of ours").is_none(), "it ended too early");
        std::thread::yield_now();
    }
    child.kill().expect("a child of ours");
    child.wait().expect("a child of ours");
    scene.run("whole", &["--set=rl.steps=40"]);
}

fn truncate(file: &Path) {
    let bytes = std::fs::read(file).expect("a file");
    std::fs::write(file, &bytes[..bytes.len() / 2]).expect("the file can be written");
}

#[test]
fn a_truncated_checkpoint_is_passed_over_for_the_one_before() {
    let scene = Scene::new();
    stopped_run(&scene);
    let kept = scene.checkpoints("run", "rl");
    let newest = kept.last().expect("there are two");
    truncate(&newest.join("model.safetensors"));
    let arguments = ["run", "tiny.toml", "--out", "run", "--set=rl.steps=40", "--resume"];
    let output = scene.output(arguments);
    let name = |it: &Path| it.file_name().expect("a name").to_string_lossy().into_owned();
    let told = format!("warning: checkpoint {}: `model.safetensors` has", name(newest));
    check_told(
        &output,
        0,
        0,
        &[&told, &format!("falling back to {}", name(&kept[kept.len() - 2]))],
    );
    scene.check_same_results("whole", "run", "from the checkpoint before");
}

#[test]
fn without_a_sound_checkpoint_the_stage_begins_anew() {
    let scene = Scene::new();
    stopped_run(&scene);
    for checkpoint in scene.checkpoints("run", "rl") {
        truncate(&checkpoint.join("optimizer.safetensors"));
    }
    let arguments = ["run", "tiny.toml", "--out", "run", "--set=rl.steps=40", "--resume"];
    let output = scene.output(arguments);
    check_told(&output, 0, 0, &["no sound checkpoint of stage `rl` is left"]);
    scene.check_same_results("whole", "run", "from the stage before");
}

#[test]
fn a_used_folder_and_a_changed_configuration_are_refused() {
    let scene = Scene::new();
    stopped_run(&scene);
    let run = |out: &str, more: &[&str]| {
        let all = ["run", "tiny.toml", "-q", "--out", out].into_iter().chain(more.iter().copied());
        scene.output(all)
    };
    let before = scene.read("run/metrics.jsonl");
    let unfinished = ["`run` holds an unfinished run", "hint: go on with it by --resume"];
    check_told(&run("run", &["--set=rl.steps=40"]), 2, 1, &unfinished);
    let differs = ["these keys differ", "was 40, is now 41", "hint: resume with the configuration"];
    check_told(&run("run", &["--set=rl.steps=41", "--resume"]), 2, 1, &differs);
    assert_eq!(scene.read("run/metrics.jsonl"), before);
    check_told(
        &run("whole", &["--set=rl.steps=40"]),
        2,
        1,
        &["`whole` holds a finished run", "--out DIR"],
    );
    check_told(
        &run("nothing", &["--resume"]),
        2,
        1,
        &["`nothing` holds no run to resume", "hint:"],
    );
    std::fs::create_dir(scene.path("thesis")).expect("a new folder");
    scene.write("thesis/chapter.tex", "");
    check_told(
        &run("thesis", &[]),
        2,
        1,
        &["`thesis` is not empty and no run folder", "chapter.tex"],
    );
}

#[test]
fn a_folder_below_a_file_cannot_be_written() {
    let scene = Scene::new();
    let output = scene.output(["run", "tiny.toml", "-q", "--out", "tiny.toml/run"]);
    check_told(&output, 1, 1, &["tiny.toml/run", "not a directory", "hint:"]);
}

#[test]
fn a_read_only_file_system_is_told_as_such() {
    let scene = Scene::new();
    let path = scene.path("disk");
    let Some(_mounted) = Mounted::new(&path, "ro,size=64k") else {
        skipped("this process may not mount a file system");
        return;
    };
    let output = scene.output(["run", "tiny.toml", "-q", "--out", "disk/run"]);
    check_told(&output, 1, 1, &["disk/run", "read-only", "hint:"]);
}

#[test]
fn a_full_disk_ends_the_run_and_freed_space_lets_it_go_on() {
    let scene = Scene::new();
    let path = scene.path("disk");
    let Some(_mounted) = Mounted::new(&path, "size=1m") else {
        skipped("this process may not mount a file system");
        return;
    };
    scene.run("whole", &[]);
    // Room for the first checkpoints, not for all.
    std::fs::write(path.join("ballast"), vec![0; 700 * 1024]).expect("the disk has room");
    let output = scene.output(["run", "tiny.toml", "-q", "--out", "disk/run"]);
    check_told(&output, 1, 1, &["disk/run", "o space left", "hint:", "--resume"]);
    std::fs::remove_file(path.join("ballast")).expect("the ballast is there");
    let output = scene.output(["run", "tiny.toml", "-q", "--out", "disk/run", "--resume"]);
    let told = text(&output.stderr);
    // The disk may again be too small for the report's plots; the run itself must be whole.
    assert!(output.status.success() || told.contains("the run is complete"), "{told}");
    scene.check_same_results("whole", "disk/run", "after the disk was full");
}

#[test]
fn prompts_that_fill_the_context_are_refused_with_their_length() {
    let scene = Scene::new();
    let arguments = ["run", "tiny.toml", "-q", "--out", "run", "--set=rl.env.digits=30"];
    let output = scene.output(arguments);
    check_told(&output, 1, 1, &["a prompt of 60 tokens leaves no room", "raise model.context"]);
    assert_eq!(scene.status("run").as_deref(), Some("failed"));
    let arguments = ["run", "tiny.toml", "-q", "--out", "short", "--set=model.context=4"];
    check_told(&scene.output(arguments), 1, 1, &["holds no token to learn from", "model.context"]);
}

#[test]
fn divergence_names_the_tensor_and_keeps_the_last_checkpoint() {
    let scene = Scene::new();
    let settings = [
        "run",
        "tiny.toml",
        "-q",
        "--out",
        "run",
        "--set=rl.steps=60",
        "--set=rl.optimizer.learning_rate=1e9",
        "--set=rl.checkpoint_every=1",
    ];
    let output = scene.output(settings);
    check_told(
        &output,
        1,
        1,
        &[
            "training diverged: gradient of model.",
            "values are NaN or infinite, after ",
            " optimizer steps",
            "hint: lower optimizer.learning_rate",
        ],
    );
    assert_eq!(scene.status("run").as_deref(), Some("failed"));
    let kept = scene.checkpoints("run", "rl");
    assert!(!kept.is_empty(), "no checkpoint is left");
    for checkpoint in kept {
        tallow::checkpoints::check(&checkpoint).expect("a checkpoint is whole");
        tallow_policies::Decoder::from_folder(&checkpoint).expect("its weights are numbers");
    }
}

#[test]
fn weights_that_are_no_numbers_are_named_and_never_on_disk() {
    let scene = Scene::new();
    for (stage, rate) in [("pretrain", "1e39"), ("rl", "1e39"), ("rl", "1e30"), ("rl", "1e12")] {
        let out = format!("{stage}_{rate}");
        let rate = format!("--set={stage}.optimizer.learning_rate={rate}");
        let every = format!("--set={stage}.checkpoint_every=1");
        let output = scene.output(["run", "tiny.toml", "-q", "--out", &out, &rate, &every]);
        check_told(&output, 1, 1, &["training diverged: ", " model.", "learning_rate"]);
        assert_eq!(scene.status(&out).as_deref(), Some("failed"));
        let mut saved = scene.checkpoints(&out, stage);
        saved.extend(
            scene
                .path(&out)
                .join("models")
                .read_dir()
                .expect("a folder")
                .map(|it| it.expect("an entry").path()),
        );
        for folder in saved.iter().filter(|it| it.join("model.safetensors").exists()) {
            tallow_policies::Decoder::from_folder(folder).expect("its weights are numbers");
        }
        assert!(!scene.path(&out).join("models").join(stage).exists(), "the stage did not end");
    }
}

#[test]
fn phrases_and_marks_that_cannot_be_counted_are_refused() {
    check_refused("rl.phrases={ mine = [] }", &["phrases.mine", "reflection"]);
    check_refused("rl.phrases={ mine = [\" \"] }", &["phrases.mine", "everywhere"]);
    check_refused("rl.answer_mark=\"\"", &["answer_mark"]);
}

#[test]
fn a_policy_that_gives_no_numbers_is_no_panic() {
    let scene = Scene::new();
    let settings =
        ["run", "tiny.toml", "-q", "--out", "run", "--set=rl.optimizer.learning_rate=1e38"];
    let output = scene.output(settings);
    check_told(&output, 1, 1, &["diverged"]);
    assert_eq!(scene.status("run").as_deref(), Some("failed"));
}
