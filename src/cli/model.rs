//! Verbs that use a model folder: `generate`, `score`, `eval`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde_json::{Map, Value, json};
use tallow_envs::{BuildContext, Seed, Split};
use tallow_policies::{Decoder, Engine, Request, SamplingParams, TokenId, Tokenizer};
use tallow_verifiers::Message;

use super::output::Output;
use super::verify::{options, prepare};
use super::{Common, refused, say};
use crate::chat_template::TemplateOptions;
use crate::config::problem::Fault;
use crate::console::Console;
use crate::documents::read_jsonl;
use crate::error::Error;
use crate::evaluation::{Evaluation, EvaluationConfig};
use crate::learner::Learner;
use crate::learner::batch::{Sequence, SharedPrompts, token_budget_runs};
use crate::model::{ModelState, check_fit, model_folder};
use crate::registry::Registry;
use crate::renderer::Renderer;
use crate::rollout::pool::{PoolLimits, RolloutPool};
use crate::rollout::sampling;
use crate::rollout::scoring::Scoring;
use crate::stages::rl::cannot_judge;

/// Replies sampled at once.
const SLOTS: usize = 64;

/// Tokens scored in one forward pass.
const SCORE_TOKENS: usize = 4096;

/// Seed where none is given.
pub const DEFAULT_SEED: u64 = 1;

/// Sample replies to a file of prompts.
///
/// A line holds `{"prompt"}`, `{"messages"}` or `{"prompt_ids"}`; it comes back with
/// `"prompt_ids"` and `"completions"`. Beside messages may stand `"tools"`, `"documents"` and
/// `"chat_template_kwargs"` for the chat template.
#[derive(Args)]
#[command(
    after_help = "Example: tallow generate --model models/rl --prompts prompts.jsonl --n 4 --max-tokens 64"
)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompts, JSONL.
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// Where the lines go; default: stdout.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Put `prompt` into the chat template as a user's message.
    #[arg(long)]
    chat: bool,
    /// Replies to each prompt.
    #[arg(long, default_value_t = 1)]
    n: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Which model, and how it is spoken to.
#[derive(Args)]
pub struct ModelArgs {
    /// A Hugging Face folder or a GGUF file.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A low-rank adapter in the layout of PEFT, added to the model's weights.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Set an option of the chat template, such as enable_thinking=false.
    #[arg(long, value_name = "KEY=VALUE")]
    template_option: Vec<String>,
}

/// How to draw tokens.
#[derive(Args)]
pub struct SamplingArgs {
    /// Longest reply.
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// No end before this many tokens.
    #[arg(long, default_value_t = 0)]
    min_tokens: usize,
    /// 0 takes the likeliest token.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Keep the likeliest tokens that together have this probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Keep so many of the likeliest tokens; 0 keeps all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Keep tokens at least this many times as likely as the likeliest.
    #[arg(long, default_value_t = 0.0)]
    min_p: f64,
    /// End where this text appears; may be repeated.
    #[arg(long)]
    stop: Vec<String>,
}

impl SamplingArgs {
    /// The settings as the engine takes them.
    ///
    /// # Errors
    /// If nothing can be sampled by them.
    pub fn params(&self) -> Result<SamplingParams, Error> {
        let params = SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            stop: self.stop.clone(),
        };
        refuse_flags(sampling::faults(&params))?;
        Ok(params)
    }
}

/// Refuses the first of `faults`, whose keys are those of flags.
fn refuse_flags(faults: Vec<Fault>) -> Result<(), Error> {
    let Some(fault) = faults.into_iter().next() else { return Ok(()) };
    let flag = fault.key.replace('_', "-");
    let found = fault.found.map_or_else(String::new, |it| format!(" {it}"));
    let hint = fault.expected.map(|it| format!("give {it}"));
    Err(Error::Usage { problem: format!("--{flag}{found}: {}", fault.problem), hint })
}

