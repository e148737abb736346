//! Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) and their files in the layout of PEFT.
//!
//! Of a linear map with the weight W, `(out, in)`, only a difference of low rank is trained:
//!
//! ```text
//! y = x (W + s B A)ᵀ        A: (rank, in)   B: (out, rank)   s = alpha / rank
//! dB = s gᵀ (x Aᵀ)          dA = s (g B)ᵀ x
//! ```
//!
//! A starts as PEFT's does, uniform within 1 / sqrt(in), and B at zero. Where a layer's weights are
//! laid out, for a pass as for sampling, W + s B A is laid out instead: both run the same product,
//! so replies are drawn from what is trained, bit for bit, and a merged export is the same model. W
//! has neither a gradient nor moments.

use std::path::Path;

use candle_core::{Device, Tensor, Var};
use rand::RngExt;
use safetensors::tensor::SafeTensors;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::checkpoint;
use crate::error::PolicyError;
use crate::layer::Named;
use crate::model_config::DecoderShape;
use crate::ops::matmul::{Job, Out, Output, Right, View, matmuls};
use crate::ops::slices::Values;
use crate::parameters::{self, Parameters, named_stream};

/// The linear maps an adapter may stand beside.
pub const TARGETS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// What is adapted, and how much.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of every difference.
    pub rank: usize,
    /// The difference is multiplied by alpha / rank.
    pub alpha: f64,
    /// Which linear maps, of [`TARGETS`].
    pub targets: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, targets: TARGETS.map(str::to_owned).to_vec() }
    }
}

impl LoraConfig {
    /// How many numbers are trained for a model of this configuration.
    ///
    /// # Errors
    /// If the model's configuration contradicts itself.
    pub fn parameter_count(&self, model: &crate::ModelConfig) -> Result<usize, PolicyError> {
        let specs = self.specs(&model.shape()?);
        Ok(specs.iter().map(|(_, out, inner)| self.rank * (out + inner)).sum())
    }

    /// Name (without `.weight`) and extent `(out, in)` of every adapted map.
    fn specs(&self, shape: &DecoderShape) -> Vec<(String, usize, usize)> {
        let adapted = |name: &str| {
            let map = name.strip_suffix(".weight")?;
            let (_, last) = map.rsplit_once('.')?;
            self.targets.iter().any(|target| target == last).then(|| map.to_owned())
        };
        let specs = parameters::specs(shape);
        specs.iter().filter_map(|it| Some((adapted(&it.name)?, it.dims[0], it.dims[1]))).collect()
    }

    fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }
}

/// The adapters of a decoder: what of it is trained.
#[derive(Clone, Debug)]
pub struct Adapters {
    config: LoraConfig,
    parameters: Parameters,
}

/// The adapter of one linear map.
#[derive(Clone, Debug)]
pub(crate) struct Adapter {
    /// `(rank, in)`
    pub a: Named,
    /// `(out, rank)`
    pub b: Named,
    scale: f32,
}

/// The values of an adapter, readable while this lives.
pub(crate) struct AdapterView<'a> {
    pub a: Values<'a>,
    pub b: Values<'a>,
    pub rank: usize,
    pub scale: f32,
}

impl Adapters {
    /// Fresh ones, which change nothing yet.
    pub(crate) fn draw(
        shape: &DecoderShape,
        config: &LoraConfig,
        seed: u64,
    ) -> Result<Self, PolicyError> {
        let mut adapters = Self::empty(config)?;
        for (map, out, inner) in config.specs(shape) {
            let name = a_name(&map);
            let bound = 1.0 / (inner as f32).sqrt();
            let mut stream = named_stream(seed, &name);
            let a = (0..config.rank * inner).map(|_| stream.random_range(-bound..bound)).collect();
            adapters.insert(name, a, [config.rank, inner])?;
            adapters.insert(b_name(&map), vec![0.0; out * config.rank], [out, config.rank])?;
        }
        Ok(adapters)
    }

