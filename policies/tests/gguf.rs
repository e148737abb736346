//! GGUF files, written here with candle's writer as llama.cpp's converter lays them out: what is
//! read is what was written, and each kind of damage has one clear error.

#![expect(clippy::unwrap_used, reason = "what a test or bench prepares must succeed")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde_json::json;
use tallow_policies::{
    Decoder, InitOptions, ModelConfig, Sizes, TokenIds, Tokenizer, holds_model, models,
};

const SIZES: Sizes = Sizes {
    vocab: 300,
    hidden: 64,
    intermediate: 96,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
};

/// A template of two lines, so that escapes survive.
const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}";

/// What goes into a file; tests damage it before it is written.
struct Contents {
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, (Tensor, GgmlDType)>,
}

impl Contents {
    /// A decoder and a tokenizer as llama.cpp's converter would write them.
    fn of(decoder: &Decoder, tokenizer: &Tokenizer, dtype: GgmlDType) -> Self {
        let config = decoder.config();
        let family = config.model_type.as_str();
        let mut contents = Self { metadata: BTreeMap::new(), tensors: BTreeMap::new() };
        contents.set("general.architecture", Value::String(family.into()));
        for (key, value) in [
            ("block_count", config.num_hidden_layers),
            ("context_length", config.max_position_embeddings),
            ("embedding_length", config.hidden_size),
            ("feed_forward_length", config.intermediate_size),
            ("attention.head_count", config.num_attention_heads),
            ("attention.head_count_kv", config.num_key_value_heads.unwrap()),
            ("attention.key_length", config.head_dim.unwrap()),
            ("attention.value_length", config.head_dim.unwrap()),
        ] {
            contents.set(&format!("{family}.{key}"), Value::U32(value as u32));
        }
        let eps = Value::F32(config.rms_norm_eps as f32);
        contents.set(&format!("{family}.attention.layer_norm_rms_epsilon"), eps);
        let base = Value::F32(config.rope_theta.unwrap() as f32);
        contents.set(&format!("{family}.rope.freq_base"), base);
        contents.set_tokenizer(tokenizer);
        for (name, variable) in decoder.parameters().iter() {
            let mut tensor = variable.as_detached_tensor();
            if family == "llama" && (name.contains("q_proj") || name.contains("k_proj")) {
                tensor = neighbours_paired(&tensor, config.head_dim.unwrap());
            }
            let dtype = if tensor.rank() == 1 { GgmlDType::F32 } else { dtype };
            contents.tensors.insert(gguf_name(name), (tensor, dtype));
        }
        contents
    }

    fn set(&mut self, key: &str, value: Value) {
        self.metadata.insert(key.into(), value);
    }

    /// Vocabulary, merges and special tokens of a trained byte-level BPE.
    fn set_tokenizer(&mut self, tokenizer: &Tokenizer) {
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save_folder(folder.path()).unwrap();
        let bytes = std::fs::read(folder.path().join("tokenizer.json")).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let vocabulary = file["model"]["vocab"].as_object().unwrap();
        let mut tokens = vec![String::new(); vocabulary.len()];
        for (token, id) in vocabulary {
            tokens[id.as_u64().unwrap() as usize] = token.clone();
        }
        let special = |text: &str| {
            file["added_tokens"].as_array().unwrap().iter().any(|it| it["content"] == text)
        };
        let kinds = tokens.iter().map(|it| Value::I32(if special(it) { 3 } else { 1 })).collect();
        let merge = |it: &serde_json::Value| match it {
            serde_json::Value::String(merge) => merge.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        };
        let merges = file["model"]["merges"].as_array().unwrap().iter().map(merge);
        self.set("tokenizer.ggml.merges", Value::Array(merges.map(Value::String).collect()));
        self.set("tokenizer.ggml.token_type", Value::Array(kinds));
        let tokens = tokens.into_iter().map(Value::String).collect();
        self.set("tokenizer.ggml.tokens", Value::Array(tokens));
        self.set("tokenizer.ggml.model", Value::String("gpt2".into()));
        self.set("tokenizer.ggml.pre", Value::String("smollm".into()));
        self.set("tokenizer.ggml.eos_token_id", Value::U32(tokenizer.end_id()));
        self.set("tokenizer.ggml.bos_token_id", Value::U32(0));
        self.set("tokenizer.chat_template", Value::String(TEMPLATE.into()));
    }

