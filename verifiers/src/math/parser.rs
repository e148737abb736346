//! Tokens to a tree, by precedence.
//!
//! ```text
//! answer   := chain ((',' | ';' | 'and' | 'or') chain)*
//! chain    := sets (relation sets)*              relation := = != < <= > >= in
//! sets     := ratio (('cup' | 'cap' | 'setminus') ratio)*
//! ratio    := sum (':' sum)*
//! sum      := sign* product (('+' | '-' | 'pm') product)*
//! product  := factor (('*' | '/' | 'mod' | nothing) factor)*
//! factor   := '-'* postfix
//! postfix  := primary ('^' argument | '_' argument | '!' | '%' | degrees | unit)*
//! primary  := number | letter | '(' answer ')' | command arguments | environment | text
//! ```
//!
//! Readings that LaTeX leaves open: a whole number right before a fraction of whole numbers is a
//! mixed number; `a/bc` divides by the product `bc` if no space parts them; `\frac12` takes single
//! digits; `x^10` takes the whole number; `i` and `e` are the constants unless a sum binds them;
//! `f(x)` applies f, g and h and multiplies any other letter. The depth of calls is bounded by
//! [`DEEPEST`]; runs of signs are loops.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Zero};

use super::{
    fuel::{Exhausted, Fuel},
    token::{Kind, Refused, Token, function, is_greek, is_math_word, is_unit, tokens},
    tree::{Function, Id, Node, Relation, SetOperation, Tree},
};

/// Levels of brackets and arguments.
pub const DEEPEST: usize = 220;

/// Why a text is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unparsed {
    /// There is nothing in it.
    Empty,
    /// Something stands where it cannot.
    Unexpected,
    /// Too long, too deep or too large a number.
    Limit,
}

impl From<Exhausted> for Unparsed {
    fn from(_: Exhausted) -> Self {
        Self::Limit
    }
}

type Parsed<T> = Result<T, Unparsed>;

/// Parses a folded answer into `tree` and returns its root.
pub fn parse(text: &str, tree: &mut Tree, fuel: &mut Fuel) -> Parsed<Id> {
    fuel.spend(text.len() as u64)?;
    let joined = join_groups(text);
    let doubled = joined.contains("\\\\begin");
    let text = if doubled || (joined.contains("\\\\") && !joined.contains("\\begin")) {
        undouble(&joined, doubled)
    } else {
        joined
    };
    let found = tokens(&text).map_err(|refused| match refused {
        Refused::TooLong => Unparsed::Limit,
        Refused::Open => Unparsed::Unexpected,
    })?;
    let mut parser = Parser { tokens: arranged(found), at: 0, depth: 0, bars: 0, tree, fuel };
    if parser.tokens.is_empty() {
        return Err(Unparsed::Empty);
    }
    let root = parser.answer()?;
    if parser.at < parser.tokens.len() { Err(Unparsed::Unexpected) } else { Ok(root) }
}

/// `1,234` outside brackets, and `1{,}234` anywhere, without the marks between their groups.
fn join_groups(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut joined = String::with_capacity(text.len());
    let mut depth = 0_i32;
    let mut at = 0;
    let mut copied = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            b'0'..=b'9' => {
                let start = at;
                while bytes.get(at).is_some_and(u8::is_ascii_digit) {
                    at += 1;
                }
                let after_point = start > 0 && matches!(bytes[start - 1], b'.' | b'_' | b'^');
                if after_point || at - start > 3 || bytes[start] == b'0' {
                    continue;
                }
                while let Some(width) = super::plain::group_mark(&bytes[at..])
                    .or_else(|| (bytes.get(at) == Some(&b' ')).then_some(1))
                {
                    let digits = bytes[at + width..].iter().take_while(|it| it.is_ascii_digit());
                    let plain = bytes[at] == b',' && width == 1;
                    if digits.count() != 3 || (plain && depth > 0) {
                        break;
                    }
                    joined.push_str(&text[copied..at]);
                    copied = at + width;
                    at += width + 3;
                }
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    joined.push_str(&text[copied..]);
    joined
}

/// `\\frac` as `\frac`: answers that were escaped once too often.
fn undouble(text: &str, everywhere: bool) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\\\\") {
        plain.push_str(&rest[..at]);
        rest = &rest[at + 2..];
        if everywhere && let Some(after) = rest.strip_prefix("\\\\") {
            rest = after;
            plain.push_str("\\\\");
        } else if rest.starts_with(|it: char| it.is_ascii_alphabetic() || "{}|,".contains(it)) {
            plain.push('\\');
        } else {
            plain.push_str("\\\\");
        }
    }
    plain.push_str(rest);
    plain
}

