//! A report anyone can read from a run folder: report.html, and report.md with PNG plots.
//!
//! Reads what the run wrote and nothing else, so it works on a run that goes on, crashed, or came
//! from another machine. Every sentence of the verdict follows from numbers by the rules in
//! `verdict.rs`; text of the model is shown, never obeyed (escaped, and no script but the page's
//! own may run).

mod chart;
mod figures;
mod markdown;
mod page;
mod replies;
mod run_folder;
mod standings;
mod verdict;
mod watched;

#[cfg(test)]
mod synthetic_run;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use self::{
    chart::Chart, replies::VariantReplies, run_folder::RunFolder, verdict::Verdict,
    watched::Watched,
};

/// The files a report consists of.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportPaths {
    /// The page: one file that needs no other and no network.
    pub html: PathBuf,
    /// The same in Markdown.
    pub markdown: PathBuf,
    /// The plots the Markdown shows.
    pub plots: Vec<PathBuf>,
}

/// Why no report could be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The folder, or its variants, have no metrics to report.
    #[error("{} holds no metrics.jsonl with a whole line", dir.display())]
    NoMetrics {
        /// The folder that was given.
        dir: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file of the run is not what the format says.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A plot could not be drawn.
    #[error("plot {slug}: {reason}")]
    Plot {
        /// The plot's file name without its ending.
        slug: String,
        /// What the drawing library said.
        reason: String,
    },
}

/// Writes report.html, report.md and report_plots/*.png into `run_dir`.
///
/// Each file appears whole or not at all: a reader never sees half a page.
///
/// # Errors
/// If the folder holds no metrics, or a file cannot be read or written.
pub fn write(run_dir: &Path) -> Result<ReportPaths, ReportError> {
    let report = Report::read(run_dir)?;
    let plot_dir = run_dir.join("report_plots");
    fs::create_dir_all(&plot_dir).map_err(|source| io_error(&plot_dir, source))?;
    let mut plots = Vec::new();
    for chart in &report.charts {
        let path = plot_dir.join(format!("{}.png", chart.slug));
        // The ending decides the format, so the temporary name keeps it.
        let partial = plot_dir.join(format!(".{}.part.png", chart.slug));
        chart.write_png(&partial)?;
        fs::rename(&partial, &path).map_err(|source| io_error(&path, source))?;
        plots.push(path);
    }
    // What an earlier report drew and this one does not would seem to belong to it.
    let entries = fs::read_dir(&plot_dir).map_err(|source| io_error(&plot_dir, source))?;
    for entry in entries.filter_map(Result::ok).map(|it| it.path()) {
        if entry.extension().is_some_and(|it| it == "png") && !plots.contains(&entry) {
            fs::remove_file(&entry).map_err(|source| io_error(&entry, source))?;
        }
    }
    let paths = ReportPaths {
        html: run_dir.join("report.html"),
        markdown: run_dir.join("report.md"),
        plots,
    };
    for (path, text) in
        [(&paths.html, page::html(&report)?), (&paths.markdown, markdown::markdown(&report))]
    {
        crate::files::write_atomic(path, text).map_err(|error| io_error(path, error.source))?;
    }
    Ok(paths)
}

/// Groups that stand side by side in a table.
const MOST_COLUMNS: usize = 7;

/// All a report says, before it takes a form.
#[derive(Debug)]
struct Report {
    run: RunFolder,
    verdict: Verdict,
    watched: Watched,
    charts: Vec<Chart>,
    replies: Vec<VariantReplies>,
}

impl Report {
    fn read(run_dir: &Path) -> Result<Self, ReportError> {
        let mut run = RunFolder::read(run_dir)?;
        let verdict = Verdict::of(&run.variants);
        let watched = Watched::of(&run);
        let mut charts = watched.charts();
        charts.extend(figures::charts(&run.variants));
        let mut replies = Vec::new();
        let mut shown: Vec<&str> = Vec::new();
        for variant in &run.variants {
            // Of variants that differ in their seed only, the first is enough to read.
            if !shown.contains(&variant.group()) {
                replies.extend(replies::of(variant, &mut run.gaps));
                shown.push(variant.group());
            }
        }
        Ok(Self { run, verdict, watched, charts, replies })
    }

    /// Whether the verdict's table, a column for each group, fits a page.
    fn fits_columns(&self) -> bool {
        self.verdict.groups.len() <= MOST_COLUMNS
    }

    /// What the status of the run means for the reader; nothing where it is done.
    fn status_notice(&self) -> Option<String> {
        let status = run_folder::text(&self.run.info, "status")?;
        let (what, so) = match status {
            "done" => return None,
            "running" => ("still goes on", "the last numbers are not final"),
            "failed" => ("failed", "the numbers end where it did"),
            "interrupted" => ("was interrupted", "the numbers end where it was"),
            other => (other, "the numbers may not be final"),
        };
        Some(format!("This run {what}: {so}."))
    }
}

