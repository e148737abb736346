//! Which model an experiment trains: a folder to start from, or sizes to draw weights for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tallow_envs::Seed;
use tallow_policies::gpu::Device;
use tallow_policies::{
    Decoder, InitOptions, ModelConfig, PolicyError, ScalarModel, Sizes, Tokenizer,
};

use crate::chat_template::TemplateOptions;
use crate::config::problem::Fault;
use crate::documents::resolve;
use crate::error::Error;

/// Tag of the seed stream that draws fresh weights.
const WEIGHT_STREAM: u64 = 0x7765_6967;

/// Bounds of what is taken for a size: beyond them products of sizes would not fit into 64 bits,
/// and the plan itself not into memory.
const MOST_LAYERS: usize = 1 << 12;
const LARGEST_SIZE: usize = 1 << 24;

/// The `[model]` table.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSettings {
    /// A Hugging Face folder or a GGUF file to start from, weights and tokenizer; the sizes below
    /// are then its own.
    pub folder: Option<String>,
    /// A folder with a low-rank adapter in the layout of PEFT, added to the weights of `folder`.
    pub adapter: Option<String>,
    /// A folder or a GGUF file to take only the tokenizer from.
    pub tokenizer: Option<String>,
    /// Model family, one of `tallow list models`.
    pub family: String,
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward block; absent: 8/3 of `hidden`, rounded up to a multiple of 8.
    pub intermediate: Option<usize>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; absent: as many as `heads`.
    pub kv_heads: Option<usize>,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Base of the rotary frequencies (arXiv:2104.09864); small for short sequences.
    pub rope_theta: f64,
    /// Added to the mean square inside RMSNorm.
    pub norm_eps: f64,
    /// Whether the head is the embedding.
    pub tied_embeddings: bool,
    /// How fresh weights are drawn.
    pub init: InitOptions,
    /// What the chat template sees in every conversation, such as `enable_thinking = false`.
    #[serde(skip_serializing_if = "TemplateOptions::is_empty")]
    pub chat_template_kwargs: TemplateOptions,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            folder: None,
            adapter: None,
            tokenizer: None,
            family: "llama".into(),
            layers: 4,
            hidden: 128,
            intermediate: None,
            heads: 4,
            kv_heads: None,
            context: 512,
            rope_theta: 10_000.0,
            norm_eps: 1e-6,
            tied_embeddings: true,
            init: InitOptions::default(),
            chat_template_kwargs: TemplateOptions::new(),
        }
    }
}

impl ModelSettings {
    /// The configuration of a model with fresh weights and `vocabulary` tokens.
    ///
    /// # Errors
    /// If the family is unknown or the sizes contradict each other.
    pub fn config(&self, vocabulary: usize) -> Result<ModelConfig, Error> {
        let intermediate = self.intermediate.unwrap_or((self.hidden * 8 / 3).next_multiple_of(8));
        let sizes = Sizes {
            vocab: vocabulary,
            hidden: self.hidden,
            intermediate,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads.unwrap_or(self.heads),
            head_dim: self.hidden / self.heads.max(1),
        };
        let mut config = ModelConfig::of_family(&self.family, &sizes)?;
        config.max_position_embeddings = self.context;
        config.rope_theta = Some(self.rope_theta);
        config.rms_norm_eps = self.norm_eps;
        config.tie_word_embeddings = self.tied_embeddings;
        Ok(config)
    }

