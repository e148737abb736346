//! Text to tokens.
//!
//! ```text
//! token   := number | word | command | text | begin | end | symbol
//! number  := digits ('.' digits?)? exponent? | '.' digits exponent?
//! exponent:= [eE] [+-]? digits                (only right after a digit, and not before a letter)
//! word    := [A-Za-z]+                        split into letters by the parser unless it knows it
//! command := '\' [A-Za-z]+ | '\' any          spacing commands are dropped
//! text    := '\text' '{' ... '}'              and its kin: \mathrm, \textbf, \mbox, ...
//! begin   := '\begin' '{' name '}'            end := '\end' '{' name '}'
//! ```
//!
//! Lengths are bounded by [`MOST_TOKENS`]; nothing here calls itself.

use nom::{
    IResult, Parser,
    branch::alt,
    bytes::complete::{tag, take_while, take_while1},
    character::complete::{anychar, char, digit1, one_of},
    combinator::{not, opt, peek, recognize},
    sequence::{delimited, preceded},
};

/// Tokens that an answer may have.
pub const MOST_TOKENS: usize = 2048;

/// One token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    /// What it is.
    pub kind: Kind<'a>,
    /// Whether a space stands before it.
    pub spaced: bool,
}

/// Kinds of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// `3`, `.5`, `6.02e23`.
    Number(&'a str),
    /// Letters.
    Word(&'a str),
    /// A command without its backslash.
    Command(&'a str),
    /// The inside of `\text{...}`; the flag says whether the font names a symbol (`\mathrm`).
    Text(&'a str, bool),
    /// `\begin{...}`.
    Begin(&'a str),
    /// `\end{...}`.
    End(&'a str),
    /// Any other character.
    Symbol(char),
    /// `\\`: the next row.
    Row,
}

/// Why a text is not tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// More than [`MOST_TOKENS`].
    TooLong,
    /// A brace or environment name that is never closed.
    Open,
}

/// All tokens of a text.
pub fn tokens(text: &str) -> Result<Vec<Token<'_>>, Refused> {
    let mut tokens = Vec::with_capacity(text.len().min(MOST_TOKENS) / 2);
    let mut rest = text;
    let mut spaced = false;
    loop {
        let trimmed = rest.trim_start();
        spaced |= trimmed.len() < rest.len();
        rest = trimmed;
        if rest.is_empty() {
            return Ok(tokens);
        }
        let (after, kind) = token(rest).map_err(|_| Refused::Open)?;
        rest = after;
        let Some(kind) = kind else {
            spaced = true;
            continue;
        };
        if tokens.len() == MOST_TOKENS {
            return Err(Refused::TooLong);
        }
        tokens.push(Token { kind, spaced });
        spaced = false;
    }
}

/// One token, or `None` for what only moves things apart.
fn token(text: &str) -> IResult<&str, Option<Kind<'_>>> {
    alt((
        number.map(|it| Some(Kind::Number(it))),
        take_while1(|it: char| it.is_ascii_alphabetic()).map(|it| Some(Kind::Word(it))),
        backslash,
        anychar.map(|it| (it != '$' && it != '~').then_some(Kind::Symbol(it))),
    ))
    .parse(text)
}

fn number(text: &str) -> IResult<&str, &str> {
    let mantissa = alt((
        recognize((digit1, opt((char('.'), take_while(|it: char| it.is_ascii_digit()))))),
        recognize((char('.'), digit1)),
    ));
    let exponent = (
        one_of("eE"),
        opt(one_of("+-")),
        digit1,
        not(peek(take_while1(|it: char| it.is_ascii_alphabetic()))),
    );
    recognize((mantissa, opt(exponent))).parse(text)
}

fn backslash(text: &str) -> IResult<&str, Option<Kind<'_>>> {
    let (rest, _) = char('\\').parse(text)?;
    let (after, name) = take_while(|it: char| it.is_ascii_alphabetic()).parse(rest)?;
    if name.is_empty() {
        let Some(mark) = rest.chars().next() else { return Ok((rest, None)) };
        let after = &rest[mark.len_utf8()..];
        return Ok((
            after,
            match mark {
                ',' | ';' | ':' | '!' | ' ' | '>' | '(' | ')' | '[' | ']' | '\n' | '$' | '/' => {
                    None
                }
                '\\' => Some(Kind::Row),
                '{' => Some(Kind::Command("{")),
                '}' => Some(Kind::Command("}")),
                '|' => Some(Kind::Command("|")),
                other => Some(Kind::Symbol(other)),
            },
        ));
    }
    match name {
        // `\left.` and `\right.` are brackets that nobody sees.
        "left" | "right" | "mleft" | "mright" => {
            let (after, _) =
                opt(preceded(take_while(char::is_whitespace), char('.'))).parse(after)?;
            Ok((after, None))
        }
        "quad" | "qquad" | "displaystyle" | "textstyle" | "limits" | "nolimits" | "big" | "Big"
        | "bigg" | "Bigg" | "bigl" | "bigr" | "Bigl" | "Bigr" | "middle" | "hspace" | "hline"
        | "boldsymbol" | "mathbf" | "mathit" | "mathsf" | "bf" | "rm" | "it" | "ensuremath"
        | "enspace" | "thinspace" | "dollar" | "mathstrut" | "strut" | "vphantom"
        | "allowbreak" => Ok((after, None)),
        "text" | "textbf" | "textit" | "textrm" | "textsf" | "texttt" | "textnormal" | "mbox"
        | "mathrm" | "operatorname" | "emph" | "underline" | "hbox" => {
            let named = matches!(name, "mathrm" | "operatorname" | "textit" | "textrm");
            let star = opt(char('*'));
            let (after, _) = (star, take_while(char::is_whitespace)).parse(after)?;
            if !after.starts_with('{') {
                return Ok((after, None));
            }
            let mut depth = 0_usize;
            let mut close = None;
            for (at, byte) in after.bytes().enumerate() {
                match byte {
                    b'{' => depth += 1,
                    b'}' => {
                        depth -= 1;
                        if depth == 0 {
                            close = Some(at);
                            break;
                        }
                    }
                    _ => {}
                }
            }
            let Some(close) = close else {
                return Err(nom::Err::Failure(nom::error::Error::new(
                    after,
                    nom::error::ErrorKind::Char,
                )));
            };
            Ok((&after[close + 1..], Some(Kind::Text(&after[1..close], named))))
        }
        "begin" => name_in_braces(after).map(|(rest, name)| (rest, Some(Kind::Begin(name)))),
        "end" => name_in_braces(after).map(|(rest, name)| (rest, Some(Kind::End(name)))),
        _ => {
            // `\vertx` and `\lvertx` as TeX would never write them.
            for known in ["lvert", "rvert", "vert", "lgroup", "rgroup", "lbrace", "rbrace"] {
                if name.len() > known.len() && name.starts_with(known) {
                    return Ok((&rest[known.len()..], Some(Kind::Command(known))));
                }
            }
            Ok((after, Some(Kind::Command(name))))
        }
    }
}

fn name_in_braces(text: &str) -> IResult<&str, &str> {
    preceded(
        take_while(char::is_whitespace),
        delimited(tag("{"), take_while(|it| it != '}'), tag("}")),
    )
    .parse(text)
}

/// Whether a word of several letters has a meaning in math or joins a list.
pub fn is_math_word(word: &str) -> bool {
    matches!(word, "and" | "or" | "dx" | "dy" | "dt" | "infty" | "infinity" | "inf" | "oo" | "mod")
        || function(word).is_some()
        || is_greek(word)
        || is_unit(word)
}

/// A function by its name in LaTeX or in plain text.
pub fn function(name: &str) -> Option<super::tree::Function> {
    use super::tree::Function::*;
    Some(match name {
        "sin" => Sine,
        "cos" => Cosine,
        "tan" | "tg" => Tangent,
        "cot" | "ctg" => Cotangent,
        "sec" => Secant,
        "csc" | "cosec" => Cosecant,
        "arcsin" | "asin" => ArcSine,
        "arccos" | "acos" => ArcCosine,
        "arctan" | "atan" | "arctg" => ArcTangent,
        "sinh" => HyperbolicSine,
        "cosh" => HyperbolicCosine,
        "tanh" => HyperbolicTangent,
        "ln" => NaturalLogarithm,
        "log" | "lg" => Logarithm,
        "exp" => Exponential,
        "sqrt" => SquareRoot,
        "abs" => AbsoluteValue,
        "floor" => Floor,
        "ceil" | "ceiling" => Ceiling,
        "max" => Maximum,
        "min" => Minimum,
        "gcd" => GreatestDivisor,
        "lcm" => LeastMultiple,
        "det" => Determinant,
        _ => return None,
    })
}

/// Whether the word names a Greek letter.
pub fn is_greek(word: &str) -> bool {
    matches!(
        word,
        "alpha"
            | "beta"
            | "gamma"
            | "delta"
            | "epsilon"
            | "varepsilon"
            | "zeta"
            | "eta"
            | "theta"
            | "vartheta"
            | "iota"
            | "kappa"
            | "lambda"
            | "mu"
            | "nu"
            | "xi"
            | "pi"
            | "rho"
            | "sigma"
            | "tau"
            | "upsilon"
            | "phi"
            | "varphi"
            | "chi"
            | "psi"
            | "omega"
            | "Gamma"
            | "Delta"
            | "Theta"
            | "Lambda"
            | "Xi"
            | "Pi"
            | "Sigma"
            | "Phi"
            | "Psi"
            | "Omega"
    )
}

/// Whether the word, in the singular or plural, is a unit of measurement or a thing that problems
/// count. One-letter units are not here: `5m` may be a product.
pub fn is_unit(word: &str) -> bool {
    const UNITS: &[&str] = &[
        "acre",
        "am",
        "apple",
        "apples",
        "billion",
        "book",
        "box",
        "boxes",
        "bushel",
        "cent",
        "centimeter",
        "centimetre",
        "child",
        "children",
        "cm",
        "coin",
        "cube",
        "cubic",
        "cup",
        "day",
        "deg",
        "degree",
        "dollar",
        "dollars",
        "dozen",
        "euro",
        "euros",
        "feet",
        "foot",
        "ft",
        "gallon",
        "gram",
        "hour",
        "hr",
        "hrs",
        "in",
        "inch",
        "inches",
        "integer",
        "item",
        "kg",
        "kilogram",
        "kilometer",
        "kilometre",
        "km",
        "kmh",
        "lb",
        "lbs",
        "liter",
        "litre",
        "marble",
        "men",
        "meter",
        "metre",
        "mi",
        "mile",
        "miles",
        "min",
        "mins",
        "minute",
        "ml",
        "mm",
        "month",
        "mph",
        "number",
        "ounce",
        "oz",
        "page",
        "pencil",
        "people",
        "per",
        "percent",
        "person",
        "piece",
        "pint",
        "pm",
        "point",
        "pound",
        "quart",
        "quarter",
        "rad",
        "radian",
        "rupee",
        "sec",
        "second",
        "secs",
        "slice",
        "solution",
        "sq",
        "square",
        "student",
        "thousand",
        "time",
        "ton",
        "unit",
        "usd",
        "value",
        "way",
        "ways",
        "week",
        "women",
        "word",
        "yard",
        "yd",
        "year",
        "yuan",
    ];
    let has = |it: &str| UNITS.binary_search(&it).is_ok();
    let lower = word.to_ascii_lowercase();
    has(&lower) || lower.strip_suffix('s').is_some_and(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_exponents_only_where_they_are_whole() {
        let kinds = |text| -> Vec<Kind<'_>> {
            tokens(text).expect("tokens").into_iter().map(|it| it.kind).collect()
        };
        assert_eq!(kinds("6.02e23"), [Kind::Number("6.02e23")]);
        assert_eq!(kinds("12.5"), [Kind::Number("12.5")]);
        assert_eq!(kinds("13."), [Kind::Number("13.")]);
        assert_eq!(kinds("2ex"), [Kind::Number("2"), Kind::Word("ex")]);
        assert_eq!(kinds("\\left(.5\\right."), [Kind::Symbol('('), Kind::Number(".5")]);
        assert_eq!(kinds("5\\text{ cm}"), [Kind::Number("5"), Kind::Text(" cm", false)]);
        assert_eq!(tokens("\\text{a"), Err(Refused::Open));
        assert_eq!(tokens(&"x+".repeat(2000)), Err(Refused::TooLong));
    }

    #[test]
    fn the_units_are_sorted() {
        assert!(is_unit("cm") && is_unit("Dollars") && is_unit("inches") && !is_unit("xyz"));
        for unit in ["acre", "year", "yuan", "quart", "boxes", "hrs", "usd"] {
            assert!(is_unit(unit), "{unit}");
        }
    }
}
