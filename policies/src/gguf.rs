//! A model in one GGUF file, the format of llama.cpp: configuration and tokenizer from its
//! metadata, weights dequantised to f32.
//!
//! Format and keys: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. What llama.cpp's
//! converter did is undone: names become those of transformers, and the rows of q and k that it
//! reordered for the `llama` architecture (which turns neighbouring elements) are put back in
//! halves. The reader itself is candle's.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value as Entry};
use candle_core::{Device, Tensor, Var};
use serde_json::{Map, Value, json};

use crate::TokenId;
use crate::checkpoint::{check_dims, check_finite};
use crate::error::PolicyError;
use crate::model_config::{DecoderShape, ModelConfig, Sizes, TokenIds};
use crate::parameters::{self, Parameters};
use crate::rope_scaling::{self, RopeScaling};

/// The architectures that are read, with the family of each.
const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// Names of tensor types that llama.cpp writes and candle does not read, for the error.
const UNREAD_TYPES: [(u32, &str); 14] = [
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

/// How GPT-2 cuts text before merging; the other patterns are variations of it.
const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The GGUF file that a model path stands for: the path itself, or the one `.gguf` of a folder
/// without safetensors.
///
/// # Errors
/// If such a folder holds several.
pub(crate) fn file_at(path: &Path) -> Result<Option<PathBuf>, PolicyError> {
    if path.is_file() {
        let mut magic = [0; 4];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
        let named = path.extension().is_some_and(|it| it.eq_ignore_ascii_case("gguf"));
        return Ok((named || (read.is_ok() && &magic == b"GGUF")).then(|| path.to_path_buf()));
    }
    let Ok(entries) = std::fs::read_dir(path) else { return Ok(None) };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| PolicyError::file("read", path, error))?.path();
        match entry.extension().and_then(|it| it.to_str()) {
            Some("safetensors") => return Ok(None),
            Some("gguf") => found.push(entry),
            _ => {}
        }
    }
    found.sort();
    if found.len() > 1 {
        let names: Vec<_> =
            found.iter().filter_map(|it| it.file_name()?.to_str()).map(str::to_owned).collect();
        return Err(PolicyError::checkpoint(
            path,
            format!("several GGUF files ({}): name one of them", names.join(", ")),
        ));
    }
    Ok(found.pop())
}

/// What a tokenizer is made of, in the form of Hugging Face's files.
pub(crate) struct TokenizerParts {
    /// `tokenizer.json`.
    pub tokenizer: Value,
    /// `tokenizer_config.json`.
    pub config: Map<String, Value>,
    /// Ids that end a text.
    pub end_ids: Vec<TokenId>,
}

/// An open GGUF file whose header has been read.
pub(crate) struct GgufFile {
    path: PathBuf,
    file: BufReader<File>,
    content: Content,
}

impl GgufFile {
    /// Opens a file and reads its header: metadata, and the tensors' names, shapes and places.
    ///
    /// # Errors
    /// If the file cannot be read, is cut short, or holds a tensor of an unknown type.
    pub(crate) fn open(path: &Path) -> Result<Self, PolicyError> {
        let file = File::open(path).map_err(|error| PolicyError::file("read", path, error))?;
        let mut file = BufReader::new(file);
        check_alignment(path, &mut file)?;
        let content = Content::read(&mut file)
            .map_err(|error| PolicyError::checkpoint(path, unread(&error)))?;
        Ok(Self { path: path.to_path_buf(), file, content })
    }

