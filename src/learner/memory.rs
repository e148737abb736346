//! What a run will need in memory, computed before it starts, and whether the machine has it.
//!
//! The parts are exact where they are exact (weights, gradients, moments, cache) and an upper
//! estimate for activations: candle keeps every forward result until the backward pass has ended.

use tallow_policies::{ModelConfig, PolicyError};

/// What is asked of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand {
    /// Whether weights are trained (gradients and two moments besides them).
    pub trains: bool,
    /// Whether a second, frozen copy of the weights is kept.
    pub reference: bool,
    /// Most tokens in one forward and backward pass.
    pub micro_batch_tokens: usize,
    /// Longest sequence, which attention's backward pass holds a square of.
    pub sequence_tokens: usize,
    /// Replies sampled at once.
    pub slots: usize,
    /// Longest prompt and reply together.
    pub context: usize,
}

/// Bytes by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Trained weights, and the reference's.
    pub weights: u64,
    /// Gradients (accumulated and in flight) and AdamW's moments.
    pub training_state: u64,
    /// Forward results kept for the backward pass.
    pub activations: u64,
    /// Keys and values of the replies being sampled.
    pub cache: u64,
}

const F32: u64 = 4;

impl MemoryPlan {
    /// The plan of one stage.
    ///
    /// # Errors
    /// If the model's configuration contradicts itself.
    pub fn new(model: &ModelConfig, demand: &Demand) -> Result<Self, PolicyError> {
        let parameters = model.parameter_count()? as u64;
        let layers = model.num_hidden_layers as u64;
        let hidden = model.hidden_size as u64;
        let inner = model.intermediate_size as u64;
        let heads = model.query_width() as u64;
        let kv = model.kv_width() as u64;
        let tokens = demand.micro_batch_tokens as u64;
        // Per token and layer: two norms, q, k, v before and after rotation, attention's result,
        // two residual sums, gate, up and their product; as much again for gradients in flight.
        let per_layer = 6 * hidden + 3 * heads + 4 * kv + 3 * inner;
        let vocabulary_chunk = 256 * model.vocab_size as u64;
        let activations = if demand.trains {
            (tokens * (layers * per_layer * 3 / 2 + 4 * hidden) + 2 * vocabulary_chunk) * F32
        } else {
            0
        };
        let copies = 1 + u64::from(demand.reference);
        Ok(Self {
            weights: parameters * F32 * copies,
            training_state: if demand.trains { parameters * F32 * 4 } else { 0 },
            activations,
            cache: (demand.context as u64 * layers * 2 * kv * F32)
                .saturating_mul(demand.slots as u64),
        })
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        (self.weights + self.training_state + self.activations).saturating_add(self.cache)
    }

    /// The part that can be made smaller most, as the setting that does so.
    pub fn what_to_lower(&self) -> &'static str {
        if self.activations >= self.cache && self.activations >= self.training_state {
            "lower optimizer.micro_batch_tokens"
        } else if self.cache >= self.training_state {
            "lower rollout.slots or sampling.max_tokens"
        } else {
            "choose a smaller model: weights and optimizer state alone are too large"
        }
    }
}

/// Bytes this process may still take: the machine's available memory, or less where a control
/// group sets a limit. `None` where the system does not say.
pub fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|it| it.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    let machine = kib * 1024;
    let read = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = match (read("/sys/fs/cgroup/memory.max"), read("/sys/fs/cgroup/memory.current")) {
        (Some(limit), Some(used)) => limit.saturating_sub(used),
        _ => u64::MAX,
    };
    Some(machine.min(group))
}

/// `1536` bytes as `1.5 KiB`.
pub fn human_bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
