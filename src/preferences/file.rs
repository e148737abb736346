//! Pairs from JSONL, plain or packed with gzip or zstd. A line is one of
//!
//! ```text
//! {"prompt": …, "chosen": …, "rejected": …}    texts, or lists of {"role", "content"}
//! {"chosen": […], "rejected": […]}             whole conversations as lists of messages
//! {"chosen": "\n\nHuman: …", "rejected": …}    whole dialogues as text (hh-rlhf, arXiv:2204.05862)
//! ```
//!
//! and may hold a number `margin`. Of whole conversations the messages that both begin with are the
//! prompt.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tallow_envs::{Seed, Split};
use tallow_policies::Decoder;
use tallow_verifiers::config_fault::read_options;
use tallow_verifiers::{ConfigFault, Message, Role};

use super::{Pair, PairSet, PairSource, PairSourceEntry, Read};
use crate::config::StageContext;
use crate::config::document::Table;
use crate::config::problem::Problems;
use crate::documents::{read_jsonl, require_path, require_share, resolve, split_of};
use crate::error::Error;
use crate::renderer::Renderer;
use crate::run::StageRun;

/// This source's row.
pub const ENTRY: PairSourceEntry = PairSourceEntry {
    name: "file",
    summary: "JSONL of prompt, chosen and rejected, or of whole dialogues",
    read,
    default_options: || json!(FilePairs::default()),
};

/// Settings of the source `file`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilePairs {
    /// The JSONL file.
    pub path: String,
    /// A second file to hold out instead of a share of the first.
    pub test_path: Option<String>,
    /// Share of the prompts held out when there is no `test_path`.
    pub held_out: f64,
}

impl Default for FilePairs {
    fn default() -> Self {
        Self { path: String::new(), test_path: None, held_out: 0.1 }
    }
}

fn read(table: &mut Table, context: &StageContext<'_>, problems: &mut Problems) -> Option<Read> {
    let settings = table.to_json();
    let (source, settings) = table
        .take_with(problems, |options| build(options, context.folder, context.seed))
        .map(|it| {
            let mut all = json!(FilePairs::default());
            for (key, value) in settings.as_object().into_iter().flatten() {
                all[key] = value.clone();
            }
            (it, all)
        })?;
    Some((source, settings))
}

/// Builds the source; reads the files.
///
/// # Errors
/// If a file is missing, a line holds no pair, or there is nothing to learn from.
pub fn build(
    options: Value,
    folder: &Path,
    seed: Seed,
) -> Result<Arc<dyn PairSource>, ConfigFault> {
    let config: FilePairs = read_options(options)?;
    require_path(&config.path)?;
    require_share(config.held_out)?;
    let load = |key: &str, path: &str| {
        read_pairs(&resolve(path, folder)).map_err(|e| ConfigFault::new(key, e.to_string()))
    };
    let mut pairs = PairSet::default();
    let all = load("path", &config.path)?;
    match &config.test_path {
        Some(path) => {
            pairs.train = all;
            pairs.held_out = load("test_path", path)?;
        }
        None => {
            for pair in all {
                match split_of(seed, prompt_number(&pair.prompt), config.held_out) {
                    Split::Train => pairs.train.push(pair),
                    Split::Test => pairs.held_out.push(pair),
                }
            }
        }
    }
    if pairs.train.is_empty() {
        return Err(ConfigFault::new("path", "no pair to learn from").found(&config.path));
    }
    Ok(Arc::new(Source { pairs }))
}

struct Source {
    pairs: PairSet,
}

impl PairSource for Source {
    fn most(&self) -> (u64, u64) {
        (self.pairs.train.len() as u64, self.pairs.held_out.len() as u64)
    }

    fn pairs(
        &self,
        _: &Decoder,
        _: &Arc<Renderer>,
        _: &mut StageRun<'_>,
    ) -> Result<PairSet, Error> {
        Ok(self.pairs.clone())
    }
}

