//! Sparse polynomials with rational coefficients, and quotients of them.
//!
//! A monomial is a product of powers of generators (`algebra.rs` says what generators are). Some
//! generators reduce: i^2 = -1, r^k = p for the k-th root r of p. Two polynomials are equal if and
//! only if their difference has no terms, as long as the generators are independent; two quotients
//! a/b and c/d are equal if and only if ad - cb has no terms.
//!
//! Sizes are checked before the work: at most [`MOST_TERMS`] terms, [`MOST_DEGREE`] in one
//! generator and [`MOST_BITS`] in a coefficient.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, btree_map::Entry},
};

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Signed, Zero};

use super::fuel::{Exhausted, Fuel};

/// Terms of a polynomial.
pub const MOST_TERMS: usize = 512;
/// Power of one generator in a term.
pub const MOST_DEGREE: u32 = 64;
/// Bits of a numerator or denominator.
pub const MOST_BITS: u64 = 1 << 16;

/// Generators with their powers, by generator.
pub type Monomial = Vec<(u32, u32)>;

/// Why a result was not computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It would be larger than the bounds above.
    TooLarge,
    /// It does not exist: a division by zero, a logarithm of zero.
    Undefined,
    /// The budget ran out.
    Fuel,
}

impl From<Exhausted> for Trouble {
    fn from(_: Exhausted) -> Self {
        Self::Fuel
    }
}

/// What a power of a generator is replaced by: its `degree`-th power is `value`.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduction {
    /// At least 2.
    pub degree: u32,
    /// In generators that are older than the one that reduces.
    pub value: Polynomial,
}

/// A polynomial; terms are sorted by monomial and none is zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Polynomial {
    /// Monomials and their coefficients.
    pub terms: Vec<(Monomial, BigRational)>,
}

/// A quotient of polynomials; the denominator is not zero.
#[derive(Clone, Debug, PartialEq)]
pub struct Fraction {
    /// Above the line.
    pub above: Polynomial,
    /// Below the line.
    pub below: Polynomial,
}

/// Bits of the larger of numerator and denominator.
pub fn bits(value: &BigRational) -> u64 {
    value.numer().bits().max(value.denom().bits())
}

/// The price of multiplying two numbers of so many bits, or of dividing them.
pub fn price(a: u64, b: u64) -> u64 {
    4 + (a / 64 + 1) * (b / 64 + 1) / 4
}

/// The product of two rationals; whole numbers are multiplied without looking for divisors.
pub fn multiply(a: &BigRational, b: &BigRational, fuel: &mut Fuel) -> Result<BigRational, Trouble> {
    let (wide, other) = (bits(a), bits(b));
    if wide + other > MOST_BITS {
        return Err(Trouble::TooLarge);
    }
    fuel.spend(price(wide, other))?;
    let shared = |above: &BigInt, below: &BigInt, fuel: &mut Fuel| -> Result<BigInt, Trouble> {
        if below.is_one() || above.magnitude().is_one() {
            return Ok(BigInt::one());
        }
        // Euclid's algorithm takes about as many steps as there are bits in the smaller number.
        let least = above.bits().min(below.bits());
        fuel.spend(least / 8 * (1 + above.bits().max(below.bits()) / 256))?;
        Ok(gcd(above.clone(), below.clone()))
    };
    let left = shared(a.numer(), b.denom(), fuel)?;
    let right = shared(b.numer(), a.denom(), fuel)?;
    if left.is_one() && right.is_one() {
        return Ok(BigRational::new_raw(a.numer() * b.numer(), a.denom() * b.denom()));
    }
    Ok(BigRational::new_raw(
        (a.numer() / &left) * (b.numer() / &right),
        (a.denom() / &right) * (b.denom() / &left),
    ))
}

/// The sum of two rationals.
pub fn add(a: &BigRational, b: &BigRational, fuel: &mut Fuel) -> Result<BigRational, Trouble> {
    let (wide, other) = (bits(a), bits(b));
    if a.denom().is_one() && b.denom().is_one() {
        fuel.spend(4 + (wide + other) / 256)?;
        return Ok(BigRational::from_integer(a.numer() + b.numer()));
    }
    if wide + other > MOST_BITS {
        return Err(Trouble::TooLarge);
    }
    let below = a.denom().bits() + b.denom().bits();
    fuel.spend(3 * price(wide, other) + below / 8 * (1 + (wide + other) / 256))?;
    let above = a.numer() * b.denom() + b.numer() * a.denom();
    let denominator = a.denom() * b.denom();
    let divisor = gcd(above.clone(), denominator.clone());
    Ok(BigRational::new_raw(above / &divisor, denominator / divisor))
}