/// Log-probability of every token of given text.
///
/// A line holds `{"text"}`, `{"ids"}` or `{"messages"}`; out comes `{"ids", "logprobs", "nll_nats",
/// "tokens", "bytes"}`, where the first token, which nothing predicts, has the log-probability null.
#[derive(Args)]
#[command(after_help = "Example: tallow score --model models/pretrain --data text.jsonl")]
pub struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The texts, JSONL.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Where the lines go; default: stdout.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// pass@k of a model on an environment, with 95 % intervals.
#[derive(Args)]
#[command(
    after_help = "Example: tallow eval --model models/rl --env digit_sum --limit 256 --samples 16 --k 1,4,16"
)]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// An environment, see `tallow list envs`.
    #[arg(long)]
    env: String,
    /// Change an option of the environment.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// A verifier instead of the environment's own.
    #[arg(long)]
    verifier: Option<String>,
    /// `train` or `test`.
    #[arg(long, default_value = "test")]
    split: String,
    /// Tasks to play.
    #[arg(long, default_value_t = 128)]
    limit: u64,
    /// Replies to each task.
    #[arg(long, default_value_t = 4)]
    samples: usize,
    /// Which k to tell pass@k for.
    #[arg(long, value_delimiter = ',', default_value = "1,4")]
    k: Vec<usize>,
    /// Longest reply.
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// Sampling temperature.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
}

/// A model, ready to be used.
pub struct Loaded {
    /// The weights.
    pub decoder: Decoder,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to ids and back.
    pub renderer: Arc<Renderer>,
}

/// Loads a model.
///
/// # Errors
/// If there is none, or a file of it is missing or damaged, or the device cannot be opened.
pub fn load(args: &ModelArgs, common: &Common) -> Result<Loaded, Error> {
    let device = common.open_device()?;
    let state = ModelState::load(&model_folder(&args.model)?)?;
    let tokenizer = state.tokenizer()?;
    let decoder = state.decoder.ok_or_else(|| Error::Data("the folder has no weights".into()))?;
    let decoder = match &args.adapter {
        Some(folder) => decoder.with_adapter_folder(folder)?.merged()?,
        None => decoder,
    };
    check_fit(&decoder, &tokenizer)?;
    let decoder = match &device {
        Some(device) => decoder.on(device)?,
        None => decoder,
    };
    let template_options = match options(&args.template_option)? {
        Value::Object(options) => options,
        _ => TemplateOptions::new(),
    };
    let renderer = Renderer::with_options(Arc::clone(&tokenizer), template_options)?;
    let renderer = Arc::new(renderer);
    Ok(Loaded { decoder, tokenizer, renderer })
}

/// `tallow generate`.
pub fn generate(args: &GenerateArgs, common: &Common) -> Result<(), Error> {
    let rows = read_jsonl(&args.prompts)?;
    let seed = Seed(common.seed.unwrap_or(DEFAULT_SEED));
    let params = Arc::new(args.sampling.params()?);
    let output = Output::open(args.out.as_deref())?;
    let loaded = load(&args.model, common)?;
    let mut prompts = Vec::with_capacity(rows.len());
    for (line, row) in &rows {
        let ids =
            prompt_ids(row, args.chat, &loaded).map_err(|e| at_line(&args.prompts, *line, &e))?;
        prompts.push(Arc::<[TokenId]>::from(ids));
    }
    let mut engine = Engine::new(&loaded.decoder, Arc::clone(&loaded.tokenizer), SLOTS)?;
    let console = Console::new(common.quiet || common.json);
    let bar = console.bar("generate", (prompts.len() * args.n) as u64, "replies");
    for (index, prompt) in prompts.iter().enumerate() {
        for member in 0..args.n {
            engine.submit(Request {
                id: (index * args.n + member) as u64,
                prompt: Arc::clone(prompt),
                params: Arc::clone(&params),
                seed: seed.derive(&[index as u64, member as u64]).0,
            });
        }
    }
    let mut completions = vec![Value::Null; prompts.len() * args.n];
    while !engine.is_idle() {
        for (id, completion) in engine.step()? {
            bar.advance(1);
            completions[id as usize] = json!({
                "text": loaded.renderer.reply_text(&completion.tokens)?,
                "ids": completion.tokens,
                "logprobs": completion.logprobs,
                "finish": completion.finish,
            });
        }
    }
    drop(bar);
    let lines = rows.into_iter().enumerate().map(|(index, (_, mut row))| {
        row.insert("prompt_ids".into(), json!(&*prompts[index]));
        let own = completions[index * args.n..(index + 1) * args.n].to_vec();
        row.insert("completions".into(), Value::Array(own));
        Value::Object(row).to_string()
    });
    output.write(lines)
}

fn at_line(path: &Path, line: usize, error: &Error) -> Error {
    Error::Data(format!("{}:{line}: {error}", path.display()))
}