/// Splits unknown words into letters and list words out of texts, cuts off `\approx ...` and
/// final punctuation.
fn arranged(found: Vec<Token<'_>>) -> Vec<Token<'_>> {
    let mut tokens: Vec<Token<'_>> = Vec::with_capacity(found.len());
    for token in found {
        match token.kind {
            Kind::Word(word) if word.len() > 1 && !is_math_word(word) => {
                for (at, _) in word.char_indices() {
                    let spaced = token.spaced && at == 0;
                    tokens.push(Token { kind: Kind::Word(&word[at..=at]), spaced });
                }
            }
            Kind::Text(text, false) => {
                let inner = text.trim();
                let inner = inner.strip_prefix(',').unwrap_or(inner).trim();
                let list_word = |it: &str| matches!(it, "and" | "or");
                if list_word(inner) {
                    tokens.push(Token { kind: Kind::Word("and"), spaced: true });
                } else if let Some((before, last)) = inner.rsplit_once(' ')
                    && list_word(last)
                {
                    tokens.push(Token { kind: Kind::Text(before, false), spaced: true });
                    tokens.push(Token { kind: Kind::Word("and"), spaced: true });
                } else if !inner.is_empty() {
                    tokens.push(Token { kind: Kind::Text(inner, false), ..token });
                }
            }
            Kind::Command("approx" | "simeq" | "sim" | "thickapprox") => {
                if !tokens.is_empty() {
                    break;
                }
            }
            _ => tokens.push(token),
        }
    }
    while let Some(Kind::Symbol('.' | ',' | ';' | '&') | Kind::Row | Kind::Symbol('"')) =
        tokens.last().map(|it| it.kind)
    {
        tokens.pop();
    }
    tokens
}

struct Parser<'a, 'b> {
    tokens: Vec<Token<'a>>,
    at: usize,
    depth: usize,
    /// Whether a `|` that was opened waits for its end.
    bars: usize,
    tree: &'b mut Tree,
    fuel: &'b mut Fuel,
}

impl<'a> Parser<'a, '_> {
    fn peek(&self) -> Option<Kind<'a>> {
        self.tokens.get(self.at).map(|it| it.kind)
    }

    fn peek_after(&self, ahead: usize) -> Option<Kind<'a>> {
        self.tokens.get(self.at + ahead).map(|it| it.kind)
    }

    fn next_is_spaced(&self) -> bool {
        self.tokens.get(self.at).is_some_and(|it| it.spaced)
    }

    fn take(&mut self, kind: Kind<'_>) -> bool {
        let here = self.peek() == Some(kind);
        self.at += usize::from(here);
        here
    }

    fn expect(&mut self, kind: Kind<'_>) -> Parsed<()> {
        if self.take(kind) { Ok(()) } else { Err(Unparsed::Unexpected) }
    }

    fn add(&mut self, node: Node) -> Parsed<Id> {
        self.fuel.spend(8)?;
        Ok(self.tree.add(node))
    }

    /// Runs `work` one level down.
    fn deeper<T>(&mut self, work: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == DEEPEST {
            return Err(Unparsed::Limit);
        }
        self.depth += 1;
        let bars = std::mem::take(&mut self.bars);
        let done = work(self);
        self.bars = bars;
        self.depth -= 1;
        done
    }

    // --- answer, chain, sets, ratio

    fn answer(&mut self) -> Parsed<Id> {
        let mut items = Vec::new();
        let start = self.at;
        loop {
            items.push(self.chain()?);
            if !self.separator() {
                break;
            }
            // `1, 2,` and `a, and b`.
            while self.separator() {}
            if self.at == self.tokens.len() || self.closes() {
                break;
            }
        }
        if items.len() == 1 {
            return Ok(items[0]);
        }
        let decimal = self.decimal_comma(start)?;
        self.add(Node::List(items, decimal))
    }

    /// The number that `2,5` is if its comma is a decimal point.
    fn decimal_comma(&mut self, start: usize) -> Parsed<Option<Id>> {
        let tokens = &self.tokens[start..self.at];
        let (sign, rest) = match tokens.split_first() {
            Some((first, rest)) if first.kind == Kind::Symbol('-') => (-1, rest),
            _ => (1, tokens),
        };
        let [whole, comma, part] = rest else { return Ok(None) };
        let (Kind::Number(whole), Kind::Symbol(','), Kind::Number(digits)) =
            (whole.kind, comma.kind, part.kind)
        else {
            return Ok(None);
        };
        if part.spaced || comma.spaced || !digits.bytes().all(|it| it.is_ascii_digit()) {
            return Ok(None);
        }
        let Ok(number) = number(&format!("{whole}.{digits}"), self.fuel) else { return Ok(None) };
        let signed = number * BigInt::from(sign);
        self.add(Node::Number(signed, true)).map(Some)
    }

    fn separator(&mut self) -> bool {
        let here = match self.peek() {
            Some(Kind::Symbol(',' | ';') | Kind::Word("and" | "or")) => true,
            Some(Kind::Command("land" | "lor" | "wedge" | "vee" | "colon")) => true,
            Some(Kind::Row) => self.depth == 0,
            _ => false,
        };
        self.at += usize::from(here);
        here
    }

    /// Whether a closing bracket stands here.
    fn closes(&self) -> bool {
        match self.peek() {
            Some(Kind::Symbol(')' | ']' | '}' | '&') | Kind::Row | Kind::End(_)) => true,
            Some(Kind::Command(name)) => closing(name),
            _ => false,
        }
    }

    fn chain(&mut self) -> Parsed<Id> {
        let first = self.sets()?;
        let mut relations = Vec::new();
        let mut sides = vec![first];
        while let Some(relation) = self.relation() {
            // `x = ` with nothing after it.
            relations.push(relation);
            sides.push(self.sets()?);
        }
        if relations.is_empty() { Ok(first) } else { self.add(Node::Chain(relations, sides)) }
    }

    fn relation(&mut self) -> Option<Relation> {
        // Alignment marks; in a matrix they part the columns.
        while self.depth == 0 && self.take(Kind::Symbol('&')) {}
        let relation = match self.peek()? {
            Kind::Symbol('=') | Kind::Command("equiv") => Relation::Equal,
            Kind::Symbol('<') if self.peek_after(1) == Some(Kind::Symbol('=')) => {
                self.at += 1;
                Relation::LessOrEqual
            }
            Kind::Symbol('>') if self.peek_after(1) == Some(Kind::Symbol('=')) => {
                self.at += 1;
                Relation::GreaterOrEqual
            }
            Kind::Symbol('<') | Kind::Command("lt") => Relation::Less,
            Kind::Symbol('>') | Kind::Command("gt") => Relation::Greater,
            Kind::Command("le" | "leq" | "leqslant" | "leqq") => Relation::LessOrEqual,
            Kind::Command("ge" | "geq" | "geqslant" | "geqq") => Relation::GreaterOrEqual,
            Kind::Command("ne" | "neq") => Relation::NotEqual,
            Kind::Command("in") => Relation::In,
            _ => return None,
        };
        self.at += 1;
        // `==`.
        if relation == Relation::Equal {
            self.take(Kind::Symbol('='));
        }
        while self.depth == 0 && self.take(Kind::Symbol('&')) {}
        Some(relation)
    }

    fn sets(&mut self) -> Parsed<Id> {
        let mut left = self.ratio()?;
        loop {
            let operation = match self.peek() {
                Some(Kind::Command("cup" | "bigcup")) => SetOperation::Union,
                Some(Kind::Command("cap" | "bigcap")) => SetOperation::Intersection,
                Some(Kind::Command("setminus" | "backslash" | "smallsetminus")) => {
                    SetOperation::Difference
                }
                // `(1,2) U (3,4)`.
                Some(Kind::Word("U")) if matches!(self.tree.get(left), Node::Tuple { .. }) => {
                    SetOperation::Union
                }
                _ => return Ok(left),
            };
            self.at += 1;
            let right = self.ratio()?;
            left = self.add(Node::Sets(operation, left, right))?;
        }
    }

    fn ratio(&mut self) -> Parsed<Id> {
        let first = self.sum()?;
        if self.peek() != Some(Kind::Symbol(':')) {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.take(Kind::Symbol(':')) {
            parts.push(self.sum()?);
        }
        match parts.as_slice() {
            [left, right] => self.add(Node::Quotient(*left, *right)),
            _ => self.add(Node::Tuple { open: ':', close: ':', items: parts }),
        }
    }

    // --- sum, product, factor

    fn sum(&mut self) -> Parsed<Id> {
        let mut terms = Vec::new();
        loop {
            let mut negative = false;
            let mut both = false;
            let mut signs = 0;
            loop {
                match self.peek() {
                    Some(Kind::Symbol('-')) => negative = !negative,
                    Some(Kind::Symbol('+')) => {}
                    Some(Kind::Command("pm" | "mp")) => both = true,
                    // `+-` in plain text is both signs only as `+/-`.
                    Some(Kind::Symbol('/')) if signs == 1 && !negative && terms.is_empty() => {
                        if self.peek_after(1) != Some(Kind::Symbol('-')) {
                            break;
                        }
                        self.at += 1;
                        both = true;
                    }
                    _ => break,
                }
                signs += 1;
                self.at += 1;
            }
            if signs == 0 && !terms.is_empty() {
                break;
            }
            // `-7 \mod 3` is the remainder of -7.
            let first = terms.is_empty();
            let mut term = self.product(first.then_some(&mut negative))?;
            if both {
                term = self.add(Node::PlusMinus(term))?;
            } else if negative {
                term = self.add(Node::Negative(term))?;
            }
            terms.push(term);
        }
        if terms.len() == 1 { Ok(terms[0]) } else { self.add(Node::Sum(terms)) }
    }

    /// A product; `sign` is the sign before it, which a remainder takes for itself.
    fn product(&mut self, sign: Option<&mut bool>) -> Parsed<Id> {
        let mut negative = sign;
        let mut factors = vec![self.mixed()?];
        loop {
            match self.peek() {
                Some(
                    Kind::Symbol('*' | '⋆')
                    | Kind::Command("cdot" | "times" | "ast" | "cdotp" | "star"),
                ) => {
                    self.at += 1;
                    // `**` is a power in programs.
                    if self.tokens[self.at - 1].kind == Kind::Symbol('*')
                        && self.take(Kind::Symbol('*'))
                    {
                        let exponent = self.factor()?;
                        let Some(base) = factors.pop() else { return Err(Unparsed::Unexpected) };
                        let power = self.add(Node::Power(base, exponent))?;
                        factors.push(power);
                        continue;
                    }
                    let factor = self.factor()?;
                    factors.push(factor);
                }
                Some(Kind::Symbol('/') | Kind::Command("div")) => {
                    self.at += 1;
                    let mut below = vec![self.factor()?];
                    while !self.next_is_spaced() && self.starts_factor() {
                        let factor = self.factor()?;
                        below.push(factor);
                    }
                    let below = self.joined(below)?;
                    let above = self.joined(std::mem::take(&mut factors))?;
                    factors.push(self.add(Node::Quotient(above, below))?);
                }
                Some(Kind::Command("mod" | "bmod") | Kind::Word("mod")) => {
                    self.at += 1;
                    let below = self.factor()?;
                    let mut above = self.joined(std::mem::take(&mut factors))?;
                    if let Some(sign) = negative.take()
                        && std::mem::take(sign)
                    {
                        above = self.add(Node::Negative(above))?;
                    }
                    let call = Node::Call(Function::Modulo, String::new(), vec![above, below]);
                    factors.push(self.add(call)?);
                }
                Some(Kind::Command("pmod")) => {
                    self.at += 1;
                    let below = self.argument()?;
                    let above = self.joined(std::mem::take(&mut factors))?;
                    let call = Node::Call(Function::Opaque, "mod".to_owned(), vec![above, below]);
                    factors.push(self.add(call)?);
                }
                _ if self.starts_factor() => {
                    let factor = self.factor()?;
                    factors.push(factor);
                }
                _ => break,
            }
        }
        self.joined(factors)
    }

    fn joined(&mut self, factors: Vec<Id>) -> Parsed<Id> {
        match factors.as_slice() {
            [only] => Ok(*only),
            _ => self.add(Node::Product(factors)),
        }
    }

    /// A factor, or the sum of a whole number and the fraction right after it.
    fn mixed(&mut self) -> Parsed<Id> {
        let whole =
            matches!(self.peek(), Some(Kind::Number(it)) if it.bytes().all(|b| b.is_ascii_digit()));
        if whole {
            let fraction = match self.peek_after(1) {
                Some(Kind::Command("frac" | "dfrac" | "tfrac" | "cfrac")) => true,
                Some(Kind::Number(above)) => {
                    self.tokens[self.at + 1].spaced
                        && above.bytes().all(|it| it.is_ascii_digit())
                        && self.peek_after(2) == Some(Kind::Symbol('/'))
                        && matches!(self.peek_after(3), Some(Kind::Number(_)))
                }
                _ => false,
            };
            if fraction {
                let number = self.primary()?;
                let part = if let Some(Kind::Number(above)) = self.peek() {
                    let Some(Kind::Number(below)) = self.peek_after(2) else {
                        return Err(Unparsed::Unexpected);
                    };
                    self.at += 3;
                    let above = self.number(above)?;
                    let below = self.number(below)?;
                    self.add(Node::Quotient(above, below))?
                } else {
                    self.primary()?
                };
                let is_whole = |it: Id| matches!(self.tree.get(it), Node::Number(value, false) if value.is_integer());
                let mixed = matches!(self.tree.get(part), Node::Quotient(a, b) if is_whole(*a) && is_whole(*b));
                let value = if mixed {
                    self.add(Node::Sum(vec![number, part]))?
                } else {
                    self.add(Node::Product(vec![number, part]))?
                };
                return self.postfix(value);
            }
        }
        self.factor()
    }

    fn factor(&mut self) -> Parsed<Id> {
        let mut negative = false;
        while let Some(Kind::Symbol(sign @ ('-' | '+'))) = self.peek() {
            negative ^= sign == '-';
            self.at += 1;
        }
        let base = self.primary()?;
        let factor = self.postfix(base)?;
        if negative { self.add(Node::Negative(factor)) } else { Ok(factor) }
    }

    /// Whether a factor without a sign begins here.
    fn starts_factor(&self) -> bool {
        match self.peek() {
            Some(Kind::Number(_) | Kind::Begin(_) | Kind::Text(..)) => true,
            Some(Kind::Word("and" | "or" | "mod")) => false,
            // `(1,2) U (3,4)`.
            Some(Kind::Word("U")) => !matches!(self.peek_after(1), Some(Kind::Symbol('(' | '['))),
            Some(Kind::Word(_)) => true,
            Some(Kind::Symbol(symbol)) => match symbol {
                '(' | '[' | '{' => true,
                '|' => self.bars == 0,
                other => !other.is_ascii(),
            },
            Some(Kind::Command("vert" | "|" | "Vert")) => self.bars == 0,
            Some(Kind::Command(name)) => !closing(name) && !operator(name),
            _ => false,
        }
    }

    fn postfix(&mut self, base: Id) -> Parsed<Id> {
        let mut value = base;
        loop {
            match self.peek() {
                Some(Kind::Symbol('^')) => {
                    self.at += 1;
                    if self.degree_sign() {
                        value = self.add(Node::Degrees(value))?;
                        continue;
                    }
                    let exponent = self.argument()?;
                    value = self.add(Node::Power(value, exponent))?;
                }
                Some(Kind::Symbol('_')) => {
                    self.at += 1;
                    value = self.subscript(value)?;
                }
                Some(Kind::Symbol('!')) => {
                    self.at += 1;
                    value =
                        self.add(Node::Call(Function::Factorial, String::new(), vec![value]))?;
                }
                Some(Kind::Symbol('%') | Kind::Word("percent" | "Percent")) => {
                    self.at += 1;
                    value = self.add(Node::Percent(value))?;
                }
                Some(Kind::Symbol('\'') | Kind::Command("prime")) => {
                    self.at += 1;
                    let Node::Symbol(name) = self.tree.get(value) else {
                        return Err(Unparsed::Unexpected);
                    };
                    let primed = format!("{name}'");
                    value = self.add(Node::Symbol(primed))?;
                }
                Some(Kind::Command("degree" | "textdegree")) => {
                    self.at += 1;
                    value = self.add(Node::Degrees(value))?;
                }
                Some(Kind::Text(text, _))
                    if text.trim() == "percent" || text.trim() == "\\%" || text.trim() == "%" =>
                {
                    self.at += 1;
                    value = self.add(Node::Percent(value))?;
                }
                Some(Kind::Text(text, named)) => {
                    // A unit counts nothing, but digits in it would be hidden answers.
                    if named && (function(text).is_some() || text.trim().len() == 1)
                        || text.bytes().any(|it| it.is_ascii_digit())
                    {
                        return Ok(value);
                    }
                    self.at += 1;
                    self.unit_power()?;
                }
                Some(Kind::Word(word)) if is_unit(word) && self.is_value(value) => {
                    // `\in`, `\min` and `\sec` are commands; the bare words are units here.
                    if function(word).is_some()
                        && matches!(
                            self.peek_after(1),
                            Some(Kind::Symbol('(' | '^') | Kind::Word(_))
                        )
                    {
                        return Ok(value);
                    }
                    self.at += 1;
                    self.unit_power()?;
                }
                // `4{cm}`.
                Some(Kind::Symbol('{'))
                    if matches!(self.peek_after(1), Some(Kind::Word(word)) if is_unit(word))
                        && self.peek_after(2) == Some(Kind::Symbol('}'))
                        && self.is_value(value) =>
                {
                    self.at += 3;
                    self.unit_power()?;
                }
                _ => return Ok(value),
            }
        }
    }

    /// Whether a unit may follow: anything but a lone letter.
    fn is_value(&self, id: Id) -> bool {
        !matches!(self.tree.get(id), Node::Symbol(_) | Node::Text(_))
    }

    /// `^2` of `cm^2`, `/h` of `km/h` and `per hour`.
    fn unit_power(&mut self) -> Parsed<()> {
        if self.take(Kind::Symbol('^')) {
            self.argument()?;
        }
        if self.peek() == Some(Kind::Symbol('/')) {
            match self.peek_after(1) {
                Some(Kind::Word(word)) if is_unit(word) || matches!(word, "h" | "s") => {
                    self.at += 2;
                }
                Some(Kind::Text(..)) => self.at += 2,
                _ => {}
            }
        }
        Ok(())
    }

    /// `\circ` after a `^`, with or without braces.
    fn degree_sign(&mut self) -> bool {
        let circle = Kind::Command("circ");
        if self.take(circle) {
            return true;
        }
        if self.peek() == Some(Kind::Symbol('{'))
            && self.peek_after(1) == Some(circle)
            && self.peek_after(2) == Some(Kind::Symbol('}'))
        {
            self.at += 3;
            return true;
        }
        false
    }

    fn subscript(&mut self, base: Id) -> Parsed<Id> {
        match self.tree.get(base).clone() {
            Node::Number(..) => {
                // The digits as they were written: leading zeros of a fraction count.
                let Some(Kind::Number(digits)) =
                    self.at.checked_sub(2).and_then(|it| self.tokens.get(it)).map(|it| it.kind)
                else {
                    return Err(Unparsed::Unexpected);
                };
                let radix = self.argument()?;
                let mut digits = digits.trim_start_matches('0').to_owned();
                if digits.contains('.') {
                    digits.truncate(digits.trim_end_matches('0').len());
                }
                self.add(Node::Based(digits, radix))
            }
            Node::Symbol(name) => {
                let index = self.raw_argument()?;
                self.add(Node::Symbol(format!("{name}_{index}")))
            }
            Node::Power(inner, exponent) => {
                let named = self.subscript(inner)?;
                self.add(Node::Power(named, exponent))
            }
            Node::Euler | Node::Imaginary | Node::Pi | Node::Apply(..) | Node::Product(_) => {
                let name = match self.tree.get(base) {
                    Node::Euler => "e".to_owned(),
                    Node::Imaginary => "i".to_owned(),
                    Node::Pi => "pi".to_owned(),
                    _ => format!("#{base}"),
                };
                let index = self.raw_argument()?;
                self.add(Node::Symbol(format!("{name}_{index}")))
            }
            _ => Err(Unparsed::Unexpected),
        }
    }

    /// A subscript as text.
    fn raw_argument(&mut self) -> Parsed<String> {
        let mut text = String::new();
        let mut depth = 0;
        loop {
            let Some(kind) = self.peek() else { return Err(Unparsed::Unexpected) };
            self.at += 1;
            match kind {
                Kind::Symbol('{') => depth += 1,
                Kind::Symbol('}') => depth -= 1,
                Kind::Number(it) | Kind::Word(it) | Kind::Command(it) => text.push_str(it),
                Kind::Text(it, _) => text.push_str(it.trim()),
                Kind::Symbol(it) => text.push(it),
                Kind::Begin(_) | Kind::End(_) | Kind::Row => return Err(Unparsed::Unexpected),
            }
            if depth < 0 {
                return Err(Unparsed::Unexpected);
            }
            if depth == 0 {
                return Ok(text);
            }
        }
    }

    /// What `^` and `_` take: a group, a whole number, or one sign, letter or command.
    fn argument(&mut self) -> Parsed<Id> {
        match self.peek() {
            Some(Kind::Symbol('-' | '+')) => {
                let mut negative = false;
                while let Some(Kind::Symbol(sign @ ('-' | '+'))) = self.peek() {
                    negative ^= sign == '-';
                    self.at += 1;
                }
                let value = self.deeper(Self::primary)?;
                if negative { self.add(Node::Negative(value)) } else { Ok(value) }
            }
            // A group goes one level down by itself.
            Some(Kind::Symbol('{')) => self.primary(),
            _ => self.deeper(Self::primary),
        }
    }

    /// What `\frac` takes: a group, or one digit, letter or command.
    fn digit_argument(&mut self) -> Parsed<Id> {
        if let Some(Kind::Number(digits)) = self.peek()
            && digits.len() > 1
            && digits.bytes().all(|it| it.is_ascii_digit())
        {
            let spaced = self.tokens[self.at].spaced;
            self.tokens[self.at] = Token { kind: Kind::Number(&digits[1..]), spaced };
            return self.number(&digits[..1]);
        }
        self.argument()
    }

    // --- primary

    fn number(&mut self, text: &str) -> Parsed<Id> {
        let value = number(text, self.fuel)?;
        let decimal = text.contains(['.', 'e', 'E']) && !text.ends_with('.');
        self.add(Node::Number(value, decimal))
    }

    fn primary(&mut self) -> Parsed<Id> {
        let Some(kind) = self.peek() else { return Err(Unparsed::Unexpected) };
        self.at += 1;
        match kind {
            Kind::Number(text) => {
                if text.contains('.')
                    && matches!(self.peek(), Some(Kind::Command("overline" | "bar" | "dot")))
                {
                    return self.repeating(text);
                }
                self.number(text)
            }
            Kind::Word(word) => self.word(word),
            Kind::Text(text, named) => self.text(text, named),
            Kind::Symbol(symbol) => match symbol {
                '(' | '[' | '{' => self.bracket(symbol),
                '|' => self.bars("|"),
                '%' | '^' | '_' | '=' | ')' | ']' | '}' | '/' | '*' | ',' | ';' | '&' => {
                    Err(Unparsed::Unexpected)
                }
                '-' | '+' => {
                    // Only inside an argument such as `\sqrt{-1}` without braces.
                    let value = self.factor()?;
                    if symbol == '-' { self.add(Node::Negative(value)) } else { Ok(value) }
                }
                other => self.add(Node::Symbol(other.to_string())),
            },
            Kind::Command(name) => self.command(name),
            Kind::Begin(name) => self.deeper(|it| it.environment(name)),
            Kind::End(_) | Kind::Row => Err(Unparsed::Unexpected),
        }
    }

    /// `0.1\overline{6}`: (the digits once - the digits not at all) / (9..90..0).
    fn repeating(&mut self, text: &str) -> Parsed<Id> {
        self.at += 1;
        let cycle = self.raw_argument()?;
        if cycle.is_empty() || cycle.len() > 64 || !cycle.bytes().all(|it| it.is_ascii_digit()) {
            return Err(Unparsed::Unexpected);
        }
        let places = text.split_once('.').map_or(0, |(_, part)| part.len()) as u32;
        let head = number(text, self.fuel)?;
        let nines = BigInt::from(10).pow(cycle.len() as u32) - 1;
        let period = cycle.parse::<BigInt>().map_err(|_| Unparsed::Unexpected)?;
        let tail = BigRational::new(period, nines * BigInt::from(10).pow(places));
        self.add(Node::Number(head + tail, false))
    }

    fn word(&mut self, word: &'a str) -> Parsed<Id> {
        if word.len() > 1 {
            if let Some(function) = function(word) {
                return self.call(function);
            }
            if matches!(word, "infty" | "infinity" | "inf" | "oo") {
                return self.add(Node::Infinity);
            }
            if word == "pi" {
                return self.add(Node::Pi);
            }
            if is_greek(word) {
                return self.add(Node::Symbol(word.to_owned()));
            }
            if matches!(word, "and" | "or" | "mod") {
                return Err(Unparsed::Unexpected);
            }
            // A unit or differential without a number: its letters.
            let mut letters = Vec::new();
            for at in 0..word.len() {
                letters.push(self.letter(&word[at..=at])?);
            }
            return self.joined(letters);
        }
        if matches!(word, "f" | "g" | "h" | "F" | "G" | "H") {
            let mut name = word.to_owned();
            let inverse = [
                Kind::Symbol('^'),
                Kind::Symbol('{'),
                Kind::Symbol('-'),
                Kind::Number("1"),
                Kind::Symbol('}'),
            ];
            let here = &self.tokens[self.at..];
            if here.len() > 5
                && here.iter().zip(inverse).all(|(token, kind)| token.kind == kind)
                && here[5].kind == Kind::Symbol('(')
            {
                self.at += 5;
                name.push_str("^-1");
            }
            while self.take(Kind::Symbol('\'')) {
                name.push('\'');
            }
            if self.peek() == Some(Kind::Symbol('_')) {
                self.at += 1;
                name = format!("{name}_{}", self.raw_argument()?);
            }
            if self.take(Kind::Symbol('(')) {
                let inner = self.bracket('(')?;
                let arguments = match self.tree.get(inner) {
                    Node::Tuple { items, .. } => items.clone(),
                    _ => vec![inner],
                };
                return self.add(Node::Apply(name, arguments));
            }
            return self.add(Node::Symbol(name));
        }
        self.letter(word)
    }

    fn letter(&mut self, letter: &str) -> Parsed<Id> {
        self.add(match letter {
            "i" => Node::Imaginary,
            "e" => Node::Euler,
            "I" if self.peek() != Some(Kind::Symbol('_')) => Node::Imaginary,
            _ => Node::Symbol(letter.to_owned()),
        })
    }

    fn text(&mut self, text: &'a str, named: bool) -> Parsed<Id> {
        let inner = text.trim();
        if named {
            if let Some(function) = function(inner) {
                return self.call(function);
            }
            if inner.len() == 1 && inner.bytes().all(|it| it.is_ascii_alphabetic()) {
                return self.letter(inner);
            }
        }
        if let Some(plain) = super::plain::plain(inner)
            && !plain.decimal
            && plain.whole.as_slice().len() < 40
        {
            return self.number(inner.trim_start_matches(['$', '+', '-']));
        }
        // `\text{5 apples}`.
        if let Some((first, rest)) = inner.split_once(' ')
            && super::plain::plain(first).is_some_and(|it| it.whole.as_slice().len() < 40)
            && first.bytes().all(|it| it.is_ascii_digit() || it == b'.')
            && rest.bytes().all(|it| it.is_ascii_alphabetic() || it == b' ')
            && !rest.split(' ').any(|it| matches!(it, "or" | "and"))
        {
            return self.number(first);
        }
        // `\text{Rs.} 5`: a prefix, if a number follows at once.
        if matches!(self.peek(), Some(Kind::Number(_))) && self.at == 1 {
            return self.primary();
        }
        if inner.is_empty() {
            return if self.peek().is_some() { self.primary() } else { Err(Unparsed::Empty) };
        }
        self.add(Node::Text(inner.to_owned()))
    }

    /// After `(`, `[` or `{`: a group, tuple or set.
    fn bracket(&mut self, open: char) -> Parsed<Id> {
        let command = match open {
            '{' => &["}"][..],
            '(' => &[")", "]", "rgroup", "rangle"][..],
            _ => &["]", ")", "rbrack", "rangle"][..],
        };
        self.deeper(|it| it.until(open, command))
    }

    /// The items up to a closing bracket.
    fn until(&mut self, open: char, closers: &[&str]) -> Parsed<Id> {
        let close = |parser: &mut Self| -> Option<char> {
            let found = match parser.peek()? {
                Kind::Symbol(it @ (')' | ']' | '}'))
                    if closers.contains(&it.to_string().as_str()) =>
                {
                    it
                }
                Kind::Command("}") if closers.contains(&"\\}") => '}',
                Kind::Command("rangle") if closers.contains(&"rangle") => ')',
                Kind::Command("rgroup") if closers.contains(&"rgroup") => ')',
                Kind::Command("rbrack") if closers.contains(&"rbrack") => ']',
                Kind::Command("rbrace") if closers.contains(&"\\}") => '}',
                _ => return None,
            };
            parser.at += 1;
            Some(found)
        };
        let braces = closers.contains(&"\\}");
        if close(self).is_some() {
            return if braces { self.add(Node::Set(Vec::new())) } else { Err(Unparsed::Empty) };
        }
        // In braces a bar parts a member from its condition.
        self.bars = usize::from(braces);
        let inner = self.answer()?;
        // `\{x \mid x > 0\}` is the set of what its condition says.
        if braces
            && (self.take(Kind::Symbol('|'))
                || self.take(Kind::Command("mid"))
                || self.take(Kind::Command("vert")))
        {
            let condition = self.answer()?;
            close(self).ok_or(Unparsed::Unexpected)?;
            return self.add(Node::Set(vec![condition]));
        }
        let Some(close) = close(self) else { return Err(Unparsed::Unexpected) };
        let items = match self.tree.get(inner) {
            Node::List(items, _) => items.clone(),
            _ if open == close || matches!((open, close), ('(', ')') | ('[', ']') | ('{', '}')) => {
                return Ok(inner);
            }
            _ => return Err(Unparsed::Unexpected),
        };
        self.add(match open {
            '{' => Node::Set(items),
            _ => Node::Tuple { open, close, items },
        })
    }

    /// After an opening bar: the absolute value up to the bar that closes it.
    fn bars(&mut self, close: &str) -> Parsed<Id> {
        let inner = self.deeper(|it| {
            it.bars = 1;
            it.sum()
        })?;
        let closed = match close {
            "|" => {
                self.take(Kind::Symbol('|'))
                    || self.take(Kind::Command("|"))
                    || self.take(Kind::Command("rvert"))
            }
            "vert" => self.take(Kind::Command("vert")) || self.take(Kind::Symbol('|')),
            other => self.take(Kind::Command(other)) || self.take(Kind::Symbol('|')),
        };
        if !closed {
            return Err(Unparsed::Unexpected);
        }
        if matches!(self.tree.get(inner), Node::Matrix { .. }) {
            return self.add(Node::Call(Function::Determinant, String::new(), vec![inner]));
        }
        self.add(Node::Call(Function::AbsoluteValue, String::new(), vec![inner]))
    }

    fn command(&mut self, name: &'a str) -> Parsed<Id> {
        if let Some(function) = function(name) {
            return match function {
                Function::SquareRoot => self.root(),
                _ => self.call(function),
            };
        }
        if name == "pi" {
            return self.add(Node::Pi);
        }
        if is_greek(name) || matches!(name, "ell" | "hbar" | "partial" | "nabla" | "Re" | "Im") {
            return self.add(Node::Symbol(name.to_owned()));
        }
        match name {
            "frac" | "dfrac" | "tfrac" | "cfrac" => {
                let above = self.digit_argument()?;
                let below = self.digit_argument()?;
                self.add(Node::Quotient(above, below))
            }
            "binom" | "dbinom" | "tbinom" => {
                let above = self.digit_argument()?;
                let below = self.digit_argument()?;
                self.add(Node::Call(Function::Binomial, String::new(), vec![above, below]))
            }
            "infty" => self.add(Node::Infinity),
            "emptyset" | "varnothing" | "empty" => self.add(Node::Set(Vec::new())),
            "exponentialE" => self.add(Node::Euler),
            "imaginaryI" | "imath" => self.add(Node::Imaginary),
            "{" | "lbrace" => self.deeper(|it| it.until('{', &["\\}"])),
            "lgroup" => self.bracket('('),
            "lbrack" => self.bracket('['),
            "langle" => self.bracket('('),
            "vert" => self.bars("vert"),
            "lvert" => self.bars("rvert"),
            "|" | "Vert" | "lVert" => self.bars(if name == "|" { "|" } else { "rVert" }),
            "lfloor" => self.between(Function::Floor, "rfloor"),
            "lceil" => self.between(Function::Ceiling, "rceil"),
            "llcorner" => self.between(Function::Floor, "lrcorner"),
            "ulcorner" => self.between(Function::Ceiling, "urcorner"),
            "boxed" | "fbox" | "variable" | "mathcal" | "mathfrak" | "mathscr" | "vec" | "hat"
            | "tilde" | "widehat" | "overrightarrow" | "phantom" | "mathop" => self.argument(),
            "overline" | "bar" => {
                let name = self.raw_argument()?;
                self.add(Node::Symbol(format!("overline {name}")))
            }
            "mathbb" | "Bbb" => {
                let name = self.raw_argument()?;
                self.add(Node::Symbol(format!("set {name}")))
            }
            "angle" | "triangle" | "measuredangle" | "therefore" | "because" => {
                if self.starts_factor() { self.factor() } else { Err(Unparsed::Unexpected) }
            }
            "ldots" | "dots" | "cdots" | "dotsc" | "dotsb" | "vdots" | "ddots" => {
                self.add(Node::Symbol("...".to_owned()))
            }
            "pm" | "mp" => {
                let value = self.product(None)?;
                self.add(Node::PlusMinus(value))
            }
            "sum" | "prod" => {
                self.series(if name == "sum" { Function::Sum } else { Function::Product })
            }
            "int" | "iint" | "oint" | "lim" => self.opaque(name),
            "arcsec" | "arccsc" | "arccot" | "sech" | "csch" | "coth" | "arg" | "deg" | "dim"
            | "ker" | "Pr" | "sgn" | "limsup" | "liminf" | "sup" | "tr" => {
                let argument = self.call_argument()?;
                self.add(Node::Call(Function::Opaque, name.to_owned(), vec![argument]))
            }
            "checkmark" | "square" | "blacksquare" | "Box" | "star" | "prime" | "circ"
            | "dagger" | "perp" | "parallel" | "ddot" => self.add(Node::Symbol(name.to_owned())),
            _ => Err(Unparsed::Unexpected),
        }
    }

    fn between(&mut self, function: Function, close: &str) -> Parsed<Id> {
        let inner = self.deeper(Self::sum)?;
        self.expect(Kind::Command(close))?;
        self.add(Node::Call(function, String::new(), vec![inner]))
    }

    /// `\sqrt[3]{x}`, `\sqrt{x}`, `\sqrt x`.
    fn root(&mut self) -> Parsed<Id> {
        if self.take(Kind::Symbol('[')) {
            let degree = self.bracket('[')?;
            let inner = self.argument()?;
            return self.add(Node::Call(Function::Root, String::new(), vec![inner, degree]));
        }
        let inner = self.argument()?;
        self.add(Node::Call(Function::SquareRoot, String::new(), vec![inner]))
    }

    /// `\sin^2 x`, `\log_2 8`, `\max(1, 2)`.
    fn call(&mut self, mut function: Function) -> Parsed<Id> {
        let mut base = None;
        let mut power = None;
        for _ in 0..2 {
            if self.take(Kind::Symbol('_')) {
                base = Some(self.argument()?);
            }
            if self.take(Kind::Symbol('^')) {
                power = Some(self.argument()?);
            }
        }
        if let Some(exponent) = power
            && is_minus_one(self.tree, exponent)
        {
            let inverse = match function {
                Function::Sine => Some(Function::ArcSine),
                Function::Cosine => Some(Function::ArcCosine),
                Function::Tangent => Some(Function::ArcTangent),
                _ => None,
            };
            if let Some(inverse) = inverse {
                function = inverse;
                power = None;
            }
        }
        let argument = self.call_argument()?;
        let mut arguments = match self.tree.get(argument) {
            Node::Tuple { items, .. } | Node::Set(items) => items.clone(),
            _ => vec![argument],
        };
        if function == Function::Logarithm {
            arguments.extend(base);
        }
        let value = self.add(Node::Call(function, String::new(), arguments))?;
        match power {
            Some(exponent) => self.add(Node::Power(value, exponent)),
            None => Ok(value),
        }
    }

    /// A bracket, or the factors up to the next function or operator: `\sin 2x \cos y`.
    fn call_argument(&mut self) -> Parsed<Id> {
        if let Some(
            Kind::Symbol('(' | '[' | '{') | Kind::Command("{" | "lbrace" | "lbrack" | "lgroup"),
        ) = self.peek()
        {
            return self.primary();
        }
        self.deeper(|it| {
            let mut factors = vec![it.factor()?];
            while it.starts_factor() {
                let stops = match it.peek() {
                    Some(Kind::Command(name)) => function(name).is_some() && name != "sqrt",
                    Some(Kind::Word(name)) => name.len() > 1 && function(name).is_some(),
                    Some(Kind::Symbol('(' | '[')) | Some(Kind::Text(..)) => true,
                    _ => false,
                };
                if stops {
                    break;
                }
                let factor = it.factor()?;
                factors.push(factor);
            }
            it.joined(factors)
        })
    }

    /// `\sum_{k=1}^{n} body`.
    fn series(&mut self, function: Function) -> Parsed<Id> {
        let start = self.tree.nodes().len() as Id;
        let (lower, upper) = self.bounds()?;
        let body = self.deeper(|it| it.product(None))?;
        let end = self.tree.nodes().len() as Id;
        let (Some(lower), Some(upper)) = (lower, upper) else { return Err(Unparsed::Unexpected) };
        let Node::Chain(relations, sides) = self.tree.get(lower) else {
            return Err(Unparsed::Unexpected);
        };
        let ([Relation::Equal], [variable, from]) = (relations.as_slice(), sides.as_slice()) else {
            return Err(Unparsed::Unexpected);
        };
        let (variable, from) = (*variable, *from);
        // A sum over i binds it: it is no longer the imaginary unit.
        let bound = self.tree.get(variable).clone();
        if matches!(bound, Node::Imaginary | Node::Euler) {
            self.tree.rename(start, end, &bound, &Node::Symbol("bound".to_owned()));
        }
        self.add(Node::Call(function, String::new(), vec![body, variable, from, upper]))
    }

    /// Integrals and limits: a name, bounds and a body, compared as they stand.
    fn opaque(&mut self, name: &str) -> Parsed<Id> {
        let (lower, upper) = self.bounds()?;
        let body = self.deeper(Self::sum)?;
        let mut arguments = vec![body];
        arguments.extend(lower);
        arguments.extend(upper);
        self.add(Node::Call(Function::Opaque, format!("{name} {}", arguments.len()), arguments))
    }

    fn bounds(&mut self) -> Parsed<(Option<Id>, Option<Id>)> {
        let (mut lower, mut upper) = (None, None);
        for _ in 0..2 {
            if self.take(Kind::Symbol('_')) {
                lower = Some(self.argument()?);
            }
            if self.take(Kind::Symbol('^')) {
                upper = Some(self.argument()?);
            }
        }
        Ok((lower, upper))
    }

    fn environment(&mut self, name: &'a str) -> Parsed<Id> {
        if matches!(name, "array" | "tabular") && self.peek() == Some(Kind::Symbol('{')) {
            self.raw_argument()?;
        }
        if matches!(
            name,
            "aligned"
                | "align"
                | "align*"
                | "gathered"
                | "gather"
                | "gather*"
                | "equation"
                | "equation*"
                | "split"
                | "array*"
        ) {
            self.depth -= 1;
            let inner = self.answer();
            self.depth += 1;
            self.expect(Kind::End(name))?;
            return inner;
        }
        let mut items = Vec::new();
        let mut columns = None;
        let mut width = 0;
        loop {
            if self.peek() == Some(Kind::End(name)) && width == 0 {
                break;
            }
            items.push(self.answer()?);
            width += 1;
            if self.take(Kind::Symbol('&')) {
                continue;
            }
            if *columns.get_or_insert(width) != width {
                return Err(Unparsed::Unexpected);
            }
            width = 0;
            if !self.take(Kind::Row) {
                break;
            }
        }
        self.expect(Kind::End(name))?;
        let columns = columns.ok_or(Unparsed::Empty)?;
        match name {
            "cases" | "dcases" => self.add(Node::Call(Function::Opaque, "cases".to_owned(), items)),
            "vmatrix" => {
                let matrix = self.add(Node::Matrix { columns, items })?;
                self.add(Node::Call(Function::Determinant, String::new(), vec![matrix]))
            }
            _ => self.add(Node::Matrix { columns, items }),
        }
    }
}

