//! Whether two trees are the same answer, by what they are.
//!
//! | gold | answer | equal if |
//! |---|---|---|
//! | value | value | their difference is zero; with a decimal, the same when rounded; percent either way |
//! | list, set, `\pm` | the same | the same members, in any order, however often |
//! | tuple, interval | the same | the same brackets and members in order |
//! | tuple | list, set | the members in the written order |
//! | union, difference | the same | the same intervals after merging |
//! | matrix | matrix | the same shape and entries |
//! | `name = v` | v, or `name = w` | the values are |
//! | equation | equation | one is a multiple of the other |
//! | inequality | inequality | one is a positive multiple of the other |
//! | inequality | interval | the solutions are the interval |
//!
//! Comparisons call themselves once per level of brackets, which the parser bounds.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Signed, Zero};

use super::{
    MathConfig,
    algebra::{Algebra, Generator},
    identity,
    polynomial::{Fraction, Polynomial, Trouble},
    tree::{Function, Id, Node, Relation, SetOperation, Tree},
    words,
};

/// Members of a set that are compared.
const MOST_MEMBERS: usize = 64;

/// Two parsed answers and what is known of their nodes.
pub struct Comparison<'a> {
    tree: &'a Tree,
    algebra: Algebra,
    options: &'a MathConfig,
    seed: u64,
    /// Values of the nodes with `\pm` read as plus.
    plus: Vec<Option<Result<Fraction, Trouble>>>,
    /// Values of the nodes with `\pm` read as minus.
    minus: Vec<Option<Result<Fraction, Trouble>>>,
    /// Nodes with a decimal point somewhere in them.
    decimal: Vec<bool>,
    /// Nodes with `\pm` somewhere in them.
    both: Vec<bool>,
    /// Whether `\sin 30^\circ` is the sine of an angle in degrees.
    degrees: bool,
}

type Answer = Result<bool, Trouble>;

/// An end of an interval.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Low,
    At(BigRational),
    High,
}

/// A part of the number line: its ends, and whether they belong to it.
#[derive(Clone, Debug)]
struct Interval {
    low: End,
    has_low: bool,
    high: End,
    has_high: bool,
}

impl<'a> Comparison<'a> {
    /// Prepares the comparison of nodes of one tree.
    pub fn new(tree: &'a Tree, algebra: Algebra, options: &'a MathConfig, seed: u64) -> Self {
        let count = tree.nodes().len();
        let mut decimal = vec![false; count];
        let mut both = vec![false; count];
        for (id, node) in tree.nodes().iter().enumerate() {
            decimal[id] = matches!(node, Node::Number(_, true));
            both[id] = matches!(node, Node::PlusMinus(_));
            for child in children(node) {
                decimal[id] |= decimal[child as usize];
                both[id] |= both[child as usize];
            }
        }
        Self {
            tree,
            algebra,
            options,
            seed,
            plus: vec![None; count],
            minus: vec![None; count],
            decimal,
            both,
            degrees: true,
        }
    }

    /// Whether one side has angles in degrees and the other has none; `border` is the root of the
    /// first.
    pub fn degrees_on_one_side(&self, border: Id) -> bool {
        let (first, second) = self.tree.nodes().split_at(border as usize + 1);
        let any = |nodes: &[Node]| nodes.iter().any(|it| matches!(it, Node::Degrees(_)));
        any(first) != any(second)
    }

    /// The comparison in which degree signs say nothing: `\cos 58` for `\cos 58^\circ`.
    #[must_use]
    pub fn without_degrees(mut self) -> Self {
        self.degrees = false;
        self.plus.fill(None);
        self.minus.fill(None);
        self
    }

