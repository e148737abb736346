//! Chat templates against transformers: expressions and templates of our own (see
//! fixtures/chat_templates/make.py), rows of published models, and, where their tokenizers are at
//! hand, all of those models' rows and ids.

mod support;

use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};
use tallow::chat_template::{CHATML, ChatTemplate, TemplateOptions};
use tallow_policies::{TokenId, Tokenizer};

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).expect("a fixture")).expect("JSON")
}

fn options(value: &Value) -> TemplateOptions {
    value.as_object().expect("an object").clone()
}

/// A tokenizer that has `chat_template` (a text or a list) and special tokens, and little else.
fn tokenizer(chat_template: &Value, special_tokens: &TemplateOptions) -> Tokenizer {
    let folder = tempfile::tempdir().expect("a folder");
    let plain = Tokenizer::train_bpe(["x"].iter(), 260, true, Some(CHATML)).expect("trained");
    plain.save_folder(folder.path()).expect("saved");
    std::fs::remove_file(folder.path().join("chat_template.jinja")).expect("it was there");
    let mut config = special_tokens.clone();
    config.insert("chat_template".into(), chat_template.clone());
    let path = folder.path().join("tokenizer_config.json");
    std::fs::write(path, Value::Object(config).to_string()).expect("written");
    Tokenizer::from_folder(folder.path()).expect("loaded")
}

/// What the template shows, or why it shows nothing.
fn rendered(
    template: &str,
    special_tokens: &TemplateOptions,
    messages: &[Value],
    mut options: TemplateOptions,
) -> Result<String, String> {
    let add = options.remove("add_generation_prompt").is_some_and(|it| it == json!(true));
    let template = ChatTemplate::of(&tokenizer(&json!(template), special_tokens))
        .map_err(|e| e.to_string())?
        .expect("there is a template");
    template.render(messages, add, &options).map_err(|e| e.to_string())
}

/// One line for each case that differs.
fn difference(what: &str, found: Result<String, String>, expected: &Value) -> Option<String> {
    match (found, expected.as_str()) {
        (Ok(found), Some(expected)) if found == expected => None,
        (Err(_), None) => None,
        (Ok(found), Some(expected)) => Some(format!("{what}\n  {found:?}\n  {expected:?}")),
        (Ok(found), None) => Some(format!("{what}\n  {found:?}\n  to be refused")),
        (Err(error), Some(expected)) => Some(format!("{what}\n  {error}\n  {expected:?}")),
    }
}

