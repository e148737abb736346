//! Tasks from a file of JSON objects, one a line, by mapping its fields.
//!
//! Ready mappings:
//!
//! | data | options besides `path` |
//! |---|---|
//! | GSM8K | `answer_after = "####"`, `reply = "answer"`: the worked solution is a reply in the style `reference`, and what follows its last `####` is the answer |
//! | MATH | `prompt = "problem"`, `answer = "solution"`, `reply = "solution"`, `judge = "math"`: the boxes of the solution are the answer, all of them where there are two; `only = { level = ["Level 1"] }` |
//! | SVAMP | `prompt = "{Body} {Question}"`, `answer = "Answer"`, `judge = "math"` |
//! | HumanEval | `prompt = "Complete this function:\n{prompt}"`, `reply = "{prompt}{canonical_solution}"`, `judge = "python"`, `tests = "test"`, `prelude = "{prompt}    pass"`, `entry = "entry_point"` |
//! | MBPP | `prompt = "{text}\nIt must pass:\n{test_list}"`, `reply = "code"`, `judge = "python"`, `tests = "{test_setup_code}\n{test_list}"` |
//! | MBPP, sanitized | `prompt = "{prompt}\nIt must pass:\n{test_list}"`, `reply = "code"`, `judge = "python"`, `tests = "{test_imports}\n{test_list}"` |
//!
//! A list of texts in a field reads as its lines. A file that is one JSON array of objects is taken
//! as well; a place in it is the number of the object.
//! Files may be compressed with gzip or zstd, which is told by their first bytes, not their names.
//! Without a `test_path`, an eighth of the prompts is held out by hash, so that equal prompts always
//! share a split. With one, training lines whose prompt is also tested are dropped and counted. The
//! file's SHA-256 and the counts are the environment's provenance.

use std::{
    collections::{BTreeMap, HashSet},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tallow_verifiers::{ConfigFault, Message, Reference, ReferenceKind, config_fault::nearest};

use crate::{
    environment::Environment,
    error::EnvError,
    procedural::split_of,
    registry::{BuildContext, EnvConfig},
    task::{Seed, Split, Task, TaskId},
};

/// Options of the `jsonl` environment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct JsonlConfig {
    /// The file to train on; required.
    pub path: String,
    /// The file to test on; unset, an eighth of `path` is held out by hash.
    pub test_path: Option<String>,
    /// What the user message says: the name of a field, or a template such as
    /// `"{question} Think first."`, where `{{` and `}}` stand for braces.
    pub prompt: String,
    /// A system message before every prompt.
    pub system: Option<String>,
    /// The field that holds the answer.
    pub answer: String,
    /// Only what follows the last occurrence of this marker in the answer field is the answer; a
    /// line without it is an error.
    pub answer_after: Option<String>,
    /// A whole right reply, for the style `reference`: a field or a template, as for `prompt`. With
    /// `judge = "python"` it is the program alone.
    pub reply: Option<String>,
    /// Which verifier judges by default. `numeric` and `exact` look after `answer_after`, if that is
    /// set.
    pub judge: Judge,
    /// With `judge = "python"`: assertions that the program must meet, a field or a template.
    pub tests: Option<String>,
    /// With `judge = "python"`: definitions that the tests may use and the program cannot change,
    /// a field or a template.
    pub prelude: Option<String>,
    /// With `judge = "python"`: the field that names the function which `check(candidate)` is about.
    pub entry: Option<String>,
    /// Lines that are taken, by the values of their fields: `{ level = ["Level 1", "Level 2"] }`;
    /// others are left out. Unset, all lines are.
    pub only: BTreeMap<String, Vec<String>>,
}

/// Who judges the tasks of a file by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Judge {
    /// Answers are numbers.
    #[default]
    Numeric,
    /// Answers are text.
    Exact,
    /// Answers are mathematics, however written.
    Math,
    /// Replies are programs, and `tests` says what they must meet. Needs the feature `sandbox`.
    Python,
}