    /// Reads `adapter_config.json` and `adapter_model.safetensors`.
    pub(crate) fn read(folder: &Path, shape: &DecoderShape) -> Result<Self, PolicyError> {
        let config = read_config(&folder.join(CONFIG))?;
        let path = folder.join(WEIGHTS);
        let bytes = checkpoint::read(&path)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| {
            PolicyError::checkpoint(&path, format!("not a whole safetensors file: {error}"))
        })?;
        let mut adapters = Self::empty(&config)?;
        for (map, out, inner) in config.specs(shape) {
            for (name, dims) in
                [(a_name(&map), [config.rank, inner]), (b_name(&map), [out, config.rank])]
            {
                let stored = format!("{PREFIX}{name}");
                let Ok(view) = tensors.tensor(&stored) else {
                    let told = format!("tensor {stored} is missing");
                    return Err(PolicyError::checkpoint(&path, told));
                };
                checkpoint::check_dims(&path, &stored, view.shape(), &dims)?;
                let Some(values) = checkpoint::widened(&view) else {
                    let told = format!("tensor {stored} is neither F32, F16 nor BF16");
                    return Err(PolicyError::checkpoint(&path, told));
                };
                checkpoint::check_finite(&path, &stored, &values)?;
                adapters.insert(name, values, dims)?;
            }
        }
        // A tensor that no map of this model takes would be lost without a word.
        let known = |stored: &str| {
            stored.strip_prefix(PREFIX).is_some_and(|name| adapters.parameters.get(name).is_some())
        };
        match tensors.names().into_iter().filter(|stored| !known(stored)).min() {
            None => Ok(adapters),
            Some(stored) => Err(PolicyError::checkpoint(
                &path,
                format!("tensor {stored} belongs to no adapted map of this model"),
            )),
        }
    }

    /// Writes what [`read`](Self::read) reads, and PEFT. `base` says where the model is that this
    /// adapts.
    pub(crate) fn write(&self, folder: &Path, base: &str) -> Result<(), PolicyError> {
        std::fs::create_dir_all(folder).map_err(|e| PolicyError::file("create", folder, e))?;
        let mut tensors = Vec::with_capacity(self.parameters.len());
        for (name, variable) in self.parameters.iter() {
            let values: Vec<f32> = variable.as_detached_tensor().flatten_all()?.to_vec1()?;
            tensors.push((format!("{PREFIX}{name}"), variable.dims().to_vec(), values));
        }
        checkpoint::write_tensors(&folder.join(WEIGHTS), &tensors, [("format", "pt".to_owned())])?;
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.config.rank,
            "lora_alpha": self.config.alpha,
            "target_modules": self.config.targets,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "use_rslora": false,
            "use_dora": false,
            "inference_mode": true,
        });
        let text = format!("{config:#}\n");
        checkpoint::write_atomically(&folder.join(CONFIG), text.as_bytes())
    }

    /// What is adapted.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The trained tensors: `lora_A.weight` and `lora_B.weight` under the name of each map.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    pub(crate) fn deep_copy(&self) -> Result<Self, PolicyError> {
        Ok(Self { config: self.config.clone(), parameters: self.parameters.deep_copy()? })
    }

    /// The adapter of one map, if it has one.
    pub(crate) fn of(&self, map: &str) -> Option<Adapter> {
        let named = |name: String| {
            let values = self.parameters.get(&name)?.as_detached_tensor();
            Some(Named { name, values })
        };
        Some(Adapter { a: named(a_name(map))?, b: named(b_name(map))?, scale: self.config.scale() })
    }

    fn empty(config: &LoraConfig) -> Result<Self, PolicyError> {
        if config.rank == 0 || !config.alpha.is_finite() {
            return Err(PolicyError::config(format!(
                "an adapter of rank {} and alpha {}, expected a rank of 1 or more and a number",
                config.rank, config.alpha
            )));
        }
        if let Some(target) = config.targets.iter().find(|it| !TARGETS.contains(&it.as_str())) {
            let known = TARGETS.join(", ");
            let told = format!("no adapter can stand beside {target}, expected some of {known}");
            return Err(PolicyError::config(told));
        }
        if config.targets.is_empty() {
            return Err(PolicyError::config("an adapter with nothing to adapt"));
        }
        Ok(Self { config: config.clone(), parameters: Parameters::default() })
    }

    fn insert(
        &mut self,
        name: String,
        values: Vec<f32>,
        dims: [usize; 2],
    ) -> Result<(), PolicyError> {
        let tensor = Tensor::from_vec(values, &dims, &Device::Cpu)?;
        self.parameters.insert(name, Var::from_tensor(&tensor)?);
        Ok(())
    }
}

