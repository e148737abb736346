//! The TOML file of an experiment, read strictly and all at once.
//!
//! A [`Document`] is the file with its `--set` overrides; a [`Table`] is a part of it that one
//! config struct is read from. Reading never stops at a mistake: every problem goes into
//! [`Problems`] with the line or the override that caused it, and the caller asks at the end.
//!
//! ```text
//! let mut document = Document::read(path)?;
//! document.set_all(&overrides, &mut problems);
//! let mut root = document.root();
//! for mut stage in root.children("stage", &mut problems) {
//!     let env = stage.split("env", &mut problems);      // another struct reads this
//!     let config: Option<RlConfig> = stage.take(&mut problems);
//! }
//! let experiment: Option<Experiment> = root.take(&mut problems);
//! problems.into_result(experiment)
//! ```

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::overrides;
use super::problem::{Fault, Place, Problem, Problems, nearest};
use super::strict::{self, Mark};
use super::value::{Content, Node, Origin, PathText, Step, parse_path};
use crate::files::StoreError;

/// A configuration file with the overrides of the command line.
#[derive(Clone, Debug)]
pub struct Document {
    source: Source,
    root: Node,
}

/// What is needed to tell where something was written.
#[derive(Clone, Debug)]
struct Source {
    name: String,
    text: String,
    overrides: Vec<String>,
    /// Names that an override may begin with besides the keys of the top level.
    labels: Vec<String>,
}

impl Document {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is not UTF-8 or is not TOML; all syntax errors are told at once.
    pub fn read(path: &Path) -> Result<Self, Problems> {
        let name = path.display().to_string();
        let refuse = |place: Place, fault: Fault| {
            let mut problems = Problems::of(&name);
            problems.push(Problem::new(place, "", fault));
            Err(problems)
        };
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                let error = StoreError::new("read", path, error);
                let fault = Fault { hint: error.hint(), ..Fault::new("", error.to_string()) };
                return refuse(Place::File { path: name.clone() }, fault);
            }
        };
        match String::from_utf8(bytes) {
            Ok(text) => Self::parse(&name, text),
            Err(error) => {
                // Up to the first bad byte the lossy text is the file, byte for byte.
                let start = error.utf8_error().valid_up_to();
                let byte = error.as_bytes()[start];
                let text = String::from_utf8_lossy(error.as_bytes());
                let fault = Fault::new("", format!("the byte 0x{byte:02x} is not UTF-8"))
                    .hint("TOML files are UTF-8: save the file in that encoding");
                refuse(Place::in_text(&name, &text, start..start + 3), fault)
            }
        }
    }

    /// Reads a text that is called `name` in messages.
    ///
    /// # Errors
    /// If it is not TOML; all syntax errors are told at once.
    pub fn parse(name: &str, text: impl Into<String>) -> Result<Self, Problems> {
        let text = text.into();
        let (root, faults) = Node::parse(&text);
        let mut problems = Problems::of(name);
        for (what, span) in faults {
            problems.push(Problem::new(
                Place::in_text(name, &text, span),
                "",
                Fault::new("", what),
            ));
        }
        let source =
            Source { name: name.to_owned(), text, overrides: Vec::new(), labels: Vec::new() };
        problems.into_result(Some(Self { source, root }))
    }

    /// Applies one `--set`; `text` is what follows it, `rl.group_size=8`.
    ///
    /// A key that nobody knows is not noticed here: the strict reader reports it with this
    /// override as its place.
    ///
    /// # Errors
    /// If it has no `=`, its key cannot be read, or the key leads through something that has no
    /// such part or several.
    pub fn set(&mut self, text: &str) -> Result<(), Box<Problem>> {
        let number = self.source.overrides.len();
        overrides::apply(&mut self.root, text, number)?;
        self.source.overrides.push(text.to_owned());
        Ok(())
    }

    /// Applies every `--set` in order; the last one for a key counts.
    pub fn set_all(&mut self, texts: &[impl AsRef<str>], problems: &mut Problems) {
        for text in texts {
            if let Err(problem) = self.set(text.as_ref()) {
                problems.push(*problem);
            }
        }
    }

    /// The top level of the document as it now is.
    pub fn root(&self) -> Table {
        let labels = overrides::labels(&self.root);
        let source = Source { labels, ..self.source.clone() };
        let node = self.root.clone();
        Table { source: Arc::new(source), path: Vec::new(), node, split: Vec::new() }
    }

    /// The file as the user named it.
    pub fn name(&self) -> &str {
        &self.source.name
    }
}

/// A table of a [`Document`], from which a config struct is read.
#[derive(Clone, Debug)]
pub struct Table {
    source: Arc<Source>,
    path: Vec<Step>,
    node: Node,
    /// Keys that are read by somebody else, whether they are there or not.
    split: Vec<String>,
}

