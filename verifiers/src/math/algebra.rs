//! Values in a normal form: quotients of polynomials over generators.
//!
//! Generators are the variables, pi, e, i, roots of primes, and, for everything that no polynomial
//! can say, powers and calls whose arguments are in normal form themselves. Roots of rationals are
//! taken apart into roots of primes, logarithms into logarithms of primes, powers of positive
//! rationals into powers of primes whose exponents are split into their terms; so `\sqrt{8}`,
//! `2\sqrt 2` and `2^{3/2}` are one form, as are `2^{x+1}` and `2 \cdot 2^x`.
//!
//! When are the generators independent, so that different forms are different values? Variables
//! and i always; roots of distinct primes, one degree to a prime, are linearly independent over
//! the rationals (A. S. Besicovitch, On the linear independence of fractional powers of integers,
//! 1940); pi and e are taken to be (nobody knows it). For all others `identity.rs` decides.

use astro_float_num::Consts;
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive, Zero};

use super::{
    fuel::Fuel,
    polynomial::{
        Fraction, MOST_BITS, MOST_DEGREE, Polynomial, Reduction, Trouble, bits, gcd, price,
    },
    tree::Function,
};

/// Generators that one pair of answers may have.
const MOST_GENERATORS: usize = 256;
/// Largest argument of a factorial that is multiplied out.
const MOST_FACTORIAL: i64 = 3000;
/// Terms of a sum over a literal range.
const MOST_SUMMANDS: i64 = 1000;

/// What a generator stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum Generator {
    /// A variable or anything else that has a name only.
    Symbol(String),
    /// The circle's constant.
    Pi,
    /// The base of the natural logarithm.
    Euler,
    /// The square root of -1.
    Imaginary,
    /// Positive infinity; arithmetic with it is formal.
    Infinity,
    /// The root of a whole number of the given degree; the flag says that the number is prime.
    Root(BigInt, u32, bool),
    /// A power that is not a polynomial, or too large to be written as one.
    Power(Box<(Fraction, Fraction)>),
    /// A product that is too large to be multiplied out.
    Product(Box<(Fraction, Fraction)>),
    /// A function of values.
    Call(Function, String, Vec<Fraction>),
    /// An unknown function of values.
    Apply(String, Vec<Fraction>),
}

/// The generators of a pair of answers, and arithmetic on their values.
#[derive(Debug)]
pub struct Algebra {
    /// Generators; those in the arguments of one are older than it.
    pub generators: Vec<Generator>,
    /// What powers of the generators reduce to.
    pub reductions: Vec<Option<Reduction>>,
    /// What is left of the budget.
    pub fuel: Fuel,
    /// How the last difference was decided.
    pub rule: &'static str,
    /// Digits of pi and of logarithms that were already worked out.
    pub constants: Option<Consts>,
}

type Value = Result<Fraction, Trouble>;

impl Algebra {
    /// No generators yet.
    pub fn new(fuel: Fuel) -> Self {
        Self {
            generators: Vec::new(),
            reductions: Vec::new(),
            fuel,
            rule: "structure",
            constants: None,
        }
    }

    /// The generator as a value.
    pub fn generator(&mut self, generator: Generator) -> Value {
        self.fuel.spend(4 + self.generators.len() as u64)?;
        let id = match self.generators.iter().position(|it| *it == generator) {
            Some(id) => id,
            None => {
                if self.generators.len() == MOST_GENERATORS {
                    return Err(Trouble::TooLarge);
                }
                let reduction = reduction(&generator);
                self.generators.push(generator);
                self.reductions.push(reduction);
                self.generators.len() - 1
            }
        };
        Ok(Fraction::generator(id as u32))
    }

    /// A variable.
    pub fn symbol(&mut self, name: &str) -> Value {
        self.generator(Generator::Symbol(name.to_owned()))
    }

    fn poly_times(&mut self, a: &Polynomial, b: &Polynomial) -> Result<Polynomial, Trouble> {
        a.times(b, &self.reductions, &mut self.fuel)
    }

    /// The sum.
    pub fn plus(&mut self, a: &Fraction, b: &Fraction) -> Value {
        if a.below == b.below {
            let above = a.above.plus(&b.above, &mut self.fuel)?;
            return self.fraction(above, a.below.clone());
        }
        let left = self.poly_times(&a.above, &b.below)?;
        let right = self.poly_times(&b.above, &a.below)?;
        let above = left.plus(&right, &mut self.fuel)?;
        let below = self.poly_times(&a.below, &b.below)?;
        self.fraction(above, below)
    }