fn prompt_ids(
    row: &Map<String, Value>,
    chat: bool,
    loaded: &Loaded,
) -> Result<Vec<TokenId>, Error> {
    let ids = if let Some(ids) = row.get("prompt_ids") {
        serde_json::from_value(ids.clone()).map_err(|e| Error::Data(format!("prompt_ids: {e}")))?
    } else if row.contains_key("messages") {
        let (messages, options) = conversation_in(row)?;
        loaded.renderer.prompt_of(&messages, &options)?
    } else {
        match row.get("prompt").and_then(Value::as_str) {
            Some(text) if chat => loaded.renderer.prompt(&[Message::user(text)])?,
            Some(text) => loaded.tokenizer.encode(text)?,
            None => {
                let fields: Vec<&str> = row.keys().map(String::as_str).collect();
                return Err(Error::Data(format!(
                    "none of `prompt`, `messages` and `prompt_ids`; the line has {}",
                    fields.join(", ")
                )));
            }
        }
    };
    check_ids(&ids, loaded)?;
    Ok(ids)
}

/// The messages of a line, and what stands beside them for the chat template.
fn conversation_in(row: &Map<String, Value>) -> Result<(Vec<Value>, TemplateOptions), Error> {
    let fault = |found: &Value, expected: &str| {
        Error::Data(format!("messages: found {found}, expected {expected}"))
    };
    let messages = match row.get("messages") {
        Some(Value::Array(messages)) if !messages.is_empty() => messages.clone(),
        other => {
            return Err(fault(other.unwrap_or(&Value::Null), "a list of at least one message"));
        }
    };
    if let Some(strange) = messages.iter().find(|it| !it["role"].is_string()) {
        return Err(fault(strange, "an object with a `role`"));
    }
    let mut options = match row.get("chat_template_kwargs") {
        None | Some(Value::Null) => TemplateOptions::new(),
        Some(Value::Object(options)) => options.clone(),
        Some(other) => {
            return Err(Error::Data(format!(
                "chat_template_kwargs: found {other}, expected an object"
            )));
        }
    };
    for name in ["tools", "documents"] {
        if let Some(value) = row.get(name) {
            options.insert(name.into(), value.clone());
        }
    }
    Ok((messages, options))
}

fn check_ids(ids: &[TokenId], loaded: &Loaded) -> Result<(), Error> {
    let config = loaded.decoder.config();
    if ids.is_empty() {
        return Err(Error::Data("an empty text cannot be continued or scored".into()));
    }
    if ids.len() > config.max_position_embeddings {
        return Err(Error::Data(format!(
            "{} tokens do not fit the model's context of {}",
            ids.len(),
            config.max_position_embeddings
        )));
    }
    match ids.iter().find(|it| **it as usize >= config.vocab_size) {
        Some(id) => Err(Error::Data(format!(
            "id {id} is outside the model's vocabulary of {}",
            config.vocab_size
        ))),
        None => Ok(()),
    }
}

/// `tallow score`.
pub fn score(args: &ScoreArgs, common: &Common) -> Result<(), Error> {
    let output = Output::open(args.out.as_deref())?;
    let loaded = load(&args.model, common)?;
    let mut sequences = Vec::new();
    let mut bytes = Vec::new();
    for (line, row) in read_jsonl(&args.data)? {
        let ids = scored_ids(&row, &loaded).map_err(|e| at_line(&args.data, line, &e))?;
        bytes.push(loaded.tokenizer.decode(&ids)?.len());
        let all = vec![true; ids.len()];
        sequences.push(Sequence::new(ids, &all));
    }
    let console = Console::new(common.quiet || common.json);
    let bar = console.bar("score", sequences.len() as u64, "texts");
    let mut lines = Vec::with_capacity(sequences.len());
    for run in token_budget_runs(&sequences, SCORE_TOKENS, SharedPrompts::Once) {
        let part = &sequences[run.clone()];
        let scored = Learner::score(&loaded.decoder, part, 1.0)?;
        let mut rest = scored.as_slice();
        for (sequence, bytes) in part.iter().zip(&bytes[run]) {
            let (own, later) = rest.split_at(sequence.scored_tokens());
            rest = later;
            let nll: f64 = own.iter().map(|it| -f64::from(*it)).sum();
            let logprobs: Vec<Value> =
                std::iter::once(Value::Null).chain(own.iter().map(|it| json!(it))).collect();
            lines.push(json!({
                "ids": sequence.tokens(), "logprobs": logprobs, "nll_nats": nll,
                "tokens": own.len(), "bytes": bytes,
            }));
            bar.advance(1);
        }
    }
    drop(bar);
    output.write(lines.iter().map(Value::to_string))
}

