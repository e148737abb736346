//! Where in a reply the answer stands.
//!
//! First that applies:
//! 1. the last run of `\boxed{...}` (or `\fbox`): neighbours that only `,`, `and`, `or` or math
//!    delimiters part are one list, an earlier box by itself is dropped; a last box that is never
//!    closed means that there is no answer, never that an earlier one counts;
//! 2. inside the last `<answer>...</answer>`;
//! 3. after the last `####`, `final answer is`, `answer is`, `answer:` or, at the start of a line, `A:`;
//! 4. the whole reply, if it has no prose;
//! 5. the last math: `$...$`, `$$...$$`, `\(...\)`, `\[...\]` or a display environment;
//! 6. the last number, fraction or percentage.
//!
//! A reply that thinks aloud in `<think>...</think>` is read after the last `</think>` only. Each
//! step walks the text once with a counter for braces; there are no regular expressions, so no
//! reply can make them backtrack.

use std::borrow::Cow;

/// Places that may be searched, and how.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// Boxes come before all else.
    pub boxes: bool,
    /// Only a box counts.
    pub require_box: bool,
    /// Only a box, tag or anchor counts.
    pub require_anchor: bool,
    /// Math spans are searched.
    pub math: bool,
    /// Bare numbers are searched.
    pub numbers: bool,
}

/// A piece of the reply that is taken to be the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// What would stand in the box; several boxes are joined by commas.
    pub answer: Cow<'a, str>,
    /// Where it stood.
    pub place: Place,
}

/// Where an answer stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the last box or run of boxes.
    Box,
    /// In a tag or after an anchor.
    Anchor,
    /// The reply is nothing but the answer.
    Whole,
    /// The last math of the reply.
    Math,
    /// The last number of the reply.
    Number,
}

/// Why a reply has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The last box is never closed.
    OpenBox,
    /// There is nothing to take.
    Nothing,
}

/// Finds the answer of a reply; see the head of this file.
pub fn extract<'a>(reply: &'a str, search: &Search) -> Result<Found<'a>, Missing> {
    let text = reply.rsplit_once("</think>").map_or(reply, |(_, rest)| rest);
    if search.boxes
        && let Some(answer) = boxes(text)?
    {
        return Ok(Found { answer, place: Place::Box });
    }
    if search.require_box {
        return Err(Missing::Nothing);
    }
    if let Some(answer) = anchored(text, search) {
        return Ok(Found { answer: Cow::Borrowed(answer), place: Place::Anchor });
    }
    if search.require_anchor {
        return Err(Missing::Nothing);
    }
    if is_bare(text) && (search.math || !text.contains('$')) {
        return Ok(Found { answer: Cow::Borrowed(text.trim()), place: Place::Whole });
    }
    let math = if search.math { maths(text).last() } else { None };
    let number = if search.numbers { last_number(text) } else { None };
    let place = |it: &str| it.as_ptr() as usize;
    let (answer, place) = match (math, number) {
        // A percentage in the prose after the last math says what the math was for.
        (Some(math), Some(number)) if number.ends_with('%') && place(number) > place(math) => {
            (number, Place::Number)
        }
        (Some(math), _) => (math, Place::Math),
        (None, Some(number)) => (number, Place::Number),
        (None, None) => return Err(Missing::Nothing),
    };
    Ok(Found { answer: Cow::Borrowed(answer), place })
}

/// The last run of boxes: `Ok(None)` if there is no box at all.
fn boxes(text: &str) -> Result<Option<Cow<'_, str>>, Missing> {
    let (mut runs, read) = box_runs(text);
    read?;
    Ok(runs.pop().map(joined))
}

/// A run of boxes as one answer.
pub(crate) fn joined<'a>(mut run: Vec<&'a str>) -> Cow<'a, str> {
    run.dedup_by(|a, b| a.trim() == b.trim());
    match run.as_slice() {
        [only] => Cow::Borrowed(only),
        several => Cow::Owned(several.join(", ")),
    }
}

