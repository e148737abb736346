//! Text to token ids and back: a Hugging Face `tokenizer.json` with its special tokens.
//!
//! Loaded from a model folder or a GGUF file, trained here as byte-level BPE (the GPT-2 scheme: every byte has a
//! token, so no text is unknown), or made as a character tokenizer for tiny models. The encoding
//! itself is the `tokenizers` crate's; this file settles which ids end a reply, how files are laid
//! out, and how a new tokenizer is made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, TokenizerImpl};

use crate::TokenId;
use crate::error::PolicyError;
use crate::gguf::{self, GgufFile, TokenizerParts};

/// Ends a document or a reply in tokenizers made here.
pub const END_TOKEN: &str = "<|end|>";
/// Padding in tokenizers made here; never trained on, kept because other tools ask for one.
pub const PAD_TOKEN: &str = "<|pad|>";
/// Stands for a character that a character tokenizer does not hold.
pub const UNKNOWN_TOKEN: &str = "<|unknown|>";
/// Opens a turn in tokenizers made here with `chat = true`.
pub const TURN_START_TOKEN: &str = "<|im_start|>";
/// Closes a turn in tokenizers made here with `chat = true`.
pub const TURN_END_TOKEN: &str = "<|im_end|>";

/// A tokenizer, its special tokens and what else its folder said.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// `tokenizer_config.json`, kept whole so that a round trip loses nothing.
    config: Map<String, Value>,
    /// Name and text of each chat template; [`DEFAULT_TEMPLATE`] is the usual one.
    chat_templates: BTreeMap<String, String>,
    end_ids: Vec<TokenId>,
    /// One more than the highest id.
    id_bound: usize,
}

/// The name of the chat template that is used where no other is asked for.
pub const DEFAULT_TEMPLATE: &str = "default";

const TOKENIZER: &str = "tokenizer.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Folder of the chat templates beside the default one, as transformers 5 lays them out.
const MORE_TEMPLATES: &str = "additional_chat_templates";

impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json`, `generation_config.json`, `config.json`
    /// and `chat_template.jinja` where the folder holds them. Where there is no `tokenizer.json`
    /// but a GGUF file (see [`crate::holds_model`]), the tokenizer is rebuilt from its metadata.
    ///
    /// The ids that end a reply are all those that any of these files names as end of sequence:
    /// honouring only one of them counts finished replies as truncated.
    ///
    /// # Errors
    /// If a file that is there cannot be read, or no end-of-sequence token is named anywhere.
    pub fn from_folder(folder: &Path) -> Result<Self, PolicyError> {
        let path = folder.join(TOKENIZER);
        if !path.exists()
            && let Some(file) = gguf::file_at(folder)?
        {
            return Self::from_gguf(&file);
        }
        let bytes = std::fs::read(&path).map_err(|e| PolicyError::file("read", &path, e))?;
        let inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|e| PolicyError::checkpoint(&path, format!("not a tokenizer: {e}")))?;
        let config_path = folder.join("tokenizer_config.json");
        let config = object(&config_path)?.unwrap_or_default();
        let mut chat_templates = templates_in(&config_path, &config)?;
        chat_templates.extend(template_files(folder)?);
        let mut end_ids = BTreeSet::new();
        for name in ["generation_config.json", "config.json"] {
            if let Some(found) = object(&folder.join(name))?
                && let Some(ids) = found.get("eos_token_id")
            {
                end_ids.extend(ids_of(ids));
            }
        }
        if let Some(id) = token_text_in(&config, "eos_token").and_then(|it| inner.token_to_id(&it))
        {
            end_ids.insert(id);
        }
        if end_ids.is_empty() {
            return Err(PolicyError::checkpoint(
                folder,
                "no end-of-sequence token: none of generation_config.json, config.json and \
                 tokenizer_config.json names one",
            ));
        }
        Ok(Self::of_parts(inner, config, chat_templates, end_ids.into_iter().collect()))
    }

    fn from_gguf(path: &Path) -> Result<Self, PolicyError> {
        let TokenizerParts { tokenizer, config, mut end_ids } =
            GgufFile::open(path)?.tokenizer()?;
        let inner = tokenizers::Tokenizer::from_bytes(tokenizer.to_string())
            .map_err(|e| PolicyError::checkpoint(path, format!("its tokenizer is refused: {e}")))?;
        let chat_templates = templates_in(path, &config)?;
        end_ids.sort_unstable();
        end_ids.dedup();
        Ok(Self::of_parts(inner, config, chat_templates, end_ids))
    }

    fn of_parts(
        inner: tokenizers::Tokenizer,
        config: Map<String, Value>,
        chat_templates: BTreeMap<String, String>,
        end_ids: Vec<TokenId>,
    ) -> Self {
        let highest = inner.get_vocab(true).into_values().max();
        let id_bound = highest.map_or(0, |id| id as usize + 1);
        Self { inner, config, chat_templates, end_ids, id_bound }
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, `generation_config.json` and the chat
    /// templates, if there are any, into `folder`, which must exist.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save_folder(&self, folder: &Path) -> Result<(), PolicyError> {
        let text = self
            .inner
            .to_string(true)
            .map_err(|e| PolicyError::checkpoint(folder, format!("tokenizer not writable: {e}")))?;
        write(&folder.join(TOKENIZER), &text)?;
        write(&folder.join("tokenizer_config.json"), &pretty(&Value::Object(self.config.clone())))?;
        let ends = match self.end_ids.as_slice() {
            [one] => json!(one),
            many => json!(many),
        };
        let mut generation = Map::new();
        generation.insert("eos_token_id".into(), ends);
        if let Some(pad) = self.pad_id() {
            generation.insert("pad_token_id".into(), json!(pad));
        }
        write(&folder.join("generation_config.json"), &pretty(&Value::Object(generation)))?;
        for (name, template) in &self.chat_templates {
            if name == DEFAULT_TEMPLATE {
                write(&folder.join(TEMPLATE_FILE), template)?;
                continue;
            }
            let more = folder.join(MORE_TEMPLATES);
            std::fs::create_dir_all(&more).map_err(|e| PolicyError::file("create", &more, e))?;
            write(&more.join(format!("{name}.jinja")), template)?;
        }
        Ok(())
    }

    /// A tokenizer with one token for each character of `texts`, in order of code points, after
    /// the special tokens.
    ///
    /// # Errors
    /// If `texts` hold no character.
    pub fn of_characters<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        chat_template: Option<&str>,
    ) -> Result<Self, PolicyError> {
        let alphabet: BTreeSet<char> = texts.into_iter().flat_map(str::chars).collect();
        if alphabet.is_empty() {
            return Err(PolicyError::input("a character tokenizer needs some text"));
        }
        let specials = special_tokens(chat_template.is_some());
        let mut vocabulary = Map::new();
        for text in specials.iter().copied().chain([UNKNOWN_TOKEN]) {
            vocabulary.insert(text.into(), json!(vocabulary.len()));
        }
        for character in alphabet {
            let next = vocabulary.len();
            vocabulary.entry(character.to_string()).or_insert(json!(next));
        }
        let added: Vec<Value> = specials
            .iter()
            .copied()
            .chain([UNKNOWN_TOKEN])
            .enumerate()
            .map(|(id, text)| {
                json!({"id": id, "content": text, "single_word": false, "lstrip": false,
                       "rstrip": false, "normalized": false, "special": true})
            })
            .collect();
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"},
                              "behavior": "Isolated", "invert": false},
            "post_processor": null, "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN_TOKEN},
        });
        let inner = tokenizers::Tokenizer::from_bytes(file.to_string())
            .map_err(|e| PolicyError::input(format!("character tokenizer refused: {e}")))?;
        Ok(Self::made_here(inner, chat_template))
    }

    /// Trains byte-level BPE (Sennrich et al. 2016 over bytes, as GPT-2) on `texts`.
    ///
    /// `vocabulary` counts everything: the 256 bytes, the special tokens and the merges. With
    /// `split_digits` each digit is a token of its own, which arithmetic is learned better with.
    ///
    /// # Errors
    /// If `vocabulary` is too small to hold the bytes and the special tokens.
    pub fn train_bpe<S: AsRef<str> + Send>(
        texts: impl Iterator<Item = S> + Send,
        vocabulary: usize,
        split_digits: bool,
        chat_template: Option<&str>,
    ) -> Result<Self, PolicyError> {
        let specials = special_tokens(chat_template.is_some());
        let least = 256 + specials.len();
        if vocabulary < least {
            return Err(PolicyError::input(format!(
                "a byte-level vocabulary of {vocabulary} cannot hold the 256 bytes and {} special \
                 tokens: at least {least}",
                specials.len()
            )));
        }
        let added: Vec<AddedToken> =
            specials.iter().map(|it| AddedToken::from(*it, true)).collect();
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocabulary)
            .show_progress(false)
            .special_tokens(added.clone())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        if split_digits {
            steps.push(Digits::new(true).into());
        }
        steps.push(ByteLevel::new(false, true, true).into());
        let mut inner = TokenizerImpl::<
            BPE,
            tokenizers::NormalizerWrapper,
            PreTokenizerWrapper,
            tokenizers::PostProcessorWrapper,
            tokenizers::DecoderWrapper,
        >::new(BPE::default());
        inner.with_pre_tokenizer(Some(Sequence::new(steps)));
        inner.with_decoder(Some(ByteLevel::default()));
        inner
            .train(&mut trainer, texts)
            .map_err(|e| PolicyError::input(format!("BPE training failed: {e}")))?;
        let text = inner
            .to_string(false)
            .map_err(|e| PolicyError::input(format!("BPE tokenizer not writable: {e}")))?;
        let inner = tokenizers::Tokenizer::from_bytes(text)
            .map_err(|e| PolicyError::input(format!("BPE tokenizer refused: {e}")))?;
        Ok(Self::made_here(inner, chat_template))
    }

    fn made_here(inner: tokenizers::Tokenizer, chat_template: Option<&str>) -> Self {
        let end = if chat_template.is_some() { TURN_END_TOKEN } else { END_TOKEN };
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        config.insert("eos_token".into(), json!(end));
        config.insert("pad_token".into(), json!(PAD_TOKEN));
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        let end_ids = inner.token_to_id(end).into_iter().collect();
        let template = |text: &str| (DEFAULT_TEMPLATE.to_string(), text.to_string());
        Self::of_parts(inner, config, chat_template.map(template).into_iter().collect(), end_ids)
    }

    /// Ids of `text`. Special tokens written out in the text are recognised (chat templates write
    /// them so); none is added.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text, such as a character that a character tokenizer does
    /// not hold: training on a mark in its place would teach something else than was meant.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, PolicyError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| PolicyError::input(format!("cannot encode text: {e}")))?;
        let ids = encoding.get_ids();
        if let Some(unknown) = self.inner.token_to_id(UNKNOWN_TOKEN)
            && ids.contains(&unknown)
        {
            let strange = text.chars().find(|it| self.inner.token_to_id(&it.to_string()).is_none());
            return Err(PolicyError::input(format!(
                "the tokenizer has no token for the character {:?}: its alphabet must hold every \
                 character of the prompts and replies",
                strange.map_or_else(String::new, |it| it.to_string())
            )));
        }
        Ok(ids.to_vec())
    }

    /// Text of `ids`, special tokens left out. Bytes that form no character become `\u{FFFD}`.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn decode(&self, ids: &[TokenId]) -> Result<String, PolicyError> {
        self.inner
            .decode(ids, true)
            .map_err(|e| PolicyError::input(format!("cannot decode ids: {e}")))
    }

    /// Text of `ids` with special tokens written out.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn decode_with_specials(&self, ids: &[TokenId]) -> Result<String, PolicyError> {
        self.inner
            .decode(ids, false)
            .map_err(|e| PolicyError::input(format!("cannot decode ids: {e}")))
    }

    /// Text of each id by itself, for display. A token that is part of a character shows `\u{FFFD}`.
    pub fn token_texts(&self, ids: &[TokenId]) -> Vec<String> {
        ids.iter()
            .map(|id| match self.inner.decode(&[*id], false) {
                Ok(text) => text,
                Err(_) => format!("<{id}>"),
            })
            .collect()
    }

    /// How many rows an embedding needs: one more than the highest id, special tokens included.
    pub fn vocabulary_size(&self) -> usize {
        self.id_bound
    }

    /// Every id that ends a reply, ascending; at least one.
    pub fn end_ids(&self) -> &[TokenId] {
        &self.end_ids
    }

    /// The id that training text ends a document or a reply with: the tokenizer's own end token,
    /// or the first of `end_ids`.
    pub fn end_id(&self) -> TokenId {
        token_text_in(&self.config, "eos_token")
            .and_then(|it| self.inner.token_to_id(&it))
            .unwrap_or_else(|| self.end_ids[0])
    }

    /// The padding id, if the tokenizer has one.
    pub fn pad_id(&self) -> Option<TokenId> {
        token_text_in(&self.config, "pad_token").and_then(|it| self.inner.token_to_id(&it))
    }

    /// The Jinja chat templates by name; [`DEFAULT_TEMPLATE`] is the usual one.
    pub fn chat_templates(&self) -> &BTreeMap<String, String> {
        &self.chat_templates
    }

    /// Names and texts of the special tokens that the tokenizer's configuration names, such as
    /// `bos_token`: what a chat template may mention.
    pub fn special_tokens(&self) -> impl Iterator<Item = (&str, String)> {
        let names = self.config.keys().filter(|name| name.ends_with("_token"));
        names.filter_map(|name| Some((name.as_str(), token_text_in(&self.config, name)?)))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocabulary", &self.vocabulary_size())
            .field("end_ids", &self.end_ids)
            .finish_non_exhaustive()
    }
}

fn special_tokens(chat: bool) -> Vec<&'static str> {
    let mut names = vec![PAD_TOKEN, END_TOKEN];
    if chat {
        names.extend([TURN_START_TOKEN, TURN_END_TOKEN]);
    }
    names
}

/// A token named in `tokenizer_config.json`, where it is a string or an object with `content`.
fn token_text_in(config: &Map<String, Value>, name: &str) -> Option<String> {
    match config.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_string),
        _ => None,
    }
}

/// The chat templates of a `tokenizer_config.json`: a text, or a list of names and texts.
fn templates_in(
    path: &Path,
    config: &Map<String, Value>,
) -> Result<BTreeMap<String, String>, PolicyError> {
    let named = |entry: &Value| {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_string);
        let name = text("name").filter(|it| !it.contains(['/', '\\']));
        name.zip(text("template")).ok_or_else(|| {
            PolicyError::checkpoint(
                path,
                format!("chat_template holds {entry}, expected a name and a template"),
            )
        })
    };
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::String(text)) => {
            Ok(BTreeMap::from([(DEFAULT_TEMPLATE.to_string(), text.clone())]))
        }
        Some(Value::Array(entries)) => entries.iter().map(named).collect(),
        Some(other) => Err(PolicyError::checkpoint(
            path,
            format!("chat_template is {other}, expected a text or a list of names and templates"),
        )),
    }
}

/// The chat templates that have files of their own, which come before those of the configuration.
fn template_files(folder: &Path) -> Result<BTreeMap<String, String>, PolicyError> {
    let mut files = vec![(DEFAULT_TEMPLATE.to_string(), folder.join(TEMPLATE_FILE))];
    let more = folder.join(MORE_TEMPLATES);
    if let Ok(entries) = std::fs::read_dir(&more) {
        for entry in entries {
            let path = entry.map_err(|e| PolicyError::file("read", &more, e))?.path();
            if path.extension().is_some_and(|it| it == "jinja")
                && let Some(name) = path.file_stem().and_then(|it| it.to_str())
            {
                files.push((name.to_string(), path));
            }
        }
    }
    let mut found = BTreeMap::new();
    for (name, path) in files.into_iter().filter(|(_, path)| path.exists()) {
        let text =
            std::fs::read_to_string(&path).map_err(|e| PolicyError::file("read", &path, e))?;
        found.insert(name, text);
    }
    Ok(found)
}

fn ids_of(value: &Value) -> Vec<TokenId> {
    let one = |it: &Value| it.as_u64().and_then(|id| TokenId::try_from(id).ok());
    match value {
        Value::Array(many) => many.iter().filter_map(one).collect(),
        single => one(single).into_iter().collect(),
    }
}

fn object(path: &Path) -> Result<Option<Map<String, Value>>, PolicyError> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = std::fs::read(path).map_err(|e| PolicyError::file("read", path, e))?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => Err(PolicyError::checkpoint(path, "expected a JSON object")),
        Err(error) => Err(PolicyError::checkpoint(path, format!("not JSON: {error}"))),
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn write(path: &Path, text: &str) -> Result<(), PolicyError> {
    std::fs::write(path, text).map_err(|e| PolicyError::file("write", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_round_trip_and_unknown_ones_are_refused() {
        let tokenizer = Tokenizer::of_characters(["0123+=?", "\n "], None).expect("made");
        let ids = tokenizer.encode("1+2=3\n ?").expect("encoded");
        assert_eq!(ids.len(), 8);
        assert_eq!(tokenizer.decode(&ids).expect("decoded"), "1+2=3\n ?");
        let error = tokenizer.encode("1z").expect_err("z is not in the alphabet");
        assert!(error.to_string().contains("no token for the character \"z\""), "{error}");
    }

    #[test]
    fn trained_bpe_encodes_any_bytes_and_splits_digits() {
        let texts = ["the cat sat on the mat", "the hat of the cat 1234 1234"];
        let tokenizer =
            Tokenizer::train_bpe(texts.iter(), 300, true, Some("{{ messages }}")).expect("trained");
        for text in ["the cat", "12 34", "naïve 日本 \u{1F600}", ""] {
            let ids = tokenizer.encode(text).expect("encoded");
            assert_eq!(tokenizer.decode(&ids).expect("decoded"), text);
        }
        assert_eq!(tokenizer.encode("1234").expect("encoded").len(), 4);
        assert!(tokenizer.encode("the cat").expect("encoded").len() < 5);
        assert_eq!(tokenizer.token_texts(tokenizer.end_ids()), [TURN_END_TOKEN]);
    }

    #[test]
    fn a_saved_tokenizer_loads_the_same() {
        let folder = tempfile::tempdir().expect("folder");
        let tokenizer = Tokenizer::of_characters(["abc"], None).expect("made");
        tokenizer.save_folder(folder.path()).expect("saved");
        let loaded = Tokenizer::from_folder(folder.path()).expect("loaded");
        assert_eq!(loaded.encode("cab").expect("ids"), tokenizer.encode("cab").expect("ids"));
        assert_eq!(loaded.end_ids(), tokenizer.end_ids());
        assert_eq!(loaded.pad_id(), Some(0));
    }

    #[test]
    fn a_vocabulary_too_small_for_the_bytes_is_refused() {
        let error = Tokenizer::train_bpe(["a"].iter(), 100, false, None).expect_err("too small");
        assert!(error.to_string().contains("at least 258"), "{error}");
    }
}
