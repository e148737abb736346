//! `tallow verify`: judges a JSONL of cases in bulk, in parallel, in order.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use tallow_verifiers::{Message, Outcome, Reference, StopReason, Transcript, Verifier};

use super::output::Output;
use super::{Common, refused, say};
use crate::documents::read_jsonl;
use crate::error::Error;
use crate::registry::Registry;
use crate::rollout::episode::contained;

/// Judge a file of cases with a verifier.
///
/// A case is `{"id", "gold", "pred"}`, where `pred` is a reply and `gold` the answer it should give
/// (a string, or an object for verifiers with structured references).
#[derive(Args)]
#[command(after_help = "Example: tallow verify numeric --cases cases.jsonl --out verdicts.jsonl")]
pub struct VerifyArgs {
    /// A verifier, see `tallow list verifiers`.
    name: String,
    /// The cases, JSONL; may be packed with gzip or zstd.
    #[arg(long, value_name = "FILE")]
    cases: PathBuf,
    /// Where the verdicts go; default: stdout.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Change an option of the verifier.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// `tallow verify`.
pub fn verify(args: &VerifyArgs, common: &Common, registry: &Registry) -> Result<(), Error> {
    let options = options(&args.set)?;
    let verifier = registry
        .verifiers
        .build(&args.name, options)
        .map_err(|fault| refused(fault, "see `tallow list verifiers --long`"))?;
    let output = Output::open(args.out.as_deref())?;
    let cases = read_jsonl(&args.cases)?;
    let verdicts: Vec<Value> = cases
        .par_iter()
        .map(|(line, case)| {
            judge(&*verifier, case).map_err(|problem| {
                Error::Data(format!("{}:{line}: {problem}", args.cases.display()))
            })
        })
        .collect::<Result<_, Error>>()?;
    output.write(verdicts.iter().map(Value::to_string))?;
    if let Some(path) = args.out.as_ref().filter(|_| !common.quiet && !common.json) {
        let right = verdicts.iter().filter(|it| it["verdict"] == true).count();
        say(&format!("{} cases, {right} correct: {}", verdicts.len(), path.display()));
    }
    Ok(())
}

/// `--set` values as a table of options.
pub fn options(set: &[String]) -> Result<Value, Error> {
    let mut options = Map::new();
    for text in set {
        let Some((key, value)) = text.split_once('=') else {
            return Err(Error::usage(
                format!("--set {text}: no value"),
                "write it as KEY=VALUE, such as --set digits=4",
            ));
        };
        let parsed = format!("value = {value}").parse::<toml::Table>().ok();
        let value = parsed
            .and_then(|mut it| it.remove("value"))
            .and_then(|it| serde_json::to_value(it).ok())
            .unwrap_or_else(|| json!(value));
        let mut table = &mut options;
        let mut parts = key.trim().split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                table.insert(part.to_string(), value.clone());
                break;
            }
            let entry = table.entry(part).or_insert_with(|| json!({}));
            let Value::Object(inner) = entry else {
                return Err(Error::usage(
                    format!("--set {text}: `{part}` is a value, not a table"),
                    "give each key once",
                ));
            };
            table = inner;
        }
    }
    Ok(Value::Object(options))
}

fn judge(verifier: &dyn Verifier, case: &Map<String, Value>) -> Result<Value, String> {
    let Some(pred) = case.get("pred").and_then(Value::as_str) else {
        let fields: Vec<&str> = case.keys().map(String::as_str).collect();
        return Err(format!("no text field `pred`; the line has {}", fields.join(", ")));
    };
    let reference = match case.get("gold") {
        None | Some(Value::Null) => Reference::None,
        Some(Value::String(answer)) => Reference::Answer(answer.clone()),
        Some(Value::Number(answer)) => Reference::Answer(answer.to_string()),
        Some(other) => Reference::Custom(other.clone()),
    };
    let transcript = Transcript {
        messages: vec![Message::user(""), Message::assistant(pred)],
        stop: StopReason::Finished,
    };
    let clock = Instant::now();
    let verdict = contained("the verifier", || verifier.verify(&transcript, &reference))
        .and_then(|it| it.map_err(|e| e.to_string()));
    let us = clock.elapsed().as_micros() as u64;
    let id = case.get("id").cloned().unwrap_or(Value::Null);
    Ok(match verdict {
        Ok(verdict) => json!({
            "id": id,
            "verdict": verdict.outcome == Outcome::Correct
                || (verdict.outcome == Outcome::Graded && verdict.reward > 0.5),
            "outcome": verdict.outcome,
            "reward": verdict.reward,
            "reason": verdict.reason,
            "us": us,
        }),
        Err(problem) => json!({
            "id": id, "verdict": null, "outcome": "unscorable", "reward": null,
            "reason": problem, "us": us,
        }),
    })
}