    /// The configuration, as transformers would state it.
    ///
    /// # Errors
    /// If the architecture is not one that is read, or a key is missing or of no use.
    pub(crate) fn config(&mut self) -> Result<ModelConfig, PolicyError> {
        let family = self.text("general.architecture")?.to_owned();
        if !ARCHITECTURES.contains(&family.as_str()) {
            return Err(self.fault(format!(
                "general.architecture is {family:?}, expected one of {}",
                ARCHITECTURES.join(", ")
            )));
        }
        let key = |rest: &str| format!("{family}.{rest}");
        for (rest, what) in
            [("expert_count", "experts"), ("attention.sliding_window", "a sliding window")]
        {
            if self.optional_size(&key(rest))?.unwrap_or(0) > 0 {
                return Err(self.fault(format!("the model has {what}, which is not computed")));
            }
        }
        let hidden = self.size(&key("embedding_length"))?;
        let heads = self.size(&key("attention.head_count"))?;
        let head_dim = self.optional_size(&key("attention.key_length"))?;
        let sizes = Sizes {
            vocab: self.dims("token_embd.weight")?[0],
            hidden,
            intermediate: self.size(&key("feed_forward_length"))?,
            layers: self.size(&key("block_count"))?,
            heads,
            kv_heads: self.optional_size(&key("attention.head_count_kv"))?.unwrap_or(heads),
            head_dim: head_dim.unwrap_or(hidden / heads.max(1)),
        };
        for rest in ["attention.value_length", "rope.dimension_count"] {
            if let Some(found) = self.optional_size(&key(rest))?
                && found != sizes.head_dim
            {
                return Err(self.fault(format!(
                    "{} is {found}, but a head's width is {}; other widths are not computed",
                    key(rest),
                    sizes.head_dim
                )));
            }
        }
        if sizes.layers > self.content.tensor_infos.len() {
            return Err(self.fault(format!(
                "{} is {}, but the file holds {} tensors in all",
                key("block_count"),
                sizes.layers,
                self.content.tensor_infos.len()
            )));
        }
        let mut config = ModelConfig::of_family(&family, &sizes)?;
        config.max_position_embeddings = self.size(&key("context_length"))?;
        config.rms_norm_eps = self
            .optional_number(&key("attention.layer_norm_rms_epsilon"))?
            .ok_or_else(|| self.missing(&key("attention.layer_norm_rms_epsilon")))?;
        config.rope_theta = Some(self.optional_number(&key("rope.freq_base"))?.unwrap_or(10_000.0));
        config.rope_scaling = self.rope_scaling(&family, &config)?;
        config.tie_word_embeddings = !self.content.tensor_infos.contains_key("output.weight");
        if family != "qwen2" {
            let biased = self.content.tensor_infos.contains_key("blk.0.attn_q.bias");
            config.attention_bias = Some(biased);
        }
        if family == "llama" {
            config.mlp_bias = Some(false);
        }
        let id = |name: &str| self.optional_id(&format!("tokenizer.ggml.{name}_token_id"));
        let eos = id("eos")?;
        config.bos_token_id = id("bos")?.map(TokenIds::One);
        config.pad_token_id = id("padding")?.or(eos);
        config.eos_token_id = eos.map(TokenIds::One);
        config.other.insert("attention_dropout".into(), json!(0.0));
        config.other.insert("use_cache".into(), json!(true));
        config.other.insert("torch_dtype".into(), json!("float32"));
        Ok(config)
    }

    /// Every parameter of a decoder of this shape, dequantised.
    ///
    /// # Errors
    /// If a tensor is missing, cut short, of another shape or not finite.
    pub(crate) fn parameters(&mut self, shape: &DecoderShape) -> Result<Parameters, PolicyError> {
        let reordered = self.text("general.architecture")? == "llama";
        let mut found = Parameters::default();
        for spec in parameters::specs(shape) {
            let name = gguf_name(&spec.name);
            check_dims(&self.path, &name, &self.dims(&name)?, &spec.dims)?;
            let mut values = self.values(&name)?;
            if reordered && spec.name.contains("q_proj") {
                values = halves_paired(&values, shape.heads, shape.head_dim);
            } else if reordered && spec.name.contains("k_proj") {
                values = halves_paired(&values, shape.kv_heads, shape.head_dim);
            }
            let tensor = Tensor::from_vec(values, spec.dims, &Device::Cpu)?;
            found.insert(spec.name, Var::from_tensor(&tensor)?);
        }
        Ok(found)
    }