    /// The difference.
    pub fn minus(&mut self, a: &Fraction, b: &Fraction) -> Value {
        let negative = Fraction { above: b.above.negated(), below: b.below.clone() };
        self.plus(a, &negative)
    }

    /// Minus the value.
    pub fn negated(&self, a: &Fraction) -> Fraction {
        Fraction { above: a.above.negated(), below: a.below.clone() }
    }

    /// The product; a generator of its own if it is too large to be multiplied out.
    pub fn times(&mut self, a: &Fraction, b: &Fraction) -> Value {
        let exact = (|| {
            let above = self.poly_times(&a.above, &b.above)?;
            let below = self.poly_times(&a.below, &b.below)?;
            self.fraction(above, below)
        })();
        match exact {
            Err(Trouble::TooLarge) => {
                self.generator(Generator::Product(Box::new((a.clone(), b.clone()))))
            }
            other => other,
        }
    }

    /// One over the value.
    pub fn inverse(&mut self, a: &Fraction) -> Value {
        self.fraction(a.below.clone(), a.above.clone())
    }

    /// The quotient.
    pub fn over(&mut self, a: &Fraction, b: &Fraction) -> Value {
        let inverse = self.inverse(b)?;
        self.times(a, &inverse)
    }

    /// A quotient of polynomials, tidied: constants and roots leave the denominator, common
    /// factors that are monomials are cancelled.
    fn fraction(&mut self, mut above: Polynomial, mut below: Polynomial) -> Value {
        if below.is_zero() {
            return Err(Trouble::Undefined);
        }
        if above.is_zero() {
            return Ok(Fraction { above, below: Polynomial::one() });
        }
        if let Some(divisor) = below.as_constant() {
            if !divisor.is_one() {
                above = above.scaled(&divisor.recip(), &mut self.fuel)?;
            }
            return Ok(Fraction { above, below: Polynomial::one() });
        }
        // Roots in a denominator of one term: multiply by what makes them whole.
        if let [(monomial, _)] = below.terms.as_slice() {
            let mut lift = Vec::new();
            for (id, power) in monomial {
                if let Some(reduction) = &self.reductions[*id as usize]
                    && reduction.value.as_constant().is_some()
                    && *power < reduction.degree
                {
                    lift.push((*id, reduction.degree - power));
                }
            }
            if !lift.is_empty() {
                let lift = Polynomial { terms: vec![(lift, BigRational::one())] };
                above = self.poly_times(&above, &lift)?;
                below = self.poly_times(&below, &lift)?;
            }
        }
        let shared = {
            let (a, b) = (above.common_monomial(), below.common_monomial());
            let mut shared = a;
            shared.retain_mut(|(id, power)| {
                let other = b.iter().find(|it| it.0 == *id).map_or(0, |it| it.1);
                *power = (*power).min(other);
                *power > 0
            });
            shared
        };
        if !shared.is_empty() {
            above = above.over_monomial(&shared);
            below = below.over_monomial(&shared);
        }
        // The denominator's first coefficient becomes one.
        let lead = below.terms.first().map_or_else(BigRational::one, |it| it.1.clone());
        if !lead.is_one() {
            let factor = lead.recip();
            above = above.scaled(&factor, &mut self.fuel)?;
            below = below.scaled(&factor, &mut self.fuel)?;
        }
        Ok(Fraction { above, below })
    }

    /// `base` to the power of `exponent`.
    pub fn power(&mut self, base: &Fraction, exponent: &Fraction) -> Value {
        self.fuel.spend(4)?;
        if let Some(rational) = exponent.as_constant() {
            if rational.is_integer() {
                return self.whole_power(base, rational.numer());
            }
            return self.rational_power(base, &rational);
        }
        // b^(c + c1 m1 + ...) = b^c (b^m1)^c1 ... for a positive number b and for e.
        let euler = self.generator(Generator::Euler)?;
        let constant = base.as_constant().filter(Signed::is_positive);
        if exponent.below.as_constant().is_some() && (*base == euler || constant.is_some()) {
            let bases: Vec<(Fraction, i64)> = match constant {
                None => vec![(euler.clone(), 1)],
                Some(value) if value.is_one() => return Ok(Fraction::whole(1)),
                Some(value) => {
                    let mut bases = Vec::new();
                    for (number, sign) in [(value.numer(), 1), (value.denom(), -1)] {
                        for (prime, count) in self.factored(number)?.0 {
                            let prime = Fraction::constant(BigRational::from_integer(prime));
                            bases.push((prime, sign * i64::from(count)));
                        }
                    }
                    bases
                }
            };
            let mut result = Fraction::whole(1);
            for (base, count) in bases {
                for (monomial, coefficient) in &exponent.above.terms {
                    let coefficient = coefficient * BigInt::from(count);
                    if monomial.is_empty() {
                        let constant = Fraction::constant(coefficient);
                        let factor = self.power(&base, &constant)?;
                        result = self.times(&result, &factor)?;
                        continue;
                    }
                    let part = Polynomial {
                        terms: vec![(
                            monomial.clone(),
                            BigRational::new(BigInt::one(), coefficient.denom().clone()),
                        )],
                    };
                    if base == euler
                        && let Some(factor) = self.euler_formula(&part, coefficient.numer())?
                    {
                        result = self.times(&result, &factor)?;
                        continue;
                    }
                    let part = Fraction { above: part, below: Polynomial::one() };
                    let generator =
                        self.generator(Generator::Power(Box::new((base.clone(), part))))?;
                    let factor = self.whole_power(&generator, coefficient.numer())?;
                    result = self.times(&result, &factor)?;
                }
            }
            return Ok(result);
        }
        self.generator(Generator::Power(Box::new((base.clone(), exponent.clone()))))
    }