fn scored_ids(row: &Map<String, Value>, loaded: &Loaded) -> Result<Vec<TokenId>, Error> {
    let ids = if let Some(ids) = row.get("ids") {
        serde_json::from_value(ids.clone()).map_err(|e| Error::Data(format!("ids: {e}")))?
    } else if row.contains_key("messages") {
        let (messages, options) = conversation_in(row)?;
        loaded.renderer.conversation_of(&messages, &options)?.tokens
    } else if let Some(text) = row.get("text").and_then(Value::as_str) {
        loaded.tokenizer.encode(text)?
    } else {
        let fields: Vec<&str> = row.keys().map(String::as_str).collect();
        return Err(Error::Data(format!(
            "none of `text`, `ids` and `messages`; the line has {}",
            fields.join(", ")
        )));
    };
    check_ids(&ids, loaded)?;
    Ok(ids)
}

/// `tallow eval`.
pub fn eval(args: &EvalArgs, common: &Common, registry: &Registry) -> Result<(), Error> {
    let split = match args.split.as_str() {
        "train" => Split::Train,
        "test" => Split::Test,
        other => {
            return Err(Error::usage(format!("--split {other}"), "use train or test"));
        }
    };
    let seed = Seed(common.seed.unwrap_or(DEFAULT_SEED));
    let context = BuildContext { folder: PathBuf::from("."), seed };
    let refused = |fault| refused(fault, "see `tallow list --long`");
    let environment =
        registry.environments.build(&args.env, options(&args.set)?, &context).map_err(refused)?;
    let (name, verifier_options) = match &args.verifier {
        Some(name) => (name.as_str(), json!({})),
        None => environment.default_verifier(),
    };
    let verifier = registry.verifiers.build(name, verifier_options).map_err(refused)?;
    if let Some(fault) = cannot_judge(name, &*verifier, &*environment) {
        let kinds = fault.found.unwrap_or_default();
        let hint = fault.expected.map(|it| format!("it judges by references of kind {it}"));
        return Err(Error::Usage { problem: format!("{}: {kinds}", fault.problem), hint });
    }
    prepare(&*verifier)?;
    let config = EvaluationConfig {
        tasks: args.limit,
        samples: args.samples,
        k: args.k.clone(),
        ..Default::default()
    };
    let sampling = SamplingParams {
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        ..Default::default()
    };
    if args.limit == 0 {
        return Err(Error::usage("--limit 0: an evaluation without tasks", "give 1 or more"));
    }
    refuse_flags(config.faults())?;
    refuse_flags(sampling::faults(&sampling))?;
    let loaded = load(&args.model, common)?;
    let limits = PoolLimits {
        threads: common.threads(),
        slots: SLOTS,
        cache_bytes: None,
        episodes: SLOTS.max(args.samples),
        max_turns: 8,
        lockstep: true,
    };
    let mut pool = RolloutPool::new(
        &loaded.decoder,
        &loaded.renderer,
        environment,
        Scoring::by(verifier),
        limits,
        Arc::new(AtomicBool::new(false)),
    )?;
    let evaluation =
        Evaluation { config: &config, split, sampling: &sampling, run_seed: seed, seed };
    let console = Console::new(common.quiet || common.json);
    let (metrics, _) = evaluation.run(&mut pool, |total| console.bar("eval", total, "tasks"))?;
    if common.json {
        let line: Map<String, Value> =
            metrics.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
        say(&Value::Object(line).to_string());
    } else {
        for (name, value) in metrics.iter() {
            if name.ends_with("_low") || name.ends_with("_high") {
                continue;
            }
            let bound = |end: &str| metrics.value(&format!("{name}_{end}"));
            let interval = match (bound("low"), bound("high")) {
                (Some(low), Some(high)) => format!("  ({low:.4} to {high:.4})"),
                _ => String::new(),
            };
            let short = name.trim_start_matches("eval/");
            say(&format!("{short:<24}{value:>10.4}{interval}"));
        }
    }
    Ok(())
}
