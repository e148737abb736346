//! `tallow loss`: advantages, losses and gradients of algorithms on given numbers, or of several
//! algorithms on the stored rollouts of one step ([`super::compare`]).

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::compare::{StoredStep, compare};
use super::output::Output;
use super::{Common, say};
use crate::algorithms::cases::{Case, NoResult};
use crate::error::Error;
use crate::registry::Registry;

/// Put numbers through the formulas that training runs.
///
/// `--compare A,B RUN_DIR --step N` puts the rollouts that a run kept for a step through several
/// algorithms with their defaults and says how far their gradients point the same way: the cosine over
/// all parameters, with the clipped share and the effective sample size of each. The policy is the
/// first checkpoint after that step (at the weights that sampled nothing would be clipped).
///
/// `--cases` reads one JSON object `{"header": {...}, "cases": [{"id", "kind", "algorithm",
/// "hyperparameters", "inputs"}, ...]}` and writes a line for each case, in order: `{"id", "outputs"}`
/// or `{"id", "unsupported": "reason"}`. All in f64; gradients come from the backward pass of training.
#[derive(Args)]
#[command(
    after_help = "Examples: tallow loss --cases algorithms.json --out results.jsonl\n          tallow loss --compare grpo,dapo runs/emergence/variants/main --step 20"
)]
pub struct LossArgs {
    /// A file of cases.
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
    /// Where the results go; default: stdout.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Algorithms to hold against each other.
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        requires = "run",
        conflicts_with = "cases"
    )]
    compare: Vec<String>,
    #[command(flatten)]
    stored: StoredStep,
}

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
}

/// `tallow loss`.
pub fn loss(args: &LossArgs, common: &Common, registry: &Registry) -> Result<(), Error> {
    if !args.compare.is_empty() {
        return compare(&args.compare, &args.stored, common, registry);
    }
    let Some(path) = &args.cases else {
        return Err(Error::usage(
            "nothing to compute",
            "give --cases FILE, or --compare A,B RUN_DIR --step N",
        ));
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::Data(format!("cannot read {}: {error}", path.display())))?;
    let file: File = serde_json::from_str(&text)
        .map_err(|error| Error::Data(format!("{}:{}: {error}", path.display(), error.line())))?;
    let output = Output::open(args.out.as_deref())?;
    let mut unsupported = 0;
    let mut lines = Vec::with_capacity(file.cases.len());
    for case in &file.cases {
        let id = &case.id;
        lines.push(match case.outputs() {
            Ok(outputs) => json!({"id": id, "outputs": outputs}).to_string(),
            Err(NoResult::Unsupported(reason)) => {
                unsupported += 1;
                json!({"id": id, "unsupported": reason}).to_string()
            }
            Err(NoResult::Broken(problem)) => {
                let place = place_of(&text, path, id);
                return Err(Error::Data(format!("{place}: case {id}: {problem}")));
            }
        });
    }
    output.write(lines.into_iter())?;
    if let Some(path) = args.out.as_ref().filter(|_| !common.quiet && !common.json) {
        let count = file.cases.len();
        say(&format!("{count} cases, {unsupported} unsupported: {}", path.display()));
    }
    Ok(())
}

/// File and line at which a case names itself.
fn place_of(text: &str, path: &Path, id: &str) -> String {
    let name = json!(id).to_string();
    let line = text.lines().position(|line| line.contains(&name)).map_or(1, |it| it + 1);
    format!("{}:{line}", path.display())
}