#[test]
fn expressions_and_templates_are_as_in_transformers() {
    let file = fixture("chat_templates/cases.json");
    let special = options(&file["special_tokens"]);
    let mut different = Vec::new();
    let chat = file["conversations"]["chat"].as_array().expect("messages");
    for case in file["expressions"].as_array().expect("expressions") {
        let expression = case[0].as_str().expect("text");
        let mut seen = options(&file["variables"]);
        seen.insert("tools".into(), file["tools"].clone());
        let found = rendered(&format!("{{{{ {expression} }}}}"), &special, chat, seen);
        different.extend(difference(expression, found, &case[1]));
    }
    for case in file["templates"].as_array().expect("templates") {
        let text = |key: &str| case[key].as_str().expect("text");
        let messages = file["conversations"][text("conversation")].as_array().expect("messages");
        let mut seen = options(&file["variables"]);
        seen.extend(options(&case["options"]));
        let what = format!("{} of {} with {}", text("name"), text("conversation"), case["options"]);
        let found = rendered(text("template"), &special, messages, seen);
        different.extend(difference(&what, found, &case["rendered"]));
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}

/// Checks every text and every conversation of a folder laid out as `fixtures/tokenizers`.
fn check_parity(folder: &Path) {
    let text = std::fs::read_to_string(folder.join("parity-dev.json")).expect("parity-dev.json");
    let parity: Value = serde_json::from_str(&text).expect("JSON");
    let mut different = Vec::new();
    for name in ["smollm2", "gpt2", "qwen3"] {
        let tokenizer = unpacked(&folder.join(name));
        for case in parity["encode"].as_array().expect("texts") {
            let text = case["text"].as_str().expect("text");
            let expected: Vec<TokenId> =
                serde_json::from_value(case[name]["ids"].clone()).expect("ids");
            let ids = tokenizer.encode(text).expect("encoded");
            if ids != expected {
                different.push(format!("{name}: {text:?}\n  {ids:?}\n  {expected:?}"));
            }
            let decoded = case[name]["decoded"].as_str().unwrap_or(text);
            let found = tokenizer.decode_with_specials(&expected).expect("decoded");
            if found != decoded {
                different.push(format!("{name}: ids of {text:?} give {found:?}"));
            }
        }
        let conversations = parity["chat_templates"].as_array().expect("conversations");
        for case in conversations.iter().filter(|it| it["tokenizer"] == name) {
            let template = ChatTemplate::of(&tokenizer).expect("valid").expect("there is one");
            let mut options = options(&case["options"]);
            let add = options.remove("add_generation_prompt") == Some(json!(true));
            let messages = case["messages"].as_array().expect("messages");
            let found = template.render(messages, add, &options).map_err(|e| e.to_string());
            let what = format!("{name}: {}", case["case"]);
            different.extend(difference(&what, found, &case["rendered"]));
        }
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}

/// The tokenizer of a folder whose `tokenizer.json` may be packed.
fn unpacked(folder: &Path) -> Tokenizer {
    let packed = folder.join("tokenizer.json.gz");
    if !packed.exists() {
        return Tokenizer::from_folder(folder).expect("a tokenizer");
    }
    let plain = tempfile::tempdir().expect("a folder");
    let file = std::fs::File::open(packed).expect("readable");
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("whole");
    std::fs::write(plain.path().join("tokenizer.json"), text).expect("written");
    let config = "tokenizer_config.json";
    std::fs::copy(folder.join(config), plain.path().join(config)).expect("copied");
    Tokenizer::from_folder(plain.path()).expect("a tokenizer")
}

#[test]
fn published_tokenizers_cut_down_give_the_ids_and_texts_of_the_whole() {
    check_parity(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers"));
}

#[test]
fn published_tokenizers_give_the_ids_and_texts_of_transformers() {
    match std::env::var_os("TALLOW_TOKENIZERS") {
        Some(folder) => check_parity(Path::new(&folder)),
        None => eprintln!(
            "SKIPPED: set TALLOW_TOKENIZERS to a folder with parity-dev.json and the tokenizers \
             smollm2, gpt2 and qwen3 that it is about"
        ),
    }
}

#[test]
fn a_tokenizer_may_have_several_templates() {
    let named = json!([
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | length }} tools"},
        {"name": "rag", "template": "{{ documents[0].title }}"},
    ]);
    let template = ChatTemplate::of(&tokenizer(&named, &TemplateOptions::new()))
        .expect("valid")
        .expect("there are some");
    let messages = [json!({"role": "user", "content": "x"})];
    let render = |value: Value| template.render(&messages, true, &options(&value));
    assert_eq!(render(json!({})).expect("default"), "plain");
    assert_eq!(render(json!({"tools": null})).expect("default"), "plain");
    assert_eq!(render(json!({"tools": [1, 2]})).expect("tools"), "2 tools");
    let rag = json!({"chat_template": "rag", "documents": [{"title": "t"}]});
    assert_eq!(render(rag).expect("rag"), "t");
    let error = render(json!({"chat_template": "rga"})).expect_err("no such template");
    assert!(error.to_string().contains("default, rag, tool_use"), "{error}");
}

#[test]
fn the_date_is_the_same_every_day() {
    let show =
        |template: &str| rendered(template, &TemplateOptions::new(), &[], TemplateOptions::new());
    let python = "{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%d %H:%M:%S %-d %A%%') }}";
    assert_eq!(show(python).expect("shown"), "01 Jan 2026|2026-01-01 00:00:00 1 Thursday%");
    let error = show("{{ strftime_now('%Q') }}").expect_err("no such directive");
    assert!(error.contains("directive"), "{error}");
}

#[test]
fn options_reach_the_template_from_lines_from_flags_and_from_the_configuration() {
    let scene = support::Scene::new();
    scene.run("run", &["--set=rl.steps=1"]);
    let model = scene.path("run/models/pretrain");
    let template = "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}\
                    {% endfor %}{% if tools %}+{{ tools | length }}{% endif %}\
                    {% if enable_thinking is defined and not enable_thinking %}={% endif %}";
    std::fs::write(model.join("chat_template.jinja"), template).expect("written");
    let tokenizer = Tokenizer::from_folder(&model).expect("a tokenizer");
    scene.write(
        "prompts.jsonl",
        concat!(
            r#"{"messages":[{"role":"user","content":"12"}]}"#,
            "\n",
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"34"}]}],"tools":[{},{}]}"#,
            "\n",
            r#"{"messages":[{"role":"user","content":"5"}],"chat_template_kwargs":{"enable_thinking":false}}"#,
            "\n",
        ),
    );
    let prompts = |more: &[&str]| -> Vec<String> {
        let arguments = [
            "generate",
            "-q",
            "--model",
            "run/models/pretrain",
            "--prompts",
            "prompts.jsonl",
            "--max-tokens",
            "1",
        ];
        let output = scene.output(arguments.iter().chain(more).copied());
        let told = support::text(&output.stderr);
        assert!(output.status.success(), "{told}");
        let lines = support::text(&output.stdout);
        let ids = |line: &str| -> Vec<TokenId> {
            let row: Value = serde_json::from_str(line).expect("JSON");
            serde_json::from_value(row["prompt_ids"].clone()).expect("ids")
        };
        lines.lines().map(|it| tokenizer.decode(&ids(it)).expect("text")).collect()
    };
    assert_eq!(prompts(&[]), ["12", "34+2", "5="]);
    assert_eq!(prompts(&["--template-option", "enable_thinking=false"]), ["12=", "34+2=", "5="]);

    let config = support::TINY.replace(
        "[[stage]]\nkind = \"tokenizer\"",
        "[model.chat_template_kwargs]\nenable_thinking = false\n\n[[stage]]\nkind = \"tokenizer\"",
    );
    assert_ne!(config, support::TINY);
    scene.write("tiny.toml", config);
    scene.run("other", &["--set=rl.steps=1"]);
    let resolved = scene.read("other/config.resolved.toml");
    assert!(resolved.contains("enable_thinking = false"), "{resolved}");
}
