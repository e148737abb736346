//! Unicode to the ASCII and LaTeX that the later stages read, by one fixed table.
//!
//! Folded: minus signs and dashes, full-width ASCII, super- and subscripts, vulgar fractions, Greek
//! letters, operators, no-break and narrow spaces. Dropped: zero-width characters. Not folded:
//! letters of other scripts that look like Latin ones (a Cyrillic А is not an A). Refused:
//! characters that change the direction of the text, since what a person reads is then not what
//! the checker reads.

use std::borrow::Cow;

/// The text after folding; borrowed when there was nothing to fold.
///
/// `None` if the text holds a bidirectional control.
pub fn fold(text: &str) -> Option<Cow<'_, str>> {
    if text.is_ascii() {
        return Some(Cow::Borrowed(text));
    }
    let mut folded = String::with_capacity(text.len() + 16);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\0'..='\x7f' => folded.push(letter),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => return None,
            '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{2064}' | '\u{feff}' | '\u{ad}' => {}
            '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{fe63}' => folded.push('-'),
            '\u{a0}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' => {
                folded.push(' ');
            }
            // Full-width forms stand at a fixed distance from ASCII.
            '\u{ff01}'..='\u{ff5e}' => {
                folded.push(char::from_u32(letter as u32 - 0xfee0).unwrap_or(letter));
            }
            '√' => {
                folded.push_str("\\sqrt");
                // `√2x` is the root of 2, and `\sqrt2x` would be that as well; `√12` is not.
                let mut digits = String::new();
                while let Some(digit) = letters.next_if(char::is_ascii_digit) {
                    digits.push(digit);
                }
                if !digits.is_empty() {
                    folded.push('{');
                    folded.push_str(&digits);
                    folded.push('}');
                }
            }
            _ => {
                if let Some(script) = superscript(letter) {
                    folded.push_str("^{");
                    folded.push(script);
                    while let Some(more) = letters.peek().copied().and_then(superscript) {
                        folded.push(more);
                        letters.next();
                    }
                    folded.push('}');
                } else if let Some(script) = subscript(letter) {
                    folded.push_str("_{");
                    folded.push(script);
                    while let Some(more) = letters.peek().copied().and_then(subscript) {
                        folded.push(more);
                        letters.next();
                    }
                    folded.push('}');
                } else if let Some(latex) = latex(letter) {
                    folded.push_str(latex);
                    // A command must not grow into the letter that follows it.
                    if latex.ends_with(|it: char| it.is_ascii_alphabetic()) {
                        folded.push(' ');
                    }
                } else {
                    folded.push(letter);
                }
            }
        }
    }
    Some(Cow::Owned(folded))
}

fn superscript(letter: char) -> Option<char> {
    Some(match letter {
        '⁰' => '0',
        '¹' => '1',
        '²' => '2',
        '³' => '3',
        '⁴' => '4',
        '⁵' => '5',
        '⁶' => '6',
        '⁷' => '7',
        '⁸' => '8',
        '⁹' => '9',
        '⁺' => '+',
        '⁻' => '-',
        'ⁿ' => 'n',
        'ˣ' => 'x',
        _ => return None,
    })
}

fn subscript(letter: char) -> Option<char> {
    Some(match letter {
        '₀'..='₉' => char::from(b'0' + (letter as u32 - '₀' as u32) as u8),
        'ₙ' => 'n',
        'ₓ' => 'x',
        _ => return None,
    })
}

fn latex(letter: char) -> Option<&'static str> {
    Some(match letter {
        '½' => "\\frac{1}{2}",
        '⅓' => "\\frac{1}{3}",
        '⅔' => "\\frac{2}{3}",
        '¼' => "\\frac{1}{4}",
        '¾' => "\\frac{3}{4}",
        '⅕' => "\\frac{1}{5}",
        '⅖' => "\\frac{2}{5}",
        '⅗' => "\\frac{3}{5}",
        '⅘' => "\\frac{4}{5}",
        '⅙' => "\\frac{1}{6}",
        '⅚' => "\\frac{5}{6}",
        '⅛' => "\\frac{1}{8}",
        '⅜' => "\\frac{3}{8}",
        '⅝' => "\\frac{5}{8}",
        '⅞' => "\\frac{7}{8}",
        'α' => "\\alpha",
        'β' => "\\beta",
        'γ' => "\\gamma",
        'δ' => "\\delta",
        'ε' | 'ϵ' => "\\epsilon",
        'ζ' => "\\zeta",
        'η' => "\\eta",
        'θ' | 'ϑ' => "\\theta",
        'ι' => "\\iota",
        'κ' => "\\kappa",
        'λ' => "\\lambda",
        'μ' | 'µ' => "\\mu",
        'ν' => "\\nu",
        'ξ' => "\\xi",
        'π' => "\\pi",
        'ρ' => "\\rho",
        'σ' => "\\sigma",
        'τ' => "\\tau",
        'φ' | 'ϕ' => "\\phi",
        'χ' => "\\chi",
        'ψ' => "\\psi",
        'ω' => "\\omega",
        'Γ' => "\\Gamma",
        'Δ' => "\\Delta",
        'Θ' => "\\Theta",
        'Λ' => "\\Lambda",
        'Σ' => "\\Sigma",
        'Φ' => "\\Phi",
        'Ω' => "\\Omega",
        '∞' => "\\infty",
        '≤' | '⩽' => "\\le",
        '≥' | '⩾' => "\\ge",
        '≠' => "\\ne",
        '≈' => "\\approx",
        '±' => "\\pm",
        '∓' => "\\mp",
        '×' | '✕' => "\\times",
        '÷' => "\\div",
        '·' | '⋅' | '∙' => "\\cdot",
        '°' | 'º' => "^\\circ",
        '∪' => "\\cup",
        '∩' => "\\cap",
        '∈' => "\\in",
        '∅' => "\\emptyset",
        '∖' => "\\setminus",
        'ℝ' => "\\mathbb{R}",
        'ℤ' => "\\mathbb{Z}",
        'ℚ' => "\\mathbb{Q}",
        'ℂ' => "\\mathbb{C}",
        'ℕ' => "\\mathbb{N}",
        '⌊' => "\\lfloor",
        '⌋' => "\\rfloor",
        '⌈' => "\\lceil",
        '⌉' => "\\rceil",
        '⟨' | '〈' => "\\langle",
        '⟩' | '〉' => "\\rangle",
        '∑' => "\\sum",
        '∏' => "\\prod",
        '∫' => "\\int",
        '…' | '⋯' => "\\ldots",
        '′' => "'",
        '\u{2044}' | '\u{2215}' => "/",
        '\u{2018}' | '\u{2019}' => "'",
        '\u{201c}' | '\u{201d}' => "\"",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::fold;

    #[test]
    fn known_characters_become_ascii_and_others_stay() {
        let table = [
            ("−7", "-7"),
            ("1\u{a0}000", "1 000"),
            ("７", "7"),
            ("√2", "\\sqrt{2}"),
            ("2π", "2\\pi "),
            ("x²³", "x^{23}"),
            ("90°", "90^\\circ "),
            ("1\u{200b}2", "12"),
            ("А", "А"),
        ];
        for (text, folded) in table {
            assert_eq!(fold(text).as_deref(), Some(folded), "{text}");
        }
        assert_eq!(fold("\u{202e}12"), None);
    }
}
