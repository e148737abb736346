// Log-probabilities of given tokens, their gradient, and the draw of a token: each a block for
// each row of f32 logits (rows, vocab).

// A row of logits.
struct Row {
    const float* z;

    __device__ float operator[](unsigned i) const { return z[i]; }
};

// A row in which some tokens cannot be drawn.
struct AllowedRow {
    const float* z;
    const unsigned* forbidden;
    unsigned count;

    __device__ float operator[](unsigned i) const {
        for (unsigned j = 0; j < count; ++j)
            if (forbidden[j] == i) return NEGATIVE_INFINITY;
        return z[i];
    }
};

// The largest logit of a row. NaN is passed over: sums then show it.
template <class Logits>
__device__ float row_max(const Logits& z, unsigned vocab) {
    float largest = NEGATIVE_INFINITY;
    for (unsigned i = threadIdx.x; i < vocab; i += blockDim.x) largest = fmaxf(largest, z[i]);
    return block_max(largest);
}

// With u = z - max: log-sum-exp = max + ln Σ e^u, entropy = ln Σ e^u - Σ u e^u / Σ e^u.
extern "C" __global__ void score_rows(const float* __restrict__ logits,
                                      const unsigned* __restrict__ targets,
                                      float* __restrict__ logprobs, float* __restrict__ entropies,
                                      float* __restrict__ logsumexps, unsigned vocab) {
    const float* z = logits + static_cast<size_t>(blockIdx.x) * vocab;
    const float largest = row_max(Row{z}, vocab);
    float sum = 0.0f, weighted = 0.0f;
    for (unsigned i = threadIdx.x; i < vocab; i += blockDim.x) {
        const float u = z[i] - largest, e = expf(u);
        sum += e;
        weighted += u * e;
    }
    sum = block_sum(sum);
    weighted = block_sum(weighted);
    if (threadIdx.x == 0) {
        const float log_sum = logf(sum);
        logprobs[blockIdx.x] = z[targets[blockIdx.x]] - largest - log_sum;
        entropies[blockIdx.x] = log_sum - weighted / sum;
        logsumexps[blockIdx.x] = largest + log_sum;
    }
}

// dz = g (e_target - p) / temperature. `dz` may be `logits` where elements are f32.
extern "C" __global__ void score_rows_backward(const float* logits,
                                               const unsigned* __restrict__ targets,
                                               const float* __restrict__ logsumexps,
                                               const float* __restrict__ g, element* dz,
                                               unsigned vocab, float inverse_temperature) {
    const size_t start = static_cast<size_t>(blockIdx.x) * vocab;
    const float logsumexp = logsumexps[blockIdx.x];
    const float slope = g[blockIdx.x] * inverse_temperature;
    const unsigned target = targets[blockIdx.x];
    for (unsigned i = threadIdx.x; i < vocab; i += blockDim.x) {
        const float p = expf(logits[start + i] - logsumexp);
        dz[start + i] = narrow(i == target ? slope - slope * p : -slope * p);
    }
}

#define NO_TOKEN 0xffffffffu

// The likeliest token of a row, the first of equals, in every thread.
template <class Logits>
__device__ unsigned likeliest(const Logits& z, unsigned vocab, float largest) {
    __shared__ unsigned found[WARP];
    unsigned first = NO_TOKEN;
    for (unsigned i = threadIdx.x; i < vocab && first == NO_TOKEN; i += blockDim.x)
        if (z[i] == largest) first = i;
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2)
        first = min(first, __shfl_xor_sync(ALL_LANES, first, distance));
    if (lane_index() == 0) found[warp_index()] = first;
    __syncthreads();
    for (unsigned i = 0; i < blockDim.x / WARP; ++i) first = min(first, found[i]);
    return first;
}

