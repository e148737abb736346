//! report.html: one page without a network, readable in light and dark.
//!
//! Everything that comes from the run passes [`escaped`]. Should that ever fail, the page's content
//! policy still lets no script run but its own: the nonce is a hash over the content, which text
//! within the content cannot foresee.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::{
    Report, ReportError,
    replies::{Rollout, Turn},
    standings,
};

const TEMPLATE: &str = include_str!("template.html");

/// Tokens shown of one turn, head and tail; the middle of longer ones is left out.
const HEAD_TOKENS: usize = 600;
const TAIL_TOKENS: usize = 100;

/// Characters shown of a text without tokens, such as a prompt.
const TEXT_CHARS: usize = 4000;

pub(super) fn html(report: &Report) -> Result<String, ReportError> {
    let run = &report.run;
    let mut notices = String::new();
    for notice in report.status_notice().iter().chain(&run.gaps) {
        put(&mut notices, format_args!("<p class=\"notice\">{}</p>\n", escaped(notice)));
    }
    let question = super::run_folder::text(&run.info, "question")
        .map(|question| format!("<p class=\"question\">{}</p>", escaped(question)));
    let config = run.config.as_ref().map(|config| {
        format!(
            "<details><summary>Resolved configuration</summary><pre>{}</pre></details>",
            escaped(config)
        )
    });
    let mut facts = String::new();
    for (name, value) in run.facts() {
        let (name, value) = (escaped(&name), escaped(&value));
        put(&mut facts, format_args!("<dt>{name}</dt><dd>{value}</dd>\n"));
    }
    let mut charts = String::new();
    for chart in &report.charts {
        put(
            &mut charts,
            format_args!(
                "<figure id=\"{}\"{}>{}<figcaption>{}</figcaption></figure>\n",
                escaped(&chart.slug),
                if chart.has_panels() { " class=\"wide\"" } else { "" },
                chart.svg()?.replacen(
                    "<svg ",
                    &format!("<svg role=\"img\" aria-label=\"{}\" ", escaped(&chart.title)),
                    1
                ),
                escaped(&chart.caption)
            ),
        );
    }
    let parts = [
        ("title", escaped(run.name())),
        ("question", question.unwrap_or_default()),
        ("notices", notices),
        ("table", standings_table(report) + &table(report) + &watched(report)),
        ("findings", findings(report)),
        ("charts", charts),
        ("replies", replies(report)),
        ("facts", facts),
        ("config", config.unwrap_or_default()),
    ];
    let mut digest = Sha256::new();
    parts.iter().for_each(|(_, part)| digest.update(part.as_bytes()));
    let nonce: String =
        digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let mut parts = parts.to_vec();
    parts.push(("nonce", nonce));
    Ok(filled(TEMPLATE, &parts))
}

/// `template` with each `{{name}}` replaced. One pass, so that braces in a part stay as they are.
fn filled(template: &str, parts: &[(&str, String)]) -> String {
    let mut pieces = template.split("{{");
    let mut page = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (name, rest) = piece.split_once("}}").expect("the template closes its braces");
        let part = parts.iter().find(|(part, _)| *part == name);
        page.push_str(&part.expect("the template names known parts").1);
        page.push_str(rest);
    }
    page
}