impl Default for JsonlConfig {
    fn default() -> Self {
        Self {
            path: String::new(),
            test_path: None,
            prompt: "question".to_owned(),
            system: None,
            answer: "answer".to_owned(),
            answer_after: None,
            reply: None,
            judge: Judge::Numeric,
            tests: None,
            prelude: None,
            entry: None,
            only: BTreeMap::new(),
        }
    }
}

impl EnvConfig for JsonlConfig {
    const NAME: &'static str = "jsonl";
    const SUMMARY: &'static str = "tasks from a file of JSON lines, by field mapping";

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault> {
        let templates = Templates::parse(self)?;
        if self.answer_after.as_deref() == Some("") {
            return Err(ConfigFault::new("answer_after", "the marker is empty")
                .found("\"\"")
                .expected("at least one character"));
        }
        let source = Source::read("path", &self.path, context)?;
        let rows = self.rows(&source, &templates)?;
        let mut provenance = json!({ "path": self.path, "sha256": source.sha256 });

        let (train, test) = match &self.test_path {
            None => rows
                .into_iter()
                .partition::<Vec<Row>, _>(|row| split_of(Self::NAME, &row.prompt) == Split::Train),
            Some(test_path) => {
                let source = Source::read("test_path", test_path, context)?;
                let test = self.rows(&source, &templates)?;
                let tested: HashSet<&str> = test.iter().map(|row| row.prompt.as_str()).collect();
                let lines = rows.len();
                let train: Vec<Row> =
                    rows.into_iter().filter(|row| !tested.contains(row.prompt.as_str())).collect();
                provenance["test_path"] = json!(test_path);
                provenance["test_sha256"] = json!(source.sha256);
                provenance["dropped_because_tested"] = json!(lines - train.len());
                (train, test)
            }
        };
        if train.is_empty() {
            return Err(ConfigFault::new("path", "no task is left to train on")
                .found(format!("{} to test on", test.len()))
                .expected("at least one line that is not held out"));
        }
        provenance["train_tasks"] = json!(train.len());
        provenance["test_tasks"] = json!(test.len());
        Ok(Arc::new(Jsonl { config: self.clone(), train, test, provenance }))
    }
}

