//! `tallow verify`: judges a JSONL of cases in bulk, in parallel, in order.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use clap::Args;
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use tallow_verifiers::{
    Message, Outcome, Preparation, Reference, StopReason, Transcript, Verifier,
};

use super::output::Output;
use super::{Common, refused, say};
use crate::documents::read_jsonl;
use crate::error::Error;
use crate::registry::Registry;
use crate::rollout::episode::contained;

/// Cases that a verifier which waits for something outside judges at a time.
const WAITING_THREADS: usize = 16;

/// Judge a file of cases with a verifier.
///
/// A case is `{"id", "gold", "pred"}`, where `pred` is a reply and `gold` the answer it should give
/// (a string, or an object for verifiers with structured references). It may carry `options`, an
/// object that goes before the `--set` options for this case, and any of them that is about the
/// form of the case (`gold_form`, `pred_form`, `form`) as a field of its own. For programs the two
/// are called `program`, which is bare source unless `form` says otherwise, and `tests`.
#[derive(Args)]
#[command(after_help = "Example: tallow verify math --cases cases.jsonl --out verdicts.jsonl")]
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
    let judges = Judges::new(registry, &args.name, options(&args.set)?)?;
    let output = Output::open(args.out.as_deref())?;
    let cases = read_jsonl(&args.cases)?;
    let place = |line: &usize, problem: String| {
        Error::Data(format!("{}:{line}: {problem}", args.cases.display()))
    };
    // Before any is judged: what one loads, no other thread then waits for.
    let verifiers: Vec<Arc<dyn Verifier>> = cases
        .iter()
        .map(|(line, case)| judges.verifier(case).map_err(|problem| place(line, problem)))
        .collect::<Result<_, Error>>()?;
    let judged = |index: usize| {
        let (line, case) = &cases[index];
        judge(&*verifiers[index], case).map_err(|problem| place(line, problem))
    };
    let verdicts: Vec<Value> = if verifiers.iter().any(|it| it.waits()) {
        on_threads(cases.len(), judged).into_iter().collect::<Result<_, Error>>()?
    } else {
        (0..cases.len()).into_par_iter().map(judged).collect::<Result<_, Error>>()?
    };
    output.write(verdicts.iter().map(Value::to_string))?;
    if let Some(path) = args.out.as_ref().filter(|_| !common.quiet && !common.json) {
        let right = verdicts.iter().filter(|it| it["verdict"] == true).count();
        say(&format!("{} cases, {right} correct: {}", verdicts.len(), path.display()));
    }
    Ok(())
}

/// What `work` makes of each of `count` indices, in order, on threads that may wait for something
/// outside.
fn on_threads<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let made: Mutex<Vec<(usize, T)>> = Mutex::new(Vec::with_capacity(count));
    std::thread::scope(|scope| {
        for _ in 0..count.min(WAITING_THREADS) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let value = work(index);
                    made.lock().unwrap_or_else(PoisonError::into_inner).push((index, value));
                }
            });
        }
    });
    let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    made.sort_by_key(|it| it.0);
    made.into_iter().map(|it| it.1).collect()
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

/// A verifier under the options of a run, and under those that single cases ask for.
pub struct Judges<'a> {
    registry: &'a Registry,
    name: &'a str,
    options: Value,
    /// Which of the fields that say the form of a case the verifier knows.
    forms: Vec<&'static str>,
    built: Mutex<HashMap<String, Arc<dyn Verifier>>>,
}

impl<'a> Judges<'a> {
    /// Builds the verifier under the options of the run, so that a mistake in them is seen first.
    pub fn new(registry: &'a Registry, name: &'a str, options: Value) -> Result<Self, Error> {
        let verifier = registry
            .verifiers
            .build(name, options.clone())
            .map_err(|fault| refused(fault, "see `tallow list verifiers --long`"))?;
        prepare(&*verifier)?;
        let known = registry.verifiers.get(name).map(|it| it.default_options());
        let forms = ["gold_form", "pred_form", "form"]
            .into_iter()
            .filter(|form| known.as_ref().is_some_and(|it| it.get(form).is_some()))
            .collect();
        let built = Mutex::new(HashMap::from([(options.to_string(), verifier)]));
        Ok(Self { registry, name, options, forms, built })
    }

    /// The verifier for a case.
    pub fn verifier(&self, case: &Map<String, Value>) -> Result<Arc<dyn Verifier>, String> {
        let mut options = self.options.clone();
        if let Value::Object(options) = &mut options {
            if let Some(Value::Object(own)) = case.get("options") {
                options.extend(own.clone());
            }
            if case.contains_key("program") && self.forms.contains(&"form") {
                options.entry("form").or_insert_with(|| json!("source"));
            }
            for form in &self.forms {
                if let Some(value) = case.get(*form).filter(|it| !it.is_null()) {
                    options.insert((*form).to_owned(), value.clone());
                }
            }
        }
        let key = options.to_string();
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verifier) = built.get(&key) {
            return Ok(Arc::clone(verifier));
        }
        let verifier = self
            .registry
            .verifiers
            .build(self.name, options)
            .map_err(|fault| format!("its options: {fault}"))?;
        verifier.prepare(&Preparation::default()).map_err(|error| error.to_string())?;
        built.insert(key, Arc::clone(&verifier));
        Ok(verifier)
    }
}

/// Lets a verifier load what it judges by; there are no models of stages outside of a run.
pub fn prepare(verifier: &dyn Verifier) -> Result<(), Error> {
    verifier.prepare(&Preparation::default()).map_err(|error| Error::Data(error.to_string()))
}

/// The transcript and reference of a case.
pub fn parts(case: &Map<String, Value>) -> Result<(Transcript, Reference), String> {
    let pred = case.get("pred").or_else(|| case.get("program"));
    let Some(pred) = pred.and_then(Value::as_str) else {
        let fields: Vec<&str> = case.keys().map(String::as_str).collect();
        return Err(format!(
            "no text field `pred` or `program`; the line has {}",
            fields.join(", ")
        ));
    };
    let reference = reference(case);
    let transcript = Transcript {
        messages: vec![Message::user(""), Message::assistant(pred)],
        stop: StopReason::Finished,
    };
    Ok((transcript, reference))
}

/// The reference of a case: text is an answer, an object one of its kinds or a custom one.
pub fn reference(case: &Map<String, Value>) -> Reference {
    match case.get("gold").or_else(|| case.get("tests")) {
        None | Some(Value::Null) => Reference::None,
        Some(Value::String(answer)) => Reference::Answer(answer.clone()),
        Some(Value::Number(answer)) => Reference::Answer(answer.to_string()),
        Some(other) => serde_json::from_value(other.clone())
            .unwrap_or_else(|_| Reference::Custom(other.clone())),
    }
}

fn judge(verifier: &dyn Verifier, case: &Map<String, Value>) -> Result<Value, String> {
    let (transcript, reference) = parts(case)?;
    let clock = Instant::now();
    let verdict = contained("the verifier", || verifier.verify(&transcript, &reference))
        .and_then(|it| it.map_err(|e| e.to_string()));
    let us = clock.elapsed().as_nanos() as f64 / 1e3;
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