    fn write(&self, path: &Path) {
        let quantised: Vec<(&str, QTensor)> = self
            .tensors
            .iter()
            .map(|(name, (tensor, dtype))| {
                (name.as_str(), QTensor::quantize(tensor, *dtype).unwrap())
            })
            .collect();
        let tensors: Vec<(&str, &QTensor)> = quantised.iter().map(|it| (it.0, &it.1)).collect();
        let metadata: Vec<(&str, &Value)> =
            self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let mut file = std::fs::File::create(path).unwrap();
        gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    }
}

/// llama.cpp's order of the rows of q and k in the llama architecture.
fn neighbours_paired(tensor: &Tensor, head_dim: usize) -> Tensor {
    let rows = tensor.dims()[0];
    let width: usize = tensor.dims()[1..].iter().product();
    let halves = tensor.reshape((rows / head_dim, 2, head_dim / 2, width)).unwrap();
    halves.transpose(1, 2).unwrap().contiguous().unwrap().reshape(tensor.shape()).unwrap()
}

fn gguf_name(name: &str) -> String {
    [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs))
}

fn decoder(family: &str, change: impl Fn(&mut ModelConfig)) -> Decoder {
    let mut config = ModelConfig::of_family(family, &SIZES).unwrap();
    config.rms_norm_eps = 1e-5;
    config.rope_theta = Some(1_000_000.0);
    change(&mut config);
    let init = InitOptions { std: Some(0.3), query_key_bias_std: Some(0.5), residual_std: None };
    Decoder::new(config, &init, 3).unwrap()
}

fn tokenizer() -> Tokenizer {
    let texts = ["the cat sat on the mat 1234 5678", "the hat of the cat, the mat of the hat"];
    Tokenizer::train_bpe(texts.iter(), SIZES.vocab, true, Some(TEMPLATE)).unwrap()
}

/// A folder with `model.gguf`.
fn written(contents: &Contents) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    contents.write(&path);
    (folder, path)
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_family_is_read_as_it_was_written() {
    for family in models::BUILTIN {
        for (tied, biased) in [(true, false), (false, family.name == "llama")] {
            let decoder = decoder(family.name, |config| {
                config.tie_word_embeddings = tied;
                config.attention_bias = Some(biased);
            });
            let contents = Contents::of(&decoder, &tokenizer(), GgmlDType::F32);
            let (_folder, path) = written(&contents);
            let loaded = Decoder::from_folder(&path).unwrap();
            for (name, variable) in decoder.parameters().iter() {
                let found = loaded.parameters().get(name).unwrap();
                assert_eq!(floats(found), floats(variable), "{}: {name}", family.name);
            }
            assert_eq!(loaded.parameters().len(), decoder.parameters().len());
            let (config, expected) = (loaded.config(), decoder.config());
            assert_eq!(config.architectures, expected.architectures);
            assert_eq!(config.rms_norm_eps, 1e-5, "the shortest decimals, not those of the f32");
            assert_eq!(config.rope_theta, Some(1_000_000.0));
            assert_eq!(config.tie_word_embeddings, tied);
            assert_eq!(config.eos_token_id, Some(TokenIds::One(tokenizer().end_id())));
            assert_eq!(config, &ModelConfig::from_folder(&path).unwrap());
        }
    }
}

#[test]
fn quantised_weights_are_close_and_saving_gives_a_folder_with_the_same_numbers() {
    let decoder = decoder("llama", |config| config.tie_word_embeddings = true);
    for (dtype, tolerance) in [
        (GgmlDType::F16, 1e-3),
        (GgmlDType::BF16, 1e-2),
        (GgmlDType::Q8_0, 1e-2),
        (GgmlDType::Q5_1, 0.06),
        (GgmlDType::Q4_1, 0.12),
        (GgmlDType::Q4_0, 0.15),
    ] {
        let (folder, _path) = written(&Contents::of(&decoder, &tokenizer(), dtype));
        // The folder that holds the file stands for it.
        let loaded = Decoder::from_folder(folder.path()).unwrap();
        for (name, variable) in decoder.parameters().iter() {
            let (found, expected) = (loaded.parameters().get(name).unwrap(), floats(variable));
            let most = expected.iter().fold(0_f32, |most, it| most.max(it.abs()));
            for (found, expected) in floats(found).iter().zip(&expected) {
                assert!((found - expected).abs() <= tolerance * most, "{dtype:?}: {name}");
            }
        }
        let saved = tempfile::tempdir().unwrap();
        loaded.save_folder(saved.path()).unwrap();
        let again = Decoder::from_folder(saved.path()).unwrap();
        assert_eq!(loaded.config(), again.config());
        for (name, variable) in loaded.parameters().iter() {
            assert_eq!(floats(variable), floats(again.parameters().get(name).unwrap()), "{name}");
        }
    }
}

