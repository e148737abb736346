//! All answers that a reply states, in order: whether it changed its mind on the way.
//!
//! A verifier judges the last answer only. What stands before it tells how a policy got there, and
//! is read here by the same rules (`math/extract.rs`), but nothing is judged.
//!
//! Without a mark of one's own, the first of these that the reply holds says what its answers are:
//! 1. `\boxed{...}` or `\fbox`; boxes that `,`, `and` or `or` join are one answer;
//! 2. `<answer>...</answer>`;
//! 3. what follows `answer is`, `answer:`, `final answer**`, `####` or `A:` at the start of a line.
//!
//! Thoughts inside `<think>` count: it is there that a policy changes its mind. Two answers are the
//! same where their letters are, upper or lower, white space and dollar signs aside: `1/2` and `0.5`
//! are two.

use std::borrow::Cow;

use crate::math::extract::{Search, box_runs, extract, joined};

/// Anchors of answers; those of `math/extract.rs` that are longer end in one of these.
const ANCHORS: [&str; 4] = ["answer is", "answer:", "final answer**", "####"];

/// Bytes between two anchors that say the same thing twice: `Answer: the answer is`.
const SAME_ANCHOR: usize = 16;

/// The answers a reply states, in order. `mark` is what they follow, or an opening tag such as
/// `<guess>` that they stand in; without one, see the head of this file.
pub fn stated_answers<'a>(reply: &'a str, mark: Option<&str>) -> Vec<Cow<'a, str>> {
    if let Some(mark) = mark {
        return after_each(reply, mark);
    }
    let (runs, _) = box_runs(reply);
    if !runs.is_empty() {
        return runs.into_iter().map(joined).collect();
    }
    let tagged = after_each(reply, "<answer>");
    if !tagged.is_empty() {
        return tagged;
    }
    anchored(reply)
}

/// Whether an answer is followed by a different one.
pub fn changes_answer(answers: &[Cow<'_, str>]) -> bool {
    let same = |answer: &str| -> String {
        let answer = answer.trim_end_matches(|it: char| it.is_whitespace() || ".,;:*".contains(it));
        let told = answer.chars().filter(|it| !it.is_whitespace() && *it != '$');
        told.flat_map(char::to_lowercase).collect()
    };
    let forms: Vec<String> = answers.iter().map(|it| same(it)).collect();
    forms.windows(2).any(|pair| pair[0] != pair[1])
}

/// What follows each `mark`: to the closing tag where the mark is an opening one (an open one is
/// left out), else to the end of the line or clause, or to the next mark.
fn after_each<'a>(reply: &'a str, mark: &str) -> Vec<Cow<'a, str>> {
    if mark.is_empty() {
        return Vec::new();
    }
    let tag = mark.strip_prefix('<').and_then(|it| it.strip_suffix('>'));
    let closing = tag.map(|tag| format!("</{tag}>"));
    let answers = reply.split(mark).skip(1).filter_map(|rest| match &closing {
        Some(closing) => rest.split_once(closing.as_str()).map(|(inside, _)| inside.trim()),
        None => Some(clause(rest)),
    });
    answers.filter(|it| !it.is_empty()).map(Cow::Borrowed).collect()
}

/// The text to the end of the line, or to a stop, comma or semicolon that white space follows.
fn clause(text: &str) -> &str {
    let line = text.trim_start_matches([' ', '\t']).lines().next().unwrap_or("");
    let mut letters = line.char_indices().peekable();
    while let Some((at, letter)) = letters.next() {
        let ends = letters.peek().is_none_or(|(_, next)| next.is_whitespace());
        if matches!(letter, '.' | ',' | ';') && ends {
            return line[..at].trim();
        }
    }
    line.trim()
}

/// What stands after each anchor, as a verifier would take it if the reply ended there.
fn anchored(reply: &str) -> Vec<Cow<'_, str>> {
    let search = Search {
        boxes: false,
        require_box: false,
        require_anchor: true,
        math: true,
        numbers: true,
    };
    // Letters keep their places: only ASCII changes.
    let lower = reply.to_ascii_lowercase();
    let mut places: Vec<(usize, usize)> = Vec::new();
    for anchor in ANCHORS {
        places.extend(lower.match_indices(anchor).map(|(at, it)| (at, at + it.len())));
    }
    places.extend(reply.match_indices("\nA:").map(|(at, it)| (at + 1, at + it.len())));
    if reply.starts_with("A:") {
        places.push((0, 2));
    }
    places.sort_unstable();
    let mut answers = Vec::new();
    for (index, (start, end)) in places.iter().enumerate() {
        let next = places.get(index + 1).map_or(reply.len(), |it| it.0);
        if next < *end
            || (next < reply.len() && next - end < SAME_ANCHOR && !lower[*end..next].contains('\n'))
        {
            continue;
        }
        // A verifier would read behind the thoughts only.
        let piece = reply[*start..next].split("</think>").next().unwrap_or_default();
        answers.extend(extract(piece, &search).ok().map(|it| it.answer));
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reply: &str, mark: Option<&str>, expected: &[&str], changes: bool) {
        let answers = stated_answers(reply, mark);
        assert_eq!(answers, expected, "{reply}");
        assert_eq!(changes_answer(&answers), changes, "{reply}");
    }

    #[test]
    fn boxes_come_first_and_lists_of_them_are_one_answer() {
        check(r"The answer is 4: \boxed{4}.", None, &["4"], false);
        check(r"\boxed{4}. Wait, no: \boxed{5}", None, &["4", "5"], true);
        check(r"\boxed{4} <think>hm</think> so \boxed{ 4 }.", None, &["4", " 4 "], false);
        check(r"\boxed{1} and \boxed{2}", None, &["1, 2"], false);
        check(r"\boxed{4}, then \boxed{5", None, &["4"], false);
        check(r"\boxed", None, &[], false);
    }

    #[test]
    fn tags_and_anchors_are_read_where_there_is_no_box() {
        let tags = "<answer>3</answer> no <answer>x</answer> and <answer>cut";
        check(tags, None, &["3", "x"], true);
        check("The answer is 12 apples. Check: the answer is 13.", None, &["12", "13"], true);
        check("<think>the answer is 7</think>\nFinal answer: $7$", None, &["7", "7"], false);
        check("Answer: the final answer is 9", None, &["9"], false);
        check("A: 4\nQ: really?\nA: 5", None, &["4", "5"], true);
        check("12 + 3 = 15", None, &[], false);
        check("", None, &[], false);
    }

    #[test]
    fn a_mark_of_ones_own_ends_with_the_clause() {
        check("123=6, no, 123=7\n", Some("="), &["6", "7"], true);
        check("1+2=3\n1+2=3.", Some("="), &["3", "3"], false);
        check("=3.5=3.5.", Some("="), &["3.5", "3.5"], false);
        check("==", Some("="), &[], false);
        check("<guess>a</guess><guess>B</guess>", Some("<guess>"), &["a", "B"], true);
        check("anything", Some(""), &[], false);
    }

    #[test]
    fn letters_of_any_length_are_cut_between() {
        check("é the Answer İs: answer is ⅓ é", None, &["⅓ é"], false);
        check("=é, é=ß", Some("="), &["é", "ß"], true);
    }
}
