//! What a run will need in memory, computed before it starts, and whether the machine has it.
//!
//! The buffers of a pass are counted one by one, so the plan and the peak agree closely where the
//! batches are as full as the settings allow. The cache of keys and values gives way first: a run
//! whose cache does not fit is given less, and its replies wait for each other.

use tallow_policies::{Decoder, Engine, LoraConfig, ModelConfig, PolicyError};

/// What is asked of the machine.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    /// Whether weights are trained (gradients and two moments besides them).
    pub trains: bool,
    /// Copies of what is trained: a reference, or a published version.
    pub copies: usize,
    /// Whether a critic of the model's size is trained beside it.
    pub critic: bool,
    /// Whether a teacher, thought of as of the model's size, is asked.
    pub teacher: bool,
    /// The adapters, where only those are trained.
    pub lora: Option<LoraConfig>,
    /// Most tokens in one forward and backward pass.
    pub micro_batch_tokens: usize,
    /// Whether each layer keeps only its input for the backward pass.
    pub recomputes: bool,
    /// Replies sampled at once.
    pub slots: usize,
    /// Longest prompt and reply together.
    pub context: usize,
    /// Tokens of the rollouts that wait for their update.
    pub rollout_tokens: usize,
    /// A bound on keys and values that the settings name.
    pub cache_bytes: Option<u64>,
}

/// Bytes by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The weights, adapters, and copies of what is trained.
    pub weights: u64,
    /// Gradients and AdamW's moments.
    pub training_state: u64,
    /// Forward results kept for the backward pass, and the buffers of both.
    pub activations: u64,
    /// The weights laid out for sampling.
    pub sampling: u64,
    /// Rollouts that wait for their update: ids, text, log-probabilities, credit.
    pub rollouts: u64,
    /// Keys and values of the replies being sampled.
    pub cache: u64,
    /// The least the cache can be: one reply.
    pub least_cache: u64,
}

const F32: u64 = 4;

/// Logits that scoring holds at once, at most.
const LOGITS: u64 = 1 << 25;

/// Bytes of one token of a waiting rollout: its id twice, some text, the log-probability that was
/// recorded; and in f64 those of sampler, old policy and reference, its value, credit and return.
const ROLLOUT_TOKEN: u64 = 72;

impl MemoryPlan {
    /// The plan of one stage.
    ///
    /// # Errors
    /// If the model's configuration contradicts itself.
    pub fn new(model: &ModelConfig, demand: &Demand) -> Result<Self, PolicyError> {
        let parameters = model.parameter_count()? as u64;
        let (adapters, rank) = match &demand.lora {
            Some(lora) => (lora.parameter_count(model)? as u64, lora.rank as u64),
            None => (0, 0),
        };
        let trained = if demand.lora.is_some() { adapters } else { parameters };
        let vocabulary = model.vocab_size as u64;
        let layers = model.num_hidden_layers as u64;
        let hidden = model.hidden_size as u64;
        let inner = model.intermediate_size as u64;
        let heads = model.query_width() as u64;
        let kv = model.kv_width() as u64;
        let tokens = demand.micro_batch_tokens as u64;
        // Of each layer: q, k, v, what was attended to, the residual stream in its middle, gate and
        // up. Then the residual stream before each layer and after the last.
        let of_layer = 2 * heads + 2 * kv + hidden + 2 * inner;
        let kept_layers = if demand.recomputes { 1 } else { layers };
        let kept = kept_layers * of_layer + (layers + 1) * hidden;
        // Once: two normed rows, the feed-forward block's inner row, gradients of q, k, v and of
        // what was attended to, and those of the residual stream; scored rows before and after
        // the final norm and their gradients; what an adapter passes through.
        let once = 2 * hidden + inner + 2 * heads + 2 * kv + hidden + 3 * hidden + rank;
        let weights_of_layer = 2 * hidden * (heads + kv) + 3 * hidden * inner;
        let logits = (tokens * vocabulary).min(LOGITS.max(96 * vocabulary));
        let activations = if demand.trains {
            let merged = if rank > 0 { hidden * inner.max(heads) } else { 0 };
            tokens * (kept + once) + weights_of_layer + hidden * inner + merged + logits
        } else {
            0
        };
        let critics = u64::from(demand.critic);
        let whole = parameters * (critics + u64::from(demand.teacher));
        let bytes_for = |tokens: usize| Engine::bytes_for(model, tokens) as u64;
        let cache = bytes_for(demand.context).saturating_mul(demand.slots as u64);
        let samples = demand.slots > 0;
        Ok(Self {
            weights: (parameters + adapters + trained * demand.copies as u64 + whole) * F32,
            training_state: if demand.trains {
                (trained + parameters * critics) * F32 * 3
            } else {
                0
            },
            activations: activations * (1 + critics) * F32,
            sampling: if samples {
                (layers * weights_of_layer + vocabulary * hidden) * F32
            } else {
                0
            },
            rollouts: (demand.rollout_tokens as u64).saturating_mul(ROLLOUT_TOKEN),
            cache: cache.min(demand.cache_bytes.unwrap_or(u64::MAX)),
            least_cache: if samples { bytes_for(demand.context) } else { 0 },
        })
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.without_cache().saturating_add(self.cache)
    }