impl Polynomial {
    /// A constant.
    pub fn constant(value: BigRational) -> Self {
        if value.is_zero() { Self::default() } else { Self { terms: vec![(Vec::new(), value)] } }
    }

    /// One.
    pub fn one() -> Self {
        Self::constant(BigRational::one())
    }

    /// One generator.
    pub fn generator(id: u32) -> Self {
        Self { terms: vec![(vec![(id, 1)], BigRational::one())] }
    }

    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value if there are no generators.
    pub fn as_constant(&self) -> Option<BigRational> {
        match self.terms.as_slice() {
            [] => Some(BigRational::zero()),
            [(monomial, value)] if monomial.is_empty() => Some(value.clone()),
            _ => None,
        }
    }

    /// The most bits of a coefficient.
    pub fn bits(&self) -> u64 {
        self.terms.iter().map(|(_, value)| bits(value)).max().unwrap_or(0)
    }

    /// The polynomial times a constant.
    pub fn scaled(&self, factor: &BigRational, fuel: &mut Fuel) -> Result<Self, Trouble> {
        if factor.is_zero() {
            return Ok(Self::default());
        }
        if factor.is_one() {
            return Ok(self.clone());
        }
        let mut terms = Vec::with_capacity(self.terms.len());
        for (monomial, value) in &self.terms {
            terms.push((monomial.clone(), multiply(value, factor, fuel)?));
        }
        Ok(Self { terms })
    }

    /// The sum.
    pub fn plus(&self, other: &Self, fuel: &mut Fuel) -> Result<Self, Trouble> {
        let mut terms = Vec::with_capacity(self.terms.len() + other.terms.len());
        let (mut a, mut b) = (self.terms.iter().peekable(), other.terms.iter().peekable());
        loop {
            let order = match (a.peek(), b.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(x), Some(y)) => x.0.cmp(&y.0),
            };
            fuel.spend(4)?;
            match order {
                Ordering::Less => terms.extend(a.next().cloned()),
                Ordering::Greater => terms.extend(b.next().cloned()),
                Ordering::Equal => {
                    if let (Some((monomial, x)), Some((_, y))) = (a.next(), b.next()) {
                        let sum = add(x, y, fuel)?;
                        if bits(&sum) > MOST_BITS {
                            return Err(Trouble::TooLarge);
                        }
                        if !sum.is_zero() {
                            terms.push((monomial.clone(), sum));
                        }
                    }
                }
            }
        }
        if terms.len() > MOST_TERMS { Err(Trouble::TooLarge) } else { Ok(Self { terms }) }
    }

    /// The difference.
    pub fn minus(&self, other: &Self, fuel: &mut Fuel) -> Result<Self, Trouble> {
        self.plus(&other.negated(), fuel)
    }

    /// Minus the polynomial.
    pub fn negated(&self) -> Self {
        Self { terms: self.terms.iter().map(|(it, value)| (it.clone(), -value)).collect() }
    }

    /// The product, reduced.
    pub fn times(
        &self,
        other: &Self,
        reductions: &[Option<Reduction>],
        fuel: &mut Fuel,
    ) -> Result<Self, Trouble> {
        if let Some(factor) = other.as_constant() {
            return self.scaled(&factor, fuel);
        }
        if let Some(factor) = self.as_constant() {
            return other.scaled(&factor, fuel);
        }
        let mut sum: BTreeMap<Monomial, BigRational> = BTreeMap::new();
        // Terms that still have to be reduced.
        let mut open: Vec<(Monomial, BigRational)> = Vec::new();
        for (left, x) in &self.terms {
            for (right, y) in &other.terms {
                fuel.spend(8)?;
                open.push((product(left, right)?, multiply(x, y, fuel)?));
                while let Some((mut monomial, value)) = open.pop() {
                    let reducible = monomial.iter().position(|(id, power)| {
                        reductions[*id as usize].as_ref().is_some_and(|it| *power >= it.degree)
                    });
                    let Some(at) = reducible else {
                        match sum.entry(monomial) {
                            Entry::Vacant(place) => {
                                place.insert(value);
                            }
                            Entry::Occupied(mut place) => {
                                let total = add(place.get(), &value, fuel)?;
                                if bits(&total) > MOST_BITS {
                                    return Err(Trouble::TooLarge);
                                }
                                place.insert(total);
                            }
                        }
                        continue;
                    };
                    let Some(reduction) = &reductions[monomial[at].0 as usize] else { continue };
                    monomial[at].1 -= reduction.degree;
                    if monomial[at].1 == 0 {
                        monomial.remove(at);
                    }
                    for (factor, by) in &reduction.value.terms {
                        fuel.spend(4)?;
                        open.push((product(&monomial, factor)?, multiply(&value, by, fuel)?));
                    }
                }
                if sum.len() > MOST_TERMS {
                    return Err(Trouble::TooLarge);
                }
            }
        }
        sum.retain(|_, value| !value.is_zero());
        Ok(Self { terms: sum.into_iter().collect() })
    }

    /// The positive rational that divides all coefficients into whole numbers without a common
    /// divisor; one for zero.
    pub fn content(&self) -> BigRational {
        let mut above = BigInt::zero();
        let mut below = BigInt::one();
        for (_, value) in &self.terms {
            above = gcd(above, value.numer().abs());
            below = &below / gcd(below.clone(), value.denom().clone()) * value.denom();
        }
        if above.is_zero() { BigRational::one() } else { BigRational::new(above, below) }
    }

    /// The generators that every term has, with their least powers.
    pub fn common_monomial(&self) -> Monomial {
        let Some((first, rest)) = self.terms.split_first() else { return Vec::new() };
        let mut common = first.0.clone();
        for (monomial, _) in rest {
            common.retain_mut(|(id, power)| {
                let other = monomial.iter().find(|it| it.0 == *id).map_or(0, |it| it.1);
                *power = (*power).min(other);
                *power > 0
            });
        }
        common
    }

    /// The polynomial over a monomial that divides every term.
    pub fn over_monomial(&self, divisor: &Monomial) -> Self {
        let mut terms: Vec<(Monomial, BigRational)> = self
            .terms
            .iter()
            .map(|(monomial, value)| {
                let mut left = monomial.clone();
                for (id, power) in divisor {
                    if let Some(at) = left.iter().position(|it| it.0 == *id) {
                        left[at].1 -= power;
                        if left[at].1 == 0 {
                            left.remove(at);
                        }
                    }
                }
                (left, value.clone())
            })
            .collect();
        terms.sort_by(|a, b| a.0.cmp(&b.0));
        Self { terms }
    }

    /// The generators that occur.
    pub fn generators(&self) -> impl Iterator<Item = u32> + '_ {
        self.terms.iter().flat_map(|(monomial, _)| monomial.iter().map(|it| it.0))
    }
}

