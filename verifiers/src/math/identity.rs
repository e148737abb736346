//! Whether two values are equal when their normal forms do not tell.
//!
//! **By residues**, if nothing but variables, sums, products and whole powers is involved: both
//! sides are evaluated at random points modulo two primes of 61 bits. A polynomial of degree d that
//! is not zero vanishes at a random point with probability at most d/p (J. T. Schwartz, Fast
//! probabilistic algorithms for verification of polynomial identities, 1980; R. Zippel, 1979), so
//! with d up to 2^20 a wrong accept has probability below 10^-24. Primes and points are drawn with
//! a key: a fixed prime p could be fooled by `x^p` for `x`. A constant is never accepted this way,
//! only refused.
//!
//! **By numbers**, otherwise: the difference is evaluated in complex floats at a precision and at
//! twice that precision. A difference that is zero shrinks to the rounding of whichever precision
//! is used; one that is not zero stays where it is. It is accepted if at every point it falls below
//! 2^(-3/2 p) of the terms it is made of, p being at least 128 bits and growing with the digits that
//! were written. This is no proof; it says that the values agree to more than fifty digits.

use std::hash::{DefaultHasher, Hash, Hasher};

use astro_float_num::{BigFloat, Consts, RoundingMode, Sign};
use num_bigint::BigInt;
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive, Zero};

use super::{
    algebra::{Algebra, Generator},
    polynomial::{Fraction, Polynomial, Trouble, bits},
    tree::Function,
};

/// Bits of the first evaluation.
const PRECISION: usize = 128;
/// Most bits of the first evaluation.
const MOST_PRECISION: usize = 1024;
/// Points at which values with variables are compared, and how many of them must be defined.
const POINTS: u64 = 6;
const DEFINED: u64 = 3;
/// Largest degree that residues are trusted with.
const MOST_TOTAL_DEGREE: u64 = 1 << 20;

/// Whether a polynomial over the generators is zero; `None` if that cannot be decided.
pub fn is_zero(
    algebra: &mut Algebra,
    polynomial: &Polynomial,
    seed: u64,
) -> Result<Option<bool>, Trouble> {
    algebra.rule = "normal form";
    if polynomial.is_zero() {
        return Ok(Some(true));
    }
    if algebra.is_decisive(polynomial) {
        return Ok(Some(false));
    }
    if let Some(zero) = by_residues(algebra, polynomial, seed)? {
        algebra.rule = "residues";
        return Ok(Some(zero));
    }
    algebra.rule = "floats";
    by_numbers(algebra, polynomial, seed)
}

// --- residues

/// Tries the polynomial modulo two primes; `None` if it has other parts than residues can say.
fn by_residues(
    algebra: &mut Algebra,
    polynomial: &Polynomial,
    seed: u64,
) -> Result<Option<bool>, Trouble> {
    let used = dependencies(algebra, polynomial);
    let mut variables = false;
    for id in used.iter().copied() {
        match &algebra.generators[id as usize] {
            Generator::Symbol(_) => variables = true,
            Generator::Product(_) => {}
            Generator::Power(pair) if pair.1.as_constant().is_some_and(|it| it.is_integer()) => {}
            _ => return Ok(None),
        }
    }
    for round in 0..2 {
        algebra.fuel.spend(2_000)?;
        let modulus = prime(mixed(seed, 0xA0 + round));
        let mut points = 0;
        let residue = loop {
            let point = mixed(seed, 0xB000 + 16 * round + points);
            if let Some(residue) = residue(algebra, polynomial, &used, modulus, point)? {
                break residue;
            }
            // A denominator vanished: another point.
            points += 1;
            if points == 8 {
                return Ok(None);
            }
        };
        if residue != 0 {
            return Ok(Some(false));
        }
    }
    if !variables || degree(algebra, polynomial, &used) > MOST_TOTAL_DEGREE {
        return Ok(None);
    }
    Ok(Some(true))
}

