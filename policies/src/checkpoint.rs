//! A model folder on disk: `config.json` and weights in the safetensors format.
//!
//! Format: <https://huggingface.co/docs/safetensors>. Weights are one `model.safetensors`,
//! or shards listed by `model.safetensors.index.json`. f32, f16 and bf16 are read, f32 is
//! written. A tied head is not stored, and ignored where a file stores it all the same.
//!
//! A `.gguf` file, or a folder with one and no safetensors, stands for such a folder wherever
//! one is read (see [`crate::gguf`]).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;
use serde_json::Value;

use crate::error::PolicyError;
use crate::gguf::{self, GgufFile};
use crate::model_config::{DecoderShape, ModelConfig};
use crate::models;
use crate::parameters::{self, ParameterSpec, Parameters, Role};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Whether this path is meant as a model: a folder with a `config.json` or a GGUF file in it, or a
/// GGUF file. Reading it tells what is wrong with it.
pub fn holds_model(path: &Path) -> bool {
    path.join(CONFIG).is_file() || !matches!(gguf::file_at(path), Ok(None))
}

/// Reads configuration and weights from a folder or a GGUF file.
pub(crate) fn read_model(path: &Path) -> Result<(ModelConfig, Parameters), PolicyError> {
    if let Some(file) = gguf::file_at(path)? {
        let mut file = GgufFile::open(&file)?;
        let config = file.config()?;
        let parameters = file.parameters(&config.shape()?)?;
        return Ok((config, parameters));
    }
    let config = read_config(path)?;
    if let Some(class) = config.architectures.iter().find(|it| models::is_classifier(it)) {
        return Err(PolicyError::checkpoint(
            path,
            format!("a {class} gives values and has no language head: read it as a scalar model"),
        ));
    }
    let parameters = read_parameters(path, parameters::specs(&config.shape()?), &[])?;
    Ok((config, parameters))
}

/// Reads the configuration and the parameters of a folder whose model has a head of one value in
/// place of a language head: its trunk's, and `head`. Refuses a folder with a `forbidden` tensor.
pub(crate) fn read_scalar_model(
    folder: &Path,
    head: impl FnOnce(&DecoderShape) -> ParameterSpec,
    forbidden: &[&str],
) -> Result<(ModelConfig, Parameters), PolicyError> {
    if gguf::file_at(folder)?.is_some() {
        let told = "a GGUF file holds a language model, expected a folder with a head of one value";
        return Err(PolicyError::checkpoint(folder, told));
    }
    let mut config = read_config(folder)?;
    // transformers names the labels only where there are not two, as is its default.
    let labels = config.other.get("id2label").and_then(Value::as_object).map(|it| it.len() as u64);
    let labels = labels.or_else(|| config.other.get("num_labels").and_then(Value::as_u64));
    if let Some(labels) = labels.filter(|it| *it != 1) {
        let told = format!("the model has {labels} labels, expected one: a head of one value");
        return Err(PolicyError::checkpoint(&folder.join(CONFIG), told));
    }
    // Without a language head there is none to be stored apart from the embedding.
    config.tie_word_embeddings = true;
    let shape = config.shape()?;
    let mut specs = parameters::specs(&shape);
    specs.push(head(&shape));
    let parameters = read_parameters(folder, specs, forbidden)?;
    Ok((config, parameters))
}

/// Reads the configuration alone, of a folder or a GGUF file.
pub(crate) fn read_config(path: &Path) -> Result<ModelConfig, PolicyError> {
    if let Some(file) = gguf::file_at(path)? {
        return GgufFile::open(&file)?.config();
    }
    /// Other families name their sizes otherwise, so theirs would seem to be missing.
    #[derive(Deserialize)]
    struct FamilyOnly {
        #[serde(default)]
        architectures: Vec<String>,
        #[serde(default)]
        model_type: String,
    }
    let path = path.join(CONFIG);
    let bytes = read(&path)?;
    if let Ok(FamilyOnly { architectures, model_type }) = serde_json::from_slice(&bytes) {
        models::family_named(&model_type, &architectures)
            .map_err(|error| PolicyError::checkpoint(&path, error.to_string()))?;
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| PolicyError::checkpoint(&path, error.to_string()))
}

/// Reads every one of some parameters. A tensor that would change what they mean is `forbidden`;
/// others beside them are left out.
fn read_parameters(
    folder: &Path,
    specs: Vec<ParameterSpec>,
    forbidden: &[&str],
) -> Result<Parameters, PolicyError> {
    let mut missing: BTreeMap<String, ParameterSpec> =
        specs.into_iter().map(|spec| (spec.name.clone(), spec)).collect();
    let mut parameters = Parameters::default();
    for (path, promised) in &weight_files(folder)? {
        let bytes = read(path)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| {
            PolicyError::checkpoint(path, format!("not a whole safetensors file: {error}"))
        })?;
        if let Some(absent) = promised.iter().find(|name| tensors.tensor(name).is_err()) {
            return Err(PolicyError::checkpoint(
                path,
                format!("tensor {absent} is missing, though {INDEX} says that it is here"),
            ));
        }
        for (name, view) in tensors.iter() {
            if let Some(spec) = missing.remove(name) {
                let values = checked_values(path, &spec, &view)?;
                let tensor = Tensor::from_vec(values, spec.dims, &Device::Cpu)?;
                parameters.insert(spec.name, Var::from_tensor(&tensor)?);
            } else if forbidden.contains(&name) {
                let told = format!("tensor {name} is not computed here");
                return Err(PolicyError::checkpoint(path, told));
            }
        }
    }
    match missing.first_key_value() {
        None => Ok(parameters),
        Some((first, _)) => Err(PolicyError::checkpoint(
            folder,
            format!("tensor {first} is missing ({} in all)", missing.len()),
        )),
    }
}