/// The product of two monomials.
pub fn product(left: &Monomial, right: &Monomial) -> Result<Monomial, Trouble> {
    let mut joined = Monomial::with_capacity(left.len() + right.len());
    let (mut a, mut b) = (0, 0);
    while a < left.len() || b < right.len() {
        let take_left = b == right.len() || (a < left.len() && left[a].0 <= right[b].0);
        if take_left {
            let (id, mut power) = left[a];
            a += 1;
            if b < right.len() && right[b].0 == id {
                power += right[b].1;
                b += 1;
            }
            if power > MOST_DEGREE {
                return Err(Trouble::TooLarge);
            }
            joined.push((id, power));
        } else {
            joined.push(right[b]);
            b += 1;
        }
    }
    Ok(joined)
}

/// The greatest common divisor.
pub fn gcd(mut a: BigInt, mut b: BigInt) -> BigInt {
    while !b.is_zero() {
        let rest = &a % &b;
        a = std::mem::replace(&mut b, rest);
    }
    a.abs()
}

impl Fraction {
    /// A constant.
    pub fn constant(value: BigRational) -> Self {
        Self { above: Polynomial::constant(value), below: Polynomial::one() }
    }

    /// A whole number.
    pub fn whole(value: i64) -> Self {
        Self::constant(BigRational::from_integer(value.into()))
    }

    /// One generator.
    pub fn generator(id: u32) -> Self {
        Self { above: Polynomial::generator(id), below: Polynomial::one() }
    }

    /// The value if there are no generators.
    pub fn as_constant(&self) -> Option<BigRational> {
        // The denominator of a constant was divided out.
        (self.below.as_constant()?.is_one()).then(|| self.above.as_constant())?
    }

    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        self.above.is_zero()
    }
}