    /// e^(i pi r) for a multiple r of 1/12 is cos(pi r) + i sin(pi r).
    fn euler_formula(
        &mut self,
        part: &Polynomial,
        times: &BigInt,
    ) -> Result<Option<Fraction>, Trouble> {
        let pi = self.generator(Generator::Pi)?;
        let imaginary = self.generator(Generator::Imaginary)?;
        let circle = self.times(&pi, &imaginary)?;
        let ratio =
            self.over(&Fraction { above: part.clone(), below: Polynomial::one() }, &circle)?;
        let Some(turn) = ratio.as_constant() else { return Ok(None) };
        let turn = turn * times;
        let half = BigRational::new(1.into(), 2.into());
        let (Some(sine), Some(cosine)) =
            (self.sine_of_pi(&turn)?, self.sine_of_pi(&(&turn + half))?)
        else {
            return Ok(None);
        };
        let product = self.times(&imaginary, &sine)?;
        self.plus(&cosine, &product).map(Some)
    }

    fn whole_power(&mut self, base: &Fraction, exponent: &BigInt) -> Value {
        if exponent.is_zero() {
            return if base.is_zero() { Err(Trouble::Undefined) } else { Ok(Fraction::whole(1)) };
        }
        if exponent.is_one() {
            return Ok(base.clone());
        }
        if exponent.is_negative() {
            let positive = self.whole_power(base, &-exponent)?;
            return self.inverse(&positive);
        }
        if base.is_zero() {
            return Ok(base.clone());
        }
        if let Some(value) = base.as_constant() {
            if value.is_one() {
                return Ok(base.clone());
            }
            if (-&value).is_one() {
                let odd = (exponent % BigInt::from(2)).is_one();
                return Ok(Fraction::whole(if odd { -1 } else { 1 }));
            }
            let width = bits(&value);
            if let Some(count) = exponent.to_u64()
                && let Some(total) = width.checked_mul(count)
                && total <= MOST_BITS
            {
                self.fuel.spend(price(total, total))?;
                let count = count as u32;
                let above = value.numer().pow(count);
                let below = value.denom().pow(count);
                return Ok(Fraction::constant(BigRational::new_raw(above, below)));
            }
            // Too large to be written: a product of powers of primes.
            if !value.is_integer() {
                let above = Fraction::constant(BigRational::from_integer(value.numer().clone()));
                let below = Fraction::constant(BigRational::from_integer(value.denom().clone()));
                let above = self.whole_power(&above, exponent)?;
                let below = self.whole_power(&below, exponent)?;
                return self.over(&above, &below);
            }
            let mut result = Fraction::whole(1);
            if value.is_negative() && (exponent % BigInt::from(2)).is_one() {
                result = Fraction::whole(-1);
            }
            for (prime, count) in self.factored(value.numer())?.0 {
                let power = Fraction::constant(BigRational::from_integer(exponent * count));
                let prime = Fraction::constant(BigRational::from_integer(prime));
                let factor = self.generator(Generator::Power(Box::new((prime, power))))?;
                result = self.times(&result, &factor)?;
            }
            return Ok(result);
        }
        if let Some(mut left) = exponent.to_u32().filter(|it| *it <= MOST_DEGREE) {
            let generators = self.generators.len();
            let mut square = base.clone();
            let mut result = Fraction::whole(1);
            let exact: Value = (|| {
                loop {
                    if left & 1 == 1 {
                        result = self.exact_times(&result, &square)?;
                    }
                    left >>= 1;
                    if left == 0 {
                        return Ok(result.clone());
                    }
                    square = self.exact_times(&square, &square)?;
                }
            })();
            if exact != Err(Trouble::TooLarge) {
                return exact;
            }
            debug_assert!(self.generators.len() >= generators);
        }
        // (x^a)^n of a lone power is x^(an).
        let power = Fraction::constant(BigRational::from_integer(exponent.clone()));
        self.generator(Generator::Power(Box::new((base.clone(), power))))
    }

