//! Distance of the policy's whole next-token distribution to a teacher's (Agarwal et al. 2024,
//! arXiv:2306.13649, eq. 2): with s the student, t the teacher and m = beta t + (1 - beta) s,
//!
//! - beta 1: KL(s || t), the reverse, which seeks a mode
//! - beta 0: KL(t || s), the forward, which covers all of them
//! - between: beta KL(t || m) + (1 - beta) KL(s || m), the generalised Jensen-Shannon divergence

use candle_core::{D, Result, Tensor};
use candle_nn::ops::log_softmax;

/// Divergence of each row, `(rows)` in nats, with gradient through `logits`; both inputs are
/// `(rows, vocab)`, already divided by the temperature.
///
/// # Errors
/// If the shapes disagree.
pub fn generalised_divergence(logits: &Tensor, teacher: &Tensor, beta: f64) -> Result<Tensor> {
    if logits.elem_count() == 0 {
        return logits.sum(D::Minus1);
    }
    let student = log_softmax(logits, D::Minus1)?;
    let teacher = log_softmax(teacher, D::Minus1)?.detach();
    let kl = |from: &Tensor, to: &Tensor| (from.exp()? * (from - to)?)?.sum(D::Minus1);
    if beta == 1.0 {
        return kl(&student, &teacher);
    }
    if beta == 0.0 {
        return kl(&teacher, &student);
    }
    let mixture = ((teacher.exp()? * beta)? + (student.exp()? * (1.0 - beta))?)?.log()?;
    (kl(&teacher, &mixture)? * beta)? + (kl(&student, &mixture)? * (1.0 - beta))?
}
