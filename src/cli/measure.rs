//! `tallow bench`: one JSON line of measurements.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::verify::{Judges, options, parts};
use super::{Common, say};
use crate::bench::{self, BenchModel};
use crate::documents::read_jsonl;
use crate::error::Error;
use crate::registry::Registry;

/// Measure speed on this machine; prints one JSON line.
#[derive(Args)]
#[command(
    after_help = "Example: tallow bench grpo --model DIR --random-init --prompts 8 --group 8"
)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Whole GRPO steps: rollout, reward, update.
    Grpo {
        #[command(flatten)]
        model: ModelArgs,
        /// Prompts a step.
        #[arg(long, default_value_t = 8)]
        prompts: usize,
        /// Replies to each prompt.
        #[arg(long, default_value_t = 8)]
        group: usize,
        /// Tokens of a prompt.
        #[arg(long, default_value_t = 64)]
        prompt_tokens: usize,
        /// Tokens of a reply, exactly.
        #[arg(long, default_value_t = 64)]
        new_tokens: usize,
        /// Steps counted, after one to warm up.
        #[arg(long, default_value_t = 4)]
        steps: usize,
        /// Train adapters of this rank instead of all weights.
        #[arg(long, default_value_t = 0)]
        lora_rank: usize,
    },
    /// Next-token training steps.
    Train {
        #[command(flatten)]
        model: ModelArgs,
        /// Sequences a step.
        #[arg(long, default_value_t = 16)]
        batch: usize,
        /// Tokens of a sequence.
        #[arg(long, default_value_t = 256)]
        seq: usize,
        /// Steps counted, after one to warm up.
        #[arg(long, default_value_t = 4)]
        steps: usize,
        /// Train adapters of this rank instead of all weights.
        #[arg(long, default_value_t = 0)]
        lora_rank: usize,
    },
    /// Sampling alone.
    Generate {
        #[command(flatten)]
        model: ModelArgs,
        /// Replies at once.
        #[arg(long, default_value_t = 64)]
        batch: usize,
        /// Tokens of a prompt.
        #[arg(long, default_value_t = 64)]
        prompt_tokens: usize,
        /// Tokens of a reply, exactly.
        #[arg(long, default_value_t = 64)]
        new_tokens: usize,
    },
    /// Programs in the sandbox, as many at a time as `--threads` says.
    Sandbox {
        /// Programs and tests, in the format of `tallow verify python`.
        #[arg(long, value_name = "FILE")]
        cases: PathBuf,
        /// Times that all of them are judged.
        #[arg(long, default_value_t = 5)]
        repeat: usize,
        /// Change an option of the verifier `python`.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// Verdicts, on one thread and on all.
    Verify {
        /// A verifier, see `tallow list verifiers`.
        name: String,
        /// The cases, in the format of `tallow verify`.
        #[arg(long, value_name = "FILE")]
        cases: PathBuf,
        /// Times that each case is judged; its time is the median.
        #[arg(long, default_value_t = 5)]
        repeat: usize,
        /// Change an option of the verifier.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
}

#[derive(Args)]
struct ModelArgs {
    /// A Hugging Face folder; the tokenizer's files are needed too.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Take only config.json from it and draw the weights.
    #[arg(long)]
    random_init: bool,
}

/// `tallow bench`.
pub fn bench(args: &BenchArgs, common: &Common, registry: &Registry) -> Result<(), Error> {
    let device = common.open_device()?;
    let load = |model: &ModelArgs| {
        BenchModel::load(&model.model, model.random_init, common.seed, device.clone())
    };
    let line = match &args.what {
        What::Grpo { model, prompts, group, prompt_tokens, new_tokens, steps, lora_rank } => {
            let work = bench::GrpoWork {
                prompts: *prompts,
                group: *group,
                prompt_tokens: *prompt_tokens,
                new_tokens: *new_tokens,
                steps: *steps,
                lora_rank: *lora_rank,
            };
            bench::grpo(load(model)?, &work)?
        }
        What::Train { model, batch, seq, steps, lora_rank } => {
            bench::train(load(model)?, *batch, *seq, *steps, *lora_rank)?
        }
        What::Generate { model, batch, prompt_tokens, new_tokens } => {
            bench::generate(&load(model)?, *batch, *prompt_tokens, *new_tokens)?
        }
        What::Verify { name, cases, repeat, set } => {
            bench::verify(name, &prepared(registry, name, options(set)?, cases)?, *repeat)?
        }
        What::Sandbox { cases, repeat, set } => {
            let mut options = options(set)?;
            // As many workers as there are threads that wait for them.
            options["workers"] = rayon::current_num_threads().into();
            bench::sandbox(&prepared(registry, "python", options, cases)?, *repeat)?
        }
    };
    say(&line.to_string());
    Ok(())
}

/// Every case of a file, with its verifier.
fn prepared(
    registry: &Registry,
    name: &str,
    options: Value,
    path: &Path,
) -> Result<Vec<bench::VerifyCase>, Error> {
    let judges = Judges::new(registry, name, options)?;
    let mut cases = Vec::new();
    for (line, case) in read_jsonl(path)? {
        let place = |problem| Error::Data(format!("{}:{line}: {problem}", path.display()));
        let (transcript, reference) = parts(&case).map_err(place)?;
        cases.push((judges.verifier(&case).map_err(place)?, transcript, reference));
    }
    if cases.is_empty() {
        return Err(Error::usage("no cases to judge", "give a file with at least one line"));
    }
    Ok(cases)
}