    fn exact_times(&mut self, a: &Fraction, b: &Fraction) -> Value {
        let above = self.poly_times(&a.above, &b.above)?;
        let below = self.poly_times(&a.below, &b.below)?;
        self.fraction(above, below)
    }

    /// The power with an exponent n/d, d at least 2.
    fn rational_power(&mut self, base: &Fraction, exponent: &BigRational) -> Value {
        let Some(degree) = exponent.denom().to_u32().filter(|it| *it <= MOST_DEGREE) else {
            let exponent = Fraction::constant(exponent.clone());
            return self.generator(Generator::Power(Box::new((base.clone(), exponent))));
        };
        let root = self.root(base, degree)?;
        self.whole_power(&root, exponent.numer())
    }

    /// The root of a degree of at least 2: of negative numbers the real one if the degree is odd,
    /// else the principal one.
    pub fn root(&mut self, base: &Fraction, degree: u32) -> Value {
        self.fuel.spend(8)?;
        if base.is_zero() {
            return Ok(base.clone());
        }
        if let Some(value) = base.as_constant() {
            return self.root_of_number(&value, degree, base);
        }
        // The content of a polynomial leaves its root: sqrt(4x + 8) = 2 sqrt(x + 2).
        let content = base.above.content();
        let mut inner = Fraction {
            above: base.above.scaled(&content.recip(), &mut self.fuel)?,
            below: base.below.clone(),
        };
        let mut outer = if content.is_one() {
            Fraction::whole(1)
        } else {
            self.root_of_number(&content, degree, base)?
        };
        // An odd root of minus something is minus the root of it.
        if degree % 2 == 1
            && inner.above.terms.first().is_some_and(|(_, value)| value.is_negative())
        {
            inner = self.negated(&inner);
            outer = self.negated(&outer);
        }
        let exponent = Fraction::constant(BigRational::new(1.into(), degree.into()));
        let root = self.generator(Generator::Power(Box::new((inner, exponent))))?;
        self.times(&outer, &root)
    }

    fn root_of_number(&mut self, value: &BigRational, degree: u32, base: &Fraction) -> Value {
        let mut result = Fraction::whole(1);
        if value.is_negative() {
            if degree == 2 {
                result = self.generator(Generator::Imaginary)?;
            } else if degree % 2 == 1 {
                result = Fraction::whole(-1);
            } else {
                let exponent = Fraction::constant(BigRational::new(1.into(), degree.into()));
                return self.generator(Generator::Power(Box::new((base.clone(), exponent))));
            }
        }
        let (above, _) = self.factored(value.numer())?;
        let (below, _) = self.factored(value.denom())?;
        for (factors, sign) in [(above, 1_i64), (below, -1)] {
            for (prime, count) in factors {
                let whole = i64::from(count / degree) * sign;
                let rest = count % degree;
                let number = Fraction::constant(BigRational::from_integer(prime.clone()));
                if whole != 0 {
                    let factor = self.whole_power(&number, &whole.into())?;
                    result = self.times(&result, &factor)?;
                }
                if rest > 0 {
                    let divisor = {
                        let (mut a, mut b) = (rest, degree);
                        while b > 0 {
                            (a, b) = (b, a % b);
                        }
                        a
                    };
                    let certain = is_small_prime(&prime);
                    let root = Generator::Root(prime, degree / divisor, certain);
                    let root = self.generator(root)?;
                    let power = i64::from(rest / divisor) * sign;
                    let factor = self.whole_power(&root, &power.into())?;
                    result = self.times(&result, &factor)?;
                }
            }
        }
        Ok(result)
    }

