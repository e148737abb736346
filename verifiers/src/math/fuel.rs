//! A budget of work. Every stage pays before it works, in units that depend on the text alone, so
//! the same pair of answers runs out at the same place on every machine and at any load.

/// The work that one verdict may take; about 2 ms of a present-day core.
pub const BUDGET: u64 = 400_000;

/// What is left of a budget.
#[derive(Clone, Debug)]
pub struct Fuel {
    left: u64,
}

/// The budget ran out. The reply counts as wrong, under its own rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Fuel {
    /// A budget of `units`.
    pub fn new(units: u64) -> Self {
        Self { left: units }
    }

    /// Pays for `units` of work that is about to be done.
    ///
    /// # Errors
    /// [`Exhausted`] if fewer are left; the work must then not be done.
    pub fn spend(&mut self, units: u64) -> Result<(), Exhausted> {
        match self.left.checked_sub(units) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(Exhausted)
            }
        }
    }

    /// The units that are left.
    pub fn left(&self) -> u64 {
        self.left
    }
}
