//! Answers that are words: names, yes and no, letters of choices, times of day.
//!
//! Two texts are the same if they are the same letters after fonts, spaces, case, a final dot and
//! enclosing brackets were taken off; several between commas are compared as a set. A letter is
//! chosen by `B`, `(B)`, `\text{B}`, `B.` and `B. 42`. A time is minutes since midnight.

/// The letters that count.
pub fn normal(text: &str) -> String {
    let mut letters = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix('\\') {
            let name = after.split(|it: char| !it.is_ascii_alphabetic()).next().unwrap_or("");
            rest = &after[name.len()..];
            match name {
                // `\,`, `\ ` and `\!` move things; other escapes are what they escape.
                "" => {
                    let Some(mark) = rest.chars().next() else { break };
                    rest = &rest[mark.len_utf8()..];
                    if !matches!(
                        mark,
                        ',' | ';' | ':' | '!' | ' ' | '\n' | '$' | '(' | ')' | '[' | ']'
                    ) {
                        letters.push(mark);
                    }
                }
                "text" | "textbf" | "textit" | "textrm" | "textsf" | "texttt" | "mbox" | "hbox"
                | "mathrm" | "mathbf" | "mathit" | "mathsf" | "operatorname" | "emph" | "left"
                | "right" | "quad" | "qquad" | "boldsymbol" | "displaystyle" | "underline" => {}
                _ => {
                    letters.push('\\');
                    letters.push_str(name);
                }
            }
            continue;
        }
        rest = &rest[first.len_utf8()..];
        if !matches!(first, '{' | '}' | '$' | '*' | '"') && !first.is_whitespace() {
            letters.extend(first.to_lowercase());
        }
    }
    let mut trimmed = letters.as_str();
    loop {
        let before = trimmed;
        trimmed = trimmed.trim_end_matches(['.', ',', ';', ':', '!']);
        if let Some(inner) = trimmed.strip_prefix('(').and_then(|it| it.strip_suffix(')'))
            && !inner.contains(['(', ')'])
        {
            trimmed = inner;
        }
        if trimmed.len() == before.len() {
            break;
        }
    }
    trimmed.to_owned()
}

/// Whether two texts say the same.
pub fn same(gold: &str, answer: &str) -> bool {
    let (left, right) = (normal(gold), normal(answer));
    if left.is_empty() {
        return false;
    }
    if left == right {
        return true;
    }
    if let Some(letter) = choice(&left) {
        return chooses(answer, letter);
    }
    if !left.contains(',') || !right.contains(',') {
        return false;
    }
    let parts = |it: &str| -> Vec<String> {
        let mut parts: Vec<String> = it
            .split(',')
            .map(|part| part.strip_prefix("and").unwrap_or(part).to_owned())
            .filter(|part| !part.is_empty())
            .collect();
        parts.sort();
        parts.dedup();
        parts
    };
    parts(&left) == parts(&right)
}

/// The letter if a text is one that choices are marked with.
pub fn choice(normal: &str) -> Option<char> {
    let mut letters = normal.chars();
    let letter = letters.next().filter(|it| matches!(it, 'a'..='j'))?;
    letters.next().is_none().then_some(letter)
}

/// The letter and the rest of a gold answer such as `C. x = 42` or `(C) x = 42`.
pub fn marked(gold: &str) -> Option<(char, &str)> {
    let text = gold.trim();
    let (letter, rest) = match text.strip_prefix('(') {
        Some(inner) => (inner.chars().next()?, inner.get(1..)?.strip_prefix(')')?),
        None => (text.chars().next()?, text.get(1..)?.strip_prefix(['.', ')', ':'])?),
    };
    let rest = rest.trim();
    (matches!(letter, 'A'..='E') && !rest.is_empty()).then_some((letter, rest))
}

/// Whether an answer picks a letter: `B. 42`, `(B) 42`, `B: because`.
fn chooses(answer: &str, letter: char) -> bool {
    let text = answer.trim_start_matches(|it: char| it.is_whitespace() || "${*".contains(it));
    let text = ["\\text{", "\\textbf{", "\\mathrm{", "\\mathbf{"]
        .iter()
        .find_map(|it| text.strip_prefix(it))
        .unwrap_or(text);
    let (text, bracket) = match text.strip_prefix('(') {
        Some(inner) => (inner, true),
        None => (text, false),
    };
    let mut letters = text.chars();
    // Upper case only: `a. 5` begins a list, `B. 5` marks a choice.
    if letters.next() != Some(letter.to_ascii_uppercase()) {
        return false;
    }
    let mut rest = letters.as_str();
    while let Some(inner) = rest.strip_prefix('}') {
        rest = inner;
    }
    let marked = if bracket { rest.starts_with(')') } else { rest.starts_with(['.', ')', ':']) };
    // `B. C. D.` picks more than one.
    let more = rest
        .as_bytes()
        .windows(2)
        .skip(1)
        .any(|pair| matches!(pair[0], b'A'..=b'J') && matches!(pair[1], b'.' | b')' | b':'));
    marked && !more
}

/// Minutes since midnight, seconds, and whether morning or afternoon was said.
pub fn time(text: &str) -> Option<(u32, u32, bool)> {
    let text = normal(text).replace('.', "");
    let (clock, half) = match text.strip_suffix("am").map(|it| (it, 0)) {
        Some((clock, half)) => (clock, Some(half)),
        None => match text.strip_suffix("pm") {
            Some(clock) => (clock, Some(12)),
            None => (text.as_str(), None),
        },
    };
    let mut parts = clock.split(':');
    let mut number = |digits: std::ops::RangeInclusive<usize>| -> Option<u32> {
        let part = parts.next()?;
        let plain = digits.contains(&part.len()) && part.bytes().all(|it| it.is_ascii_digit());
        plain.then(|| part.parse().ok())?
    };
    let mut hour = number(1..=2)?;
    let minute = number(2..=2)?;
    let seconds = if clock.matches(':').count() == 2 { number(2..=2)? } else { 0 };
    if clock.matches(':').count() > 2 || hour > 24 || minute > 59 || seconds > 59 {
        return None;
    }
    if let Some(half) = half {
        if hour > 12 {
            return None;
        }
        hour = hour % 12 + half;
    }
    Some((hour * 60 + minute, seconds, half.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_choices() {
        let table = [
            ("\\text{Even}", "even", true),
            ("\\text{odd}", "\\text{oddd}", false),
            ("\\text{(B)}", "B", true),
            ("B", "B. 42", true),
            ("B", "(B) 42", true),
            ("B", "\\text{A or B}", false),
            ("B", "A, B, C, D", false),
            ("B", "B. C. D.", false),
            ("\\text{C,E}", "\\text{e, c}", true),
            ("A", "А", false),
            ("\\text{no solution}", "no solution.", true),
        ];
        for (gold, answer, expected) in table {
            assert_eq!(same(gold, answer), expected, "{gold} | {answer}");
        }
        assert_eq!(time("08:34 \\text{P.M.}"), Some((20 * 60 + 34, 0, true)));
        assert_eq!(time("20:34:00"), Some((20 * 60 + 34, 0, false)));
        assert_eq!(time("7:5"), None);
    }
}