#[test]
fn the_tokenizer_is_rebuilt_and_saved_as_files() {
    let expected = tokenizer();
    let decoder = decoder("qwen2", |_| {});
    let (_folder, path) = written(&Contents::of(&decoder, &expected, GgmlDType::F32));
    let found = Tokenizer::from_folder(&path).unwrap();
    let saved = tempfile::tempdir().unwrap();
    found.save_folder(saved.path()).unwrap();
    let again = Tokenizer::from_folder(saved.path()).unwrap();
    for text in ["the cat 1234", "  naïve\n\n日本 \u{1F600}", "<|im_start|>user\nhi<|im_end|>", ""]
    {
        let ids = expected.encode(text).unwrap();
        for tokenizer in [&found, &again] {
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
            assert_eq!(tokenizer.decode_with_specials(&ids).unwrap(), text);
        }
    }
    for tokenizer in [&found, &again] {
        assert_eq!(tokenizer.end_ids(), expected.end_ids());
        assert_eq!(tokenizer.vocabulary_size(), expected.vocabulary_size());
        assert_eq!(tokenizer.chat_templates()["default"], TEMPLATE);
        let named: BTreeMap<_, _> = tokenizer.special_tokens().collect();
        assert_eq!(named["eos_token"], "<|im_end|>");
    }
}

