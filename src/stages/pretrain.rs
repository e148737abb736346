//! Pretraining: every token of raw text or of written-out tasks teaches. The loop is
//! [`super::next_token`]; held-out loss is told in bits per byte, which tokenizers can be compared
//! by.

use serde_json::json;

use super::StageEntry;
use super::next_token::{self, NextTokenConfig};
use crate::corpus::LossOn;

/// This stage's row.
pub const ENTRY: StageEntry = StageEntry {
    name: "pretrain",
    summary: "next-token training from random weights on text; table documents",
    read: |table, context, problems| {
        next_token::read("pretrain", LossOn::All, table, context, problems)
    },
    default_options: || json!(NextTokenConfig::default()),
};