/// Writes `config.json` and `model.safetensors`.
pub(crate) fn write_folder(
    folder: &Path,
    config: &ModelConfig,
    parameters: &Parameters,
) -> Result<(), PolicyError> {
    fs::create_dir_all(folder).map_err(|e| PolicyError::file("create", folder, e))?;
    let mut tensors = Vec::with_capacity(parameters.len());
    for (name, variable) in parameters.iter() {
        let values: Vec<f32> = variable.as_detached_tensor().flatten_all()?.to_vec1()?;
        tensors.push((name.to_owned(), variable.dims().to_vec(), values));
    }
    // transformers refuses a file that does not say which framework's layout it has.
    write_tensors(&folder.join(WEIGHTS), &tensors, [("format", "pt".to_owned())])?;
    let mut json = serde_json::to_string_pretty(config)
        .map_err(|error| PolicyError::checkpoint(folder, error.to_string()))?;
    json.push('\n');
    write_atomically(&folder.join(CONFIG), json.as_bytes())
}

/// Writes named f32 tensors and metadata as one safetensors file.
pub(crate) fn write_tensors<const N: usize>(
    path: &Path,
    tensors: &[(String, Vec<usize>, Vec<f32>)],
    metadata: [(&str, String); N],
) -> Result<(), PolicyError> {
    let damaged = |error: safetensors::SafeTensorError| {
        PolicyError::checkpoint(path, format!("cannot be serialised: {error}"))
    };
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let mut views = Vec::with_capacity(tensors.len());
    for ((name, dims, _), bytes) in tensors.iter().zip(&bytes) {
        views.push((name, TensorView::new(Dtype::F32, dims.clone(), bytes).map_err(damaged)?));
    }
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let file = safetensors::serialize(views, Some(metadata)).map_err(damaged)?;
    write_atomically(path, &file)
}

/// Writes a file so that a crash leaves the old one or the new one: aside, to disk, renamed.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), PolicyError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".part");
    let aside = PathBuf::from(aside);
    let write = || {
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| PolicyError::file("write", &aside, error))?;
    fs::rename(&aside, path).map_err(|error| PolicyError::file("rename", &aside, error))?;
    // The new name is safe only once the folder's own entry has reached the disk.
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| PolicyError::file("flush", folder, error))?;
    }
    Ok(())
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, PolicyError> {
    fs::read(path).map_err(|error| PolicyError::file("read", path, error))
}

/// The weight files of a folder, each with the tensors that an index promises in it: the one
/// file, or the shards of the index, in order of name.
fn weight_files(folder: &Path) -> Result<Vec<(PathBuf, Vec<String>)>, PolicyError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index_path = folder.join(INDEX);
    if folder.join(WEIGHTS).exists() || !index_path.exists() {
        return Ok(vec![(folder.join(WEIGHTS), Vec::new())]);
    }
    let index: Index = serde_json::from_slice(&read(&index_path)?)
        .map_err(|error| PolicyError::checkpoint(&index_path, error.to_string()))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in index.weight_map {
        shards.entry(shard).or_default().push(tensor);
    }
    for shard in shards.keys() {
        if Path::new(shard).file_name() != Some(shard.as_ref()) {
            return Err(PolicyError::checkpoint(
                &index_path,
                format!("shard {shard:?} is no plain file name"),
            ));
        }
        if !folder.join(shard).is_file() {
            return Err(PolicyError::checkpoint(
                &index_path,
                format!("shard {shard} is not in the folder ({} shards in all)", shards.len()),
            ));
        }
    }
    Ok(shards.into_iter().map(|(shard, names)| (folder.join(shard), names)).collect())
}

/// The tensor's values in f32, after checking shape, dtype and finiteness.
fn checked_values(
    path: &Path,
    spec: &ParameterSpec,
    view: &TensorView<'_>,
) -> Result<Vec<f32>, PolicyError> {
    let name = &spec.name;
    if let (Role::Values, [labels, _]) = (spec.role, view.shape())
        && *labels != 1
    {
        let told = format!("tensor {name} gives {labels} values a token, expected one");
        return Err(PolicyError::checkpoint(path, told));
    }
    check_dims(path, name, view.shape(), &spec.dims)?;
    let values = widened(view).ok_or_else(|| {
        PolicyError::checkpoint(
            path,
            format!("tensor {name} has dtype {:?}, expected F32, F16 or BF16", view.dtype()),
        )
    })?;
    check_finite(path, name, &values)?;
    Ok(values)
}

/// Refuses a tensor of another shape.
pub(crate) fn check_dims(
    path: &Path,
    name: &str,
    found: &[usize],
    expected: &[usize],
) -> Result<(), PolicyError> {
    if found == expected {
        return Ok(());
    }
    Err(PolicyError::checkpoint(
        path,
        format!("tensor {name} has shape {found:?}, expected {expected:?}"),
    ))
}

/// Refuses NaN and infinities: training on from them teaches nothing and hides where they began.
pub(crate) fn check_finite(path: &Path, name: &str, values: &[f32]) -> Result<(), PolicyError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(PolicyError::checkpoint(
            path,
            format!("tensor {name} holds {} at element {at}", values[at]),
        )),
    }
}

/// The values in f32; nothing for dtypes that are not read.
pub(crate) fn widened(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = view.data();
    let pairs = || data.as_chunks::<2>().0.iter();
    Some(match view.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::F16 => pairs().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        _ => return None,
    })
}
