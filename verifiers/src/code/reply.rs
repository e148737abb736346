//! Where in a reply the program stands.

/// The program in `reply`, or `None` if there is no fenced block of Python.
///
/// A block opens with three or more backticks or tildes, perhaps indented, and closes with at least
/// as many of the same. The last closed block counts that is marked `python`, `python3` or `py`;
/// failing that, the last closed one without a mark; failing that, one that was never closed, for
/// a reply may be cut off behind its program. Blocks in other languages never count, and what
/// looks like a fence inside a block of longer fences is part of that block.
pub(super) fn program(reply: &str) -> Option<String> {
    let mut best: Option<(Rank, String)> = None;
    let mut lines = reply.lines();
    while let Some(line) = lines.next() {
        let Some(fence) = Fence::opened_by(line) else { continue };
        let mut body = String::new();
        let mut closed = false;
        for line in lines.by_ref() {
            if fence.closed_by(line) {
                closed = true;
                break;
            }
            body.push_str(fence.outdented(line));
            body.push('\n');
        }
        let rank = match (closed, fence.language) {
            (_, Language::Other) => continue,
            (true, Language::Python) => Rank::Marked,
            (true, Language::Unmarked) => Rank::Unmarked,
            (false, _) => Rank::Unclosed,
        };
        if best.as_ref().is_none_or(|(best, _)| rank >= *best) {
            best = Some((rank, body));
        }
    }
    best.map(|(_, body)| body)
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Unclosed,
    Unmarked,
    Marked,
}

#[derive(Clone, Copy)]
enum Language {
    Python,
    Unmarked,
    Other,
}

struct Fence {
    mark: char,
    length: usize,
    indent: usize,
    language: Language,
}

impl Fence {
    fn opened_by(line: &str) -> Option<Self> {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        let mark = text.chars().next().filter(|mark| matches!(mark, '`' | '~'))?;
        let length = text.chars().take_while(|it| *it == mark).count();
        let rest = text[length..].trim();
        // Code in backticks within a line is not a block.
        if length < 3 || (mark == '`' && rest.contains('`')) {
            return None;
        }
        let word = rest.split(|it: char| !it.is_alphanumeric()).next().unwrap_or("");
        let language = match word.to_lowercase().as_str() {
            "" => Language::Unmarked,
            "python" | "python3" | "py" => Language::Python,
            _ => Language::Other,
        };
        Some(Self { mark, length, indent, language })
    }

    fn closed_by(&self, line: &str) -> bool {
        let text = line.trim();
        text.len() >= self.length && text.chars().all(|it| it == self.mark)
    }

    /// A line without the white space that the opening fence also has.
    fn outdented<'a>(&self, line: &'a str) -> &'a str {
        let spaces = line.bytes().take(self.indent).take_while(u8::is_ascii_whitespace).count();
        &line[spaces..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_the_best_block() {
        for (reply, wanted) in [
            ("x = 1", None),
            ("`x = 1`", None),
            ("```x = 1```", None),
            ("```python\nx = 1\n```", Some("x = 1\n")),
            ("a\n~~~py\nx = 1\n~~~\nb", Some("x = 1\n")),
            ("```python\nx = 1\n```\nor\n```python\nx = 2\n```", Some("x = 2\n")),
            ("```python\nx = 1\n```\nprints\n```\n1\n```", Some("x = 1\n")),
            ("```\nx = 1\n```\nrun\n```bash\npython x.py\n```", Some("x = 1\n")),
            ("```bash\npython x.py\n```", None),
            ("```python\nx = 1\n```\nthen\n```python\nx =", Some("x = 1\n")),
            ("so\n```python\nx = 1\ny = 2", Some("x = 1\ny = 2\n")),
            ("````python\ns = '''\n```\n'''\n````", Some("s = '''\n```\n'''\n")),
            ("1. do\n   ```python\n   if x:\n       y\n   ```", Some("if x:\n    y\n")),
            ("```Python title=\"a\"\r\nx = 1\r\n```\r\n", Some("x = 1\n")),
            ("```python\n```", Some("")),
            ("", None),
        ] {
            assert_eq!(program(reply).as_deref(), wanted, "{reply:?}");
        }
    }
}