impl Adapter {
    pub(crate) fn view(&self) -> Result<AdapterView<'_>, PolicyError> {
        Ok(AdapterView {
            a: Values::of(&self.a.values)?,
            b: Values::of(&self.b.values)?,
            rank: self.a.values.dims()[0],
            scale: self.scale,
        })
    }
}

impl AdapterView<'_> {
    /// W -> W + s B A.
    pub(crate) fn merge(&self, weight: &[f32], merged: &mut [f32]) {
        merged.copy_from_slice(weight);
        let inner = self.a.len() / self.rank;
        let out = Out::rows(merged, inner);
        let (a, b) = (Right::Rows(&self.a, inner), View::rows(&self.b, self.rank));
        let job = Job::new(out, b, a, self.rank);
        matmuls(vec![Job { output: Output::Add, scale: self.scale, ..job }]);
    }
}

/// Keys of PEFT's settings that change nothing in the arithmetic of a trained adapter, or are checked
/// by themselves.
const HARMLESS: [&str; 13] = [
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the names of the model's own parameters.
const PREFIX: &str = "base_model.model.";

fn a_name(map: &str) -> String {
    format!("{map}.lora_A.weight")
}

fn b_name(map: &str) -> String {
    format!("{map}.lora_B.weight")
}

/// Reads PEFT's settings and refuses those that change the arithmetic in ways not computed here.
fn read_config(path: &Path) -> Result<LoraConfig, PolicyError> {
    #[derive(Deserialize)]
    struct PeftConfig {
        #[serde(default)]
        peft_type: String,
        r: usize,
        lora_alpha: f64,
        #[serde(default)]
        target_modules: Value,
        #[serde(flatten)]
        others: serde_json::Map<String, Value>,
    }
    let bytes = checkpoint::read(path)?;
    let refused = |told: String| Err(PolicyError::checkpoint(path, told));
    let config: PeftConfig = match serde_json::from_slice(&bytes) {
        Ok(config) => config,
        Err(error) => return refused(error.to_string()),
    };
    if config.peft_type != "LORA" {
        return refused(format!("peft_type is {:?}, expected \"LORA\"", config.peft_type));
    }
    for (key, value) in config.others.iter().filter(|(key, _)| !HARMLESS.contains(&key.as_str())) {
        let absent = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !absent {
            return refused(format!("{key} is {value}: such adapters are not computed here"));
        }
    }
    // Other ways to begin (PiSSA, OLoRA, ...) change the base as well.
    let begun = config.others.get("init_lora_weights").unwrap_or(&Value::Null);
    if !matches!(begun, Value::Null | Value::Bool(_)) && *begun != json!("gaussian") {
        return refused(format!("init_lora_weights is {begun}, expected true or \"gaussian\""));
    }
    if let Some(bias) = config.others.get("bias").filter(|it| **it != json!("none")) {
        return refused(format!("bias is {bias}, expected \"none\""));
    }
    let targets = match &config.target_modules {
        Value::String(all) if all == "all-linear" => TARGETS.map(str::to_owned).to_vec(),
        Value::Array(list) if list.iter().all(Value::is_string) => {
            list.iter().filter_map(|it| it.as_str().map(str::to_owned)).collect()
        }
        other => return refused(format!("target_modules is {other}, expected a list of names")),
    };
    Ok(LoraConfig { rank: config.r, alpha: config.lora_alpha, targets })
}
