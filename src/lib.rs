//! Tallow: reinforcement learning of language models on verifiable tasks.
//!
//! A *task* has a prompt and a reference. A *policy* writes replies. A *verifier* judges them. An
//! *algorithm* turns judgements into credit; the *learner* changes the policy. *Stages*
//! give the policy something to start from.
//!
//! Where to start reading: [`stages::rl`] (the loop), [`rollout::episode`] (one episode),
//! [`algorithms::grpo`] (one algorithm), then `tallow_envs::digit_sum` and
//! `tallow_verifiers::exact`.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod model;
pub mod registry;
pub mod run;

pub mod stages;

pub mod rollout;

pub mod algorithms;
pub mod evaluation;
pub mod learner;

pub mod chat_template;
pub mod corpus;
pub mod device;
pub mod documents;
pub mod preferences;
pub mod renderer;
pub mod reward_scorer;

pub mod bench;
pub mod report;

pub mod checkpoints;
pub mod console;
pub mod error;
pub mod files;
pub mod run_folder;
pub mod samples;
pub mod tensorboard;
pub mod tracking;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
