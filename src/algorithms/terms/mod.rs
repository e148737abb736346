//! The formulas that methods share, each once: what `tallow loss` is checked on, and what training runs.
//!
//! Whatever is differentiated is a candle tensor of f64, one number a token or a reply; whatever is
//! not (credit, importance weights, denominators) is plain f64 on the host. Replies lie end to end,
//! sampled tokens only: a token that was not sampled has no place here and so no gradient.

pub mod aggregation;
pub mod baseline;
pub mod divergence;
pub mod importance;
pub mod kl;
pub mod policy_loss;
pub mod preference;
pub mod returns;
pub mod rows;
pub mod shaping;
pub mod surrogate;
pub mod value_loss;
