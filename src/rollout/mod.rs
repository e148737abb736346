//! Rollouts: episodes played in parallel, judged, and handed to the learner in task order.
//!
//! Reading order: [`trajectory`] (what is recorded), [`episode`] (one play of one task), [`pool`]
//! (threads and channels around it), [`scoring`] (verdicts), [`task_order`] (which task comes when),
//! [`sampling`] (what is no way to sample), [`instrumentation`] (what a step's rollouts tell, as
//! numbers), [`phrases`] (which texts it counts).

pub mod episode;
pub mod instrumentation;
pub mod phrases;
pub mod pool;
pub mod sampling;
pub mod scoring;
pub mod task_order;
pub mod trajectory;