#[test]
fn each_way_of_cutting_text_is_the_one_of_its_name() {
    let decoder = decoder("qwen2", |_| {});
    let mut contents = Contents::of(&decoder, &tokenizer(), GgmlDType::F32);
    // Long pieces: merges over digits and letters show where text is cut.
    let merges = ["1 2", "12 3", "123 4", "a Ģ", "t h", "th e", "Ġ the"];
    let mut tokens: Vec<Value> = match &contents.metadata["tokenizer.ggml.tokens"] {
        Value::Array(tokens) => tokens[..260].to_vec(),
        _ => unreachable!(),
    };
    tokens.extend(merges.iter().map(|it| Value::String(it.replace(' ', ""))));
    tokens.push(Value::String("<think>".into()));
    tokens.push(Value::String("[PAD268]".into()));
    let mut kinds = vec![Value::I32(1); tokens.len()];
    kinds[267] = Value::I32(4);
    kinds[268] = Value::I32(5);
    contents.set("tokenizer.ggml.tokens", Value::Array(tokens));
    contents.set("tokenizer.ggml.token_type", Value::Array(kinds));
    let merges = merges.iter().map(|it| Value::String((*it).into())).collect();
    contents.set("tokenizer.ggml.merges", Value::Array(merges));
    for (pre, pieces) in [
        ("smollm", vec!["1", "2", "3", "4", " the", "the"]),
        ("qwen2", vec!["1", "2", "3", "4", " the", "the"]),
        ("llama-bpe", vec!["123", "4", " the", "the"]),
        ("gpt-2", vec!["1234", " the", "the"]),
        ("default", vec!["1234", " the", "the"]),
    ] {
        contents.set("tokenizer.ggml.pre", Value::String(pre.into()));
        let (_folder, path) = written(&contents);
        let tokenizer = Tokenizer::from_folder(&path).unwrap();
        let ids = tokenizer.encode("1234 thethe").unwrap();
        if pre == "smollm" {
            assert_eq!(tokenizer.token_texts(&ids)[..5], pieces[..5], "{pre}");
        } else {
            assert_eq!(tokenizer.token_texts(&ids), pieces, "{pre}");
        }
        let composed = tokenizer.encode("e\u{301}").unwrap() == tokenizer.encode("\u{e9}").unwrap();
        assert_eq!(composed, pre == "qwen2", "{pre}: normal form C");
        // A token of the user's, unlike a control token, is text of the reply.
        let ids = tokenizer.encode("<think>").unwrap();
        assert_eq!(ids, [267], "{pre}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), "<think>");
        assert_eq!(tokenizer.vocabulary_size(), 268, "fillers are no tokens");
    }
}

#[test]
fn named_templates_are_kept() {
    let decoder = decoder("qwen2", |_| {});
    let mut contents = Contents::of(&decoder, &tokenizer(), GgmlDType::F32);
    contents.set("tokenizer.chat_template.tool_use", Value::String("tools".into()));
    contents.set("tokenizer.ggml.eot_token_id", Value::U32(7));
    let (folder, path) = written(&contents);
    let found = Tokenizer::from_folder(&path).unwrap();
    assert!(found.end_ids().contains(&7) && found.end_ids().len() == 2);
    found.save_folder(folder.path()).unwrap();
    for tokenizer in [found, Tokenizer::from_folder(folder.path()).unwrap()] {
        let templates: Vec<_> = tokenizer.chat_templates().iter().collect();
        assert_eq!(templates.len(), 2);
        assert_eq!((templates[1].0.as_str(), templates[1].1.as_str()), ("tool_use", "tools"));
    }
}

#[test]
fn stretched_contexts_are_read_from_metadata_and_divisors() {
    let decoder = decoder("llama", |config| config.tie_word_embeddings = true);
    let mut contents = Contents::of(&decoder, &tokenizer(), GgmlDType::F32);
    contents.set("llama.rope.scaling.type", Value::String("yarn".into()));
    contents.set("llama.rope.scaling.factor", Value::F32(4.0));
    contents.set("llama.rope.scaling.original_context_length", Value::U32(64));
    let (_folder, path) = written(&contents);
    let yarn = ModelConfig::from_folder(&path).unwrap();
    let expected =
        json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    assert_eq!(yarn.rope_scaling, Some(expected));
    contents.set("llama.rope.scaling.type", Value::String("linear".into()));
    let (_folder, path) = written(&contents);
    let linear = ModelConfig::from_folder(&path).unwrap().rope_frequencies().unwrap();
    assert_eq!(linear.0[0], 0.25);

    contents.metadata.retain(|key, _| !key.contains("scaling"));
    let stretched = self::decoder("llama", |config| {
        config.rope_scaling = Some(json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }));
    });
    let frequencies = |config: &ModelConfig| config.rope_frequencies().unwrap().0;
    let expected = frequencies(stretched.config());
    let divisors: Vec<f32> = frequencies(decoder.config())
        .iter()
        .zip(&expected)
        .map(|(plain, stretched)| (plain / stretched) as f32)
        .collect();
    let divisors = Tensor::new(divisors, &Device::Cpu).unwrap();
    contents.tensors.insert("rope_freqs.weight".into(), (divisors.clone(), GgmlDType::F32));
    let (_folder, path) = written(&contents);
    let found = ModelConfig::from_folder(&path).unwrap();
    assert_eq!(found.rope_scaling, stretched.config().rope_scaling);
    let odd = (divisors * 1.5).unwrap();
    contents.tensors.insert("rope_freqs.weight".into(), (odd, GgmlDType::F32));
    check_refused(&contents, &["rope_freqs.weight", "Llama 3's"]);
}

/// Writes the contents and asserts that loading gives an error with the file's name and all parts.
fn check_refused(contents: &Contents, parts: &[&str]) {
    let (_folder, path) = written(contents);
    check_file_refused(&path, parts);
}

fn check_file_refused(path: &Path, parts: &[&str]) {
    let error = match (Decoder::from_folder(path), Tokenizer::from_folder(path)) {
        (Err(error), _) | (Ok(_), Err(error)) => error.to_string(),
        (Ok(_), Ok(_)) => panic!("not refused: {parts:?}"),
    };
    assert!(error.contains("model.gguf"), "{error}");
    for part in parts {
        assert!(error.contains(part), "`{part}` is missing in: {error}");
    }
}