/// All runs of boxes in order, none of them empty, and what is wrong with what follows them.
pub(crate) fn box_runs(text: &str) -> (Vec<Vec<&str>>, Result<(), Missing>) {
    let mut runs: Vec<Vec<&str>> = Vec::new();
    let mut run_end = 0;
    let mut at = 0;
    while let Some((start, after)) = next_box(text, at) {
        let rest = &text[after..];
        let inner = rest.trim_start();
        let open = after + (rest.len() - inner.len());
        let (content, end) = if inner.starts_with('{') {
            let Some(close) = closing_brace(text, open) else {
                return (runs, Err(Missing::OpenBox));
            };
            (&text[open + 1..close], close + 1)
        } else {
            // `\boxed 7`: one word, as a person would read it.
            let end = inner
                .find(|it: char| it.is_whitespace() || it == '$' || it == '}')
                .unwrap_or(inner.len());
            if end == 0 {
                // Only a name without anything to hold.
                at = after;
                if next_box(text, at).is_none() && runs.is_empty() {
                    return (runs, Err(Missing::Nothing));
                }
                continue;
            }
            (&inner[..end], open + end)
        };
        match runs.last_mut() {
            Some(run) if is_connector(&text[run_end..start]) => run.push(content),
            _ => runs.push(vec![content]),
        }
        run_end = end;
        at = end;
    }
    (runs, Ok(()))
}

/// The next `\boxed` or `\fbox`: where it begins and where its name ends.
fn next_box(text: &str, from: usize) -> Option<(usize, usize)> {
    let mut at = from;
    while let Some(slash) = text[at..].find('\\') {
        let start = at + slash;
        for name in ["\\boxed", "\\fbox"] {
            if text[start..].starts_with(name) {
                return Some((start, start + name.len()));
            }
        }
        at = start + 1;
    }
    None
}

/// The brace that closes the one at `open`; escaped braces do not count.
fn closing_brace(text: &str, open: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut depth = 0_usize;
    let mut at = open;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// Whether the text between two boxes makes them one list.
fn is_connector(text: &str) -> bool {
    // Longer than any list mark: two answers, not one.
    if text.len() > 80 {
        return false;
    }
    // Two displays, one below the other, are two statements; two boxes side by side are a list.
    let mut apart = text.contains('\n');
    let mut joined = false;
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let Some(first) = rest.chars().next() else { return joined || !apart };
        const MARKS: [&str; 19] = [
            "\\text{and}",
            "\\text{or}",
            "\\text{ and }",
            "\\text{ or }",
            "\\text{, and }",
            "\\text{, or }",
            "\\mbox{ and }",
            "\\mbox{ or }",
            "\\qquad",
            "\\quad",
            "\\(",
            "\\)",
            "\\[",
            "\\]",
            "\\,",
            "\\;",
            "\\ ",
            "and ",
            "or ",
        ];
        if let Some(after) = MARKS.iter().find_map(|mark| rest.strip_prefix(mark)) {
            let mark = &rest[..rest.len() - after.len()];
            apart |= matches!(mark, "\\(" | "\\)" | "\\[" | "\\]");
            joined |= mark.contains("and") || mark.contains("or");
            rest = after;
        } else if matches!(first, ',' | ';' | '$' | '&') {
            apart |= first == '$';
            joined |= matches!(first, ',' | ';');
            rest = &rest[1..];
        } else if first.is_ascii_alphabetic() {
            // `y_2 = `, and nothing else in letters.
            let Some((name, after)) = rest.split_once('=') else { return false };
            let name = name.trim();
            let simple = name.len() == 1
                || (name[1..].starts_with('_')
                    && name[2..].chars().all(|it| it.is_ascii_alphanumeric() || "{}".contains(it)));
            if !simple {
                return false;
            }
            rest = after;
        } else {
            return false;
        }
    }
}