impl JsonlConfig {
    /// Reads every line of a file that is not blank.
    fn rows(&self, source: &Source, templates: &Templates) -> Result<Vec<Row>, ConfigFault> {
        let mut rows = Vec::new();
        // Windows tools write a mark before the first line, which is no JSON.
        let bytes = source.bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&source.bytes);
        let mut take = |line: Line<'_>, object: &Map<String, Value>| {
            if self.takes(object, line)? {
                rows.push(self.row(object, line, templates)?);
            }
            Ok(())
        };
        if bytes.trim_ascii_start().starts_with(b"[") {
            let objects: Vec<Map<String, Value>> =
                serde_json::from_slice(bytes).map_err(|error| {
                    let problem = format!("{}: not an array of objects: {error}", source.name);
                    ConfigFault::new(source.key, problem)
                })?;
            for (at, object) in objects.iter().enumerate() {
                take(Line { source, number: at + 1 }, object)?;
            }
        } else {
            for (at, bytes) in bytes.split(|&byte| byte == b'\n').enumerate() {
                if bytes.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                let line = Line { source, number: at + 1 };
                let object: Map<String, Value> =
                    serde_json::from_slice(bytes).map_err(|error| {
                        line.fault(source.key, format!("not a JSON object: {error}"))
                    })?;
                take(line, &object)?;
            }
        }
        if rows.is_empty() {
            let problem = match self.only.is_empty() {
                true => format!("{}: no lines", source.name),
                false => format!("{}: `only` leaves no line", source.name),
            };
            return Err(ConfigFault::new(source.key, problem).expected("one JSON object a line"));
        }
        Ok(rows)
    }

    /// Whether the fields of a line have the values that `only` asks for.
    fn takes(&self, object: &Map<String, Value>, line: Line<'_>) -> Result<bool, ConfigFault> {
        for (name, values) in &self.only {
            if !values.contains(&line.field(object, "only", name)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn row(
        &self,
        object: &Map<String, Value>,
        line: Line<'_>,
        templates: &Templates,
    ) -> Result<Row, ConfigFault> {
        let prompt = templates.prompt.filled("prompt", object, line)?;
        let filled = |key: &str, template: &Option<Template>| {
            template.as_ref().map(|it| it.filled(key, object, line)).transpose()
        };
        let reply = filled("reply", &templates.reply)?;
        if let Some(tests) = filled("tests", &templates.tests)? {
            let mut wanted = json!({ "asserts": tests });
            if let Some(prelude) = filled("prelude", &templates.prelude)? {
                wanted["prelude"] = json!(prelude);
            }
            if let Some(entry) = &self.entry {
                wanted["entry"] = json!(line.field(object, "entry", entry)?);
            }
            let reply = reply.map(|program| format!("```python\n{}\n```", program.trim_end()));
            let reference = Reference::Custom(wanted);
            return Ok(Row { line: line.number, prompt, reference, reply });
        }
        let field = line.field(object, "answer", &self.answer)?;
        let answer = match &self.answer_after {
            None => field,
            Some(marker) => match field.rfind(marker) {
                Some(at) => field[at + marker.len()..].to_owned(),
                None => {
                    let problem = format!("no {marker:?} in the field `{}`", self.answer);
                    return Err(line.fault("answer_after", problem));
                }
            },
        };
        let reference = Reference::Answer(answer.trim().to_owned());
        Ok(Row { line: line.number, prompt, reference, reply })
    }
}

/// A file, read whole and decompressed.
struct Source {
    /// The option that named it.
    key: &'static str,
    /// The path as the option gave it, for errors.
    name: String,
    bytes: Vec<u8>,
    /// Of the file as it lies on disk, in hexadecimal.
    sha256: String,
}

impl Source {
    fn read(key: &'static str, written: &str, context: &BuildContext) -> Result<Self, ConfigFault> {
        if written.is_empty() {
            return Err(ConfigFault::new(key, "no file is named")
                .found("\"\"")
                .expected("the path of a file of JSON lines"));
        }
        let path = resolved(written, &context.folder);
        let raw = std::fs::read(&path).map_err(|error| {
            let fault = ConfigFault::new(key, format!("cannot read the file: {error}"))
                .found(format!("{written:?}"));
            match Path::new(written).is_relative() {
                true => fault.hint(format!(
                    "relative paths are looked up from {} and then from the current folder",
                    context.folder.display()
                )),
                false => fault,
            }
        })?;
        let sha256 = Sha256::digest(&raw).iter().map(|byte| format!("{byte:02x}")).collect();
        let bytes = decompressed(raw).map_err(|error| {
            ConfigFault::new(key, format!("{written}: cannot be decompressed: {error}"))
        })?;
        Ok(Self { key, name: written.to_owned(), bytes, sha256 })
    }
}

/// The file under `folder` if there is one, else the path as written.
fn resolved(written: &str, folder: &Path) -> PathBuf {
    let below = folder.join(written);
    if below.exists() { below } else { PathBuf::from(written) }
}

/// Undoes gzip (RFC 1952) or zstd (RFC 8878), told by their magic numbers.
fn decompressed(raw: Vec<u8>) -> std::io::Result<Vec<u8>> {
    const GZIP: &[u8] = &[0x1f, 0x8b];
    const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    if raw.starts_with(GZIP) {
        let mut bytes = Vec::new();
        flate2::read::MultiGzDecoder::new(raw.as_slice()).read_to_end(&mut bytes)?;
        Ok(bytes)
    } else if raw.starts_with(ZSTD) {
        zstd::decode_all(raw.as_slice())
    } else {
        Ok(raw)
    }
}

/// A place in a file.
#[derive(Clone, Copy)]
struct Line<'a> {
    source: &'a Source,
    number: usize,
}

impl Line<'_> {
    fn fault(self, key: &str, problem: impl std::fmt::Display) -> ConfigFault {
        ConfigFault::new(key, format!("{}:{}: {problem}", self.source.name, self.number))
    }

    /// The field's text; numbers and truth values are written out.
    fn field(
        self,
        object: &Map<String, Value>,
        key: &str,
        name: &str,
    ) -> Result<String, ConfigFault> {
        match object.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
            Some(Value::Array(items)) if items.iter().all(Value::is_string) => {
                let lines: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
                Ok(lines.join("\n"))
            }
            Some(other) => Err(self
                .fault(key, format!("the field `{name}` holds no text"))
                .found(match other {
                    Value::Array(_) => "an array",
                    Value::Object(_) => "an object",
                    _ => "null",
                })
                .expected("a string, a list of strings, a number or a truth value")),
            None => {
                let known: Vec<&str> = object.keys().map(String::as_str).collect();
                let mut fault = self
                    .fault(key, format!("there is no field `{name}`"))
                    .expected(format!("one of the fields `{}`", known.join("`, `")));
                fault.hint = nearest(name, &known).map(|near| format!("did you mean `{near}`?"));
                Err(fault)
            }
        }
    }
}