    /// The tokenizer, rebuilt as the files that Hugging Face's libraries read.
    ///
    /// # Errors
    /// If it is not byte-level BPE, cuts text in a way that is not known here, or names no end.
    pub(crate) fn tokenizer(&self) -> Result<TokenizerParts, PolicyError> {
        let model = self.text("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(self.fault(format!(
                "tokenizer.ggml.model is {model:?}, expected \"gpt2\" (byte-level BPE); put the \
                 model's own tokenizer.json and tokenizer_config.json beside the file"
            )));
        }
        let tokens = self.texts("tokenizer.ggml.tokens")?;
        let mut merges = Vec::new();
        for merge in self.texts("tokenizer.ggml.merges")? {
            let (left, right) = merge.split_once(' ').ok_or_else(|| {
                self.fault(format!("tokenizer.ggml.merges holds {merge:?}, expected two parts"))
            })?;
            merges.push(json!([left, right]));
        }
        let kinds = match self.content.metadata.get("tokenizer.ggml.token_type") {
            None => vec![kind::NORMAL; tokens.len()],
            Some(_) => self.sizes("tokenizer.ggml.token_type")?,
        };
        if kinds.len() != tokens.len() {
            return Err(self.fault(format!(
                "tokenizer.ggml.token_type tells {} kinds for {} tokens",
                kinds.len(),
                tokens.len()
            )));
        }
        let (mut vocabulary, mut added) = (Map::new(), Vec::new());
        for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
            // Fillers that round the embedding up are no part of the vocabulary.
            if kind == kind::UNUSED {
                continue;
            }
            vocabulary.insert((*token).to_owned(), json!(id));
            if kind == kind::CONTROL || kind == kind::USER_DEFINED {
                added.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": kind == kind::CONTROL,
                }));
            }
        }
        let pre = match self.content.metadata.get("tokenizer.ggml.pre") {
            None => "default",
            Some(_) => self.text("tokenizer.ggml.pre")?,
        };
        let (normalizer, pre_tokenizer, ignore_merges) = self.text_cutting(pre)?;
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                        "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                      "continuing_subword_prefix": null, "end_of_word_suffix": null,
                      "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
                      "vocab": vocabulary, "merges": merges},
        });
        let (config, end_ids) = self.tokenizer_config(&tokens)?;
        Ok(TokenizerParts { tokenizer, config, end_ids })
    }

    /// `tokenizer_config.json`, and the ids that end a text.
    fn tokenizer_config(
        &self,
        tokens: &[&str],
    ) -> Result<(Map<String, Value>, Vec<TokenId>), PolicyError> {
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        config.insert("add_prefix_space".into(), json!(false));
        let mut end_ids = Vec::new();
        for (key, name) in [
            ("bos", "bos_token"),
            ("eos", "eos_token"),
            ("padding", "pad_token"),
            ("unknown", "unk_token"),
            ("eot", ""),
            ("eom", ""),
        ] {
            let key = format!("tokenizer.ggml.{key}_token_id");
            let Some(id) = self.optional_id(&key)? else { continue };
            let Some(token) = tokens.get(id as usize) else {
                return Err(
                    self.fault(format!("{key} is {id}, but there are {} tokens", tokens.len()))
                );
            };
            if !name.is_empty() {
                config.insert(name.into(), json!(token));
            }
            if ["eos", "eot", "eom"].iter().any(|end| key.contains(end)) {
                end_ids.push(id);
            }
        }
        if let Some(&end) = end_ids.first() {
            // Programs that pad ask for a token to pad with; the end has always served.
            config.entry("pad_token").or_insert(json!(tokens[end as usize]));
        } else {
            return Err(self.missing("tokenizer.ggml.eos_token_id"));
        }
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        let context = format!("{}.context_length", self.text("general.architecture")?);
        if let Some(context) = self.optional_size(&context)? {
            config.insert("model_max_length".into(), json!(context));
        }
        const TEMPLATE: &str = "tokenizer.chat_template";
        let mut named = Vec::new();
        for (key, entry) in &self.content.metadata {
            if let (Some(name), Entry::String(text)) =
                (key.strip_prefix(TEMPLATE).and_then(|it| it.strip_prefix('.')), entry)
            {
                named.push((name, text));
            }
        }
        named.sort();
        if let Some(Entry::String(default)) = self.content.metadata.get(TEMPLATE) {
            let template = if named.is_empty() {
                json!(default)
            } else {
                let default = json!({"name": "default", "template": default});
                let named = named.iter().map(|it| json!({"name": it.0, "template": it.1}));
                Value::Array(std::iter::once(default).chain(named).collect())
            };
            config.insert("chat_template".into(), template);
        }
        Ok((config, end_ids))
    }

    /// Normalizer, pre-tokenizer, and whether a piece that is a token is not merged up to, for a
    /// value of `tokenizer.ggml.pre`. The names are those of llama.cpp's `llama-vocab.cpp`.
    fn text_cutting(&self, pre: &str) -> Result<(Value, Value, bool), PolicyError> {
        let bytes = |use_regex: bool| {
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                   "use_regex": use_regex})
        };
        let split = |pattern: &str| {
            let split = json!({"type": "Split", "pattern": {"Regex": pattern},
                               "behavior": "Isolated", "invert": false});
            json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
        };
        Ok(match pre {
            "gpt-2" | "gpt2" | "default" => (Value::Null, bytes(true), false),
            "smollm" | "starcoder" | "refact" => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                let steps = json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]});
                (Value::Null, steps, false)
            }
            "qwen2" | "deepseek-r1-qwen" => (json!({"type": "NFC"}), split(QWEN2_PATTERN), false),
            "llama-bpe" | "llama3" | "llama-v3" => (Value::Null, split(LLAMA3_PATTERN), true),
            other => {
                return Err(self.fault(format!(
                    "tokenizer.ggml.pre is {other:?}, expected gpt-2, default, smollm, qwen2 or \
                     llama-bpe; put the model's own tokenizer.json and tokenizer_config.json \
                     beside the file"
                )));
            }
        })
    }

    /// `rope_scaling` of the configuration. Llama 3's is not in the metadata: its divisors are the
    /// tensor `rope_freqs.weight`, and the settings are found that give them.
    fn rope_scaling(
        &mut self,
        family: &str,
        config: &ModelConfig,
    ) -> Result<Option<Value>, PolicyError> {
        let key = |rest: &str| format!("{family}.rope.{rest}");
        if self.content.tensor_infos.contains_key("rope_freqs.weight") {
            return self.llama3_scaling(config).map(Some);
        }
        let kind = match self.content.metadata.get(&key("scaling.type")) {
            Some(_) => self.text(&key("scaling.type"))?.to_owned(),
            None if self.content.metadata.contains_key(&key("scale_linear")) => "linear".to_owned(),
            None => return Ok(None),
        };
        if kind == "none" {
            return Ok(None);
        }
        let mut scaling = Map::new();
        scaling.insert("rope_type".into(), json!(kind));
        let factor = match self.optional_number(&key("scaling.factor"))? {
            Some(factor) => Some(factor),
            None => self.optional_number(&key("scale_linear"))?,
        };
        if let Some(factor) = factor {
            // llama.cpp writes 1 (or 0) for a context that is not stretched.
            if kind == "linear" && (factor == 1.0 || factor == 0.0) {
                return Ok(None);
            }
            scaling.insert("factor".into(), json!(factor));
        }
        if let Some(context) = self.optional_size(&key("scaling.original_context_length"))? {
            scaling.insert("original_max_position_embeddings".into(), json!(context));
        }
        if let (Some(own), Some(factor)) =
            (self.optional_number(&key("scaling.attn_factor"))?, factor)
            && own != 1.0
        {
            // llama.cpp multiplies its own factor by the paper's, transformers replaces that.
            let whole = own * rope_scaling::yarn_mscale(factor, 1.0);
            scaling.insert("attention_factor".into(), json!(whole));
        }
        for (rest, name) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
            if let Some(value) = self.optional_number(&key(&format!("scaling.{rest}")))? {
                scaling.insert(name.into(), json!(value));
            }
        }
        Ok(Some(Value::Object(scaling)))
    }

    fn llama3_scaling(&mut self, config: &ModelConfig) -> Result<Value, PolicyError> {
        let head_dim = config.head_dim.unwrap_or_default();
        check_dims(
            &self.path,
            "rope_freqs.weight",
            &self.dims("rope_freqs.weight")?,
            &[head_dim / 2],
        )?;
        let divisors = self.values("rope_freqs.weight")?;
        let factor = f64::from(divisors.last().copied().unwrap_or(1.0));
        // What every published Llama 3.1, 3.2 and 3.3 has.
        let (low_freq_factor, high_freq_factor, original_context) = (1.0, 4.0, 8192.0);
        let scaling =
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context };
        let theta = config.rope_theta.unwrap_or(10_000.0);
        let plain = RopeScaling::None.frequencies(head_dim, theta);
        let scaled = scaling.frequencies(head_dim, theta);
        let same = plain.iter().zip(&scaled).zip(&divisors).all(|((plain, scaled), found)| {
            (plain / scaled / f64::from(*found) - 1.0).abs() < 1e-4
        });
        if !same {
            return Err(self.fault(
                "rope_freqs.weight holds other divisors than Llama 3's (low_freq_factor 1, \
                 high_freq_factor 4, original_max_position_embeddings 8192), which are the only \
                 ones known here",
            ));
        }
        Ok(json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor, "original_max_position_embeddings": 8192,
        }))
    }

    /// A tensor's values, dequantised, after checking that they are numbers.
    fn values(&mut self, name: &str) -> Result<Vec<f32>, PolicyError> {
        let fault = |path: &Path, error: candle_core::Error| {
            PolicyError::checkpoint(path, format!("tensor {name}: {}", unread(&error)))
        };
        let values: Vec<f32> = self
            .content
            .tensor(&mut self.file, name, &Device::Cpu)
            .and_then(|tensor| tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1())
            .map_err(|error| fault(&self.path, error))?;
        check_finite(&self.path, name, &values)?;
        Ok(values)
    }

    fn dims(&self, name: &str) -> Result<Vec<usize>, PolicyError> {
        match self.content.tensor_infos.get(name) {
            Some(info) if !info.shape.dims().is_empty() => Ok(info.shape.dims().to_vec()),
            Some(_) => Err(self.fault(format!("tensor {name} is a single number"))),
            None => Err(self.fault(format!("tensor {name} is missing"))),
        }
    }

    fn text(&self, key: &str) -> Result<&str, PolicyError> {
        match self.content.metadata.get(key) {
            None => Err(self.missing(key)),
            Some(Entry::String(text)) => Ok(text),
            Some(other) => Err(self.unfit(key, other, "a text")),
        }
    }

    fn list(&self, key: &str) -> Result<&[Entry], PolicyError> {
        match self.content.metadata.get(key) {
            None => Err(self.missing(key)),
            Some(Entry::Array(entries)) => Ok(entries),
            Some(other) => Err(self.unfit(key, other, "a list")),
        }
    }

    fn texts(&self, key: &str) -> Result<Vec<&str>, PolicyError> {
        let entries = self.list(key)?.iter();
        entries
            .map(|entry| match entry {
                Entry::String(text) => Ok(text.as_str()),
                other => Err(self.unfit(key, other, "a list of texts")),
            })
            .collect()
    }

    fn sizes(&self, key: &str) -> Result<Vec<usize>, PolicyError> {
        let size = |entry| whole(entry).ok_or_else(|| self.unfit(key, entry, "whole numbers"));
        self.list(key)?.iter().map(size).collect()
    }

    fn size(&self, key: &str) -> Result<usize, PolicyError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, PolicyError> {
        match self.content.metadata.get(key) {
            None => Ok(None),
            Some(entry) => {
                let size = whole(entry);
                size.map(Some).ok_or_else(|| self.unfit(key, entry, "a whole number"))
            }
        }
    }

    fn optional_id(&self, key: &str) -> Result<Option<TokenId>, PolicyError> {
        let id = self.optional_size(key)?;
        id.map(TokenId::try_from)
            .transpose()
            .map_err(|_| self.fault(format!("{key} is no token id: it does not fit 32 bits")))
    }

    /// A number; an f32 becomes the f64 of the same shortest decimals, 1e-5 and not 9.99999975e-6.
    fn optional_number(&self, key: &str) -> Result<Option<f64>, PolicyError> {
        match self.content.metadata.get(key) {
            None => Ok(None),
            Some(Entry::F32(value)) => Ok(value.to_string().parse().ok()),
            Some(Entry::F64(value)) => Ok(Some(*value)),
            Some(entry) => match whole(entry) {
                Some(value) => Ok(Some(value as f64)),
                None => Err(self.unfit(key, entry, "a number")),
            },
        }
    }

    fn fault(&self, message: impl Into<String>) -> PolicyError {
        PolicyError::checkpoint(&self.path, message)
    }

    fn missing(&self, key: &str) -> PolicyError {
        self.fault(format!("the metadata has no {key}"))
    }

    fn unfit(&self, key: &str, found: &Entry, expected: &str) -> PolicyError {
        let found = match found {
            Entry::Array(_) => "a list".to_owned(),
            other => format!("{other:?}"),
        };
        self.fault(format!("{key} is {found}, expected {expected}"))
    }
}