/// The same number for the same prompt (FNV-1a), which decides its split.
fn prompt_number(prompt: &[Message]) -> u64 {
    json!(prompt).to_string().bytes().fold(0xcbf2_9ce4_8422_2325, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Every pair of a file.
///
/// # Errors
/// If it cannot be read, or a line holds no pair, named as `FILE:LINE`.
pub fn read_pairs(path: &Path) -> Result<Vec<Pair>, Error> {
    read_jsonl(path)?
        .iter()
        .map(|(line, row)| {
            pair_of(row).map_err(|it| Error::Data(format!("{}:{line}: {it}", path.display())))
        })
        .collect()
}

fn pair_of(row: &Map<String, Value>) -> Result<Pair, String> {
    let field = |name: &str| {
        row.get(name).filter(|it| !it.is_null()).ok_or_else(|| {
            let fields: Vec<&str> = row.keys().map(String::as_str).collect();
            format!("no field `{name}`; the line has {}", fields.join(", "))
        })
    };
    let (chosen, rejected) = (field("chosen")?, field("rejected")?);
    let mut pair = match row.get("prompt").filter(|it| !it.is_null()) {
        Some(prompt) => Pair {
            prompt: prompt_of(prompt)?,
            chosen: reply_of("chosen", chosen)?,
            rejected: reply_of("rejected", rejected)?,
            margin: None,
        },
        None => {
            let whole = |name, side| conversation_of(name, side);
            divided(whole("chosen", chosen)?, whole("rejected", rejected)?)
        }
    };
    for (name, side) in [("chosen", &pair.chosen), ("rejected", &pair.rejected)] {
        if side.iter().all(|it| it.role != Role::Assistant) {
            return Err(format!(
                "`{name}` holds no reply of the assistant after what both sides begin with"
            ));
        }
    }
    pair.margin = match row.get("margin").filter(|it| !it.is_null()) {
        None => None,
        Some(margin) => match margin.as_f64().filter(|it| it.is_finite()) {
            Some(margin) => Some(margin),
            None => return Err(format!("`margin` is {margin}, expected a number")),
        },
    };
    Ok(pair)
}

fn prompt_of(value: &Value) -> Result<Vec<Message>, String> {
    let Value::String(text) = value else { return messages_of("prompt", value) };
    let mut messages = dialogue(text).unwrap_or_else(|| vec![Message::user(text.as_str())]);
    // A dialogue that ends where the reply begins.
    if messages.last().is_some_and(|it| it.role == Role::Assistant && it.content.is_empty()) {
        messages.pop();
    }
    Ok(messages)
}

fn reply_of(name: &str, value: &Value) -> Result<Vec<Message>, String> {
    match value {
        Value::String(text) => Ok(vec![Message::assistant(text.as_str())]),
        value => messages_of(name, value),
    }
}

fn conversation_of(name: &str, value: &Value) -> Result<Vec<Message>, String> {
    let Value::String(text) = value else { return messages_of(name, value) };
    dialogue(text).ok_or_else(|| {
        format!(
            "there is no `prompt`, and `{name}` is no whole dialogue: expected a list of messages, or \
             a text that begins with `Human:`"
        )
    })
}

fn messages_of(name: &str, value: &Value) -> Result<Vec<Message>, String> {
    serde_json::from_value(value.clone())
        .map_err(|e| format!("`{name}` is neither a text nor a list of messages: {e}"))
}

/// `\n\nHuman: … \n\nAssistant: …` as messages; `None` if it is something else.
fn dialogue(text: &str) -> Option<Vec<Message>> {
    const SPEAKERS: [(&str, Role); 2] = [("Human:", Role::User), ("Assistant:", Role::Assistant)];
    let mut messages: Vec<Message> = Vec::new();
    let begun = text.trim_start();
    begun.starts_with(SPEAKERS[0].0).then_some(())?;
    for (index, paragraph) in begun.split("\n\n").enumerate() {
        let speaks = SPEAKERS.iter().find_map(|(name, role)| {
            // Spaces before a name are a writer's, not the format's.
            Some((paragraph.strip_prefix(name)?, *role))
        });
        match (speaks, messages.last_mut()) {
            (Some((said, role)), _) => {
                messages.push(Message { role, content: said.trim_start().to_owned() });
            }
            (None, Some(last)) if index > 0 => {
                last.content.push_str("\n\n");
                last.content.push_str(paragraph);
            }
            (None, _) => return None,
        }
    }
    for message in &mut messages {
        message.content.truncate(message.content.trim_end().len());
    }
    Some(messages)
}

/// Two whole conversations as what both begin with and what follows; each keeps its last message.
fn divided(chosen: Vec<Message>, rejected: Vec<Message>) -> Pair {
    let most = chosen.len().min(rejected.len()).saturating_sub(1);
    let shared = chosen.iter().zip(&rejected).take(most).take_while(|it| it.0 == it.1).count();
    let prompt = chosen[..shared].to_vec();
    Pair {
        prompt,
        chosen: chosen[shared..].to_vec(),
        rejected: rejected[shared..].to_vec(),
        margin: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(row: Value, expected: Result<(usize, &str, &str), &str>) {
        let Value::Object(row) = row else { panic!("a line is an object") };
        let found = pair_of(&row);
        match (expected, found) {
            (Ok((shared, chosen, rejected)), Ok(pair)) => {
                assert_eq!(pair.prompt.len(), shared, "{row:?}");
                let last = |side: &[Message]| side.last().map(|it| it.content.clone());
                assert_eq!(last(&pair.chosen).as_deref(), Some(chosen), "{row:?}");
                assert_eq!(last(&pair.rejected).as_deref(), Some(rejected), "{row:?}");
            }
            (Err(expected), Err(told)) => assert!(told.contains(expected), "{told}"),
            (expected, found) => panic!("{row:?}: {expected:?}, {found:?}"),
        }
    }

    #[test]
    fn every_shape_is_read_and_others_are_refused() {
        let user = json!({"role": "user", "content": "1?"});
        let says = |text: &str| json!({"role": "assistant", "content": text});
        check(json!({"prompt": "1?", "chosen": "a", "rejected": "b"}), Ok((1, "a", "b")));
        check(
            json!({"prompt": [user], "chosen": [says("a")], "rejected": [says("b")], "margin": 2}),
            Ok((1, "a", "b")),
        );
        check(
            json!({"chosen": [user, says("a")], "rejected": [user, says("b")]}),
            Ok((1, "a", "b")),
        );
        let begin = "\n\nHuman: hi\n\nthere\n\nAssistant: yes\n\nHuman: 1?\n\nAssistant:";
        check(
            json!({"chosen": format!("{begin} a\n\n"), "rejected": format!("{begin} b")}),
            Ok((3, "a", "b")),
        );
        check(json!({"prompt": begin, "chosen": " a", "rejected": "b"}), Ok((3, " a", "b")));
        // They part at the user's second message.
        check(
            json!({
                "chosen": "\n\nHuman: hi\n\nAssistant: x\n\nHuman: 1?\n\nAssistant: a",
                "rejected": "\n\nHuman: hi\n\nAssistant: x\n\nHuman: 2?\n\nAssistant: b",
            }),
            Ok((2, "a", "b")),
        );
        check(json!({"chosen": "a", "rejected": "b"}), Err("`chosen` is no whole dialogue"));
        check(json!({"prompt": "1?", "chosen": "a"}), Err("no field `rejected`; the line has"));
        check(json!({"prompt": 1, "chosen": "a", "rejected": "b"}), Err("`prompt` is neither"));
        check(
            json!({"prompt": "1?", "chosen": "a", "rejected": "b", "margin": "much"}),
            Err("`margin` is \"much\""),
        );
        check(
            json!({"chosen": [user, says("a")], "rejected": [user]}),
            Err("`rejected` holds no reply"),
        );
    }

    #[test]
    fn pairs_of_one_prompt_are_in_one_split() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.jsonl");
        let line =
            |it: u32| json!({"prompt": format!("{}", it / 2), "chosen": it, "rejected": "b"});
        let lines: String = (0..200)
            .map(|it| {
                let mut line = line(it);
                line["chosen"] = json!(it.to_string());
                format!("{line}\n")
            })
            .collect();
        std::fs::write(&path, lines).unwrap();
        let options = json!({"path": path, "held_out": 0.3});
        let source = build(options, folder.path(), Seed(1)).expect("built");
        let (train, held_out) = source.most();
        assert_eq!(train + held_out, 200);
        assert!(held_out.is_multiple_of(2) && (30..=90).contains(&held_out), "{held_out}");
    }

    #[test]
    fn a_bad_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.jsonl");
        let good = json!({"prompt": "1?", "chosen": "a", "rejected": "b"});
        std::fs::write(&path, format!("{good}\n\n{{\"chosen\": \"x\"}}\n")).unwrap();
        let told = read_pairs(&path).expect_err("refused").to_string();
        assert!(told.contains("pairs.jsonl:3: no field `rejected`"), "{told}");
    }
}