    /// What is wrong with the sizes, before anything is made.
    pub fn faults(&self, folder: &Path) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (key, path) in [("folder", &self.folder), ("tokenizer", &self.tokenizer)] {
            let Some(path) = path else { continue };
            let place = resolve(path, folder);
            let wanted = if key == "folder" { "config.json" } else { "tokenizer.json" };
            if !place.join(wanted).is_file() && !tallow_policies::holds_model(&place) {
                faults.push(
                    Fault::new(key, "no model folder there")
                        .found(path.as_str())
                        .expected(format!("a folder with {wanted}, or a .gguf file")),
                );
            }
        }
        if let Some(adapter) = &self.adapter {
            if self.folder.is_none() {
                faults.push(
                    Fault::new("adapter", "an adapter needs the model that it was trained beside")
                        .found(adapter.as_str())
                        .expected("model.folder to be set"),
                );
            } else if !resolve(adapter, folder).join("adapter_config.json").is_file() {
                faults.push(
                    Fault::new("adapter", "no adapter there")
                        .found(adapter.as_str())
                        .expected("a folder with adapter_config.json"),
                );
            }
        }
        if self.folder.is_some() {
            return faults;
        }
        for (key, value) in
            [("layers", self.layers), ("hidden", self.hidden), ("heads", self.heads)]
        {
            if value == 0 {
                faults.push(Fault::new(key, format!("a model needs some {key}")).found("0"));
            }
        }
        let sizes = [
            ("layers", Some(self.layers), MOST_LAYERS),
            ("hidden", Some(self.hidden), LARGEST_SIZE),
            ("heads", Some(self.heads), LARGEST_SIZE),
            ("kv_heads", self.kv_heads, LARGEST_SIZE),
            ("intermediate", self.intermediate, LARGEST_SIZE),
            ("context", Some(self.context), LARGEST_SIZE),
        ];
        for (key, value, most) in sizes {
            if value.is_some_and(|it| it > most) {
                faults.push(
                    Fault::new(key, format!("{key} is beyond any model"))
                        .found(value.unwrap_or_default().to_string())
                        .expected(format!("at most {most}")),
                );
            }
        }
        if self.intermediate == Some(0) {
            faults.push(Fault::new("intermediate", "a model needs some width there").found("0"));
        }
        for (key, value) in [("rope_theta", self.rope_theta), ("norm_eps", self.norm_eps)] {
            if !(value > 0.0 && value.is_finite()) {
                faults.push(
                    Fault::new(key, format!("{key} is no positive number"))
                        .found(value.to_string()),
                );
            }
        }
        for (key, value) in [
            ("init.std", self.init.std),
            ("init.residual_std", self.init.residual_std),
            ("init.query_key_bias_std", self.init.query_key_bias_std),
        ] {
            if let Some(value) = value.filter(|it| !(*it >= 0.0 && it.is_finite())) {
                faults.push(
                    Fault::new(key, "not a standard deviation")
                        .found(value.to_string())
                        .expected("0 or more"),
                );
            }
        }
        if self.context < 2 {
            faults.push(
                Fault::new("context", "a context this short holds no prompt and reply")
                    .found(self.context.to_string())
                    .expected("2 or more"),
            );
        }
        if self.heads > 0 && !self.hidden.is_multiple_of(2 * self.heads) {
            faults.push(
                Fault::new("heads", "the heads do not divide the hidden width into even parts")
                    .found(format!("{} heads of a width of {}", self.heads, self.hidden))
                    .expected("hidden to be a multiple of twice the heads"),
            );
        }
        if let Some(kv_heads) = self.kv_heads
            && (kv_heads == 0 || !self.heads.is_multiple_of(kv_heads))
        {
            faults.push(
                Fault::new("kv_heads", "the key and value heads do not divide the query heads")
                    .found(kv_heads.to_string())
                    .expected(format!("a divisor of {}", self.heads)),
            );
        }
        if faults.is_empty()
            && let Err(error) = self.config(256)
        {
            faults.push(Fault::new("family", error.to_string()).found(self.family.as_str()));
        }
        faults
    }
}

/// What one stage leaves to the next.
#[derive(Clone, Default)]
pub struct ModelState {
    /// The tokenizer, once there is one.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// The weights, once there are some.
    pub decoder: Option<Decoder>,
    /// What a stage made beside the policy: it is what [`save`](Self::save) writes then.
    pub scorer: Option<ScalarModel>,
}

impl ModelState {
    /// The state that the `[model]` table describes, before any stage.
    ///
    /// # Errors
    /// If a folder cannot be loaded.
    pub fn initial(settings: &ModelSettings, folder: &Path) -> Result<Self, Error> {
        let mut state = Self::default();
        if let Some(path) = &settings.folder {
            state = Self::load(&resolve(path, folder))?;
            if let (Some(adapter), Some(decoder)) = (&settings.adapter, &state.decoder) {
                let adapted = decoder.with_adapter_folder(&resolve(adapter, folder))?;
                state.decoder = Some(adapted.merged()?);
            }
        }
        if let Some(path) = &settings.tokenizer {
            state.tokenizer = Some(Arc::new(Tokenizer::from_folder(&resolve(path, folder))?));
        }
        Ok(state)
    }