/// Values of `tokenizer.ggml.token_type`.
mod kind {
    pub(super) const NORMAL: usize = 1;
    pub(super) const CONTROL: usize = 3;
    pub(super) const USER_DEFINED: usize = 4;
    pub(super) const UNUSED: usize = 5;
}

fn whole(entry: &Entry) -> Option<usize> {
    let signed = |value: i64| usize::try_from(value).ok();
    match *entry {
        Entry::I8(value) => signed(value.into()),
        Entry::I16(value) => signed(value.into()),
        Entry::I32(value) => signed(value.into()),
        Entry::I64(value) => signed(value),
        ref unsigned => usize::try_from(unsigned.to_u64().ok()?).ok(),
    }
}

/// Refuses tensors aligned to multiples of 0 bytes, by which candle's reader would divide.
fn check_alignment(path: &Path, file: &mut BufReader<File>) -> Result<(), PolicyError> {
    const KEY: &[u8] = b"general.alignment";
    /// The general keys come first, before any vocabulary.
    const SEARCHED: u64 = 1 << 20;
    let refused = |error| PolicyError::file("read", path, error);
    let mut start = Vec::new();
    file.by_ref().take(SEARCHED).read_to_end(&mut start).map_err(refused)?;
    file.rewind().map_err(refused)?;
    let Some(at) = start.windows(KEY.len()).position(|it| it == KEY) else { return Ok(()) };
    // A type of four bytes, then the number in as many as the type has.
    let rest = &start[at + KEY.len()..];
    let width = match rest.first() {
        Some(0 | 1) => 1,
        Some(2 | 3) => 2,
        Some(4 | 5) => 4,
        _ => 8,
    };
    match rest.get(4..4 + width) {
        Some(value) if value.iter().all(|byte| *byte == 0) => Err(PolicyError::checkpoint(
            path,
            "general.alignment is 0, expected a power of two such as 32",
        )),
        _ => Ok(()),
    }
}