/// What is made of the fields of each line.
struct Templates {
    prompt: Template,
    reply: Option<Template>,
    tests: Option<Template>,
    prelude: Option<Template>,
}

impl Templates {
    fn parse(config: &JsonlConfig) -> Result<Self, ConfigFault> {
        let code =
            [("tests", &config.tests), ("prelude", &config.prelude), ("entry", &config.entry)];
        if config.judge == Judge::Python {
            if config.tests.is_none() {
                return Err(ConfigFault::new("tests", "programs cannot be judged without tests")
                    .expected("the field that holds them, or a template"));
            }
        } else if let Some((key, _)) = code.iter().find(|(_, value)| value.is_some()) {
            return Err(ConfigFault::new(*key, "only programs have it")
                .expected("judge = \"python\" beside it"));
        }
        let parse = |key: &str, written: &Option<String>| {
            written.as_ref().map(|it| Template::parse(key, it)).transpose()
        };
        Ok(Self {
            prompt: Template::parse("prompt", &config.prompt)?,
            reply: parse("reply", &config.reply)?,
            tests: parse("tests", &config.tests)?,
            prelude: parse("prelude", &config.prelude)?,
        })
    }
}

/// How a text is made of fields.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(String),
}

impl Template {
    /// Text without braces is the name of one field.
    fn parse(key: &str, written: &str) -> Result<Self, ConfigFault> {
        let fault = |problem: &str| {
            ConfigFault::new(key, problem)
                .found(format!("{written:?}"))
                .expected("the name of a field, or a template such as \"{question} Think first.\"")
        };
        if written.is_empty() {
            return Err(fault(&format!("the {key} is empty")));
        }
        if !written.contains(['{', '}']) {
            return Ok(Self { pieces: vec![Piece::Field(written.to_owned())] });
        }
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut rest = written;
        while let Some(next) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix("{{") {
                text.push('{');
                rest = after;
            } else if let Some(after) = rest.strip_prefix("}}") {
                text.push('}');
                rest = after;
            } else if let Some(after) = rest.strip_prefix('{') {
                let (name, after) = after
                    .split_once('}')
                    .ok_or_else(|| fault("a brace in the template is never closed"))?;
                if name.is_empty() || name.contains('{') {
                    return Err(fault("a brace in the template holds no field's name"));
                }
                if !text.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut text)));
                }
                pieces.push(Piece::Field(name.to_owned()));
                rest = after;
            } else if next == '}' {
                return Err(fault("a brace in the template is never opened")
                    .hint("write `}}` for a brace of the text"));
            } else {
                text.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        if !pieces.iter().any(|piece| matches!(piece, Piece::Field(_))) {
            return Err(fault(&format!(
                "the template names no field, so every {key} would be the same"
            )));
        }
        Ok(Self { pieces })
    }

    fn filled(
        &self,
        key: &str,
        object: &Map<String, Value>,
        line: Line<'_>,
    ) -> Result<String, ConfigFault> {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(verbatim) => text += verbatim,
                Piece::Field(name) => text += &line.field(object, key, name)?,
            }
        }
        Ok(text)
    }
}