/// Commands that stand between factors, terms or sides.
fn operator(name: &str) -> bool {
    matches!(
        name,
        "cup"
            | "cap"
            | "bigcup"
            | "bigcap"
            | "setminus"
            | "backslash"
            | "le"
            | "smallsetminus"
            | "leq"
            | "ge"
            | "geq"
            | "lt"
            | "gt"
            | "ne"
            | "neq"
            | "in"
            | "pm"
            | "mp"
            | "cdot"
            | "times"
            | "div"
            | "mod"
            | "bmod"
            | "pmod"
            | "leqslant"
            | "geqslant"
            | "leqq"
            | "geqq"
            | "equiv"
            | "mid"
            | "land"
            | "lor"
            | "wedge"
            | "vee"
            | "ast"
            | "to"
            | "rightarrow"
            | "Rightarrow"
            | "implies"
            | "colon"
            | "cdotp"
            | "star"
    )
}

/// Commands that end a bracket.
fn closing(name: &str) -> bool {
    matches!(
        name,
        "}" | "rbrace"
            | "rbrack"
            | "rgroup"
            | "rangle"
            | "rvert"
            | "rVert"
            | "rfloor"
            | "rceil"
            | "lrcorner"
            | "urcorner"
            | "mid"
    )
}

fn is_minus_one(tree: &Tree, id: Id) -> bool {
    match tree.get(id) {
        Node::Negative(inner) => matches!(tree.get(*inner), Node::Number(it, _) if it.is_one()),
        _ => false,
    }
}

/// The exact value of a number token.
fn number(text: &str, fuel: &mut Fuel) -> Parsed<BigRational> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            (mantissa, exponent.parse::<i64>().map_err(|_| Unparsed::Limit)?)
        }
        None => (text, 0),
    };
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = whole.len() + part.len();
    // Reading digits is quadratic.
    fuel.spend(1 + (digits as u64 / 16).pow(2))?;
    let shift = exponent - part.len() as i64;
    if shift.unsigned_abs() > 5000 {
        return Err(Unparsed::Limit);
    }
    if digits < 18 && shift == 0 {
        let value: i64 = whole.parse().map_err(|_| Unparsed::Unexpected)?;
        return Ok(BigRational::from_integer(value.into()));
    }
    let mantissa: BigInt = format!("{whole}{part}").parse().map_err(|_| Unparsed::Unexpected)?;
    if mantissa.is_zero() {
        return Ok(BigRational::zero());
    }
    let scale = BigInt::from(10).pow(shift.unsigned_abs() as u32);
    Ok(if shift >= 0 {
        BigRational::from_integer(mantissa * scale)
    } else {
        BigRational::new(mantissa, scale)
    })
}