/// Bytes after an anchor in which its answer must begin.
const SENTENCE: usize = 2000;

/// The answer in a tag or after the last anchor.
fn anchored<'a>(text: &'a str, search: &Search) -> Option<&'a str> {
    if let Some((_, after)) = text.rsplit_once("<answer>") {
        let inside = after.split_once("</answer>").map_or(after, |(inside, _)| inside);
        return Some(inside.trim());
    }
    if let Some((_, after)) = text.rsplit_once("####") {
        return Some(line(after));
    }
    const ANCHORS: [&str; 5] =
        ["final answer is", "final answer:", "final answer**", "answer is", "answer:"];
    let lower = text.to_ascii_lowercase();
    // `final answer: the final answer is` has two anchors: the later one stands nearer.
    let anchor = ANCHORS
        .iter()
        .filter_map(|anchor| lower.rfind(anchor).map(|at| at + anchor.len()))
        .max()
        .or_else(|| {
            let at = if text.starts_with("A:") { Some(0) } else { None };
            text.rfind("\nA:").map(|it| it + 1).or(at).map(|it| it + 2)
        })?;
    let rest = &text[anchor..];
    let stop = ["I hope it is", "<|"].iter().filter_map(|mark| rest.find(mark)).min();
    let mut end = stop.unwrap_or(rest.len()).min(SENTENCE);
    while !rest.is_char_boundary(end) {
        end -= 1;
    }
    let sentence = &rest[..end];
    // What stands right after the anchor, or after a later `is` or `=` of the same sentence.
    let mut tail = sentence;
    loop {
        if let Some(answer) = direct(tail, search) {
            return Some(answer);
        }
        let next = [" is ", " are ", " be ", " = ", ": "]
            .iter()
            .filter_map(|mark| tail.find(mark).map(|at| at + mark.len()))
            .min();
        let Some(next) = next else { break };
        tail = &tail[next..];
        if tail.trim().is_empty() {
            break;
        }
    }
    last_in(sentence, search)
}

/// The last math of a sentence, or its last number.
fn last_in<'a>(sentence: &'a str, search: &Search) -> Option<&'a str> {
    let math = if search.math { maths(sentence).last() } else { None };
    math.or_else(|| if search.numbers { last_number(sentence) } else { None })
}

/// An answer that begins here: math, a number, or a short word to the end of the line.
fn direct<'a>(text: &'a str, search: &Search) -> Option<&'a str> {
    let text = text.trim_start_matches(|it: char| it.is_whitespace() || "*:_".contains(it));
    if search.math && starts_math(text) {
        return maths(text).next();
    }
    let line = line(text);
    let line = line.trim_end_matches(['*', '_', '.']);
    if is_bare(line) && !line.is_empty() {
        return Some(line);
    }
    let first = text.chars().next()?;
    if first.is_ascii_digit() || "-+.$\\(".contains(first) {
        return first_number(text);
    }
    // A word such as `yes`, or a letter such as `B`.
    let word = line.strip_suffix('.').unwrap_or(line);
    let short = !word.is_empty() && !word.contains(' ') && word.len() <= 24;
    short.then_some(word)
}

fn starts_math(text: &str) -> bool {
    (text.starts_with('$') && !text[1..].starts_with(|it: char| it.is_ascii_digit()))
        || text.starts_with("\\(")
        || text.starts_with("\\[")
        || (text.starts_with('$') && maths(text).next().is_some_and(|it| it.len() < 200))
}

/// The first line that is not blank.
fn line(text: &str) -> &str {
    text.lines().map(str::trim).find(|it| !it.is_empty()).unwrap_or("")
}