/// A bound on the total degree.
fn degree(algebra: &Algebra, polynomial: &Polynomial, used: &[u32]) -> u64 {
    let mut degrees = vec![0_u64; algebra.generators.len()];
    let of = |polynomial: &Polynomial, degrees: &[u64]| -> u64 {
        let term = |it: &[(u32, u32)]| {
            it.iter().fold(0_u64, |sum, (id, power)| {
                sum.saturating_add(degrees[*id as usize].saturating_mul(u64::from(*power)))
            })
        };
        polynomial.terms.iter().map(|(monomial, _)| term(monomial)).max().unwrap_or(0)
    };
    for id in used.iter().copied() {
        let sum = |it: &Fraction, degrees: &[u64]| {
            of(&it.above, degrees).saturating_add(of(&it.below, degrees))
        };
        degrees[id as usize] = match &algebra.generators[id as usize] {
            Generator::Product(pair) => {
                sum(&pair.0, &degrees).saturating_add(sum(&pair.1, &degrees))
            }
            Generator::Power(pair) => {
                let times = pair.1.as_constant().map_or_else(BigInt::zero, |it| it.numer().abs());
                sum(&pair.0, &degrees).saturating_mul(times.to_u64().unwrap_or(u64::MAX))
            }
            _ => 1,
        };
    }
    of(polynomial, &degrees)
}

/// The polynomial modulo a prime at a point; `None` if a denominator vanishes.
fn residue(
    algebra: &mut Algebra,
    polynomial: &Polynomial,
    used: &[u32],
    modulus: u64,
    point: u64,
) -> Result<Option<u64>, Trouble> {
    let mut values = vec![0_u64; algebra.generators.len()];
    for id in used.iter().copied() {
        algebra.fuel.spend(200)?;
        let value = match &algebra.generators[id as usize] {
            Generator::Symbol(name) => Some(mixed(point, hash(name)) % modulus),
            Generator::Product(pair) => {
                let left = fraction_residue(&pair.0, &values, modulus);
                let right = fraction_residue(&pair.1, &values, modulus);
                left.zip(right).map(|(a, b)| times(a, b, modulus))
            }
            Generator::Power(pair) => fraction_residue(&pair.0, &values, modulus)
                .filter(|base| *base != 0)
                .zip(pair.1.as_constant())
                .map(|(base, exponent)| {
                    // Fermat: exponents count modulo p - 1.
                    let exponent = exponent.numer().mod_floor(&BigInt::from(modulus - 1));
                    raised(base, exponent.to_u64().unwrap_or(0), modulus)
                }),
            _ => None,
        };
        let Some(value) = value else { return Ok(None) };
        values[id as usize] = value;
    }
    algebra.fuel.spend(40 * polynomial.terms.len() as u64)?;
    Ok(polynomial_residue(polynomial, &values, modulus))
}

fn fraction_residue(value: &Fraction, values: &[u64], modulus: u64) -> Option<u64> {
    let above = polynomial_residue(&value.above, values, modulus)?;
    let below = polynomial_residue(&value.below, values, modulus)?;
    (below != 0).then(|| times(above, raised(below, modulus - 2, modulus), modulus))
}

fn polynomial_residue(polynomial: &Polynomial, values: &[u64], modulus: u64) -> Option<u64> {
    let mut sum = 0;
    for (monomial, coefficient) in &polynomial.terms {
        let wide = BigInt::from(modulus);
        let above = coefficient.numer().mod_floor(&wide).to_u64()?;
        let below = coefficient.denom().mod_floor(&wide).to_u64()?;
        if below == 0 {
            return None;
        }
        let mut term = times(above, raised(below, modulus - 2, modulus), modulus);
        for (id, power) in monomial {
            term = times(term, raised(values[*id as usize], u64::from(*power), modulus), modulus);
        }
        sum = (sum + term) % modulus;
    }
    Some(sum)
}

fn times(a: u64, b: u64, modulus: u64) -> u64 {
    (u128::from(a) * u128::from(b) % u128::from(modulus)) as u64
}

fn raised(mut base: u64, mut exponent: u64, modulus: u64) -> u64 {
    let mut result = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = times(result, base, modulus);
        }
        base = times(base, base, modulus);
        exponent >>= 1;
    }
    result
}

/// The next prime at or after a number of 61 bits that the seed picks.
fn prime(seed: u64) -> u64 {
    let mut candidate = (seed >> 4) | (1 << 60) | 1;
    while !is_prime(candidate) {
        candidate += 2;
    }
    candidate
}

