//! report.md: the report for a repository page, with PNG plots beside it.

use super::{Report, replies::Rollout, run_folder::text, standings};

/// Characters shown of a prompt with its replies.
const REPLY_CHARS: usize = 1200;

pub(super) fn markdown(report: &Report) -> String {
    let (run, verdict) = (&report.run, &report.verdict);
    let mut blocks = vec![format!("# {}", inline(run.name()))];
    blocks.extend(text(&run.info, "question").map(|question| format!("*{}*", inline(question))));
    let notices = report.status_notice().into_iter().chain(run.gaps.iter().cloned());
    blocks.extend(notices.map(|notice| format!("> {}", inline(&notice))));

    blocks.push("## Before and after RL".to_owned());
    let (header, rows) = standings::table(&run.variants);
    let standings = !rows.is_empty();
    if standings {
        let row = |cells: &[String]| {
            let cells: Vec<_> = cells.iter().map(|cell| inline(cell)).collect();
            format!("| {} |", cells.join(" | "))
        };
        let mut table = vec![row(&header), "| --- ".repeat(header.len()) + "|"];
        table.extend(rows.iter().map(|cells| row(cells)));
        blocks.push(table.join("\n"));
        blocks.push(inline(standings::NOTE));
    }
    let (header, rows) = verdict.table();
    if !rows.is_empty() && (report.fits_columns() || !standings) {
        let row = |first: &str, cells: &[String]| {
            let cells: Vec<_> = cells.iter().map(|cell| inline(cell)).collect();
            format!("| {} | {} |", inline(first), cells.join(" | "))
        };
        let mut table =
            vec![row("before → after", &header), "| --- ".repeat(header.len() + 1) + "|"];
        table.extend(rows.iter().map(|(quantity, cells)| row(quantity, cells)));
        blocks.push(table.join("\n"));
    }
    if let Some((header, rows)) = report.watched.table() {
        let row = |cells: &[String]| {
            let cells: Vec<_> = cells.iter().map(|cell| inline(cell)).collect();
            format!("| {} |", cells.join(" | "))
        };
        let mut table = vec![row(&header), "| --- ".repeat(header.len()) + "|"];
        table.extend(rows.iter().map(|cells| row(cells)));
        blocks.push(table.join("\n"));
        blocks.push(inline(report.watched.note()));
    }
    blocks.push("## What RL did and did not teach".to_owned());
    for (group, sentences) in &verdict.findings {
        blocks.push(format!("**{}.** {}", inline(group), inline(&sentences.join(" "))));
    }
    blocks.push(inline(&verdict.caveats.join(" ")));

    blocks.push("## Plots".to_owned());
    for chart in &report.charts {
        let title = inline(&chart.title);
        blocks.push(format!("![{title}](report_plots/{}.png)", chart.slug));
        blocks.push(inline(&chart.caption));
    }

    blocks.push("## Sampled replies".to_owned());
    blocks.push("The first right and wrong reply of each step shown, not picked.".to_owned());
    for variant in &report.replies {
        for step in &variant.steps {
            let (name, stage) = (inline(&variant.variant), inline(&step.stage));
            blocks.push(format!("### {name}, {stage}, step {}", step.step));
            let right = step.rollouts.iter().find(|rollout| rollout.is_right());
            let wrong = step.rollouts.iter().find(|rollout| !rollout.is_right());
            blocks.extend(right.into_iter().chain(wrong).flat_map(sample));
        }
    }

    blocks.push("## The run".to_owned());
    let facts = run.facts().into_iter();
    let facts = facts.map(|(name, value)| format!("- {}: {}", inline(&name), inline(&value)));
    blocks.push(facts.collect::<Vec<_>>().join("\n"));
    blocks.join("\n\n") + "\n"
}

fn sample(rollout: &Rollout) -> [String; 2] {
    let outcome = rollout.outcome.as_deref().unwrap_or("unscored");
    let reward = rollout.reward.map_or(String::new(), |reward| format!(", reward {reward:.2}"));
    let tokens = rollout.reply_tokens.map_or(String::new(), |tokens| format!(", {tokens} tokens"));
    let turns = rollout.turns.iter().map(|turn| turn.text.as_str());
    let text: String = rollout.prompt.as_deref().into_iter().chain(turns).collect();
    [inline(&format!("{outcome}{reward}{tokens}:")), fenced(&text)]
}

/// A code block whose fence the text cannot close.
fn fenced(text: &str) -> String {
    let mut shown: String = text.chars().take(REPLY_CHARS).collect();
    if text.chars().count() > REPLY_CHARS {
        shown.push('…');
    }
    let shown: String =
        shown.chars().filter(|char| !char.is_control() || matches!(char, '\n' | '\t')).collect();
    let longest = shown.split(|char| char != '`').map(str::len).max().unwrap_or_default();
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}text\n{}\n{fence}", shown.trim_end_matches('\n'))
}

/// Text as itself within a line: no markup, no table cells, no HTML.
fn inline(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 8);
    for char in text.chars() {
        match char {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' => escaped.extend(['\\', char]),
            '<' => escaped.push_str("&lt;"),
            '&' => escaped.push_str("&amp;"),
            char if char.is_control() => escaped.push(' '),
            char => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_cannot_close_its_fence() {
        assert!(fenced("a ```` b").starts_with("`````text\n"));
    }

    #[test]
    fn inline_text_is_not_markup() {
        assert_eq!(inline("<a|b>_c_\n"), "&lt;a\\|b>\\_c\\_ ");
    }
}