    fn without_cache(&self) -> u64 {
        let fixed = self.weights + self.training_state + self.activations + self.sampling;
        fixed.saturating_add(self.rollouts)
    }

    /// The cache that fits into the bytes available: all of it, or as much as is left; `None` where
    /// not even one reply fits.
    pub fn cache_within(&self, available: u64) -> Option<u64> {
        let left = available.checked_sub(self.without_cache())?;
        let cache = self.cache.min(left);
        (cache >= self.least_cache).then_some(cache)
    }

    /// The setting to change where even the least does not fit.
    pub fn what_to_lower(&self) -> &'static str {
        if self.cache < self.least_cache {
            "raise rollout.cache_mib to hold one reply of model.context tokens, or lower model.context"
        } else if self.rollouts >= self.activations.max(self.least_cache).max(self.training_state) {
            "lower groups_per_step or group_size"
        } else if self.activations >= self.least_cache && self.activations >= self.training_state {
            "lower optimizer.micro_batch_tokens, or set optimizer.recompute_activations"
        } else if self.least_cache >= self.training_state {
            "lower model.context"
        } else {
            "choose a smaller model: weights and optimizer state alone are too large"
        }
    }
}

/// The bound to give a decoder's cache, so that the stage fits into what is free now; `None` where
/// nothing needs bounding.
///
/// # Errors
/// If the model's configuration contradicts itself, or a GPU does not say what is free.
pub fn cache_bound(decoder: &Decoder, demand: &Demand) -> Result<Option<usize>, PolicyError> {
    let plan = MemoryPlan::new(decoder.config(), demand)?;
    if let Some(device) = decoder.device() {
        // The weights are there already. What is planned in f32 is an upper bound of the rest, and
        // the allocator and the products' library want some.
        let elements = device.precision().bytes() as u64;
        let others = plan.training_state + plan.activations;
        let available = device.memory()?.0.saturating_sub(others) / 10 * 9;
        let unbounded =
            MemoryPlan::new(decoder.config(), &Demand { cache_bytes: None, ..demand.clone() })?;
        let wanted = demand.cache_bytes.unwrap_or(u64::MAX);
        let cache = wanted.min(unbounded.cache / F32 * elements);
        let least = plan.least_cache / F32 * elements;
        return Ok(usize::try_from(cache.min(available.max(least))).ok());
    }
    let fits = available_bytes().and_then(|available| plan.cache_within(available));
    let bound = fits.filter(|cache| *cache < plan.cache).or(demand.cache_bytes);
    Ok(bound.and_then(|bytes| usize::try_from(bytes).ok()))
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
        (Some(limit), Some(used)) => {
            let stat = std::fs::read_to_string("/sys/fs/cgroup/memory.stat").unwrap_or_default();
            limit.saturating_sub(used.saturating_sub(reclaimable(&stat)))
        }
        _ => u64::MAX,
    };
    Some(machine.min(group))
}

/// Bytes that a control group counts as used and gives up when asked: files read and not touched
/// since. `stat` is its `memory.stat`.
fn reclaimable(stat: &str) -> u64 {
    let line = stat.lines().find_map(|it| it.strip_prefix("inactive_file "));
    line.and_then(|it| it.trim().parse().ok()).unwrap_or(0)
}

/// `1536` bytes as `1.5 KiB`.
pub fn human_bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: MemoryPlan = MemoryPlan {
        weights: 100,
        training_state: 300,
        activations: 50,
        sampling: 90,
        rollouts: 10,
        cache: 80,
        least_cache: 10,
    };

    #[test]
    fn the_cache_gives_way_down_to_one_reply() {
        assert_eq!(PLAN.total(), 630);
        assert_eq!(PLAN.cache_within(1000), Some(80));
        assert_eq!(PLAN.cache_within(600), Some(50));
        assert_eq!(PLAN.cache_within(560), Some(10));
        assert_eq!(PLAN.cache_within(559), None);
        assert_eq!(PLAN.cache_within(100), None);
    }

    #[test]
    fn file_caches_count_as_free() {
        assert_eq!(reclaimable("anon 5\ninactive_file 4096\nactive_file 7\n"), 4096);
        assert_eq!(reclaimable(""), 0);
    }

    #[test]
    fn what_to_lower_names_the_largest_part() {
        assert!(PLAN.what_to_lower().contains("smaller model"));
        let deep = MemoryPlan { activations: 500, ..PLAN };
        assert!(deep.what_to_lower().contains("micro_batch_tokens"));
        let tight = MemoryPlan { cache: 9, ..PLAN };
        assert!(tight.what_to_lower().contains("rollout.cache_mib"));
    }
}
