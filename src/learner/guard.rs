//! What must be numbers before anything is saved or sampled from, and what a run is told otherwise.
//!
//! A run that diverged ends with the tensor it showed in first; its last checkpoint is sound.

use std::path::Path;

use tallow_policies::PolicyError;

use super::{Learner, OPTIMIZER_FILE, REFERENCE_FOLDER};
use crate::error::Error;

impl Learner {
    /// Whether the weights being trained and the optimizer's moments are numbers.
    ///
    /// # Errors
    /// [`Error::Diverged`], naming the first tensor that holds a NaN or an infinity and how many
    /// there are.
    pub fn check_finite(&self) -> Result<(), Error> {
        self.decoder.check_finite().map_err(|it| self.diverged(it))?;
        self.optimizer.check_finite().map_err(|it| self.diverged(it))
    }

    /// The same for what the engine samples from. The weights of a decoder on a device stay there:
    /// each of its steps was found to be a number, and sampling would notice too.
    ///
    /// # Errors
    /// As [`check_finite`](Self::check_finite).
    pub fn check_finite_before_sampling(&self) -> Result<(), Error> {
        match self.decoder.device() {
            Some(_) => Ok(()),
            None => self.decoder.check_finite().map_err(|it| self.diverged(it)),
        }
    }

    /// Writes weights (a Hugging Face folder, or the adapters alone) and optimizer state into
    /// `folder`, which exists.
    ///
    /// # Errors
    /// If they are no numbers (nothing is written then), or a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        self.check_finite()?;
        match self.decoder.adapters() {
            Some(_) => self.decoder.save_adapter(folder, "")?,
            None => self.decoder.save_folder(folder)?,
        }
        self.optimizer.save(&folder.join(OPTIMIZER_FILE))?;
        if let (true, Some(reference)) = (self.refreshed, &self.reference) {
            reference.save_folder(&folder.join(REFERENCE_FOLDER))?;
        }
        self.critic.as_ref().map_or(Ok(()), |it| it.save(folder))
    }

    /// A loss that may be learned from.
    ///
    /// # Errors
    /// [`Error::Diverged`] if it is no number, naming the first weight that is none either.
    pub(super) fn finite_loss(&self, loss: f64) -> Result<f64, Error> {
        if loss.is_finite() {
            return Ok(loss);
        }
        self.check_finite()?;
        let told = format!("the loss is {loss}, though all weights are numbers");
        Err(self.diverged_as(&told))
    }

    /// What a failed step means for the run.
    pub(super) fn diverged(&self, error: PolicyError) -> Error {
        match error {
            PolicyError::Gradient { .. } | PolicyError::Weights { .. } => {
                self.diverged_as(&error.to_string())
            }
            PolicyError::NotFinite { .. } => match self.decoder.check_finite() {
                Err(weights) => self.diverged_as(&weights.to_string()),
                Ok(()) => self.diverged_as(&error.to_string()),
            },
            other => other.into(),
        }
    }

    /// The error of sampling in `step` with these weights: one that tells of divergence is told
    /// where the weights stand, which are numbers and too large to compute with.
    pub fn sampling_error(&self, error: Error, step: u64) -> Error {
        let Error::Diverged(told) = error else { return error };
        match self.largest_weight() {
            Ok((most, name)) => Error::Diverged(format!(
                "{told}, in step {step}; their largest value is {most:e} in {name}"
            )),
            Err(unread) => unread,
        }
    }

    /// What a step is told by whose length cannot be counted.
    pub(super) fn step_too_long(&self) -> Result<Error, Error> {
        self.check_finite()?;
        let (most, name) = self.largest_weight()?;
        let told = format!("a step too long to measure left values of {most:e} in {name}");
        Ok(self.diverged_as(&told))
    }

    /// The largest value that is trained, and its tensor.
    fn largest_weight(&self) -> Result<(f32, &str), Error> {
        self.decoder.read_back()?;
        let mut largest = (0.0, "no tensor");
        for (name, weights) in self.decoder.trainable().iter() {
            let weights = weights.flatten_all()?.to_vec1::<f32>()?;
            let most = weights.into_iter().map(f32::abs).fold(0.0, f32::max);
            largest = if most > largest.0 { (most, name) } else { largest };
        }
        Ok(largest)
    }

    pub(super) fn diverged_as(&self, told: &str) -> Error {
        Error::Diverged(format!("{told}, after {} optimizer steps of this stage", self.steps))
    }
}

