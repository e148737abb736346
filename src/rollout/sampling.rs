//! What is wrong with sampling settings, told before anything is sampled.

use tallow_policies::SamplingParams;

use crate::config::problem::Fault;

/// Below this a temperature's inverse leaves the range of f32; 0 is greedy decoding.
const LOWEST_TEMPERATURE: f64 = 1e-6;

/// Every fault, under the name of its field.
pub fn faults(params: &SamplingParams) -> Vec<Fault> {
    let mut faults = Vec::new();
    if params.max_tokens == 0 {
        faults.push(Fault::new("max_tokens", "max_tokens must not be 0").expected("1 or more"));
    }
    faults.extend(temperature_fault("temperature", params.temperature));
    if !(params.top_p > 0.0 && params.top_p <= 1.0) {
        faults.push(
            Fault::new("top_p", "not a share of the probability")
                .found(params.top_p.to_string())
                .expected("a number above 0 and at most 1"),
        );
    }
    if !(0.0..=1.0).contains(&params.min_p) {
        faults.push(
            Fault::new("min_p", "not a share of the likeliest token's probability")
                .found(params.min_p.to_string())
                .expected("a number from 0 to 1"),
        );
    }
    faults
}

/// What is wrong with the temperature under `key`.
pub fn temperature_fault(key: &str, temperature: f64) -> Option<Fault> {
    let sound =
        temperature == 0.0 || (temperature.is_finite() && temperature >= LOWEST_TEMPERATURE);
    (!sound).then(|| {
        Fault::new(key, "not a temperature")
            .found(temperature.to_string())
            .expected(format!("0, or a number of at least {LOWEST_TEMPERATURE}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(change: impl FnOnce(&mut SamplingParams)) -> Vec<String> {
        let mut params = SamplingParams::default();
        change(&mut params);
        faults(&params).into_iter().map(|it| it.key).collect()
    }

    #[test]
    fn what_cannot_be_sampled_from_is_refused() {
        assert!(keys(|_| {}).is_empty());
        assert!(keys(|it| it.temperature = 0.0).is_empty());
        for temperature in [f64::NAN, f64::INFINITY, -1.0, 1e-40] {
            assert_eq!(keys(|it| it.temperature = temperature), ["temperature"]);
        }
        assert_eq!(keys(|it| it.top_p = 0.0), ["top_p"]);
        assert_eq!(keys(|it| it.top_p = f64::NAN), ["top_p"]);
        assert_eq!(keys(|it| it.min_p = 2.0), ["min_p"]);
        assert_eq!(keys(|it| it.max_tokens = 0), ["max_tokens"]);
    }
}