impl Table {
    /// The path from the top of the document: `stage[1].env`; empty for the top itself.
    pub fn path(&self) -> String {
        PathText(&self.path).to_string()
    }

    /// The keys that stand in the table, those that were split off included.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.node.entries().iter().map(|entry| entry.key.as_str())
    }

    /// Whether `key` stands in the table.
    pub fn contains(&self, key: &str) -> bool {
        self.node.entry(key).is_some()
    }

    /// The string under `key`, if there is one; it is not taken.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.node.text(key)
    }

    /// Splits off the table under `key`, which another struct is read from. `None` if it is
    /// absent, or is no table, which is a problem.
    pub fn split(&mut self, key: &str, problems: &mut Problems) -> Option<Table> {
        let table = self.part(key)?;
        if let Content::Table(_) = table.node.content {
            return Some(table);
        }
        let fault = Fault::new(key, format!("`{key}` has the wrong type"))
            .found(table.node.in_words())
            .expected("a table");
        self.report(&table.path, Mark::Value, fault, problems);
        None
    }

    /// As [`split`](Self::split), but `key = "math"` also stands for `key = { name = "math" }`.
    pub fn split_named(&mut self, key: &str, problems: &mut Problems) -> Option<Table> {
        let mut named = self.clone();
        let table = match named.part(key) {
            Some(table) => table,
            None => return self.split(key, problems),
        };
        let Content::String(_) = table.node.content else { return self.split(key, problems) };
        self.part(key);
        let entry = super::value::Entry {
            key: "name".to_owned(),
            key_origin: table.node.origin.clone(),
            node: table.node.clone(),
        };
        let node = Node::new(Content::Table(vec![entry]), table.node.origin.clone());
        Some(Table { node, ..table })
    }

    /// Splits off the table under `key`, or an empty one if it is absent, so that a struct whose
    /// keys all have defaults is always read. A value that is no table is a problem.
    pub fn split_or_empty(&mut self, key: &str, problems: &mut Problems) -> Table {
        let split = self.split(key, problems);
        split.unwrap_or_else(|| Table {
            source: Arc::clone(&self.source),
            path: self.path_to(key),
            node: Node::new(Content::Table(Vec::new()), self.node.origin.clone()),
            split: Vec::new(),
        })
    }

    /// Splits off the tables of an array of tables, `[[stage]]`; none if it is absent. Elements
    /// that are no tables are problems.
    pub fn children(&mut self, key: &str, problems: &mut Problems) -> Vec<Table> {
        let Some(list) = self.part(key) else { return Vec::new() };
        let Content::List(nodes) = &list.node.content else {
            let fault = Fault::new(key, format!("`{key}` has the wrong type"))
                .found(list.node.in_words())
                .expected("a list of tables")
                .hint(format!("write [[{}]] above each of them", PathText(&list.path)));
            self.report(&list.path, Mark::Value, fault, problems);
            return Vec::new();
        };
        let mut tables = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            let path = [list.path.as_slice(), &[Step::Index(index)]].concat();
            if let Content::Table(_) = node.content {
                let source = Arc::clone(&self.source);
                tables.push(Table { source, path, node: node.clone(), split: Vec::new() });
            } else {
                let fault = Fault::new(key, format!("`{key}[{index}]` has the wrong type"))
                    .found(node.in_words())
                    .expected("a table");
                self.report(&path, Mark::Value, fault, problems);
            }
        }
        tables
    }

    /// Splits off and reads one value. `None` if it is absent, or is wrong, which is a problem.
    pub fn pull<T: DeserializeOwned>(&mut self, key: &str, problems: &mut Problems) -> Option<T> {
        let value = self.part(key)?;
        value.take(problems)
    }

    /// As [`pull`](Self::pull), but its absence is a problem too.
    pub fn require<T: DeserializeOwned>(
        &mut self,
        key: &str,
        problems: &mut Problems,
    ) -> Option<T> {
        if !self.contains(key) {
            self.split.push(key.to_owned());
            problems.at(self, Fault::new(key, format!("missing key `{key}`")));
        }
        self.pull(key, problems)
    }

    /// Reads what was not split off into a struct, which should have
    /// `#[serde(deny_unknown_fields)]`. Every unknown key, wrong type and missing key is a
    /// problem; `None` if there was one.
    pub fn take<T: DeserializeOwned>(&self, problems: &mut Problems) -> Option<T> {
        strict::read(&self.rest(), &self.path, &self.split, |inside, mark, fault| {
            let path = [self.path.as_slice(), inside].concat();
            self.report(&path, mark, fault, problems);
        })
    }

    /// Reads what was not split off with a component's own function, which tells one fault at a
    /// time. The key at fault is removed and the function asked again, so independent faults are
    /// all found.
    pub fn take_with<T, F: Into<Fault>>(
        &self,
        problems: &mut Problems,
        read: impl Fn(serde_json::Value) -> Result<T, F>,
    ) -> Option<T> {
        let mut working = self.rest();
        let mut sound = true;
        let mut removed: Vec<Vec<Step>> = Vec::new();
        loop {
            let mut lost = Vec::new();
            let json = working.to_json(&mut Vec::new(), &mut lost);
            let (path, fault) = if let Some(path) = lost.into_iter().next() {
                let name = strict::short_name(&path);
                (path, Fault::new("", format!("`{name}` is not finite")).expected("a number"))
            } else {
                match read(json) {
                    Ok(value) => return sound.then_some(value),
                    Err(fault) => {
                        let fault = fault.into();
                        (parse_path(&fault.key).unwrap_or_default(), fault)
                    }
                }
            };
            sound = false;
            let present = working.at(&path).is_some();
            // A key that was removed for an earlier fault is now missing; that is no news, neither of
            // the key nor of the table that held it.
            let caused = |gone: &Vec<Step>| {
                path.starts_with(gone) || !path.is_empty() && gone.starts_with(&path)
            };
            if removed.iter().any(caused) {
                return None;
            }
            // An unknown key is marked itself; of a known one, the value.
            let unknown = fault.problem.starts_with("unknown");
            let mark = if unknown { Mark::Key } else { Mark::Value };
            let full = [self.path.as_slice(), &path].concat();
            self.report(&full, mark, fault, problems);
            let Some((Step::Key(key), parents)) = path.split_last().filter(|_| present) else {
                return None;
            };
            if let Some(Content::Table(entries)) =
                working.at_mut(parents).map(|parent| &mut parent.content)
            {
                entries.retain(|entry| entry.key != *key);
            }
            removed.push(path);
        }
    }

    /// What was not split off as JSON; dates become strings and infinities `null`.
    pub fn to_json(&self) -> serde_json::Value {
        self.rest().to_json(&mut Vec::new(), &mut Vec::new())
    }

    /// The problem that `fault` describes: on the value of its key, on the `--set` that gave it,
    /// or on the head of the table if the key is absent and its default is to blame.
    pub fn problem(&self, fault: Fault) -> Problem {
        let inside = parse_path(&fault.key).unwrap_or_default();
        let path = [self.path.as_slice(), &inside].concat();
        let place = self.place(&inside, Mark::Value);
        Problem::new(place, PathText(&path).to_string(), fault)
    }

    /// Marks `key` as read by somebody else and gives the value with its place, if there is one.
    fn part(&mut self, key: &str) -> Option<Table> {
        self.split.push(key.to_owned());
        let entry = self.node.entry(key)?;
        Some(Table {
            source: Arc::clone(&self.source),
            path: self.path_to(key),
            node: entry.node.clone(),
            split: Vec::new(),
        })
    }

    fn path_to(&self, key: &str) -> Vec<Step> {
        [self.path.as_slice(), &[Step::Key(key.to_owned())]].concat()
    }

    fn rest(&self) -> Node {
        let mut node = self.node.clone();
        if let Content::Table(entries) = &mut node.content {
            entries.retain(|entry| !self.split.contains(&entry.key));
        }
        node
    }

    /// Puts `fault` on `path`, which begins at the top of the document.
    fn report(&self, path: &[Step], mark: Mark, fault: Fault, problems: &mut Problems) {
        let inside = &path[self.path.len()..];
        let place = self.place(inside, mark);
        let mut fault = fault;
        if let (Mark::Key, [Step::Key(key)], Place::Override { .. }) = (mark, path, &place) {
            let labels = self.source.labels.iter().map(String::as_str);
            if let Some(meant) = nearest(key, labels) {
                fault.hint = Some(format!("did you mean `{meant}`?"));
            }
        }
        problems.push(Problem::new(place, PathText(path).to_string(), fault));
    }

    fn place(&self, inside: &[Step], mark: Mark) -> Place {
        let origin = match mark {
            Mark::Key => self.node.key_origin(inside),
            Mark::Value => None,
        };
        match origin.unwrap_or_else(|| self.node.nearest_origin(inside)) {
            Origin::File(span) => {
                Place::in_text(&self.source.name, &self.source.text, span.clone())
            }
            Origin::Override(number) => {
                Place::Override { text: self.source.overrides[*number].clone() }
            }
            Origin::Top => Place::File { path: self.source.name.clone() },
        }
    }
}