/// One task.
#[derive(Clone, Debug)]
struct Row {
    /// From 1, as editors count.
    line: usize,
    prompt: String,
    reference: Reference,
    reply: Option<String>,
}

struct Jsonl {
    config: JsonlConfig,
    train: Vec<Row>,
    test: Vec<Row>,
    provenance: Value,
}

impl Jsonl {
    fn rows(&self, split: Split) -> &[Row] {
        match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        }
    }
}

impl Environment for Jsonl {
    fn name(&self) -> &str {
        JsonlConfig::NAME
    }

    fn len(&self, split: Split) -> u64 {
        self.rows(split).len() as u64
    }

    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        let rows = self.rows(split);
        let row =
            usize::try_from(index).ok().and_then(|index| rows.get(index)).ok_or_else(|| {
                EnvError::NoSuchTask {
                    environment: JsonlConfig::NAME.to_owned(),
                    split,
                    index,
                    len: rows.len() as u64,
                }
            })?;
        let mut prompt: Vec<Message> = self.config.system.iter().map(Message::system).collect();
        prompt.push(Message::user(&row.prompt));
        Ok(Task {
            id: TaskId { split, index },
            prompt,
            reference: row.reference.clone(),
            notes: match &row.reference {
                Reference::Answer(answer) => {
                    json!({ "line": row.line, "answer": answer, "reply": row.reply })
                }
                _ => json!({ "line": row.line, "reply": row.reply }),
            },
        })
    }

    fn reference_kind(&self) -> ReferenceKind {
        match self.config.judge {
            Judge::Python => ReferenceKind::Custom,
            _ => ReferenceKind::Answer,
        }
    }

    fn default_verifier(&self) -> (&'static str, Value) {
        let name = match self.config.judge {
            Judge::Numeric => "numeric",
            Judge::Exact => "exact",
            // It finds the answer behind every marker by itself.
            Judge::Math => return ("math", json!({})),
            Judge::Python => return ("python", json!({})),
        };
        match &self.config.answer_after {
            Some(marker) => (name, json!({ "after": marker })),
            None => (name, json!({})),
        }
    }

    fn reply_styles(&self) -> &'static [&'static str] {
        match (self.config.reply.is_some(), self.config.judge) {
            (true, Judge::Python) => &["reference"],
            (true, _) => &["reference", "bare"],
            (false, Judge::Python) => &[],
            (false, _) => &["bare"],
        }
    }

    fn reply(&self, task: &Task, style: &str, _seed: Seed) -> Option<String> {
        match style {
            "reference" => Some(task.notes.get("reply")?.as_str()?.to_owned()),
            "bare" => {
                let answer = task.notes.get("answer")?.as_str()?;
                Some(match &self.config.answer_after {
                    Some(marker) => format!("{marker} {answer}"),
                    None => answer.to_owned(),
                })
            }
            _ => None,
        }
    }

    fn provenance(&self) -> Option<Value> {
        Some(self.provenance.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const THREE: &str = r#"{"question": "1+1", "answer": "two is\n#### 2", "level": 1}
{"question": "2+2", "answer": "four is\n#### 4", "level": 2}

{"question": "3+3", "answer": "six is\n#### 6", "level": 3}
"#;

    /// Builds from files `train.jsonl` and `test.jsonl` in a fresh folder.
    fn built(
        train: &[u8],
        test: Option<&[u8]>,
        mut options: Value,
    ) -> Result<Arc<dyn Environment>, ConfigFault> {
        let folder = tempfile::tempdir().expect("a folder for the test");
        std::fs::write(folder.path().join("train.jsonl"), train).expect("a file for the test");
        options["path"] = json!("train.jsonl");
        if let Some(test) = test {
            std::fs::write(folder.path().join("test.jsonl"), test).expect("a file for the test");
            options["test_path"] = json!("test.jsonl");
        }
        let context = BuildContext { folder: folder.path().to_owned(), seed: Seed(0) };
        crate::Environments::builtin().build("jsonl", options, &context)
    }

    #[track_caller]
    fn check_fault(train: &str, options: Value, key: &str, problem: &str) {
        let fault = built(train.as_bytes(), None, options).err().expect("the build is refused");
        assert_eq!((fault.key.as_str(), fault.problem.as_str()), (key, problem));
    }

    fn prompts(environment: &dyn Environment) -> Vec<String> {
        (0..environment.len(Split::Train))
            .map(|it| environment.task(Split::Train, it).expect("a task").prompt[0].content.clone())
            .collect()
    }

    #[test]
    fn programs_come_with_tests_and_a_fenced_reply() {
        let rows = r#"[
            {"prompt": "def inc(x):\n", "code": "    return x + 1\n", "name": "inc",
             "tests": ["assert inc(1) == 2", "assert inc(2) == 3"]}
        ]"#;
        let options = json!({
            "judge": "python", "reply": "{prompt}{code}", "tests": "tests", "entry": "name",
            "prelude": "{prompt}    pass",
        });
        let held_out = br#"{"prompt": "-", "code": "", "name": "f", "tests": "assert f() == 1"}"#;
        let mut with_prompt = options.clone();
        with_prompt["prompt"] = json!("prompt");
        let environment =
            built(rows.as_bytes(), Some(held_out), with_prompt).expect("the file is sound");
        assert_eq!(environment.default_verifier().0, "python");
        let task = environment.task(Split::Train, 0).expect("the only task");
        let wanted = json!({
            "asserts": "assert inc(1) == 2\nassert inc(2) == 3",
            "prelude": "def inc(x):\n    pass",
            "entry": "inc",
        });
        assert_eq!(task.reference, Reference::Custom(wanted));
        assert_eq!(
            environment.gold_reply(&task).as_deref(),
            Some("```python\ndef inc(x):\n    return x + 1\n```")
        );
        check_fault(
            THREE,
            json!({"judge": "python"}),
            "tests",
            "programs cannot be judged without tests",
        );
        check_fault(THREE, json!({"entry": "level"}), "entry", "only programs have it");
    }

    #[test]
    fn fields_become_prompt_answer_and_reply() {
        let test = br#"{"question": "9+9", "answer": "So #### 18", "level": 3}"#;
        let options = json!({
            "prompt": "{question} {{level {level}}}",
            "system": "Add.",
            "answer_after": "####",
            "reply": "answer",
        });
        let environment = built(THREE.as_bytes(), Some(test), options).expect("the file is sound");
        assert_eq!(environment.len(Split::Train), 3);
        let task = environment.task(Split::Train, 2).expect("the third task");
        assert_eq!(task.prompt, [Message::system("Add."), Message::user("3+3 {level 3}")]);
        assert_eq!(task.reference, Reference::Answer("6".to_owned()));
        assert_eq!(task.notes["line"], 4);
        assert_eq!(environment.gold_reply(&task).as_deref(), Some("six is\n#### 6"));
        assert_eq!(environment.reply(&task, "bare", Seed(0)).as_deref(), Some("#### 6"));
    }

    #[test]
    fn math_takes_the_boxes_of_a_solution_and_the_levels_asked_for() {
        let file = r#"{"problem": "2x=1", "solution": "Halve: $x = \\boxed{\\frac{1}{2}}.$", "level": "Level 1"}
{"problem": "hard", "solution": null, "level": "Level 5"}
"#;
        let options = json!({
            "prompt": "problem",
            "answer": "solution",
            "judge": "math",
            "only": { "level": ["Level 1", "Level 2"] },
        });
        let test = r#"{"problem": "other", "solution": "\\boxed{3}", "level": "Level 2"}"#;
        let environment =
            built(file.as_bytes(), Some(test.as_bytes()), options).expect("the file is sound");
        assert_eq!(environment.len(Split::Train), 1);
        let task = environment.task(Split::Train, 0).expect("a task");
        let (name, options) = environment.default_verifier();
        let verifier =
            tallow_verifiers::Verifiers::builtin().build(name, options).expect("its defaults");
        let outcome = |reply: &str| {
            let transcript = tallow_verifiers::Transcript::of_reply(Vec::new(), reply);
            verifier.verify(&transcript, &task.reference).expect("a verdict").outcome
        };
        assert_eq!(outcome("so $x=0.5$"), tallow_verifiers::Outcome::Correct);
        assert_eq!(outcome("so $x=2$"), tallow_verifiers::Outcome::Incorrect);

        let only = json!({ "only": { "level": ["9"] } });
        check_fault(THREE, only, "path", "train.jsonl: `only` leaves no line");
        let only = json!({ "only": { "grade": ["9"] } });
        check_fault(THREE, only, "only", "train.jsonl:1: there is no field `grade`");
    }

    #[test]
    fn compressed_files_read_like_plain_ones_and_have_their_own_hash() {
        let plain = THREE.as_bytes();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(plain).expect("in memory");
        let gzip = gzip.finish().expect("in memory");
        let zstd = zstd::encode_all(plain, 1).expect("in memory");
        let open = |bytes: &[u8]| built(bytes, None, json!({})).expect("the file is sound");
        let hash =
            |it: &dyn Environment| it.provenance().expect("a file has a hash")["sha256"].clone();

        let plain = open(plain);
        for packed in [open(&gzip), open(&zstd)] {
            assert_eq!(prompts(packed.as_ref()), prompts(plain.as_ref()));
            assert_ne!(hash(packed.as_ref()), hash(plain.as_ref()));
        }
    }

    #[test]
    fn a_cut_off_archive_is_refused() {
        let fault = built(&[0x1f, 0x8b, 8], None, json!({})).err().expect("cut off");
        assert!(fault.problem.contains("cannot be decompressed"), "{fault}");
    }

    #[test]
    fn training_lines_that_are_tested_are_dropped_and_counted() {
        let test = br#"{"question": "2+2", "answer": "4"}"#;
        let environment = built(THREE.as_bytes(), Some(test), json!({})).expect("sound");
        assert_eq!(prompts(environment.as_ref()), ["1+1", "3+3"]);
        let provenance = environment.provenance().expect("a file has a provenance");
        assert_eq!(provenance["dropped_because_tested"], 1);
    }

    #[test]
    fn faults_name_the_file_and_the_line() {
        let second = |line: &str| format!("{{\"question\": \"q\", \"answer\": 1}}\n{line}\n");
        check_fault(
            &second("[1]"),
            json!({}),
            "path",
            "train.jsonl:2: not a JSON object: invalid type: sequence, expected a map \
             at line 1 column 0",
        );
        check_fault(
            &second(r#"{"question": "q", "answer": null}"#),
            json!({}),
            "answer",
            "train.jsonl:2: the field `answer` holds no text",
        );
        check_fault(
            &second("{}"),
            json!({"answer_after": "####"}),
            "answer_after",
            "train.jsonl:1: no \"####\" in the field `answer`",
        );
        check_fault("\n \n", json!({}), "path", "train.jsonl: no lines");
    }

    #[test]
    fn a_missing_field_lists_those_there_are_and_the_nearest() {
        let fault = built(THREE.as_bytes(), None, json!({"prompt": "questoin"}))
            .err()
            .expect("there is no such field");
        assert_eq!(
            fault.to_string(),
            "`prompt`: train.jsonl:1: there is no field `questoin`, expected one of the fields \
             `question`, `answer`, `level` (hint: did you mean `question`?)"
        );
    }

    #[test]
    fn a_file_that_is_not_there_says_where_it_was_sought() {
        let context = BuildContext { folder: PathBuf::from("nowhere"), seed: Seed(0) };
        let config = JsonlConfig { path: "absent.jsonl".to_owned(), ..Default::default() };
        let fault = config.build(&context).err().expect("there is no such file");
        assert_eq!(fault.key, "path");
        assert!(fault.hint.expect("a hint").contains("nowhere"));
    }

    #[test]
    fn templates_are_checked_before_any_file_is_read() {
        for template in ["", "{question", "question}", "{}", "{{no field}}"] {
            assert_eq!(
                Template::parse("prompt", template).expect_err("refused").key,
                "prompt",
                "{template}"
            );
        }
    }
}