#[test]
fn damage_is_named_for_what_it_is() {
    let decoder = decoder("llama", |config| config.tie_word_embeddings = true);
    let sound = || Contents::of(&decoder, &tokenizer(), GgmlDType::F32);
    let text = |it: &str| Value::String(it.into());

    for zero in [Value::U8(0), Value::U16(0), Value::U32(0), Value::U64(0)] {
        let mut contents = sound();
        contents.set("general.alignment", zero);
        check_refused(&contents, &["general.alignment is 0"]);
    }

    let mut contents = sound();
    contents.tensors.remove("blk.1.ffn_up.weight");
    check_refused(&contents, &["tensor blk.1.ffn_up.weight is missing"]);

    let mut contents = sound();
    let short = contents.tensors["blk.1.ffn_up.weight"]
        .0
        .narrow(0, 0, 7)
        .unwrap()
        .affine(1.0, 0.0)
        .unwrap();
    contents.tensors.insert("blk.1.ffn_up.weight".into(), (short, GgmlDType::F32));
    check_refused(&contents, &["tensor blk.1.ffn_up.weight has shape [7, 64], expected [96, 64]"]);

    let mut contents = sound();
    let nan = (contents.tensors["output_norm.weight"].0.zeros_like().unwrap() * f64::NAN).unwrap();
    contents.tensors.insert("output_norm.weight".into(), (nan, GgmlDType::F32));
    check_refused(&contents, &["tensor output_norm.weight holds NaN at element 0"]);

    for (key, value, parts) in [
        ("general.architecture", text("mamba"), &["\"mamba\"", "llama, qwen2, qwen3"][..]),
        ("llama.attention.key_length", Value::U32(8), &["attention.value_length is 16", "is 8"]),
        ("llama.block_count", Value::U32(u32::MAX), &["llama.block_count is 4294967295"]),
        ("llama.block_count", text("two"), &["llama.block_count is String", "a whole number"]),
        ("llama.expert_count", Value::U32(8), &["experts"]),
        ("llama.attention.head_count", Value::U32(0), &["num_attention_heads is 0"]),
        ("llama.rope.scaling.type", text("longrope"), &["longrope", "is not computed"]),
        ("tokenizer.ggml.model", text("llama"), &["\"llama\"", "byte-level BPE"]),
        ("tokenizer.ggml.pre", text("dbrx"), &["\"dbrx\"", "qwen2"]),
        ("tokenizer.ggml.eos_token_id", Value::U32(999), &["eos_token_id is 999, but there are "]),
        ("tokenizer.ggml.tokens", text("a"), &["tokenizer.ggml.tokens", "a list"]),
        ("tokenizer.ggml.merges", Value::Array(vec![text("ab")]), &["\"ab\"", "two parts"]),
    ] {
        let mut contents = sound();
        contents.set(key, value);
        match key {
            "llama.attention.head_count" | "llama.rope.scaling.type" => {
                let (_folder, path) = written(&contents);
                let error = Decoder::from_folder(&path).unwrap_err().to_string();
                assert!(parts.iter().all(|part| error.contains(part)), "{error}");
            }
            _ => check_refused(&contents, parts),
        }
    }
    for key in ["general.architecture", "llama.embedding_length", "tokenizer.ggml.eos_token_id"] {
        let mut contents = sound();
        contents.metadata.remove(key);
        check_refused(&contents, &[&format!("the metadata has no {key}")]);
    }
}

#[test]
fn a_file_cut_short_or_of_an_unknown_type_is_refused() {
    let decoder = decoder("llama", |config| config.tie_word_embeddings = true);
    let (folder, path) = written(&Contents::of(&decoder, &tokenizer(), GgmlDType::F32));
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 3, 10, 500, whole.len() / 2, whole.len() - 64] {
        std::fs::write(&path, &whole[..length]).unwrap();
        check_file_refused(&path, &["not a whole GGUF file"]);
    }
    // The type of a tensor stands after its name, the number of its dimensions and those.
    let name = b"blk.0.attn_k.weight";
    let at = whole.windows(name.len()).position(|it| it == name).unwrap() + name.len() + 4 + 16;
    let mut strange = whole.clone();
    strange[at..at + 4].copy_from_slice(&20_u32.to_le_bytes());
    std::fs::write(&path, &strange).unwrap();
    check_file_refused(&path, &["quantisation type 20 (IQ4_NL)", "expected F32"]);
    strange[at..at + 4].copy_from_slice(&9999_u32.to_le_bytes());
    std::fs::write(&path, &strange).unwrap();
    check_file_refused(&path, &["quantisation type 9999,", "expected F32"]);

    std::fs::write(&path, &whole).unwrap();
    assert!(holds_model(&path) && holds_model(folder.path()));
    std::fs::write(folder.path().join("other.gguf"), &whole).unwrap();
    let error = Decoder::from_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("several GGUF files (model.gguf, other.gguf)"), "{error}");
}
