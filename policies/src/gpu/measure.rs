//! What a card can do, for benches to measure fractions of.

use std::time::Instant;

use super::buffer::{Buffer, Device};
use super::driver::Kind;
use crate::error::PolicyError;
use crate::ops::matmul::Output;

/// Repetitions of which the best counts.
const ROUNDS: usize = 12;

impl Device {
    /// Best rate of a square product of elements, `size` cubed, in GFLOP/s.
    ///
    /// # Errors
    /// If the device fails.
    pub fn matrix_gflops(&self, size: usize) -> Result<f64, PolicyError> {
        let values: Vec<f32> = (0..size * size).map(|it| (it as f32 * 0.37).sin()).collect();
        let floats = self.floats(&values)?;
        let matrix = || -> Result<Buffer, PolicyError> {
            let elements = self.buffer(Kind::Element, size * size)?;
            self.narrow(floats.view(), elements.view())?;
            Ok(elements)
        };
        let (a, b, out) = (matrix()?, matrix()?, matrix()?);
        let seconds = self.best_of(&out, || {
            self.project(a.view(), b.view(), size, out.view(), Output::Replace, 1.0)
        })?;
        Ok(2.0 * (size as f64).powi(3) / seconds / 1e9)
    }

    /// Best rate of a copy within the device, in GB/s of what is read and written.
    ///
    /// # Errors
    /// If the device fails.
    pub fn bandwidth_gb_s(&self, bytes: usize) -> Result<f64, PolicyError> {
        let count = bytes / 4;
        let (from, to) = (self.zeros(Kind::F32, count)?, self.zeros(Kind::F32, count)?);
        let seconds = self.best_of(&to, || to.view().copy_from(from.view()))?;
        Ok(2.0 * bytes as f64 / seconds / 1e9)
    }

    fn best_of(
        &self,
        out: &Buffer,
        work: impl Fn() -> Result<(), PolicyError>,
    ) -> Result<f64, PolicyError> {
        let mut best = f64::INFINITY;
        let mut last = vec![0; self.bytes_of(out.kind())];
        for _ in 0..ROUNDS {
            let clock = Instant::now();
            work()?;
            self.driver().download(out.view().address(), &mut last)?;
            best = best.min(clock.elapsed().as_secs_f64());
        }
        Ok(best)
    }
}