    /// How the last two values were told apart or found equal.
    pub fn rule(&self) -> &'static str {
        self.algebra.rule
    }

    /// Whether the second node is the same answer as the first.
    ///
    /// # Errors
    /// Only if the budget ran out.
    pub fn same(&mut self, gold: Id, answer: Id) -> Answer {
        match self.compared(gold, answer) {
            Err(Trouble::Fuel) => Err(Trouble::Fuel),
            // What has no value is equal to nothing.
            Err(_) => Ok(false),
            decided => decided,
        }
    }

    fn compared(&mut self, gold: Id, answer: Id) -> Answer {
        self.algebra.fuel.spend(4)?;
        if gold == answer {
            return Ok(true);
        }
        let tree = self.tree;
        let (left, right) = (tree.get(gold), tree.get(answer));

        // `\{x \mid x > 3\}` is an interval as much as `(3, \infty)` is.
        let condition = |node: &Node| match node {
            Node::Set(items) => match items.as_slice() {
                [only] if matches!(tree.get(*only), Node::Chain(..)) => Some(*only),
                _ => None,
            },
            _ => None,
        };
        match (condition(left), condition(right)) {
            (Some(a), Some(b)) => return self.compared(a, b),
            (Some(a), None) => return self.conditions(a, answer),
            (None, Some(b)) => return self.conditions(b, gold),
            (None, None) => {}
        }

        // Equations and inequalities.
        if let (Node::Chain(..), Node::Chain(..)) = (left, right) {
            // `x in S` against an inequality is a set against it.
            match (self.assignment(gold), self.assignment(answer)) {
                (Some((_, value)), None) if self.between(answer).is_some() => {
                    return self.compared(value, answer);
                }
                (None, Some((_, value))) if self.between(gold).is_some() => {
                    return self.compared(gold, value);
                }
                _ => return self.chains(gold, answer),
            }
        }
        if let Node::Chain(..) = left {
            if let Some((_, value)) = self.assignment(gold) {
                return self.compared(value, answer);
            }
            return self.solutions(gold, answer);
        }
        if let Node::Chain(..) = right {
            if let Some((_, value)) = self.assignment(answer) {
                return self.compared(gold, value);
            }
            if self.options.allow_set_relation_comp {
                return self.solutions(answer, gold);
            }
            return Ok(false);
        }

        // Words.
        if let (Node::Text(a), Node::Text(b)) = (left, right) {
            return Ok(words::same(a, b));
        }
        if matches!(left, Node::Text(_)) || matches!(right, Node::Text(_)) {
            return Ok(false);
        }

        // Sets.
        if matches!(left, Node::Sets(..)) || matches!(right, Node::Sets(..)) {
            return self.unions(gold, answer);
        }
        let members = |it: &Node| match it {
            Node::Set(items) | Node::List(items, _) => Some(items.clone()),
            _ => None,
        };
        match (members(left), members(right)) {
            (Some(a), Some(b)) => return self.members(&a, &b),
            (Some(a), None) => {
                if let Node::Tuple { open: '(', close: ')', items } = right {
                    return self.in_order(&a, items);
                }
                if let Node::List(_, Some(decimal)) = left
                    && self.scalar(*decimal, answer)?
                {
                    return Ok(true);
                }
                return Ok(!self.names_differ(&a)? && self.members(&a, &[answer])?);
            }
            (None, Some(b)) => {
                if let Node::Tuple { open: '(', close: ')', items } = left {
                    return self.in_order(items, &b);
                }
                if let Node::List(_, Some(decimal)) = right
                    && !matches!(left, Node::Matrix { .. } | Node::Based(..))
                    && self.scalar(gold, *decimal)?
                {
                    return Ok(true);
                }
                return Ok(!self.names_differ(&b)? && self.members(&[gold], &b)?);
            }
            (None, None) => {}
        }

        match (left, right) {
            (
                Node::Tuple { open, close, items },
                Node::Tuple { open: other_open, close: other_close, items: others },
            ) => {
                let brackets = (open, close) == (other_open, other_close);
                // Ends matter to an interval; a vector may be written with either bracket.
                if !brackets && items.len() == 2 {
                    return Ok(false);
                }
                self.in_order(items, others)
            }
            (Node::Matrix { columns, items }, Node::Matrix { columns: other, items: others }) => {
                Ok(columns == other && self.in_order(items, others)?)
            }
            (Node::Based(digits, radix), Node::Based(others, other)) => {
                Ok(digits.eq_ignore_ascii_case(others) && self.compared(*radix, *other)?)
            }
            (Node::Based(digits, _), Node::Number(..)) if self.options.ignore_base => {
                Ok(self.written(answer).is_some_and(|it| it == *digits))
            }
            (Node::Tuple { .. } | Node::Matrix { .. } | Node::Based(..), _)
            | (_, Node::Tuple { .. } | Node::Matrix { .. } | Node::Based(..)) => Ok(false),
            _ => {
                if self.both[gold as usize] || self.both[answer as usize] {
                    return self.members(&[gold], &[answer]);
                }
                self.scalar(gold, answer)
            }
        }
    }

    /// Whether a list gives values to different names: `r = 1, l = 1` is not the answer 1.
    fn names_differ(&mut self, items: &[Id]) -> Answer {
        let names: Vec<Id> =
            items.iter().filter_map(|it| self.assignment(*it)).map(|it| it.0).collect();
        for name in names.iter().skip(1) {
            if !self.member((names[0], false), (*name, false))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn written(&self, id: Id) -> Option<String> {
        match self.tree.get(id) {
            Node::Number(value, false) => Some(value.to_string()),
            _ => None,
        }
    }

    fn in_order(&mut self, gold: &[Id], answer: &[Id]) -> Answer {
        if gold.len() != answer.len() {
            return Ok(false);
        }
        for (a, b) in gold.iter().zip(answer) {
            if !self.compared(*a, *b)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether every member of either side is one of the other.
    fn members(&mut self, gold: &[Id], answer: &[Id]) -> Answer {
        if gold.is_empty() || answer.is_empty() {
            return Ok(gold.is_empty() && answer.is_empty());
        }
        let split = |this: &Self, items: &[Id]| -> Vec<(Id, bool)> {
            let mut split = Vec::new();
            for id in items {
                split.push((*id, false));
                if this.both[*id as usize] {
                    split.push((*id, true));
                }
            }
            split
        };
        let (gold, answer) = (split(self, gold), split(self, answer));
        if gold.len() > MOST_MEMBERS || answer.len() > MOST_MEMBERS {
            return Err(Trouble::Fuel);
        }
        let mut seen = vec![false; answer.len()];
        for a in &gold {
            let mut found = false;
            for (at, b) in answer.iter().enumerate() {
                if (!found || !seen[at]) && self.member(*a, *b)? {
                    found = true;
                    seen[at] = true;
                }
            }
            if !found {
                return Ok(false);
            }
        }
        Ok(seen.into_iter().all(|it| it))
    }

    fn member(&mut self, gold: (Id, bool), answer: (Id, bool)) -> Answer {
        if self.both[gold.0 as usize] || self.both[answer.0 as usize] {
            let unwrap = |this: &Self, id: Id| this.assignment(id).map_or(id, |(_, value)| value);
            let a = self.value(unwrap(self, gold.0), gold.1)?;
            let b = self.value(unwrap(self, answer.0), answer.1)?;
            return self.equal(&a, &b);
        }
        match self.compared(gold.0, answer.0) {
            Err(Trouble::Fuel) => Err(Trouble::Fuel),
            Err(_) => Ok(false),
            decided => decided,
        }
    }

    // --- values

    fn scalar(&mut self, gold: Id, answer: Id) -> Answer {
        let a = self.value(gold, false)?;
        let b = self.value(answer, false)?;
        if self.close(&a, &b, gold, answer)? {
            return Ok(true);
        }
        if self.options.percent_as_number {
            let percent = |id: Id| -> Option<Id> {
                match self.tree.get(id) {
                    Node::Percent(inner) => Some(*inner),
                    Node::Negative(inner) => match self.tree.get(*inner) {
                        Node::Percent(_) => Some(id),
                        _ => None,
                    },
                    _ => None,
                }
            };
            let hundred = Fraction::whole(100);
            match (percent(gold), percent(answer)) {
                (Some(_), None) => {
                    let bare = self.algebra.times(&a, &hundred)?;
                    return self.close(&bare, &b, gold, answer);
                }
                (None, Some(_)) => {
                    let bare = self.algebra.times(&b, &hundred)?;
                    return self.close(&a, &bare, gold, answer);
                }
                _ => {}
            }
        }
        Ok(false)
    }

    fn equal(&mut self, a: &Fraction, b: &Fraction) -> Answer {
        if a == b {
            self.algebra.rule = "normal form";
            return Ok(true);
        }
        let left = a.above.times(&b.below, &self.algebra.reductions, &mut self.algebra.fuel);
        let right = b.above.times(&a.below, &self.algebra.reductions, &mut self.algebra.fuel);
        let gap = match (left, right) {
            (Ok(left), Ok(right)) => left.minus(&right, &mut self.algebra.fuel)?,
            _ => {
                let gap = self.algebra.minus(a, b)?;
                gap.above
            }
        };
        Ok(identity::is_zero(&mut self.algebra, &gap, self.seed)? == Some(true))
    }

    /// Equal, or equal after rounding where a decimal was written.
    fn close(&mut self, a: &Fraction, b: &Fraction, gold: Id, answer: Id) -> Answer {
        if let (Some(x), Some(y)) = (a.as_constant(), b.as_constant()) {
            let decimal = self.decimal[gold as usize] || self.decimal[answer as usize];
            self.algebra.rule = "rationals";
            return Ok(x == y || (decimal && rounds(&x, &y, self.options.float_rounding)));
        }
        if self.equal(a, b)? {
            return Ok(true);
        }
        if !self.decimal[gold as usize] && !self.decimal[answer as usize] {
            return Ok(false);
        }
        let (Some(x), Some(y)) = (
            identity::approximate(&mut self.algebra, a)?,
            identity::approximate(&mut self.algebra, b)?,
        ) else {
            return Ok(false);
        };
        let places = self.options.float_rounding;
        self.algebra.rule = "rounding";
        Ok(rounds(&x.0, &y.0, places) && rounds(&x.1, &y.1, places))
    }

    /// The value of a node, with `\pm` read as plus or as minus.
    fn value(&mut self, id: Id, minus: bool) -> Result<Fraction, Trouble> {
        let known = if minus { &self.minus } else { &self.plus };
        if let Some(value) = &known[id as usize] {
            return value.clone();
        }
        // Children have smaller ids: mark what is needed backwards, compute it forwards.
        let mut needed = vec![false; id as usize + 1];
        needed[id as usize] = true;
        for at in (0..=id).rev() {
            if needed[at as usize] {
                for child in children(self.tree.get(at)) {
                    let known = if minus { &self.minus } else { &self.plus };
                    needed[child as usize] |= known[child as usize].is_none();
                }
            }
        }
        for at in 0..=id {
            let known = if minus { &self.minus } else { &self.plus };
            if !needed[at as usize] || known[at as usize].is_some() {
                continue;
            }
            let value = self.computed(at, minus);
            if value == Err(Trouble::Fuel) {
                return value;
            }
            let known = if minus { &mut self.minus } else { &mut self.plus };
            known[at as usize] = Some(value);
        }
        self.value(id, minus)
    }

    /// The value of a node whose children have theirs.
    fn computed(&mut self, id: Id, minus: bool) -> Result<Fraction, Trouble> {
        let tree = self.tree;
        let known = |this: &Self, id: Id| -> Result<Fraction, Trouble> {
            let known = if minus { &this.minus } else { &this.plus };
            known[id as usize].clone().unwrap_or(Err(Trouble::Undefined))
        };
        match tree.get(id) {
            Node::Number(value, _) => Ok(Fraction::constant(value.clone())),
            Node::Symbol(name) => self.algebra.symbol(name),
            Node::Pi => self.algebra.generator(Generator::Pi),
            Node::Euler => self.algebra.generator(Generator::Euler),
            Node::Imaginary => self.algebra.generator(Generator::Imaginary),
            Node::Infinity => self.algebra.generator(Generator::Infinity),
            Node::Sum(terms) => {
                let mut sum = Fraction::whole(0);
                for term in terms {
                    let term = known(self, *term)?;
                    sum = self.algebra.plus(&sum, &term)?;
                }
                Ok(sum)
            }
            Node::Product(factors) => {
                let mut product = Fraction::whole(1);
                for factor in factors {
                    let factor = known(self, *factor)?;
                    product = self.algebra.times(&product, &factor)?;
                }
                Ok(product)
            }
            Node::Quotient(above, below) => {
                let (above, below) = (known(self, *above)?, known(self, *below)?);
                self.algebra.over(&above, &below)
            }
            Node::Power(base, exponent) => {
                let (base, exponent) = (known(self, *base)?, known(self, *exponent)?);
                self.algebra.power(&base, &exponent)
            }
            Node::Negative(inner) => {
                let inner = known(self, *inner)?;
                Ok(self.algebra.negated(&inner))
            }
            Node::PlusMinus(inner) => {
                let inner = known(self, *inner)?;
                Ok(if minus { self.algebra.negated(&inner) } else { inner })
            }
            Node::Degrees(inner) => known(self, *inner),
            Node::Percent(inner) => {
                let inner = known(self, *inner)?;
                self.algebra
                    .times(&inner, &Fraction::constant(BigRational::new(1.into(), 100.into())))
            }
            Node::Call(Function::Opaque, name, arguments) => {
                let mut values = Vec::new();
                for argument in arguments {
                    match tree.get(*argument) {
                        Node::Chain(relations, sides) => {
                            values.push(self.algebra.symbol(&format!("{relations:?}"))?);
                            for side in sides {
                                values.push(known(self, *side)?);
                            }
                        }
                        Node::List(items, _) => {
                            values.push(self.algebra.symbol("list")?);
                            for item in items {
                                values.push(known(self, *item)?);
                            }
                        }
                        _ => values.push(known(self, *argument)?),
                    }
                }
                self.algebra.generator(Generator::Call(Function::Opaque, name.clone(), values))
            }
            Node::Call(function, name, arguments) => {
                let mut values = Vec::with_capacity(arguments.len());
                for argument in arguments {
                    let mut value = known(self, *argument)?;
                    if self.degrees
                        && matches!(tree.get(*argument), Node::Degrees(_))
                        && is_circular(*function)
                    {
                        let pi = self.algebra.generator(Generator::Pi)?;
                        let turn = Fraction::constant(BigRational::new(1.into(), 180.into()));
                        value = self.algebra.times(&value, &turn)?;
                        value = self.algebra.times(&value, &pi)?;
                    }
                    values.push(value);
                }
                self.algebra.call(*function, name, values)
            }
            Node::Apply(name, arguments) => {
                let values =
                    arguments.iter().map(|it| known(self, *it)).collect::<Result<Vec<_>, _>>()?;
                self.algebra.generator(Generator::Apply(name.clone(), values))
            }
            // One member between braces or brackets is that member.
            Node::Set(items) if items.len() == 1 => known(self, items[0]),
            _ => Err(Trouble::Undefined),
        }
    }

    // --- equations and inequalities

    /// `name = ... = value` or `name in value`: the name and the value.
    fn assignment(&self, id: Id) -> Option<(Id, Id)> {
        let Node::Chain(relations, sides) = self.tree.get(id) else { return None };
        let all_equal = relations.iter().all(|it| *it == Relation::Equal);
        if !all_equal && relations.as_slice() != [Relation::In] {
            return None;
        }
        let (first, last) = (*sides.first()?, *sides.last()?);
        self.is_name(first).then_some((first, last))
    }

    /// A variable, `f(x)`, `|AB|`, `AB`, or several variables in brackets.
    fn is_name(&self, id: Id) -> bool {
        let symbol = |it: &Id| matches!(self.tree.get(*it), Node::Symbol(_) | Node::Apply(..));
        match self.tree.get(id) {
            Node::Symbol(_) | Node::Apply(..) | Node::Euler | Node::Imaginary => true,
            Node::Product(items) | Node::Tuple { items, .. } | Node::List(items, _) => {
                items.iter().all(symbol)
            }
            // `A:B = 1`.
            Node::Quotient(above, below) => symbol(above) && symbol(below),
            Node::Call(Function::AbsoluteValue, _, inner) => inner.iter().all(|it| {
                symbol(it)
                    || matches!(self.tree.get(*it), Node::Product(items) if items.iter().all(symbol))
            }),
            _ => false,
        }
    }

    fn chains(&mut self, gold: Id, answer: Id) -> Answer {
        if let (Some((name, value)), Some((other, other_value))) =
            (self.assignment(gold), self.assignment(answer))
        {
            let named =
                self.member((name, false), (other, false))? || self.both_functions(name, other);
            if named && self.member((value, false), (other_value, false))? {
                return Ok(true);
            }
        }
        let (Node::Chain(left, a), Node::Chain(right, b)) =
            (self.tree.get(gold), self.tree.get(answer))
        else {
            return Ok(false);
        };
        if let ([Relation::In], [Relation::In]) = (left.as_slice(), right.as_slice()) {
            return self.in_order(a, b);
        }
        let (links, others) = (self.links(left, a)?, self.links(right, b)?);
        if links.len() != others.len() {
            return Ok(false);
        }
        // Every link of either chain says what one of the other's says.
        let mut seen = vec![false; others.len()];
        for link in &links {
            let mut found = false;
            for (at, other) in others.iter().enumerate() {
                if !seen[at] && self.same_link(link, other)? {
                    seen[at] = true;
                    found = true;
                    break;
                }
            }
            if !found {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// `f(x)` and `y` both name what depends on x.
    fn both_functions(&self, a: Id, b: Id) -> bool {
        let applies = |it: Id| matches!(self.tree.get(it), Node::Apply(..));
        let is_y = |it: Id| matches!(self.tree.get(it), Node::Symbol(name) if name == "y");
        (applies(a) && is_y(b)) || (is_y(a) && applies(b))
    }

    /// The links of a chain as differences: `a < b` is `b - a` above zero.
    fn links(
        &mut self,
        relations: &[Relation],
        sides: &[Id],
    ) -> Result<Vec<(Relation, Polynomial)>, Trouble> {
        let mut links = Vec::new();
        for (relation, pair) in relations.iter().zip(sides.windows(2)) {
            let [left, right] = pair else { continue };
            let (a, b) = (self.value(*left, false)?, self.value(*right, false)?);
            let (relation, gap) = match relation {
                Relation::Greater => (Relation::Less, self.algebra.minus(&a, &b)?),
                Relation::GreaterOrEqual => (Relation::LessOrEqual, self.algebra.minus(&a, &b)?),
                Relation::In => return Err(Trouble::Undefined),
                other => (*other, self.algebra.minus(&b, &a)?),
            };
            // An inequality may not be multiplied by a denominator of unknown sign.
            let equation = matches!(relation, Relation::Equal | Relation::NotEqual);
            if !equation && gap.below.as_constant().is_none() {
                return Err(Trouble::Undefined);
            }
            links.push((relation, gap.above));
        }
        Ok(links)
    }

    /// Whether one difference is a multiple of the other, a positive one for inequalities.
    fn same_link(
        &mut self,
        gold: &(Relation, Polynomial),
        answer: &(Relation, Polynomial),
    ) -> Answer {
        if gold.0 != answer.0 {
            return Ok(false);
        }
        let (a, b) = (&gold.1, &answer.1);
        if a.is_zero() || b.is_zero() {
            return Ok(a.is_zero() && b.is_zero());
        }
        // Coefficients of the first monomial in variables that the gold has.
        let Some(lead) = a.terms.iter().map(|(it, _)| self.variables(it)).max() else {
            return Ok(false);
        };
        let coefficient = |this: &Self, polynomial: &Polynomial| -> Polynomial {
            let terms = polynomial.terms.iter().filter(|(it, _)| this.variables(it) == lead);
            let divisor: Vec<(u32, u32)> = lead.clone();
            Polynomial { terms: terms.cloned().collect() }.over_monomial(&divisor)
        };
        let (x, y) = (coefficient(self, a), coefficient(self, b));
        if y.is_zero() {
            return Ok(false);
        }
        let left = a.times(&y, &self.algebra.reductions, &mut self.algebra.fuel)?;
        let right = b.times(&x, &self.algebra.reductions, &mut self.algebra.fuel)?;
        let gap = left.minus(&right, &mut self.algebra.fuel)?;
        if identity::is_zero(&mut self.algebra, &gap, self.seed)? != Some(true) {
            return Ok(false);
        }
        if matches!(gold.0, Relation::Equal | Relation::NotEqual) {
            return Ok(true);
        }
        let x = Fraction { above: x, below: Polynomial::one() };
        let y = Fraction { above: y, below: Polynomial::one() };
        let (x, y) = (self.algebra.is_negative(&x)?, self.algebra.is_negative(&y)?);
        Ok(x.is_some() && x == y)
    }

    /// The part of a monomial that is not a number.
    fn variables(&self, monomial: &[(u32, u32)]) -> Vec<(u32, u32)> {
        monomial
            .iter()
            .filter(|(id, _)| {
                !matches!(
                    self.algebra.generators[*id as usize],
                    Generator::Pi | Generator::Euler | Generator::Imaginary | Generator::Root(..)
                )
            })
            .copied()
            .collect()
    }

    /// Whether a condition in braces says what the other side does.
    fn conditions(&mut self, condition: Id, other: Id) -> Answer {
        if matches!(self.tree.get(other), Node::Chain(..)) {
            return self.compared(condition, other);
        }
        match self.assignment(condition) {
            Some((_, value)) => self.compared(value, other),
            None => self.solutions(condition, other),
        }
    }

    /// Whether the solutions of an inequality are a set.
    fn solutions(&mut self, chain: Id, set: Id) -> Answer {
        // Ends with variables are compared as they stand: `a < x < b` and `(a, b)`.
        if let Some((low, high, has_low, has_high)) = self.between(chain)
            && let Node::Tuple { open, close, items } = self.tree.get(set)
            && let ([a, b], Some(low), Some(high)) = (items.as_slice(), low, high)
        {
            let ends = (*open == '[') == has_low && (*close == ']') == has_high;
            return Ok(ends && self.compared(low, *a)? && self.compared(high, *b)?);
        }
        let (Some(a), Some(b)) = (self.intervals(chain)?, self.intervals(set)?) else {
            return Ok(false);
        };
        let decimal = self.decimal[chain as usize] || self.decimal[set as usize];
        Ok(self.same_intervals(&a, &b, decimal))
    }

    /// `low < name < high` and its kin: the ends, and whether they belong.
    fn between(&self, id: Id) -> Option<(Option<Id>, Option<Id>, bool, bool)> {
        use Relation::{Greater, GreaterOrEqual, Less, LessOrEqual};
        let Node::Chain(relations, sides) = self.tree.get(id) else { return None };
        let open = |it: &Relation| matches!(it, Less | Greater);
        let up = |it: &Relation| matches!(it, Less | LessOrEqual);
        let down = |it: &Relation| matches!(it, Greater | GreaterOrEqual);
        match (relations.as_slice(), sides.as_slice()) {
            ([a, b], [left, name, right]) if self.is_name(*name) => {
                if up(a) && up(b) {
                    Some((Some(*left), Some(*right), !open(a), !open(b)))
                } else if down(a) && down(b) {
                    Some((Some(*right), Some(*left), !open(b), !open(a)))
                } else {
                    None
                }
            }
            ([a], [left, right]) => {
                let (name_first, other) = if self.is_name(*left) {
                    (true, *right)
                } else if self.is_name(*right) {
                    (false, *left)
                } else {
                    return None;
                };
                if !up(a) && !down(a) {
                    return None;
                }
                if up(a) == name_first {
                    Some((None, Some(other), false, !open(a)))
                } else {
                    Some((Some(other), None, !open(a), false))
                }
            }
            _ => None,
        }
    }

    // --- sets of numbers

    fn unions(&mut self, gold: Id, answer: Id) -> Answer {
        if let (Some(a), Some(b)) = (self.intervals(gold)?, self.intervals(answer)?) {
            let decimal = self.decimal[gold as usize] || self.decimal[answer as usize];
            return Ok(self.same_intervals(&a, &b, decimal));
        }
        let (Node::Sets(operation, a, b), Node::Sets(other, c, d)) =
            (self.tree.get(gold), self.tree.get(answer))
        else {
            return Ok(false);
        };
        if operation != other {
            return Ok(false);
        }
        if self.compared(*a, *c)? && self.compared(*b, *d)? {
            return Ok(true);
        }
        Ok(*operation != SetOperation::Difference
            && self.compared(*a, *d)?
            && self.compared(*b, *c)?)
    }

    /// The parts of the number line that a node is, sorted and merged; `None` if it is none, or if
    /// an end is not a number.
    fn intervals(&mut self, id: Id) -> Result<Option<Vec<Interval>>, Trouble> {
        self.algebra.fuel.spend(16)?;
        let whole_line =
            || Interval { low: End::Low, has_low: false, high: End::High, has_high: false };
        Ok(match self.tree.get(id) {
            Node::Tuple { open, close, items } => {
                let [a, b] = items.as_slice() else { return Ok(None) };
                let (Some(low), Some(high)) = (self.end(*a)?, self.end(*b)?) else {
                    return Ok(None);
                };
                let (has_low, has_high) = (*open == '[', *close == ']');
                Some(vec![Interval { low, has_low, high, has_high }])
            }
            Node::Set(items) | Node::List(items, _) => {
                // Points are listed in braces, inequalities without; a mixture hedges.
                let in_braces = matches!(self.tree.get(id), Node::Set(_));
                let mut all = Vec::new();
                for item in items {
                    let part = matches!(
                        self.tree.get(*item),
                        Node::Chain(..) | Node::Tuple { .. } | Node::Sets(..)
                    );
                    if part == in_braces {
                        return Ok(None);
                    }
                    let Some(part) = self.intervals(*item)? else { return Ok(None) };
                    all.extend(part);
                }
                Some(merged(all))
            }
            Node::Symbol(name) if name == "set R" => Some(vec![whole_line()]),
            Node::Sets(operation, a, b) => {
                let (Some(a), Some(b)) = (self.intervals(*a)?, self.intervals(*b)?) else {
                    return Ok(None);
                };
                Some(match operation {
                    SetOperation::Union => merged(a.into_iter().chain(b).collect()),
                    SetOperation::Intersection => common(&a, &b),
                    SetOperation::Difference => common(&a, &complement(&b)),
                })
            }
            Node::Chain(..) => {
                if let Some((_, value)) = self.assignment(id) {
                    return self.intervals(value);
                }
                let Some((low, high, has_low, has_high)) = self.between(id) else {
                    return Ok(None);
                };
                let low = match low {
                    Some(low) => self.end(low)?,
                    None => Some(End::Low),
                };
                let high = match high {
                    Some(high) => self.end(high)?,
                    None => Some(End::High),
                };
                let (Some(low), Some(high)) = (low, high) else { return Ok(None) };
                Some(vec![Interval { low, has_low, high, has_high }])
            }
            Node::Matrix { .. } | Node::Text(_) | Node::Based(..) => None,
            _ => self.end(id)?.map(|at| {
                vec![Interval { low: at.clone(), has_low: true, high: at, has_high: true }]
            }),
        })
    }

    fn end(&mut self, id: Id) -> Result<Option<End>, Trouble> {
        match self.tree.get(id) {
            Node::Infinity => return Ok(Some(End::High)),
            Node::Negative(inner) if matches!(self.tree.get(*inner), Node::Infinity) => {
                return Ok(Some(End::Low));
            }
            _ => {}
        }
        let value = match self.value(id, false) {
            Err(Trouble::Fuel) => return Err(Trouble::Fuel),
            Err(_) => return Ok(None),
            Ok(value) => value,
        };
        let Some((re, im)) = identity::approximate(&mut self.algebra, &value)? else {
            return Ok(None);
        };
        Ok(near(&im, &BigRational::zero()).then_some(End::At(re)))
    }

    fn same_intervals(&self, a: &[Interval], b: &[Interval], decimal: bool) -> bool {
        let places = self.options.float_rounding;
        let same = |x: &End, y: &End| match (x, y) {
            (End::At(x), End::At(y)) => near(x, y) || (decimal && rounds(x, y, places)),
            (x, y) => x == y,
        };
        a.len() == b.len()
            && a.iter().zip(b).all(|(a, b)| {
                same(&a.low, &b.low)
                    && same(&a.high, &b.high)
                    && a.has_low == b.has_low
                    && a.has_high == b.has_high
            })
    }
}

fn is_circular(function: Function) -> bool {
    use Function::{Cosecant, Cosine, Cotangent, Secant, Sine, Tangent};
    matches!(function, Sine | Cosine | Tangent | Cotangent | Secant | Cosecant)
}

fn children(node: &Node) -> impl Iterator<Item = Id> + '_ {
    let (few, many): ([Option<Id>; 2], &[Id]) = match node {
        Node::Sum(items)
        | Node::Product(items)
        | Node::Call(_, _, items)
        | Node::Apply(_, items)
        | Node::Set(items)
        | Node::Chain(_, items)
        | Node::Tuple { items, .. }
        | Node::Matrix { items, .. } => ([None, None], items),
        Node::List(items, decimal) => ([*decimal, None], items),
        Node::Quotient(a, b) | Node::Power(a, b) | Node::Sets(_, a, b) => {
            ([Some(*a), Some(*b)], &[])
        }
        Node::Negative(a)
        | Node::PlusMinus(a)
        | Node::Degrees(a)
        | Node::Percent(a)
        | Node::Based(_, a) => ([Some(*a), None], &[]),
        Node::Number(..)
        | Node::Symbol(_)
        | Node::Pi
        | Node::Euler
        | Node::Imaginary
        | Node::Infinity
        | Node::Text(_) => ([None, None], &[]),
    };
    few.into_iter().flatten().chain(many.iter().copied())
}

/// Whether two numbers agree to some thirty digits.
fn near(a: &BigRational, b: &BigRational) -> bool {
    let gap = (a - b).abs();
    gap.is_zero() || {
        let scale = a.abs().max(b.abs()).max(BigRational::one());
        gap * (BigInt::one() << 100) < scale
    }
}

/// Whether two numbers are the same when rounded to so many decimal places; numbers below a
/// thousandth must agree in their first four digits besides.
pub fn rounds(gold: &BigRational, answer: &BigRational, places: u32) -> bool {
    let scale = BigInt::from(10).pow(places);
    let rounded = |it: &BigRational| (it * &scale).round();
    if rounded(gold) != rounded(answer) {
        return false;
    }
    let thousandth = BigRational::new(1.into(), 1000.into());
    gold.abs() >= thousandth
        || (gold - answer).abs() * BigInt::from(10_000) < gold.abs()
        || gold == answer
}

fn below(a: &End, b: &End) -> bool {
    match (a, b) {
        (End::Low, End::Low) | (End::High, _) | (_, End::Low) => false,
        (End::Low, _) | (_, End::High) => true,
        (End::At(a), End::At(b)) => a < b && !near(a, b),
    }
}

fn level(a: &End, b: &End) -> bool {
    !below(a, b) && !below(b, a)
}

/// Sorted, with those that overlap or touch made one.
fn merged(mut all: Vec<Interval>) -> Vec<Interval> {
    all.retain(|it| {
        below(&it.low, &it.high) || (level(&it.low, &it.high) && it.has_low && it.has_high)
    });
    // The order is exact; only the question whether two ends touch allows for rounding.
    all.sort_by(|a, b| a.low.cmp(&b.low).then(b.has_low.cmp(&a.has_low)));
    let mut merged: Vec<Interval> = Vec::new();
    for next in all {
        if let Some(last) = merged.last_mut() {
            let touches = below(&next.low, &last.high)
                || (level(&next.low, &last.high) && (next.has_low || last.has_high));
            if touches {
                if below(&last.high, &next.high) {
                    last.high = next.high;
                    last.has_high = next.has_high;
                } else if level(&last.high, &next.high) {
                    last.has_high |= next.has_high;
                }
                continue;
            }
        }
        merged.push(next);
    }
    merged
}

/// What two sets of intervals share.
fn common(a: &[Interval], b: &[Interval]) -> Vec<Interval> {
    let mut shared = Vec::new();
    for x in a {
        for y in b {
            let (low, has_low) = if below(&x.low, &y.low) {
                (y.low.clone(), y.has_low)
            } else if below(&y.low, &x.low) {
                (x.low.clone(), x.has_low)
            } else {
                (x.low.clone(), x.has_low && y.has_low)
            };
            let (high, has_high) = if below(&x.high, &y.high) {
                (x.high.clone(), x.has_high)
            } else if below(&y.high, &x.high) {
                (y.high.clone(), y.has_high)
            } else {
                (x.high.clone(), x.has_high && y.has_high)
            };
            shared.push(Interval { low, has_low, high, has_high });
        }
    }
    merged(shared)
}

/// Everything outside sorted, merged intervals.
fn complement(intervals: &[Interval]) -> Vec<Interval> {
    let mut outside = Vec::new();
    let (mut low, mut has_low) = (End::Low, false);
    for part in intervals {
        outside.push(Interval {
            low: low.clone(),
            has_low,
            high: part.low.clone(),
            has_high: !part.has_low,
        });
        low = part.high.clone();
        has_low = !part.has_high;
    }
    outside.push(Interval { low, has_low, high: End::High, has_high: false });
    merged(outside)
}