/// Says what candle could not read. Of a tensor's type it tells the number only.
fn unread(error: &candle_core::Error) -> String {
    let told = error.to_string();
    let first = told.lines().next().unwrap_or_default();
    let number =
        first.rsplit_once("unknown dtype for tensor ").and_then(|(_, it)| it.parse::<u32>().ok());
    match number {
        Some(number) => {
            let known = UNREAD_TYPES.iter().find(|it| it.0 == number);
            let name = known.map_or(String::new(), |it| format!(" ({})", it.1));
            format!(
                "a tensor has the quantisation type {number}{name}, expected F32, F16, BF16, Q4_0, \
                 Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K"
            )
        }
        None => format!("not a whole GGUF file: {first}"),
    }
}

/// llama.cpp's name of a parameter.
fn gguf_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".to_owned(),
        "model.norm.weight" => return "output_norm.weight".to_owned(),
        "lm_head.weight" => return "output.weight".to_owned(),
        _ => {}
    }
    const PARTS: [(&str, &str); 11] = [
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ];
    let (ours, theirs) = PARTS
        .iter()
        .find(|(ours, _)| name.contains(&format!(".{ours}.")))
        .expect("every parameter of a layer has a row");
    name.replace("model.layers.", "blk.").replace(ours, theirs)
}

/// Rows `(heads * head_dim, ...)` put from neighbours paired to halves paired: row 2i + j of a head
/// becomes row j * head_dim / 2 + i.
fn halves_paired(values: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    let width = values.len() / (heads * head_dim);
    let mut ordered = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * width) {
        for parity in 0..2 {
            for pair in 0..head_dim / 2 {
                let row = 2 * pair + parity;
                ordered.extend_from_slice(&head[row * width..(row + 1) * width]);
            }
        }
    }
    ordered
}
