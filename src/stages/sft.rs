//! Supervised fine-tuning: conversations, with loss on the replies only. The loop is
//! [`super::next_token`].

use serde_json::json;

use super::StageEntry;
use super::next_token::{self, NextTokenConfig};
use crate::corpus::LossOn;

/// This stage's row.
pub const ENTRY: StageEntry = StageEntry {
    name: "sft",
    summary: "next-token training on conversations, loss on replies only; table documents",
    read: |table, context, problems| {
        next_token::read("sft", LossOn::Replies, table, context, problems)
    },
    default_options: || json!(NextTokenConfig::default()),
};
