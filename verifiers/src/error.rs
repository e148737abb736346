//! What can go wrong inside a verifier. A wrong or unreadable *answer* is never one of these.

use thiserror::Error;

use crate::verifier::ReferenceKind;

/// The checker could not do its work; the caller drops the trajectory and counts it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VerifyError {
    /// The task carries a reference that this verifier does not understand.
    #[error("verifier `{verifier}` was given a reference of kind {got}, but judges kind {wanted}")]
    WrongReference {
        /// Name of the verifier.
        verifier: String,
        /// The kind it judges; the first of them if there are several.
        wanted: ReferenceKind,
        /// The kind it was given.
        got: ReferenceKind,
    },
    /// The reference is of the right kind but cannot be read: the task is at fault.
    #[error("verifier `{verifier}` cannot read the task's reference: {problem}")]
    BadReference {
        /// Name of the verifier.
        verifier: String,
        /// What is wrong with it, found and expected.
        problem: String,
    },
    /// The verifier itself failed: its sandbox did not start, its model broke.
    #[error("verifier `{verifier}` broke: {problem}")]
    Broken {
        /// Name of the verifier.
        verifier: String,
        /// What happened.
        problem: String,
    },
}
