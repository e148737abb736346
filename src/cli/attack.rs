//! `tallow attack`: throws known exploits at a verifier and says what they earned.

use std::path::PathBuf;

use clap::Args;
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Map, Value, json};
use tallow_verifiers::attack::{Report, attack};

use super::verify::{Judges, options, reference};
use super::{Common, say};
use crate::documents::read_jsonl;
use crate::error::Error;
use crate::registry::Registry;

/// Attack a verifier with built-in exploits: what share of each class is rewarded?
///
/// The tasks are the verifier's own contract cases, or those of a file in the format of
/// `tallow verify`; a field `prompt` there is what the exploits may echo. The exit status is 1 if a
/// class is rewarded more often than the threshold allows.
#[derive(Args)]
#[command(after_help = "Example: tallow attack math --cases cases.jsonl")]
pub struct AttackArgs {
    /// A verifier, see `tallow list verifiers`.
    name: String,
    /// Tasks to attack, JSONL with `gold` and perhaps `prompt` and `options`.
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
    /// Tasks that are taken from the file, evenly spread.
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
    /// The share of a class that may be rewarded.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    threshold: f64,
    /// Change an option of the verifier.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// `tallow attack`.
pub fn run(args: &AttackArgs, common: &Common, registry: &Registry) -> Result<(), Error> {
    if args.cases.is_none()
        && let Some(needs) = registry.verifiers.get(&args.name).and_then(|it| it.needs())
    {
        return Err(Error::Data(format!(
            "`{}` needs {needs} and has no cases of its own: give some with --cases",
            args.name
        )));
    }
    let judges = Judges::new(registry, &args.name, options(&args.set)?)?;
    let cases = match &args.cases {
        Some(path) => from_file(path, args.limit)?,
        None => own(registry, &args.name),
    };
    let mut tasks = Vec::new();
    for (place, case) in &cases {
        let verifier =
            judges.verifier(case).map_err(|problem| Error::Data(format!("{place}: {problem}")))?;
        let prompt = case.get("prompt").and_then(Value::as_str).unwrap_or_default().to_owned();
        tasks.push((prompt, reference(case), verifier));
    }
    let borrowed: Vec<_> = tasks
        .iter()
        .map(|(prompt, reference, verifier)| (prompt.as_str(), reference, verifier.as_ref()))
        .collect();
    let reports = attack(&borrowed);
    if common.json {
        for report in &reports {
            say(&line(report).to_string());
        }
    } else {
        say(&table(&reports).to_string());
    }
    let accepts = registry.verifiers.get(&args.name).map_or(&[][..], |it| it.accepts());
    let over: Vec<&str> = reports
        .iter()
        .filter(|it| share(it) > args.threshold || it.broken > 0)
        .map(|it| it.class)
        .collect();
    if over.is_empty() {
        return Ok(());
    }
    let by_design: Vec<&str> = over.iter().copied().filter(|it| accepts.contains(it)).collect();
    let note = if by_design.is_empty() {
        String::new()
    } else {
        format!("; by design: {}", by_design.join(", "))
    };
    Err(Error::Data(format!(
        "`{}` rewards more than {} of: {}{note}",
        args.name,
        args.threshold,
        over.join(", ")
    )))
}

type Case = (String, Map<String, Value>);

fn from_file(path: &std::path::Path, limit: usize) -> Result<Vec<Case>, Error> {
    let lines = read_jsonl(path)?;
    let step = lines.len().div_ceil(limit.max(1)).max(1);
    Ok(lines
        .into_iter()
        .step_by(step)
        .map(|(line, case)| (format!("{}:{line}", path.display()), case))
        .collect())
}

/// The references of a verifier's contract cases, each once: it is attacked under the options that
/// it is given, not under those of the cases.
fn own(registry: &Registry, name: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for case in registry.verifiers.get(name).map(|it| it.cases()).unwrap_or_default() {
        let fields = Map::from_iter([("gold".to_owned(), json!(case.reference))]);
        if cases.iter().all(|(_, known)| *known != fields) {
            cases.push(("its own cases".to_owned(), fields));
        }
    }
    cases
}

fn share(report: &Report) -> f64 {
    report.accepted as f64 / report.tried.max(1) as f64
}

fn line(report: &Report) -> Value {
    json!({
        "class": report.class,
        "tried": report.tried,
        "accepted": report.accepted,
        "broken": report.broken,
        "slowest_ms": report.slowest.as_secs_f64() * 1e3,
        "example": report.example,
    })
}

fn table(reports: &[Report]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["class", "exploit", "tried", "accepted", "slowest", "example"]);
    for report in reports {
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        table.add_row([
            Cell::new(report.class),
            Cell::new(report.summary),
            right(report.tried.to_string()),
            right(format!("{:.1} %", 100.0 * share(report))),
            right(format!("{:.2} ms", report.slowest.as_secs_f64() * 1e3)),
            Cell::new(report.example.clone().unwrap_or_default()),
        ]);
    }
    table
}