    /// The absolute value of a whole number as powers: primes below 1000, and what is left over,
    /// which is prime if it is below a million. Zero and one have no factors.
    fn factored(&mut self, number: &BigInt) -> Result<(Vec<(BigInt, u32)>, bool), Trouble> {
        let mut rest = number.abs();
        let mut factors = Vec::new();
        let width = rest.bits() / 64 + 1;
        for divisor in 2_u32..1000 {
            if divisor > 2 && divisor % 2 == 0 {
                continue;
            }
            if rest <= BigInt::one() {
                break;
            }
            self.fuel.spend(width)?;
            if let Some(small) = rest.to_u64()
                && small < u64::from(divisor).pow(2)
            {
                break;
            }
            let mut count = 0;
            while (&rest % divisor).is_zero() {
                rest /= divisor;
                count += 1;
                self.fuel.spend(width)?;
            }
            if count > 0 {
                factors.push((BigInt::from(divisor), count));
            }
        }
        let mut complete = true;
        if rest > BigInt::one() {
            // A square or a cube of something large is still one factor, with its power.
            let mut count = 1;
            for degree in [2_u32, 3] {
                self.fuel.spend(width * width * 8)?;
                let root = rest.nth_root(degree);
                if root.pow(degree) == rest {
                    rest = root;
                    count *= degree;
                }
            }
            complete = is_small_prime(&rest);
            factors.push((rest, count));
        }
        Ok((factors, complete))
    }

    /// A function of values.
    pub fn call(&mut self, function: Function, name: &str, arguments: Vec<Fraction>) -> Value {
        self.fuel.spend(8)?;
        let first = arguments.first().ok_or(Trouble::Undefined)?.clone();
        let constant = first.as_constant();
        match function {
            Function::SquareRoot => return self.root(&first, 2),
            Function::Root => {
                let degree = arguments.get(1).ok_or(Trouble::Undefined)?;
                if let Some(degree) = degree.as_constant().filter(BigRational::is_integer)
                    && let Some(degree) = degree.numer().to_u32()
                    && (2..=MOST_DEGREE).contains(&degree)
                {
                    return self.root(&first, degree);
                }
                let exponent = self.inverse(degree)?;
                return self.power(&first, &exponent);
            }
            Function::Exponential => {
                let euler = self.generator(Generator::Euler)?;
                return self.power(&euler, &first);
            }
            Function::NaturalLogarithm => {
                if let Some(value) = constant {
                    return self.logarithm_of_number(&value);
                }
                let euler = self.generator(Generator::Euler)?;
                if first == euler {
                    return Ok(Fraction::whole(1));
                }
            }
            Function::Logarithm => {
                let base = arguments.get(1).cloned().unwrap_or_else(|| Fraction::whole(10));
                let above = self.call(Function::NaturalLogarithm, "", vec![first])?;
                let below = self.call(Function::NaturalLogarithm, "", vec![base])?;
                return self.over(&above, &below);
            }
            Function::Sine | Function::Cosine => {
                let pi = self.generator(Generator::Pi)?;
                let ratio = self.over(&first, &pi)?;
                if let Some(mut turn) = ratio.as_constant() {
                    if function == Function::Cosine {
                        turn += BigRational::new(1.into(), 2.into());
                    }
                    if let Some(value) = self.sine_of_pi(&turn)? {
                        return Ok(value);
                    }
                }
                // sin(-x) = -sin(x), cos(-x) = cos(x).
                if first.above.terms.first().is_some_and(|(_, value)| value.is_negative()) {
                    let positive = self.negated(&first);
                    let value =
                        self.generator(Generator::Call(function, String::new(), vec![positive]))?;
                    return Ok(if function == Function::Sine {
                        self.negated(&value)
                    } else {
                        value
                    });
                }
            }
            Function::Tangent => {
                let sine = self.call(Function::Sine, "", vec![first.clone()])?;
                let cosine = self.call(Function::Cosine, "", vec![first])?;
                return self.over(&sine, &cosine);
            }
            Function::Cotangent => {
                let sine = self.call(Function::Sine, "", vec![first.clone()])?;
                let cosine = self.call(Function::Cosine, "", vec![first])?;
                return self.over(&cosine, &sine);
            }
            Function::Secant => {
                let cosine = self.call(Function::Cosine, "", vec![first])?;
                return self.inverse(&cosine);
            }
            Function::Cosecant => {
                let sine = self.call(Function::Sine, "", vec![first])?;
                return self.inverse(&sine);
            }
            Function::AbsoluteValue => {
                if let Some(value) = constant {
                    return Ok(Fraction::constant(value.abs()));
                }
                if let Some(negative) = self.is_negative(&first)? {
                    return Ok(if negative { self.negated(&first) } else { first });
                }
                if first.above.terms.first().is_some_and(|(_, value)| value.is_negative()) {
                    let positive = self.negated(&first);
                    return self.generator(Generator::Call(
                        function,
                        String::new(),
                        vec![positive],
                    ));
                }
            }
            Function::Floor | Function::Ceiling => {
                if let Some(value) = constant {
                    let rounded =
                        if function == Function::Floor { value.floor() } else { value.ceil() };
                    return Ok(Fraction::constant(rounded));
                }
                if let Some(value) = super::identity::real(self, &first)?
                    && let Some(whole) = super::identity::floor(&value)
                {
                    // An irrational number lies strictly between two whole ones.
                    let up = i64::from(function == Function::Ceiling);
                    return Ok(Fraction::constant(BigRational::from_integer(whole + up)));
                }
            }
            Function::Maximum | Function::Minimum => return self.extreme(function, arguments),
            Function::GreatestDivisor | Function::LeastMultiple => {
                let mut value = first;
                for other in &arguments[1..] {
                    value = self.divisor(&value, other, function == Function::LeastMultiple)?;
                }
                return Ok(match value.as_constant() {
                    Some(number) => Fraction::constant(number.abs()),
                    None => value,
                });
            }
            Function::Modulo => {
                let below = arguments.get(1).ok_or(Trouble::Undefined)?.clone();
                if below.is_zero() {
                    return Err(Trouble::Undefined);
                }
                let ratio = self.over(&first, &below)?;
                let floor = self.call(Function::Floor, "", vec![ratio])?;
                let multiple = self.times(&floor, &below)?;
                return self.minus(&first, &multiple);
            }
            Function::Factorial => {
                if let Some(value) = &constant {
                    if value.is_negative() || !value.is_integer() {
                        return Err(Trouble::Undefined);
                    }
                    if let Some(count) = value.numer().to_i64().filter(|it| *it <= MOST_FACTORIAL) {
                        let mut product = BigInt::one();
                        for factor in 2..=count {
                            self.fuel.spend(2 + product.bits() / 256)?;
                            product *= factor;
                        }
                        return Ok(Fraction::constant(BigRational::from_integer(product)));
                    }
                }
            }
            Function::Binomial => {
                if let (Some(n), Some(k)) =
                    (&constant, arguments.get(1).and_then(Fraction::as_constant))
                    && n.is_integer()
                    && k.is_integer()
                    && !n.is_negative()
                    && let (Some(n), Some(k)) = (n.numer().to_i64(), k.numer().to_i64())
                {
                    if k < 0 || k > n {
                        return Ok(Fraction::whole(0));
                    }
                    let k = k.min(n - k);
                    if k <= 1000 {
                        let mut value = BigInt::one();
                        for step in 1..=k {
                            self.fuel.spend(2 + value.bits() / 32)?;
                            value = value * (n - k + step) / step;
                            if value.bits() > MOST_BITS {
                                return Err(Trouble::TooLarge);
                            }
                        }
                        return Ok(Fraction::constant(BigRational::from_integer(value)));
                    }
                }
            }
            Function::Sum | Function::Product => return self.series(function, arguments),
            _ => {}
        }
        self.generator(Generator::Call(function, name.to_owned(), arguments))
    }