fn standings_table(report: &Report) -> String {
    let (header, rows) = standings::table(&report.run.variants);
    if rows.is_empty() {
        return String::new();
    }
    let row = |cells: &[String], tag: &str| {
        let cells = cells.iter().map(|it| format!("<{tag}>{}</{tag}>", escaped(it)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let body: String = rows.iter().map(|cells| row(cells, "td")).collect();
    format!(
        "<div class=\"scroll\"><table><thead>{}</thead><tbody>\n{body}</tbody></table></div>\n\
         <p class=\"note\">{}</p>\n",
        row(&header, "th"),
        escaped(standings::NOTE)
    )
}

fn table(report: &Report) -> String {
    let (header, rows) = report.verdict.table();
    let standings = !standings::table(&report.run.variants).1.is_empty();
    if rows.is_empty() || (standings && !report.fits_columns()) {
        return String::new();
    }
    let mut html =
        "<div class=\"scroll\"><table><thead><tr><th>before RL → after RL</th>".to_owned();
    header.iter().for_each(|name| put(&mut html, format_args!("<th>{}</th>", escaped(name))));
    html.push_str("</tr></thead><tbody>\n");
    for (quantity, cells) in rows {
        put(&mut html, format_args!("<tr><th>{}</th>", escaped(&quantity)));
        for cell in cells {
            // Intervals are secondary: smaller, on their own line.
            let cell = match cell.split_once(" → ") {
                Some((was, is)) if was.contains('[') || is.contains('[') => {
                    let part = |text: &str| {
                        let (value, interval) = text.split_once(' ').unwrap_or((text, ""));
                        (escaped(value), escaped(interval))
                    };
                    let ((was, was_in), (is, is_in)) = (part(was), part(is));
                    format!("{was} → <b>{is}</b><small>{was_in} → {is_in}</small>")
                }
                Some((was, is)) => format!("{} → <b>{}</b>", escaped(was), escaped(is)),
                None => escaped(&cell),
            };
            put(&mut html, format_args!("<td>{cell}</td>"));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
    html
}

/// What was paid beside what was watched.
fn watched(report: &Report) -> String {
    let Some((header, rows)) = report.watched.table() else { return String::new() };
    let mut html = "<div class=\"scroll\"><table><thead><tr>".to_owned();
    header.iter().for_each(|name| put(&mut html, format_args!("<th>{}</th>", escaped(name))));
    html.push_str("</tr></thead><tbody>\n");
    for cells in rows {
        html.push_str("<tr>");
        for (nth, cell) in cells.iter().enumerate() {
            let (tag, cell) = (if nth == 0 { "th" } else { "td" }, escaped(cell));
            // The spread is secondary: smaller, on its own line.
            let cell = match cell.split_once(" ± ") {
                Some((mean, spread)) => format!("<b>{mean}</b><small>± {spread}</small>"),
                None => cell,
            };
            put(&mut html, format_args!("<{tag}>{cell}</{tag}>"));
        }
        html.push_str("</tr>\n");
    }
    let note = escaped(report.watched.note());
    put(&mut html, format_args!("</tbody></table></div>\n<p class=\"note\">{note}</p>\n"));
    html
}

fn findings(report: &Report) -> String {
    let mut html = String::new();
    for (group, sentences) in &report.verdict.findings {
        if report.verdict.findings.len() > 1 {
            put(&mut html, format_args!("<h3>{}</h3>", escaped(group)));
        }
        let note = report.verdict.groups.iter().find(|other| other.name == *group);
        if let Some(note) = note.and_then(|group| group.note.as_ref()) {
            put(&mut html, format_args!("<p class=\"note\">{}</p>", escaped(note)));
        }
        put(&mut html, format_args!("<p>{}</p>\n", escaped(&sentences.join(" "))));
    }
    put(
        &mut html,
        format_args!("<p class=\"note\">{}</p>", escaped(&report.verdict.caveats.join(" "))),
    );
    html
}

fn replies(report: &Report) -> String {
    let mut html = String::new();
    for (nth, variant) in report.replies.iter().enumerate() {
        let open = if nth == 0 { " open" } else { "" };
        let name = escaped(&variant.variant);
        put(
            &mut html,
            format_args!("<details class=\"variant\"{open}><summary>{name}</summary>\n"),
        );
        for step in &variant.steps {
            let (stage, number) = (escaped(&step.stage), step.step);
            put(&mut html, format_args!("<h3>{stage}, step {number}</h3><div class=\"cards\">\n"));
            step.rollouts.iter().for_each(|rollout| html.push_str(&card(rollout)));
            html.push_str("</div>\n");
        }
        html.push_str("</details>\n");
    }
    if html.is_empty() {
        html.push_str("<p class=\"note\">No samples were recorded.</p>");
    }
    html
}

fn card(rollout: &Rollout) -> String {
    let (class, mark) = if rollout.is_right() { ("right", "✓") } else { ("wrong", "✗") };
    let mut facts = vec![format!("{mark} {}", rollout.outcome.as_deref().unwrap_or(class))];
    facts.extend(rollout.stage.clone());
    facts.extend(rollout.reward.map(|reward| format!("reward {reward:.2}")));
    facts.extend(rollout.reply_tokens.map(|tokens| format!("{tokens} tokens")));
    facts.extend(rollout.stop.clone());
    facts.extend(rollout.reason.clone());
    let mut html =
        format!("<article class=\"{class}\"><header>{}</header>", escaped(&facts.join(" · ")));
    if let Some(prompt) = &rollout.prompt {
        put(&mut html, format_args!("<div class=\"prompt\">{}</div>", text_block(prompt)));
    }
    // Advantages are coloured relative to the largest of the rollout.
    let advantages =
        rollout.turns.iter().flat_map(|turn| turn.advantages.iter().flatten().flatten());
    let largest = advantages.fold(0.0f64, |largest, advantage| largest.max(advantage.abs()));
    for turn in &rollout.turns {
        if turn.role != "assistant" {
            put(&mut html, format_args!("<div class=\"role\">{}</div>", escaped(&turn.role)));
        }
        html.push_str(&turn_block(turn, largest));
    }
    html.push_str("</article>\n");
    html
}

fn turn_block(turn: &Turn, largest_advantage: f64) -> String {
    let Some(tokens) = turn.token_texts.as_ref().filter(|tokens| !tokens.is_empty()) else {
        return format!("<div class=\"turn\">{}</div>", text_block(&turn.text));
    };
    let number = |numbers: &Option<Vec<Option<f64>>>, at: usize| {
        numbers.as_ref().and_then(|numbers| *numbers.get(at)?).filter(|number| number.is_finite())
    };
    let left_out = HEAD_TOKENS..tokens.len().saturating_sub(TAIL_TOKENS);
    let mut html = "<div class=\"turn\">".to_owned();
    for (at, token) in tokens.iter().enumerate() {
        if left_out.contains(&at) {
            if at == left_out.start {
                put(&mut html, format_args!("<i>… {} tokens left out …</i>", left_out.len()));
            }
            continue;
        }
        let (mut style, mut data) = (String::new(), String::new());
        if let Some(probability) = number(&turn.logprobs, at).map(f64::exp) {
            put(&mut style, format_args!("--p:{:.3};", probability.min(1.0)));
            put(&mut data, format_args!(" data-p=\"{probability:.4}\""));
        }
        if let Some(advantage) = number(&turn.advantages, at) {
            let relative =
                if largest_advantage > 0.0 { advantage / largest_advantage } else { 0.0 };
            put(&mut style, format_args!("--a:{relative:.3}"));
            put(&mut data, format_args!(" data-a=\"{advantage:+.3}\""));
        }
        put(&mut html, format_args!("<span style=\"{style}\"{data}>{}</span>", visible(token)));
    }
    html.push_str("</div>");
    html
}

fn text_block(text: &str) -> String {
    let chars = text.chars().count();
    let shown: String = text.chars().take(TEXT_CHARS).collect();
    let cut = if chars > TEXT_CHARS { "<i>… cut …</i>" } else { "" };
    format!("{}{cut}", visible(&shown))
}

/// Escaped text whose line ends and invisible characters can be seen.
fn visible(text: &str) -> String {
    let mut html = String::with_capacity(text.len() + 8);
    for char in text.chars() {
        match char {
            '\n' => html.push_str("⏎\n"),
            '\t' => html.push_str("⇥\t"),
            // The zero-width, direction and byte-order marks, with which text can pose as another.
            '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}' => {
                put(&mut html, format_args!("‹U+{:04X}›", u32::from(char)));
            }
            char if char.is_control() => {
                put(&mut html, format_args!("‹U+{:04X}›", u32::from(char)));
            }
            char => html.push_str(&escaped(char.encode_utf8(&mut [0; 4]))),
        }
    }
    html
}

/// `text` for the content of an element and for quoted attributes.
fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len() + 8);
    for char in text.chars() {
        match char {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            char => html.push(char),
        }
    }
    html
}

fn put(html: &mut String, text: std::fmt::Arguments<'_>) {
    html.write_fmt(text).expect("writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_in_a_part_are_not_filled_again() {
        let parts = [("a", "{{b}}".to_owned()), ("b", "secret".to_owned())];
        assert_eq!(filled("<{{a}}|{{b}}>", &parts), "<{{b}}|secret>");
    }

    #[test]
    fn invisible_characters_are_spelled_out() {
        assert_eq!(visible("a\u{202e}<b\0"), "a‹U+202E›&lt;b‹U+0000›");
    }

    #[test]
    fn long_turns_keep_head_and_tail() {
        let token_texts = Some((0..5000).map(|nth| format!("[{nth}]")).collect());
        let html = turn_block(&Turn { token_texts, ..Turn::default() }, 0.0);
        assert!(html.contains("[0]") && html.contains("[4999]") && !html.contains("[2500]"));
        assert!(html.contains("4300 tokens left out"));
    }

    #[test]
    fn short_lists_of_numbers_leave_tokens_without_colour() {
        let turn = Turn {
            token_texts: Some(vec!["a".to_owned(), "b".to_owned()]),
            logprobs: Some(vec![Some(0.0)]),
            ..Turn::default()
        };
        assert!(turn_block(&turn, 0.0).contains("<span style=\"\">b</span>"));
    }
}