/// Whether the text is an answer and nothing else: no words but those of lists, units and
/// functions.
fn is_bare(text: &str) -> bool {
    let text = text.trim();
    if text.is_empty() || text.len() > 4096 {
        return false;
    }
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut words = 0;
    let mut digits = false;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte == b'\\' {
            // Commands are math, and `\$` is no delimiter. `\(` and `\[` are for the search.
            if matches!(bytes.get(at + 1), Some(b'(' | b'[')) {
                return false;
            }
            at += 1;
            let start = at;
            while bytes.get(at).is_some_and(u8::is_ascii_alphabetic) {
                at += 1;
            }
            if matches!(&text[start..at], "text" | "mbox" | "mathrm" | "textbf" | "operatorname")
                && bytes.get(at) == Some(&b'{')
            {
                match closing_brace(text, at) {
                    Some(close) => at = close + 1,
                    None => return false,
                }
            }
            if at == start {
                at += 1;
            }
            continue;
        }
        if byte.is_ascii_alphabetic() {
            let start = at;
            while bytes.get(at).is_some_and(u8::is_ascii_alphabetic) {
                at += 1;
            }
            let word = &text[start..at];
            if word.len() > 1 && !super::token::is_math_word(word) {
                words += 1;
            }
            continue;
        }
        if !text.is_char_boundary(at) || !byte.is_ascii() {
            at += 1;
            continue;
        }
        if byte == b'$' && at > 0 && !text.trim_end().ends_with('$') {
            return false;
        }
        if byte == b'\n' && bytes.get(at + 1) == Some(&b'\n') {
            return false;
        }
        digits |= byte.is_ascii_digit();
        at += 1;
    }
    words == 0 && (digits || text.len() < 200) && text.matches('$').count() <= 4
}

/// The math of a text, in order: what stands between delimiters.
fn maths(text: &str) -> impl Iterator<Item = &str> {
    let mut at = 0;
    // Kinds of brackets of which no more closes: looking again each time would be quadratic.
    let mut closed = [false; 2];
    std::iter::from_fn(move || {
        let bytes = text.as_bytes();
        while at < bytes.len() {
            match bytes[at] {
                b'\\' => {
                    let (kind, close) = match bytes.get(at + 1) {
                        Some(b'(') => (0, "\\)"),
                        Some(b'[') => (1, "\\]"),
                        _ => {
                            at += 2;
                            continue;
                        }
                    };
                    let start = at + 2;
                    let found = if closed[kind] { None } else { text[start..].find(close) };
                    let Some(length) = found else {
                        closed[kind] = true;
                        at = start;
                        continue;
                    };
                    at = start + length + 2;
                    return Some(&text[start..start + length]);
                }
                b'$' => {
                    let display = bytes.get(at + 1) == Some(&b'$');
                    let start = at + 1 + usize::from(display);
                    let Some(length) = closing_dollar(&text[start..]) else {
                        at = start;
                        continue;
                    };
                    let inside = &text[start..start + length];
                    at = start + length + 1 + usize::from(display);
                    // A single dollar at the end of a line is money.
                    let money = !display && inside.trim_start_matches(' ').starts_with('\n');
                    if !inside.trim().is_empty() && !money {
                        return Some(inside);
                    }
                }
                _ => at += 1,
            }
        }
        None
    })
}

/// The next `$` that is not escaped, unless a blank line comes first.
fn closing_dollar(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'$' => return Some(at),
            b'\n' if bytes.get(at + 1) == Some(&b'\n') => return None,
            _ => {}
        }
        at += 1;
    }
    None
}