    /// ln of a positive rational as a sum of logarithms of primes.
    fn logarithm_of_number(&mut self, value: &BigRational) -> Value {
        if !value.is_positive() {
            if value.is_zero() {
                return Err(Trouble::Undefined);
            }
            let inner = Fraction::constant(value.clone());
            return self.generator(Generator::Call(
                Function::NaturalLogarithm,
                String::new(),
                vec![inner],
            ));
        }
        let mut sum = Fraction::whole(0);
        for (number, sign) in [(value.numer(), 1), (value.denom(), -1)] {
            for (prime, count) in self.factored(number)?.0 {
                let inner = Fraction::constant(BigRational::from_integer(prime));
                let part = self.generator(Generator::Call(
                    Function::NaturalLogarithm,
                    String::new(),
                    vec![inner],
                ))?;
                let times = Fraction::whole(i64::from(count) * sign);
                let part = self.times(&times, &part)?;
                sum = self.plus(&sum, &part)?;
            }
        }
        Ok(sum)
    }

    /// sin(pi r) for multiples r of 1/12, else `None`.
    fn sine_of_pi(&mut self, turn: &BigRational) -> Result<Option<Fraction>, Trouble> {
        let twelfths = turn * BigInt::from(12);
        if !twelfths.is_integer() {
            return Ok(None);
        }
        let full = BigInt::from(24);
        let step = ((twelfths.numer() % &full) + &full) % &full;
        let step = step.to_i64().unwrap_or(0);
        let (step, sign) = if step >= 12 { (step - 12, -1) } else { (step, 1) };
        let step = step.min(12 - step);
        let half = |it: i64| Fraction::constant(BigRational::new(it.into(), 2.into()));
        let value = match step {
            0 => Fraction::whole(0),
            2 => half(1),
            3 => {
                let root = self.root(&Fraction::whole(2), 2)?;
                self.times(&half(1), &root)?
            }
            4 => {
                let root = self.root(&Fraction::whole(3), 2)?;
                self.times(&half(1), &root)?
            }
            6 => Fraction::whole(1),
            // 15 and 75 degrees: (sqrt 6 -+ sqrt 2) / 4.
            _ => {
                let six = self.root(&Fraction::whole(6), 2)?;
                let two = self.root(&Fraction::whole(2), 2)?;
                let sum = if step == 1 { self.minus(&six, &two)? } else { self.plus(&six, &two)? };
                self.over(&sum, &Fraction::whole(4))?
            }
        };
        Ok(Some(if sign < 0 { self.negated(&value) } else { value }))
    }