// Draws one token a row by inverting the cumulative distribution in the order of the ids; an
// inverse temperature of 0 takes the likeliest. Each warp weighs one stretch of the vocabulary;
// the first then walks through the stretch that holds the number drawn. A row whose logits are not
// numbers gets the token 2^32 - 1.
//
// Where `early` says so, the forbidden tokens cannot be drawn; `kept_masses` is what is left of
// the row's whole mass without them.
extern "C" __global__ void sample_rows(const float* __restrict__ logits,
                                       const float* __restrict__ inverse_temperatures,
                                       const double* __restrict__ uniforms,
                                       const unsigned* __restrict__ early,
                                       const unsigned* __restrict__ forbidden,
                                       unsigned* __restrict__ tokens, float* __restrict__ logprobs,
                                       float* __restrict__ kept_masses, unsigned forbidden_count,
                                       unsigned vocab) {
    const float* row = logits + static_cast<size_t>(blockIdx.x) * vocab;
    const AllowedRow z = {row, forbidden, early[blockIdx.x] != 0 ? forbidden_count : 0};
    const bool greedy = inverse_temperatures[blockIdx.x] <= 0.0f;
    const float scale = greedy ? 1.0f : inverse_temperatures[blockIdx.x];
    const unsigned warps = blockDim.x / WARP, lane = lane_index();
    // scale > 0: the largest logit stays the largest
    const float raw_largest = row_max(z, vocab), largest = raw_largest * scale;

    __shared__ double masses[WARP];
    const unsigned stretch = (vocab + warps * WARP - 1) / (warps * WARP) * WARP;
    const unsigned first = min(warp_index() * stretch, vocab), end = min(first + stretch, vocab);
    double mass = 0.0;
    for (unsigned i = first + lane; i < end; i += WARP) mass += expf(z[i] * scale - largest);
    mass = warp_sum(mass);
    if (lane == 0) masses[warp_index()] = mass;
    __syncthreads();
    double total = 0.0;
    for (unsigned i = 0; i < warps; ++i) total += masses[i];

    unsigned token = NO_TOKEN;
    const bool numbers = total >= 1.0 && total <= 1e30;
    if (!numbers || greedy) {
        token = likeliest(z, vocab, raw_largest);
    } else if (warp_index() == 0) {
        double left = uniforms[blockIdx.x] * total;
        unsigned chosen = 0;
        while (chosen + 1 < warps && left >= masses[chosen]) left -= masses[chosen++];
        const unsigned from = min(chosen * stretch, vocab), to = min(from + stretch, vocab);
        unsigned last = NO_TOKEN;  // the last token of the stretch that can be drawn
        for (unsigned base = from; base < to && token == NO_TOKEN; base += WARP) {
            const unsigned i = base + lane;
            const double weight =
                i < to ? static_cast<double>(expf(z[i] * scale - largest)) : 0.0;
            double upto = weight;  // inclusive sum over the lanes
            for (unsigned distance = 1; distance < WARP; distance *= 2) {
                const double before = __shfl_up_sync(ALL_LANES, upto, distance);
                if (lane >= distance) upto += before;
            }
            unsigned here = weight > 0.0 && upto > left ? i : NO_TOKEN;
            unsigned candidate = weight > 0.0 ? i + 1 : 0;
            for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
                here = min(here, __shfl_xor_sync(ALL_LANES, here, distance));
                candidate = max(candidate, __shfl_xor_sync(ALL_LANES, candidate, distance));
            }
            token = here;
            if (candidate > 0) last = candidate - 1;
            left -= __shfl_sync(ALL_LANES, upto, WARP - 1);
        }
        if (token == NO_TOKEN) token = last;
    }
    // Rounding may end the walk in a stretch that holds nothing to draw.
    __shared__ unsigned drawn;
    if (threadIdx.x == 0) drawn = token;
    __syncthreads();
    if (drawn == NO_TOKEN && numbers) token = likeliest(z, vocab, raw_largest);
    if (threadIdx.x == 0) {
        tokens[blockIdx.x] = numbers ? token : NO_TOKEN;
        logprobs[blockIdx.x] =
            numbers ? z[token] * scale - largest - logf(static_cast<float>(total)) : 0.0f;
        double rest = 0.0;
        for (unsigned j = 0; j < z.count; ++j)
            if (forbidden[j] < vocab) rest += expf(row[forbidden[j]] * scale - largest);
        kept_masses[blockIdx.x] = greedy ? 1.0f : static_cast<float>(total / (total + rest));
    }
}