/// Miller-Rabin with bases that decide every number of 64 bits (J. Sorenson and J. Webster, 2017).
fn is_prime(number: u64) -> bool {
    const BASES: [u64; 12] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37];
    if BASES.iter().any(|base| number.is_multiple_of(*base)) {
        return false;
    }
    let odd = (number - 1) >> (number - 1).trailing_zeros();
    BASES.iter().all(|base| {
        let mut power = raised(*base, odd, number);
        let mut exponent = odd;
        if power == 1 {
            return true;
        }
        while exponent < number - 1 {
            if power == number - 1 {
                return true;
            }
            power = times(power, power, number);
            exponent <<= 1;
        }
        false
    })
}

/// A number drawn from a seed and a place (S. Vigna, splitmix64).
fn mixed(seed: u64, place: u64) -> u64 {
    let mut z = seed ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn hash(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// The seed of a pair of answers under a key.
pub fn seed(key: u64, gold: &str, answer: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, gold, answer).hash(&mut hasher);
    hasher.finish()
}

/// The generators that a polynomial needs, older ones first.
fn dependencies(algebra: &Algebra, polynomial: &Polynomial) -> Vec<u32> {
    let mut needed = vec![false; algebra.generators.len()];
    for id in polynomial.generators() {
        needed[id as usize] = true;
    }
    // Arguments are older than what they are arguments of.
    for id in (0..needed.len()).rev() {
        if !needed[id] {
            continue;
        }
        let mut mark = |value: &Fraction| {
            for inner in value.above.generators().chain(value.below.generators()) {
                needed[inner as usize] = true;
            }
        };
        match &algebra.generators[id] {
            Generator::Power(pair) | Generator::Product(pair) => {
                mark(&pair.0);
                mark(&pair.1);
            }
            Generator::Call(_, _, arguments) => arguments.iter().for_each(&mut mark),
            _ => {}
        }
    }
    (0..needed.len() as u32).filter(|id| needed[*id as usize]).collect()
}

// --- numbers

const ROUND: RoundingMode = RoundingMode::None;

/// A complex number.
#[derive(Clone, Debug)]
struct Complex {
    re: BigFloat,
    im: BigFloat,
}

fn by_numbers(
    algebra: &mut Algebra,
    polynomial: &Polynomial,
    seed: u64,
) -> Result<Option<bool>, Trouble> {
    let used = dependencies(algebra, polynomial);
    let variables = used.iter().any(|id| {
        matches!(
            algebra.generators[*id as usize],
            Generator::Symbol(_) | Generator::Apply(..) | Generator::Call(Function::Opaque, ..)
        )
    });
    let mut widest = polynomial.bits();
    for id in &used {
        if let Generator::Power(pair) | Generator::Product(pair) = &algebra.generators[*id as usize]
        {
            for value in [&pair.0, &pair.1] {
                widest = widest.max(value.above.bits()).max(value.below.bits());
            }
        }
        if let Generator::Call(_, _, arguments) = &algebra.generators[*id as usize] {
            for value in arguments {
                widest = widest.max(value.above.bits()).max(value.below.bits());
            }
        }
    }
    let precision = PRECISION + (2 * widest as usize).next_multiple_of(64);
    if precision > MOST_PRECISION {
        return Ok(None);
    }
    let points = if variables { POINTS } else { 1 };
    let mut defined = 0;
    for point in 0..points {
        let point = mixed(seed, 0xC0 + point);
        let Some((low, scale)) = difference(algebra, polynomial, &used, precision, point)? else {
            continue;
        };
        // Far above any rounding: no need to look closer.
        if low > scale - precision as i64 / 4 {
            return Ok(Some(false));
        }
        let Some((high, scale)) = difference(algebra, polynomial, &used, 2 * precision, point)?
        else {
            continue;
        };
        if high > scale - precision as i64 * 3 / 2 {
            return Ok(Some(false));
        }
        defined += 1;
        if defined == DEFINED {
            break;
        }
    }
    Ok((defined >= DEFINED.min(points)).then_some(true))
}

/// Exponents of the value of a polynomial at a point and of its largest term; `None` if it is not
/// defined there.
fn difference(
    algebra: &mut Algebra,
    polynomial: &Polynomial,
    used: &[u32],
    precision: usize,
    point: u64,
) -> Result<Option<(i64, i64)>, Trouble> {
    let mut floats = Floats::new(precision, algebra);
    let values = floats.generators(algebra, used, point)?;
    let Some(values) = values else {
        floats.done(algebra);
        return Ok(None);
    };
    algebra.fuel.spend(20 * polynomial.terms.len() as u64)?;
    let mut sum = floats.zero();
    let mut scale = i64::MIN;
    for term in &polynomial.terms {
        let value = floats.term(term, &values);
        scale = scale.max(size(&value));
        sum = floats.add(&sum, &value);
    }
    floats.done(algebra);
    if !is_finite(&sum) || scale == i64::MIN {
        return Ok(None);
    }
    Ok(Some((size(&sum), scale)))
}

/// The exponent of the larger part; the least possible for zero.
fn size(value: &Complex) -> i64 {
    let of = |it: &BigFloat| {
        if it.is_zero() { i64::MIN / 4 } else { it.exponent().map_or(i64::MIN / 4, i64::from) }
    };
    of(&value.re).max(of(&value.im))
}

fn is_finite(value: &Complex) -> bool {
    [&value.re, &value.im].iter().all(|it| !it.is_nan() && !it.is_inf())
}

/// Evaluation at one precision.
struct Floats {
    precision: usize,
    constants: Option<Consts>,
}

impl Floats {
    /// Takes the constants of a pair of answers for a while; [`Self::done`] gives them back.
    fn new(precision: usize, algebra: &mut Algebra) -> Self {
        let constants = algebra.constants.take().or_else(|| Consts::new().ok());
        Self { precision, constants }
    }

    fn done(self, algebra: &mut Algebra) {
        algebra.constants = self.constants;
    }

    fn zero(&self) -> Complex {
        Complex { re: BigFloat::new(self.precision), im: BigFloat::new(self.precision) }
    }

    fn real(&self, re: BigFloat) -> Complex {
        Complex { re, im: BigFloat::new(self.precision) }
    }

    fn nan(&self) -> Complex {
        self.real(BigFloat::nan(None))
    }

    fn small(&self, value: i32) -> BigFloat {
        BigFloat::from_i32(value, self.precision)
    }

    fn rational(&self, value: &BigRational) -> BigFloat {
        let above = integer(value.numer(), self.precision);
        if value.denom().is_one() {
            return above;
        }
        above.div(&integer(value.denom(), self.precision), self.precision, ROUND)
    }

    fn add(&self, a: &Complex, b: &Complex) -> Complex {
        let p = self.precision;
        Complex { re: a.re.add(&b.re, p, ROUND), im: a.im.add(&b.im, p, ROUND) }
    }

    fn times(&self, a: &Complex, b: &Complex) -> Complex {
        let p = self.precision;
        if a.im.is_zero() && b.im.is_zero() {
            return self.real(a.re.mul(&b.re, p, ROUND));
        }
        let re = a.re.mul(&b.re, p, ROUND).sub(&a.im.mul(&b.im, p, ROUND), p, ROUND);
        let im = a.re.mul(&b.im, p, ROUND).add(&a.im.mul(&b.re, p, ROUND), p, ROUND);
        Complex { re, im }
    }

    fn over(&self, a: &Complex, b: &Complex) -> Complex {
        let p = self.precision;
        if b.im.is_zero() {
            if b.re.is_zero() {
                return self.nan();
            }
            return Complex { re: a.re.div(&b.re, p, ROUND), im: a.im.div(&b.re, p, ROUND) };
        }
        let norm = b.re.mul(&b.re, p, ROUND).add(&b.im.mul(&b.im, p, ROUND), p, ROUND);
        let conjugate = Complex { re: b.re.clone(), im: b.im.neg() };
        let product = self.times(a, &conjugate);
        Complex { re: product.re.div(&norm, p, ROUND), im: product.im.div(&norm, p, ROUND) }
    }

    fn whole_power(&self, base: &Complex, mut exponent: u64) -> Complex {
        let mut square = base.clone();
        let mut result = self.real(self.small(1));
        while exponent > 0 {
            if exponent & 1 == 1 {
                result = self.times(&result, &square);
            }
            exponent >>= 1;
            if exponent > 0 {
                square = self.times(&square, &square);
            }
        }
        result
    }

    fn term(
        &self,
        (monomial, coefficient): &(Vec<(u32, u32)>, BigRational),
        values: &[Complex],
    ) -> Complex {
        let mut term = self.real(self.rational(coefficient));
        for (id, power) in monomial {
            let factor = self.whole_power(&values[*id as usize], u64::from(*power));
            term = self.times(&term, &factor);
        }
        term
    }

    fn polynomial(&self, polynomial: &Polynomial, values: &[Complex]) -> Complex {
        polynomial
            .terms
            .iter()
            .fold(self.zero(), |sum, term| self.add(&sum, &self.term(term, values)))
    }

    fn fraction(&self, value: &Fraction, values: &[Complex]) -> Complex {
        let above = self.polynomial(&value.above, values);
        if value.below == Polynomial::one() {
            return above;
        }
        self.over(&above, &self.polynomial(&value.below, values))
    }

    /// The values of the generators at a point; `None` if one is not defined there.
    fn generators(
        &mut self,
        algebra: &mut Algebra,
        used: &[u32],
        point: u64,
    ) -> Result<Option<Vec<Complex>>, Trouble> {
        let mut values = vec![self.zero(); algebra.generators.len()];
        let step = (self.precision / 64) as u64;
        for id in used.iter().copied() {
            let generator = &algebra.generators[id as usize];
            let price = match generator {
                Generator::Symbol(_) | Generator::Imaginary => 4,
                Generator::Product(_) | Generator::Root(..) => 40,
                _ => 400 + 60 * step * step,
            };
            algebra.fuel.spend(price)?;
            let generator = &algebra.generators[id as usize];
            let value = match generator {
                Generator::Symbol(name) => self.real(self.sample(point, hash(name))),
                Generator::Apply(name, arguments) => {
                    let text = format!("{name} {arguments:?}");
                    self.real(self.sample(point, hash(&text)))
                }
                Generator::Pi => self.pi(),
                Generator::Euler => {
                    let one = self.real(self.small(1));
                    self.exponential(&one)
                }
                Generator::Imaginary => {
                    Complex { re: BigFloat::new(self.precision), im: self.small(1) }
                }
                Generator::Infinity => return Ok(None),
                Generator::Root(number, degree, _) => {
                    let base = self.real(integer(number, self.precision));
                    self.root(&base, *degree)
                }
                Generator::Product(pair) => {
                    let left = self.fraction(&pair.0, &values);
                    let right = self.fraction(&pair.1, &values);
                    self.times(&left, &right)
                }
                Generator::Power(pair) => {
                    let base = self.fraction(&pair.0, &values);
                    match pair.1.as_constant() {
                        Some(exponent) => self.rational_power(&base, &exponent),
                        None => {
                            let exponent = self.fraction(&pair.1, &values);
                            self.power(&base, &exponent)
                        }
                    }
                }
                Generator::Call(Function::Opaque, name, arguments) => {
                    let text = format!("{name} {arguments:?}");
                    self.real(self.sample(point, hash(&text)))
                }
                Generator::Call(function, _, arguments) => {
                    let arguments: Vec<Complex> =
                        arguments.iter().map(|it| self.fraction(it, &values)).collect();
                    self.call(*function, &arguments)
                }
            };
            if !is_finite(&value) {
                return Ok(None);
            }
            values[id as usize] = value;
        }
        Ok(Some(values))
    }

    /// A real number between 1/8 and 4 of either sign, the same at every precision.
    fn sample(&self, point: u64, name: u64) -> BigFloat {
        let drawn = mixed(point, name);
        let magnitude = 0.125 + (drawn >> 24) as f64 / (1_u64 << 40) as f64 * 3.875;
        let value = if drawn & 1 == 1 { -magnitude } else { magnitude };
        BigFloat::from_f64(value, self.precision)
    }

    fn with<T>(&mut self, work: impl FnOnce(usize, &mut Consts) -> T) -> Option<T> {
        let precision = self.precision;
        self.constants.as_mut().map(|constants| work(precision, constants))
    }

    fn apply(&mut self, work: impl FnOnce(usize, &mut Consts) -> BigFloat) -> BigFloat {
        self.with(work).unwrap_or_else(|| BigFloat::nan(None))
    }

    fn pi(&mut self) -> Complex {
        let pi = self.apply(|p, it| it.pi(p, ROUND));
        self.real(pi)
    }

    /// Whether the functions below can take the number: larger ones need more digits than there are.
    fn fits(value: &Complex) -> bool {
        is_finite(value) && size(value) < 64
    }

    fn exponential(&mut self, value: &Complex) -> Complex {
        if !Self::fits(value) || size(value) > 24 {
            return self.nan();
        }
        let growth = self.apply(|p, it| value.re.exp(p, ROUND, it));
        if value.im.is_zero() {
            return self.real(growth);
        }
        let (sine, cosine) = self.sine_cosine(&value.im);
        let p = self.precision;
        Complex { re: growth.mul(&cosine, p, ROUND), im: growth.mul(&sine, p, ROUND) }
    }

    fn sine_cosine(&mut self, angle: &BigFloat) -> (BigFloat, BigFloat) {
        (self.apply(|p, it| angle.sin(p, ROUND, it)), self.apply(|p, it| angle.cos(p, ROUND, it)))
    }

    /// The principal logarithm.
    fn logarithm(&mut self, value: &Complex) -> Complex {
        if !is_finite(value) || (value.re.is_zero() && value.im.is_zero()) {
            return self.nan();
        }
        if value.im.is_zero() {
            let magnitude = value.re.abs();
            let re = self.apply(|p, it| magnitude.ln(p, ROUND, it));
            let im =
                if value.re.is_negative() { self.pi().re } else { BigFloat::new(self.precision) };
            return Complex { re, im };
        }
        let p = self.precision;
        let norm =
            value.re.mul(&value.re, p, ROUND).add(&value.im.mul(&value.im, p, ROUND), p, ROUND);
        let re = self.apply(|p, it| norm.ln(p, ROUND, it)).div(&self.small(2), p, ROUND);
        let im = self.angle(value);
        Complex { re, im }
    }

    /// The angle in (-pi, pi] of a number that is not real.
    fn angle(&mut self, value: &Complex) -> BigFloat {
        let p = self.precision;
        let pi = self.pi().re;
        if value.re.is_zero() {
            let right = pi.div(&self.small(2), p, ROUND);
            return if value.im.is_negative() { right.neg() } else { right };
        }
        let slope = value.im.div(&value.re, p, ROUND);
        let angle = self.apply(|p, it| slope.atan(p, ROUND, it));
        match (value.re.is_negative(), value.im.is_negative()) {
            (false, _) => angle,
            (true, false) => angle.add(&pi, p, ROUND),
            (true, true) => angle.sub(&pi, p, ROUND),
        }
    }

    fn power(&mut self, base: &Complex, exponent: &Complex) -> Complex {
        if base.re.is_zero() && base.im.is_zero() {
            return if exponent.re.is_positive() && exponent.im.is_zero() && !exponent.re.is_zero() {
                self.zero()
            } else {
                self.nan()
            };
        }
        let logarithm = self.logarithm(base);
        let product = self.times(&logarithm, exponent);
        self.exponential(&product)
    }

    fn rational_power(&mut self, base: &Complex, exponent: &BigRational) -> Complex {
        let Some(times) = exponent.numer().abs().to_u64() else {
            let exponent = self.real(self.rational(exponent));
            return self.power(base, &exponent);
        };
        let root = match exponent.denom().to_u32() {
            Some(1) => base.clone(),
            Some(degree) if degree <= 64 => self.root(base, degree),
            _ => {
                let exponent = self.real(self.rational(exponent));
                return self.power(base, &exponent);
            }
        };
        let power = self.whole_power(&root, times);
        if exponent.is_negative() {
            let one = self.real(self.small(1));
            return self.over(&one, &power);
        }
        power
    }

    /// The real root of a real number if there is one, else the principal root.
    fn root(&mut self, base: &Complex, degree: u32) -> Complex {
        let p = self.precision;
        if base.re.is_zero() && base.im.is_zero() {
            return self.zero();
        }
        if base.im.is_zero() {
            let magnitude = base.re.abs();
            let root = match degree {
                2 => magnitude.sqrt(p, ROUND),
                3 => magnitude.cbrt(p, ROUND),
                _ => {
                    let logarithm = self.apply(|p, it| magnitude.ln(p, ROUND, it));
                    let part = logarithm.div(&self.small(degree as i32), p, ROUND);
                    self.apply(|p, it| part.exp(p, ROUND, it))
                }
            };
            if !base.re.is_negative() {
                return self.real(root);
            }
            if degree % 2 == 1 {
                return self.real(root.neg());
            }
            if degree == 2 {
                return Complex { re: BigFloat::new(p), im: root };
            }
        }
        let exponent = self.real(self.small(1).div(&self.small(degree as i32), p, ROUND));
        self.power(base, &exponent)
    }

    fn call(&mut self, function: Function, arguments: &[Complex]) -> Complex {
        let p = self.precision;
        let Some(first) = arguments.first().cloned() else { return self.nan() };
        let real = first.im.is_zero();
        if !Self::fits(&first)
            && !matches!(function, Function::NaturalLogarithm | Function::AbsoluteValue)
        {
            return self.nan();
        }
        let half = |this: &Self, value: Complex| {
            let two = this.real(this.small(2));
            this.over(&value, &two)
        };
        match function {
            Function::NaturalLogarithm => self.logarithm(&first),
            Function::AbsoluteValue => {
                if real {
                    return self.real(first.re.abs());
                }
                let norm = first.re.mul(&first.re, p, ROUND).add(
                    &first.im.mul(&first.im, p, ROUND),
                    p,
                    ROUND,
                );
                self.real(norm.sqrt(p, ROUND))
            }
            Function::Sine if real => {
                let value = self.apply(|p, it| first.re.sin(p, ROUND, it));
                self.real(value)
            }
            Function::Cosine if real => {
                let value = self.apply(|p, it| first.re.cos(p, ROUND, it));
                self.real(value)
            }
            Function::Sine
            | Function::Cosine
            | Function::HyperbolicSine
            | Function::HyperbolicCosine => {
                // sin z = (e^iz - e^-iz) / 2i, cos z = (e^iz + e^-iz) / 2.
                let circular = matches!(function, Function::Sine | Function::Cosine);
                let turned = if circular {
                    Complex { re: first.im.neg(), im: first.re.clone() }
                } else {
                    first.clone()
                };
                let forth = self.exponential(&turned);
                let back = self.exponential(&Complex { re: turned.re.neg(), im: turned.im.neg() });
                let minus = Complex { re: back.re.neg(), im: back.im.neg() };
                match function {
                    Function::Cosine | Function::HyperbolicCosine => {
                        let sum = self.add(&forth, &back);
                        half(self, sum)
                    }
                    Function::HyperbolicSine => {
                        let sum = self.add(&forth, &minus);
                        half(self, sum)
                    }
                    _ => {
                        let sum = self.add(&forth, &minus);
                        let halved = half(self, sum);
                        Complex { re: halved.im.clone(), im: halved.re.neg() }
                    }
                }
            }
            Function::HyperbolicTangent => {
                let above = self.call(Function::HyperbolicSine, arguments);
                let below = self.call(Function::HyperbolicCosine, arguments);
                self.over(&above, &below)
            }
            Function::ArcTangent if real => {
                let value = self.apply(|p, it| first.re.atan(p, ROUND, it));
                self.real(value)
            }
            Function::ArcSine | Function::ArcCosine if real => {
                let value = self.apply(|p, it| match function {
                    Function::ArcSine => first.re.asin(p, ROUND, it),
                    _ => first.re.acos(p, ROUND, it),
                });
                self.real(value)
            }
            Function::Floor | Function::Ceiling if real => {
                let value =
                    if function == Function::Floor { first.re.floor() } else { first.re.ceil() };
                self.real(value)
            }
            Function::Maximum | Function::Minimum if arguments.iter().all(|it| it.im.is_zero()) => {
                let mut best = first.re;
                for other in &arguments[1..] {
                    let larger = other.re.cmp(&best).is_some_and(|it| it > 0);
                    if larger == (function == Function::Maximum) {
                        best = other.re.clone();
                    }
                }
                self.real(best)
            }
            _ => self.nan(),
        }
    }
}

/// A whole number as a float.
fn integer(value: &BigInt, precision: usize) -> BigFloat {
    if value.is_zero() {
        return BigFloat::new(precision);
    }
    if let Some(small) = value.to_i32() {
        return BigFloat::from_i32(small, precision);
    }
    let (sign, mut words) = value.to_u64_digits();
    let exponent = value.bits();
    // The mantissa is a fraction between one half and one: its top bit is set.
    let shift = (64 - exponent % 64) % 64;
    if shift > 0 {
        let mut carry = 0;
        for word in &mut words {
            let next = *word >> (64 - shift);
            *word = (*word << shift) | carry;
            carry = next;
        }
    }
    let sign = if sign == num_bigint::Sign::Minus { Sign::Neg } else { Sign::Pos };
    let Ok(exponent) = i32::try_from(exponent) else { return BigFloat::nan(None) };
    let mut float = BigFloat::from_words(&words, sign, exponent);
    if float.set_precision(precision, ROUND).is_err() {
        return BigFloat::nan(None);
    }
    float
}

/// A float as the rational that it is; `None` beyond 2^4096.
fn rational(value: &BigFloat) -> Option<BigRational> {
    if value.is_zero() {
        return Some(BigRational::zero());
    }
    let (words, _, sign, exponent, _) = value.as_raw_parts()?;
    if exponent.unsigned_abs() > 4096 {
        return None;
    }
    let mut mantissa = BigInt::zero();
    for word in words.iter().rev() {
        mantissa = (mantissa << 64) + BigInt::from(*word);
    }
    if sign == Sign::Neg {
        mantissa = -mantissa;
    }
    let shift = i64::from(exponent) - 64 * words.len() as i64;
    Some(if shift >= 0 {
        BigRational::from_integer(mantissa << shift as usize)
    } else {
        BigRational::new(mantissa, BigInt::one() << shift.unsigned_abs() as usize)
    })
}

/// Real and imaginary part to about fifty digits of a value without variables; `None` if it has
/// some or is not defined.
pub fn approximate(
    algebra: &mut Algebra,
    value: &Fraction,
) -> Result<Option<(BigRational, BigRational)>, Trouble> {
    if let Some(value) = value.as_constant() {
        return Ok(Some((value, BigRational::zero())));
    }
    let both =
        Polynomial { terms: value.above.terms.iter().chain(&value.below.terms).cloned().collect() };
    let used = dependencies(algebra, &both);
    if used.iter().any(|id| {
        matches!(
            algebra.generators[*id as usize],
            Generator::Symbol(_)
                | Generator::Apply(..)
                | Generator::Infinity
                | Generator::Call(Function::Opaque | Function::Sum | Function::Product, ..)
        )
    }) {
        return Ok(None);
    }
    let widest = both.bits();
    let precision = PRECISION + 64 + (2 * widest as usize).next_multiple_of(64);
    if precision > MOST_PRECISION {
        return Ok(None);
    }
    let mut floats = Floats::new(precision, algebra);
    let values = floats.generators(algebra, &used, 0)?;
    let value = values.map(|it| floats.fraction(value, &it));
    floats.done(algebra);
    let Some(value) = value else { return Ok(None) };
    if !is_finite(&value) {
        return Ok(None);
    }
    Ok(rational(&value.re).zip(rational(&value.im)))
}

/// A real value without variables to about fifty digits; `None` if it is not real or may be zero.
pub fn real(algebra: &mut Algebra, value: &Fraction) -> Result<Option<BigRational>, Trouble> {
    let Some((re, im)) = approximate(algebra, value)? else { return Ok(None) };
    let noise = BigRational::new(BigInt::one(), BigInt::one() << 96);
    let real = im.abs() <= &re.abs() * &noise;
    Ok((real && (value.as_constant().is_some() || re.abs() > noise)).then_some(re))
}

/// The whole number below a value that is not whole; `None` if it may be one.
pub fn floor(value: &BigRational) -> Option<BigInt> {
    let floor = value.floor();
    let part = value - &floor;
    let noise = BigRational::new(BigInt::one(), BigInt::one() << 64);
    (part > noise && part < BigRational::one() - &noise && bits(&floor) < 512)
        .then(|| floor.to_integer())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_are_prime_and_of_61_bits() {
        for seed in 0..20 {
            let prime = prime(mixed(7, seed));
            assert!(prime >> 60 == 1 && is_prime(prime));
            assert_eq!(raised(3, prime - 1, prime), 1);
        }
        assert!(!is_prime((1 << 60) + 1) && !is_prime(561 * 1_000_003));
    }

    #[test]
    fn floats_and_rationals_are_the_same_numbers() {
        for text in ["7", "-123456789012345678901234567890", "1", "18446744073709551616"] {
            let value: BigInt = text.parse().expect("an integer");
            assert_eq!(rational(&integer(&value, 256)), Some(BigRational::from_integer(value)));
        }
    }
}