/// The TOML text of a finished configuration, with every default spelled out.
///
/// # Errors
/// If it holds what TOML has no form for, such as an integer above `i64::MAX`.
pub fn resolved_toml<T: Serialize>(config: &T) -> Result<String, toml::ser::Error> {
    toml::to_string_pretty(config)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU32;

    use serde::Deserialize;

    use super::super::problem::Paint;
    use super::*;

    #[derive(Debug, Deserialize, Serialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Experiment {
        name: String,
        #[serde(default)]
        seed: u64,
        #[serde(default)]
        model: Model,
    }

    #[derive(Debug, Default, Deserialize, Serialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Model {
        layers: u32,
        hidden: Option<u16>,
        tied: bool,
        dtype: Dtype,
        scale: f64,
        tags: BTreeMap<String, i64>,
    }

    #[derive(Debug, Default, Deserialize, Serialize, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Dtype {
        #[default]
        F32,
        Bf16,
    }

    #[derive(Debug, Deserialize, Serialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Stage {
        kind: String,
        name: Option<String>,
        steps: NonZeroU32,
        group_size: usize,
        #[serde(default)]
        betas: (f64, f64),
        #[serde(default)]
        stop: Vec<String>,
        schedule: Option<Schedule>,
    }

    #[derive(Debug, Deserialize, Serialize, PartialEq)]
    #[serde(deny_unknown_fields, rename_all = "snake_case")]
    enum Schedule {
        Constant,
        Cosine { warmup: u32, floor: f64 },
    }

    /// A component's own reader, as verifiers and environments have it.
    fn env(value: serde_json::Value) -> Result<String, Fault> {
        let table = value.as_object().expect("a table is read");
        for key in table.keys() {
            if !["name", "numbers", "range"].contains(&key.as_str()) {
                return Err(Fault::new(key, format!("unknown key `{key}`")));
            }
        }
        if table.get("numbers").is_some_and(|numbers| numbers.as_u64().is_none_or(|n| n < 2)) {
            return Err(Fault::new("numbers", "`numbers` is too small").expected("at least 2"));
        }
        if table.get("range").is_some_and(|range| range[1].as_i64() < range[0].as_i64()) {
            return Err(Fault::new("range[1]", "`range` ends before it begins"));
        }
        let name = table.get("name").and_then(|name| name.as_str());
        name.map(str::to_owned).ok_or_else(|| Fault::new("name", "missing key `name`"))
    }

    fn read(
        text: &str,
        overrides: &[&str],
    ) -> Result<(Experiment, Vec<Stage>, Vec<String>), Problems> {
        let mut document = Document::parse("c.toml", text)?;
        let mut problems = Problems::of("c.toml");
        document.set_all(overrides, &mut problems);
        let mut root = document.root();
        let mut stages = Vec::new();
        let mut envs = Vec::new();
        for mut stage in root.children("stage", &mut problems) {
            if let Some(table) = stage.split_named("env", &mut problems) {
                envs.extend(table.take_with(&mut problems, env));
            }
            let read: Option<Stage> = stage.take(&mut problems);
            if let Some(read) = &read
                && read.group_size < 2
            {
                let problem = format!("`group_size` is {}", read.group_size);
                let fault = Fault::new("group_size", problem).expected("at least 2");
                problems.at(&stage, fault);
            }
            stages.extend(read);
        }
        let experiment = root.take(&mut problems);
        problems.into_result(experiment.map(|experiment| (experiment, stages, envs)))
    }

    const GOOD: &str = r#"name = "x"