    /// Whether a value without variables is negative; `None` if it has some or is not real.
    pub fn is_negative(&mut self, value: &Fraction) -> Result<Option<bool>, Trouble> {
        if let Some(value) = value.as_constant() {
            return Ok(Some(value.is_negative()));
        }
        Ok(super::identity::real(self, value)?.map(|it| it.is_negative()))
    }

    fn extreme(&mut self, function: Function, mut arguments: Vec<Fraction>) -> Value {
        // Keep those that no other beats; what cannot be compared stays.
        let mut at = 0;
        while at < arguments.len() {
            let mut beaten = false;
            for other in 0..arguments.len() {
                if other == at {
                    continue;
                }
                let gap = self.minus(&arguments[at], &arguments[other])?;
                let loses = if gap.is_zero() {
                    Some(other < at)
                } else {
                    self.is_negative(&gap)?.map(|it| it == (function == Function::Maximum))
                };
                if loses == Some(true) {
                    beaten = true;
                    break;
                }
            }
            if beaten {
                arguments.remove(at);
            } else {
                at += 1;
            }
        }
        if let [only] = arguments.as_slice() {
            return Ok(only.clone());
        }
        arguments.sort_by_cached_key(|it| format!("{it:?}"));
        self.generator(Generator::Call(function, String::new(), arguments))
    }

    /// The greatest common divisor of two values, or their least common multiple: of rationals
    /// exactly, of polynomials by content and common monomial. With fractions among the
    /// coefficients the divisor of polynomials is monic.
    fn divisor(&mut self, a: &Fraction, b: &Fraction, multiple: bool) -> Value {
        if a.is_zero() || b.is_zero() {
            let other = if a.is_zero() { b } else { a };
            return Ok(if multiple { Fraction::whole(0) } else { other.clone() });
        }
        let one = Polynomial::one();
        if a.below != one || b.below != one {
            return Err(Trouble::Undefined);
        }
        let numbers = a.as_constant().is_some() && b.as_constant().is_some();
        let (left, right) = (a.above.content(), b.above.content());
        let whole = left.is_integer() && right.is_integer();
        let mut divisor = if a == b {
            a.clone()
        } else {
            let mut shared = a.above.common_monomial();
            let other = b.above.common_monomial();
            shared.retain_mut(|(id, power)| {
                let least = other.iter().find(|it| it.0 == *id).map_or(0, |it| it.1);
                *power = (*power).min(least);
                *power > 0
            });
            let content = if numbers || whole {
                BigRational::new(
                    gcd(left.numer() * right.denom(), right.numer() * left.denom()),
                    left.denom() * right.denom(),
                )
            } else {
                BigRational::one()
            };
            Fraction { above: Polynomial { terms: vec![(shared, content)] }, below: one }
        };
        if multiple {
            let product = self.times(a, b)?;
            divisor = self.over(&product, &divisor)?;
            if !numbers && !whole {
                let lead =
                    divisor.above.terms.last().map_or_else(BigRational::one, |it| it.1.clone());
                divisor = self.times(&divisor, &Fraction::constant(lead.recip()))?;
            }
        }
        if divisor.above.terms.first().is_some_and(|(_, value)| value.is_negative()) {
            divisor = self.negated(&divisor);
        }
        Ok(divisor)
    }

    /// A sum or product over a literal range, written out.
    fn series(&mut self, function: Function, arguments: Vec<Fraction>) -> Value {
        let [body, variable, from, to] = arguments.as_slice() else {
            return Err(Trouble::Undefined);
        };
        let literal = |it: &Fraction| {
            it.as_constant().filter(BigRational::is_integer).and_then(|it| it.numer().to_i64())
        };
        if let (Some(from), Some(to)) = (literal(from), literal(to))
            && to - from < MOST_SUMMANDS
            && let [(monomial, one)] = variable.above.terms.as_slice()
            && let [(id, 1)] = monomial.as_slice()
            && one.is_one()
        {
            let id = *id;
            let sum = function == Function::Sum;
            let mut total = Fraction::whole(i64::from(!sum));
            for value in from..=to {
                let term = self.substituted(body, id, &Fraction::whole(value))?;
                total = if sum { self.plus(&total, &term)? } else { self.times(&total, &term)? };
            }
            return Ok(total);
        }
        self.generator(Generator::Call(function, String::new(), arguments))
    }