fn io_error(path: &Path, source: io::Error) -> ReportError {
    ReportError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_synthetic_experiment_gives_a_whole_report() {
        let dir = tempfile::tempdir().unwrap();
        // Lets a person look at the report of the tests: TALLOW_REPORT_DIR=folder cargo test.
        let kept = std::env::var_os("TALLOW_REPORT_DIR").map(PathBuf::from);
        let dir = kept.as_deref().unwrap_or(dir.path());
        synthetic_run::write_emergence(dir);
        let paths = write(dir).unwrap();

        let html = fs::read_to_string(&paths.html).unwrap();
        assert!(html.contains("Does RL on the final answer alone"));
        assert!(html.contains("Before RL") || html.contains("before RL"));
        assert!(html.contains("RL amplified a skill"));
        assert!(html.matches("<svg").count() >= 10);
        assert!(!html.contains("{{"));
        let markdown = fs::read_to_string(&paths.markdown).unwrap();
        for plot in &paths.plots {
            let name = plot.file_name().unwrap().to_string_lossy().into_owned();
            assert!(markdown.contains(&format!("report_plots/{name}")), "{name}");
            assert!(fs::read(plot).unwrap().starts_with(b"\x89PNG"));
        }
        let mut left = fs::read_dir(dir).unwrap().flatten();
        assert!(!left.any(|entry| entry.path().extension().is_some_and(|end| end == "partial")));
    }

    #[test]
    fn text_of_the_model_cannot_become_markup() {
        let dir = tempfile::tempdir().unwrap();
        synthetic_run::write_emergence(dir.path());
        let html = fs::read_to_string(write(dir.path()).unwrap().html).unwrap();
        let hostile = synthetic_run::HOSTILE_REPLY;
        assert!(!html.contains(hostile));
        assert!(html.contains("&lt;img src=x onerror="), "the hostile reply is shown, escaped");
        assert_eq!(html.matches("<script").count(), 1, "only the page's own script");
    }

    #[test]
    fn a_watched_part_has_its_table_and_plots() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("run.json"), r#"{"name":"p","status":"done"}"#).unwrap();
        let config = r#"
[[runs.run.stage]]
name = "rl"
verifier = { name = "rubric", parts = [{ name = "exact" }, { name = "format", weight = 0.0 }] }
"#;
        fs::write(dir.path().join("config.resolved.toml"), config).unwrap();
        let rows = (1..50).map(|step| {
            let paid = f64::from(step);
            format!(
                "{{\"step\":{step},\"stage\":\"rl\",\"rollout/reward_mean\":{paid},\
                 \"part/format\":{},\"learner/reference_kl_nats\":{paid},\
                 \"rollout/reply_tokens_mean\":2.0}}\n",
                -(paid - 20.0).powi(2)
            )
        });
        fs::write(dir.path().join("metrics.jsonl"), rows.collect::<String>()).unwrap();
        let paths = write(dir.path()).unwrap();
        let html = fs::read_to_string(paths.html).unwrap();
        assert!(
            html.contains("<th>format, peak</th>") && html.contains("<td>20</td><td>40.00</td>")
        );
        assert!(html.contains("id=\"paid_and_watched\"") && html.contains("id=\"watched_by_kl\""));
        let markdown = fs::read_to_string(paths.markdown).unwrap();
        assert!(markdown.contains("| p | ") && markdown.contains("report_plots/watched_by_kl.png"));
    }

    #[test]
    fn a_run_of_pretraining_only_reports_without_rl() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("run.json"), r#"{"name":"p","status":"running"}"#).unwrap();
        let rows = (1..50).map(|step| {
            format!("{{\"step\":{step},\"stage\":\"pretrain\",\"train/loss_nats\":{}}}\n", 3.0)
        });
        fs::write(dir.path().join("metrics.jsonl"), rows.collect::<String>()).unwrap();
        let html = fs::read_to_string(write(dir.path()).unwrap().html).unwrap();
        assert!(html.contains("still goes on"));
        assert!(html.contains("No evaluation"));
    }

    #[test]
    fn many_variants_with_seeds_have_panels_and_stand_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..9)
            .flat_map(|variant| (1..4).map(move |seed| format!("v{variant}/seed_{seed}")))
            .collect();
        let info = serde_json::json!({"name": "many", "status": "done", "variants": names});
        fs::write(dir.path().join("run.json"), info.to_string()).unwrap();
        for (nth, name) in names.iter().enumerate() {
            let folder = dir.path().join("variants").join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("run.json"), "{}").unwrap();
            let row = |step: u64| {
                let accuracy = 0.2 + 0.01 * (nth as u64 * step) as f64 / 4.0;
                let row = serde_json::json!({"step": step, "stage": "rl",
                    "eval/accuracy": accuracy, "rollout/accuracy": accuracy});
                format!("{row}\n")
            };
            fs::write(folder.join("metrics.jsonl"), [0, 5, 10].map(row).concat()).unwrap();
        }
        let paths = write(dir.path()).unwrap();
        let html = fs::read_to_string(&paths.html).unwrap();
        let (best, worst) = (html.find("<td>v8</td>").unwrap(), html.find("<td>v0</td>").unwrap());
        assert!(best < worst, "the best stands first");
        assert!(html.contains("id=\"accuracy\" class=\"wide\""));
        assert!(html.contains("means over seeds"));
        assert!(html.contains("<polygon"), "bands are drawn");
        let markdown = fs::read_to_string(&paths.markdown).unwrap();
        assert!(markdown.contains("| v8 | 3 | "), "{markdown}");
    }
}