[model]
layers = 2
[[stage]]
kind = "sft"
steps = 10
group_size = 4
[[stage]]
kind = "rl"
steps = 20
group_size = 8
schedule = { cosine = { warmup = 2, floor = 0.1 } }
[stage.env]
name = "countdown"
numbers = 3
"#;

    #[track_caller]
    fn check(text: &str, overrides: &[&str], expected: &str) {
        let problems = read(text, overrides).expect_err("the configuration is wrong");
        let rendered = problems.render(Paint::Plain);
        assert_eq!(rendered, expected.trim_start_matches('\n'), "\n{rendered}");
    }

    #[test]
    fn a_good_file_is_read() {
        let (experiment, stages, envs) = read(GOOD, &[]).unwrap();
        assert_eq!(experiment.model.layers, 2);
        assert_eq!(stages[1].steps.get(), 20);
        assert_eq!(stages[1].schedule, Some(Schedule::Cosine { warmup: 2, floor: 0.1 }));
        assert_eq!(envs, ["countdown"]);
    }

    #[test]
    fn overrides_reach_every_part() {
        let overrides = [
            "seed=18446744073709551615",
            "name=7",
            "model.dtype=bf16",
            "model.tags.deep=1",
            "rl.steps=5",
            "stage[0].group_size = 3",
            "stage.sft.name=warm start",
            "stage[1].betas=[0.9, 0.95]",
            "stage[1].betas[1]=0.99",
            "rl.env.name=arithmetic",
            "sft.env=gsm8k",
            "rl.schedule=constant",
            "rl.stop=[\"a=b\"]",
        ];
        let (experiment, stages, envs) = read(GOOD, &overrides).unwrap();
        assert_eq!(experiment.seed, u64::MAX);
        assert_eq!(experiment.name, "7");
        assert_eq!(experiment.model.dtype, Dtype::Bf16);
        assert_eq!(experiment.model.tags["deep"], 1);
        assert_eq!(stages[1].steps.get(), 5);
        assert_eq!(stages[0].group_size, 3);
        assert_eq!(stages[0].name.as_deref(), Some("warm start"));
        assert_eq!(stages[1].betas, (0.9, 0.99));
        assert_eq!(stages[1].schedule, Some(Schedule::Constant));
        assert_eq!(stages[1].stop, ["a=b"]);
        assert_eq!(envs, ["gsm8k", "arithmetic"]);
    }

    #[test]
    fn all_problems_are_told_at_once_in_the_order_of_the_file() {
        check(
            r#"nmae = "x"
seed = "1"
extra = 1
[model]
layers = -1
hidden = 70000
tied = "yes"
dtype = "bf-16"
scale = "big"
tags = { a = 1, b = "2" }
[[stage]]
kind = "rl"
stpes = 1
betas = [1]
stop = "end"
group_size = 8.0
[stage.env]
name = "countdown"
numbers = 1
nubmers = 3
[stage.schedule]
cosine = { warmup = 1, flor = 2 }
[[stage]]
kind = 3
steps = 0
"#,
            &["stage[1].group_siez=4", "mdoel.layers=3", "rll.steps=2"],
            r#"
error: unknown key `nmae`
 --> c.toml:1:1
  |
1 | nmae = "x"
  | ^^^^ key nmae
  |
hint: did you mean `name`?

error: `seed` has the wrong type: found a string, expected a whole number of at least 0
 --> c.toml:2:8
  |
2 | seed = "1"
  |        ^^^ key seed
  |
hint: write it without quotes: seed = 1

error: unknown key `extra`
 --> c.toml:3:1
  |
3 | extra = 1
  | ^^^^^ key extra
  |
hint: known keys here: name, seed, model, stage

error: `layers` is out of range: found -1, expected a whole number of at least 0
 --> c.toml:5:10
  |
5 | layers = -1
  |          ^^ key model.layers

error: `hidden` is out of range: found 70000, expected a whole number from 0 to 65535
 --> c.toml:6:10
  |
6 | hidden = 70000
  |          ^^^^^ key model.hidden

error: `tied` has the wrong type: found a string, expected true or false
 --> c.toml:7:8
  |
7 | tied = "yes"
  |        ^^^^^ key model.tied
  |
hint: write it without quotes: tied = true

error: `dtype` is "bf-16", which is not known here: expected "f32" or "bf16"
 --> c.toml:8:9
  |
8 | dtype = "bf-16"
  |         ^^^^^^^ key model.dtype
  |
hint: did you mean "bf16"?

error: `scale` has the wrong type: found a string, expected a number
 --> c.toml:9:9
  |
9 | scale = "big"
  |         ^^^^^ key model.scale

error: `b` has the wrong type: found a string, expected a whole number
  --> c.toml:10:21
   |
10 | tags = { a = 1, b = "2" }
   |                     ^^^ key model.tags.b
   |
hint: write it without quotes: b = 2

error: unknown key `stpes`
  --> c.toml:13:1
   |
13 | stpes = 1
   | ^^^^^ key stage[0].stpes
   |
hint: did you mean `steps`?

error: `betas` has the wrong length: found 1, expected a list of 2 values
  --> c.toml:14:9
   |
14 | betas = [1]
   |         ^^^ key stage[0].betas

error: `stop` has the wrong type: found a string, expected a list
  --> c.toml:15:8
   |
15 | stop = "end"
   |        ^^^^^ key stage[0].stop
   |
hint: put it in brackets: stop = ["end"]

error: `group_size` has the wrong type: found the number 8.0, expected a whole number of at least 0
  --> c.toml:16:14
   |
16 | group_size = 8.0
   |              ^^^ key stage[0].group_size
   |
hint: write it without a fraction: group_size = 8

error: `numbers` is too small: expected at least 2
  --> c.toml:19:11
   |
19 | numbers = 1
   |           ^ key stage[0].env.numbers

error: unknown key `nubmers`
  --> c.toml:20:1
   |
20 | nubmers = 3
   | ^^^^^^^ key stage[0].env.nubmers

error: unknown key `flor`
  --> c.toml:22:24
   |
22 | cosine = { warmup = 1, flor = 2 }
   |                        ^^^^ key stage[0].schedule.cosine.flor
   |
hint: did you mean `floor`?

error: `kind` has the wrong type: found the number 3, expected a string
  --> c.toml:24:8
   |
24 | kind = 3
   |        ^ key stage[1].kind
   |
hint: put it in quotes: kind = "3"

error: `steps` is out of range: found 0, expected a whole number of at least 1
  --> c.toml:25:9
   |
25 | steps = 0
   |         ^ key stage[1].steps

error: unknown key `group_siez`
--> --set stage[1].group_siez=4, key stage[1].group_siez
 |
hint: did you mean `group_size`?

error: unknown key `mdoel`
--> --set mdoel.layers=3, key mdoel
 |
hint: did you mean `model`?

error: unknown key `rll`
--> --set rll.steps=2, key rll
 |
hint: did you mean `rl`?

21 problems in c.toml; nothing was started"#,
        );
    }

    #[test]
    fn a_value_that_makes_no_sense_is_put_on_its_line() {
        check(
            "name = 'x'\n[[stage]]\nkind = 'rl'\nsteps = 1\ngroup_size = 1",
            &[],
            "
error: `group_size` is 1: expected at least 2
 --> c.toml:5:14
  |
5 | group_size = 1
  |              ^ key stage[0].group_size

1 problem in c.toml; nothing was started",
        );
    }

    #[test]
    fn a_default_is_blamed_on_the_head_of_its_table() {
        let document = Document::parse("c.toml", "a = 1\n[stage.env]\nname = 'x'\n").unwrap();
        let mut problems = Problems::of("c.toml");
        let mut stage = document.root().split("stage", &mut problems).unwrap();
        let mut env = stage.split("env", &mut problems).unwrap();
        let absent = env.split_or_empty("curriculum", &mut problems);
        let places = [
            stage.problem(Fault::new("env.numbers", "")),
            stage.problem(Fault::new("env.name", "")),
            env.problem(Fault::new("", "")),
            absent.problem(Fault::new("start", "")),
            document.root().problem(Fault::new("seed", "")),
        ];
        let places = places.map(|problem| format!("{} {}", problem.place, problem.key));
        assert_eq!(
            places,
            [
                "c.toml:2:1 stage.env.numbers",
                "c.toml:3:8 stage.env.name",
                "c.toml:2:1 stage.env",
                "c.toml:2:1 stage.env.curriculum.start",
                "c.toml seed",
            ]
        );
        assert!(problems.is_empty());
    }

    #[test]
    fn missing_keys_are_told_together() {
        check(
            "[[stage]]\nkind = 'rl'\nschedule = { cosine = {} }",
            &[],
            "
error: missing key `name`
--> c.toml, key name

error: missing key `steps`
 --> c.toml:1:1
  |
1 | [[stage]]
  | ^^^^^^^^^ key stage[0].steps

error: missing key `group_size`
 --> c.toml:1:1
  |
1 | [[stage]]
  | ^^^^^^^^^ key stage[0].group_size

error: missing key `warmup`
 --> c.toml:3:23
  |
3 | schedule = { cosine = {} }
  |                       ^^ key stage[0].schedule.cosine.warmup

error: missing key `floor`
 --> c.toml:3:23
  |
3 | schedule = { cosine = {} }
  |                       ^^ key stage[0].schedule.cosine.floor

5 problems in c.toml; nothing was started",
        );
        let document = Document::parse("c.toml", "a = 1").unwrap();
        let mut problems = Problems::of("c.toml");
        let mut root = document.root();
        assert_eq!(root.require::<String>("kind", &mut problems), None);
        assert_eq!(root.pull::<u8>("b", &mut problems), None);
        assert_eq!(root.pull::<u8>("a", &mut problems), Some(1));
        let told = problems.render(Paint::Plain);
        assert!(told.starts_with("error: missing key `kind`\n--> c.toml, key kind\n"), "{told}");
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn every_form_of_serde_is_read_as_strictly() {
        #[derive(Debug, Deserialize, PartialEq)]
        #[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
        enum Tagged {
            Fixed { value: f64 },
        }
        #[derive(Debug, Deserialize, PartialEq)]
        #[serde(untagged)]
        enum Either {
            One(String),
            Many(Vec<String>),
        }
        #[derive(Debug, Deserialize, PartialEq)]
        #[serde(try_from = "f64")]
        struct Share(f64);
        impl TryFrom<f64> for Share {
            type Error = String;
            fn try_from(value: f64) -> Result<Self, String> {
                let message = || format!("{value} is no share between 0 and 1");
                (0.0..=1.0).contains(&value).then_some(Self(value)).ok_or_else(message)
            }
        }
        #[derive(Debug, Deserialize, PartialEq)]
        #[serde(deny_unknown_fields)]
        struct Forms {
            rate: Tagged,
            stop: Either,
            share: Share,
            path: std::path::PathBuf,
            when: Option<String>,
        }
        let read = |text: &str| {
            let mut problems = Problems::of("c");
            let read = Document::parse("c", text).unwrap().root().take::<Forms>(&mut problems);
            (read, problems.iter().map(Problem::title).collect::<Vec<_>>())
        };
        let good = "rate = { kind = 'fixed', value = 1 }\nstop = ['a']\nshare = 0.5\npath = 'x'\nwhen = 2020-01-01";
        let (forms, problems) = read(good);
        assert_eq!(forms.unwrap().when.as_deref(), Some("2020-01-01"), "{problems:?}");
        let (forms, problems) =
            read("rate = { kind = 'fixed', valeu = 1, value = 2 }\nstop = 1\nshare = 2\npath = 3");
        assert_eq!(forms, None);
        assert_eq!(
            problems,
            [
                "unknown key `valeu`",
                "`stop` has a form that is not understood here: found the number 1",
                "`share`: 2 is no share between 0 and 1",
                "`path` has the wrong type: found the number 3, expected a path",
            ]
        );
        let (_, problems) = read("share = 2020-01-01\nrate = { kind = 'fixed', value = 'x' }");
        assert_eq!(
            problems,
            [
                "`share` has the wrong type: found a date, expected a number",
                "a value in `rate` has the wrong type: found a string, expected a number",
            ]
        );
    }

    #[test]
    fn what_serde_read_ahead_is_still_told() {
        #[derive(Debug, Deserialize)]
        #[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
        enum Tagged {
            #[expect(dead_code, reason = "only the reading is tested")]
            Nested { inner: Inner },
        }
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only the reading is tested")]
        struct Inner {
            width: u32,
        }
        for (text, expected) in [
            ("kind = 'nested'\ninner = { width = 1, hight = 2 }", "unknown key `hight`"),
            ("kind = 'nested'\ninner = {}", "missing key `width`"),
            ("kind = 'nested'", "missing key `inner`"),
            ("inner = {}", "missing key `kind`"),
            (
                "kind = 'nestde'",
                "`kind` is \"nestde\", which is not known here: expected \"nested\"",
            ),
        ] {
            let mut problems = Problems::of("c");
            let read = Document::parse("c", text).unwrap().root().take::<Tagged>(&mut problems);
            assert!(read.is_none());
            let told: Vec<String> = problems.iter().map(Problem::title).collect();
            assert_eq!(told, [expected], "{text}");
        }
    }

    #[test]
    fn a_fault_of_an_override_is_put_on_it() {
        check(
            GOOD,
            &["rl.group_size=1", "rl.env.numbers=0", "model=3", "stage[0].steps=many"],
            "
error: `steps` has the wrong type: found a string, expected a whole number of at least 1
--> --set stage[0].steps=many, key stage[0].steps

error: `numbers` is too small: expected at least 2
--> --set rl.env.numbers=0, key stage[1].env.numbers

error: `group_size` is 1: expected at least 2
--> --set rl.group_size=1, key stage[1].group_size

error: `model` has the wrong type: found the number 3, expected a table
--> --set model=3, key model

4 problems in c.toml; nothing was started",
        );
    }

    #[test]
    fn overrides_that_lead_nowhere_say_where_they_could() {
        let text =
            format!("{GOOD}\n[[stage]]\nkind = 'rl'\nname = 'late'\nsteps = 1\ngroup_size = 2\n");
        check(
            &text,
            &[
                "rl.steps=1",
                "stage[3].steps=1",
                "stage.pretrain.steps=1",
                "seed",
                "=1",
                "a..b=1",
                "name.x=1",
                "rl.stop=[1",
                "name[0]=1",
                "model.layers=2\nhidden=3",
            ],
            r#"
error: `rl` names 2 tables
--> --set rl.steps=1, key rl.steps
 |
hint: say which by its index: stage[1] (kind = "rl"), stage[2] (kind = "rl", name = "late")

error: there is no `stage[3]`
--> --set stage[3].steps=1, key stage[3].steps
 |
hint: there are stage[0] (kind = "sft"), stage[1] (kind = "rl"), stage[2] (kind = "rl", name = "late")

error: `stage` is a list in which nothing is called `pretrain`
--> --set stage.pretrain.steps=1, key stage.pretrain.steps
 |
hint: there are stage[0] (kind = "sft"), stage[1] (kind = "rl"), stage[2] (kind = "rl", name = "late")

error: `seed` gives no value: expected key=value
--> --set seed

error: cannot read the key ``: the key is empty
--> --set =1
 |
hint: keys look like rl.steps, stage[1].steps or model.layers

error: cannot read the key `a..b`: a key is empty
--> --set a..b=1
 |
hint: keys look like rl.steps, stage[1].steps or model.layers

error: `name` has no keys, so no `x`: found a string, expected a table
--> --set name.x=1, key name.x

error: cannot read the value `[1`: expected a TOML value, such as [1, 2]
--> --set rl.stop=[1, key rl.stop

error: `name` has no element 0: found a string, expected a list
--> --set name[0]=1, key name[0]

error: `layers` has the wrong type: found a string, expected a whole number of at least 0
--> --set model.layers=2\nhidden=3, key model.layers

10 problems in c.toml; nothing was started"#,
        );
    }

    #[test]
    fn every_syntax_error_is_told() {
        check(
            "a =\nb = tru\nc = 'x\nname = 1\nname = 2\nbig = 99999999999999999999\n",
            &[],
            "
error: a value is missing after `=`
 --> c.toml:1:4
  |
1 | a =
  |    ^

error: not valid TOML: invalid boolean, expected `true`
 --> c.toml:2:5
  |
2 | b = tru
  |     ^^^

error: not valid TOML: invalid literal string, expected `'`
 --> c.toml:3:7
  |
3 | c = 'x
  |       ^

error: not valid TOML: duplicate key
 --> c.toml:5:1
  |
5 | name = 2
  | ^^^^

error: 99999999999999999999 does not fit into 64 bits
 --> c.toml:6:7
  |
6 | big = 99999999999999999999
  |       ^^^^^^^^^^^^^^^^^^^^

5 problems in c.toml; nothing was started",
        );
    }

    #[test]
    fn wrong_shapes_of_whole_tables_are_told() {
        check(
            "name = 'x'\nmodel = [1]\nstage = 3\n",
            &[],
            "
error: `model` has the wrong type: found a list, expected a table
 --> c.toml:2:9
  |
2 | model = [1]
  |         ^^^ key model

error: `stage` has the wrong type: found the number 3, expected a list of tables
 --> c.toml:3:9
  |
3 | stage = 3
  |         ^ key stage
  |
hint: write [[stage]] above each of them

2 problems in c.toml; nothing was started",
        );
        check(
            "name = 'x'\nstage = [1, {kind='rl', steps=1, group_size=2, env=4}]\n",
            &[],
            "
error: `stage[0]` has the wrong type: found the number 1, expected a table
 --> c.toml:2:10
  |
2 | stage = [1, {kind='rl', steps=1, group_size=2, env=4}]
  |          ^ key stage[0]

error: `env` has the wrong type: found the number 4, expected a table
 --> c.toml:2:52
  |
2 | stage = [1, {kind='rl', steps=1, group_size=2, env=4}]
  |                                                    ^ key stage[1].env

2 problems in c.toml; nothing was started",
        );
    }

    #[test]
    fn files_that_cannot_be_read_say_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        let check = |expected: &str| {
            let problems = Document::read(&path).expect_err("the file is wrong");
            let told = problems.render(Paint::Plain);
            let told = told.replace(&folder.path().display().to_string(), "DIR");
            assert_eq!(told, expected.trim_start(), "\n{told}");
        };
        check(
            "
error: could not read `DIR/c.toml`: no such file or directory (2)
--> DIR/c.toml
 |
hint: check the spelling and the folder you are in

1 problem in DIR/c.toml; nothing was started",
        );
        fs::write(&path, b"name = 'x'\n# caf\xe9\n").unwrap();
        check(
            "
error: the byte 0xe9 is not UTF-8
 --> DIR/c.toml:2:6
  |
2 | # caf�
  |      ^
  |
hint: TOML files are UTF-8: save the file in that encoding

1 problem in DIR/c.toml; nothing was started",
        );
    }

    #[test]
    fn the_resolved_text_reads_back_as_the_same() {
        let (experiment, stages, _) = read(GOOD, &["model.tags={b=1, a=2}"]).unwrap();
        let text = resolved_toml(&experiment).unwrap();
        let again: Experiment =
            Document::parse("r", text).unwrap().root().take(&mut Problems::of("r")).unwrap();
        assert_eq!(again, experiment);
        let text = resolved_toml(&stages[1]).unwrap();
        let again: Stage =
            Document::parse("r", text).unwrap().root().take(&mut Problems::of("r")).unwrap();
        assert_eq!(again, stages[1]);
    }
}