    /// The value with a generator replaced, also inside the arguments of other generators.
    ///
    /// Calls itself once per level of arguments, of which there are no more than the parser's.
    fn substituted(&mut self, value: &Fraction, id: u32, by: &Fraction) -> Value {
        let above = self.substituted_polynomial(&value.above, id, by)?;
        let below = self.substituted_polynomial(&value.below, id, by)?;
        self.over(&above, &below)
    }

    fn substituted_polynomial(&mut self, value: &Polynomial, id: u32, by: &Fraction) -> Value {
        let mut sum = Fraction::whole(0);
        for (monomial, coefficient) in &value.terms {
            let mut term = Fraction::constant(coefficient.clone());
            for (generator, power) in monomial {
                let factor = if *generator == id {
                    by.clone()
                } else {
                    self.substituted_generator(*generator, id, by)?
                };
                let factor = self.whole_power(&factor, &BigInt::from(*power))?;
                term = self.times(&term, &factor)?;
            }
            sum = self.plus(&sum, &term)?;
        }
        Ok(sum)
    }

    fn substituted_generator(&mut self, generator: u32, id: u32, by: &Fraction) -> Value {
        self.fuel.spend(8)?;
        // Older generators cannot depend on the variable.
        if generator < id {
            return Ok(Fraction::generator(generator));
        }
        match self.generators[generator as usize].clone() {
            Generator::Power(pair) => {
                let base = self.substituted(&pair.0, id, by)?;
                let exponent = self.substituted(&pair.1, id, by)?;
                self.power(&base, &exponent)
            }
            Generator::Product(pair) => {
                let left = self.substituted(&pair.0, id, by)?;
                let right = self.substituted(&pair.1, id, by)?;
                self.times(&left, &right)
            }
            Generator::Call(function, name, arguments) => {
                let arguments = arguments
                    .iter()
                    .map(|it| self.substituted(it, id, by))
                    .collect::<Result<_, _>>()?;
                self.call(function, &name, arguments)
            }
            Generator::Apply(name, arguments) => {
                let arguments = arguments
                    .iter()
                    .map(|it| self.substituted(it, id, by))
                    .collect::<Result<_, _>>()?;
                self.generator(Generator::Apply(name, arguments))
            }
            _ => Ok(Fraction::generator(generator)),
        }
    }

    /// Whether different polynomials in these generators are different values.
    pub fn is_decisive(&self, polynomial: &Polynomial) -> bool {
        let mut roots: Vec<(&BigInt, u32)> = Vec::new();
        polynomial.generators().all(|id| match &self.generators[id as usize] {
            Generator::Symbol(_)
            | Generator::Pi
            | Generator::Euler
            | Generator::Imaginary
            | Generator::Infinity
            | Generator::Apply(..) => true,
            Generator::Root(prime, degree, certain) => {
                let one_degree = roots.iter().all(|(p, d)| *p != prime || d == degree);
                roots.push((prime, *degree));
                *certain && one_degree
            }
            Generator::Call(Function::Opaque, ..) => true,
            Generator::Call(Function::Sum | Function::Product, ..) => true,
            Generator::Power(_) | Generator::Product(_) | Generator::Call(..) => false,
        })
    }
}

fn is_small_prime(number: &BigInt) -> bool {
    // Nothing below 1000 divides it, or it was found by that division itself.
    *number < BigInt::from(1_000_000)
}

fn reduction(generator: &Generator) -> Option<Reduction> {
    match generator {
        Generator::Imaginary => Some(Reduction {
            degree: 2,
            value: Polynomial::constant(BigRational::from_integer((-1).into())),
        }),
        Generator::Root(number, degree, _) => Some(Reduction {
            degree: *degree,
            value: Polynomial::constant(BigRational::from_integer(number.clone())),
        }),
        Generator::Power(pair) => {
            let exponent = pair.1.as_constant()?;
            let degree = exponent.denom().to_u32().filter(|it| *it >= 2)?;
            (exponent.numer().is_one() && pair.0.below == Polynomial::one())
                .then(|| Reduction { degree, value: pair.0.above.clone() })
        }
        _ => None,
    }
}