/// The last number of a text: digits with their sign, currency, fraction and percent sign.
fn last_number(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let mut end = bytes.len();
    loop {
        // Backwards over what is no digit, then over the number itself.
        while end > 0 && !bytes[end - 1].is_ascii_digit() {
            end -= 1;
        }
        if end == 0 {
            return None;
        }
        let mut start = end;
        while start > 0
            && (bytes[start - 1].is_ascii_digit() || matches!(bytes[start - 1], b'.' | b',' | b'/'))
        {
            start -= 1;
        }
        while !bytes[start].is_ascii_digit() && bytes[start] != b'.' {
            start += 1;
        }
        let before = start.checked_sub(1).map(|it| bytes[it]);
        let script =
            before == Some(b'^') || text[..start].ends_with("^{") || text[..start].ends_with("_{");
        if script || before.is_some_and(|it| it.is_ascii_alphabetic() || it == b'_') {
            end = start;
            continue;
        }
        let tail = &text[end..];
        let word = tail.split(|it: char| !it.is_ascii_alphabetic()).next().unwrap_or("");
        let unit = matches!(word, "m" | "g" | "s" | "h" | "L") || super::token::is_unit(word);
        if !word.is_empty() && !unit {
            end = start;
            continue;
        }
        let percent = ["%", "\\%", " \\%", " %"].iter().find(|mark| tail.starts_with(**mark));
        let stop = end + percent.map_or(0, |mark| mark.len());
        // A sign counts if it stands alone or at a currency sign: `3-4` ends in 4.
        let mut sign = start;
        if sign > 0 && bytes[sign - 1] == b'$' {
            sign -= 1;
        }
        if sign > 0 && bytes[sign - 1] == b'\\' {
            sign -= 1;
        }
        let has_sign = sign > 0
            && bytes[sign - 1] == b'-'
            && (sign == 1
                || !matches!(bytes[sign - 2], b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b')'));
        let from = if has_sign { sign - 1 } else { start };
        return Some(&text[from..stop]);
    }
}

/// The number that begins a text, up to a space that no further digit follows.
fn first_number(text: &str) -> Option<&str> {
    let end = text
        .char_indices()
        .find(|(_, it)| {
            !(it.is_ascii_digit() || ",./-+$%\\^_{}()*!".contains(*it) || it.is_ascii_alphabetic())
        })
        .map_or(text.len(), |(at, _)| at);
    let head = text[..end].trim_end_matches([',', '.', '*', '!']);
    if is_bare(head) { Some(head) } else { last_number(&text[..end]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Search = Search {
        boxes: true,
        require_box: false,
        require_anchor: false,
        math: true,
        numbers: true,
    };

    #[test]
    fn the_answer_is_found_where_people_put_it() {
        let table = [
            ("so \\boxed{4}. Then \\boxed{5}.", "5"),
            ("\\boxed{1} and \\boxed{-2}", "1, -2"),
            ("\\boxed{4} \\boxed{4}", "4"),
            ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
            ("\\boxed{\\}}", "\\}"),
            ("\\boxed 7", "7"),
            ("$\\boxed 7$.", "7"),
            ("<think>\\boxed{3}</think> It is 5 or so: \\boxed{6}", "6"),
            ("<answer>7</answer>", "7"),
            ("Answer: 7", "7"),
            ("**Answer:** 7", "7"),
            ("The answer is 7.", "7"),
            ("Final answer: $18$ dollars", "18"),
            ("so far\n#### 1,234\nbye", "1,234"),
            ("thus 112 km - 45 km\nA: 67", "67"),
            ("We find that $x \\lt 3$.", "x \\lt 3"),
            ("it increases by 100%.", "100%"),
            ("it was -3 then 4,000.", "4,000"),
            ("the number is not 10 which is 1,000.99€", "1,000.99"),
            ("10/9", "10/9"),
            ("Final Answer: The final answer is $28 \\%$. I hope it is correct.", "28 \\%"),
            ("Final Answer: The most points of $f(x)$ is 19. <|im_start|>user", "19"),
        ];
        for (reply, expected) in table {
            let found = extract(reply, &ALL).map(|it| it.answer.trim().to_owned());
            assert_eq!(found.as_deref(), Ok(expected), "{reply}");
        }
        assert_eq!(extract("\\boxed{1} \\boxed{2", &ALL), Err(Missing::OpenBox));
        assert_eq!(extract("AZYUK2A", &ALL), Err(Missing::Nothing));
        assert_eq!(extract("no idea", &ALL), Err(Missing::Nothing));
    }
}