    /// A model folder or GGUF file as a state; the weights may be absent (a tokenizer stage leaves
    /// none).
    ///
    /// # Errors
    /// If a file that is there is damaged.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let tokenizer = Some(Arc::new(Tokenizer::from_folder(folder)?));
        let decoder = match tallow_policies::holds_model(folder) {
            true => Some(Decoder::from_folder(folder)?),
            false => None,
        };
        Ok(Self { tokenizer, decoder, scorer: None })
    }

    /// Writes the state as a Hugging Face folder, of the scorer if there is one; `folder` exists. Adapters are merged, and stand
    /// by themselves in `adapter/`, which names `base` as what they were trained beside.
    ///
    /// # Errors
    /// If weights are no numbers (none are written then), or a file cannot be written.
    pub fn save(&self, folder: &Path, base: Option<&Path>) -> Result<(), Error> {
        if let Some(tokenizer) = &self.tokenizer {
            tokenizer.save_folder(folder)?;
        }
        if let Some(scorer) = &self.scorer {
            return Ok(scorer.save_folder(folder)?);
        }
        if let Some(decoder) = &self.decoder {
            decoder.check_finite().map_err(|it| match it {
                PolicyError::Weights { .. } => Error::Diverged(it.to_string()),
                other => other.into(),
            })?;
            decoder.save_folder(folder)?;
            let base = base.map(|it| it.display().to_string()).unwrap_or_default();
            decoder.save_adapter(&folder.join("adapter"), &base)?;
        }
        Ok(())
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// If no stage before has made one.
    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>, Error> {
        self.tokenizer.clone().ok_or_else(|| {
            Error::usage(
                "this stage needs a tokenizer and there is none",
                "begin with a stage of kind \"tokenizer\", or set model.folder or model.tokenizer",
            )
        })
    }

    /// The weights on the device, drawn from the seed if there are none yet.
    ///
    /// # Errors
    /// If the sizes contradict each other or do not fit the tokenizer, or the device fails.
    pub fn decoder(
        &mut self,
        settings: &ModelSettings,
        seed: Seed,
        device: Option<&Device>,
    ) -> Result<Decoder, Error> {
        let tokenizer = self.tokenizer()?;
        let decoder = match self.decoder.take() {
            // What a stage before adapted is from now on the model.
            Some(decoder) => decoder.merged()?,
            None => {
                let mut config = settings.config(tokenizer.vocabulary_size())?;
                config.name_special_tokens(tokenizer.end_id(), tokenizer.pad_id());
                Decoder::new(config, &settings.init, seed.derive(&[WEIGHT_STREAM]).0)?
            }
        };
        check_fit(&decoder, &tokenizer)?;
        match device {
            // A stage before may have left it there.
            Some(device) if decoder.device().is_none() => Ok(decoder.on(device)?),
            _ => Ok(decoder),
        }
    }
}

/// Refuses a tokenizer with ids that the model has no row for.
///
/// # Errors
/// If there are such ids.
pub fn check_fit(decoder: &Decoder, tokenizer: &Tokenizer) -> Result<(), Error> {
    let (rows, ids) = (decoder.config().vocab_size, tokenizer.vocabulary_size());
    if rows < ids {
        return Err(Error::Data(format!(
            "the model embeds {rows} tokens (vocab_size) but its tokenizer has ids up to {}: they \
             do not belong together",
            ids - 1
        )));
    }
    Ok(())
}

/// Where a model named on the command line is: a Hugging Face folder, a GGUF file, or a folder with
/// one.
///
/// # Errors
/// If there is none.
pub fn model_folder(path: &Path) -> Result<PathBuf, Error> {
    if tallow_policies::holds_model(path) {
        return Ok(path.to_path_buf());
    }
    let problem = match (path.is_dir(), path.exists()) {
        (true, _) => "is no model folder: it has no config.json and no .gguf file",
        (false, true) => "is no model: neither a folder nor a .gguf file",
        (false, false) => "is not there",
    };
    Err(Error::usage(
        format!("{} {problem}", path.display()),
        "give a Hugging Face folder, a .gguf file, or models/STAGE of a run",
    ))
}