/// A gradient that is no number is not the failure of the model called `whose`, but its training's.
pub(super) fn diverged(whose: &str, error: PolicyError) -> Error {
    match error {
        PolicyError::Gradient { .. } => Error::Diverged(format!("{whose}: {error}")),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use tallow_envs::Seed;
    use tallow_policies::Decoder;

    use super::*;
    use crate::learner::batch::Sequence;
    use crate::learner::{Beside, OptimizerConfig};
    use crate::model::ModelSettings;

    const POISONED: &str = "model.layers.0.mlp.up_proj.weight";

    fn learner(learning_rate: f64) -> Learner {
        let settings = ModelSettings { hidden: 8, heads: 2, layers: 1, ..Default::default() };
        let config = settings.config(16).unwrap();
        let decoder = Decoder::new(config, &settings.init, 1).unwrap();
        let config = OptimizerConfig { learning_rate, ..Default::default() };
        Learner::new(decoder, config, 100, Beside::Nothing, Seed(1)).unwrap()
    }

    fn sequences() -> Vec<Sequence> {
        vec![Sequence::new((0..12).collect(), &[true; 12])]
    }

    fn poison(learner: &Learner) {
        let weight = learner.decoder.parameters().get(POISONED).unwrap();
        let mut values = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (values[3], values[5]) = (f32::NAN, f32::INFINITY);
        let tensor = Tensor::from_vec(values, weight.dims(), &Device::Cpu).unwrap();
        weight.set(&tensor).unwrap();
    }

    fn said(result: Result<(), Error>) -> String {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Diverged(_)), "{error}");
        assert_eq!(error.exit_status(), 1);
        assert!(error.hint().unwrap().contains("learning_rate"));
        error.to_string()
    }

    #[test]
    fn poisoned_weights_are_named_and_nothing_is_written() {
        let mut learner = learner(1e-3);
        learner.next_token_step(&sequences()).unwrap();
        let sound = tempfile::tempdir().unwrap();
        learner.save(sound.path()).unwrap();
        poison(&learner);
        let folder = tempfile::tempdir().unwrap();
        let told = said(learner.save(folder.path()));
        assert!(told.contains("diverged: 2 of "), "{told}");
        assert!(told.contains(POISONED) && told.contains("after 1 optimizer steps"), "{told}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(said(learner.check_finite_before_sampling()), told);
        // The loss of such weights tells the weights, and goes no further.
        let of_loss = said(learner.next_token_step(&sequences()).map(drop));
        assert_eq!(of_loss, told);
        // What was saved before is whole.
        learner.restore(sound.path(), 1).unwrap();
        learner.check_finite().unwrap();
    }

    #[test]
    fn a_learner_that_diverges_is_never_saved_with_what_is_no_number() {
        for learning_rate in [1e10, 1e20, 1e30, 1e38] {
            let mut learner = learner(learning_rate);
            let folder = tempfile::tempdir().unwrap();
            let failed = (0..20).find_map(|_| {
                let stepped = learner.next_token_step(&sequences()).map(drop);
                let saved = learner.save(folder.path());
                if saved.is_ok() {
                    Decoder::from_folder(folder.path()).unwrap();
                }
                stepped.and(saved).err()
            });
            if learning_rate >= 1e20 {
                said(Err(failed.expect("such a rate diverges")));
            }
        }
    }
}
